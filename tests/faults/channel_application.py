"""The application that the tests of channels' faults start; its text is copied to where it runs."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from typing import Any

from flask import Flask, request

from flask_sockets2 import BrokerError, Sockets
from flask_sockets2.connection.connection import Connection

logging.basicConfig()
logging.getLogger("flask_sockets2").setLevel(logging.INFO)

app = Flask(__name__)
app.config.update(
    SOCKETS_BROKER_URL=os.environ["BROKER_URL"],
    SOCKETS_CLOSE_TIMEOUT=0.5,
    SOCKETS_PING_INTERVAL=None,  # the clients of these tests answer no ping
)
sockets = Sockets(app)


@sockets.route("/echo")
def echo(ws: Any) -> None:
    for message in ws:
        ws.send(message)


@app.get("/state")
def state() -> dict[str, Any]:
    return {"open": len(Connection.opened()), "pid": os.getpid(), **sockets.stats()}


@sockets.route("/listen")
def listen(ws: Any) -> None:
    """Subscribe to the channel that the query names."""
    channel, since = request.args["channel"], request.args.get("since")
    subscription = ws.subscribe(channel, since=since, envelope=True)
    position, gap = str(subscription.position), subscription.gap
    ws.send(json.dumps({"position": position, "gap": gap, "pid": os.getpid()}))


@sockets.route("/named")
def named(ws: Any) -> None:
    """Subscribe to the channel that the first message names, however long the name is."""
    try:
        ws.subscribe(ws.receive(), envelope=True)
    except (TypeError, ValueError) as exc:
        ws.send(f"{type(exc).__name__}: {exc}")
        return
    ws.send("subscribed")


@sockets.route("/late", accept=False)
def late(ws: Any) -> None:
    """Ask the broker before the client is accepted."""
    sockets.position("news")
    listen(ws)


@sockets.route("/histories")
def histories(ws: Any) -> None:
    """Subscribe to all that several channels keep."""
    for channel in request.args.getlist("channel"):
        ws.subscribe(channel, since="start", envelope=True)


def slow(ws: Any) -> None:
    ws.subscribe(request.args["channel"], envelope=True)


for policy in ("disconnect", "drop_oldest", "coalesce"):
    sockets.add_url_rule(
        f"/slow/{policy}", policy, slow, slow_client=policy, send_buffer=2**18, send_timeout=20.0
    )


@app.post("/publish")
def publish() -> dict[str, Any]:
    """Publish ``count`` messages of ``size`` bytes and tell how, and how long that took."""
    args = request.args
    data = "x" * int(args.get("size", 1))
    begun = time.monotonic()
    positions, error = [], None
    try:
        for number in range(int(args.get("count", 1))):
            text = f"{number} {data}"
            positions.append(str(sockets.publish(args["channel"], text, key=args.get("key", ""))))
    except (BrokerError, ValueError) as exc:
        error = f"{type(exc).__name__}: {exc}"
    return {"positions": positions, "error": error, "seconds": time.monotonic() - begun}


@sockets.route("/flood")
def flood(ws: Any) -> None:
    """Publish from a handler, as often as the client says, and never wait in between."""
    channel, count = json.loads(ws.receive())
    for number in range(count):
        sockets.publish(channel, f"{number}")
    ws.send("done")


def _in_native_thread(function: Any) -> Any:
    from gevent import monkey

    done: list[Any] = []
    start = monkey.get_original("_thread", "start_new_thread")
    start(lambda: done.append(_outcome(function)), ())
    while not done:
        time.sleep(0.005)
    return done[0]


def _in_threadpool(function: Any) -> Any:
    import gevent

    return gevent.get_hub().threadpool.apply(_outcome, (function,))


def _in_greenlet(function: Any) -> Any:
    done: list[Any] = []
    thread = threading.Thread(target=lambda: done.append(_outcome(function)))
    thread.start()
    thread.join()
    return done[0]


def _outcome(function: Any) -> Any:
    try:
        return function()
    except Exception as exc:
        return f"{type(exc).__name__}: {exc}"


@app.post("/publish-in/<where>")
def publish_in(where: str) -> dict[str, Any]:
    """Publish ten messages from elsewhere, of the same thread each."""
    channel = request.args["channel"]

    def ten() -> list[str]:
        with app.app_context():
            return [str(sockets.publish(channel, f"{where} {number}")) for number in range(10)]

    places = {"native": _in_native_thread, "pool": _in_threadpool, "greenlet": _in_greenlet}
    return {"outcome": places[where](ten)}
