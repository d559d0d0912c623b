"""What ``docs/hosting.rst`` says holds behind a router that is as impatient as it says."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from flask_sockets2 import Limits
from flask_sockets2.sse.settings import Settings
from tests import processes
from tests.clients import TIMEOUT, echoed, http, websocket
from tests.processes import Server, Servers
from tests.proxies import AS_DOCUMENTED, nginx_in_front
from tests.test_docs import ROOT, blocks

pytestmark = pytest.mark.slow

PAGE = ROOT / "docs" / "hosting.rst"
PROGRAM, INTERVALS = blocks(PAGE, "python")
SETTINGS = PROGRAM.replace("sockets = Sockets(app)\n", INTERVALS + "sockets = Sockets(app)\n")
(DOCKERFILE,) = blocks(PAGE, "docker")
COMPOSE, POD = blocks(PAGE, "yaml")
(PROCFILE,) = [block for block in blocks(PAGE, "text") if block.startswith("web: ")]

ROUTES = """

@sockets.route("/echo")
def echo(ws):
    for message in ws:
        ws.send(message)
"""
PATIENCE = 2  # seconds


def router(servers: Servers, program: str) -> Server:
    """One that cuts what was silent for so long."""
    impatient = AS_DOCUMENTED.replace(
        "proxy_http_version", f"proxy_read_timeout {PATIENCE}s;\n    proxy_http_version"
    )
    return nginx_in_front(servers, servers.gunicorn(program + ROUTES).port, impatient)


def ends(server: Server, within: float) -> bool:
    """Whether a silent connection is cut within so many seconds."""
    with websocket(server.ws_url("/echo")) as client:
        try:
            client.recv(timeout=within)
        except TimeoutError:
            return False
        except ConnectionClosed:
            return True
    raise AssertionError("something was sent")


def with_interval(seconds: float | None) -> str:
    program, count = re.subn(r'(SOCKETS_PING_INTERVAL"\] =) \d+', rf"\1 {seconds}", SETTINGS)
    assert count == 1
    return program


@pytest.mark.parametrize(
    ("interval", "cut", "within"), [(PATIENCE / 10, False, 2 * PATIENCE), (None, True, TIMEOUT)]
)
def test_pings_that_come_sooner_than_the_router_cuts_keep_a_connection(
    interval: float | None, cut: bool, within: float, server_factory: Servers
) -> None:
    assert ends(router(server_factory, with_interval(interval)), within) is cut


def test_what_is_sent_without_a_setting_comes_sooner_than_common_routers_cut() -> None:
    text = PAGE.read_text()
    assert f"a ping every {Limits().ping_interval:g} seconds" in text
    assert f"a comment every {Settings().heartbeat:g} seconds" in text
    limits = [int(each) for each in re.findall(r"silent for (\d+) seconds", text)]
    assert limits
    for seconds in limits:
        assert Limits().ping_interval is not None
        assert seconds > Limits().ping_interval + 5


def instructions(text: str) -> list[tuple[str, str]]:
    """Of a Dockerfile, with the lines that go on joined."""
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [tuple(line.split(" ", 1)) for line in lines if line]  # type: ignore[misc]  # two each


def test_the_command_of_the_container_is_a_list_that_starts(
    gunicorn: Callable[..., Server],
) -> None:
    found = instructions(DOCKERFILE)
    known = {"FROM", "WORKDIR", "COPY", "RUN", "USER", "EXPOSE", "STOPSIGNAL", "CMD"}
    assert {name for name, _ in found} == known
    assert found[0][0] == "FROM"
    assert found[-1][0] == "CMD"
    words: list[str] = json.loads(found[-1][1])
    bind = words.index("--bind")
    port = words[bind + 1].rpartition(":")[2]
    assert ("EXPOSE", port) in found
    assert f"{port}:{port}" in COMPOSE
    del words[bind : bind + 2]
    grace = re.search(r"stop_grace_period: (\d+)s", COMPOSE)
    assert grace is not None
    assert int(grace[1]) > int(words[words.index("--graceful-timeout") + 1])
    assert f"containerPort: {port}}}" in POD
    server = gunicorn(SETTINGS + ROUTES, worker=None, args=words[1:-1], target=words[-1])
    assert echoed(server.ws_url("/echo"), "hello") == "hello"
    assert http(server.url("/healthz"))[:2] == (200, "ok\n")


def test_the_pod_asks_routes_that_answer_and_has_time_to_stop() -> None:
    namespace: dict[str, Any] = {"__name__": "app"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLASK_SOCKETS_HEALTH_ROUTE", "/health")
        exec(PROGRAM, namespace)
    (host,) = re.findall(r"name: Host, value: ([\w.]+)", POD)
    paths = re.findall(r"httpGet: \{path: (/\w+)", POD)
    assert paths == ["/healthz", "/health"]
    for path in paths:
        answer = namespace["app"].test_client().get(path, base_url=f"http://{host}")
        assert answer.status_code == 200
    (grace,), (sleep,) = (
        re.findall(r"terminationGracePeriodSeconds: (\d+)", POD),
        re.findall(r'sleep, "(\d+)"', POD),
    )
    (graceful,) = re.findall(r'"--graceful-timeout", "(\d+)"', DOCKERFILE)
    assert int(grace) > int(sleep) + int(graceful)


def test_the_variable_of_the_platforms_is_the_one_that_the_program_reads() -> None:
    variable = "FLASK_SOCKETS_BROKER_URL"
    assert f"{variable}: redis://" in COMPOSE
    assert f"{variable}=$REDIS_URL" in PROCFILE
    namespace: dict[str, Any] = {"__name__": "app"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(variable, "redis://redis:6379/0")
        exec(SETTINGS, namespace)
    assert namespace["app"].config["SOCKETS_BROKER_URL"] == "redis://redis:6379/0"


def test_the_procfile_starts_the_application_on_the_port_of_the_platform(
    server_factory: Servers, unused_port: int
) -> None:
    _, _, line = PROCFILE.partition(" ")
    _, gunicorn, *words = shlex.split(line)
    command = [sys.executable, "-m", gunicorn, *processes._no_control_socket(), *words]
    (server_factory.folder / "app.py").write_text(SETTINGS + ROUTES)
    server = server_factory.start(command, environ={"PORT": str(unused_port)})
    listening = server.wait_for_output(r"Listening at: http://0\.0\.0\.0:(\d+)")
    server.port = int(listening[1])
    assert server.port == unused_port
    assert echoed(server.ws_url("/echo"), "hello") == "hello"
