"""Guests: a client's request for a connection and, once admitted, its place in the quotas."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

from ..settings import number, or_none, read, setting
from ..transports.clock import Clock

__all__ = ["NO_RULES", "Guest", "Rules", "network_of"]

_SOON = 0.05  # seconds between two checks whether a connection has been accepted
_NETWORK = 0xFFFF_FFFF_FFFF_FFFF << 64  # the first 64 bits
_NAT64 = IPv6Network("64:ff9b::/96")  # IPv4 clients of a server that has IPv6 only (RFC 6052 §2.1)
_WITH_PORT = re.compile(r"\[([^]]+)\](?::.*)?|([^:]+):[^:]*", re.DOTALL)
_LONGEST = 64  # characters kept of an address that cannot be parsed
_OLD = "open for long enough; connect again"


_OPEN = or_none(number("connections", least=0, whole=True))
_RATE = or_none(number("requests/s"))


@dataclass(frozen=True, slots=True)
class Rules:
    """Quotas of an application in one process; None for no limit.

    :param max_connections: Open WebSockets and event streams of the application in a process; more
        are refused with 503.
    :param max_connections_per_address: The same for one client address, or one /64 of IPv6; more
        are refused with 429.
    :param max_connections_per_user: The same for one ``@sockets.user_id``; more are refused with
        429.
    :param max_handshake_rate: Requests for a connection in a process; more are refused with 503.
    :param max_handshake_rate_per_address: The same for one client address; more are refused with
        429.
    """

    max_connections: int | None = setting("SOCKETS_MAX_CONNECTIONS", None, _OPEN)
    max_connections_per_address: int | None = setting(
        "SOCKETS_MAX_CONNECTIONS_PER_ADDRESS", None, _OPEN
    )
    max_connections_per_user: int | None = setting("SOCKETS_MAX_CONNECTIONS_PER_USER", None, _OPEN)
    max_handshake_rate: float | None = setting("SOCKETS_MAX_HANDSHAKE_RATE", None, _RATE)
    max_handshake_rate_per_address: float | None = setting(
        "SOCKETS_MAX_HANDSHAKE_RATE_PER_ADDRESS", None, _RATE
    )


NO_RULES = read(Rules, {})
"""The one object for an application without limits."""


class Guest:
    """A request for a connection, and the connection once it is admitted.

    :param rules: the application's quotas and rate limits.
    :param what: description of the request, for the log.
    :param address: address of the client, as in the request.
    :param heard: number of orders that had been received when the request arrived.

    :ivar user: the user's id as text, None if anonymous.
    :ivar max_age: most seconds until the connection is closed to reconnect, None for no limit.
    """

    __slots__ = (
        "address",
        "clock",
        "close",
        "due",
        "heard",
        "max_age",
        "network",
        "rules",
        "user",
        "what",
    )

    def __init__(self, rules: Rules, what: str, address: str, heard: int) -> None:
        self.rules = rules
        self.what = what
        self.address = address
        self.heard = heard
        self.network: str | None = None  # network of the address, if there is a quota for it
        self.user: str | None = None
        self.max_age: float | None = None
        self.clock: Clock
        self.close: Callable[[int, str], bool] | None = None  # None unless admitted
        self.due = 0  # second at which max_age is over; for max_age.py

    @property
    def remarkable(self) -> bool:
        """Whether the guest has a network, user or maximum age that Admission must store."""
        return bool(self.network or self.user is not None or self.max_age)

    def come_of_age(self) -> None:
        """End the connection, because its age is reached; in the clock's thread."""
        self.end(1001, _OLD)

    def end_later(self, delay: float, code: int, reason: str) -> None:
        """End the connection after ``delay`` seconds; in the clock's thread."""
        if delay:
            self.clock.call_later(delay, partial(self.end, code, reason))
        else:
            self.end(code, reason)

    def end(self, code: int, reason: str) -> None:
        """End the connection as soon as it is open; in the clock's thread."""
        close = self.close  # another thread may set it to None meanwhile
        if close is not None and not close(code, reason):
            self.clock.call_later(_SOON, partial(self.end, code, reason))


def network_of(address: str) -> str:
    """Return the network that stands for all addresses of one client: for IPv6 the /64.

    Some proxies forward a port with the address, a new one for each connection; it is removed.
    """
    with_port = _WITH_PORT.fullmatch(address)
    if with_port is not None:
        address = with_port[1] or with_port[2]
    try:
        parsed = ip_address(address)
    except ValueError:
        return address[:_LONGEST]  # no IP address
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        if parsed in _NAT64:
            return str(IPv4Address(int(parsed) & 0xFFFF_FFFF))
        return f"{IPv6Address(int(parsed) & _NETWORK)}/64"
    return str(parsed)
