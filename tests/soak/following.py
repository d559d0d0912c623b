"""What one client sees of its channels, whatever brings it there, noted for the checker."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .checker import GAP, MESSAGE, SUBSCRIBED, Event, Record
from .publisher import read

if TYPE_CHECKING:
    from .swarm import Seen

__all__ = ["Following"]


class Following:
    """The records of a client.

    :ivar last: the position that it has seen, by channel; None where it was never subscribed.
    """

    def __init__(self, seen: Seen, client: str, channels: Iterable[str]) -> None:
        self._seen = seen
        self.records = {channel: Record(client, channel) for channel in channels}
        self.last: dict[str, str | None] = dict.fromkeys(self.records)
        self._replayed_at = 0.0  # the connection that has begun with a replay

    def subscribed(self, channel: str, position: str) -> None:
        """Note the position that a subscription began at; only the first one counts."""
        if self.last[channel] is None:
            self.last[channel] = position
            epoch, offset = _split(position)
            self.records[channel].events.append(Event(SUBSCRIBED, epoch, offset))

    def gap(self, channel: str, position: str) -> None:
        self._seen.counts["gaps told"] += 1
        self.last[channel] = position
        self.records[channel].events.append(Event(GAP, *_split(position)))

    def message(
        self, channel: str, position: str, data: Any, encoding: str | None, since: float
    ) -> None:
        """Note a message.

        :param since: when the connection began that brought it.
        """
        seen, now = self._seen, time.monotonic()
        self.last[channel] = position
        name, publisher, serial, when = read(data, encoding)
        event = Event(MESSAGE, *_split(position), sys.intern(name), publisher, serial)
        self.records[channel].events.append(event)
        seen.deliveries[channel.partition(":")[0]] += 1
        if when < since:
            seen.counts["messages replayed"] += 1
            seen.counts["replays"] += self._replayed_at != since
            self._replayed_at = since
            seen.worst_catch_up = max(seen.worst_catch_up, now - since)
        else:
            seen.worst_delay = max(seen.worst_delay, now - when)

    def is_level(self, newest: dict[str, str]) -> bool:
        return all(self.last[name] == newest.get(name, self.last[name]) for name in self.records)

    def note(self, connected: bool) -> None:
        """Pass the records on.

        :param connected: whether it has to be level.
        """
        for record in self.records.values():
            record.connected = connected
            self._seen.records.append(record)


def _split(position: str) -> tuple[str, int]:
    epoch, _, offset = position.partition("-")
    return sys.intern(epoch), int(offset)
