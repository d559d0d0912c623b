"""What the tests of pages in Chromium share: turbo.js, an application, a network that fails."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flask_sockets2.turbo import npm
from flask_sockets2.turbo.markup import stream_tag
from tests.clients import http
from tests.processes import Server, wait_until

CACHE = Path(__file__).parent / ".cache"
"""Ignored by git; what is in it was fetched once, and its hash is checked each time."""

TIMEOUT = 60.0  # seconds, for what a page has to show
PATIENCE = 60.0  # for what comes after several attempts

APP = '''
import os
from unittest.mock import patch

from flask import Flask, Response, redirect, render_template_string, request, send_file
from flask_sockets2 import Turbo
from flask_sockets2.signals import connection_opened
from flask_sockets2.turbo.stream_names import StreamSigner
from itsdangerous import TimestampSigner

app = Flask(__name__)
app.secret_key = "for the tests"
app.config.from_prefixed_env()
app.config["TURBO_JS_URL"] = "/turbo.js"
turbo = Turbo(app)

# turbo.js itself puts a style of its own into each page, that of its progress bar.
STYLE_HASH = "sha256-WAyOw4V+FqDc35lQPyRADLBWbuNK8ahvYEaQIYF1+Ps="
POLICY = f"default-src 'self'; style-src 'self' '{STYLE_HASH}'"

counts = {"opened": 0, "pages": 0, "events": 0, "posts": 0}
refused = set(filter(None, os.environ.get("REFUSED", "").split()))


@app.before_request
def count_requests():
    if request.endpoint == "page":
        counts["pages"] += 1
    if request.path == "/turbo-stream" and "Upgrade" not in request.headers:
        counts["events"] += 1
        counts["posts"] += request.method == "POST"


@app.before_request
def require_login():
    cookies, path = request.cookies, request.path
    if path == "/turbo-stream" and "logged_out" in cookies:
        return redirect("/page/login")
    if path.startswith("/page/") and path != "/page/login" and "pages_too" in cookies:
        return redirect("/page/login")


@connection_opened.connect_via(app)
def count_connections(app, connection, **extra):
    counts["opened"] += 1


@turbo.user_id
def user_of_request():
    return request.cookies.get("user")


@turbo.authorize
def may_have(*parts):
    return not refused.intersection(parts)


PAGE = """
<!doctype html>
<html lang="en">
<head>
<title>{{ name }}</title>
<link rel="stylesheet" href="/style.css">
{% if refresh == "morph" %}<meta name="turbo-refresh-method" content="morph">{% endif %}
{{ turbo() }}
</head>
<body>
{{ request.args.get("content", "")|safe }}
<h1>{{ name }}</h1>
<p class="notice">You are offline.</p>
<nav>
{% for other in ["home", "a", "b", "quiet", "missing"] %}
<a href="/page/{{ other }}">{{ other }}</a>
{% endfor %}
{% for room in [1, 2] %}
<a href="/page/room{{ room }}?room={{ room }}">room {{ room }}</a>
{% endfor %}
</nav>
<form method="post" action="/say"><input name="text" id="text"><button>Say</button></form>
<div id="streams">
{% for room in request.args.getlist("room") %}{{ turbo.stream_from("room", room) }}
{% endfor %}
{% for room in range(request.args.get("rooms", 0)|int) %}{{ turbo.stream_from("room", room) }}
{% endfor %}
{% if request.args.forged %}<turbo-stream-from name="forged" position=""></turbo-stream-from>
{% endif %}
</div>
<turbo-frame id="frame" data-turbo-action="advance"><a href="/page/a">into the frame</a>
<b>{{ name }}</b></turbo-frame>
<div id="widget" data-turbo-permanent>
{% if request.args.widget %}{{ turbo.stream_from("widget") }}{% endif %}
<input id="kept"></div>
<p id="value">0</p>
<ul id="log"></ul>
</body>
</html>
"""

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 40rem; color: #222 }
nav a { margin-right: .5rem }
.notice { display: none; background: #fde9c9; padding: .3rem .8rem; border-radius: .3rem }
[data-turbo-stream-state=offline] .notice { display: block }
#log li { border-bottom: 1px solid #ddd }
"""


@app.get("/page/<name>")
def page(name):
    html = render_template_string(PAGE, name=name, refresh=request.args.get("refresh"))
    return html, 404 if name == "missing" else 200


SHARED = """
<!doctype html>
<html lang="en">
<head><title>shared</title>{{ turbo(user=False) }}</head>
<body>{{ turbo.stream_from("room", "shared", bind=None) }}<ul id="log"></ul></body>
</html>
"""
cache = []


@app.get("/shared")
def shared():
    if not cache:
        cache.append(render_template_string(SHARED))
    return cache[0]


@app.post("/say")
def say():
    html = f"<li>{request.form['text']}</li>"
    stream = turbo.append(html, "log")
    before = request.form.get("before", "")
    turbo.push(before + turbo.append(html, "log"), exclude_sender=True)
    return turbo.stream(stream) if turbo.can_stream() else redirect("/page/a", 303)


@app.post("/push")
def push():
    room = request.args.get("room")
    markup = request.get_data(as_text=True)
    if room:
        turbo.broadcast_to("room", room, stream=markup)
    else:
        turbo.push(markup)
    return ""


@app.post("/invite")
def invite():
    stream = turbo.stream_from("room", request.args["room"])
    turbo.push(turbo.append(f"<li>{stream}</li>", "log"))
    return ""


@app.get("/expired/<room>")
def expired(room):
    with patch.object(TimestampSigner, "get_timestamp", lambda signer: 1):
        return StreamSigner(app).permit(f"turbo:stream:room:{room}", request.args["at"])


@app.get("/counts")
def show_counts():
    stats = turbo.sock.stats()
    return {**counts, "open": stats["connections"], "process": os.getpid()}


@app.get("/turbo.js")
def turbo_js():
    return send_file(os.environ["TURBO_JS"], "text/javascript", max_age=3600)


@app.get("/style.css")
def style():
    return Response(STYLE, mimetype="text/css")


@app.get("/favicon.ico")
def favicon():
    return "", 204


@app.after_request
def restrict(response):
    response.headers["Content-Security-Policy"] = POLICY
    return response
'''


def turbo_js() -> Path:
    """The path of turbo.js, fetched from npm where it is not here yet.

    :raises npm.Unobtainable: when npm is missing or cannot fetch it.
    """
    path = CACHE / npm.UMD
    with contextlib.suppress(OSError):
        if npm.integrity_of(path.read_bytes()) == npm.INTEGRITY[npm.UMD]:
            return path
    CACHE.mkdir(exist_ok=True)
    # Several processes of pytest-xdist may do the same at once.
    beside = CACHE / f"{os.getpid()}.new"
    beside.write_bytes(npm.files_of(npm.fetch())[npm.UMD])
    beside.replace(path)
    return path


def item(text: object) -> str:
    """A stream that appends to the log of the page."""
    return str(stream_tag("append", f"<li>{text}</li>", target="log"))


def value(text: object) -> str:
    """A stream that updates a number of the page."""
    return str(stream_tag("update", str(text), target="value"))


def push(server: Server, markup: str, room: int | str | None = None) -> None:
    """Have a server push."""
    status, body, _ = http(
        server.url("/push" + (f"?room={room}" if room else "")), data=markup.encode()
    )
    assert status == 200, body


def counts(server: Server) -> dict[str, int]:
    """What a server has counted: ``opened`` connections, ``open`` ones, ``pages``, and streams of
    ``events``, of which some were asked for by ``posts``."""
    found: dict[str, int] = json.loads(http(server.url("/counts"))[1])
    return found


class Since:
    """What a server has counted since a moment."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._before = counts(server)

    def __getitem__(self, name: str) -> int:
        return counts(self._server)[name] - self._before[name]


class Network:
    """A TCP proxy to a server, which can be cut off.

    :ivar refuse_upgrades: answers WebSocket handshakes with 403, as some proxies do.
    :ivar connections: the first line of what each connection asked for.
    """

    def __init__(self, port: int) -> None:
        self._upstream = port
        self._going = threading.Event()
        self._going.set()
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._forgotten: set[socket.socket] = set()
        self._closed = False
        self.refuse_upgrades = False
        self.reachable = True
        self.connections: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self, path: str = "/") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def pause(self) -> None:
        """Let nothing through, while connections stay open and new ones wait."""
        self._going.clear()

    def resume(self) -> None:
        self._going.set()

    def cut(self) -> None:
        """End all connections, and refuse new ones until :meth:`mend`."""
        self.reachable = False
        self.drop()

    def mend(self) -> None:
        self.reachable = True

    def drop(self) -> None:
        """End all connections."""
        with self._lock:
            sockets, self._sockets = self._sockets, []
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def forget(self) -> None:
        """Lose all connections as routers do: neither end is told."""
        with self._lock:
            self._forgotten.update(self._sockets)

    def asked(self, path: str) -> int:
        """How many connections have begun with a request for a path."""
        return sum(path in line for line in self.connections)

    def close(self) -> None:
        self._closed = True
        self.resume()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # which ends accept()
        self._listener.close()
        self.drop()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            with self._lock:
                self._sockets.append(client)
            first = client.recv(65536)
            if not first:
                return
            self.connections.append(first.split(b"\r\n", 1)[0].decode())
            if not self.reachable:
                return
            if self.refuse_upgrades and b"upgrade: websocket" in first.lower():
                client.sendall(
                    b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                )
                return
            with socket.create_connection(("127.0.0.1", self._upstream)) as server:
                with self._lock:
                    self._sockets.append(server)
                self._going.wait()
                server.sendall(first)
                back = threading.Thread(target=self._copy, args=(server, client), daemon=True)
                back.start()
                self._copy(client, server)
                back.join()

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._going.wait()
                if source not in self._forgotten:
                    target.sendall(data)
        if source not in self._forgotten:
            with contextlib.suppress(OSError):
                target.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def network_to(server: Server) -> Iterator[Network]:
    network = Network(server.port)
    try:
        yield network
    finally:
        network.close()


class Window:
    """A page of the browser, and what the tests look at in it."""

    def __init__(self, page: Any, base: Server | Network) -> None:
        self.page = page
        self.base = base
        self.console: list[str] = []
        page.on("console", lambda message: self.console.append(f"{message.type}: {message.text}"))

    def go(self, path: str, *, connected: bool = True) -> None:
        """Load a page, and leave a mark that another load would wipe away."""
        self.page.goto(self.base.url(path))
        self.page.evaluate("window.mark = 1")
        if connected:
            self.wait_for_state("connected")

    def visit(self, link: str) -> None:
        """Follow a link, as Turbo does."""
        self.page.click(f"nav a:text-is('{link}')")
        self.page.wait_for_selector(f"h1:text-is('{link.replace(' ', '')}')")
        self.wait_for_rest()

    def back(self, name: str) -> None:
        self.page.evaluate("history.back()")
        self.page.wait_for_selector(f"h1:text-is('{name}')")
        self.wait_for_rest()

    def forward(self, name: str) -> None:
        self.page.evaluate("history.forward()")
        self.page.wait_for_selector(f"h1:text-is('{name}')")
        self.wait_for_rest()

    def wait_for_rest(self) -> None:
        """Wait until Turbo has no visit under way."""
        self.wait_for(
            "!Turbo.navigator.currentVisit && "
            "!document.documentElement.hasAttribute('data-turbo-preview')"
        )

    def wait_for(self, expression: str) -> None:
        """Wait until something is true; ``wait_for_function`` needs eval, which pages forbid."""
        wait_until(lambda: self.page.evaluate(expression), expression)

    def wait_for_frames(self, number: int) -> None:
        """Wait until the page was painted so often."""
        for _ in range(number):
            self.page.evaluate("new Promise(requestAnimationFrame)")

    def wait_for_state(self, state: str, timeout: float = PATIENCE) -> None:
        self.page.wait_for_selector(
            f"html[data-turbo-stream-state={state}]", state="attached", timeout=timeout * 1000
        )

    def hide(self, hidden: bool = True) -> None:
        """Have the page believe that its tab is hidden, or visible again."""
        self.page.evaluate(
            """(hidden) => {
                const values = { hidden, visibilityState: hidden ? "hidden" : "visible" };
                for (const [name, value] of Object.entries(values)) {
                    Object.defineProperty(Document.prototype, name, { value, configurable: true });
                }
                document.dispatchEvent(new Event("visibilitychange"));
            }""",
            hidden,
        )

    @property
    def state(self) -> str | None:
        found: str | None = self.page.get_attribute("html", "data-turbo-stream-state")
        return found

    @property
    def log(self) -> list[str]:
        found: list[str] = self.page.evaluate(
            "Array.from(document.querySelectorAll('#log li'), (each) => each.innerText)"
        )
        return found

    def wait_for_log(self, *texts: object, timeout: float = PATIENCE) -> None:
        """Wait until the log shows these, and nothing else."""
        wanted = [str(text) for text in texts]
        try:
            wait_until(lambda: self.log == wanted, f"the log to show {wanted}", timeout)
        except TimeoutError as exc:
            raise AssertionError(
                f"{exc}; it shows {self.log}, {self.state}, {self.console}"
            ) from None

    def wait_for_length(self, number: int) -> None:
        """Wait until the log shows so many."""
        wait_until(lambda: len(self.log) == number, f"{number} items", TIMEOUT)

    @property
    def loaded_once(self) -> bool:
        """Whether the document is the one that :meth:`go` has loaded."""
        return self.page.evaluate("window.mark") == 1
