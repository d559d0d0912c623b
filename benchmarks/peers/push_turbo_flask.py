"""Turbo-Flask, for gunicorn's own gevent worker."""

from __future__ import annotations

import gevent
from flask import Flask, request
from turbo_flask import Turbo

from .pacing import Order

app = Flask(__name__)
app.config["TURBO_WEBSOCKET_ROUTE"] = "/listen"
turbo = Turbo(app)

OVERHEAD = len(turbo.append("", target="news"))


@app.get("/publish")
def publish() -> dict[str, float]:
    """Push what is asked for to all."""
    order = Order.of(request.full_path)
    stream = turbo.append(order.text(OVERHEAD), target="news")
    return order.run(lambda number: turbo.push(stream), gevent.sleep)
