"""What only the transport on gevent's hub has to show."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import gevent
import gevent.socket

from flask_sockets2.transports.clock import RETRY
from flask_sockets2.transports.green import GreenTransport, hub_clock
from tests.connections import Greenlets, tcp_pair
from tests.processes import wait_until
from tests.transports.test_base import Recorder
from tests.wire_client import TIMEOUT, WireClient


def in_a_hub(function: Callable[[], Any]) -> Any:
    """Run a function in a greenlet of a new native thread and return what it returns."""
    results: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as exc:
            errors.append(exc)

    thread = threading.Thread(target=lambda: Greenlets().run(run), daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    assert not thread.is_alive(), "it did not end in time"
    if errors:
        raise errors[0]
    return results[0]


def started(recorder: Recorder) -> tuple[WireClient, Any, GreenTransport]:
    peer, sock = tcp_pair()
    own = gevent.socket.socket(fileno=sock.detach())
    own.setblocking(False)
    transport = GreenTransport(own)
    transport.start(recorder)
    return peer, own, transport


def until(condition: Callable[[], object]) -> None:
    with gevent.Timeout(TIMEOUT):
        while not condition():
            gevent.sleep(0.001)


def test_a_descriptor_may_be_another_connections_by_now() -> None:
    """pain 72: libev knows descriptors, not sockets."""

    def run() -> None:
        numbers = set()
        for number in range(50):
            recorder = Recorder()
            peer, sock, transport = started(recorder)
            with peer, sock:
                numbers.add(sock.fileno())
                peer.send(b"%d" % number)
                until(lambda recorder=recorder: recorder.data)  # type: ignore[misc]
                assert recorder.data == b"%d" % number
                transport.close()
            # Closed within one turn of the loop: the next one has its descriptor.
        assert len(numbers) < 50

    in_a_hub(run)


def test_a_woken_greenlet_runs_at_once_in_the_hubs_turn() -> None:
    def run() -> list[Any]:
        order: list[Any] = []
        waiter = hub_clock().waiter()

        class Waker(Recorder):
            def data_received(self, data: bytes) -> None:
                order.append("before")
                waiter.wake(data)
                order.append("after")

        peer, sock, transport = started(Waker())
        with peer, sock:
            peer.send(b"hello")
            order.append(waiter.wait(TIMEOUT))
            gevent.sleep(0)
            transport.close()
        return order

    assert in_a_hub(run) == ["before", b"hello", "after"]


def test_a_greenlet_killed_while_it_waits_leaves_its_waiter_usable() -> None:
    def run() -> Any:
        waiter = hub_clock().waiter()
        waiting = gevent.spawn(waiter.wait)
        until(lambda: waiter.waiting is not None)
        waiting.kill(timeout=TIMEOUT)
        assert waiter.waiting is None
        hub_clock().call_later(0.01, lambda: waiter.wake("woken"))
        return waiter.wait(TIMEOUT)

    assert in_a_hub(run) == "woken"


def test_a_greenlet_that_has_another_one_look_again_goes_on_first() -> None:
    def run() -> list[Any]:
        order: list[Any] = []
        waiter = hub_clock().waiter()
        waiter.wake_soon()  # nothing waits
        waiting = gevent.spawn(lambda: order.append(waiter.wait(TIMEOUT)))
        until(lambda: waiter.waiting is not None)
        waiter.wake_soon()
        waiter.wake_soon()
        order.append("goes on")
        waiting.join(TIMEOUT)
        return order

    assert in_a_hub(run) == ["goes on", RETRY]


def test_two_hubs_keep_their_clocks_apart() -> None:
    clocks = []

    def run() -> None:
        peer, sock, transport = started(Recorder())
        other_peer, other_sock, other = started(Recorder())
        with peer, sock, other_peer, other_sock:
            assert transport.clock is other.clock
            clocks.append(transport.clock)
            transport.close()
            other.close()

    in_a_hub(run)
    in_a_hub(run)
    assert clocks[0] is not clocks[1]


def test_a_closed_transport_leaves_no_watcher_behind() -> None:
    """pain 72: a hub without anything to watch ends."""

    def run() -> bool:
        peer, sock, transport = started(Recorder())
        with peer, sock:
            transport.write(bytes(10))
            transport.call_later(60, lambda: None).cancel()
            transport.close()
        return gevent.get_hub().join(timeout=TIMEOUT)

    done: list[Any] = []
    thread = threading.Thread(target=lambda: done.append(run()), daemon=True)
    thread.start()
    wait_until(lambda: done, "the hub to end")
    thread.join(TIMEOUT)
    assert done == [True]


def test_calls_are_made_in_order_and_sockets_are_looked_at_in_between() -> None:
    def run() -> list[Any]:
        came: list[Any] = []

        def work(number: int) -> None:
            end = time.monotonic() + 0.01
            while time.monotonic() < end:
                pass
            came.append(number)

        class Noting(Recorder):
            def data_received(self, data: bytes) -> None:
                came.append(data)

        peer, sock, transport = started(Noting())
        with peer, sock:
            calls = [transport.call_next(lambda n=n: work(n)) for n in range(10)]  # type: ignore[misc]
            calls[3].cancel()
            calls[0].cancel()
            calls[0].cancel()
            peer.send(b"in between")
            until(lambda: len(came) == 9)
            transport.close()
        return came

    came = in_a_hub(run)
    at = came.index(b"in between")
    assert at < 3
    assert came[:at] + came[at + 1 :] == [1, 2, 4, 5, 6, 7, 8, 9]


def test_a_call_that_raises_keeps_no_other_from_being_made() -> None:
    def run() -> list[int]:
        came: list[int] = []
        told: list[type[BaseException]] = []
        hub = gevent.get_hub()
        hub.handle_error = lambda context, kind, value, tb: told.append(kind)

        def fail() -> None:
            raise ZeroDivisionError

        peer, sock, transport = started(Recorder())
        with peer, sock:
            transport.call_next(fail)
            transport.call_next(lambda: came.append(1))
            until(lambda: came)
            transport.close()
        assert told == [ZeroDivisionError]
        return came

    assert in_a_hub(run) == [1]


def test_what_nobody_has_time_for_stays_in_the_kernel() -> None:
    """Otherwise many peers at once could fill the memory before anything of it is counted."""

    def run() -> list[tuple[int, int]]:
        came: list[tuple[int, int]] = []

        class Busy(Recorder):
            def __init__(self, number: int) -> None:
                super().__init__()
                self.number = number

            def data_received(self, data: bytes) -> None:
                came.append((self.number, len(data)))
                end = time.monotonic() + 0.01
                while time.monotonic() < end:
                    pass
                transports[self.number].pause()

        ends = [started(Busy(number)) for number in range(5)]
        transports = [transport for _, _, transport in ends]
        for transport in transports:
            transport.pause()
        for peer, own, _ in ends:
            peer.send(b"x" * 5000)
            until(lambda own=own: len(own._sock.recv(5000, socket.MSG_PEEK)) == 5000)  # type: ignore[misc]
        for transport in transports:
            transport.resume()
        until(lambda: len(came) == 5)
        for transport in transports:
            transport.read_now()  # its reading is paused
        assert len(came) == 5
        for transport in transports:
            transport.resume()
            transport.read_now()
        for peer, own, transport in ends:
            transport.close()
            peer.close()
            own.close()
        return came

    came = in_a_hub(run)
    assert [size for _, size in came[:5]] == [5000, 257, 257, 257, 257]
    first = came[0][0]
    assert came[5:] == [(number, 5000 - 257) for number in range(5) if number != first]
