"""What only the broker of one process does; the rest is in ``test_contract.py``."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from flask_sockets2.brokers import memory
from flask_sockets2.brokers.base import BINARY, TEXT, Draft, History
from flask_sockets2.brokers.memory import MemoryBroker
from tests.processes import wait_until

from .conftest import Recorder

MakeMemory = Callable[..., MemoryBroker]


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(memory, "monotonic", clock)
    return clock


@pytest.fixture
def sweeping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have brokers look for what is over again and again."""
    monkeypatch.setattr(memory, "_SWEEP", 0.01)


def publish(broker: MemoryBroker, channel: str, data: bytes = b"x") -> str:
    return broker.publish([Draft(channel, TEXT, data)])[0].epoch


def channels(broker: MemoryBroker) -> int:
    return len(broker._channels)


def test_it_reaches_no_other_process_and_never_waits(make_memory: MakeMemory) -> None:
    broker = make_memory()
    assert not broker.shared
    assert not broker.waits


def test_a_message_is_delivered_before_publish_returns(
    make_memory: MakeMemory, recorder: Recorder
) -> None:
    broker = make_memory(recorder)
    broker.subscribe("news")
    publish(broker, "news", b"1")
    assert recorder.data == [b"1"]


def test_the_history_is_bounded_by_its_bytes(make_memory: MakeMemory) -> None:
    broker = make_memory(history_bytes=100)
    for _ in range(10):
        broker.publish([Draft("news", BINARY, bytes(30))])
    offsets = [each.position.offset for each in broker.history("news", None).messages]
    assert offsets == [8, 9, 10]


def test_two_brokers_share_nothing(make_memory: MakeMemory, recorder: Recorder) -> None:
    one, two = make_memory(recorder), make_memory()
    one.subscribe("news")
    assert publish(one, "news", b"1") != publish(two, "news", b"2")
    assert recorder.data == [b"1"]


def test_a_position_outlives_the_messages(make_memory: MakeMemory, clock: Clock) -> None:
    """Who has seen all there was is not told of a gap after a quiet hour."""
    broker = make_memory(history_ttl=10.0)
    first, newest = broker.publish([Draft("news", TEXT, b"1"), Draft("news", TEXT, b"2")])
    clock.now += 10.0
    assert len(broker.history("news", None).messages) == 2
    clock.now += 3600.0
    assert broker.history("news", newest) == History((), newest)
    assert not broker.history("news", first).complete


def test_a_channel_that_nobody_used_for_a_day_begins_another_epoch(
    make_memory: MakeMemory, clock: Clock
) -> None:
    broker = make_memory(history_ttl=10.0)
    epoch = publish(broker, "news")
    clock.now += 86_400 + 11.0
    position = broker.position("news")
    assert position.epoch != epoch
    assert position.offset == 0


def test_a_channel_that_is_subscribed_to_keeps_its_epoch(
    make_memory: MakeMemory, clock: Clock, recorder: Recorder, sweeping: None
) -> None:
    broker = make_memory(recorder, history_ttl=10.0)
    epoch = broker.subscribe("news").epoch
    silent = broker.subscribe("silent")
    publish(broker, "news")
    broker.position("other")
    clock.now += 90_000.0
    wait_until(lambda: channels(broker) == 2, "a look for what is over")
    assert broker.position("news") == (epoch, 1)
    assert broker.position("silent") == silent
    assert list(broker.history("news", None).messages) == []
    broker.publish([Draft("news", TEXT, b"2")])
    assert recorder.data == [b"x", b"2"]


@pytest.mark.parametrize(("later", "most"), [(86_411.0, 10_000), (11.0, 500)])
def test_channels_that_nobody_uses_are_forgotten(
    later: float,
    most: int,
    make_memory: MakeMemory,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    sweeping: None,
) -> None:
    """After a day; where there are very many, with their messages."""
    monkeypatch.setattr(memory, "_MOST_KEPT", most)
    broker = make_memory(history_ttl=10.0)
    for i in range(1000):
        publish(broker, f"old {i}")
    clock.now += later
    wait_until(lambda: channels(broker) <= most, "old channels to be forgotten")
    epoch = publish(broker, "new")
    assert broker.position("new") == (epoch, 1)


@pytest.mark.parametrize("use", ["position", "history", "subscribe", "transient"])
def test_names_that_nobody_publishes_to_are_gone_after_a_minute(
    use: str, make_memory: MakeMemory, clock: Clock, sweeping: None
) -> None:
    broker = make_memory(Recorder())
    for i in range(2500):
        name = f"made up {i}"
        if use == "position":
            broker.position(name)
        elif use == "history":
            broker.history(name, None)
        elif use == "subscribe":
            broker.subscribe(name)
            broker.unsubscribe(name)
        else:
            broker.publish([Draft(name, TEXT, b"x", transient=True)])
    clock.now += 59.0
    kept = broker.position("made up 0")
    clock.now += 2.0
    wait_until(lambda: channels(broker) == 1, "all others to be forgotten")
    assert broker.position("made up 0") == kept


@pytest.mark.parametrize("use", ["position", "subscribe"])
def test_of_very_many_names_that_nobody_publishes_to_the_oldest_are_gone_at_once(
    use: str, make_memory: MakeMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever makes them up is faster than a minute; what is used stays."""
    monkeypatch.setattr(memory, "_MOST_SILENT", 100)
    broker = make_memory(Recorder())
    listened, old = broker.subscribe("listened"), broker.position("old")
    published = publish(broker, "published")
    for name in ("listened", "published"):
        broker.position(name)  # it is used again, and is silent no more
    for i in range(1000):
        fresh = broker.position("fresh")
        if use == "position":
            broker.position(f"made up {i}")
        else:
            broker.subscribe(f"made up {i}")
            broker.unsubscribe(f"made up {i}")
        assert channels(broker) <= 100 + 2
        assert broker.position("fresh") == fresh
    assert broker.position("listened") == listened
    assert broker.position("published") == (published, 1)
    assert broker.position("old") != old


def test_a_silent_channel_is_kept_as_long_again_as_it_was_listened_to(
    make_memory: MakeMemory, clock: Clock
) -> None:
    """Its pages were away for a while and missed nothing."""
    broker = make_memory(Recorder())
    since = broker.subscribe("news")
    clock.now += 1000.0
    broker.unsubscribe("news")
    clock.now += 1050.0
    assert broker.subscribe("news") == since
    broker.unsubscribe("news")
    clock.now += 61.0
    assert broker.subscribe("news") != since


def test_channels_that_are_used_are_not_forgotten(
    make_memory: MakeMemory, clock: Clock, sweeping: None
) -> None:
    broker = make_memory(history_ttl=10.0)
    epoch = publish(broker, "used")
    for i in range(20):
        publish(broker, f"old {i}")
        clock.now += 40_000.0
        assert publish(broker, "used") == epoch
    wait_until(lambda: channels(broker) < 10, "old channels to be forgotten")


def test_a_broker_without_channels_has_nothing_to_look_for(
    make_memory: MakeMemory, clock: Clock, sweeping: None
) -> None:
    """The thread that looks for what is over ends with the last channel, and begins again."""
    broker = make_memory()
    for _ in range(2):
        broker.position("news")
        wait_until(lambda: broker._sweeping._running, "it to begin")
        clock.now += 61.0
        wait_until(lambda: not broker._sweeping._running, "it to end")
        assert channels(broker) == 0


def test_presence_leaves_nothing_behind(make_memory: MakeMemory, recorder: Recorder) -> None:
    broker = make_memory(recorder, presence_grace=0.0)
    broker.subscribe("room")
    broker.join("room", "ann")
    broker.leave("room", "ann")
    recorder.wait(lambda: len(recorder.calls) == 2, "ann to leave")
    assert broker._present == {}
    broker.count("room", 2)
    broker.count("room", 0)
    assert broker._counts == {}
