"""Run the benchmark, print its tables and write its results.

``python -m benchmarks [--quick] [--only NAME] [--duration S] [--output DIR]``
"""

from __future__ import annotations

import argparse
import resource
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from . import picture, report
from .measure import Cores
from .results import Results
from .servers import ALL, HERE, Peer
from .turns import FULL, QUICK, Turns

SPARE_DESCRIPTORS = 200  # for everything that is not a connection


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; return the exit code: 1 where there is nothing to show."""
    options = _options(arguments)
    plan = QUICK if options.quick else FULL
    if options.duration:
        plan = replace(plan, duration=options.duration)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    limit = _raise_descriptor_limit()
    cores = Cores.choose()
    results = Results()
    if cores.server == cores.client:
        results.note("there is one core only: the load client and the servers share it")

    peers = _available(options.only, results)
    turns = Turns(peers, cores, plan, limit - SPARE_DESCRIPTORS, results)
    turns.loads()
    turns.memory()

    about = report.environment(cores)
    output: Path = options.output
    output.mkdir(parents=True, exist_ok=True)
    report.write_json(output / "results.json", results, about)
    try:
        picture.draw(output / "results.png", results, peers)
    except ImportError as exc:
        results.note(f"no picture: {exc}")
    tables = report.text(results, about, peers)
    (output / "results.txt").write_text(tables, encoding="utf-8")
    print(tables)
    return 0 if results.samples else 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure flask_sockets2 beside its peers."
    )
    parser.add_argument("--quick", action="store_true", help="about a minute, to see it run")
    parser.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        choices=[peer.name for peer in ALL],
        help="measure this server; may be repeated: " + ", ".join(peer.name for peer in ALL),
    )
    parser.add_argument("--duration", type=float, metavar="S", help="seconds of each window")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", default=HERE / "results", help="for the results"
    )
    return parser.parse_args(arguments)


def _raise_descriptor_limit() -> int:
    """Take all the descriptors that this process may have; the servers inherit them."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = 65536
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def _available(only: Sequence[str] | None, results: Results) -> list[Peer]:
    """Return the servers that can be measured here, and note the others."""
    peers = []
    for peer in ALL:
        if only and peer.name not in only:
            continue
        reason = peer.missing()
        if reason is None:
            peers.append(peer)
        else:
            results.note(f"{peer.title} is left out: {reason}")
    return peers


if __name__ == "__main__":
    sys.exit(main())
