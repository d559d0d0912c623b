"""The bystander itself fails where it must: a watch that cannot fail shows nothing."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psutil
import pytest

from tests.faults.bystander import FEWEST_ECHOES, LARGEST_GROWTH, LONGEST_WAIT, bystander

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
                client.settimeout(10)
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
        listening.settimeout(10)
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            thread.join(15)
            assert not thread.is_alive()


def _watch(answer: Answer, *, memory: int | None = None) -> int:
    process = psutil.Process()
    memory = process.memory_info().rss if memory is None else memory
    with answering(answer) as port, bystander(port, process, memory) as watch:
        pass
    return len(watch.waits)


def test_it_echoes_though_the_fault_takes_no_time() -> None:
    assert _watch(lambda number: None) >= FEWEST_ECHOES


def test_a_late_echo_fails() -> None:
    late = threading.Event()  # never set

    def answer(number: int) -> None:
        late.wait(LONGEST_WAIT + 0.1 if number == 3 else 0)

    with pytest.raises(AssertionError, match="an echo took 2"):
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
