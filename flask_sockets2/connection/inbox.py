"""Inbox: the queue of received messages between one connection and its handler.

The handler takes messages by :meth:`Inbox.receive`. If the handler is waiting there, a message goes
straight to its greenlet or thread, else into the queue.

The inbox pauses reading if the queue exceeds ``receive_buffer`` bytes or the peer exceeds
``max_message_rate``; TCP then makes the peer wait. If all connections together hold much memory
(``transports/budget.py``), 4 KiB of unread bytes or any unsent bytes pause reading, too. Without
reads, a reset by the peer does not show, so a paused inbox looks for a reset every two seconds.
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
    """Queues the messages of one connection until its handler receives them.

    :param transport: the transport, paused if the handler or the peer's rate limit demands it.
    :param resume: resumes reading; called by the hub or the selector thread.
    :param limits: limits of the connection.
    :param counters: counters of the connection's route.
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
        #: Unread messages, then None for the end; None if no message has ever been queued.
        self.messages: deque[Any] | None = None
        #: Whether the handler is working on a message and has not asked for the next one.
        self.handling = False
        #: Whether the handler has returned; new messages are discarded.
        self.deaf = False
        #: Whether reading is paused.
        self.paused = False
        #: Whether :attr:`over`, :attr:`release` or :attr:`deaf` is set; receive() must not wait.
        self.attention = False
        #: Whether the connection is closing; no more messages will come.
        self.over = False
        #: Answers the peer's close frame, which waits for the handler's last reply; called by the
        #: handler's next receive(). None if no close frame waits.
        self.release: Callable[[], None] | None = None
        self._transport = transport
        self._resume_reading = resume
        self._waiter: Waiter | None = None  # made when the handler first waits
        self._counters = counters
        self._buffer: float = limits.receive_buffer
        self._queued = 0  # bytes ever put into the queue; written by the reader
        self._taken = 0  # bytes ever taken from the queue; written by the handler
        self._counted = 0  # unread bytes that the budget has counted; the budget's lock guards this
        rate = limits.max_message_rate
        self._bucket = TokenBucket(rate, monotonic()) if rate else None
        self._slowed: Timer | None = None  # ends a pause that the rate limit has caused
        self._looking: Timer | None = None  # looks for a reset while reading is paused

    # -- the reader ------------------------------------------------------------------------

    def deliver(self, messages: list[Any], extra: int = 0) -> None:
        """Pass messages to a waiting handler, or queue them.

        :param extra: number of other frames that the rate limit counts like messages.
        """
        self._counters.messages_in += len(messages)
        waiter = self._waiter
        for message in messages:
            if self.deaf:
                break
            if waiter is not None and waiter.waiting is not None and not self.messages:
                self.handling = True  # now: a close frame may overtake the handler's thread
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
        """Report the unread bytes to the budget; called by the reader and by the handler."""
        share = self._transport.share
        with share.budget.lock:
            # The other thread may change the sum here, and then finds its change already counted.
            while change := self._queued - self._taken - self._counted:
                self._counted += change
                share.count(change)

    def drop(self) -> None:
        """Discard the unread messages, but not the end; called by the reader."""
        ended = False
        while self.messages:
            try:
                message = self.messages.popleft()
            except IndexError:  # the handler has just taken the last message
                break
            if message is None:
                ended = True
            else:
                self._queued -= getsizeof(message)
        if ended:
            self.end()
        self._count()

    def end(self) -> None:
        """Queue the end of the connection behind the unread messages."""
        if self.messages is None:
            self.messages = deque()
        self.messages.append(None)

    def _pause(self) -> None:
        """Pause reading, since the handler does not keep up; TCP makes the peer wait."""
        if self.over:
            return
        self._pause_reading()
        budget = self._transport.share.budget
        if budget.tight:
            budget.call_when_relaxed(self._relaxed)
        if self._queued - self._taken <= self._buffer:
            self.resume_when_caught_up()  # the handler's thread has caught up just now

    def strain(self) -> None:
        """Pause reading: bytes are unsent and the budget is tight; under the transport's lock."""
        if not self.paused and self._buffer != inf:
            self._pause()

    def _relaxed(self) -> None:
        """Resume reading, since the budget is no longer tight; called by any thread."""
        transport = self._transport
        transport.clock.call_soon(lambda: transport.call_soon(self.resume_when_caught_up))

    def _slow_down(self, seconds: float) -> None:
        """Pause reading for some seconds, since the peer has exceeded its rate limit."""
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
        """Look for a reset by the peer, again and again until reading resumes."""
        self._looking = None
        if self.paused and not self._transport.closed:
            self._looking = self._transport.call_later(_LOOK_INTERVAL, self._look)
            self._transport.look_for_reset()

    def _speed_up(self) -> None:
        self._slowed = None
        self.resume_when_caught_up()

    def resume_when_caught_up(self) -> None:
        """Resume reading if the handler has caught up and the rate limit allows it."""
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
        """Lift the limits on reading and expect no more messages: the connection is closing."""
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
        """Whether the handler works on a message or has unread ones."""
        return self.handling or bool(self.messages)

    def has_unread(self) -> bool:
        """Whether :meth:`receive` can return or act without waiting."""
        return bool(self.messages) or self.attention

    @property
    def waiting(self) -> Any:
        """The greenlet or thread that waits for a message; None if none waits."""
        return None if self._waiter is None else self._waiter.waiting

    def receive(self, timeout: float | None) -> Any:
        """Wait for the next message and return it.

        :param timeout: seconds to wait, None for no limit.
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
        """Act on :attr:`attention`; return whether the connection has ended."""
        if self.over:
            return True
        release = self.release  # a copy, since the reader may reset the attribute
        if release is not None:
            release()
        elif self.deaf:
            raise RuntimeError(
                "cannot receive: its handler has returned and left it to its channels; "
                "receive in the handler"
            )
        return False

    def hold(self, release: Callable[[], None]) -> None:
        """Delay the answer to the peer's close frame until the handler's next :meth:`receive`.

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
        """Make a waiting handler check its inbox again; under the transport's lock."""
        if self._waiter is not None:
            self._waiter.wake_soon()

    def _took(self, message: Any) -> None:
        """Count a message that the handler has taken, and resume reading if possible."""
        self.handling = True
        self._taken += getsizeof(message)
        if counted := self._counted:
            unread = self._queued - self._taken
            if not unread or counted - unread >= STEP:
                self._count()
        if self.paused:
            with self._transport.lock:  # the reader may be pausing for another reason
                self.resume_when_caught_up()

    def clear(self) -> None:
        """Discard the unread messages."""
        self.messages = None
        self._queued = self._taken = 0
        self._count()
        self.handling = False

    def leave(self) -> None:
        """Discard unread and future messages: the handler has returned."""
        self.attention = self.deaf = True
        self.clear()
        self._resume()
