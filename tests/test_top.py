"""``flask sockets top``: what all workers do, seen from another process."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from threading import Timer
from typing import Any
from urllib.request import urlopen

import pytest
from flask import Flask
from websockets.exceptions import InvalidStatus

from flask_sockets2 import BrokerError, Publisher, Sockets
from flask_sockets2.application.process_reports import LOOKS, REPORTS, Report, look
from flask_sockets2.application.state import state_of
from flask_sockets2.brokers.base import JSON, Draft, Message, Position
from flask_sockets2.stats import ChannelCounters, Counters, RouteCounters
from flask_sockets2.tools.cli import sockets_cli
from flask_sockets2.tools.top import _COUNTS, _RATES, INTERVAL, Top
from tests.brokers.servers import RedisServer, redis_or_skip
from tests.clients import TIMEOUT, http, websocket
from tests.processes import Server, wait_until
from tests.test_docs import ROOT

pytestmark = pytest.mark.slow

PROGRAM = """
    import os
    from flask import Flask
    from flask_sockets2 import Sockets
    from flask_sockets2.application.event_stream import stream_response

    app = Flask(__name__)
    app.config.from_prefixed_env()
    sockets = Sockets(app)

    @sockets.route("/echo")
    def echo(ws):
        ws.send(str(os.getpid()))
        for message in ws:
            ws.send(message)

    @sockets.route("/news")
    def news(ws):
        ws.subscribe("news")

    @app.route("/events")
    def events():
        return stream_response(app, [("news", None)])
"""


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    yield from redis_or_skip()


@pytest.fixture
def environ(redis_server: RedisServer) -> dict[str, str]:
    with redis_server.client() as client:
        client.flushall()
    return {"FLASK_SOCKETS_BROKER_URL": redis_server.url}


@pytest.fixture
def top(tmp_path: Path, environ: dict[str, str]) -> Callable[..., str]:
    def run(*options: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "flask", "--app", "app", "sockets", "top", *options],
            cwd=tmp_path,
            env={**os.environ, **environ},
            capture_output=True,
            check=True,
            text=True,
            timeout=60,
        ).stdout

    return run


def report(**fields: Any) -> Report:
    given: dict[str, Any] = {
        "process": "p",
        "host": "web1",
        "pid": 7,
        "at": 100.0,
        "connections": 2,
        "streams": 1,
        "requests": 4,
        "channels": 3,
        "buffered": 3 * 2**20,
        "counts": {"messages_in": 10, "dropped": 4},
    }
    return Report(**{**given, **fields})


def deliver(top: Top, data: bytes) -> None:
    top.deliver(Message(REPORTS, JSON, data, Position("0" * 16, 0)))


# -- without a server ------------------------------------------------------------------------


def test_a_report_is_read_as_it_was_written() -> None:
    assert Report.parse(report().serialize()) == report()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"5",
        b"{}",
        b"[" * 100_000,
        report().serialize().replace(b'"pid": 7', b'"pid": "x"'),
        report().serialize().replace(b'"pid": 7', b'"pid": Infinity'),
        report().serialize().replace(b'"at": 100.0', b'"at": NaN'),
        report().serialize().replace(b'"at": 100.0', b'"at": Infinity'),
        report().serialize().replace(b'"dropped": 4', b'"dropped": 9223372036854775808'),
        report().serialize().replace(b'"dropped": 4', b'"dropped": -1'),
        report().serialize().replace(b'"channels": 3', b'"channels": 1' + b"0" * 400),
        report().serialize().replace(b'{"messages_in": 10, "dropped": 4}', b"[]"),
    ],
)
def test_what_is_no_report_is_not_shown(data: bytes) -> None:
    top = Top()
    deliver(top, data)
    assert top.as_dict()["workers"] == []


def test_rates_are_by_the_clock_of_the_process() -> None:
    top = Top()
    deliver(top, report().serialize())
    assert top.as_dict()["workers"][0]["rates"] == {}
    deliver(top, report(at=102.0, counts={"messages_in": 15, "dropped": 4}).serialize())
    assert top.as_dict()["workers"][0]["rates"] == {"messages_in": 2.5, "dropped": 0.0}


def test_the_page_shows_what_it_shows() -> None:
    text = (ROOT / "docs" / "operations.rst").read_text()
    (shown,) = re.findall(r"^    WORKER .*\n(?:    .*\n)+", text, re.MULTILINE)
    shown = dedent(shown).rstrip()
    top = Top()
    for line in shown.splitlines()[1:-1]:
        name, *numbers = line.split()
        host, _, pid = name.partition(":")
        now = ("connections", "streams", "requests", "channels")
        here = dict(zip(now, map(int, numbers[:4]), strict=True))
        here["buffered"] = int(float(numbers[4].removesuffix("M")) * 2**20)
        rates = dict(zip(_RATES.values(), map(float, numbers[5:]), strict=False))
        counts = dict(zip(_COUNTS.values(), map(int, numbers[9:]), strict=True))
        for at in (0.0, 10.0):
            grown = {count: round(rate * at) for count, rate in rates.items()}
            told = report(process=name, host=host, pid=int(pid), at=at, counts=counts | grown)
            deliver(top, replace(told, **here).serialize())
    assert top.table() == shown


def test_a_process_of_the_same_number_is_another_one() -> None:
    top = Top()
    deliver(top, report().serialize())
    deliver(top, report(process="q", at=101.0, counts={}).serialize())
    assert [worker["rates"] for worker in top.as_dict()["workers"]] == [{}, {}]


def test_a_name_cannot_command_the_terminal() -> None:
    top = Top()
    deliver(top, report(host="\x1b[2J" + "x" * 1000).serialize())
    assert "\x1b" not in top.table()
    assert max(map(len, top.table().splitlines())) < 250


def test_the_totals_have_every_count_also_of_what_has_not_happened() -> None:
    counters = Counters()
    counters.of_route("/a").messages_in = 2
    counters.of_route("/b").messages_in = 3
    counters.of_route("/b").bytes_out = 10
    counters.of_channel("news").bytes_out = 5
    counters.refused["max_connections"] = 7
    totals = counters.totals()
    assert (totals["messages_in"], totals["bytes_out"], totals["refused"]) == (5, 15, 7)
    for kind in (RouteCounters, ChannelCounters):
        assert set(kind.__dataclass_fields__) <= totals.keys()


@pytest.mark.parametrize("at", [100.0, 99.0], ids=["the same moment", "an earlier moment"])
def test_two_reports_without_time_between_them_have_no_rates(at: float) -> None:
    top = Top()
    deliver(top, report().serialize())
    deliver(top, report(at=at, counts={"messages_in": 15}).serialize())
    assert top.as_dict()["workers"][0]["rates"] == {}


def test_a_count_that_is_new_counts_from_zero() -> None:
    top = Top()
    deliver(top, report(counts={}).serialize())
    deliver(top, report(at=100.3, counts={"gaps": 1}).serialize())
    assert top.as_dict()["workers"][0]["rates"] == {"gaps": 3.3}


def test_the_sums_are_rounded_as_the_rates_are() -> None:
    top = Top()
    for process in ("p", "q"):
        deliver(top, report(process=process, at=0.0, counts={}).serialize())
    deliver(top, report(process="p", at=10.0, counts={"messages_in": 1}).serialize())
    deliver(top, report(process="q", at=10.0, counts={"messages_in": 2}).serialize())
    known = top.as_dict()
    assert known["rates"] == {"messages_in": 0.3}
    assert known["counts"] == {"messages_in": 3}


@pytest.mark.parametrize(
    ("keys", "told"), [(["a", "b"], 2), (["a", "a"], 0), (["a", ""], 0), (["", ""], 0), ([], 0)]
)
def test_workers_with_keys_of_their_own_are_told(keys: list[str], told: int) -> None:
    top = Top()
    for number, key in enumerate(keys):
        deliver(top, report(process=f"p{number}", key=key).serialize())
    assert ("os.urandom()" in top.table()) == bool(told)
    assert f"These workers have {told} SECRET_KEYs" in top.table() or not told


def test_a_report_of_an_older_version_has_no_key() -> None:
    data = json.loads(report(key="a").serialize())
    assert Report.parse(json.dumps({**data, "key": "x" * 1000}).encode()) == report(key="x" * 32)
    del data["key"]
    assert Report.parse(json.dumps(data).encode()) == report()


OWN_KEYS = PROGRAM.replace(
    "sockets = Sockets(app)",
    """app.secret_key = os.urandom(16)  # each worker has its own
    from flask_sockets2 import Turbo
    turbo = Turbo(app)
    sockets = turbo.sock

    @app.route("/name")
    def name():
        return turbo.stream_from("room")
""",
)


def test_another_secret_key_in_each_worker_is_named_by_the_log_and_by_top(
    gunicorn: Callable[..., Server], environ: dict[str, str], top: Callable[..., str]
) -> None:
    server = gunicorn(OWN_KEYS, args=["-w", "2"], environ=environ)
    with ExitStack() as stack:
        seen: set[Any] = set()

        def both() -> bool:
            seen.add(stack.enter_context(websocket(server.ws_url("/echo"))).recv(TIMEOUT))
            return len(seen) == 2

        wait_until(both, "both workers", 30)
        markup = http(server.url("/name"))[1]
        name = re.search('name="([^"]+)"', markup)
        assert name is not None

        def refused() -> bool:
            with suppress(InvalidStatus):
                with websocket(server.ws_url(f"/turbo-stream?s={name[1]}")):
                    pass
                return False
            return True

        wait_until(refused, "a worker that did not make the page", 30)
        server.wait_for_output("signed with another SECRET_KEY than this process has; if each")
        shown = top("--once")
    assert "These workers have 2 SECRET_KEYs" in shown


def test_a_report_without_counts_shows_zeros() -> None:
    top = Top()
    deliver(top, report(counts={}).serialize())
    shown = top.table().splitlines()[1].split()
    assert shown[-len(_RATES) - len(_COUNTS) :] == ["0.0"] * len(_RATES) + ["0"] * len(_COUNTS)


def test_made_up_processes_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("flask_sockets2.tools.top.monotonic", lambda: now)
    monkeypatch.setattr("flask_sockets2.tools.top._MOST", 2)
    top = Top()

    def shown() -> dict[int, int]:
        return {worker["pid"]: worker["streams"] for worker in top.as_dict()["workers"]}

    for number in range(3):
        deliver(top, report(process=f"p{number}", pid=number).serialize())
    assert shown() == {0: 1, 1: 1}
    deliver(top, report(process="p1", pid=1, at=101.0, streams=9).serialize())
    assert shown() == {0: 1, 1: 9}, "a process that is known is still heard"
    now += 60.0
    assert shown() == {}
    deliver(top, report(process="p2", pid=2).serialize())
    assert shown() == {2: 1}, "there is room again"


def test_a_process_is_shown_until_it_has_not_answered_three_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr("flask_sockets2.tools.top.monotonic", lambda: now)
    top = Top()
    deliver(top, report().serialize())
    now += 3 * INTERVAL
    assert len(top.as_dict()["workers"]) == 1
    now += INTERVAL
    assert top.as_dict()["workers"] == []


def test_looking_again_asks_again_and_subscribes_once() -> None:
    asked: list[str] = []

    class Recorder:
        def subscribe(self, channel: str) -> None:
            asked.append(channel)

        def publish(self, drafts: list[Draft]) -> None:
            asked.extend(draft.channel for draft in drafts)
            assert all(draft.transient for draft in drafts), "no history keeps the questions"

    top = Top()
    recorder: Any = Recorder()
    top.look(recorder)
    top.look(recorder)
    assert asked == [REPORTS, LOOKS, LOOKS]


def test_workers_are_sorted_by_host_and_process() -> None:
    top = Top()
    for number, (host, pid) in enumerate([("b", 1), ("a", 10), ("a", 9)]):
        deliver(top, report(process=str(number), host=host, pid=pid).serialize())
    assert [(each["host"], each["pid"]) for each in top.as_dict()["workers"]] == [
        ("a", 9),
        ("a", 10),
        ("b", 1),
    ]


def test_memory_is_refused_with_the_remedy() -> None:
    app = Flask(__name__)
    Sockets(app)
    result = app.test_cli_runner().invoke(sockets_cli, ["top", "--once"])
    assert result.exit_code == 1
    assert "with memory:// no worker can be asked from here" in result.output
    assert "set SOCKETS_BROKER_URL to a redis:// URL" in result.output


def test_a_broker_that_is_away_is_named(unused_port: int) -> None:
    app = Flask(__name__)
    app.config["SOCKETS_BROKER_URL"] = f"redis://127.0.0.1:{unused_port}/0"
    Sockets(app)
    result = app.test_cli_runner().invoke(sockets_cli, ["top", "--once"])
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert f"127.0.0.1:{unused_port}" in result.output


def test_with_memory_a_process_listens_to_nothing_more() -> None:
    app = Flask(__name__)
    sockets = Sockets(app)
    sockets.add_url_rule("/news", "news", lambda ws: ws.subscribe("news") and None)
    with sockets.test_client(app).connect("/news"):
        assert state_of(app).reporter.begun
        broker: Any = state_of(app).channels.broker
        wait_until(lambda: [*broker._channels] == ["news"], "the subscription, and no other")


# -- what a worker answers -------------------------------------------------------------------


class Collector:
    """Receives the reports that arrive over a broker."""

    def __init__(self) -> None:
        self.reports: list[Report] = []

    def deliver(self, message: Message) -> None:
        parsed = Report.parse(message.data)
        assert parsed is not None
        self.reports.append(parsed)

    def missed(self, channel: str, position: Position) -> None:
        """Reports have no history."""

    def resumed(self, channel: str) -> None:
        """Reports have no presence."""

    def reconnected(self) -> None:
        """Redis stays here."""


def test_a_worker_answers_every_half_second_at_most_however_many_look(
    environ: dict[str, str], redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("flask_sockets2.application.process_reports.monotonic", lambda: now)
    app = Flask(__name__)
    app.config["SOCKETS_BROKER_URL"] = redis_server.url
    sockets = Sockets(app)
    sockets.add_url_rule("/news", "news", lambda ws: ws.subscribe("news") and None)
    collector = Collector()
    with (
        closing(state_of(app).channels.broker),
        redis_server.client() as client,
        Publisher(redis_server.url, receiver=collector) as publisher,
        sockets.test_client(app).connect("/news"),
    ):
        publisher.broker.subscribe(REPORTS)
        wait_until(lambda: lookers_heard_by(client) == 1, "the worker listening")
        for _ in range(20):
            look(publisher.broker)
        wait_until(lambda: len(collector.reports) == 1, "an answer")
        now += 0.49
        look(publisher.broker)
        now = 1000.5
        look(publisher.broker)
        wait_until(lambda: len(collector.reports) == 2, "an answer half a second later")
        now = 1001.0
        look(publisher.broker)
        wait_until(lambda: collector.reports[-1].at == 1001.0, "an answer a second later")
    assert [each.at for each in collector.reports] == [1000.0, 1000.5, 1001.0]


def test_a_worker_that_cannot_listen_tries_again_after_five_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr("flask_sockets2.application.process_reports.monotonic", lambda: now)
    tried: list[float] = []

    class Refusing:
        """Channels whose broker is away."""

        class broker:
            shared = True

        def listen(self, channel: str, *rest: Any) -> None:
            tried.append(now)
            raise BrokerError("away")

    app = Flask(__name__)
    Sockets(app)
    reporter = state_of(app).reporter
    channels: Any = Refusing()
    clock: Any = None
    for now in (1000.0, 1000.0, 1004.9, 1005.0):  # noqa: B007 (the clock reads it)
        reporter.begin(channels, clock)
        wait_until(lambda: not reporter.begun, "the attempt having failed")
    assert tried == [1000.0, 1005.0]


# -- with two workers ------------------------------------------------------------------------


def test_all_workers_are_shown_with_what_they_do(
    gunicorn: Callable[..., Server],
    environ: dict[str, str],
    top: Callable[..., str],
    redis_server: RedisServer,
) -> None:
    server = gunicorn(PROGRAM, args=["--workers", "2"], environ=environ)
    server.wait_for(lambda: server.output.count("has loaded") == 2, "both workers had loaded")
    with redis_server.client() as client, ExitStack() as stack:
        by_worker: dict[int, list[Any]] = {}

        def both_have_some() -> bool:  # who accepts is the kernel's choice
            ws = stack.enter_context(websocket(server.ws_url("/echo")))
            by_worker.setdefault(int(ws.recv(TIMEOUT)), []).append(ws)
            return len(by_worker) == 2

        wait_until(both_have_some, "connections in both workers")
        stack.enter_context(websocket(server.ws_url("/news")))
        wait_until(lambda: lookers_heard_by(client) == 2, "both workers listening")
        wait_until(lambda: channel_has(client, 1), "the subscription to the channel")
        known = json.loads(top("--once", "--json"))
        workers = {worker["pid"]: worker for worker in known["workers"]}
        assert workers.keys() == by_worker.keys()
        assert known["connections"] == sum(map(len, by_worker.values())) + 1
        assert known["connections"] == sum(worker["connections"] for worker in known["workers"])
        assert sum(worker["channels"] for worker in known["workers"]) == 1
        assert known["counts"]["messages_out"] == sum(map(len, by_worker.values()))
        assert known["rates"]["messages_out"] == 0
        table = top("--once").splitlines()
        assert re.split("  +", table[0])[:5] == [
            "WORKER",
            "WEBSOCKETS",
            "STREAMS",
            "REQUESTS",
            "CHANNELS",
        ]
        assert len(table) == 4
        assert table[-1].split()[:3] == ["all", "2", str(known["connections"])]

        one, other = by_worker
        os.kill(one, signal.SIGKILL)

        def left() -> set[int]:
            return {worker["pid"] for worker in json.loads(top("--once", "--json"))["workers"]}

        wait_until(lambda: left() == {other}, "the other one alone")


def channel_has(client: Any, count: int) -> bool:
    """Whether so many workers subscribe to the channel of the program."""
    names = [name for name in client.pubsub_channels() if b"news" in name]
    return len(names) == 1 and client.pubsub_numsub(*names)[0][1] == count


def lookers_heard_by(client: Any) -> int:
    """How many workers subscribe to the channel of those who look."""
    names = [name for name in client.pubsub_channels() if LOOKS.encode() in name]
    return sum(count for _, count in client.pubsub_numsub(*names)) if names else 0


def test_it_goes_on_every_second_and_shows_rates_until_it_is_interrupted(
    gunicorn: Callable[..., Server], environ: dict[str, str], tmp_path: Path
) -> None:
    server = gunicorn(PROGRAM, environ=environ)
    shown = subprocess.Popen(
        [sys.executable, "-m", "flask", "--app", "app", "sockets", "top", "--json"],
        cwd=tmp_path,
        env={**os.environ, **environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = Timer(20, shown.kill)
    deadline.start()
    try:
        with websocket(server.ws_url("/echo")) as ws:
            ws.recv(TIMEOUT)
            assert shown.stdout is not None
            known: dict[str, Any] = {}
            for line in shown.stdout:
                known = json.loads(line)
                if known["rates"].get("messages_in", 0) > 0:
                    break
                for _ in range(20):
                    ws.send("hello")
                    ws.recv(TIMEOUT)
        assert [worker["connections"] for worker in known["workers"]] == [1]
        assert known["rates"]["bytes_in"] > known["rates"]["messages_in"]
        shown.send_signal(signal.SIGINT)
        _, errors = shown.communicate(timeout=60)
        assert (shown.returncode, errors) == (0, "")
    finally:
        deadline.cancel()
        shown.kill()
        shown.wait(60)


@pytest.mark.parametrize("is_there_first", [True, False])
def test_while_redis_is_away_it_says_so_and_goes_on_when_that_is_back(
    is_there_first: bool,
    gunicorn: Callable[..., Server],
    environ: dict[str, str],
    redis_server: RedisServer,
    top: Callable[..., str],
    tmp_path: Path,
) -> None:
    server = gunicorn(PROGRAM, environ=environ)
    with ExitStack() as stack:
        stack.enter_context(websocket(server.ws_url("/echo"))).recv(TIMEOUT)
        # That Redis has heard the worker is not enough: the answer has to be back before the kill.
        wait_until(lambda: json.loads(top("--once", "--json"))["connections"], "the worker")
        if not is_there_first:
            redis_server.kill()
        command = [sys.executable, "-m", "flask", "--app", "app", "sockets", "top", "--json"]
        shown = stack.enter_context(
            subprocess.Popen(
                command,
                cwd=tmp_path,
                env={**os.environ, **environ, "PYTHONUNBUFFERED": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        stack.callback(shown.kill)
        deadline = Timer(40, shown.kill)
        deadline.start()
        stack.callback(deadline.cancel)
        assert shown.stdout is not None
        assert shown.stderr is not None

        def shows_somebody() -> bool:
            return any(json.loads(line)["connections"] for line in shown.stdout or ())

        if is_there_first:
            assert shows_somebody()
            redis_server.kill()
        assert any(line.endswith("; trying again\n") for line in shown.stderr)
        redis_server.restart()
        assert shows_somebody()


def test_a_worker_that_has_only_streams_is_shown(
    gunicorn: Callable[..., Server], environ: dict[str, str], top: Callable[..., str]
) -> None:
    server = gunicorn(PROGRAM, environ=environ)
    assert "No worker has answered" in top("--once")
    with urlopen(server.url("/events"), timeout=TIMEOUT):
        known = json.loads(top("--once", "--json"))
    assert [(each["connections"], each["streams"]) for each in known["workers"]] == [(0, 1)]


def test_a_worker_whose_first_client_came_while_redis_was_away_takes_part_later(
    gunicorn: Callable[..., Server],
    environ: dict[str, str],
    top: Callable[..., str],
    redis_server: RedisServer,
) -> None:
    redis_server.kill()
    server = gunicorn(PROGRAM, environ=environ)
    with websocket(server.ws_url("/echo")) as first:
        first.recv(TIMEOUT)
        redis_server.restart()

        def listed() -> int:
            with websocket(server.ws_url("/echo")) as ws:
                ws.recv(TIMEOUT)
            return len(json.loads(top("--once", "--json"))["workers"])

        wait_until(lambda: listed() == 1, "the worker taking part")


def test_who_was_away_from_redis_takes_part_again_without_a_warning(
    gunicorn: Callable[..., Server],
    environ: dict[str, str],
    top: Callable[..., str],
    redis_server: RedisServer,
) -> None:
    server = gunicorn(PROGRAM, environ=environ)
    with websocket(server.ws_url("/echo")) as ws:
        ws.recv(TIMEOUT)
        assert len(json.loads(top("--once", "--json"))["workers"]) == 1
        redis_server.restart()
        wait_until(lambda: len(json.loads(top("--once", "--json"))["workers"]) == 1, "it")
    assert "is lost" not in server.output
    assert http(server.url("/nothing"))[0] == 404


def test_nobody_can_have_the_channels_of_the_reports() -> None:
    app = Flask(__name__)
    sockets = Sockets(app)
    for name in (LOOKS, REPORTS):
        with pytest.raises(ValueError, match="such are the package's"):
            sockets.publish(name, "mine")
