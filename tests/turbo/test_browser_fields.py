"""What is typed stays where it was typed, and keeps no page from being refreshed, in Chromium."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from flask_sockets2.turbo import npm
from tests.clients import http
from tests.processes import Server, servers_in
from tests.turbo.browser import Window, turbo_js

if TYPE_CHECKING:
    from playwright.sync_api import Page

APP = '''
import os

from flask import Flask, Response, redirect, render_template_string, request, send_file
from flask_sockets2 import Turbo

app = Flask(__name__)
app.secret_key = "for the tests"
app.config["TURBO_JS_URL"] = "/turbo.js"
turbo = Turbo(app)
state = {}
PAGE = """<!doctype html><html><head><meta charset=utf-8><title>page</title>
{{ turbo.refreshes_with(method=state.method, scroll="preserve") }}{{ turbo() }}</head>
<body><p id=state>{{ state.number }}</p>BODY</body></html>"""


@app.post("/state")
def set_state():
    state.clear()
    state.update(request.get_json())
    return ""


@app.get("/")
def page():
    html = render_template_string(PAGE.replace("BODY", state["body"]), state=state)
    return Response(html, mimetype=state.get("type", "text/html"))


@app.route("/answer", methods=["GET", "POST"])
def answer():
    kind = request.args.get("kind")
    if kind == "json":
        return {"error": "too many"}, 429
    if kind == "empty":
        return "", 429
    if kind == "file":
        return Response("a,b", mimetype="text/csv", headers={"Content-Disposition": "attachment"})
    return redirect("/", 303)


@app.post("/push")
def push():
    turbo.push(request.get_data(as_text=True))
    return ""


@app.get("/turbo.js")
def turbo_js():
    return send_file(os.environ["TURBO_JS"], "text/javascript", max_age=3600)


@app.get("/favicon.ico")
def favicon():
    return "", 204
'''


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    try:
        environ = {"TURBO_JS": str(turbo_js())}
    except npm.Unobtainable as exc:
        pytest.skip(f"no turbo.js: {exc}")
    with servers_in(tmp_path_factory.mktemp("server")) as servers:
        yield servers.gunicorn(APP, args=["--graceful-timeout", "1"], environ=environ)


class Site:
    """One page, whose content is changed, and which is told to refresh itself."""

    def __init__(self, server: Server, page: Page) -> None:
        self.window, self.page = Window(page, server), page
        self._server, self._state = server, {"number": 0, "method": "morph", "body": ""}

    def change(self, **state: Any) -> None:
        self._state.update(state)
        self._post("/state", json.dumps(self._state), "application/json")

    def open(self, **state: Any) -> None:
        self.change(**state)
        self.window.go("/")
        self.window.wait_for_state("connected")

    def push(self, markup: str) -> None:
        self._post("/push", markup, "text/html")

    def refresh(self, **state: Any) -> None:
        """Change the page, and wait until the browser shows it."""
        number = self._state["number"] + 1
        self.change(number=number, **state)
        self.push('<turbo-stream action="refresh"></turbo-stream>')
        # Sooner than in a minute, in which a page gives up what it waits for.
        self.page.wait_for_selector(f"#state:text-is('{number}')", timeout=50_000)
        self.window.wait_for_rest()

    def _post(self, path: str, data: str, kind: str) -> None:
        url = self._server.url(path)
        status, text, _ = http(url, data=data.encode(), headers={"Content-Type": kind})
        assert status == 200, text


@pytest.fixture
def site(server: Server, new_page: Callable[..., Page]) -> Site:
    return Site(server, new_page())


@pytest.mark.parametrize("method", ["replace", "morph"])
@pytest.mark.parametrize(
    "row",
    [
        '<tr><td><form action="/rows/{}"><input id=text name=text></form></td></tr>',
        '<tr><td><form id="f{0}"></form><input name=text form="f{0}"></td></tr>',
    ],
    ids=["the same id in each row", "forms beside their fields"],
)
def test_text_stays_in_its_row_when_rows_come(site: Site, row: str, method: str) -> None:
    def table(*numbers: int) -> str:
        return f"<table><tbody>{''.join(row.format(n) for n in numbers)}</tbody></table>"

    def values() -> list[str]:
        found: list[str] = site.page.locator("[name=text]").evaluate_all(
            "all => all.map((each) => each.value)"
        )
        return found

    site.open(method=method, body=table(5))
    site.page.fill("[name=text]", "five")
    site.refresh(body=table(6, 5, 4))
    assert values() == ["", "five", ""]
    site.page.locator("[name=text]").nth(2).fill("four")
    site.refresh(body=table(6, 5, 4))
    assert values() == ["", "five", "four"]
    assert site.page.locator("[data-turbo-permanent], [id^=turbo-stream-kept]").count() == 0
    expected = 3 if "id=text" in row else 0
    assert site.page.locator("[id=text]").count() == expected


@pytest.mark.slow
def test_a_form_of_very_many_rows_is_refreshed(site: Site) -> None:
    row = '<p><input type=hidden name=row value="{0}"><input name=text><input name=more></p>'
    body = f"<form>{''.join(row.format(n) for n in range(1000))}</form>"
    site.open(method="morph", body=body)
    site.page.locator("[name=text]").nth(500).fill("typed")
    site.refresh()
    assert site.page.locator("[name=text]").nth(500).input_value() == "typed"


def test_a_dialog_that_its_form_has_closed_lets_the_page_go_on(site: Site) -> None:
    dialog = "<dialog id=d><form action=/answer method=post><button>Save</button></form></dialog>"
    site.open(method="morph", body=f"{dialog}<button id=b onclick='this.id=1'>Go on</button>")
    site.page.evaluate("document.querySelector('#d').showModal()")
    site.change(number=100)
    site.page.click("#d button")
    site.page.wait_for_selector("#state:text-is('100')")
    site.refresh()
    site.page.click("#b")
    assert site.page.locator("[id='1']").count() == 1


def test_a_field_that_goes_while_an_input_method_composes_holds_up_nothing(site: Site) -> None:
    form = "<form id=f><input id=t></form>"
    site.open(body=form)
    site.page.focus("#t")
    session = site.page.context.new_cdp_session(site.page)
    composed = {"text": "にほ", "selectionStart": 2, "selectionEnd": 2}
    session.send("Input.imeSetComposition", composed)
    template = f"<template>{form}</template>"
    site.push(f'<turbo-stream action="replace" target="f">{template}</turbo-stream>')
    site.page.wait_for_function("document.querySelector('#t').value === ''")
    site.refresh()


def test_a_download_holds_up_nothing(site: Site) -> None:
    site.open(body="<a href='/answer?kind=file'>file</a>")
    with site.page.expect_download():
        site.page.click("a")
    site.refresh()


@pytest.mark.parametrize("kind", ["json", "empty"])
def test_an_answer_that_turbo_does_not_show_holds_up_nothing(site: Site, kind: str) -> None:
    site.open(body=f"<form action='/answer?kind={kind}' method=post><button>Send</button></form>")
    with site.page.expect_response("**/answer*"):
        site.page.click("button")
    site.refresh()


def test_the_words_of_a_search_stay(site: Site) -> None:
    form = "<form action=/ data-turbo-frame=found><input name=q></form>"
    site.open(body=f"{form}<turbo-frame id=found>nothing</turbo-frame>")
    site.change(body=f"{form}<turbo-frame id=found>something</turbo-frame>")
    site.page.fill("[name=q]", "foo")
    site.page.press("[name=q]", "Enter")
    site.page.wait_for_selector("#found:text-is('something')")
    site.refresh()
    assert site.page.input_value("[name=q]") == "foo"


@pytest.mark.slow
def test_a_refresh_that_a_guard_has_cancelled_is_tried_again(site: Site) -> None:
    site.open()
    site.page.evaluate(
        """document.addEventListener("turbo:before-visit", (event) => {
            window.asked = (window.asked ?? 0) + 1;
            event.preventDefault();
        }, { once: true })"""
    )
    site.refresh()
    assert site.page.evaluate("window.asked") == 1


@pytest.mark.slow
def test_a_listener_that_never_resumes_a_refresh_ends_no_other(site: Site) -> None:
    """The refresh is given up after a minute."""
    site.open()
    site.page.evaluate(
        """document.addEventListener("turbo:before-fetch-request", (event) => {
            event.preventDefault();
            window.stopped = true;
        }, { once: true })"""
    )
    site.change(number=100)
    site.push('<turbo-stream action="refresh"></turbo-stream>')
    site.page.wait_for_selector("#state:text-is('100')", timeout=200_000)
    assert site.page.evaluate("window.stopped")


def test_a_page_of_xhtml_is_a_page(site: Site) -> None:
    site.open(body="<br/>")
    site.refresh(type="application/xhtml+xml")
