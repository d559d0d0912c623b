"""Settings with their defaults, read from ``app.config``.

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
``SOCKETS_SLOW_CLIENT``          disconnect   what happens when a client does not take the messages
                                              of its channels; or ``drop_oldest``, ``coalesce``
``SOCKETS_COMPRESSION``          False        agree to permessage-deflate
``SOCKETS_MAX_MESSAGE_RATE``     None         messages a second from one peer, pings counted; beyond
                                              it reading pauses
``SOCKETS_MAX_CONNECTION_AGE``   None         seconds after which a connection is closed with 1001,
                                              up to a fifth earlier
``SOCKETS_MAX_CONNECTIONS``      None         open connections of the application in one process
``SOCKETS_MAX_CONNECTIONS_PER_ADDRESS``  None  of them, those of one client address (IPv6: /64)
``SOCKETS_MAX_CONNECTIONS_PER_USER``  None    and those of one user
``SOCKETS_MAX_HANDSHAKE_RATE``   None         requests for one a second, in one process
``SOCKETS_MAX_HANDSHAKE_RATE_PER_ADDRESS``  None  of them, those of one client address
``SOCKETS_HANDSHAKE_TIMEOUT``    10           seconds for the head of a request, under our worker
``SOCKETS_METRICS_ROUTE``        None         where Prometheus finds metrics, as ``"/metrics"``;
                                              needs the extra ``metrics``
``SOCKETS_HEALTH_ROUTE``         None         where a load balancer asks whether to send anybody, as
                                              ``"/health"``
``SOCKETS_DRAIN_FILE``           None         path of a file; while it is there, the answer is no
``SOCKETS_BROKER_URL``           memory://    where channels are: in this process, or ``redis://``,
                                              ``rediss://``, ``unix://`` for several
``SOCKETS_HISTORY_SIZE``         100          messages kept for each channel
``SOCKETS_HISTORY_BYTES``        1 MiB        bytes of them kept in a process
``SOCKETS_HISTORY_TTL``          300          seconds they are kept after the channel's last one
``SOCKETS_PRESENCE_GRACE``       5            seconds after which one who left and has not come back
                                              is told to be gone
``SOCKETS_CHANNEL_PREFIX``       flask_sockets2  of all names on a Redis that others use, too
===============================  ===========  =====================================================

Those before ``SOCKETS_MAX_CONNECTIONS`` can also be given to a route, in lower case and without the
prefix; the first as ``origins``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from math import inf
from typing import Any

from .brokers.base import BrokerOptions
from .guests import NO_RULES, Rules
from .limits import Limits
from .outlet import POLICIES

__all__ = ["LIMITS", "broker_options_of", "check_limit", "limits_of", "rules_of"]

LIMITS = frozenset(limit.name for limit in fields(Limits))
"""Names of the limits that a route may set for itself."""

_SETTINGS = tuple((name, f"SOCKETS_{name.upper()}") for name in sorted(LIMITS))
_DEFAULTS = Limits()
_SIZES = frozenset(("max_message_size", "receive_buffer", "send_buffer"))
_MAY_BE_NONE = frozenset(
    ("ping_interval", "ping_timeout", "max_message_rate", "max_connection_age")
)

_RULES = tuple((limit.name, f"SOCKETS_{limit.name.upper()}") for limit in fields(Rules))
_MAY_BE_FRACTIONS = frozenset(("max_handshake_rate", "max_handshake_rate_per_address"))


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
    :raises ValueError: when it is no positive number, no bool for ``compression``, no policy for
        ``slow_client`` or less than one for ``max_message_rate``.
    """
    if name == "slow_client":
        if value not in POLICIES:
            raise ValueError(f"{called} must be one of {', '.join(POLICIES)}; got {value!r}")
        return value
    if name == "compression":
        if not isinstance(value, bool):
            raise ValueError(f"{called} must be True or False, got {value!r}")
        return value
    if value is None and name in _MAY_BE_NONE:
        return value
    if name == "max_message_rate":
        # What one read brings, up to 64 messages, is waited for in a minute then.
        if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value < inf:
            raise ValueError(f"{called} must be 1 message a second or more, got {value!r}")
    elif name in _SIZES:
        if type(value) is not int or value <= 0:
            raise ValueError(f"{called} must be a whole number of bytes above 0, got {value!r}")
    elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < inf:
        raise ValueError(f"{called} must be a number of seconds above 0, got {value!r}")
    return value


def rules_of(config: Mapping[str, Any]) -> Rules:
    """Return how many connections an application takes, and how often they may come.

    :raises ValueError: when a setting is not what is expected, naming it.
    """
    values: dict[str, Any] = {}
    for name, setting in _RULES:
        value = config.get(setting)
        if value is None:
            continue
        if name in _MAY_BE_FRACTIONS:
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < inf:
                raise ValueError(f"{setting} must be a number above 0 or None, got {value!r}")
        elif type(value) is not int or value < 0:
            raise ValueError(f"{setting} must be a whole number or None, got {value!r}")
        values[name] = value
    return Rules(**values) if values else NO_RULES


def broker_options_of(config: Mapping[str, Any]) -> BrokerOptions:
    """Return what is set for the broker.

    :raises ValueError: when a setting is not what is expected, naming it.
    """
    values: dict[str, Any] = {}
    for name in ("history_size", "history_bytes", "history_ttl", "presence_grace"):
        setting = f"SOCKETS_{name.upper()}"
        if setting in config:
            values[name] = _check_option(name, config[setting], setting)
    prefix = config.get("SOCKETS_CHANNEL_PREFIX")
    if prefix is not None:
        if not isinstance(prefix, str) or not prefix or set(prefix) & set("{}"):
            raise ValueError("SOCKETS_CHANNEL_PREFIX must be a text without braces")
        values["prefix"] = prefix
    return BrokerOptions(**values)


def _check_option(name: str, value: Any, setting: str) -> Any:
    whole = name in ("history_size", "history_bytes")
    least = 0 if name in ("history_size", "presence_grace") else 1
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise ValueError(f"{setting} must be a {'whole ' if whole else ''}number, got {value!r}")
    if not least <= value < inf:
        raise ValueError(f"{setting} must be at least {least}, got {value!r}")
    return value
