"""``python -m tests.rolling``: see the package."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from .deployment import ACTS, OF_PROXIES, PROXIES, deployed
from .run import Options, Report, roll

_SHOWN = 20  # faults


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m tests.rolling", description=sys.modules[__name__].__doc__
    )
    parser.add_argument("--proxy", choices=PROXIES, nargs="+", default=PROXIES)
    parser.add_argument("--act", choices=ACTS, nargs="+", default=list(ACTS))
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=4.0, help="messages published in a second")
    parser.add_argument("--graceful-timeout", type=int, default=30, help="seconds, of gunicorn")
    parser.add_argument("--logs", type=Path, help="folder for the logs of gunicorn")
    args = parser.parse_args()
    reports = []
    for proxy in args.proxy:
        for act in args.act:
            if proxy == "none" and act in OF_PROXIES:
                continue
            options = Options(proxy, act, args.clients, rate=args.rate)
            with (
                tempfile.TemporaryDirectory() as folder,
                deployed(
                    proxy,
                    Path(folder),
                    clients=args.clients,
                    graceful_timeout=args.graceful_timeout,
                ) as deployment,
            ):
                reports.append(roll(options, deployment))
            _show(reports[-1], args.logs)
    print("  ".join(reports[0].row()))
    for report in reports:
        print("  ".join(f"{value:>{len(name)}}" for name, value in report.row().items()))
    return any(report.faults() or report.killed for report in reports)


def _show(report: Report, logs: Path | None) -> None:
    if logs is not None:
        logs.mkdir(parents=True, exist_ok=True)
        name = f"{report.options.proxy}-{report.options.act}.log"
        (logs / name).write_text(report.log)
    print(report)
    for fault in [*report.faults(), *report.killed][:_SHOWN]:
        print(fault)
    print(flush=True)


if __name__ == "__main__":
    sys.exit(main())
