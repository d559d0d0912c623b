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
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakSet

from flask import Blueprint, Flask, Response, abort, current_app, request
from werkzeug.exceptions import HTTPException
from werkzeug.http import HTTP_STATUS_CODES
from werkzeug.routing import Map
from werkzeug.routing.exceptions import WebsocketMismatch

from .connection import Connection
from .exceptions import ConnectionClosed, HandshakeError, WebSocketError
from .extension import (
    EXTENSION,
    LIMITS,
    State,
    check_limit,
    limits_of,
    max_connections_of,
    state_of,
)
from .servers.environ import Takeover, take_over
from .wire.handshake import is_upgrade, origin_allowed, parse_upgrade, select_subprotocol

if TYPE_CHECKING:
    from .testing import SocketsClient

__all__ = ["SocketMiddleware", "Sockets"]

logger = logging.getLogger("flask_sockets2.sockets")

Handler = TypeVar("Handler", bound=Callable[..., Any])

RAISE = "flask_sockets2.raise"
"""Key of the environ: an exception of the handler is raised again (the test client wants it)."""

_OPTIONS = frozenset(("accept", "subprotocols", "origins")) | LIMITS

_NO_SOCKET = (
    "this server gives no access to the connection, so it cannot serve WebSockets; start the "
    "application with: gunicorn -k flask_sockets2.worker app:app"
)
_NOT_A_SOCKET = (
    "this URL serves pages, not WebSockets; register a handler for it with sockets.route()"
)


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
        self._recorded: list[Callable[[Flask], None]] = []
        self._map = Map()  # stands for the application's until there is one
        #: Blueprints that were registered here, by name.
        self.blueprints: dict[str, Blueprint] = {}
        self._apps: WeakSet[Flask] = WeakSet()
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Serve an application: what was recorded so far is registered in it, and what comes."""
        if EXTENSION not in app.extensions:
            app.extensions[EXTENSION] = State()
            # The bound method: calling an object that has __call__ goes through C, whose stack
            # each waiting greenlet keeps a copy of.
            app.wsgi_app = SocketMiddleware(app.wsgi_app, app, self).__call__  # type: ignore[method-assign]  # as Flask documents it
            app.register_error_handler(WebsocketMismatch, _mismatch)
        if app not in self._apps:
            self._apps.add(app)
            for name, converter in self._map.converters.items():
                if Map.default_converters.get(name) is not converter:
                    app.url_map.converters[name] = converter
            for register in self._recorded:
                register(app)

    @property
    def url_map(self) -> Map:
        """The application's ``url_map``; before there is one, a map to add converters to.

        :raises RuntimeError: when there is more than one application.
        """
        if not self._apps:
            return self._map
        if len(self._apps) > 1:
            raise RuntimeError(
                f"these sockets serve {len(self._apps)} applications, so there is no one url_map; "
                "use app.url_map"
            )
        return next(iter(self._apps)).url_map

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
        """Register a handler.

        :param endpoint: by default the handler's name.
        :param options: ``accept=False`` leaves accepting to the handler; ``subprotocols`` in order
            of preference; ``origins`` that may connect; limits as
            ``max_message_size`` or ``compression``; all others are Werkzeug's options of a rule.
        """
        if f is None:
            raise TypeError("add_url_rule() needs a handler: add_url_rule(rule, None, handler)")
        own = {name: options.pop(name) for name in _OPTIONS & options.keys()}
        view = _View(f, **own)

        def register(app: Flask) -> None:
            name = endpoint or _free_endpoint(app, getattr(f, "__name__", type(f).__name__))
            app.add_url_rule(rule, name, view, websocket=True, **options)

        self._register(register)

    def register_blueprint(self, blueprint: Blueprint, **options: Any) -> None:
        """Register a blueprint, each rule of it and of those nested in it as a WebSocket rule.

        :param options: of :meth:`flask.Flask.register_blueprint`.
        """

        def register(app: Flask) -> None:
            blueprint.register(_WebSocketRules(app), options)  # type: ignore[arg-type]  # stands in for it

        self._register(register)
        self.blueprints[options.get("name", blueprint.name)] = blueprint

    def _register(self, register: Callable[[Flask], None]) -> None:
        for app in self._apps:
            register(app)
        self._recorded.append(register)

    # -- testing ---------------------------------------------------------------------------

    def test_client(self, app: Any) -> SocketsClient:
        """Return a client that opens WebSockets without a server.

        :param app: the application, or a client of ``app.test_client()`` to share its cookies.
        """
        from .testing import SocketsClient

        return SocketsClient(app)


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
        own = {name: options.pop(name) for name in _OPTIONS & options.keys()}
        view = _View(view_func, **own)
        self._app.add_url_rule(rule, endpoint, view, websocket=True, **options)


class _View:
    """The view of a WebSocket rule: checks, accepts, calls the handler.

    :param handler: called with ``ws`` and the variables of the rule.
    """

    def __init__(
        self,
        handler: Callable[..., Any],
        *,
        accept: bool = True,
        subprotocols: Sequence[str] = (),
        origins: Iterable[str] | str | None = None,
        **limits: Any,
    ) -> None:
        update_wrapper(self, handler)
        self._handler = handler
        self._accept = accept
        self._subprotocols = _as_tuple(subprotocols) or ()
        self._origins = _as_tuple(origins)
        self._limits = {name: check_limit(name, value, name) for name, value in limits.items()}

    def __call__(self, **values: Any) -> Any:
        app, environ = current_app._get_current_object(), request.environ  # type: ignore[attr-defined]  # a proxy, as Flask documents it
        ws = environ.get("wsgi.websocket")
        if ws is None:
            abort(501, _NO_SOCKET)
        origin = environ.get("HTTP_ORIGIN")
        if origin is not None:  # else it is no browser
            self._check_origin(app, origin)
        handler = app.ensure_sync(self._handler)  # what it cannot run is refused before accept
        if isinstance(ws, Connection):
            self._prepare(app, ws)
        result = None
        try:
            # A call with ** goes through C, whose stack each waiting greenlet keeps a copy of.
            result = handler(ws, **values) if values else handler(ws)
        except OSError as exc:
            if not _is_end_of(ws, exc):
                raise
        if isinstance(ws, Connection) and not ws.accepted:
            if result is not None:  # a response: it does not want the connection
                return result
            ws.accept()
        return _Upgraded(status=101)

    def _check_origin(self, app: Flask, origin: str) -> None:
        allowed = self._origins
        if allowed is None:
            allowed = _as_tuple(app.config.get("SOCKETS_ALLOWED_ORIGINS"))
        if not origin_allowed(origin, request.host, allowed):
            logger.warning(
                "refused a WebSocket of origin %.200r on host %.200r; if that page may connect, "
                "add its origin to SOCKETS_ALLOWED_ORIGINS, or, behind a proxy, use ProxyFix",
                origin,
                request.host,
            )
            abort(403, "pages of this origin may not connect (SOCKETS_ALLOWED_ORIGINS)")

    def _prepare(self, app: Flask, ws: Connection) -> None:
        """See that the request is in order, and accept it where the handler need not."""
        try:
            ws.check()
        except HandshakeError as exc:
            raise _Refusal(exc) from exc
        ws.limits = limits_of(app.config, self._limits)
        connections = state_of(app).connections
        most = max_connections_of(app.config)
        if most is not None and len(connections) >= most:
            logger.warning("refused a WebSocket: SOCKETS_MAX_CONNECTIONS is reached (%s)", most)
            raise _Refusal(HandshakeError(503, "too many connections", (("Retry-After", "5"),)))
        ws.on_open, ws.on_end = connections.add, connections.discard
        if self._subprotocols:
            ws.subprotocol = select_subprotocol(ws.subprotocols, self._subprotocols)
        if self._accept:
            ws.accept()


class _Upgraded(Response):
    """What stands for the response of a request that became a WebSocket; it sends nothing."""

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        start_response(self.status, [])
        return ()


class _Refusal(HTTPException):
    """A request that is no valid handshake, as Flask's error handlers know errors."""

    def __init__(self, error: HandshakeError) -> None:
        super().__init__(error.description)
        self.code = error.status
        self._headers = error.headers

    @property
    def name(self) -> str:
        return {426: "Upgrade Required"}.get(self.code or 0, super().name)

    def get_headers(self, *args: Any, **kwargs: Any) -> list[tuple[str, str]]:
        return [*super().get_headers(*args, **kwargs), *self._headers]


def _mismatch(error: WebsocketMismatch) -> Any:
    """Answer a WebSocket rule asked for over HTTP, and the other way round.

    The application's error handlers for what the answer is, 426 for one, apply.
    """
    if request.headers.get("Upgrade") is None:
        upgrade = (("Upgrade", "websocket"), ("Connection", "Upgrade"))
        refusal = HandshakeError(
            426, "this URL serves WebSockets: open it with new WebSocket(url)", upgrade
        )
    else:
        refusal = HandshakeError(400, _NOT_A_SOCKET)
        try:
            parse_upgrade(request.environ)
        except HandshakeError as exc:
            refusal = exc
    return current_app.handle_http_exception(_Refusal(refusal))


def _is_end_of(ws: Any, exc: OSError) -> bool:
    """Tell whether an exception says no more than that this connection, no other, has ended."""
    if isinstance(exc, ConnectionClosed):
        return exc.connection is ws
    foreign = type(exc).__module__.startswith("geventwebsocket")
    return foreign and not isinstance(exc, WebSocketError) and bool(getattr(ws, "closed", False))


class SocketMiddleware:
    """What stands around the application: it gives a request for a WebSocket its connection and
    ends it when the application has returned.

    :param wsgi_app: the application's ``wsgi_app``.
    :param socket: its :class:`Sockets`, kept as :attr:`ws`.
    """

    def __init__(self, wsgi_app: Any, app: Flask, socket: Sockets) -> None:
        self.wsgi_app = wsgi_app
        self.app = app
        self.ws = socket

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        if not is_upgrade(environ):
            return self.wsgi_app(environ, start_response)
        ws = environ.get("wsgi.websocket")
        taken = None
        if ws is None:
            taken = take_over(environ)
            if taken is not None:
                ws = environ["wsgi.websocket"] = taken.connection
        if not isinstance(ws, Connection):
            return self.wsgi_app(environ, start_response)
        return self._serve(ws, taken, environ, start_response)

    def _serve(
        self,
        ws: Connection,
        taken: Takeover | None,
        environ: dict[str, Any],
        start_response: Callable[..., Any],
    ) -> Any:
        status = ""

        def start(
            given: str, headers: list[tuple[str, str]], exc_info: Any = None
        ) -> Callable[[bytes], Any]:
            nonlocal status
            status = given
            if ws.accepted:
                return _swallow
            headers = [*headers, ("Connection", "close")]  # frames may follow, not requests
            write: Callable[[bytes], Any] = (
                start_response(given, headers, exc_info)
                if exc_info
                else start_response(given, headers)
            )
            return write

        try:
            body = self.wsgi_app(environ, start)
        except Exception as exc:
            if not ws.accepted:
                raise
            status = "500"
            if environ.get(RAISE):
                raise
            logger.error("exception in the handler of %s", ws.path, exc_info=exc)
        except BaseException:  # the server kills its workers: there is no time to say goodbye
            if ws.accepted:
                ws.abort()
            raise
        else:
            if not ws.accepted:
                return body
            if hasattr(body, "close"):
                body.close()
        finally:
            if ws.accepted:
                ws.finish(*_close_code(status))
                environ.pop("wsgi.websocket", None)
        return taken.release(start_response) if taken is not None else []


def _swallow(data: bytes) -> None:
    """Stand in for ``write``: the client has its response, the 101."""


def _as_tuple(value: Iterable[str] | str | None) -> tuple[str, ...] | None:
    """What may be given as one or as several."""
    return (value,) if isinstance(value, str) else None if value is None else tuple(value)


def _close_code(status: str) -> tuple[int, str]:
    """Say with a close code what the application meant to say with an HTTP status."""
    if status.startswith("4"):
        code = status[:3]
        return 1008, f"{code} {HTTP_STATUS_CODES.get(int(code), '')}".strip()
    if status.startswith("5"):
        return 1011, ""
    return 1000, ""
