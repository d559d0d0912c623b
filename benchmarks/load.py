"""The load client: many connections, one message in flight on each, on one epoll.

It is the smallest loop that does the job: the request is made beforehand, a reply that arrives
whole is recognised by its length and its first byte, and the next request follows. Everything else
(replies in parts, pings, short writes) takes the slow path. What the client itself costs is
measured in every window; see ``README.rst``, "How the client was checked".
"""

from __future__ import annotations

import gc
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from .exchange import CLOSE_FRAME, Exchange, accepted, handshake

CRLF = b"\r\n"
READABLE, WRITABLE = select.EPOLLIN, select.EPOLLOUT
RECEIVE_SIZE = 1 << 20  # bytes
MAX_LATENCIES = 1_000_000  # of one window; beyond it the oldest are forgotten
SMALL = 4096  # bytes that a kernel always takes and gives in one piece, one message in flight
CONNECT_BATCH = 64  # handshakes under way at once while a load opens
CONNECT_TIMEOUT = 20.0  # seconds, for one handshake


class LoadError(Exception):
    """The server did not do what the benchmark asks of it; the message says what."""


@dataclass(frozen=True, slots=True)
class Window:
    """What the client saw in one stretch of load.

    :param messages: replies that ended in it.
    :param seconds: its length.
    :param cpu: seconds of CPU that this process spent in it.
    :param latencies: seconds from a request to its reply, ascending.
    :param backlog: replies that waited when the client looked, on average; 0: not counted.
    """

    messages: int
    seconds: float
    cpu: float
    latencies: list[float]
    backlog: float = 0.0

    def percentile(self, fraction: float) -> float:
        """Return a latency in seconds; nan if there is none."""
        if not self.latencies:
            return float("nan")
        return self.latencies[min(int(len(self.latencies) * fraction), len(self.latencies) - 1)]


class Connection:
    """One connection of the load, open."""

    __slots__ = ("counter", "recv_into", "send", "sent_at", "sock", "unsent")

    def __init__(self, sock: socket.socket, exchange: Exchange) -> None:
        self.sock = sock
        self.recv_into = sock.recv_into
        self.send = sock.send
        self.counter = exchange.counter()
        self.sent_at = 0.0
        self.unsent = memoryview(b"")


def connect(port: int, deadline: float) -> socket.socket:
    """Open a TCP connection and ask for the WebSocket; the answer is still to come."""
    timeout = max(deadline - time.monotonic(), 0.001)
    sock = socket.create_connection(("127.0.0.1", port), timeout)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(handshake(port))
    return sock


def finish_handshake(sock: socket.socket, deadline: float) -> None:
    """Wait for the answer to a handshake.

    :raises LoadError: it is no 101, or more came with it.
    """
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        sock.settimeout(max(deadline - time.monotonic(), 0.001))
        data = sock.recv(4096)
        if not data:
            raise LoadError("the server closed the connection during the handshake")
        head += data
        if b"\r\n\r\n" in head[:-4]:
            break
    if not accepted(head) or not head.endswith(b"\r\n\r\n"):
        raise LoadError(f"the handshake was answered with {head.partition(CRLF)[0]!r}")


def check_echo(port: int, exchange: Exchange, timeout: float) -> None:
    """Open a connection, exchange one message, compare every byte of the reply, and leave.

    :param timeout: seconds, for all of it.
    :raises LoadError: the reply is another one.
    :raises OSError: there is no server, or it is silent.
    """
    deadline = time.monotonic() + timeout
    with connect(port, deadline) as sock:
        finish_handshake(sock, deadline)
        sock.setblocking(False)
        unsent, reply = memoryview(exchange.request), bytearray()
        poller = select.poll()
        while len(reply) < len(exchange.reply):
            poller.register(sock, select.POLLIN | (select.POLLOUT if unsent else 0))
            events = poller.poll(max(deadline - time.monotonic(), 0) * 1000)
            if not events:
                raise TimeoutError(f"no reply to a message in {timeout:g} s")
            if events[0][1] & select.POLLOUT:
                unsent = unsent[sock.send(unsent) :]
            if events[0][1] & ~select.POLLOUT:
                data = sock.recv(RECEIVE_SIZE)
                if not data:
                    raise LoadError("the server closed the connection instead of replying")
                reply += data
        if reply != exchange.reply:
            raise LoadError("the reply differs from the message")


class Load:
    """A number of open connections to one server.

    Use it as a context manager, which closes them. :meth:`start` sends the first request on each
    connection, and each :meth:`run` is one window. Between windows replies wait in the kernel.

    :param port: of the server, on 127.0.0.1.
    :param exchange: what each connection sends again and again.
    """

    def __init__(self, port: int, exchange: Exchange) -> None:
        self.port = port
        self.exchange = exchange
        self.connections: dict[int, Connection] = {}
        self._epoll = select.epoll()
        self._buffer = bytearray(RECEIVE_SIZE)
        self._view = memoryview(self._buffer)

    def __enter__(self) -> Load:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._epoll.close()
        for connection in self.connections.values():
            self._leave(connection)
        self.connections.clear()

    def _leave(self, connection: Connection) -> None:
        """Close, with a close frame where one fits between two requests."""
        if self.exchange.parsed and not connection.unsent:
            try:
                connection.sock.send(CLOSE_FRAME)
            except OSError:
                pass  # the server was faster, or its buffer is full
        connection.sock.close()

    def open(self, count: int, timeout: float) -> None:
        """Open ``count`` more connections.

        :param timeout: seconds, for all of them.
        :raises LoadError: one of them was refused, or the time is over.
        """
        deadline = time.monotonic() + timeout
        while count > 0:
            batch = min(count, CONNECT_BATCH)
            try:
                self._open_batch(batch, min(deadline, time.monotonic() + CONNECT_TIMEOUT))
            except OSError as exc:
                opened = len(self.connections)
                raise LoadError(f"no handshake after {opened:,} connections: {exc}") from exc
            count -= batch

    def _open_batch(self, count: int, deadline: float) -> None:
        waiting: list[socket.socket] = []
        try:
            for _ in range(count):
                waiting.append(connect(self.port, deadline))
            while waiting:
                finish_handshake(waiting[-1], deadline)
                if len(self.exchange.request) <= SMALL:
                    self._greet(waiting[-1])
                self._add(waiting.pop())
        finally:
            for sock in waiting:
                sock.close()

    def _greet(self, sock: socket.socket) -> None:
        """Exchange one message and compare every byte: no connection is idle from birth."""
        sock.sendall(self.exchange.request)
        reply = b""
        while len(reply) < len(self.exchange.reply):
            data = sock.recv(SMALL)
            if not data:
                raise LoadError("the server closed the connection instead of replying")
            reply += data
        if reply != self.exchange.reply:
            raise LoadError("the reply differs from the message")

    def _add(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.connections[sock.fileno()] = Connection(sock, self.exchange)
        self._epoll.register(sock, READABLE)

    def start(self) -> None:
        """Send the first request on each connection."""
        try:
            for fd, connection in self.connections.items():
                self._request(fd, connection)
        except OSError as exc:
            raise LoadError(f"a connection broke at its first message: {exc}") from exc

    def run(self, seconds: float, *, at_least: int = 0, at_most: float | None = None) -> Window:
        """Answer each reply with the next request, for one window.

        Where :meth:`start` was not called the connections are idle, and only pings are answered.

        :param seconds: how long.
        :param at_least: go on until so many replies have come ...
        :param at_most: ... but not beyond so many seconds.
        :raises LoadError: a connection broke.
        """
        latencies: deque[float] = deque(maxlen=MAX_LATENCIES)
        gc.collect()
        gc.disable()
        cpu, begin = time.process_time(), time.perf_counter()
        last = begin + (seconds if at_most is None else at_most)
        try:
            messages = self._loop(latencies.append, begin + seconds, last, at_least)
        except OSError as exc:
            raise LoadError(f"a connection broke under load: {exc}") from exc
        finally:
            gc.enable()
        elapsed = time.perf_counter() - begin
        cpu = time.process_time() - cpu
        return Window(messages, elapsed, cpu, sorted(latencies))

    def _loop(self, record: Callable[[float], None], end: float, last: float, at_least: int) -> int:
        """Run the window of :meth:`run` and return the number of replies.

        The fast path is written out, and what it needs is looked up beforehand: it is all that
        the client does for a short message.
        """
        clock, poll, buffer = time.perf_counter, self._epoll.poll, self._buffer
        table = self.connections
        request, first = self.exchange.request, self.exchange.reply[0]
        reply_size = len(self.exchange.reply) if len(request) <= SMALL else -1
        messages = 0
        now = clock()
        while now < end or (now < last and messages < at_least):
            for fd, event in poll(0.05, 1024):
                connection = table[fd]
                if event == READABLE:
                    size = connection.recv_into(buffer)
                    if size == reply_size and buffer[0] == first and connection.counter.at_boundary:
                        now = clock()
                        record(now - connection.sent_at)
                        connection.sent_at = now
                        connection.send(request)
                        messages += 1
                    else:
                        messages += self._received(fd, connection, size, record)
                else:
                    messages += self._unusual(fd, connection, event, record)
            now = clock()
        return messages

    def _received(
        self, fd: int, connection: Connection, size: int, record: Callable[[float], None]
    ) -> int:
        """Take ``size`` bytes that may hold anything; return the number of replies, 0 or 1."""
        if not size:
            raise ConnectionError("the server closed it")
        replies, urgent = connection.counter.feed(self._view[:size])
        if urgent:
            if connection.unsent:
                raise ConnectionError("the server pinged in the middle of a request")
            connection.sock.send(urgent)
        if replies > 1:
            raise ConnectionError(f"{replies} replies came to one message")
        if replies:
            record(time.perf_counter() - connection.sent_at)
            self._request(fd, connection)
        return replies

    def _unusual(
        self, fd: int, connection: Connection, event: int, record: Callable[[float], None]
    ) -> int:
        """Go on with a request that was sent in part, and read what is there."""
        if event & WRITABLE:
            self._send(fd, connection, connection.unsent)
        if event & ~WRITABLE:
            return self._received(fd, connection, connection.recv_into(self._buffer), record)
        return 0

    def _request(self, fd: int, connection: Connection) -> None:
        """Begin the next message."""
        connection.sent_at = time.perf_counter()
        self._send(fd, connection, memoryview(self.exchange.request))

    def _send(self, fd: int, connection: Connection, data: memoryview) -> None:
        """Send what the kernel takes, and ask the epoll about the rest."""
        waited = bool(connection.unsent)
        try:
            connection.unsent = data[connection.send(data) :]
        except BlockingIOError:
            connection.unsent = data
        if bool(connection.unsent) != waited:
            self._epoll.modify(fd, READABLE | WRITABLE if connection.unsent else READABLE)
