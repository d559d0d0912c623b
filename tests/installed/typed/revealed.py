"""What type checkers see of each public name, as ``assert_type`` holds it; nothing runs this."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, assert_type
from uuid import UUID

from flask import Blueprint, Flask, Response
from flask.testing import FlaskClient
from jinja2 import Template
from markupsafe import Markup
from werkzeug.exceptions import Unauthorized
from werkzeug.routing import Map
from werkzeug.test import TestResponse
from werkzeug.wrappers import Response as AnyResponse

from flask_sockets2 import (
    Broker,
    BrokerError,
    Connection,
    ConnectionClosed,
    Firehose,
    HandshakeError,
    Limits,
    Position,
    Publisher,
    Sockets,
    Subscription,
    Turbo,
    WebSocket,
    WebSocketError,
    WebSocketRejected,
    push,
)
from flask_sockets2.firehose import early_hints, flush, hints, link
from flask_sockets2.signals import connection_opened
from flask_sockets2.sse import Message, Progress, ServerSentEventsBlueprint, sse
from flask_sockets2.testing import SocketsClient, WebSocketSession
from flask_sockets2.turbo.testing import (
    Broadcasts,
    StreamAction,
    assert_no_broadcasts,
    assert_turbo_stream,
    capture_broadcasts,
    parse_streams,
)

app = Flask(__name__)
blueprint = Blueprint("rooms", __name__)
sockets = Sockets(app)
turbo = Turbo(app)
firehose = Firehose(app)


# -- handlers ----------------------------------------------------------------------------------


@sockets.route("/rooms/<int:number>", accept=False, subprotocols=["v1"], max_message_size=1024)
def room(ws: Connection, number: int) -> str | None:
    ws.check()
    assert_type(ws.closed, bool)
    ws.accept(subprotocol="v1", headers=[("X-A", "b")])
    assert_type(ws.receive(), str | bytes | None)
    assert_type(ws.receive(timeout=None), str | bytes | None)
    assert_type(ws.receive(timeout=0.5), str | bytes | None)
    while (message := ws.receive()) is not None:
        assert_type(message, str | bytes)
        ws.send(message)
    for message in ws:
        assert_type(message, str | bytes)
        ws.send(message, binary=isinstance(message, bytes))
    while not ws.closed:
        ws.send(ws.receive())  # Flask-Sockets' loop
    ws.send(bytearray(b"1"))
    ws.send(memoryview(b"1"), binary=False)
    ws.send_frame("text", ws.OPCODE_TEXT)
    ws.send_frame(b"", Connection.OPCODE_PONG)
    ws.ping()
    ws.ping("1")
    assert_type(ws.subscribe("news"), Subscription)
    subscription = ws.subscribe(
        "news",
        since=sockets.position("news"),
        envelope=True,
        presence=True,
        identity="ada",
        gap={"lost": True},
    )
    assert_type(subscription.channel, str)
    assert_type(subscription.position, Position)
    assert_type(subscription.gap, bool)
    ws.subscribe("other", "start")
    ws.subscribe("third", since=None)
    assert_type(ws.unsubscribe("news"), bool)
    assert_type(ws.listening, bool)
    assert_type(ws.accepted, bool)
    assert_type(ws.open, bool)
    assert_type(ws.close_code, int | None)
    assert_type(ws.close_reason, str)
    assert_type(ws.subprotocol, str | None)
    assert_type(ws.subprotocols, tuple[str, ...])
    assert_type(ws.path, str | None)
    assert_type(ws.origin, str | None)
    assert_type(ws.protocol, str | None)
    assert_type(ws.version, str | None)
    assert_type(ws.environ, Mapping[str, Any])
    assert_type(ws.latency, float | None)
    assert_type(ws.ping_interval, float | None)
    assert_type(ws.ping_timeout, float | None)
    assert_type(ws.limits, Limits)
    assert_type(ws.limits.max_message_size, int)
    assert_type(Connection.opened(), list[Connection])
    ws.logger.info("%s is here", ws.handler)
    ws.close()
    ws.close(4000, "as you wish")
    ws.close(code=4000, reason=b"as you wish")
    ws.close(4000, message="as you wish")  # gevent-websocket's name
    ws.fail(4000, "as you wish")
    ws.abort("as you wish")
    ws.wait_closed(1.5)
    return "refused" if number else None


@sockets.route("/under-every-server")
def older(ws: WebSocket) -> None:
    while not ws.closed:
        assert_type(ws.receive(), str | bytes | bytearray | None)
        ws.send(ws.receive())
    ws.close(1000, "done")
    ws.close(1000, message=b"done")


@blueprint.route("/old")
def of_a_blueprint(ws: WebSocket) -> Any:  # Flask's decorator takes it for a response
    ws.send("hello")


class Handler:
    def __call__(self, ws: Connection) -> None: ...

    def method(self, ws: Connection, *, name: str) -> None: ...


def anything_that_a_connection_can_be(ws: Connection) -> WebSocket:
    sockets.add_url_rule("/object", "object", Handler())
    sockets.add_url_rule("/method/<name>", None, Handler().method, defaults={"name": "ada"})
    sockets.add_url_rule("/lambda", f=lambda ws: ws.send("hello"))
    return ws


def decorated(ws: Connection) -> None:
    room(ws, number=5)
    assert_type(room(ws, 5), str | None)
    older(ws)


def caught() -> None:
    try:
        raise WebSocketError
    except ConnectionClosed as exc:
        assert_type(exc.code, int | None)
        assert_type(exc.reason, str)
        print(exc.connection)
    except WebSocketRejected as exc:
        assert_type(exc.response, TestResponse)
    except HandshakeError as exc:
        assert_type(exc.status, int)
        assert_type(exc.description, str)
        assert_type(exc.headers, tuple[tuple[str, str], ...])
    except BrokerError as exc:
        assert_type(exc.description, str)
    except OSError:
        raise


# -- functions that are asked ------------------------------------------------------------------


@sockets.user_id
def who() -> str | None:
    return None


@turbo.user_id
async def who_of_a_page() -> int | UUID | Response | tuple[str, int]:
    return "log in", 401


@turbo.user_id
def who_or_refused() -> UUID | Unauthorized:
    return Unauthorized()


@turbo.authorize
def may_have(kind: str, *parts: str) -> bool:
    return kind == "room" and parts[0] == "5"


@sse.authorize
async def may_hear(channel: str) -> bool | Response | None:
    return channel == "news"


@turbo.every(5)
def load() -> None: ...


@turbo.every(0.5, name="later")
async def later() -> int:
    return 1


async def asked() -> None:
    assert_type(who(), str | None)
    assert_type(await who_of_a_page(), int | UUID | Response | tuple[str, int])
    assert_type(who_or_refused(), UUID | Unauthorized)
    assert_type(may_have("room", "5"), bool)
    assert_type(await may_hear("news"), bool | Response | None)
    load()
    assert_type(await later(), int)


# -- channels ----------------------------------------------------------------------------------


def noted(app: Flask, connection: Connection, **extra: Any) -> None: ...


def channels() -> None:
    assert_type(sockets.publish("news", {"any": ["JSON"]}, key="1", transient=True), Position)
    assert_type(sockets.publish_many([("news", 1), ("other", b"2")], key="1"), list[Position])
    assert_type(sockets.position("news"), Position)
    assert_type(sockets.positions(["news", "other"]), list[Position])
    assert_type(sockets.subscribers("news"), int)
    assert_type(sockets.present("news"), list[str])
    assert_type(sockets.stats(), dict[str, Any])
    assert_type(sockets.url_map, Map)
    assert_type(sockets.blueprints, dict[str, Blueprint])
    assert_type(Position.parse("9f86d081884c7d65-42"), Position | None)
    sockets.disconnect(user=5, code=4001, reason="logged out")
    sockets.register_blueprint(blueprint, url_prefix="/rooms")
    sockets.init_app(app)
    assert_type(sockets.publisher, Publisher)
    with Publisher("redis://localhost", prefix="app", history_size=10) as publisher:
        assert_type(publisher, Publisher)
        assert_type(publisher.publish("news", b"1"), Position)
        assert_type(publisher.publish_many([("news", 1)]), list[Position])
        assert_type(publisher.position("news"), Position)
        assert_type(publisher.positions(["news"]), list[Position])
        assert_type(publisher.subscribers("news"), int)
        assert_type(publisher.present("news"), list[str])
        assert_type(publisher.broker, Broker)
        publisher.disconnect(user=UUID(int=1))
    publisher.close()
    connection_opened.connect(noted)


# -- Turbo -------------------------------------------------------------------------------------


def pages() -> AnyResponse:
    assert_type(turbo(), Markup)
    assert_type(turbo.turbo(version=None, nonce="x", connect=False, user=False), Markup)
    assert_type(turbo.stream_from("room", 5, UUID(int=1), bind="session"), Markup)
    assert_type(turbo.position("room", 5), Position)
    assert_type(turbo.positions([("room", 5), ("room", 6)]), list[Position])
    turbo.stream_from("room", 5, position=turbo.position("room", 5), bind=None)
    assert_type(turbo.subscribers("room", 5), int)
    assert_type(turbo.append("<li>Milk</li>", "todos"), str)
    assert_type(turbo.prepend(Markup("<li>Milk</li>"), target="todos"), str)
    assert_type(turbo.replace(template="_todo.html", todo="Milk", target="todo"), str)
    assert_type(turbo.update(5, targets=".count"), str)
    assert_type(turbo.after("<hr>", ".todo", multiple=True), str)
    assert_type(turbo.before("<hr>", "todo", attributes={"data-a": 1}), str)
    assert_type(turbo.remove("todo"), str)
    assert_type(turbo.refresh(method="morph", scroll="preserve"), str)
    assert_type(turbo.action("log", message="hello"), str)
    assert_type(turbo.stream(turbo.remove("todo")), Response)
    assert_type(turbo.stream([turbo.remove("todo"), turbo.flashes()]), Response)
    turbo.push(turbo.remove("todo"))
    turbo.push([turbo.remove("todo")], to=5, exclude_sender=True)
    turbo.push(turbo.remove("todo"), to=["ada", UUID(int=1), None])
    assert_type(turbo.can_push(), bool)
    assert_type(turbo.can_push(to="ada"), bool)
    stream = turbo.append("<li>Milk</li>", "todos")
    assert_type(turbo.broadcast_to("room", 5, stream=stream, exclude_sender=True), Position)
    assert_type(turbo.broadcast_append_to("room", 5, content="Milk", target="todos"), Position)
    assert_type(turbo.broadcast_prepend_to("room", content="Milk", target="todos"), Position)
    assert_type(turbo.broadcast_replace_to("room", content="Milk", target="todo"), Position)
    assert_type(turbo.broadcast_update_to("room", content=5, target="count"), Position)
    assert_type(turbo.broadcast_before_to("room", content="Milk", target="todo"), Position)
    assert_type(turbo.broadcast_after_to("room", content="Milk", target="todo"), Position)
    assert_type(turbo.broadcast_remove_to("room", target="todo"), Position)
    assert_type(turbo.broadcast_refresh_to("room"), Position | None)
    assert_type(turbo.requested_frame(), str | None)
    assert_type(turbo.can_stream(), bool)
    assert_type(turbo.csrf_meta(), Markup)
    assert_type(turbo.layout("base.html"), str | Template)
    assert_type(turbo.refreshes_with(method="morph", scroll="preserve"), Markup)
    assert_type(turbo.exempts_page_from_cache(), Markup)
    assert_type(turbo.exempts_page_from_preview(), Markup)
    assert_type(turbo.page_requires_reload(), Markup)
    assert_type(turbo.render_form("form.html", form=1), Response)
    assert_type(turbo.identifies(), bool)
    assert_type(turbo.default_user_id(), str)
    assert_type(turbo.sock, Sockets | None)
    turbo.init_app(app)
    return turbo.redirect("/todos", code=303)


def after_the_commit(session: Any) -> None:
    assert_type(turbo.after_commit(session), Turbo)
    turbo.after_commit(session).push(turbo.remove("todo"))


# -- Server-Sent Events ------------------------------------------------------------------------


def events() -> Response:
    assert_type(sse, ServerSentEventsBlueprint)
    assert_type(sse.publish({"any": ["JSON"]}), int)
    assert_type(sse.publish("text", type="greeting", id=5, retry=1000, channel="news"), int)
    assert_type(sse.url("news", "other", since="start", last=5, bind=None), str)
    assert_type(sse.position("news", last=5), str)
    assert_type(sse.messages("news"), Iterator[Message])
    for message in sse.messages():
        assert_type(message.type, str | None)
        print(message.data, message.id, message.retry, message.to_dict())
    with sse.progress("job:7", total=400, interval=1.0) as bar:
        assert_type(bar, Progress)
        bar.advance(5, "reading")
        bar.update(value=5, text="reading", total=400)
        bar.done("read")
        bar.fail()
        assert_type(
            (bar.state, bar.value, bar.total, bar.text), tuple[str, float, float | None, str]
        )
    with Progress("redis://localhost", "job:7", total=400.5, interval=0.5):
        pass
    assert_type(sse.stream(), Response)
    assert_type(sse.stream_func(lambda: "text", limit=5), Response)
    return sse.stream_generator(iter(["text", {"any": "JSON"}, Message("text"), None]))


# -- Firehose ----------------------------------------------------------------------------------


@app.get("/report")
@firehose.hints("/static/app.css", lambda: "/static/app.js", learn=False)
@hints(link("/static/app.css", as_="style"))
def report() -> Response:
    assert_type(firehose.push("/static/app.css", "nopush", as_="style"), str)
    assert_type(push("/static/app.css"), str)
    assert_type(firehose.early_hints("/static/app.css"), bool)
    assert_type(early_hints("https://cdn.example.com"), bool)
    assert_type(flush("report.html", rows=[1]), Response)
    firehose.init_app(app)
    return firehose.flush("report.html", rows=lambda: [1])


class Memory:
    def get_pushed(self) -> set[str]:
        return set()

    def set_pushed(self, inset: set[str]) -> None: ...


def memories() -> None:
    assert_type(report(), Response)
    Firehose(app, connector=None)
    Firehose(app, connector=Memory())
    Firehose(app, Memory)


# -- tests -------------------------------------------------------------------------------------


def test_everything(client: FlaskClient, sockets_client: SocketsClient) -> None:
    assert_type(sockets.test_client(app), SocketsClient)
    assert_type(sockets.test_client(client), SocketsClient)
    assert_type(sockets_client.http, FlaskClient)
    session = sockets_client.connect(
        "/rooms/5",
        headers={"X-A": "b"},
        subprotocols=["v1"],
        origin="https://example.com",
        compression=True,
        timeout=5,
        environ_base={"REMOTE_ADDR": "192.0.2.1"},
    )
    assert_type(session, WebSocketSession)
    with session as ws:
        assert_type(ws, WebSocketSession)
        ws.send("hello")
        ws.send(b"hello")
        assert_type(ws.receive(), str | bytes | None)
        assert ws.receive(timeout=1) == "hello"
        for message in ws:
            assert_type(message, str | bytes)
        assert_type(ws.ping(b"1"), bool)
        assert_type(ws.closed, bool)
        assert_type(ws.close_code, int | None)
        assert_type(ws.close_reason, str | None)
        assert_type(ws.subprotocol, str | None)
        assert_type(ws.headers["Upgrade"], str)
        ws.close(1000, "done")


def test_streams(client: FlaskClient) -> None:
    with capture_broadcasts(turbo, "room", 5) as broadcasts:
        assert_type(broadcasts, Broadcasts)
    with capture_broadcasts(app, to="ada"), assert_no_broadcasts(app, to=5):
        pass
    assert_type(broadcasts.actions, list[StreamAction])
    assert_type(broadcasts.of("room", 5), Broadcasts)
    assert_type(broadcasts.of(to=5)[0].markup, str)
    assert_type(assert_turbo_stream(client.post("/todos"), action="append"), list[StreamAction])
    assert_type(parse_streams(turbo.remove("todo"))[0].content, str | None)
