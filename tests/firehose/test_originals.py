"""What programs written for Flask-Firehose call, with only the line of their import changed.

Each test names the section of Flask-Firehose's README that shows the call. "Configure NGINX" is
``test_nginx_makes_pushes_of_the_links_as_the_readme_configures_it`` in ``test_proxies.py``.
"""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask, render_template, session
from jinja2 import DictLoader

from flask_sockets2 import Firehose, push

TEMPLATES = {
    "base.html": "<title>base</title>{% block body %}{% endblock %}",
    "page.html": """{% extends 'base.html' %}
{% block body %}
    <link rel="stylesheet" href="{{ push('/static/css/main.css', as='style', rel='preload') }}">
    This is some document.
{% endblock %}
""",
    "some_template": "some template",
}
LINK = "</static/css/main.css>; as=style; rel=preload"


def with_pages(app: Flask) -> Flask:
    app.jinja_loader = DictLoader(TEMPLATES)

    @app.route("/page")
    def page() -> str:
        return render_template("page.html")

    @app.route("/someroute")
    def render_someroute() -> str:
        push("/static/css/main.css", **{"as": "style", "rel": "preload"})
        return render_template("some_template")

    return app


def direct() -> Flask:
    app = Flask(__name__)
    Firehose(app)
    return app


def by_factory() -> Flask:
    firehose = Firehose()

    def create_app() -> Flask:
        app = Flask(__name__)
        firehose.init_app(app)
        return app

    create_app()
    return create_app()


@pytest.mark.parametrize("make_app", [direct, by_factory])
def test_initialization(make_app: Any) -> None:
    """ "Initialization": direct, and with application factories, whose extension is global."""
    client = with_pages(make_app()).test_client()
    assert client.get("/page").headers["Link"] == LINK
    assert client.get("/someroute").headers["Link"] == LINK


def test_the_template_writer_decides() -> None:
    """ "Pushing resources": ``{{ push(url, as='style', rel='preload') }}`` in a block."""
    answer = with_pages(direct()).test_client().get("/page")
    assert '<link rel="stylesheet" href="/static/css/main.css">' in answer.text
    assert answer.headers["Link"] == LINK


def test_the_backend_developer_decides() -> None:
    """ "Pushing resources": ``push(url, **{'as': 'style', 'rel': 'preload'})`` in a view."""
    answer = with_pages(direct()).test_client().get("/someroute")
    assert answer.text == "some template"
    assert answer.headers["Link"] == LINK


def test_what_was_pushed_in_a_session_is_not_pushed_again() -> None:
    """ "Tracking pushed resources": the session variable ``h2-pushed``."""
    app = with_pages(direct())
    app.secret_key = "secret"
    app.add_url_rule("/kept", "kept", lambda: str(session["h2-pushed"]))
    client = app.test_client()
    assert client.get("/page").headers["Link"] == LINK
    assert client.get("/kept").text == "/static/css/main.css"
    assert "Link" not in client.get("/someroute").headers
    assert "Link" in app.test_client().get("/someroute").headers


class Custom_connector:
    def get_pushed(self):  # type: ignore[no-untyped-def]
        """Returns a set of items that have been already pushed to client.

        Returns
        -------
        set
            Set of items that are pushed.

        """
        # your code here

    def set_pushed(self, inset):  # type: ignore[no-untyped-def]
        """Update client state after pushing more items at the end of request.

        Parameters
        ----------
        inset : set
            A set of URLs of pushed items.
        """
        # your code here


def test_the_connector_as_it_is_shown() -> None:
    """ "Tracking pushed resources": two methods, still without any code."""
    firehose = Firehose(connector=Custom_connector())
    app = Flask(__name__)
    firehose.init_app(app)
    client = with_pages(app).test_client()
    assert [client.get("/page").headers["Link"] for _ in range(2)] == [LINK, LINK]


def test_a_connector_with_code() -> None:
    """ "Tracking pushed resources": a set of URLs goes in, a set of URLs comes out."""
    sets: list[set[str]] = [{"/other.js"}]

    class Filled(Custom_connector):
        def get_pushed(self) -> set[str]:
            return sets[-1]

        def set_pushed(self, inset: set[str]) -> None:
            sets.append(inset)

    app = Flask(__name__)
    Firehose(app, connector=Filled())
    client = with_pages(app).test_client()
    assert client.get("/page").headers["Link"] == LINK
    assert sets[1:] == [{"/other.js", "/static/css/main.css"}]
    assert "Link" not in client.get("/someroute").headers
    assert len(sets) == 2
