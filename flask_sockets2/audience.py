"""Audience: the subscribers of a channel in this process, and what is on its way to them.

A channel has one audience for each hub or selector thread. In it a client is either a member of a
group, which all get the same bytes, or *held*: the history is on its way to it, and what comes
meanwhile is put in order with that. The fan-out's lock guards all of it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

from .brokers.base import Message, Position
from .encoding import GAP, Encoding
from .exceptions import BrokerError
from .outlet import Batch, Outlet
from .stats import ChannelCounters
from .writer import Writer

__all__ = ["Audience", "Channel", "Entry", "Held"]

_OVERHEAD = 64  # bytes that a message counts beside its data: empty ones are some work, too


class Entry:
    """One outlet's subscription to one channel.

    :ivar identity: who has joined by it, and leaves with it.
    """

    __slots__ = ("channel", "encoding", "identity")

    def __init__(self, channel: Channel, encoding: Encoding) -> None:
        self.channel = channel
        self.encoding = encoding
        self.identity: str | None = None


class Held:
    """Live messages for an outlet whose history is on its way.

    :ivar begun: the position that they follow.
    :ivar after: once known, the position that the history has brought it to, which may be ahead of
        what this process has seen: in the same epoch, or in one that it has not noticed yet.
    :ivar over: the epoch that this process is in, where the history has told that it is over.
    """

    __slots__ = ("after", "begun", "messages", "over")

    def __init__(self, begun: Position) -> None:
        self.begun = begun
        self.messages: list[Message] = []
        self.after: Position | None = None
        self.over: str | None = None

    def bring_to(self, after: Position) -> None:
        """The history has brought it to a position."""
        self.after = after
        if after.epoch != self.begun.epoch:
            self.over = self.begun.epoch

    def lacks(self, message: Message) -> bool:
        """Whether a message, or a gap, is news to it."""
        position, after = message.position, self.after
        if after is None or (message.transient and message.event != GAP):
            return True
        if position.epoch == after.epoch:
            return position.offset > after.offset
        return position.epoch != self.over

    def release(self, history: Sequence[Message]) -> tuple[list[Message], list[Message]]:
        """Return the history, and what came meanwhile: each message once, in its place."""
        live = [message for message in self.messages if self.lacks(message)]
        past: list[Message] = []
        for message in history:
            # A transient message is in no history, but has its place in it. Who joins and leaves
            # comes after the list of those who are there.
            early = [m for m in live if _is_before(m, message.position)]
            if early:
                past += early
                live = [m for m in live if m not in early]
            past.append(message)
        return past, live

    def is_level(self, here: Position) -> bool:
        """Whether all that is delivered from now on is, once this process is somewhere."""
        after = self.after
        if after is None or here.epoch != after.epoch:
            return here.epoch != self.over
        return here.offset >= after.offset


class Audience:
    """The subscribers of a channel that share a hub or selector thread."""

    __slots__ = ("channel", "groups", "held", "pending", "writer")

    def __init__(self, channel: Channel, writer: Writer) -> None:
        self.channel = channel
        self.writer = writer
        self.groups: dict[Encoding, dict[Outlet, None]] = {}
        self.held: dict[Outlet, Held] = {}
        self.pending: list[Message] = []

    def encodings(self) -> Iterator[Encoding]:
        """Return those of its subscribers."""
        yield from self.groups
        for outlet in self.held:
            yield outlet.entries[self.channel.name].encoding

    @property
    def empty(self) -> bool:
        """Whether nobody is left."""
        return not self.groups and not self.held

    def admit(self, outlet: Outlet, encoding: Encoding) -> None:
        """Have an outlet get what comes from now on; it is held no longer."""
        self.held.pop(outlet, None)
        self.groups.setdefault(encoding, {})[outlet] = None

    def remove(self, outlet: Outlet, encoding: Encoding) -> None:
        """Take an outlet out."""
        self.held.pop(outlet, None)
        group = self.groups.get(encoding)
        if group is not None:
            group.pop(outlet, None)
            if not group:
                del self.groups[encoding]

    def seal(self) -> None:
        """Assign what is pending to those who subscribe now."""
        messages = self.pending
        if not messages:
            return
        self.pending = []
        channel, writer = self.channel, self.writer
        for encoding, outlets in self.groups.items():
            writer.batches.append(Batch(channel, encoding, list(outlets), messages))
        for outlet, held in list(self.held.items()):
            if held.after is None:
                held.messages.extend(messages)
                continue
            encoding = outlet.entries[channel.name].encoding
            newer = list(filter(held.lacks, messages))
            if newer:
                writer.batches.append(Batch(channel, encoding, [outlet], newer))
            if channel.position is not None and held.is_level(channel.position):
                self.admit(outlet, encoding)


class Channel:
    """A channel that has or had subscribers in this process."""

    __slots__ = (
        "audiences",
        "closing",
        "counters",
        "error",
        "joined",
        "name",
        "opened",
        "position",
        "subscribers",
    )

    def __init__(self, name: str, counters: ChannelCounters) -> None:
        self.name = name
        self.counters = counters
        self.subscribers = 0
        self.audiences: dict[Any, Audience] = {}  # by clock
        #: Of the newest message that was delivered here.
        self.position: Position | None = None
        #: Who joined and left since the broker is being asked who is there; None where it is not.
        self.joined: list[Message] | None = None
        #: Set once the broker delivers, or will not; None from then on.
        self.opened: threading.Event | None = threading.Event()
        self.error: BrokerError | None = None
        self.closing = False

    def tells_presence(self) -> bool:
        """Whether a subscriber is told who joins and leaves."""
        return any(
            encoding.presence
            for audience in self.audiences.values()
            for encoding in audience.encodings()
        )

    def put(self, message: Message) -> None:
        """Have all its subscribers sent a message."""
        for audience in self.audiences.values():
            audience.pending.append(message)
            audience.writer.note(audience, len(message.data) + _OVERHEAD)


def _is_before(message: Message, position: Position) -> bool:
    """Whether a transient message was published before the message of a position."""
    if not message.transient or message.event:
        return False
    return message.position.epoch == position.epoch and message.position.offset < position.offset
