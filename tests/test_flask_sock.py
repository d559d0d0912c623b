"""What ``docs/migrating-from-flask-sock.rst`` says of Flask-Sock and of us, held against both.

The same handlers run under the same server, once with each.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.clients import TIMEOUT, http, websocket
from tests.processes import Server, wait_until
from tests.test_docs import ROOT, blocks

PAGE = ROOT / "docs" / "migrating-from-flask-sock.rst"
BEFORE, NOW, TICKER = blocks(PAGE, "python")

FLASK_SOCK = """
from flask_sock import Sock
app.config["SOCK_SERVER_OPTIONS"] = {"subprotocols": ["v2", "v1"], "max_message_size": 65536}
route = Sock(app).route
"""
OURS = """
from functools import partial
from flask_sockets2 import Sockets
route = partial(Sockets(app).route, subprotocols=["v2", "v1"], max_message_size=65536)
"""

HANDLERS = """
from flask import Flask, abort

app = Flask(__name__)
{extension}
notes = {{}}


def outcome(function, *args, **options):
    try:
        return repr(function(*args, **options))
    except Exception as exc:
        return type(exc).__name__


@app.get("/notes")
def show():
    return notes


@route("/upper")
def upper(ws):
    while True:
        ws.send(ws.receive().upper())


@route("/echo")
def echo(ws):
    while True:
        ws.send(ws.receive())


@route("/timeout")
def timeout(ws):
    ws.send(outcome(ws.receive, timeout=0.05))


@route("/look")
def look(ws):
    ws.send(outcome(ws.receive, timeout=0))


@route("/number")
def number(ws):
    ws.send(outcome(ws.send, 5))


@route("/bytearray")
def array(ws):
    ws.send(bytearray(b"x"))


@route("/close")
def close(ws):
    ws.close(4000, "bye")
    notes["again"] = outcome(ws.close)


@route("/left")
def left(ws):
    notes["first"] = outcome(ws.receive)
    try:
        ws.receive()
    except Exception as exc:
        names = ("code", "reason", "message")
        error = {{name: getattr(exc, name) for name in names if hasattr(exc, name)}}
        bases = [base.__name__ for base in (RuntimeError, OSError) if isinstance(exc, base)]
    names = ("close_code", "close_reason", "close_message", "connected", "closed")
    ended = {{name: getattr(ws, name) for name in names if hasattr(ws, name)}}
    notes["left"] = [error, bases, ended]


@route("/raises")
def raises(ws):
    1 / 0


@route("/forbidden")
def forbidden(ws):
    abort(403)


@route("/subprotocol")
def subprotocol(ws):
    ws.send(ws.subprotocol)
"""


def outcome(
    server: Server, path: str, message: str | None = None, within: float = TIMEOUT, **options: Any
) -> Any:
    """The first message that comes, the close code, or the status."""
    try:
        with websocket(server.ws_url(path), close_timeout=within, **options) as client:
            if message is not None:
                client.send(message)
            return client.recv(timeout=within)
    except TimeoutError:  # Flask-Sock may leave a connection open that it has broken
        return None
    except ConnectionClosed as exc:
        return exc.rcvd.code if exc.rcvd else None
    except InvalidStatus as exc:
        return exc.response.status_code


def outcomes(server: Server, silent: set[str]) -> dict[str, Any]:
    """What each line does.

    :param silent: paths of which nothing is to come, so that it is not waited for long.
    """
    paths = ("timeout", "look", "number", "bytearray", "close", "raises", "forbidden")
    found = {
        path: outcome(server, f"/{path}", within=2 if path in silent else TIMEOUT) for path in paths
    }
    found["loop"] = outcome(server, "/upper", "hello")
    found["elsewhere"] = outcome(server, "/echo", "hello", origin="https://elsewhere.example")
    found["too big"] = outcome(server, "/echo", "x" * 65537)
    found["subprotocol"] = outcome(server, "/subprotocol", subprotocols=["v1", "v2"])
    found["page"] = http(server.url("/echo"))[0]
    with websocket(server.ws_url("/echo"), compression="deflate") as client:
        response = client.response
        assert response is not None
        found["compressed"] = "Sec-WebSocket-Extensions" in response.headers
    with websocket(server.ws_url("/left")) as client:
        client.close(4001, "ciao")

    def notes() -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(http(server.url("/notes"))[1])
        return answer

    wait_until(lambda: {"left", "again"} <= notes().keys(), "the notes of the handlers")
    return {**found, **notes()}


WITH_FLASK_SOCK = {
    "timeout": "None",
    "look": "None",
    "number": "5",
    "bytearray": "bytearray(b'x')",
    "close": 4000,
    "again": "ConnectionClosed",
    "raises": None,  # an error page in the midst of the frames
    "forbidden": None,
    "loop": "HELLO",
    "elsewhere": "hello",
    "too big": 1009,
    "subprotocol": "v1",
    "page": 400,
    "compressed": True,
    "first": "ConnectionClosed",
    "left": [
        {"reason": 4001, "message": "ciao"},
        ["RuntimeError"],
        {"close_reason": 4001, "close_message": "ciao", "connected": False},
    ],
}
WITH_OURS = {
    "timeout": "TimeoutError",
    "look": "TimeoutError",
    "number": "TypeError",
    "bytearray": b"x",
    "close": 4000,
    "again": "None",
    "raises": 1011,
    "forbidden": 1008,
    "loop": "HELLO",
    "elsewhere": 403,
    "too big": 1009,
    "subprotocol": "v2",
    "page": 426,
    "compressed": False,
    "first": "None",
    "left": [
        {"code": 4001, "reason": "ciao"},
        ["OSError"],
        {"close_code": 4001, "close_reason": "ciao", "closed": True},
    ],
}


@pytest.mark.parametrize(
    ("extension", "expected"),
    [(FLASK_SOCK, WITH_FLASK_SOCK), (OURS, WITH_OURS)],
    ids=["Flask-Sock", "ours"],
)
def test_each_line_does_what_the_page_says(
    extension: str, expected: dict[str, Any], gunicorn: Callable[..., Server]
) -> None:
    program = HANDLERS.format(extension=extension)
    server = gunicorn(program, worker=None, args=["--threads", "8"])
    silent = {path for path, what in expected.items() if what is None}
    assert outcomes(server, silent) == expected


@pytest.mark.parametrize("program", [BEFORE, NOW], ids=["before", "now"])
def test_the_program_of_the_page_does_the_same_with_both(
    program: str, gunicorn: Callable[..., Server]
) -> None:
    server = gunicorn(program, worker=None, args=["--threads", "8"])
    assert outcome(server, "/upper", "hello") == "HELLO"


def test_the_ticker_of_the_page_ticks_and_stops(gunicorn: Callable[..., Server]) -> None:
    server = gunicorn(f"{NOW}\n\n{TICKER}")
    with websocket(server.ws_url("/ticker")) as client:
        assert client.recv(timeout=TIMEOUT) == "tick"
        client.send("stop")
        assert {*client} <= {"tick"}  # until it is closed
        assert client.close_code == 1000
