"""Budget: the bytes that all connections of an application hold in this process, within a limit.

Each connection has limits of its own, but clients decide how many connections there are. A budget
counts the bytes that clients make the process hold: messages that handlers have not taken, parts of
messages that are still arriving, messages that handlers wait to send, and bytes that the kernel
does not take. Bytes that several connections share count once, because they are in memory once.

As the total grows:

from three quarters of the limit
    A connection with unread or unsent bytes is not read from until those are gone.
above the limit
    Connections are evicted until an eighth of the limit is free. A connection that holds more, and
    that has made no progress for longer, is evicted before others.

As the total falls, memory goes back to the system: see :func:`give_back`.
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
"""Bytes: smaller changes of what a connection holds need not be counted one by one."""

_LONGEST_STALL = 10.0  # seconds without progress; beyond them only the size matters
_MUCH = 32 * 2**20  # bytes that the total has fallen by when memory is given back, at most
_PAUSE = 1.0  # seconds until then: whatever ends meanwhile is given back, too
_LOST = 5.0  # seconds after which a call is made again: a hub may end before it makes the call


class Holder(Protocol):
    """A connection that holds bytes."""

    @property
    def clock(self) -> Clock:
        """The hub or the selector thread that serves it."""

    def evict(self) -> None:
        """End it and release all that it holds; called by its clock's thread."""


class Share:
    """The bytes that one connection holds.

    :param budget: that they count for.
    :param holder: the connection, evicted when all connections hold too much.

    :ivar held: bytes. A message that it shares with others counts in full here.
    :ivar since: time of its last progress: when it released something, or began to hold bytes.
    :ivar evicted: time at which the holder was told to end; None before.
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
        """Count bytes that other connections may hold, too; any number of times."""
        budget = self.budget
        with budget.lock:
            times = budget.shared.get(id(data), 0)
            budget.shared[id(data)] = times + 1
            budget.add(self, len(data), 0 if times else len(data))

    def release(self, data: bytes) -> None:
        """Count the same bytes object once less."""
        budget = self.budget
        with budget.lock:
            times = budget.shared[id(data)] - 1
            if times:
                budget.shared[id(data)] = times
            else:
                del budget.shared[id(data)]
            budget.add(self, -len(data), 0 if times else -len(data))


class Budget:
    """What the connections of one application hold in this process; any thread may count.

    :param limit: bytes.
    :param evicting: called with the number of connections that are being evicted, and the bytes
        that they hold; by a hub or selector thread.

    :ivar total: bytes that are held.
    :ivar shares: of the connections that hold something.
    """

    def __init__(self, limit: float, evicting: Callable[[int, int], None] | None = None) -> None:
        self.limit = limit
        self.total = 0
        self.shares: set[Share] = set()
        #: Guards all of it. Reentrant, since the garbage collector may end connections anywhere.
        self.lock = native_rlock()
        #: How often bytes objects are held, by id: nobody frees an object that is held.
        self.shared: dict[int, int] = {}
        self._evicting = evicting
        self._waiting: set[Callable[[], None]] = set()
        self._relieves_by = 0.0  # when a call that was asked for counts as lost; 0 without one
        self._gives_back_by = 0.0
        self._peak = 0  # of the total, since memory was given back

    @property
    def tight(self) -> bool:
        """Whether connections with unread or unsent bytes have to wait."""
        return self.total > self.limit * 0.75

    def call_when_relaxed(self, function: Callable[[], None]) -> None:
        """Call a function once the budget is not tight any more; it must not wait.

        :param function: called by any thread; a second request for it does nothing.
        """
        with self.lock:
            self._waiting.add(function)

    def forget(self, function: Callable[[], None]) -> None:
        """Take back a call of :meth:`call_when_relaxed`."""
        self._waiting.discard(function)

    def add(self, share: Share, size: int, real: int) -> None:
        """Count bytes; under the lock.

        :param size: bytes that the connection holds from now on.
        :param real: of them those that nobody else holds.
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
        """Evict connections until there is room."""
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
            with self.lock:  # others may hold the same bytes
                if self.total > self.limit:
                    self._relieve_soon(shares[-1])

    def _chosen(self) -> list[Share]:
        """Choose whom to evict; under the lock."""
        if self.total <= self.limit:
            return []
        now = monotonic()
        excess = self.total - self.limit * 0.875
        for share in self.shares:  # some are about to end, in other threads
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
    """How much is gained by evicting a connection: its bytes count more the longer they stay."""
    return share.held * (1.0 + min(now - share.since, _LONGEST_STALL))


def _evict(holder: Holder) -> None:
    if holder.clock.inside():
        holder.evict()
    else:
        holder.clock.call_soon(holder.evict)


def _call(function: Callable[[], None]) -> None:
    try:
        function()
    except Exception:  # of a hub that has gone, for example; the others must not stay for it
        logger.exception("a connection could not be told of the memory that all of them hold")


_malloc_trim: Callable[[int], int] | None = None


def give_back() -> None:
    """Have the C library return freed memory to the system; a third of a millisecond for a MiB.

    glibc keeps what was freed for later, and returns only the end of its heap by itself. Another
    thread would spare the hub nothing: glibc locks the heap meanwhile, and the hub needs it.
    """
    global _malloc_trim
    if _malloc_trim is None:
        try:
            _malloc_trim = _find_malloc_trim()
        except (OSError, ImportError):  # clients have used up all descriptors; the next time
            return
    _malloc_trim(0)


def _find_malloc_trim() -> Callable[[int], int]:
    """Return glibc's function; where there is another C library, one that does nothing."""
    if sys.platform == "linux":
        from ctypes import CDLL  # not before it is needed: most processes never do

        try:
            found: Callable[[int], int] = CDLL(None).malloc_trim
            return found
        except (OSError, AttributeError):
            pass  # of musl, for example, which keeps little
    return _return_nothing


def _return_nothing(pad: int) -> int:
    return 0


UNCOUNTED = Share(Budget(float("inf")), None)
"""The share of what is no application's."""
