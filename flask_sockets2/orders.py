"""Orders: what one process tells all others to do; there is one, to disconnect a user.

An order is a message of a channel that clients cannot have, so that the broker's laws hold for it:
who listens gets each, once, also after the broker was out of reach. What is kept of them is their
own, see :meth:`BrokerOptions.of <flask_sockets2.brokers.base.BrokerOptions.of>`.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple
from uuid import UUID

from werkzeug.local import LocalProxy

from .brokers.base import RESERVED

__all__ = ["ORDERS", "Order", "user_text"]

ORDERS = f"{RESERVED}orders"
"""The channel of orders."""

_MAX_REASON = 123  # bytes of a close frame's reason (RFC 6455 §5.5)


class Order(NamedTuple):
    """End the connections of a user.

    :ivar user: the id as text.
    :ivar code: close code for WebSockets.
    :ivar reason: to go with it.
    """

    user: str
    code: int
    reason: str

    @classmethod
    def of(cls, user: Any, code: int, reason: str) -> Order:
        """Make an order.

        :raises TypeError: when the user's id is no ``str``, ``int`` or ``UUID``.
        :raises ValueError: when there is no user, or a close frame cannot carry the rest.
        """
        if user is None:
            raise ValueError("user=None is nobody; connections without a user cannot be told apart")
        if not _may_be_sent(code):
            raise ValueError(
                f"{code!r} cannot be sent as a close code; use 1008, or 4000 to 4999 for your own"
            )
        if len(reason.encode()) > _MAX_REASON:
            raise ValueError(f"a close reason is at most {_MAX_REASON} bytes long; shorten it")
        return cls(user_text(user), code, reason)

    def serialize(self) -> bytes:
        """Return it as the data of a message."""
        order = {"disconnect": self.user, "code": self.code, "reason": self.reason}
        return json.dumps(order).encode()

    @classmethod
    def parse(cls, data: bytes) -> Order | None:
        """Read the data of a message; None for what is no order, as of a later version."""
        try:
            fields = json.loads(data)
            user = fields["disconnect"]
            if not isinstance(user, str):
                return None
            return cls.of(user, fields["code"], str(fields["reason"]))
        except (ValueError, TypeError, KeyError, RecursionError):
            return None


def user_text(user_id: Any) -> str:
    """Return the id of a user as text; an id and its text are the same user.

    :param user_id: ``str``, ``int`` or ``UUID``: their text is the same in every process, and no
        two users have it by accident, as two with ``True``.
    :raises TypeError: when it is of another type.
    :raises ValueError: when it is empty.
    """
    if isinstance(user_id, LocalProxy):  # as current_user of Flask-Login
        user_id = user_id._get_current_object()
    if isinstance(user_id, str):
        if not user_id:
            raise ValueError("a user's id cannot be empty; None is nobody")
        return str.__str__(user_id)  # the value of an enum, not its name
    if isinstance(user_id, int) and not isinstance(user_id, bool):
        return int.__repr__(user_id)
    if isinstance(user_id, UUID):
        return str(user_id)
    kind = type(user_id)
    raise TypeError(
        f"a user's id is a str, an int or a UUID, got {kind.__module__}.{kind.__qualname__}; "
        "use an id of it, as user.id, or the text of that, as str(user.id)"
    )


def _may_be_sent(code: Any) -> bool:
    """RFC 6455 §7.4.1 and §7.4.2."""
    if type(code) is not int:
        return False
    return 3000 <= code <= 4999 or (1000 <= code <= 1014 and code not in (1004, 1005, 1006))
