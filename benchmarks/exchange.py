"""The bytes that the load client sends, and the counting of those that come back.

Nothing here touches a socket. A request is one masked frame made beforehand (RFC 6455 §5.2), so
that the client spends its time in the kernel. Replies under load are counted, not decoded: the
headers of the frames say where one ends. :mod:`benchmarks.load` compares every byte of the first.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
FIN = 0x80
MASKED = 0x80
NONE = -1

# The key and the mask may be the same for every connection: no server looks at either.
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
MASK = b"\x37\xfa\x21\x3d"


def handshake(port: int, target: str = "/echo") -> bytes:
    """Return the request head that opens a connection."""
    return (
        f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        "Upgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()


def accepted(head: bytes) -> bool:
    """Tell whether a response head accepts :func:`handshake`."""
    return head.startswith(b"HTTP/1.1 101 ") and ACCEPT in head


def frame(opcode: int, payload: bytes, *, masked: bool) -> bytes:
    """Return one final frame.

    :param payload: bytes, unmasked.
    :param masked: as a client sends it.
    """
    bit = MASKED if masked else 0
    size = len(payload)
    if size < 126:
        head = bytes((FIN | opcode, bit | size))
    elif size < 65536:
        head = struct.pack("!BBH", FIN | opcode, bit | 126, size)
    else:
        head = struct.pack("!BBQ", FIN | opcode, bit | 127, size)
    return head + MASK + _mask(payload) if masked else head + payload


def _mask(payload: bytes) -> bytes:
    """Exclusive-or the payload with the mask, as two large numbers."""
    size = len(payload)
    mask = (MASK * (size // 4 + 1))[:size]
    return (int.from_bytes(payload) ^ int.from_bytes(mask)).to_bytes(size)


CLOSE_FRAME = frame(CLOSE, (1000).to_bytes(2), masked=True)


class ByteCounter:
    """Count replies of a floor: it sends back every byte of the request, mask and all.

    :param size: bytes of one reply.
    """

    __slots__ = ("at_boundary", "received", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.received = 0
        self.at_boundary = True

    def feed(self, data: memoryview) -> tuple[int, bytes]:
        """Return how many replies end in ``data``, and what must be sent at once: nothing."""
        self.received += len(data)
        replies, self.received = divmod(self.received, self.size)
        self.at_boundary = self.received == 0
        return replies, b""


class FrameCounter:
    """Count the data messages of a WebSocket server, and answer its pings.

    :raises ConnectionError: by :meth:`feed`, when the server closes.
    """

    __slots__ = ("at_boundary", "control", "head", "left", "start")

    def __init__(self) -> None:
        self.head = b""  # the first bytes of a frame whose header has not arrived whole
        self.start = NONE  # the first byte of the current frame: FIN and opcode
        self.left = 0  # bytes of payload that the current frame still lacks
        self.control = b""  # payload so far, of a control frame
        self.at_boundary = True

    def feed(self, data: memoryview) -> tuple[int, bytes]:
        """Return how many messages end in ``data``, and what must be sent at once: pongs."""
        messages, pongs = 0, b""
        while data or (self.start != NONE and not self.left):
            if self.start == NONE:
                data = self._feed_head(data)
                continue
            part, data = data[: self.left], data[self.left :]
            self.left -= len(part)
            if self.start & 0x8:
                self.control += part
            if self.left:
                break
            if self.start & 0x8:
                pongs += self._control()
            elif self.start & FIN:
                messages += 1
            self.start = NONE
        self.at_boundary = self.start == NONE and not self.head
        return messages, pongs

    def _feed_head(self, data: memoryview) -> memoryview:
        """Take a header, as far as it is there, and return what follows."""
        head = self.head + bytes(data[:10])
        length = head[1] if len(head) > 1 else 0
        size = {126: 4, 127: 10}.get(length, 2)
        if len(head) < size:
            self.head = head
            return data[len(data) :]
        self.start = head[0]
        self.left = int.from_bytes(head[2:size]) if size > 2 else length
        self.control = b""
        used = size - len(self.head)
        self.head = b""
        return data[used:]

    def _control(self) -> bytes:
        """Answer a whole control frame."""
        opcode = self.start & 0xF
        if opcode == PING:
            return frame(PONG, self.control, masked=True)
        if opcode == CLOSE:
            code = int.from_bytes(self.control[:2]) if self.control else 1005
            raise ConnectionError(f"the server closed with {code}")
        return b""


class EventCounter:
    """Count the events of a stream (WHATWG HTML §9.2.6); those without data are none.

    :param end: the last bytes of an event and of what carries it: those of its chunk, if any.
    """

    __slots__ = ("_end", "_rest")

    def __init__(self, end: bytes) -> None:
        self._end = end
        self._rest = b""

    @property
    def at_boundary(self) -> bool:
        """Whether nothing of an event is there that has not come whole."""
        return not self._rest

    def feed(self, data: memoryview) -> tuple[int, bytes]:
        """Return how many events end in ``data``, and what must be sent at once: nothing."""
        *events, self._rest = (self._rest + data).split(self._end)
        return sum(b"data:" in event for event in events), b""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One message there and back.

    :param request: the bytes to send, one masked frame.
    :param reply: the bytes to expect.
    :param parsed: the server speaks WebSocket; False: it is a floor and sends back what it got.
    """

    request: bytes
    reply: bytes
    parsed: bool

    @classmethod
    def of(cls, payload: bytes, *, binary: bool, parsed: bool) -> Exchange:
        """Return the exchange of one payload with a server or with a floor."""
        opcode = BINARY if binary else TEXT
        request = frame(opcode, payload, masked=True)
        reply = frame(opcode, payload, masked=False) if parsed else request
        return cls(request, reply, parsed)

    def counter(self) -> ByteCounter | FrameCounter:
        """Return the counter of a new connection."""
        return FrameCounter() if self.parsed else ByteCounter(len(self.reply))
