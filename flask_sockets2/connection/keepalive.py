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
from typing import NamedTuple, Protocol

from ..transports.clock import Clock, Timer

__all__ = ["Keepalive", "Kept", "keepalive_of"]

_GRANULARITY = 0.5  # seconds; what is due within it is done in one tick


class Kept(Protocol):
    """What is kept alive."""

    @property
    def ping_interval(self) -> float | None:
        """Seconds between two pings; None for none."""

    @property
    def ping_timeout(self) -> float | None:
        """Seconds after a ping in which something must come; None for ever."""

    def heard(self) -> int:
        """A number that changes whenever something comes from the peer."""

    def keepalive_ping(self) -> None:
        """Send a ping."""

    def keepalive_failed(self) -> None:
        """The peer is dead."""


class _Ping(NamedTuple):
    """A ping: what had been heard when it was sent, and until when something must be."""

    heard: int
    deadline: float


class Keepalive:
    """Pings connections and ends those that do not answer.

    :param call_later: of the hub or the selector thread, in which all of this runs.
    """

    def __init__(self, call_later: Callable[[float, Callable[[], None]], Timer]) -> None:
        self._call_later = call_later
        # By delay, who is due after it, first come first: the time, and the unanswered ping
        self._queues: dict[float, OrderedDict[Kept, tuple[float, _Ping | None]]] = {}
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
                connection, (_, ping) = queue.popitem(last=False)
                self._due(connection, ping, until)

    def _due(self, connection: Kept, ping: _Ping | None, now: float) -> None:
        """See whether a connection has answered its ping, and send it the next when it is time.

        An answer that is due before the next ping is looked for by itself; one that is not, at
        the pings in between.
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
    """Return the one keepalive of a hub or selector thread; only there it may be used."""
    if clock.keepalive is None:
        clock.keepalive = Keepalive(clock.call_later)
    keepalive: Keepalive = clock.keepalive
    return keepalive
