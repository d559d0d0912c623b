"""Channels of flask_sockets2, for ``gunicorn -k flask_sockets2.worker``."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import gevent
from flask import Flask, request

from flask_sockets2 import Sockets

from .pacing import Order

STRIDE = 7919  # a prime: channels come in no order that memory has them in

app = Flask(__name__)
app.config["SOCKETS_BROKER_URL"] = os.environ.get("BENCHMARK_BROKER", "memory://")
sockets = Sockets(app)


@sockets.route("/echo")
def echo(ws: Any) -> None:
    """Send back what came."""
    for message in ws:
        ws.send(message)


@sockets.route("/listen")
def listen(ws: Any) -> None:
    """Subscribe to the channel of all, from a position on, or to many channels."""
    if "channels" not in request.args:
        ws.subscribe("news", since=request.args.get("since"))
        return
    first = int(request.args["first"])
    for number in range(first, first + int(request.args["channels"])):
        ws.subscribe(f"channel:{number}")


@app.get("/position")
def position() -> str:
    """Tell where the channel of all is."""
    return str(sockets.position("news"))


@app.get("/publish")
def publish() -> dict[str, float]:
    """Publish what is asked for."""
    order = Order.of(request.full_path)
    text = order.text()
    if not order.channels:
        return order.run(lambda number: sockets.publish("news", text), gevent.sleep)
    names = scattered(order.channels)
    return order.run(
        lambda number: sockets.publish(names[number % order.channels], text), gevent.sleep
    )


@cache
def scattered(number: int) -> list[str]:
    """Return the names of so many channels, in the order to publish to them."""
    return [f"channel:{index * STRIDE % number}" for index in range(number)]
