"""Which pages hold event streams of their visitor: real pages, of our site and of others."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.clients import http
from tests.processes import Certificate, Server, chromium_program, servers_in, wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow

APPLICATION = """
from flask import Flask, request
from flask_sockets2 import Sockets
from flask_sockets2.sse import sse

app = Flask(__name__)
app.secret_key = "for the tests"
app.config.from_prefixed_env()
sockets = Sockets(app)
app.register_blueprint(sse, url_prefix="/events")
answers = {}


@app.after_request
def take_down(response):
    if "by" in request.args:
        answers[request.args["by"]] = response.status_code
    return response


@app.get("/page")
def page():
    policy = request.args.get("policy", "strict-origin-when-cross-origin")
    return "<!doctype html><body>", {"Referrer-Policy": policy}


@app.get("/answers")
def show_answers():
    taken = dict(answers)
    answers.clear()
    return taken


@sockets.route("/socket")
def socket(ws):
    ws.send("hello")
"""

# How a page can ask for something. A name that ends in "_silent" sends no Referer.
ASK = """
async (target) => {
  const url = (by) => `${target}/events?by=${by}`;
  const put = (name, attributes) => {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    document.body.append(element);
    return element;
  };
  const silent = {referrerPolicy: "no-referrer"};
  const stream = {headers: {Accept: "text/event-stream"}, mode: "no-cors", cache: "no-store"};
  const fetched = (by, how) => fetch(url(by), how).then((got) => got.body?.cancel(), () => null);
  put("iframe", {src: url("iframe")});
  put("iframe", {src: url("iframe_silent"), referrerpolicy: "no-referrer"});
  put("object", {data: url("object")});
  put("embed", {src: url("embed")});
  put("img", {src: url("img")});
  put("img", {src: url("img_silent"), referrerpolicy: "no-referrer"});
  put("video", {src: url("video"), preload: "auto"});
  put("audio", {src: url("audio"), preload: "auto"});
  put("link", {rel: "stylesheet", href: url("style")});
  put("link", {rel: "prefetch", href: url("prefetch")});
  put("iframe", {name: "there"});
  window.open(url("window"), "there");
  put("iframe", {
    sandbox: "allow-scripts",
    srcdoc: `<script>new EventSource("${url("sandbox")}");
      fetch("${url("sandbox_fetch")}", {mode: "no-cors"}).catch(() => null)<${"/"}script>`,
  });
  const source = new EventSource(url("source"));
  source.onopen = source.onerror = () => source.close();
  await Promise.all([
    fetched("reader", {headers: {Accept: "text/event-stream"}}),
    fetched("fetch"),
    fetched("no_cors", {mode: "no-cors"}),
    fetched("no_cors_events", stream),
    fetched("no_cors_events_silent", {...stream, ...silent}),
  ]);
}
"""

ELEMENTS = {
    *("iframe", "iframe_silent", "object", "embed", "img", "img_silent", "style", "prefetch"),
    *("window", "sandbox", "sandbox_fetch", "video", "audio"),
}
SCRIPTS = {"source", "reader", "fetch", "no_cors", "no_cors_events"}
SILENT = {"no_cors_events_silent"}
EVERYTHING = ELEMENTS | SCRIPTS | SILENT

SCRIPTED = """
(url) => new Promise((resolve) => {
  const there = url.startsWith("ws") ? new WebSocket(url) : new EventSource(url);
  const done = (what) => { there.close(); resolve(what); };
  there.onopen = () => done("open");
  there.onerror = () => done("refused");
})
"""


@pytest.fixture(scope="module")
def named_browser() -> Iterator[Browser]:
    """A browser for which all names that end in .test are this machine, as for a stranger."""
    program = chromium_program()
    if program is None:
        pytest.skip("no Chromium: apt-get install chromium-headless-shell, or set CHROMIUM")
    sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=program,
            args=[
                "--disable-background-networking",
                "--disable-quic",
                "--host-resolver-rules=MAP *.test 127.0.0.1",
            ],
        )
        yield chromium
        chromium.close()


@pytest.fixture
def named_page(named_browser: Browser) -> Iterator[Page]:
    context = named_browser.new_context(ignore_https_errors=True)
    context.set_default_timeout(60_000)
    yield context.new_page()
    context.close()


@pytest.fixture(scope="module", params=["http", "https"])
def server(
    request: pytest.FixtureRequest,
    certificate: Certificate,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    args: list[Any] = []
    if request.param == "https":
        args = ["--certfile", certificate.certfile, "--keyfile", certificate.keyfile]
    with servers_in(tmp_path_factory.mktemp("pages")) as servers:
        yield servers.gunicorn(APPLICATION, args=args, secure=bool(args))


@pytest.fixture
def ask(
    named_page: Page, server: Server, certificate: Certificate
) -> Callable[..., dict[str, int]]:
    """``ask(host, policy)``: what a page of a host is answered, by the way it asks."""

    def ask(host: str, policy: str = "strict-origin-when-cross-origin") -> dict[str, int]:
        named_page.goto(server.url(f"/page?policy={policy}").replace("127.0.0.1", host))
        named_page.evaluate(ASK, server.url("").replace("127.0.0.1", "ours.test").rstrip("/"))
        answers: dict[str, int] = {}
        context = certificate.client_context() if server.secure else None

        def complete() -> bool:
            answers.update(json.loads(http(server.url("/answers"), context=context)[1]))
            return answers.keys() >= EVERYTHING

        wait_until(complete, "every way was answered")
        return answers

    return ask


@pytest.mark.parametrize("host", ["evil.test", "www.ours.test"])
def test_a_page_of_another_origin_holds_no_stream_whichever_way_it_asks(
    host: str, ask: Callable[..., dict[str, int]]
) -> None:
    answers = ask(host)
    assert {way for way, status in answers.items() if status == 200} == set()
    assert answers["iframe"] == answers["object"] == answers["source"] == 403


def test_our_pages_have_streams_for_scripts_and_no_elements_hold_one(
    ask: Callable[..., dict[str, int]], server: Server
) -> None:
    answers = ask("ours.test")
    refused = ELEMENTS if server.secure else ELEMENTS | SILENT
    assert {way for way, status in answers.items() if status != 200} == refused
    assert answers["iframe"] == answers["img"] == 406


def test_over_plain_http_a_browser_has_to_say_which_page_asks(
    ask: Callable[..., dict[str, int]], server: Server
) -> None:
    """A page of any other site can leave its Referer out as well."""
    answers = ask("ours.test", "no-referrer")
    expected = 200 if server.secure else 403
    assert {answers[way] for way in SCRIPTS | SILENT} == {expected}
    if not server.secure:
        server.wait_for_output("over http:// it has to send a Referer")


# -- DNS rebinding -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "hosts"),
    [
        ({}, {"ours.test": "open", "www.ours.test": "open", "evil.test": "open"}),
        (
            {"FLASK_SERVER_NAME": "ours.test"},
            {"ours.test": "open", "www.ours.test": "open", "127.0.0.1": "open"}
            | {"evil.test": "refused", "ours.test.evil.test": "refused"},
        ),
        (
            {"FLASK_TRUSTED_HOSTS": '["ours.test"]'},
            {"ours.test": "open", "www.ours.test": "refused", "evil.test": "refused"},
        ),
        (
            {"FLASK_TRUSTED_HOSTS": '[".ours.test"]', "FLASK_SERVER_NAME": "other.test"},
            {"ours.test": "open", "www.ours.test": "open", "evil.test": "refused"},
        ),
    ],
    ids=["nothing", "SERVER_NAME", "TRUSTED_HOSTS", "both"],
)
def test_a_name_that_a_stranger_bound_to_our_address_opens_nothing_where_hosts_are_known(
    environ: dict[str, str],
    hosts: dict[str, str],
    named_page: Page,
    gunicorn: Callable[..., Server],
) -> None:
    """DNS rebinding: the page, its WebSocket and its streams are of one origin."""
    server = gunicorn(APPLICATION, environ=environ)
    for host, expected in hosts.items():
        named_page.goto(server.url("/page").replace("127.0.0.1", host))
        for url in (server.ws_url("/socket"), server.url("/events")):
            got = named_page.evaluate(SCRIPTED, url.replace("127.0.0.1", host))
            assert (host, url, got) == (host, url, expected)
