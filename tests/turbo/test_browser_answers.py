"""Answers in Chromium: each is shown, and fetched once, whether it has ``{{ turbo() }}`` or not."""

from __future__ import annotations

import re
from collections.abc import Iterator
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

from flask import Flask, abort, flash, redirect, render_template, render_template_string
from flask import request, send_file
from flask_sockets2 import Turbo
from flask_sockets2.sse import sse
from jinja2 import DictLoader
from werkzeug.middleware.dispatcher import DispatcherMiddleware

FLASHES = "{% for text in get_flashed_messages() %}<p class=flash>{{ text }}</p>{% endfor %}"
PLAIN = f"<!doctype html><title>plain</title><h1>plain</h1>{FLASHES}<a href=form>form</a>"
LOGIN = (
    "<!doctype html><html><head><title>login</title>{{ turbo(connect=False) }}</head>"
    f"<body><h1>login</h1>{FLASHES}<form method=post><button>Log in</button></form></body></html>"
)
TEMPLATES = {
    "base.html": (
        "<!doctype html><html><head><title>{% block title %}base{% endblock %}</title>"
        "<meta name=viewport content='width=device-width'>{{ turbo() }}"
        "{% block head %}{% endblock %}</head><body><h1>{{ self.title() }}</h1>"
        f"{FLASHES}{{% block content %}}{{% endblock %}}</body></html>"
    ),
    "layout.html": "{% extends 'base.html' %}{% block head %}<meta name=layout>{% endblock %}",
    "part.html": (
        "{% extends turbo.layout('layout.html') %}{% block title %}part {{ number }}{% endblock %}"
        "{% block content %}<turbo-frame id=part data-turbo-action=advance><b>{{ number }}</b>"
        "<a href=/part/{{ number + 1 }}>next</a> <a href=/secret>secret</a></turbo-frame>"
        "<a href=/plain data-turbo-prefetch=false>plain</a>{% endblock %}"
    ),
    "feed.html": (
        "{% extends 'base.html' %}{% block title %}feed{% endblock %}{% block content %}"
        "<ul id=feed></ul><turbo-stream-source src='{{ source }}'></turbo-stream-source>"
        "<a href=/form>form</a>{% endblock %}"
    ),
    "gate.html": (
        "{% extends 'base.html' %}{% block title %}gate{% endblock %}"
        "{% block head %}{{ turbo.page_requires_reload() }}{% endblock %}"
    ),
}
FORM = f"""<!doctype html>
<html><head><title>form</title>{{{{ turbo() }}}}</head>
<body>
<h1>form of {{{{ request.script_root or "/" }}}}</h1>
{FLASHES}
<nav><a href=form>form</a> <a href=plain>plain</a> <a href=login>login</a>
<a href=/b/form>b</a> <a href=/form>first</a></nav>
<form method=post>
<input id=text name=text>
{{% for answer in ["403", "429", "500", "page", "redirect"] %}}
<button name=answer value={{{{ answer }}}}>{{{{ answer }}}}</button>
{{% endfor %}}
</form>
{{% if request.args.player %}}<input id=player data-turbo-permanent>{{% endif %}}
<p id=value>0</p>
</body></html>"""


def create_app():
    app = Flask(__name__)
    app.secret_key = "for the tests"
    app.config["TURBO_JS_URL"] = "/turbo.js"
    app.jinja_loader = DictLoader(TEMPLATES)
    turbo = Turbo(app)
    app.register_blueprint(sse, url_prefix="/stream")
    asked = []

    @app.before_request
    def count():
        asked.append(f"{request.method} {request.path.lstrip('/')}")

    @app.before_request
    def login_required():
        if request.path in ("/members", "/turbo-stream") and "guest" in request.cookies:
            flash("Please log in.")
            return redirect("/login")

    @app.get("/part/<int:number>")
    def part(number):
        return render_template("part.html", number=number)

    @app.get("/secret")
    def secret():
        flash("Members only.")
        return redirect("/gate")

    @app.get("/gate")
    def gate():
        return render_template("gate.html")

    @app.get("/feed")
    def feed():
        return render_template("feed.html", source=sse.url())

    @app.post("/feed")
    def publish():
        text = request.get_data(as_text=True)
        sse.publish(turbo.append(f"<li>{text}</li>", "feed"))
        return ""

    @app.get("/members")
    def members():
        return render_template_string(FORM)

    @app.route("/form", methods=["GET", "POST"])
    def form():
        if request.method == "GET":
            return render_template_string(FORM)
        answer = request.form["answer"]
        if answer == "page":
            return "<!doctype html><h1>not valid</h1>", 422
        if answer == "redirect":
            flash("Saved.")
            return redirect("plain", 303)
        abort(int(answer))

    @app.get("/plain")
    def plain():
        return render_template_string(PLAIN)

    @app.get("/flash")
    def say():
        flash("Good morning.")
        return ""

    @app.route("/login", methods=["GET", "POST"])
    def login():
        if request.method == "GET":
            return render_template_string(LOGIN)
        flash("You are logged in.")
        return redirect("form", 303)

    @app.post("/push")
    def push():
        turbo.push(turbo.update("pushed", "value"))
        return ""

    @app.get("/asked")
    def show_asked():
        return {"asked": [each for each in asked if each.split()[1] in ("form", "plain", "login")]}

    @app.get("/turbo.js")
    def turbo_js():
        return send_file(os.environ["TURBO_JS"], "text/javascript", max_age=3600)

    return app


app = create_app()
app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/b": create_app().wsgi_app})
'''


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    try:
        environ = {"TURBO_JS": str(turbo_js())}
    except npm.Unobtainable as exc:
        pytest.skip(f"no turbo.js: {exc}")
    with servers_in(tmp_path_factory.mktemp("server")) as servers:
        yield servers.gunicorn(APP, args=["--graceful-timeout", "1"], environ=environ)


@pytest.fixture
def window(page: Page, server: Server) -> Window:
    return Window(page, server)


class Asked:
    """Which pages the server was asked for since a moment."""

    def __init__(self, window: Window, path: str = "/asked") -> None:
        self._window, self._path = window, path
        self._before = len(self._all())

    def _all(self) -> list[str]:
        fetched = f"fetch('{self._path}').then((response) => response.json())"
        found: list[str] = self._window.page.evaluate(fetched)["asked"]
        return found

    @property
    def since(self) -> list[str]:
        return self._all()[self._before :]


def follow(window: Window, link: str) -> None:
    """Click a link without the mouse, which would have Turbo fetch in advance what it is above."""
    window.page.dispatch_event(f"a:text-is('{link}')", "click")


def flash_one(window: Window) -> None:
    window.page.evaluate("fetch('/flash')")


@pytest.mark.quick
@pytest.mark.parametrize(
    ("button", "shown"),
    [
        ("403", "Forbidden"),
        ("429", "Too Many Requests"),
        ("500", "Internal Server Error"),
        ("page", "not valid"),
    ],
)
def test_the_answer_to_a_form_is_shown_without_turbo_too(
    window: Window, button: str, shown: str
) -> None:
    window.go("/form")
    asked = Asked(window)
    window.page.fill("#text", "typed")
    window.page.click(f"button:text-is('{button}')")
    window.page.wait_for_selector(f"h1:text-is('{shown}')")
    window.wait_for_frames(3)
    assert window.page.inner_text("h1") == shown
    assert asked.since == ["POST form"]
    assert window.loaded_once
    window.page.evaluate("Turbo.visit('/form')")
    window.wait_for_state("connected")


def test_a_plain_page_is_fetched_once_and_shows_its_flashes(window: Window) -> None:
    window.go("/form")
    asked = Asked(window)
    window.page.click("button:text-is('redirect')")
    window.page.wait_for_selector(".flash:text-is('Saved.')")
    follow(window, "form")
    window.wait_for_state("connected")
    flash_one(window)
    follow(window, "plain")
    window.page.wait_for_selector(".flash:text-is('Good morning.')")
    window.page.evaluate("history.back()")
    window.wait_for_state("connected")
    assert asked.since == ["POST form", "GET plain", "GET form", "GET plain"]
    assert window.loaded_once


def test_a_login_page_without_a_connection_loses_no_flash_before_and_after_it(
    window: Window, server: Server
) -> None:
    window.go("/form")
    asked = Asked(window)
    flash_one(window)
    follow(window, "login")
    window.page.wait_for_selector(".flash:text-is('Good morning.')")
    assert window.state is None
    window.page.click("button:text-is('Log in')")
    window.page.wait_for_selector(".flash:text-is('You are logged in.')")
    window.wait_for_state("connected")
    assert asked.since == ["GET login", "POST login", "GET form"]
    # Also where the login page is the first one.
    window.page.goto(server.url("/login"))
    window.page.click("button:text-is('Log in')")
    window.page.wait_for_selector(".flash:text-is('You are logged in.')")
    window.wait_for_state("connected")
    http(server.url("/push"), data=b"x")
    window.page.wait_for_selector("#value:text-is('pushed')")


def test_who_has_to_log_in_is_told_so_once(window: Window, server: Server) -> None:
    window.go("/members")
    window.page.evaluate("document.cookie = 'guest=1'")
    window.page.evaluate("window.dispatchEvent(new Event('online'))")  # it connects anew
    window.page.wait_for_url(server.url("/login"))
    assert window.page.locator(".flash").all_inner_texts() == ["Please log in."]


def test_a_frame_that_changes_the_url_changes_the_title_and_back_brings_both_back(
    window: Window,
) -> None:
    def shows(number: int) -> None:
        window.page.wait_for_selector(f"#part b:text-is('{number}')")
        window.wait_for_rest()
        window.wait_for(f"document.title === 'part {number}'")
        assert window.page.url.endswith(f"/part/{number}")

    window.go("/part/1")
    for number in (2, 3):
        window.page.dispatch_event("a:text-is('next')", "click")
        shows(number)
    for name in ("viewport", "layout", "turbo-stream-from"):
        assert window.page.locator(f"head meta[name={name}]").count() == 1
    follow(window, "plain")
    window.page.wait_for_selector("h1:text-is('plain')")
    window.wait_for_rest()
    for number in (3, 2, 1):
        window.page.evaluate("history.back()")
        shows(number)
    window.page.evaluate("history.forward()")
    shows(2)
    window.wait_for_state("connected")
    assert window.loaded_once


def test_a_page_that_a_frame_has_to_load_in_full_shows_its_flash(window: Window) -> None:
    window.go("/part/1")
    window.page.dispatch_event("a:text-is('secret')", "click")
    window.page.wait_for_selector("h1:text-is('gate')")
    window.wait_for_state("connected")
    assert window.page.locator(".flash").all_inner_texts() == ["Members only."]
    assert window.page.url.endswith("/gate")
    window.page.reload()
    assert window.page.locator(".flash").count() == 0


def test_a_stream_source_shows_each_message_once_after_going_back(
    window: Window, server: Server
) -> None:
    def publish(*texts: str) -> None:
        for text in texts:
            assert http(server.url("/feed"), data=text.encode())[0] == 200

    def shows(*texts: str) -> None:
        window.page.wait_for_selector(f"#feed li:text-is('{texts[-1]}')")
        assert window.page.locator("#feed li").all_inner_texts() == list(texts)

    window.go("/feed")
    publish("1", "2")
    shows("1", "2")
    for number in (3, 4):
        follow(window, "form")
        window.page.wait_for_selector("h1:text-is('form of /')")
        window.wait_for_rest()
        publish(f"{number} meanwhile")
        window.page.evaluate("history.back()")
        meanwhile = [f"{each} meanwhile" for each in range(3, number + 1)]
        shows("1", "2", *meanwhile)
    publish("last")
    shows("1", "2", *meanwhile, "last")


def deploy(window: Window) -> list[bool]:
    """Serve another version of our script from now on; while the list is empty, no longer."""
    deployed = [True]

    def change(route: Any) -> None:
        response = route.fetch()
        text = re.sub("(turbo-streams-)[0-9a-f]{16}", r"\g<1>0123456789abcdef", response.text())
        route.fulfill(response=response, body=text if deployed else response.text())

    window.page.route(re.compile("/(form|plain)"), change)
    return deployed


def test_a_new_version_of_our_script_is_taken_up_when_a_link_is_followed(
    window: Window, server: Server
) -> None:
    window.go("/form")
    deploy(window)
    flash_one(window)
    with window.page.expect_response("**/turbo-streams-0123456789abcdef.js"):
        follow(window, "form")
    window.page.wait_for_selector(".flash:text-is('Good morning.')")
    window.wait_for_rest()
    assert window.loaded_once
    http(server.url("/push"), data=b"x")
    window.page.wait_for_selector("#value:text-is('pushed')")
    # The answer to a form, and what is fetched in advance, is not lost either.
    asked = Asked(window)
    window.page.hover("a:text-is('plain')")
    window.page.click("button:text-is('403')")
    window.page.wait_for_selector("h1:text-is('Forbidden')")
    window.page.evaluate("Turbo.visit('/form')")
    window.page.wait_for_selector("h1:text-is('form of /')")
    window.wait_for_rest()
    assert window.loaded_once
    flash_one(window)
    with window.page.expect_event("load"):
        follow(window, "form")
    window.wait_for_state("connected")
    assert window.page.inner_text(".flash") == "Good morning."
    assert not window.loaded_once
    assert asked.since == ["POST form", "GET form", "GET form"]


def test_a_new_version_waits_for_what_only_a_visit_keeps(window: Window) -> None:
    window.go("/form?player=1")
    deployed = deploy(window)
    window.page.fill("#player", "typed")
    window.page.evaluate(
        "for (const each of document.querySelectorAll('nav a')) each.search = '?player=1'"
    )
    with window.page.expect_response("**/turbo-streams-0123456789abcdef.js"):
        follow(window, "form")
    window.wait_for_rest()
    deployed.clear()
    with window.page.expect_response("**/plain?player=1"):
        window.page.evaluate("document.querySelector('nav a:nth-child(2)').search = '?player=1'")
        follow(window, "plain")
    window.page.wait_for_selector("h1:text-is('plain')")
    assert window.loaded_once


def test_a_visit_to_another_application_on_the_host_connects_there(
    window: Window, server: Server
) -> None:
    window.go("/form")
    flash_one(window)
    asked = Asked(window, "/b/asked")
    for link, root in (("b", "/b"), ("first", "/"), ("b", "/b")):
        with window.page.expect_websocket() as opened:
            follow(window, link)
        assert opened.value.url.split("?")[0].endswith(f"{root}/turbo-stream".replace("//", "/"))
        window.page.wait_for_selector(f"h1:text-is('form of {root}')")
        window.wait_for_rest()
        http(server.url(f"{root}/push".replace("//", "/")), data=b"x")
        window.page.wait_for_selector("#value:text-is('pushed')")
    assert window.page.locator(".flash").count() == 0
    assert asked.since == ["GET form", "GET form"]
    assert window.loaded_once
