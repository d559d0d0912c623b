"""Base of the transports: buffered, non-blocking reads and writes on one connected socket.

A transport owns a connected stream socket between the 101 response and the end. The server that
accepted the socket closes its descriptor; the transport only shuts the socket down.

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
"""Bytes requested in one read: enough for a frame of 64 KiB with its header."""

READ_SIZE_LARGE = 256 * 1024
"""Bytes requested in one read in the middle of a larger frame."""

LIGHT = 256
"""Input of at most so many bytes is processed at once, even if the turn has no time left."""

# Errors of a socket that would block; the TLS ones are not subclasses of BlockingIOError.
AGAIN = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


def read_ahead(reader: io.BufferedReader) -> bytes:
    """Return the bytes that a buffered reader of a non-blocking socket holds.

    If the buffer is empty, the socket is read once. Further reads are left to the transport,
    because with a peer that sends without a pause they would never end.
    """
    try:
        return reader.read(len(reader.peek(1)))
    except OSError:  # a TLS socket without data; after a reset, the next read fails again
        return b""


class ByteReceiver(Protocol):
    """The user of a transport; called by the hub or the selector thread."""

    def data_received(self, data: bytes) -> None:
        """Process bytes from the peer; never empty."""

    @property
    def owes(self) -> bool:
        """Whether bytes must still be written after the end of the peer's stream."""

    def eof_received(self) -> None:
        """React to the end: the peer has closed its stream, or an error has ended both."""

    def write_drained(self) -> None:
        """React to an empty send buffer; the call may come within a write of the outlet's."""

    def write_stalled(self) -> None:
        """React to a peer that has read nothing for ``send_timeout`` seconds."""

    def write_strained(self) -> None:
        """React to unsent bytes while the budget is tight; under the lock."""


class StreamTransport:
    """Reads and writes one connection; subclasses add waiting, by gevent or by threads.

    :param sock: connected stream socket, plain or TLS.
    :param send_timeout: seconds that the peer may read nothing while bytes are buffered.

    ``lock`` guards all attributes if several threads use the transport. :meth:`write` never blocks
    and never splits its data around another write, so frames do not interleave.
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
        #: Bytes in the send buffer, because the kernel did not accept them yet.
        self.buffered = 0
        self.closed = False
        self.half_closed = False
        #: Counts the memory of this connection in the budget; set by the owner of the transport.
        self.share: Share = UNCOUNTED
        self._finishing = False
        self._linger = True
        self._out: deque[bytes | memoryview] | None = None  # send buffer, made when needed
        self._timer: Timer | None = None
        self._written = 0  # bytes ever written from the send buffer
        self._written_before = 0  # the same at the last check of progress
        self._receiver: ByteReceiver
        self._data_received: Callable[[bytes], None]
        self._recv: Callable[[int], bytes] = sock.recv
        self._send: Callable[[bytes | memoryview], int] = sock.send
        # TLS may hold decrypted bytes that no poll of the socket shows.
        self._pending: Callable[[], int] | None = getattr(sock, "pending", None)

    def start(self, receiver: ByteReceiver, *, reading: bool = True) -> None:
        """Start the transport; :param reading: False to read only after :meth:`resume`."""
        self._receiver = receiver
        self._data_received = receiver.data_received
        try:
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:
            pass  # a Unix socket has no such option
        if reading:
            self.resume()

    # -- methods of subclasses -------------------------------------------------------------

    def resume(self) -> None:
        """Start or continue to read."""
        raise NotImplementedError

    def pause(self) -> None:
        """Stop reading until :meth:`resume`; TCP makes the peer wait."""
        raise NotImplementedError

    def call_soon(self, function: Callable[[], None]) -> None:
        """Call a function in the hub or the selector thread, in the next turn or later."""
        raise NotImplementedError

    def call_later(self, delay: float, function: Callable[[], None]) -> Timer:
        """Call a function in the hub or the selector thread after ``delay`` seconds."""
        raise NotImplementedError

    def call_next(self, function: Callable[[], None]) -> Timer:
        """Call a function there once all sockets have been polled; many calls are spread out."""
        return self.call_later(0.0, function)

    def call_inside(self, function: Callable[[], None]) -> None:
        """Call a function in the hub or the selector thread; at once if the caller runs in the
        hub."""
        raise NotImplementedError

    def wait_progress(self, timeout: float | None) -> bool:
        """Wait until bytes are written or the socket is closed; False after the timeout."""
        raise NotImplementedError

    def _watch_writing(self, wanted: bool) -> None:
        """Start or stop calling :meth:`_write_ready` when the kernel accepts bytes again."""
        raise NotImplementedError

    def _progressed(self) -> None:
        """Wake :meth:`wait_progress`: bytes were written, or the socket is closed."""
        raise NotImplementedError

    # -- reading ---------------------------------------------------------------------------

    def _read_ready(self) -> None:
        # If other sockets have used up the turn, the rest stays in the kernel's bounded buffer.
        self._read(self.read_size if self.clock.has_time() else LIGHT + 1)

    def read_now(self) -> None:
        """Read at once, in the turn of this connection."""
        if not self.closed and self._reading:
            self._read(self.read_size)

    def _read(self, size: int) -> None:
        try:
            data = self._recv(size)
        except AGAIN:
            return
        except OSError:  # a reset or a TLS error counts as end of file
            data = b""
        if not data:
            if self._receiver.owes:
                self.pause()  # the end follows when the rest is written, or the write fails
            else:
                self._end()
            return
        if not self.half_closed:
            self._data_received(data)
        if self._pending is not None and not self.closed and self._pending():
            self.call_next(self._read_on)

    def _read_on(self) -> None:
        """Read the bytes that TLS has already decrypted, unless reading was paused meanwhile."""
        if not self.closed and self._reading:
            self._read_ready()

    def look_for_reset(self) -> None:
        """End the connection in the next turn if the peer has reset it.

        Without reads and writes, no other call shows a reset.
        """
        if self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._lost()

    def _end(self) -> None:
        """Close at once, since the peer's stream has ended."""
        receiver = self._receiver
        self.close()
        receiver.eof_received()

    # -- writing ---------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Write as much as the kernel accepts and buffer the rest; for any greenlet or thread."""
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
        """Write buffered bytes now, as many as the kernel accepts, without waiting for a turn."""
        if self._out:
            self._write_ready()

    def _keep(self, rest: memoryview) -> None:
        self._out = deque((rest,))
        self.buffered = len(rest)
        self._watch_writing(True)
        self._written_before = self._written
        self._timer = self.call_later(self.send_timeout, self._check_progress)

    def _hold(self, data: bytes) -> None:
        """Count a buffered chunk: all of its bytes stay in memory until the last one is sent."""
        self.share.hold(data)
        if self.share.budget.tight:
            self._receiver.write_strained()

    def _forget(self) -> None:
        """Discard the send buffer."""
        out, self._out = self._out, None
        self.buffered = 0
        for chunk in out or ():
            self.share.release(_whole(chunk))

    def cut(self, most: int) -> bool:
        """Discard the send buffer, except the rest of a chunk that was begun. Chunks are whole
        frames, so another frame may follow this rest.

        :param most: size limit of the rest, in bytes.
        :returns: False if the rest is larger, or unknown because TLS may have encrypted more.
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
        """Report a peer that has read nothing since the last check: senders must not hang."""
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
        """Stop waiting for the kernel to accept bytes."""
        self._watch_writing(False)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _lost(self) -> None:
        """End the connection in the next turn, never inside a send: a write has failed."""
        self._forget()
        self.call_soon(self._end_once)

    def _end_once(self) -> None:
        if not self.closed:
            self._end()

    # -- the end ---------------------------------------------------------------------------

    def finish(self, linger: bool = True) -> None:
        """Half-close once the send buffer is written; later input is discarded.

        :param linger: False to close fully, if the peer will send nothing more.
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
            self.call_soon(self._end_once)  # the peer has closed first
        self.resume()

    def _notify_close(self) -> None:
        """Send TLS's close notify, without waiting for the peer's."""
        unwrap = getattr(self.sock, "unwrap", None)
        if unwrap is not None:
            try:
                unwrap()
            except (OSError, ValueError):
                pass  # unwrap() wants to read the peer's notice

    def close(self) -> None:
        """Shut the connection down at once and discard the send buffer; repeated calls are safe."""
        if self.closed:
            return
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._forget()
        self._send = _discard  # spares each write a check of `closed`
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # no longer connected
        self._progressed()


def _discard(data: bytes | memoryview) -> int:
    """Replace ``socket.send`` of a closed connection: nothing is sent or buffered."""
    return len(data)


def _whole(chunk: bytes | memoryview) -> bytes:
    """Return the complete bytes of a chunk that may be the rest of a partial write."""
    return chunk.obj if isinstance(chunk, memoryview) else chunk  # type: ignore[return-value]  # a view of bytes
