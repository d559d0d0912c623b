"""Calls that are put off."""

from __future__ import annotations

import _thread

import pytest

from flask_sockets2.concurrency.delayed_calls import DelayedCalls
from tests.processes import wait_until


def test_calls_are_made_in_their_order() -> None:
    later, made = DelayedCalls(0.01), []
    for number in range(3):
        later.call(lambda number=number: made.append(number))
    wait_until(lambda: len(made) == 3, "all calls")
    assert made == [0, 1, 2]


def test_what_is_closed_is_not_called_and_what_comes_after_it_is() -> None:
    later, made = DelayedCalls(0.05), []
    later.call(lambda: made.append("before"))
    later.close()
    later.call(lambda: made.append("after"))
    wait_until(lambda: bool(made), "the call")
    assert made == ["after"]


def test_a_thread_that_cannot_be_started_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*args: object) -> None:
        raise RuntimeError("can't start new thread")

    later, made = DelayedCalls(0.0), []
    with monkeypatch.context() as patched:
        patched.setattr(_thread, "start_new_thread", refuse)
        later.call(lambda: made.append(1))
    assert "can't start new thread" in caplog.text
    later.call(lambda: made.append(2))
    wait_until(lambda: len(made) == 2, "both calls")
    assert made == [1, 2]


@pytest.mark.parametrize("error", [RuntimeError, IndexError])
def test_a_call_that_raises_is_logged_and_stops_no_other(
    error: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise error("broken")

    later, made = DelayedCalls(0.0), []
    later.call(fail)
    later.call(lambda: made.append("next"))
    wait_until(lambda: bool(made), "the next call")
    assert "broken" in caplog.text
