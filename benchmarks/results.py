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

FLOOD = "flood"
LISTENERS = "listeners"
LISTENERS_MANY = "listeners-many"
CHANNELS_FEW = "channels-few"
CHANNELS_MANY = "channels-many"
REPLAY = "replay"
WORKERS = "workers"
WORKERS_FLOOD = "workers-flood"
WORKERS_FLOOD_SHARED = "workers-flood-shared"
PUBLISH = "publish"

STREAMS_PART = "sse"
PAGE_LOAD = "page-load"


def fanout(clients: int) -> str:
    """Return the scenario of paced messages to so many listeners."""
    return f"fanout-{clients}"


def streams(clients: int) -> str:
    """Return the scenario of paced events to so many streams."""
    return f"{STREAMS_PART}-{clients}"


@dataclass(slots=True)
class Results:
    """All samples of a run, by scenario and server, in the order of their rounds.

    :ivar failed: scenario and server of what went wrong, with the reason; not tried again.
    """

    samples: dict[str, dict[str, list[Sample]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    failed: dict[tuple[str, str], str] = field(default_factory=dict)

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
    """A bound on our figure, or on its ratio to another.

    :param key: of :data:`~benchmarks.measure.Sample`.
    :param peer: whose figure it is compared with; None: it is bounded itself.
    :param factor: the bound.
    :param at_least: our figure must not be smaller; False: it must not be larger.
    :param ours: whose figure is ours.
    :param peer_scenario: of the other figure; empty: the same.
    :param over: what the table calls the other; empty: by its title.
    """

    scenario: str
    title: str
    key: str
    peer: str | None
    factor: float
    at_least: bool = False
    ours: str = OURS
    peer_scenario: str = ""
    over: str = ""

    def ratio(self, results: Results) -> float | None:
        """Return our median over the peer's, or ours alone; None: one of them is missing."""
        ours = results.median(self.scenario, self.ours, self.key)
        if self.peer is None:
            return ours
        theirs = results.median(self.peer_scenario or self.scenario, self.peer, self.key)
        return ours / theirs if ours is not None and theirs else None

    def reached(self, results: Results) -> bool | None:
        """Tell whether the ratio keeps the bound; None: there is no ratio."""
        ratio = self.ratio(results)
        if ratio is None:
            return None
        return ratio >= self.factor if self.at_least else ratio <= self.factor


def _echo_goals() -> tuple[Goal, ...]:
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


def _push_goals() -> tuple[Goal, ...]:
    goals = []
    for clients in (100, 1000, 5000):
        scenario = fanout(clients)
        goals += [
            Goal(scenario, f"CPU, {clients:,} listeners", "cpu_us", "floor-python", 1.2),
            Goal(scenario, f"first to last, {clients:,}", "p50_ms", "floor-python", 1.2),
            Goal(scenario, f"CPU, push to {clients:,}", "cpu_us", "turbo-flask", 1.0, ours="turbo"),
        ]
    goals += [
        Goal(FLOOD, "CPU, ten pushes a turn", "cpu_us", "turbo-flask-10", 0.125, ours="turbo-10"),
        Goal(LISTENERS, "KiB of a listener", "kib", None, 3.0),
        Goal(LISTENERS_MANY, "KiB of a listener, most", "kib", None, 3.0),
        Goal(
            CHANNELS_MANY,
            "CPU, publish to one of many channels",
            "cpu_us",
            OURS,
            1.2,
            peer_scenario=CHANNELS_FEW,
            over="to one of ten",
        ),
        Goal(REPLAY, "seconds until all are level", "seconds", "floor-python", 2.0),
    ]
    alone, both = f"{OURS}, alone", f"{OURS}, together"
    for scenario, title, key in (
        (WORKERS, "deliveries per CPU second, two workers", "per_cpu_second"),
        (WORKERS_FLOOD, "deliveries a second, two workers", "per_second"),
    ):
        goals.append(Goal(scenario, title, key, alone, 0.8, True, both, over="each alone"))
    goals.append(
        Goal(PUBLISH, "publish_many() a second", "per_second", None, 10_000, True, "publish_many")
    )
    return tuple(goals)


ECHO_GOALS = _echo_goals()
PUSH_GOALS = _push_goals()
GOALS = (*ECHO_GOALS, *PUSH_GOALS)
