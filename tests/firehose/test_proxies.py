"""What real proxies and a real browser make of our Link headers, a 103, and a page in pieces."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

import pytest

from tests.processes import Server, nginx_program

if TYPE_CHECKING:
    from playwright.sync_api import Page

StartServer = Callable[..., Server]
Proxy = Callable[..., Server]

pytestmark = pytest.mark.slow

APP = """
import os
import time

from flask import Flask, Response, render_template_string, request
from flask_sockets2.firehose import Firehose, flush, hints, push

app = Flask(__name__)
app.config.from_prefixed_env()
app.secret_key = "for the tests"
firehose = Firehose(app)

PAGE = '''<!doctype html>
<html><head><title>Page</title>
<link rel="stylesheet" href="{{ push('/slow.css', as='style') }}">
</head>{{ flush() }}<body><p id="made">{{ work() }}</p></body></html>'''


order = []


def work():
    # Until the browser has asked for as many files as the address says, at most a minute.
    deadline = time.monotonic() + 60
    while len(order) < request.args.get("files", 0, int) and time.monotonic() < deadline:
        time.sleep(0.01)
    order.append("page made")
    return "made"


@app.get("/order")
def show_order():
    return order


@app.get("/hinted")
@hints("/slow.css")
def hinted():
    return render_template_string(PAGE, work=work)


@app.get("/learned")
def learned():
    return render_template_string(PAGE, work=work)


@app.get("/flushed")
def flushed():
    return flush(app.jinja_env.from_string(PAGE), work=work)


@app.get("/myapp")
def pushing():
    push("/a,b.css", **{"as": "style", "rel": "preload"})
    push("/c.css", "nopush", **{"as": "style", "rel": "preload"})
    return "<p>pushed"


@app.get("/slow.css")
@app.get("/a,b.css")
@app.get("/c.css")
def css():
    order.append("style asked for")
    time.sleep(0.3)
    fresh = {"Cache-Control": "max-age=60"}
    return Response("p { color: green }", mimetype="text/css", headers=fresh)


MODULES = '''<!doctype html>
<title>Modules</title>
<script type="module" src="{{ push('/own.mjs') }}"></script>
<script type="module" src="{{ push('/typed.js', type='module') }}"></script>
<p id="made">{{ work() }}</p>'''


@app.get("/modules")
@hints("/own.mjs", "</typed.js>; type=module")
def modules():
    return render_template_string(MODULES, work=work)


@app.get("/own.mjs")
@app.get("/typed.js")
def module():
    order.append(request.path)
    fresh = {"Cache-Control": "max-age=60"}
    code = "(window.ran ??= []).push(new URL(import.meta.url).pathname); export {};"
    return Response(code, mimetype="text/javascript", headers=fresh)


@app.get("/favicon.ico")
def favicon():
    return "", 204
"""

HOP = {"FLASK_FIREHOSE_HOP_HEADER": "X-Early-Hints"}

# The configuration of Flask-Firehose's README, "Configure NGINX".
README = """\
upstream upstream { server 127.0.0.1:8000; }
location = /myapp {
    proxy_pass http://upstream;
    http2_push_preload on;
}
location / {
    proxy_pass http://upstream;
}
"""

# The one for WebSockets, which is where older versions of nginx meet a 103.
HTTP_1_1 = """\
location / {
    proxy_pass http://127.0.0.1:8000;
    proxy_http_version 1.1;
    proxy_set_header Host $http_host;
    proxy_set_header Connection "";
}
"""


EARLY = ["style asked for", "page made"]


def nginx_version() -> tuple[int, ...]:
    """Pushes were removed in 1.25.1; from 1.29 on a 103 is understood."""
    program = nginx_program()
    assert program is not None
    shown = subprocess.run([program, "-v"], capture_output=True, text=True, timeout=60, check=True)
    return tuple(int(part) for part in re.findall(r"/(\d+)\.(\d+)\.(\d+)", shown.stderr)[0])


def style_of(page: Page, url: str) -> Any:
    """How the browser came to load the stylesheet: Resource Timing, and the server."""
    page.goto(url)
    assert page.inner_text("#made") == "made"
    assert page.evaluate("getComputedStyle(document.querySelector('p')).color") == "rgb(0, 128, 0)"
    found = page.evaluate(
        """() => {
            const navigation = performance.getEntriesByType("navigation")[0];
            const styles = performance.getEntriesByType("resource")
                .filter((each) => each.name.endsWith("/slow.css"));
            return {
                number: styles.length,
                by: styles[0].initiatorType,
                interim: navigation.firstInterimResponseStart,
                protocol: navigation.nextHopProtocol,
            };
        }"""
    )
    assert found["number"] == 1
    found["order"] = page.request.get(urljoin(url, "/order"), ignore_https_errors=True).json()
    assert found["order"].count("style asked for") == 1  # not a second time for the page
    return found


@pytest.mark.parametrize(
    ("proxy_name", "options"),
    [
        ("haproxy", {}),
        ("haproxy", {"worker": "gevent"}),
        ("haproxy", {"worker": "gthread", "args": ["--threads", "4"]}),
        ("caddy", {}),
    ],
    ids=["haproxy, ours", "haproxy, gevent", "haproxy, gthread", "caddy, ours"],
)
def test_the_browser_fetches_before_the_page_is_made(
    proxy_name: str,
    options: dict[str, Any],
    gunicorn: StartServer,
    request: pytest.FixtureRequest,
    trusting_page: Page,
) -> None:
    proxy = request.getfixturevalue(proxy_name)(gunicorn(APP, environ=HOP, **options))
    found = style_of(trusting_page, proxy.url("/hinted?files=1"))
    assert found["protocol"] == "h2"
    assert found["by"] == "early-hints"
    assert found["interim"] > 0
    assert found["order"] == EARLY


def test_what_the_last_page_has_pushed_is_hinted_to_the_next(
    gunicorn: StartServer, haproxy: Proxy, trusting_page: Page
) -> None:
    # Of static files only; this one is no file, but it has the name of their endpoint.
    app = APP.replace('@app.get("/slow.css")\n', '@app.get("/slow.css", endpoint="static")\n')
    app = app.replace("Flask(__name__)", "Flask(__name__, static_folder=None)")
    proxy = haproxy(gunicorn(app, environ=HOP))
    trusting_page.request.get(proxy.url("/learned"), ignore_https_errors=True)
    found = style_of(trusting_page, proxy.url("/learned?files=2"))  # behind the first page
    assert found["by"] == "early-hints"
    assert found["order"] == ["page made", *EARLY]


@pytest.mark.parametrize("early", [True, False], ids=["by a 103", "by the header"])
def test_a_module_is_fetched_once(
    early: bool, gunicorn: StartServer, haproxy: Proxy, trusting_page: Page
) -> None:
    proxy = haproxy(gunicorn(APP, environ=HOP if early else {}))
    trusting_page.goto(proxy.url(f"/modules?files={2 if early else 0}"))
    trusting_page.wait_for_function("window.ran?.length === 2")
    order = trusting_page.request.get(proxy.url("/order"), ignore_https_errors=True).json()
    assert sorted(order) == ["/own.mjs", "/typed.js", "page made"]
    if early:
        assert order[-1] == "page made"
        how = trusting_page.evaluate(
            "performance.getEntriesByType('resource').map((each) => each.initiatorType)"
        )
        assert how == ["early-hints", "early-hints"]


@pytest.mark.parametrize("server", ["haproxy", "secure_nginx", "nothing"])
def test_the_head_of_a_page_comes_first_through_everything(
    server: str, gunicorn: StartServer, request: pytest.FixtureRequest, trusting_page: Page
) -> None:
    app = gunicorn(APP)
    if server == "secure_nginx":
        app = request.getfixturevalue(server)(app, HTTP_1_1)
    elif server == "haproxy":
        app = request.getfixturevalue(server)(app)
    found = style_of(trusting_page, app.url("/flushed?files=1"))
    assert found["by"] == "link"
    assert found["order"] == EARLY


def test_by_default_nothing_breaks_behind_an_older_nginx(
    gunicorn: StartServer, secure_nginx: Proxy, trusting_page: Page
) -> None:
    proxy = secure_nginx(gunicorn(APP), HTTP_1_1)
    found = style_of(trusting_page, proxy.url("/hinted"))
    assert found["by"] == "link"
    assert found["interim"] == 0  # no 103
    assert found["order"] == EARLY[::-1]


def test_what_the_default_prevents(
    gunicorn: StartServer, secure_nginx: Proxy, trusting_page: Page
) -> None:
    if nginx_version() >= (1, 29):
        return
    proxy = secure_nginx(gunicorn(APP, environ={"FLASK_FIREHOSE_EARLY_HINTS": "true"}), HTTP_1_1)
    with pytest.raises(Exception, match="ERR_HTTP2_PROTOCOL_ERROR"):
        trusting_page.goto(proxy.url("/hinted"))


def test_a_browser_that_pretends_to_be_a_proxy_gets_no_103(
    gunicorn: StartServer, secure_nginx: Proxy, trusting_page: Page
) -> None:
    proxy = secure_nginx(gunicorn(APP), HTTP_1_1)
    trusting_page.set_extra_http_headers({"X-Early-Hints": "1"})
    assert style_of(trusting_page, proxy.url("/hinted"))["interim"] == 0


def test_nginx_makes_pushes_of_the_links_as_the_readme_configures_it(
    gunicorn: StartServer, secure_nginx: Proxy
) -> None:
    proxy = secure_nginx(gunicorn(APP), README)
    done = subprocess.run(
        ["nghttp", "--no-verify-peer", "-v", "-n", proxy.url("/myapp")],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    promised = re.findall(r"recv \(stream_id=\d+\) :path: (\S+)", done.stdout)
    assert promised == (["/a,b.css"] if nginx_version() < (1, 25, 1) else []), done.stdout
