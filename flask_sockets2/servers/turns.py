"""Turns: a client that never pauses keeps no other client waiting.

gevent switches greenlets when one of them has to wait. A client whose next bytes are always there
already, and that takes each answer at once, makes its greenlet wait for nothing: neither between
pipelined requests nor between the chunks of a body. So the handler takes turns by the clock:
before each request, before each read from the socket and before each write to it.

``gevent.sleep(0)`` is not enough. The hub resumes the greenlet up to 50 times before it looks at
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
"""Bytes that are read from a socket at a time; a greenlet works on so many without a look at the
clock."""

_TURN = 0.005  # seconds
_WAIT = 0.001  # seconds; a write that takes no longer has not waited
_LOOKS = 10  # at what the client has taken, while it takes nothing for as long as it may
_PIECE = 256 * 1024  # bytes that are written without a look at the clock; TLS has to encrypt them
_SIOCOUTQ = 0x5411  # linux/sockios.h; bytes in the send queue that the peer has not acknowledged


class Turns:
    """The turns of the greenlets of one hub; used in its thread.

    :param hub: that hub.
    """

    __slots__ = ("__weakref__", "_begun", "_loop", "_wait")

    def __init__(self, hub: Any) -> None:
        self._loop = hub.loop
        self._wait = hub.wait
        self._begun = monotonic()

    def take(self) -> None:
        """Let the hub look at all sockets, if it has not done so in this turn for 5 ms."""
        now = monotonic()
        if now - self._begun < _TURN:
            return
        with self._loop.timer(0) as next_round:  # due when the hub has looked at the sockets
            self._wait(next_round)
        # Several greenlets may wait for the same round. Its turn is one for all of them, so that
        # many busy clients together take no longer than one.
        if self._begun <= now:
            self._begun = monotonic()


_turns: WeakKeyDictionary[Any, Turns] = WeakKeyDictionary()  # by hub


def turns() -> Turns:
    """Return the turns of this thread's hub."""
    hub = get_hub()
    found = _turns.get(hub)
    if found is None:
        found = _turns[hub] = Turns(hub)
    return found


class PatientReceiver(io.RawIOBase):
    """What a handler reads from, below its buffer: the socket, in turns, as long as it waits.

    :param sock: gevent's own socket.
    :param turns: of the handler's hub.
    """

    def __init__(self, sock: Any, turns: Turns) -> None:
        super().__init__()
        self._sock = sock
        self._file = sock.makefile("rb", 0)  # the socket stays open as long as this does
        self._turns: Turns | None = turns
        self.patience = Patience(0.0)

    def release(self) -> None:
        """Wait for nothing any more: the socket is taken over."""
        self._turns = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Read once.

        :raises TimeoutError: when the client has kept the server waiting for too long.
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
    """How a handler writes to the socket: in turns, as long as the client takes what was written.

    :param sock: gevent's own socket.
    :param turns: of the handler's hub.
    """

    __slots__ = ("_sent", "_sock", "_taken", "_turns", "patience")

    def __init__(self, sock: Any, turns: Turns) -> None:
        self._sock = sock
        self._turns = turns
        self._sent = 0  # bytes that the kernel has taken, and the client of them
        self._taken = 0
        self.patience = Patience(0.0)

    def send(self, data: memoryview) -> int:
        """Write a part of some bytes, and return how much.

        :raises TimeoutError: when the client has kept the server waiting for too long.
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
            pass  # the client may have taken something all the same
        finally:
            self._sent += size
            seconds = monotonic() - begun
            if seconds > _WAIT:
                self._waited(seconds)
        return size

    def _waited(self, seconds: float) -> None:
        """Count a wait.

        The kernel says that there is room only when the client has taken a third of what it holds,
        which may be megabytes. So the bytes count that the client has acknowledged. Those that it
        took before the wait count for the first part of the wait, which is therefore short.
        """
        taken = self._sent - _unacknowledged(self._sock)
        self.patience.waited(seconds, max(0, taken - self._taken))
        self._taken = max(taken, self._taken)


def _within(seconds: float, sock: Any) -> AbstractContextManager[Any]:
    """Have one read or write of a socket raise ``TimeoutError`` after so many seconds.

    TLS reads whole records. gevent waits for each piece of a record, and its timeout begins anew
    with each piece. So there the read as a whole needs a timer.
    """
    sock.settimeout(seconds)
    if hasattr(sock, "pending"):  # TLS
        timer: AbstractContextManager[Any] = Timeout(seconds, TimeoutError("timed out"))
        return timer
    return nullcontext()


def _unacknowledged(sock: Any) -> int:
    """Return how many bytes the kernel keeps for a client; 0 where the system does not tell."""
    if fcntl is not None:
        with suppress(OSError):
            return int.from_bytes(fcntl.ioctl(sock.fileno(), _SIOCOUTQ, bytes(4)), sys.byteorder)
    return 0
