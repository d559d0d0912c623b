"""Listeners: connections whose handler has subscribed them and returned; on every server."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from typing import Any

import psutil
import pytest

from tests.clients import http
from tests.processes import Certificate, Server, Servers, servers_in, unused_port, wait_until
from tests.servers.test_gevent import PATCHED, SERVE
from tests.sites import Site, on
from tests.wire_client import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    TIMEOUT,
    Frame,
    WireClient,
    close_frame,
    connect,
    frame,
    request,
)

pytestmark = pytest.mark.slow

StartServer = Callable[..., Server]

SOURCE = """
import gc
import ssl
import time
import weakref

from flask import Flask, abort, request
from flask_sockets2 import Sockets
from flask_sockets2.connection.connection import Connection
from flask_sockets2.signals import connection_closed
from greenlet import getcurrent

gc.disable()  # what a request held must be gone without it
app = Flask(__name__)
app.config.from_prefixed_env()
app.config["SOCKETS_CLOSE_TIMEOUT"] = 0.5
sockets = Sockets(app)
held, kept, noted = {}, {}, {}


class Trace:
    pass


def hold(ws, name):
    # Weak references to what the request is made of; a dict can have none, so its value has.
    trace = request.environ["tests.trace"] = Trace()
    parts = {
        "environ": trace,
        "request": request._get_current_object(),
        "greenlet": getcurrent(),
        "handler": ws.handler,
    }
    held[name] = {part: weakref.ref(it) for part, it in parts.items() if it}


@sockets.route("/listen/<name>")
def listen(ws, name):
    hold(ws, name)
    ws.subscribe(name)


@sockets.route("/kept/<name>")
def keep(ws, name):
    kept[name] = ws
    ws.subscribe(name)


@sockets.route("/first/<name>", receive_buffer=1024)
def first(ws, name):
    while not ws._driver.inbox.has_unread():
        time.sleep(0.001)
    ws.send(ws.receive())
    ws.subscribe(name)


@sockets.route("/alive/<name>", ping_interval=0.1, ping_timeout=0.3)
def alive(ws, name):
    ws.subscribe(name)


@sockets.route("/fails/<name>")
def fails(ws, name):
    ws.subscribe(name)
    raise KeyError("told by the handler")


@sockets.route("/forbids/<name>")
def forbids(ws, name):
    ws.subscribe(name)
    abort(403)


@sockets.route("/closes/<name>")
def closes(ws, name):
    ws.subscribe(name)
    ws.close(4001, "that was all")


@sockets.route("/leaves/<name>")
def leaves(ws, name):
    ws.subscribe(name)
    assert ws.unsubscribe(name)


@sockets.route("/shared/<name>")
def shared(ws, name):
    from threading import Thread  # a greenlet, where it is patched

    def receive():
        try:
            noted[name] = repr(ws.receive())
        except RuntimeError as exc:
            noted[name] = str(exc)

    Thread(target=receive).start()
    while ws._driver.inbox.waiting is None:
        time.sleep(0.001)
    ws.subscribe(name)


@sockets.route("/talks/<name>")
def talk(ws, name):
    ws.subscribe(name)
    ws.send(ws.receive())


@app.teardown_request
def tear_down(error):
    if request.path.startswith("/listen/"):
        noted[request.view_args["name"]] = "torn down"


@connection_closed.connect_via(app)
def note(app, connection, **extra):
    noted[connection.path] = [connection.close_code, connection.close_reason]
    print(f"ended {connection.path} with {connection.close_code}", flush=True)


@app.post("/publish/<name>")
def publish(name):
    return str(sockets.publish(name, request.get_data(as_text=True)))


@app.post("/call/<name>/<method>")
def call(name, method):
    return [getattr(kept[name], method)(*request.get_json()), str(kept[name].environ)]


@app.get("/state/<name>")
def state(name):
    return {
        "held": sorted(part for part, ref in held.get(name, {}).items() if ref() is not None),
        "noted": noted,
        "opened": [ws.path for ws in Connection.opened()],
        "subscribers": sockets.subscribers(name),
        **sockets.stats(),
    }


@app.get("/over-tls")
def over_tls():
    gc.collect()
    return str(sum(isinstance(it, ssl.SSLSocket) for it in gc.get_objects()))
"""

THREADS = "--threads=12"
DETACHED = ("our handler", "our server", "gunicorn")
ATTACHED = ("stock", "gunicorn -k gevent", "gunicorn -k gevent_pywsgi", "gunicorn --threads", "run")

GOING_AWAY = (1001, "server shutdown")

_names = count()


class Listeners(Site):
    """A site whose routes subscribe to the channel."""

    def connect(self, path: str = "/listen", **options: Any) -> WireClient:
        """Open a WebSocket of a route that subscribes to the channel, for a ``with`` statement."""
        return connect(self.server.port, f"{path}/{self.name}", **options)

    def call(self, method: str, *args: Any) -> Any:
        """Call a method of the connection that ``/kept`` keeps, from a view."""
        status, body, _ = http(
            self.server.url(f"/call/{self.name}/{method}"),
            data=json.dumps(args).encode(),
            headers={"Content-Type": "application/json"},
        )
        assert status == 200
        return json.loads(body)[0]

    def wait_until_torn_down(self) -> None:
        wait_until(lambda: self.state()["noted"].get(self.name) == "torn down", "the handler's end")

    def ended(self, path: str = "/listen") -> list[Any]:
        """Wait for the end of a connection; code and reason."""
        path = f"{path}/{self.name}"
        wait_until(lambda: path in self.state()["noted"], f"the end of {path}")
        state = self.state()
        assert path not in state["opened"]
        assert state["subscribers"] == 0
        how: list[Any] = state["noted"][path]
        return how


GRACE = str(2 * int(TIMEOUT))  # longer than a test waits for the end of a server


def start(servers: Servers, kind: str) -> Server:
    if kind == "run":
        return servers.flask_run(SOURCE)
    if kind.startswith("gunicorn --threads"):
        return servers.gunicorn(SOURCE, worker=None, args=[THREADS])
    if kind.startswith("gunicorn"):
        worker = kind.partition(" -k ")[2] or "flask_sockets2.worker"
        return servers.gunicorn(SOURCE, worker=worker, args=["--graceful-timeout", GRACE])
    return script(servers, SERVE[kind])


def script(servers: Servers, end: str) -> Server:
    """Run the application with an end that serves it on ``PORT``."""
    port = unused_port()
    return servers.script((PATCHED + SOURCE + end).replace("PORT", str(port)), port=port)


@pytest.fixture(scope="module")
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server that lasts as long as the tests of its kind."""
    with servers_in(tmp_path_factory.mktemp("listeners")) as servers:
        yield start(servers, request.param)


@pytest.fixture
def site(running: Server) -> Listeners:
    return Listeners(running, f"channel{next(_names)}")


# -- after the handler has returned --------------------------------------------------------


@on(*DETACHED)
def test_a_listener_outlives_its_request_of_which_nothing_is_left(site: Listeners) -> None:
    """Not even until the garbage collector comes: it is switched off there."""
    with site.connect() as client:
        site.wait_until_torn_down()
        wait_until(lambda: site.state()["held"] == [], "the request to be gone")
        assert f"/listen/{site.name}" in site.state()["opened"]
        site.publish("hello")
        assert client.message() == b"hello"


@on(*ATTACHED)
def test_elsewhere_the_servers_request_lasts_as_long_as_the_listener(site: Listeners) -> None:
    with site.connect() as client:
        site.wait_until_torn_down()
        site.publish("hello")
        assert client.message() == b"hello"
        assert "environ" in site.state()["held"]
        client.send(close_frame())
        assert client.closing() == (1000, "")
    assert site.ended() == [1000, ""]
    wait_until(lambda: "environ" not in site.state()["held"], "the request to be gone")


@on(*DETACHED, *ATTACHED)
def test_the_client_of_a_listener_closes_it(site: Listeners) -> None:
    before = site.state()["routes"].get("/listen/<name>", {"opened": 0, "closed": 0})
    with site.connect() as client:
        site.wait_until_torn_down()
        site.wait_for_subscribers()
        client.send(close_frame(4000, b"enough"))
        assert client.frame() == Frame(True, 0, CLOSE, b"\x0f\xa0enough")
        assert client.rest() == b""
    assert site.ended() == [4000, "enough"]
    after = site.state()["routes"]["/listen/<name>"]
    assert (after["opened"], after["closed"]) == (before["opened"] + 1, before["closed"] + 1)


@on(*DETACHED, *ATTACHED)
def test_the_client_of_a_listener_vanishes(site: Listeners) -> None:
    with site.connect() as client:
        site.wait_until_torn_down()
        client.reset()
        assert site.ended() == [1006, ""]


@on(*DETACHED, *ATTACHED)
def test_what_a_client_sends_to_a_listener_is_thrown_away_and_its_pings_are_answered(
    site: Listeners,
) -> None:
    before = site.state()["routes"].get("/listen/<name>", {"messages_in": 0})["messages_in"]
    with site.connect() as client:
        site.wait_until_torn_down()
        for number in range(5):  # together more than SOCKETS_RECEIVE_BUFFER
            client.send(frame(TEXT, b"x" * 2**19) + frame(PING, b"%d" % number))
            assert client.frame() == Frame(True, 0, PONG, b"%d" % number)
        client.send(frame(TEXT, b"in ", fin=False) + frame(PING) + frame(0x0, b"pieces"))
        assert client.frame() == Frame(True, 0, PONG, b"")
        site.publish("hello")
        assert client.message() == b"hello"
        assert site.state()["routes"]["/listen/<name>"]["messages_in"] == before + 6


@on(*DETACHED, "run")
@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(TEXT, b"bare", masked=False), 1002),
        (frame(TEXT, b"\xff"), 1007),
        (frame(BINARY, size=2**21), 1009),
    ],
    ids=["unmasked", "no UTF-8", "too big"],
)
def test_a_client_that_breaks_a_rule_ends_a_listener(
    data: bytes, code: int, site: Listeners
) -> None:
    with site.connect() as client:
        site.wait_until_torn_down()
        client.send(data)
        assert client.frame().payload[:2] == code.to_bytes(2, "big")
        assert site.ended()[0] == code


@on(*DETACHED, *ATTACHED)
def test_what_its_handler_has_not_read_holds_up_no_listener(site: Listeners) -> None:
    """The handler takes one message; the others fill the receive buffer before it returns."""
    with site.connect("/first") as client:
        client.send(b"".join(frame(TEXT, b"%d" % i + b"x" * 1000) for i in range(20)))
        assert client.message().startswith(b"0")
        client.send(frame(TEXT, b"late") + frame(PING, b"ping"))
        site.wait_for_subscribers()
        site.publish("hello")
        came = [client.frame() for _ in range(2)]
        assert sorted(f.payload for f in came) == [b"hello", b"ping"]
        client.send(close_frame())
        assert client.closing() == (1000, "")
    assert site.ended("/first") == [1000, ""]


@on(*DETACHED, "stock", "run")
def test_who_receives_beside_a_handler_that_returns_is_told_that_it_is_over(
    site: Listeners,
) -> None:
    with site.connect("/shared") as client:
        wait_until(lambda: site.name in site.state()["noted"], "the other one to be told")
        assert "its handler has returned" in site.state()["noted"][site.name]
        client.send(frame(TEXT, b"nobody takes it"))
        site.publish("hello")
        assert client.message() == b"hello"


@on(*DETACHED, *ATTACHED)
def test_a_handler_that_has_received_since_it_subscribed_ends_its_connection(
    site: Listeners,
) -> None:
    with site.connect("/talks") as client:
        client.send(frame(TEXT, b"hello"))
        assert client.message() == b"hello"
        assert client.closing() == (1000, "")


@on(*DETACHED, *ATTACHED)
def test_a_listener_is_pinged_and_one_that_is_dead_is_closed(site: Listeners) -> None:
    with site.connect("/alive") as client:
        for _ in range(3):
            ping = client.frame()
            assert ping.opcode == PING
            client.send(frame(PONG, ping.payload))
        client.vanish()
        assert site.ended("/alive") == [1011, "keepalive ping timeout"]


@on(*DETACHED, "run")
def test_the_application_may_go_on_with_a_listener_that_it_has_kept(site: Listeners) -> None:
    with site.connect("/kept") as client:
        site.wait_for_subscribers()
        site.call("send", "for you alone")
        assert client.message() == b"for you alone"
        site.call("subscribe", f"{site.name}:more")
        assert site.call("unsubscribe", site.name) is True
        assert site.call("unsubscribe", site.name) is False
        site.publish("to nobody")
        http(site.server.url(f"/publish/{site.name}:more"), data=b"more")
        assert client.message() == b"more"
        # Without any channel it stays what it is; whoever took the last one may give it another.
        assert site.call("unsubscribe", f"{site.name}:more") is True
        site.call("subscribe", site.name)
        site.publish("again")
        assert client.message() == b"again"
        site.call("close", 4003, "no longer allowed")
        assert client.frame().payload == b"\x0f\xa3no longer allowed"
        client.send(close_frame(4003))
        assert client.rest() == b""
    assert site.ended("/kept") == [4003, ""]


# -- handlers that do not leave a listener -------------------------------------------------


@on(*DETACHED, "stock", "run")
@pytest.mark.parametrize(
    ("path", "payload"),
    [
        ("/fails", b"\x03\xf3"),
        ("/forbids", b"\x03\xf0403 Forbidden"),
        ("/closes", b"\x0f\xa1that was all"),
        ("/leaves", b"\x03\xe8"),
    ],
    ids=["raises", "aborts", "closes", "unsubscribes"],
)
def test_a_handler_that_ends_otherwise_closes_though_it_has_subscribed(
    path: str, payload: bytes, site: Listeners
) -> None:
    with site.connect(path) as client:
        assert client.frame() == Frame(True, 0, CLOSE, payload)
        client.send(frame(CLOSE, payload[:2]))
        assert client.rest() == b""
    assert site.ended(path)[0] == int.from_bytes(payload[:2], "big")


# -- TLS -----------------------------------------------------------------------------------


def secure(servers: Servers, kind: str, certificate: Certificate) -> Server:
    certfile, keyfile = str(certificate.certfile), str(certificate.keyfile)
    if kind == "gunicorn":
        args = ["--certfile", certfile, "--keyfile", keyfile]
        return servers.gunicorn(SOURCE, args=args, secure=True)
    files = f"app, certfile={certfile!r}, keyfile={keyfile!r}"
    end = SERVE[kind].replace("app)", f"{files})").replace("app, handler", f"{files}, handler")
    server = script(servers, end)
    server.secure = True
    return server


def processes_of(server: Server) -> list[psutil.Process]:
    main = psutil.Process(server.process.pid)
    return [main, *main.children(recursive=True)]


def open_files(server: Server) -> int:
    """How many descriptors the server's processes have: also of sockets that are shut down."""
    return sum(process.num_fds() for process in processes_of(server))


def is_connected(server: Server) -> bool:
    """Whether anybody has a connection to the server."""
    return any(
        connection.status != psutil.CONN_LISTEN
        for process in processes_of(server)
        for connection in process.net_connections("tcp")
    )


@pytest.mark.parametrize(
    ("kind", "left"),
    [
        ("gunicorn", []),
        ("our server", []),
        # Its server closes what it has put TLS on when the request is over.
        ("our handler", ["environ", "greenlet", "handler"]),
    ],
)
def test_a_listener_over_tls(
    kind: str, left: list[str], server_factory: Servers, certificate: Certificate
) -> None:
    server = secure(server_factory, kind, certificate)
    context = certificate.client_context()

    def ask(path: str, data: bytes | None = None) -> str:
        status, body, _ = http(server.url(path), data=data, context=context)
        assert status == 200
        return body

    def state() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(ask("/state/news"))
        return found

    def listener() -> WireClient:
        client = WireClient(server.port)
        client.sock = context.wrap_socket(client.sock, server_hostname="127.0.0.1")
        client.send(request("/listen/news"))
        assert client.response().status == 101
        return client

    state()  # what the first request opens is not the listeners'
    wait_until(lambda: not is_connected(server), "its connection to be closed")
    before = open_files(server)
    with listener() as client, listener() as other:
        wait_until(lambda: state()["held"] == left, "the request to be gone")
        ask("/publish/news", b"x" * 300_000)
        for each in (client, other):
            assert each.message() == b"x" * 300_000
            each.send(frame(TEXT, b"y" * 300_000) + frame(PING, b"ping"))
            assert each.frame() == Frame(True, 0, PONG, b"ping")
        client.send(close_frame(4000))
        assert client.closing()[0] == 4000
        wait_until(lambda: state()["noted"].get("/listen/news") == [4000, ""], "its end")
        ask("/publish/news", b"hello")
        assert other.message() == b"hello"
        other.reset()
    wait_until(lambda: state()["opened"] == [], "the other one's end")
    wait_until(lambda: open_files(server) == before, "their sockets to be closed")
    wait_until(lambda: ask("/over-tls") == "1", "nothing but the request that asks")
    # pywsgi's own server has one for who looked whether it accepts, and spoke no TLS.
    assert server.output.count("Traceback") == (kind == "our handler")


# -- how many there may be -----------------------------------------------------------------


def asking(server: Server, path: str = "/listen/news") -> WireClient:
    """One who has asked for a WebSocket, for a ``with`` statement."""
    client = WireClient(server.port)
    client.send(request(path))
    return client


def is_answered(client: WireClient, timeout: float = 0.3) -> bool:
    try:
        return client.response(timeout).status == 101
    except TimeoutError:
        return False


def with_places(servers: Servers, kind: str, places: int) -> Server:
    """A server with so many places for requests and connections together."""
    if kind == "gunicorn":
        return servers.gunicorn(SOURCE, args=["--worker-connections", str(places)])
    return script(servers, SERVE[kind].replace("app)", f"app, spawn={places})"))


@pytest.mark.parametrize("kind", ["gunicorn", "our server"])
def test_a_listener_takes_a_place_until_it_has_gone(kind: str, server_factory: Servers) -> None:
    server = with_places(server_factory, kind, 2)
    with asking(server) as first, asking(server) as second, asking(server) as third:
        assert is_answered(first, TIMEOUT)
        assert is_answered(second, TIMEOUT)
        assert not is_answered(third)
        first.send(close_frame())
        assert is_answered(third, TIMEOUT)
        with asking(server) as fourth, asking(server) as fifth:
            assert not is_answered(fourth)
            second.reset()
            assert is_answered(fourth, TIMEOUT)
            assert not is_answered(fifth)


@pytest.mark.parametrize("kind", ["gunicorn", "our server"])
def test_who_leaves_no_listener_takes_no_place(kind: str, server_factory: Servers) -> None:
    server = with_places(server_factory, kind, 2)
    for path in ("/fails/news", "/forbids/news", "/closes/news", "/leaves/news") * 2:
        with asking(server, path) as client:
            assert is_answered(client, TIMEOUT)
            assert client.frame().opcode == CLOSE
            client.send(close_frame())
            assert client.rest() == b""
    with asking(server) as first, asking(server) as second, asking(server) as third:
        assert is_answered(first, TIMEOUT)
        assert is_answered(second, TIMEOUT)
        assert not is_answered(third)


LOGS = """
from threading import Event
from flask_sockets2 import WebSocketServer

gate = Event()


class Log:
    def write(self, line):
        if "/listen/" in line:
            gate.wait()


@app.post("/open")
def open_gate():
    gate.set()
    return ""


WebSocketServer(("127.0.0.1", PORT), app, spawn=2, log=Log()).serve_forever()
"""


def test_a_listener_that_goes_before_its_greenlet_gives_back_one_place(
    server_factory: Servers,
) -> None:
    """The greenlet has the place for as long as it waits, here for the access log."""
    server = script(server_factory, LOGS)
    site = Listeners(server)
    with asking(server) as client:
        assert is_answered(client, TIMEOUT)
        client.send(close_frame())
        assert client.closing() == (1000, "")
    assert site.ended() == [1000, ""]
    assert "greenlet" in site.state()["held"]
    assert http(server.url("/open"), data=b"")[0] == 200
    wait_until(lambda: site.state()["held"] == [], "the greenlet to be gone")
    with asking(server) as first, asking(server) as second:
        assert is_answered(first, TIMEOUT)
        assert is_answered(second, TIMEOUT)
        with asking(server) as third:
            assert not is_answered(third)


def test_listeners_count_for_the_most_that_an_application_takes(
    server_factory: Servers,
) -> None:
    server = server_factory.gunicorn(SOURCE, environ={"FLASK_SOCKETS_MAX_CONNECTIONS": "2"})
    with asking(server) as first, asking(server) as second, asking(server) as third:
        assert is_answered(first, TIMEOUT)
        assert is_answered(second, TIMEOUT)
        response = third.response()
        assert (response.status, response.headers["retry-after"]) == (503, "5")
        first.send(close_frame())
        first.closing()
        with asking(server) as fourth:
            assert is_answered(fourth, TIMEOUT)


@on(*DETACHED)
def test_listeners_that_have_gone_leave_no_open_file(site: Listeners) -> None:
    process = psutil.Process(site.server.process.pid)
    process = next(iter(process.children()), process)
    with site.connect():  # what only the first one opens
        site.wait_for_subscribers()
    wait_until(lambda: site.state()["subscribers"] == 0, "its end")
    before = process.num_fds()
    with ExitStack() as stack:
        clients = [stack.enter_context(site.connect()) for _ in range(30)]
        site.wait_for_subscribers(30)
        for number, client in enumerate(clients):
            if number % 2:
                client.send(close_frame())
            else:
                client.reset()
        wait_until(lambda: site.state()["subscribers"] == 0, "the end of all")
        wait_until(lambda: process.num_fds() <= before, "their files to be closed")


# -- stopping ------------------------------------------------------------------------------


def going_away(clients: list[WireClient]) -> None:
    """See each client told that the server goes away, and answer."""
    for client in clients:
        assert client.frame() == Frame(True, 0, CLOSE, b"\x03\xe9server shutdown")
        client.send(close_frame(1001))
    for client in clients:
        assert client.rest() == b""


@pytest.mark.parametrize("kind", ["gunicorn", "our server"])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_stops_closes_its_listeners_with_1001(
    signum: int, kind: str, server_factory: Servers
) -> None:
    server = start(server_factory, kind)
    site = Listeners(server)
    with site.connect() as one, site.connect() as other:
        site.wait_for_subscribers(2)
        site.publish("the last")
        assert [one.message(), other.message()] == [b"the last"] * 2
        server.process.send_signal(signum)
        going_away([one, other])
        assert server.process.wait(TIMEOUT) == 0
    assert "Traceback" not in server.output


def test_a_listener_that_does_not_answer_the_close_is_not_waited_for_long(
    server_factory: Servers,
) -> None:
    server = server_factory.gunicorn(SOURCE, args=["--graceful-timeout", GRACE])
    site = Listeners(server)
    with site.connect() as client:
        site.wait_for_subscribers()
        site.publish("x" * 2**19)  # not read: its close frame comes after it all the same
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(TIMEOUT) == 0
        assert "ended /listen/news with 1001" in server.output  # until SOCKETS_CLOSE_TIMEOUT
        assert client.message() == b"x" * 2**19
        assert client.closing() == (1001, "server shutdown")
    assert "Traceback" not in server.output


def workers(server: Server) -> set[int]:
    return {child.pid for child in psutil.Process(server.process.pid).children()}


@pytest.mark.parametrize("how", ["reload", "max-requests"])
def test_a_worker_that_is_replaced_closes_its_listeners_with_1001(
    how: str, server_factory: Servers
) -> None:
    args = ["--max-requests", "6"] if how == "max-requests" else []
    server = server_factory.gunicorn(SOURCE, args=["--graceful-timeout", "20", *args])
    (old,) = workers(server)
    site = Listeners(server)
    with site.connect() as one, site.connect() as other:
        site.publish("hello")
        assert [one.message(), other.message()] == [b"hello"] * 2
        if how == "reload":
            server.process.send_signal(signal.SIGHUP)
        else:
            for _ in range(3):
                site.publish("hello")
            assert [one.message(), other.message()] == [b"hello"] * 2
            assert [one.message(), other.message()] == [b"hello"] * 2
            assert [one.message(), other.message()] == [b"hello"] * 2
        going_away([one, other])
    wait_until(lambda: old not in workers(server) and workers(server), "a new worker")
    with site.connect() as client:
        site.wait_for_subscribers()
        site.publish("of the new one")
        assert client.message() == b"of the new one"
    assert "Traceback" not in server.output


@pytest.mark.parametrize("kind", ["gunicorn --threads", "run"])
def test_threads_that_hold_listeners_do_not_keep_a_server_from_stopping(
    kind: str, server_factory: Servers
) -> None:
    if kind == "run":
        server = start(server_factory, kind)
    else:
        args = [THREADS, "--graceful-timeout", "1"]
        server = server_factory.gunicorn(SOURCE, worker=None, args=args)
    site = Listeners(server)
    with site.connect() as client:
        site.wait_for_subscribers()
        server.process.send_signal(signal.SIGINT)
        server.process.wait(TIMEOUT)
        # 1001, unless gunicorn's master is faster: it kills when that time is over.
        assert client.rest() in (b"", b"\x88\x11\x03\xe9server shutdown")


# -- the access log, and a server of another package ---------------------------------------


def test_the_access_log_has_one_line_for_a_listener_from_when_its_request_is_over(
    server_factory: Servers,
) -> None:
    server = server_factory.gunicorn(SOURCE, args=["--access-logfile", "-"])
    site = Listeners(server)
    with site.connect() as client:
        server.wait_for_output(r'"GET /listen/news HTTP/1\.1" 101 ')
        client.send(close_frame())
        assert client.closing() == (1000, "")
    site.ended()
    assert server.output.count("GET /listen/news") == 1


def test_gevent_websockets_own_object_has_no_channels_which_is_an_error_of_the_handler(
    server_factory: Servers,
) -> None:
    server = script(server_factory, SERVE["gevent-websocket"])
    with connect(server.port, "/listen/news") as client:
        client.rest()
    server.wait_for_output("AttributeError: 'WebSocket' object has no attribute 'subscribe'")
    Listeners(server).publish("pages may")
