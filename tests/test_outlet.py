"""What is kept back for a slow client, by policy; its kernel takes what the test lets it take."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from flask_sockets2.brokers.base import BINARY, TEXT, Message, Position
from flask_sockets2.fanout.encoding import Encoding, Frames, gap_message
from flask_sockets2.fanout.outbox import (
    COALESCE,
    DISCONNECT,
    DROP_OLDEST,
    POLICIES,
    Batch,
    Observer,
    Outlet,
)
from flask_sockets2.stats import ChannelCounters
from tests.fanning import ENVELOPES, EPOCH, PLAIN, Client, Hub, frames


class Channel:
    """What a batch needs of one."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.counters = ChannelCounters()
        self.offset = 0

    def message(
        self, data: bytes = b"", *, key: str = "", transient: bool = False, event: str = ""
    ) -> Message:
        self.offset += not transient
        position = Position(EPOCH, self.offset)
        return Message(self.name, BINARY if data else TEXT, data, position, key, event, transient)


class Source(Observer):
    """What an outlet tells its fan-out, and the observer of that."""

    def __init__(self) -> None:
        self.observer = self
        self.told: list[str] = []
        self.gaps: list[str] = []

    def remove(self, outlet: Outlet) -> None:
        assert outlet.closed
        self.told.append("remove")

    def too_slow(self, owner: Any) -> None:
        self.told.append("too slow")

    def dropped(self, owner: Any, channel: str) -> None:
        self.told.append(f"dropped {channel}")

    def gap(self, channel: str) -> None:
        self.gaps.append(channel)


class Slow:
    """One client with its outlet and a channel."""

    def __init__(self, policy: str, *, limit: int = 1000, room: int | None = 0) -> None:
        self.source = Source()
        self.client = Client(Hub(), room)
        self.outlet = Outlet(self.client, self.client, self.source, limit, policy)
        self.client.outlet = self.outlet
        self.news = Channel("news")

    def put(
        self, *messages: Message, channel: Channel | None = None, encoding: Encoding = ENVELOPES
    ) -> None:
        batch = Batch(channel or self.news, encoding, [self.outlet], list(messages))
        self.outlet.put(batch.join(), (batch,))

    @property
    def counters(self) -> ChannelCounters:
        return self.news.counters

    @property
    def kept(self) -> int:
        """Bytes that are kept back for it, in the outlet and in the transport."""
        backlog = self.outlet._backlog or {}
        size = sum(len(kept.data) for kept in backlog.values())
        assert size == self.outlet._size == self.client.share.held
        return size + self.client.buffered

    def seen(self) -> list[Any]:
        """All that it gets once it takes everything."""
        self.client.drain()
        return [decoded(envelope) for envelope in self.client.envelopes]


def decoded(envelope: dict[str, Any]) -> str:
    offset = envelope.get("position", "-").rpartition("-")[2]
    return f"{envelope['channel']} {envelope.get('event', '')}{offset}"


def offsets(*numbers: int, channel: str = "news") -> list[str]:
    return [f"{channel} {number}" for number in numbers]


@pytest.mark.parametrize("policy", POLICIES)
def test_what_the_kernel_takes_is_written_at_once(policy: str) -> None:
    slow = Slow(policy, room=None)
    for _ in range(3):
        slow.put(slow.news.message(b"x" * 5000), encoding=PLAIN)
    assert [len(data) for data in slow.client.writes] == [5004] * 3
    assert slow.kept == 0
    assert slow.source.told == []


@pytest.mark.parametrize("policy", POLICIES)
def test_what_waits_comes_in_order_once_the_client_takes_again(policy: str) -> None:
    slow = Slow(policy)
    for number in range(8):
        slow.put(slow.news.message(bytes((number,))))
    assert 0 < slow.kept <= 1000
    assert slow.client.payloads == []
    assert slow.seen() == offsets(1, 2, 3, 4, 5, 6, 7, 8)
    assert slow.kept == 0
    slow.put(slow.news.message())
    assert slow.seen()[-1:] == offsets(9)


@pytest.mark.parametrize("policy", POLICIES)
def test_what_comes_while_something_waits_does_not_overtake_it(policy: str) -> None:
    slow = Slow(policy)
    slow.put(slow.news.message(b"x" * 200))
    slow.put(slow.news.message())
    slow.client.drain(100)
    slow.put(slow.news.message(), slow.news.message())
    assert slow.seen() == offsets(1, 2, 3, 4)


def test_what_waits_is_handed_over_in_chunks() -> None:
    slow = Slow(DISCONNECT, limit=10**6)
    for _ in range(50):
        slow.put(slow.news.message(b"x" * 10_000), encoding=PLAIN)
    assert len(slow.client.writes) == 1
    slow.client.drain()
    sizes = [len(data) for data in slow.client.writes[1:]]
    assert sum(sizes) == 49 * 10_004
    assert max(sizes) <= 65536 + 10_004
    assert len(sizes) == 7


def test_a_chunk_that_the_kernel_does_not_take_is_the_last_one_for_now() -> None:
    slow = Slow(DISCONNECT, limit=10**6)
    for _ in range(50):
        slow.put(slow.news.message(b"x" * 10_000), encoding=PLAIN)
    slow.client.drain(10_004 + 30_000)
    assert len(slow.client.writes) == 2
    assert slow.client.buffered == 70_028 - 30_000


@pytest.mark.parametrize("policy", POLICIES)
def test_a_kernel_that_takes_again_though_no_turn_has_told_is_asked_first(policy: str) -> None:
    """A publisher that never yields must not make healthy clients look slow."""
    slow = Slow(policy, limit=500)
    for _ in range(20):
        slow.put(slow.news.message(b"x" * 50))
        slow.client.room = 10_000
    assert slow.source.told == []
    assert slow.seen() == offsets(*range(1, 21))


# -- more at once than the kernel takes ----------------------------------------------------


def test_of_much_in_one_turn_the_kernel_gets_what_it_takes_and_the_newest_come_after_it() -> None:
    slow = Slow(DROP_OLDEST, limit=200_000, room=100_000)
    slow.put(*(slow.news.message(b"x" * 60_000) for _ in range(40)), encoding=PLAIN)
    assert slow.kept <= 200_000
    assert slow.source.told == ["dropped news"] * 37
    slow.client.drain()
    assert len(slow.client.payloads) == 3  # two were with the kernel, and the last one


def test_of_much_in_one_turn_only_the_newest_of_a_key_waits() -> None:
    slow = Slow(COALESCE, limit=128 * 1024, room=100_000)
    slow.put(*(slow.news.message(b"%05d" % n * 12_000, key="a") for n in range(40)), encoding=PLAIN)
    assert slow.client.ended == 0
    slow.client.drain()
    assert [payload[:5] for payload in slow.client.payloads] == [b"00000", b"00001", b"00039"]


@pytest.mark.parametrize("policy", POLICIES)
def test_much_in_one_turn_reaches_who_takes_it(policy: str) -> None:
    slow = Slow(policy, limit=1000, room=None)
    slow.put(*(slow.news.message(b"x" * 60_000, key="a") for _ in range(40)), encoding=PLAIN)
    assert len(slow.client.payloads) == 40
    assert slow.source.told == []


# -- disconnect ----------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [DISCONNECT, COALESCE])
def test_a_client_that_is_too_slow_is_closed_once(policy: str) -> None:
    slow = Slow(policy)
    for _ in range(40):
        slow.put(slow.news.message(b"x" * 50))
    assert slow.client.ended == 1
    assert slow.outlet.closed
    assert slow.source.told == ["remove", "too slow"]
    assert slow.counters.slow_disconnects == 1
    assert slow.counters.dropped == 0


def test_after_its_end_nothing_is_kept_and_nothing_written() -> None:
    slow = Slow(DISCONNECT)
    for _ in range(40):
        slow.put(slow.news.message(b"x" * 50))
    written = len(slow.client.writes)
    assert slow.kept == slow.client.buffered
    slow.put(slow.news.message())
    slow.client.drain()
    slow.put(slow.news.message())
    assert len(slow.client.writes) == written


def test_what_was_sent_before_by_others_counts() -> None:
    slow = Slow(DISCONNECT)
    slow.client.write(bytes(990))
    slow.put(slow.news.message())
    assert slow.client.ended == 1


def test_removing_is_told_once_and_lets_nothing_out() -> None:
    slow = Slow(DISCONNECT)
    slow.put(slow.news.message(b"x" * 100))
    slow.put(slow.news.message())
    for _ in range(2):
        slow.outlet.remove()
    assert slow.source.told == ["remove"]
    slow.client.drain()
    assert len(slow.client.payloads) == 1


def test_nothing_is_kept_for_a_client_that_leaves_while_it_is_written_to() -> None:
    slow = Slow(DROP_OLDEST, limit=10_000_000, room=None)
    write = slow.client.write

    def leave(data: bytes) -> None:
        write(data)
        slow.outlet.remove()

    slow.client.write = leave  # type: ignore[method-assign]
    slow.put(*(slow.news.message(b"x" * 60_000) for _ in range(40)), encoding=PLAIN)
    assert slow.kept == 0
    slow.client.write = write  # type: ignore[method-assign]
    slow.client.drain()
    slow.outlet.drained()
    assert len(slow.client.writes) == 1


# -- drop_oldest ---------------------------------------------------------------------------


def test_the_oldest_are_dropped_and_a_gap_stands_in_their_place() -> None:
    slow = Slow(DROP_OLDEST)
    slow.put(slow.news.message())  # on its way: it cannot be taken back
    for _ in range(30):
        slow.put(slow.news.message(b"x" * 30))
        assert slow.kept <= 1000
    first, gap, *rest = slow.seen()
    assert first == "news 1"
    last_dropped = int(gap.removeprefix("news gap"))
    assert rest == offsets(*range(last_dropped + 1, 32))
    assert len(rest) > 1
    assert slow.counters.dropped == last_dropped - 1
    assert slow.source.told == ["dropped news"] * (last_dropped - 1)
    assert slow.source.gaps == ["news"]
    assert slow.counters.gaps == 1
    assert slow.client.ended == 0


def test_there_is_one_gap_for_each_channel_however_often_something_is_dropped() -> None:
    slow, sport = Slow(DROP_OLDEST, limit=2000), Channel("sport")
    slow.put(slow.news.message())
    for _ in range(50):
        slow.put(slow.news.message(b"x" * 30))
        slow.put(sport.message(b"x" * 30), channel=sport)
    seen = slow.seen()
    gaps = [line for line in seen if "gap" in line]
    assert sorted(gap.split()[0] for gap in gaps) == ["news", "sport"]
    for name, last in (("news", 51), ("sport", 50)):
        (gap,) = [gap for gap in gaps if gap.startswith(name)]
        start = int(gap.rpartition("gap")[2]) + 1
        own = [line for line in seen if line.startswith(name)]
        own = own[own.index(gap) + 1 :]
        assert own == offsets(*range(start, last + 1), channel=name)
    assert slow.counters.dropped + sport.counters.dropped == len(slow.source.told)


def test_a_message_larger_than_the_buffer_is_kept_while_it_is_the_newest() -> None:
    slow = Slow(DROP_OLDEST)
    slow.put(slow.news.message())
    slow.put(slow.news.message(b"x" * 2000))
    assert slow.source.told == []
    slow.put(slow.news.message())
    assert slow.kept <= 1000
    assert slow.seen() == ["news 1", "news gap2", "news 3"]


@pytest.mark.parametrize("size", [30, 400, 2000])
@pytest.mark.parametrize("taken", [0, 50, 500])
@pytest.mark.parametrize("together", [1, 7])
def test_a_slow_reader_sees_a_beginning_one_gap_and_all_that_follows_up_to_the_newest(
    size: int, taken: int, together: int
) -> None:
    """Whatever the transport has already: that is no reason to drop the newest instead."""
    slow = Slow(DROP_OLDEST, room=taken)
    for _ in range(0, 140, together):
        slow.put(*(slow.news.message(b"x" * size) for _ in range(together)))
        assert slow.kept <= 1000 + 2 * 4 * size // 3 + 200  # and one message, in base64
    seen = slow.seen()
    (place,) = [place for place, each in enumerate(seen) if "gap" in each]
    lost = int(seen[place].removeprefix("news gap"))
    assert seen[:place] == offsets(*range(1, place + 1))
    assert seen[place + 1 :] == offsets(*range(lost + 1, 141))
    assert seen[-1] == "news 140"
    assert slow.counters.dropped == lost - place


@pytest.mark.parametrize("size", [2500, 5000, 20_000])
def test_what_the_transport_cannot_give_back_does_not_cost_the_newest(size: int) -> None:
    """A handler's own message, more than all that may be kept back."""
    slow = Slow(DROP_OLDEST, limit=4000)
    slow.client.write(b"\x82\x7e" + size.to_bytes(2, "big") + bytes(size))
    for _ in range(100):
        slow.put(slow.news.message(b"x" * 30))
        assert slow.kept <= max(4000, slow.client.buffered + 2000) + 200
    slow.client.drain()
    own, gap, *rest = (payload for _, payload in frames(slow.client.data))
    assert own == bytes(size)
    assert decoded(json.loads(gap)).startswith("news gap")
    newest = [decoded(json.loads(each)) for each in rest]
    assert len(newest) > 5
    assert newest == offsets(*range(101 - len(newest), 101))


def test_what_is_transient_is_dropped_without_a_gap() -> None:
    slow = Slow(DROP_OLDEST)
    slow.put(slow.news.message())
    for _ in range(30):
        slow.put(slow.news.message(b"x" * 50, transient=True))
    assert slow.counters.dropped > 0
    assert not [line for line in slow.seen() if "gap" in line]


def test_who_joined_and_left_is_not_dropped_silently() -> None:
    """Else the client's list of who is there would be wrong for good."""
    slow = Slow(DROP_OLDEST)
    encoding = Frames.of(envelope=True, presence=True)
    slow.put(slow.news.message())
    for _ in range(30):
        slow.put(slow.news.message(b"ann", transient=True, event="join"), encoding=encoding)
    assert slow.seen()[:2] == ["news 1", "news gap1"]


def test_a_client_without_envelopes_is_told_as_it_asked_for() -> None:
    slow = Slow(DROP_OLDEST)
    asked = Frames.of(gap=(TEXT, b"lost"))
    slow.put(slow.news.message(b"1"), encoding=asked)
    for number in range(30):
        slow.put(slow.news.message(b"%d" % number * 50), encoding=asked)
    slow.client.drain()
    payloads = slow.client.payloads
    assert payloads[1] == b"lost"
    assert payloads.count(b"lost") == 1


def test_a_client_that_asked_for_nothing_is_told_nothing() -> None:
    slow = Slow(DROP_OLDEST)
    for _ in range(30):
        slow.put(slow.news.message(b"x" * 50), encoding=PLAIN)
    slow.client.drain()
    assert {len(payload) for payload in slow.client.payloads} == {50}
    assert slow.counters.dropped > 0


def test_what_others_have_in_the_transport_is_no_reason_to_close_or_to_drop() -> None:
    slow = Slow(DROP_OLDEST)
    slow.client.write(b"\x82\x7e\x13\x88" + bytes(5000))
    slow.put(slow.news.message(), slow.news.message())
    assert slow.client.ended == 0
    assert slow.source.told == []
    slow.client.drain()
    payloads = [payload for _, payload in frames(slow.client.data)][1:]
    assert [decoded(json.loads(payload)) for payload in payloads] == offsets(1, 2)


# -- coalesce ------------------------------------------------------------------------------


def test_a_newer_message_with_the_same_key_takes_the_place_of_an_older_one() -> None:
    slow = Slow(COALESCE)
    slow.put(slow.news.message())
    for _ in range(50):
        slow.put(slow.news.message(b"x" * 100, key="price"))
        slow.put(slow.news.message(b"x" * 100, key="weather"))
    assert slow.seen() == offsets(1, 100, 101)
    assert slow.counters.coalesced == 98
    assert slow.counters.dropped == 0
    assert slow.source.told == []


def test_the_newer_one_stands_where_the_newer_one_came() -> None:
    slow = Slow(COALESCE)
    slow.put(slow.news.message())
    slow.put(slow.news.message(key="a"))
    slow.put(slow.news.message())
    slow.put(slow.news.message(key="a"))
    slow.put(slow.news.message())
    assert slow.seen() == offsets(1, 3, 4, 5)


def test_a_key_is_one_of_its_channel() -> None:
    slow, sport = Slow(COALESCE), Channel("sport")
    slow.put(slow.news.message())
    slow.put(slow.news.message(key="a"))
    slow.put(sport.message(key="a"), channel=sport)
    assert slow.seen() == [*offsets(1, 2), "sport 1"]


@pytest.mark.parametrize("policy", [DISCONNECT, DROP_OLDEST])
def test_a_key_means_nothing_under_the_other_policies(policy: str) -> None:
    slow = Slow(policy)
    for _ in range(3):
        slow.put(slow.news.message(key="a"))
    assert slow.seen() == offsets(1, 2, 3)


def test_what_has_no_key_is_too_much_one_day() -> None:
    slow = Slow(COALESCE)
    for _ in range(40):
        slow.put(slow.news.message(b"x" * 50))
    assert slow.client.ended == 1


# -- any interleaving ----------------------------------------------------------------------


class AnyInterleaving(RuleBasedStateMachine):
    """Puts and takes in any order, against a list of what was put."""

    LIMIT = 600

    @initialize(policy=st.sampled_from(POLICIES))
    def begin(self, policy: str) -> None:
        self.slow = Slow(policy, limit=self.LIMIT)
        self.channels = {"news": self.slow.news, "sport": Channel("sport")}
        self.put: list[Message] = []
        self.policy = policy

    @rule(
        name=st.sampled_from(["news", "sport"]),
        sizes=st.lists(st.integers(0, 200), min_size=1, max_size=3),
        key=st.sampled_from(["", "", "a", "b"]),
        transient=st.booleans(),
    )
    def publish(self, name: str, sizes: list[int], key: str, transient: bool) -> None:
        channel = self.channels[name]
        messages = [channel.message(b"x" * s, key=key, transient=transient) for s in sizes]
        if not self.slow.outlet.closed:
            self.put += messages
        self.slow.put(*messages, channel=channel)

    @rule(size=st.integers(0, 700))
    def take(self, size: int) -> None:
        self.slow.client.drain(size)

    @precondition(lambda self: not self.slow.outlet.closed)
    @rule(size=st.integers(0, 700))
    def take_unseen(self, size: int) -> None:
        self.slow.client.room = (self.slow.client.room or 0) + size

    @invariant()
    def what_is_kept_is_bounded(self) -> None:
        slow = self.slow
        in_one_write = 3 * 400  # an envelope with base64; what is written first is not looked at
        assert slow.kept <= self.LIMIT + in_one_write
        if slow.outlet._backlog and self.policy != DROP_OLDEST:
            assert slow.kept <= max(self.LIMIT, slow.client.buffered + self.LIMIT)

    def teardown(self) -> None:
        if not hasattr(self, "slow"):
            return
        slow = self.slow
        slow.client.drain()
        seen = slow.client.envelopes
        for name, channel in self.channels.items():
            self.check(name, channel, [e for e in seen if e["channel"] == name])
        assert len([told for told in slow.source.told if told.startswith("dropped")]) == sum(
            channel.counters.dropped for channel in self.channels.values()
        )
        assert slow.source.told.count("too slow") == slow.client.ended <= 1

    def check(self, name: str, channel: Channel, seen: list[dict[str, Any]]) -> None:
        wanted = [m for m in self.put if m.channel == name]
        last, count = 0, Counter[str]()
        for envelope in seen:
            if "position" not in envelope:
                count["transient"] += 1
                continue
            offset = int(envelope["position"].rpartition("-")[2])
            if envelope.get("event") == "gap":
                assert self.policy == DROP_OLDEST
                assert offset >= last
                last = offset
                continue
            assert offset > last, "nothing comes twice or before what was published before it"
            if self.policy != COALESCE:
                assert offset == last + 1, "nothing is lost silently"
            last = offset
            count["numbered"] += 1
        if not self.slow.outlet.closed:
            lasting = [m for m in wanted if not m.transient]
            assert last == (lasting[-1].position.offset if lasting else 0)
            lost = channel.counters.dropped + channel.counters.coalesced
            assert sum(count.values()) + lost == len(wanted)
            if self.put and self.put[-1].channel == name:
                assert "event" not in seen[-1], "the newest is kept"


AnyInterleaving.TestCase.settings = settings(
    max_examples=150, stateful_step_count=30, deadline=None
)
test_under_any_interleaving_nothing_is_reordered_doubled_or_lost = AnyInterleaving.TestCase


def test_a_gap_that_is_dropped_is_no_dropped_message() -> None:
    slow = Slow(DROP_OLDEST)
    slow.put(slow.news.message())
    for _ in range(100):
        batch = Batch(
            slow.news, ENVELOPES, [slow.outlet], [gap_message("news", Position(EPOCH, 1))]
        )
        slow.outlet.put(batch.join(), (batch,))
    assert slow.counters.dropped == 0
    assert slow.kept <= 1000
