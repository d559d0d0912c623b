"""Which channels a request may have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask, abort, request
from flask.testing import FlaskClient

from flask_sockets2.extension import state_of
from flask_sockets2.sse import ServerSentEventsBlueprint
from flask_sockets2.sse.access import sign
from flask_sockets2.turbo.names import StreamSigner
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


def test_a_function_of_before_request_decides_about_one_channel_as_in_flask_sse(
    site: Site,
) -> None:
    @site.sse.before_request
    def check_access() -> None:
        if request.args.get("channel") == "firehose":
            abort(403)

    site.client()
    assert site.status("/stream?channel=news") == 200
    assert site.status("/stream?channel=firehose") == 403
    # It looks at the first one only.
    assert site.status("/stream?channel=news&channel=firehose") == 403
    assert site.status("/stream?channel=&channel=firehose") == 400
    assert site.status("/stream") == 200


def test_before_request_of_the_application_opens_nothing(site: Site) -> None:
    site.app.before_request(lambda: None)
    site.client()
    assert site.status("/stream?channel=news") == 403


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
    return f"/stream?signed={sign(site.app, names)}"


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
    site.app.config["SSE_MAX_AGE"] = -2
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
    with pytest.raises(ValueError, match="up to 100 channels, got 101"):
        site.url(*(f"c{number}" for number in range(101)))


def test_no_other_channel_of_the_broker_can_be_had() -> None:
    site = Site(SSE_OPEN_CHANNELS=True)
    site.client()
    with Reader(site.app, "/stream?channel=turbo:all").opened() as reader:
        channels = state_of(site.app).channels
        channels.publish("turbo:all", "<turbo-stream>")
        channels.publish("sse:turbo:all", "ours")
        assert reader.data(1) == ["ours"]
