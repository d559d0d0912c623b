"""A Connection on a real TCP connection, with a handler, on either transport.

The test is the peer: it talks to the connection over TCP in bytes. The handler has a native thread
to itself, and where it is to run on gevent, a hub in it, so that a test reads the same for both.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import gevent.socket
import gevent.ssl

from flask_sockets2.connection.connection import Connection
from flask_sockets2.connection.lifecycle import Lifecycle
from flask_sockets2.connection.limits import Limits
from flask_sockets2.servers.gevent import GreenLifecycle
from flask_sockets2.transports.base import StreamTransport
from flask_sockets2.transports.budget import Budget
from flask_sockets2.transports.green import GreenTransport
from flask_sockets2.transports.threaded import ThreadedTransport
from tests.wire_client import HANDSHAKE, TIMEOUT, WireClient

Handler = Callable[[Any], Any]


@contextmanager
def listening() -> Iterator[socket.socket]:
    """A socket that listens on a free port of 127.0.0.1."""
    with socket.socket() as listener:
        listener.settimeout(TIMEOUT)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener


def tcp_pair(*, small_buffers: bool = False) -> tuple[WireClient, socket.socket]:
    """Two ends of a TCP connection: the peer's and the server's.

    :param small_buffers: the kernel keeps little, so that a peer that does not read is soon felt.
    """
    with listening() as listener:
        if small_buffers:  # an accepted socket has the listener's
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        peer = WireClient(listener.getsockname()[1], receive_buffer=8192 if small_buffers else None)
        try:
            sock, _ = listener.accept()
        except BaseException:
            peer.close()
            raise
        sock.setblocking(True)
        if small_buffers:
            peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        return peer, sock


class Threads:
    """Handlers are threads."""

    lifecycle: type[Lifecycle] = Lifecycle
    transport: type[StreamTransport] = ThreadedTransport
    sleep = staticmethod(time.sleep)

    def run(self, target: Callable[[], None]) -> None:
        target()

    def own(self, sock: socket.socket) -> Any:
        """The socket as the server would have it; the given one is used up."""
        return sock

    def wrap(self, sock: Any, context: Any) -> Any:
        """Put TLS on a server's socket."""
        return context.wrap_socket(sock, server_side=True)

    def spawn(self, function: Callable[[], None]) -> Callable[[float], None]:
        """Run a function beside the caller; return how to wait for its end."""
        thread = threading.Thread(target=function, daemon=True)
        thread.start()
        return thread.join


class Greenlets(Threads):
    """Handlers are greenlets, each with a hub to itself."""

    lifecycle = GreenLifecycle
    transport = GreenTransport
    sleep = staticmethod(gevent.sleep)

    def run(self, target: Callable[[], None]) -> None:
        try:
            gevent.spawn(target).join()
        finally:
            gevent.get_hub().destroy(destroy_loop=True)

    def own(self, sock: socket.socket) -> Any:
        return gevent.socket.socket(fileno=sock.detach())

    def wrap(self, sock: Any, context: Any) -> Any:
        return gevent.ssl.SSLSocket(sock, server_side=True, _context=context)

    def spawn(self, function: Callable[[], None]) -> Callable[[float], None]:
        greenlet = gevent.spawn(function)
        return greenlet.join


class Serving:
    """A handler at work on one connection.

    :param handler: called with the connection once it is accepted; it ends as under a server.
    :param early: what had come behind the head of the request.
    :param limits: of the connection.
    :param budget: that what it holds counts for.
    """

    def __init__(
        self,
        kind: Threads,
        handler: Handler,
        *,
        early: bytes = b"",
        headers: dict[str, str] | None = None,
        small_buffers: bool = False,
        limits: Limits,
        budget: Budget | None = None,
    ) -> None:
        self.kind = kind
        self.ws: Any = None
        self.lifecycle: Any = None
        self._handler = handler
        self._early = early
        self._limits = limits
        self._budget = budget
        self._environ = {
            "REQUEST_METHOD": "GET",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "PATH_INFO": "/path",
            **{
                f"HTTP_{name.upper().replace('-', '_')}": value
                for name, value in {**HANDSHAKE, **(headers or {})}.items()
            },
        }
        self._result: Any = None
        self._error: BaseException | None = None
        self.peer, self._sock = tcp_pair(small_buffers=small_buffers)
        self._thread = threading.Thread(target=lambda: kind.run(self._serve), daemon=True)
        self._thread.start()
        assert self.peer.response().status == 101

    def _serve(self) -> None:
        sock = self.kind.own(self._sock)

        def take(send_timeout: float) -> tuple[StreamTransport, bytes]:
            sock.setblocking(False)
            return self.kind.transport(sock, send_timeout=send_timeout), self._early

        self.lifecycle = lifecycle = self.kind.lifecycle(self._environ, take)
        lifecycle.opening.limits = self._limits
        lifecycle.opening.budget = self._budget or lifecycle.opening.budget
        self.ws = Connection(lifecycle)
        try:
            self.ws.accept()
            self._result = self._handler(self.ws)
        except BaseException as exc:
            self._error = exc
        finally:
            lifecycle.finish()
            sock.close()

    def result(self, timeout: float = TIMEOUT) -> Any:
        """Wait for the end of the handler and of its connection; return what it returned."""
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise TimeoutError("the handler has not ended in time")
        error, self._error = self._error, None
        if error is not None:
            raise error
        return self._result

    def stop(self) -> None:
        """End it, whatever it does; what it raised was the test's to look at."""
        self.peer.close()
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive(), "the handler did not end when its peer left"
