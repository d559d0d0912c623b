"""What connections cost is given back, and what is sent at once is sent whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.clients import http
from tests.faults.conftest import Target
from tests.processes import wait_until
from tests.wire_client import (
    BINARY,
    CLOSE,
    CONTINUATION,
    TEXT,
    WireClient,
    close_frame,
    frame,
    request,
)

MIB = 2**20
ATTACHED = 50  # connections open at once


def test_messages_of_1_mib_from_two_senders_do_not_interleave(target: Target) -> None:
    """Pains 75, 76"""
    with target.connect("/both/8", receive_buffer=65536) as client:
        seen: Counter[bytes] = Counter()
        while (came := client.frame()).opcode != CLOSE:
            assert came.fin
            assert came.opcode == BINARY
            assert len(came.payload) == MIB
            letter = came.payload[:1]
            assert came.payload == letter * MIB
            seen[letter] += 1
    assert seen == {b"a": 8, b"b": 8}


def test_both_directions_at_once_are_whole(target: Target) -> None:
    """Pain 75"""
    messages = [bytes((number,)) * 700_000 for number in range(16)]
    with target.connect() as client, ThreadPoolExecutor(1) as pool:
        sending = pool.submit(lambda: [client.send(frame(BINARY, data)) for data in messages])
        assert [client.message() for _ in messages] == messages
        sending.result(60)


@pytest.mark.parametrize("leave", [WireClient.close, WireClient.reset])
def test_who_leaves_before_the_101_is_no_error(
    target: Target, name: str, leave: Callable[[WireClient], None]
) -> None:
    """Pains 25, 59, 72"""
    with target.raw() as client:
        client.send(request(f"/late/{name}") + frame(TEXT, b"x"))
        target.server.wait_for_output(f"^{name} is there")
        leave(client)
        assert http(target.server.url(f"/accept/{name}"), data=b"")[0] == 200
        assert target.ended(name) in ("returned", "the connection is closed with code 1006")
    target.wait_until_alone()


def _leave(client: WireClient) -> None:
    client.close()


def _reset(client: WireClient) -> None:
    client.reset()


def _close(client: WireClient) -> None:
    client.send(close_frame())
    assert client.closing()[0] == 1000


def _leave_in_a_frame(client: WireClient) -> None:
    client.send(frame(TEXT, b"x", fin=False) + frame(CONTINUATION, size=100) + b"half")
    client.close()


def _fail(client: WireClient) -> None:
    client.send(frame(TEXT, b"\xff"))
    client.close()


def _leave_an_answer(client: WireClient) -> None:
    client.send(frame(BINARY, bytes(50_000)))
    client.close()


ENDS: list[Callable[[WireClient], None]] = [
    _leave,
    _reset,
    _close,
    _leave_in_a_frame,
    _fail,
    _leave_an_answer,
]


def _open_and_drop(target: Target, count: int) -> None:
    """Open connections, some dozens at a time, and let them end in every way there is.

    Between them are some that end before the 101, and some that are refused.
    """
    for start in range(0, count, ATTACHED):
        clients = [target.raw() for _ in range(ATTACHED)]
        try:
            for client in clients:
                client.send(request())
            for number, client in enumerate(clients, start):
                if number % 10 == 7:
                    client.reset()  # it did not wait for the 101
                    continue
                assert client.response().status == 101
                ENDS[number % len(ENDS)](client)
        finally:
            for client in clients:
                client.close()
        with target.raw() as client:
            client.send(request("/refuses"))
            assert client.response().status == 401


@pytest.mark.slow
def test_5000_connections_opened_and_dropped_leave_nothing(target: Target) -> None:
    """Pains 72, 73, 74"""
    _open_and_drop(target, 500)  # what is allocated once
    target.wait_until_alone()
    before = target.state("?count")
    descriptors, threads = target.worker.num_fds(), target.worker.num_threads()
    memory = target.worker.memory_info().rss

    _open_and_drop(target, 5000)

    target.wait_until_alone()
    wait_until(lambda: target.worker.num_fds() <= descriptors, "descriptors to be closed")
    wait_until(lambda: target.worker.num_threads() <= threads, "threads to end")
    wait_until(
        lambda: target.state("?count")["objects"] <= before["objects"], "objects to be freed"
    )
    assert target.worker.memory_info().rss - memory < 8 * MIB
