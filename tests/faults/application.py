"""The application that the tests of faults start; its text is copied to where a server runs.

Handlers that get a name tell under it, in ``/state``, how they ended.
"""

from __future__ import annotations

import gc
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flask import Flask, abort, request

from flask_sockets2 import Sockets
from flask_sockets2.connection.connection import Connection

logging.basicConfig()
logging.getLogger("flask_sockets2").setLevel(logging.INFO)

app = Flask(__name__)
app.config.update(
    SOCKETS_HANDSHAKE_TIMEOUT=2.0, SOCKETS_SEND_TIMEOUT=1.5, SOCKETS_CLOSE_TIMEOUT=1.5
)
sockets = Sockets(app)

ended: dict[str, str] = {}
told: dict[str, threading.Event] = {}


@contextmanager
def noted(name: str) -> Iterator[None]:
    try:
        yield
    except BaseException as exc:
        ended[name] = str(exc) or type(exc).__name__
        raise
    ended[name] = "returned"


@app.before_request
def read_the_body() -> None:
    """As an application does that logs or signs bodies."""
    if "body" in request.args:
        request.get_data()


@app.post("/body")
def body() -> str:
    return repr(request.get_data())


@app.post("/accept/<name>")
def accept(name: str) -> str:
    told[name].set()
    return ""


@app.get("/state")
def state() -> dict[str, Any]:
    objects = 0
    if "count" in request.args:
        gc.collect()
        objects = sum(isinstance(thing, Connection) for thing in gc.get_objects())
    return {"open": len(Connection.opened()), "objects": objects, "ended": ended}


@sockets.route("/echo")
def echo(ws: Any) -> None:
    for message in ws:
        ws.send(message)


@sockets.route("/deflate", compression=True)
def deflate(ws: Any) -> None:
    echo(ws)


@sockets.route("/length")
def length(ws: Any) -> None:
    for message in ws:
        ws.send(str(len(message)))


@sockets.route("/first/<name>", ping_interval=0.5, ping_timeout=None)
def first(ws: Any, name: str) -> None:
    """Receive one message, then nothing more as long as the connection lives."""
    with noted(name):
        ws.send(ws.receive())
        while not ws.closed:
            time.sleep(0.02)


@sockets.route("/deaf/<name>", ping_interval=None)
def deaf(ws: Any, name: str) -> None:
    """Receive nothing as long as the connection lives, then everything."""
    with noted(name):
        while not ws.closed and ws.close_code is None:
            time.sleep(0.02)
        ended[f"{name} code"] = str(ws.close_code)
        ended[f"{name} got"] = str(len(list(ws)))


@sockets.route("/first-deflated/<name>", compression=True, ping_interval=0.5, ping_timeout=None)
def first_deflated(ws: Any, name: str) -> None:
    first(ws, name)


@sockets.route("/stream/<name>")
def stream(ws: Any, name: str) -> None:
    """Send without end."""
    with noted(name):
        while True:
            ws.send(bytes(65536))


@sockets.route("/half-full/<name>")
def half_full(ws: Any, name: str) -> None:
    """Send more than the kernel takes of it and less than our buffer does; then wait."""
    sock = ws.handler.socket if ws.handler else ws.environ["werkzeug.socket"]
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**16)
    with noted(name):
        for _ in range(3):
            ws.send(bytes(2**18))
        assert ws.receive() is None


@sockets.route("/busy/<name>", ping_interval=1.5, ping_timeout=0.4)
def busy(ws: Any, name: str) -> None:
    """Receive one message and work on it for a while."""
    with noted(name):
        ws.receive()
        time.sleep(3)
        ended[f"{name} code"] = str(ws.close_code)


@sockets.route("/kept-alive/<name>", ping_interval=0.4, ping_timeout=2)
def kept_alive(ws: Any, name: str) -> None:
    with noted(name):
        for message in ws:
            ws.send(message)
        ended[f"{name} code"] = str(ws.close_code)


@sockets.route("/messages/<name>")
def messages(ws: Any, name: str) -> None:
    """Tell what was received."""
    with noted(name):
        ended[f"{name} got"] = repr(list(ws))


@sockets.route("/closes")
def closes(ws: Any) -> None:
    """Return at once, so that the server begins the closing handshake."""


@sockets.route("/both/<int:count>")
def both(ws: Any, count: int) -> None:
    """Send so many messages of 1 MiB from two threads, or greenlets where the server patches."""

    def send(letter: bytes) -> None:
        for _ in range(count):
            ws.send(letter * 2**20)

    threads = [threading.Thread(target=send, args=(letter,)) for letter in (b"a", b"b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@sockets.route("/raises/<name>")
def raises(ws: Any, name: str) -> None:
    raise RuntimeError(f"told by {name}")


@sockets.route("/raises-before/<name>", accept=False)
def raises_before(ws: Any, name: str) -> None:
    raise RuntimeError(f"told by {name}")


@sockets.route("/late/<name>", accept=False)
def late(ws: Any, name: str) -> None:
    """Accept when it is told to."""
    with noted(name):
        print(name, "is there", flush=True)
        told.setdefault(name, threading.Event()).wait()
        ws.accept()
        for message in ws:
            ws.send(message)


@sockets.route("/refuses", accept=False)
def refuses(ws: Any) -> None:
    abort(401, "who are you?")
