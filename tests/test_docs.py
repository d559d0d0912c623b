"""What the documentation says holds: its programs run, its settings exist, its blocks work."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from flask_sockets2 import Limits, WebSocketHandler, extension
from tests.clients import echoed
from tests.processes import Server, Servers
from tests.proxies import nginx_in_front
from tests.test_cli import doctor

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.rst"))
PAGES = [ROOT / "README.rst", *DOCS]

APPLICATION = {
    "allowed_origins": None,
    "max_connections": None,
    "handshake_timeout": WebSocketHandler.handshake_timeout,
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
    number, _, unit = words.partition(" ")
    return float(number) * {"": 1, "MiB": 2**20}[unit]


def table_rows(path: Path) -> list[list[str]]:
    """The rows of all list-tables whose first cell is a setting."""
    rows = re.findall(r"^   \* - (``SOCKETS_.*(?:\n     .*)*)", path.read_text(), re.MULTILINE)
    return [[cell.strip() for cell in re.split(r"\n     -", row)] for row in rows]


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
    rows = table_rows(ROOT / "README.rst")
    assert {row[0].strip("`"): value_of(row[2]) for row in rows} == DEFAULTS


def test_the_table_of_the_readme_says_what_a_route_takes() -> None:
    taken = {row[0].strip("`"): row[1].strip("`") for row in table_rows(ROOT / "README.rst")}
    for setting, argument in taken.items():
        name = setting.removeprefix("SOCKETS_").lower()
        expected = name if name in extension.LIMITS else ""
        assert argument == ("origins" if name == "allowed_origins" else expected)


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
