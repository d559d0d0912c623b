"""The application of the soak; its text is copied to where a server runs."""

from __future__ import annotations

import json
import logging
import os
from itertools import count
from typing import Any

from flask import Flask

from flask_sockets2 import Sockets
from flask_sockets2.transports.green import GreenTransport

logging.basicConfig(format="%(process)d %(name)s %(levelname)s %(message)s")

app = Flask(__name__)
app.config.from_prefixed_env("SOAK")
sockets = Sockets(app)


@sockets.route("/listen")
def listen(ws: Any) -> None:
    """Subscribe to what the client names, each with the position it has seen, or null."""
    for channel, since in json.loads(ws.receive() or "{}").items():
        subscription = ws.subscribe(channel, since=since, envelope=True)
        answer = {"subscribed": channel, "position": str(subscription.position)}
        ws.send(json.dumps(answer))


@sockets.route("/publish")
def publish(ws: Any) -> None:
    """Publish what comes and tell its position, for a broker that other processes do not reach."""
    for message in ws:
        channel, data = json.loads(message)
        ws.send(str(sockets.publish(channel, data)))


def drop_deliveries(every: int) -> None:
    """Lose one write to one client in so many, as a bug would."""
    write = GreenTransport.write
    numbers = count(1)

    def lossy(self: GreenTransport, data: bytes) -> None:
        if b'{"channel": ' in data[:16] and not next(numbers) % every:
            return
        write(self, data)

    GreenTransport.write = lossy  # type: ignore[method-assign]


if "SOAK_DROP_ONE_IN" in os.environ:
    drop_deliveries(int(os.environ["SOAK_DROP_ONE_IN"]))
