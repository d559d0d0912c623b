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

import atexit
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from math import inf
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakSet

from flask import Flask, Response, current_app, request

from .admission import Admission
from .brokers.base import BrokerOptions
from .channels import Channels
from .connection import Connection
from .guests import NO_RULES, Guest, Rules
from .limits import Limits
from .orders import ORDERS, user_text
from .outlet import POLICIES
from .reports import Reporter
from .servers.environ import waiter
from .signals import (
    connection_closed,
    connection_opened,
    stream_closed,
    stream_opened,
    tell,
)
from .stats import Counters
from .transports.base import Clock

if TYPE_CHECKING:
    from .metrics import Metrics

__all__ = [
    "EXTENSION",
    "LIMITS",
    "EventStream",
    "State",
    "broker_options_of",
    "broker_url_of",
    "check_limit",
    "limits_of",
    "make_state",
    "rules_of",
    "serve_metrics",
    "state_of",
]

EXTENSION = "flask_sockets2"

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


class EventStream(Protocol):
    """One that is counted.

    :ivar path: of its request.
    """

    path: Any

    def end(self) -> None:
        """End it soon; any thread."""


@dataclass(slots=True, weakref_slot=True, eq=False)
class State:
    """What the package keeps about one application, in this process.

    :ivar app: that application, which owns the state.
    :ivar rules: endpoints of the rules that were registered, by rule, endpoint and handler.
    :ivar broker_settings: further settings with the broker's URL, where ``SOCKETS_BROKER_URL`` is
        not there.
    :ivar user_id: returns the id of the user of the current request, None for nobody.
    :ivar turbo_user_id: the same of pages with Turbo; asked where there is no :attr:`user_id`.
    :ivar admission: who is here.
    :ivar reporter: tells who looks.
    """

    app: Flask
    rules: dict[Any, str] = field(default_factory=dict)
    counters: Counters = field(default_factory=Counters)
    metrics: Metrics | None = None
    broker_settings: list[str] = field(default_factory=list)
    user_id: Callable[[], Any] | None = None
    turbo_user_id: Callable[[], Any] | None = None
    admission: Admission = field(init=False)
    reporter: Reporter = field(init=False)
    _channels: Channels | None = None
    _lock: Lock = field(default_factory=Lock)  # guards making the channels
    _obeying: bool = False  # orders are listened to

    def __post_init__(self) -> None:
        self.admission = Admission(self.counters)
        self.reporter = Reporter(self.counters, self.admission)

    @property
    def connections(self) -> set[Connection]:
        """WebSockets that are open."""
        return self.admission.connections

    @property
    def streams(self) -> set[EventStream]:
        """Event streams that are open."""
        return self.admission.streams

    @property
    def broker_away(self) -> bool | None:
        """Whether the broker is known to be out of reach; None where nobody knows."""
        return None if self._channels is None else self._channels.broker.away()

    @property
    def channels(self) -> Channels:
        """The application's channels, made when they are first needed.

        :raises BrokerError: when no broker serves ``SOCKETS_BROKER_URL``.
        :raises ValueError: when a setting is not what is expected, naming it.
        """
        if self._channels is None:
            with self._lock:
                if self._channels is None:
                    self._channels = _make_channels(self)
                    if self.metrics is not None:
                        self.metrics.start()
        return self._channels

    def forked(self) -> None:
        """Begin anew in a child: connections, counts and channels are the parent's."""
        self.counters = Counters()
        self.admission = Admission(self.counters)
        self.reporter = Reporter(self.counters, self.admission)
        self._channels = None
        self._obeying = False
        self._lock = Lock()
        if self.metrics is not None:
            self.metrics.forked()

    def close(self) -> None:
        """Let go of the broker."""
        if self._channels is not None:
            self._channels.close()

    def expect(self, limits: Limits, what: str = "a WebSocket") -> Guest:
        """See whether the current request may have a connection, before that costs anything.

        :param limits: that the connection will have.
        :param what: is asked for, for the log.
        :raises BrokerError: when it has a user, and nobody could be told to disconnect it.
        :raises HandshakeError: when it may not; 429 or 503.
        """
        rules = rules_of(self.app.config)
        guest = self.admission.expect(rules, request.remote_addr, what)
        guest.max_age = limits.max_connection_age
        user_id = self.user_id or self.turbo_user_id
        if user_id is not None:
            user = user_id()
            if user is not None and not self._obeying:
                admission, clock = self.admission, waiter().clock
                self.channels.listen(
                    ORDERS, admission.obey, clock, request.environ, missed=admission.orders_lost
                )
                self._obeying = True
                user = user_id()  # again: an order may have come before
            if user is not None:
                guest.user = user_text(user)
                self.admission.check(guest)
        return guest

    def admit(self, connection: Connection, guest: Guest) -> None:
        """Count a connection.

        :param guest: of its request.
        :raises HandshakeError: when there is no room for it any more.
        """
        close = partial(_close, connection)
        self.admission.enter(self.connections, connection, guest, _clock_of(guest), close)
        try:
            connection_opened.send(self.app, connection=connection)
            self._report()
        except BaseException:
            self.admission.leave(self.connections, connection)
            raise

    def _report(self) -> None:
        """Have who looks told of this process: it has somebody."""
        if not self.reporter.begun:
            self.reporter.begin(self.channels, waiter().clock)

    def ended(self, connection: Connection) -> None:
        """Count a connection no longer."""
        self.admission.leave(self.connections, connection)
        tell(connection_closed, self.app, connection=connection)

    def admit_stream(self, stream: EventStream, guest: Guest) -> None:
        """Count an event stream; as :meth:`admit`."""
        end = partial(_end, stream)
        self.admission.enter(self.streams, stream, guest, _clock_of(guest), end)
        try:
            self._report()
        except BaseException:
            self.admission.leave(self.streams, stream)
            raise
        self.counters.streams_opened += 1
        tell(stream_opened, self.app, stream=stream)

    def stream_ended(self, stream: EventStream) -> None:
        """Count an event stream no longer, where it was counted."""
        if self.admission.leave(self.streams, stream):
            self.counters.streams_closed += 1
            tell(stream_closed, self.app, stream=stream)


def _clock_of(guest: Guest) -> Clock | None:
    return waiter().clock if guest.remarkable else None


def _close(connection: Connection, code: int, reason: str) -> bool:
    """Close a connection; False where it is just being accepted."""
    if not connection.accepted:
        return False
    connection.close(code, reason)
    return True


def _end(stream: EventStream, code: int, reason: str) -> bool:
    """End a stream, which has no room for a reason."""
    stream.end()
    return True


_states: WeakSet[State] = WeakSet()


def _after_fork() -> None:
    for state in _states:
        state.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@atexit.register
def _leave() -> None:
    """Tell the broker at once who is here no longer; else others find it out after a while."""
    for state in list(_states):
        state.close()


def make_state(app: Flask) -> State:
    """Give an application its state."""
    state = app.extensions[EXTENSION] = State(app)
    _states.add(state)
    return state


def serve_metrics(state: State) -> None:
    """Add the route that ``SOCKETS_METRICS_ROUTE`` names.

    :raises RuntimeError: when prometheus_client is not installed.
    """
    route = state.app.config.get("SOCKETS_METRICS_ROUTE")
    if route is None:
        return
    try:
        from .metrics import Metrics
    except ImportError as exc:
        raise RuntimeError(
            "SOCKETS_METRICS_ROUTE needs prometheus_client; install it with: "
            'pip install "flask-sockets2[metrics]"'
        ) from exc
    metrics = state.metrics = Metrics(lambda: state.counters)

    def flask_sockets2_metrics() -> Response:
        if request.environ.get("wsgi.multiprocess"):
            metrics.warn_of_processes()
        text, content_type = metrics.text()
        return Response(text, content_type=content_type)

    state.app.add_url_rule(route, view_func=flask_sockets2_metrics)


def _make_channels(state: State) -> Channels:
    config = state.app.config
    return Channels(
        state.app,
        broker_url_of(state.app),
        broker_options_of(config),
        state.counters,
        limits_of(config, {}).max_message_size,
    )


def broker_url_of(app: Flask) -> str:
    """Return where the broker is.

    :raises ValueError: when the setting is no URL, naming it.
    """
    state: State | None = app.extensions.get(EXTENSION)
    further = [] if state is None else state.broker_settings
    for setting in ("SOCKETS_BROKER_URL", *(name for name in further if app.config.get(name))):
        if setting in app.config:
            url = app.config[setting]
            if not isinstance(url, str):
                raise ValueError(f"{setting} must be a URL, got {type(url).__name__}")
            return url
    return "memory://"


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
