"""Real servers in processes of their own, for tests that talk to them over TCP.

Every wait here has a deadline, and what a server wrote is part of the error when it passes.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

import trustme

from tests.warm import WarmProcess, start_warm

PATIENCE = 60.0
"""Seconds that a test waits for what must come, however busy the machine is."""

FORKS = "ignore:This process:DeprecationWarning"
"""For ``python -W``: what Python 3.12 and newer say of a fork beside threads, which is tested."""

OUR_WORKER = "flask_sockets2.worker"

CHROMIUM_NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


class ServerFailed(AssertionError):
    """A server did not do in time what the test waited for."""


def wait_until(condition: Callable[[], object], what: str, timeout: float = PATIENCE) -> None:
    """Poll ``condition`` until it is true.

    :param what: what is waited for, for the message.
    :raises TimeoutError: when it is not true after ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout} s in vain for {what}")
        time.sleep(0.01)


def in_a_process(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function of a module in a new process, with which its threads end; return its result.

    What it raises is raised here.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result(2 * PATIENCE)


def unused_port() -> int:
    """A port of 127.0.0.1 that nobody uses at the moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def accepts(port: int) -> bool:
    """Whether something listens on a port of 127.0.0.1."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


class Server:
    """A server process on 127.0.0.1, and what it wrote.

    :param command: program and arguments.
    :param log: file that takes its standard output and error.
    :param environ: variables set on top of this process's.
    :param secure: it speaks TLS.
    :param warm: the command is gunicorn's script with our worker; see ``tests/warm.py``.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        cwd: Path,
        log: Path,
        environ: dict[str, str] | None = None,
        secure: bool = False,
        warm: bool = False,
    ) -> None:
        self.command = command
        self.log = log
        self.secure = secure
        self.port = 0
        self._is_stopped = False
        # In a group of its own, so that stop() reaches its workers too.
        self.process = _start(
            list(map(str, command)),
            cwd=cwd,
            log=log,
            environ={**os.environ, "PYTHONUNBUFFERED": "1", **(environ or {})},
            warm=warm,
        )

    @property
    def output(self) -> str:
        """The lines that the server has written; the last one may be written in several pieces."""
        is_over = self.process.poll() is not None
        text = self.log.read_text(errors="replace")
        return text if is_over else text[: text.rfind("\n") + 1]

    def url(self, path: str = "/") -> str:
        return f"http{'s' if self.secure else ''}://127.0.0.1:{self.port}{path}"

    def ws_url(self, path: str = "/") -> str:
        return f"ws{'s' if self.secure else ''}://127.0.0.1:{self.port}{path}"

    def wait_for(
        self, condition: Callable[[], object], what: str, timeout: float = PATIENCE
    ) -> None:
        """Poll ``condition`` while the server runs."""

        def done() -> bool:
            if condition():
                return True
            if self.process.poll() is not None:
                raise ServerFailed(f"the server ended before {what}:\n{self.output}")
            return False

        try:
            wait_until(done, what, timeout)
        except TimeoutError as exc:
            raise ServerFailed(f"{exc}; the server wrote:\n{self.output}") from None

    def wait_for_output(self, pattern: str, timeout: float = PATIENCE) -> re.Match[str]:
        """Wait until what it wrote matches a regular expression."""
        found: list[re.Match[str]] = []

        def search() -> bool:
            found.extend(re.finditer(pattern, self.output, re.MULTILINE))
            return bool(found)

        self.wait_for(search, f"output matching {pattern!r}", timeout)
        return found[0]

    def terminate(self, signum: int = signal.SIGTERM, timeout: float = PATIENCE) -> int:
        """Signal the main process alone, as a service manager does, and wait for its end.

        :returns: its exit status.
        """
        self.process.send_signal(signum)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise ServerFailed(
                f"still runs {timeout} s after signal {signum}:\n{self.output}"
            ) from None

    def stop(self) -> None:
        """Kill it with all of its children, whatever state they are in; can be repeated.

        A worker of gunicorn looks once a second whether it is to end.
        """
        if self._is_stopped:
            return
        self._is_stopped = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(PATIENCE)


def _start(
    command: list[str], *, cwd: Path, log: Path, environ: dict[str, str], warm: bool
) -> subprocess.Popen[bytes] | WarmProcess:
    log.touch()
    if warm:
        process = start_warm(command, cwd=cwd, log=log, environ=environ)
        if process is not None:
            return process
    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            cwd=cwd,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


class Servers:
    """Starts servers for one test and stops them at its end.

    An application is given as the text of a module; it is written to ``app.py`` in ``folder``.

    :param folder: an empty directory; programs are started in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started: list[Server] = []

    def stop(self) -> None:
        while self._started:
            self._started.pop().stop()

    def start(
        self,
        command: Sequence[str | Path],
        *,
        cwd: Path | None = None,
        environ: dict[str, str] | None = None,
        secure: bool = False,
        warm: bool = False,
    ) -> Server:
        """Start any command; the caller waits for it and sets its port."""
        log = self.folder / f"server-{len(self._started)}.log"
        server = Server(
            command, cwd=cwd or self.folder, log=log, environ=environ, secure=secure, warm=warm
        )
        self._started.append(server)
        return server

    def gunicorn(
        self,
        source: str | None = None,
        *,
        worker: str | None = OUR_WORKER,
        args: Sequence[str | Path] = (),
        target: str = "app:app",
        port: int = 0,
        cwd: Path | None = None,
        environ: dict[str, str] | None = None,
        secure: bool = False,
        python: str | Path = sys.executable,
    ) -> Server:
        """Start gunicorn with one of its workers.

        :param source: the application; None where ``target`` names one that exists.
        :param worker: what follows ``-k``; None where ``args`` say it.
        :param args: more arguments; they win over the ones given here.
        :param target: the application in the form ``module:name``.
        :param port: 0 means any that is free.
        :param python: of another environment, with the same gunicorn.
        """
        self._write(source)
        # Not "python -m gunicorn", which could not start itself again at SIGUSR2.
        command: list[str | Path] = [Path(python).with_name("gunicorn")]
        command += ["-b", f"127.0.0.1:{port}", "-c", self._gunicorn_config()]
        command += ["--graceful-timeout", "5", *_no_control_socket()]
        command += [*(["-k", worker] if worker else []), *args, target]
        warm = worker == OUR_WORKER and python == sys.executable
        server = self.start(command, cwd=cwd, environ=environ, secure=secure, warm=warm)
        listening = server.wait_for_output(r"Listening at: https?://127\.0\.0\.1:(\d+)")
        server.port = int(listening[1])
        server.wait_for_output(r"a worker has loaded the application")
        return server

    def flask_run(
        self,
        source: str | None = None,
        *,
        args: Sequence[str] = (),
        target: str = "app",
        cwd: Path | None = None,
        environ: dict[str, str] | None = None,
    ) -> Server:
        """Start Flask's development server.

        :param args: for example ``["--reload", "--debugger"]``; neither is on by default.
        """
        self._write(source)
        command = [sys.executable, "-m", "flask", "--app", target, "run", "-p", "0"]
        server = self.start([*command, *args], cwd=cwd, environ=environ)
        running = server.wait_for_output(r"Running on http://127\.0\.0\.1:(\d+)")
        server.port = int(running[1])
        server.wait_for(lambda: accepts(server.port), "it accepted connections")
        return server

    def script(
        self,
        source: str,
        *,
        port: int,
        args: Sequence[str] = (),
        environ: dict[str, str] | None = None,
    ) -> Server:
        """Run a program that starts its own server on ``port``."""
        self._write(source)
        server = self.start([sys.executable, "app.py", *args], environ=environ)
        server.port = port
        server.wait_for(lambda: accepts(port), "it accepted connections")
        return server

    def _gunicorn_config(self) -> Path:
        """A configuration whose only effect is a line in the log once a worker can serve."""
        path = self.folder / "gunicorn_config.py"
        path.write_text(
            "def post_worker_init(worker):\n"
            "    worker.log.info('a worker has loaded the application')\n"
        )
        return path

    def _write(self, source: str | None) -> None:
        if source is not None:
            (self.folder / "app.py").write_text(dedent(source))


@contextlib.contextmanager
def servers_in(folder: Path) -> Iterator[Servers]:
    """Servers that are stopped when the block is left."""
    servers = Servers(folder)
    try:
        yield servers
    finally:
        servers.stop()


@dataclass(frozen=True, slots=True)
class Certificate:
    certfile: Path
    keyfile: Path
    cafile: Path

    def client_context(self) -> ssl.SSLContext:
        """A context that trusts this certificate and no other."""
        return ssl.create_default_context(cafile=str(self.cafile))


def make_certificate(folder: Path) -> Certificate:
    authority = trustme.CA()
    leaf = authority.issue_cert("127.0.0.1", "localhost")
    made = Certificate(folder / "cert.pem", folder / "key.pem", folder / "ca.pem")
    made.certfile.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    made.keyfile.write_bytes(leaf.private_key_pem.bytes())
    made.cafile.write_bytes(authority.cert_pem.bytes())
    return made


def nginx_program() -> str | None:
    # Debian keeps it where only root's PATH looks.
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


def haproxy_program() -> str | None:
    return shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")


def chromium_program() -> str | None:
    """The browser of the environment variable ``CHROMIUM``, else the first that is installed."""
    names = (os.environ.get("CHROMIUM", ""), *CHROMIUM_NAMES)
    return next((path for name in names if name and (path := shutil.which(name))), None)


@functools.cache
def _no_control_socket() -> tuple[str, ...]:
    """gunicorn's control socket is one file for each user, and newer than our lower bound."""
    from gunicorn import config  # here because importing it costs every other test a moment

    return ("--no-control-socket",) if "control_socket_disable" in config.make_settings() else ()
