"""Sessions that a store on the server keeps, while WebSockets that began with them are open."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.cookies import SimpleCookie

import pytest
from flask import Flask
from flask.sessions import SecureCookieSession

from flask_sockets2.application.sessions import guard_sessions, serving
from tests import clients
from tests.brokers.servers import RedisServer, redis_or_skip
from tests.event_client import EventClient
from tests.processes import Server, Servers, servers_in, unused_port, wait_until
from tests.servers.test_gevent import PATCHED, SERVE
from tests.wire_client import TEXT, WireClient, connect, frame, request

SOURCE = """
import logging
import os
import secrets
from time import sleep

import threading
from dataclasses import dataclass
from flask import Flask, abort, copy_current_request_context, g, has_request_context
from flask import request, session
from flask.sessions import SessionInterface, SessionMixin
from flask_sockets2 import Sockets
from flask_sockets2.sse import sse
from werkzeug.local import LocalProxy

logging.basicConfig()


class OneForEachCall(Flask):
    '''Its session interface is a new object each time.'''

    session_interface = property(lambda self: Store(), lambda self, interface: None)


app = (OneForEachCall if os.environ["STORE"] == "each call" else Flask)(__name__)
app.secret_key = "for the tests"
app.debug = "DEBUG" in os.environ
sockets = Sockets(app)  # before the store is set, as extensions are made in any order
ended = []


class Stored(dict, SessionMixin):
    sid = ""


saved = {}


class Store(SessionInterface):
    '''Of the application's own: it saves each session after each request.'''

    session_class = Stored

    def open_session(self, app, request):
        sid = request.cookies.get("session")
        made = Stored(saved.get(sid, {}))
        made.sid = sid or secrets.token_hex()
        return made

    def save_session(self, app, session, response):
        saved[session.sid] = dict(session)
        response.set_cookie("session", session.sid)


class Slots:
    __slots__ = ()
    open_session = Store.open_session
    save_session = Store.save_session

    def is_null_session(self, session):
        return False


@dataclass(frozen=True)
class Frozen(Store):
    name: str = "frozen"


class Property(Store):
    save_session = property(lambda self: Store().save_session)


class Unchangeable(Store):
    def __getattribute__(self, name):
        return Store().save_session if name == "save_session" else super().__getattribute__(name)


outside, inside = Store(), Store()
OWN = {
    "own": Store(),
    "each call": Store(),
    "slots": Slots(),
    "frozen": Frozen(),
    "property": Property(),
    "unchangeable": Unchangeable(),
    "proxy": LocalProxy(lambda: inside if has_request_context() else outside),
    "of the request": LocalProxy(lambda: {"127.0.0.1": inside}[request.remote_addr]),
}


def set_store(kind):
    if kind in OWN:
        app.session_interface = OWN[kind]
        return
    from flask_session import Session

    if kind == "redis":
        from redis import Redis

        app.config["SESSION_REDIS"] = Redis.from_url(os.environ["REDIS_URL"])
    elif kind == "cachelib":
        from cachelib import FileSystemCache

        app.config["SESSION_CACHELIB"] = FileSystemCache("sessions")
    app.config["SESSION_TYPE"] = kind
    Session(app)


set_store(os.environ["STORE"])


@app.get("/")
def user():
    session["visits"] = session.get("visits", 0) + 1
    return session.get("user", "nobody")


@app.post("/login")
def login():
    session["user"] = "ada"
    return "welcome"


@app.post("/logout")
def logout():
    session.pop("user", None)
    return "bye"


@app.get("/ended")
def tell_ended():
    return ended


@app.after_request
def count(response):
    session["responses"] = session.get("responses", 0) + 1
    return response


@app.teardown_request
def end(error):
    if request.path.startswith("/ws"):
        app.session_interface.save_session(app, session, app.response_class())
    if request.path.startswith(("/ws", "/stream")):
        ended.append(request.path)


@sockets.route("/ws/loops")
def loop(ws):
    if hasattr(ws, "subprotocols"):
        for message in ws:
            pass
    else:  # gevent-websocket's
        while ws.receive() is not None:
            pass


@sockets.route("/ws/replaces")
def replace(ws):
    app.session_interface = Store()
    for message in ws:
        pass


@sockets.route("/ws/outlives")
def outlive(ws):
    g.session = session._get_current_object()
    loop(ws)

    @copy_current_request_context
    def save_later():
        while "/ws/outlives" not in ended:
            sleep(0.01)
        app.session_interface.save_session(app, session, app.response_class())
        ended.append("saved later")

    threading.Thread(target=save_later).start()


@app.teardown_appcontext
def save_without_request(error):
    if "session" in g:
        app.session_interface.save_session(app, g.session, app.response_class())


@sockets.route("/ws/late", accept=False)
def accept_late(ws):
    ws.accept()
    for message in ws:
        pass


@sockets.route("/ws/writes")
def write(ws):
    for message in ws:
        session["user"] = message
        session["basket"] = ["apple"]


@sockets.route("/ws/fails")
def fail(ws):
    for message in ws:
        pass
    {}["missing"]


@sockets.route("/ws/aborts")
def forbid(ws):
    for message in ws:
        pass
    abort(403)


@sockets.route("/ws/listens")
def listen(ws):
    ws.subscribe("news")


@app.get("/stream")
def stream():
    def events():
        while True:
            yield {"user": session.get("user")}
            sleep(0.05)

    return sse.stream_generator(events(), with_context=True)


@sockets.route("/ws/refuses", accept=False)
def refuse(ws):
    session["user"] = "of the refusal"
    abort(403)
"""

SERVERS = [
    "flask_sockets2.worker",
    "our server",
    "stock",
    "gevent",
    "gthread",
    "flask run",
    "gevent-websocket",
]

LOOPS = "/ws/loops"


def start(servers: Servers, kind: str = "flask_sockets2.worker", **environ: str) -> Server:
    environ = {"STORE": "own", **environ}
    if kind == "flask run":
        return servers.flask_run(SOURCE, environ=environ)
    if kind in SERVE:
        port = unused_port()
        source = PATCHED + SOURCE + SERVE[kind].replace("PORT", str(port))
        return servers.script(source, port=port, environ=environ)
    return servers.gunicorn(SOURCE, worker=kind, args=["--threads=8"], environ=environ)


class Browser:
    """One that keeps the cookie of its session."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.cookie = ""
        self.user()  # which begins the session

    @property
    def headers(self) -> dict[str, str]:
        return {"Cookie": self.cookie} if self.cookie else {}

    def _ask(self, path: str, data: bytes | None = None) -> str:
        status, body, fields = clients.http(self.server.url(path), data=data, headers=self.headers)
        assert status == 200
        cookie = SimpleCookie(fields["Set-Cookie"])
        if "session" in cookie:
            self.cookie = f"session={cookie['session'].value}"
        return body

    def user(self) -> str:
        """The name that a page says."""
        return self._ask("/")

    def post(self, path: str) -> None:
        self._ask(path, b"")

    @contextmanager
    def socket(self, path: str = LOOPS) -> Iterator[WireClient]:
        """A WebSocket; at the end of the block its request ends, with all that is done then."""
        with self._ending(path), connect(self.server.port, path, self.headers) as client:
            yield client

    @contextmanager
    def stream(self) -> Iterator[EventClient]:
        """The same of an event stream."""
        port, cookie = self.server.port, self.cookie
        with self._ending("/stream"), EventClient(port, "/stream", cookie=cookie) as client:
            yield client.read_head()

    @contextmanager
    def _ending(self, path: str) -> Iterator[None]:
        before = self._ended()
        yield
        wait_until(lambda: self._ended() > before, f"the end of {path}")

    def _ended(self) -> int:
        return len(ended(self.server))


def ended(server: Server) -> list[str]:
    """Return the requests that have ended, by their paths."""
    paths: list[str] = json.loads(clients.http(server.url("/ended"))[1])
    return paths


# -- stores and servers --------------------------------------------------------------------


def check_a_logout_and_a_login(server: Server) -> None:
    browser = Browser(server)
    browser.post("/login")
    with browser.socket():
        browser.post("/logout")
        assert browser.user() == "nobody"
    assert browser.user() == "nobody"
    with browser.socket():
        browser.post("/login")
        assert browser.user() == "ada"
    assert browser.user() == "ada"


@pytest.mark.quick
@pytest.mark.parametrize("kind", SERVERS)
def test_the_end_of_a_websocket_undoes_neither_logout_nor_login_under_any_server(
    kind: str, server_factory: Servers
) -> None:
    """Nor does what after_request functions write or a teardown function saves."""
    check_a_logout_and_a_login(start(server_factory, kind))


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    yield from redis_or_skip()


def test_the_end_of_a_websocket_undoes_nothing_in_flask_sessions_redis(
    redis_server: RedisServer, server_factory: Servers
) -> None:
    check_a_logout_and_a_login(start(server_factory, STORE="redis", REDIS_URL=redis_server.url))


def test_the_end_of_a_websocket_undoes_nothing_in_flask_sessions_files(
    server_factory: Servers,
) -> None:
    check_a_logout_and_a_login(start(server_factory, STORE="cachelib"))


@pytest.mark.parametrize(
    "store", ["each call", "slots", "frozen", "property", "proxy", "of the request"]
)
def test_the_end_of_a_websocket_undoes_nothing_whatever_the_session_interface_is(
    store: str, server_factory: Servers
) -> None:
    """Some objects take no attributes, and some are others at each call or in each request."""
    check_a_logout_and_a_login(start(server_factory, STORE=store))


def test_a_session_interface_that_cannot_be_kept_from_saving_has_no_websockets(
    server_factory: Servers,
) -> None:
    server = start(server_factory, STORE="unchangeable")
    browser = Browser(server)
    with WireClient(server.port) as client:
        client.send(request(LOOPS, browser.headers))
        assert client.response().status == 500
    server.wait_for_output("define save_session as a method of the class")


# -- handlers ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with servers_in(tmp_path_factory.mktemp("sessions")) as servers:
        yield start(servers)


@pytest.mark.parametrize("path", ["late", "writes", "fails", "aborts", "listens"])
def test_however_a_handler_accepts_and_ends_nothing_is_saved(path: str, server: Server) -> None:
    browser = Browser(server)
    browser.post("/login")
    with browser.socket(f"/ws/{path}") as client:
        client.send(frame(TEXT, b"eve"))
        browser.post("/logout")
    assert browser.user() == "nobody"


def test_an_interface_that_is_set_while_a_websocket_is_open_saves_nothing_of_it(
    server_factory: Servers,
) -> None:
    test_however_a_handler_accepts_and_ends_nothing_is_saved("replaces", start(server_factory))


@pytest.mark.parametrize("kind", ["flask_sockets2.worker", "gthread", "gevent-websocket"])
def test_neither_the_end_of_the_application_context_nor_a_copied_request_saves_anything(
    kind: str, server_factory: Servers
) -> None:
    """When both are there, the request is over."""
    server = start(server_factory, kind)
    browser = Browser(server)
    browser.post("/login")
    with browser.socket("/ws/outlives"):
        browser.post("/logout")
    wait_until(lambda: "saved later" in ended(server), "the end of the copied request")
    assert browser.user() == "nobody"


def test_a_thread_saves_sessions_again_once_its_websocket_has_ended() -> None:
    """Also those that are saved outside of any request."""
    app = Flask(__name__)
    app.secret_key = "for the tests"
    guard_sessions(app)
    with serving({"wsgi.websocket": object()}):
        assert cookies_of_saving(app) == []
    assert len(cookies_of_saving(app)) == 1


def cookies_of_saving(app: Flask) -> list[str]:
    session = SecureCookieSession()
    session["user"] = "ada"
    response = app.response_class()
    app.session_interface.save_session(app, session, response)
    return response.headers.getlist("Set-Cookie")


def test_what_a_refusal_writes_is_saved_as_that_of_any_response(server: Server) -> None:
    browser = Browser(server)
    with WireClient(server.port) as client:
        client.send(request("/ws/refuses", dict(browser.headers)))
        assert client.response().status == 403
    assert browser.user() == "of the refusal"


def test_the_end_of_an_event_stream_undoes_nothing_either(server: Server) -> None:
    """Its session is saved once, when it begins."""
    browser = Browser(server)
    browser.post("/login")
    with browser.stream() as client:
        assert client.next().json() == {"user": "ada"}
        browser.post("/logout")
    assert browser.user() == "nobody"
