"""What the documentation says holds: its programs run, its settings exist, its blocks work."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict
from inspect import signature
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from flask import Flask, abort, url_for

from flask_sockets2 import (
    Connection,
    Limits,
    Sockets,
    WebSocketError,
    WebSocketHandler,
    WebSocketRejected,
    extension,
)
from flask_sockets2.brokers.base import BrokerOptions
from flask_sockets2.view import OPTIONS
from tests.clients import echoed
from tests.processes import Server, Servers
from tests.proxies import nginx_in_front
from tests.test_cli import doctor

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.rst"))
PAGES = [ROOT / "README.rst", *DOCS]
RECIPES = ROOT / "docs" / "recipes.rst"

APPLICATION = {
    "allowed_origins": None,
    "max_connections": None,
    "handshake_timeout": WebSocketHandler.handshake_timeout,
    "metrics_route": None,
    "broker_url": "memory://",
    "channel_prefix": BrokerOptions().prefix,
    **{name: value for name, value in asdict(BrokerOptions()).items() if name != "prefix"},
}
DEFAULTS = {f"SOCKETS_{name.upper()}": value for name, value in asdict(Limits()).items()} | {
    f"SOCKETS_{name.upper()}": value for name, value in APPLICATION.items()
}

WORDS = {"None": None, "none": None, "same origin": None, "False": False, "off": False}

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


def settings_of_the_readme() -> dict[str, str]:
    """The settings of its table and their defaults, in order."""
    text = (ROOT / "README.rst").read_text()
    _, _, table = text.partition("\nSettings\n")
    body = re.split(r"^=+ =+ =+$", table, flags=re.MULTILINE)[2]
    return dict(re.findall(r"^``(SOCKETS_\w+)`` +(\S+(?: (?:MiB|origin))?) ", body, re.MULTILINE))


@pytest.mark.parametrize("path", DOCS, ids=name_of)
def test_the_programs_of_a_page_run_one_after_the_other(path: Path) -> None:
    namespace: dict[str, Any] = {"__name__": path.stem}
    for block in blocks(path, "python"):
        exec(compile(block, path.name, "exec"), namespace)


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
    assert set(re.findall(r"SOCKETS_[A-Z_]+", path.read_text())) <= DEFAULTS.keys()


def test_the_table_of_the_module_is_complete_and_its_defaults_are_the_real_ones() -> None:
    rows = re.findall(
        r"^``(SOCKETS_\w+)`` +(\S+(?: \w+)?)  ", extension.__doc__ or "", re.MULTILINE
    )
    assert {setting: value_of(default) for setting, default in rows} == DEFAULTS


def test_the_table_of_the_readme_is_complete_and_its_defaults_are_the_real_ones() -> None:
    settings = settings_of_the_readme()
    assert {setting: value_of(default) for setting, default in settings.items()} == DEFAULTS


def test_a_route_takes_the_settings_of_the_readme_before_the_handshake_timeout() -> None:
    first, *others = [name.removeprefix("SOCKETS_").lower() for name in settings_of_the_readme()]
    last = others.index("handshake_timeout")
    assert first == "allowed_origins"
    assert set(others[:last]) == set(extension.LIMITS)
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


def test_the_reference_gives_the_parameters_that_a_method_has() -> None:
    text = (ROOT / "docs" / "websocket.rst").read_text()
    for name, given in re.findall(r"^``(?:ws|Connection)\.(\w+)\((.*)\)``$", text, re.MULTILINE):
        parameters = signature(getattr(Connection, name)).parameters.values()
        taken = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        names = [parameter.partition("=")[0] for parameter in given.split(", ") if parameter]
        assert names == [parameter for parameter in taken if parameter != "self"], name


def test_the_readme_links_to_every_page() -> None:
    text = (ROOT / "README.rst").read_text()
    for path in DOCS:
        assert f"``docs/{path.name}``" in text


def test_the_proxy_fix_of_the_deployment_page_makes_secure_urls() -> None:
    namespace: dict[str, Any] = {"__name__": "deployment"}
    for block in blocks(ROOT / "docs" / "deployment.rst", "python")[:2]:
        exec(compile(block, "deployment.rst", "exec"), namespace)
    app = namespace["app"]
    namespace["sockets"].add_url_rule("/echo", "echo", lambda ws: None)
    app.add_url_rule("/", "page", lambda: url_for("echo"))
    page = app.test_client().get("/", headers={"X-Forwarded-Proto": "https"})
    assert page.text == "wss://localhost/echo"


def test_the_clock_of_the_reference_ticks_and_stops() -> None:
    namespace: dict[str, Any] = {"__name__": "clock"}
    (block,) = blocks(ROOT / "docs" / "websocket.rst", "python")
    exec(compile(block, "websocket.rst", "exec"), namespace)
    with namespace["sockets"].test_client(namespace["app"]).connect("/clock") as ws:
        assert ws.receive() == "tick"
        ws.send("stop")
        assert ws.receive() is None
        assert (ws.close_code, ws.close_reason) == (4000, "as you wish")


@pytest.fixture(scope="module")
def recipes() -> dict[str, Any]:
    """What the recipes define, all but the factory, which is a program of its own."""
    namespace: dict[str, Any] = {"__name__": "recipes"}
    for block in blocks(RECIPES, "python"):
        if "def create_app" not in block:
            exec(compile(block, RECIPES.name, "exec"), namespace)
    return namespace


def connect(namespace: dict[str, Any], path: str, **options: Any) -> Any:
    return namespace["sockets"].test_client(namespace["app"]).connect(path, **options)


def test_the_tests_of_the_recipes_pass(recipes: dict[str, Any]) -> None:
    tests = [name for name in recipes if name.startswith("test_")]
    assert tests == ["test_private"]
    for name in tests:
        recipes[name]()


def test_the_chat_goes_on_without_members_that_are_gone(recipes: dict[str, Any]) -> None:
    class Gone:
        def send(self, message: str) -> None:
            raise WebSocketError("gone")

    gone = Gone()
    recipes["members"].add(gone)
    with connect(recipes, "/chat") as ada, connect(recipes, "/chat") as bob:
        for _ in range(2):  # bob's handler may not have begun when the first is sent
            ada.send("hello")
            assert ada.receive(timeout=1) == "hello"
        assert gone not in recipes["members"]
        bob.send("good day")
        assert "good day" in (bob.receive(timeout=1), bob.receive(timeout=1), bob.receive(1))
    assert not recipes["members"]


def test_a_page_and_a_websocket_share_a_prefix_and_the_page_knows_the_url(
    recipes: dict[str, Any],
) -> None:
    page = recipes["app"].test_client().get("/clock/", base_url="https://example.com")
    assert page.text == "The time is at wss://example.com/clock/time\n"
    with connect(recipes, "/clock/time") as ws:
        ws.send("what time is it?")
        assert ws.receive(timeout=1) == "noon"


def test_named_origins_take_the_place_of_the_same_host(recipes: dict[str, Any]) -> None:
    for origin in ("https://example.com", "http://localhost:3000"):
        with connect(recipes, "/clock/time", origin=origin):
            pass
    for origin in ("http://localhost", "http://example.com", "https://example.com:8443"):
        with pytest.raises(WebSocketRejected) as refusal:
            connect(recipes, "/clock/time", origin=origin)
        assert refusal.value.response.status_code == 403


def test_origins_may_stand_in_one_string() -> None:
    (origins,) = re.findall(r'``"(https:.*)"``, or', RECIPES.read_text())
    namespace: dict[str, Any] = {"__name__": "app"}
    exec(dedent(PROGRAM), namespace)
    namespace["app"].config["SOCKETS_ALLOWED_ORIGINS"] = origins
    for origin in ("https://example.com", "https://www.example.com"):
        with connect(namespace, "/echo", origin=origin):
            pass


def test_the_factory_may_be_called_any_number_of_times() -> None:
    namespace: dict[str, Any] = {"__name__": "factory"}
    (block,) = [block for block in blocks(RECIPES, "python") if "def create_app" in block]
    exec(compile(block, RECIPES.name, "exec"), namespace)
    apps = [namespace["create_app"]() for _ in range(3)]
    for app in apps:
        with namespace["sockets"].test_client(app).connect("/live/echo") as ws:
            ws.send("hello")
            assert ws.receive(timeout=1) == "hello"


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


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_file_that_a_page_names_exists(path: Path) -> None:
    for name in re.findall(r"``([a-z/_-]+\.(?:py|rst))``", path.read_text()):
        assert any((root / name).exists() for root in (ROOT, ROOT / "flask_sockets2")) or (
            name == "app.py"
        ), name


def test_a_page_says_seconds_as_the_code_does() -> None:
    text = (ROOT / "docs" / "migrating-from-flask-sockets.rst").read_text()
    limits = Limits()
    assert f"Every {limits.ping_interval:g} seconds" in text
    assert f"for {limits.ping_timeout:g}\nseconds" in text
    assert f"largest size,** {limits.max_message_size // 2**20} MiB" in text


@pytest.mark.parametrize(
    "path", [ROOT / "README.rst", ROOT / "docs" / "deployment.rst"], ids=name_of
)
def test_the_nginx_block_of_a_page_works(
    path: Path, gunicorn: Callable[..., Server], server_factory: Servers
) -> None:
    (block,) = blocks(path, "nginx")
    proxy = nginx_in_front(server_factory, gunicorn(PROGRAM).port, block)
    assert echoed(proxy.ws_url("/echo"), "hello", origin=proxy.url("")) == "hello"
    result = doctor(proxy.ws_url("/echo"))
    assert result.exit_code == 0, result.output


def test_the_gunicorn_command_of_the_deployment_page_starts(
    gunicorn: Callable[..., Server],
) -> None:
    (command,) = blocks(ROOT / "docs" / "deployment.rst", "console")
    words = command.replace("\\\n", " ").split()
    assert words[0] == "gunicorn"
    bind = words.index("--bind")
    del words[bind : bind + 2]
    server = gunicorn(PROGRAM, worker=None, args=words[1:-1], target=words[-1])
    assert echoed(server.ws_url("/echo"), "hello") == "hello"
