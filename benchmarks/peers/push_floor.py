"""What a broadcast costs in Python with no WebSocket code in it: ``python push_floor.py PORT``.

``GET /listen`` is answered with a 101 made beforehand, and a copy of the socket is kept, with a
watcher that sees its end. ``GET /publish`` sends a frame made beforehand to each, by one ``send``
of the C socket. Nothing is encoded, counted or kept back.
"""

from __future__ import annotations

import _socket
import json
import os
import sys
from socket import IPPROTO_TCP, TCP_NODELAY
from typing import Any

import gevent
from floors import ACCEPTED, READ, RECEIVE_SIZE
from gevent.server import StreamServer
from gevent.socket import wait_write
from pacing import Order

listeners: set[Listener] = set()


class Listener:
    """A socket, and a watcher that sees its end."""

    __slots__ = ("send", "sock", "watcher")

    def __init__(self, sock: Any) -> None:
        # The server closes its socket when the greenlet that accepted it ends; the copy stays.
        self.sock = _socket.socket(fileno=os.dup(sock.fileno()))
        self.sock.setblocking(False)
        self.send = self.sock.send
        self.watcher: Any = gevent.get_hub().loop.io(self.sock.fileno(), READ)
        self.watcher.start(self.on_readable)
        listeners.add(self)

    def on_readable(self) -> None:
        """Throw away what comes; at the end, give everything back."""
        try:
            data = self.sock.recv(RECEIVE_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.watcher.stop()
            self.watcher.close()
            self.sock.close()
            listeners.discard(self)

    def send_rest(self, data: bytes) -> None:
        """Wait until the kernel takes some more, as a plain loop of ``sendall`` would."""
        while data:
            try:
                wait_write(self.sock.fileno())
                data = data[self.send(data) :]
            except BlockingIOError:
                continue
            except OSError:
                return  # the next read sees the end


def broadcast(frame: bytes) -> None:
    """Send to all, one after another."""
    size = len(frame)
    for listener in listeners:
        try:
            sent = listener.send(frame)
        except BlockingIOError:
            sent = 0
        except OSError:
            continue  # the next read sees the end
        if sent != size:
            listener.send_rest(frame[sent:])


def serve(sock: Any, address: object) -> None:
    """Keep a listener, or do what ``/publish`` asks for."""
    sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        data = sock.recv(RECEIVE_SIZE)
        if not data:
            return
        head += data
    target = head.split(b" ", 2)[1].decode()
    if target.startswith("/listen"):
        sock.sendall(ACCEPTED)
        Listener(sock)
        return
    order = Order.of(target)
    frame = b"\x81\x7e" + order.size.to_bytes(2) + order.text().encode()
    answer = json.dumps(order.run(lambda number: broadcast(frame), gevent.sleep)).encode()
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(answer), answer))


if __name__ == "__main__":
    StreamServer(("127.0.0.1", int(sys.argv[1])), serve, backlog=2048).serve_forever()
