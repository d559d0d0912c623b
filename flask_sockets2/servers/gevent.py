"""gevent's pywsgi with WebSockets: the application routes the request before the 101 response.

Use :class:`WebSocketHandler` in place of gevent-websocket's handler::

    pywsgi.WSGIServer(("127.0.0.1", 5000), app, handler_class=WebSocketHandler).serve_forever()
"""

from __future__ import annotations

import _socket
import errno
import logging
import signal
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from http.client import responses
from io import BufferedReader, BytesIO
from math import ceil
from socket import IPPROTO_TCP, MSG_PEEK, SHUT_RD, SO_ERROR, SO_LINGER, SOL_SOCKET, TCP_NODELAY
from time import monotonic, time
from typing import Any, NoReturn

import gevent
from gevent.monkey import is_module_patched
from gevent.pool import Pool
from gevent.pywsgi import WSGIHandler, WSGIServer
from geventwebsocket.exceptions import WebSocketError as GeventWebSocketError

from ..connection.connection import Connection
from ..connection.driver import ProtocolDriver
from ..connection.lifecycle import Lifecycle
from ..connection.opening import Take
from ..connection.substitutes import NO_HANDLER
from ..exceptions import ConnectionClosed, HandshakeError
from ..throttled_log import ThrottledLog
from ..transports import memory
from ..transports.base import StreamTransport, read_ahead
from ..transports.green import GreenTransport, hub_clock
from ..wire.handshake import is_host, is_upgrade, named_subprotocol
from . import under_way
from .body import BrokenBody, RequestBody
from .clients import Client, Clients, client_of
from .patience import Patience, PatienceSettings, http_settings
from .pool import HandlerPool, Heir
from .request_head import (
    CONTROL,
    Headers,
    RequestError,
    RequestLine,
    check_fields,
    environ_key,
    printable,
)
from .turns import READ_AHEAD, PatientReceiver, PatientSender, turns
from .wsgi_stream import Body, Stream

__all__ = ["GreenLifecycle", "WebSocketHandler", "WebSocketServer", "drain"]

logger = logging.getLogger("flask_sockets2.servers")
_seldom = ThrottledLog(logger)  # for lines that clients can cause at any rate

_STOPPING = "this server is stopping; connect again"

_BATCH_INTERVAL = 0.1  # seconds
# Connections. Each client reconnects with a handshake and replays missed messages. If a worker
# closes 100 clients a second, its successor accepts them at the same rate.
_SMALLEST_BATCH = 10

# Seconds to read the rest of a body after the response. Without them, a client that is still
# sending would get a reset before it reads the response (RFC 9112 §9.6).
_LINGER = 30.0
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: discard data that the client has not received

# Errors if the kernel lacks descriptors or memory; clients decide the number of connections.
_NO_ROOM = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
_ACCEPT_AGAIN = 0.5  # seconds
_ACCEPTING = 0.005  # seconds for discarding dead connections, before other greenlets run


class GreenConnectionClosed(ConnectionClosed, GeventWebSocketError):  # type: ignore[misc]  # untyped base
    """ConnectionClosed, as a subclass of gevent-websocket's error: handlers may catch either."""


class GreenLifecycle(Lifecycle):
    """Lifecycle of a connection under our own handler, with attributes for ``clients.py``."""

    __slots__ = ("address", "client", "server")
    error = GreenConnectionClosed

    def __init__(self, environ: Mapping[str, Any], take: Take) -> None:
        super().__init__(environ, take)
        self.server: Any = None
        self.address: Any = None
        self.client: Client | None = None  # created on first use

    def ended(self, driver: ProtocolDriver) -> None:
        if not self.ws.handler:  # a handler may still use the client
            self.client = None
        super().ended(driver)


def _warn_unpatched() -> None:
    """Warn once if the standard library is not patched: one sleeping handler blocks all others."""
    global _warned
    if not _warned and not is_module_patched("time"):
        _warned = True
        logger.warning(
            "gevent has not patched the standard library, so time.sleep() or a database driver in "
            "one handler stops all others; begin the program with: "
            "from gevent import monkey; monkey.patch_all()"
        )


_warned = False


class WebSocketHandler(WSGIHandler):  # type: ignore[misc]  # gevent's stubs make it Any
    """pywsgi handler that gives the application ``environ["wsgi.websocket"]``.

    The handler refuses malformed requests with 400, also if pywsgi would accept them, and slow ones
    with 408. Errors of clients are logged at INFO, at most once a second.
    """

    # Defaults of the first four settings, if no application of the process sets them.
    #: Seconds for the head of a request to arrive.
    handshake_timeout = PatienceSettings.handshake_timeout
    #: Longest pause of a client in a body or a response, in seconds.
    stall_timeout = PatienceSettings.stall_timeout
    #: Minimum bytes a second of a client in the long run; None for no minimum.
    min_rate = PatienceSettings.min_rate
    #: Seconds to wait for the client in one body or response; None for no limit.
    max_time = PatienceSettings.max_time
    #: Seconds to wait for the next request on the same connection.
    keep_alive_timeout = 75.0
    #: Maximum number of header fields; a request with more is refused with 431.
    max_header_fields = 100
    #: Maximum bytes of one header field with its name; None for 16 KiB of all values of one name.
    #: A request with more is refused with 431.
    max_header_size: int | None = None
    #: Maximum bytes of a request line, up to 8190; a request with more is refused with 414.
    max_request_line = 8190

    socket: Any
    rfile: Any
    requestline: Any
    response_headers: list[tuple[bytes, bytes]]
    status: Any
    environ: Any
    headers: Any
    _lifecycle: GreenLifecycle | None = None  # set if the request asks for a WebSocket
    _application: object = None  # set if the server's application wraps this one
    _requests = 0
    _streaming = False  # True if a stream outlives the request
    result: Any
    response_use_chunked: bool

    def __init__(self, sock: Any, address: Any, server: Any, rfile: Any = None) -> None:
        self._turns = turns()
        self._receiver = PatientReceiver(sock, self._turns)
        self._sender = PatientSender(sock, self._turns)
        self.__dict__.update(http_settings())
        # pywsgi writes head and body separately. Without TCP_NODELAY the body would wait until the
        # client acknowledges the head: 40 ms for each page except the first.
        with suppress(OSError):  # a Unix socket
            sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
        super().__init__(sock, address, server, BufferedReader(self._receiver, READ_AHEAD))

    # -- the head of a request -------------------------------------------------------------

    def read_requestline(self) -> str:
        self._turns.take()
        if self._requests and self.server.closed:
            return ""  # closes silently; the client retries elsewhere
        self._await_request()
        if self._requests:  # a client may pause between requests; TimeoutError closes silently
            self._receiver.patience = Patience(self.keep_alive_timeout)
            self.rfile.peek(1)
        self._requests += 1
        self._receiver.patience = Patience(self.handshake_timeout, total=self.handshake_timeout)
        line = self._read_line()
        return line.removesuffix("\r\n") or line  # pywsgi accepts 8191 bytes

    def _read_line(self) -> str:
        """Read the first line of a request."""
        line: str = super().read_requestline()
        if line in ("\r\n", "\n"):  # one empty line is ignored (RFC 9112 §2.2)
            line = super().read_requestline()
        return line

    def read_request(self, raw_requestline: str) -> bool:
        self.requestline = raw_requestline.removesuffix("\n").removesuffix("\r")
        if len(self.requestline) > self.max_request_line:
            raise RequestError(
                f"the request line is longer than {self.max_request_line} bytes", 414
            )
        line = RequestLine(self.requestline)
        self.command, self.path, self.request_version = line.method, line.path, line.version
        headers = self.headers = Headers(self.rfile, self.max_header_fields, self.max_header_size)
        headers.fields = self.admit(headers.fields)
        self._stop_awaiting()
        self._check_host(line)
        if line.version == "HTTP/1.0" and headers.get("transfer-encoding") is not None:
            raise RequestError("Transfer-Encoding came with HTTP/1.0 (RFC 9112 §6.1)")
        length = headers.get("content-length")
        self.content_length = None if length is None else int(length)
        if self.content_length and line.method == "HEAD":
            raise RequestError("a HEAD request has a body")
        self.close_connection = self._is_last(line.version)
        self._receiver.patience = self._patience()
        self._sender.patience = self._patience()
        under_way.begin(self)
        return True

    def admit(self, fields: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Return the header fields for the application, without names that have an underscore.

        Names with an underscore and with a hyphen have the same environ key, so a client could
        spoof a proxy's header field.
        """
        return [field for field in fields if "_" not in field[0]]

    def _patience(self) -> Patience:
        return Patience(self.stall_timeout, self.min_rate, self.max_time)

    def _await_request(self) -> None:
        """Let a stopping server close the connection, until a request has come."""
        if isinstance(self.server, WebSocketServer):
            self.server.await_request(self.socket)

    def _stop_awaiting(self) -> None:
        if isinstance(self.server, WebSocketServer):
            self.server.stop_awaiting(self.socket)

    def _check_host(self, line: RequestLine) -> None:
        """Check that there is one valid host (RFC 9112 §3.2); prefer that of an absolute target."""
        hosts = self.headers.get_all("host")
        if len(hosts) > 1 or (not hosts and line.version == "HTTP/1.1"):
            raise RequestError("expected exactly one Host header field")
        if line.authority is not None:
            hosts.append(line.authority)
            self.headers.replace("host", line.authority)
        if not all(is_host(host) for host in hosts):
            raise RequestError("the host is not a name or an address with perhaps a port")

    def _is_last(self, version: str) -> bool:
        """Return whether this is the connection's last request (RFC 9112 §9.3)."""
        fields = self.headers.get_all("connection")
        options = {option.strip(" \t").lower() for field in fields for option in field.split(",")}
        return "close" in options or (version == "HTTP/1.0" and "keep-alive" not in options)

    def handle_one_request(self) -> Any:
        try:
            answer = super().handle_one_request()
            if isinstance(answer, tuple):
                self._send_error(*answer)
                return None
            return answer
        finally:
            self._stop_awaiting()  # if the request line or a header field was invalid
            under_way.end(self)
            memory.ended(hub_clock())
            self.environ = None  # the environ holds our bound methods: break the reference cycle

    def _headers(self) -> Iterator[tuple[str, str]]:
        for name, value in self.headers.fields:
            key = environ_key(name)
            if key not in ("HTTP_CONTENT_TYPE", "HTTP_CONTENT_LENGTH"):
                yield key, value

    def _handle_client_error(self, ex: Exception) -> tuple[str, bytes] | None:
        """Return the answer to an invalid head; pywsgi would log an error each time."""
        if isinstance(ex, TimeoutError):
            ex = RequestError(f"the head took over {self.handshake_timeout} s", 408)
        elif self.server.closed:  # the server has ended the wait for the rest of the head
            return "408", _error_response(408)
        elif isinstance(ex, OSError) and not isinstance(ex, RequestError):
            self._log_client("left", "a client left in the middle of the head of its request")
            return None
        if not isinstance(ex, RequestError):
            logger.error("the head of a request could not be read", exc_info=ex)
            ex = RequestError("the head of the request could not be read")
        # A 500 is not the client's fault.
        level = logging.WARNING if ex.status == 500 else logging.INFO
        self._log_client(f"refused {ex.status}", f"refused a request with {ex.status}: {ex}", level)
        return f"{ex.status}", _error_response(ex.status)

    def _send_error(self, status: str, response: bytes) -> None:
        """Send the answer to an invalid head, and write the request to the access log."""
        self.status = self._orig_status = status
        try:
            self.socket.sendall(response)
        except OSError:
            self._log_client("left", "a client left before it was answered")
        self.time_finish = time()
        self.log_request()

    def _log_client(self, kind: str, message: str, level: int = logging.INFO) -> None:
        """Log a client's error; :param kind: key of the throttling, one of a fixed few."""
        log = _seldom.info if level == logging.INFO else _seldom.warning
        log(kind, "%s (%s)", message, _shown(self.client_address))

    def get_environ(self) -> dict[str, Any]:
        environ: dict[str, Any] = super().get_environ()
        waits = environ.get("HTTP_EXPECT", "").lower() == "100-continue"  # RFC 9110 §10.1.1
        self.wsgi_input = RequestBody(
            self.rfile,
            self.content_length,
            chunked=self.headers.get("transfer-encoding") is not None,
            proceed=self._send_whole if waits and self.request_version != "HTTP/1.0" else None,
        )
        # For an upgrade, pywsgi would pass the bare stream, which ends with the connection.
        environ["wsgi.input"] = self.wsgi_input
        environ["wsgi.input_terminated"] = True
        environ["wsgi.early_hints"] = partial(self._send_early_hints, self._requests)
        return environ

    def _send_early_hints(self, number: int, headers: Iterable[tuple[str, str]]) -> None:
        """Send a response 103 (RFC 8297), as gunicorn's ``wsgi.early_hints`` does.

        The method does nothing if the response has begun, if the request is a handshake, or if the
        client uses HTTP/1.0, which has no 1xx (RFC 9110 §15.2).

        :param number: number of the request on its connection. A greenlet left from an earlier
            request must not send hints for a later one.
        :raises ValueError: if a name is no token or a value holds a control character.
        """
        fields = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        check_fields(fields)
        lines = [b"%b: %b\r\n" % field for field in fields]
        over = self.headers_sent or number != self._requests
        if not over and self._lifecycle is None and self.request_version >= "HTTP/1.1":
            with suppress(OSError):  # the client has left; the response will fail, too
                self._send_whole(b"".join([b"HTTP/1.1 103 Early Hints\r\n", *lines, b"\r\n"]))

    # -- the response ----------------------------------------------------------------------

    def handle_one_response(self) -> None:
        super().handle_one_response()
        broken = self.wsgi_input.broken
        if broken:  # the beginning of the next request is unknown
            self.close_connection = True
            if self.wsgi_input.slow:
                under_way.cut()
                broken = f"{broken}, {self._too_slow()}"
            self._log_client("body", f"refused the body of a request: {broken}")

    def run_application(self) -> None:
        try:
            if is_upgrade(self.environ):
                self._run_upgrade()
            else:
                super().run_application()
        except BrokenBody:  # from an application without Flask
            self._send_error_response_if_possible(400)
        finally:
            self._receiver.patience.end_within(_LINGER)

    def _run_upgrade(self) -> None:
        if not hasattr(self.server, "clients"):  # pywsgi's own server
            self.server.clients = Clients(self.server)
        lifecycle = GreenLifecycle(self.environ, self._take)
        connection = Connection(lifecycle)
        connection.handler = self
        lifecycle.server, lifecycle.address = self.server, self.client_address
        lifecycle.detachable = self._detachable()
        self._lifecycle = lifecycle
        self.environ["wsgi.websocket"] = connection
        self.environ["wsgi.websocket_version"] = connection.version
        application = self.application if self._application is None else self._application
        try:
            lifecycle.subprotocol = named_subprotocol(
                application, self.environ["PATH_INFO"], lifecycle.subprotocols
            )
            super().run_application()
        except HandshakeError as exc:  # from an application without Flask
            if lifecycle.accepted:
                raise
            self._refuse(exc)
        except Exception:
            if lifecycle.accepted:
                lifecycle.finish(1011)
            raise
        except BaseException:  # the server kills its handlers: no time for a closing handshake
            if lifecycle.accepted:
                connection.abort()
            raise
        finally:
            if lifecycle.detached:
                self._let_go(lifecycle)
            elif lifecycle.accepted:
                lifecycle.finish()
            if lifecycle.accepted:
                self._log_as_upgraded()
            if not lifecycle.detached:
                lifecycle.client = None
            connection.handler = NO_HANDLER

    @property
    def websocket(self) -> Connection | None:
        """Connection of the request, as on gevent-websocket's handler."""
        return None if self._lifecycle is None else self._lifecycle.ws

    @property
    def active_client(self) -> Client:
        """Client of the request, as on gevent-websocket's handler."""
        return client_of(self._lifecycle)

    def log_request(self) -> None:
        self.requestline = printable((self.requestline or "").rstrip())
        super().log_request()

    def _refuse(self, error: HandshakeError) -> None:
        status = f"{error.status} {responses.get(error.status, '')}"
        headers = [("Content-Type", "text/plain; charset=utf-8"), *error.headers]
        self.start_response(status, headers)
        self.result = [f"{error}\n".encode()]
        self.process_result()

    def _let_go(self, lifecycle: GreenLifecycle) -> None:
        """Give the socket to a connection that outlives this request."""
        transport = lifecycle.transport
        assert isinstance(transport, GreenTransport)
        self._leave_to(lifecycle, transport)

    def _leave_to(self, heir: Heir, transport: GreenTransport) -> None:
        """Give the socket to a connection or stream that outlives this request."""
        transport.detach()
        if isinstance(self.server, WebSocketServer):
            self.server.keep(heir, transport.sock)
        self.socket = None  # pywsgi would drain and close the socket

    def _detachable(self) -> bool:
        """Return whether the socket may outlive the request; for TLS, only our own server leaves
        the socket open."""
        return not hasattr(self.socket, "pending") or isinstance(self.server, WebSocketServer)

    def _take(self, send_timeout: float) -> tuple[StreamTransport, bytes]:
        """Take over the socket for a WebSocket, and free the request's memory."""
        if self.server.closed:
            raise HandshakeError(503, _STOPPING, (("Retry-After", "1"),))
        return self._take_socket(send_timeout)

    def _take_socket(self, send_timeout: float) -> tuple[GreenTransport, bytes]:
        _warn_unpatched()
        under_way.end(self)
        self.socket.setblocking(False)
        self._receiver.release()
        early = read_ahead(self.rfile)
        self.rfile.close()
        self.environ["wsgi.input"] = self.rfile = self.wsgi_input.rfile = BytesIO()
        self.close_connection = True
        return GreenTransport(self.socket, send_timeout=send_timeout), early

    def _upgraded(self) -> bool:
        return self._lifecycle is not None and self._lifecycle.accepted

    def _log_as_upgraded(self) -> None:
        self.status, self.code = b"101 Switching Protocols", 101
        self._orig_status = "101 Switching Protocols"
        self.response_headers = []

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], None]:
        """Begin the response (PEP 3333).

        :raises ValueError: if a name is no token or a value holds a control character.
        """
        if self._upgraded():
            return self.write
        opening = None if self._lifecycle is None else self._lifecycle.opening
        if opening is not None and status.startswith("101"):
            opening.fields = headers
        # Connection: close announces the end (RFC 9112 §9.6), also if frames may follow a refused
        # handshake, or if the beginning of the next request is unknown.
        closes = self.close_connection or self._lifecycle is not None or self.server.closed
        closes = closes or self.wsgi_input.broken
        if closes and ("Connection", "close") not in headers:
            headers = [*headers, ("Connection", "close")]
        write: Callable[[bytes], None] = super().start_response(status, headers, exc_info)
        check_fields(self.response_headers)
        if CONTROL.search(self.status):
            raise ValueError("the status line holds a control character")
        return write

    def _sendall(self, data: bytes) -> None:
        try:
            self._send_whole(data)
            self.response_length += len(data)
        except TimeoutError as exc:
            under_way.cut()
            self._log_client("slow", f"cut off a response, {self._too_slow()}")
            self.socket.setsockopt(SOL_SOCKET, SO_LINGER, _RESET)
            self._fail(exc)
        except OSError as exc:  # for example from TLS; pywsgi handles only two of these errors
            self._log_client("left", "a client left before the end of its response")
            self._fail(exc)

    def _send_whole(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._sender.send(view) :]

    def _fail(self, error: OSError) -> NoReturn:
        """Abort a response that cannot be sent, without a traceback."""
        self._receiver.patience.end_within(0.0)
        raise BrokenPipeError(errno.EPIPE, "the client has left") from error

    def _too_slow(self) -> str:
        """Return the limits for slow clients, as a text for the log."""
        return (
            f"the client paused for {self.stall_timeout} s (SOCKETS_HTTP_STALL_TIMEOUT), kept to "
            f"less than {self.min_rate} bytes a second (SOCKETS_HTTP_MIN_RATE) or took over "
            f"{self.max_time} s (SOCKETS_HTTP_MAX_TIME)"
        )

    def write(self, data: bytes) -> None:
        if not self._upgraded():
            super().write(data)

    def process_result(self) -> None:
        if isinstance(self.result, Body):
            self._stream(self.result)
        elif not self._upgraded():
            super().process_result()
        elif self.result is not None:  # None as in gevent-websocket's own examples
            # Middleware may act while its body is iterated, for example to end a span.
            for _ in self.result:
                pass

    def _stream(self, body: Body) -> None:
        """Send a stream's first bytes, and let the stream outlive this request."""
        stream = body.stream
        self._streaming = self._detachable()
        if self.server.closed:  # a request on a kept-alive connection: reconnect elsewhere
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
            # The body ends with the connection (RFC 9112 §6.3), without chunks. So all clients of a
            # channel can receive the same bytes.
            self.response_use_chunked = False
            self.close_connection = True
            dropped = (b"transfer-encoding", b"connection")
            fields = [field for field in self.response_headers if field[0].lower() not in dropped]
            self.response_headers = [*fields, (b"Connection", b"close")]


_OF_GEVENT_WEBSOCKET = {
    "debug": 'set the level of logging.getLogger("flask_sockets2")',
    "pre_start_hook": "refuse in before_request, or with accept=False in the route",
}


class WebSocketServer(WSGIServer):  # type: ignore[misc]  # gevent's stubs make it Any
    """pywsgi server with :class:`WebSocketHandler`, ready to use.

    ::

        WebSocketServer(("127.0.0.1", 5000), app).serve_forever()

    When the server stops, for example by Ctrl-C or SIGTERM, all connections are closed with 1001.
    """

    handler_class = WebSocketHandler
    #: Connections to accept in one turn of the hub. With gevent's default, 100, a turn in which all
    #: requests begin takes 30 ms.
    max_accept = 20
    pool: Any
    #: Seconds over which connections are closed when the server stops.
    drain_time = 0.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._kept_sockets: set[Any] = set()  # TLS sockets that outlive their request
        self._awaited: set[Any] = set()  # sockets without a complete head of a request
        #: Connected WebSockets by address, as on gevent-websocket's server.
        self.clients = Clients(self)
        for name, instead in _OF_GEVENT_WEBSOCKET.items():
            if name in kwargs:  # pywsgi would take the argument for an option of TLS
                raise TypeError(f"WebSocketServer has no argument {name!r}: {instead}")
        super().__init__(*args, **kwargs)

    def set_spawn(self, spawn: Any) -> None:
        if isinstance(spawn, Pool):
            spawn = HandlerPool(spawn.size)
        elif type(spawn) is int:
            spawn = HandlerPool(spawn)
        super().set_spawn(spawn)

    def keep(self, heir: Heir, sock: Any) -> None:
        """Count a connection or stream that outlives its request, until :meth:`forget`.

        :param sock: socket of the request, whose greenlet calls this method.
        """
        if isinstance(self.pool, HandlerPool):
            self.pool.keep(heir)
        if hasattr(sock, "pending"):  # TLS
            self._kept_sockets.add(sock)
        heir.keeper = self

    def forget(self, heir: Heir) -> None:
        """Stop counting a connection or stream; see :meth:`keep`."""
        if heir.transport is not None:
            self._kept_sockets.discard(heir.transport.sock)
        if isinstance(self.pool, HandlerPool):
            self.pool.forget(heir)

    def serve_forever(self, stop_timeout: float | None = None) -> None:
        """Serve until Ctrl-C or SIGTERM, or until :meth:`stop` is called."""
        watchers = []
        if threading.current_thread() is threading.main_thread():
            # The hub handles signals between two turns; an exception could interrupt a handler.
            for number in (signal.SIGINT, signal.SIGTERM):
                watchers.append(gevent.signal_handler(number, self.close))
        try:
            super().serve_forever(stop_timeout)
        finally:
            for watcher in watchers:
                watcher.cancel()

    def do_read(self) -> Any:
        """Accept a connection; return None if there is none, or no room for one.

        If the client has already left, the connection is closed here, without a greenlet. So a
        client that connects and disconnects in a fast loop cannot fill the kernel's queue, and
        delay all other clients.
        """
        until = monotonic() + _ACCEPTING
        try:
            while (accepted := super().do_read()) is not None and _has_left(accepted[0]):
                accepted[0].close()
                if monotonic() > until:
                    return None
            return accepted
        except OSError as exc:
            if exc.errno not in _NO_ROOM:
                raise
            _seldom.failure(
                "accept",
                "cannot accept connections: %s; allow the process more open files (ulimit -n), or "
                "set worker_connections below that",
                exc,
            )
            self.stop_accepting()
            self._timer = self.loop.timer(_ACCEPT_AGAIN)
            self._timer.start(self._start_accepting_if_started)
            return None

    def await_request(self, sock: Any) -> None:
        """Mark a connection as idle, until :meth:`stop_awaiting`: a stopping server closes it.

        A request that has arrived completely is still answered.
        """
        self._awaited.add(sock)
        if self.closed:
            _stop_reading(sock)

    def stop_awaiting(self, sock: Any) -> None:
        """Mark a connection as busy: its request may take the graceful timeout."""
        self._awaited.discard(sock)

    def close(self) -> None:
        was_open = not self.closed
        super().close()
        for sock in self._awaited:
            _stop_reading(sock)
        if was_open and self.drain_time:
            gevent.spawn(self._drain)
        elif was_open:
            drain(0.0)

    def _drain(self) -> None:
        drain(self.drain_time)

    def handle(self, sock: Any, address: Any) -> None:
        """Serve a connection, unless the client has left before the greenlet's first turn."""
        if not _has_left(sock):
            super().handle(sock, address)

    def wrap_socket_and_handle(self, client_socket: Any, address: Any) -> None:
        """Do the TLS handshake within the handshake timeout, then serve the connection."""
        if _has_left(client_socket):
            return
        seconds = getattr(self.handler_class, "handshake_timeout", None)
        seconds = http_settings().get("handshake_timeout", seconds)
        self.await_request(client_socket)
        try:
            with gevent.Timeout(seconds, TimeoutError(f"the handshake took over {seconds} s")):
                tls_socket = self.wrap_socket(client_socket, **self.ssl_args)
        except OSError as exc:  # TLS errors are OSErrors, too
            _seldom.info("tls", "no TLS connection: %s (%s)", exc, _shown(address))
            client_socket.close()
            return
        finally:
            self.stop_awaiting(client_socket)
        try:
            super().handle(tls_socket, address)
        finally:
            if tls_socket not in self._kept_sockets:
                tls_socket.close()


def _error_response(status: int) -> bytes:
    head = (
        f"HTTP/1.1 {status} {responses[status]}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    )
    return head.encode()


def _stop_reading(sock: Any) -> None:
    """End a socket's reads after the bytes that have arrived. The method is the C class's, since
    gevent's would raise in the waiting greenlet."""
    with suppress(OSError):  # not connected any more
        _socket.socket.shutdown(getattr(sock, "_sock", sock), SHUT_RD)


def _has_left(sock: Any) -> bool:
    """Return whether a new client has reset the connection, or closed it without sending."""
    if sock.getsockopt(SOL_SOCKET, SO_ERROR):
        return True
    try:
        return not getattr(sock, "_sock", sock).recv(1, MSG_PEEK)
    except OSError:  # nothing has come yet
        return False


def _shown(address: Any) -> str:
    """Return the address of a client for the log."""
    return str(address[0]) if isinstance(address, tuple) else "a Unix socket"


def drain(seconds: float) -> None:
    """Close all connections with 1001 and end all streams, spread over ``seconds``, so that clients
    do not all reconnect at once. If ``seconds`` is 0, close all at once."""
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
