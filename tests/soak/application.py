"""The application of the soak; its text is copied to where a server runs."""

from __future__ import annotations

import json
import logging
import os
import time
from itertools import count
from typing import Any

import redis
from flask import Flask, g, has_app_context, render_template, request
from jinja2 import DictLoader

from flask_sockets2 import BrokerError, Position, Sockets
from flask_sockets2.application.state import state_of
from flask_sockets2.channels.sender import AppSender
from flask_sockets2.connection.connection import Connection
from flask_sockets2.firehose import Firehose
from flask_sockets2.sse import sse
from flask_sockets2.transports.green import GreenTransport
from flask_sockets2.turbo import Turbo

logging.basicConfig(format="%(process)d %(name)s %(levelname)s %(message)s")

app = Flask(__name__)
app.config.update(
    SECRET_KEY="the soak's",
    SOCKETS_METRICS_ROUTE="/metrics",
    SSE_OPEN_CHANNELS=True,
    FIREHOSE_HOP_HEADER="X-Early-Hints",
)
app.config.from_prefixed_env("SOAK")
sockets = Sockets(app)
turbo = Turbo(app)
firehose = Firehose(app)
app.register_blueprint(sse, url_prefix="/stream")


# -- WebSockets --------------------------------------------------------------------------------


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


@sockets.route("/echo")
def echo(ws: Any) -> None:
    for message in ws:
        ws.send(message)


@sockets.route("/people/<int:room>")
def people(ws: Any, room: int) -> None:
    identity = request.args["identity"]
    ws.subscribe(f"people:{room}", envelope=True, presence=True, identity=identity)


@app.get("/people/<int:room>")
def present(room: int) -> Any:
    return sockets.present(f"people:{room}")


# -- pages -------------------------------------------------------------------------------------

PAGE = "<!doctype html><head>{{ turbo() }}</head>{{ turbo.stream_from('room', room) }}"
REPORT = """\
<!doctype html><link rel="stylesheet" href="/static/early.css">{{ flush() }}
report {{ number }} {{ rows() }}</html>"""

app.jinja_loader = DictLoader({"page.html": PAGE, "report.html": REPORT})


@turbo.user_id
def user_id() -> str | None:
    return request.headers.get("X-Soak-User")


@app.get("/page/<int:room>")
def page(room: int) -> str:
    return render_template("page.html", room=room)


@app.get("/plain/<int:number>")
def plain(number: int) -> str:
    return f"plain {number} " + "x" * (number * 977 % 20_000) + " end"


@app.get("/report/<int:number>")
@firehose.hints("/static/early.css")
def report(number: int) -> Any:
    """A page whose head comes first."""

    def rows() -> str:
        time.sleep(0.05)
        return "rows"

    return firehose.flush("report.html", number=number, rows=rows)


# -- publishing from a worker ------------------------------------------------------------------


@app.post("/publish")
def publish_many() -> Any:
    """Publish each of ``[[channel, data], …]`` by the feature whose it is; tell the positions."""
    g.positions = []
    try:
        for channel, data in request.get_json():
            kind, _, name = channel.partition(":")
            if kind == "sse":
                sse.publish(data["data"], type=data["type"], channel=name)
            elif kind == "turbo":
                _push(name, data)
            else:
                sockets.publish(channel, data)
    except BrokerError as exc:
        app.logger.info("not published: %s", exc)
        return {"error": str(exc)}, 503
    return list(map(str, g.positions))


def _push(name: str, markup: str) -> None:
    kind, _, of = name.partition(":")
    if kind == "all":
        turbo.push(markup)
    elif kind == "user":
        turbo.push(markup, to=of)
    else:
        turbo.broadcast_to(*of.split(":"), stream=markup)


def note_positions() -> None:
    """Have ``g.positions`` hold where messages are, which ``push`` does not return."""
    publish = AppSender.send

    def noting(self: AppSender, drafts: Any) -> list[Position]:
        positions = publish(self, drafts)
        if has_app_context() and "positions" in g:
            g.positions += positions
        return positions

    AppSender.send = noting  # type: ignore[method-assign]


note_positions()


# -- faults of its own -------------------------------------------------------------------------


def drop_deliveries(every: int) -> None:
    """Lose one write to one client in so many, as a bug would."""
    write = GreenTransport.write
    numbers = count(1)

    def lossy(self: GreenTransport, data: bytes) -> None:
        if b'{"channel": ' in data[:16] and not next(numbers) % every:
            return
        write(self, data)

    GreenTransport.write = lossy  # type: ignore[method-assign]


def plant() -> None:
    """Do wrong, now and then, what each feature promises; the soak has to find all of it."""
    numbers = count(1)
    server = redis.Redis.from_url(app.config["SOCKETS_BROKER_URL"])
    views = app.view_functions
    plain, posted = views["plain"], views["publish_many"]

    def now_and_then(every: int) -> bool:
        return not next(numbers) % every

    @app.before_request
    def keep() -> None:
        os.dup(0)

    def wrong_page(number: int) -> Any:
        return ("", 500) if now_and_then(4) else plain(number + now_and_then(5))

    def published_amiss() -> Any:
        server.set("soak's", "without an end")
        for channel, data in request.get_json():
            if channel == "turbo:all":
                turbo.push(data)  # and once more
            elif channel == "sse:0":
                sse.publish(data["data"], type="soak", channel="1")
        return posted()

    send = Connection.send

    def wrong_echo(self: Connection, message: Any, binary: bool | None = None) -> None:
        if self.path != "/echo" or not now_and_then(20):
            send(self, message, binary)

    subscribe = Connection.subscribe

    def wrong_person(self: Connection, channel: str, since: Any = None, **options: Any) -> Any:
        if options.get("identity") == "p0":
            options["identity"] = "nobody"
            state_of(app).channels.broker.join(channel, "stays")
        return subscribe(self, channel, since, **options)

    views.update(plain=wrong_page, publish_many=published_amiss)
    Connection.send = wrong_echo  # type: ignore[method-assign]
    Connection.subscribe = wrong_person  # type: ignore[method-assign]


if "SOAK_DROP_ONE_IN" in os.environ:
    drop_deliveries(int(os.environ["SOAK_DROP_ONE_IN"]))
if "SOAK_PLANT" in os.environ:
    plant()
