"""What was measured, and how it compares: samples, medians, goals."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

from .measure import Echo, Sample
from .servers import OURS

ECHOES = (
    Echo("echo-32-100", "32 bytes, 100 connections", 32, 100, binary=False),
    Echo("echo-32-1000", "32 bytes, 1,000 connections", 32, 1000, binary=False),
    Echo("echo-64k-10", "64 KiB, 10 connections", 64 * 1024, 10, binary=True),
    Echo("echo-1m-4", "1 MiB, 4 connections", 1024 * 1024, 4, binary=True),
)
HANDSHAKES = "handshakes"
IDLE = "idle"
IDLE_MANY = "idle-many"


@dataclass(slots=True)
class Results:
    """All samples of a run, by scenario and server, in the order of their rounds."""

    samples: dict[str, dict[str, list[Sample]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, scenario: str, server: str, sample: Sample) -> None:
        """Keep one sample."""
        self.samples.setdefault(scenario, {}).setdefault(server, []).append(sample)

    def note(self, line: str) -> None:
        """Keep a remark for the report, once."""
        if line not in self.notes:
            self.notes.append(line)

    def values(self, scenario: str, server: str, key: str) -> list[float]:
        """Return one figure of all rounds."""
        return [sample[key] for sample in self.samples.get(scenario, {}).get(server, ())]

    def median(self, scenario: str, server: str, key: str) -> float | None:
        """Return the median over the rounds; None: not measured."""
        values = self.values(scenario, server, key)
        return statistics.median(values) if values else None


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound on the ratio of our figure to a peer's.

    :param key: of :data:`~benchmarks.measure.Sample`.
    :param factor: the bound.
    :param at_least: our figure must not be smaller; False: it must not be larger.
    """

    scenario: str
    title: str
    key: str
    peer: str
    factor: float
    at_least: bool = False

    def ratio(self, results: Results) -> float | None:
        """Return our median over the peer's; None: one of them is missing."""
        ours = results.median(self.scenario, OURS, self.key)
        theirs = results.median(self.scenario, self.peer, self.key)
        return ours / theirs if ours is not None and theirs else None

    def reached(self, results: Results) -> bool | None:
        """Tell whether the ratio keeps the bound; None: there is no ratio."""
        ratio = self.ratio(results)
        if ratio is None:
            return None
        return ratio >= self.factor if self.at_least else ratio <= self.factor


def _goals() -> tuple[Goal, ...]:
    short = (
        ("gevent-websocket", 0.55),
        ("flask-sock", 0.35),
        ("floor-sendall", 1.05),
        ("node-ws", 1.05),
    )
    long = (("websockets", 1.1), ("gevent-websocket", 0.02))
    goals = [
        Goal(echo.name, f"CPU, {echo.title}", "cpu_us", peer, factor)
        for echo in ECHOES
        for peer, factor in (short if echo.size <= 1024 else long)
    ]
    goals += [
        Goal(IDLE, "memory, idle connection", "kib", "gevent-websocket", 0.75),
        Goal(IDLE, "memory, idle connection", "kib", "flask-sock", 0.5),
        Goal(HANDSHAKES, "handshakes a second", "per_second", "gevent-websocket", 1.0, True),
        Goal(HANDSHAKES, "handshakes a second", "per_second", "flask-sock", 1.5, True),
    ]
    return tuple(goals)


GOALS = _goals()
