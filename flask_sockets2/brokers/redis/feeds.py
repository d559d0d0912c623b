"""Feeds: what comes on the channels that are listened to, delivered once and in order.

What becomes of a channel's feed::

    asked       SUBSCRIBE was sent, or will be with the next connection
    confirmed   the server has said so; what it sends is held
    live        subscribe() has asked for a position; what follows that is delivered
    behind      the connection was lost: the history brings what was missed, and it is live again

A channel that cannot be read then is told of as missed, and goes on with what comes next; it must
not keep others waiting.

Messages are told apart by their offsets, so that each is delivered once, whether the history
brought it, the connection, or both.
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
    """A channel that is subscribed to. Its reader's thread alone writes what has no other comment.

    :ivar name: of the channel in pub/sub.
    :ivar since: what was returned to the first who subscribed; guarded by the listener's lock.
    :ivar last: the newest position that was delivered, None until it is live.
    :ivar begun: when it was made, by the monotonic clock.
    :ivar keep_at: when the server is to be asked again to keep the channel, by the same clock.
    :ivar answered: set with the server's answer, which is `error` where it refused.
    :ivar gone: unsubscribed; set by anyone.
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
        """Nothing comes for now; the history will bring what is missed."""
        self.confirmed = False
        self.behind = True
        self.held.clear()


class Delivery:
    """Hands what comes over one connection to the receiver; in the reader's thread only.

    :ivar returning: feeds that have not yet been brought what they missed since the connection was
        lost.
    """

    def __init__(self, receiver: Receiver | None) -> None:
        self.returning: set[Feed] = set()
        self._receiver = receiver
        self._behind: list[Feed] = []  # confirmed, and to be brought what they missed

    # -- the connection --------------------------------------------------------------------

    def confirmed(self, feed: Feed) -> None:
        """The server sends what is published from now on."""
        feed.confirmed = True
        feed.error = None
        feed.answered.set()
        feed.answered = _ANSWERED
        if feed.behind and feed.last is not None:
            self._behind.append(feed)

    def lost(self, feeds: Iterable[Feed], error: BrokerError | None) -> None:
        """The connection is lost, or was not made because of an error: feeds wait for the next."""
        self._behind.clear()
        for feed in feeds:
            feed.interrupt()
            if error is not None and not feed.answered.is_set():
                feed.error = error
                feed.answered.set()
            elif feed.last is not None:
                self.returning.add(feed)

    def behind(self) -> list[Feed]:
        """Return, once, the feeds that are to be brought what they missed."""
        waiting, self._behind = self._behind, []
        return [each for each in waiting if each.behind]

    def reconnected(self) -> None:
        """Tell that all of them have been brought what they missed."""
        if self._receiver is not None:
            self._receiver.reconnected()

    # -- messages --------------------------------------------------------------------------

    def go_live(self, feed: Feed) -> None:
        """Deliver what is held, where it is known by now from which position on."""
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
        """Deliver a message, unless it was, or something is missing before it.

        It is held while it is not known from which position on.
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
            pass  # the history brings it
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
        """Deliver what was missed, or tell that it is lost."""
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
        """Tell that what was missed cannot be read, once until something is delivered again."""
        self.returning.discard(feed)
        last = feed.last
        if last is None or last is NOWHERE:
            return
        logger.error("cannot read channel %.200r, so messages may be lost: %s", feed.channel, error)
        self._missed(feed, last)
        feed.last = NOWHERE  # whatever comes next has something missing before it
