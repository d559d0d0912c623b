"""The guides about event streams: their programs, lines, tables and numbers.

These are ``docs/sse.rst``, ``docs/progress.rst``, ``docs/streaming-llm.rst`` and the page about
migrating from Flask-SSE. ``tests/sse/test_clients.py`` tests ``docs/sse-clients.rst``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from flask_sockets2 import sse as package
from flask_sockets2.application.state import state_of
from flask_sockets2.brokers.base import BrokerOptions
from flask_sockets2.settings import rows_of
from flask_sockets2.sse import Progress, PubSub, access, interop, progress, settings, sse
from tests.brokers.servers import RedisServer
from tests.clients import http
from tests.processes import Server, wait_until
from tests.sse.away import Proxy
from tests.sse.reader import Reader
from tests.test_docs import PAGES, ROOT, blocks, run, value_of
from tests.test_docs import settings as settings_of_page

if TYPE_CHECKING:
    from playwright.sync_api import Page

GUIDE = ROOT / "docs" / "sse.rst"
PROGRESS = ROOT / "docs" / "progress.rst"
ANSWERS = ROOT / "docs" / "streaming-llm.rst"
MIGRATION = ROOT / "docs" / "migrating-from-flask-sse.rst"
SCRIPT = (ROOT / "examples" / "static" / "events.js").read_text()
TEXT = " ".join(
    " ".join(path.read_text() for path in (GUIDE, PROGRESS, ANSWERS, MIGRATION)).split()
)

MAY_SEND = {"Authorization": "Bearer change me"}
"""The header field of a request that may publish a greeting."""

DEFAULTS = {row.key: row.default for row in rows_of(settings.Settings).values()}


@pytest.fixture
def guide() -> SimpleNamespace:
    """What the programs define."""
    return SimpleNamespace(**run(GUIDE))


@pytest.fixture
def progress_guide() -> SimpleNamespace:
    """The same of the guide about long jobs."""
    return SimpleNamespace(**run(PROGRESS))


@pytest.fixture
def answers_guide() -> SimpleNamespace:
    """The same of the guide about the answers of a language model."""
    return SimpleNamespace(**run(ANSWERS))


@pytest.fixture
def client(guide: SimpleNamespace) -> FlaskClient:
    client: FlaskClient = guide.app.test_client()
    return client


def test_the_first_stream_brings_its_greeting_and_looks_as_it_is_shown(
    guide: SimpleNamespace, client: FlaskClient
) -> None:
    (shown,) = re.findall(r"looks like::\n\n((?:    .*\n|\n)+)", GUIDE.read_text())
    blocks = [
        block.strip().split("\n") for block in re.sub("^ +", "", shown, flags=re.M).split("\n\n")
    ]
    found = re.search(r'follow\("(.*?)"', client.get("/").text)
    assert found is not None
    guide.app.config["SSE_HEARTBEAT"] = 0.1
    with Reader(guide.app, json.loads(f'"{found[1]}"')) as reader:
        assert client.post("/send", headers=MAY_SEND).text == "Message sent!"
        for block in filter(any, blocks):
            lines = reader.block().split("\n")
            assert [line.partition(":")[0] for line in lines] == [
                line.partition(":")[0] for line in block
            ]
            assert [line for line in lines if line[:2] not in ("id", "re")] == [
                line for line in block if line[:2] not in ("id", "re")
            ]


def test_what_comes_after_the_reading_is_not_missing(
    guide: SimpleNamespace, client: FlaskClient
) -> None:
    stream = client.get("/headlines").json["stream"]  # type: ignore[index]
    with guide.app.app_context():
        sse.publish("It snows", channel="headlines")
    with Reader(guide.app, stream) as reader:
        assert reader.next().data == "It snows"


def test_mail_is_for_its_user(guide: SimpleNamespace, client: FlaskClient) -> None:
    with client.session_transaction() as session:
        session["user"] = "ada"
    for channel, status in (("news", 200), ("user:ada", 200), ("user:bob", 403), ("sse", 403)):
        response = client.get(f"/mail?channel={channel}")
        assert response.status_code == status
        response.close()


def test_each_visitor_has_the_news_and_an_inbox(
    guide: SimpleNamespace, client: FlaskClient
) -> None:
    assert client.get("/inbox").status_code == 401
    with client.session_transaction() as session:
        session["user"] = "ada"
    stream = client.get("/inbox").json["stream"]  # type: ignore[index]
    with guide.app.app_context():
        guide.report_is_ready("bob")
        guide.report_is_ready("ada")
        sse.publish("It rains", channel="news")
    with Reader(guide.app, stream) as reader:
        got = {reader.next().data for _ in range(2)}
    assert got == {"It rains", "Your report is ready."}  # and nothing for bob


def test_the_import_is_told_by_another_process(
    progress_guide: SimpleNamespace, broker: RedisServer
) -> None:
    app = progress_guide.app
    app.config["SOCKETS_BROKER_URL"] = broker.url
    progress_guide.import_rows(broker.url, "7", ["a", "b"])
    (stream,) = re.findall(r"follow\((\".*?\")", app.test_client().get("/import/7").text)
    stream = json.loads(stream)
    with Reader(app, stream) as reader:
        assert reader.next().json() == {"state": "done", "value": 2, "total": 2, "text": "row 2"}
    app.extensions["flask_sockets2"].channels.close()


def test_the_count_is_told_by_a_thread(progress_guide: SimpleNamespace) -> None:
    client = progress_guide.app.test_client()
    stream = client.post("/count/7", json=[1, 2]).json["stream"]
    with Reader(progress_guide.app, stream) as reader:
        events = [reader.next()]
        while events[-1].json()["state"] == "running":
            events.append(reader.next())
    assert {event.type for event in events} == {"progress"}
    assert events[-1].json() == {"state": "done", "value": 2, "total": 2, "text": "row 2"}
    (shown,) = re.findall(r"``(\{\"state\".*?\})``", TEXT)
    assert json.loads(shown).keys() == events[0].json().keys()


def test_the_clock_and_the_countdown_stream(answers_guide: SimpleNamespace) -> None:
    client = answers_guide.app.test_client()
    text = client.get("/countdown").text
    assert text.startswith(":\n\nevent:count\ndata:3\nid:3\n\n")
    assert text.endswith("event:end\ndata:\n\n")
    answers_guide.next_second.__globals__["time"] = SimpleNamespace(
        sleep=lambda seconds: None, strftime=lambda format: "12:00:00"
    )
    response = client.get("/clock")
    chunks: Any = iter(response.response)
    assert [next(chunks) for _ in range(2)] == [b":\n\n", b"data:12:00:00\n\n"]
    response.close()


def test_the_settings_are_complete_and_their_defaults_are_the_real_ones() -> None:
    rows = settings_of_page("SSE_") | settings_of_page("REDIS_")
    assert {name: value_of(default) for name, default in rows.items()} == DEFAULTS


def test_every_setting_that_the_code_or_a_page_names_exists() -> None:
    folder = ROOT / "flask_sockets2" / "sse"
    for path in [*folder.glob("*.py"), *PAGES]:
        assert set(re.findall(r"\bSSE_[A-Z]{2}[A-Z_]*", path.read_text())) <= DEFAULTS.keys()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_method_that_a_page_names_exists(path: Path) -> None:
    named = re.findall(r"(?<![\w./])sse\.(\w+)\(", path.read_text())
    assert set(named) <= set(dir(sse))
    named = re.findall(r"^ +from flask_sockets2\.sse import (.*)", path.read_text(), re.MULTILINE)
    assert {name for names in named for name in re.findall(r"\w+", names)} <= set(package.__all__)


def test_the_numbers_of_the_guide_are_those_of_the_code() -> None:
    options = BrokerOptions()
    for sentence in (
        f"``SOCKETS_HISTORY_SIZE`` messages ({options.history_size})",
        f"``SOCKETS_HISTORY_TTL`` seconds ({options.history_ttl:.0f})",
        f"A stream may have up to {access.MOST_CHANNELS} channels",
        f"(``interval={progress.INTERVAL}``)",
        f"A listener that is {PubSub().maxsize} messages behind",
    ):
        assert sentence in TEXT, sentence
    assert interop._KEPT == 300
    assert "for five minutes after the last one" in TEXT
    assert 1 / progress.INTERVAL == 5
    assert "five a second at most" in TEXT


def test_streams_and_websockets_share_channels_by_the_name_that_is_given() -> None:
    assert 'that of ``channel="news"`` is ``sse:news``' in TEXT
    app = Flask(__name__)
    app.register_blueprint(sse, url_prefix="/stream")
    with app.app_context():
        sse.publish("x", channel="news")
    assert state_of(app).publisher.position("sse:news").offset == 1


def test_two_blueprints_have_the_channels_that_are_shown(guide: SimpleNamespace) -> None:
    assert 'event of ``mail.publish("Hello", channel="news")`` is on ``sse.mail:news``' in TEXT
    with guide.app.app_context():
        guide.mail.publish("Hello", channel="news")
        publisher = state_of(guide.app).publisher
        assert publisher.position("sse.mail:news").offset == 1
        assert publisher.position("sse:news").offset == 0


# -- in a browser ------------------------------------------------------------------------------


@pytest.fixture
def script(tmp_path: Path) -> None:
    """The script of the guide, where its pages look for it."""
    (tmp_path / "static").mkdir()
    (tmp_path / "static" / "events.js").write_text(SCRIPT)


def test_the_guide_shows_the_script_of_the_examples() -> None:
    path = "../examples/static/events.js"
    assert f".. literalinclude:: {path}\n" in GUIDE.read_text()
    assert (GUIDE.parent / path).read_text() == SCRIPT


@pytest.mark.usefixtures("script")
def test_the_page_of_the_guide_stays_and_goes_on_while_the_proxy_has_no_server(
    gunicorn: Callable[..., Server], page: Page
) -> None:
    server = gunicorn(blocks(GUIDE, "python")[0])
    shown = page.locator("#greetings li")

    def greet(number: int) -> None:
        assert http(server.url("/send"), data=b"", headers=MAY_SEND)[0] == 200
        wait_until(lambda: shown.all_inner_texts() == ["Hello!"] * number, f"{number} greetings")

    def tried_again() -> bool:
        page.clock.fast_forward(1000)
        return proxy.refused >= 5

    page.clock.install()
    with closing(Proxy(server.port)) as proxy:
        page.goto(proxy.url("/"))
        greet(1)
        proxy.leave(502)
        wait_until(tried_again, "several attempts")
        assert http(server.url("/send"), data=b"", headers=MAY_SEND)[0] == 200
        proxy.status = 0
        page.clock.fast_forward(120_000)
        greet(3)


HIDE = """(hidden) => {
    Object.defineProperty(Document.prototype, "hidden", { value: hidden, configurable: true });
    document.dispatchEvent(new Event("visibilitychange"));
}"""


@pytest.mark.usefixtures("script")
def test_hidden_tabs_leave_the_connections_to_the_one_that_is_seen(
    gunicorn: Callable[..., Server], page: Page
) -> None:
    """Chromium opens six connections to a server over HTTP/1.1."""
    source = blocks(GUIDE, "python")[0]
    source += "from flask_sockets2.application.state import state_of\n"
    source += "app.add_url_rule('/n', 'n', lambda: str(len(state_of().streams)))\n"
    server = gunicorn(source)

    def open_streams(number: int) -> None:
        wait_until(lambda: http(server.url("/n"))[1] == str(number), f"{number} streams")

    page.goto(server.url("/"))
    open_streams(1)
    page.evaluate(HIDE, True)
    open_streams(0)
    page.context.add_init_script(f"({HIDE})(true)")
    for _ in range(6):
        page.context.new_page().goto(server.url("/"))
    assert http(server.url("/send"), data=b"", headers=MAY_SEND)[0] == 200
    assert http(server.url("/n"))[1] == "0"
    for each in page.context.pages:  # one after the other is seen, and shows what it missed
        each.evaluate(HIDE, False)
        each.wait_for_selector("#greetings li:text-is('Hello!')")
        open_streams(1)
        each.evaluate(HIDE, True)
    page.evaluate(HIDE, False)
    assert http(server.url("/send"), data=b"", headers=MAY_SEND)[0] == 200
    shown = page.locator("#greetings li")
    wait_until(lambda: shown.all_inner_texts() == ["Hello!"] * 2, "each greeting once")
    page.context.close()


@pytest.mark.usefixtures("script")
def test_the_page_of_the_guide_moves_its_bar(
    gunicorn: Callable[..., Server], page: Page, broker: RedisServer
) -> None:
    source = blocks(PROGRESS, "python")[0]
    source += f"\n\napp.config['SOCKETS_BROKER_URL'] = {broker.url!r}\n"
    source += "from flask_sockets2.application.state import state_of\n"
    server = gunicorn(
        source + "app.add_url_rule('/n', 'n', lambda: str(len(state_of().streams)))\n"
    )
    with Progress(broker.url, "job:7", total=400, interval=0) as bar:
        bar.update(100, "row 100")
        page.goto(server.url("/import/7"))
        wait_until(lambda: page.inner_text("#text") == "row 100, running", "the newest state")
        assert page.evaluate("bar.position") == 0.25
        bar.advance(text="row 101")
        wait_until(lambda: page.inner_text("#text") == "row 101, running", "the next step")
    wait_until(lambda: page.inner_text("#text") == "row 101, done", "the end")
    assert page.evaluate("bar.position") == 1
    wait_until(lambda: http(server.url("/n"))[1] == "0", "the stream to be closed")


@pytest.mark.usefixtures("script")
def test_the_page_of_the_guide_shows_the_answer_while_it_grows(
    gunicorn: Callable[..., Server], page: Page
) -> None:
    source = blocks(ANSWERS, "python")[0]
    source += """
from threading import Event
go_on = Event()


def ask_model(question):
    yield "You asked"
    go_on.wait()
    yield f": {question}"


@app.post("/go-on")
def end():
    go_on.set()
    return ""
"""
    server = gunicorn(source)
    page.goto(server.url("/"))
    page.fill("[name=question]", "<b>why?")
    page.click("button")
    shown = page.locator("#answer")
    wait_until(lambda: shown.inner_text() == "You asked", "the first token")
    http(server.url("/go-on"), data=b"")
    wait_until(lambda: shown.inner_text() == "You asked: <b>why?", "the whole answer")


# -- several hosts -------------------------------------------------------------------------


def status_at(app: Flask, host: str, path: str, **headers: str) -> int:
    """The status that a stream is answered with at a host."""
    with app.test_client().get(path, base_url=f"http://{host}", headers=headers) as response:
        return response.status_code


def test_each_shop_has_its_stream_at_its_own_host(guide: SimpleNamespace) -> None:
    for host in "a.example.com", "b.example.com":
        address = guide.shops.test_client().get("/", base_url=f"http://{host}").json["stream"]
        assert address.startswith("/stream?")
        assert status_at(guide.shops, host, address) == 200


def test_without_rules_for_hosts_the_stream_is_at_the_host_of_each_page() -> None:
    app = Flask(__name__)
    app.config["SECRET_KEY"] = "for the tests"
    app.register_blueprint(sse, url_prefix="/stream")
    app.add_url_rule("/", "page", lambda: sse.url("news"))
    for host in "example.com", "www.example.com":
        address = app.test_client().get("/", base_url=f"http://{host}").text
        assert address.startswith("/stream?")
        assert status_at(app, host, address) == 200


@pytest.mark.parametrize(
    ("subdomains", "expected"),
    [([None], "example.com"), (["live"], "live.example.com"), (["live", "two"], "two.example.com")],
)
def test_with_rules_for_subdomains_the_stream_is_at_the_one_that_was_registered_last(
    subdomains: list[str | None], expected: str
) -> None:
    app = Flask(__name__, subdomain_matching=True)
    app.config.update(SECRET_KEY="for the tests", SERVER_NAME="example.com")
    for number, subdomain in enumerate(subdomains):
        app.register_blueprint(sse, url_prefix="/stream", name=f"n{number}", subdomain=subdomain)
    app.add_url_rule("/", "page", lambda: sse.url("news"), subdomain="www")
    address = app.test_client().get("/", base_url="http://www.example.com").text
    assert address.startswith(f"http://{expected}/stream?")
    path = address.removeprefix(f"http://{expected}")
    assert status_at(app, "www.example.com", path) == 404
    page = {"Origin": "http://www.example.com"}
    assert status_at(app, expected, path, **page) == 403
    app.config["SOCKETS_ALLOWED_ORIGINS"] = [page["Origin"]]
    assert status_at(app, expected, path, **page) == 200


def test_the_page_of_a_shop_opens_its_stream_in_a_browser(
    guide: SimpleNamespace, gunicorn: Callable[..., Server], unused_port: int, page: Page
) -> None:
    (block,) = [each for each in blocks(GUIDE, "python") if "subdomain_matching" in each]
    source = block.replace("example.com", f"localhost:{unused_port}")
    imports = "from flask import Flask, request\n"
    imports += "from flask_sockets2.sse import ServerSentEventsBlueprint\n"
    gunicorn(imports + source, target="app:shops", port=unused_port)
    page.goto(f"http://a.localhost:{unused_port}/")
    assert (
        page.evaluate("""() => new Promise((resolve) => {
        const source = new EventSource(JSON.parse(document.body.innerText).stream);
        source.onopen = () => resolve("open");
        source.onerror = () => resolve("refused");
    })""")
        == "open"
    )
