"""The view of a WebSocket rule: it checks the request, accepts it and calls the handler.

A refusal comes before the 101 response, as an ordinary HTTP error of Flask.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import update_wrapper
from inspect import iscoroutine, signature
from types import MethodType
from typing import Any

from flask import Flask, abort, current_app, request, session
from werkzeug.exceptions import HTTPException
from werkzeug.routing import Rule
from werkzeug.routing.exceptions import WebsocketMismatch

from ..connection.connection import Connection, lifecycle_of
from ..connection.limits import Limits
from ..exceptions import BrokerError, ConnectionClosed, HandshakeError, WebSocketError
from ..settings import read, rows_of
from ..wire.handshake import named_subprotocol, parse_upgrade, select_subprotocol
from ..wire.origins import parse_origins
from .origins import check_origin, entries
from .sessions import guard_sessions
from .state import state_of

__all__ = ["OPTIONS", "Refusal", "View", "mismatch"]

logger = logging.getLogger("flask_sockets2.sockets")

_LIMITS = rows_of(Limits)
OPTIONS = frozenset(("accept", "subprotocols", "origins")) | _LIMITS.keys()
"""Our options of a route; all others are Werkzeug's."""

_NO_BROKER = "messages cannot be delivered just now; connect again"
_LATER = (("Retry-After", "5"),)

_NO_SOCKET = (
    "this server gives no access to the connection, so it cannot serve WebSockets; start the "
    "application with: gunicorn -k flask_sockets2.worker app:app"
)
_NOT_A_SOCKET = (
    "this URL serves pages, not WebSockets; register its handler with sockets.route(), or the "
    "blueprint of the handler with sockets.register_blueprint()"
)

_NO_TYPE = "application/octet-stream"

_COROUTINE = (
    "the handler returned a coroutine, which nothing runs; call ws.receive() and ws.send() in a "
    "plain function"
)


class View:
    """The view of a WebSocket rule.

    :param handler: function called with ``ws`` and the variables of the rule.
    :param accept: accept before the handler is called; if False, the handler accepts or refuses.
    :param subprotocols: subprotocols that the application speaks, in order of preference.
    :param origins: origins of the pages that may connect, None for the application's setting.
    :param limits: fields of :class:`~flask_sockets2.Limits`, in place of the application's.
    """

    def __init__(
        self,
        handler: Callable[..., Any],
        *,
        accept: bool = True,
        subprotocols: Iterable[str] | str = (),
        origins: Iterable[str] | str | None = None,
        **limits: Any,
    ) -> None:
        update_wrapper(self, handler)
        self.handler = handler
        self.accept = accept
        self.subprotocols = _as_tuple(subprotocols)
        self.origins = None if origins is None else entries(origins, "origins")
        self._allowed = None if self.origins is None else parse_origins(self.origins)
        self.limits = {name: _LIMITS[name].check(value, name) for name, value in limits.items()}
        self._warned = False  # the log has warned that the handler writes into the session

    def same(self, other: View) -> bool:
        """Tell whether another view calls the same handler in the same way."""
        one, two = self.handler, other.handler
        if one is not two and not (isinstance(one, MethodType) and one == two):
            return False
        return (self.accept, self.subprotocols, self.origins, self.limits) == (
            other.accept,
            other.subprotocols,
            other.origins,
            other.limits,
        )

    def check_arguments(self, rule: Rule) -> None:
        """Check that the handler takes ``ws`` first, then variables of the rule by name.

        A variable may be missing in the handler: a ``url_value_preprocessor`` may remove it.

        :raises TypeError: if the handler does not; the error shows how the handler is called.
        """
        names = sorted(rule.arguments)
        try:
            parameters = signature(self.handler)
            taken = [name for name in names if name in parameters.parameters]
            parameters.bind_partial(None, **dict.fromkeys(taken))
        except TypeError as exc:
            name = getattr(self.handler, "__name__", type(self.handler).__name__)
            called = ", ".join(["ws", *names])
            raise TypeError(
                f"the handler of {rule} is called as {name}({called}), but: {exc}"
            ) from exc
        except ValueError:
            pass  # a handler written in C has no signature

    def __call__(self, **values: Any) -> Any:
        app, environ = current_app._get_current_object(), request.environ  # type: ignore[attr-defined]  # a proxy, as Flask documents it
        ws = environ.get("wsgi.websocket")
        if ws is None:
            abort(501, _NO_SOCKET)
        check_origin(app, self._allowed)
        guard_sessions(app)
        handler = self.handler
        ours = isinstance(ws, Connection)
        result = None
        before = None
        try:
            if ours:
                self._prepare(app, ws)
            elif not self.accept or self.subprotocols:
                logger.warning("%s", _foreign(ws))
            if app.debug and not self._warned:
                before = _copy_of_session()
            # A call with ** goes through C, and each waiting greenlet keeps a copy of the C stack.
            result = handler(ws, **values) if values else handler(ws)
            if iscoroutine(result):
                result.close()
                raise TypeError(_COROUTINE)
            if ours and not ws.accepted:
                if result is not None:  # a response: the handler refuses
                    return result
                ws.accept()
        except HandshakeError as exc:
            if not ours or ws.accepted:
                raise
            raise Refusal(exc) from exc
        except BrokerError as exc:
            if not ours:
                raise
            state_of(app).seldom_log(logger).failure(
                "broker",
                "broker unavailable, told a WebSocket of %s to connect again: %s",
                request.url_rule,
                exc,
            )
            if not ws.accepted:
                raise Refusal(HandshakeError(503, _NO_BROKER, _LATER)) from exc
            ws.close(1013, _NO_BROKER)
        except OSError as exc:
            if not _is_end_of(ws, exc):
                raise
        finally:
            guard_sessions(app)  # again: the application may have set another interface
            if before is not None and (not ours or ws.accepted):
                self._check_session(before)
        if result is not None:
            logger.warning(
                "the handler of %s returned a value, but its connection was accepted, so no "
                "response can be sent; to answer with one, register it with accept=False",
                request.url_rule,
            )
        if ours:
            lifecycle_of(ws).returned = True
        # Hooks and middleware see the 101 like any other response, but the server does not send it.
        return app.response_class(status=101, headers=(("Content-Type", _NO_TYPE),))

    def _check_session(self, before: tuple[dict[str, Any], bool]) -> None:
        """Warn once if a handler writes into the session, because nothing of that is saved."""
        (values, was_modified), (now, modified) = before, _copy_of_session()
        if now == values and modified == was_modified:
            return
        self._warned = True
        missing = object()
        changed = [
            repr(name)
            for name in {**values, **now}
            if values.get(name, missing) != now.get(name, missing)
        ]
        logger.warning(
            "the handler of %s wrote into the session (%.200s), but nothing of a session is saved "
            "once the connection is accepted; write in a view, which the page requests by fetch()",
            request.url_rule,
            ", ".join(changed) or "session.modified",
        )

    def _prepare(self, app: Flask, ws: Connection) -> None:
        """Check the request and prepare the connection; accept unless the handler does."""
        ws.check()
        lifecycle = lifecycle_of(ws)
        lifecycle.environ = request.environ  # middleware may have copied the server's environ
        limits = read(Limits, app.config, self.limits)
        state = state_of(app)
        guest = state.expect(limits)
        opening = lifecycle.opening
        if opening is not None:  # else middleware has accepted the connection
            opening.limits = limits
            opening.on_open = lambda connection: state.admit(connection, guest)
            opening.budget = state.budget
            opening.counters = state.counters.of_route(str(request.url_rule))
        lifecycle.on_end = state.ended
        lifecycle.channels = state.channels
        if self.subprotocols:
            lifecycle.subprotocol = select_subprotocol(ws.subprotocols, self.subprotocols)
        elif ws.subprotocol is None:
            lifecycle.subprotocol = named_subprotocol(app, request.path, ws.subprotocols)
        if self.accept:
            ws.accept()


def _copy_of_session() -> tuple[dict[str, Any], bool]:
    """Return a copy of the session's values, and whether the session counts as modified."""
    return dict(session), getattr(session, "modified", True)


def _as_tuple(value: Iterable[str] | str) -> tuple[str, ...]:
    """Return one value or several values as a tuple."""
    return (value,) if isinstance(value, str) else tuple(value)


def _foreign(ws: Any) -> str:
    return (
        f"this server's {type(ws).__module__} has accepted before the application was asked, so "
        "accept=False and subprotocols have no effect; use gunicorn -k flask_sockets2.worker"
    )


class Refusal(HTTPException):
    """Refuses a handshake as an HTTP error, so that Flask's error handlers apply."""

    def __init__(self, error: HandshakeError) -> None:
        super().__init__(error.description)
        self.code = error.status
        self._headers = error.headers

    @property
    def name(self) -> str:
        return {426: "Upgrade Required"}.get(self.code or 0, super().name)

    def get_headers(self, *args: Any, **kwargs: Any) -> list[tuple[str, str]]:
        return [*super().get_headers(*args, **kwargs), *self._headers]


def mismatch(error: WebsocketMismatch) -> Any:
    """Answer a plain HTTP request for a WebSocket rule, or a handshake for a page's rule.

    The application's error handlers for the status of the answer apply, for example for 426.
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
    return current_app.handle_http_exception(Refusal(refusal))


def _is_end_of(ws: Any, exc: OSError) -> bool:
    """Tell whether an exception only means that this connection, not another one, has ended."""
    if isinstance(exc, ConnectionClosed):
        return exc.connection is ws
    foreign = type(exc).__module__.startswith("geventwebsocket")
    return foreign and not isinstance(exc, WebSocketError) and bool(getattr(ws, "closed", False))
