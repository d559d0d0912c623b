"""What is left when all clients have gone: nothing of theirs."""

from __future__ import annotations

import re
import urllib.request
from collections import Counter
from collections.abc import Callable

import psutil
import redis

from tests.processes import Server, wait_until

from .checker import Fault

__all__ = ["client_connections", "lasting_keys", "left_behind", "open_in_metrics"]

# Of a worker beyond those of a new one: 32 connections to the broker at once, that of the listener,
# files of metrics, and the hubs of threads.
_MOST_DESCRIPTORS = 64
_OPEN = re.compile(r"^flask_sockets2_(?:connections\{.*\}|streams) ([0-9.]+)$", re.MULTILINE)
_ROOMS = 3


def left_behind(
    server: Server, workers: Callable[[], list[psutil.Process]], fresh: int, timeout: float
) -> list[Fault]:
    """Wait until nothing is left; what still is then is a fault.

    :param fresh: descriptors that a worker had before any client came.
    :param timeout: seconds for each: leases of processes that were killed end within 15.
    """
    faults = []

    def wait(kind: str, what: str, count: Callable[[], int], most: int = 0) -> None:
        try:
            wait_until(lambda: count() <= most, what, timeout)
        except TimeoutError:
            faults.append(Fault(kind, "the server", "", f"{count()} {what}, when all have gone"))

    wait("left behind", "connections to clients", lambda: _connected(server, workers()))
    wait(
        "left behind",
        "connections in the metrics",
        lambda: open_in_metrics(_get(server, "/metrics")),
    )
    wait("left behind", "people", lambda: _present(server))
    worst = lambda: max(worker.num_fds() for worker in workers())  # noqa: E731
    wait("descriptors", "descriptors of a worker", worst, fresh + _MOST_DESCRIPTORS)
    if faults and faults[-1].kind == "descriptors":
        faults += [
            Fault("descriptors", str(each.pid), "", _descriptors(each)) for each in workers()
        ]
    return faults


def _descriptors(process: psutil.Process) -> str:
    """What a process has open, and how many of each."""
    sockets = Counter(f"{c.status} {c.laddr} {c.raddr}" for c in process.net_connections("all"))
    files = Counter(each.path for each in process.open_files())
    return f"{dict(files)}, {dict(sockets)}"


def client_connections(process: psutil.Process, port: int) -> int:
    """Return how many connections a process has at a port that it listens to."""
    return sum(
        connection.laddr.port == port
        for connection in process.net_connections("tcp")
        if connection.laddr and connection.status != psutil.CONN_LISTEN
    )


def lasting_keys(broker: redis.Redis) -> list[str]:
    """Return the keys that never expire."""
    return sorted(key.decode() for key in broker.scan_iter(count=1000) if broker.ttl(key) == -1)


def _connected(server: Server, workers: list[psutil.Process]) -> int:
    return sum(client_connections(worker, server.port) for worker in workers)


def open_in_metrics(text: str) -> int:
    """Return how many WebSockets and event streams are open, by Prometheus' text."""
    found = _OPEN.findall(text)
    assert found, f"expected flask_sockets2_streams in the metrics, got {text[:500]!r}"
    return round(sum(map(float, found)))


def _present(server: Server) -> int:
    return sum(_get(server, f"/people/{room}").count('"') // 2 for room in range(_ROOMS))


def _get(server: Server, path: str) -> str:
    with urllib.request.urlopen(server.url(path), timeout=10) as response:
        return str(response.read(), "utf-8")
