"""Requests that are no handshake, or not one to accept: answered over HTTP, before any 101."""

from __future__ import annotations

import pytest

from tests.faults.conftest import Target
from tests.wire_client import BINARY, TEXT, close_frame, frame, request

pytestmark = pytest.mark.slow

BAD_FIELDS = {
    "no Upgrade": ({"Upgrade": None}, 426, "WebSocket"),
    "another Upgrade": ({"Upgrade": "websocket2"}, 426, "'Upgrade: websocket'"),
    "no Connection": ({"Connection": None}, 426, "'Connection: Upgrade'"),
    "another Connection": ({"Connection": "keep-alive"}, 426, "'Connection: Upgrade'"),
    "no version": ({"Sec-WebSocket-Version": None}, 426, "Sec-WebSocket-Version 13"),
    "an old version": ({"Sec-WebSocket-Version": "8"}, 426, "Sec-WebSocket-Version 13"),
    "no key": ({"Sec-WebSocket-Key": None}, 400, "16 bytes in base64"),
    "a key that is no base64": ({"Sec-WebSocket-Key": "!" * 24}, 400, "16 bytes in base64"),
    "a key that is not ASCII": ({"Sec-WebSocket-Key": "\xe9" * 24}, 400, "16 bytes in base64"),
    "a short key": ({"Sec-WebSocket-Key": "c2hvcnQ="}, 400, "16 bytes in base64"),
    "bad extensions": ({"Sec-WebSocket-Extensions": "a;;b"}, 400, "Sec-WebSocket-Extensions"),
    "long extensions": ({"Sec-WebSocket-Extensions": "a," * 5000}, 431, "longer than 8192 bytes"),
    "bad subprotocols": ({"Sec-WebSocket-Protocol": "a b"}, 400, "Sec-WebSocket-Protocol"),
}


@pytest.mark.parametrize("case", BAD_FIELDS)
def test_a_bad_handshake_is_refused_with_the_reason(target: Target, case: str) -> None:
    """RFC 6455 §4.2.1, §4.2.2; pains 12, 13, 83"""
    headers, status, reason = BAD_FIELDS[case]
    with target.raw() as client:
        client.send(request("/echo", headers) + frame(TEXT, b"no request, nor a frame"))
        response = client.response()
    assert response.status == status
    assert reason in response.body.replace("&#39;", "'")
    if "version" in case:
        assert response.headers["sec-websocket-version"] == "13"  # §4.4


def test_a_key_given_twice_is_refused(target: Target) -> None:
    """RFC 6455 §11.3.1: no more than one Sec-WebSocket-Key."""
    with target.raw() as client:
        client.send(request(lines=["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]))
        response = client.response()
    assert response.status == 400
    assert "once" in response.body


def test_another_method_than_get_is_refused(target: Target) -> None:
    """RFC 6455 §4.2.1 item 1"""
    with target.raw() as client:
        client.send(request(method="POST"))
        assert client.response().status == 405


def test_http_1_0_is_refused_with_the_remedy(target: Target) -> None:
    """RFC 6455 §4.2.1 item 1; pain 33"""
    with target.raw() as client:
        client.send(request(version="HTTP/1.0"))
        response = client.response()
    assert response.status == 400
    assert "proxy_http_version 1.1" in response.body


def test_an_unknown_path_is_404_before_any_101(target: Target) -> None:
    """Pain 12"""
    with target.raw() as client:
        client.send(request("/nowhere") + frame(TEXT, b"too early"))
        assert client.response().status == 404


def test_what_a_handler_refuses_before_accept_is_ordinary_http(target: Target) -> None:
    """Pains 12, 13"""
    with target.raw() as client:
        client.send(request("/refuses"))
        response = client.response()
    assert response.status == 401
    assert "who are you?" in response.body


def test_a_page_of_another_origin_is_refused_and_the_log_names_the_setting(
    target: Target, name: str
) -> None:
    """Pains 16, 17"""
    origin = f"http://{name}.example"
    with target.raw() as client:
        client.send(request("/echo", {"Origin": origin}))
        response = client.response()
    assert response.status == 403
    logged = target.server.wait_for_output(rf"^.*{origin}.*$")[0]
    assert "SOCKETS_ALLOWED_ORIGINS" in logged
    assert "127.0.0.1" in logged


@pytest.mark.parametrize(
    "origin", ["null", "http://[", "127.0.0.1", "http://127.0.0.1.evil.example", "\xff\x00"]
)
def test_an_origin_that_is_none_is_refused(target: Target, origin: str) -> None:
    """Pain 16. The development server and our handler may refuse the control character first."""
    with target.raw() as client:
        client.send(request("/echo", {"Origin": origin}))
        assert client.response().status in ((403, 400) if "\0" in origin else (403,))


def test_a_request_without_host_is_refused(target: Target) -> None:
    """RFC 9112 §3.2. On the development server our check of the handshake does it."""
    with target.raw() as client:
        client.send(request("/echo", {"Host": None}))
        assert client.response().status == 400


def test_a_request_with_two_hosts_is_refused(target: Target) -> None:
    """RFC 9112 §3.2. On the development server our check of the handshake does it: Werkzeug
    joins the two with a comma."""
    with target.raw() as client:
        client.send(request("/echo", lines=["Host: other.example"]))
        assert client.response().status == 400


BAD_LINES = {
    "no colon": "a line without a colon",
    "a space before the colon": "Some-Field : value",
    "a space before the name": " Some-Field: value",
    "no name": ": value",
    "a control character": "Some-Field: \x01",
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_broken_header_line_is_refused(target: Target, case: str) -> None:
    """RFC 9112 §5.1.

    The development server reads the head with Python's http.client, which stops at such a line
    or takes it as a strange field: it cannot be told from a good request then, so only that
    nothing breaks is asserted there. Elsewhere it is 400.
    """
    with target.raw() as client:
        client.send(request("/echo", lines=[BAD_LINES[case]]))
        response = client.response()
        assert response.status in ((101, 400, 426) if target.threads else (400,))


def test_a_broken_header_line_however_long_is_refused_at_once(target: Target) -> None:
    """Judging it takes no longer than reading it: meanwhile nobody else would be served."""
    with target.raw() as client:
        before = sum(target.worker.cpu_times()[:2])
        client.send(request(lines=["X:" + " " * 60_000 + "\x01"]))
        assert client.response().status in ((101, 400, 426) if target.threads else (400,))
        assert sum(target.worker.cpu_times()[:2]) - before < 2


@pytest.mark.parametrize("field", ["Upgrade", "Connection", "Sec-WebSocket-Key"])
@pytest.mark.parametrize("line", ["{} {}", "{} : {}"], ids=["no colon", "space before the colon"])
def test_a_field_of_the_handshake_in_a_broken_line_does_not_count(
    target: Target, field: str, line: str
) -> None:
    """RFC 9112 §5.1. On the development server the field is missing, which is what we tell."""
    good = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Key": "A" * 22 + "=="}
    with target.raw() as client:
        client.send(request("/echo", {field: None}, lines=[line.format(field, good[field])]))
        assert client.response().status in ((400, 426) if target.threads else (400,))


@pytest.mark.parametrize("field", ["Content-Length: {}", "Transfer-Encoding: chunked"])
def test_the_body_of_a_get_is_not_taken_for_frames(target: Target, name: str, field: str) -> None:
    """A body's bytes, had they passed as frames, would be a message that no client sent."""
    body = frame(TEXT, b"smuggled")
    if "chunked" in field:
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    with target.raw() as client:
        line = field.format(len(body))
        client.send(request(f"/messages/{name}", lines=[line]) + body + close_frame())
        response = client.response()
    assert response.status == 400
    assert "no body" in response.body
    assert f"{name} got" not in target.state()["ended"]


def test_the_body_of_a_request_with_an_upgrade_ends_where_it_says(target: Target) -> None:
    """What follows is the next request, and nobody waits for the end of the connection.

    All of it goes out in one segment: what Werkzeug finds on the socket after its answer, it
    reads to the end of the stream.
    """
    head = b"POST /body HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nContent-Length: 5\r\n\r\n"
    following = b"GET /state HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    with target.raw() as client:
        client.send(head + b"hello" + following)
        came = client.rest()
    assert came.startswith(b"HTTP/1.1 200 ")
    assert b"\r\n\r\nb'hello'" in came


def test_an_application_that_reads_the_body_first_holds_no_handshake_up(target: Target) -> None:
    with target.connect("/echo?body") as client:
        client.send(frame(TEXT, b"hello"))
        assert client.message() == b"hello"
    with target.raw() as client:
        client.send(request("/echo?body") + frame(TEXT, b"early"))
        assert client.response().status == 101
        assert client.message() == b"early"


def test_a_refusal_says_that_it_closes(target: Target) -> None:
    """Once, but Werkzeug adds its own to whatever an application says."""
    with target.raw() as client:
        client.send(request("/refuses"))
        head = client.rest().partition(b"\r\n\r\n")[0]
    assert head.lower().count(b"\r\nconnection: ") == 1 + target.threads
    assert b"\r\nconnection: close" in head.lower()


def test_a_frame_sent_together_with_the_handshake_is_not_lost(target: Target) -> None:
    with target.raw() as client:
        client.send(request() + frame(TEXT, b"one") + frame(BINARY, b"two") + frame(TEXT, b"thr"))
        assert client.response().status == 101
        assert [client.message() for _ in range(3)] == [b"one", b"two", b"thr"]


def test_a_large_frame_sent_together_with_the_handshake_is_not_lost(target: Target) -> None:
    message = bytes(range(256)) * 3000
    with target.raw() as client:
        client.send(request() + frame(BINARY, message))
        assert client.response().status == 101
        assert client.message() == message


def test_half_a_frame_sent_together_with_the_handshake_is_not_lost(target: Target) -> None:
    whole = frame(TEXT, b"in two halves")
    with target.raw() as client:
        client.send(request() + whole[:5])
        assert client.response().status == 101
        client.send(whole[5:])
        assert client.message() == b"in two halves"


def test_a_handshake_in_many_segments_is_understood(target: Target) -> None:
    head = request() + frame(TEXT, b"late")
    with target.raw() as client:
        for start in range(0, len(head), 7):
            client.send(head[start : start + 7])
        assert client.response().status == 101
        assert client.message() == b"late"


def test_an_endless_header_line_is_refused(target: Target) -> None:
    """RFC 6585 §5. Where the server hangs up while we send, its answer may be lost to a RST."""
    with target.raw() as client:
        try:
            client.send(request("/echo", {"Some-Field": "x" * 1_000_000}))
            status = client.response().status
        except (EOFError, OSError):
            return
    assert status in (400, 431)


def test_many_header_lines_are_refused(target: Target) -> None:
    """http.client, which reads the head in both servers, takes 100."""
    with target.raw() as client:
        client.send(request(lines=[f"Field-{number}: x" for number in range(5000)]))
        try:
            assert client.response().status in (400, 431)
        except (EOFError, OSError):
            return


def test_a_handler_that_raises_before_accept_is_a_500_logged_once(
    target: Target, name: str
) -> None:
    """Pain 3"""
    with target.raw() as client:
        client.send(request(f"/raises-before/{name}"))
        response = client.response()
    assert response.status == 500
    assert name not in response.body
    target.server.wait_for_output(rf"RuntimeError: told by {name}$")
    assert target.server.output.count(f"RuntimeError: told by {name}\n") == 1
