"""What stands around the application: a request for a WebSocket gets its connection and its end."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from flask import Flask
from werkzeug.http import HTTP_STATUS_CODES

from .connection import Connection
from .servers.environ import Takeover, take_over
from .wire.handshake import is_upgrade

__all__ = ["RAISE", "SocketMiddleware"]

logger = logging.getLogger("flask_sockets2.sockets")

RAISE = "flask_sockets2.raise"
"""Key of the environ: an exception of the handler is raised again (the test client wants it)."""


class SocketMiddleware:
    """What stands around the application: it gives a request for a WebSocket its connection and
    ends it when the application has returned.

    :param wsgi_app: the application's ``wsgi_app``.
    :param socket: its :class:`~flask_sockets2.Sockets`, kept as :attr:`ws`.
    """

    def __init__(self, wsgi_app: Any, app: Flask, socket: object) -> None:
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
            logger.error("exception in the handler of %.200r", ws.path, exc_info=exc)
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
            if ws.accepted and ws.listening and status.startswith("101"):
                ws.listen()
            elif ws.accepted:
                ws.finish(*_close_code(status))
            if ws.accepted:
                environ.pop("wsgi.websocket", None)
        return taken.release(start_response) if taken is not None else []


def _swallow(data: bytes) -> None:
    """Stand in for ``write``: the client has its response, the 101."""


def _close_code(status: str) -> tuple[int, str]:
    """Say with a close code what the application meant to say with an HTTP status."""
    if status.startswith("4"):
        code = status[:3]
        return 1008, f"{code} {HTTP_STATUS_CODES.get(int(code), '')}".strip()
    if status.startswith("5"):
        return 1011, ""
    return 1000, ""
