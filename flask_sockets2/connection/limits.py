"""Limits: sizes, timeouts and rates of one connection, each with its default."""

from __future__ import annotations

from dataclasses import dataclass

from ..brokers.base import MAX_MESSAGE_SIZE
from ..fanout.outbox import DISCONNECT, POLICIES
from ..settings import BYTES, SECONDS, SWITCH, Kind, number, or_none, setting

__all__ = ["MAX_BUFFERED", "Limits"]

MAX_BUFFERED = 256 * 2**20
"""Default limit on the bytes that all connections of an application hold in a process."""

_POLICY = Kind("policy", f"one of {', '.join(POLICIES)}", POLICIES.__contains__)
# One read brings up to 64 messages, which take about a minute at the lowest rate.
_RATE = or_none(number("messages/s", least=1))


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one connection; sizes in bytes, times in seconds.

    :param max_message_size: A larger message, once decompressed, closes the connection with 1009;
        publishing one raises ``ValueError``.
    :param receive_buffer: Memory for unread messages; if it is full, the client has to wait.
    :param send_buffer: Memory for messages that the network has not taken; if it is full,
        ``ws.send()`` waits, and channels do as ``SOCKETS_SLOW_CLIENT`` says.
    :param send_timeout: Time for which ``ws.send()`` may wait for room, and a client may take
        nothing, before the connection is dropped.
    :param close_timeout: Time for the closing handshake, once the client has taken all earlier
        messages.
    :param ping_interval: Time between two pings; ``None`` for no pings.
    :param ping_timeout: Time for a sign of life after a ping, before the connection is closed with
        1011; ``None`` for no limit.
    :param compression: Whether to agree to permessage-deflate (RFC 7692) if a client offers it.
    :param slow_client: Policy for a client that does not take the messages of its channels:
        ``disconnect``, ``drop_oldest`` or ``coalesce``, see ``docs/channels.rst``.
    :param max_message_rate: Messages that one client may send, pings, pongs and small fragments
        included; a faster client has to wait.
    :param max_connection_age: After this time the connection is closed with 1001, or up to a fifth
        earlier: ``docs/limits.rst``.
    """

    max_message_size: int = setting("SOCKETS_MAX_MESSAGE_SIZE", MAX_MESSAGE_SIZE, BYTES)
    receive_buffer: int = setting("SOCKETS_RECEIVE_BUFFER", 2**20, BYTES)
    send_buffer: int = setting("SOCKETS_SEND_BUFFER", 2**20, BYTES)
    send_timeout: float = setting("SOCKETS_SEND_TIMEOUT", 30.0, SECONDS)
    close_timeout: float = setting("SOCKETS_CLOSE_TIMEOUT", 5.0, SECONDS)
    ping_interval: float | None = setting("SOCKETS_PING_INTERVAL", 25.0, or_none(SECONDS))
    ping_timeout: float | None = setting("SOCKETS_PING_TIMEOUT", 20.0, or_none(SECONDS))
    compression: bool = setting("SOCKETS_COMPRESSION", False, SWITCH)
    slow_client: str = setting("SOCKETS_SLOW_CLIENT", DISCONNECT, _POLICY)
    max_message_rate: float | None = setting("SOCKETS_MAX_MESSAGE_RATE", None, _RATE)
    max_connection_age: float | None = setting("SOCKETS_MAX_CONNECTION_AGE", None, or_none(SECONDS))

    @property
    def most_buffered(self) -> int:
        """Bytes that one connection may hold: unread, unsent, arriving and waiting to be sent."""
        return self.receive_buffer + self.send_buffer + 2 * self.max_message_size
