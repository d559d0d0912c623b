"""WSGI middleware around an application: each kind, inside and outside of ours, on every server."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask

from flask_sockets2 import Sockets
from tests.clients import http
from tests.conftest import ROOT
from tests.processes import Server, Servers, servers_in, unused_port, wait_until
from tests.servers.test_gevent import PATCHED, SERVE
from tests.sites import on
from tests.wire_client import CLOSE, TEXT, WireClient, close_frame, connect, frame, request

RUN = """
from werkzeug.serving import run_simple
run_simple("127.0.0.1", PORT, app, threaded=True)
"""

OURS = ("our server", "gunicorn -k flask_sockets2.worker")
OTHERS = ("stock", "gunicorn -k gevent", "gunicorn --threads=12", "run")

NAMES = (
    *("none", "profiler", "shared_data", "dispatcher", "debugger", "validator", "lint"),
    *("buffers", "generates", "in_a_thread", "copies", "reads_the_body", "changes_the_status"),
    *("adds", "catches", "sends_a_file", "sends_much", "writes", "last"),
)
SHAPES = (
    *("none", "validator", "buffers", "generates", "in_a_thread", "changes_the_status"),
    *("catches", "last"),
)

ENDS = 40.0  # seconds, for what comes after a connection on a busy machine


class Wrapped:
    """One of the applications.

    :param prefix: of its URLs.
    """

    def __init__(self, server: Server, prefix: str) -> None:
        self.server = server
        self.prefix = prefix

    def connect(self, path: str) -> WireClient:
        return connect(self.server.port, f"{self.prefix}{path}")

    def http(self, path: str, **options: Any) -> tuple[int, str]:
        return http(self.server.url(f"{self.prefix}{path}"), timeout=ENDS, **options)[:2]

    def seen(self, path: str, query: str = "") -> dict[str, Any]:
        """What the recorder has of the newest request for a path."""
        url = self.server.url(f"/seen{self.prefix}{path}{query}")
        found: dict[str, Any] = json.loads(http(url, timeout=ENDS)[1])
        return found

    def ended(self, path: str) -> dict[str, Any]:
        """The same, once that is over."""
        return self.seen(path, "?over")


def start(servers: Servers, kind: str, module: str = "tests.middlewares") -> Server:
    environ = {"PYTHONPATH": str(ROOT)}
    target = f"{module}:app"
    if kind.startswith("gunicorn --threads"):
        args = [kind.partition(" ")[2]]
        return servers.gunicorn(worker=None, args=args, target=target, environ=environ)
    if kind.startswith("gunicorn"):
        worker = kind.partition(" -k ")[2]
        return servers.gunicorn(worker=worker, target=target, environ=environ)
    port = unused_port()
    first, last = ("", RUN) if kind == "run" else (PATCHED, SERVE[kind])
    source = f"{first}from {module} import app\n{last}"
    return servers.script(source.replace("PORT", str(port)), port=port, environ=environ)


@pytest.fixture(scope="module")
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server that lasts as long as the tests of its kind."""
    with servers_in(tmp_path_factory.mktemp("middleware")) as servers:
        yield start(servers, request.param)


@pytest.fixture(params=("outside", "inside"))
def where(request: pytest.FixtureRequest) -> str:
    place: str = request.param
    return place


@on(*OURS, *OTHERS)
@pytest.mark.parametrize("name", NAMES)
def test_a_websocket_goes_through_middleware(name: str, where: str, running: Server) -> None:
    """PEP 3333: start_response is called once, the body is asked for and closed."""
    wrapped = Wrapped(running, f"/{name}/{where}")
    before = len(running.output)
    if (name, wrapped.http("/page")[0]) == ("validator", 500):
        # Of a page, too: Werkzeug's server puts a number there.
        error = "Environmental variable REMOTE_PORT is not a string"
        running.wait_for(lambda: error in running.output[before:], "the error", ENDS)
        return
    talk(wrapped, name)


def talk(wrapped: Wrapped, name: str) -> dict[str, Any]:
    """Echo a message and close; see that the middleware was treated as PEP 3333 says.

    :returns: what has been seen of it.
    """
    running = wrapped.server
    before = len(running.output)
    with wrapped.connect("/echo") as client:
        client.send(frame(TEXT, b"hello"))
        assert client.message() == f"hello {name == 'copies'}".encode()
        client.send(close_frame())
        assert client.closing() == (1000, "")
    seen = wrapped.ended("/echo")
    ((status, fields, again),) = seen["began"]
    expected = "200 OK" if name == "changes_the_status" else "101 SWITCHING PROTOCOLS"
    assert (status.upper(), again) == (expected, False)
    assert "content-type" in [name.lower() for name, _ in fields]
    assert (seen["closed"], seen["exhausted"]) == (1, True)
    assert "Traceback" not in running.output[before:]
    return seen


@on("our server", "gunicorn --threads=12")
@pytest.mark.parametrize("name", SHAPES)
def test_a_listener_stays_behind_middleware(name: str, where: str, running: Server) -> None:
    wrapped = Wrapped(running, f"/{name}/{where}")
    with wrapped.connect("/listen") as client:
        assert client.message() == b"ready"
        client.send(frame(TEXT, b"thrown away"))
        assert wrapped.http("/publish/hello") == (200, "")
        assert client.message() == b"hello"
        client.send(close_frame())
        assert client.closing() == (1000, "")
    assert len(wrapped.ended("/listen")["began"]) == 1


@on("our server", "gunicorn --threads=12")
@pytest.mark.parametrize("name", SHAPES)
def test_a_refusal_goes_through_middleware(name: str, where: str, running: Server) -> None:
    wrapped = Wrapped(running, f"/{name}/{where}")
    with WireClient(running.port) as client:
        client.send(request(f"{wrapped.prefix}/refuses"))
        response = client.response()
    status = 200 if name == "changes_the_status" else 403
    assert (response.status, response.body) == (status, "not you")
    assert wrapped.http("/page") == (200, "page")
    assert wrapped.http("/stream") == (200, "one two")


@on("our server", "gunicorn --threads=12")
@pytest.mark.parametrize("name", SHAPES)
def test_a_handler_that_fails_closes_its_connection(name: str, where: str, running: Server) -> None:
    wrapped = Wrapped(running, f"/{name}/{where}")
    before = len(running.output)
    with wrapped.connect("/fails") as client:
        client.send(frame(TEXT, b"now"))
        said = 1000 if (name, where) == ("changes_the_status", "inside") else 1011
        assert client.closing() == (said, "")
    assert len(wrapped.ended("/fails")["began"]) == 1
    assert running.output[before:].count("RuntimeError: told by the handler") == 1


def test_a_body_that_fails_before_its_response_has_begun_is_closed() -> None:
    closed = []

    class Body:
        def __iter__(self) -> Iterator[bytes]:
            raise ZeroDivisionError

        def close(self) -> None:
            closed.append(self)

    app = Flask(__name__)
    app.wsgi_app = lambda environ, start_response: Body()  # type: ignore[method-assign]  # as Flask documents it
    client = Sockets(app).test_client(app)
    with pytest.raises(ZeroDivisionError), client.connect("/echo"):
        pass
    assert len(closed) == 1


@on("gevent-websocket")
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("validator", "writes")])
def test_middleware_under_gevent_websockets_handler(name: str, where: str, running: Server) -> None:
    """It has sent the 101 by itself, gives no write(), and closes no body: an error to the
    validator."""
    wrapped = Wrapped(running, f"/{name}/{where}")
    before = len(running.output)
    with wrapped.connect("/echo") as client:
        client.send(frame(TEXT, b"hello"))
        assert client.message().startswith(b"hello ")
        client.send(close_frame())
        assert client.frame().opcode == CLOSE

    def began() -> Any:
        return wrapped.seen("/echo")["began"]

    wait_until(began, "the end of the request", ENDS)
    assert len(began()) == 1
    assert "Traceback" not in running.output[before:]


# -- start_response ------------------------------------------------------------------------


@on(*OURS, *OTHERS)
def test_middleware_outside_is_told_of_the_101_when_the_connection_begins(running: Server) -> None:
    """Not when it ends: a session would be saved over what has changed in between."""
    wrapped = Wrapped(running, "/none/outside")
    with wrapped.connect("/echo"):
        ((status, fields, _),) = wrapped.seen("/echo")["began"]
        assert status == "101 Switching Protocols"
        names = [name for name, _ in fields]
        assert names == ["Sec-WebSocket-Accept", "Content-Type"], "Connection is the server's"


@on(*OURS, *OTHERS)
def test_middleware_is_told_of_the_header_fields_of_the_handler(running: Server) -> None:
    wrapped = Wrapped(running, "/none/outside")
    with WireClient(running.port) as client:
        client.send(request(f"{wrapped.prefix}/headers"))
        sent = client.response().headers
    assert (sent["x-own"], sent["content-type"]) == ("1", "text/plain")
    ((_, fields, _),) = wrapped.ended("/headers")["began"]
    assert [field for field in fields if field[0] != "Sec-WebSocket-Accept"] == [
        ["X-Own", "1"],
        ["Content-Type", "text/plain"],
    ]


@on(*OURS)
def test_what_middleware_adds_is_sent_with_the_101(running: Server) -> None:
    with WireClient(running.port) as client:
        client.send(request("/adds/outside/echo"))
        while not (head := bytes(client._received)).endswith(b"\r\n\r\n"):
            assert client._more(time.monotonic() + ENDS)
    assert head == b"\r\n".join(
        (
            b"HTTP/1.1 101 Switching Protocols",
            b"Upgrade: websocket",
            b"Connection: Upgrade",
            b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
            b"X-Request-Id: seven",
            b"Set-Cookie: a=1",
            b"Set-Cookie: b=2",
            b"",
            b"",
        )
    )


@on(*OTHERS)
def test_elsewhere_what_middleware_adds_is_not_sent(running: Server) -> None:
    with WireClient(running.port) as client:
        client.send(request("/adds/outside/echo"))
        headers = client.response().headers
    assert sorted(headers) == ["connection", "sec-websocket-accept", "upgrade"]


@on(*OURS, *OTHERS)
def test_middleware_that_raises_in_start_response_gets_no_connection(running: Server) -> None:
    wrapped = Wrapped(running, "/fails_to_begin/outside")
    with WireClient(running.port) as client:
        client.send(request(f"{wrapped.prefix}/echo"))
        assert client.response().status == 500
    assert [status for status, _, _ in wrapped.ended("/echo")["began"]] == [
        "500 INTERNAL SERVER ERROR"
    ]
    assert running.output.count("RuntimeError: told by the middleware") >= 1


@on(*OURS)
def test_a_field_that_cannot_be_sent_is_an_error_before_the_101(running: Server) -> None:
    """The response that takes its place is announced with exc_info, as PEP 3333 asks for."""
    wrapped = Wrapped(running, "/adds_what_cannot_be_sent/outside")
    with WireClient(running.port) as client:
        client.send(request(f"{wrapped.prefix}/echo"))
        assert client.response().status == 500
    began = wrapped.ended("/echo")["began"]
    expected = [("101", False), ("500", True)]
    assert [(status[:3], again) for status, _, again in began] == expected


# -- after_request -------------------------------------------------------------------------


@on(*OURS, *OTHERS)
@pytest.mark.parametrize("status", [200, 302])
def test_another_response_of_after_request_leaves_a_listener(status: int, running: Server) -> None:
    wrapped = Wrapped(running, "/none/outside")
    with wrapped.connect(f"/listen?after={status}") as client:
        assert client.message() == b"ready"
        assert wrapped.http("/publish/hello") == (200, "")
        assert client.message() == b"hello"
        client.send(close_frame())
        assert client.closing() == (1000, "")


@on(*OURS, *OTHERS)
@pytest.mark.parametrize(
    ("status", "code", "reason"), [(403, 1008, "403 Forbidden"), (500, 1011, "")]
)
def test_a_refusal_of_after_request_closes_a_listener_and_is_logged(
    status: int, code: int, reason: str, running: Server
) -> None:
    wrapped = Wrapped(running, "/none/outside")
    before = len(running.output)
    with wrapped.connect(f"/listen?after={status}") as client:
        assert client.message() == b"ready"
        assert client.closing() == (code, reason)
    running.wait_for(lambda: "let a response" in running.output[before:], "a line", ENDS)
    line = f"closes '/listen' with {code}: an after_request function or middleware"
    assert line in running.output[before:]


@on("our server", "run")
def test_a_handler_that_redirects_does_not_stay_as_a_listener(running: Server) -> None:
    wrapped = Wrapped(running, "/none/outside")
    before = len(running.output)
    with wrapped.connect("/redirects") as client:
        assert client.closing() == (1000, "")
    wrapped.ended("/redirects")
    assert "let a response" not in running.output[before:]
