"""WebSockets on WSGI servers without WebSocket support: the package takes over the server's socket.

========================================  ==========================================================
key of the environ                        server
========================================  ==========================================================
``werkzeug.socket``                       ``flask run``, ``app.run()``
``gunicorn.socket``                       gunicorn's gthread and gevent workers
``gunicorn.sock``                         gunicorn's gevent_pywsgi worker
``wsgi.input``, gevent's file             gevent's pywsgi
========================================  ==========================================================

When the application returns, the server still writes a response head and closes its socket. By
then, the server's descriptor refers to a sink: a socket that discards all writes and reads as
ended. So the client sees neither.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Mapping, MutableMapping
from time import monotonic
from typing import Any

from ..connection.connection import Connection
from ..connection.lifecycle import Lifecycle
from ..transports.base import StreamTransport, read_ahead

__all__ = [
    "RAISE",
    "STOPPING",
    "Takeover",
    "client_socket",
    "close_after",
    "take_over",
]

logger = logging.getLogger("flask_sockets2.servers")

STOPPING = "flask_sockets2.stopping"
"""Environ key, set if our worker answers the request while the worker stops."""

RAISE = "flask_sockets2.raise"
"""Environ key, set by the test client so that it gets the exceptions of a handler."""

_CLOSING_TIME = 2.0  # seconds to close all connections when the process ends


class Takeover:
    """WebSocket connection on the socket of a server without WebSocket support.

    :param environ: WSGI environ of the request.
    :param sock: the server's socket of the request.
    """

    def __init__(self, environ: MutableMapping[str, Any], sock: Any) -> None:
        self._environ = environ
        self._sock = sock
        self.lifecycle = Lifecycle(environ, self._take)
        self.connection = Connection(self.lifecycle)

    def _take(self, send_timeout: float) -> tuple[StreamTransport, bytes]:
        transport = _transport_class(self._sock, self._environ)(
            self._sock, send_timeout=send_timeout
        )
        self._sock.setblocking(False)
        return transport, _early_bytes(_input(self._environ))

    def release(self) -> None:
        """Give the server the sink, which lasts as long as the server's socket: middleware may
        close the response's body before the server writes the body, and write any amount."""
        near, far_end = socket.socketpair()
        far_end.shutdown(socket.SHUT_WR)
        self._sock.setblocking(True)
        os.dup2(near.fileno(), self._sock.fileno(), inheritable=False)
        near.close()
        far_end.setblocking(False)
        former = self.lifecycle.transport
        transport = type(former)(far_end, send_timeout=former.send_timeout)
        with transport.lock:
            transport.start(_Sink(far_end))


class _Sink:
    """Far end of the sink: reads and discards everything that the server writes.

    :param sock: socket to close when the server has closed the other end.
    """

    owes = False

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def data_received(self, data: bytes) -> None:
        """Discard the bytes that the server has written."""

    def eof_received(self) -> None:
        self._sock.close()

    def write_drained(self) -> None:
        """Nothing is written."""

    write_stalled = write_strained = write_drained


def take_over(environ: MutableMapping[str, Any]) -> Takeover | None:
    """Return a connection on the server's own socket, None if the environ has no socket."""
    sock = client_socket(environ)
    return None if sock is None else Takeover(environ, sock)


def client_socket(environ: Mapping[str, Any]) -> Any:
    """Return the server's own socket of a request, None if the environ has no socket."""
    sock = next(
        (
            environ[key]
            for key in ("werkzeug.socket", "gunicorn.socket", "gunicorn.sock")
            if environ.get(key) is not None
        ),
        None,
    )
    if sock is None:
        stream = _input(environ)
        # If pywsgi takes the request for an upgrade, wsgi.input is the stream itself.
        raw = getattr(getattr(stream, "rfile", stream), "raw", None)
        sock = getattr(raw, "_sock", None)  # the socket of the file that makefile() returned
    return sock if hasattr(sock, "fileno") else None


def _input(environ: Mapping[str, Any]) -> Any:
    """Return the server's own stream of a request, without the wrappers of wsgiref's validator and
    Werkzeug's LintMiddleware."""
    stream: Any = environ.get("wsgi.input")
    while (inner := getattr(stream, "input", getattr(stream, "_stream", None))) is not None:
        stream = inner
    return stream


def _transport_class(sock: Any, environ: MutableMapping[str, Any]) -> type[StreamTransport]:
    if type(sock).__module__.startswith("gevent"):
        from ..transports.green import GreenTransport

        return GreenTransport
    from ..transports.threaded import ThreadedTransport, at_exit

    global _registered
    if not _registered:
        _registered = True
        at_exit(_close_all)
        if not environ.get("wsgi.multithread", True):
            logger.warning(
                "this server works on one request at a time, so an open WebSocket blocks all "
                "others; start it with threads, or with gunicorn -k flask_sockets2.worker"
            )
    return ThreadedTransport


_registered = False


def _close_all() -> None:
    """Close all connections at the end of the process, so that waiting handlers do not delay it."""
    deadline = monotonic() + _CLOSING_TIME
    for connection in Connection.opened():
        connection.close(1001, "server shutdown")
    for connection in Connection.opened():
        connection.wait_closed(max(0.0, deadline - monotonic()))
        connection.abort()


def close_after(environ: Mapping[str, Any], start_response: Callable[..., Any]) -> None:
    """Have the server close the connection after the response.

    gunicorn's own workers drop an application's header field ``Connection`` (PEP 3333) and keep the
    connection alive. If ``start_response`` is a method of gunicorn's response and not middleware's,
    the response can force the close. In any case the server reads no further request.
    """
    reader = getattr(_input(environ), "reader", None)
    for owner in (getattr(start_response, "__self__", None), getattr(reader, "req", None)):
        force_close = getattr(owner, "force_close", None)
        if force_close is not None:
            force_close()
    unreader = getattr(reader, "unreader", None)
    if unreader is not None:
        _early_bytes(_input(environ))
        unreader.chunk = _end_of_file


def _end_of_file(*_: object) -> bytes:
    return b""


def _early_bytes(stream: Any) -> bytes:
    """Return bytes that the server has read after the request's head; the socket does not block."""
    unreader = getattr(getattr(stream, "reader", None), "unreader", None)
    if unreader is not None:  # gunicorn's Body
        early: bytes = unreader.buf.getvalue()
        unreader.buf.seek(0)
        unreader.buf.truncate()
        return early
    return read_ahead(stream) if hasattr(stream, "peek") else b""
