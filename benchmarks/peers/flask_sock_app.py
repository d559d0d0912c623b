"""An echo route of Flask-Sock, for gunicorn's own workers."""

from __future__ import annotations

from typing import Any

from flask import Flask
from flask_sock import Sock

app = Flask(__name__)
sock = Sock(app)


@sock.route("/echo")
def echo(ws: Any) -> None:
    """Send back what came, as Flask-Sock's documentation writes it."""
    while True:
        ws.send(ws.receive())
