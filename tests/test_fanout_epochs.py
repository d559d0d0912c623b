"""A client that knows of a new epoch before the process that it comes to does."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from typing import Any

from flask_sockets2.brokers.base import (
    TEXT,
    Broker,
    BrokerOptions,
    Draft,
    History,
    Message,
    Position,
)
from flask_sockets2.fanout.encoding import Frames
from flask_sockets2.fanout.fanout import Fanout
from flask_sockets2.fanout.outbox import Outlet
from flask_sockets2.stats import Counters

OLD, NEW = "0" * 16, "1" * 16
ENVELOPES = Frames.of(envelope=True)


def message(epoch: str, offset: int) -> Message:
    return Message("news", TEXT, b"%d" % offset, Position(epoch, offset))


class FarBroker(Broker):
    """A broker that says what it is told to; another process would see more than this one."""

    shared = waits = True
    newest = Position(OLD, 7)
    found = History((), Position(NEW, 0), complete=False)
    during: Callable[[], None] = staticmethod(lambda: None)

    def publish(self, drafts: Sequence[Draft]) -> list[Position]:
        raise NotImplementedError

    def subscribe(self, channel: str) -> Position:
        return self.newest

    def unsubscribe(self, channel: str) -> None: ...

    def position(self, channel: str) -> Position:
        return self.newest

    def history(self, channel: str, since: Position | None) -> History:
        self.during()
        return self.found

    def count(self, channel: str, subscribers: int) -> None: ...

    def subscribers(self, channel: str) -> int:
        return 0

    def join(self, channel: str, identity: str) -> None: ...

    def leave(self, channel: str, identity: str) -> None: ...

    def present(self, channel: str) -> list[str]:
        return []

    def close(self) -> None: ...


class Hub:
    """A hub that turns when it is told to."""

    threaded = blocks = False

    def __init__(self) -> None:
        self._calls: list[Callable[[], None]] = []

    def call_soon(self, function: Callable[[], None]) -> None:
        self._calls.append(function)

    def inside(self) -> bool:
        return True

    def turn(self) -> None:
        while self._calls:
            self._calls.pop(0)()


class Client:
    """A transport whose bytes are envelopes, and the owner of its outlet."""

    buffered = 0

    def __init__(self, hub: Hub) -> None:
        self.clock = hub
        self.lock = threading.RLock()
        self._written = b""

    def write(self, data: bytes) -> None:
        self._written += data

    def too_slow(self) -> None:
        raise AssertionError("it is not")

    @property
    def seen(self) -> list[str]:
        """Positions, in their order, and the word gap behind those of gaps."""
        found, data = [], self._written
        while data:
            size, start = (data[1], 2) if data[1] < 126 else (int.from_bytes(data[2:4], "big"), 4)
            envelope = json.loads(data[start : start + size])
            data = data[start + size :]
            epoch, _, offset = envelope["position"].partition("-")
            found.append(f"{'old' if epoch == OLD else 'new'} {offset}")
            found[-1] += f" {envelope['event']}" if "event" in envelope else ""
        return found


class Process:
    """A fan-out with one client that has seen everything up to some position."""

    def __init__(self) -> None:
        self.broker: FarBroker
        self.hub = Hub()
        self.fanout = Fanout(self._make, BrokerOptions(), Counters())
        self.subscribe()  # another client, so that the channel is open

    def _make(self, fanout: Fanout) -> Broker:
        self.broker = FarBroker("far://", BrokerOptions(), fanout)
        return self.broker

    def subscribe(self, since: Position | None = None) -> Client:
        client: Any = Client(self.hub)
        outlet = Outlet(client, client, self.fanout, 2**20, "disconnect")
        self.fanout.subscribe(outlet, "news", ENVELOPES, since=since)
        return client

    def missed(self, offset: int) -> None:
        self.fanout.missed("news", Position(NEW, offset))
        self.hub.turn()

    def deliver(self, *offsets: int, epoch: str = NEW) -> None:
        for offset in offsets:
            self.fanout.deliver(message(epoch, offset))
        self.hub.turn()


def test_one_loss_is_told_once_though_its_process_notices_later() -> None:
    process = Process()
    client = process.subscribe(Position(OLD, 3))
    process.missed(0)
    process.deliver(1, 2)
    assert client.seen == ["new 0 gap", "new 1", "new 2"]


def test_what_is_lost_after_the_gap_is_told_too() -> None:
    process = Process()
    client = process.subscribe(Position(OLD, 3))
    process.missed(2)
    process.deliver(3)
    assert client.seen == ["new 0 gap", "new 2 gap", "new 3"]


def test_who_knows_the_new_epoch_is_told_of_no_loss_and_gets_nothing_twice() -> None:
    """Its history ended with 3; its process begins anew with 2."""
    process = Process()
    process.broker.found = History([message(NEW, 2), message(NEW, 3)], Position(NEW, 3))
    client = process.subscribe(Position(NEW, 1))
    process.missed(1)
    process.deliver(2, 3, 4)
    process.deliver(5)
    assert client.seen == ["new 2", "new 3", "new 4", "new 5"]


def test_a_gap_that_comes_while_the_history_is_fetched_is_told_once() -> None:
    process = Process()
    process.broker.during = lambda: process.missed(0)
    client = process.subscribe(Position(OLD, 3))
    process.deliver(1)
    assert client.seen == ["new 0 gap", "new 1"]


def test_what_comes_of_the_old_epoch_while_the_history_is_fetched_is_not_sent_after_it() -> None:
    process = Process()
    process.broker.during = lambda: process.deliver(8, epoch=OLD)
    client = process.subscribe(Position(OLD, 3))
    process.missed(0)
    process.deliver(1)
    assert client.seen == ["new 0 gap", "new 1"]


def test_an_epoch_that_ends_while_the_history_is_fetched_is_told() -> None:
    """The history is of the old one, this process knows of the new one already."""
    process = Process()
    process.broker.found = History([message(OLD, 7)], Position(OLD, 7))
    process.broker.during = lambda: process.missed(1)
    client = process.subscribe(Position(OLD, 6))
    process.deliver(2)
    assert client.seen == ["old 7", "new 1 gap", "new 2"]
