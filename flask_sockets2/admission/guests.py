"""Guests: those who ask for a connection and have it, what they are measured by, their networks."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

from ..settings import number, or_none, read, setting
from ..transports.clock import Clock

__all__ = ["NO_RULES", "Guest", "Rules", "network_of"]

_SOON = 0.05  # seconds between two looks whether a connection has been accepted
_NETWORK = 0xFFFF_FFFF_FFFF_FFFF << 64  # the first 64 bits
_NAT64 = IPv6Network("64:ff9b::/96")  # IPv4 clients of a server that has IPv6 only (RFC 6052 §2.1)
_WITH_PORT = re.compile(r"\[([^]]+)\](?::.*)?|([^:]+):[^:]*", re.DOTALL)
_LONGEST = 64  # letters of an address that is none
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
    """Who asks for a connection, and later has it.

    :param rules: what it is measured by.
    :param what: it is, for the log.
    :param address: of the client, as the request has it.
    :param heard: how many orders there had been when it came.

    :ivar user: the id as text, None for nobody.
    :ivar max_age: seconds after which it has to come anew, None for as long as it likes.
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
        self.network: str | None = None  # of the address, where it is counted
        self.user: str | None = None
        self.max_age: float | None = None
        self.clock: Clock
        self.close: Callable[[int, str], bool] | None = None  # None: it is not here
        self.due = 0  # the second at which it is old; of max_age.py

    @property
    def remarkable(self) -> bool:
        """Whether there is more to it than its number."""
        return bool(self.network or self.user is not None or self.max_age)

    def come_of_age(self) -> None:
        """End it: it is old. By the clock's thread."""
        self.end(1001, _OLD)

    def end_later(self, delay: float, code: int, reason: str) -> None:
        """End it after so many seconds, 0 for at once; by the clock's thread."""
        if delay:
            self.clock.call_later(delay, partial(self.end, code, reason))
        else:
            self.end(code, reason)

    def end(self, code: int, reason: str) -> None:
        """End it, as soon as it is open; by the clock's thread."""
        close = self.close  # which another thread may take away meanwhile
        if close is not None and not close(code, reason):
            self.clock.call_later(_SOON, partial(self.end, code, reason))


def network_of(address: str) -> str:
    """Return what addresses of one client have in common: of IPv6 the /64.

    Some proxies forward a port with the address, which is another one each time.
    """
    with_port = _WITH_PORT.fullmatch(address)
    if with_port is not None:
        address = with_port[1] or with_port[2]
    try:
        parsed = ip_address(address)
    except ValueError:
        return address[:_LONGEST]  # of no network that is known here
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        if parsed in _NAT64:
            return str(IPv4Address(int(parsed) & 0xFFFF_FFFF))
        return f"{IPv6Address(int(parsed) & _NETWORK)}/64"
    return str(parsed)
