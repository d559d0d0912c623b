"""Heads of requests and of responses as bytes, and what is kept of names (RFC 9110, RFC 9112)."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import pytest

from flask_sockets2.servers.request_head import (
    Headers,
    RequestError,
    RequestLine,
    check_fields,
    environ_key,
)
from tests.clients import http
from tests.processes import Server

NAMES = """
from gevent import monkey; monkey.patch_all()
from flask import Flask, request
from flask_sockets2 import Sockets, WebSocketServer

app = Flask(__name__)
Sockets(app)
seen = []


@app.get("/")
def names():
    seen.extend(key for key in request.environ if key.endswith(("_INVENTED", "_ORIGIN")))
    return f"{len({id(key) for key in seen})} of {len(seen)}"


WebSocketServer(("127.0.0.1", PORT), app).serve_forever()
"""


def _name(line: bytes) -> str:
    """The name of a header field, as the server keeps it."""
    ((name, _),) = Headers(BytesIO(line + b"\r\n\r\n")).fields
    return name


@pytest.mark.parametrize("name", [b"Host", b"host", b"Sec-WebSocket-Key", b"x-forwarded-for"])
def test_a_usual_name_is_one_object_in_all_requests(name: bytes) -> None:
    first, second = _name(name + b": 1"), _name(name + b": 2")
    assert first == name.decode()
    assert first is second
    assert environ_key(first) is environ_key(second)


@pytest.mark.parametrize("name", [b"X-Invented-By-A-Client", b"HOST", b"x-1"])
def test_a_name_that_a_client_invents_is_freed_with_its_request(name: bytes) -> None:
    """CPython 3.12.0 to 3.12.5 never frees an interned text (python/cpython#113993)."""
    first, second = _name(name + b": 1"), _name(name + b": 2")
    assert first == second == name.decode()
    assert first is not second  # an interned name would be one object
    assert environ_key(first) is not environ_key(second)


def test_the_key_in_the_environ_is_that_of_pep_3333() -> None:
    assert environ_key("sec-websocket-key") == "HTTP_SEC_WEBSOCKET_KEY"
    assert environ_key("X-Of-Mine") == "HTTP_X_OF_MINE"


def test_a_server_keeps_no_name_that_a_client_invents(
    pywsgi_server: Callable[..., Server], unused_port: int
) -> None:
    server = pywsgi_server(NAMES.replace("PORT", str(unused_port)), port=unused_port)
    invented = {"X-Invented": "1", "Origin": "http://a"}
    for _ in range(3):
        _, told, _ = http(server.url("/"), headers=invented)
    assert told == "4 of 6"  # the three objects of the one name, one object of the other


# -- what is refused -----------------------------------------------------------------------


def cookies(*sizes: int) -> bytes:
    """A head with so many bytes of cookies, in as many fields."""
    return b"".join(b"Cookie: %b\r\n" % (b"a=b;" * (size // 4)) for size in sizes) + b"\r\n"


@pytest.mark.parametrize("sizes", [(16384,), (8192, 8192)])
def test_the_values_of_a_name_may_be_16_kibibytes_together(sizes: tuple[int, ...]) -> None:
    head = Headers(BytesIO(b"X-Other: %b\r\n" % bytes(b"x" * 16384) + cookies(*sizes)))
    assert sum(map(len, head.get_all("cookie"))) == 16384


@pytest.mark.parametrize("sizes", [(16388,), (8192, 8196), (60_000,)])
def test_longer_values_are_refused_before_an_application_reads_them(
    sizes: tuple[int, ...],
) -> None:
    """A list of 60 KiB, as of cookies or types, takes as long to be read as some hundred pages."""
    with pytest.raises(RequestError, match=r"Cookie.*more than 16384 bytes") as raised:
        Headers(BytesIO(cookies(*sizes)))
    assert raised.value.status == 431


@pytest.mark.parametrize(
    ("line", "method", "path", "version", "authority"),
    [
        ("GET / HTTP/1.1", "GET", "/", "HTTP/1.1", None),
        ("GET / HTTP/1.0", "GET", "/", "HTTP/1.0", None),
        ("GET / HTTP/1.9", "GET", "/", "HTTP/1.1", None),  # RFC 9110 §2.5
        ("get /a?b=c%20d HTTP/1.1", "get", "/a?b=c%20d", "HTTP/1.1", None),
        ("M-SEARCH //a/b HTTP/1.1", "M-SEARCH", "//a/b", "HTTP/1.1", None),
        ("GET /?u=http://b/ HTTP/1.1", "GET", "/?u=http://b/", "HTTP/1.1", None),
        ("GET /\xfc HTTP/1.1", "GET", "/\xfc", "HTTP/1.1", None),  # clients that do not encode
        ("GET http://a/b?c HTTP/1.1", "GET", "/b?c", "HTTP/1.1", "a"),
        ("GET HTTPS://a:80/b HTTP/1.1", "GET", "/b", "HTTP/1.1", "a:80"),
        ("GET ws://[::1]:80/b HTTP/1.1", "GET", "/b", "HTTP/1.1", "[::1]:80"),
        ("GET wss://a HTTP/1.1", "GET", "/", "HTTP/1.1", "a"),
        ("GET http://a?b=/c HTTP/1.1", "GET", "/?b=/c", "HTTP/1.1", "a"),
        ("GET http://user@a/ HTTP/1.1", "GET", "/", "HTTP/1.1", "user@a"),  # no host, see is_host
        ("GET http:///b HTTP/1.0", "GET", "/b", "HTTP/1.0", ""),
        ("OPTIONS * HTTP/1.1", "OPTIONS", "*", "HTTP/1.1", None),
    ],
)
def test_a_request_line_is_read(
    line: str, method: str, path: str, version: str, authority: str | None
) -> None:
    """RFC 9112 §3"""
    read = RequestLine(line)
    assert (read.method, read.path, read.version) == (method, path, version)
    assert read.authority == authority


@pytest.mark.parametrize(
    "version",
    [
        "HTTP/1.1.1",
        "HTTP/+1.+1",
        "HTTP/1.01",
        "HTTP/01.1",
        "1.01",
        "1.1",
        "HTTP/11",
        "HTTP/1",
        "HTTP/1.",
        "HTTP/.1",
        "HTTP/1,1",
        "HTTP/1_0.1",
        "http/1.1",
        "Http/1.1",
        "HTTPS/1.1",
        "HTTP/-1.1",
        "HTTP/1.-1",
        "HTTP/1.1x",
        "HTTP/\xb9.\xb9",
        "HTTP/\u0661.\u0661",
        "HTTP/1.10",
    ],
)
def test_a_version_that_is_none_is_refused(version: str) -> None:
    """RFC 9112 §2.3: "HTTP/", a digit, a point, a digit."""
    with pytest.raises(RequestError) as caught:
        RequestLine(f"GET / {version}")
    assert caught.value.status == 400


@pytest.mark.parametrize("version", ["HTTP/2.0", "HTTP/3.0", "HTTP/0.9", "HTTP/9.9"])
def test_another_major_version_is_refused_with_505(version: str) -> None:
    """RFC 9110 §15.6.6"""
    with pytest.raises(RequestError) as caught:
        RequestLine(f"PRI * {version}")
    assert caught.value.status == 505


@pytest.mark.parametrize(
    "line",
    [
        "",
        " ",
        "GET",
        "GET /",
        "GET /  HTTP/1.1",
        "GET  / HTTP/1.1",
        " GET / HTTP/1.1",
        "GET / HTTP/1.1 ",
        "GET /a b HTTP/1.1",
        "G@T / HTTP/1.1",
        "G\xcbT / HTTP/1.1",
        "GET /\tHTTP/1.1",
        "GET\t/ HTTP/1.1",
        "GET /\r HTTP/1.1",
        "GET /\0 HTTP/1.1",
        "GET\xa0/ HTTP/1.1",
        "GET /\x0bHTTP/1.1",
    ],
)
def test_a_line_that_is_no_request_line_is_refused(line: str) -> None:
    """RFC 9112 §3"""
    with pytest.raises(RequestError) as caught:
        RequestLine(line)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "line",
    [
        "GET a HTTP/1.1",
        "GET * HTTP/1.1",
        "OPTIONS *a HTTP/1.1",
        "GET a:80 HTTP/1.1",
        "GET ftp://a/ HTTP/1.1",
        "GET http:/a HTTP/1.1",
        "GET file:///etc HTTP/1.1",
        "GET ?a HTTP/1.1",
        "GET #a HTTP/1.1",
        r"GET \a HTTP/1.1",
    ],
)
def test_a_target_in_no_form_is_refused(line: str) -> None:
    """RFC 9112 §3.2"""
    with pytest.raises(RequestError) as caught:
        RequestLine(line)
    assert caught.value.status == 400


@pytest.mark.parametrize("target", ["a:443", "/", "*", "http://a/"])
def test_nobody_is_given_a_tunnel(target: str) -> None:
    """RFC 9110 §9.3.6"""
    with pytest.raises(RequestError) as caught:
        RequestLine(f"CONNECT {target} HTTP/1.1")
    assert caught.value.status == 501


def test_so_many_header_fields_are_read_and_no_more() -> None:
    """RFC 6585 §5"""
    fields = b"".join(b"Field-%d: x\r\n" % number for number in range(100))
    assert len(Headers(BytesIO(fields + b"\r\n")).fields) == 100
    stream = BytesIO(fields + b"one: more\r\n" + b"x" * 1000)
    with pytest.raises(RequestError) as caught:
        Headers(stream)
    assert caught.value.status == 431
    assert len(Headers(BytesIO(fields + b"one: more\r\n\r\n"), 101).fields) == 101


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"A: " + b"a" * 70_000 + b"\r\n\r\n", 431),
        ((b"A: " + b"a" * 9_000 + b"\r\n") * 8 + b"\r\n", 431),
        (b"A: a\r\n", 400),
        (b"A: a", 400),
        (b"", 400),
        (b"A: \x01\r\n\r\n", 400),
        (b"A : a\r\n\r\n", 400),
        (b"Content-Length: \xb2\r\n\r\n", 400),  # str.isdigit() takes it for one
        (b"Content-Length: 1000000000000000000\r\n\r\n", 400),
        (b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n", 400),
    ],
)
def test_a_head_is_refused_with_the_status_of_its_fault(head: bytes, status: int) -> None:
    with pytest.raises(RequestError) as caught:
        Headers(BytesIO(head))
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("name", "value"),
    [(b"X-A", b""), (b"x!#$%&'*+-.^_`|~9", b"a\tb c"), (b"Set-Cookie", b'a="\xff\x80"')],
)
def test_a_field_that_can_be_sent_passes(name: bytes, value: bytes) -> None:
    check_fields([(b"Before", b"a"), (name, value)])


@pytest.mark.parametrize("name", [b"", b"A b", b"A:", b"A\t", b"A\r\nB", b"A\0", b"\xfc", b"A\x7f"])
def test_a_name_that_is_no_token_is_refused(name: bytes) -> None:
    """RFC 9110 §5.1"""
    with pytest.raises(ValueError, match="no token"):
        check_fields([(b"Before", b"a"), (name, b"a"), (b"After", b"a")])


@pytest.mark.parametrize("number", [*range(9), *range(10, 32), 127])
def test_a_value_with_a_control_character_is_refused(number: int) -> None:
    """RFC 9110 §5.5"""
    for value in (b"a%cb" % number, b"%c" % number):
        with pytest.raises(ValueError, match="X-Name"):
            check_fields([(b"Before", b"a"), (b"X-Name", value), (b"After", b"a")])
