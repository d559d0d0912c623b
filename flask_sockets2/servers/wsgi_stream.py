"""Endless response, such as an event stream: a WSGI body that any thread may write to.

The server iterates over the body, and waits in between for :meth:`Stream.write`. For the writer, a
stream has the interface of a transport; the server takes the place of the kernel. ``buffered``
counts bytes until the server asks for the next piece: before, the server may still be sending them.

Under our own handler the stream moves to the socket itself (:meth:`Stream.move`), and the request
ends. The states of a stream in both cases::

    OPEN ─ end() ─> ENDING ─ all was taken ─> CLOSED
      └─ the peer or the server ends it, close(), abort() ─> CLOSED

A WSGI server notices that the client has left only when it next writes, and sometimes later still.
So at each heartbeat the stream checks the server's socket, if the environ has the socket.
"""

from __future__ import annotations

import _socket
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from time import monotonic
from typing import Any, Protocol

from ..connection.connection_log import STREAM_LOG
from ..connection.keepalive import keepalive_of
from ..connection.lifecycle import Keeper
from ..transports.base import StreamTransport
from ..transports.budget import Budget, Share
from ..transports.clock import Clock
from ..transports.current import current_clock
from .takeover import client_socket

__all__ = ["Body", "Stream", "Writing", "has_ended"]

logger = logging.getLogger("flask_sockets2.streams")

_CHUNK = 65536  # bytes handed to the server at a time
_STEP = 3600.0  # seconds; even an endless wait needs a timer, which keeps a hub running

_opened: set[Stream] = set()  # streams of this process that have not ended
_registered = False

if hasattr(os, "register_at_fork"):  # a forked child must not end its parent's streams
    os.register_at_fork(after_in_child=_opened.clear)


class Writing(Protocol):
    """Writer of a stream; the clock's thread calls its methods, or any thread under the lock."""

    def write_drained(self) -> None:
        """Called when the stream's buffer is empty."""

    def moved(self, transport: StreamTransport) -> None:
        """Called when the writer must write to ``transport`` from now on, not to the stream."""

    def ended(self) -> None:
        """Called once, when the stream accepts no more data."""


class Stream:
    """Writing end of one endless response.

    :param environ: WSGI environ of the request; the stream keeps no reference.
    :param writing: writer of the stream, whose methods are the callbacks.
    :param beat: bytes of a heartbeat, which the client ignores.
    :param interval: seconds between two heartbeats.
    :param send_timeout: seconds without progress until the client is dropped; the heartbeat checks.
    :param close_timeout: seconds to send the rest after :meth:`end`.
    :param budget: memory budget for the stream's buffer.

    Any thread may write, under :attr:`lock`.
    """

    __slots__ = (
        "_beat",
        "_begun",
        "_close_timeout",
        "_ending",
        "_out",
        "_since",
        "_sock",
        "_under_way",
        "_waiter",
        "_writing",
        "buffered",
        "clock",
        "closed",
        "keeper",
        "lock",
        "path",
        "ping_interval",
        "ping_timeout",
        "send_timeout",
        "share",
        "transport",
    )

    def __init__(
        self,
        environ: Mapping[str, Any],
        writing: Writing,
        *,
        beat: bytes,
        interval: float,
        send_timeout: float,
        close_timeout: float,
        budget: Budget,
    ) -> None:
        self.clock: Clock = current_clock()
        self._waiter = self.clock.waiter()
        self.lock = self._waiter.lock
        self.path = environ.get("PATH_INFO")
        #: Bytes that the server has not taken, or is still sending. Bytes of :meth:`begin` count
        #: from the server's first :meth:`take`: until then no client can be too slow.
        self.buffered = 0
        self.closed = False
        #: Share of the memory budget.
        self.share = Share(budget, self)
        #: Transport of a stream that was moved to the socket.
        self.transport: StreamTransport | None = None
        #: Server to notify of the end, if the stream outlives its request.
        self.keeper: Keeper | None = None
        #: For :class:`~flask_sockets2.connection.keepalive.Keepalive`; a heartbeat has no answer.
        self.ping_interval: float | None = interval
        self.ping_timeout: float | None = None
        self._beat = beat
        self.send_timeout = send_timeout
        self._close_timeout = close_timeout
        self._writing: Writing | None = writing
        self._out: deque[bytes] = deque()
        self._begun = False  # True from the server's first take()
        self._under_way = 0  # bytes that the server is sending
        self._since = monotonic()  # time of the last take()
        self._ending = False
        self._sock = client_socket(environ)
        _register(self.clock, environ)
        _opened.add(self)
        self._inside(self._watch)
        STREAM_LOG.opened(self.path, environ.get("REMOTE_ADDR"))

    @staticmethod
    def opened() -> list[Stream]:
        """Return all streams of this process that have not ended."""
        return list(_opened)

    def _inside(self, function: Callable[[], None]) -> None:
        """Call a function in the hub or the selector thread, at once if this is that thread."""
        if self.clock.inside():
            function()
        else:
            self.clock.call_soon(function)

    def _watch(self) -> None:
        if not self.closed:
            keepalive_of(self.clock).watch(self)

    # -- writing ---------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Append data to the buffer."""
        with self.lock:
            if self.transport is not None:
                self.transport.write(data)
            elif data and not self.closed and not self._ending:
                if not self._out:  # else the server is not waiting
                    self._waiter.wake_soon()
                self._out.append(data)
                self.buffered += len(data)
                self.share.hold(data)

    def begin(self, data: bytes) -> None:
        """Put data in front of the buffer; call this before the server's first :meth:`take`."""
        with self.lock:
            if data and not self.closed:
                self._out.appendleft(data)
                self.share.hold(data)

    def flush(self) -> None:
        """Do nothing: the server takes the buffer as soon as possible."""

    # -- the server ------------------------------------------------------------------------

    def take(self) -> bytes:
        """Wait for data to send; the server has sent all data of the call before.

        :returns: at most 64 KiB or one piece; empty at the end of the stream.
        """
        with self.lock:
            self._count_taken()
            if not self._begun:
                self._begun = True
                self.buffered = sum(map(len, self._out))
            while not (self._out or self._ending or self.closed):
                with suppress(TimeoutError):
                    self._waiter.wait(_STEP)
            chunk: list[bytes] = []
            size = 0
            while self._out and (not chunk or size + len(self._out[0]) <= _CHUNK):
                piece = self._out.popleft()
                self.share.release(piece)
                chunk.append(piece)
                size += len(piece)
            if not chunk:
                self.close()
            self._under_way, self._since = size, monotonic()
            self.share.count(size)
        return b"".join(chunk)

    def _count_taken(self) -> None:
        size, self._under_way = self._under_way, 0
        self.share.count(-size)
        if size and not self.closed:
            self.buffered -= size
            if not self.buffered and self._writing is not None:
                self._writing.write_drained()

    def _forget(self) -> None:
        """Clear the buffer."""
        for piece in self._out:
            self.share.release(piece)
        self._out.clear()
        self.share.count(-self._under_way)
        self.buffered = self._under_way = 0

    def move(self, transport: StreamTransport) -> None:
        """Write to the socket itself from now on; called in the clock's thread, when the server
        has sent all data that it took."""
        rest = b"".join(self._out)
        self._forget()
        self._sock = None
        self.transport = transport
        transport.share = self.share
        transport.start(self)
        if rest:
            transport.write(rest)
        if self._writing is not None:
            self._writing.moved(transport)
            if not transport.buffered:
                self._writing.write_drained()
        if self._ending:
            transport.finish()

    # -- the end ---------------------------------------------------------------------------

    def end(self) -> None:
        """End the stream when the buffer is sent, within the close timeout; any thread."""
        with self.lock:
            if self.closed or self._ending:
                return
            self._ending = True
            self._tell_end()
            self._waiter.wake_soon()
            if self.transport is not None:
                self.transport.finish()
            self.clock.call_later(self._close_timeout, self.abort)

    def abort(self) -> None:
        """End the stream at once; if the server is blocked in a write, the write fails."""
        with self.lock:
            sock = self._sock if self._under_way else None
            self.close()
            if sock is not None:
                _shut(sock)

    def evict(self) -> None:
        """End the stream, since all buffers together exceed the budget; the browser reconnects."""
        STREAM_LOG.evicted(self.path, self.share.held)
        self.abort()

    def close(self) -> None:
        """End the stream without sending the rest; may be called again."""
        with self.lock:
            if self.closed:
                return
            self.closed = True
            self._forget()
            self._sock = None
            _opened.discard(self)
            self._waiter.wake_soon()
            if self.transport is not None:
                self.transport.close()
            try:
                self._tell_end()
            finally:
                self._inside(lambda: keepalive_of(self.clock).forget(self))
                keeper, self.keeper = self.keeper, None
                if keeper is not None:
                    keeper.forget(self)
        logger.info(
            "closed %.200r",
            self.path,
            extra={"event": "closed", "path": self.path and self.path[:200]},
        )

    def _tell_end(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.ended()

    # -- keepalive -------------------------------------------------------------------------

    def heard(self) -> int:
        return 0

    def keepalive_ping(self) -> None:
        """Send a heartbeat, or end the stream if the client has left or takes nothing."""
        with self.lock:
            if self.closed:
                return
            if self.transport is not None:
                if not self.transport.buffered:
                    self.transport.write(self._beat)
            elif self._sock is not None and has_ended(self._sock):
                self.abort()
            elif self._begun and not self._under_way:
                self.write(self._beat)
            elif monotonic() - self._since >= self.send_timeout:
                self._drop()

    def keepalive_failed(self) -> None:
        """Never called: a heartbeat has no answer."""

    def _drop(self) -> None:
        reason = f"the peer took nothing for {self.send_timeout} s (SOCKETS_SEND_TIMEOUT)"
        STREAM_LOG.dropped(self.path, reason)
        self.abort()

    # -- the socket itself, once it was moved there ----------------------------------------

    @property
    def owes(self) -> bool:
        return False

    def data_received(self, data: bytes) -> None:
        """Discard data from the client."""

    def eof_received(self) -> None:
        self.close()

    def write_drained(self) -> None:
        if self._writing is not None:
            self._writing.write_drained()

    def write_stalled(self) -> None:
        self._drop()

    def write_strained(self) -> None:
        """Read on: data from the client is discarded."""


class Body(Iterator[bytes]):
    """WSGI body, from which the server takes the stream's data. The stream has no reference to its
    body: if the server drops the body without closing it, the stream ends."""

    __slots__ = ("stream",)

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def __next__(self) -> bytes:
        try:
            data = self.stream.take()
        except BaseException:  # killed while it waited
            self.close()
            raise
        if not data:
            raise StopIteration
        return data

    def close(self) -> None:
        """Close the stream, unless it has moved to the socket; called by the server (PEP 3333)."""
        if self.stream.transport is None:
            self.stream.close()

    def __del__(self) -> None:
        stream = self.stream
        if not stream.closed and stream.transport is None:
            # Not in here: the garbage collector may run while locks are held.
            stream.clock.call_soon(stream.close)


def _register(clock: Clock, environ: Mapping[str, Any]) -> None:
    """Abort streams at the end of the process, and warn if the server has a single thread."""
    global _registered
    if clock.threaded and not _registered:
        _registered = True
        clock.at_exit(_abort_all)
        if not environ.get("wsgi.multithread", True):
            logger.warning(
                "this server works on one request at a time, so an open stream blocks all others; "
                "start it with threads, or with gunicorn -k flask_sockets2.worker"
            )


def _abort_all() -> None:
    """Abort all streams at the end of the process, so that waiting servers do not delay it."""
    for stream in Stream.opened():
        stream.abort()


def has_ended(sock: Any) -> bool:
    """Return whether the client has closed the connection, without reading any data."""
    try:
        # A separate descriptor: the server's socket object may have a timeout, or be TLS.
        with closing(_socket.socket(fileno=os.dup(sock.fileno()))) as copy:
            return bool(copy.recv(1, _socket.MSG_PEEK | _socket.MSG_DONTWAIT) == b"")
    except BlockingIOError:
        return False
    except OSError:
        return True


def _shut(sock: Any) -> None:
    """Make the server's blocked write fail. The method is the C class's: gevent's would raise in
    the server's greenlet, and a TLS socket's would remove TLS during the write."""
    try:
        _socket.socket.shutdown(getattr(sock, "_sock", sock), _socket.SHUT_RDWR)
    except OSError:
        pass  # not connected any more
