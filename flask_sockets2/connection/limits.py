"""Limits of one connection, each with its default; and what is a number that may limit anything."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LONGEST", "MAX_BUFFERED", "MOST", "Limits", "is_number", "shown"]

MAX_BUFFERED = 256 * 2**20
"""Bytes that all connections of an application hold in a process, by default."""

LONGEST = 10**9
"""Seconds, some thirty years: the system's calls cannot wait for much longer."""

MOST = 2**53
"""Up to it whole numbers are exact in JSON, in Lua and as floats."""

_SECRETIVE = ("://", "@")  # in what may be the URL of a server, with a password


def is_number(value: object, *, whole: bool = False) -> bool:
    """Tell whether a value can be calculated with: no bool, not NaN, and neither it nor one divided
    by it is infinite.

    :param whole: fractions and floats do not count.
    """
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        return False
    return value == 0 or 1 / MOST <= abs(value) <= MOST


def shown(value: object) -> str:
    """Return a value as an error may show it; of a long one, or one like a URL, the type alone."""
    text = repr(value)
    hidden = len(text) > 100 or any(each in text for each in _SECRETIVE)
    return type(value).__name__ if hidden else text


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one connection; sizes in bytes, times in seconds.

    :param max_message_size: of one message, after decompression; beyond it 1009.
    :param receive_buffer: of memory for messages nobody has taken yet; beyond it nothing more is
        read.
    :param send_buffer: kept back for a slow peer; beyond it :meth:`Connection.send` waits, and for
        messages of channels ``slow_client`` says what happens.
    :param send_timeout: how long a send may wait for room, and how long a peer may take nothing,
        before it is dropped.
    :param close_timeout: for the closing handshake, once all before it has been taken.
    :param ping_interval: between pings, None for none.
    :param ping_timeout: for a sign of life after a ping, None for as long as it takes.
    :param compression: agree to permessage-deflate where the client offers it (RFC 7692).
    :param slow_client: ``disconnect``, ``drop_oldest`` or ``coalesce``, see ``fanout/outbox.py``.
    :param max_message_rate: messages a second from the peer, pings, pongs and small fragments
        among them; beyond it reading pauses.
    :param max_connection_age: after at most so long it is closed with 1001, None for never.
    """

    max_message_size: int = 2**20
    receive_buffer: int = 2**20
    send_buffer: int = 2**20
    send_timeout: float = 30.0
    close_timeout: float = 5.0
    ping_interval: float | None = 25.0
    ping_timeout: float | None = 20.0
    compression: bool = False
    slow_client: str = "disconnect"
    max_message_rate: float | None = None
    max_connection_age: float | None = None

    @property
    def most_buffered(self) -> int:
        """Bytes that one connection may hold: unread, unsent, arriving and waiting to be sent."""
        return self.receive_buffer + self.send_buffer + 2 * self.max_message_size
