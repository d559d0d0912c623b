"""Inbox: the messages that come over one connection, on their way to its handler.

The handler takes them by :meth:`Inbox.receive`. If the handler waits there, a message goes straight
to its greenlet or thread, else into a queue.

While the queue holds more than ``receive_buffer`` bytes, or the peer is ahead of
``max_message_rate``, nothing more is read: TCP tells the peer to wait. While all connections
together hold much (``transports/budget.py``), 4 KiB of unread bytes or any unsent ones are enough
for that. A reset by the peer does not show while nothing is read, so the inbox looks for a reset
every two seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import inf
from sys import getsizeof
from time import monotonic
from typing import Any

from ..stats import RouteCounters
from ..token_bucket import TokenBucket
from ..transports.base import StreamTransport
from ..transports.budget import STEP
from ..transports.clock import RETRY, Timer, Waiter
from .limits import Limits

__all__ = ["Inbox"]

_LOOK_INTERVAL = 2.0  # seconds


class Inbox:
    """The messages that have come for one handler.

    :param transport: that is read from, and paused.
    :param resume: takes up reading again; called by the hub or the selector thread.
    :param limits: of the connection.
    :param counters: of its route.
    """

    __slots__ = (
        "_bucket",
        "_buffer",
        "_counted",
        "_counters",
        "_looking",
        "_queued",
        "_resume_reading",
        "_slowed",
        "_taken",
        "_transport",
        "_waiter",
        "attention",
        "deaf",
        "handling",
        "messages",
        "over",
        "paused",
        "release",
    )

    def __init__(
        self,
        transport: StreamTransport,
        resume: Callable[[], None],
        limits: Limits,
        counters: RouteCounters,
    ) -> None:
        #: Unread messages, then None for the end; None where nothing has ever waited here.
        self.messages: deque[Any] | None = None
        #: The handler has received and not yet come back for more.
        self.handling = False
        #: The handler has returned: what comes is thrown away.
        self.deaf = False
        #: Nothing is read for now.
        self.paused = False
        #: One of the next two, or :attr:`deaf`: the handler must not wait for a message any more.
        self.attention = False
        #: The connection is closing: no more messages are to be expected.
        self.over = False
        #: Called when the handler comes back for more: answers the peer's close frame, which waits
        #: for the handler's last reply; None if there is no such frame.
        self.release: Callable[[], None] | None = None
        self._transport = transport
        self._resume_reading = resume
        self._waiter: Waiter | None = None  # once the handler has waited
        self._counters = counters
        self._buffer: float = limits.receive_buffer
        self._queued = 0  # bytes ever put into the queue: the reader's; and taken: the handler's
        self._taken = 0
        self._counted = 0  # of the difference, what the budget knows of; its lock guards it
        rate = limits.max_message_rate
        self._bucket = TokenBucket(rate, monotonic()) if rate else None
        self._slowed: Timer | None = None  # until when reading is paused because of the rate
        self._looking: Timer | None = None  # for a reset, while reading is paused

    # -- the reader ------------------------------------------------------------------------

    def deliver(self, messages: list[Any], extra: int = 0) -> None:
        """Hand messages over, or keep them.

        :param extra: frames that came with them, and count like messages.
        """
        self._counters.messages_in += len(messages)
        waiter = self._waiter
        for message in messages:
            if self.deaf:
                break
            if waiter is not None and waiter.waiting is not None and not self.messages:
                self.handling = True  # now: its thread may be slower than a close frame behind it
                waiter.wake(message)
            else:
                self._keep(message)
        if self._bucket is not None:
            self._slow_down(self._bucket.owe(len(messages) + extra, monotonic()))

    def _keep(self, message: Any) -> None:
        if self.messages is None:
            self.messages = deque()
        self._queued += getsizeof(message)
        self.messages.append(message)
        unread = self._queued - self._taken
        if unread - self._counted >= STEP:
            self._count()
        if unread > self._buffer or (unread >= STEP and self._transport.share.budget.tight):
            self._pause()

    def _count(self) -> None:
        """Count what is unread; by the reader and by the handler, each after changing that."""
        share = self._transport.share
        with share.budget.lock:
            # The other one may change it in between, and then see that it was counted already.
            while change := self._queued - self._taken - self._counted:
                self._counted += change
                share.count(change)

    def drop(self) -> None:
        """Throw away what waits; by the reader."""
        ended = False
        while self.messages:
            try:
                message = self.messages.popleft()
            except IndexError:  # the handler was faster
                break
            if message is None:
                ended = True
            else:
                self._queued -= getsizeof(message)
        if ended:
            self.end()
        self._count()

    def end(self) -> None:
        """Put the end behind what is there."""
        if self.messages is None:
            self.messages = deque()
        self.messages.append(None)

    def _pause(self) -> None:
        """The handler does not keep up: TCP tells the peer to wait."""
        self._pause_reading()
        budget = self._transport.share.budget
        if budget.tight:
            budget.call_when_relaxed(self._relaxed)
        if self._queued - self._taken <= self._buffer:
            self.resume_when_caught_up()  # it has caught up just now, in another thread

    def strain(self) -> None:
        """Something is unsent, and all connections together hold much; under the lock."""
        if not self.paused and self._buffer != inf:
            self._pause()

    def _relaxed(self) -> None:
        """All connections together hold less; by any thread."""
        transport = self._transport
        transport.clock.call_soon(lambda: transport.call_soon(self.resume_when_caught_up))

    def _slow_down(self, seconds: float) -> None:
        """The peer has sent more than its rate allows: TCP tells it to wait."""
        if seconds:
            if self._slowed is None:
                self._counters.slowed += 1
                self._slowed = self._transport.call_later(seconds, self._speed_up)
            self._pause_reading()

    def _pause_reading(self) -> None:
        self.paused = True
        self._transport.pause()
        if self._looking is None:
            self._looking = self._transport.call_later(_LOOK_INTERVAL, self._look)

    def _look(self) -> None:
        """See whether the peer is still there, as long as nothing is read."""
        self._looking = None
        if self.paused and not self._transport.closed:
            self._looking = self._transport.call_later(_LOOK_INTERVAL, self._look)
            self._transport.look_for_reset()

    def _speed_up(self) -> None:
        self._slowed = None
        self.resume_when_caught_up()

    def resume_when_caught_up(self) -> None:
        """Have the peer read from, where neither the handler nor the peer is behind."""
        transport = self._transport
        most = self._buffer // 2
        if transport.share.budget.tight:
            if transport.buffered:
                return
            most = 0
        if self._slowed is None and self._queued - self._taken <= most:
            self._resume()

    def _resume(self) -> None:
        if self.paused:
            self.paused = False
            self._transport.call_soon(self._resume_reading)

    def stop(self) -> None:
        """Read whatever still comes, and expect no more messages: the connection is closing."""
        if self.over:
            return
        self.attention = self.over = True
        self.release = None
        self._buffer = inf
        self._bucket = None
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        if self._slowed is not None:
            self._slowed.cancel()
            self._slowed = None
        self._transport.share.budget.forget(self._relaxed)
        self._resume()

    # -- the handler -----------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether the handler has messages to see to."""
        return self.handling or bool(self.messages)

    def has_unread(self) -> bool:
        """Whether :meth:`receive` has anything to do but to wait."""
        return bool(self.messages) or self.attention

    @property
    def waiting(self) -> Any:
        """The greenlet or thread that waits for a message; None if there is none."""
        return None if self._waiter is None else self._waiter.waiting

    def receive(self, timeout: float | None) -> Any:
        """Wait for the next message.

        :param timeout: seconds, None for no limit.
        :returns: the message, or None at the end of the connection.
        :raises TimeoutError: if no message came in time.
        :raises RuntimeError: if another greenlet or thread waits, or the handler has returned.
        """
        while True:
            messages = self.messages
            if messages:
                try:
                    message = messages.popleft()
                except IndexError:  # the connection is being evicted
                    continue
                if message is not None:
                    self._took(message)
                return message
            self.handling = False
            if self.attention:
                if self._attend():
                    return None
                continue
            message = (self._waiter or self._make_waiter()).wait(timeout)
            if message is not RETRY:
                return message

    def _attend(self) -> bool:
        """Do what :attr:`attention` is for; return whether that is the end of the connection."""
        if self.over:
            return True
        release = self.release  # which the reader may take away meanwhile
        if release is not None:
            release()
        elif self.deaf:
            raise RuntimeError(
                "cannot receive: its handler has returned and left it to its channels; "
                "receive in the handler"
            )
        return False

    def hold(self, release: Callable[[], None]) -> None:
        """Keep the peer's close frame back until the handler comes back for more.

        :param release: answers the close frame.
        """
        self.release = release
        self.attention = True

    def _make_waiter(self) -> Waiter:
        transport = self._transport
        with transport.lock:
            if self._waiter is None:
                self._waiter = transport.clock.waiter(transport.lock, self.has_unread)
            return self._waiter

    def wake(self) -> None:
        """Have a handler that waits look again; under the lock."""
        if self._waiter is not None:
            self._waiter.wake_soon()

    def _took(self, message: Any) -> None:
        """Count a message that the handler has taken."""
        self.handling = True
        self._taken += getsizeof(message)
        if counted := self._counted:
            unread = self._queued - self._taken
            if not unread or counted - unread >= STEP:
                self._count()
        if self.paused:
            with self._transport.lock:  # the reader may be about to pause for another reason
                self.resume_when_caught_up()

    def clear(self) -> None:
        """Throw away what waits."""
        self.messages = None
        self._queued = self._taken = 0
        self._count()
        self.handling = False

    def leave(self) -> None:
        """Throw away what waits and what comes: the handler has returned."""
        self.attention = self.deaf = True
        self.clear()
        self._resume()
