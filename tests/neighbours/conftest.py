"""Starts each application of the matrix on each server.

What the neighbours bring along would hide what the package forgot to require, so they have an
environment of their own: ``make neighbours``. In another one nothing here is collected.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.brokers.servers import RedisServer, redis_or_skip
from tests.conftest import ROOT
from tests.neighbours.visitor import FOREIGN, Visitor
from tests.processes import Server, Servers

if find_spec("sentry_sdk") is None:
    collect_ignore_glob = ["test_*.py"]

SERVERS = ("worker", "WebSocketServer", FOREIGN, "gevent", "gthread", "flask run")
GREEN = SERVERS[:4]
"""Those on gevent."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    folder = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(folder):
            item.add_marker(pytest.mark.neighbours)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marks = metafunc.definition.iter_markers("parametrize")
    chosen = any("kind" in mark.args[0] for mark in marks)
    if "cell" in metafunc.fixturenames and not chosen:
        metafunc.parametrize("kind", SERVERS)


class Cell:
    """One application on one server.

    :param kind: one of ``SERVERS``.
    """

    def __init__(self, servers: Servers, kind: str) -> None:
        self._servers = servers
        self.kind = kind
        self.foreign = kind == FOREIGN
        self.ours = kind in ("worker", "WebSocketServer")
        self.errors = 0  # tracebacks that the test has provoked

    def start(self, application: str, *, prefix: str = "", **environ: str) -> Visitor:
        """Start an application, and come to visit it.

        :param application: a module of ``tests.neighbours.applications``.
        :param environ: more variables of its environment.
        """
        module = f"tests.neighbours.applications.{application}"
        self.server = self._serve(module, {"PYTHONWARNINGS": "default", **environ})
        return Visitor(self.server, self.kind, prefix=prefix)

    def _serve(self, module: str, environ: dict[str, str]) -> Server:
        servers = self._servers
        target = f"{module}:app"
        if self.kind == "flask run":
            return servers.flask_run(target=target, cwd=ROOT, environ=environ)
        if self.kind in ("worker", "gevent", "gthread"):
            worker = "flask_sockets2.worker" if self.kind == "worker" else self.kind
            args = ["--threads=20"] if self.kind == "gthread" else []
            return servers.gunicorn(
                worker=worker, args=args, target=target, cwd=ROOT, environ=environ
            )
        program = [sys.executable, "-m", "tests.neighbours.serve", self.kind, module]
        server = servers.start(program, cwd=ROOT, environ=environ)
        server.port = int(server.wait_for_output(r"^serving on port (\d+)")[1])
        return server

    def looks_clean(self) -> None:
        """See that the server has logged no error that was not provoked, and no warning of ours."""
        output = self.server.output
        assert output.count("Traceback") == self.errors, output
        assert not re.search(r"flask_sockets2/\S+: \w*Warning", output), output
        assert "Failed to detach context" not in output, output


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    yield from redis_or_skip()


@pytest.fixture
def cell(kind: str, server_factory: Servers) -> Iterator[Cell]:
    """A cell of the matrix; its server's log is looked at when the test has passed."""
    made = Cell(server_factory, kind)
    yield made
    with contextlib.suppress(ProcessLookupError):
        os.killpg(made.server.process.pid, signal.SIGKILL)  # stop() would give it a second
    made.looks_clean()
