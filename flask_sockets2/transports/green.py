"""gevent: transports that the hub reads for, with one read watcher for each connection.

The hub calls :meth:`GreenTransport._read_ready` when bytes arrive, even while the handler is busy.
A :class:`GreenWaiter` passes a message to the waiting greenlet by a direct switch. Only one
greenlet runs at a time, and no code in this module switches away, so no lock is needed here.
"""

from __future__ import annotations

import _socket
import socket
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from time import monotonic
from typing import Any
from weakref import WeakKeyDictionary

from gevent import get_hub
from gevent.event import Event
from gevent.hub import Hub
from gevent.monkey import get_original, is_module_patched
from greenlet import getcurrent

from .base import StreamTransport
from .clock import RETRY

__all__ = ["GreenTransport", "GreenWaiter", "hub_clock", "is_green"]

_READ, _WRITE = 1, 2  # libev's event masks
_get_ident = get_original("_thread", "get_ident")  # of the native thread
_EXPIRED = object()
_ROUND = 0.005  # seconds of calls between two polls of the sockets


class GreenTransport(StreamTransport):
    """Reads and writes one connection on gevent's hub; made and used in one native thread.

    :param sock: gevent's socket, plain or TLS.
    """

    __slots__ = (
        "_detached",
        "_event",
        "_loop",
        "_read_watcher",
        "_reading",
        "_write_watcher",
        "clock",
    )

    lock = nullcontext()

    def __init__(self, sock: socket.socket, *, send_timeout: float = 30.0) -> None:
        super().__init__(sock, send_timeout=send_timeout)
        self._loop: Any = get_hub().loop  # gevent's stubs know neither io() nor timer() in full
        self.clock: _GreenClock = hub_clock()
        self._event: Event | None = None
        self._read_watcher: Any = self._loop.io(sock.fileno(), _READ)
        self._write_watcher: Any = None
        self._reading = False
        self._detached = False
        if self._pending is not None:  # TLS
            sock.setblocking(False)
        else:
            # gevent's recv() waits if the C socket reports EAGAIN, and its send() reads the
            # socket's options each time. The hub must do neither.
            raw = getattr(sock, "_sock", sock)
            self._recv = raw.recv
            self._send = raw.send

    # -- the hub ---------------------------------------------------------------------------

    def resume(self) -> None:
        if not self._reading and not self.closed:
            self._reading = True
            self._read_watcher.start(self._read_ready)
            if self._pending is not None and self._pending():
                self.call_soon(self._read_on)

    def pause(self) -> None:
        if self._reading:
            self._reading = False
            self._read_watcher.stop()

    def call_soon(self, function: Callable[[], None]) -> None:
        self._loop.run_callback(function)

    def call_later(self, delay: float, function: Callable[[], None]) -> _GreenTimer:
        return _GreenTimer(self._loop, delay, function)

    def call_next(self, function: Callable[[], None]) -> _NextCall:
        return self.clock.call_next(function)

    def call_inside(self, function: Callable[[], None]) -> None:
        function()

    def detach(self) -> None:
        """Keep the socket open after the request, even if the server closes its own object.

        A plain socket's descriptor is moved from the server's object to one of our own. A TLS
        socket cannot be moved, so the server must leave it open.
        """
        if self._pending is None:
            sock = self.sock
            raw = _socket.socket(sock.family, sock.type, sock.proto, fileno=sock.detach())
            raw.settimeout(0.0)
            self.sock = raw  # type: ignore[assignment]  # only methods of the C class are used
            self._recv, self._send = raw.recv, raw.send
        self._detached = True

    def _watch_writing(self, wanted: bool) -> None:
        if wanted:
            if self._write_watcher is None:
                self._write_watcher = self._loop.io(self.sock.fileno(), _WRITE)
            self._write_watcher.start(self._write_ready)
        elif self._write_watcher is not None:
            self._write_watcher.stop()
            self._write_watcher.close()
            self._write_watcher = None

    def _progressed(self) -> None:
        event, self._event = self._event, None
        if event is not None:
            event.set()

    def close(self) -> None:
        if not self.closed:
            self._read_watcher.stop()
            self._read_watcher.close()
            self._reading = False
            self._watch_writing(False)
            super().close()
            if self._detached:
                self.sock.close()

    def wait_progress(self, timeout: float | None) -> bool:
        if self._event is None:
            self._event = Event()
        return bool(self._event.wait(timeout))


def is_green() -> bool:
    """Return whether the caller is a gevent greenlet or runs in a program that gevent patched."""
    return isinstance(getcurrent().parent, Hub) or bool(is_module_patched("threading"))


class GreenWaiter:
    """Lets one greenlet wait; see :class:`~flask_sockets2.transports.clock.Waiter`.

    :param clock: clock of the hub in whose thread the waiter is made.
    """

    __slots__ = ("_clock", "_switch", "waiting")

    lock = nullcontext()

    def __init__(self, clock: _GreenClock) -> None:
        self._clock = clock
        self._switch = get_hub().switch
        self.waiting: Any = None

    def wait(self, timeout: float | None = None) -> Any:
        if self.waiting is not None:
            raise RuntimeError(
                "another greenlet waits in receive() of this connection; let one greenlet receive"
            )
        if timeout is not None:
            return self._wait_until(timeout)
        self.waiting = getcurrent()
        try:
            return self._switch()
        except BaseException:  # a kill or a gevent.Timeout: this greenlet no longer waits
            self.waiting = None
            raise

    def _wait_until(self, timeout: float) -> Any:
        timer = self._clock.call_later(max(0.0, timeout), self._expire)
        try:
            value = self.wait()
        finally:
            timer.cancel()
        if value is _EXPIRED:
            raise TimeoutError(f"no message came in {timeout} s")
        return value

    def wake(self, value: Any) -> None:
        greenlet, self.waiting = self.waiting, None
        greenlet.switch(value)

    def wake_soon(self) -> None:
        # In a later turn: a greenlet that switches to another one here would not run again.
        if self.waiting is not None:
            self._clock.call_soon(self._retry)

    def _retry(self) -> None:
        if self.waiting is not None:
            self.wake(RETRY)

    def _expire(self) -> None:
        if self.waiting is not None:
            self.wake(_EXPIRED)


class _GreenClock:
    """Clock of one hub, made in its thread; keeps no connection alive."""

    __slots__ = (
        "__weakref__",
        "_calls",
        "_look",
        "_loop",
        "_thread",
        "_timer",
        "_until",
        "blocks",
        "keepalive",
    )

    threaded = False

    def __init__(self, loop: Any) -> None:
        self._loop = loop
        self._thread = _get_ident()
        self._calls: deque[_NextCall] = deque()
        self._timer: _GreenTimer | None = None  # None without pending calls
        self._look = self._until = 0.0
        self.keepalive: Any = None
        self.blocks = not is_module_patched("socket")

    def inside(self) -> bool:
        return bool(_get_ident() == self._thread)

    def waiter(self, lock: Any = None, unread: Callable[[], bool] | None = None) -> GreenWaiter:
        return GreenWaiter(self)

    def at_exit(self, function: Callable[[], None]) -> None:
        """Do nothing: a greenlet keeps no process alive."""

    def call_soon(self, function: Callable[[], object]) -> None:
        if _get_ident() == self._thread:
            self._loop.run_callback(function)
        else:
            self._loop.run_callback_threadsafe(function)

    def call_later(self, delay: float, function: Callable[[], None]) -> _GreenTimer:
        return _GreenTimer(self._loop, delay, function)

    def has_time(self) -> bool:
        """Whether the sockets of this turn have not yet used up its time."""
        look = self._loop.now()  # the time of this poll of the sockets
        now = monotonic()
        if look != self._look:
            self._look = look
            self._until = now + _ROUND
        return now < self._until

    def call_next(self, function: Callable[[], None]) -> _NextCall:
        """Call a function once all sockets have been polled, in the order of the requests.

        After 5 ms of these calls, the sockets are polled again. The hub itself makes 50 calls, and
        the calls of all due timers, before a look at the clock. One call may take milliseconds.
        """
        call = _NextCall(function)
        self._calls.append(call)
        if self._timer is None:
            self._timer = _GreenTimer(self._loop, 0.0, self._make_calls)
        return call

    def _make_calls(self) -> None:
        calls = self._calls
        until = monotonic() + _ROUND
        try:
            for _ in range(len(calls)):  # calls that are added meanwhile wait for the next poll
                calls.popleft().make()
                if monotonic() > until:
                    break
        finally:
            self._timer = _GreenTimer(self._loop, 0.0, self._make_calls) if calls else None


class _NextCall:
    """A call by the hub that can be cancelled."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[[], None]) -> None:
        self._function: Callable[[], None] | None = function

    def make(self) -> None:
        function, self._function = self._function, None
        if function is not None:
            function()

    def cancel(self) -> None:
        self._function = None


_clocks: WeakKeyDictionary[Any, _GreenClock] = WeakKeyDictionary()


def hub_clock() -> _GreenClock:
    """Return the clock of this thread's hub."""
    hub = get_hub()
    found = _clocks.get(hub)
    if found is None:
        found = _clocks[hub] = _GreenClock(hub.loop)
    return found


class _GreenTimer:
    """A call by the hub after a delay in seconds, which can be cancelled."""

    __slots__ = ("_function", "_timer")

    def __init__(self, loop: Any, delay: float, function: Callable[[], None]) -> None:
        self._function: Callable[[], None] | None = function
        self._timer = loop.timer(delay)
        self._timer.start(self._run)

    def _run(self) -> None:
        function = self._function
        self.cancel()
        if function is not None:
            function()

    def cancel(self) -> None:
        if self._function is not None:
            self._function = None
            self._timer.stop()
            self._timer.close()
