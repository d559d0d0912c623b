"""The view of a WebSocket rule: it checks the request, accepts it and calls the handler.

Whatever refuses does so before the 101 response, as an ordinary HTTP error of Flask's.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable
from functools import update_wrapper
from inspect import signature
from typing import Any

from flask import Flask, Response, abort, current_app, request
from werkzeug.exceptions import HTTPException
from werkzeug.routing import Rule
from werkzeug.routing.exceptions import WebsocketMismatch

from .connection import Connection
from .exceptions import BrokerError, ConnectionClosed, HandshakeError, WebSocketError
from .extension import state_of
from .settings import LIMITS, check_limit, limits_of
from .wire.handshake import origin_allowed, parse_upgrade, select_subprotocol

__all__ = ["OPTIONS", "Refusal", "View", "check_origin", "check_site", "mismatch"]

logger = logging.getLogger("flask_sockets2.sockets")

OPTIONS = frozenset(("accept", "subprotocols", "origins")) | LIMITS
"""Options of a route that are ours; all others are Werkzeug's."""

_NO_BROKER = "messages cannot be delivered just now; connect again"
_LATER = (("Retry-After", "5"),)

_NO_SOCKET = (
    "this server gives no access to the connection, so it cannot serve WebSockets; start the "
    "application with: gunicorn -k flask_sockets2.worker app:app"
)
_NOT_A_SOCKET = (
    "this URL serves pages, not WebSockets; register a handler for it with sockets.route()"
)

_ORIGIN = re.compile(
    r"\*|null|https?://(\*\.)?[^/\s*,:]+(:\d+)?/?|https?://\[[0-9a-f:.]+\](:\d+)?/?"
)


class View:
    """The view of a WebSocket rule.

    :param handler: called with ``ws`` and the variables of the rule.
    :param accept: accept before the handler is called; else it does, or refuses.
    :param subprotocols: that the application speaks, in order of preference.
    :param origins: whose pages may connect, None for the application's setting.
    :param limits: of :class:`~flask_sockets2.Limits`, in place of the application's.
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
        self.origins = None if origins is None else _origins(origins, "origins")
        self.limits = {name: check_limit(name, value, name) for name, value in limits.items()}

    def check_arguments(self, rule: Rule) -> None:
        """See that the handler takes ``ws`` first, and variables of the rule by name after it.

        One that it does not take is no error: a ``url_value_preprocessor`` may keep it.

        :raises TypeError: when it does not, saying how it is called.
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
            pass  # written in C, it has no signature to look at

    def __call__(self, **values: Any) -> Any:
        app, environ = current_app._get_current_object(), request.environ  # type: ignore[attr-defined]  # a proxy, as Flask documents it
        ws = environ.get("wsgi.websocket")
        if ws is None:
            abort(501, _NO_SOCKET)
        check_origin(app, self.origins)
        handler = app.ensure_sync(self.handler)  # what it cannot run is refused before accept
        ours = isinstance(ws, Connection)
        result = None
        try:
            if ours:
                self._prepare(app, ws)
            elif not self.accept or self.subprotocols:
                logger.warning("%s", _foreign(ws))
            # A call with ** goes through C, whose stack each waiting greenlet keeps a copy of.
            result = handler(ws, **values) if values else handler(ws)
            if ours and not ws.accepted:
                if result is not None:  # a response: it does not want the connection
                    return result
                ws.accept()
        except HandshakeError as exc:
            if not ours or ws.accepted:
                raise
            raise Refusal(exc) from exc
        except BrokerError as exc:
            if not ours:
                raise
            logger.error("a WebSocket of %s has to come back later: %s", request.url_rule, exc)
            if not ws.accepted:
                raise Refusal(HandshakeError(503, _NO_BROKER, _LATER)) from exc
            ws.close(1013, _NO_BROKER)
        except OSError as exc:
            if not _is_end_of(ws, exc):
                raise
        if result is not None:
            logger.warning(
                "the handler of %s returned a value, but its connection was accepted, so no "
                "response can be sent; to answer with one, register it with accept=False",
                request.url_rule,
            )
        return _Upgraded(status=101)

    def _prepare(self, app: Flask, ws: Connection) -> None:
        """See that the request is in order, and accept it where the handler need not."""
        ws.check()
        ws.limits = limits_of(app.config, self.limits)
        state = state_of(app)
        guest = state.expect(ws.limits)
        ws.on_open = lambda connection: state.admit(connection, guest)
        ws.on_end = state.ended
        ws.counters = state.counters.of_route(str(request.url_rule))
        ws.channels = state.channels
        if self.subprotocols:
            ws.subprotocol = select_subprotocol(ws.subprotocols, self.subprotocols)
        if self.accept:
            ws.accept()


def check_origin(app: Flask, allowed: Iterable[str] | None = None) -> None:
    """See whether the page that has sent the current request may connect.

    :param allowed: origins, in place of the application's setting.
    :raises werkzeug.exceptions.Forbidden: when it is of another origin.
    """
    origin = request.environ.get("HTTP_ORIGIN")
    if origin is None:  # it is no browser, or a page of this origin that asks by GET
        return
    setting = "origins= of its route"
    if allowed is None:
        setting = "SOCKETS_ALLOWED_ORIGINS"
        given = app.config.get(setting)
        allowed = None if given is None else _origins(given, setting)
    if not origin_allowed(origin, request.host, allowed, secure=request.is_secure):
        state_of(app).seldom_log(logger).warning(
            "origin",
            "refused a WebSocket of origin %.200r on host %.200r; if that page may connect, "
            "add its origin to %s, or, behind a proxy, use ProxyFix",
            origin,
            request.host,
            setting,
            extra={
                "event": "refused",
                "reason": "origin",
                "origin": origin[:200],
                "host": request.host[:200],
            },
        )
        abort(403, f"pages of this origin may not connect ({setting})")


def check_site() -> None:
    """See that the current request for a stream is not made by a page that may not connect.

    CORS keeps such a page from reading the stream, not from holding it open with the cookies of its
    visitor, whose limits it would use up. One in mode no-cors, as for an image, has no origin.

    :raises werkzeug.exceptions.Forbidden: when it is.
    """
    check_origin(current_app)
    if "Origin" not in request.headers and request.headers.get("Sec-Fetch-Site") == "cross-site":
        abort(403, "pages of other sites ask in mode cors")


def _as_tuple(value: Iterable[str] | str) -> tuple[str, ...]:
    """What may be given as one or as several."""
    return (value,) if isinstance(value, str) else tuple(value)


def _origins(given: Iterable[str] | str, called: str) -> tuple[str, ...]:
    """Return a list of origins; a string may hold several, as an environment variable does.

    :raises ValueError: when one can match no page, saying what an origin is.
    """
    origins = tuple(given.replace(",", " ").split()) if isinstance(given, str) else tuple(given)
    for origin in origins:
        if not isinstance(origin, str) or not _ORIGIN.fullmatch(origin.lower()):
            raise ValueError(
                f"{called}: {origin!r} is no origin; expected 'https://example.com', "
                "'https://example.com:8443', 'https://*.example.com' or '*'"
            )
    return origins


def _foreign(ws: Any) -> str:
    return (
        f"this server's {type(ws).__module__} has accepted before the application was asked, so "
        "accept=False and subprotocols have no effect; use gunicorn -k flask_sockets2.worker"
    )


class _Upgraded(Response):
    """What stands for the response of a request that became a WebSocket; it sends nothing."""

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        start_response(self.status, [])
        return ()


class Refusal(HTTPException):
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


def mismatch(error: WebsocketMismatch) -> Any:
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
    return current_app.handle_http_exception(Refusal(refusal))


def _is_end_of(ws: Any, exc: OSError) -> bool:
    """Tell whether an exception says no more than that this connection, no other, has ended."""
    if isinstance(exc, ConnectionClosed):
        return exc.connection is ws
    foreign = type(exc).__module__.startswith("geventwebsocket")
    return foreign and not isinstance(exc, WebSocketError) and bool(getattr(ws, "closed", False))
