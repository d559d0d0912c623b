"""The measurement of attacks measures; what the package makes of them is tested elsewhere."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from flask_sockets2.servers.gevent import WebSocketHandler

from .attacks import ATTACKS
from .run import Waits, attack

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_harmless_client_costs_nothing() -> None:
    outcome = attack("one honest browser", 0.5, ROOT)
    assert outcome.echo is not None
    assert outcome.page > 0
    assert outcome.failed == 0
    assert outcome.before <= outcome.peak
    assert not outcome.killed
    assert outcome.stopped is None


@pytest.mark.slow
def test_the_time_that_a_server_takes_to_stop_is_measured() -> None:
    outcome = attack("idle connections while it stops", 0.5)
    assert outcome.stopped is not None
    assert outcome.stopped > 0
    assert not outcome.killed


@pytest.mark.parametrize("name", [name for name in ATTACKS if name.startswith("30 ")])
def test_an_attack_on_places_outlasts_the_deadline_that_ends_it(name: str) -> None:
    heads = "heads" in name or "silent" in name
    deadline = WebSocketHandler.handshake_timeout if heads else WebSocketHandler.stall_timeout
    assert ATTACKS[name].seconds > deadline


def test_a_wait_that_goes_on_counts_and_is_told_as_such() -> None:
    waits, begun, go = Waits(), threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        go.wait(30)

    waits.look(lambda: None)
    waits.settle()
    assert waits.over
    thread = threading.Thread(target=waits.look, args=(wait,))
    thread.start()
    assert begun.wait(30)
    waits.longest = 0.0
    waits.settle()
    assert not waits.over
    assert waits.longest > 0
    go.set()
    thread.join(30)


def test_a_page_that_fails_is_counted() -> None:
    waits = Waits()

    def fail() -> None:
        raise ConnectionRefusedError

    waits.look(fail)
    assert (waits.failed, waits.over) == (1, True)
