"""A response without an end: a WSGI body that others write to, until its peer leaves.

A server takes a body piece by piece and waits in between: here for what :meth:`Stream.write` is
given. To who writes a stream is a transport, of which the kernel is the server. ``buffered`` counts
what the server has not come back from, since only then the peer's kernel may have it.

Under our own handler a stream is moved to the socket itself (:meth:`Stream.move`), and the request
is over. Its life in both cases::

    OPEN ─ end() ─> ENDING ─ all was taken ─> CLOSED
      └─ the peer or the server ends it, close(), abort() ─> CLOSED

A server does not say that a peer has left but when it writes to it, and at the end of the peer's
stream not even at once. So a stream looks at the server's socket, where that is to be found, at
each heartbeat.
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
_STEP = 3600.0  # seconds; a wait without an end needs a timer, which keeps a hub running

_opened: set[Stream] = set()  # those of this process that have not ended
_registered = False

if hasattr(os, "register_at_fork"):  # a forked child must not end what is its parent's
    os.register_at_fork(after_in_child=_opened.clear)


class Writing(Protocol):
    """Who writes to a stream; called by the clock's thread or under the stream's lock."""

    def write_drained(self) -> None:
        """All that was written has been taken."""

    def moved(self, transport: StreamTransport) -> None:
        """From now on this is written to, in place of the stream."""

    def ended(self) -> None:
        """Nothing more can be written; called once."""


class Stream:
    """The writing end of one response.

    :param environ: WSGI environ of the request; nothing keeps it.
    :param writing: who writes to it, told of what happens.
    :param beat: bytes of a heartbeat, which the peer ignores.
    :param interval: seconds between two heartbeats.
    :param send_timeout: seconds that the peer may take nothing; it is looked at with the heartbeat.
    :param close_timeout: seconds for the rest to be taken once it is to end.
    :param budget: that what it holds counts for.

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
        #: Bytes that the server has not taken, or not come back from. What it begins with counts
        #: from when the server comes: no peer is too slow for that.
        self.buffered = 0
        self.closed = False
        #: What it holds of the memory of all.
        self.share = Share(budget, self)
        #: What it was moved to.
        self.transport: StreamTransport | None = None
        #: Who is told of its end, where it outlives its request.
        self.keeper: Keeper | None = None
        #: For :class:`~flask_sockets2.connection.keepalive.Keepalive`; nobody answers a heartbeat.
        self.ping_interval: float | None = interval
        self.ping_timeout: float | None = None
        self._beat = beat
        self.send_timeout = send_timeout
        self._close_timeout = close_timeout
        self._writing: Writing | None = writing
        self._out: deque[bytes] = deque()
        self._begun = False  # the server has come for it
        self._under_way = 0  # bytes that the server was handed, and when
        self._since = monotonic()
        self._ending = False
        self._sock = client_socket(environ)
        _register(self.clock, environ)
        _opened.add(self)
        self._inside(self._watch)
        STREAM_LOG.opened(self.path, environ.get("REMOTE_ADDR"))

    @staticmethod
    def opened() -> list[Stream]:
        """All streams of this process that have not ended."""
        return list(_opened)

    def _inside(self, function: Callable[[], None]) -> None:
        """Call a function in the hub or the selector thread."""
        if self.clock.inside():
            function()
        else:
            self.clock.call_soon(function)

    def _watch(self) -> None:
        if not self.closed:
            keepalive_of(self.clock).watch(self)

    # -- writing ---------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Write something, behind what is there."""
        with self.lock:
            if self.transport is not None:
                self.transport.write(data)
            elif data and not self.closed and not self._ending:
                if not self._out:  # else the server does not wait
                    self._waiter.wake_soon()
                self._out.append(data)
                self.buffered += len(data)
                self.share.hold(data)

    def begin(self, data: bytes) -> None:
        """Write something in front of all that is there; before the server comes for it."""
        with self.lock:
            if data and not self.closed:
                self._out.appendleft(data)
                self.share.hold(data)

    def flush(self) -> None:
        """Do nothing: the server takes what there is as soon as it can."""

    # -- the server ------------------------------------------------------------------------

    def take(self) -> bytes:
        """Wait for something to send; the server has sent what it was given before.

        :returns: at most 64 KiB or one piece, empty at the end.
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
        """Hold nothing any more that the server was to be given."""
        for piece in self._out:
            self.share.release(piece)
        self._out.clear()
        self.share.count(-self._under_way)
        self.buffered = self._under_way = 0

    def move(self, transport: StreamTransport) -> None:
        """Write to the socket itself from now on; in the clock's thread, when the server has sent
        all that it was given."""
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
        """End it once all that was written is taken, which must not take long; any thread."""
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
        """End it at once; a server that waits for the peer to take something fails."""
        with self.lock:
            sock = self._sock if self._under_way else None
            self.close()
            if sock is not None:
                _shut(sock)

    def evict(self) -> None:
        """End it: all connections together hold too much. The browser connects again."""
        STREAM_LOG.evicted(self.path, self.share.held)
        self.abort()

    def close(self) -> None:
        """The peer or the server has ended it: nothing is sent any more. Can be repeated."""
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
        """Send a heartbeat, and see whether there is anybody to have it."""
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
        """Never called: no answer is waited for."""

    def _drop(self) -> None:
        reason = f"the peer took nothing for {self.send_timeout} s (SOCKETS_SEND_TIMEOUT)"
        STREAM_LOG.dropped(self.path, reason)
        self.abort()

    # -- the socket itself, once it was moved there ----------------------------------------

    @property
    def owes(self) -> bool:
        return False

    def data_received(self, data: bytes) -> None:
        """A client has nothing to say any more; it is thrown away."""

    def eof_received(self) -> None:
        self.close()

    def write_drained(self) -> None:
        if self._writing is not None:
            self._writing.write_drained()

    def write_stalled(self) -> None:
        self._drop()

    def write_strained(self) -> None:
        """Read on: what a client of a stream sends is thrown away."""


class Body(Iterator[bytes]):
    """What the server takes a stream from; nothing of the stream's refers to it, so that one which
    the server has forgotten ends its stream."""

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
        """The server is done with it (PEP 3333); a stream that was moved lives on."""
        if self.stream.transport is None:
            self.stream.close()

    def __del__(self) -> None:
        stream = self.stream
        if not stream.closed and stream.transport is None:
            # Not in here: the garbage collector may run where locks are held.
            stream.clock.call_soon(stream.close)


def _register(clock: Clock, environ: Mapping[str, Any]) -> None:
    """See to the end of the process, and warn of a server that can do nothing else meanwhile."""
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
    """The process ends: a server that waits for a stream must not keep it alive."""
    for stream in Stream.opened():
        stream.abort()


def has_ended(sock: Any) -> bool:
    """Whether the peer has closed a server's socket; whatever it has sent stays unread."""
    try:
        # A descriptor of its own: the server's object may have a timeout, or be TLS.
        with closing(_socket.socket(fileno=os.dup(sock.fileno()))) as copy:
            return bool(copy.recv(1, _socket.MSG_PEEK | _socket.MSG_DONTWAIT) == b"")
    except BlockingIOError:
        return False
    except OSError:
        return True


def _shut(sock: Any) -> None:
    """Have a server that waits to write to a socket fail; by the C class, since gevent's would
    raise in its greenlet and a TLS one would take TLS away from under it."""
    try:
        _socket.socket.shutdown(getattr(sock, "_sock", sock), _socket.SHUT_RDWR)
    except OSError:
        pass  # not connected any more
