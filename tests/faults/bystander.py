"""While a server is ill-treated, somebody else is served by it, and its memory is watched."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.processes import wait_until
from tests.wire_client import TEXT, WireClient, connect, frame

INTERVAL = 0.05  # seconds from echo to echo
LONGEST_WAIT = 15.0  # seconds; a busy machine lets everybody wait
LARGEST_WORK = 2.0  # seconds of the server's processor time, which it does not change, for an echo
LARGEST_GROWTH = 64 * 2**20  # bytes
FEWEST_ECHOES = 10


class Bystander:
    """A connection that echoes every 50 ms and notes how long it waits.

    :param client: a WebSocket to an echo.
    :param worker: the process that serves it.
    :param memory: its resident memory, in bytes, before anybody ill-treated it.
    """

    def __init__(self, client: WireClient, worker: psutil.Process, memory: int) -> None:
        self.waits: list[float] = []
        self._most_work = 0.0
        self._worker = worker
        self._client = client
        self._memory = _Memory(worker, memory)
        self._error: BaseException | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bystander", daemon=True)

    @property
    def worst_wait(self) -> float:
        """Seconds that the slowest echo took."""
        return max(self.waits)

    @property
    def memory_growth(self) -> int:
        """Bytes by which the server was larger, at its largest, than before all."""
        return self._memory.growth

    def look(self) -> None:
        """Look at the server's memory now."""
        self._memory.look()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                text = f"echo {len(self.waits)}".encode()
                begun, worked = time.monotonic(), self._work()
                self._client.send(frame(TEXT, text))
                answer = self._client.message()
                self.waits.append(time.monotonic() - begun)
                self._most_work = max(self._most_work, self._work() - worked)
                assert answer == text, f"expected {text!r}, got {answer!r}"
                self.look()
                self._stopping.wait(INTERVAL)
        except BaseException as exc:
            self._error = exc

    def _work(self) -> float:
        times = self._worker.cpu_times()
        return float(times.user + times.system)

    def _echoed(self, count: int) -> bool:
        if self._error is not None:
            raise AssertionError("the bystander is not served") from self._error
        return len(self.waits) >= count

    def start(self) -> None:
        self._thread.start()
        wait_until(lambda: self._echoed(1), "the bystander's first echo")

    def stop(self) -> None:
        self._stopping.set()
        self._client.close()
        self._thread.join(60)

    def check(self) -> None:
        """Wait for a few more echoes; then see that none was late and that memory stayed.

        So many are awaited that a test whose fault takes no time watches, too.
        """
        until = max(FEWEST_ECHOES, len(self.waits) + 2)
        wait_until(lambda: self._echoed(until), f"{until} echoes of the bystander")
        self.look()
        assert self.worst_wait < LONGEST_WAIT, f"an echo took {self.worst_wait} s"
        assert self._most_work < LARGEST_WORK, f"an echo waited for {self._most_work} s of work"
        growth = self.memory_growth / 2**20
        assert self.memory_growth < LARGEST_GROWTH, f"memory grew by {growth:.1f} MiB"


class _Memory:
    """The growth of a process's resident memory, at its peak."""

    def __init__(self, process: psutil.Process, before: int) -> None:
        self._process = process
        self._before = before
        self._reset_peak()
        self.growth = 0

    def _reset_peak(self) -> None:
        """Linux keeps the peak itself, so that what grows between two looks is seen, too."""
        self._status: Path | None = None
        with suppress(OSError):
            folder = Path("/proc", str(self._process.pid))
            (folder / "clear_refs").write_text("5")
            self._status = folder / "status"

    def look(self) -> None:
        peak = self._process.memory_info().rss
        if self._status is not None:
            line = next(x for x in self._status.read_text().splitlines() if "VmHWM" in x)
            peak = max(peak, int(line.split()[1]) * 1024)
        self.growth = max(self.growth, peak - self._before)


@contextmanager
def bystander(port: int, worker: psutil.Process, memory: int) -> Iterator[Bystander]:
    """Watch while the block runs; the block's end is where the watch must have been good.

    :raises AssertionError: when an echo was late, wrong or missing, or memory grew.
    """
    watch = Bystander(connect(port, "/echo"), worker, memory)
    try:
        watch.start()
        yield watch
        watch.check()
    finally:
        watch.stop()
