"""The commands of ``flask sockets``."""

from __future__ import annotations

import gc
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trustme
from click.testing import CliRunner, Result
from flask import Blueprint, Flask
from websockets.utils import accept_key

from flask_sockets2 import Publisher, Sockets
from flask_sockets2.tools.cli import sockets_cli
from flask_sockets2.tools.findings import ANSWERS, FINDINGS
from tests.brokers.servers import RedisServer, redis_or_skip
from tests.processes import Certificate, Server, Servers, wait_until
from tests.proxies import nginx_in_front

StartServer = Callable[..., Server]

PROGRAM = """
    from flask import Flask
    from flask_sockets2 import Sockets

    app = Flask(__name__)
    sockets = Sockets(app)

    @sockets.route("/echo")
    def echo(ws):
        for message in ws:
            ws.send(message)

    @sockets.route("/small", compression=True, subprotocols=["v2"])
    def small(ws):
        for message in ws:
            ws.send(message)

    @sockets.route("/broken")
    def broken(ws):
        raise KeyError("broken")

    @sockets.route("/short")
    def short(ws):
        ws.send("good bye")

    @app.route("/page")
    def page():
        return "a page"
"""

NGINX_LINES = ("proxy_http_version 1.1;", "proxy_set_header Upgrade $http_upgrade;")


def doctor(url: str, *options: str, timeout: float = 60.0) -> Result:
    return CliRunner().invoke(sockets_cli, ["doctor", url, "--timeout", str(timeout), *options])


def finds(result: Result, *words: str) -> None:
    """The doctor has found something and says these words, in this order."""
    assert result.exit_code == 1, result.output
    assert "FAIL" in result.output
    assert "What to do: " in result.output
    assert re.search(".*".join(map(re.escape, words)), result.output, re.DOTALL), result.output


class Fake:
    """A server that reads the head of each request and says what it was told to.

    :param answers: request -> answer.
    :param stays: it leaves the connection open.
    :param context: it speaks TLS.
    """

    def __init__(
        self,
        answers: Callable[[bytes], bytes],
        *,
        stays: bool = True,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._answers = answers
        self._stays = stays
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def url(self, scheme: str = "ws", host: str = "127.0.0.1") -> str:
        return f"{scheme}://{host}:{self.port}/echo"

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(sock,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        sock.settimeout(60)
        with closing(sock):
            try:
                if self._context is not None:
                    sock = self._context.wrap_socket(sock, server_side=True)
                request = b""
                while b"\r\n\r\n" not in request:
                    request += sock.recv(65536) or b"\r\n\r\n"
                sock.sendall(self._answers(request))
                while self._stays and sock.recv(65536):
                    pass
            except OSError:
                pass
            finally:
                sock.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(60)


@pytest.fixture
def fake() -> Iterator[Callable[..., Fake]]:
    """``fake(answer, stays=..., context=...)``; the answer is bytes, or what makes them."""
    started: list[Fake] = []

    def start(answer: bytes | Callable[[bytes], bytes], **options: object) -> Fake:
        answers = answer if callable(answer) else lambda request: answer
        started.append(Fake(answers, **options))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for server in started:
        server.close()


def upgraded(frames: bytes = b"", extra: bytes = b"") -> Callable[[bytes], bytes]:
    """A correct handshake, then these bytes."""

    def answer(request: bytes) -> bytes:
        key = re.search(rb"Sec-WebSocket-Key: (\S+)", request)
        assert key is not None
        accept = accept_key(key[1].decode()).encode()
        head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        return head + b"Sec-WebSocket-Accept: " + accept + b"\r\n" + extra + b"\r\n" + frames

    return answer


def http_answer(status: str, body: str = "", headers: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return (head + body).encode()


def server_context(certfile: Path, keyfile: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certfile, keyfile)
    return context


# -- a WebSocket that works ----------------------------------------------------------------


def test_it_needs_no_application(gunicorn: StartServer, tmp_path: Path) -> None:
    server = gunicorn(PROGRAM)
    empty = tmp_path / "empty"
    empty.mkdir()
    ran = subprocess.run(
        [sys.executable, "-m", "flask", "sockets", "doctor", server.ws_url("/echo")],
        cwd=empty,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "The WebSocket works." in ran.stdout


@pytest.mark.quick
@pytest.mark.parametrize("scheme", ["ws", "http"])
def test_success_tells_what_was_negotiated(gunicorn: StartServer, scheme: str) -> None:
    server = gunicorn(PROGRAM)
    url = f"{scheme}://127.0.0.1:{server.port}/small"
    result = doctor(url, "--header", "Sec-WebSocket-Protocol: v1, v2")
    assert result.exit_code == 0, result.output
    assert "subprotocol: v2" in result.output
    assert "extensions: permessage-deflate" in result.output
    assert re.search(r"ping: answered in \d+\.\d ms", result.output)
    assert "close: closed with 1000" in result.output


def test_nothing_is_negotiated_by_default(gunicorn: StartServer) -> None:
    result = doctor(gunicorn(PROGRAM).ws_url("/echo"))
    assert result.exit_code == 0, result.output
    assert "subprotocol: none" in result.output
    assert "extensions: none" in result.output


def test_early_hints_are_passed_over(fake: Callable[..., Fake]) -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </x.css>\r\n\r\n"
    server = fake(lambda request: hints + upgraded(b"\x88\x02\x03\xe8")(request))
    finds(doctor(server.url()), "closed the WebSocket at once with 1000")


# -- name, TCP, TLS ------------------------------------------------------------------------


def test_a_name_that_does_not_resolve() -> None:
    finds(doctor("wss://nowhere.invalid/echo"), "nowhere.invalid cannot be resolved", "DNS")


def test_a_port_that_nobody_listens_on(unused_port: int) -> None:
    finds(doctor(f"ws://127.0.0.1:{unused_port}/echo"), "is refused", "Start the server")


def test_plain_http_on_the_port_that_tls_was_expected_on(gunicorn: StartServer) -> None:
    server = gunicorn(PROGRAM)
    url = f"wss://127.0.0.1:{server.port}/echo"
    finds(doctor(url), "speaks plain HTTP, not TLS", server.ws_url("/echo"))


def test_tls_on_the_port_that_plain_http_was_expected_on(
    gunicorn: StartServer, certificate: Certificate
) -> None:
    args = ["--certfile", certificate.certfile, "--keyfile", certificate.keyfile]
    server = gunicorn(PROGRAM, args=args)
    finds(doctor(server.ws_url("/echo")), f"wss://127.0.0.1:{server.port}/echo")


@pytest.mark.parametrize(
    "answer",
    [
        b"\x15\x03\x01\x00\x02\x02\x46",
        http_answer("400 Bad Request", "The plain HTTP request was sent to HTTPS port"),
    ],
    ids=["alert", "nginx"],
)
def test_a_tls_port_says_so_in_several_ways(fake: Callable[..., Fake], answer: bytes) -> None:
    server = fake(answer)
    finds(doctor(server.url()), "speaks TLS", f"Use wss://127.0.0.1:{server.port}/echo")


def test_an_authority_that_is_not_known(gunicorn: StartServer, certificate: Certificate) -> None:
    args = ["--certfile", certificate.certfile, "--keyfile", certificate.keyfile]
    server = gunicorn(PROGRAM, args=args, secure=True)
    finds(doctor(server.ws_url("/echo")), "does not lead to an authority", "--insecure")
    result = doctor(server.ws_url("/echo"), "--insecure")
    assert result.exit_code == 0, result.output
    assert "certificate not checked" in result.output


def test_a_certificate_in_order(
    gunicorn: StartServer, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.cafile))
    args = ["--certfile", certificate.certfile, "--keyfile", certificate.keyfile]
    result = doctor(gunicorn(PROGRAM, args=args, secure=True).url("/echo"))
    assert result.exit_code == 0, result.output
    assert "certificate in order" in result.output


def test_a_self_signed_certificate(fake: Callable[..., Fake], tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "cert.pem"))
    authority.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    server = fake(b"", context=server_context(tmp_path / "cert.pem", tmp_path / "key.pem"))
    finds(doctor(server.url("wss")), "self-signed", "Let's Encrypt")


@pytest.mark.parametrize(
    ("identity", "days", "words"),
    [("127.0.0.1", -1, "has expired"), ("example.org", 30, "was not issued for 127.0.0.1")],
)
def test_a_certificate_that_is_late_or_of_another_host(
    identity: str,
    days: int,
    words: str,
    fake: Callable[..., Fake],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    until = datetime.now(UTC) + timedelta(days=days)
    leaf = authority.issue_cert(identity, not_before=until - timedelta(days=90), not_after=until)
    leaf.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "leaf.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    server = fake(b"", context=server_context(tmp_path / "leaf.pem", tmp_path / "leaf.pem"))
    finds(doctor(server.url("wss")), words)


# -- the server and its application --------------------------------------------------------


def test_a_worker_that_serves_one_connection_at_a_time(gunicorn: StartServer) -> None:
    server = gunicorn(PROGRAM, worker="sync")
    result = doctor(server.ws_url("/echo"), timeout=1)
    finds(result, "works on one request at a time", "gunicorn -k flask_sockets2.worker")


def test_a_server_whose_connection_cannot_be_had(fake: Callable[..., Fake]) -> None:
    server = fake(http_answer("501 NOT IMPLEMENTED", "this server gives no access"))
    finds(doctor(server.url()), "cannot serve WebSockets", "gunicorn -k flask_sockets2.worker")


def test_an_origin_that_may_not_connect(gunicorn: StartServer) -> None:
    url = gunicorn(PROGRAM).ws_url("/echo")
    result = doctor(url, "--origin", "https://example.com")
    finds(result, "https://example.com", "SOCKETS_ALLOWED_ORIGINS'] = ['https", "ProxyFix")
    assert doctor(url, "--origin", "").exit_code == 0


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/page", "serves a page at this URL, no WebSocket"),
        ("/nowhere", "There is no such path"),
        ("/broken", "closed the WebSocket at once with 1011: the handler failed"),
        ("/short", "closed the WebSocket at once with 1000: the handler has ended"),
    ],
)
def test_what_the_application_answers(path: str, words: str, gunicorn: StartServer) -> None:
    finds(doctor(gunicorn(PROGRAM).ws_url(path)), words)


def test_a_server_of_files(tmp_path: Path) -> None:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            result = doctor(f"ws://127.0.0.1:{server.server_address[1]}/")
        finally:
            server.shutdown()
            thread.join()
    finds(result, "The answer is a page instead of a WebSocket", "200 OK from SimpleHTTP")


def test_a_redirect_is_named_and_not_followed(fake: Callable[..., Fake]) -> None:
    server = fake(http_answer("301 Moved", headers="Location: https://example.com/echo/\r\n"))
    result = doctor(server.url())
    finds(result, "redirects to https://example.com/echo/", "wss://example.com/echo/")


def test_a_login_page_and_a_handler_that_refuses_are_thought_of(gunicorn: StartServer) -> None:
    server = gunicorn(
        PROGRAM
        + """
    from flask import abort, redirect, request

    @app.before_request
    def members_only():
        if request.path.startswith("/members") and "session" not in request.cookies:
            return redirect("/login")

    @sockets.route("/members", accept=False)
    def members(ws):
        if "name" not in request.args:
            abort(400)
        ws.receive()
"""
    )
    url = server.ws_url("/members")
    cookie = ("--header", "Cookie: session=x")
    finds(doctor(url), "redirects to", "/login", "a login page", "--header 'Cookie: session=")
    finds(doctor(url, *cookie), "400", "The handler may call abort(400)", "the query string")
    assert doctor(f"{url}?name=ada", *cookie).exit_code == 0


@pytest.mark.parametrize(("status", "words", "key"), ANSWERS)
def test_every_answer_is_explained(
    status: str, words: str, key: str, fake: Callable[..., Fake]
) -> None:
    code = "418" if status == "..." else re.sub(r"\[(\d)\d*\]", r"\1", status.split("|")[0])
    code = code.replace("..", "00") if code != "5.." else "500"
    body = words.split("|")[0].replace("\\", "")
    result = doctor(fake(http_answer(f"{code} Reason", body)).url())
    key = "own origin" if key == "origin" else key
    finds(result, FINDINGS[key][0].split("{")[0])


def test_every_finding_can_be_told_and_nothing_else_is_in_the_table() -> None:
    source = "".join(
        (Path(__file__).parents[1] / "flask_sockets2" / "tools" / name).read_text()
        for name in ("doctor.py", "findings.py")
    )
    for key in FINDINGS:
        assert source.count(f'"{key}"') > 1, key


def test_an_answer_cannot_command_the_terminal(fake: Callable[..., Fake]) -> None:
    server = fake(
        http_answer("500 Oh\x1b[2J", "\x1b]0;title\x07", "Server: a\x1bb\r\nno field\r\n")
    )
    result = doctor(server.url())
    finds(result, "The server failed")
    assert "\x1b" not in result.output
    assert "\x07" not in result.output


@pytest.mark.parametrize(
    ("answer", "stays", "words"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", True, "does not speak HTTP; its answer begins with b'SSH"),
        (b"", False, "closed the connection without an answer"),
        (b"", True, "no answer came in 0.5 s"),
        (b"HTTP/1.1 101", False, "does not speak HTTP"),
        (b"HTTP/1.1 101 Yes\r\n\r\n", True, "without the header field Connection"),
        (
            b"HTTP/1.1 101 Yes\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: AAAA\r\n\r\n",
            True,
            "Sec-WebSocket-Accept does not fit",
        ),
        (upgraded(), True, "no pong came in 0.5 s"),
        (upgraded(b"\x81\x02hi"), True, "no pong came in 0.5 s"),
        (upgraded(b"\x8a\x00"), True, "no pong came in 0.5 s"),  # it answers no ping of ours
        (upgraded(), False, "cut without a close frame"),
        (upgraded(http_answer("200 OK", "a page " * 20)), True, "are no WebSocket frames"),
        (upgraded(b"\x88\x02\x03\xf1"), True, "at once with 1009: a message was too large"),
        (upgraded(b"\x88\x06\x0f\xa0gone"), True, "at once with 4000 (gone): a code of the app"),
        (upgraded(b"\x88\x00"), True, "at once with 1005: the server gave no code"),
        (upgraded(extra=b"Sec-WebSocket-Extensions: x-zip\r\n"), True, "that was not offered"),
        (upgraded(extra=b"Sec-WebSocket-Protocol: news\r\n"), True, "that was not offered"),
    ],
)
def test_a_handshake_that_goes_wrong(
    answer: bytes | Callable[[bytes], bytes],
    stays: bool,
    words: str,
    fake: Callable[..., Fake],
) -> None:
    finds(doctor(fake(answer, stays=stays).url(), timeout=0.5), words)


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        ("500 No", "Content-Length: 9\r\n", "The server failed"),
        ("500 No", "Server: a\r\nServer: b\r\n", "500 No from a, b"),
        ("301 Moved", "Location: http://[\r\n", "redirects to http://["),
        ("302 Found", "Location: /a\r\nLocation: /b\r\n", "/a, which browsers do not follow"),
        ("302 Found", "", "which browsers do not follow"),
    ],
)
def test_header_fields_that_are_twice_or_senseless_do_no_harm(
    status: str, headers: str, words: str, fake: Callable[..., Fake]
) -> None:
    finds(doctor(fake(http_answer(status, headers=headers), stays=False).url()), words)


def test_a_length_of_thousands_of_digits_does_no_harm(fake: Callable[..., Fake]) -> None:
    head = b"HTTP/1.1 500 No\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n"
    finds(doctor(fake(head, stays=False).url()), "The server failed")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("MAX_CONNECTIONS", "SOCKETS_MAX_CONNECTIONS is reached"),
        ("MAX_CONNECTIONS_PER_ADDRESS", "all clients behind a proxy have one address"),
    ],
)
def test_a_limit_is_named(gunicorn: StartServer, setting: str, words: str) -> None:
    limit = f'\n    app.config["SOCKETS_{setting}"] = 0\n'
    finds(doctor(gunicorn(PROGRAM + limit).ws_url("/echo")), words)


def test_too_many_handshakes_are_named(gunicorn: StartServer) -> None:
    limit = '\n    app.config["SOCKETS_MAX_HANDSHAKE_RATE"] = 0.01\n'
    url = gunicorn(PROGRAM + limit).ws_url("/echo")
    doctor(url)
    finds(doctor(url), "SOCKETS_MAX_HANDSHAKE_RATE is reached")


def test_a_second_connection_that_is_refused_is_told(gunicorn: StartServer) -> None:
    limit = '\n    app.config["SOCKETS_MAX_CONNECTIONS"] = 1\n'
    result = doctor(gunicorn(PROGRAM + limit).ws_url("/echo"))
    assert result.exit_code == 0, result.output
    assert "second connection: not accepted: The application is full: 503" in result.output


def test_a_server_that_drips_is_not_waited_for_longer(fake: Callable[..., Fake]) -> None:
    body = fake(b"HTTP/1.1 500 No\r\nContent-Length: 1000\r\n\r\nthe beginning")
    finds(doctor(body.url()), "The server failed", "the beginning")


# -- proxies -------------------------------------------------------------------------------

UPGRADE = """
    proxy_set_header Upgrade $http_upgrade;
    proxy_set_header Connection "upgrade";"""
HOST = "proxy_set_header Host $http_host;"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("", "removes the header fields 'Upgrade' and 'Connection'"),
        (f"proxy_http_version 1.1; {HOST}", "removes the header fields 'Upgrade' and"),
        (
            f"proxy_http_version 1.1; {HOST} proxy_set_header Upgrade $http_upgrade;",
            "removes the header field 'Connection: Upgrade'",
        ),
        (f"{HOST} {UPGRADE}", "speaks HTTP/1.0 to the application"),
    ],
    ids=["none", "no Upgrade", "no Connection", "HTTP/1.0"],
)
def test_what_nginx_lacks_is_named(
    lines: str, words: str, gunicorn: StartServer, server_factory: Servers
) -> None:
    upstream = gunicorn(PROGRAM)
    text = f"location / {{ proxy_pass http://127.0.0.1:8000; {lines} }}"
    proxy = nginx_in_front(server_factory, upstream.port, text)
    finds(doctor(proxy.ws_url("/echo")), words, "nginx", *NGINX_LINES)


def test_the_lines_that_are_shown_are_enough(
    gunicorn: StartServer, server_factory: Servers
) -> None:
    upstream = gunicorn(PROGRAM)
    text = "location / { proxy_pass http://127.0.0.1:8000; }"
    sick = doctor(nginx_in_front(server_factory, upstream.port, text).ws_url("/echo"))
    remedy = "".join(re.findall(r"^    (proxy_.*;)$", sick.output, re.MULTILINE))
    assert remedy.count(";") == 4
    text = f"location / {{ proxy_pass http://127.0.0.1:8000; {remedy} }}"
    result = doctor(nginx_in_front(server_factory, upstream.port, text).ws_url("/echo"))
    assert result.exit_code == 0, result.output


def test_a_proxy_that_changes_the_host(gunicorn: StartServer, server_factory: Servers) -> None:
    upstream = gunicorn(PROGRAM)
    text = f"location / {{ proxy_pass http://127.0.0.1:8000; proxy_http_version 1.1; {UPGRADE} }}"
    proxy = nginx_in_front(server_factory, upstream.port, text)
    finds(
        doctor(proxy.ws_url("/echo")),
        "pages of its own address",
        "proxy_set_header Host",
        "ProxyFix",
        "SOCKETS_ALLOWED_ORIGINS",
    )


def test_a_proxy_without_an_application(server_factory: Servers, unused_port: int) -> None:
    text = "location / { proxy_pass http://127.0.0.1:8000; }"
    proxy = nginx_in_front(server_factory, unused_port, text)
    finds(doctor(proxy.ws_url("/echo")), "no valid answer from the application", "502")


def test_a_path_that_only_the_proxy_was_asked_for(server_factory: Servers) -> None:
    proxy = nginx_in_front(server_factory, 8000, "location / { return 404; }")
    finds(doctor(proxy.ws_url("/echo")), "nginx has no such path", "proxy_pass")


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("Server: Apache/2.4.62 (Debian)", "upgrade=websocket"),
        ("Server: cloudflare", "Cloudflare's dashboard"),
        ("Via: 1.1 nginx", "proxy_http_version 1.1;"),
    ],
)
def test_proxies_are_known_by_their_names(
    header: str, words: str, fake: Callable[..., Fake]
) -> None:
    server = fake(http_answer("426 Upgrade Required", headers=f"{header}\r\n"))
    finds(doctor(server.url()), "removes the header fields", words)


# -- arguments -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["example.com/echo"],
        ["ftp://example.com/"],
        ["ws://"],
        ["ws://localhost:port/"],
        ["ws://localhost/", "--header", "no colon"],
        ["ws://localhost/", "--header", "Bad Name: x"],
        ["ws://localhost/", "--header", "Name: a\r\nOther: b"],
        ["ws://localhost/", "--timeout", "0"],
    ],
)
def test_bad_arguments_are_usage_errors(arguments: list[str]) -> None:
    result = CliRunner().invoke(sockets_cli, ["doctor", *arguments])
    assert result.exit_code == 2, result.output


def test_header_fields_are_sent_and_replace_our_own(fake: Callable[..., Fake]) -> None:
    seen: list[bytes] = []

    def answer(request: bytes) -> bytes:
        seen.append(request)
        return http_answer("403 No")

    server = fake(answer)
    doctor(server.url(), "--header", "Cookie: a=b", "--header", "Host: example.com")
    assert b"\r\nCookie: a=b\r\n" in seen[0]
    assert re.findall(rb"\r\nHost: ([^\r]*)", seen[0]) == [b"example.com"]
    assert f"\r\nOrigin: http://127.0.0.1:{server.port}\r\n".encode() in seen[0]


# -- routes --------------------------------------------------------------------------------


def test_routes_lists_the_websocket_rules_with_their_options() -> None:
    app = Flask(__name__)
    sockets = Sockets(app)
    live = Blueprint("live", __name__)

    @sockets.route("/echo/<int:id>")
    def echo(ws: object, id: int) -> None: ...

    @sockets.route(
        "/news", accept=False, subprotocols=["v1", "v2"], origins="*", max_message_size=99
    )
    def news(ws: object) -> None: ...

    @live.route("/time")
    def time(ws: object) -> None: ...

    @app.route("/page")
    def page() -> str:
        return ""

    sockets.register_blueprint(live, url_prefix="/live")
    gc.collect()  # the sockets of other tests, whose init_app nobody has called
    result = app.test_cli_runner().invoke(sockets_cli, ["routes"])
    assert result.exit_code == 0, result.output
    assert [line.split() for line in result.output.splitlines()[2:]] == [
        ["/echo/<int:id>", "echo"],
        ["/news", "news", "accept=False", "subprotocols=v1,v2", "origins=*", "max_message_size=99"],
        ["/live/time", "live.time"],
    ]


def test_routes_says_when_there_are_none() -> None:
    result = Flask(__name__).test_cli_runner().invoke(sockets_cli, ["routes"])
    assert result.exit_code == 0
    assert "There are no WebSocket rules" in result.output


def test_routes_says_which_sockets_nobody_has_given_an_application() -> None:
    gc.collect()
    app, sockets, forgotten = Flask(__name__), Sockets(), Sockets()
    sockets.route("/echo")(lambda ws: None)
    forgotten.route("/chat")(lambda ws: None)
    forgotten.register_blueprint(Blueprint("live", __name__))
    said = "Sockets with /chat, the blueprint 'live' serve no application; call their init_app(app)"
    for init_app, expected in ((None, 2), (sockets, 1), (forgotten, 0)):
        if init_app is not None:
            init_app.init_app(app)
        result = app.test_cli_runner().invoke(sockets_cli, ["routes"])
        assert result.exit_code == 0
        assert result.output.count("serve no application") == expected
        assert (said in result.output) == (expected > 0)


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    yield from redis_or_skip()


@pytest.fixture
def channel_app(redis_server: RedisServer) -> Flask:
    """An application whose channels are on a real server."""
    app = Flask(__name__)
    app.config["SOCKETS_BROKER_URL"] = redis_server.url
    Sockets(app)
    return app


def run(app: Flask, *args: str, input: str | bytes | None = None) -> Result:
    return app.test_cli_runner().invoke(sockets_cli, args, input=input)


def test_what_is_published_on_the_command_line_is_heard_there(channel_app: Flask) -> None:
    first = run(channel_app, "publish", "news", "hello")
    assert first.exit_code == 0, first.output
    run(channel_app, "publish", "news", "--json", '{"n": [1, "ü"]}', "--key", "n")
    run(channel_app, "publish", "news", "-", input="from stdin")
    result = run(channel_app, "listen", "news", "--since", "start", "--count", "3")
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.output.splitlines()]
    assert [line["data"] for line in lines] == ["hello", {"n": [1, "ü"]}, "from stdin"]
    assert lines[0]["position"] == first.output.strip()
    result = run(channel_app, "listen", "news", "--since", first.output.strip(), "--count", "1")
    assert json.loads(result.output)["data"] == {"n": [1, "ü"]}


def test_a_position_that_is_none_is_a_gap_on_the_command_line(channel_app: Flask) -> None:
    run(channel_app, "publish", "gap", "lost")
    result = run(channel_app, "listen", "gap", "--since", "nonsense", "--count", "1")
    assert json.loads(result.output)["event"] == "gap"


@pytest.fixture
def last(channel_app: Flask) -> Callable[..., dict[str, Any]]:
    """Publishes on the command line and returns what a client gets, without its position."""

    def publish(*args: str, input: bytes | None = None) -> dict[str, Any]:
        result = run(channel_app, "publish", "last", *args, input=input)
        assert result.exit_code == 0, result.output
        epoch, _, offset = result.output.strip().partition("-")
        since = f"{epoch}-{int(offset) - 1}"
        result = run(channel_app, "listen", "last", "--since", since, "--count", "1")
        envelope: dict[str, Any] = json.loads(result.output)
        assert envelope.pop("channel") == "last"
        assert envelope.pop("position") == f"{epoch}-{offset}"
        return envelope

    return publish


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"hello\n", "hello"),
        (b"hello\r\n", "hello"),
        (b"hello\n\n", "hello\n"),
        (b"hello ", "hello "),
        ("grüße\n".encode(), "grüße"),
        (b"\n", ""),
        (b"", ""),
    ],
)
def test_the_line_break_at_the_end_of_standard_input_is_no_part_of_the_text(
    last: Callable[..., dict[str, Any]], content: bytes, text: str
) -> None:
    assert last("-", input=content)["data"] == text


def test_binary_data_is_published_as_it_is(last: Callable[..., dict[str, Any]]) -> None:
    assert last("-", "--binary", input=b"\xff\n") == {"data": "/wo=", "encoding": "base64"}
    assert last("hi", "--binary") == {"data": "aGk=", "encoding": "base64"}


def test_json_may_come_from_standard_input(last: Callable[..., dict[str, Any]]) -> None:
    assert last("-", "--json", input=b'{"n": 1}\n')["data"] == {"n": 1}


@pytest.mark.quick
@pytest.mark.parametrize("since", [[], ["--since", ""]], ids=["by default", "empty"])
def test_listen_prints_what_is_published_later(
    redis_server: RedisServer, server_factory: Servers, channel_app: Flask, since: list[str]
) -> None:
    channel = f"later{len(since)}"
    run(channel_app, "publish", channel, "before")
    program = Path(sys.executable).with_name("flask")
    server_factory.folder.joinpath("app.py").write_text(
        "from flask import Flask\nfrom flask_sockets2 import Sockets\n"
        "app = Flask(__name__)\napp.config.from_prefixed_env()\nSockets(app)\n"
    )
    server = server_factory.start(
        [program, "sockets", "listen", channel, "--count", "2", *since],
        environ={"FLASK_SOCKETS_BROKER_URL": redis_server.url, "PYTHONUNBUFFERED": "1"},
    )
    with redis_server.client() as client:
        wait_until(
            lambda: any(channel.encode() in name for name in client.pubsub_channels()), "listen"
        )
    for word in ("one", "two"):
        run(channel_app, "publish", channel, word, "--transient")
    wait_until(lambda: server.log.read_text().count("\n") == 2, "two lines")
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    assert lines == [{"channel": channel, "data": word} for word in ("one", "two")]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["publish", "", "x"], "a channel's name is 1 to 1024 bytes"),
        (["publish", "c", "--json", "{"], "DATA is no JSON"),
        (["publish", "c", "--json", "NaN"], "not JSON compliant"),
        (["publish", "c", "--json", "--binary", "1"], "exclude each other"),
        (["publish", "c", "half \udcff"], "DATA is no UTF-8"),
        (["listen", "x" * 2000], "a channel's name is 1 to 1024 bytes"),
    ],
)
def test_what_cannot_be_published_or_heard_is_refused_with_the_reason(
    channel_app: Flask, args: list[str], words: str
) -> None:
    result = run(channel_app, *args)
    assert result.exit_code != 0
    assert words in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_what_is_no_text_on_standard_input_is_refused_with_the_remedy(
    channel_app: Flask, options: tuple[str, ...]
) -> None:
    result = run(channel_app, "publish", "c", "-", *options, input=b"caf\xe9\n")
    assert result.exit_code == 1
    assert "DATA is no UTF-8" in result.output
    assert "--binary" in result.output
    assert "Traceback" not in result.output


def flask_command(
    folder: Path, *args: str, environ: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the real command in a folder of which no application is known."""
    variables = {name: value for name, value in os.environ.items() if name[:6] != "FLASK_"}
    return subprocess.run(
        [Path(sys.executable).with_name("flask"), *args],
        cwd=folder,
        env={**variables, "COLUMNS": "80", **(environ or {})},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.slow
def test_channels_are_reached_without_an_application(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    # One that is there is not loaded.
    (tmp_path / "app.py").write_text("raise RuntimeError('loaded')")
    url = ("--url", redis_server.url, "--prefix", "alone")
    for data in ('{"n": 1}', "[2]"):
        published = flask_command(tmp_path, "sockets", "publish", "news", data, "--json", *url)
        assert (published.returncode, published.stderr) == (0, "")
    heard = flask_command(
        tmp_path, "sockets", "listen", "news", "--since", "start", "--count", "2", *url
    )
    lines = [json.loads(line) for line in heard.stdout.splitlines()]
    assert [line["data"] for line in lines] == [{"n": 1}, [2]]
    assert lines[1]["position"] == published.stdout.strip()
    top = flask_command(tmp_path, "sockets", "top", "--once", "--json", *url)
    assert top.returncode == 0, top.stderr
    assert json.loads(top.stdout)


def test_the_history_that_is_kept_without_an_application_is_as_one_says(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    url = ("--url", redis_server.url)
    size = ("--history-size", "0", "--history-ttl", "60")
    flask_command(tmp_path, "sockets", "publish", "short", "lost", *size, *url)
    flask_command(tmp_path, "sockets", "publish", "short", "kept", *url)
    with Publisher(redis_server.url) as publisher:
        history = publisher.broker.history("short", None)
    assert [message.data for message in history.messages] == [b"kept"]


def test_a_url_may_stand_in_the_environment(redis_server: RedisServer, tmp_path: Path) -> None:
    variables = {"FLASK_SOCKETS_PUBLISH_URL": redis_server.url}
    result = flask_command(tmp_path, "sockets", "publish", "news", "x", environ=variables)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("command", [("publish", "news", "x"), ("listen", "news"), ("top",)])
def test_without_an_application_the_url_is_asked_for(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    result = flask_command(tmp_path, "sockets", *command)
    assert result.returncode == 2
    assert "Could not locate a Flask application" in result.stderr
    assert "Or name the broker by --url redis://localhost:6379/0." in result.stderr


def test_a_setting_beside_that_of_the_application_is_refused(channel_app: Flask) -> None:
    for options in (["--prefix", "x"], ["--history-size", "5"]):
        result = run(channel_app, "publish", "news", "x", *options)
        assert result.exit_code == 2
        assert f"{options[0]} goes with --url" in result.output


@pytest.mark.slow
@pytest.mark.parametrize("url", ["redis://:s3cret@127.0.0.1:1", "redis://:s3/cret@localhost"])
def test_a_url_that_is_of_no_use_is_named_without_its_password(url: str, tmp_path: Path) -> None:
    for command in (("publish", "news", "x"), ("listen", "news"), ("top", "--once")):
        result = flask_command(tmp_path, "sockets", *command, "--url", url)
        assert result.returncode == 1
        assert result.stderr.startswith("Error: ")
        assert "cret" not in result.stdout + result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("group", ["sockets", "turbo", "firehose", ""])
def test_the_summary_of_each_command_is_whole(group: str, tmp_path: Path) -> None:
    result = flask_command(tmp_path, *filter(None, [group]), "--help")
    commands = result.stdout.partition("Commands:\n")[2]
    assert re.search(
        rf"^  (?:{'sockets' if not group else '[a-z]+'})  +[A-Z]", commands, re.MULTILINE
    )
    assert "..." not in commands


@pytest.mark.parametrize("command", [["publish", "c", "x"], ["listen", "c"]])
def test_channels_in_memory_cannot_be_reached_from_the_command_line(command: list[str]) -> None:
    app = Flask(__name__)
    Sockets(app)
    result = run(app, *command)
    assert result.exit_code == 1
    assert "use a redis:// URL, the same as SOCKETS_BROKER_URL" in result.output
