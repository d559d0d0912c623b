"""PROXY protocol: reads the client's address that a proxy sends before the first request.

HAProxy, nginx, AWS and other proxies can send the header if they forward TCP connections, not
single requests. Version 1 is a line, version 2 is binary. The specification is HAProxy's
``doc/proxy-protocol.txt``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from .request_head import RequestError

__all__ = ["PREFIX_V1", "VERSIONS", "ProxyHeader", "parse_line", "read_binary"]

VERSIONS: dict[str, frozenset[int]] = {
    "off": frozenset(),
    "v1": frozenset((1,)),
    "v2": frozenset((2,)),
    "auto": frozenset((1, 2)),
}
"""Accepted versions by value of gunicorn's setting ``proxy_protocol``."""

PREFIX_V1 = "PROXY "
_LONGEST_LINE = 107  # bytes with the line end
_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_MOST_EXTRA = 4096  # bytes of a header of version 2; addresses need 36, the rest is optional data

_LOCAL, _PROXY = 0x20, 0x21  # version 2 and the command
_TCP = {0x11: ("TCP4", IPv4Address, 4), 0x21: ("TCP6", IPv6Address, 16)}
_UNSPECIFIED = 0x00


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """Both addresses of the connection between a client and a proxy.

    :param protocol: ``TCP4`` or ``TCP6``.
    :param client: address and port of the client.
    :param proxy: address and port of the proxy to which the client has connected.
    """

    protocol: str
    client: tuple[str, int]
    proxy: tuple[str, int]

    def info(self) -> dict[str, Any]:
        """Return the value of ``req.proxy_protocol_info`` for gunicorn's hooks."""
        return {
            "proxy_protocol": self.protocol,
            "client_addr": self.client[0],
            "client_port": self.client[1],
            "proxy_addr": self.proxy[0],
            "proxy_port": self.proxy[1],
        }

    def environ(self) -> dict[str, str]:
        """Return the environ keys that gunicorn's own workers set, too."""
        return {
            "PROXY_PROTOCOL": self.protocol,
            "PROXY_ADDR": self.proxy[0],
            "PROXY_PORT": str(self.proxy[1]),
        }


def parse_line(line: str) -> ProxyHeader | None:
    """Parse a header of version 1.

    :param line: the line, from :data:`PREFIX_V1` to its end.
    :returns: the addresses; None for ``UNKNOWN``: the connection is the proxy's own.
    :raises RequestError: if the line is malformed.
    """
    if len(line) > _LONGEST_LINE or not line.endswith("\r\n") or "%" in line:  # no zones
        raise _error("expected a line of at most 107 bytes with addresses")
    words = line[:-2].split(" ")
    if words[1] == "UNKNOWN":
        return None
    kinds: dict[str, Any] = {name: kind for name, kind, _ in _TCP.values()}
    try:
        _, protocol, client, proxy, *ports = words
        kind = kinds[protocol]
        client_port, proxy_port = map(_port, ports)
        return ProxyHeader(
            protocol, (str(kind(client)), client_port), (str(kind(proxy)), proxy_port)
        )
    except (KeyError, ValueError) as exc:
        raise _error("expected 'PROXY TCP4 address address port port'") from exc


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535):
        raise ValueError("no port")
    return int(text)


def read_binary(rfile: Any) -> tuple[bool, ProxyHeader | None]:
    """Read a header of version 2, if the connection begins with one.

    If there is no header, the function reads nothing but an empty line.

    :param rfile: the stream of the connection.
    :returns: True if there was a header, and the addresses; None for the addresses if the
        connection is the proxy's own.
    :raises RequestError: if the header is malformed.
    """
    if rfile.peek(1)[:1] != _SIGNATURE[:1]:
        return False, None
    start: bytes = rfile.read(2)
    if start == _SIGNATURE[:2] and rfile.peek(1)[:1] != _SIGNATURE[2:3]:
        return False, None  # an empty line before a request (RFC 9112 §2.2)
    start += rfile.read(14)
    if len(start) != 16 or not start.startswith(_SIGNATURE):
        raise _error("expected the signature of version 2")
    command, family, length = struct.unpack(">BBH", start[12:])
    if length > _MOST_EXTRA:
        raise _error(f"the header is longer than {_MOST_EXTRA} bytes")
    addresses: bytes = rfile.read(length)
    if len(addresses) != length:
        raise _error("the peer left in the middle of the header")
    if command == _LOCAL or (command == _PROXY and family == _UNSPECIFIED):
        return True, None
    if command != _PROXY or family not in _TCP:
        raise _error("expected version 2, the command PROXY or LOCAL, and TCP")
    return True, _parse_addresses(addresses, *_TCP[family])


def _parse_addresses(data: bytes, protocol: str, kind: Any, size: int) -> ProxyHeader:
    if len(data) < 2 * size + 4:
        raise _error("the addresses are incomplete")
    client, proxy = str(kind(data[:size])), str(kind(data[size : 2 * size]))
    ports = struct.unpack(">HH", data[2 * size : 2 * size + 4])
    return ProxyHeader(protocol, (client, ports[0]), (proxy, ports[1]))


def _error(reason: str) -> RequestError:
    return RequestError(f"the PROXY protocol is malformed: {reason} (proxy_protocol)")
