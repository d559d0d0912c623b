"""What a broker is: an ordered log of messages for each channel, delivered to who subscribes.

A broker of your own (NATS, Kafka, PostgreSQL) derives from :class:`Broker` and is found by the
scheme of its URL, through an entry point::

    [project.entry-points."flask_sockets2.brokers"]
    nats = "my_package:NatsBroker"

The laws that every broker keeps, and that ``tests/brokers/test_contract.py`` checks:

1.  Messages of one channel have one order, the same in every process. Their offsets within an
    epoch are 1, 2, 3 and so on; transient messages have none of their own and are in no history.
2.  After :meth:`Broker.subscribe` has returned position P, each message after P is delivered, in
    order and once, until :meth:`Broker.unsubscribe`.
3.  Where that cannot be kept (messages were lost, a server was replaced), the broker calls
    ``missed`` with the position from which it is kept again, before it delivers what follows.
    Transient messages are in no history: where some may be missing, it calls ``resumed``.
4.  A position of an epoch that is over, or that the history does not reach, is never answered with
    part of the messages: :attr:`History.complete` is False then.
5.  What was published is delivered in the publishing process, too, and by no other way.

It may be called from any thread, under gevent from any greenlet, and one that only publishes also
by the children of a fork.
"""

from __future__ import annotations

import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any, NamedTuple, Protocol

from ..concurrency.native_lock import native_lock
from ..settings import BYTES, LONGEST, number, or_none, setting, text

__all__ = [
    "BINARY",
    "DAY",
    "JSON",
    "MAX_MESSAGE_SIZE",
    "NOWHERE",
    "RESERVED",
    "TEXT",
    "Broker",
    "BrokerOptions",
    "Draft",
    "History",
    "Message",
    "Position",
    "Receiver",
    "new_epoch",
    "silent_ttl",
]

TEXT, BINARY, JSON = "text", "binary", "json"
"""Kinds of messages: what their bytes are, UTF-8 in the first and the last."""

RESERVED = "flask_sockets2:"
"""How names of channels begin by which an application's processes tell each other something."""

MAX_MESSAGE_SIZE = 2**20
"""Bytes of one message, published or from a client, by default."""

DAY = 86_400.0
"""Seconds that a position outlives the messages of its channel: who comes back missed nothing."""

_MINUTE = 60.0

_MOST_HOLDERS = 1000  # names that are held before those that are over are looked for

_POSITION = re.compile(r"([0-9a-f]{16})-(0|[1-9][0-9]{0,15})")


class Position(NamedTuple):
    """A place in a channel's log: behind the message of that offset.

    :ivar epoch: 16 hexadecimal digits that name the log; another epoch is another log.
    :ivar offset: number of the message in it, from 1; 0 is before the first.

    As text, for pages and clients: ``"9f86d081884c7d65-42"``; :data:`NOWHERE` is ``"-"``.
    """

    epoch: str
    offset: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.offset}" if self.epoch != "-" else "-"

    @classmethod
    def parse(cls, text: str) -> Position | None:
        """Read a position as text; None for what is none, since it comes from a client."""
        match = _POSITION.fullmatch(text)
        return cls(match[1], int(match[2])) if match else None


NOWHERE = Position("-", 0)
"""The position of no log: a client that goes on from it is told of a gap."""


def new_epoch() -> str:
    """Return the name of a new log."""
    return secrets.token_hex(8)


def silent_ttl(channel: str, listened: float = 0.0) -> float:
    """Return for how many seconds a channel without messages is kept after its last use.

    Any client can ask for names that nobody publishes to. Such a channel is kept for a minute, from
    the page to its connection, and as long again as a process has listened to it, a day at most. A
    reserved channel is kept for a day at once.

    :param listened: seconds for which a process has listened so far.
    """
    return DAY if channel.startswith(RESERVED) else min(_MINUTE + listened, DAY)


class Draft(NamedTuple):
    """What is to be published.

    :ivar channel: 1 to 1,024 bytes of UTF-8.
    :ivar kind: ``TEXT``, ``BINARY`` or ``JSON``.
    :ivar data: the message.
    :ivar key: of two messages with the same, a client that is behind needs only the newer.
    :ivar event: ``join`` or ``leave``, of presence; empty for what applications publish.
    :ivar transient: for who listens now: neither in the history nor numbered.
    """

    channel: str
    kind: str
    data: bytes
    key: str = ""
    event: str = ""
    transient: bool = False


class Message:
    """What was published; the fields of :class:`Draft`, and its position.

    ``position`` of a transient message is that of the log at the time. ``encoded`` keeps what has
    been made of the message for the wire, by encoding, so that it is made once.
    """

    __slots__ = ("channel", "data", "encoded", "event", "key", "kind", "position", "transient")

    def __init__(
        self,
        channel: str,
        kind: str,
        data: bytes,
        position: Position,
        key: str = "",
        event: str = "",
        transient: bool = False,
    ) -> None:
        self.channel = channel
        self.kind = kind
        self.data = data
        self.position = position
        self.key = key
        self.event = event
        self.transient = transient
        self.encoded: dict[Any, Any] = {}

    def __repr__(self) -> str:
        return f"<Message {self.channel!r} {self.position}, {len(self.data)} bytes of {self.kind}>"


@dataclass(frozen=True, slots=True)
class History:
    """What followed a position.

    :ivar messages: those after it, in order; none where it is not complete.
    :ivar position: the newest of the log.
    :ivar complete: whether that is all that followed.
    """

    messages: Sequence[Message]
    position: Position
    complete: bool = True


class Receiver(Protocol):
    """Where a broker delivers, in any thread; what it calls never waits.

    The calls for one channel come one after another.
    """

    def deliver(self, message: Message) -> None:
        """Take a message of a channel that was subscribed to."""

    def missed(self, channel: str, position: Position) -> None:
        """What was published before a position may be lost; what comes next follows it."""

    def resumed(self, channel: str) -> None:
        """Delivery of a channel was interrupted and goes on.

        Nothing of its history is missing, or ``missed`` has just told so: each ``missed`` is
        followed by this. But transient messages may be missing, so that who knows by them who is
        there has to ask again, in another thread.
        """

    def reconnected(self) -> None:
        """The broker was out of reach and is back: for the counters."""


_TTL = number("seconds", least=1, most=LONGEST)
_GRACE = number("seconds", least=0, most=LONGEST)
# Half a surrogate pair cannot be encoded, nor sent to a broker.
_PREFIX = text("text", "a text of 1 to 1000 letters without braces", "[^{}\ud800-\udfff]{1,1000}")


@dataclass(frozen=True, slots=True)
class BrokerOptions:
    """What is set for every broker.

    :param history_size: Messages kept for each channel; 0 for none.
    :param history_bytes: Memory for them, here or as read from Redis; the newest is always kept.
    :param history_ttl: How long they are kept after the last message of the channel.
    :param presence_grace: A client that reconnects within this time has not left for the others.
    :param prefix: How all names begin on a Redis that others use, too.
    """

    history_size: int = setting(
        "SOCKETS_HISTORY_SIZE", 100, number("messages", least=0, whole=True)
    )
    history_bytes: int = setting("SOCKETS_HISTORY_BYTES", 2**20, BYTES)
    history_ttl: float = setting("SOCKETS_HISTORY_TTL", 300.0, _TTL)
    presence_grace: float = setting("SOCKETS_PRESENCE_GRACE", 5.0, _GRACE)
    prefix: str = setting("SOCKETS_CHANNEL_PREFIX", "flask_sockets2", or_none(_PREFIX))

    def of(self, channel: str) -> BrokerOptions:
        """Return what is set for a channel: how much of a reserved one is kept, nobody can set.

        However short the history is that pages have, a process that was away for a while has to
        hear what it was told.
        """
        if not channel.startswith(RESERVED):
            return self
        return replace(self, history_size=1000, history_bytes=2**20, history_ttl=3600.0)


class Broker(ABC):
    """Base of the brokers.

    :param url: where it is, with a scheme of its own.
    :param options: what is set for every broker.
    :param receiver: where it delivers; None for one that only publishes.

    Nothing is opened before the first call. Each method but :meth:`close` raises
    :class:`~flask_sockets2.BrokerError` when the broker cannot be reached; nothing is lost on this
    side then, and a later call may succeed.
    """

    #: Whether it reaches other processes.
    shared = False
    #: Whether its methods wait for a network, so that under gevent it must be patched.
    waits = False

    def __init__(self, url: str, options: BrokerOptions, receiver: Receiver | None = None) -> None:
        self.url = url
        self.options = options
        self.receiver = receiver
        self._holders: dict[str, tuple[str, float]] = {}  # by name: who holds it, until when
        self._holding = native_lock()  # guards them

    @abstractmethod
    def publish(self, drafts: Sequence[Draft]) -> list[Position]:
        """Publish messages, in their order, and return the position of each.

        When it raises, some of them may have been published, the first ones first.
        """

    @abstractmethod
    def subscribe(self, channel: str) -> Position:
        """Have a channel delivered to the receiver from the position returned on."""

    @abstractmethod
    def unsubscribe(self, channel: str) -> None:
        """Have a channel delivered no more; does not wait and never fails."""

    @abstractmethod
    def position(self, channel: str) -> Position:
        """Return the newest position of a channel; for one without messages, offset 0."""

    def positions(self, channels: Sequence[str]) -> list[Position]:
        """Return the newest position of each channel, at the cost of one where that can be."""
        return [self.position(channel) for channel in channels]

    @abstractmethod
    def history(self, channel: str, since: Position | None) -> History:
        """Return what was published after a position, None: all that is kept."""

    def away(self) -> bool | None:
        """Return whether it is out of reach, None where nobody knows without asking; never
        waits."""
        return False

    # -- who is there ----------------------------------------------------------------------

    @abstractmethod
    def count(self, channel: str, subscribers: int) -> None:
        """Take note of how many subscribers a channel has in this process; does not wait."""

    @abstractmethod
    def subscribers(self, channel: str) -> int:
        """Return how many subscribers a channel has in all processes, at most seconds ago."""

    @abstractmethod
    def join(self, channel: str, identity: str) -> None:
        """Take note of one more connection of an identity; its first publishes ``join``."""

    @abstractmethod
    def leave(self, channel: str, identity: str) -> None:
        """Take note that one has ended; does not wait and never fails.

        Where it was the last of them in all processes and none has come ``presence_grace`` seconds
        later, ``leave`` is published.
        """

    @abstractmethod
    def present(self, channel: str) -> list[str]:
        """Return the identities that are in a channel, in all processes, sorted."""

    # -- one of many -----------------------------------------------------------------------

    def hold(self, name: str, holder: str, seconds: float) -> bool:
        """Take a name for a while; who holds it may hold it on, or with 0 give it back.

        A broker that reaches other processes has to override it: this one holds within its own.

        :returns: False where another one holds it.
        """
        with self._holding:
            now = monotonic()
            other, until = self._holders.get(name, (holder, now))
            if other != holder and until > now:
                return False
            if len(self._holders) >= _MOST_HOLDERS:
                self._holders = {n: held for n, held in self._holders.items() if held[1] > now}
            if seconds > 0:
                self._holders[name] = (holder, now + seconds)
            else:
                self._holders.pop(name, None)
            return True

    @abstractmethod
    def close(self) -> None:
        """Let go of everything; can be repeated.

        Its identities leave, as if their process had been killed, unless they are seen elsewhere.
        """
