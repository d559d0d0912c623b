"""The examples with Turbo in Chromium, as the demo serves them, under a strict policy."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flask_sockets2.turbo import npm
from tests.processes import Server, in_a_process, wait_until
from tests.turbo.browser import Network, Window, turbo_js

if TYPE_CHECKING:
    from playwright.sync_api import Page

StartServer = Callable[..., Server]

ROOT = Path(__file__).parents[2]

# The hash is that of the one style that turbo.js puts into each page, for its progress bar.
SERVED = """
    import os

    from flask import send_file

    from examples import demo, load, orders, todo

    STYLE_HASH = "sha256-WAyOw4V+FqDc35lQPyRADLBWbuNK8ahvYEaQIYF1+Ps="
    POLICY = f"default-src 'self'; style-src 'self' '{STYLE_HASH}'"


    def restrict(response):
        response.headers["Content-Security-Policy"] = POLICY
        return response


    for each in (demo.app, load.app, todo.app, orders.app):
        each.config["TURBO_JS_URL"] = "/turbo.js"
        each.after_request(restrict)

    app = demo.app


    @app.get("/turbo.js")
    def turbo_js():
        return send_file(os.environ["TURBO_JS"], "text/javascript")
"""


@pytest.fixture(scope="session")
def environ() -> dict[str, str]:
    """What the demo needs in its environment."""
    try:
        return {"TURBO_JS": str(turbo_js()), "PYTHONPATH": str(ROOT)}
    except npm.Unobtainable as exc:
        pytest.skip(f"no turbo.js: {exc}")


@pytest.fixture
def server(gunicorn: StartServer, environ: dict[str, str]) -> Server:
    """The demo, in one process, which has no orders yet and nothing to do."""
    return gunicorn(SERVED, environ=environ)


@pytest.fixture
def open_window(new_page: Callable[..., Page]) -> Iterator[Callable[..., Window]]:
    """Opens windows that share no cookies; what their console says fails the test."""
    windows = []

    def open_it(base: Server | Network, **options: Any) -> Window:
        page = new_page(viewport={"width": 900, "height": 620}, **options)
        windows.append(Window(page, base))
        return windows[-1]

    yield open_it
    lines = [line for window in windows for line in window.console]
    # Chromium tells of 422, too, and with info where the focus stays.
    lines = [line for line in lines if not line.startswith("info:")]
    assert [line for line in lines if "status of 422" not in line] == []


def submit(page: Page, selector: str) -> int:
    """Press a button and return the status of the answer to its form."""
    with page.expect_response(lambda response: response.request.method == "POST") as answer:
        page.click(selector)
    status: int = answer.value.status
    return status


def add(page: Page, text: str) -> int:
    """Write something to do, and return the status of the answer."""
    page.fill("#new input", text)
    status = submit(page, "#new button")
    if status != 422:
        wait_until(lambda: page.input_value("#new input") == "", "an empty form")
    return status


def items(page: Page) -> list[str]:
    return page.locator("#todos li > span").all_inner_texts()


def wait_for_items(page: Page, *texts: str) -> None:
    wait_until(lambda: items(page) == list(texts), f"{texts} in the list")


def test_the_demo_leads_to_each_of_them(server: Server, open_window: Callable[..., Window]) -> None:
    window = open_window(server)
    for name in ("Load averages", "To do", "Orders"):
        window.page.goto(server.url("/"))
        window.page.click(f".cards b:text-is('{name}')")
        window.wait_for_state("connected")
        assert window.page.inner_text(".stream-state").strip() == "live"
        assert name in window.page.inner_text("h1")


# -- load averages -----------------------------------------------------------------------------


def updates(window: Window) -> None:
    """Wait until the box shows another time than now."""
    shown = window.page.inner_text("#load time")
    assert re.fullmatch(r"\d\d:\d\d:\d\d", shown)
    wait_until(lambda: window.page.inner_text("#load time") != shown, "an update")


@pytest.mark.slow
def test_the_load_averages_update_by_themselves_on_both_pages(
    server: Server, open_window: Callable[..., Window]
) -> None:
    window, other = open_window(server), open_window(server)
    window.go("/load/")
    other.go("/load/about")
    updates(window)
    updates(other)
    window.page.click("text=How it works")
    window.page.wait_for_selector("h1:text-is('How it works')")
    updates(window)
    assert window.page.locator("#load dd").count() == 3
    assert window.loaded_once
    assert other.loaded_once


@pytest.mark.slow
def test_the_load_averages_go_on_after_their_server_was_killed_and_restarted(
    gunicorn: StartServer,
    unused_port: int,
    environ: dict[str, str],
    open_window: Callable[..., Window],
) -> None:
    first = gunicorn(SERVED, port=unused_port, environ=environ)
    window = open_window(first)
    window.go("/load/")
    updates(window)
    os.killpg(first.process.pid, signal.SIGKILL)
    first.process.wait()
    window.wait_for_state("offline")
    assert window.page.inner_text(".stream-state").strip() == "offline"
    window.console.clear()  # of connections that were refused
    shown = window.page.inner_text("#load time")
    gunicorn(SERVED, port=unused_port, environ=environ)
    window.wait_for_state("connected")
    wait_until(lambda: window.page.inner_text("#load time") != shown, "what it missed")
    updates(window)
    assert window.loaded_once
    window.console.clear()


# -- to do -------------------------------------------------------------------------------------


@pytest.mark.quick
def test_a_to_do_list_in_two_browsers(server: Server, open_window: Callable[..., Window]) -> None:
    ada, bob = open_window(server), open_window(server)
    ada.go("/todo/")
    bob.go("/todo/")
    assert ada.page.is_visible(".empty")
    assert add(ada.page, "Milk") == 200
    assert add(ada.page, "  <b>Bread</b> & butter ") == 200
    for page in (ada.page, bob.page):
        wait_for_items(page, "Milk", "<b>Bread</b> & butter")
        page.wait_for_selector("#left:text-is('2 left')")
        assert not page.is_visible(".empty")
    ada.wait_for("document.activeElement === document.querySelector('#new input')")
    assert ada.page.inner_text("#flashes") == "Added “<b>Bread</b> & butter”."
    assert submit(bob.page, "[aria-label='Done: Milk']") == 200
    for page in (ada.page, bob.page):
        page.wait_for_selector("[aria-label='Done: Milk'][aria-pressed=true]")
        page.wait_for_selector("#left:text-is('1 left')")
    assert submit(ada.page, "[aria-label='Remove: Milk']") == 200
    for page in (ada.page, bob.page):
        wait_for_items(page, "<b>Bread</b> & butter")
    # Nobody else is told what one has done.
    assert ada.page.inner_text("#flashes") == "Removed “Milk”."
    assert bob.page.inner_text("#flashes") == "Done: “Milk”."
    assert ada.loaded_once
    assert bob.loaded_once


def test_an_empty_text_is_answered_with_422_and_the_page_says_why(
    server: Server, open_window: Callable[..., Window]
) -> None:
    window, other = open_window(server), open_window(server)
    window.go("/todo/")
    other.go("/todo/")
    assert add(window.page, "   ") == 422
    window.page.wait_for_selector("[role=alert]:text-is('Write what is to be done.')")
    assert window.page.get_attribute("#new input", "aria-invalid") == "true"
    assert add(other.page, "Milk") == 200
    wait_for_items(window.page, "Milk")  # over the connection that there was
    assert add(window.page, "Bread") == 200
    for page in (window.page, other.page):
        wait_for_items(page, "Milk", "Bread")
    assert window.page.locator("[role=alert]").count() == 0
    assert window.loaded_once


@pytest.mark.slow
def test_what_another_one_has_removed_vanishes_here_too(
    server: Server, open_window: Callable[..., Window]
) -> None:
    window, other = open_window(server), open_window(server)
    window.go("/todo/")
    add(window.page, "Milk")
    other.go("/todo/")
    window.page.route_web_socket("**/turbo-stream*", lambda socket: None)  # nothing arrives
    window.page.reload()
    assert submit(other.page, "[aria-label='Remove: Milk']") == 200
    wait_for_items(other.page)
    assert items(window.page) == ["Milk"]
    assert submit(window.page, "[aria-label='Done: Milk']") == 200
    wait_for_items(window.page)
    assert window.page.inner_text("#flashes") == "Somebody has removed that."


@pytest.mark.slow
def test_without_javascript_forms_are_answered_with_303_and_other_windows_see_it(
    server: Server, open_window: Callable[..., Window]
) -> None:
    window, other = open_window(server), open_window(server, java_script_enabled=False)
    window.go("/todo/")
    other.page.goto(server.url("/todo/"))
    assert not other.page.is_visible(".stream-state")
    assert add(other.page, "Milk") == 303
    wait_for_items(other.page, "Milk")
    assert other.page.inner_text("#flashes") == "Added “Milk”."
    wait_for_items(window.page, "Milk")
    assert add(other.page, "") == 422
    assert other.page.inner_text("[role=alert]") == "Write what is to be done."
    assert submit(other.page, "[aria-label='Remove: Milk']") == 303
    for page in (other.page, window.page):
        wait_for_items(page)


# -- orders ------------------------------------------------------------------------------------


def order(window: Window, name: str, dish: str = "Funghi") -> int:
    """Order from the page for it, and return the status of the answer."""
    window.page.fill("[name=name]", name)
    window.page.select_option("[name=dish]", dish)
    return submit(window.page, "button:text-is('Order')")


def wait_for_columns(window: Window, *columns: list[str]) -> None:
    """Wait until the board has these orders in its columns."""

    def shown() -> list[list[str]]:
        found: list[list[str]] = window.page.evaluate(
            """Array.from(document.querySelectorAll(".board ul"), (list) =>
                Array.from(list.querySelectorAll("a"), (each) => each.innerText))"""
        )
        return found

    try:
        wait_until(lambda: shown() == list(columns), f"{columns}")
    except TimeoutError as exc:
        raise AssertionError(f"{exc}; it shows {shown()}") from None


def test_the_board_counts_its_own_window_before_that_is_connected() -> None:
    in_a_process(check_the_first_count)


def check_the_first_count() -> None:
    from examples.orders import app, count_lookers, turbo

    def position() -> str:
        with app.test_request_context():
            return str(turbo.position("lookers"))

    before = position()
    page = app.test_client().get("/").text
    assert '<b id="lookers">1</b>' in page
    with app.app_context():
        count_lookers()
    assert position() == before  # it has told nobody that there are none


def test_orders_in_two_browsers(server: Server, open_window: Callable[..., Window]) -> None:
    kitchen, guest = open_window(server), open_window(server)
    kitchen.go("/orders/")
    guest.go("/orders/new")
    assert order(guest, "Ada") == 303
    guest.page.wait_for_selector("h1:text-is('Order 1')")
    guest.wait_for_rest()
    assert "Ada, your Funghi has been ordered." in guest.page.inner_text("#progress")
    wait_for_columns(kitchen, ["1 Ada"], [], [])
    for button, words, columns in (
        ("Into the oven", "is in the oven", [[], ["1 Ada"], []]),
        ("It is done", "is ready", [[], [], ["1 Ada"]]),
        ("Collected", "is yours", [[], [], []]),
    ):
        assert submit(kitchen.page, f"button:text-is('{button}')") == 303
        guest.page.wait_for_selector(f"#progress p:has-text('{words}')")
        wait_for_columns(kitchen, *columns)
        kitchen.wait_for_rest()
    assert guest.page.inner_text("[aria-current=step]") == "Collected"
    assert kitchen.loaded_once
    assert guest.loaded_once


@pytest.mark.slow
def test_the_page_of_an_order_gets_nothing_of_others(
    server: Server, open_window: Callable[..., Window]
) -> None:
    ada, bob, kitchen = (open_window(server) for _ in range(3))
    for window, name in ((ada, "Ada"), (bob, "Bob")):
        window.go("/orders/new")
        order(window, name)
        window.page.wait_for_selector("#progress")
        window.wait_for_rest()
    kitchen.go("/orders/")
    wait_for_columns(kitchen, ["1 Ada", "2 Bob"], [], [])
    submit(kitchen.page, "#order-2 button")
    bob.page.wait_for_selector("#progress p:has-text('Bob, your Funghi is in the oven.')")
    assert "Ada, your Funghi has been ordered." in ada.page.inner_text("#progress")


@pytest.mark.slow
def test_a_board_that_refreshes_keeps_its_elements_and_its_scrolling(
    server: Server, open_window: Callable[..., Window]
) -> None:
    kitchen, guest = open_window(server), open_window(server)
    for number in range(8):
        guest.go("/orders/new")
        order(guest, f"Guest {number}")
        guest.page.wait_for_selector("#progress")
    kitchen.go("/orders/")
    kitchen.page.focus("#order-8 button")
    kitchen.page.evaluate("scrollTo(0, 200); document.getElementById('order-8').kept = true")
    guest.go("/orders/new")
    order(guest, "Ada")
    kitchen.page.wait_for_selector("#order-9")
    kitchen.wait_for_rest()
    assert kitchen.page.evaluate("document.getElementById('order-8').kept")
    assert kitchen.page.evaluate("document.activeElement.closest('li').id") == "order-8"
    assert kitchen.page.evaluate("scrollY") == 200
    assert kitchen.loaded_once


@pytest.mark.slow
def test_two_cooks_who_press_at_once_do_not_send_an_order_on_twice(
    server: Server, open_window: Callable[..., Window]
) -> None:
    one, other, guest = (open_window(server) for _ in range(3))
    guest.go("/orders/new")
    order(guest, "Ada")
    guest.page.wait_for_selector("#progress")
    one.page.route_web_socket("**/turbo-stream*", lambda socket: None)  # hears nothing
    one.page.goto(server.url("/orders/"))
    other.go("/orders/")
    assert submit(other.page, "button:text-is('Into the oven')") == 303
    wait_for_columns(other, [], ["1 Ada"], [])
    assert submit(one.page, "button:text-is('Into the oven')") == 303
    wait_for_columns(one, [], ["1 Ada"], [])


def test_an_order_without_a_name_is_answered_with_422(
    server: Server, open_window: Callable[..., Window]
) -> None:
    guest = open_window(server)
    guest.go("/orders/new")
    assert order(guest, " ", "Diavola") == 422
    guest.page.wait_for_selector("[role=alert]")
    assert guest.page.input_value("[name=dish]") == "Diavola"
    assert order(guest, "Ada", "Diavola") == 303
    guest.page.wait_for_selector("#progress p:has-text('Ada, your Diavola')")
    assert guest.loaded_once


@pytest.mark.slow
def test_the_board_tells_how_many_windows_show_it(
    server: Server, open_window: Callable[..., Window]
) -> None:
    kitchen, other = open_window(server), open_window(server)
    kitchen.go("/orders/")
    other.go("/orders/")
    for window in (kitchen, other):
        window.page.wait_for_selector("#lookers:text-is('2')")
    other.page.click("text=New order")
    kitchen.page.wait_for_selector("#lookers:text-is('1')")
