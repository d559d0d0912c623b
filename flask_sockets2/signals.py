"""Signals (blinker's): what an application may want to act on or to count.

::

    from flask_sockets2.signals import client_too_slow

    @client_too_slow.connect_via(app)
    def note(app, connection, **extra):
        app.logger.warning("%s does not keep up", connection.path)

The sender is the application. Receivers run between the messages of all connections, in whatever
thread or greenlet it happens, so they must not wait for anything. At ``connection_closed`` the
environ of a connection that has outlived its request holds ``PATH_INFO`` only.

What a receiver raises is logged, since nobody is there to take it; only that of
``connection_opened`` ends the request, as any error before its handler.
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
    """Send a signal from where an exception of a receiver would break what is under way."""
    try:
        signal.send(sender, **what)
    except Exception:
        logger.exception("a receiver of the signal %s raised", signal.name)
