"""What comes over a connection, in pieces: heads, bodies, frames, and the blocks of event streams.

It forgives nothing that a browser would not, and shares no code with the package.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

from tests.wire_client import BINARY, CLOSE, PING, TEXT

__all__ = ["Blocks", "Reader"]

Item = tuple[str, Any]


class Reader:
    """Reads one response, and the WebSocket that it may begin.

    :meth:`feed` yields pairs: ``hint`` with the head of an interim response (RFC 8297), ``status``
    with that of the response, ``body`` with some of its bytes, ``end`` once it is whole; ``text``
    or ``binary`` with a message, ``ping`` with its payload, ``close`` with its code.
    """

    def __init__(self) -> None:
        self._data = bytearray()
        self._left = 0  # bytes of a body
        self._step: Callable[[], Item | None] | None = self._head

    def feed(self, data: bytes) -> Iterator[Item]:
        self._data += data
        while self._step is not None and (item := self._step()) is not None:
            yield item

    def _take(self, size: int) -> bytes:
        taken = bytes(self._data[:size])
        del self._data[:size]
        return taken

    def _head(self) -> Item | None:
        end = self._data.find(b"\r\n\r\n")
        if end < 0:
            return None
        first, *lines = self._take(end + 4)[:-4].decode("latin-1").split("\r\n")
        status = int(first.split()[1])
        pairs = (line.partition(":") for line in lines)
        fields = {name.lower(): value.strip() for name, _, value in pairs}
        if status == 101:
            self._step = self._frame
        elif status < 200:
            return "hint", fields
        elif "chunked" in fields.get("transfer-encoding", ""):
            self._step = self._chunk
        elif "content-length" in fields:
            self._left = int(fields["content-length"])
            self._step = self._sized
        else:
            self._step = self._rest
        return "status", (status, fields)

    def _chunk(self) -> Item | None:
        """RFC 9112 §7.1"""
        end = self._data.find(b"\r\n")
        if end < 0:
            return None
        size = int(self._data[:end], 16)
        if len(self._data) < end + size + 4:
            return None
        body = self._take(end + size + 4)[end + 2 : -2]
        if size == 0:
            self._step = None
            return "end", None
        return "body", body

    def _sized(self) -> Item | None:
        if self._left == 0:
            self._step = None
            return "end", None
        body = self._take(self._left)
        self._left -= len(body)
        return ("body", body) if body else None

    def _rest(self) -> Item | None:
        return ("body", self._take(len(self._data))) if self._data else None

    def _frame(self) -> Item | None:
        """A server does not mask, and ours does not fragment."""
        data = self._data
        if len(data) < 2:
            return None
        size, start = data[1], 2
        if size >= 126:
            start = 4 if size == 126 else 10
            if len(data) < start:
                return None
            size = int.from_bytes(data[2:start], "big")
        if len(data) < start + size:
            return None
        opcode, payload = data[0] & 0xF, self._take(start + size)[start:]
        if opcode == CLOSE:
            return "close", struct.unpack("!H", payload[:2])[0] if payload else 1005
        return {TEXT: "text", BINARY: "binary", PING: "ping"}.get(opcode, "pong"), payload


class Blocks:
    """Joins the bytes of an event stream to blocks of lines (WHATWG HTML §9.2.5)."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[str]:
        *blocks, self._rest = (self._rest + data).split(b"\n\n")
        for block in blocks:
            yield block.decode()
