"""DelayedCalls: run functions later, all after the same delay, in one thread."""

from __future__ import annotations

import _thread
import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from .native_lock import native_lock

__all__ = ["DelayedCalls"]

logger = logging.getLogger("flask_sockets2.brokers")

_STEP = 0.5  # seconds; after close(), the thread ends within this time


class DelayedCalls:
    """Calls functions after a delay, in their order. The thread ends when no calls are left.

    :param delay: seconds, the same for all.
    """

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self._calls: deque[tuple[float, Callable[[], None]]] = deque()
        self._running = False
        self._lock = native_lock()  # guards taking calls, and the thread's start and end

    def call(self, function: Callable[[], None]) -> None:
        """Call a function later; does not wait."""
        self._calls.append((time.monotonic() + self._delay, function))
        with self._lock:
            if self._running:
                return
            self._running = True
        try:
            # threading.Thread waits until the thread runs, but a hub's callback cannot wait.
            _thread.start_new_thread(self._run, ())
        except RuntimeError:
            self._running = False  # the next call tries again
            logger.exception("what was put off waits for a thread")

    def flush(self) -> None:
        """Run all pending calls now, in this thread."""
        while True:
            with self._lock:
                if not self._calls:
                    return
                _, function = self._calls.popleft()
            _call(function)

    def close(self) -> None:
        """Cancel all pending calls."""
        with self._lock:
            self._calls.clear()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._calls:
                    self._running = False
                    return
                due, function = self._calls[0]
                left = due - time.monotonic()
                if left <= 0:
                    self._calls.popleft()
            if left > 0:
                # Waits in a native thread, or in a greenlet if gevent has patched threads.
                threading.Event().wait(min(left, _STEP))
                continue
            _call(function)


def _call(function: Callable[[], None]) -> None:
    try:
        function()
    except Exception:
        logger.exception("a call that was put off raised")
