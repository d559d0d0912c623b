"""Event streams of flask_sockets2 and Flask-SSE, used alike; gunicorn calls the factory."""

from __future__ import annotations

import os
from importlib import import_module

import gevent
from flask import Flask, request

from .pacing import Order

OVERHEAD = len('event:news\ndata:{"text": ""}\n\n')


def application(module: str, interop: bool = False) -> Flask:
    """Return an application that publishes events.

    :param module: whose ``sse`` it is.
    :param interop: whether flask_sockets2 speaks with Flask-SSE's programs.
    """
    app = Flask(__name__)
    app.config["REDIS_URL"] = os.environ["BENCHMARK_BROKER"]
    app.config["SSE_INTEROP"] = interop
    sse = import_module(module).sse
    app.register_blueprint(sse, url_prefix="/stream")

    @app.get("/publish")
    def publish() -> dict[str, float]:
        """Publish what is asked for to all."""
        order = Order.of(request.full_path)
        data = {"text": order.text(OVERHEAD)}
        return order.run(lambda number: sse.publish(data, type="news"), gevent.sleep)

    return app
