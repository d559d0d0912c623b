"""Pool of a server's greenlets; connections and streams that outlive their request count, too."""

from __future__ import annotations

from typing import Any

import gevent
from gevent.pool import Group, Pool

from ..connection.lifecycle import Lifecycle
from .wsgi_stream import Stream

__all__ = ["HandlerPool", "Heir"]

Heir = Lifecycle | Stream
"""A WebSocket or stream that outlives its request."""


class HandlerPool(Pool):  # gevent's stubs leave out what subclasses and its own servers use
    """Pool of handlers, whose size also limits connections that outlive their request.

    A connection that outlives its request keeps the place of its greenlet. If the pool is full, the
    server waits on the semaphore, so the semaphore must not be released with the greenlet.
    """

    def __init__(self, size: int | None) -> None:
        super().__init__(size)
        self._heirs: dict[Any, Heir] = {}  # by greenlets that have not ended yet
        self._kept: set[Heir] = set()  # heirs whose greenlet has ended

    def keep(self, heir: Heir) -> None:
        """Give the place of the current greenlet to ``heir``."""
        self._heirs[gevent.getcurrent()] = heir

    def forget(self, heir: Heir) -> None:
        """Free the place of ``heir``."""
        if heir in self._kept:
            self._kept.remove(heir)
            self._semaphore.release()  # type: ignore[attr-defined]
            return
        self._heirs = {g: other for g, other in self._heirs.items() if other is not heir}

    def _discard(self, greenlet: Any) -> None:
        heir = self._heirs.pop(greenlet, None)
        if heir is None:
            super()._discard(greenlet)  # type: ignore[misc]
        else:
            self._kept.add(heir)
            Group._discard(self, greenlet)  # type: ignore[attr-defined]

    def free_count(self) -> int:
        free: int = super().free_count()
        return free if self.size is None else max(0, free - len(self._kept))
