"""A broadcast loop for gevent-websocket's gunicorn worker, as Flask-Sockets' users wrote it."""

from __future__ import annotations

from typing import Any

import gevent
from flask import Flask, request
from geventwebsocket.exceptions import WebSocketError
from werkzeug.routing import Rule

from .pacing import Order

app = Flask(__name__)
app.url_map.add(Rule("/listen", endpoint="listen", websocket=True))
clients: set[Any] = set()


@app.endpoint("listen")
def listen() -> str:
    """Keep the connection in the set while it is open."""
    ws = request.environ["wsgi.websocket"]
    clients.add(ws)
    try:
        while not ws.closed:
            ws.receive()
    except WebSocketError:
        pass  # it left without a close frame
    finally:
        clients.discard(ws)
    return ""


def broadcast(text: str) -> None:
    """Send to all, one after another."""
    for ws in list(clients):
        try:
            ws.send(text)
        except WebSocketError:
            clients.discard(ws)


@app.get("/publish")
def publish() -> dict[str, float]:
    """Broadcast what is asked for."""
    order = Order.of(request.full_path)
    text = order.text()
    return order.run(lambda number: broadcast(text), gevent.sleep)
