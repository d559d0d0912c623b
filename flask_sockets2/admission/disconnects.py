"""Orders: messages by which one process has all processes disconnect a user.

An order is a message of a channel to which clients cannot subscribe. So a process receives each
order once, also if the broker was unreachable in between. Orders have their own retention, see
:meth:`BrokerOptions.of <flask_sockets2.brokers.base.BrokerOptions.of>`.

The process that gives an order obeys it at once, and then publishes the order. Each order has an
id: a process obeys an order once, however often the order is published.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from time import monotonic
from typing import Any, NamedTuple
from uuid import UUID

from werkzeug.local import LocalProxy

from ..brokers.base import RESERVED
from ..concurrency.delayed_calls import DelayedCalls
from ..concurrency.native_lock import native_lock
from ..exceptions import BrokerError
from ..wire.close_codes import check_close

__all__ = ["ORDERS", "DisconnectOrder", "Unsent", "UserId", "id_text", "user_text"]

ORDERS = f"{RESERVED}orders"
"""The channel of orders."""

UserId = str | int | UUID
"""The id of a user; an id and its text are the same user."""

_AGAIN = 1.0  # seconds between two attempts to publish an order
_KEPT = 3600.0  # seconds until an unsent order expires, as in the broker
_MOST_UNSENT = 1000  # orders


class DisconnectOrder(NamedTuple):
    """An order to end the connections of a user.

    :ivar user: the user's id as text.
    :ivar code: close code for WebSockets.
    :ivar reason: close reason for WebSockets.
    :ivar id: id of the order; empty if an earlier version of the package gave it.
    """

    user: str
    code: int
    reason: str
    id: str

    @classmethod
    def of(cls, user: Any, code: int, reason: str, id: str | None = None) -> DisconnectOrder:
        """Make an order.

        :param id: id of an order that was received; None for a new order.
        :raises TypeError: if the user's id is no ``str``, ``int`` or ``UUID``.
        :raises ValueError: if there is no user, or if a close frame cannot carry code and reason.
        """
        if user is None:
            raise ValueError("user=None is nobody; connections without a user cannot be told apart")
        check_close(code, reason, usual=1008)
        return cls(user_text(user), code, reason, secrets.token_hex(8) if id is None else id)

    def serialize(self) -> bytes:
        """Return the order as the data of a message."""
        order = {
            "disconnect": self.user,
            "code": self.code,
            "reason": self.reason,
            "id": self.id,
        }
        return json.dumps(order).encode()

    @classmethod
    def parse(cls, data: bytes) -> DisconnectOrder | None:
        """Read an order from a message's data; None if it is none, as from a later version."""
        try:
            fields = json.loads(data)
            user = fields["disconnect"]
            if not isinstance(user, str):
                return None
            return cls.of(user, fields["code"], str(fields["reason"]), str(fields.get("id", "")))
        except (ValueError, TypeError, KeyError, RecursionError):
            return None


class Unsent:
    """Retries orders that could not be published, until the broker can be reached.

    This process keeps the newest order of each user, for an hour at most. If a failed publish did
    reach the broker, the order is published twice. Its id makes that harmless.

    :param publish: function that publishes an order.
    """

    def __init__(self, publish: Callable[[DisconnectOrder], object]) -> None:
        self._publish = publish
        self._lock = native_lock()  # guards the next two
        self._orders: dict[str, tuple[DisconnectOrder, float]] = {}  # by user; with its expiry
        self._trying = False
        self._later = DelayedCalls(_AGAIN)

    def keep(self, order: DisconnectOrder) -> None:
        """Publish an order later; does not wait."""
        with self._lock:
            self._orders.pop(order.user, None)
            self._orders[order.user] = order, monotonic() + _KEPT
            if len(self._orders) > _MOST_UNSENT:
                del self._orders[next(iter(self._orders))]
            trying, self._trying = self._trying, True
        if not trying:
            self._later.call(self._try)

    def drop(self, user: str) -> None:
        """Forget a user's order, because a newer one was published."""
        with self._lock:
            self._orders.pop(user, None)

    def close(self) -> None:
        """Forget all orders."""
        with self._lock:
            self._orders.clear()
        self._later.close()

    def _try(self) -> None:
        """Publish the kept orders, the oldest first."""
        while True:
            order = self._next()
            if order is None:
                return
            try:
                self._publish(order)
            except BrokerError:
                self._later.call(self._try)
                return
            with self._lock:
                if order.user in self._orders and self._orders[order.user][0] is order:
                    del self._orders[order.user]

    def _next(self) -> DisconnectOrder | None:
        with self._lock:
            now = monotonic()
            while self._orders:
                user, (order, until) = next(iter(self._orders.items()))
                if until > now:
                    return order
                del self._orders[user]
            self._trying = False
            return None


def id_text(value: Any) -> str | None:
    """Return the text of a ``str``, an ``int`` or a ``UUID``, None for any other type."""
    if isinstance(value, str):
        return str.__str__(value)  # the value of an enum, not its name
    if isinstance(value, int) and not isinstance(value, bool):
        return int.__repr__(value)
    return str(value) if isinstance(value, UUID) else None


def user_text(user_id: Any) -> str:
    """Return the id of a user as text; an id and its text are the same user.

    :param user_id: ``str``, ``int`` or ``UUID``. Their text is the same in every process and
        differs between users, unlike that of ``True``.
    :raises TypeError: if the id is of another type.
    :raises ValueError: if the id is empty.
    """
    if isinstance(user_id, LocalProxy):  # for example Flask-Login's current_user
        user_id = user_id._get_current_object()
    text = id_text(user_id)
    if text:
        return text
    if text == "":
        raise ValueError("a user's id cannot be empty; None is nobody")
    kind = type(user_id)
    raise TypeError(
        f"a user's id is a str, an int or a UUID, got {kind.__module__}.{kind.__qualname__}; "
        "use an id of it, as user.id, or the text of that, as str(user.id)"
    )
