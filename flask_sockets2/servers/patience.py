"""Patience: how long the server waits for a client, for a request and while it takes the response.

Only the time counts in which the server waits for the client. An application may read a body, or
make a response, as slowly as it likes. A wait uses the patience up. Bytes restore it, but never to
more than at first: a client may pause for so long, and has to keep to a rate in the long run.

The settings belong to the server, which has several applications at times, and which often sees
none of them: ``ProxyFix(app)``, a closure or a dispatcher has no ``config``. So each application
registers its configuration here. Of several values the most patient one counts, since a client of
one application must not be cut off by the setting of another. An application without the setting
has no say.
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
    """How long a client may still keep the server waiting.

    :param seconds: that a client may pause.
    :param rate: bytes a second that the client has to keep to beyond; None if any byte will do.
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
        """Return the seconds that the next wait may take; 0 if the patience is exhausted."""
        left = min(self._left, self._total)
        if self._until != inf:
            left = min(left, self._until - monotonic())
        return max(0.0, left)

    def waited(self, seconds: float, size: int) -> None:
        """Count a wait; :param size: bytes that came, or that the client took."""
        self._total -= seconds
        earned = self.seconds if self._rate is None and size else size / (self._rate or inf)
        self._left = min(self.seconds, self._left - seconds + earned)

    def end_within(self, seconds: float) -> None:
        """Be exhausted in so many seconds at the latest, whatever the client sends."""
        self._until = min(self._until, monotonic() + seconds)


@dataclass(frozen=True)
class PatienceSettings:
    """Settings of the server, by the attributes of its handler.

    :param handshake_timeout: For the head of a request to arrive; this and the next three settings
        hold under our worker and server.
    :param stall_timeout: How long a client may pause in a body, or while it takes a response.
    :param min_rate: What a client that pauses has to keep to; ``None`` for any rate.
    :param max_time: Of waiting for a client in one body or response; ``None`` for no limit.
    """

    handshake_timeout: float = setting("SOCKETS_HANDSHAKE_TIMEOUT", 10.0, SECONDS)
    stall_timeout: float = setting("SOCKETS_HTTP_STALL_TIMEOUT", 60.0, SECONDS)
    min_rate: float | None = setting("SOCKETS_HTTP_MIN_RATE", 500.0, _RATE)
    max_time: float | None = setting("SOCKETS_HTTP_MAX_TIME", 14400.0, or_none(SECONDS))


_configs: list[Callable[[], Mapping[str, Any] | None]] = []


def register(config: Mapping[str, Any]) -> None:
    """Have the settings of an application count, as long as there is that application.

    :raises ValueError: when a setting is not what is expected, naming it.
    """
    _values(config)
    if not any(known() is config for known in _configs):
        try:
            _configs.append(ref(config))
        except TypeError:  # a plain dictionary, of a framework that is not Flask
            _configs.append(lambda: config)


def has_applications() -> bool:
    """Whether an application of this process has been registered and is still there."""
    return any(known() is not None for known in _configs)


def http_settings() -> dict[str, Any]:
    """Return what the applications of this process have set, by the attribute of the handler.

    :raises ValueError: when a setting is not what is expected, naming it.
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
