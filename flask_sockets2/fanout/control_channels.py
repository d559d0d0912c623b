"""Channels for messages between processes, to which no client can subscribe.

A message on a control channel, for example an order to disconnect a user, goes to a function. The
function may log. So do not call these methods under a lock between native threads.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from time import monotonic

from ..brokers.base import Broker, Message, Position
from ..exceptions import BrokerError

__all__ = ["ControlChannels"]

logger = logging.getLogger("flask_sockets2.channels")


class ControlChannels:
    """The functions of this process that receive messages of control channels.

    :param broker: delivers the messages.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._listeners: dict[str, Callable[[Message], None]] = {}
        self._missable: dict[str, Callable[[], None]] = {}
        self._heard: set[str] = set()  # channels that the broker delivers
        self._listening = threading.Lock()  # held while the broker subscribes
        #: When subscribing failed, and why.
        self._not_listening: tuple[float, BrokerError | None] = (0.0, None)

    def hears(self, name: str) -> bool:
        """Whether a function listens and the broker delivers."""
        return name in self._heard

    def listen(
        self, name: str, listener: Callable[[Message], None], missed: Callable[[], None] | None
    ) -> None:
        """Call a function for each message of a channel; see :meth:`Fanout.listen`."""
        begun = monotonic()
        with self._listening:
            failed, error = self._not_listening
            if error is not None and failed >= begun:  # while this call waited: the same failure
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
                else:  # killed, or the request timed out: other waiting calls try again
                    self._broker.unsubscribe(name)
                raise
            self._heard.add(name)

    def deliver(self, message: Message) -> None:
        """Call the function that listens to the message's channel, if there is one."""
        listener = self._listeners.get(message.channel)
        if listener is not None:
            listener(message)

    def missed(self, channel: str, position: Position) -> None:
        """Tell the channel's listener that messages were lost."""
        told = self._missable.get(channel)
        if told is not None:
            logger.warning(
                "what the processes told each other on %r before %s is lost", channel, position
            )
            told()
