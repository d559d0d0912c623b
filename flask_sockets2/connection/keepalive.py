"""Keepalive: one timer that pings all connections of a hub or a selector thread.

Each connection is pinged every ``ping_interval`` seconds, so that routers which cut idle
connections see traffic, in both directions. A connection fails with 1011 if no bytes at all arrive
within ``ping_timeout`` seconds after a ping.

Connections with the same interval share one queue, ordered by due time. So a tick looks only at
connections that are due.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from time import monotonic
from typing import NamedTuple, Protocol

from ..transports.clock import Clock, Timer

__all__ = ["Keepalive", "Kept", "keepalive_of"]

_GRANULARITY = 0.5  # seconds; connections that are due this close together share a tick


class Kept(Protocol):
    """A connection, as far as the keepalive needs it."""

    @property
    def ping_interval(self) -> float | None:
        """Seconds between two pings; None for no pings."""

    @property
    def ping_timeout(self) -> float | None:
        """Seconds after a ping within which bytes must arrive; None for no limit."""

    def heard(self) -> int:
        """Return a number that changes whenever bytes come from the peer."""

    def keepalive_ping(self) -> None:
        """Send a ping."""

    def keepalive_failed(self) -> None:
        """End the connection, since the peer has not answered."""


class _Ping(NamedTuple):
    """A ping that awaits its answer: ``heard()`` when the ping was sent, and the deadline."""

    heard: int
    deadline: float


class Keepalive:
    """Pings connections and ends the ones that do not answer.

    :param call_later: method of the hub or the selector thread, in which all methods here run.
    """

    def __init__(self, call_later: Callable[[float, Callable[[], None]], Timer]) -> None:
        self._call_later = call_later
        # By delay: the connections in order of due time, each with that time and its open ping
        self._queues: dict[float, OrderedDict[Kept, tuple[float, _Ping | None]]] = {}
        self._timer: Timer | None = None
        self._timer_due = 0.0
        self._ticking = False

    def watch(self, connection: Kept) -> None:
        """Ping a connection from now on, until :meth:`forget`."""
        if connection.ping_interval:
            self._put(connection.ping_interval, connection, None)

    def forget(self, connection: Kept) -> None:
        """Remove a connection that has ended."""
        for queue in self._queues.values():
            queue.pop(connection, None)

    def _put(self, delay: float, connection: Kept, ping: _Ping | None) -> None:
        due = monotonic() + delay
        self._queues.setdefault(delay, OrderedDict())[connection] = (due, ping)
        if not self._ticking and (self._timer is None or due < self._timer_due - _GRANULARITY):
            self._schedule(due)

    def _schedule(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_due = due
        self._timer = self._call_later(max(0.0, due - monotonic()), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._ticking = True  # the time of the next tick is known only at the end of this one
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
                connection, (_, ping) = queue.popitem(last=False)
                self._due(connection, ping, until)

    def _due(self, connection: Kept, ping: _Ping | None, now: float) -> None:
        """Check whether a connection has answered its ping, and send the next ping in time.

        If ``ping_timeout`` is shorter than ``ping_interval``, the check has a tick of its own.
        Otherwise the check happens at the pings in between.
        """
        interval, timeout = connection.ping_interval, connection.ping_timeout
        if not interval:
            return
        answered = ping is None or connection.heard() != ping.heard
        if ping is not None and not answered and ping.deadline <= now:
            connection.keepalive_failed()
            return
        if ping is not None and ping.deadline <= now and timeout and timeout < interval:
            self._put(interval - timeout, connection, None)
            return
        if timeout and answered:
            ping = _Ping(connection.heard(), monotonic() + timeout)
        connection.keepalive_ping()
        self._put(min(interval, timeout or interval), connection, ping)


def keepalive_of(clock: Clock) -> Keepalive:
    """Return the one keepalive of a hub or selector thread, for use in that thread only."""
    if clock.keepalive is None:
        clock.keepalive = Keepalive(clock.call_later)
    keepalive: Keepalive = clock.keepalive
    return keepalive
