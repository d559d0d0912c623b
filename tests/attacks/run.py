"""Runs one attack: a server, a bystander, attackers, and a look at the worker's memory."""

from __future__ import annotations

import multiprocessing
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.processes import Servers, servers_in
from tests.wire_client import CLOSE, TEXT, connect, frame

from .attacks import ATTACKS
from .means import Attack

__all__ = ["Outcome", "Waits", "attack"]

APPLICATION = Path(__file__).with_name("application.py")
PAUSE = 0.02  # seconds between two looks of the bystander
PATIENCE = 120.0  # seconds that the bystander waits at most
STOPPING = 25.0  # seconds for which an attack goes on that meets a server that stops
SETTLING = 20.0  # seconds in which memory may fall after the attackers have left

_processes = multiprocessing.get_context("spawn")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one attack cost.

    :ivar echo: seconds that the slowest echo took; None if the connection was lost.
    :ivar page: seconds that the slowest page took.
    :ivar waiting: that page had not come when the attack was over.
    :ivar failed: pages that were not answered, or by an error.
    :ivar before: resident memory in bytes; of all workers.
    :ivar stopped: seconds that the server took to stop, if it was told to.
    :ivar killed: a worker was killed or has died.
    """

    echo: float | None
    page: float
    waiting: bool
    failed: int
    before: int
    peak: int
    after: int
    stopped: float | None
    killed: bool


def attack(name: str, seconds: float, package: Path | None = None) -> Outcome:
    """Run an attack.

    :param name: of :data:`ATTACKS`.
    :param seconds: that it takes, unless it needs longer.
    :param package: the folder that has ``flask_sockets2`` to attack; None for this one.
    """
    chosen = ATTACKS[name]
    with (
        tempfile.TemporaryDirectory() as folder,
        servers_in(Path(folder)) as servers,
        _Bystander() as bystander,
    ):
        return _run(name, chosen, seconds, servers, bystander, package)


def _run(
    name: str,
    chosen: Attack,
    seconds: float,
    servers: Servers,
    bystander: _Bystander,
    package: Path | None,
) -> Outcome:
    environ = dict(chosen.environ)
    if package is not None:
        environ["PYTHONPATH"] = str(package)
    source = APPLICATION.read_text()
    args = ["--graceful-timeout", "15", *chosen.args]
    server = servers.gunicorn(source, args=args, environ=environ)
    [worker] = psutil.Process(server.process.pid).children()
    bystander.start(server.port)
    if chosen.prepare is not None:
        chosen.prepare(server.port)
    bystander.begin()
    memory = _Memory(worker)
    seconds = max(seconds, chosen.seconds)
    if chosen.stopping:
        seconds += STOPPING
    until = time.monotonic() + seconds
    attackers = [
        _processes.Process(target=_attack, args=(name, server.port, seconds), daemon=True)
        for _ in range(chosen.attackers)
    ]
    for each in attackers:
        each.start()
    stopped = None
    if chosen.stopping:
        time.sleep(seconds - STOPPING)
        begun = time.monotonic()
        server.terminate(timeout=60)
        stopped = time.monotonic() - begun
        until = 0.0
    while time.monotonic() < until + 2:
        memory.look()
        time.sleep(0.05)
    echo, page, waiting, failed = bystander.end()
    for each in attackers:
        each.join(0 if chosen.stopping else 20)
        each.kill()
        each.join()
    memory.settle()
    lived = chosen.stopping or (worker.is_running() and "WORKER TIMEOUT" not in server.output)
    return Outcome(
        None if chosen.stopping else echo,
        page,
        waiting,
        0 if chosen.stopping else failed,
        memory.before,
        memory.peak,
        memory.now,
        stopped,
        not lived,
    )


def _attack(name: str, port: int, seconds: float) -> None:
    with suppress(KeyboardInterrupt):
        ATTACKS[name].run(port, time.monotonic() + seconds)


class _Memory:
    """Resident memory of a process; zeros once it has ended."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self.before = self.peak = self.now = process.memory_info().rss
        with suppress(OSError):  # Linux keeps the peak itself, and can be told to begin anew
            Path(f"/proc/{process.pid}/clear_refs").write_text("5")

    def look(self) -> None:
        with suppress(psutil.Error, OSError):
            self.now = self._process.memory_info().rss
            status = Path(f"/proc/{self._process.pid}/status").read_text()
            line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
            self.peak = max(self.peak, self.now, int(line.split()[1]) * 1024)

    def settle(self) -> None:
        """Wait for the memory to fall, as long as it may take."""
        until = time.monotonic() + SETTLING
        while time.monotonic() < until and self.now > self.before + 4 * 2**20:
            self.look()
            time.sleep(0.2)


class _Bystander:
    """Somebody else, in a process of its own: echoes over one WebSocket and fetches pages."""

    def __init__(self) -> None:
        self._here, there = _processes.Pipe()
        self._process = _processes.Process(target=_stand_by, args=(there,), daemon=True)

    def __enter__(self) -> _Bystander:
        self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()

    def start(self, port: int) -> None:
        self._here.send(port)
        self._answer()

    def begin(self) -> None:
        """Forget what was so far."""
        self._here.send("begin")
        self._answer()

    def end(self) -> tuple[float | None, float, bool, int]:
        """Return the longest wait for an echo and for a page, whether that page is still waited
        for, and how many pages failed."""
        self._here.send("end")
        echo, page, waiting, failed = self._answer()
        return echo, page, waiting, failed

    def _answer(self) -> Any:
        if not self._here.poll(PATIENCE):
            raise TimeoutError("the bystander says nothing")
        return self._here.recv()


class Waits:
    """The longest wait so far."""

    def __init__(self) -> None:
        self.longest = 0.0
        self.over = True
        self.failed = 0
        self._since: float | None = None

    def look(self, action: Callable[[], None]) -> None:
        since = self._since = time.monotonic()
        try:
            action()
        except (OSError, EOFError, AssertionError):
            self.failed += 1
            time.sleep(PAUSE)
        self.longest = max(self.longest, time.monotonic() - since)
        self._since = None

    def settle(self) -> None:
        """Count the wait that is not over."""
        since = self._since
        if since is not None and (waited := time.monotonic() - since) > self.longest:
            self.longest = waited
            self.over = False


def _stand_by(there: Any) -> None:
    port = there.recv()
    client = connect(port, "/echo")

    def echo() -> None:
        client.send(frame(TEXT, b"hello"))
        while (came := client.frame(PATIENCE)).opcode != TEXT:
            if came.opcode == CLOSE:  # the server stops, and need not wait for us
                client.send(frame(CLOSE, came.payload))
                client.close()
                raise EOFError("the server has closed the WebSocket")
        assert came.payload == b"hello"

    def page() -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            answer = b""
            while data := sock.recv(4096):
                answer += data
            assert answer.startswith(b"HTTP/1.1 200")

    echoes, pages = [Waits()], [Waits()]

    def look(waits: list[Waits], action: Callable[[], None]) -> None:
        while True:
            waits[0].look(action)
            time.sleep(PAUSE)

    for waits, action in ((echoes, echo), (pages, page)):
        threading.Thread(target=look, args=(waits, action), daemon=True).start()
    time.sleep(0.5)
    there.send("started")
    there.recv()
    echoes[0], pages[0] = Waits(), Waits()
    there.send("begun")
    there.recv()
    echoes[0].settle()
    pages[0].settle()
    lost = echoes[0].failed
    slowest = pages[0]
    there.send(
        (None if lost else echoes[0].longest, slowest.longest, not slowest.over, slowest.failed)
    )
    os._exit(0)
