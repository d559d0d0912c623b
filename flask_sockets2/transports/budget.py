"""Budget: a limit on the bytes that all connections of an application hold in this process.

Each connection has limits of its own, but clients decide how many connections there are. A budget
counts the bytes that clients make the process hold: messages that handlers have not taken, parts of
messages that are still arriving, messages that handlers wait to send, and bytes that the kernel
does not accept. Bytes that several connections share are in memory once and count once.

As the total grows:

from three quarters of the limit
    If a connection has unread or unsent bytes, reading pauses until these are gone.
above the limit
    Connections are evicted until an eighth of the limit is free. Connections that hold more, and
    that have made no progress for longer, go first.

As the total falls, freed memory is returned to the system: see :func:`give_back`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Protocol

from ..concurrency.native_lock import native_rlock
from .clock import Clock

__all__ = ["UNCOUNTED", "Budget", "Share", "give_back"]

logger = logging.getLogger("flask_sockets2.transports")

STEP = 4096
"""Bytes; smaller changes of a connection's memory may be counted together."""

_LONGEST_STALL = 10.0  # seconds without progress; longer stalls weigh the same
_MUCH = 32 * 2**20  # bytes; most that the total falls by before memory is given back
_PAUSE = 1.0  # seconds until then, so that one call covers all connections that end meanwhile
_LOST = 5.0  # seconds after which a call is repeated: a hub may end before it makes the call


class Holder(Protocol):
    """A connection that holds bytes."""

    @property
    def clock(self) -> Clock:
        """The hub or the selector thread that serves it."""

    def evict(self) -> None:
        """End the connection and release its memory; called by its clock's thread."""


class Share:
    """The bytes that one connection holds.

    :param budget: the budget that counts these bytes.
    :param holder: the connection, which may be evicted if all connections hold too much.

    :ivar held: bytes; a message that other connections share counts in full here.
    :ivar since: time of the last progress: a release of bytes, or the first byte held.
    :ivar evicted: time at which the eviction was ordered; None before.
    """

    __slots__ = ("budget", "evicted", "held", "holder", "since")

    def __init__(self, budget: Budget, holder: Holder | None) -> None:
        self.budget = budget
        self.holder = holder
        self.held = 0
        self.since = 0.0
        self.evicted: float | None = None

    def count(self, size: int) -> None:
        """Count bytes that this connection alone holds; a negative size releases them."""
        if not size:
            return
        budget = self.budget
        with budget.lock:
            budget.add(self, size, size)

    def hold(self, data: bytes) -> None:
        """Count bytes that other connections may hold, too; each call needs a :meth:`release`."""
        budget = self.budget
        with budget.lock:
            times = budget.shared.get(id(data), 0)
            budget.shared[id(data)] = times + 1
            budget.add(self, len(data), 0 if times else len(data))

    def release(self, data: bytes) -> None:
        """Undo one :meth:`hold` of the same bytes object."""
        budget = self.budget
        with budget.lock:
            times = budget.shared[id(data)] - 1
            if times:
                budget.shared[id(data)] = times
            else:
                del budget.shared[id(data)]
            budget.add(self, -len(data), 0 if times else -len(data))


class Budget:
    """Counts the bytes that one application's connections hold in this process; thread-safe.

    :param limit: bytes.
    :param evicting: called before evictions with the number of connections and their bytes; by a
        hub or selector thread.

    :ivar total: bytes that all connections hold.
    :ivar shares: shares of the connections that hold any bytes.
    """

    def __init__(self, limit: float, evicting: Callable[[int, int], None] | None = None) -> None:
        self.limit = limit
        self.total = 0
        self.shares: set[Share] = set()
        #: Guards all attributes. Reentrant: the garbage collector may end connections anywhere.
        self.lock = native_rlock()
        #: Number of holds of each bytes object, by id; a held object is not freed.
        self.shared: dict[int, int] = {}
        self._evicting = evicting
        self._waiting: set[Callable[[], None]] = set()
        self._relieves_by = 0.0  # when the pending call counts as lost; 0 if none is pending
        self._gives_back_by = 0.0  # the same
        self._peak = 0  # highest total since memory was last given back

    @property
    def tight(self) -> bool:
        """Whether connections with unread or unsent bytes must pause reading."""
        return self.total > self.limit * 0.75

    def call_when_relaxed(self, function: Callable[[], None]) -> None:
        """Call a function once, when the budget is no longer tight.

        :param function: called by any thread, must not block; repeated requests count once.
        """
        with self.lock:
            self._waiting.add(function)

    def forget(self, function: Callable[[], None]) -> None:
        """Cancel a request of :meth:`call_when_relaxed`."""
        self._waiting.discard(function)

    def add(self, share: Share, size: int, real: int) -> None:
        """Count bytes; under the lock.

        :param size: bytes added to the share; negative if released.
        :param real: of these bytes, the ones that no other connection holds.
        """
        held = share.held = share.held + size
        if size > 0:
            if held == size:
                share.since = monotonic()
                self.shares.add(share)
        else:
            share.since = monotonic()
            if not held:
                self.shares.discard(share)
        total = self.total = self.total + real
        if real > 0:
            self._peak = max(self._peak, total)
            if total > self.limit:
                self._relieve_soon(share)
        elif real < 0:
            if self._peak - total >= min(_MUCH, self.limit * 0.25):
                self._give_back_soon(share)
            if self._waiting and total <= self.limit * 0.625:
                waiting, self._waiting = self._waiting, set()
                for function in waiting:
                    _call(function)

    # -- too much --------------------------------------------------------------------------

    def _relieve_soon(self, share: Share) -> None:
        now = monotonic()
        if share.holder is not None and now >= self._relieves_by:
            self._relieves_by = now + _LOST
            share.holder.clock.call_soon(self._relieve)

    def _relieve(self) -> None:
        """Evict connections until an eighth of the limit is free."""
        with self.lock:
            self._relieves_by = 0.0
            shares = self._chosen()
            held = sum(share.held for share in shares)
        if shares and self._evicting is not None:
            self._evicting(len(shares), held)
        for share in shares:
            if share.holder is not None:
                _call(partial(_evict, share.holder))
        if shares:
            with self.lock:  # other connections may still hold the same bytes
                if self.total > self.limit:
                    self._relieve_soon(shares[-1])

    def _chosen(self) -> list[Share]:
        """Choose connections to evict; under the lock."""
        if self.total <= self.limit:
            return []
        now = monotonic()
        excess = self.total - self.limit * 0.875
        for share in self.shares:  # some are being evicted already, in other threads
            if share.evicted is not None and now - share.evicted < _LOST:
                excess -= share.held
        chosen = []
        for share in sorted(self.shares, key=lambda share: _weight(share, now), reverse=True):
            if excess <= 0:
                break
            if share.evicted is None:
                share.evicted = now
                excess -= share.held
                chosen.append(share)
        return chosen

    # -- memory for the system -------------------------------------------------------------

    def _give_back_soon(self, share: Share) -> None:
        now = monotonic()
        if share.holder is not None and now >= self._gives_back_by:
            self._gives_back_by = now + _LOST
            clock = share.holder.clock
            clock.call_soon(lambda: clock.call_later(_PAUSE, self._give_back))

    def _give_back(self) -> None:
        with self.lock:
            self._gives_back_by = 0.0
            self._peak = self.total
        give_back()


def _weight(share: Share, now: float) -> float:
    """Return the gain of an eviction: a connection's bytes, which count more if it stalls."""
    return share.held * (1.0 + min(now - share.since, _LONGEST_STALL))


def _evict(holder: Holder) -> None:
    if holder.clock.inside():
        holder.evict()
    else:
        holder.clock.call_soon(holder.evict)


def _call(function: Callable[[], None]) -> None:
    try:
        function()
    except Exception:  # as from a hub that has ended; the other calls must still be made
        logger.exception("a connection could not be told of the memory that all of them hold")


_malloc_trim: Callable[[int], int] | None = None


def give_back() -> None:
    """Return freed memory to the system by glibc's ``malloc_trim``: a third of a ms for a MiB.

    glibc keeps freed memory for later use, and by itself returns only the end of its heap. The
    call is not moved to another thread: glibc locks the heap meanwhile, and the hub needs the heap.
    """
    global _malloc_trim
    if _malloc_trim is None:
        try:
            _malloc_trim = _find_malloc_trim()
        except (OSError, ImportError):  # all descriptors are in use; the next call tries again
            return
    _malloc_trim(0)


def _find_malloc_trim() -> Callable[[int], int]:
    """Return glibc's function; with another C library, a function that does nothing."""
    if sys.platform == "linux":
        from ctypes import CDLL  # imported late: most processes never need this

        try:
            found: Callable[[int], int] = CDLL(None).malloc_trim
            return found
        except (OSError, AttributeError):
            pass  # musl, for example, which keeps little freed memory
    return _return_nothing


def _return_nothing(pad: int) -> int:
    return 0


UNCOUNTED = Share(Budget(float("inf")), None)
"""The share of bytes that belong to no application."""
