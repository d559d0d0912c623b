"""The clients: all in one event loop, which come back as pages do and note how they fared.

WebSockets come back as ``docs/reconnecting.rst`` has it, with the numbers of the browser's half of
Turbo; event streams as an ``EventSource`` (WHATWG HTML §9.2.3), after the ``retry`` that they were
told; who echoes as the former.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import ssl
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import flask_sockets2.turbo
from tests.event_client import Dispatcher
from tests.soak.checker import GAP, MESSAGE, SUBSCRIBED, Event, Record
from tests.wire_client import CLOSE, PING, PONG, TEXT, close_frame, frame, request

__all__ = ["Client", "Echo", "EventStream", "Listener", "Outage", "Site"]

CHANNEL = "sse:news"
CONNECT_TIMEOUT = 30.0  # seconds, up to the first message
SILENCE = 60.0  # seconds without even a ping or a heartbeat
ECHO_INTERVAL = 0.5  # seconds

_JS = (Path(flask_sockets2.turbo.__file__).parent / "static" / "turbo-streams.js").read_text()
_MILLISECONDS = {
    name: int(number.replace("_", ""))
    for name, number in re.findall(r"^const (\w+) = ([\d_]+);", _JS, re.MULTILINE)
}
FIRST_DELAY = _MILLISECONDS["FIRST_DELAY"] / 1000
LONGEST_DELAY = _MILLISECONDS["LONGEST_DELAY"] / 1000
STABLE = _MILLISECONDS["STABLE"] / 1000


class Lost(Exception):
    """A connection has ended, or none came about; the text says how."""


@dataclass
class Site:
    """Where the clients connect.

    :ivar newest: offset of the newest message that was acknowledged.
    """

    port: int
    context: ssl.SSLContext | None = None
    newest: int = 0


@dataclass
class Outage:
    """From the end of a connection until its client has what it missed; times are monotonic.

    :ivar how: it ended.
    :ivar first: whether the backoff was at its first step.
    :ivar step: seconds until the first attempt.
    :ivar failures: attempts that were in vain, and why.
    :ivar back: when it was connected again, and heard of it.
    :ivar level: when it had seen all that there was by then.
    """

    how: str
    first: bool
    step: float
    ended: float
    failures: list[str] = field(default_factory=list)
    back: float | None = None
    level: float | None = None


class Client:
    """One client, from connection to connection.

    :ivar connected: it is, and was told so by the application.
    """

    kind: ClassVar[str]

    def __init__(self, site: Site, number: int) -> None:
        self.site = site
        self.name = f"{self.kind} {number}"
        self.record = Record(self.name, CHANNEL)
        self.outages: list[Outage] = []
        self.connected = False
        self.offset = 0  # of the newest message that it has seen
        self._last = ""  # position of that one
        self._target: int | None = None
        self._opened = 0.0
        self._delay = FIRST_DELAY

    @property
    def settled(self) -> bool:
        """Whether it is connected and has what it missed."""
        return self.connected and not (self.outages and self.outages[-1].level is None)

    async def run(self) -> None:
        """Connect, and come back, until cancelled."""
        while True:
            how = "?"
            try:
                how = await self._connection()
            except Lost as exc:
                how = str(exc)
            except asyncio.IncompleteReadError:
                how = "cut"
            except OSError as exc:  # refused, reset or silent
                how = type(exc).__name__
            if self.connected or not self.outages:
                self.connected = False
                first, step = self._step()
                self.outages.append(Outage(how, first, step, time.monotonic()))
            else:
                self.outages[-1].failures.append(how)
                _, step = self._step()
            await asyncio.sleep(step)

    def _step(self) -> tuple[bool, float]:
        """Say whether the backoff is at its first step, and how long that is with its jitter."""
        if self._opened and time.monotonic() - self._opened > STABLE:
            self._delay = FIRST_DELAY
        self._opened = 0.0
        first = self._delay == FIRST_DELAY
        step = self._delay * (0.5 + random.random() / 2)
        self._delay = min(2 * self._delay, LONGEST_DELAY)
        return first, step

    async def _connection(self) -> str:
        """Connect and stay; return how it ended."""
        async with asyncio.timeout(CONNECT_TIMEOUT):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", self.site.port, ssl=self.site.context
            )
        try:
            writer.write(self._request())
            async with asyncio.timeout(CONNECT_TIMEOUT):
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                self._greeted(int(head.split(None, 2)[1]))
            return await self._stay(head, reader, writer)
        except asyncio.CancelledError:
            writer.transport.abort()  # at the end of all there is no time for a goodbye
            raise
        finally:
            writer.close()

    def _request(self) -> bytes:
        raise NotImplementedError

    def _greeted(self, status: int) -> None:
        """Look at the status of the response."""
        raise NotImplementedError

    async def _stay(
        self, head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> str:
        raise NotImplementedError

    # -- what it sees ----------------------------------------------------------------------

    def _came(self) -> None:
        """It is connected."""
        self.connected = True
        self._opened = time.monotonic()
        if self.outages and self.outages[-1].back is None:
            self.outages[-1].back = self._opened
            self._target = self._newest()
        self._look()

    def _newest(self) -> int:
        """Offset of the message with which it is level."""
        return self.site.newest

    def _look(self) -> None:
        if self._target is not None and self.offset >= self._target:
            self.outages[-1].level = time.monotonic()
            self._target = None

    def _begun(self, position: str) -> None:
        """It is told where the channel is; the first time that is where it begins."""
        if not self._last:
            self._note(SUBSCRIBED, position)
        self._came()

    def _told(self, position: str, data: str) -> None:
        serial, _ = json.loads(data)
        self._note(MESSAGE, position, serial)

    def _note(self, kind: str, position: str, serial: int = 0) -> None:
        epoch, _, offset = position.partition("-")
        self._last, self.offset = position, int(offset)
        channel = CHANNEL if kind == MESSAGE else ""
        self.record.events.append(
            Event(kind, sys.intern(epoch), self.offset, channel, serial=serial)
        )
        self._look()


class _WebSocket(Client):
    path: ClassVar[str]

    def _request(self) -> bytes:
        query = f"?since={self._last}" if self._last else ""
        return request(self.path + query)

    def _greeted(self, status: int) -> None:
        if status != 101:
            raise Lost(f"answered {status}")

    async def _stay(
        self, head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> str:
        self._begin(writer)
        while True:
            async with asyncio.timeout(SILENCE):
                opcode, payload = await _frame(reader)
            if opcode == TEXT:
                self._message(payload)
            elif opcode == PING:
                writer.write(frame(PONG, payload))
            elif opcode == CLOSE:
                code = struct.unpack("!H", payload[:2])[0] if payload else 1005
                writer.write(close_frame(code))
                return f"closed with {code}"

    def _begin(self, writer: asyncio.StreamWriter) -> None:
        """The handshake is done."""

    def _message(self, payload: bytes) -> None:
        raise NotImplementedError


class Listener(_WebSocket):
    """A WebSocket that is subscribed."""

    kind, path = "listener", "/listen"

    def _message(self, payload: bytes) -> None:
        envelope = json.loads(payload)
        if "subscribed" in envelope:
            self._begun(envelope["position"])
        elif envelope.get("event") == "gap":
            self._note(GAP, envelope["position"])
        else:
            self._told(envelope["position"], envelope["data"]["data"])


class Echo(_WebSocket):
    """A WebSocket that says something, again and again, until it comes back."""

    kind, path = "echo", "/echo"

    def __init__(self, site: Site, number: int) -> None:
        super().__init__(site, number)
        self.echoed = 0
        self.wrong = 0  # answers that were never asked for
        self._next: asyncio.TimerHandle | None = None

    def _newest(self) -> int:
        return 0

    def _begin(self, writer: asyncio.StreamWriter) -> None:
        if self._next is not None:
            self._next.cancel()  # of the connection before
        self._writer = writer
        self._say()

    def _say(self) -> None:
        if not self._writer.is_closing():
            self._writer.write(frame(TEXT, str(self.echoed).encode()))

    def _message(self, payload: bytes) -> None:
        if not self.connected:
            self._came()
        self.wrong += payload != str(self.echoed).encode()
        self.echoed += 1
        loop = asyncio.get_running_loop()
        self._next = loop.call_later(ECHO_INTERVAL, self._say)


class EventStream(Client):
    """What an EventSource sees.

    :ivar dead: responses after which a browser would not come back.
    """

    kind = "event stream"

    def __init__(self, site: Site, number: int) -> None:
        super().__init__(site, number)
        self.dead = 0
        self._retry = 2.0  # seconds; told by the first response

    def _step(self) -> tuple[bool, float]:
        return True, self._retry

    def _request(self) -> bytes:
        last = f"Last-Event-ID: {self._last}\r\n" if self._last else ""
        head = "GET /stream?channel=news HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        return f"{head}Accept: text/event-stream\r\n{last}\r\n".encode()

    def _greeted(self, status: int) -> None:
        if status != 200:
            self.dead += 1
            raise Lost(f"answered {status}")

    async def _stay(
        self, head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> str:
        chunked = "transfer-encoding: chunked" in head
        dispatcher, rest = Dispatcher(), ""
        while True:
            async with asyncio.timeout(SILENCE):
                data = await (_chunk(reader) if chunked else reader.read(65536))
            if not data:
                return "ended"
            *blocks, rest = (rest + data.decode()).split("\n\n")
            for block in blocks:
                self._block(dispatcher, block)

    def _block(self, dispatcher: Dispatcher, block: str) -> None:
        event = dispatcher.take(block)
        if dispatcher.retry is not None:
            self._retry = dispatcher.retry / 1000
        if event is None:
            if not self.connected:
                self._begun(dispatcher.last_id)
        elif event.type == "gap":
            self._note(GAP, event.last_id)
        else:
            self._told(event.last_id, event.data)


async def _frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Read a frame; a server does not mask, and ours does not fragment."""
    first, size = await reader.readexactly(2)
    if size >= 126:
        size = int.from_bytes(await reader.readexactly(2 if size == 126 else 8))
    return first & 0xF, await reader.readexactly(size)


async def _chunk(reader: asyncio.StreamReader) -> bytes:
    """Read a chunk (RFC 9112 §7.1); the last one is empty."""
    size = int(await reader.readuntil(b"\r\n"), 16)
    return (await reader.readexactly(size + 2))[:size]


def swarm(site: Site, count: int, echoes: int) -> Iterator[Client]:
    """Make clients: one half listens by WebSockets, the other by event streams; some echo."""
    for number in range(count):
        yield (Listener if number % 2 else EventStream)(site, number)
    for number in range(echoes):
        yield Echo(site, number)
