"""Settings with their defaults, read from ``app.config``.

===============================  ===========  =====================================================
setting                          default      meaning
===============================  ===========  =====================================================
``SOCKETS_ALLOWED_ORIGINS``      None         origins that may connect, as ``wire/origins.py`` has
                                              them: a list, ``"*"``, or None for the page's own host
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
``SOCKETS_MAX_BUFFERED``         256 MiB      bytes that all connections of the application hold in
                                              one process
``SOCKETS_MAX_CONNECTIONS_PER_ADDRESS``  None  of them, those of one client address (IPv6: /64)
``SOCKETS_MAX_CONNECTIONS_PER_USER``  None    and those of one user
``SOCKETS_MAX_HANDSHAKE_RATE``   None         requests for one a second, in one process
``SOCKETS_MAX_HANDSHAKE_RATE_PER_ADDRESS``  None  of them, those of one client address
``SOCKETS_MAX_CHANNELS``         1000         channels that a client may name for one connection
``SOCKETS_HANDSHAKE_TIMEOUT``    10           seconds for the head of a request; this and the next
                                              three count under our worker, server and handler
``SOCKETS_HTTP_STALL_TIMEOUT``   60           seconds that a client may send nothing of a body or
                                              take nothing of a response
``SOCKETS_HTTP_MIN_RATE``        500          bytes a second that a client has to keep to beyond
                                              that, None for no such rate
``SOCKETS_HTTP_MAX_TIME``        14400        seconds to wait for one body, or for one response to
                                              be taken, None for no limit
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
``SOCKETS_PUBLISH_ERRORS``       raise        what happens if the broker cannot take a message:
                                              ``raise`` the error, or ``log`` it and go on
===============================  ===========  =====================================================

Those before ``SOCKETS_MAX_CONNECTIONS`` can also be given to a route, in lower case and without the
prefix; the first as ``origins``.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, NamedTuple

from ..admission.guests import NO_RULES, Rules
from ..brokers.base import BrokerOptions
from ..connection.limits import LONGEST, MOST, Limits, is_number, shown
from ..fanout.outbox import POLICIES
from ..servers.patience import SETTINGS as HTTP_SETTINGS

__all__ = [
    "KNOWN",
    "LIMITS",
    "broker_options_of",
    "check",
    "check_all",
    "limits_of",
    "logs_publish_errors",
    "max_buffered_of",
    "max_channels_of",
    "misspelt",
    "rules_of",
    "warn_of_misspelt",
]

logger = logging.getLogger("flask_sockets2.sockets")

LIMITS = frozenset(limit.name for limit in fields(Limits))
"""Names of the limits that a route may set for itself."""

_SETTINGS = tuple((name, f"SOCKETS_{name.upper()}") for name in sorted(LIMITS))
_DEFAULTS = Limits()

_RULES = tuple((limit.name, f"SOCKETS_{limit.name.upper()}") for limit in fields(Rules))

_OPTIONS = ("history_size", "history_bytes", "history_ttl", "presence_grace")  # of the broker

_MAX_CHANNELS = 1000


# -- what the values have to be --------------------------------------------------------------------


class _Kind(NamedTuple):
    """What a value has to be.

    :ivar words: the same for an error.
    :ivar fits: tells whether a value is that.
    """

    words: str
    fits: Callable[[Any], bool]


def _above_0(words: str, most: float = MOST) -> _Kind:
    whole = words.startswith("a whole")
    return _Kind(
        f"{words} above 0", lambda value: is_number(value, whole=whole) and 0 < value <= most
    )


def _at_least(least: float, words: str, most: float = MOST) -> _Kind:
    whole = words.startswith("a whole")
    return _Kind(
        f"{words}, at least {least}",
        lambda value: is_number(value, whole=whole) and least <= value <= most,
    )


def _text(words: str, pattern: str) -> _Kind:
    return _Kind(words, lambda value: isinstance(value, str) and bool(re.fullmatch(pattern, value)))


def _or_none(kind: _Kind) -> _Kind:
    comma = "," if "," in kind.words else ""
    return _Kind(f"{kind.words}{comma} or None", lambda value: value is None or kind.fits(value))


_SECONDS = _above_0("a number of seconds", LONGEST)
_BYTES = _above_0("a whole number of bytes")
_SOME = _or_none(_at_least(0, "a whole number"))
_RATE = _or_none(_above_0("a number"))
_SWITCH = _Kind("True or False", lambda value: isinstance(value, bool))
_URL = _Kind("a URL such as redis://localhost:6379/0", lambda value: isinstance(value, str))
_BROKER_URL = _Kind(
    f"{_URL.words}, or memory:// for one process, which is the default without the key", _URL.fits
)
_ROUTE = _or_none(
    _text(
        "a path that begins with a slash and has no variables, such as '/health'",
        r"/(?!/)((?!//)[^\s<>?#\\])*",
    )
)
_FILE = _Kind(
    "the path of a file",
    lambda value: isinstance(value, str | os.PathLike) and bool(os.fspath(value)),
)

_KINDS = {
    "SOCKETS_MAX_MESSAGE_SIZE": _BYTES,
    "SOCKETS_RECEIVE_BUFFER": _BYTES,
    "SOCKETS_SEND_BUFFER": _BYTES,
    "SOCKETS_SEND_TIMEOUT": _SECONDS,
    "SOCKETS_CLOSE_TIMEOUT": _SECONDS,
    "SOCKETS_PING_INTERVAL": _or_none(_SECONDS),
    "SOCKETS_PING_TIMEOUT": _or_none(_SECONDS),
    "SOCKETS_SLOW_CLIENT": _Kind(f"one of {', '.join(POLICIES)}", POLICIES.__contains__),
    "SOCKETS_COMPRESSION": _SWITCH,
    # What one read brings, up to 64 messages, is waited for in a minute then.
    "SOCKETS_MAX_MESSAGE_RATE": _or_none(_at_least(1, "a number of messages a second")),
    "SOCKETS_MAX_CONNECTION_AGE": _or_none(_SECONDS),
    "SOCKETS_MAX_CONNECTIONS": _SOME,
    "SOCKETS_MAX_CONNECTIONS_PER_ADDRESS": _SOME,
    "SOCKETS_MAX_CONNECTIONS_PER_USER": _SOME,
    "SOCKETS_MAX_HANDSHAKE_RATE": _RATE,
    "SOCKETS_MAX_HANDSHAKE_RATE_PER_ADDRESS": _RATE,
    "SOCKETS_MAX_CHANNELS": _above_0("a whole number"),
    "SOCKETS_MAX_BUFFERED": _or_none(_BYTES),
    "SOCKETS_METRICS_ROUTE": _ROUTE,
    "SOCKETS_HEALTH_ROUTE": _ROUTE,
    "SOCKETS_DRAIN_FILE": _or_none(_FILE),
    "SOCKETS_BROKER_URL": _BROKER_URL,
    "SOCKETS_HISTORY_SIZE": _at_least(0, "a whole number"),
    "SOCKETS_HISTORY_BYTES": _BYTES,
    "SOCKETS_HISTORY_TTL": _at_least(1, "a number of seconds", LONGEST),
    "SOCKETS_PRESENCE_GRACE": _at_least(0, "a number of seconds", LONGEST),
    # Half a surrogate pair cannot be encoded, nor sent to a broker.
    "SOCKETS_CHANNEL_PREFIX": _or_none(
        _text("a text of 1 to 1000 letters without braces", "[^{}\ud800-\udfff]{1,1000}")
    ),
    "SOCKETS_PUBLISH_ERRORS": _Kind("'raise' or 'log'", ("raise", "log").__contains__),
    "TURBO_WEBSOCKET_ROUTE": _ROUTE,
    "TURBO_STREAM_MAX_AGE": _or_none(_SECONDS),
    "TURBO_JS_URL": _or_none(
        _text("a URL, https://… or a path that begins with a slash", r"(https?:/)?/\S+")
    ),
    "SSE_HEARTBEAT": _SECONDS,
    "SSE_RETRY": _or_none(_at_least(0, "a whole number of milliseconds")),
    "SSE_OPEN_CHANNELS": _SWITCH,
    "SSE_MAX_AGE": _or_none(_SECONDS),
    "SSE_REDIS_URL": _or_none(_URL),
    "REDIS_URL": _or_none(_URL),
    "SSE_INTEROP": _Kind(
        "True, False or None", lambda value: value is None or isinstance(value, bool)
    ),
    "FIREHOSE_EARLY_HINTS": _Kind(
        "'auto', True or False", lambda value: value == "auto" or isinstance(value, bool)
    ),
    "FIREHOSE_HOP_HEADER": _or_none(
        _text("the name of a header, such as 'X-Early-Hints'", r"[!#$%&'*+.^`|~0-9A-Za-z_-]+")
    ),
    "FIREHOSE_LEARN": _SWITCH,
}

_CHECKED_ELSEWHERE = ("SOCKETS_ALLOWED_ORIGINS", *HTTP_SETTINGS.values())
"""In ``application/origins.py`` and ``servers/patience.py``."""

KNOWN = frozenset((*_KINDS, *_CHECKED_ELSEWHERE))
"""The keys of all parts of the package, as ``docs/settings.rst`` has them."""

_IN_JSON = {"true": "true", "false": "false", "none": "null"}


def check(key: str, value: Any, called: str | None = None) -> Any:
    """Return the value of a setting.

    :param called: what its user calls it; by default the key.
    :raises ValueError: when it is not what is expected, naming it.
    """
    kind = _KINDS[key]
    if kind.fits(value):
        return value
    hint = ""
    if isinstance(value, str) and value.lower() in _IN_JSON:
        hint = f"; in an environment variable write {_IN_JSON[value.lower()]}"
    raise ValueError(f"{called or key} must be {kind.words}, got {shown(value)}{hint}")


def check_all(config: Mapping[str, Any], area: str) -> None:
    """Check what an application has set for one part of the package.

    :param area: how its keys begin, as ``SSE_``.
    :raises ValueError: when a setting is not what is expected, naming it.
    """
    for key in _KINDS:
        if key.startswith(area) and key in config:
            check(key, config[key])


# -- misspelt keys ---------------------------------------------------------------------------------

_MISSPELT = "flask_sockets2.misspelt"  # in app.extensions: keys that the log has named

_AREAS = ("SOCKETS", "TURBO", "SSE", "FIREHOSE")

_BROKER = "SOCKETS_BROKER_URL"
_BROKERS = frozenset(("BROKER", "BROKER_URL", "REDIS_URL"))
"""How others call its setting, behind any of our prefixes."""


def warn_of_misspelt(config: Mapping[str, Any], extensions: dict[str, Any]) -> None:
    """Log once each key of an application's configuration that is none, and close to one of ours.

    :param extensions: of the application.
    """
    named: set[str] = extensions.setdefault(_MISSPELT, set())
    for key, meant in misspelt(config).items():
        if key not in named:
            named.add(key)
            logger.warning(
                "there is no setting %.200s, so its value has no effect; did you mean %s?",
                key,
                meant,
            )


def misspelt(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the keys that are close to one of ours and are none, with the one that is meant.

    An application's own keys, and those of other extensions, may begin as ours do. So the rest of
    a name has to be close to the rest of ours. Where the beginning is misspelt, the rest has to be
    right.
    """
    found = {key: _meant(key) for key in config if key not in KNOWN}
    return {key: meant for key, meant in found.items() if meant is not None}


def _meant(key: str) -> str | None:
    """Return the key of ours that a key may stand for, None for none."""
    upper = key.upper()
    if upper == "REDIS_URL":  # in small letters it is an application's own
        return None if key == "redis_url" else upper
    upper = upper.removeprefix("FLASK_")  # of environment variables
    if upper in KNOWN:
        return upper
    area, _, name = upper.partition("_")
    if area == "SOCKET":
        area = "SOCKETS"
    if area not in _AREAS:
        close = _close(area, _AREAS)
        meant = f"{close}_{name}"
        return meant if meant in KNOWN else None
    if name in _BROKERS:
        return _BROKER
    ours = (each.partition("_") for each in sorted(KNOWN))
    close = _close(name, [rest for first, _, rest in ours if first == area])
    return close and f"{area}_{close}"


def _close(name: str, names: Sequence[str]) -> str | None:
    """Return the one of some names of which a name differs by a letter or two, None if none does.

    In a short name one letter is a greater part.
    """
    least = max(0.8, min(0.9, 1 - 1.01 / max(len(name), 1)))
    return next(iter(get_close_matches(name, names, 1, least)), None)


# -- values ----------------------------------------------------------------------------------------


def limits_of(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> Limits:
    """Return the limits of a route: its own, else the application's, else the defaults.

    :param overrides: the route's own, which :func:`check` has let pass.
    :raises ValueError: when a setting is not what is expected, naming it.
    """
    values = {}
    for name, setting in _SETTINGS:
        if name in overrides:
            values[name] = overrides[name]
        elif setting in config:
            values[name] = check(setting, config[setting])
    return Limits(**values) if values else _DEFAULTS


def rules_of(config: Mapping[str, Any]) -> Rules:
    """Return how many connections an application takes, and how often they may come.

    :raises ValueError: when a setting is not what is expected, naming it.
    """
    values = {
        name: check(setting, config[setting]) for name, setting in _RULES if setting in config
    }
    return Rules(**values) if values else NO_RULES


def max_channels_of(config: Mapping[str, Any]) -> int:
    """Return how many channels a client may name for one connection.

    :raises ValueError: when the setting is not what is expected, naming it.
    """
    value: int = check("SOCKETS_MAX_CHANNELS", config.get("SOCKETS_MAX_CHANNELS", _MAX_CHANNELS))
    return value


def max_buffered_of(config: Mapping[str, Any], limits: Limits) -> int | None:
    """Return how many bytes all connections of an application may hold; None where it is not set.

    :param limits: of one of them.
    :raises ValueError: when the setting is not what is expected, naming it.
    """
    value: int | None = check("SOCKETS_MAX_BUFFERED", config.get("SOCKETS_MAX_BUFFERED"))
    least = limits.most_buffered
    if value is not None and value < least:
        raise ValueError(
            f"SOCKETS_MAX_BUFFERED must be a whole number of bytes, and at least the {least} that "
            "one connection may hold: receive_buffer + send_buffer + 2 * max_message_size; "
            f"got {value!r}"
        )
    return value


def logs_publish_errors(config: Mapping[str, Any]) -> bool:
    """Return whether messages that cannot be published are logged, and no error is raised.

    :raises ValueError: when the setting is not what is expected, naming it.
    """
    value = check("SOCKETS_PUBLISH_ERRORS", config.get("SOCKETS_PUBLISH_ERRORS", "raise"))
    return bool(value == "log")


def broker_options_of(config: Mapping[str, Any]) -> BrokerOptions:
    """Return what is set for the broker.

    :raises ValueError: when a setting is not what is expected, naming it.
    """
    keys = {name: f"SOCKETS_{name.upper()}" for name in _OPTIONS}
    values = {name: check(key, config[key]) for name, key in keys.items() if key in config}
    prefix = check("SOCKETS_CHANNEL_PREFIX", config.get("SOCKETS_CHANNEL_PREFIX"))
    return BrokerOptions(**values) if prefix is None else BrokerOptions(**values, prefix=prefix)
