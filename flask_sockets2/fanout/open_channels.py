"""Open channels: the channels that the broker delivers to this process, for its subscribers.

The first subscriber of a channel subscribes at the broker, and others wait for that. A channel
stays open for some seconds after its last subscriber has left, because clients reconnect.
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

_OPEN_TIMEOUT = 30.0  # seconds to wait for another thread's subscription to the same channel
_LINGER = 10.0  # seconds that a remote broker's channel stays open after its last subscriber

_RAISED = "%s() of the broker raised"


class OpenChannels:
    """Opens a channel at the broker for its first subscriber, and closes it after the last one.

    :param broker: the broker that delivers the channels.
    :param recent: cache of their newest messages; None if nothing is cached.
    :param counters: counters of all channels.
    :param lock: the fan-out's lock, guards all attributes; not held while the broker may wait.
    """

    def __init__(
        self, broker: Broker, recent: ReplayCache | None, counters: Counters, lock: Any
    ) -> None:
        self._broker = broker
        self._recent = recent
        self._counters = counters
        self._lock = lock
        self._lingering = DelayedCalls(_LINGER)
        #: The channels that are open, being opened or being closed.
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
            # Another thread is opening or closing the channel.
            if opened is not None and not opened.wait(max(0.0, deadline - monotonic())):
                raise BrokerError(f"the broker did not subscribe to a channel in {_OPEN_TIMEOUT} s")
            if channel.error is not None:
                # A new error for each thread, since raising an error changes its traceback.
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
            else:  # killed, or the handler timed out: the waiting threads try themselves
                self._broker.unsubscribe(channel.name)
            with self._lock:
                del self.by_name[channel.name]
                if self._recent is not None:
                    self._recent.forget(channel.name)
            opened.set()
            raise
        with self._lock:
            here = channel.position  # not None if a message has been delivered already
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
        """Count one subscriber less, and close the channel after the last one."""
        failure = None
        with self._lock:
            channel.subscribers -= 1
            try:
                self._broker.count(channel.name, channel.subscribers)
            except Exception as exc:
                failure = exc  # logged below, since nothing is logged under the lock
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
            channel.closing = True  # from here on, open() waits for ``closed``
            channel.opened = closed = threading.Event()
        inform(self._broker.unsubscribe, channel.name)
        with self._lock:
            if self.by_name.get(channel.name) is channel:
                del self.by_name[channel.name]
                if self._recent is not None:
                    self._recent.forget(channel.name)
        closed.set()

    def subscribers(self) -> dict[str, int]:
        """Return the number of subscribers of each channel that has any."""
        with self._lock:
            return {c.name: c.subscribers for c in self.by_name.values() if c.subscribers}

    def close(self) -> None:
        """Cancel the delayed closing of channels."""
        self._lingering.close()


def inform(method: Callable[..., None], *args: Any) -> None:
    """Tell the broker that a client has left; log its errors, so that the client can leave."""
    try:
        method(*args)
    except Exception:
        logger.exception(_RAISED, getattr(method, "__name__", method))
