"""README.rst is run, not only read: its first program under every server that is documented."""

from __future__ import annotations

import json
import re
import shlex
import signal
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import pytest
from flask.testing import FlaskClient
from jinja2 import DictLoader
from websockets.exceptions import ConnectionClosed

from flask_sockets2.turbo.testing import assert_turbo_stream
from tests.clients import TIMEOUT, echoed, http, websocket
from tests.processes import Certificate, Server

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.rst").read_text()
SERVERS = (ROOT / "docs" / "servers.rst").read_text()
RECIPES = (ROOT / "docs" / "recipes.rst").read_text()

StartServer = Callable[..., Server]

REPORT = "<title>Report</title>{{ flush() }}<p>{{ rows() | join(', ') }}</p>"


def python_blocks(text: str) -> list[str]:
    """The Python programs of a reStructuredText document, in order."""
    blocks = re.findall(r"^\.\. code-block:: python\n\n((?:(?: {4}.*)?\n)+)", text, re.MULTILINE)
    return [dedent(block).strip() + "\n" for block in blocks]


def commands(text: str) -> list[str]:
    """What the table of servers says to start an application with."""
    return re.findall(r"^   \* - ``((?:gunicorn|flask) .*)``$", text, re.MULTILINE)


BLOCKS = python_blocks(README)
PROGRAM = BLOCKS[0]
BEGINNING, ENDING = python_blocks(SERVERS)[-2:]  # of a program with a server of its own
(HANDLER,) = [block for block in python_blocks(RECIPES) if "serve_forever" in block]
(MODULE,) = re.findall(r"``(geventwebsocket\.\w+)\.WebSocketHandler``", RECIPES)
ENDINGS = [ENDING, HANDLER, HANDLER.replace("from flask_sockets2", f"from {MODULE}")]
GUNICORN = [shlex.split(command)[1:] for command in commands(SERVERS) if "gunicorn" in command]
FLASK = [shlex.split(command)[1:] for command in commands(SERVERS) if command.startswith("flask ")]


def assert_it_works(server: Server, **options: Any) -> None:
    """The page answers, and text and binary messages return, in one frame or many."""
    assert http(server.url("/"), context=options.get("ssl"))[0] == 200
    for message in ("hello", "", "grüße", b"\x00\xff", "x" * 200_000):
        assert echoed(server.ws_url("/echo"), message, **options) == message


def test_the_page_about_servers_names_those_that_are_tested_here() -> None:
    assert len(GUNICORN) == 4
    assert FLASK == [["run", "--debug"]]
    assert len(ENDINGS) == 3


@pytest.mark.quick
@pytest.mark.parametrize("words", GUNICORN, ids=" ".join)
def test_the_first_program_works_under_gunicorn(words: list[str], gunicorn: StartServer) -> None:
    *args, target = words
    assert_it_works(gunicorn(PROGRAM, worker=None, args=args, target=target))


@pytest.mark.quick
@pytest.mark.parametrize("words", FLASK, ids=" ".join)
def test_the_first_program_works_under_flask(words: list[str], flask_run: StartServer) -> None:
    assert_it_works(flask_run(PROGRAM, args=words[1:]))


def test_the_first_program_works_under_flask_run_without_the_reloader(
    flask_run: StartServer,
) -> None:
    assert_it_works(flask_run(PROGRAM))


@pytest.mark.quick
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
        exec(compile(block, "README.rst", "exec"), namespace)
    namespace["app"].jinja_loader = DictLoader({"report.html": REPORT})
    return namespace


def connect(programs: dict[str, Any], path: str, **options: Any) -> Any:
    return programs["sockets"].test_client(programs["app"]).connect(path, **options)


def test_the_readme_is_one_page_with_the_commands_and_the_four_programs() -> None:
    assert len(README.splitlines()) <= 170
    for command in ("make demo", "make test"):
        assert re.search(rf"^    {command} +# ", README, re.MULTILINE)
    for name in ("Sockets(app)", "Turbo(app)", "import sse", "Firehose(app)"):
        assert name in "".join(BLOCKS)


def token_of(client: FlaskClient) -> str:
    """The token that a page of the client has for its forms."""
    (token,) = re.findall(r'name="csrf_token" value="([^"]+)"', client.get("/votes").text)
    assert isinstance(token, str)
    return token


def test_the_headlines_reach_who_listens(programs: dict[str, Any]) -> None:
    client = programs["app"].test_client()
    with connect(programs, "/headlines?since=start") as ws:
        headers = {"X-CSRF-Token": token_of(client)}
        assert client.post("/headlines", json="It rains", headers=headers).status_code == 403
        with client.session_transaction() as session:
            session["role"] = "editor"
        assert client.post("/headlines", json="It rains").status_code == 400
        assert client.post("/headlines", json="It rains", headers=headers).status_code == 204
        assert json.loads(ws.receive(timeout=TIMEOUT))["data"] == "It rains"


def test_a_vote_is_pushed_to_the_pages(programs: dict[str, Any]) -> None:
    client = programs["app"].test_client()
    page = client.get("/votes").text
    assert '<p id="votes">0</p>' in page
    (position,) = re.findall(r'content="turbo:all" data-position="([^"]+)"', page)
    with connect(programs, f"/turbo-stream?s=turbo:all&at={position}") as ws:
        assert client.post("/votes").status_code == 400
        answer = client.post("/votes", data={"csrf_token": token_of(client)})
        assert (answer.status_code, answer.location) == (303, "/votes")
        texts = [json.loads(ws.receive(timeout=TIMEOUT)) for _ in range(3)]
    (markup,) = [each["data"] for each in texts if "data" in each]
    assert_turbo_stream(markup, action="update", target="votes", text="1")


@pytest.mark.quick
@pytest.mark.parametrize("javascript", [True, False], ids=["turbo.js", "no JavaScript"])
def test_the_button_of_the_page_votes_in_a_browser(
    javascript: bool, browser: Browser, gunicorn: StartServer
) -> None:
    server = gunicorn("\n".join(BLOCKS))
    with closing(browser.new_page(java_script_enabled=javascript)) as page:
        page.goto(server.url("/votes"))
        for votes in "1", "2":
            page.click("button")
            page.wait_for_selector(f"#votes:text-is('{votes}')")
        assert page.url == server.url("/votes")


def test_the_greeting_reaches_the_stream(programs: dict[str, Any]) -> None:
    sse, client = programs["sse"], programs["app"].test_client()
    response = client.get("/stream")
    assert response.mimetype == "text/event-stream"
    (call,) = re.findall(r"# anywhere: (sse\.publish\(.*\))", BLOCKS[3])
    with programs["app"].app_context():
        assert eval(call, {"sse": sse}) == 1
    blocks = iter(response.response)
    text = ""
    while "greeting" not in text:
        piece = next(blocks)
        text += piece if isinstance(piece, str) else piece.decode()
    response.close()
    assert 'event:greeting\ndata:{"message": "Hello!"}' in text


def test_the_head_of_the_report_goes_out_first_and_names_its_styles(
    programs: dict[str, Any],
) -> None:
    response = programs["app"].test_client().get("/report")
    assert response.text == "<title>Report</title><p>1, 2, 3</p>"
    assert "/static/app.css" in response.headers["Link"]
