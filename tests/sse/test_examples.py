"""The examples with event streams in Chromium, as the demo serves them, under a strict policy."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.brokers.servers import RedisServer
from tests.processes import Server, wait_until
from tests.sse.away import Proxy

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

StartServer = Callable[..., Server]

ROOT = Path(__file__).parents[2]


# Nothing is logged or done but by the tests.
SERVED = """
    from threading import Event
    from time import sleep

    from examples import demo, log, progress

    log.started.acquire()
    goes_on = Event()
    app = demo.app


    class Time:
        rows = 0

        def sleep(self, seconds):
            "Stop in the middle of a job, where a test asks for that."
            Time.rows += 1
            if app.config["STOPS"] and Time.rows > progress.ROWS / 4:
                goes_on.wait()
            sleep(0.002)


    progress.time = Time()
    app.config["STOPS"] = False


    @app.get("/stop")
    def stop():
        app.config["STOPS"] = True
        return ""


    @app.get("/go-on")
    def go_on():
        goes_on.set()
        return ""


    @app.get("/say/<part>/<text>")
    def say(part, text):
        log.loggers[part].info(text)
        return ""


    def restrict(response):
        response.headers["Content-Security-Policy"] = "default-src 'self'"
        return response


    for each in (demo.app, log.app, progress.app):
        each.after_request(restrict)
"""


def serve(gunicorn: StartServer, **how: object) -> Server:
    environ = {"PYTHONPATH": str(ROOT), "SECRET_KEY": "for the tests"}
    return gunicorn(SERVED, environ={**environ, **how.pop("environ", {})}, **how)  # type: ignore[dict-item]


@pytest.fixture
def server(gunicorn: StartServer) -> Server:
    return serve(gunicorn)


def wait_for_state(page: Page, words: str) -> None:
    wait_until(lambda: page.inner_text("#state") == words, f"the state {words!r}")


def lines(page: Page) -> list[tuple[str, str]]:
    """Part and text of each line."""
    rows = page.locator("#log li").all()
    return [
        (row.locator("span").nth(1).inner_text(), row.inner_text().split("\n")[-1]) for row in rows
    ]


def wait_for_lines(page: Page, *wanted: tuple[str, str]) -> None:
    try:
        wait_until(lambda: lines(page) == list(wanted), f"the lines {wanted}")
    except TimeoutError as exc:
        raise AssertionError(f"{exc}: {lines(page)}") from None


def say(page: Page, server: Server, part: str, text: str) -> None:
    assert page.request.get(server.url(f"/say/{part}/{text}")).ok


def test_the_demo_leads_to_each_of_them(server: Server, page: Page) -> None:
    for name, heading in (("Live log", "Live log"), ("A long job", "A long job")):
        page.goto(server.url("/"))
        page.click(f".cards b:text-is('{name}')")
        page.wait_for_selector(f"h1:has-text('{heading}')")


def test_the_log_shows_what_was_and_what_comes_of_the_parts_that_are_chosen(
    server: Server, page: Page
) -> None:
    say(page, server, "courier", "first")
    say(page, server, "shop", "second")
    page.goto(server.url("/log/"))
    wait_for_state(page, "live")
    wait_for_lines(page, ("courier", "first"), ("shop", "second"))
    say(page, server, "kitchen", "third")
    page.fill("#message", "<b>mine</b>")
    page.click("#form button")
    all_of_it = (
        ("courier", "first"),
        ("shop", "second"),
        ("kitchen", "third"),
        ("shop", "a visitor: <b>mine</b>"),
    )
    wait_for_lines(page, *all_of_it)
    page.uncheck("input[value=shop]")
    page.wait_for_url("**/log/?part=kitchen&part=courier")
    wait_for_lines(page, ("courier", "first"), ("kitchen", "third"))
    say(page, server, "shop", "unheard")
    say(page, server, "courier", "heard")
    wait_for_lines(page, ("courier", "first"), ("kitchen", "third"), ("courier", "heard"))


@pytest.mark.slow
def test_the_log_goes_on_after_its_server_was_killed(
    gunicorn: StartServer, unused_port: int, broker: RedisServer, page: Page
) -> None:
    environ = {"SOCKETS_BROKER_URL": broker.url}
    first = serve(gunicorn, port=unused_port, environ=environ, args=["-w", "2"])
    page.goto(first.url("/log/"))
    wait_for_state(page, "live")
    say(page, first, "shop", "before")
    wait_for_lines(page, ("shop", "before"))
    os.killpg(first.process.pid, signal.SIGKILL)
    first.process.wait()
    wait_for_state(page, "reconnecting")
    second = serve(gunicorn, port=unused_port, environ=environ, args=["-w", "2"])
    say(page, second, "shop", "meanwhile")
    wait_for_state(page, "live")
    wait_for_lines(page, ("shop", "before"), ("shop", "meanwhile"))


@pytest.mark.slow
def test_the_log_of_a_server_that_forgot_everything_says_so(
    gunicorn: StartServer, unused_port: int, page: Page
) -> None:
    first = serve(gunicorn, port=unused_port)
    page.goto(first.url("/log/?part=shop"))
    wait_for_state(page, "live")
    say(page, first, "shop", "before")
    wait_for_lines(page, ("shop", "before"))
    os.killpg(first.process.pid, signal.SIGKILL)
    first.process.wait()
    serve(gunicorn, port=unused_port)
    wait_for_lines(page, ("shop", "before"), ("", "some lines are missing"))


@pytest.mark.slow
def test_the_log_goes_on_after_its_proxy_had_no_server(server: Server, page: Page) -> None:
    with closing(Proxy(server.port)) as proxy:
        page.goto(proxy.url("/log/?part=shop"))
        wait_for_state(page, "live")
        proxy.leave(502)
        wait_for_state(page, "reconnecting")
        wait_until(lambda: proxy.refused >= 3, "several attempts")
        say(page, server, "shop", "meanwhile")
        proxy.status = 0
        wait_for_state(page, "live")
        wait_for_lines(page, ("shop", "meanwhile"))


def percent(page: Page) -> int:
    text = page.inner_text("#percent").removesuffix(" %")
    return int(text) if text.isdigit() else -1


def test_the_bar_of_a_running_job_is_right_after_a_reload_and_in_another_window(
    server: Server, page: Page, browser: Browser
) -> None:
    assert page.request.get(server.url("/stop")).ok
    page.goto(server.url("/progress/"))
    page.click("button:text-is('Start')")
    page.wait_for_url("**/progress/jobs/*")
    wait_until(lambda: percent(page) == 25, "some progress")
    page.reload()
    wait_until(lambda: percent(page) == 25, "the bar to be where it was")
    other = browser.new_page()
    other.goto(page.url)
    wait_until(lambda: percent(other) == 25, "the bar in the other window")
    assert page.request.get(server.url("/go-on")).ok
    for window in (page, other):
        wait_until(lambda window=window: percent(window) == 100, "the end")
        assert window.inner_text("#words") == "done: row 400 of 400"
        assert window.get_attribute("#bar", "value") == "400"
    page.reload()
    wait_until(lambda: percent(page) == 100, "the end after a reload")
    wait_for_state(page, "ended")
    other.close()


def test_the_address_of_a_job_is_of_no_use_in_another_browser(
    server: Server, page: Page, browser: Browser
) -> None:
    page.goto(server.url("/progress/"))
    page.click("button:text-is('Start')")
    page.wait_for_url("**/progress/jobs/*")
    wait_until(lambda: percent(page) >= 1, "some progress")
    address = page.get_attribute("#job", "data-stream")
    other = browser.new_page()
    other.goto(server.url("/progress/"))
    ask = "(url) => fetch(url).then((answer) => (answer.body.cancel(), answer.status))"
    assert [window.evaluate(ask, address) for window in (page, other)] == [200, 403]
    other.close()


def test_a_job_that_fails_says_so(server: Server, page: Page) -> None:
    page.goto(server.url("/progress/"))
    page.check("input[name=fails]")
    page.click("button:text-is('Start')")
    page.wait_for_selector("#job[data-state=failed]")
    assert page.inner_text("#words") == "failed: row 241 is no address"
    assert percent(page) == 60


def test_the_page_of_a_job_whose_server_was_started_anew_says_so(
    gunicorn: StartServer, unused_port: int, page: Page
) -> None:
    first = serve(gunicorn, port=unused_port)
    assert page.request.get(first.url("/stop")).ok
    page.goto(first.url("/progress/"))
    page.click("button:text-is('Start')")
    page.wait_for_url("**/progress/jobs/*")
    wait_until(lambda: percent(page) == 25, "some progress")
    os.killpg(first.process.pid, signal.SIGKILL)
    first.process.wait()
    serve(gunicorn, port=unused_port)
    page.wait_for_selector("#words:text-is('The events of this job are gone.')")
    assert percent(page) == -1
    assert page.get_attribute("#bar", "value") is None
    assert page.get_attribute("#state", "data-state") == "unknown"


def test_of_a_job_that_never_was_nothing_is_said(server: Server, page: Page) -> None:
    page.goto(server.url("/progress/jobs/none"))
    wait_for_state(page, "live")
    assert page.inner_text("#words") == "No event of this job has arrived yet."


def test_a_page_whose_stream_is_refused_is_loaded_again(server: Server, page: Page) -> None:
    page.goto(server.url("/log/"))
    wait_for_state(page, "live")
    page.route("**/stream?*", lambda route: route.fulfill(status=410))
    page.clock.install()
    with page.expect_navigation():
        page.goto(server.url("/log/"))
    loads = []
    page.on("load", lambda _: loads.append(page.url))

    def reloaded() -> bool:
        page.clock.fast_forward(10_000)
        return bool(loads)

    wait_until(reloaded, "the page to be loaded again")
    page.unroute("**/stream?*")
