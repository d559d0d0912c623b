"""The report of a run: tables as plain text, and everything as JSON."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from .measure import Cores
from .results import ECHOES, GOALS, HANDSHAKES, IDLE, IDLE_MANY, Results
from .servers import ALL, Peer

BUSY = 0.9  # share of a core beyond which the load client is suspected
NOISE = 0.1  # share of the server's core beyond which other processes are mentioned
PACKAGES = (
    "flask", "gevent", "gevent-websocket", "gunicorn", "flask-sock", "websockets", "picows",
    "uvloop",
)  # fmt: skip


def environment(cores: Cores) -> dict[str, Any]:
    """Return what the figures depend on besides the code."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    if node := shutil.which("node"):
        done = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=10)
        versions["node"] = done.stdout.strip().removeprefix("v")
    return {
        "python": platform.python_version(),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": os.cpu_count(),
        "server_core": cores.server,
        "client_core": cores.client,
        "packages": versions,
    }


def text(results: Results, about: dict[str, Any], peers: Sequence[Peer]) -> str:
    """Return the tables, the ratios and the remarks."""
    versions = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    parts = [
        f"Python {about['python']}, {about['kernel']}, {about['cores']} cores; server on core "
        f"{about['server_core']}, load on core {about['client_core']}\n{versions}\n"
        "Medians over the rounds; in brackets the smallest and the largest."
    ]
    for echo in ECHOES:
        parts.append(_load_table(results, echo.name, f"Echo, {echo.title}", "message", peers))
    parts.append(_load_table(results, HANDSHAKES, "Handshakes (open, close)", "handshake", peers))
    parts.append(_memory_table(results, peers))
    parts.append(_goal_table(results))
    notes = [*results.notes, *_noise(results, peers)]
    if notes:
        parts.append("\n".join(f"- {note}" for note in notes))
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return an aligned table, the first column to the left."""
    if not rows:
        return ""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = [title, "=" * len(title)]
    for row in (head, *rows):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _load_table(
    results: Results, scenario: str, title: str, unit: str, peers: Sequence[Peer]
) -> str:
    head = (
        "server", f"{unit}s/s", f"CPU µs/{unit}", "", "p50 ms", "p99 ms",
        "server core", "load core", "load µs",
    )  # fmt: skip
    rows = []
    for peer in peers:
        if not results.values(scenario, peer.name, "cpu_us"):
            continue
        median = {
            key: results.median(scenario, peer.name, key) or 0.0
            for key in results.samples[scenario][peer.name][0]
        }
        rows.append(
            (
                peer.title,
                f"{median['per_second']:,.0f}",
                format_figure(median["cpu_us"]),
                _spread(results.values(scenario, peer.name, "cpu_us")),
                format_figure(median["p50_ms"]),
                format_figure(median["p99_ms"]),
                f"{median['server_busy']:.0%}",
                f"{median['client_busy']:.0%}" + ("!" if _client_bound(median) else ""),
                format_figure(median["client_us"]),
            )
        )
    return _table(title, head, rows)


def _memory_table(results: Results, peers: Sequence[Peer]) -> str:
    rows = []
    for scenario in (IDLE, IDLE_MANY):
        for peer in peers:
            values = results.values(scenario, peer.name, "kib")
            if not values:
                continue
            count = results.median(scenario, peer.name, "connections") or 0
            kib = results.median(scenario, peer.name, "kib") or 0.0
            rows.append((peer.title, f"{count:,.0f}", f"{kib:.1f}", _spread(values)))
    return _table("Memory", ("server", "idle connections", "KiB/connection", ""), rows)


def _goal_table(results: Results) -> str:
    titles = {peer.name: peer.title for peer in ALL}
    rows = []
    for goal in GOALS:
        ratio = goal.ratio(results)
        if ratio is None:
            continue
        bound = f"{'≥' if goal.at_least else '≤'} {goal.factor:g}"
        verdict = "reached" if goal.reached(results) else "not reached"
        rows.append((goal.title, titles[goal.peer], f"{ratio:.3g}", bound, verdict))
    return _table("Goals", ("flask_sockets2's", "over that of", "ratio", "goal", ""), rows)


def format_figure(value: float) -> str:
    """Return three significant digits, and no exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _spread(values: Sequence[float]) -> str:
    """Return the smallest and the largest; nothing where there was one round."""
    return (
        f"({format_figure(min(values))} - {format_figure(max(values))})" if len(values) > 1 else ""
    )


def _client_bound(sample: dict[str, float]) -> bool:
    return sample["client_busy"] > BUSY and sample["server_busy"] < sample["client_busy"]


def _noise(results: Results, peers: Sequence[Peer]) -> list[str]:
    """Return warnings about the load client and about other processes."""
    notes = []
    titles = {peer.name: peer.title for peer in peers}
    worst = 0.0
    for scenario, servers in results.samples.items():
        for name, samples in servers.items():
            loads = [sample for sample in samples if "client_busy" in sample]
            bound = sum(_client_bound(sample) for sample in loads)
            if bound:
                notes.append(
                    f"{scenario}, {titles[name]}: the load client was the bottleneck in {bound} of "
                    f"{len(loads)} rounds (!): messages a second are too few, latencies too long"
                )
            lost = max((sample.get("unanswered", 0.0) for sample in samples), default=0.0)
            if lost:
                notes.append(
                    f"{scenario}, {titles[name]}: up to {lost:.2%} of the connections were closed "
                    "without an answer to the close frame"
                )
            worst = max([worst, *(sample["others"] for sample in loads)])
    if worst > NOISE:
        notes.append(f"other processes took up to {worst:.0%} of the server's core in a window")
    return notes


def write_json(path: Path, results: Results, about: dict[str, Any]) -> None:
    """Write every sample, the medians and the ratios."""
    document = {
        "environment": about,
        "medians": {
            scenario: {
                server: {key: results.median(scenario, server, key) for key in samples[0]}
                for server, samples in servers.items()
            }
            for scenario, servers in results.samples.items()
        },
        "goals": [
            {
                "scenario": goal.scenario,
                "figure": goal.key,
                "peer": goal.peer,
                "at_least" if goal.at_least else "at_most": goal.factor,
                "ratio": goal.ratio(results),
                "reached": goal.reached(results),
            }
            for goal in GOALS
        ],
        "samples": results.samples,
        "notes": results.notes,
    }
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
