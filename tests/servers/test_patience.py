"""Clients that keep the server waiting, for a body or until they take a response; and wrapped
applications, whose settings count all the same."""

from __future__ import annotations

import gc
import http.client
import itertools
import json
import re
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import psutil
import pytest
from flask import Flask

from flask_sockets2 import Sockets
from flask_sockets2.servers import patience as patience_module
from flask_sockets2.servers.patience import Patience, http_settings, register
from tests.clients import http as ask
from tests.processes import Certificate, Server, ServerFailed, servers_in, wait_until
from tests.wire_client import TIMEOUT, WireClient, connect

pytestmark = pytest.mark.slow

StartServer = Callable[..., Server]

# -- counting ------------------------------------------------------------------------------


def test_a_client_may_pause_for_so_long_and_no_longer() -> None:
    patience = Patience(10, rate=100)
    patience.waited(9, 0)
    assert patience.left() == 1
    patience.waited(1, 0)
    assert patience.left() == 0


def test_bytes_restore_patience_by_the_rate_and_never_to_more_than_at_first() -> None:
    patience = Patience(10, rate=100)
    patience.waited(8, 500)
    assert patience.left() == 7
    patience.waited(1, 1_000_000)
    assert patience.left() == 10, "nobody saves up for a long pause"


def test_a_client_that_keeps_to_the_rate_is_waited_for_until_the_total_is_over() -> None:
    patience = Patience(10, rate=100, total=1000)
    for _ in range(199):
        patience.waited(5, 500)
        assert patience.left() > 0
    patience.waited(5, 500)
    assert patience.left() == 0


def test_a_byte_now_and_then_does_not_restore_it() -> None:
    patience = Patience(10, rate=100)
    for _ in range(6):
        patience.waited(2, 1)
    assert patience.left() == 0


def test_without_a_rate_each_byte_restores_it() -> None:
    patience = Patience(10)
    patience.waited(9, 1)
    assert patience.left() == 10
    patience.end_within(0)
    assert patience.left() == 0


# -- settings ------------------------------------------------------------------------------


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """No application of another test has a say."""
    monkeypatch.setattr(patience_module, "_configs", [])


def application(**config: object) -> Flask:
    app = Flask("settings")
    app.config.update(config)
    Sockets(app)
    return app


@pytest.mark.usefixtures("nobody")
def test_of_several_applications_the_most_patient_setting_counts() -> None:
    apps = [
        application(SOCKETS_HANDSHAKE_TIMEOUT=2, SOCKETS_HTTP_MIN_RATE=100),
        application(SOCKETS_HANDSHAKE_TIMEOUT=4, SOCKETS_HTTP_MIN_RATE=50),
        application(SOCKETS_HTTP_MAX_TIME=None),
        application(SOCKETS_HTTP_MAX_TIME=5),
        application(),
    ]
    assert http_settings() == {"handshake_timeout": 4, "min_rate": 50, "max_time": None}
    apps[0].config["SOCKETS_HANDSHAKE_TIMEOUT"] = 9  # also while they are served
    assert http_settings()["handshake_timeout"] == 9
    del apps
    gc.collect()
    assert http_settings() == {}


@pytest.mark.usefixtures("nobody")
def test_an_application_without_the_package_has_a_say_once() -> None:
    config = {"SOCKETS_HANDSHAKE_TIMEOUT": 3}
    register(config)
    register(config)
    assert len(patience_module._configs) == 1
    assert http_settings() == {"handshake_timeout": 3}


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("SOCKETS_HANDSHAKE_TIMEOUT", 0, "a number of seconds above 0"),
        ("SOCKETS_HTTP_STALL_TIMEOUT", None, "a number of seconds above 0"),
        ("SOCKETS_HTTP_STALL_TIMEOUT", "60", "a number of seconds above 0"),
        ("SOCKETS_HTTP_MIN_RATE", True, "a number of bytes a second above 0 or None"),
        ("SOCKETS_HTTP_MAX_TIME", float("inf"), "a number of seconds above 0 or None"),
        ("SOCKETS_HTTP_MAX_TIME", float("nan"), "a number of seconds above 0 or None"),
    ],
)
def test_a_wrong_setting_is_named_by_init_app(setting: str, value: object, expected: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{setting} must be {expected}, got {value!r}")):
        application(**{setting: value})


WRAPPED = """
import logging

from flask import Flask, Response, request
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix

from flask_sockets2 import Sockets, WebSocketHandler, WebSocketServer

WebSocketHandler.handshake_timeout = 3600.0  # without the setting
logging.basicConfig(level=logging.INFO)


def create_app():
    app = Flask(__name__)
    app.config.update(
        SOCKETS_HANDSHAKE_TIMEOUT=1,
        SOCKETS_HTTP_STALL_TIMEOUT=1.5,
        SOCKETS_HTTP_MIN_RATE=1000,
    )
    sockets = Sockets(app)

    @sockets.route("/echo")
    def echo(ws):
        list(ws)

    @app.post("/form")
    def form():
        return str(len(request.get_data()))

    @app.post("/slowly")
    def slowly():
        import time

        size = 0
        while data := request.stream.read(8192):
            time.sleep(0.5)
            size += len(data)
        return str(size)

    @app.get("/stats")
    def stats():
        return sockets.stats()

    @app.post("/unread")
    def unread():
        return "no"

    @app.get("/page")
    def page():
        return bytes(20_000_000)

    @app.get("/seldom")
    def seldom():
        import time

        def generate():
            for _ in range(3):
                time.sleep(1)
                yield b"tick "

        return Response(generate())

    return app


flask_app = create_app()
proxied = ProxyFix(flask_app)
dispatched = DispatcherMiddleware(Flask("front"), {"/app": flask_app})


def closure(environ, start_response):
    return flask_app(environ, start_response)


def first_then(environ, start_response):
    "Makes its application at the first request."
    global late
    if late is None:
        late = create_app()
    return late(environ, start_response)


late = None
"""


def silence(port: int, sent: bytes) -> None:
    """Wait until the server closes a connection on which nothing more is sent."""
    with WireClient(port) as client:
        client.send(sent)
        client.rest()


@pytest.mark.parametrize("target", ["flask_app", "proxied", "dispatched", "closure"])
def test_the_handshake_timeout_counts_for_a_wrapped_application(
    target: str, gunicorn: StartServer
) -> None:
    server = gunicorn(WRAPPED, target=f"app:{target}")
    silence(server.port, b"GET / HTTP/1.1\r\nHost: a\r\n")


def test_the_handshake_timeout_of_an_application_that_is_made_late_counts_from_then_on(
    gunicorn: StartServer,
) -> None:
    source = WRAPPED.replace("flask_app = create_app()", "flask_app = Flask('empty')")
    server = gunicorn(source, target="app:first_then")
    assert ask(server.url("/seldom"))[0] == 200
    silence(server.port, b"GET / HTTP/1.1\r\nHost: a\r\n")


def test_our_server_has_the_settings_of_its_application_too(
    pywsgi_server: StartServer, unused_port: int
) -> None:
    source = f"{WRAPPED}\nWebSocketServer(('127.0.0.1', {unused_port}), proxied).serve_forever()\n"
    server = pywsgi_server(source, port=unused_port)
    silence(server.port, b"GET / HTTP/1.1\r\nHost: a\r\n")


def test_a_wrong_setting_of_a_wrapped_application_ends_the_worker_at_once(
    gunicorn: StartServer,
) -> None:
    """Though it was set after ``init_app``, which would have named it, too."""
    source = WRAPPED + 'flask_app.config["SOCKETS_HTTP_MIN_RATE"] = -1\n'
    with pytest.raises(ServerFailed, match="SOCKETS_HTTP_MIN_RATE must be a number of bytes"):
        gunicorn(source, target="app:proxied")


# -- bodies --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A worker that waits for 1.5 s, and then wants 1,000 bytes a second."""
    with servers_in(tmp_path_factory.mktemp("patience")) as servers:
        yield servers.gunicorn(WRAPPED, target="app:proxied", args=["--worker-connections", "8"])


def head(path: str, *lines: str, method: str = "POST") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: a", *lines, "", ""]).encode()


def trickle(client: WireClient, pieces: Iterable[bytes], interval: float) -> bytes:
    """Send a piece in each interval until the server answers; return the answer."""
    until = time.monotonic() + 3 * TIMEOUT
    for piece in pieces:
        if time.monotonic() > until:
            break
        client.send(piece)
        client.sock.settimeout(interval)
        try:
            return client.sock.recv(65536)
        except TimeoutError:
            pass  # the interval is over
    raise AssertionError("the server waits for this client as long as it likes")


@pytest.mark.parametrize("framing", ["Content-Length: 100000", "Transfer-Encoding: chunked"])
def test_a_body_that_comes_byte_by_byte_is_408(framing: str, server: Server) -> None:
    piece = b"1\r\nx\r\n" if "chunked" in framing else b"x"
    with WireClient(server.port) as client:
        client.send(head("/form", framing))
        answer = trickle(client, itertools.repeat(piece), 0.3)
    assert answer.startswith(b"HTTP/1.1 408 REQUEST TIMEOUT\r\n")
    assert b"\r\nConnection: close\r\n" in answer
    server.wait_for_output(
        r"INFO:flask_sockets2\.servers:refused the body of a request: it came too slowly, .*"
        r"1\.5 s \(SOCKETS_HTTP_STALL_TIMEOUT\).*1000 bytes a second \(SOCKETS_HTTP_MIN_RATE\)"
    )
    assert "Traceback" not in server.output


def test_a_body_that_nobody_reads_is_waited_for_no_longer(server: Server) -> None:
    """The response is there at once; the connection is kept for the rest of the body."""
    with WireClient(server.port) as client:
        client.send(head("/unread", "Content-Length: 100000"))
        begun = time.monotonic()
        assert client.rest(3 * TIMEOUT).startswith(b"HTTP/1.1 200 OK")
        assert time.monotonic() - begun < 2 * TIMEOUT


def test_forms_that_stall_give_their_places_back(server: Server) -> None:
    """All 8 places of the worker, each with a form that goes on as slowly as it can."""
    clients = [WireClient(server.port) for _ in range(8)]
    for client in clients:
        client.send(head("/form", "Content-Length: 100000") + b"x")
    assert ask(server.url("/seldom"), timeout=3 * TIMEOUT)[0] == 200
    for client in clients:
        client.close()


def stats(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ask(server.url("/stats"))[1])
    return found


def test_a_request_counts_from_its_head_on_and_a_websocket_only_until_it_is_accepted(
    server: Server,
) -> None:
    """Before a byte of its body is read, and before a view knows of it."""
    wait_until(lambda: stats(server)["requests"] == 1, "other requests to end")
    cut = stats(server)["requests_cut"]
    with connect(server.port, "/echo"), WireClient(server.port) as client:
        assert stats(server)["requests"] == 1, "the one that asks"
        client.send(head("/form", "Content-Length: 1000000"))

        def counts() -> bool:
            client.send(bytes(1500))  # what the server wants within the time that this may take
            return bool(stats(server)["requests"] == 2)

        wait_until(counts, "the form to count")
        assert client.rest().startswith(b"HTTP/1.1 408 ")
        wait_until(lambda: stats(server)["requests"] == 1, "the form to count no longer")
        assert stats(server)["requests_cut"] == cut + 1
        assert stats(server)["connections"] == 1


def start_tls(client: WireClient) -> Callable[[bytes], bytes]:
    """Do the handshake of TLS; return what makes the records of some bytes, without sending them.

    TLS 1.2, in which the server says nothing by itself behind the handshake.
    """
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing)
    while True:
        try:
            tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            client.send(outgoing.read())
            incoming.write(client.sock.recv(65536))

    def encrypt(data: bytes) -> bytes:
        tls.write(data)
        return outgoing.read()

    return encrypt


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET / HTTP/1.1\r\nHost: a\r\n", head("/form", "Content-Length: 100000")],
    ids=["nothing", "half a head", "a head"],
)
def test_a_record_of_tls_that_comes_byte_by_byte_is_not_waited_for_without_end(
    sent: bytes, gunicorn: StartServer, certificate: Certificate
) -> None:
    """None of it can be read before its last byte has come, here after an hour."""
    args = ["--certfile", certificate.certfile, "--keyfile", certificate.keyfile]
    server = gunicorn(WRAPPED, args=args, target="app:flask_app", secure=True)
    with WireClient(server.port) as client:
        encrypt = start_tls(client)
        if sent:
            client.send(encrypt(sent))
        record = encrypt(b"X" * 12_000)
        trickle(client, (bytes((byte,)) for byte in record), 0.3)
    assert ask(server.url("/seldom"), context=certificate.client_context())[0] == 200
    assert "Traceback" not in server.output


def test_an_upload_that_is_slow_but_keeps_to_the_rate_arrives(server: Server) -> None:
    """For three times as long as a client may pause."""
    with WireClient(server.port) as client:
        client.send(head("/form", "Content-Length: 60000", "Connection: close"))
        for _ in range(20):
            client.send(bytes(3000))
            time.sleep(0.25)  # its pace
        assert client.rest().endswith(b"60000")


def test_an_application_may_read_a_body_as_slowly_as_it_likes(server: Server) -> None:
    """Longer than a client may pause: here the application does."""
    with WireClient(server.port) as client:
        client.send(head("/slowly", "Content-Length: 57344", "Connection: close") + bytes(57344))
        assert client.rest(2 * TIMEOUT).endswith(b"57344")


def test_an_application_may_make_a_response_as_slowly_as_it_likes(server: Server) -> None:
    assert ask(server.url("/seldom"))[1].endswith("tick tick tick ")


# -- responses -----------------------------------------------------------------------------


def places(server: Server) -> int:
    """Connections of the worker."""
    (worker,) = psutil.Process(server.process.pid).children()
    return sum(c.status == psutil.CONN_ESTABLISHED for c in worker.net_connections())


def test_pages_that_nobody_reads_give_their_places_back(server: Server) -> None:
    clients = [WireClient(server.port, receive_buffer=16384) for _ in range(8)]
    for client in clients:
        client.send(head("/page", method="GET"))
    assert ask(server.url("/seldom"), timeout=3 * TIMEOUT)[0] == 200
    wait_until(lambda: places(server) < 8, "the places to be free")
    server.wait_for_output(r"INFO:flask_sockets2\.servers:cut off a response, the client paused")
    assert "Traceback" not in server.output
    for client in clients:
        client.close()


def test_a_page_that_is_read_slowly_arrives_whole(server: Server) -> None:
    """For longer than a client may pause; what the kernel holds back counts for nothing."""
    with WireClient(server.port, receive_buffer=16384) as client:
        client.send(head("/page", "Connection: close", method="GET"))
        client.read_slowly(at_a_time=16384, interval=0.1, seconds=6)
        assert len(client.rest(3 * TIMEOUT).partition(b"\r\n\r\n")[2]) == 20_000_000


# -- stopping ------------------------------------------------------------------------------


GRACE = str(2 * int(TIMEOUT))  # longer than a test waits for the end of a server


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET / HT",
        b"GET / HTTP/1.1\r\nHost: a\r\n",
        b"GET /seldom HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
    ids=["nothing", "half a line", "half a head", "a request before"],
)
def test_a_connection_without_a_request_does_not_hold_a_worker_that_stops(
    sent: bytes, gunicorn: StartServer
) -> None:
    """The worker notices within a second each that it is to stop, and that all are gone."""
    args = ["--graceful-timeout", GRACE, "--keep-alive", GRACE]
    server = gunicorn(
        WRAPPED.replace("HANDSHAKE_TIMEOUT=1", "HANDSHAKE_TIMEOUT=3600"),
        args=args,
        target="app:flask_app",
    )
    with WireClient(server.port) as client:
        client.send(sent)
        if sent.endswith(b"\r\n\r\n"):
            assert client.sock.recv(65536)
            wait_until(lambda: b"0\r\n\r\n" in client.sock.recv(65536), "the response")
        assert ask(server.url("/seldom"))[0] == 200  # what was sent has arrived
        assert server.terminate() == 0
    assert "graceful timeout" not in server.output
    assert "Traceback" not in server.output


def test_a_tls_handshake_that_has_begun_does_not_hold_a_worker_that_stops(
    gunicorn: StartServer, certificate: Certificate
) -> None:
    args = ["--graceful-timeout", GRACE, "--certfile", certificate.certfile]
    args += ["--keyfile", certificate.keyfile]
    source = WRAPPED.replace("HANDSHAKE_TIMEOUT=1", "HANDSHAKE_TIMEOUT=3600")
    server = gunicorn(source, args=args, target="app:flask_app", secure=True)
    with WireClient(server.port) as client:
        client.send(b"\x16\x03\x01")
        context = certificate.client_context()
        assert ask(server.url("/seldom"), context=context)[0] == 200
        assert server.terminate() == 0


def test_a_request_that_is_answered_when_the_worker_stops_is_answered_whole(
    gunicorn: StartServer,
) -> None:
    server = gunicorn(WRAPPED, target="app:proxied", args=["--graceful-timeout", GRACE])
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT)
    client.request("POST", "/slowly", body=bytes(8 * 8192))
    with WireClient(server.port) as other:  # so that the request is under way
        other.send(head("/unread", "Content-Length: 0", "Connection: close"))
        assert other.rest().startswith(b"HTTP/1.1 200 OK")
    server.process.terminate()
    with client.getresponse() as response:
        assert response.headers["Connection"] == "close"
        assert response.read() == b"65536"
    client.close()
    assert server.process.wait(60) == 0
