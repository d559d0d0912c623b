"""What attacks are made of: floods, connections that are held, and answers that nobody reads."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.wire_client import WireClient

__all__ = ["MIB", "Attack", "Run", "fields", "fill", "flood", "flooding", "held", "unread"]

Run = Callable[[int, float], None]

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Attack:
    """One way to ill-use a server.

    :ivar run: what an attacker does.
    :ivar attackers: how many processes do it.
    :ivar environ: of the server.
    :ivar args: further ones of gunicorn.
    :ivar prepare: called with the port before the memory is looked at.
    :ivar seconds: how long the attack takes at least, to outlast the deadline that ends it.
    :ivar stopping: the server is told to stop meanwhile, and the time that takes is measured.
    """

    run: Run
    attackers: int = 1
    environ: dict[str, str] = field(default_factory=dict)
    args: Sequence[str] = ()
    prepare: Callable[[int], None] | None = None
    seconds: float = 0.0
    stopping: bool = False


def fields(*lines: str, method: str = "GET", path: str = "/") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *lines, "", ""]).encode()


def flood(data: bytes, port: int, until: float) -> None:
    """Send the same again and again over one connection, and read what is answered.

    Where the server closes it, another one is opened.
    """
    while time.monotonic() < until:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
                sock.setblocking(False)
                view, offset = memoryview(data), 0
                while time.monotonic() < until:
                    readable, writable, _ = select.select([sock], [sock], [], 0.1)
                    if readable and not sock.recv(MIB):
                        break
                    if writable:
                        offset = (offset + sock.send(view[offset:])) % len(data)
        except OSError:
            pass


def flooding(one: bytes, *, first: bytes = b"") -> Run:
    """Return an attack that sends as many of one thing as it can.

    :param first: sent once over each connection.
    """
    many = one * max(1, 256 * 1024 // len(one))

    def run(port: int, until: float) -> None:
        if not first:
            flood(many, port, until)
            return
        while time.monotonic() < until:
            try:
                with WireClient(port) as client:
                    client.send(first)
                    client.response()
                    client.sock.setblocking(False)
                    view, offset = memoryview(many), 0
                    while time.monotonic() < until:
                        readable, writable, _ = select.select([client.sock], [client.sock], [], 0.1)
                        if readable and not client.sock.recv(MIB):
                            break
                        if writable:
                            offset = (offset + client.sock.send(view[offset:])) % len(many)
            except (OSError, EOFError):
                pass

    return run


def held(count: int, head: bytes, *, again: bytes = b"", every: float = 8.0) -> Run:
    """Return an attack by connections that send a beginning and then nearly nothing.

    :param again: sent every so many seconds over each.
    """

    def run(port: int, until: float) -> None:
        socks: list[socket.socket] = []
        due = 0.0
        while time.monotonic() < until:
            while len(socks) < count:
                try:
                    sock = socket.create_connection(("127.0.0.1", port), timeout=1)
                    sock.setblocking(False)
                    sock.send(head)
                except OSError:
                    break
                socks.append(sock)
            if again and time.monotonic() >= due:
                due = time.monotonic() + every
                for sock in list(socks):
                    try:
                        sock.send(again)
                    except OSError:
                        sock.close()
                        socks.remove(sock)
            time.sleep(0.2)
        for sock in socks:
            sock.close()

    return run


def unread(count: int, head: bytes, then: bytes = b"") -> Run:
    """Return an attack by connections that ask for something and never read the answer."""

    def run(port: int, until: float) -> None:
        socks = []
        for _ in range(count):
            try:
                sock = socket.socket()
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                sock.settimeout(5)
                sock.connect(("127.0.0.1", port))
                sock.sendall(head)
                socks.append(sock)
            except OSError:
                pass
        rest = {sock: memoryview(then) for sock in socks}
        while time.monotonic() < until:
            time.sleep(0.01)
            waiting = [sock for sock in socks if rest[sock] and sock.fileno() >= 0]
            for start in range(0, len(waiting), 500):
                _, writable, _ = select.select([], waiting[start : start + 500], [], 0)
                for sock in writable:
                    sock.setblocking(False)
                    try:
                        rest[sock] = rest[sock][sock.send(rest[sock]) :]
                    except OSError:
                        rest[sock] = memoryview(b"")
        for sock in socks:
            sock.close()

    return run


def fill(channels: int, count: int, size: int, over: str) -> Callable[[int], None]:
    def prepare(port: int) -> None:
        path = f"/publish?channels={channels}&count={count}&size={size}&over={over}"
        with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
            lines = ("Content-Length: 0", "Connection: close")
            sock.sendall(fields(*lines, method="POST", path=path))
            while sock.recv(65536):
                pass

    return prepare
