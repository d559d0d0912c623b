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
_USER = "flask_sockets2.user"  # text of the id of who connects, None for nobody
_HOLDER = "flask_sockets2.holder"  # what the names of a page are bound to


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
    :ivar rules: its WebSocket rules; see ``application/routes.py``, which has their class.
    :ivar broker_settings: further settings with the broker's URL, where ``SOCKETS_BROKER_URL`` is
        not there.
    :ivar user_id: returns the id of the user of the current request, None for nobody.
    :ivar turbo_user_id: the same of pages with Turbo, as text; asked where there is no
        :attr:`user_id`.
    :ivar turbo_page_user: the same for a page that is rendered; raises what the application does.
    :ivar turbo_identifies: tells whether :attr:`turbo_user_id` knows any users.
    :ivar warned_of_every_site: the log has said that pages of every site may connect.
    :ivar admission: who is here.
    :ivar reporter: tells who looks.
    :ivar budget: counts the bytes that all connections hold.
    :ivar was_server: the process from which this one was forked served clients.
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
    _obeying: bool = False  # orders are listened to

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
        """Say that connections are evicted, since all of them hold too much."""
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
        """Return where to log what strangers bring about; of any thread."""
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
        """HTTP requests of this process, whichever application they are for."""
        return {"requests": under_way.requests(), "requests_cut": under_way.cut_off()}

    @property
    def broker_away(self) -> bool | None:
        """Whether the broker is known to be out of reach; None where nobody knows."""
        return None if self._channels is None else self._channels.broker.away()

    @property
    def one_log(self) -> bool:
        """Whether all pages of the current request's server have the same log of a channel.

        With ``memory://`` each process has its own.
        """
        return self.channels.broker.shared or not request.environ.get("wsgi.multiprocess")

    @property
    def channels(self) -> AppChannels:
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

    @property
    def publisher(self) -> Publisher:
        """Publishes to the application's channels; raises what :attr:`channels` does."""
        return self.channels.publisher

    def forked(self) -> None:
        """Begin anew in a child: connections, counts and channels are the parent's."""
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
                user = user_id()  # again: an order may have come before
            if user is not None:
                guest.user = user
                self.admission.check(guest)
        request.environ[_USER] = guest.user
        return guest

    def identifies(self) -> bool:
        """Tell whether the application says who its users are."""
        return self.user_id is not None or (
            self.turbo_identifies is not None and self.turbo_identifies()
        )

    def _ask_user_id(self) -> str | None:
        assert self.user_id is not None
        return identity(self.app, self.user_id, by="@sockets.user_id")

    def holder(self, bind: str | None) -> str:
        """Return what binds a name in the page that is rendered; empty if any client may use it.

        :param bind: ``"user"`` for the user if there is one, ``"session"``, or None for no binding.
        :raises RuntimeError: when there is no session to bind it to.
        :raises ValueError: when it is something else.
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
        except HTTPException:  # as abort(401): nobody
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
        """Whether the client of the current request may use a name; once it was expected.

        :param holder: what the name holds of that, as :meth:`holder` returned it.
        """
        if not holder:
            return True
        kind = USER if holder.startswith(USER[0]) else SESSION
        text = request.environ.get(_USER) if kind == USER else session_token()
        return text is not None and is_bound_to(self.app, holder, kind, text)

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
            self.reporter.begin(self.channels, current_clock())

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
    return current_clock() if guest.remarkable else None


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
    """Give an application its state.

    :raises ValueError: when a setting of the server is not what is expected, naming it.
    """
    register(app.config)
    state = app.extensions[EXTENSION] = State(app)
    _states.add(state)
    return state


def serve_metrics(state: State) -> None:
    """Add the route that ``SOCKETS_METRICS_ROUTE`` names.

    :raises RuntimeError: when prometheus_client is not installed.
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
    """Say that the environment names a broker which the application has not read."""
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
    """Return where the broker is.

    :raises ValueError: when the setting is no URL, naming it.
    """
    return _broker_setting(app)[1]


def _broker_setting(app: Flask) -> tuple[str, str]:
    """Return the setting that says where the broker is, and its URL."""
    state: State | None = app.extensions.get(EXTENSION)
    further = [] if state is None else state.broker_settings
    keys = (BROKER_URL, *(key for key in further if app.config.get(key)))
    key = next((key for key in keys if key in app.config), BROKER_URL)
    return key, ROWS[key].of(app.config)


def check_broker(app: Flask, setting: str | None = None) -> None:
    """See that there is a broker for the URL that is set; it is not connected to.

    :param setting: that holds the URL; by default the one that says where the channels are.
    :raises BrokerError: when what serves it is not installed.
    :raises ValueError: when a setting is not what is expected, naming it.
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
