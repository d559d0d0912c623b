"""pywsgi: with our handler, ready made, with its own, with gevent-websocket's."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator

import pytest

from tests.clients import echoed, http, websocket
from tests.processes import Certificate, Server, servers_in, unused_port
from tests.wire_client import CLOSE, TEXT, TIMEOUT, WireClient, close_frame, connect, frame, request

StartServer = Callable[..., Server]

FLASK = """
from flask import Flask, abort, request
from flask_sockets2 import Sockets

app = Flask(__name__)
sockets = Sockets(app)


@sockets.route("/echo")
def echo(ws):
    while not ws.closed:
        message = ws.receive()
        ws.send(message)


@sockets.route("/kind")
def kind(ws):
    kind = type(getattr(ws, "_lifecycle", ws)).__module__
    ws.send(f"{kind} {ws.path} {bool(ws.handler)}")


@sockets.route("/refuses", accept=False)
def refuses(ws):
    abort(401, "who are you?")


@app.before_request
def be_busy():
    # Many callbacks for the hub before the handler accepts, as at a broadcast to many.
    if "busy" in request.args:
        import gevent

        for _ in range(100):
            gevent.spawn(work)


def work():
    import time

    until = time.perf_counter() + 0.002
    while time.perf_counter() < until:
        pass


@app.route("/", methods=["GET", "POST"])
def page():
    return f"page {request.get_data().decode()}".strip()
"""

SERVE = {
    "our handler": """
from gevent import pywsgi
from flask_sockets2 import WebSocketHandler
pywsgi.WSGIServer(("127.0.0.1", PORT), app, handler_class=WebSocketHandler).serve_forever()
""",
    "our server": """
from flask_sockets2 import WebSocketServer
WebSocketServer(("127.0.0.1", PORT), app).serve_forever()
""",
    "stock": """
from gevent import pywsgi
pywsgi.WSGIServer(("127.0.0.1", PORT), app).serve_forever()
""",
    "gevent-websocket": """
from gevent import pywsgi
from geventwebsocket.handler import WebSocketHandler
pywsgi.WSGIServer(("127.0.0.1", PORT), app, handler_class=WebSocketHandler).serve_forever()
""",
}

PATCHED = "from gevent import monkey; monkey.patch_all()\n"

BARE = """
from flask_sockets2 import WebSocketServer


def app(environ, start_response):
    ws = environ.get("wsgi.websocket")
    if ws is None:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"page"]
    if environ["PATH_INFO"] == "/no":
        start_response("403 Forbidden", [("Content-Type", "text/plain")])
        return [b"not you"]
    if environ["PATH_INFO"] == "/fails":
        ws.accept()
        raise RuntimeError("told by the application")
    assert environ["wsgi.websocket_version"] == "13"
    for message in ws:
        ws.send(message)
    if environ["PATH_INFO"] != "/none":
        return []


WebSocketServer(("127.0.0.1", PORT), app).serve_forever()
"""


@pytest.fixture
def run(pywsgi_server: StartServer, unused_port: int) -> Callable[[str], Server]:
    """Run a program that serves on ``PORT``."""

    def start(source: str) -> Server:
        return pywsgi_server(source.replace("PORT", str(unused_port)), port=unused_port)

    return start


Run = Callable[[str], Server]


def test_a_body_does_not_wait_until_its_head_is_acknowledged(run: Run) -> None:
    """pywsgi writes them apart, and clients acknowledge a small head 40 ms later."""
    source = """
from socket import IPPROTO_TCP, TCP_NODELAY
from flask_sockets2.servers.gevent import WebSocketHandler, WebSocketServer


class Handler(WebSocketHandler):
    def get_environ(self):
        nodelay = self.socket.getsockopt(IPPROTO_TCP, TCP_NODELAY)
        return {**super().get_environ(), "nodelay": bool(nodelay)}


def app(environ, start_response):
    start_response("200 OK", [])
    return [str(environ["nodelay"]).encode()]


WebSocketServer(("127.0.0.1", PORT), app, handler_class=Handler).serve_forever()
"""
    assert http(run(source).url("/"))[:2] == (200, "True")


@pytest.mark.quick
@pytest.mark.parametrize("first", ["", PATCHED], ids=["plain", "patched"])
@pytest.mark.parametrize("kind", SERVE)
def test_an_application_is_served(kind: str, first: str, run: Run) -> None:
    """pain 27, pain 61: patched or not."""
    server = run(first + FLASK + SERVE[kind])
    for message in ("hello", b"\x00\xff", "x" * 200_000):
        assert echoed(server.ws_url("/echo"), message) == message
    with websocket(server.ws_url("/echo")) as client:
        client.send("hello")
        assert client.recv(timeout=TIMEOUT) == "hello"
        client.close(1001, "bye")
        if kind != "gevent-websocket":  # its answer is no close frame that a client understands
            assert client.close_code == 1001
    assert http(server.url("/"))[:2] == (200, "page")
    assert http(server.url("/echo"))[0] == 426
    assert "Error" not in server.output.replace("WebSocketError", "")


@pytest.mark.parametrize(
    ("kind", "module"),
    [
        ("our handler", "flask_sockets2.servers.gevent /kind True"),
        ("our server", "flask_sockets2.servers.gevent /kind True"),
        ("stock", "flask_sockets2.connection.lifecycle /kind False"),
        ("gevent-websocket", "geventwebsocket.websocket /kind True"),
    ],
)
def test_a_handler_gets_the_connection_of_its_server(kind: str, module: str, run: Run) -> None:
    server = run(FLASK + SERVE[kind])
    with websocket(server.ws_url("/kind")) as client:
        assert client.recv(timeout=TIMEOUT) == module


@pytest.mark.parametrize("kind", ["our server", "stock"])
def test_a_refusal_is_an_ordinary_response(kind: str, run: Run) -> None:
    """pain 9, pain 12"""
    server = run(FLASK + SERVE[kind])
    for path, status, text in [("/refuses", 401, "who are you?"), ("/no", 404, "Not Found")]:
        with WireClient(server.port) as client:
            client.send(request(path))
            response = client.response()
            assert response.status == status
            assert text in response.body
            assert response.headers["connection"] == "close"


@pytest.mark.parametrize("kind", ["our server", "stock"])
def test_a_frame_sent_together_with_the_handshake_is_not_lost(kind: str, run: Run) -> None:
    server = run(FLASK + SERVE[kind])
    with WireClient(server.port) as client:
        client.send(request("/echo") + frame(0x1, b"early"))
        assert client.response().status == 101
        assert client.message() == b"early"
        client.send(close_frame())
        assert client.closing() == (1000, "")
    assert http(server.url("/"))[0] == 200


@pytest.mark.parametrize("kind", ["our server", "stock"])
def test_a_frame_sent_together_with_the_handshake_comes_first_though_the_hub_is_busy(
    kind: str, run: Run
) -> None:
    server = run(FLASK + SERVE[kind])
    with WireClient(server.port) as client:
        client.send(request("/echo?busy") + frame(TEXT, b"early"))
        assert client.response().status == 101
        client.send(frame(TEXT, b"late") + frame(TEXT, b"later"))
        assert [client.message() for _ in range(3)] == [b"early", b"late", b"later"]


BODIES = {
    "Transfer-Encoding twice": (
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        b"0\r\n\r\n",
    ),
    "Transfer-Encoding twice, the last unknown": (
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        b"0\r\n\r\n",
    ),
    "both": ("Transfer-Encoding: chunked\r\nContent-Length: 5", b"0\r\n\r\n"),
    "both, the other way round": (
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        b"0\r\n\r\n",
    ),
    "an unknown Transfer-Encoding": ("Transfer-Encoding: gzip, chunked", b"0\r\n\r\n"),
    "Content-Length twice": ("Content-Length: 5\r\nContent-Length: 5", b"hello"),
    "a list of lengths": ("Content-Length: 5, 5", b"hello"),
    "a sign": ("Content-Length: +5", b"hello"),
    "a negative length": ("Content-Length: -5", b"hello"),
    "an underscore": ("Content-Length: 0_5", b"hello"),
    "a digit that is none of ASCII": ("Content-Length: \xb2", b"hello"),
    "no length": ("Content-Length: ", b"hello"),
}


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Our server, for tests that leave it as it is."""
    with servers_in(tmp_path_factory.mktemp("ours")) as servers:
        port = unused_port()
        source = (FLASK + SERVE["our server"]).replace("PORT", str(port))
        yield servers.script(source, port=port)


def test_a_head_that_is_refused_is_logged_with_the_time_that_it_took(ours: Server) -> None:
    with WireClient(ours.port) as client:
        client.send(b"GARBAGE\r\n\r\n")
        assert client.response().status == 400
    ours.wait_for_output(r'"GARBAGE" 400 \S+ \d+\.\d+$')


@pytest.mark.parametrize("case", BODIES)
def test_a_body_whose_end_is_in_doubt_is_refused_and_what_follows_is_not_served(
    case: str, ours: Server
) -> None:
    """RFC 9112 §6.1, §6.3: else a proxy and we could see different requests."""
    fields, body = BODIES[case]
    head = f"POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n".encode("latin-1")
    with WireClient(ours.port) as client:
        client.send(head + body + b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        came = client.rest()
    assert came.startswith(b"HTTP/1.1 400 ")
    assert came.count(b"HTTP/1.1 ") == 1
    assert b"page" not in came


@pytest.mark.parametrize(
    ("field", "body"),
    [
        ("Content-Length: 5", b"hello"),
        ("Content-Length: 5\r\nConnection: upgrade", b"hello"),
        ("Content-Length: 5\r\nConnection: upgrade\r\nUpgrade: h2c", b"hello"),
        ("Transfer-Encoding: chunked", b"5\r\nhello\r\n0\r\n\r\n"),
        ("Transfer-Encoding: Chunked\r\nConnection: Upgrade", b"5\r\nhello\r\n0\r\n\r\n"),
    ],
)
def test_a_body_ends_where_it_says_and_the_next_request_is_served(
    field: str, body: bytes, ours: Server
) -> None:
    """With ``Connection: upgrade`` pywsgi itself would hand out the bare stream."""
    head = f"POST / HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n".encode()
    with WireClient(ours.port) as client:
        client.send(head + body)
        came = b""
        while not came.endswith(b"page hello"):
            came += client._take(1, time.monotonic() + TIMEOUT)
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert client.rest().endswith(b"\r\n\r\npage")


@pytest.mark.parametrize("kind", ["our handler", "stock"])
def test_a_refusal_says_once_that_it_closes(kind: str, run: Run) -> None:
    server = run(FLASK + SERVE[kind])
    for path in ("/refuses", "/no", "/"):
        with WireClient(server.port) as client:
            client.send(request(path))
            head = client.rest().partition(b"\r\n\r\n")[0].lower()
        assert b"\r\nconnection: close" in head
        assert head.count(b"\r\nconnection:") == 1


def test_without_the_patches_of_gevent_it_is_said_once(run: Run) -> None:
    """pain 61"""
    server = run(FLASK + SERVE["our server"])
    for number in range(3):
        assert echoed(server.ws_url("/echo"), str(number)) == str(number)
    server.wait_for_output("gevent has not patched the standard library")
    assert server.output.count("has not patched") == 1
    assert "from gevent import monkey; monkey.patch_all()" in server.output


def test_with_the_patches_of_gevent_nothing_is_said(run: Run) -> None:
    server = run(PATCHED + FLASK + SERVE["our server"])
    assert echoed(server.ws_url("/echo"), "hello") == "hello"
    assert "patched" not in server.output


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_stop_closes_with_1001_and_is_no_error(signum: int, run: Run) -> None:
    """pain 60"""
    server = run(FLASK + SERVE["our server"])
    with connect(server.port) as first, connect(server.port) as second:
        server.process.send_signal(signum)
        for client in (first, second):
            assert client.frame().payload == b"\x03\xe9server shutdown"
            client.send(close_frame(1001))
        assert server.process.wait(TIMEOUT) == 0
    assert "Traceback" not in server.output
    assert "KeyboardInterrupt" not in server.output


@pytest.mark.parametrize("kind", ["our server", "stock"])
def test_ctrl_c_ends_it_with_open_connections(kind: str, run: Run) -> None:
    """pain 60"""
    server = run(FLASK + SERVE[kind])
    with connect(server.port) as client:
        server.terminate(signal.SIGINT)
        client.rest()


def test_a_bare_wsgi_application_has_its_websocket_in_the_environ(run: Run) -> None:
    server = run(BARE)
    assert http(server.url("/"))[:2] == (200, "page")
    assert echoed(server.ws_url("/"), "hello") == "hello"
    with WireClient(server.port) as client:
        client.send(request("/no"))
        response = client.response()
        assert (response.status, response.body) == (403, "not you")
    with connect(server.port, "/fails") as client:
        assert client.frame().payload == b"\x03\xf3"  # 1011
    server.wait_for_output("RuntimeError: told by the application")
    assert echoed(server.ws_url("/"), "hello") == "hello"


def test_a_bare_wsgi_application_may_return_nothing(run: Run) -> None:
    """As the examples of gevent-websocket do."""
    server = run(BARE)
    with connect(server.port, "/none") as client:
        client.send(frame(TEXT, b"hello") + close_frame())
        assert client.message() == b"hello"
        assert client.frame().payload == b"\x03\xe8"  # 1000
    server.wait_for_output(r'"GET /none HTTP/1\.1" 101 ')
    assert "Traceback" not in server.output


def test_a_server_of_ours_speaks_tls(run: Run, certificate: Certificate) -> None:
    """pain 68"""
    files = f"certfile={str(certificate.certfile)!r}, keyfile={str(certificate.keyfile)!r}"
    server = run(BARE.replace("app).serve", f"app, {files}).serve"))
    server.secure = True
    context = certificate.client_context()
    message = bytes(300_000)
    assert echoed(server.ws_url("/"), message, ssl=context) == message


def test_pages_and_websockets_follow_each_other_on_one_connection(run: Run) -> None:
    server = run(FLASK + SERVE["our server"])
    page = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    with WireClient(server.port) as client:
        client.send(page + page + request("/echo") + frame(0x1, b"hello") + close_frame())
        came = client.rest()
    assert came.count(b"\r\n\r\npage") == 2
    assert came.count(b"HTTP/1.1 101 ") == 1
    assert came.endswith(b"\x81\x05hello\x88\x02\x03\xe8")


def test_the_peer_closes_first_and_the_access_log_says_101(run: Run) -> None:
    server = run(FLASK + SERVE["our server"])
    with connect(server.port) as client:
        client.send(close_frame())
        assert client.frame().opcode == CLOSE
    server.wait_for_output(r'"GET /echo HTTP/1\.1" 101 ')
