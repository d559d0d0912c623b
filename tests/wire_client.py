"""A WebSocket client that keeps no rule: raw bytes out, frames as they come in.

It shares no code with the package. Every wait has a deadline.
"""

from __future__ import annotations

import ctypes
import os
import select
import socket
import struct
import time
from dataclasses import dataclass
from types import TracebackType

TIMEOUT = 60.0  # seconds, for each wait

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA

HANDSHAKE = {
    "Host": "127.0.0.1",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}
"""The header fields of a good request (RFC 6455 §1.2)."""

_SO_ATTACH_FILTER = 26  # asm-generic/socket.h; the socket module does not name it


def mask_bytes(payload: bytes, mask: bytes) -> bytes:
    """Mask or unmask (RFC 6455 §5.3)."""
    size = len(payload)
    key = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")).to_bytes(size, "big")


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    reserved: int = 0,
    masked: bool = True,
    size: int | None = None,
) -> bytes:
    """Build a frame as a client sends it, or as none should.

    :param reserved: the three reserved bits, as a number from 0 to 7.
    :param size: the length to announce, where it is not the payload's.
    """
    size = len(payload) if size is None else size
    head = bytes((fin << 7 | reserved << 4 | opcode,))
    bit = 0x80 if masked else 0
    if size < 126:
        head += bytes((bit | size,))
    elif size < 2**16:
        head += struct.pack("!BH", bit | 126, size)
    else:
        head += struct.pack("!BQ", bit | 127, size)
    if not masked:
        return head + payload
    mask = os.urandom(4)
    return head + mask + mask_bytes(payload, mask)


def close_frame(code: int = 1000, reason: bytes = b"") -> bytes:
    return frame(CLOSE, struct.pack("!H", code) + reason)


def request(
    path: str = "/echo",
    headers: dict[str, str | None] | None = None,
    *,
    method: str = "GET",
    version: str = "HTTP/1.1",
    lines: list[str] | None = None,
) -> bytes:
    """Return the head of a request for a WebSocket.

    :param headers: what differs from a good one; None takes a field out.
    :param lines: header lines that come first, as they are.
    """
    fields = {**HANDSHAKE, **(headers or {})}
    head = [f"{method} {path} {version}", *(lines or [])]
    head += [f"{name}: {value}" for name, value in fields.items() if value is not None]
    return "\r\n".join([*head, "", ""]).encode("latin-1")


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    headers: dict[str, str]  # names in lower case
    body: str


@dataclass(frozen=True, slots=True)
class Frame:
    fin: bool
    reserved: int
    opcode: int
    payload: bytes


class WireClient:
    """One TCP connection to a server on 127.0.0.1.

    :param receive_buffer: bytes that the kernel keeps for it, so that what is not read is soon
        felt at the other end; None for the system's own choice.
    """

    def __init__(self, port: int, *, receive_buffer: int | None = None) -> None:
        self.sock = socket.socket()
        self.sock.settimeout(TIMEOUT)
        if receive_buffer is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._received = bytearray()
        try:
            self.sock.connect(("127.0.0.1", port))
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:
            self.sock.close()
            raise

    def __enter__(self) -> WireClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close it as an orderly process does: with a FIN, unless something was left unread."""
        self.sock.close()

    def reset(self) -> None:
        """Close it with a RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def vanish(self) -> None:
        """Let no packet in any more, as when the cable is out: neither ACK, FIN nor RST leaves."""
        instructions = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # return 0
        program = struct.pack("HP", 1, ctypes.addressof(instructions))
        self.sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)

    # -- bytes out -------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Send all of it, or fail when the server takes nothing for ``TIMEOUT`` seconds."""
        self.sock.sendall(data)

    def send_while_taken(self, data: bytes, *, for_seconds: float, stalled_after: float) -> int:
        """Send something again and again, reading nothing.

        :returns: bytes sent, once the time is over, the server takes nothing any more for
            ``stalled_after`` seconds or the connection has ended.
        """
        sent = 0
        until = time.monotonic() + for_seconds
        self.sock.settimeout(stalled_after)
        view = memoryview(data)
        offset = 0
        try:
            # Whole: the next frame must begin where this one ends.
            while time.monotonic() < until or offset:
                step = self.sock.send(view[offset:])
                sent += step
                offset = (offset + step) % len(data)
        except OSError:
            pass
        finally:
            self.sock.settimeout(TIMEOUT)
        return sent

    def send_until_answered(self, data: bytes, timeout: float = TIMEOUT) -> int:
        """Send something again and again until something comes.

        :returns: bytes sent.
        :raises TimeoutError: when nothing comes.
        """
        sent = 0
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            readable, writable, _ = select.select([self.sock], [self.sock], [], 0.1)
            if readable:
                return sent
            if writable:
                self.sock.setblocking(False)
                offset = sent % len(data)
                sent += self.sock.send(memoryview(data)[offset:])
                self.sock.settimeout(TIMEOUT)
        raise TimeoutError(f"sent {sent} bytes and got no answer")

    # -- bytes in --------------------------------------------------------------------------

    def _more(self, deadline: float) -> bool:
        """Read what is there, at least a byte; False at the end of the stream."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("nothing whole came in time")
        self.sock.settimeout(left)
        try:
            data = self.sock.recv(262144)
        except ConnectionResetError:
            data = b""
        finally:
            self.sock.settimeout(TIMEOUT)
        self._received += data
        return bool(data)

    def _take(self, size: int, deadline: float) -> bytes:
        while len(self._received) < size:
            if not self._more(deadline):
                raise EOFError(f"the stream ended after {bytes(self._received[:200])!r}")
        taken = bytes(self._received[:size])
        del self._received[:size]
        return taken

    def response(self, timeout: float = TIMEOUT) -> Response:
        """Read a response; one that is no 101 up to the end of the stream."""
        deadline = time.monotonic() + timeout
        while b"\r\n\r\n" not in self._received:
            if not self._more(deadline):
                raise EOFError(f"the stream ended after {bytes(self._received[:200])!r}")
        size = self._received.index(b"\r\n\r\n") + 4
        first, *lines = self._take(size, deadline).decode("latin-1").split("\r\n")[:-2]
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        status = int(first.split()[1])
        body = b"" if status == 101 else self.rest(deadline - time.monotonic())
        return Response(status, headers, body.decode())

    def read_slowly(self, *, at_a_time: int, interval: float, seconds: float) -> None:
        """Take so many bytes in every interval, for later calls to find."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._received += self.sock.recv(at_a_time)
            time.sleep(interval)  # its pace; nothing is waited for

    def rest(self, timeout: float = TIMEOUT) -> bytes:
        """All that comes up to the end of the stream."""
        deadline = time.monotonic() + timeout
        while self._more(deadline):
            pass
        rest = bytes(self._received)
        self._received.clear()
        return rest

    def frame(self, timeout: float = TIMEOUT) -> Frame:
        """The next frame, whatever it is."""
        deadline = time.monotonic() + timeout
        first, second = self._take(2, deadline)
        assert not second & 0x80, "a server does not mask (RFC 6455 §5.1)"
        size = second & 0x7F
        if size == 126:
            (size,) = struct.unpack("!H", self._take(2, deadline))
        elif size == 127:
            (size,) = struct.unpack("!Q", self._take(8, deadline))
        payload = self._take(size, deadline)
        return Frame(bool(first & 0x80), first >> 4 & 0x7, first & 0xF, payload)

    def message(self, timeout: float = TIMEOUT) -> bytes:
        """The payload of the next data frame, which is a whole message."""
        deadline = time.monotonic() + timeout
        while True:
            came = self.frame(deadline - time.monotonic())
            if came.opcode < 0x8:
                assert came.fin, "expected an unfragmented message"
                return came.payload
            assert came.opcode != CLOSE, f"expected a message, got a close frame: {came}"

    def closing(self, timeout: float = TIMEOUT, *, answers: bool = False) -> tuple[int, str]:
        """Read up to the server's close frame, then the end of the stream right behind it.

        :param answers: send one, too, as browsers do. Without it a server that is not closing for
            a mistake of ours waits for it, ``close_timeout`` seconds.
        :returns: close code and reason.
        """
        deadline = time.monotonic() + timeout
        while (came := self.frame(deadline - time.monotonic())).opcode != CLOSE:
            pass
        if answers:
            self.send(frame(CLOSE, came.payload))
        assert self.rest(deadline - time.monotonic()) == b"", "nothing may follow a close frame"
        (code,) = struct.unpack("!H", came.payload[:2])
        return code, came.payload[2:].decode()


def connect(
    port: int,
    path: str = "/echo",
    headers: dict[str, str | None] | None = None,
    *,
    receive_buffer: int | None = None,
) -> WireClient:
    """Open a WebSocket.

    :raises AssertionError: when the server refuses it.
    """
    client = WireClient(port, receive_buffer=receive_buffer)
    try:
        client.send(request(path, headers))
        response = client.response()
        assert response.status == 101, f"expected 101, got {response}"
    except BaseException:
        client.close()
        raise
    return client
