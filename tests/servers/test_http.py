"""HTTP as its specifications have it, on each server that runs our handler.

What is no request, or breaks off, is refused, closes its connection, and costs a line in the log.
"""

from __future__ import annotations

import re
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.clients import http
from tests.processes import Certificate, Server, make_certificate, servers_in, unused_port
from tests.servers.test_body import BROKEN
from tests.servers.test_gevent import PATCHED, SERVE
from tests.wire_client import TIMEOUT, WireClient, close_frame, frame, request

APP = """
import logging
import sys

from flask import Flask, Response, request
from flask_sockets2 import Sockets

logging.basicConfig(stream=sys.stdout)
logging.getLogger("flask_sockets2").setLevel(logging.INFO)

app = Flask(__name__)
sockets = Sockets(app)
served = []


@app.before_request
def note():
    served.append(request.path)


@app.route("/served")
def what_was_served():
    return " ".join(served)


@sockets.route("/echo")
def echo(ws):
    for message in ws:
        ws.send(message)


@sockets.route("/host")
def host(ws):
    ws.send(request.host)


@app.route("/", methods=["GET", "POST", "OPTIONS"])
def page():
    return f"{request.host} {request.full_path} {request.get_data().decode()}"


@app.post("/form")
def form():
    return f"form {request.form.to_dict()}"


@app.post("/lines")
def lines():
    return Response(f"line {line}" for line in request.stream)


@app.post("/unread")
def unread():
    return "unread"


@app.post("/stubborn")
def stubborn():
    try:
        request.get_data()
    except Exception:
        pass
    return "whatever"


@app.route("/large")
def large():
    return Response(bytes(65536) for _ in range(1000))


@app.route("/header")
def header():
    return "header", {"X-Said": request.args["said"]}


@app.route("/status")
def status():
    return "status", "200 " + request.args["said"]


@app.route("/behind")
def behind():
    return "what is behind"


def serve(environ, start_response):
    if environ["PATH_INFO"] != "/bare":
        return app(environ, start_response)
    data = environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [data]
"""

SERVE_TLS = """
from flask_sockets2 import WebSocketServer
WebSocketServer(("127.0.0.1", PORT), serve, certfile="cert.pem", keyfile="key.pem").serve_forever()
"""

KINDS = ["our server", "our handler", "worker"]


def start(kind: str, folder: Path, certificate: Certificate | None = None) -> Iterator[Server]:
    port = unused_port()
    with servers_in(folder) as servers:
        if kind == "worker":
            args = ["--access-logfile", "-"]
            if certificate is not None:
                args += ["--certfile", str(certificate.certfile)]
                args += ["--keyfile", str(certificate.keyfile)]
            secure = certificate is not None
            yield servers.gunicorn(APP, args=args, target="app:serve", secure=secure)
        elif certificate is not None:
            server = servers.script(PATCHED + APP + SERVE_TLS.replace("PORT", f"{port}"), port=port)
            server.secure = True
            yield server
        else:
            program = SERVE[kind].replace("PORT", f"{port}").replace("app,", "serve,")
            yield servers.script(PATCHED + APP + program.replace("app)", "serve)"), port=port)


@pytest.fixture(scope="module", params=KINDS)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    yield from start(request.param, tmp_path_factory.mktemp(request.param.replace(" ", "-")))


@pytest.fixture(scope="module", params=["our server", "worker"])
def secure(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp(f"tls-{request.param.replace(' ', '-')}")
    yield from start(request.param, folder, make_certificate(folder))


@pytest.fixture(autouse=True)
def no_traceback(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a client does: neither a traceback nor anything that is worse than information."""
    used = {"server", "secure"} & set(request.fixturenames)
    servers = [request.getfixturevalue(name) for name in used]
    before = [len(server.output) for server in servers]
    yield
    for server, size in zip(servers, before, strict=True):
        for line in server.output[size:].splitlines():
            bad = re.match(
                r"Traceback|(WARNING|ERROR|CRITICAL)|.*\[ERROR\]|\S*(Error|Exception)$", line
            )
            assert not bad, server.output[size:]


def answer(server: Server, sent: bytes) -> bytes:
    """Return all that comes until the server closes the connection."""
    with WireClient(server.port) as client:
        client.send(sent)
        return client.rest()


BEHIND = b"GET /behind HTTP/1.1\r\nHost: a\r\n\r\n"


def head(fields: str = "", line: str = "GET / HTTP/1.1", host: str = "Host: a\r\n") -> bytes:
    return f"{line}\r\n{host}{fields}\r\n".encode("latin-1")


def assert_refused(came: bytes, status: int = 400) -> None:
    """One answer, with that status, and the end of the connection."""
    assert came.startswith(b"HTTP/1.1 %d " % status), came
    assert came.count(b"HTTP/1.1 ") == 1
    assert b"\r\nconnection: close\r\n" in came.lower()


# -- bodies --------------------------------------------------------------------------------

READERS = {"/": 400, "/form": 400, "/bare": 400, "/stubborn": 200, "/unread": 200, "/lines": None}
"""Paths of what reads a body in its way, and the status of a broken one: 400, unless the view has
caught the exception, or has answered before."""


@pytest.mark.parametrize("path", READERS)
@pytest.mark.parametrize("case", BROKEN)
def test_nothing_is_served_behind_a_broken_body(case: str, path: str, server: Server) -> None:
    """RFC 9112 §7.1: where a request ends, or the next one begins, is not guessed at."""
    kind = "Content-Type: application/x-www-form-urlencoded\r\n" * (path == "/form")
    fields = f"{kind}Transfer-Encoding: chunked\r\n"
    with WireClient(server.port) as client:
        client.send(head(fields, f"POST {path} HTTP/1.1") + BROKEN[case] + BEHIND)
        with suppress(OSError):  # it may have been answered and closed by now
            client.sock.shutdown(1)  # where the body goes on for ever
        came = client.rest()
    assert b"what is behind" not in came
    assert came.count(b"HTTP/1.1 ") == 1
    if READERS[path]:
        assert came.startswith(b"HTTP/1.1 %d " % READERS[path])
    if READERS[path] == 400 or path == "/stubborn":
        assert b"\r\nconnection: close\r\n" in came.lower()


@pytest.mark.parametrize("path", ["/", "/form", "/bare", "/lines", "/stubborn", "/unread"])
def test_a_whole_body_is_followed_by_the_next_request(path: str, server: Server) -> None:
    chunked = head("Transfer-Encoding: chunked\r\n", f"POST {path} HTTP/1.1")
    chunked += b"5;a=b\r\nhello\r\n0\r\nSum: x\r\n\r\n"
    plain = head("Content-Length: 5\r\n", f"POST {path} HTTP/1.1") + b"hello"
    came = answer(server, chunked + plain + chunked + head("Connection: close\r\n"))
    assert came.count(b"HTTP/1.1 200 ") == 4
    if path == "/":
        assert came.count(b"a /? hello") == 3


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_transfer_encoding_in_http_1_0_is_refused(version: str, server: Server) -> None:
    """RFC 9112 §6.1: its framing is faulty, whatever it says about keeping the connection."""
    fields = "Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n"
    sent = head(fields, f"POST / HTTP/{version}") + b"0\r\n\r\n"
    came = answer(server, sent + head("Connection: close\r\n"))
    if version == "1.0":
        assert_refused(came)
    else:
        assert came.count(b"HTTP/1.1 200 ") == 2


def test_a_huge_length_takes_no_memory_and_makes_no_error(server: Server) -> None:
    for sent in (
        head(f"Content-Length: {10**17}\r\n", "POST / HTTP/1.1") + b"x",
        head("Transfer-Encoding: chunked\r\n", "POST / HTTP/1.1") + b"7FFFFFFFFFFFFFFF\r\nx",
    ):
        with WireClient(server.port) as client:
            client.send(sent)
            client.sock.shutdown(1)
            assert_refused(client.rest())


def test_a_client_that_waits_for_100_gets_it(server: Server) -> None:
    """RFC 9110 §10.1.1; the expectation is case-insensitive."""
    for expected in ("100-continue", "100-Continue"):
        fields = f"Content-Length: 5\r\nConnection: close\r\nExpect: {expected}\r\n"
        with WireClient(server.port) as client:
            client.send(head(fields, "POST / HTTP/1.1"))
            assert client._take(25, deadline()) == b"HTTP/1.1 100 Continue\r\n\r\n"
            client.send(b"hello")
            assert client.rest().endswith(b"a /? hello")


def deadline() -> float:
    return time.monotonic() + TIMEOUT


# -- heads ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "version",
    ["HTTP/1.1.1", "HTTP/+1.+1", "HTTP/1.01", "1.01", "HTTP/11", "http/1.1", "HTTP/1", "HTTP/x.y"],
)
def test_a_version_that_is_none_opens_neither_a_page_nor_a_websocket(
    version: str, server: Server
) -> None:
    """RFC 9112 §2.3. Otherwise the check of the Host would be passed by, which is one of 1.1."""
    assert_refused(answer(server, head("", f"GET / {version}") + BEHIND))
    assert_refused(answer(server, request(headers={"Host": None}, version=version)))
    assert_refused(answer(server, request(version=version)))


def test_the_preface_of_http_2_is_answered_with_505(server: Server) -> None:
    assert_refused(answer(server, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), 505)


def test_a_line_without_a_version_is_refused(server: Server) -> None:
    """HTTP/0.9 has neither a Host nor a status."""
    assert_refused(answer(server, b"GET /\r\n" + BEHIND))


def test_a_higher_minor_version_is_read_as_1_1(server: Server) -> None:
    """RFC 9110 §2.5"""
    assert answer(server, head("Connection: close\r\n", "GET / HTTP/1.2")).startswith(
        b"HTTP/1.1 200 "
    )
    assert_refused(answer(server, head("", "GET / HTTP/1.2", host="")))


@pytest.mark.parametrize("scheme", ["http", "HTTP", "ws", "https", "wss"])
def test_an_absolute_target_is_served_and_its_authority_is_the_host(
    scheme: str, server: Server
) -> None:
    """RFC 9112 §3.2.2: a proxy asks so, and the Host header field is ignored."""
    fields = "Connection: close\r\n"
    came = answer(server, head(fields, f"GET {scheme}://b.example:81/?c=d HTTP/1.1"))
    assert came.startswith(b"HTTP/1.1 200 ")
    assert came.endswith(b"b.example:81 /?c=d ")
    came = answer(server, head(fields, f"GET {scheme}://b.example HTTP/1.1"))
    assert came.endswith(b"b.example /? ")
    with WireClient(server.port) as client:
        client.send(request(f"{scheme}://b.example:81/host"))
        assert client.response().status == 101
        assert client.message() == b"b.example:81"
        client.send(close_frame())


@pytest.mark.parametrize("authority", ["u@b", "u:p@b", "", "b:c", "b:70000", "[::1", "b,c", "b\\c"])
def test_an_absolute_target_with_no_valid_authority_is_refused(
    authority: str, server: Server
) -> None:
    """RFC 9110 §4.2.1, §4.2.4"""
    assert_refused(answer(server, head("", f"GET http://{authority}/ HTTP/1.1") + BEHIND))
    assert_refused(answer(server, request(f"ws://{authority}/echo")))


def test_an_absolute_target_needs_a_host_field_all_the_same(server: Server) -> None:
    """RFC 9112 §3.2: a request of HTTP/1.1 without one is refused, whatever its target."""
    assert_refused(answer(server, head("", "GET http://a/ HTTP/1.1", host="")))


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("OPTIONS * HTTP/1.1", 404),  # the application's answer: it has no such path
        ("GET * HTTP/1.1", 400),
        ("GET page HTTP/1.1", 400),
        ("GET a:80 HTTP/1.1", 400),
        ("GET ftp://a/ HTTP/1.1", 400),
        ("CONNECT a:443 HTTP/1.1", 501),
        ("CONNECT / HTTP/1.1", 501),
    ],
)
def test_a_target_has_one_of_its_forms(line: str, status: int, server: Server) -> None:
    """RFC 9112 §3.2"""
    assert_refused(answer(server, head("Connection: close\r\n", line)), status)


def test_one_empty_line_before_a_request_is_ignored_and_no_more(server: Server) -> None:
    """RFC 9112 §2.2: some clients end a body with one."""
    for line_end in (b"\r\n", b"\n"):
        sent = line_end + head() + line_end + head("Connection: close\r\n")
        assert answer(server, sent).count(b"HTTP/1.1 200 ") == 2
        with WireClient(server.port) as client:
            client.send(line_end + request() + frame(0x1, b"hello") + close_frame())
            assert client.response().status == 101
            assert client.message() == b"hello"
        assert_refused(answer(server, line_end * 2 + head()))
        assert_refused(answer(server, line_end * 10_000))


VALID_HOSTS = ["a", "a:80", "a:", "A.example.", "127.0.0.1:5000", "[::1]", "[::1]:80", "a_b", "%61"]
INVALID_HOSTS = ["a b", "a/b", "a@b", "", "a?b", "a#b", "a\\b", "a:b", "a:80:80", "a:-1", "a:65536"]
INVALID_HOSTS += [
    "[::1",
    "::1",
    "[a]b",
    "a,b",
    "a, b",
    "<a>",
    '"a"',
    "\xfc",
    "%zz",
    "http://a",
    "a:8x",
]


@pytest.mark.parametrize("host", INVALID_HOSTS)
def test_a_host_that_is_none_is_refused(host: str, server: Server) -> None:
    """RFC 9112 §3.2"""
    for version in ("1.0", "1.1"):
        sent = head("", f"GET / HTTP/{version}", host=f"Host: {host}\r\n")
        assert_refused(answer(server, sent + BEHIND))
    assert_refused(answer(server, request(headers={"Host": host})))


@pytest.mark.parametrize("host", VALID_HOSTS)
def test_a_host_that_is_one_is_served(host: str, server: Server) -> None:
    came = answer(server, head("Connection: close\r\n", host=f"Host: {host}\r\n"))
    assert came.startswith(b"HTTP/1.1 200 ")


def test_a_request_of_http_1_0_may_have_no_host_but_not_two(server: Server) -> None:
    assert answer(server, head("", "GET / HTTP/1.0", host="")).startswith(b"HTTP/1.1 200 ")
    assert_refused(answer(server, head("Host: b\r\n", "GET / HTTP/1.0")))


@pytest.mark.parametrize("number", [98, 99, 100, 5000])
def test_a_hundred_header_fields_are_served_and_no_more(number: int, server: Server) -> None:
    """RFC 6585 §5; http.client and gunicorn have the same limit."""
    fields = "".join(f"X-{i}: y\r\n" for i in range(number)) + "Connection: close\r\n"
    came = answer(server, head(fields))
    if number == 98:
        assert came.startswith(b"HTTP/1.1 200 ")
    else:
        assert_refused(came, 431)


@pytest.mark.parametrize(
    ("fields", "version", "closes"),
    [
        ("Connection: close\r\n", "1.1", True),
        ("Connection: Close\r\n", "1.1", True),
        ("Connection: foo, close\r\n", "1.1", True),
        ("Connection: foo\r\nConnection: close\r\n", "1.1", True),
        ("Connection: keep-alive, foo\r\n", "1.1", False),
        ("Connection: closed\r\n", "1.1", False),
        ("", "1.0", True),
        ("Connection: foo, keep-alive\r\n", "1.0", False),
        ("Connection: keep-alive, close\r\n", "1.0", True),
    ],
)
def test_the_options_of_a_connection_are_a_list(
    fields: str, version: str, closes: bool, server: Server
) -> None:
    """RFC 9110 §7.6.1, RFC 9112 §9.3"""
    came = answer(server, head(fields, f"GET / HTTP/{version}") + head("Connection: close\r\n"))
    assert came.count(b"HTTP/1.1 200 ") == (1 if closes else 2)


# -- responses -----------------------------------------------------------------------------


@pytest.fixture(scope="module", params=KINDS)
def failing(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server for errors of the application, which are logged as such."""
    folder = tmp_path_factory.mktemp(f"failing-{request.param.replace(' ', '-')}")
    yield from start(request.param, folder)


@pytest.mark.slow
@pytest.mark.parametrize("said", ["%01", "%1b[31m", "%00", "%7f", "a%0bb"])
@pytest.mark.parametrize("path", ["header", "status"])
def test_a_control_character_that_an_application_puts_into_a_head_is_its_error(
    path: str, said: str, failing: Server
) -> None:
    """RFC 9110 §5.5. Its head would be another to each who reads it."""
    assert http(failing.url(f"/{path}?said={said}"))[0] == 500


@pytest.mark.parametrize("said", ["", "a%09b", "%c3%bc", "a+b"])
def test_other_characters_pass(said: str, failing: Server) -> None:
    assert http(failing.url(f"/header?said={said}"))[0] == 200


# -- clients that break off ----------------------------------------------------------------


def resets(server: Server, sent: bytes, times: int = 10) -> None:
    """Reset new connections, which may have a handler by then, and others, which do have one."""
    for is_new in (True, False) * times:
        client = WireClient(server.port)
        if not is_new:
            client.send(head())
            client._take(1, deadline())
        client.send(sent)
        client.reset()
    assert_serves(server)


LONG = "Content-Length: 100000\r\n"
PARTS = {
    "60 bytes of a head": head("Field: x\r\n" * 9)[:60],
    "a request line": b"GET / HTTP/1.1\r\n",
    "half of a line": b"GET / HT",
    "a broken head": b"GET / HTTP/11\r\n\r\n",
    "a broken field": head("no field\r\n"),
    "half of a body": head(LONG, "POST / HTTP/1.1") + b"half",
    "half of a form": head(
        LONG + "Content-Type: application/x-www-form-urlencoded\r\n", "POST /form HTTP/1.1"
    )
    + b"a=b",
    "half of a body of lines": head(LONG, "POST /lines HTTP/1.1") + b"a\nb",
    "half of a body of no Flask's": head(LONG, "POST /bare HTTP/1.1") + b"half",
    "half of a body that nobody reads": head(LONG, "POST /unread HTTP/1.1") + b"half",
    "half of a chunk": head("Transfer-Encoding: chunked\r\n", "POST / HTTP/1.1") + b"5\r\nhel",
    "half of a size": head("Transfer-Encoding: chunked\r\n", "POST / HTTP/1.1") + b"5",
    "a broken chunk": head("Transfer-Encoding: chunked\r\n", "POST / HTTP/1.1") + b"5\n",
    "a body that is waited for": head(LONG + "Expect: 100-continue\r\n", "POST / HTTP/1.1"),
    "a request": head(),
    "a request for much": head("", "GET /large HTTP/1.1"),
    "many requests": head() * 100,
    "a handshake": request(),
    "a refused handshake": request("/nowhere"),
    "half of a frame": request() + frame(0x1, b"hello")[:5],
}


@pytest.mark.slow
@pytest.mark.parametrize("case", PARTS)
def test_a_client_that_resets_its_connection_makes_no_error(case: str, server: Server) -> None:
    resets(server, PARTS[case])


@contextmanager
def suspended(server: Server) -> Iterator[None]:
    """Have a server accept nothing for a while; the kernel keeps the connections."""
    process = psutil.Process(server.process.pid)
    [process] = process.children() or [process]
    process.suspend()
    try:
        yield
    finally:
        process.resume()


def served(server: Server) -> list[str]:
    """The paths of all requests so far, this one included."""
    return http(server.url("/served"))[1].split()


ours = pytest.mark.parametrize("server", ["our server", "worker"], indirect=True)


@ours
@pytest.mark.parametrize("case", ["a request", "many requests", "a handshake", "half of a line"])
def test_a_connection_that_is_reset_before_it_is_accepted_is_not_served(
    case: str, server: Server
) -> None:
    before = served(server)
    with suspended(server):
        for _ in range(100):
            client = WireClient(server.port)
            client.send(PARTS[case])
            client.reset()
    assert served(server) == [*before, "/served"]


@ours
def test_a_request_behind_which_the_client_has_closed_its_half_is_served(server: Server) -> None:
    with suspended(server):
        client, silent = WireClient(server.port), WireClient(server.port)
        client.send(head("", "GET /behind HTTP/1.1"))
        for each in (client, silent):
            each.sock.shutdown(socket.SHUT_WR)
    with client, silent:
        assert client.rest().endswith(b"what is behind")
        assert silent.rest() == b""


def test_a_client_that_leaves_while_it_is_answered_makes_no_error(server: Server) -> None:
    for end in (WireClient.reset, WireClient.close):
        for _ in range(5):
            client = WireClient(server.port, receive_buffer=4096)
            client.send(head("", "GET /large HTTP/1.1"))
            client._take(1000, deadline())
            end(client)
    assert_serves(server)


def test_what_clients_bring_about_is_a_line_of_information_once_a_second(server: Server) -> None:
    line = "INFO:flask_sockets2.servers:refused a request with 505: expected HTTP/1.1, got HTTP/3.0"
    begun = time.monotonic()
    sent = 0
    while sent < 50 or line not in server.output:
        assert time.monotonic() < begun + TIMEOUT
        assert_refused(answer(server, b"GET / HTTP/3.0\r\n\r\n"), 505)
        sent += 1
    assert server.output.count(line) <= time.monotonic() - begun + 1
    assert server.output.count(f"{line} (127.0.0.1)") >= 1


# -- TLS -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_is_no_tls_makes_no_error(secure: Server) -> None:
    record = b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00"
    for sent in (head(), b"\0" * 100, record, record[:3], b"\x16\x03\x01\xff\xff" + b"x" * 70_000):
        for end in (WireClient.reset, WireClient.close):
            client = WireClient(secure.port)
            client.send(sent)
            end(client)


def client_hello() -> bytes:
    """The first bytes of a handshake of TLS."""
    outgoing = ssl.MemoryBIO()
    context = ssl.create_default_context()
    tls = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def test_a_client_that_leaves_in_the_handshake_of_tls_makes_no_error(secure: Server) -> None:
    hello = client_hello()
    for size in (0, 1, 5, 60, len(hello)):
        for end in (WireClient.reset, WireClient.close):
            for _ in range(5):
                client = WireClient(secure.port)
                client.send(hello[:size])
                end(client)
    with WireClient(secure.port) as client:
        client.send(hello)
        client._take(5, deadline())  # it has answered
        client.reset()


def tls(server: Server) -> ssl.SSLSocket:
    """A connection of TLS."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context.wrap_socket(WireClient(server.port).sock)


def without_tls(sock: ssl.SSLSocket) -> socket.socket:
    """What is below TLS, which is told nothing."""
    return socket.socket(fileno=sock.detach())


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def assert_serves(server: Server) -> None:
    """What came before has been seen to, once this is answered."""
    context = ssl._create_unverified_context() if server.secure else None
    assert http(server.url("/served"), context=context)[0] == 200


@pytest.mark.slow
@pytest.mark.parametrize("case", PARTS)
def test_a_client_that_resets_its_connection_under_tls_makes_no_error(
    case: str, secure: Server
) -> None:
    for _ in range(3):
        sock = tls(secure)
        sock.sendall(PARTS[case])
        reset(without_tls(sock))
    assert_serves(secure)


def test_bad_records_in_a_connection_of_tls_make_no_error(secure: Server) -> None:
    for begun in (b"", PARTS["60 bytes of a head"], PARTS["half of a body"], request()):
        sock = tls(secure)
        sock.sendall(begun)
        with without_tls(sock) as raw:
            raw.sendall(b"\x17\x03\x03\x00\x05hello" * 3)
    assert_serves(secure)


def test_a_client_that_leaves_while_it_is_answered_under_tls_makes_no_error(
    secure: Server,
) -> None:
    for _ in range(5):
        sock = tls(secure)
        sock.sendall(head("", "GET /large HTTP/1.1"))
        sock.recv(1000)
        reset(without_tls(sock))
    assert_serves(secure)
