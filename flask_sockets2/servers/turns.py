"""Turns: give other clients CPU time if one client never pauses.

gevent switches greenlets only when one of them waits. If a client sends fast and reads each answer
at once, its greenlet never waits: neither between pipelined requests nor between the chunks of a
body. So the handler yields by the clock: before each request, before each read from the socket and
before each write to the socket.

``gevent.sleep(0)`` is not enough. The hub resumes the greenlet up to 50 times before the hub polls
other sockets.
"""

from __future__ import annotations

import io
import sys
from contextlib import AbstractContextManager, nullcontext, suppress
from time import monotonic
from typing import Any
from weakref import WeakKeyDictionary

from gevent import Timeout, get_hub

from .patience import Patience

if sys.platform == "linux":
    import fcntl
else:
    fcntl = None

__all__ = ["READ_AHEAD", "PatientReceiver", "PatientSender", "Turns", "turns"]

READ_AHEAD = 8192
"""Bytes to read from a socket at a time; a greenlet processes them without checking the clock."""

_TURN = 0.005  # seconds
_WAIT = 0.001  # seconds; a shorter write has not waited for the client
_LOOKS = 10  # checks of the client's progress during the longest pause
_PIECE = 256 * 1024  # bytes written without checking the clock; TLS has to encrypt them
_SIOCOUTQ = 0x5411  # linux/sockios.h; bytes in the send queue that the peer has not acknowledged


class Turns:
    """Clock of one hub's greenlets, which yield every 5 ms; used in the hub's thread.

    :param hub: gevent's hub.
    """

    __slots__ = ("__weakref__", "_begun", "_loop", "_wait")

    def __init__(self, hub: Any) -> None:
        self._loop = hub.loop
        self._wait = hub.wait
        self._begun = monotonic()

    def take(self) -> None:
        """Yield until the hub has polled all sockets, if this turn has lasted for 5 ms."""
        now = monotonic()
        if now - self._begun < _TURN:
            return
        with self._loop.timer(0) as next_round:  # due when the hub has polled the sockets
            self._wait(next_round)
        # Several greenlets may wait for the same round. They share the next turn, so that many
        # busy clients together take no longer than one.
        if self._begun <= now:
            self._begun = monotonic()


_turns: WeakKeyDictionary[Any, Turns] = WeakKeyDictionary()  # by hub


def turns() -> Turns:
    """Return the :class:`Turns` of this thread's hub."""
    hub = get_hub()
    found = _turns.get(hub)
    if found is None:
        found = _turns[hub] = Turns(hub)
    return found


class PatientReceiver(io.RawIOBase):
    """Raw stream of a handler: reads from the socket in turns, with a timeout for slow clients.

    :param sock: gevent's own socket.
    :param turns: turns of the handler's hub.
    """

    def __init__(self, sock: Any, turns: Turns) -> None:
        super().__init__()
        self._sock = sock
        self._file = sock.makefile("rb", 0)  # keeps the socket open
        self._turns: Turns | None = turns
        self.patience = Patience(0.0)

    def release(self) -> None:
        """Stop taking turns and counting waits: a WebSocket or stream takes over the socket."""
        self._turns = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Read once.

        :raises TimeoutError: if the client was too slow.
        """
        if self._turns is None:
            early: int | None = self._file.readinto(buffer)
            return early
        self._turns.take()
        left = self.patience.left()
        if not left:
            raise TimeoutError("the client was too slow")
        begun = monotonic()
        came: int = 0
        try:
            with _within(left, self._sock):
                came = self._sock.recv_into(buffer)
        finally:
            self.patience.waited(monotonic() - begun, came)
        return came

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._file.close()


class PatientSender:
    """Writes a handler's response to the socket, in turns, with a timeout for slow clients.

    :param sock: gevent's own socket.
    :param turns: turns of the handler's hub.
    """

    __slots__ = ("_sent", "_sock", "_taken", "_turns", "patience")

    def __init__(self, sock: Any, turns: Turns) -> None:
        self._sock = sock
        self._turns = turns
        self._sent = 0  # bytes that the kernel has accepted
        self._taken = 0  # bytes of them that the client has acknowledged
        self.patience = Patience(0.0)

    def send(self, data: memoryview) -> int:
        """Write the beginning of ``data``, and return the number of bytes written.

        :raises TimeoutError: if the client was too slow.
        """
        self._turns.take()
        left = self.patience.left()
        if not left:
            raise TimeoutError("the client was too slow")
        begun = monotonic()
        size = 0
        try:
            with _within(min(left, self.patience.seconds / _LOOKS), self._sock):
                size = self._sock.send(data[:_PIECE])
        except TimeoutError:
            pass  # the client may have acknowledged bytes all the same
        finally:
            self._sent += size
            seconds = monotonic() - begun
            if seconds > _WAIT:
                self._waited(seconds)
        return size

    def _waited(self, seconds: float) -> None:
        """Count a wait.

        The kernel reports room only when the client has taken a third of the send buffer, which may
        hold megabytes. So this method counts acknowledged bytes. Bytes acknowledged before the wait
        count for the first part of the wait, which is therefore short.
        """
        taken = self._sent - _unacknowledged(self._sock)
        self.patience.waited(seconds, max(0, taken - self._taken))
        self._taken = max(taken, self._taken)


def _within(seconds: float, sock: Any) -> AbstractContextManager[Any]:
    """Set a timeout for one read or write, which then raises ``TimeoutError``.

    TLS reads whole records. gevent waits for each piece of a record, and restarts its timeout with
    each piece. So with TLS the read as a whole needs a timer.
    """
    sock.settimeout(seconds)
    if hasattr(sock, "pending"):  # TLS
        timer: AbstractContextManager[Any] = Timeout(seconds, TimeoutError("timed out"))
        return timer
    return nullcontext()


def _unacknowledged(sock: Any) -> int:
    """Return the number of bytes in the kernel's send queue; 0 if the system does not report it."""
    if fcntl is not None:
        with suppress(OSError):
            return int.from_bytes(fcntl.ioctl(sock.fileno(), _SIOCOUTQ, bytes(4)), sys.byteorder)
    return 0
