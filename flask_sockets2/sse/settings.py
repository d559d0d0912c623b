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
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import SystemRandom
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakSet

from flask import Blueprint, Flask, current_app

from ..application.settings import check, check_all
from ..application.signing import check_keys
from ..application.sockets import Sockets
from ..application.state import State, broker_url_of, check_broker, state_of
from ..channels.publisher import Dumps, dumps_of
from .encoding import Bodies, Lines, One

if TYPE_CHECKING:
    from .interop import Interop

__all__ = ["MAIN", "Settings", "Site", "redis_url_of", "settings_of"]

MAIN = "sse"
"""The name of the blueprint whose channels have no name of a blueprint in them."""

_EXTENSION = "flask_sockets2.sse"
_REDIS_SETTINGS = ("SSE_REDIS_URL", "REDIS_URL")

_random = SystemRandom()  # not the program's generator, which may have been seeded
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
        return b"retry:%d\n" % (self.retry * _random.uniform(0.5, 1.5))


def settings_of(config: Mapping[str, Any]) -> Settings:
    """Return the settings of an application.

    :raises ValueError: when one is not what is expected, naming it.
    """
    return Settings(
        check("SSE_HEARTBEAT", config.get("SSE_HEARTBEAT", 15.0)),
        check("SSE_RETRY", config.get("SSE_RETRY", 2000)),
        check("SSE_OPEN_CHANNELS", config.get("SSE_OPEN_CHANNELS", False)),
    )


def redis_url_of(config: Mapping[str, Any]) -> str | None:
    """Return where Flask-SSE finds Redis, None where it is not set."""
    setting = _redis_setting(config)
    return None if setting is None else config[setting]


def _redis_setting(config: Mapping[str, Any]) -> str | None:
    return next((name for name in _REDIS_SETTINGS if config.get(name)), None)


@dataclass(slots=True, weakref_slot=True, eq=False)
class Site:
    """What is kept for one application.

    :ivar dumps: makes JSON as it does.
    :ivar names: of its blueprints: under which each was registered, the first time.
    :ivar endpoints: of the streams, by blueprint.
    """

    app: Flask
    dumps: Dumps
    bodies: Bodies
    one: One
    lines: Lines
    names: dict[Any, str] = field(default_factory=dict)
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
            check_keys(app)
            check_all(app.config, "SSE_")
            check("REDIS_URL", app.config.get("REDIS_URL"))
            try:
                _sockets.init_app(app)
            except AssertionError as exc:  # Flask's, once a request was served
                raise RuntimeError(
                    "this application has no event streams; call app.register_blueprint(sse) "
                    "before its first request"
                ) from exc
            state_of(app).broker_settings.extend(_REDIS_SETTINGS)
            check_broker(app)
            dumps = dumps_of(app)
            bodies = Bodies(dumps)
            site = cls(app, dumps, bodies, One(bodies), Lines(dumps))
            site._check_redis()
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

    def name_of(self, blueprint: Blueprint) -> str:
        """Return the name of a blueprint in the application.

        :raises RuntimeError: when it is not registered. In an application that only publishes, and
            has none, the one called ``sse`` need not be.
        """
        name = self.names.get(blueprint)
        if name is None:
            if self.names or blueprint.name != MAIN:
                raise RuntimeError(
                    f"the blueprint {blueprint.name!r} is not registered in this application, so "
                    "the names of its channels are not known; call app.register_blueprint() with it"
                )
            return MAIN
        return name

    def endpoint_of(self, blueprint: Blueprint) -> str:
        """Return the endpoint of a blueprint's stream.

        :raises RuntimeError: when the blueprint is not registered in the application, whatever
            happened before: an application that has published may have channels already.
        """
        endpoint = self.endpoints.get(blueprint)
        if endpoint is None:
            raise RuntimeError(
                f"the blueprint {blueprint.name!r} is not registered in this application, so it "
                "has no streams here; call app.register_blueprint() with it before the first "
                "request"
            )
        return endpoint

    def distinct_name_of(self, blueprint: Blueprint) -> str:
        """Return what tells a blueprint's channels from those of others; ``""`` of the main one.

        That is the one called ``sse``, else the one that was registered first: the only one, as a
        rule.
        """
        name = self.name_of(blueprint)
        names = self.names.values()
        return "" if name == (MAIN if MAIN in names else next(iter(names), MAIN)) else name

    @property
    def interop(self) -> Interop | None:
        """What speaks with Flask-SSE's programs; None where there is no Redis of theirs.

        :raises ValueError: when ``SSE_INTEROP`` asks for it and there is no URL.
        """
        url = self._redis_url()
        if url is not None and self._interop is None:
            from .interop import Interop

            with self._lock:
                if self._interop is None:
                    self._interop = Interop(url, self.state.channels, self.dumps)
        return None if url is None else self._interop

    def _redis_url(self) -> str | None:
        """Return the URL of the Redis of Flask-SSE's programs, None where they do not count."""
        config = self.app.config
        wanted = check("SSE_INTEROP", config.get("SSE_INTEROP"))
        setting = _redis_setting(config)
        if wanted is False or (wanted is None and setting is None):
            return None
        url: str = config[setting] if setting else broker_url_of(self.app)
        if url.partition("://")[0] not in ("redis", "rediss", "unix"):
            raise ValueError(
                f"{setting} must be a redis://, rediss:// or unix:// URL, since programs with "
                "Flask-SSE are heard there; set SSE_INTEROP = False if there are none"
                if setting
                else "SSE_INTEROP needs a Redis: set SSE_REDIS_URL to its URL"
            )
        return url

    def _check_redis(self) -> None:
        setting = _redis_setting(self.app.config)
        if self._redis_url() is not None and setting is not None:
            check_broker(self.app, setting)

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
