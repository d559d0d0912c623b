"""The proofs that the soak finds processes that grow."""

from __future__ import annotations

import os

import psutil

from tests.processes import wait_until
from tests.soak.resources import (
    MOST_DESCRIPTORS,
    MOST_MEMORY,
    Sample,
    Trend,
    Watch,
    judge,
    together,
    trend,
)

MINUTES = range(0, 300, 2)  # seconds at which samples were taken


def found(samples: list[Sample], clients: int = 100) -> list[str]:
    there = trend(samples)
    assert there is not None
    return [fault.kind for fault in judge("a worker", there, 1, clients)]


def grown(memory: float = 0, descriptors: float = 0) -> list[Sample]:
    """A process that has grown evenly, by so much in all."""
    share = [at / MINUTES[-1] for at in MINUTES]
    return [
        Sample(at, round(10**8 + memory * part), round(50 + descriptors * part))
        for at, part in zip(MINUTES, share, strict=True)
    ]


def test_a_process_that_stays_as_it_is_is_no_fault() -> None:
    assert found(grown()) == []


def test_memory_that_grows_is_found() -> None:
    assert found(grown(memory=3 * MOST_MEMORY)) == ["memory"]


def test_descriptors_that_grow_are_found() -> None:
    assert found(grown(descriptors=3 * (MOST_DESCRIPTORS + 10))) == ["descriptors"]


def test_what_grows_while_it_warms_up_is_no_fault() -> None:
    samples = [Sample(at, min(at, 90) * 2**20, 50) for at in MINUTES]
    assert found(samples) == []


def test_a_peak_is_no_growth() -> None:
    samples = [Sample(at, 50 * 2**20 * (2 if 280 < at < 290 else 1), 50) for at in MINUTES]
    assert found(samples) == []


def test_what_was_not_watched_for_long_is_not_judged() -> None:
    assert trend(grown(memory=10**9)[:30]) is None
    assert trend([]) is None


def test_workers_are_added_up_from_where_both_were_there() -> None:
    old, new = grown(), grown()[:10]
    assert [sample.memory for sample in together([old, new])] == [2 * 10**8] * 10


def test_the_slope_is_told_in_bytes_a_minute() -> None:
    there = trend(grown(memory=MINUTES[-1] / 60 * 2**20))
    assert isinstance(there, Trend)
    assert abs(there.slope - 2**20) < 2**10


def test_descriptors_and_memory_are_those_of_the_process() -> None:
    watch = Watch(lambda: {"this": psutil.Process()}, interval=0.01)
    try:
        wait_until(lambda: watch.samples.get("this"), "a sample")
        before = watch.samples["this"][-1]
        kept, files = bytearray(os.urandom(2**24)), [os.dup(0) for _ in range(50)]
        try:
            most = before.descriptors + len(files) - 5
            wait_until(lambda: watch.samples["this"][-1].descriptors > most, "descriptors")
            wait_until(
                lambda: watch.samples["this"][-1].memory > before.memory + len(kept) // 2, "memory"
            )
        finally:
            for each in files:
                os.close(each)
    finally:
        watch.close()
