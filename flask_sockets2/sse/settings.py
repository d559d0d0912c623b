"""Settings of event streams, and what is kept for one application.

=======================  =========  ==============================================================
setting                  default    meaning
=======================  =========  ==============================================================
``SSE_HEARTBEAT``        15         seconds between two comments that keep a stream open
``SSE_RETRY``            2000       milliseconds, about, after which a browser that has lost its
                                    stream comes back; None for its own
``SSE_OPEN_CHANNELS``    False      whether anybody may have any channel, by ``?channel=``
``SSE_MAX_AGE``          86,400     seconds that a signed URL counts, None for any age
``SSE_REDIS_URL``,       None       the broker where ``SOCKETS_BROKER_URL`` is not set, and where
``REDIS_URL``                       Flask-SSE's publishers and subscribers are
``SSE_INTEROP``          None       whether to speak with those: None where one of the two above
                                    is set
=======================  =========  ==============================================================
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakSet

from flask import Flask, current_app

from ..brokers.registry import open_broker
from ..extension import State, broker_url_of, state_of
from ..publisher import Dumps, dumps_of
from ..settings import broker_options_of
from ..sockets import Sockets
from .encoding import Bodies, Lines, One

if TYPE_CHECKING:
    from .interop import Interop

__all__ = ["Settings", "Site", "redis_url_of", "settings_of"]

_EXTENSION = "flask_sockets2.sse"
_REDIS_SETTINGS = ("SSE_REDIS_URL", "REDIS_URL")

_sockets = Sockets()  # whose channels the streams are


class Settings(NamedTuple):
    """Of streams; see above.

    :ivar heartbeat: seconds.
    :ivar retry: milliseconds.
    """

    heartbeat: float
    retry: int | None
    open_channels: bool

    def jittered_retry(self) -> bytes:
        """Return the line that says when to come back: not all browsers at once."""
        if self.retry is None:
            return b""
        return b"retry:%d\n" % (self.retry * random.uniform(0.5, 1.5))


def settings_of(config: Mapping[str, Any]) -> Settings:
    """Return the settings of an application.

    :raises ValueError: when one is not what is expected, naming it.
    """
    heartbeat = config.get("SSE_HEARTBEAT", 15.0)
    if isinstance(heartbeat, bool) or not isinstance(heartbeat, int | float):
        raise ValueError(f"SSE_HEARTBEAT must be a number of seconds, got {heartbeat!r}")
    if not 0 < heartbeat < inf:
        raise ValueError(f"SSE_HEARTBEAT must be above 0 seconds, got {heartbeat!r}")
    retry = config.get("SSE_RETRY", 2000)
    if retry is not None and (type(retry) is not int or retry < 0):
        raise ValueError(f"SSE_RETRY must be a whole number of milliseconds, got {retry!r}")
    if config.get("SSE_INTEROP") not in (None, True, False):
        raise ValueError(f"SSE_INTEROP must be True, False or None, got {config['SSE_INTEROP']!r}")
    open_channels = config.get("SSE_OPEN_CHANNELS", False)
    if not isinstance(open_channels, bool):
        raise ValueError(f"SSE_OPEN_CHANNELS must be True or False, got {open_channels!r}")
    return Settings(heartbeat, retry, open_channels)


def redis_url_of(config: Mapping[str, Any]) -> str | None:
    """Return where Flask-SSE finds Redis, None where it is not set."""
    return next((config[name] for name in _REDIS_SETTINGS if config.get(name)), None)


@dataclass(slots=True, weakref_slot=True, eq=False)
class Site:
    """What is kept for one application.

    :ivar dumps: makes JSON as it does.
    :ivar endpoints: of the streams, by blueprint.
    """

    app: Flask
    dumps: Dumps
    bodies: Bodies
    one: One
    lines: Lines
    endpoints: dict[Any, str] = field(default_factory=dict)
    _interop: Interop | None = None
    _lock: Lock = field(default_factory=Lock)  # guards making that

    @classmethod
    def of(cls, app: Flask) -> Site:
        """Return that of an application, which is given channels where it has none.

        :raises BrokerError: when no broker serves the URL of a setting.
        :raises RuntimeError: when it is too late for that.
        """
        site: Site | None = app.extensions.get(_EXTENSION)
        if site is None:
            try:
                _sockets.init_app(app)
            except AssertionError as exc:  # Flask's, once a request was served
                raise RuntimeError(
                    "this application has no event streams; call app.register_blueprint(sse) "
                    "before its first request"
                ) from exc
            state_of(app).broker_settings.extend(_REDIS_SETTINGS)
            open_broker(broker_url_of(app), broker_options_of(app.config))  # is it there?
            dumps = dumps_of(app)
            bodies = Bodies(dumps)
            site = cls(app, dumps, bodies, One(bodies), Lines(dumps))
            app.extensions[_EXTENSION] = site
            _sites.add(site)
        return site

    @classmethod
    def current(cls) -> Site:
        """Return that of the current application."""
        return cls.of(current_app._get_current_object())  # type: ignore[attr-defined]  # a proxy, as Flask documents it

    @property
    def state(self) -> State:
        return state_of(self.app)

    @property
    def interop(self) -> Interop | None:
        """What speaks with Flask-SSE's programs; None where there is no Redis of theirs.

        :raises ValueError: when ``SSE_INTEROP`` asks for it and there is no URL.
        """
        config = self.app.config
        wanted, url = config.get("SSE_INTEROP"), redis_url_of(config)
        if wanted is False or (wanted is None and url is None):
            return None
        if self._interop is None:
            from .interop import Interop

            url = url or broker_url_of(self.app)
            if url.partition("://")[0] not in ("redis", "rediss", "unix"):
                raise ValueError("SSE_INTEROP needs a Redis: set SSE_REDIS_URL to its URL")
            with self._lock:
                if self._interop is None:
                    self._interop = Interop(url, self.state.channels, self.dumps)
        return self._interop

    def forked(self) -> None:
        """Begin anew in a child."""
        self._interop = None
        self._lock = Lock()


_sites: WeakSet[Site] = WeakSet()


def _after_fork() -> None:
    for site in _sites:
        site.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
