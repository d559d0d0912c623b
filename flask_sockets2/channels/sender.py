"""Sender: gives each published message to the broker.

A script publishes through a :class:`Sender`. An application publishes through an
:class:`AppSender`, which also counts messages. ``turbo/testing.py`` has one that captures them.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from typing import Protocol

from flask import Flask

from ..admission.disconnects import ORDERS, DisconnectOrder, Unsent
from ..brokers.base import JSON, NOWHERE, Broker, Draft, Message, Position
from ..exceptions import BrokerError
from ..fanout.fanout import Fanout
from ..stats import Counters
from ..throttled_log import ThrottledLog

__all__ = ["AppSender", "Sender"]

logger = logging.getLogger("flask_sockets2.channels")


class Sender:
    """Sends messages to a broker.

    :param broker: receives the messages.
    """

    #: Whether one message may be sent later in place of several, as for Turbo's page refreshes.
    combines = True

    def __init__(self, broker: Broker) -> None:
        self.broker = broker

    def send(self, drafts: Sequence[Draft]) -> list[Position]:
        """Send messages in their order and return the position of each.

        :raises BrokerError: if the broker cannot be reached.
        """
        return self.broker.publish(drafts)

    def failed(self, exc: BrokerError, channels: Sequence[str]) -> list[Position]:
        """Handle an error in sending one message to each channel: raise the error.

        :returns: substitutes for the positions, if a subclass only logs errors.
        """
        raise exc

    def disconnect(self, order: DisconnectOrder) -> None:
        """Order all processes to disconnect a user.

        :raises BrokerError: if the broker cannot be reached.
        """
        try:
            self._send_order(order)
        except BrokerError as exc:
            raise BrokerError(
                "the user may still be connected, since the processes could not be told "
                f"({exc.description}); disconnect the user again when the broker is back"
            ) from exc

    def _send_order(self, order: DisconnectOrder) -> None:
        self.send([Draft(ORDERS, JSON, order.serialize())])

    def close(self) -> None:
        """Close the connections to the broker; can be repeated."""
        self.broker.close()


class Watch(Protocol):
    """Watches whether a process that publishes also serves clients."""

    settled: bool

    def published(self, channel: str) -> None:
        """Note that a message was published."""


class AppSender(Sender):
    """Sends the messages that one application publishes in this process.

    :param app: the application.
    :param fanout: fan-out with the broker and this process's subscribers.
    :param counters: counters for published messages and errors.
    :param log_errors: whether errors in publishing are logged instead of raised.
    :param unheard: makes a watch that warns if this process serves no clients; used if the broker
        reaches no other process.
    """

    def __init__(
        self,
        app: Flask,
        fanout: Fanout,
        counters: Counters,
        log_errors: bool,
        unheard: Callable[[Callable[[], bool], Callable[[str], None]], Watch],
    ) -> None:
        super().__init__(fanout.broker)
        self._app = app
        self._fanout = fanout
        self._counters = counters
        self._log_errors = log_errors
        self._seldom = ThrottledLog(logger)
        self._unheard = None if self.broker.shared else unheard(self._is_heard, self._warn_of_none)
        self._unsent = Unsent(self._send_order)

    def send(self, drafts: Sequence[Draft]) -> list[Position]:
        positions = self.broker.publish(drafts)
        for draft in drafts:
            self._counters.of_channel(draft.channel).published += 1
        self._fanout.relieve()
        if self._unheard is not None and not self._unheard.settled:
            self._unheard.published(drafts[0].channel)
        return positions

    def failed(self, exc: BrokerError, channels: Sequence[str]) -> list[Position]:
        for channel in channels:
            self._counters.of_channel(channel).publish_errors += 1
            if self._log_errors:
                self._seldom.failure(
                    "unpublished",
                    "a message to %.200r was not published, and SOCKETS_PUBLISH_ERRORS is 'log': "
                    "%s",
                    channel,
                    exc,
                    extra={"event": "unpublished", "channel": channel[:200]},
                )
        if not self._log_errors:
            raise exc
        return [NOWHERE] * len(channels)

    def disconnect(self, order: DisconnectOrder) -> None:
        """End the user's connections in this process, and send the order to the others.

        If the broker cannot be reached, this process keeps the order, and publishes it as soon as
        the broker is back.

        :raises BrokerError: if the broker cannot be reached.
        """
        self._fanout.deliver(Message(ORDERS, JSON, order.serialize(), NOWHERE))
        try:
            self._send_order(order)
        except BrokerError as exc:
            self._unsent.keep(order)
            raise BrokerError(
                "the connections of the user in this process are ended, but other processes could "
                f"not be told ({exc.description}); this process tries again for an hour, while it "
                "runs; to be certain, disconnect the user again when the broker is back"
            ) from exc
        except BaseException:  # the greenlet was killed, or the request timed out
            self._unsent.keep(order)
            raise
        self._unsent.drop(order.user)

    def close(self) -> None:
        self._unsent.close()
        self._fanout.close()

    def _is_heard(self) -> bool:
        """Return whether this process has served a request, or is a test."""
        app = self._app
        served = app.testing or getattr(app, "_got_first_request", False)
        return bool(served or self._fanout.channels()) or "pytest" in sys.modules

    def _warn_of_none(self, channel: str) -> None:
        logger.warning(
            "published to %.200r in a process that serves nobody, and with %s:// no other process "
            "hears it; set app.config['SOCKETS_BROKER_URL'] to a redis:// URL, the same here and "
            "in the processes that serve",
            channel,
            self.broker.url.partition("://")[0],
        )
