"""The origins and hosts that an application lists, from the settings to the answer."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from flask import Flask

from flask_sockets2 import Sockets, Turbo, WebSocketRejected
from flask_sockets2.sse import sse
from flask_sockets2.testing import SocketsClient

SETTING = "SOCKETS_ALLOWED_ORIGINS"


def app_with(**config: Any) -> tuple[Flask, SocketsClient]:
    app = Flask(__name__)
    app.secret_key = "for tests"
    app.config.update(config)
    sockets = Sockets(app)
    sockets.route("/hello")(lambda ws: ws.send("hello"))
    sockets.add_url_rule("/public", "public", lambda ws: ws.send("hello"), origins="*")
    app.register_blueprint(sse, url_prefix="/events")
    return app, sockets.test_client(app)


def status(client: SocketsClient, path: str = "/hello", **options: Any) -> int:
    """The status that a handshake is answered with."""
    try:
        with client.connect(path, **options) as ws:
            assert ws.receive() == "hello"
            return 101
    except WebSocketRejected as refused:
        return refused.response.status_code


def answer(app: Flask, host: str) -> int:
    """The status of a stream for a page of a host, over plain HTTP."""
    headers = {
        "User-Agent": "Mozilla/5.0",
        "Referer": f"http://{host}/page",
        "Accept": "text/event-stream",
    }
    with app.test_client().get("/events", headers=headers, base_url=f"http://{host}") as response:
        return response.status_code


def lines(caplog: pytest.LogCaptureFixture, part: str) -> list[str]:
    found = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    return [line for line in found if part in line]


# -- lists ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "entry"),
    [
        (["https://a.example", "example.com"], "'example.com'"),
        (["https://a.example/page"], "'https://a.example/page'"),
        (["htps://a.example"], "'htps://a.example'"),
        (["https://*"], "'https://*'"),
        (["https://a.example:99999"], "'https://a.example:99999'"),
        (["https://faß.example"], "'https://faß.example'"),
        ("https://a.example localhost:5173", "'localhost:5173'"),
        ([None], "None"),
        ([["https://a.example"]], "['https://a.example']"),
        (True, "True"),
        (5, "5"),
        (b"https://a.example", "bytes"),
        (iter(["https://a.example"]), "list_iterator"),  # it would be empty the second time
        (
            "",
            "is empty, so no page could connect; leave it out, or use None, for pages of the same",
        ),
        (" , ", "is empty"),
        ([], "is empty"),
        ((), "is empty"),
    ],
)
def test_a_list_that_makes_no_sense_is_refused_where_the_application_starts(
    given: Any, entry: str
) -> None:
    for extend in (Sockets().init_app, Turbo().init_app):
        app = Flask(__name__)
        app.config[SETTING] = given
        with pytest.raises(ValueError, match=r".") as refused:
            extend(app)
        assert str(refused.value).startswith(f"{SETTING}")
        assert entry in str(refused.value)
    app = Flask(__name__)
    app.config[SETTING] = given
    with pytest.raises(ValueError, match=SETTING):
        app.register_blueprint(sse, url_prefix="/events")


def test_the_list_of_a_route_is_refused_where_it_is_registered() -> None:
    sockets = Sockets()
    for given in ["example.com"], [5], "https://*":
        with pytest.raises(ValueError, match=r"^origins: .* is no origin; expected"):
            sockets.route("/hello", origins=given)(lambda ws: None)
    for empty in [], (), "", iter(()):
        with pytest.raises(ValueError, match=r"^origins is empty, .* the pages of SOCKETS_ALLOWED"):
            sockets.route("/hello", origins=empty)(lambda ws: None)


@pytest.mark.parametrize("entry", ["same-origin", "Same-Origin"])
@pytest.mark.parametrize("of_route", [False, True])
def test_the_same_origin_may_be_listed_beside_others(
    entry: str, of_route: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Then a page of one host of the application still cannot connect to another host of it."""
    given = [entry, "capacitor://localhost"]
    app = Flask(__name__)
    app.config[SETTING] = "https://elsewhere.example" if of_route else given
    sockets = Sockets(app)
    sockets.route("/hello", origins=given if of_route else None)(lambda ws: ws.send("hello"))
    app.register_blueprint(sse, url_prefix="/events")
    client = sockets.test_client(app)
    a, b = "https://a.example", "https://b.example:8443"
    for origin, url, expected in (
        (a, a, 101),
        (b, b, 101),
        ("capacitor://localhost", a, 101),
        ("capacitor://localhost", b, 101),
        (a, b, 403),
        (b, a, 403),
        ("https://evil.example", a, 403),
        ("http://a.example", a, 403),
        ("https://a.example", "http://a.example", 101),  # behind a proxy that ends TLS
        ("null", a, 403),
        ("same-origin", "http://same-origin", 403),
    ):
        answered = status(client, origin=origin, base_url=url)
        assert (origin, url, answered) == (origin, url, expected)
    assert lines(caplog, "pages of every site") == []
    if not of_route:
        for origin, expected in ((a, 200), ("capacitor://localhost", 200), (b, 403)):
            how: dict[str, Any] = {"headers": {"Origin": origin}, "base_url": a}
            with app.test_client().get("/events", **how) as response:
                assert (origin, response.status_code) == (origin, expected)


@pytest.mark.parametrize("config", [{"SERVER_NAME": "a.example"}, {"TRUSTED_HOSTS": ["a.example"]}])
def test_the_same_origin_that_is_listed_is_of_a_host_of_the_application(config: Any) -> None:
    """As without a list (DNS rebinding)."""
    _, client = app_with(**config, **{SETTING: "same-origin capacitor://localhost"})
    assert status(client, origin="http://a.example", base_url="http://a.example") == 101
    for origin in "http://evil.example", "http://a.example":
        answered = status(client, origin=origin, base_url="http://evil.example")
        assert answered in (400, 403)  # the former from Flask itself


@pytest.mark.parametrize(
    ("entry", "origin"),
    [
        ("capacitor://localhost", "capacitor://localhost"),
        ("tauri://localhost", "tauri://localhost"),
        ("app://.", "app://."),
        ("moz-extension://*", "moz-extension://0f9a1c5e-7a3b-4d55-9f0e-3a1b2c4d5e6f"),
        ("file://", "file://"),
        ("null", "null"),
        ("http://localhost:*", "http://localhost:5173"),
        ("https://bücher.example", "https://xn--bcher-kva.example"),
    ],
)
def test_applications_extensions_and_files_connect_where_they_are_listed(
    entry: str, origin: str
) -> None:
    app, client = app_with(**{SETTING: ["https://example.com", entry]})
    assert status(client, origin=origin) == 101
    assert status(client, origin=f"x{origin}") == 403
    with app.test_client().get("/events", headers={"Origin": origin}) as response:
        assert response.status_code == 200
    _, client = app_with(**{SETTING: "https://example.com"})
    assert status(client, origin=origin) == 403


@pytest.mark.parametrize("of", ["application", "route"])
def test_the_list_of_the_application_opens_all_streams_and_that_of_a_route_no_other(
    of: str,
) -> None:
    origin = "capacitor://localhost"
    app, client = app_with(**({SETTING: origin} if of == "application" else {}))
    Turbo(app)
    sockets = Sockets(app)
    sockets.add_url_rule("/app", "app", lambda ws: ws.send("hello"), origins=[origin])
    assert status(client, "/app", origin=origin) == 101
    expected = {"application": (101, 200), "route": (403, 403)}[of]
    with app.test_client().get("/events", headers={"Origin": origin}) as response:
        events = response.status_code
    try:
        with client.connect("/turbo-stream?s=turbo:all&at=", origin=origin):
            turbo = 101
    except WebSocketRejected as refused:
        turbo = refused.response.status_code
    assert (turbo, events) == expected


def test_a_client_that_calls_its_origin_a_websocket_is_of_the_same_one() -> None:
    _app, client = app_with()
    assert status(client, origin="ws://localhost") == 101
    assert status(client, origin="wss://localhost") == 101
    assert status(client, origin="wss://evil.example") == 403
    assert status(client, origin="ws://localhost", base_url="https://localhost") == 403


@pytest.mark.parametrize("entry", ["*", "null"])
def test_the_log_says_once_that_every_site_may_connect(
    entry: str, caplog: pytest.LogCaptureFixture
) -> None:
    app, client = app_with(**{SETTING: ["https://example.com", entry]})
    Turbo(app)
    for _ in range(3):
        assert status(client, origin="null") == 101
    (line,) = lines(caplog, "pages of every site may connect")
    assert line.startswith(f"SOCKETS_ALLOWED_ORIGINS has '{entry}'")


def test_the_log_says_so_of_a_setting_that_comes_later(caplog: pytest.LogCaptureFixture) -> None:
    app, client = app_with()
    app.config[SETTING] = "*"
    for _ in range(3):
        assert status(client, origin="https://evil.example") == 101
    assert len(lines(caplog, "pages of every site may connect")) == 1


def test_the_log_says_nothing_of_a_route_that_is_public(caplog: pytest.LogCaptureFixture) -> None:
    _app, client = app_with(**{SETTING: "https://example.com"})
    assert status(client, "/public", origin="https://evil.example") == 101
    assert lines(caplog, "every site") == []


# -- hosts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "hosts"),
    [
        ({}, {"evil.example": 101}),
        (
            {"TRUSTED_HOSTS": ["example.com", ".example.org"]},
            {"example.com": 101, "example.com:8443": 101, "a.example.org": 101},
        ),
        (
            {"SERVER_NAME": "example.com:5000"},
            {"example.com:5000": 101, "www.example.com:5000": 101, "127.0.0.1:5000": 101}
            | {"[::1]:5000": 101, "localhost:5000": 101},
        ),
        (
            {"SERVER_NAME": "xn--bcher-kva.example"},
            {"xn--bcher-kva.example": 101},
        ),
    ],
)
def test_hosts_of_the_application_are_its_own(config: Any, hosts: dict[str, int]) -> None:
    app, client = app_with(**config)
    for host, expected in hosts.items():
        origin, base_url = f"http://{host}", f"http://{host}"
        assert (host, status(client, origin=origin, base_url=base_url)) == (host, expected)
        assert (host, answer(app, host)) == (host, 200)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"TRUSTED_HOSTS": ["example.com"]}, 400),  # from Flask itself, since 3.1
        ({"SERVER_NAME": "example.com"}, 403),
    ],
)
def test_a_host_that_a_stranger_bound_to_our_address_is_none_of_ours(
    config: Any, expected: int, caplog: pytest.LogCaptureFixture
) -> None:
    app, client = app_with(**config)
    for host in "evil.example", "example.com.evil.example", "evilexample.com":
        url = f"http://{host}"
        assert status(client, origin=url, base_url=url) == expected
        assert answer(app, host) == expected
    for line in lines(caplog, "refused a page on host"):
        assert "TRUSTED_HOSTS" in line


def test_an_origin_that_is_listed_may_connect_under_any_host() -> None:
    """As behind a proxy that renames us."""
    config = {"SERVER_NAME": "example.com", SETTING: "https://example.com"}
    _, client = app_with(**config)
    assert status(client, origin="https://example.com", base_url="http://backend:8000") == 101
    assert status(client, origin="http://evil.example", base_url="http://evil.example") == 403


def test_where_rules_name_their_hosts_these_are_the_hosts() -> None:
    app = Flask(__name__, host_matching=True, static_host="static.example")
    app.config["SERVER_NAME"] = "example.com"
    sockets = Sockets(app)
    sockets.route("/hello", host="other.example")(lambda ws: ws.send("hello"))
    client = sockets.test_client(app)
    for host, expected in (("other.example", 101), ("evil.example", 404)):
        url = f"http://{host}"
        assert status(client, origin=url, base_url=url) == expected


def test_a_host_with_an_underscore_is_a_host_as_in_compose_files() -> None:
    app, client = app_with()
    url = "http://my_app:5000"
    assert status(client, origin=url, base_url=url) == 101
    assert status(client, origin="http://my_app:5001", base_url=url) == 403
    assert answer(app, "my_app:5000") == 200
