"""gevent's pywsgi with WebSockets: the application routes first, the 101 response comes after.

:class:`WebSocketHandler` goes where gevent-websocket's handler went::

    pywsgi.WSGIServer(("127.0.0.1", 5000), app, handler_class=WebSocketHandler).serve_forever()
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from http.client import responses
from io import BytesIO
from math import ceil
from sys import intern
from typing import Any

import gevent
from gevent.monkey import is_module_patched
from gevent.pool import Pool
from gevent.pywsgi import WSGIHandler, WSGIServer
from geventwebsocket.exceptions import WebSocketError as GeventWebSocketError

from ..connection import Connection
from ..exceptions import ConnectionClosed, HandshakeError
from ..transports.base import StreamTransport, read_ahead
from ..transports.green import GreenTransport
from ..wire.handshake import is_upgrade
from .head import CONTROL, CONTROL_IN_LINE, NAME, Headers, printable
from .pool import HandlerPool, Heir
from .stream import Body, Stream

__all__ = ["GreenConnection", "WebSocketHandler", "WebSocketServer", "drain"]

logger = logging.getLogger("flask_sockets2.servers")

_STOPPING = "this server is stopping; connect again"

_BATCH_INTERVAL = 0.1  # seconds
# Connections. Each comes back with a handshake and for what it missed: the 100 that a worker closes
# in a second its successor takes in the same time.
_SMALLEST_BATCH = 10

_REQUEST_TIMEOUT = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class _SlowRequest(ValueError, TimeoutError):
    """The head of a request took longer than the handshake timeout.

    In the request line pywsgi closes the connection silently for the one base, in the header
    fields it answers for the other.
    """


class GreenConnectionClosed(ConnectionClosed, GeventWebSocketError):  # type: ignore[misc]  # untyped base
    """ConnectionClosed that handlers written for gevent-websocket catch, too."""


class GreenConnection(Connection):
    """A connection under our own handler."""

    __slots__ = ()
    error = GreenConnectionClosed


def _warn_unpatched() -> None:
    """Say once that a handler which sleeps or asks a database stops everybody else."""
    global _warned
    if not _warned and not is_module_patched("time"):
        _warned = True
        logger.warning(
            "gevent has not patched the standard library, so time.sleep() or a database driver in "
            "one handler stops all others; begin the program with: "
            "from gevent import monkey; monkey.patch_all()"
        )


_warned = False

_NO_TIMEOUT = gevent.Timeout()


class WebSocketHandler(WSGIHandler):  # type: ignore[misc]  # gevent's stubs make it Any
    """A pywsgi handler that gives the application ``environ["wsgi.websocket"]``.

    Heads of requests that pywsgi would let pass are refused with 400, a slow one with 408.
    """

    #: Seconds for the head of a request to arrive.
    handshake_timeout = 10.0
    #: Seconds to wait for the next request on the same connection.
    keep_alive_timeout = 75.0

    socket: Any
    rfile: Any
    requestline: Any
    response_headers: list[tuple[bytes, bytes]]
    environ: Any
    headers: Any
    _timeout: Any = _NO_TIMEOUT
    _connection: GreenConnection | None = None
    _requests = 0
    _streaming = False  # the response is left to its stream
    result: Any
    response_use_chunked: bool

    # -- the head of a request -------------------------------------------------------------

    def read_requestline(self) -> str:
        if self._requests and self.server.closed:
            return ""  # ask another one; closes silently
        if self._requests:  # between two requests a client may rest; TimeoutError closes silently
            with gevent.Timeout(self.keep_alive_timeout, TimeoutError("no further request came")):
                self.rfile.peek(1)
        self._requests += 1
        error = _SlowRequest(f"the head of the request took over {self.handshake_timeout} s")
        self._timeout = gevent.Timeout.start_new(self.handshake_timeout, error)
        line: str = super().read_requestline()
        return line

    def read_request(self, raw_requestline: str) -> bool:
        if CONTROL_IN_LINE.search(raw_requestline.removesuffix("\n").removesuffix("\r")):
            raise ValueError("the request line holds a control character")  # RFC 9112 §3
        valid: bool = super().read_request(raw_requestline)
        self._stop_timeout()
        if self.request_version == "HTTP/1.1" and len(self.headers.get_all("host")) != 1:
            raise ValueError("expected exactly one Host header field")
        return valid

    def handle_one_request(self) -> Any:
        try:
            return super().handle_one_request()
        finally:
            self._stop_timeout()  # where the request line or a header field was broken
            self.environ = None  # it holds our bound methods: break the circle

    def _stop_timeout(self) -> None:
        self._timeout.close()
        self._timeout = _NO_TIMEOUT

    def MessageClass(self, rfile: Any, *args: Any) -> Headers:
        return Headers(rfile)

    def _headers(self) -> Iterator[tuple[str, str]]:
        for name, value in self.headers.fields:
            if "_" not in name:  # a name that a hyphen's could be mistaken for
                key = name.upper().replace("-", "_")
                if key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
                    yield intern(f"HTTP_{key}"), value

    def _handle_client_error(self, ex: Exception) -> tuple[str, bytes]:
        answer: tuple[str, bytes] = super()._handle_client_error(ex)
        return ("408", _REQUEST_TIMEOUT) if isinstance(ex, _SlowRequest) else answer

    def get_environ(self) -> dict[str, Any]:
        environ: dict[str, Any] = super().get_environ()
        # pywsgi gives the bare stream to what looks like an upgrade; its end is the connection's.
        environ["wsgi.input"] = self.wsgi_input
        environ["wsgi.input_terminated"] = True
        environ["wsgi.early_hints"] = partial(self._send_early_hints, self._requests)
        return environ

    def _send_early_hints(self, number: int, headers: Iterable[tuple[str, str]]) -> None:
        """Send a response 103 (RFC 8297), as gunicorn's ``wsgi.early_hints`` does.

        Does nothing once the response has begun, for a handshake, and for a client of HTTP/1.0,
        which knows no 1xx (RFC 9110 §15.2).

        :param number: of the request on its connection: a greenlet that it has left behind must not
            speak in the name of the next.
        :raises ValueError: when a name is no token or a value holds a control character.
        """
        head = [b"HTTP/1.1 103 Early Hints\r\n"]
        for name, value in headers:
            field, content = name.encode("latin-1"), value.encode("latin-1")
            if not NAME.fullmatch(field) or CONTROL.search(content):
                raise ValueError(f"the header field {name!r} cannot be sent as an early hint")
            head.append(b"%b: %b\r\n" % (field, content))
        over = self.headers_sent or number != self._requests
        if not over and self._connection is None and self.request_version >= "HTTP/1.1":
            self.socket.sendall(b"".join([*head, b"\r\n"]))

    # -- the response ----------------------------------------------------------------------

    def run_application(self) -> None:
        if not is_upgrade(self.environ):
            super().run_application()
            return
        connection = GreenConnection(self.environ, self._take)
        connection.handler = self
        connection.detachable = self._detachable()
        self._connection = connection
        self.environ["wsgi.websocket"] = connection
        self.environ["wsgi.websocket_version"] = connection.version
        try:
            super().run_application()
        except HandshakeError as exc:  # of an application that is no Flask's
            if connection.accepted:
                raise
            self._refuse(exc)
        except Exception:
            if connection.accepted:
                connection.finish(1011)
            raise
        except BaseException:  # the server kills its handlers: there is no time to say goodbye
            if connection.accepted:
                connection.abort()
            raise
        finally:
            if connection.detached:
                self._let_go(connection)
            elif connection.accepted:
                connection.finish()
            if connection.accepted:
                self._log_as_upgraded()
            connection.handler = None

    def log_request(self) -> None:
        self.requestline = printable((self.requestline or "").rstrip())
        super().log_request()

    def _refuse(self, error: HandshakeError) -> None:
        status = f"{error.status} {responses.get(error.status, '')}"
        headers = [("Content-Type", "text/plain; charset=utf-8"), *error.headers]
        self.start_response(status, headers)
        self.result = [f"{error}\n".encode()]
        self.process_result()

    def _let_go(self, connection: GreenConnection) -> None:
        """Give the socket to a connection that outlives this request."""
        transport = connection.transport
        assert isinstance(transport, GreenTransport)
        self._leave_to(connection, transport)

    def _leave_to(self, heir: Heir, transport: GreenTransport) -> None:
        """Give the socket to what outlives this request."""
        transport.detach()
        if isinstance(self.server, WebSocketServer):
            self.server.keep(heir, transport.sock)
        self.socket = None  # pywsgi would read it empty and close it

    def _detachable(self) -> bool:
        """Whether the socket may outlive the request: only our own server knows to leave a TLS
        socket open."""
        return not hasattr(self.socket, "pending") or isinstance(self.server, WebSocketServer)

    def _take(self, send_timeout: float) -> tuple[StreamTransport, bytes]:
        """Take the socket over; what is needed no more is let go, since it may be for long."""
        if self.server.closed:
            raise HandshakeError(503, _STOPPING, (("Retry-After", "1"),))
        return self._take_socket(send_timeout)

    def _take_socket(self, send_timeout: float) -> tuple[GreenTransport, bytes]:
        _warn_unpatched()
        self.socket.setblocking(False)
        early = read_ahead(self.rfile)
        self.rfile.close()
        self.environ["wsgi.input"] = self.rfile = self.wsgi_input.rfile = BytesIO()
        self.close_connection = True
        return GreenTransport(self.socket, send_timeout=send_timeout), early

    def _upgraded(self) -> bool:
        return self._connection is not None and self._connection.accepted

    def _log_as_upgraded(self) -> None:
        self.status, self.code = b"101 Switching Protocols", 101
        self._orig_status = "101 Switching Protocols"
        self.response_headers = []

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], None]:
        if self._upgraded():
            return self.write
        if self._connection is not None and ("Connection", "close") not in headers:
            headers = [*headers, ("Connection", "close")]  # refused: frames may follow
        write: Callable[[bytes], None] = super().start_response(status, headers, exc_info)
        return write

    def write(self, data: bytes) -> None:
        if not self._upgraded():
            super().write(data)

    def process_result(self) -> None:
        if isinstance(self.result, Body):
            self._stream(self.result)
        elif not self._upgraded():
            super().process_result()

    def _stream(self, body: Body) -> None:
        """Send what a stream has by now, and let it outlive this request."""
        stream = body.stream
        self._streaming = self._detachable()
        if self.server.closed:  # asked for on a connection that was kept alive: come back elsewhere
            stream.end()
        if not self._streaming:
            super().process_result()
            return
        self.write(next(body, b""))
        if not stream.closed:
            transport, _ = self._take_socket(stream.send_timeout)
            self._leave_to(stream, transport)
            stream.move(transport)

    def finalize_headers(self) -> None:
        super().finalize_headers()
        if self._streaming:
            # The end of the connection is that of the body (RFC 9112 §6.3), so that all clients of
            # a channel can be sent the same bytes.
            self.response_use_chunked = False
            self.close_connection = True
            dropped = (b"transfer-encoding", b"connection")
            fields = [field for field in self.response_headers if field[0].lower() not in dropped]
            self.response_headers = [*fields, (b"Connection", b"close")]


class WebSocketServer(WSGIServer):  # type: ignore[misc]  # gevent's stubs make it Any
    """A pywsgi server with :class:`WebSocketHandler`, ready to use.

    ::

        WebSocketServer(("127.0.0.1", 5000), app).serve_forever()

    When it stops, by Ctrl-C or SIGTERM for example, it closes its connections with 1001.
    """

    handler_class = WebSocketHandler
    pool: Any
    #: Seconds over which connections are closed when the server stops.
    drain_time = 0.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._kept_sockets: set[Any] = set()  # of TLS: those that we would close
        super().__init__(*args, **kwargs)

    def set_spawn(self, spawn: Any) -> None:
        if isinstance(spawn, Pool):
            spawn = HandlerPool(spawn.size)
        elif type(spawn) is int:
            spawn = HandlerPool(spawn)
        super().set_spawn(spawn)

    def keep(self, heir: Heir, sock: Any) -> None:
        """Count what outlives its request; called by the request's greenlet, see :meth:`forget`.

        :param sock: its socket.
        """
        if isinstance(self.pool, HandlerPool):
            self.pool.keep(heir)
        if hasattr(sock, "pending"):  # TLS
            self._kept_sockets.add(sock)
        heir.keeper = self

    def forget(self, heir: Heir) -> None:
        """Count what was kept no longer."""
        if heir.transport is not None:
            self._kept_sockets.discard(heir.transport.sock)
        if isinstance(self.pool, HandlerPool):
            self.pool.forget(heir)

    def serve_forever(self, stop_timeout: float | None = None) -> None:
        """Serve until Ctrl-C or SIGTERM, or until :meth:`stop` is called."""
        watchers = []
        if threading.current_thread() is threading.main_thread():
            # By the hub, between two turns: an exception could come in the middle of a handler.
            for number in (signal.SIGINT, signal.SIGTERM):
                watchers.append(gevent.signal_handler(number, self.close))
        try:
            super().serve_forever(stop_timeout)
        finally:
            for watcher in watchers:
                watcher.cancel()

    def close(self) -> None:
        was_open = not self.closed
        super().close()
        if was_open and self.drain_time:
            gevent.spawn(self._drain)
        elif was_open:
            drain(0.0)

    def _drain(self) -> None:
        drain(self.drain_time)

    def wrap_socket_and_handle(self, client_socket: Any, address: Any) -> None:
        """Bring the TLS handshake to its end within the handshake timeout."""
        seconds = getattr(self.handler_class, "handshake_timeout", None)
        try:
            with gevent.Timeout(seconds, TimeoutError(f"the handshake took over {seconds} s")):
                tls_socket = self.wrap_socket(client_socket, **self.ssl_args)
        except OSError as exc:  # what TLS raises is one, too
            logger.info("no TLS connection from %s: %s", address, exc)
            client_socket.close()
            return
        try:
            self.handle(tls_socket, address)
        finally:
            if tls_socket not in self._kept_sockets:
                tls_socket.close()


def drain(seconds: float) -> None:
    """Close all connections with 1001 and end all streams, over so many seconds, so that their
    peers do not all come back at once; at once where that is 0."""
    waiting: list[Callable[[], None]] = [stream.end for stream in Stream.opened()]
    waiting += [partial(ws.close, 1001, "server shutdown") for ws in Connection.opened()]
    batch = len(waiting)
    if seconds:
        batch = max(_SMALLEST_BATCH, ceil(len(waiting) * _BATCH_INTERVAL / seconds))
    while waiting:
        for close in waiting[:batch]:
            close()
        del waiting[:batch]
        if waiting:
            gevent.sleep(_BATCH_INTERVAL)
