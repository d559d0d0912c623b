"""One run: the server, its broker, who publishes, the clients, and what is done to them."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.brokers.servers import RedisServer
from tests.processes import Server, Servers, servers_in, wait_until

from . import publisher, swarm
from .aftermath import lasting_keys, left_behind
from .checker import Fault
from .damage import Damage
from .names import every_channel
from .proxy import Proxy
from .relay import Relay
from .report import MASTER, Report
from .resources import Watch

__all__ = ["Options", "Report", "everything", "soak"]

APPLICATION = Path(__file__).with_name("application.py").read_text()

_CALM = 1.0  # seconds of publishing after the last fault
_PROCESS_TIMEOUT = 60.0  # seconds for an answer of the other processes
_LONGER = 400.0  # seconds that it may go on until all is counted that is to be

_SHARES = {
    "listeners": 0.3,
    "echoes": 0.15,
    "streams": 0.2,
    "pages": 0.2,
    "people": 0.1,
    "visitors": 0.05,
}


@dataclass(frozen=True)
class Options:
    """What to run.

    :ivar clients: listeners of channels, where ``kinds`` does not say who else.
    :ivar rate: messages published in a second.
    :ivar workers: of the server; of several the broker is Redis, of one it is memory.
    :ivar least: numbers that "deliveries" or some of :attr:`Seen.counts` must reach before it ends:
        on a slow machine that takes longer.
    :ivar pause: seconds between two faults on average, None for no faults.
    :ivar drop_one_in: deliveries that the server loses, by the application's own doing.
    :ivar plant: the application breaks what its features promise, now and then.
    :ivar patience: seconds that are waited for what should come true after the last fault.
    :ivar kinds: how many clients there are of each kind.
    :ivar spared: part of the time in which workers do not end, so that they grow old; the last one.
    :ivar proxied: nginx is in front, and the network of some clients fails.
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
    plant: bool = False
    patience: float = 60.0
    least: Mapping[str, int] = field(default_factory=dict)
    kinds: Mapping[str, int] = field(default_factory=dict)
    spared: float = 0.6
    proxied: bool = False

    def __post_init__(self) -> None:
        if not self.kinds:
            object.__setattr__(self, "kinds", {"listeners": self.clients})

    @property
    def names(self) -> list[str]:
        """Of the channels."""
        return every_channel(self.channels, everything=self.proxied)


def everything(clients: int) -> dict[str, Any]:
    """Return the options of a run with all features, for so many clients in all."""
    kinds = {kind: max(3, round(share * clients)) for kind, share in _SHARES.items()}
    return {"clients": clients, "kinds": kinds, "proxied": True}


def soak(options: Options, folder: Path) -> Report:
    """Run it.

    :param folder: an empty directory.
    """
    with ExitStack() as stack:
        broker = RedisServer() if options.workers > 1 else None
        if broker is not None:
            stack.callback(broker.remove)
        servers = stack.enter_context(servers_in(folder))
        server = _start(servers, options, broker)
        proxy = relay = None
        if options.proxied:
            proxy = Proxy(servers, server.port)
            relay = stack.enter_context(closing(Relay(proxy.port)))
        return _Run(options, server, broker, proxy, relay).run()


def _start(servers: Servers, options: Options, broker: RedisServer | None) -> Server:
    environ = {"SOAK_SOCKETS_BROKER_URL": _url(broker) if broker else "memory://"}
    if options.drop_one_in:
        environ["SOAK_DROP_ONE_IN"] = str(options.drop_one_in)
    if options.plant:
        environ["SOAK_PLANT"] = "1"
    if options.proxied:
        metrics = servers.folder / "metrics"
        metrics.mkdir()
        environ["PROMETHEUS_MULTIPROC_DIR"] = str(metrics)
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

    def wait_for(self, question: object, what: str, timeout: float) -> None:
        """Ask until nobody is left; who still is, is found by the checker."""
        with suppress(TimeoutError):
            wait_until(lambda: not self.ask(question), what, timeout)


class _Run:
    def __init__(
        self,
        options: Options,
        server: Server,
        broker: RedisServer | None,
        proxy: Proxy | None,
        relay: Relay | None,
    ) -> None:
        self._options = options
        self._server = server
        self._broker = broker
        self._port = server.port if proxy is None else proxy.port
        self._relayed = self._port if relay is None else relay.port
        self._damage = Damage(options.seed, server, broker, proxy, relay)

    def run(self) -> Report:
        damage, patience = self._damage, self._options.patience
        fresh = self._most_descriptors()
        with (
            closing(Watch(self._processes)) as watch,
            _process(swarm.run, self._clients()) as clients,
            _process(publisher.run, self._stream()) as publishing,
        ):
            self._torment(clients)
            time.sleep(_CALM)
            begun = time.monotonic()
            clients.ask("stay")
            clients.wait_for("settled", "all to connect", patience)
            published: publisher.Published = publishing.ask("stop")
            newest = {
                message.channel: f"{message.epoch}-{message.offset}"
                for message in published.sent
                if message.epoch is not None
            }
            clients.wait_for(("level", newest), "all to be level", patience)
            recovered_in = time.monotonic() - begun
            clients.wait_for("together", "all to know who is there", patience)
            time.sleep(_CALM)  # what should not come would come now
            left = []
            watch.close()
            if self._options.proxied:
                clients.ask("leave")
                clients.wait_for("gone", "all to leave", patience)
                left = left_behind(self._server, damage.workers, fresh, patience)
            seen: swarm.Seen = clients.ask("end")
        return Report(
            self._options,
            seen,
            published,
            damage.done,
            damage.windows,
            recovered_in,
            self._server.output,
            watch.samples,
            [str(worker.pid) for worker in damage.workers()],
            [*left, *self._lasting_keys()],
            (fresh, self._most_descriptors()),
        )

    def _torment(self, clients: _Asked) -> None:
        options, begun = self._options, time.monotonic()
        until = begun + options.seconds
        if options.proxied:
            spared_from = until - options.seconds * options.spared
            self._damage.until(spared_from, options.pause)
        self._damage.until(until, options.pause, spare_workers=options.proxied)
        while time.monotonic() < until + _LONGER and not self._is_enough(clients.ask("counts")):
            self._damage.until(time.monotonic() + 1, options.pause, spare_workers=options.proxied)

    def _is_enough(self, counts: Mapping[str, int]) -> bool:
        return all(counts.get(what, 0) >= least for what, least in self._options.least.items())

    def _clients(self) -> swarm.Plan:
        options = self._options
        return swarm.Plan(
            self._port,
            self._relayed,
            self._server.port,
            options.kinds,
            options.names,
            options.lifetime,
            options.away,
            options.seed,
            pauses=options.proxied,
        )

    def _stream(self) -> publisher.Plan:
        options = self._options
        url = _url(self._broker) if self._broker else f"ws://127.0.0.1:{self._server.port}"
        workers = self._port if options.proxied else None
        return publisher.Plan(url, options.names, options.rate, 2, options.seed, workers)

    def _processes(self) -> dict[str, psutil.Process]:
        if not self._options.proxied:
            return {}
        workers = {str(worker.pid): worker for worker in self._damage.workers()}
        return {MASTER: psutil.Process(self._server.process.pid), **workers}

    def _most_descriptors(self) -> int:
        return max(worker.num_fds() for worker in self._damage.workers())

    def _lasting_keys(self) -> list[Fault]:
        if self._broker is None:
            return []
        with self._broker.client() as client:
            return [Fault("lasting key", "the broker", "", key) for key in lasting_keys(client)]
