"""The blueprint: what it publishes, streams and resumes, without a server."""

from __future__ import annotations

import gc
import math
import threading
from collections.abc import Iterator
from itertools import islice
from typing import Any
from urllib.parse import quote

import pytest
from flask import Blueprint, Flask, has_app_context, has_request_context, render_template_string

from flask_sockets2 import BrokerError, Sockets
from flask_sockets2.application.state import state_of
from flask_sockets2.brokers.base import Position
from flask_sockets2.servers.wsgi_stream import Stream
from flask_sockets2.sse import Message, ServerSentEventsBlueprint, sse
from tests.processes import wait_until
from tests.sse.reader import Reader


def make_app(**config: Any) -> Flask:
    app = Flask(__name__)
    app.config.update(SECRET_KEY="for the tests", SSE_OPEN_CHANNELS=True, **config)
    app.register_blueprint(sse, url_prefix="/stream")
    return app


@pytest.fixture
def app() -> Iterator[Flask]:
    app = make_app()
    with app.app_context():
        yield app


def publish(*data: Any, **how: Any) -> None:
    for each in data:
        sse.publish(each, **how)


# -- publish and stream --------------------------------------------------------------------------


def test_an_event_reaches_all_streams_of_its_channel(app: Flask) -> None:
    with (
        Reader(app).opened() as one,
        Reader(app).opened() as two,
        Reader(app, "/stream?channel=other").opened() as other,
    ):
        assert sse.publish({"message": "Hello!"}, type="greeting") == 2
        for reader in (one, two):
            event = reader.next()
            assert (event.type, event.json()) == ("greeting", {"message": "Hello!"})
            assert event.last_id == str(state_of(app).publisher.position("sse:sse"))
        assert sse.publish("x", channel="other") == 1
        assert other.next().data == "x"
    assert sse.publish("nobody") == 0


def test_a_stream_begins_with_its_position_and_when_to_come_back(app: Flask) -> None:
    publish("before")
    with Reader(app) as reader:
        here = state_of(app).publisher.position("sse:sse")
        lines = reader.block().split("\n")
        assert lines[1:] == [f"id:{here}"]
        assert 1000 <= int(lines[0].removeprefix("retry:")) <= 3000


def test_browsers_come_back_at_different_times_or_at_their_own(app: Flask) -> None:
    def told() -> int | None:
        with Reader(app) as reader:
            return reader.opened().retry

    assert len({told() for _ in range(20)}) > 5
    app.config["SSE_RETRY"] = None
    assert told() is None


def test_its_head(app: Flask) -> None:
    with Reader(app) as reader:
        assert dict(reader.response.headers) == {
            "Content-Type": "text/event-stream; charset=utf-8",
            "Cache-Control": "no-cache, no-transform",
            "X-Accel-Buffering": "no",
        }
    head = app.test_client().head("/stream")
    assert head.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert not state_of(app).streams


def test_a_stream_has_heartbeats(app: Flask) -> None:
    app.config["SSE_HEARTBEAT"] = 0.05
    with Reader(app).opened() as reader:
        assert [reader.block() for _ in range(2)] == [":", ":"]


def test_the_contexts_are_over_when_the_stream_begins() -> None:
    app = make_app()
    torn_down: list[Any] = []
    app.teardown_request(lambda error: torn_down.append(("request", error)))
    app.teardown_appcontext(lambda error: torn_down.append(("application", error)))
    with Reader(app) as reader:
        assert torn_down == [("request", None), ("application", None)]
        reader.opened()
        assert not has_request_context()
        assert not has_app_context()


@pytest.mark.parametrize(
    "data", ["", " leading", "a\n b", "\u2028", "\u00e9", {"a": [1]}, None, 0, [""], "x" * 200_000]
)
def test_data_arrives_as_it_was_published(app: Flask, data: Any) -> None:
    with Reader(app).opened() as reader:
        sse.publish(data)
        event = reader.next()
        assert (event.data if isinstance(data, str) else event.json()) == data


def test_the_ids_and_types_of_a_publisher_arrive(app: Flask) -> None:
    with Reader(app).opened() as reader:
        sse.publish("a", type="first", id=0)
        sse.publish("b", id="five", retry=0)
        here = str(state_of(app).publisher.position("sse:sse"))
        assert reader.next() == ("first", "a", "0")
        assert reader.next() == ("message", "b", "five")
        assert reader.retry == 0
        assert reader.block() == f"id:{here}"


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ({"type": "a\nb"}, "the type of an event is one line"),
        ({"id": "a\0"}, "the id of an event is one line"),
        ({"retry": "soon"}, "whole number of milliseconds"),
        ({"data": "\ud800"}, "half a surrogate pair"),
        ({"data": float("nan")}, "JSON"),
        ({"channel": ""}, "1 to 1024 bytes"),
        ({"data": "x" * 2**21}, "SOCKETS_MAX_MESSAGE_SIZE"),
    ],
)
def test_what_can_be_no_event_is_refused_when_it_is_published(
    app: Flask, how: dict[str, Any], error: str
) -> None:
    with pytest.raises(ValueError, match=error):
        sse.publish(**{"data": "x", **how})
    assert state_of(app).publisher.position("sse:sse").offset == 0


def test_bytes_are_no_data(app: Flask) -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        sse.publish(b"x")


def test_data_is_required(app: Flask) -> None:
    with pytest.raises(TypeError, match="data"):
        sse.publish()  # type: ignore[call-arg]


def test_what_comes_from_the_applications_channels_is_streamed_as_well(app: Flask) -> None:
    """Publisher.publish of a script, with the name that streams have in the broker."""
    sockets = Sockets(app)
    with Reader(app).opened() as reader:
        sockets.publish("sse:sse", {"data": {"a": 1}, "type": "t"})
        sockets.publish("sse:sse", "text")
        sockets.publish("sse:sse", ["no event's"])
        events = [reader.next() for _ in range(3)]
        assert [(e.type, e.data) for e in events] == [
            ("t", '{"a": 1}'),
            ("message", "text"),
            ("message", '["no event\'s"]'),
        ]


# -- resuming -------------------------------------------------------------------------------------


def test_who_comes_back_gets_each_event_once_and_in_order(app: Flask) -> None:
    with Reader(app).opened() as reader:
        publish("1", "2", "3")
        assert reader.data(2) == ["1", "2"]
        last = reader.last_id
    publish("4")
    with Reader(app, last_event_id=last) as again:
        publish("5")
        assert again.data(3) == ["3", "4", "5"]
    with Reader(app, f"/stream?last_event_id={last}") as asked:
        assert asked.data(3) == ["3", "4", "5"]
    with Reader(app, f"/stream?last_event_id={last}", last_event_id=again.last_id) as newer:
        publish("6")
        assert newer.data(1) == ["6"]


@pytest.mark.parametrize("name", ["lastEventId", "lastEventID", "Last-Event-ID", "lasteventid"])
def test_an_id_in_the_query_is_newer_than_where_the_address_begins(app: Flask, name: str) -> None:
    """As event-source-polyfill and reconnecting-eventsource have it, and clients of Mercure."""
    with Reader(app).opened() as reader:
        publish(*map(str, range(24)))
        reader.data(14)
        last = reader.last_id
        earlier, own = last.replace("-14", "-3"), "é&="
    rest = [str(number) for number in range(14, 24)]
    start = "last_event_id=start"
    for query in (
        f"{name}={last}",
        f"{start}&{name}={last}",
        f"{name}={last}&{start}",  # as a cache that sorts them
        f"{start}&{name}={earlier}&{name}={last}",
        f"{start}&{name}={last}&{name}=",
        f"last_event_id={earlier}&last_event_id={last}&{name}=",
    ):
        with Reader(app, f"/stream?{query}") as again:
            assert again.data(10) == rest, query
    with Reader(app, f"/stream?{start}&{name}={earlier}", last_event_id=last) as newest:
        assert newest.data(10) == rest
    publish("own", id=own)
    publish("after")
    with Reader(app, f"/stream?{start}&{name}={quote(own, safe='')}") as again:
        assert again.data(1) == ["after"]


@pytest.mark.parametrize("name", ["lastEventId", "lastEventID"])
def test_an_id_in_the_query_gives_a_signed_address_no_more(app: Flask, name: str) -> None:
    app.config["SSE_OPEN_CHANNELS"] = False
    publish("before", channel="news")
    with app.test_request_context():
        url = sse.url("news")
    here = str(state_of(app).publisher.position("sse:news"))
    publish("1", "2", channel="news")
    seen = here.replace("-1", "-2")
    with Reader(app, f"{url}&{name}={seen}") as reader:
        assert reader.data(1) == ["2"]
    with Reader(app, f"{url}&{name}={here.replace('-1', '-0')}") as reader:
        assert reader.next().type == "gap"
    with Reader(app, f"{url}&{name}=start") as reader:
        assert reader.data(2) == ["1", "2"]


def test_who_is_cut_off_before_any_event_misses_none(app: Flask) -> None:
    with Reader(app).opened() as reader:
        last = reader.last_id
    publish("1")
    with Reader(app, last_event_id=last) as again:
        assert again.data(1) == ["1"]


def test_all_that_is_kept_can_be_asked_for(app: Flask) -> None:
    publish("1", "2")
    with Reader(app, "/stream?last_event_id=start") as reader:
        assert reader.data(2) == ["1", "2"]


def test_a_stream_of_several_channels_resumes_all_of_them(app: Flask) -> None:
    path = "/stream?channel=a&channel=b&channel=a"
    publish("a0", channel="a")
    with Reader(app, path).opened() as reader:
        publish("a1", "a2", channel="a")
        publish("b1", channel="b")
        got = reader.data(2)
        last = reader.last_id
    publish("a3", channel="a")
    publish("b2", channel="b")
    with Reader(app, path, last_event_id=last) as again:
        publish("b3", channel="b")
        got += again.data(4)
    assert sorted(got) == ["a1", "a2", "a3", "b1", "b2", "b3"]
    assert [each for each in got if each[0] == "a"] == ["a1", "a2", "a3"]


def test_wherever_a_stream_of_several_channels_is_cut_nothing_is_lost_or_doubled(
    app: Flask,
) -> None:
    path = "/stream?channel=a&channel=b&channel=c"
    with Reader(app, path).opened() as reader:
        for number in range(12):
            publish(f"{'abc'[number % 3]}{number}", channel="abc"[number % 3])
        ids = [reader.last_id]
        seen = []
        for _ in range(12):
            seen.append(reader.next().data)
            ids.append(reader.last_id)
    for cut, last in enumerate(ids):
        with Reader(app, path, last_event_id=last) as again:
            rest = again.data(12 - cut)
            assert sorted(seen[:cut] + rest) == sorted(seen)
            for channel in "abc":
                of_channel = [each for each in seen[:cut] + rest if each[0] == channel]
                assert of_channel == [each for each in seen if each[0] == channel]


def test_a_publishers_own_id_is_resumed_from(app: Flask) -> None:
    publish("a", id="x")
    publish("b", id=7)
    publish("c", id="é")
    publish("d")
    for last, rest in (("x", ["b", "c", "d"]), ("7", ["c", "d"])):
        with Reader(app, last_event_id=last) as reader:
            assert reader.data(len(rest)) == rest
    # As a browser sends it: UTF-8, which WSGI has as Latin-1.
    with Reader(app, last_event_id="é".encode().decode("latin-1")) as reader:
        assert reader.data(1) == ["d"]


def test_the_newest_event_of_an_own_id_counts(app: Flask) -> None:
    publish("a", "b", "c", id="same")
    publish("d")
    with Reader(app, last_event_id="same") as reader:
        assert reader.data(1) == ["d"]


def test_of_the_other_channels_an_own_id_says_nothing_so_they_have_a_gap(app: Flask) -> None:
    publish("a1", id="x", channel="a")
    publish("a2", channel="a")
    publish("b1", channel="b")
    with Reader(app, "/stream?channel=a&channel=b", last_event_id="x") as reader:
        events = [reader.next() for _ in range(2)]
    assert [(e.type, e.data) for e in events] == [("message", "a2"), ("gap", '{"channel": "b"}')]


FORGED = [
    "0000000000000000-1",
    "0000000000000000-9999999999999999",
    "-",
    "x",
    "null",
    "a" * 5000,
    "0000000000000000-1,0000000000000000-1",
    ",",
    "😀".encode().decode("latin-1"),
]


@pytest.mark.parametrize("last", FORGED, ids=range(len(FORGED)))
def test_a_forged_position_is_a_gap_and_the_stream_goes_on(app: Flask, last: str) -> None:
    publish("old")
    with Reader(app, last_event_id=last) as reader:
        gap = reader.next()
        assert (gap.type, gap.json()) == ("gap", {"channel": "sse"})
        assert Position.parse(reader.last_id) == state_of(app).publisher.position("sse:sse")
        publish("new")
        assert reader.data(1) == ["new"]


def test_what_the_history_holds_no_longer_is_a_gap() -> None:
    app = make_app(SOCKETS_HISTORY_SIZE=2)
    with app.app_context():
        publish("1")
        first = str(state_of(app).publisher.position("sse:sse"))
        publish("2", "3", "4")
    with Reader(app, last_event_id=first) as reader:
        assert reader.next().type == "gap"
    assert state_of(app).counters.of_channel("sse:sse").gaps == 1


# -- registration ----------------------------------------------------------------------------------


def test_one_blueprint_serves_several_applications_each_with_its_channels() -> None:
    one, two = make_app(), make_app()
    with Reader(one).opened() as reader:
        with two.app_context():
            assert sse.publish("two's") == 0
        with one.app_context():
            assert sse.publish("one's") == 1
        assert reader.data(1) == ["one's"]


def test_it_may_have_another_name_and_a_parent() -> None:
    app = Flask(__name__)
    app.register_blueprint(sse, url_prefix="/a", name="first")
    parent = Blueprint("parent", __name__, url_prefix="/parent")
    parent.register_blueprint(sse, url_prefix="/b")
    app.register_blueprint(parent)
    with app.test_request_context():
        assert app.url_for("first.stream") == "/a"
        assert sse.url().startswith("/parent/b?")
    for path in ("/a", "/parent/b"):
        with Reader(app, path):
            pass


def test_without_a_prefix_the_error_names_the_remedy() -> None:
    with pytest.raises(ValueError, match="url_prefix="):
        Flask(__name__).register_blueprint(sse)


def test_a_blueprint_of_ones_own_has_its_own_rules() -> None:
    mine = ServerSentEventsBlueprint("mine", __name__)
    mine.add_url_rule("/news", endpoint="stream", view_func=mine.stream)
    app = Flask(__name__)
    app.secret_key = "for the tests"
    app.register_blueprint(mine, url_prefix="/my")
    with app.test_request_context():
        url = render_template_string("{{ mine.url('news') }}")
    assert url.startswith("/my/news?")
    with Reader(app, url).opened() as reader, app.app_context():
        mine.publish("x", channel="news")
        assert reader.data(1) == ["x"]


def test_the_application_may_have_sockets_of_its_own_before_or_after() -> None:
    for first in (True, False):
        app = Flask(__name__)
        sockets = Sockets(app) if first else None
        app.register_blueprint(sse, url_prefix="/stream")
        sockets = sockets or Sockets(app)
        with Reader(app).opened(), app.app_context():
            assert sse.publish("x") == 1
            assert sockets.stats()["streams"] == 1


def test_a_program_that_only_publishes_need_not_register_it() -> None:
    with Flask(__name__).app_context():
        assert sse.publish("x") == 0


def test_publishing_from_an_application_that_serves_without_it_names_the_remedy() -> None:
    app = Flask(__name__)
    app.test_client().get("/")
    for _ in range(2):
        with app.app_context(), pytest.raises(RuntimeError, match=r"register_blueprint\(sse\)"):
            sse.publish("x")


OF_NO_BLUEPRINT = {
    "stream": lambda: sse.stream(),
    "url": lambda: sse.url(),
    "signed": lambda: sse.url("news"),
    "publish": lambda: str(sse.publish("x")),
    "position": lambda: sse.position(),
    "mine": lambda: ServerSentEventsBlueprint("mine", __name__).stream(),
}


@pytest.mark.parametrize("view", OF_NO_BLUEPRINT)
@pytest.mark.parametrize("way", ["nothing", "sockets", "published"])
def test_without_the_blueprint_a_view_answers_the_first_request_as_all_later_ones(
    view: str, way: str
) -> None:
    """The first request of an application left something behind that the second one took."""
    app = Flask(__name__)
    app.secret_key = "for the tests"
    if way == "sockets":
        Sockets(app)
    elif way == "published":
        with app.app_context():
            sse.publish("when it starts")
    app.add_url_rule("/", "view", OF_NO_BLUEPRINT[view])
    errors: list[str] = []

    @app.errorhandler(RuntimeError)
    def note(error: RuntimeError) -> tuple[str, int]:
        errors.append(str(error))
        return "", 500

    statuses = []
    for _ in range(3):
        response = app.test_client().get("/")
        statuses.append(response.status_code)
        response.close()
    of_channels = view in ("publish", "position") and way != "nothing"
    assert statuses == [200 if of_channels else 500] * 3
    assert all("register_blueprint(" in error for error in errors)
    assert way != "nothing" or "flask_sockets2" not in app.extensions


def test_a_view_of_ones_own_asks_as_the_blueprints_does() -> None:
    mine = ServerSentEventsBlueprint("mine", __name__)
    mine.add_url_rule("", endpoint="stream", view_func=mine.stream)
    mine.authorize(lambda channel: channel == "news")
    app = Flask(__name__)
    app.register_blueprint(mine, url_prefix="/mine")
    app.add_url_rule("/own", "own", mine.stream)
    for _ in range(2):
        for path in ("/mine", "/own"):
            with Reader(app, f"{path}?channel=news").opened() as reader, app.app_context():
                mine.publish("x", channel="news")
                assert reader.data(1) == ["x"]
            assert app.test_client().get(f"{path}?channel=other").status_code == 403


def test_without_an_application_flask_says_what_is_missing() -> None:
    with pytest.raises(RuntimeError, match="application context"):
        sse.publish("x")


# -- Redis' settings -------------------------------------------------------------------------------


def test_a_redis_url_that_is_none_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"^REDIS_URL: .* without a scheme"):
        make_app(REDIS_URL="localhost:6379")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, "memory://"),
        ({"REDIS_URL": "redis://127.0.0.1:1/1"}, "redis://127.0.0.1:1/1"),
        (
            {"REDIS_URL": "redis://127.0.0.1:1/1", "SSE_REDIS_URL": "redis://127.0.0.1:1/2"},
            "redis://127.0.0.1:1/2",
        ),
        ({"REDIS_URL": "redis://127.0.0.1:1/1", "SSE_REDIS_URL": ""}, "redis://127.0.0.1:1/1"),
        ({"REDIS_URL": "redis://127.0.0.1:1/1", "SOCKETS_BROKER_URL": "memory://"}, "memory://"),
    ],
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_flask_sses_settings_choose_the_broker_where_ours_does_not(
    config: dict[str, str], expected: str, when: str
) -> None:
    app = Flask(__name__)
    if when == "before":
        app.config.update(config)
    app.register_blueprint(sse, url_prefix="/stream")
    app.config.update(config)
    assert state_of(app).channels.broker.url == expected


def test_without_the_blueprint_they_choose_nothing() -> None:
    app = Flask(__name__)
    app.config["REDIS_URL"] = "redis://127.0.0.1:1/1"
    Sockets(app)
    assert state_of(app).channels.broker.url == "memory://"


def test_redis_is_a_client_of_the_url_or_a_key_error(app: Flask) -> None:
    with pytest.raises(KeyError, match="Must set a redis connection URL in app config"):
        _ = sse.redis
    app.config["REDIS_URL"] = "redis://127.0.0.1:1/3"
    assert sse.redis.connection_pool.connection_kwargs["db"] == 3
    app.config["SSE_REDIS_URL"] = "redis://127.0.0.1:1/4"
    assert sse.redis.connection_pool.connection_kwargs["db"] == 4


def test_redis_away_is_503_with_when_to_come_back_and_an_error_of_ours() -> None:
    app = make_app(REDIS_URL="redis://127.0.0.1:1")
    response = app.test_client().get("/stream")
    assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
    assert not state_of(app).streams
    with app.app_context(), pytest.raises(BrokerError, match=r"127\.0\.0\.1:1"):
        sse.publish("x")


# -- where a page begins ---------------------------------------------------------------------------


@pytest.mark.parametrize("last", [-1, 1.5, "1", None, True, math.nan, 10**30])
def test_a_number_of_events_that_is_none_is_named(app: Flask, last: Any) -> None:
    for ask in (sse.position, sse.url):
        with (
            app.test_request_context("/"),
            pytest.raises(ValueError, match=r"^last= must be a whole number, at least 0, got "),
        ):
            ask("a", last=last)


@pytest.mark.parametrize(
    "since", ["junk", "Start", "0123456789abcdef-1,-", "0123456789abcdef", 5, b"-", ["-"], "-,"]
)
def test_an_id_that_no_position_has_is_an_error_of_the_page(app: Flask, since: Any) -> None:
    with app.test_request_context("/"):
        with pytest.raises(
            ValueError, match=r"^since= must be what sse\.position\(\) returned for"
        ):
            sse.url("a", since=since)
        with pytest.raises(ValueError, match=r"^since= must be .* for the same 3 channels"):
            sse.url("a", "b", "c", since=since)


def test_an_id_of_as_many_channels_is_taken(app: Flask) -> None:
    with app.test_request_context("/"):
        for since in (
            None,
            "",
            "start",
            "-,-",
            sse.position("a", "b"),
            sse.position("a", "a", "b"),
        ):
            assert sse.url("a", "b", since=since).startswith("/stream?channel=a&channel=b")
        with pytest.raises(ValueError, match=r"^since= must be"):
            sse.url("a", since=sse.position("a", "b"))


# -- messages --------------------------------------------------------------------------------------


def test_messages_are_those_that_come_after_the_first_next(app: Flask) -> None:
    publish("before")
    messages = sse.messages()
    found = []

    def read() -> None:
        with app.app_context():
            found.extend(islice(messages, 3))

    thread = threading.Thread(target=read)
    thread.start()
    wait_until(lambda: state_of(app).publisher.subscribers("sse:sse") == 1, "a subscriber")
    publish("a\nb")
    publish({"x": 1}, type="t", id=5, retry=9)
    publish("")
    thread.join(60)
    assert found == [Message("a\nb"), Message({"x": 1}, "t", 5, 9), Message("")]
    messages.close()  # type: ignore[attr-defined]
    assert state_of(app).publisher.subscribers("sse:sse") == 0


def test_messages_that_nobody_wants_any_more_are_let_go_of(app: Flask) -> None:
    before = set(Stream.opened())
    app.config["SSE_HEARTBEAT"] = 0.05
    publish("x")
    messages = sse.messages("other")
    del messages
    gc.collect()
    assert set(Stream.opened()) == before


# -- addresses -------------------------------------------------------------------------------------


def test_the_address_of_a_page_misses_nothing_after_its_rendering(app: Flask) -> None:
    publish("before")
    with app.test_request_context():
        url = render_template_string("{{ sse.url() }}")
    assert url.startswith("/stream?last_event_id=")
    publish("between")
    with Reader(app, url) as reader:
        assert reader.data(1) == ["between"]


def test_the_address_may_hold_an_earlier_position_or_the_last_events(app: Flask) -> None:
    with app.test_request_context():
        early = sse.position("a", "b")
        publish("a1", "a2", channel="a")
        publish("b1", channel="b")
        with Reader(app, sse.url("a", "b", since=early)) as reader:
            assert sorted(reader.data(3)) == ["a1", "a2", "b1"]
        for last, data in ((1, ["a2"]), (2, ["a1", "a2"]), (9, ["a1", "a2"])):
            with Reader(app, sse.url("a", last=last)) as reader:
                assert reader.data(len(data)) == data
        with Reader(app, sse.url("nothing", last=1)).opened() as reader:
            publish("new", channel="nothing")
            assert reader.data(1) == ["new"]


def test_a_page_that_is_made_while_the_broker_is_away_has_a_gap(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = make_app(REDIS_URL="redis://127.0.0.1:1")
    with app.test_request_context():
        assert sse.url("a", "b", last=1) == "/stream?channel=a&channel=b&last_event_id=-,-"
    assert "a page has no positions" in caplog.text
