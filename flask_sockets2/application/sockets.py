"""Sockets: WebSocket routes for Flask.

The rules live in the application's own ``url_map``. Converters, ``url_for``, hooks of blueprints,
error handlers and ``request.endpoint`` work as they do for pages. One URL may serve a page and a
WebSocket.

Differences from Flask-Sockets: ``before_request`` functions run, and ``after_request`` functions
run when the handler has ended. A ``KeyError`` in a handler is an error like any other. If no page
shares the URL of a WebSocket route, a plain HTTP request gets 426 instead of 404. A blueprint is
registered once in the application, under its name. Options of rules have an effect. The endpoint
is the function's name instead of the function.
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
_INSTEAD = {  # attributes of Flask-SocketIO and Quart: the remedy
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
"""A handler without a type variable; mypy needs the first of the two to infer lambdas."""

UserFunction = TypeVar("UserFunction", bound=Identify)


class Sockets:
    """Adds WebSocket routes and channels to one or several applications.

    :param app: the application; if None, call :meth:`init_app` later.

    ::

        sockets = Sockets(app)

        @sockets.route("/echo")
        def echo(ws):
            for message in ws:
                ws.send(message)
    """

    def __init__(self, app: Flask | None = None) -> None:
        self._routes: list[Route] = []  # for later applications, as are the recorded functions
        self._recorded: dict[Any, Callable[[Flask], None]] = {}
        self._apps: list[ref[Flask]] = []  # in the order of init_app()
        self._map = Map()  # the url_map until there is an application
        #: Blueprints registered with :meth:`register_blueprint`, by name.
        self.blueprints: dict[str, Blueprint] = {}
        if app is not None:
            self.init_app(app)

    if not TYPE_CHECKING:  # type checkers know only the attributes that are defined here

        def __getattr__(self, name: str) -> NoReturn:
            """Name the replacement of an attribute that another package has."""
            instead = f": {_INSTEAD[name]}" if name in _INSTEAD else ""
            raise AttributeError(f"sockets have no {name!r}{instead}", name=name, obj=self)

    def init_app(self, app: Flask) -> None:
        """Serve an application, and register the handlers recorded so far in it.

        :raises AssertionError: if the application has already served a request, as in Flask.
        :raises BrokerError: if the broker of ``SOCKETS_BROKER_URL`` needs an extra.
        :raises ValueError: if a setting is invalid; the error names the setting.
        """
        routes = [(route, route.origin) for route in self._routes]
        for route in self._routes:  # now, because a factory may be called again after an error
            route.taken = True
        read(Rules, app.config)
        max_buffered_of(app.config, read(Limits, app.config))
        origins_of(app)
        warn_of_misspelt(app.config, app.extensions)
        check_broker(app)
        if EXTENSION not in app.extensions:
            # First: Flask refuses if a request was served. Then no half-done state stays behind
            # that would make a second call skip the rest.
            app.register_error_handler(WebsocketMismatch, mismatch)
            state = make_state(app)
            warn_of_every_site(app)
            serve_metrics(state)
            serve_health(state)
            drop_flashes_of_connections(app)
            # The bound method: a call of an object with __call__ goes through C, and each waiting
            # greenlet keeps a copy of the C stack.
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
        """The applications that still exist, the newest last."""
        self._apps = [app for app in self._apps if app() is not None]
        return [served for app in self._apps if (served := app()) is not None]

    @property
    def url_map(self) -> Map:
        """The application's ``url_map``; before :meth:`init_app`, a map to add converters to.

        :raises RuntimeError: if there is more than one application.
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
        """Register a WebSocket handler, called with ``ws`` and the variables of the rule.

        :param rule: URL rule, as in Flask.
        :param options: options of :meth:`add_url_rule`.
        :returns: a decorator that returns the handler unchanged.
        :raises TypeError: if the rule is missing, as in ``@sockets.route`` without parentheses.
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
        """Register a WebSocket handler in the current and all later applications.

        One URL may have a handler for each host or subdomain. An application factory may register
        its handlers on each call: the newest application gets the newest handler, and earlier
        applications keep theirs.

        :param endpoint: endpoint, by default the handler's name. If another function has that
            name, such as a page, ``_websocket`` is appended.
        :param options: ``accept=False`` if the handler itself calls ``ws.accept()``;
            ``subprotocols`` in order of preference; ``origins`` of the pages that may connect;
            limits such as ``max_message_size`` or ``compression``; Werkzeug's options of a rule.
        :raises AssertionError: if another handler has the endpoint or the same rule, as in Flask.
        :raises TypeError: if an option is unknown, the handler does not take the arguments, or
            the handler is a coroutine function.
        :raises ValueError: if a limit is invalid, or one connection may buffer more than
            ``SOCKETS_MAX_BUFFERED``.
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
        """Keep a route for later applications, in place of an earlier route of the same rule.

        :raises AssertionError: if the route conflicts with one that waits for the same
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
        """Warn of a missing ``init_app()`` on requests, if there has been no application."""
        if not self._apps:
            _unserved.add(self)
            request_finished.connect(_tell_of_unserved)

    def _names(self) -> list[str]:
        """Return the rules of the registered handlers, and the names of blueprints."""
        rules = dict.fromkeys(route.rule for route in self._routes)
        return [*rules, *(f"the blueprint {name!r}" for name in self.blueprints)]

    def _of_name(self, name: str) -> list[Route]:
        return [route for route in self._routes if route.name == name]

    def register_blueprint(self, blueprint: Blueprint, **options: Any) -> None:
        """Register a blueprint: its rules, also those of nested blueprints, become WebSocket rules.

        The blueprint is added to the applications that do not have it. If there is no application
        yet, the blueprint is recorded for later ones.

        :param options: options of :meth:`flask.Flask.register_blueprint`.
        """

        def register(app: Flask) -> None:
            blueprint.register(WebSocketRules(app), options)  # type: ignore[arg-type]  # stands in for app

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
        """Register a function that returns the id of the current user, None if there is no user.

        Each request for a WebSocket or an event stream calls the function before the accept. An
        error or a refusal by the function becomes the response. An id is a non-empty ``str``, an
        ``int`` or a ``UUID``; any other value is a TypeError.
        :meth:`disconnect` and ``SOCKETS_MAX_CONNECTIONS_PER_USER`` use the id. If the application
        has a Turbo, ``@turbo.user_id`` serves as well, but this function takes precedence.

        The first function serves all applications, also later ones. If an application factory
        registers a function on each call, only the newest application gets it. A warning is logged
        if that leaves other applications with a function from another place in the source.

        ::

            @sockets.user_id
            def user_id():
                return session.get("user")

        :returns: the function, unchanged.
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

        Connections of this process end even if the broker cannot be reached. Parameters and
        errors are those of :meth:`flask_sockets2.Publisher.disconnect`.

        :raises RuntimeError: if neither :meth:`user_id` nor ``@turbo.user_id`` has a function.
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
        """Publish a message to all subscribers of a channel, in all processes.

        Call it from any handler, view, greenlet or thread: it never waits for a client. Parameters
        and errors are those of :meth:`flask_sockets2.Publisher.publish`. If
        ``SOCKETS_PUBLISH_ERRORS`` is ``"log"``, an unreachable broker raises no
        :class:`~flask_sockets2.BrokerError`: the message is lost, and its position is ``NOWHERE``.
        """
        return self.publisher.publish(channel, data, key=key, transient=transient)

    def publish_many(self, messages: Iterable[tuple[str, Any]], *, key: str = "") -> list[Position]:
        """Publish many messages in few round trips to the broker.

        :param messages: pairs of channel and data.
        :param key: key of each message. Errors are those of :meth:`publish`.
        """
        return self.publisher.publish_many(messages, key=key)

    def position(self, channel: str) -> Position:
        """Return the position of a channel's newest message, to render into a page.

        A client that subscribes with ``ws.subscribe(channel, since=position)`` receives the
        messages published since the page was rendered, or a gap message if some are lost. If the
        broker cannot be reached, the position is ``NOWHERE``: the client receives a gap message.
        """
        return self.positions([channel])[0]

    def positions(self, channels: Sequence[str]) -> list[Position]:
        """Return the positions of several channels, in one round trip if the broker can."""
        names, own = [check_channel(channel) for channel in channels], self._channels()
        return list(own.for_page(len(names), partial(own.publisher.positions, names)))

    def subscribers(self, channel: str) -> int:
        """Return the number of connections subscribed to a channel, in all processes.

        :raises BrokerError: if the broker cannot be reached.
        """
        return self.publisher.subscribers(channel)

    def present(self, channel: str) -> list[str]:
        """Return the identities present in a channel, in all processes, sorted.

        :raises BrokerError: if the broker cannot be reached.
        """
        return self.publisher.present(channel)

    def stats(self) -> dict[str, Any]:
        """Return the counters of this process, by route and channel prefix.

        :mod:`flask_sockets2.stats` explains the names.
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
        """The publisher of the current application, or of the only application.

        The publisher needs no context, so you can pass it to another thread.
        """
        return self._channels().publisher

    def _channels(self) -> AppChannels:
        return state_of(self._app()).channels

    def _app(self) -> Flask:
        """The current application, else the only application."""
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
        """Return a test client that opens WebSockets without a server.

        :param app: the application, or a client of ``app.test_client()`` to share its cookies.
        """
        from ..testing import SocketsClient

        return SocketsClient(app)


_unserved: WeakSet[Sockets] = WeakSet()
"""Sockets that have handlers, but whose ``init_app`` has not been called."""

_seldom = ThrottledLog(logger)


def unserved() -> list[str]:
    """Return a warning for each Sockets with handlers whose ``init_app`` was not called."""
    return [
        f"sockets with {', '.join(sockets._names()[:5])} serve no application; call their "
        "init_app(app)"
        for sockets in list(_unserved)
    ]


def _tell_of_unserved(app: Flask, **_: Any) -> None:
    """Log a likely reason why no rule matches a WebSocket: a forgotten ``init_app()``."""
    missing = isinstance(request.routing_exception, NotFound | WebsocketMismatch)
    if missing and is_upgrade(request.environ) and (said := unserved()):
        _seldom.warning(
            "unserved", "no rule for a WebSocket on %.200r: %s", request.path, "; ".join(said)
        )


def _check_rule(rule: Any) -> None:
    """Check that a rule is text, not a handler.

    :raises TypeError: if the rule is not text; the error shows how to write a route.
    """
    if not isinstance(rule, str):
        raise TypeError(
            f"a route needs a rule, got {rule!r:.200}; write @sockets.route('/echo') above its "
            "handler"
        )
