"""Sender: all published messages leave through a sender.

A :class:`~flask_sockets2.Publisher` checks messages and hands them to its sender. There are three:

==================================  ==============================================================
:class:`Sender`                     gives messages to the broker; the sender of a script
``AppSender`` of ``app_sender.py``  counts messages too, and can log errors instead of raising them
``turbo/testing.py``                captures messages too, for a test
==================================  ==============================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Self

from ..admission.disconnects import ORDERS, DisconnectOrder
from ..brokers.base import JSON, Broker, Draft, Position
from ..exceptions import BrokerError

__all__ = ["Sender"]


class Sender:
    """Sends messages to a broker.

    :param broker: receives the messages.
    """

    #: Whether one message may be sent later in place of several, as with refreshes of Turbo.
    combines = True

    def __init__(self, broker: Broker) -> None:
        self.broker = broker

    def to(self, broker: Broker) -> Self:
        """Return the same sender for another broker."""
        other = copy(self)
        other.broker = broker
        return other

    def send(self, drafts: Sequence[Draft]) -> list[Position]:
        """Send messages in their order and return the position of each.

        :raises BrokerError: when the broker cannot be reached.
        """
        return self.broker.publish(drafts)

    def failed(self, exc: BrokerError, channels: Sequence[str]) -> list[Position]:
        """Handle that a message to each channel was not sent: raise the error.

        :returns: what the caller gets instead of positions if errors are only logged.
        """
        raise exc

    def disconnect(self, order: DisconnectOrder) -> None:
        """Send an order to disconnect a user to all processes.

        :raises BrokerError: when the broker cannot be reached.
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
