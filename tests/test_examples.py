"""Each example is started the way its first lines say, and used over TCP."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection

from tests.clients import TIMEOUT, echoed, http, websocket
from tests.processes import Server

if TYPE_CHECKING:
    from playwright.sync_api import Page

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"

StartServer = Callable[..., Server]


@pytest.fixture
def example(gunicorn: StartServer) -> Callable[[str], Server]:
    """Start ``examples/<name>.py`` under gunicorn."""

    def start(name: str) -> Server:
        return gunicorn(target=f"examples.{name}:app", args=["--chdir", str(ROOT)])

    return start


def events(client: ClientConnection, count: int) -> list[dict[str, object]]:
    return [json.loads(client.recv(timeout=TIMEOUT)) for _ in range(count)]


def test_the_echo_example_serves_its_page_and_its_echo_at_one_address(
    example: Callable[[str], Server],
) -> None:
    server = example("echo")
    status, body, _ = http(server.url("/echo"))
    assert status == 200
    assert 'data-socket="/echo"' in body
    assert echoed(server.ws_url("/echo"), "hello") == "hello"
    assert echoed(server.ws_url("/echo"), b"\x00\xff") == b"\x00\xff"


def test_the_chat_example_tells_every_member_what_one_says(
    example: Callable[[str], Server],
) -> None:
    server = example("chat")
    with websocket(server.ws_url("/chat?name=Ada")) as ada:
        assert events(ada, 1) == [{"joined": "Ada", "online": 1}]
        with websocket(server.ws_url("/chat?name=Bob")) as bob:
            assert events(bob, 1) == [{"joined": "Bob", "online": 2}]
            bob.send("<b>hi</b>")
            assert events(bob, 1) == [{"name": "Bob", "text": "<b>hi</b>"}]
        assert events(ada, 3) == [
            {"joined": "Bob", "online": 2},
            {"name": "Bob", "text": "<b>hi</b>"},
            {"left": "Bob", "online": 1},
        ]


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


def test_two_browser_windows_chat_and_see_markup_as_text(
    example: Callable[[str], Server], page: Page
) -> None:
    address = example("demo").url("/chat")
    other = page.context.new_page()
    for window, name in ((page, "Ada"), (other, "Bob")):
        window.goto(address)
        window.fill("#name", name)
        window.click("#join button")
        wait_for_state(window, "open")
    page.wait_for_selector("#log li:has-text('Bob joined')")
    say(other, "<img src=x>")
    page.wait_for_selector("#log li:has-text('Bob: <img src=x>')")
    assert page.inner_text("#online") == "2"


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


def test_the_pages_load_nothing_from_elsewhere_and_have_no_inline_script() -> None:
    for template in (EXAMPLES / "templates").iterdir():
        text = template.read_text()
        assert "//" not in text, template.name
        assert "<script>" not in text, template.name
        assert not re.search(r"\son\w+\s*=", text), template.name
