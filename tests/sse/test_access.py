"""Which channels a request may have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flask import Blueprint, Flask, abort, request
from flask.testing import FlaskClient

from flask_sockets2 import BrokerError, Sockets, Turbo
from flask_sockets2.application.signing import Signer
from flask_sockets2.application.state import state_of
from flask_sockets2.brokers.base import Position
from flask_sockets2.sse import ServerSentEventsBlueprint
from flask_sockets2.sse.access import sign
from flask_sockets2.turbo.stream_names import StreamSigner
from tests.sse.reader import Reader


class Site:
    """An application with a blueprint of its own, since hooks stay with one."""

    def __init__(self, **config: Any) -> None:
        self.app = Flask(__name__)
        self.app.config.update(SECRET_KEY="for the tests", **config)
        self.sse = ServerSentEventsBlueprint("sse", __name__)
        self.sse.add_url_rule("", endpoint="stream", view_func=self.sse.stream)

    def client(self) -> FlaskClient:
        self.app.register_blueprint(self.sse, url_prefix="/stream")
        return self.app.test_client()

    def url(self, *channels: str, **how: Any) -> str:
        with self.app.test_request_context():
            return self.sse.url(*channels, **how)

    def status(self, url: str) -> int:
        response = self.app.test_client().get(url)
        response.close()
        assert bool(state_of(self.app).streams) is False
        return response.status_code


@pytest.fixture
def site() -> Site:
    return Site()


def test_the_default_channel_is_open_and_others_are_not(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    client = site.client()
    for path in ("/stream", "/stream?channel=sse", "/stream?channel="):
        assert site.status(path) == 200
    for path in ("/stream?channel=news", "/stream?channel=sse&channel=news"):
        response = client.get(path)
        assert response.status_code == 403
        assert "not open" in response.text
    for remedy in ("@sse.authorize", "sse.url(", "SSE_OPEN_CHANNELS"):
        assert remedy in caplog.text


def test_all_are_open_where_the_application_opts_in() -> None:
    site = Site(SSE_OPEN_CHANNELS=True)
    site.client()
    assert site.status("/stream?channel=news&channel=sport") == 200
    assert site.url("news", since="-") == "/stream?channel=news&last_event_id=-"


def test_functions_of_before_request_open_nothing_whatever_they_are_for(site: Site) -> None:
    """Issues 9, 19 and 25 of Flask-SSE: to log, to set ``g``, to look who is logged in."""
    seen: list[str] = []
    site.sse.before_request(lambda: seen.append(request.path))
    site.sse.before_app_request(lambda: None)
    site.app.before_request(lambda: None)
    site.client()
    assert site.status("/stream?channel=news") == 403
    assert site.status("/stream?channel=news&channel=sport") == 403
    assert site.status("/stream") == 200
    assert seen == ["/stream"] * 3
    url = site.url("news")
    assert url.startswith("/stream?signed=")
    assert site.status(url) == 200


def test_a_function_of_before_request_refuses_one_channel_as_in_flask_sse() -> None:
    site = Site(SSE_OPEN_CHANNELS=True)

    @site.sse.before_request
    def check_access() -> None:
        if request.args.get("channel") == "firehose":
            abort(403)

    site.client()
    assert site.status("/stream?channel=news") == 200
    assert site.status("/stream?channel=news&channel=news") == 200
    assert site.status("/stream?channel=firehose") == 403
    # It looks at the first one only.
    assert site.status("/stream?channel=news&channel=firehose") == 403
    assert site.status("/stream?channel=&channel=firehose") == 400
    assert site.status("/stream") == 200
    assert site.status(site.url("news", "sport")) == 200  # which is signed


def test_so_does_one_of_a_blueprint_around_it() -> None:
    site = Site(SSE_OPEN_CHANNELS=True)
    parent = Blueprint("parent", __name__, url_prefix="/parent")

    @parent.before_request
    def check_access() -> None:
        if request.args.get("channel") == "firehose":
            abort(403)

    parent.register_blueprint(site.sse, url_prefix="/stream")
    site.app.register_blueprint(parent)
    assert site.status("/parent/stream?channel=news") == 200
    assert site.status("/parent/stream?channel=firehose") == 403
    assert site.status("/parent/stream?channel=news&channel=firehose") == 403


def test_the_hook_is_asked_for_each_channel_within_the_request(site: Site) -> None:
    asked = []

    @site.sse.authorize
    def may_have(channel: str) -> bool:
        asked.append((channel, request.path))
        return channel != "secret"

    client = site.client()
    assert site.status("/stream?channel=news&channel=sport&channel=news") == 200
    assert asked == [("news", "/stream"), ("sport", "/stream")]
    response = client.get("/stream?channel=news&channel=secret")
    assert response.status_code == 403
    assert "not for you" in response.text
    assert site.status(site.url("secret")) == 403
    signed = signed_url(site, "secret")
    assert site.status(signed) == 403


def signed_url(site: Site, *names: str) -> str:
    return f"/stream?signed={sign(site.app, names, ['start'] * len(names))}"


def test_the_hook_is_asked_for_the_default_channel_too(site: Site) -> None:
    site.sse.authorize(lambda channel: False)
    site.client()
    assert site.status("/stream") == 403


def test_what_the_hook_raises_is_the_answer(site: Site) -> None:
    @site.sse.authorize
    def may_have(channel: str) -> None:
        abort(401)

    site.client()
    assert site.status("/stream?channel=news") == 401


def test_a_signed_address_is_a_permission(site: Site) -> None:
    site.client()
    url = site.url("news", "sport")
    assert url.startswith("/stream?signed=")
    with Reader(site.app, url).opened() as reader, site.app.app_context():
        site.sse.publish("goal", channel="sport")
        assert reader.data(1) == ["goal"]
    assert site.url("sse").startswith("/stream?last_event_id=")


def change_a_letter(url: str) -> str:
    return url.replace("signed=", "signed=x")


def cut(url: str) -> str:
    return url.partition("&")[0][:-1]


@pytest.mark.parametrize("forge", [change_a_letter, cut])
def test_a_forged_one_is_none(site: Site, forge: Callable[[str], str]) -> None:
    site.client()
    assert site.status(forge(site.url("news"))) == 403


def test_one_for_turbo_is_none(site: Site) -> None:
    site.client()
    name = StreamSigner(site.app).sign("turbo:all")
    assert site.status(f"/stream?signed={name}") == 403


def test_an_old_one_has_expired_unless_any_age_counts(site: Site) -> None:
    site.client()
    url = site.url("news")
    site.app.config["SSE_MAX_AGE"] = 1e-9
    assert site.status(url) == 410
    site.app.config["SSE_MAX_AGE"] = None
    assert site.status(url) == 200
    site.app.config["SSE_MAX_AGE"] = "a day"
    with pytest.raises(ValueError, match="SSE_MAX_AGE must be a number of seconds"):
        site.url("news")


def test_a_key_of_before_counts_while_it_is_named(site: Site) -> None:
    site.client()
    url = site.url("news")
    site.app.config.update(SECRET_KEY="another", SECRET_KEY_FALLBACKS=["for the tests"])
    assert site.status(url) == 200
    site.app.config["SECRET_KEY_FALLBACKS"] = []
    assert site.status(url) == 403


def test_without_a_key_nothing_is_signed(site: Site) -> None:
    site.client()
    site.app.secret_key = None
    with pytest.raises(RuntimeError, match="SECRET_KEY"):
        site.url("news")
    assert site.status("/stream?signed=anything") == 403
    assert site.status(site.url()) == 200


def test_without_a_key_the_error_names_it_also_if_the_page_has_a_user(site: Site) -> None:
    site.client()
    Sockets(site.app).user_id(lambda: "ann")
    site.app.secret_key = None
    for bind in ("user", "session", None):
        with pytest.raises(RuntimeError, match="SECRET_KEY"):
            site.url("news", bind=bind)


def test_both_ways_to_name_channels_at_once_are_refused(site: Site) -> None:
    site.client()
    assert site.status(f"{signed_url(site, 'news')}&channel=sport") == 400


def test_a_stream_of_too_many_channels_is_refused() -> None:
    site = Site(SSE_OPEN_CHANNELS=True)
    site.client()
    query = "&".join(f"channel=c{number}" for number in range(101))
    assert site.status(f"/stream?{query}") == 400
    assert site.status(f"/stream?{query.rpartition('&')[0]}") == 200
    assert site.status(f"/stream?channel={'x' * 2000}") == 400
    with pytest.raises(ValueError, match=r"up to 100 channels .*, got 101"):
        site.url(*(f"c{number}" for number in range(101)))


@pytest.mark.parametrize(("most", "allowed"), [(2, 2), (100, 100), (5000, 100)])
def test_a_stream_has_as_many_channels_as_is_set_and_never_more_than_its_id_can_name(
    most: int, allowed: int
) -> None:
    site = Site(SSE_OPEN_CHANNELS=True, SOCKETS_MAX_CHANNELS=most)
    site.client()
    names = [f"c{number}" for number in range(allowed + 1)]
    query = "&".join(f"channel={name}" for name in names)
    refused = site.app.test_client().get(f"/stream?{query}")
    assert (refused.status_code, "SOCKETS_MAX_CHANNELS" in refused.text) == (400, True)
    assert site.status(f"/stream?{query.rpartition('&')[0]}") == 200
    with pytest.raises(ValueError, match=f"up to {allowed} channels"):
        site.url(*names)
    assert site.status(signed_url(site, *names)) == 400, "a signature does not lift the limit"
    assert site.status(site.url(*names[:-1])) == 200


# -- addresses that are bound ----------------------------------------------------------------------


@pytest.fixture
def users(site: Site) -> Site:
    """One whose users are told by a header field."""
    Sockets(site.app).user_id(lambda: request.headers.get("X-User"))
    site.client()
    site.app.add_url_rule("/page", "page", lambda: site.sse.url("news", bind=bind_of(request)))
    return site


def bind_of(request: Any) -> str | None:
    bind: str = request.args.get("bind", "user")
    return None if bind == "none" else bind


def of(user: str | None) -> dict[str, str]:
    return {} if user is None else {"X-User": user}


def page_of(site: Site, user: str | None, bind: str = "user") -> str:
    return site.app.test_client().get(f"/page?bind={bind}", headers=of(user)).text


def status_for(site: Site, url: str, user: str | None) -> int:
    with site.app.test_client().get(url, headers=of(user)) as response:
        return response.status_code


def test_a_signed_address_is_for_the_user_of_its_page(
    users: Site, caplog: pytest.LogCaptureFixture
) -> None:
    url = page_of(users, "ann")
    assert status_for(users, url, "ann") == 200
    assert [status_for(users, url, user) for user in ("bob", None)] == [403, 403]
    assert "bind=None" in caplog.text
    assert "X-User" not in url


def test_one_of_a_page_without_a_user_or_that_is_bound_to_nobody_is_for_whoever_has_it(
    users: Site,
) -> None:
    for url in (page_of(users, None), page_of(users, "ann", "none")):
        assert [status_for(users, url, user) for user in ("ann", "bob", None)] == [200] * 3


def test_one_may_be_bound_to_the_session(users: Site) -> None:
    browser, other = users.app.test_client(), users.app.test_client()
    response = browser.get("/page?bind=session")
    assert response.headers["Vary"] == "Cookie"
    other.get("/page?bind=session")
    for client, status in ((browser, 200), (other, 403), (users.app.test_client(), 403)):
        with client.get(response.text) as answer:
            assert answer.status_code == status
    with browser.session_transaction() as session:
        session.clear()
    assert browser.get(response.text).status_code == 403


def test_an_address_that_is_made_outside_of_a_request_is_bound_to_nobody(users: Site) -> None:
    users.app.config["SERVER_NAME"] = "localhost"
    with users.app.app_context():
        url = users.sse.url("news")
        with pytest.raises(RuntimeError, match="bind=None"):
            users.sse.url("news", bind="session")
    assert status_for(users, url, "ann") == 200
    with users.app.app_context(), pytest.raises(ValueError, match='"user", "session" or None'):
        users.sse.url("news", bind="users")


def test_several_addresses_in_one_are_each_held_against_the_client(users: Site) -> None:
    ann, bob = page_of(users, "ann"), page_of(users, "bob")
    both = f"{ann}&{bob.partition('?')[2]}"
    assert [status_for(users, both, user) for user in ("ann", "bob")] == [403, 403]


def test_the_users_of_turbo_are_those_of_addresses_too(site: Site) -> None:
    Turbo(site.app).user_id(lambda: request.headers.get("X-User"))
    site.client()
    with site.app.test_request_context(headers=of("ann")):
        url = site.sse.url("news")
    assert [status_for(site, url, user) for user in ("ann", "bob", None)] == [200, 403, 403]


# -- what was published before the page was made -------------------------------------------------


def signed_after(site: Site, *data: str, **how: Any) -> str:
    """The address that a page is given once something was published."""
    site.client()
    publish(site, *data)
    url = site.url("news", **how)
    assert "signed=" in url
    return url


def publish(site: Site, *data: str, **how: Any) -> None:
    with site.app.app_context():
        for each in data:
            site.sse.publish(each, channel=how.get("channel", "news"), id=how.get("id"))


def here(site: Site, name: str = "news") -> Position:
    return state_of(site.app).publisher.position(f"sse:{name}")


def gap(reader: Reader) -> bool:
    return reader.next().type == "gap"


def seen_by(url: str, last_event_id: str, way: str) -> dict[str, str]:
    """How a client says what it has seen last."""
    if way == "header":
        return {"path": url, "last_event_id": last_event_id}
    return {"path": f"{url}&last_event_id={last_event_id}"}


@pytest.mark.parametrize("way", ["header", "query"])
@pytest.mark.parametrize("offset", [0, 1])
def test_a_signed_address_brings_nothing_from_before_its_page(
    site: Site, offset: int, way: str
) -> None:
    url = signed_after(site, "secret 1", "secret 2")
    asked = f"{here(site).epoch}-{offset}"
    with Reader(site.app, **seen_by(url, asked, way)) as reader:
        assert gap(reader)
        publish(site, "new")
        assert reader.data(1) == ["new"]


@pytest.mark.parametrize("way", ["header", "query"])
def test_the_start_of_a_signed_address_is_its_page(site: Site, way: str) -> None:
    url = signed_after(site, "secret")
    publish(site, "since")
    with Reader(site.app, **seen_by(url, "start", way)) as reader:
        assert reader.data(1) == ["since"]


def test_a_publishers_own_id_leads_to_nothing_from_before_the_page(site: Site) -> None:
    url = signed_after(site)
    publish(site, "secret 1", id="one")
    publish(site, "secret 2")
    url = site.url("news")
    with Reader(site.app, url, last_event_id="one") as reader:
        assert gap(reader)
    publish(site, "since", id="two")
    publish(site, "more")
    with Reader(site.app, url, last_event_id="two") as reader:
        assert reader.data(1) == ["more"]


def test_a_signed_address_misses_nothing_since_its_page_and_resumes(site: Site) -> None:
    url = signed_after(site, "before")
    publish(site, "1", "2")
    with Reader(site.app, url) as reader:
        assert reader.data(2) == ["1", "2"]
        last = reader.last_id
    publish(site, "3")
    with Reader(site.app, url, last_event_id=last) as again:
        assert again.data(1) == ["3"]
    with Reader(site.app, url) as anew:  # as a page from a cache does
        assert anew.data(3) == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("start,start", {"new a", "new b"}),
        ("{a}-2,{b}-1", {"new a", "new b"}),
        ("{a}-2,{b}-0", {"new a", "gap in b"}),
        ("{a}-0,{b}-0", {"gap in a", "gap in b"}),
        ("{b}-1,{a}-2", {"gap in a", "gap in b"}),
    ],
)
def test_each_channel_of_an_address_begins_at_its_page(
    site: Site, asked: str, expected: set[str]
) -> None:
    site.client()
    publish(site, "secret", "secret", channel="a")
    publish(site, "secret", channel="b")
    url = site.url("a", "b")
    asked = asked.format(a=here(site, "a").epoch, b=here(site, "b").epoch)
    publish(site, "new a", channel="a")
    publish(site, "new b", channel="b")
    with Reader(site.app, url, last_event_id=asked) as reader:
        events = [reader.next() for _ in range(2)]
    found = {
        f"gap in {each.json()['channel']}" if each.type == "gap" else each.data for each in events
    }
    assert found == expected


def test_an_address_may_begin_before_its_page_if_the_application_says_so(site: Site) -> None:
    url = signed_after(site, "1", "2", "3", last=2)
    for last_event_id in ("", "start"):
        with Reader(site.app, url, last_event_id=last_event_id) as reader:
            assert reader.data(2) == ["2", "3"]
    with Reader(site.app, url, last_event_id=f"{here(site).epoch}-0") as reader:
        assert gap(reader)
    with Reader(site.app, site.url("news", since="start")) as reader:
        assert reader.data(3) == ["1", "2", "3"]
    early = f"{here(site).epoch}-1"
    with Reader(site.app, site.url("news", since=early)) as reader:
        assert reader.data(2) == ["2", "3"]


def test_an_address_from_before_addresses_had_positions_begins_with_what_comes(
    site: Site,
) -> None:
    site.client()
    publish(site, "before")
    old = Signer(site.app, "flask_sockets2.sse", 60, "SSE_MAX_AGE").sign(["news", "sport"])
    with Reader(site.app, f"/stream?signed={old}&last_event_id={here(site)},-") as reader:
        assert [gap(reader), gap(reader)] == [True, True]


def fail(channels: Any) -> Any:
    raise BrokerError("away")


def test_an_address_whose_positions_are_given_is_made_without_the_broker(
    monkeypatch: pytest.MonkeyPatch, site: Site
) -> None:
    """Also when another address of the page has shown that it is away."""
    site.client()
    publish(site, "1", "2")
    early = f"{here(site).epoch}-1"
    with monkeypatch.context() as patch, site.app.test_request_context():
        patch.setattr(state_of(site.app).publisher, "positions", fail)
        site.sse.url("news")
        url = site.sse.url("news", since=early)
    with Reader(site.app, url) as reader:
        assert reader.data(1) == ["2"]


def test_an_address_that_was_made_while_the_broker_was_away_begins_with_a_gap(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, site: Site
) -> None:
    site.client()
    publish(site, "before")
    with monkeypatch.context() as patch:
        patch.setattr(state_of(site.app).publisher, "positions", fail)
        url = site.url("news")
    assert "a page has no positions" in caplog.text
    for last_event_id in ("", "start", f"{here(site).epoch}-0"):
        with Reader(site.app, url, last_event_id=last_event_id) as reader:
            assert gap(reader)


def test_who_may_have_an_open_channel_may_have_all_that_is_kept_of_it(site: Site) -> None:
    """There is no page: a hook that is to keep somebody from the past has to refuse the channel."""
    site.sse.authorize(lambda channel: channel == "news")
    site.client()
    publish(site, "1", "2")
    with Reader(site.app, "/stream?channel=news&last_event_id=start") as reader:
        assert reader.data(2) == ["1", "2"]


def test_an_address_of_as_many_channels_as_there_may_be_is_no_longer_than_a_line(
    site: Site,
) -> None:
    """4,094 bytes are what gunicorn takes of a request line by default."""
    site.client()
    names = [f"order:{number}" for number in range(100)]
    for name in names:
        publish(site, "x", channel=name)
    url = site.url(*names)
    assert len(url) < 3000
    assert site.status(url) == 200


def test_no_other_channel_of_the_broker_can_be_had() -> None:
    site = Site(SSE_OPEN_CHANNELS=True)
    site.client()
    with Reader(site.app, "/stream?channel=turbo:all").opened() as reader:
        publisher = state_of(site.app).publisher
        publisher.publish("turbo:all", "<turbo-stream>")
        publisher.publish("sse:turbo:all", "ours")
        assert reader.data(1) == ["ours"]
