"""Plain threads: one selector thread in the process reads and writes for all connections.

Each handler runs in the thread that the server gave it. Waiting for bytes needs no extra thread.
"""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # noqa: F401 - registers its exit hook, to come after ours
import logging
import os
import selectors
import socket
import threading
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from time import monotonic
from typing import Any

from .base import StreamTransport
from .clock import RETRY

__all__ = ["ThreadedTransport", "ThreadedWaiter", "at_exit", "selector_clock"]

logger = logging.getLogger("flask_sockets2.transports")

_NOTHING = object()


class _Timer:
    """A call by the selector thread at a time of :func:`time.monotonic`."""

    __slots__ = ("due", "function")

    def __init__(self, due: float, function: Callable[[], None]) -> None:
        self.due = due
        self.function: Callable[[], None] | None = function

    def __lt__(self, other: _Timer) -> bool:
        return self.due < other.due

    def cancel(self) -> None:
        self.function = None


class _Reactor:
    """The selector thread. Other threads queue calls and never touch selector or timers."""

    threaded = True
    blocks = False

    def __init__(self) -> None:
        self.keepalive: Any = None
        self._selector = selectors.DefaultSelector()
        self._calls: deque[Callable[[], object]] = deque()
        self._timers: list[_Timer] = []
        self._owners: dict[int, object] = {}  # the transport that watches each descriptor
        self._waker, self._woken = socket.socketpair()
        self._waker.setblocking(False)
        self._woken.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ, None)
        self._thread = threading.Thread(
            target=self._run, name="flask_sockets2 selector", daemon=True
        )
        self._thread.start()

    def call_soon(self, function: Callable[[], object]) -> None:
        self._calls.append(function)
        try:
            self._waker.send(b"\0")
        except BlockingIOError:
            pass  # the buffer is full of wake-ups already

    def inside(self) -> bool:
        return threading.current_thread() is self._thread

    def has_time(self) -> bool:
        return True  # handlers have threads of their own

    def waiter(
        self, lock: threading.RLock | None = None, unread: Callable[[], bool] | None = None
    ) -> ThreadedWaiter:
        return ThreadedWaiter(threading.RLock() if lock is None else lock, unread)

    def at_exit(self, function: Callable[[], None]) -> None:
        at_exit(function)

    def call_later(self, delay: float, function: Callable[[], None]) -> _Timer:
        timer = _Timer(monotonic() + delay, function)
        self.call_soon(lambda: heappush(self._timers, timer))
        return timer

    def watch(self, fd: int, events: int, owner: object, ready: Callable[[int], None]) -> None:
        """Watch a descriptor for events, 0 to stop; in the selector thread only.

        After a close, the descriptor may already belong to another connection. A late call of the
        former owner must not stop that connection's events.
        """
        if fd in self._owners and (events or self._owners[fd] is owner):
            self._selector.unregister(fd)
            del self._owners[fd]
        if events:
            self._selector.register(fd, events, ready)
            self._owners[fd] = owner

    def _run(self) -> None:
        while True:
            for key, events in self._selector.select(self._until_next_timer()):
                if key.data is None:
                    self._woken.recv(4096)
                else:
                    self._call(key.data, events)
            self._run_timers()
            for _ in range(len(self._calls)):  # calls queued meanwhile wait for the next turn
                self._call(self._calls.popleft())

    def _until_next_timer(self) -> float | None:
        if self._calls:
            return 0
        if not self._timers:
            return None
        return max(0.0, self._timers[0].due - monotonic())

    def _run_timers(self) -> None:
        now = monotonic()
        while self._timers and self._timers[0].due <= now:
            function = heappop(self._timers).function
            if function is not None:
                self._call(function)

    def _call(self, function: Callable[..., object], *arguments: int) -> None:
        try:
            function(*arguments)
        except Exception:  # one connection's error must not end all the others
            logger.exception("a connection raised in the selector thread")


_reactor: _Reactor | None = None
_reactor_lock = threading.Lock()


def selector_clock() -> _Reactor:
    """Return the selector thread of the process, started at the first use."""
    global _reactor
    with _reactor_lock:
        if _reactor is None:
            _reactor = _Reactor()
        return _reactor


def _forget_reactor() -> None:
    """Reset the module in a forked child, which has the parent's selector but not its thread."""
    global _reactor, _reactor_lock
    _reactor = None
    _reactor_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_reactor)


def at_exit(function: Callable[[], None]) -> None:
    """Call a function when the main thread ends, before the interpreter joins other threads.

    ``atexit`` comes too late: concurrent.futures joins the handlers' threads before. A handler
    that waits in receive() for its peer would then block the exit.
    """
    register = getattr(threading, "_register_atexit", atexit.register)
    register(function)


class ThreadedTransport(StreamTransport):
    """Reads and writes one connection on the selector thread; :attr:`lock` makes it thread-safe."""

    __slots__ = (
        "_changed",
        "_fd",
        "_reactor",
        "_reading",
        "_writing",
        "clock",
        "lock",
    )

    lock: threading.RLock

    def __init__(self, sock: socket.socket, *, send_timeout: float = 30.0) -> None:
        super().__init__(sock, send_timeout=send_timeout)
        sock.setblocking(False)
        self.clock = self._reactor = selector_clock()
        self._fd = sock.fileno()
        self._reading = False
        self._writing = False
        self.lock = threading.RLock()
        self._changed: threading.Condition | None = None  # made by the first wait_progress()

    # -- the selector thread ---------------------------------------------------------------

    def _watch(self) -> None:
        """Make the selector thread update the events that it watches for."""
        self._reactor.call_soon(self._update)

    def _update(self) -> None:
        with self.lock:
            events = 0
            if not self.closed:
                events = (
                    selectors.EVENT_READ * self._reading | selectors.EVENT_WRITE * self._writing
                )
            self._reactor.watch(self._fd, events, self, self._ready)

    def _ready(self, events: int) -> None:
        with self.lock:
            if events & selectors.EVENT_WRITE and self._writing and not self.closed:
                self._write_ready()
            if events & selectors.EVENT_READ and self._reading and not self.closed:
                self._read_ready()

    def resume(self) -> None:
        with self.lock:
            if not self._reading and not self.closed:
                self._reading = True
                self._watch()
                if self._pending is not None:
                    self.call_soon(self._read_on)

    def pause(self) -> None:
        with self.lock:
            if self._reading:
                self._reading = False
                self._watch()

    def call_soon(self, function: Callable[[], None]) -> None:
        self._reactor.call_soon(lambda: self._locked(function))

    def call_later(self, delay: float, function: Callable[[], None]) -> _Timer:
        return self._reactor.call_later(delay, lambda: self._locked(function))

    def call_inside(self, function: Callable[[], None]) -> None:
        self._reactor.call_soon(function)

    def _locked(self, function: Callable[[], None]) -> None:
        with self.lock:
            function()

    def _watch_writing(self, wanted: bool) -> None:
        if self._writing != wanted:
            self._writing = wanted
            self._watch()

    def _progressed(self) -> None:
        if self._changed is not None:
            self._changed.notify_all()

    def write(self, data: bytes) -> None:
        with self.lock:
            super().write(data)

    def finish(self, linger: bool = True) -> None:
        with self.lock:
            super().finish(linger)

    def close(self) -> None:
        with self.lock:
            if not self.closed:
                self._reading = self._writing = False
                super().close()
                self._watch()

    def wait_progress(self, timeout: float | None) -> bool:
        with self.lock:
            if self._changed is None:
                self._changed = threading.Condition(self.lock)
            return self._changed.wait(timeout)


class ThreadedWaiter:
    """Lets one thread wait; see :class:`~flask_sockets2.transports.clock.Waiter`."""

    __slots__ = ("_changed", "_receiving", "_unread", "_value", "lock", "waiting")

    def __init__(self, lock: threading.RLock, unread: Callable[[], bool] | None) -> None:
        self.lock = lock
        self.waiting: Any = None
        self._unread = unread
        self._value: Any = _NOTHING
        self._receiving = False  # True until the waiting thread has taken its value
        self._changed = threading.Condition(lock)

    def wait(self, timeout: float | None = None) -> Any:
        with self.lock:
            if self._unread is not None and self._unread():
                return RETRY
            if self._receiving:
                raise RuntimeError(
                    "another thread waits in receive() of this connection; let one thread receive"
                )
            self._receiving = True
            self.waiting = threading.current_thread()
            try:
                if not self._changed.wait_for(self._handed_over, timeout):
                    raise TimeoutError(f"no message came in {timeout} s")
                return self._value
            finally:
                self._value = _NOTHING
                self.waiting = None
                self._receiving = False

    def _handed_over(self) -> bool:
        return self._value is not _NOTHING

    def wake(self, value: Any) -> None:
        self.waiting = None
        self._value = value
        self._changed.notify_all()

    def wake_soon(self) -> None:
        if self.waiting is not None:
            self.wake(RETRY)
