"""The same requests to our worker and to gunicorn's own: one application must not see which it is.

What is different on purpose stands in the tests below with the reason, and in ``docs/servers.rst``.
"""

from __future__ import annotations

import json
import re
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.processes import Server, Servers, servers_in
from tests.wire_client import TIMEOUT, WireClient, connect, frame, request

pytestmark = pytest.mark.slow

SOURCE = """
    import sys

    from flask import Flask, request, url_for
    from flask_sockets2 import Sockets

    app = Flask(__name__)
    sockets = Sockets(app)
    KEYS = (
        "PATH_INFO QUERY_STRING RAW_URI REMOTE_ADDR REMOTE_PORT REQUEST_METHOD SCRIPT_NAME "
        "SERVER_NAME SERVER_PORT SERVER_PROTOCOL wsgi.url_scheme wsgi.multithread "
        "wsgi.multiprocess "
        "PROXY_PROTOCOL PROXY_ADDR PROXY_PORT"
    ).split()


    @sockets.route("/echo")
    def echo(ws):
        for message in ws:
            ws.send(message)


    @sockets.route("/who")
    def who(ws):
        ws.send(request.remote_addr)


    @app.route("/", methods=["GET", "POST"])
    @app.route("/page", methods=["GET", "POST"])
    def page():
        found = {key: request.environ.get(key) for key in KEYS}
        found |= {k: v for k, v in request.environ.items() if k.startswith("HTTP_")}
        found["url"] = url_for("page", _external=True)
        found["socket"] = url_for("echo", _external=True)
        found["body"] = request.get_data(as_text=True)
        return {key: value for key, value in found.items() if value is not None}


    @app.route("/closes")
    def closes():
        return "bye", {"Connection": "close"}


    @app.route("/exit")
    def leave():
        sys.exit(3)


"""


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes

    @property
    def environ(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        del found["HTTP_HOST"]
        if found["SERVER_NAME"] == "127.0.0.1":  # each server has its own port
            del found["SERVER_PORT"]
        # Both differ with every connection, but for a proxy's client.
        if "PROXY_PROTOCOL" not in found:
            found.pop("REMOTE_PORT", None)
        return found


def ask(server: Server, sent: bytes) -> list[Answer]:
    """Send bytes, and read answers up to the end of the connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT) as sock:
        sock.sendall(sent)
        with sock.makefile("rb") as stream:
            data = stream.read()
    answers = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        length = re.search(rb"\r\ncontent-length: (\d+)", head.lower())
        size = int(length[1]) if length else len(data)
        answers.append(Answer(int(head.split(b" ")[1]), data[:size]))
        data = data[size:]
    return answers


def get(
    path: str = "/page",
    *fields: str,
    method: str = "GET",
    last: bool = True,
    before: bytes = b"",
) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: a.example", *fields]
    lines += ["Connection: close"] if last else []
    return before + "".join(f"{line}\r\n" for line in [*lines, ""]).encode()


@dataclass(frozen=True)
class Pair:
    ours: Server
    theirs: Server

    def answers(self, sent: bytes) -> tuple[list[Answer], list[Answer]]:
        return ask(self.ours, sent), ask(self.theirs, sent)

    def same(self, sent: bytes) -> Answer:
        """Both workers give the same status, and the application sees the same."""
        ours, theirs = self.answers(sent)
        assert [answer.status for answer in ours] == [answer.status for answer in theirs]
        for mine, other in zip(ours, theirs, strict=True):
            if mine.status == 200:
                assert mine.environ == other.environ
        return ours[-1]


def started(servers: Servers, args: Sequence[str], environ: dict[str, str] | None) -> Pair:
    ours = servers.gunicorn(SOURCE, args=args, environ=environ)
    return Pair(ours, servers.gunicorn(SOURCE, worker="gevent", args=args, environ=environ))


def pair(*args: str, environ: dict[str, str] | None = None) -> Callable[..., Iterator[Pair]]:
    def pair_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
        with servers_in(tmp_path_factory.mktemp("pair")) as servers:
            yield started(servers, args, environ)

    return pair_of


plain = pytest.fixture(pair(), name="plain", scope="module")
mounted = pytest.fixture(pair(environ={"SCRIPT_NAME": "/app"}), name="mounted", scope="module")
proxied = pytest.fixture(
    pair("--proxy-protocol", "--header-map", "refuse", "--forwarder-headers", "REMOTE_USER"),
    name="proxied",
    scope="module",
)
strict = pytest.fixture(
    pair(
        *("--forwarded-allow-ips", "10.0.0.1", "--header-map", "dangerous"),
        *("--proxy-protocol", "v1", "--proxy-allow-from", "10.0.0.0/8", "--keep-alive", "0"),
        *("--casefold-http-method", "--permit-unconventional-http-method"),
        *("--limit-request-line", "60", "--limit-request-fields", "5"),
        *("--limit-request-field_size", "60"),
    ),
    name="strict",
    scope="module",
)


# -- where the client came from ------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "scheme"),
    [
        ("X-Other: 1", "http"),
        ("X-Forwarded-Proto: https", "https"),
        ("X-Forwarded-Proto: http", "http"),
        ("X-Forwarded-Proto: javascript", "http"),
        ("X-Forwarded-Protocol: ssl", "https"),
        ("X-Forwarded-Ssl: on", "https"),
    ],
)
def test_a_trusted_proxy_says_the_scheme(field: str, scheme: str, plain: Pair) -> None:
    environ = plain.same(get("/page", field)).environ
    assert environ["wsgi.url_scheme"] == scheme
    assert environ["url"] == f"{scheme}://a.example/page"
    assert environ["socket"] == f"{scheme.replace('http', 'ws')}://a.example/echo"


def test_contradictory_schemes_are_refused(plain: Pair) -> None:
    answer = plain.same(get("/page", "X-Forwarded-Proto: https", "X-Forwarded-Ssl: off"))
    assert answer.status == 400


def test_the_scheme_of_a_websocket_is_https(plain: Pair) -> None:
    """Some proxies send wss, which gunicorn takes for http: no page of https may connect then."""
    ours, theirs = plain.answers(get("/page", "X-Forwarded-Proto: wss"))
    assert ours[0].environ["url"] == "https://a.example/page"
    assert theirs[0].environ["url"] == "http://a.example/page"


@pytest.mark.parametrize(
    ("scheme", "origin", "status"),
    [
        ("https", "https://127.0.0.1", 101),
        ("wss", "https://127.0.0.1", 101),
        ("https", "http://127.0.0.1", 403),
        ("http", "http://127.0.0.1", 101),
    ],
)
def test_a_page_of_http_may_not_connect_over_https(
    scheme: str, origin: str, status: int, plain: Pair
) -> None:
    headers: dict[str, str | None] = {
        "Host": "127.0.0.1",
        "Origin": origin,
        "X-Forwarded-Proto": scheme,
    }
    with WireClient(plain.ours.port) as client:
        client.send(request("/echo", headers))
        assert client.response().status == status


def test_nobody_else_says_the_scheme(strict: Pair) -> None:
    environ = strict.same(get("/page", "X-Forwarded-Proto: https")).environ
    assert environ["wsgi.url_scheme"] == "http"


# -- SCRIPT_NAME ---------------------------------------------------------------------------


def test_the_environment_mounts_the_application(mounted: Pair) -> None:
    environ = mounted.same(get("/app/page?a=1")).environ
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("/app", "/page")
    assert environ["socket"] == "ws://a.example/app/echo"
    with connect(mounted.ours.port, "/app/echo") as client:
        client.send(frame(0x1, b"hello"))
        assert client.message() == b"hello"


def test_a_path_outside_of_it_is_an_error(mounted: Pair) -> None:
    assert mounted.same(get("/page")).status == 500
    assert mounted.same(get("/")).status == 500
    mounted.ours.wait_for_output("WARNING.* path does not begin with SCRIPT_NAME, /app; let the")


def test_a_trusted_proxy_mounts_the_application(plain: Pair, mounted: Pair) -> None:
    for server in (plain, mounted):
        environ = server.same(get("/b/page", "SCRIPT_NAME: /b")).environ
        assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("/b", "/page")
        assert environ["url"] == "http://a.example/b/page"
    assert plain.same(get("/page", "SCRIPT_NAME: /b")).status == 500


@pytest.mark.parametrize("name", ["//evil.com", "/\\evil.com"])
def test_no_request_mounts_it_at_another_host(name: str, plain: Pair) -> None:
    """gunicorn believes it, and pages would have ``//evil.com/static/...`` as their URLs."""
    (answer,) = ask(plain.ours, get(f"{name}/page", f"SCRIPT_NAME: {name}"))
    assert answer.status == 400


@pytest.mark.parametrize(
    ("worker", "args"), [(None, ["--threads", "4"]), ("gevent", [])], ids=["threads", "gevent"]
)
def test_no_request_mounts_it_at_another_host_under_gunicorns_own_workers(
    worker: str | None, args: list[str], tmp_path: Path
) -> None:
    with servers_in(tmp_path) as servers:
        server = servers.gunicorn(SOURCE, worker=worker, args=args)
        for name in ("//evil.com", "/\\evil.com"):
            for path in ("page", "echo"):
                (answer,) = ask(server, get(f"{name}/{path}", f"SCRIPT_NAME: {name}"))
                assert answer.status == 400
                assert answer.body == b"SCRIPT_NAME must be a path such as /app\n"
        server.wait_for_output("refused a request whose SCRIPT_NAME .*--forwarder-headers ''")
        (answer,) = ask(server, get("/b/page", "SCRIPT_NAME: /b"))
        assert answer.environ["url"] == "http://a.example/b/page"


def test_a_name_that_only_begins_alike_is_not_below_it(mounted: Pair) -> None:
    """gunicorn would serve ``/application`` as ``lication``."""
    (answer,) = ask(mounted.ours, get("/apppage"))
    assert answer.status == 500


def test_nobody_else_mounts_it_not_even_where_header_map_is_dangerous(strict: Pair) -> None:
    (answer,) = ask(strict.ours, get("/b/page", "SCRIPT_NAME: /b"))
    assert answer.status == 404


# -- header fields -------------------------------------------------------------------------


def test_names_with_underscores_are_dropped(plain: Pair) -> None:
    environ = plain.same(get("/page", "X_A: 1", "Remote_User: ann", "X-B: 2")).environ
    assert environ["HTTP_X_B"] == "2"
    assert "HTTP_X_A" not in environ
    assert "HTTP_REMOTE_USER" not in environ


def test_they_are_refused_where_header_map_says_so(proxied: Pair) -> None:
    assert proxied.same(get("/page", "X_A: 1")).status == 400
    assert proxied.same(get("/page", "Remote_User: ann")).environ["HTTP_REMOTE_USER"] == "ann"


def test_they_are_mapped_where_header_map_is_dangerous(strict: Pair) -> None:
    assert strict.same(get("/page", "X_A: 1")).environ["HTTP_X_A"] == "1"


def test_a_dangerous_name_does_not_frame_the_body(strict: Pair) -> None:
    """The bytes behind such a request would be the next one, to us and not to the proxy."""
    sent = get("/page", "Transfer_Encoding: chunked", "Content_Length: 3", method="POST")
    environ = ask(strict.ours, sent + b"3\r\nabc\r\n0\r\n\r\n")[0].environ
    assert environ["body"] == ""


# -- limits and methods --------------------------------------------------------------------


def line_of(size: int) -> bytes:
    return get("/page?" + "x" * (size - len("GET /page? HTTP/1.1")))


def field_of(size: int) -> bytes:
    return get("/page", "X-C: " + "x" * (size - len("X-C: \r\n")))


def fields_of(count: int) -> bytes:
    return get("/page", *(f"X-{number}: 1" for number in range(count - 2)))


def refused(pair: Pair, sent: bytes, status: int) -> None:
    """Both workers refuse a request, gunicorn before version 26 with 400."""
    ours, theirs = pair.answers(sent)
    assert ours[0].status == status
    assert theirs[0].status in (status, 400)


@pytest.mark.parametrize(
    ("size", "request_of", "refusal"),
    [(4094, line_of, 414), (8190, field_of, 431), (100, fields_of, 431)],
)
def test_the_usual_limits(
    size: int, request_of: Callable[[int], bytes], refusal: int, plain: Pair
) -> None:
    assert plain.same(request_of(size)).status == 200
    refused(plain, request_of(size + 1), refusal)


@pytest.mark.parametrize(
    ("size", "request_of", "refusal"),
    [(60, line_of, 414), (60, field_of, 431), (5, fields_of, 431)],
)
def test_limits_that_are_set(
    size: int, request_of: Callable[[int], bytes], refusal: int, strict: Pair
) -> None:
    assert strict.same(request_of(size)).status == 200
    refused(strict, request_of(size + 1), refusal)


def test_larger_limits_are_obeyed(tmp_path: Path) -> None:
    args = ["--limit-request-line", "8190", "--limit-request-fields", "300"]
    args += ["--limit-request-field_size", "40000"]
    with servers_in(tmp_path) as servers:
        server = servers.gunicorn(SOURCE, args=args)
        for sent in (line_of(8190), field_of(40000), fields_of(300)):
            assert ask(server, sent)[0].status == 200
        assert ask(server, line_of(8191))[0].status == 414
        assert ask(server, field_of(40001))[0].status == 431
        assert ask(server, fields_of(301))[0].status == 431


def test_methods(plain: Pair, strict: Pair) -> None:
    assert plain.same(get(method="get")).status == 400
    assert plain.same(get(method="GO")).status == 400
    assert strict.same(get(method="get")).environ["REQUEST_METHOD"] == "GET"
    assert strict.same(get(method="GO")).status == 405


def test_other_expectations_fail(plain: Pair) -> None:
    assert plain.same(get("/page", "Expect: cake")).status == 417


@pytest.mark.parametrize(
    "path", ["/page?a=%20b", "/page?a#b", "/page#b?a", "http://a.example/page?a=1"]
)
def test_forms_of_a_target(path: str, plain: Pair) -> None:
    assert plain.same(get(path)).status == 200


def test_no_keep_alive_closes_each_connection(strict: Pair) -> None:
    """Both say so by a header field: the client must not send another request."""
    for server in (strict.ours, strict.theirs):
        with socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT) as sock:
            sock.sendall(get(last=False))
            with sock.makefile("rb") as stream:
                assert b"\r\nconnection: close\r\n" in stream.read().lower()


def test_sys_exit_in_a_view_ends_no_worker(plain: Pair) -> None:
    """gunicorn closes the connection without an answer."""
    (answer,) = ask(plain.ours, get("/exit"))
    assert answer.status == 500
    assert "Error handling request GET /exit" in plain.ours.output
    assert plain.same(get()).status == 200
    assert "Worker exiting" not in plain.ours.output


# -- the PROXY protocol --------------------------------------------------------------------

V1 = b"PROXY TCP4 1.2.3.4 5.6.7.8 1000 80\r\n"
V1_IPV6 = b"PROXY TCP6 2001:db8::1 2001:db8::2 1000 80\r\n"
SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
V2 = SIGNATURE + b"\x21\x11\x00\x0c" + b"\x01\x02\x03\x04\x05\x06\x07\x08\x03\xe8\x00\x50"


@pytest.mark.parametrize(
    ("header", "address"), [(V1, "1.2.3.4"), (V1_IPV6, "2001:db8::1"), (V2, "1.2.3.4"), (b"", "")]
)
def test_a_proxy_says_where_its_client_is(header: bytes, address: str, proxied: Pair) -> None:
    environ = proxied.same(get(before=header)).environ
    assert environ["REMOTE_ADDR"] == (address or "127.0.0.1")
    assert environ.get("PROXY_PORT") == ("80" if header else None)


@pytest.mark.parametrize("header", [V1, V2])
def test_it_says_so_once_for_all_requests_of_a_connection(header: bytes, proxied: Pair) -> None:
    requests = get(last=False, before=header) + get(last=False) + get()
    ours, theirs = proxied.answers(requests)
    assert [answer.environ["REMOTE_ADDR"] for answer in ours] == ["1.2.3.4"] * 3
    assert [answer.environ for answer in ours] == [answer.environ for answer in theirs]


@pytest.mark.parametrize(
    "header", [V1 + V1, V2 + V2, b"PROXY TCP4 1.2.3.4\r\n", b"PROXY " + b"x" * 300 + b"\r\n"]
)
def test_a_malformed_header_is_refused(header: bytes, proxied: Pair) -> None:
    assert proxied.same(get(before=header)).status == 400


@pytest.mark.parametrize("header", [b"PROXY UNKNOWN\r\n", SIGNATURE + b"\x20\x00\x00\x00"])
def test_a_proxy_may_speak_for_itself(header: bytes, proxied: Pair) -> None:
    """As in health checks; gunicorn refuses the first, and knows no address with the second."""
    (answer,) = ask(proxied.ours, get(before=header))
    assert answer.environ["REMOTE_ADDR"] == "127.0.0.1"


def test_only_allowed_peers_and_versions(strict: Pair, plain: Pair) -> None:
    assert strict.same(get(before=V1)).status == 403
    assert strict.same(get(before=V2)).status == 400  # --proxy-protocol v1
    assert plain.same(get(before=V1)).status == 400  # it is off


def test_a_websocket_behind_it_has_the_clients_address(proxied: Pair) -> None:
    for server in (proxied.ours, proxied.theirs):
        with WireClient(server.port) as client:
            client.send(V1 + request("/who"))
            assert client.response().status == 101
            assert client.message() == b"1.2.3.4"


# -- what is different beside that, as the documentation says ------------------------------


def head_of(server: Server, sent: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT) as sock:
        sock.sendall(sent)
        with sock.makefile("rb") as stream:
            return stream.read().partition(b"\r\n\r\n")[0].lower()


def test_responses_name_no_server(plain: Pair) -> None:
    assert b"\r\nserver: gunicorn" in head_of(plain.theirs, get())
    assert b"\r\nserver:" not in head_of(plain.ours, get())


def test_an_application_may_close_the_connection(plain: Pair) -> None:
    assert b"\r\nconnection: close" in head_of(plain.ours, get("/closes", last=False))


def test_cookies_are_joined_as_cookies(plain: Pair) -> None:
    ours, theirs = plain.answers(get("/page", "Cookie: a=1", "Cookie: b=2"))
    assert ours[0].environ["HTTP_COOKIE"] == "a=1; b=2"
    assert theirs[0].environ["HTTP_COOKIE"] == "a=1,b=2"


def test_a_unix_socket_has_names_for_both_ends(tmp_path: Path) -> None:
    # Unix sockets have short names.
    with tempfile.TemporaryDirectory() as folder, servers_in(tmp_path) as servers:
        seen: list[list[dict[str, Any]]] = []
        for worker in ("flask_sockets2.worker", "gevent"):
            args = ["--proxy-protocol", "-b", f"unix:{folder}/{worker}"]
            servers.gunicorn(SOURCE, worker=worker, args=args)
            seen.append([])
            for host, header in (
                (b"a.example", b""),
                (b"a.example:81", V1),
                (b"a.example", V2),
                (b"[::1]", b""),
                (b"[::1]:82", b""),
            ):
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.settimeout(TIMEOUT)
                    sock.connect(f"{folder}/{worker}")
                    sent = get("/page", "X-Forwarded-Proto: https", before=header)
                    sock.sendall(sent.replace(b"a.example", host))
                    with sock.makefile("rb") as stream:
                        body = stream.read().partition(b"\r\n\r\n")[2]
                seen[-1].append(Answer(200, body).environ)
    ours, theirs = seen
    assert ours[:3] == theirs[:3]  # of the others gunicorn takes "[" for the name
    ends = [(one["REMOTE_ADDR"], one["SERVER_NAME"], one["SERVER_PORT"]) for one in ours]
    assert ends == [
        ("", "a.example", "443"),
        ("1.2.3.4", "a.example", "81"),
        ("1.2.3.4", "a.example", "443"),
        ("", "[::1]", "443"),
        ("", "[::1]", "82"),
    ]
    assert {one["wsgi.url_scheme"] for one in ours} == {"https"}
