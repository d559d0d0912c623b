"""Timeouts for slow clients: for the head of a request, its body, and the response.

Only the server's waits for the client count. Your application may read a body or make a response
slowly. A wait uses up the client's patience, and bytes restore the patience up to its first value.
So a client may pause for a while, but must keep to a minimum rate in the long run.

The settings belong to the server. A server may have several applications, and often cannot see
their configuration: ``ProxyFix(app)``, a closure or a dispatcher has no ``config``. So each
application registers its configuration here. If several applications set a value, the most patient
value counts, so that one application does not cut off another's clients. An application without
the setting has no influence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from time import monotonic
from typing import Any
from weakref import ref

from ..settings import LONGEST, SECONDS, number, or_none, rows_of, setting

__all__ = ["Patience", "PatienceSettings", "has_applications", "http_settings", "register"]

_RATE = or_none(number("bytes/s", most=LONGEST))


class Patience:
    """Remaining time that a server waits for a client.

    :param seconds: longest pause of the client, in seconds.
    :param rate: minimum bytes a second in the long run; None if any byte restores the patience.
    :param total: seconds for all waits together; None for no limit.
    """

    __slots__ = ("_left", "_rate", "_total", "_until", "seconds")

    def __init__(
        self, seconds: float, rate: float | None = None, total: float | None = None
    ) -> None:
        self._left = self.seconds = seconds
        self._rate = rate
        self._total = inf if total is None else total
        self._until = inf

    def left(self) -> float:
        """Return the longest duration of the next wait in seconds; 0 if no time is left."""
        left = min(self._left, self._total)
        if self._until != inf:
            left = min(left, self._until - monotonic())
        return max(0.0, left)

    def waited(self, seconds: float, size: int) -> None:
        """Count a wait; :param size: bytes that the client sent or received."""
        self._total -= seconds
        earned = self.seconds if self._rate is None and size else size / (self._rate or inf)
        self._left = min(self.seconds, self._left - seconds + earned)

    def end_within(self, seconds: float) -> None:
        """Set a deadline in ``seconds`` from now, even if the client sends bytes."""
        self._until = min(self._until, monotonic() + seconds)


@dataclass(frozen=True)
class PatienceSettings:
    """Settings of the server, by the attributes of its handler.

    :param handshake_timeout: Time for the head of a request to arrive; this and the next three
        settings hold under our worker and server.
    :param stall_timeout: Time for which a client may pause in a body or a response.
    :param min_rate: Lowest rate of a client that pauses; ``None`` for any rate.
    :param max_time: Longest wait for a client in one body or response; ``None`` for no limit.
    """

    handshake_timeout: float = setting("SOCKETS_HANDSHAKE_TIMEOUT", 10.0, SECONDS)
    stall_timeout: float = setting("SOCKETS_HTTP_STALL_TIMEOUT", 60.0, SECONDS)
    min_rate: float | None = setting("SOCKETS_HTTP_MIN_RATE", 500.0, _RATE)
    max_time: float | None = setting("SOCKETS_HTTP_MAX_TIME", 14400.0, or_none(SECONDS))


_configs: list[Callable[[], Mapping[str, Any] | None]] = []


def register(config: Mapping[str, Any]) -> None:
    """Add an application's configuration to the server's, for the lifetime of the application.

    :raises ValueError: if a setting is invalid; the message names the setting.
    """
    _values(config)
    if not any(known() is config for known in _configs):
        try:
            _configs.append(ref(config))
        except TypeError:  # a plain dictionary, of a framework that is not Flask
            _configs.append(lambda: config)


def has_applications() -> bool:
    """Return whether any registered application of this process still exists."""
    return any(known() is not None for known in _configs)


def http_settings() -> dict[str, Any]:
    """Return the combined settings of all applications, by attribute of the handler.

    :raises ValueError: if a setting is invalid; the message names the setting.
    """
    _configs[:] = [known for known in _configs if known() is not None]
    found: dict[str, Any] = {}
    for known in _configs:
        for name, value in _values(known() or {}).items():
            found[name] = _more_patient(name, found[name], value) if name in found else value
    return found


def _more_patient(name: str, one: float | None, other: float | None) -> float | None:
    if one is None or other is None:
        return None
    return min(one, other) if name == "min_rate" else max(one, other)


def _values(config: Mapping[str, Any]) -> dict[str, Any]:
    rows = rows_of(PatienceSettings).items()
    return {name: row.of(config) for name, row in rows if row.key in config}
