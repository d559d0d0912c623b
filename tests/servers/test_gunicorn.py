"""gunicorn with our worker, and how the others stop: started as an operator starts them."""

from __future__ import annotations

import http.client
import json
import os
import re
import selectors
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from flask import Flask
from gunicorn.config import Config
from gunicorn.glogging import Logger
from werkzeug.middleware.proxy_fix import ProxyFix

from flask_sockets2.servers.gunicorn import _check_application, _Handler
from flask_sockets2.servers.request_head import Headers
from tests.clients import echoed
from tests.clients import http as ask
from tests.processes import Certificate, Server, ServerFailed, Servers, servers_in, wait_until
from tests.wire_client import (
    CLOSE,
    HANDSHAKE,
    TIMEOUT,
    Frame,
    WireClient,
    close_frame,
    connect,
    frame,
    request,
)

StartServer = Callable[..., Server]

SOURCE = """
    import os
    import time

    from flask import Flask, request
    from flask_sockets2 import Sockets

    app = Flask(__name__)
    sockets = Sockets(app)


    @sockets.route("/echo")
    def echo(ws):
        for message in ws:
            ws.send(message)


    @sockets.route("/ends")
    def ends(ws):
        pass


    @sockets.route("/late", accept=False)
    def late(ws):
        print("late is there", flush=True)
        while not ws.handler.server.closed:
            time.sleep(0.01)
        ws.accept()


    @sockets.route("/hints-after")
    def hints_after(ws):
        hint = request.environ["wsgi.early_hints"]
        ws.send("one")
        hint([("Link", "a")])
        ws.send("two")


    @app.route("/")
    def page():
        return f"{os.getpid()}"


    @app.route("/hints")
    def hints():
        hint = request.environ["wsgi.early_hints"]
        try:
            hint([("Link", request.args["link"])])
        except ValueError as exc:
            return f"refused: {exc}"
        return "sent"


    def create_app(name="app"):
        return app
"""


def workers(server: Server) -> set[int]:
    return {child.pid for child in psutil.Process(server.process.pid).children()}


@contextmanager
def connections(server: Server, count: int) -> Iterator[list[WireClient]]:
    with ExitStack() as stack:
        yield [stack.enter_context(connect(server.port)) for _ in range(count)]


def closed_at(clients: list[WireClient], timeout: float = 60.0) -> list[tuple[float, bytes]]:
    """Wait for the server's close frame on each, and answer it; tell when it came and what."""
    came: list[tuple[float, bytes]] = []
    deadline = time.monotonic() + timeout
    with selectors.DefaultSelector() as selector:
        for client in clients:
            selector.register(client.sock, selectors.EVENT_READ, client)
        while len(came) < len(clients):
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f"{len(came)} of {len(clients)} were closed in {timeout} s")
            for key, _ in ready:
                selector.unregister(key.fileobj)
                frame = key.data.frame()
                assert frame.opcode == CLOSE
                came.append((time.monotonic(), frame.payload))
                key.data.send(close_frame(1001))
    return came


HERE = {"PYTHONPATH": "."}

GOING_AWAY = b"\x03\xe9server shutdown"  # 1001
GRACE = str(2 * int(TIMEOUT))  # longer than a test waits for the end of a server


# -- serving -------------------------------------------------------------------------------


@pytest.mark.quick
def test_pages_and_websockets_are_served_without_a_warning(gunicorn: StartServer) -> None:
    """pain 61: nothing is patched too late."""
    server = gunicorn(SOURCE, environ={"PYTHONWARNINGS": "always"})
    assert ask(server.url("/"))[0] == 200
    assert echoed(server.ws_url("/echo"), "hello") == "hello"
    assert ask(server.url("/echo"))[0] == 426
    assert server.terminate() == 0
    assert "Warning" not in server.output
    assert "patched" not in server.output
    assert "Traceback" not in server.output


def test_the_worker_has_flask_sockets_name_and_a_class_name(gunicorn: StartServer) -> None:
    """pain 67"""
    server = gunicorn(SOURCE, worker="flask_sockets2.Worker")
    assert echoed(server.ws_url("/echo"), "hello") == "hello"


def test_an_application_factory_is_served(gunicorn: StartServer) -> None:
    """pain 11"""
    server = gunicorn(SOURCE, target="app:create_app('name')")
    assert echoed(server.ws_url("/echo"), "hello") == "hello"


def test_a_factory_without_its_parentheses_ends_the_start(server_factory: Servers) -> None:
    told = r'create_app\(name=.app.\) is not a WSGI application.*"module:create_app\(\)"'
    with pytest.raises(ServerFailed, match=told):
        server_factory.gunicorn(SOURCE, target="app:create_app")


def _of_two(config: object = None, testing: bool = False) -> None: ...


def _of_names(**config: object) -> None: ...


async def _of_asgi(scope: object, receive: object, send: object) -> None: ...


@pytest.mark.parametrize("application", [lambda: None, _of_two, _of_names, _of_asgi])
def test_what_wsgi_cannot_call_is_named(application: object) -> None:
    with pytest.raises(ValueError, match="is not a WSGI application"):
        _check_application(application)


class _Iterates:
    def __init__(self, environ: object, start_response: object) -> None: ...


@pytest.mark.parametrize(
    "application",
    [
        Flask("app"),
        Flask("app").wsgi_app,
        ProxyFix(Flask("app")),
        _Iterates,
        lambda environ, start_response: [],
        lambda environ, start_response, further=None: [],
        lambda *args, **options: [],
        max,
    ],
)
def test_what_wsgi_can_call_is_served(application: object) -> None:
    _check_application(application)


@pytest.mark.slow
@pytest.mark.parametrize("value", ["'10'", "0", "True"])
def test_a_handshake_timeout_that_is_no_number_is_named_at_the_start(
    value: str, gunicorn: StartServer
) -> None:
    source = SOURCE.replace(
        "sockets =", f"app.config['SOCKETS_HANDSHAKE_TIMEOUT'] = {value}\n    sockets ="
    )
    message = f"SOCKETS_HANDSHAKE_TIMEOUT must be a number of seconds above 0, got {value}"
    with pytest.raises(ServerFailed, match=re.escape(message)):
        gunicorn(source)


def test_several_workers_need_no_sticky_sessions(gunicorn: StartServer) -> None:
    """pain 40"""
    server = gunicorn(SOURCE, args=["-w", "2"])
    for number in range(8):
        assert echoed(server.ws_url("/echo"), str(number)) == str(number)


def test_a_websocket_over_tls_closes_in_order(
    gunicorn: StartServer, certificate: Certificate
) -> None:
    """pain 68"""
    args = ["--certfile", certificate.certfile, "--keyfile", certificate.keyfile]
    server = gunicorn(SOURCE, args=args, secure=True)
    context = certificate.client_context()
    message = os.urandom(300_000)
    assert echoed(server.ws_url("/echo"), message, ssl=context) == message
    with WireClient(server.port) as client:
        client.sock = context.wrap_socket(client.sock, server_hostname="127.0.0.1")
        client.send(request("/ends"))
        assert client.response().status == 101
        assert client.frame().opcode == CLOSE
        client.send(close_frame())
        assert client.rest() == b""
    # A client that speaks no TLS is told so by the handshake, and nobody else is troubled.
    with WireClient(server.port) as client:
        client.send(request("/echo"))
        assert not client.rest().startswith(b"HTTP/1.1 101")
    assert echoed(server.ws_url("/echo"), "hello", ssl=context) == "hello"


def test_a_page_keeps_its_connection_alive(gunicorn: StartServer) -> None:
    server = gunicorn(SOURCE)
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT)
    client.connect()
    sock = client.sock
    for _ in range(3):
        client.request("GET", "/")
        with client.getresponse() as response:
            assert response.status == 200
            assert response.read().isdigit()
        assert client.sock is sock
    client.request("GET", "/echo", headers=HANDSHAKE)  # and may become a WebSocket after all
    with client.getresponse() as response:
        assert response.status == 101
    client.close()


def test_the_access_log_has_a_line_for_each_websocket(gunicorn: StartServer) -> None:
    """pain 21"""
    form = "%(h)s %(r)s status=%(s)s seconds=%(L)s agent=%(a)s"
    args = ["--access-logfile", "-", "--access-logformat", form]
    server = gunicorn(SOURCE, args=args)
    started = time.monotonic()
    with connect(server.port, headers={"User-Agent": "tests"}) as client:
        client.send(frame(0x1, b"hello"))
        assert client.message() == b"hello"
        assert "GET /echo" not in server.output
        client.send(close_frame())
        assert client.closing() == (1000, "")
    line = server.wait_for_output(
        r"^127\.0\.0\.1 GET /echo HTTP/1\.1 status=101 seconds=([\d.]+) agent=tests$"
    )
    assert 0 < float(line[1]) <= time.monotonic() - started
    assert ask(server.url("/"))[0] == 200
    server.wait_for_output(r"^127\.0\.0\.1 GET / HTTP/1\.1 status=200 ")
    assert server.output.count("GET /echo") == 1


class CountingLogger(Logger):
    """As gunicorn's own for statsd: it has something to do without an access log, too."""

    counted = 0

    def access(self, *args: Any) -> None:
        super().access(*args)
        self.counted += 1


class Untouched(dict[str, Any]):
    def items(self) -> Any:
        raise AssertionError("it was copied")


def logging_handler(log: Any, environ: Any) -> Any:
    """A handler that has answered a request."""
    handler = object.__new__(_Handler)
    handler.worker = SimpleNamespace(log=log)
    handler.requestline, handler.status, handler.response_length = "GET / HTTP/1.1", "200 OK", 0
    handler.time_start = handler.time_finish = time.time()
    handler.environ, handler.headers, handler.response_headers = (
        environ,
        Headers(BytesIO(b"\n")),
        [],
    )
    return handler


def test_what_no_access_log_takes_is_not_prepared_for_one() -> None:
    logging_handler(Logger(Config()), Untouched()).log_request()
    config = Config()
    config.set("accesslog", "-")
    with pytest.raises(AssertionError, match="copied"):
        logging_handler(Logger(config), Untouched()).log_request()


def test_a_logger_of_ones_own_hears_of_each_request_without_an_access_log() -> None:
    log = CountingLogger(Config())
    logging_handler(log, {}).log_request()
    assert log.counted == 1


# -- a worker of one's own -----------------------------------------------------------------

WORKERS = """
    from gevent.pywsgi import WSGIHandler
    from geventwebsocket.handler import WebSocketHandler as Foreign
    from gunicorn.workers.ggevent import PyWSGIHandler, PyWSGIServer
    from flask_sockets2 import WebSocketHandler, worker


    def marked(base):
        class MyHandler(base):
            def get_environ(self):
                return {**super().get_environ(), "HTTP_X_MARK": "mine"}

        return MyHandler


    class OfGunicorns(worker):
        wsgi_handler = marked(PyWSGIHandler)


    class OfGevents(worker):
        wsgi_handler = marked(WSGIHandler)


    class OfThePublic(worker):
        wsgi_handler = marked(WebSocketHandler)


    class OfOurs(worker):
        wsgi_handler = marked(worker.wsgi_handler)

        class server_class(PyWSGIServer):
            def get_environ(self):
                return {**super().get_environ(), "HTTP_X_SERVER": "mine"}


    class OfAnother(worker):
        wsgi_handler = Foreign
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["OfGunicorns", "OfGevents", "OfThePublic", "OfOurs"])
def test_a_subclass_may_have_a_handler_of_its_own(name: str, server_factory: Servers) -> None:
    (server_factory.folder / "workers.py").write_text(dedent(WORKERS))
    source = SOURCE.replace(
        'return f"{os.getpid()}"', 'return dict(request.headers) | {"peer": request.remote_addr}'
    )
    # A gunicorn that is started by its own script has its folder on the path only with this.
    server = server_factory.gunicorn(
        source, worker=f"workers.{name}", args=["--limit-request-fields", "9"], environ=HERE
    )
    status, body = ask(server.url("/"))[:2]
    assert status == 200
    seen = json.loads(body)
    assert seen["X-Mark"] == "mine"
    assert seen["peer"] == "127.0.0.1"
    assert ("X-Server" in seen) is (name == "OfOurs")
    assert echoed(server.ws_url("/echo"), "hello") == "hello"
    with WireClient(server.port) as client:  # gunicorn's settings still count
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: 1\r\n" * 9 + b"\r\n")
        assert client.response().status == 431


def test_a_handler_that_cannot_serve_is_named_at_the_start(server_factory: Servers) -> None:
    (server_factory.folder / "workers.py").write_text(dedent(WORKERS))
    with pytest.raises(ServerFailed, match=r"subclass of flask_sockets2\.WebSocketHandler"):
        server_factory.gunicorn(SOURCE, worker="workers.OfAnother", environ=HERE)


# -- early hints ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hinting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with servers_in(tmp_path_factory.mktemp("hints")) as servers:
        yield servers.gunicorn(SOURCE)


def hinted(server: Server, link: str, version: str = "HTTP/1.1") -> bytes:
    with WireClient(server.port) as client:
        fields = "Host: a\r\nConnection: close\r\n\r\n"
        client.send(f"GET /hints?link={link} {version}\r\n{fields}".encode())
        return client.rest()


def test_early_hints_are_sent_before_the_response(hinting: Server) -> None:
    """pain 118"""
    answer = hinted(hinting, "%3C/a.css%3E;rel=preload")
    hint, _, response = answer.partition(b"\r\n\r\n")
    assert hint == b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>;rel=preload"
    assert response.startswith(b"HTTP/1.1 200 OK\r\n")
    assert response.endswith(b"\r\n\r\nsent")


@pytest.mark.parametrize("link", ["a%0d%0aX:b", "a%0aX:b", "a%00"])
def test_early_hints_hold_no_line_break(link: str, hinting: Server) -> None:
    """pain 87"""
    answer = hinted(hinting, link)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\n\r\nrefused: the header field 'Link' cannot be sent: " in answer


def test_a_client_of_http_1_0_gets_no_early_hints(hinting: Server) -> None:
    """pain 119"""
    answer = hinted(hinting, "a", version="HTTP/1.0")
    assert b"103" not in answer.split(b"\r\n")[0]
    assert answer.endswith(b"sent")


def test_once_a_websocket_is_accepted_there_are_no_early_hints(hinting: Server) -> None:
    """They would stand between the frames."""
    with connect(hinting.port, "/hints-after") as client:
        assert [client.message(), client.message()] == [b"one", b"two"]
        assert client.frame() == Frame(True, 0, CLOSE, b"\x03\xe8")


# -- stopping ------------------------------------------------------------------------------


@pytest.mark.quick
def test_sigterm_closes_websockets_in_batches_and_ends_after_the_last(
    gunicorn: StartServer,
) -> None:
    """pain 54, pain 70"""
    count = 160
    server = gunicorn(SOURCE, args=["--graceful-timeout", GRACE])
    with connections(server, count) as clients:
        started = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        came = closed_at(clients)
        assert {payload for _, payload in came} == {GOING_AWAY}
        # 160 in batches of 10: 15 pauses of 0.1 s
        assert came[-1][0] - started > 1.4
        assert server.process.wait(TIMEOUT) == 0
    assert "Traceback" not in server.output


def test_a_peer_that_does_not_answer_the_close_is_not_waited_for_long(
    gunicorn: StartServer,
) -> None:
    """pain 70"""
    server = gunicorn(SOURCE, args=["--graceful-timeout", GRACE])
    with connections(server, 3) as clients:
        server.process.send_signal(signal.SIGTERM)
        for client in clients:
            assert client.frame().payload == GOING_AWAY
        # SOCKETS_CLOSE_TIMEOUT is 5 s
        assert server.process.wait(60) == 0
        assert [client.rest() for client in clients] == [b""] * 3


def test_a_worker_that_drains_sends_clients_of_kept_connections_elsewhere(
    gunicorn: StartServer,
) -> None:
    """pain 54: a handshake on such a connection would be refused."""
    server = gunicorn(SOURCE, args=["--graceful-timeout", GRACE, "--keep-alive", GRACE])
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT)
    client.request("GET", "/")
    client.getresponse().read()
    with connections(server, 1) as (stays,):
        server.process.send_signal(signal.SIGTERM)
        assert stays.frame().payload == GOING_AWAY
        assert client.sock.recv(1) == b"", "closed at once, while others are still served"
        client.close()
        stays.send(close_frame(1001))
    assert server.process.wait(TIMEOUT) == 0


def test_a_handler_that_accepts_when_the_server_has_stopped_answers_503(
    gunicorn: StartServer,
) -> None:
    """pain 54: nobody would close that connection."""
    server = gunicorn(SOURCE, args=["--graceful-timeout", GRACE])
    with WireClient(server.port) as client:
        client.send(request("/late"))
        server.wait_for_output("late is there")
        server.process.send_signal(signal.SIGTERM)
        response = client.response()
    assert response.status == 503
    assert response.headers["retry-after"] == "1"
    assert "connect again" in response.body
    assert server.process.wait(TIMEOUT) == 0
    assert "Traceback" not in server.output


def test_max_requests_restarts_the_worker_and_closes_its_websockets(
    gunicorn: StartServer,
) -> None:
    # It is replaced only when it is gone: who waited for a successor would do so for 12 s.
    server = gunicorn(SOURCE, args=["--max-requests", "4", "--graceful-timeout", "60"])
    (old,) = workers(server)
    with connections(server, 2) as clients:
        assert ask(server.url("/"))[1] == str(old)
        assert "Autorestarting" not in server.output  # that was the third of four
        assert ask(server.url("/"))[1] == str(old)
        assert {payload for _, payload in closed_at(clients)} == {GOING_AWAY}
    wait_until(lambda: old not in workers(server) and workers(server), "a new worker")
    assert echoed(server.ws_url("/echo"), "hello") == "hello"
    assert "Traceback" not in server.output


SUPERVISOR = """
import os, select, socket, sys

listener = socket.create_server(("127.0.0.1", 0))
child = os.fork()
if not child:
    os.dup2(listener.fileno(), 3)
    os.set_inheritable(3, True)
    if "fd://3" not in sys.argv:
        os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
    os.execv(sys.argv[1], sys.argv[1:])
os.waitpid(child, 0)
print("somebody waits" if select.select([listener], [], [], 0)[0] else "nobody waits")
"""

CONFIG = """
graceful_timeout = 5
control_socket_disable = True  # no setting of older versions


def post_worker_init(worker):
    worker.log.info("ready to serve")
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["activated", "activated, reloaded", "bound"])
def test_where_a_service_manager_keeps_the_socket_nobody_is_left_in_it(
    how: str, server_factory: Servers
) -> None:
    """systemd would start the service again that it has just stopped."""
    folder = server_factory.folder
    (folder / "supervisor.py").write_text(SUPERVISOR)
    (folder / "config.py").write_text(CONFIG)
    (folder / "app.py").write_text(dedent(SOURCE))
    command = [sys.executable, "supervisor.py", Path(sys.executable).with_name("gunicorn")]
    command += ["-k", "flask_sockets2.worker", "-c", "config.py"]
    server = server_factory.start(
        [*command, *(["-b", "fd://3"] if how == "bound" else []), "app:app"]
    )
    listening = server.wait_for_output(r"Listening at: http://127\.0\.0\.1:(\d+) \((\d+)\)")
    server.port, master = int(listening[1]), int(listening[2])
    if how == "activated, reloaded":
        server.wait_for_output("ready to serve")
        os.kill(master, signal.SIGHUP)
        server.wait_for_output(r"Worker exiting")
    with connect(server.port) as client:
        os.kill(master, signal.SIGTERM)
        assert client.closing()[0] == 1001
    assert server.process.wait(TIMEOUT) == 0
    assert server.output.endswith("\nnobody waits\n")


@pytest.mark.parametrize("group", [False, True], ids=["SIGINT", "Ctrl-C"])
def test_sigint_ends_at_once(group: bool, gunicorn: StartServer) -> None:
    """pain 60: a terminal signals the whole group."""
    server = gunicorn(SOURCE, args=["--graceful-timeout", GRACE])
    with connections(server, 5) as clients:
        if group:
            os.killpg(server.process.pid, signal.SIGINT)
        else:
            server.process.send_signal(signal.SIGINT)
        server.process.wait(TIMEOUT)
        for client in clients:
            assert client.frame().payload == GOING_AWAY
            assert client.rest() == b""
    assert "Traceback" not in server.output


def test_sighup_reloads_and_closes_the_old_workers_websockets(gunicorn: StartServer) -> None:
    """pain 60"""
    server = gunicorn(SOURCE, args=["--graceful-timeout", GRACE])
    (old,) = workers(server)
    with connections(server, 3) as clients:
        server.process.send_signal(signal.SIGHUP)
        assert {payload for _, payload in closed_at(clients)} == {GOING_AWAY}
    wait_until(lambda: old not in workers(server) and workers(server), "a new worker")
    assert echoed(server.ws_url("/echo"), "hello") == "hello"
    assert ask(server.url("/"))[1] != str(old)
    assert "Traceback" not in server.output


def test_sighup_closes_nobody_before_the_new_workers_serve(gunicorn: StartServer) -> None:
    """pain 60: gunicorn ends the old ones while the new ones still import the application."""
    source = SOURCE.replace("app = Flask", "time.sleep(3)\n    app = Flask")
    args = ["--workers", "2", "--graceful-timeout", "30", "--access-logfile", "-"]
    server = gunicorn(source, args=args)
    server.wait_for(lambda: server.output.count("has loaded") == 2, "both workers")
    old = workers(server)
    with connections(server, 20) as clients:
        server.process.send_signal(signal.SIGHUP)
        with selectors.DefaultSelector() as selector:
            for client in clients:
                selector.register(client.sock, selectors.EVENT_READ)
            assert selector.select(TIMEOUT)
        serving = {int(ask(server.url("/"))[1]) for _ in range(20)}
        assert serving
        assert not serving & old
        assert {payload for _, payload in closed_at(clients)} == {GOING_AWAY}
    wait_until(lambda: not old & workers(server), "the end of the old ones")
    assert "Traceback" not in server.output
    logged = re.findall(r'"([^"]*)" \d+ ', server.output)
    assert set(logged) == {"GET /echo HTTP/1.1", "GET / HTTP/1.1"}, "it asked in silence"


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    ("worker", "args"), [(None, ["--threads", "8"]), ("gevent", [])], ids=["threads", "gevent"]
)
def test_gunicorns_other_workers_stop_with_open_websockets(
    worker: str | None,
    args: list[str],
    signum: int,
    gunicorn: StartServer,
    record_property: Callable[[str, object], None],
) -> None:
    """pain 60: when the graceful timeout is over, of which they do not tell us the beginning."""
    server = gunicorn(SOURCE, worker=worker, args=[*args, "--graceful-timeout", "1"])
    with connections(server, 3) as clients:
        started = time.monotonic()
        server.process.send_signal(signum)
        server.process.wait(TIMEOUT)
        took = time.monotonic() - started
        record_property("seconds", round(took, 2))
        # Threads say 1001, unless gunicorn's master is faster: it kills when that time is over.
        last_words = {client.rest() for client in clients}
        assert last_words <= {b"", frame(CLOSE, GOING_AWAY, masked=False)}


def test_a_worker_without_descriptors_logs_no_traceback_and_accepts_again(
    gunicorn: StartServer,
) -> None:
    """Clients decide how many they use up; ``worker_connections`` may be more than there are."""
    limit = "import resource\n\nresource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))\n"
    server = gunicorn(limit + dedent(SOURCE))
    clients = [WireClient(server.port) for _ in range(60)]
    server.wait_for_output(r"cannot accept connections: .*Too many open files.*worker_connections")
    for client in clients:
        client.close()
    assert ask(server.url())[0] == 200
    assert "Traceback" not in server.output


WITH_REDIS = """
    from flask import Flask
    from flask_sockets2 import Sockets

    app = Flask(__name__)
    app.config["SOCKETS_BROKER_URL"] = "rediss://127.0.0.1:1"  # imports redis, and that ssl
    Sockets(app)
"""


@pytest.mark.parametrize(
    ("agent", "remedy"),
    [
        ("opentelemetry", "set OTEL_PYTHON_AUTO_INSTRUMENTATION_EXPERIMENTAL_GEVENT_PATCH="),
        pytest.param(
            "newrelic",
            "begin the application with: import newrelic.agent; newrelic.agent.initialize()",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_an_agent_that_comes_before_gevents_patches_is_named_with_its_remedy(
    agent: str, remedy: str, server_factory: Servers
) -> None:
    """Such an agent imports modules by a ``sitecustomize`` of its own, before gunicorn starts."""
    folder = server_factory.folder / agent
    folder.mkdir()
    (folder / "sitecustomize.py").write_text("import redis.connection, ssl\n")
    server = server_factory.gunicorn(SOURCE, environ={"PYTHONPATH": str(folder)})
    assert server.output.count("imported before gevent could patch the standard library, by ") == 1
    assert f"by {agent}-" in server.output
    assert remedy in server.output


IMPORTED = "from app import app as imported\n"  # as for a hook of the application's
PATCHED = "from gevent import monkey; monkey.patch_all()\n"


@pytest.mark.parametrize(
    ("source", "config", "args"),
    [
        pytest.param(SOURCE, "", ["--preload"], id="preload"),
        pytest.param(WITH_REDIS, "", ["--preload"], id="redis", marks=pytest.mark.slow),
        pytest.param(SOURCE, IMPORTED, [], id="import", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    "first", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["late", "first"]
)
def test_an_application_that_comes_before_gevents_patches_is_told_the_remedy(
    source: str, config: str, args: list[str], first: bool, server_factory: Servers
) -> None:
    """Without it a ThreadPoolExecutor of the application stops the whole worker."""
    shown = server_factory._gunicorn_config().read_text()
    path = server_factory.folder / "patched.py"
    path.write_text((PATCHED if first else "") + config + shown)
    server = server_factory.gunicorn(source, args=[*args, "-c", str(path)], environ=HERE)
    assert "MonkeyPatchWarning" not in server.output
    told = server.output.count("imported before gevent could patch the standard library")
    assert told == (0 if first else 1)
    remedy = "two lines in gunicorn.conf.py: from gevent import monkey; monkey.patch_all()"
    assert server.output.count(remedy) == told
