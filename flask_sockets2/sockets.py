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
from difflib import get_close_matches
from inspect import signature
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import ref

from flask import Blueprint, Flask, current_app
from werkzeug.routing import Map, Rule
from werkzeug.routing.exceptions import WebsocketMismatch

from .brokers.base import Position
from .brokers.registry import open_broker
from .channels import Channels
from .extension import EXTENSION, broker_url_of, make_state, serve_metrics, state_of
from .health import serve_health
from .middleware import SocketMiddleware
from .publisher import Publisher
from .settings import broker_options_of, limits_of, rules_of
from .view import OPTIONS, View, mismatch

if TYPE_CHECKING:
    from .testing import SocketsClient

__all__ = ["Sockets"]

logger = logging.getLogger("flask_sockets2.sockets")

Handler = TypeVar("Handler", bound=Callable[..., Any])

# What add_url_rule() of Flask and Rule of Werkzeug know.
_RULE_OPTIONS = {*signature(Rule).parameters, "provide_automatic_options"} - {
    "string",
    "endpoint",
    "websocket",
}


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
        self._recorded: dict[Any, Callable[[Flask], None]] = {}  # for applications to come
        self._apps: list[ref[Flask]] = []  # in the order in which they came
        self._map = Map()  # stands for the application's until there is one
        #: Blueprints that were registered here, by name.
        self.blueprints: dict[str, Blueprint] = {}
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Serve an application: the handlers recorded so far are registered in it.

        :raises BrokerError: when no broker serves ``SOCKETS_BROKER_URL``, or it needs an extra.
        :raises ValueError: when a setting is not what is expected, naming it.
        """
        limits_of(app.config, {})
        rules_of(app.config)
        open_broker(broker_url_of(app), broker_options_of(app.config))  # is it there?
        if EXTENSION not in app.extensions:
            state = make_state(app)
            serve_metrics(state)
            serve_health(state)
            # The bound method: calling an object that has __call__ goes through C, whose stack
            # each waiting greenlet keeps a copy of.
            app.wsgi_app = SocketMiddleware(app.wsgi_app, app, self).__call__  # type: ignore[method-assign]  # as Flask documents it
            app.register_error_handler(WebsocketMismatch, mismatch)
        if app not in self._served():
            self._apps.append(ref(app))
            for name, converter in self._map.converters.items():
                if Map.default_converters.get(name) is not converter:
                    app.url_map.converters[name] = converter
            for register in self._recorded.values():
                register(app)

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
        """

        endpoint = options.pop("endpoint", None)

        def decorator(handler: Handler) -> Handler:
            self.add_url_rule(rule, endpoint, handler, **options)
            return handler

        return decorator

    def add_url_rule(
        self, rule: str, endpoint: str | None = None, f: Any = None, **options: Any
    ) -> None:
        """Register a handler in the applications that are served, and in those to come.

        A factory may do so each time that it makes an application: the newest gets the newest
        handler, the others keep theirs.

        :param endpoint: by default the handler's name.
        :param options: ``accept=False`` leaves accepting to the handler; ``subprotocols`` in order
            of preference; ``origins`` that may connect; limits as
            ``max_message_size`` or ``compression``; all others are Werkzeug's options of a rule.
        :raises TypeError: when an option is unknown, or the handler cannot be called as it would.
        """
        if f is None:
            raise TypeError("add_url_rule() needs a handler: add_url_rule(rule, None, handler)")
        view = _make_view(f, options)
        key = (rule, endpoint, _code(f))

        def register(app: Flask) -> None:
            rules = state_of(app).rules
            if key in rules:
                app.view_functions[rules[key]] = view
                return
            name = endpoint or _free_endpoint(app, getattr(f, "__name__", type(f).__name__))
            app.add_url_rule(rule, name, view, websocket=True, **options)
            view.check_arguments(_newest_rule(app, name))
            rules[key] = name

        apps = self._served()
        for app in apps:
            if app is apps[-1] or (key not in state_of(app).rules and _is_open(app)):
                register(app)
        self._recorded[key] = register

    def register_blueprint(self, blueprint: Blueprint, **options: Any) -> None:
        """Register a blueprint, each rule of it and of those nested in it as a WebSocket rule.

        Before there is an application it is recorded for those to come; later it goes to those
        that are served and do not have it.

        :param options: of :meth:`flask.Flask.register_blueprint`.
        """

        def register(app: Flask) -> None:
            blueprint.register(_WebSocketRules(app), options)  # type: ignore[arg-type]  # stands in for it

        name = options.get("name", blueprint.name)
        apps = self._served()
        for app in apps:
            if app is apps[-1] or (name not in app.blueprints and _is_open(app)):
                register(app)
        if not apps:
            self._recorded[blueprint, name] = register
        self.blueprints[name] = blueprint

    # -- users -----------------------------------------------------------------------------

    def user_id(self, f: Handler) -> Handler:
        """Register what returns the id of the user of the current request, None for nobody.

        It is asked in the request of each WebSocket and event stream, before that is accepted;
        what it raises becomes the response. An id is a ``str`` that is not empty, an ``int`` or a
        ``UUID``; all else is an error. :meth:`disconnect` and
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
            elif _code(known) is not _code(f):
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

    def disconnect(self, *, user: Any, code: int = 1008, reason: str = "") -> None:
        """Close the WebSockets and end the event streams of a user, in all processes.

        Takes and raises what :meth:`flask_sockets2.Publisher.disconnect` does.
        """
        self._channels().disconnect(user=user, code=code, reason=reason)

    # -- channels --------------------------------------------------------------------------

    def publish(
        self, channel: str, data: Any, *, key: str = "", transient: bool = False
    ) -> Position:
        """Publish a message to all who subscribe to a channel, in all processes.

        From handlers, views, other greenlets and threads; does not wait for any client. Takes and
        raises what :meth:`flask_sockets2.Publisher.publish` does.
        """
        return self._channels().publish(channel, data, key=key, transient=transient)

    def publish_many(self, messages: Iterable[tuple[str, Any]], *, key: str = "") -> list[Position]:
        """Publish many messages at the cost of few round trips.

        :param messages: pairs of a channel and the data.
        :param key: of each, as for :meth:`publish`.
        """
        return self._channels().publish_many(messages, key=key)

    def position(self, channel: str) -> Position:
        """Return the position of a channel's newest message, for a page to carry.

        A client that comes with it, ``ws.subscribe(channel, since=position)``, gets everything
        published after the page was rendered.
        """
        return self._channels().position(channel)

    def positions(self, channels: Sequence[str]) -> list[Position]:
        """Return the position of each channel, at the cost of one round trip where that can be."""
        return self._channels().positions(channels)

    def subscribers(self, channel: str) -> int:
        """Return how many connections subscribe to a channel, in all processes."""
        return self._channels().subscribers(channel)

    def present(self, channel: str) -> list[str]:
        """Return the identities that are in a channel, in all processes, sorted."""
        return self._channels().present(channel)

    def stats(self) -> dict[str, Any]:
        """Return what has been counted in this process, by route and channel prefix.

        See :mod:`flask_sockets2.stats` for the names.
        """
        state = state_of(self._app())
        return {
            "connections": len(state.connections),
            "streams": len(state.streams),
            **state.counters.as_dict(),
        }

    @property
    def publisher(self) -> Publisher:
        """What publishes for the current application, or the one that is served.

        It needs no context, so that another thread may be handed it.
        """
        return self._channels()

    def _channels(self) -> Channels:
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

    def test_client(self, app: Any) -> SocketsClient:
        """Return a client that opens WebSockets without a server.

        :param app: the application, or a client of ``app.test_client()`` to share its cookies.
        """
        from .testing import SocketsClient

        return SocketsClient(app)


def _newest_rule(app: Flask, endpoint: str | None) -> Rule:
    return list(app.url_map.iter_rules(endpoint))[-1]


def _is_open(app: Flask) -> bool:
    """Whether rules can still be added: Flask refuses once a request was served."""
    return not getattr(app, "_got_first_request", False)


def _code(f: Callable[..., Any]) -> Any:
    """What is the same of a function that a factory defines each time."""
    return getattr(f, "__code__", f)


def _make_view(handler: Callable[..., Any], options: dict[str, Any]) -> View:
    """Take our options out of those of a rule, and refuse the unknown.

    :raises TypeError: when there are such, naming what was probably meant.
    """
    known = OPTIONS | _RULE_OPTIONS
    for name in options.keys() - known:
        close = get_close_matches(name, known, 1)
        meant = f"; did you mean {close[0]!r}?" if close else ""
        raise TypeError(f"a WebSocket rule has no option {name!r}{meant}")
    return View(handler, **{name: options.pop(name) for name in OPTIONS & options.keys()})


def _free_endpoint(app: Flask, name: str) -> str:
    """A page and a WebSocket may be functions of the same name, as Flask-Sockets allowed."""
    free, number = name, 1
    while free in app.view_functions:
        number += 1
        free = f"{name}_websocket" if number == 2 else f"{name}_websocket{number}"
    return free


class _WebSocketRules:
    """An application to a blueprint, but its rules become WebSocket rules."""

    _app: Flask

    def __init__(self, app: Flask) -> None:
        object.__setattr__(self, "_app", app)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._app, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._app, name, value)

    def add_url_rule(
        self, rule: str, endpoint: str | None = None, view_func: Any = None, **options: Any
    ) -> None:
        if getattr(view_func, "__name__", "") == "send_static_file":
            self._app.add_url_rule(rule, endpoint, view_func, **options)
            return
        if set(options.get("methods") or ("GET",)) - {"GET", "HEAD", "OPTIONS"}:
            raise ValueError(
                f"{rule} has methods that a WebSocket rule cannot have; put pages into a blueprint "
                "of their own and register it with app.register_blueprint()"
            )
        view = _make_view(view_func, options)
        self._app.add_url_rule(rule, endpoint, view, websocket=True, **options)
        view.check_arguments(_newest_rule(self._app, endpoint))
