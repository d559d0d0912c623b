"""What is counted, by route and by channel prefix, in this process."""

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
"""What a request for a connection may be refused by; settings without their prefix."""

_MOST_PREFIXES = 100
_OTHER = "other"


@dataclass(slots=True)
class RouteCounters:
    """Counts of one route.

    :ivar opened: connections accepted, ever.
    :ivar closed: of them, those that have ended.
    :ivar messages_in: messages from clients.
    :ivar messages_out: messages sent by handlers; those of channels are counted there.
    :ivar bytes_in: bytes from clients, frames and all.
    :ivar bytes_out: bytes of the frames of ``messages_out``.
    :ivar slowed: times that a client had to wait, sending more than ``max_message_rate``.
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
    :ivar publish_errors: messages that it could not publish, whether that was raised or logged.
    :ivar delivered: messages for connections, one for each client; also those that turn out to be
        dropped or coalesced.
    :ivar bytes_out: bytes of those.
    :ivar dropped: messages that a slow client was not sent, by the policy ``drop_oldest``.
    :ivar coalesced: messages that a newer one with the same key took the place of.
    :ivar slow_disconnects: clients closed with 1013 since they were too slow.
    :ivar replays: subscriptions that began with messages of the history.
    :ivar replayed: messages of the history that were sent so.
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
    #: Event streams, ever, and of them those that have ended.
    streams_opened: int = 0
    streams_closed: int = 0
    #: Requests for a connection that were refused, by the limit that did.
    refused: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LIMITS, 0))
    #: Connections ended by :meth:`~flask_sockets2.Sockets.disconnect`.
    disconnected: int = 0
    #: Connections that were evicted, since all of them together held too much.
    evicted: int = 0

    def of_route(self, rule: str) -> RouteCounters:
        """Return the counts of a route."""
        counters = self.routes.get(rule)
        return counters or self.routes.setdefault(rule, RouteCounters())

    def of_channel(self, name: str) -> ChannelCounters:
        """Return the counts of a channel's prefix: what stands before the first colon.

        Names come from the application's users as well, so there is a limit to how many prefixes
        are told apart.
        """
        prefix = name.partition(":")[0]
        counters = self.channels.get(prefix)
        if counters is None:
            if len(self.channels) >= _MOST_PREFIXES:
                prefix = _OTHER
            counters = self.channels.setdefault(prefix, ChannelCounters())
        return counters

    def as_dict(self) -> dict[str, Any]:
        """Return all counts by name; routes and prefixes by theirs."""
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
