"""pywsgi: with our handler, ready made, with its own, with gevent-websocket's."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import pytest

from tests.clients import echoed, http, websocket
from tests.processes import Certificate, Server
from tests.wire_client import CLOSE, TIMEOUT, WireClient, close_frame, connect, frame, request

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
    ws.send(f"{type(ws).__module__} {ws.path} {ws.handler is not None}")


@sockets.route("/refuses", accept=False)
def refuses(ws):
    abort(401, "who are you?")


@app.route("/")
def page():
    return "page"
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
        ("stock", "flask_sockets2.connection /kind False"),
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
def test_ctrl_c_ends_it_with_open_connections(kind: str, run: Run) -> None:
    """pain 60"""
    server = run(FLASK + SERVE[kind])
    with connect(server.port) as client:
        started = time.monotonic()
        server.terminate(signal.SIGINT)
        assert time.monotonic() - started < 3.0
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
