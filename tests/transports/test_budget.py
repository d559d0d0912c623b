"""The bytes that all connections hold: counted once, within a limit, and given back."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from flask_sockets2.transports import budget as module
from flask_sockets2.transports.budget import Budget, Share

MIB = 2**20


class Hub:
    """A hub that makes its calls when it is told to; its timers are due after those."""

    here = True

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []

    def call_soon(self, function: Callable[[], None]) -> None:
        self.calls.append(function)

    def call_later(self, delay: float, function: Callable[[], None]) -> None:
        self.calls.append(function)

    def inside(self) -> bool:
        return self.here

    def settle(self) -> None:
        while self.calls:
            self.calls.pop(0)()


class Holder:
    """A connection that releases what it holds when it is evicted."""

    def __init__(self, budget: Budget, hub: Hub, name: str = "") -> None:
        self.clock = hub
        self.name = name
        self.share = Share(budget, self)
        self.evictions = 0
        self._size = 0
        self._data: list[bytes] = []

    def take(self, size: int) -> None:
        self._size += size
        self.share.count(size)

    def hold(self, data: bytes) -> None:
        self._data.append(data)
        self.share.hold(data)

    def evict(self) -> None:
        self.evictions += 1
        self.share.count(-self._size)
        for data in self._data:
            self.share.release(data)
        self._size, self._data = 0, []


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """The time, as ``now["seconds"]``."""
    times: Counter[str] = Counter(seconds=1000)
    monkeypatch.setattr(module, "monotonic", lambda: float(times["seconds"]))
    return times


@pytest.fixture
def given_back(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that memory goes back to the system."""
    times: list[int] = []
    monkeypatch.setattr(module, "give_back", lambda: times.append(1))
    return times


def test_bytes_that_several_hold_count_once() -> None:
    budget, hub = Budget(MIB), Hub()
    holders = [Holder(budget, hub) for _ in range(3)]
    data = bytes(1000)
    for holder in holders:
        holder.hold(data)
        holder.hold(data)
    assert budget.total == 1000
    assert [holder.share.held for holder in holders] == [2000] * 3
    for holder in holders[1:]:
        holder.evict()
    assert budget.total == 1000
    holders[0].evict()
    assert (budget.total, budget.shares, budget.shared) == (0, set(), {})


def test_the_largest_are_evicted_until_an_eighth_is_free_and_no_more(now: Any) -> None:
    told: list[tuple[int, int]] = []
    budget, hub = Budget(800, lambda count, held: told.append((count, held))), Hub()
    sizes = [10, 300, 200, 150, 100, 45]
    holders = {size: Holder(budget, hub) for size in sizes}
    for size, holder in holders.items():
        holder.take(size)
    assert budget.total == 805
    hub.settle()
    assert [size for size, holder in holders.items() if holder.evictions] == [300]
    assert told == [(1, 300)]
    assert budget.total == 505


def test_who_makes_progress_stays_and_who_makes_none_goes(now: Any) -> None:
    budget, hub = Budget(1000), Hub()
    stalled, busy = Holder(budget, hub), Holder(budget, hub)
    stalled.take(400)
    now["seconds"] += 5
    for _ in range(20):  # an upload that is taken as it comes
        busy.take(500)
        busy.take(-500)
    busy.take(601)
    hub.settle()
    assert (stalled.evictions, busy.evictions) == (1, 0)


def test_a_thousand_small_ones_stay_while_large_ones_go(now: Any) -> None:
    budget, hub = Budget(100_000), Hub()
    small = [Holder(budget, hub) for _ in range(1000)]
    for holder in small:
        holder.take(20)
    now["seconds"] += 3600  # they have been there for long
    for _ in range(100):
        large = Holder(budget, hub)
        large.take(10_000)
        now["seconds"] += 1
        hub.settle()
        assert budget.total <= 100_000
    assert sum(holder.evictions for holder in small) == 0


def test_nobody_is_evicted_twice_while_its_end_is_under_way(now: Any) -> None:
    budget, hub, other = Budget(100), Hub(), Hub()
    other.here = False  # in another thread: its end takes a while
    holder, late = Holder(budget, other), Holder(budget, hub)
    holder.take(95)
    late.take(10)
    hub.settle()
    late.take(10)
    hub.settle()
    other.settle()
    hub.settle()
    other.settle()
    assert (holder.evictions, late.evictions) == (1, 0)
    assert budget.total == 20


def test_others_are_evicted_where_the_first_shares_all_that_it_holds(now: Any) -> None:
    budget, hub = Budget(100), Hub()
    news = bytes(80)
    listeners = [Holder(budget, hub) for _ in range(3)]
    for listener in listeners:
        listener.hold(news)
    talker = Holder(budget, hub)
    talker.take(30)
    now["seconds"] += 1
    hub.settle()
    assert budget.total <= 100
    assert talker.evictions == 0


def test_one_that_cannot_be_evicted_keeps_no_other_from_it(
    now: Any, caplog: pytest.LogCaptureFixture
) -> None:
    budget, hub = Budget(100), Hub()
    broken, other = Holder(budget, hub), Holder(budget, hub)
    broken.evict = None  # type: ignore[assignment, method-assign]
    other.take(70)
    broken.take(80)
    hub.settle()
    assert other.evictions == 0  # the end of the first may take a while
    now["seconds"] += 6
    other.take(1)
    hub.settle()
    assert other.evictions == 1
    assert "could not be told" in caplog.text


def test_those_that_wait_are_called_once_there_is_room_again() -> None:
    budget, hub = Budget(1000), Hub()
    holder = Holder(budget, hub)
    called: list[str] = []
    holder.take(751)
    assert budget.tight
    budget.call_when_relaxed(lambda: called.append("a"))
    forgotten = called.clear
    budget.call_when_relaxed(forgotten)
    budget.forget(forgotten)
    holder.take(-50)
    assert called == []
    holder.take(-100)
    assert called == ["a"]
    holder.take(-100)
    assert called == ["a"]


def test_memory_is_given_back_when_the_total_has_fallen_by_much(
    now: Any, given_back: list[int]
) -> None:
    budget, hub = Budget(1024 * MIB), Hub()
    holder = Holder(budget, hub)
    holder.take(100 * MIB)
    holder.take(-20 * MIB)
    hub.settle()
    assert given_back == []
    holder.take(-20 * MIB)
    holder.take(-40 * MIB)
    hub.settle()
    assert given_back == [1]  # once, for both
    holder.take(-20 * MIB)
    hub.settle()
    assert given_back == [1]  # little has fallen since
    holder.take(40 * MIB)
    holder.take(-40 * MIB)
    hub.settle()
    assert given_back == [1, 1]


def test_much_is_less_where_the_limit_is_small(now: Any, given_back: list[int]) -> None:
    budget, hub = Budget(8 * MIB), Hub()
    holder = Holder(budget, hub)
    holder.take(3 * MIB)
    holder.take(-2 * MIB)
    hub.settle()
    assert given_back == [1]


def test_a_hub_that_ends_before_its_call_is_waited_for_no_longer(
    now: Any, given_back: list[int]
) -> None:
    budget, gone, hub = Budget(100 * MIB), Hub(), Hub()
    holder, other = Holder(budget, gone), Holder(budget, hub)
    holder.take(99 * MIB)
    other.take(2 * MIB)
    holder.take(-50 * MIB)
    gone.calls.clear()
    hub.calls.clear()
    now["seconds"] += 6
    other.take(90 * MIB)
    other.take(-40 * MIB)
    hub.settle()
    assert given_back == [1]
    assert holder.evictions + other.evictions == 1


FRAGMENTS = """
import sys
from flask_sockets2.transports.budget import give_back

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

first = resident()
freed, kept = [], []
for number in range(200_000):
    freed.append(bytes(1000))
    if not number % 100:
        kept.append(bytes(600))  # else glibc gives back the end of its heap by itself
del freed
before = resident()
give_back()
print(before - first, before - resident())
"""


def test_what_was_freed_goes_back_to_the_system() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", FRAGMENTS], capture_output=True, text=True, timeout=60, check=True
    )
    taken, back = map(int, ran.stdout.split())
    assert taken > 150 * MIB
    assert back > taken * 0.8


def test_another_c_library_gives_back_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.sys, "platform", "darwin")
    monkeypatch.setattr(module, "_malloc_trim", None)
    module.give_back()


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), ImportError("ctypes")])
def test_a_library_that_cannot_be_loaded_now_is_loaded_later(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients may have used up all descriptors, which an import needs."""
    called: list[int] = []

    def fail() -> None:
        raise error

    monkeypatch.setattr(module, "_malloc_trim", None)
    monkeypatch.setattr(module, "_find_malloc_trim", fail)
    module.give_back()
    monkeypatch.setattr(module, "_find_malloc_trim", lambda: called.append)
    module.give_back()
    assert called == [0]


class AnyOrder(RuleBasedStateMachine):
    """Shares hold and release in any order; the total is that of the bytes that somebody holds."""

    held = Bundle("held")

    @initialize()
    def begin(self) -> None:
        self.budget = Budget(10**9)
        self.holders = [Holder(self.budget, Hub()) for _ in range(3)]
        self.data = [bytes(size) for size in (10, 100, 1000)]
        self.model: Counter[int] = Counter()  # by number of the data
        self.alone = 0

    @rule(target=held, who=st.integers(0, 2), what=st.integers(0, 2))
    def hold(self, who: int, what: int) -> tuple[int, int]:
        self.holders[who].share.hold(self.data[what])
        self.model[what] += 1
        return who, what

    @rule(one=consumes(held))
    def release(self, one: tuple[int, int]) -> None:
        who, what = one
        if what < 0:
            self.holders[who].share.count(what)
            self.alone += what
        else:
            self.holders[who].share.release(self.data[what])
            self.model[what] -= 1

    @rule(target=held, who=st.integers(0, 2), what=st.integers(-3, -1))
    def count(self, who: int, what: int) -> tuple[int, int]:
        self.holders[who].share.count(-what)
        self.alone -= what
        return who, what

    @invariant()
    def the_total_is_what_is_held(self) -> None:
        if hasattr(self, "model"):
            shared = sum(len(self.data[what]) for what, times in self.model.items() if times > 0)
            assert self.budget.total == shared + self.alone
            assert self.budget.shares == {h.share for h in self.holders if h.share.held}


TestAnyOrder = AnyOrder.TestCase
