from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import clients, wire_client
from tests.faults.bystander import Bystander, bystander
from tests.processes import Server, servers_in, wait_until
from tests.wire_client import WireClient

APPLICATION = Path(__file__).with_name("application.py").read_text()

_names = count()


@dataclass(frozen=True, slots=True)
class Target:
    """A server that serves the application of these tests.

    :param worker: the process that talks to clients.
    :param threads: it is Flask's development server, with a thread for each connection; else it
        is gunicorn with our worker.
    :param memory: bytes, resident, that the worker takes when it has just served its first client.
    """

    server: Server
    worker: psutil.Process
    threads: bool
    memory: int
    bystander: Bystander | None = None

    def connect(self, path: str = "/echo", *args: Any, **options: Any) -> WireClient:
        """Open a WebSocket, for a ``with`` statement."""
        return wire_client.connect(self.server.port, path, *args, **options)

    def raw(self) -> WireClient:
        """A TCP connection, for a ``with`` statement."""
        return WireClient(self.server.port)

    def state(self, query: str = "") -> dict[str, Any]:
        """What the application tells about itself."""
        status, body, _ = clients.http(self.server.url(f"/state{query}"))
        assert status == 200
        found: dict[str, Any] = json.loads(body)
        return found

    def ended(self, name: str) -> str:
        """Wait until a handler has ended and tell how."""
        wait_until(lambda: name in self.state()["ended"], f"the end of {name}")
        how: str = self.state()["ended"][name]
        return how

    def wait_until_alone(self) -> None:
        """Wait until no connection is left but the bystander's."""
        wait_until(lambda: self.state()["open"] == 1, "all other connections to end")


@pytest.fixture(
    scope="module", params=["gunicorn", pytest.param("flask-run", marks=pytest.mark.slow)]
)
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Target]:
    """One server for all tests of a module."""
    with servers_in(tmp_path_factory.mktemp(request.param)) as servers:
        if request.param == "gunicorn":
            # A longer line would be refused before the package sees it.
            server = servers.gunicorn(APPLICATION, args=["--limit-request-field_size", "65536"])
            (worker,) = psutil.Process(server.process.pid).children()
        else:
            server = servers.flask_run(APPLICATION)
            worker = psutil.Process(server.process.pid)
        with wire_client.connect(server.port) as client:
            client.send(wire_client.frame(wire_client.TEXT, b"first"))
            client.message()
        memory = worker.memory_info().rss
        yield Target(server, worker, threads=request.param == "flask-run", memory=memory)


@pytest.fixture
def target(running: Target, record_property: Callable[[str, object], None]) -> Iterator[Target]:
    """The server, while a bystander is served by it: its checks are made at the test's end."""
    with bystander(running.server.port, running.worker, running.memory) as watch:
        yield replace(running, bystander=watch)
    record_property("echoes", len(watch.waits))
    record_property("worst wait in s", round(watch.worst_wait, 3))
    record_property("memory growth in MiB", round(watch.memory_growth / 2**20, 1))
    # What a peer does is never an error in the log; what our handlers raise is, once.
    output = running.server.output
    assert output.count("Traceback (most") == output.count("RuntimeError: told by"), output


@pytest.fixture
def name() -> str:
    """A name for a handler that no other test of this process uses."""
    return f"handler{next(_names)}"
