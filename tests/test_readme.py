"""README.rst is run, not only read: its first program under every server that it names."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from tests.clients import echoed, http
from tests.processes import Certificate, Server

README = (Path(__file__).parents[1] / "README.rst").read_text()

StartServer = Callable[..., Server]


def python_blocks(text: str) -> list[str]:
    """The Python programs of a reStructuredText document, in order."""
    blocks = re.findall(r"^\.\. code-block:: python\n\n((?:(?: {4}.*)?\n)+)", text, re.MULTILINE)
    return [dedent(block).strip() + "\n" for block in blocks]


def commands(text: str) -> list[str]:
    """What the table of servers says to start an application with."""
    return re.findall(r"^   \* - ``((?:gunicorn|flask) .*)``$", text, re.MULTILINE)


BLOCKS = python_blocks(README)
PROGRAM = BLOCKS[0]
ENDINGS = [block for block in BLOCKS if "serve_forever" in block]
GUNICORN = [shlex.split(command)[1:] for command in commands(README) if "gunicorn" in command]
FLASK = [shlex.split(command)[1:] for command in commands(README) if command.startswith("flask ")]


def assert_it_works(server: Server, **options: Any) -> None:
    """The page answers, and text and binary messages return, in one frame or many."""
    assert http(server.url("/"), context=options.get("ssl"))[0] == 200
    for message in ("hello", "", "grüße", b"\x00\xff", "x" * 200_000):
        assert echoed(server.ws_url("/echo"), message, **options) == message


def test_the_readme_names_the_servers_that_are_tested_here() -> None:
    assert len(GUNICORN) == 4
    assert FLASK == [["run", "--debug"]]
    assert len(ENDINGS) == 3


@pytest.mark.parametrize("words", GUNICORN, ids=" ".join)
def test_the_first_program_works_under_gunicorn(words: list[str], gunicorn: StartServer) -> None:
    *args, target = words
    assert_it_works(gunicorn(PROGRAM, worker=None, args=args, target=target))


@pytest.mark.parametrize("words", FLASK, ids=" ".join)
def test_the_first_program_works_under_flask(words: list[str], flask_run: StartServer) -> None:
    assert_it_works(flask_run(PROGRAM, args=words[1:]))


def test_the_first_program_works_under_flask_run_without_the_reloader(
    flask_run: StartServer,
) -> None:
    assert_it_works(flask_run(PROGRAM))


@pytest.mark.parametrize("ending", ENDINGS, ids=["server", "handler", "gevent-websocket"])
def test_the_first_program_works_as_a_program_of_its_own(
    ending: str, pywsgi_server: StartServer, unused_port: int
) -> None:
    source = f"{PROGRAM}\n\n{ending}".replace("5000", str(unused_port))
    assert_it_works(pywsgi_server(source, port=unused_port))


def test_the_first_program_works_over_tls(gunicorn: StartServer, certificate: Certificate) -> None:
    args = ["--certfile", certificate.certfile, "--keyfile", certificate.keyfile]
    server = gunicorn(PROGRAM, args=args, secure=True)
    assert_it_works(server, ssl=certificate.client_context())


def test_the_first_program_works_behind_nginx(
    gunicorn: StartServer, nginx: Callable[[Server], Server]
) -> None:
    assert_it_works(nginx(gunicorn(PROGRAM)))


def test_nginx_in_front_lets_the_page_of_its_own_origin_in(
    gunicorn: StartServer, nginx: Callable[[Server], Server]
) -> None:
    proxy = nginx(gunicorn(PROGRAM))
    assert echoed(proxy.ws_url("/echo"), "hello", origin=proxy.url("")) == "hello"


def test_every_program_runs_in_one_application_and_its_test_passes() -> None:
    namespace: dict[str, Any] = {"__name__": "readme"}
    for block in BLOCKS:
        exec(compile(block, "README.rst", "exec"), namespace)
    namespace["test_echo"]()
    client = namespace["sockets"].test_client(namespace["app"])
    with client.connect("/news/tea?token=secret", subprotocols=["news.v1"]) as ws:
        assert ws.receive(timeout=1) == "news about tea"
    with client.connect("/live/time") as ws:
        ws.send("what time is it?")
        assert ws.receive(timeout=1) == "noon"
