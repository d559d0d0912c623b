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
    if kind == "errors":
        return "<turbo-frame id=f><p id=errors>not valid</p></turbo-frame>", 422
    if kind == "refresh":
        return turbo.stream(turbo.refresh())
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


@pytest.mark.quick
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


def test_errors_that_are_hidden_hold_up_nothing(site: Site) -> None:
    frame = (
        "<turbo-frame id=f style='display: contents'>"
        "<form action='/answer?kind=errors' method=post><button>Send</button></form></turbo-frame>"
    )
    site.open(body=f"<div id=modal>{frame}</div>")
    site.page.click("button")
    site.page.wait_for_selector("#errors")
    site.change(number=100)
    site.push('<turbo-stream action="refresh"></turbo-stream>')
    site.page.wait_for_selector("body[data-turbo-stream-outdated]")
    site.window.wait_for_rest()
    assert site.page.inner_text("#state") == "0"
    site.page.evaluate("document.querySelector('#modal').style.display = 'none'")
    site.page.wait_for_selector("#state:text-is('100')", timeout=50_000)


def test_a_form_in_a_dialog_may_ask_for_a_refresh(site: Site) -> None:
    form = "<form action='/answer?kind=refresh' method=post><button>Save</button></form>"
    site.open(method="morph", body=f"<dialog id=d>{form}</dialog>")
    site.page.evaluate("document.querySelector('#d').showModal()")
    site.change(number=100)
    site.page.click("#d button")
    site.page.wait_for_selector("#state:text-is('100')")
    assert not site.page.evaluate("document.querySelector('#d').open")


@pytest.mark.parametrize(
    ("made", "change"),
    [
        (
            "<div id=e contenteditable></div>",
            [("type", "x"), ("press", "Backspace")],
        ),
        ("<select id=e><option>a<option>b</select>", [("press", "ArrowDown")]),
        ("<input id=e type=checkbox>", [("press", "Space")]),
        ("<input id=e type=radio>", [("press", "Space")]),
        ("<input id=e type=range>", [("press", "ArrowRight")]),
    ],
    ids=["an editor, emptied again", "a select", "a checkbox", "a radio button", "a range"],
)
def test_what_a_script_has_made_holds_up_nothing(
    site: Site, made: str, change: list[tuple[str, str]]
) -> None:
    site.open(body="<div id=place></div>")
    site.page.evaluate("(html) => { document.querySelector('#place').innerHTML = html }", made)
    for method, key in change:
        getattr(site.page, method)("#e", key)
    site.refresh()


@pytest.mark.parametrize("method", ["replace", "morph"])
def test_a_new_number_against_sending_twice_makes_no_other_form(site: Site, method: str) -> None:
    form = "<form><input type=hidden name=idempotency_key value={}><input name=text></form>"
    site.open(method=method, body=form.format(1))
    site.page.fill("[name=text]", "typed")
    site.refresh(body=form.format(2))
    assert site.page.input_value("[name=text]") == "typed"
    assert site.page.input_value("[name=idempotency_key]") == "2"


WIDGET = """
<select id=s><option>a<option>b</select>
<script>
function replaceSelect() {
  const select = document.querySelector("#s");
  if (select.isReplaced) return;
  select.isReplaced = true;
  select.style = "position: absolute; width: 1px; height: 1px; padding: 0; border: 0";
  select.insertAdjacentHTML("afterend", `<b id=w>${select.selectedOptions[0].text}</b>`);
}
</script>
"""


@pytest.mark.parametrize("method", ["replace", "morph"])
def test_a_script_that_replaces_a_select_begins_with_its_choice(site: Site, method: str) -> None:
    """As Select2, Choices and Tom Select do it, also with an option that the user has made."""
    site.open(method=method, body=WIDGET)
    begin = "replaceSelect(); document.addEventListener('turbo:render', replaceSelect)"
    site.page.evaluate(begin)
    for choice in ("b", "c"):
        site.page.evaluate(
            """(choice) => {
                const select = document.querySelector("#s");
                const isThere = [...select.options].some((option) => option.value === choice);
                if (!isThere) select.add(new Option(choice));
                select.value = choice;
                select.dispatchEvent(new Event("change", { bubbles: true }));
            }""",
            choice,
        )
        for _ in range(2):
            site.refresh()
            assert site.page.input_value("#s") == choice
            if method == "replace":
                assert site.page.inner_text("#w") == choice
            else:  # the same element, which the script does not replace again
                assert site.page.evaluate("document.querySelector('#s').clientWidth") > 1


@pytest.mark.parametrize("method", ["replace", "morph"])
def test_details_around_a_changed_field_stay_open(site: Site, method: str) -> None:
    inner = "<details id=inner><summary>more</summary><input name=text></details>"
    body = f"<details id=outer><summary>all</summary>{inner}</details><details id=other></details>"
    site.open(method=method, body=body)
    site.page.click("#outer > summary")
    site.page.click("#inner > summary")
    site.page.fill("[name=text]", "typed")
    site.refresh()
    assert site.page.locator("[name=text]:visible").input_value() == "typed"
    assert site.page.locator("#other[open]").count() == 0


@pytest.mark.quick
@pytest.mark.parametrize("method", ["replace", "morph"])
def test_scripts_are_told_of_fields_that_were_kept(site: Site, method: str) -> None:
    fields = "<input name=text><textarea name=more></textarea>"
    form = f"<form>{fields}<button disabled>Send</button></form>"
    site.open(method=method, body=form)
    site.page.evaluate(
        """() => {
            document.addEventListener("input", ({ target }) => {
                target.form.querySelector("button").disabled = target.value === "";
            });
            document.addEventListener("turbo-stream:fields-kept", ({ detail }) => {
                for (const field of detail.fields) {
                    field.dispatchEvent(new Event("input", { bubbles: true }));
                }
                window.kept = detail.fields.map((field) => field.name);
            });
        }"""
    )
    site.refresh()
    assert site.page.evaluate("window.kept") is None
    site.page.fill("[name=text]", "typed")
    site.refresh()
    assert site.page.evaluate("window.kept") == ["text"]
    assert site.page.is_enabled("button")


@pytest.mark.parametrize(
    ("stream", "typed"),
    [
        ('action="replace" target="field-1"', [1]),
        ('action="update" targets=".row"', [0, 2]),
        ('action="update" targets=".row"', [1]),
    ],
    ids=["the field itself", "some of several targets", "one of several targets"],
)
def test_a_stream_that_morphs_keeps_text_in_each_target(
    site: Site, stream: str, typed: list[int]
) -> None:
    row = "<p class=row><input name=text id=field-{}></p>"
    row = row if "field" in stream else "<p class=row><input name=text></p>"
    new = "<input name=text title=new" + (" id=field-1>" if "field" in stream else ">")
    site.open(body="".join(row.format(n) for n in range(3)))
    fields = site.page.locator("[name=text]")
    for n in typed:
        fields.nth(n).fill(f"typed {n}")
    template = f"<template>{new}</template>"
    site.push(f'<turbo-stream {stream} method="morph">{template}</turbo-stream>')
    site.push(
        '<turbo-stream action="update" target="state"><template>end</template></turbo-stream>'
    )
    site.page.wait_for_selector("#state:text-is('end')")
    values = [fields.nth(n).input_value() for n in range(3)]
    assert values == [f"typed {n}" if n in typed else "" for n in range(3)]
    assert site.page.locator("[data-turbo-permanent], [id^=turbo-stream-kept]").count() == 0
    untouched = [fields.nth(n).get_attribute("title") for n in range(3) if n not in typed]
    assert untouched == ([None, None] if "field" in stream else ["new"] * (3 - len(typed)))


# -- what a review has found ----------------------------------------------------------------------

END = '<turbo-stream action="update" target="state"><template>end</template></turbo-stream>'


def choose(site: Site, selector: str, index: int) -> None:
    """Choose an option as a widget does."""
    site.page.evaluate(
        """([selector, index]) => {
            const select = document.querySelector(selector);
            select.selectedIndex = index;
            for (const name of ["input", "change"]) {
                select.dispatchEvent(new Event(name, { bubbles: true }));
            }
        }""",
        [selector, index],
    )


def values(site: Site, selector: str) -> list[str]:
    found: list[str] = site.page.locator(selector).evaluate_all(
        "all => all.map((each) => each.value)"
    )
    return found


def morphed(site: Site, stream: str, content: str) -> None:
    """Push a stream that morphs, and wait until it is on the page."""
    template = f"<template>{content}</template>"
    site.push(f'<turbo-stream action="update" {stream} method="morph">{template}</turbo-stream>')
    site.push(END)
    site.page.wait_for_selector("#state:text-is('end')")


@pytest.mark.parametrize("method", ["replace", "morph"])
@pytest.mark.parametrize(
    "attributes",
    ["data-turbo-permanent", "id=a:b", "id=5", "id=items[0]", "id=user.name", "id=''"],
)
def test_ids_of_all_kinds_are_left_as_they_are(site: Site, attributes: str, method: str) -> None:
    site.open(method=method, body=f"<input name=text {attributes}>")
    markup = "document.querySelector('[name=text]').outerHTML"
    before = site.page.evaluate(markup)
    site.page.fill("[name=text]", "typed")
    site.refresh()
    assert site.page.input_value("[name=text]") == "typed"
    assert site.page.evaluate(markup) == before


@pytest.mark.parametrize("method", ["replace", "morph"])
def test_an_editor_keeps_its_text_beside_a_field_called_id(site: Site, method: str) -> None:
    hidden = "<input type=hidden name=id value=5>"
    body = f"<form action=/x>{hidden}<div id=e contenteditable></div></form>"
    site.open(method=method, body=body)
    site.page.type("#e", "typed")
    site.refresh()
    assert site.page.inner_text("#e") == "typed"


@pytest.mark.parametrize("new", ["<form id=two>{}</form>", "{}"], ids=["another", "none"])
def test_an_editor_whose_form_is_another_one_keeps_its_text(site: Site, new: str) -> None:
    editor = "<div id=e contenteditable></div>"
    site.open(method="morph", body=f"<form id=one>{editor}</form>")
    site.page.type("#e", "typed")
    site.refresh(body=new.format(editor))
    assert site.page.inner_text("#e") == "typed"


def test_a_hidden_select_keeps_its_choice_in_its_row(site: Site) -> None:
    def rows(*numbers: int) -> str:
        select = "<div hidden><select name=s><option>a<option>b</select></div>"
        items = (f"<li><form action=/rows/{n}>{select}</form></li>" for n in numbers)
        return f"<ul>{''.join(items)}</ul>"

    site.open(method="morph", body=rows(5))
    choose(site, "select", 1)
    site.refresh(body=rows(6, 5))
    assert values(site, "select") == ["a", "b"]


def test_a_hidden_select_keeps_its_choice_in_each_target_of_a_stream(site: Site) -> None:
    select = "<div hidden><select name=s><option>a<option>b</select></div>"
    site.open(body=2 * f"<div class=row>{select}</div>")
    site.page.evaluate("document.querySelector('select').add(new Option('c'))")
    choose(site, "select", 2)
    morphed(site, 'targets=".row"', select)
    assert values(site, "select") == ["c", "a"]
    assert values(site, "option") == ["a", "b", "c", "a", "b"]


def test_a_hidden_select_follows_the_server_again_after_its_default_is_chosen(site: Site) -> None:
    def select(chosen: str) -> str:
        options = (f"<option{' selected' * (each == chosen)}>{each}" for each in "abcd")
        return f"<div hidden><select id=s>{''.join(options)}</select></div>"

    site.open(method="morph", body=select("a"))
    choose(site, "#s", 1)
    site.refresh()
    choose(site, "#s", 0)
    for chosen in "cd":
        site.refresh(body=select(chosen))
        assert site.page.input_value("#s") == chosen


@pytest.mark.parametrize("method", ["replace", "morph"])
def test_a_hidden_select_keeps_several_options_equal_ones_and_none(site: Site, method: str) -> None:
    several = "<select multiple id=m><optgroup label=1><option>a<option selected>b</select>"
    equal = "<select id=s><option value=''>none<option value=''>other</select>"
    none = "<select id=n><option>a<option>b</select>"
    site.open(method=method, body=f"<ul><li hidden>{several}{equal}{none}</li></ul>")
    site.page.evaluate("document.querySelector('#m').options[0].selected = true")
    choose(site, "#s", 1)
    choose(site, "#n", -1)
    for _ in range(2):
        site.refresh()
        assert values(site, "#m option:checked") == ["a", "b"]
        chosen = site.page.evaluate(
            "['s', 'n'].map((id) => document.getElementById(id).selectedIndex)"
        )
        assert chosen == [1, -1]


def test_a_target_that_lacks_the_field_gets_one(site: Site) -> None:
    site.open(body="<p class=row><input name=text></p><p class=row></p>")
    site.page.fill("[name=text]", "typed")
    morphed(site, 'targets=".row"', "<input name=text>")
    assert values(site, "[name=text]") == ["typed", ""]


def test_a_dialog_that_comes_during_a_refresh_may_ask_for_another_one(site: Site) -> None:
    form = "<form action='/answer?kind=refresh' method=post><button>Save</button></form>"
    site.open(method="morph", body=f"<dialog id=d>{form}</dialog>")
    site.page.evaluate(
        """document.addEventListener("turbo:before-fetch-request", () => {
            document.querySelector("#d").showModal();
        }, { once: true })"""
    )
    site.push('<turbo-stream action="refresh"></turbo-stream>')
    site.page.wait_for_selector("#d[open]")
    site.change(number=100)
    site.page.click("#d button")
    site.page.wait_for_selector("#state:text-is('100')")


@pytest.mark.slow
def test_a_refresh_that_a_dialog_has_asked_for_is_tried_again(site: Site) -> None:
    form = "<form action='/answer?kind=refresh' method=post><button>Save</button></form>"
    site.open(method="morph", body=f"<dialog id=d>{form}</dialog>")
    site.page.evaluate("document.querySelector('#d').showModal()")
    site.page.route(lambda url: url.endswith("/"), lambda route: route.fulfill(status=503), times=1)
    site.change(number=100)
    site.page.click("#d button")
    site.page.wait_for_selector("#state:text-is('100')")


def test_a_dialog_is_not_ended_by_the_form_of_another_place(site: Site) -> None:
    form = "<form id=other action='/answer?kind=refresh' method=post></form>"
    site.open(method="morph", body=f"{form}<dialog id=d><input id=t></dialog>")
    site.page.evaluate("document.querySelector('#d').showModal()")
    site.page.fill("#t", "typed")
    with site.page.expect_response("**/answer*"):
        site.page.evaluate("document.querySelector('#other').requestSubmit()")
    site.page.wait_for_selector("body[data-turbo-stream-outdated]")
    site.window.wait_for_rest()
    assert site.page.evaluate("document.querySelector('#d').open")
    site.page.evaluate("document.querySelector('#d').close()")
    site.page.wait_for_selector("body:not([data-turbo-stream-outdated])")


def with_errors(site: Site) -> None:
    """Open a page whose frame shows the errors of a form."""
    form = "<form action=/answer method=post>{}<button>Send</button></form>"
    frame = f"<turbo-frame id=f>{form}</turbo-frame>"
    answer = frame.format("<input id=t name=t value=typed><p id=errors>not valid</p>")
    site.page.route(
        "**/answer*",
        lambda route: route.fulfill(status=422, content_type="text/html", body=answer),
    )
    site.open(method="morph", body=f"<div id=modal>{frame.format('<input id=t name=t>')}</div>")
    site.page.fill("#t", "typed")
    site.page.click("button")
    site.page.wait_for_selector("#errors")


@pytest.mark.parametrize("style", ["display: none", "visibility: hidden", "opacity: 0"])
def test_what_was_typed_beside_errors_is_there_when_they_are_shown_again(
    site: Site, style: str
) -> None:
    with_errors(site)
    site.page.evaluate("(style) => { document.querySelector('#modal').style = style }", style)
    site.refresh()
    site.page.evaluate("document.querySelector('#modal').style = ''")
    assert site.page.input_value("#t") == "typed"


def test_errors_in_boxes_without_boxes_of_their_own_can_be_seen(site: Site) -> None:
    with_errors(site)
    site.page.evaluate(
        """for (const each of document.querySelectorAll("#f, #f form")) {
            each.style.display = "contents";
        }"""
    )
    site.change(number=100)
    site.push('<turbo-stream action="refresh"></turbo-stream>')
    site.page.wait_for_selector("body[data-turbo-stream-outdated]")
    site.window.wait_for_rest()
    assert site.page.inner_text("#state") == "0"


def test_an_editor_whose_text_was_sent_shows_what_the_server_has(site: Site) -> None:
    editor = "<div id=e contenteditable>{}</div>"
    form = f"<form action=/answer method=post>{editor}<button>Send</button></form>"
    site.open(method="morph", body=form.format("old"))
    site.page.click("#e")
    site.page.keyboard.press("Control+A")
    site.page.keyboard.type("mine")
    site.change(number=100, body=form.format("<p>mine</p>"))
    site.page.click("button")
    site.page.wait_for_selector("#state:text-is('100')")
    for text in ("theirs", "theirs 2"):
        site.refresh(body=form.format(text))
        assert site.page.inner_text("#e") == text
    site.refresh(body="gone")


def test_an_editor_that_was_focused_before_our_script_blocks_nothing(site: Site) -> None:
    focus = "<script>document.querySelector('#e').focus()</script>"
    site.open(method="morph", body=f"<div id=e contenteditable></div>{focus}")
    site.page.keyboard.type("x")
    site.page.keyboard.press("Backspace")
    site.refresh(body="gone")


def test_an_editor_that_holds_an_element_only_is_not_empty(site: Site) -> None:
    site.open(method="morph", body="<div id=e contenteditable></div>")
    site.page.focus("#e")
    site.page.evaluate(
        """() => {
            const editor = document.querySelector("#e");
            editor.innerHTML = "<my-attachment></my-attachment>";
            editor.dispatchEvent(new Event("input", { bubbles: true }));
        }"""
    )
    site.refresh()
    assert "my-attachment" in site.page.inner_html("#e")


def test_the_same_text_may_be_typed_again(site: Site) -> None:
    form = "<form action=/answer method=post><input id=t name=t><button>Send</button></form>"
    site.open(method="morph", body=form)
    site.page.fill("#t", "ok")
    site.change(number=100)
    site.page.click("button")
    site.page.wait_for_selector("#state:text-is('100')")
    site.window.wait_for_rest()
    assert site.page.input_value("#t") == ""
    site.page.fill("#t", "ok")
    site.refresh()
    assert site.page.input_value("#t") == "ok"


def test_scripts_are_told_of_each_field_of_a_form_that_was_kept(site: Site) -> None:
    form = (
        "<form action=/x><input name=text><div id=e contenteditable></div><input name=more></form>"
    )
    site.open(method="morph", body=form)
    site.page.evaluate(
        """document.addEventListener("turbo-stream:fields-kept", ({ detail }) => {
            window.kept = detail.fields.map((field) => field.tagName);
        })"""
    )
    site.page.fill("[name=text]", "typed")
    site.page.type("#e", "typed")
    site.refresh()
    assert site.page.evaluate("window.kept") == ["INPUT", "DIV"]


def test_an_event_for_a_field_that_was_kept_is_not_the_user(site: Site) -> None:
    site.open(method="morph", body="<input id=t>")
    site.page.evaluate(
        """() => {
            document.querySelector("#t").value = "of a script";
            document.addEventListener("turbo-stream:fields-kept", ({ detail }) => {
                for (const field of detail.fields) {
                    field.dispatchEvent(new Event("input", { bubbles: true }));
                }
            });
        }"""
    )
    site.refresh()
    assert site.page.input_value("#t") == "of a script"
    site.refresh(body="")


@pytest.mark.parametrize("method", ["replace", "morph"])
def test_the_next_key_goes_to_the_row_that_has_the_focus(site: Site, method: str) -> None:
    row = "<form action=/rows/{0}><input name=text title={0}></form>"
    site.open(method=method, body=row.format(5))
    site.page.focus("[name=text]")
    site.refresh(body=row.format(6) + row.format(5))
    site.page.keyboard.type("x")
    assert values(site, "[title='6']") == [""]
    assert values(site, "[title='5']") == ["x"]


def test_scripts_are_told_of_fields_that_a_pushed_morph_has_kept(site: Site) -> None:
    site.open(body="<div id=t><input name=text></div>")
    site.page.evaluate(
        """document.addEventListener("turbo-stream:fields-kept", ({ detail }) => {
            window.kept = detail.fields.map((field) => field.name);
        })"""
    )
    site.page.fill("[name=text]", "typed")
    morphed(site, 'target="t"', "<input name=text>")
    assert site.page.evaluate("window.kept") == ["text"]


@pytest.mark.parametrize(
    ("method", "attributes"), [("morph", "id=x"), ("replace", "id=x data-turbo-permanent")]
)
def test_a_field_of_a_shadow_root_is_kept_as_documented(
    site: Site, method: str, attributes: str
) -> None:
    body = f"<x-field {attributes}></x-field>"
    site.open(method=method, body=body)
    site.page.evaluate(
        """() => customElements.define("x-field", class extends HTMLElement {
            constructor() {
                super();
                this.attachShadow({ mode: "open" }).innerHTML = "<input>";
            }
        })"""
    )
    site.page.fill("x-field input", "typed")
    site.refresh(body=f"<p></p>{body}")
    assert site.page.input_value("x-field input") == "typed"


def test_turbo_moves_the_focus_to_the_first_element_with_the_id(site: Site) -> None:
    """As the page about Turbo warns of ids that are not unique."""
    site.open(body=2 * "<input id=text>")
    site.page.locator("input").nth(1).focus()
    site.push(END)
    site.page.wait_for_function("document.activeElement === document.querySelector('input')")
