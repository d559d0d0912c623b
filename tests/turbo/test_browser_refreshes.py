"""Refreshes in Chromium: a page becomes as new as it was asked to be, and loses nothing by that."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from flask_sockets2.turbo import npm
from tests.clients import http
from tests.processes import Server, servers_in, wait_until
from tests.turbo.browser import Window, turbo_js

if TYPE_CHECKING:
    from playwright.sync_api import Page

APP = '''
import os
from collections import Counter

from flask import Flask, Response, make_response, redirect, render_template_string, request
from flask import send_file
from flask_sockets2 import Turbo
from markupsafe import Markup

app = Flask(__name__)
app.secret_key = "for the tests"
app.config["TURBO_JS_URL"] = "/turbo.js"
turbo = Turbo(app)

PAGE = """<!doctype html>
<html>
<head>
<title>page</title>
{{ turbo.refreshes_with(method=request.args.refresh or "replace") }}
{{ turbo() }}
</head>
<body>
<h1>{{ name }}</h1>
{{ fragment }}
<p id="state">{{ state }}</p>
<a href="/page/other">other</a>
<form id="form" method="post" action="/form">
<input name="text" id="text" value="{{ text }}">
<button name="answer" value="redirect">Save</button>
<button name="answer" value="invalid">Try</button>
<button name="answer" value="stream">Stream</button>
<button name="answer" value="refresh">Refresh</button>
{% if error %}<p id="error">{{ error }}</p>{% endif %}
</form>
<turbo-frame id="frame"><a href="/frame">frame</a>
<form method="post" action="/form"><button name="answer" value="frame">In frame</button></form>
</turbo-frame>
{% if request.args.fields %}
<input name="first" autofocus>
{% for number in [5, 6] %}
<form action="/row"><input type="hidden" name="id" value="{{ number }}"><input name="row"></form>
{% endfor %}
<form action="/all">
<input type="hidden" name="csrf_token" value="{{ range(1000000) | random }}">
<input name="line" value="as rendered {{ state }}"><textarea name="area">old</textarea>
<input type="checkbox" name="box" value="1"><input type="checkbox" name="box" value="2" checked>
<input type="radio" name="one" value="a" checked><input type="radio" name="one" value="b">
<select name="choice"><option>x</option><option>y</option></select>
<input name="fresh" value="{{ state }}">
<span data-turbo-stream-reset><input name="taken" value="{{ state }}"></span>
<input type="file" name="file">
</form>
<div contenteditable id="editor">old</div>
{% endif %}
<ul id="log">{% for each in items %}<li>{{ each }}</li>{% endfor %}</ul>
</body>
</html>
"""
FRAGMENT = """{{ turbo.stream_from("room") }}"""

asked = Counter()
cached = {}
failing = []  # what the next requests for pages are answered with
state = {"state": 0, "items": []}


def answer(name, **context):
    if "fragment" not in cached or name != "fragment":
        cached["fragment"] = render_template_string(FRAGMENT)
    fragment = Markup(cached["fragment"]) if request.args.get("signed", "1") == "1" else ""
    return render_template_string(PAGE, name=name, fragment=fragment, **state, **context)


@app.get("/page/<name>")
def page(name):
    asked[name] += 1
    if failing:
        status = failing.pop(0)
        if status == 302:
            return redirect("/page/elsewhere")
        if status == 303:
            return redirect(f"{request.host_url}page/elsewhere".replace("127.0.0.1", "localhost"))
        headers = {"Retry-After": "40"} if status in (429, 503) else {}
        return "<h1>error</h1>", status, headers
    if name == "view":
        if request.url not in cached:
            cached[request.url] = answer(name)
        return cached[request.url]
    response = make_response(answer(name))
    if name == "max-age":
        response.headers["Cache-Control"] = "private, max-age=600"
    if name == "etag":
        response.headers["Cache-Control"] = "private, no-cache"
        response.set_etag("unchanged")
        response.make_conditional(request)
    if name == "full":
        head = '<head><meta name="turbo-visit-control" content="reload">'
        if request.url not in cached:
            cached[request.url] = response.get_data(as_text=True).replace("<head>", head)
        return cached[request.url]
    return response


@app.get("/frame")
def frame():
    return '<turbo-frame id="frame"><b>loaded</b><a href="/frame">again</a></turbo-frame>'


@app.post("/form")
def form():
    how, text = request.form["answer"], request.form.get("text", "")
    asked[f"form {how}"] += 1
    if how == "invalid":
        return answer("invalid", error="Not so.", text=text), 422
    if how == "frame":
        return frame().replace("<b>", "<b id=error>"), 422
    if how == "stream":
        return turbo.stream(turbo.append("<li>mine</li>", "log"))
    if how == "refresh":
        return turbo.stream(turbo.refresh())
    turbo.broadcast_refresh_to("room")
    return turbo.redirect(request.referrer)


@app.post("/push")
def push():
    markup = request.get_data(as_text=True)
    if request.args.get("room"):
        turbo.broadcast_to("room", stream=markup)
    else:
        turbo.push(markup)
    return ""


@app.post("/state")
def set_state():
    state["state"] = request.get_data(as_text=True)
    return ""


@app.post("/items")
def set_items():
    state["items"] = request.get_json()
    return ""


@app.post("/failing")
def fail():
    failing[:] = request.get_json()
    return ""


@app.post("/forget")
def forget():
    cached.clear()
    return ""


@app.get("/asked")
def show_asked():
    return asked


@app.get("/turbo.js")
def turbo_js():
    return send_file(os.environ["TURBO_JS"], "text/javascript", max_age=3600)


@app.get("/favicon.ico")
def favicon():
    return "", 204
'''

REFRESH = '<turbo-stream action="refresh"></turbo-stream>'
ITEM = '<turbo-stream action="append" target="log"><template><li>{}</li></template></turbo-stream>'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    try:
        environ = {"TURBO_JS": str(turbo_js()), "FLASK_DEBUG": "1"}
    except npm.Unobtainable as exc:
        pytest.skip(f"no turbo.js: {exc}")
    with servers_in(tmp_path_factory.mktemp("server")) as servers:
        yield servers.gunicorn(APP, args=["--graceful-timeout", "1"], environ=environ)


@pytest.fixture
def window(new_page: Callable[..., Page], server: Server) -> Window:
    tell(server, "/forget")
    tell(server, "/failing", "[]")
    tell(server, "/items", "[]")
    window = Window(new_page(), server)
    window.page.clock.install()  # by which minutes pass in no time
    return window


def tell(server: Server, path: str, data: str = "") -> None:
    headers = {"Content-Type": "application/json"} if data.startswith("[") else {}
    status, body, _ = http(server.url(path), data=data.encode(), headers=headers)
    assert status == 200, body


def change(server: Server, state: str, markup: str = REFRESH, room: bool = False) -> None:
    """Change what pages show, and tell them."""
    tell(server, "/state", state)
    tell(server, f"/push?room={room or ''}", markup)


def asked(server: Server, name: str) -> int:
    found: dict[str, int] = json.loads(http(server.url("/asked"))[1])
    return found.get(name, 0)


def let_pass(window: Window, seconds: int, step: int = 5) -> None:
    """Let time pass for a page, and leave it enough for its requests in between."""
    for _ in range(seconds // step):
        window.page.clock.fast_forward(1000 * step)
        window.page.wait_for_timeout(100)
        window.wait_for_rest()


def shows(window: Window, state: str) -> None:
    window.page.wait_for_selector(f"#state:text-is('{state}')")


# -- caches --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "method", "signed"),
    [
        ("view", "morph", 1),
        pytest.param("view", "morph", 0, marks=pytest.mark.slow),
        pytest.param("view", "replace", 1, marks=pytest.mark.slow),
        pytest.param("view", "replace", 0, marks=pytest.mark.slow),
        ("fragment", "replace", 1),
        pytest.param("fragment", "morph", 1, marks=pytest.mark.slow),
    ],
)
def test_a_page_that_a_cache_of_the_server_has_is_asked_for_with_a_doubling_pause(
    server: Server, window: Window, kind: str, method: str, signed: int
) -> None:
    """A copy is older than the refresh, which comes again with each."""
    window.go(f"/page/{kind}?refresh={method}&signed={signed}")
    for number in range(3):
        tell(server, f"/push?room={signed or ''}", ITEM.format(number))
    before = asked(server, kind)
    change(server, f"{kind} {method} {signed}", room=bool(signed))
    tell(server, f"/push?room={signed or ''}", ITEM.format("after"))
    let_pass(window, 70)
    assert 3 <= asked(server, kind) - before <= 5  # after 0, 5, 15 and 35 seconds; then after 75
    if kind == "view":
        window.wait_for_log(0, 1, 2, "after")  # the copy has none of them
    tell(server, "/forget")
    let_pass(window, 320)
    shows(window, f"{kind} {method} {signed}")
    last = asked(server, kind)
    assert last - before <= 7
    let_pass(window, 320)
    assert asked(server, kind) == last
    assert window.loaded_once


@pytest.mark.parametrize("kind", ["max-age", "etag"])
def test_a_refresh_goes_past_the_cache_of_the_browser(
    server: Server, window: Window, kind: str
) -> None:
    window.go(f"/page/{kind}")
    before = asked(server, kind)
    change(server, kind)
    shows(window, kind)
    let_pass(window, 60)
    assert asked(server, kind) - before == 1
    assert window.loaded_once


def test_a_page_that_is_loaded_in_full_from_a_cache_is_not_loaded_again_and_again(
    server: Server, window: Window
) -> None:
    window.go("/page/full")
    before = asked(server, "full")
    change(server, "full")
    for _ in range(20):
        window.page.wait_for_timeout(100)
        window.page.clock.fast_forward(500)
    assert asked(server, "full") - before <= 4


# -- failures ------------------------------------------------------------------------------------


@pytest.mark.quick
@pytest.mark.parametrize(
    ("status", "method"),
    [
        (503, "replace"),
        (0, "morph"),
        *(
            pytest.param(status, method, marks=pytest.mark.slow)
            for status, method in [(0, "replace"), (503, "morph")]
        ),
        *(
            pytest.param(status, method, marks=pytest.mark.slow)
            for status in (500, 404, 429)
            for method in ("replace", "morph")
        ),
    ],
)
def test_a_refresh_that_fails_keeps_the_page_and_is_tried_again(
    server: Server, window: Window, status: int, method: str
) -> None:
    """0 stands for a connection that is cut."""
    window.go(f"/page/plain?refresh={method}")
    before = asked(server, "plain")
    if status:
        tell(server, "/failing", json.dumps([status] * 2))
    else:
        cut = [1, 2]

        def route(route: Any) -> None:
            if cut:
                cut.pop()
                tell(server, "/failing", "[]")
                route.abort()
            else:
                route.continue_()

        window.page.route("**/page/plain*", route)
    change(server, f"{status} {method}")
    waits = [8, 20] if status in (404, 500, 0) else [50, 50]
    for number, wait in enumerate(waits):
        if status:
            wait_until(lambda n=number: asked(server, "plain") - before == n + 1, "an attempt")
        else:
            wait_until(
                lambda n=number: window.page.wait_for_timeout(20) or len(cut) == 1 - n, "an attempt"
            )
        window.page.wait_for_timeout(200)
        assert window.page.inner_text("h1") == "plain"
        assert window.state == "connected"
        window.page.clock.fast_forward(1000 * wait)
    shows(window, f"{status} {method}")
    tell(server, "/push", ITEM.format("after"))
    window.wait_for_log("after")
    assert window.loaded_once


def test_a_server_says_how_long_a_refresh_has_to_wait(server: Server, window: Window) -> None:
    window.go("/page/plain")
    before = asked(server, "plain")
    tell(server, "/failing", "[429]")
    change(server, "waited")
    wait_until(lambda: asked(server, "plain") - before == 1, "the refresh")
    let_pass(window, 30)
    assert asked(server, "plain") - before == 1  # Retry-After is 40
    let_pass(window, 15)
    shows(window, "waited")


@pytest.mark.slow
def test_a_refresh_that_fails_ten_times_waits_for_another_one(
    server: Server, window: Window
) -> None:
    window.go("/page/plain")
    before = asked(server, "plain")
    tell(server, "/failing", json.dumps([500] * 100))
    change(server, "in vain")
    let_pass(window, 60 * 40, 60)
    assert asked(server, "plain") - before == 10
    tell(server, "/failing", "[]")
    change(server, "another")
    window.page.clock.fast_forward(5000)
    shows(window, "another")


def test_a_refresh_that_is_sent_elsewhere_goes_there_unless_the_page_objects(
    server: Server, window: Window
) -> None:
    window.go("/page/plain")
    window.page.evaluate(
        "addEventListener('turbo-stream:before-reload', (e) => { asked = 1; e.preventDefault() }, "
        "{ once: true })"
    )
    tell(server, "/failing", "[302]")
    change(server, "1")
    window.wait_for("window.asked === 1")
    assert window.page.inner_text("h1") == "plain"
    tell(server, "/failing", "[302]")
    change(server, "2")
    window.page.clock.fast_forward(8000)
    window.page.wait_for_selector("h1:text-is('elsewhere')")
    window.wait_for("location.pathname === '/page/elsewhere'")
    assert window.loaded_once


def test_a_refresh_that_a_login_at_another_origin_answers_loads_the_page(
    server: Server, window: Window
) -> None:
    """A script is told of no such redirect: the request fails as if the network did."""
    window.go("/page/plain")
    tell(server, "/failing", "[303, 303, 303]")
    change(server, "away")
    window.page.clock.fast_forward(8000)
    window.page.wait_for_timeout(500)
    window.page.clock.fast_forward(8000)
    window.page.wait_for_url("http://localhost:*/page/elsewhere")


@pytest.mark.parametrize("status", [401, 403])
def test_a_refresh_that_the_user_may_not_have_shows_that(
    server: Server, window: Window, status: int
) -> None:
    """What the page shows may not be for the user any more."""
    window.go("/page/plain")
    tell(server, "/failing", f"[{status}]")
    change(server, "secret")
    window.page.wait_for_selector("h1:text-is('error')")


# -- forms and frames ----------------------------------------------------------------------------


def held(window: Window, pattern: str, method: str = "POST") -> list[Any]:
    """Hold requests of a page: each is let go by ``continue_()``."""
    routes: list[Any] = []

    def hold(route: Any) -> None:
        routes.append(route) if route.request.method == method else route.continue_()

    window.page.route(pattern, hold)
    return routes


@pytest.mark.parametrize("method", ["replace", "morph"])
def test_a_refresh_of_others_waits_for_a_form_under_way_and_leaves_its_errors(
    server: Server, window: Window, method: str
) -> None:
    window.go(f"/page/plain?refresh={method}")
    posts = held(window, "**/form")
    before = asked(server, "plain")
    window.page.fill("#text", "half a sentence")
    window.page.click("button:text-is('Try')")
    wait_until(lambda: window.page.wait_for_timeout(20) or posts, "the form")
    change(server, "meanwhile")
    let_pass(window, 10)
    posts.pop().continue_()
    window.page.wait_for_selector("#error")
    change(server, "afterwards")
    let_pass(window, 60)
    assert window.page.inner_text("#error") == "Not so."
    assert window.page.input_value("#text") == "half a sentence"
    assert asked(server, "plain") == before
    window.page.click("button:text-is('Save')")
    wait_until(lambda: window.page.wait_for_timeout(20) or posts, "the form")
    posts.pop().continue_()
    window.page.wait_for_selector("#error", state="detached")
    shows(window, "afterwards")
    assert window.loaded_once


@pytest.mark.quick
def test_a_refresh_waits_for_a_form_that_is_answered_with_streams(
    server: Server, window: Window
) -> None:
    window.go("/page/plain")
    posts = held(window, "**/form")
    window.page.click("button:text-is('Stream')")
    wait_until(lambda: window.page.wait_for_timeout(20) or posts, "the form")
    change(server, "streams")
    let_pass(window, 10)
    assert window.page.inner_text("#state") != "streams"
    posts.pop().continue_()
    shows(window, "streams")


def test_what_was_fetched_before_a_form_was_sent_is_not_shown_after_it(
    server: Server, window: Window
) -> None:
    window.go("/page/plain")
    pages = held(window, "**/page/plain", "GET")
    change(server, "before")
    wait_until(lambda: window.page.wait_for_timeout(20) or pages, "the refresh")
    old = pages.pop()
    response = old.fetch()
    with window.page.expect_response("**/form"):
        window.page.click("button:text-is('Stream')")
    window.wait_for_log("mine")
    tell(server, "/state", "after")
    old.fulfill(response=response)
    window.page.clock.fast_forward(1000)
    wait_until(lambda: window.page.wait_for_timeout(20) or pages, "another one")
    assert window.page.inner_text("#state") not in ("before", "after")
    pages.pop().continue_()
    shows(window, "after")


def test_a_refresh_waits_for_a_frame_that_loads(server: Server, window: Window) -> None:
    window.go("/page/plain")
    frames = held(window, "**/frame", "GET")
    window.page.click("#frame a")
    wait_until(lambda: window.page.wait_for_timeout(20) or frames, "the frame")
    change(server, "frames")
    let_pass(window, 10)
    assert window.page.inner_text("#state") != "frames"
    frames.pop().continue_()
    shows(window, "frames")


def test_a_frame_that_does_not_end_is_not_waited_for_for_ever(
    server: Server, window: Window
) -> None:
    window.go("/page/plain")
    frames = held(window, "**/frame", "GET")
    window.page.click("#frame a")
    wait_until(lambda: window.page.wait_for_timeout(20) or frames, "the frame")
    change(server, "without the frame")
    let_pass(window, 70)
    shows(window, "without the frame")


def test_a_refresh_leaves_the_errors_of_a_form_in_a_frame(server: Server, window: Window) -> None:
    window.go("/page/plain")
    before = asked(server, "plain")
    window.page.click("button:text-is('In frame')")
    window.page.wait_for_selector("#frame #error")
    change(server, "the frame has changed")
    let_pass(window, 30)
    assert window.page.is_visible("#frame #error")
    assert asked(server, "plain") == before
    window.page.click("#frame a")
    window.page.clock.fast_forward(8000)
    shows(window, "the frame has changed")


def test_the_refresh_of_another_stream_is_not_lost_beside_ones_own(
    server: Server, window: Window
) -> None:
    window.go("/page/plain")
    with window.page.expect_request("**/form") as sent:
        window.page.click("button:text-is('Stream')")
    window.wait_for_log("mine")
    own_id = sent.value.headers["x-turbo-request-id"]
    own = f'<turbo-stream action="refresh" request-id="{own_id}"></turbo-stream>'
    before = asked(server, "plain")
    change(server, "own", own, room=True)
    let_pass(window, 10)
    assert asked(server, "plain") == before
    change(server, "both", REFRESH + own, room=True)
    shows(window, "both")
    assert asked(server, "plain") == before + 1


def test_many_refreshes_at_once_are_one_request(server: Server, window: Window) -> None:
    window.go("/page/plain")
    before = asked(server, "plain")
    change(server, "many", REFRESH * 5, room=True)
    tell(server, "/push", REFRESH * 5)
    shows(window, "many")
    let_pass(window, 10)
    assert asked(server, "plain") - before <= 2


def test_the_answer_to_a_form_may_refresh_the_page(server: Server, window: Window) -> None:
    window.go("/page/plain")
    tell(server, "/state", "own wish")
    window.page.click("button:text-is('Refresh')")
    shows(window, "own wish")


def test_a_hidden_page_is_refreshed_when_it_is_visible(server: Server, window: Window) -> None:
    window.go("/page/plain")
    before = asked(server, "plain")
    window.hide()
    change(server, "seen")
    tell(server, "/push", ITEM.format("marker"))
    window.wait_for_log("marker")
    let_pass(window, 10)
    assert asked(server, "plain") == before
    window.hide(False)
    shows(window, "seen")


def test_a_page_that_was_left_before_its_refresh_is_refreshed_when_it_is_back(
    server: Server, window: Window
) -> None:
    window.go("/page/plain")
    tell(server, "/failing", "[500]")
    before = asked(server, "plain")
    change(server, "back")
    wait_until(lambda: asked(server, "plain") == before + 1, "the refresh")
    window.page.wait_for_timeout(200)
    window.page.click("text=other")
    window.page.wait_for_selector("h1:text-is('other')")
    window.wait_for_rest()
    window.page.go_back()
    window.page.wait_for_selector("h1:text-is('plain')")
    window.page.clock.fast_forward(8000)
    shows(window, "back")


# -- what was typed ------------------------------------------------------------------------------


@pytest.mark.quick
@pytest.mark.parametrize("method", ["replace", "morph"])
def test_a_refresh_keeps_what_was_typed_with_its_focus_and_selection(
    server: Server, window: Window, method: str
) -> None:
    window.go(f"/page/plain?fields=1&refresh={method}")
    page = window.page
    page.locator("[name=row] >> nth=1").fill("of the second row")
    page.fill("[name=line]", "half a line")
    page.check("[name=box] >> nth=0")
    page.uncheck("[name=box] >> nth=1")
    page.check("[name=one] >> nth=1")
    page.select_option("[name=choice]", "y")
    page.fill("[name=taken]", "not kept")
    page.set_input_files("[name=file]", {"name": "a.txt", "mimeType": "", "buffer": b"a"})
    page.fill("#editor", "typed")
    page.fill("[name=area]", "half a sentence")
    page.evaluate("document.querySelector('[name=area]').setSelectionRange(5, 6)")
    for state in (f"first {method}", f"second {method}"):
        change(server, state)
        shows(window, state)
        window.wait_for_rest()
    page.keyboard.type("the")
    assert page.input_value("[name=area]") == "half the sentence"
    assert page.locator("[name=row] >> nth=0").input_value() == ""
    assert page.locator("[name=row] >> nth=1").input_value() == "of the second row"
    assert page.input_value("[name=line]") == "half a line"
    assert page.is_checked("[name=box] >> nth=0")
    assert not page.is_checked("[name=box] >> nth=1")
    assert page.is_checked("[name=one] >> nth=1")
    assert page.input_value("[name=choice]") == "y"
    assert page.evaluate("document.querySelector('[name=file]').files[0].name") == "a.txt"
    assert page.inner_text("#editor") == "typed"
    assert page.input_value("[name=fresh]") == f"second {method}"
    assert page.input_value("[name=taken]") == f"second {method}"
    assert page.locator("[data-turbo-permanent]").count() == 0
    assert page.locator("[id^=turbo-stream-kept]").count() == 0
    assert window.loaded_once


def test_a_refresh_keeps_the_focus_of_a_field_in_which_nothing_is_typed_yet(
    server: Server, window: Window
) -> None:
    window.go("/page/plain?fields=1")
    window.page.focus("[name=line]")
    window.page.evaluate("document.querySelector('[name=line]').setSelectionRange(0, 2)")
    change(server, "focus")
    shows(window, "focus")
    window.wait_for_rest()
    window.page.keyboard.type("so")
    assert window.page.input_value("[name=line]") == "so rendered focus"


def test_a_gap_keeps_what_was_typed(server: Server, window: Window) -> None:
    """As after a restart with ``memory://``."""
    window.go("/page/plain")
    window.page.fill("#text", "half a sentence")
    tell(server, "/state", "after the gap")
    window.page.evaluate(
        "document.querySelector('turbo-stream-from').setAttribute('position', 'deadbeef-1')"
    )
    window.page.clock.fast_forward(1100)
    shows(window, "after the gap")
    assert window.page.input_value("#text") == "half a sentence"
    assert window.loaded_once


def test_a_field_whose_form_was_sent_and_taken_is_as_the_server_renders_it(
    server: Server, window: Window
) -> None:
    window.go("/page/plain")
    window.page.fill("#text", "sent")
    window.page.click("button:text-is('Stream')")
    window.wait_for_log("mine")
    change(server, "taken")
    shows(window, "taken")
    assert window.page.input_value("#text") == ""


def test_a_frame_with_a_form_that_the_page_does_not_have_stays(
    server: Server, window: Window
) -> None:
    window.go("/page/plain")
    window.page.evaluate("document.getElementById('frame').innerHTML = '<input name=edit>'")
    window.page.fill("[name=edit]", "half a sentence")
    change(server, "frame stays")
    shows(window, "frame stays")
    assert window.page.input_value("[name=edit]") == "half a sentence"


def test_a_page_without_a_place_for_what_is_typed_waits(server: Server, window: Window) -> None:
    """Such as a row that a script has added."""
    window.go("/page/plain")
    window.page.evaluate("document.getElementById('form').append(document.createElement('input'))")
    window.page.fill("#form > input:last-child", "half a sentence")
    before = asked(server, "plain")
    change(server, "no place")
    wait_until(lambda: asked(server, "plain") == before + 1, "the refresh")
    window.page.wait_for_timeout(300)
    assert window.page.input_value("#form > input:last-child") == "half a sentence"
    window.page.fill("#form > input:last-child", "")
    window.page.clock.fast_forward(8000)
    shows(window, "no place")


def test_a_stream_that_morphs_keeps_what_was_typed(server: Server, window: Window) -> None:
    window.go("/page/plain?fields=1")
    page = window.page
    page.fill("[name=area]", "half a sentence")
    page.evaluate("document.querySelector('[name=area]').parentElement.id = 'all'")
    form = (
        '<turbo-stream action="{}" target="all" method="morph"><template>{}'
        '<p>{}</p><input name="fresh" value="{}"><textarea name="area">new</textarea>{}'
        "</template></turbo-stream>"
    )
    around = '<form id="all" action="/all">', "</form>"
    tell(server, "/push", form.format("replace", around[0], 1, "first", around[1]))
    page.wait_for_selector("#all p:text-is('1')")
    assert page.input_value("[name=area]") == "half a sentence"
    tell(server, "/push", form.format("update", "", 2, "second", ""))
    page.wait_for_selector("#all p:text-is('2')")
    assert page.input_value("[name=area]") == "half a sentence"
    assert page.input_value("[name=fresh]") == "second"
    assert page.locator("[name=area]").count() == 1


def test_a_refresh_waits_for_a_dialog(server: Server, window: Window) -> None:
    window.go("/page/plain")
    window.page.evaluate(
        "document.body.append(document.createElement('dialog'));"
        "document.querySelector('dialog').showModal()"
    )
    change(server, "dialog")
    let_pass(window, 10)
    assert window.page.inner_text("#state") != "dialog"
    window.page.evaluate("document.querySelector('dialog').close()")
    shows(window, "dialog")


# -- animations ----------------------------------------------------------------------------------


def animate(window: Window) -> None:
    """Let the application wait before a stream that says "slow", until ``release()``."""
    window.page.evaluate(
        """() => addEventListener("turbo:before-stream-render", (event) => {
            const render = event.detail.render;
            event.detail.render = async (stream) => {
                if (stream.innerHTML.includes("slow")) await new Promise((r) => (release = r));
                await render(stream);
            };
        })"""
    )


def test_a_message_that_is_animated_while_another_page_comes_is_there_once(
    server: Server, window: Window
) -> None:
    window.go("/page/plain")
    animate(window)
    tell(server, "/push", ITEM.format("slow"))
    window.wait_for("typeof release !== 'undefined'")
    tell(server, "/items", '["slow"]')
    window.page.evaluate("Turbo.visit(location.href, { action: 'replace' })")
    window.wait_for_log("slow")
    window.wait_for_rest()
    window.page.evaluate("release()")
    tell(server, "/push", ITEM.format("after"))
    window.wait_for_log("slow", "after")


def test_a_message_that_is_animated_while_the_page_is_left_is_there_when_it_is_back(
    server: Server, window: Window
) -> None:
    window.go("/page/plain")
    animate(window)
    tell(server, "/push", ITEM.format("slow"))
    window.wait_for("typeof release !== 'undefined'")
    tell(server, "/push", ITEM.format("behind it"))
    window.page.click("text=other")
    window.page.wait_for_selector("h1:text-is('other')")
    window.wait_for_rest()
    window.page.evaluate("release()")
    window.page.evaluate("history.back()")
    window.page.wait_for_selector("h1:text-is('plain')")
    window.wait_for("document.querySelectorAll('#log li').length > 0 || release()")
    wait_until(lambda: window.page.evaluate("release()") or len(window.log) == 2, "both")
    window.wait_for_log("slow", "behind it")


@pytest.mark.quick
def test_messages_wait_for_one_that_is_animated_and_keep_their_order(
    server: Server, window: Window
) -> None:
    window.go("/page/plain")
    animate(window)
    tell(server, "/push", ITEM.format("slow"))
    window.wait_for("typeof release !== 'undefined'")
    tell(server, "/push", ITEM.format("second"))
    change(server, "a refresh", room=True)
    tell(server, "/items", '["slow", "second"]')
    window.page.wait_for_timeout(500)
    assert window.log == []
    window.page.evaluate("release()")
    shows(window, "a refresh")
    window.wait_for_log("slow", "second")


def test_an_animation_that_does_not_end_holds_nothing_up_for_ever(
    server: Server, window: Window
) -> None:
    window.go("/page/plain")
    animate(window)
    tell(server, "/push", ITEM.format("slow"))
    window.wait_for("typeof release !== 'undefined'")
    tell(server, "/push", ITEM.format("second"))
    window.page.wait_for_timeout(300)
    window.page.clock.fast_forward(11_000)
    window.wait_for_log("second")
    window.page.evaluate("release()")
    window.wait_for_log("second", "slow")
