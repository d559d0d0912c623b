"""The load of a broadcast: many connections that send nothing, and the counting of what they get.

All messages of a window are alike, so deliveries are counted by bytes: the first message, compared
whole on every connection, tells how long a frame is. What does not look like frames of that length
(a ping, for example) takes the slow path through :class:`~benchmarks.exchange.FrameCounter`.
:mod:`benchmarks.subscribers` has those of event streams.
"""

from __future__ import annotations

import gc
import json
import select
import socket
import time
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple

from .exchange import CLOSE_FRAME, TEXT, EventCounter, FrameCounter, accepted, frame, handshake
from .load import CRLF, LoadError, Window

RECEIVE_SIZE = 1 << 18  # bytes
IN_FLIGHT = 256  # handshakes under way at once
CONNECT_TIMEOUT = 20.0  # seconds, for one handshake
SOURCE_CONNECTIONS = 20_000  # from one address of the loopback network: there are 28,000 ports
IP_BIND_ADDRESS_NO_PORT = 24  # choose the port when the peer is known, so that peers can share it
SUBSCRIBES = 0.2  # seconds between the last 101 and the first message: the handler comes after it
EVENTS = 1024  # taken from the epoll at a time


class Greeting(NamedTuple):
    """What passes between a listener and its server before messages do, once the 101 has come.

    :ivar sent: by the listener.
    :ivar awaited: is in the last text before the first message.
    """

    sent: bytes
    awaited: bytes


SOCKET_IO_GREETING = Greeting(frame(TEXT, b"40", masked=True), b'40{"sid":"')
TURBO_GREETING = Greeting(b"", b'{"event": "subscribed"')


def order(port: int, target: str, timeout: float) -> socket.socket:
    """Send an HTTP request, whose answer :func:`answer` reads."""
    sock = socket.create_connection(("127.0.0.1", port), timeout)
    sock.sendall(f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
    return sock


def answer(sock: socket.socket, timeout: float) -> str:
    """Read the answer to :func:`order` and close.

    :raises LoadError: it is no 200, or none comes.
    """
    with sock:
        sock.settimeout(timeout)
        data = b""
        try:
            while part := sock.recv(65536):
                data += part
        except OSError as exc:
            raise LoadError(f"a request was not answered: {exc}") from exc
    head, _, body = data.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise LoadError(f"a request was answered with {head.partition(CRLF)[0]!r}")
    return body.decode()


def ask(port: int, target: str, timeout: float = 10.0) -> str:
    """Send an HTTP request and return the body of its answer."""
    return answer(order(port, target, timeout), timeout)


@dataclass(frozen=True, slots=True)
class Broadcast:
    """What a server is told to publish.

    :param count: messages.
    :param interval: seconds between them; 0: back to back.
    :param turn: messages that a server which joins those of one turn publishes in it.
    :param channels: over how many channels; 0: to the one that all listen to.
    """

    count: int
    interval: float = 0.0
    turn: int = 1
    channels: int = 0

    def target(self, size: int) -> str:
        """Return the request's target."""
        return (
            f"/publish?count={self.count}&size={size}&interval={self.interval}"
            f"&turn={self.turn}&channels={self.channels}"
        )


class Listeners:
    """Connections that listen, to one server or several.

    Use it as a context manager, which closes them.

    :param size: bytes of the payload of each message.
    :param greeting: what comes before the messages, None where nothing does.
    """

    farewell = CLOSE_FRAME

    def __init__(self, size: int = 300, *, greeting: Greeting | None = None) -> None:
        self.size = size
        self.greeting = greeting
        self.frame = b""
        #: Sockets that had something when the last window looked, on average: many where the
        #: server was the faster.
        self.backlog = 0.0
        self.sockets: dict[int, socket.socket] = {}
        self._epoll = select.epoll()
        self._buffer = bytearray(RECEIVE_SIZE)
        self._view = memoryview(self._buffer)
        # By descriptor: how to receive, messages so far, bytes of one that has not come whole; and
        # what counts those that are off the fast path.
        self._receive: list[Any] = []
        self._counts: list[int] = []
        self._rest: list[int] = []
        self._parsed: dict[int, FrameCounter | EventCounter] = {}

    def __enter__(self) -> Listeners:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave, with a close frame where there are such; can be repeated."""
        self._epoll.close()
        for sock in self.sockets.values():
            try:
                sock.send(self.farewell)
            except OSError:
                pass  # the server was faster
            sock.close()
        self.sockets.clear()

    # -- opening ---------------------------------------------------------------------------

    def open(self, port: int, count: int, timeout: float, target: str = "/listen") -> None:
        """Open ``count`` more connections, many of them at once.

        :param timeout: seconds, for all of them.
        :param target: what they ask for; ``{number}`` in it is the number of each.
        :raises LoadError: one of them was refused, or the time is over.
        """
        deadline = time.monotonic() + timeout
        waiting: deque[socket.socket] = deque()
        number = 0
        try:
            while waiting or number < count:
                while number < count and len(waiting) < IN_FLIGHT:
                    waiting.append(self._connect(port, target.replace("{number}", str(number))))
                    number += 1
                limit = min(deadline, time.monotonic() + CONNECT_TIMEOUT)
                early = self._accepted(waiting[0], limit)
                self._add(waiting.popleft(), early)
        except OSError as exc:
            opened = len(self.sockets)
            raise LoadError(f"no handshake after {opened:,} connections: {exc}") from exc
        finally:
            for sock in waiting:
                sock.close()

    def _connect(self, port: int, target: str) -> socket.socket:
        sock = socket.socket()
        try:
            source = 1 + len(self.sockets) // SOURCE_CONNECTIONS
            sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((f"127.0.0.{source}", 0))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(CONNECT_TIMEOUT)
            sock.connect(("127.0.0.1", port))
            sock.sendall(self._request(port, target))
        except BaseException:
            sock.close()
            raise
        return sock

    def _request(self, port: int, target: str) -> bytes:
        return handshake(port, target)

    def _counter(self) -> FrameCounter | EventCounter:
        return FrameCounter()

    def _accepted(self, sock: socket.socket, deadline: float) -> bytes:
        """Wait until a connection listens, and return what came behind the 101."""
        data = receive_until(sock, b"\r\n\r\n", deadline)
        head, end, early = data.partition(b"\r\n\r\n")
        if not accepted(head + end):
            raise LoadError(f"the handshake was answered with {head.partition(CRLF)[0]!r}")
        if self.greeting is None:
            return early
        sock.sendall(self.greeting.sent)
        receive_until(sock, self.greeting.awaited, deadline, early)
        return b""  # the rest of that text is less than 100 bytes, and comes in the same piece

    def _add(self, sock: socket.socket, early: bytes) -> None:
        sock.setblocking(False)
        fd = sock.fileno()
        self.sockets[fd] = sock
        if fd >= len(self._counts):
            more = fd + 1 - len(self._counts)
            self._receive += [None] * more
            self._counts += [0] * more
            self._rest += [0] * more
        self._receive[fd] = sock.recv_into
        self._counts[fd] = self._rest[fd] = 0
        self._epoll.register(fd, select.EPOLLIN)
        if early:
            self._buffer[: len(early)] = early
            self._counts[fd] += self._take(fd, len(early))

    def expect(self, opcode: int = TEXT) -> None:
        """Take it that messages are frames of our size, where none can be had beforehand."""
        self.frame = frame(opcode, b"x" * self.size, masked=False)

    def learn(self, ports: list[int], timeout: float) -> None:
        """Have one message published to all, and compare every byte that each of them gets.

        :param ports: of the servers; each publishes one in turn.
        :raises LoadError: one got nothing, or something else.
        """
        time.sleep(SUBSCRIBES)
        for port in ports:
            request = order(port, Broadcast(1).target(self.size), timeout)
            deadline = time.monotonic() + timeout
            try:
                for sock in self.sockets.values():
                    self._learn_from(sock, deadline)
            except OSError as exc:
                raise LoadError(f"a listener got no message: {exc}") from exc
            answer(request, timeout)

    def _learn_from(self, sock: socket.socket, deadline: float, data: bytes = b"") -> None:
        """Take a message, which ``data`` may be the beginning of."""
        counter, got = self._counter(), b""
        while True:
            if not data:
                sock.settimeout(max(deadline - time.monotonic(), 0.001))
                data = sock.recv(65536)
            if not data:
                raise LoadError("the server closed the connection instead of publishing")
            messages, pongs = counter.feed(memoryview(data))
            if pongs:  # a ping and nothing else, in the moment before
                sock.sendall(pongs)
                counter, got, data = self._counter(), b"", b""
                continue
            got, data = got + data, b""
            if messages:
                break
        sock.setblocking(False)
        self.frame = self.frame or got
        if got != self.frame or not counter.at_boundary:
            raise LoadError("a listener got another message than the first one")

    # -- windows ---------------------------------------------------------------------------

    def broadcast(
        self, port: int, what: Broadcast, timeout: float, *, expected: int | None = None
    ) -> Window:
        """Have messages published and wait until they have arrived everywhere.

        :param expected: deliveries; by default each message at each connection.
        :returns: the deliveries; in place of latencies, for each message the seconds from its
            first delivery to its last.
        :raises LoadError: some did not arrive in time.
        """
        if expected is None:
            expected = what.count * len(self.sockets)
        paced = what.interval > 0
        began, cpu = time.perf_counter(), time.process_time()
        request = order(port, what.target(self.size), timeout)
        spreads = self.collect(expected, began + timeout, what.count if paced else 0)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        answer(request, timeout)
        return Window(expected, seconds, cpu, sorted(spreads), self.backlog)

    def collect(self, expected: int, deadline: float, spread_of: int = 0) -> list[float]:
        """Receive until so many messages have come.

        :param deadline: by ``perf_counter``.
        :param spread_of: the number of messages whose spread is wanted.
        :returns: for each of those the seconds from its first delivery to its last.
        :raises LoadError: they have not come by then, or a connection broke.
        """
        gc.collect()
        gc.disable()
        try:
            return self._loop(expected, deadline, spread_of)
        except OSError as exc:
            raise LoadError(f"a listener broke: {exc}") from exc
        finally:
            gc.enable()

    def reset(self) -> None:
        """Count from nothing."""
        self._counts = [0] * len(self._counts)

    def arrived(self) -> int:
        """Return how many messages have come since :meth:`reset`."""
        return sum(self._counts)

    def _loop(self, expected: int, deadline: float, spread_of: int) -> list[float]:
        """Run :meth:`collect`; the fast path is written out."""
        clock, poll, buffer = time.perf_counter, self._epoll.poll, self._buffer
        receive, counts, rest = self._receive, self._counts, self._rest
        size, start = len(self.frame), self.frame[0]
        parsed = self._parsed
        first, last = [0.0] * spread_of, [0.0] * spread_of
        base = dict.fromkeys(self.sockets, 0)
        base.update((fd, counts[fd]) for fd in self.sockets)
        missing, polls = expected, 0
        while missing > 0:
            events = poll(1.0, EVENTS)
            polls += 1
            for fd, _ in events:
                got = receive[fd](buffer)
                if got == size and buffer[0] == start and not rest[fd] and fd not in parsed:
                    messages = 1
                else:
                    messages = self._take(fd, got)
                if spread_of and messages:
                    now = clock()
                    number = counts[fd] - base[fd]
                    for index in range(number, min(number + messages, spread_of)):
                        last[index] = now
                        if not first[index]:
                            first[index] = now
                counts[fd] += messages
                missing -= messages
            if clock() > deadline:
                raise LoadError(f"{missing:,} of {expected:,} deliveries did not come in time")
        self.backlog = expected / max(polls, 1)
        return [end - begin for begin, end in zip(first, last, strict=True)]

    def _take(self, fd: int, got: int) -> int:
        """Take ``got`` bytes of the buffer, and return how many messages end in them."""
        if not got:
            raise ConnectionError("the server closed it")
        counter = self._parsed.get(fd)
        if counter is not None:
            return self._parse(fd, counter, got)
        size, buffer = len(self.frame), self._buffer
        before = self._rest[fd]
        messages, after = divmod(before + got, size) if size else (0, got)
        starts = size - before if before else 0  # where the next frame begins
        aligned = bool(size)
        if aligned and starts < got:
            aligned = buffer[starts] == self.frame[0]
        if aligned and 0 < after <= got:
            aligned = buffer[got - after] == self.frame[0]
        if aligned:
            self._rest[fd] = after
            return messages
        counter = self._counter()
        if before:
            counter.feed(memoryview(self.frame)[:before])
        self._rest[fd] = 0
        self._parsed[fd] = counter
        return self._parse(fd, counter, got)

    def _parse(self, fd: int, counter: FrameCounter | EventCounter, got: int) -> int:
        messages, pongs = counter.feed(self._view[:got])
        if pongs:
            self.sockets[fd].send(pongs)
        if counter.at_boundary:
            del self._parsed[fd]
        return messages


def receive_until(sock: socket.socket, mark: bytes, deadline: float, data: bytes = b"") -> bytes:
    """Receive until something has come.

    :raises LoadError: the server closed before.
    """
    while mark not in data:
        sock.settimeout(max(deadline - time.monotonic(), 0.001))
        part = sock.recv(65536)
        if not part:
            raise LoadError("the server closed the connection during the handshake")
        data += part
    return data


def check_push(port: int, timeout: float, *, target: str, greeting: Greeting | None) -> None:
    """Open one listener, have a message published, and leave.

    :raises LoadError: something else came.
    :raises OSError: there is no server, or it is silent.
    """
    with Listeners(greeting=greeting) as listeners:
        socket.create_connection(("127.0.0.1", port), timeout).close()
        listeners.open(port, 1, timeout, target)
        listeners.learn([port], timeout)


def seconds_of(body: str) -> float:
    """Read how long publishing took from the answer of ``/publish``."""
    return float(json.loads(body)["seconds"])
