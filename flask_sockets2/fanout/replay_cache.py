"""ReplayCache: caches the newest messages of a remote broker's channels for reconnecting clients.

After a network failure or a rolling restart, thousands of clients reconnect at once and resume.
The cache has the messages delivered to this process. Older messages are fetched once from the
broker. If a fetch under way includes the messages that a client needs, the client waits for it.

The messages of a channel expire ``history_ttl`` seconds after its newest one. Positions stay
valid: if the cache lacks messages, the broker is asked.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from time import monotonic
from typing import Any

from ..brokers.base import Broker, BrokerOptions, History, Message, Position
from ..brokers.message_log import MessageLog
from ..concurrency.delayed_calls import DelayedCalls

__all__ = ["ReplayCache"]

_PATIENCE = 10.0  # seconds to wait for another thread's fetch before fetching again
_SWEEPS = 4  # sweeps in one history_ttl: messages may stay a quarter longer
_SHORTEST = 0.05  # least seconds between two sweeps
_SWEPT = 64  # channels swept under one hold of the lock, which stops delivery


class _Fetch:
    """A history that is being fetched.

    :param since: position after which the history begins; None for the whole history.
    """

    __slots__ = ("done", "since")

    def __init__(self, since: Position | None) -> None:
        self.since = since
        self.done = threading.Event()

    def brings(self, since: Position | None) -> bool:
        """Whether the fetch includes the history after a position, or with None all of it."""
        mine = self.since
        if mine is None or since is None:
            return mine is None
        return mine.epoch == since.epoch and mine.offset <= since.offset


class _CachedChannel:
    """The cached messages of one channel.

    :ivar whole: whether the cache has the broker's whole history.
    """

    __slots__ = ("fetch", "log", "whole")

    def __init__(self, log: MessageLog) -> None:
        self.log = log
        self.fetch: _Fetch | None = None
        self.whole = False


class ReplayCache:
    """Caches the newest messages of the channels that a broker delivers to this process.

    :param broker: the broker, asked for messages that are not cached.
    :param options: the broker's settings, which limit the cache.
    :param lock: guards all attributes; held by callers, except of :meth:`fetch`, :meth:`close`.
    """

    def __init__(self, broker: Broker, options: BrokerOptions, lock: Any) -> None:
        self._broker = broker
        self._options = options
        self._lock = lock
        self._channels: dict[str, _CachedChannel] = {}
        #: Time of the newest message of each channel that has some; the oldest time first.
        self._newest: OrderedDict[str, float] = OrderedDict()
        self._sweeping = False
        self._later = DelayedCalls(max(options.history_ttl / _SWEEPS, _SHORTEST))

    def begin(self, name: str, position: Position) -> None:
        """Start a channel's log at a position, on first delivery or after a loss."""
        log = MessageLog(position, self._options.history_size, self._options.history_bytes)
        channel = self._channels.get(name)
        if channel is None:
            self._channels[name] = _CachedChannel(log)
        else:
            channel.log = log
            channel.whole = False
            self._newest.pop(name, None)

    def add(self, message: Message) -> None:
        """Cache a message that was delivered."""
        name, (epoch, offset) = message.channel, message.position
        channel = self._channels.get(name)
        if channel is None or channel.log.position != (epoch, offset - 1):
            self.begin(name, Position(epoch, offset - 1))
            channel = self._channels[name]
        channel.log.append(message)
        self._newest[name] = monotonic()
        self._newest.move_to_end(name)
        if not self._sweeping:
            self._sweep_later()

    def forget(self, name: str) -> None:
        """Remove a channel, which the broker no longer delivers."""
        self._channels.pop(name, None)
        self._newest.pop(name, None)

    def since(self, name: str, since: Position | None) -> History | None:
        """Return the history after a position, or with None all; None if it is not cached."""
        channel = self._channels.get(name)
        if channel is None or (since is None and not channel.whole):
            return None
        history = channel.log.since(since)
        return history if history.complete else None

    # -- fetching from the broker ----------------------------------------------------------

    def fetch(self, name: str, since: Position | None) -> History:
        """Fetch the history after a position, or with None all, from the broker; may wait.

        :raises BrokerError: if the broker cannot be reached.
        """
        fetch = _Fetch(since)
        with self._lock:
            other = self._under_way(name, fetch)
        if other is not None:
            other.done.wait(_PATIENCE)
            with self._lock:
                found = self.since(name, since)
            if found is not None:
                return found
        try:
            history = self._broker.history(name, since)
            with self._lock:
                return self._join_on(name, since, history)
        finally:  # also if the greenlet is killed: the waiting ones fetch themselves
            with self._lock:
                channel = self._channels.get(name)
                if channel is not None and channel.fetch is fetch:
                    channel.fetch = None
            fetch.done.set()

    def _under_way(self, name: str, fetch: _Fetch) -> _Fetch | None:
        """Return another thread's fetch that includes this one, or register this one."""
        channel, since = self._channels.get(name), fetch.since
        if channel is None or (since is not None and since.epoch != channel.log.position.epoch):
            return None  # the history will not fit before the cached messages
        other = channel.fetch
        if other is not None and other.brings(since):
            return other
        channel.fetch = fetch
        return None

    def _join_on(self, name: str, since: Position | None, history: History) -> History:
        """Put a history before the delivered messages if no message between them is missing.

        :param since: position after which the history begins.
        """
        channel = self._channels.get(name)
        if channel is None or not (history.complete and history.messages):
            return history
        messages = channel.log.precede(history.messages)
        if since is None:
            epoch, offset = messages[0].position
            channel.whole = channel.log.since(Position(epoch, offset - 1)).complete
        self._newest.setdefault(name, monotonic())
        if not self._sweeping:
            self._sweep_later()
        return History(messages, history.position)

    # -- expiry ----------------------------------------------------------------------------

    def _sweep_later(self) -> None:
        self._sweeping = True
        self._later.call(self._sweep)

    def _sweep(self) -> None:
        """Remove expired messages."""
        while True:
            with self._lock:
                over = monotonic() - self._options.history_ttl
                for _ in range(_SWEPT):
                    name = next(iter(self._newest), None)
                    if name is None:
                        self._sweeping = False
                        return
                    if self._newest[name] > over:
                        self._sweep_later()
                        return
                    del self._newest[name]
                    channel = self._channels[name]
                    channel.log.clear()
                    channel.whole = False

    def close(self) -> None:
        """Stop the sweeps."""
        self._later.close()
