"""Settings with their defaults, and what the package keeps about one application.

===============================  ===========  =====================================================
setting                          default      meaning
===============================  ===========  =====================================================
``SOCKETS_ALLOWED_ORIGINS``      None         origins that may connect: a list, ``"*"``, or None
                                              for the page's own host
``SOCKETS_MAX_MESSAGE_SIZE``     1 MiB        bytes of one message
``SOCKETS_RECEIVE_BUFFER``       1 MiB        bytes of memory for messages that the handler has not
                                              taken
``SOCKETS_SEND_BUFFER``          1 MiB        bytes kept back for a slow peer
``SOCKETS_SEND_TIMEOUT``         30           seconds a send may wait for room, or a peer take
                                              nothing, before it is dropped
``SOCKETS_CLOSE_TIMEOUT``        5            seconds for the closing handshake, once all before it
                                              has been taken
``SOCKETS_PING_INTERVAL``        25           seconds between pings, None for none
``SOCKETS_PING_TIMEOUT``         20           seconds for a sign of life after a ping
``SOCKETS_COMPRESSION``          False        agree to permessage-deflate
``SOCKETS_MAX_CONNECTIONS``      None         open connections of the application in one process
``SOCKETS_HANDSHAKE_TIMEOUT``    10           seconds for the head of a request, under our worker
===============================  ===========  =====================================================

Each but the last two can also be given to a route, in lower case and without the prefix; the
first as ``origins``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from math import inf
from threading import Lock
from typing import Any

from flask import Flask, current_app

from .connection import Connection, Limits
from .exceptions import HandshakeError

__all__ = ["LIMITS", "State", "check_limit", "limits_of", "max_connections_of", "state_of"]

EXTENSION = "flask_sockets2"

logger = logging.getLogger("flask_sockets2.sockets")

LIMITS = frozenset(limit.name for limit in fields(Limits))
"""Names of the limits that a route may set for itself."""

_SETTINGS = tuple((name, f"SOCKETS_{name.upper()}") for name in sorted(LIMITS))
_DEFAULTS = Limits()
_SIZES = frozenset(("max_message_size", "receive_buffer", "send_buffer"))
_MAY_BE_NONE = frozenset(("ping_interval", "ping_timeout"))


@dataclass(slots=True)
class State:
    """What the package keeps about one application, in this process.

    :ivar connections: those that are open.
    :ivar rules: endpoints of the rules that were registered, by rule, endpoint and handler.
    """

    connections: set[Connection] = field(default_factory=set)
    rules: dict[Any, str] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)  # guards counting and adding to connections

    def admit(self, connection: Connection, most: int | None) -> None:
        """Count a connection.

        :param most: how many there may be, None for any number.
        :raises HandshakeError: when there are as many.
        """
        with self._lock:
            if most is not None and len(self.connections) >= most:
                raise self.full(most)
            self.connections.add(connection)

    def full(self, most: int) -> HandshakeError:
        """Log that there are as many connections as there may be, and return what to answer."""
        logger.warning("refused a WebSocket: SOCKETS_MAX_CONNECTIONS is reached (%s)", most)
        return HandshakeError(503, "too many connections", (("Retry-After", "5"),))


def state_of(app: Flask | None = None) -> State:
    """Return the state of an application, by default the current one."""
    state: State = (app or current_app).extensions[EXTENSION]
    return state


def limits_of(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> Limits:
    """Return the limits of a route: its own, else the application's, else the defaults.

    :param overrides: the route's own, which :func:`check_limit` has let pass.
    :raises ValueError: when a setting is not what is expected, naming it.
    """
    values = {}
    for name, setting in _SETTINGS:
        if name in overrides:
            values[name] = overrides[name]
        elif setting in config:
            values[name] = check_limit(name, config[setting], setting)
    return Limits(**values) if values else _DEFAULTS


def check_limit(name: str, value: Any, called: str) -> Any:
    """Return the value of a limit.

    :param called: what its user calls it.
    :raises ValueError: when it is no positive number, or no bool for ``compression``.
    """
    if name == "compression":
        if not isinstance(value, bool):
            raise ValueError(f"{called} must be True or False, got {value!r}")
        return value
    if value is None and name in _MAY_BE_NONE:
        return value
    if name in _SIZES:
        if type(value) is not int or value <= 0:
            raise ValueError(f"{called} must be a whole number of bytes above 0, got {value!r}")
    elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < inf:
        raise ValueError(f"{called} must be a number of seconds above 0, got {value!r}")
    return value


def max_connections_of(config: Mapping[str, Any]) -> int | None:
    """Return how many connections an application may have open, None for any number.

    :raises ValueError: when the setting is no number.
    """
    most: int | None = config.get("SOCKETS_MAX_CONNECTIONS")
    if most is not None and type(most) is not int:
        raise ValueError(f"SOCKETS_MAX_CONNECTIONS must be a whole number or None, got {most!r}")
    return most
