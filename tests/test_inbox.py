"""The inbox of a connection, with a transport that notes what it is told."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from sys import getsizeof
from typing import Any

import pytest

from flask_sockets2.connection.inbox import Inbox
from flask_sockets2.connection.limits import Limits
from flask_sockets2.stats import RouteCounters
from flask_sockets2.transports.budget import Budget, Share
from flask_sockets2.transports.clock import RETRY

MESSAGE = bytes(1000)
SIZE = getsizeof(MESSAGE)
LIMITS = Limits(receive_buffer=4 * SIZE)


class Timer:
    cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Connection:
    """The reader, its transport, the clock and the waiter of that."""

    lock: AbstractContextManager[Any] = nullcontext()
    buffered = 0
    closed = False

    def __init__(self) -> None:
        self.clock = self
        self.share = Share(Budget(100 * SIZE), None)
        self.waiting: object | None = None
        self.to_receive: list[Any] = []
        self.reading = True
        self.looks = 0
        self.woken_with: list[Any] = []
        self.timers: list[tuple[Callable[[], None], Timer]] = []

    def pause(self) -> None:
        self.reading = False

    def read_on(self) -> None:
        self.reading = True

    def look_for_reset(self) -> None:
        self.looks += 1

    def waiter(self, lock: Any, unread: Callable[[], bool]) -> Connection:
        return self

    def wait(self, timeout: float | None) -> Any:
        if not self.to_receive:
            raise TimeoutError
        return self.to_receive.pop(0)

    def wake(self, message: Any) -> None:
        self.waiting = None
        self.woken_with.append(message)

    def call_soon(self, function: Callable[[], None]) -> None:
        function()

    def call_later(self, delay: float, function: Callable[[], None]) -> Timer:
        self.timers.append((function, Timer()))
        return self.timers[-1][1]


def inbox_of(connection: Any, **limits: Any) -> Inbox:
    return Inbox(connection, connection.read_on, replace(LIMITS, **limits), RouteCounters())


@pytest.fixture
def connection() -> Connection:
    return Connection()


def take(inbox: Inbox) -> Any:
    """Take a message that is there."""
    assert inbox.messages
    return inbox.receive(None)


def test_one_who_waits_is_given_the_first_message_and_the_others_wait(
    connection: Connection,
) -> None:
    inbox = inbox_of(connection)
    with pytest.raises(TimeoutError):
        inbox.receive(0.0)
    connection.waiting = object()
    inbox.deliver(["a", "b", "c"])
    assert connection.woken_with == ["a"]
    assert inbox.handling
    assert list(inbox.messages or ()) == ["b", "c"]


def test_a_receiver_that_is_woken_without_a_message_waits_again(connection: Connection) -> None:
    inbox = inbox_of(connection)
    connection.to_receive = [RETRY, RETRY, "a"]
    assert inbox.receive(None) == "a"


def test_a_handler_that_comes_back_answers_the_close_frame_that_waits(
    connection: Connection,
) -> None:
    inbox = inbox_of(connection)
    inbox.hold(inbox.stop)
    assert inbox.has_unread()
    assert inbox.receive(None) is None
    assert inbox.release is None


def test_a_handler_that_has_returned_can_receive_no_more(connection: Connection) -> None:
    inbox = inbox_of(connection)
    inbox.leave()
    assert inbox.has_unread()
    with pytest.raises(RuntimeError, match="receive in the handler"):
        inbox.receive(None)


def test_reading_stops_beyond_the_buffer_and_goes_on_at_half_of_it(
    connection: Connection,
) -> None:
    inbox = inbox_of(connection)
    inbox.deliver([MESSAGE] * 4)
    assert connection.reading
    inbox.deliver([MESSAGE])
    assert inbox.paused
    assert not connection.reading
    take(inbox)
    take(inbox)
    assert not connection.reading
    take(inbox)
    assert connection.reading
    assert not inbox.paused


def test_a_handler_that_catches_up_does_not_undo_a_pause_for_the_rate(
    connection: Connection,
) -> None:
    """In a threaded server the selector thread may slow the peer down just then."""
    decided, slowed = threading.Event(), threading.Event()

    class SlowInbox(Inbox):
        def _resume(self) -> None:
            decided.set()
            slowed.wait(0.2)
            super()._resume()

    connection.lock = threading.RLock()
    limits = replace(LIMITS, max_message_rate=2.0)
    inbox = SlowInbox(connection, connection.read_on, limits, RouteCounters())
    inbox.deliver([MESSAGE])
    inbox.paused = True  # as if it had been full
    handler = threading.Thread(target=take, args=[inbox])
    handler.start()
    assert decided.wait(60)
    with connection.lock:  # as the selector thread does
        inbox.deliver([MESSAGE] * 2)
    slowed.set()
    handler.join(60)
    assert connection.timers
    assert inbox.paused
    assert not connection.reading


def test_one_who_sends_too_often_is_read_again_after_a_while(connection: Connection) -> None:
    inbox = inbox_of(connection, max_message_rate=2.0)
    inbox.deliver(["a", "b"])
    assert connection.reading
    inbox.deliver(["c"])
    assert not connection.reading
    while inbox.messages:
        take(inbox)
    assert not connection.reading
    (time_is_over, _), _look = connection.timers
    time_is_over()
    assert connection.reading


def test_as_long_as_nothing_is_read_resets_are_looked_for(connection: Connection) -> None:
    inbox = inbox_of(connection)
    inbox.deliver([MESSAGE] * 5)
    inbox.deliver([MESSAGE])
    for number in range(3):
        assert len(connection.timers) == number + 1
        connection.timers[-1][0]()
        assert connection.looks == number + 1
    while inbox.messages:
        take(inbox)
    assert connection.reading
    connection.timers[-1][0]()
    assert connection.looks == 3
    assert len(connection.timers) == 4
    inbox.deliver([MESSAGE] * 5)
    assert len(connection.timers) == 5


def test_nothing_is_looked_for_once_a_connection_closes(connection: Connection) -> None:
    inbox = inbox_of(connection)
    inbox.deliver([MESSAGE] * 5)
    [(look, timer)] = connection.timers
    inbox.stop()
    assert timer.cancelled
    inbox.paused = connection.closed = True
    look()
    assert connection.looks == 0
    assert len(connection.timers) == 1


def test_a_connection_that_closes_is_read_to_its_end(connection: Connection) -> None:
    inbox = inbox_of(connection, max_message_rate=1.0)
    inbox.deliver([MESSAGE] * 5)
    assert not connection.reading
    inbox.stop()
    assert connection.reading
    assert connection.timers[0][1].cancelled
    inbox.deliver([MESSAGE] * 5)
    assert connection.reading


def test_a_connection_that_closes_in_the_middle_of_a_read_does_not_pause_again(
    connection: Connection,
) -> None:
    """Its handler may close it while the rest of what was read is delivered."""
    inbox = inbox_of(connection)
    budget = connection.share.budget
    inbox.stop()
    budget.total = budget.limit
    inbox.deliver([MESSAGE] * 10)
    assert budget.tight
    assert connection.reading
    assert not inbox.paused
    assert not budget._waiting
    assert not [timer for _, timer in connection.timers if not timer.cancelled]


def test_what_comes_for_a_handler_that_has_returned_is_thrown_away(
    connection: Connection,
) -> None:
    inbox = inbox_of(connection)
    inbox.deliver([MESSAGE] * 5)
    assert inbox.busy
    inbox.leave()
    assert connection.reading
    inbox.deliver([MESSAGE] * 5)
    assert not inbox.busy
    assert not inbox.messages
    assert connection.reading


def test_the_end_comes_behind_the_messages_and_takes_no_room(connection: Connection) -> None:
    inbox = inbox_of(connection)
    inbox.deliver([MESSAGE] * 4)
    inbox.end()
    assert connection.reading
    assert list(inbox.messages or ()) == [*[MESSAGE] * 4, None]
