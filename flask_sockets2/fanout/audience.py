"""The subscribers of a channel in this process, and the messages on their way to them.

A channel has one audience for each hub or selector thread. Most clients are members of a group,
whose members all get the same bytes. A client whose history is still being replayed is *held*: new
messages are put in order with that history (``fanout/held.py``). The fan-out's lock guards
audiences, channels and entries.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

from ..brokers.base import Message, Position
from ..exceptions import BrokerError
from ..stats import ChannelCounters
from .encoding import Encoding
from .held import OVERHEAD, Held
from .outbox import Batch, Outlet
from .turn_writer import TurnWriter

__all__ = ["Audience", "Channel", "Entry"]


class Entry:
    """One outlet's subscription to one channel.

    :ivar identity: the user that this subscription makes present on the channel, or None.
    """

    __slots__ = ("channel", "encoding", "identity")

    def __init__(self, channel: Channel, encoding: Encoding) -> None:
        self.channel = channel
        self.encoding = encoding
        self.identity: str | None = None


class Audience:
    """The subscribers of a channel that share a hub or selector thread."""

    __slots__ = ("channel", "groups", "held", "pending", "writer")

    def __init__(self, channel: Channel, writer: TurnWriter) -> None:
        self.channel = channel
        self.writer = writer
        self.groups: dict[Encoding, dict[Outlet, None]] = {}
        self.held: dict[Outlet, Held] = {}
        self.pending: list[Message] = []

    def encodings(self) -> Iterator[Encoding]:
        """Return the encodings of the subscribers."""
        yield from self.groups
        for outlet in self.held:
            yield outlet.entries[self.channel.name].encoding

    @property
    def empty(self) -> bool:
        """Whether the audience has no subscriber."""
        return not self.groups and not self.held

    def admit(self, outlet: Outlet, encoding: Encoding) -> None:
        """Send new messages to an outlet as they arrive, and stop holding them."""
        self._release(outlet)
        self.groups.setdefault(encoding, {})[outlet] = None

    def remove(self, outlet: Outlet, encoding: Encoding) -> None:
        """Remove an outlet."""
        self._release(outlet)
        group = self.groups.get(encoding)
        if group is not None:
            group.pop(outlet, None)
            if not group:
                del self.groups[encoding]

    def _release(self, outlet: Outlet) -> None:
        held = self.held.pop(outlet, None)
        if held is not None:
            held.leave()

    def seal(self) -> None:
        """Turn the pending messages into batches for the present subscribers."""
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
            if held.replays is not None:
                held.add(newer)
                if held.dropped:
                    outlet.source.go_on(outlet)
                continue
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
        #: Position of the newest message that was delivered in this process.
        self.position: Position | None = None
        #: Joins and leaves since the broker was asked for the members; None if no question is open.
        self.joined: list[Message] | None = None
        #: Set when the broker has subscribed to the channel or has failed to; None from then on.
        self.opened: threading.Event | None = threading.Event()
        self.error: BrokerError | None = None
        self.closing = False

    def tells_presence(self) -> bool:
        """Whether a subscriber asked for joins and leaves."""
        return any(
            encoding.presence
            for audience in self.audiences.values()
            for encoding in audience.encodings()
        )

    def put(self, message: Message) -> None:
        """Send a message to all subscribers."""
        for audience in self.audiences.values():
            audience.pending.append(message)
            audience.writer.note(audience.seal, len(message.data) + OVERHEAD)
