"""What a load balancer is told, and what it does then."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import BytesIO, StringIO
from pathlib import Path
from textwrap import dedent
from typing import Any
from wsgiref.handlers import SimpleHandler
from wsgiref.util import setup_testing_defaults

import pytest
from flask import Flask, request
from websockets.exceptions import ConnectionClosed

from flask_sockets2 import Sockets, WebSocketRejected
from tests.brokers.servers import RedisServer, redis_or_skip
from tests.clients import TIMEOUT, http, websocket
from tests.processes import Server, Servers, accepts, wait_until
from tests.proxies import haproxy_in_front
from tests.test_docs import ROOT, blocks

pytestmark = pytest.mark.slow

OPERATIONS = ROOT / "docs" / "operations.rst"

PROGRAM = """
    import os
    from flask import Flask, request
    from flask_sockets2 import Sockets

    app = Flask(__name__)
    app.config.from_prefixed_env()
    app.config["SOCKETS_HEALTH_ROUTE"] = "/health"
    sockets = Sockets(app)

    @sockets.route("/echo")
    def echo(ws):
        ws.send(os.environ.get("NAME", ""))
        for message in ws:
            ws.send(message)

    @sockets.route("/news")
    def news(ws):
        ws.subscribe("news")
"""


def make(**settings: Any) -> tuple[Flask, Sockets]:
    app = Flask(__name__)
    app.config.update({"SOCKETS_HEALTH_ROUTE": "/health", **settings})
    sockets = Sockets(app)
    sockets.add_url_rule("/news", "news", lambda ws: ws.subscribe("news") and None)
    return app, sockets


def test_who_serves_says_so_and_who_is_here() -> None:
    app, sockets = make()
    client = app.test_client()
    response = client.get("/health")
    assert (response.status_code, response.json) == (
        200,
        {"status": "ok", "connections": 0, "streams": 0},
    )
    assert response.headers["Cache-Control"] == "no-store"
    with sockets.test_client(app).connect("/news"):
        assert client.get("/health").json == {
            "status": "ok",
            "connections": 1,
            "streams": 0,
            "broker": "ok",
        }


def test_the_answer_has_the_fields_of_the_page_and_the_endpoint_its_name() -> None:
    (shown,) = re.findall(r"200 ``(\{.*\})``", OPERATIONS.read_text())
    (endpoint,) = re.findall(r'request\.endpoint == "(\w+)"', OPERATIONS.read_text())
    app, sockets = make()
    seen = []
    app.before_request(lambda: seen.append(request.endpoint))
    with sockets.test_client(app).connect("/news"):
        answer = app.test_client().get("/health").json
    assert seen == ["news", endpoint]
    assert answer is not None
    assert {name: type(value) for name, value in answer.items()} == {
        name: type(value) for name, value in json.loads(shown).items()
    }


def test_there_is_no_route_unless_it_is_asked_for() -> None:
    app = Flask(__name__)
    Sockets(app)
    assert [rule.endpoint for rule in app.url_map.iter_rules()] == ["static"]


def test_no_limit_holds_for_it() -> None:
    app, sockets = make(
        SOCKETS_MAX_CONNECTIONS=0,
        SOCKETS_MAX_CONNECTIONS_PER_ADDRESS=0,
        SOCKETS_MAX_HANDSHAKE_RATE=0.01,
    )
    client = app.test_client()
    with pytest.raises(WebSocketRejected):
        sockets.test_client(app).connect("/news")
    assert [client.get("/health").status_code for _ in range(5)] == [200] * 5


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        ({"TRUSTED_HOSTS": ["example.com"]}, 400),
        ({"SERVER_NAME": "example.com", "subdomain_matching": True}, 404),
    ],
)
@pytest.mark.filterwarnings("ignore:Current server name")  # of Flask itself
def test_a_probe_has_to_send_a_host_of_the_application(
    settings: dict[str, Any], refused: int
) -> None:
    app = Flask(__name__, subdomain_matching=settings.pop("subdomain_matching", False))
    app.config.update({"SOCKETS_HEALTH_ROUTE": "/health", **settings})
    Sockets(app)
    client = app.test_client()
    assert client.get("/health", headers={"Host": "10.0.0.7"}).status_code == refused
    assert client.get("/health", headers={"Host": "example.com"}).status_code == 200


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_the_drain_file_says_no_by_every_method_that_balancers_use(
    method: str, tmp_path: Path
) -> None:
    file = tmp_path / "drain"
    app, sockets = make(SOCKETS_DRAIN_FILE=file)
    client = app.test_client()
    assert client.open("/health", method=method).status_code == 200
    file.touch()
    response = client.open("/health", method=method)
    assert response.status_code == 503
    with sockets.test_client(app).connect("/news"):  # clients are served as ever
        pass
    file.unlink()
    assert client.open("/health", method=method).status_code == 200


def test_the_answer_is_one_that_servers_may_refuse_nothing_of(tmp_path: Path) -> None:
    """PEP 3333 forbids hop-by-hop header fields; wsgiref holds applications to it."""
    app, _ = make(SOCKETS_DRAIN_FILE=tmp_path)
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/health", "SERVER_PROTOCOL": "HTTP/1.1"}
    setup_testing_defaults(environ)
    answer, errors = BytesIO(), StringIO()
    SimpleHandler(BytesIO(), answer, errors, environ).run(app)
    assert b" 503 " in answer.getvalue().partition(b"\r\n")[0], errors.getvalue()


@pytest.mark.parametrize("value", [5, "", True])
def test_what_is_no_path_is_named(value: Any) -> None:
    with pytest.raises(ValueError, match=r"SOCKETS_DRAIN_FILE must be the path of a file or None"):
        make(SOCKETS_DRAIN_FILE=value)


def test_a_drain_file_that_no_route_tells_of_is_named() -> None:
    with pytest.raises(ValueError, match=r"SOCKETS_HEALTH_ROUTE, which is not set; set it as well"):
        make(SOCKETS_HEALTH_ROUTE=None, SOCKETS_DRAIN_FILE="/run/app/drain")


@pytest.mark.parametrize("name", ["file/drain", "loop", "x" * 5000, "nu\0ll"])
def test_a_drain_file_that_cannot_be_looked_at_is_logged_once_and_takes_nobody_out(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    app, _ = make(SOCKETS_DRAIN_FILE=f"{tmp_path}/{name}")
    assert len(caplog.messages) == 1  # at the start
    assert caplog.messages[0].startswith("SOCKETS_DRAIN_FILE cannot be looked at")
    assert "name a file in a folder that the server's user may search" in caplog.messages[0]
    client = app.test_client()
    assert [client.get("/health").status_code for _ in range(3)] == [200] * 3
    assert len(caplog.messages) == 1


def test_a_drain_file_is_logged_again_where_it_was_fine_in_between(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "folder"
    app, _ = make(SOCKETS_DRAIN_FILE=folder / "drain")  # no folder: it is just not there
    client = app.test_client()
    for times in (1, 2):
        folder.touch()
        for _ in range(2):
            assert client.get("/health").status_code == 200
        assert len(caplog.messages) == times
        assert "Not a directory" in caplog.messages[-1]
        folder.unlink()
        assert client.get("/health").status_code == 200
    folder.mkdir()
    (folder / "drain").touch()
    assert client.get("/health").status_code == 503


def test_a_worker_that_stops_serves_no_request_whose_head_is_not_there(
    gunicorn: Callable[..., Server],
) -> None:
    """Its connection is closed at once, or just when the rest of the head comes."""
    server = gunicorn(PROGRAM)
    with socket.create_connection(("127.0.0.1", server.port), TIMEOUT) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\n")
        # Asked after it, on a connection that was accepted after it.
        assert http(server.url("/health"))[0] == 200
        server.process.send_signal(signal.SIGTERM)
        server.wait_for(lambda: not accepts(server.port), "it stopped accepting")
        with suppress(OSError):  # it is closed
            sock.sendall(b"Host: localhost\r\n\r\n")
        answer = sock.makefile("rb").read()
    head, _, _ = answer.partition(b"\r\n\r\n")
    assert head.startswith((b"HTTP/1.1 408 ", b"HTTP/1.1 503 ")), head
    assert b"Connection: close" in head


def test_the_last_request_of_a_worker_is_told_that_it_is(
    gunicorn: Callable[..., Server],
) -> None:
    """It accepts for up to a second more."""
    server = gunicorn(PROGRAM, args=["--max-requests", "2"])
    assert http(server.url("/health"))[0] == 200
    status, body, headers = http(server.url("/health"))
    assert (status, headers["Connection"]) == (503, "close")
    assert json.loads(body)["status"] == "draining"


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    yield from redis_or_skip()


def test_a_broker_that_is_away_is_told_and_takes_nobody_out(
    gunicorn: Callable[..., Server], redis_server: RedisServer
) -> None:
    server = gunicorn(PROGRAM, environ={"FLASK_SOCKETS_BROKER_URL": redis_server.url})

    def health() -> tuple[int, str | None]:
        status, body, _ = http(server.url("/health"))
        return status, json.loads(body).get("broker")

    assert health() == (200, None)
    with websocket(server.ws_url("/news")):
        wait_until(lambda: health() == (200, "ok"), "a broker")
        redis_server.kill()
        wait_until(lambda: health() == (200, "away"), "it being away")
        redis_server.restart()
        wait_until(lambda: health() == (200, "ok"), "it being back")


def test_the_unit_of_the_page_takes_its_server_out_and_stops_it(
    gunicorn: Callable[..., Server], tmp_path: Path
) -> None:
    (block,) = blocks(OPERATIONS, "ini")
    (program,) = [block for block in blocks(OPERATIONS, "python") if "SOCKETS_DRAIN_FILE" in block]
    unit = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
    start, stop = unit["ExecStart"].split(), shlex.split(unit["ExecStop"])
    sleep = int(stop[-1].partition("sleep ")[2].split()[0])
    graceful = int(start[start.index("--graceful-timeout") + 1])
    assert int(unit["TimeoutStopSec"]) > sleep + graceful
    folder = tmp_path / unit["RuntimeDirectory"]
    folder.mkdir()
    routes = "import os\n" + dedent(PROGRAM).partition("Sockets(app)\n")[2]
    server = gunicorn(
        program.replace("/run/app", str(folder)) + routes,
        worker=None,
        args=start[1:-1],
        target=start[-1],
    )
    command = [word.replace("/run/app", str(folder)) for word in stop]
    command[-1] = command[-1].replace(f"sleep {sleep}", "sleep 2")
    with websocket(server.ws_url("/echo")) as ws:
        assert ws.recv(TIMEOUT) == ""
        environ = {**os.environ, "MAINPID": str(server.process.pid)}
        with subprocess.Popen(command, env=environ) as stopping:
            wait_until(lambda: http(server.url("/health"))[0] == 503, "the drain file to be seen")
            ws.send("still here")
            assert ws.recv(TIMEOUT) == "still here"
            assert stopping.wait(TIMEOUT) == 0
        with pytest.raises(ConnectionClosed) as closed:
            ws.recv(TIMEOUT)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001
    assert server.process.wait(2 * TIMEOUT) == 0


def test_haproxy_sends_nobody_to_a_server_that_drains_and_cuts_nobody_off(
    server_factory: Servers, tmp_path: Path
) -> None:
    servers = {}
    for name in ("a", "b"):
        environ = {"NAME": name, "FLASK_SOCKETS_DRAIN_FILE": str(tmp_path / f"drain-{name}")}
        servers[name] = server_factory.gunicorn(PROGRAM, args=["--workers", "2"], environ=environ)
    (text,) = [block for block in blocks(OPERATIONS, "text") if "backend" in block]
    text = text.replace("127.0.0.1:8001", f"127.0.0.1:{servers['b'].port}")
    proxy = haproxy_in_front(server_factory, servers["a"].port, text)

    def reached() -> str:
        with websocket(proxy.ws_url("/echo")) as ws:
            return str(ws.recv(TIMEOUT))

    assert http(proxy.url("/health"))[0] == 403
    wait_until(lambda: {reached() for _ in range(4)} == {"a", "b"}, "both servers being up")
    with websocket(proxy.ws_url("/echo")) as first, websocket(proxy.ws_url("/echo")) as second:
        held = {str(ws.recv(TIMEOUT)): ws for ws in (first, second)}
        assert held.keys() == {"a", "b"}  # one after the other
        (tmp_path / "drain-a").touch()
        wait_until(lambda: {reached() for _ in range(4)} == {"b"}, "new clients going to b")
        held["a"].send("still here")
        assert held["a"].recv(TIMEOUT) == "still here"

        servers["a"].process.send_signal(signal.SIGTERM)
        came = []
        deadline = time.monotonic() + 2 * TIMEOUT
        while servers["a"].process.poll() is None:
            assert time.monotonic() < deadline, "a has not ended"
            came.append(reached())
        assert came
        assert set(came) == {"b"}
        with pytest.raises(ConnectionClosed) as closed:
            held["a"].recv(TIMEOUT)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001
        held["b"].send("nothing happened")
        assert held["b"].recv(TIMEOUT) == "nothing happened"
