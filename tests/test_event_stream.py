"""Server-Sent Events over channels: without a server, and on every one."""

from __future__ import annotations

import gc
import json
import logging
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from typing import Any

import psutil
import pytest
from flask import Flask, Response, has_request_context

from flask_sockets2 import BrokerError, Sockets, signals
from flask_sockets2.admission.guests import Guest
from flask_sockets2.application.event_stream import EVENTS, event, stream_response
from flask_sockets2.application.state import State, state_of
from flask_sockets2.brokers.base import JSON, TEXT, Message, Position
from flask_sockets2.connection.limits import Limits
from flask_sockets2.fanout.encoding import GAP, gap_message
from flask_sockets2.servers.wsgi_stream import Body, Stream
from tests.clients import http
from tests.event_client import EventClient
from tests.processes import Certificate, Server, Servers, servers_in, unused_port, wait_until
from tests.servers.test_gevent import PATCHED, SERVE
from tests.sites import Site, on
from tests.wire_client import TIMEOUT

pytestmark = pytest.mark.slow

POSITION = Position("0" * 16, 7)

# -- events ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"{}", b"data: {}\n\n"),
        (b"", b"data: \n\n"),
        (b" a", b"data:  a\n\n"),
        (b"{\n}", b"data: {\ndata: }\n\n"),
        (b"a\r\nb\rc\n", b"data: a\ndata: b\ndata: c\ndata: \n\n"),
        ("\u2028\x0b\x85".encode(), "data: \u2028\x0b\x85\n\n".encode()),
    ],
)
def test_an_event_is_data_lines_and_an_empty_one(data: bytes, expected: bytes) -> None:
    """WHATWG HTML §9.2.6: CR, LF and both end a line, and nothing else does."""
    assert event(data) == expected


def test_a_message_becomes_an_envelope_once_for_all() -> None:
    message = Message("news", TEXT, b"a\nb\r", POSITION)
    made = EVENTS.encode(message)
    assert made == (
        b'data: {"channel": "news", "position": "0000000000000000-7", "data": "a\\nb\\r"}\n\n'
    )
    assert EVENTS.encode(message) is made


def test_json_that_was_published_in_several_lines_injects_no_field() -> None:
    message = Message("news", JSON, b'{\n"a":\r1\r\n}', POSITION)
    lines = EVENTS.encode(message).split(b"\n")
    assert [line[:6] for line in lines] == [b"data: "] * 4 + [b"", b""]
    assert json.loads(b"\n".join(line[6:] for line in lines))["data"] == {"a": 1}


def test_a_gap_is_told_and_presence_is_not() -> None:
    gap = EVENTS.encode(gap_message("news", POSITION))
    assert json.loads(gap[6:]) == {"channel": "news", "position": str(POSITION), "event": GAP}
    join = Message("news", TEXT, b"ann", POSITION, event="join", transient=True)
    assert EVENTS.encode(join) == b""


def test_a_message_that_is_no_utf8_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    assert EVENTS.encode(Message("news", TEXT, b"\xff", POSITION)) == b""
    assert "a message of channel 'news' cannot be sent" in caplog.text


# -- a response without a server ---------------------------------------------------------------


@pytest.fixture
def app() -> Flask:
    return Flask(__name__)


@pytest.fixture
def sockets(app: Flask) -> Sockets:
    return Sockets(app)


class Reader:
    """What takes a response as a server does.

    :param how: for :func:`stream_response`.
    """

    def __init__(self, app: Flask, *subscriptions: tuple[str, Any], **how: Any) -> None:
        with app.test_request_context("/events"):
            self.response = stream_response(app, subscriptions, **how)
        body = self.response.response
        assert isinstance(body, Body)
        self.body = body
        self._text = b""

    @property
    def stream(self) -> Stream:
        return self.body.stream

    def event(self) -> dict[str, Any]:
        """The next event; the server takes pieces until there is one."""
        while b"\n\n" not in self._text:
            self._text += next(self.body)
        block, _, self._text = self._text.partition(b"\n\n")
        found: dict[str, Any] = json.loads(block.removeprefix(b"data: "))
        return found

    def rest(self) -> list[Any]:
        """What the messages hold that come up to the end."""
        self._text += b"".join(self.body)
        blocks = [b for b in self._text.split(b"\n\n") if b not in (b"", b":")]
        return [json.loads(b.removeprefix(b"data: ")) for b in blocks]


def test_a_stream_tells_its_channels_and_positions_then_history_then_what_is_new(
    app: Flask, sockets: Sockets
) -> None:
    with app.app_context():
        first, second = (sockets.publish("news", text) for text in ("one", "two"))
        here = sockets.publish("sport", "old")
    reader = Reader(app, ("news", str(first)), ("sport", None))
    assert reader.event() == {"event": "streams", "channels": ["news", "sport"]}
    for channel, position in (("news", second), ("sport", here)):
        told = {"event": "subscribed", "channel": channel, "position": str(position)}
        assert reader.event() == told
    assert reader.event() == {"channel": "news", "position": str(second), "data": "two"}
    with app.app_context():
        at = sockets.publish("sport", {"a": ["b"]})
    assert reader.event() == {"channel": "sport", "position": str(at), "data": {"a": ["b"]}}
    reader.body.close()


def test_a_position_that_makes_no_sense_is_a_gap(app: Flask, sockets: Sockets) -> None:
    reader = Reader(app, ("news", "-"))
    assert [reader.event()["event"] for _ in range(3)] == ["streams", "subscribed", "gap"]
    reader.body.close()


def test_a_stream_of_no_channel_has_heartbeats(app: Flask, sockets: Sockets) -> None:
    reader = Reader(app, heartbeat=0.05)
    assert reader.event() == {"event": "streams", "channels": []}
    assert next(reader.body) == b":\n\n"
    assert next(reader.body) == b":\n\n"
    reader.body.close()


def test_its_head(app: Flask, sockets: Sockets) -> None:
    reader = Reader(app)
    headers = dict(reader.response.headers)
    assert headers == {
        "Content-Type": "text/event-stream; charset=utf-8",
        "Cache-Control": "no-cache, no-transform",
        "X-Accel-Buffering": "no",
    }
    reader.body.close()


def test_the_answer_to_head_subscribes_nobody(app: Flask, sockets: Sockets) -> None:
    app.add_url_rule("/events", view_func=lambda: stream_response(app, [("news", None)]))
    response = app.test_client().head("/events")
    assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert subscribers(app, sockets) == 0


def test_the_test_client_reads_it(app: Flask, sockets: Sockets) -> None:
    app.add_url_rule("/events", view_func=lambda: stream_response(app, [("news", None)]))
    torn_down = []
    app.teardown_request(torn_down.append)
    response = app.test_client().get("/events")
    assert torn_down == [None]
    chunks = iter(response.response)
    assert b'"streams"' in next(chunks)
    with app.app_context():
        sockets.publish("news", "hello")
    assert b'"hello"' in next(chunks)
    assert not has_request_context()
    response.close()
    assert subscribers(app, sockets) == 0


def subscribers(app: Flask, sockets: Sockets, channel: str = "news") -> int:
    with app.app_context():
        found = sockets.subscribers(channel)
    assert isinstance(found, int)
    return found


# -- what is refused -----------------------------------------------------------------------------


def test_without_a_broker_it_is_503_and_nothing_stays_subscribed(
    app: Flask, sockets: Sockets, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    channels = state_of(app).channels
    attach = channels.attach

    def away(outlet: Any, channel: str, *how: Any) -> Any:
        if channel == "sport":
            raise BrokerError("cannot reach the broker")
        return attach(outlet, channel, *how)

    monkeypatch.setattr(channels, "attach", away)
    both = [("news", None), ("sport", None)]
    app.add_url_rule("/events", view_func=lambda: stream_response(app, both))
    response = app.test_client().get("/events")
    assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
    assert "told an event stream of /events to connect again: cannot reach" in caplog.text
    assert subscribers(app, sockets) == 0
    assert not state_of(app).streams


def test_where_nobody_serves_the_brokers_url_it_is_503(app: Flask) -> None:
    app.config["SOCKETS_BROKER_URL"] = "redis://127.0.0.1:1"
    Sockets(app)
    app.add_url_rule("/events", view_func=lambda: stream_response(app, [("news", None)]))
    assert app.test_client().get("/events").status_code == 503


@pytest.mark.parametrize("names", [["news", "news"], [""]])
def test_what_no_client_can_subscribe_to_is_an_error(
    names: list[str], app: Flask, sockets: Sockets
) -> None:
    with pytest.raises(ValueError):
        Reader(app, *[(name, None) for name in names])
    assert subscribers(app, sockets) == 0
    assert not state_of(app).streams


def test_streams_count_for_the_most_that_an_application_takes(
    app: Flask, sockets: Sockets, caplog: pytest.LogCaptureFixture
) -> None:
    app.config["SOCKETS_MAX_CONNECTIONS"] = 2
    app.add_url_rule("/events", view_func=lambda: stream_response(app, []))
    client = app.test_client()
    responses = [client.get("/events") for _ in range(3)]
    assert [r.status_code for r in responses] == [200, 200, 503]
    assert responses[2].headers["Retry-After"] == "5"
    assert "refused an event stream: SOCKETS_MAX_CONNECTIONS is reached (2)" in caplog.text
    responses[0].close()
    assert client.get("/events").status_code == 200
    for response in responses:
        response.close()


def test_of_two_threads_that_want_the_last_place_one_gets_it(
    app: Flask, sockets: Sockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.config["SOCKETS_MAX_CONNECTIONS"] = 1
    app.add_url_rule("/events", view_func=lambda: stream_response(app, []))
    before = set(Stream.opened())
    both = threading.Barrier(2, timeout=TIMEOUT)
    expect = State.expect

    def expect_together(state: State, *how: Any) -> Guest:
        guest = expect(state, *how)
        both.wait()  # each has seen that there is room
        return guest

    monkeypatch.setattr(State, "expect", expect_together)
    responses: list[Any] = []
    threads = [
        threading.Thread(target=lambda: responses.append(app.test_client().get("/events")))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    assert sorted(r.status_code for r in responses) == [200, 503]
    assert state_of(app).streams == set(Stream.opened()) - before
    assert len(state_of(app).streams) == 1
    for response in responses:
        response.close()


def test_streams_are_counted_and_told(app: Flask, sockets: Sockets) -> None:
    told: list[tuple[str, Stream]] = []

    def opened(app: Flask, stream: Stream) -> None:
        told.append(("opened", stream))

    def closed(app: Flask, stream: Stream) -> None:
        told.append(("closed", stream))

    with (
        signals.stream_opened.connected_to(opened, app),
        signals.stream_closed.connected_to(closed, app),
    ):
        reader = Reader(app)
        assert sockets.stats()["streams"] == 1
        reader.body.close()
    stats = sockets.stats()
    assert (stats["streams"], stats["streams_opened"], stats["streams_closed"]) == (0, 1, 1)
    assert told == [("opened", reader.stream), ("closed", reader.stream)]
    assert reader.stream.path == "/events"


def test_a_stream_that_is_ended_as_soon_as_it_is_counted_leaves_nothing_behind(
    app: Flask, sockets: Sockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by an order to disconnect its user, in another thread."""
    admit = State.admit_stream

    def admit_and_end(state: State, stream: Stream, guest: Guest) -> None:
        admit(state, stream, guest)
        stream.end()

    monkeypatch.setattr(State, "admit_stream", admit_and_end)
    app.add_url_rule("/events", view_func=lambda: stream_response(app, [("news", None)]))
    assert app.test_client().get("/events").data.count(b"data:") == 2
    assert not state_of(app).streams
    assert subscribers(app, sockets) == 0


def test_a_stream_that_is_evicted_as_soon_as_it_is_counted_holds_nothing(
    app: Flask, sockets: Sockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    admit = State.admit_stream

    def admit_and_evict(state: State, stream: Stream, guest: Guest) -> None:
        admit(state, stream, guest)
        stream.evict()

    monkeypatch.setattr(State, "admit_stream", admit_and_evict)
    app.add_url_rule("/events", view_func=lambda: stream_response(app, [("news", None)]))
    assert app.test_client().get("/events").data == b""
    assert state_of(app).budget.total == 0


def test_what_the_server_has_taken_is_counted_no_longer(app: Flask, sockets: Sockets) -> None:
    reader = Reader(app, ("news", None))
    publish(app, sockets, "x" * 1000)
    while "data" not in reader.event():
        pass
    reader.body.close()
    budget = state_of(app).budget
    assert (budget.total, budget.shares, budget.shared) == (0, set(), {})


# -- the end ---------------------------------------------------------------------------------------


def test_a_server_that_closes_the_body_ends_it(app: Flask, sockets: Sockets) -> None:
    reader = Reader(app, ("news", None))
    assert subscribers(app, sockets) == 1
    assert reader.stream in Stream.opened()
    for _ in range(2):
        reader.body.close()
    assert subscribers(app, sockets) == 0
    assert reader.stream not in Stream.opened()
    assert list(reader.body) == []


def test_a_body_that_is_forgotten_ends_its_stream(app: Flask, sockets: Sockets) -> None:
    reader = Reader(app, ("news", None))
    stream = reader.stream
    del reader
    gc.collect()
    wait_until(lambda: stream.closed, "its end")
    wait_until(lambda: subscribers(app, sockets) == 0, "the subscription's end")


def test_a_response_that_is_never_sent_ends_its_stream(app: Flask, sockets: Sockets) -> None:
    app.add_url_rule("/events", view_func=lambda: stream_response(app, [("news", None)]))

    @app.after_request
    def replace(response: Response) -> Response:
        return Response("something else")

    assert app.test_client().get("/events").text == "something else"
    gc.collect()
    wait_until(lambda: subscribers(app, sockets) == 0, "the subscription's end")


def test_who_is_killed_while_it_waits_ends_the_stream(
    app: Flask, sockets: Sockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Reader(app, ("news", None))
    next(reader.body)

    def killed(timeout: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(reader.stream._waiter), "wait", lambda *args: killed(0))
    with pytest.raises(KeyboardInterrupt):
        next(reader.body)
    assert subscribers(app, sockets) == 0


def test_a_stream_that_is_ended_sends_what_it_has(app: Flask, sockets: Sockets) -> None:
    reader = Reader(app, ("news", None))
    reader.stream.end()
    reader.stream.end()
    assert subscribers(app, sockets) == 0
    publish(app, sockets, "too late")
    assert [told["event"] for told in reader.rest()] == ["streams", "subscribed"]
    assert reader.stream.closed


def test_a_stream_that_is_ended_is_not_waited_for_long(app: Flask, sockets: Sockets) -> None:
    reader = Reader(app, limits=Limits(close_timeout=0.05))
    next(reader.body)  # and the server does not come back
    reader.stream.end()
    wait_until(lambda: reader.stream.closed, "its end")


def test_one_that_is_aborted_wakes_the_server(app: Flask, sockets: Sockets) -> None:
    reader = Reader(app)
    next(reader.body)
    timer = threading.Timer(0.1, reader.stream.abort)
    timer.start()
    assert list(reader.body) == []
    timer.join()


# -- slow clients -------------------------------------------------------------------------------


def publish(app: Flask, sockets: Sockets, *texts: str, **how: Any) -> None:
    with app.app_context():
        for text in texts:
            sockets.publish("news", text, **how)


def flushed(app: Flask, sockets: Sockets, channel: str = "flush") -> None:
    """Wait until the selector thread has written what was published before."""
    reader = Reader(app, (channel, None))
    with app.app_context():
        sockets.publish(channel, "x")
    while "data" not in reader.event():
        pass
    reader.body.close()


@pytest.mark.parametrize("policy", ["disconnect", "coalesce"])
def test_who_takes_too_little_is_disconnected(
    policy: str, app: Flask, sockets: Sockets, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    limits = Limits(send_buffer=10_000, slow_client=policy)
    reader = Reader(app, ("news", None), limits=limits)
    next(reader.body)  # and the server does not come back
    for _ in range(12):
        publish(app, sockets, "x" * 1000)
        flushed(app, sockets)
    wait_until(lambda: reader.stream.closed, "its end")
    assert reader.rest() == []
    assert subscribers(app, sockets) == 0
    assert "too slow '/events': more than 10000 bytes kept back" in caplog.text
    assert state_of(app).counters.of_channel("news").slow_disconnects == 1


def test_who_takes_too_little_may_have_the_oldest_dropped(app: Flask, sockets: Sockets) -> None:
    limits = Limits(send_buffer=10_000, slow_client="drop_oldest")
    reader = Reader(app, ("news", None), limits=limits)
    next(reader.body)
    for number in range(30):
        publish(app, sockets, f"{number} " + "x" * 1000)
        flushed(app, sockets)
    assert reader.stream.buffered < 12_000
    got = [reader.event()]
    while not got[-1].get("data", "").startswith("29 "):
        got.append(reader.event())
    assert "gap" in [e.get("event") for e in got]
    reader.body.close()


def test_a_stream_holds_no_more_of_its_histories_than_its_buffer_before_and_after_it_is_taken(
    app: Flask, sockets: Sockets
) -> None:
    """No server has come for it yet, and later it comes for one piece after the other."""
    names = [f"c{number}" for number in range(30)]
    with app.app_context():
        for name in names:
            for number in range(40):
                sockets.publish(name, f"{number} ".ljust(1000, "x"))
    limits = Limits(send_buffer=20_000)
    reader = Reader(app, *((name, "start") for name in names), limits=limits)
    flushed(app, sockets)
    assert 0 < reader.stream.buffered < 20_000
    assert [reader.event()["event"] for _ in range(31)] == ["streams", *["subscribed"] * 30]
    seen: dict[str, list[int]] = {name: [] for name in names}
    for _ in range(30 * 40):
        envelope = reader.event()
        seen[envelope["channel"]].append(int(envelope["data"].split()[0]))
        assert reader.stream.buffered < 20_000
    assert all(each == list(range(40)) for each in seen.values())
    reader.body.close()


@pytest.mark.parametrize("size", [200, 2000, 30_000])
def test_a_stream_that_is_behind_ends_up_with_the_newest(
    size: int, app: Flask, sockets: Sockets
) -> None:
    limits = Limits(send_buffer=10_000, slow_client="drop_oldest")
    reader = Reader(app, ("news", None), limits=limits)
    next(reader.body)
    for number in range(2000):
        publish(app, sockets, f"{number} " + "x" * size)
        if number % 100 == 99:
            flushed(app, sockets)
    assert reader.stream.buffered < 10_000 + size
    got = [reader.event()]
    while not got[-1].get("data", "").startswith("1999 "):
        got.append(reader.event())
    (gap,) = [place for place, each in enumerate(got) if "event" in each]
    numbers = [int(each["data"].split()[0]) for each in got if "data" in each]
    assert numbers[:gap] == list(range(gap))
    assert numbers[gap:] == list(range(numbers[gap], 2000))
    reader.body.close()


def test_who_takes_too_little_may_have_only_the_last_of_each_key(
    app: Flask, sockets: Sockets
) -> None:
    limits = Limits(send_buffer=10_000, slow_client="coalesce")
    reader = Reader(app, ("news", None), limits=limits)
    next(reader.body)
    for number in range(30):
        publish(app, sockets, f"{number} " + "x" * 1000, key="k")
        flushed(app, sockets)
    got = [reader.event()["data"].split()[0]]
    while got[-1] != "29":
        got.append(reader.event()["data"].split()[0])
    assert len(got) <= 3
    reader.body.close()


def test_who_takes_nothing_for_long_is_dropped(app: Flask, sockets: Sockets) -> None:
    reader = Reader(app, ("news", None), heartbeat=0.05, limits=Limits(send_timeout=2))
    next(reader.body)
    wait_until(lambda: reader.stream.closed, "its end")
    assert subscribers(app, sockets) == 0


def test_a_long_backlog_goes_out_whole_in_pieces(app: Flask, sockets: Sockets) -> None:
    app.config["SOCKETS_HISTORY_SIZE"] = 1000
    publish(app, sockets, *[f"{number} " + "x" * 1000 for number in range(500)])
    reader = Reader(app, ("news", "start"))
    assert [reader.event()["event"] for _ in range(2)] == ["streams", "subscribed"]
    for number in range(500):
        assert reader.event()["data"].startswith(f"{number} ")
    reader.body.close()


def test_nobody_is_too_slow_for_what_comes_before_the_server_does(
    app: Flask, sockets: Sockets
) -> None:
    with app.app_context():
        for channel in ("news", "sport"):
            for _ in range(9):
                sockets.publish(channel, "x" * 100_000)
    reader = Reader(app, ("news", "start"), ("sport", "start"))
    flushed(app, sockets)
    publish(app, sockets, "new")
    flushed(app, sockets)
    got = [reader.event() for _ in range(3 + 9 + 9 + 1)]
    assert sum(len(told.get("data", "")) for told in got) == 1_800_003
    reader.body.close()


def test_a_response_that_no_server_comes_for_is_dropped(app: Flask, sockets: Sockets) -> None:
    reader = Reader(app, ("news", None), heartbeat=0.05, limits=Limits(send_timeout=0.1))
    wait_until(lambda: reader.stream.closed, "its end")
    assert subscribers(app, sockets) == 0


# -- servers -------------------------------------------------------------------------------------

SOURCE = """
import gc
import weakref

from flask import Flask, Response, g, has_request_context, request
from flask_sockets2 import Sockets
from flask_sockets2.connection.limits import Limits
from flask_sockets2.application.event_stream import stream_response
from flask_sockets2.servers.wsgi_stream import Stream

gc.disable()  # what a request held must be gone without it
app = Flask(__name__)
app.config.from_prefixed_env()
app.config.setdefault("SOCKETS_CLOSE_TIMEOUT", 0.5)
sockets = Sockets(app)
held, torn_down = {}, []


class Trace:
    pass


@app.get("/events/<name>")
def events(name):
    trace = request.environ["tests.trace"] = Trace()
    held[name] = [weakref.ref(trace), weakref.ref(request._get_current_object())]
    heartbeat = float(request.args.get("heartbeat", 15))
    since = request.args.get("since")
    return stream_response(app, [(name, since)], heartbeat=heartbeat)


@app.teardown_request
def tear_down(error):
    if request.path.startswith("/events/"):
        torn_down.append(request.view_args["name"])


@app.post("/publish/<name>")
def publish(name):
    return str(sockets.publish(name, request.get_data(as_text=True)))


@app.get("/state/<name>")
def state(name):
    return {
        "held": sum(ref() is not None for ref in held.get(name, ())),
        "torn down": torn_down.count(name),
        "subscribers": sockets.subscribers(name),
        "streams": len(Stream.opened()),
    }


class Wrapped:
    # A middleware that wraps what it is given, as one that counts bytes does.
    def __init__(self, body):
        self.body = body

    def __iter__(self):
        return iter(self.body)

    def close(self):
        self.body.close()


def wrapping(wsgi_app):
    def wrap(environ, start_response):
        return Wrapped(wsgi_app(environ, start_response))
    return wrap
"""

WRAP = "\napp.wsgi_app = wrapping(app.wsgi_app)\n"
THREADS = "--threads=40"
DETACHED = ("our handler", "our server", "gunicorn", "our server, unpatched")
ATTACHED = ("stock", "wrapped", "gunicorn -k gevent", "gunicorn --threads", "run")
FAST = "?heartbeat=0.2"
GRACE = 120  # seconds, gunicorn's graceful timeout

_names = count()


def script(servers: Servers, kind: str, source: str = SOURCE) -> Server:
    port = unused_port()
    kind, unpatched, _ = kind.partition(", unpatched")
    start = "" if unpatched else PATCHED
    source = start + source + SERVE[kind].replace("PORT", str(port))
    return servers.script(source, port=port)


def start(servers: Servers, kind: str, **how: Any) -> Server:
    if kind == "run":
        return servers.flask_run(SOURCE, **how)
    if kind.startswith("gunicorn --threads"):
        return servers.gunicorn(SOURCE, worker=None, args=[THREADS], **how)
    if kind.startswith("gunicorn"):
        worker = kind.partition(" -k ")[2] or "flask_sockets2.worker"
        return servers.gunicorn(SOURCE, worker=worker, **how)
    if kind == "wrapped":
        return servers.gunicorn(SOURCE + WRAP, **how)
    return script(servers, kind)


@pytest.fixture(scope="module")
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server that lasts as long as the tests of its kind."""
    with servers_in(tmp_path_factory.mktemp("streams")) as servers:
        yield start(servers, request.param)


class Streams(Site):
    """A site with streams of the channel."""

    def open(self, query: str = "", **how: Any) -> EventClient:
        return EventClient(self.server.port, f"/events/{self.name}{query}", **how)


@pytest.fixture
def site(running: Server) -> Streams:
    return Streams(running, f"channel{next(_names)}")


@on(*DETACHED, *ATTACHED)
@pytest.mark.parametrize("version", ["HTTP/1.0", "HTTP/1.1"])
def test_a_stream_lasts_longer_than_its_request_context(version: str, site: Streams) -> None:
    old = site.publish("old")
    with site.open(f"?since={old}", version=version) as client:
        assert client.begin()[1]["position"] == old
        assert client.status == 200
        assert client.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert client.headers["x-accel-buffering"] == "no"
        assert client.headers["cache-control"] == "no-cache, no-transform"
        assert "content-length" not in client.headers
        if version == "HTTP/1.0" and b"Werkzeug" not in client.head:  # which heeds no version
            assert "transfer-encoding" not in client.headers
        wait_until(lambda: site.state()["torn down"] == 1, "the end of its request context")
        for text in ("hello", "a\nb\u2028", "x" * 300_000):
            at = site.publish(text)
            assert client.event() == {"channel": site.name, "position": at, "data": text}
    site.publish("to nobody")


@on(*DETACHED)
def test_under_our_handler_nothing_is_left_of_the_request_and_the_peers_end_is_seen_at_once(
    site: Streams,
) -> None:
    with site.open("?heartbeat=3600") as client:
        client.begin()
        wait_until(lambda: site.state()["held"] == 0, "the request to be gone")
        site.publish("hello")
        assert client.data() == "hello"
    site.wait_for_subscribers(0)


@on(*DETACHED, *ATTACHED)
@pytest.mark.parametrize("how", ["FIN", "RST"])
def test_who_leaves_is_noticed_at_the_next_heartbeat_and_everything_released(
    how: str, site: Streams
) -> None:
    with site.open(FAST) as client:
        client.begin()
        assert client.block() == ":"
        site.wait_for_subscribers(1)
        if how == "RST":
            client.reset()
    site.wait_for_subscribers(0)
    wait_until(lambda: site.state()["held"] == 0, "the request to be gone")


@on("gunicorn", "gunicorn --threads", "wrapped")
def test_what_a_client_says_after_its_request_is_no_end(site: Streams) -> None:
    with site.open(FAST) as client:
        client.begin()
        client.sock.sendall(b"x" * 100_000)
        for _ in range(3):
            assert client.block() == ":"
        site.publish("hello")
        assert client.data() == "hello"


@on("gunicorn --threads", "gunicorn -k gevent", "wrapped")
def test_the_chunks_of_a_stream_on_the_wire(site: Streams) -> None:
    """RFC 9112 §7.1"""
    old = site.publish("old")
    with site.open() as client:
        client.begin()
        at = site.publish("hello")
        client.data()
        assert client.headers["transfer-encoding"].lower() == "chunked"
        first = (
            f'data: {{"event": "streams", "channels": ["{site.name}"]}}\n\n'
            f'data: {{"event": "subscribed", "channel": "{site.name}", "position": "{old}"}}\n\n'
        )
        second = f'data: {{"channel": "{site.name}", "position": "{at}", "data": "hello"}}\n\n'
        expected = "".join(f"{len(text):x}\r\n{text}\r\n" for text in (first, second))
        assert client.raw.decode().lower() == expected.lower()


@on("gunicorn")
def test_a_stream_under_our_worker_on_the_wire(site: Streams) -> None:
    """Its end is that of the connection: RFC 9112 §6.3."""
    old = site.publish("old")
    with site.open() as client:
        client.begin()
        at = site.publish("hello")
        client.data()
        head = re.sub(rb"(Server|Date): [^\r]*", rb"\1: ?", client.head)
        assert head == (
            b"HTTP/1.1 200 OK\r\n"
            b"Content-Type: text/event-stream; charset=utf-8\r\n"
            b"Cache-Control: no-cache, no-transform\r\n"
            b"X-Accel-Buffering: no\r\n"
            b"Date: ?\r\n"
            b"Connection: close"
        )
        assert client.raw.decode() == (
            f'data: {{"event": "streams", "channels": ["{site.name}"]}}\n\n'
            f'data: {{"event": "subscribed", "channel": "{site.name}", "position": "{old}"}}\n\n'
            f'data: {{"channel": "{site.name}", "position": "{at}", "data": "hello"}}\n\n'
        )


@on("our handler", "gunicorn", "wrapped", "gunicorn -k gevent", "gunicorn --threads", "run")
def test_a_client_that_stops_reading_is_dropped_and_holds_up_nobody(site: Streams) -> None:
    with site.open(receive_buffer=4096) as slow, site.open() as other:
        slow.begin()
        other.begin()
        for _ in range(100):
            site.publish("x" * 100_000)
            assert len(other.data()) == 100_000
        site.wait_for_subscribers(1)
        assert len(slow.rest()) < 10_000_000


# -- many ----------------------------------------------------------------------------------------


def child(server: Server) -> psutil.Process:
    process = psutil.Process(server.process.pid)
    return next(iter(process.children()), process)


@pytest.mark.parametrize("kind", ["gunicorn", "wrapped"])
def test_a_thousand_streams_on_one_worker(kind: str, server_factory: Servers) -> None:
    source = SOURCE + WRAP * (kind == "wrapped")
    server = server_factory.gunicorn(source, args=["--worker-connections", "2000"])
    site = Streams(server)
    process = child(server)
    with site.open(FAST) as client:  # what only the first one opens
        client.begin()
    site.wait_for_subscribers(0)
    files = process.num_fds()
    with ExitStack() as stack:
        clients = [stack.enter_context(site.open("?heartbeat=2")) for _ in range(1000)]
        for client in clients:
            client.begin()
        for number in range(3):
            site.publish(f"message {number}")
            assert {client.data() for client in clients} == {f"message {number}"}
        for client in clients:
            client.reset()
        wait_until(lambda: site.state()["subscribers"] == 0, "the end of all")
        wait_until(lambda: process.num_fds() <= files, "their files to be closed")
    assert "Traceback" not in server.output


def test_events_come_through_nginx_at_once(
    server_factory: Servers, nginx: Callable[[Server], Server]
) -> None:
    server = start(server_factory, "gunicorn")
    site = Streams(server)
    with EventClient(nginx(server).port, "/events/news?heartbeat=0.2") as client:
        client.begin()
        assert client.block() == ":"
        site.publish("hello")
        assert client.data() == "hello"
    site.wait_for_subscribers(0)


# -- places, logs, TLS -------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["", WRAP])
def test_a_stream_takes_a_place_until_it_has_gone(end: str, server_factory: Servers) -> None:
    args = ["--worker-connections", "2"]
    server = server_factory.gunicorn(SOURCE + end, args=args)
    site = Streams(server)
    with site.open(FAST) as first, site.open() as second, site.open() as third:
        first.begin()
        second.begin()
        with pytest.raises(TimeoutError):
            third.read_head(0.3)
        first.reset()
        assert third.begin()


def test_the_access_log_has_one_line(server_factory: Servers) -> None:
    server = server_factory.gunicorn(SOURCE, args=["--access-logfile", "-"])
    site = Streams(server)
    with site.open() as client:
        client.begin()
        server.wait_for_output(r'"GET /events/news HTTP/1\.1" 200 ')
    site.wait_for_subscribers(0)
    assert server.output.count("GET /events/news") == 1


@pytest.mark.parametrize("kind", ["gunicorn", "our server", "our handler", "gunicorn --threads"])
def test_a_stream_over_tls(kind: str, server_factory: Servers, certificate: Certificate) -> None:
    certfile, keyfile = str(certificate.certfile), str(certificate.keyfile)
    if kind.startswith("gunicorn"):
        args = ["--certfile", certfile, "--keyfile", keyfile]
        threads = [THREADS] if "threads" in kind else []
        worker = None if threads else "flask_sockets2.worker"
        server = server_factory.gunicorn(SOURCE, worker=worker, args=[*args, *threads], secure=True)
    else:
        port = unused_port()
        files = f"app, certfile={certfile!r}, keyfile={keyfile!r}"
        end = SERVE[kind].replace("app)", f"{files})").replace("app, handler", f"{files}, handler")
        source = (PATCHED + SOURCE + end).replace("PORT", str(port))
        server = server_factory.script(source, port=port)
        server.secure = True
    context = certificate.client_context()

    def ask(path: str, data: bytes | None = None) -> str:
        status, body, _ = http(server.url(path), data=data, context=context)
        assert status == 200
        return body

    def waiting() -> int:
        return int(json.loads(ask("/state/news"))["subscribers"])

    path = "/events/news?heartbeat=0.2"
    with (
        EventClient(server.port, path, context=context) as client,
        EventClient(server.port, path, context=context) as other,
    ):
        client.begin(), other.begin()
        for text in ("hello", "x" * 300_000):
            ask("/publish/news", text.encode())
            assert client.data() == text
            assert other.data() == text
        client.reset()
        wait_until(lambda: waiting() == 1, "the end of one")
        ask("/publish/news", b"again")
        assert other.data() == "again"
    wait_until(lambda: waiting() == 0, "the end of the other")


# -- stopping ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gunicorn", "wrapped", "our server"])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_stops_ends_its_streams(
    signum: int, kind: str, server_factory: Servers
) -> None:
    gunicorn = kind != "our server"
    how: dict[str, Any] = {"args": ["--graceful-timeout", str(GRACE)]} if gunicorn else {}
    server = start(server_factory, kind, **how)
    site = Streams(server)
    with site.open() as one, site.open() as other:
        one.begin(), other.begin()
        site.publish("the last")
        assert (one.data(), other.data()) == ("the last", "the last")
        server.process.send_signal(signum)
        for client in (one, other):
            rest = client.rest()
            assert rest.endswith(b"\n\n") or rest.endswith(b"\n\n\r\n0\r\n\r\n")
            client.sock.close()
        assert server.process.wait(TIMEOUT) == 0
    assert "Traceback" not in server.output


@pytest.mark.parametrize("kind", ["gunicorn", "wrapped"])
def test_a_stream_whose_client_does_not_read_is_not_waited_for_long(
    kind: str, server_factory: Servers
) -> None:
    server = start(server_factory, kind, args=["--graceful-timeout", str(GRACE)])
    site = Streams(server)
    with site.open(receive_buffer=4096) as client:
        client.begin()
        for _ in range(3):  # more than the kernels take, less than SOCKETS_SEND_BUFFER
            site.publish("x" * 900_000)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(TIMEOUT) == 0
    assert "Traceback" not in server.output


@pytest.mark.parametrize("kind", ["gunicorn --threads", "run"])
def test_threads_that_hold_streams_do_not_keep_a_server_from_stopping(
    kind: str, server_factory: Servers
) -> None:
    if kind == "run":
        server = start(server_factory, kind)
    else:
        args = [THREADS, "--graceful-timeout", "1"]
        server = server_factory.gunicorn(SOURCE, worker=None, args=args)
    with Streams(server).open() as client:
        client.begin()
        server.process.send_signal(signal.SIGINT)
        client.rest()
        server.process.wait(TIMEOUT)
