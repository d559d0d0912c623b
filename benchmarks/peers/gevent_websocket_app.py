"""Echo applications for gevent-websocket's gunicorn worker, with Flask and without."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from flask import Flask, request
from werkzeug.routing import Rule


def echo(ws: Any) -> None:
    """Send back what came, as Flask-Sockets' users write it."""
    while not ws.closed:
        message = ws.receive()
        if message is not None:
            ws.send(message)


app = Flask(__name__)
app.url_map.add(Rule("/echo", endpoint="echo", websocket=True))


@app.endpoint("echo")
def echo_view() -> str:
    """Run the handler inside a request context, at a rule that only WebSockets match."""
    echo(request.environ["wsgi.websocket"])
    return ""


def bare(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Run the handler with no framework at all."""
    echo(environ["wsgi.websocket"])
    return []
