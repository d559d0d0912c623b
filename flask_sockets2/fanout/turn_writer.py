"""TurnWriter: one write for each client in one turn of a hub or selector thread."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from math import inf
from time import monotonic
from typing import Any, Protocol

from ..concurrency.native_lock import native_lock
from .outbox import Batch, Outlet

__all__ = ["TurnWriter", "WriterClock"]

logger = logging.getLogger("flask_sockets2.channels")

_ROOM_TIMEOUT = 5.0  # seconds that another thread waits for room, at most
_ROOM_STEP = 0.002  # seconds between two looks
_SLICE = 0.02  # seconds of writing after which the hub sees to others
_SLICE_CHECK = 64  # writes between two looks at the clock


class WriterClock(Protocol):
    """A hub or selector thread."""

    def call_soon(self, function: Callable[[], None]) -> None:
        """Call a function there in the next turn; from any thread."""

    def inside(self) -> bool:
        """Whether this is its thread."""

    #: Whether other threads write to its sockets, too, under the transports' locks.
    threaded: bool
    #: Whether waiting for a network in one of its greenlets would stop all others.
    blocks: bool


class TurnWriter:
    """What is to be written in one hub or selector thread.

    :param clock: that thread; only there the sockets are written.
    :param lock: the fan-out's.
    """

    def __init__(self, clock: WriterClock, lock: Any) -> None:
        self.clock = clock
        self._lock = lock
        self._scheduled = False
        self._seals: dict[Callable[[], None], None] = {}  # of audiences with something pending
        #: To be written, in this order; the lock guards them.
        self.batches: list[Batch] = []
        #: Bytes of messages that wait for their turn.
        self.pending = 0
        # Under way, and whether just now; only the clock's thread looks at them.
        self._writes: Iterator[tuple[Outlet, tuple[Batch, ...]]] | None = None
        self._busy = False

    def note(self, seal: Callable[[], None], size: int) -> None:
        """Something is pending in an audience; under the lock.

        :param seal: adds what is pending to the batches; called before the next write.
        """
        self._seals[seal] = None
        self.pending += size
        self._schedule()

    def add(self, batch: Batch) -> None:
        """Write a batch, after those before it; under the lock."""
        self.batches.append(batch)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self.clock.call_soon(self._flush)

    def _flush(self) -> None:
        """Write what has come up to now, for a while; the rest in the next turn."""
        with self._lock:
            self._scheduled = False
        if self._busy:
            return  # who writes just now sees to the rest
        if self._writes is None:
            self._gather()
        self._write(monotonic() + _SLICE)
        self._schedule_rest()

    def flush_all(self) -> None:
        """Write everything that has come up to now."""
        if not self._busy:
            self._write(inf)
            self._gather()
            self._write(inf)
            self._schedule_rest()

    def _schedule_rest(self) -> None:
        """See to what is left, and to what came meanwhile and found a flush scheduled."""
        with self._lock:
            if self._writes is not None or self._seals or self.batches:
                self._schedule()

    def wait_for_room(self, most: int) -> None:
        """Wait, in another thread, until no more than so many bytes wait; a few seconds at most."""
        deadline = monotonic() + _ROOM_TIMEOUT
        pause = native_lock()
        pause.acquire()
        while self.pending > most and monotonic() < deadline:
            pause.acquire(timeout=_ROOM_STEP)  # a sleep of the thread, whatever is patched

    def _gather(self) -> None:
        """Take everything that has come up to now, to be written."""
        with self._lock:
            for seal in self._seals:
                seal()
            self._seals.clear()
            batches, self.batches = self.batches, []
            self.pending = 0
        if len(batches) == 1:
            only = (batches[0],)
            self._writes = iter([(outlet, only) for outlet in batches[0].outlets])
        elif batches:
            self._writes = iter(_by_outlet(batches).items())

    def _write(self, deadline: float) -> None:
        """Write until everything is written, or the time is over."""
        writes = self._writes
        if writes is None:
            return
        self._busy = True  # a write may end a connection, and who is told of it may publish
        one_thread = not self.clock.threaded
        before, data = None, b""
        try:
            for number, (outlet, batches) in enumerate(writes, 1):
                try:
                    if batches is not before:
                        before, data = batches, _join(batches)
                    transport = outlet.transport
                    if outlet.closed or not data:
                        pass
                    elif one_thread and not transport.buffered and len(data) <= outlet.chunk:
                        transport.write(data)
                    else:
                        outlet.put(data, batches)
                except Exception:  # ours; one client's error must not cost the others theirs
                    logger.exception("writing messages of channels to a client failed")
                if not number % _SLICE_CHECK and monotonic() > deadline:
                    return
            self._writes = None
        finally:
            self._busy = False


def _join(batches: tuple[Batch, ...]) -> bytes:
    """The bytes of one write."""
    if len(batches) == 1:
        return batches[0].join()
    return b"".join([batch.join() for batch in batches])


def _by_outlet(batches: list[Batch]) -> dict[Outlet, tuple[Batch, ...]]:
    """What each client gets of several batches."""
    pieces: dict[Outlet, tuple[Batch, ...]] = {}
    for batch in batches:
        only = (batch,)
        for outlet in batch.outlets:
            before = pieces.get(outlet)
            pieces[outlet] = only if before is None else (*before, batch)
    return pieces
