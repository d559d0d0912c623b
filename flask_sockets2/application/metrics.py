"""Prometheus metrics of the counters (``SOCKETS_METRICS_ROUTE``, extra ``metrics``).

If the server has several processes, set ``PROMETHEUS_MULTIPROC_DIR`` to an empty directory, as
prometheus_client requires. Every process writes its counts there, once a second and when it ends,
and any process answers for all.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    generate_latest,
    multiprocess,
)

from ..stats import Counters

__all__ = ["Metrics"]

logger = logging.getLogger("flask_sockets2.metrics")

_INTERVAL = 1.0  # seconds between two writes of a process's counts for the others
_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
_PREFIX = "flask_sockets2_"

_ROUTES = {
    "opened": ("connections_opened", "WebSockets accepted"),
    "messages_in": ("messages_received", "Messages from clients"),
    "messages_out": ("messages_sent", "Messages sent by handlers"),
    "bytes_in": ("received_bytes", "Bytes from clients, frames and all"),
    "bytes_out": ("sent_bytes", "Bytes of messages sent by handlers"),
    "slowed": ("slowed", "Times that a client sent too fast and had to wait"),
}
_CHANNELS = {
    "published": ("channel_published", "Messages published"),
    "publish_errors": ("channel_publish_errors", "Messages that could not be published"),
    "delivered": ("channel_delivered", "Messages handed to clients, one for each"),
    "bytes_out": ("channel_sent_bytes", "Bytes of those"),
    "dropped": ("channel_dropped", "Messages that a slow client lost by drop_oldest"),
    "coalesced": ("channel_coalesced", "Messages whose place a newer one with their key took"),
    "slow_disconnects": ("channel_slow_disconnects", "Clients closed for being too slow"),
    "replays": ("channel_replays", "Subscriptions that began with messages of the history"),
    "replayed": ("channel_replayed", "Messages of the history that were sent so"),
    "gaps": ("channel_gaps", "Times that a client was told of lost messages"),
}


class Metrics:
    """Exports the counters of one application to Prometheus.

    :param counters: returns the counters of this process.
    :param held: returns the bytes that connections hold.
    :param requests: returns the number of HTTP requests under way in this process.
    :param cut_off: returns the number of requests cut off since the process began.
    :raises RuntimeError: if ``PROMETHEUS_MULTIPROC_DIR`` is no directory.
    """

    def __init__(
        self,
        counters: Callable[[], Counters],
        held: Callable[[], int],
        requests: Callable[[], int],
        cut_off: Callable[[], int],
    ) -> None:
        shared = os.environ.get(_DIRECTORY)
        if shared is not None and not os.path.isdir(shared):
            raise RuntimeError(f"{_DIRECTORY} is {shared!r}, and that is no directory; make one")
        self._counters = counters
        self._held = held
        self._under_way = requests
        self._cut_off = cut_off
        self._registry = CollectorRegistry()
        self._lock = threading.Lock()  # guards _passed_on
        self._passed_on: dict[tuple[str, str, str], int] = {}
        self._warned = False
        self._thread_of = 0  # the process that writes its counts regularly
        self._routes = {field: self._counter(*names, "route") for field, names in _ROUTES.items()}
        self._channels = {
            field: self._counter(*names, "channel") for field, names in _CHANNELS.items()
        }
        self._reconnects = Counter(
            f"{_PREFIX}broker_reconnects",
            "Times that the broker was out of reach and is back",
            registry=self._registry,
        )
        self._streams_opened = Counter(
            f"{_PREFIX}streams_opened", "Event streams begun", registry=self._registry
        )
        self._streams = Gauge(
            f"{_PREFIX}streams",
            "Event streams that are open",
            registry=self._registry,
            multiprocess_mode="livesum",
        )
        self._requests = Gauge(
            f"{_PREFIX}requests",
            "HTTP requests under way",
            registry=self._registry,
            multiprocess_mode="livesum",
        )
        self._requests_cut = Counter(
            f"{_PREFIX}requests_cut",
            "HTTP requests cut off since their clients were too slow",
            registry=self._registry,
        )
        self._refused = self._counter("refused", "Requests for a connection refused", "limit")
        self._disconnected = Counter(
            f"{_PREFIX}disconnected",
            "Connections ended since their user was disconnected",
            registry=self._registry,
        )
        self._evicted = Counter(
            f"{_PREFIX}evicted",
            "Connections ended since all of them together held too much",
            registry=self._registry,
        )
        self._buffered = Gauge(
            f"{_PREFIX}buffered_bytes",
            "Bytes that connections hold",
            registry=self._registry,
            multiprocess_mode="livesum",
        )
        self._connections = Gauge(
            f"{_PREFIX}connections",
            "WebSockets that are open",
            ["route"],
            registry=self._registry,
            multiprocess_mode="livesum",
        )

    def _counter(self, name: str, documentation: str, label: str) -> Counter:
        return Counter(f"{_PREFIX}{name}", documentation, [label], registry=self._registry)

    def start(self) -> None:
        """Write the counts regularly if the server may have other processes."""
        if _DIRECTORY in os.environ and self._thread_of != os.getpid():
            self._thread_of = os.getpid()
            atexit.register(self.update)
            threading.Thread(target=self._run, name="flask_sockets2 metrics", daemon=True).start()

    def _run(self) -> None:
        stop = threading.Event()  # never set: the thread is a daemon
        while not stop.wait(_INTERVAL):
            self.update()

    def forked(self) -> None:
        """Start at 0 in a forked child."""
        self._lock = threading.Lock()
        self._passed_on.clear()

    def warn_of_processes(self) -> None:
        """Warn once that the metrics cover only one of several processes."""
        if _DIRECTORY not in os.environ and not self._warned:
            self._warned = True
            logger.warning(
                "this server has several workers, and %s answers for one of them only; set the "
                "environment variable %s to an empty directory before the server starts",
                "SOCKETS_METRICS_ROUTE",
                _DIRECTORY,
            )

    def update(self) -> None:
        """Pass the growth since the last call on to prometheus_client."""
        with self._lock:
            counters = self._counters()
            for rule, route in list(counters.routes.items()):
                for field, metric in self._routes.items():
                    self._pass_on(metric, "route", field, rule, getattr(route, field))
                self._connections.labels(rule).set(route.opened - route.closed)
            for prefix, channel in list(counters.channels.items()):
                for field, metric in self._channels.items():
                    self._pass_on(metric, "channel", field, prefix, getattr(channel, field))
            self._pass_on(self._reconnects, "", "reconnects", "", counters.broker_reconnects)
            self._pass_on(self._streams_opened, "", "streams", "", counters.streams_opened)
            self._streams.set(counters.streams_opened - counters.streams_closed)
            self._requests.set(self._under_way())
            self._pass_on(self._requests_cut, "", "requests_cut", "", self._cut_off())
            self._pass_on(self._disconnected, "", "disconnected", "", counters.disconnected)
            self._pass_on(self._evicted, "", "evicted", "", counters.evicted)
            self._buffered.set(self._held())
            for limit, times in counters.refused.items():
                self._pass_on(self._refused, "limit", "refused", limit, times)

    def _pass_on(self, metric: Counter, kind: str, field: str, label: str, value: int) -> None:
        key = (kind, field, label)
        grown = value - self._passed_on.get(key, 0)
        if grown or key not in self._passed_on:
            self._passed_on[key] = value
            (metric.labels(label) if label else metric).inc(grown)

    def text(self) -> tuple[bytes, str]:
        """Return the metrics of all processes in Prometheus' text format, and its content type."""
        self.update()
        registry = self._registry
        if _DIRECTORY in os.environ:
            _forget_dead(Path(os.environ[_DIRECTORY]))
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry), CONTENT_TYPE_LATEST


def _forget_dead(directory: Path) -> None:
    """Remove killed processes from the gauges, so their connections no longer count."""
    for path in directory.glob("gauge_live*_*.db"):
        match = re.search(r"_(\d+)\.db$", path.name)
        if match and not _is_alive(int(match[1])):
            multiprocess.mark_process_dead(int(match[1]))  # type: ignore[no-untyped-call]


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
