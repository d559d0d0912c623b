"""What is done to the servers, at random, and when."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from random import Random

import psutil

from tests.brokers.servers import RedisServer
from tests.processes import Server

from .answers import Window
from .proxy import Proxy
from .relay import Relay

__all__ = ["Damage"]

_MOST_WORKERS = 2  # beyond those that it began with
_AFTERWARDS = 3.0  # seconds in which what was done is still felt, on a slow machine


class Damage:
    """Chooses what to do, does it, and notes it.

    :param broker: None where it lives in the server.
    :param proxy: None where clients connect to the server itself; so is ``relay``.

    :ivar done: how often what was done.
    :ivar windows: in which pages may suffer for it.
    """

    def __init__(
        self,
        seed: int,
        server: Server,
        broker: RedisServer | None,
        proxy: Proxy | None,
        relay: Relay | None,
    ) -> None:
        self._random = Random(f"{seed}-faults")
        self._server = server
        self._broker = broker
        self._proxy = proxy
        self._relay = relay
        self._more_workers = 0
        self._spares_workers = False
        self.done: Counter[str] = Counter()
        self.windows: list[Window] = []
        self._of_workers: list[Callable[[], None]] = [self._kill_worker, self._reload]
        self._of_others: list[Callable[[], None]] = []
        if broker is not None:
            self._of_others += [self._restart, self._stop, self._cut]
        if proxy is not None and relay is not None:
            self._of_workers += [self._grow, self._shrink]
            self._of_others += [
                self._stop_worker,
                self._reload_proxy,
                self._restart_proxy,
                self._cut_network,
                self._freeze_network,
            ]

    def until(self, deadline: float, pause: float | None, *, spare_workers: bool = False) -> None:
        """Go on with it; everything comes once, before anything comes again.

        :param deadline: by ``time.monotonic()``.
        :param pause: seconds between two faults on average, None for no faults.
        :param spare_workers: none of them ends.
        """
        self._spares_workers = spare_workers
        faults = self._of_others + ([] if spare_workers else self._of_workers)
        left_over: list[Callable[[], None]] = []
        while (left := deadline - time.monotonic()) > 0:
            if pause is None:
                time.sleep(left)
            else:
                time.sleep(min(left, self._random.expovariate(1 / pause)))
                left_over = left_over or self._random.sample(faults, len(faults))
                left_over.pop()()

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self._server.process.pid).children()

    def _explain(self, begun: float, *, relayed_only: bool = False) -> None:
        self.windows.append(Window(begun, time.monotonic() + _AFTERWARDS, relayed_only))

    # -- workers ---------------------------------------------------------------------------

    def _kill_worker(self) -> None:
        begun, workers = time.monotonic(), self.workers()
        if workers:
            with suppress(psutil.NoSuchProcess):
                self._random.choice(workers).kill()
                self.done["workers killed"] += 1
            self._explain(begun)

    def _reload(self) -> None:
        self._server.process.send_signal(signal.SIGHUP)
        self._more_workers = 0  # gunicorn goes back to the number that it was started with
        self.done["reloads"] += 1

    def _grow(self) -> None:
        if self._more_workers < _MOST_WORKERS:
            self._server.process.send_signal(signal.SIGTTIN)
            self._more_workers += 1
            self.done["workers added"] += 1

    def _shrink(self) -> None:
        if self._more_workers > 0:
            self._server.process.send_signal(signal.SIGTTOU)
            self._more_workers -= 1
            self.done["workers taken away"] += 1

    def _stop_worker(self) -> None:
        """Let it do nothing for a while, as a machine that swaps."""
        worker = self._random.choice(self.workers())
        with suppress(psutil.NoSuchProcess):
            worker.suspend()
            time.sleep(self._random.uniform(0.5, 3.0))
            worker.resume()
            self.done["workers stopped"] += 1

    # -- the broker ------------------------------------------------------------------------

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
        if not self._spares_workers and self._random.random() < 0.3:
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

    # -- the way to the clients ------------------------------------------------------------

    def _reload_proxy(self) -> None:
        assert self._proxy is not None
        self._proxy.reload()
        self.done["nginx reloads"] += 1

    def _restart_proxy(self) -> None:
        assert self._proxy is not None
        begun = time.monotonic()
        self._proxy.restart(self._random.uniform(0.0, 2.0))
        self._explain(begun)
        self.done["nginx restarts"] += 1

    def _cut_network(self) -> None:
        assert self._relay is not None
        begun = time.monotonic()
        self._relay.cut()
        self._explain(begun, relayed_only=True)
        self.done["networks cut"] += 1

    def _freeze_network(self) -> None:
        """Let nothing pass for a while; what was sent arrives later."""
        assert self._relay is not None
        seconds = self._random.uniform(0.5, 5.0)
        self._relay.freeze(seconds)
        time.sleep(seconds)
        self.done["networks frozen"] += 1
