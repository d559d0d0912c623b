"""Run the benchmark, print its tables and write its results.

``python -m benchmarks [--quick] [--only PART or SERVER] [--duration S] [--output DIR] [--docs]``
"""

from __future__ import annotations

import argparse
import resource
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from . import page, page_load, picture, push_turns, report, sse, turns
from .measure import Cores
from .push_turns import PushTurns
from .pushers import PUSHERS, STREAMERS
from .results import STREAMS_PART, Results
from .servers import ALL, HERE, Peer
from .turns import EchoTurns

Kind = TypeVar("Kind", bound=Peer)

SPARE_DESCRIPTORS = 200  # for everything that is not a connection
ECHO_PARTS = ("echo", "handshakes", "idle")
PUSH_PARTS = ("fanout", "flood", "listeners", "channels", "replay", "redis")
STREAM_PARTS = (STREAMS_PART,)
PAGE_PARTS = ("page-load",)
PARTS = (*ECHO_PARTS, *PUSH_PARTS, *STREAM_PARTS, *PAGE_PARTS)
SERVERS = tuple(dict.fromkeys(peer.name for peer in (*ALL, *PUSHERS, *STREAMERS)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; return the exit code: 1 where there is nothing to show."""
    options = _options(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    limit = _raise_descriptor_limit()
    cores = Cores.choose()
    results = Results()
    if cores.server == cores.client:
        results.note("there is one core only: the load client and the servers share it")
    only = options.only or []
    parts = {name for name in only if name not in SERVERS} or {*PARTS}
    names = {name for name in only if name in SERVERS} or set(SERVERS)
    try:
        _echo(options, cores, parts, names, limit, results)
        _push(options, cores, parts, names, limit, results)
        if parts & {*STREAM_PARTS}:
            plan = sse.QUICK if options.quick else sse.FULL
            streamers = _available(STREAMERS, names, results)
            sse.StreamTurns(streamers, cores, plan, results).loads()
        if parts & {*PAGE_PARTS}:
            page_load.measure(cores, options.quick, results)
    except KeyboardInterrupt:
        results.note("interrupted: what follows is what there was by then")
    return _write(options, cores, results)


def _echo(
    options: argparse.Namespace,
    cores: Cores,
    parts: set[str],
    names: set[str],
    limit: int,
    results: Results,
) -> None:
    if not parts & {*ECHO_PARTS}:
        return
    plan = turns.QUICK if options.quick else turns.FULL
    if options.duration:
        plan = replace(plan, duration=options.duration)
    peers = _available(ALL, names, results)
    echoes = EchoTurns(peers, cores, plan, limit - SPARE_DESCRIPTORS, results)
    if parts & {"echo", "handshakes"}:
        echoes.loads(parts)
    if "idle" in parts:
        echoes.memory()


def _push(
    options: argparse.Namespace,
    cores: Cores,
    parts: set[str],
    names: set[str],
    limit: int,
    results: Results,
) -> None:
    if not parts & {*PUSH_PARTS}:
        return
    plan = push_turns.QUICK if options.quick else push_turns.FULL
    if options.duration:
        plan = replace(plan, seconds=options.duration)
    pushers = _available(PUSHERS, names, results)
    pushes = PushTurns(pushers, cores, plan, limit - SPARE_DESCRIPTORS, results)
    if parts & {"fanout", "flood"}:
        pushes.loads(parts)
    if "listeners" in parts:
        pushes.memory()
    for part, measure in (
        ("channels", pushes.channels),
        ("replay", pushes.replay),
        ("redis", pushes.redis),
    ):
        if part in parts:
            measure()


def _write(options: argparse.Namespace, cores: Cores, results: Results) -> int:
    about = report.environment(cores)
    output: Path = options.output
    output.mkdir(parents=True, exist_ok=True)
    report.write_json(output / "results.json", results, about)
    try:
        picture.draw_echoes(output / "results.png", results)
        picture.draw_pushes(output / "broadcasts.png", results)
        if options.docs:
            page.write(results, about)
    except ImportError as exc:
        results.note(f"no picture: {exc}")
    tables = report.text(results, about)
    (output / "results.txt").write_text(tables, encoding="utf-8")
    print(tables)
    return 0 if results.samples else 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure flask_sockets2 beside its peers."
    )
    parser.add_argument("--quick", action="store_true", help="some minutes, to see it run")
    parser.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        choices=[*PARTS, *SERVERS],
        help=f"measure this part ({', '.join(PARTS)}) or this server "
        f"({', '.join(SERVERS)}); may be repeated",
    )
    parser.add_argument("--duration", type=float, metavar="S", help="seconds of each window")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", default=HERE / "results", help="for the results"
    )
    parser.add_argument(
        "--docs", action="store_true", help="put figures and pictures into docs/measurements.rst"
    )
    return parser.parse_args(arguments)


def _raise_descriptor_limit() -> int:
    """Take all the descriptors that this process may have; the servers inherit them."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = 65536
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def _available(peers: Sequence[Kind], names: set[str], results: Results) -> list[Kind]:
    """Return the servers that can be measured here, and note the others."""
    found = []
    for peer in peers:
        if peer.name not in names:
            continue
        reason = peer.missing()
        if reason is None:
            found.append(peer)
        else:
            results.note(f"{peer.title} is left out: {reason}")
    return found


if __name__ == "__main__":
    sys.exit(main())
