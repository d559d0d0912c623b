"""What programs written for Turbo-Flask call, with only the line of its import changed.

Each test names the place where Turbo-Flask's author shows the call: the article "Dynamically Update
Your Flask Web Pages Using Turbo-Flask" (2021), its comments, or the quick start of the
documentation. ``before_first_request``, which the article starts its thread in, is gone since Flask
2.3: the thread is started with the program.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, render_template, request, session
from jinja2 import DictLoader

from flask_sockets2 import Turbo
from flask_sockets2.turbo.turbo_js import VERSION
from tests import clients
from tests.processes import Server, wait_until
from tests.wire_client import connect

pytestmark = pytest.mark.slow

# What turbo.js 8 sends with a form, and a browser with a visit.
FORM = {"Accept": "text/vnd.turbo-stream.html, text/html, application/xhtml+xml"}
VISIT = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}

TEMPLATES = {
    "base.html": """
<!doctype html>
<html>
  <head><title>Load</title>{{ turbo() }}</head>
  <body>{% include "loadavg.html" %}{% block content %}{% endblock %}</body>
</html>
""",
    "index.html": (
        '{% extends "base.html" %}{% block content %}<a href="/page2">2</a>{% endblock %}'
    ),
    "page2.html": '{% extends "base.html" %}{% block content %}<a href="/">1</a>{% endblock %}',
    "loadavg.html": '<div id="load"><td>{{ load1 }}</td><td>{{ load15 }}</td></div>',
}

LOAD = """
    import threading
    import time

    from flask import Flask, render_template
    from flask_sockets2 import Turbo

    app = Flask(__name__)
    turbo = Turbo(app)
    loads = iter(range(1, 10**9))

    @app.route("/")
    def index():
        return render_template("index.html")

    @app.route("/page2")
    def page2():
        return render_template("page2.html")

    @app.context_processor
    def inject_load():
        return {"load1": next(loads), "load15": 0}

    def update_load():
        with app.app_context():
            while True:
                time.sleep(0.1)
                turbo.push(turbo.replace(render_template("loadavg.html"), "load"))

    threading.Thread(target=update_load, daemon=True).start()
"""

REPLACED = re.compile(
    r'<turbo-stream action="replace" target="load"><template>'
    r'<div id="load"><td>(\d+)</td><td>0</td></div></template></turbo-stream>'
)


@pytest.fixture
def templates(tmp_path: Path) -> None:
    (tmp_path / "templates").mkdir()
    for name, text in TEMPLATES.items():
        (tmp_path / "templates" / name).write_text(text)


@pytest.mark.usefixtures("templates")
@pytest.mark.parametrize("how", ["flask_run", "gunicorn", "gthread"])
def test_the_load_averages_update_by_themselves(how: str, request: pytest.FixtureRequest) -> None:
    """Article, "An Example Application" to "Adding a Background Updater Thread"; run as in its
    "Running the Application" and "Deployment Considerations".
    """
    if how == "gthread":
        start: Callable[..., Server] = request.getfixturevalue("gunicorn")
        server = start(LOAD, worker="gthread", args=["--threads", "8"])
    else:
        server = request.getfixturevalue(how)(LOAD)
    for path in ("/", "/page2"):
        status, html, _ = clients.http(server.url(path))
        assert status == 200
        assert '<div id="load">' in html
    found = re.search(r'content="(turbo:all)" data-position="([0-9a-f-]+)"', html)
    assert found is not None
    with (
        connect(server.port, "/turbo-stream") as stock,
        connect(server.port, f"/turbo-stream?s={found[1]}&at={found[2]}") as page,
    ):
        loads = []
        for _ in range(2):
            match = REPLACED.fullmatch(stock.message().decode())
            assert match is not None
            loads.append(int(match[1]))
        assert loads[0] < loads[1]
        texts = [json.loads(page.message()) for _ in range(4)]
        assert [each["event"] for each in texts[:1]] == ["streams"]
        assert REPLACED.fullmatch(texts[-1]["data"])
    assert "Traceback" not in server.output


def test_it_is_initialised_directly() -> None:
    """Quick start, "How to Add to your Project": direct initialization."""
    app = Flask(__name__)
    turbo = Turbo(app)
    with app.app_context():
        assert "script" in turbo.turbo()


def test_it_is_initialised_in_a_factory() -> None:
    """Quick start, "How to Add to your Project": factory function initialization."""
    turbo = Turbo()

    def create_app() -> Flask:
        app = Flask(__name__)
        turbo.init_app(app)
        return app

    first, second = create_app(), create_app()
    for app in (first, second):
        assert app.test_client().get("/turbo-stream").status_code == 426


def page_of(app: Flask) -> str:
    app.jinja_loader = DictLoader({**TEMPLATES, "loadavg.html": ""})
    with app.test_request_context("/"):
        return render_template("base.html")


def test_the_head_loads_turbo_js() -> None:
    """Quick start, "How to Add to your Project": ``{{ turbo() }}``; article, "Configuring
    Turbo-Flask".
    """
    app = Flask(__name__)
    Turbo(app)
    html = page_of(app)
    # A wheel carries a copy of its own; without one it comes from the CDN.
    assert "/turbo.es2017-umd" in html
    assert f"@hotwired/turbo@{VERSION}/dist" in html or "/_flask_sockets2/turbo.es2017" in html


def test_the_head_loads_a_copy_of_ones_own() -> None:
    """Article, comment 39: ``{{ turbo(url=url_for('static', filename='turbo/turbo.js')) }}``."""
    app = Flask(__name__)
    Turbo(app)
    app.jinja_loader = DictLoader(
        {"a.html": "{{ turbo(url=url_for('static', filename='turbo/turbo.js')) }}"}
    )
    with app.test_request_context("/"):
        assert ' src="/static/turbo/turbo.js"></script>' in render_template("a.html")


@pytest.mark.parametrize("route", ["/turbo-stream", "/updates", None])
def test_the_route_of_the_connection_is_configured(route: str | None) -> None:
    """Quick start, "Configuration": ``TURBO_WEBSOCKET_ROUTE``."""
    app = Flask(__name__)
    app.config["TURBO_WEBSOCKET_ROUTE"] = route
    turbo = Turbo(app)
    html = page_of(app)
    if route is None:
        assert '<script type="module" src=' in html
        assert "turbo-stream-from" not in html
        assert app.test_client().get("/turbo-stream").status_code == 404
        turbo.push("<nobody hears it>")
        return
    assert f'data-url="{route}"' in html
    assert turbo.sock is not None
    with turbo.sock.test_client(app).connect(route + "?s=turbo:all") as ws:
        assert [json.loads(ws.receive())["event"] for _ in range(2)] == ["streams", "subscribed"]


@pytest.mark.parametrize("action", ["append", "prepend", "replace", "update"])
def test_streams_are_built_of_content_and_target(action: str) -> None:
    """Quick start, "How to Use"; article, "Adding a Background Updater Thread": the five."""
    turbo = Turbo(Flask(__name__))
    expected = f'<turbo-stream action="{action}" target="todos"><template><p></template>'
    build = getattr(turbo, action)
    assert build("<p>", "todos") == build("<p>", target="todos") == expected + "</turbo-stream>"
    removed = '<turbo-stream action="remove" target="todos"><template></template></turbo-stream>'
    assert turbo.remove("todos") == turbo.remove(target="todos") == removed


def todo_app() -> Flask:
    app = Flask(__name__)
    app.jinja_loader = DictLoader(
        {
            "_todo.html": "<li>{{ todo }}</li>",
            "_todo_input.html": "<input>",
            "index.html": "{{ turbo() }}{{ todos }}",
        }
    )
    turbo = Turbo(app)

    @app.post("/one")
    def one() -> Any:
        if turbo.can_stream():
            return turbo.stream(
                turbo.append(render_template("_todo.html", todo="Milk"), target="todos"),
            )
        return render_template("index.html", todos=["Milk"])

    @app.post("/several")
    def several() -> Any:
        if turbo.can_stream():
            return turbo.stream(
                [
                    turbo.append(render_template("_todo.html", todo="Milk"), target="todos"),
                    turbo.update(render_template("_todo_input.html"), target="form"),
                ]
            )
        return render_template("index.html", todos=["Milk"])

    return app


APPENDED = (
    '<turbo-stream action="append" target="todos"><template><li>Milk</li></template></turbo-stream>'
)
UPDATED = '<turbo-stream action="update" target="form"><template><input></template></turbo-stream>'


@pytest.mark.parametrize(("path", "body"), [("/one", APPENDED), ("/several", APPENDED + UPDATED)])
def test_a_form_is_answered_by_streams(path: str, body: str) -> None:
    """Quick start, "Responding to a POST Request with a Turbo Stream": one, and a list."""
    client = todo_app().test_client()
    response = client.post(path, headers=FORM)
    assert response.mimetype == "text/vnd.turbo-stream.html"
    assert response.text == body
    page = client.post(path, headers=VISIT)
    assert page.mimetype == "text/html"
    assert "[&#39;Milk&#39;]" in page.text


USERS = """
    import threading

    from flask import Flask, request, session
    from flask_sockets2.turbo import Turbo

    app = Flask(__name__)
    app.config["SECRET_KEY"] = "secret"
    turbo = Turbo(app)
    asked = threading.Event()

    @turbo.user_id
    def get_user_id():
        return session.get("user")

    @app.post("/login/<int:user>")
    def login(user):
        session["user"] = user
        return {"can": turbo.can_push(to=user)}

    @app.post("/ask")
    def ask():
        asked.set()
        return {"any": turbo.can_push()}

    def update():
        asked.wait()
        with app.app_context():
            turbo.push(turbo.update("admin", "load"), to=1)
            turbo.push(turbo.update("both", "load"), to=[1, 2])
            turbo.push(turbo.update("missing", "load"), to=3)
            turbo.push([turbo.update("all", "load"), turbo.remove("x")])

    @app.get("/subscribed")
    def subscribed():
        return str(turbo.sock.subscribers("turbo:all"))

    threading.Thread(target=update, daemon=True).start()
"""


def test_some_users_are_pushed_to(flask_run: Callable[..., Server]) -> None:
    """Quick start, "Pushing Updates via WebSocket Streaming": ``@turbo.user_id``, and ``to=`` with
    an id and a list of such; article, "Adding a Background Updater Thread": a list of operations.
    """
    server = flask_run(USERS)

    def cookie_of(user: int) -> str:
        status, body, headers = clients.http(server.url(f"/login/{user}"), data=b"")
        assert (status, json.loads(body)) == (200, {"can": False})
        return str(headers["Set-Cookie"].partition(";")[0])

    admin, moderator = cookie_of(1), cookie_of(2)
    with (
        connect(server.port, "/turbo-stream", {"Cookie": admin}) as one,
        connect(server.port, "/turbo-stream", {"Cookie": moderator}) as two,
        connect(server.port, "/turbo-stream") as nobody,
    ):
        # A connection subscribes behind its 101; what it is sent in between has no place.
        server.wait_for(lambda: subscribed(server) == 3, "three pages")
        assert clients.http(server.url("/ask"), data=b"")[1] == '{"any":true}\n'
        contents = [
            [content(each.message()) for _ in range(n)]
            for each, n in ((one, 3), (two, 2), (nobody, 1))
        ]
    assert contents == [["admin", "both", "all"], ["both", "all"], ["all"]]
    assert "Traceback" not in server.output


def content(message: bytes) -> str:
    match = re.search(r'action="update" target="load"><template>(\w+)<', message.decode())
    assert match is not None
    return match[1]


def subscribed(server: Server) -> int:
    return int(clients.http(server.url("/subscribed"))[1])


def test_the_request_of_the_connection_has_the_session() -> None:
    """Quick start, "Pushing Updates via WebSocket Streaming": the id comes from the user who is
    logged in.
    """
    app = Flask(__name__)
    app.config["SECRET_KEY"] = "secret"
    turbo = Turbo(app)
    seen: list[Any] = []

    @app.get("/login")
    def login() -> str:
        session["user"] = 7
        return ""

    @turbo.user_id
    def get_user_id() -> Any:
        seen.append((request.path, session.get("user")))
        return session.get("user")

    http = app.test_client()
    http.get("/login")
    assert turbo.sock is not None
    with turbo.sock.test_client(http).connect("/turbo-stream") as ws:
        # The process' first connection with a user is asked twice: orders are heard from then on.
        assert seen == [("/turbo-stream", 7)] * 2
        wait_until(lambda: turbo.can_push(to=7), "the connection to have subscribed")
        turbo.push(turbo.remove("load"), to=7)
        assert ws.receive() == turbo.remove("load")
