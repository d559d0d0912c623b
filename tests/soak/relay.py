"""A network that fails: a relay in a thread, whose connections can be cut and frozen."""

from __future__ import annotations

import selectors
import socket
import struct
import threading
import time
from collections import deque
from contextlib import suppress

__all__ = ["Relay"]

_TICK = 0.05  # seconds in which an order is heard
_AT_ONCE = 65536  # bytes


class Relay:
    """Passes on what comes at a port of 127.0.0.1 to another one.

    :param target: that port.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._orders: deque[float | None] = deque()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="soak relay", daemon=True)
        self._thread.start()

    def cut(self) -> None:
        """Reset all connections, on both sides."""
        self._orders.append(None)

    def freeze(self, seconds: float) -> None:
        """Let nothing pass for a while."""
        self._orders.append(seconds)

    def close(self) -> None:
        self._stop.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._stop.is_set():
            for key, events in self._selector.select(_TICK):
                if key.data is None:
                    self._accept()
                elif key.data.sock.fileno() >= 0:  # its other half may have ended it just now
                    key.data.ready(events)
            while self._orders:
                seconds = self._orders.popleft()
                if seconds is None:
                    for half in self._halves():
                        half.end(reset=True)
                else:
                    time.sleep(seconds)  # that is the fault
        for half in self._halves():
            half.end()
        self._listener.close()
        self._selector.close()

    def _halves(self) -> list[_Half]:
        return [key.data for key in self._selector.get_map().values() if key.data is not None]

    def _accept(self) -> None:
        with suppress(BlockingIOError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket()
                try:
                    server.connect(("127.0.0.1", self._target))
                except OSError:
                    server.close()
                    client.close()
                    continue
                one, other = _Half(client, self._selector), _Half(server, self._selector)
                one.other, other.other = other, one


class _Half:
    """One end of a connection; what it has read and the other could not send yet, waits here."""

    other: _Half

    def __init__(self, sock: socket.socket, selector: selectors.BaseSelector) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._selector = selector
        self._waiting = b""  # to be sent by this end
        self._events = selectors.EVENT_READ
        selector.register(sock, self._events, self)

    def ready(self, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE:
                self._send(b"")
            if events & selectors.EVENT_READ:
                data = self.sock.recv(_AT_ONCE)
                if not data:
                    self.end()
                    return
                self.other._send(data)
        except BlockingIOError:
            pass
        except OSError:
            self.end()

    def _send(self, data: bytes) -> None:
        self._waiting += data
        with suppress(BlockingIOError):
            self._waiting = self._waiting[self.sock.send(self._waiting) :]
        self._watch()
        self.other._watch()

    def _watch(self) -> None:
        """Read as long as the other end keeps up, as TCP does."""
        events = selectors.EVENT_WRITE if self._waiting else 0
        if not self.other._waiting:
            events |= selectors.EVENT_READ
        if events == self._events:
            return
        if self._events == 0:
            self._selector.register(self.sock, events, self)
        elif events == 0:
            self._selector.unregister(self.sock)
        else:
            self._selector.modify(self.sock, events, self)
        self._events = events

    def end(self, *, reset: bool = False) -> None:
        for half in (self, self.other):
            if half.sock.fileno() < 0:
                continue
            with suppress(KeyError):
                self._selector.unregister(half.sock)
            if reset:
                linger = struct.pack("ii", 1, 0)
                half.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            half.sock.close()
