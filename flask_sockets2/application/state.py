"""The package's state of one application in this process."""

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

from flask import Flask, Response, current_app, has_request_context, request
from werkzeug.exceptions import HTTPException

from ..admission.admission import Admission
from ..admission.disconnects import ORDERS
from ..admission.guests import Guest, Rules
from ..brokers.registry import open_broker
from ..channels.app_channels import AppChannels
from ..channels.publisher import Publisher, dumps_of
from ..channels.sender import AppSender
from ..connection.connection import Connection
from ..connection.limits import MAX_BUFFERED, Limits
from ..exceptions import BrokerError
from ..fanout.fanout import Fanout
from ..servers import under_way
from ..servers.patience import register
from ..servers.serving import Unheard, is_listening, works_for_a_server
from ..settings import ROWS, read
from ..signals import connection_closed, connection_opened, stream_closed, stream_opened, tell
from ..stats import Counters
from ..throttled_log import ThrottledLog
from ..transports.budget import Budget
from ..transports.clock import Clock
from ..transports.current import current_clock
from .answers import Identify, WrongAnswer, identity
from .process_reports import Reporter
from .settings import BROKER_URL, AppSettings, broker_options_of, max_buffered_of
from .signing import (
    SESSION,
    UNKNOWN_USER,
    USER,
    bound_to,
    check_bind,
    is_bound_to,
    key_mark,
    session_token,
)

if TYPE_CHECKING:
    from .metrics import Metrics

__all__ = [
    "EXTENSION",
    "EventStream",
    "State",
    "broker_url_of",
    "check_broker",
    "make_state",
    "serve_metrics",
    "state_of",
]

logger = logging.getLogger("flask_sockets2.sockets")

EXTENSION = "flask_sockets2"

# In the environ:
_USER = "flask_sockets2.user"  # text of the id of the connecting user, None if there is no user
_HOLDER = "flask_sockets2.holder"  # the user or session that the names of a page are bound to


class EventStream(Protocol):
    """An event stream that counts as a connection.

    :ivar path: path of the request.
    """

    path: Any

    def end(self) -> None:
        """End the stream soon; call from any thread."""


@dataclass(slots=True, weakref_slot=True, eq=False)
class State:
    """The package's state of one application in this process.

    :ivar app: the application, which owns the state.
    :ivar rules: the application's WebSocket rules; ``application/routes.py`` has their class.
    :ivar broker_settings: keys of other settings that hold the broker's URL if there is no
        ``SOCKETS_BROKER_URL``.
    :ivar user_id: returns the id of the user of the current request, None if there is no user.
    :ivar turbo_user_id: returns the user of a page with Turbo, as text; used if there is no
        :attr:`user_id`.
    :ivar turbo_page_user: the same while a page is rendered; raises errors of the application.
    :ivar turbo_identifies: tells whether :attr:`turbo_user_id` knows any users.
    :ivar warned_of_every_site: the log has warned that pages of every site may connect.
    :ivar admission: open connections and streams, and their limits.
    :ivar reporter: answers ``flask sockets top``.
    :ivar budget: counts the bytes that all connections hold.
    :ivar was_server: this process was forked from a process that served clients.
    """

    app: Flask
    rules: list[Any] = field(default_factory=list)
    counters: Counters = field(default_factory=Counters)
    metrics: Metrics | None = None
    broker_settings: list[str] = field(default_factory=list)
    user_id: Identify | None = None
    turbo_user_id: Callable[[], str | None] | None = None
    turbo_page_user: Callable[[], str | None] | None = None
    turbo_identifies: Callable[[], bool] | None = None
    warned_of_every_site: bool = False
    admission: Admission = field(init=False)
    reporter: Reporter = field(init=False)
    budget: Budget = field(init=False)
    was_server: bool = False
    _channels: AppChannels | None = None
    _logs: dict[str, ThrottledLog] = field(default_factory=dict)  # by name of the logger
    _lock: Lock = field(default_factory=Lock)  # guards making the channels
    _obeying: bool = False  # the process listens to disconnect orders

    def __post_init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self.budget = Budget(MAX_BUFFERED, self._evicting)
        self.admission = Admission(self.counters)
        self.reporter = Reporter(
            self.counters,
            self.admission,
            self.budget,
            under_way.requests,
            partial(key_mark, self.app),
        )

    def _evicting(self, connections: int, held: int) -> None:
        """Count and log connections evicted because all connections together hold too much."""
        self.counters.evicted += connections
        self.seldom_log(logger).warning(
            "evicted",
            "all connections together hold more than %s bytes, SOCKETS_MAX_BUFFERED; %s of them, "
            "which hold %s bytes, are evicted",
            self.budget.limit,
            connections,
            held,
            extra={"event": "buffers_full", "count": connections, "bytes": held},
        )

    def seldom_log(self, logger: logging.Logger) -> ThrottledLog:
        """Return a rate-limited log for events that clients can cause; call from any thread."""
        return self._logs.setdefault(logger.name, ThrottledLog(logger))

    @property
    def connections(self) -> set[Connection]:
        """WebSockets that are open."""
        return self.admission.connections

    @property
    def streams(self) -> set[EventStream]:
        """Event streams that are open."""
        return self.admission.streams

    @property
    def requests(self) -> dict[str, int]:
        """Numbers of HTTP requests of this process, for all applications."""
        return {"requests": under_way.requests(), "requests_cut": under_way.cut_off()}

    @property
    def broker_away(self) -> bool | None:
        """Whether the broker is out of reach; None if unknown."""
        return None if self._channels is None else self._channels.broker.away()

    @property
    def one_log(self) -> bool:
        """Whether all processes of the current request's server share the log of a channel.

        With ``memory://`` each process has its own log.
        """
        return self.channels.broker.shared or not request.environ.get("wsgi.multiprocess")

    @property
    def channels(self) -> AppChannels:
        """The application's channels, made on first use.

        :raises BrokerError: if no broker serves ``SOCKETS_BROKER_URL``.
        :raises ValueError: if a setting is invalid; the error names the setting.
        """
        if self._channels is None:
            with self._lock:
                if self._channels is None:
                    self._channels = _make_channels(self)
                    if self.metrics is not None:
                        self.metrics.start()
        return self._channels

    @property
    def publisher(self) -> Publisher:
        """The publisher to the application's channels; raises the errors of :attr:`channels`."""
        return self.channels.publisher

    def forked(self) -> None:
        """Reset a forked child: connections, counters and channels belong to the parent."""
        served = getattr(self.app, "_got_first_request", False)
        self.was_server = served and is_listening()  # not a test that starts a server
        self.counters = Counters()
        self._begin()
        self._channels = None
        self._obeying = False
        self._lock = Lock()
        if self.metrics is not None:
            self.metrics.forked()

    def close(self) -> None:
        """Close the connections to the broker."""
        if self._channels is not None:
            self._channels.close()

    def expect(self, limits: Limits, what: str = "a WebSocket") -> Guest:
        """Check early whether the current request may have a connection, before expensive work.

        :param limits: limits of the later connection.
        :param what: kind of connection, for the log.
        :raises BrokerError: if there is a user, and the broker cannot deliver disconnect orders.
        :raises HandshakeError: if a limit refuses the request, with 429 or 503.
        """
        rules = read(Rules, self.app.config)
        budget = self.budget
        most = max_buffered_of(self.app.config, limits)
        budget.limit = most or max(budget.limit, 2 * limits.most_buffered)
        guest = self.admission.expect(rules, request.remote_addr, what)
        guest.max_age = limits.max_connection_age
        user_id = self._ask_user_id if self.user_id is not None else self.turbo_user_id
        if user_id is not None:
            user = user_id()
            if user is not None and not self._obeying:
                admission, clock = self.admission, current_clock()
                self.channels.listen(
                    ORDERS, admission.obey, clock, request.environ, missed=admission.orders_lost
                )
                self._obeying = True
                user = user_id()  # again: an order may have been missed before listen()
            if user is not None:
                guest.user = user
                self.admission.check(guest)
        request.environ[_USER] = guest.user
        return guest

    def identifies(self) -> bool:
        """Tell whether the application has a function that returns its users."""
        return self.user_id is not None or (
            self.turbo_identifies is not None and self.turbo_identifies()
        )

    def _ask_user_id(self) -> str | None:
        assert self.user_id is not None
        return identity(self.app, self.user_id, by="@sockets.user_id")

    def holder(self, bind: str | None) -> str:
        """Return the binding of a name in the current page; empty if any client may use the name.

        :param bind: ``"user"`` for the user if there is one, ``"session"``, or None for no binding.
        :raises RuntimeError: if there is no session to bind the name to.
        :raises ValueError: if ``bind`` is invalid.
        """
        check_bind(bind)
        if bind is None or (bind == USER and not has_request_context()):
            return ""
        if bind == SESSION:
            return bound_to(self.app, SESSION, session_token(make=True) or "")
        known: str | None = request.environ.get(_HOLDER)
        if known is None:  # a page may have hundreds of names, and the user may cost a query
            known = request.environ[_HOLDER] = self._holder_of_user()
        return known

    def _holder_of_user(self) -> str:
        user_id = self._ask_user_id if self.user_id is not None else self.turbo_page_user
        if user_id is None:
            return ""
        try:
            user = user_id()
        except WrongAnswer:  # a mistake in the program
            raise
        except HTTPException:  # such as abort(401): no user
            return ""
        except Exception as exc:
            self.seldom_log(logger).error(
                "the user id callback raised, so nobody can use the streams of a page; return None "
                "if no user is logged in",
                error=exc,
            )
            return UNKNOWN_USER
        return "" if user is None else bound_to(self.app, USER, user)

    def holds(self, holder: str) -> bool:
        """Tell whether the client of the current request may use a name; call after ``expect``.

        :param holder: the binding in the name, as returned by :meth:`holder`.
        """
        if not holder:
            return True
        kind = USER if holder.startswith(USER[0]) else SESSION
        text = request.environ.get(_USER) if kind == USER else session_token()
        return text is not None and is_bound_to(self.app, holder, kind, text)

    def admit(self, connection: Connection, guest: Guest) -> None:
        """Count a new connection.

        :param guest: guest of the request.
        :raises HandshakeError: if there are meanwhile too many connections.
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
        """Start to answer ``flask sockets top``: the process has a connection."""
        if not self.reporter.begun:
            self.reporter.begin(self.channels, current_clock())

    def ended(self, connection: Connection) -> None:
        """Remove a connection from the count."""
        self.admission.leave(self.connections, connection)
        tell(connection_closed, self.app, connection=connection)

    def admit_stream(self, stream: EventStream, guest: Guest) -> None:
        """Count a new event stream; see :meth:`admit`."""
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
        """Remove an event stream from the count, if it was counted.

        :param works: only the client has left; see :meth:`Admission.leave`.
        """
        if self.admission.leave(self.streams, stream, works=works):
            self.counters.streams_closed += 1
            tell(stream_closed, self.app, stream=stream)


def _clock_of(guest: Guest) -> Clock | None:
    return current_clock() if guest.remarkable else None


def _close(connection: Connection, code: int, reason: str) -> bool:
    """Close a connection; return False if the connection is not accepted yet."""
    if not connection.accepted:
        return False
    connection.close(code, reason)
    return True


def _end(stream: EventStream, code: int, reason: str) -> bool:
    """End a stream; event streams have no close code or reason."""
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
    """Tell the broker at once that this process ends; otherwise its presence stays for a while."""
    for state in list(_states):
        state.close()


def make_state(app: Flask) -> State:
    """Make the state of an application.

    :raises ValueError: if a setting of the server is invalid; the error names the setting.
    """
    register(app.config)
    state = app.extensions[EXTENSION] = State(app)
    _states.add(state)
    return state


def serve_metrics(state: State) -> None:
    """Add the route that ``SOCKETS_METRICS_ROUTE`` names.

    :raises RuntimeError: if prometheus_client is not installed.
    """
    route = read(AppSettings, state.app.config).metrics_route
    if route is None:
        return
    try:
        from .metrics import Metrics
    except ImportError as exc:
        raise RuntimeError(
            "SOCKETS_METRICS_ROUTE needs prometheus_client; install it with: "
            'pip install "flask-sockets2[metrics]"'
        ) from exc
    metrics = state.metrics = Metrics(
        lambda: state.counters,
        lambda: state.budget.total,
        under_way.requests,
        under_way.cut_off,
    )

    def flask_sockets2_metrics() -> Response:
        if request.environ.get("wsgi.multiprocess"):
            metrics.warn_of_processes()
        text, content_type = metrics.text()
        return Response(text, content_type=content_type)

    state.app.add_url_rule(route, view_func=flask_sockets2_metrics)


def _make_channels(state: State) -> AppChannels:
    app, counters, config = state.app, state.counters, state.app.config
    _warn_of_environment(app)
    options = broker_options_of(config)
    fanout = Fanout(partial(open_broker, broker_url_of(app), options), options, counters)
    unheard = partial(Unheard, helps=works_for_a_server(state.was_server))
    logs_errors = read(AppSettings, config).publish_errors == "log"
    sender = AppSender(app, fanout, counters, logs_errors, unheard)
    most = read(Limits, config).max_message_size
    return AppChannels(app, fanout, Publisher._of(sender, most, dumps_of(app)))


def _warn_of_environment(app: Flask) -> None:
    """Warn if the environment names a broker, but the application does not read the variable."""
    setting = BROKER_URL
    if setting in app.config or broker_url_of(app) != "memory://":
        return
    remedies = {
        setting: f'app.config["{setting}"] = os.environ["{setting}"]',
        f"FLASK_{setting}": "app.config.from_prefixed_env()",
    }
    for variable, remedy in remedies.items():
        if not os.environ.get(variable, "memory://").startswith("memory:"):
            logger.warning(
                "the environment variable %s is set, but the setting %s is not, so channels are "
                "in memory; read the variable before the first request: %s",
                variable,
                setting,
                remedy,
            )


def broker_url_of(app: Flask) -> str:
    """Return the URL of the broker.

    :raises ValueError: if the setting is no URL; the error names the setting.
    """
    return _broker_setting(app)[1]


def _broker_setting(app: Flask) -> tuple[str, str]:
    """Return the key of the setting that holds the broker's URL, and the URL."""
    state: State | None = app.extensions.get(EXTENSION)
    further = [] if state is None else state.broker_settings
    keys = (BROKER_URL, *(key for key in further if app.config.get(key)))
    key = next((key for key in keys if key in app.config), BROKER_URL)
    return key, ROWS[key].of(app.config)


def check_broker(app: Flask, setting: str | None = None) -> None:
    """Check that a broker serves the URL in the settings, without a connection to the broker.

    :param setting: key of the setting with the URL; by default the URL of the channels.
    :raises BrokerError: if the package for the URL is not installed.
    :raises ValueError: if a setting is invalid; the error names the setting.
    """
    setting, url = (setting, ROWS[setting].of(app.config)) if setting else _broker_setting(app)
    options = broker_options_of(app.config)
    try:
        open_broker(url, options)
    except BrokerError as exc:
        if isinstance(exc.__cause__, ImportError):
            raise
        raise ValueError(f"{setting}: {exc}") from exc


def state_of(app: Flask | None = None) -> State:
    """Return the state of an application, by default the current one."""
    state: State = (app or current_app).extensions[EXTENSION]
    return state
