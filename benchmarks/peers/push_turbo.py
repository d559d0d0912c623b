"""Turbo of flask_sockets2 and Turbo-Flask, which are used alike: gunicorn calls the factory."""

from __future__ import annotations

from importlib import import_module

import gevent
from flask import Flask, request

from .pacing import Order

EARLIER = 10_000  # messages before the first: all positions of a run have as many digits then


def application(package: str) -> Flask:
    """Return an application that pushes.

    :param package: whose ``Turbo`` it is.
    """
    app = Flask(__name__)
    turbo = import_module(package).Turbo(app)

    def stream(number: int, content: str) -> str:
        """Return what is pushed; each has a target of its own, as the rows of a table have.

        Of two for one target a client that is slow would get the newer only.
        """
        target = f"row-{number:05}"
        markup: str = turbo.replace(f'<tr id="{target}"><td>{content}</td></tr>', target)
        return markup

    overhead = len(stream(0, ""))

    @app.get("/publish")
    def publish() -> dict[str, float]:
        """Push what is asked for to all."""
        order = Order.of(request.full_path)
        content = order.text(overhead)
        return order.run(lambda number: turbo.push(stream(number, content)), gevent.sleep)

    for number in range(EARLIER):
        turbo.push(stream(number, ""))
    return app
