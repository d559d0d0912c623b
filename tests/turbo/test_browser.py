"""Pages in Chromium: what the server pushes is on them, whatever happens in between."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from flask_sockets2 import Publisher
from flask_sockets2.turbo import npm
from tests.brokers.servers import RedisServer, redis_or_skip
from tests.clients import http, websocket
from tests.processes import Server, servers_in, wait_until
from tests.turbo.browser import (
    APP,
    PATIENCE,
    Network,
    Since,
    Window,
    counts,
    item,
    network_to,
    push,
    turbo_js,
    value,
)

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

StartServer = Callable[..., Server]

MODULE = Path(npm.__file__).parent / "static" / "turbo-streams.js"
QUICK_TO_STOP = ["--graceful-timeout", "1"]


@pytest.fixture(scope="session")
def environ() -> dict[str, str]:
    """What the application needs in its environment."""
    try:
        return {"TURBO_JS": str(turbo_js())}
    except npm.Unobtainable as exc:
        pytest.skip(f"no turbo.js: {exc}")


@pytest.fixture(scope="module")
def server(environ: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that leave it as it is."""
    with servers_in(tmp_path_factory.mktemp("server")) as servers:
        environ = {**environ, "FLASK_DEBUG": "1"}
        yield servers.gunicorn(APP, args=QUICK_TO_STOP, environ=environ)


@pytest.fixture
def network(server: Server) -> Iterator[Network]:
    with network_to(server) as network:
        yield network


@pytest.fixture
def broker() -> Iterator[RedisServer]:
    """A real Valkey or Redis server."""
    yield from redis_or_skip()


@pytest.fixture
def open_window(new_page: Callable[..., Page]) -> Callable[..., Window]:
    """Opens windows that share no cookies."""

    def open_it(base: Server | Network, **options: Any) -> Window:
        return Window(new_page(viewport={"width": 800, "height": 500}, **options), base)

    return open_it


@pytest.fixture
def window(open_window: Callable[..., Window], server: Server) -> Window:
    return open_window(server)


def open_connections(server: Server, number: int) -> None:
    """Wait until so many are open: a closed one may take a moment to be gone."""
    wait_until(lambda: counts(server)["open"] == number, f"{number} open connections")


@pytest.mark.slow
def test_a_page_under_a_strict_policy_shows_what_is_pushed_and_its_console_is_empty(
    server: Server, window: Window
) -> None:
    window.go("/page/home?room=1")
    push(server, item("for all"))
    push(server, item("in room 1"), room=1)
    push(server, item("in room 2"), room=2)
    push(server, value(7))
    window.page.wait_for_selector("#value:text-is('7')")
    assert window.log == ["for all", "in room 1"]
    assert window.console == []


BREAKS_TURBO = {"addEventListener", "body", "createElement", "documentElement", "querySelector"}


@pytest.mark.quick
@pytest.mark.parametrize("breaks", [False, True])
def test_user_content_hides_nothing_of_the_document(
    server: Server, browser: Browser, breaks: bool
) -> None:
    """An element with a name is a property of the document (HTML §3.1.5): DOM clobbering.

    turbo.js itself does not survive each name; then the page is still connected to its server.
    """
    used = set(re.findall(r"\bdocument\.(\w+)", MODULE.read_text()))
    assert {"scripts", "hidden", *BREAKS_TURBO} <= used
    names = used & BREAKS_TURBO if breaks else used - BREAKS_TURBO

    [module] = re.findall(r'src="(\S+turbo-streams-\S+)"', http(server.url("/page/home"))[1])
    # Two are a collection, in which the first is as good as our own script.
    twice = f'<img name="NAME" src="{module}" alt="" data-url="//127.0.0.1:1/evil">' * 2
    content = quote("".join(twice.replace("NAME", name) for name in names))
    connected: list[str] = []
    errors: list[Any] = []
    open_connections(server, 0)
    with browser.new_context() as context:
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(error))
        page.on("websocket", lambda socket: connected.append(socket.url))
        page.goto(server.url(f"/page/home?room=1&content={content}"))
        wait_until(lambda: page.wait_for_timeout(20) or connected, "a connection")
        open_connections(server, 1)
        if not breaks:
            push(server, item("for all"))
            push(server, item("in room 1"), room=1)
            page.wait_for_selector("#log li:nth-child(2)")
            assert errors == []
    assert {url.split("?")[0] for url in connected} == {server.ws_url("/turbo-stream")}


@pytest.mark.slow
def test_a_page_with_a_base_is_refreshed_at_its_own_address(server: Server, window: Window) -> None:
    path = "/page/home?room=1&content=" + quote('<base href="/page/b">')
    window.go(path)
    since = Since(server)
    for number, cause in enumerate(("message", "gap"), 1):
        if cause == "message":
            push(server, '<turbo-stream action="refresh"></turbo-stream>', room=1)
        else:
            window.page.evaluate(
                "document.querySelector('turbo-stream-from').setAttribute('position', '-')"
            )
        wait_until(lambda n=number: since["pages"] == n, f"the refresh after a {cause}")
        window.wait_for_rest()
        assert window.page.inner_text("h1") == "home"
        assert window.page.url == server.url(path)
    push(server, item("last"))
    window.wait_for_log("last")
    assert window.loaded_once


@pytest.mark.quick
def test_what_is_pushed_between_rendering_and_connecting_is_on_the_page(
    server: Server, window: Window
) -> None:
    def push_first(route: Any) -> None:
        push(server, item("for all"))
        push(server, item("in room 1"), room=1)
        route.continue_()

    window.page.route("**/turbo-streams-*.js", push_first)
    window.go("/page/home?room=1")
    push(server, item("later"))
    window.wait_for_length(3)
    assert sorted(window.log) == ["for all", "in room 1", "later"]


def test_a_page_whose_server_was_killed_and_restarted_shows_all_that_came_meanwhile(
    gunicorn: StartServer,
    unused_port: int,
    environ: dict[str, str],
    broker: RedisServer,
    open_window: Callable[..., Window],
) -> None:
    def serve() -> Server:
        more = {**environ, "FLASK_SOCKETS_BROKER_URL": broker.url}
        return gunicorn(APP, args=QUICK_TO_STOP, port=unused_port, environ=more)

    first = serve()
    window = open_window(first)
    window.go("/page/home?room=1")
    push(first, item("before"))
    window.wait_for_log("before")
    os.killpg(first.process.pid, signal.SIGKILL)
    window.wait_for_state("offline")
    with Publisher(broker.url) as publisher:
        for number in range(20):
            publisher.publish("turbo:all", item(number))
    second = serve()
    window.wait_for_log("before", *range(20))
    push(second, item("after"))
    window.wait_for_log("before", *range(20), "after")
    assert window.loaded_once
    assert counts(second)["pages"] == 0


@pytest.mark.slow
def test_a_page_of_a_server_that_has_forgotten_everything_is_refreshed_once(
    gunicorn: StartServer,
    unused_port: int,
    environ: dict[str, str],
    open_window: Callable[..., Window],
) -> None:
    def serve() -> Server:
        return gunicorn(APP, args=QUICK_TO_STOP, port=unused_port, environ=environ)

    first = serve()
    window = open_window(first)
    window.go("/page/home?room=1&room=2")
    push(first, item("before"))
    window.wait_for_log("before")
    window.page.evaluate(
        "document.addEventListener('turbo-stream:gap', (e) => (window.gaps ??= []).push(e.detail))"
    )
    os.killpg(first.process.pid, signal.SIGKILL)
    first.process.wait()
    second = serve()
    window.wait_for_log()  # as the page is when rendered anew
    window.wait_for_rest()
    wait_until(lambda: counts(second)["open"] == 1, "the connection of the fresh page")
    push(second, item("after"))
    window.wait_for_log("after")
    assert window.loaded_once
    assert counts(second)["pages"] == 1
    gaps = window.page.evaluate("window.gaps.map((each) => each.channel)")
    assert sorted(gaps) == ["turbo:all", "turbo:stream:room:1", "turbo:stream:room:2"]
    assert window.page.get_attribute("turbo-stream-from >> nth=0", "position") != "-"


def test_gaps_that_do_not_end_do_not_let_the_page_refresh_without_a_pause(
    server: Server, window: Window
) -> None:
    def gap(socket: Any) -> None:
        channels = ["turbo:all"]
        socket.send(json.dumps({"event": "streams", "channels": channels}))
        told = {"event": "subscribed", "channel": "turbo:all", "position": "00000000deadbeef-1"}
        socket.send(json.dumps(told))
        socket.send(json.dumps({**told, "event": "gap"}))

    window.page.route_web_socket("**/turbo-stream*", gap)
    since = Since(server)
    window.go("/page/home")
    wait_until(lambda: since["pages"] == 2, "the first refresh")
    window.page.wait_for_timeout(2000)  # in which nothing shall happen
    assert since["pages"] == 2


@pytest.mark.quick
def test_visits_among_pages_with_the_same_streams_keep_the_connection(
    server: Server, window: Window
) -> None:
    since = Since(server)
    window.go("/page/home")
    for link in ("a", "b", "home"):
        window.visit(link)
        push(server, item(link))
        window.wait_for_log(link)
    assert since["opened"] == 1
    assert window.loaded_once


@pytest.mark.parametrize("room", ["1", "12345678-1234-5678-1234-567812345678"])
def test_a_name_that_was_signed_anew_keeps_the_connection(
    server: Server, window: Window, room: str
) -> None:
    """Each page has names of its own, whose positions differ."""
    window.go(f"/page/home?room={room}")
    before = window.page.get_attribute("turbo-stream-from", "name")
    since = Since(server)
    push(server, item(1), room=room)
    window.wait_for_log(1)
    window.page.evaluate(f"Turbo.visit('/page/a?room={room}')")
    window.page.wait_for_selector("h1:text-is('a')")
    window.wait_for_rest()
    push(server, item(2), room=room)
    window.wait_for_log(2)
    assert window.page.get_attribute("turbo-stream-from", "name") != before
    assert since["opened"] == 0
    assert window.loaded_once


def test_the_streams_change_with_a_visit(server: Server, window: Window) -> None:
    window.go("/page/home")
    window.visit("room 1")
    window.page.wait_for_selector("turbo-stream-from[connected]", state="attached")
    push(server, item("in room 1"), room=1)
    window.wait_for_log("in room 1")
    window.visit("room 2")
    window.page.wait_for_selector("turbo-stream-from[connected]", state="attached")
    push(server, item("in room 1"), room=1)
    push(server, item("in room 2"), room=2)
    window.wait_for_log("in room 2")
    open_connections(server, 1)
    window.visit("quiet")
    push(server, item("in room 2"), room=2)
    push(server, item("for all"))
    window.wait_for_log("for all")
    open_connections(server, 1)


@pytest.mark.quick
def test_back_and_forward_show_what_came_meanwhile_over_exactly_one_connection(
    server: Server, window: Window
) -> None:
    window.go("/page/home")
    push(server, item(1))
    window.wait_for_log(1)
    window.visit("room 1")
    push(server, item(2))
    push(server, item("in room 1"), room=1)
    window.wait_for_length(2)
    window.back("home")
    window.wait_for_log(1, 2)
    window.forward("room1")
    window.page.wait_for_selector("turbo-stream-from[connected]", state="attached")
    assert sorted(window.log) == ["2", "in room 1"]
    open_connections(server, 1)
    for number in range(3, 6):
        push(server, item(number))
        window.back("home")
        window.wait_for_log(*range(1, number + 1))
        window.forward("room1")
        window.wait_for_length(number)
        open_connections(server, 1)
    assert window.loaded_once


def test_there_is_no_connection_for_a_preview(server: Server, window: Window) -> None:
    held: list[Any] = []
    window.go("/page/room1?room=1")
    window.visit("home")
    open_connections(server, 1)
    since = Since(server)
    # Turbo shows its copy of the page while the server takes its time.
    window.page.route("**/page/room1?room=1", lambda route: held.append(route))
    window.page.click("nav a:text-is('room 1')")
    window.page.wait_for_selector("html[data-turbo-preview] h1:text-is('room1')")
    push(server, item("meanwhile"))
    push(server, item("in room 1"), room=1)
    window.wait_for_frames(3)
    assert since["opened"] == 0
    held[0].continue_()
    window.wait_for_rest()
    window.page.wait_for_selector("turbo-stream-from[connected]", state="attached")
    push(server, item("after"), room=1)
    window.wait_for_log("after")  # the page was made after the others
    assert since["opened"] == 1
    open_connections(server, 1)


def test_a_preview_that_stays_has_no_hole(
    server: Server, open_window: Callable[..., Window]
) -> None:
    window, other = open_window(server), open_window(server)
    other.go("/page/b")
    window.go("/page/a")
    window.visit("home")
    push(server, item(1))
    window.wait_for_log(1)
    window.page.route("**/page/a", lambda route: None)  # no answer
    window.page.click("nav a:text-is('a')")
    window.page.wait_for_selector("html[data-turbo-preview] h1:text-is('a')")
    push(server, item(2))  # while the page shows neither
    other.wait_for_log(1, 2)
    window.wait_for_frames(3)
    window.back("home")
    window.wait_for_log(1, 2)
    window.forward("a")
    window.wait_for_log(1, 2)


def test_a_page_that_turbo_has_fetched_in_advance_gets_what_came_since(
    server: Server, window: Window
) -> None:
    window.go("/page/home")
    with window.page.expect_response("**/page/a"):
        window.page.hover("nav a:text-is('a')")
    push(server, item("for all"))
    window.wait_for_log("for all")
    since = Since(server)
    window.visit("a")
    window.wait_for_log("for all")
    assert since["pages"] == 0
    open_connections(server, 1)


def test_elements_that_come_and_go_are_observed(server: Server, window: Window) -> None:
    window.go("/page/home?room=1")
    html = window.page.evaluate("document.getElementById('streams').innerHTML")
    window.page.evaluate("document.getElementById('streams').replaceChildren()")
    push(server, item("while it is not there"), room=1)
    push(server, item("for all"))
    window.wait_for_log("for all")
    # The markup of before, with its position of before.
    window.page.evaluate("(html) => (document.getElementById('streams').innerHTML = html)", html)
    window.wait_for_log("for all", "while it is not there")
    push(server, item("in room 1"), room=1)
    window.wait_for_log("for all", "while it is not there", "in room 1")
    other = window.page.evaluate(
        "fetch('/page/x?room=2').then((r) => r.text()).then((text) => new DOMParser()"
        ".parseFromString(text, 'text/html').querySelector('turbo-stream-from').outerHTML)"
    )
    window.page.evaluate(
        """(html) => {
            const element = document.querySelector("turbo-stream-from");
            const other = new DOMParser().parseFromString(html, "text/html").body.firstChild;
            element.setAttribute("name", other.getAttribute("name"));
            element.setAttribute("position", other.getAttribute("position"));
        }""",
        other,
    )
    push(server, item("in room 2"), room=2)
    window.page.wait_for_selector("#log li:text-is('in room 2')")
    open_connections(server, 1)


def test_a_page_with_an_older_position_gets_what_it_lacks_once(
    server: Server, window: Window
) -> None:
    window.go("/page/home?room=1")
    for number in range(5):
        push(server, item(number), room=1)
    window.wait_for_log(*range(5))
    position = window.page.get_attribute("turbo-stream-from", "position")
    epoch, _, offset = position.rpartition("-")
    window.page.evaluate(
        """(position) => {
            for (const each of [...document.querySelectorAll("#log li")].slice(3)) each.remove();
            document.querySelector("turbo-stream-from").setAttribute("position", position);
        }""",
        f"{epoch}-{int(offset) - 2}",
    )
    window.wait_for_log(*range(5))
    assert window.page.get_attribute("turbo-stream-from", "position") == position


def test_a_stream_that_brings_its_own_element_anew_does_not_go_round_in_a_circle(
    server: Server, window: Window
) -> None:
    window.go("/page/home?room=1")
    html = window.page.evaluate("document.getElementById('streams').innerHTML")
    since = Since(server)
    push(
        server,
        '<turbo-stream action="update" target="streams"><template>'
        f"{html}</template></turbo-stream>" + item("once"),
        room=1,
    )
    window.wait_for_log("once")
    push(server, item("more"), room=1)
    window.wait_for_log("once", "more")
    assert since["opened"] <= 1


def test_a_frame_that_changes_the_url_does_not_move_the_page_on(
    server: Server, window: Window
) -> None:
    held: list[Any] = []

    def hold(socket: Any) -> None:
        upstream = socket.connect_to_server()
        upstream.on_message(
            lambda message: held.append(message) if "#late" in message else socket.send(message)
        )
        socket.on_message(upstream.send)
        window.socket = socket  # type: ignore[attr-defined]

    window.page.route_web_socket("**/turbo-stream*", hold)
    window.go("/page/home")
    push(server, item("<i id='#late'>late</i>"))
    wait_until(lambda: window.page.wait_for_timeout(20) or held, "the message")
    window.page.click("#frame a")
    window.page.wait_for_selector("#frame b:text-is('a')")
    window.wait_for("location.pathname === '/page/a' && document.title === 'a'")
    window.wait_for_rest()
    window.socket.send(held[0])  # type: ignore[attr-defined]
    window.wait_for_log("late")


def test_a_permanent_element_that_lacks_something_does_not_refresh_the_page_for_ever(
    server: Server, window: Window
) -> None:
    window.page.clock.install()
    window.go("/page/home?widget=1")
    stream = window.page.locator("#widget turbo-stream-from")
    since = Since(server)
    stream.evaluate("(element) => element.setAttribute('position', '00000000deadbeef-1')")
    window.wait_for("document.querySelector('#widget > *').getAttribute('position') === '-'")
    window.page.clock.fast_forward("00:01")
    wait_until(lambda: since["pages"] == 1, "the refresh")
    window.wait_for("document.querySelector('#widget > *').getAttribute('position').length > 16")
    window.wait_for_rest()
    for _ in range(3):
        window.page.clock.fast_forward("01:00")
        window.wait_for_frames(3)
    assert since["pages"] == 1
    push(server, item("in the widget").replace("log", "value"))
    window.page.wait_for_selector("#value li")


def test_two_elements_of_a_stream_are_asked_for_by_the_name_of_the_older_one(
    server: Server, network: Network, open_window: Callable[..., Window]
) -> None:
    """The other one's name permits less."""
    window = open_window(network)
    window.go("/page/home?room=1")
    first = window.page.evaluate("document.getElementById('streams').innerHTML")
    push(server, item(1), room=1)
    window.wait_for_log(1)
    # Behind it one of a page that has just been rendered.
    window.page.evaluate(
        """() => fetch('/page/x?room=1').then((r) => r.text()).then((text) => {
            const page = new DOMParser().parseFromString(text, 'text/html');
            document.getElementById('streams').append(page.querySelector('turbo-stream-from'));
        })"""
    )
    window.page.wait_for_selector("turbo-stream-from[connected] >> nth=1", state="attached")
    # And the page as it was when it was loaded.
    window.page.evaluate(
        """(html) => {
            document.getElementById("log").replaceChildren();
            document.querySelector("turbo-stream-from").remove();
            document.getElementById("streams").insertAdjacentHTML("afterbegin", html);
        }""",
        first,
    )
    window.wait_for_log(1)
    network.drop()
    push(server, item(2), room=1)
    window.wait_for_log(1, 2)
    assert window.loaded_once


@pytest.mark.slow
@pytest.mark.parametrize("method", ["morph", "replace"])
def test_a_permanent_element_of_a_page_without_positions_is_told_of_one_gap(
    gunicorn: StartServer,
    environ: dict[str, str],
    broker: RedisServer,
    open_window: Callable[..., Window],
    method: str,
) -> None:
    """The refresh leaves it as it is. Its name permits no position, and it takes that of the new
    page."""
    environ = {**environ, "FLASK_SOCKETS_BROKER_URL": broker.url}
    server = gunicorn(APP, args=QUICK_TO_STOP, environ=environ)
    with network_to(server) as network:
        window = open_window(network)
        window.page.add_init_script(
            "document.addEventListener('turbo-stream:gap', () => (window.gaps += 1));"
            "window.gaps = 0"
        )
        broker.kill()
        window.go(f"/page/home?widget=1&refresh={method}", connected=False)
        before = window.page.get_attribute("#widget turbo-stream-from", "name")
        broker.restart()
        wait_until(lambda: counts(server)["pages"] == 2, "the refresh")
        window.wait_for_rest()
        window.wait_for_state("connected")
        window.page.wait_for_selector("#widget [connected]", state="attached")
        assert window.page.get_attribute("#widget turbo-stream-from", "name") != before
        told = window.page.evaluate("window.gaps")
        network.drop()
        push(server, item("meanwhile"))
        window.wait_for_log("meanwhile")
        window.page.wait_for_selector("#widget [connected]", state="attached")
        assert window.page.evaluate("window.gaps") == told
        assert counts(server)["pages"] == 2
        assert window.loaded_once


def test_a_field_keeps_its_text_and_focus_while_other_parts_change(
    server: Server, window: Window
) -> None:
    window.go("/page/home?room=1")
    window.page.fill("#text", "half a sentence")
    window.page.evaluate("document.getElementById('text').setSelectionRange(5, 6)")
    push(server, item(1) + value(1), room=1)
    push(
        server,
        '<turbo-stream action="replace" target="value" method="morph"><template>'
        '<p id="value">2</p></template></turbo-stream>',
    )
    window.page.wait_for_selector("#value:text-is('2')")
    window.wait_for_log(1)
    window.wait_for_frames(3)
    window.page.keyboard.type("the")
    assert window.page.input_value("#text") == "half the sentence"


@pytest.mark.parametrize("method", ["morph", "replace"])
def test_a_refresh_keeps_what_is_typed_where_it_is_permanent(
    server: Server, window: Window, method: str
) -> None:
    window.go(f"/page/home?refresh={method}")
    window.page.fill("#text", "half a sentence")
    window.page.fill("#kept", "half a sentence")
    window.page.evaluate("document.getElementById('kept').setSelectionRange(5, 6)")
    push(server, item(1))
    window.wait_for_log(1)
    push(server, '<turbo-stream action="refresh"></turbo-stream>')
    window.wait_for_log()
    window.wait_for_rest()
    window.page.keyboard.type("the")
    assert window.page.input_value("#kept") == "half the sentence"


def test_a_refresh_by_morphing_keeps_the_focus_of_a_field(server: Server, window: Window) -> None:
    window.go("/page/home?refresh=morph")
    window.page.fill("#text", "half a sentence")
    push(server, item(1))
    window.wait_for_log(1)
    push(server, '<turbo-stream action="refresh"></turbo-stream>')
    window.wait_for_log()
    window.wait_for_rest()
    window.page.keyboard.type(" again")
    assert window.page.input_value("#text") == "half a sentence again"


def test_a_refresh_by_morphing_keeps_the_streams(server: Server, window: Window) -> None:
    window.go("/page/home?room=1&refresh=morph")
    since = Since(server)
    push(server, item("before"), room=1)
    push(server, item("for all"))
    window.wait_for_length(2)
    push(server, '<turbo-stream action="refresh"></turbo-stream>')
    window.wait_for_log()
    window.wait_for_rest()
    push(server, item("after"), room=1)
    window.wait_for_log("after")
    assert since["opened"] == 0
    assert window.page.get_attribute("turbo-stream-from", "connected") == ""


@pytest.mark.quick
def test_where_websockets_are_blocked_it_is_the_same_over_server_sent_events(
    server: Server, network: Network, open_window: Callable[..., Window]
) -> None:
    network.refuse_upgrades = True
    window = open_window(network)
    window.page.add_init_script(
        "document.addEventListener('turbo-stream:connected', "
        "(event) => (window.transport = event.detail.transport))"
    )
    since = Since(server)
    window.go("/page/home?room=1")
    assert window.page.evaluate("window.transport") == "event-stream"
    assert since["events"] == 1
    push(server, item(1))
    push(server, item("ä\nü"), room=1)
    window.wait_for_log(1, "ä ü")
    network.drop()
    push(server, item(2))
    window.wait_for_log(1, "ä ü", 2)
    window.visit("a")
    push(server, item("in a"))
    window.wait_for_log("in a")
    window.hide()
    network.connections.clear()
    push(server, item("while hidden"))
    window.hide(False)
    window.wait_for_log("in a", "while hidden")
    assert network.asked("/turbo-stream") == 1


NOTE_TRANSPORT = """
document.addEventListener(
    "turbo-stream:connected", (event) => (window.transport = event.detail.transport)
);
"""


def test_a_constructor_of_websockets_that_throws_is_gone_round(
    server: Server, window: Window
) -> None:
    """Safari's does where the page's policy forbids it."""
    window.page.add_init_script(
        """
        window.WebSocket = class {
            constructor() {
                throw new DOMException("The operation is insecure.", "SecurityError");
            }
        };
        """
        + NOTE_TRANSPORT
    )
    window.page.clock.install()
    window.go("/page/home")
    push(server, item(1))
    window.wait_for_log(1)
    window.page.clock.fast_forward("03:01")  # to the next attempt, which throws as well
    push(server, item(2))
    window.wait_for_log(1, 2)
    assert window.page.evaluate("window.transport") == "event-stream"


def test_a_policy_that_forbids_websockets_costs_no_time(server: Server, window: Window) -> None:
    def forbid(route: Any) -> None:
        response = route.fetch()
        policy = f"{response.headers['content-security-policy']}; connect-src http:"
        headers = {**response.headers, "content-security-policy": policy}
        route.fulfill(response=response, headers=headers)

    window.page.route("**/page/home", forbid)
    window.page.add_init_script(NOTE_TRANSPORT)
    # By this clock no timeout passes.
    window.page.clock.install()
    window.page.clock.pause_at("2100-01-01")
    window.go("/page/home")
    assert window.page.evaluate("window.transport") == "event-stream"
    push(server, item(1))
    window.wait_for_log(1)


def test_a_server_that_cannot_send_over_its_websockets_is_asked_for_events(
    server: Server, window: Window
) -> None:
    def unsupported(socket: Any) -> None:
        socket.send(json.dumps({"event": "unsupported"}))
        socket.close()

    window.page.route_web_socket("**/turbo-stream*", unsupported)
    window.page.add_init_script(NOTE_TRANSPORT)
    window.go("/page/home")
    assert window.page.evaluate("window.transport") == "event-stream"
    push(server, item(1))
    window.wait_for_log(1)


def test_a_tab_that_is_hidden_while_it_asks_for_events_lets_go_of_them(
    server: Server, network: Network, open_window: Callable[..., Window]
) -> None:
    network.refuse_upgrades = True
    window = open_window(network)
    held: list[Any] = []
    window.page.route("**/turbo-stream?*", lambda route: held.append(route))
    window.go("/page/home", connected=False)
    wait_until(lambda: window.page.wait_for_timeout(20) or held, "the request")
    window.hide()
    with window.page.expect_event("requestfailed"):  # by its own will
        held[0].continue_()
    window.page.unroute("**/turbo-stream?*")
    push(server, item("while hidden"))
    window.hide(False)
    window.wait_for_log("while hidden")


def test_websockets_are_tried_again_after_a_while(
    server: Server, network: Network, open_window: Callable[..., Window]
) -> None:
    network.refuse_upgrades = True
    window = open_window(network)
    window.page.clock.install()
    window.go("/page/home")
    window.page.evaluate(
        "document.addEventListener('turbo-stream:connected', "
        "(event) => (window.transport = event.detail.transport))"
    )
    network.connections.clear()
    window.page.clock.fast_forward("03:01")
    wait_until(lambda: network.asked("/turbo-stream") >= 1, "an attempt")  # in vain
    push(server, item(1))
    window.wait_for_log(1)
    network.refuse_upgrades = False
    window.page.clock.fast_forward("03:01")
    window.wait_for("window.transport === 'websocket'")
    push(server, item(2))
    window.wait_for_log(1, 2)
    open_connections(server, 1)


def test_an_attempt_that_gets_no_answer_is_given_up(
    server: Server, network: Network, open_window: Callable[..., Window]
) -> None:
    window = open_window(network)
    window.page.clock.install()
    window.go("/page/home")
    network.pause()
    network.drop()
    network.connections.clear()
    for number in range(1, 5):  # each attempt by both ways
        while network.asked("/turbo-stream") < number:
            window.page.clock.fast_forward("00:05")
            window.wait_for_frames(1)
    assert window.state == "offline"
    push(server, item("meanwhile"))
    network.resume()
    window.page.clock.fast_forward("00:15")
    window.wait_for_log("meanwhile")


def test_a_network_that_stands_still_for_a_while_loses_nothing(
    server: Server, network: Network, open_window: Callable[..., Window]
) -> None:
    window = open_window(network)
    window.go("/page/home?room=1")
    since = Since(server)
    network.pause()
    for number in range(3):
        push(server, item(number))
    network.resume()
    window.wait_for_log(*range(3))
    assert since["opened"] == 0
    network.pause()
    network.drop()
    push(server, item(3))
    wait_until(lambda: network.asked("/turbo-stream") >= 2, "an attempt")  # which gets no answer
    push(server, item(4))
    network.resume()
    window.wait_for_log(*range(5))
    assert window.loaded_once


@pytest.mark.quick
def test_a_network_that_is_cut_loses_nothing_and_the_page_says_so(
    server: Server, network: Network, open_window: Callable[..., Window]
) -> None:
    window = open_window(network)
    window.page.add_init_script(
        """
        window.told = [];
        for (const what of ["connected", "disconnected"]) {
            document.addEventListener(`turbo-stream:${what}`, () => told.push(what));
        }
        """
    )
    window.go("/page/home?room=1")
    stream = window.page.locator("turbo-stream-from")
    assert stream.get_attribute("connected") == ""
    assert not window.page.is_visible(".notice")
    network.cut()
    window.wait_for_state("offline")
    assert stream.get_attribute("connected") is None
    assert window.page.is_visible(".notice")
    push(server, item("meanwhile"))
    network.mend()
    window.wait_for_log("meanwhile")
    window.wait_for_state("connected")
    assert stream.get_attribute("connected") == ""
    assert window.page.evaluate("told") == ["connected", "disconnected", "connected"]
    assert window.loaded_once


@pytest.mark.slow
@pytest.mark.parametrize("way", ["opened", "events"])
def test_a_page_whose_connections_grow_old_loses_nothing(
    way: str,
    gunicorn: StartServer,
    environ: dict[str, str],
    open_window: Callable[..., Window],
) -> None:
    """``SOCKETS_MAX_CONNECTION_AGE``, for WebSockets and for Server-Sent Events."""
    server = gunicorn(
        APP, args=QUICK_TO_STOP, environ={**environ, "FLASK_SOCKETS_MAX_CONNECTION_AGE": "1"}
    )
    with network_to(server) as network:
        network.refuse_upgrades = way == "events"
        window = open_window(network)
        window.go("/page/home")
        since, deadline = Since(server), monotonic() + PATIENCE
        pushed: list[object] = []
        while since[way] < 3:
            assert monotonic() < deadline, "the connection was to end by now"
            push(server, item(len(pushed)))
            pushed.append(len(pushed))
            window.page.wait_for_timeout(50)  # the pace of what is pushed
        window.wait_for_log(*pushed)
        assert since["pages"] == 0


@pytest.mark.slow
def test_a_page_beyond_a_limit_waits_as_it_is_told_and_then_comes(
    gunicorn: StartServer, environ: dict[str, str], open_window: Callable[..., Window]
) -> None:
    """A script is told 1006 of a WebSocket; the page asks for events, which have a status."""
    environ = {**environ, "FLASK_SOCKETS_MAX_CONNECTIONS_PER_ADDRESS": "1"}
    server = gunicorn(APP, args=QUICK_TO_STOP, environ=environ)
    window = open_window(server)
    with websocket(server.ws_url("/turbo-stream")):
        asked = Since(server)
        begun = monotonic()
        window.go("/page/home", connected=False)
        window.wait_for_state("offline")
        wait_until(lambda: asked["events"] == 1, "the page to ask for events")
        closed = window.page.evaluate(
            """() => new Promise((resolve) => {
                const socket = new WebSocket(`ws://${location.host}/turbo-stream`);
                socket.onclose = ({ code, reason, wasClean }) => resolve([code, reason, wasClean]);
            })"""
        )
        assert closed == [1006, "", False]
        wait_until(lambda: asked["events"] == 2, "it to ask again")
        assert monotonic() - begun > 4.0  # Retry-After is 5
    window.wait_for_state("connected")
    push(server, item("here"))
    window.wait_for_log("here")
    assert window.loaded_once


@pytest.mark.slow
def test_attempts_become_seldom(network: Network, open_window: Callable[..., Window]) -> None:
    window = open_window(network)
    window.page.add_init_script("Math.random = () => 0")  # the shortest: half of each delay
    window.go("/page/home")
    network.connections.clear()
    begun = monotonic()
    network.cut()
    # Each attempt by both ways.
    wait_until(lambda: network.asked("/turbo-stream") >= 6, "three attempts")
    assert monotonic() - begun >= 0.25 + 0.5 + 1 - 0.1
    network.mend()
    window.wait_for_state("connected")


def test_a_hidden_tab_waits(
    server: Server, network: Network, open_window: Callable[..., Window]
) -> None:
    window = open_window(network)
    window.go("/page/home")
    window.hide()
    push(server, item("while hidden"))
    window.wait_for_log("while hidden")  # over the connection that there is
    network.connections.clear()
    network.drop()
    window.wait_for("document.documentElement.dataset.turboStreamState !== 'connected'")
    push(server, item("later"))
    window.page.wait_for_timeout(1200)  # more than two attempts
    assert network.connections == []
    window.hide(False)
    window.wait_for_log("while hidden", "later")


def test_a_network_that_is_back_is_tried_at_once(
    network: Network, open_window: Callable[..., Window]
) -> None:
    window = open_window(network)
    window.page.add_init_script("Math.random = () => 1000")  # for ever
    window.go("/page/home")
    network.drop()
    window.wait_for("document.documentElement.dataset.turboStreamState !== 'connected'")
    window.page.evaluate("window.dispatchEvent(new Event('online'))")
    window.wait_for_state("connected")


def test_a_page_whose_network_goes_says_so_at_once(server: Server, window: Window) -> None:
    window.go("/page/home")
    window.page.context.set_offline(True)  # which leaves WebSockets as they are
    window.wait_for_state("offline")
    push(server, item("meanwhile"))
    window.page.context.set_offline(False)
    window.wait_for_log("meanwhile")
    window.wait_for_state("connected")


def test_a_connection_that_died_while_the_device_slept_is_replaced(
    server: Server, network: Network, open_window: Callable[..., Window]
) -> None:
    window = open_window(network)
    window.page.clock.install()
    window.go("/page/home")
    network.forget()
    push(server, item("meanwhile"))
    window.page.clock.fast_forward("08:00:00")
    window.wait_for_log("meanwhile")
    push(server, item("after"))
    window.wait_for_log("meanwhile", "after")


def test_a_page_in_the_browsers_own_cache_has_no_connection_and_goes_on_when_it_is_back(
    server: Server, window: Window
) -> None:
    window.go("/page/home")
    # As it is told; Chromium under test keeps no pages.
    window.page.evaluate("dispatchEvent(new PageTransitionEvent('pagehide', { persisted: true }))")
    open_connections(server, 0)
    push(server, item("meanwhile"))
    window.page.evaluate("dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))")
    window.wait_for_log("meanwhile")
    open_connections(server, 1)


def test_a_forged_name_reloads_the_page_once(server: Server, window: Window) -> None:
    since = Since(server)
    window.page.goto(server.url("/page/home?forged=1"))
    window.wait_for_state("refused")
    wait_until(lambda: since["pages"] == 2, "the reload")
    window.wait_for_state("refused")
    window.page.evaluate("window.dispatchEvent(new Event('online'))")
    window.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    window.page.wait_for_timeout(800)  # in which nothing shall happen
    assert (since["pages"], since["events"]) == (2, 2)
    window.visit("a")  # which is in order
    window.wait_for_state("connected")
    push(server, item("for all"))
    window.wait_for_log("for all")


def test_the_reload_of_one_page_keeps_no_other_from_its_own(server: Server, window: Window) -> None:
    since = Since(server)
    window.page.goto(server.url("/page/home?forged=1"))

    def reloaded() -> bool:
        how = "performance.getEntriesByType('navigation')[0]?.type"
        try:
            return bool(window.page.evaluate(how) == "reload")
        except Exception:  # of playwright, between the two pages
            return False

    wait_until(reloaded, "the reload")
    window.wait_for_state("refused")
    window.page.goto(server.url("/page/b?forged=1"))
    wait_until(lambda: since["pages"] == 4, "the reload of the other page")


@pytest.mark.quick
def test_without_turbo_js_the_page_has_failed_and_says_why(server: Server, window: Window) -> None:
    since, blocked = Since(server), [True]
    window.page.route("**/turbo.js", lambda route: route.abort() if blocked else route.fallback())
    window.page.goto(server.url("/page/home"))
    window.wait_for_state("failed")
    assert not window.page.is_visible(".notice")  # that the page is offline
    window.page.evaluate("dispatchEvent(new Event('online'))")
    window.wait_for_state("failed")
    assert [text for text in window.console if "turbo.js is not loaded" in text]
    assert [text for text in window.console if "flask turbo vendor" in text]
    window.page.context.set_offline(True)
    window.wait_for_state("offline")
    window.page.context.set_offline(False)
    window.wait_for_state("failed")
    assert since["opened"] == 0
    blocked.clear()
    window.page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.src = "/turbo.js";
            document.head.append(script);
        }"""
    )
    window.wait_for_state("connected")
    push(server, item(1))
    window.wait_for_log(1)


def test_a_page_whose_key_has_changed_is_loaded_anew_and_goes_on(
    server: Server, window: Window
) -> None:
    window.go("/page/home?room=1")
    since = Since(server)
    # As if the name had been signed with another one.
    window.page.evaluate(
        "document.querySelector('turbo-stream-from').setAttribute('name', 'ImV4cGlyZWQi.x.y')"
    )
    wait_until(lambda: since["pages"] == 1, "the reload")
    wait_until(lambda: since["opened"] == 1, "the new connection")
    window.wait_for_state("connected")
    push(server, item("in room 1"), room=1)
    window.wait_for_log("in room 1")


def test_an_application_may_keep_its_page_from_being_reloaded(
    server: Server, window: Window
) -> None:
    window.page.add_init_script(
        """
        window.asked = 0;
        document.addEventListener("turbo-stream:before-reload", (event) => {
            asked += 1;
            event.preventDefault();
        });
        """
    )
    since = Since(server)
    window.page.goto(server.url("/page/home?forged=1"))
    window.page.fill("#text", "half a")
    window.wait_for("window.asked === 1")
    assert window.state == "refused"
    window.page.evaluate("window.dispatchEvent(new Event('online'))")
    window.page.wait_for_timeout(500)  # in which nothing shall happen
    assert since["pages"] == 1
    assert window.page.evaluate("window.asked") == 1
    assert window.page.input_value("#text") == "half a"


def become(window: Window, user: str | None) -> None:
    """Log in as somebody, or out, in another tab."""
    context = window.page.context
    context.clear_cookies()
    if user is not None:
        context.add_cookies([{"name": "user", "value": user, "url": window.base.url()}])


def test_users_who_are_given_the_same_page_of_a_cache_are_all_connected(
    server: Server, open_window: Callable[..., Window]
) -> None:
    windows = []
    for user in ("ann", "bob", None):
        window = open_window(server)
        become(window, user)
        window.go("/shared")
        windows.append(window)
    push(server, item("to all"))
    push(server, item("to the room"), room="shared")
    for window in windows:
        window.wait_for("document.querySelectorAll('#log li').length === 2")


@pytest.mark.slow
@pytest.mark.parametrize("query", ["room=1", "rooms=200"])
@pytest.mark.parametrize("way", ["websocket", "event-stream"])
@pytest.mark.parametrize("then", [None, "bob"])
def test_a_page_whose_user_has_gone_is_loaded_again_once(
    server: Server,
    network: Network,
    open_window: Callable[..., Window],
    query: str,
    way: str,
    then: str | None,
) -> None:
    """Its connection stays until it is lost; then it is refused, and the new page goes on."""
    network.refuse_upgrades = way == "event-stream"
    window = open_window(network)
    become(window, "ann")
    window.go(f"/page/home?{query}")
    become(window, then)
    push(server, item("for ann"), room=1)
    window.wait_for_log("for ann")
    since = Since(server)
    network.drop()
    wait_until(lambda: since["pages"] == 1, "the reload")
    window.wait_for_state("connected")
    push(server, item("for the new page"), room=1)
    window.wait_for_log("for the new page")
    assert since["pages"] == 1


def test_a_page_that_somebody_logs_in_on_keeps_its_streams(
    server: Server, network: Network, open_window: Callable[..., Window]
) -> None:
    window = open_window(network)
    window.go("/page/home?room=1")
    become(window, "ann")
    since = Since(server)
    network.drop()
    push(server, item("meanwhile"), room=1)
    window.wait_for_log("meanwhile")
    assert since["pages"] == 0


def test_a_page_of_another_user_from_a_cache_is_refused_and_does_not_go_round_in_a_circle(
    server: Server, open_window: Callable[..., Window]
) -> None:
    first, window = open_window(server), open_window(server)
    become(first, "ann")
    first.go("/page/home?room=1")
    page = first.page.request.get(server.url("/page/home?room=1")).text()
    become(window, "bob")
    loads: list[str] = []

    def cached(route: Any) -> None:
        loads.append(route.request.url)
        route.fulfill(body=page, content_type="text/html")

    window.page.route("**/page/home?room=1", cached)
    since = Since(server)
    window.page.goto(server.url("/page/home?room=1"))
    wait_until(lambda: window.page.wait_for_timeout(20) or len(loads) == 2, "the reload")
    window.wait_for_state("refused")
    window.page.evaluate("window.dispatchEvent(new Event('online'))")
    window.page.wait_for_timeout(800)  # in which nothing shall happen
    assert (len(loads), since["opened"], since["events"]) == (2, 0, 2)


def test_an_element_that_is_pushed_to_all_connects_the_pages_of_all(
    server: Server, open_window: Callable[..., Window]
) -> None:
    """The page of the user whose request has rendered it, and those of others."""
    ann, bob = open_window(server), open_window(server)
    for window, user in ((ann, "ann"), (bob, "bob")):
        become(window, user)
        window.go("/page/home")
    since = Since(server)
    assert ann.page.request.post(server.url("/invite?room=1")).ok
    for window in (ann, bob):
        window.page.wait_for_selector("#log [connected]", state="attached")
    push(server, value("all in room 1"), room=1)
    for window in (ann, bob):
        window.page.wait_for_selector("#value:text-is('all in room 1')")
    assert since["pages"] == 0


def expired_name(server: Server, room: int, position: str = "-") -> str:
    """The signed name of a room's stream as it would have been fifty years ago.

    :param position: at which its page was rendered.
    """
    name: str = http(server.url(f"/expired/{room}?at={position}"))[1]
    return name


def expire(server: Server, window: Window, room: int) -> None:
    """Let a page's last element have such a name, when it connects the next time."""
    last = window.page.locator("turbo-stream-from").last
    window.page.evaluate(
        """(name) => {
            const element = [...document.querySelectorAll("turbo-stream-from")].at(-1);
            element.setAttribute("name", name);
        }""",
        expired_name(server, room, last.get_attribute("position") or ""),
    )


@pytest.mark.quick
@pytest.mark.parametrize(("query", "room"), [("room=1", 1), ("rooms=200", 199)])
def test_names_that_have_expired_are_renewed_and_the_page_stays(
    server: Server,
    network: Network,
    open_window: Callable[..., Window],
    query: str,
    room: int,
) -> None:
    """The last of 200 is not in the URL: a close code refuses it, no status."""
    window = open_window(network)
    window.go(f"/page/home?{query}")
    push(server, item("before"), room)
    window.wait_for_log("before")
    window.page.fill("#text", "half a sentence")
    expire(server, window, room)
    since = Since(server)
    network.drop()
    push(server, item("meanwhile"), room)
    window.wait_for_log("before", "meanwhile")
    window.wait_for_state("connected")
    push(server, item("after"), room)
    window.wait_for_log("before", "meanwhile", "after")
    assert since["pages"] == 1  # from which the names are
    assert window.loaded_once
    assert window.page.input_value("#text") == "half a sentence"
    open_connections(server, 1)


def test_names_are_renewed_later_where_the_page_cannot_be_had_just_now(
    server: Server, network: Network, open_window: Callable[..., Window]
) -> None:
    answers: list[Callable[[Any], None]] = [
        lambda route: route.continue_(),
        lambda route: route.fulfill(status=502),
        lambda route: route.abort(),
    ]
    window = open_window(network)
    window.go("/page/home?room=1")
    window.page.route("**/page/home?room=1", lambda route: answers.pop()(route))
    expire(server, window, 1)
    network.drop()
    push(server, item("meanwhile"), room=1)
    window.wait_for_log("meanwhile")
    assert answers == []
    assert window.loaded_once


def test_a_page_whose_session_has_ended_as_well_is_reloaded(
    server: Server, network: Network, open_window: Callable[..., Window]
) -> None:
    def log_out(route: Any) -> None:
        names = ("logged_out", "pages_too")
        window.page.context.add_cookies(
            [{"name": name, "value": "1", "url": server.url()} for name in names]
        )
        route.continue_()

    window = open_window(network)
    window.go("/page/home?room=1")
    window.page.route("**/page/home?room=1", log_out)
    expire(server, window, 1)
    network.drop()
    window.page.wait_for_url("**/page/login")


def test_names_that_stay_expired_reload_the_page_once(server: Server, window: Window) -> None:
    name = expired_name(server, 1)

    def old(route: Any) -> None:  # as a cache would have it
        response = route.fetch()
        text = re.sub('name="[^"]*" position', f'name="{name}" position', response.text())
        route.fulfill(response=response, body=text)

    window.page.route("**/page/home?room=1", old)
    since = Since(server)
    window.page.goto(server.url("/page/home?room=1"))
    # Each of the two asks for new names, and is refused with those as well.
    wait_until(lambda: window.page.wait_for_timeout(20) or since["pages"] == 4, "the second page")
    window.wait_for_state("refused")
    window.page.wait_for_timeout(500)  # in which nothing shall happen
    assert (since["pages"], since["opened"]) == (4, 0)


def test_a_close_code_that_refuses_ends_in_the_same_way(server: Server, window: Window) -> None:
    sockets: list[Any] = []
    window.page.route_web_socket("**/turbo-stream*", lambda socket: sockets.append(socket))
    since = Since(server)
    window.page.goto(server.url("/page/home"))
    for _ in range(2):
        wait_until(lambda: window.page.wait_for_timeout(20) or sockets, "a connection")
        sockets.pop().close(code=4403)
    window.wait_for_state("refused")
    assert since["pages"] == 2


def test_a_connection_that_is_sent_to_the_login_ends_in_the_same_way(
    server: Server, window: Window
) -> None:
    cookie = {"name": "logged_out", "value": "1", "url": server.url()}
    window.page.context.add_cookies([cookie])
    since = Since(server)
    window.page.goto(server.url("/page/home"))
    wait_until(lambda: since["events"] == 2, "the second page to ask")
    window.wait_for_state("refused")
    assert (since["pages"], since["opened"]) == (2, 0)


def test_hundreds_of_streams_are_one_connection(
    server: Server, network: Network, open_window: Callable[..., Window]
) -> None:
    window = open_window(network)
    since = Since(server)
    window.go("/page/home?rooms=300")
    assert window.page.locator("turbo-stream-from[connected]").count() == 300
    push(server, item("first"), room=1)
    push(server, item("last"), room=299)
    window.wait_for_length(2)
    network.drop()
    push(server, item("meanwhile"), room=299)
    window.wait_for_length(3)
    assert sorted(window.log) == ["first", "last", "meanwhile"]
    assert (since["opened"], since["events"], since["pages"]) == (2, 0, 1)
    assert max(map(len, network.connections)) < 3300
    open_connections(server, 1)


def test_hundreds_of_streams_are_one_stream_of_events(
    server: Server, network: Network, open_window: Callable[..., Window]
) -> None:
    network.refuse_upgrades = True
    window = open_window(network)
    since = Since(server)
    window.go("/page/home?rooms=300")
    push(server, item("first"), room=1)
    push(server, item("last"), room=299)
    window.wait_for_length(2)
    network.drop()
    push(server, item("meanwhile"), room=299)
    window.wait_for_length(3)
    assert sorted(window.log) == ["first", "last", "meanwhile"]
    assert (since["opened"], since["events"], since["posts"]) == (0, 2, 2)
    assert window.loaded_once


def test_a_forged_name_among_hundreds_reloads_the_page_once(server: Server, window: Window) -> None:
    since = Since(server)
    window.page.goto(server.url("/page/home?rooms=300&forged=1"))
    wait_until(lambda: since["opened"] == 2, "the second page to connect")
    window.wait_for_state("refused")
    assert (since["pages"], since["events"]) == (2, 0)


def test_a_proxy_that_lets_nothing_but_the_handshake_pass_is_gone_round(
    server: Server, window: Window
) -> None:
    window.page.route_web_socket("**/turbo-stream*", lambda socket: socket.close(code=1011))
    window.go("/page/home")
    push(server, item(1))
    window.wait_for_log(1)


def test_an_error_page_does_not_begin_a_second_turbo(server: Server, window: Window) -> None:
    window.go("/page/home")
    window.page.evaluate("window.first = Turbo")
    with window.page.expect_response("**/page/missing"):
        window.page.click("nav a:text-is('missing')")
    window.page.wait_for_selector("h1:text-is('missing')")
    push(server, item("for all"))
    window.wait_for_log("for all")
    window.wait_for_frames(5)
    assert window.page.evaluate("window.first === Turbo")
    assert window.loaded_once


def test_turbo_in_the_body_works_as_well(server: Server, window: Window) -> None:
    """Turbo-Flask's does."""

    def moved(route: Any) -> None:
        response = route.fetch()
        head, body = response.text().split("<body>")
        tags = re.findall("<script.*</script>|<meta name=.turbo-stream-from.*>", head)
        assert len(tags) == 3
        for tag in tags:
            head = head.replace(tag, "")
        route.fulfill(response=response, body=f"{head}<body>{''.join(tags)}{body}")

    window.page.route("**/page/*", moved)
    window.go("/page/home")
    window.page.evaluate("window.first = Turbo")
    push(server, item("for home"))
    window.wait_for_log("for home")
    window.visit("a")
    push(server, item("for a"))
    window.wait_for_log("for a")
    assert window.page.evaluate("window.first === Turbo")


@pytest.mark.quick
def test_a_page_does_not_apply_twice_what_it_has_caused(
    server: Server, open_window: Callable[..., Window]
) -> None:
    sender, other = open_window(server), open_window(server)
    sender.go("/page/home")
    other.go("/page/home")
    sender.page.fill("#text", "hello")
    sender.page.click("text=Say")
    sender.wait_for_log("hello")  # which Turbo itself applies, in the next frame
    other.wait_for_log("hello")
    push(server, item("later"))
    sender.wait_for_log("hello", "later")
    # A copy in the cache of before does not have it.
    sender.visit("a")
    sender.page.fill("#text", "from a")
    sender.page.click("text=Say")
    sender.wait_for_log("from a")
    other.wait_for_log("hello", "later", "from a")
    sender.back("home")
    sender.wait_for_log("hello", "later", "from a")


@pytest.mark.parametrize("before", ["<!-- a <turbo-stream> -->", "text", " <p>markup</p> "])
def test_what_a_message_begins_with_does_not_matter_to_its_sender(
    server: Server, window: Window, before: str
) -> None:
    window.go("/page/home")
    window.page.evaluate(
        """(value) => {
            const input = Object.assign(document.createElement("input"), { name: "before", value });
            document.querySelector("form").append(input);
        }""",
        before,
    )
    for text in ("one", "two"):
        window.page.fill("#text", text)
        window.page.click("text=Say")
        window.page.wait_for_selector(f"#log li:text-is('{text}')")
    push(server, item("last"))
    window.wait_for_log("one", "two", "last")


def test_a_page_that_is_shown_anew_while_a_form_is_sent_is_still_its_sender(
    server: Server, window: Window
) -> None:
    window.go("/page/home")
    # In a frame: a visit ends the forms of the page itself.
    window.page.evaluate(
        """() => {
            const frame = document.createElement("turbo-frame");
            frame.id = "framed";
            frame.append(document.querySelector("form"));
            document.body.append(frame);
        }"""
    )
    held: list[Any] = []
    window.page.route("**/say", lambda route: held.append(route))
    window.page.fill("#text", "hello")
    window.page.click("text=Say")
    wait_until(lambda: window.page.wait_for_timeout(20) or held, "the form to be sent")
    since = Since(server)
    window.page.evaluate("Turbo.visit(location.href, { action: 'replace' })")
    wait_until(lambda: since["pages"] == 1, "the visit")
    window.wait_for_rest()
    answer = held[0].fetch()  # the server has pushed by now
    push(server, value("pushed"))
    window.page.wait_for_selector("#value:text-is('pushed')")
    assert window.log == []
    held[0].fulfill(response=answer)
    push(server, item("last"))
    window.page.wait_for_selector("#log li:text-is('last')")
    window.wait_for_length(2)
    assert sorted(window.log) == ["hello", "last"]
    assert window.loaded_once


def test_in_debug_mode_a_target_that_is_not_there_is_told(server: Server, window: Window) -> None:
    window.go("/page/home")
    push(server, item(1).replace('"log"', '"nowhere"') + item(2))
    push(server, item(3).replace('target="log"', 'targets=".nowhere"') + item(4))
    window.wait_for_log(2, 4)
    push(server, '<turbo-stream action="refresh" request-id="x"></turbo-stream>')
    window.wait_for_log()
    assert window.console == [
        'warning: <turbo-stream action="append"> has no effect: no #nowhere here',
        'warning: <turbo-stream action="append"> has no effect: no .nowhere here',
    ]


def test_listeners_may_change_how_a_stream_is_applied(server: Server, window: Window) -> None:
    window.go("/page/home")
    window.page.evaluate(
        """() => {
            Turbo.StreamActions.shout = function () {
                document.getElementById("log").append(this.templateContent);
            };
            addEventListener("turbo:before-stream-render", (event) => {
                const render = event.detail.render;
                event.detail.render = (stream) => {
                    if (stream.target === "skipped") return;
                    render(stream);
                };
            });
            document.addEventListener("turbo:before-stream-render", (event) => {
                if (event.target.target === "prevented") event.preventDefault();
            });
        }"""
    )
    push(server, item("skipped").replace('"log"', '"skipped"'))
    push(server, item("prevented").replace('"log"', '"prevented"'))
    push(server, item("loud").replace("append", "shout"))
    window.wait_for_log("loud")
    assert window.page.locator("html > turbo-stream").count() == 0


def test_an_action_that_raises_does_not_stop_the_stream(server: Server, window: Window) -> None:
    window.go("/page/home")
    window.page.evaluate(
        """() => {
            Turbo.StreamActions.raise = () => { throw new Error("at once"); };
            Turbo.StreamActions.reject = async () => { throw new Error("later"); };
        }"""
    )
    push(server, item(1).replace("append", "raise") + item(2))
    push(server, item(3).replace("append", "reject") + item(4))
    push(server, item(5).replace("append", "unknown") + item(6))
    window.wait_for_log(2, 4, 6)
    assert [line.split("\n")[0] for line in window.console] == [
        "error: Error: at once",
        "error: Error: later",
        'error: Error: <turbo-stream action="unknown" target="log">: unknown action',
    ]


@pytest.mark.quick
def test_a_burst_arrives_in_order(server: Server, window: Window) -> None:
    window.go("/page/home")
    for _ in range(10):
        push(server, "".join(item(number) for number in range(100)))
    window.wait_for_log(*(list(range(100)) * 10))


def test_a_mebibyte_of_markup_is_applied(server: Server, window: Window) -> None:
    window.go("/page/home")
    push(server, item("x" * (1024 * 1024 - 200)))
    window.page.wait_for_selector("#log li")
    assert len(window.log[0]) == 1024 * 1024 - 200
