"""``python -m tests.attacks``: see the package."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .attacks import ATTACKS
from .run import Outcome, attack

HEADER = ("attack", "echo, ms", "page, ms", "failed", "before", "peak", "after, MiB", "")


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m tests.attacks", description=sys.modules[__name__].__doc__
    )
    parser.add_argument(
        "--seconds", type=float, default=8.0, help="that an attack takes, or longer if it has to"
    )
    parser.add_argument("--only", nargs="+", metavar="WORD", help="in the names of attacks")
    parser.add_argument("--package", type=Path, help="folder of another flask_sockets2 to attack")
    args = parser.parse_args()
    names = [
        name
        for name in ATTACKS
        if not args.only or any(word.lower() in name.lower() for word in args.only)
    ]
    _print(HEADER)
    killed = False
    for name in names:
        outcome = attack(name, args.seconds, args.package)
        killed |= outcome.killed
        _print((name, *_row(outcome)))
    return int(killed)


def _row(outcome: Outcome) -> tuple[str, ...]:
    memory = (outcome.before, outcome.peak, outcome.after)
    if outcome.stopped is not None:
        remark = f"stopped in {outcome.stopped:.1f} s"
    else:
        remark = "worker killed" if outcome.killed else ""
    lost = "lost" if outcome.stopped is None else "-"
    return (
        lost if outcome.echo is None else f"{outcome.echo * 1000:.0f}",
        f"{'>' * outcome.waiting}{outcome.page * 1000:.0f}",
        str(outcome.failed),
        *(f"{size / 2**20:.0f}" for size in memory),
        remark,
    )


def _print(row: tuple[str, ...]) -> None:
    first, *others = row
    print(f"{first:42}", *(f"{value:>10}" for value in others), flush=True)


if __name__ == "__main__":
    sys.exit(main())
