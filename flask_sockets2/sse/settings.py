"""Settings of event streams, and the state of the streams in one application."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import SystemRandom
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from flask import Blueprint, Flask, current_app

from ..application.signing import MAX_AGE, check_keys
from ..application.sockets import Sockets
from ..application.state import State, broker_url_of, check_broker, state_of
from ..channels.publisher import Dumps, dumps_of
from ..settings import ROWS, SECONDS, SWITCH, URL, Kind, number, or_none, read, setting
from .encoding import Bodies, Lines, One

if TYPE_CHECKING:
    from .interop import Interop

__all__ = ["MAIN", "Settings", "Site", "redis_url_of"]

MAIN = "sse"
"""The main blueprint's name, which its channels on the broker do not contain."""

_EXTENSION = "flask_sockets2.sse"
_REDIS_KEYS = ("SSE_REDIS_URL", "REDIS_URL")

_random = SystemRandom()  # the program may have seeded the shared generator
_sockets = Sockets()  # sets up the channels of the streams


_RETRY = or_none(number("milliseconds", least=0, whole=True))
_INTEROP = Kind("bool", "True, False or None", lambda value: value is None or SWITCH.fits(value))


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of event streams.

    :param heartbeat: Time between two comments that keep a stream open.
    :param retry: Pause before a browser reconnects, half more or less; ``None`` for the browser's
        own pause.
    :param open_channels: Whether every client may read any channel by ``?channel=``; several at
        once, if no ``before_request`` checks them.
    :param max_age: Time for which a signed address is valid; ``None`` for ever.
    :param sse_redis_url: The broker, if ``SOCKETS_BROKER_URL`` is not set.
    :param redis_url: The broker, if neither of the other two keys is set.
    :param interop: Whether messages are exchanged with programs that use Flask-SSE; by default if
        one of the two above is set.
    """

    heartbeat: float = setting("SSE_HEARTBEAT", 15.0, SECONDS)
    retry: int | None = setting("SSE_RETRY", 2000, _RETRY)
    open_channels: bool = setting("SSE_OPEN_CHANNELS", False, SWITCH)
    max_age: float | None = setting("SSE_MAX_AGE", MAX_AGE, or_none(SECONDS))
    sse_redis_url: str | None = setting("SSE_REDIS_URL", None, or_none(URL))
    redis_url: str | None = setting("REDIS_URL", None, or_none(URL))
    interop: bool | None = setting("SSE_INTEROP", None, _INTEROP)

    def jittered_retry(self) -> bytes:
        """Return a ``retry`` line with jitter, so that browsers do not all reconnect at once."""
        if self.retry is None:
            return b""
        return b"retry:%d\n" % (self.retry * _random.uniform(0.5, 1.5))


def redis_url_of(config: Mapping[str, Any]) -> str | None:
    """Return the URL at which Flask-SSE finds Redis, or None if neither setting is set."""
    key = _redis_key(config)
    return None if key is None else config[key]


def _redis_key(config: Mapping[str, Any]) -> str | None:
    return next((key for key in _REDIS_KEYS if config.get(key)), None)


@dataclass(slots=True, weakref_slot=True, eq=False)
class Site:
    """The state of event streams in one application.

    :ivar dumps: function that serializes JSON as the application does.
    :ivar names: name under which each blueprint was first registered.
    :ivar endpoints: endpoint of the stream, by blueprint.
    """

    app: Flask
    dumps: Dumps
    bodies: Bodies
    one: One
    lines: Lines
    names: dict[Any, str] = field(default_factory=dict)
    endpoints: dict[Any, str] = field(default_factory=dict)
    _interop: Interop | None = None
    _lock: Lock = field(default_factory=Lock)  # guards the creation of _interop

    @classmethod
    def of(cls, app: Flask) -> Site:
        """Return the state of an application; the first call sets up its channels.

        :raises BrokerError: if no broker serves the URL of a setting.
        :raises RuntimeError: if the first call comes after the application's first request.
        """
        site: Site | None = app.extensions.get(_EXTENSION)
        if site is None:
            check_keys(app)
            read(Settings, app.config)
            try:
                _sockets.init_app(app)
            except AssertionError as exc:  # from Flask, after the first request
                raise RuntimeError(
                    "this application has no event streams; call app.register_blueprint(sse) "
                    "before its first request"
                ) from exc
            state_of(app).broker_settings.extend(_REDIS_KEYS)
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
        """Return the state of the current application."""
        return cls.of(current_app._get_current_object())  # type: ignore[attr-defined]  # a proxy, as Flask documents it

    @property
    def state(self) -> State:
        return state_of(self.app)

    def name_of(self, blueprint: Blueprint) -> str:
        """Return the name of a blueprint in the application.

        :raises RuntimeError: if the blueprint is not registered. An application that only publishes
            and has no blueprint may use ``sse`` without registration.
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

        :raises RuntimeError: if the blueprint is not registered in the application. An application
            that has published may have channels, but no stream.
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
        """Return the name that separates a blueprint's channels, ``""`` for the main blueprint.

        The main blueprint is ``sse`` if registered, else the blueprint registered first. Most
        applications have only one.
        """
        name = self.name_of(blueprint)
        names = self.names.values()
        return "" if name == (MAIN if MAIN in names else next(iter(names), MAIN)) else name

    @property
    def interop(self) -> Interop | None:
        """The exchange with programs that use Flask-SSE, or None if interop is off.

        :raises ValueError: if ``SSE_INTEROP`` is set without a Redis URL, or the URL is not Redis.
        """
        url = self._redis_url()
        if url is not None and self._interop is None:
            from .interop import Interop

            with self._lock:
                if self._interop is None:
                    self._interop = Interop(url, self.state.channels, self.dumps)
        return None if url is None else self._interop

    def _redis_url(self) -> str | None:
        """Return the URL of the Redis for interop, or None if interop is off."""
        config = self.app.config
        wanted = ROWS["SSE_INTEROP"].of(config)  # one row, since each message asks
        key = _redis_key(config)
        if wanted is False or (wanted is None and key is None):
            return None
        url: str = config[key] if key else broker_url_of(self.app)
        if url.partition("://")[0] not in ("redis", "rediss", "unix"):
            raise ValueError(
                f"{key} must be a redis://, rediss:// or unix:// URL, since programs with "
                "Flask-SSE are heard there; set SSE_INTEROP = False if there are none"
                if key
                else "SSE_INTEROP needs a Redis: set SSE_REDIS_URL to its URL"
            )
        return url

    def _check_redis(self) -> None:
        key = _redis_key(self.app.config)
        if self._redis_url() is not None and key is not None:
            check_broker(self.app, key)

    def forked(self) -> None:
        """Reset the interop and its lock in a child process after a fork."""
        self._interop = None
        self._lock = Lock()


_sites: WeakSet[Site] = WeakSet()


def _after_fork() -> None:
    for site in _sites:
        site.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
