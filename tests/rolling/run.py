"""One run: the deployment, its clients, who publishes, and what is done to it."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from flask_sockets2 import Publisher
from tests.soak.checker import Fault, Sent, check

from .clients import CHANNEL, Client, Echo, EventStream, Outage, Site, swarm
from .deployment import ACTS, Deployment

__all__ = ["Options", "Report", "roll"]

_RAMP = 250  # clients that connect in a second at the beginning
_RECOVERY = 60.0  # seconds in which all are connected and level
_POLL = 0.05  # seconds

_KILLED = re.compile(
    r"WORKER TIMEOUT|Worker graceful timeout|was sent SIG(?!TERM)|exited with code"
)


@dataclass(frozen=True)
class Options:
    """What to run.

    :ivar proxy: its name, for the report.
    :ivar act: one of :data:`ACTS`.
    :ivar rate: messages published in a second.
    :ivar calm: seconds of publishing before and after, and of nothing at the end.
    """

    proxy: str
    act: str
    clients: int
    echoes: int = 10
    rate: float = 4.0
    calm: float = 1.0


@dataclass
class Report:
    """What came of it.

    :ivar took: seconds until what was to end had ended.
    :ivar lag: seconds that the clients' own loop was late, at most.
    :ivar busy: cores that this process used while clients came back.
    :ivar starved: share of that time in which it had work to do and no core to do it on.
    :ivar log: of gunicorn.
    """

    options: Options
    clients: list[Client] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)
    took: float = 0.0
    lag: float = 0.0
    busy: float = 0.0
    starved: float = 0.0
    log: str = ""

    @property
    def outages(self) -> list[Outage]:
        return [outage for client in self.clients for outage in client.outages]

    def faults(self) -> list[Fault]:
        """Messages that were lost, doubled and so on; see :func:`check`."""
        records = [client.record for client in self.clients if not isinstance(client, Echo)]
        return check(self.sent, records)

    @property
    def gaps(self) -> int:
        records = [client.record.events for client in self.clients]
        return sum(event.kind == "gap" for events in records for event in events)

    @property
    def failures(self) -> Counter[str]:
        """Attempts to come back that were in vain."""
        return Counter(why for outage in self.outages for why in outage.failures)

    @property
    def twice(self) -> int:
        """Connections that ended so soon after another that the backoff was past its first step."""
        return sum(not outage.first for outage in self.outages)

    @property
    def away(self) -> int:
        """Clients that have not come back."""
        return sum(not client.settled for client in self.clients)

    @property
    def dead(self) -> int:
        """Answers after which an EventSource would stay away."""
        return sum(client.dead for client in self.clients if isinstance(client, EventStream))

    @property
    def killed(self) -> list[str]:
        """Lines of the log about workers that did not end by themselves."""
        return [line for line in self.log.splitlines() if _KILLED.search(line)]

    def waits(self, kind: type[Client] = Client) -> tuple[list[float], list[float]]:
        """Seconds from the end to being level, and how many of them are not the backoff's."""
        outages = [o for c in self.clients if isinstance(c, kind) for o in c.outages]
        back = [(o, o.level - o.ended) for o in outages if o.level is not None]
        return [wait for _, wait in back], [wait - o.step for o, wait in back]

    def row(self) -> dict[str, str]:
        """What matters, for a table."""
        waits, beyond = self.waits()
        faults = Counter(fault.kind for fault in self.faults())
        median_wait, worst = (median(waits), max(waits)) if waits else (0, 0)
        return {
            "  proxy": self.options.proxy,
            "      act": self.options.act,
            "clients": str(len(self.clients)),
            "ended": str(len(self.outages)),
            "median s": f"{median_wait:.2f}",
            "worst s": f"{worst:.2f}",
            "beyond the step s": f"{max(beyond, default=0):.2f}",
            "no core %": f"{100 * self.starved:.0f}",
            "in vain": str(self.failures.total()),
            "again": str(self.twice),
            "lost": str(faults["lost"] + faults["behind"] + self.gaps),
            "doubled": str(faults["doubled"]),
            "killed": str(len(self.killed)),
            "over after s": f"{self.took:.1f}",
        }

    def __str__(self) -> str:
        faults = Counter(fault.kind for fault in self.faults())
        rows: dict[str, object] = {
            "proxy, act, clients": f"{self.options.proxy}, {self.options.act}, {len(self.clients)}",
            "messages published": len(self.sent),
            "messages echoed": sum(c.echoed for c in self.clients if isinstance(c, Echo)),
            "connections ended": _listed(Counter(outage.how for outage in self.outages)),
            "ended again within 5 s": self.twice,
            "attempts in vain": _listed(self.failures),
            "event streams given up": self.dead,
            "not back": self.away,
            "gaps told": self.gaps,
            "faults": _listed(faults),
            "workers killed": len(self.killed),
            "over after": f"{self.took:.1f} s",
            "tracebacks in the log": self.log.count("Traceback (most recent call last)"),
            "clients' own process": f"ran {self.busy:.0%} of the time, waited for a core"
            f" {self.starved:.0%} of it, was late by up to {self.lag:.2f} s",
        }
        for kind in sorted({type(client) for client in self.clients}, key=lambda each: each.kind):
            waits, beyond = self.waits(kind)
            rows[f"{kind.kind}: level after"] = _spread(waits)
            rows[f"{kind.kind}: beyond the step"] = _spread(beyond)
        return "\n".join(f"{name:32}{value}" for name, value in rows.items())


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name}: {counts[name]}" for name in sorted(counts)) or "none"


def _spread(times: list[float]) -> str:
    if not times:
        return "-"
    times = sorted(times)
    shares = median(times), times[int(len(times) * 0.99)], times[-1]
    return "median {:.2f} s, 99 % {:.2f} s, worst {:.2f} s".format(*shares)


def roll(options: Options, deployment: Deployment) -> Report:
    """Let clients come, do it, and see how they fare; they are gone afterwards."""
    begin = len(deployment.output)
    report = asyncio.run(_roll(options, deployment))
    report.log = deployment.output[begin:]
    return report


async def _roll(options: Options, deployment: Deployment) -> Report:
    site = Site(deployment.port, deployment.context)
    report = Report(options, list(swarm(site, options.clients, options.echoes)))
    tasks = [asyncio.create_task(_watch_lag(report))]
    stop = threading.Event()
    publishing = asyncio.create_task(
        asyncio.to_thread(_publish, deployment, site, options.rate, stop, report.sent)
    )
    try:
        for client in report.clients:
            tasks.append(asyncio.create_task(client.run()))
            await asyncio.sleep(1 / _RAMP)
        await _until(lambda: all(client.connected for client in report.clients))
        assert not report.outages, f"not all could connect: {report}"
        await asyncio.sleep(options.calm)
        report.lag = 0.0
        begun, used, waited = time.monotonic(), time.process_time(), _waited_for_a_core()
        await asyncio.to_thread(ACTS[options.act], deployment)
        report.took = time.monotonic() - begun
        await asyncio.sleep(options.calm)
        await _until(lambda: not report.away)
        took = time.monotonic() - begun
        report.busy = (time.process_time() - used) / took
        report.starved = (_waited_for_a_core() - waited) / took
        stop.set()
        await publishing
        await _until(lambda: all(_is_level(client) for client in report.clients))
        await asyncio.sleep(options.calm)  # what should not come would come now
    finally:
        stop.set()
        for client in report.clients:
            client.record.connected = client.connected
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await publishing
    return report


def _is_level(client: Client) -> bool:
    return isinstance(client, Echo) or client.offset >= client.site.newest


async def _until(condition: Callable[[], bool]) -> None:
    """Wait; what never comes is found in the report."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_RECOVERY):
            while not condition():
                await asyncio.sleep(_POLL)


def _waited_for_a_core() -> float:
    """Seconds that this thread was ready to run and did not: the machine was busy with others."""
    with suppress(OSError):
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    return 0.0  # no Linux


async def _watch_lag(report: Report) -> None:
    """Note how late this loop is: what clients wait for that is no server's doing."""
    while True:
        due = time.monotonic() + _POLL
        await asyncio.sleep(_POLL)
        report.lag = max(report.lag, time.monotonic() - due)


def _publish(
    deployment: Deployment, site: Site, rate: float, stop: threading.Event, sent: list[Sent]
) -> None:
    """Publish from outside of the server, until told to stop."""
    serial = 0
    with Publisher(deployment.broker_url) as publisher:
        while not stop.wait(1 / rate):
            serial += 1
            message = {"data": json.dumps([serial, time.time()])}
            position = publisher.publish(CHANNEL, message)
            site.newest = position.offset
            sent.append(Sent(CHANNEL, 0, serial, position.epoch, position.offset))
