"""What the package keeps about one application, in this process."""

from __future__ import annotations

import atexit
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakSet

from flask import Flask, Response, current_app, request

from .admission import Admission
from .channels import Channels
from .connection import Connection
from .guests import Guest
from .limits import Limits
from .orders import ORDERS, user_text
from .rates import SeldomLog
from .reports import Reporter
from .servers.environ import waiter
from .settings import broker_options_of, limits_of, rules_of
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
    "EventStream",
    "State",
    "broker_url_of",
    "make_state",
    "serve_metrics",
    "state_of",
]

EXTENSION = "flask_sockets2"


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
    _logs: dict[str, SeldomLog] = field(default_factory=dict)  # by name of the logger
    _lock: Lock = field(default_factory=Lock)  # guards making the channels
    _obeying: bool = False  # orders are listened to

    def __post_init__(self) -> None:
        self.admission = Admission(self.counters)
        self.reporter = Reporter(self.counters, self.admission)

    def seldom_log(self, logger: logging.Logger) -> SeldomLog:
        """Return where to log what strangers bring about; of any thread."""
        return self._logs.setdefault(logger.name, SeldomLog(logger))

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

    def stream_ended(self, stream: EventStream, *, works: bool = False) -> None:
        """Count an event stream no longer, where it was counted.

        :param works: only its client has left; see :meth:`Admission.leave`.
        """
        if self.admission.leave(self.streams, stream, works=works):
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


def state_of(app: Flask | None = None) -> State:
    """Return the state of an application, by default the current one."""
    state: State = (app or current_app).extensions[EXTENSION]
    return state
