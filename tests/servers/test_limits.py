"""Limits against abuse on every server, over several workers, and in a flood."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import psutil
import pytest

from flask_sockets2 import Publisher
from flask_sockets2.transports.base import READ_SIZE
from tests.brokers.servers import RedisServer, redis_or_skip
from tests.clients import http
from tests.event_client import EventClient
from tests.faults.bystander import bystander
from tests.processes import Server, Servers, servers_in, unused_port, wait_until
from tests.servers.test_gevent import PATCHED, SERVE
from tests.wire_client import CLOSE, PING, TEXT, WireClient, frame, request

APP = """
import logging
import os
import time
from dataclasses import replace

from flask import Flask, request
from werkzeug.middleware.proxy_fix import ProxyFix

from flask_sockets2 import BrokerError, Sockets, Turbo
from flask_sockets2.application.event_stream import stream_response
from flask_sockets2.application.state import state_of
from flask_sockets2.connection.limits import Limits
from flask_sockets2.settings import read
from flask_sockets2.sse import sse

logging.basicConfig()

app = Flask(__name__)
app.config.from_prefixed_env()
app.config.setdefault("SOCKETS_MAX_CONNECTIONS_PER_ADDRESS", 4)
app.wsgi_app = ProxyFix(app.wsgi_app)
sockets = Sockets(app)
Turbo(app)
app.register_blueprint(sse, url_prefix="/stream")


@sockets.user_id
def user_id():
    return request.args.get("user")


@sockets.route("/echo")
def echo(ws):
    for message in ws:
        ws.send(message)


@sockets.route("/limited", max_message_rate=50)
def limited(ws):
    echo(ws)


@sockets.route("/listen")
def listen(ws):
    ws.subscribe("news", request.args.get("since"), envelope=True)
    ws.send(str(os.getpid()))


@sockets.route("/old", max_connection_age=1)
def old(ws):
    ws.subscribe("news", request.args["since"], envelope=True)


@app.get("/events")
def events():
    limits = read(Limits, app.config)
    if "old" in request.args:
        limits = replace(limits, max_connection_age=1)
    return stream_response(app, [("news", request.args.get("since"))], limits=limits)


@app.get("/ticks")
def ticks():
    def generate():
        while True:
            yield "tick"
            time.sleep(0.05)

    return sse.stream_generator(generate())


@app.post("/publish")
def publish():
    return str(sockets.publish("news", int(request.args["number"])))


@app.post("/disconnect")
def disconnect():
    try:
        sockets.disconnect(user=request.args["user"], code=4001, reason="logged out")
    except BrokerError:
        return str(os.getpid()), 503
    return ""


@app.get("/state")
def state():
    admission = state_of(app).admission
    return {"open": len(admission.connections) + len(admission.streams), **sockets.stats()}
"""

KINDS = [
    "worker",
    *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("flask-run", "our server")),
    "gthread",
    "stock",
]


def start(servers: Servers, kind: str) -> Server:
    if kind == "worker":
        return servers.gunicorn(APP)
    if kind == "gthread":
        return servers.gunicorn(APP, worker="gthread", args=["--threads", "20"])
    if kind == "flask-run":
        return servers.flask_run(APP)
    port = unused_port()
    return servers.script(PATCHED + APP + SERVE[kind].replace("PORT", str(port)), port=port)


@pytest.fixture(scope="module", params=KINDS)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """One server for all tests; each test is a client of an address of its own."""
    folder = tmp_path_factory.mktemp(request.param.replace(" ", "-"))
    with servers_in(folder) as servers:
        yield start(servers, request.param)


def asking(server: Server, path: str, address: str = "") -> WireClient:
    """A client that has asked for a WebSocket."""
    client = WireClient(server.port)
    client.send(request(path, {"X-Forwarded-For": address or None}))
    return client


def connected(server: Server, path: str, address: str = "") -> WireClient:
    client = asking(server, path, address)
    assert client.response().status == 101
    return client


def stream(server: Server, path: str, address: str = "") -> EventClient:
    """A client of an event stream; of HTTP/1.0, for which its end is that of the connection."""
    return EventClient(server.port, path, version="HTTP/1.0", address=address)


def state(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(http(server.url("/state"))[1])
    return found


def number_of(envelope: dict[str, Any]) -> int:
    number: int = envelope["data"]
    return number


def test_all_that_one_address_has_counts_together(server: Server) -> None:
    """WebSockets, event streams, and the connections of Turbo's pages by either of them."""
    address = "2001:db8:0:1::1"
    with ExitStack() as stack:
        for path in ("/echo", "/turbo-stream?s=turbo:all"):
            stack.enter_context(connected(server, path, address))
        for path in ("/events", "/stream"):
            client = stack.enter_context(stream(server, path, address))
            assert client.read_head().status == 200
        for path in ("/echo", "/turbo-stream?s=turbo:all"):
            with asking(server, path, "2001:db8:0:1::2") as refused:
                answer = refused.response()
            assert (answer.status, answer.headers["retry-after"]) == (429, "5")
        for path in ("/events", "/turbo-stream?s=turbo:all", "/stream", "/ticks"):
            fields = {"X-Forwarded-For": address, "Accept": "text/event-stream"}
            status, _, headers = http(server.url(path), headers=fields)
            assert (status, headers["Retry-After"]) == (429, "5")
        connected(server, "/echo", "2001:db8:0:2::1").close()

    def has_room() -> bool:
        with asking(server, "/echo", address) as client:
            return client.response().status == 101

    wait_until(has_room, "the places to be free")


def test_a_user_is_disconnected_and_nobody_else(server: Server) -> None:
    with ExitStack() as stack:
        talks = stack.enter_context(connected(server, "/echo?user=ann", "203.0.113.1"))
        listens = stack.enter_context(connected(server, "/listen?user=ann", "203.0.113.1"))
        listens.message()
        page = "/turbo-stream?s=turbo:all&user=ann"
        turbo = stack.enter_context(connected(server, page, "203.0.113.1"))
        events = stack.enter_context(stream(server, "/events?user=ann"))
        events.begin()
        other = stack.enter_context(connected(server, "/echo?user=bob", "203.0.113.1"))
        others = stack.enter_context(stream(server, "/events?user=bob"))
        others.begin()
        assert http(server.url("/disconnect?user=ann"), data=b"")[0] == 200
        for client in (talks, listens, turbo):
            assert client.closing(answers=True) == (4001, "logged out")
        with suppress(EOFError):
            while events.block():
                pass
        assert events.ended
        other.send(frame(TEXT, b"still here"))
        assert other.message() == b"still here"
        assert http(server.url("/publish?number=7"), data=b"")[0] == 200
        assert others.data() == 7
    assert "Traceback" not in server.output


def test_streams_of_a_user_are_ended_and_nobody_elses(server: Server) -> None:
    address = "203.0.113.2"
    with ExitStack() as stack:
        anns = stack.enter_context(stream(server, "/stream?user=ann", address)).opened()
        ticks = stack.enter_context(stream(server, "/ticks?user=ann", address))
        others = stack.enter_context(stream(server, "/ticks?user=bob", address))
        for client in (ticks, others):
            assert client.next().data == "tick"
        assert http(server.url("/disconnect?user=ann"), data=b"")[0] == 200
        for client in (anns, ticks):
            client.rest()
        assert b"event:end" not in ticks.raw  # it may come back
        count = others.raw.count(b"tick")
        while others.raw.count(b"tick") < count + 5:
            assert others.next().data == "tick"


def test_old_listeners_come_back_without_a_loss(server: Server) -> None:
    published = ended = 0
    received: list[int] = []
    position = http(server.url("/publish?number=-1"), data=b"")[1]
    while ended < 2 or len(received) < published:
        with connected(server, f"/old?since={position}", "203.0.113.3") as client:
            while ended < 2 or len(received) < published:
                if ended < 2:
                    assert http(server.url(f"/publish?number={published}"), data=b"")[0] == 200
                    published += 1
                came = client.frame()
                if came.opcode == CLOSE:
                    assert came.payload[:2] == (1001).to_bytes(2, "big")
                    ended += 1
                    break
                envelope = json.loads(came.payload)
                position = envelope["position"]
                received.append(number_of(envelope))
    assert received == list(range(published))


def test_old_event_streams_come_back_without_a_loss(server: Server) -> None:
    published = ended = 0
    received: list[int] = []
    position = http(server.url("/publish?number=-1"), data=b"")[1]
    while ended < 2 or len(received) < published:
        with stream(server, f"/events?old&since={position}") as client:
            client.begin()
            while ended < 2 or len(received) < published:
                if ended < 2:
                    assert http(server.url(f"/publish?number={published}"), data=b"")[0] == 200
                    published += 1
                try:
                    envelope = client.event()
                except EOFError:
                    ended += 1
                    break
                position = envelope["position"]
                received.append(number_of(envelope))
    assert received == list(range(published))


def test_a_peer_that_floods_has_to_wait_and_loses_nothing(server: Server) -> None:
    with connected(server, "/limited", "203.0.113.4") as client:
        begun = time.monotonic()
        client.send(b"".join(frame(TEXT, b"%d" % number) for number in range(150)))
        assert [client.message() for _ in range(150)] == [b"%d" % n for n in range(150)]
        assert time.monotonic() - begun > 0.7  # 50 at once, 64 more with one read, then 50 a second
        client.send(frame(CLOSE, b"\x03\xe8"))
        assert client.closing(answers=True) == (1000, "")


# -- in a flood --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["worker", "flask-run"])
def test_one_address_that_floods_keeps_nobody_out(kind: str, server_factory: Servers) -> None:
    """Its handshakes are refused, the log stays readable, and others are served meanwhile."""
    setting = {"FLASK_SOCKETS_MAX_HANDSHAKE_RATE_PER_ADDRESS": "5"}
    if kind == "worker":
        server = server_factory.gunicorn(APP, environ=setting)
        (worker,) = psutil.Process(server.process.pid).children()
    else:
        server = server_factory.flask_run(APP, environ=setting)
        worker = psutil.Process(server.process.pid)
    statuses: list[int] = []
    begun = time.monotonic()

    def flood() -> None:
        while time.monotonic() < begun + 3 or statuses.count(429) <= 50:
            with asking(server, "/echo", "203.0.113.9") as client:
                statuses.append(client.response().status)

    connected(server, "/echo").close()
    with bystander(server.port, worker, worker.memory_info().rss):
        threads = [threading.Thread(target=flood) for _ in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            with connected(server, "/echo", "203.0.113.10") as client:
                client.send(frame(TEXT, b"served"))
                assert client.message() == b"served"
            time.sleep(0.5)  # as a guest who comes now and then
    seconds = time.monotonic() - begun
    answers = Counter(statuses)
    assert set(answers) == {101, 429}
    assert answers[101] <= 5 + 5 * (seconds + 1)
    lines = server.output.count("SOCKETS_MAX_HANDSHAKE_RATE_PER_ADDRESS is reached (5)")
    assert 1 <= lines <= seconds + 2
    # One that has ended may still have its place when the next comes.
    assert sum(state(server)["refused"].values()) == answers[429]


@pytest.mark.parametrize("kind", ["worker", "flask-run"])
def test_a_peer_that_floods_with_messages_holds_nobody_up(
    kind: str, server_factory: Servers
) -> None:
    if kind == "worker":
        server = server_factory.gunicorn(APP)
        (worker,) = psutil.Process(server.process.pid).children()
    else:
        server = server_factory.flask_run(APP)
        worker = psutil.Process(server.process.pid)
    connected(server, "/echo").close()
    with (
        bystander(server.port, worker, worker.memory_info().rss),
        connected(server, "/limited") as client,
    ):
        begun = time.monotonic()
        client.send_while_taken(frame(TEXT, bytes(100)) * 100, for_seconds=3, stalled_after=1)
        received = state(server)["routes"]["/limited"]["messages_in"]
        assert received <= 50 + 64 + 50 * (time.monotonic() - begun + 1)
    wait_until(lambda: state(server)["open"] == 0, "the flood to be noticed as gone")


def test_a_peer_that_floods_with_pings_holds_nobody_up(server_factory: Servers) -> None:
    server = server_factory.gunicorn(APP)
    (worker,) = psutil.Process(server.process.pid).children()
    connected(server, "/echo").close()
    ping = frame(PING, bytes(100))
    with (
        bystander(server.port, worker, worker.memory_info().rss),
        connected(server, "/limited") as client,
    ):
        begun = time.monotonic()
        client.send_while_taken(ping * 100, for_seconds=3, stalled_after=1)
        route = state(server)["routes"]["/limited"]
        most = 50 + 64 + 50 * (time.monotonic() - begun + 1)
        assert route["bytes_in"] <= most * len(ping) + READ_SIZE  # what was read is seen to later
        assert route["slowed"] >= 1


# -- over several workers ----------------------------------------------------------------------


@pytest.fixture
def broker() -> Iterator[RedisServer]:
    yield from redis_or_skip()


Spread = Callable[[str], "dict[int, WireClient]"]


@pytest.fixture
def workers(
    request: pytest.FixtureRequest, broker: RedisServer, server_factory: Servers
) -> Iterator[tuple[Server, Spread]]:
    """Two workers, and what gives a user a connection to each of them.

    A test may give them further settings, as its indirect parameter.
    """
    environ = {
        "FLASK_SOCKETS_BROKER_URL": f'"{broker.url}"',
        "FLASK_SOCKETS_MAX_CONNECTIONS_PER_ADDRESS": "100",
        **getattr(request, "param", {}),
    }
    server = server_factory.gunicorn(APP, args=["-w", "2"], environ=environ)
    server.wait_for(
        lambda: server.output.count("a worker has loaded the application") == 2, "both workers"
    )
    with ExitStack() as stack:

        def spread(user: str) -> dict[int, WireClient]:
            found: dict[int, WireClient] = {}

            def one_more() -> bool:
                client = stack.enter_context(connected(server, f"/listen?user={user}"))
                pid = int(client.message())
                if pid in found:
                    client.close()
                else:
                    found[pid] = client
                return len(found) == 2

            wait_until(one_more, "a connection to each worker")
            return found

        yield server, spread


def test_a_script_disconnects_a_user_from_all_workers(
    workers: tuple[Server, Spread], broker: RedisServer
) -> None:
    _, spread = workers
    ann, bob = spread("ann"), spread("bob")
    with Publisher(broker.url) as publisher:
        publisher.disconnect(user="ann", code=4001, reason="logged out")
        for client in ann.values():
            assert client.closing(answers=True) == (4001, "logged out")
        publisher.publish("news", "still")
        for client in bob.values():
            assert json.loads(client.message())["data"] == "still"


@pytest.mark.slow
@pytest.mark.parametrize(
    "workers",
    [
        {},
        {
            "FLASK_SOCKETS_HISTORY_SIZE": "0",
            "FLASK_SOCKETS_HISTORY_BYTES": "1",
            "FLASK_SOCKETS_HISTORY_TTL": "1",
        },
    ],
    ids=["", "no history"],
    indirect=True,
)
def test_an_order_that_comes_while_the_broker_is_out_of_reach_is_obeyed_later(
    workers: tuple[Server, Spread], broker: RedisServer
) -> None:
    """Whatever is kept of other channels."""
    _, spread = workers
    ann = spread("ann")
    with (
        Publisher(broker.url, history_size=0, history_ttl=1) as publisher,
        broker.client() as redis,
    ):
        for number in range(5):  # the workers' connections are cut, and the orders come meanwhile
            redis.client_kill_filter(_type="pubsub")
            publisher.disconnect(user="bob" if number < 4 else "ann", code=4001)
            redis.client_kill_filter(_type="pubsub")
        for client in ann.values():
            assert client.closing()[0] == 4001


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["hangs", "is down"])
def test_a_user_is_disconnected_though_the_broker_is_away(
    fault: str, workers: tuple[Server, Spread], broker: RedisServer
) -> None:
    """From the process that is asked, at once; from the others when the broker is back."""
    server, spread = workers
    ann, bob = spread("ann"), spread("bob")
    if fault == "hangs":
        broker.pause()
    else:
        broker.kill()
    status, pid, _ = http(server.url("/disconnect?user=ann"), data=b"", timeout=60)
    assert status == 503
    assert ann.pop(int(pid)).closing(answers=True) == (4001, "logged out")
    [other] = ann.values()
    if fault == "hangs":
        broker.resume()
        assert other.closing(60, answers=True) == (4001, "logged out")
        with Publisher(broker.url) as publisher:
            publisher.publish("news", "still")
        for client in bob.values():
            assert json.loads(client.message(60))["data"] == "still"
    else:
        broker.restart()  # without its orders, so that all users have to come again
        assert other.closing(60, answers=True)[0] in (4001, 1012)


def test_where_nobody_could_be_told_a_user_does_not_get_in_but_strangers_do(
    server_factory: Servers, tmp_path: Any
) -> None:
    server = server_factory.gunicorn(
        APP, environ={"FLASK_SOCKETS_BROKER_URL": f'"unix://{os.fspath(tmp_path)}/none"'}
    )
    with asking(server, "/echo?user=ann") as client:
        answer = client.response(20)
    assert (answer.status, answer.headers["retry-after"]) == (503, "5")
    with connected(server, "/echo") as stranger:
        stranger.send(frame(TEXT, b"hello"))
        assert stranger.message() == b"hello"
