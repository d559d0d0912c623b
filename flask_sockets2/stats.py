"""Counters of this process, by route and by channel prefix."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any

__all__ = ["LIMITS", "ChannelCounters", "Counters", "RouteCounters"]

LIMITS = (
    "max_connections",
    "max_connections_per_address",
    "max_connections_per_user",
    "max_handshake_rate",
    "max_handshake_rate_per_address",
)
"""Limits that may refuse a request for a connection; settings without their prefix."""

_MOST_PREFIXES = 100
_OTHER = "other"


@dataclass(slots=True)
class RouteCounters:
    """Counts of one route.

    :ivar opened: connections accepted so far.
    :ivar closed: accepted connections that have ended.
    :ivar messages_in: messages from clients.
    :ivar messages_out: messages sent by handlers; messages of channels are counted by channel.
    :ivar bytes_in: bytes from clients, including frame headers.
    :ivar bytes_out: bytes of the frames of ``messages_out``.
    :ivar slowed: times that a client had to wait because it exceeded ``max_message_rate``.
    """

    opened: int = 0
    closed: int = 0
    messages_in: int = 0
    messages_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    slowed: int = 0


@dataclass(slots=True)
class ChannelCounters:
    """Counts of the channels with one prefix.

    :ivar published: messages published by this process.
    :ivar publish_errors: messages that could not be published; the error was raised or logged.
    :ivar delivered: messages for clients, counted once for each client, even if they are dropped
        or coalesced later.
    :ivar bytes_out: bytes of the delivered messages.
    :ivar dropped: messages not sent to a slow client, by the policy ``drop_oldest``.
    :ivar coalesced: messages replaced by a newer one with the same key.
    :ivar slow_disconnects: clients closed with 1013 because they were too slow.
    :ivar replays: subscriptions that began with messages of the history.
    :ivar replayed: messages of the history that were sent to these subscriptions.
    :ivar gaps: times that a client was told of lost messages.
    """

    published: int = 0
    publish_errors: int = 0
    delivered: int = 0
    bytes_out: int = 0
    dropped: int = 0
    coalesced: int = 0
    slow_disconnects: int = 0
    replays: int = 0
    replayed: int = 0
    gaps: int = 0


@dataclass(slots=True)
class Counters:
    """All counts of one application in this process."""

    routes: dict[str, RouteCounters] = field(default_factory=dict)
    channels: dict[str, ChannelCounters] = field(default_factory=dict)
    broker_reconnects: int = 0
    #: Event streams opened so far, and event streams that have ended.
    streams_opened: int = 0
    streams_closed: int = 0
    #: Refused requests for a connection, by the limit that was reached.
    refused: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LIMITS, 0))
    #: Connections ended by :meth:`~flask_sockets2.Sockets.disconnect`.
    disconnected: int = 0
    #: Connections evicted because all connections together held too many bytes.
    evicted: int = 0

    def of_route(self, rule: str) -> RouteCounters:
        """Return the counts of a route."""
        counters = self.routes.get(rule)
        return counters or self.routes.setdefault(rule, RouteCounters())

    def of_channel(self, name: str) -> ChannelCounters:
        """Return the counts of a channel's prefix, the part before the first colon.

        Users may choose channel names, so the number of prefixes is limited. If there are more, the
        others are counted together.
        """
        prefix = name.partition(":")[0]
        counters = self.channels.get(prefix)
        if counters is None:
            if len(self.channels) >= _MOST_PREFIXES:
                prefix = _OTHER
            counters = self.channels.setdefault(prefix, ChannelCounters())
        return counters

    def as_dict(self) -> dict[str, Any]:
        """Return all counts by name, with a dictionary for each route and channel prefix."""
        return {
            "routes": {rule: _as_dict(counters) for rule, counters in self.routes.items()},
            "channels": {prefix: _as_dict(c) for prefix, c in self.channels.items()},
            "broker_reconnects": self.broker_reconnects,
            "streams_opened": self.streams_opened,
            "streams_closed": self.streams_closed,
            "refused": dict(self.refused),
            "disconnected": self.disconnected,
            "evicted": self.evicted,
        }

    def totals(self) -> dict[str, int]:
        """Return each count over all routes, prefixes and limits; any thread may ask."""
        all_of: list[RouteCounters | ChannelCounters] = [RouteCounters(), ChannelCounters()]
        all_of += [*self.routes.values()]
        all_of += [*self.channels.values()]
        total: Counter[str] = Counter()
        for counters in all_of:
            total.update(_as_dict(counters))
        return {
            **total,
            "broker_reconnects": self.broker_reconnects,
            "streams_opened": self.streams_opened,
            "streams_closed": self.streams_closed,
            "refused": sum(self.refused.values()),
            "disconnected": self.disconnected,
            "evicted": self.evicted,
        }


def _as_dict(counters: RouteCounters | ChannelCounters) -> dict[str, int]:
    return {counter.name: getattr(counters, counter.name) for counter in fields(counters)}
