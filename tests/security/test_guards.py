"""What strangers try against a site with logins, over a real server and from a real browser."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from http.cookies import SimpleCookie
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pytest

from flask_sockets2.turbo.markup import stream_tag, with_sender
from tests.clients import http
from tests.processes import Server, servers_in
from tests.test_readme import ROOT, python_blocks
from tests.wire_client import TEXT, TIMEOUT, Response, WireClient, connect, frame, request

if TYPE_CHECKING:
    from playwright.sync_api import Page

AUTHENTICATION = ROOT / "docs" / "authentication.rst"

APPLICATION = """
import logging
import os
from cachelib import FileSystemCache
from flask import Flask, request, session
from flask_session import Session
from flask_sockets2 import Sockets, Turbo
from flask_sockets2.sse import sse

logging.basicConfig()
logging.getLogger("flask_sockets2").setLevel(logging.DEBUG)

app = Flask(__name__)
app.secret_key = "for the tests"
app.config["SOCKETS_HANDSHAKE_TIMEOUT"] = 2.0
if os.environ.get("SESSIONS"):  # on the server
    app.config["SESSION_TYPE"] = "cachelib"
    app.config["SESSION_CACHELIB"] = FileSystemCache(os.environ["SESSIONS"])
    Session(app)
sockets = Sockets(app)
turbo = Turbo(app)
app.register_blueprint(sse, url_prefix="/events")


@sockets.user_id
def user_id():
    return session.get("user")


@app.get("/")
def page():
    session.setdefault("basket", "empty")
    return "<p>"


@app.post("/login")
def login():
    session.clear()
    session["user"] = request.form["user"]
    return "welcome"


@app.post("/logout")
def logout():
    session.clear()
    return "goodbye"


@app.get("/streams")
def streams():
    bind = request.args.get("bind", "user")
    element = turbo.stream_from("room", 5, bind=bind)
    return {"stream": element, "address": sse.url("news", bind=bind)}


@sockets.route("/who")
def who(ws):
    ws.send(str(session.get("user")))
    for message in ws:
        session["user"] = message
        ws.send(str(session.get("user")))


@sockets.route("/fails")
def fails(ws):
    ws.receive()
    {}["missing"]


@sockets.route("/ours", origins=["https://www.example.com"])
def ours(ws):
    ws.send("hello")


"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with servers_in(tmp_path_factory.mktemp("guards")) as servers:
        yield servers.gunicorn(APPLICATION)


def asked(server: Server, path: str, **headers: str) -> Response:
    """The answer to a handshake."""
    with WireClient(server.port) as client:
        client.send(request(path, {name.replace("_", "-"): text for name, text in headers.items()}))
        return client.response()


def who(server: Server, cookie: str) -> str:
    """Who a WebSocket with this cookie is."""
    with connect(server.port, "/who", {"Cookie": cookie}) as client:
        name = client.message()
        assert isinstance(name, bytes)
        return name.decode()


def cookie_of(headers: Any) -> str:
    cookie = SimpleCookie(headers["Set-Cookie"])
    return f"session={cookie['session'].value}"


# -- cross-site WebSocket hijacking --------------------------------------------------------

CONNECT = """
([url, kind]) => new Promise((resolve) => {
  const there = kind === "ws" ? new WebSocket(url) : new EventSource(url);
  there.onopen = () => resolve("open");
  there.onmessage = (event) => resolve(event.data);
  there.onerror = () => { there.close(); resolve("refused"); };
})
"""


@pytest.mark.quick
def test_a_page_of_another_site_connects_to_nothing_in_a_browser(
    server: Server, page: Page
) -> None:
    """It is another origin, but the same site: the browser sends the visitor's cookies along."""
    page.goto(server.url("/"))
    assert page.evaluate(CONNECT, [server.ws_url("/who"), "ws"]) == "open"
    assert page.evaluate(CONNECT, [server.url("/events"), "events"]) == "open"
    other = server.url("/").replace("127.0.0.1", "localhost")
    page.goto(other)
    assert page.evaluate(CONNECT, [server.ws_url("/who"), "ws"]) == "refused"
    assert page.evaluate(CONNECT, [server.url("/events"), "events"]) == "refused"


def test_a_page_of_another_site_holds_no_stream_of_its_visitor_open(server: Server) -> None:
    """As an image, whose source is the stream: it comes with cookies and without an origin."""
    for site, status in (("cross-site", 403), ("same-origin", 200)):
        with WireClient(server.port) as client:
            head = f"GET /events HTTP/1.1\r\nHost: a\r\nSec-Fetch-Site: {site}\r\n\r\n"
            client.send(head.encode())
            assert client._take(12, time.monotonic() + TIMEOUT) == f"HTTP/1.1 {status}".encode()


def test_a_host_name_that_was_bound_to_our_address_opens_nothing_where_origins_are_named(
    server: Server,
) -> None:
    """DNS rebinding: origin and host are the same then, and neither is ours."""
    rebound = {"Host": "evil.example", "Origin": "http://evil.example"}
    assert asked(server, "/who", **rebound).status == 101  # as behind a proxy that renames us
    assert asked(server, "/ours", **rebound).status == 403


# -- session fixation ----------------------------------------------------------------------


def test_a_cookie_from_before_the_login_is_nobody_after_it(server: Server) -> None:
    """Session fixation: a stranger puts its own cookie on a visitor who then logs in."""
    _, _, headers = http(server.url("/"))
    planted = cookie_of(headers)
    form = urlencode({"user": "ann"}).encode()
    _, _, headers = http(server.url("/login"), data=form, headers={"Cookie": planted})
    assert who(server, cookie_of(headers)) == "ann"
    assert who(server, planted) == "None"


ON_THE_SERVER = """
from cachelib import FileSystemCache
from flask_session import Session

app.config.update(SESSION_TYPE="cachelib", SESSION_CACHELIB=FileSystemCache("sessions"))
Session(app)


@app.get("/")
def page():
    session.setdefault("basket", "empty")
    return "<p>"


@sockets.route("/who")
def who(ws):
    ws.send(str(session.get("user")))
"""


def test_with_flask_session_a_cookie_from_before_the_login_is_nobody_after_it(
    gunicorn: Callable[..., Server],
) -> None:
    """By the program of the page, with the line for Flask-Session in it."""
    source = python_blocks(AUTHENTICATION.read_text())[0]
    regenerate = "app.session_interface.regenerate(session)"
    assert f"# {regenerate}" in source
    server = gunicorn(source.replace(f"# {regenerate}", regenerate) + ON_THE_SERVER)
    planted = cookie_of(http(server.url("/"))[2])
    form = urlencode({"user": "ann"}).encode()
    with WireClient(server.port) as client:
        head = "POST /login HTTP/1.1\r\nHost: a\r\nContent-Type: application/x-www-form-urlencoded"
        head += f"\r\nCookie: {planted}\r\nContent-Length: {len(form)}\r\n\r\n"
        client.send(head.encode() + form)
        answer = client.response()
    assert answer.status == 302
    cookie = answer.headers["set-cookie"].partition(";")[0]
    assert who(server, cookie) == "ann"
    assert who(server, planted) == "None"


def test_a_handshake_logs_nobody_in(server: Server) -> None:
    """What a handler puts into the session after the 101 goes nowhere: no cookie of its."""
    answer = asked(server, "/who")
    assert answer.status == 101
    assert "set-cookie" not in answer.headers
    with connect(server.port, "/who") as client:
        assert client.message() == b"None"
        client.send(frame(TEXT, b"ann"))
        assert client.message() == b"ann"
    with connect(server.port, "/who") as client:
        assert client.message() == b"None"


# -- names that are stolen -----------------------------------------------------------------


def log_in(server: Server, user: str) -> str:
    """The cookie of a browser in which a user has logged in."""
    form = urlencode({"user": user}).encode()
    return cookie_of(http(server.url("/login"), data=form)[2])


def statuses(server: Server, page: dict[str, str], cookie: str) -> list[int]:
    """What is answered to the names of a page: a handshake, and two requests for events."""
    match = re.search('name="([^"]*)"', page["stream"])
    assert match is not None
    stream = f"/turbo-stream?s={match[1]}&at="
    found = [asked(server, stream, Cookie=cookie).status]
    for path in (stream, page["address"]):
        with WireClient(server.port) as client:
            head = f"GET {path} HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n"
            client.send(f"{head}Cookie: {cookie}\r\n\r\n".encode())
            found.append(int(client._take(12, time.monotonic() + TIMEOUT)[9:]))
    return found


@pytest.mark.parametrize("bind", ["user", "session"])
@pytest.mark.parametrize("sessions", ["in the cookie", "on the server"])
def test_names_are_of_no_use_after_the_logout_nor_to_whoever_gets_hold_of_them(
    bind: str, sessions: str, tmp_path: Path, gunicorn: Callable[..., Server]
) -> None:
    environ = {} if sessions == "in the cookie" else {"SESSIONS": str(tmp_path / "sessions")}
    server = gunicorn(APPLICATION, environ=environ)
    ann, bob = log_in(server, "ann"), log_in(server, "bob")
    _, text, headers = http(server.url(f"/streams?bind={bind}"), headers={"Cookie": ann})
    if "Set-Cookie" in headers:  # the session has a token now
        ann = cookie_of(headers)
    page = json.loads(text)
    assert statuses(server, page, ann) == [101, 200, 200]
    for stranger in (bob, "session=none"):
        assert statuses(server, page, stranger) == [403, 403, 403]
    gone = cookie_of(http(server.url("/logout"), data=b"", headers={"Cookie": ann})[2])
    assert statuses(server, page, gone) == [403, 403, 403]
    if sessions == "on the server":  # one in a cookie is what it was, for whoever has kept it
        assert statuses(server, page, ann) == [403, 403, 403]


# -- tokens in URLs ------------------------------------------------------------------------


def test_what_stands_in_a_query_is_in_no_line_of_ours(server: Server) -> None:
    secret = "token=s3cr3t"
    with connect(server.port, f"/who?{secret}") as client:
        client.message()
    with connect(server.port, f"/fails?{secret}") as client:
        client.send(frame(TEXT, b"go on"))
        assert client.closing() == (1011, "")
    assert asked(server, f"/who?{secret}", Origin="https://evil.example").status == 403
    assert asked(server, f"/nowhere?{secret}").status == 404
    assert asked(server, f"/who?{secret}", Sec_WebSocket_Version="8").status == 426
    with WireClient(server.port) as client:
        client.send(f"GET /who?{secret} HTTP/1.1\r\nHost: a\r\nno field\r\n\r\n".encode())
        assert client.response().status == 400
    server.wait_for_output("Exception on /fails")
    assert "s3cr3t" not in server.output


# -- markup --------------------------------------------------------------------------------

ELEMENTS = """
(markup) => {
  const template = document.createElement("template");
  template.innerHTML = markup;
  return Array.from(template.content.querySelectorAll("*"), (element) => [
    element.localName,
    Object.fromEntries(Array.from(element.attributes, ({name, value}) => [name, value])),
  ]);
}
"""

HOSTILE = (
    '"><img src=x onerror=alert(1)>',
    "'><script>alert(1)</script>",
    "</template></turbo-stream><script>alert(1)</script>",
    'x" action="remove" targets="body',
    "&quot;&#34;&gt;&lt;",
    "<!--",
    "`\u2028\ufeff\u202e",
)


def test_what_users_say_stays_in_its_attribute_in_a_browser(page: Page) -> None:
    for text in HOSTILE:
        made = with_sender(stream_tag(text, None, target=text, title=text), text)
        expected = {"action": text, "target": text, "title": text, "data-sender": text}
        assert page.evaluate(ELEMENTS, made) == [["turbo-stream", expected]], json.dumps(text)
