from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from flask_sockets2.admission import max_age as ages
from flask_sockets2.admission.max_age import Ages


class Time:
    """A clock that goes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.5
        self.calls: list[tuple[float, Callable[[], None]]] = []
        monkeypatch.setattr(ages, "monotonic", lambda: self.now)

    def call_later(self, delay: float, function: Callable[[], None]) -> None:
        self.calls.append((self.now + delay, function))

    def pass_by(self, seconds: float) -> None:
        until = self.now + seconds
        while self.calls and min(self.calls, key=lambda call: call[0])[0] <= until:
            call = min(self.calls, key=lambda call: call[0])
            self.calls.remove(call)
            self.now = call[0]
            call[1]()
        self.now = until


class One:
    due = 0

    def __init__(self, clock: Any, ended: list[One]) -> None:
        self.clock = clock
        self._ended = ended

    def come_of_age(self) -> None:
        self._ended.append(self)


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    return Time(monkeypatch)


def test_they_are_ended_between_80_and_100_percent_of_the_age_and_not_at_once(time: Time) -> None:
    of_age, ended = Ages(threading.Lock()), []
    for _ in range(1000):
        of_age.add(One(time, ended), 100.0)
    time.pass_by(79.0)
    assert ended == []
    most = before = 0
    for _ in range(23):
        time.pass_by(1.0)
        most, before = max(most, len(ended) - before), len(ended)
    assert len(ended) == 1000
    assert most < 150


def test_one_that_cannot_be_ended_keeps_no_other_from_it(time: Time) -> None:
    of_age, ended = Ages(threading.Lock()), []

    class Broken(One):
        def come_of_age(self) -> None:
            raise RuntimeError("its hub has gone")

    for kind in (Broken, One, Broken, One):
        of_age.add(kind(time, ended), 10.0)
    time.pass_by(11.0)
    assert len(ended) == 2


def test_one_that_has_ended_by_itself_is_forgotten(time: Time) -> None:
    of_age, ended = Ages(threading.Lock()), []
    one, other = One(time, ended), One(time, ended)
    of_age.add(one, 10.0)
    of_age.add(other, 10.0)
    of_age.remove(one)
    time.pass_by(12.0)
    assert ended == [other]
    of_age.remove(other)  # too late, and no harm


def test_without_any_no_timer_ticks(time: Time) -> None:
    of_age, ended = Ages(threading.Lock()), []
    assert time.calls == []
    of_age.add(One(time, ended), 0.1)
    assert len(time.calls) == 1
    time.pass_by(5.0)
    assert len(ended) == 1
    assert time.calls == []
    of_age.add(One(time, ended), 3.0)
    time.pass_by(5.0)
    assert len(ended) == 2


def test_a_process_that_stood_still_catches_up(time: Time) -> None:
    of_age, ended = Ages(threading.Lock()), []
    of_age.add(One(time, ended), 5.0)
    (_, tick), *_ = time.calls
    time.calls.clear()
    time.now += 60.0
    tick()
    assert len(ended) == 1
