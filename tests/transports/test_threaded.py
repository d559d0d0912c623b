"""What only the transport on the selector thread has to show."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from pathlib import Path
from textwrap import dedent

import pytest

from flask_sockets2.transports import threaded
from flask_sockets2.transports.clock import RETRY
from flask_sockets2.transports.threaded import ThreadedTransport, selector_clock
from tests.connections import tcp_pair
from tests.processes import FORKS, wait_until
from tests.transports.test_base import Recorder
from tests.wire_client import TIMEOUT

ROOT = Path(__file__).parents[2]


def run_program(source: str) -> str:
    """Run a program to its end; return what it wrote."""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-W", FORKS, "-c", dedent(source)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


def test_one_thread_serves_all_connections() -> None:
    pairs = [tcp_pair() for _ in range(10)]
    recorders = [Recorder() for _ in pairs]
    transports = [ThreadedTransport(sock) for _, sock in pairs]
    try:
        for transport, recorder in zip(transports, recorders, strict=True):
            transport.start(recorder)
        names = [thread.name for thread in threading.enumerate()]
        assert names.count("flask_sockets2 selector") == 1
        for number, (peer, _) in enumerate(pairs):
            peer.send(b"%d" % number)
        wait_until(lambda: all(recorder.data for recorder in recorders), "the bytes")
        assert [bytes(recorder.data) for recorder in recorders] == [b"%d" % n for n in range(10)]
    finally:
        for transport, (peer, sock) in zip(transports, pairs, strict=True):
            transport.close()
            sock.close()
            peer.close()


def test_a_descriptor_may_be_another_connections_by_now() -> None:
    """pain 72: a late call of the former owner must not take it away."""
    numbers = set()
    for number in range(100):
        peer, sock = tcp_pair()
        with peer, sock:
            numbers.add(sock.fileno())
            recorder = Recorder()
            transport = ThreadedTransport(sock)
            transport.start(recorder)
            peer.send(b"%d" % number)
            wait_until(lambda recorder=recorder: recorder.data, "the bytes")  # type: ignore[misc]
            assert recorder.data == b"%d" % number
            transport.close()
    assert len(numbers) < 100


def test_an_error_of_one_connection_is_logged_and_ends_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(Recorder):
        def data_received(self, data: bytes) -> None:
            raise RuntimeError("told by the test")

    recorder = Recorder()
    (peer, sock), (other_peer, other_sock) = tcp_pair(), tcp_pair()
    with peer, sock, other_peer, other_sock:
        broken, whole = ThreadedTransport(sock), ThreadedTransport(other_sock)
        broken.start(Broken())
        whole.start(recorder)
        peer.send(b"x")
        wait_until(lambda: "told by the test" in caplog.text, "the log")
        other_peer.send(b"hello")
        wait_until(lambda: recorder.data == b"hello", "the bytes")
        broken.close()
        whole.close()
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_wait_does_not_wait_while_something_is_unread() -> None:
    waiter = selector_clock().waiter(unread=lambda: True)
    assert waiter.wait() is RETRY


def test_a_thread_that_waits_can_be_made_to_look_again() -> None:
    waiter = selector_clock().waiter()
    got: list[object] = []
    thread = threading.Thread(target=lambda: got.append(waiter.wait(TIMEOUT)), daemon=True)
    thread.start()
    wait_until(lambda: waiter.waiting is not None, "the thread")
    with waiter.lock:
        waiter.wake_soon()
        waiter.wake_soon()
    thread.join(TIMEOUT)
    assert got == [RETRY]


def test_a_second_thread_is_refused_until_the_first_has_what_it_was_handed() -> None:
    """pain 26: else it would take the first one's message and leave it waiting."""
    waiter = selector_clock().waiter()
    got: list[object] = []
    first = threading.Thread(target=lambda: got.append(waiter.wait(TIMEOUT)), daemon=True)
    first.start()
    wait_until(lambda: waiter.waiting is not None, "the first")
    with waiter.lock:  # the first has not run yet
        waiter.wake("for the first")
        with pytest.raises(RuntimeError, match="another thread waits"):
            waiter.wait(TIMEOUT)
    first.join(TIMEOUT)
    with pytest.raises(TimeoutError):
        waiter.wait(0.01)  # now it may
    assert got == ["for the first"]


def test_many_threads_write_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """pain 76"""
    peer, sock = tcp_pair(small_buffers=True)
    with peer, sock:
        transport = ThreadedTransport(sock)
        transport.start(Recorder())
        writers = [
            threading.Thread(
                target=lambda line=line: [transport.write(line) for _ in range(50)],
                daemon=True,
            )
            for line in (b"a" * 999 + b"\n", b"b" * 4999 + b"\n", b"c\n")
        ]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join(TIMEOUT)
        transport.finish()
        lines = peer.rest().split(b"\n")
        transport.close()
    assert sorted(set(lines)) == [b"", b"a" * 999, b"b" * 4999, b"c"]
    assert len(lines) == 151


def test_a_forked_child_has_a_selector_thread_of_its_own() -> None:
    """gunicorn --preload forks after the application was imported, perhaps used."""
    written = run_program(
        """
        import os, sys
        from flask_sockets2.transports.threaded import ThreadedTransport
        from tests.connections import tcp_pair
        from tests.processes import FORKS, wait_until
        from tests.transports.test_base import Recorder

        def echo_once():
            peer, sock = tcp_pair()
            recorder = Recorder()
            transport = ThreadedTransport(sock)
            transport.start(recorder)
            peer.send(b"hello")
            wait_until(lambda: recorder.data == b"hello", "the bytes")
            transport.close()
            sock.close()
            peer.close()

        echo_once()
        child = os.fork()
        echo_once()
        if child:
            assert os.waitpid(child, 0)[1] == 0
        print("done", flush=True)
        """
    )
    assert written == "done\ndone\n"


@pytest.mark.parametrize("pool", [True, False], ids=["pool", "thread"])
def test_at_exit_comes_before_threads_are_waited_for(pool: bool) -> None:
    """pain 60: in receive(), for a peer that has no reason to leave."""
    start = "ThreadPoolExecutor().submit(wait)" if pool else "threading.Thread(target=wait).start()"
    written = run_program(
        f"""
        import threading
        from concurrent.futures import ThreadPoolExecutor
        from flask_sockets2.transports.threaded import at_exit, selector_clock

        waiter = selector_clock().waiter()
        waits = threading.Event()

        def wait():
            waits.set()
            print(waiter.wait(timeout=60), flush=True)

        def wake():
            with waiter.lock:
                waiter.wake("woken at exit")

        at_exit(wake)
        {start}
        assert waits.wait(60)
        while waiter.waiting is None:
            pass
        """
    )
    assert written == "woken at exit\n"


def test_importing_it_starts_no_thread() -> None:
    written = run_program(
        """
        import threading
        import flask_sockets2.transports.threaded
        print(threading.active_count())
        """
    )
    assert written == "1\n"
    assert threaded._reactor is None or threaded._reactor._thread.daemon
