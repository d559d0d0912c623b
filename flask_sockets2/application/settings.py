"""Settings of an application as a whole, and a warning of misspelt keys."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from ..brokers.base import BrokerOptions
from ..connection.limits import MAX_BUFFERED, Limits
from ..settings import BYTES, ROUTE, ROWS, URL, Kind, number, or_none, read, setting

__all__ = [
    "BROKER_URL",
    "AppSettings",
    "broker_options_of",
    "max_buffered_of",
    "misspelt",
    "warn_of_misspelt",
]

logger = logging.getLogger("flask_sockets2.sockets")

BROKER_URL = "SOCKETS_BROKER_URL"

_ORIGINS = Kind(
    "origins",
    "a list of origins or a text",
    lambda value: isinstance(value, Collection) and not isinstance(value, bytes | Mapping),
)
_FILE = Kind(
    "path",
    "the path of a file",
    lambda value: isinstance(value, str | os.PathLike) and bool(os.fspath(value)),
)
_BROKER_URL = URL._replace(
    words=f"{URL.words}, or memory:// for one process, which is the default without the key"
)
_ERRORS = Kind("text", "'raise' or 'log'", ("raise", "log").__contains__)


@dataclass(frozen=True, slots=True)
class AppSettings:
    """Settings of an application as a whole.

    :param allowed_origins: Pages that may connect, by default pages of the same host: a list, or
        one text, of entries as in ``docs/authentication.rst``; not empty. ``same-origin`` adds the
        same host.
    :param max_channels: Channels that a client may name for one connection; a request for more is
        refused with 400.
    :param max_buffered: Memory that all connections of the application hold in a process; ``None``
        for the default: ``docs/slow-clients.rst``.
    :param metrics_route: Path at which Prometheus reads metrics: ``docs/metrics.rst``.
    :param health_route: Path of the health check for load balancers: ``docs/operations.rst``.
    :param drain_file: While this file exists, the health check asks load balancers to send no
        clients.
    :param broker_url: Broker of the channels: this process, or a Redis for several processes, by
        ``redis://``, ``rediss://`` or ``unix://``.
    :param publish_errors: If the broker cannot take a message: ``raise`` the error, or ``log`` it
        and go on.
    """

    allowed_origins: Collection[str] | None = setting(
        "SOCKETS_ALLOWED_ORIGINS", None, or_none(_ORIGINS)
    )
    max_channels: int = setting("SOCKETS_MAX_CHANNELS", 1000, number("channels", whole=True))
    max_buffered: int | None = setting("SOCKETS_MAX_BUFFERED", MAX_BUFFERED, or_none(BYTES))
    metrics_route: str | None = setting("SOCKETS_METRICS_ROUTE", None, ROUTE)
    health_route: str | None = setting("SOCKETS_HEALTH_ROUTE", None, ROUTE)
    drain_file: str | os.PathLike[str] | None = setting("SOCKETS_DRAIN_FILE", None, or_none(_FILE))
    broker_url: str = setting("SOCKETS_BROKER_URL", "memory://", _BROKER_URL)
    publish_errors: str = setting("SOCKETS_PUBLISH_ERRORS", "raise", _ERRORS)


def max_buffered_of(config: Mapping[str, Any], limits: Limits) -> int | None:
    """Return the bytes that all connections of an application may buffer; None if not set.

    :param limits: limits of one connection, which must fit.
    :raises ValueError: if the value is invalid; the error names the key.
    """
    row = ROWS["SOCKETS_MAX_BUFFERED"]
    value: int | None = row.check(config.get(row.key))
    least = limits.most_buffered
    if value is not None and value < least:
        raise ValueError(
            f"SOCKETS_MAX_BUFFERED must be a whole number of bytes, and at least the {least} that "
            "one connection may hold: receive_buffer + send_buffer + 2 * max_message_size; "
            f"got {value!r}"
        )
    return value


def broker_options_of(config: Mapping[str, Any]) -> BrokerOptions:
    """Return the settings for the broker.

    :raises ValueError: if a value is invalid; the error names the key.
    """
    options = read(BrokerOptions, config)
    return options if options.prefix else replace(options, prefix=BrokerOptions().prefix)


# -- misspelt keys ---------------------------------------------------------------------------------

_MISSPELT = "flask_sockets2.misspelt"  # in app.extensions: keys already logged

_AREAS = ("SOCKETS", "TURBO", "SSE", "FIREHOSE")

_BROKERS = frozenset(("BROKER", "BROKER_URL", "REDIS_URL"))
"""Other names of the setting ``SOCKETS_BROKER_URL``, after any of our prefixes."""


def warn_of_misspelt(config: Mapping[str, Any], extensions: dict[str, Any]) -> None:
    """Log each key of an application's configuration once if it looks like a misspelt setting.

    :param extensions: the application's extensions.
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
    """Return the keys that look like misspelt settings, each with the likely setting.

    Keys of the application and of other extensions may have the same prefix as ours. So the rest
    of a key must be close to the rest of a setting. If the prefix is misspelt, the rest must be
    exact.
    """
    found = {key: _meant(key) for key in config if key not in ROWS}
    return {key: meant for key, meant in found.items() if meant is not None}


def _meant(key: str) -> str | None:
    """Return the setting that a key may be meant for, None if there is none."""
    upper = key.upper()
    if upper == "REDIS_URL":  # redis_url in small letters is an application's own key
        return upper if upper in ROWS and key != "redis_url" else None
    upper = upper.removeprefix("FLASK_")  # the prefix of environment variables
    if upper in ROWS:
        return upper
    area, _, name = upper.partition("_")
    if area == "SOCKET":
        area = "SOCKETS"
    if area not in _AREAS:
        close = _close(area, _AREAS)
        meant = f"{close}_{name}"
        return meant if meant in ROWS else None
    ours = (each.partition("_") for each in sorted(ROWS))
    names = [rest for first, _, rest in ours if first == area]
    if not names:  # of a part that is not imported yet, as flask_sockets2.sse
        return None
    if name in _BROKERS:
        return BROKER_URL
    close = _close(name, names)
    return close and f"{area}_{close}"


def _close(name: str, names: Sequence[str]) -> str | None:
    """Return the name that differs by a letter or two; None if there is none.

    In a short name one letter is a greater part.
    """
    least = max(0.8, min(0.9, 1 - 1.01 / max(len(name), 1)))
    return next(iter(get_close_matches(name, names, 1, least)), None)
