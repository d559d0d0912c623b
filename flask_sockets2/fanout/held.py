"""Held: a subscription whose history is on its way, and the messages that wait for it.

The states of a subscription that is held::

    waiting      the broker is asked for the history, and live messages collect
    replaying    there is more of the history than the client has room for
    ahead        the history went out; delivery in this process has not come as far yet
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from ..brokers.base import Message, Position
from .encoding import GAP, Encoding

__all__ = ["OVERHEAD", "Held", "Replays"]

OVERHEAD = 64  # bytes that a message counts beside its data: empty ones are some work, too


class Held:
    """A subscription whose history is on its way.

    :ivar begun: the position that live messages follow.
    :ivar after: once known, the position that the history has brought it to, which may be ahead of
        what this process has seen: in the same epoch, or in one that it has not noticed yet. While
        it is replayed: the position up to which messages were taken from the history.
    :ivar over: the epoch that this process is in, where the history has told that it is over.
    :ivar messages: to be sent next; live ones while the history is waited for.
    :ivar replays: those of its client, while it is one of them.
    :ivar cut: behind ``messages`` there is more in the log.
    :ivar aside: transient messages that come after what was cut off.
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
        self.silent = True  # none of them said who joined or left

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
        if not any(message.transient and not message.event for message in live):
            return list(history), live
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

    # -- while it is replayed, all under the fan-out's lock --------------------------------

    def add(self, messages: Iterable[Message]) -> None:
        """Take messages that follow, as far as there is room; the log has the others."""
        replays = self.replays
        assert replays is not None
        for message in messages:
            size = len(message.data) + OVERHEAD
            if message.event == GAP:
                if not self.cut:  # else it shows when the log is looked at
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
        """Take of what the log has behind its place, or the gap that stands there in its stead;
        each transient message before what was published after it."""
        self.cut = False
        aside, self.aside = self.aside, []
        for message in found:
            # Behind a gap: the client has not seen what came before them either.
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
        """Take transient messages that were set aside."""
        assert self.replays is not None
        for message in aside:
            size = len(message.data) + OVERHEAD
            self.replays.aside -= size
            self._append(message, size)

    def took(self, count: int) -> None:
        """So many of its messages went out."""
        assert self.replays is not None
        for message in self.messages[:count]:
            self.replays.size -= len(message.data) + OVERHEAD
        del self.messages[:count]

    def leave(self) -> None:
        """It is replayed no longer: its client has left, or is level."""
        replays, self.replays = self.replays, None
        if replays is not None:
            replays.size -= sum(len(message.data) + OVERHEAD for message in self.messages)
            replays.aside -= sum(len(message.data) + OVERHEAD for message in self.aside)
            replays.held = deque(each for each in replays.held if each[0] is not self)


class Replays:
    """What is replayed to one client. The fan-out's lock guards it.

    :ivar room: bytes of messages that may wait for it.
    :ivar held: its subscriptions that are replayed, with their audiences and encodings; the next
        one first.
    :ivar size: bytes of their messages.
    :ivar aside: bytes of what they have set aside.
    :ivar flooded: more was to be set aside than there was room for.
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
