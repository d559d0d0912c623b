"""Sockets taken over from servers that know no WebSocket."""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import psutil
import pytest

from flask_sockets2 import Connection
from flask_sockets2.servers import takeover as environ_module
from flask_sockets2.servers.takeover import take_over
from tests.clients import echoed, http
from tests.connections import tcp_pair
from tests.processes import Server, accepts, wait_until
from tests.wire_client import CLOSE, TEXT, TIMEOUT, WireClient, close_frame, connect, frame, request

StartServer = Callable[..., Server]

SOURCE = """
    import logging

    from flask import Flask, abort
    from flask_sockets2 import Sockets

    logging.basicConfig(level=logging.INFO)
    app = Flask(__name__)
    sockets = Sockets(app)


    @sockets.route("/echo")
    def echo(ws):
        for message in ws:
            ws.send(message)


    @sockets.route("/fails")
    def fails(ws):
        raise KeyError("missing")


    @sockets.route("/refuses", accept=False)
    def refuses(ws):
        abort(401, "who are you?")


    @app.route("/")
    def page():
        return "page"
"""

ENVIRON = {
    "REQUEST_METHOD": "GET",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "PATH_INFO": "/",
    "HTTP_HOST": "a",
    "HTTP_UPGRADE": "websocket",
    "HTTP_CONNECTION": "Upgrade",
    "HTTP_SEC_WEBSOCKET_KEY": "dGhlIHNhbXBsZSBub25jZQ==",
    "HTTP_SEC_WEBSOCKET_VERSION": "13",
}


# -- finding the socket --------------------------------------------------------------------


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"wsgi.input": io.BytesIO()},
        {"werkzeug.socket": None, "gunicorn.socket": None},
        {"werkzeug.socket": "not a socket"},
    ],
)
def test_without_a_socket_nothing_is_taken_over(environ: dict[str, Any]) -> None:
    assert take_over(environ) is None


@pytest.mark.parametrize("key", ["werkzeug.socket", "gunicorn.socket", "gunicorn.sock"])
def test_the_servers_socket_is_taken_and_it_keeps_a_sink(key: str) -> None:
    """pain 59: what the server goes on to write reaches nobody."""
    peer, sock = tcp_pair()
    with peer, sock:
        number = sock.fileno()
        environ: dict[str, Any] = {**ENVIRON, key: sock, "wsgi.input": io.BytesIO()}
        taken = take_over(environ)
        assert taken is not None
        taken.connection.accept()
        assert peer.response().status == 101
        peer.send(close_frame())
        taken.lifecycle.finish()
        peer.closing()
        files = psutil.Process().num_fds()
        taken.release()
        assert sock.fileno() == number
        sock.settimeout(TIMEOUT)
        sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
        sock.sendall(bytes(2**24))  # which no buffer holds
        assert sock.recv(100) == b""
        sock.close()
        wait_until(lambda: psutil.Process().num_fds() < files, "the sink to be closed", 30.0)


def test_bytes_behind_the_head_are_taken_along() -> None:
    peer, sock = tcp_pair()
    with peer, sock, sock.makefile("rb") as reader:
        peer.send(b"head\n" + frame(TEXT, b"early"))
        assert reader.readline() == b"head\n"
        environ = {**ENVIRON, "werkzeug.socket": sock, "wsgi.input": reader}
        taken = take_over(environ)
        assert taken is not None
        ws = taken.connection
        assert ws.receive(timeout=TIMEOUT) == "early"
        peer.close()
        taken.lifecycle.finish()


# -- flask run -----------------------------------------------------------------------------


@pytest.mark.quick
def test_the_development_server_serves_pages_and_websockets(flask_run: StartServer) -> None:
    """pain 58, pain 59"""
    server = flask_run(SOURCE)
    for number in range(3):
        assert echoed(server.ws_url("/echo"), str(number)) == str(number)
        assert http(server.url("/"))[:2] == (200, "page")
    with WireClient(server.port) as client:
        client.send(request("/echo"))
        assert client.response().status == 101
    with WireClient(server.port) as client:
        client.send(request("/refuses"))
        assert client.response().status == 401
    server.wait_for_output(r"GET /refuses HTTP/1\.1\S* 401")
    assert len(re.findall(r"GET /echo HTTP/1\.1\S* 101", server.output)) == 4
    assert "Traceback" not in server.output
    assert "AssertionError" not in server.output


WRAPPED = """
    inner = app.wsgi_app
    app.wsgi_app = lambda environ, start: inner(environ, lambda *given: start(*given))
"""

PROXIED = (
    SOURCE
    + """
    from werkzeug.middleware.proxy_fix import ProxyFix
    app.wsgi_app = ProxyFix(app.wsgi_app)
"""
)


@pytest.mark.slow
@pytest.mark.parametrize("middleware", ["", WRAPPED], ids=["", "middleware"])
@pytest.mark.parametrize("worker", ["gthread", "gevent", "gevent_pywsgi", "sync", "flask run"])
def test_behind_a_refusal_nothing_is_read_as_a_request(
    worker: str, middleware: str, gunicorn: StartServer, flask_run: StartServer
) -> None:
    """What a client sends there are frames. gunicorn drops a ``Connection`` of an application.

    Most middleware has a ``start_response`` of its own, so that ours is not gunicorn's.
    """
    source = f"{PROXIED}{middleware}"
    if worker == "flask run":
        server = flask_run(source)
    else:
        server = gunicorn(source, worker=worker, args=["--threads", "4"])
    behind = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    for asked, status in (
        (request("/refuses"), 401),
        (request("/nowhere"), 404),
        (request("/"), 400),
        (request("/echo", {"Origin": "http://evil.example"}), 403),
        (request("/echo", {"Sec-WebSocket-Version": "8"}), 426),
        (request("/echo", {"Host": "a b"}), 400),
        (request("/refuses", {"Content-Length": "0"}), 401),
        (request("/refuses", {"Content-Length": "5"}) + b"abcde", 400),
        (request("/refuses", {"Transfer-Encoding": "chunked"}) + b"0\r\n\r\n", 400),
        (request("//evil.com/echo", {"SCRIPT_NAME": "//evil.com"}), 400),
    ):
        if worker in ("flask run", "gevent_pywsgi") and b"SCRIPT_NAME" in asked:
            continue  # to them this is a header field like any other
        with WireClient(server.port) as client:
            client.send(asked + behind)
            came = client.rest()
        head = came.partition(b"\r\n\r\n")[0].lower()
        assert came.startswith(b"HTTP/1.1 %d " % status), came
        assert came.count(b"HTTP/1.1 ") == 1
        if not (middleware and worker in ("gthread", "gevent", "sync")):  # keep-alive, it says
            assert b"\r\nconnection: close" in head
            assert b"keep-alive" not in head
    assert http(server.url("/"))[:2] == (200, "page")
    assert "Traceback" not in server.output


def test_the_debugger_leaves_a_websocket_alone(flask_run: StartServer) -> None:
    """pain 59"""
    server = flask_run(SOURCE, args=["--debugger", "--no-reload"], environ={"FLASK_DEBUG": "1"})
    with connect(server.port, "/fails") as client:
        assert client.frame().payload == b"\x03\xf3"  # 1011
    server.wait_for_output("KeyError: 'missing'")
    assert server.output.count("Traceback") == 1
    assert echoed(server.ws_url("/echo"), "hello") == "hello"


def test_one_thread_says_that_it_serves_one_at_a_time(flask_run: StartServer) -> None:
    """pain 69"""
    server = flask_run(SOURCE, args=["--without-threads"])
    assert echoed(server.ws_url("/echo"), "hello") == "hello"
    server.wait_for_output("an open WebSocket blocks all others")


def test_ctrl_c_ends_the_development_server_with_a_connection_open(
    flask_run: StartServer,
) -> None:
    """pain 60"""
    server = flask_run(SOURCE)
    with connect(server.port) as client:
        server.terminate(signal.SIGINT)
        client.rest()
    assert "Traceback" not in server.output


def test_the_reloader_reloads_on_a_change_and_ends_on_ctrl_c_with_a_connection_open(
    flask_run: StartServer, tmp_path: Any
) -> None:
    """pain 60"""
    server = flask_run(SOURCE, args=["--reload"])
    wait_until(lambda: http(server.url("/"))[1] == "page", "the page")
    with connect(server.port) as client:
        client.send(frame(TEXT, b"hello"))
        assert client.message() == b"hello"
        source = tmp_path / "app.py"
        changed = source.read_text().replace('return "page"', 'return "changed"')
        source.write_text(changed)
        later = time.time() + 2  # the reloader compares whole times of change
        os.utime(source, (later, later))
        server.wait_for_output(r"Detected change|Restarting with")
        assert client.rest(timeout=TIMEOUT) is not None

    def reloaded() -> bool:
        return accepts(server.port) and http(server.url("/"))[1] == "changed"

    wait_until(reloaded, "the changed page")
    children = psutil.Process(server.process.pid).children(recursive=True)
    with connect(server.port) as client:
        os.killpg(server.process.pid, signal.SIGINT)
        server.process.wait(TIMEOUT)
        _, alive = psutil.wait_procs(children, timeout=TIMEOUT)
        assert alive == []
        client.rest()


def test_a_thread_that_waits_for_its_peer_does_not_keep_a_program_alive(
    pywsgi_server: StartServer, unused_port: int
) -> None:
    """pain 60: a WSGI server of one's own, with threads that are no daemons."""
    source = f"""{SOURCE}

    if __name__ == "__main__":
        from werkzeug.serving import make_server

        server = make_server("127.0.0.1", {unused_port}, app, threaded=True)
        server.daemon_threads = False
        server.block_on_close = False
        sockets.add_url_rule("/stop", "stop", lambda ws: server.shutdown())
        server.serve_forever()
    """
    server = pywsgi_server(source, port=unused_port)
    with connect(server.port) as client:
        with connect(server.port, "/stop") as stop:
            stop.frame()
            stop.send(close_frame())
            came = client.frame()
            client.send(frame(CLOSE, came.payload))
            assert server.process.wait(TIMEOUT) == 0
        assert came.payload == b"\x03\xe9server shutdown"


def test_a_forked_child_that_ends_leaves_its_parents_websockets_open(
    flask_run: StartServer,
) -> None:
    source = f"""{SOURCE}

    @app.route("/fork")
    def fork():
        import multiprocessing

        child = multiprocessing.get_context("fork").Process(target=len, args=("job",))
        child.start()
        child.join(60)
        return str(child.exitcode)
    """
    server = flask_run(source)
    with connect(server.port) as client:
        client.send(frame(TEXT, b"before"))
        assert client.message() == b"before"
        assert http(server.url("/fork"))[:2] == (200, "0")
        client.send(frame(TEXT, b"after"))
        assert client.message() == b"after"
        client.send(close_frame())
        assert client.closing() == (1000, "")


def test_at_exit_all_silent_peers_together_are_waited_for_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """pain 60"""
    monkeypatch.setattr(environ_module, "_CLOSING_TIME", 0.5)
    assert Connection.opened() == []
    with ExitStack() as stack:
        peers = []
        for _ in range(60):
            peer, sock = tcp_pair()
            stack.enter_context(peer)
            stack.enter_context(sock)
            peers.append(peer)
            taken = take_over({**ENVIRON, "werkzeug.socket": sock, "wsgi.input": io.BytesIO()})
            assert taken is not None
            taken.connection.accept()
        started = time.monotonic()
        environ_module._close_all()
        assert 0.4 < time.monotonic() - started < 15  # each of them would be 30 s
        assert Connection.opened() == []
        for peer in peers:
            assert peer.response().status == 101
            assert peer.closing() == (1001, "server shutdown")


def test_a_pair_without_a_port_is_a_socket_too() -> None:
    near, far = socket.socketpair()
    with near, far:
        taken = take_over({**ENVIRON, "werkzeug.socket": near, "wsgi.input": io.BytesIO()})
        assert taken is not None
        taken.connection.accept()
        far.settimeout(TIMEOUT)
        assert far.recv(12) == b"HTTP/1.1 101"
        far.close()
        assert taken.connection.receive(timeout=TIMEOUT) is None
        taken.lifecycle.finish()
