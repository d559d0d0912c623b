"""What every transport does, whichever way it waits: read when told to, write or keep, half-close.

A transport owns a connected stream socket between the 101 response and the end. Whoever accepted
the socket closes its descriptor; the transport only shuts it down.

The end of a connection::

    OPEN ─ finish() ─> FINISHING ─ all is written ─> half-closed ─ end of file ─> CLOSED
      └──────────────── close(), an error, end of file ──────────────────────────> CLOSED
"""

from __future__ import annotations

import io
import socket
import ssl
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from time import monotonic
from typing import Any, Protocol

from .budget import UNCOUNTED, Share
from .clock import Clock, Timer

__all__ = [
    "LIGHT",
    "ByteReceiver",
    "StreamTransport",
    "read_ahead",
]

READ_SIZE = 65536 + 1024
"""Bytes asked for in one read: a frame of 64 KiB with its header comes in one."""

READ_SIZE_LARGE = 256 * 1024
"""The same in the middle of a larger frame."""

LIGHT = 256
"""Bytes that are seen to at once, however many others have sent something."""

# What a socket that cannot go on now raises; the TLS ones are no BlockingIOError.
AGAIN = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


def read_ahead(reader: io.BufferedReader) -> bytes:
    """Return what a buffered reader of a socket that does not block holds.

    The socket is read at most once, when the buffer is empty. A peer that sends without a pause
    would otherwise never let this end; the transport reads what follows.
    """
    try:
        return reader.read(len(reader.peek(1)))
    except OSError:  # so says a TLS socket that there is no more; a reset shows again at a read
        return b""


class ByteReceiver(Protocol):
    """The user of a transport; called by the hub or the selector thread."""

    def data_received(self, data: bytes) -> None:
        """Take bytes, never empty."""

    @property
    def owes(self) -> bool:
        """Whether something is to be written after the end of the peer's stream."""

    def eof_received(self) -> None:
        """The peer's stream has ended, or an error ended both."""

    def write_drained(self) -> None:
        """All that was kept back has been written; maybe within a write of the outlet's."""

    def write_stalled(self) -> None:
        """The peer has taken nothing for ``send_timeout`` seconds."""

    def write_strained(self) -> None:
        """Something is kept back, and all connections together hold much; under the lock."""


class StreamTransport:
    """Base of the transports; a subclass waits.

    :param sock: connected stream socket, plain or TLS.
    :param send_timeout: seconds that the peer may take nothing while something is kept back.

    ``lock`` guards all of it where several threads use it; :meth:`write` never blocks and writes
    whole what it is given, so frames never interleave.
    """

    __slots__ = (
        "_data_received",
        "_finishing",
        "_linger",
        "_out",
        "_pending",
        "_receiver",
        "_recv",
        "_send",
        "_timer",
        "_written",
        "_written_before",
        "buffered",
        "closed",
        "half_closed",
        "read_size",
        "send_timeout",
        "share",
        "sock",
    )

    lock: AbstractContextManager[Any]
    clock: Clock
    _reading: bool

    def __init__(self, sock: socket.socket, *, send_timeout: float) -> None:
        self.sock = sock
        self.send_timeout = send_timeout
        self.read_size = READ_SIZE
        #: Bytes kept back because the kernel did not take them.
        self.buffered = 0
        self.closed = False
        self.half_closed = False
        #: What its connection holds of the memory of all; whoever owns the transport sets it.
        self.share: Share = UNCOUNTED
        self._finishing = False
        self._linger = True
        self._out: deque[bytes | memoryview] | None = None  # made when it is needed
        self._timer: Timer | None = None
        self._written = 0  # bytes written late, ever; and so many when progress was last checked
        self._written_before = 0
        self._receiver: ByteReceiver
        self._data_received: Callable[[bytes], None]
        self._recv: Callable[[int], bytes] = sock.recv
        self._send: Callable[[bytes | memoryview], int] = sock.send
        # TLS may hold decrypted bytes that no poll of the socket shows.
        self._pending: Callable[[], int] | None = getattr(sock, "pending", None)

    def start(self, receiver: ByteReceiver, *, reading: bool = True) -> None:
        """Begin, and begin to read; :param reading: False where :meth:`resume` will."""
        self._receiver = receiver
        self._data_received = receiver.data_received
        try:
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:
            pass  # a Unix socket has no such option
        if reading:
            self.resume()

    # -- what a subclass adds --------------------------------------------------------------

    def resume(self) -> None:
        """Read what comes."""
        raise NotImplementedError

    def pause(self) -> None:
        """Read nothing until :meth:`resume`; TCP tells the peer."""
        raise NotImplementedError

    def call_soon(self, function: Callable[[], None]) -> None:
        """Call a function in the hub or the selector thread, not before the next turn."""
        raise NotImplementedError

    def call_later(self, delay: float, function: Callable[[], None]) -> Timer:
        """The same after so many seconds."""
        raise NotImplementedError

    def call_next(self, function: Callable[[], None]) -> Timer:
        """The same when all sockets have been looked at; of many such calls, some each time."""
        return self.call_later(0.0, function)

    def call_inside(self, function: Callable[[], None]) -> None:
        """Call a function where only the hub or the selector thread may, at once where that is
        the same."""
        raise NotImplementedError

    def wait_progress(self, timeout: float | None) -> bool:
        """Wait until something was written or the socket closed; False when time is over."""
        raise NotImplementedError

    def _watch_writing(self, wanted: bool) -> None:
        """Have :meth:`_write_ready` called when the kernel takes bytes again."""
        raise NotImplementedError

    def _progressed(self) -> None:
        """Something was written or the socket closed: wake who waits for it."""
        raise NotImplementedError

    # -- reading ---------------------------------------------------------------------------

    def _read_ready(self) -> None:
        # If others have used the time up, the rest stays in the kernel, which is bounded.
        self._read(self.read_size if self.clock.has_time() else LIGHT + 1)

    def read_now(self) -> None:
        """Read at once what has come, in the turn of this connection."""
        if not self.closed and self._reading:
            self._read(self.read_size)

    def _read(self, size: int) -> None:
        try:
            data = self._recv(size)
        except AGAIN:
            return
        except OSError:  # reset by the peer, or TLS broke: the same as its end of file
            data = b""
        if not data:
            if self._receiver.owes:
                self.pause()  # it ends when the rest is written, or cannot be
            else:
                self._end()
            return
        if not self.half_closed:
            self._data_received(data)
        if self._pending is not None and not self.closed and self._pending():
            self.call_next(self._read_on)

    def _read_on(self) -> None:
        """Read what TLS has decrypted already, unless reading stopped meanwhile."""
        if not self.closed and self._reading:
            self._read_ready()

    def look_for_reset(self) -> None:
        """End it in the next turn if the peer has reset the connection.

        While nothing is read or written, a reset shows only in this way.
        """
        if self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._lost()

    def _end(self) -> None:
        """End of file: nothing more can come, so nothing more is waited for."""
        receiver = self._receiver
        self.close()
        receiver.eof_received()

    # -- writing ---------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Write at once what the kernel takes and keep the rest; any greenlet or thread."""
        if self._out:
            self._out.append(data)
            self.buffered += len(data)
            self._hold(data)
            return
        try:
            sent = self._send(data)
        except AGAIN:
            sent = 0
        except OSError:
            self._lost()
            return
        if sent != len(data):
            self._keep(memoryview(data)[sent:])
            self._hold(data)

    def flush(self) -> None:
        """Write of what was kept back what the kernel takes now, without waiting for a turn."""
        if self._out:
            self._write_ready()

    def _keep(self, rest: memoryview) -> None:
        self._out = deque((rest,))
        self.buffered = len(rest)
        self._watch_writing(True)
        self._written_before = self._written
        self._timer = self.call_later(self.send_timeout, self._check_progress)

    def _hold(self, data: bytes) -> None:
        """Count a chunk that was kept back: all of it is in memory until the last byte is sent."""
        self.share.hold(data)
        if self.share.budget.tight:
            self._receiver.write_strained()

    def _forget(self) -> None:
        """Throw away what was kept back."""
        out, self._out = self._out, None
        self.buffered = 0
        for chunk in out or ():
            self.share.release(_whole(chunk))

    def cut(self, most: int) -> bool:
        """Throw away what was kept back, but for the rest of a chunk that was begun: chunks are
        whole frames, so another frame may follow it.

        :param most: bytes that such a rest may have.
        :returns: False where it is larger, or cannot be told: TLS may have encrypted more.
        """
        if not self._out:
            return True
        first = self._out[0]
        begun = len(first) != len(_whole(first))
        if self._pending is not None or (begun and len(first) > most):
            return False
        rest = bytes(first) if begun else b""
        self._stop_writing()
        self._forget()
        if rest:
            self._keep(memoryview(rest))
            self._hold(rest)
        self._progressed()
        return True

    def _check_progress(self) -> None:
        """A peer that takes nothing is given up; what waits for it must not wait for ever."""
        self._timer = None
        if self.closed or not self._out:
            return
        if self._written == self._written_before:
            self._receiver.write_stalled()
            return
        self._written_before = self._written
        self._timer = self.call_later(self.send_timeout, self._check_progress)

    def _write_ready(self) -> None:
        out = self._out
        while out:
            chunk = out[0]
            try:
                sent = self._send(chunk)
            except AGAIN:
                return
            except OSError:
                self._lost()
                return
            self.buffered -= sent
            self._written += sent
            if sent != len(chunk):
                out[0] = memoryview(chunk)[sent:]
                self.share.since = monotonic()
                self._progressed()
                return
            out.popleft()
            self.share.release(_whole(chunk))
        self._stop_writing()
        self._progressed()
        self._receiver.write_drained()
        if self._finishing:
            self._finish()

    def _stop_writing(self) -> None:
        """Wait no longer for the kernel to take bytes."""
        self._watch_writing(False)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _lost(self) -> None:
        """A write failed: the peer has gone. Told in the next turn, never inside a send."""
        self._forget()
        self.call_soon(self._end_once)

    def _end_once(self) -> None:
        if not self.closed:
            self._end()

    # -- the end ---------------------------------------------------------------------------

    def finish(self, linger: bool = True) -> None:
        """Half-close once all is written; what the peer sends from now on is thrown away.

        :param linger: False where the peer has said its last word: close at once.
        """
        if self.closed or self._finishing:
            return
        self._finishing = True
        self._linger = linger
        if not self._out:
            self._finish()

    def _finish(self) -> None:
        if self._linger:
            self._half_close()
        else:
            self._notify_close()
            self._end()

    def _half_close(self) -> None:
        self.half_closed = True
        try:
            self._notify_close()
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.call_soon(self._end_once)  # the peer was faster
        self.resume()

    def _notify_close(self) -> None:
        """Tell a TLS peer that no more comes; its own notice is not waited for."""
        unwrap = getattr(self.sock, "unwrap", None)
        if unwrap is not None:
            try:
                unwrap()
            except (OSError, ValueError):
                pass  # it wants to read that notice

    def close(self) -> None:
        """Shut the connection down at once; what was kept back is lost. Can be repeated."""
        if self.closed:
            return
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._forget()
        self._send = _discard  # so that no write has to look
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # not connected any more
        self._progressed()


def _discard(data: bytes | memoryview) -> int:
    """Stand in for ``socket.send`` of a closed connection: nothing is sent, and nothing kept."""
    return len(data)


def _whole(chunk: bytes | memoryview) -> bytes:
    """Return the bytes that a chunk is the rest of."""
    return chunk.obj if isinstance(chunk, memoryview) else chunk  # type: ignore[return-value]  # it is of bytes
