"""The table of ``flask sockets top``: the reports of all processes, and the rates between them."""

from __future__ import annotations

from collections import Counter
from threading import Lock
from time import monotonic
from typing import Any, NamedTuple

from ..application.process_reports import REPORTS, Report, look
from ..brokers.base import Broker, Message, Position
from .doctor import printable

__all__ = ["INTERVAL", "Top"]

INTERVAL = 1.0  # seconds
_SILENT = 3.5  # seconds after which a process that does not answer is gone
_MOST = 10_000  # processes

_RATES = {
    "IN/S": "messages_in",
    "OUT/S": "messages_out",
    "PUBLISHED/S": "published",
    "DELIVERED/S": "delivered",
}
_COUNTS = {
    "DROPPED": "dropped",
    "TOO SLOW": "slow_disconnects",
    "GAPS": "gaps",
    "REFUSED": "refused",
    "EVICTED": "evicted",
}
_HEADS = ("WORKER", "WEBSOCKETS", "STREAMS", "REQUESTS", "CHANNELS", "BUFFERED", *_RATES, *_COUNTS)


_SEVERAL_KEYS = """\
These workers have {} SECRET_KEYs, so each refuses pages and sessions of the others. If each worker
makes its own, for example with os.urandom() at import, set one key for all. If a rolling restart is
changing the key, the new workers need the old key in SECRET_KEY_FALLBACKS."""


class _Row(NamedTuple):
    """The newest report of a process.

    :ivar heard: monotonic time at which the report came.
    :ivar rates: growth of each count a second; empty for the first report.
    """

    report: Report
    heard: float
    rates: dict[str, float]


class Top:
    """Collects the reports of all processes; the receiver of its broker."""

    def __init__(self) -> None:
        self._begun = False
        self._rows: dict[str, _Row] = {}
        self._lock = Lock()  # guards _rows

    def look(self, broker: Broker) -> None:
        """Ask all processes for a report; the reports come a moment later.

        :param broker: delivers the reports to this object.
        :raises BrokerError: if the broker cannot be reached.
        """
        if not self._begun:
            broker.subscribe(REPORTS)
            self._begun = True
        look(broker)

    # -- the receiver ----------------------------------------------------------------------

    def deliver(self, message: Message) -> None:
        report = Report.parse(message.data)
        if report is None:
            return
        with self._lock:
            last = self._rows.get(report.process)
            if last is None and len(self._rows) >= _MOST:
                return
            rates = {} if last is None else _rates(last.report, report)
            self._rows[report.process] = _Row(report, monotonic(), rates)

    def missed(self, channel: str, position: Position) -> None:
        pass  # the next report comes in a second

    def resumed(self, channel: str) -> None:
        pass

    def reconnected(self) -> None:
        pass

    # -- what is shown ---------------------------------------------------------------------

    def _alive(self) -> list[_Row]:
        now = monotonic()
        with self._lock:
            self._rows = {n: row for n, row in self._rows.items() if now - row.heard < _SILENT}
            rows = list(self._rows.values())
        return sorted(rows, key=lambda row: (row.report.host, row.report.pid))

    def as_dict(self) -> dict[str, Any]:
        """Return the report and rates of each worker, and the sums."""
        rows = self._alive()
        counts: Counter[str] = Counter()
        rates: dict[str, float] = {}
        for row in rows:
            counts.update(row.report.counts)
            for name, rate in row.rates.items():
                rates[name] = round(rates.get(name, 0.0) + rate, 1)
        return {
            "workers": [
                {
                    "host": row.report.host,
                    "pid": row.report.pid,
                    "connections": row.report.connections,
                    "streams": row.report.streams,
                    "requests": row.report.requests,
                    "channels": row.report.channels,
                    "buffered": row.report.buffered,
                    "counts": row.report.counts,
                    "rates": row.rates,
                }
                for row in rows
            ],
            "connections": sum(row.report.connections for row in rows),
            "streams": sum(row.report.streams for row in rows),
            "requests": sum(row.report.requests for row in rows),
            "buffered": sum(row.report.buffered for row in rows),
            "counts": dict(counts),
            "rates": rates,
            "secret_keys": len({row.report.key for row in rows if row.report.key}),
        }

    def table(self) -> str:
        """Return the table as text for a terminal."""
        known = self.as_dict()
        if not known["workers"]:
            return (
                "No worker has answered. Workers answer from their first WebSocket or event stream "
                "on, if SOCKETS_BROKER_URL and SOCKETS_CHANNEL_PREFIX have the same values as here."
            )
        lines = [_HEADS, *(_line(_name(worker), worker) for worker in known["workers"])]
        # The same channel may be in several workers, so a sum would count it twice.
        lines.append(_line(f"all {len(known['workers'])}", {**known, "channels": ""}))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        first = widths.pop(0)
        table = [
            "  ".join([f"{name:{first}}", *map(str.rjust, cells, widths)]).rstrip()
            for name, *cells in lines
        ]
        if known["secret_keys"] > 1:
            table += ["", _SEVERAL_KEYS.format(known["secret_keys"])]
        return "\n".join(table)


def _rates(before: Report, now: Report) -> dict[str, float]:
    seconds = now.at - before.at
    if seconds <= 0:
        return {}
    return {
        name: round((count - before.counts.get(name, 0)) / seconds, 1)
        for name, count in now.counts.items()
    }


def _name(worker: dict[str, Any]) -> str:
    # A report from another program must not send control characters to the terminal.
    return f"{printable(worker['host'][:64])}:{worker['pid']}"


def _line(name: str, of: dict[str, Any]) -> tuple[str, ...]:
    rates = (f"{of['rates'].get(field, 0):.1f}" for field in _RATES.values())
    counts = (str(of["counts"].get(field, 0)) for field in _COUNTS.values())
    return (
        name,
        str(of["connections"]),
        str(of["streams"]),
        str(of["requests"]),
        str(of["channels"]),
        _size(of["buffered"]),
        *rates,
        *counts,
    )


def _size(size: int) -> str:
    """Return bytes as top and free show them, in MiB."""
    return f"{size / 2**20:.1f}M" if size else "0"
