"""The application of the rolling restart; its text is copied to where a server runs."""

from __future__ import annotations

import json
from typing import Any

from flask import Flask, request

from flask_sockets2 import Sockets
from flask_sockets2.sse import sse

app = Flask(__name__)
app.config["SSE_OPEN_CHANNELS"] = True
app.config.from_prefixed_env("ROLLING")
sockets = Sockets(app)
app.register_blueprint(sse, url_prefix="/stream")  # its channels have "sse:" in front


@sockets.route("/listen")
def listen(ws: Any) -> None:
    """Subscribe to what the events bring, from where the client has been."""
    subscription = ws.subscribe("sse:news", since=request.args.get("since"), envelope=True)
    ws.send(json.dumps({"subscribed": "sse:news", "position": str(subscription.position)}))


@sockets.route("/echo")
def echo(ws: Any) -> None:
    for message in ws:
        ws.send(message)
