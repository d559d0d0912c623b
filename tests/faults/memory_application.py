"""The application that the tests of memory start; its text is copied to where a server runs."""

from __future__ import annotations

import logging
import time
from typing import Any

from flask import Flask, request

from flask_sockets2 import Sockets
from flask_sockets2.sse import sse

logging.basicConfig()

app = Flask(__name__)
app.config.update(
    SECRET_KEY="of a test",
    SOCKETS_MAX_BUFFERED=24 * 2**20,
    SOCKETS_CLOSE_TIMEOUT=2.0,
    SSE_OPEN_CHANNELS=True,
    SSE_HEARTBEAT=1,
)
sockets = Sockets(app)
app.register_blueprint(sse, url_prefix="/events")


@app.get("/stats")
def stats() -> dict[str, Any]:
    return sockets.stats()


@app.get("/publish")
def publish() -> str:
    data = "x" * int(request.args["size"])
    sockets.publish("news", data)
    sse.publish(data, channel="sse")
    return "published"


@sockets.route("/echo")
def echo(ws: Any) -> None:
    for message in ws:
        ws.send(message)


@sockets.route("/busy", ping_interval=0.5, ping_timeout=None)
def busy(ws: Any) -> None:
    """Receive nothing."""
    while not ws.closed:
        time.sleep(0.05)


@sockets.route("/listen")
def listen(ws: Any) -> None:
    ws.subscribe("news")
