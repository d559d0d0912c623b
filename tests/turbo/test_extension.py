"""Turbo as an application uses it: builders, answers, pushes and broadcasts."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from hashlib import sha256
from typing import Any
from unittest.mock import MagicMock

import pytest
from flask import Flask, Response, request
from jinja2 import DictLoader
from werkzeug.local import LocalProxy

import flask_sockets2
from flask_sockets2 import BrokerError, Position, Sockets, WebSocketRejected
from flask_sockets2.application.state import state_of
from flask_sockets2.turbo import Turbo
from flask_sockets2.turbo.testing import capture_broadcasts

STREAMS = "text/vnd.turbo-stream.html"
UNREACHABLE = "redis://127.0.0.1:1"


def app_with(**settings: Any) -> Flask:
    app = Flask(__name__)
    app.config.update({"SECRET_KEY": "secret", **settings})
    app.jinja_loader = DictLoader({"_todo.html": "<li>{{ todo }}</li>"})
    return app


@pytest.fixture
def app() -> Flask:
    return app_with()


@pytest.fixture
def turbo(app: Flask) -> Turbo:
    return Turbo(app)


def test_an_application_that_has_served_is_refused_each_time() -> None:
    app = Flask(__name__)
    app.test_client().get("/")
    turbo = Turbo()
    for _ in range(3):
        with pytest.raises(AssertionError, match="already handled its first request"):
            turbo.init_app(app)
    assert list(app.extensions) == ["flask_sockets2.misspelt"]


def test_it_is_one_class_under_both_names() -> None:
    assert flask_sockets2.Turbo is Turbo
    assert "Turbo" in flask_sockets2.__all__


# -- builders ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "action", ["append", "prepend", "replace", "update", "after", "before", "remove"]
)
def test_a_builder_returns_the_text_that_turbo_flask_does(action: str, turbo: Turbo) -> None:
    content = [] if action == "remove" else ["<b>foo & bar</b>"]
    inner = "".join(content)
    end = f"><template>{inner}</template></turbo-stream>"
    build = getattr(turbo, action)
    one = build(*content, "foo")
    assert type(one) is str
    assert one == f'<turbo-stream action="{action}" target="foo"{end}'
    assert build(*content, target="foo") == one
    several = f'<turbo-stream action="{action}" targets=".foo"{end}'
    assert build(*content, ".foo", multiple=True) == several
    assert build(*content, ".foo", True) == several
    assert build(*content, targets=".foo") == several


def test_a_template_is_rendered_in_one_step(app: Flask, turbo: Turbo) -> None:
    with app.app_context():
        made = turbo.append(template="_todo.html", todo="Milk & <b>", target="todos")
    assert "<template><li>Milk &amp; &lt;b&gt;</li></template>" in made


def test_further_attributes_stand_behind_the_target(turbo: Turbo) -> None:
    made = turbo.replace("x", "a", method="morph", attributes={"data_a": 1, "hidden": True})
    assert made.startswith(
        '<turbo-stream action="replace" target="a" method="morph" data-a="1" hidden>'
    )
    removed = turbo.remove(targets=".a", attributes={"data-b": "c"})
    assert removed.startswith('<turbo-stream action="remove" targets=".a" data-b="c">')


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((), {"target": "a"}, "needs content, or template="),
        (("x",), {}, "needs target="),
        (("x", "a"), {"targets": ".a"}, "either target="),
        (("x", ".a", True), {"targets": ".a"}, "leave targets= out"),
        (("x", "a"), {"template": "_todo.html"}, "either content or template="),
        (("x", "a"), {"todo": "Milk"}, "no option 'todo'; context needs template="),
        (("x", "a"), {"attributes": {"method": "morph"}}, "'method' is an option of its own"),
    ],
)
def test_what_cannot_be_built_says_why(
    arguments: tuple[Any, ...], options: dict[str, Any], message: str, turbo: Turbo
) -> None:
    with pytest.raises(TypeError, match=message):
        turbo.append(*arguments, **options)


def test_refresh_and_custom_actions(turbo: Turbo) -> None:
    assert turbo.refresh() == '<turbo-stream action="refresh"></turbo-stream>'
    assert turbo.refresh(request_id="1", method="morph", scroll="preserve") == (
        '<turbo-stream action="refresh" request-id="1" method="morph" scroll="preserve">'
        "</turbo-stream>"
    )
    assert turbo.action("log", "x", level="info", if_open=True) == (
        '<turbo-stream action="log" level="info" if-open><template>x</template></turbo-stream>'
    )


@pytest.mark.parametrize(("action", "method"), [("replace", "morf"), ("append", "morph")])
def test_a_method_that_turbo_js_has_not_is_refused(action: str, method: str, turbo: Turbo) -> None:
    with pytest.raises(ValueError, match='method= is "morph", for replace and update'):
        getattr(turbo, action)("x", "a", method=method)


def test_a_custom_action_takes_attributes_of_any_name(turbo: Turbo) -> None:
    made = turbo.action("log", attributes={"data-a": 1}, level="info")
    assert made.startswith('<turbo-stream action="log" data-a="1" level="info">')


def test_what_is_no_stream_says_so(turbo: Turbo) -> None:
    for stream in (None, 5, b"<x>", ["<x>", None]):
        with pytest.raises(TypeError, match="a stream is a text"):
            turbo.push(stream)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("markup", "told"),
    [
        ("hello", True),
        ("<turbo-stream-from name='a'></turbo-stream-from>", True),
        ("<TURBO-STREAM action='x'></TURBO-STREAM>", False),
        (["", "<turbo-stream>"], False),
        ("", False),
        ([], False),
    ],
)
def test_debug_mode_tells_of_a_push_that_no_page_shows(
    app: Flask, turbo: Turbo, markup: Any, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    pushes: list[Callable[[], Any]] = [
        lambda: turbo.push(markup),
        lambda: turbo.broadcast_to("room", 5, stream=markup),
    ]
    for push in pushes:
        for debug in (False, True):
            app.debug = debug
            caplog.clear()
            push()
            named = [each for each in caplog.messages if "has no <turbo-stream>" in each]
            assert len(named) == (told and debug)


def test_a_broadcast_takes_its_content_by_keyword(turbo: Turbo) -> None:
    with pytest.raises(TypeError, match=r"broadcast_append_to\(\) has no target: .* by keyword"):
        turbo.broadcast_append_to("list", 1, "<li>", "items")


@pytest.mark.parametrize(
    "action", ["append", "prepend", "replace", "update", "before", "after", "remove"]
)
def test_a_broadcast_without_a_target_says_how_to_name_one(turbo: Turbo, action: str) -> None:
    options = {} if action == "remove" else {"content": "x"}
    with pytest.raises(TypeError, match=rf"^broadcast_{action}_to\(\) has no target: .*targets="):
        getattr(turbo, f"broadcast_{action}_to")("room", 5, **options)


@pytest.mark.parametrize(
    "position", ["junk", "start", 5, "0123456789abcdef", "0123456789abcdef-1,-", b"-", True]
)
def test_a_position_that_is_none_is_an_error_of_the_page(
    app: Flask, turbo: Turbo, position: Any
) -> None:
    with app.test_request_context("/"), pytest.raises(ValueError, match=r"^position= must be .*"):
        turbo.stream_from("room", 5, position=position)


# -- answers -------------------------------------------------------------------------------------


def test_a_stream_is_a_response_of_one_or_several(app: Flask, turbo: Turbo) -> None:
    with app.test_request_context("/"):
        for stream, body in [("<a>", b"<a>"), (["<a>", "<b>"], b"<a><b>")]:
            response = turbo.stream(stream)
            assert response.status_code == 200
            assert response.content_type == f"{STREAMS}; charset=utf-8"
            assert response.get_data() == body


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (f"{STREAMS}, text/html, application/xhtml+xml", True),
        (STREAMS, True),
        ("text/html, application/xhtml+xml", False),
        ("*/*", False),
        ("text/*", False),
        (f"{STREAMS};q=0.5, text/html", False),
        (f"{STREAMS};q=0, */*", False),
        (None, False),
    ],
)
def test_only_who_names_streams_is_sent_them(
    accept: str | None, expected: bool, app: Flask, turbo: Turbo
) -> None:
    headers = {} if accept is None else {"Accept": accept}
    with app.test_request_context("/", headers=headers):
        assert turbo.can_stream() is expected


def test_the_frame_that_asks_is_known(app: Flask, turbo: Turbo) -> None:
    with app.test_request_context("/"):
        assert turbo.requested_frame() is None
    with app.test_request_context("/", headers={"Turbo-Frame": "todo"}):
        assert turbo.requested_frame() == "todo"


# -- pushing to sockets of the program's own -----------------------------------------------------


def sent_to(socket: MagicMock) -> list[str]:
    return [call.args[0] for call in socket.send.call_args_list]


@pytest.mark.parametrize(
    ("to", "reached"),
    [
        (None, "abc"),
        ("1", "ab"),
        (2, "c"),
        (["1", 2], "abc"),
        ({"1"}, "ab"),
        ((each for each in [2]), "c"),
        ("nobody", ""),
        ([], ""),
        (["nobody", 2], "c"),
        (LocalProxy(lambda: 2), "c"),
        ([None, 2], "c"),
    ],
)
def test_sockets_of_the_programs_own_are_pushed_to(to: Any, reached: str, turbo: Turbo) -> None:
    sockets = {name: MagicMock() for name in "abc"}
    turbo.clients = {"1": [sockets["a"], sockets["b"]], 2: [sockets["c"]]}
    assert turbo.push(["<x>", "<y>"], to=to) is None
    for name, socket in sockets.items():
        assert sent_to(socket) == (["<x><y>"] if name in reached else [])


@pytest.mark.parametrize("error", [BrokenPipeError(), RuntimeError("closed")])
def test_a_dead_socket_keeps_no_other_from_being_sent_to(error: Exception, turbo: Turbo) -> None:
    dead, alive = MagicMock(), MagicMock()
    dead.send.side_effect = error
    turbo.clients = {1: [dead], 2: [alive]}
    turbo.push("<x>")
    assert sent_to(alive) == ["<x>"]


def test_who_can_be_pushed_to(turbo: Turbo) -> None:
    assert not turbo.can_push()
    turbo.clients = {"1": [MagicMock()]}
    assert turbo.can_push()
    assert turbo.can_push("1")
    assert not turbo.can_push(to="2")


# -- channels ------------------------------------------------------------------------------------


def test_a_push_goes_to_the_channels_of_its_recipients(turbo: Turbo) -> None:
    turbo.user_id(lambda: None)
    with capture_broadcasts(turbo) as broadcasts:
        turbo.push("<a>")
        turbo.push("<b>", to=5)
        turbo.push("<c>", to=["a:b", 6])
    assert [(each.channel, each.markup) for each in broadcasts] == [
        ("turbo:all", "<a>"),
        ("turbo:user:5", "<b>"),
        ("turbo:user:a%3Ab", "<c>"),
        ("turbo:user:6", "<c>"),
    ]


def test_a_push_to_a_user_needs_to_know_who_the_users_are(app: Flask, turbo: Turbo) -> None:
    for to in 5, "ann", ["ann", 5], LocalProxy(lambda: 5):
        with pytest.raises(RuntimeError, match=r"^cannot push to a user: .* @turbo\.user_id$"):
            turbo.push("<x>", to=to)
    turbo.push("<x>", to=[])
    turbo.push("<x>")
    assert not turbo.can_push(to="ann")
    assert turbo.sock is not None
    with pytest.raises(RuntimeError, match=r"@sockets\.user_id, or with @turbo\.user_id$"):
        turbo.sock.disconnect(user="ann")

    turbo.user_id(lambda: None)
    turbo.push("<x>", to="ann")
    turbo.sock.disconnect(user="ann")


@pytest.mark.parametrize(("extension", "streams"), [("turbo", 2), ("sockets", 1)])
def test_the_function_of_turbo_alone_gives_pages_the_stream_of_their_user_and_ends_it(
    extension: str, streams: int
) -> None:
    app = app_with()
    sockets = Sockets(app)
    turbo = Turbo(app)
    sockets.route("/news")(lambda ws: ws.subscribe("news") and None)
    (turbo if extension == "turbo" else sockets).user_id(lambda: "ann")
    with app.test_request_context():
        assert str(turbo.turbo()).count('name="turbo-stream-from"') == streams
    with sockets.test_client(app).connect("/news") as ws:
        sockets.disconnect(user="ann", code=4401)
        assert ws.receive(timeout=60) is None
        assert ws.close_code == 4401


def test_a_recipient_who_is_named_twice_gets_it_once(turbo: Turbo) -> None:
    turbo.user_id(lambda: None)
    with capture_broadcasts(turbo, to=5) as broadcasts:
        turbo.push("<x>", to=[5, "5", 6, 5])
    assert [each.markup for each in broadcasts] == ["<x>"]


def test_only_a_replace_of_one_target_has_a_key(turbo: Turbo) -> None:
    turbo.user_id(lambda: None)
    with capture_broadcasts(turbo) as broadcasts:
        turbo.push(turbo.replace("x", "load"))
        turbo.push(turbo.update("x", "load"), to=[1, 2])
        turbo.push([turbo.replace("x", "a"), turbo.replace("x", "b")])
        turbo.push(turbo.append("x", "load"))
    assert [each.key for each in broadcasts] == [
        "replace load",
        "update load",
        "update load",
        "",
        "",
    ]


@pytest.mark.parametrize(
    "action", ["append", "prepend", "replace", "update", "before", "after", "remove"]
)
def test_each_action_can_be_broadcast(action: str, app: Flask, turbo: Turbo) -> None:
    what = {"target": "todos"} if action == "remove" else {"content": "x", "target": "todos"}
    with capture_broadcasts(turbo, "room", 5) as broadcasts:
        position = getattr(turbo, f"broadcast_{action}_to")("room", 5, **what)
    assert isinstance(position, Position)
    assert [each.markup for each in broadcasts] == [getattr(turbo, action)(**what)]
    with app.app_context(), capture_broadcasts(turbo, "room", 5) as broadcasts:
        if action != "remove":
            how = {"template": "_todo.html", "todo": "Milk", "targets": ".a"}
            getattr(turbo, f"broadcast_{action}_to")("room", 5, **how)
            assert broadcasts[0].actions[0].targets == ".a"
            assert broadcasts[0].actions[0].text == "Milk"


def test_any_streams_can_be_broadcast(turbo: Turbo) -> None:
    with capture_broadcasts(turbo, "room") as broadcasts:
        turbo.broadcast_to("room", stream=[turbo.append("x", "a"), turbo.remove("b")])
        turbo.broadcast_refresh_to("room", method="morph")
    assert [(each.action, each.target) for each in broadcasts.actions] == [
        ("append", "a"),
        ("remove", "b"),
        ("refresh", None),
    ]


@pytest.mark.parametrize(
    ("header", "expected"),
    [("1-2", sha256(b"1-2").hexdigest()[:32]), ("", None), ("x" * 101, None), (None, None)],
)
def test_the_page_that_has_sent_a_request_can_be_left_out(
    header: str | None, expected: str | None, app: Flask, turbo: Turbo
) -> None:
    """Nobody is told the id itself, who could then send it and hide messages from that page."""
    headers = {} if header is None else {"X-Turbo-Request-Id": header}
    with app.test_request_context("/", headers=headers), capture_broadcasts(turbo) as broadcasts:
        turbo.broadcast_replace_to("room", content="x", target="a", exclude_sender=True)
        turbo.push([turbo.append("x", "a"), turbo.remove("b")], exclude_sender=True)
        turbo.broadcast_replace_to("room", content="x", target="a")
        turbo.broadcast_refresh_to("room")
        turbo.broadcast_refresh_to("other room", exclude_sender=False)
        turbo.broadcast_refresh_to("third room", request_id="7")
    found = [each.attributes for each in broadcasts.actions]
    senders = [each.get("data-sender") for each in found]
    third = sha256(b"7").hexdigest()[:32]
    assert senders == [expected, expected, None, None, expected, None, third]
    assert not any("request-id" in each for each in found)
    assert broadcasts[0].key == "replace a" or expected  # known without the attribute, too


def test_outside_of_a_request_there_is_no_sender(turbo: Turbo) -> None:
    with capture_broadcasts(turbo) as broadcasts:
        turbo.push(turbo.remove("a"), exclude_sender=True)
    assert broadcasts[0].markup == turbo.remove("a")


def test_what_is_too_big_says_which_setting_it_is(turbo: Turbo) -> None:
    turbo.push("x" * 2**20)
    with pytest.raises(ValueError, match="SOCKETS_MAX_MESSAGE_SIZE"):
        turbo.push("x" * (2**20 + 1))


def test_a_push_raises_when_the_broker_is_away() -> None:
    app = app_with(SOCKETS_BROKER_URL=UNREACHABLE)
    turbo = Turbo(app)
    socket = MagicMock()
    turbo.clients = {1: [socket]}
    with app.app_context(), pytest.raises(BrokerError):
        turbo.push("<x>")
    assert sent_to(socket) == [], "who tries again would send it twice"


# -- applications --------------------------------------------------------------------------------


def test_without_an_application_it_says_so() -> None:
    turbo = Turbo()
    assert turbo.sock is None
    assert not turbo.can_push()
    with pytest.raises(RuntimeError, match=r"init_app\(app\)"):
        turbo.push("<x>")


def test_each_application_of_a_factory_has_its_own_pushes() -> None:
    turbo = Turbo()
    apps = [app_with(), app_with()]
    for app in apps:
        turbo.init_app(app)
    with capture_broadcasts(apps[0]) as first, capture_broadcasts(apps[1]) as second:
        with apps[1].app_context():
            turbo.push("<x>")
        with pytest.raises(RuntimeError, match="app_context"):
            turbo.push("<y>")
    assert [each.markup for each in first] == []
    assert [each.markup for each in second] == ["<x>"]


def test_two_applications_of_one_turbo_have_their_own_routes() -> None:
    turbo = Turbo()
    first, second, none = (
        app_with(TURBO_WEBSOCKET_ROUTE=route) for route in ("/one", "/two", None)
    )
    for app in (first, second, none):
        turbo.init_app(app)
    routes = {
        app: [str(rule) for rule in app.url_map.iter_rules() if rule.websocket]
        for app in (first, second, none)
    }
    assert routes == {first: ["/one"], second: ["/two"], none: []}


def test_it_can_be_given_an_application_twice(app: Flask, turbo: Turbo) -> None:
    turbo.init_app(app)
    assert app.test_client().get("/turbo-stream").status_code == 426


def test_an_application_has_one_turbo(app: Flask, turbo: Turbo) -> None:
    """Of two, one would be in the templates and the other one asked by connections."""
    with pytest.raises(RuntimeError, match="has a Turbo already"):
        Turbo(app)
    assert app.extensions["flask_sockets2.turbo"] is turbo


def test_the_default_route_is_written_into_the_configuration(app: Flask) -> None:
    Turbo(app)
    assert app.config["TURBO_WEBSOCKET_ROUTE"] == "/turbo-stream"


def test_decorators_return_the_function(turbo: Turbo) -> None:
    def function() -> None: ...

    assert turbo.user_id(function) is function
    assert turbo.user_id_callback is function
    assert turbo.authorize(function) is function
    assert turbo.default_user_id() != turbo.default_user_id()


def test_templates_have_the_turbo_itself(turbo: Turbo) -> None:
    assert turbo.context_processor() == {"turbo": turbo}


# -- the position before the reading -------------------------------------------------------------


def test_a_request_remembers_the_position_that_it_asked_for(app: Flask, turbo: Turbo) -> None:
    with app.test_request_context("/"):
        early = turbo.position("room", 5)
        everybody = turbo.position()
        turbo.broadcast_append_to("room", 5, content="x", target="a")
        turbo.push("<x>")
        assert f'position="{early}"' in turbo.stream_from("room", 5)
        assert f'data-position="{everybody}"' in turbo()
    with app.test_request_context("/"):
        later = turbo.position("room", 5)
        assert later.offset == early.offset + 1
        assert f'position="{later}"' in turbo.stream_from("room", 5)


def test_the_position_for_all_is_remembered_with_that_of_the_user(app: Flask, turbo: Turbo) -> None:
    turbo.user_id(lambda: 5)
    with app.test_request_context():
        before = turbo.position()
        turbo.push("<all>")
        turbo.push("<user>", to=5)
        page = turbo.turbo()
    assert page.count(f'data-position="{before}"') == 1
    assert before.offset == 0  # type: ignore[union-attr]
    assert page.count('-0"') == 2, "the user's position is that of before the push"


def test_a_position_is_forgotten_with_its_request(app: Flask, turbo: Turbo) -> None:
    """Also where one application context spans several requests, as in many tests."""
    with app.app_context():
        for number in range(3):
            with app.test_request_context():
                assert turbo.position("room", 5).offset == number  # type: ignore[union-attr]
            turbo.broadcast_append_to("room", 5, content="x", target="a")


def test_positions_of_many_streams_are_asked_for_at_once(
    app: Flask, turbo: Turbo, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    sock: Any = turbo.sock
    positions = sock.positions
    monkeypatch.setattr(
        sock, "positions", lambda channels: (asked.append(list(channels)), positions(channels))[1]
    )
    with app.test_request_context():
        found = turbo.positions([("order", 1), ("order", 2)])
        assert str(found[1]) in turbo.stream_from("order", 2)
    assert asked == [["turbo:stream:order:1", "turbo:stream:order:2"]]


def test_subscribers_of_a_stream_are_counted(turbo: Turbo, app: Flask) -> None:
    assert turbo.subscribers("room", 5) == 0


@pytest.mark.parametrize(
    ("said", "expected"),
    [(None, "private"), ("no-store", "no-store"), ("public, max-age=5", "public, max-age=5")],
)
@pytest.mark.parametrize("signed", ["stream", "user"])
def test_a_page_with_signed_names_is_for_no_shared_cache(
    signed: str, said: str | None, expected: str, app: Flask, turbo: Turbo
) -> None:
    if signed == "user":
        turbo.user_id(lambda: 5)

    @app.get("/")
    def page() -> Response:
        response = Response(turbo.turbo() if signed == "user" else turbo.stream_from("room", 5))
        if said is not None:
            response.headers["Cache-Control"] = said
        return response

    @app.get("/for-all")
    def for_all() -> str:
        return "nothing is signed here"

    client = app.test_client()
    assert client.get("/").headers["Cache-Control"] == expected
    assert "Cache-Control" not in client.get("/for-all").headers


def test_a_page_without_a_broker_says_that_it_is_stale(caplog: pytest.LogCaptureFixture) -> None:
    app = app_with(SOCKETS_BROKER_URL=UNREACHABLE)
    turbo = Turbo(app)
    with app.test_request_context("/"), caplog.at_level(logging.ERROR):
        assert 'data-position="-"' in turbo()
        assert ' position="-"' in turbo.stream_from("room")
    assert caplog.messages[0].startswith("a page has no positions and will be told of a gap: ")


def test_a_broker_that_is_away_is_asked_once_for_a_page(
    app: Flask, turbo: Turbo, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It may take seconds to say so."""
    asked = []

    def fail(channels: Any) -> Any:
        asked.append(channels)
        raise BrokerError("away")

    monkeypatch.setattr(state_of(app).publisher, "positions", fail)
    with app.test_request_context():
        assert str(turbo.position("room", 0)) == "-"
        page = turbo.turbo(url="/turbo.js")
        page += turbo.stream_from("room", 1) + turbo.stream_from("room", 2)
    assert page.count('position="-"') == 3
    assert (len(asked), len(caplog.records)) == (1, 1)


@pytest.mark.parametrize(
    ("options", "rule", "base"),
    [
        ({"subdomain_matching": True}, {"subdomain": "a"}, "http://a.example.com"),
        ({"subdomain_matching": True}, {}, "http://example.com"),
        (
            {"host_matching": True, "static_host": "example.com"},
            {"host": "b.example.com"},
            "http://b.example.com",
        ),
    ],
)
def test_pages_of_other_hosts_and_subdomains_can_connect(
    options: dict[str, Any], rule: dict[str, str], base: str
) -> None:
    app = Flask(__name__, **options)
    app.config["SECRET_KEY"] = "secret"
    if app.subdomain_matching:  # with this name Flask 3.0 knows no other host
        app.config["SERVER_NAME"] = "example.com"
    turbo = Turbo(app)
    app.add_url_rule("/page", "page", lambda: turbo.turbo(), **rule)  # type: ignore[arg-type]
    client: Any = app.test_client()
    page = client.get("/page", base_url=base).text
    [module] = re.findall('type="module" src="([^"]*)"', page)
    with client.get(module, base_url=base) as response:
        assert response.status_code == 200
    assert client.get("/turbo-stream", base_url=base).status_code == 426
    with Sockets().test_client(client).connect("/turbo-stream", base_url=base) as ws:
        assert not ws.closed


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("www.example.com", 101),
        ("WWW.example.com", 101),
        ("ann.example.org", 101),
        ("static.example.com", 101),
        ("www.example.com.evil.example", 403),
        ("evil.example", 403),
        ("example.com", 403),
        ("www.example.com:8000", 403),
        ("127.0.0.1", 403),
    ],
)
@pytest.mark.parametrize("server_name", [None, "example.com"])
def test_where_rules_name_their_hosts_only_pages_of_these_connect(
    server_name: str | None, host: str, expected: int
) -> None:
    """A name that a stranger has bound to our address is of no rule but our own."""
    app = Flask(__name__, host_matching=True, static_host="static.example.com")
    app.config.update(SECRET_KEY="secret", SERVER_NAME=server_name)
    Turbo(app)
    app.add_url_rule("/", "page", lambda: "page", host="www.example.com")
    app.add_url_rule("/", "tenant", lambda tenant: tenant, host="<tenant>.example.org")
    base = f"http://{host}"
    client: Any = app.test_client()
    events = {"Accept": "text/event-stream", "Sec-Fetch-Site": "same-origin"}
    with client.get("/turbo-stream?s=turbo:all", base_url=base, headers=events) as response:
        assert response.status_code == (200 if expected == 101 else 403)
    try:
        with Sockets().test_client(app).connect("/turbo-stream", base_url=base, origin=base):
            status = 101
    except WebSocketRejected as refused:
        status = refused.response.status_code
    assert status == expected


def test_an_application_with_pages_at_every_host_has_their_connections_there() -> None:
    app = Flask(__name__, host_matching=True, static_host="static.example.com")
    Turbo(app)
    app.add_url_rule("/", "page", lambda host: host, host="<host>")
    base = "http://any.example"
    with Sockets().test_client(app).connect("/turbo-stream", base_url=base, origin=base) as ws:
        assert not ws.closed


def test_a_page_may_have_turbo_js_alone(app: Flask, turbo: Turbo) -> None:
    with app.test_request_context():
        alone, whole = turbo.turbo(connect=False), turbo.turbo()
    assert whole.startswith(alone)
    assert alone.count("<") == 2, "one script"


def test_all_positions_of_a_page_are_asked_for_at_once(
    app: Flask, turbo: Turbo, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    assert turbo.sock is not None
    ask: Callable[[Any], list[Position]] = turbo.sock.positions

    def positions(channels: Any) -> list[Position]:
        asked.append(channels)
        return ask(channels)

    monkeypatch.setattr(turbo.sock, "positions", positions)
    turbo.user_id(lambda: request.args["user"])
    with app.test_request_context("/?user=5"):
        turbo()
    assert asked == [["turbo:all", "turbo:user:5"]]
