"""Broker: the base class of all brokers, which log each channel and deliver it to subscribers.

If you write a broker of your own (NATS, Kafka, PostgreSQL), derive from :class:`Broker`. Register
the class as an entry point, under the scheme of its URL::

    [project.entry-points."flask_sockets2.brokers"]
    nats = "my_package:NatsBroker"

Every broker keeps these laws, which ``tests/brokers/test_contract.py`` checks:

1.  Messages of one channel have one order, the same in every process. Their offsets within an
    epoch are 1, 2, 3 and so on. Transient messages have no own offset and are in no history.
2.  After :meth:`Broker.subscribe` has returned position P, each message after P is delivered once
    and in order, until :meth:`Broker.unsubscribe`.
3.  If messages were lost or a server was replaced, the broker calls ``missed`` with a position
    before it delivers again. Law 2 holds from that position on. If transient messages may be
    missing, the broker calls ``resumed``.
4.  If a position's epoch is over, or the history begins later, :attr:`History.complete` is False
    and the history holds no messages.
5.  Messages also reach the process that published them, through the broker and by no other way.

Any thread may call a broker, and under gevent any greenlet. If a broker only publishes, the
children of a fork may call the broker, too.
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
"""Kinds of messages; the data of text and JSON messages is UTF-8."""

RESERVED = "flask_sockets2:"
"""Prefix of the internal channels through which an application's processes talk to each other."""

MAX_MESSAGE_SIZE = 2**20
"""Bytes of one message, published or from a client, by default."""

DAY = 86_400.0
"""Seconds that a position outlives its channel's messages; a client at that position has no gap."""

_MINUTE = 60.0

_MOST_HOLDERS = 1000  # held names, after which expired ones are removed

_POSITION = re.compile(r"([0-9a-f]{16})-(0|[1-9][0-9]{0,15})")


class Position(NamedTuple):
    """A place in a channel's log, behind the message with this offset.

    :ivar epoch: 16 hexadecimal digits that name the log; another epoch is another log.
    :ivar offset: number of the message in the log, from 1; 0 is before the first.

    As text, for pages and clients: ``"9f86d081884c7d65-42"``; :data:`NOWHERE` is ``"-"``.
    """

    epoch: str
    offset: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.offset}" if self.epoch != "-" else "-"

    @classmethod
    def parse(cls, text: str) -> Position | None:
        """Read a position that a client sent as text; None if the text is no position."""
        match = _POSITION.fullmatch(text)
        return cls(match[1], int(match[2])) if match else None


NOWHERE = Position("-", 0)
"""The position of no log: a client that resumes from here is told of a gap."""


def new_epoch() -> str:
    """Return the name of a new log."""
    return secrets.token_hex(8)


def silent_ttl(channel: str, listened: float = 0.0) -> float:
    """Return how many seconds a channel without messages is kept after its last use.

    Clients can ask for any name, so a silent channel is kept for a minute only. This suffices from
    a page to its connection. The time for which a process has listened is added, up to a day in
    total. A reserved channel is kept for a day at once.

    :param listened: seconds for which a process has listened so far.
    """
    return DAY if channel.startswith(RESERVED) else min(_MINUTE + listened, DAY)


class Draft(NamedTuple):
    """A message to publish.

    :ivar channel: name of 1 to 1,024 bytes of UTF-8.
    :ivar kind: ``TEXT``, ``BINARY`` or ``JSON``.
    :ivar data: content of the message.
    :ivar key: of two messages with the same key, a slow client needs only the newer.
    :ivar event: ``join`` or ``leave`` for presence; empty for messages of the application.
    :ivar transient: whether only present subscribers get the message: no history, no offset.
    """

    channel: str
    kind: str
    data: bytes
    key: str = ""
    event: str = ""
    transient: bool = False


class Message:
    """A published message: the fields of :class:`Draft`, and its position.

    The ``position`` of a transient message is the newest of the log at the time. ``encoded`` caches
    the message as sent to clients, by encoding, so that each encoding runs once.
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
    """The messages that followed a position.

    :ivar messages: messages after the position, in order; none if ``complete`` is False.
    :ivar position: newest position of the log.
    :ivar complete: whether no message after the position is missing.
    """

    messages: Sequence[Message]
    position: Position
    complete: bool = True


class Receiver(Protocol):
    """An object that a broker delivers messages to, in any thread; its methods never wait.

    The calls for one channel come one after another.
    """

    def deliver(self, message: Message) -> None:
        """Take a message of a subscribed channel."""

    def missed(self, channel: str, position: Position) -> None:
        """Note that messages before a position may be lost; the next message follows the position.

        The broker calls ``resumed`` afterwards.
        """

    def resumed(self, channel: str) -> None:
        """Note that delivery of a channel was interrupted and goes on.

        The history is complete, unless ``missed`` was called just before. Transient messages may be
        missing: if the receiver tracks presence, ask the broker again, in another thread.
        """

    def reconnected(self) -> None:
        """Count that the broker could not be reached and is back."""


_TTL = number("seconds", least=1, most=LONGEST)
_GRACE = number("seconds", least=0, most=LONGEST)
# Half a surrogate pair cannot be encoded, nor sent to a broker.
_PREFIX = text("text", "a text of 1 to 1000 letters without braces", "[^{}\ud800-\udfff]{1,1000}")


@dataclass(frozen=True, slots=True)
class BrokerOptions:
    """Settings of every broker.

    :param history_size: Messages kept for each channel; 0 for none.
    :param history_bytes: Memory for the messages of a channel, here or as read from Redis; the
        newest message is always kept.
    :param history_ttl: Time for which messages are kept after the last message of the channel.
    :param presence_grace: Time within which a client may reconnect before other clients see it
        leave.
    :param prefix: Beginning of all names in a Redis that other programs use, too.
    """

    history_size: int = setting(
        "SOCKETS_HISTORY_SIZE", 100, number("messages", least=0, whole=True)
    )
    history_bytes: int = setting("SOCKETS_HISTORY_BYTES", 2**20, BYTES)
    history_ttl: float = setting("SOCKETS_HISTORY_TTL", 300.0, _TTL)
    presence_grace: float = setting("SOCKETS_PRESENCE_GRACE", 5.0, _GRACE)
    prefix: str = setting("SOCKETS_CHANNEL_PREFIX", "flask_sockets2", or_none(_PREFIX))

    def of(self, channel: str) -> BrokerOptions:
        """Return the settings of a channel; the history of a reserved channel is fixed.

        A worker that was offline must receive its orders, even if pages have a short history.
        """
        if not channel.startswith(RESERVED):
            return self
        return replace(self, history_size=1000, history_bytes=2**20, history_ttl=3600.0)


class Broker(ABC):
    """Base class of the brokers, which publish messages and deliver them to subscribers.

    :param url: address of the broker, with a scheme of its own.
    :param options: settings of the broker.
    :param receiver: receiver of the messages; None for a broker that only publishes.

    Nothing is opened before the first call. If the broker cannot be reached, each method but
    :meth:`close` raises :class:`~flask_sockets2.BrokerError`. Nothing is lost on this side then,
    and a later call may succeed.
    """

    #: Whether messages reach other processes.
    shared = False
    #: Whether methods wait for a network, which gevent must have patched.
    waits = False

    def __init__(self, url: str, options: BrokerOptions, receiver: Receiver | None = None) -> None:
        self.url = url
        self.options = options
        self.receiver = receiver
        self._holders: dict[str, tuple[str, float]] = {}  # by name: holder, and until when
        self._holding = native_lock()  # guards _holders

    @abstractmethod
    def publish(self, drafts: Sequence[Draft]) -> list[Position]:
        """Publish messages in their order and return the position of each.

        If this method raises, some of the messages may have been published, the first ones first.
        """

    @abstractmethod
    def subscribe(self, channel: str) -> Position:
        """Deliver a channel to the receiver, from the returned position on."""

    @abstractmethod
    def unsubscribe(self, channel: str) -> None:
        """Stop the delivery of a channel; does not wait and never fails."""

    @abstractmethod
    def position(self, channel: str) -> Position:
        """Return the newest position of a channel; offset 0 if there are no messages."""

    def positions(self, channels: Sequence[str]) -> list[Position]:
        """Return the newest position of each channel, in one round trip if possible."""
        return [self.position(channel) for channel in channels]

    @abstractmethod
    def history(self, channel: str, since: Position | None) -> History:
        """Return the messages after a position; after None, all that are kept."""

    def away(self) -> bool | None:
        """Return whether the broker is unreachable, None if unknown so far; never waits."""
        return False

    # -- presence --------------------------------------------------------------------------

    @abstractmethod
    def count(self, channel: str, subscribers: int) -> None:
        """Record how many subscribers a channel has in this process; does not wait."""

    @abstractmethod
    def subscribers(self, channel: str) -> int:
        """Return how many subscribers a channel has in all processes; may be seconds old."""

    @abstractmethod
    def join(self, channel: str, identity: str) -> None:
        """Record one more connection of an identity; its first publishes ``join``."""

    @abstractmethod
    def leave(self, channel: str, identity: str) -> None:
        """Record that a connection of an identity has ended; does not wait and never fails.

        After the last one in all processes, ``leave`` is published ``presence_grace`` seconds
        later. If the identity is back by then, nothing is published.
        """

    @abstractmethod
    def present(self, channel: str) -> list[str]:
        """Return the identities present in a channel, in all processes, sorted."""

    # -- one process of many ---------------------------------------------------------------

    def hold(self, name: str, holder: str, seconds: float) -> bool:
        """Take a name for a while, as a lock; the holder may extend the time, or release with 0.

        This method locks within one process; a broker that reaches other processes overrides it.

        :returns: False if another holder has the name.
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
        """Close all connections; can be repeated.

        The identities of this process leave, as if the process were killed, unless another process
        has them, too.
        """
