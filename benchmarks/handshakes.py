"""The other load: connections that open, close at once, and are followed by the next.

Each slot connects, sends its request head, waits for the 101, sends a close frame, and waits until
the server has closed the TCP connection, as RFC 6455 §7.1.1 asks of it. Only then is it counted.
"""

from __future__ import annotations

import gc
import select
import socket
import time
from collections import deque

from .exchange import CLOSE, CLOSE_FRAME, FIN, accepted
from .load import MAX_LATENCIES, LoadError, Window, connect

SLOTS = 32  # connections under way at once
SILENCE = 5.0  # seconds without any event, after which the server counts as stuck
RECEIVE_SIZE = 4096  # bytes; a response head and a close frame are shorter


class _Slot:
    """One connection on its way from connect to end of file."""

    __slots__ = ("began", "closing", "received", "sock")

    # received: of the response head, and once closing, of the close frame

    def __init__(self, port: int) -> None:
        self.began = time.perf_counter()
        self.sock = connect(port, time.monotonic() + SILENCE)
        self.sock.setblocking(False)
        self.received = b""
        self.closing = False

    def receive(self) -> bytes:
        """Return what has arrived; nothing: the server has closed or reset the connection."""
        try:
            return self.sock.recv(RECEIVE_SIZE)
        except ConnectionResetError:
            return b""

    def advance(self, data: bytes) -> float | None:
        """Take what has arrived; return the seconds that the 101 took, when this is it."""
        self.received += data
        if self.closing:
            if self.received[0] != FIN | CLOSE:
                raise LoadError("the server sent something else than a close frame")
            return None
        if not self.received.endswith(b"\r\n\r\n"):
            return None
        if not accepted(self.received):
            raise LoadError(f"the handshake was answered with {self.received[:40]!r}")
        self.closing, self.received = True, b""
        self.sock.send(CLOSE_FRAME)
        return time.perf_counter() - self.began


def run(port: int, seconds: float) -> tuple[Window, int]:
    """Open and close connections for one window; its latencies end at the 101.

    :param port: of the server, on 127.0.0.1.
    :returns: the window, and how many connections ended without an answer to the close frame.
    :raises LoadError: the server refused one, or kept one open.
    """
    latencies: deque[float] = deque(maxlen=MAX_LATENCIES)
    gc.collect()
    gc.disable()
    cpu, begin = time.process_time(), time.perf_counter()
    try:
        closed, unanswered = _loop(port, begin + seconds, latencies)
    except OSError as exc:
        raise LoadError(f"a handshake broke: {exc}") from exc
    finally:
        gc.enable()
    elapsed = time.perf_counter() - begin
    cpu = time.process_time() - cpu
    return Window(closed, elapsed, cpu, sorted(latencies)), unanswered


def _loop(port: int, end: float, latencies: deque[float]) -> tuple[int, int]:
    """Keep every slot busy until the end; return what :func:`run` counts."""
    slots: dict[int, _Slot] = {}
    closed = unanswered = 0
    with select.epoll() as epoll:

        def begin() -> None:
            slot = _Slot(port)
            slots[slot.sock.fileno()] = slot
            epoll.register(slot.sock, select.EPOLLIN)

        try:
            for _ in range(SLOTS):
                begin()
            while time.perf_counter() < end:
                events = epoll.poll(SILENCE)
                if not events:
                    raise LoadError(f"the server was silent for {SILENCE:g} s")
                for fd, _ in events:
                    slot = slots[fd]
                    data = slot.receive()
                    if data:
                        latency = slot.advance(data)
                        if latency is not None:
                            latencies.append(latency)
                        continue
                    if not slot.closing:
                        raise LoadError("the server closed the connection before its 101")
                    unanswered += not slot.received
                    del slots[fd]
                    slot.sock.close()
                    closed += 1
                    begin()
        finally:
            _abandon(slots)
    return closed, unanswered


def _abandon(slots: dict[int, _Slot]) -> None:
    """Close what is under way."""
    for slot in slots.values():
        try:
            slot.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the server was faster
        slot.sock.close()
