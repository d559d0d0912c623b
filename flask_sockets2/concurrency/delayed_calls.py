"""Calls that are delayed, all by the same time, in one thread that ends when it is idle."""

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

_STEP = 0.5  # seconds; the longest that close() may have to wait for the thread's end


class DelayedCalls:
    """Calls functions after a delay, in their order.

    :param delay: seconds, the same for all.
    """

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self._calls: deque[tuple[float, Callable[[], None]]] = deque()
        self._running = False
        self._lock = native_lock()  # guards taking calls, and starting and ending the thread

    def call(self, function: Callable[[], None]) -> None:
        """Call a function later; does not wait."""
        self._calls.append((time.monotonic() + self._delay, function))
        with self._lock:
            if self._running:
                return
            self._running = True
        try:
            # threading.Thread would wait until it runs, and a hub's callback cannot wait.
            _thread.start_new_thread(self._run, ())
        except RuntimeError:
            self._running = False  # the next call tries again
            logger.exception("what was put off waits for a thread")

    def flush(self) -> None:
        """Call what has not been called yet, now and in this thread."""
        while True:
            with self._lock:
                if not self._calls:
                    return
                _, function = self._calls.popleft()
            _call(function)

    def close(self) -> None:
        """Forget what has not been called yet."""
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
                # In a thread or greenlet, as gevent has patched threads or not; see _thread above.
                threading.Event().wait(min(left, _STEP))
                continue
            _call(function)


def _call(function: Callable[[], None]) -> None:
    try:
        function()
    except Exception:
        logger.exception("a call that was put off raised")
