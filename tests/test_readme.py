"""README.rst is run, not only read: its first program under every server that it names."""

from __future__ import annotations

import json
import re
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from flask_sockets2 import WebSocketRejected
from flask_sockets2.turbo.testing import assert_turbo_stream
from tests.clients import TIMEOUT, echoed, http, websocket
from tests.processes import Certificate, Server

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.rst").read_text()
RECIPES = (ROOT / "docs" / "recipes.rst").read_text()

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
(BEGINNING,) = [block for block in BLOCKS if "patch_all" in block]
ENDINGS = [block for block in BLOCKS + python_blocks(RECIPES) if "serve_forever" in block]
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
    source = f"{BEGINNING}\n{PROGRAM}\n\n{ending}".replace("5000", str(unused_port))
    server = pywsgi_server(source, port=unused_port)
    assert_it_works(server)
    assert "patch_all" not in server.output


def test_a_program_of_its_own_without_its_first_lines_is_warned_once(
    pywsgi_server: StartServer, unused_port: int
) -> None:
    source = f"{PROGRAM}\n\n{ENDINGS[0]}".replace("5000", str(unused_port))
    server = pywsgi_server(source, port=unused_port)
    assert_it_works(server)
    assert server.output.count("patch_all") == 1


def test_the_server_of_a_program_of_its_own_closes_its_websockets_at_ctrl_c(
    pywsgi_server: StartServer, unused_port: int
) -> None:
    source = f"{BEGINNING}\n{PROGRAM}\n\n{ENDINGS[0]}".replace("5000", str(unused_port))
    server = pywsgi_server(source, port=unused_port)
    with websocket(server.ws_url("/echo")) as client:
        client.send("hello")
        assert client.recv(timeout=TIMEOUT) == "hello"
        assert server.terminate(signal.SIGINT) == 0
        with pytest.raises(ConnectionClosed):
            client.recv(timeout=TIMEOUT)
        assert client.close_code == 1001
    assert "Traceback" not in server.output
    assert "KeyboardInterrupt" not in server.output


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


@pytest.fixture(scope="module")
def programs() -> dict[str, Any]:
    """What the programs define, run one after the other as one application."""
    namespace: dict[str, Any] = {"__name__": "readme"}
    for block in BLOCKS:
        if block != BEGINNING:
            exec(compile(block, "README.rst", "exec"), namespace)
    return namespace


def connect(programs: dict[str, Any], path: str, **options: Any) -> Any:
    return programs["sockets"].test_client(programs["app"]).connect(path, **options)


def test_the_tests_of_the_page_pass(programs: dict[str, Any]) -> None:
    tests = [name for name in programs if name.startswith("test_")]
    assert tests == ["test_echo"]
    for name in tests:
        programs[name]()


def test_the_handler_that_refuses_accepts_who_knows_the_token(programs: dict[str, Any]) -> None:
    with connect(programs, "/news/tea?token=secret", subprotocols=["news.v1"]) as ws:
        assert ws.subprotocol == "news.v1"
        assert ws.receive(timeout=1) == "news about tea"
    with pytest.raises(WebSocketRejected) as refusal:
        connect(programs, "/news/tea")
    assert refusal.value.response.status_code == 403


def test_a_client_without_a_common_subprotocol_is_accepted(programs: dict[str, Any]) -> None:
    with connect(programs, "/news/tea?token=secret", subprotocols=["news.v9"]) as ws:
        assert ws.subprotocol is None


def test_a_vote_is_pushed_to_the_pages(programs: dict[str, Any]) -> None:
    client = programs["app"].test_client()
    page = client.get("/votes").text
    assert '<p id="votes">0</p>' in page
    (position,) = re.findall(r'content="turbo:all" data-position="([^"]+)"', page)
    with connect(programs, f"/turbo-stream?s=turbo:all&at={position}") as ws:
        answer = client.post("/votes")
        assert (answer.status_code, answer.location) == (303, "/votes")
        texts = [json.loads(ws.receive(timeout=TIMEOUT)) for _ in range(3)]
    (markup,) = [each["data"] for each in texts if "data" in each]
    assert_turbo_stream(markup, action="update", target="votes", text="1")


def test_the_blueprint_is_found_under_its_prefix(programs: dict[str, Any]) -> None:
    with connect(programs, "/clock/time") as ws:
        ws.send("what time is it?")
        assert ws.receive(timeout=1) == "noon"
