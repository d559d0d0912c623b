"""Frames for the fast lane: read a header, unmask a payload, build a whole frame.

RFC 6455 §5.2, for a server only: a server reads masked frames and sends unmasked ones.
"""

from __future__ import annotations

import zlib
from struct import Struct

try:
    from websockets.speedups import apply_mask
except ImportError:  # websockets built without its C extension
    from websockets.utils import apply_mask

__all__ = [
    "BINARY",
    "CLOSE",
    "CONTINUATION",
    "PING",
    "PONG",
    "TEXT",
    "apply_mask",
    "build",
    "build_deflated",
    "parse_header",
]

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA

FIN = 0x80
DEFLATED = 0x40  # RSV1, RFC 7692 §6

_WORTH_DEFLATING = 64  # bytes; shorter payloads do not become smaller

_SMALL_HEADERS = [[bytes((FIN | opcode, size)) for size in range(126)] for opcode in range(16)]

_pack_16 = Struct("!BBH").pack
_pack_64 = Struct("!BBQ").pack
_unpack_16 = Struct("!H").unpack_from
_unpack_64 = Struct("!Q").unpack_from


def build(opcode: int, payload: bytes) -> bytes:
    """Return a whole, unmasked, final frame.

    :param opcode: one of this module's constants.
    :param payload: the frame's payload, of any length for data, at most 125 bytes for control.
    """
    size = len(payload)
    if size < 126:
        return _SMALL_HEADERS[opcode][size] + payload
    if size < 65536:
        return _pack_16(FIN | opcode, 126, size) + payload
    return _pack_64(FIN | opcode, 127, size) + payload


def build_deflated(opcode: int, payload: bytes, window_bits: int) -> bytes:
    """Return a whole, unmasked, final frame, compressed if the payload becomes smaller.

    The payload is compressed without context takeover (RFC 7692 §7.1.1.1). So the frame fits every
    connection with a window of ``window_bits`` or more.
    """
    if len(payload) >= _WORTH_DEFLATING:
        deflate = zlib.compressobj(wbits=-window_bits, memLevel=5)
        small = (deflate.compress(payload) + deflate.flush(zlib.Z_SYNC_FLUSH))[:-4]  # §7.2.1
        if len(small) < len(payload):
            frame = build(opcode, small)
            return bytes((frame[0] | DEFLATED,)) + frame[1:]
    return build(opcode, payload)


def parse_header(data: bytes | bytearray, position: int, end: int) -> tuple[int, int] | None:
    """Read the extent of the masked frame that starts at a position.

    :param data: the stream; :param position: start of the frame; :param end: end of the stream,
        at least two bytes behind the start.
    :returns: ``(start, size)``: start of the payload and its announced length in bytes; None if the
        length is incomplete. The masking key is the four bytes before ``start``. The key may not
        have arrived yet, since a length can be refused without it. The size is -1 if the length is
        encoded in more bytes than necessary, or has its highest bit set (§5.2).
    """
    size = data[position + 1] & 0x7F
    if size < 126:
        return position + 6, size
    if size == 126:
        if position + 4 > end:
            return None
        size = _unpack_16(data, position + 2)[0]
        return position + 8, size if size > 125 else -1
    if position + 10 > end:
        return None
    size = _unpack_64(data, position + 2)[0]
    return position + 14, size if 65535 < size < 2**63 else -1
