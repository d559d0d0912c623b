"""``push``, what a response's header says, and what a client is known to have."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask, Response, render_template_string, session
from jinja2 import DictLoader

import flask_sockets2
from flask_sockets2.firehose import Connector, Firehose, push

LINK = "</a.css>; rel=preload; as=style"


def make_app(view: Callable[[], Any], firehose: Firehose | None = None, **config: Any) -> Flask:
    app = Flask("pushes")
    app.testing = True
    app.config.update(config)
    (firehose or Firehose()).init_app(app)
    app.add_url_rule("/", "index", view)
    return app


def page() -> str:
    return push("/a.css")


def test_the_package_has_both_names() -> None:
    assert flask_sockets2.Firehose is Firehose
    assert flask_sockets2.push is push
    assert Firehose.push is push


def test_the_url_comes_back_as_it_is_and_is_in_the_header_once() -> None:
    def view() -> str:
        return push("/ü b.css") + push("/ü b.css", as_="image")

    answer = make_app(view).test_client().get("/")
    assert answer.text == "/ü b.css" * 2
    assert answer.headers.getlist("Link") == ["</%C3%BC%20b.css>; rel=preload; as=style"]


def test_links_that_a_response_has_stay() -> None:
    def view() -> Response:
        response = Response(push("/a.css"))
        response.headers.add("Link", "</next>; rel=next")
        response.headers.add("Link", "</a.css>; rel=preload; as=style")
        return response

    (value,) = make_app(view).test_client().get("/").headers.getlist("Link")
    assert value == "</next>; rel=next, </a.css>; rel=preload; as=style"


def test_a_response_without_pushes_stays_as_it_is() -> None:
    def view() -> Response:
        response = Response("")
        response.headers.add("Link", "</a>; rel=next")
        response.headers.add("Link", "</b>; rel=prev")
        return response

    answer = make_app(view, SECRET_KEY="x").test_client().get("/")
    assert answer.headers.getlist("Link") == ["</a>; rel=next", "</b>; rel=prev"]
    assert "Vary" not in answer.headers
    assert "Set-Cookie" not in answer.headers


def test_the_session_remembers_and_the_response_varies_where_it_was_used() -> None:
    client = make_app(page, SECRET_KEY="x").test_client()
    first = client.get("/")
    assert first.headers["Link"] == LINK
    assert first.headers["Vary"] == "Cookie"
    second = client.get("/")
    assert "Link" not in second.headers
    assert second.headers["Vary"] == "Cookie"
    assert "Vary" not in client.get("/nowhere").headers


def test_commas_and_percent_signs_are_remembered() -> None:
    urls = {"/a,b.css", "/a%2Cb.css", "/%25.css", "/c.css"}
    known: list[set[str]] = []

    def view() -> str:
        known.append(Connector.get_pushed())
        return "".join(push(url) for url in urls)

    client = make_app(view, SECRET_KEY="x").test_client()
    assert client.get("/").headers["Link"].count("rel=preload") == 4
    assert "Link" not in client.get("/").headers
    assert known == [set(), urls]


def test_the_session_of_flask_firehose_is_understood() -> None:
    client = make_app(page, SECRET_KEY="x").test_client()
    with client.session_transaction() as kept:
        kept["h2-pushed"] = "/a.css,/b%20c.css"
    assert "Link" not in client.get("/").headers


@pytest.mark.parametrize("kept", [None, 7, ["/a.css"], ""])
def test_a_session_that_holds_something_else_is_no_error(kept: Any) -> None:
    client = make_app(page, SECRET_KEY="x").test_client()
    with client.session_transaction() as transaction:
        transaction["h2-pushed"] = kept
    assert client.get("/").headers["Link"] == LINK


def test_a_cookie_does_not_grow_for_ever() -> None:
    def view() -> str:
        return "".join(push(f"/{n}/{'x' * 40}.css") for n in range(40))

    client = make_app(view, SECRET_KEY="x").test_client()
    client.get("/")
    with client.session_transaction() as kept:
        assert 900 < len(kept["h2-pushed"]) <= 1024


def test_without_a_secret_key_every_response_has_its_links() -> None:
    client = make_app(page).test_client()
    assert [client.get("/").headers["Link"] for _ in range(2)] == [LINK, LINK]


def test_without_a_memory_the_session_is_left_alone() -> None:
    client = make_app(page, Firehose(connector=None), SECRET_KEY="x").test_client()
    for _ in range(2):
        answer = client.get("/")
        assert answer.headers["Link"] == LINK
        assert "Vary" not in answer.headers


class Remembering:
    def __init__(self) -> None:
        self.known: set[str] = {"/b.css"}

    def get_pushed(self) -> set[str]:
        return self.known

    def set_pushed(self, inset: set[str]) -> None:
        self.known = inset


@pytest.mark.parametrize("connector", [Remembering, Remembering()], ids=["class", "instance"])
def test_a_connector_is_a_class_or_an_instance(connector: Any) -> None:
    def view() -> str:
        return push("/a.css") + push("/b.css")

    firehose = Firehose(connector=connector)
    client = make_app(view, firehose).test_client()
    assert client.get("/").headers["Link"] == LINK
    assert isinstance(firehose.connector, Remembering)
    assert firehose.connector.known == {"/a.css", "/b.css"}
    assert "Link" not in client.get("/").headers


def test_a_connector_lacks_a_method() -> None:
    with pytest.raises(TypeError, match=r"no set_pushed\(\)"):
        Firehose(connector=type("Half", (), {"get_pushed": lambda self: set()}))


def test_several_applications_have_a_memory_each() -> None:
    one, other = Remembering(), Remembering()
    first = make_app(page, Firehose(connector=one))
    second = make_app(page, Firehose(connector=other))
    first.test_client().get("/")
    assert "/a.css" in one.known
    assert "/a.css" not in other.known
    assert second.test_client().get("/").headers["Link"] == LINK


def test_one_firehose_serves_several_applications_and_one_of_them_twice() -> None:
    firehose = Firehose(connector=None)
    apps = [make_app(page, firehose) for _ in range(2)]
    firehose.init_app(apps[0])
    assert firehose.app is None
    for app in apps:
        assert app.test_client().get("/").headers.getlist("Link") == [LINK]


def test_an_application_that_has_served_is_refused_each_time() -> None:
    app = Flask(__name__)
    app.test_client().get("/")
    for _ in range(3):
        with pytest.raises(AssertionError, match="already handled its first request"):
            Firehose(app)
    with app.test_request_context(), pytest.raises(RuntimeError, match="has no Firehose"):
        push("/a.css")


def test_an_application_within_a_request_of_another_has_its_own_links() -> None:
    inner = make_app(lambda: push("/inner.css"))

    def view() -> str:
        push("/outer.css")
        return inner.test_client().get("/").headers["Link"]

    answer = make_app(view).test_client().get("/")
    assert answer.text == "</inner.css>; rel=preload; as=style"
    assert answer.headers["Link"] == "</outer.css>; rel=preload; as=style"


def test_an_application_context_around_several_requests_mixes_nothing() -> None:
    app = make_app(page)
    app.add_url_rule("/b", "b", lambda: push("/b.css"))
    with app.app_context():
        client = app.test_client()
        assert client.get("/").headers["Link"] == LINK
        assert client.get("/b").headers["Link"] == "</b.css>; rel=preload; as=style"


def test_a_template_that_is_no_page_may_push_in_vain() -> None:
    app = make_app(page)
    with app.app_context():
        assert render_template_string("{{ push('/a.css') }}") == "/a.css"
    with pytest.raises(ValueError):
        push("/a\n.css")


def test_an_application_without_firehose_says_so() -> None:
    app = Flask("without")
    with app.test_request_context(), pytest.raises(RuntimeError, match=r"call Firehose\(app\)"):
        push("/a.css")


def test_a_macro_of_another_template_pushes() -> None:
    app = make_app(lambda: render_template_string("{% from 'm' import css %}{{ css('/a.css') }}"))
    app.jinja_env.loader = DictLoader({"m": "{% macro css(url) %}{{ push(url) }}{% endmacro %}"})
    assert app.test_client().get("/").headers["Link"] == LINK


def test_a_line_break_is_an_error_of_the_view_and_never_in_the_header() -> None:
    app = make_app(lambda: push("/a.css\r\nSet-Cookie: x=1"))
    app.testing = False
    answer = app.test_client().get("/")
    assert answer.status_code == 500
    assert "Link" not in answer.headers
    assert "Set-Cookie" not in answer.headers


def test_more_than_fits_into_a_header_is_left_out_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = make_app(lambda: "".join(push(f"/{n}/{'x' * 80}.css") for n in range(50)))
    with caplog.at_level(logging.WARNING, "flask_sockets2.firehose"):
        answer = app.test_client().get("/")
    assert 2900 < len(answer.headers["Link"]) <= 3072
    (record,) = caplog.records
    assert "index: " in record.getMessage()


def test_a_link_that_fits_into_no_header_makes_no_empty_one() -> None:
    app = make_app(lambda: push(f"/{'x' * 4000}.css"))
    assert "Link" not in app.test_client().get("/").headers


def test_what_was_left_out_is_pushed_with_the_next_response() -> None:
    urls = [f"/{n}/{'x' * 100}.css" for n in range(30)]
    remembering = Remembering()
    app = make_app(lambda: "".join(push(url) for url in urls), Firehose(connector=remembering))
    client = app.test_client()
    links = [client.get("/").headers["Link"] for _ in range(2)]
    assert remembering.known == {"/b.css", *urls}
    assert [", ".join(links).count(f"<{url}>") for url in urls] == [1] * 30
    assert "Link" not in client.get("/").headers


@pytest.mark.parametrize("control", ["public, max-age=60", "s-maxage=60"])
def test_a_response_that_a_cache_gives_to_everybody_has_all_links_and_no_cookie(
    control: str,
) -> None:
    def view() -> Response:
        return Response(push("/a.css"), headers={"Cache-Control": control})

    client = make_app(view, SECRET_KEY="x").test_client()
    for _ in range(2):
        answer = client.get("/")
        assert answer.headers["Link"] == LINK
        assert "Set-Cookie" not in answer.headers
        assert "Vary" not in answer.headers


def test_an_answer_to_an_error_has_what_its_page_pushed() -> None:
    app = make_app(page)
    app.register_error_handler(404, lambda error: (push("/a.css"), 404))
    assert app.test_client().get("/nowhere").headers["Link"] == LINK


def test_who_logs_out_is_forgotten() -> None:
    def view() -> str:
        session.clear()
        return push("/a.css")

    client = make_app(view, SECRET_KEY="x").test_client()
    assert [client.get("/").headers["Link"] for _ in range(2)] == [LINK, LINK]
