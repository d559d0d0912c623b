"""ReplayCache: the newest messages of a remote broker's channels, so that it is asked less often.

After a network failed or a worker was restarted clients come back, thousands at once, and want what
they missed. What was delivered here is at hand. What was not, as after a restart, is fetched once
and joined on to that: who wants no more than is being fetched just now waits for it.

Messages are forgotten ``history_ttl`` seconds after the newest of their channel. Positions stay
valid: where something is not at hand, the broker is asked.
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

_PATIENCE = 10.0  # seconds to wait for what another fetches; then it is fetched once more
_SWEEPS = 4  # in the time after which messages are forgotten: so much longer they may stay
_SHORTEST = 0.05  # seconds between two sweeps
_SWEPT = 64  # channels at a time, while nothing is delivered


class _Fetch:
    """A history that is under way.

    :param since: where it begins; None for all.
    """

    __slots__ = ("done", "since")

    def __init__(self, since: Position | None) -> None:
        self.since = since
        self.done = threading.Event()

    def brings(self, since: Position | None) -> bool:
        """Whether what follows a position, None for all, will be a part of it."""
        mine = self.since
        if mine is None or since is None:
            return mine is None
        return mine.epoch == since.epoch and mine.offset <= since.offset


class _CachedChannel:
    """What is at hand of one channel.

    :ivar whole: whether that is all that the broker keeps.
    """

    __slots__ = ("fetch", "log", "whole")

    def __init__(self, log: MessageLog) -> None:
        self.log = log
        self.fetch: _Fetch | None = None
        self.whole = False


class ReplayCache:
    """The newest messages of the channels that a broker delivers here.

    :param broker: asked for what is not at hand.
    :param lock: guards all of it; held by the caller but for :meth:`fetch` and :meth:`close`.
    """

    def __init__(self, broker: Broker, options: BrokerOptions, lock: Any) -> None:
        self._broker = broker
        self._options = options
        self._lock = lock
        self._channels: dict[str, _CachedChannel] = {}
        #: Of those that hold messages, when the newest came; the longest ago first.
        self._newest: OrderedDict[str, float] = OrderedDict()
        self._sweeping = False
        self._later = DelayedCalls(max(options.history_ttl / _SWEEPS, _SHORTEST))

    def begin(self, name: str, position: Position) -> None:
        """A channel is delivered from a position on: for the first time, or after a loss."""
        log = MessageLog(position, self._options.history_size, self._options.history_bytes)
        channel = self._channels.get(name)
        if channel is None:
            self._channels[name] = _CachedChannel(log)
        else:
            channel.log = log
            channel.whole = False
            self._newest.pop(name, None)

    def add(self, message: Message) -> None:
        """A message was delivered."""
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
        """A channel is not delivered any more."""
        self._channels.pop(name, None)
        self._newest.pop(name, None)

    def since(self, name: str, since: Position | None) -> History | None:
        """Return what follows a position, or with None all; None where it is not at hand."""
        channel = self._channels.get(name)
        if channel is None or (since is None and not channel.whole):
            return None
        history = channel.log.since(since)
        return history if history.complete else None

    # -- what is not at hand ---------------------------------------------------------------

    def fetch(self, name: str, since: Position | None) -> History:
        """Return what follows a position that is not at hand, None: all that the broker keeps.

        :raises BrokerError: when the broker cannot be reached.
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
        finally:  # killed, too: those who wait try themselves
            with self._lock:
                channel = self._channels.get(name)
                if channel is not None and channel.fetch is fetch:
                    channel.fetch = None
            fetch.done.set()

    def _under_way(self, name: str, fetch: _Fetch) -> _Fetch | None:
        """Return who fetches the same already, or else have others wait for this one."""
        channel, since = self._channels.get(name), fetch.since
        if channel is None or (since is not None and since.epoch != channel.log.position.epoch):
            return None  # it will not join on
        other = channel.fetch
        if other is not None and other.brings(since):
            return other
        channel.fetch = fetch
        return None

    def _join_on(self, name: str, since: Position | None, history: History) -> History:
        """Put a history before what was delivered, where nothing is missing between them.

        :param since: where it begins.
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

    # -- what is over ----------------------------------------------------------------------

    def _sweep_later(self) -> None:
        self._sweeping = True
        self._later.call(self._sweep)

    def _sweep(self) -> None:
        """Forget the messages of channels whose time is over."""
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
        """Sweep no more."""
        self._later.close()
