"""Feeds: the messages of subscribed channels, each delivered once and in order.

The states of a channel's feed::

    asked       SUBSCRIBE was sent, or will be sent over the next connection
    confirmed   the server has confirmed; messages are held
    live        subscribe() has read a position; messages after that position are delivered
    behind      the connection was lost; the history brings the missed messages, then live again

If the history cannot be read, the channel reports a gap and goes on with the next message. Other
channels do not wait for one that fails.

A message is recognised by its offset. So a message is delivered once, even if both the history and
the connection bring it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ...exceptions import BrokerError
from ..base import NOWHERE, History, Message, Position, Receiver

if TYPE_CHECKING:
    from .reader import Reader

__all__ = ["Delivery", "Feed"]

logger = logging.getLogger("flask_sockets2.brokers")

_HELD = 1000  # messages of one channel that wait for its position; the history has the rest

_ANSWERED = threading.Event()  # in the place of one for each channel, which takes 1 KiB
_ANSWERED.set()


class Feed:
    """A channel with a subscription. Only the reader's thread writes attributes, unless stated.

    :ivar name: name of the channel in pub/sub.
    :ivar since: position that the first subscribe() returned; guarded by the listener's lock.
    :ivar last: position of the newest delivered message, None until the feed is live.
    :ivar begun: monotonic time at which the feed was made.
    :ivar keep_at: monotonic time at which the server is asked again to keep the channel.
    :ivar answered: set when the server has answered; a refusal is in ``error``.
    :ivar gone: unsubscribed; any thread may set it.
    """

    __slots__ = (
        "answered", "begun", "behind", "channel", "confirmed", "error", "gone", "held", "keep_at",
        "last", "name", "reader", "since",
    )  # fmt: skip

    def __init__(self, channel: str, name: bytes, begun: float, keep_at: float) -> None:
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

    def interrupt(self) -> None:
        """Note that the connection is lost: the history will bring the missed messages."""
        self.confirmed = False
        self.behind = True
        self.held.clear()


class Delivery:
    """Hands the messages of one connection to the receiver; for the reader's thread only.

    :ivar returning: feeds that still lack messages since the connection was lost.
    """

    def __init__(self, receiver: Receiver | None) -> None:
        self.returning: set[Feed] = set()
        self._receiver = receiver
        self._behind: list[Feed] = []  # confirmed, and still lack messages

    # -- the connection --------------------------------------------------------------------

    def confirmed(self, feed: Feed) -> None:
        """Note that the server sends every message from now on."""
        feed.confirmed = True
        feed.error = None
        feed.answered.set()
        feed.answered = _ANSWERED
        if feed.behind and feed.last is not None:
            self._behind.append(feed)

    def lost(self, feeds: Iterable[Feed], error: BrokerError | None) -> None:
        """Note that there is no connection, because of an error if given. Feeds wait for one."""
        self._behind.clear()
        for feed in feeds:
            feed.interrupt()
            if error is not None and not feed.answered.is_set():
                feed.error = error
                feed.answered.set()
            elif feed.last is not None:
                self.returning.add(feed)

    def behind(self) -> list[Feed]:
        """Return the feeds whose history has to be read, each once."""
        waiting, self._behind = self._behind, []
        return [each for each in waiting if each.behind]

    def reconnected(self) -> None:
        """Tell the receiver that no feed lacks messages any more."""
        if self._receiver is not None:
            self._receiver.reconnected()

    # -- messages --------------------------------------------------------------------------

    def go_live(self, feed: Feed) -> None:
        """Deliver the held messages, if the position to begin at is known by now."""
        since = feed.since
        if since is None or feed.last is not None:
            return
        feed.last = since
        held, feed.held = feed.held, []
        if feed.behind:
            if feed.confirmed:
                self._behind.append(feed)
        elif len(held) > _HELD or any(each.position.epoch != since.epoch for each in held):
            self._fall_behind(feed)
        else:
            for message in held:
                self.receive(feed, message)

    def receive(self, feed: Feed, message: Message) -> None:
        """Deliver a message, unless it is a duplicate or an earlier message is missing.

        The message is held until the position to begin at is known.
        """
        position = message.position
        if feed.last is None:
            self.go_live(feed)
        last = feed.last
        if last is None:
            if len(feed.held) <= _HELD and not feed.behind:
                feed.held.append(message)
        elif message.transient:
            self._deliver(feed, message)
        elif feed.behind:
            pass  # the history brings the message
        elif position.epoch != last.epoch:
            # The log was begun anew, and this connection has seen all that came since.
            if position.offset != 1:
                self._missed(feed, Position(position.epoch, position.offset - 1))
            self._deliver(feed, message)
        elif position.offset == last.offset + 1:
            self._deliver(feed, message)
        elif position.offset > last.offset:
            self._fall_behind(feed)

    def _deliver(self, feed: Feed, message: Message) -> None:
        if not message.transient:
            feed.last = message.position
        if self._receiver is None or feed.gone:
            return
        try:
            self._receiver.deliver(message)
        except Exception:
            logger.exception("a receiver raised")

    def _missed(self, feed: Feed, position: Position) -> None:
        feed.last = position
        if self._receiver is None or feed.gone:
            return
        try:
            self._receiver.missed(feed.channel, position)
        except Exception:
            logger.exception("a receiver raised")
        self._resumed(feed)

    def _resumed(self, feed: Feed) -> None:
        if self._receiver is None or feed.gone:
            return
        try:
            self._receiver.resumed(feed.channel)
        except Exception:
            logger.exception("a receiver raised")

    # -- what was missed -------------------------------------------------------------------

    def _fall_behind(self, feed: Feed) -> None:
        feed.behind = True
        self._behind.append(feed)

    def bring(self, feed: Feed, found: History | BrokerError) -> None:
        """Deliver the missed messages, or report a gap."""
        feed.behind = False
        if isinstance(found, BrokerError):
            self.unreadable(feed, found)
        else:
            for message in found.messages:
                self._deliver(feed, message)
            if found.complete:
                self._resumed(feed)
            else:
                self._missed(feed, found.position)
            self.returning.discard(feed)

    def unreadable(self, feed: Feed, error: BrokerError) -> None:
        """Report that missed messages cannot be read, once until the next delivery."""
        self.returning.discard(feed)
        last = feed.last
        if last is None or last is NOWHERE:
            return
        logger.error("cannot read channel %.200r, so messages may be lost: %s", feed.channel, error)
        self._missed(feed, last)
        feed.last = NOWHERE  # so that the next message has a gap before it
