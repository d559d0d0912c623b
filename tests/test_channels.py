"""Channels as an application uses them: ``sockets.publish()``, ``ws.subscribe()`` and the rest."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from time import monotonic
from typing import Any
from uuid import UUID

import pytest
from blinker import NamedSignal
from flask import Flask, request
from flask.json.provider import DefaultJSONProvider

from flask_sockets2 import (
    BrokerError,
    ConnectionClosed,
    Position,
    Publisher,
    Sockets,
    Subscription,
    WebSocketRejected,
    signals,
)
from flask_sockets2.application.event_stream import stream_response
from flask_sockets2.application.state import state_of
from flask_sockets2.brokers import memory
from flask_sockets2.sse import ServerSentEventsBlueprint
from flask_sockets2.testing import SocketsClient, WebSocketSession
from tests import clients
from tests.brokers.servers import RedisServer, redis_or_skip
from tests.connections import tcp_pair
from tests.processes import Server, unused_port, wait_until
from tests.wire_client import HANDSHAKE, TEXT, WireClient, connect, frame

TIMEOUT = 60.0  # seconds, for each wait
SUBSCRIBED = "subscribed "


def app_with(**settings: Any) -> Flask:
    app = Flask(__name__)
    app.config.update({f"SOCKETS_{name.upper()}": value for name, value in settings.items()})
    return app


@pytest.fixture
def app() -> Flask:
    return app_with(presence_grace=0.05)


@pytest.fixture
def sockets(app: Flask) -> Sockets:
    return Sockets(app)


@pytest.fixture
def client(app: Flask, sockets: Sockets) -> SocketsClient:
    return sockets.test_client(app)


@pytest.fixture
def broker() -> Iterator[RedisServer]:
    """A broker that a test may do to what it likes."""
    yield from redis_or_skip()


def subscribing(channel: str = "news", **how: Any) -> Callable[[Any], None]:
    """A handler that subscribes, tells how that began and returns."""

    def handler(ws: Any) -> None:
        subscription = ws.subscribe(channel, **{"since": request.args.get("since"), **how})
        assert isinstance(subscription, Subscription)
        assert subscription.channel == channel
        ws.send(SUBSCRIBED + json.dumps([str(subscription.position), subscription.gap]))

    return handler


class Listener:
    """A client that has subscribed, for a ``with`` statement.

    :ivar position: of the subscription.
    :ivar gap: whether that began with a gap.
    """

    def __init__(self, client: SocketsClient, path: str = "/news", **options: Any) -> None:
        self.session = client.connect(path, **options)
        self._early: list[Any] = []
        while not str(message := self.session.receive(TIMEOUT)).startswith(SUBSCRIBED):
            assert message is not None, f"closed with {self.session.close_code}"
            self._early.append(message)
        told = json.loads(message.removeprefix(SUBSCRIBED))
        self.position: str = told[0]
        self.gap: bool = told[1]

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *error: Any) -> None:
        self.session.__exit__(*error)

    def next(self) -> Any:
        """The next message, as it is."""
        return self._early.pop(0) if self._early else self.session.receive(TIMEOUT)

    def envelope(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.next())
        return found

    def data(self, count: int) -> list[Any]:
        """What the next envelopes hold, none of which may be an event."""
        envelopes = [self.envelope() for _ in range(count)]
        assert [each for each in envelopes if "event" in each] == []
        return [each["data"] for each in envelopes]


def closing(ws: WebSocketSession) -> int | None:
    """Wait for the end; return the close code."""
    while ws.receive(timeout=TIMEOUT) is not None:
        pass
    return ws.close_code


def refusal(client: SocketsClient, path: str) -> Any:
    """The response that a WebSocket is answered with instead."""
    with pytest.raises(WebSocketRejected) as refused:
        client.connect(path)
    return refused.value.response


def error_of(sockets: Sockets, function: Callable[[Any], Any]) -> str:
    """Type and text of what a function of a connection raises."""
    said: list[str] = []

    @sockets.route("/error")
    def error(ws: Any) -> None:
        try:
            function(ws)
        except Exception as exc:
            said.append(f"{type(exc).__name__}: {exc}")

    (app,) = sockets._served()
    with sockets.test_client(app).connect("/error"):
        wait_until(lambda: said, "the error")
    return said[0]


class Noted:
    """A receiver of a signal that notes with what it was called."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, dict[str, Any]]] = []

    def __call__(self, sender: Any, **what: Any) -> None:
        self.calls.append((sender, what))


# -- publishing ----------------------------------------------------------------------------


def test_views_handlers_threads_and_scripts_publish(
    app: Flask, sockets: Sockets, client: SocketsClient
) -> None:
    sockets.route("/news")(subscribing())

    @app.post("/publish")
    def publish() -> str:
        return str(sockets.publish("news", "from a view"))

    @sockets.route("/publish")
    def handler(ws: Any) -> None:
        sockets.publish("news", "from a handler")

    def in_thread() -> None:
        sockets.publish("news", "from a thread")

    with Listener(client) as listener:
        position = client.http.post("/publish").text
        assert position == str(sockets.position("news"))
        assert listener.next() == "from a view"
        with client.connect("/publish"):
            assert listener.next() == "from a handler"
        thread = threading.Thread(target=in_thread)
        thread.start()
        thread.join()
        assert listener.next() == "from a thread"
        sockets.publish("news", "from outside")
        assert listener.next() == "from outside"
        with app.app_context():
            sockets.publish("news", "from a command")
        assert listener.next() == "from a command"


def test_a_handler_hears_what_it_publishes_through_the_channel_only(
    sockets: Sockets, client: SocketsClient
) -> None:
    @sockets.route("/talk")
    def talk(ws: Any) -> None:
        ws.subscribe("talk")
        for message in ws:
            sockets.publish("talk", message)

    with client.connect("/talk") as one, client.connect("/talk") as other:
        wait_until(lambda: sockets.subscribers("talk") == 2, "both to subscribe")
        for number in range(20):
            (one if number % 2 else other).send(str(number))
        said = [one.receive() for _ in range(20)]
        assert sorted(said, key=int) == [str(number) for number in range(20)]
        assert [other.receive() for _ in range(20)] == said


def test_text_bytes_and_json_come_as_what_they_are(sockets: Sockets, client: SocketsClient) -> None:
    sockets.route("/plain")(subscribing())
    sockets.route("/enveloped")(subscribing(envelope=True))
    published = [
        "text",
        "",
        b"\x00\xff",
        bytearray(b"a"),
        memoryview(b"abcdef")[::2],
        {"ü": [None]},
    ]
    with Listener(client, "/plain") as plain, Listener(client, "/enveloped") as enveloped:
        positions = [str(sockets.publish("news", data)) for data in published]
        assert [plain.next() for _ in range(5)] == ["text", "", b"\x00\xff", b"a", b"ace"]
        assert json.loads(plain.next()) == {"ü": [None]}
        envelopes = [enveloped.envelope() for _ in positions]
    assert [each["position"] for each in envelopes] == positions
    assert {each["channel"] for each in envelopes} == {"news"}
    assert [(each["data"], each.get("encoding")) for each in envelopes] == [
        ("text", None),
        ("", None),
        ("AP8=", "base64"),
        ("YQ==", "base64"),
        ("YWNl", "base64"),
        ({"ü": [None]}, None),
    ]


@pytest.mark.parametrize("data", [None, True, 7, 0.5, [], {}, ["text"]])
def test_what_json_has_is_json(data: Any, sockets: Sockets, client: SocketsClient) -> None:
    sockets.route("/news")(subscribing(envelope=True))
    with Listener(client) as listener:
        sockets.publish("news", data)
        (came,) = listener.data(1)
    assert came == data
    assert type(came) is type(data)


def test_json_is_made_as_flask_makes_it(sockets: Sockets, client: SocketsClient) -> None:
    sockets.route("/news")(subscribing(envelope=True))
    when, number = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC), UUID(int=1)
    with Listener(client) as listener:
        sockets.publish("news", {"when": when, "price": Decimal("1.10"), "id": number})
        assert listener.data(1) == [
            {"when": "Wed, 04 Mar 2026 05:06:07 GMT", "price": "1.10", "id": str(number)}
        ]


def test_json_is_made_by_the_applications_own_provider(
    app: Flask, sockets: Sockets, client: SocketsClient
) -> None:
    class Provider(DefaultJSONProvider):
        ensure_ascii = False

        @staticmethod
        def default(value: Any) -> Any:
            return value.isoformat() if isinstance(value, datetime) else f"a {value!r}"

    app.json = Provider(app)
    sockets.route("/news")(subscribing(gap=[datetime(2026, 3, 4)]))
    with Listener(client, "/news?since=nonsense") as listener:
        assert listener.next() == '["2026-03-04T00:00:00"]'
        sockets.publish("news", {"when": datetime(2026, 3, 4), "what": {1j}, "ü": 1})
        assert listener.next() == '{"what": "a {1j}", "when": "2026-03-04T00:00:00", "ü": 1}'


@pytest.mark.parametrize("data", [object(), {"a": {1, 2}}, ["a", 1j], print])
def test_what_cannot_be_serialised_is_a_type_error_and_publishes_nothing(
    data: Any, sockets: Sockets
) -> None:
    before = sockets.position("news")
    with pytest.raises(TypeError, match=r"type \w+ is not JSON serializable"):
        sockets.publish("news", data)
    with pytest.raises(TypeError, match="is not JSON serializable"):
        sockets.publish_many([("news", "first"), ("news", data)])
    assert sockets.position("news") == before


def circular() -> list[Any]:
    data: list[Any] = []
    data.append({"again": data})
    return data


def deep() -> list[Any]:
    data: list[Any] = []
    for _ in range(100_000):
        data = [data]
    return data


@pytest.mark.parametrize(
    ("data", "kind", "reason"),
    [
        (
            {1: 2, "b": 1},
            TypeError,
            "keys of a dict are of several types, which app.json.sort_keys",
        ),
        ([{None: 1, 2: 3}], TypeError, "keys of a dict are of several types"),
        ({(1, 2): 3}, TypeError, "keys must be str, int, float, bool or None, not tuple"),
        ({"secret", 1}, TypeError, "type set is not JSON serializable"),
        ({"a": b"secret"}, TypeError, "type bytes is not JSON serializable"),
        ([1j], TypeError, "type complex is not JSON serializable"),
        ({"a": float("nan")}, ValueError, "not JSON compliant"),
        ([float("-inf")], ValueError, "not JSON compliant"),
        (circular(), ValueError, "Circular reference detected"),
        (deep(), ValueError, "it has too many levels"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else value[:20],
)
def test_what_json_does_not_have_is_named_with_its_channel_and_the_remedy(
    data: Any, kind: type[Exception], reason: str, app: Flask, sockets: Sockets
) -> None:
    events = ServerSentEventsBlueprint("sse", __name__, url_prefix="/stream")
    app.register_blueprint(events)
    publisher = Publisher("redis://localhost")
    alone = [] if "sort_keys" in reason or "several" in reason else [publisher.publish]
    with app.app_context():
        for publish in (
            sockets.publish,
            lambda channel, data: sockets.publish_many([("first", 1), (channel, data)]),
            lambda channel, data: events.publish(data, channel=channel),
            *alone,  # without an application nothing is sorted
        ):
            with pytest.raises(kind) as caught:
                publish("news", data)
            assert str(caught.value).startswith(
                f"the {type(data).__name__} for channel 'news' cannot become JSON: "
            )
            assert reason in str(caught.value)
            assert "; use a dict with keys of str, list, str, int, finite float" in str(
                caught.value
            )
            assert "secret" not in str(caught.value)
        assert sockets.position("first").offset == 0


@pytest.mark.parametrize("data", [float("nan"), {"a": [float("inf")]}])
def test_numbers_that_no_browser_can_parse_are_a_value_error(data: Any, sockets: Sockets) -> None:
    before = sockets.position("news")
    with pytest.raises(ValueError, match="not JSON compliant"):
        sockets.publish("news", data)
    assert sockets.position("news") == before


def test_text_that_utf_8_does_not_have_is_a_value_error(sockets: Sockets) -> None:
    before = sockets.position("news")
    with pytest.raises(ValueError, match="the text for channel 'news' cannot hold half a"):
        sockets.publish("news", "\ud83d")
    assert sockets.position("news") == before


@pytest.mark.parametrize("size", [100, 101])
@pytest.mark.parametrize(
    ("kind", "make"),
    [("text", "x".__mul__), ("bytes", b"x".__mul__), ("JSON", lambda size: ["x" * (size - 4)])],
    ids=["text", "bytes", "JSON"],
)
def test_a_message_is_as_big_as_the_setting_lets_it_be(
    kind: str, make: Callable[[int], Any], size: int
) -> None:
    app = app_with(max_message_size=100)
    sockets = Sockets(app)
    before = sockets.position("news").offset
    if size == 100:
        sockets.publish("news", make(size))
        sockets.publish_many([("news", make(size))] * 2)
        assert sockets.position("news").offset == before + 3
        return
    message = "a message of 101 bytes is over the limit of 100; .*SOCKETS_MAX_MESSAGE_SIZE"
    with pytest.raises(ValueError, match=message):
        sockets.publish("news", make(size))
    with pytest.raises(ValueError, match=message):
        sockets.publish_many([("news", "first"), ("news", make(size))])
    assert sockets.position("news").offset == before


def test_the_size_of_text_is_that_of_its_utf_8() -> None:
    app = app_with(max_message_size=100)  # which Sockets holds only weakly
    sockets = Sockets(app)
    sockets.publish("news", "é" * 50)
    with pytest.raises(ValueError, match="a message of 102 bytes"):
        sockets.publish("news", "é" * 51)


def test_a_transient_message_is_heard_and_not_kept(sockets: Sockets, client: SocketsClient) -> None:
    sockets.route("/news")(subscribing(envelope=True))
    with Listener(client) as listener:
        first = sockets.publish("news", "first")
        assert sockets.publish("news", "is typing", transient=True) == first
        sockets.publish("news", "last")
        envelopes = [listener.envelope() for _ in range(3)]
    assert [each["data"] for each in envelopes] == ["first", "is typing", "last"]
    assert ["position" in each for each in envelopes] == [True, False, True]
    with Listener(client, "/news?since=start") as late:
        sockets.publish("news", "end")
        assert late.data(3) == ["first", "last", "end"]


def test_many_messages_are_published_in_their_order(
    sockets: Sockets, client: SocketsClient
) -> None:
    """More than are published in one go, and from any iterable."""
    sockets.route("/news")(subscribing("a"))
    with Listener(client) as listener:
        positions = sockets.publish_many(("ab"[i % 2], str(i)) for i in range(300))
        assert [position.offset for position in positions] == [i // 2 + 1 for i in range(300)]
        assert [listener.next() for _ in range(150)] == [str(i) for i in range(0, 300, 2)]
    assert sockets.position("a") == positions[-2]
    assert sockets.position("b") == positions[-1]
    assert sockets.publish_many([]) == []


NAMES: list[tuple[Any, str]] = [
    ("", "ValueError: a channel's name is 1 to 1024 bytes long, got 0"),
    ("x" * 1025, "ValueError: a channel's name is 1 to 1024 bytes long, got 1025"),
    ("é" * 513, "ValueError: a channel's name is 1 to 1024 bytes long, got 1026"),
    ("\udc80", "ValueError: a channel's name cannot hold half a surrogate pair"),
    (b"news", "TypeError: a channel's name is a str, got bytes"),
    (None, "TypeError: a channel's name is a str, got NoneType"),
    (7, "TypeError: a channel's name is a str, got int"),
]


@pytest.mark.parametrize(("name", "error"), NAMES, ids=lambda value: repr(value)[:30])
def test_what_is_no_name_of_a_channel_is_refused_everywhere(
    name: Any, error: str, sockets: Sockets
) -> None:
    for call in (
        lambda: sockets.publish(name, "x"),
        lambda: sockets.publish_many([("news", "x"), (name, "x")]),
        lambda: sockets.position(name),
        lambda: sockets.subscribers(name),
        lambda: sockets.present(name),
    ):
        with pytest.raises((TypeError, ValueError)) as caught:
            call()
        assert f"{type(caught.value).__name__}: {caught.value}" == error
    assert error_of(sockets, lambda ws: ws.subscribe(name)) == error
    assert sockets.position("news").offset == 0


def test_before_there_is_an_application_nothing_can_be_published() -> None:
    with pytest.raises(RuntimeError, match=r"serve no application; call init_app\(app\) first"):
        Sockets().publish("news", "x")


# -- positions -----------------------------------------------------------------------------


def test_a_page_carries_its_position_so_that_nothing_is_lost_before_it_connects(
    app: Flask, sockets: Sockets, client: SocketsClient
) -> None:
    sockets.route("/news")(subscribing(envelope=True))

    @app.route("/")
    def page() -> str:
        return str(sockets.position("news"))

    sockets.publish("news", "shown by the page")
    position = client.http.get("/").text
    sockets.publish_many([("news", "between"), ("news", "both")])
    with Listener(client, f"/news?since={position}") as listener:
        assert not listener.gap
        sockets.publish("news", "after")
        assert listener.data(3) == ["between", "both", "after"]


def test_a_page_of_an_empty_channel_has_a_position_too(
    sockets: Sockets, client: SocketsClient
) -> None:
    sockets.route("/news")(subscribing(envelope=True))
    position = sockets.position("news")
    assert position.offset == 0
    sockets.publish("news", "first")
    with Listener(client, f"/news?since={position}") as listener:
        assert (listener.gap, listener.position) == (False, str(sockets.position("news")))
        assert listener.data(1) == ["first"]


def test_a_client_comes_back_again_and_again_and_gets_everything_once(
    sockets: Sockets, client: SocketsClient
) -> None:
    """While another thread never stops publishing."""
    sockets.route("/news")(subscribing(envelope=True))
    count = 3000
    sockets._served()[0].config["SOCKETS_HISTORY_SIZE"] = count
    position = str(sockets.position("news"))

    def publish() -> None:
        for number in range(count):
            sockets.publish("news", number)

    thread = threading.Thread(target=publish)
    came: list[int] = []
    thread.start()
    try:
        while len(came) < count:
            with Listener(client, f"/news?since={position}") as listener:
                assert not listener.gap
                for _ in range(min(50, count - len(came))):
                    envelope = listener.envelope()
                    came.append(envelope["data"])
                    position = envelope["position"]
    finally:
        thread.join()
    assert came == list(range(count))


@pytest.mark.parametrize("since", ["", None])
def test_without_a_position_it_begins_with_what_comes(
    since: str | None, sockets: Sockets, client: SocketsClient
) -> None:
    sockets.route("/news")(subscribing(envelope=True, since=since))
    here = sockets.publish("news", "old")
    with Listener(client) as listener:
        assert (listener.position, listener.gap) == (str(here), False)
        sockets.publish("news", "new")
        assert listener.data(1) == ["new"]


def test_start_is_all_that_the_history_holds(sockets: Sockets, client: SocketsClient) -> None:
    sockets.route("/news")(subscribing(envelope=True))
    *_, last = [sockets.publish("news", number) for number in range(120)]
    with Listener(client, "/news?since=start") as listener:
        assert (listener.position, listener.gap) == (str(last), False)
        assert listener.data(100) == list(range(20, 120))  # SOCKETS_HISTORY_SIZE is 100


def test_a_position_object_will_do(sockets: Sockets, client: SocketsClient) -> None:
    first = sockets.publish("news", "first")
    sockets.publish("news", "second")
    assert first == Position(first.epoch, 1)
    sockets.route("/news")(subscribing(envelope=True, since=first))
    with Listener(client) as listener:
        assert listener.data(1) == ["second"]


@pytest.mark.parametrize(
    "since",
    [
        "nonsense",
        "Start",
        "0",
        "-",  # of a page that was made while the broker was away
        "-1",
        "0123456789abcdef-1",  # of another log
        "{epoch}-4",  # not reached yet
        "{epoch}-01",
        "{epoch}-1 ",
        "{epoch}-" + "9" * 40,
        "x" * 100_000,
        "\x00\ud800",
    ],
    ids=lambda since: repr(since)[:25],
)
def test_what_is_no_position_here_is_one_gap_and_then_what_comes(
    since: str, sockets: Sockets, client: SocketsClient
) -> None:
    position = sockets.publish_many([("news", number) for number in range(3)])[-1]
    since = since.replace("{epoch}", position.epoch)
    noted = Noted()
    with signals.gap_told.connected_to(noted):
        sockets.route("/news")(subscribing(envelope=True, since=since))
        with Listener(client) as listener:
            assert (listener.position, listener.gap) == (str(position), True)
            assert listener.envelope() == {
                "channel": "news",
                "position": str(position),
                "event": "gap",
            }
            sockets.publish("news", "new")
            assert listener.data(1) == ["new"]
    assert [what for _, what in noted.calls] == [{"channel": "news"}]
    assert sockets.stats()["channels"]["news"]["gaps"] == 1


@pytest.mark.parametrize("since", [7, b"start", ["start"], True])
def test_a_position_of_another_type_is_the_programs_error(since: Any, sockets: Sockets) -> None:
    said = error_of(sockets, lambda ws: ws.subscribe("news", since=since))
    assert said == f"TypeError: since= is a position as text, got {type(since).__name__}"
    assert sockets.subscribers("news") == 0


@pytest.mark.parametrize(
    ("gap", "sent"),
    [("reload!", "reload!"), ("", ""), (b"\x00", b"\x00"), ({"reload": True}, '{"reload": true}')],
)
@pytest.mark.parametrize("envelope", [False, True])
def test_a_gap_is_told_as_the_application_has_it(
    envelope: bool, gap: Any, sent: str | bytes, sockets: Sockets, client: SocketsClient
) -> None:
    sockets.route("/news")(subscribing(gap=gap, envelope=envelope))
    with Listener(client, "/news?since=nonsense") as listener:
        assert listener.gap
        assert listener.next() == sent


def test_a_plain_client_is_told_of_no_gap_but_its_handler_is(
    sockets: Sockets, client: SocketsClient
) -> None:
    sockets.route("/news")(subscribing())
    with Listener(client, "/news?since=nonsense") as listener:
        assert listener.gap
        sockets.publish("news", "new")
        assert listener.next() == "new"


def test_a_gap_that_cannot_be_serialised_is_the_programs_error(sockets: Sockets) -> None:
    said = error_of(sockets, lambda ws: ws.subscribe("news", gap=object()))
    assert said.startswith(
        "TypeError: the object for gap= cannot become JSON: Object of type object is not JSON "
    )
    assert sockets.subscribers("news") == 0


# -- subscriptions -------------------------------------------------------------------------


def test_one_connection_subscribes_to_several_channels_as_different_clients_would(
    sockets: Sockets, client: SocketsClient
) -> None:
    @sockets.route("/all")
    def everything(ws: Any) -> None:
        ws.subscribe("plain")
        ws.subscribe("enveloped", envelope=True)
        subscribing("last")(ws)

    with Listener(client, "/all") as listener:
        sockets.publish("plain", "one")
        position = sockets.publish("enveloped", "two")
        sockets.publish("other", "nobody")
        sockets.publish("last", "three")
        said = sorted([listener.next() for _ in range(3)])
        assert said[:2] == ["one", "three"]
        assert json.loads(said[2]) == {
            "channel": "enveloped",
            "position": str(position),
            "data": "two",
        }


def test_subscribing_twice_is_an_error_and_changes_nothing(
    sockets: Sockets, client: SocketsClient
) -> None:
    @sockets.route("/news")
    def news(ws: Any) -> None:
        subscribing()(ws)
        for how in ({}, {"since": "start"}, {"envelope": True, "identity": "ann"}):
            with pytest.raises(ValueError, match=r"already subscribed to 'news'; unsubscribe\(\)"):
                ws.subscribe("news", **how)
        ws.send("tried")

    with Listener(client) as listener:
        assert listener.next() == "tried"
        sockets.publish("news", "once")
        sockets.publish("news", "last")
        assert [listener.next(), listener.next()] == ["once", "last"]
        assert sockets.subscribers("news") == 1
        assert sockets.present("news") == []


def test_unsubscribing_ends_it_and_it_can_begin_again(
    sockets: Sockets, client: SocketsClient
) -> None:
    @sockets.route("/news")
    def news(ws: Any) -> None:
        for message in ws:
            ws.send(str(getattr(ws, message)("news")))

    def call(ws: WebSocketSession, method: str) -> str:
        ws.send(method)
        answer: str = ws.receive(TIMEOUT)
        return answer

    with client.connect("/news") as ws:
        assert call(ws, "unsubscribe") == "False"
        assert call(ws, "subscribe").startswith("Subscription(channel='news'")
        sockets.publish("news", "one")
        assert ws.receive(TIMEOUT) == "one"
        assert sockets.subscribers("news") == 1
        assert call(ws, "unsubscribe") == "True"
        assert sockets.subscribers("news") == 0
        sockets.publish("news", "two")
        assert call(ws, "unsubscribe") == "False"
        assert call(ws, "subscribe").startswith("Subscription(channel='news'")
        sockets.publish("news", "three")
        assert ws.receive(TIMEOUT) == "three"


def test_subscribing_accepts(sockets: Sockets, client: SocketsClient) -> None:
    sockets.route("/news", accept=False)(subscribing())
    with Listener(client) as listener:
        sockets.publish("news", "hello")
        assert listener.next() == "hello"


def test_a_connection_that_has_ended_cannot_subscribe(
    sockets: Sockets, client: SocketsClient
) -> None:
    errors: list[ConnectionClosed] = []

    @sockets.route("/news")
    def news(ws: Any) -> None:
        for _ in ws:
            pass
        with pytest.raises(ConnectionClosed) as caught:
            ws.subscribe("news")
        errors.append(caught.value)

    with client.connect("/news") as ws:
        ws.close(4000, "bye")
    assert [(error.code, error.reason) for error in errors] == [(4000, "bye")]
    assert sockets.subscribers("news") == 0


def test_another_threads_call_closes_a_listener_as_the_application_wants_it(
    sockets: Sockets, client: SocketsClient
) -> None:
    connections: list[Any] = []

    @sockets.route("/news")
    def news(ws: Any) -> None:
        connections.append(ws)
        subscribing()(ws)

    with Listener(client) as listener:
        (ws,) = connections
        ws.send("for you")
        assert listener.next() == "for you"
        ws.close(4003, "no longer allowed")
        assert listener.next() is None
        assert (listener.session.close_code, listener.session.close_reason) == (
            4003,
            "no longer allowed",
        )
    assert sockets.subscribers("news") == 0


def test_a_compressed_connection_gets_channels_and_other_messages_whole(
    sockets: Sockets, client: SocketsClient
) -> None:
    """What a channel sends is compressed once for all, what a handler sends for its client."""
    text = "It rains and rains and rains. " * 20

    @sockets.route("/news", compression=True)
    def news(ws: Any) -> None:
        subscribing()(ws)
        for _ in range(3):
            ws.send(text)
            sockets.publish("news", text)
            ws.receive()

    with Listener(client, "/news", compression=True) as listener:
        assert "permessage-deflate" in listener.session.headers["Sec-WebSocket-Extensions"]
        for _ in range(3):
            assert [listener.next(), listener.next()] == [text, text]
            listener.session.send("next")
    size = sockets.stats()["channels"]["news"]["bytes_out"]
    assert 0 < size < 3 * 100


# -- who is there --------------------------------------------------------------------------


def test_who_is_there_who_joins_and_who_leaves_is_told(
    sockets: Sockets, client: SocketsClient
) -> None:
    @sockets.route("/room/<name>")
    def room(ws: Any, name: str) -> None:
        subscribing("room", envelope=True, presence=True, identity=name)(ws)

    def of(listener: Listener) -> tuple[Any, ...]:
        envelope = listener.envelope()
        assert envelope.pop("channel") == "room"
        return tuple(envelope.values())

    with Listener(client, "/room/ann") as ann:
        assert of(ann) == ("presence", ["ann"])
        assert of(ann) == ("join", "ann")  # her own: it was published to all who listen
        assert sockets.present("room") == ["ann"]
        with Listener(client, "/room/bob") as bob, Listener(client, "/room/bob") as second:
            assert of(ann) == ("join", "bob")
            assert of(bob) == ("presence", ["ann", "bob"])
            assert of(second) == ("presence", ["ann", "bob"])
            assert sockets.present("room") == ["ann", "bob"]
            assert sockets.subscribers("room") == 3
        assert of(ann) == ("leave", "bob")
        assert sockets.present("room") == ["ann"]
        assert sockets.subscribers("room") == 1
    wait_until(lambda: sockets.present("room") == [], "ann to leave")


def test_who_looks_is_not_seen_and_who_is_seen_need_not_look(
    sockets: Sockets, client: SocketsClient
) -> None:
    sockets.route("/bot")(subscribing("room", envelope=True, presence=True))
    sockets.route("/user")(subscribing("room", identity="ann"))
    with Listener(client, "/bot") as bot, Listener(client, "/user") as user:
        assert bot.envelope()["identities"] == []
        assert bot.envelope()["identity"] == "ann"
        sockets.publish("room", "hello")
        assert user.next() == "hello"
        assert sockets.present("room") == ["ann"]


def test_leaving_a_channel_leaves_its_people(sockets: Sockets, client: SocketsClient) -> None:
    @sockets.route("/room")
    def room(ws: Any) -> None:
        subscribing("room", identity="ann")(ws)
        ws.receive()
        ws.unsubscribe("room")
        ws.receive()

    with Listener(client, "/room") as listener:
        assert sockets.present("room") == ["ann"]
        listener.session.send("go")
        wait_until(lambda: sockets.present("room") == [], "ann to leave")
        assert sockets.subscribers("room") == 0


@pytest.mark.parametrize(
    ("how", "error"),
    [
        (
            {"presence": True},
            "ValueError: presence=True needs envelope=True: who joins comes in an envelope",
        ),
        ({"identity": ""}, "ValueError: identity= is 1 to 1024 bytes long, got 0"),
        ({"identity": "é" * 513}, "ValueError: identity= is 1 to 1024 bytes long, got 1026"),
        ({"identity": "\ud800"}, "ValueError: identity= cannot hold half a surrogate pair"),
        ({"identity": 7}, "TypeError: identity= is a str, got int; use str(user.id)"),
    ],
    ids=["presence", "empty", "long", "surrogate", "number"],
)
def test_what_is_no_identity_is_refused(how: Any, error: str, sockets: Sockets) -> None:
    assert error_of(sockets, lambda ws: ws.subscribe("room", **how)) == error
    assert sockets.subscribers("room") == 0


# -- settings ------------------------------------------------------------------------------


def kept(sockets: Sockets, count: int, data: str = "x") -> int:
    """How many of so many messages are in the history."""
    (app,) = sockets._served()
    sockets.route("/kept")(subscribing("kept"))
    sockets.publish_many([("kept", data)] * count)
    with Listener(sockets.test_client(app), "/kept?since=start") as listener:
        sockets.publish("kept", "end")
        found = 0
        while listener.next() != "end":
            found += 1
    return found


@pytest.mark.parametrize(
    ("settings", "data", "expected"),
    [
        ({}, "x", 100),
        ({"history_size": 3}, "x", 3),
        ({"history_size": 0}, "x", 0),
        ({"history_bytes": 25}, "x" * 10, 2),
        ({"history_size": 1000, "history_bytes": 10}, "x" * 10, 1),
    ],
    ids=["default", "size", "none", "bytes", "both"],
)
def test_the_history_is_as_long_as_it_is_set(
    settings: dict[str, Any], data: str, expected: int
) -> None:
    assert kept(Sockets(app_with(**settings)), 120, data) == expected


@pytest.mark.parametrize(("later", "gap"), [(59.0, False), (61.0, True)])
def test_the_history_is_kept_for_as_long_as_is_set(
    later: float, gap: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(memory, "monotonic", lambda: now)
    app = app_with(history_ttl=60)
    sockets = Sockets(app)
    sockets.route("/news")(subscribing(envelope=True))
    old = sockets.publish("news", "old")
    new = sockets.publish("news", "new")
    now += later
    with Listener(sockets.test_client(app), f"/news?since={old}") as listener:
        assert listener.gap is gap
    with Listener(sockets.test_client(app), f"/news?since={new}") as listener:
        assert not listener.gap  # however long ago: nothing was missed


@pytest.mark.parametrize(
    ("since", "told"), [("junk", 1), ("Start", 1), ("start", 0), ("-", 0), ("", 0)]
)
def test_a_position_that_is_none_is_told_in_debug_mode(
    since: str, told: int, app: Flask, sockets: Sockets, caplog: pytest.LogCaptureFixture
) -> None:
    sockets.route("/news")(subscribing(envelope=True, since=since))
    for debug in (False, True):
        app.debug = debug
        with Listener(sockets.test_client(app), f"/news?since={since}"):
            pass
        named = [each for each in caplog.messages if f"since={since!r} is no position" in each]
        assert len(named) == (told if debug else 0)


def test_settings_are_read_when_channels_are_first_needed() -> None:
    """As a factory may set them after it has made its extensions."""
    app = Flask(__name__)
    sockets = Sockets(app)
    app.config["SOCKETS_HISTORY_SIZE"] = 2
    assert kept(sockets, 10) == 2


def test_a_route_may_treat_slow_clients_in_its_own_way(sockets: Sockets) -> None:
    with pytest.raises(ValueError, match=r"slow_client must be one of .*, got 'wait'"):
        sockets.route("/news", slow_client="wait")(subscribing())


def test_the_prefix_parts_applications_that_share_a_broker(broker: RedisServer) -> None:
    apps = [app_with(broker_url=broker.url, channel_prefix=name) for name in ("a", "a", "b")]
    first, second, other = [Sockets(app) for app in apps]
    position = first.publish("news", "hello")
    assert second.position("news") == position
    assert other.position("news").offset == 0
    for sockets in (first, second, other):
        sockets._channels().close()


# -- several applications and processes ----------------------------------------------------


def test_applications_of_one_process_share_no_channels() -> None:
    apps = [Flask("one"), Flask("other")]
    both = [Sockets(app) for app in apps]
    for sockets in both:
        sockets.route("/news")(subscribing(identity="ann"))
    with ExitStack() as stack:
        one, other = [
            stack.enter_context(Listener(sockets.test_client(app)))
            for sockets, app in zip(both, apps, strict=True)
        ]
        both[0].publish("news", "for one")
        both[1].publish("news", "for the other")
        assert [one.next(), other.next()] == ["for one", "for the other"]
        assert [sockets.subscribers("news") for sockets in both] == [1, 1]
        assert both[0].position("news").epoch != both[1].position("news").epoch


def test_sockets_of_several_applications_ask_which_is_meant() -> None:
    apps = [Flask("one"), Flask("other")]
    sockets = Sockets()
    sockets.route("/news")(subscribing())
    for app in apps:
        sockets.init_app(app)
    calls: list[Callable[[], Any]] = [
        lambda: sockets.publish("news", "x"),
        lambda: sockets.publish_many([("news", "x")]),
        lambda: sockets.position("news"),
        lambda: sockets.subscribers("news"),
        lambda: sockets.present("news"),
        sockets.stats,
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match=r"serve 2 applications; .*app\.app_context\(\)"):
            call()
        with Flask("a third").app_context(), pytest.raises(RuntimeError, match="2 applications"):
            call()
        with apps[0].app_context():
            call()
    with apps[0].app_context():
        assert sockets.position("news").offset == 2
    with apps[1].app_context():
        assert sockets.position("news").offset == 0


def test_several_workers_without_a_broker_are_warned_about_once(
    sockets: Sockets, client: SocketsClient, caplog: pytest.LogCaptureFixture
) -> None:
    sockets.route("/news")(subscribing())
    for _ in range(2):
        with Listener(client, multiprocess=True):
            pass
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert record.getMessage() == (
        "this server has several workers, and with memory:// what is published stays in its "
        "process; set app.config['SOCKETS_BROKER_URL'] to a redis:// URL, or run one worker"
    )


def test_one_worker_is_warned_about_nothing(
    sockets: Sockets, client: SocketsClient, caplog: pytest.LogCaptureFixture
) -> None:
    sockets.route("/news")(subscribing())
    with Listener(client):
        pass
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


HELPED = """
    from multiprocessing import get_context
    from flask import Flask
    from flask_sockets2 import Sockets

    app = Flask(__name__)
    sockets = Sockets(app)

    @app.get("/start")
    def start():
        child = get_context("fork").Process(target=sockets.publish, args=("news", "done"))
        child.start()
        child.join()
        return "started"

    @app.get("/publish")
    def publish():
        return str(sockets.publish("news", "done"))
"""


@pytest.mark.parametrize("asked", ["/start", "/publish"])
def test_a_child_of_a_worker_is_told_that_nobody_hears_it(
    asked: str, gunicorn: Callable[..., Server]
) -> None:
    """It has inherited the sockets of a server, but no client."""
    server = gunicorn(HELPED)
    for _ in range(2):
        assert clients.http(server.url(asked))[0] == 200
    told = server.output.count("published to 'news' in a process that serves nobody")
    assert told == (2 if asked == "/start" else 0)  # each child once


@pytest.mark.parametrize(
    ("variable", "remedy"),
    [
        (
            "SOCKETS_BROKER_URL",
            'app.config["SOCKETS_BROKER_URL"] = os.environ["SOCKETS_BROKER_URL"]',
        ),
        ("FLASK_SOCKETS_BROKER_URL", "app.config.from_prefixed_env()"),
    ],
)
def test_a_broker_that_only_the_environment_names_is_told_with_the_remedy(
    variable: str,
    remedy: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv(variable, "redis://:secret@127.0.0.1:6379/0")
    sockets = Sockets(Flask(__name__))
    assert caplog.messages == []  # the application may read it later
    for _ in range(2):
        sockets.publish("news", "hello")
    (message,) = caplog.messages
    assert message.startswith(f"the environment variable {variable} is set")
    assert message.endswith(remedy)


@pytest.mark.parametrize("read", ["config", "memory"])
def test_an_environment_that_is_read_or_names_no_other_broker_is_not_told_of(
    read: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    app = Flask(__name__)
    sockets = Sockets(app)
    monkeypatch.setenv("SOCKETS_BROKER_URL", f"{read}://")
    if read == "config":
        app.config["SOCKETS_BROKER_URL"] = "memory://"
    sockets.publish("news", "hello")
    assert caplog.messages == []


PRELOADED = """
    import os
    from flask import Flask
    from flask_sockets2 import Sockets

    app = Flask(__name__)
    app.config.from_prefixed_env()
    sockets = Sockets(app)
    master = os.getpid()

    @sockets.route("/news")
    def news(ws):
        ws.subscribe("news", since="start")

    @app.post("/publish")
    def publish():
        assert os.getpid() != master
        sockets.publish("news", "by the worker")
        return str(sockets.stats()["channels"]["news"]["published"])

    sockets.publish("news", "by the master")
"""


@pytest.mark.parametrize("memory", [True, False], ids=["memory", "redis"])
def test_what_a_master_has_used_before_the_fork_its_workers_begin_anew(
    memory: bool, gunicorn: Callable[..., Server], request: pytest.FixtureRequest
) -> None:
    url = "memory://" if memory else request.getfixturevalue("broker").url
    server = gunicorn(PRELOADED, args=["--preload"], environ={"FLASK_SOCKETS_BROKER_URL": url})
    assert clients.http(server.url("/publish"), data=b"")[:2] == (200, "1")
    with connect(server.port, "/news") as listener:
        if not memory:
            assert listener.message() == b"by the master"
        assert listener.message() == b"by the worker"
        assert clients.http(server.url("/publish"), data=b"")[:2] == (200, "2")
        assert listener.message() == b"by the worker"
    assert "Traceback" not in server.output


PRESENT = """
    from flask import Flask
    from flask_sockets2 import Sockets

    app = Flask(__name__)
    app.config.from_prefixed_env()
    sockets = Sockets(app)

    @sockets.route("/room")
    def room(ws):
        ws.subscribe("room", identity="ann")
        ws.send("here")
"""


def test_who_was_connected_to_a_worker_that_stops_has_left_with_it(
    gunicorn: Callable[..., Server], broker: RedisServer
) -> None:
    """Those of a killed one are taken to be there until its lease is over: 10 seconds."""
    environ = {"FLASK_SOCKETS_BROKER_URL": broker.url, "FLASK_SOCKETS_PRESENCE_GRACE": "0"}
    server = gunicorn(PRESENT, environ=environ)
    with connect(server.port, "/room") as client, Publisher(broker.url) as publisher:
        assert client.message() == b"here"
        assert publisher.present("room") == ["ann"]
        server.terminate()
        wait_until(lambda: not publisher.present("room"), "ann to have left")
        assert publisher.subscribers("room") == 0


GREEN = """
    from gevent import monkey; monkey.patch_all()
    import sys
    import gevent
    from flask import Flask
    from flask_sockets2 import Sockets, WebSocketServer

    app = Flask(__name__)
    sockets = Sockets(app)

    @sockets.route("/news")
    def news(ws):
        ws.subscribe("news")
        for message in ws:
            sockets.publish("news", "handler")

    @app.post("/publish")
    def publish():
        sockets.publish("news", "view")
        gevent.spawn(sockets.publish, "news", "greenlet").join()
        gevent.get_hub().threadpool.apply(sockets.publish, ("news", "native thread"))
        done = []
        start = monkey.get_original("_thread", "start_new_thread")
        many = [("news", "another"), ("news", "last")]
        start(lambda: done.append(sockets.publish_many(many)), ())
        while not done:
            gevent.sleep(0.001)
        return ""

    WebSocketServer(("127.0.0.1", int(sys.argv[1])), app).serve_forever()
"""


def test_under_gevent_native_threads_publish_to_memory_as_greenlets_do(
    pywsgi_server: Callable[..., Server],
) -> None:
    port = unused_port()
    server = pywsgi_server(GREEN, port=port, args=[str(port)])
    with connect(port, "/news") as client:
        client.send(frame(TEXT, b"go"))
        assert client.message() == b"handler"
        assert clients.http(server.url("/publish"), data=b"")[0] == 200
        said = [client.message().decode() for _ in range(5)]
    assert said == ["view", "greenlet", "native thread", "another", "last"]
    assert "Traceback" not in server.output


# -- a broker that is away -----------------------------------------------------------------


@pytest.fixture
def away() -> Iterator[Sockets]:
    """Sockets whose broker cannot be reached."""
    url = f"redis://ann:s3cret@127.0.0.1:{unused_port()}/3"
    app = app_with(broker_url=url)
    sockets = Sockets(app)
    yield sockets
    assert sockets._served() == [app]  # which it holds only weakly


def test_while_the_broker_is_away_a_second_has_one_line_however_many_come(
    away: Sockets, caplog: pytest.LogCaptureFixture
) -> None:
    @away.route("/news", accept=False)
    def news(ws: Any) -> None:
        away.subscribers("news")

    app = away._served()[0]
    app.add_url_rule("/events", view_func=lambda: stream_response(app, [("news", None)]))
    began = monotonic()
    for _ in range(30):
        assert refusal(away.test_client(app), "/news").status_code == 503
        assert app.test_client().get("/events").status_code == 503
    lines = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
    for kind in ("a WebSocket of /news", "an event stream of /events"):
        found = [line for line in lines if f"told {kind} to connect again: cannot reach" in line]
        assert 1 <= len(found) <= monotonic() - began + 1


def test_before_accept_a_client_is_told_to_come_back_with_503(
    away: Sockets, caplog: pytest.LogCaptureFixture
) -> None:
    @away.route("/news", accept=False)
    def news(ws: Any) -> None:
        away.subscribers("news")

    response = refusal(away.test_client(away._served()[0]), "/news")
    assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
    assert "messages cannot be delivered just now; connect again" in response.text
    (record,) = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert "told a WebSocket of /news to connect again: cannot reach redis://127.0.0.1:" in (
        record.getMessage()
    )
    assert record.exc_info is None
    assert "s3cret" not in caplog.text


def test_who_subscribes_before_accept_is_told_to_come_back_with_503(away: Sockets) -> None:
    away.route("/news", accept=False)(subscribing(identity="ann"))
    with pytest.raises(WebSocketRejected) as caught:
        away.test_client(away._served()[0]).connect("/news")
    assert caught.value.response.status_code == 503
    assert "Retry-After" in caught.value.response.headers
    assert away.stats()["connections"] == 0


def test_after_accept_a_client_is_told_to_come_back_with_1013(away: Sockets) -> None:
    away.route("/news")(subscribing(identity="ann"))
    with away.test_client(away._served()[0]).connect("/news") as ws:
        assert closing(ws) == 1013
        assert ws.close_reason == "messages cannot be delivered just now; connect again"
    assert away.stats()["connections"] == 0


def test_the_position_of_a_page_whose_broker_is_away_is_a_gap_when_it_is_back(
    away: Sockets, broker: RedisServer
) -> None:
    position = away.position("news")
    assert (str(position), away.positions(["news", "sport"])) == ("-", [position] * 2)
    app = app_with(broker_url=broker.url)
    there = Sockets(app)
    there.route("/news")(subscribing(envelope=True, since=position))
    there.publish("news", "missed")
    with Listener(there.test_client(app), f"/news?since={position}") as listener:
        assert listener.gap
    state_of(app).close()


def test_while_the_broker_is_away_a_message_that_is_none_is_the_programs_error(
    unused_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the setting is: nothing but the broker's errors is logged."""
    app = app_with(broker_url=f"redis://127.0.0.1:{unused_port}", publish_errors="log")
    sockets = Sockets(app)
    for message, error in (
        (object(), TypeError),
        ("\ud800", ValueError),
        ("x" * 2**21, ValueError),
    ):
        with pytest.raises(error):
            sockets.publish("news", message)
        with pytest.raises(error):
            sockets.publish_many([("news", "x")] * 150 + [("news", message)])
    assert {str(each) for each in sockets.publish_many([("news", "x")] * 150)} == {"-"}
    assert str(sockets.publish("news", "x")) == "-"
    lost = [r for r in caplog.records if getattr(r, "event", "") == "unpublished"]
    assert lost
    assert lost[0].channel == "news"
    stats = sockets.stats()["channels"]["news"]
    assert (stats["published"], stats["publish_errors"]) == (0, 3 * 100 + 150 + 1)


def test_a_handler_that_expects_a_broker_to_be_away_goes_on(away: Sockets) -> None:
    @away.route("/news")
    def news(ws: Any) -> None:
        with pytest.raises(BrokerError, match=r"cannot reach redis://127.0.0.1"):
            ws.subscribe("news")
        ws.send("later, perhaps")
        ws.send(str(ws.unsubscribe("news")))

    with away.test_client(away._served()[0]).connect("/news") as ws:
        assert [ws.receive(), ws.receive()] == ["later, perhaps", "False"]
        assert closing(ws) == 1000


def test_a_view_is_raised_what_the_broker_says(away: Sockets) -> None:
    for call in (
        lambda: away.publish("news", "x"),
        lambda: away.publish_many([("news", "x")]),
        lambda: away.subscribers("news"),
        lambda: away.present("news"),
    ):
        with pytest.raises(BrokerError, match=r"cannot reach redis://127.0.0.1:.*/3") as caught:
            call()
        assert "s3cret" not in str(caught.value)
    assert away.stats()["channels"].get("news", {"published": 0})["published"] == 0


# -- signals -------------------------------------------------------------------------------


def test_the_opening_and_the_end_of_a_connection_are_told(
    app: Flask, sockets: Sockets, client: SocketsClient
) -> None:
    opened, closed = Noted(), Noted()
    sockets.route("/news")(subscribing())
    with (
        signals.connection_opened.connected_to(opened, app),
        signals.connection_closed.connected_to(closed, app),
    ):
        with Listener(client) as listener:
            ((sender, what),) = opened.calls
            assert sender is app
            assert what["connection"].path == "/news"
            assert closed.calls == []
            listener.session.close(4000, "bye")
        ((sender, told),) = closed.calls
        assert sender is app
        assert told["connection"] is what["connection"]
        assert (told["connection"].close_code, told["connection"].close_reason) == (4000, "bye")
        assert len(opened.calls) == 1


def test_of_a_refused_connection_no_signal_tells(
    sockets: Sockets, client: SocketsClient, app: Flask
) -> None:
    noted = Noted()

    @sockets.route("/refuses", accept=False)
    def refuses(ws: Any) -> tuple[str, int]:
        return "no", 403

    with (
        signals.connection_opened.connected_to(noted, app),
        signals.connection_closed.connected_to(noted, app),
    ):
        assert refusal(client, "/refuses").status_code == 403
        assert client.http.get("/refuses").status_code == 426
    assert noted.calls == []


@contextmanager
def lazy(app: Flask, path: str = "/news") -> Iterator[WireClient]:
    """A client for which the kernel keeps little, and that reads when the test does."""
    peer, sock = tcp_pair(small_buffers=True)

    def serve() -> None:
        app.test_client().get(
            path,
            headers=HANDSHAKE,
            environ_overrides={"werkzeug.socket": sock},
            multithread=True,
            buffered=True,
        )

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        assert peer.response().status == 101
        while not peer.message().startswith(SUBSCRIBED.encode()):
            pass
        yield peer
    finally:
        peer.close()
        thread.join(TIMEOUT)
        sock.close()
    assert not thread.is_alive()


def delivered(sockets: Sockets) -> int:
    """How many messages of the channel were handed to connections."""
    count: int = sockets.stats()["channels"]["news"]["delivered"]
    return count


def fill(sockets: Sockets, told: Callable[[], object], key: str = "") -> None:
    """Publish until something is told of a client that does not read.

    One message after the other, so that no turn has more to write than fits its buffer.
    """
    for _ in range(200):
        is_handed_over = partial(
            lambda before: delivered(sockets) > before or told(), delivered(sockets)
        )
        sockets.publish("news", "x" * 10_000, key=key)
        wait_until(is_handed_over, "the message to be handed over")
        if told():
            return
    raise AssertionError("nothing was told")


def slow(sockets: Sockets, policy: str) -> None:
    sockets.route("/news", slow_client=policy, send_buffer=2**16)(subscribing(envelope=True))


def test_a_client_that_is_too_slow_is_told_and_closed(app: Flask, sockets: Sockets) -> None:
    slow(sockets, "disconnect")
    noted = Noted()
    with lazy(app) as client:
        with signals.client_too_slow.connected_to(noted, app):
            fill(sockets, lambda: noted.calls)
        ((sender, what),) = noted.calls
        assert sender is app
        assert what["connection"].path == "/news"
        assert client.closing() == (1013, "too slow; connect again")
    stats = sockets.stats()["channels"]["news"]
    assert (stats["slow_disconnects"], stats["dropped"]) == (1, 0)


def test_what_a_slow_client_was_not_sent_is_told(app: Flask, sockets: Sockets) -> None:
    slow(sockets, "drop_oldest")
    noted = Noted()
    with lazy(app) as client:
        with signals.message_dropped.connected_to(noted, app):
            fill(sockets, lambda: noted.calls)
        sender, what = noted.calls[0]
        assert sender is app
        assert what["connection"].path == "/news"
        assert what["channel"] == "news"
        position = str(sockets.publish("news", "end"))
        envelopes = [json.loads(client.message())]
        while envelopes[-1]["position"] != position:
            envelopes.append(json.loads(client.message()))
    assert [each["event"] for each in envelopes if "event" in each] == ["gap"]
    lost = sockets.position("news").offset - (len(envelopes) - 1)
    assert sockets.stats()["channels"]["news"]["dropped"] == len(noted.calls) == lost > 0


@pytest.mark.parametrize("size", [200, 40_000, 100_000])
def test_a_slow_client_ends_up_with_the_newest_messages(
    size: int, app: Flask, sockets: Sockets
) -> None:
    slow(sockets, "drop_oldest")
    with lazy(app) as client:
        count = 2**21 // size  # many in one turn, and more than the kernels take
        for _ in range(count):
            position = str(sockets.publish("news", "x" * size))
        wait_until(lambda: delivered(sockets) == count, "all to be handed over")
        assert sockets.stats()["channels"]["news"]["dropped"] > 0
        seen = [json.loads(client.message())]
        while seen[-1]["position"] != position or "event" in seen[-1]:
            seen.append(json.loads(client.message()))
    # There is a second gap if the kernels took the first one while messages were still published.
    before = lost = 0
    for each in seen:
        offset = int(each["position"].rpartition("-")[2])
        if "event" in each:
            lost += offset - before
            assert offset > before
        else:
            assert offset == before + 1
        before = offset
    stats = sockets.stats()["channels"]["news"]
    assert (stats["dropped"], stats["gaps"]) == (lost, sum("event" in each for each in seen))


@pytest.mark.parametrize("policy", ["disconnect", "drop_oldest", "coalesce"])
def test_a_history_longer_than_the_buffer_reaches_who_reads_it_late(policy: str) -> None:
    app = app_with(history_bytes=2**23, slow_client=policy, send_buffer=2**16)
    sockets = Sockets(app)
    sockets.route("/news")(subscribing(envelope=True))
    for _ in range(60):
        sockets.publish("news", "x" * 50_000)
    with lazy(app, "/news?since=start") as client:
        last = str(sockets.publish("news", "meanwhile"))
        seen = [json.loads(client.message())]
        while seen[-1]["position"] != last:
            seen.append(json.loads(client.message()))
    offsets = [int(each["position"].rpartition("-")[2]) for each in seen]
    assert offsets == list(range(offsets[0], 62))
    assert not [each for each in seen if "event" in each]
    stats = sockets.stats()["channels"]["news"]
    assert (stats["replayed"], stats["dropped"], stats["slow_disconnects"]) == (60, 0, 0)


def test_of_messages_with_one_key_a_slow_client_gets_the_newest(
    app: Flask, sockets: Sockets
) -> None:
    slow(sockets, "coalesce")
    noted = Noted()
    with lazy(app) as client:
        with signals.message_dropped.connected_to(noted, app):
            fill(sockets, lambda: sockets.stats()["channels"]["news"]["coalesced"], key="price")
        sockets.publish("news", "newest", key="price")
        envelope = json.loads(client.message())
        while envelope["data"] != "newest":
            envelope = json.loads(client.message())
            assert "event" not in envelope
    stats = sockets.stats()["channels"]["news"]
    assert stats["coalesced"] > 0
    assert stats["dropped"] == len(noted.calls) == 0
    assert stats["slow_disconnects"] == 0


def test_the_setting_says_what_becomes_of_slow_clients() -> None:
    app = app_with(slow_client="drop_oldest", send_buffer=2**16)
    sockets = Sockets(app)
    sockets.route("/news")(subscribing())
    with lazy(app) as client:
        fill(sockets, lambda: sockets.stats()["channels"]["news"]["dropped"])
        sockets.publish("news", "end")
        while client.message() != b"end":
            pass


def test_that_a_broker_has_come_back_is_told_and_so_is_the_gap(
    broker: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    app = app_with(broker_url=broker.url)
    sockets = Sockets(app)
    sockets.route("/news")(subscribing(envelope=True))
    back, gaps = Noted(), Noted()
    with (
        signals.broker_reconnected.connected_to(back, app),
        signals.gap_told.connected_to(gaps, app),
        Listener(sockets.test_client(app)) as listener,
    ):
        sockets.publish("news", "before")
        assert listener.data(1) == ["before"]
        broker.restart()
        assert listener.envelope()["event"] == "gap"
        wait_until(lambda: back.calls, "the signal")
        assert back.calls == [(app, {})]
        assert gaps.calls == [(app, {"channel": "news"})]
        sockets.publish("news", "after")
        assert listener.data(1) == ["after"]
    stats = sockets.stats()
    assert stats["broker_reconnects"] == 1
    assert stats["channels"]["news"]["gaps"] == 1
    sockets._channels().close()


def raises(sender: Any, **what: Any) -> None:
    raise KeyError("told by a receiver")


def logged(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("policy", ["disconnect", "drop_oldest"])
def test_what_receivers_raise_for_a_slow_client_is_logged_and_breaks_nothing(
    policy: str, app: Flask, sockets: Sockets, caplog: pytest.LogCaptureFixture
) -> None:
    slow(sockets, policy)
    signal = {"disconnect": signals.client_too_slow, "drop_oldest": signals.message_dropped}[policy]
    with lazy(app) as client, lazy(app) as other:
        with signal.connected_to(raises, app):
            fill(sockets, lambda: len(logged(caplog)) > 1)
        for each in (client, other):
            if policy == "disconnect":
                assert each.closing()[0] == 1013
        position = str(sockets.publish("news", "end"))
        for each in (client, other):
            if policy == "drop_oldest":
                while json.loads(each.message())["position"] != position:
                    pass
    for record in logged(caplog):
        assert record.getMessage() == f"a receiver of the signal {signal.name} raised"
        assert record.exc_info is not None


@pytest.mark.parametrize(
    ("signal", "path"),
    [(signals.connection_closed, "/news"), (signals.gap_told, "/news?since=nonsense")],
    ids=["closed", "gap"],
)
def test_what_a_receiver_raises_is_logged_and_breaks_nothing(
    signal: NamedSignal,
    path: str,
    app: Flask,
    sockets: Sockets,
    client: SocketsClient,
    caplog: pytest.LogCaptureFixture,
) -> None:
    sockets.route("/news")(subscribing())
    with signal.connected_to(raises, app), Listener(client, path) as listener:
        sockets.publish("news", "hello")
        assert listener.next() == "hello"
    (record,) = logged(caplog)
    assert record.getMessage() == f"a receiver of the signal {signal.name} raised"
    assert record.exc_info is not None
    assert sockets.stats()["connections"] == sockets.subscribers("news") == 0


def test_what_a_receiver_of_the_opening_raises_refuses_the_connection(
    app: Flask, sockets: Sockets, client: SocketsClient
) -> None:
    sockets.route("/news")(subscribing())
    with signals.connection_opened.connected_to(raises, app):
        assert refusal(client, "/news").status_code == 500
    assert sockets.stats()["connections"] == 0
    with Listener(client) as listener:
        sockets.publish("news", "hello")
        assert listener.next() == "hello"


def test_a_client_of_a_test_leaves_at_once_though_it_has_not_read_everything(
    sockets: Sockets, client: SocketsClient
) -> None:
    sockets.route("/news")(subscribing())
    begun = monotonic()
    with Listener(client):
        sockets.publish_many([("news", "x")] * 500)
        wait_until(lambda: delivered(sockets) == 500, "all to be handed over")
    assert monotonic() - begun < TIMEOUT


# -- counting ------------------------------------------------------------------------------


def test_counts_are_by_route_and_by_prefix_of_the_channel(
    sockets: Sockets, client: SocketsClient
) -> None:
    @sockets.route("/user/<int:number>")
    def user(ws: Any, number: int) -> None:
        subscribing(f"user:{number}")(ws)
        for _ in ws:
            pass

    sockets.route("/user")(subscribing("user"))
    with Listener(client, "/user/1") as one, Listener(client, "/user/2") as two:
        sockets.publish_many([("user:1", "one"), ("user:2", "two"), ("user:3", "nobody")])
        assert [one.next(), two.next()] == ["one", "two"]
        one.session.send("hello")
        with Listener(client, "/user?since=nonsense"):
            stats = sockets.stats()
            assert stats["connections"] == 3
            assert stats["routes"]["/user"]["opened"] == 1
    stats = sockets.stats()
    assert stats["connections"] == 0
    assert stats["broker_reconnects"] == 0
    route = stats["routes"]["/user/<int:number>"]
    assert (route["opened"], route["closed"]) == (2, 2)
    assert (route["messages_in"], route["messages_out"]) == (1, 2)
    assert stats["channels"] == {
        "user": {
            "published": 3,
            "publish_errors": 0,
            "delivered": 2,
            "bytes_out": 2 * len(b"\x81\x03one"),
            "dropped": 0,
            "coalesced": 0,
            "slow_disconnects": 0,
            "replays": 0,
            "replayed": 0,
            "gaps": 1,
        }
    }


def test_replays_are_counted(sockets: Sockets, client: SocketsClient) -> None:
    sockets.route("/news")(subscribing())
    first = sockets.publish("news", "first")
    sockets.publish_many([("news", "second"), ("news", "third")])
    for since in (first, "start", sockets.position("news")):
        with Listener(client, f"/news?since={since}"):
            pass
    stats = sockets.stats()["channels"]["news"]
    assert (stats["replays"], stats["replayed"], stats["gaps"]) == (2, 5, 0)


def test_names_that_users_make_up_do_not_fill_the_counts(sockets: Sockets) -> None:
    sockets.publish_many([(f"name{number}:1", "x") for number in range(150)])
    channels = sockets.stats()["channels"]
    assert len(channels) == 101
    assert channels["other"]["published"] == 50
