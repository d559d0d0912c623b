"""What type checkers refuse, since it fails when it runs; nothing runs this."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from flask import Flask

from flask_sockets2 import Connection, Firehose, Publisher, Sockets, Turbo, WebSocket
from flask_sockets2.sse import Message, sse
from flask_sockets2.testing import WebSocketSession

app = Flask(__name__)
sockets = Sockets(app)
turbo = Turbo(app)


@sockets.route("/echo")
def echo(ws: Connection) -> None:
    ws.send({"a": 1})  # error: no JSON: json.dumps() first
    ws.send(5)  # error: neither text nor bytes
    ws.send(["a", "b"])  # error: one message a call
    json.loads(ws.receive())  # error: it may have ended
    ws.receive().strip()  # error: it may have ended
    ws.receive("5")  # error: seconds
    for message in ws:
        message.encode()  # error: it may be binary
    ws.send_json({"a": 1})  # error: there is none
    ws.subscribe(5)  # error: a channel is a text
    ws.subscribe("news", since=5)  # error: a position is no number
    ws.subscribe("news", identity=5)  # error: a text, as str(user.id)
    ws.subscribe("news", None, True)  # error: by keyword
    print(ws.subscribe("news").offset)  # error: of its position
    ws.close("done")  # error: the code comes first
    ws.close(4000, 5)  # error: a reason is a text
    ws.ping(5)  # error: text or bytes
    ws.accept(headers={"X-A": "b"})  # error: pairs
    print(ws.close_code + 1)  # error: None before the end
    ws.closed()  # error: no method


@sockets.route("/older")
def older(ws: WebSocket) -> None:
    ws.send({"a": 1})  # error: no JSON
    ws.receive(timeout=5)  # error: not under every server
    ws.subscribe("news")  # error: not under every server


@sockets.route("/no-connection")  # error: a handler is given ws
def without() -> None: ...


@sockets.route("/another")  # error: ws is no text
def another(ws: str) -> None: ...


@sockets.user_id  # error: an id is a str, an int or a UUID
def user() -> dict[str, str]:
    return {"id": "ada"}


@sockets.user_id  # error: nothing is given to it
def user_of(name: str) -> str:
    return name


@turbo.user_id  # error: an id, awaited or not
async def later_user() -> float:
    return 1.5


@turbo.authorize  # error: True, False or None
def may_have(kind: str) -> str:
    return "yes"


@sse.authorize  # error: the name of the channel is given to it
def may_hear() -> bool:
    return True


@sse.authorize  # error: nothing iterates it
async def may_hear_later(channel: str) -> AsyncIterator[bool]:
    yield True


@turbo.every(5)  # error: nothing is given to a job
def job(name: str) -> None: ...


turbo.every("5")  # error: seconds
sockets.add_url_rule("/rule", "rule", 5)  # error: no function
sockets.publish(5, "text")  # error: a channel is a text
sockets.publish_many(["text"])  # error: pairs
sockets.disconnect(user=None)  # error: nobody
sockets.disconnect("ada")  # error: by keyword
sockets.test_client("app")  # error: an application
Publisher()  # error: where the broker is
Firehose(app, connector=5)  # error: no memory
turbo.push(5)  # error: no stream
turbo.push("", to=5.5)  # error: no id of a user
turbo.broadcast_to("room", 5)  # error: which stream
turbo.stream_from("room", 5.5)  # error: a part of a name
turbo.stream(5)  # error: no stream
sse.publish("text", retry="5")  # error: milliseconds
sse.publish("text", channel=5)  # error: a channel is a text
sse.progress("job", blueprint="events")  # error: its own
Message("text", type=5)  # error: a text


def test_echo(ws: WebSocketSession, anything: dict[str, Any]) -> None:
    ws.send(anything)  # error: no JSON
    json.loads(ws.receive())  # error: it may have ended
