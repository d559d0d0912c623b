"""Open channels: those that the broker delivers to this process, since somebody subscribes to them.

The first who subscribes has the broker deliver the channel, and others wait for that. It is kept
for some seconds after the last one has gone, because clients come back.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any

from ..brokers.base import Broker
from ..concurrency.delayed_calls import DelayedCalls
from ..exceptions import BrokerError
from ..stats import Counters
from .audience import Channel
from .replay_cache import ReplayCache

__all__ = ["OpenChannels", "inform"]

logger = logging.getLogger("flask_sockets2.channels")

_OPEN_TIMEOUT = 30.0  # seconds to wait for another's subscription to the same channel
_LINGER = 10.0  # seconds that a remote channel is kept after its last subscriber: they come back

_RAISED = "%s() of the broker raised"


class OpenChannels:
    """The channels that one process subscribes to.

    :param broker: asked to deliver them.
    :param recent: what is at hand of them; None where nothing is kept.
    :param counters: of all channels.
    :param lock: the fan-out's; guards all of it, and is not held while the broker is asked.
    """

    def __init__(
        self, broker: Broker, recent: ReplayCache | None, counters: Counters, lock: Any
    ) -> None:
        self._broker = broker
        self._recent = recent
        self._counters = counters
        self._lock = lock
        self._lingering = DelayedCalls(_LINGER)
        #: Those that are open, or about to be opened or closed.
        self.by_name: dict[str, Channel] = {}

    def open(self, name: str) -> Channel:
        """Return a channel that the broker delivers, and count one more subscriber."""
        deadline = monotonic() + _OPEN_TIMEOUT
        while True:
            with self._lock:
                channel = self.by_name.get(name)
                if channel is None:
                    channel = Channel(name, self._counters.of_channel(name))
                    self.by_name[name] = channel
                    break
                if channel.opened is None and not channel.closing:
                    channel.subscribers += 1
                    self._broker.count(name, channel.subscribers)
                    return channel
                opened = channel.opened
            # Another one opens it, or it is being closed just now.
            if opened is not None and not opened.wait(max(0.0, deadline - monotonic())):
                raise BrokerError(f"the broker did not subscribe to a channel in {_OPEN_TIMEOUT} s")
            if channel.error is not None:
                # One for each thread: raising it writes its traceback into it.
                raise BrokerError(channel.error.description) from channel.error
        return self._open_first(channel)

    def _open_first(self, channel: Channel) -> Channel:
        opened = channel.opened
        assert opened is not None
        try:
            position = self._broker.subscribe(channel.name)
        except BaseException as exc:
            if isinstance(exc, BrokerError):
                channel.error = exc
            else:  # killed, or a timeout of its handler's: those who wait try themselves
                self._broker.unsubscribe(channel.name)
            with self._lock:
                del self.by_name[channel.name]
                if self._recent is not None:
                    self._recent.forget(channel.name)
            opened.set()
            raise
        with self._lock:
            here = channel.position  # not None where something has been delivered already
            if here is None or (here.epoch == position.epoch and here.offset < position.offset):
                channel.position = position
                if self._recent is not None:
                    self._recent.begin(channel.name, position)
            channel.subscribers = 1
            self._broker.count(channel.name, 1)
            channel.opened = None
        opened.set()
        return channel

    def release(self, channel: Channel) -> None:
        """Count one subscriber less; the last one's channel is closed."""
        failure = None
        with self._lock:
            channel.subscribers -= 1
            try:
                self._broker.count(channel.name, channel.subscribers)
            except Exception as exc:
                failure = exc  # to be logged without the lock, see there
            idle = not channel.subscribers
        if failure is not None:
            logger.error(_RAISED, "count", exc_info=failure)
        if idle and self._broker.waits:
            self._lingering.call(lambda: self._close(channel))
        elif idle:
            self._close(channel)

    def _close(self, channel: Channel) -> None:
        with self._lock:
            if channel.subscribers or channel.closing:
                return
            channel.closing = True  # who subscribes now waits until that is done
            channel.opened = closed = threading.Event()
        inform(self._broker.unsubscribe, channel.name)
        with self._lock:
            if self.by_name.get(channel.name) is channel:
                del self.by_name[channel.name]
                if self._recent is not None:
                    self._recent.forget(channel.name)
        closed.set()

    def subscribers(self) -> dict[str, int]:
        """Return those with subscribers, and how many they have."""
        with self._lock:
            return {c.name: c.subscribers for c in self.by_name.values() if c.subscribers}

    def close(self) -> None:
        """Keep none any longer than it has subscribers."""
        self._lingering.close()


def inform(method: Callable[..., None], *args: Any) -> None:
    """Tell the broker that a client is gone; no error of a broker may keep one from leaving."""
    try:
        method(*args)
    except Exception:
        logger.exception(_RAISED, getattr(method, "__name__", method))
