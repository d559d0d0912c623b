"""The example of a page with hints, behind HAProxy and without, in Chromium."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.processes import Server

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

StartServer = Callable[..., Server]

SERVED = """
    from examples import demo, hints


    def restrict(response):
        response.headers["Content-Security-Policy"] = "default-src 'self'"
        return response


    for each in (demo.app, hints.app):
        each.after_request(restrict)

    app = demo.app
"""


@pytest.fixture
def server(gunicorn: StartServer) -> Server:
    """The demo, under a strict policy."""
    return gunicorn(SERVED, environ={"PYTHONPATH": str(ROOT)})


@pytest.fixture
def page(trusting_page: Page) -> Iterator[Page]:
    """A page that tells of errors in its scripts and of what a policy forbids."""
    errors: list[str] = []
    trusting_page.on("pageerror", lambda error: errors.append(str(error)))
    trusting_page.on(
        "console", lambda message: errors.append(message.text) if message.type == "error" else None
    )
    yield trusting_page
    assert errors == []


def loaded(page: Page, way: str) -> int:
    """Load the page in one of the ways and return what it says, in milliseconds."""
    page.click(f"[data-way={way}] h2 a")
    page.wait_for_selector(f"html[data-drawn={way}]", state="attached")
    return int(page.inner_text(f"[data-way={way}] output").removesuffix(" ms"))


def begun(page: Page, way: str, kind: str) -> float:
    """Where a bar begins, as a share of the track."""
    found: str = page.locator(f"[data-way={way}] .bar.{kind}").evaluate("(bar) => bar.style.left")
    return float(found.removesuffix("%"))


def test_behind_a_proxy_that_passes_them_the_hints_gain_what_the_stylesheet_takes(
    server: Server, haproxy: Callable[[Server], Server], page: Page
) -> None:
    page.goto(haproxy(server).url("/"))
    page.click(".cards b:text-is('Early hints')")
    page.wait_for_selector("html[data-drawn=plain]", state="attached")
    assert page.inner_text("[data-way=hinted] output") == "not loaded yet"
    plain, hinted, flushed = (loaded(page, way) for way in ("plain", "hinted", "flushed"))
    assert plain > 1000
    assert hinted < plain - 150  # of 400 that there are to gain, on a machine that is busy
    assert flushed < plain - 150
    assert page.locator(".bar.mark").count() == 2  # in the legend, and of the hints
    assert page.inner_text("#protocol") == "h2"
    assert begun(page, "plain", "style") > begun(page, "plain", "page")
    assert begun(page, "hinted", "style") < begun(page, "hinted", "page")
    for _ in range(5):  # on a busy machine the page may be made before the stylesheet is here
        loaded(page, "hinted")
        if "arrived" in page.inner_text("#advice"):
            break
    assert page.inner_text("#advice") == "The stylesheet arrived before the page was made."


def test_without_a_proxy_the_page_says_why_there_are_no_hints(server: Server, page: Page) -> None:
    page.goto(server.url("/hints/"))
    plain, hinted, flushed = (loaded(page, way) for way in ("plain", "hinted", "flushed"))
    assert min(plain, hinted) > 1000
    assert flushed < plain - 150
    loaded(page, "hinted")
    assert "over HTTP/2" in page.inner_text("#advice")


@pytest.mark.parametrize("asked", ["", "x", "99999999999999999999", "-1"])
def test_a_stylesheet_that_somebody_made_up_is_one_all_the_same(
    asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from examples import hints

    monkeypatch.setattr(hints, "STYLE_TIME", 0)
    answer = hints.app.test_client().get(f"/slow.css?asked={asked}")
    assert answer.status_code == 200
    assert answer.headers["Server-Timing"].startswith("asked;dur=")
