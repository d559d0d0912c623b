"""The PROXY protocol, by literal bytes (HAProxy's doc/proxy-protocol.txt)."""

from __future__ import annotations

import io
import struct
from ipaddress import ip_address

import pytest

from flask_sockets2.servers.proxy_protocol import ProxyHeader, parse_line, read_binary
from flask_sockets2.servers.request_head import RequestError

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
IPV4 = b"\x01\x02\x03\x04" + b"\x05\x06\x07\x08" + b"\x03\xe8\x00\x50"
IPV6 = ip_address("2001:db8::1").packed + ip_address("2001:db8::2").packed + b"\x03\xe8\x00\x50"
REQUEST = b"GET / HTTP/1.1\r\n"


def binary(command: int, family: int, body: bytes, size: int | None = None) -> bytes:
    length = len(body) if size is None else size
    return SIGNATURE + struct.pack(">BBH", command, family, length) + body


class Dribbling(io.RawIOBase):
    """A connection on which a few bytes come at a time."""

    def __init__(self, data: bytes, most: int) -> None:
        self._data = io.BytesIO(data)
        self._most = most

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)[: self._most]  # type: ignore[arg-type]
        return self._data.readinto(view)


def stream(data: bytes, most: int = 8192) -> io.BufferedReader:
    return io.BufferedReader(Dribbling(data, most))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "PROXY TCP4 1.2.3.4 5.6.7.8 1000 80\r\n",
            ProxyHeader("TCP4", ("1.2.3.4", 1000), ("5.6.7.8", 80)),
        ),
        (
            "PROXY TCP6 2001:db8::1 ::2 0 65535\r\n",
            ProxyHeader("TCP6", ("2001:db8::1", 0), ("::2", 65535)),
        ),
        ("PROXY UNKNOWN\r\n", None),
        ("PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", None),
    ],
)
def test_a_line_names_client_and_proxy(line: str, expected: ProxyHeader | None) -> None:
    assert parse_line(line) == expected


@pytest.mark.parametrize(
    "line",
    [
        "PROXY \r\n",
        "PROXY TCP4\r\n",
        "PROXY TCP4 1.2.3.4 5.6.7.8 1000\r\n",
        "PROXY TCP4 1.2.3.4 5.6.7.8 1000 80 90\r\n",
        "PROXY TCP4 1.2.3.4 5.6.7.8 1000 65536\r\n",
        "PROXY TCP4 1.2.3.4 5.6.7.8 -1 80\r\n",
        "PROXY TCP4 1.2.3.4 5.6.7.8 1_0 80\r\n",
        "PROXY TCP4 1.2.3.4 5.6.7.8 \u0661 80\r\n",
        "PROXY TCP4 ::1 ::2 1000 80\r\n",
        "PROXY TCP6 1.2.3.4 5.6.7.8 1000 80\r\n",
        "PROXY TCP6 fe80::1%<b> ::2 1000 80\r\n",
        "PROXY TCP5 1.2.3.4 5.6.7.8 1000 80\r\n",
        "PROXY TCP4 1.2.3.4 5.6.7.8 1000 80\n",
        "PROXY TCP4 1.2.3.4 5.6.7.8 1000 80",
        f"PROXY UNKNOWN {'x' * 107}\r\n",
    ],
)
def test_a_malformed_line_is_refused_with_400(line: str) -> None:
    with pytest.raises(RequestError, match="PROXY protocol is malformed") as raised:
        parse_line(line)
    assert raised.value.status == 400


@pytest.mark.parametrize("most", [1, 2, 11, 13, 8192])
@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (binary(0x21, 0x11, IPV4), ProxyHeader("TCP4", ("1.2.3.4", 1000), ("5.6.7.8", 80))),
        (
            binary(0x21, 0x11, IPV4 + b"\x04\x00\x01x"),  # notes of the proxy follow
            ProxyHeader("TCP4", ("1.2.3.4", 1000), ("5.6.7.8", 80)),
        ),
        (
            binary(0x21, 0x21, IPV6),
            ProxyHeader("TCP6", ("2001:db8::1", 1000), ("2001:db8::2", 80)),
        ),
        (binary(0x20, 0x00, b""), None),  # LOCAL, as in a health check
        (binary(0x20, 0x11, IPV4), None),
        (binary(0x21, 0x00, b""), None),  # of another kind of connection
    ],
)
def test_a_binary_header_is_read_and_nothing_behind_it(
    header: bytes, expected: ProxyHeader | None, most: int
) -> None:
    rfile = stream(header + REQUEST, most)
    assert read_binary(rfile) == (True, expected)
    assert rfile.read() == REQUEST


@pytest.mark.parametrize("most", [1, 2, 8192])
@pytest.mark.parametrize("empty_line", [b"", b"\r\n"])
def test_a_request_without_a_header_is_left_alone(empty_line: bytes, most: int) -> None:
    rfile = stream(empty_line + REQUEST, most)
    assert read_binary(rfile) == (False, None)
    assert rfile.read() == REQUEST


@pytest.mark.parametrize(
    "header",
    [
        binary(0x11, 0x11, IPV4),  # version 1
        binary(0x22, 0x11, IPV4),  # an unknown command
        binary(0x21, 0x12, IPV4),  # UDP
        binary(0x21, 0x31, bytes(216)),  # a Unix socket
        binary(0x21, 0x11, IPV4[:-1]),
        binary(0x21, 0x21, IPV6[:-1]),
        binary(0x21, 0x11, IPV4, size=13),  # the peer leaves
        binary(0x21, 0x11, bytes(4097)),
        SIGNATURE[:11],
        b"\r\n\r\nGET / HTTP/1.1\r\n",
    ],
)
def test_a_malformed_binary_header_is_refused_with_400(header: bytes) -> None:
    with pytest.raises(RequestError, match="PROXY protocol is malformed") as raised:
        read_binary(stream(header))
    assert raised.value.status == 400
