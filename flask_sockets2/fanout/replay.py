"""Replay: what a subscription begins with, in pieces, as its client takes them.

A short history goes out at once. Of a longer one the client is given a *place* in the log of its
channel, and no copy: while the client has room, the messages behind that place are looked up in
what all clients share (the broker's log, or ``fanout/replay_cache.py``) and the place moves on. At
the newest message the client joins its audience. So a client that reads nothing holds a few
messages, however much it has asked for, and one that is too slow for what is kept is told of a gap.

What counts for one client::

    messages of all its replays    up to half of send_buffer, and they are mostly shared
    its outlet and its transport   up to the other half, and one message
    transient messages meanwhile   up to half of send_buffer; more is too slow

The states of a subscription that is held::

    waiting      the broker is asked for the history, and live messages collect
    replaying    there is more of the history than the client has room for
    ahead        the history went out; delivery in this process has not come as far yet
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Protocol

from ..brokers.base import Broker, History, Message, Position
from .encoding import GAP, Encoding, gap_message
from .outbox import DROP_OLDEST, Batch, Outlet
from .replay_cache import Recent

__all__ = ["OVERHEAD", "Held", "Replayer"]

logger = logging.getLogger("flask_sockets2.channels")

OVERHEAD = 64  # bytes that a message counts beside its data: empty ones are some work, too
_AT_ONCE = 65536  # bytes of histories that go out at once, for one client


class Audience(Protocol):
    """The subscribers of a channel that share a hub or selector thread."""

    channel: Any
    held: dict[Outlet, Held]
    writer: Any

    def seal(self) -> None:
        """Assign what is pending to those who subscribe now."""

    def admit(self, outlet: Outlet, encoding: Encoding) -> None:
        """Have an outlet get what comes from now on."""


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
        self.replays: _Replays | None = None
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


class _Replays:
    """What is replayed to one client. The fan-out's lock guards it.

    :ivar room: bytes of messages that may wait for it.
    :ivar held: its subscriptions that are replayed, with their encodings; the next one first.
    :ivar size: bytes of their messages.
    :ivar aside: bytes of what they have set aside.
    :ivar flooded: more was to be set aside than there was room for.
    """

    __slots__ = ("aside", "flooded", "held", "room", "scheduled", "size")

    def __init__(self, room: int) -> None:
        self.room = room
        self.held: deque[tuple[Held, Audience, Encoding]] = deque()
        self.size = 0
        self.aside = 0
        self.flooded = False
        self.scheduled = False


class Replayer:
    """Sends histories to the clients of one fan-out.

    :param broker: whose log is read where there is no ``recent``; it does not wait then.
    :param recent: what is at hand, None where the broker has it.
    :param lock: the fan-out's.
    :param lost: called with the name of a channel whose history a client was too slow for.
    """

    def __init__(
        self, broker: Broker, recent: Recent | None, lock: Any, lost: Callable[[str], None]
    ) -> None:
        self._broker = broker
        self._recent = recent
        self._lock = lock
        self._lost = lost

    def fits(self, outlet: Outlet, messages: Sequence[Message]) -> bool:
        """Whether messages may go out at once, in the turn that comes; counted if so."""
        room = min(_AT_ONCE, outlet.limit // 8) - outlet.at_once
        size = 0
        for message in messages:
            size += len(message.data) + OVERHEAD
            if size > room:
                return False
        outlet.at_once += size
        return True

    def begin(
        self,
        audience: Audience,
        outlet: Outlet,
        encoding: Encoding,
        held: Held,
        messages: Sequence[Message],
    ) -> None:
        """Replay messages, and all that follows them; under the lock."""
        replays = outlet.replays
        if replays is None:
            replays = outlet.replays = _Replays(outlet.limit // 2)
        held.messages = []
        held.replays = replays
        replays.held.append((held, audience, encoding))
        held.add(messages)
        self.go_on(outlet)

    def go_on(self, outlet: Outlet) -> None:
        """Send more of what is replayed to a client, in its hub or selector thread; any thread."""
        replays = outlet.replays
        if replays is not None and not replays.scheduled:
            replays.scheduled = True
            outlet.transport.clock.call_soon(partial(self._serve, outlet, replays))

    def _serve(self, outlet: Outlet, replays: _Replays) -> None:
        """Send a piece of each, as long as there is room."""
        replays.scheduled = False
        if replays.flooded and not self._drop(outlet, replays):
            return
        for _ in range(len(replays.held)):
            with self._lock:
                if not replays.held:
                    break
                held, audience, encoding = replays.held[0]
                replays.held.rotate(-1)
            try:
                self._send(outlet, held, audience, encoding)
            except Exception:  # ours; the client comes back, and the others must not suffer for it
                logger.exception("replaying a history of channels to a client failed")
                outlet.give_up(audience.channel.counters)
            if outlet.is_full:
                break
        with self._lock:
            if not replays.held and outlet.replays is replays:
                outlet.replays = None
        if not outlet.is_behind:  # else it will say so when it is not
            outlet.at_once = 0
            self.go_on(outlet)

    def _drop(self, outlet: Outlet, replays: _Replays) -> bool:
        """See to transient messages for which there was no room; False where that was the end."""
        with self._lock:
            replays.flooded = False
            concerned = [(held, audience) for held, audience, _ in replays.held if held.dropped]
        if not concerned:
            return True
        if outlet.policy != DROP_OLDEST:
            outlet.give_up(concerned[0][1].channel.counters)
            return False
        for held, audience in concerned:
            with self._lock:
                count, held.dropped = held.dropped, 0
            audience.channel.counters.dropped += count
            for _ in range(count):
                outlet.source.dropped(outlet, audience.channel.name)
        return True

    def _send(self, outlet: Outlet, held: Held, audience: Audience, encoding: Encoding) -> None:
        if held.cut and not held.messages:
            self._look_up(held, audience)
        with self._lock:
            if held.replays is None:
                return  # it has left
            messages = list(held.messages)
        taken = outlet.replay(audience.channel, encoding, messages)
        with self._lock:
            if held.replays is None:
                return
            held.took(taken)
            if taken == len(messages) and not held.cut:
                self._end(outlet, held, audience, encoding)

    def _look_up(self, held: Held, audience: Audience) -> None:
        """Have a subscription go on with what is behind its place."""
        channel, place = audience.channel, held.after
        assert place is not None
        found: History | None = None
        if self._recent is None:
            found = self._broker.history(channel.name, place)
        with self._lock:
            if held.replays is None:
                return
            if self._recent is not None:
                found = self._recent.since(channel.name, place)
            here: Position = channel.position
            missing: Sequence[Message] = ()
            lost = False
            if found is not None and found.complete:
                missing = found.messages
            elif place.epoch == here.epoch:
                lost = place.offset < here.offset  # else it will be delivered
            else:
                lost = here.epoch != held.over  # else this process will notice, and tell all
            if lost or not held.silent:
                missing = (gap_message(channel.name, here),)
                channel.counters.gaps += 1
                held.silent = True
            held.go_on(missing)
        if missing and missing[0].event:
            self._lost(channel.name)

    def _end(self, outlet: Outlet, held: Held, audience: Audience, encoding: Encoding) -> None:
        """It has been brought as far as this process has seen; under the lock."""
        audience.seal()  # which may cut off some of what is pending
        if held.cut:
            return
        messages = held.messages
        held.leave()
        held.messages = []
        if messages:
            audience.writer.add(Batch(audience.channel, encoding, [outlet], messages))
        if held.is_level(audience.channel.position):
            audience.admit(outlet, encoding)


def _is_before(message: Message, position: Position) -> bool:
    """Whether a transient message was published before the message of a position."""
    if not message.transient or message.event:
        return False
    return message.position.epoch == position.epoch and message.position.offset < position.offset
