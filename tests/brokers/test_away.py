"""What each public call does while the broker is stopped, paused, or answers nonsense.

``docs/several-workers.rst`` has the same as a list, which is held against the calls here.
"""

from __future__ import annotations

import logging
import re
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from flask import Flask
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from flask_sockets2 import BrokerError, Publisher, Sockets, WebSocketRejected
from flask_sockets2.application.state import state_of
from flask_sockets2.sse import ServerSentEventsBlueprint
from flask_sockets2.turbo import Turbo
from tests.processes import wait_until

from .servers import RedisServer, redis_or_skip

DOCS = Path(__file__).parents[2] / "docs" / "several-workers.rst"

STATES = {"stopped": b"", "paused": b"", "no RESP": b"*zz\r\n", "no Redis": b"+OK\r\n"}
"""How the broker is away, and what it answers each command."""

TIMEOUT = 0.5  # seconds for an answer, while it is away


class Front:
    """A proxy in front of a server, which can answer in its place."""

    def __init__(self, server: RedisServer) -> None:
        self._path = str(server.path)
        self.answer = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._start(self._accept)

    @staticmethod
    def _start(target: Callable[..., None], *args: Any) -> None:
        threading.Thread(target=target, args=args, daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError), socket.socket(socket.AF_UNIX) as upstream:
            if not self.answer:
                upstream.connect(self._path)
                self._start(self._back, upstream, client)
            while data := client.recv(65536):
                if self.answer:
                    client.sendall(self.answer * max(1, data.count(b"\r\nEVALSHA\r\n")))
                else:
                    upstream.sendall(data)

    @staticmethod
    def _back(upstream: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while data := upstream.recv(65536):
                client.sendall(data)
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)


class Site:
    """An application with all parts of the package."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.app = Flask(__name__)
        self.app.secret_key = "a key"
        self.app.config.update(SOCKETS_BROKER_URL=url, **settings)
        self.sockets = Sockets(self.app)
        self.turbo = Turbo(self.app)
        self.turbo.user_id(lambda: "ann")
        self.sse = ServerSentEventsBlueprint("sse", __name__)
        self.sse.add_url_rule("", "stream", self.sse.stream)
        self.app.register_blueprint(self.sse, url_prefix="/stream")
        self.publisher = Publisher(url)
        self.app.config["SSE_OPEN_CHANNELS"] = True

        self.sockets.route("/early")(lambda ws: None)

        @self.sockets.route("/before", accept=False)
        def before(ws: Any) -> None:
            ws.subscribe("news")

        @self.sockets.route("/after")
        def after(ws: Any) -> None:
            ws.subscribe("news", presence=True, identity="ann", envelope=True)

    def connect(self, path: str) -> Any:
        """Return the status of a refusal, or the code that the connection is closed with."""
        with self.sockets.test_client(self.app).connect(path) as ws:
            while ws.receive(timeout=60) is not None:
                pass
            return ws.close_code

    def commit(self) -> Any:
        engine = create_engine("sqlite://")
        with Session(engine) as session:
            session.execute(text("select 1"))
            for stream in ("<a>", "<b>"):
                self.turbo.after_commit(session).broadcast_to("room", stream=stream)
            session.commit()
        engine.dispose()
        return "committed"

    def progress(self) -> Any:
        with self.sse.progress("job", total=1) as bar:
            bar.advance()
        return bar.state

    def streamed(self, path: str) -> int:
        return self.app.test_client().get(path).status_code


class Call(NamedTuple):
    """A public call.

    :ivar row: what the table's row of it begins with, a part of a name.
    :ivar make: calls it, in a request.
    :ivar expected: text of what it returns, or ``BrokerError``.
    :ivar logged: the same with ``SOCKETS_PUBLISH_ERRORS = "log"``.
    """

    row: str
    make: Callable[[Site], Any]
    expected: str
    logged: str


ERROR = "BrokerError"


def page(row: str, make: Callable[[Site], Any], expected: str = "-") -> Call:
    return Call(row, make, expected, expected)


def pushes(row: str, make: Callable[[Site], Any], logged: str = "-") -> Call:
    return Call(row, make, ERROR, logged)


def always(row: str, make: Callable[[Site], Any], expected: str = ERROR) -> Call:
    return Call(row, make, expected, expected)


CALLS = {
    "publish": pushes("sockets.publish", lambda s: s.sockets.publish("news", "x")),
    "publish_many": pushes(
        "sockets.publish_many",
        lambda s: ",".join(map(str, s.sockets.publish_many([("a", "x")] * 150))),
        ",".join("-" * 150),
    ),
    "push": pushes("turbo.push", lambda s: s.turbo.push("<a>"), "None"),
    "push to": pushes("turbo.push", lambda s: s.turbo.push("<a>", to=["ann", "bob"]), "None"),
    "broadcast": pushes("turbo.broadcast_", lambda s: s.turbo.broadcast_to("r", stream="<a>")),
    "append": pushes(
        "turbo.broadcast_",
        lambda s: s.turbo.broadcast_append_to("r", content="x", target="y"),
    ),
    "refresh": pushes("turbo.broadcast_", lambda s: s.turbo.broadcast_refresh_to("r")),
    "sse.publish": pushes("sse.publish", lambda s: s.sse.publish("x"), "0"),
    "after_commit": always("turbo.after_commit", lambda s: s.commit(), "committed"),
    "progress": always("sse.progress", lambda s: s.progress(), "done"),
    "position": page("sockets.position", lambda s: s.sockets.position("news")),
    "positions": page(
        "sockets.positions", lambda s: ",".join(map(str, s.sockets.positions("ab"))), "-,-"
    ),
    "turbo()": page(
        "turbo()", lambda s: ",".join(re.findall(' data-position="(.*?)"', s.turbo.turbo())), "-,-"
    ),
    "stream_from": page(
        "turbo.stream_from",
        lambda s: re.findall(' position="(.*?)"', s.turbo.stream_from("room", 5))[0],
    ),
    "turbo.position": page("turbo.position", lambda s: s.turbo.position("room", 5)),
    "turbo.positions": page(
        "turbo.positions", lambda s: ",".join(map(str, s.turbo.positions([["a"], ["b"]]))), "-,-"
    ),
    "sse.position": page("sse.position", lambda s: s.sse.position("a", "b"), "-,-"),
    "sse.url": page("sse.url", lambda s: s.sse.url("a").partition("event_id=")[2]),
    "sse.url, last": page("sse.url", lambda s: s.sse.url("a", last=2).partition("event_id=")[2]),
    "subscribers": always("sockets.subscribers", lambda s: s.sockets.subscribers("news")),
    "present": always("sockets.present", lambda s: s.sockets.present("news")),
    "turbo.subscribers": always("turbo.subscribers", lambda s: s.turbo.subscribers("room")),
    "can_push": always("turbo.can_push", lambda s: s.turbo.can_push(), "False"),
    "can_push to": always("turbo.can_push", lambda s: s.turbo.can_push(to="ann"), "False"),
    "disconnect": always("sockets.disconnect", lambda s: s.sockets.disconnect(user="ann")),
    "Publisher.publish": always("Publisher", lambda s: s.publisher.publish("news", "x")),
    "Publisher.publish_many": always(
        "Publisher", lambda s: s.publisher.publish_many([("news", "x")])
    ),
    "Publisher.position": always("Publisher", lambda s: s.publisher.position("news")),
    "Publisher.positions": always("Publisher", lambda s: s.publisher.positions(["news"])),
    "Publisher.subscribers": always("Publisher", lambda s: s.publisher.subscribers("news")),
    "Publisher.present": always("Publisher", lambda s: s.publisher.present("news")),
    "Publisher.disconnect": always("Publisher", lambda s: s.publisher.disconnect(user="ann")),
    "subscribe before accept": always("ws.subscribe", lambda s: s.connect("/before"), "503"),
    "subscribe": always("ws.subscribe", lambda s: s.connect("/after"), "1013"),
    "stream": always("event streams", lambda s: s.streamed("/stream"), "503"),
    "turbo's connection": always(
        "connections of Turbo's pages", lambda s: s.connect("/turbo-stream?s=turbo:all&at="), "503"
    ),
    "stats": always("sockets.stats", lambda s: s.sockets.stats()["evicted"], "0"),
}

EARLY = Call("", lambda s: s.connect("/early"), "1000", "1000")


def outcome(site: Site, call: Call) -> str:
    """Return what a call returns, as text, or the name of what it raises."""
    with site.app.test_request_context():
        try:
            return str(call.make(site))
        except WebSocketRejected as exc:
            return str(exc.status)
        except BrokerError:
            return ERROR
        except Exception as exc:  # told with the others
            return repr(exc)


def works(site: Site, call: Call) -> bool:
    return outcome(site, call) not in (ERROR, "503")


class Records(logging.Handler):
    """Keeps what was logged."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.kept.append(record)


class Away(NamedTuple):
    """What came of all calls, made at the same time, while the broker was away.

    :ivar errors: the counts of messages that were not published.
    """

    raised: dict[str, str]
    logged: dict[str, str]
    records: list[logging.LogRecord]
    errors: int


def tried(site: Site) -> dict[str, str]:
    with ThreadPoolExecutor(len(CALLS)) as pool:
        found = {name: pool.submit(outcome, site, call) for name, call in CALLS.items()}
        return {name: each.result(timeout=60) for name, each in found.items()}


@pytest.fixture(scope="module")
def servers() -> Iterator[RedisServer]:
    yield from redis_or_skip()


@pytest.fixture(scope="module", params=STATES)
def away(request: pytest.FixtureRequest, servers: RedisServer) -> Iterator[Away]:
    state: str = request.param
    front, records = Front(servers), Records()
    url = f"redis://127.0.0.1:{front.port}?socket_timeout={TIMEOUT}"
    sites = [Site(url), Site(url, SOCKETS_PUBLISH_ERRORS="log")]
    for site in sites:  # it is connected before, as a worker is
        for call in (CALLS["publish"], CALLS["subscribers"], EARLY):
            wait_until(partial(works, site, call), "the broker")
    front.answer = STATES[state]
    if state == "paused":
        servers.pause()
    elif state == "stopped":
        servers.kill()
    logger = logging.getLogger("flask_sockets2")
    logger.addHandler(records)
    try:
        raised, logged = [tried(site) for site in sites]
        errors = sites[1].sockets.stats()["channels"]["news"]["publish_errors"]
        yield Away(raised, logged, list(records.kept), errors)
    finally:
        logger.removeHandler(records)
        for site in sites:
            state_of(site.app).close()
            site.publisher.close()
        front.close()
        servers.restart()


@pytest.mark.parametrize("name", CALLS)
def test_while_the_broker_is_away_each_call_does_what_the_table_says(name: str, away: Away) -> None:
    assert away.raised[name] == CALLS[name].expected


@pytest.mark.parametrize("name", CALLS)
def test_with_the_setting_log_nothing_that_publishes_raises(name: str, away: Away) -> None:
    assert away.logged[name] == CALLS[name].logged


def test_each_message_that_is_lost_is_counted_and_the_log_says_so(away: Away) -> None:
    assert away.errors >= 1
    lines = [each for each in away.records if each.levelno == logging.ERROR]
    lost = [each for each in lines if getattr(each, "event", "") == "unpublished"]
    assert lost
    assert lost[0].getMessage().startswith("a message to ")
    texts = [each.getMessage() for each in lines]
    for text_of_kind in (
        "a page has no positions and will be told of a gap: ",
        "nothing can be pushed: ",
        "2 of 2 broadcasts of what was committed were not sent: ",
        "progress is not told: ",
        "broker unavailable, told a WebSocket of /",
    ):
        assert any(each.startswith(text_of_kind) for each in texts), text_of_kind
    assert not [each for each in lines if each.exc_info]


def test_the_table_of_the_documentation_has_each_call() -> None:
    text = DOCS.read_text()
    items = text[text.index("What each call does meanwhile") :].split("\n-   ")[1:]
    rows = [" ".join(item.split()).partition(": ") for item in items]
    for name, call in CALLS.items():
        own = [does for calls, _, does in rows if call.row in calls]
        assert own, f"{name} has no row"
        wanted = call.expected.partition(",")[0]
        assert f"``{wanted}``" in own[0] or wanted in own[0], (name, own)
