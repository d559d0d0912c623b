"""One timer for all connections, on a clock that the tests move."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from flask_sockets2.connection import keepalive
from flask_sockets2.connection.keepalive import Keepalive


@dataclass
class FakeTimer:
    due: float
    function: Callable[[], None]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


@dataclass
class FakeClock:
    """A hub that has no other work: it calls what is due, at the very time that it is due."""

    now: float = 1000.0
    timers: list[FakeTimer] = field(default_factory=list)
    calls: int = 0

    def monotonic(self) -> float:
        return self.now

    def call_later(self, delay: float, function: Callable[[], None]) -> FakeTimer:
        assert delay >= 0
        timer = FakeTimer(self.now + delay, function)
        self.timers.append(timer)
        return timer

    def waiting(self) -> list[FakeTimer]:
        return [timer for timer in self.timers if not timer.cancelled]

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while due := [timer for timer in self.waiting() if timer.due <= end]:
            timer = min(due, key=lambda timer: timer.due)
            self.timers.remove(timer)
            self.now = max(self.now, timer.due)
            self.calls += 1
            assert self.calls < 10_000, "it calls itself for ever"
            timer.function()
        self.now = end


@dataclass(eq=False)
class Peer:
    """A connection whose peer answers pings or does not."""

    clock: FakeClock
    ping_interval: float | None = 25.0
    ping_timeout: float | None = 20.0
    answers: bool = True
    count: int = 0
    pings: list[float] = field(default_factory=list)
    failed: list[float] = field(default_factory=list)
    on_failure: Callable[[], None] = lambda: None

    def heard(self) -> int:
        return self.count

    def keepalive_ping(self) -> None:
        self.pings.append(self.clock.now - 1000.0)
        self.count += self.answers

    def keepalive_failed(self) -> None:
        self.failed.append(self.clock.now - 1000.0)
        self.on_failure()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    clock = FakeClock()
    monkeypatch.setattr(keepalive, "monotonic", clock.monotonic)
    return clock


@pytest.fixture
def kept(clock: FakeClock) -> Keepalive:
    return Keepalive(clock.call_later)


def test_a_connection_is_pinged_at_its_interval(clock: FakeClock, kept: Keepalive) -> None:
    peer = Peer(clock)
    kept.watch(peer)
    clock.advance(101)
    assert peer.pings == [25, 50, 75, 100]
    assert peer.failed == []


def test_a_peer_of_which_nothing_is_heard_after_a_ping_fails(
    clock: FakeClock, kept: Keepalive
) -> None:
    peer = Peer(clock, answers=False)
    kept.watch(peer)
    clock.advance(200)
    assert peer.pings == [25]
    assert peer.failed == [45]
    assert clock.waiting() == []


def test_anything_heard_counts_as_an_answer(clock: FakeClock, kept: Keepalive) -> None:
    peer = Peer(clock, answers=False)
    kept.watch(peer)
    clock.advance(44)
    peer.count += 1  # a message, no pong
    clock.advance(6)
    assert peer.failed == []
    assert peer.pings == [25, 50]
    clock.advance(20)
    assert peer.failed == [70]


def test_what_was_heard_before_the_ping_is_no_answer(clock: FakeClock, kept: Keepalive) -> None:
    peer = Peer(clock, answers=False)
    kept.watch(peer)
    clock.advance(24)
    peer.count += 1
    clock.advance(21)
    assert peer.failed == [45]


def test_connections_that_came_at_different_times_are_each_pinged_on_time(
    clock: FakeClock, kept: Keepalive
) -> None:
    """The tick that pings one does not put the next off until its answer is due."""
    peers = [Peer(clock) for _ in range(10)]
    for peer in peers:
        kept.watch(peer)
        clock.advance(1)
    clock.advance(100)
    for number, peer in enumerate(peers):
        assert peer.pings[:4] == [number + 25, number + 50, number + 75, number + 100]
        assert peer.failed == []


def test_a_dead_peer_fails_on_time_among_live_ones(clock: FakeClock, kept: Keepalive) -> None:
    peers = [Peer(clock, answers=number != 3) for number in range(10)]
    for peer in peers:
        kept.watch(peer)
        clock.advance(3)
    clock.advance(100)
    assert [peer.failed for peer in peers] == [[9 + 45] if n == 3 else [] for n in range(10)]


def test_connections_with_different_intervals_are_each_pinged_on_time(
    clock: FakeClock, kept: Keepalive
) -> None:
    slow = Peer(clock, ping_interval=60.0, ping_timeout=10.0)
    quick = Peer(clock, ping_interval=5.0, ping_timeout=2.0)
    kept.watch(slow)
    clock.advance(1)
    kept.watch(quick)
    clock.advance(60)
    assert quick.pings == pytest.approx(range(6, 62, 5), abs=0.5)
    assert slow.pings == pytest.approx([60], abs=0.5)


def test_a_shorter_interval_does_not_wait_for_the_timer_of_a_longer_one(
    clock: FakeClock, kept: Keepalive
) -> None:
    kept.watch(Peer(clock, ping_interval=3600.0))
    peer = Peer(clock, ping_interval=2.0, ping_timeout=1.0)
    kept.watch(peer)
    clock.advance(2)
    assert peer.pings == [2]


def test_however_many_connections_have_one_timer(clock: FakeClock, kept: Keepalive) -> None:
    peers = [Peer(clock) for _ in range(1000)]
    for peer in peers:
        kept.watch(peer)
        clock.advance(0.0001)
    assert len(clock.waiting()) == 1
    clock.advance(25)
    assert all(len(peer.pings) == 1 for peer in peers)
    assert clock.calls == 1
    assert len(clock.waiting()) == 1


def test_connections_due_within_half_a_second_share_a_tick(
    clock: FakeClock, kept: Keepalive
) -> None:
    early, late = Peer(clock), Peer(clock)
    kept.watch(early)
    clock.advance(0.4)
    kept.watch(late)
    clock.advance(24.6)
    assert early.pings == late.pings == [25]


def test_a_connection_that_has_ended_is_let_go(clock: FakeClock, kept: Keepalive) -> None:
    before, pinged = Peer(clock), Peer(clock, answers=False)
    kept.watch(pinged)
    clock.advance(10)
    kept.watch(before)
    clock.advance(16)
    assert pinged.pings == [25]
    kept.forget(before)
    kept.forget(pinged)
    kept.forget(Peer(clock))  # never watched
    clock.advance(100)
    assert before.pings == []
    assert pinged.failed == []
    assert clock.waiting() == []


def test_after_all_have_gone_a_new_connection_is_pinged_again(
    clock: FakeClock, kept: Keepalive
) -> None:
    first, second = Peer(clock), Peer(clock)
    kept.watch(first)
    kept.forget(first)
    clock.advance(100)
    kept.watch(second)
    clock.advance(25)
    assert second.pings == [125]


def test_a_failure_may_let_any_connection_go(clock: FakeClock, kept: Keepalive) -> None:
    """As when the application closes the others of a dead peer's."""
    other = Peer(clock)
    dead = Peer(clock, answers=False, ping_interval=10.0, ping_timeout=5.0)
    bystander = Peer(clock, ping_interval=40.0)
    dead.on_failure = lambda: kept.forget(other)
    for peer in (other, dead, bystander):
        kept.watch(peer)
    clock.advance(100)
    assert dead.failed == [15]
    assert other.pings == []
    assert bystander.pings == pytest.approx([40, 80], abs=0.5)


def test_an_error_in_one_connection_leaves_the_others_watched(
    clock: FakeClock, kept: Keepalive
) -> None:
    broken, sound = Peer(clock, answers=False), Peer(clock)

    def fail() -> None:
        raise RuntimeError("broken")

    broken.on_failure = fail
    kept.watch(broken)
    clock.advance(10)
    kept.watch(sound)
    with pytest.raises(RuntimeError):
        clock.advance(40)
    clock.advance(50)
    assert sound.pings[:2] == [35, 60]


@pytest.mark.parametrize("interval", [None, 0.0])
def test_without_an_interval_nothing_is_done(
    interval: float | None, clock: FakeClock, kept: Keepalive
) -> None:
    kept.watch(Peer(clock, ping_interval=interval))
    assert clock.timers == []


def test_without_a_timeout_pings_go_on_and_nothing_fails(clock: FakeClock, kept: Keepalive) -> None:
    peer = Peer(clock, ping_timeout=None, answers=False)
    kept.watch(peer)
    clock.advance(75)
    assert peer.pings == [25, 50, 75]
    assert peer.failed == []


def test_a_timeout_longer_than_the_interval_is_waited_for(
    clock: FakeClock, kept: Keepalive
) -> None:
    live = Peer(clock, ping_interval=5.0, ping_timeout=20.0)
    dead = Peer(clock, ping_interval=5.0, ping_timeout=20.0, answers=False)
    kept.watch(live)
    kept.watch(dead)
    clock.advance(46)
    assert live.pings == pytest.approx([5, 10, 15, 20, 25, 30, 35, 40, 45], abs=0.5)
    assert dead.pings == pytest.approx([5, 10, 15, 20], abs=0.5)
    assert dead.failed == [25]


def test_small_intervals_keep_their_order(clock: FakeClock, kept: Keepalive) -> None:
    peer = Peer(clock, ping_interval=0.2, ping_timeout=0.1, answers=False)
    kept.watch(peer)
    clock.advance(1)
    assert peer.pings == pytest.approx([0.2], abs=0.03)
    assert peer.failed == pytest.approx([0.3], abs=0.03)
