"""A response 103 on the wire, byte by byte, by our servers and by gunicorn's own workers."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.clients import TIMEOUT
from tests.processes import Server

StartServer = Callable[..., Server]

APP = """
import threading
import time

from flask import Flask, Response, request
from flask_sockets2 import Sockets
from flask_sockets2.firehose import Firehose, early_hints, hints

app = Flask(__name__)
app.config.from_prefixed_env()
sockets = Sockets(app)
Firehose(app)
asked = threading.Event()


@app.get("/hinted")
@hints("/static/app.css")
def hinted():
    asked.wait(request.args.get("seconds", 5, float))
    return "page"


@app.get("/go")
def go():
    asked.set()
    return ""


@app.get("/twice")
def twice():
    early_hints("/static/a.css", "https://cdn.example.com")
    early_hints('</data>; rel=preload; as=fetch')
    return "page"


@app.get("/late")
def late():
    send = request.environ["wsgi.early_hints"]

    def body():
        yield "first"
        send([("Link", "</late.css>; rel=preload; as=style")])
        yield "last"

    return Response(body(), headers={"Content-Length": "9"})


@app.get("/raw")
def raw():
    try:
        request.environ["wsgi.early_hints"]([("Link", request.args["value"])])
    except ValueError:
        return "ValueError"
    return "sent"


@app.get("/checked")
def checked():
    try:
        early_hints(request.args["value"])
    except ValueError:
        return "ValueError"
    return "sent"


left_behind = []


@app.get("/leave")
def leave():
    left_behind.append(request.environ["wsgi.early_hints"])
    return "left"


@app.get("/next")
def next_one():
    left_behind.pop()([("Link", "</wrong.css>; rel=preload; as=style")])
    return "next"


@sockets.route("/hinted-socket", accept=False)
@hints("/static/app.css")
def hinted_socket(ws):
    send = request.environ["wsgi.early_hints"]
    send([("Link", "</before.css>; rel=preload; as=style")])
    ws.accept()
    send([("Link", "</after.css>; rel=preload; as=style")])
    ws.send("hello")
"""

ALWAYS = {"FLASK_FIREHOSE_EARLY_HINTS": "true"}

HINT = b"HTTP/1.1 103 Early Hints\r\nLink: </static/app.css>; rel=preload; as=style\r\n\r\n"

OUR_SERVER = (
    """
    from gevent import monkey
    monkey.patch_all()
"""
    + APP.replace("\n", "\n    ")
    + """
    import sys
    from flask_sockets2 import WebSocketServer
    WebSocketServer(("127.0.0.1", int(sys.argv[1])), app).serve_forever()
"""
)

WORKERS: dict[str, dict[str, Any]] = {
    "ours": {},
    "gevent": {"worker": "gevent"},
    "gthread": {"worker": "gthread", "args": ["--threads", "2"]},
    "sync": {"worker": "sync"},
}


class Client:
    """Bytes to and from a server."""

    def __init__(self, server: Server) -> None:
        self.sock = socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT)

    def ask(self, path: str, *fields: str, version: str = "1.1") -> None:
        lines = [f"GET {path} HTTP/{version}", "Host: localhost", *fields, "", ""]
        self.sock.sendall("\r\n".join(lines).encode())

    def read(self, until: bytes) -> bytes:
        """All bytes up to some, which must be the last that have come."""
        data = b""
        while until not in data:
            received = self.sock.recv(65536)
            assert received, data
            data += received
        assert data.endswith(until), data
        return data


@pytest.fixture
def client_of() -> Iterator[Callable[[Server], Client]]:
    clients: list[Client] = []

    def connect(server: Server) -> Client:
        clients.append(Client(server))
        return clients[-1]

    yield connect
    for each in clients:
        each.sock.close()


@pytest.fixture(params=[*WORKERS, "our server"])
def server(
    request: pytest.FixtureRequest,
    gunicorn: StartServer,
    pywsgi_server: StartServer,
    unused_port: int,
) -> Server:
    if request.param == "our server":
        args = [str(unused_port)]
        return pywsgi_server(OUR_SERVER, port=unused_port, args=args, environ=ALWAYS)
    return gunicorn(APP, environ=ALWAYS, **WORKERS[request.param])


@pytest.mark.quick
def test_the_hint_is_there_before_the_view_works(
    server: Server, client_of: Callable[[Server], Client], request: pytest.FixtureRequest
) -> None:
    one_at_a_time = "sync" in request.node.name
    waiting = client_of(server)
    waiting.ask("/hinted?seconds=0.3" if one_at_a_time else "/hinted")
    assert waiting.read(b"\r\n\r\n") == HINT
    if not one_at_a_time:
        client_of(server).ask("/go")
    answer = waiting.read(b"\r\n\r\npage")
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nLink: </static/app.css>; rel=preload; as=style\r\n" in answer


def test_several_hints_and_the_next_request_of_the_connection(
    server: Server, client_of: Callable[[Server], Client]
) -> None:
    client = client_of(server)
    answers = []
    for _ in range(1 if "sync" in server.output else 2):
        client.ask("/twice")
        answers.append(client.read(b"\r\n\r\npage"))
    for answer in answers:
        hints, found, _ = answer.partition(b"HTTP/1.1 200 OK\r\n")
        assert found
        assert hints == (
            b"HTTP/1.1 103 Early Hints\r\n"
            b"Link: </static/a.css>; rel=preload; as=style, "
            b"<https://cdn.example.com>; rel=preconnect\r\n\r\n"
            b"HTTP/1.1 103 Early Hints\r\n"
            b"Link: </data>; rel=preload; as=fetch; crossorigin\r\n\r\n"
        )


def test_a_client_of_http_1_0_gets_none(
    server: Server, client_of: Callable[[Server], Client]
) -> None:
    client = client_of(server)
    client.ask("/twice", version="1.0")
    answer = client.read(b"\r\n\r\npage")
    assert b"HTTP/1.1 103" not in answer
    assert answer.startswith((b"HTTP/1.1 200 OK\r\n", b"HTTP/1.0 200 OK\r\n"))
    client = client_of(server)
    client.ask("/raw?value=%3C/a.css%3E", version="1.0")
    assert b" 103 " not in client.read(b"\r\n\r\nsent")


def test_once_the_response_has_begun_nothing_is_sent(
    server: Server, client_of: Callable[[Server], Client]
) -> None:
    client = client_of(server)
    client.ask("/late")
    answer = client.read(b"last")
    assert b" 103 " not in answer
    assert answer.endswith(b"\r\n\r\nfirstlast")


BROKEN = ("a%0d%0aSet-Cookie:%20x=1", "a%0ab", "a%00b", "a%7fb")


def test_no_line_break_gets_through(server: Server, client_of: Callable[[Server], Client]) -> None:
    for value in BROKEN:
        client = client_of(server)
        client.ask(f"/checked?value={value}.css")
        answer = client.read(b"\r\n\r\nValueError")
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"Set-Cookie" not in answer


def test_our_handler_lets_none_through_from_other_frameworks(
    gunicorn: StartServer, client_of: Callable[[Server], Client]
) -> None:
    client = client_of(gunicorn(APP))
    for value in BROKEN:
        client.ask(f"/raw?value={value}")
        answer = client.read(b"\r\n\r\nValueError")
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"Set-Cookie" not in answer


@pytest.mark.parametrize("kind", ["ours", "our server"])
def test_what_a_request_has_left_behind_does_not_speak_for_the_next(
    kind: str,
    gunicorn: StartServer,
    pywsgi_server: StartServer,
    unused_port: int,
    client_of: Callable[[Server], Client],
) -> None:
    server = (
        gunicorn(APP)
        if kind == "ours"
        else pywsgi_server(OUR_SERVER, port=unused_port, args=[str(unused_port)])
    )
    client = client_of(server)
    client.ask("/leave")
    client.read(b"\r\n\r\nleft")
    client.ask("/next")
    assert client.read(b"\r\n\r\nnext").startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_handshake_gets_none(
    gunicorn: StartServer, client_of: Callable[[Server], Client]
) -> None:
    client = client_of(gunicorn(APP, environ=ALWAYS))
    upgrade = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13")
    client.ask("/hinted-socket", *upgrade, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
    answer = client.read(b"hello\x88\x02\x03\xe8")  # and the close frame
    assert answer.startswith(b"HTTP/1.1 101 ")
    assert answer.partition(b"\r\n\r\n")[2] == b"\x81\x05hello\x88\x02\x03\xe8"


def test_by_default_nobody_gets_one_over_a_hop_that_is_not_known(
    gunicorn: StartServer, client_of: Callable[[Server], Client]
) -> None:
    client = client_of(gunicorn(APP))
    client.ask("/twice", "Sec-Fetch-Mode: navigate", "X-Early-Hints: 1")
    assert client.read(b"\r\n\r\npage").startswith(b"HTTP/1.1 200 OK\r\n")


def test_only_navigations_over_a_hop_that_is_known_get_one(
    gunicorn: StartServer, client_of: Callable[[Server], Client]
) -> None:
    server = gunicorn(APP, environ={"FLASK_FIREHOSE_HOP_HEADER": "X-Early-Hints"})
    navigates = "Sec-Fetch-Mode: navigate"
    for fields, sent in (
        ([navigates, "X-Early-Hints: 1"], True),
        ([navigates, "X-Early-Hints: h2"], True),
        ([navigates, "X-Early-Hints: 0"], False),
        ([navigates, "X-Early-Hints:"], False),
        ([navigates], False),
        (["Sec-Fetch-Mode: cors", "X-Early-Hints: 1"], False),
        (["X-Early-Hints: 1"], False),  # no browser: Python's clients would break
    ):
        client = client_of(server)
        client.ask("/twice", *fields)
        assert (b" 103 " in client.read(b"\r\n\r\npage")) is sent, fields
