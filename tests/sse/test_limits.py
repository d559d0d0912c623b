"""Limits, ages and ``disconnect`` of all kinds of event streams, without a server."""

from __future__ import annotations

import gc
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask, request

from flask_sockets2 import Sockets, Turbo
from flask_sockets2.application.event_stream import stream_response
from flask_sockets2.application.state import state_of
from flask_sockets2.sse import PubSub, ServerSentEventsBlueprint, SSE_BluePrint, sse
from tests.clients import http
from tests.event_client import EventClient
from tests.processes import Server, Servers, wait_until

TIMEOUT = 60.0  # seconds, for each wait

KINDS = ["/stream", "/stream?channel=a&channel=b", "/generator", "/context", "/func", "/sse/news"]
"""Addresses of streams that go on and on."""


@pytest.fixture
def sockets() -> Sockets:
    return Sockets()


@pytest.fixture
def app(sockets: Sockets) -> Iterator[Flask]:
    app = Flask(__name__)
    app.config.update(SSE_OPEN_CHANNELS=True, SSE_HEARTBEAT=0.05)
    sockets.init_app(app)
    app.register_blueprint(sse, url_prefix="/stream")
    SSE_BluePrint(app, "legacy")
    app.add_url_rule("/generator", "generator", lambda: sse.stream_generator(ticks()))
    app.add_url_rule(
        "/context", "context", lambda: sse.stream_generator(ticks(), with_context=True)
    )
    app.add_url_rule("/func", "func", lambda: sse.stream_func(lambda: next(ticks())))
    app.add_url_rule(
        "/view", "view", lambda: stream_response(app, [("news", None)], heartbeat=0.05)
    )

    @sockets.user_id
    def user_id() -> str | None:
        return request.headers.get("X-User")

    yield app
    PubSub.reinit()


def test_who_may_not_have_a_stream_is_counted_before_that_is_found_out(
    app: Flask, sockets: Sockets
) -> None:
    """To find it out may cost a query."""
    asked: list[str] = []
    app.config["SOCKETS_MAX_HANDSHAKE_RATE_PER_ADDRESS"] = 1
    guarded = ServerSentEventsBlueprint("guarded", __name__)
    guarded.add_url_rule("", endpoint="stream", view_func=guarded.stream)
    guarded.authorize(lambda channel: asked.append(channel))
    app.register_blueprint(guarded, url_prefix="/guarded")
    statuses = [app.test_client().get("/guarded?channel=a").status_code for _ in range(9)]
    assert statuses.count(403) == len(asked) < 9
    assert set(statuses) == {403, 429}


OTHER_SITE = "https://evil.example"
BROWSER = "Mozilla/5.0 (X11; Linux x86_64)"
PAGE = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"
EVENTS = "text/event-stream"

FOREIGN = {
    "no-cors": {"Sec-Fetch-Site": "cross-site"},
    "subdomain": {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"},
    "cors": {"Sec-Fetch-Site": "cross-site", "Origin": OTHER_SITE},
    "cors of a subdomain": {"Sec-Fetch-Site": "same-site", "Origin": "http://www.localhost"},
    "opaque": {"Origin": "null"},
    "iframe": {
        "Sec-Fetch-Site": "cross-site",
        "Sec-Fetch-Mode": "navigate",
        "Sec-Fetch-Dest": "iframe",
        "Accept": PAGE,
    },
    "service worker": {
        "Sec-Fetch-Site": "cross-site",
        "Sec-Fetch-Dest": "empty",
        "Accept": EVENTS,
    },
    "plain http": {"Referer": f"{OTHER_SITE}/page", "Accept": "*/*"},
    "plain http, cut off": {"Referer": "http://localhost.evil.example/", "Accept": EVENTS},
    "plain http, user of a URL": {"Referer": "http://localhost@evil.example/"},
    "plain http, port": {"Referer": "http://localhost:8080/", "Accept": EVENTS},
    "plain http, iframe": {"User-Agent": BROWSER, "Accept": PAGE},
    "plain http, silent": {"User-Agent": BROWSER, "Accept": EVENTS},
    "https, from plain http": {"Referer": "http://localhost/", "Accept": EVENTS},
}


@pytest.mark.parametrize("way", FOREIGN)
@pytest.mark.parametrize("kind", [*KINDS, "/view"])
def test_pages_of_other_sites_take_no_place_and_use_up_nothing(
    kind: str, way: str, app: Flask
) -> None:
    """They ask with the cookies of their visitor, who has the next stream."""
    app.config["SOCKETS_MAX_HANDSHAKE_RATE"] = 1
    base = "https://localhost" if way.startswith("https") else "http://localhost"
    for _ in range(9):
        response = app.test_client().get(kind, headers=FOREIGN[way], base_url=base)
        assert response.status_code == 403
    client = Client(app, kind)
    assert client.response.status_code == 200
    client.leave()


@pytest.mark.parametrize("way", FOREIGN)
def test_pages_of_other_sites_have_no_stream_of_turbo(way: str, app: Flask) -> None:
    Turbo(app)
    app.config["SOCKETS_MAX_HANDSHAKE_RATE"] = 1
    base = "https://localhost" if way.startswith("https") else "http://localhost"
    ours, foreign = {"Accept": EVENTS}, {**FOREIGN[way], "Accept": EVENTS}
    for _ in range(9):
        response = app.test_client().get("/turbo-stream?s=*", headers=foreign, base_url=base)
        assert response.status_code == 403
    with app.test_client().get("/turbo-stream?s=turbo:all", headers=ours) as response:
        assert response.status_code == 200


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_of_an_origin_that_is_named_has_its_stream(kind: str, app: Flask) -> None:
    app.config["SOCKETS_ALLOWED_ORIGINS"] = "https://pages.example"
    headers = {"Sec-Fetch-Site": "cross-site", "Origin": "https://pages.example"}
    with app.test_client().get(kind, headers=headers) as response:
        assert response.status_code == 200


OURS = {
    "EventSource": {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Dest": "empty", "Accept": EVENTS},
    "EventSource, plain http": {
        "User-Agent": BROWSER,
        "Referer": "http://localhost/page",
        "Accept": EVENTS,
    },
    "fetch": {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Dest": "empty", "Accept": "*/*"},
    "fetch, plain http": {
        "User-Agent": BROWSER,
        "Referer": "http://localhost:80",
        "Accept": "*/*",
    },
    "axios": {
        "Sec-Fetch-Site": "same-origin",
        "Sec-Fetch-Dest": "empty",
        "Accept": "application/json, text/plain, */*",
    },
    "an extension": {"Sec-Fetch-Site": "none", "Sec-Fetch-Dest": "empty", "Accept": EVENTS},
    "behind TLS of a proxy": {
        "User-Agent": BROWSER,
        "Referer": "https://localhost/",
        "Accept": EVENTS,
    },
    "POST": {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin", "Accept": EVENTS},
    "curl": {"User-Agent": "curl/8.5.0", "Accept": "*/*"},
    "Node": {"User-Agent": "node", "Sec-Fetch-Mode": "cors", "Accept": "*/*"},
    "Java": {"User-Agent": "Java/17", "Accept": "text/html, image/gif, *; q=.2, */*; q=.2"},
    "nothing at all": {},
}


@pytest.mark.parametrize("way", OURS)
@pytest.mark.parametrize("kind", [*KINDS, "/view"])
def test_scripts_of_our_pages_and_other_programs_have_streams(
    kind: str, way: str, app: Flask
) -> None:
    with app.test_client().get(kind, headers=OURS[way]) as response:
        assert response.status_code == 200


SHOWN = {
    "address bar": {
        "Sec-Fetch-Site": "none",
        "Sec-Fetch-Mode": "navigate",
        "Sec-Fetch-Dest": "document",
        "Accept": PAGE,
    },
    "iframe": {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Dest": "iframe", "Accept": PAGE},
    "image": {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Dest": "image", "Accept": "image/*"},
    "video": {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Dest": "video", "Accept": "*/*"},
    "image, plain http": {
        "User-Agent": BROWSER,
        "Referer": "http://localhost/",
        "Accept": "image/avif,image/*,*/*;q=0.8",
    },
    "video of Chromium, plain http": {
        "User-Agent": BROWSER,
        "Referer": "http://localhost/",
        "Range": "bytes=0-",
        "Accept": "*/*",
    },
    "video of Firefox, plain http": {
        "User-Agent": BROWSER,
        "Referer": "http://localhost/",
        "Accept": "video/webm,video/ogg,video/*;q=0.9,application/ogg;q=0.7,*/*;q=0.5",
    },
    "form": {
        "Origin": "http://localhost",
        "Sec-Fetch-Site": "same-origin",
        "Sec-Fetch-Dest": "iframe",
        "Accept": PAGE,
    },
    "prefetch": {"Sec-Fetch-Site": "same-origin", "Sec-Purpose": "prefetch", "Accept": "*/*"},
    "prerender": {
        "Sec-Fetch-Site": "none",
        "Sec-Fetch-Dest": "document",
        "Sec-Purpose": "prefetch;prerender",
        "Accept": PAGE,
    },
    "prefetch of a stream": {
        "Sec-Fetch-Site": "same-origin",
        "Purpose": "prefetch",
        "Accept": EVENTS,
    },
}


@pytest.mark.parametrize("way", SHOWN)
@pytest.mark.parametrize("kind", [*KINDS, "/view"])
def test_a_browser_that_wants_something_to_show_gets_no_stream(
    kind: str, way: str, app: Flask
) -> None:
    """Of whose element that is, as an image in what a visitor wrote, nothing tells."""
    app.config["SOCKETS_MAX_HANDSHAKE_RATE"] = 1
    for _ in range(3):
        response = app.test_client().get(kind, headers=SHOWN[way])
        assert response.status_code == 406
        assert "event stream" in response.text


@pytest.mark.parametrize("allowed", ["http://example.com", "*"])
def test_a_page_behind_a_proxy_that_renames_us_is_named_by_its_origin(
    allowed: str, app: Flask
) -> None:
    app.config["SOCKETS_ALLOWED_ORIGINS"] = allowed
    headers = {"User-Agent": BROWSER, "Referer": "http://example.com/page", "Accept": EVENTS}
    with app.test_client().get("/stream", headers=headers) as response:
        assert response.status_code == 200
    headers["Referer"] = f"{OTHER_SITE}/page"
    with app.test_client().get("/stream", headers=headers) as response:
        assert response.status_code == (200 if allowed == "*" else 403)


def test_generators_without_channels_are_guarded_too() -> None:
    app = Flask(__name__)
    app.add_url_rule("/generator", "generator", lambda: sse.stream_generator(iter(["a"])))
    for headers in FOREIGN["no-cors"], FOREIGN["cors"], FOREIGN["plain http"]:
        assert app.test_client().get("/generator", headers=headers).status_code == 403
    assert app.test_client().get("/generator", headers=SHOWN["image"]).status_code == 406
    assert app.test_client().get("/generator").status_code == 200


def ticks() -> Iterator[str]:
    while True:
        time.sleep(0.01)
        yield "tick"


class Client:
    """A request, and a thread that takes its stream as a server does.

    :ivar ended: set once the stream is over.
    """

    def __init__(self, app: Flask, path: str, user: str = "", address: str = "127.0.0.1") -> None:
        self._request = (app, path, {"X-User": user} if user else {}, {"REMOTE_ADDR": address})
        self._come = threading.Event()
        self._left = threading.Event()
        self.ended = threading.Event()
        self.taken = b""
        threading.Thread(target=self._take, daemon=True).start()
        assert self._come.wait(TIMEOUT)

    def _take(self) -> None:
        app, path, headers, environ = self._request
        self.response = app.test_client().get(path, headers=headers, environ_base=environ)
        self._come.set()
        for piece in self.response.response:
            self.taken += piece
            if self._left.is_set():
                break
        self.response.close()
        self.ended.set()

    def leave(self) -> None:
        self._left.set()
        assert self.ended.wait(TIMEOUT)


@pytest.mark.parametrize("path", KINDS)
def test_one_address_has_so_many(path: str, app: Flask, sockets: Sockets) -> None:
    app.config["SOCKETS_MAX_CONNECTIONS_PER_ADDRESS"] = 1
    first = Client(app, path)
    refused = Client(app, path).response
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "5")
    other = Client(app, path, address="203.0.113.7")
    first.leave()
    again = Client(app, path)
    assert other.response.status_code == again.response.status_code == 200
    assert sockets.stats()["refused"]["max_connections_per_address"] == 1
    for client in (other, again):
        client.leave()
    assert not state_of(app).streams


@pytest.mark.parametrize("path", KINDS)
def test_what_a_user_has_is_ended_and_nothing_else(path: str, app: Flask, sockets: Sockets) -> None:
    anns, bobs = Client(app, path, "ann"), Client(app, path, "bob")
    sockets.disconnect(user="ann")
    assert anns.ended.wait(TIMEOUT)
    stats = sockets.stats()
    assert (stats["streams"], stats["streams_opened"], stats["streams_closed"]) == (1, 2, 1)
    assert not bobs.ended.is_set()
    bobs.leave()
    wait_until(lambda: sockets.stats()["streams"] == 0, "nobody to be there")


@pytest.mark.slow
@pytest.mark.parametrize("path", KINDS)
def test_an_old_stream_ends(path: str, app: Flask) -> None:
    app.config["SOCKETS_MAX_CONNECTION_AGE"] = 1
    begun = time.monotonic()
    assert Client(app, path, "ann").ended.wait(TIMEOUT)
    assert time.monotonic() - begun > 0.5


@pytest.mark.parametrize("path", KINDS)
def test_the_answer_to_head_takes_no_place(path: str, app: Flask) -> None:
    app.config["SOCKETS_MAX_CONNECTIONS"] = 1
    for _ in range(3):
        assert app.test_client().head(path).status_code == 200
    assert not state_of(app).streams
    client = Client(app, path)
    assert client.response.status_code == 200
    assert app.test_client().head(path).status_code == 503  # as GET would be (RFC 9110 §9.3.2)
    client.leave()


@pytest.mark.parametrize("path", [*KINDS, "/guarded?channel=a", "/turbo-stream?s=turbo:all"])
def test_head_is_no_way_around_the_rates(path: str, app: Flask) -> None:
    """Who may have a stream may cost a query to find out."""
    Turbo(app)
    guarded = ServerSentEventsBlueprint("guarded", __name__)
    guarded.add_url_rule("", endpoint="stream", view_func=guarded.stream)
    asked: list[str] = []
    guarded.authorize(lambda channel: asked.append(channel) or True)
    app.register_blueprint(guarded, url_prefix="/guarded")
    app.config["SOCKETS_MAX_HANDSHAKE_RATE_PER_ADDRESS"] = 0.01
    headers = {"Accept": "text/event-stream"}
    statuses = [app.test_client().head(path, headers=headers).status_code for _ in range(3)]
    assert statuses == [200, 429, 429]
    assert len(asked) <= 1


def test_who_is_disconnected_has_nothing_that_its_generator_brings_later(
    app: Flask, sockets: Sockets
) -> None:
    def gate() -> Iterator[str]:
        (stream,) = state_of(app).streams
        sockets.disconnect(user="ann")
        wait_until(lambda: stream.ended, "the order to be obeyed")  # type: ignore[attr-defined]
        try:
            yield "secret"
        finally:
            over.append(True)

    over: list[bool] = []
    app.add_url_rule("/gate", "gate", lambda: sse.stream_generator(gate()))
    client = Client(app, "/gate", "ann")
    assert client.ended.wait(TIMEOUT)
    assert client.taken == b":\n\n"  # and no event that tells the page to stay away
    assert over == [True]
    assert not state_of(app).streams


def test_a_generator_that_ends_or_raises_leaves_its_place(app: Flask) -> None:
    app.config["SOCKETS_MAX_CONNECTIONS"] = 1
    app.add_url_rule("/ends", "ends", lambda: sse.stream_generator(["a"]))
    app.add_url_rule("/raises", "raises", lambda: sse.stream_generator(iter(lambda: 1 / 0, 0)))
    for path in ("/ends", "/raises", "/ends"):
        response = app.test_client().get(path)
        assert list(response.response)[-1].startswith(b"event:")
        assert not state_of(app).streams


def test_a_response_that_is_never_begun_leaves_its_place(app: Flask) -> None:
    """As one that a function of ``after_request`` has put another one in the place of."""

    @app.after_request
    def replace(response: Any) -> Any:
        return app.response_class("another")

    assert app.test_client().get("/generator").text == "another"
    wait_until(lambda: gc.collect() >= 0 and not state_of(app).streams, "it to be forgotten")


def test_what_a_refused_stream_would_take_from_is_closed(app: Flask) -> None:
    class Rows:
        closed = 0

        def __iter__(self) -> Iterator[str]:
            return iter(["a"])

        def close(self) -> None:
            self.closed += 1

    rows = Rows()
    app.config["SOCKETS_MAX_CONNECTIONS"] = 0
    app.add_url_rule("/rows", "rows", lambda: sse.stream_generator(rows))
    assert app.test_client().get("/rows").status_code == 503
    assert rows.closed == 1


def test_messages_are_no_connection(app: Flask) -> None:
    """Whom they are for is one, which is not to count twice."""
    app.config["SOCKETS_MAX_CONNECTIONS"] = 1
    with app.app_context():
        messages = sse.messages("news")
        app.add_url_rule("/messages", "messages", lambda: sse.stream_generator(messages))
        response = app.test_client().get("/messages")
        body = iter(response.response)
        assert next(body) == b":\n\n"
        found: list[bytes] = []
        thread = threading.Thread(target=lambda: found.append(next_within(app, body)))
        thread.start()
        subscribed = lambda: state_of(app).publisher.subscribers("sse:news") == 1  # noqa: E731
        wait_until(subscribed, "a subscriber")
        assert len(state_of(app).streams) == 1
        sse.publish("x", channel="news")
        thread.join(TIMEOUT)
        assert found == [b"data:x\n\n"]
        response.close()
    assert not state_of(app).streams


def next_within(app: Flask, body: Iterator[bytes]) -> bytes:
    with app.app_context():
        return next(body)


def test_an_application_without_channels_counts_nothing() -> None:
    app = Flask(__name__)
    app.config["SOCKETS_MAX_CONNECTIONS"] = 0
    app.add_url_rule("/", "index", lambda: sse.stream_generator(["a"]))
    assert app.test_client().get("/").text.startswith(":\n\ndata:a\n\n")


WAITING = """
import threading

from flask import Flask
from flask_sockets2 import Sockets
from flask_sockets2.application.event_stream import stream_response
from flask_sockets2.application.state import state_of
from flask_sockets2.sse import stream_generator

app = Flask(__name__)
app.config.update(
    SOCKETS_MAX_CONNECTIONS=2, SOCKETS_MAX_CONNECTIONS_PER_ADDRESS=1, SSE_HEARTBEAT=0.2
)
sockets = Sockets(app)
state = {"waits": 0, "over": 0}
goes_on = threading.Event()


@app.get("/state")
def show():
    admission = state_of(app).admission
    return {**state, "open": len(admission.streams), "left": len(admission.unattended)}


@app.get("/go-on")
def go_on():
    goes_on.set()
    return ""


@app.get("/stream")
def stream():
    def rare():
        yield "first"
        state["waits"] += 1
        try:
            goes_on.wait(60)
            yield "second"
        finally:
            state["over"] += 1

    return stream_generator(rare())
"""


@pytest.mark.parametrize(
    "start",
    [
        lambda servers: servers.gunicorn(WAITING),
        lambda servers: servers.gunicorn(WAITING, worker="gthread", args=["--threads=8"]),
        lambda servers: servers.gunicorn(WAITING, worker="gevent"),
        lambda servers: servers.flask_run(WAITING),
    ],
    ids=["worker", "gthread", "gevent", "flask-run"],
)
def test_whose_client_has_left_has_its_place_no_longer_while_its_generator_waits(
    start: Callable[[Servers], Server], server_factory: Servers
) -> None:
    """Of its address; of the process there are as many as work."""
    server = start(server_factory)

    def state() -> dict[str, int]:
        found: dict[str, int] = json.loads(http(server.url("/state"))[1])
        return found

    with EventClient(server.port, "/stream") as client:
        assert client.next().data == "first"
        server.wait_for(lambda: state()["waits"] == 1, "the generator to wait")
        assert http(server.url("/stream"))[0] == 429
        with pytest.raises(TimeoutError):
            client.next(0.7)  # it is looked at some times, and its client is there
        assert state()["open"] == 1
    server.wait_for(lambda: state() == {"waits": 1, "over": 0, "open": 0, "left": 1}, "a place")
    with EventClient(server.port, "/stream") as client:
        assert client.next().data == "first"
        server.wait_for(lambda: state()["waits"] == 2, "the other one to wait")
    server.wait_for(
        lambda: state() == {"waits": 2, "over": 0, "open": 0, "left": 2}, "both to leave"
    )
    assert http(server.url("/stream"))[0] == 503
    assert http(server.url("/go-on"))[0] == 200
    server.wait_for(lambda: state() == {"waits": 2, "over": 2, "open": 0, "left": 0}, "both to end")
    with EventClient(server.port, "/stream") as client:
        assert client.next().data == "first"
        assert client.next().data == "second"
