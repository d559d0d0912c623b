"""Feeds: the messages of subscribed channels, each delivered once and in order.

The states of a channel's feed::

    asked       SUBSCRIBE was sent, or will be sent over the next connection
    confirmed   the server has confirmed; messages are held
    live        subscribe() has read a position; messages after that position are delivered
    behind      the connection was lost; the history brings the missed messages, then live again

If the history cannot be read, the channel reports a gap and goes on with the next message. Other
channels do not wait for the failed one.

The feed recognises a message by its offset. So each message is delivered once, even if the history
and the connection both bring a copy.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from ...exceptions import BrokerError
from ..base import NOWHERE, History, Message, Position, Receiver

if TYPE_CHECKING:
    from .reader import Reader

__all__ = ["Feed"]

logger = logging.getLogger("flask_sockets2.brokers")

_HELD = 1000  # messages of one channel that wait for its position; the history has the rest

_ANSWERED = threading.Event()  # shared by all answered feeds, since an event takes 1 KiB
_ANSWERED.set()


class Feed:
    """A channel with a subscription; hands the channel's messages to the receiver.

    Only the reader's thread calls methods and writes attributes, unless stated.

    :ivar name: name of the channel in pub/sub.
    :ivar since: position that the first subscribe() returned; guarded by the listener's lock.
    :ivar last: position of the newest delivered message, None until the feed is live.
    :ivar begun: monotonic time at which the feed was made.
    :ivar keep_at: monotonic time at which the server is asked again to keep the channel.
    :ivar answered: set when the server has answered; a refusal is in ``error``.
    :ivar gone: True after unsubscribe(); any thread may set the flag.
    """

    __slots__ = (
        "_receiver", "answered", "begun", "behind", "channel", "confirmed", "error", "gone", "held",
        "keep_at", "last", "name", "reader", "since",
    )  # fmt: skip

    def __init__(
        self, channel: str, name: bytes, begun: float, keep_at: float, receiver: Receiver | None
    ) -> None:
        self.channel = channel
        self.name = name
        self.begun = begun
        self.keep_at = keep_at
        self.since: Position | None = None
        self.last: Position | None = None
        self.held: list[Message] = []
        self.confirmed = False
        self.behind = False
        self.gone = False
        self.error: BrokerError | None = None
        self.answered = threading.Event()
        self.reader: Reader | None = None
        self._receiver = receiver

    def interrupt(self) -> None:
        """Note that the connection is lost: the history will bring the missed messages."""
        self.confirmed = False
        self.behind = True
        self.held.clear()

    def confirm(self) -> bool:
        """Note that the server sends every new message from now on.

        :returns: whether the history has to be read.
        """
        self.confirmed = True
        self.error = None
        self.answered.set()
        self.answered = _ANSWERED
        return self.behind and self.last is not None

    # -- messages --------------------------------------------------------------------------

    def go_live(self) -> bool:
        """Deliver the held messages, if the position to begin at is known by now.

        :returns: whether the history has to be read.
        """
        since = self.since
        if since is None or self.last is not None:
            return False
        self.last = since
        held, self.held = self.held, []
        if self.behind:
            return self.confirmed
        if len(held) > _HELD or any(each.position.epoch != since.epoch for each in held):
            self.behind = True
            return True
        fell_behind = [self.receive(message) for message in held]
        return any(fell_behind)

    def receive(self, message: Message) -> bool:
        """Deliver a message, unless it is a duplicate or an earlier message is missing.

        The message is held until the position to begin at is known.

        :returns: whether the history has to be read.
        """
        position = message.position
        fell_behind = self.last is None and self.go_live()
        last = self.last
        if last is None:
            if len(self.held) <= _HELD and not self.behind:
                self.held.append(message)
        elif message.transient:
            self._deliver(message)
        elif self.behind:
            pass  # the history brings the message
        elif position.epoch != last.epoch:
            # A new log has begun, and this connection has brought every message since then.
            if position.offset != 1:
                self._missed(Position(position.epoch, position.offset - 1))
            self._deliver(message)
        elif position.offset == last.offset + 1:
            self._deliver(message)
        elif position.offset > last.offset:
            self.behind = fell_behind = True
        return fell_behind

    def _deliver(self, message: Message) -> None:
        if not message.transient:
            self.last = message.position
        if self._receiver is None or self.gone:
            return
        try:
            self._receiver.deliver(message)
        except Exception:
            logger.exception("a receiver raised")

    def _missed(self, position: Position) -> None:
        self.last = position
        if self._receiver is None or self.gone:
            return
        try:
            self._receiver.missed(self.channel, position)
        except Exception:
            logger.exception("a receiver raised")
        self._resumed()

    def _resumed(self) -> None:
        if self._receiver is None or self.gone:
            return
        try:
            self._receiver.resumed(self.channel)
        except Exception:
            logger.exception("a receiver raised")

    # -- missed messages -------------------------------------------------------------------

    def bring(self, found: History | BrokerError) -> None:
        """Deliver the missed messages, or report a gap."""
        self.behind = False
        if isinstance(found, BrokerError):
            self.unreadable(found)
        else:
            for message in found.messages:
                self._deliver(message)
            if found.complete:
                self._resumed()
            else:
                self._missed(found.position)

    def unreadable(self, error: BrokerError) -> None:
        """Report that missed messages cannot be read, once until the next delivery."""
        last = self.last
        if last is None or last is NOWHERE:
            return
        logger.error("cannot read channel %.200r, so messages may be lost: %s", self.channel, error)
        self._missed(last)
        self.last = NOWHERE  # so that the next message has a gap before it
