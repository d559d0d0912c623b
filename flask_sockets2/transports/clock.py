"""Clock: the hub or selector thread that serves connections, its timers, and waiting for it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

__all__ = ["RETRY", "Clock", "Timer", "Waiter"]

RETRY = object()
"""Result of :meth:`Waiter.wait` without a value: the caller looks again and then waits again."""


class Timer(Protocol):
    """A scheduled call."""

    def cancel(self) -> None:
        """Cancel the call; does nothing if the call was made already."""


class Waiter(Protocol):
    """Lets one greenlet or thread at a time wait until :meth:`wake` passes a value."""

    #: The greenlet or thread that waits; None if none waits.
    waiting: Any

    @property
    def lock(self) -> AbstractContextManager[Any]:
        """The lock that guards the waiter; released while :meth:`wait` waits."""

    def wait(self, timeout: float | None = None) -> Any:
        """Wait for a value and return it.

        :param timeout: seconds to wait, None for no limit.
        :returns: the value, or :data:`RETRY`.
        :raises TimeoutError: if no value came in time.
        :raises RuntimeError: if another greenlet or thread waits already.
        """

    def wake(self, value: Any) -> None:
        """Pass a value to the waiting caller; under the lock, in the clock's thread."""

    def wake_soon(self) -> None:
        """Make a pending :meth:`wait` return :data:`RETRY`; under the lock, from any thread."""


class Clock(Protocol):
    """The hub or selector thread, which calls the receivers of transports."""

    #: The keepalive of the connections of this clock.
    keepalive: Any
    #: Whether other threads use the transports, too, under their locks.
    threaded: bool
    #: Whether a network wait in this thread would block all its connections.
    blocks: bool

    def call_soon(self, function: Callable[[], object]) -> None:
        """Call a function in this thread, in the next turn or later; from any thread."""

    def call_later(self, delay: float, function: Callable[[], None]) -> Timer:
        """Call a function in this thread after ``delay`` seconds."""

    def inside(self) -> bool:
        """Whether the caller runs in this thread."""

    def has_time(self) -> bool:
        """Whether this turn has time left to process a large input."""

    def waiter(self, lock: Any = None, unread: Callable[[], bool] | None = None) -> Waiter:
        """Return a new waiter for a greenlet of this hub, or for any thread.

        :param lock: lock that guards the waiter; None for a new one. Greenlets need no lock.
        :param unread: returns whether a value can be taken without waiting. Greenlets check before
            they wait; a thread checks again under the lock.
        """

    def at_exit(self, function: Callable[[], None]) -> None:
        """Call a function when the process exits, if waiting threads would block the exit."""
