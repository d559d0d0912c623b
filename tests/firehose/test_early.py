"""When a response 103 is sent, and with what; ``wsgi.early_hints`` is the server's."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Blueprint, Flask, Response, redirect, render_template_string, request, url_for
from flask.views import MethodView

from flask_sockets2.firehose import Firehose, early, early_hints, hints, link, push
from flask_sockets2.firehose.pushes import EXTENSION

STYLE = "</static/app.css>; rel=preload; as=style"
NAVIGATION = {"Sec-Fetch-Mode": "navigate", "X-Early-Hints": "1"}


class Server:
    """What a server sends as 103: the values of the Link fields."""

    def __init__(self, app: Flask) -> None:
        self.client = app.test_client()
        self.sent: list[str] = []
        self.function: Any = self._take

    def _take(self, headers: Any) -> None:
        for name, value in headers:
            assert name == "Link"
            self.sent.append(value)

    def get(self, path: str = "/", method: str = "GET", **environ: Any) -> Any:
        """Ask as a browser does that navigates, over a hop that is known."""
        self.sent.clear()
        headers = environ.pop("headers", NAVIGATION)
        overrides = {"wsgi.early_hints": self.function, **environ}
        return self.client.open(path, method=method, headers=headers, environ_overrides=overrides)


def make_app(**config: Any) -> Flask:
    app = Flask("early")
    app.testing = True
    app.config["FIREHOSE_HOP_HEADER"] = "X-Early-Hints"
    app.config.update(config)
    Firehose(app, connector=None)
    return app


def with_view(view: Callable[[], Any], **config: Any) -> Server:
    app = make_app(**config)
    app.add_url_rule("/", "index", view, methods=["GET", "POST"])
    return Server(app)


@hints("/static/app.css")
def hinted() -> str:
    return "page"


def test_hints_go_out_before_the_view_and_stand_in_the_response_too() -> None:
    seen: list[list[str]] = []

    @hints("/static/app.css", "https://cdn.example.com", link("/data", as_="fetch"))
    def view() -> str:
        seen.append([*server.sent])
        return "page"

    server = with_view(view)
    answer = server.get()
    value = f"{STYLE}, <https://cdn.example.com>; rel=preconnect, "
    value += "</data>; rel=preload; as=fetch; crossorigin"
    assert seen == [[value]]
    assert answer.headers["Link"] == value


def test_early_hints_are_sent_when_they_are_called() -> None:
    results: list[Any] = []

    def view() -> str:
        results.append(early_hints("/static/app.css"))
        results.append([*server.sent])
        early_hints("</data>; rel=preload; as=fetch")
        return push("/static/app.css")

    server = with_view(view)
    answer = server.get()
    assert results == [True, [STYLE]]
    assert server.sent[1:] == ["</data>; rel=preload; as=fetch; crossorigin"]
    assert answer.headers["Link"] == f"{STYLE}, </data>; rel=preload; as=fetch; crossorigin"


@pytest.mark.parametrize(
    ("setting", "request_", "sent"),
    [
        ("auto", {}, True),
        ("auto", {"headers": {"Sec-Fetch-Mode": "navigate"}}, False),
        ("auto", {"headers": {"X-Early-Hints": "1"}}, False),
        ("auto", {"headers": {**NAVIGATION, "Sec-Fetch-Mode": "cors"}}, False),
        ("auto", {"headers": {**NAVIGATION, "X-Early-Hints": "0"}}, False),
        # The server itself speaks HTTP/2 with the browser.
        ("auto", {"headers": {"Sec-Fetch-Mode": "navigate"}, "SERVER_PROTOCOL": "HTTP/2.0"}, True),
        (True, {"headers": {}}, True),
        (True, {"headers": {"Sec-Fetch-Mode": "navigate"}}, True),
        (True, {"headers": {"Sec-Fetch-Mode": "cors"}}, False),
        (False, {}, False),
        *((each, {"SERVER_PROTOCOL": "HTTP/1.0"}, False) for each in ("auto", True)),
        *((each, {"method": "POST"}, False) for each in ("auto", True)),
        *((each, {"method": "HEAD"}, False) for each in ("auto", True)),
        *((each, {"headers": {**NAVIGATION, "Upgrade": "h2c"}}, False) for each in ("auto", True)),
    ],
)
def test_the_policy(setting: Any, request_: dict[str, Any], sent: bool) -> None:
    server = with_view(hinted, FIREHOSE_EARLY_HINTS=setting)
    answer = server.get(**request_)
    assert server.sent == ([STYLE] if sent else [])
    assert answer.headers["Link"] == STYLE


def test_without_a_setting_no_hop_is_known() -> None:
    server = with_view(hinted, FIREHOSE_HOP_HEADER=None)
    server.get()
    assert server.sent == []


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("FIREHOSE_EARLY_HINTS", "always"),
        ("FIREHOSE_HOP_HEADER", "X Early"),
        ("FIREHOSE_LEARN", "no"),
    ],
)
def test_a_setting_that_means_nothing_is_named_by_the_page_too(setting: str, value: Any) -> None:
    server = with_view(hinted)
    server.client.application.config[setting] = value  # too late for an error at the start
    with pytest.raises(ValueError, match=f"{setting} must be .*, got '{value}'"):
        server.get()


@pytest.mark.parametrize("function", [None, "no function"])
def test_a_server_that_has_none_is_no_error(function: Any) -> None:
    results: list[bool] = []

    def view() -> str:
        results.append(early_hints("/static/app.css"))
        return "page"

    server = with_view(view)
    server.function = function
    assert server.get().headers["Link"] == STYLE
    assert results == [False]


@pytest.mark.parametrize(
    ("error", "level"),
    [
        (OSError("broken pipe"), logging.INFO),
        (RuntimeError("a server's fault"), logging.ERROR),
        (TypeError("takes no argument"), logging.ERROR),
    ],
)
def test_a_server_that_fails_costs_the_hint_and_not_the_page(
    error: Exception, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(headers: Any) -> None:
        raise error

    server = with_view(hinted)
    server.function = fail
    with caplog.at_level(logging.INFO, "flask_sockets2.firehose"):
        answer = server.get()
    assert (answer.status_code, answer.text) == (200, "page")
    assert [record.levelno for record in caplog.records] == [level]


def test_a_line_break_is_refused_before_the_server_is_asked() -> None:
    def view() -> str:
        with pytest.raises(ValueError, match="url_for"):
            early_hints("/a\r\nSet-Cookie: x.css")
        return ""

    server = with_view(view)
    answer = server.get()
    assert server.sent == []
    assert "Link" not in answer.headers


def test_an_error_has_no_links_of_hints() -> None:
    @hints("/static/app.css")
    def view() -> Any:
        return "gone", 410

    assert "Link" not in with_view(view).get().headers


def test_a_function_makes_its_link_in_the_request() -> None:
    app = make_app()

    @hints(lambda: url_for("static", filename="app.css"))
    def view() -> str:
        return "page"

    app.add_url_rule("/", "index", view)
    server = Server(app)
    server.get(SCRIPT_NAME="/prefix")
    assert server.sent == ["</prefix/static/app.css>; rel=preload; as=style"]


def test_hints_stand_above_or_below_the_route_and_on_a_class() -> None:
    app = make_app()
    pages = Blueprint("pages", __name__)

    @hints("/static/app.css")
    @pages.get("/above")
    def above() -> str:
        return ""

    @pages.get("/below")
    @hints("/static/app.css")
    def below() -> str:
        return ""

    class Page(MethodView):
        decorators = (hints("/static/app.css"),)

        def get(self) -> str:
            return ""

    pages.add_url_rule("/class", view_func=Page.as_view("page"))
    app.register_blueprint(pages)
    server = Server(app)
    for path in ("/above", "/below", "/class"):
        server.get(path)
        assert server.sent == [STYLE], path


def test_a_wrong_hint_is_found_when_the_program_starts() -> None:
    with pytest.raises(ValueError, match="as=…"):
        hints("/data")


def test_an_application_without_firehose_says_so() -> None:
    with Flask("without").test_request_context(), pytest.raises(RuntimeError, match="Firehose"):
        early_hints("/a.css")


# -- what the last page has pushed ---------------------------------------------------------------


def test_the_next_request_of_an_endpoint_is_hinted_what_the_last_page_pushed() -> None:
    pushed = ["/static/app.css"]
    server = with_view(lambda: Response(" ".join(push(url) for url in pushed)))
    server.get()
    assert server.sent == []
    server.get()
    assert server.sent == [STYLE]
    pushed[:] = ["/static/b.js", "/static/app.css"]
    server.get()
    assert server.sent == [STYLE]
    server.get()
    assert server.sent == [f"</static/b.js>; rel=preload; as=script, {STYLE}"]
    pushed.clear()
    server.get()
    server.get()
    assert server.sent == []


def test_what_is_declared_comes_first_and_all_in_one_response() -> None:
    """Chromium looks at the first one only."""

    @hints("/static/first.css")
    def view() -> str:
        return push("/static/app.css")

    server = with_view(view)
    for _ in range(2):
        server.get()
    assert server.sent == [f"</static/first.css>; rel=preload; as=style, {STYLE}"]


def test_what_may_be_about_one_user_is_not_learned() -> None:
    urls = [
        "/user/7/photo.png",
        "https://elsewhere.example/static/a.css",
        "/nowhere.css",
        "/static",
        "/static/photos/Ada.png",
        "/static/app.css",
    ]
    app = make_app()
    app.add_url_rule("/user/<int:number>/photo.png", "photo", lambda number: "")
    app.add_url_rule("/", "index", lambda: "".join(push(url) for url in urls))
    server = Server(app)
    for _ in range(2):
        server.get()
    assert server.sent == [STYLE]


def test_below_a_prefix_static_files_are_known_too() -> None:
    server = with_view(lambda: push(url_for("static", filename="app.css")))
    for _ in range(2):
        server.get(SCRIPT_NAME="/prefix")
    assert server.sent == ["</prefix/static/app.css>; rel=preload; as=style"]


@pytest.mark.parametrize(
    ("view", "request_"),
    [
        (lambda: (push("/static/app.css"), 404), {}),
        (lambda: [push("/static/app.css"), redirect("/elsewhere")][1], {}),
        (lambda: {"url": push("/static/app.css")}, {}),
        (lambda: push("/static/app.css"), {"method": "POST"}),
        (lambda: push("/static/app.css"), {"headers": {"Sec-Fetch-Mode": "cors"}}),
    ],
)
def test_other_answers_teach_nothing(view: Callable[[], Any], request_: dict[str, Any]) -> None:
    server = with_view(view)
    server.get(**request_)
    server.get()
    assert server.sent == []


def test_other_answers_of_an_endpoint_do_not_make_it_forget() -> None:
    answers: list[Callable[[], Any]] = [
        lambda: push("/static/app.css"),
        lambda: {},
        lambda: ("", 404),
        lambda: "<turbo-frame>",
        lambda: "",
    ]
    server = with_view(lambda: answers.pop(0)())
    server.get()
    server.get(headers={**NAVIGATION, "Accept": "application/json"})
    server.get()
    server.get(headers={"Sec-Fetch-Mode": "cors"})
    server.get()
    assert server.sent == [STYLE]


def test_hosts_and_prefixes_learn_apart() -> None:
    """They may be those of tenants."""
    server = with_view(lambda: push(url_for("static", filename=f"{request.host}.css")))
    places: list[dict[str, Any]] = [
        {"HTTP_HOST": "one.example"},
        {"HTTP_HOST": "other.example"},
        {"HTTP_HOST": "other.example", "SCRIPT_NAME": "/prefix"},
    ]
    for place in places:
        server.get(**place)
        assert server.sent == []
    server.get(**places[0])
    assert server.sent == ["</static/one.example.css>; rel=preload; as=style"]
    server.get(**places[2])
    assert server.sent == ["</prefix/static/other.example.css>; rel=preload; as=style"]


INVENTED = early._MAX_PLACES + 200


def test_hosts_that_somebody_makes_up_displace_no_other() -> None:
    server = with_view(lambda: push("/static/app.css"))
    server.get(HTTP_HOST="one.example")
    for number in range(INVENTED):
        server.get(HTTP_HOST=f"{number}.invented.example")
    assert len(server.client.application.extensions[EXTENSION].learned) == early._MAX_PLACES
    server.get(HTTP_HOST="one.example")
    assert server.sent == [STYLE]


def test_a_host_that_comes_after_them_is_learned_and_stays() -> None:
    server = with_view(lambda: push("/static/app.css"))
    for number in range(early._MAX_PLACES):
        server.get(HTTP_HOST=f"{number}.invented.example")
    for _ in range(2):
        server.get(HTTP_HOST="late.example")
    for number in range(INVENTED, INVENTED + 50):
        server.get(HTTP_HOST=f"{number}.invented.example")
    server.get(HTTP_HOST="late.example")
    assert server.sent == [STYLE]


def test_a_host_is_the_same_in_every_case() -> None:
    server = with_view(lambda: push("/static/app.css"))
    server.get(HTTP_HOST="One.Example")
    server.get(HTTP_HOST="one.example")
    assert server.sent == [STYLE]


STEERING: dict[str, tuple[Callable[[], str | None], str, dict[str, Any]]] = {
    "query": (lambda: request.args.get("theme"), "/?theme=missing", {}),
    "path": (lambda: (request.view_args or {}).get("theme"), "/of/missing", {}),
    "header": (lambda: request.headers.get("X-Theme"), "/", {"HTTP_X_THEME": "missing"}),
    "cookie": (lambda: request.cookies.get("theme"), "/", {"HTTP_COOKIE": "theme=missing"}),
    "up": (lambda: request.headers.get("X-Theme"), "/", {"HTTP_X_THEME": "../app"}),
    "folder": (lambda: request.headers.get("X-Theme"), "/", {"HTTP_X_THEME": "folder"}),
}


@pytest.mark.parametrize("by", STEERING)
@pytest.mark.parametrize("blueprint", [False, True], ids=["application", "blueprint"])
def test_a_visitor_makes_nobody_load_a_file_that_is_missing(
    by: str, blueprint: bool, tmp_path: Path
) -> None:
    chosen, path, environ = STEERING[by]
    folder = tmp_path / "static"
    (folder / "folder.css").mkdir(parents=True)
    (folder / "app.css").touch()
    (tmp_path / "app.css").touch()
    endpoint = "static"
    app = make_app()
    if blueprint:
        inner = Blueprint("inner", "early", static_folder=folder, static_url_path="/files")
        outer = Blueprint("outer", "early", url_prefix="/outer")
        outer.register_blueprint(inner)
        app.register_blueprint(outer)
        endpoint = "outer.inner.static"
    else:
        app.static_folder = str(folder)

    def view(theme: str = "") -> str:
        return push(url_for(endpoint, filename=f"{chosen() or 'app'}.css"))

    app.add_url_rule("/", "index", view)
    app.add_url_rule("/of/<theme>", "index", view)
    server = Server(app)
    server.client = app.test_client(use_cookies=False)  # those of the environ
    name = {"up": "../app", "folder": "folder"}.get(by, "missing")
    assert f"/{name}.css>" in server.get(path, **environ).headers["Link"]
    server.get()
    assert server.sent == []
    for _ in range(2):
        server.get(path, **environ)
        server.get()
    known = "/outer/files" if blueprint else "/static"
    with_the_file = [f"<{known}/app.css>; rel=preload; as=style"]
    # What the address cannot tell apart is forgotten with a page that has no such file.
    assert server.sent == (with_the_file if by == "query" else [])
    server.get()
    assert server.sent == with_the_file


@pytest.mark.parametrize("query", ["theme=dark", "v=1", "none=1", "%00", "a"])
def test_a_page_with_a_query_teaches_nothing_and_has_what_others_taught(query: str) -> None:
    def view() -> str:
        theme = request.args.get("theme", "app")
        if "none" in request.args:
            return ""
        return push(f"/static/{theme}.css?v={request.args.get('v', '')}".removesuffix("?v="))

    server = with_view(view)
    server.get(f"/?{query}")
    server.get(f"/?{query}")
    assert server.sent == []
    server.get()
    for _ in range(2):
        server.get(f"/?{query}")
        assert server.sent == [STYLE]
    server.get()
    assert server.sent == [STYLE]


def test_a_file_of_a_folder_that_is_elsewhere_is_learned() -> None:
    """A proxy or a CDN serves it."""
    app = make_app()
    app.static_folder = "/nowhere"
    app.add_url_rule("/", "index", lambda: push("/static/app.css"))
    server = Server(app)
    for _ in range(2):
        server.get()
    assert server.sent == [STYLE]


MODULE = "</static/app.mjs>; rel=modulepreload"


def test_a_module_is_hinted_and_learned_as_one() -> None:
    server = with_view(lambda: [str(early_hints("/static/app.mjs")), *server.sent][-1])
    answer = server.get()
    assert server.sent == [MODULE]
    assert answer.headers["Link"] == MODULE
    server = with_view(lambda: push("/static/app.mjs"))
    for _ in range(2):
        server.get()
    assert server.sent == [MODULE]


def test_an_application_or_a_view_may_do_without() -> None:
    @hints(learn=False)
    def view() -> str:
        return push("/static/app.css")

    for server in (
        with_view(view),
        with_view(lambda: push("/static/app.css"), FIREHOSE_LEARN=False),
    ):
        for _ in range(2):
            server.get()
        assert server.sent == []


def test_applications_learn_apart() -> None:
    first, second = (with_view(lambda: push("/static/app.css")) for _ in range(2))
    first.get()
    second.get()
    assert second.sent == []


def test_the_memory_of_pushes_is_not_that_of_hints() -> None:
    """A browser whose cache was cleared needs them again."""
    app = make_app(SECRET_KEY="x")
    Firehose(app)
    app.add_url_rule("/", "index", lambda: push("/static/app.css"))
    server = Server(app)
    server.get()
    answer = server.get()
    assert server.sent == [STYLE]
    assert "Link" not in answer.headers


def test_what_is_learned_is_bounded() -> None:
    server = with_view(lambda: "".join(push(f"/static/{n:04}.css") for n in range(30)))
    for _ in range(2):
        server.get()
    assert server.sent[0].count("rel=preload") == 20
    server = with_view(lambda: "".join(push(f"/static/{n}{'x' * 400}.css") for n in range(20)))
    for _ in range(2):
        server.get()
    assert 1600 < len(server.sent[0]) <= 2048


def test_what_does_not_fit_into_a_response_103_makes_no_empty_one() -> None:
    server = with_view(hints(f"/{'x' * 2100}.css")(lambda: "page"))
    assert len(server.get().headers["Link"]) > 2100
    assert server.sent == []


def test_threads_learn_without_a_lock() -> None:
    app = make_app(FIREHOSE_EARLY_HINTS=True)
    app.add_url_rule("/<kind>", "page", lambda kind: push(f"/static/{kind}.css"))
    found: set[str] = set()

    def visit(kind: str) -> None:
        server = Server(app)
        for _ in range(50):
            server.get(f"/{kind}")
            found.update(server.sent)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=visit, args=(kind,)) for kind in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(interval)
    assert found <= {f"</static/{kind}.css>; rel=preload; as=style" for kind in "ab"}
    assert found


def test_a_template_is_enough() -> None:
    page = "{{ push('/static/app.css', as='style') }}"
    server = with_view(lambda: render_template_string(page))
    for _ in range(2):
        server.get()
    assert server.sent == [STYLE]
