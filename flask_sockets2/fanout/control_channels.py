"""Own channels: those of the processes themselves, which no client can have.

What they tell one another there, as who is to be disconnected, goes to a function, not to a client.
It may log, so nothing of this is called under a lock between native threads.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from time import monotonic

from ..brokers.base import Broker, Message, Position
from ..exceptions import BrokerError

__all__ = ["OwnChannels"]

logger = logging.getLogger("flask_sockets2.channels")


class OwnChannels:
    """Which functions of this process take what comes on which channel.

    :param broker: asked to deliver them.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._listeners: dict[str, Callable[[Message], None]] = {}
        self._missable: dict[str, Callable[[], None]] = {}
        self._heard: set[str] = set()  # those that the broker delivers
        self._listening = threading.Lock()  # held while it is asked to
        self._not_listening: tuple[float, BrokerError | None] = (0.0, None)  # when, why

    def hears(self, name: str) -> bool:
        """Whether somebody listens, and the broker delivers."""
        return name in self._heard

    def listen(
        self, name: str, listener: Callable[[Message], None], missed: Callable[[], None] | None
    ) -> None:
        """Have a function called; see :meth:`Fanout.listen`."""
        begun = monotonic()
        with self._listening:
            failed, error = self._not_listening
            if error is not None and failed >= begun:  # while we waited: it is as much ours
                raise BrokerError(error.description) from error
            if name in self._heard:
                return
            self._listeners[name] = listener
            if missed is not None:
                self._missable[name] = missed
            try:
                self._broker.subscribe(name)
            except BaseException as exc:
                if isinstance(exc, BrokerError):
                    self._not_listening = (monotonic(), exc)
                else:  # killed, or a timeout of its request's: those who wait try themselves
                    self._broker.unsubscribe(name)
                raise
            self._heard.add(name)

    def deliver(self, message: Message) -> None:
        """Hand a message to who listens to its channel, where anybody does."""
        listener = self._listeners.get(message.channel)
        if listener is not None:
            listener(message)

    def missed(self, channel: str, position: Position) -> None:
        """Tell who listens to a channel that messages were lost."""
        told = self._missable.get(channel)
        if told is not None:
            logger.warning(
                "what the processes told each other on %r before %s is lost", channel, position
            )
            told()
