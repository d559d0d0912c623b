"""Literal bytes in and out of Protocol, each stream cut at every byte boundary.

Section numbers are those of RFC 6455, where no other is named.
"""

from __future__ import annotations

import gc
import tracemalloc
import zlib
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import psutil
import pytest
from websockets.extensions.permessage_deflate import PerMessageDeflate

from flask_sockets2.wire.protocol import CLOSED, CLOSING, MESSAGES_PER_TURN, OPEN, Protocol
from tests.processes import in_a_process

MASK = b"\x37\xfa\x21\x3d"  # of the examples in §5.7
MIB = 1 << 20


def masked(head: int, payload: bytes = b"") -> bytes:
    """A client's frame: first byte, mask bit and length, mask, masked payload."""
    size = len(payload)
    if size < 126:
        length = bytes((0x80 | size,))
    elif size < 65536:
        length = b"\xfe" + size.to_bytes(2, "big")
    else:
        length = b"\xff" + size.to_bytes(8, "big")
    key = (MASK * (size // 4 + 1))[:size]
    xored = int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")
    return bytes((head,)) + length + MASK + xored.to_bytes(size, "big")


def close_frame(code: int, reason: bytes = b"") -> bytes:
    return masked(0x88, code.to_bytes(2, "big") + reason)


def closing(code: int, reason: bytes | str = b"") -> bytes:
    """A server's close frame."""
    payload = code.to_bytes(2, "big") + (reason.encode() if isinstance(reason, str) else reason)
    return bytes((0x88, len(payload))) + payload


def deflate(whole_window: bool = True) -> PerMessageDeflate:
    return PerMessageDeflate(not whole_window, not whole_window, 15, 15)


def deflated(payload: bytes) -> bytes:
    """A message of its own as RFC 7692 §7.2.1 compresses it."""
    encoder = zlib.compressobj(wbits=-15)
    return (encoder.compress(payload) + encoder.flush(zlib.Z_SYNC_FLUSH))[:-4]


class Seen(NamedTuple):
    messages: list[str | bytes]
    output: bytes
    state: str
    finished: bool
    failed: bool
    close_received: tuple[int, str] | None
    close_sent: tuple[int, str] | None


def feed(protocol: Protocol, *chunks: bytes) -> Seen:
    """Give a protocol chunks as a transport does, and tell what came of it."""
    messages: list[str | bytes] = []
    for chunk in chunks:
        messages += protocol.receive(chunk)
        while protocol.more:
            messages += protocol.receive(b"")
    output = b"".join(protocol.output)
    protocol.output.clear()
    return Seen(
        messages,
        output,
        protocol.state,
        protocol.finished,
        protocol.failed,
        protocol.close_received,
        protocol.close_sent,
    )


def exchange(stream: bytes, *, limit: int = 1000, compressed: bool = False) -> Seen:
    """What a stream leads to, which is the same wherever it is cut in two, or after each byte."""

    def run(*chunks: bytes) -> Seen:
        extensions = [deflate()] if compressed else []
        return feed(Protocol(max_message_size=limit, extensions=extensions), *chunks)

    seen = run(stream)
    for place in range(1, len(stream)):
        assert run(stream[:place], stream[place:]) == seen, f"cut at {place}"
    assert run(*(stream[i : i + 1] for i in range(len(stream)))) == seen
    return seen


def fails(stream: bytes, code: int, **options: Any) -> Seen:
    """The stream fails the connection (§7.1.7): one close frame, then the end, whatever follows."""
    seen = exchange(stream, **options)
    assert (seen.state, seen.finished, seen.failed) == (CLOSING, True, True)
    assert seen.close_sent is not None
    assert seen.close_sent[0] == code
    assert seen.output.endswith(closing(*seen.close_sent))
    assert seen.close_received is None
    assert exchange(stream + masked(0x81, b"later") + close_frame(1000), **options) == seen
    return seen


def answers(stream: bytes, *messages: str | bytes, output: bytes = b"", **options: Any) -> None:
    """The stream makes these messages and these bytes back, and the connection stays open."""
    assert exchange(stream, **options) == Seen(
        list(messages), output, OPEN, False, False, None, None
    )


CALLS = 3


def takes_below(size: int, function: Callable[[], object], *, in_the_end: bool = False) -> None:
    """One of some calls takes less memory than this, at its worst or once it has returned.

    All threads are traced, and the first call may be the one that imports something.
    """
    taken = []
    for _ in range(CALLS):
        gc.collect()
        gc.disable()  # nothing may wait for it: in a quiet process it comes late
        tracemalloc.start()
        try:
            function()
            taken.append(tracemalloc.get_traced_memory()[not in_the_end])
        finally:
            tracemalloc.stop()
            gc.enable()
        if taken[-1] < size:
            return
    pytest.fail(f"it took {taken} bytes, not less than {size}")


# -- masking, §5.1 and §5.3 ----------------------------------------------------------------


def test_the_masked_hello_of_the_rfc_is_read() -> None:
    """§5.7."""
    answers(b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", "Hello")


@pytest.mark.parametrize("head", [0x81, 0x82, 0x01, 0x80, 0x88, 0x89, 0x8A])
def test_an_unmasked_frame_fails_the_connection(head: int) -> None:
    """§5.1: "The server MUST close the connection upon receiving a frame that is not masked"."""
    fails(bytes((head, 0x05)) + b"Hello", 1002)


def test_an_unmasked_frame_is_refused_before_its_payload_has_come() -> None:
    assert feed(Protocol(max_message_size=10), b"\x81\x7f").finished


def test_no_frame_of_the_server_is_masked() -> None:
    """§5.1: "A server MUST NOT mask any frames that it sends to the client"."""
    protocol = Protocol(max_message_size=10)
    protocol.close()
    frames = [
        protocol.send("a"),
        protocol.send(b"a"),
        protocol.ping(b"a"),
        protocol.pong_frame(b""),
    ]
    frames += protocol.output
    assert all(frame[1] < 0x80 for frame in frames)


# -- reserved bits and opcodes, §5.2 -------------------------------------------------------


@pytest.mark.parametrize("bit", [0x40, 0x20, 0x10])
@pytest.mark.parametrize("head", [0x81, 0x82, 0x01, 0x88, 0x89, 0x8A])
def test_a_reserved_bit_fails_the_connection(head: int, bit: int) -> None:
    """§5.2: RSV "MUST be 0 unless an extension is negotiated that defines meanings"."""
    fails(masked(head | bit, b"a"), 1002)
    if bit != 0x40:  # to which permessage-deflate gives a meaning
        fails(masked(head | bit, b"a"), 1002, compressed=True)


@pytest.mark.parametrize("opcode", [0x3, 0x4, 0x5, 0x6, 0x7, 0xB, 0xC, 0xD, 0xE, 0xF])
@pytest.mark.parametrize("fin", [0x80, 0])
def test_an_unknown_opcode_fails_the_connection(opcode: int, fin: int) -> None:
    """§5.2: "If an unknown opcode is received, the receiving endpoint MUST _Fail_"."""
    fails(masked(fin | opcode, b"a"), 1002)


def test_an_unknown_opcode_is_refused_before_its_payload_has_come() -> None:
    assert feed(Protocol(max_message_size=10), b"\x83\xff").finished


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536])
def test_every_length_encoding_is_read(size: int) -> None:
    """§5.2."""
    payload = bytes(range(256)) * (size // 256) + bytes(range(size % 256))
    protocol = Protocol(max_message_size=MIB)
    frame = masked(0x82, payload)
    for cuts in ([], [1], [2], [3], [6], [10], [14], [len(frame) - 1]):
        bounds = [0, *cuts, len(frame)]
        chunks = [frame[a:b] for a, b in pairwise(bounds)]
        assert feed(protocol, *chunks).messages == [payload]


@pytest.mark.parametrize("head", [0x81, 0x82, 0x01, 0x88, 0x89, 0x8A])
@pytest.mark.parametrize(
    "length",
    [
        *(b"\xfe\x00\x00", b"\xfe\x00\x05", b"\xfe\x00\x7d"),
        *(b"\xff" + size.to_bytes(8, "big") for size in (0, 5, 125, 126, 65_535)),
        *(b"\xff" + size.to_bytes(8, "big") for size in (2**63, 2**63 + 5, 2**64 - 1)),
    ],
)
def test_a_length_in_more_bytes_than_it_needs_is_a_protocol_error(length: bytes, head: int) -> None:
    """§5.2: "the minimal number of bytes MUST be used", "the most significant bit MUST be 0"."""
    fails(bytes((head,)) + length, 1002)
    fails(bytes((head,)) + length + masked(0x81, b"Hello")[2:], 1002)
    fails(masked(0x01, b"Hel") + bytes((0x80,)) + length, 1002)


@pytest.mark.slow
@pytest.mark.parametrize("size", [125, 126, 65_535, 65_536])
def test_the_lengths_beside_them_are_read(size: int) -> None:
    answers(masked(0x82, bytes(size)), bytes(size), limit=MIB)


def test_messages_in_one_chunk_come_in_order() -> None:
    answers(
        masked(0x81, b"one") + masked(0x82, b"two") + masked(0x81) + masked(0x82),
        "one",
        b"two",
        "",
        b"",
    )


def test_binary_messages_are_bytes_in_either_way() -> None:
    protocol = Protocol(max_message_size=MIB)
    stream = masked(0x82, b"a") + masked(0x82) + masked(0x02, b"b") + masked(0x80, b"c")
    messages = feed(protocol, *(stream[i : i + 1] for i in range(len(stream)))).messages
    assert messages == [b"a", b"", b"bc"]
    assert {type(message) for message in messages} == {bytes}


# -- size ----------------------------------------------------------------------------------


def test_a_message_may_be_as_long_as_the_limit() -> None:
    answers(masked(0x82, bytes(200)), bytes(200), limit=200)
    answers(masked(0x02, bytes(199)) + masked(0x80, b"\0"), bytes(200), limit=200)


@pytest.mark.parametrize(
    "stream",
    [
        masked(0x82, bytes(201)),
        masked(0x81, b"a" * 201),
        masked(0x02, bytes(200)) + masked(0x80, b"a"),
        masked(0x02, bytes(100)) + masked(0x00, bytes(100)) + masked(0x00, b"a"),
    ],
)
def test_a_longer_message_is_refused_with_1009(stream: bytes) -> None:
    """§7.4.1."""
    assert fails(stream, 1009, limit=200).messages == []


@pytest.mark.parametrize(
    "header",
    [
        b"\x82\xfe\x00\xc9",
        b"\x82\xff\x00\x00\x00\x00\x00\x01\x00\x00",
        b"\x01\xff\x7f\xff\xff\xff\xff\xff\xff\xff",
        b"\x89\xff\x00\x00\x00\x00\x80\x00\x00\x00",
    ],
)
def test_an_oversized_length_is_refused_as_soon_as_it_is_announced(header: bytes) -> None:
    """Neither the mask nor a byte of the payload is awaited, and nothing is allocated."""
    takes_below(MIB, lambda: fails(header, 1009, limit=200))


def test_small_messages_are_held_to_a_small_limit_too() -> None:
    answers(masked(0x81, b"a" * 5), "a" * 5, limit=5)
    fails(masked(0x81, b"a" * 6), 1009, limit=5)
    answers(masked(0x81), "", limit=0)
    fails(masked(0x81, b"a"), 1009, limit=0)


# -- fragmentation, §5.4 -------------------------------------------------------------------


def test_the_fragmented_hello_of_the_rfc_is_joined() -> None:
    """§5.7, masked as a client's is."""
    answers(masked(0x01, b"Hel") + masked(0x80, b"lo"), "Hello")


@pytest.mark.parametrize(
    ("head", "expected"), [(0x01, "abc"), (0x02, b"abc")], ids=["text", "binary"]
)
def test_fragments_are_joined_and_empty_ones_count_as_nothing(
    head: int, expected: str | bytes
) -> None:
    """§5.4: a fragmented message has one opcode, that of its first frame."""
    answers(
        masked(head)
        + masked(0x00, b"a")
        + masked(0x00)
        + masked(0x00, b"bc")
        + masked(0x80)
        + masked(0x81, b"next"),
        expected,
        "next",
    )


@pytest.mark.parametrize("head", [0x80, 0x00])
def test_a_continuation_of_nothing_fails_the_connection(head: int) -> None:
    """§5.4."""
    fails(masked(head, b"a"), 1002)
    fails(masked(0x81, b"whole") + masked(head, b"a"), 1002)
    fails(masked(0x01, b"a") + masked(0x80, b"b") + masked(head, b"c"), 1002)


@pytest.mark.parametrize("head", [0x81, 0x82, 0x01, 0x02])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_message_within_a_message_fails_the_connection(head: int, compressed: bool) -> None:
    """§5.4: "The fragments of one message MUST NOT be interleaved"."""
    fails(masked(0x01, b"a") + masked(head, b"b"), 1002, compressed=compressed)
    if compressed:
        start = masked(0x41, deflated(b"a"))
        fails(start + masked(head, b"b"), 1002, compressed=True)


def test_control_frames_between_fragments_are_answered_at_once() -> None:
    """§5.4: "Control frames MAY be injected in the middle of a fragmented message"."""
    stream = masked(0x01, b"Hel") + masked(0x89, b"?") + masked(0x8A, b"!") + masked(0x80, b"lo")
    answers(stream, "Hello", output=b"\x8a\x01?")


@pytest.mark.parametrize("limit", [1000, 5])
def test_a_close_frame_between_fragments_is_answered_with_its_own_code(limit: int) -> None:
    """§5.4 and §5.5.1; however little the message leaves of the limit."""
    seen = exchange(masked(0x01, b"Hel") + close_frame(1001, b"bye"), limit=limit)
    assert seen == Seen(
        [], closing(1001, b"bye"), CLOSING, True, False, (1001, "bye"), (1001, "bye")
    )


def test_pings_are_answered_though_a_fragmented_message_leaves_no_room() -> None:
    stream = masked(0x02, bytes(10)) + masked(0x89, b"p" * 125) + masked(0x80)
    answers(stream, bytes(10), output=b"\x8a\x7d" + b"p" * 125, limit=10)


@pytest.mark.slow
@pytest.mark.parametrize("compressed", [False, True])
def test_a_million_empty_fragments_take_no_memory(compressed: bool) -> None:
    """They are joined, not collected. To trace every allocation would take too long."""
    assert in_a_process(growth_by_a_million_fragments, compressed) < 4 * MIB


def growth_by_a_million_fragments(compressed: bool) -> int:
    """Bytes that this process, in which nothing else runs, grows by."""
    chunk = masked(0x00) * 10_000
    protocol = Protocol(max_message_size=1000, extensions=[deflate()] if compressed else [])
    protocol.receive((masked(0x41, deflated(b"Hello")) if compressed else masked(0x01)) + chunk)
    process = psutil.Process()
    before: int = process.memory_info().rss
    for _ in range(99):
        while protocol.more:
            assert protocol.receive(b"") == []
        assert protocol.receive(chunk) == []
    while protocol.more:
        assert protocol.receive(b"") == []
    growth: int = process.memory_info().rss - before
    last = masked(0x80) if compressed else masked(0x80, b"Hello")
    assert feed(protocol, last).messages == ["Hello"]
    return growth


@pytest.mark.slow
@pytest.mark.parametrize("compressed", [False, True])
def test_a_message_in_tiny_fragments_takes_little_more_memory_than_its_size(
    compressed: bool,
) -> None:
    """As many lists of bytes would take twenty times as much."""
    encoder = zlib.compressobj(wbits=-15, level=0)
    size = MIB // 16

    def fragment(head: int, payload: bytes, end: int | None = None) -> bytes:
        if not compressed:
            return masked(head, payload)
        return masked(head, (encoder.compress(payload) + encoder.flush(zlib.Z_SYNC_FLUSH))[:end])

    protocol = Protocol(max_message_size=MIB, extensions=[deflate()] if compressed else [])

    def receive() -> None:
        protocol.receive(fragment(0x42 if compressed else 0x02, b"ab"))
        for _ in range(size // 2 - 2):
            protocol.receive(fragment(0x00, b"ab"))
        assert protocol.receive(fragment(0x80, b"ab", -4)) == [b"ab" * (size // 2)]

    takes_below(8 * size, receive)


def test_an_unfinished_frame_is_not_kept_twice() -> None:
    frame = masked(0x82, bytes(MIB))
    protocol = Protocol(max_message_size=MIB)

    def receive() -> None:
        for start in range(0, len(frame) - 1, 65536):
            protocol.receive(frame[start : start + 65536][: len(frame) - 1 - start])
        assert protocol.receive(frame[-1:]) == [bytes(MIB)]

    takes_below(5 * MIB, receive)


# -- control frames, §5.5 ------------------------------------------------------------------


@pytest.mark.parametrize("head", [0x88, 0x89, 0x8A])
def test_a_control_frame_of_more_than_125_bytes_fails_the_connection(head: int) -> None:
    """§5.5: "All control frames MUST have a payload length of 125 bytes or less"."""
    fails(masked(head, b"\x03\xe8" + b"a" * 124), 1002)


@pytest.mark.parametrize("head", [0x08, 0x09, 0x0A])
def test_a_fragmented_control_frame_fails_the_connection(head: int) -> None:
    """§5.5: "and MUST NOT be fragmented"."""
    fails(masked(head, b"\x03\xe8"), 1002)


@pytest.mark.parametrize("payload", [b"", b"Hello", bytes(range(125))])
def test_a_ping_is_answered_with_its_own_payload(payload: bytes) -> None:
    """§5.5.2 and §5.5.3: "identical "Application data""."""
    answers(masked(0x89, payload), output=bytes((0x8A, len(payload))) + payload)


def test_pings_are_answered_in_order_between_messages() -> None:
    stream = masked(0x89, b"1") + masked(0x81, b"a") + masked(0x89, b"2") + masked(0x81, b"b")
    answers(stream, "a", "b", output=b"\x8a\x011\x8a\x012")


def test_an_unsolicited_pong_is_not_answered() -> None:
    """§5.5.3."""
    answers(masked(0x8A, b"anyone") + masked(0x8A))


def test_the_newest_pong_is_kept_until_it_is_taken() -> None:
    protocol = Protocol(max_message_size=10)
    assert protocol.pong is None
    protocol.receive(masked(0x8A, b"1") + masked(0x8A, b"2"))
    assert protocol.pong == b"2"


def test_a_ping_and_a_pong_of_ours_carry_at_most_125_bytes() -> None:
    """§5.5."""
    protocol = Protocol(max_message_size=10)
    assert protocol.ping(b"p" * 125) == b"\x89\x7d" + b"p" * 125
    assert protocol.pong_frame(b"up") == b"\x8a\x02up"
    for build in (protocol.ping, protocol.pong_frame):
        with pytest.raises(ValueError, match="at most 125 bytes, got 126"):
            build(bytes(126))


# -- closing, §5.5.1, §7.1 and §7.4 --------------------------------------------------------


@pytest.mark.parametrize("compressed", [False, True])
def test_a_close_frame_is_answered_in_kind(compressed: bool) -> None:
    """§5.5.1: "the endpoint MUST send a Close frame in response"."""
    stream = masked(0x81, b"last") + close_frame(1000, "adiós".encode())
    both = (1000, "adiós")
    assert exchange(stream, compressed=compressed) == Seen(
        ["last"], closing(*both), CLOSING, True, False, both, both
    )


def test_an_empty_close_frame_counts_as_1005_and_is_answered_by_an_empty_one() -> None:
    """§7.1.5."""
    assert exchange(masked(0x88)) == Seen(
        [], b"\x88\x00", CLOSING, True, False, (1005, ""), (1005, "")
    )


def test_a_close_frame_of_one_byte_fails_the_connection() -> None:
    """§5.5.1: "the first two bytes of the body MUST be a 2-byte unsigned integer"."""
    fails(masked(0x88, b"\x03"), 1002)


@pytest.mark.parametrize(
    "code", [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 4999]
)
def test_a_close_code_that_may_be_sent_is_taken_and_sent(code: int) -> None:
    """§7.4.1, §7.4.2 and IANA's registry."""
    assert exchange(close_frame(code)).close_received == (code, "")
    protocol = Protocol(max_message_size=1000)
    protocol.close(code)
    assert protocol.output == [closing(code)]


@pytest.mark.parametrize(
    "code", [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535]
)
def test_a_close_code_that_must_not_be_sent_fails_the_connection(code: int) -> None:
    """§7.4.1: 1005, 1006 and 1015 "MUST NOT be set as a status code ... by an endpoint"; §7.4.2."""
    fails(close_frame(code), 1002)


def test_a_close_reason_that_is_not_utf8_fails_the_connection() -> None:
    """§5.5.1 and §8.1."""
    fails(close_frame(1000, b"\xff"), 1007)


def test_a_close_reason_may_have_123_bytes() -> None:
    assert exchange(close_frame(1000, b"r" * 123)).close_received == (1000, "r" * 123)


@pytest.mark.parametrize(
    "after",
    [
        masked(0x81, b"late"),
        masked(0x89),
        close_frame(1002),
        b"\xff\xff",
        masked(0x82, bytes(2000)),
    ],
)
def test_what_follows_a_close_frame_is_discarded(after: bytes) -> None:
    """§1.4: "a peer discards any further data received"; §5.5.1: no data frame after it."""
    assert exchange(close_frame(1000) + after) == exchange(close_frame(1000))


def test_a_closing_handshake_of_ours_waits_for_the_answer() -> None:
    """§7.1.2: closed once it has "both sent and received a Close control frame"."""
    protocol = Protocol(max_message_size=1000)
    protocol.close(4000, "enough")
    assert feed(protocol) == Seen(
        [], closing(4000, "enough"), CLOSING, False, False, None, (4000, "enough")
    )
    assert not protocol.over
    seen = feed(protocol, masked(0x81, b"too late") + close_frame(4000, b"enough"))
    assert seen == Seen([], b"", CLOSING, True, False, (4000, "enough"), (4000, "enough"))
    assert protocol.over
    protocol.receive_eof()
    assert protocol.state == CLOSED


def test_a_ping_is_answered_while_our_close_frame_is_not() -> None:
    """§5.5.2: a pong is due "unless it already received a Close frame"."""
    protocol = Protocol(max_message_size=1000)
    protocol.close()
    protocol.output.clear()
    assert feed(protocol, masked(0x89, b"?")).output == b"\x8a\x01?"


@pytest.mark.parametrize("compressed", [False, True])
def test_a_fragmented_message_under_way_does_not_disturb_our_closing(compressed: bool) -> None:
    """The peer stops between its fragments to answer (§1.4): no failure of either side."""
    protocol = Protocol(max_message_size=1000, extensions=[deflate()] if compressed else [])
    protocol.receive(masked(0x41, deflated(b"Hel")) if compressed else masked(0x01, b"Hel"))
    protocol.close(1000)
    protocol.output.clear()
    seen = feed(protocol, masked(0x00, b""), close_frame(1000))
    assert seen == Seen([], b"", CLOSING, True, False, (1000, ""), (1000, ""))
    assert protocol.over


def test_a_frame_cut_by_our_closing_is_read_to_its_end() -> None:
    stream = masked(0x82, bytes(300)) + close_frame(1000)
    for place in range(1, len(stream)):
        protocol = Protocol(max_message_size=1000)
        if feed(protocol, stream[:place]).finished:
            break
        protocol.close(1000)
        assert feed(protocol, stream[place:]).close_received == (1000, "")


def test_a_violation_while_closing_ends_it_without_a_second_close_frame() -> None:
    """§5.5.1: one close frame; §7.1.7."""
    protocol = Protocol(max_message_size=1000)
    protocol.close(1000)
    protocol.output.clear()
    seen = feed(protocol, b"\x81\x00")
    assert seen == Seen([], b"", CLOSING, True, True, None, (1000, ""))
    assert not protocol.over


def test_only_the_first_close_counts() -> None:
    protocol = Protocol(max_message_size=1000)
    protocol.close(1000)
    protocol.close(4000)
    assert b"".join(protocol.output) == closing(1000)


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 2999, 5000])
def test_a_code_that_must_not_be_sent_is_refused_with_the_remedy(code: int) -> None:
    """§7.4."""
    protocol = Protocol(max_message_size=1000)
    for end in (protocol.close, protocol.fail):
        with pytest.raises(ValueError, match=f"{code} cannot be sent .* use 1000, or 4000 to 4999"):
            end(code)
    assert feed(protocol, masked(0x81, b"on")).messages == ["on"]


def test_a_reason_of_more_than_123_bytes_is_refused() -> None:
    """§5.5."""
    protocol = Protocol(max_message_size=1000)
    protocol_closed = Protocol(max_message_size=1000)
    protocol_closed.close(1000, "é" * 61)
    assert protocol_closed.close_sent == (1000, "é" * 61)
    for end in (protocol.close, protocol.fail):
        with pytest.raises(ValueError, match="at most 123 bytes"):
            end(1000, "é" * 62)
    assert (protocol.state, protocol.output) == (OPEN, [])


def test_failing_sends_a_close_frame_and_ends_at_once() -> None:
    """§7.1.7: no data "including a responding Close frame" is processed."""
    protocol = Protocol(max_message_size=1000)
    protocol.receive(masked(0x01, b"under way"))
    protocol.fail(1011, "keepalive ping timeout")
    assert protocol.attention
    seen = feed(protocol, close_frame(1000), masked(0x81, b"late"))
    sent = (1011, "keepalive ping timeout")
    assert seen == Seen([], closing(*sent), CLOSING, True, True, None, sent)


def test_failing_while_closing_sends_no_second_close_frame() -> None:
    protocol = Protocol(max_message_size=1000)
    protocol.close(1000)
    protocol.output.clear()
    protocol.fail(1011)
    assert protocol.output == []
    assert protocol.finished
    assert protocol.failed


def test_failing_what_has_ended_does_nothing() -> None:
    answered = Protocol(max_message_size=1000)
    answered.receive(close_frame(1000))
    answered.output.clear()
    gone = Protocol(max_message_size=1000)
    gone.receive_eof()
    for protocol in (answered, gone):
        protocol.fail(1011)
        assert protocol.output == []
        assert not protocol.failed


def test_the_end_of_the_stream_without_a_close_frame_leaves_no_code() -> None:
    """§7.1.5: 1006 where no close frame has come, which is the caller's to say."""
    protocol = Protocol(max_message_size=1000)
    protocol.receive(masked(0x81, b"Hello")[:-1])
    protocol.receive_eof()
    assert feed(protocol, b"o") == Seen([], b"", CLOSED, True, False, None, None)
    protocol.close(1000)
    assert protocol.output == []


# -- UTF-8, §8.1 ---------------------------------------------------------------------------

NOT_UTF8 = {
    "never a byte": b"\xff",
    "no start": b"\x80",
    "overlong": b"\xc0\x80",
    "overlong slash": b"\xe0\x80\xaf",
    "surrogate": b"\xed\xa0\x80",
    "beyond Unicode": b"\xf4\x90\x80\x80",
    "truncated": "κόσμ".encode() + b"\xce",
}


@pytest.mark.parametrize("payload", NOT_UTF8.values(), ids=NOT_UTF8.keys())
@pytest.mark.parametrize("compressed", [False, True])
def test_text_that_is_not_utf8_fails_the_connection(payload: bytes, compressed: bool) -> None:
    """§8.1: "that endpoint MUST _Fail the WebSocket Connection_"; §7.4.1: 1007."""
    stream = masked(0xC1, deflated(payload)) if compressed else masked(0x81, payload)
    seen = fails(masked(0x81, b"before") + stream, 1007, compressed=compressed)
    assert seen.messages == ["before"]


@pytest.mark.parametrize("payload", NOT_UTF8.values(), ids=NOT_UTF8.keys())
def test_binary_messages_are_not_looked_into(payload: bytes) -> None:
    answers(masked(0x82, payload), payload)


@pytest.mark.parametrize("text", ["κόσμε", "€", "𝄞", "\0", "\ufeff", "\U0010ffff"])
def test_a_character_may_be_cut_by_a_fragment(text: str) -> None:
    """§5.6: a fragment "might ... include a partial UTF-8 sequence"; §8.1."""
    payload = text.encode()
    for place in range(len(payload) + 1):
        answers(masked(0x01, payload[:place]) + masked(0x80, payload[place:]), text)


def test_bad_text_across_a_fragment_border_fails_as_soon_as_it_shows() -> None:
    """The last fragment is not awaited."""
    seen = fails(masked(0x01, b"\xe2") + masked(0x00, b"\x28"), 1007)
    assert seen.close_sent == (1007, "text is not valid UTF-8")


def test_text_that_ends_within_a_character_fails_at_its_last_fragment() -> None:
    fails(masked(0x01, b"\xe2\x82") + masked(0x80), 1007)


def test_one_message_leaves_nothing_of_its_text_to_the_next() -> None:
    stream = masked(0x01, b"\xe2") + masked(0x80, b"\x82\xac")
    answers(stream + stream + masked(0x81, b"a"), "€", "€", "a")


# -- compression, RFC 7692 -----------------------------------------------------------------


def test_the_compressed_hello_of_the_rfc_is_read() -> None:
    """RFC 7692 §7.2.3.1."""
    hello = bytes.fromhex("f248cdc9c90700")
    answers(masked(0xC1, hello), "Hello", compressed=True)


def test_the_fragmented_compressed_hello_of_the_rfc_is_read() -> None:
    """RFC 7692 §7.2.3.1: RSV1 on the first fragment alone."""
    stream = masked(0x41, bytes.fromhex("f248cd")) + masked(0x80, bytes.fromhex("c9c90700"))
    answers(stream, "Hello", compressed=True)


def test_the_window_is_shared_by_the_messages_of_the_rfc() -> None:
    """RFC 7692 §7.2.3.2."""
    stream = masked(0xC1, bytes.fromhex("f248cdc9c90700")) + masked(
        0xC1, bytes.fromhex("f200110000")
    )
    answers(stream, "Hello", "Hello", compressed=True)


@pytest.mark.parametrize(
    "hello",
    [
        "000500faff48656c6c6f00",  # §7.2.3.3: a block without compression
        "f348cdc9c9070000",  # §7.2.3.4: a block with BFINAL set
        "f248050000 00ffff cac9c90700",  # §7.2.3.5: two blocks
    ],
)
def test_other_forms_of_the_compressed_hello_of_the_rfc_are_read(hello: str) -> None:
    protocol = Protocol(max_message_size=1000, extensions=[deflate(whole_window=False)])
    frame = masked(0xC1, bytes.fromhex(hello))
    assert feed(protocol, frame).messages == ["Hello"]


def test_compressed_and_plain_messages_and_pings_may_alternate() -> None:
    """RFC 7692 §6: the bit is set message by message."""
    stream = (
        masked(0x81, b"plain")
        + masked(0x42, deflated(b"compressed"))
        + masked(0x89, b"?")
        + masked(0x80)
        + masked(0x01, b"pla")
        + masked(0x80, b"in")
        + masked(0xC2)  # nothing at all still makes a message
    )
    answers(stream, "plain", b"compressed", "plain", b"", output=b"\x8a\x01?", compressed=True)


@pytest.mark.parametrize("compressed_start", [False, True])
@pytest.mark.parametrize("head", [0xC0, 0x40])
def test_rsv1_in_a_later_fragment_fails_the_connection(compressed_start: bool, head: int) -> None:
    """RFC 7692 §6.1: "MUST NOT set the "Per-Message Compressed" bit of ... non-first fragments"."""
    data = deflated(b"Hello")
    start = masked(0x41, data[:3]) if compressed_start else masked(0x01, b"Hel")
    fails(start + masked(head, data[3:]), 1002, compressed=True)


@pytest.mark.parametrize("head", [0xC8, 0xC9, 0xCA])
def test_rsv1_in_a_control_frame_fails_the_connection(head: int) -> None:
    """RFC 7692 §6.1."""
    fails(masked(head, b"\x03\xe8"), 1002, compressed=True)


def test_data_that_cannot_be_decompressed_fails_the_connection() -> None:
    fails(masked(0xC1, b"\xff\xff\xff"), 1002, compressed=True)


def test_a_compressed_message_may_be_as_long_as_the_limit() -> None:
    for size in (1000, 999):
        answers(masked(0xC2, deflated(b"a" * size)), b"a" * size, limit=1000, compressed=True)


@pytest.mark.parametrize("size", range(1001, 1300, 7))
def test_a_compressed_message_over_the_limit_by_little_is_refused(size: int) -> None:
    """However it is framed: zlib keeps a last match back when its room is used up."""
    data = deflated(b"a" * size)
    for stream in (
        masked(0xC2, data),
        masked(0x42, data) + masked(0x80),
        masked(0x42, data) + masked(0x00) + masked(0x80),
        masked(0x42, data[:-1]) + masked(0x80, data[-1:]),
    ):
        protocol = Protocol(max_message_size=1000, extensions=[deflate()])
        seen = feed(protocol, stream)
        assert seen.messages == []
        assert seen.close_sent is not None
        assert seen.close_sent[0] == 1009


@pytest.mark.slow
@pytest.mark.parametrize("fragments", [1, 7])
def test_a_deflate_bomb_stops_at_the_limit(fragments: int) -> None:
    """RFC 7692 §8 leaves it to the receiver; 256 KiB would become 256 MiB."""
    encoder = zlib.compressobj(level=9, wbits=-15)
    bomb = b"".join(encoder.compress(bytes(MIB)) for _ in range(256))
    bomb += encoder.flush(zlib.Z_SYNC_FLUSH)
    size = len(bomb) // fragments + 1
    parts = [bomb[start : start + size] for start in range(0, len(bomb), size)]
    stream = b"".join(
        masked((0x42 if not number else 0) | (0x80 if number == len(parts) - 1 else 0), part)
        for number, part in enumerate(parts)
    )

    def receive() -> None:
        seen = feed(Protocol(max_message_size=MIB, extensions=[deflate()]), stream)
        assert seen.messages == []
        assert seen.close_sent is not None
        assert seen.close_sent[0] == 1009

    takes_below(8 * MIB, receive)


def test_a_compressed_message_is_sent_with_rsv1_and_stands_by_itself() -> None:
    """RFC 7692 §7.2.1, §7.1.1.1: one frame does for all who agreed to the same."""
    protocol = Protocol(max_message_size=1000, extensions=[deflate()])
    assert protocol.window_bits == 15
    frames = [protocol.send("Hello" * 19), protocol.send(b"Hello" * 19)]
    assert [frame[0] for frame in frames] == [0xC1, 0xC2]
    assert frames[0][1:] == frames[1][1:]
    for frame in frames:
        decoder = zlib.decompressobj(wbits=-15)
        assert decoder.decompress(frame[2:] + b"\x00\x00\xff\xff") == b"Hello" * 19
    assert protocol.output == []


def test_a_message_that_compressing_makes_no_smaller_is_sent_as_it_is() -> None:
    """RFC 7692 §6: an endpoint may leave a message uncompressed."""
    protocol = Protocol(max_message_size=1000, extensions=[deflate()])
    noise = bytes(range(256))[:200]
    assert protocol.send("short") == b"\x81\x05short"
    assert protocol.send(noise) == b"\x82\x7e\x00\xc8" + noise


def test_control_frames_are_never_compressed() -> None:
    """RFC 7692 §6.1."""
    protocol = Protocol(max_message_size=1000, extensions=[deflate()])
    assert protocol.ping(b"?") == b"\x89\x01?"
    protocol.close(1000, "bye")
    assert protocol.output == [closing(1000, b"bye")]


def test_the_last_replies_after_a_close_frame_go_uncompressed() -> None:
    protocol = Protocol(max_message_size=1000, extensions=[deflate()])
    protocol.receive(close_frame(1000))
    assert protocol.send("reply") == b"\x81\x05reply"


# -- send ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "binary", "expected"),
    [
        ("€", None, b"\x81\x03\xe2\x82\xac"),
        ("€", False, b"\x81\x03\xe2\x82\xac"),
        ("€", True, b"\x82\x03\xe2\x82\xac"),
        (b"\xff", None, b"\x82\x01\xff"),
        (b"\xff", True, b"\x82\x01\xff"),
        (b"text", False, b"\x81\x04text"),
        (bytearray(b"ab"), None, b"\x82\x02ab"),
        (memoryview(b"abcd")[::2], None, b"\x82\x02ac"),
        ("", None, b"\x81\x00"),
        (b"", None, b"\x82\x00"),
        (b"a" * 126, None, b"\x82\x7e\x00\x7e" + b"a" * 126),
    ],
)
def test_text_goes_as_text_and_bytes_as_binary_unless_told_otherwise(
    message: Any, binary: bool | None, expected: bytes
) -> None:
    """§5.6."""
    assert Protocol(max_message_size=10).send(message, binary) == expected


@pytest.mark.parametrize("message", [None, 5, {"a": 1}, ["a"], object()])
def test_what_is_neither_text_nor_bytes_is_refused_with_the_remedy(message: Any) -> None:
    with pytest.raises(TypeError) as caught:
        Protocol(max_message_size=10).send(message)
    assert type(message).__name__ in str(caught.value)
    assert "flask.json.dumps()" in str(caught.value)


@pytest.mark.parametrize(("message", "binary"), [(b"\xff", False), ("\ud800", None)])
def test_what_is_not_utf8_cannot_be_sent_as_text(message: str | bytes, binary: bool | None) -> None:
    """§8.1 binds the sender, too."""
    with pytest.raises(ValueError):
        Protocol(max_message_size=10).send(message, binary)


def compressed(payload: bytes, head: int = 0xC2) -> bytes:
    return masked(head, deflated(payload))


def keeps_below(size: int, frame: bytes, unfinished: int = 0) -> None:
    """A connection keeps less than this of a compressed frame once all messages were taken."""
    protocols = []
    for _ in range(CALLS):
        protocols.append(Protocol(max_message_size=MIB, extensions=[deflate()]))
        protocols[-1].receive(compressed(b"a"))  # what a connection needs for this is made
    unread = iter(protocols)
    takes_below(size, lambda: next(unread).receive(frame), in_the_end=True)
    assert protocols[0].unfinished == unfinished


@pytest.mark.parametrize("head", [0xC1, 0xC2], ids=["text", "binary"])
def test_nothing_is_kept_of_a_compressed_message_that_was_handed_over(head: int) -> None:
    """A kilobyte of the peer's could stay a megabyte for as long as the peer is idle."""
    keeps_below(MIB // 4, compressed(bytes(MIB), head))


def test_an_unfinished_compressed_message_is_kept_once() -> None:
    keeps_below(MIB * 3 // 2, compressed(bytes(MIB), 0x42), unfinished=MIB)


# -- turns ---------------------------------------------------------------------------------


@pytest.mark.parametrize("frame", [masked(0x89, b"1"), masked(0x8A), masked(0x00)])
def test_frames_that_make_no_message_end_a_turn_as_messages_do(frame: bytes) -> None:
    """Else one read of 64 KiB could be ten thousand pings, with others waiting."""
    protocol = Protocol(max_message_size=10)
    protocol.receive(masked(0x01))  # a message begins
    extra = []
    protocol.receive(frame * (2 * MESSAGES_PER_TURN + 5))
    while True:
        extra.append(protocol.extra)
        if not protocol.more:
            break
        assert protocol.receive(b"") == []
    assert extra == [MESSAGES_PER_TURN, MESSAGES_PER_TURN, 5]


@pytest.mark.parametrize(
    ("stream", "extra"),
    [
        (masked(0x81, b"a") * 3, 0),
        (masked(0x81, b"a") + masked(0x89) + masked(0x8A), 2),
        (masked(0x01, b"a") + masked(0x00) + masked(0x80), 2),
        (masked(0x01, b"a" * 1023) + masked(0x80), 1),
        (masked(0x01, b"a" * 1024) + masked(0x00, b"a" * 1024) + masked(0x80), 0),
        (masked(0x01, b"a" * 1024) + masked(0x89) + masked(0x80), 1),
    ],
)
def test_what_costs_as_much_as_a_message_and_makes_none_is_counted(
    stream: bytes, extra: int
) -> None:
    protocol = Protocol(max_message_size=10_000)
    protocol.receive(stream)
    assert protocol.extra == extra


def test_small_fragments_of_a_compressed_message_are_counted() -> None:
    protocol = Protocol(max_message_size=10_000, extensions=[deflate()])
    protocol.receive(masked(0x41) + masked(0x00) * 3)
    assert protocol.extra == 4


def test_the_caller_gets_the_floor_back_after_so_many_messages() -> None:
    stream = b"".join(masked(0x82, bytes((number,))) for number in range(2 * MESSAGES_PER_TURN + 5))
    protocol = Protocol(max_message_size=10)
    turns = [protocol.receive(stream)]
    while protocol.more:
        turns.append(protocol.receive(b""))
    assert [len(turn) for turn in turns] == [MESSAGES_PER_TURN, MESSAGES_PER_TURN, 5]
    expected = [bytes((number,)) for number in range(2 * MESSAGES_PER_TURN + 5)]
    assert [message for turn in turns for message in turn] == expected


def test_compressed_messages_are_read_in_turns_of_as_many() -> None:
    count = 2 * MESSAGES_PER_TURN + 5
    stream = b"".join(masked(0xC2, deflated(bytes((number,)))) for number in range(count))
    protocol = Protocol(max_message_size=10, extensions=[deflate()])
    turns = [protocol.receive(stream)]
    while protocol.more:
        turns.append(protocol.receive(b""))
    assert [len(turn) for turn in turns] == [MESSAGES_PER_TURN, MESSAGES_PER_TURN, 5]
    assert [message for turn in turns for message in turn] == [bytes((n,)) for n in range(count)]


@pytest.mark.parametrize(("size", "turns"), [(65536, [3]), (65537, [1, 1, 1])])
def test_a_message_that_is_large_once_decompressed_ends_the_turn(
    size: int, turns: list[int]
) -> None:
    protocol = Protocol(max_message_size=MIB, extensions=[deflate()])
    messages = [protocol.receive(masked(0xC2, deflated(bytes(size))) * 3)]
    while protocol.more:
        messages.append(protocol.receive(b""))
    assert [len(turn) for turn in messages] == turns
    assert {message for turn in messages for message in turn} == {bytes(size)}


def test_nothing_more_is_there_after_exactly_so_many_messages() -> None:
    protocol = Protocol(max_message_size=10)
    assert len(protocol.receive(masked(0x82, b"a") * MESSAGES_PER_TURN)) == MESSAGES_PER_TURN
    assert not protocol.more
    assert protocol.receive(masked(0x81, b"b")) == ["b"]


def test_a_message_that_comes_meanwhile_takes_its_place_at_the_end() -> None:
    protocol = Protocol(max_message_size=10)
    protocol.receive(masked(0x82, b"a") * (MESSAGES_PER_TURN + 1))
    assert protocol.more
    assert protocol.receive(masked(0x81, b"b")) == [b"a", "b"]
    assert not protocol.more


def test_messages_before_a_violation_are_handed_over() -> None:
    seen = fails(masked(0x81, b"good") + masked(0x83, b"bad"), 1002)
    assert seen.messages == ["good"]


def test_frames_behind_our_own_close_frame_are_read_in_turns() -> None:
    """The peer may send them for as long as its close frame is waited for."""
    protocol = Protocol(max_message_size=10)
    protocol.close(1000)
    data = masked(0x81) * 10_000 + close_frame(1000)
    before = len(data)
    while before:
        assert protocol.receive(data) == []
        assert before - protocol.unfinished <= 512 * len(masked(0x81))
        before, data = protocol.unfinished, b""
    assert not protocol.more
    assert protocol.close_received == (1000, "")
    assert protocol.finished


@pytest.mark.parametrize("end", ["close", "fail", "receive_eof"])
def test_closing_while_more_is_waiting_leaves_nothing_to_go_on_with(end: str) -> None:
    """Else the caller would go on for ever, reading nothing new meanwhile."""
    protocol = Protocol(max_message_size=10)
    protocol.receive(masked(0x82, b"a") * (MESSAGES_PER_TURN + 1) + close_frame(1000))
    assert protocol.more
    if end == "receive_eof":
        protocol.receive_eof()
    else:
        getattr(protocol, end)(1001)
    assert protocol.more == (end == "close")  # the peer's close frame may be among them
    assert protocol.receive(b"") == []
    assert not protocol.more
    assert protocol.close_received == ((1000, "") if end == "close" else None)


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"", 0),
        (masked(0x82, bytes(300)), 0),
        (masked(0x82, bytes(300))[:1], 0),  # not known
        (masked(0x82, bytes(300))[:3], 0),
        (masked(0x82, bytes(300))[:4], 304),
        (masked(0x82, bytes(300))[:-1], 1),
        (masked(0x81, b"a") + masked(0x82, bytes(300))[:100], 208),
    ],
)
def test_missing_tells_how_much_of_the_frame_under_way_is_to_come(
    stream: bytes, expected: int
) -> None:
    protocol = Protocol(max_message_size=1000)
    protocol.receive(stream)
    assert protocol.missing == expected


def test_nothing_is_missing_once_the_connection_is_closing() -> None:
    protocol = Protocol(max_message_size=1000)
    protocol.receive(masked(0x82, bytes(300))[:100])
    protocol.close(1000)
    protocol.receive(bytes(8))
    assert protocol.missing == 0


def test_attention_is_asked_for_by_all_but_whole_small_messages() -> None:
    protocol = Protocol(max_message_size=1000)
    protocol.receive(masked(0x81, b"a"))
    protocol.receive(masked(0x82, b"a"))
    assert not protocol.attention
    for stream in (masked(0x89), masked(0x8A), masked(0x01, b"a"), close_frame(1000)):
        protocol.attention = False
        protocol.receive(stream)
        assert protocol.attention
