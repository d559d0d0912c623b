"""Frames as bytes: RFC 6455 §5.2."""

from __future__ import annotations

import pytest

from flask_sockets2.wire import frames
from flask_sockets2.wire.frames import BINARY, CLOSE, PING, PONG, TEXT, build, parse_header


@pytest.mark.parametrize(
    ("opcode", "payload", "expected"),
    [
        (TEXT, b"Hello", b"\x81\x05Hello"),  # §5.7
        (PING, b"Hello", b"\x89\x05Hello"),  # §5.7
        (BINARY, b"", b"\x82\x00"),
        (PONG, b"", b"\x8a\x00"),
        (CLOSE, b"\x03\xe8", b"\x88\x02\x03\xe8"),
    ],
)
def test_a_frame_is_built_final_and_unmasked(opcode: int, payload: bytes, expected: bytes) -> None:
    assert build(opcode, payload) == expected


@pytest.mark.parametrize(
    ("size", "header"),
    [
        (125, b"\x82\x7d"),
        (126, b"\x82\x7e\x00\x7e"),
        (256, b"\x82\x7e\x01\x00"),  # §5.7
        (65_535, b"\x82\x7e\xff\xff"),
        (65_536, b"\x82\x7f\x00\x00\x00\x00\x00\x01\x00\x00"),  # §5.7
    ],
)
def test_the_length_is_built_in_as_few_bytes_as_it_needs(size: int, header: bytes) -> None:
    """§5.2: "the minimal number of bytes MUST be used to encode the length"."""
    assert build(BINARY, bytes(size)) == header + bytes(size)


@pytest.mark.parametrize(
    ("header", "start", "size"),
    [
        (b"\x81\x80", 6, 0),
        (b"\x81\xfd", 6, 125),
        (b"\x81\xfe\x00\x7e", 8, 126),
        (b"\x81\xfe\xff\xff", 8, 65_535),
        (b"\x81\xff" + (65_536).to_bytes(8, "big"), 14, 65_536),
        (b"\x81\xff" + (2**63 - 1).to_bytes(8, "big"), 14, 2**63 - 1),
        # §5.2: in more bytes than it needs, or with its highest bit set
        (b"\x81\xfe\x00\x00", 8, -1),
        (b"\x81\xfe\x00\x7d", 8, -1),
        (b"\x81\xff" + (0).to_bytes(8, "big"), 14, -1),
        (b"\x81\xff" + (65_535).to_bytes(8, "big"), 14, -1),
        (b"\x81\xff" + (2**63).to_bytes(8, "big"), 14, -1),
        (b"\x81\xff" + (2**64 - 1).to_bytes(8, "big"), 14, -1),
    ],
)
@pytest.mark.parametrize("before", [b"", b"\x8a\x80mask"])
def test_a_header_is_read_as_soon_as_its_length_is_there(
    header: bytes, start: int, size: int, before: bytes
) -> None:
    position = len(before)
    for end in range(2, len(header)):
        assert parse_header(before + header[:end], position, position + end) is None
    data = before + header
    assert parse_header(data, position, len(data)) == (position + start, size)
    assert parse_header(bytearray(data + b"mask"), position, len(data) + 4) == (
        position + start,
        size,
    )


def test_a_header_is_read_no_further_than_where_the_stream_ends() -> None:
    """The bytes behind the end are old ones: no length is made of them."""
    data = b"\x81\xfe\x00\x7emask"
    assert parse_header(data, 0, 3) is None


def test_masking_is_its_own_inverse() -> None:
    """§5.3, with the masked "Hello" of §5.7."""
    mask, masked = b"\x37\xfa\x21\x3d", b"\x7f\x9f\x4d\x51\x58"
    assert frames.apply_mask(masked, mask) == b"Hello"
    assert frames.apply_mask(b"Hello", mask) == masked
    assert frames.apply_mask(memoryview(masked), mask) == b"Hello"
