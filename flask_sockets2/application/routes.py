"""Routes: WebSocket rules with their handlers, and their registration in applications.

Two routes have the same rule if the URL, the name of the endpoint and Werkzeug's options, such as
``host`` and ``subdomain``, are the same. An application factory registers its routes on each call,
so the same rule may be registered again. The origin of the known route decides the effect:

=============  =======================================  ========================================
origin         the route was registered                 another handler for the same rule
=============  =======================================  ========================================
``INHERITED``  for an earlier application               takes its place
``RECORDED``   before ``init_app()``                    is for a later application, if both are
                                                        the same function in the source
``OWN``        in this application                      is an ``AssertionError``, as in Flask
=============  =======================================  ========================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from difflib import get_close_matches
from enum import Enum, auto
from functools import partial
from inspect import isasyncgenfunction, iscoroutinefunction, signature
from types import FunctionType, MethodType
from typing import Any

from flask import Flask
from werkzeug.routing import Map, Rule

from ..connection.limits import Limits
from ..settings import read
from .settings import max_buffered_of
from .state import state_of
from .view import OPTIONS, View

__all__ = ["Origin", "Route", "WebSocketRules", "has_rule", "is_open", "overwriting", "source_of"]

# Options of Flask's add_url_rule() and Werkzeug's Rule.
_RULE_OPTIONS = {*signature(Rule).parameters, "provide_automatic_options"} - {
    "string",
    "endpoint",
    "websocket",
}


class Origin(Enum):
    """The origin of a route in an application; see the table above."""

    INHERITED = auto()
    RECORDED = auto()
    OWN = auto()


class Route:
    """A WebSocket rule with its handler, for current and later applications.

    :param rule: URL rule.
    :param endpoint: endpoint; None for the handler's name.
    :param handler: function called with ``ws``.
    :param options: options of the rule and of :class:`~flask_sockets2.application.view.View`.

    :ivar name: the endpoint, or the handler's name if there is no endpoint.
    :ivar taken: whether the route was offered to an application.
    :raises TypeError: if an option is unknown, or the handler is a coroutine function.
    """

    def __init__(
        self, rule: str, endpoint: str | None, handler: Any, options: dict[str, Any]
    ) -> None:
        self.rule = rule
        self.endpoint = endpoint
        self.name = endpoint or _name_of(handler)
        self.view = _make_view(handler, options)
        self.options = options  # only the rule's: _make_view() has removed the view's
        self.taken = False

    @property
    def origin(self) -> Origin:
        """The origin of the route in the next application."""
        return Origin.INHERITED if self.taken else Origin.RECORDED

    def same_rule(self, other: Route) -> bool:
        """Tell whether another route has the same rule."""
        return self.rule == other.rule and self.name == other.name and self.options == other.options

    def conflicts(self, other: Route) -> bool:
        """Tell whether an application cannot have both routes."""
        if self.view is other.view:
            return False
        return self.same_rule(other) or (
            self.endpoint is not None and self.endpoint == other.endpoint
        )

    def register(self, app: Flask, origin: Origin = Origin.OWN) -> bool:
        """Add the route to an application, or replace the handler of an inherited route.

        :returns: False if the route is not for this application, but for a later one.
        :raises AssertionError: if another handler has the rule or the endpoint.
        :raises TypeError: if the handler does not take the arguments.
        :raises ValueError: if one connection may buffer more than SOCKETS_MAX_BUFFERED.
        """
        rules = state_of(app).rules
        known = next((each for each in rules if each.route.same_rule(self)), None)
        if known is None:
            endpoint = self.endpoint or _free_endpoint(app, self.name, self.view)
            _add(app, self.rule, endpoint, self.view, self.options)
            rules.append(_Registered(self, endpoint, origin))
            return True
        if known.route.view is self.view or known.route.view.same(self.view):
            return True
        if origin is not Origin.OWN or known.origin is Origin.OWN:
            raise overwriting(known.endpoint)
        if known.origin is Origin.INHERITED and is_open(app):
            self._replace(app, known)
            return True
        if source_of(known.route.view.handler) != source_of(self.view.handler):
            raise overwriting(known.endpoint)
        return False

    def _replace(self, app: Flask, known: _Registered) -> None:
        for other in state_of(app).rules:
            if (
                other.endpoint == known.endpoint
                and other.origin is not Origin.INHERITED
                and other.route.view is not self.view
            ):
                raise overwriting(known.endpoint)
        self.view.check_arguments(_bound_rule(app, self.rule, self.options))
        app.view_functions[known.endpoint] = self.view
        known.route, known.origin = self, Origin.OWN


class _Registered:
    """The registration of a route in one application."""

    __slots__ = ("endpoint", "origin", "route")

    def __init__(self, route: Route, endpoint: str, origin: Origin) -> None:
        self.route = route
        self.endpoint = endpoint
        self.origin = origin


def has_rule(app: Flask, route: Route) -> bool:
    """Tell whether an application has the rule of a route, with any handler."""
    return any(each.route.same_rule(route) for each in state_of(app).rules)


def is_open(app: Flask) -> bool:
    """Tell whether rules can still be added; Flask refuses after the first request."""
    return not getattr(app, "_got_first_request", False)


def overwriting(endpoint: str) -> AssertionError:
    """Return Flask's error for two handlers under one endpoint, with the remedy."""
    return AssertionError(
        f"View function mapping is overwriting an existing endpoint function: {endpoint}; "
        "give one of the two handlers another endpoint, as in @sockets.route(rule, endpoint=name)"
    )


def _add(app: Flask, rule: str, endpoint: str, view: View, options: dict[str, Any]) -> None:
    """Add a rule after all checks, so that an error leaves nothing behind."""
    view.check_arguments(_bound_rule(app, rule, options))
    max_buffered_of(app.config, read(Limits, app.config, view.limits))
    # Flask raises as well, but only after it has added the rule, which would run the other view.
    if app.view_functions.get(endpoint, view) is not view:
        raise overwriting(endpoint)
    app.add_url_rule(rule, endpoint, view, websocket=True, **options)


def _bound_rule(app: Flask, rule: str, options: dict[str, Any]) -> Rule:
    """Return a rule bound to a map of its own, so that its variables are known."""
    given = {**options}
    given.pop("provide_automatic_options", None)
    made = app.url_rule_class(rule, websocket=True, **given)
    alone = Map(host_matching=app.url_map.host_matching)
    alone.converters = app.url_map.converters
    alone.add(made)
    return made


def _free_endpoint(app: Flask, name: str, view: View) -> str:
    """Return an endpoint: the name, with a suffix if another function has that name. As in
    Flask-Sockets, a page and a WebSocket may be functions of the same name."""
    free, number = name, 1
    while app.view_functions.get(free, view) is not view:
        number += 1
        free = f"{name}_websocket" if number == 2 else f"{name}_websocket{number}"
    return free


def _make_view(handler: Any, options: dict[str, Any]) -> View:
    """Return a view for a handler, and remove the view's options from ``options``.

    :raises TypeError: if an option is unknown (the error suggests a name) or the handler async.
    """
    known = OPTIONS | _RULE_OPTIONS
    for name in options.keys() - known:
        close = get_close_matches(name, known, 1)
        meant = f"; did you mean {close[0]!r}?" if close else ""
        raise TypeError(f"a WebSocket rule has no option {name!r}{meant}")
    if any(iscoroutinefunction(each) or isasyncgenfunction(each) for each in _parts(handler)):
        raise TypeError(
            f"the handler {_name_of(handler)} is async, but handlers are plain functions: its "
            "event loop would stop all other connections of the process; write 'def' in place of "
            "'async def', and call ws.receive() and ws.send() without await"
        )
    return View(handler, **{name: options.pop(name) for name in OPTIONS & options.keys()})


# -- handlers ----------------------------------------------------------------------------------


def _name_of(handler: Any) -> str:
    name: str = getattr(handler, "__name__", type(handler).__name__)
    return name


def _parts(handler: Any) -> Iterator[Any]:
    """Yield a handler, then the functions called by a decorator, ``partial``, method or callable
    object."""
    seen: list[Any] = []
    waiting = [handler]
    while waiting:
        part = waiting.pop()
        if any(part is each for each in seen):
            continue
        seen.append(part)
        yield part
        if isinstance(part, partial):
            waiting.append(part.func)
        elif isinstance(part, MethodType):
            waiting.append(part.__func__)
        else:
            if not isinstance(part, FunctionType | type):
                call = getattr(type(part), "__call__", None)  # noqa: B004 (it is looked into)
                waiting += [call] if isinstance(call, FunctionType) else []
            wrapped = getattr(part, "__wrapped__", None)
            waiting += [wrapped] if callable(wrapped) else []


def source_of(f: Callable[..., Any]) -> list[Any]:
    """Return the code of a function, which is the same each time that a factory defines it."""
    return [getattr(part, "__code__", type(part)) for part in _parts(f)]


class WebSocketRules:
    """Stands in for an application when a blueprint registers: rules become WebSocket rules."""

    _app: Flask
    _views: list[View]

    def __init__(self, app: Flask) -> None:
        object.__setattr__(self, "_app", app)
        object.__setattr__(self, "_views", [])

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
        made = _make_view(view_func, options)
        # One handler may have several rules, and Flask compares views by identity.
        view = next((each for each in self._views if each.same(made)), made)
        self._views.append(view)
        _add(self._app, rule, endpoint or _name_of(view_func), view, options)
