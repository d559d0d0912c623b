"""A client that never pauses: the hub looks at all other sockets again and again."""

from __future__ import annotations

import socket
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from flask_sockets2.servers import turns
from flask_sockets2.servers.patience import Patience
from tests.faults.bystander import bystander
from tests.processes import Server, servers_in, unused_port
from tests.wire_client import BINARY, TEXT, WireClient, frame, request

COUNTING = """
from time import perf_counter

from gevent import get_hub

from flask_sockets2 import WebSocketServer
from flask_sockets2.connection.connection import lifecycle_of
from flask_sockets2.connection.limits import Limits

rounds = 0  # of the hub, in each of which it looks at all sockets


def count():
    global rounds
    rounds += 1


watcher = get_hub().loop.check()
watcher.start(count)


def work():
    \"\"\"Work for longer than a turn; return the number of the round.\"\"\"
    until = perf_counter() + 0.02
    while perf_counter() < until:
        pass
    return f"{rounds} ".encode()


def answer(ws):
    lifecycle_of(ws).opening.limits = Limits(compression=True)
    for message in ws:
        ws.send(message[:1] + work())


def app(environ, start_response):
    if "wsgi.websocket" in environ:
        answer(environ["wsgi.websocket"])
        return []
    start_response("200 OK", [("Content-Type", "text/plain")])
    path = environ["PATH_INFO"]
    if path == "/read":
        return [b"".join(work() for _ in iter(lambda: environ["wsgi.input"].read(8192), b""))]
    if path == "/write":
        return (work() for _ in range(10))
    return [work()]


WebSocketServer(("127.0.0.1", PORT), app, log=None).serve_forever()
"""


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that answers with the numbers of the rounds in which it worked."""
    port = unused_port()
    with servers_in(tmp_path_factory.mktemp("counting")) as servers:
        yield servers.script(COUNTING.replace("PORT", str(port)), port=port)


def numbers(answer: bytes) -> list[int]:
    """The numbers of rounds in an answer, or in several."""
    return [int(word) for line in answer.split(b"\r\n") for word in line.split(b" ")[:-1] if word]


def rounds(server: Server, sent: bytes) -> list[int]:
    with WireClient(server.port) as client:
        client.send(sent)
        answer = client.rest()
    bodies = [part.partition(b"\r\n\r\n")[2] for part in answer.split(b"HTTP/1.1 200 OK")]
    return [number for body in bodies for number in numbers(body)]


def test_the_hub_serves_others_between_two_pipelined_requests(counting: Server) -> None:
    """All of them are in the kernel's buffer already, so that no read has to wait."""
    head = b"GET / HTTP/1.1\r\nHost: a\r\n"
    came = rounds(counting, (head + b"\r\n") * 9 + head + b"Connection: close\r\n\r\n")
    assert len(came) == 10
    assert came == sorted(set(came))


@pytest.mark.parametrize("chunked", [False, True])
def test_the_hub_serves_others_between_two_pieces_of_a_body(
    chunked: bool, counting: Server
) -> None:
    body = bytes(5 * 8192)
    framing = f"Content-Length: {len(body)}"
    if chunked:
        framing, body = "Transfer-Encoding: chunked", b"1\r\nx\r\n" * len(body) + b"0\r\n\r\n"
    head = f"POST /read HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{framing}\r\n\r\n"
    came = rounds(counting, head.encode() + body)
    assert len(came) == 5
    assert came == sorted(set(came))


def test_the_hub_serves_others_between_two_pieces_of_a_response(counting: Server) -> None:
    """A client that reads faster than the application writes leaves room in the socket."""
    came = rounds(counting, b"GET /write HTTP/1.0\r\nHost: a\r\n\r\n")
    assert len(came) == 10
    assert came == sorted(set(came))


def compressed(message: bytes) -> bytes:
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = deflate.compress(message) + deflate.flush(zlib.Z_SYNC_FLUSH)
    return frame(BINARY, data[:-4], reserved=4)


@pytest.mark.parametrize("kind", ["long", "compressed", "behind the handshake"])
def test_the_hub_serves_others_between_many_websockets_that_have_sent_something(
    kind: str, counting: Server
) -> None:
    """All of it is in the kernel's buffers when the hub looks at the sockets."""
    first, second = b"a" * 200, b"b" * 200
    if kind == "compressed":
        head = request("/", {"Sec-WebSocket-Extensions": "permessage-deflate"})
        sent = compressed(first) + compressed(second)
    else:
        head, sent = request("/"), frame(BINARY, first) + frame(BINARY, second)
    process = psutil.Process(counting.process.pid)
    with ExitStack() as stack:
        if kind == "behind the handshake":
            process.suspend()
        clients = [stack.enter_context(WireClient(counting.port)) for _ in range(10)]
        for client in clients:
            client.send(head)
            if kind != "behind the handshake":
                assert client.response().status == 101
        process.suspend()
        for client in clients:
            client.send(sent)
        process.resume()
        came = Counter[int]()
        for client in clients:
            if kind == "behind the handshake":
                assert client.response().status == 101
            for letter in (b"a", b"b"):
                answer = client.message()
                assert answer[:1] == letter
                came[int(answer[1:])] += 1
    # Two messages of one client that was read at once, and of one whose turn had come
    assert max(came.values()) <= 4


# -- a bystander ---------------------------------------------------------------------------

APPLICATION = """
from flask import Flask, Response, request
from flask_sockets2 import Sockets

app = Flask(__name__)
sockets = Sockets(app)


@app.route("/", methods=["GET", "POST"])
def page():
    return "page"


@app.post("/body")
def body():
    return str(len(request.get_data()))


@app.post("/bytes")
def in_bytes():
    return str(sum(1 for _ in iter(lambda: request.stream.read(1), b"")))


@app.get("/endless")
def endless():
    return Response(iter(lambda: b"piece", b""))


@sockets.route("/echo")
def echo(ws):
    for message in ws:
        ws.send(message)
"""

FLOOD = 4.0  # seconds, more than a bystander may wait


def head(path: str, *lines: str) -> bytes:
    """The head of a GET, or of a POST where a line names the framing of its body."""
    method = "POST" if lines else "GET"
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: a", *lines, "", ""]).encode()


CHUNKED = "Transfer-Encoding: chunked"
KINDS = {
    "requests": (b"", head("/")),
    "not found": (b"", head("/nowhere")),
    "no handshakes": (b"", head("/echo")),
    "small bodies": (b"", head("/body", "Content-Length: 1") + b"x"),
    "chunks that are read": (head("/body", CHUNKED), b"1\r\nx\r\n"),
    "chunks that nobody reads": (head("/", CHUNKED), b"1\r\nx\r\n"),
    "bytes that are read one by one": (head("/bytes", "Content-Length: 99999999999"), bytes(99)),
    "a response without end": (head("/endless"), b"x"),
    "frames behind a handshake": (request(), frame(TEXT, b"x")),
}
"""What a client sends first, and then again and again."""


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("worker")
    with servers_in(folder) as servers:
        yield servers.gunicorn(APPLICATION)


@contextmanager
def flooding(port: int, first: bytes, again: bytes) -> Iterator[Callable[[], int]]:
    """A client that sends without a pause and takes all that comes.

    :returns: a function that returns how many bytes came.
    """
    came = 0
    again *= 65536 // len(again)
    with WireClient(port) as client:

        def send() -> None:
            with suppress(OSError):
                client.send(first)
                while True:
                    client.send(again)

        def take() -> None:
            nonlocal came
            with suppress(OSError):
                while data := client.sock.recv(2**20):
                    came += len(data)

        client.sock.settimeout(None)
        threads = [threading.Thread(target=target, daemon=True) for target in (send, take)]
        for thread in threads:
            thread.start()
        try:
            yield lambda: came
        finally:
            with suppress(OSError):
                client.sock.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join(60)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_client_that_never_pauses_keeps_no_other_waiting(kind: str, worker: Server) -> None:
    """The bystander is an echo, which must not wait for long; without turns it waits for all."""
    (process,) = psutil.Process(worker.process.pid).children()
    with bystander(worker.port, process, process.memory_info().rss) as watch:
        with flooding(worker.port, *KINDS[kind]):
            until = time.monotonic() + FLOOD
            while time.monotonic() < until:
                time.sleep(0.1)  # the length of the flood
        assert len(watch.waits) > 1


class _NoTurns:
    def take(self) -> None:
        pass


class _FullSocket:
    """A socket of a client that has taken much, and takes nothing from now on."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.now = 0.0
        self._timeout = 0.0

    def settimeout(self, seconds: float) -> None:
        self._timeout = seconds

    def send(self, data: memoryview) -> int:
        size = min(self.room, len(data))
        self.room -= size
        if size:
            return size
        self.now += self._timeout
        raise TimeoutError


def test_what_a_client_took_before_it_stopped_does_not_double_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its kernel takes megabytes at once, before the server waits for the first time."""
    sock = _FullSocket(room=2**21)
    monkeypatch.setattr(turns, "monotonic", lambda: sock.now)
    monkeypatch.setattr(turns, "_unacknowledged", lambda _: 2**19)
    sender = turns.PatientSender(sock, _NoTurns())
    sender.patience = Patience(60.0, 500.0)

    def send(data: memoryview) -> None:
        while data:
            data = data[sender.send(data) :]

    with pytest.raises(TimeoutError):
        send(memoryview(bytes(2**22)))
    assert 60.0 <= sock.now <= 66.0
