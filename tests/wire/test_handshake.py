"""The opening handshake, item by item: RFC 6455 §4.2.1 to §4.4 and §10.2, RFC 7692 §5 to §7."""

from __future__ import annotations

from typing import Any

import pytest
from websockets.extensions.permessage_deflate import PerMessageDeflate

from flask_sockets2.exceptions import HandshakeError
from flask_sockets2.wire.handshake import (
    Upgrade,
    end_to_end,
    extended,
    is_host,
    is_upgrade,
    parse_upgrade,
    select_subprotocol,
)

KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # §1.3
ABSENT: Any = None


def request(**changes: str) -> dict[str, Any]:
    """The environ of a good request; what is given as ABSENT is taken out of it."""
    environ = {
        "REQUEST_METHOD": "GET",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "server.example.com",
        "HTTP_UPGRADE": "websocket",
        "HTTP_CONNECTION": "Upgrade",
        "HTTP_SEC_WEBSOCKET_KEY": KEY,
        "HTTP_SEC_WEBSOCKET_VERSION": "13",
        **changes,
    }
    return {name: value for name, value in environ.items() if value is not ABSENT}


def refusal(**changes: str) -> HandshakeError:
    with pytest.raises(HandshakeError) as caught:
        parse_upgrade(request(**changes))
    assert str(caught.value) == caught.value.description
    return caught.value


def lines(head: bytes) -> list[str]:
    assert head.endswith(b"\r\n\r\n")
    return head.decode("latin-1").split("\r\n")[:-2]


# -- §4.2.1, the request -------------------------------------------------------------------


def test_the_handshake_of_the_rfc_is_answered_as_in_the_rfc() -> None:
    """§1.3."""
    upgrade = parse_upgrade(
        request(HTTP_SEC_WEBSOCKET_PROTOCOL="chat, superchat", HTTP_ORIGIN="http://example.com")
    )
    assert upgrade == Upgrade(KEY, ("chat", "superchat"), "")
    head, extensions = upgrade.response(subprotocol="chat")
    assert head == (
        b"HTTP/1.1 101 Switching Protocols\r\n"
        b"Upgrade: websocket\r\n"
        b"Connection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
        b"Sec-WebSocket-Protocol: chat\r\n"
        b"\r\n"
    )
    assert extensions == []


@pytest.mark.parametrize("method", ["POST", "HEAD", "CONNECT", "get"])
def test_another_method_than_get_is_refused(method: str) -> None:
    """§4.2.1 item 1."""
    error = refusal(REQUEST_METHOD=method)
    assert error.status == 405
    assert error.headers == (("Allow", "GET"),)


@pytest.mark.parametrize("version", ["HTTP/1.0", "HTTP/0.9"])
def test_http_before_1_1_is_refused_and_the_proxy_setting_named(version: str) -> None:
    """§4.2.1 item 1."""
    error = refusal(SERVER_PROTOCOL=version)
    assert error.status == 400
    assert "proxy_http_version 1.1;" in error.description


NO_HOSTS = ["", "a,b", "a, a", "a b", "a/b", "a@b", "a?b", "a#b", "a\\b", "a:b", "a:1:2", "a:65536"]
NO_HOSTS += [
    "[::1",
    "::1",
    "[a]b",
    "[g]",
    "<a>",
    "\xfc",
    "%zz",
    "http://a",
    "a:-1",
    "a\n",
    "[]",
    ":80",
]


@pytest.mark.parametrize("host", [ABSENT, *NO_HOSTS])
def test_anything_but_one_host_is_refused(host: str) -> None:
    """§4.2.1 item 2; a WSGI server joins repeated fields with a comma."""
    error = refusal(HTTP_HOST=host)
    assert error.status == 400
    assert "Host" in error.description


@pytest.mark.parametrize(
    "host",
    [
        *(
            "a",
            "A.example.",
            "a:80",
            "a:",
            "a:65535",
            "127.0.0.1:5000",
            "[::1]",
            "[::f:1.2.3.4]:80",
        ),
        *("a_b", "xn--bcher-kva.example", "%61", "a!$&'()*+;=~"),
    ],
)
def test_a_host_is_a_name_or_an_address_and_perhaps_a_port(host: str) -> None:
    """RFC 9110 §7.2, RFC 3986 §3.2.2"""
    assert is_host(host)
    assert parse_upgrade(request(HTTP_HOST=host)).key == KEY


@pytest.mark.parametrize("upgrade", ["WebSocket", "WEBSOCKET", " websocket "])
def test_upgrade_is_compared_without_regard_to_case(upgrade: str) -> None:
    """§4.2.1 item 3."""
    assert parse_upgrade(request(HTTP_UPGRADE=upgrade)).key == KEY


@pytest.mark.parametrize(
    "upgrade", [ABSENT, "", "h2c", "websocketx", "websocket2", "\xa0websocket"]
)
def test_another_upgrade_is_refused_with_the_one_required(upgrade: str) -> None:
    """§4.2.1 item 3; RFC 9110 §15.5.22: 426 says which upgrade."""
    error = refusal(HTTP_UPGRADE=upgrade)
    assert error.status == 426
    assert ("Upgrade", "websocket") in error.headers
    assert ("Connection", "Upgrade") in error.headers
    assert ("Sec-WebSocket-Version", "13") in error.headers
    assert "Upgrade: websocket" in error.description


@pytest.mark.parametrize("connection", ["upgrade", "UPGRADE", "keep-alive, Upgrade", "x,upgrade"])
def test_connection_may_name_more_than_upgrade(connection: str) -> None:
    """§4.2.1 item 4."""
    assert parse_upgrade(request(HTTP_CONNECTION=connection)).key == KEY


@pytest.mark.parametrize("connection", [ABSENT, "", "keep-alive", "close", "upgraded", "@"])
def test_a_connection_without_upgrade_is_refused_and_the_proxy_setting_named(
    connection: str,
) -> None:
    """§4.2.1 item 4."""
    error = refusal(HTTP_CONNECTION=connection)
    assert error.status == 426
    assert ("Upgrade", "websocket") in error.headers
    assert 'proxy_set_header Connection "upgrade";' in error.description


@pytest.mark.parametrize(
    "key",
    [
        ABSENT,
        "",
        "dGhlIHNhbXBsZSBub25jZQ",  # no padding
        "dGhlIHNhbXBsZSBub25j",  # 15 bytes
        "dGhlIHNhbXBsZSBub25jZQAA",  # 18
        "dGhlIHNhbXBsZSBub25jZQ==, dGhlIHNhbXBsZSBub25jZQ==",  # twice
        "dGhlIHNhbXBsZSBub25j!Q==",
        "dGhlIHNhbXBsZSBub25j\xe9Q==",
    ],
)
def test_a_key_that_is_not_16_bytes_in_base64_is_refused(key: str) -> None:
    """§4.2.1 item 5."""
    error = refusal(HTTP_SEC_WEBSOCKET_KEY=key)
    assert error.status == 400
    assert "Sec-WebSocket-Key" in error.description
    assert not key or key not in error.description


@pytest.mark.parametrize("version", [ABSENT, "", "0", "8", "12", "14", "13, 8", "13,13", "x"])
def test_another_version_than_13_is_told_which_one_is_supported(version: str) -> None:
    """§4.2.1 item 6, §4.2.2 item 4, §4.4."""
    error = refusal(HTTP_SEC_WEBSOCKET_VERSION=version)
    assert error.status == 426
    assert ("Sec-WebSocket-Version", "13") in error.headers


def test_origin_is_optional_and_judged_elsewhere() -> None:
    """§4.2.1 item 7."""
    assert parse_upgrade(request(HTTP_ORIGIN="http://anything.example"))
    assert parse_upgrade(request())


def test_subprotocols_keep_the_order_of_the_client() -> None:
    """§4.2.1 item 8."""
    upgrade = parse_upgrade(request(HTTP_SEC_WEBSOCKET_PROTOCOL="v2.chat,v1.chat ,  x"))
    assert upgrade.subprotocols == ("v2.chat", "v1.chat", "x")


@pytest.mark.parametrize("field", ["a b", "a;b", ",", '"a"', "a\x00"])
def test_subprotocols_that_cannot_be_read_are_refused(field: str) -> None:
    """§4.2.1 item 8, §11.3.4."""
    error = refusal(HTTP_SEC_WEBSOCKET_PROTOCOL=field)
    assert error.status == 400
    assert "Sec-WebSocket-Protocol" in error.description


@pytest.mark.parametrize("field", ["; a", "permessage-deflate; =1", "a b", 'x; y="'])
def test_extensions_that_cannot_be_read_are_refused(field: str) -> None:
    """§4.2.1 item 9, §9.1."""
    error = refusal(HTTP_SEC_WEBSOCKET_EXTENSIONS=field)
    assert error.status == 400
    assert "Sec-WebSocket-Extensions" in error.description


@pytest.mark.parametrize(
    "name", ["HTTP_CONNECTION", "HTTP_SEC_WEBSOCKET_EXTENSIONS", "HTTP_SEC_WEBSOCKET_PROTOCOL"]
)
def test_a_list_that_takes_long_to_read_is_refused_unread(name: str) -> None:
    """RFC 6585 §5."""
    error = refusal(**{name: "a," * 4097})
    assert error.status == 431
    assert "longer than 8192 bytes" in str(error)
    fits = "Upgrade" + ",Upgrade" * 1000 if name == "HTTP_CONNECTION" else "a," * 4095 + "a"
    parse_upgrade(request(**{name: fits}))


@pytest.mark.parametrize("body", [{"CONTENT_LENGTH": "5"}, {"HTTP_TRANSFER_ENCODING": "chunked"}])
def test_a_request_with_a_body_is_refused_lest_its_bytes_pass_for_frames(
    body: dict[str, str],
) -> None:
    error = refusal(**body)
    assert error.status == 400
    assert "body" in error.description


@pytest.mark.parametrize("length", ["", "0"])
def test_an_empty_body_is_none(length: str) -> None:
    assert parse_upgrade(request(CONTENT_LENGTH=length)).key == KEY


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"HTTP_UPGRADE": "websocket"}, True),
        ({"HTTP_UPGRADE": "WebSocket"}, True),
        ({"HTTP_UPGRADE": "websocket, h2c"}, True),  # badly: the refusal is a WebSocket's
        ({"HTTP_UPGRADE": "h2c"}, False),
        ({}, False),
    ],
)
def test_a_request_for_a_websocket_is_told_from_others(
    environ: dict[str, str], expected: bool
) -> None:
    assert is_upgrade(environ) is expected


# -- §4.2.2, the response ------------------------------------------------------------------


def test_the_accept_value_is_made_of_the_key_as_it_came() -> None:
    """§4.2.2 item 5.4: it is not decoded first."""
    head, _ = Upgrade("AAAAAAAAAAAAAAAAAAAAAA==", (), "").response()
    assert "Sec-WebSocket-Accept: ICX+Yqv66kxgM0FcWaLWlFLwTAI=" in lines(head)


def test_a_subprotocol_is_sent_only_when_one_was_selected() -> None:
    """§4.2.2 item 5.5: absence means that none of them is used."""
    head, _ = Upgrade(KEY, ("a", "b"), "").response()
    assert not any(line.startswith("Sec-WebSocket-Protocol") for line in lines(head))
    head, _ = Upgrade(KEY, ("a", "b"), "").response(subprotocol="b")
    assert lines(head)[-1] == "Sec-WebSocket-Protocol: b"


@pytest.mark.parametrize(
    ("offered", "message"), [(("a", "b"), "the client offers a, b"), ((), "offers none")]
)
def test_a_subprotocol_that_was_not_offered_cannot_be_selected(
    offered: tuple[str, ...], message: str
) -> None:
    """§4.2.2 item 4: it is one of those that the client sent."""
    with pytest.raises(ValueError, match=message):
        Upgrade(KEY, offered, "").response(subprotocol="c")


@pytest.mark.parametrize(
    ("offered", "supported", "expected"),
    [
        (("b", "a"), ("a", "b"), "a"),  # the server's preference
        (("b",), ("a", "b"), "b"),
        (("A",), ("a",), None),  # §4.1: names are compared as they are
        ((), ("a",), None),
        (("a",), (), None),
    ],
)
def test_the_first_supported_subprotocol_is_selected(
    offered: tuple[str, ...], supported: tuple[str, ...], expected: str | None
) -> None:
    assert select_subprotocol(offered, supported) == expected


def test_further_headers_follow_in_their_order_even_twice() -> None:
    headers = [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("X-Name", "caf\xe9")]
    head, _ = Upgrade(KEY, (), "").response(headers=headers)
    assert lines(head)[-3:] == ["Set-Cookie: a=1", "Set-Cookie: b=2", "X-Name: caf\xe9"]


def test_middleware_is_shown_the_fields_without_those_of_the_hop() -> None:
    """PEP 3333 leaves Connection and Upgrade to the server."""
    headers = [("X-A", "b: c"), ("X-Empty", "")]
    head, _ = Upgrade(KEY, ("chat",), "").response(subprotocol="chat", headers=headers)
    assert end_to_end(head) == [
        ("Sec-WebSocket-Accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
        ("Sec-WebSocket-Protocol", "chat"),
        *headers,
    ]


def test_fields_of_middleware_follow_but_those_that_a_101_cannot_have() -> None:
    head, _ = Upgrade(KEY, (), "").response(headers=[("X-A", "1")])
    kept = [("X-A", "2"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]
    names = ("Content-Length", "transfer-encoding", "Content-Type", "CONTENT-ENCODING")
    names += ("Connection", "Upgrade", "Sec-WebSocket-Accept", "sec-websocket-protocol")
    dropped = [(name, "x") for name in names]
    assert extended(head, []) == head
    expected = [*lines(head), "X-A: 2", "Set-Cookie: a=1", "Set-Cookie: b=2"]
    assert lines(extended(head, [*dropped, *kept])) == expected


@pytest.mark.parametrize(
    ("name", "value"), [("X-A", "1\r\nX-B: 2"), ("X A", "1"), ("X-A", "\u20ac")]
)
def test_a_field_of_middleware_that_cannot_be_sent_is_refused(name: str, value: str) -> None:
    head, _ = Upgrade(KEY, (), "").response()
    with pytest.raises(ValueError, match="cannot be sent"):
        extended(head, [(name, value)])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-A", "1\r\nX-B: 2"),
        ("X-A", "1\n"),
        ("X-A", "1\r"),
        ("X-A", "1\0"),
        ("X-A\r\nX-B", "1"),
        ("X-A: 1", "2"),
        ("X A", "1"),
        ("", "1"),
        ("X-A", "\u20ac"),
        ("X-\u20ac", "1"),
        ("X-\xfc", "1"),
        ("X(A)", "1"),
        ("X-A\t", "1"),
        ("X-A\x7f", "1"),
        ("X-A\x1b[31m", "1"),
    ],
)
def test_a_header_that_would_end_its_line_or_is_no_token_is_refused(name: str, value: str) -> None:
    """RFC 9110 §5.1, §5.5"""
    with pytest.raises(ValueError, match="cannot be sent"):
        Upgrade(KEY, (), "").response(headers=[(name, value)])


@pytest.mark.parametrize("number", [*range(9), *range(10, 32), 127])
def test_a_header_with_a_control_character_is_refused(number: int) -> None:
    """RFC 9110 §5.5; the tabulator is none of them."""
    with pytest.raises(ValueError, match="X-A"):
        Upgrade(KEY, (), "").response(headers=[("X-A", f"a{chr(number)}b")])
    head, _ = Upgrade(KEY, (), "").response(headers=[("X-A", "a\tb")])
    assert lines(head)[-1] == "X-A: a\tb"


@pytest.mark.parametrize(
    "name",
    [
        *("Upgrade", "connection", "Sec-WebSocket-Accept", "Sec-WebSocket-Protocol"),
        *("Content-Length", "transfer-encoding"),
    ],
)
def test_a_header_of_the_handshakes_own_or_of_a_body_cannot_be_added(name: str) -> None:
    """RFC 9110 §8.6, RFC 9112 §6.1: no response 1xx has a body."""
    with pytest.raises(ValueError, match=name):
        Upgrade(KEY, (), "").response(headers=[(name, "chat")])


def test_a_refused_header_does_not_show_its_value() -> None:
    with pytest.raises(ValueError) as caught:
        Upgrade(KEY, (), "").response(headers=[("Set-Cookie", "secret\r\n")])
    assert "Set-Cookie" in str(caught.value)
    assert "secret" not in str(caught.value)


# -- RFC 7692, permessage-deflate ----------------------------------------------------------


def negotiate(field: str) -> tuple[str | None, PerMessageDeflate | None]:
    """Return the answer's field and the extension agreed to, each None without compression."""
    upgrade = parse_upgrade(request(HTTP_SEC_WEBSOCKET_EXTENSIONS=field))
    head, extensions = upgrade.response(compression=True)
    name = "Sec-WebSocket-Extensions: "
    answers = [line.removeprefix(name) for line in lines(head) if line.startswith(name)]
    if not extensions:
        assert answers == []
        return None, None
    (extension,), (answer,) = extensions, answers
    assert isinstance(extension, PerMessageDeflate)
    return answer, extension


def test_compression_is_off_unless_it_is_asked_for() -> None:
    upgrade = parse_upgrade(request(HTTP_SEC_WEBSOCKET_EXTENSIONS="permessage-deflate"))
    head, extensions = upgrade.response()
    assert extensions == []
    assert b"Extensions" not in head


@pytest.mark.parametrize("field", ["", "x-webkit-deflate-frame", "foo; bar=1, baz"])
def test_no_extension_is_agreed_to_that_was_not_offered(field: str) -> None:
    """§9.1: the server MUST NOT use what the client did not ask for; others are ignored."""
    assert negotiate(field) == (None, None)


@pytest.mark.parametrize(
    ("offer", "answer"),
    [
        (
            "permessage-deflate",
            "permessage-deflate; server_no_context_takeover; server_max_window_bits=12",
        ),
        (
            "permessage-deflate; client_max_window_bits",  # as browsers ask
            "permessage-deflate; server_no_context_takeover; server_max_window_bits=12; "
            "client_max_window_bits=12",
        ),
        (
            "permessage-deflate; client_max_window_bits=15",
            "permessage-deflate; server_no_context_takeover; server_max_window_bits=12; "
            "client_max_window_bits=12",
        ),
        (
            'permessage-deflate; client_max_window_bits="10"; server_max_window_bits=9',
            "permessage-deflate; server_no_context_takeover; server_max_window_bits=9; "
            "client_max_window_bits=10",
        ),
        (
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover; "
            "server_max_window_bits=12",
        ),
        (
            "foo, permessage-deflate; server_max_window_bits=10, permessage-deflate",
            # The first one, once.
            "permessage-deflate; server_no_context_takeover; server_max_window_bits=10",
        ),
        (
            "permessage-deflate; unknown=1, permessage-deflate",
            # The first that can be kept.
            "permessage-deflate; server_no_context_takeover; server_max_window_bits=12",
        ),
    ],
)
def test_an_offer_of_permessage_deflate_is_answered_with_what_will_be_kept(
    offer: str, answer: str
) -> None:
    """RFC 7692 §5.1, §7.1."""
    assert negotiate(offer)[0] == answer


@pytest.mark.parametrize(
    "offer",
    [
        "permessage-deflate; server_max_window_bits=7",  # §7.1.2.1: 8 to 15
        "permessage-deflate; server_max_window_bits=16",
        "permessage-deflate; server_max_window_bits=08",
        "permessage-deflate; server_max_window_bits",
        "permessage-deflate; server_max_window_bits=8",  # zlib cannot keep it
        "permessage-deflate; client_max_window_bits=16",
        "permessage-deflate; server_no_context_takeover=1",  # §7.1.1.1: no value
        "permessage-deflate; client_no_context_takeover; client_no_context_takeover",  # twice
        "permessage-deflate; unknown",
    ],
)
def test_an_offer_that_cannot_be_kept_is_declined_and_the_connection_goes_on(offer: str) -> None:
    """RFC 7692 §7: an offer with such parameters MUST be declined."""
    assert negotiate(offer) == (None, None)


def test_the_windows_are_those_of_the_answer() -> None:
    """RFC 7692 §7.1.2: neither side may use a larger window than it says."""
    _, extension = negotiate(
        "permessage-deflate; client_max_window_bits=10; server_max_window_bits=9; "
        "server_no_context_takeover"
    )
    assert extension is not None
    assert extension.local_max_window_bits == 9
    assert extension.remote_max_window_bits == 10
    assert extension.local_no_context_takeover
    assert not extension.remote_no_context_takeover


def test_a_client_that_says_nothing_of_its_window_may_use_the_largest() -> None:
    """RFC 7692 §7.1.2.2."""
    _, extension = negotiate("permessage-deflate")
    assert extension is not None
    assert extension.remote_max_window_bits == 15
