"""An echo route of flask_sockets2, for ``gunicorn -k flask_sockets2.worker``."""

from __future__ import annotations

from typing import Any

from flask import Flask

from flask_sockets2 import Sockets

app = Flask(__name__)
sockets = Sockets(app)


@sockets.route("/echo")
def echo(ws: Any) -> None:
    """Send back what came, as Flask-Sockets' users write it."""
    while not ws.closed:
        message = ws.receive()
        if message is not None:
            ws.send(message)
