"""The application that is attacked; its text is copied to where the server runs."""

from __future__ import annotations

import logging
import os
from typing import Any

from flask import Flask, Response, request

from flask_sockets2 import Sockets
from flask_sockets2.sse import sse

logging.basicConfig(level=logging.WARNING)

app = Flask(__name__)
app.config.update(SECRET_KEY="attacked", SOCKETS_HISTORY_SIZE=1000)
if "BROKER_URL" in os.environ:
    app.config["SOCKETS_BROKER_URL"] = os.environ["BROKER_URL"]
if "HISTORY_BYTES" in os.environ:
    app.config["SOCKETS_HISTORY_BYTES"] = int(os.environ["HISTORY_BYTES"])
sockets = Sockets(app)


@sse.authorize
def authorize(channel: str) -> bool:
    return True


app.register_blueprint(sse, url_prefix="/stream")


@app.get("/")
def page() -> str:
    return "hello"


@app.get("/large")
def large() -> Response:
    return Response(bytes(50 * 2**20), mimetype="application/octet-stream")


@app.post("/body")
def body() -> str:
    return str(len(request.get_data()))


@app.post("/unread")
def unread() -> str:
    return "not looked at"


@app.post("/form")
def form() -> str:
    return str(len(request.form))


@app.post("/publish")
def publish() -> str:
    """Fill channels: ``count`` messages of ``size`` bytes in each."""
    args = request.args
    data = "x" * int(args["size"])
    for channel in range(int(args["channels"])):
        for _ in range(int(args["count"])):
            if args["over"] == "sse":
                sse.publish(data, channel=str(channel))
            else:
                sockets.publish(str(channel), data)
    return "published"


@app.get("/position")
def position() -> str:
    return str(sockets.positions(request.args.getlist("channel")))


@sockets.route("/echo")
def echo(ws: Any) -> None:
    for message in ws:
        ws.send(message)


@sockets.route("/deflate", compression=True)
def deflate(ws: Any) -> None:
    echo(ws)


@sockets.route("/listen")
def listen(ws: Any) -> None:
    ws.subscribe(request.args["channel"], since=request.args.get("since"), envelope=True)


@sockets.route("/bye")
def bye(ws: Any) -> None:
    ws.send("bye")


@sockets.route("/room")
def room(ws: Any) -> None:
    ws.subscribe("room", envelope=True, presence=True, identity=request.args["me"])


@sockets.route("/subscribe")
def subscribe(ws: Any) -> None:
    for name in ws:
        ws.subscribe(name)
        ws.unsubscribe(name)
        ws.send(name)


@sockets.route("/deaf")
def deaf(ws: Any) -> None:
    """Receive nothing as long as the client is there."""
    from time import sleep

    while not ws.closed:
        sleep(0.1)


if "WRAPPED" in os.environ:
    from werkzeug.middleware.dispatcher import DispatcherMiddleware
    from werkzeug.middleware.proxy_fix import ProxyFix

    inner = app
    app = DispatcherMiddleware(ProxyFix(inner), {"/other": ProxyFix(inner)})  # type: ignore[assignment]
