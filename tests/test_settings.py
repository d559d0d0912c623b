"""Settings: what each of them refuses, and which keys are taken for misspelt ones."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from flask_sockets2 import BrokerError, Firehose, Sockets, Turbo
from flask_sockets2.application.settings import misspelt
from flask_sockets2.settings import ROWS
from flask_sockets2.sse import ServerSentEventsBlueprint
from tests.processes import ServerFailed, Servers

SETTINGS = Path(__file__).parents[1] / "docs" / "settings.rst"

TEXTS = ["", "5", "true", "yes", b"5", ["5"], {}]
NUMBERS = [0, -1, 1.5, math.nan, math.inf, -math.inf, 10**30, True, *TEXTS]
SECONDS = [0, -1, -0.5, 1e-320, math.nan, math.inf, 10**400, 1e10, True, False, *TEXTS]
WHOLE = [-1, 1.0, 1.5, math.nan, math.inf, 10**30, True, False, *TEXTS]
ROUTES = [True, False, 5, "", "health", "http://a.example/x", "//a.example", "/a//b", "/<name>"]
ROUTES += ["/a b", "/a?b", "/a#b", "/a\\b", "/a\n", b"/health", ["/health"], {}]
SWITCHES = [None, 0, 1, *TEXTS]
URLS = [True, 5, b"redis://h", ["redis://h"], {"url": 1}, "nonsense", "h:6379", "http://h"]
URLS += ["redis://u:s3cret@h:port", "redis://h,password=s3cret", "rediss://u:s3cret@h/x", "://h"]
URLS += ["u:s3cret@redis://h", "unix://u:s3cret@", "redis://h?nothing=s3cret"]
NONE: list[Any] = [None]

WRONG: dict[str, list[Any]] = {
    "SOCKETS_ALLOWED_ORIGINS": [5, True, b"https://a.example", {"https://a.example": 1}, "", []],
    "SOCKETS_MAX_MESSAGE_SIZE": [0, *WHOLE, *NONE],
    "SOCKETS_RECEIVE_BUFFER": [0, *WHOLE, *NONE],
    "SOCKETS_SEND_BUFFER": [0, *WHOLE, *NONE],
    "SOCKETS_SEND_TIMEOUT": [*SECONDS, *NONE],
    "SOCKETS_PING_INTERVAL": SECONDS,
    "SOCKETS_PING_TIMEOUT": SECONDS,
    "SOCKETS_CLOSE_TIMEOUT": [*SECONDS, *NONE],
    "SOCKETS_SLOW_CLIENT": [None, True, 5, "drop", "", ["coalesce"], b"coalesce"],
    "SOCKETS_COMPRESSION": SWITCHES,
    "SOCKETS_MAX_MESSAGE_RATE": [0.5, 0, -1, math.nan, math.inf, 10**30, True, *TEXTS],
    "SOCKETS_MAX_CONNECTION_AGE": SECONDS,
    "SOCKETS_HANDSHAKE_TIMEOUT": [*SECONDS, *NONE],
    "SOCKETS_HTTP_STALL_TIMEOUT": [*SECONDS, *NONE],
    "SOCKETS_HTTP_MIN_RATE": SECONDS,
    "SOCKETS_HTTP_MAX_TIME": SECONDS,
    "SOCKETS_MAX_CONNECTIONS": WHOLE,
    "SOCKETS_MAX_BUFFERED": [0, 1, 2**20, *WHOLE],
    "SOCKETS_METRICS_ROUTE": ROUTES,
    "SOCKETS_HEALTH_ROUTE": ROUTES,
    "SOCKETS_DRAIN_FILE": [True, 5, "", b"/run/drain", ["/run/drain"], {}],
    "SOCKETS_MAX_CONNECTIONS_PER_ADDRESS": WHOLE,
    "SOCKETS_MAX_CONNECTIONS_PER_USER": WHOLE,
    "SOCKETS_MAX_HANDSHAKE_RATE": [0, -1, 1e-320, math.nan, math.inf, True, *TEXTS],
    "SOCKETS_MAX_HANDSHAKE_RATE_PER_ADDRESS": [0, -1, 1e-320, math.nan, math.inf, True, *TEXTS],
    "SOCKETS_MAX_CHANNELS": [0, *WHOLE, *NONE],
    "SOCKETS_BROKER_URL": ["", *URLS, *NONE],
    "SOCKETS_HISTORY_SIZE": [*WHOLE, *NONE],
    "SOCKETS_HISTORY_BYTES": [0, *WHOLE, *NONE],
    "SOCKETS_HISTORY_TTL": [0.5, *SECONDS, *NONE],
    "SOCKETS_PRESENCE_GRACE": [-0.1, *SECONDS[1:], *NONE],
    "SOCKETS_CHANNEL_PREFIX": ["", "a{b", "a}", "\ud800", "x" * 1001, b"app", 5, True, ["app"]],
    "SOCKETS_PUBLISH_ERRORS": [None, True, "ignore", "", ["log"], b"log"],
    "TURBO_WEBSOCKET_ROUTE": ROUTES,
    "TURBO_STREAM_MAX_AGE": SECONDS,
    "TURBO_JS_URL": [True, 5, "", "turbo.js", "javascript:0", "ftp://h/t", "/a b.js", b"/t.js"],
    "SSE_HEARTBEAT": [*SECONDS, *NONE],
    "SSE_RETRY": WHOLE,
    "SSE_OPEN_CHANNELS": SWITCHES,
    "SSE_MAX_AGE": SECONDS,
    "SSE_REDIS_URL": [*URLS, "memory://"],
    "REDIS_URL": [*URLS, "memory://"],
    "SSE_INTEROP": [True, 0, 1, *TEXTS],  # True without a Redis
    "FIREHOSE_EARLY_HINTS": ["AUTO", *SWITCHES],
    "FIREHOSE_HOP_HEADER": [True, 5, "", "X Hop", "X-Hop:", "X-Höp", "X\n", b"X-Hop", ["X-Hop"]],
    "FIREHOSE_LEARN": SWITCHES,
    "SECRET_KEY": [12345, 1.5, True, ["s3cret"], {"key": "s3cret"}],
    "SECRET_KEY_FALLBACKS": [0, False, 5, "s3cret", b"s3cret", {"s3cret": 1}, ["s3cret", ""], [5]],
}
"""For each key what no application can mean by it."""

RIGHT: dict[str, list[Any]] = {
    "SOCKETS_ALLOWED_ORIGINS": [None, "*", "https://a.example", ["https://a.example"]],
    "SOCKETS_MAX_MESSAGE_SIZE": [1, 2**24],
    "SOCKETS_PING_INTERVAL": [None, 0.1, 25, 1e9],
    "SOCKETS_MAX_MESSAGE_RATE": [None, 1, 1.5],
    "SOCKETS_MAX_CONNECTIONS": [None, 0, 5],
    "SOCKETS_HEALTH_ROUTE": [None, "/health", "/", "/a/b-c.d", "/a/", "/gesundheit/für-alle"],
    "SOCKETS_DRAIN_FILE": [None, "/run/drain", Path("/run/drain")],
    "SOCKETS_HISTORY_SIZE": [0, 100],
    "SOCKETS_HISTORY_TTL": [1, 1.5],
    "SOCKETS_PRESENCE_GRACE": [0, 0.1],
    "SOCKETS_CHANNEL_PREFIX": [None, "my app", "für"],
    "SOCKETS_BROKER_URL": ["memory://", "redis://:s3cret@h/1", "unix:///run/redis.sock"],
    "TURBO_WEBSOCKET_ROUTE": [None, "/live"],
    "TURBO_STREAM_MAX_AGE": [None, 0.5, 10**9],
    "TURBO_JS_URL": [None, "/static/turbo.js", "https://cdn.example/t.js", "//cdn.example/t.js"],
    "SSE_RETRY": [None, 0],
    "SSE_REDIS_URL": [None, "", "redis://h"],
    "REDIS_URL": [None, "", "rediss://h"],
    "SSE_INTEROP": [None, False],
    "FIREHOSE_EARLY_HINTS": ["auto", True, False],
    "FIREHOSE_HOP_HEADER": [None, "X-Early-Hints"],
    "SECRET_KEY": [None, "", "text", b"bytes"],
    "SECRET_KEY_FALLBACKS": [None, "", [], ("old",), [b"old"]],
}
"""For some keys what is just right, beside the defaults."""

SECRET = "redis://user:s3cret@h/0"
ANYTHING = [object(), b"\xff", [SECRET], {SECRET: 1}, SECRET.encode(), SECRET]
"""What fits no key, but for a text."""


def start(key: str, value: Any) -> None:
    """Have the part of the package that a key is for serve an application."""
    app = Flask(__name__)
    app.config["SECRET_KEY"] = "secret"
    if key == "SOCKETS_DRAIN_FILE":
        app.config["SOCKETS_HEALTH_ROUTE"] = "/health"
    app.config[key] = value
    area = key.partition("_")[0]
    if area == "SOCKETS":
        Sockets(app)
    if area in ("TURBO", "SECRET"):
        Turbo(app)
    if area in ("SSE", "REDIS"):
        app.register_blueprint(ServerSentEventsBlueprint("sse", __name__), url_prefix="/events")
    if area == "FIREHOSE":
        Firehose(app)


def error_of(key: str, value: Any) -> str:
    """Return what a value is refused with; empty if it is taken."""
    try:
        start(key, value)
    except ValueError as exc:
        return str(exc)
    return ""


def pairs(values: dict[str, list[Any]]) -> list[Any]:
    return [
        pytest.param(key, value, id=f"{key}-{number}")
        for key, each in values.items()
        for number, value in enumerate(each)
    ]


def test_the_table_of_wrong_values_has_every_setting_that_is_known_or_documented() -> None:
    listed = set(re.findall(r"^``([A-Z][A-Z_]+)``", SETTINGS.read_text(), re.MULTILINE))
    environment = {"PROMETHEUS_MULTIPROC_DIR"}
    flasks = {"SECRET_KEY", "TRUSTED_HOSTS"}  # the first ones of their lines
    assert WRONG.keys() - {"SECRET_KEY_FALLBACKS"} == ROWS.keys() | {"SECRET_KEY"}
    assert listed - environment == ROWS.keys() | flasks


@pytest.mark.parametrize(("key", "value"), pairs(WRONG))
def test_a_wrong_value_is_an_error_at_the_start_that_names_its_key(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{key}(:| must be | needs | is empty)") as caught:
        start(key, value)
    said = str(caught.value)
    assert "s3cret" not in said
    assert len(said) < 400
    assert " None or None" not in said


@pytest.mark.parametrize(("key", "value"), pairs(RIGHT))
def test_a_value_that_is_just_right_is_taken(key: str, value: Any) -> None:
    start(key, value)


@pytest.mark.parametrize("key", sorted(ROWS))
def test_no_setting_takes_just_anything_and_no_error_holds_a_password(key: str) -> None:
    """A setting that is new has to be checked as well."""
    for value in ANYTHING:
        said = error_of(key, value)
        assert key in said or value == SECRET, f"{key} takes {value!r}"
        assert "s3cret" not in said


def test_what_came_is_shown_but_no_url_and_no_long_text() -> None:
    for value, shown in ((-5, "-5"), ("5", "'5'"), ("x" * 200, "str"), (SECRET, "str")):
        expected = f"SSE_HEARTBEAT must be a number of seconds above 0, got {shown}"
        with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
            start("SSE_HEARTBEAT", value)


@pytest.mark.parametrize("url", ["nonsense", "nonsense://h", "redis://h/x", "redis://h?x=1"])
@pytest.mark.parametrize("key", ["SOCKETS_BROKER_URL", "SSE_REDIS_URL", "REDIS_URL"])
def test_a_url_is_blamed_on_the_key_that_holds_it(key: str, url: str) -> None:
    others = {"SOCKETS_BROKER_URL", "SSE_REDIS_URL", "REDIS_URL"} - {key}
    with pytest.raises(ValueError, match=f"^{key}: (expected|no broker)") as caught:
        start(key, url)
    assert not [other for other in others if re.search(rf"\b{other}\b", str(caught.value))]


@pytest.mark.parametrize("url", ["nonsense", "redis://:s3cret@h/x", "memory://"])
@pytest.mark.parametrize("key", ["SSE_REDIS_URL", "REDIS_URL"])
def test_a_redis_for_flask_sses_programs_alone_is_checked_as_well(key: str, url: str) -> None:
    app = Flask(__name__)
    app.config.update({key: url, "SOCKETS_BROKER_URL": "memory://"})
    blueprint = ServerSentEventsBlueprint("sse", __name__)
    with pytest.raises(ValueError, match=f"^{key}") as caught:
        app.register_blueprint(blueprint, url_prefix="/events")
    assert "s3cret" not in str(caught.value)
    app.config["SSE_INTEROP"] = False  # the URL is another extension's
    app.register_blueprint(blueprint, url_prefix="/events")


def test_a_redis_that_is_another_extensions_is_nobodys_concern() -> None:
    app = Flask(__name__)
    app.config["REDIS_URL"] = "redis+sentinel://h"
    Sockets(app)
    Turbo(app)
    Firehose(app)


def test_nothing_is_registered_before_all_settings_are_checked() -> None:
    app = Flask(__name__)
    app.config["SOCKETS_METRICS_ROUTE"] = "metrics"
    rules, wsgi_app = list(app.url_map.iter_rules()), app.wsgi_app
    sockets = Sockets()
    sockets.route("/echo")(lambda ws: None)
    with pytest.raises(ValueError, match="SOCKETS_METRICS_ROUTE"):
        sockets.init_app(app)
    assert list(app.url_map.iter_rules()) == rules
    assert app.wsgi_app == wsgi_app
    app.config["SOCKETS_METRICS_ROUTE"] = "/metrics"
    sockets.init_app(app)
    assert "/echo" in [str(rule) for rule in app.url_map.iter_rules()]


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("SOCKETS_PING_INTERVAL", "12.5", 12.5),
        ("SOCKETS_PING_INTERVAL", "null", None),
        ("SOCKETS_MAX_CONNECTIONS", "500", 500),
        ("SOCKETS_COMPRESSION", "true", True),
        ("SOCKETS_BROKER_URL", "redis://h", "redis://h"),
        ("SOCKETS_HEALTH_ROUTE", "/health", "/health"),
        ("SECRET_KEY", '"12345"', "12345"),
    ],
)
def test_environment_variables_are_read_as_flask_does(
    key: str, text: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"FLASK_{key}", text)
    app = Flask(__name__)
    app.config.from_prefixed_env()
    assert app.config[key] == value
    Turbo(app)


@pytest.mark.parametrize(
    ("key", "text", "error"),
    [
        ("SOCKETS_PING_INTERVAL", "25s", "got '25s'"),
        ("SOCKETS_PING_INTERVAL", '"25"', "got '25'"),
        ("SOCKETS_PING_INTERVAL", "None", "got 'None'; in an environment variable write null"),
        ("SOCKETS_COMPRESSION", "True", "got 'True'; in an environment variable write true"),
        ("SOCKETS_COMPRESSION", "FALSE", "got 'FALSE'; in an environment variable write false"),
        ("SOCKETS_COMPRESSION", "1", "must be True or False, got 1"),
        ("SECRET_KEY", "12345", "must be a text or bytes, got int; in an environment variable"),
    ],
)
def test_an_environment_variable_that_means_something_else_is_named_with_the_remedy(
    key: str, text: str, error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"FLASK_{key}", text)
    app = Flask(__name__)
    app.config.from_prefixed_env()
    with pytest.raises(ValueError, match=f"^{key} .*{re.escape(error)}"):
        Turbo(app)


def test_a_limit_of_a_route_is_called_as_its_user_does() -> None:
    with pytest.raises(ValueError, match=r"^ping_interval must be .* or None, got 0$"):
        ROWS["SOCKETS_PING_INTERVAL"].check(0, "ping_interval")


def test_a_server_does_not_start_with_a_wrong_setting(server_factory: Servers) -> None:
    source = """
        from flask import Flask
        from flask_sockets2 import Sockets
        app = Flask(__name__)
        app.config["SOCKETS_HEALTH_ROUTE"] = True
        Sockets(app)
    """
    with pytest.raises(ServerFailed, match=r"SOCKETS_HEALTH_ROUTE must be a path .*, got True"):
        server_factory.gunicorn(source)


def test_a_broker_that_is_not_installed_is_no_wrong_value(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("brokers.redis.client", "brokers.redis.broker"):
        monkeypatch.delitem(sys.modules, f"flask_sockets2.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(BrokerError, match=r'run pip install "flask-sockets2\[redis\]"'):
        start("SOCKETS_BROKER_URL", "redis://h")


# -- misspelt keys ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("SOCKETS_BROKER_UR", "SOCKETS_BROKER_URL"),
        ("SOCKETS_BROKER_URI", "SOCKETS_BROKER_URL"),
        ("SOCKETS_BROKER", "SOCKETS_BROKER_URL"),
        ("SOCKETS_REDIS_URL", "SOCKETS_BROKER_URL"),
        ("TURBO_REDIS_URL", "SOCKETS_BROKER_URL"),
        ("SOCKET_BROKER_URL", "SOCKETS_BROKER_URL"),
        ("SOCKTES_BROKER_URL", "SOCKETS_BROKER_URL"),
        ("SOCKETS2_BROKER_URL", "SOCKETS_BROKER_URL"),
        ("FLASK_SOCKETS_BROKER_URL", "SOCKETS_BROKER_URL"),
        ("sockets_broker_url", "SOCKETS_BROKER_URL"),
        ("Sockets_Broker_Url", "SOCKETS_BROKER_URL"),
        ("SOCKETS_MAX_HANDSHAKE_RATE_PER_ADRESS", "SOCKETS_MAX_HANDSHAKE_RATE_PER_ADDRESS"),
        ("SOCKET_MAX_CONNECTIONS", "SOCKETS_MAX_CONNECTIONS"),
        ("SOCKETS_ALLOWED_ORIGIN", "SOCKETS_ALLOWED_ORIGINS"),
        ("SOCKETS_MAX_CONNECTION_PER_USER", "SOCKETS_MAX_CONNECTIONS_PER_USER"),
        ("SOCKETS_HTTP_STALLTIMEOUT", "SOCKETS_HTTP_STALL_TIMEOUT"),
        ("SOCKETS_DRAINFILE", "SOCKETS_DRAIN_FILE"),
        ("TURBO_STREAMS_MAX_AGE", "TURBO_STREAM_MAX_AGE"),
        ("TURBO_JS_URI", "TURBO_JS_URL"),
        ("TUBRO_JS_URL", "TURBO_JS_URL"),
        ("TURBO_WEB_SOCKET_ROUTE", "TURBO_WEBSOCKET_ROUTE"),
        ("SSE_HEARBEAT", "SSE_HEARTBEAT"),
        ("SSE_RETY", "SSE_RETRY"),
        ("SSE_MAXAGE", "SSE_MAX_AGE"),
        ("FIREHOSE_EARLY_HINT", "FIREHOSE_EARLY_HINTS"),
        ("FIREHOSE_LERN", "FIREHOSE_LEARN"),
        ("FIREHOUSE_LEARN", "FIREHOSE_LEARN"),
        ("REDIS_URl", "REDIS_URL"),
    ],
)
def test_a_key_that_is_misspelt_is_named_once_in_the_log(
    key: str, meant: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = Flask(__name__)
    app.config[key] = 5
    Sockets(app)
    Sockets().init_app(app)
    Turbo(app)
    Firehose(app)
    app.register_blueprint(ServerSentEventsBlueprint("sse", __name__), url_prefix="/events")
    assert caplog.messages == [
        f"there is no setting {key}, so its value has no effect; did you mean {meant}?"
    ]


@pytest.mark.parametrize("extend", [Sockets, Turbo, Firehose])
def test_each_part_of_the_package_names_a_key_that_is_misspelt(
    extend: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):  # each application once
        app = Flask(__name__)
        app.config["FIREHOSE_LEARNS"] = False
        extend(app)
    assert [message.rpartition(" ")[2] for message in caplog.messages] == ["FIREHOSE_LEARN?"] * 2


@pytest.mark.parametrize(
    "key",
    [
        "SOCKETS_MAX_CONNECTIONS_PER_ROOM",
        "SOCKETS_GREETING",
        "SOCKETS_REDIS",
        "SOCKET_TIMEOUT",
        "SOCKETS_",
        "SOCKETSMAXCONNECTIONS",
        "SSE_PAGE_SIZE",
        "SSE_RETRIES",
        "SSE_ALGORITHM",
        "TURBO_THEME",
        "TURBO",
        "MAX_CONNECTIONS",
        "REDIS_URL",
        "REDIS_URI",
        "REDIS_HOST",
        "redis_url",
        "RQ_REDIS_URL",
        "CACHE_REDIS_URL",
        "CELERY_BROKER_URL",
        "BROKER_URL",
        "RATELIMIT_STORAGE_URI",
        "SESSION_REDIS",
        "SOCKETIO_PING_INTERVAL",
        "SOCKETIO_PING_TIMEOUT",
        "SOCKETIO_MESSAGE_QUEUE",
        "SOCK_SERVER_OPTIONS",
        "WEBSOCKET_PING_INTERVAL",
        "WEBSOCKET_MAX_MESSAGE_SIZE",
        "SES_MAX_AGE",
        "SEND_FILE_MAX_AGE_DEFAULT",
        "CORS_MAX_AGE",
        "SECRET_KEY_FALLBACKS",
        "",
        "_",
    ],
)
def test_a_key_of_the_applications_own_gets_no_warning(
    key: str,
) -> None:
    assert misspelt({**Flask(__name__).config, **dict.fromkeys(ROWS), key: 5}) == {}


@pytest.mark.parametrize("key", ["SSE_REDIS_URL", "FLASK_SSE_REDIS_URL", "SSE_HEARTBEET"])
def test_keys_of_a_part_that_is_not_imported_get_no_warning(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``flask_sockets2.sse`` may be imported later, or the keys are those of Flask-SSE itself."""
    for row in [row for row in ROWS if row.startswith(("SSE_", "REDIS_URL"))]:
        monkeypatch.delitem(ROWS, row)
    assert misspelt({key: "redis://localhost"}) == {}
