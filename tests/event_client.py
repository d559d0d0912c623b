"""A client of Server-Sent Events that takes the stream as bytes.

It shares no code with the package. Every wait has a deadline.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, NamedTuple

from tests.wire_client import TIMEOUT


class Event(NamedTuple):
    """What a browser dispatches (WHATWG HTML §9.2.6).

    :ivar last_id: ``event.lastEventId``.
    """

    type: str
    data: str
    last_id: str

    def json(self) -> Any:
        return json.loads(self.data)


class Dispatcher:
    """Makes of the blocks of a stream what a browser does.

    :ivar last_id: what it would come back with.
    :ivar retry: milliseconds, as told last.
    """

    def __init__(self) -> None:
        self.last_id = ""
        self.retry: int | None = None

    def take(self, block: str) -> Event | None:
        """Return the event of a block of lines, None where it dispatches none."""
        type, data = "message", []
        for line in block.split("\n"):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "data":
                data.append(value)
            elif name == "event" and value:
                type = value
            elif name == "id" and "\0" not in value:
                self.last_id = value
            elif name == "retry":
                self.retry = int(value)
            else:
                assert name in ("", "id", "event"), block
        return Event(type, "\n".join(data), self.last_id) if data else None


class EventClient:
    """One request for a stream on a server of 127.0.0.1, or its socket, TLS for one.

    :param address: that it comes from, as a proxy would say.

    :ivar head: status line and header fields, as they came.
    :ivar raw: all bytes of the body so far, as they came.
    """

    def __init__(
        self,
        port: int,
        path: str,
        *,
        version: str = "HTTP/1.1",
        receive_buffer: int | None = None,
        context: Any = None,
        last_event_id: str = "",
        address: str = "",
        cookie: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.sock = socket.socket()
        self.sock.settimeout(TIMEOUT)
        if receive_buffer is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.connect(("127.0.0.1", port))
        if context is not None:
            self.sock = context.wrap_socket(self.sock, server_hostname="127.0.0.1")
        last = f"Last-Event-ID: {last_event_id}\r\n" if last_event_id else ""
        by = f"X-Forwarded-For: {address}\r\n" if address else ""
        by += f"Cookie: {cookie}\r\n" if cookie else ""
        by += "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        self.sock.sendall(f"GET {path} {version}\r\nHost: 127.0.0.1\r\n{last}{by}\r\n".encode())
        self.dispatcher = Dispatcher()
        self.head = b""
        self.raw = b""
        self._text = b""
        self._parsed = 0  # bytes of raw whose chunks were joined
        self.ended = False

    def __enter__(self) -> EventClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.sock.close()

    def reset(self) -> None:
        """Close it with a RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def _more(self, deadline: float) -> bool:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"came in time: {self.head!r} {self.raw[-300:]!r}")
        self.sock.settimeout(left)
        try:
            data = self.sock.recv(262144)
        except ConnectionResetError:
            data = b""
        self.raw += data
        self.ended = not data
        return bool(data)

    def read_head(self, timeout: float = TIMEOUT) -> EventClient:
        """Read the head of the response."""
        deadline = time.monotonic() + timeout
        while b"\r\n\r\n" not in self.raw:
            assert self._more(deadline), f"no response: {self.raw!r}"
        self.head, _, self.raw = self.raw.partition(b"\r\n\r\n")
        return self

    @property
    def status(self) -> int:
        return int(self.head.split()[1])

    @property
    def headers(self) -> dict[str, str]:
        lines = self.head.decode().split("\r\n")[1:]
        return {k.lower(): v for k, _, v in (line.partition(": ") for line in lines)}

    def _join(self) -> None:
        """Take what came out of its chunks (RFC 9112 §7.1), where it is in chunks."""
        if "transfer-encoding" not in self.headers:
            self._text += self.raw[self._parsed :]
            self._parsed = len(self.raw)
            return
        while (end := self.raw.find(b"\r\n", self._parsed)) >= 0:
            size = int(self.raw[self._parsed : end], 16)
            if len(self.raw) < end + 2 + size + 2:
                return
            self._text += self.raw[end + 2 : end + 2 + size]
            assert self.raw[end + 2 + size : end + 4 + size] == b"\r\n"
            self._parsed = end + 4 + size

    def block(self, timeout: float = TIMEOUT) -> str:
        """The next block of lines, an event or a comment."""
        deadline = time.monotonic() + timeout
        if not self.head:
            self.read_head(timeout)
        while True:
            self._join()
            block, found, rest = self._text.partition(b"\n\n")
            if found:
                self._text = rest
                return block.decode()
            if not self._more(deadline):
                raise EOFError(f"the stream ended after {self.raw[-300:]!r}")

    def event(self, timeout: float = TIMEOUT) -> dict[str, Any]:
        """The next event, which is JSON; heartbeats are passed over."""
        deadline = time.monotonic() + timeout
        while (block := self.block(deadline - time.monotonic())) == ":":
            pass
        lines = block.split("\n")
        assert all(line.startswith("data: ") for line in lines), block
        found: dict[str, Any] = json.loads("\n".join(line[6:] for line in lines))
        return found

    def next(self, timeout: float = TIMEOUT) -> Event:
        """The next event that a browser would dispatch."""
        deadline = time.monotonic() + timeout
        while (event := self.dispatcher.take(self.block(deadline - time.monotonic()))) is None:
            pass
        return event

    def opened(self) -> EventClient:
        """Wait until the stream has begun: it tells where it is."""
        while not self.dispatcher.last_id:
            self.dispatcher.take(self.block())
        return self

    def begin(self) -> list[dict[str, Any]]:
        """The events that come before any message: ``streams`` and each ``subscribed``."""
        begun = [self.event()]
        assert begun[0]["event"] == "streams", begun
        begun += [self.event() for _ in begun[0]["channels"]]
        return begun

    def data(self, timeout: float = TIMEOUT) -> Any:
        """The data of the next message."""
        return self.event(timeout)["data"]

    def rest(self, timeout: float = TIMEOUT) -> bytes:
        """Read up to the end; all that came since the head."""
        deadline = time.monotonic() + timeout
        if not self.head:
            self.read_head(timeout)
        while self._more(deadline):
            pass
        return self.raw
