"""The broker of one process: history in ring buffers, delivery by a call."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from time import monotonic

from .base import (
    RESERVED,
    TEXT,
    Broker,
    BrokerOptions,
    Draft,
    History,
    Message,
    Position,
    Receiver,
    native_lock,
    new_epoch,
)
from .later import Later
from .log import Log

__all__ = ["MemoryBroker"]


_SWEEP = 16  # uses of channels between two looks for those whose time is over
_KEPT = 86_400.0  # seconds that a position outlives its messages: who comes back missed nothing
_MOST_KEPT = 10_000  # channels; with more of them, positions go with their messages


class _Channel:
    """A channel's log, until when it is kept, and whether it is subscribed to."""

    __slots__ = ("expires", "log", "subscribed")

    def __init__(self, log: Log) -> None:
        self.log = log
        self.subscribed = False
        self.expires = 0.0


class MemoryBroker(Broker):
    """Channels within one process (``memory://``).

    Messages are kept for ``history_ttl`` seconds after the last use of their channel; its position
    for a day more, unless there are very many channels. After that one of the same name is another
    log, of another epoch.
    """

    def __init__(self, url: str, options: BrokerOptions, receiver: Receiver | None = None) -> None:
        super().__init__(url, options, receiver)
        # Guards all below. Held while the receiver is called, which keeps the channel's order; but
        # not for reserved channels: what is done with their messages may be logged, and a log's
        # handler may switch greenlets.
        self._lock = native_lock()
        self._channels: OrderedDict[str, _Channel] = OrderedDict()  # the next to look at first
        self._uses = 0
        self._counts: dict[str, int] = {}
        self._present: dict[str, Counter[str]] = {}
        self._leaving = Later(options.presence_grace)

    # -- messages --------------------------------------------------------------------------

    def publish(self, drafts: Sequence[Draft]) -> list[Position]:
        reserved: list[Message] = []
        with self._lock:
            positions = [self._publish(draft, reserved) for draft in drafts]
        if self.receiver is not None:
            for message in reserved:
                self.receiver.deliver(message)
        return positions

    def _publish(self, draft: Draft, reserved: list[Message]) -> Position:
        """Publish; what is for subscribers of a reserved channel is added, to be delivered."""
        channel = self._use(draft.channel)
        log = channel.log
        epoch, offset = log.position
        position = log.position if draft.transient else Position(epoch, offset + 1)
        message = Message(
            draft.channel, draft.kind, draft.data, position, draft.key, draft.event, draft.transient
        )
        if not draft.transient:
            log.append(message)
        if channel.subscribed and draft.channel.startswith(RESERVED):
            reserved.append(message)
        elif channel.subscribed and self.receiver is not None:
            self.receiver.deliver(message)
        return position

    def _use(self, name: str) -> _Channel:
        """Return a channel, made where there is none; now and then look for what is over."""
        now = monotonic()
        channel = self._channels.get(name)
        self._uses += 1
        if channel is None or not self._uses % _SWEEP:
            self._sweep(now)
        if channel is None:
            options = self.options
            log = Log(Position(new_epoch(), 0), options.history_size, options.history_bytes)
            channel = self._channels[name] = _Channel(log)
        elif channel.expires < now:
            channel.log.clear()
        channel.expires = now + self.options.history_ttl
        return channel

    def _sweep(self, now: float) -> None:
        """Look at two channels, faster than they come: let go of messages, and at last of all."""
        channels = self._channels
        for _ in range(min(2, len(channels))):
            name, channel = next(iter(channels.items()))
            unused = now - channel.expires
            if unused > 0:
                channel.log.clear()
            if not channel.subscribed and (
                unused > _KEPT or (unused > 0 and len(channels) > _MOST_KEPT)
            ):
                del channels[name]
            else:
                channels.move_to_end(name)

    def subscribe(self, channel: str) -> Position:
        with self._lock:
            used = self._use(channel)
            used.subscribed = True
            return used.log.position

    def unsubscribe(self, channel: str) -> None:
        with self._lock:
            if channel in self._channels:
                self._channels[channel].subscribed = False

    def position(self, channel: str) -> Position:
        with self._lock:
            return self._use(channel).log.position

    def history(self, channel: str, since: Position | None) -> History:
        with self._lock:
            return self._use(channel).log.since(since)

    # -- who is there ----------------------------------------------------------------------

    def count(self, channel: str, subscribers: int) -> None:
        if subscribers:
            self._counts[channel] = subscribers
        else:
            self._counts.pop(channel, None)

    def subscribers(self, channel: str) -> int:
        return self._counts.get(channel, 0)

    def join(self, channel: str, identity: str) -> None:
        with self._lock:
            present = self._present.setdefault(channel, Counter())
            present[identity] += 1
            if present[identity] == 1:
                self._tell(channel, identity, "join")

    def leave(self, channel: str, identity: str) -> None:
        self._leaving.call(lambda: self._left(channel, identity))

    def _left(self, channel: str, identity: str) -> None:
        with self._lock:
            present = self._present.get(channel)
            if present is None or not present[identity]:
                return
            present[identity] -= 1
            if not present[identity]:
                del present[identity]
                self._tell(channel, identity, "leave")
            if not present:
                del self._present[channel]

    def _tell(self, channel: str, identity: str, event: str) -> None:
        self._publish(Draft(channel, TEXT, identity.encode(), event=event, transient=True), [])

    def present(self, channel: str) -> list[str]:
        with self._lock:
            return sorted(self._present.get(channel, ()))

    def close(self) -> None:
        self._leaving.close()
        with self._lock:
            self._channels.clear()
            self._counts.clear()
            self._present.clear()
