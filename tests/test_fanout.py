"""From a channel to its subscribers in this process: once, in order, in one write a turn."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from flask_sockets2.brokers.base import TEXT, Message, Position
from flask_sockets2.exceptions import BrokerError
from flask_sockets2.fanout.encoding import Frames
from flask_sockets2.fanout.fanout import ALL
from flask_sockets2.fanout.outbox import DROP_OLDEST, POLICIES, Observer
from tests.fanning import ENVELOPES, EPOCH, PLAIN, Client, FarBroker, Hub, Process, in_short
from tests.processes import wait_until
from tests.wire_client import TIMEOUT

PRESENCE = Frames.of(envelope=True, presence=True)


@pytest.fixture(params=[False, True], ids=["memory", "far"])
def process(request: pytest.FixtureRequest) -> Iterator[Process]:
    process = Process(far=request.param)
    yield process
    process.fanout.close()


@pytest.fixture
def far() -> Iterator[Process]:
    process = Process(far=True)
    yield process
    process.fanout.close()


def numbers(first: int, last: int) -> list[str]:
    return [str(number) for number in range(first, last + 1)]


def sized(size: int) -> str:
    return "x" * size


# -- writing -------------------------------------------------------------------------------


def test_a_client_gets_what_is_published_after_it_has_subscribed(process: Process) -> None:
    process.publish("before")
    client = process.listener()
    process.publish("one", "two")
    process.settle()
    assert client.seen == ["one", "two"]


def test_what_is_published_in_one_turn_is_one_write_for_each_client(process: Process) -> None:
    clients = [process.listener(encoding=encoding) for encoding in (PLAIN, PLAIN, ENVELOPES)]
    process.publish(*numbers(1, 10))
    process.settle()
    assert [len(client.writes) for client in clients] == [1, 1, 1]
    assert clients[0].payloads == [b"%d" % number for number in range(1, 11)]
    assert clients[2].seen == numbers(1, 10)


def test_several_channels_are_one_write_too(process: Process) -> None:
    client = process.listener("a")
    process.subscribe(client, "b")
    other = process.listener("b")
    process.publish("1", "2", channel="a")
    process.publish("3", channel="b")
    process.publish("4", channel="a")
    process.settle()
    assert len(client.writes) == len(other.writes) == 1
    assert sorted(client.seen) == ["1", "2", "3", "4"]
    assert [text for text in client.seen if text != "3"] == ["1", "2", "4"]
    assert other.seen == ["3"]


def test_a_frame_is_made_once_for_all_that_want_it_so(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Message] = []
    make = Frames._make
    monkeypatch.setattr(Frames, "_make", lambda self, m: made.append(m) or make(self, m))
    for encoding in (PLAIN, ENVELOPES, Frames.of(window_bits=12)):
        for _ in range(20):
            process.listener(encoding=encoding)
    process.publish("one")
    process.settle()
    assert len(made) == 3


def test_without_subscribers_nothing_is_scheduled(process: Process) -> None:
    process.publish("one")
    process.unsubscribe(process.listener())
    process.publish("two")
    process.settle()
    assert process.hub.idle


def test_a_publisher_that_never_yields_writes_itself(process: Process) -> None:
    client = process.listener(encoding=PLAIN)
    for _ in range(20):
        process.publish(sized(10_000))
        if isinstance(process.broker, FarBroker):
            process.broker.arrive()
        process.fanout.relieve()
    assert 2 <= len(client.writes) <= 4
    assert all(len(data) > 65536 for data in client.writes)
    process.settle()
    assert len(client.payloads) == 20


def test_even_empty_messages_are_written_at_last(process: Process) -> None:
    client = process.listener(encoding=PLAIN)
    for _ in range(5000):
        process.publish("")
        if isinstance(process.broker, FarBroker):
            process.broker.arrive()
        process.fanout.relieve()
    assert client.writes


def test_a_publisher_of_little_leaves_it_to_the_hub(process: Process) -> None:
    client = process.listener()
    process.publish("one")
    process.fanout.relieve()
    assert client.writes == []


def test_a_publisher_in_another_thread_waits_until_there_is_room() -> None:
    process = Process()
    client = process.listener(encoding=PLAIN)
    process.hub.here = False
    done = threading.Event()

    def flood() -> None:
        for _ in range(300):
            process.publish(sized(10_000))
            process.fanout.relieve()
        done.set()

    thread = threading.Thread(target=flood)
    thread.start()
    (writer,) = process.fanout._writers.values()
    most = 0
    while not done.wait(0.001):
        most = max(most, writer.pending)
        process.hub.settle()
    thread.join(TIMEOUT)
    process.hub.settle()
    assert most < 2**20 + 2 * 10_100
    assert len(client.payloads) == 300


def test_a_publisher_does_not_wait_for_ever_for_a_hub_that_is_stuck(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flask_sockets2.fanout.turn_writer._ROOM_TIMEOUT", 0.05)
    process = Process()
    process.listener()
    process.hub.here = False
    for _ in range(3):
        process.publish(sized(2**20))
        process.fanout.relieve()


def test_after_a_while_of_writing_the_hub_sees_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what was published between two slices is not forgotten."""
    monkeypatch.setattr("flask_sockets2.fanout.turn_writer._SLICE", -1.0)
    process = Process()
    clients = [process.listener() for _ in range(200)]
    process.publish("one")
    process.hub.turn()
    assert sum(bool(client.writes) for client in clients) == 64
    process.publish("two")
    process.hub.turn()
    process.hub.turn()
    assert sum(bool(client.writes) for client in clients) == 192
    process.publish("three")
    process.hub.settle()
    assert {tuple(client.seen) for client in clients} == {("one", "two", "three")}


def test_what_comes_during_the_last_slice_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flask_sockets2.fanout.turn_writer._SLICE", -1.0)
    process = Process()
    clients = [process.listener() for _ in range(100)]
    process.publish("one")
    process.hub.turn()
    process.publish("two")  # finds the next flush scheduled, which goes on with the first
    process.hub.settle()
    assert {tuple(client.seen) for client in clients} == {("one", "two")}


def test_who_leaves_between_two_slices_gets_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flask_sockets2.fanout.turn_writer._SLICE", -1.0)
    process = Process()
    clients = [process.listener() for _ in range(100)]
    process.publish("one")
    process.hub.turn()
    for client in clients:
        assert client.outlet is not None
        client.outlet.remove()
    process.hub.settle()
    assert sum(bool(client.writes) for client in clients) == 64


def test_a_client_whose_write_fails_costs_the_others_nothing(
    process: Process, caplog: pytest.LogCaptureFixture
) -> None:
    clients = [process.listener() for _ in range(3)]

    def broken(data: bytes) -> None:
        raise RuntimeError("told by the test")

    clients[1].write = broken  # type: ignore[method-assign]
    process.publish("one")
    process.settle()
    assert clients[0].seen == clients[2].seen == ["one"]
    assert [record.exc_info is not None for record in caplog.records] == [True]


def test_a_slow_client_holds_up_nobody(process: Process) -> None:
    slow = process.listener(room=0, limit=1000)
    quick = process.listener()
    for number in range(50):
        process.publish(f"{number:0100}")
        process.settle()
    assert len(quick.seen) == 50
    assert slow.ended == 1
    assert process.fanout.subscribers("news") == 1
    assert process.observer.noted == [("too slow", slow)]


class Publishing(Observer):
    """One that publishes whenever it is told something."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.depth = self.deepest = self.calls = 0

    def _publish(self, *what: Any) -> None:
        self.depth += 1
        self.calls += 1
        self.deepest = max(self.deepest, self.depth)
        if self.calls < 200:
            self.process.publish(sized(70_000), channel="log")
            self.process.fanout.relieve()
        self.depth -= 1

    too_slow = dropped = _publish


def test_a_receiver_that_publishes_does_not_recurse() -> None:
    process = Process()
    process.observer = process.fanout.observer = observer = Publishing(process)  # type: ignore[assignment]
    slow = [process.listener(room=0, limit=500, policy="drop_oldest") for _ in range(5)]
    for client in slow:
        process.subscribe(client, "log")
    listener = process.listener("log", encoding=PLAIN)
    for _ in range(30):
        process.publish(sized(300))
        process.hub.turn()
    process.hub.settle()
    assert observer.deepest == 1
    assert observer.calls >= 200
    assert len(listener.payloads) == 199


def test_what_is_published_while_another_writes_itself_is_not_forgotten() -> None:
    """A publisher that writes itself is told of a slow client, and the hub turns meanwhile."""
    process = Process()
    listener = process.listener()

    class Turning(Observer):
        def too_slow(self, owner: Any) -> None:
            process.publish("late")
            process.hub.turn()

    process.fanout.observer = Turning()
    process.listener(room=0, limit=10)
    process.publish("early")
    process.hub.settle()
    process.publish(sized(70_000))
    process.fanout.relieve()
    process.hub.settle()
    assert [text[:5] for text in listener.seen] == ["early", "xxxxx", "late"]


def test_two_hubs_have_their_own_writes(process: Process) -> None:
    other = Hub()
    here, there = process.listener(), process.listener(hub=other)
    process.publish("one")
    process.settle()
    assert (here.seen, there.seen) == (["one"], [])
    other.settle()
    assert there.seen == ["one"]
    process.unsubscribe(there)
    process.publish("two")
    process.settle()
    assert other.idle, "a hub without subscribers is left alone"
    assert here.seen == ["one", "two"]


def test_relieving_writes_in_its_own_hub_only(process: Process) -> None:
    other = Hub()
    other.here = False
    here, there = process.listener(), process.listener(hub=other)
    process.publish(sized(70_000))
    if isinstance(process.broker, FarBroker):
        process.broker.arrive()
    process.fanout.relieve()
    assert (len(here.writes), len(there.writes)) == (1, 0)


@pytest.mark.slow
def test_a_hundred_thousand_channels_make_a_publish_no_slower() -> None:
    """Counted in calls, since time is no measure on a busy machine."""
    process = Process()
    process.listener("c0")
    few = calls_of(lambda: publish_one(process))
    other = process.client()
    for number in range(1, 100_000):
        process.subscribe(other, f"c{number}", PLAIN)
    many = calls_of(lambda: publish_one(process))
    assert many <= few + 2


def publish_one(process: Process) -> None:
    process.publish("one", channel="c0")
    process.fanout.relieve()
    process.hub.settle()


def calls_of(function: Callable[[], None]) -> int:
    """How many calls of Python's and C's a function makes."""
    import sys

    count = 0

    def profile(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    function()
    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


# -- how a subscription begins -------------------------------------------------------------


def test_who_was_away_gets_what_it_missed_first(process: Process) -> None:
    positions = process.publish(*numbers(1, 5))
    client = process.client()
    begun = process.subscribe(client, since=positions[1])
    process.publish("6")
    process.settle()
    assert begun == ("news", positions[4], False)
    assert client.seen == numbers(3, 6)
    counters = process.counters.channels["news"]
    assert (counters.replays, counters.replayed, counters.gaps) == (1, 3, 0)


def test_who_has_seen_everything_gets_nothing_twice(process: Process) -> None:
    (position,) = process.publish("1")
    client = process.client()
    assert process.subscribe(client, since=position) == ("news", position, False)
    process.publish("2")
    process.settle()
    assert client.seen == ["2"]
    assert process.counters.channels["news"].replays == 0


def test_all_that_the_history_holds(process: Process) -> None:
    process.publish(*numbers(1, 150))
    client = process.listener(since=ALL)
    process.settle()
    assert client.seen == numbers(51, 150)


def test_all_of_an_empty_history_is_nothing(process: Process) -> None:
    client = process.client()
    assert process.subscribe(client, since=ALL).gap is False
    process.settle()
    assert client.seen == []


@pytest.mark.parametrize(
    "since",
    [Position("f" * 16, 3), Position("", 0), Position(EPOCH, 2**40), Position(EPOCH, -1)],
    ids=["foreign", "none", "future", "negative"],
)
@pytest.mark.parametrize("first", [True, False])
def test_a_position_that_cannot_be_resumed_at_is_a_gap_that_is_told_once(
    since: Position, first: bool, process: Process
) -> None:
    if not first:
        process.listener()
    process.publish(*numbers(1, 3))
    process.settle()
    client = process.client()
    begun = process.subscribe(client, since=since)
    assert (begun.gap, begun.position.offset) == (True, 3)
    process.publish("4")
    process.settle()
    assert client.seen == ["gap 3", "4"]
    assert process.observer.noted == [("gap", "news")]
    assert process.counters.channels["news"].gaps == 1


def test_a_history_that_does_not_reach_back_is_a_gap(process: Process) -> None:
    positions = process.publish(*numbers(1, 150))
    client = process.listener(since=positions[9])
    other = process.listener(since=positions[49])
    process.settle()
    assert client.seen == ["gap 150"]
    assert other.seen == numbers(51, 150)


def test_a_plain_client_is_told_of_a_gap_as_it_asked_for(process: Process) -> None:
    encoding = Frames.of(gap=(TEXT, b"reload"))
    client = process.listener(encoding=encoding, since=Position("f" * 16, 3))
    process.publish("1")
    process.settle()
    assert client.payloads == [b"reload", b"1"]


def test_what_is_at_hand_is_not_fetched(far: Process) -> None:
    far.listener()
    positions = far.publish(*numbers(1, 5))
    far.settle()
    assert far.listener(since=positions[1]) is not None
    assert "history" not in far.broker.calls
    far.listener(since=ALL)
    assert far.broker.calls.count("history") == 1


def test_what_is_at_hand_and_what_is_pending_come_once(far: Process) -> None:
    far.listener()
    positions = far.publish(*numbers(1, 5))
    far.broker.arrive()  # delivered, not written yet
    client = far.listener(since=positions[1])
    far.publish("6")
    far.settle()
    assert client.seen == numbers(3, 6)


def test_a_history_ahead_of_this_process_is_not_sent_twice(far: Process) -> None:
    far.listener()
    positions = far.publish(*numbers(1, 5))
    far.broker.arrive(2)
    client = far.listener(since=ALL)
    far.hub.settle()
    assert client.seen == numbers(1, 5)
    late = far.listener(since=positions[3])
    for _ in range(3):
        far.broker.arrive(1)
        far.hub.settle()
    far.publish("6")
    far.settle()
    assert client.seen == numbers(1, 6)
    assert late.seen == numbers(5, 6)


def test_what_is_at_hand_is_not_fetched_for_who_has_a_name_either(far: Process) -> None:
    far.listener()
    positions = far.publish(*numbers(1, 5))
    far.broker.arrive()
    ann = far.listener(encoding=PRESENCE, since=positions[1], identity="ann", presence=True)
    far.publish("6")
    far.settle()
    assert [text for text in ann.seen if isinstance(text, str)] == numbers(3, 6)
    assert "history" not in far.broker.calls


def is_at_hand(process: Process, position: Position) -> bool:
    """Whether a client is served without the broker, and rightly in any case."""
    asked = process.broker.calls.count("history")
    begun = process.subscribe(client := process.client(), since=position)
    process.settle()
    assert client.seen == numbers(position.offset + 1, begun.position.offset)
    process.unsubscribe(client)
    return bool(process.broker.calls.count("history") == asked)


def test_what_is_at_hand_is_forgotten_some_time_after_the_newest_message() -> None:
    """Though nothing else happens; positions stay valid."""
    far = Process(far=True, history_ttl=1.0)
    far.listener()
    (position, _) = far.publish("1", "2")
    far.settle()
    assert is_at_hand(far, position)
    recent = far.fanout._recent
    assert recent is not None
    wait_until(lambda: not recent._newest, "the end of the messages")
    assert not is_at_hand(far, position)
    assert is_at_hand(far, position), "what was fetched is at hand"
    wait_until(lambda: not recent._newest, "the end of what was fetched")
    assert not is_at_hand(far, position)


def test_each_channel_has_a_time_of_its_own() -> None:
    far = Process(far=True, history_ttl=1.0)
    listener = far.listener()
    far.subscribe(listener, "other")
    (position, _) = far.publish("1", "2")
    far.settle()
    recent = far.fanout._recent
    assert recent is not None

    def goes_on() -> bool:
        far.publish("more", channel="other")
        far.settle()
        return "news" not in recent._newest

    wait_until(goes_on, "the end of the channel that is silent")
    assert "other" in recent._newest
    assert not is_at_hand(far, position)


def test_a_channel_that_is_given_back_leaves_nothing_at_hand(hasty: Process) -> None:
    listener = hasty.listener()
    hasty.publish("1")
    hasty.settle()
    hasty.unsubscribe(listener)
    wait_until(lambda: hasty.fanout._channels.by_name == {}, "the end of the channel")
    recent = hasty.fanout._recent
    assert recent is not None
    assert (recent._channels, recent._newest) == ({}, {})


def test_after_a_restart_the_history_is_fetched_once(
    far: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Message] = []
    make = Frames._make
    monkeypatch.setattr(Frames, "_make", lambda self, m: made.append(m) or make(self, m))
    positions = far.publish(*numbers(1, 60))
    clients = [far.listener(since=positions[9]) for _ in range(50)]
    late = far.listener(since=positions[39])
    far.publish("61")
    far.settle()
    assert [client.seen for client in clients] == [numbers(11, 61)] * 50
    assert late.seen == numbers(41, 61)
    assert far.broker.calls.count("history") == 1
    assert len(made) == 51


def test_what_does_not_join_on_is_sent_and_not_kept(far: Process) -> None:
    """A broker whose history was trimmed in between; and one that forgets."""
    positions = far.publish(*numbers(1, 5))
    far.listener()
    history = far.broker.history
    far.broker.history = lambda *args: replace(
        history(*args), messages=[m for m in history(*args).messages if m.position.offset != 4]
    )
    far.listener(since=positions[0])
    far.broker.history = history
    far.publish("6")
    far.settle()
    client = far.listener(since=positions[0])
    far.settle()
    assert client.seen == numbers(2, 6)


@pytest.mark.parametrize("size", [0, 1, 3])
def test_no_more_is_kept_of_what_was_fetched_than_of_what_came(size: int) -> None:
    far = Process(far=True, history_size=size)
    positions = far.publish(*numbers(1, 5))
    client = far.listener(since=positions[4 - max(size, 1)])
    far.publish("6")
    far.settle()
    wanted = numbers(6 - size, 6) if size else ["gap 5", "6"]
    assert client.seen == wanted
    recent = far.fanout._recent
    assert recent is not None
    assert len(recent._channels["news"].log.since(None).messages) == size


def test_who_comes_while_the_same_is_fetched_waits_for_it(far: Process) -> None:
    positions = far.publish(*numbers(1, 5))
    far.broker.hook = gate = Gate("history found")
    clients = [far.client() for _ in range(6)]

    def come(client: Client, position: Position) -> Callable[[], Any]:
        return lambda: far.subscribe(client, since=position)

    in_threads(
        come(clients[0], positions[1]),
        *(second(gate, come(client, positions[1])) for client in clients[1:3]),
        *(second(gate, come(client, positions[3])) for client in clients[3:]),
    )
    assert far.broker.calls.count("history") == 1
    far.publish("6")
    far.settle()
    assert [client.seen for client in clients] == [numbers(3, 6)] * 3 + [numbers(5, 6)] * 3


def test_who_wants_more_than_is_fetched_does_not_wait(far: Process) -> None:
    positions = far.publish(*numbers(1, 5))
    far.broker.hook = gate = Gate("history")
    first, other = far.client(), far.client()

    def more() -> None:
        assert gate.there.wait(TIMEOUT)
        far.subscribe(other, since=positions[0])
        far.listener(since=positions[1])  # is at hand by now
        gate.open.set()

    in_threads(lambda: far.subscribe(first, since=positions[2]), more)
    far.settle()
    assert first.seen == numbers(4, 5)
    assert other.seen == numbers(2, 5)
    assert far.broker.calls.count("history") == 2


@pytest.mark.parametrize("end", [SystemExit, BrokerError])
def test_when_who_fetches_fails_those_who_wait_try_themselves(
    end: type[BaseException], far: Process
) -> None:
    positions = far.publish(*numbers(1, 5))
    gate = Gate("history")

    def hook(name: str) -> None:
        fails = name == "history" and not gate.there.is_set()
        gate(name)
        if fails:
            raise end("told by the test")

    far.broker.hook = hook
    first, *others = clients = [far.client() for _ in range(4)]
    results = in_threads(
        lambda: far.subscribe(first, since=positions[0]),
        *(
            second(gate, lambda c=c: far.subscribe(c, since=positions[0]))  # type: ignore[misc]
            for c in others
        ),
    )
    assert isinstance(results[0], end)
    far.publish("6")
    far.settle()
    assert [client.seen for client in clients] == [[], *[numbers(2, 6)] * 3]
    assert far.listener(since=positions[1]) is not None
    recent = far.fanout._recent
    assert recent is not None
    assert recent._channels["news"].fetch is None


def test_nobody_waits_for_another_without_a_deadline(
    far: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flask_sockets2.fanout.replay_cache._PATIENCE", 0.05)
    positions = far.publish(*numbers(1, 5))
    far.broker.hook = gate = Gate("history")
    first, other = far.client(), far.client()

    def late() -> None:
        assert gate.there.wait(TIMEOUT)
        far.subscribe(other, since=positions[2])
        gate.open.set()

    in_threads(lambda: far.subscribe(first, since=positions[2]), late)
    far.settle()
    assert first.seen == other.seen == numbers(4, 5)


@pytest.mark.parametrize("point", ["history", "history found"])
@pytest.mark.parametrize("arrived", [0, 1, 2])
def test_what_is_published_while_the_history_is_fetched_comes_once_and_in_order(
    point: str, arrived: int, far: Process
) -> None:
    far.listener()
    far.publish("1", "2")
    far.settle()

    def meanwhile(name: str) -> None:
        if name == point:
            far.publish("3", "4")
            far.broker.arrive(arrived)

    far.broker.hook = meanwhile
    client = far.listener(since=ALL)
    far.publish("5")
    far.settle()
    assert client.seen == numbers(1, 5)


@pytest.mark.parametrize("point", ["subscribe", "subscribed"])
def test_what_is_published_while_the_broker_subscribes_comes_once(point: str, far: Process) -> None:
    def meanwhile(name: str) -> None:
        if name == point:
            far.publish("1")
            far.broker.arrive()

    far.broker.hook = meanwhile
    client = far.client()
    begun = far.subscribe(client, since=Position(EPOCH, 0))
    far.publish("2")
    far.settle()
    assert client.seen == ["1", "2"]
    assert begun.position.offset == 1


def test_a_transient_message_keeps_its_place_in_the_history(far: Process) -> None:
    far.listener()
    far.publish("1")
    far.settle()

    def meanwhile(name: str) -> None:
        if name == "history":
            far.publish("typing", transient=True)
            far.publish("2")
            far.publish("typing again", transient=True)
            far.broker.arrive()

    far.broker.hook = meanwhile
    client = far.listener(since=ALL)
    far.settle()
    assert client.seen == ["1", "typing", "2", "typing again"]


def test_a_loss_is_told_to_all(process: Process) -> None:
    clients = [process.listener() for _ in range(3)]
    process.publish("1")
    process.settle()
    process.fanout.missed("news", Position(EPOCH, 7))
    process.fanout.missed("unknown", Position(EPOCH, 7))
    process.hub.settle()
    assert [client.seen for client in clients] == [["1", "gap 7"]] * 3
    assert process.observer.noted == [("gap", "news")]
    assert process.counters.channels["news"].gaps == 3


@pytest.mark.parametrize("first", ["publish", "subscribe"])
def test_after_a_loss_the_history_is_fetched_again(first: str, far: Process) -> None:
    far.listener()
    positions = far.publish(*numbers(1, 3))
    far.broker.arrive(2)
    far.broker.lose("news")
    if first == "publish":
        far.publish("4")
        far.settle()
    client = far.listener(since=positions[0])
    if first == "subscribe":
        far.publish("4")
    far.settle()
    assert client.seen == ["2", "3", "4"]
    assert far.broker.calls.count("history") == 1


@pytest.mark.parametrize("point", ["history", "history found"])
def test_a_loss_that_the_history_makes_good_is_not_told(point: str, far: Process) -> None:
    far.listener()

    def meanwhile(name: str) -> None:
        if name == "history":
            far.publish("1", "2")
        if name == point:
            far.broker.lose("news")

    far.broker.hook = meanwhile
    client = far.listener(since=ALL)
    far.publish("3")
    far.settle()
    assert client.seen == ["1", "2", "3"]


def test_that_the_broker_came_back_is_counted(process: Process) -> None:
    process.fanout.reconnected()
    assert process.counters.broker_reconnects == 1
    assert process.observer.noted == [("reconnected",)]


# -- who is there --------------------------------------------------------------------------


def test_who_comes_is_told_who_is_there_and_then_who_joins(process: Process) -> None:
    ann = process.listener(encoding=PRESENCE, identity="ann", presence=True)
    process.settle()
    bob = process.listener(encoding=PRESENCE, identity="bob", presence=True)
    process.settle()
    assert ann.seen == [("presence", ["ann"]), ("join", "ann"), ("join", "bob")]
    assert bob.seen == [("presence", ["ann", "bob"]), ("join", "bob")]


def test_after_the_history_comes_who_is_there(process: Process) -> None:
    process.publish("1")
    ann = process.listener(encoding=PRESENCE, identity="ann", presence=True, since=ALL)
    process.settle()
    assert ann.seen == ["1", ("presence", ["ann"]), ("join", "ann")]


def test_who_joins_after_the_list_was_made_comes_after_it(far: Process) -> None:
    far.publish("1")

    def meanwhile(name: str) -> None:
        if name == "history found":
            far.publish("2")
        if name == "present":
            far.publish("cy", event="join", transient=True)
            far.broker.arrive()

    far.broker.hook = meanwhile
    ann = far.listener(encoding=PRESENCE, presence=True, since=ALL)
    far.settle()
    assert ann.seen.index(("join", "cy")) > ann.seen.index(("presence", []))
    assert [text for text in ann.seen if isinstance(text, str)] == ["1", "2"]


@pytest.fixture
def rolling(monkeypatch: pytest.MonkeyPatch) -> Iterator[Process]:
    """A process that calls the roll soon, and once."""
    monkeypatch.setattr("flask_sockets2.fanout.fanout._ROLL_CALLS", (0.05,))
    monkeypatch.setattr("flask_sockets2.fanout.roll_call._RETRY", 0.01)
    process = Process(far=True)
    yield process
    process.fanout.close()


def watcher(process: Process) -> Client:
    return process.listener(encoding=PRESENCE, presence=True)


def told(process: Process, client: Client) -> Any:
    """What a client is told of who is there, without its first list."""

    def settled() -> list[Any]:
        process.hub.settle()
        return client.seen[1:]

    wait_until(settled, "presence")
    return settled()


def wait_for_roll_calls(process: Process) -> None:
    (roll_call,) = process.fanout._roll_calls
    wait_until(lambda: not roll_call._scheduled, "the end of all roll calls")


def test_after_an_interruption_those_who_watch_are_told_who_is_there(rolling: Process) -> None:
    client, plain = watcher(rolling), rolling.listener()
    rolling.broker.join("news", "bob")
    rolling.broker.join("news", "ann")
    here, asked = threading.get_ident(), set()
    rolling.broker.hook = lambda name: asked.add((name, threading.get_ident() == here))
    for _ in range(10):
        rolling.broker.interrupt("news")
    assert told(rolling, client) == [("presence", ["ann", "bob"])]
    assert asked == {("present", False), ("present found", False)}, (
        "the broker is not asked from inside of it"
    )
    wait_for_roll_calls(rolling)
    assert rolling.broker.calls.count("present") == 2, "ten interruptions are one"
    rolling.broker.leave("news", "bob")
    rolling.broker.interrupt("news")
    wait_until(lambda: told(rolling, client)[1:] == [("presence", ["ann"])], "the next")
    assert plain.seen == []


def test_after_a_loss_those_who_watch_are_told_who_is_there(rolling: Process) -> None:
    client = watcher(rolling)
    rolling.broker.join("news", "ann")
    rolling.broker.lose("news")
    wait_until(
        lambda: told(rolling, client) == ["gap 0", ("presence", ["ann"])],
        "presence behind the gap",
    )


def test_where_nobody_watches_the_broker_is_not_asked(rolling: Process) -> None:
    rolling.listener()
    rolling.unsubscribe(left := watcher(rolling))
    rolling.broker.calls.clear()
    rolling.broker.interrupt("news")
    rolling.fanout.resumed("unknown")
    watcher(rolling)
    rolling.broker.interrupt("news")
    assert rolling.unsubscribe(next(iter_watchers(rolling)))
    wait_for_roll_calls(rolling)
    assert rolling.broker.calls.count("present") == 1  # of who subscribed
    assert left.writes == []


def iter_watchers(process: Process) -> Any:
    for audience in process.fanout._channels.by_name["news"].audiences.values():
        for encoding, outlets in audience.groups.items():
            if encoding is PRESENCE:
                yield from (outlet.owner for outlet in outlets)


def test_many_channels_are_told_one_after_another(rolling: Process) -> None:
    client = rolling.client()
    for number in range(30):
        rolling.subscribe(client, f"c{number}", PRESENCE, presence=True)
    rolling.hub.settle()
    asking, most = [0], [0]

    def hook(name: str) -> None:
        asking[0] += 1
        most[0] = max(most[0], asking[0])
        time.sleep(0.001)
        asking[0] -= 1

    rolling.broker.hook = hook
    for number in range(30):
        rolling.broker.interrupt(f"c{number}")
    wait_for_roll_calls(rolling)
    rolling.hub.settle()
    assert len(client.seen) == 60
    assert most == [1]


def test_while_the_broker_fails_it_is_asked_again(rolling: Process) -> None:
    client = watcher(rolling)
    rolling.broker.calls.clear()
    rolling.broker.fails = {"present"}
    rolling.broker.interrupt("news")
    wait_until(lambda: rolling.broker.calls.count("present") > 1, "another attempt")
    rolling.broker.join("news", "ann")
    rolling.broker.arrive()
    rolling.broker.fails = set()
    wait_until(lambda: ("presence", ["ann"]) in told(rolling, client), "the list")


def test_a_broker_that_fails_for_long_is_left_alone_until_it_is_back(
    rolling: Process, caplog: pytest.LogCaptureFixture
) -> None:
    client = watcher(rolling)
    rolling.subscribe(client, "other", PRESENCE, presence=True)
    rolling.broker.calls.clear()
    rolling.broker.fails = {"present"}
    rolling.broker.interrupt("news")
    rolling.broker.interrupt("other")
    wait_until(lambda: caplog.records, "the end of all attempts")
    wait_for_roll_calls(rolling)
    assert [record.getMessage() for record in caplog.records] == [
        "could not tell 2 channels anew who is there: present cannot reach the broker"
    ]
    assert rolling.broker.calls.count("present") == 5
    rolling.broker.fails = set()
    rolling.broker.interrupt("news")
    wait_until(lambda: ("presence", []) in told(rolling, client), "the list")


def test_who_joins_and_leaves_while_the_list_is_asked_for_is_told_behind_it(far: Process) -> None:
    """Whether the list, which may be older or newer than what came, has it already or not."""
    client = watcher(far)
    far.broker.join("news", "ann")
    far.settle()

    def meanwhile(name: str) -> None:
        if name == "present found":
            far.broker.leave("news", "ann")
            far.broker.join("news", "bob")
            far.publish("not of presence", transient=True)
            far.broker.arrive()

    far.broker.hook = meanwhile
    far.fanout._call_roll("news")
    far.hub.settle()
    assert client.seen[1:] == [
        ("join", "ann"),
        ("leave", "ann"),
        ("join", "bob"),
        "not of presence",
        ("presence", ["ann"]),
        ("leave", "ann"),
        ("join", "bob"),
    ]


def interrupted(process: Process) -> Callable[[str], None]:
    """A hook by which the first list is older than an interruption that hides who joins."""

    def hook(name: str) -> None:
        if name == "present found":
            process.broker.hook = lambda name: None
            process.broker.join("news", "ann")
            process.broker.interrupt("news")
            process.fanout._call_roll("news")

    return hook


def test_an_older_list_does_not_come_behind_a_newer_one(far: Process) -> None:
    """There was another interruption while the first list was on its way."""
    client = watcher(far)
    far.broker.hook = interrupted(far)
    far.fanout._call_roll("news")
    far.hub.settle()
    assert client.seen[1:] == [("presence", ["ann"])]


def test_who_is_just_subscribing_is_told_too(far: Process) -> None:
    far.broker.hook = interrupted(far)
    client = watcher(far)
    far.settle()
    assert client.seen == [("presence", []), ("presence", ["ann"])]


@pytest.mark.parametrize("before", [True, False])
def test_after_the_end_nobody_is_told_who_is_there(before: bool, rolling: Process) -> None:
    watcher(rolling)
    if before:
        rolling.broker.interrupt("news")
    rolling.fanout.close()
    rolling.broker.interrupt("news")
    rolling.broker.calls.clear()
    time.sleep(0.1)
    assert rolling.broker.calls == []


@pytest.mark.parametrize("end", ["unsubscribe", "close"])
def test_who_leaves_leaves_the_list(end: str, far: Process) -> None:
    ann = far.listener(identity="ann")
    assert far.broker.joined == [("news", "ann")]
    leave(far, ann, end)
    assert far.broker.joined == []


def leave(process: Process, client: Client, how: str) -> None:
    if how == "unsubscribe":
        assert process.unsubscribe(client)
    else:
        assert client.outlet is not None
        client.outlet.remove()


# -- how it ends ---------------------------------------------------------------------------


def test_unsubscribing_ends_it_and_says_whether_there_was_one(process: Process) -> None:
    client = process.listener()
    assert process.unsubscribe(client)
    assert not process.unsubscribe(client)
    assert not process.unsubscribe(client, "other")
    process.publish("1")
    process.settle()
    assert client.seen == []
    assert process.fanout.subscribers("news") == 0
    assert process.fanout.channels() == {}


def test_one_can_subscribe_again_but_not_twice(process: Process) -> None:
    client = process.listener()
    with pytest.raises(ValueError, match="already subscribed to 'news'"):
        process.subscribe(client)
    assert process.fanout.subscribers("news") == 1
    process.unsubscribe(client)
    process.subscribe(client)
    process.publish("1")
    process.settle()
    assert client.seen == ["1"]


POINTS = ["subscribe", "subscribed", "history", "history found", "join", "joined", "present"]


def check_empty(process: Process) -> None:
    """Nothing of a client is left behind but a channel that is kept for a while."""
    assert process.fanout.channels() == {}
    assert process.broker.joined == []
    assert process.broker.counts.get("news", 0) == 0
    for channel in process.fanout._channels.by_name.values():
        assert channel.subscribers == 0
        assert channel.audiences == {}


@pytest.mark.parametrize("end", ["unsubscribe", "close"])
@pytest.mark.parametrize(
    ("first", "point"),
    [(True, point) for point in POINTS] + [(False, point) for point in POINTS[2:]],
)
def test_leaving_while_subscribing_leaves_nothing_behind(
    point: str, first: bool, end: str, far: Process
) -> None:
    other = None if first else far.listener()
    client = far.client()
    outlet = client.outlet
    assert outlet is not None

    def meanwhile(name: str) -> None:
        if name == point:
            far.publish("1")
            if end == "close":
                outlet.remove()
            else:
                far.unsubscribe(client)

    far.broker.hook = meanwhile
    far.subscribe(client, encoding=PRESENCE, since=ALL, identity="ann", presence=True)
    begins_later = end == "unsubscribe" and point.startswith("subscribe")
    far.settle()
    if not begins_later:  # then there was nothing to leave yet
        assert client.seen == []
        assert outlet.entries == {}
    far.unsubscribe(client)
    if other is not None:
        far.unsubscribe(other)
    check_empty(far)


@pytest.mark.parametrize("point", POINTS)
def test_an_error_of_the_broker_leaves_nothing_behind(point: str, far: Process) -> None:
    far.broker.fails = {point}
    client = far.client()
    with pytest.raises(BrokerError, match=f"{point} cannot reach"):
        far.subscribe(client, since=ALL, identity="ann", presence=True)
    far.broker.fails = set()
    if point == "joined":  # it is not known whether it did
        far.broker.joined.clear()
    check_empty(far)
    far.subscribe(client, since=ALL, identity="ann", presence=True)
    far.publish("1")
    far.settle()
    assert "1" in client.seen


@pytest.mark.parametrize("point", ["history", "join", "present"])
def test_a_handler_that_is_killed_in_the_middle_leaves_nothing_behind(
    point: str, far: Process
) -> None:
    def kill(name: str) -> None:
        if name == point:
            raise SystemExit

    far.broker.hook = kill
    client = far.client()
    with pytest.raises(SystemExit):
        far.subscribe(client, since=ALL, identity="ann", presence=True)
    check_empty(far)


def in_threads(*functions: Callable[[], Any]) -> list[Any]:
    """Run functions at the same time and return what they returned or raised."""
    results: list[Any] = [None] * len(functions)

    def run(number: int) -> None:
        try:
            results[number] = functions[number]()
        except BaseException as exc:
            results[number] = exc

    threads = [
        threading.Thread(target=run, args=(number,), daemon=True)
        for number in range(len(functions))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
        assert not thread.is_alive(), "it is stuck"
    return results


class Gate:
    """Holds up the first caller of a broker's method until the others are where they should be."""

    def __init__(self, point: str) -> None:
        self.point = point
        self.there = threading.Event()
        self.open = threading.Event()

    def __call__(self, name: str) -> None:
        if name == self.point and not self.there.is_set():
            self.there.set()
            assert self.open.wait(TIMEOUT)


def second(gate: Gate, function: Callable[[], Any]) -> Callable[[], Any]:
    """A function that runs once the first is at the gate, which opens a moment after it begins."""

    def run() -> Any:
        assert gate.there.wait(TIMEOUT)
        threading.Timer(0.05, gate.open.set).start()  # long enough to come to its wait
        return function()

    return run


def test_many_that_come_to_a_new_channel_at_once_ask_the_broker_once(far: Process) -> None:
    far.broker.hook = gate = Gate("subscribe")
    clients = [far.client() for _ in range(5)]
    in_threads(
        lambda: far.subscribe(clients[0]),
        *(second(gate, lambda c=c: far.subscribe(c)) for c in clients[1:]),  # type: ignore[misc]
    )
    assert far.broker.calls.count("subscribe") == 1
    assert far.fanout.subscribers("news") == 5
    far.publish("1")
    far.settle()
    assert [client.seen for client in clients] == [["1"]] * 5


def test_when_the_broker_cannot_subscribe_all_who_wait_are_told(far: Process) -> None:
    far.broker.hook = gate = Gate("subscribe")
    far.broker.fails = {"subscribe"}
    first, other = far.client(), far.client()
    results = in_threads(lambda: far.subscribe(first), second(gate, lambda: far.subscribe(other)))
    assert [type(result) for result in results] == [BrokerError, BrokerError]
    assert results[0] is not results[1], "each thread writes its traceback into its own"
    assert str(results[0]) == str(results[1])
    check_empty(far)


def test_when_the_first_is_killed_the_second_tries_itself(far: Process) -> None:
    gate = Gate("subscribe")

    def hook(name: str) -> None:
        killed = name == "subscribe" and not gate.there.is_set()
        gate(name)
        if killed:
            raise SystemExit

    far.broker.hook = hook
    first, other = far.client(), far.client()
    results = in_threads(lambda: far.subscribe(first), second(gate, lambda: far.subscribe(other)))
    assert isinstance(results[0], SystemExit)
    far.publish("1")
    far.settle()
    assert other.seen == ["1"]
    assert far.fanout.subscribers("news") == 1


@pytest.mark.parametrize("point", ["subscribe", "history"])
def test_one_client_that_subscribes_twice_at_once_does_so_once(point: str, far: Process) -> None:
    far.broker.hook = gate = Gate(point)
    client = far.client()
    results = in_threads(
        lambda: far.subscribe(client, since=ALL),
        second(gate, lambda: far.subscribe(client, since=ALL)),
    )
    assert sorted(type(result).__name__ for result in results) == ["Subscription", "ValueError"]
    assert far.fanout.subscribers("news") == 1
    far.publish("1")
    far.settle()
    assert client.seen == ["1"]
    far.unsubscribe(client)
    check_empty(far)


def test_a_broker_that_never_answers_is_an_error(
    far: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flask_sockets2.fanout.open_channels._OPEN_TIMEOUT", 0.05)
    gate = Gate("subscribe")
    far.broker.hook = gate
    first, other = far.client(), far.client()

    def late() -> Any:
        assert gate.there.wait(TIMEOUT)
        try:
            return far.subscribe(other)
        finally:
            gate.open.set()

    results = in_threads(lambda: far.subscribe(first), late)
    assert isinstance(results[1], BrokerError)
    assert far.fanout.subscribers("news") == 1


def test_waiting_for_a_network_where_that_would_stop_the_hub_is_refused(far: Process) -> None:
    far.hub.blocks = True  # type: ignore[misc]
    with pytest.raises(BrokerError, match=r"monkey\.patch_all\(\)"):
        far.listener()
    assert far.broker.calls == []


def test_the_channel_of_a_far_broker_is_kept_a_while_for_who_comes_back(
    far: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = far.listener()
    (position,) = far.publish("1")
    far.settle()
    far.unsubscribe(client)
    far.publish("2")
    far.settle()
    far.subscribe(client, since=position)
    far.settle()
    assert client.seen == ["1", "2"]
    assert far.broker.calls == ["subscribe", "subscribed"]


@pytest.fixture
def hasty(far: Process) -> Process:
    """A process that keeps no channel without subscribers."""
    far.fanout._channels._lingering._delay = 0.0
    return far


def test_a_channel_without_subscribers_is_given_back_at_last(hasty: Process) -> None:
    hasty.unsubscribe(hasty.listener())
    wait_until(lambda: hasty.fanout._channels.by_name == {}, "the end of the channel")
    assert hasty.broker.subscribed == set()


def test_who_comes_while_a_channel_is_given_back_gets_everything(hasty: Process) -> None:
    unsubscribe = hasty.broker.unsubscribe
    there, go_on = threading.Event(), threading.Event()

    def slowly(channel: str) -> None:
        there.set()
        assert go_on.wait(TIMEOUT)
        unsubscribe(channel)

    hasty.broker.unsubscribe = slowly
    client = hasty.listener()
    hasty.unsubscribe(client)
    assert there.wait(TIMEOUT)
    threading.Timer(0.05, go_on.set).start()
    hasty.subscribe(client)
    hasty.publish("1")
    hasty.settle()
    assert client.seen == ["1"]
    assert hasty.broker.subscribed == {"news"}


def test_the_channel_of_the_process_itself_is_given_back_at_once() -> None:
    process = Process()
    process.unsubscribe(process.listener())
    assert process.fanout._channels.by_name == {}


def test_after_the_end_of_all_nothing_is_left() -> None:
    process = Process()
    clients = [process.listener(f"c{number % 7}", since=ALL) for number in range(50)]
    for client in clients:
        process.subscribe(client, "more", PLAIN)
        assert client.outlet is not None
        client.outlet.remove()
    assert process.fanout._channels.by_name == {}
    assert process.broker._counts == {}


@pytest.mark.parametrize("method", ["leave", "count", "unsubscribe"])
def test_an_error_of_the_broker_keeps_nobody_from_leaving(
    method: str, hasty: Process, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: object) -> None:
        raise OSError("a broker that waits in a hub")

    client = hasty.listener(identity="ann")
    monkeypatch.setattr(hasty.broker, method, fail)
    assert client.outlet is not None
    client.outlet.remove()
    assert hasty.fanout.subscribers("news") == 0
    wait_until(lambda: not hasty.fanout._channels.by_name, "the channel to be given back")
    assert "a broker that waits in a hub" in caplog.text


def test_closing_lets_go_of_the_broker(far: Process) -> None:
    far.fanout.close()
    assert far.broker.calls == ["close"]


# -- any interleaving ----------------------------------------------------------------------


class Story:
    """What happens in a process by chance, and what each client may see of it then."""

    CHANNELS = ("a", "b")

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.process = Process(far=self.random.random() < 0.8, history_size=8)
        self.began: dict[tuple[Client, str], int] = {}
        self.watching: set[tuple[Client, str]] = set()
        self.clients: list[Client] = []
        self.published = dict.fromkeys(self.CHANNELS, 0)
        self.depth = 0
        self.opening: set[str] = set()
        self.rolls: dict[str, None] = {}
        self.process.fanout._roll_calls = [self]  # type: ignore[list-item]
        if self.far:
            self.process.broker.hook = self.meanwhile

    @property
    def far(self) -> bool:
        return isinstance(self.process.broker, FarBroker)

    def run(self) -> None:
        for _ in range(60):
            self.something()
        if self.far:
            self.process.broker.hook = lambda name: None
        self.process.settle()
        while self.rolls:
            self.call_roll()
        self.process.settle()
        for client in self.clients:
            client.drain()
        self.process.settle()
        for client in self.clients:
            assert client.outlet is not None
            self.check(client, ended=client.outlet.closed)
        self.clients = [each for each in self.clients if each.outlet and not each.outlet.closed]
        if self.far:
            self.check_presence()
        self.process.fanout.close()

    def ask(self, channel: str) -> None:
        """The roll is to be called."""
        self.rolls[channel] = None

    def close(self) -> None:
        """Nobody calls by itself."""

    def call_roll(self) -> None:
        if self.rolls:
            channel = self.random.choice(list(self.rolls))
            del self.rolls[channel]
            try:
                self.process.fanout._call_roll(channel)
            except BrokerError:
                self.ask(channel)

    def meanwhile(self, name: str) -> None:
        if name in ("history", "present") and self.random.random() < 0.03:
            raise BrokerError("told by the test")
        if self.depth < 3:
            self.depth += 1
            for _ in range(self.random.randrange(4)):
                self.something()
            self.depth -= 1

    def something(self) -> None:
        actions: list[Callable[[], Any]] = [self.publish, self.publish, self.process.hub.turn]
        actions += [self.subscribe, self.turn_or_relieve, self.take]
        if self.far:
            actions += [self.arrive, self.arrive, self.lose, self.interrupt]
            actions += [self.call_roll, self.call_roll, self.expire]
        if self.random.random() < 0.2:
            actions.append(self.end_one)
        self.random.choice(actions)()

    def publish(self) -> None:
        channel = self.random.choice(self.CHANNELS)
        if self.random.random() < 0.2:
            self.process.publish(f"{self.published[channel]}t", channel=channel, transient=True)
            return
        self.published[channel] += 1
        self.process.publish(str(self.published[channel]), channel=channel)

    def arrive(self) -> None:
        self.process.broker.arrive(self.random.randrange(1, 4))

    def lose(self) -> None:
        if self.random.random() < 0.2:
            self.process.broker.lose(self.random.choice(self.CHANNELS))

    def interrupt(self) -> None:
        if self.random.random() < 0.3:
            self.process.broker.interrupt(self.random.choice(self.CHANNELS))

    def expire(self) -> None:
        """What is at hand is forgotten."""
        recent = self.process.fanout._recent
        assert recent is not None
        if self.random.random() < 0.3:
            options, recent._options = recent._options, replace(recent._options, history_ttl=-1.0)
            recent._sweep()
            recent._options = options

    def turn_or_relieve(self) -> None:
        self.random.choice([self.process.hub.turn, self.process.fanout.relieve])()

    def take(self) -> None:
        if self.clients:
            self.random.choice(self.clients).drain(self.random.randrange(500))

    def end_one(self) -> None:
        if self.clients:
            client = self.clients.pop(self.random.randrange(len(self.clients)))
            assert client.outlet is not None
            client.outlet.remove()
            self.check(client, ended=True)

    def subscribe(self) -> None:
        if len(self.clients) < 8 and self.random.random() < 0.5:
            room = self.random.choice([None, None, 0])
            limit = self.random.choice([2**20, 2**20, 800, 3000])
            policy = self.random.choice(POLICIES)
            self.clients.append(self.process.client(room=room, limit=limit, policy=policy))
        if not self.clients:
            return
        client, channel = self.random.choice(self.clients), self.random.choice(self.CHANNELS)
        assert client.outlet is not None
        if client.outlet.closed or channel in client.outlet.entries or channel in self.opening:
            return  # who opens it is further up in this very thread: it cannot be waited for
        newest = self.published[channel]
        log = self.process.broker.position(channel)
        since: Any = self.random.choice(
            [None, ALL, Position(log.epoch, self.random.randrange(newest + 1)), Position("", 3)]
        )
        if not self.process.fanout.subscribers(channel):
            self.opening.add(channel)
        how: dict[str, Any] = {}
        # Under drop_oldest who joined and left may be dropped, and a gap told in its place.
        if self.far and client.outlet.policy != DROP_OLDEST and self.random.random() < 0.5:
            how = {"encoding": PRESENCE, "presence": True}
            how["identity"] = self.random.choice([None, "ann", "bob", "cy"])
        try:
            begun = self.process.subscribe(client, channel, since=since, **how)
        except (ValueError, BrokerError):
            return  # it was subscribed within, while the broker was asked; or the broker failed
        finally:
            self.opening.discard(channel)
        if since is None or begun.gap:
            start = begun.position.offset
        elif since is ALL:
            start = max(0, begun.position.offset - self.process.options.history_size)
        else:
            start = since.offset
        self.began[client, channel] = start
        if how:
            self.watching.add((client, channel))

    def check_presence(self) -> None:
        """Those who watch know who is there, and nobody is there who has left."""
        broker = self.process.broker
        entries = [client.outlet.entries.items() for client in self.clients if client.outlet]
        named = [(name, entry.identity) for each in entries for name, entry in each]
        assert sorted(broker.joined) == sorted(each for each in named if each[1] is not None)
        for client, channel in self.watching:
            if client in self.clients:
                known: set[str] = set()
                for envelope in client.envelopes:
                    event = envelope.get("event")
                    if envelope["channel"] != channel:
                        continue
                    if event == "presence":
                        known = set(envelope["identities"])
                    elif event == "join":
                        known.add(envelope["identity"])
                    elif event == "leave":
                        known.discard(envelope["identity"])
                assert sorted(known) == broker.present(channel)

    def check(self, client: Client, ended: bool = False) -> None:
        for (who, channel), start in self.began.items():
            if who is not client:
                continue
            last, transient = start, []
            for envelope in client.envelopes:
                if envelope["channel"] != channel:
                    continue
                text = in_short(envelope)
                if isinstance(text, tuple):
                    continue  # of presence
                if text.endswith("t"):
                    transient.append(int(text[:-1]))
                    assert last >= transient[-1], f"{text} overtook what came before it"
                elif text.startswith("gap"):
                    assert int(text.removeprefix("gap ")) >= last
                    last = int(text.removeprefix("gap "))
                else:
                    assert int(text) == last + 1, f"{text} came after {last}"
                    last = int(text)
            assert transient == sorted(transient)
            assert ended or last == self.published[channel]


@pytest.mark.parametrize("seed", range(400))
def test_under_any_interleaving_all_is_seen_once_and_in_order(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Who fetches may be further up in this very thread: it cannot be waited for.
    monkeypatch.setattr("flask_sockets2.fanout.replay_cache._PATIENCE", 0.0)
    Story(seed).run()
