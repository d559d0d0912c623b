"""The bystander itself fails where it must: a watch that cannot fail shows nothing."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psutil
import pytest

from tests.faults import bystander as module
from tests.faults.bystander import FEWEST_ECHOES, LARGEST_GROWTH, bystander

Answer = Callable[[int], bytes | None]


@contextmanager
def answering(answer: Answer) -> Iterator[int]:
    """A server for one client, a WebSocket as far as the bystander can tell.

    :param answer: called with the number of each message; None for its echo.
    :returns: its port.
    """

    def serve() -> None:
        with suppress(OSError):
            client, _ = listening.accept()
            with client:
                client.settimeout(60)
                client.recv(65536)
                client.sendall(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
                number = 0
                while data := client.recv(65536):
                    mask, masked = data[2:6], data[6:]
                    payload = bytes(byte ^ mask[at % 4] for at, byte in enumerate(masked))
                    number += 1
                    given = answer(number)
                    payload = payload if given is None else given
                    client.sendall(bytes((0x81, len(payload))) + payload)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(60)
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            thread.join(60)
            assert not thread.is_alive()


def _watch(answer: Answer, *, memory: int | None = None) -> int:
    process = psutil.Process()
    memory = process.memory_info().rss if memory is None else memory
    with answering(answer) as port, bystander(port, process, memory) as watch:
        pass
    return len(watch.waits)


def test_it_echoes_though_the_fault_takes_no_time() -> None:
    assert _watch(lambda number: None) >= FEWEST_ECHOES


def test_a_late_echo_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_WAIT", 0.5)
    late = threading.Event()  # never set

    def answer(number: int) -> None:
        late.wait(0.6 if number == 3 else 0)

    with pytest.raises(AssertionError, match=r"an echo took \d"):
        _watch(answer)


def test_an_echo_that_waits_for_much_work_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the process that is watched, here our own."""
    monkeypatch.setattr(module, "LARGEST_WORK", 0.3)

    def answer(number: int) -> None:
        until = time.process_time() + (0.5 if number == 3 else 0)
        while time.process_time() < until:
            pass

    with pytest.raises(AssertionError, match=r"an echo waited for 0\.\d+ s of work"):
        _watch(answer)


def test_a_wrong_echo_fails() -> None:
    with pytest.raises(AssertionError, match="not served"):
        _watch(lambda number: b"another's" if number == 3 else None)


def test_the_end_of_its_connection_fails() -> None:
    def answer(number: int) -> None:
        if number == 3:
            raise ConnectionResetError

    with pytest.raises(AssertionError, match="not served"):
        _watch(answer)


def test_memory_that_grew_fails() -> None:
    with pytest.raises(AssertionError, match="memory grew by"):
        _watch(lambda number: None, memory=psutil.Process().memory_info().rss - LARGEST_GROWTH - 1)
