"""Memory that no budget counts goes back to the system; not too often."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import psutil
import pytest

from flask_sockets2.transports import memory
from tests.processes import Server, wait_until
from tests.wire_client import BINARY, WireClient, connect, frame

StartServer = Callable[..., Server]

MIB = 2**20


class Hub:
    """A clock whose calls are made when the test says so."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, Callable[[], None]]] = []

    def call_soon(self, function: Callable[[], None]) -> None:
        function()

    def call_later(self, delay: float, function: Callable[[], None]) -> None:
        self.calls.append((delay, function))

    def inside(self) -> bool:
        return True


class World:
    """The time, and memory that can go back to the system."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.free = 0
        self.given_back: list[float] = []  # when
        monkeypatch.setattr(memory, "monotonic", lambda: self.now)
        monkeypatch.setattr(memory, "_resident", lambda: 100 * MIB + self.free)
        monkeypatch.setattr(memory, "give_back", self._give_back)
        for name in ("_due_by", "_not_before"):
            monkeypatch.setattr(memory, name, 0.0)

    def _give_back(self) -> None:
        self.given_back.append(self.now)
        self.free = 0

    def settle(self, hub: Hub) -> None:
        """Let the time pass until all calls are made."""
        while hub.calls:
            delay, function = hub.calls.pop(0)
            self.now += delay
            function()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_memory_goes_back_once_for_all_that_end_within_a_moment(world: World) -> None:
    hub = Hub()
    for _ in range(1000):
        memory.ended(hub)
    assert len(hub.calls) == 1
    world.settle(hub)
    assert world.given_back == [1001.0]


def test_it_goes_back_seldom_as_long_as_little_is_found_and_soon_if_much_was(world: World) -> None:
    hub = Hub()
    for free in (0, 7 * MIB, 8 * MIB, 100 * MIB, 0, 0):
        world.free = free
        memory.ended(hub)
        world.settle(hub)
    times = world.given_back
    pauses = [after - before for before, after in pairwise(times)]
    assert pauses == [10, 10, 5, 5, 10]


def test_a_hub_that_ends_before_its_call_is_waited_for_no_longer(world: World) -> None:
    gone, hub = Hub(), Hub()
    memory.ended(gone)
    world.now += 20
    memory.ended(hub)
    world.settle(hub)
    assert len(world.given_back) == 1


APPLICATION = """
from flask import Flask, request
from flask_sockets2 import Sockets

app = Flask(__name__)
sockets = Sockets(app)


@app.post("/form")
def form():
    return str(len(request.form))


@sockets.route("/keep")
def keep(ws):
    for message in ws:
        pass  # and it stays in the variable
"""

FORM = (
    b"POST /form HTTP/1.1\r\nHost: a\r\nContent-Length: 400000\r\n"
    b"Content-Type: application/x-www-form-urlencoded\r\n\r\n"
)


@pytest.mark.parametrize("held", ["forms", "messages"])
def test_what_clients_leave_behind_goes_back_to_the_system(
    held: str, gunicorn: StartServer
) -> None:
    """Forms that never came to their end, and messages in the hands of handlers."""
    server = gunicorn(APPLICATION)
    (worker,) = psutil.Process(server.process.pid).children()
    before = worker.memory_info().rss
    clients = []
    for _ in range(160):
        if held == "forms":
            client = WireClient(server.port)
            client.send(FORM + b"x" * 399_000)
        else:
            client = connect(server.port, "/keep")
            client.send(frame(BINARY, bytes(500_000)))
        clients.append(client)
    wait_until(lambda: worker.memory_info().rss > before + 48 * MIB, "the worker to hold it")
    for client in clients:
        client.close()
    wait_until(lambda: worker.memory_info().rss < before + 24 * MIB, "the memory to go back")
