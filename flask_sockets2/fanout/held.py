"""Held: a subscription whose history is being sent, and the live messages buffered behind it.

The states of a held subscription::

    waiting      the broker is asked for the history, and live messages are buffered
    replaying    there is more of the history than the client has room for
    ahead        the history was sent; delivery in this process has not come as far yet
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from ..brokers.base import Message, Position
from .encoding import GAP, Encoding

__all__ = ["OVERHEAD", "Held", "Replays"]

OVERHEAD = 64  # bytes counted for each message beside its data, since empty ones are work, too


class Held:
    """Orders the history and the live messages of one subscription, each message once.

    :ivar begun: the position that live messages follow.
    :ivar after: the position at the end of the history; None until the history is known. The
        position may be ahead of this process, in the same epoch or in one not noticed here yet.
        During a replay: the position up to which messages were taken from the history.
    :ivar over: this process's epoch, if the history shows that the epoch has ended.
    :ivar messages: messages to send next; while the history is awaited, live messages.
    :ivar replays: the client's replays, if this subscription is one of them.
    :ivar cut: whether the log has more messages behind ``messages``.
    :ivar aside: transient messages that were published after the cut.
    """

    __slots__ = (
        "after",
        "aside",
        "begun",
        "cut",
        "dropped",
        "messages",
        "over",
        "replays",
        "silent",
    )

    def __init__(self, begun: Position) -> None:
        self.begun = begun
        self.messages: list[Message] = []
        self.after: Position | None = None
        self.over: str | None = None
        self.replays: Replays | None = None
        self.cut = False
        self.aside: list[Message] = []
        self.dropped = 0  # transient messages for which there was no room
        self.silent = True  # none of the dropped messages was a join or leave

    def bring_to(self, after: Position) -> None:
        """Note the position that the history has reached."""
        self.after = after
        if after.epoch != self.begun.epoch:
            self.over = self.begun.epoch

    def lacks(self, message: Message) -> bool:
        """Whether the subscription still needs a message or a gap."""
        position, after = message.position, self.after
        if after is None or (message.transient and message.event != GAP):
            return True
        if position.epoch == after.epoch:
            return position.offset > after.offset
        return position.epoch != self.over

    def release(self, history: Sequence[Message]) -> tuple[list[Message], list[Message]]:
        """Return the history and the live messages: each message once, in its place."""
        live = [message for message in self.messages if self.lacks(message)]
        if not any(message.transient and not message.event for message in live):
            return list(history), live
        past: list[Message] = []
        for message in history:
            # The history has no transient messages, but each has its place there. Joins and leaves
            # come after the list of members.
            early = [m for m in live if _is_before(m, message.position)]
            if early:
                past += early
                live = [m for m in live if m not in early]
            past.append(message)
        return past, live

    def is_level(self, here: Position) -> bool:
        """Whether every message delivered after position ``here`` is new to the subscription."""
        after = self.after
        if after is None or here.epoch != after.epoch:
            return here.epoch != self.over
        return here.offset >= after.offset

    # -- during a replay, all under the fan-out's lock -------------------------------------

    def add(self, messages: Iterable[Message]) -> None:
        """Append the messages that there is room for; the log keeps the others."""
        replays = self.replays
        assert replays is not None
        for message in messages:
            size = len(message.data) + OVERHEAD
            if message.event == GAP:
                if not self.cut:  # if cut, the next look at the log shows the gap
                    self._append(message, size)
                    self.bring_to(message.position)
            elif message.transient:
                self._set_aside(message, size) if self.cut else self._append(message, size)
            elif self.cut:
                pass
            elif replays.size and replays.size + size > replays.room:
                self.cut = True
                epoch, offset = message.position
                self.bring_to(Position(epoch, offset - 1))
            else:
                self._append(message, size)
                self.bring_to(message.position)

    def _append(self, message: Message, size: int) -> None:
        assert self.replays is not None
        self.messages.append(message)
        self.replays.size += size

    def _set_aside(self, message: Message, size: int) -> None:
        replays = self.replays
        assert replays is not None
        if replays.aside + size > replays.room:
            self.dropped += 1
            self.silent = self.silent and not message.event
            replays.flooded = True
        else:
            self.aside.append(message)
            replays.aside += size

    def go_on(self, found: Sequence[Message]) -> None:
        """Append the next messages of the log, or the gap in their place; each transient message
        goes before the messages published after it."""
        self.cut = False
        aside, self.aside = self.aside, []
        for message in found:
            # After a gap, transient messages stay behind the gap: the client missed their past.
            early = [m for m in aside if not message.event and _is_before(m, message.position)]
            if early:
                aside = [m for m in aside if m not in early]
                self._bring_in(early)
            self.add((message,))
            if self.cut:
                break
        if self.cut:
            self.aside = aside
        else:
            self._bring_in(aside)

    def _bring_in(self, aside: Sequence[Message]) -> None:
        """Append transient messages that were set aside."""
        assert self.replays is not None
        for message in aside:
            size = len(message.data) + OVERHEAD
            self.replays.aside -= size
            self._append(message, size)

    def took(self, count: int) -> None:
        """Remove the first messages, which were sent."""
        assert self.replays is not None
        for message in self.messages[:count]:
            self.replays.size -= len(message.data) + OVERHEAD
        del self.messages[:count]

    def leave(self) -> None:
        """End the replay: the client has left, or has received all messages."""
        replays, self.replays = self.replays, None
        if replays is not None:
            replays.size -= sum(len(message.data) + OVERHEAD for message in self.messages)
            replays.aside -= sum(len(message.data) + OVERHEAD for message in self.aside)
            replays.held = deque(each for each in replays.held if each[0] is not self)


class Replays:
    """The replays to one client; the fan-out's lock guards them.

    :ivar room: bytes of messages that may be buffered for the client.
    :ivar held: the subscriptions under replay, with their audiences and encodings; the next one
        first.
    :ivar size: bytes of their messages.
    :ivar aside: bytes of the messages that they have set aside.
    :ivar flooded: whether there was no room to set a message aside.
    """

    __slots__ = ("aside", "flooded", "held", "room", "scheduled", "size")

    def __init__(self, room: int) -> None:
        self.room = room
        self.held: deque[tuple[Held, Any, Encoding]] = deque()
        self.size = 0
        self.aside = 0
        self.flooded = False
        self.scheduled = False


def _is_before(message: Message, position: Position) -> bool:
    """Whether a transient message was published before the message of a position."""
    if not message.transient or message.event:
        return False
    return message.position.epoch == position.epoch and message.position.offset < position.offset
