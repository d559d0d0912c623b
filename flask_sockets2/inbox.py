"""Inbox: the messages that come over one connection, on their way to its handler.

A message goes straight to the greenlet or thread that waits for it, where one does, else into a
queue. While that holds more than ``receive_buffer`` bytes, and for as long as the peer is ahead of
``max_message_rate``, nothing more is read: TCP tells the peer to wait.
"""

from __future__ import annotations

from collections import deque
from math import inf
from sys import getsizeof
from time import monotonic
from typing import Any, Protocol

from .limits import Limits
from .rates import TokenBucket
from .stats import RouteCounters
from .transports.base import StreamTransport, Timer

__all__ = ["Inbox"]


class Reader(Protocol):
    """Who reads from the transport."""

    def read_on(self) -> None:
        """Take up reading where it was left; by the hub or the selector thread."""


class Inbox:
    """What has come for one handler.

    :param reader: told when reading may go on.
    :param transport: that is read from, and paused.
    :param limits: of the connection.
    :param counters: of its route.
    """

    __slots__ = (
        "_bucket",
        "_buffer",
        "_counters",
        "_queued",
        "_reader",
        "_slowed",
        "_taken",
        "_transport",
        "deaf",
        "handling",
        "messages",
        "paused",
    )

    def __init__(
        self, reader: Reader, transport: StreamTransport, limits: Limits, counters: RouteCounters
    ) -> None:
        #: Unread messages, then None for the end; None where nothing has ever waited here.
        self.messages: deque[Any] | None = None
        #: The handler has received and not yet come back for more.
        self.handling = False
        #: The handler has returned: what comes is thrown away.
        self.deaf = False
        #: Nothing is read for now.
        self.paused = False
        self._reader = reader
        self._transport = transport
        self._counters = counters
        self._buffer: float = limits.receive_buffer
        self._queued = 0  # bytes ever put into the queue: the reader's; and taken: the handler's
        self._taken = 0
        rate = limits.max_message_rate
        self._bucket = TokenBucket(rate, monotonic()) if rate else None
        self._slowed: Timer | None = None  # until when reading is paused because of the rate

    # -- the reader ------------------------------------------------------------------------

    def deliver(self, messages: list[Any], extra: int = 0) -> None:
        """Hand messages over, or keep them.

        :param extra: frames that came with them, and count like messages.
        """
        transport = self._transport
        self._counters.messages_in += len(messages)
        for message in messages:
            if self.deaf:
                break
            if transport.waiting is not None and not self.messages:
                self.handling = True  # now: its thread may be slower than a close frame behind it
                transport.wake(message)
            else:
                self._keep(message)
        if self._bucket is not None:
            self._slow_down(self._bucket.owe(len(messages) + extra, monotonic()))

    def _keep(self, message: Any) -> None:
        if self.messages is None:
            self.messages = deque()
        self._queued += getsizeof(message)
        self.messages.append(message)
        if self._queued - self._taken > self._buffer:
            self._pause()

    def end(self) -> None:
        """Put the end behind what is there."""
        if self.messages is None:
            self.messages = deque()
        self.messages.append(None)

    def _pause(self) -> None:
        """The handler does not keep up: TCP tells the peer to wait."""
        self.paused = True
        self._transport.pause()
        if self._queued - self._taken <= self._buffer:
            self._resume_when_caught_up()  # it has caught up just now, in another thread

    def _slow_down(self, seconds: float) -> None:
        """The peer has sent more than its rate allows: TCP tells it to wait."""
        if seconds:
            if self._slowed is None:
                self._counters.slowed += 1
                self._slowed = self._transport.call_later(seconds, self._speed_up)
            self.paused = True
            self._transport.pause()

    def _speed_up(self) -> None:
        self._slowed = None
        self._resume_when_caught_up()

    def _resume_when_caught_up(self) -> None:
        if self._slowed is None and self._queued - self._taken <= self._buffer // 2:
            self._resume()

    def _resume(self) -> None:
        if self.paused:
            self.paused = False
            self._transport.call_soon(self._reader.read_on)

    def stop_pausing(self) -> None:
        """Read whatever still comes: the connection is closing."""
        self._buffer = inf
        self._bucket = None
        if self._slowed is not None:
            self._slowed.cancel()
            self._slowed = None
        self._resume()

    # -- the handler -----------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether the handler has messages to see to."""
        return self.handling or bool(self.messages)

    def took(self, message: Any) -> None:
        """It has taken a message that waited."""
        self.handling = True
        self._taken += getsizeof(message)
        if self.paused:
            with self._transport.lock:  # the reader may be about to pause for another reason
                self._resume_when_caught_up()

    def clear(self) -> None:
        """Throw away what waits."""
        self.messages = None
        self._queued = self._taken = 0
        self.handling = False

    def leave(self) -> None:
        """Throw away what waits and what comes: the handler has returned."""
        self.deaf = True
        self.clear()
        self._resume()
