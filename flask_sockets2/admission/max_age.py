"""Ages: closes a connection that reaches its maximum age; the client reconnects, authorized anew.

One timer a second serves all connections of a hub or selector thread. Ages differ by up to a fifth.
So if clients connect all at once, as after a restart, they are not closed at once.
"""

from __future__ import annotations

import logging
from math import ceil
from random import SystemRandom
from time import monotonic
from typing import Any

from ..transports.clock import Clock
from .guests import Guest

__all__ = ["Ages"]

logger = logging.getLogger("flask_sockets2.sockets")

_random = SystemRandom()  # not the program's generator, which may have been seeded

_STEP = 1.0  # seconds between two checks
_YOUNGEST = 0.8  # fraction of the maximum age at which the first connections are closed


class Ages:
    """Ends guests of one hub or selector thread when they reach their maximum age.

    This object does not refer to the thread's clock, because a hub ends with its thread.

    :param lock: guards all attributes; callers of :meth:`add` and :meth:`remove` hold this lock.
    """

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self._due: dict[int, set[Guest]] = {}  # by the second
        self._looked = 0  # the last second that was checked
        self._ticking = False

    def add(self, one: Guest, age: float) -> None:
        """End a guest at 80 to 100 % of ``age`` seconds. If the clock is a hub, call this in its
        thread."""
        now = monotonic()
        one.due = ceil(now + age * _random.uniform(_YOUNGEST, 1.0))
        self._due.setdefault(one.due, set()).add(one)
        if not self._ticking:
            self._ticking = True
            self._looked = int(now)
            self._tick_later(one.clock)

    def remove(self, one: Guest) -> None:
        """Forget a guest that has ended."""
        due = self._due.get(one.due)
        if due is not None:
            due.discard(one)
            if not due:
                del self._due[one.due]

    def _tick_later(self, clock: Clock) -> None:
        clock.call_later(_STEP, lambda: self._tick(clock))

    def _tick(self, clock: Clock) -> None:
        with self._lock:
            now = int(monotonic())
            seconds = range(self._looked + 1, now + 1)
            of_age = [one for second in seconds for one in self._due.pop(second, ())]
            self._looked = now
            go_on = self._ticking = bool(self._due)
        if go_on:
            self._tick_later(clock)
        for one in of_age:
            try:
                one.come_of_age()
            except Exception:  # the others must still be ended
                logger.exception("an old connection could not be ended")
