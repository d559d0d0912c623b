"""Starts of gunicorn without the half second in which Python and gunicorn are imported.

A process that has imported what gunicorn's master imports by itself, the classes of our worker
included, forks a child for each server. The child runs the same script, with the arguments, the
folder, the environment and the log that it is given. So master and workers are gunicorn's own, and
only the interpreter's start is missing.

As a script, this is that process.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from gunicorn import config, util

__all__ = ["WarmProcess", "start_warm"]

_AT_START = ("PYTHON", "GEVENT", "LC_", "LANG", "LD_", "MALLOC")
"""Beginnings of the names of variables that count when an interpreter starts, and not later."""

_AT_IMPORT = ("WEB_CONCURRENCY", "PORT", "FORWARDED_ALLOW_IPS", "SENDFILE")
"""Those that gunicorn reads when it is imported."""

_TIMEOUT = 60.0  # seconds


def start_warm(
    command: Sequence[str], *, cwd: Path, log: Path, environ: Mapping[str, str]
) -> WarmProcess | None:
    """Start gunicorn's script.

    :param command: the script's path, and its arguments.
    :param log: file that takes the standard output and error.
    :param environ: all variables.
    :returns: None if the variables ask for another interpreter than the one that is warm.
    """
    warm = _warm()
    if _at_start(environ) != warm.at_start:
        return None
    return warm.start(command, cwd, log, environ)


def _at_start(environ: Mapping[str, str]) -> dict[str, str]:
    names = (*_AT_START, *_AT_IMPORT)
    return {name: value for name, value in environ.items() if name.startswith(names)}


@functools.cache
def _warm() -> _Warm:
    return _Warm()


class WarmProcess:
    """A forked child, with as much of the interface of :class:`subprocess.Popen` as tests use."""

    def __init__(self, warm: _Warm, args: Sequence[str], pid: int) -> None:
        self.args = args
        self.pid = pid
        self.returncode: int | None = None
        self._warm = warm

    def poll(self) -> int | None:
        self._warm.read(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.returncode is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            self._warm.read(0.05)
        return self.returncode

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


class _Warm:
    """The process that forks, seen from the tests."""

    def __init__(self) -> None:
        self.at_start = _at_start({**os.environ, "PYTHONUNBUFFERED": "1"})
        self._lock = threading.Lock()  # guards what follows
        self._processes: dict[int, WarmProcess] = {}
        self._started: list[int] = []
        self._rest = b""
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,  # it ends when its socket does
            )

    def start(
        self, command: Sequence[str], cwd: Path, log: Path, environ: Mapping[str, str]
    ) -> WarmProcess:
        request = {
            "command": list(command),
            "cwd": str(cwd),
            "log": str(log),
            "environ": dict(environ),
        }
        with self._lock:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            deadline = time.monotonic() + _TIMEOUT
            while not self._started:
                assert time.monotonic() < deadline, "the process that forks does not answer"
                self._read(1.0)
            process = WarmProcess(self, command, self._started.pop())
            self._processes[process.pid] = process
        return process

    def read(self, timeout: float) -> None:
        """Note which processes have ended, after so many seconds at most."""
        with self._lock:
            self._read(timeout)

    def _read(self, timeout: float) -> None:
        if not select.select([self._socket], [], [], timeout)[0]:
            return
        data = self._socket.recv(65536)
        assert data, "the process that forks has ended"
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            what, pid, *status = line.split()
            if what == b"started":
                self._started.append(int(pid))
            elif (process := self._processes.pop(int(pid), None)) is not None:
                process.returncode = int(status[0])


# -- the process that forks --------------------------------------------------------------------


def _serve(ours: socket.socket) -> dict[str, object] | None:
    """Fork a child for each request.

    :returns: the request in the child; None in this process, when there are no more requests.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    rest = b""
    while True:
        ready, _, _ = select.select([ours.fileno(), reading], [], [])
        if reading in ready:
            os.read(reading, 4096)
            _reap(ours)
        if ours.fileno() not in ready:
            continue
        data = ours.recv(65536)
        if not data:
            return None
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os.close(reading)
                os.close(writing)
                request: dict[str, object] = json.loads(line)
                return request
            ours.sendall(b"started %d\n" % pid)


def _reap(ours: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        ours.sendall(b"ended %d %d\n" % (pid, os.waitstatus_to_exitcode(status)))


def _become(command: list[str], cwd: str, log: str, environ: dict[str, str]) -> None:
    """Run a script as a new interpreter would."""
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.chdir(cwd)
    config.Chdir.default = cwd  # as of the folder when gunicorn is imported
    os.environ.clear()
    os.environ.update(environ)
    sys.argv = command
    sys.orig_argv = [sys.executable, *command]
    sys.path[0] = str(Path(command[0]).parent)
    runpy.run_path(command[0], run_name="__main__")


def main() -> None:
    importlib.import_module("gunicorn.app.wsgiapp")
    util.load_class("flask_sockets2.worker")
    with socket.socket(fileno=int(sys.argv[1])) as ours:
        request = _serve(ours)
    if request is not None:
        _become(**request)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
