"""The four parts of every application of the matrix: a socket, a stream, a Turbo page, a page.

An application imports this in its server's process. :mod:`tests.neighbours.visitor` is the other
end of all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from flask import Flask, render_template_string, request

from flask_sockets2 import Sockets, Turbo
from flask_sockets2.sse import ServerSentEventsBlueprint

PAGE = """<!doctype html>
<html>
<head><title>News</title>
{{ turbo() }}</head>
<body><ol id="news"></ol></body>
</html>
"""


class Parts(NamedTuple):
    sockets: Sockets
    turbo: Turbo
    sse: ServerSentEventsBlueprint


def add_parts(app: Flask, page: str = PAGE) -> Parts:
    """Give an application its four parts.

    :param page: template of the page with Turbo.
    """
    app.secret_key = "for the tests"
    app.config["SSE_OPEN_CHANNELS"] = True
    sockets = Sockets(app)
    turbo = Turbo(app)
    sse = ServerSentEventsBlueprint("sse", __name__)
    sse.add_url_rule("", endpoint="stream", view_func=sse.stream)
    app.register_blueprint(sse, url_prefix="/events")

    @sockets.route("/echo")
    def echo(ws: Any) -> None:
        # Not "for message in ws": gevent-websocket's object has no loop.
        while (message := ws.receive()) is not None:
            if message == "bye":
                ws.close(4001, "bye")
            else:
                ws.send(message)

    @app.get("/")
    def index() -> str:
        return "an ordinary page"

    @app.get("/page")
    def turbo_page() -> str:
        return render_template_string(page)

    @app.post("/say")
    def say() -> str:
        text = request.form["text"]
        sse.publish(text)
        line = render_template_string("<li>{{ text }}</li>", text=text)
        turbo.push(turbo.append(line, "news"))
        return "said"

    return Parts(sockets, turbo, sse)


def add_endings(app: Flask, sockets: Sockets, note: Callable[[str], None]) -> None:
    """Give an application that is watched two sockets more: one that fails, one that only listens.

    :param note: called by the first with each message, before the one that it fails at.
    """

    @sockets.route("/fails")
    def fails(ws: Any) -> None:
        while (message := ws.receive()) is not None:
            note(message)
            ws.send(message)
            if message == "fail":
                raise LookupError("on purpose")

    @sockets.route("/listens")
    def listens(ws: Any) -> None:
        ws.subscribe("news")

    @app.post("/publish")
    def publish() -> str:
        sockets.publish("news", "published")
        return "published"
