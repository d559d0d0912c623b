"""Calling the roll: who is present is told anew, also after the broker failed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing

import pytest

from flask_sockets2 import BrokerError
from flask_sockets2.fanout.roll_call import _ATTEMPTS, RollCall
from tests.processes import wait_until

WAIT = 60.0


class Broker:
    """Fails for a while, and notes in which channels the roll was called."""

    def __init__(self, fails: Callable[[str], bool]) -> None:
        self.called: list[str] = []
        self._fails = fails

    def call(self, channel: str) -> None:
        self.called.append(channel)
        if self._fails(channel):
            raise BrokerError("away")


@pytest.fixture(autouse=True)
def _retries_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flask_sockets2.fanout.roll_call._RETRY", 0.0)


def test_a_broker_that_fails_is_asked_five_times(caplog: pytest.LogCaptureFixture) -> None:
    broker = Broker(lambda channel: len(broker.called) < _ATTEMPTS)
    with closing(RollCall(0.0, broker.call)) as roll_call:
        roll_call.ask("room")
        wait_until(lambda: len(broker.called) == _ATTEMPTS, "the attempt that succeeds")
    assert broker.called == ["room"] * 5
    assert caplog.records == []


def test_after_five_attempts_it_waits_until_it_is_asked_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = Broker(lambda channel: len(broker.called) < 2 * _ATTEMPTS)
    with closing(RollCall(0.0, broker.call)) as roll_call:
        roll_call.ask("room")
        wait_until(lambda: caplog.records, "the warning")
        assert broker.called == ["room"] * _ATTEMPTS
        roll_call.ask("room")
        wait_until(lambda: len(broker.called) == 2 * _ATTEMPTS, "the attempt that succeeds")
    assert [record.getMessage() for record in caplog.records] == [
        "could not tell 1 channels anew who is there: away"
    ]


def test_only_failures_in_a_row_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    broker = Broker(lambda channel: len(broker.called) % _ATTEMPTS != 0)
    with closing(RollCall(0.0, broker.call)) as roll_call:
        for count in (_ATTEMPTS, 2 * _ATTEMPTS):
            roll_call.ask("room")
            wait_until(lambda count=count: len(broker.called) == count, "the last attempt")  # type: ignore[misc]
    assert caplog.records == []


def test_a_channel_that_is_named_twice_is_called_once() -> None:
    go = threading.Event()

    def fails(channel: str) -> bool:
        go.wait(WAIT)
        return False

    broker = Broker(fails)
    with closing(RollCall(0.0, broker.call)) as roll_call:
        roll_call.ask("first")
        wait_until(lambda: broker.called, "the first")
        for channel in ("a", "b", "a"):
            roll_call.ask(channel)
        go.set()
        wait_until(lambda: broker.called[-1] == "b", "the last")
    assert broker.called == ["first", "a", "b"]


def test_nothing_is_called_after_the_end() -> None:
    broker = Broker(lambda channel: False)
    roll_call = RollCall(0.0, broker.call)
    roll_call.close()
    roll_call.ask("room")
    assert not roll_call._scheduled
    assert broker.called == []
