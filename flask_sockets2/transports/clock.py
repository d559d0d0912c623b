"""Clock: the hub or selector thread that serves connections, and how a handler waits for it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

__all__ = ["RETRY", "Clock", "Timer", "Waiter"]

RETRY = object()
"""Returned by :meth:`Waiter.wait` if no value was handed over: look again, then wait again."""


class Timer(Protocol):
    """A call that has been put off."""

    def cancel(self) -> None:
        """Call it off; does nothing once it was made."""


class Waiter(Protocol):
    """Lets one greenlet or thread at a time wait until it is handed a value."""

    #: The greenlet or thread that waits; None if there is none.
    waiting: Any

    @property
    def lock(self) -> AbstractContextManager[Any]:
        """The lock that guards this; released while :meth:`wait` waits."""

    def wait(self, timeout: float | None = None) -> Any:
        """Wait for a value.

        :param timeout: seconds; None for no limit.
        :returns: the value, or :data:`RETRY`.
        :raises TimeoutError: if no value came in time.
        :raises RuntimeError: if another greenlet or thread waits already.
        """

    def wake(self, value: Any) -> None:
        """Hand a value to the one that waits; under the lock, in the clock's thread."""

    def wake_soon(self) -> None:
        """Have :meth:`wait` return :data:`RETRY`, if anything waits; under the lock, anywhere."""


class Clock(Protocol):
    """The hub or selector thread that calls the receiver of a transport."""

    #: The keepalive of the connections of this clock.
    keepalive: Any
    #: Whether other threads use the transports, too, under their locks.
    threaded: bool
    #: Whether waiting for a network in this thread would stop all its connections.
    blocks: bool

    def call_soon(self, function: Callable[[], object]) -> None:
        """Call a function in this thread, not before the next turn; from any thread."""

    def call_later(self, delay: float, function: Callable[[], None]) -> Timer:
        """Call a function in this thread after so many seconds."""

    def inside(self) -> bool:
        """Whether the caller runs in this thread."""

    def has_time(self) -> bool:
        """Whether there is time in this turn to process all that one socket has sent."""

    def waiter(self, lock: Any = None, unread: Callable[[], bool] | None = None) -> Waiter:
        """Return a new waiter for a greenlet of this hub, or for any thread.

        :param lock: guards the waiter; None for a new one. Greenlets need none.
        :param unread: tells whether there is anything to take instead of waiting. Greenlets look
            before they wait; a thread asks again under the lock.
        """

    def at_exit(self, function: Callable[[], None]) -> None:
        """Call a function when the process ends, if threads that wait would keep it from that."""
