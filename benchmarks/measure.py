"""The measurements: a server, a load, and what both of them cost meanwhile."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import psutil

from . import handshakes
from .exchange import Exchange
from .load import Load, LoadError, Window, check_echo
from .servers import Server

Sample = dict[str, float]
"""One measurement, by the names that the JSON file has.

``per_second``, of messages or handshakes; ``cpu_us`` and ``client_us``, microseconds of CPU for one
of them, of the server and of the load client; ``p50_ms`` and ``p99_ms``, of the latency;
``server_busy`` and ``client_busy``, the share of each core that was not idle; ``others``, the share
of the server's core that other processes had; ``unanswered``, the share of close frames without an
answer; ``kib`` of memory per idle connection, of which ``connections`` took ``open_seconds``.

Of broadcasts a message is one delivery, of ``clients`` for each that was published; ``p50_ms`` and
``p99_ms``, of the time from a message's first delivery to its last; ``backlog``, how many listeners
had something to read when the client looked; ``per_cpu_second``, deliveries per second of the
server's CPU; ``channels``, that there were; ``seconds``, until all who were ``behind`` so many
messages were level.

Of event streams also ``redis_us``, the CPU of Redis for one delivery, and ``redis_connections``,
which the server has while they are open.

Of pages ``load_ms`` and ``shown_ms``, from the navigation to the end of the load and to the first
paint; ``early``, whether the stylesheet was fetched for a response 103.
"""

OPEN_TIMEOUT = 30.0  # seconds, for all connections of a load
REPLY_TIMEOUT = 20.0  # seconds, for the message that is compared byte by byte
MIN_MESSAGES = 50  # in a window, where its limit allows
WINDOW_LIMIT = 4  # times the duration: where a window ends that has too few messages
WARM_UP_LIMIT = 3.0  # seconds
WARM_CONNECTIONS = 20  # opened and closed before the memory is read
MEMORY_SETTLES = 1.0  # seconds between the last connection and the reading


@dataclass(frozen=True, slots=True)
class Echo:
    """A closed loop of messages: each connection has one in flight.

    :param size: bytes of payload.
    :param binary: False: text.
    """

    name: str
    title: str
    size: int
    connections: int
    binary: bool

    def exchange(self, parsed: bool) -> Exchange:
        """Return the message; of ASCII, so that it is also text."""
        return Exchange.of(b"x" * self.size, binary=self.binary, parsed=parsed)


@dataclass(frozen=True, slots=True)
class Cores:
    """The cores of the server and of the load client, by number, and all that there are."""

    server: int
    client: int
    allowed: frozenset[int]

    @classmethod
    def choose(cls) -> Cores:
        """Take two that this process may use, far apart, and stay on the client's."""
        allowed = sorted(os.sched_getaffinity(0))
        cores = cls(server=allowed[-1], client=allowed[0], allowed=frozenset(allowed))
        os.sched_setaffinity(0, {cores.client})
        return cores


class Meter:
    """What a window costs the server and both cores."""

    def __init__(self, server: Server, cores: Cores) -> None:
        self._server = server
        self._cores = cores
        self._busy = self._read()
        self._cpu = server.cpu()

    def _read(self) -> dict[int, tuple[float, float]]:
        """Return busy and total seconds of both cores since the machine started."""
        cores = psutil.cpu_times(percpu=True)
        return {n: _busy(cores[n]) for n in (self._cores.server, self._cores.client)}

    def sample(self, window: Window) -> Sample:
        """Return the figures of the window that has just ended."""
        cpu = self._server.cpu() - self._cpu
        busy = {}
        for core, (used, total) in self._read().items():
            used_before, total_before = self._busy[core]
            busy[core] = (used - used_before) / max(total - total_before, 1e-9)
        if not window.messages:
            raise LoadError(f"no message was answered in {window.seconds:.1f} s")
        return {
            "per_second": window.messages / window.seconds,
            "cpu_us": cpu / window.messages * 1e6,
            "client_us": window.cpu / window.messages * 1e6,
            "p50_ms": window.percentile(0.50) * 1e3,
            "p99_ms": window.percentile(0.99) * 1e3,
            "server_busy": busy[self._cores.server],
            "client_busy": busy[self._cores.client],
            "others": max(busy[self._cores.server] - cpu / window.seconds, 0.0),
        }


def _busy(times: psutil._ntp.scputimes) -> tuple[float, float]:
    """Return busy and total seconds; guests are in user already, stolen time is nobody's."""
    values = times._asdict()
    total = sum(values.get(key, 0.0) for key in ("user", "nice", "system", "irq", "softirq"))
    return total, total + times.idle + values.get("iowait", 0.0)


def echo(server: Server, cores: Cores, scenario: Echo, duration: float) -> Sample:
    """Measure one window of echoes.

    :param duration: seconds.
    :raises LoadError: the server did not echo.
    :raises ServerError: it died.
    """
    exchange = scenario.exchange(server.peer.parsed)
    check_echo(server.port, exchange, REPLY_TIMEOUT)
    with Load(server.port, exchange) as load:
        load.open(scenario.connections, OPEN_TIMEOUT)
        load.start()
        load.run(duration / 3, at_least=scenario.connections, at_most=WARM_UP_LIMIT)
        meter = Meter(server, cores)
        window = load.run(duration, at_least=MIN_MESSAGES, at_most=duration * WINDOW_LIMIT)
        return meter.sample(window)


def handshake(server: Server, cores: Cores, duration: float) -> Sample:
    """Measure one window of connections that open and close.

    :param duration: seconds.
    :raises LoadError: the server refused one.
    :raises ServerError: it died.
    """
    handshakes.run(server.port, duration / 3)
    server.settle()
    meter = Meter(server, cores)
    window, unanswered = handshakes.run(server.port, duration)
    return {**meter.sample(window), "unanswered": unanswered / max(window.messages, 1)}


def idle(server: Server, count: int) -> Sample:
    """Measure the memory that open connections take, each after one message.

    :param server: newly started: what it has allocated before would be used again.
    :param count: connections.
    :raises LoadError: the server refused one, or closed one.
    :raises ServerError: it died.
    """
    exchange = Exchange.of(b"x" * 32, binary=False, parsed=server.peer.parsed)
    with Load(server.port, exchange) as load:
        load.open(min(WARM_CONNECTIONS, count), OPEN_TIMEOUT)
    server.settle()
    before = server.memory()
    began = time.perf_counter()
    with Load(server.port, exchange) as load:
        load.open(count, OPEN_TIMEOUT * 2)
        seconds = time.perf_counter() - began
        load.run(MEMORY_SETTLES)
        kib = (server.memory() - before) / count / 1024
    return {"kib": kib, "connections": count, "open_seconds": seconds}
