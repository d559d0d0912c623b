"""One run: the server, its broker, who publishes, the clients, and what is done to them."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import psutil

from tests.brokers.servers import RedisServer
from tests.processes import Server, Servers, servers_in, wait_until

from . import clients, publisher
from .checker import Fault, check

__all__ = ["Options", "Report", "soak"]

APPLICATION = Path(__file__).with_name("application.py").read_text()

_RECOVERY = 40.0  # seconds after the last fault in which all clients are connected and level
_CALM = 1.0  # seconds of publishing after the last fault
_PROCESS_TIMEOUT = 60.0  # seconds for an answer of the other processes


@dataclass(frozen=True)
class Options:
    """What to run.

    :ivar rate: messages published in a second.
    :ivar workers: of the server; of several the broker is Redis, of one it is memory.
    :ivar pause: seconds between two faults on average, None for no faults.
    :ivar drop_one_in: deliveries that the server loses, by the application's own doing.
    """

    seconds: float
    clients: int
    seed: int
    channels: int = 24
    rate: float = 60.0
    workers: int = 2
    lifetime: float = 10.0
    away: float = 3.0
    pause: float | None = 2.0
    drop_one_in: int | None = None

    @property
    def names(self) -> list[str]:
        """Of the channels."""
        return [f"soak:{number}" for number in range(self.channels)]


@dataclass
class Report:
    """What came of it."""

    options: Options
    seen: clients.Seen
    published: publisher.Published
    done: Counter[str] = field(default_factory=Counter)
    recovered_in: float = 0.0
    log: str = ""

    def faults(self, needless_gaps: int = 0) -> list[Fault]:
        """What is wrong; see :func:`check`."""
        return check(self.published.sent, self.seen.records, needless_gaps=needless_gaps)

    @property
    def tracebacks(self) -> int:
        """In the log of the server."""
        return self.log.count("Traceback (most recent call last)")

    def __str__(self) -> str:
        sent, counts = self.published.sent, dict(self.seen.counts)
        acknowledged = sum(message.epoch is not None for message in sent)
        epochs = len({message.epoch for message in sent})
        rows: dict[str, object] = {
            "seed": self.options.seed,
            "messages acknowledged": acknowledged,
            "messages of unknown outcome": len(sent) - acknowledged,
            "epochs of channels": epochs,
            "deliveries": counts.pop("deliveries", 0),
            "connections": counts.pop("connections", 0),
            "connections with a replay": counts.pop("replays", 0),
            "messages replayed": counts.pop("messages replayed", 0),
            "gaps told": counts.pop("gaps told", 0),
            "done to the servers": _listed(self.done),
            "how connections ended": _listed(counts),
            "worst catch-up": f"{self.seen.worst_catch_up:.2f} s",
            "worst delay of a live message": f"{self.seen.worst_delay:.2f} s",
            "longest publish": f"{self.published.longest:.2f} s",
            "all level after": f"{self.recovered_in:.2f} s",
            "tracebacks in the log": self.tracebacks,
        }
        return "\n".join(f"{name:32}{value}" for name, value in rows.items())


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {counts[name]}" for name in sorted(counts)) or "nothing"


def soak(options: Options, folder: Path) -> Report:
    """Run it.

    :param folder: an empty directory.
    """
    broker = RedisServer() if options.workers > 1 else None
    try:
        with servers_in(folder) as servers:
            server = _start(servers, options, broker)
            return _Run(options, server, broker).run()
    finally:
        if broker is not None:
            broker.remove()


def _start(servers: Servers, options: Options, broker: RedisServer | None) -> Server:
    environ = {"SOAK_SOCKETS_BROKER_URL": _url(broker) if broker else "memory://"}
    if options.drop_one_in:
        environ["SOAK_DROP_ONE_IN"] = str(options.drop_one_in)
    args = ["-w", str(options.workers), "--graceful-timeout", "3"]
    return servers.gunicorn(APPLICATION, args=args, environ=environ)


def _url(broker: RedisServer) -> str:
    return f"{broker.url}?socket_timeout=2"


@contextmanager
def _process(target: Callable[..., None], plan: Any) -> Iterator[_Asked]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(plan, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        yield _Asked(ours)
        process.join(10)
    finally:
        process.kill()
        process.join()
        process.close()
        ours.close()


class _Asked:
    """A process that answers."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe

    def ask(self, question: object) -> Any:
        self._pipe.send(question)
        assert self._pipe.poll(_PROCESS_TIMEOUT), f"no answer to {question}"
        return self._pipe.recv()


class _Run:
    def __init__(self, options: Options, server: Server, broker: RedisServer | None) -> None:
        self._options = options
        self._server = server
        self._broker = broker
        self._random = Random(f"{options.seed}-faults")
        self.done: Counter[str] = Counter()

    def run(self) -> Report:
        options = self._options
        listen = clients.Plan(
            self._server.port,
            options.clients,
            options.names,
            options.lifetime,
            options.away,
            options.seed,
        )
        url = _url(self._broker) if self._broker else f"ws://127.0.0.1:{self._server.port}"
        stream = publisher.Plan(url, options.names, options.rate, 2, options.seed)
        with (
            _process(clients.run, listen) as swarm,
            _process(publisher.run, stream) as publishing,
        ):
            self._torment(time.monotonic() + options.seconds)
            time.sleep(_CALM)
            begun = time.monotonic()
            swarm.ask("stay")
            with suppress(TimeoutError):  # who is not, is found by the checker
                wait_until(lambda: not swarm.ask("settled"), "all to connect", _RECOVERY)
            published: publisher.Published = publishing.ask("stop")
            newest = {
                message.channel: f"{message.epoch}-{message.offset}"
                for message in published.sent
                if message.epoch is not None
            }
            with suppress(TimeoutError):
                wait_until(lambda: not swarm.ask(("level", newest)), "all to be level", _RECOVERY)
            recovered_in = time.monotonic() - begun
            time.sleep(_CALM)  # what should not come would come now
            seen: clients.Seen = swarm.ask("end")
        log = self._server.output
        return Report(options, seen, published, self.done, recovered_in, log)

    # -- what is done to them --------------------------------------------------------------

    def _torment(self, until: float) -> None:
        pause = self._options.pause
        faults = [self._kill_worker, self._reload, self._restart, self._stop, self._cut]
        while (left := until - time.monotonic()) > 0:
            if pause is None:
                time.sleep(left)
            else:
                time.sleep(min(left, self._random.expovariate(1 / pause)))
                self._random.choice(faults)()

    def _workers(self) -> list[psutil.Process]:
        return psutil.Process(self._server.process.pid).children()

    def _kill_worker(self) -> None:
        workers = self._workers()
        if workers:
            with suppress(psutil.NoSuchProcess):
                self._random.choice(workers).kill()
                self.done["workers killed"] += 1

    def _reload(self) -> None:
        self._server.process.send_signal(signal.SIGHUP)
        self.done["reloads"] += 1

    def _restart(self) -> None:
        """Kill the broker and start it again, with nothing of what it knew."""
        assert self._broker is not None
        self._broker.kill()
        self._broker.path.unlink(missing_ok=True)
        self._meanwhile(self._random.uniform(0.1, 3.0))
        self._broker.start()
        self.done["brokers killed"] += 1

    def _stop(self) -> None:
        assert self._broker is not None
        self._broker.pause()
        self._meanwhile(self._random.uniform(1.0, 4.0))
        self._broker.resume()
        self.done["brokers stopped"] += 1

    def _meanwhile(self, seconds: float) -> None:
        """Wait; sometimes a worker is killed while the broker is out of reach."""
        if self._random.random() < 0.3:
            time.sleep(seconds / 2)
            self._kill_worker()
            seconds /= 2
        time.sleep(seconds)

    def _cut(self) -> None:
        """Cut the connections that listen."""
        assert self._broker is not None
        with self._broker.client() as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        self.done["listeners cut"] += 1
