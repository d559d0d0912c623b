"""Who may come, who is here and who has to go, without a server."""

from __future__ import annotations

import gc
import json
import logging
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any
from unittest.mock import Mock

import pytest
from flask import Flask, abort, request
from werkzeug.middleware.proxy_fix import ProxyFix

from flask_sockets2 import BrokerError, Sockets, Turbo, WebSocketRejected
from flask_sockets2.admission import admission as admission_module
from flask_sockets2.admission import disconnects as orders_module
from flask_sockets2.admission.admission import Admission
from flask_sockets2.admission.disconnects import ORDERS, DisconnectOrder
from flask_sockets2.admission.guests import Rules, network_of
from flask_sockets2.application.event_stream import stream_response
from flask_sockets2.application.state import state_of
from flask_sockets2.brokers.base import JSON, Message, Position
from flask_sockets2.exceptions import HandshakeError
from flask_sockets2.signals import connection_opened
from flask_sockets2.stats import Counters
from flask_sockets2.testing import SocketsClient, WebSocketSession
from flask_sockets2.transports.current import current_clock
from tests.processes import wait_until

TIMEOUT = 60.0  # seconds, for each wait


@pytest.fixture
def app() -> Flask:
    return Flask(__name__)


@pytest.fixture
def sockets(app: Flask) -> Sockets:
    sockets = Sockets(app)
    sockets.add_url_rule("/echo", "echo", echo)
    sockets.add_url_rule("/news", "news", lambda ws: ws.subscribe("news") and None)
    app.add_url_rule("/events", view_func=lambda: stream_response(app, [("news", None)]))
    return sockets


@pytest.fixture
def client(app: Flask, sockets: Sockets) -> SocketsClient:
    return sockets.test_client(app)


def echo(ws: Any) -> None:
    for message in ws:
        ws.send(message)


def of(address: str) -> dict[str, Any]:
    return {"environ_base": {"REMOTE_ADDR": address}}


def named(user: str) -> dict[str, Any]:
    return {"headers": {"X-User": user}}


def refusal(client: SocketsClient, path: str = "/echo", **how: Any) -> Any:
    with pytest.raises(WebSocketRejected) as refused:
        client.connect(path, **how)
    return refused.value.response


def identify(sockets: Sockets) -> None:
    @sockets.user_id
    def user_id() -> str | None:
        return request.headers.get("X-User")


def closing(ws: WebSocketSession) -> tuple[int | None, str | None]:
    while ws.receive(timeout=TIMEOUT) is not None:
        pass
    return ws.close_code, ws.close_reason


# -- addresses -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("203.0.113.7", "203.0.113.7", True),
        ("203.0.113.7", "203.0.113.8", False),
        ("2001:db8:0:1::1", "2001:DB8:0:1:ffff:ffff:ffff:ffff", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("::ffff:203.0.113.7", "203.0.113.7", True),
        ("64:ff9b::203.0.113.7", "203.0.113.7", True),
        ("64:ff9b::203.0.113.7", "64:ff9b::203.0.113.8", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("203.0.113.7:1234", "203.0.113.7:5678", True),
        ("[2001:db8::1]:1234", "[2001:db8::2]", True),
        ("[203.0.113.7]", "203.0.113.7:1234", True),
        ("unknown", "other", False),
        ("[", "]", False),
        ("[2001:db8::1", "[2001:db8::2", False),
        ("[]", ":80", False),
        ("x" * 100, "x" * 10_000, True),
    ],
)
def test_addresses_of_one_client(one: str, other: str, same: bool) -> None:
    assert (network_of(one) == network_of(other)) is same
    assert 0 < len(network_of(one)) <= 64
    assert 0 < len(network_of(other)) <= 64


def test_one_address_has_so_many_and_others_have_theirs(app: Flask, client: SocketsClient) -> None:
    app.config["SOCKETS_MAX_CONNECTIONS_PER_ADDRESS"] = 2
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(client.connect("/echo", **of("2001:db8::1")))
        response = refusal(client, **of("2001:db8::2"))
        assert (response.status_code, response.headers["Retry-After"]) == (429, "5")
        assert "too many connections from your address" in response.text
        with client.connect("/echo", **of("203.0.113.7")):
            pass
    with client.connect("/echo", **of("2001:db8::1")):
        pass


def test_the_address_is_the_one_that_proxy_fix_found(app: Flask, client: SocketsClient) -> None:
    app.config["SOCKETS_MAX_CONNECTIONS_PER_ADDRESS"] = 1
    app.wsgi_app = ProxyFix(app.wsgi_app)  # type: ignore[method-assign]
    with (
        client.connect("/echo", headers={"X-Forwarded-For": "203.0.113.7"}),
        client.connect("/echo", headers={"X-Forwarded-For": "203.0.113.8"}),
    ):
        assert refusal(client, headers={"X-Forwarded-For": "203.0.113.7"}).status_code == 429


@pytest.mark.parametrize("address", ["", None])
def test_who_has_no_address_is_not_counted_by_it(
    address: Any, app: Flask, client: SocketsClient
) -> None:
    """As behind a Unix socket without ProxyFix: all would be one."""
    app.config["SOCKETS_MAX_CONNECTIONS_PER_ADDRESS"] = 1
    app.config["SOCKETS_MAX_HANDSHAKE_RATE_PER_ADDRESS"] = 0.01
    with client.connect("/echo", **of(address)), client.connect("/echo", **of(address)):
        pass


def test_event_streams_count_with_websockets(app: Flask, client: SocketsClient) -> None:
    app.config["SOCKETS_MAX_CONNECTIONS_PER_ADDRESS"] = 2
    http = app.test_client()
    with client.connect("/echo"):
        stream = http.get("/events")
        assert stream.status_code == 200
        refused = http.get("/events")
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "5")
        assert refusal(client).status_code == 429
        stream.close()
        http.get("/events").close()


def test_of_threads_that_want_the_last_place_of_an_address_one_gets_it(
    app: Flask, sockets: Sockets
) -> None:
    app.config["SOCKETS_MAX_CONNECTIONS_PER_ADDRESS"] = 2
    all_are_there = threading.Barrier(6)

    @sockets.route("/late", accept=False)
    def late(ws: Any) -> None:
        all_are_there.wait(TIMEOUT)
        ws.accept()
        echo(ws)

    def attempt(number: int) -> WebSocketSession | int:
        try:
            return sockets.test_client(app).connect("/late")
        except WebSocketRejected as refused:
            return refused.response.status_code

    with ThreadPoolExecutor(6) as pool, ExitStack() as stack:
        came = list(pool.map(attempt, range(6)))
        for session in came:
            if isinstance(session, WebSocketSession):
                stack.enter_context(session)
        assert [answer for answer in came if isinstance(answer, int)] == [429] * 4
    assert refused_by(sockets) == {"max_connections_per_address": 4}


def refused_by(sockets: Sockets) -> dict[str, int]:
    refused: dict[str, int] = sockets.stats()["refused"]
    return {limit: times for limit, times in refused.items() if times}


# -- users -----------------------------------------------------------------------------------


def test_one_user_has_so_many_and_strangers_are_not_counted(
    app: Flask, sockets: Sockets, client: SocketsClient, caplog: pytest.LogCaptureFixture
) -> None:
    app.config["SOCKETS_MAX_CONNECTIONS_PER_USER"] = 1
    identify(sockets)
    with client.connect("/echo", **named("ann")), client.connect("/echo", **named("bob")):
        response = refusal(client, **named("ann"))
        assert (response.status_code, response.headers["Retry-After"]) == (429, "5")
        assert app.test_client().get("/events", headers={"X-User": "ann"}).status_code == 429
        with client.connect("/echo"), client.connect("/echo"):
            pass
    assert caplog.messages == [
        "refused a WebSocket: SOCKETS_MAX_CONNECTIONS_PER_USER is reached (1) by user 'ann'"
    ]
    assert refused_by(sockets) == {"max_connections_per_user": 2}
    with client.connect("/echo", **named("ann")):
        pass


def test_nobody_is_asked_who_a_client_is_for_which_there_is_no_room(
    app: Flask, sockets: Sockets, client: SocketsClient
) -> None:
    """It may be a query of the database, and a handler may cost more."""
    app.config["SOCKETS_MAX_CONNECTIONS"] = 1
    asked: list[str] = []

    @sockets.user_id
    def user_id() -> str | None:
        asked.append(request.path)
        return request.headers.get("X-User")

    @sockets.route("/late", accept=False)
    def late(ws: Any) -> None:
        asked.append("handler")
        ws.accept()

    with client.connect("/echo", **named("ada")):
        before = len(asked)
        assert refusal(client, **named("ben")).status_code == 503
        assert refusal(client, "/late").status_code == 503
        assert len(asked) == before
    assert before


def test_who_cannot_say_who_it_is_gets_what_the_callback_raises(
    app: Flask, sockets: Sockets, client: SocketsClient
) -> None:
    sockets.user_id(lambda: abort(401))
    assert refusal(client).status_code == 401
    assert app.test_client().get("/events").status_code == 401


def test_a_user_id_that_is_registered_first_serves_applications_to_come() -> None:
    sockets = Sockets()
    sockets.route("/echo")(echo)
    identify(sockets)
    app = Flask("later")
    sockets.init_app(app)
    with sockets.test_client(app).connect("/echo", **named("ann")) as ws:
        with app.app_context():
            sockets.disconnect(user="ann")
        assert closing(ws) == (1008, "")


def test_the_user_id_of_turbo_does_as_well_and_that_of_sockets_wins() -> None:
    app = Flask("turbo")
    app.secret_key = "secret"
    sockets, turbo = Sockets(app), Turbo(app)
    sockets.route("/echo")(echo)
    client = sockets.test_client(app)
    turbo.user_id(lambda: 5)
    with client.connect("/echo") as ws:
        sockets.disconnect(user="5")
        assert closing(ws) == (1008, "")
    sockets.user_id(lambda: "ann")
    with client.connect("/echo") as ws:
        sockets.disconnect(user="ann")
        assert closing(ws) == (1008, "")


@pytest.mark.parametrize("turbo_first", [True, False])
def test_the_user_id_of_sockets_wins_in_each_of_several_applications(turbo_first: bool) -> None:
    sockets, turbo = Sockets(), Turbo()
    sockets.route("/echo")(echo)
    turbo.user_id(lambda: "another")
    apps = [Flask("one"), Flask("two")]
    for app in apps:
        for extension in (turbo, sockets) if turbo_first else (sockets, turbo):
            extension.init_app(app)
    identify(sockets)
    for app in apps:
        with sockets.test_client(app).connect("/echo", **named("ann")):
            assert [*state_of(app).admission._users] == ["ann"]


def test_a_factory_gives_each_of_its_applications_a_user_id_of_its_own(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sockets = Sockets()
    sockets.route("/echo")(echo)

    def make(name: str) -> Flask:
        app = Flask(name)
        sockets.init_app(app)
        sockets.user_id(lambda: name)
        return app

    one, two = make("one"), make("two")
    with (
        sockets.test_client(one).connect("/echo") as first,
        sockets.test_client(two).connect("/echo") as second,
    ):
        assert [*state_of(one).admission._users] == ["one"]
        assert [*state_of(two).admission._users] == ["two"]
        assert "user_id" not in caplog.text  # nobody is surprised
        with one.app_context():
            sockets.disconnect(user="one")
        assert closing(first) == (1008, "")
        second.send("still here")
        assert second.receive(timeout=TIMEOUT) == "still here"


def test_a_second_user_id_that_not_all_applications_have_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sockets = Sockets()
    one, two = Flask("one"), Flask("two")
    for app in (one, two):
        sockets.init_app(app)
    first, second = (lambda: "ann"), (lambda: "bob")
    sockets.user_id(first)
    sockets.user_id(first)
    assert not caplog.messages
    sockets.user_id(second)
    assert [state_of(app).user_id for app in (one, two)] == [first, second]
    assert caplog.messages == [
        "@sockets.user_id: of 2 applications on these sockets 1 keep the function that they had; "
        "let one function tell them apart by current_app, or give each application Sockets of its "
        "own"
    ]


def test_who_turbo_cannot_tell_the_user_of_gets_no_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As nobody's it would stay when its user is disconnected."""
    app = Flask("turbo")
    sockets, turbo = Sockets(app), Turbo(app)
    sockets.route("/echo")(echo)
    app.add_url_rule("/events", view_func=lambda: stream_response(app, [("news", None)]))
    turbo.user_id(lambda: 1 // 0)
    client = sockets.test_client(app)
    begun = time.monotonic()
    for _ in range(10):
        assert refusal(client).status_code == 500
        assert refusal(client, "/turbo-stream?s=turbo:all").status_code == 500
        assert app.test_client().get("/events").status_code == 500
    assert 1 <= len(caplog.records) <= 1 + (time.monotonic() - begun)
    first = caplog.records[0]
    assert first.exc_info is not None
    assert first.exc_info[0] is ZeroDivisionError
    assert "return None if no user is logged in" in first.message
    turbo.user_id(lambda: abort(401))
    assert refusal(client).status_code == 401


@pytest.mark.parametrize("user", ["", True, object()])
def test_who_has_an_id_that_is_none_gets_no_connection(
    user: Any, sockets: Sockets, client: SocketsClient, caplog: pytest.LogCaptureFixture
) -> None:
    sockets.user_id(lambda: user)
    assert refusal(client).status_code == 500
    assert "a user's id" in caplog.text


def test_a_turbo_without_users_asks_nobody(sockets: Sockets, app: Flask) -> None:
    Turbo(app)
    with sockets.test_client(app).connect("/echo"):
        assert state_of(app).admission._users == {}


# -- disconnect ------------------------------------------------------------------------------


def test_disconnect_ends_what_a_user_has_and_nothing_else(
    app: Flask, sockets: Sockets, client: SocketsClient
) -> None:
    identify(sockets)
    http = app.test_client()
    stream = http.get("/events", headers={"X-User": "ann"})
    others = http.get("/events", headers={"X-User": "bob"})
    with (
        client.connect("/echo", **named("ann")) as talks,
        client.connect("/news", **named("ann")) as listens,
        client.connect("/echo", **named("bob")) as other,
        client.connect("/echo") as stranger,
    ):
        sockets.disconnect(user="ann", code=4001, reason="logged out")
        assert closing(talks) == closing(listens) == (4001, "logged out")
        assert b"".join(stream.response).count(b"data:") == 2  # and ends
        for ws in (other, stranger):
            ws.send("still")
            assert ws.receive(timeout=TIMEOUT) == "still"
        assert len(state_of(app).streams) == 1
    others.close()
    assert sockets.stats()["disconnected"] == 3
    with client.connect("/echo", **named("ann")) as again:  # who comes back is asked anew
        again.send("here")
        assert again.receive(timeout=TIMEOUT) == "here"


class Killed(BaseException):
    """As a greenlet that is killed, or a timeout of gevent's."""


@pytest.mark.parametrize("error", [BrokerError("it does not answer"), Killed()])
def test_disconnect_ends_what_is_open_here_though_the_broker_is_away(
    error: BaseException,
    app: Flask,
    sockets: Sockets,
    client: SocketsClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Other processes hear of it when the broker is back, and this one does nothing twice."""
    monkeypatch.setattr(orders_module, "_AGAIN", 0.01)
    identify(sockets)
    broker = state_of(app).channels.broker
    publish, away, published = broker.publish, threading.Event(), []
    away.set()

    def publish_or_fail(drafts: Any) -> Any:
        if away.is_set():
            raise error if threading.current_thread() is caller else BrokerError("still away")
        positions = publish(drafts)
        published.extend(json.loads(draft.data)["disconnect"] for draft in drafts)
        return positions

    caller = threading.current_thread()
    monkeypatch.setattr(broker, "publish", publish_or_fail)
    with client.connect("/echo", **named("ann")) as ann:
        with pytest.raises(type(error)) as raised:
            sockets.disconnect(user="ann", code=4001)
        assert closing(ann) == (4001, "")
    if isinstance(error, BrokerError):
        assert str(raised.value) == (
            "the connections of the user in this process are ended, but other processes could not "
            "be told (it does not answer); this process tries again for an hour, while it runs; to "
            "be certain, disconnect the user again when the broker is back"
        )
    with client.connect("/echo", **named("ann")) as again:  # she has logged in again
        away.clear()
        wait_until(lambda: published == ["ann"], "the order")
        again.send("here")
        assert again.receive(timeout=TIMEOUT) == "here"
    assert sockets.stats()["disconnected"] == 1


def test_what_was_disconnected_again_is_not_published_twice(
    app: Flask, sockets: Sockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    identify(sockets)
    channels = state_of(app).channels
    with monkeypatch.context() as patched:
        patched.setattr(channels.broker, "publish", Mock(side_effect=BrokerError("it is away")))
        with pytest.raises(BrokerError):
            sockets.disconnect(user="ann")
    sockets.disconnect(user="ann")
    assert channels.publisher._sender._unsent._orders == {}


def test_an_order_that_is_published_twice_is_obeyed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the two its user may have logged in again."""
    monkeypatch.setattr(admission_module, "_ORDERS", 3)
    admission = Admission(Counters())
    order = order_for("ann")
    for _ in range(2):
        admission.obey(order)
    assert admission._heard == 1
    for _ in range(3):
        admission.obey(order_for("bob"))
    assert len(admission._obeyed) == 3
    earlier = Message(
        ORDERS, JSON, b'{"disconnect": "5", "code": 1008, "reason": ""}', Position("0" * 16, 1)
    )
    for _ in range(2):  # without an id
        admission.obey(earlier)
    assert admission._heard == 6


def test_where_orders_are_lost_all_users_have_to_come_again(
    app: Flask, sockets: Sockets, client: SocketsClient
) -> None:
    """One of them may have been meant."""
    identify(sockets)
    with (
        client.connect("/echo", **named("ann")) as ann,
        client.connect("/echo", **named("bob")) as bob,
        client.connect("/echo") as stranger,
    ):
        channels = state_of(app).channels
        channels._fanout.missed(ORDERS, Position("0" * 16, 5))
        for ws in (ann, bob):
            assert closing(ws) == (1012, "connect again")
        stranger.send("still here")
        assert stranger.receive(timeout=TIMEOUT) == "still here"
        with client.connect("/echo", **named("ann")) as again:
            again.send("back")
            assert again.receive(timeout=TIMEOUT) == "back"


@pytest.mark.parametrize(
    ("pace", "rate", "longest", "delays"),
    [
        (10, None, 30.0, [0.0, 0.1, 0.2, 0.3]),
        (10, 20.0, 30.0, [0.0, 0.1, 0.2, 0.3]),
        (10, 5.0, 30.0, [0.0, 0.2, 0.4, 0.6]),
        (10, 5.0, 0.2, [0.0, 0.05, 0.1, 0.15]),
    ],
)
def test_where_orders_are_lost_users_do_not_all_come_again_at_once(
    pace: int,
    rate: float | None,
    longest: float,
    delays: list[float],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(admission_module, "_PACE", pace)
    monkeypatch.setattr(admission_module, "_LONGEST", longest)
    ended: list[tuple[float, int]] = []

    class Clock:
        now = 0.0

        def call_soon(self, function: Callable[[], None]) -> None:
            function()

        def call_later(self, delay: float, function: Callable[[], None]) -> None:
            self.now = delay
            function()

    admission, clock = Admission(Counters()), Clock()

    def close(code: int, reason: str) -> bool:
        ended.append((clock.now, code))
        return True

    admission.orders_lost()
    assert caplog.messages == []  # nobody is here
    for number in range(4):
        guest = admission.expect(Rules(max_handshake_rate=rate), None, "a WebSocket")
        guest.user = f"user {number}"
        admission.enter(admission.connections, object(), guest, clock, close)  # type: ignore[arg-type]
    admission.orders_lost()
    assert ended == [(pytest.approx(delay), 1012) for delay in delays]
    [line] = caplog.records
    assert (line.event, line.count) == ("orders_lost", 4)  # type: ignore[attr-defined]
    assert (
        f"4 open connections of users are closed within {4 * delays[1]:.1f} s" in line.getMessage()
    )


def test_disconnecting_needs_to_know_who_the_users_are(app: Flask, sockets: Sockets) -> None:
    for way in sockets, Sockets(app):
        with pytest.raises(RuntimeError, match=r"^cannot disconnect a user: .* @sockets\.user_id,"):
            way.disconnect(user="ann")
    sockets.publisher.disconnect(user="ann")  # knows channels only, as one of another process
    identify(sockets)
    for way in sockets, Sockets(app):
        way.disconnect(user="ann")


def test_disconnecting_who_is_not_there_does_nothing(sockets: Sockets) -> None:
    identify(sockets)
    sockets.disconnect(user="nobody")
    assert sockets.stats()["disconnected"] == 0


@pytest.mark.parametrize("how", [{"user": None}, {"user": 5, "code": 1006}])
def test_an_order_that_makes_no_sense_is_refused(how: dict[str, Any], sockets: Sockets) -> None:
    identify(sockets)
    with pytest.raises(ValueError):
        sockets.disconnect(**how)


def test_the_channel_of_orders_is_no_clients(sockets: Sockets, client: SocketsClient) -> None:
    for use in (sockets.publish, sockets.publisher.publish):
        with pytest.raises(ValueError, match="cannot begin with 'flask_sockets2:'"):
            use(ORDERS, "{}")
    with pytest.raises(ValueError, match="cannot begin with"):
        sockets.position(ORDERS)


def test_who_is_disconnected_while_it_comes_does_not_get_in(
    app: Flask, sockets: Sockets, client: SocketsClient
) -> None:
    """It was asked who it is before its permission was taken away."""
    identify(sockets)

    @sockets.route("/late", accept=False)
    def late(ws: Any) -> None:
        sockets.disconnect(user=request.args["who"])
        ws.accept()
        echo(ws)

    response = refusal(client, "/late?who=ann", **named("ann"))
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
    with client.connect("/late?who=bob", **named("ann")):
        pass


def test_who_loses_its_permission_before_orders_are_listened_to_is_asked_again(
    app: Flask, sockets: Sockets, client: SocketsClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the first of a process could slip in: its order came when nobody heard it."""
    users = ["ann"]
    sockets.user_id(lambda: users[0] if users else abort(401))
    channels = state_of(app).channels
    listen = channels.listen

    def listen_late(*how: Any, **options: Any) -> None:
        users.clear()
        sockets.disconnect(user="ann")
        listen(*how, **options)

    monkeypatch.setattr(channels, "listen", listen_late)
    assert refusal(client).status_code == 401


def test_who_is_disconnected_while_it_is_accepted_is_closed(
    app: Flask, sockets: Sockets, client: SocketsClient
) -> None:
    identify(sockets)

    def order(app: Flask, **extra: Any) -> None:  # it is counted, and has no transport yet
        sockets.disconnect(user="ann")
        tried = threading.Event()
        current_clock().call_soon(tried.set)
        assert tried.wait(TIMEOUT)

    @sockets.route("/late", accept=False)
    def late(ws: Any) -> None:
        ws.accept(headers=[("X-Number", "7")])
        echo(ws)

    with connection_opened.connected_to(order, app), client.connect("/late", **named("ann")) as ws:
        assert ws.headers["X-Number"] == "7"  # the handler has accepted it, and nobody else
        assert closing(ws) == (1008, "")


def test_one_that_is_to_be_closed_and_never_opens_is_forgotten() -> None:
    admission = Admission(Counters())
    guest = admission.expect(Rules(), None, "a WebSocket")
    guest.user = "ann"
    calls: list[Callable[[], None]] = []
    tried: list[int] = []

    class Clock:
        def call_soon(self, function: Callable[[], None]) -> None:
            calls.append(function)

        def call_later(self, delay: float, function: Callable[[], None]) -> None:
            calls.append(function)

    def close(code: int, reason: str) -> bool:
        tried.append(code)
        return False

    one, clock = object(), Clock()
    admission.enter(admission.connections, one, guest, clock, close)  # type: ignore[arg-type]
    admission.obey(order_for("ann"))
    for _ in range(3):
        calls.pop()()
    assert tried == [1008] * 3
    admission.leave(admission.connections, one)
    calls.pop()()
    assert (tried, calls) == ([1008] * 3, [])


def order_for(user: str) -> Message:
    data = DisconnectOrder.of(user, 1008, "").serialize()
    return Message(ORDERS, JSON, data, Position("0" * 16, 1))


def test_with_more_orders_than_are_remembered_one_that_comes_has_to_come_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(admission_module, "_ORDERS", 3)
    admission = Admission(Counters())
    guest = admission.expect(Rules(), None, "a WebSocket")
    guest.user = "ann"

    def enter() -> None:
        admission.enter(admission.streams, object(), guest, None, lambda code, reason: True)

    for _ in range(3):
        admission.obey(order_for("bob"))
    enter()
    admission.obey(order_for("bob"))
    with pytest.raises(HandshakeError, match="disconnected meanwhile"):
        enter()


def test_an_order_of_another_version_is_passed_over(
    sockets: Sockets, client: SocketsClient, app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    admission = state_of(app).admission
    admission.obey(Message(ORDERS, JSON, b'{"restart": 1}', Position("0" * 16, 1)))
    assert "an order at 0000000000000000-1 makes no sense" in caplog.text


def test_a_child_of_a_fork_has_none_of_its_parents_guests(
    app: Flask, sockets: Sockets, client: SocketsClient
) -> None:
    identify(sockets)
    with client.connect("/echo", **named("ann")):
        state = state_of(app)
        parents = state.admission
        state.forked()
        assert state.connections == set()
        assert state.admission is not parents
        with client.connect("/echo", **named("ann")) as ws:
            sockets.disconnect(user="ann")
            assert closing(ws) == (1008, "")


# -- rates -----------------------------------------------------------------------------------


def test_who_connects_too_often_is_told_when_to_come_back(
    app: Flask, sockets: Sockets, client: SocketsClient
) -> None:
    app.config["SOCKETS_MAX_HANDSHAKE_RATE_PER_ADDRESS"] = 0.01
    with client.connect("/echo", **of("203.0.113.7")):
        pass
    response = refusal(client, **of("203.0.113.7"))
    assert response.status_code == 429
    assert 90 <= int(response.headers["Retry-After"]) <= 100
    assert app.test_client().get("/events", environ_base={"REMOTE_ADDR": "203.0.113.7"}).status == (
        "429 TOO MANY REQUESTS"
    )
    with client.connect("/echo", **of("203.0.113.8")):
        pass
    assert refused_by(sockets) == {"max_handshake_rate_per_address": 2}


def test_beyond_what_the_process_takes_a_second_it_is_503(
    app: Flask, sockets: Sockets, client: SocketsClient
) -> None:
    app.config["SOCKETS_MAX_HANDSHAKE_RATE"] = 2
    answers = []
    for number in range(20):
        try:
            client.connect("/echo", **of(f"203.0.113.{number}")).close()
        except WebSocketRejected as refused:
            answers.append((refused.response.status_code, refused.response.headers["Retry-After"]))
    assert set(answers) == {(503, "1")}
    assert refused_by(sockets) == {"max_handshake_rate": len(answers)}


def test_one_address_does_not_use_up_what_all_have(app: Flask, client: SocketsClient) -> None:
    app.config["SOCKETS_MAX_HANDSHAKE_RATE"] = 5
    app.config["SOCKETS_MAX_HANDSHAKE_RATE_PER_ADDRESS"] = 1e-6
    client.connect("/echo", **of("203.0.113.7")).close()
    for _ in range(50):
        assert refusal(client, **of("203.0.113.7")).status_code == 429
    with client.connect("/echo", **of("203.0.113.8")):
        pass


def test_what_is_refused_for_its_origin_costs_nobody_a_token(
    app: Flask, client: SocketsClient
) -> None:
    """Else a page elsewhere could keep its visitors from connecting here."""
    app.config["SOCKETS_MAX_HANDSHAKE_RATE_PER_ADDRESS"] = 1e-6
    for _ in range(3):
        assert refusal(client, origin="https://evil.example").status_code == 403
    with client.connect("/echo"):
        pass


def test_a_flood_of_refusals_is_a_line_a_second(
    app: Flask, client: SocketsClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    app.config["SOCKETS_MAX_CONNECTIONS"] = 0
    begun = time.monotonic()
    for _ in range(100):
        assert refusal(client).status_code == 503
    lines = [message for message in caplog.messages if "SOCKETS_MAX_CONNECTIONS is" in message]
    assert 1 <= len(lines) <= 1 + (time.monotonic() - begun)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("SOCKETS_MAX_CONNECTIONS", -1),
        ("SOCKETS_MAX_CONNECTIONS_PER_ADDRESS", "5"),
        ("SOCKETS_MAX_CONNECTIONS_PER_USER", 1.5),
        ("SOCKETS_MAX_HANDSHAKE_RATE", 0),
        ("SOCKETS_MAX_HANDSHAKE_RATE", True),
        ("SOCKETS_MAX_HANDSHAKE_RATE_PER_ADDRESS", float("inf")),
        ("SOCKETS_MAX_MESSAGE_RATE", 0.5),
        ("SOCKETS_MAX_MESSAGE_RATE", "10"),
        ("SOCKETS_MAX_CONNECTION_AGE", 0),
    ],
)
def test_a_limit_that_is_none_is_named_before_anything_is_served(
    setting: str, value: Any, app: Flask
) -> None:
    app.config[setting] = value
    with pytest.raises(ValueError, match=f"^{setting} must be .*"):
        Sockets(app)


# -- messages --------------------------------------------------------------------------------


def test_who_sends_too_much_has_to_wait_and_loses_nothing(
    sockets: Sockets, client: SocketsClient
) -> None:
    sockets.add_url_rule("/slow", "slow", echo, max_message_rate=100)
    with client.connect("/slow") as ws:
        begun = time.monotonic()
        for number in range(200):
            ws.send(f"{number}")
        assert [ws.receive(timeout=TIMEOUT) for _ in range(200)] == [f"{n}" for n in range(200)]
        # 100 at once, and up to 64 more with one read.
        assert time.monotonic() - begun > 0.3
    assert sockets.stats()["routes"]["/slow"]["slowed"] >= 1


def test_who_keeps_to_the_rate_never_waits(sockets: Sockets, client: SocketsClient) -> None:
    sockets.add_url_rule("/slow", "slow", echo, max_message_rate=1000)
    with client.connect("/slow") as ws:
        for number in range(500):
            ws.send(f"{number}")
            assert ws.receive(timeout=TIMEOUT) == f"{number}"
    assert sockets.stats()["routes"]["/slow"]["slowed"] == 0


def test_a_listener_that_sends_has_to_wait_too(
    app: Flask, sockets: Sockets, client: SocketsClient
) -> None:
    sockets.add_url_rule(
        "/slowed", "slowed", lambda ws: ws.subscribe("news") and None, max_message_rate=10
    )
    with client.connect("/slowed") as ws:
        for _ in range(80):
            ws.send("x")
        counted = state_of(app).counters.of_route("/slowed")
        wait_until(lambda: counted.slowed, "the rate to be noticed")
        sockets.publish("news", "still")
        assert ws.receive(timeout=TIMEOUT) == "still"


def test_a_connection_that_waits_for_its_rate_can_be_closed(
    sockets: Sockets, client: SocketsClient
) -> None:
    ready = threading.Event()
    kept: list[weakref.ref[Any]] = []

    @sockets.route("/slow", max_message_rate=1, send_timeout=0.2)
    def slow(ws: Any) -> None:
        kept.append(weakref.ref(ws))
        ws.receive()
        ready.wait(TIMEOUT)
        ws.close(4000, "enough")

    with client.connect("/slow") as ws:
        for _ in range(200):  # the kernel takes no more than 278 of a peer that is not read
            ws.send("x")
        ready.set()
        begun = time.monotonic()
        assert closing(ws) == (4000, "enough")
        assert time.monotonic() - begun < 60  # and not the 200 s that it owes
    wait_until(lambda: gc.collect() is not None and kept[0]() is None, "it to be let go of")


# -- age -------------------------------------------------------------------------------------


def test_an_old_connection_is_closed_and_comes_back_without_a_loss(
    app: Flask, sockets: Sockets
) -> None:
    @sockets.route("/old", max_connection_age=1)
    def old(ws: Any) -> None:
        ws.subscribe("news", request.args["since"], envelope=True)

    client = sockets.test_client(app)
    position = str(sockets.position("news"))
    published = ended = 0
    received: list[int] = []
    while ended < 2 or len(received) < published:
        with client.connect(f"/old?since={position}") as ws:
            while ended < 2 or len(received) < published:
                if ended < 2:
                    sockets.publish("news", published)
                    published += 1
                message = ws.receive(timeout=TIMEOUT)
                if message is None:
                    assert ws.close_code == 1001
                    assert ws.close_reason == "open for long enough; connect again"
                    ended += 1
                    break
                envelope = json.loads(message)
                position = envelope["position"]
                received.append(envelope["data"])
    assert received == list(range(published))


def test_an_old_event_stream_ends(app: Flask, sockets: Sockets) -> None:
    app.config["SOCKETS_MAX_CONNECTION_AGE"] = 1
    begun = time.monotonic()
    response = app.test_client().get("/events")
    assert b"".join(response.response).count(b"data:") == 2
    assert time.monotonic() - begun > 0.5
    wait_until(lambda: not state_of(app).streams, "the stream to be counted no longer")


def test_who_leaves_before_is_forgotten(app: Flask, client: SocketsClient) -> None:
    app.config.update(SOCKETS_MAX_CONNECTION_AGE=1000, SOCKETS_MAX_CONNECTIONS_PER_ADDRESS=10)
    for _ in range(3):
        client.connect("/echo").close()
    admission = state_of(app).admission
    assert (admission._guests, admission._networks) == ({}, {})
    (of_thread,) = admission._ages.values()
    assert of_thread._due == {}


def test_a_hub_whose_thread_has_ended_is_forgotten_and_so_is_who_was_there() -> None:
    class Clock:
        def __init__(self) -> None:
            self.calls: list[Callable[[], None]] = []

        def call_later(self, delay: float, function: Callable[[], None]) -> None:
            self.calls.append(function)

    class One:
        pass

    admission, clock, one = Admission(Counters()), Clock(), One()
    gone = [weakref.ref(clock), weakref.ref(one)]
    guest = admission.expect(Rules(), None, "a WebSocket")
    guest.max_age = 1000.0
    admission.enter(admission.connections, one, guest, clock, lambda code, reason: True)  # type: ignore[arg-type]
    assert len(admission._ages) == 1
    admission.leave(admission.connections, one)
    for tick in clock.calls[:]:
        clock.calls.remove(tick)
        tick()
    assert clock.calls == []
    del clock, one, guest, tick
    gc.collect()
    assert [each() for each in gone] == [None, None]
    assert len(admission._ages) == 0


# -- nothing set -----------------------------------------------------------------------------


def test_without_limits_nothing_is_kept_of_a_connection(app: Flask, client: SocketsClient) -> None:
    with client.connect("/echo"):
        admission = state_of(app).admission
        assert len(admission.connections) == 1
        assert (admission._guests, admission._networks, admission._users) == ({}, {}, {})
        assert (len(admission._ages), len(admission._rates)) == (0, 0)


def test_the_refusals_are_metrics(app: Flask) -> None:
    app.config.update(SOCKETS_METRICS_ROUTE="/metrics", SOCKETS_MAX_CONNECTIONS=0)
    sockets = Sockets(app)
    sockets.route("/echo")(echo)
    for _ in range(3):
        refusal(sockets.test_client(app))
    text = app.test_client().get("/metrics").text
    assert 'flask_sockets2_refused_total{limit="max_connections"} 3.0' in text
    assert 'flask_sockets2_refused_total{limit="max_handshake_rate"} 0.0' in text
    assert "flask_sockets2_disconnected_total 0.0" in text
