"""The same bytes through ``Protocol`` and through websockets' ``ServerProtocol`` alone.

Whatever the stream and wherever it is cut, both must make the same messages, write the same bytes
and end in the same way. The oracle holds the decoding policy that ``ServerProtocol`` leaves to its
caller, and, each under its name, the differences that ``Protocol`` has on purpose.
"""

from __future__ import annotations

import logging
import zlib
from codecs import getincrementaldecoder
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from struct import pack

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ProtocolError
from websockets.extensions import Extension
from websockets.extensions.permessage_deflate import (
    ClientPerMessageDeflateFactory,
    PerMessageDeflate,
)
from websockets.frames import Close, Frame, Opcode
from websockets.headers import build_extension, parse_extension
from websockets.protocol import State
from websockets.server import ServerProtocol

from flask_sockets2.wire.handshake import Upgrade
from flask_sockets2.wire.protocol import CLOSING, OPEN, Protocol

pytestmark = pytest.mark.slow

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
FIN, RSV1, MASKED = 0x80, 0x40, 0x80

quiet = logging.Logger("oracle", logging.CRITICAL)

# Deterministic, so that a failure in one place is the failure in every other.
deterministic = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


# -- the oracle ----------------------------------------------------------------------------


class OracleDeflate(PerMessageDeflate):
    """permessage-deflate of the oracle."""

    def decode(self, frame: Frame, *, max_size: int | None = None) -> Frame:
        self.rsv1_in_a_later_fragment_is_refused_by_every_version(frame)
        return super().decode(frame, max_size=max_size)

    def rsv1_in_a_later_fragment_is_refused_by_every_version(self, frame: Frame) -> None:
        if frame.opcode is Opcode.CONT and frame.rsv1 and self.decode_cont_data:
            raise ProtocolError("RSV1 bit set in continuation frame")


class Oracle:
    """``ServerProtocol`` with a caller around it that joins fragments and decodes text.

    It is given the stream byte by byte, so that the caller sees each frame before the next.
    """

    def __init__(self, limit: int, extensions: Iterable[Extension]) -> None:
        self.limit = limit
        self.strict = ServerProtocol(state=State.OPEN, max_size=limit, logger=quiet)
        self.strict.extensions = list(extensions)
        self.messages: list[str | bytes] = []
        self.output = b""
        self.finished = self.failed = False
        self.pong: bytes | None = None
        self.opcode = 0
        self.parts: list[bytes] | None = None
        self.decoder = getincrementaldecoder("utf-8")()
        self.held = b""  # what is known of a frame, until it is known how to treat it
        self.frame_starts = True
        # Both were renamed in websockets 16.
        self.size, self.max_size = (
            ("current_size", "max_message_size")
            if hasattr(self.strict, "current_size")
            else ("cur_size", "max_size")
        )

    def receive(self, data: bytes) -> None:
        for byte in data:
            self.held += bytes([byte])
            if self.finished or (self.frame_starts and len(self.held) < self.wanted()):
                continue
            if self.frame_starts and self.strict.state is State.OPEN:
                if self.a_length_in_more_bytes_than_it_needs_is_refused():
                    continue
                self.a_close_frame_may_stand_between_fragments(self.held[0])
                self.pings_and_pongs_are_not_counted(self.held[0], self.held[1])
            self.frame_starts = False
            self.strict.receive_data(self.held)
            self.held = b""
            for event in self.strict.events_received():
                assert isinstance(event, Frame)
                self.frame_starts = True
                setattr(self.strict, self.max_size, self.limit)
                if self.strict.close_sent is None:
                    self.take(event)
            self.collect()

    def wanted(self) -> int:
        """How many bytes of a frame must be there to treat it: its length, all of one that is not
        counted.

        While it is under way a closing handshake of ours may start, in which nothing differs.
        """
        if len(self.held) < 2 or self.held[1] < MASKED or self.strict.state is not State.OPEN:
            return 2
        head, size = self.held[0], self.held[1] & 0x7F
        if size > 125 and head & 0x0F in (0x0, TEXT, BINARY, CLOSE, PING, PONG):
            return 4 if size == 126 else 10
        ping_or_pong = head in (FIN | PING, FIN | PONG) and size < 126
        close = head & 0x0F == CLOSE and size <= min(self.limit, 125)
        return 6 + size if ping_or_pong or close else 2

    def a_length_in_more_bytes_than_it_needs_is_refused(self) -> bool:
        """So is one with its highest bit set (§5.2)."""
        encoded = self.held[2 : self.wanted()] if self.held[1] & 0x7F > 125 else b""
        size = int.from_bytes(encoded, "big")
        least, most = {0: (0, 0), 2: (126, 2**16 - 1), 8: (2**16, 2**63 - 1)}[len(encoded)]
        if self.held[1] < MASKED or least <= size <= most:
            return False
        self.fail(1002, "frame length is not encoded in as few bytes as it needs")
        self.collect()
        return True

    def a_close_frame_may_stand_between_fragments(self, head: int) -> None:
        """Its own code answers it, and the message that it ends does not count."""
        if head & 0x0F == CLOSE:
            setattr(self.strict, self.size, None)

    def pings_and_pongs_are_not_counted(self, head: int, length: int) -> None:
        """Against ``max_message_size``."""
        if head in (FIN | PING, FIN | PONG) and length & 0x7F < 126:
            setattr(self.strict, self.max_size, 2**63)

    def a_compressed_message_is_never_longer_than_allowed(self) -> bool:
        """zlib may hold back a match until an empty frame, of which it is given no limit."""
        if sum(map(len, self.parts or ())) <= self.limit:
            return False
        self.fail(1009, f"message exceeds limit of {self.limit} bytes")
        return True

    def take(self, frame: Frame) -> None:
        if frame.opcode is Opcode.PONG:
            self.pong = bytes(frame.data)
        if frame.opcode >= Opcode.CLOSE:
            return
        if self.parts is None:
            self.parts = []
            self.opcode = frame.opcode
            self.decoder.reset()
        self.parts.append(bytes(frame.data))
        if self.a_compressed_message_is_never_longer_than_allowed():
            return
        try:
            if self.opcode == TEXT:
                self.decoder.decode(bytes(frame.data), frame.fin)
        except UnicodeDecodeError:
            self.fail(1007, "text is not valid UTF-8")
            return
        if frame.fin:
            whole, self.parts = b"".join(self.parts), None
            self.messages.append(whole.decode() if self.opcode == TEXT else whole)

    def close(self, code: int, reason: str) -> None:
        if self.strict.state is State.OPEN:
            self.strict.send_close(code, reason)
            self.collect()

    def fail(self, code: int, reason: str) -> None:
        self.failed = True
        self.strict.fail(code, reason)

    def collect(self) -> None:
        for chunk in self.strict.data_to_send():
            self.output += chunk
            self.finished |= not chunk
        # Between its fragments the peer may well answer a close frame of ours.
        self.failed |= self.strict.parser_exc is not None and self.strict.close_rcvd is None

    def seen(self) -> dict[str, object]:
        return {
            "messages": self.messages,
            "output": self.output,
            "finished": self.finished,
            "failed": self.failed,
            "open": self.strict.state is State.OPEN,
            "close received": pair(self.strict.close_rcvd),
            "close sent": pair(self.strict.close_sent),
            "pong": self.pong,
        }


def pair(close: Close | None) -> tuple[int, str] | None:
    return None if close is None else (int(close.code), close.reason)


class Subject:
    """``Protocol`` under the same interface."""

    def __init__(self, limit: int, extensions: list[Extension]) -> None:
        self.protocol = Protocol(max_message_size=limit, extensions=extensions)
        self.messages: list[str | bytes] = []
        self.output = b""

    def receive(self, data: bytes) -> None:
        self.messages += self.protocol.receive(data)
        while self.protocol.more:
            self.messages += self.protocol.receive(b"")
        self.collect()

    def close(self, code: int, reason: str) -> None:
        self.protocol.close(code, reason)
        self.collect()

    def collect(self) -> None:
        self.output += b"".join(self.protocol.output)
        self.protocol.output.clear()

    def seen(self) -> dict[str, object]:
        protocol = self.protocol
        assert protocol.state in (OPEN, CLOSING)
        return {
            "messages": self.messages,
            "output": self.output,
            "finished": protocol.finished,
            "failed": protocol.failed,
            "open": protocol.state is OPEN,
            "close received": protocol.close_received,
            "close sent": protocol.close_sent,
            "pong": protocol.pong,
        }


# -- streams -------------------------------------------------------------------------------

OFFERS = {
    "whole window": ClientPerMessageDeflateFactory(),
    "no takeover": ClientPerMessageDeflateFactory(
        server_no_context_takeover=True, client_no_context_takeover=True
    ),
    "small window": ClientPerMessageDeflateFactory(
        client_max_window_bits=9, compress_settings={"level": 1}
    ),
}


def negotiated(offer: str | None) -> tuple[PerMessageDeflate | None, PerMessageDeflate | None]:
    """Return what the client and what the server goes by after a handshake."""
    if offer is None:
        return None, None
    factory = OFFERS[offer]
    asked = build_extension([(factory.name, factory.get_request_params())])
    head, (server,) = Upgrade("", (), asked).response(compression=True)
    lines = dict(line.split(": ", 1) for line in head.decode().splitlines()[1:-1])
    ((_, answer),) = parse_extension(lines["Sec-WebSocket-Extensions"])
    client = factory.process_response_params(answer, [])
    assert isinstance(server, PerMessageDeflate)
    return client, server


def oracle_twin(extension: PerMessageDeflate) -> OracleDeflate:
    return OracleDeflate(
        extension.remote_no_context_takeover,
        extension.local_no_context_takeover,
        extension.remote_max_window_bits,
        extension.local_max_window_bits,
    )


def masked(head: int, payload: bytes, key: int = 0x37FA213D, *, as_long_as: int = 0) -> bytes:
    """Build a client's frame.

    :param as_long_as: encode the length as one of so many bytes has to be.
    """
    size = len(payload)
    if max(size, as_long_as) < 126:
        header = bytes((head, MASKED | size))
    elif max(size, as_long_as) < 65536:
        header = pack("!BBH", head, MASKED | 126, size)
    else:
        header = pack("!BBQ", head, MASKED | 127, size)
    mask = key.to_bytes(4, "big")
    stream = (mask * (size // 4 + 1))[:size]
    xored = int.from_bytes(payload, "big") ^ int.from_bytes(stream, "big")
    return header + mask + xored.to_bytes(size, "big")


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """Cut data at places, each taken modulo its length."""
    bounds = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[start:stop] for start, stop in pairwise(bounds)] or [b""]


@dataclass(frozen=True)
class Message:
    """A message in one frame or several, with control frames between them."""

    opcode: int
    payload: bytes
    compressed: bool = False
    cuts: tuple[int, ...] = ()
    between: bytes = b""
    empty_end: bool = False
    key: int = 0

    def frames(self, client: PerMessageDeflate | None) -> Iterator[bytes]:
        parts = cut(self.payload, self.cuts)
        if self.empty_end:
            parts.append(b"")
        opcode = Opcode(self.opcode)
        for number, part in enumerate(parts, 1):
            frame = Frame(opcode, part, fin=number == len(parts))
            if client is not None and self.compressed:
                frame = client.encode(frame)
            head = frame.fin << 7 | frame.rsv1 << 6 | frame.opcode
            yield masked(head, bytes(frame.data), self.key) + self.between
            opcode = Opcode.CONT


@dataclass(frozen=True)
class Raw:
    """Bytes that no encoder vouches for."""

    data: bytes

    def frames(self, client: PerMessageDeflate | None) -> Iterator[bytes]:
        yield self.data


@dataclass(frozen=True)
class Deflated:
    """A first frame that holds some of a zlib stream, an end of its own, and an empty last one."""

    size: int
    final: bool
    data: bytes = field(default=b"a")

    def frames(self, client: PerMessageDeflate | None) -> Iterator[bytes]:
        encoder = zlib.compressobj(wbits=-9)
        data = encoder.compress(self.data * self.size) + encoder.flush(zlib.Z_SYNC_FLUSH)
        yield masked(self.final << 7 | RSV1 | BINARY, data[:-4])
        if not self.final:
            yield masked(FIN, b"")


keys = st.sampled_from((0, 0x37FA213D, 0xFFFFFFFF))
few_cuts = st.lists(st.integers(0, 400), max_size=4).map(tuple)
texts = st.one_of(
    st.text(max_size=12).map(str.encode),
    st.sampled_from([b"", "κόσμε".encode(), "€".encode() * 42, b"a" * 300, "𝄞".encode() * 60]),
)
bytes_ = st.one_of(
    st.binary(max_size=12), st.sampled_from([bytes(125), bytes(range(126)), b"ab" * 250])
)
not_utf8 = st.sampled_from(
    [
        b"\xff",
        b"a\xc3",
        b"\xc0\x80",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        "κόσμε".encode() + b"\xed\xa0\x80edited",
        b"\xe2\x82",
    ]
)
controls = st.builds(
    masked,
    st.sampled_from((FIN | PING, FIN | PONG)),
    st.one_of(st.binary(max_size=6), st.just(b"p" * 125)),
    keys,
)
betweens = st.one_of(st.just(b""), st.just(b""), controls)


def messages(opcode: int, payloads: st.SearchStrategy[bytes]) -> st.SearchStrategy[Message]:
    return st.builds(
        Message,
        st.just(opcode),
        payloads,
        st.booleans(),
        few_cuts,
        betweens,
        st.booleans(),
        keys,
    )


codes = st.one_of(
    st.sampled_from((1000, 1001, 1002, 1007, 1011, 1013, 3000, 4999)),
    st.sampled_from((0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535)),
)
close_frames = st.one_of(
    st.builds(
        lambda code, reason: masked(FIN | CLOSE, pack("!H", code) + reason),
        codes,
        st.sampled_from((b"", b"bye", "adiós".encode(), b"\xff", b"r" * 123)),
    ),
    st.sampled_from((b"", b"\x03", b"\x03\xe8" + b"r" * 124)).map(
        lambda payload: masked(FIN | CLOSE, payload)
    ),
)
any_frame = st.builds(
    lambda head, payload, key, as_long_as: masked(head, payload, key, as_long_as=as_long_as),
    st.one_of(
        st.integers(0, 255),
        st.sampled_from((0x00, 0x01, 0x02, 0x80, 0x40, 0xC0, 0xC1, 0xC2, 0x41, 0x42)),
    ),
    st.one_of(st.binary(max_size=8), st.sampled_from((b"z" * 125, b"z" * 126, b"z" * 200))),
    keys,
    st.sampled_from((0, 126, 65536)),
)
headers_only = st.builds(
    lambda head, size: (
        pack("!BBH", head, 0xFE, size) if size < 65536 else pack("!BBQ", head, 0xFF, size)
    ),
    st.sampled_from((0x82, 0x02, 0x80, 0x00, 0xC2, 0x89, 0x88)),
    st.sampled_from((126, 1001, 65535, 65536, 2**31, 2**63, 2**64 - 1)),
)

good = st.one_of(
    messages(TEXT, texts),
    messages(BINARY, bytes_),
    controls.map(Raw),
)
bad = st.one_of(
    messages(TEXT, not_utf8),
    any_frame.map(Raw),
    close_frames.map(Raw),
    headers_only.map(Raw),
    st.builds(
        lambda opcode, payload: Raw(bytes((FIN | opcode, len(payload))) + payload),
        st.sampled_from((TEXT, BINARY, CLOSE, PING)),
        st.binary(max_size=5),
    ),
    st.builds(Deflated, st.sampled_from((5, 990, 1000, 1001, 1010, 100_000)), st.booleans()),
    # Opened, never finished: what follows stands in the middle of it.
    st.sampled_from((TEXT, BINARY)).map(lambda opcode: Raw(masked(opcode, b"open"))),
)
garbage = st.one_of(st.binary(min_size=1, max_size=40), any_frame).map(Raw)

no_truncation: st.SearchStrategy[int] = st.just(0)
no_close: st.SearchStrategy[tuple[int, int, str] | None] = st.none()
limits = st.sampled_from((1000, 1000, 100_000, 125, 20))
offers = st.sampled_from((None, *OFFERS))
places = st.one_of(
    st.just(None), st.lists(st.integers(0, 5000), max_size=8)
)  # None: after every byte


@dataclass(frozen=True)
class Run:
    limit: int
    offer: str | None
    pieces: list[Message | Raw | Deflated]
    places: list[int] | None
    truncated: int
    close_before: tuple[int, int, str] | None = None

    def stream(self, client: PerMessageDeflate | None) -> bytes:
        stream = b"".join(frame for piece in self.pieces for frame in piece.frames(client))
        return stream[: len(stream) - self.truncated] if self.truncated else stream

    def chunks(self, stream: bytes) -> list[bytes]:
        return cut(stream, range(len(stream)) if self.places is None else self.places)


def runs(
    pieces: st.SearchStrategy[Message | Raw | Deflated],
    *,
    truncated: st.SearchStrategy[int] = no_truncation,
    close_before: st.SearchStrategy[tuple[int, int, str] | None] = no_close,
) -> st.SearchStrategy[Run]:
    return st.builds(
        Run,
        limits,
        offers,
        st.lists(pieces, min_size=1, max_size=6),
        places,
        truncated,
        close_before,
    )


def check(run: Run) -> dict[str, object]:
    """Do the same to both and compare all that can be seen, after every chunk."""
    client, server = negotiated(run.offer)
    subject = Subject(run.limit, [server] if server else [])
    oracle = Oracle(run.limit, [oracle_twin(server)] if server else [])
    for number, chunk in enumerate(run.chunks(run.stream(client))):
        if run.close_before is not None and run.close_before[0] == number:
            subject.close(*run.close_before[1:])
            oracle.close(*run.close_before[1:])
        subject.receive(chunk)
        oracle.receive(chunk)
        assert subject.seen() == oracle.seen()
    return subject.seen()


# -- tests ---------------------------------------------------------------------------------


def in_the_same_way(examples: int, strategy: st.SearchStrategy[Run]) -> None:
    """Check so many runs."""

    @settings(deterministic, max_examples=examples)
    @given(strategy)
    def holds(run: Run) -> None:
        check(run)

    holds()


some_or_many = pytest.mark.parametrize(
    "examples", [100, pytest.param(1000, marks=pytest.mark.slow)]
)


@some_or_many
def test_what_keeps_the_rules_is_read_in_the_same_way(examples: int) -> None:
    in_the_same_way(examples, runs(good))


@some_or_many
def test_what_breaks_the_rules_is_refused_in_the_same_way(examples: int) -> None:
    in_the_same_way(examples, runs(st.one_of(good, bad)))


@some_or_many
def test_garbage_and_truncated_streams_end_in_the_same_way(examples: int) -> None:
    pieces = st.one_of(good, bad, garbage)
    in_the_same_way(examples, runs(pieces, truncated=st.integers(0, 12)))


@some_or_many
def test_a_closing_handshake_of_ours_goes_on_in_the_same_way(examples: int) -> None:
    codes, reasons = st.sampled_from((1000, 4321)), st.sampled_from(("", "bye"))
    ours = st.tuples(st.integers(0, 4), codes, reasons)
    in_the_same_way(examples, runs(st.one_of(good, good, bad), close_before=ours))


def test_a_stream_is_read_in_the_same_way_wherever_it_is_cut_in_two() -> None:
    pieces: list[Message | Raw | Deflated] = [
        Message(TEXT, "κόσμε".encode(), compressed=True, cuts=(3, 5), between=masked(0x89, b"1")),
        Message(BINARY, bytes(130), cuts=(1,), between=masked(0x8A, b"2")),
        Message(TEXT, b"whole"),
        Raw(masked(FIN | CLOSE, b"\x03\xe8bye")),
        Raw(b"ignored"),
    ]
    for offer in (None, "whole window"):
        whole = Run(1000, offer, pieces, [], 0)
        expected = check(whole)
        assert expected["messages"] == ["κόσμε", bytes(130), "whole"]
        assert expected["close received"] == (1000, "bye")
        for place in range(1, len(whole.stream(negotiated(offer)[0]))):
            assert check(Run(1000, offer, pieces, [place], 0)) == expected


@pytest.mark.parametrize("size", [65_535, 65_536, 100_000])
@pytest.mark.parametrize("offer", [None, "whole window"])
def test_frames_of_every_length_encoding_are_read_in_the_same_way(
    size: int, offer: str | None
) -> None:
    for compressed in (False, True):
        pieces: list[Message | Raw | Deflated] = [Message(BINARY, b"ab" * (size // 2), compressed)]
        pieces.append(Message(TEXT, b"c" * size, compressed, cuts=(399, 50)))
        check(Run(100_000, offer, pieces, [7, 3000], 0))


def test_the_oracle_itself_is_websockets_where_nothing_differs_on_purpose() -> None:
    stream = masked(0x01, b"He") + masked(0x89, b"?") + masked(0x80, b"llo") + b"\x81\x00"
    oracle = Oracle(1000, [])
    oracle.receive(stream)
    alone = ServerProtocol(state=State.OPEN, max_size=1000, logger=quiet)
    alone.receive_data(stream)
    assert oracle.output == b"".join(alone.data_to_send())
    assert oracle.messages == ["Hello"]
    frames = [event for event in alone.events_received() if isinstance(event, Frame)]
    assert [bytes(frame.data) for frame in frames] == [b"He", b"?", b"llo"]
