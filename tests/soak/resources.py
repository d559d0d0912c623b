"""Memory and descriptors of a server's processes, watched while it runs.

Memory is what is the process's own (USS): what workers share with the process that forked them is
counted for none. It may grow while histories fill, caches warm up and the allocator finds its
size; so the first third of a process's life, at least a minute, is not judged. From then on the
medians of the first and the last quarter are compared, over all workers together, since clients
that come back may go to another one:

-   Memory may grow by :data:`MOST_MEMORY` for each worker. A worker that serves ten new
    connections a second for four minutes, and keeps 2 KiB of each, would grow by more.
-   Descriptors may grow by a tenth of the clients and :data:`MOST_DESCRIPTORS`: some clients are
    between two connections, and the broker's connections come and go.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

import psutil

from .checker import Fault

__all__ = [
    "MOST_DESCRIPTORS",
    "MOST_MEMORY",
    "Sample",
    "Trend",
    "Watch",
    "judge",
    "together",
    "trend",
]

MOST_MEMORY = 4 * 2**20  # bytes
MOST_DESCRIPTORS = 16

_INTERVAL = 2.0  # seconds
_WARM_UP = 60.0  # seconds
_FEWEST = 12  # samples after that, so that medians mean something


class Sample(NamedTuple):
    """A process, or some together, at a time in seconds; memory in bytes."""

    at: float
    memory: int
    descriptors: int


class Trend(NamedTuple):
    """How something went over some time.

    :ivar slope: of memory, bytes a minute.
    """

    seconds: float
    first: Sample
    last: Sample
    slope: float

    def __str__(self) -> str:
        first, last = self.first, self.last
        return (
            f"{first.memory / 2**20:.1f} -> {last.memory / 2**20:.1f} MiB, "
            f"{self.slope / 1024:+.0f} KiB/min, {first.descriptors} -> {last.descriptors} "
            f"descriptors in {self.seconds:.0f} s"
        )


class Watch:
    """Samples processes in a thread.

    :param processes: returns them, by a name that keeps them apart, and is asked each time.
    :param interval: seconds.

    :ivar samples: of each, in their order.
    """

    def __init__(
        self, processes: Callable[[], dict[str, psutil.Process]], interval: float = _INTERVAL
    ) -> None:
        self.samples: dict[str, list[Sample]] = {}
        self._processes = processes
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="soak watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            with suppress(psutil.NoSuchProcess):
                for name, process in self._processes().items():
                    with suppress(psutil.NoSuchProcess):
                        memory, files = process.memory_full_info().uss, process.num_fds()
                        sample = Sample(time.monotonic(), memory, files)
                        self.samples.setdefault(name, []).append(sample)


def together(samples: Sequence[Sequence[Sample]]) -> list[Sample]:
    """Add up processes that were sampled at the same times, from where all of them were there."""
    shortest = min(map(len, samples), default=0)
    rows = zip(*(each[len(each) - shortest :] for each in samples), strict=True)
    return [
        Sample(row[0].at, sum(each.memory for each in row), sum(each.descriptors for each in row))
        for row in rows
    ]


def trend(samples: Sequence[Sample], warm_up: float = _WARM_UP) -> Trend | None:
    """Compare the end with the beginning; None where that is too soon to tell.

    :param warm_up: seconds that do not count, at least; a third of all does not, either.
    """
    if not samples:
        return None
    begun, ended = samples[0].at, samples[-1].at
    since = begun + max(warm_up, (ended - begun) / 3)
    kept = [sample for sample in samples if sample.at >= since]
    if len(kept) < _FEWEST:
        return None
    quarter = len(kept) // 4
    times = [sample.at for sample in kept]
    slope = statistics.linear_regression(times, [sample.memory for sample in kept]).slope
    first, last = _median(kept[:quarter]), _median(kept[-quarter:])
    return Trend(kept[-1].at - kept[0].at, first, last, slope * 60)


def judge(name: str, found: Trend, processes: int, clients: int) -> list[Fault]:
    """Return what has grown too much.

    :param processes: how many were added up.
    :param clients: how many connect to them.
    """
    faults = []
    if found.last.memory - found.first.memory > MOST_MEMORY * processes:
        faults.append(Fault("memory", name, "", str(found)))
    if found.last.descriptors - found.first.descriptors > MOST_DESCRIPTORS + clients // 10:
        faults.append(Fault("descriptors", name, "", str(found)))
    return faults


def _median(samples: Iterable[Sample]) -> Sample:
    return Sample(*(round(statistics.median(values)) for values in zip(*samples, strict=True)))
