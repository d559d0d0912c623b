"""EventSource in headless Chromium, as a page of the application uses it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from flask_sockets2 import Publisher
from tests.brokers.servers import RedisServer
from tests.processes import Server, wait_until
from tests.sse.site import SOURCE, Site
from tests.turbo.browser import network_to

if TYPE_CHECKING:
    from playwright.sync_api import Page

StartServer = Callable[..., Server]


def load(page: Page, base: str, stream: str = "/stream") -> None:
    """Load the page, and wait until its stream is open."""
    page.goto(f"{base}/page?stream={quote(stream)}")
    wait_until(lambda: page.evaluate("opened") == 1, "the stream")


def events(page: Page) -> list[list[str]]:
    """What it has got: type, data and last event id."""
    found: list[list[str]] = page.evaluate("events")
    return found


def bytes_of_streams(page: Page) -> list[int]:
    """A list to which the sizes are added of what the page gets of streams from now on."""
    sizes: list[int] = []
    streams = set()

    def note(response: dict[str, Any]) -> None:
        if response["type"] == "EventSource":
            streams.add(response["requestId"])

    def count(data: dict[str, Any]) -> None:
        if data["requestId"] in streams:
            sizes.append(data["dataLength"])

    session = page.context.new_cdp_session(page)
    session.on("Network.responseReceived", note)
    session.on("Network.dataReceived", count)
    session.send("Network.enable")
    return sizes


def wait_for_data(page: Page, *data: str) -> None:
    try:
        wait_until(lambda: [d for _, d, _ in events(page)] == list(data), "events")
    except TimeoutError as exc:
        raise AssertionError(f"{exc}: {events(page)}") from None


@pytest.mark.quick
@pytest.mark.parametrize("worker", ["flask_sockets2.worker", "gthread"])
def test_typed_events_come_as_they_were_published(
    gunicorn: StartServer, worker: str, page: Page
) -> None:
    site = Site(gunicorn(SOURCE, worker=worker, args=["--threads=8"]))
    load(page, site.server.url("").rstrip("/"))
    site.publish("hello", query="?type=greeting&id=0")
    site.publish(" two\n lines\u2028\r")
    site.publish("")
    site.publish("unheard", query="?type=another")
    site.publish("last", query="?id=own")
    wait_until(lambda: len(events(page)) == 4, "all events")
    got = events(page)
    assert [each[:2] for each in got] == [
        ["greeting", "hello"],
        ["message", " two\n lines\u2028\n"],
        ["message", ""],
        ["message", "last"],
    ]
    assert (got[0][2], got[3][2]) == ("0", "own")


@pytest.mark.parametrize(
    "stream", ["/stream", pytest.param("/stream?channel=sse&channel=b", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("own_id", ["", pytest.param("?id=own", marks=pytest.mark.slow)])
def test_after_the_server_was_killed_every_event_has_come_once_and_in_order(
    gunicorn: StartServer,
    unused_port: int,
    page: Page,
    broker: RedisServer,
    stream: str,
    own_id: str,
) -> None:
    environ = {"FLASK_SOCKETS_BROKER_URL": broker.url}
    site = Site(gunicorn(SOURCE, port=unused_port, environ=environ))
    load(page, site.server.url("").rstrip("/"), stream)
    site.publish("1", query=own_id)
    site.publish("2", query=own_id)
    wait_for_data(page, "1", "2")
    os.killpg(site.server.process.pid, signal.SIGKILL)
    site.server.process.wait()
    fields = {"id": "own"} if own_id else {}
    with Publisher(broker.url) as publisher:
        for text in ("3", "4"):
            publisher.publish("sse:sse", {"data": text, **fields})
        site = Site(gunicorn(SOURCE, port=unused_port, environ=environ))
        wait_for_data(page, "1", "2", "3", "4")
        site.publish("5", query=own_id)
    wait_for_data(page, "1", "2", "3", "4", "5")
    assert page.evaluate("opened") == 2
    if own_id:
        assert {id for _, _, id in events(page)} == {"own"}


def test_one_that_is_cut_off_before_any_event_misses_none(
    gunicorn: StartServer, page: Page
) -> None:
    site = Site(gunicorn(SOURCE))
    first_block = bytes_of_streams(page)
    with network_to(site.server) as network:
        load(page, network.url("").rstrip("/"))
        wait_until(lambda: page.evaluate("opened") and first_block, "the position")
        network.cut()
        site.wait_for_subscribers(0)
        site.publish("missed")
        network.mend()
        wait_for_data(page, "missed")


def test_a_server_that_forgot_everything_tells_of_a_gap(
    gunicorn: StartServer, unused_port: int, page: Page
) -> None:
    site = Site(gunicorn(SOURCE, port=unused_port))
    load(page, site.server.url("").rstrip("/"))
    site.publish("1")
    wait_for_data(page, "1")
    os.killpg(site.server.process.pid, signal.SIGKILL)
    site.server.process.wait()
    site = Site(gunicorn(SOURCE, port=unused_port))
    wait_for_data(page, "1", '{"channel": "sse"}')
    assert events(page)[1][0] == "gap"
    site.publish("2")
    wait_for_data(page, "1", '{"channel": "sse"}', "2")


def test_a_browser_comes_back_after_about_the_time_that_is_set(
    gunicorn: StartServer, page: Page
) -> None:
    site = Site(gunicorn(SOURCE, environ={"FLASK_SSE_RETRY": "1500"}))
    with network_to(site.server) as network:
        load(page, network.url("").rstrip("/"))
        page.evaluate(
            """() => {
                window.log = [];
                source.onerror = () => { log.push(["lost", performance.now()]); };
                source.onopen = () => { log.push(["back", performance.now()]); };
            }"""
        )
        network.drop()
        wait_until(lambda: page.evaluate("log.length == 2"), "the stream to be back")
        (lost, at), (back, later) = page.evaluate("log")
    assert (lost, back) == ("lost", "back")
    waited = later - at
    assert 700 < waited < 3500  # 1,500 ms, half more or less
