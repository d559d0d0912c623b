"""gunicorn's hooks around a request, and its access log, under our worker and under gunicorn's."""

from __future__ import annotations

import base64
import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flask_sockets2.servers.hooks import Elapsed
from tests.clients import http as ask
from tests.processes import Server, Servers, servers_in
from tests.wire_client import TIMEOUT, WireClient, close_frame, connect, frame, request

pytestmark = pytest.mark.slow

SOURCE = """
    from flask import Flask, Response, request
    from flask_sockets2 import Sockets

    app = Flask(__name__)
    sockets = Sockets(app)


    @sockets.route("/echo")
    def echo(ws):
        for message in ws:
            ws.send(message)


    @sockets.route("/fails")
    def fails(ws):
        ws.receive()
        raise RuntimeError("this handler is broken")


    @sockets.route("/refused", accept=False)
    def refused(ws):
        return "no", 403


    @sockets.route("/listens")
    def listens(ws):
        ws.subscribe("news")


    @app.route("/page")
    def page():
        return request.headers.get("X-Hook", "no hook")


    @app.route("/pieces")
    def pieces():
        headers = {"X-Answer": request.headers.get("X-Asked", "")}
        return Response(iter([b"a" * 10, b"b" * 5]), headers=headers)


    @app.route("/endless")
    def endless():
        return Response(b"x" * 100000 for _ in iter(int, 1))


    @app.route("/broken")
    def broken():
        def pieces():
            yield b"a" * 100
            raise RuntimeError("this body is broken")
        return Response(pieces())


    def middleware(environ, start_response):
        if environ["PATH_INFO"] == "/raises":
            raise RuntimeError("this application is broken")
        return inner(environ, start_response)


    inner, app.wsgi_app = app.wsgi_app, middleware
"""

CONFIG = r"""
import json

accesslog = "access.log"
access_log_format = " ".join(
    f'{atom}="%({atom})s"' for atom in (
        "h", "l", "u", "m", "U", "q", "H", "s", "B", "b", "f", "a", "T", "M", "D", "L", "p",
        "{x-asked}i", "{x-answer}o", "{content-type}o", "{wsgi.url_scheme}e",
        "r", "t",
    )
)


def note(*told):
    with open("hooks.log", "a") as log:
        print(json.dumps(told), file=log)


def pre_request(worker, req):
    note("pre", req.method, req.uri, req.path, req.query, req.version, sorted(req.headers))
    req.headers.append(("X-HOOK", "seen"))
    if req.path == "/hook-fails":
        raise RuntimeError("this hook is broken")


def post_request(worker, req, environ, resp):
    path = environ.get("PATH_INFO")
    note("post", req.method, req.uri, path, resp and resp.status, resp and resp.sent)
    if req.path == "/page":
        raise RuntimeError("this other hook is broken")


def post_worker_init(worker):
    worker.log.info("a worker has loaded the application")
"""


class Told:
    """A server, and what its hooks and its access log have written for one request each."""

    def __init__(self, servers: Servers, worker: str) -> None:
        self.folder = servers.folder / worker
        self.folder.mkdir()
        (self.folder / "hooks.py").write_text(CONFIG)
        (servers.folder / "app.py").write_text("")
        self.server: Server = servers.gunicorn(
            SOURCE,
            worker=worker,
            args=["-c", str(self.folder / "hooks.py"), "--chdir", str(self.folder)],
            environ={"PYTHONPATH": str(servers.folder)},
        )

    def read(self, name: str) -> list[str]:
        path: Path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    def hooks(self, uri: str, count: int) -> list[Any]:
        """Wait for so many calls for the last request of a URI, and return them."""

        def found() -> list[Any]:
            calls = [json.loads(line) for line in self.read("hooks.log")]
            return [call for call in calls if call[2] == uri]

        self.server.wait_for(lambda: len(found()) >= count, f"{count} hooks of {uri}", TIMEOUT)
        return found()

    def logged(self, uri: str) -> dict[str, str]:
        """Wait for the line of a request in the access log, and return its atoms."""

        def found() -> list[str]:
            return [line for line in self.read("access.log") if f" {uri} HTTP/1.1" in line]

        self.server.wait_for(found, f"the access log of {uri}", TIMEOUT)
        (line,) = found()
        return dict(re.findall(r'(\S+)="([^"]*)"', line))

    def ask(self, uri: str, *fields: str, method: str = "GET") -> bytes:
        lines = [f"{method} {uri} HTTP/1.1", "Host: a", *fields, "Connection: close", "", ""]
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=TIMEOUT) as sock:
            sock.sendall("\r\n".join(lines).encode())
            with sock.makefile("rb") as stream:
                return stream.read()


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    with servers_in(tmp_path_factory.mktemp("ours")) as servers:
        yield Told(servers, "flask_sockets2.worker")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    with servers_in(tmp_path_factory.mktemp("theirs")) as servers:
        yield Told(servers, "gevent")


@pytest.fixture(params=["ours", "theirs"])
def told(request: pytest.FixtureRequest) -> Told:
    found: Told = request.getfixturevalue(request.param)
    return found


# -- hooks ---------------------------------------------------------------------------------


def test_hooks_see_a_request_and_its_answer(told: Told) -> None:
    told.ask("/pieces?a=1", "X-Asked: no")
    headers = [["CONNECTION", "close"], ["HOST", "a"], ["X-ASKED", "no"]]
    assert told.hooks("/pieces?a=1", 2) == [
        ["pre", "GET", "/pieces?a=1", "/pieces", "a=1", [1, 1], headers],
        ["post", "GET", "/pieces?a=1", "/pieces", "200 OK", 15],
    ]


def test_what_pre_request_adds_comes_to_the_application(told: Told) -> None:
    assert told.ask("/page?x").endswith(b"\r\n\r\nseen")


def test_an_exception_in_post_request_is_logged_and_nothing_more(told: Told) -> None:
    assert told.ask("/page?y").startswith(b"HTTP/1.1 200 ")
    told.server.wait_for_output("Exception in post_request hook")
    assert "this other hook is broken" in told.server.output


def test_an_exception_in_pre_request_is_answered_with_500(told: Told) -> None:
    assert told.ask("/hook-fails").startswith(b"HTTP/1.1 500 ")
    assert told.hooks("/hook-fails", 2)[1] == ["post", "GET", "/hook-fails", None, None, None]
    assert "this hook is broken" in told.server.output


def test_hooks_hear_of_errors(told: Told) -> None:
    told.ask("/nowhere")
    assert told.hooks("/nowhere", 2)[1][3:5] == ["/nowhere", "404 NOT FOUND"]
    told.ask("/raises")
    assert [call[0] for call in told.hooks("/raises", 2)] == ["pre", "post"]
    told.server.wait_for_output(r"Error handling request .*/raises")
    assert "this application is broken" in told.server.output


def test_what_is_no_request_has_no_hooks(told: Told) -> None:
    assert told.ask("/broken-head", "no field").startswith(b"HTTP/1.1 400 ")
    told.ask("/next")
    told.hooks("/next", 2)
    assert told.hooks("/broken-head", 0) == []


def test_hooks_see_a_websocket_from_its_handshake_to_its_end(told: Told) -> None:
    with connect(told.server.port, "/echo?z") as client:
        client.send(frame(0x1, b"hello"))
        assert client.message() == b"hello"
        assert [call[0] for call in told.hooks("/echo?z", 1)] == ["pre"]
        client.send(close_frame())
        assert client.closing() == (1000, "")
    post = told.hooks("/echo?z", 2)[1]
    assert post[3:5] == ["/echo", "101 Switching Protocols"]


def test_hooks_see_a_refused_websocket(told: Told) -> None:
    with WireClient(told.server.port) as client:
        client.send(request("/refused"))
        assert client.response().status == 403
    assert told.hooks("/refused", 2)[1][4] == "403 FORBIDDEN"


def test_hooks_of_a_broken_handler(ours: Told) -> None:
    with connect(ours.server.port, "/fails") as client:
        client.send(frame(0x1, b"hello"))
        assert client.closing()[0] == 1011
    assert ours.hooks("/fails", 2)[1][4] == "101 Switching Protocols"


def test_a_listeners_request_is_over_with_its_handler(ours: Told) -> None:
    """Its connection is not: a greenlet for each would be what listeners save."""
    with connect(ours.server.port, "/listens"):
        assert ours.hooks("/listens", 2)[1][4] == "101 Switching Protocols"
        assert ours.logged("/listens")["s"] == "101"


# -- the access log ------------------------------------------------------------------------


def test_all_atoms_say_what_they_say_under_gunicorns_worker(ours: Told, theirs: Told) -> None:
    user = base64.b64encode(b"ann:secret").decode()
    fields = [f"Authorization: Basic {user}", "Referer: http://r/", "User-Agent: tests"]
    lines = []
    for told in (ours, theirs):
        told.ask("/pieces?log", *fields, "X-Asked: yes")
        atoms = told.logged("/pieces?log")
        assert float(atoms["L"]) > 0
        assert atoms["p"].startswith("<")
        assert atoms["t"].startswith(f"[{time.strftime('%d/%b/%Y')}")
        for name in ("T", "M", "D"):
            assert atoms[name].isdigit()
        for name in ("t", "p", "L", "T", "M", "D"):
            del atoms[name]
        lines.append(atoms)
    assert lines[0] == lines[1]
    assert lines[0] == {
        "h": "127.0.0.1",
        "l": "-",
        "u": "ann",
        "m": "GET",
        "U": "/pieces",
        "q": "log",
        "H": "HTTP/1.1",
        "s": "200",
        "B": "15",
        "b": "15",
        "f": "http://r/",
        "a": "tests",
        "{x-asked}i": "yes",
        "{x-answer}o": "yes",
        "{content-type}o": "text/html; charset=utf-8",
        "{wsgi.url_scheme}e": "http",
        "r": "GET /pieces?log HTTP/1.1",
    }


def test_what_a_response_repeats_of_its_request_steers_no_terminal(ours: Told) -> None:
    ours.ask("/pieces?steer", "X-Asked: a\x9b31mb\x85c")
    atoms = ours.logged("/pieces?steer")
    assert atoms["{x-asked}i"] == atoms["{x-answer}o"] == r"a\xc2\x9b31mb\xc2\x85c"


def test_a_client_that_leaves_is_logged_with_its_status(ours: Told) -> None:
    with socket.create_connection(("127.0.0.1", ours.server.port), timeout=TIMEOUT) as sock:
        sock.sendall(b"GET /endless HTTP/1.1\r\nHost: a\r\n\r\n")
        assert sock.recv(12) == b"HTTP/1.1 200"
    atoms = ours.logged("/endless")
    assert atoms["s"] == "200"
    assert int(atoms["B"]) % 100000 == 0
    assert ours.hooks("/endless", 2)[1][4] == "200 OK"


def test_a_body_that_breaks_is_logged_with_what_was_sent(ours: Told) -> None:
    ours.ask("/broken")
    atoms = ours.logged("/broken")
    assert (atoms["s"], atoms["B"]) == ("200", "100")


def test_a_websocket_is_logged_at_its_end(ours: Told) -> None:
    with connect(ours.server.port, "/echo?log") as client:
        client.send(frame(0x1, b"hello"))
        assert client.message() == b"hello"
        client.send(close_frame())
        assert client.closing() == (1000, "")
    atoms = ours.logged("/echo?log")
    assert (atoms["s"], atoms["B"], atoms["b"]) == ("101", "0", "0")
    assert float(atoms["L"]) > 0


def test_a_request_of_two_days_is_logged_with_all_of_its_seconds() -> None:
    assert Elapsed(days=2, seconds=1.5).seconds == 2 * 86400 + 1
    assert Elapsed(days=2, seconds=1.5).microseconds == 500000


# -- loggers -------------------------------------------------------------------------------

LOGGER = """
    from gunicorn.glogging import Logger


    class Quiet(Logger):
        def access(self, resp, req, environ, request_time):
            if req.path != "/page":
                self.info("asked %s %s %s", req.path, resp.status, resp.sent)
"""


def test_a_logger_of_ones_own_is_given_request_and_response(tmp_path: Path) -> None:
    with servers_in(tmp_path) as servers:
        (tmp_path / "quiet.py").write_text("\n".join(line[4:] for line in LOGGER.splitlines()))
        server = servers.gunicorn(SOURCE, args=["--logger-class", "quiet.Quiet"])
        for path in ("/page", "/pieces"):
            assert ask(server.url(path))[0] == 200
        server.wait_for_output("asked /pieces 200 OK 15")
        assert "asked /page" not in server.output


def test_statsd_counts_requests_whose_clients_have_left(tmp_path: Path) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as statsd,
        servers_in(tmp_path) as servers,
    ):
        statsd.bind(("127.0.0.1", 0))
        statsd.settimeout(TIMEOUT)
        address = f"127.0.0.1:{statsd.getsockname()[1]}"
        args = ["--statsd-host", address, "--enable-backlog-metric", "--log-level", "debug"]
        server = servers.gunicorn(SOURCE, args=args)
        with socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT) as sock:
            sock.sendall(b"GET /endless HTTP/1.1\r\nHost: a\r\n\r\n")
            assert sock.recv(12) == b"HTTP/1.1 200"
        while (told := statsd.recv(1000)) != b"gunicorn.request.status.200:1|c|@1.0":
            assert b"status" not in told
        server.wait_for_output(r"socket backlog: \d")
        assert "Traceback" not in server.output
