"""The servers that are compared: how each is started, watched and ended."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import psutil

from .exchange import Exchange
from .load import LoadError, check_echo

HERE = Path(__file__).resolve().parent
PEERS = HERE / "peers"
CACHE = HERE / ".cache"
NODE_MODULES = CACHE / "node_modules"

START_TIMEOUT = 30.0  # seconds until a server must echo
STOP_TIMEOUT = 3.0  # seconds between SIGTERM and SIGKILL
SETTLE_TIMEOUT = 3.0  # seconds in which a server must have become quiet after its load left
QUIET = 0.015  # seconds of CPU in 0.1 s: at most one tick of the kernel's clock, at 100 Hz
NPM_TIMEOUT = 60.0  # seconds
PR_SET_PDEATHSIG = 1

GUNICORN = (
    sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:{port}", "--workers", "1",
    "--worker-connections", "100000", "--backlog", "2048", "--timeout", "120",
    "--log-level", "warning",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Peer:
    """A server to measure.

    :param name: what ``--only`` takes.
    :param title: what the tables say.
    :param command: to start it, with ``{port}`` where the port belongs.
    :param modules: what must be importable.
    :param parsed: it speaks WebSocket; False: a floor, which sends back what it gets.
    :param max_idle: idle connections that it can hold, None = as many as there are descriptors.
    """

    name: str
    title: str
    command: tuple[str, ...]
    modules: tuple[str, ...]
    parsed: bool = True
    max_idle: int | None = None

    def missing(self) -> str | None:
        """Return why it cannot be started here, or None."""
        for module in self.modules:
            if importlib.util.find_spec(module) is None:
                return f"{module} is not installed"
        return _missing_node() if self.command[0] == "node" else None

    def check(self, port: int, timeout: float) -> None:
        """See whether it serves: exchange one message.

        :raises LoadError: it does something else.
        :raises OSError: it is not there, or silent.
        """
        check_echo(port, Exchange.of(b"hello", binary=False, parsed=self.parsed), timeout)


def gunicorn(*arguments: str) -> tuple[str, ...]:
    """Return the command of an application under gunicorn."""
    return (*GUNICORN, *arguments)


def script(name: str, *arguments: str) -> tuple[str, ...]:
    """Return the command of a server that is a Python program."""
    return (sys.executable, str(PEERS / name), "{port}", *arguments)


OURS = "flask_sockets2"

ALL: tuple[Peer, ...] = (
    Peer(
        OURS,
        "flask_sockets2",
        gunicorn("-k", "flask_sockets2.worker", "benchmarks.peers.flask_sockets2_app:app"),
        ("flask_sockets2", "gunicorn"),
    ),
    Peer(
        "gevent-websocket",
        "gevent-websocket, Flask",
        gunicorn(
            "-k",
            "geventwebsocket.gunicorn.workers.GeventWebSocketWorker",
            "benchmarks.peers.gevent_websocket_app:app",
        ),
        ("geventwebsocket", "flask", "gunicorn"),
    ),
    Peer(
        "gevent-websocket-bare",
        "gevent-websocket, bare",
        gunicorn(
            "-k",
            "geventwebsocket.gunicorn.workers.GeventWebSocketWorker",
            "benchmarks.peers.gevent_websocket_app:bare",
        ),
        ("geventwebsocket", "flask", "gunicorn"),
    ),
    Peer(
        "flask-sock",
        "Flask-Sock, gevent",
        gunicorn("-k", "gevent", "benchmarks.peers.flask_sock_app:app"),
        ("flask_sock", "gunicorn"),
    ),
    Peer(
        "flask-sock-threads",
        "Flask-Sock, threads",
        gunicorn("--threads", "1100", "benchmarks.peers.flask_sock_app:app"),
        ("flask_sock", "gunicorn"),
        max_idle=1000,
    ),
    Peer(
        "websockets",
        "websockets, asyncio",
        script("websockets_asyncio.py"),
        ("websockets",),
    ),
    Peer("picows", "picows, uvloop", script("picows_uvloop.py"), ("picows", "uvloop")),
    Peer("node-ws", "Node ws", ("node", str(PEERS / "node_ws.js"), "{port}"), ()),
    Peer(
        "floor-sendall",
        "gevent recv, sendall",
        script("floors.py", "sendall"),
        ("gevent",),
        parsed=False,
    ),
    Peer(
        "floor-switch",
        "floor: hub, greenlet",
        script("floors.py", "switch"),
        ("gevent",),
        parsed=False,
    ),
    Peer(
        "floor-watcher",
        "floor: hub watcher",
        script("floors.py", "watcher"),
        ("gevent",),
        parsed=False,
    ),
)


def _missing_node() -> str | None:
    """Return why Node's ws cannot be had, or None; fetch it where npm can."""
    if shutil.which("node") is None:
        return "there is no node"
    if (NODE_MODULES / "ws").is_dir():
        return None
    npm = shutil.which("npm")
    if npm is None:
        return "there is no npm to fetch ws with"
    CACHE.mkdir(exist_ok=True)
    command = [npm, "install", "--no-audit", "--no-fund", "--prefix", str(CACHE), "ws@8"]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=NPM_TIMEOUT)
    except (subprocess.SubprocessError, OSError) as exc:
        return f"npm could not fetch ws ({type(exc).__name__})"
    return None


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class ServerError(Exception):
    """A server did not start, or died."""


def die_with_us(core: int) -> None:
    """Run in a new process: take the core, and die with the benchmark."""
    os.sched_setaffinity(0, {core})
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Server:
    """One server process and its children, on a core of their own.

    Use it as a context manager: the processes are gone after it, whatever happened inside.

    :param peer: what to start.
    :param core: the number of the core to run on.
    :param environment: variables that it gets beside ours.
    """

    def __init__(self, peer: Peer, core: int, environment: Mapping[str, str] | None = None) -> None:
        self.peer = peer
        self.core = core
        self.environment = environment or {}
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._tree: Sequence[psutil.Process] = ()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__

    def __enter__(self) -> Server:
        try:
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        self._log.close()

    def start(self) -> None:
        """Start it and wait until it serves.

        :raises ServerError: it did not, in :data:`START_TIMEOUT`; with the end of its log.
        """
        self.port = _free_port()
        environment = {**os.environ, "NODE_PATH": str(NODE_MODULES), **self.environment}
        environment.pop("GUNICORN_CMD_ARGS", None)
        self._process = subprocess.Popen(
            [argument.replace("{port}", str(self.port)) for argument in self.peer.command],
            cwd=HERE.parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
            preexec_fn=lambda: die_with_us(self.core),
        )
        self._wait_until_it_serves(self._process)
        root = psutil.Process(self._process.pid)
        self._tree = [root, *root.children(recursive=True)]

    def _wait_until_it_serves(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                self.peer.check(self.port, max(deadline - time.monotonic(), 0.1))
                return
            except (OSError, LoadError) as exc:
                if process.poll() is not None:
                    raise ServerError(f"it ended at once: {self._last_line()}") from exc
                if time.monotonic() > deadline:
                    raise ServerError(f"it does not serve: {exc}; {self._last_line()}") from exc
            time.sleep(0.05)

    def _last_line(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "its log is empty"

    def stop(self) -> None:
        """End it and everything that it started; a second call does nothing."""
        process, self._process, self._tree = self._process, None, ()
        if process is None:
            return
        for sign in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, sign)
            except ProcessLookupError:
                break
            try:
                process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                continue
        process.wait(STOP_TIMEOUT)

    def cpu(self) -> float:
        """Return the seconds of CPU that it has used so far, user and system, to the microsecond.

        :raises ServerError: one of its processes is gone.
        """
        try:
            # A process's CPU clock, as clock_getcpuclockid(3) makes its number of the process's.
            return sum(time.clock_gettime(~process.pid << 3 | 2) for process in self._tree)
        except OSError as exc:
            raise ServerError(f"it died: {self._last_line()}") from exc

    def memory(self) -> int:
        """Return its proportional set size in bytes: resident, shared pages counted once.

        :raises ServerError: one of its processes is gone.
        """
        try:
            return sum(process.memory_full_info().pss for process in self._tree)
        except psutil.Error as exc:
            raise ServerError(f"it died: {self._last_line()}") from exc

    def settle(self) -> None:
        """Wait until it has nothing left to do; start it anew if it has died or takes too long.

        :raises ServerError: it could not be started again.
        """
        deadline = time.monotonic() + SETTLE_TIMEOUT
        try:
            before = self.cpu()
            while time.monotonic() < deadline:
                time.sleep(0.1)
                now = self.cpu()
                if now - before < QUIET:
                    return
                before = now
        except ServerError:
            pass  # it is started anew
        self.stop()
        self.start()
