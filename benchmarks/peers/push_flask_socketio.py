"""Flask-SocketIO, for gevent-websocket's gunicorn worker: it asks for it where it is installed.

It pings with a message of its own protocol each 25 seconds; here it does not, since the load client
would take those for deliveries.
"""

from __future__ import annotations

import os

import gevent
from flask import Flask, request
from flask_socketio import SocketIO
from socketio import RedisManager

from .pacing import Order

OVERHEAD = len('42["message",""]')

broker = os.environ.get("BENCHMARK_BROKER")
app = Flask(__name__)
socketio = SocketIO(
    app,
    async_mode="gevent",
    ping_interval=3600,
    client_manager=RedisManager(broker) if broker else None,
)


@app.get("/publish")
def publish() -> dict[str, float]:
    """Emit what is asked for to all."""
    order = Order.of(request.full_path)
    text = order.text(OVERHEAD)
    return order.run(lambda number: socketio.emit("message", text), gevent.sleep)
