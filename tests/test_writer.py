from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from flask_sockets2.brokers.base import TEXT, Message, Position
from flask_sockets2.fanout import turn_writer as writer
from flask_sockets2.fanout.encoding import Frames
from flask_sockets2.fanout.outbox import Batch, Outlet
from flask_sockets2.fanout.turn_writer import TurnWriter
from flask_sockets2.stats import ChannelCounters
from flask_sockets2.transports.budget import UNCOUNTED


class Clock:
    """A hub whose turns the test takes."""

    threaded = False
    blocks = False

    def __init__(self) -> None:
        self.calls: deque[Callable[[], None]] = deque()

    def call_soon(self, function: Callable[[], None]) -> None:
        self.calls.append(function)

    def inside(self) -> bool:
        return True

    def turn(self) -> None:
        for _ in range(len(self.calls)):
            self.calls.popleft()()


class Transport:
    """Keeps what was written, each write by itself."""

    lock = nullcontext()
    buffered = 0
    clock: Any = None
    share = UNCOUNTED

    def __init__(self, written: Callable[[], None] = lambda: None) -> None:
        self.writes: list[bytes] = []
        self._written = written

    def write(self, data: bytes) -> None:
        self.writes.append(data)
        self._written()


class Audience:
    """Outlets that get what is pending."""

    def __init__(self, writer: TurnWriter, outlets: list[Outlet]) -> None:
        self.writer = writer
        self.outlets = outlets
        self.pending: list[Message] = []

    def put(self, data: bytes) -> None:
        self.pending.append(Message("c", TEXT, data, Position("", 1)))
        self.writer.note(self.seal, len(data))

    def seal(self) -> None:
        self.writer.batches.append(batch_for(self.outlets, self.pending))
        self.pending = []


def batch_for(outlets: list[Outlet], messages: list[Message]) -> Batch:
    channel = SimpleNamespace(counters=ChannelCounters())
    return Batch(channel, Frames.of(), outlets, messages)


def outlet_on(transport: Transport) -> Outlet:
    nobody: Any = SimpleNamespace(too_slow=lambda *_: None)
    source: Any = SimpleNamespace(observer=nobody, remove=lambda *_: None)
    return Outlet(transport, nobody, source, 1000, "disconnect")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def made(clock: Clock) -> TurnWriter:
    return TurnWriter(clock, threading.Lock())


def test_what_comes_in_one_turn_is_one_write(clock: Clock, made: TurnWriter) -> None:
    transport = Transport()
    outlets = [outlet_on(transport)]
    first, second = Audience(made, outlets), Audience(made, outlets)
    first.put(b"a")
    second.put(b"b")
    first.put(b"c")
    assert transport.writes == []
    clock.turn()
    assert transport.writes == [b"\x81\x01a\x81\x01c\x81\x01b"]


def test_what_comes_during_the_last_write_of_a_slice_is_written_in_the_next(
    clock: Clock, made: TurnWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time is over with the last client: nothing is left to write, and more has come."""
    monkeypatch.setattr(writer, "_SLICE", 0.0)
    monkeypatch.setattr(writer, "_SLICE_CHECK", 1)
    transport = Transport(lambda: audience.put(b"b") if len(transport.writes) == 1 else None)
    audience = Audience(made, [outlet_on(transport)])
    audience.put(b"a")
    for _ in range(4):
        clock.turn()
    assert transport.writes == [b"\x81\x01a", b"\x81\x01b"]
    assert not clock.calls


def test_slices_reach_everyone_in_order(
    clock: Clock, made: TurnWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_SLICE", 0.0)
    monkeypatch.setattr(writer, "_SLICE_CHECK", 2)
    transports = [Transport() for _ in range(7)]
    audience = Audience(made, [outlet_on(transport) for transport in transports])
    audience.put(b"a")
    clock.turn()
    assert [len(transport.writes) for transport in transports] == [1, 1, 0, 0, 0, 0, 0]
    audience.put(b"b")
    while clock.calls:
        clock.turn()
    assert all(t.writes == [b"\x81\x01a", b"\x81\x01b"] for t in transports)


def test_a_write_that_fails_is_logged_and_does_not_hold_up_the_others(
    clock: Clock, made: TurnWriter, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise RuntimeError("broken")

    transports = [Transport(), Transport(fail), Transport()]
    audience = Audience(made, [outlet_on(transport) for transport in transports])
    audience.put(b"a")
    clock.turn()
    assert [len(transport.writes) for transport in transports] == [1, 1, 1]
    assert "broken" in caplog.text


def test_who_publishes_during_a_write_is_served_after_it(clock: Clock, made: TurnWriter) -> None:
    def publish() -> None:
        if len(transport.writes) == 1:
            audience.put(b"b")
            made.flush_all()

    transport = Transport(publish)
    audience = Audience(made, [outlet_on(transport)])
    audience.put(b"a")
    while clock.calls:
        clock.turn()
    assert transport.writes == [b"\x81\x01a", b"\x81\x01b"]


def test_another_thread_waits_for_room_and_no_longer(clock: Clock, made: TurnWriter) -> None:
    audience = Audience(made, [outlet_on(Transport())])
    audience.put(b"x" * 100)
    thread = threading.Thread(target=made.wait_for_room, args=(10,))
    thread.start()
    clock.turn()
    thread.join(60)
    assert not thread.is_alive()
