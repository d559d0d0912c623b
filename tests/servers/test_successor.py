"""Waiting for who accepts connections in place of this process."""

from __future__ import annotations

import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flask_sockets2.servers.successor import await_successor
from tests.processes import Certificate
from tests.wire_client import TIMEOUT


@pytest.fixture(params=["tcp", "unix"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[socket.socket]:
    """A socket whose connections wait in the kernel."""
    unix = request.param == "unix"
    with socket.socket(socket.AF_UNIX if unix else socket.AF_INET) as sock:
        sock.bind(str(tmp_path / "s") if unix else ("127.0.0.1", 0))
        sock.listen()
        yield sock


def waited(listener: socket.socket, seconds: float) -> float:
    """How long it took."""
    family, address = listener.family, listener.getsockname()
    began = time.monotonic()
    await_successor(family, address, seconds)
    return time.monotonic() - began


def test_where_nobody_has_the_socket_nothing_is_waited_for(listener: socket.socket) -> None:
    family, address = listener.family, listener.getsockname()
    listener.close()
    began = time.monotonic()
    await_successor(family, address, 60.0)
    assert time.monotonic() - began < TIMEOUT


def test_where_nobody_accepts_it_is_waited_for_no_longer_than_told(
    listener: socket.socket,
) -> None:
    assert 0.3 <= waited(listener, 0.3) < TIMEOUT


def test_when_the_last_who_had_the_socket_closes_it_the_wait_is_over(
    listener: socket.socket,
) -> None:
    other = listener.dup()
    timer = threading.Timer(0.3, lambda: (listener.close(), other.close()))
    family, address = listener.family, listener.getsockname()
    began = time.monotonic()
    timer.start()
    await_successor(family, address, 60.0)
    assert 0.2 < time.monotonic() - began < TIMEOUT
    timer.join()


def test_it_is_asked_in_silence_until_somebody_accepts_and_once_more_for_who_stays(
    listener: socket.socket,
) -> None:
    said: list[bytes] = []

    def accept() -> None:
        time.sleep(0.3)  # it imports the application
        for _ in range(2):
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(TIMEOUT)
                said.append(connection.recv(100))

    thread = threading.Thread(target=accept)
    thread.start()
    took = waited(listener, 60.0)
    thread.join(TIMEOUT)
    assert said == [b"", b""]
    assert 1.4 <= took < TIMEOUT


def test_one_that_speaks_tls_is_one_who_accepts(
    listener: socket.socket, certificate: Certificate
) -> None:
    """It answers silence with an alert, RFC 8446 §6, and so not with nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certfile, certificate.keyfile)
    came = []

    def accept() -> None:
        for _ in range(2):
            connection, _ = listener.accept()
            came.append(time.monotonic())
            with connection:
                connection.settimeout(TIMEOUT)
                with pytest.raises(OSError), context.wrap_socket(connection, server_side=True):
                    pass

    thread = threading.Thread(target=accept)
    thread.start()
    waited(listener, 60.0)
    thread.join(TIMEOUT)
    first, second = came
    assert second - first > 1.4


def test_a_reset_by_one_of_several_with_sockets_of_their_own_does_not_end_the_wait() -> None:
    """So it is with --reuse-port: the other is told to end as well, and closes what it has."""
    with socket.socket() as dying:
        dying.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        dying.bind(("127.0.0.1", 0))
        dying.listen()
        address = dying.getsockname()
        said: list[bytes] = []

        def take_over() -> None:
            assert select.select([dying], [], [], TIMEOUT)[0], "it was to be asked"
            with socket.socket() as successor:
                successor.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                successor.bind(address)
                successor.listen()
                successor.settimeout(TIMEOUT)
                dying.close()
                for _ in range(2):
                    connection, _ = successor.accept()
                    with connection:
                        said.append(connection.recv(100))

        thread = threading.Thread(target=take_over)
        thread.start()
        began = time.monotonic()
        await_successor(socket.AF_INET, address, 60.0)
        thread.join(2 * TIMEOUT)
        assert said == [b"", b""]
        assert time.monotonic() - began > 1.4
