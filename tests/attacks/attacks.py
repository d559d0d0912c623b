"""The attacks: each a function that ill-uses a server until it is over.

An attack keeps no rule and shares no code with the package. It is called as
``attack(port, until)`` in a process of its own; ``until`` is a time of ``time.monotonic()``.
"""

from __future__ import annotations

import itertools
import os
import socket
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, suppress

from tests.wire_client import (
    BINARY,
    CONTINUATION,
    PING,
    TEXT,
    WireClient,
    close_frame,
    frame,
    request,
)

from .means import MIB, Attack, Run, fields, fill, flooding, held, unread

__all__ = ["ATTACKS"]


def _invented_names(port: int, until: float) -> None:
    """Send header fields of names that nobody has ever seen."""
    numbers = itertools.count()
    mark = os.getpid()
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        while time.monotonic() < until:
            lines = [f"X-{mark}-{next(numbers):012}: 1" for _ in range(90)]
            sock.sendall(fields(*lines))
            sock.recv(65536)


def _made_up_channels(over: str) -> Run:
    """Return an attack that asks for channels that nobody publishes to."""

    def run(port: int, until: float) -> None:
        numbers = itertools.count()
        while time.monotonic() < until:
            names = "&".join(f"channel={os.getpid()}-{next(numbers)}" for _ in range(100))
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
                    path = f"/position?{names}" if over == "page" else f"/stream?{names}"
                    accept = "Accept: text/event-stream"
                    sock.sendall(fields(accept, "Connection: close", path=path))
                    sock.recv(65536)
            except OSError:
                pass

    return run


def _handshakes(leave: str) -> Run:
    """Return an attack that connects and leaves again, as often as it can."""

    def run(port: int, until: float) -> None:
        while time.monotonic() < until:
            try:
                client = WireClient(port)
                client.send(request())
                if leave == "reset":
                    client.reset()
                    continue
                client.response()
                if leave == "close":
                    client.send(close_frame())
                client.close()
            except (OSError, EOFError):
                pass

    return run


def _streams(port: int, until: float) -> None:
    """Open event streams and leave again."""
    while time.monotonic() < until:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
                sock.sendall(fields("Accept: text/event-stream", path="/stream?channel=0"))
                sock.recv(4096)
        except OSError:
            pass


def _bytes_apart(port: int, until: float) -> None:
    """Send each byte of a message by itself."""
    message = frame(TEXT, b"x" * 100)
    while time.monotonic() < until:
        try:
            with WireClient(port) as client:
                client.send(request())
                client.response()
                while time.monotonic() < until:
                    for i in range(len(message)):
                        client.send(message[i : i + 1])
                    client.message()
        except (OSError, EOFError, AssertionError):
            pass


def _compressed(size: int, *, fin: bool = True) -> bytes:
    """A message of so many zeros, compressed, as a frame."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = deflate.compress(bytes(size)) + deflate.flush(zlib.Z_SYNC_FLUSH)
    return frame(BINARY, data[:-4], reserved=4, fin=fin)


def _bombs(port: int, until: float) -> None:
    bomb, head = _compressed(64 * MIB), _DEFLATE
    while time.monotonic() < until:
        try:
            with WireClient(port) as client:
                client.send(head)
                client.response()
                client.send(bomb)
                client.rest(5)
        except (OSError, EOFError):
            pass


def _at_once(head: bytes, message: bytes) -> Run:
    """Return an attack by 300 WebSockets that send a message each at the same time
    again and again,
    and read what they are answered."""

    def run(port: int, until: float) -> None:
        with ExitStack() as stack:
            clients = [stack.enter_context(WireClient(port)) for _ in range(300)]
            for client in clients:
                client.send(head)
                client.response()
            while time.monotonic() < until:
                for client in clients:
                    client.send(message)
                for client in clients:
                    client.frame()

    return run


def _leaving(data: bytes, how: str) -> Run:
    """Return an attack that connects, sends something and leaves without waiting for an answer."""

    def run(port: int, until: float) -> None:
        while time.monotonic() < until:
            try:
                client = WireClient(port)
                client.send(data)
                if how == "reset":
                    client.reset()
                else:
                    client.close()
            except OSError:
                pass

    return run


def _handshake_bytes_apart(port: int, until: float) -> None:
    """Send each byte of a handshake, a message and a close frame by itself."""
    whole = request() + frame(TEXT, b"x" * 50) + close_frame()
    while time.monotonic() < until:
        with suppress(OSError), WireClient(port) as client:
            for i in range(len(whole)):
                client.send(whole[i : i + 1])
            client.rest()


def _half_closed(port: int, until: float) -> None:
    """Close the sending half behind a handshake, a message and half a frame."""
    while time.monotonic() < until:
        with suppress(OSError), WireClient(port) as client:
            client.send(request() + frame(TEXT, b"x") + frame(BINARY, bytes(100))[:50])
            client.sock.shutdown(socket.SHUT_WR)
            client.rest()


def _joining(port: int, until: float) -> None:
    """Join a room under ever other names, fifty at a time, and leave by a reset."""
    numbers = itertools.count()
    while time.monotonic() < until:
        clients: list[WireClient] = []
        with suppress(OSError, EOFError):
            for _ in range(50):
                clients.append(WireClient(port))
                clients[-1].send(request(f"/room?me={os.getpid()}-{next(numbers)}"))
                clients[-1].response()
        for client in clients:
            client.reset()


def _subscribing(port: int, until: float) -> None:
    """Have a handler subscribe to ever other channels, and end each subscription."""
    numbers = itertools.count()
    while time.monotonic() < until:
        with suppress(OSError, EOFError), WireClient(port) as client:
            client.send(request("/subscribe"))
            client.response()
            while time.monotonic() < until:
                names = [f"{os.getpid()}-{next(numbers)}".encode() for _ in range(64)]
                client.send(b"".join(frame(TEXT, name) for name in names))
                for _ in names:
                    client.message()


def _pages(port: int, until: float) -> None:
    """Nothing hostile: a browser that fetches one page after the other."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        while time.monotonic() < until:
            sock.sendall(fields())
            sock.recv(65536)


def _chunked(path: str) -> bytes:
    head = fields("Transfer-Encoding: chunked", method="POST", path=path)
    return head + b"1\r\nx\r\n" * 20_000 + b"0\r\n\r\n"


def _names(count: int) -> Iterator[str]:
    return (f"channel={number}" for number in range(count))


_ALL = "/stream?" + "&".join(_names(50)) + "&last_event_id=start"
_EVENTS = fields("Accept: text/event-stream", "Last-Event-ID: start", path=_ALL)
_MULTIPART = b"".join(
    b'--b\r\nContent-Disposition: form-data; name="f%d"\r\n\r\nx\r\n' % i for i in range(900)
)
_FORM = (
    fields(
        "Content-Type: multipart/form-data; boundary=b",
        f"Content-Length: {len(_MULTIPART) + 7}",
        method="POST",
        path="/form",
    )
    + _MULTIPART
    + b"--b--\r\n"
)
_SLOW_FORM = fields(
    "Content-Type: application/x-www-form-urlencoded",
    "Content-Length: 100000",
    method="POST",
    path="/form",
)
_FILES = b"".join(
    b'--b\r\nContent-Disposition: form-data; name="a"; filename="f"\r\n\r\nx\r\n'
    for _ in range(990)
)
_UPLOAD = (
    fields(
        "Content-Type: multipart/form-data; boundary=b",
        f"Content-Length: {len(_FILES) + 7}",
        method="POST",
        path="/form",
    )
    + _FILES
    + b"--b--\r\n"
)
_SHORT = fields("Content-Length: 499000", method="POST", path="/body") + bytes(498_000)
_DEFLATE = request("/deflate", {"Sec-WebSocket-Extensions": "permessage-deflate"})
_EVERYTHING = b"".join(
    [
        fields(),
        fields(path="/nowhere"),
        fields(path="http://127.0.0.1/"),
        fields(method="HEAD"),
        fields(method="TRACE"),
        fields("Range: bytes=0-5"),
        fields("Expect: 100-continue", "Content-Length: 1", method="POST", path="/body") + b"x",
        fields("Transfer-Encoding: chunked", method="POST", path="/unread")
        + b"3;x=y\r\nabc\r\n0\r\nT: 1\r\n\r\n",
    ]
)
_TORN = fields("User-Agent: " + "torn" * 20)[:60]
_HALF = b"GET / HTTP/1.1\r\nX-"
_FEW = ("--worker-connections", "30")
# Seconds: longer than SOCKETS_HANDSHAKE_TIMEOUT and SOCKETS_HTTP_STALL_TIMEOUT.
_HANDSHAKES = 15.0
_STALLS = 75.0

ATTACKS: dict[str, Attack] = {
    "nothing at all": Attack(lambda port, until: time.sleep(max(until - time.monotonic(), 0))),
    "one honest browser": Attack(_pages),
    # -- fairness
    "pipelined pages": Attack(flooding(fields())),
    "pipelined 404s": Attack(flooding(fields(path="/nowhere"))),
    "pipelined HEADs": Attack(flooding(fields(method="HEAD"))),
    "pipelined 426s": Attack(flooding(fields(path="/echo"))),
    "small chunks, read": Attack(flooding(_chunked("/body"))),
    "small chunks, unread": Attack(flooding(_chunked("/unread"))),
    "small forms": Attack(flooding(_FORM)),
    "pipelined small bodies": Attack(
        flooding(fields("Content-Length: 1", method="POST", path="/body") + b"x")
    ),
    "pipelined 100-continues": Attack(
        flooding(
            fields("Content-Length: 1", "Expect: 100-continue", method="POST", path="/body") + b"x"
        )
    ),
    "90 fields a request": Attack(flooding(fields(*(f"X-{i}: {'x' * 100}" for i in range(90))))),
    "large cookies": Attack(flooding(fields("Cookie: " + "a=b; " * 1500))),
    "empty lines": Attack(flooding(b"\r\n")),
    "no requests": Attack(flooding(b"nonsense\r\n\r\n")),
    "connections, closed": Attack(_leaving(b"", "close")),
    "connections, reset": Attack(_leaving(b"", "reset")),
    "torn heads, closed": Attack(_leaving(_TORN, "close")),
    "torn heads, reset": Attack(_leaving(_TORN, "reset")),
    "pages, closed": Attack(_leaving(fields(), "close")),
    "pages, reset": Attack(_leaving(fields(), "reset")),
    "refused origins": Attack(flooding(request(headers={"Origin": "http://elsewhere.example"}))),
    "handshakes, reset": Attack(_handshakes("reset")),
    "handshakes, closed": Attack(_handshakes("close")),
    "handshakes, left": Attack(_handshakes("leave")),
    "event streams, left": Attack(_streams),
    "small messages": Attack(flooding(frame(TEXT, b"x"), first=request())),
    "messages of 1 MB": Attack(flooding(frame(BINARY, bytes(1_000_000)), first=request())),
    "messages a byte at a time": Attack(_bytes_apart),
    "pings": Attack(flooding(frame(PING, b"x"), first=request())),
    "empty fragments": Attack(
        flooding(frame(CONTINUATION, b"", fin=False), first=request() + frame(TEXT, fin=False))
    ),
    "deflate bombs": Attack(_bombs),
    "compressed messages of 1 MB": Attack(flooding(_compressed(1_000_000), first=_DEFLATE)),
    "frames behind the server's close frame": Attack(
        flooding(frame(TEXT, b""), first=request("/bye"))
    ),
    "lists of 60 KiB in a head": Attack(flooding(fields("Accept: " + "a/b;q=0.1," * 6000))),
    "lists of 16 KiB in a head": Attack(flooding(fields("Accept: " + "a/b;q=0.1," * 1600))),
    "uploads of 990 files": Attack(flooding(_UPLOAD)),
    "everything, pipelined": Attack(flooding(_EVERYTHING)),
    "handshakes a byte at a time": Attack(_handshake_bytes_apart),
    "half-closed WebSockets": Attack(_half_closed),
    "joining and leaving": Attack(_joining),
    "subscribing and unsubscribing": Attack(_subscribing),
    # -- memory
    "invented header names": Attack(_invented_names),
    "300 send 1 MB and never read": Attack(
        unread(300, request(), frame(BINARY, bytes(1_000_000)) * 20)
    ),
    "300 send to a handler that never receives": Attack(
        unread(300, request("/deaf"), frame(BINARY, bytes(1_000_000)) * 20)
    ),
    "300 halves of a message": Attack(
        unread(300, request(), frame(BINARY, bytes(1_000_000), fin=False))
    ),
    "20 streams of 50 MB of history": Attack(
        unread(20, _EVENTS), prepare=fill(50, 10, 100_000, "sse")
    ),
    "300 WebSockets of 10 MB of history": Attack(
        unread(300, request("/listen?channel=0&since=start")),
        prepare=fill(1, 100, 100_000, "sockets"),
        environ={"HISTORY_BYTES": str(10 * MIB)},
    ),
    "channels made up for pages": Attack(_made_up_channels("page")),
    "channels made up for streams": Attack(_made_up_channels("stream")),
    "300 compressed messages, then nothing": Attack(held(300, _DEFLATE + _compressed(1_000_000))),
    "300 compressed messages at once": Attack(_at_once(_DEFLATE, _compressed(1_000_000))),
    "300 halves of a compressed message": Attack(
        held(300, _DEFLATE + _compressed(1_000_000, fin=False))
    ),
    "300 bodies that stop short": Attack(held(300, _SHORT)),
    "300 closes that are never answered": Attack(held(300, request("/bye"))),
    "50 large pages, unread": Attack(unread(50, fields(path="/large"))),
    # -- places
    "30 slow forms for 30 places": Attack(
        held(30, _SLOW_FORM, again=b"x"), args=_FEW, seconds=_STALLS
    ),
    "30 unread pages for 30 places": Attack(
        unread(30, fields(path="/large")), args=_FEW, seconds=_STALLS
    ),
    "30 half heads for 30 places": Attack(
        held(30, _HALF, again=b"x"), args=_FEW, seconds=_HANDSHAKES
    ),
    "30 half heads, wrapped": Attack(
        held(30, _HALF, again=b"x"), args=_FEW, environ={"WRAPPED": "1"}, seconds=_HANDSHAKES
    ),
    "30 silent connections for 30 places": Attack(held(30, b""), args=_FEW, seconds=_HANDSHAKES),
    # -- stopping
    "idle connections while it stops": Attack(held(30, fields()), stopping=True),
    "half heads while it stops": Attack(held(30, _HALF), stopping=True),
    "closes never answered while it stops": Attack(held(300, request()), stopping=True),
    "slow forms while it stops": Attack(held(30, _SLOW_FORM, again=b"x"), stopping=True),
}
