"""Each example is started the way its first lines say, and used over TCP."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from itertools import product
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pytest
from flask import Flask
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection

from examples import notify
from tests.brokers.servers import RedisServer, redis_or_skip
from tests.clients import TIMEOUT, echoed, http, websocket
from tests.processes import Server, in_a_process, wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Page

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"

# The chat, which says in the log which process serves whom.
CHAT_IN_WORKERS = """
    import os

    from examples.chat import app
    from flask_sockets2.signals import connection_opened


    @connection_opened.connect_via(app)
    def tell(app, connection, **extra):
        print(os.getpid(), "serves", connection.environ["QUERY_STRING"], flush=True)
"""

StartServer = Callable[..., Server]


@pytest.fixture
def example(gunicorn: StartServer) -> Callable[[str], Server]:
    """Start ``examples/<name>.py`` under gunicorn."""

    def start(name: str) -> Server:
        return gunicorn(target=f"examples.{name}:app", args=["--chdir", str(ROOT)])

    return start


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A real Valkey or Redis server."""
    yield from redis_or_skip()


@pytest.fixture
def broker_url(redis_server: RedisServer) -> str:
    return redis_server.url


@pytest.fixture
def chat_in_workers(gunicorn: StartServer, broker_url: str) -> Server:
    """The chat in two processes, with a broker between them."""
    environ = {"SOCKETS_BROKER_URL": broker_url, "PYTHONPATH": str(ROOT)}
    return gunicorn(CHAT_IN_WORKERS, args=["--workers", "2"], environ=environ)


@pytest.fixture
def window(new_page: Callable[..., Page]) -> Callable[..., Page]:
    """Opens windows that share neither cookies nor connections."""
    return partial(new_page, viewport={"width": 900, "height": 620})


def envelopes(client: ClientConnection, count: int, name: str = "") -> list[dict[str, Any]]:
    """The next so many envelopes, but not those that tell somebody of their own coming."""
    found: list[dict[str, Any]] = []
    while len(found) < count:
        envelope = json.loads(client.recv(timeout=TIMEOUT))
        if envelope.get("event") != "join" or envelope["identity"] != name:
            found.append(envelope)
    return found


def said(envelope: dict[str, Any]) -> tuple[str, str]:
    data = envelope["data"]
    assert envelope["channel"] == "chat:lobby"
    assert set(data) == {"id", "name", "text", "at"}
    return data["name"], data["text"]


def test_the_echo_example_serves_its_page_and_its_echo_at_one_address(
    example: Callable[[str], Server],
) -> None:
    server = example("echo")
    status, body, _ = http(server.url("/echo"))
    assert status == 200
    assert 'data-socket="/echo"' in body
    assert echoed(server.ws_url("/echo"), "hello") == "hello"
    assert echoed(server.ws_url("/echo"), b"\x00\xff") == b"\x00\xff"


def chat_path(name: str, **query: str) -> str:
    return f"/chat/lobby?{urlencode({'name': name, **query})}"


def message(number: str, text: str) -> str:
    return json.dumps({"id": number, "text": text})


@pytest.mark.quick
def test_the_chat_example_tells_every_member_what_one_says(
    example: Callable[[str], Server],
) -> None:
    server = example("chat")
    with websocket(server.ws_url(chat_path("Ada"))) as ada:
        (present,) = envelopes(ada, 1, "Ada")
        assert (present["event"], present["identities"]) == ("presence", ["Ada"])
        with websocket(server.ws_url(chat_path("Bob"))) as bob:
            (joined,) = envelopes(ada, 1, "Ada")
            assert (joined["event"], joined["identity"]) == ("join", "Bob")
            (present,) = envelopes(bob, 1, "Bob")
            assert present["identities"] == ["Ada", "Bob"]
            bob.send(message("1", " <b>hi</b> "))
            for member in (ada, bob):
                assert said(*envelopes(member, 1, "Bob")) == ("Bob", "<b>hi</b>")


def test_a_member_of_the_chat_gets_the_last_messages_and_later_what_it_missed(
    example: Callable[[str], Server],
) -> None:
    server = example("chat")
    with websocket(server.ws_url(chat_path("Ada"))) as ada:
        envelopes(ada, 1, "Ada")
        for text in ("one", "two"):
            ada.send(message(text, text))
        envelopes(ada, 2, "Ada")
        with websocket(server.ws_url(chat_path("Bob"))) as bob:
            *old, present = envelopes(bob, 3, "Bob")
            assert [said(each) for each in old] == [("Ada", "one"), ("Ada", "two")]
            assert present["event"] == "presence"
        ada.send(message("three", "three"))
        path = chat_path("Bob", since=old[-1]["position"])
        with websocket(server.ws_url(path)) as bob:
            missed, present = envelopes(bob, 2, "Bob")
            assert said(missed) == ("Ada", "three")
            assert present["event"] == "presence"


def test_the_rooms_of_the_chat_are_apart(example: Callable[[str], Server]) -> None:
    server = example("chat")
    garden = server.ws_url("/chat/garden?name=Bob")
    with websocket(server.ws_url(chat_path("Ada"))) as ada, websocket(garden) as bob:
        assert envelopes(ada, 1, "Ada")[0]["identities"] == ["Ada"]
        assert envelopes(bob, 1, "Bob")[0]["identities"] == ["Bob"]
        ada.send(message("1", "in the lobby"))
        bob.send(message("2", "in the garden"))
        assert envelopes(bob, 1, "Bob")[0]["data"]["text"] == "in the garden"


def test_the_chat_refuses_names_of_people_and_rooms_that_are_none(
    example: Callable[[str], Server],
) -> None:
    server = example("chat")
    for path, status in (
        (chat_path(""), 400),
        (chat_path(" "), 400),
        (chat_path("x" * 31), 400),
        (chat_path("Ada\u202e"), 400),
        ("/chat/lobby", 400),
        ("/chat/Lobby?name=Ada", 404),
        ("/chat/lobby%0a?name=Ada", 404),
        ("/chat/" + "x" * 31 + "?name=Ada", 404),
    ):
        with pytest.raises(InvalidStatus) as refusal, websocket(server.ws_url(path)):
            pass
        assert refusal.value.response.status_code == status, path


def test_the_chat_closes_connections_that_send_what_its_page_never_does(
    example: Callable[[str], Server],
) -> None:
    server = example("chat")
    for sent, code in (
        ("hello", 1008),
        (b"\xff", 1008),
        ("[]", 1008),
        ('{"id": 1, "text": "hello"}', 1008),
        (message("1", " "), 1008),
        (message("1", "x" * 1001), 1008),
        (message("x" * 41, "hello"), 1008),
        ("x" * 8193, 1009),
    ):
        with websocket(server.ws_url(chat_path("Ada"))) as ada:
            envelopes(ada, 1, "Ada")
            ada.send(sent)
            with pytest.raises(ConnectionClosed):
                envelopes(ada, 1, "Ada")
            assert ada.close_code == code, sent


def test_the_blueprints_example_finds_routes_under_their_prefix(
    example: Callable[[str], Server],
) -> None:
    server = example("blueprints")
    assert "/live/echo" in http(server.url("/"))[1]
    assert echoed(server.ws_url("/live/echo"), "hello") == "hello"
    assert echoed(server.ws_url("/live/ada/shout"), "hello") == "ada: HELLO"


@pytest.mark.parametrize("name", ["standalone", "standalone_gevent_websocket", "blueprints"])
def test_an_example_that_brings_its_own_server_runs_as_a_program(
    name: str, pywsgi_server: StartServer, unused_port: int
) -> None:
    source = (EXAMPLES / f"{name}.py").read_text()
    assert source.count("5000") == 1
    server = pywsgi_server(source.replace("5000", str(unused_port)), port=unused_port)
    assert http(server.url("/"))[0] == 200
    path = "/live/echo" if name == "blueprints" else "/echo"
    assert echoed(server.ws_url(path), "hello") == "hello"


def log_in(server: Server, password: str, cookies: str = "") -> tuple[int, str]:
    """Returns the status and the cookies that were set, as a browser sends them back."""
    status, _, headers = http(
        server.url("/login"),
        data=json.dumps({"user": "ada", "password": password}).encode(),
        headers={"Content-Type": "application/json", "Cookie": cookies},
    )
    set_cookies = headers.get_all("Set-Cookie") or []
    return status, "; ".join(cookie.partition(";")[0] for cookie in set_cookies)


def test_the_login_example_lets_nobody_in_without_a_session(
    example: Callable[[str], Server],
) -> None:
    server = example("login")
    status, cookies = log_in(server, "wrong")
    assert (status, cookies) == (401, "")
    with pytest.raises(InvalidStatus) as refusal, websocket(server.ws_url("/private")):
        pass
    assert refusal.value.response.status_code == 401


def test_the_login_example_has_no_password_sent_before_its_script_is_there(
    example: Callable[[str], Server], new_page: Callable[..., Page]
) -> None:
    page = new_page(java_script_enabled=False)
    page.goto(example("login").url("/"))
    page.fill("[name=user]", "ada")
    page.fill("[name=password]", "lovelace")
    page.press("[name=password]", "Enter")
    assert page.is_disabled("#login button")
    assert page.get_attribute("#login", "method") == "post"
    assert "lovelace" not in page.url


def test_the_login_example_knows_the_session_and_the_cookies_of_the_login(
    example: Callable[[str], Server],
) -> None:
    server = example("login")
    status, cookies = log_in(server, "lovelace")
    assert status == 200
    with websocket(server.ws_url("/private"), additional_headers={"Cookie": cookies}) as client:
        assert client.recv(timeout=TIMEOUT) == "Welcome, ada!"
        client.send("hello")
        assert client.recv(timeout=TIMEOUT) == "ada said: hello"


def test_the_login_session_is_a_cookie_that_scripts_cannot_read(
    example: Callable[[str], Server],
) -> None:
    server = example("login")
    body = json.dumps({"user": "ada", "password": "lovelace"}).encode()
    headers = {"Content-Type": "application/json"}
    _, _, answer = http(server.url("/login"), data=body, headers=headers)
    (session,) = [c for c in answer.get_all("Set-Cookie") if c.startswith("session=")]
    assert "HttpOnly" in session
    assert "SameSite=Lax" in session


def test_who_logs_out_of_the_login_example_is_answered_no_more(
    example: Callable[[str], Server],
) -> None:
    server = example("login")
    _, cookies = log_in(server, "lovelace")
    with websocket(server.ws_url("/private"), additional_headers={"Cookie": cookies}) as client:
        assert client.recv(timeout=TIMEOUT) == "Welcome, ada!"
        assert http(server.url("/logout"), data=b"", headers={"Cookie": cookies})[0] == 204
        with pytest.raises(ConnectionClosed):
            client.recv(timeout=TIMEOUT)
        assert (client.close_code, client.close_reason) == (1008, "logged out")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("todo", "/"),
        ("orders", "/new"),
        ("log", "/"),
        ("progress", "/jobs"),
        ("notify", "/notify"),
        ("login", "/logout"),
    ],
)
@pytest.mark.parametrize("below", ["", "/below"])
def test_the_examples_take_forms_of_their_own_pages_only(name: str, path: str, below: str) -> None:
    in_a_process(check_forms, name, path, below)


def check_forms(name: str, path: str, below: str) -> None:
    """With threads that the example starts for its work."""
    app = import_module(f"examples.{name}").app
    client = app.test_client()
    options = {"base_url": f"https://example.org{below}", "data": {"name": "Ada", "text": "x"}}
    for origin in (
        "https://elsewhere.example",
        "http://example.org",
        "https://example.org:1",
        "null",
    ):
        assert client.post(path, headers={"Origin": origin}, **options).status_code == 403, origin
    assert client.post(path, headers={"Origin": "https://example.org"}, **options).status_code < 400
    assert client.post(path, **options).status_code < 400  # of a script


def wait_for_state(page: Page, state: str) -> None:
    page.wait_for_selector(f"#state[data-state={state}]")


def say(page: Page, words: str) -> None:
    page.fill("#message", words)
    page.press("#message", "Enter")


def test_the_demo_leads_a_browser_to_an_echo_that_answers(
    example: Callable[[str], Server], page: Page
) -> None:
    page.goto(example("demo").url("/"))
    page.click("text=Echo")
    wait_for_state(page, "open")
    say(page, "hello, echo")
    page.wait_for_selector("#log li:has-text('hello, echo') small:has-text('ms')")


def enter(page: Page, server: Server, name: str, room: str = "lobby") -> None:
    page.goto(server.url(f"/chat/{room}"))
    page.fill("#name", name)
    page.press("#name", "Enter")
    wait_for_state(page, "open")


def texts(page: Page) -> list[str]:
    """What is shown as said, in that order, but not what is still on its way."""
    return page.locator("#log .message:not(.pending) .words").all_inner_texts()


def wait_for_text(page: Page, text: str) -> None:
    page.locator("#log .message:not(.pending) .words", has_text=text).wait_for()


def wait_for_people(page: Page, *names: str) -> None:
    people = page.locator("#people .person span:not(.badge)")
    people.nth(len(names) - 1).wait_for()
    wait_until(lambda: people.all_inner_texts() == list(names), f"{names} in the list")


def worker_of(server: Server, name: str) -> int:
    """The process that serves the newest connection of a name."""
    found = re.findall(rf"^(\d+) serves name={name}\b", server.output, re.MULTILINE)
    return int(found[-1])


def in_two_workers(server: Server, ada: Page, bob: Page) -> tuple[int, int]:
    """Let two windows into the lobby, each by another process, and return these."""
    enter(ada, server, "Ada")
    first = worker_of(server, "Ada")
    os.kill(first, signal.SIGSTOP)  # so that it is the other one that answers
    try:
        enter(bob, server, "Bob")
    finally:
        os.kill(first, signal.SIGCONT)
    second = worker_of(server, "Bob")
    assert first != second
    return first, second


@pytest.mark.quick
def test_two_windows_in_two_workers_chat_and_see_who_is_there(
    chat_in_workers: Server, window: Callable[..., Page]
) -> None:
    ada, bob = window(), window()
    in_two_workers(chat_in_workers, ada, bob)
    for page in (ada, bob):
        wait_for_people(page, "Ada", "Bob")
    say(bob, "<img src=x onerror=alert(1)>")
    wait_for_text(ada, "<img src=x")
    say(ada, "Good day, Bob.")
    wait_for_text(bob, "Good day, Bob.")
    for page in (ada, bob):
        assert texts(page) == ["<img src=x onerror=alert(1)>", "Good day, Bob."]
        assert page.locator(".pending").count() == 0


@pytest.mark.slow
def test_a_chat_that_is_loaded_again_shows_what_was_said_and_goes_on(
    chat_in_workers: Server, window: Callable[..., Page]
) -> None:
    ada, bob = window(), window()
    in_two_workers(chat_in_workers, ada, bob)
    for text in ("one", "two"):
        say(ada, text)
        wait_for_text(bob, text)
    bob.reload()
    wait_for_people(bob, "Ada", "Bob")
    say(bob, "three")
    wait_for_text(ada, "three")
    assert texts(bob) == texts(ada) == ["one", "two", "three"]
    # It came back within the grace, so nobody was told that it had left.
    assert ada.locator("#log .event", has_text="left").count() == 0


@pytest.mark.slow
def test_the_chat_survives_a_killed_worker_without_loss(
    chat_in_workers: Server, window: Callable[..., Page]
) -> None:
    ada, bob = window(), window()
    first, _ = in_two_workers(chat_in_workers, ada, bob)
    wait_for_people(bob, "Ada", "Bob")
    say(ada, "before")
    wait_for_text(bob, "before")
    os.kill(first, signal.SIGSTOP)  # what Ada says now reaches a process that never reads it
    say(ada, "into the void")
    say(bob, "while you were away")
    wait_for_text(bob, "while you were away")
    os.kill(first, signal.SIGKILL)
    wait_for_text(bob, "into the void")
    wait_for_text(ada, "into the void")
    said = ["before", "while you were away", "into the void"]
    assert texts(ada) == texts(bob) == said
    for page in (ada, bob):
        wait_for_people(page, "Ada", "Bob")


@pytest.mark.slow
def test_the_chat_goes_on_after_its_broker_was_restarted(
    chat_in_workers: Server, redis_server: RedisServer, window: Callable[..., Page]
) -> None:
    ada, bob = window(), window()
    in_two_workers(chat_in_workers, ada, bob)
    say(ada, "before")
    wait_for_text(bob, "before")
    redis_server.kill()
    say(ada, "while it is away")
    redis_server.path.unlink(missing_ok=True)
    redis_server.start()
    for page in (ada, bob):
        page.locator("#log .gap").first.wait_for(timeout=60_000)
        page.locator("#log .message:not(.pending) .words", has_text="while it is away").wait_for(
            timeout=60_000
        )
        assert texts(page) == ["before", "while it is away"]


@pytest.mark.slow
def test_who_was_connected_to_a_killed_worker_leaves_after_a_while(
    chat_in_workers: Server, window: Callable[..., Page]
) -> None:
    ada, bob = window(), window()
    first, _ = in_two_workers(chat_in_workers, ada, bob)
    wait_for_people(bob, "Ada", "Bob")
    os.kill(first, signal.SIGSTOP)  # it cannot say that she leaves
    ada.context.close()
    os.kill(first, signal.SIGKILL)
    bob.locator("#log .event", has_text="Ada left").wait_for(timeout=60_000)
    wait_for_people(bob, "Bob")


@pytest.mark.slow
def test_a_chat_without_its_server_says_so_and_sends_later(
    gunicorn: StartServer, unused_port: int, broker_url: str, page: Page
) -> None:
    def serve() -> Server:
        environ = {"SOCKETS_BROKER_URL": broker_url}
        args = ["--chdir", str(ROOT)]
        return gunicorn(target="examples.demo:app", args=args, port=unused_port, environ=environ)

    first = serve()
    enter(page, first, "Ada")
    say(page, "one")
    wait_for_text(page, "one")
    first.terminate()
    wait_for_state(page, "waiting")
    say(page, "two")
    page.wait_for_selector("#log .pending:has-text('two')")
    serve()
    wait_for_text(page, "two")
    assert texts(page) == ["one", "two"]
    assert page.locator("#log .gap").count() == 0


@pytest.mark.slow
def test_a_chat_whose_server_has_forgotten_everything_shows_the_gap(
    gunicorn: StartServer, unused_port: int, page: Page
) -> None:
    def serve() -> Server:
        return gunicorn(target="examples.chat:app", args=["--chdir", str(ROOT)], port=unused_port)

    first = serve()
    enter(page, first, "Ada")
    say(page, "one")
    wait_for_text(page, "one")
    first.terminate()
    serve()
    page.wait_for_selector("#log .gap")
    wait_for_state(page, "open")
    say(page, "two")
    wait_for_text(page, "two")
    assert texts(page) == ["one", "two"]


def notify_script(url: str, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "examples.notify_script", *args]
    environ = {**os.environ, "SOCKETS_BROKER_URL": url}
    return subprocess.run(
        command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_script_notifies_all_open_pages(
    gunicorn: StartServer, broker_url: str, window: Callable[..., Page]
) -> None:
    environ = {"SOCKETS_BROKER_URL": broker_url}
    args = ["--chdir", str(ROOT), "--workers", "2"]
    server = gunicorn(target="examples.notify:app", args=args, environ=environ)
    pages = [window() for _ in range(2)]
    for page in pages:
        page.goto(server.url("/"))
        wait_for_state(page, "open")
    for words in (["<b>Lunch</b>", "is ready"], ["Backup", "--progress", "--seconds", "0.2"]):
        result = notify_script(broker_url, *words)
        assert result.returncode == 0, result.stderr
    for page in pages:
        page.wait_for_selector("#notifications li:has-text('<b>Lunch</b>') p:has-text('is ready')")
        bar = page.locator("#notifications li", has_text="Backup").locator("progress")
        bar.wait_for()
        page.wait_for_function("document.querySelector('progress:not([hidden])').value === 100")
        assert page.inner_text("#count") == "2"
    pages[0].click("#test button")
    for page in pages:
        page.wait_for_selector("#notifications li:has-text('It works')")


@pytest.mark.slow
def test_a_notification_between_the_page_and_its_socket_is_shown(
    gunicorn: StartServer, broker_url: str, page: Page
) -> None:
    environ = {"SOCKETS_BROKER_URL": broker_url}
    server = gunicorn(target="examples.notify:app", args=["--chdir", str(ROOT)], environ=environ)

    def publish_first(route: Any) -> None:
        assert notify_script(broker_url, "Just in time").returncode == 0
        route.continue_()

    page.route("**/static/notify.js", publish_first)
    page.goto(server.url("/notify"))
    page.wait_for_selector("#notifications li:has-text('Just in time')")


@pytest.mark.slow
def test_the_command_in_the_notify_example_notifies(
    gunicorn: StartServer, broker_url: str, page: Page
) -> None:
    environ = {"SOCKETS_BROKER_URL": broker_url}
    server = gunicorn(target="examples.notify:app", args=["--chdir", str(ROOT)], environ=environ)
    page.goto(server.url("/notify"))
    wait_for_state(page, "open")
    (line,) = re.findall(r"^    (flask .*)$", (EXAMPLES / "notify.py").read_text(), re.MULTILINE)
    subprocess.run(
        [sys.executable, "-m", *shlex.split(line)],
        cwd=ROOT,
        env={**os.environ, **environ},
        check=True,
        timeout=60,
    )
    page.wait_for_selector("#notifications li:has-text('Hello')")


@pytest.mark.slow
def test_the_terminal_lines_that_the_page_shows_notify(
    gunicorn: StartServer, broker_url: str, page: Page
) -> None:
    environ = {"SOCKETS_BROKER_URL": broker_url}
    server = gunicorn(target="examples.demo:app", args=["--chdir", str(ROOT)], environ=environ)
    page.goto(server.url("/"))
    page.click("text=Publish from a terminal")
    wait_for_state(page, "open")
    lines = page.inner_text("pre").splitlines()
    assert len(lines) == 3
    lines[-1] += " --seconds 0.2"
    subprocess.run(["sh", "-ec", "\n".join(lines)], cwd=ROOT, check=True, timeout=60)
    page.wait_for_selector("#notifications li:has-text('Lunch is ready')")
    page.wait_for_function("document.querySelector('progress:not([hidden])').value === 100")


# Each page of the demo, and where its source is.
DEMO = {
    "/": "demo",
    "/echo": "echo",
    "/chat/lobby": "chat",
    "/notify": "notify",
    "/login/": "login",
    "/load/": "load",
    "/load/about": "load",
    "/todo/": "todo",
    "/orders/": "orders",
    "/orders/new": "orders",
    "/log/": "log",
    "/progress/": "progress",
    "/progress/jobs/none": "progress",
    "/hints/plain": "hints",
    "/hints/flushed": "hints",
    "/source/demo": "demo",
}


@pytest.mark.slow
def test_each_page_of_the_demo_leads_home_and_to_its_source() -> None:
    in_a_process(check_links)


def check_links() -> None:
    """With threads that the examples start for their work."""
    client = import_module("examples.demo").app.test_client()
    for below, (path, name) in product(["", "/below"], DEMO.items()):
        base = f"http://localhost{below}"
        (footer,) = re.findall("<footer>.*?</footer>", client.get(path, base).text, re.DOTALL)
        home = [] if path == "/" else [f"{below}/"]
        assert re.findall('href="(.*?)"', footer) == [*home, f"{below}/source/{name}"], path
        first = (EXAMPLES / f"{name}.py").read_text().splitlines()[0]
        assert first.strip('"') in client.get(f"/source/{name}", base).text
    assert client.get("/source/none", base).status_code == 404
    assert "<footer>" not in import_module("examples.log").app.test_client().get("/").text


# What is wrong with a page that can be seen without looking.
FAULTS = """() => {
    const faults = [];
    const name = (element) => `${element.localName}#${element.id}.${element.className}`;
    const lines = (element) =>
        element.getBoundingClientRect().height / parseFloat(getComputedStyle(element).lineHeight);
    if (document.documentElement.scrollWidth > innerWidth) faults.push("wider than the window");
    for (const element of document.body.querySelectorAll("*")) {
        const { overflowX, overflowY } = getComputedStyle(element);
        const scrolls = /auto|scroll/.test(overflowX + overflowY);
        if (scrolls && element.tabIndex < 0 && !element.querySelector("a, button, input")) {
            faults.push(`${name(element)} cannot be scrolled by keys`);
        }
        if (element.matches("li") && element.parentElement.matches(":not(ul, ol), [role]")) {
            faults.push(`${name(element)} is in no list`);
        }
        if (element.matches(".way small") && lines(element) > 2.1) {
            faults.push(`${element.textContent}: a column of words`);
        }
    }
    for (const state of document.querySelectorAll("p.state:not(.stream-state)")) {
        const number = document.querySelector("#count");
        if (number) number.textContent = "128";
        state.textContent = "reconnecting in 14.9 s";
        if (lines(state) > 1.5) faults.push("the state takes several lines");
    }
    return faults;
}"""


@pytest.mark.parametrize("width", [390, pytest.param(1280, marks=pytest.mark.slow)])
def test_the_pages_of_the_demo_fit_and_can_be_used_by_keys(
    width: int, example: Callable[[str], Server], new_page: Callable[..., Page]
) -> None:
    server = example("demo")
    page = new_page(viewport={"width": width, "height": 844})
    page.route(lambda url: not url.startswith(server.url()), lambda route: route.abort())
    faults = {}
    for path in DEMO:
        page.goto(server.url(path))
        faults[path] = page.evaluate(FAULTS)
    enter(page, server, "Ada")
    say(page, "a message " * 20)
    wait_for_text(page, "a message")
    faults["the chat"] = page.evaluate(FAULTS)
    assert {path: found for path, found in faults.items() if found} == {}


def test_the_demo_leads_to_the_login(example: Callable[[str], Server], page: Page) -> None:
    page.goto(example("demo").url("/"))
    page.click(".cards b:text-is('Login')")
    page.fill("[name=user]", "ada")
    page.fill("[name=password]", "lovelace")
    page.click("#login button")
    page.wait_for_selector("#log li:has-text('Welcome, ada!')")
    page.click("#logout button")
    page.wait_for_selector("#state:text-is('refused: logged out')")


def test_without_a_broker_the_page_shows_no_lines_that_cannot_work(
    example: Callable[[str], Server], page: Page
) -> None:
    server = example("demo")
    page.goto(server.url("/"))
    assert page.get_by_text("terminal").count() == 0
    page.click("text=Notifications")
    assert page.inner_text("pre") == "SOCKETS_BROKER_URL=redis://localhost:6379/0 make demo"
    wait_for_state(page, "open")
    page.click("#test button")
    page.wait_for_selector("#notifications li:has-text('It works')")


def test_the_page_does_not_show_the_password_of_the_broker() -> None:
    app = Flask("notify")
    app.config["SOCKETS_BROKER_URL"] = "redis://ada:love@lace@[::1]:6379/0"
    with app.app_context():
        assert notify.commands()[0] == "export SOCKETS_BROKER_URL='redis://…@[::1]:6379/0'"


def test_make_demo_installs_what_its_pages_promise(tmp_path: Path) -> None:
    result = subprocess.run(
        ["make", "-n", "demo", f"VENV={tmp_path / 'venv'}"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
    )
    assert "'.[redis]'" in result.stdout


def test_make_demo_on_a_port_that_is_taken_says_how_to_choose_another(tmp_path: Path) -> None:
    """Without what it would install first: the stamps say that all of that is there."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    for name in ("bin/gunicorn", ".installed-redis", ".demo-key", "turbo.js"):
        (tmp_path / name).write_text("")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = subprocess.run(
            [
                *("make", "demo", f"PORT={port}", f"VENV={tmp_path}"),
                f"TURBO_JS={tmp_path / 'turbo.js'}",
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert result.returncode == 2
    remedy = f"Port {port} is in use; choose another one: make demo PORT=8000"
    assert remedy in result.stdout.splitlines()
    assert "Open http" not in result.stdout


@pytest.mark.slow
def test_a_gap_that_comes_again_and_again_does_not_let_the_page_connect_without_a_pause(
    example: Callable[[str], Server], page: Page
) -> None:
    opened: list[float] = []

    def gap(socket: Any) -> None:
        opened.append(monotonic())
        socket.send('{"channel": "notify:all", "position": "9f86d081884c7d65-1", "event": "gap"}')

    page.route_web_socket("**/notify*", gap)
    page.goto(example("demo").url("/notify"))
    deadline = monotonic() + TIMEOUT
    while len(opened) < 4 and monotonic() < deadline:
        page.wait_for_timeout(50)
    # Half of each wait at least: 0.5, 1 and 2 s.
    assert opened[3] - opened[0] > 1.5


def test_the_notify_script_says_what_is_missing() -> None:
    result = notify_script("memory://", "Hello")
    assert result.returncode == 1
    assert "reaches no other process" in result.stderr
    result = notify_script("unix:///nowhere", "Hello")
    assert result.returncode == 1
    assert "cannot reach" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_the_page_comes_back_by_itself_when_its_server_was_away(
    gunicorn: StartServer, unused_port: int, page: Page
) -> None:
    def serve() -> Server:
        args = ["--chdir", str(ROOT)]
        return gunicorn(target="examples.demo:app", args=args, port=unused_port)

    first = serve()
    page.goto(first.url("/echo"))
    wait_for_state(page, "open")
    first.terminate()
    wait_for_state(page, "waiting")
    serve()
    wait_for_state(page, "open")
    say(page, "still here")
    page.wait_for_selector("#log li:has-text('still here')")


def test_a_browser_that_logs_in_gets_its_private_socket(
    example: Callable[[str], Server], page: Page
) -> None:
    page.goto(example("login").url("/"))
    page.fill("[name=user]", "ada")
    page.fill("[name=password]", "wrong")
    page.click("button:has-text('Log in')")
    page.wait_for_selector("#error:has-text('wrong name or password')")
    page.fill("[name=password]", "lovelace")
    page.click("button:has-text('Log in')")
    page.wait_for_selector("#log li:has-text('Welcome, ada!')")
    say(page, "hello")
    page.wait_for_selector("#log li:has-text('ada said: hello')")
    page.click("button:has-text('Log out')")
    wait_for_state(page, "closed")
    page.wait_for_selector("#login:visible")
    assert "logged out" in page.inner_text("#state")
    page.fill("[name=password]", "lovelace")
    page.click("button:has-text('Log in')")
    page.wait_for_selector("#log li:has-text('Welcome back, ada!')")
    say(page, "once")
    page.wait_for_selector("#log li:has-text('ada said: once')")
    assert page.locator("#log li:has-text('once')").count() == 1


def test_the_pages_load_nothing_from_elsewhere_and_have_no_inline_script() -> None:
    for template in (EXAMPLES / "templates").iterdir():
        text = template.read_text()
        assert "//" not in text.replace("redis://", ""), template.name
        assert "<script>" not in text, template.name
        assert not re.search(r"\son\w+\s*=", text), template.name
