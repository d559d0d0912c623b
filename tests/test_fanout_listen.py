"""Channels of the processes' own, which the fan-out listens to without a client."""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from flask_sockets2 import BrokerError
from flask_sockets2.brokers.base import JSON, RESERVED, Draft, Message
from flask_sockets2.fanout import control_channels as own_channels
from flask_sockets2.fanout import open_channels
from tests.fanning import Hub, Process
from tests.processes import wait_until


@pytest.mark.parametrize("far", [False, True])
def test_who_listens_hears_each_message_from_then_on(far: bool) -> None:
    process = Process(far=far)
    heard: list[Message] = []
    process.publish("before", channel="own")
    process.fanout.listen("own", heard.append, process.hub)
    process.fanout.listen("own", heard.append, process.hub)  # once is enough
    process.publish("one", "two", channel="own")
    process.publish("other", channel="news")
    process.settle()
    assert [message.data for message in heard] == [b"one", b"two"]
    assert process.fanout.channels() == {}


def test_the_broker_is_asked_once() -> None:
    process = Process(far=True)
    for _ in range(3):
        process.fanout.listen("own", lambda message: None, process.hub)
    assert process.broker.calls == ["subscribe", "subscribed"]


def test_what_is_lost_is_told_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    process, told = Process(far=True), []
    process.fanout.listen(
        "own", lambda message: None, process.hub, missed=lambda: told.append("own")
    )
    process.fanout.listen("transient", lambda message: None, process.hub)
    process.broker.lose("own")
    process.broker.lose("transient")
    assert told == ["own"]
    assert caplog.messages == [
        "what the processes told each other on 'own' before 0000000000000000-0 is lost"
    ]


def test_where_the_broker_is_away_nobody_listens_until_it_is_back() -> None:
    process = Process(far=True)
    process.broker.fails.add("subscribe")
    heard: list[Message] = []
    for _ in range(2):
        with pytest.raises(BrokerError, match="subscribe cannot reach the broker"):
            process.fanout.listen("own", heard.append, process.hub)
    process.broker.fails.clear()
    process.fanout.listen("own", heard.append, process.hub)
    process.publish("one", channel="own")
    process.settle()
    assert [message.data for message in heard] == [b"one"]


def test_those_who_wait_for_a_broker_that_is_away_fail_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else a thousand of them would wait for its timeout one after the other."""
    process = Process(far=True)
    process.broker.fails.add("subscribe")
    begun: list[float] = []

    def note_the_time() -> float:
        begun.append(time.monotonic())
        return begun[-1]

    monkeypatch.setattr(own_channels, "monotonic", note_the_time)
    process.broker.hook = lambda name: wait_until(lambda: len(begun) == 5, "all to have begun")

    def listen(number: int) -> str:
        try:
            process.fanout.listen("own", lambda message: None, process.hub)
        except BrokerError as exc:
            return str(exc)
        return ""

    with ThreadPoolExecutor(5) as pool:
        answers = pool.map(listen, range(5))
        assert set(answers) == {"subscribe cannot reach the broker"}
    assert process.broker.calls == ["subscribe"]


class Killed(BaseException):
    """As gevent.GreenletExit, and gevent.Timeout."""


def test_who_is_killed_while_the_broker_is_asked_leaves_nothing_behind() -> None:
    process = Process(far=True)

    def kill(name: str) -> None:
        if name == "subscribed":
            raise Killed

    process.broker.hook = kill
    heard: list[Message] = []
    with pytest.raises(Killed):
        process.fanout.listen("own", lambda message: None, process.hub)
    assert process.broker.subscribed == set()
    process.broker.hook = lambda name: None
    process.fanout.listen("own", heard.append, process.hub)
    process.publish("one", channel="own")
    process.settle()
    assert [message.data for message in heard] == [b"one"]


def test_where_waiting_would_stop_all_others_it_is_refused() -> None:
    process = Process(far=True)
    hub = Hub()
    hub.blocks = True
    with pytest.raises(BrokerError, match="gevent has not patched"):
        process.fanout.listen("own", lambda message: None, hub)
    assert process.broker.calls == []


def held_locks(process: Process) -> list[bool]:
    locks = [process.fanout._lock, getattr(process.broker, "_lock", None)]
    return [lock is not None and lock.locked() for lock in locks]


@pytest.mark.parametrize("far", [False, True])
def test_who_listens_is_called_without_a_lock(far: bool) -> None:
    """It may log; a handler may switch greenlets, and the next one would stop the whole thread."""
    process = Process(far=far)
    held: list[list[bool]] = []
    name = f"{RESERVED}own"
    process.fanout.listen(name, lambda message: held.append(held_locks(process)), process.hub)
    process.broker.publish([Draft(name, JSON, b"{}")])
    process.settle()
    assert held == [[False, False]]


class Locks(logging.Handler):
    """Notes which locks are held while something is logged."""

    def __init__(self, process: Process) -> None:
        super().__init__()
        self.process = process
        self.held: list[list[bool]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.held.append(held_locks(self.process))


def test_what_is_lost_is_told_and_logged_without_a_lock() -> None:
    process = Process(far=True)
    locks, told = Locks(process), []
    process.fanout.listen(
        "own", lambda message: None, process.hub, missed=lambda: told.append(held_locks(process))
    )
    own_channels.logger.addHandler(locks)
    try:
        process.broker.lose("own")
    finally:
        own_channels.logger.removeHandler(locks)
    assert told == locks.held == [[False, False]]


def test_a_count_that_fails_is_logged_without_a_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    process = Process(far=True)
    locks, client = Locks(process), process.listener()

    def count(channel: str, subscribers: int) -> None:
        raise RuntimeError("cannot count")

    monkeypatch.setattr(process.broker, "count", count)
    open_channels.logger.addHandler(locks)
    try:
        process.unsubscribe(client)
    finally:
        open_channels.logger.removeHandler(locks)
    assert locks.held == [[False, False]]
