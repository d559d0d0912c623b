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

_ROOM_TIMEOUT = 5.0  # most seconds that a publisher in another thread waits
_ROOM_STEP = 0.002  # seconds between two checks
_SLICE = 0.02  # seconds of writing after which other greenlets run
_SLICE_CHECK = 64  # writes between two looks at the clock


class WriterClock(Protocol):
    """A hub or selector thread."""

    def call_soon(self, function: Callable[[], None]) -> None:
        """Call a function in this thread in the next turn; from any thread."""

    def inside(self) -> bool:
        """Whether the caller runs in this thread."""

    #: Whether other threads also write to the clock's sockets, under the transports' locks.
    threaded: bool
    #: Whether a wait for the network in one greenlet would stop all others.
    blocks: bool


class TurnWriter:
    """Collects the messages for one hub or selector thread, and writes them once a turn.

    :param clock: the thread in which the sockets are written.
    :param lock: the fan-out's lock.
    """

    def __init__(self, clock: WriterClock, lock: Any) -> None:
        self.clock = clock
        self._lock = lock
        self._scheduled = False
        self._seals: dict[Callable[[], None], None] = {}  # of audiences with pending messages
        #: Batches to write, in this order; the lock guards them.
        self.batches: list[Batch] = []
        #: Bytes of messages that wait for the next turn.
        self.pending = 0
        # Writes still to do, and whether _write() runs now; only the clock's thread uses both.
        self._writes: Iterator[tuple[Outlet, tuple[Batch, ...]]] | None = None
        self._busy = False

    def note(self, seal: Callable[[], None], size: int) -> None:
        """Schedule a write for an audience with pending messages; under the lock.

        :param seal: function that adds the pending messages to the batches before the next write.
        """
        self._seals[seal] = None
        self.pending += size
        self._schedule()

    def add(self, batch: Batch) -> None:
        """Schedule a batch behind the others; under the lock."""
        self.batches.append(batch)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self.clock.call_soon(self._flush)

    def _flush(self) -> None:
        """Write the messages so far, for a limited time; the rest in the next turn."""
        with self._lock:
            self._scheduled = False
        if self._busy:
            return  # the write that is running schedules the rest
        if self._writes is None:
            self._gather()
        self._write(monotonic() + _SLICE)
        self._schedule_rest()

    def flush_all(self) -> None:
        """Write all messages so far."""
        if not self._busy:
            self._write(inf)
            self._gather()
            self._write(inf)
            self._schedule_rest()

    def _schedule_rest(self) -> None:
        """Schedule a flush if messages are left, or were added when a flush was scheduled."""
        with self._lock:
            if self._writes is not None or self._seals or self.batches:
                self._schedule()

    def wait_for_room(self, most: int) -> None:
        """Wait in another thread until at most ``most`` bytes are pending, or some seconds."""
        deadline = monotonic() + _ROOM_TIMEOUT
        pause = native_lock()
        pause.acquire()
        while self.pending > most and monotonic() < deadline:
            pause.acquire(timeout=_ROOM_STEP)  # sleeps the thread even if gevent patched sleep()

    def _gather(self) -> None:
        """Take all pending messages and batches, to be written."""
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
        """Write until nothing is left, or the deadline has passed."""
        writes = self._writes
        if writes is None:
            return
        self._busy = True  # a write may end a connection, whose signal's receiver may publish
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
                except Exception:  # our error: the other clients must still get their messages
                    logger.exception("writing messages of channels to a client failed")
                if not number % _SLICE_CHECK and monotonic() > deadline:
                    return
            self._writes = None
        finally:
            self._busy = False


def _join(batches: tuple[Batch, ...]) -> bytes:
    """Return the bytes of one write."""
    if len(batches) == 1:
        return batches[0].join()
    return b"".join([batch.join() for batch in batches])


def _by_outlet(batches: list[Batch]) -> dict[Outlet, tuple[Batch, ...]]:
    """Return the batches for each client."""
    pieces: dict[Outlet, tuple[Batch, ...]] = {}
    for batch in batches:
        only = (batch,)
        for outlet in batch.outlets:
            before = pieces.get(outlet)
            pieces[outlet] = only if before is None else (*before, batch)
    return pieces
