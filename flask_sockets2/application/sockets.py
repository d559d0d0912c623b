"""Sockets: WebSocket routes for Flask.

The rules live in the application's own ``url_map``, so that converters, ``url_for``, hooks of
blueprints, error handlers and ``request.endpoint`` work as they do for pages, and one URL may
serve a page and a WebSocket.

Differences from Flask-Sockets: ``before_request`` functions run, and after_request functions when
the handler has ended; a ``KeyError`` of a handler is an error like any other; a WebSocket route
asked for over plain HTTP, with no page beside it, answers 426 instead of 404; a blueprint is
registered in the application, under its name, once; options of rules count; the endpoint is the
function's name instead of the function.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Concatenate, NoReturn, TypeVar
from weakref import WeakSet, ref

from flask import Blueprint, Flask, current_app, request, request_finished
from werkzeug.exceptions import NotFound
from werkzeug.routing import Map
from werkzeug.routing.exceptions import WebsocketMismatch

from ..admission.guests import Rules
from ..brokers.base import Position
from ..channels.app_channels import AppChannels
from ..channels.publisher import Publisher, check_channel
from ..connection.connection import Connection
from ..connection.limits import Limits
from ..settings import read
from ..throttled_log import ThrottledLog
from ..wire.handshake import is_upgrade
from .answers import Identify, UserId
from .health import serve_health
from .middleware import SocketMiddleware
from .origins import origins_of, warn_of_every_site
from .routes import Route, WebSocketRules, has_rule, is_open, overwriting, source_of
from .sessions import drop_flashes_of_connections
from .settings import max_buffered_of, warn_of_misspelt
from .state import EXTENSION, check_broker, make_state, serve_metrics, state_of
from .view import mismatch

if TYPE_CHECKING:
    from flask.testing import FlaskClient

    from ..testing import SocketsClient

__all__ = ["Sockets", "unserved"]

logger = logging.getLogger("flask_sockets2.sockets")

_PUBLISH = (
    "call sockets.publish(channel, data), which reaches each connection that has called "
    "ws.subscribe(channel)"
)
_ROUTE = "register a handler with @sockets.route(path); it gets messages by ws.receive()"
_INSTEAD = {  # of what Flask-SocketIO and Quart have
    "broadcast": _PUBLISH,
    "emit": _PUBLISH,
    "event": _ROUTE,
    "on": _ROUTE,
    "on_event": _ROUTE,
    "run": "start the application with gunicorn -k flask_sockets2.worker, flask run or app.run()",
    "send": _PUBLISH,
    "sleep": "use time.sleep()",
    "start_background_task": "use threading.Thread",
    "websocket": _ROUTE,
}

Handler = TypeVar("Handler", bound=Callable[Concatenate[Connection, ...], object])
OneHandler = Callable[[Connection], object] | Callable[Concatenate[Connection, ...], object]
"""The same without a name; the first of the two is there for lambdas, whose type mypy infers."""

UserFunction = TypeVar("UserFunction", bound=Identify)


class Sockets:
    """WebSocket routes of one or several applications.

    :param app: the application, or None to call :meth:`init_app` later.

    ::

        sockets = Sockets(app)

        @sockets.route("/echo")
        def echo(ws):
            for message in ws:
                ws.send(message)
    """

    def __init__(self, app: Flask | None = None) -> None:
        self._routes: list[Route] = []  # for applications to come, as what follows
        self._recorded: dict[Any, Callable[[Flask], None]] = {}
        self._apps: list[ref[Flask]] = []  # in the order in which they came
        self._map = Map()  # stands for the application's until there is one
        #: Blueprints that were registered here, by name.
        self.blueprints: dict[str, Blueprint] = {}
        if app is not None:
            self.init_app(app)

    if not TYPE_CHECKING:  # for type checkers it has what is written here, and no more

        def __getattr__(self, name: str) -> NoReturn:
            """Name what to use in place of an attribute that another package has."""
            instead = f": {_INSTEAD[name]}" if name in _INSTEAD else ""
            raise AttributeError(f"sockets have no {name!r}{instead}", name=name, obj=self)

    def init_app(self, app: Flask) -> None:
        """Serve an application: the handlers recorded so far are registered in it.

        :raises AssertionError: when the application has served a request already, as in Flask.
        :raises BrokerError: when the broker of ``SOCKETS_BROKER_URL`` needs an extra.
        :raises ValueError: when a setting is not what is expected, naming it.
        """
        routes = [(route, route.origin) for route in self._routes]
        for route in self._routes:  # now, for a factory may be called again after an error
            route.taken = True
        read(Rules, app.config)
        max_buffered_of(app.config, read(Limits, app.config))
        origins_of(app)
        warn_of_misspelt(app.config, app.extensions)
        check_broker(app)
        if EXTENSION not in app.extensions:
            # First, for Flask refuses it once a request was served: then nothing is left behind
            # that a second call would take for done.
            app.register_error_handler(WebsocketMismatch, mismatch)
            state = make_state(app)
            warn_of_every_site(app)
            serve_metrics(state)
            serve_health(state)
            drop_flashes_of_connections(app)
            # The bound method: calling an object that has __call__ goes through C, whose stack
            # each waiting greenlet keeps a copy of.
            app.wsgi_app = SocketMiddleware(app.wsgi_app, app, self).__call__  # type: ignore[method-assign]  # as Flask documents it
        _unserved.discard(self)
        if not _unserved:
            request_finished.disconnect(_tell_of_unserved)
        if app not in self._served():
            for name, converter in self._map.converters.items():
                if Map.default_converters.get(name) is not converter:
                    app.url_map.converters[name] = converter
            for route, origin in routes:
                route.register(app, origin)
            for register in self._recorded.values():
                register(app)
            self._apps.append(ref(app))

    def _served(self) -> list[Flask]:
        """The applications that are still there, the newest last."""
        self._apps = [app for app in self._apps if app() is not None]
        return [served for app in self._apps if (served := app()) is not None]

    @property
    def url_map(self) -> Map:
        """The application's ``url_map``; before there is one, a map to add converters to.

        :raises RuntimeError: when there is more than one application.
        """
        apps = self._served()
        if len(apps) > 1:
            raise RuntimeError(
                f"these sockets serve {len(apps)} applications, so there is no one url_map; "
                "use app.url_map"
            )
        return apps[0].url_map if apps else self._map

    # -- registration ----------------------------------------------------------------------

    def route(self, rule: str, **options: Any) -> Callable[[Handler], Handler]:
        """Register a handler, called with ``ws`` and the variables of the rule.

        :param rule: URL rule, as Flask's.
        :param options: of :meth:`add_url_rule`.
        :returns: a decorator that returns the handler as it is.
        :raises TypeError: when the rule is missing, as in ``@sockets.route`` without parentheses.
        """
        _check_rule(rule)
        endpoint = options.pop("endpoint", None)

        def decorator(handler: Handler) -> Handler:
            self.add_url_rule(rule, endpoint, handler, **options)
            return handler

        return decorator

    def add_url_rule(
        self,
        rule: str,
        endpoint: str | None = None,
        f: OneHandler | None = None,
        **options: Any,
    ) -> None:
        """Register a handler in the applications that are served, and in those to come.

        The whole rule counts, so one URL may have a handler for each host or subdomain. A factory
        may register its handlers each time that it makes an application: the newest gets the
        newest handler, the others keep theirs.

        :param endpoint: by default the handler's name; when another function has that, as a page
            or a handler of another rule, the name with ``_websocket`` behind it.
        :param options: ``accept=False`` leaves accepting to the handler; ``subprotocols`` in order
            of preference; ``origins`` that may connect; limits as
            ``max_message_size`` or ``compression``; all others are Werkzeug's options of a rule.
        :raises AssertionError: when another handler has the endpoint or the same rule, as in Flask.
        :raises TypeError: when an option is unknown, the handler cannot be called as it would, or
            it is a coroutine function.
        :raises ValueError: when a limit is not what is expected, or one connection may hold more
            than ``SOCKETS_MAX_BUFFERED``.
        """
        _check_rule(rule)
        if f is None:
            raise TypeError("add_url_rule() needs a handler: add_url_rule(rule, None, handler)")
        route = Route(rule, endpoint, f, options)
        route.view = next(  # one handler may have several rules
            (known.view for known in self._of_name(route.name) if known.view.same(route.view)),
            route.view,
        )
        apps = self._served()
        if apps:
            route.taken = route.register(apps[-1])
        if route.taken:
            for app in apps[:-1]:
                if is_open(app) and not has_rule(app, route):
                    route.register(app)
        self._record(route)

    def _record(self, route: Route) -> None:
        """Keep a route for applications to come, in place of an earlier one for the same rule.

        :raises AssertionError: when it conflicts with another one that waits for the same
            application.
        """
        if not route.taken:
            self._wait()
        named = self._of_name(route.name)
        if not route.taken and any(not each.taken and each.conflicts(route) for each in named):
            raise overwriting(route.name)
        known = next((each for each in named if each.same_rule(route)), None)
        if known is None:
            self._routes.append(route)
        else:
            self._routes[self._routes.index(known)] = route

    def _wait(self) -> None:
        """Wait for an application, if there has been none."""
        if not self._apps:
            _unserved.add(self)
            request_finished.connect(_tell_of_unserved)

    def _names(self) -> list[str]:
        """Return the rules of the handlers that were registered, and the names of blueprints."""
        rules = dict.fromkeys(route.rule for route in self._routes)
        return [*rules, *(f"the blueprint {name!r}" for name in self.blueprints)]

    def _of_name(self, name: str) -> list[Route]:
        return [route for route in self._routes if route.name == name]

    def register_blueprint(self, blueprint: Blueprint, **options: Any) -> None:
        """Register a blueprint, each rule of it and of those nested in it as a WebSocket rule.

        Before there is an application it is recorded for those to come; later it goes to those
        that are served and do not have it.

        :param options: of :meth:`flask.Flask.register_blueprint`.
        """

        def register(app: Flask) -> None:
            blueprint.register(WebSocketRules(app), options)  # type: ignore[arg-type]  # stands in for it

        name = options.get("name", blueprint.name)
        apps = self._served()
        for app in apps:
            if app is apps[-1] or (name not in app.blueprints and is_open(app)):
                register(app)
        if not apps:
            self._recorded[blueprint, name] = register
            self._wait()
        self.blueprints[name] = blueprint

    # -- users -----------------------------------------------------------------------------

    def user_id(self, f: UserFunction) -> UserFunction:
        """Register what returns the id of the user of the current request, None for nobody.

        It is asked in the request of each WebSocket and event stream, before that is accepted;
        what it raises becomes the response, and so does a response that refuses. An id is a ``str``
        that is not empty, an ``int`` or a ``UUID``; all else is a TypeError. :meth:`disconnect` and
        ``SOCKETS_MAX_CONNECTIONS_PER_USER`` go by it. Where an application has a Turbo,
        ``@turbo.user_id`` does as well, and this one wins.

        Of several applications each is asked by it, those to come as well. Of a further one the
        newest application is, as of a factory that registers its own each time, and the others
        keep theirs; where that is another function in the source, a warning says so.

        ::

            @sockets.user_id
            def user_id():
                return session.get("user")

        :returns: the function as it is.
        """

        def register(app: Flask) -> None:
            state_of(app).user_id = f

        apps = self._served()
        kept = 0
        for app in apps:
            known = state_of(app).user_id
            if app is apps[-1] or known is None:
                register(app)
            elif source_of(known) != source_of(f):
                kept += 1
        if kept:
            logger.warning(
                "@sockets.user_id: of %s applications on these sockets %s keep the function that "
                "they had; let one function tell them apart by current_app, or give each "
                "application Sockets of its own",
                len(apps),
                kept,
            )
        self._recorded["user_id"] = register
        return f

    def disconnect(self, *, user: UserId, code: int = 1008, reason: str = "") -> None:
        """Close the WebSockets and end the event streams of a user, in all processes.

        Those of this process end whether or not the broker can be reached. Takes and raises what
        :meth:`flask_sockets2.Publisher.disconnect` does.

        :raises RuntimeError: when no function says who the user of a connection is.
        """
        app = self._app()
        if not state_of(app).identifies():
            raise RuntimeError(
                "cannot disconnect a user: no function says who the user of a connection is; "
                "register one that returns the id of the current user with @sockets.user_id, or "
                "with @turbo.user_id"
            )
        state_of(app).publisher.disconnect(user=user, code=code, reason=reason)

    # -- channels --------------------------------------------------------------------------

    def publish(
        self, channel: str, data: Any, *, key: str = "", transient: bool = False
    ) -> Position:
        """Publish a message to all who subscribe to a channel, in all processes.

        From handlers, views, other greenlets and threads; does not wait for any client. Takes and
        raises what :meth:`flask_sockets2.Publisher.publish` does. With ``SOCKETS_PUBLISH_ERRORS``
        set to ``"log"`` no :class:`~flask_sockets2.BrokerError` is raised: the message is lost, and
        the position is that of no log.
        """
        return self.publisher.publish(channel, data, key=key, transient=transient)

    def publish_many(self, messages: Iterable[tuple[str, Any]], *, key: str = "") -> list[Position]:
        """Publish many messages at the cost of few round trips.

        :param messages: pairs of a channel and the data.
        :param key: of each, as for :meth:`publish`; so is the end of it while the broker is away.
        """
        return self.publisher.publish_many(messages, key=key)

    def position(self, channel: str) -> Position:
        """Return the position of a channel's newest message, for a page to carry.

        A client that comes with it, ``ws.subscribe(channel, since=position)``, gets everything
        published after the page was rendered. If the broker cannot be reached, the position is that
        of no log, and the client is told of a gap.
        """
        return self.positions([channel])[0]

    def positions(self, channels: Sequence[str]) -> list[Position]:
        """Return the position of each channel, at the cost of one round trip where that can be."""
        names, own = [check_channel(channel) for channel in channels], self._channels()
        return list(own.for_page(len(names), partial(own.publisher.positions, names)))

    def subscribers(self, channel: str) -> int:
        """Return how many connections subscribe to a channel, in all processes.

        :raises BrokerError: when the broker cannot be reached.
        """
        return self.publisher.subscribers(channel)

    def present(self, channel: str) -> list[str]:
        """Return the identities that are in a channel, in all processes, sorted.

        :raises BrokerError: when the broker cannot be reached.
        """
        return self.publisher.present(channel)

    def stats(self) -> dict[str, Any]:
        """Return what has been counted in this process, by route and channel prefix.

        See :mod:`flask_sockets2.stats` for the names.
        """
        state = state_of(self._app())
        return {
            "connections": len(state.connections),
            "streams": len(state.streams),
            **state.requests,
            "buffered": state.budget.total,
            **state.counters.as_dict(),
        }

    @property
    def publisher(self) -> Publisher:
        """What publishes for the current application, or the one that is served.

        It needs no context, so that another thread may be handed it.
        """
        return self._channels().publisher

    def _channels(self) -> AppChannels:
        return state_of(self._app()).channels

    def _app(self) -> Flask:
        """The current application, else the one that is served."""
        apps = self._served()
        if current_app:
            current: Flask = current_app._get_current_object()  # type: ignore[attr-defined]  # a proxy, as Flask documents it
            if current in apps:
                return current
        if not apps:
            raise RuntimeError("these sockets serve no application; call init_app(app) first")
        if len(apps) != 1:
            raise RuntimeError(
                f"these sockets serve {len(apps)} applications; call this within "
                "app.app_context() of one of them"
            )
        return apps[0]

    # -- testing ---------------------------------------------------------------------------

    def test_client(self, app: Flask | FlaskClient) -> SocketsClient:
        """Return a client that opens WebSockets without a server.

        :param app: the application, or a client of ``app.test_client()`` to share its cookies.
        """
        from ..testing import SocketsClient

        return SocketsClient(app)


_unserved: WeakSet[Sockets] = WeakSet()
"""Those with handlers whose ``init_app`` has not been called."""

_seldom = ThrottledLog(logger)


def unserved() -> list[str]:
    """Return what to say of sockets with handlers whose ``init_app`` has not been called."""
    return [
        f"sockets with {', '.join(sockets._names()[:5])} serve no application; call their "
        "init_app(app)"
        for sockets in list(_unserved)
    ]


def _tell_of_unserved(app: Flask, **_: Any) -> None:
    """Log why there may be no rule for a WebSocket, in an application that no sockets serve."""
    missing = isinstance(request.routing_exception, NotFound | WebsocketMismatch)
    if missing and is_upgrade(request.environ) and (said := unserved()):
        _seldom.warning(
            "unserved", "no rule for a WebSocket on %.200r: %s", request.path, "; ".join(said)
        )


def _check_rule(rule: Any) -> None:
    """See that it is one, and no handler.

    :raises TypeError: when it is not, saying how routes are written.
    """
    if not isinstance(rule, str):
        raise TypeError(
            f"a route needs a rule, got {rule!r:.200}; write @sockets.route('/echo') above its "
            "handler"
        )
