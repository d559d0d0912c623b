"""The traps that the guides to Turbo name are so in Chromium, with turbo.js itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from flask_sockets2.turbo import npm
from tests.clients import http
from tests.processes import Server, wait_until
from tests.turbo.browser import turbo_js

if TYPE_CHECKING:
    from playwright.sync_api import Page

SOURCE = """
import os
import threading

from flask import Flask, get_flashed_messages, flash, render_template_string, request, send_file
from flask import session, url_for
from markupsafe import Markup
from flask_sockets2 import Turbo
from flask_sockets2.application.state import state_of

app = Flask(__name__)
app.secret_key = "for the tests"
app.config["TURBO_JS_URL"] = "/turbo.js"
turbo = Turbo(app)
seen = []
go_on = threading.Event()

PAGE = '''<!doctype html>
<html lang="en">
<head><title>Page</title>{{ turbo() }}</head>
<body>
<h1>{{ request.path }}</h1>
<table><tbody>
<tr id="good"><td>{{ turbo.stream_from("good") }}</td></tr>
<tr id="bad">{{ turbo.stream_from("bad") }}<td>x</td></tr>
</tbody></table>
<a id="fetched" href="/other">other</a>
<a id="not-fetched" href="/another" data-turbo-prefetch="false">another</a>
<form action="/slow" method="post"><button id="answer" name="how" value="answer">a</button>
<button id="broadcast" name="how" value="broadcast">b</button></form>
<form action="/redirect" method="post"><button id="turbo">t</button></form>
<form action="/redirect" method="post" data-turbo="false"><button id="plain">p</button></form>
<p id="value">0</p>
<turbo-frame id="last"></turbo-frame>
<p id="end">end</p>
</body>
</html>'''


@app.before_request
def note():
    if request.path in ("/other", "/another"):
        seen.append([request.path, get_flashed_messages()])


@app.get("/")
@app.get("/other")
@app.get("/another")
@app.get("/redirected")
def page():
    turbo.position()
    if request.path == "/":
        flash("hello")
        session["user"] = request.args.get("user", "a guest")
    return render_template_string(PAGE)


@app.get("/seen")
def tell():
    channels = state_of().channels.here()
    return {"seen": seen, "streams": sorted(name for name in channels if ":stream:" in name)}


@app.post("/slow")
def slow():
    older = turbo.update("older", "value")
    if request.form["how"] == "broadcast":
        turbo.push(older)
    seen.append("asked")
    go_on.wait()
    return turbo.stream(older if request.form["how"] == "answer" else [])


@app.post("/newer")
def newer():
    turbo.push(turbo.update("newer", "value"))
    return ""


@app.post("/go-on")
def go():
    go_on.set()
    return ""


@app.post("/redirect")
def redirect():
    return turbo.redirect("/redirected#end")


@app.post("/last")
def show_last():
    frame = Markup('<turbo-frame id="last" src="{}"></turbo-frame>')
    turbo.broadcast_replace_to("good", content=frame.format(url_for("last")), target="last")
    return ""


@app.get("/last")
def last():
    return Markup('<turbo-frame id="last">for {}</turbo-frame>').format(session["user"])


@app.get("/turbo.js")
def turbo_js():
    return send_file(os.environ["TURBO_JS"], "text/javascript")


@app.get("/favicon.ico")
def favicon():
    return "", 204
"""


@pytest.fixture
def server(gunicorn: Callable[..., Server]) -> Server:
    try:
        return gunicorn(SOURCE, environ={"TURBO_JS": str(turbo_js())})
    except npm.Unobtainable as exc:
        pytest.skip(f"no turbo.js: {exc}")


def load(page: Page, server: Server, query: str = "") -> None:
    page.goto(server.url(f"/{query}"))
    page.wait_for_selector("html[data-turbo-stream-state=connected]", state="attached")


def test_a_stream_of_a_row_has_to_be_in_a_cell(server: Server, page: Page) -> None:
    load(page, server)
    inside = "id => document.querySelector(`#${id} turbo-stream-from`) !== null"
    assert [page.evaluate(inside, row) for row in ("good", "bad")] == [True, False]
    page.evaluate("for (const id of ['good', 'bad']) document.getElementById(id).remove()")

    def streams() -> list[str]:
        found = page.request.get(server.url("/seen")).json()["streams"]
        return [name.rpartition(":")[2] for name in found]

    wait_until(lambda: "good" not in streams(), "the stream of the row to be left")
    assert streams() == ["bad"]


def test_a_frame_that_is_pushed_is_fetched_by_each_reader_for_itself(
    server: Server, new_page: Callable[..., Page]
) -> None:
    pages = {user: new_page() for user in ("ada", "bob")}
    for user, page in pages.items():
        load(page, server, f"?user={user}")
    assert http(server.url("/last"), data=b"")[0] == 200
    for user, page in pages.items():
        page.wait_for_selector(f"#last:text-is('for {user}')")


def test_a_link_under_the_pointer_is_fetched_and_takes_the_flashed_messages(
    server: Server, page: Page
) -> None:
    load(page, server)
    page.hover("#not-fetched")
    with page.expect_response("**/other") as answer:
        page.hover("#fetched")
    assert answer.value.request.headers["x-sec-purpose"] == "prefetch"
    assert page.request.get(server.url("/seen")).json()["seen"] == [["/other", ["hello"]]]


@pytest.mark.parametrize(("how", "shown"), [("answer", "older"), ("broadcast", "newer")])
def test_a_slow_answer_takes_back_what_was_pushed_meanwhile(
    how: str, shown: str, server: Server, page: Page
) -> None:
    load(page, server)
    with page.expect_response("**/slow"):
        page.click(f"#{how}")
        wait_until(lambda: "asked" in http(server.url("/seen"))[1], "the request")
        http(server.url("/newer"), data=b"")
        page.wait_for_selector("#value:text-is('newer')")
        http(server.url("/go-on"), data=b"")
    page.wait_for_selector("form:not([aria-busy]) #answer")
    page.wait_for_selector(f"#value:text-is('{shown}')")


@pytest.mark.parametrize(("button", "fragment"), [("turbo", ""), ("plain", "#end")])
def test_a_redirect_of_turbo_has_no_fragment(
    button: str, fragment: str, server: Server, page: Page
) -> None:
    load(page, server)
    page.click(f"#{button}")
    page.wait_for_selector("h1:text-is('/redirected')")
    assert page.evaluate("location.hash") == fragment
