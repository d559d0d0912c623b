"""Several blueprints in one application: none reaches what is another's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Blueprint, Flask
from hypothesis import given
from hypothesis import strategies as st

from flask_sockets2.application.state import state_of
from flask_sockets2.sse import Progress, ServerSentEventsBlueprint, sse
from flask_sockets2.sse.encoding import channel_of, name_of
from flask_sockets2.sse.settings import Site
from tests.brokers.servers import RedisServer
from tests.clients import http
from tests.event_client import EventClient
from tests.processes import Server, wait_until
from tests.sse.reader import Reader
from tests.wire_client import TIMEOUT

OPEN = "channel=news&last_event_id=start"


def blueprint(name: str) -> ServerSentEventsBlueprint:
    made = ServerSentEventsBlueprint(name, __name__)
    made.add_url_rule("", endpoint="stream", view_func=made.stream)
    return made


def make_app(*blueprints: ServerSentEventsBlueprint, **config: Any) -> Flask:
    """Return an application with blueprints, each under its name."""
    app = Flask(__name__)
    app.config.update(SECRET_KEY="for the tests", SSE_OPEN_CHANNELS=True, **config)
    for each in blueprints:
        app.register_blueprint(each, url_prefix=f"/{each.name}")
    return app


def channel_in(app: Flask, publisher: ServerSentEventsBlueprint) -> str:
    """Return the channel of the broker to which a blueprint publishes its ``news``."""
    found: list[str] = []
    of_app = state_of(app).publisher
    publish = of_app.publish
    of_app.publish = lambda channel, *args: found.append(channel) or publish(channel, *args)  # type: ignore[method-assign,func-returns-value,assignment]  # looks on
    try:
        with app.app_context():
            publisher.publish("x", channel="news")
    finally:
        del of_app.publish
    return found[0]


@pytest.mark.parametrize(
    "names", [("sse", "mail"), ("mail", "sse"), ("mail", "news"), ("a:b", "a")]
)
def test_what_one_publishes_is_read_at_no_other(names: tuple[str, str]) -> None:
    one, other = map(blueprint, names)
    app = make_app(one, other)
    channel = "b:c" if names == ("a:b", "a") else "news"
    query = f"channel={channel}&last_event_id=start"
    with app.app_context():
        one.publish("the one's", channel="c" if names[0] == "a:b" else channel)
        other.publish("the other's", channel=channel)
    with Reader(app, f"/{names[1]}?{query}") as reader, app.app_context():
        assert reader.data(1) == ["the other's"]
        one.publish("more of the one's", channel=channel)
        other.publish("more of the other's", channel=channel)
        assert reader.data(1) == ["more of the other's"]


NAMES = st.text("a:%.3A25", max_size=6)
CHANNELS = st.tuples(NAMES, NAMES.filter(bool))


@given(CHANNELS, CHANNELS)
def test_no_two_channels_of_blueprints_have_one_name(
    one: tuple[str, str], other: tuple[str, str]
) -> None:
    channels = {channel_of(name, blueprint) for blueprint, name in (one, other)}
    assert len(channels) == len({one, other})
    assert {name_of(channel) for channel in channels} == {one[1], other[1]}


def test_the_channels_of_the_only_one_have_no_name_in_them_whatever_that_is() -> None:
    for name in ("sse", "mail"):
        only = blueprint(name)
        assert channel_in(make_app(only), only) == "sse:news"


def test_those_of_the_one_called_sse_have_none_in_whatever_order_they_came() -> None:
    for others in ([], [blueprint("mail")]):
        app = make_app(*others, sse, blueprint("sport"))
        assert channel_in(app, sse) == "sse:news"


def test_without_one_of_that_name_it_is_the_first() -> None:
    mail, sport = blueprint("mail"), blueprint("sport")
    app = make_app(mail, sport)
    assert [channel_in(app, each) for each in (mail, sport)] == ["sse:news", "sse.sport:news"]


def test_one_that_is_registered_twice_is_one_with_two_addresses() -> None:
    app = make_app(sse)
    app.register_blueprint(sse, url_prefix="/again", name="again")
    assert channel_in(app, sse) == "sse:news"
    for path in ("/sse", "/again"):
        with Reader(app, f"{path}?{OPEN}") as reader:
            assert reader.data(1) == ["x"]


def test_one_within_another_blueprint_is_known_by_its_whole_name() -> None:
    app, parent, nested = make_app(sse), Blueprint("admin", __name__), blueprint("sse")
    parent.register_blueprint(nested, url_prefix="/nested")
    app.register_blueprint(parent, url_prefix="/admin")
    assert [channel_in(app, each) for each in (sse, nested)] == ["sse:news", "sse.admin.sse:news"]
    with Reader(app, f"/admin/nested?{OPEN}") as reader:
        assert reader.data(1) == ["x"]


def test_in_each_application_the_others_there_count() -> None:
    mail = blueprint("mail")
    alone, beside = make_app(mail), make_app(sse, mail)
    assert [channel_in(app, mail) for app in (alone, beside)] == ["sse:news", "sse.mail:news"]


@pytest.mark.parametrize("names", [("sse", "mail"), ("mail", "sse"), ("mail", "news")])
def test_an_address_that_is_signed_for_one_is_none_of_another(names: tuple[str, str]) -> None:
    one, other = map(blueprint, names)
    app = make_app(one, other)
    app.config["SSE_OPEN_CHANNELS"] = False
    with app.test_request_context():
        urls = {each.name: each.url("private").partition("?")[2] for each in (one, other)}
    for name in names:
        for path in names:
            response = app.test_client().get(f"/{path}?{urls[name]}")
            assert response.status_code == (200 if path == name else 403)
            response.close()


def test_progress_messages_and_positions_are_each_ones_own() -> None:
    mail = blueprint("mail")
    app = make_app(sse, mail)
    with app.test_request_context():
        with mail.progress("job", total=1):
            pass
        assert sse.position("job").endswith("-0")
        assert mail.position("job").endswith("-2")
        assert mail.url("job", last=1).endswith("-1")
    with Reader(app, "/mail?channel=job&last_event_id=start") as reader:
        assert [reader.next().json()["state"] for _ in range(2)] == ["running", "done"]
    with Progress(state_of(app).publisher, "job", blueprint="mail"):
        pass
    assert state_of(app).publisher.position("sse.mail:job").offset == 4


def test_a_gap_names_the_channel_as_the_page_knows_it() -> None:
    mail = blueprint("mail")
    app = make_app(sse, mail)
    with Reader(app, "/mail?channel=a:b&last_event_id=-") as reader:
        event = reader.next()
    assert (event.type, event.json()) == ("gap", {"channel": "a:b"})


@pytest.mark.parametrize("registered", [(), ("sport",)])
def test_one_that_is_not_registered_publishes_to_nobody_elses_channel(
    registered: tuple[str, ...],
) -> None:
    app, mail = make_app(*map(blueprint, registered)), blueprint("mail")
    with app.test_request_context():
        for use in (mail.url, mail.position, lambda: mail.publish("x"), lambda: mail.progress("x")):
            with pytest.raises(RuntimeError, match=r"'mail' is not registered .*call app\.regis"):
                use()
        with pytest.raises(RuntimeError, match="'mail' is not registered"):
            next(mail.messages())
        if registered:
            with pytest.raises(RuntimeError, match="'sse' is not registered"):
                sse.publish("x")


def test_one_without_a_rule_for_its_stream_says_how_to_add_it() -> None:
    mail = ServerSentEventsBlueprint("mail", __name__)
    with (
        make_app(mail).test_request_context(),
        pytest.raises(RuntimeError, match=r'^the blueprint \'mail\' .* add_url_rule\("", endpoint'),
    ):
        mail.url("news")


@pytest.fixture
def shared(broker: RedisServer) -> Iterator[Flask]:
    """An application at a Redis where programs with Flask-SSE are, too."""
    app = make_app(sse, SSE_REDIS_URL=broker.url)
    yield app
    interop = Site.of(app).interop
    assert interop is not None
    interop.close()
    state_of(app).channels.close()


def test_programs_with_flask_sse_hear_and_reach_the_main_one_alone(
    shared: Flask, broker: RedisServer
) -> None:
    mail = blueprint("mail")
    shared.register_blueprint(mail, url_prefix="/mail")
    heard: list[bytes] = []
    with (
        Reader(shared, "/mail?channel=news").opened() as mails,
        Reader(shared, "/sse?channel=news").opened() as events,
        broker.client() as client,
        client.pubsub(ignore_subscribe_messages=True) as pubsub,
        shared.app_context(),
    ):
        wait_until(lambda: client.pubsub_numsub("news")[0][1] == 1, "one that listens")
        pubsub.subscribe("news")
        mail.publish("private", channel="news")
        sse.publish("public", channel="news")
        while not heard:
            message = pubsub.get_message(timeout=TIMEOUT)
            heard += [message["data"]] if message else []
        assert b"public" in heard[0]
        client.publish("news", '{"data": "theirs"}')
        assert events.data(2) == ["public", "theirs"]
        mail.publish("last", channel="news")
        assert mails.data(2) == ["private", "last"]


TWO = """
    from flask import Flask, abort, request
    from flask_sockets2.sse import ServerSentEventsBlueprint, sse

    app = Flask(__name__)
    app.config.update(SECRET_KEY="x", SSE_OPEN_CHANNELS=True)
    staff = ServerSentEventsBlueprint("staff", __name__)
    staff.add_url_rule("", endpoint="stream", view_func=staff.stream)

    @staff.before_request
    def only_staff():
        if request.headers.get("X-Staff") != "yes":
            abort(403)

    app.register_blueprint(sse, url_prefix="/stream")
    app.register_blueprint(staff, url_prefix="/staff")

    @app.post("/publish/<text>")
    def publish(text):
        staff.publish(f"{text} for the staff", channel="news")
        staff.publish(f"{text} for the staff")
        sse.publish(f"{text} for all", channel="news")
        sse.publish(f"{text} for all")
        return ""
"""


@pytest.mark.slow
@pytest.mark.parametrize("query", ["?channel=news", "?channel=sse"])
@pytest.mark.parametrize("how", ["gunicorn", "flask_run"])
def test_what_is_published_behind_a_hook_is_read_behind_it(
    how: str, query: str, request: pytest.FixtureRequest
) -> None:
    start: Callable[..., Server] = request.getfixturevalue(how)
    server = start(TWO)
    assert http(server.url(f"/staff{query}"))[0] == 403
    assert http(server.url("/publish/first"), data=b"")[0] == 200
    with EventClient(server.port, f"/stream{query}&last_event_id=start") as client:
        assert client.next().data == "first for all"
        assert http(server.url("/publish/second"), data=b"")[0] == 200
        assert client.next().data == "second for all"
