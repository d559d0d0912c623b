"""What every transport does, on both of them; the test is the peer.

The transport lives in a native thread of its own, with a hub where it is gevent's; ``body`` runs
there.
"""

from __future__ import annotations

import errno
import io
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from flask_sockets2.transports.base import StreamTransport, read_ahead
from tests.connections import Greenlets, Threads, tcp_pair
from tests.processes import Certificate, wait_until
from tests.wire_client import TIMEOUT, WireClient

Body = Callable[[Any], None]


class Recorder:
    """Notes what a transport tells."""

    owes = False

    def __init__(self) -> None:
        self.data = bytearray()
        self.ends = 0
        self.drained = threading.Event()
        self.stalled = threading.Event()

    def data_received(self, data: bytes) -> None:
        assert data
        self.data += data

    def eof_received(self) -> None:
        self.ends += 1

    def write_drained(self) -> None:
        self.drained.set()

    def write_stalled(self) -> None:
        self.stalled.set()


class Faulty(socket.socket):
    """A socket whose ``send`` takes little at a time, or what :attr:`faults` says instead."""

    faults: list[Exception]

    def send(self, data: Any, flags: int = 0) -> int:
        if self.faults:
            raise self.faults.pop(0)
        return super().send(memoryview(data)[:7], flags)


@pytest.fixture(params=[Threads(), Greenlets()], ids=["threaded", "green"])
def kind(request: pytest.FixtureRequest) -> Threads:
    found: Threads = request.param
    return found


@contextmanager
def transport_on(
    kind: Threads,
    body: Body = lambda transport: None,
    *,
    faults: list[Exception] | None = None,
    tls: Certificate | None = None,
    small_buffers: bool = False,
    send_timeout: float = TIMEOUT,
) -> Iterator[tuple[WireClient, StreamTransport, Recorder]]:
    """A transport at work, and its peer.

    :param faults: what its first calls of ``send`` raise; later ones take seven bytes.
    """
    peer, sock = tcp_pair(small_buffers=small_buffers)
    recorder = Recorder()
    made: list[StreamTransport] = []
    errors: list[BaseException] = []
    over = threading.Event()

    def serve() -> None:
        own = kind.own(sock) if faults is None else Faulty(fileno=sock.detach())
        try:
            if faults is not None:
                own.faults = faults
            if tls is not None:
                context: Any = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(tls.certfile, tls.keyfile)
                own = kind.wrap(own, context)
            own.setblocking(False)
            transport = kind.transport(own, send_timeout=send_timeout)
            transport.start(recorder)
            body(transport)
            made.append(transport)
            while not over.is_set():
                kind.sleep(0.002)
            transport.close()
        except BaseException as exc:
            errors.append(exc)
        finally:
            own.close()

    thread = threading.Thread(target=lambda: kind.run(serve), daemon=True)
    thread.start()
    try:
        if tls is not None:
            context = tls.client_context()
            peer.sock = context.wrap_socket(
                peer.sock, server_hostname="127.0.0.1", suppress_ragged_eofs=False
            )
        wait_until(lambda: made or errors, "the transport")
        if not errors:
            yield peer, made[0], recorder
    finally:
        over.set()
        peer.close()
        thread.join(TIMEOUT)
    assert not thread.is_alive()
    if errors:
        raise errors[0]


def taken(peer: WireClient, size: int) -> bytes:
    """So many bytes of what the transport wrote."""
    return peer._take(size, time.monotonic() + TIMEOUT)


def test_what_comes_is_handed_on(kind: Threads) -> None:
    with transport_on(kind) as (peer, _, recorder):
        peer.send(b"hello")
        wait_until(lambda: recorder.data == b"hello", "the bytes")


def test_short_writes_lose_nothing_and_keep_the_order(kind: Threads) -> None:
    """pain 75"""

    def body(transport: Any) -> None:
        with transport.lock:  # else the selector thread writes on in between
            transport.write(b"a" * 100)
            assert transport.buffered == 93
            transport.write(b"b" * 100)
            assert transport.buffered == 193

    with transport_on(kind, body, faults=[]) as (peer, transport, recorder):
        assert taken(peer, 200) == b"a" * 100 + b"b" * 100
        assert recorder.drained.wait(TIMEOUT)
        assert transport.buffered == 0


@pytest.mark.parametrize(
    "fault",
    [BlockingIOError(), InterruptedError(), ssl.SSLWantWriteError(), ssl.SSLWantReadError()],
)
def test_a_send_that_cannot_go_on_now_is_tried_again(fault: Exception, kind: Threads) -> None:
    with transport_on(kind, lambda t: t.write(b"hello"), faults=[fault, fault]) as (peer, _, _):
        assert taken(peer, 5) == b"hello"


@pytest.mark.parametrize("late", [False, True])
def test_a_send_that_fails_is_the_end_told_once_and_later(late: bool, kind: Threads) -> None:
    """pain 25: a write never raises."""
    faults: list[Exception] = [BlockingIOError()] if late else []

    def body(transport: Any) -> None:
        transport.write(b"hello")
        transport.write(b"nobody listens")

    broken = OSError(errno.EPIPE, "Broken pipe")
    with transport_on(kind, body, faults=[*faults, broken]) as (_, transport, recorder):
        wait_until(lambda: recorder.ends, "the end")
        assert transport.closed
        assert transport.buffered == 0
    assert recorder.ends == 1


def test_a_peer_that_leaves_ends_it_once(kind: Threads) -> None:
    with transport_on(kind) as (peer, transport, recorder):
        peer.close()
        wait_until(lambda: recorder.ends, "the end")
        assert transport.closed
    assert recorder.ends == 1


def test_a_peer_that_resets_ends_it_once(kind: Threads) -> None:
    with transport_on(kind) as (peer, _, recorder):
        peer.reset()
        wait_until(lambda: recorder.ends, "the end")
    assert recorder.ends == 1


def test_finish_writes_all_then_half_closes_and_throws_away_what_comes(kind: Threads) -> None:
    def body(transport: Any) -> None:
        transport.write(bytes(200_000))
        assert transport.buffered
        transport.finish()
        transport.finish()
        assert not transport.half_closed

    with transport_on(kind, body, small_buffers=True) as (peer, transport, recorder):
        assert peer.rest() == bytes(200_000)
        assert transport.half_closed
        peer.send(b"too late")
        assert not transport.closed
        peer.close()
        wait_until(lambda: recorder.ends, "the end")
    assert (recorder.ends, recorder.data) == (1, b"")


def test_finish_without_lingering_closes_as_soon_as_all_is_written(kind: Threads) -> None:
    def body(transport: Any) -> None:
        transport.write(bytes(200_000))
        transport.finish(linger=False)

    with transport_on(kind, body, small_buffers=True) as (peer, transport, recorder):
        assert peer.rest() == bytes(200_000)
        wait_until(lambda: recorder.ends, "the end")
        assert transport.closed
    assert recorder.ends == 1


def test_close_can_be_repeated_and_writing_then_does_nothing(kind: Threads) -> None:
    def body(transport: Any) -> None:
        transport.close()
        transport.close()
        transport.write(b"nobody listens")
        transport.finish()
        transport.resume()
        transport.pause()
        assert transport.buffered == 0

    with transport_on(kind, body) as (peer, transport, recorder):
        assert peer.rest() == b""
        assert transport.closed
    assert recorder.ends == 0


def test_while_paused_nothing_is_read(kind: Threads) -> None:
    """pain 78"""
    go = threading.Event()

    def body(transport: Any) -> None:
        transport.pause()

        def resume_when_told() -> None:
            if go.is_set():
                transport.resume()
            else:
                transport.call_later(0.002, resume_when_told)

        resume_when_told()

    with transport_on(kind, body, small_buffers=True) as (peer, _, recorder):
        data = bytes(1000)
        sent = peer.send_while_taken(data, for_seconds=TIMEOUT, stalled_after=0.2)
        assert 0 < sent < 2**20, "reading never stopped"
        assert recorder.data == b""
        go.set()
        wait_until(lambda: len(recorder.data) == sent, "the bytes")


def calling(function: Callable[[], None], told: threading.Event, transport: Any) -> None:
    """Have the hub or the selector thread call a function whenever it is told to."""

    def look() -> None:
        if told.is_set():
            function()
            told.clear()
        if not transport.closed:
            transport.call_later(0.002, look)

    look()


def test_while_paused_a_reset_is_the_end_when_it_is_looked_for(kind: Threads) -> None:
    look = threading.Event()

    def body(transport: Any) -> None:
        transport.pause()
        calling(transport.look_for_reset, look, transport)

    with transport_on(kind, body) as (peer, transport, recorder):
        peer.send(b"not read")
        look.set()
        wait_until(lambda: not look.is_set(), "a look")
        assert not transport.closed
        peer.reset()
        look.set()
        wait_until(lambda: recorder.ends, "the end")
        assert transport.closed
    assert (recorder.ends, recorder.data) == (1, b"")


def test_while_paused_the_end_of_the_peers_stream_is_not_looked_for(kind: Threads) -> None:
    """What came before it is read first, and the peer may still read."""
    look, resume = threading.Event(), threading.Event()

    def look_and_answer(transport: Any) -> None:
        transport.look_for_reset()
        transport.write(b"heard")

    def body(transport: Any) -> None:
        transport.pause()
        calling(lambda: look_and_answer(transport), look, transport)
        calling(transport.resume, resume, transport)

    with transport_on(kind, body) as (peer, transport, recorder):
        peer.send(b"the last words")
        peer.sock.shutdown(socket.SHUT_WR)
        look.set()
        assert taken(peer, 5) == b"heard"
        assert not transport.closed
        resume.set()
        wait_until(lambda: recorder.ends, "the end")
    assert (recorder.ends, recorder.data) == (1, b"the last words")


def test_a_peer_that_takes_nothing_is_reported(kind: Threads) -> None:
    """pain 78"""

    def body(transport: Any) -> None:
        transport.write(bytes(200_000))

    with transport_on(kind, body, small_buffers=True, send_timeout=0.1) as (_, _, recorder):
        assert recorder.stalled.wait(TIMEOUT)


def test_a_peer_that_takes_little_by_little_is_not(kind: Threads) -> None:
    def body(transport: Any) -> None:
        transport.write(bytes(100_000))

    with transport_on(kind, body, small_buffers=True, send_timeout=1.5) as (peer, _, recorder):
        for _ in range(20):
            taken(peer, 5000)
            assert not recorder.stalled.wait(0.1)


def test_functions_are_called_soon_in_order_and_later_by_time(kind: Threads) -> None:
    called: list[int] = []

    def body(transport: Any) -> None:
        for number in (3, 2, 1):
            transport.call_later(number / 50, lambda number=number: called.append(number))
        transport.call_later(0.02, lambda: called.append(99)).cancel()
        transport.call_soon(lambda: called.append(-1))
        transport.call_soon(lambda: called.append(0))

    with transport_on(kind, body):
        wait_until(lambda: len(called) == 5, "all of them")
    assert called == [-1, 0, 1, 2, 3]


def test_a_timer_may_be_cancelled_after_it_was_due(kind: Threads) -> None:
    called: list[int] = []

    def body(transport: Any) -> None:
        timer = transport.call_later(0.0, lambda: called.append(1))
        while not called:
            kind.sleep(0.001)
        timer.cancel()
        timer.cancel()

    with transport_on(kind, body):
        assert called == [1]


def test_many_timers_are_kept_apart(kind: Threads) -> None:
    called: list[int] = []

    def body(transport: Any) -> None:
        timers = [
            transport.call_later(
                1.0 + number % 10 / 100, lambda number=number: called.append(number)
            )
            for number in range(2000)
        ]
        for timer in timers[::2]:
            timer.cancel()

    with transport_on(kind, body):
        wait_until(lambda: len(called) == 1000, "all of them")
    assert sorted(called) == list(range(1, 2000, 2))


# -- TLS -----------------------------------------------------------------------------------


def test_tls_carries_much_both_ways(kind: Threads, certificate: Certificate) -> None:
    """pain 68"""
    size = 1_000_000

    def body(transport: Any) -> None:
        transport.write(b"s" * size)

    with transport_on(kind, body, tls=certificate) as (peer, _, recorder):
        assert taken(peer, size) == b"s" * size
        peer.send(b"c" * size)
        wait_until(lambda: len(recorder.data) == size, "all of it")
        assert recorder.data == b"c" * size


def test_tls_keeps_no_decrypted_bytes_back(kind: Threads, certificate: Certificate) -> None:
    """A record that is read in part is on no poll of the socket."""

    def body(transport: Any) -> None:
        transport.read_size = 10

    with transport_on(kind, body, tls=certificate) as (peer, _, recorder):
        peer.send(bytes(5000))
        wait_until(lambda: len(recorder.data) == 5000, "all of the record")


def test_tls_writes_to_a_slow_peer_in_order(kind: Threads, certificate: Certificate) -> None:
    """pain 75"""

    def body(transport: Any) -> None:
        for letter in (b"a", b"b", b"c"):
            transport.write(letter * 100_000)
        assert transport.buffered
        transport.finish()

    with transport_on(kind, body, tls=certificate, small_buffers=True) as (peer, _, _):
        expected = b"a" * 100_000 + b"b" * 100_000 + b"c" * 100_000
        assert taken(peer, 300_000) == expected


@pytest.mark.parametrize("linger", [True, False])
def test_tls_says_that_it_ends(linger: bool, kind: Threads, certificate: Certificate) -> None:
    """Without its notice a client takes the end for an attack."""

    def body(transport: Any) -> None:
        transport.write(b"last")
        transport.finish(linger)

    with transport_on(kind, body, tls=certificate) as (peer, _, recorder):
        assert peer.rest() == b"last"
        peer.close()
        wait_until(lambda: recorder.ends, "the end")
    assert recorder.ends == 1


def test_tls_that_breaks_is_the_end(kind: Threads, certificate: Certificate) -> None:
    with transport_on(kind, tls=certificate) as (peer, _, recorder):
        raw = socket.socket(fileno=peer.sock.detach())
        with raw:
            raw.sendall(b"this is no TLS record" * 10)
            wait_until(lambda: recorder.ends, "the end")
    assert (recorder.ends, recorder.data) == (1, b"")


# -- reading ahead -------------------------------------------------------------------------


def test_read_ahead_takes_what_is_there_and_waits_for_nothing() -> None:
    peer, sock = tcp_pair()
    with peer, sock, sock.makefile("rb") as reader:
        peer.send(b"line\nbehind it")
        assert reader.readline() == b"line\n"
        sock.setblocking(False)
        assert read_ahead(reader) == b"behind it"
        assert read_ahead(reader) == b""


class Endless(io.RawIOBase):
    """A socket whose peer sends without a pause."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.reads += 1
        assert self.reads < 10, "it reads on as long as the peer sends"
        buffer[:] = bytes(len(buffer))
        return len(buffer)


def test_read_ahead_leaves_what_a_peer_goes_on_sending_to_the_transport() -> None:
    reader = io.BufferedReader(raw := Endless(), 64)
    assert reader.read(4) == bytes(4)
    assert read_ahead(reader) == bytes(60)
    assert raw.reads == 1


def test_read_ahead_ends_with_the_stream() -> None:
    assert read_ahead(io.BufferedReader(io.BytesIO(b"all"))) == b"all"
