"""The connection of a WSGI environ whose server knows no WebSocket: its socket is taken over.

========================================  ==========================================================
key of the environ                        server
========================================  ==========================================================
``werkzeug.socket``                       ``flask run``, ``app.run()``
``gunicorn.socket``                       gunicorn's gthread and gevent workers
``gunicorn.sock``                         gunicorn's gevent_pywsgi worker
``wsgi.input``, gevent's file             gevent's pywsgi
========================================  ==========================================================

The server goes on after the application has returned: it writes a response head and closes what
it believes to be the client. It gets a sink instead: a socket that swallows what is written and
reads as ended.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from time import monotonic
from typing import Any

from ..connection import Connection
from ..transports.base import StreamTransport, Waiter, read_ahead

__all__ = ["STOPPING", "Takeover", "client_socket", "take_over", "waiter"]

logger = logging.getLogger("flask_sockets2.servers")

STOPPING = "flask_sockets2.stopping"
"""In the environ of a request that our worker answers while it stops."""

_CLOSING_TIME = 2.0  # seconds that connections get to close when the process ends


class Takeover:
    """A connection on the socket of a server that knows no WebSocket.

    :param environ: WSGI environ of the request.
    :param sock: the server's socket of it.
    """

    def __init__(self, environ: MutableMapping[str, Any], sock: Any) -> None:
        self._environ = environ
        self._sock = sock
        self._far_end: socket.socket | None = None
        self.connection = Connection(environ, self._take)

    def _take(self, send_timeout: float) -> tuple[StreamTransport, bytes]:
        transport = _transport_class(self._sock, self._environ)(
            self._sock, send_timeout=send_timeout
        )
        self._sock.setblocking(False)
        return transport, _early_bytes(self._environ["wsgi.input"])

    def release(self, start_response: Callable[..., Any]) -> Iterator[bytes]:
        """Give the server the sink, and the empty response that it writes there."""
        near, self._far_end = socket.socketpair()
        self._far_end.shutdown(socket.SHUT_WR)
        self._sock.setblocking(True)
        os.dup2(near.fileno(), self._sock.fileno(), inheritable=False)
        near.close()
        start_response("101 Switching Protocols", [("Connection", "close")])
        return _Released(self._far_end)


class _Released(Iterator[bytes]):
    """The empty body of a response that nobody reads; closing it closes the sink."""

    def __init__(self, far_end: socket.socket) -> None:
        self._far_end = far_end

    def __next__(self) -> bytes:
        raise StopIteration

    def close(self) -> None:
        self._far_end.close()


def take_over(environ: MutableMapping[str, Any]) -> Takeover | None:
    """Return a connection on the server's own socket, None where no socket is to be found."""
    sock = client_socket(environ)
    return None if sock is None else Takeover(environ, sock)


def client_socket(environ: Mapping[str, Any]) -> Any:
    """Return the server's own socket of a request, None where none is to be found."""
    sock = next(
        (
            environ[key]
            for key in ("werkzeug.socket", "gunicorn.socket", "gunicorn.sock")
            if environ.get(key) is not None
        ),
        None,
    )
    if sock is None:
        stream = environ.get("wsgi.input")
        # The stream itself, where pywsgi takes the request for an upgrade.
        raw = getattr(getattr(stream, "rfile", stream), "raw", None)
        sock = getattr(raw, "_sock", None)  # the socket of the file that makefile() returned
    return sock if hasattr(sock, "fileno") else None


def waiter() -> Waiter:
    """Return how the greenlet or thread that runs waits for others."""
    if "gevent" in sys.modules:
        from ..transports.green import GreenWaiter, is_green

        if is_green():
            return GreenWaiter()
    from ..transports.threaded import ThreadedWaiter

    return ThreadedWaiter()


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
    """The process ends: a handler that waits for its peer must not keep it alive."""
    deadline = monotonic() + _CLOSING_TIME
    for connection in Connection.opened():
        connection.close(1001, "server shutdown")
    for connection in Connection.opened():
        connection.wait_closed(max(0.0, deadline - monotonic()))
        connection.abort()


def _early_bytes(stream: Any) -> bytes:
    """Return what the server has read behind the head of the request; the socket does not block."""
    unreader = getattr(getattr(stream, "reader", None), "unreader", None)
    if unreader is not None:  # gunicorn's Body
        early: bytes = unreader.buf.getvalue()
        unreader.buf.seek(0)
        unreader.buf.truncate()
        return early
    return read_ahead(stream) if hasattr(stream, "peek") else b""
