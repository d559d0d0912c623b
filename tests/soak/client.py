"""One client among many in a thread: it connects, stays for a while, leaves and comes back."""

from __future__ import annotations

import errno
import selectors
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from tests.wire_client import PONG, close_frame, frame

from .reader import Reader

if TYPE_CHECKING:
    from .swarm import Swarm

__all__ = ["CLOSING_WAYS", "WAYS", "Client", "get"]

WAYS = ("fin", "rst", "half-read")
"""To leave."""
CLOSING_WAYS = ("close", "close", *WAYS)
"""Those of a WebSocket, mostly in good order."""

_CONNECT_TIMEOUT = 15.0  # seconds, up to where it has all that it wants
_SHORTEST_WAIT, _LONGEST_WAIT = 0.05, 2.0  # seconds between two attempts
_CLOSE_TIMEOUT = 3.0  # seconds for the server's half of a closing handshake
_SILENT = 90.0  # seconds without a byte after which a connection is given up: pings are due in 25
_LONGEST_PAUSE = 4.0  # seconds for which one that is connected does not read


def get(path: str, *lines: str) -> bytes:
    """Return a request; its response ends with the connection."""
    head = [f"GET {path} HTTP/1.1", "Host: 127.0.0.1", "Connection: close", *lines]
    return "\r\n".join([*head, "", ""]).encode()


class Client:
    """What all kinds have in common, from connection to connection.

    A kind says what it sends first, :meth:`opening`, takes what comes, :meth:`take`, calls
    :meth:`arrived` where it has what it wants, and tells whether that is so, :attr:`settled`.
    """

    ways: tuple[str, ...] = WAYS
    settled = False

    def __init__(self, swarm: Swarm, number: int) -> None:
        self.swarm = swarm
        self.random = swarm.random
        self.name = f"{type(self).__name__.lower()} {number}"
        self.is_relayed = number % 3 == 0
        self.connection: socket.socket | None = None
        self.since = 0.0  # when it was connected
        self._generation = 0  # timers of an older connection mean nothing
        self._failures = 0
        self._reader = Reader()
        self._output = b""
        self._heard = 0.0
        self._leaving = self._is_answered = False  # the closing handshake

    def opening(self) -> bytes:
        raise NotImplementedError

    def take(self, kind: str, value: Any) -> None:
        raise NotImplementedError

    def ended(self, why: str) -> None:
        """Note that a connection is over.

        :param why: ``closed`` where both sides have closed it in good order.
        """

    def is_level(self, newest: dict[str, str]) -> bool:
        """Whether it has seen all that was published."""
        return self.settled

    def note(self) -> None:
        """Pass on what was seen, and whether it is connected now."""

    @property
    def port(self) -> int:
        return self.swarm.plan.relay if self.is_relayed else self.swarm.plan.port

    def later(self, delay: float, function: Callable[[], None]) -> None:
        """Call a function, unless the connection is over by then."""
        generation = self._generation

        def call() -> None:
            if self._generation == generation:
                function()

        self.swarm.later(delay, call)

    # -- come ------------------------------------------------------------------------------

    def connect(self) -> None:
        if self.swarm.ending:
            return
        sock = socket.socket()
        sock.setblocking(False)
        self._generation += 1
        self.connection = sock
        self._reader = Reader()
        self._leaving = self._is_answered = self.settled = False
        self._heard = time.monotonic()
        self._output = self.opening()
        error = sock.connect_ex(("127.0.0.1", self.port))
        self.swarm.selector.register(sock, selectors.EVENT_WRITE, self)
        if error not in (0, errno.EINPROGRESS):
            self.lost("refused")
            return
        self.later(_CONNECT_TIMEOUT, self._give_up)

    def arrived(self) -> None:
        """Note that it has what it wants."""
        self.settled = True
        self._failures = 0
        self.swarm.seen.counts["connections"] += 1
        stay = self.random.expovariate(1 / self.swarm.plan.lifetime)
        self.later(stay, self.leave)
        self.later(_SILENT, self._listen_for_silence)
        if self.swarm.plan.pauses and self.random.random() < 0.1:
            self.later(stay * self.random.random(), self._pause)

    def _give_up(self) -> None:
        if not self.settled:
            self.lost("gave up")

    def _listen_for_silence(self) -> None:
        if time.monotonic() - self._heard > _SILENT:
            self.lost("gave up, silent")
        else:
            self.later(_SILENT, self._listen_for_silence)

    def _pause(self) -> None:
        """Stop reading for a while."""
        if self._leaving or self.swarm.staying or self._output:
            return
        assert self.connection is not None
        self.swarm.seen.counts["paused"] += 1
        self.swarm.selector.unregister(self.connection)
        self.later(self.random.uniform(0.5, _LONGEST_PAUSE), self._go_on)

    def _go_on(self) -> None:
        self._register(selectors.EVENT_READ)

    def _register(self, events: int) -> None:
        assert self.connection is not None
        if self.connection in self.swarm.selector.get_map():
            self.swarm.selector.modify(self.connection, events, self)
        else:
            self.swarm.selector.register(self.connection, events, self)

    # -- bytes -----------------------------------------------------------------------------

    def ready(self, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE:
                self._write()
            if events & selectors.EVENT_READ and self.connection is not None:
                self._read()
        except OSError:
            self.lost("broken")

    def _write(self) -> None:
        assert self.connection is not None
        error = self.connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, "connect")
        self._output = self._output[self.connection.send(self._output) :]
        if not self._output:
            self._register(selectors.EVENT_READ)

    def send(self, data: bytes) -> None:
        self._output += data
        self._register(selectors.EVENT_READ | selectors.EVENT_WRITE)

    def _read(self) -> None:
        assert self.connection is not None
        data = self.connection.recv(262144)
        if not data:
            self.lost("left" if self._leaving else "dropped")
            return
        self._heard = time.monotonic()
        generation = self._generation
        for kind, value in self._reader.feed(data):
            if kind == "ping":
                self.send(frame(PONG, value))
            elif kind == "close":
                if self._leaving:  # it waits for the end of the connection
                    self._is_answered = value == 1000
                else:
                    self.lost(f"closed with {value}")
            else:
                if kind == "status":
                    self.since = time.monotonic()
                self.take(kind, value)
            if self._generation != generation:
                return

    # -- go --------------------------------------------------------------------------------

    def leave(self) -> None:
        """Go in one of several ways."""
        if self.connection is None or (self.swarm.staying and not self.swarm.ending):
            return
        how = self.random.choice(self.ways)
        self.swarm.seen.counts[f"left by {how}"] += 1
        if how == "close":
            self._leaving = True
            self.send(close_frame())
            self.later(_CLOSE_TIMEOUT, lambda: self.lost("not closed"))
        elif how == "half-read":
            with suppress(KeyError):
                self.swarm.selector.unregister(self.connection)
            self.later(self.random.uniform(0.05, 2.0), lambda: self.lost("left"))
        else:
            if how == "rst":
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.lost("left")

    def reconnect(self) -> None:
        """Connect anew at once: one thing is done, and another one follows."""
        self._end()
        self.connect()

    def _end(self) -> bool:
        """Close the connection; False where there is none."""
        sock, self.connection = self.connection, None
        self._generation += 1
        if sock is None:
            return False
        with suppress(KeyError):
            self.swarm.selector.unregister(sock)
        sock.close()
        return True

    def lost(self, why: str) -> None:
        """End what is left of the connection, and come back."""
        if not self._end():
            return
        self.ended("closed" if self._is_answered and why == "left" else why)
        self.settled = self._leaving = False
        self.swarm.seen.counts[why] += 1
        if why in ("left", "answered"):
            wait = self.random.random() * self.swarm.plan.away
        else:
            self._failures += 1
            longest = min(_LONGEST_WAIT, _SHORTEST_WAIT * 2**self._failures)
            wait = self.random.uniform(0.5, 1.0) * longest
        self.later(wait, self.connect)
