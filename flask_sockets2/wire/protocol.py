"""Protocol: turns bytes into messages and back, for one accepted server-side WebSocket.

Two lanes read the same stream. The fast lane reads almost every frame: uncompressed data, whole or
fragmented, plain pings and pongs, and the peer's close frame. The strict lane, websockets'
:class:`~websockets.server.ServerProtocol`, is made on first use. It reads all other frames, one by
one: compressed frames, frames after our own close frame, and every violation. The strict lane
implements permessage-deflate (RFC 7692) and chooses the close codes of failures.

States (RFC 6455 §7.1)::

    OPEN ─ close()/fail() ─> CLOSING ─ receive_eof() ─> CLOSED
      │  └ a close frame, a violation ─> CLOSING
      └── receive_eof() ──────────────────────────────> CLOSED with 1006

Differences from ``ServerProtocol`` alone, on purpose:

* a close frame in the middle of a fragmented message is answered with its own code, not with 1002
  (§5.4 allows control frames between fragments);
* a ping or pong is answered even if ``max_message_size`` is shorter, or nearly used up by a
  fragmented message; ``ServerProtocol`` counts control frames as data;
* a compressed message is never longer than ``max_message_size``; in ``ServerProtocol``, zlib may
  hold back a last match until an empty fragment, which has no limit;
* text that is not UTF-8 fails the connection at the first invalid fragment; ``ServerProtocol``
  leaves this check to the caller;
* a length in more bytes than necessary, or with its highest bit set, is 1002 (§5.2), unless we wait
  for the answer to our close frame; ``ServerProtocol`` accepts this length.
"""

from __future__ import annotations

import logging
from codecs import getincrementaldecoder
from collections.abc import Sequence
from typing import Any

from websockets.extensions import Extension
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol

from .close_codes import check_close, may_be_sent
from .frames import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    apply_mask,
    build,
    build_deflated,
    parse_header,
)

__all__ = ["CLOSED", "CLOSING", "MESSAGES_PER_TURN", "OPEN", "Protocol"]

OPEN, CLOSING, CLOSED = "OPEN", "CLOSING", "CLOSED"

MESSAGES_PER_TURN = 64
"""Most messages of one :meth:`Protocol.receive`, including the frames in :attr:`Protocol.extra`.
More are left for the caller's next turn."""

_OPCODES = frozenset((0x0, 0x1, 0x2, 0x8, 0x9, 0xA))
_FAST_STARTS = frozenset((0x81, 0x82, 0x01, 0x02))  # starts of messages: FIN or not, no RSV bit
_FAST_CONTINUATIONS = frozenset((0x80, 0x00))
_FAST_CLOSE = 0x88
_FAST_CONTROLS = frozenset((0x89, 0x8A))  # ping, pong
_LARGE = 65536  # bytes of a decompressed message that end a turn
_SMALL_FRAGMENT = 1024  # bytes; larger fragments cost for their bytes, not for their frame
_CLOSING_PIECE = 2048  # bytes of a turn once we have sent a close frame: up to 340 small frames
_COPY = 2048  # bytes; below it slicing is cheaper than a memoryview

_Utf8Decoder = getincrementaldecoder("utf-8")
_NOT_UTF8 = "text is not valid UTF-8"
_NOT_MINIMAL = "frame length is not encoded in as few bytes as it needs"

# Only errors of ServerProtocol are logged: its life cycle lines would repeat ours.
_logger = logging.Logger("flask_sockets2.wire", logging.ERROR)


class Protocol:
    """The WebSocket protocol of one accepted connection, without I/O.

    :param max_message_size: most bytes of one message, after decompression; more is 1009.
    :param extensions: extensions that the handshake agreed to (RFC 7692), in its order.

    After each call except :meth:`send`, :attr:`output` holds the bytes to write. If
    :attr:`finished` is set, half-close the stream after them. If a call only returned messages,
    :attr:`attention` is unset and both can be skipped. Not safe for concurrent use; the transport's
    lock guards this object.
    """

    __slots__ = (
        "_buffer",
        "_decoder",
        "_extensions",
        "_idle",
        "_inflated",
        "_message",
        "_needed",
        "_opcode",
        "_small",
        "_strict",
        "attention",
        "close_received",
        "close_sent",
        "extra",
        "failed",
        "finished",
        "max_message_size",
        "more",
        "output",
        "pong",
        "state",
        "window_bits",
    )

    def __init__(self, *, max_message_size: int, extensions: Sequence[Extension] = ()) -> None:
        self.max_message_size = max_message_size
        self.state = OPEN
        self.output: list[bytes] = []
        self.finished = False
        #: Whether there may be more to do than to take the messages; reset by the caller.
        self.attention = False
        #: Window for compressing each message by itself; None without compression.
        self.window_bits: int | None = None
        for extension in extensions:
            self.window_bits = getattr(extension, "local_max_window_bits", None)
        #: Whether the stream ended with a failure (§7.1.7) and not with a closing handshake.
        self.failed = False
        #: Whether whole frames may be waiting; if so, call ``receive(b"")`` in the next turn.
        self.more = False
        #: Frames of the last call that cost as much as a message without making one: pings, pongs
        #: and small fragments before the last. Valid only if :attr:`attention` is set.
        self.extra = 0
        #: Payload of the newest pong; None if no pong arrived since the caller took the last one.
        self.pong: bytes | None = None
        #: Code and reason of the close frame that was received or sent; None before.
        self.close_received: tuple[int, str] | None = None
        self.close_sent: tuple[int, str] | None = None
        self._extensions = extensions
        self._strict: ServerProtocol | None = None
        self._small = min(max_message_size, 125)
        self._buffer: bytes | bytearray = b""
        self._needed = 0  # bytes that the buffer must hold before the next parse
        self._idle = True  # nothing is buffered and no message is under way
        self._message: bytearray | None = None  # fragments so far, fast lane
        self._opcode = TEXT  # opcode of that message, or of the strict lane's message
        self._decoder: Any = None  # made with the first fragmented text
        self._inflated: bytearray | None = None  # fragments so far, strict lane

    # -- reading ---------------------------------------------------------------------------

    def receive(self, data: bytes) -> list[str | bytes]:
        """Take bytes from the peer and return the messages that they complete.

        :param data: bytes received, in any portion; empty to continue if :attr:`more` is set.
        :returns: messages in order; with :attr:`extra`, at most :data:`MESSAGES_PER_TURN`.
        """
        size = len(data)
        # One small, whole, unfragmented data frame and nothing else: nearly every call.
        if self._idle and size > 6 and data[1] == size + 122 and size - 6 <= self._small:
            head = data[0]
            if head == 0x81:
                try:
                    return [apply_mask(data[6:], data[2:6]).decode()]
                except UnicodeDecodeError:
                    return self._not_utf8()
            if head == 0x82:
                return [apply_mask(data[6:], data[2:6])]
        self.attention = True
        self.extra = 0
        if self.state is not OPEN:
            return self._receive_closing(data)
        stream: bytes | bytearray = data
        if self._buffer:
            self._buffer += data
            stream = self._buffer
            if len(stream) < self._needed:
                return []
        messages: list[str | bytes] = []
        position = self._split(stream, messages)
        if position >= len(stream) or self.finished:
            self._buffer = b""
        elif isinstance(stream, bytearray):
            del stream[:position]
        else:
            self._buffer = bytearray(stream[position:])
        self._idle = (
            not self._buffer
            and self._message is None
            and self._inflated is None
            and self.state is OPEN
        )
        return messages

    def receive_eof(self) -> None:
        """Take the end of the peer's stream; from any state, the state becomes CLOSED."""
        self.state = CLOSED
        self._idle = self.more = False
        self.finished = True
        self._buffer = b""
        self._message = self._inflated = self._strict = None

    @property
    def missing(self) -> int:
        """Bytes that the frame under way still lacks, 0 if the number is not known."""
        return max(0, self._needed - len(self._buffer))

    @property
    def unfinished(self) -> int:
        """Bytes of the message and the frame that are incomplete."""
        size = len(self._buffer)
        if self._message is not None:
            size += len(self._message)
        if self._inflated is not None:
            size += len(self._inflated)
        if self._strict is not None:
            size += len(self._strict.reader.buffer)
        return size

    def _split(self, data: bytes | bytearray, messages: list[str | bytes]) -> int:
        """Read whole frames from a stream; return the position of the first incomplete one."""
        position, end, fed = 0, len(data), 0
        self.more = False
        self._needed = 0
        while end - position >= 2:
            head = data[position]
            if data[position + 1] < 0x80 or head & 0x0F not in _OPCODES:
                self._violation(data[position:])  # two bytes show it: do not wait for more
                return end
            extent = parse_header(data, position, end)
            if extent is None:
                return position
            start, size = extent
            if size < 0:
                self.fail(1002, _NOT_MINIMAL)
                return end
            if size > self.max_message_size - self._size() and self._too_big(head, size):
                self._violation(data[position:start])  # 1009 before a payload byte is stored
                return end
            stop = start + size
            if stop > end:
                self._needed = stop - position
                return position
            if head in _FAST_CONTROLS and size < 126:
                self._control(head, _unmask(data, start, stop))
            elif head == _FAST_CLOSE and self._strict is None and self._close(data, start, stop):
                return end
            elif self._is_fast(head):
                self._data(head, _unmask(data, start, stop), messages)
            else:
                self._feed(head, data[position:stop], messages)
                # A frame costs ten times as much in this lane; a kilobyte may become a megabyte.
                fed += 1
                if messages and len(messages[-1]) > _LARGE:
                    fed = MESSAGES_PER_TURN
            position = stop
            if self.finished:
                return end
            if len(messages) + self.extra >= MESSAGES_PER_TURN or fed >= MESSAGES_PER_TURN:
                self.more = end - position >= 2
                return position
        return position

    @property
    def over(self) -> bool:
        """Whether both close frames have passed, so that neither side sends anything more."""
        return not self.failed and None not in (self.close_received, self.close_sent)

    def _size(self) -> int:
        """Bytes of the message under way, in either lane."""
        if self._message is not None:
            return len(self._message)
        if self._strict is not None:
            return self._strict.current_size or 0
        return 0

    def _too_big(self, head: int, size: int) -> bool:
        """Tell whether to refuse a frame that exceeds the room left by the message under way."""
        if head in _FAST_CONTROLS:
            return size > 125
        return head & 0x0F != CLOSE or size > self.max_message_size

    def _is_fast(self, head: int) -> bool:
        if self._message is not None:
            return head in _FAST_CONTINUATIONS
        return head in _FAST_STARTS and self._inflated is None

    def _control(self, head: int, payload: bytes) -> None:
        """Answer a ping, or note a pong (§5.5.2, §5.5.3)."""
        self.extra += 1
        if head & 0x0F == PING:
            self.output.append(build(PONG, payload))
        else:
            self.pong = payload

    def _close(self, data: bytes | bytearray, start: int, stop: int) -> bool:
        """Answer a valid close frame with the same (§5.5.1): the end of nearly every connection.

        :returns: False if the frame is invalid; then the strict lane chooses the code.
        """
        size = stop - start
        if size == 1 or size > 125:
            return False
        payload = _unmask(data, start, stop)
        code, reason = 1005, ""
        if payload:
            code = int.from_bytes(payload[:2], "big")
            try:
                reason = payload[2:].decode()
            except UnicodeDecodeError:
                return False
            if not may_be_sent(code):
                return False
        self.close_received = self.close_sent = (code, reason)
        self.output.append(build(CLOSE, payload))
        self.state = CLOSING
        self.finished = True
        return True

    def _data(self, head: int, payload: bytes, messages: list[str | bytes]) -> None:
        """Take one valid, uncompressed data frame."""
        opcode = head & 0x0F
        final = head >= 0x80
        if self._message is None and final:
            if opcode == BINARY:
                messages.append(payload)
                return
            try:
                messages.append(payload.decode())
            except UnicodeDecodeError:
                self._not_utf8()
            return
        if self._message is None:
            self._message = bytearray()
            self._opcode = opcode
            self._decoder = _Utf8Decoder()
        self._message += payload
        if self._opcode == TEXT:
            try:
                self._decoder.decode(payload, final)
            except UnicodeDecodeError:
                self._not_utf8()
                return
        if not final:
            self._count_fragment(len(payload))
        else:
            whole, self._message = self._message, None
            messages.append(whole.decode() if self._opcode == TEXT else bytes(whole))

    def _count_fragment(self, size: int) -> None:
        """Count a fragment that is not the last of its message."""
        if size < _SMALL_FRAGMENT:
            self.extra += 1

    # -- the strict lane -------------------------------------------------------------------

    def _server_protocol(self) -> ServerProtocol:
        if self._strict is None:
            self._strict = ServerProtocol(
                state=State.OPEN, max_size=self.max_message_size, logger=_logger
            )
            self._strict.extensions = list(self._extensions)
        return self._strict

    def _violation(self, data: bytes | bytearray) -> None:
        """Pass a violation to the strict lane, which refuses the frame with code and reason."""
        strict = self._server_protocol()
        self._share_size(strict, data[0] & 0x0F)
        strict.receive_data(data)
        self._collect()
        if not self.finished:  # the lanes disagree: never continue with a stream that was cut
            self.fail(1002)

    def _share_size(self, strict: ServerProtocol, opcode: int) -> None:
        """Tell the strict lane the size of the fast lane's message, which a close frame ends."""
        if opcode == CLOSE:
            strict.current_size = None
        elif self._message is not None:
            strict.current_size = len(self._message)

    def _feed(self, head: int, frame: bytes | bytearray, messages: list[str | bytes]) -> None:
        """Pass one whole frame to the strict lane and take the messages that result."""
        strict = self._server_protocol()
        self._share_size(strict, head & 0x0F)
        strict.receive_data(frame)
        for event in strict.events_received():
            if isinstance(event, Frame) and event.opcode <= Opcode.BINARY:
                self._fragment(event, messages)
        self._collect()

    def _fragment(self, frame: Frame, messages: list[str | bytes]) -> None:
        """Take one data frame of a message in the strict lane, decompressed."""
        if self._inflated is None:
            self._inflated = bytearray()
            self._opcode = int(frame.opcode)
            self._decoder = _Utf8Decoder()
        data = _take_data(frame)
        self._inflated += data
        if len(self._inflated) > self.max_message_size:
            # zlib may hold back a last match until a final frame, for which zlib has no limit
            self.fail(1009, f"message exceeds limit of {self.max_message_size} bytes")
            return
        try:
            if self._opcode == TEXT:
                self._decoder.decode(data, frame.fin)
        except UnicodeDecodeError:
            self._not_utf8()
            return
        if not frame.fin:
            self._count_fragment(len(data))
        else:
            whole, self._inflated = self._inflated, None
            messages.append(whole.decode() if self._opcode == TEXT else bytes(whole))

    def _collect(self) -> None:
        """Take the strict lane's output and its state of closing."""
        strict = self._server_protocol()
        for chunk in strict.data_to_send():
            if chunk:
                self.output.append(chunk)
            else:
                self.finished = True
        if strict.state is not State.OPEN and self.state is OPEN:
            self.state = CLOSING
            self._idle = False
        # A close frame of the peer between its fragments does not fail the closing handshake.
        if strict.parser_exc is not None and strict.close_rcvd is None:
            self.failed = True
        if strict.close_rcvd is not None:
            self.close_received = (strict.close_rcvd.code, strict.close_rcvd.reason)
        if strict.close_sent is not None:
            self.close_sent = (strict.close_sent.code, strict.close_sent.reason)

    def _not_utf8(self) -> list[str | bytes]:
        self.fail(1007, _NOT_UTF8)
        return []

    def _receive_closing(self, data: bytes) -> list[str | bytes]:
        """Wait for the peer's close frame after ours; other frames are discarded (§1.4)."""
        self.more = False
        self._needed = 0
        if self.state is CLOSED or self.finished:
            return []
        stream = self._buffer + data
        strict = self._server_protocol()
        strict.receive_data(stream[:_CLOSING_PIECE])
        for event in strict.events_received():
            if isinstance(event, Frame):
                _take_data(event)
        self._collect()
        self._buffer = b"" if self.finished else stream[_CLOSING_PIECE:]
        self.more = bool(self._buffer)
        return []

    # -- writing ---------------------------------------------------------------------------

    def send(self, message: object, binary: bool | None = None) -> bytes:
        """Return the frame for a message, compressed if the handshake agreed to that.

        :param binary: whether the frame is binary; None: text for ``str``, binary for bytes.
        :raises TypeError: if the message is neither text nor bytes.
        """
        if self.window_bits is None:
            return self.frame(message, binary)
        return build_deflated(*_opcode_and_payload(message, binary), self.window_bits)

    @staticmethod
    def frame(message: object, binary: bool | None = None) -> bytes:
        """Return the frame for a message, as :meth:`send`, but never compressed."""
        if type(message) is str and not binary:
            return build(TEXT, message.encode())
        return build(*_opcode_and_payload(message, binary))

    def ping(self, payload: bytes) -> bytes:
        """Return a ping frame; :param payload: at most 125 bytes."""
        return build(PING, _control_payload(payload))

    def pong_frame(self, payload: bytes) -> bytes:
        """Return an unsolicited pong frame (§5.5.3)."""
        return build(PONG, _control_payload(payload))

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Start the closing handshake; does nothing if the handshake has been started.

        :raises ValueError: if a close frame cannot carry the code or the reason.
        """
        check_close(code, reason)
        if self.state is OPEN:
            self._start_closing()
            self._server_protocol().send_close(code, reason)
            self._collect()

    def fail(self, code: int, reason: str = "") -> None:
        """Send a close frame and end the stream without waiting for an answer (§7.1.7).

        Does nothing once the stream has ended.

        :raises ValueError: if a close frame cannot carry the code or the reason.
        """
        check_close(code, reason)
        if self.finished:
            return
        if self.state is OPEN:
            self._start_closing()
        self._buffer = b""
        self._message = self._inflated = None
        self.more = False
        self.failed = self.attention = True
        strict = self._server_protocol()
        strict.fail(code, reason)
        self._collect()

    def _start_closing(self) -> None:
        """Hand reading over to the strict lane, with the size of a message under way."""
        self._idle = False
        if self._message is not None:
            self._server_protocol().current_size = len(self._message)
            self._message = None


def _take_data(frame: Frame) -> bytes | bytearray | memoryview:
    """Take the payload out of a frame of the strict lane. Its parser keeps the frame until the next
    one arrives: for ever, if the peer is idle."""
    data, frame.data = frame.data, b""
    return data


def _opcode_and_payload(message: object, binary: bool | None) -> tuple[int, bytes]:
    if isinstance(message, str):
        return BINARY if binary else TEXT, message.encode()
    if not isinstance(message, bytes | bytearray | memoryview):
        raise TypeError(
            f"expected a message of type str or bytes, got {type(message).__name__}; "
            "turn it into text first, for example with flask.json.dumps()"
        )
    payload = bytes(message)
    if binary is False:
        payload.decode()  # text must be UTF-8
        return TEXT, payload
    return BINARY, payload


def _unmask(data: bytes | bytearray, start: int, stop: int) -> bytes:
    mask = data[start - 4 : start]
    if stop - start < _COPY:
        return apply_mask(data[start:stop], mask)
    with memoryview(data) as view, view[start:stop] as payload:
        return apply_mask(payload, mask)


def _control_payload(payload: bytes) -> bytes:
    if len(payload) > 125:
        raise ValueError(f"a control frame carries at most 125 bytes, got {len(payload)} (§5.5)")
    return payload
