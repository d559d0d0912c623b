"""What a subscription begins with, in pieces: as its client takes them, and shared with others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from flask_sockets2.brokers.base import History, Message, Position
from flask_sockets2.fanout.encoding import Frames
from flask_sockets2.fanout.fanout import ALL
from flask_sockets2.fanout.held import OVERHEAD
from flask_sockets2.fanout.outbox import POLICIES
from tests.fanning import Client, FarBroker, Process

EARLIER = "e" * 16
LIMIT = 20_000
SIZE = 1000
ONE = 1200  # bytes of a message of that size in an envelope, at most
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


def fill(process: Process, first: int, last: int, channel: str = "news") -> list[Position]:
    """Publish messages of ``SIZE`` bytes that begin with their numbers."""
    texts = [f"{number} ".ljust(SIZE, "x") for number in range(first, last + 1)]
    return process.publish(*texts, channel=channel)


def held_for(client: Client) -> int:
    """Bytes that the process holds for one client, those that it shares with others counted."""
    outlet = client.outlet
    assert outlet is not None
    size = outlet._size + client.buffered
    for entry in outlet.entries.values():
        for audience in entry.channel.audiences.values():
            held = audience.held.get(outlet)
            if held is not None:
                size += sum(len(m.data) + OVERHEAD for m in (*held.messages, *held.aside))
    return size


def numbers(client: Client, channel: str = "news") -> list[Any]:
    """What it has seen of a channel: numbers of messages, and events."""
    found: list[Any] = []
    for envelope in client.envelopes:
        if envelope["channel"] == channel:
            event = envelope.get("event")
            found.append(event or int(envelope["data"].split()[0]))
    return found


def read(process: Process, client: Client, step: int = 3000) -> None:
    """Take all there is, so many bytes at a time, and see that little is held meanwhile."""
    while True:
        before = len(client.data)
        client.drain(step)
        process.settle()
        assert held_for(client) <= LIMIT + ONE
        if len(client.data) == before:
            return


# -- pieces --------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_a_long_history_goes_out_as_its_client_takes_it(process: Process, policy: str) -> None:
    fill(process, 1, 100)
    client = process.listener(since=ALL, room=0, limit=LIMIT, policy=policy)
    process.settle()
    assert 0 < held_for(client) <= LIMIT + ONE
    read(process, client)
    assert numbers(client) == list(range(1, 101))
    assert client.outlet is not None
    assert client.outlet.replays is None
    fill(process, 101, 103)
    process.settle()
    read(process, client)
    assert numbers(client)[100:] == [101, 102, 103]
    counters = process.counters.channels["news"]
    assert (counters.replays, counters.replayed, counters.gaps) == (1, 100, 0)
    assert counters.delivered == 103
    assert client.ended == 0


def test_a_client_that_takes_everything_is_level_after_some_turns(process: Process) -> None:
    fill(process, 1, 100)
    client = process.listener(since=ALL, limit=LIMIT)
    process.settle()
    assert numbers(client) == list(range(1, 101))
    assert max(map(len, client.writes)) <= LIMIT // 2 + ONE


@pytest.mark.parametrize("room", [0, 5000])
def test_many_channels_count_together(process: Process, room: int) -> None:
    names = [f"c{number}" for number in range(50)]
    for name in names:
        fill(process, 1, 20, name)
    client = process.client(room=room, limit=LIMIT)
    for name in names:
        process.subscribe(client, name, since=ALL)
        assert held_for(client) <= LIMIT + ONE
    process.settle()
    assert held_for(client) <= LIMIT + ONE
    read(process, client)
    for name in names:
        assert numbers(client, name) == list(range(1, 21))


def test_many_short_histories_are_a_long_one(process: Process) -> None:
    names = [f"c{number}" for number in range(200)]
    for name in names:
        fill(process, 1, 1, name)
    client = process.client(room=0, limit=LIMIT)
    for name in names:
        process.subscribe(client, name, since=ALL)
    process.settle()
    assert held_for(client) <= LIMIT + ONE
    read(process, client)
    assert all(numbers(client, name) == [1] for name in names)


@pytest.mark.parametrize("size", [LIMIT // 2, LIMIT, 3 * LIMIT])
def test_a_message_longer_than_the_room_goes_out_alone(process: Process, size: int) -> None:
    process.publish(*(f"{number} ".ljust(size, "x") for number in range(1, 6)))
    client = process.listener(since=ALL, room=0, limit=LIMIT)
    process.settle()
    for number in range(1, 6):
        assert held_for(client) <= LIMIT + 2 * size
        assert numbers(client) == list(range(1, number))
        client.drain(len(client.writes[0]))
        process.settle()
    assert numbers(client) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("far", [False, True])
def test_what_many_clients_wait_for_is_there_once(far: bool) -> None:
    process = Process(far=far, history_size=500)
    fill(process, 1, 500)
    clients = [process.listener(since=ALL, room=0, limit=20 * LIMIT) for _ in range(30)]
    process.settle()
    messages: dict[Position, set[int]] = {}
    frames: dict[Position, set[int]] = {}
    for client in clients:
        outlet = client.outlet
        assert outlet is not None
        for kept in (outlet._backlog or {}).values():
            messages.setdefault(kept.message.position, set()).add(id(kept.message))
            frames.setdefault(kept.message.position, set()).add(id(kept.data))
        held = outlet.entries["news"].channel.audiences[process.hub].held[outlet]
        for message in held.messages:
            messages.setdefault(message.position, set()).add(id(message))
    assert messages
    assert {len(ids) for ids in (*messages.values(), *frames.values())} == {1}
    if far:
        assert process.broker.calls.count("history") == 1
    process.fanout.close()


# -- what is published meanwhile -----------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_what_is_published_meanwhile_comes_behind_the_history(
    process: Process, policy: str
) -> None:
    fill(process, 1, 90)
    client = process.listener(since=ALL, room=0, limit=LIMIT, policy=policy)
    for first in range(91, 141, 10):
        process.settle()
        client.drain(20_000)
        fill(process, first, first + 9)
    process.settle()
    read(process, client)
    assert numbers(client) == list(range(1, 141))
    assert client.ended == 0


@pytest.mark.parametrize("policy", POLICIES)
def test_a_client_that_reads_nothing_is_no_burden_however_much_is_published(
    process: Process, policy: str
) -> None:
    fill(process, 1, 100)
    client = process.listener(since=ALL, room=0, limit=LIMIT, policy=policy)
    for first in range(101, 1101, 50):
        fill(process, first, first + 49)
        process.settle()
        assert held_for(client) <= LIMIT + ONE
    assert client.ended == 0, "it is as slow as its network; SOCKETS_SEND_TIMEOUT ends it"
    read(process, client)
    seen = numbers(client)
    (gap,) = [place for place, each in enumerate(seen) if each == "gap"]
    assert seen[:gap] == list(range(1, gap + 1))
    assert seen[gap + 1 :] == []  # what is newer than the gap comes from now on
    assert client.envelopes[-1]["position"].endswith("-1100")
    fill(process, 1101, 1103)
    process.settle()
    read(process, client)
    assert numbers(client)[gap + 1 :] == [1101, 1102, 1103]
    assert process.counters.channels["news"].gaps == 1
    assert process.observer.noted == [("gap", "news")]


def test_each_channel_falls_behind_by_itself(process: Process) -> None:
    fill(process, 1, 100, "busy")
    fill(process, 1, 100, "calm")
    client = process.client(room=0, limit=LIMIT)
    for name in ("busy", "calm"):
        process.subscribe(client, name, since=ALL)
    process.settle()
    fill(process, 101, 300, "busy")
    process.settle()
    read(process, client)
    assert numbers(client, "busy").count("gap") == 1
    assert numbers(client, "calm") == list(range(1, 101))


def test_a_client_whose_channel_is_never_quiet_is_level_at_last(process: Process) -> None:
    fill(process, 1, 100)
    client = process.listener(since=ALL, limit=LIMIT)
    newest = 100
    for _ in range(60):
        newest += 1
        fill(process, newest, newest)
        if isinstance(process.broker, FarBroker):
            process.broker.arrive()
        process.hub.turn()
    assert client.outlet is not None
    assert client.outlet.replays is None
    process.settle()
    assert numbers(client) == list(range(1, newest + 1))


def test_a_short_history_is_enough_for_who_reads(process: Process) -> None:
    """What comes while a client waits is noted for it, as far as there is room."""
    process = Process(far=isinstance(process.broker, FarBroker), history_size=2)
    process.publish("1 ".ljust(9000, "x"), "2 ".ljust(100, "x"))
    client = process.listener(since=ALL, limit=LIMIT)
    fill(process, 3, 6)
    process.settle()
    assert numbers(client) == [1, 2, 3, 4, 5, 6]
    process.fanout.close()


# -- transient messages, and who is there --------------------------------------------------


def test_a_transient_message_keeps_its_place_in_a_long_history(process: Process) -> None:
    fill(process, 1, 40)
    client = process.listener(since=ALL, room=0, limit=LIMIT)
    process.settle()
    process.publish("1000 transient", transient=True)
    fill(process, 41, 42)
    process.publish("1001 transient", transient=True)
    process.settle()
    read(process, client)
    assert numbers(client) == [*range(1, 41), 1000, 41, 42, 1001]


def test_who_is_there_comes_behind_a_long_history(far: Process) -> None:
    fill(far, 1, 40)
    client = far.client(room=0, limit=LIMIT)
    far.subscribe(client, encoding=PRESENCE, since=ALL, identity="ann", presence=True)
    far.settle()
    far.listener(identity="bob")
    fill(far, 41, 42)
    far.settle()
    read(far, client)
    seen = numbers(client)
    assert [each for each in seen if isinstance(each, int)] == list(range(1, 43))
    events = [each for each in seen if not isinstance(each, int)]
    assert events[0] == "presence"
    assert events[-1] == "join"
    assert client.seen[-1] == ("join", "bob")


@pytest.mark.parametrize("policy", ["disconnect", "coalesce"])
def test_too_many_transient_messages_meanwhile_are_too_slow(process: Process, policy: str) -> None:
    fill(process, 1, 40)
    client = process.listener(since=ALL, room=0, limit=LIMIT, policy=policy)
    process.settle()
    process.publish(*["1000 ".ljust(SIZE, "x")] * 30, transient=True)
    process.settle()
    assert client.ended == 1
    assert client.outlet is not None
    assert client.outlet.closed
    assert process.fanout.subscribers("news") == 0
    assert process.counters.channels["news"].slow_disconnects == 1
    assert process.observer.noted == [("too slow", client)]


def test_under_drop_oldest_too_many_transient_messages_meanwhile_are_dropped(
    process: Process,
) -> None:
    fill(process, 1, 40)
    client = process.listener(since=ALL, room=0, limit=LIMIT, policy="drop_oldest")
    process.settle()
    process.publish(*["1000 ".ljust(SIZE, "x")] * 30, transient=True)
    process.settle()
    assert held_for(client) <= LIMIT + LIMIT // 2 + ONE
    client.drain()
    process.settle()
    seen = numbers(client)
    dropped = process.counters.channels["news"].dropped
    assert [each for each in seen if each != 1000] == list(range(1, 41))
    assert seen.count(1000) + dropped == 30
    assert dropped > 10
    assert process.observer.noted == [("dropped", client, "news")] * dropped


def test_under_drop_oldest_who_joined_meanwhile_is_not_dropped_silently(far: Process) -> None:
    fill(far, 1, 40)
    client = far.client(room=0, limit=LIMIT, policy="drop_oldest")
    far.subscribe(client, encoding=PRESENCE, since=ALL)
    far.settle()
    for number in range(20):
        far.publish(f"{number}".ljust(SIZE, "x"), event="join", transient=True)
    far.settle()
    client.drain()
    far.settle()
    assert "gap" in numbers(client)


# -- the end -------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["unsubscribe", "remove"])
def test_who_leaves_in_the_middle_gets_no_more_and_leaves_nothing(
    process: Process, how: str
) -> None:
    fill(process, 1, 40)
    fill(process, 1, 40, "other")
    client = process.listener(since=ALL, room=0, limit=LIMIT)
    process.subscribe(client, "other", since=ALL)
    process.settle()
    assert client.outlet is not None
    if how == "unsubscribe":
        process.unsubscribe(client)
    else:
        client.outlet.remove()
    before = numbers(client)
    read(process, client)
    process.settle()
    assert client.outlet.replays is None
    assert "news" not in client.outlet.entries
    assert process.fanout.subscribers("news") == 0
    if how == "unsubscribe":
        assert numbers(client, "other") == list(range(1, 41))
        process.subscribe(client, since=ALL)
        process.settle()
        read(process, client)
        assert numbers(client)[-40:] == list(range(1, 41))
    else:
        assert len(numbers(client)) <= len(before) + 11


def test_an_error_in_the_middle_ends_one_client_and_no_other(
    process: Process, caplog: pytest.LogCaptureFixture
) -> None:
    fill(process, 1, 40)
    broken, well = (process.listener(since=ALL, limit=LIMIT) for _ in range(2))

    def write(data: bytes) -> None:
        raise RuntimeError("told by the test")

    broken.write = write  # type: ignore[method-assign]
    process.settle()
    assert broken.ended == 1
    assert numbers(well) == list(range(1, 41))
    assert "replaying a history of channels to a client failed" in caplog.text


# -- other logs ----------------------------------------------------------------------------


def test_a_loss_in_the_middle_is_one_gap(far: Process) -> None:
    fill(far, 1, 40)
    client = far.listener(since=ALL, room=0, limit=LIMIT)
    far.settle()
    fill(far, 41, 42)
    far.broker.lose("news")
    fill(far, 43, 44)
    far.settle()
    read(far, client)
    seen = numbers(client)
    assert seen.count("gap") == 1
    gap = seen.index("gap")
    assert seen[:gap] == list(range(1, gap + 1))
    assert seen[gap + 1 :] in ([43, 44], [])
    assert client.envelopes[-1]["position"].endswith("-44")


def test_a_history_ahead_of_this_process_goes_on_with_what_is_delivered(far: Process) -> None:
    fill(far, 1, 20)
    other = far.listener()
    fill(far, 21, 60)  # on their way
    client = far.listener(since=ALL, room=0, limit=LIMIT)
    far.hub.settle()
    read_without_arrivals(far, client)
    far.settle()
    client.drain()
    far.settle()
    assert numbers(client) == list(range(1, 61))
    assert numbers(other) == list(range(21, 61))


def read_without_arrivals(process: Process, client: Client) -> None:
    before = -1
    while len(client.data) != before:
        before = len(client.data)
        client.drain(3000)
        process.hub.settle()


@pytest.mark.parametrize("notices", ["a loss", "from its beginning"])
def test_a_history_of_a_log_that_this_process_has_not_noticed_yet(
    far: Process, notices: str
) -> None:
    """The broker was replaced: the history is of its new log, of which nothing is at hand."""
    new = [
        Message("news", "text", f"{n} ".ljust(SIZE, "x").encode(), Position(EARLIER, n))
        for n in range(1, 41)
    ]
    fill(far, 1, 3)
    far.settle()
    far.listener()
    far.broker.history = lambda channel, since: History(new, new[-1].position)
    client = far.listener(since=Position(EARLIER, 0), room=0, limit=LIMIT)
    far.hub.settle()
    read_without_arrivals(far, client)
    if notices == "a loss":
        far.fanout.missed("news", new[-1].position)
    else:
        for message in new:
            far.fanout.deliver(message)
    last = Message("news", "text", b"41", Position(EARLIER, 41))
    far.fanout.deliver(last)
    far.hub.settle()
    read_without_arrivals(far, client)
    seen = numbers(client)
    assert seen[-1] == 41
    if notices == "a loss":
        assert seen.count("gap") == 1
        assert seen[: seen.index("gap")] == list(range(1, seen.index("gap") + 1))
    else:
        assert seen == list(range(1, 42))
