"""Routes, blueprints and what becomes of a request for a WebSocket; through the test client."""

from __future__ import annotations

import gc
import logging
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial, wraps
from queue import Queue
from typing import Any

import flask
import pytest
from flask import (
    Blueprint,
    Flask,
    abort,
    g,
    got_request_exception,
    redirect,
    request,
    request_finished,
    session,
    url_for,
)
from flask.cli import routes_command
from flask.typing import ResponseReturnValue
from websockets.exceptions import InvalidStatus
from werkzeug.exceptions import HTTPException
from werkzeug.local import LocalProxy
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.routing import BaseConverter

from flask_sockets2 import Connection, ConnectionClosed, Sockets, WebSocketRejected
from flask_sockets2.application.middleware import SocketMiddleware
from flask_sockets2.application.state import state_of
from flask_sockets2.servers.takeover import RAISE
from flask_sockets2.testing import SocketsClient, WebSocketSession
from flask_sockets2.tools.cli import sockets_cli
from tests.clients import websocket
from tests.processes import Servers, wait_until

TIMEOUT = 60.0  # seconds, for each wait


@pytest.fixture
def app() -> Flask:
    app = Flask(__name__)
    app.secret_key = "for tests"
    return app


@pytest.fixture
def sockets(app: Flask) -> Sockets:
    return Sockets(app)


@pytest.fixture
def client(app: Flask, sockets: Sockets) -> SocketsClient:
    return sockets.test_client(app)


def echo(ws: Any) -> None:
    for message in ws:
        ws.send(message)


def tell(ws: Any, **values: Any) -> None:
    """Tell the endpoint and the variables of the rule that matched."""
    ws.send(flask.json.dumps([request.endpoint, values]))


def told(client: SocketsClient, path: str, **options: Any) -> Any:
    with client.connect(path, **options) as ws:
        return flask.json.loads(ws.receive())


def refusal(client: SocketsClient, path: str, **options: Any) -> Any:
    """The response that a WebSocket is answered with instead."""
    with pytest.raises(WebSocketRejected) as refused:
        client.connect(path, **options)
    return refused.value.response


def closing(ws: WebSocketSession) -> tuple[int | None, str | None]:
    """Wait for the end; return close code and reason."""
    assert ws.receive(timeout=TIMEOUT) is None
    return ws.close_code, ws.close_reason


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def errors(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.levelno >= logging.ERROR]


# -- routes --------------------------------------------------------------------------------


def test_a_route_returns_the_handler_as_it_is(sockets: Sockets) -> None:
    assert sockets.route("/echo")(echo) is echo


def test_a_route_is_a_rule_of_the_applications_own_url_map(app: Flask, sockets: Sockets) -> None:
    """pain 2: the rule and the matching both know that it is a WebSocket."""
    sockets.route("/echo")(echo)
    assert sockets.url_map is app.url_map
    (rule,) = app.url_map.iter_rules("echo")
    assert rule.websocket


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("emit", "sockets.publish(channel, data)"),
        ("on", "@sockets.route(path)"),
        ("websocket", "@sockets.route(path)"),
        ("run", "gunicorn -k flask_sockets2.worker"),
        ("start_background_task", "threading.Thread"),
    ],
)
def test_an_attribute_of_another_package_is_an_error_that_names_ours(
    name: str, instead: str, sockets: Sockets
) -> None:
    with pytest.raises(AttributeError, match=f"^sockets have no '{name}': ") as raised:
        getattr(sockets, name)
    assert instead in str(raised.value)
    with pytest.raises(AttributeError, match=r"^sockets have no 'rute'$"):
        _ = sockets.rute


def test_an_echo_answers(sockets: Sockets, client: SocketsClient) -> None:
    sockets.route("/echo")(echo)
    with client.connect("/echo") as ws:
        for message in ("hello", b"\x00\xff", ""):
            ws.send(message)
            assert ws.receive() == message


def test_variables_of_the_rule_are_converted(sockets: Sockets, client: SocketsClient) -> None:
    """pain 5"""
    sockets.route("/<name>/<int:number>/<path:rest>")(tell)
    assert told(client, "/ada/7/a/b") == ["tell", {"name": "ada", "number": 7, "rest": "a/b"}]
    assert refusal(client, "/ada/seven/a").status_code == 404


def test_a_converter_of_the_applications_counts(app: Flask, sockets: Sockets) -> None:
    """pain 5"""

    class Words(BaseConverter):
        def to_python(self, value: str) -> list[str]:
            return value.split("+")

    sockets.url_map.converters["words"] = Words
    sockets.route("/<words:words>")(tell)
    assert told(sockets.test_client(app), "/a+b") == ["tell", {"words": ["a", "b"]}]


def test_defaults_of_a_rule_count(sockets: Sockets, client: SocketsClient) -> None:
    """pain 6"""
    sockets.route("/news", defaults={"topic": "all"})(tell)
    assert told(client, "/news") == ["tell", {"topic": "all"}]


def test_the_endpoint_of_a_rule_counts(sockets: Sockets, client: SocketsClient) -> None:
    """pain 6"""
    sockets.route("/news", endpoint="latest")(tell)
    assert told(client, "/news") == ["latest", {}]


def test_a_decorator_can_be_used_twice(sockets: Sockets, client: SocketsClient) -> None:
    decorate = sockets.route("/<name>", endpoint="named", max_message_size=10)
    decorate(tell)
    with pytest.raises(AssertionError, match="named"):
        decorate(echo)


def test_a_route_without_parentheses_is_refused_with_the_remedy(sockets: Sockets) -> None:
    with pytest.raises(
        TypeError, match=r"needs a rule, got <function .* @sockets\.route\('/echo'\)"
    ):
        sockets.route(echo)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(
        TypeError, match=r"needs a rule, got <function .* @sockets\.route\('/echo'\)"
    ):
        sockets.add_url_rule(echo, None, echo)  # type: ignore[arg-type]  # what is tested


def test_the_subdomain_of_a_rule_counts() -> None:
    """pain 6"""
    app = Flask(__name__, subdomain_matching=True)
    app.config["SERVER_NAME"] = "example.com"
    sockets = Sockets(app)
    sockets.route("/news", subdomain="<user>")(tell)
    client = sockets.test_client(app)
    assert told(client, "/news", base_url="http://ada.example.com") == ["tell", {"user": "ada"}]
    assert refusal(client, "/news", base_url="http://example.com").status_code == 404


def test_the_host_of_a_rule_counts() -> None:
    """pain 6"""
    app = Flask(__name__, host_matching=True, static_host="static.example.com")
    sockets = Sockets(app)
    sockets.route("/news", host="live.example.com")(tell)
    client = sockets.test_client(app)
    assert told(client, "/news", base_url="http://live.example.com") == ["tell", {}]
    assert refusal(client, "/news", base_url="http://example.com").status_code == 404


class Telling:
    """Tells a name, however it is called."""

    def __init__(self, name: str) -> None:
        self.name = name

    def live(self, ws: Any) -> None:
        ws.send(self.name)

    __call__ = live


def tell_name(name: str, ws: Any) -> None:
    ws.send(name)


def decorated(name: str) -> Callable[..., Any]:
    """What functools.wraps makes of a function of this name."""

    def live(ws: Any) -> None:
        ws.send(name)

    live.__name__ = f"{name}_live"
    return pass_on(live)


def rename(handler: Callable[..., Any], name: str) -> None:
    """Give a handler another name; methods have that of their class, all the same."""
    with suppress(AttributeError):
        handler.__name__ = name  # type: ignore[attr-defined]  # of functions


MAKE_HANDLER: dict[str, Callable[[str], Callable[..., Any]]] = {
    "decorated": decorated,
    "closures": lambda name: lambda ws: ws.send(name),
    "decorated closures": lambda name: pass_on(lambda ws: ws.send(name)),
    "methods": lambda name: Telling(name).live,
    "partials": lambda name: partial(tell_name, name),
    "objects": Telling,
}

of_each_kind = pytest.mark.parametrize("make", list(MAKE_HANDLER.values()), ids=list(MAKE_HANDLER))


def of_subdomains() -> Flask:
    app = Flask(__name__, subdomain_matching=True)
    app.config["SERVER_NAME"] = "example.com"
    return app


def of_hosts() -> Flask:
    return Flask(__name__, host_matching=True, static_host="static.example.com")


KINDS = {
    "subdomain": (of_subdomains, "{}"),
    "host": (of_hosts, "{}.example.com"),
}


def said(app: Flask, name: str, path: str = "/live") -> Any:
    """What a handler says at a subdomain."""
    client = Sockets().test_client(app)
    with client.connect(path, base_url=f"http://{name}.example.com") as ws:
        return ws.receive()


@of_each_kind
@pytest.mark.parametrize("option", KINDS)
@pytest.mark.parametrize("recorded", [False, True], ids=["registered", "recorded"])
def test_rules_that_differ_by_host_or_subdomain_have_handlers_of_their_own(
    recorded: bool, option: str, make: Callable[[str], Callable[..., Any]]
) -> None:
    make_app, value = KINDS[option]
    app = make_app()
    sockets = Sockets() if recorded else Sockets(app)
    for name in ("public", "staff"):
        sockets.route("/live", **{option: value.format(name)})(make(name))
    if recorded:
        sockets.init_app(app)
    assert (said(app, "public"), said(app, "staff")) == ("public", "staff")
    client = sockets.test_client(app)
    assert refusal(client, "/live", base_url="http://other.example.com").status_code == 404


@pytest.mark.parametrize("endpoint", [None, "named"])
@pytest.mark.parametrize("option", KINDS)
@pytest.mark.parametrize("recorded", [False, True], ids=["registered", "recorded"])
def test_one_handler_may_have_several_rules_under_one_endpoint(
    recorded: bool, option: str, endpoint: str | None
) -> None:
    """As in Flask; url_for() gives the address at the host of the page."""
    make_app, value = KINDS[option]
    app = make_app()
    sockets = Sockets() if recorded else Sockets(app)
    for name in ("public", "staff"):
        sockets.route("/live", endpoint=endpoint, **{option: value.format(name)})(tell)
    if recorded:
        sockets.init_app(app)
    known = endpoint or "tell"
    for name in ("public", "staff"):
        assert flask.json.loads(said(app, name)) == [known, {}]
    assert len([rule for rule in app.url_map.iter_rules(known) if rule.websocket]) == 2
    with app.test_request_context("/", base_url="http://staff.example.com"):
        assert url_for(known, _external=True) in {
            "ws://public.example.com/live",
            "ws://staff.example.com/live",
        }
    listed = app.test_cli_runner().invoke(sockets_cli, ["routes"]).output
    for name in ("public", "staff"):
        assert f"{value.format(name)}|/live" in listed


def test_other_options_of_a_rule_tell_it_apart_too(sockets: Sockets, client: SocketsClient) -> None:
    def make(topic: str) -> Callable[..., Any]:
        return lambda ws, topic: ws.send(topic)

    for topic in ("tea", "coffee"):
        sockets.route(f"/{topic}", defaults={"topic": topic}, endpoint="drinks")(tell)
        sockets.route(f"/only/{topic}", defaults={"topic": topic})(make(topic))
    for topic in ("tea", "coffee"):
        assert told(client, f"/{topic}") == ["drinks", {"topic": topic}]
        with client.connect(f"/only/{topic}") as ws:
            assert ws.receive() == topic


@of_each_kind
@pytest.mark.parametrize("recorded", [False, True], ids=["registered", "recorded"])
@pytest.mark.parametrize("endpoint", [None, "live"])
def test_two_handlers_under_one_endpoint_are_flasks_assertion_error(
    endpoint: str | None, recorded: bool, make: Callable[[str], Callable[..., Any]]
) -> None:
    """Of the same rule, where its endpoint is the handler's name, or of whichever."""
    app = of_hosts()
    sockets = Sockets() if recorded else Sockets(app)
    first, second = make("first"), make("second")
    if endpoint is None:  # functions of other names are other endpoints
        rename(first, "live")
        rename(second, "live")
    sockets.route("/live", endpoint=endpoint, host="first.example.com")(first)
    host = "first.example.com" if endpoint is None else "second.example.com"
    message = "overwriting an existing endpoint function: .* give one of the two handlers another"
    with pytest.raises(AssertionError, match=message):
        sockets.route("/live", endpoint=endpoint, host=host)(second)
    if recorded:
        sockets.init_app(app)
    assert said(app, "first") == "first"
    client = sockets.test_client(app)
    assert refusal(client, "/live", base_url="http://second.example.com").status_code == 404


def test_one_handler_with_other_options_of_ours_is_another_one_under_its_endpoint(
    sockets: Sockets, client: SocketsClient
) -> None:
    sockets.route("/live", endpoint="live")(tell)
    with pytest.raises(AssertionError, match="live"):
        sockets.route("/later", endpoint="live", accept=False)(tell)
    with pytest.raises(AssertionError, match="live"):
        sockets.route("/live", endpoint="live", max_message_size=5)(tell)
    sockets.route("/live", endpoint="live")(tell)  # the same once more is no error
    assert told(client, "/live") == ["live", {}]
    assert refusal(client, "/later").status_code == 404


def test_a_page_and_a_websocket_under_one_endpoint_are_an_assertion_error(
    app: Flask, sockets: Sockets
) -> None:
    app.add_url_rule("/page", "both", lambda: "page")
    with pytest.raises(AssertionError, match="both"):
        sockets.route("/socket", endpoint="both")(tell)
    assert refusal(sockets.test_client(app), "/socket").status_code == 404


def test_handlers_of_one_name_have_endpoints_of_their_own(
    sockets: Sockets, client: SocketsClient
) -> None:
    """As those of two modules of a program for Flask-Sockets."""

    def make() -> Callable[..., Any]:
        def live(ws: Any) -> None:
            tell(ws)

        return live

    sockets.route("/first")(make())
    sockets.route("/second")(make())
    assert told(client, "/first") == ["live", {}]
    assert told(client, "/second") == ["live_websocket", {}]


def test_strict_slashes_of_a_rule_count(sockets: Sockets, client: SocketsClient) -> None:
    """pain 6"""
    sockets.route("/loose/", strict_slashes=False)(tell)
    assert told(client, "/loose") == ["tell", {}]


def test_a_missing_slash_redirects_before_the_handshake(
    sockets: Sockets, client: SocketsClient
) -> None:
    """pain 4"""
    sockets.route("/strict/")(tell)
    response = refusal(client, "/strict")
    assert response.status_code == 308
    assert response.location == "ws://localhost/strict/"


def test_an_option_that_nobody_knows_is_refused_at_once(sockets: Sockets) -> None:
    """pain 6"""
    with pytest.raises(TypeError, match="max_mesage_size"):
        sockets.route("/echo", max_mesage_size=5)(echo)


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("max_mesage_size", "max_message_size"),
        ("origin", "origins"),
        ("subprotocol", "subprotocols"),
        ("strict_slash", "strict_slashes"),
        ("default", "defaults"),
    ],
)
def test_for_an_unknown_option_the_one_that_was_meant_is_named(
    option: str, meant: str, sockets: Sockets
) -> None:
    """pain 6: also in a blueprint, where the rule is read when it is registered."""
    with pytest.raises(TypeError, match=f"no option '{option}'; did you mean '{meant}'"):
        sockets.route("/echo", **{option: 5})(echo)
    blueprint = Blueprint("ws", __name__)
    blueprint.add_url_rule("/echo", view_func=echo, **{option: 5})
    with pytest.raises(TypeError, match=f"no option '{option}'; did you mean '{meant}'"):
        sockets.register_blueprint(blueprint)


def no_arguments() -> None:
    raise AssertionError("must not run")


def only_by_name(*, ws: Any, name: str) -> None:
    raise AssertionError("must not run")


@pytest.mark.parametrize("handler", [no_arguments, only_by_name])
def test_a_handler_that_cannot_be_called_as_it_will_be_is_refused_at_once(
    handler: Callable[..., Any], sockets: Sockets
) -> None:
    called = rf"{handler.__name__}\(ws, name\)"
    with pytest.raises(TypeError, match=called):
        sockets.route("/<name>")(handler)
    blueprint = Blueprint("ws", __name__)
    blueprint.add_url_rule("/<name>", view_func=handler)
    with pytest.raises(TypeError, match=called):
        sockets.register_blueprint(blueprint)


def test_a_url_value_preprocessor_may_keep_a_variable(app: Flask, sockets: Sockets) -> None:
    @app.url_value_preprocessor
    def take_language(endpoint: str | None, values: dict[str, Any] | None) -> None:
        g.language = (values or {}).pop("language", None)

    @sockets.route("/<language>/<topic>")
    def news(ws: Any, topic: str) -> None:
        ws.send(f"{g.language} {topic}")

    with sockets.test_client(app).connect("/fr/tea") as ws:
        assert ws.receive() == "fr tea"


def test_a_rule_needs_a_handler(sockets: Sockets) -> None:
    with pytest.raises(TypeError, match="needs a handler"):
        sockets.add_url_rule("/echo")


def test_add_url_rule_takes_what_flask_sockets_took(
    sockets: Sockets, client: SocketsClient
) -> None:
    sockets.add_url_rule("/echo", None, tell)
    assert told(client, "/echo") == ["tell", {}]


def test_a_callable_without_a_name_is_a_handler(sockets: Sockets, client: SocketsClient) -> None:
    sockets.add_url_rule("/echo", None, partial(tell, extra=1))
    assert told(client, "/echo")[1] == {"extra": 1}


def test_an_unknown_url_is_404_before_any_handshake(client: SocketsClient) -> None:
    """pain 9"""
    assert refusal(client, "/nowhere").status_code == 404


def test_a_page_and_a_websocket_may_share_a_url_and_a_name(app: Flask, sockets: Sockets) -> None:
    """pain 7"""

    @app.route("/same", methods=["GET", "POST"])
    def same() -> str:
        return request.method

    def page() -> Callable[..., Any]:
        def same(ws: Any) -> None:
            ws.send("socket")

        return same

    sockets.route("/same")(page())
    http = app.test_client()
    assert (http.get("/same").text, http.post("/same").text) == ("GET", "POST")
    with sockets.test_client(app).connect("/same") as ws:
        assert ws.receive() == "socket"


def test_plain_http_on_a_websocket_rule_is_426_and_says_what_to_do(
    app: Flask, sockets: Sockets
) -> None:
    """pain 8"""
    sockets.route("/echo")(echo)
    response = app.test_client().get("/echo")
    assert response.status_code == 426
    assert "Upgrade Required" in response.text
    assert "new WebSocket(url)" in response.text
    assert response.headers["Upgrade"] == "websocket"


def test_a_page_asked_for_as_a_websocket_is_400_with_the_reason(
    app: Flask, client: SocketsClient
) -> None:
    app.add_url_rule("/page", view_func=lambda: "page")
    response = refusal(client, "/page")
    assert response.status_code == 400
    assert "serves pages, not WebSockets" in response.text
    assert "sockets.route()" in response.text
    assert "sockets.register_blueprint()" in response.text  # the blueprint is Flask's alone


def test_error_handlers_of_the_application_answer_mismatches_too(
    app: Flask, sockets: Sockets
) -> None:
    sockets.route("/echo")(echo)
    app.add_url_rule("/page", view_func=lambda: "page")

    @app.errorhandler(HTTPException)
    def as_json(error: HTTPException) -> ResponseReturnValue:
        return {"code": error.code}, error.code or 500

    response = app.test_client().get("/echo")
    assert (response.status_code, response.json) == (426, {"code": 426})
    response = refusal(sockets.test_client(app), "/page")
    assert (response.status_code, response.json) == (400, {"code": 400})


def test_url_for_gives_the_address_of_a_websocket(app: Flask, sockets: Sockets) -> None:
    """pain 10"""
    sockets.route("/news/<topic>")(tell)
    with app.test_request_context("/"):
        assert url_for("tell", topic="tea") == "ws://localhost/news/tea"
    with app.test_request_context("/", base_url="https://example.com"):
        assert url_for("tell", topic="tea") == "wss://example.com/news/tea"


def test_flask_routes_lists_websockets(app: Flask, sockets: Sockets) -> None:
    """pain 10"""
    sockets.route("/news/<topic>")(tell)
    result = app.test_cli_runner().invoke(routes_command)
    assert result.exit_code == 0
    assert "/news/<topic>" in result.output


# -- applications --------------------------------------------------------------------------


def test_what_was_recorded_is_registered_by_init_app() -> None:
    """pain 11"""
    sockets = Sockets()
    sockets.route("/echo")(tell)
    blueprint = Blueprint("ws", __name__)
    blueprint.add_url_rule("/echo", view_func=tell)
    sockets.register_blueprint(blueprint, url_prefix="/ws")

    def create_app() -> Flask:
        app = Flask(__name__)
        sockets.init_app(app)
        return app

    for app in (create_app(), create_app()):
        client = sockets.test_client(app)
        assert told(client, "/echo") == ["tell", {}]
        assert told(client, "/ws/echo") == ["ws.tell", {}]


@pytest.mark.parametrize("known", [False, True], ids=["without sockets", "with others"])
def test_an_application_that_has_served_is_refused_each_time_and_stays_as_it_was(
    known: bool,
) -> None:
    app = Flask(__name__)
    if known:
        Sockets(app)
    app.test_client().get("/")
    sockets = Sockets()
    sockets.route("/echo")(tell)
    for _ in range(3):
        with pytest.raises(AssertionError, match="already handled its first request"):
            sockets.init_app(app)
    assert ("flask_sockets2" in app.extensions) is known
    assert [rule.rule for rule in app.url_map.iter_rules()] == ["/static/<path:filename>"]


def test_one_sockets_serves_several_applications() -> None:
    apps = [Flask("first"), Flask("second")]
    sockets = Sockets()
    sockets.init_app(apps[0])
    sockets.route("/name")(lambda ws: ws.send(flask.current_app.name))
    sockets.init_app(apps[1])
    for app in apps:
        with sockets.test_client(app).connect("/name") as ws:
            assert ws.receive() == app.name
    with pytest.raises(RuntimeError, match="serve 2 applications"):
        _ = sockets.url_map


@pytest.mark.parametrize("served", [False, True], ids=["not yet served", "has served"])
def test_a_factory_may_register_as_often_as_it_is_called(served: bool) -> None:
    """pain 11: each application has the handlers of its own call."""
    sockets = Sockets()

    def create_app(name: str) -> Flask:
        app = Flask(name)
        sockets.init_app(app)

        @sockets.route("/name")
        def tell_name(ws: Any) -> None:
            ws.send(name)

        blueprint = Blueprint("ws", __name__)

        @blueprint.route("/name")
        def tell_name_too(ws: Any) -> None:
            ws.send(f"{name} in the blueprint")

        sockets.register_blueprint(blueprint, url_prefix="/ws")
        return app

    def names(app: Flask) -> list[str]:
        client = sockets.test_client(app)
        with client.connect("/name") as ws, client.connect("/ws/name") as other:
            return [ws.receive(), other.receive()]

    first = create_app("first")
    if served:
        assert names(first) == ["first", "first in the blueprint"]
    second, third = create_app("second"), create_app("third")
    for app in (second, first, third):
        assert names(app) == [app.name, f"{app.name} in the blueprint"]


@of_each_kind
@pytest.mark.parametrize("first", ["init_app", "routes"])
@pytest.mark.parametrize("served", [False, True], ids=["not yet served", "has served"])
def test_a_factory_may_register_handlers_of_every_kind_and_for_several_hosts(
    served: bool, first: str, make: Callable[[str], Callable[..., Any]]
) -> None:
    sockets = Sockets()

    def create_app(name: str) -> Flask:
        app = of_hosts()
        if first == "init_app":
            sockets.init_app(app)
        for host in ("public", "staff"):
            handler = make(f"{name} {host}")
            rename(handler, "live")
            sockets.route("/live", host=f"{host}.example.com")(handler)
        if first == "routes":
            sockets.init_app(app)
        return app

    def check(app: Flask, name: str) -> None:
        for host in ("public", "staff"):
            assert said(app, host) == f"{name} {host}"
        assert len([rule for rule in app.url_map.iter_rules() if rule.websocket]) == 2

    one = create_app("one")
    if served:
        check(one, "one")
    two, three = create_app("two"), create_app("three")
    for app, name in ((two, "two"), (one, "one"), (three, "three")):
        check(app, name)


def test_a_factory_may_choose_among_handlers_each_time() -> None:
    sockets = Sockets()

    def create_app(loud: bool) -> Flask:
        app = Flask(__name__)
        sockets.init_app(app)
        if loud:

            @sockets.route("/live", endpoint="live")
            def shout(ws: Any) -> None:
                ws.send("HELLO")
        else:

            @sockets.route("/live", endpoint="live")
            def speak(ws: Any) -> None:
                ws.send("hello")

        return app

    apps = [create_app(loud) for loud in (True, False, True)]
    for app, text in zip(apps, ("HELLO", "hello", "HELLO"), strict=True):
        with sockets.test_client(app).connect("/live") as ws:
            assert ws.receive() == text


def test_a_factory_that_failed_may_be_called_again() -> None:
    sockets = Sockets()

    def create_app(**config: Any) -> Flask:
        app = Flask(__name__)
        app.config.update(config)
        sockets.route("/live")(lambda ws: ws.send("hello"))
        sockets.init_app(app)
        return app

    with pytest.raises(ValueError, match="SOCKETS_PING_INTERVAL"):
        create_app(SOCKETS_PING_INTERVAL="often")
    with sockets.test_client(create_app()).connect("/live") as ws:
        assert ws.receive() == "hello"


def test_a_route_of_a_module_is_in_applications_made_before_and_after_it() -> None:
    """pain 11"""
    sockets = Sockets()

    def create_app() -> Flask:
        app = Flask(__name__)
        sockets.init_app(app)
        return app

    sockets.route("/before", endpoint="before")(tell)
    apps = [create_app(), create_app()]
    sockets.route("/between", endpoint="between")(tell)
    blueprint = Blueprint("ws", __name__)
    blueprint.add_url_rule("/tell", view_func=tell)
    sockets.register_blueprint(blueprint)
    for app in [*apps, create_app()]:
        client = sockets.test_client(app)
        assert told(client, "/before") == ["before", {}]
        assert told(client, "/between") == ["between", {}]
    for app in apps:
        assert told(sockets.test_client(app), "/tell") == ["ws.tell", {}]
    # Those that have served a request take no more rules; the newest is told of the others'.
    newest = create_app()
    sockets.route("/late", endpoint="late")(tell)
    assert told(sockets.test_client(newest), "/late") == ["late", {}]
    assert refusal(sockets.test_client(apps[0]), "/late").status_code == 404


def test_several_sockets_serve_one_application(app: Flask) -> None:
    first, second = Sockets(app), Sockets(app)
    first.route("/first")(tell)
    second.route("/second")(tell)
    assert told(first.test_client(app), "/first") == ["tell", {}]
    assert told(first.test_client(app), "/second") == ["tell_websocket", {}]


def test_init_app_twice_is_as_good_as_once(app: Flask, sockets: Sockets) -> None:
    sockets.route("/echo")(tell)
    wsgi_app = app.wsgi_app
    sockets.init_app(app)
    assert app.wsgi_app is wsgi_app
    assert told(sockets.test_client(app), "/echo") == ["tell", {}]


def test_converters_added_before_there_is_an_application_are_used(app: Flask) -> None:
    class Words(BaseConverter):
        def to_python(self, value: str) -> list[str]:
            return value.split("+")

    sockets = Sockets()
    sockets.url_map.converters["words"] = Words
    seen: list[list[str]] = []
    sockets.route("/say/<words:said>")(lambda ws, said: seen.append(said))
    sockets.init_app(app)
    with sockets.test_client(app).connect("/say/hello+world"):
        pass
    assert seen == [["hello", "world"]]


def test_registered_blueprints_are_listed(app: Flask, sockets: Sockets) -> None:
    blueprint = Blueprint("talk", __name__)
    sockets.register_blueprint(blueprint)
    assert sockets.blueprints == {"talk": blueprint}


def test_the_middleware_has_flask_sockets_attributes(app: Flask, sockets: Sockets) -> None:
    middleware = SocketMiddleware(app.wsgi_app, app, sockets)
    assert middleware.ws is sockets
    assert middleware.app is app
    assert callable(middleware.wsgi_app)


def test_a_server_without_sockets_is_told_apart_from_a_wrong_url(
    app: Flask, sockets: Sockets
) -> None:
    """pain 67"""
    sockets.route("/echo")(echo)
    headers = {"Upgrade": "websocket", "Connection": "Upgrade"}
    response = app.test_client().get("/echo", headers=headers)
    assert response.status_code == 501
    assert "gunicorn -k flask_sockets2.worker" in response.text


FORGOTTEN = """
from flask import Flask
from flask_sockets2 import Sockets

app = Flask(__name__)
sockets = Sockets()

@sockets.route("/echo")
def echo(ws):
    ws.send("hello")

@app.route("/page")
def page():
    return "a page"
"""


@pytest.mark.parametrize("worker", ["flask_sockets2.worker", "gevent", "gthread", None])
def test_the_404_of_a_websocket_names_sockets_that_serve_no_application(
    worker: str | None, server_factory: Servers
) -> None:
    if worker is None:
        server = server_factory.flask_run(FORGOTTEN)
    else:
        server = server_factory.gunicorn(FORGOTTEN, worker=worker)
    for path, status in (("/echo", 404), ("/page", 400)):
        with pytest.raises(InvalidStatus) as refused, websocket(server.ws_url(path)):
            pass
        assert refused.value.response.status_code == status
    server.wait_for_output(
        "no rule for a WebSocket on '/echo': sockets with /echo serve no application; call their "
        r"init_app\(app\)"
    )


def test_a_404_that_is_no_websockets_or_has_all_its_sockets_says_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gc.collect()
    app, sockets = Flask(__name__), Sockets()
    sockets.route("/echo")(echo)
    app.test_client().get("/nothing")
    assert caplog.messages == []
    looking = len(request_finished.receivers)
    app = Flask(__name__)
    sockets.init_app(app)
    assert len(request_finished.receivers) == looking - 1, "requests are looked at for nothing"
    assert refusal(sockets.test_client(app), "/nothing").status_code == 404
    assert "serve no application" not in caplog.text


# -- blueprints ----------------------------------------------------------------------------


def test_a_blueprint_is_registered_with_all_its_rules(
    sockets: Sockets, client: SocketsClient
) -> None:
    """pain 1"""
    blueprint = Blueprint("ws", __name__)
    blueprint.route("/<int:number>")(tell)
    sockets.register_blueprint(blueprint, url_prefix="/live")
    assert told(client, "/live/7") == ["ws.tell", {"number": 7}]


def test_a_prefix_of_one_slash_adds_none(app: Flask, sockets: Sockets) -> None:
    """pain 1"""
    html, ws = Blueprint("html", __name__), Blueprint("ws", __name__)
    html.add_url_rule("/", view_func=lambda: "Hello World!")
    ws.add_url_rule("/echo", view_func=tell)
    app.register_blueprint(html, url_prefix="/")
    sockets.register_blueprint(ws, url_prefix="/")
    assert told(sockets.test_client(app), "/echo") == ["ws.tell", {}]
    assert app.test_client().get("/").text == "Hello World!"


def test_nested_blueprints_are_websockets_too(sockets: Sockets, client: SocketsClient) -> None:
    """pain 1"""
    outer, inner = Blueprint("outer", __name__), Blueprint("inner", __name__)
    inner.add_url_rule("/tell", view_func=tell)
    outer.register_blueprint(inner, url_prefix="/inner")
    sockets.register_blueprint(outer, url_prefix="/outer")
    assert told(client, "/outer/inner/tell") == ["outer.inner.tell", {}]


def test_a_blueprint_can_have_a_subdomain() -> None:
    """pain 1"""
    app = Flask(__name__, subdomain_matching=True)
    app.config["SERVER_NAME"] = "example.com"
    sockets = Sockets(app)
    blueprint = Blueprint("ws", __name__, subdomain="live")
    blueprint.add_url_rule("/tell", view_func=tell)
    sockets.register_blueprint(blueprint)
    client = sockets.test_client(app)
    assert told(client, "/tell", base_url="http://live.example.com") == ["ws.tell", {}]


def test_a_blueprint_is_registered_again_under_another_name(
    sockets: Sockets, client: SocketsClient
) -> None:
    """pain 1"""
    blueprint = Blueprint("ws", __name__)
    blueprint.add_url_rule("/tell", view_func=tell)
    sockets.register_blueprint(blueprint, url_prefix="/a")
    sockets.register_blueprint(blueprint, url_prefix="/b", name="again")
    assert told(client, "/a/tell") == ["ws.tell", {}]
    assert told(client, "/b/tell") == ["again.tell", {}]


@of_each_kind
def test_rules_of_a_blueprint_that_differ_by_host_have_handlers_of_their_own(
    make: Callable[[str], Callable[..., Any]],
) -> None:
    app = of_hosts()
    sockets = Sockets(app)
    outer, inner = Blueprint("outer", __name__), Blueprint("inner", __name__)
    for blueprint in (outer, inner):
        for name in ("public", "staff"):
            blueprint.add_url_rule(
                f"/{blueprint.name}",
                endpoint=name,
                view_func=make(f"{blueprint.name} {name}"),
                host=f"{name}.example.com",
            )
    outer.register_blueprint(inner)
    sockets.register_blueprint(outer)
    sockets.register_blueprint(inner, name="again", url_prefix="/again")
    for name in ("public", "staff"):
        assert said(app, name, "/outer") == f"outer {name}"
        assert said(app, name, "/inner") == f"inner {name}"
        assert said(app, name, "/again/inner") == f"inner {name}"


def test_one_handler_may_have_several_rules_in_a_blueprint(
    sockets: Sockets, client: SocketsClient
) -> None:
    blueprint = Blueprint("ws", __name__)
    blueprint.route("/one")(tell)
    blueprint.route("/two", defaults={"number": 2})(tell)
    sockets.register_blueprint(blueprint)
    assert told(client, "/one") == ["ws.tell", {}]
    assert told(client, "/two") == ["ws.tell", {"number": 2}]


@of_each_kind
def test_two_handlers_under_one_endpoint_of_a_blueprint_are_an_assertion_error(
    make: Callable[[str], Callable[..., Any]], sockets: Sockets, client: SocketsClient
) -> None:
    blueprint = Blueprint("ws", __name__)
    blueprint.add_url_rule("/one", endpoint="live", view_func=make("one"))
    blueprint.add_url_rule("/two", endpoint="live", view_func=make("two"))
    with pytest.raises(AssertionError, match=r"overwriting .*: ws\.live"):
        sockets.register_blueprint(blueprint)
    assert refusal(client, "/two").status_code == 404


def test_two_blueprints_of_one_name_are_refused(sockets: Sockets) -> None:
    sockets.register_blueprint(Blueprint("ws", __name__))
    with pytest.raises(ValueError, match="ws"):
        sockets.register_blueprint(Blueprint("ws", __name__))


def test_a_page_in_a_blueprint_of_websockets_is_refused_with_the_remedy(sockets: Sockets) -> None:
    """pain 1"""
    blueprint = Blueprint("ws", __name__)
    blueprint.add_url_rule("/login", view_func=tell, methods=["POST"])
    with pytest.raises(ValueError, match=r"^/live/login has .*app\.register_blueprint\(\)"):
        sockets.register_blueprint(blueprint, url_prefix="/live")


def test_rules_of_a_blueprint_take_a_routes_options(app: Flask, sockets: Sockets) -> None:
    blueprint = Blueprint("ws", __name__)
    blueprint.add_url_rule(
        "/tell", view_func=tell, subprotocols=["news.v1"], origins=["https://a.example"]
    )
    sockets.register_blueprint(blueprint)
    client = sockets.test_client(app)
    ws = client.connect("/tell", subprotocols=["news.v1"], origin="https://a.example")
    with ws:
        assert ws.subprotocol == "news.v1"
    assert refusal(client, "/tell", origin="http://localhost").status_code == 403


def test_the_static_folder_of_a_blueprint_stays_pages(
    app: Flask, sockets: Sockets, tmp_path: Any
) -> None:
    (tmp_path / "a.txt").write_text("static")
    blueprint = Blueprint("ws", __name__, static_folder=tmp_path, static_url_path="/files")
    blueprint.add_url_rule("/tell", view_func=tell)
    sockets.register_blueprint(blueprint, url_prefix="/ws")
    with app.test_client().get("/ws/files/a.txt") as response:
        assert response.text == "static"
    assert told(sockets.test_client(app), "/ws/tell") == ["ws.tell", {}]


def test_a_blueprint_finds_the_application_it_is_recorded_for(app: Flask, sockets: Sockets) -> None:
    blueprint = Blueprint("ws", __name__)
    seen: list[Any] = []

    @blueprint.record
    def record(state: Any) -> None:
        seen.append(state.app.config)
        state.app.noted = True

    sockets.register_blueprint(blueprint)
    assert seen == [app.config]
    assert app.noted  # type: ignore[attr-defined]  # set above


# -- before, after and around the handler --------------------------------------------------


def test_before_request_of_application_and_blueprint_run(app: Flask, sockets: Sockets) -> None:
    """pain 15"""
    blueprint = Blueprint("ws", __name__)
    ran: list[str] = []
    app.before_request(lambda: ran.append("application"))
    blueprint.before_request(lambda: ran.append("blueprint"))
    blueprint.add_url_rule("/tell", view_func=lambda ws: ws.send(" ".join(ran)), endpoint="tell")
    sockets.register_blueprint(blueprint)
    with sockets.test_client(app).connect("/tell") as ws:
        assert ws.receive() == "application blueprint"


@pytest.mark.parametrize("place", ["application", "blueprint"])
def test_before_request_may_refuse(place: str, app: Flask, sockets: Sockets) -> None:
    """pain 12, pain 13, pain 15: a refusal is an HTTP response and no handler runs."""
    blueprint = Blueprint("ws", __name__)
    ran = threading.Event()
    blueprint.add_url_rule("/tell", endpoint="tell", view_func=lambda ws: ran.set())

    @{"application": app, "blueprint": blueprint}[place].before_request
    def refuse() -> ResponseReturnValue:
        return "who are you?", 401, {"WWW-Authenticate": "Bearer"}

    sockets.register_blueprint(blueprint)
    response = refusal(sockets.test_client(app), "/tell")
    assert (response.status_code, response.text) == (401, "who are you?")
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert not ran.is_set()


def test_a_refused_connection_is_not_remembered(app: Flask, sockets: Sockets) -> None:
    """pain 72"""
    sockets.route("/no", accept=False)(lambda ws: abort(403))
    client = sockets.test_client(app)
    for _ in range(3):
        assert refusal(client, "/no").status_code == 403
    assert state_of(app).connections == set()


def test_after_request_and_teardown_run_once_when_the_handler_has_ended(
    app: Flask, sockets: Sockets
) -> None:
    ran: list[str] = []

    @app.after_request
    def after(response: flask.Response) -> flask.Response:
        ran.append("after")
        return response

    app.teardown_request(lambda exc: ran.append("teardown_request"))
    app.teardown_appcontext(lambda exc: ran.append("teardown_appcontext"))

    def handler(ws: Any) -> None:
        echo(ws)
        ran.append("handler")

    sockets.route("/echo")(handler)
    with sockets.test_client(app).connect("/echo") as ws:
        ws.send("hello")
        assert ws.receive() == "hello"
        assert ran == []
    assert ran == ["handler", "after", "teardown_request", "teardown_appcontext"]


def test_teardown_runs_once_after_an_exception(app: Flask, sockets: Sockets) -> None:
    seen: list[BaseException | None] = []
    app.teardown_request(seen.append)
    sockets.route("/fail")(lambda ws: {}["missing"])
    with sockets.test_client(app).connect("/fail") as ws:
        assert closing(ws) == (1011, "")
    assert len(seen) == 1


def test_session_g_and_the_current_user_are_at_hand(app: Flask, sockets: Sockets) -> None:
    """pain 14"""
    current_user = LocalProxy(lambda: g.user)

    @app.post("/login")
    def login() -> str:
        session["user"] = request.form["user"]
        return ""

    @app.before_request
    def load_user() -> None:
        g.user = session.get("user", "nobody")

    @sockets.route("/who")
    def who(ws: Any) -> None:
        for _ in ws:
            ws.send(f"{session.get('user')} {g.user} {current_user} {request.args.get('q')}")

    http = app.test_client()
    http.post("/login", data={"user": "ada"})
    with sockets.test_client(http).connect("/who?q=1") as ws:
        ws.send("?")
        assert ws.receive() == "ada ada ada 1"


def write_in_session(ws: Any) -> None:
    session["user"] = ws.receive()


def write_in_a_list_of_the_session(ws: Any) -> None:
    session["basket"].append(ws.receive())
    session.modified = True


def write_and_fail(ws: Any) -> None:
    session["user"] = ws.receive()
    raise KeyError("missing")


@pytest.mark.parametrize(
    ("handler", "named"),
    [
        (write_in_session, r"\('user'\)"),
        (write_in_a_list_of_the_session, r"\(session\.modified\)"),
        (write_and_fail, r"\('user'\)"),
    ],
)
@pytest.mark.parametrize("accept", [True, False])
def test_a_handler_that_writes_into_the_session_is_warned_of_once_in_debug_mode(
    handler: Callable[..., Any],
    named: str,
    accept: bool,
    app: Flask,
    sockets: Sockets,
    caplog: pytest.LogCaptureFixture,
) -> None:
    sockets.route("/writes", accept=accept)(handler)
    client = sockets.test_client(app)
    with client.http.session_transaction() as transaction:
        transaction["basket"] = ["apple"]

    def visit() -> None:
        caplog.clear()
        with suppress(KeyError), client.connect("/writes") as ws:
            ws.send("eve")
            closing(ws)

    visit()
    assert warnings(caplog) == []
    app.debug = True
    visit()
    (warning,) = warnings(caplog)
    assert re.search(f"of /writes wrote into the session {named}, .* write in a view", warning)
    visit()
    assert warnings(caplog) == []


def test_a_handler_that_only_reads_the_session_or_refuses_is_not_warned_of(
    app: Flask, sockets: Sockets, caplog: pytest.LogCaptureFixture
) -> None:
    app.debug = True
    app.before_request(lambda: session.update(basket=["apple"]))

    @app.after_request
    def write(response: flask.Response) -> flask.Response:
        session["seen"] = "yes"
        return response

    @sockets.route("/reads")
    def read(ws: Any) -> None:
        ws.send(" ".join(session["basket"]))

    @sockets.route("/refuses", accept=False)
    def refuse(ws: Any) -> None:
        session["refused"] = "yes"
        abort(403)

    client = sockets.test_client(app)
    with client.connect("/reads") as ws:
        assert ws.receive() == "apple"
    assert refusal(client, "/refuses").status_code == 403
    assert warnings(caplog) == []


def test_a_refusal_saves_its_session_as_any_response_does(
    app: Flask, sockets: Sockets, client: SocketsClient
) -> None:
    @app.get("/")
    def page() -> dict[str, Any]:
        return dict(session)

    @sockets.route("/refuses", accept=False)
    def refuse(ws: Any) -> ResponseReturnValue:
        session["refused"] = "yes"
        return redirect("/login")

    assert refusal(client, "/refuses").status_code == 302
    assert client.http.get("/").json == {"refused": "yes"}


def test_a_session_can_be_saved_by_a_test_while_a_websocket_is_open(
    app: Flask, sockets: Sockets, client: SocketsClient
) -> None:
    sockets.route("/who")(lambda ws: ws.send(session.get("user")))
    sockets.route("/echo")(echo)
    with client.connect("/echo"), client.http.session_transaction() as transaction:
        transaction["user"] = "ada"
    with client.connect("/who") as ws:
        assert ws.receive() == "ada"


def test_a_token_in_header_query_or_subprotocol_is_at_hand(
    sockets: Sockets, client: SocketsClient
) -> None:
    """pain 14"""

    @sockets.route("/who")
    def who(ws: Any) -> None:
        ws.send(f"{request.headers['Authorization']} {request.args['token']} {ws.subprotocols[1]}")

    headers = {"Authorization": "Bearer a"}
    with client.connect("/who?token=b", headers=headers, subprotocols=["v1", "c"]) as ws:
        assert ws.receive() == "Bearer a b c"


# -- how a handler ends --------------------------------------------------------------------


def test_a_handler_that_returns_closes_with_1000(sockets: Sockets, client: SocketsClient) -> None:
    sockets.route("/end")(lambda ws: None)
    with client.connect("/end") as ws:
        assert closing(ws) == (1000, "")


@pytest.mark.parametrize("listens", [False, True])
def test_a_thread_that_outlives_its_handler_is_told_why_it_cannot_send(
    listens: bool, sockets: Sockets, client: SocketsClient
) -> None:
    handed: Queue[Connection] = Queue()

    @sockets.route("/progress")
    def progress(ws: Connection) -> None:
        if listens:
            ws.subscribe("progress")
        handed.put(ws)

    with client.connect("/progress") as ws:
        connection = handed.get(timeout=60)
        if listens:
            ws.close(1000)
        else:
            assert ws.receive() is None
    wait_until(lambda: not connection.open, "the end of the connection")
    with pytest.raises(ConnectionClosed) as raised:
        connection.send("done")
    said = str(raised.value)
    assert said.startswith("the connection is closed with code 1000")
    assert ("since its handler has returned" in said) is not listens
    assert ("ws.subscribe(channel)" in said) is not listens


def test_what_a_handler_returns_after_accepting_is_ignored(
    sockets: Sockets, client: SocketsClient
) -> None:
    sockets.route("/end")(lambda ws: ("not a response", 1, 2, 3))
    with client.connect("/end") as ws:
        assert closing(ws) == (1000, "")


def test_a_value_that_is_returned_too_late_is_warned_about(
    app: Flask, sockets: Sockets, client: SocketsClient, caplog: pytest.LogCaptureFixture
) -> None:
    sockets.route("/late/<int:number>")(lambda ws, number: ("no", 403))
    sockets.route("/nothing")(lambda ws: None)
    sockets.route("/in-time", accept=False)(lambda ws: ("no", 403))
    with client.connect("/nothing") as ws:
        assert closing(ws) == (1000, "")
    assert refusal(client, "/in-time").status_code == 403
    assert warnings(caplog) == []
    with client.connect("/late/5") as ws:
        assert closing(ws) == (1000, "")
    (message,) = warnings(caplog)
    assert "the handler of /late/<int:number> returned a value" in message
    assert "accept=False" in message


@pytest.mark.parametrize(
    ("status", "expected"),
    [(403, (1008, "403 Forbidden")), (404, (1008, "404 Not Found")), (503, (1011, ""))],
)
def test_an_http_error_after_accepting_becomes_a_close_code(
    status: int, expected: tuple[int, str], sockets: Sockets, client: SocketsClient
) -> None:
    sockets.route("/end")(lambda ws: abort(status, "a secret"))
    with client.connect("/end") as ws:
        assert closing(ws) == expected


def test_the_reason_is_never_the_applications_own_text(
    app: Flask, sockets: Sockets, client: SocketsClient
) -> None:
    @app.errorhandler(RuntimeError)
    def told(error: RuntimeError) -> flask.Response:
        return flask.Response(status="422 " + "é" * 100)

    def handler(ws: Any) -> None:
        raise RuntimeError

    sockets.route("/end")(handler)
    with client.connect("/end") as ws:
        assert closing(ws) == (1008, "422 Unprocessable Entity")


def test_an_error_handler_decides_on_the_close_code(
    app: Flask, sockets: Sockets, client: SocketsClient, caplog: pytest.LogCaptureFixture
) -> None:
    class Unpaid(Exception):
        pass

    @app.errorhandler(Unpaid)
    def unpaid(error: Unpaid) -> ResponseReturnValue:
        return "pay first", 402

    def handler(ws: Any) -> None:
        raise Unpaid

    sockets.route("/end")(handler)
    with client.connect("/end") as ws:
        assert closing(ws) == (1008, "402 Payment Required")
    assert errors(caplog) == []


def test_the_handlers_own_close_code_wins(sockets: Sockets, client: SocketsClient) -> None:
    """pain 23"""
    sockets.route("/end")(lambda ws: ws.close(4001, "log in again"))
    with client.connect("/end") as ws:
        assert closing(ws) == (4001, "log in again")


def test_a_key_error_of_the_handlers_is_1011_and_logged_once(
    sockets: Sockets, client: SocketsClient, caplog: pytest.LogCaptureFixture
) -> None:
    """pain 3"""
    sockets.route("/end")(lambda ws: {}["missing"])
    with client.connect("/end") as ws:
        assert closing(ws) == (1011, "")
    (record,) = errors(caplog)
    assert record.exc_info is not None
    assert record.exc_info[0] is KeyError


def test_what_a_peer_says_makes_no_lines_in_the_log(
    sockets: Sockets, client: SocketsClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "flask_sockets2.connection")  # a page of the docs sets it
    sockets.route("/echo/<name>")(echo)
    sockets.route("/fail/<name>")(lambda ws, name: {}["missing"])
    forged = "%0aCRITICAL%20forged%0d%1b%5b31m"
    with client.connect(f"/echo/{forged}") as ws:
        ws.close(4000, "bye\nCRITICAL forged\r\x1b[31m")
    with client.connect(f"/fail/{forged}") as ws:
        assert closing(ws) == (1011, "")
    ours = [r.getMessage() for r in caplog.records if r.name.startswith("flask_sockets2")]
    assert len([message for message in ours if "forged" in message]) >= 4
    for message in ours:
        assert message.isprintable(), message


@pytest.mark.parametrize("accept", [True, False])
def test_got_request_exception_is_sent_once(accept: bool, app: Flask, sockets: Sockets) -> None:
    seen: list[BaseException] = []

    def note(sender: Flask, exception: BaseException, **extra: Any) -> None:
        seen.append(exception)

    error = KeyError("missing")

    def handler(ws: Any) -> None:
        raise error

    sockets.route("/end", accept=accept)(handler)
    client = sockets.test_client(app)
    with got_request_exception.connected_to(note, app):
        if accept:
            with client.connect("/end") as ws:
                assert closing(ws) == (1011, "")
        else:
            assert refusal(client, "/end").status_code == 500
    assert seen == [error]


def test_an_exception_that_flask_passes_on_is_logged_once_and_does_not_reach_the_server(
    app: Flask, sockets: Sockets, caplog: pytest.LogCaptureFixture
) -> None:
    """As under the debugger, which has nothing to show on a WebSocket. pain 59"""
    app.config["PROPAGATE_EXCEPTIONS"] = True
    sockets.route("/end")(lambda ws: {}["missing"])
    inner = app.wsgi_app

    def as_a_server_calls_it(environ: Any, start_response: Any) -> Any:
        environ.pop(RAISE, None)
        return inner(environ, start_response)

    app.wsgi_app = as_a_server_calls_it  # type: ignore[method-assign]  # as Flask documents it
    with sockets.test_client(app).connect("/end") as ws:
        assert closing(ws) == (1011, "")
    (record,) = errors(caplog)
    assert record.getMessage() == "exception in the handler of '/end'"


def test_the_end_of_the_handlers_own_connection_is_no_error(
    sockets: Sockets, client: SocketsClient, caplog: pytest.LogCaptureFixture
) -> None:
    """pain 25"""

    @sockets.route("/end")
    def handler(ws: Any) -> None:
        assert ws.receive() is None
        ws.send("too late")

    ws = client.connect("/end")
    ws.close(4000)
    assert errors(caplog) == []


def test_the_end_of_another_connection_is_an_error_of_this_one(
    sockets: Sockets, client: SocketsClient, caplog: pytest.LogCaptureFixture
) -> None:
    """pain 24"""
    others: list[Any] = []

    @sockets.route("/other")
    def other(ws: Any) -> None:
        others.append(ws)

    @sockets.route("/end")
    def end(ws: Any) -> None:
        others[0].send("to whom?")

    with client.connect("/other") as ws:
        assert closing(ws) == (1000, "")
    with client.connect("/end") as ws:
        assert closing(ws) == (1011, "")
    assert len(errors(caplog)) == 1


def test_an_oserror_that_is_not_the_connections_is_an_error(
    sockets: Sockets, client: SocketsClient, caplog: pytest.LogCaptureFixture
) -> None:
    @sockets.route("/end")
    def end(ws: Any) -> None:
        ws.receive(timeout=0.01)  # TimeoutError is an OSError

    with client.connect("/end") as ws:
        assert closing(ws) == (1011, "")
    assert len(errors(caplog)) == 1


def test_flask_sockets_own_loop_ends_quietly(
    app: Flask, sockets: Sockets, caplog: pytest.LogCaptureFixture
) -> None:
    """pain 25"""
    app.testing = True

    @sockets.route("/echo")
    def echo_socket(ws: Any) -> None:
        while not ws.closed:
            message = ws.receive()
            ws.send(message)

    ws = sockets.test_client(app).connect("/echo")
    ws.send("hello")
    assert ws.receive() == "hello"
    ws.close(1001, "going away")
    assert (ws.close_code, ws.close_reason) == (1001, "going away")
    assert errors(caplog) == []


def pass_on(f: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(f)
    def call(*args: Any, **values: Any) -> Any:
        return f(*args, **values)

    return call


class Asynchronous:
    async def __call__(self, ws: Any) -> None:
        raise AssertionError("must not run")

    async def method(self, ws: Any) -> None:
        raise AssertionError("must not run")

    async def generator(self, ws: Any) -> Any:
        yield ws


@pytest.mark.parametrize(
    "handler",
    [
        Asynchronous().method,
        Asynchronous(),
        Asynchronous().generator,
        partial(Asynchronous().method),
        pass_on(Asynchronous().method),
        pass_on(pass_on(partial(Asynchronous()))),
    ],
    ids=["function", "object", "generator", "partial", "decorated", "all of it"],
)
def test_an_async_handler_is_refused_when_it_is_registered(
    handler: Callable[..., Any], sockets: Sockets
) -> None:
    remedy = r"is async, but .* write 'def' in place of 'async def'"
    with pytest.raises(TypeError, match=remedy):
        sockets.route("/echo")(handler)
    with pytest.raises(TypeError, match=remedy):
        Sockets().add_url_rule("/echo", None, handler)
    blueprint = Blueprint("ws", __name__)
    blueprint.add_url_rule("/echo", endpoint="echo", view_func=handler)
    with pytest.raises(TypeError, match=remedy):
        sockets.register_blueprint(blueprint)
    assert [rule for rule in sockets.url_map.iter_rules() if rule.websocket] == []


@pytest.mark.parametrize(("accept", "code"), [(True, 1011), (False, 500)])
def test_a_coroutine_that_a_handler_returns_is_an_error(
    accept: bool,
    code: int,
    sockets: Sockets,
    client: SocketsClient,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Under a decorator that does not say what it wraps."""
    sockets.route("/echo", accept=accept)(lambda ws: Asynchronous().method(ws))
    if accept:
        with client.connect("/echo") as ws:
            assert closing(ws) == (code, "")
    else:
        assert refusal(client, "/echo").status_code == code
    (record,) = errors(caplog)
    assert record.exc_info is not None
    assert "returned a coroutine, which nothing runs" in str(record.exc_info[1])


# -- accept=False --------------------------------------------------------------------------


def test_a_handler_that_accepts_itself_may_abort(sockets: Sockets, client: SocketsClient) -> None:
    """pain 12"""
    sockets.route("/no", accept=False)(lambda ws: abort(403, "not you"))
    response = refusal(client, "/no")
    assert response.status_code == 403
    assert "not you" in response.text
    assert response.headers["Connection"] == "close"


def test_a_handler_that_accepts_itself_may_redirect(
    sockets: Sockets, client: SocketsClient
) -> None:
    """pain 12"""
    sockets.route("/no", accept=False)(lambda ws: redirect("/login"))
    response = refusal(client, "/no")
    assert (response.status_code, response.location) == (302, "/login")


def test_a_handler_that_accepts_itself_may_answer(sockets: Sockets, client: SocketsClient) -> None:
    sockets.route("/no", accept=False)(lambda ws: ({"why": "full"}, 503, {"Retry-After": "9"}))
    response = refusal(client, "/no")
    assert (response.status_code, response.json) == (503, {"why": "full"})
    assert response.headers["Retry-After"] == "9"


def test_an_exception_before_accepting_is_flasks_500(
    sockets: Sockets, client: SocketsClient, caplog: pytest.LogCaptureFixture
) -> None:
    sockets.route("/no", accept=False)(lambda ws: {}["missing"])
    assert refusal(client, "/no").status_code == 500
    assert len(errors(caplog)) == 1


def test_a_handler_chooses_the_subprotocol_and_adds_header_fields(
    sockets: Sockets, client: SocketsClient
) -> None:
    @sockets.route("/yes", accept=False)
    def yes(ws: Any) -> None:
        assert not ws.accepted
        ws.accept(subprotocol=ws.subprotocols[-1], headers=[("X-Served-By", "a")])
        assert ws.accepted
        ws.accept()  # once more does nothing
        ws.send(ws.subprotocol)

    with client.connect("/yes", subprotocols=["a", "b"]) as ws:
        assert ws.subprotocol == "b"
        assert ws.headers["X-Served-By"] == "a"
        assert ws.receive() == "b"


def test_a_subprotocol_that_was_not_offered_is_an_error(
    sockets: Sockets, client: SocketsClient, caplog: pytest.LogCaptureFixture
) -> None:
    sockets.route("/no", accept=False)(lambda ws: ws.accept(subprotocol="c"))
    assert refusal(client, "/no", subprotocols=["a"]).status_code == 500
    (record,) = errors(caplog)
    assert record.exc_info is not None
    assert "the client offers a" in str(record.exc_info[1])


@pytest.mark.parametrize(
    "field",
    [
        ("X-A", "b\r\nX-C: d"),
        ("X A", "b"),
        ("X\n", "b"),
        ("", "b"),
        ("X-A", "\x1b[31m"),
        ("X-(A)", "b"),
    ],
)
def test_a_header_field_with_a_control_character_is_not_sent(
    field: tuple[str, str], sockets: Sockets, client: SocketsClient
) -> None:
    sockets.route("/no", accept=False)(lambda ws: ws.accept(headers=[field]))
    assert refusal(client, "/no").status_code == 500


def look(ws: Any) -> None:
    with pytest.raises(TimeoutError):
        ws.receive(timeout=0.01)


@pytest.mark.parametrize(
    "first",
    [
        lambda ws: ws.send("hello"),
        lambda ws: ws.ping(),
        look,
        lambda ws: ws.close(1000),
        lambda ws: None,
    ],
    ids=["send", "ping", "receive", "close", "return"],
)
def test_the_first_thing_that_a_handler_does_accepts(
    first: Callable[[Any], Any], sockets: Sockets, client: SocketsClient
) -> None:
    sockets.route("/yes", accept=False)(lambda ws: (first(ws), None)[1])
    with client.connect("/yes") as ws:
        assert [*ws] in ([], ["hello"])
        assert ws.close_code == 1000


# -- limits, origins, subprotocols ---------------------------------------------------------


def test_a_route_has_limits_of_its_own(app: Flask, sockets: Sockets) -> None:
    app.config["SOCKETS_MAX_MESSAGE_SIZE"] = 100
    sockets.route("/small", max_message_size=10)(echo)
    sockets.add_url_rule("/large", "large", echo)
    client = sockets.test_client(app)
    with client.connect("/large") as ws:
        ws.send("x" * 100)
        assert ws.receive() == "x" * 100
        ws.send("x" * 101)
        assert closing(ws)[0] == 1009
    with client.connect("/small") as ws:
        ws.send("x" * 11)
        assert closing(ws)[0] == 1009


def test_compression_is_agreed_to_where_it_is_switched_on(app: Flask, sockets: Sockets) -> None:
    sockets.route("/deflate", compression=True)(echo)
    sockets.add_url_rule("/plain", "plain", echo)
    client = sockets.test_client(app)
    with client.connect("/deflate", compression=True) as ws:
        assert "permessage-deflate" in ws.headers["Sec-WebSocket-Extensions"]
        ws.send("hello" * 100)
        assert ws.receive() == "hello" * 100
    with client.connect("/plain", compression=True) as ws:
        assert "Sec-WebSocket-Extensions" not in ws.headers


def test_a_page_of_the_same_origin_may_connect(sockets: Sockets, client: SocketsClient) -> None:
    """pain 16"""
    sockets.route("/tell")(tell)
    assert told(client, "/tell", origin="http://localhost")
    assert told(client, "/tell")  # no browser


def test_a_page_of_another_origin_may_not_and_the_log_says_which_setting(
    sockets: Sockets, client: SocketsClient, caplog: pytest.LogCaptureFixture
) -> None:
    """pain 16, pain 17"""
    sockets.route("/tell")(tell)
    assert refusal(client, "/tell", origin="https://evil.example").status_code == 403
    (record,) = (r for r in caplog.records if r.levelno == logging.WARNING)
    assert "'https://evil.example' on host 'localhost'" in record.getMessage()
    assert "SOCKETS_ALLOWED_ORIGINS" in record.getMessage()
    assert "ProxyFix" in record.getMessage()


def test_the_log_of_a_refused_origin_names_the_setting_that_applied(
    app: Flask, sockets: Sockets, client: SocketsClient, caplog: pytest.LogCaptureFixture
) -> None:
    """pain 16"""
    app.config["SOCKETS_ALLOWED_ORIGINS"] = "https://evil.example"
    sockets.route("/tell", origins="https://a.example")(tell)
    response = refusal(client, "/tell", origin="https://evil.example")
    assert response.status_code == 403
    assert "origins= of its route" in response.text
    (message,) = warnings(caplog)
    assert "add its origin to origins= of its route" in message
    assert "SOCKETS_ALLOWED_ORIGINS" not in message


BAD_ORIGINS = ["example.com", "*.example.com", "https://a.example/page", "ftp://a.example", "", 5]


@pytest.mark.parametrize("origin", BAD_ORIGINS)
def test_an_origin_of_a_route_that_no_page_can_have_is_refused_at_once(
    origin: Any, sockets: Sockets
) -> None:
    """pain 17"""
    with pytest.raises(ValueError, match=r"origins: .* is no origin; expected 'https://"):
        sockets.route("/tell", origins=[origin])(tell)


@pytest.mark.parametrize("origin", BAD_ORIGINS)
def test_an_origin_of_the_application_that_no_page_can_have_is_named(
    origin: Any,
    app: Flask,
    sockets: Sockets,
    client: SocketsClient,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """pain 17"""
    app.config["SOCKETS_ALLOWED_ORIGINS"] = [origin]
    sockets.route("/tell")(tell)
    assert refusal(client, "/tell", origin="https://a.example").status_code == 500
    (record,) = errors(caplog)
    assert record.exc_info is not None
    message = f"SOCKETS_ALLOWED_ORIGINS: {origin!r} is no origin; expected 'https://example.com'"
    assert str(record.exc_info[1]).startswith(message)


@pytest.mark.parametrize("separator", [",", ", ", " "])
def test_one_string_may_hold_several_origins(
    separator: str, app: Flask, sockets: Sockets, client: SocketsClient
) -> None:
    """pain 16: as an environment variable does."""
    given = separator.join(["https://a.example", "https://*.b.example:8443", "http://[::1]:5000"])
    app.config["SOCKETS_ALLOWED_ORIGINS"] = given
    sockets.route("/tell")(tell)
    sockets.add_url_rule("/own", "own", tell, origins=given)
    for path in ("/tell", "/own"):
        for origin in ("https://a.example", "https://x.b.example:8443", "http://[::1]:5000"):
            assert told(client, path, origin=origin)
        assert refusal(client, path, origin="https://c.example").status_code == 403


def test_a_page_of_plain_http_may_not_connect_to_https(
    sockets: Sockets, client: SocketsClient
) -> None:
    """pain 16"""
    sockets.route("/tell")(tell)
    secure = {"base_url": "https://localhost"}
    assert told(client, "/tell", origin="https://localhost", **secure)
    assert refusal(client, "/tell", origin="http://localhost", **secure).status_code == 403


@pytest.mark.parametrize("allowed", [["https://a.example", "https://b.example"], "*"])
def test_the_application_allows_origins(
    allowed: Any, app: Flask, sockets: Sockets, client: SocketsClient
) -> None:
    """pain 16"""
    app.config["SOCKETS_ALLOWED_ORIGINS"] = allowed
    sockets.route("/tell")(tell)
    assert told(client, "/tell", origin="https://b.example")


def test_a_route_allows_origins_of_its_own(
    app: Flask, sockets: Sockets, client: SocketsClient
) -> None:
    """pain 16"""
    app.config["SOCKETS_ALLOWED_ORIGINS"] = "https://a.example"
    sockets.route("/tell", origins="https://b.example")(tell)
    assert told(client, "/tell", origin="https://b.example")
    assert refusal(client, "/tell", origin="https://a.example").status_code == 403


def test_an_iterator_of_origins_allows_them_more_than_once(
    sockets: Sockets, client: SocketsClient
) -> None:
    sockets.route("/tell", origins=iter(["https://b.example"]))(tell)  # consumed once
    for _ in range(2):
        assert told(client, "/tell", origin="https://b.example")


def test_behind_a_proxy_the_host_is_the_one_that_proxyfix_gives(
    app: Flask, sockets: Sockets
) -> None:
    """pain 17"""
    sockets.route("/tell")(tell)
    app.wsgi_app = ProxyFix(app.wsgi_app, x_host=1, x_proto=1)  # type: ignore[method-assign]  # as Flask documents it
    client = sockets.test_client(app)
    headers = {"X-Forwarded-Host": "www.example.com", "X-Forwarded-Proto": "https"}
    origin = "https://www.example.com"
    assert told(client, "/tell", headers=headers, origin=origin)
    assert refusal(client, "/tell", headers=headers, origin="http://localhost").status_code == 403


def test_the_servers_order_decides_on_the_subprotocol(
    sockets: Sockets, client: SocketsClient
) -> None:
    """pain 18"""
    sockets.route("/tell", subprotocols=["v2", "v1"])(lambda ws: ws.send(str(ws.subprotocol)))
    for offered, selected in [(["v1", "v2"], "v2"), (["v1"], "v1"), (["v11"], None), ([], None)]:
        with client.connect("/tell", subprotocols=offered) as ws:
            assert ws.subprotocol == selected
            assert ws.receive() == str(selected)


def test_one_subprotocol_may_be_a_string(sockets: Sockets, client: SocketsClient) -> None:
    sockets.route("/tell", subprotocols="v1")(tell)
    with client.connect("/tell", subprotocols=["v1"]) as ws:
        assert ws.subprotocol == "v1"


def test_connections_beyond_the_limit_are_told_to_come_back(
    app: Flask, sockets: Sockets, caplog: pytest.LogCaptureFixture
) -> None:
    """pain 89"""
    app.config["SOCKETS_MAX_CONNECTIONS"] = 1
    sockets.route("/echo")(echo)
    sockets.route("/no", accept=False)(lambda ws: abort(403))
    client = sockets.test_client(app)
    assert refusal(client, "/no").status_code == 403  # counts no more
    with client.connect("/echo"):
        response = refusal(client, "/echo")
        assert response.status_code == 503
        assert response.headers["Retry-After"] == "5"
        assert "SOCKETS_MAX_CONNECTIONS" in caplog.text
    with client.connect("/echo"):
        pass


def test_handlers_that_accept_late_do_not_exceed_the_limit(
    app: Flask, sockets: Sockets, caplog: pytest.LogCaptureFixture
) -> None:
    """pain 89: they are counted when they accept, and who is refused then is not."""
    app.config["SOCKETS_MAX_CONNECTIONS"] = 2
    all_are_there = threading.Barrier(5)

    @sockets.route("/late", accept=False)
    def late(ws: Any) -> None:
        all_are_there.wait(TIMEOUT)
        ws.accept()
        echo(ws)

    def attempt(number: int) -> WebSocketSession | tuple[int, str]:
        try:
            return sockets.test_client(app).connect("/late")
        except WebSocketRejected as refused:
            return refused.response.status_code, refused.response.headers["Retry-After"]

    with ThreadPoolExecutor(5) as pool, ExitStack() as stack:
        came = list(pool.map(attempt, range(5)))
        for session in came:
            if isinstance(session, WebSocketSession):
                stack.enter_context(session)
        assert [answer for answer in came if isinstance(answer, tuple)] == [(503, "5")] * 3
        assert len(state_of(app).connections) == 2
        assert "SOCKETS_MAX_CONNECTIONS" in caplog.text
    assert state_of(app).connections == set()


@pytest.mark.parametrize("value", [0, -1, "25", True, [1]])
def test_a_setting_that_is_no_number_is_named(
    value: Any,
    app: Flask,
    sockets: Sockets,
    client: SocketsClient,
    caplog: pytest.LogCaptureFixture,
) -> None:
    sockets.route("/echo")(echo)
    app.config["SOCKETS_PING_INTERVAL"] = value  # too late for an error at the start
    assert refusal(client, "/echo").status_code == 500
    (record,) = errors(caplog)
    assert record.exc_info is not None
    message = f"SOCKETS_PING_INTERVAL must be a number of seconds above 0 or None, got {value!r}"
    assert str(record.exc_info[1]) == message


@pytest.mark.parametrize(
    "setting", ["SOCKETS_MAX_MESSAGE_SIZE", "SOCKETS_RECEIVE_BUFFER", "SOCKETS_SEND_BUFFER"]
)
@pytest.mark.parametrize("value", [1e6, float("nan"), float("inf"), True, 0, None])
def test_a_size_that_is_no_whole_number_is_named_before_anything_is_served(
    value: Any, setting: str, app: Flask
) -> None:
    app.config[setting] = value
    message = f"{setting} must be a whole number of bytes above 0, got {value!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Sockets(app)
    name = setting.removeprefix("SOCKETS_").lower()
    del app.config[setting]
    with pytest.raises(ValueError, match=f"^{name} must be a whole number of bytes above 0"):
        Sockets(app).route("/echo", **{name: value})(echo)


@pytest.mark.parametrize(
    "setting", ["SOCKETS_SEND_TIMEOUT", "SOCKETS_CLOSE_TIMEOUT", "SOCKETS_PING_INTERVAL"]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), "5"])
def test_a_time_that_never_comes_is_named_before_anything_is_served(
    value: Any, setting: str, app: Flask
) -> None:
    app.config[setting] = value
    with pytest.raises(ValueError, match=f"^{setting} must be a number of seconds above 0"):
        Sockets(app)


def test_a_limit_of_a_route_that_is_no_number_is_refused_at_once(sockets: Sockets) -> None:
    with pytest.raises(
        ValueError, match="max_message_size must be a whole number of bytes above 0, got '1 MiB'"
    ):
        sockets.route("/echo", max_message_size="1 MiB")(echo)


@pytest.mark.parametrize(
    ("setting", "value"), [("SOCKETS_MAX_CONNECTIONS", "5"), ("SOCKETS_COMPRESSION", "off")]
)
def test_a_setting_of_the_wrong_kind_is_named(
    setting: str,
    value: Any,
    app: Flask,
    sockets: Sockets,
    client: SocketsClient,
    caplog: pytest.LogCaptureFixture,
) -> None:
    sockets.route("/echo")(echo)
    app.config[setting] = value  # too late for an error at the start
    assert refusal(client, "/echo").status_code == 500
    (record,) = errors(caplog)
    assert record.exc_info is not None
    assert setting in str(record.exc_info[1])


@pytest.mark.parametrize("setting", ["SOCKETS_PING_INTERVAL", "SOCKETS_PING_TIMEOUT"])
def test_pings_can_be_switched_off(
    setting: str, app: Flask, sockets: Sockets, client: SocketsClient
) -> None:
    app.config[setting] = None
    sockets.route("/tell")(tell)
    assert told(client, "/tell")


@pytest.mark.parametrize(
    ("field", "value", "status", "reason"),
    [
        ("Sec-WebSocket-Version", "8", 426, "Sec-WebSocket-Version 13"),
        ("Sec-WebSocket-Key", "short", 400, "16 bytes in base64"),
        ("Sec-WebSocket-Protocol", "a b", 400, "Sec-WebSocket-Protocol"),
    ],
)
def test_a_broken_handshake_is_refused_with_the_reason(
    field: str, value: str, status: int, reason: str, sockets: Sockets, client: SocketsClient
) -> None:
    """pain 83"""
    sockets.route("/echo")(echo)
    response = refusal(client, "/echo", headers={field: value})
    assert response.status_code == status
    assert reason in response.text
