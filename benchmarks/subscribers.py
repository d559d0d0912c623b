"""The load of event streams: listeners that ask for a stream instead of a WebSocket.

A server that begins its response with the first event says nothing until then. So that none is
published too early, somebody else has to know how many streams it has.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from .exchange import EventCounter
from .listeners import IN_FLIGHT, Listeners, receive_until
from .load import CRLF, LoadError

POLL = 0.02  # seconds between two looks at how many there are
END_OF_HEAD = CRLF * 2
END_OF_EVENT = b"\n\n"
STREAM = b"text/event-stream"
CHUNKED = b"transfer-encoding: chunked"


class Subscribers(Listeners):
    """Streams of events (WHATWG HTML §9.2), with a chunk for each event or without chunks.

    :param count: tells how many streams the server has; None: their heads, which come at once and
        with the first lines, tell it.
    """

    farewell = b""

    def __init__(self, size: int = 300, *, count: Callable[[], int] | None = None) -> None:
        super().__init__(size)
        self._count = count
        self._end = END_OF_EVENT

    def open(self, port: int, count: int, timeout: float, target: str = "/stream") -> None:
        """Open ``count`` more streams, many of them at once; see :meth:`Listeners.open`."""
        if self._count is None:
            super().open(port, count, timeout, target)
            return
        deadline, most = time.monotonic() + timeout, len(self.sockets) + count
        while missing := most - len(self.sockets):
            left = max(deadline - time.monotonic(), 0.001)
            super().open(port, min(missing, IN_FLIGHT), left, target)
            while (there := self._count()) < len(self.sockets):
                if time.monotonic() > deadline:
                    raise LoadError(f"{there:,} of {most:,} streams in {timeout:.0f} s")
                time.sleep(POLL)

    def _request(self, port: int, target: str) -> bytes:
        return (
            f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: {STREAM.decode()}\r\n\r\n"
        ).encode()

    def _counter(self) -> EventCounter:
        return EventCounter(self._end)

    def _accepted(self, sock: socket.socket, deadline: float) -> bytes:
        """Wait for the head and the first lines; they are of no event."""
        if self._count is None:
            early = self._begun(receive_until(sock, END_OF_HEAD, deadline))
            receive_until(sock, self._end, deadline, early)
        return b""

    def _learn_from(self, sock: socket.socket, deadline: float, data: bytes = b"") -> None:
        if self._count is not None and not data:
            data = self._begun(receive_until(sock, END_OF_HEAD, deadline))
        super()._learn_from(sock, deadline, data)

    def _begun(self, data: bytes) -> bytes:
        """Look at a head, and return what came behind it."""
        head, _, early = data.partition(END_OF_HEAD)
        if not head.startswith(b"HTTP/1.1 200 ") or STREAM not in head:
            raise LoadError(f"a stream was answered with {head.partition(CRLF)[0]!r}")
        self._end = END_OF_EVENT + CRLF if CHUNKED in head.lower() else END_OF_EVENT
        return early
