"""Frames that RFC 6455 forbids, or that are too much: the connection fails with the right code."""

from __future__ import annotations

import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from tests.faults.conftest import Target
from tests.wire_client import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, close_frame, frame

pytestmark = pytest.mark.slow

PEERS = 10  # that do it at once, where one alone would not be felt

COMPRESSED = {"Sec-WebSocket-Extensions": "permessage-deflate"}

VIOLATIONS = {
    "unmasked": (frame(TEXT, b"x", masked=False), 1002),  # §5.1
    "the first reserved bit": (frame(TEXT, b"x", reserved=4), 1002),  # §5.2
    "the second reserved bit": (frame(TEXT, b"x", reserved=2), 1002),
    "the third reserved bit": (frame(TEXT, b"x", reserved=1), 1002),
    "a reserved bit of a ping": (frame(PING, b"x", reserved=4), 1002),
    "an unknown data opcode": (frame(0x3, b"x"), 1002),
    "an unknown control opcode": (frame(0xB, b"x"), 1002),
    "a ping in fragments": (frame(PING, b"x", fin=False), 1002),  # §5.5
    "a long ping": (frame(PING, b"x" * 126), 1002),
    "a length in 16 bits that needs 7": (b"\x81\xfe\x00\x05" + bytes(9), 1002),  # §5.2
    "a length in 64 bits that needs 7": (b"\x82\xff" + bytes(7) + b"\x05" + bytes(9), 1002),
    "a length in 64 bits that needs 16": (b"\x82\xff" + bytes(6) + b"\xff\xff", 1002),
    "a length with its highest bit set": (b"\x82\xff\x80" + bytes(7), 1002),
    "a continuation of nothing": (frame(CONTINUATION, b"x"), 1002),  # §5.4
    "a message within a message": (frame(TEXT, b"x", fin=False) + frame(TEXT, b"y"), 1002),
    "a close frame of one byte": (frame(CLOSE, b"x"), 1002),  # §5.5.1
    "a close code that is none": (close_frame(1005), 1002),  # §7.4.1
    "a close reason that is not UTF-8": (close_frame(1000, b"\xff"), 1007),
    "text that is not UTF-8": (frame(TEXT, b"\xff"), 1007),  # §8.1
}


@pytest.mark.parametrize("case", VIOLATIONS)
def test_a_violation_ends_the_connection_with_its_code(target: Target, case: str) -> None:
    """Pains 23, 83"""
    data, code = VIOLATIONS[case]
    with target.connect() as client:
        client.send(frame(TEXT, b"before"))
        assert client.message() == b"before"
        client.send(data + frame(TEXT, b"after"))
        assert client.closing()[0] == code
    target.wait_until_alone()


@pytest.mark.parametrize(
    ("first", "second"),
    [(b"\xe2\x82", b"\x28"), (b"a\xf0\x9f", b""), (b"\xed\xa0\x80", b""), (b"\xc3", b"\xa9\xff")],
)
def test_bad_utf_8_across_a_fragment_border_is_1007(
    target: Target, first: bytes, second: bytes
) -> None:
    """RFC 6455 §8.1"""
    with target.connect() as client:
        client.send(frame(TEXT, first, fin=False) + frame(CONTINUATION, second))
        assert client.closing()[0] == 1007


def test_good_utf_8_across_a_fragment_border_is_a_message(target: Target) -> None:
    with target.connect() as client:
        client.send(
            frame(TEXT, b"\xe2\x82", fin=False) + frame(PING) + frame(CONTINUATION, b"\xac")
        )
        assert client.message() == "€".encode()


@pytest.mark.parametrize("size", [2**20 + 1, 2**31, 2**32, 2**63 - 1])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_a_length_that_is_too_much_is_1009_before_a_byte_of_it_came(
    target: Target, size: int, opcode: int
) -> None:
    """Pain 80"""
    assert target.bystander is not None
    with target.connect() as client:
        client.send(frame(opcode, size=size))
        assert client.closing()[0] == 1009
    target.bystander.look()
    assert target.bystander.memory_growth < 16 * 2**20


def test_a_continuation_whose_length_is_too_much_is_1009_at_once(target: Target) -> None:
    """Pain 80"""
    with target.connect() as client:
        client.send(frame(BINARY, bytes(2**19), fin=False))
        client.send(frame(CONTINUATION, size=2**19 + 1))
        assert client.closing()[0] == 1009


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 1000, 65536])
def test_endless_fragments_are_1009(target: Target, size: int) -> None:
    """Pain 80"""
    data = frame(CONTINUATION, bytes(size), fin=False)
    data *= max(1, 65536 // len(data))
    with target.connect() as client:
        client.send(frame(BINARY, b"", fin=False))
        sent = client.send_until_answered(data)
        assert sent < 32 * 2**20  # 7 bytes on the wire for one, and what the kernel holds
        client.send(data)  # who has failed may well go on
        assert client.closing()[0] == 1009
    target.wait_until_alone()


@pytest.mark.slow
@pytest.mark.parametrize("compressed", [False, True])
def test_endless_empty_fragments_cost_nothing_but_their_time(
    target: Target, compressed: bool
) -> None:
    """They never make a message too large, so it can still end. Ten peers do it at once."""
    data = frame(CONTINUATION, b"", fin=False) * 20_000
    whole = _deflated(b"12345") if compressed else b"12345"
    with ExitStack() as stack, ThreadPoolExecutor(PEERS) as pool:
        path = "/deflate" if compressed else "/echo"
        clients = [stack.enter_context(target.connect(path, COMPRESSED)) for _ in range(PEERS)]
        for client in clients:
            client.send(frame(TEXT, whole[:3], fin=False, reserved=4 if compressed else 0))
        for flood in [pool.submit(client.send, data) for client in clients]:
            flood.result(60)
        for client in clients:
            client.send(frame(CONTINUATION, whole[3:]))
        for client in clients:
            assert client.message() == b"12345"  # too short to gain by compressing


@pytest.mark.slow
def test_a_million_fragments_are_one_message(target: Target) -> None:
    with target.connect("/length") as client:
        client.send(frame(TEXT, b"x", fin=False))
        client.send(frame(CONTINUATION, b"x", fin=False) * 999_998)
        client.send(frame(CONTINUATION, b"x"))
        assert client.message() == b"1000000"


def _deflated(data: bytes) -> bytes:
    """The payload of a compressed message (RFC 7692 §7.2.1)."""
    deflate = zlib.compressobj(wbits=-12)
    whole = deflate.compress(data) + deflate.flush(zlib.Z_SYNC_FLUSH)
    return whole[:-4]


def _bomb(size: int) -> bytes:
    """So many zero bytes, compressed piece by piece: we need not hold them either."""
    deflate = zlib.compressobj(9, wbits=-12)
    piece = bytes(2**20)
    parts = [deflate.compress(piece) for _ in range(size // 2**20)]
    return b"".join([*parts, deflate.flush(zlib.Z_SYNC_FLUSH)])[:-4]


@pytest.mark.slow
def test_a_deflate_bomb_is_1009(target: Target) -> None:
    """Pain 81"""
    bomb = _bomb(512 * 2**20)
    assert len(bomb) < 2**20, "its compressed size is within the limit"
    with target.connect("/deflate", COMPRESSED) as client:
        client.send(frame(BINARY, bomb, reserved=4))
        assert client.closing()[0] == 1009


def test_a_deflate_bomb_in_fragments_is_1009(target: Target) -> None:
    """Pain 81"""
    bomb = _bomb(64 * 2**20)
    half = len(bomb) // 2
    with target.connect("/deflate", COMPRESSED) as client:
        client.send(frame(BINARY, bomb[:half], reserved=4, fin=False))
        client.send(frame(CONTINUATION, bomb[half:]))
        assert client.closing()[0] == 1009


@pytest.mark.parametrize("path", ["/deflate", "/first-deflated/{}"])
def test_many_small_bombs_at_once_are_not_inflated_at_once(
    target: Target, name: str, path: str
) -> None:
    """Each is 1 KiB and a message of 1 MiB, within the limit. Ten peers send them, and read
    nothing; pain 81"""
    bombs = frame(BINARY, _bomb(2**20), reserved=4) * 300
    with ExitStack() as stack, ThreadPoolExecutor(PEERS) as pool:
        path = path.format(name)
        clients = [stack.enter_context(target.connect(path, COMPRESSED)) for _ in range(PEERS)]
        floods = [
            pool.submit(client.send_while_taken, bombs, for_seconds=2, stalled_after=1)
            for client in clients
        ]
        assert min(flood.result(60) for flood in floods) > 2**16
    target.wait_until_alone()


def test_compressed_text_that_is_not_deflate_fails_the_connection(target: Target) -> None:
    """RFC 7692 §7.2.2"""
    with target.connect("/deflate", COMPRESSED) as client:
        client.send(frame(TEXT, b"\xff" * 100, reserved=4))
        assert client.closing()[0] in (1002, 1007)


@pytest.mark.parametrize("reading", [True, False], ids=["reading", "not reading"])
def test_a_ping_flood_leaves_the_connection_usable(target: Target, reading: bool) -> None:
    """RFC 6455 §5.5.3: of many pings the newest must be answered."""
    pings = frame(PING, b"x" * 125) * 1000
    with target.connect() as client:
        if reading:
            for _ in range(50):
                client.send(pings + frame(TEXT, b"round"))
                assert client.message() == b"round"
        else:
            client.send_while_taken(pings, for_seconds=1, stalled_after=0.5)
            client.send(frame(TEXT, b"after the flood"))
            assert client.message() == b"after the flood"


def test_a_flood_of_pongs_is_nothing(target: Target) -> None:
    with target.connect() as client:
        for _ in range(20):
            client.send(frame(PONG) * 10_000)
        client.send(frame(TEXT, b"after the flood"))
        assert client.message() == b"after the flood"


@pytest.mark.slow
@pytest.mark.parametrize("payload", [b"", b"ab", b"x" * 1000])
def test_a_flood_for_a_handler_that_does_not_receive_stops(
    target: Target, name: str, payload: bytes
) -> None:
    """What nobody takes is bounded by ``receive_buffer``; then TCP tells the peer to wait."""
    with target.connect(f"/first/{name}") as client:
        client.send(frame(TEXT, b"go"))
        assert client.message() == b"go"
        messages = frame(TEXT, payload) * (65536 // (len(payload) + 6))
        sent = client.send_while_taken(messages, for_seconds=60, stalled_after=3)
        assert 2**20 < sent < 32 * 2**20, "most of it is what the kernel holds"
        client.reset()
    assert target.ended(name) == "returned"


def test_what_comes_after_a_close_frame_is_not_received(target: Target, name: str) -> None:
    """RFC 6455 §5.5.1"""
    with target.connect(f"/messages/{name}") as client:
        late = frame(TEXT, b"late") + frame(PING, b"late") + frame(0x3, masked=False) + b"\xff" * 99
        client.send(frame(TEXT, b"early") + close_frame(4001, b"bye") + late)
        client.send(late)
        assert client.closing() == (4001, "bye")
    assert target.ended(name) == "returned"
    assert target.state()["ended"][f"{name} got"] == "['early']"


@pytest.mark.parametrize("ending", [close_frame(), frame(0x3)], ids=["closed", "failed"])
def test_who_goes_on_sending_after_the_end_is_cut_off(target: Target, ending: bytes) -> None:
    """RFC 6455 §7.1.1: the server closes first; the time it waits for us is bounded."""
    begun = time.monotonic()
    with target.connect() as client:
        client.send(ending)
        client.send_while_taken(frame(BINARY, bytes(65000)), for_seconds=90, stalled_after=90)
    assert time.monotonic() - begun < 60
    target.wait_until_alone()


@pytest.mark.parametrize(
    "data",
    [frame(BINARY, bytes(65000)), frame(PING) * 5000, frame(CONTINUATION, b"", fin=False) * 5000],
    ids=["messages", "pings", "fragments"],
)
def test_who_does_not_answer_a_close_frame_but_floods_is_cut_off(
    target: Target, data: bytes
) -> None:
    """RFC 6455 §7.1.1; ``close_timeout`` bounds it."""
    begun = time.monotonic()
    with target.connect("/closes") as client:
        assert client.frame().opcode == CLOSE
        client.send_while_taken(data, for_seconds=90, stalled_after=90)
    assert time.monotonic() - begun < 60
    target.wait_until_alone()


def test_a_handler_that_raises_after_accept_closes_with_1011_and_is_logged_once(
    target: Target, name: str
) -> None:
    """Pains 3, 23"""
    with target.connect(f"/raises/{name}") as client:
        assert client.closing() == (1011, "")
    target.server.wait_for_output(rf"RuntimeError: told by {name}$")
    assert target.server.output.count(f"RuntimeError: told by {name}\n") == 1
