"""Blinker signals for connections, streams, slow clients and lost messages.

::

    from flask_sockets2.signals import client_too_slow

    @client_too_slow.connect_via(app)
    def note(app, connection, **extra):
        app.logger.warning("%s does not keep up", connection.path)

The sender is the application. A receiver runs in the thread or greenlet of the event, between the
messages of all connections, so receivers must not wait. At ``connection_closed`` the environ of a
connection that has outlived its request holds ``PATH_INFO`` only.

If a receiver raises an exception, it is logged, since no caller could handle the exception. Only in
a receiver of ``connection_opened``, an exception ends the request, as any error before the handler.
"""

from __future__ import annotations

import logging
from typing import Any

from blinker import NamedSignal, Namespace

__all__ = [
    "broker_reconnected",
    "client_too_slow",
    "connection_closed",
    "connection_opened",
    "gap_told",
    "message_dropped",
    "stream_closed",
    "stream_opened",
    "tell",
]

logger = logging.getLogger("flask_sockets2.channels")

_signals = Namespace()

connection_opened = _signals.signal("connection-opened", "With ``connection``.")
connection_closed = _signals.signal(
    "connection-closed", "With ``connection``; its ``close_code`` and ``close_reason`` are known."
)
stream_opened = _signals.signal("stream-opened", "With ``stream``, of events; it has a ``path``.")
stream_closed = _signals.signal("stream-closed", "With ``stream``.")
client_too_slow = _signals.signal(
    "client-too-slow", "With ``connection``: it is closed with 1013, not keeping up with channels."
)
message_dropped = _signals.signal(
    "message-dropped", "With ``connection`` and ``channel``: a slow client was not sent a message."
)
gap_told = _signals.signal(
    "gap-told", "With ``channel``: clients are told that messages of it were lost."
)
broker_reconnected = _signals.signal(
    "broker-reconnected", "The broker was out of reach and is back."
)


def tell(signal: NamedSignal, sender: Any, **what: Any) -> None:
    """Send a signal, and log a receiver's exception so that the caller can continue."""
    try:
        signal.send(sender, **what)
    except Exception:
        logger.exception("a receiver of the signal %s raised", signal.name)
