"""Peers that are slow, stuck or gone: they hold nobody up, and not for ever what they have."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack, suppress

import pytest

from tests.faults.conftest import Target
from tests.wire_client import BINARY, CLOSE, PING, PONG, TEXT, frame, request

pytestmark = pytest.mark.slow

needs_linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux drops packets for one socket"
)

SMALL = 16384  # bytes that the kernel of a peer that does not read keeps for it


@pytest.mark.slow
@pytest.mark.parametrize(
    ("start", "answer"), [(0, b""), (request().index(b"Host: 127") + 9, b"HTTP/1.1 408 ")]
)
def test_a_byte_a_second_is_no_handshake(target: Target, start: int, answer: bytes) -> None:
    """``SOCKETS_HANDSHAKE_TIMEOUT`` is 2 s; before the request line is whole, nothing can be
    answered. On the development server Werkzeug reads the head and waits as long as it takes, in
    a thread of its own: only that others are served is asserted there. Pain 37
    """
    head = request()
    with target.raw() as client:
        begun = time.monotonic()
        client.send(head[:start])
        came = None
        while came is None and time.monotonic() < begun + (4 if target.threads else 60):
            client.send(head[start : start + 1])
            start += 1
            with suppress(TimeoutError):  # a second goes by, unless the stream ends
                came = client.rest(timeout=1)
        if target.threads:
            assert came is None
            client.send(head[start:])
            assert client.response().status == 101
        else:
            assert came is not None
            assert came.startswith(answer) if answer else came == b""
            assert time.monotonic() - begun > 1.5


def test_many_who_say_nothing_hold_nobody_up(target: Target) -> None:
    """Each costs the development server a thread that waits as long as it takes."""
    with ExitStack() as stack:
        silent = [stack.enter_context(target.raw()) for _ in range(200)]
        with target.connect() as client:
            client.send(frame(TEXT, b"served"))
            assert client.message() == b"served"
        if not target.threads:
            assert [client.rest() for client in silent] == [b""] * len(silent)


def test_a_peer_that_never_reads_its_echoes_is_dropped(target: Target) -> None:
    """Pain 78"""
    messages = frame(BINARY, bytes(65000)) * 4
    with target.connect(receive_buffer=SMALL) as client:
        client.send_while_taken(messages, for_seconds=10, stalled_after=3)
        target.server.wait_for_output(  # of the two timers either may be first
            r"dropped '/echo': (the peer took nothing|no room to send) for 1\.5 s"
        )
        target.wait_until_alone()


def test_a_peer_that_never_reads_ends_the_handler_that_sends(target: Target, name: str) -> None:
    """Pains 75, 78"""
    with target.connect(f"/stream/{name}", receive_buffer=SMALL):
        assert "1006" in target.ended(name)
    target.wait_until_alone()


def test_a_reader_that_gets_stuck_is_dropped(target: Target, name: str) -> None:
    """Though the handler does not send any more and waits for the peer's next message.

    What it sent is in our buffer, whole; pains 30, 36, 78
    """
    with target.connect(f"/half-full/{name}", receive_buffer=SMALL) as client:
        client.frame()  # it reads for a while, and no more
        assert target.ended(name) == "returned"
        target.server.wait_for_output(
            rf"dropped '/half-full/{name}': (the peer took nothing|no room to send) for 1\.5"
        )
    target.wait_until_alone()


def test_a_reader_that_is_only_slow_is_not_dropped(target: Target, name: str) -> None:
    """It takes something in every ``send_timeout``; pain 75"""
    with target.connect(f"/half-full/{name}", receive_buffer=SMALL) as client:
        client.read_slowly(at_a_time=2048, interval=0.05, seconds=4)
        assert [len(client.message()) for _ in range(3)] == [2**18] * 3


@needs_linux
def test_a_peer_that_vanishes_without_a_fin_is_noticed(target: Target, name: str) -> None:
    """The handler, which waits for a message, ends; so does what the server keeps.

    Pains 22, 30, 32, 36
    """
    with target.connect(f"/kept-alive/{name}") as client:
        client.send(frame(TEXT, b"here"))
        assert client.message() == b"here"
        client.vanish()
        assert target.ended(name) == "returned"
        assert target.state()["ended"][f"{name} code"] == "1011"
        target.wait_until_alone()


@needs_linux
def test_a_peer_that_vanishes_while_it_is_sent_to_is_dropped(target: Target, name: str) -> None:
    """Without keepalive: ``send_timeout`` counts. Pains 30, 36, 73"""
    with target.connect(f"/stream/{name}") as client:
        client.frame()
        client.vanish()
        assert "1006" in target.ended(name)
        target.wait_until_alone()


def test_a_peer_that_answers_no_ping_is_closed_with_1011(target: Target, name: str) -> None:
    """Pains 32, 36"""
    with target.connect(f"/kept-alive/{name}") as client:
        assert client.frame().opcode == PING
        assert client.closing() == (1011, "keepalive ping timeout")
    assert target.ended(name) == "returned"


def test_a_peer_that_answers_pings_stays(target: Target, name: str) -> None:
    """Pain 31"""
    with target.connect(f"/kept-alive/{name}") as client:
        for _ in range(5):
            ping = client.frame()
            assert ping.opcode == PING
            client.send(frame(PONG, ping.payload))
        client.send(frame(TEXT, b"still here"))
        assert client.message() == b"still here"


def test_a_peer_is_not_dead_because_nobody_listens_to_it(target: Target, name: str) -> None:
    """It sends more than ``receive_buffer`` while its handler is busy, so that nothing more is
    read; its pongs stand behind what we did not read."""
    with target.connect(f"/busy/{name}") as client:
        messages = frame(BINARY, bytes(65000)) * 64
        client.send_while_taken(messages, for_seconds=0.1, stalled_after=0.5)
        assert target.ended(name) == "returned"
        assert target.state()["ended"][f"{name} code"] == "None"


def test_a_peer_that_resets_while_it_is_not_read_from_is_noticed(target: Target, name: str) -> None:
    """Its handler never receives, so nothing is read, and there is no ping that would fail. The
    messages that were read before can still be received."""
    with target.connect(f"/deaf/{name}") as client:
        messages = frame(BINARY, bytes(65000)) * 64
        client.send_while_taken(messages, for_seconds=10, stalled_after=1)
        assert target.state()["open"] == 2
        client.reset()
        assert target.ended(name) == "returned"
    ended = target.state()["ended"]
    assert ended[f"{name} code"] == "1006"
    assert int(ended[f"{name} got"]) >= 16  # receive_buffer
    target.wait_until_alone()


def test_a_close_frame_that_is_not_answered_ends_the_connection_in_time(target: Target) -> None:
    """RFC 6455 §7.1.1; pain 23"""
    with target.connect("/closes") as client:
        begun = time.monotonic()
        assert client.frame().opcode == CLOSE
        assert client.rest(5) == b""
        assert 1 < time.monotonic() - begun < 4
    target.wait_until_alone()
