"""Clients of event streams that applications use, behind a proxy whose server is away for a while.

Each is the real one, and does what ``docs/sse-clients.rst`` says that it needs.
"""

from __future__ import annotations

import contextlib
import random
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import requests
from sseclient import SSEClient

from tests.npm import npm_file
from tests.processes import Server, wait_until
from tests.sse.away import Proxy
from tests.sse.site import SOURCE, Site
from tests.sse.test_guide import SCRIPT
from tests.test_docs import ROOT, blocks, run

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

pytestmark = pytest.mark.slow

StartServer = Callable[..., Server]

GUIDE = ROOT / "docs" / "sse-clients.rst"

PATIENCE = 60.0  # seconds; for what comes after several attempts

START = "/stream?last_event_id=start"


@pytest.fixture
def site(gunicorn: StartServer) -> Site:
    return Site(gunicorn(SOURCE, environ={"FLASK_SSE_RETRY": "100"}))


@pytest.fixture
def proxy(site: Site) -> Iterator[Proxy]:
    proxy = Proxy(site.server.port)
    yield proxy
    proxy.close()


def check_resuming(site: Site, proxy: Proxy, open_: Callable[[], Callable[[], list[str]]]) -> None:
    """See that a client gets each event once and in order: after a loss, 502 and 503.

    :param open_: opens a client at :data:`START`; returns what returns the data it has got.
    """
    site.publish("kept")
    got = open_()
    sent = ["kept"]

    def wait() -> None:
        try:
            wait_until(lambda: len(got()) >= len(sent), "events", PATIENCE)
        except TimeoutError:
            pass  # what has come says more
        assert got() == sent

    wait()
    for status in (0, 502, 503):
        # The second time with an id of the publisher's own, which a client comes back with.
        for query in ("", f"?id=own-{status}"):
            site.publish(f"seen {status} {query}", query=query)
            sent.append(f"seen {status} {query}")
            wait()
            proxy.leave(status)
            if status:
                wait_until(lambda: proxy.refused > 0, f"a {status}", PATIENCE)
                site.publish(f"missed {status} {query}")
                sent.append(f"missed {status} {query}")
                proxy.status = 0
            wait_until(lambda: site.state()["subscribers"] == 1, "it is back", PATIENCE)
            site.publish(f"after {status} {query}")
            sent.append(f"after {status} {query}")
            wait()


# -- in the browser ------------------------------------------------------------------------------


def of_guide(name: str) -> str:
    """The script of the guide that defines a name."""
    defines = re.compile(rf"^(?:const|function) {name}\b", re.MULTILINE)
    (script,) = filter(defines.search, blocks(GUIDE, "javascript"))
    return script


@dataclass(frozen=True)
class Client:
    """A page that has a client.

    :ivar files: of npm: path below ``/npm/``, and package, version and path of each.
    :ivar page: HTML; ``take(data)`` takes what comes.
    """

    page: str
    files: dict[str, tuple[str, str, str]] = field(default_factory=dict)


POLYFILL = {"polyfill.js": ("event-source-polyfill", "1.0.31", "src/eventsource.js")}
HTMX_2 = {
    "htmx.js": ("htmx.org", "2.0.11", "dist/htmx.js"),
    "sse.js": ("htmx-ext-sse", "2.2.4", "sse.js"),
}
HTMX_4 = {
    "htmx.js": ("htmx.org", "4.0.1", "dist/htmx.js"),
    "sse.js": ("htmx.org", "4.0.1", "dist/ext/hx-sse.js"),
}
FETCH = {
    name: ("@microsoft/fetch-event-source", "2.0.1", f"lib/esm/{name}.js")
    for name in ("fetch", "parse")
}
RECONNECTING = {
    "reconnecting.js": (
        "reconnecting-eventsource",
        "1.6.5",
        "build/esm/reconnecting-eventsource.js",
    )
}

FOLLOW = f"""<script type=module>
{SCRIPT}
follow("{START}", {{ message: (event) => take(event.data), gap: () => take("gap") }});
</script>"""

CLIENTS = {
    "EventSource": Client(FOLLOW),
    "event-source-polyfill": Client(
        "<script src=/npm/polyfill.js></script>"
        "<script>window.EventSource = EventSourcePolyfill;</script>" + FOLLOW,
        POLYFILL,
    ),
    "reconnecting-eventsource": Client(
        f"""<script type=module>
        import ReconnectingEventSource from "/npm/reconnecting.js";
        const source = new ReconnectingEventSource("{START}", {{ max_retry_time: 200 }});
        for (const type of ["message", "gap"]) {{
            source.addEventListener(type, (event) => take(event.data));
        }}
        </script>""",
        RECONNECTING,
    ),
    "htmx 2": Client(
        f"""<script src=/npm/htmx.js></script>
        <script>{of_guide("lastIds")}</script>
        <script src=/npm/sse.js></script>
        <main hx-ext="sse" sse-connect="{START}">
          <ol sse-swap="message" hx-swap="beforeend"></ol>
          <ol sse-swap="gap" hx-swap="beforeend"></ol>
        </main>
        <script>document.addEventListener("htmx:sseMessage", ({{ detail }}) => take(detail.data));
        </script>""",
        HTMX_2,
    ),
    "htmx 4": Client(
        f"""<script src=/npm/htmx.js></script>
        <script src=/npm/sse.js></script>
        <main hx-sse:connect="{START}" hx-swap="beforeend"></main>
        <script>
        document.addEventListener("htmx:sse:after:message", ({{ detail }}) => {{
            take(detail.message.data);
        }});
        </script>""",
        HTMX_4,
    ),
    "fetch-event-source": Client(
        f"""<script type=module>
        import {{ fetchEventSource }} from "/npm/fetch";
        {of_guide("read")}
        read("{START}", (message) => take(message.data));
        </script>""",
        FETCH,
    ),
}

PAGE = """<!doctype html>
<title>Client</title>
<link rel=icon href="data:,">
<script>
window.got = [];
const take = (data) => {{ got.push(data); }};
</script>
{}"""


def show(page: Page, proxy: Proxy, client: Client) -> Callable[[], list[str]]:
    """Load a page with a client; return what returns the data that it has got."""
    files = {f"/npm/{name}": npm_file(*where) for name, where in client.files.items()}

    def serve(route: Route) -> None:
        path = urlsplit(route.request.url).path
        kind = "text/html" if path == "/client" else "text/javascript"
        body = PAGE.format(client.page) if path == "/client" else files[path]
        route.fulfill(body=body, content_type=f"{kind}; charset=utf-8")

    page.route("**/client", serve)
    page.route("**/npm/**", serve)
    page.goto(proxy.url("/client"))

    def got() -> list[str]:
        found: list[str] = page.evaluate("got")
        return found

    return got


@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_of_the_browser_gets_each_event_once_and_in_order(
    name: str, site: Site, proxy: Proxy, page: Page
) -> None:
    check_resuming(site, proxy, lambda: show(page, proxy, CLIENTS[name]))


def test_what_the_guide_says_of_an_event_source_that_is_left_alone(
    site: Site, proxy: Proxy, page: Page
) -> None:
    """If browsers no longer stop at a 502, nobody needs the function of the guide."""
    source = f'<script>window.source = new EventSource("{START}")</script>'
    show(page, proxy, Client(source))
    wait_until(lambda: page.evaluate("source.readyState") == 1, "the stream", PATIENCE)
    proxy.leave(502)
    wait_until(lambda: page.evaluate("source.readyState") == 2, "its end", PATIENCE)


@pytest.mark.parametrize(
    "status",
    [
        302,
        403,
        pytest.param(401, marks=pytest.mark.slow),
        pytest.param(410, marks=pytest.mark.slow),
    ],
)
def test_the_page_of_an_address_that_is_refused_is_loaded_again_once_a_minute(
    status: int, site: Site, proxy: Proxy, page: Page
) -> None:
    got = show(page, proxy, CLIENTS["EventSource"])
    site.publish("x")
    wait_until(lambda: got() == ["x"], "an event", PATIENCE)
    page.clock.install()
    with page.expect_event("load", timeout=PATIENCE * 1000):
        proxy.leave(status)
    # The new page is refused as well. It asks why, and may be loaded again after a minute.
    loads: list[str] = []
    page.on("load", lambda _: loads.append(page.url))
    with page.expect_request(lambda asked: asked.method == "HEAD", timeout=PATIENCE * 1000):
        pass
    page.clock.fast_forward(30_000)
    page.evaluate("fetch(location)")
    assert loads == []

    def loaded() -> bool:
        page.clock.fast_forward(30_000)
        return bool(loads)

    wait_until(loaded, "the page once more", PATIENCE)


# -- in Python -----------------------------------------------------------------------------------


Reading = Callable[[Iterator[Any]], Callable[[], list[str]]]


@pytest.fixture
def reading(site: Site, proxy: Proxy) -> Iterator[Reading]:
    """Read events in a thread; returns what returns the data of those that have come."""
    threads = []

    def begin(events: Iterator[Any]) -> Callable[[], list[str]]:
        got: list[str] = []

        def read() -> None:
            for event in events:
                if event.data == "stop":
                    return
                got.append(event.data)

        thread = threading.Thread(target=read)
        threads.append(thread)
        thread.start()
        return lambda: list(got)

    yield begin
    proxy.status = 0
    site.publish("stop")
    for thread in threads:
        thread.join(PATIENCE)


def test_httpx_sse_gets_each_event_once_and_in_order(
    site: Site, proxy: Proxy, reading: Reading
) -> None:
    guide = SimpleNamespace(**run(GUIDE))
    check_resuming(site, proxy, lambda: reading(guide.read_events(proxy.url(START))))


def test_sseclient_py_gets_each_event_once_and_in_order(
    site: Site, proxy: Proxy, reading: Reading
) -> None:
    pause = threading.Event()

    def read_events() -> Iterator[Any]:
        last_id = ""
        while True:
            headers = {"Last-Event-ID": last_id} if last_id else {}
            with contextlib.suppress(requests.RequestException):
                response = requests.get(
                    proxy.url(START), stream=True, headers=headers, timeout=PATIENCE
                )
                response.raise_for_status()
                for event in SSEClient(response.iter_content(1)).events():
                    last_id = event.id or last_id
                    yield event
            pause.wait(random.uniform(0.05, 0.2))

    check_resuming(site, proxy, lambda: reading(read_events()))
