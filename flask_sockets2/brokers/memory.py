"""MemoryBroker: channels within one process, with history in ring buffers."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from time import monotonic

from ..concurrency.delayed_calls import DelayedCalls
from ..concurrency.native_lock import native_lock
from .base import (
    DAY,
    RESERVED,
    TEXT,
    Broker,
    BrokerOptions,
    Draft,
    History,
    Message,
    Position,
    Receiver,
    new_epoch,
    silent_ttl,
)
from .message_log import MessageLog

__all__ = ["MemoryBroker"]

_SWEEP = 10.0  # seconds between two sweeps for expired channels
_SWEPT = 1000  # channels per batch of a sweep, after which other threads may run
_BREATH = 1e-3  # seconds in which other threads may run
_MOST_SILENT = 50_000  # channels without a message or a listener, of half a kilobyte each
_MOST_KEPT = 10_000  # channels; if there are more, positions expire with their messages


class _MemoryChannel:
    """A channel's log, when the log expires, and when the subscription began.

    :ivar expires: monotonic time when the messages expire; their position expires a day later.
    :ivar silent_until: monotonic time when a channel without messages expires.
    :ivar begun: monotonic time when the subscription began, None if there is none.
    """

    __slots__ = ("begun", "expires", "log", "silent_until")

    def __init__(self, log: MessageLog) -> None:
        self.log = log
        self.expires = 0.0
        self.silent_until = 0.0
        self.begun: float | None = None

    def is_over(self, now: float, kept: float = DAY) -> bool:
        """Return whether the channel has expired.

        :param kept: seconds that the position outlives the messages.
        """
        if self.begun is not None:
            return False
        until = self.expires + kept if self.log.position.offset else self.silent_until
        return until < now


class MemoryBroker(Broker):
    """Publishes to subscribers within one process (``memory://``).

    Messages are kept for ``history_ttl`` seconds after the last use of their channel, its position
    a day longer. A channel without messages is kept for a minute, see :func:`~.base.silent_ttl`.
    If there are very many channels, they expire earlier. If an expired channel is used again, a new
    log begins, with another epoch.
    """

    def __init__(self, url: str, options: BrokerOptions, receiver: Receiver | None = None) -> None:
        super().__init__(url, options, receiver)
        # Guards all attributes below. Held while the receiver is called, which keeps each channel's
        # order. Not held for reserved channels: their receivers may log, and a log handler may
        # switch greenlets.
        self._lock = native_lock()
        self._channels: dict[str, _MemoryChannel] = {}
        self._silent: dict[str, None] = {}  # without a message or a listener, the oldest first
        self._swept = False  # whether a sweep is due
        self._sweeping = DelayedCalls(_SWEEP)
        self._counts: dict[str, int] = {}
        self._present: dict[str, Counter[str]] = {}
        self._leaving = DelayedCalls(options.presence_grace)

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
        """Publish a draft; on a reserved channel, append to ``reserved`` instead of delivering."""
        channel = self._use(draft.channel)
        log = channel.log
        epoch, offset = log.position
        position = log.position if draft.transient else Position(epoch, offset + 1)
        message = Message(
            draft.channel, draft.kind, draft.data, position, draft.key, draft.event, draft.transient
        )
        if not draft.transient:
            log.append(message)
            if not offset:
                self._silent.pop(draft.channel, None)
        if channel.begun is not None and draft.channel.startswith(RESERVED):
            reserved.append(message)
        elif channel.begun is not None and self.receiver is not None:
            self.receiver.deliver(message)
        return position

    def _use(self, name: str) -> _MemoryChannel:
        """Return a channel; make a new one if there is none or the old one has expired."""
        now = monotonic()
        channel = self._channels.get(name)
        if channel is None or channel.is_over(now):
            if not self._swept:
                self._swept = True
                self._sweeping.call(self._sweep)
            options = self.options
            log = MessageLog(Position(new_epoch(), 0), options.history_size, options.history_bytes)
            channel = self._channels[name] = _MemoryChannel(log)
        elif channel.expires < now:
            channel.log.clear()
        channel.expires = now + self.options.history_ttl
        if not channel.log.position.offset:
            channel.silent_until = max(channel.silent_until, now + silent_ttl(name))
        self._bound_silent(name, channel)
        return channel

    def _bound_silent(self, name: str, channel: _MemoryChannel) -> None:
        """Note whether a channel is silent; if very many are, forget the oldest.

        Clients can make up more names in a minute than memory should hold.
        """
        if channel.begun is not None or channel.log.position.offset:
            return
        self._silent.pop(name, None)
        self._silent[name] = None
        if len(self._silent) > _MOST_SILENT:
            oldest = next(iter(self._silent))
            del self._silent[oldest], self._channels[oldest]

    def _sweep(self) -> None:
        """Remove expired messages and channels; repeat while there are channels."""
        with self._lock:
            names = list(self._channels)
        for start in range(0, len(names), _SWEPT):
            with self._lock:
                self._sweep_some(names[start : start + _SWEPT])
            threading.Event().wait(_BREATH)
        with self._lock:
            self._swept = bool(self._channels)
            if self._swept:
                self._sweeping.call(self._sweep)

    def _sweep_some(self, names: Sequence[str]) -> None:
        now = monotonic()
        kept = DAY if len(self._channels) <= _MOST_KEPT else 0.0
        for name in names:
            channel = self._channels.get(name)
            if channel is None:
                continue
            if channel.is_over(now, kept):
                del self._channels[name]
                self._silent.pop(name, None)
            elif channel.expires < now:
                channel.log.clear()

    def subscribe(self, channel: str) -> Position:
        with self._lock:
            used = self._use(channel)
            if used.begun is None:
                used.begun = monotonic()
                self._silent.pop(channel, None)
            return used.log.position

    def unsubscribe(self, channel: str) -> None:
        with self._lock:
            left = self._channels.get(channel)
            if left is None or left.begun is None:
                return
            now = monotonic()
            left.silent_until = now + silent_ttl(channel, now - left.begun)
            left.begun = None
            self._bound_silent(channel, left)

    def position(self, channel: str) -> Position:
        with self._lock:
            return self._use(channel).log.position

    def history(self, channel: str, since: Position | None) -> History:
        with self._lock:
            return self._use(channel).log.since(since)

    # -- presence --------------------------------------------------------------------------

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
        self._sweeping.close()
        with self._lock:
            self._swept = False
            self._channels.clear()
            self._silent.clear()
            self._counts.clear()
            self._present.clear()
