"""Pages whose head goes out first."""

from __future__ import annotations

import logging
import socket
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
from flask import (
    Flask,
    Response,
    after_this_request,
    flash,
    g,
    get_flashed_messages,
    got_request_exception,
    has_request_context,
    render_template,
    request,
    session,
)
from flask_wtf.csrf import generate_csrf, validate_csrf
from jinja2 import DictLoader
from wtforms import ValidationError

from flask_sockets2.firehose import Firehose, flush, push
from tests.clients import TIMEOUT
from tests.processes import Server, wait_until

TEMPLATES = {
    "layout.html": "<head>{% block head %}{% endblock %}</head>{{ flush() }}"
    "<body>{% block body %}{% endblock %}</body>",
    "page.html": "{% extends 'layout.html' %}"
    "{% block head %}{{ push('/static/a.css') }}{% endblock %}"
    "{% block body %}{% for row in rows() %}<p>{{ row }}</p>{% endfor %}{% endblock %}",
    "plain.html": "<head></head><body>{{ rows() }}</body>",
    "twice.html": "a{{ flush() }}b{{ rows() }}c{{ flush() }}d{{ rows() }}",
    "broken_head.html": "{{ 1 / 0 }}{{ flush() }}",
    "inside.html": "{% macro m() %}x{{ flush() }}y{% endmacro %}1{{ m() }}2{{ rows() }}",
}


def make_app(view: Callable[[], Any], **config: Any) -> Flask:
    app = Flask("streaming")
    app.config.update(config)
    app.jinja_loader = DictLoader(TEMPLATES)
    Firehose(app)
    app.add_url_rule("/", "index", view)
    return app


def pieces_of(app: Flask) -> Iterator[str]:
    answer = app.test_client().get("/", buffered=False)
    assert answer.status_code == 200
    for piece in answer.iter_encoded():
        yield piece.decode()


def test_the_head_comes_before_the_work() -> None:
    worked: list[str] = []

    def rows() -> list[str]:
        worked.append("done")
        return ["<one>", "two"]

    pieces = pieces_of(make_app(lambda: flush("page.html", rows=rows)))
    assert next(pieces) == "<head>/static/a.css</head>"
    assert worked == []
    assert "".join(pieces) == "<body><p>&lt;one&gt;</p><p>two</p></body>"
    assert worked == ["done"]


def test_the_header_has_what_the_head_pushes() -> None:
    client = make_app(lambda: flush("page.html", rows=list)).test_client()
    answer = client.get("/", buffered=True)
    assert answer.headers["Link"] == "</static/a.css>; rel=preload; as=style"
    assert answer.headers["X-Accel-Buffering"] == "no"
    assert answer.mimetype == "text/html"
    assert "Content-Length" not in answer.headers


def test_without_a_mark_it_is_one_page() -> None:
    app = make_app(lambda: flush("plain.html", rows=lambda: "all"))
    assert "".join(pieces_of(app)) == "<head></head><body>all</body>"


def test_a_missing_mark_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    app = make_app(lambda: flush("plain.html", rows=lambda: "x"))
    for _ in range(2):
        assert app.test_client().get("/").text
    (record,) = [each for each in caplog.records if "has no {{ flush() }}" in each.message]
    assert "'plain.html'" in record.message


def test_several_marks() -> None:
    app = make_app(lambda: flush("twice.html", rows=lambda: "r"))
    assert list(pieces_of(app)) == ["a", "brc", "dr"]


def test_a_mark_in_a_macro_sends_what_stands_before_the_macro() -> None:
    app = make_app(lambda: flush("inside.html", rows=lambda: "r"))
    assert "".join(pieces_of(app)) == "1xy2r"


def test_in_a_page_that_is_rendered_as_a_whole_the_mark_is_nothing() -> None:
    app = make_app(lambda: render_template("twice.html", rows=lambda: "r"))
    assert app.test_client().get("/").text == "abrcdr"
    with app.app_context():
        assert render_template("twice.html", rows=lambda: "r") == "abrcdr"


def test_a_long_rest_comes_in_pieces_of_some_size() -> None:
    app = make_app(lambda: flush("page.html", rows=lambda: ["x" * 1000] * 50))
    _, *rest = pieces_of(app)
    assert 5 <= len(rest) <= 8
    assert all(8192 <= len(piece) < 9300 for piece in rest[:-1])


def test_the_request_is_there_below_the_mark() -> None:
    app = make_app(lambda: flush("page.html", rows=lambda: [session["user"]]), SECRET_KEY="x")
    client = app.test_client()
    with client.session_transaction() as kept:
        kept["user"] = "Ada"
    assert "<p>Ada</p>" in client.get("/").text


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_what_a_request_has_opened_is_closed_at_the_end_of_the_page(method: str) -> None:
    """As Flask's documentation opens a database, and closes it in a teardown function."""
    told: list[str] = []

    def database() -> sqlite3.Connection:
        if "database" not in g:
            g.database = sqlite3.connect(":memory:")
        return cast(sqlite3.Connection, g.database)

    def rows() -> list[Any]:
        told.append("rows")
        return [row for (row,) in database().execute("SELECT 'one'")]

    def view() -> Any:
        database()
        return flush("page.html", rows=rows)

    app = make_app(view)

    @app.teardown_appcontext
    def close(error: BaseException | None) -> None:
        told.append("closed")
        g.database.close()

    with app.test_client().open("/", method=method) as answer:
        assert answer.text.endswith("<p>one</p></body>") is (method == "GET")
    assert told == (["rows", "closed"] if method == "GET" else ["closed"])
    assert not has_request_context()


def test_a_request_ends_with_a_page_that_nobody_reads_to_its_end() -> None:
    ended: list[Any] = []
    app = make_app(lambda: flush("page.html", rows=list))
    app.teardown_request(ended.append)
    with app.test_client().get("/") as answer:
        assert next(answer.iter_encoded()).startswith(b"<head>")
        assert ended == []
    assert len(ended) == 1
    assert not has_request_context()


def test_the_teardown_functions_are_told_of_an_error_below_the_mark() -> None:
    ended: list[Any] = []
    app = make_app(lambda: flush("page.html", rows=lambda: 1 / 0))
    app.teardown_request(ended.append)
    with pytest.raises(ZeroDivisionError):
        list(pieces_of(app))
    assert [type(each) for each in ended] == [ZeroDivisionError]
    assert not has_request_context()


def test_a_page_that_the_view_throws_away_holds_nothing() -> None:
    ended: list[Any] = []

    def view() -> str:
        flush("page.html", rows=list)
        return "another"

    app = make_app(view)
    app.teardown_request(ended.append)
    assert app.test_client().get("/").text == "another"
    assert ended == [None]
    assert not has_request_context()


def test_an_error_after_the_view_lets_the_request_go() -> None:
    ended: list[Any] = []
    app = make_app(lambda: flush("page.html", rows=list))
    app.teardown_request(ended.append)

    @app.after_request
    def fail(response: Response) -> Response:
        if response.status_code == 200:
            raise RuntimeError("wrong")
        return response

    assert app.test_client().get("/").status_code == 500
    assert [str(each) for each in ended] == ["wrong"]
    assert not has_request_context()


@pytest.mark.parametrize("before", [True, False])
def test_a_page_that_something_wraps_arrives(before: bool) -> None:
    def wrapped(response: Response) -> Response:
        response.response = map(str.upper, cast(Iterator[str], response.response))
        return response

    def view() -> Any:
        if before:
            after_this_request(wrapped)
        return flush("page.html", rows=lambda: [request.path])

    app = make_app(view)
    if not before:
        app.after_request(wrapped)
    assert app.test_client().get("/").text.endswith("<P>/</P></BODY>")
    assert not has_request_context()


def test_an_error_in_the_head_is_answered_as_ever() -> None:
    app = make_app(lambda: flush("broken_head.html"))
    assert app.test_client().get("/").status_code == 500


def test_an_error_below_the_mark_is_logged_shown_and_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def rows() -> Iterator[str]:
        yield "one"
        raise RuntimeError("the database is away")

    app = make_app(lambda: flush("page.html", rows=rows))
    told: list[Any] = []
    pieces = pieces_of(app)
    with got_request_exception.connected_to(lambda sender, exception: told.append(exception), app):
        assert next(pieces).startswith("<head>")
        rest = next(pieces)
        with pytest.raises(RuntimeError, match="the database is away"):
            next(pieces)
    assert rest.startswith("<body><p>one</p>")
    assert '<p role="alert">The rest of this page could not be made.' in rest
    assert "database" not in rest
    assert [str(each) for each in told] == ["the database is away"]
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None


def test_the_session_is_saved_with_the_head(caplog: pytest.LogCaptureFixture) -> None:
    def view() -> Any:
        session["seen"] = True
        return flush("page.html", rows=list)

    client = make_app(view, SECRET_KEY="x").test_client()
    client.get("/", buffered=True)
    with client.session_transaction() as kept:
        assert kept["seen"] is True
    assert caplog.records == []


def test_a_change_of_the_session_below_the_mark_is_lost_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def rows() -> list[str]:
        session["late"] = True
        return []

    client = make_app(lambda: flush("page.html", rows=rows), SECRET_KEY="x").test_client()
    client.get("/", buffered=True)
    with client.session_transaction() as kept:
        assert "late" not in kept
    (record,) = caplog.records
    assert "is lost: do it in the view or above the mark" in record.getMessage()


def test_messages_that_were_taken_above_the_mark_are_taken(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def view() -> Any:
        flash("hello")
        get_flashed_messages()
        return flush("page.html", rows=get_flashed_messages)

    client = make_app(view, SECRET_KEY="x").test_client()
    for _ in range(2):
        assert "<p>hello</p>" in client.get("/").text
    assert caplog.records == []


@pytest.mark.parametrize("above", [True, False])
def test_a_token_of_a_form_is_made_above_the_mark(
    above: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def view() -> Any:
        if above:
            generate_csrf()
        return flush("page.html", rows=lambda: [generate_csrf()])

    def form() -> Any:
        try:
            validate_csrf(request.form["token"])
        except ValidationError:
            return "", 400
        return ""

    app = make_app(view, SECRET_KEY="x")
    app.add_url_rule("/form", "form", form, methods=["POST"])
    client = app.test_client()
    token = client.get("/").text.partition("<p>")[2].partition("</p>")[0]
    answer = client.post("/form", data={"token": token})
    told = [record.getMessage() for record in caplog.records if "csrf_token()" in record.msg]
    assert (answer.status_code, len(told)) == ((200, 0) if above else (400, 1))


def test_what_is_pushed_below_the_mark_is_hinted_to_the_next_request() -> None:
    app = make_app(lambda: flush("page.html", rows=lambda: [push("/static/late.css")]))
    app.config["FIREHOSE_EARLY_HINTS"] = True
    sent: list[Any] = []
    for _ in range(2):
        environ = {"wsgi.early_hints": sent.extend}
        app.test_client().get("/", environ_overrides=environ, buffered=True)
    ((_, value),) = sent
    assert value.count("rel=preload") == 2
    assert "/static/late.css" in value


def test_a_page_that_is_still_being_made_takes_no_hint_away() -> None:
    app = make_app(lambda: flush("page.html", rows=lambda: [push("/static/late.css")]))
    app.config["FIREHOSE_EARLY_HINTS"] = True
    client = app.test_client()
    client.get("/", buffered=True)
    with client.get("/") as begun:
        assert next(begun.iter_encoded()).startswith(b"<head>")
    sent: list[Any] = []
    client.get("/", environ_overrides={"wsgi.early_hints": sent.extend}, buffered=True)
    ((_, value),) = sent
    assert "/static/late.css" in value


def test_an_application_without_firehose_says_so() -> None:
    with Flask("without").test_request_context(), pytest.raises(RuntimeError, match="Firehose"):
        flush("page.html")


def test_it_is_a_method_as_well() -> None:
    assert Firehose.flush is flush


SERVED = """
import threading

from flask import Flask, request
from flask_sockets2.firehose import Firehose, flush

app = Flask(__name__)
Firehose(app)
asked = threading.Event()


def rows():
    asked.wait(float(request.args["seconds"]))
    return 1 / 0 if "broken" in request.args else "rest"


@app.get("/")
def page():
    template = app.jinja_env.from_string("<head></head>{{ flush() }}<p>{{ rows() }}</p>")
    return flush(template, rows=rows)


@app.get("/go")
def go():
    asked.set()
    return ""
"""


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"worker": "gevent"},
        {"worker": "gthread", "args": ["--threads", "2"]},
        {"worker": "sync"},
        None,
    ],
    ids=["ours", "gevent", "gthread", "sync", "flask run"],
)
def test_under_a_server_the_head_arrives_first_and_a_broken_page_has_no_end(
    options: dict[str, Any] | None,
    gunicorn: Callable[..., Server],
    flask_run: Callable[..., Server],
) -> None:
    server = flask_run(SERVED) if options is None else gunicorn(SERVED, **options)
    one_at_a_time = (options or {}).get("worker") == "sync"
    with socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT) as client:
        seconds = 0.3 if one_at_a_time else 5
        client.sendall(f"GET /?seconds={seconds} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        head = until(client, b"</head>")
        assert b"<p>" not in head
        if not one_at_a_time:
            ask(server, "/go")
        assert b"<p>rest</p>" in until(client, b"</p>")
    broken = ask(server, "/?broken&seconds=0")
    assert b"The rest of this page could not be made" in broken
    assert b"0\r\n\r\n" not in broken  # the last chunk of a body, RFC 9112 §7.1
    server.wait_for(lambda: "ZeroDivisionError" in server.output, "the error in the log")
    wait_until(lambda: ask(server, "/go").startswith(b"HTTP/1.1 200"), "the next request")


def until(client: socket.socket, end: bytes) -> bytes:
    data = b""
    while end not in data:
        received = client.recv(65536)
        assert received, data
        data += received
    return data


def ask(server: Server, target: str) -> bytes:
    """Everything that comes back until the connection ends."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT) as client:
        client.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        data = b""
        while received := client.recv(65536):
            data += received
        return data
