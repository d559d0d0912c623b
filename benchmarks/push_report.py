"""The tables of broadcasts, event streams included."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from .measure import Sample
from .pushers import BATCHES, TITLES
from .results import (
    CHANNELS_FEW,
    CHANNELS_MANY,
    FLOOD,
    LISTENERS,
    LISTENERS_MANY,
    PUBLISH,
    REPLAY,
    STREAMS_PART,
    WORKERS,
    WORKERS_FLOOD,
    Results,
)
from .tables import format_figure, spread, table

LATE = 0.05  # of the listeners, that wait when the load client looks: it was the slower one then

Cell = Callable[[Mapping[str, float], list[Sample]], str]
"""Make a cell of the medians of all figures, and of the samples."""


def client_late(sample: Mapping[str, float]) -> bool:
    """Tell whether the load client may have been slower than a paced broadcast."""
    return "p50_ms" in sample and sample.get("backlog", 0.0) > max(LATE * sample["clients"], 8)


def tables(results: Results) -> list[str]:
    """Return a table for each scenario that was measured."""
    return [
        *(
            _table(results, name, f"Broadcast, paced, {name.partition('-')[2]} listeners", PACED)
            for name in results.samples
            if name.startswith("fanout-")
        ),
        _table(results, FLOOD, "Broadcast, back to back", BACK_TO_BACK),
        _table(
            results, FLOOD, "Broadcast, several messages in a write", BACK_TO_BACK, batches=True
        ),
        _table(results, LISTENERS, "Memory of listeners", MEMORY),
        _table(results, LISTENERS_MANY, "Memory of the most listeners", MEMORY),
        _table(results, CHANNELS_FEW, "Publishing to one of ten channels", CHANNELS),
        _table(results, CHANNELS_MANY, "Publishing to one of many channels", CHANNELS),
        _table(results, REPLAY, "Coming back", BACK),
        _table(results, WORKERS, "Two workers and Redis, paced", SHARED),
        _table(results, WORKERS_FLOOD, "Two workers and Redis, back to back", SHARED),
        _table(results, PUBLISH, "Publishing through Redis from one process", PUBLISHING),
    ]


def stream_tables(results: Results) -> list[str]:
    """Return a table for each number of event streams that was measured."""
    tried = dict.fromkeys((*results.samples, *(scenario for scenario, _ in results.failed)))
    return [
        _table(results, name, f"Server-Sent Events, paced, {number} streams", STREAMS)
        for name in tried
        if (number := _streams_of(name))
    ]


def stream_failures(results: Results) -> str:
    """Return why a table of event streams lacks figures, as a list; empty where none does."""
    return "\n".join(
        f"-   {number} streams, {TITLES[name]}: {reason}"
        for (scenario, name), reason in results.failed.items()
        if (number := _streams_of(scenario))
    )


def _streams_of(scenario: str) -> str:
    """Return the number of event streams of a scenario, empty where it is of something else."""
    part, _, number = scenario.partition("-")
    return f"{int(number):,}" if part == STREAMS_PART else ""


def _table(
    results: Results,
    scenario: str,
    title: str,
    columns: Mapping[str, Cell],
    *,
    batches: bool = False,
) -> str:
    """Return a table of the rows with one message a turn, or of those with several."""
    measured_rows = results.samples.get(scenario, {})
    servers = {name: each for name, each in measured_rows.items() if (name in BATCHES) is batches}
    order = {name: place for place, name in enumerate(TITLES)}
    rows: list[Sequence[str]] = []
    for name in sorted(servers, key=lambda name: order.get(name, len(order))):
        samples = servers[name]
        medians = {key: results.median(scenario, name, key) or 0.0 for key in samples[0]}
        cells = [cell(medians, samples) for cell in columns.values()]
        rows.append((_title(name), *cells))
    measured = {name.partition(",")[0] for name in servers}
    for place, name in results.failed:
        if place == scenario and not batches and name not in measured:
            rows.append((_title(name), *("-" if head else "" for head in columns)))
    return table(title, ("server", *columns), rows)


def _title(name: str) -> str:
    """Return what a table calls a server; ``NAME, together`` keeps its second half."""
    server, comma, rest = name.partition(",")
    return TITLES.get(server, server) + comma + rest


def _figure(key: str) -> Cell:
    return lambda medians, samples: format_figure(medians[key]) if key in medians else ""


def _number(key: str) -> Cell:
    return lambda medians, samples: f"{medians[key]:,.0f}" if key in medians else ""


def _spread(key: str) -> Cell:
    return lambda medians, samples: spread([sample[key] for sample in samples])


def _share(key: str) -> Cell:
    return lambda medians, samples: f"{medians[key]:.0%}"


def _first_to_last(medians: Mapping[str, float], samples: list[Sample]) -> str:
    return format_figure(medians["p50_ms"]) + ("!" if client_late(medians) else "")


CPU: dict[str, Cell] = {"CPU µs/delivery": _figure("cpu_us"), "": _spread("cpu_us")}
CORES: dict[str, Cell] = {
    "server core": _share("server_busy"),
    "load core": _share("client_busy"),
    "load µs": _figure("client_us"),
}
PACED: dict[str, Cell] = {
    **CPU,
    "first to last ms": _first_to_last,
    "p99 ms": _figure("p99_ms"),
    **CORES,
}
STREAMS: dict[str, Cell] = {
    **CPU,
    "Redis µs": _figure("redis_us"),
    "first to last ms": _first_to_last,
    "server core": _share("server_busy"),
    "KiB/stream": _figure("kib"),
    "Redis connections": _number("redis_connections"),
}
BACK_TO_BACK: dict[str, Cell] = {"deliveries/s": _number("per_second"), **CPU, **CORES}
MEMORY: dict[str, Cell] = {
    "listeners": _number("clients"),
    "KiB/listener": _figure("kib"),
    "": _spread("kib"),
    "opened in s": _figure("open_seconds"),
}
CHANNELS: dict[str, Cell] = {
    "channels": _number("channels"),
    "CPU µs/message": _figure("cpu_us"),
    "": _spread("cpu_us"),
    "messages/s": _number("per_second"),
}
BACK: dict[str, Cell] = {
    "listeners": _number("clients"),
    "messages each": _number("behind"),
    "seconds": _figure("seconds"),
    "": _spread("seconds"),
    "of which opening": _figure("open_seconds"),
    "CPU µs/message": _figure("cpu_us"),
}
SHARED: dict[str, Cell] = {
    "listeners each": _number("clients"),
    "deliveries/s": _number("per_second"),
    **CPU,
    "deliveries/CPU s": _number("per_cpu_second"),
}
PUBLISHING: dict[str, Cell] = {
    "messages/s": _number("per_second"),
    "CPU µs/message": _figure("cpu_us"),
    "": _spread("cpu_us"),
}
