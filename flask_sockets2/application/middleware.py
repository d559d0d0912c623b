"""WSGI middleware around the application: opens and ends the connection of each WebSocket."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from flask import Flask
from werkzeug.http import HTTP_STATUS_CODES

from ..connection.connection import Connection, lifecycle_of
from ..exceptions import HandshakeError
from ..servers.takeover import RAISE, Takeover, close_after, take_over
from ..throttled_log import ThrottledLog
from ..wire.handshake import is_mount_point, is_upgrade
from .sessions import mark_ended, serving

__all__ = ["SocketMiddleware"]

logger = logging.getLogger("flask_sockets2.sockets")
_seldom = ThrottledLog(logger)


_SWITCHING = "101 Switching Protocols"
# Other middleware and wsgiref's validator expect a Content-Type. The field is not sent.
_CONTENT_TYPE = ("Content-Type", "application/octet-stream")


class SocketMiddleware:
    """Gives each WebSocket request its connection, and ends it when the application has returned.

    Once a connection is accepted, its request saves no session.

    The middleware calls ``start_response`` of the server, or of middleware in between, once
    (PEP 3333). That call comes just before the 101 is sent, so other middleware sees the 101 when
    the connection begins, not hours later. Our own handler sends the header fields it has added.

    :param wsgi_app: the application's ``wsgi_app``.
    :param socket: the application's :class:`~flask_sockets2.Sockets`, kept as :attr:`ws`.
    """

    def __init__(self, wsgi_app: Any, app: Flask, socket: object) -> None:
        self.wsgi_app = wsgi_app
        self.app = app
        self.ws = socket

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        if not is_mount_point(environ.get("SCRIPT_NAME", "")):
            return _refuse_mount_point(environ, start_response)
        if not is_upgrade(environ):
            return self.wsgi_app(environ, start_response)
        ws = environ.get("wsgi.websocket")
        taken = None
        if ws is None:
            taken = take_over(environ)
            if taken is not None:
                ws = environ["wsgi.websocket"] = taken.connection
        with serving(environ):
            if isinstance(ws, Connection):
                return self._serve(ws, taken, environ, start_response)
            try:
                return self.wsgi_app(environ, start_response)
            finally:
                if ws is not None:  # gevent-websocket removes its own from the environ
                    mark_ended(environ)

    def _serve(
        self,
        ws: Connection,
        taken: Takeover | None,
        environ: dict[str, Any],
        start_response: Callable[..., Any],
    ) -> Any:
        status = ""
        announced = False
        lifecycle = lifecycle_of(ws)

        def announce(fields: list[tuple[str, str]]) -> None:
            nonlocal announced
            announced = True
            if all(name.lower() != "content-type" for name, _ in fields):
                fields = [*fields, _CONTENT_TYPE]
            start_response(_SWITCHING, fields)

        def start(
            given: str, headers: list[tuple[str, str]], exc_info: Any = None
        ) -> Callable[[bytes], Any]:
            nonlocal status
            status = given
            if lifecycle.accepted:
                return _swallow
            headers = [*headers, ("Connection", "close")]  # frames may follow, not requests
            close_after(environ, start_response)
            if announced and not exc_info:  # after all, the 101 was not sent
                exc_info = (HandshakeError, HandshakeError(503, "the 101 was not sent"), None)
            write: Callable[[bytes], Any] = (
                start_response(given, headers, exc_info)
                if exc_info
                else start_response(given, headers)
            )
            return write

        opening = lifecycle.opening
        if opening is not None:  # else middleware has accepted the connection
            opening.announce = announce
        try:
            body = self.wsgi_app(environ, start)
            if not status:
                body = _Begun(body)
            if lifecycle.accepted:
                _exhaust(body)
        except Exception as exc:
            if not lifecycle.accepted:
                raise
            status = "500"
            if environ.get(RAISE):
                raise
            logger.error("exception in the handler of %.200r", ws.path, exc_info=exc)
        except BaseException:  # the server kills the worker: no time for a closing handshake
            if lifecycle.accepted:
                ws.abort()
            raise
        else:
            if not lifecycle.accepted:
                return body
        finally:
            if opening is not None:
                opening.announce = None
            code, reason = _close_code(status)
            if lifecycle.accepted and lifecycle.returned and code != 1000 and lifecycle.open:
                _seldom.warning(
                    f"answered {code}",
                    "closes %.200r with %s: an after_request function or middleware answered its "
                    "handler's 101 with %.100s; let a response with status_code 101 pass",
                    ws.path,
                    code,
                    status,
                )
            if lifecycle.accepted and ws.listening and lifecycle.returned and code == 1000:
                lifecycle.listen()
            elif lifecycle.accepted:
                lifecycle.finish(code, reason)
            if lifecycle.accepted:
                environ.pop("wsgi.websocket", None)
                mark_ended(environ)
        if taken is not None:
            taken.release()
        if not announced:  # middleware accepted the connection before the application ran
            announce([])
        return []


class _Begun(Iterator[bytes]):
    """A response body whose first piece is already read.

    Only then does middleware that is a generator call the application.
    """

    def __init__(self, body: Iterable[bytes]) -> None:
        self._body = body
        try:
            self._rest = iter(body)
            self._first = list(islice(self._rest, 1))
        except BaseException:  # the server does not get the body, so it cannot close it
            _close(body)
            raise

    def __next__(self) -> bytes:
        return self._first.pop() if self._first else next(self._rest)

    def close(self) -> None:
        _close(self._body)


def _exhaust(body: Iterable[bytes]) -> None:
    """Iterate and close a body as a server does, but send nothing."""
    try:
        for _ in body:
            pass
    finally:
        _close(body)


def _close(body: Any) -> None:
    close = getattr(body, "close", None)
    if close is not None:
        close()


def _refuse_mount_point(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """Refuse a request if its SCRIPT_NAME would lead all URLs of the page to another host.

    gunicorn's own workers accept SCRIPT_NAME from a client if a proxy on the same machine passes
    header fields with underscores on.
    """
    _seldom.warning(
        "SCRIPT_NAME",
        "refused a request whose SCRIPT_NAME is not a path such as /app: have the proxy in front "
        "drop the header field SCRIPT_NAME, or start gunicorn with --forwarder-headers ''",
    )
    body = b"SCRIPT_NAME must be a path such as /app\n"
    headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
    close_after(environ, start_response)  # frames may follow
    start_response("400 Bad Request", [*headers, ("Connection", "close")])
    return [body]


def _swallow(data: bytes) -> None:
    """Stand in for ``write``: the client has its response, the 101."""


def _close_code(status: str) -> tuple[int, str]:
    """Return the close code and reason for an HTTP status of the application."""
    if status.startswith("4"):
        code = status[:3]
        return 1008, f"{code} {HTTP_STATUS_CODES.get(int(code), '')}".strip()
    if status.startswith("5"):
        return 1011, ""
    return 1000, ""
