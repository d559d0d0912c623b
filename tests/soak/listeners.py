"""The process of the clients: all in one thread, which come and go and note what they see."""

from __future__ import annotations

import errno
import heapq
import json
import selectors
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from multiprocessing.connection import Connection
from random import Random

from tests.wire_client import CLOSE, PING, PONG, TEXT, close_frame, frame, request

from .checker import GAP, MESSAGE, SUBSCRIBED, Event, Record
from .publisher import read

__all__ = ["Plan", "Seen", "run"]

_CONNECT_TIMEOUT = 15.0  # seconds, up to the last subscription
_SHORTEST_WAIT, _LONGEST_WAIT = 0.05, 2.0  # seconds between two attempts
_CLOSE_TIMEOUT = 3.0  # seconds for the server's half of a closing handshake
_SILENT = 90.0  # seconds without a frame after which a connection is given up: pings are due in 25


@dataclass(frozen=True)
class Plan:
    """Who connects, and for how long.

    :ivar lifetime: seconds that a connection lasts on average.
    :ivar away: seconds between two of them, at most.
    """

    port: int
    clients: int
    channels: Sequence[str]
    lifetime: float
    away: float
    seed: int


@dataclass
class Seen:
    """What all clients saw.

    :ivar counts: of connections, replays, ways to leave and so on.
    :ivar worst_catch_up: seconds from a connection to the last message that it had missed.
    :ivar worst_delay: seconds from publishing to the arrival at a client that was connected.
    """

    records: list[Record] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    worst_catch_up: float = 0.0
    worst_delay: float = 0.0


def run(plan: Plan, pipe: Connection) -> None:
    """Let clients come and go until told otherwise through the pipe.

    ``"stay"``: who is connected stays, all others connect. ``"settled"`` asks whether all are, and
    ``("level", {channel: position})`` whether they have seen that; ``"end"`` whether
    :class:`Seen`.
    """
    _Swarm(plan, pipe).run()


class _Swarm:
    def __init__(self, plan: Plan, pipe: Connection) -> None:
        self.plan = plan
        self.seen = Seen()
        self.random = Random(f"{plan.seed}-clients")
        self.selector = selectors.DefaultSelector()
        self.staying = False
        self._pipe = pipe
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._clients = [_Client(self, number) for number in range(plan.clients)]

    def later(self, delay: float, function: Callable[[], None]) -> None:
        entry = (time.monotonic() + delay, next(self._numbers), function)
        heapq.heappush(self._timers, entry)

    def run(self) -> None:
        self.selector.register(self._pipe, selectors.EVENT_READ)
        for client in self._clients:
            self.later(self.random.random() * len(self._clients) / 500, client.connect)
        while True:
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                heapq.heappop(self._timers)[2]()
            timeout = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else 1.0
            for key, events in self.selector.select(min(timeout, 1.0)):
                if key.fileobj is self._pipe:
                    if not self._obey(self._pipe.recv()):
                        return
                elif key.data.connection == key.fileobj:
                    key.data.ready(events)

    def _obey(self, command: object) -> bool:
        if command == "stay":
            self.staying = True
            self._pipe.send(None)
        elif command == "settled":
            self._pipe.send(sum(not client.settled for client in self._clients))
        elif isinstance(command, tuple):
            self._pipe.send(sum(not client.is_level(command[1]) for client in self._clients))
        else:
            for client in self._clients:
                for record in client.records.values():
                    record.connected = client.settled
                    self.seen.records.append(record)
            self._pipe.send(self.seen)
            return False
        return True


class _Client:
    """One client, from connection to connection."""

    def __init__(self, swarm: _Swarm, number: int) -> None:
        self._swarm = swarm
        self._random = swarm.random
        some = 1 if number % 2 else self._random.randint(2, min(5, len(swarm.plan.channels)))
        channels = self._random.sample(list(swarm.plan.channels), some)
        self.records = {channel: Record(f"client {number}", channel) for channel in channels}
        self._last: dict[str, str | None] = dict.fromkeys(channels)
        self.connection: socket.socket | None = None
        self._generation = 0  # timers of an older connection mean nothing
        self._failures = 0
        self._input = bytearray()
        self._output = b""
        self._upgraded = False
        self._subscribed: set[str] = set()
        self._since = 0.0  # when it was connected
        self._heard = 0.0
        self._replays = False
        self._leaving = False

    @property
    def settled(self) -> bool:
        return self.connection is not None and len(self._subscribed) == len(self.records)

    def is_level(self, newest: dict[str, str]) -> bool:
        return self.settled and all(self._last[name] == newest[name] for name in self.records)

    def _later(self, delay: float, function: Callable[[], None]) -> None:
        generation = self._generation

        def call() -> None:
            if self._generation == generation:
                function()

        self._swarm.later(delay, call)

    # -- come ------------------------------------------------------------------------------

    def connect(self) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        self._generation += 1
        self.connection = sock
        self._input.clear()
        self._upgraded = self._leaving = self._replays = False
        self._subscribed.clear()
        self._heard = time.monotonic()
        # The server reads both in one go, or not: both are to work.
        self._output = request("/listen") + frame(TEXT, json.dumps(self._last).encode())
        error = sock.connect_ex(("127.0.0.1", self._swarm.plan.port))
        self._swarm.selector.register(sock, selectors.EVENT_WRITE, self)
        if error not in (0, errno.EINPROGRESS):
            self._lost("refused")
            return
        self._later(_CONNECT_TIMEOUT, self._give_up)

    def _give_up(self) -> None:
        if not self.settled:
            self._lost("gave up")

    def ready(self, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE:
                self._write()
            if events & selectors.EVENT_READ:
                self._read()
        except OSError:
            self._lost("broken")

    def _write(self) -> None:
        assert self.connection is not None
        error = self.connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, "connect")
        self._output = self._output[self.connection.send(self._output) :]
        if not self._output:
            self._swarm.selector.modify(self.connection, selectors.EVENT_READ, self)

    def _send(self, data: bytes) -> None:
        assert self.connection is not None
        self._output += data
        events = selectors.EVENT_READ | selectors.EVENT_WRITE
        self._swarm.selector.modify(self.connection, events, self)

    def _read(self) -> None:
        assert self.connection is not None
        data = self.connection.recv(262144)
        if not data:
            self._lost("left" if self._leaving else "dropped")
            return
        self._heard = time.monotonic()
        self._input += data
        if not self._upgraded:
            head, end, rest = self._input.partition(b"\r\n\r\n")
            if not end:
                return
            if b" 101 " not in head[:20]:
                self._lost(f"answered {bytes(head[9:12]).decode()}")
                return
            self._upgraded = True
            self._since = time.monotonic()
            self._input = rest
        generation = self._generation
        while self._generation == generation and (message := self._frame()) is not None:
            opcode, payload = message
            if opcode == TEXT:
                self._take(payload)
            elif opcode == PING:
                self._send(frame(PONG, payload))
            elif opcode == CLOSE:
                code = struct.unpack("!H", payload[:2])[0] if payload else 1005
                if not self._leaving:
                    self._lost(f"closed with {code}")

    def _frame(self) -> tuple[int, bytes] | None:
        """Take the next frame; a server does not mask, and ours does not fragment."""
        data = self._input
        if len(data) < 2:
            return None
        size, start = data[1], 2
        if size == 126:
            start = 4
            size = int.from_bytes(data[2:4], "big") if len(data) >= 4 else 2**32
        elif size == 127:
            start = 10
            size = int.from_bytes(data[2:10], "big") if len(data) >= 10 else 2**32
        if len(data) < start + size:
            return None
        payload = bytes(data[start : start + size])
        opcode = data[0] & 0xF
        del data[: start + size]
        return opcode, payload

    # -- what it sees ----------------------------------------------------------------------

    def _take(self, payload: bytes) -> None:
        message = json.loads(payload)
        if "subscribed" in message:
            self._confirmed(message["subscribed"], message["position"])
            return
        channel, position = message["channel"], message["position"]
        epoch, _, offset = position.partition("-")
        events = self.records[channel].events
        counts, now = self._swarm.seen.counts, time.monotonic()
        self._last[channel] = position
        if message.get("event") == "gap":
            counts["gaps told"] += 1
            events.append(Event(GAP, sys.intern(epoch), int(offset)))
            return
        name, publisher, serial, when = read(message["data"], message.get("encoding"))
        events.append(
            Event(MESSAGE, sys.intern(epoch), int(offset), sys.intern(name), publisher, serial)
        )
        counts["deliveries"] += 1
        seen = self._swarm.seen
        if when < self._since:
            counts["messages replayed"] += 1
            counts["replays"] += not self._replays
            self._replays = True
            seen.worst_catch_up = max(seen.worst_catch_up, now - self._since)
        else:
            seen.worst_delay = max(seen.worst_delay, now - when)

    def _confirmed(self, channel: str, position: str) -> None:
        self._subscribed.add(channel)
        if self._last[channel] is None:
            epoch, _, offset = position.partition("-")
            self._last[channel] = position
            self.records[channel].events.append(Event(SUBSCRIBED, sys.intern(epoch), int(offset)))
        if self.settled:
            self._failures = 0
            self._swarm.seen.counts["connections"] += 1
            self._later(self._random.expovariate(1 / self._swarm.plan.lifetime), self._leave)
            self._later(_SILENT, self._listen_for_silence)

    def _listen_for_silence(self) -> None:
        if time.monotonic() - self._heard > _SILENT:
            self._lost("gave up, silent")
        else:
            self._later(_SILENT, self._listen_for_silence)

    # -- go --------------------------------------------------------------------------------

    def _leave(self) -> None:
        """Go in one of several ways."""
        if self._swarm.staying:
            return
        assert self.connection is not None
        how = self._random.choice(("close", "close", "fin", "rst", "half-read"))
        self._swarm.seen.counts[f"left by {how}"] += 1
        if how == "close":
            self._leaving = True
            self._send(close_frame())
            self._later(_CLOSE_TIMEOUT, lambda: self._lost("not closed"))
        elif how == "half-read":
            self._swarm.selector.unregister(self.connection)
            self._later(self._random.uniform(0.05, 2.0), lambda: self._lost("left"))
        else:
            if how == "rst":
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self._lost("left")

    def _lost(self, why: str) -> None:
        """The connection is over; come back."""
        sock, self.connection = self.connection, None
        self._generation += 1
        if sock is None:
            return
        with suppress(KeyError):
            self._swarm.selector.unregister(sock)
        sock.close()
        self._swarm.seen.counts[why] += 1
        if why == "left":
            wait = self._random.random() * self._swarm.plan.away
        else:
            self._failures += 1
            longest = min(_LONGEST_WAIT, _SHORTEST_WAIT * 2**self._failures)
            wait = self._random.uniform(0.5, 1.0) * longest
        self._later(wait, self.connect)
