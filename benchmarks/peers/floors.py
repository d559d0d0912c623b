"""What gevent costs with no WebSocket code in it: ``python floors.py PORT sendall|watcher|switch``.

Each floor answers the opening handshake with a 101 that it made beforehand, and from then on sends
back the bytes that it receives, whatever they are. Nothing is parsed, so a server that does parse
can hardly be faster than the floor of the same kind:

- ``sendall``: a greenlet in ``recv`` and ``sendall`` of gevent's socket
- ``watcher``: a callback on the hub, with the C socket's own ``recv`` and ``send``
- ``switch``: the same callback, which receives, and switches to a greenlet, which sends
"""

from __future__ import annotations

import _socket
import os
import sys
from socket import IPPROTO_TCP, TCP_NODELAY
from typing import Any

import gevent
from gevent.hub import Hub
from gevent.server import StreamServer

READ, WRITE = 1, 2
RECEIVE_SIZE = 65536  # bytes

ACCEPTED = (
    b"HTTP/1.1 101 Switching Protocols\r\n"
    b"Upgrade: websocket\r\n"
    b"Connection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


def accept(sock: Any) -> None:
    """Read a request head and answer it, unread."""
    sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)  # as gunicorn, websockets and Node do
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        data = sock.recv(RECEIVE_SIZE)
        if not data:
            raise ConnectionError("the request ended before its head did")
        head += data
    sock.sendall(ACCEPTED)


def echo_with_sendall(sock: Any, address: object) -> None:
    """Echo from a greenlet, as a server written on gevent's sockets does."""
    accept(sock)
    while data := sock.recv(RECEIVE_SIZE):
        sock.sendall(data)


class WatcherEcho:
    """Echo from the hub; what the kernel does not take at once waits for a write watcher."""

    def __init__(self, sock: Any) -> None:
        # The server closes its socket when the greenlet that accepted it ends; the copy stays.
        self.sock = _socket.socket(fileno=os.dup(sock.fileno()))
        self.sock.setblocking(False)
        self.hub: Hub = gevent.get_hub()
        self.unsent = memoryview(b"")
        self.closed = False
        self.reader: Any = self.hub.loop.io(self.sock.fileno(), READ)
        self.writer: Any = self.hub.loop.io(self.sock.fileno(), WRITE)
        self.reader.start(self.on_readable)

    def on_readable(self) -> None:
        """Echo what is there."""
        if data := self.receive():
            self.send(data)

    def receive(self) -> bytes:
        """Return what is there; at the end of the stream, close and return nothing."""
        try:
            data = self.sock.recv(RECEIVE_SIZE)
        except BlockingIOError:
            return b""
        except OSError:
            data = b""
        if not data:
            self.close()
        return data

    def send(self, data: bytes) -> None:
        """Send at once what the kernel takes, and read nothing more until it took the rest."""
        sent = self.send_some(data)
        if sent < len(data):
            self.unsent = memoryview(data)[sent:]
            self.reader.stop()
            self.writer.start(self.on_writable)

    def on_writable(self) -> None:
        """Go on with what was left."""
        self.unsent = self.unsent[self.send_some(self.unsent) :]
        if not self.unsent:
            self.writer.stop()
            self.reader.start(self.on_readable)

    def send_some(self, data: bytes | memoryview) -> int:
        """Return how many bytes the kernel took."""
        try:
            return self.sock.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            return len(data)  # the next read sees the end

    def close(self) -> None:
        """Give everything back."""
        self.closed = True
        for watcher in (self.reader, self.writer):
            watcher.stop()
            watcher.close()
        self.sock.close()


class SwitchEcho(WatcherEcho):
    """Echo from a greenlet that the watcher's callback switches to."""

    def __init__(self, sock: Any) -> None:
        super().__init__(sock)
        self.greenlet = gevent.spawn(self.run)

    def run(self) -> None:
        """Wait in the hub for data; nothing means that the stream has ended."""
        while data := self.hub.switch():
            self.send(data)

    def on_readable(self) -> None:
        """Hand over what is there; an empty read may also be a false alarm."""
        data = self.receive()
        if data or self.closed:
            self.greenlet.switch(data)


def on_the_hub(kind: type[WatcherEcho]) -> Any:
    """Return a handler for :class:`StreamServer` that leaves its connection to ``kind``."""

    def handle(sock: Any, address: object) -> None:
        accept(sock)
        kind(sock)

    return handle


HANDLERS = {
    "sendall": echo_with_sendall,
    "watcher": on_the_hub(WatcherEcho),
    "switch": on_the_hub(SwitchEcho),
}

if __name__ == "__main__":
    StreamServer(
        ("127.0.0.1", int(sys.argv[1])), HANDLERS[sys.argv[2]], backlog=2048
    ).serve_forever()
