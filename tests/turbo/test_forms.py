"""Answers to forms and frames, and what a page tells about itself."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask, flash, render_template, request
from flask.testing import FlaskClient
from flask_wtf import CSRFProtect, FlaskForm
from jinja2 import DictLoader, TemplateNotFound
from wtforms import StringField
from wtforms.validators import InputRequired

from flask_sockets2.turbo import Turbo
from flask_sockets2.turbo.testing import STREAM_HEADERS, assert_turbo_stream

LOGGER = "flask_sockets2.turbo"

TEMPLATES = {
    "base.html": (
        "<html><head>{{ turbo() }}{% block head %}{% endblock %}</head>"
        "<body><nav>Menu</nav>{% block content %}{% endblock %}"
        "<aside>{% block aside %}{% endblock %}</aside></body></html>"
    ),
    "page.html": (
        '{% extends turbo.layout("base.html") %}'
        "{% block head %}{{ super() }}{{ turbo.page_requires_reload() }}{% endblock %}"
        '{% block content %}<turbo-frame id="todo">{{ text }}</turbo-frame>{% endblock %}'
        "{% block aside %}Beside{% endblock %}"
    ),
    "form.html": "{% for field in form %}{{ field() }}{{ field.errors|join }}{% endfor %}",
    "_flashes.html": (
        "{% for message in get_flashed_messages() %}<p>{{ message }}</p>{% endfor %}{{ more }}"
    ),
}

Render = Callable[[str], str]


class TodoForm(FlaskForm):  # type: ignore[misc]  # without types
    task = StringField(validators=[InputRequired("What is to be done?")])


@pytest.fixture
def app() -> Flask:
    app = Flask(__name__)
    app.config.update(SECRET_KEY="secret", WTF_CSRF_ENABLED=False)
    app.jinja_loader = DictLoader(TEMPLATES)
    return app


@pytest.fixture
def turbo(app: Flask) -> Turbo:
    return Turbo(app)


@pytest.fixture
def client(app: Flask, turbo: Turbo) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def render(app: Flask, turbo: Turbo) -> Iterator[Render]:
    """Renders a template's source within a request."""
    with app.test_request_context("/"):
        yield lambda source: app.jinja_env.from_string(source).render(**turbo.context_processor())


# -- forms -------------------------------------------------------------------------------------


@pytest.fixture
def todo(app: Flask, turbo: Turbo) -> None:
    @app.route("/todo", methods=["GET", "POST", "PUT"])
    def todo() -> Any:
        form = TodoForm()
        if not form.validate_on_submit():
            return turbo.render_form("form.html", form=form)
        return turbo.redirect("/todo")


@pytest.mark.usefixtures("todo")
def test_an_empty_form_is_shown_with_200(client: FlaskClient) -> None:
    response = client.get("/todo")
    assert response.status_code == 200
    assert "What is to be done?" not in response.text


@pytest.mark.usefixtures("todo")
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_a_form_is_shown_again_with_422(client: FlaskClient, method: str) -> None:
    response = client.open("/todo", method=method, data={"task": ""}, headers=STREAM_HEADERS)
    assert response.status_code == 422
    assert response.mimetype == "text/html"
    assert "What is to be done?" in response.text


@pytest.mark.usefixtures("todo")
def test_a_form_that_is_done_redirects_with_303(client: FlaskClient) -> None:
    response = client.post("/todo", data={"task": "Milk"})
    assert (response.status_code, response.location) == (303, "/todo")


def test_a_context_may_have_a_variable_of_any_name(app: Flask, turbo: Turbo) -> None:
    app.jinja_loader = DictLoader({"form.html": "{{ template }} {{ self_ }}"})
    with app.test_request_context("/", method="POST"):
        response = turbo.render_form("form.html", template="a", self_="b")
        assert response.get_data(as_text=True) == "a b"


def test_a_form_without_its_template_is_an_error(app: Flask, turbo: Turbo) -> None:
    with app.test_request_context("/"), pytest.raises(TemplateNotFound, match=r"none\.html"):
        turbo.render_form("none.html")


def test_a_redirect_may_have_another_code_of_redirects(app: Flask, turbo: Turbo) -> None:
    with app.test_request_context("/"):
        assert turbo.redirect("/there", 307).status_code == 307
        with pytest.raises(ValueError, match="a code such as 303, got 200"):
            turbo.redirect("/there", 200)


@pytest.mark.parametrize(
    ("accept", "can"),
    [
        (STREAM_HEADERS["Accept"], True),
        ("text/vnd.turbo-stream.html", True),
        ("Text/VND.Turbo-Stream.html, text/html", True),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", False),
        ("*/*", False),
        ("text/*", False),
        ("text/html, text/vnd.turbo-stream.html;q=0.5", False),
        ("text/vnd.turbo-stream.html;q=0", False),
        ("", False),
        (None, False),
    ],
)
def test_streams_are_for_who_names_them(
    app: Flask, turbo: Turbo, accept: str | None, can: bool
) -> None:
    headers = {} if accept is None else {"Accept": accept}
    with app.test_request_context("/", headers=headers):
        assert turbo.can_stream() is can


# -- what turbo.js refuses ---------------------------------------------------------------------


@pytest.fixture
def answers(app: Flask, turbo: Turbo) -> None:
    """Views that answer as their URL says."""

    @app.route("/answer/<int:status>", methods=["GET", "POST", "DELETE"])
    def answer(status: int) -> Any:
        kind = request.args.get("type", "text/html")
        body = "<p>text</p>" if kind == "text/html" else str(turbo.remove(target="gone"))
        return body, status, {"Content-Type": kind}

    @app.route("/other", methods=["POST"])
    def other() -> str:
        return "<p>text</p>"


def post(client: FlaskClient, url: str, **headers: str) -> None:
    client.post(url, headers={**STREAM_HEADERS, **headers})


@pytest.mark.usefixtures("answers")
def test_html_with_200_in_answer_to_a_form_is_warned_of_once_for_an_endpoint(
    app: Flask, client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    app.debug = True
    for url in ("/answer/200", "/answer/200", "/other", "/other"):
        post(client, url)
    warnings = [record for record in caplog.records if record.name == LOGGER]
    assert [record.levelno for record in warnings] == [logging.WARNING] * 2
    first, second = (record.getMessage() for record in warnings)
    assert first.startswith("POST '/answer/200' (endpoint 'answer') answered a Turbo form")
    assert "turbo.render_form(" in first
    assert "turbo.redirect(" in first
    assert "(endpoint 'other')" in second


@pytest.mark.usefixtures("answers")
@pytest.mark.parametrize(
    ("method", "url", "headers", "debug"),
    [
        ("POST", "/answer/200", STREAM_HEADERS, False),
        ("POST", "/answer/200", {"Accept": "text/html, */*"}, True),
        ("POST", "/answer/200", {**STREAM_HEADERS, "Turbo-Frame": "todo"}, True),
        ("GET", "/answer/200", STREAM_HEADERS, True),
        ("POST", "/answer/422", STREAM_HEADERS, True),
        ("POST", "/answer/500", STREAM_HEADERS, True),
        ("POST", "/answer/204", STREAM_HEADERS, True),
        ("POST", "/answer/201", STREAM_HEADERS, True),
        ("POST", "/answer/200?type=text/vnd.turbo-stream.html", STREAM_HEADERS, True),
        ("POST", "/answer/200?type=application/json", STREAM_HEADERS, True),
        ("POST", "/nowhere", STREAM_HEADERS, True),
    ],
)
def test_what_turbo_takes_is_not_warned_of(
    app: Flask,
    client: FlaskClient,
    caplog: pytest.LogCaptureFixture,
    method: str,
    url: str,
    headers: dict[str, str],
    debug: bool,
) -> None:
    app.debug = debug
    client.open(url, method=method, headers=headers)
    assert not [record for record in caplog.records if record.name == LOGGER]


# -- frames, and what an answer depended on ----------------------------------------------------


@pytest.fixture
def page(app: Flask) -> None:
    @app.route("/page")
    def page() -> str:
        return render_template("page.html", text="<Milk>")


@pytest.mark.usefixtures("page")
def test_a_page_has_its_layout(client: FlaskClient) -> None:
    response = client.get("/page")
    assert "<nav>Menu</nav>" in response.text
    assert '<turbo-frame id="todo">&lt;Milk&gt;</turbo-frame>' in response.text
    assert "Beside" in response.text


@pytest.mark.usefixtures("page")
def test_a_frame_comes_without_the_layout(client: FlaskClient) -> None:
    for _ in range(2):  # the second time from what is kept
        response = client.get("/page", headers={"Turbo-Frame": "todo"})
        head, body = response.text.split("</head>")
        assert head.startswith("<html><head><script ")
        assert head.endswith('<meta name="turbo-visit-control" content="reload">')
        assert body == '<body><turbo-frame id="todo">&lt;Milk&gt;</turbo-frame></body></html>'


@pytest.mark.usefixtures("page")
@pytest.mark.parametrize("headers", [{}, {"Turbo-Frame": "todo"}])
def test_what_depends_on_the_frame_varies(client: FlaskClient, headers: dict[str, str]) -> None:
    assert client.get("/page", headers=headers).vary.as_set() == {"turbo-frame"}


def test_a_layout_may_have_other_blocks(app: Flask, turbo: Turbo) -> None:
    app.jinja_loader = DictLoader(
        {
            **TEMPLATES,
            "page.html": (
                '{% extends turbo.layout("base.html", "aside", "head") %}'
                "{% block head %}Head{% endblock %}"
                "{% block content %}Content{% endblock %}{% block aside %}Beside{% endblock %}"
            ),
        }
    )
    with app.test_request_context("/", headers={"Turbo-Frame": "todo"}):
        text = render_template("page.html")
    assert "Head</head><body>Beside</body>" in text


@pytest.mark.parametrize(
    ("full", "text"),
    [
        (
            "<title>{% block title %}T{% endblock %}</title><body class='{{ 1 }}'>N",
            "<title>P</title>",
        ),
        ("{% extends 'root.html' %}{% block head %}H{% endblock %}<body>", "<title>P</title>H"),
        (' {%- extends "root.html" -%}{%block nav%}{{ 1 // 0 }}{%endblock%}', "<title>P</title>"),
        ("{% block all %}<body>{% block content %}{% endblock %}{% endblock %}", "<!doctype html>"),
        ("<h1>no body</h1>{% block content %}{% endblock %}", "<!doctype html>"),
        ("{% block content %}{% endblock %}<body>", ""),
    ],
)
def test_the_head_of_a_frame_is_that_of_its_layout(
    app: Flask, turbo: Turbo, full: str, text: str
) -> None:
    root = (
        "<title>{% block title %}T{% endblock %}</title>{% block head %}{% endblock %}"
        "<body>{% block nav %}N{% endblock %}{% block content %}{% endblock %}"
    )
    page = (
        "{% extends turbo.layout('full.html') %}{% block title %}P{% endblock %}"
        "{% block content %}C{% endblock %}"
    )
    templates = {"root.html": root, "full.html": full, "page.html": page}
    app.jinja_loader = DictLoader(templates)
    with app.test_request_context("/", headers={"Turbo-Frame": "todo"}):
        found = render_template("page.html")
        assert found.startswith(text)
        assert "N" not in found
        assert found.count("C") == 1


@pytest.mark.parametrize("reloads", [False, True])
def test_a_layout_that_was_changed_is_read_again(
    app: Flask, turbo: Turbo, client: FlaskClient, reloads: bool
) -> None:
    app.jinja_env.auto_reload = reloads
    templates = {"page.html": "{% extends turbo.layout('full.html') %}"}
    app.jinja_loader = DictLoader(templates)
    app.add_url_rule("/", "index", lambda: render_template("page.html"))
    for head in ("one", "two"):
        templates["full.html"] = f"{head}<body>"
        text = client.get("/", headers={"Turbo-Frame": "todo"}).text
        assert text.startswith(head if reloads else "one")


def test_a_page_that_is_loaded_again_keeps_the_flashes_until_then(
    app: Flask, turbo: Turbo, client: FlaskClient
) -> None:
    app.jinja_loader = DictLoader(
        {"login.html": "{{ turbo.page_requires_reload() }}{{ get_flashed_messages() }}"}
    )
    app.add_url_rule("/login", "login", lambda: render_template("login.html"))
    app.add_url_rule("/flash", "flash", lambda: str(flash("Log in.")))
    client.get("/flash")
    for headers, text in (
        ({"X-Turbo-Request-Id": "1", "Turbo-Frame": "a"}, "Log in."),
        ({"X-Turbo-Request-Id": "2"}, "Log in."),
        ({}, "Log in."),
        ({}, "[]"),
    ):
        assert text in client.get("/login", headers=headers).text


def test_a_layout_refuses_what_is_no_name_of_a_block(app: Flask, turbo: Turbo) -> None:
    with (
        app.test_request_context("/", headers={"Turbo-Frame": "todo"}),
        pytest.raises(ValueError, match="got 'a b'"),
    ):
        turbo.layout("base.html", "a b")


def test_only_what_was_asked_for_varies(app: Flask, turbo: Turbo, client: FlaskClient) -> None:
    @app.route("/nothing")
    def nothing() -> str:
        return ""

    @app.route("/both")
    def both() -> str:
        return f"{turbo.can_stream()} {turbo.requested_frame()} {turbo.requested_frame()}"

    @app.route("/raises")
    def raises() -> str:
        turbo.requested_frame()
        raise ZeroDivisionError

    app.register_error_handler(ZeroDivisionError, lambda error: ("", 500))
    with app.app_context():  # which both requests then share
        assert client.get("/both").vary.as_set() == {"accept", "turbo-frame"}
        assert "Vary" not in client.get("/nothing").headers
        assert client.get("/both", headers={"Turbo-Frame": "x"}).text == "False x x"
        assert client.get("/raises").headers["Vary"] == "Turbo-Frame"


# -- flashed messages --------------------------------------------------------------------------


def test_flashed_messages_are_a_stream(app: Flask, turbo: Turbo, client: FlaskClient) -> None:
    @app.route("/save", methods=["POST"])
    def save() -> Any:
        if "saved" in request.args:
            flash("Saved & done.")
        return turbo.stream([turbo.flashes(), turbo.flashes("other", more="more")])

    first, second = assert_turbo_stream(client.post("/save?saved=1"), action="update", count=2)
    assert (first.target, first.content) == ("flashes", "<p>Saved &amp; done.</p>")
    assert (second.target, second.text) == ("other", "Saved & done. more")
    # They are shown once, and then no longer.
    assert_turbo_stream(client.post("/save"), target="flashes", text="", count=1)
    assert "Saved" not in client.post("/save").text


# -- csrf --------------------------------------------------------------------------------------


def test_without_flask_wtf_there_is_no_token(render: Render) -> None:
    assert render("{{ turbo.csrf_meta() }}") == ""


def test_a_token_is_taken_from_the_header_that_turbo_sends(
    app: Flask, turbo: Turbo, client: FlaskClient
) -> None:
    app.config["WTF_CSRF_ENABLED"] = True
    CSRFProtect(app)
    app.jinja_loader = DictLoader({"page.html": "{{ turbo.csrf_meta() }}"})
    app.add_url_rule("/page", view_func=lambda: render_template("page.html"), endpoint="page")
    app.add_url_rule("/do", view_func=lambda: "done", endpoint="do", methods=["POST"])
    meta = client.get("/page").text
    start, end = '<meta name="csrf-token" content="', '">'
    assert (meta[: len(start)], meta[-len(end) :]) == (start, end)
    token = meta[len(start) : -len(end)]
    assert client.post("/do").status_code == 400
    assert client.post("/do", headers={"X-CSRF-Token": token}).text == "done"


def test_a_token_of_any_extension_is_escaped(app: Flask, render: Render) -> None:
    app.jinja_env.globals["csrf_token"] = lambda: '">'
    assert render("{{ turbo.csrf_meta() }}") == '<meta name="csrf-token" content="&#34;&gt;">'


# -- what a page tells about itself ------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "metas"),
    [
        (
            "refreshes_with()",
            '<meta name="turbo-refresh-method" content="replace">'
            '<meta name="turbo-refresh-scroll" content="reset">',
        ),
        (
            'refreshes_with(method="morph", scroll="preserve")',
            '<meta name="turbo-refresh-method" content="morph">'
            '<meta name="turbo-refresh-scroll" content="preserve">',
        ),
        ("exempts_page_from_cache()", '<meta name="turbo-cache-control" content="no-cache">'),
        ("exempts_page_from_preview()", '<meta name="turbo-cache-control" content="no-preview">'),
        ("page_requires_reload()", '<meta name="turbo-visit-control" content="reload">'),
    ],
)
def test_a_page_tells_turbo_how_to_treat_it(render: Render, call: str, metas: str) -> None:
    assert render(f"{{{{ turbo.{call} }}}}") == metas


@pytest.mark.parametrize("option", [{"method": "morphs"}, {"scroll": "top"}])
def test_a_page_is_refreshed_as_turbo_knows_it(turbo: Turbo, option: dict[str, str]) -> None:
    (name, value), *_ = option.items()
    with pytest.raises(ValueError, match=f"{name}= is one of .*; got '{value}'"):
        turbo.refreshes_with(**option)
