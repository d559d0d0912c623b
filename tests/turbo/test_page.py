"""What a page carries, and the files that it loads."""

from __future__ import annotations

import logging
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from flask import Flask, abort, render_template_string, request
from werkzeug.test import TestResponse

from flask_sockets2.turbo import Turbo
from flask_sockets2.turbo.stream_names import StreamSigner

POSITION = re.compile(r"[0-9a-f]{16}-\d+")


def app_with(**settings: Any) -> Flask:
    app = Flask(__name__)
    app.config.update({"SECRET_KEY": "secret", "TURBO_JS_URL": "/turbo.js", **settings})

    @app.get("/page")
    def page() -> str:
        return render_template_string(request.args.get("template", "{{ turbo() }}"))

    return app


class Tags(HTMLParser):
    """The elements of a page: their names and attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def page_of(app: Flask, template: str = "{{ turbo() }}", **options: Any) -> Tags:
    response = app.test_client().get("/page", query_string={"template": template}, **options)
    assert response.status_code == 200
    return Tags(response.text)


def metas(tags: Tags) -> list[dict[str, str | None]]:
    return [attributes for tag, attributes in tags.found if tag == "meta"]


def module_of(tags: Tags) -> dict[str, str | None]:
    [module] = [found for tag, found in tags.found if found.get("type") == "module"]
    return module


# -- the head ------------------------------------------------------------------------------------


def test_a_page_has_turbo_js_our_module_and_the_stream_of_all() -> None:
    app = app_with()
    Turbo(app)
    tags = page_of(app)
    assert [tag for tag, _ in tags.found] == ["script", "script", "meta"]
    assert tags.found[0][1] == {"src": "/turbo.js", "data-turbo-eval": "false"}
    module = module_of(tags)
    assert module.keys() == {"type", "src"}
    assert re.fullmatch(r"/_flask_sockets2/turbo-streams-[0-9a-f]{16}\.js", str(module["src"]))
    [meta] = metas(tags)
    assert meta["name"] == "turbo-stream-from"
    assert meta["content"] == "turbo:all"
    assert meta["data-url"] == "/turbo-stream"
    assert POSITION.fullmatch(str(meta["data-position"]))


def test_there_is_no_inline_script() -> None:
    app = app_with()
    Turbo(app)
    assert app.test_client().get("/page").text.count("></script>") == 2


def test_without_a_route_there_is_turbo_js_alone() -> None:
    """Turbo-Flask's bytes."""
    app = app_with(TURBO_WEBSOCKET_ROUTE=None)
    Turbo(app)
    text = app.test_client().get("/page").text
    assert text == '<script type="module" src="/turbo.js"></script>'
    assert app.test_client().get("/turbo-stream").status_code == 404


@pytest.mark.parametrize(
    ("template", "src"),
    [
        ("{{ turbo(url='/mine.js') }}", "/mine.js"),
        ("{{ turbo(None, '/mine.js') }}", "/mine.js"),
        ("{{ turbo(url=url_for('static', filename='t.js')) }}", "/static/t.js"),
        (
            "{{ turbo(version='1.2.3') }}",
            "https://cdn.jsdelivr.net/npm/@hotwired/turbo@1.2.3/dist/turbo.es2017-umd.js",
        ),
        (
            "{{ turbo(version=None) }}",
            "https://cdn.jsdelivr.net/npm/@hotwired/turbo/dist/turbo.es2017-umd.js",
        ),
    ],
)
def test_the_arguments_say_which_turbo_js(template: str, src: str) -> None:
    app = app_with(TURBO_JS_URL=None)
    Turbo(app)
    assert page_of(app, template).found[0][1]["src"] == src


def test_the_nonce_is_that_of_both_scripts() -> None:
    app = app_with()
    Turbo(app)
    tags = page_of(app, "{{ turbo(nonce='n\"1') }}")
    assert [found["nonce"] for tag, found in tags.found if tag == "script"] == ['n"1', 'n"1']


@pytest.mark.parametrize("route", ["/turbo-stream", None])
def test_turbo_js_finds_the_nonce_before_it_runs(route: str | None) -> None:
    app = app_with(TURBO_WEBSOCKET_ROUTE=route)
    Turbo(app)
    first = page_of(app, "{{ turbo(nonce='n\"1') }}").found[0]
    assert first == ("meta", {"name": "csp-nonce", "content": 'n"1'})
    assert "csp-nonce" not in app.test_client().get("/page").text


WHOLE = "<!doctype html><title>x</title>"
STREAM = "{{ turbo.stream_from('room', 5) }}"


@pytest.mark.parametrize(
    ("page", "headers", "told"),
    [
        (f"{WHOLE}{STREAM}", {}, True),
        (f"<HTML>{STREAM}</HTML>", {}, True),
        (f"<html>{{{{ turbo(connect=False) }}}}{STREAM}", {}, True),
        (f"{WHOLE}{{{{ turbo() }}}}{STREAM}", {}, False),
        (f"{WHOLE}{STREAM}{{{{ turbo(user=False) }}}}", {}, False),
        (f"<turbo-frame id=a>{STREAM}</turbo-frame>", {"Turbo-Frame": "a"}, False),
        (f"{WHOLE}<turbo-frame id=a>{STREAM}</turbo-frame>", {"Turbo-Frame": "a"}, False),
        (f"<li>{STREAM}</li>", {}, False),  # a script puts it into a page
        (f"<header>{STREAM}</header>", {}, False),
        (WHOLE, {}, False),
    ],
)
def test_debug_mode_tells_of_a_page_whose_streams_nothing_connects(
    page: str, headers: dict[str, str], told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    app = app_with()
    Turbo(app)
    for debug in (False, True):
        app.debug = debug
        answer = app.test_client().get("/page", query_string={"template": page}, headers=headers)
        assert answer.status_code == 200
        named = [each for each in caplog.messages if "put {{ turbo() }} into its <head>" in each]
        assert len(named) == (told and debug)


def test_debug_mode_tells_of_a_page_with_streams_and_no_connection_at_all(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = app_with(TURBO_WEBSOCKET_ROUTE=None)
    Turbo(app)
    app.debug = True
    page_of(app, f"<html>{{{{ turbo() }}}}{STREAM}")
    assert "set TURBO_WEBSOCKET_ROUTE if it is None" in caplog.text


def test_a_page_that_is_streamed_is_not_looked_at(caplog: pytest.LogCaptureFixture) -> None:
    app = app_with()
    turbo = Turbo(app)
    app.debug = True
    app.add_url_rule("/parts", view_func=lambda: iter(["<html>", turbo.stream_from("room")]))
    assert "turbo-stream-from" in app.test_client().get("/parts").text
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("answer", "told"), [("hello", True), ("", False), ('<turbo-stream action="x">', False)]
)
def test_debug_mode_tells_of_an_answer_that_is_no_stream(
    answer: str, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    app = app_with()
    turbo = Turbo(app)
    app.add_url_rule("/answer", view_func=lambda: turbo.stream(answer))
    for debug in (False, True):
        app.debug = debug
        assert app.test_client().get("/answer").text == answer
        named = [each for each in caplog.messages if "no <turbo-stream>" in each]
        assert len(named) == (told and debug)


def test_the_module_is_told_of_debug_mode() -> None:
    app = app_with()
    Turbo(app)
    app.debug = True
    assert "data-debug" in module_of(page_of(app))


def test_urls_begin_where_the_application_is_mounted() -> None:
    app = app_with(TURBO_WEBSOCKET_ROUTE="/streams")
    Turbo(app)
    tags = page_of(app, base_url="http://localhost/shop/")
    assert metas(tags)[0]["data-url"] == "/shop/streams"
    assert str(module_of(tags)["src"]).startswith("/shop/_flask_sockets2/")


def test_it_renders_in_a_thread_that_has_no_request() -> None:
    app = app_with()
    turbo = Turbo(app)
    turbo.user_id(lambda: request.args["user"])
    with app.app_context():
        tags = Tags(render_template_string("{{ turbo() }}"))
    [meta] = metas(tags)
    assert (meta["content"], meta["data-url"]) == ("turbo:all", "/turbo-stream")


# -- users ---------------------------------------------------------------------------------------


def test_a_page_of_a_user_carries_that_signed() -> None:
    app = app_with()
    turbo = Turbo(app)
    turbo.user_id(lambda: 5)
    everybody, user = metas(page_of(app))
    assert everybody["content"] == "turbo:all"
    position = str(user["data-position"])
    assert POSITION.fullmatch(position)
    assert StreamSigner(app).permitted(str(user["content"]))[:2] == ("turbo:user:5", position)


def test_without_a_key_the_connection_asks_who_it_is() -> None:
    app = app_with(SECRET_KEY=None)
    turbo = Turbo(app)
    turbo.user_id(lambda: 5)
    assert metas(page_of(app))[1] == {
        "name": "turbo-stream-from",
        "content": "turbo:user",
        "data-position": "",
        "data-url": "/turbo-stream",
    }


def test_nobody_has_no_stream_of_a_user() -> None:
    app = app_with()
    turbo = Turbo(app)
    turbo.user_id(lambda: None)
    assert len(metas(page_of(app))) == 1


def unauthorized() -> Any:
    abort(401)


def test_a_callback_that_raises_leaves_the_page_alive(caplog: pytest.LogCaptureFixture) -> None:
    app = app_with()
    turbo = Turbo(app)
    for callback, said, traceback in [
        (lambda: 1 // 0, "user id callback raised", True),
        (unauthorized, "answers a page with 401", False),
    ]:
        turbo.user_id(callback)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert len(metas(page_of(app))) == 1
        [record] = caplog.records
        assert said in record.message
        assert bool(record.exc_info) is traceback


def test_a_default_id_of_a_subclass_counts() -> None:
    class Mine(Turbo):
        def default_user_id(self) -> Any:
            return 7

    app = app_with()
    Mine(app)
    assert len(metas(page_of(app))) == 2


# -- streams -------------------------------------------------------------------------------------


def test_a_stream_is_an_element_with_a_signed_name() -> None:
    app = app_with()
    Turbo(app)
    [(tag, attributes)] = page_of(app, "{{ turbo.stream_from('room', 5) }}").found
    assert tag == "turbo-stream-from"
    assert "hidden" in attributes
    position = str(attributes["position"])
    assert POSITION.fullmatch(position)
    assert StreamSigner(app).permitted(str(attributes["name"]))[:2] == (
        "turbo:stream:room:5",
        position,
    )


def test_its_position_can_be_given() -> None:
    app = app_with()
    Turbo(app)
    template = "{{ turbo.stream_from('room', position='0123456789abcdef-7') }}"
    [(_, attributes)] = page_of(app, template).found
    assert attributes["position"] == "0123456789abcdef-7"


def test_without_a_key_a_stream_names_the_setting() -> None:
    app = app_with(SECRET_KEY=None)
    turbo = Turbo(app)
    with app.test_request_context("/"), pytest.raises(RuntimeError, match="SECRET_KEY"):
        turbo.stream_from("room")


# -- files ---------------------------------------------------------------------------------------


def get_module(app: Flask, change: str = "", **headers: str) -> TestResponse:
    src = str(module_of(page_of(app))["src"])
    if change:
        src = re.sub(r"-[0-9a-f]{16}", change, src)
    return app.test_client().get(src, headers=headers, buffered=True)


def test_the_module_is_kept_for_ever() -> None:
    app = app_with()
    Turbo(app)
    response = get_module(app)
    assert response.status_code == 200
    assert response.content_type == "text/javascript; charset=utf-8"
    assert response.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert b"turbo-stream-from" in response.data
    etag = response.headers["ETag"]
    again = get_module(app, **{"If-None-Match": etag})
    assert again.status_code == 304


def test_a_page_of_another_version_gets_the_present_module_for_once() -> None:
    app = app_with()
    Turbo(app)
    with get_module(app, "-0123456789abcdef") as response:
        assert response.status_code == 200
        assert response.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    "name",
    [
        "turbo-streams.js",
        "extension-0123456789abcdef.py",
        "turbo-streams-0123456789abcdeF.js",
        "..%2f__init__-0123456789abcdef.py",
        "turbo-streams-0123456789abcdef.js.map",
    ],
)
def test_nothing_else_is_served(name: str) -> None:
    app = app_with()
    Turbo(app)
    assert app.test_client().get(f"/_flask_sockets2/{name}").status_code == 404
