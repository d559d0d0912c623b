"""Many clients make a worker hold what they like: within a bound, and it is given back.

Without a bound over all of them 100 clients take some 250 MiB, and glibc keeps them.
"""

from __future__ import annotations

import json
import select
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import clients
from tests.faults.bystander import bystander
from tests.faults.conftest import Target
from tests.processes import servers_in, wait_until
from tests.wire_client import BINARY, TEXT, WireClient, connect, frame

APPLICATION = Path(__file__).with_name("memory_application.py").read_text()

MIB = 2**20
LIMIT = 24 * MIB  # of the application
FLOODERS = 100
FLOODED = 5.0  # seconds; less than SOCKETS_SEND_TIMEOUT
GIVEN_BACK = 12 * MIB  # bytes by which the worker may be larger afterwards
# With threads glibc has up to eight heaps for each processor, and keeps the end of each.
GIVEN_BACK_BY_THREADS = 48 * MIB

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["gunicorn", "flask-run"])
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Target]:
    with servers_in(tmp_path_factory.mktemp(request.param)) as servers:
        if request.param == "gunicorn":
            server = servers.gunicorn(APPLICATION)
            (worker,) = psutil.Process(server.process.pid).children()
        else:
            server = servers.flask_run(APPLICATION)
            worker = psutil.Process(server.process.pid)
        target = Target(server, worker, threads=request.param == "flask-run", memory=0)
        with flooders(target, "/echo"):  # what is allocated once: threads, connections
            pass
        yield target


@contextmanager
def flooders(target: Target, path: str) -> Iterator[list[WireClient]]:
    """Clients that read nothing of what they are sent."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(connect(target.server.port, path, receive_buffer=4096))
            for _ in range(FLOODERS)
        ]


def flood(senders: list[WireClient], data: bytes) -> int:
    """Send some bytes again and again to all, for some seconds.

    :returns: how many the server has dropped.
    """
    left = {sender.sock: memoryview(data) for sender in senders}
    for sock in left:
        sock.setblocking(False)
    until = time.monotonic() + FLOODED
    while left and time.monotonic() < until:
        _, writable, _ = select.select([], list(left), [], 0.2)
        for sock in writable:
            try:
                sent = sock.send(left[sock])
            except BlockingIOError:
                continue
            except OSError:
                del left[sock]
                continue
            left[sock] = left[sock][sent:] or memoryview(data)
    return len(senders) - len(left)


def stats(target: Target) -> dict[str, Any]:
    _, body, _ = clients.http(target.server.url("/stats"))
    found: dict[str, Any] = json.loads(body)
    return found


def wait_until_within_the_limit(target: Target) -> None:
    """Evictions may be under way, in another turn of the hub or selector thread."""
    wait_until(lambda: stats(target)["buffered"] <= LIMIT, "the total to be within the limit")


def _here(target: Target) -> int:
    told = stats(target)
    here: int = told["connections"] + told["streams"]
    return here


@pytest.fixture
def watched(running: Target, record_property: Callable[[str, object], None]) -> Iterator[Target]:
    """The server, while a bystander is served; afterwards it holds nothing and is small again."""
    memory = running.worker.memory_info().rss
    with bystander(running.server.port, running.worker, memory) as watch:
        yield running
        wait_until(lambda: _here(running) == 1, "the others to be gone")
        wait_until(lambda: not stats(running)["buffered"], "all that was held to be released")

        def growth() -> int:
            return running.worker.memory_info().rss - memory

        most = GIVEN_BACK_BY_THREADS if running.threads else GIVEN_BACK
        wait_until(lambda: growth() < most, "memory to be given back")
    record_property("worst wait in s", round(watch.worst_wait, 3))
    record_property("memory growth in MiB", round(watch.memory_growth / MIB, 1))
    record_property("growth afterwards in MiB", round(growth() / MIB, 1))
    assert "Traceback (most" not in running.server.output


def test_clients_that_do_not_read_their_echoes(watched: Target) -> None:
    with flooders(watched, "/echo") as senders:
        dropped = flood(senders, frame(BINARY, bytes(64 * 1024)))
        wait_until_within_the_limit(watched)
        assert stats(watched)["evicted"] >= dropped


def test_clients_whose_handlers_are_busy(watched: Target) -> None:
    with flooders(watched, "/busy") as senders:
        flood(senders, frame(BINARY, bytes(10_000)) * 20)
        wait_until_within_the_limit(watched)


def test_clients_that_stop_in_the_middle_of_a_message(watched: Target) -> None:
    """Most of them are told 1013, and the bystander is not among them."""
    before = stats(watched)["evicted"]
    with flooders(watched, "/echo") as senders:
        for sender in senders:
            sender.sock.settimeout(60)
            sender.send(frame(TEXT, size=MIB) + bytes(MIB - 1000))
        wait_until(lambda: stats(watched)["evicted"] - before >= 70, "most to be evicted")
        wait_until_within_the_limit(watched)
        left, codes = {sender.sock: sender for sender in senders}, []

        def are_told() -> bool:
            for sock in select.select([*left], [], [], 0)[0]:
                codes.append(left.pop(sock).closing()[0])
            return codes.count(1013) > 25

        wait_until(are_told, "them to be told")


@contextmanager
def readers(target: Target) -> Iterator[None]:
    """Event streams that nobody reads."""
    with ExitStack() as stack:
        for _ in range(FLOODERS):
            client = stack.enter_context(WireClient(target.server.port, receive_buffer=4096))
            client.send(b"GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        yield


@pytest.mark.parametrize("kind", ["connections", "streams"])
def test_listeners_that_do_not_read_share_what_waits_for_them(kind: str, watched: Target) -> None:
    """100 times 0.5 MiB would be too much; in memory it is there a few times at most."""
    before = stats(watched)
    with flooders(watched, "/listen") if kind == "connections" else readers(watched):
        wait_until(lambda: stats(watched)[kind] - before[kind] == FLOODERS, "all of them to listen")
        told = before
        while not told["buffered"]:  # the kernel takes some megabytes for each
            clients.http(watched.server.url("/publish?size=100000"))
            told = stats(watched)
        for _ in range(4):
            clients.http(watched.server.url("/publish?size=100000"))
        told = stats(watched)
    assert told["evicted"] == before["evicted"]
    assert told["buffered"] < LIMIT / 2
