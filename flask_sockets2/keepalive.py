"""Keepalive: one timer for all connections that share a hub or a selector thread.

Each connection is pinged every ``ping_interval`` seconds, so that routers which cut idle
connections see traffic, in both directions. It fails with 1011 when nothing at all has come in the
``ping_timeout`` seconds after a ping.

Connections with the same interval stand in one queue in the order in which they are due, so a tick
looks at those that are due and at no other.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from time import monotonic
from typing import Protocol

from .transports.base import Timer

__all__ = ["Keepalive", "Kept"]

_GRANULARITY = 0.5  # seconds; what is due within it is done in one tick


class Kept(Protocol):
    """What is kept alive."""

    ping_interval: float | None
    ping_timeout: float | None

    def heard(self) -> int:
        """A number that changes whenever something comes from the peer."""

    def keepalive_ping(self) -> None:
        """Send a ping."""

    def keepalive_failed(self) -> None:
        """The peer is dead."""


class Keepalive:
    """Pings connections and ends those that do not answer.

    :param call_later: of the hub or the selector thread, in which all of this runs.
    """

    def __init__(self, call_later: Callable[[float, Callable[[], None]], Timer]) -> None:
        self._call_later = call_later
        # By delay, who is due after it, first come first: (time, what it had heard at the ping)
        self._queues: dict[float, OrderedDict[Kept, tuple[float, int | None]]] = {}
        self._timer: Timer | None = None
        self._timer_due = 0.0
        self._ticking = False

    def watch(self, connection: Kept) -> None:
        """Keep a connection alive until it is closed."""
        if connection.ping_interval:
            self._put(connection.ping_interval, connection, None)

    def forget(self, connection: Kept) -> None:
        """Let go of a connection that has ended."""
        for queue in self._queues.values():
            queue.pop(connection, None)

    def _put(self, delay: float, connection: Kept, heard: int | None) -> None:
        due = monotonic() + delay
        self._queues.setdefault(delay, OrderedDict())[connection] = (due, heard)
        if not self._ticking and (self._timer is None or due < self._timer_due - _GRANULARITY):
            self._schedule(due)

    def _schedule(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_due = due
        self._timer = self._call_later(max(0.0, due - monotonic()), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._ticking = True  # the next tick is known only when all that is due was looked at
        try:
            self._look_at_due(monotonic())
        finally:
            self._ticking = False
            self._queues = {delay: queue for delay, queue in self._queues.items() if queue}
            if self._queues:
                self._schedule(min(next(iter(q.values()))[0] for q in self._queues.values()))

    def _look_at_due(self, now: float) -> None:
        until = now + min(_GRANULARITY, min(self._queues, default=0.0) / 10)
        for queue in list(self._queues.values()):
            while queue and next(iter(queue.values()))[0] <= until:
                connection, (_, heard) = queue.popitem(last=False)
                self._due(connection, heard)

    def _due(self, connection: Kept, heard: int | None) -> None:
        """Ping a connection, or see whether it has answered."""
        interval, timeout = connection.ping_interval, connection.ping_timeout
        if heard is not None and connection.heard() == heard:
            connection.keepalive_failed()
            return
        if heard is not None:
            if interval:
                self._put(max(interval - (timeout or 0.0), 0.01), connection, None)
            return
        heard = connection.heard()
        connection.keepalive_ping()
        if timeout:
            self._put(timeout, connection, heard)
        elif interval:
            self._put(interval, connection, None)
