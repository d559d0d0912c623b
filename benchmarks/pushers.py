"""The servers that broadcasts are compared on; :mod:`benchmarks.servers` starts them."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass

from .listeners import (
    SOCKET_IO_GREETING,
    TURBO_GREETING,
    Broadcast,
    Greeting,
    ask,
    check_push,
)
from .servers import CACHE, OURS, PEERS, Peer, gunicorn, script

FLOOR = "floor-python"
FLOOR_C = "floor-c"
FLOOR_C_PROGRAM = CACHE / "push_floor"
COMPILE_TIMEOUT = 60.0  # seconds
TURBO_APPLICATION = "benchmarks.peers.push_turbo:application"
GEVENT_WEBSOCKET = "geventwebsocket.gunicorn.workers.GeventWebSocketWorker"
SSE_APPLICATION = "benchmarks.peers.push_sse:application"
TURBO = "turbo"


@dataclass(frozen=True, slots=True)
class Pusher(Peer):
    """A server that broadcasts what ``/publish`` asks for to all that listen.

    :param target: what a listener asks for.
    :param greeting: what passes between it and a listener before messages do.
    :param broker: it reaches other processes through Redis.
    :param turns: how many messages it publishes in a turn of the hub, where they go back to back;
        a window and a row for each.
    """

    target: str = "/listen"
    greeting: Greeting | None = None
    broker: bool = False
    turns: tuple[int, ...] = (1,)

    def rows(self) -> dict[str, int]:
        """Return the names of its rows back to back, and of each how many come in a turn."""
        return {self.name if turn == 1 else f"{self.name}-{turn}": turn for turn in self.turns}

    def missing(self) -> str | None:
        """Return why it cannot be started here, or None."""
        # Not super(): a dataclass with slots is another class than the one that is written here.
        return _missing_floor() if self.name == FLOOR_C else Peer.missing(self)

    def check(self, port: int, timeout: float) -> None:
        """See whether it serves: one listener gets one message."""
        check_push(port, timeout, target=self.target, greeting=self.greeting)


@dataclass(frozen=True, slots=True)
class Streamer(Pusher):
    """A server that broadcasts to event streams, through the Redis of ``BENCHMARK_BROKER``.

    :param late: its responses begin with their first event.
    :param clients: the only number of them that it is measured with; None: with each.
    """

    target: str = "/stream"
    late: bool = False
    clients: int | None = None

    def check(self, port: int, timeout: float) -> None:
        """See whether it serves: publish nothing."""
        ask(port, Broadcast(0).target(0), timeout)


def _missing_floor() -> str | None:
    """Return why the floor in C cannot be had, or None; compile it where that can be done."""
    source = PEERS / "push_floor.c"
    made = FLOOR_C_PROGRAM
    if made.exists() and made.stat().st_mtime > source.stat().st_mtime:
        return None
    compiler = shutil.which("cc")
    if compiler is None:
        return "there is no cc to compile it with"
    CACHE.mkdir(exist_ok=True)
    try:
        subprocess.run(
            [compiler, "-O2", "-o", str(made), str(source)],
            check=True,
            capture_output=True,
            timeout=COMPILE_TIMEOUT,
        )
    except (subprocess.SubprocessError, OSError) as exc:
        return f"cc could not compile it ({type(exc).__name__})"
    return None


PUSHERS: tuple[Pusher, ...] = (
    Pusher(
        OURS,
        "flask_sockets2",
        gunicorn("-k", "flask_sockets2.worker", "benchmarks.peers.push_flask_sockets2:app"),
        ("flask_sockets2", "gunicorn"),
        broker=True,
        turns=(1, 10, 50),
    ),
    Pusher(
        TURBO,
        "flask_sockets2's Turbo",
        gunicorn("-k", "flask_sockets2.worker", f"{TURBO_APPLICATION}('flask_sockets2')"),
        ("flask_sockets2", "gunicorn"),
        target="/turbo-stream?s=turbo:all&at=",
        greeting=TURBO_GREETING,
        turns=(1, 10),
    ),
    Pusher(
        "turbo-flask",
        "Turbo-Flask, gevent",
        gunicorn("-k", "gevent", f"{TURBO_APPLICATION}('turbo_flask')"),
        ("turbo_flask", "gunicorn"),
        target="/turbo-stream",
        turns=(1, 10),
    ),
    Pusher(
        "gevent-websocket",
        "gevent-websocket, Flask",
        gunicorn("-k", GEVENT_WEBSOCKET, "benchmarks.peers.push_gevent_websocket:app"),
        ("geventwebsocket", "flask", "gunicorn"),
    ),
    Pusher(
        "flask-socketio",
        "Flask-SocketIO, gevent",
        gunicorn("-k", GEVENT_WEBSOCKET, "benchmarks.peers.push_flask_socketio:app"),
        ("flask_socketio", "geventwebsocket", "gunicorn"),
        target="/socket.io/?EIO=4&transport=websocket",
        greeting=SOCKET_IO_GREETING,
        broker=True,
    ),
    Pusher(
        "websockets",
        "websockets, asyncio",
        script("push_websockets.py"),
        ("websockets",),
    ),
    Pusher("node-ws", "Node ws", ("node", str(PEERS / "push_node_ws.js"), "{port}"), ()),
    Pusher(
        FLOOR,
        "floor: one send, Python",
        script("push_floor.py"),
        ("gevent",),
        parsed=False,
    ),
    Pusher(
        FLOOR_C,
        "floor: one send, C",
        (str(FLOOR_C_PROGRAM), "{port}"),
        (),
        parsed=False,
    ),
)

BATCHES = frozenset(name for each in PUSHERS for name, turn in each.rows().items() if turn > 1)
"""Rows of several messages a turn; beside one message a turn they are no comparison."""

STREAMERS: tuple[Streamer, ...] = (
    Streamer(
        "flask_sockets2-sse",
        "flask_sockets2",
        gunicorn("-k", "flask_sockets2.worker", f"{SSE_APPLICATION}('flask_sockets2.sse')"),
        ("flask_sockets2", "gunicorn", "redis"),
    ),
    Streamer(
        "flask_sockets2-interop",
        "flask_sockets2, with interop",
        gunicorn("-k", "flask_sockets2.worker", f"{SSE_APPLICATION}('flask_sockets2.sse', True)"),
        ("flask_sockets2", "gunicorn", "redis"),
        clients=1000,
    ),
    Streamer(
        "flask-sse",
        "Flask-SSE, gevent",
        gunicorn("-k", "gevent", f"{SSE_APPLICATION}('flask_sse')"),
        ("flask_sse", "gunicorn", "redis"),
        late=True,
    ),
)

TITLES = {
    name: pusher.title if turn == 1 else f"{pusher.title}, {turn} a turn"
    for pusher in (*PUSHERS, *STREAMERS)
    for name, turn in pusher.rows().items()
}
"""What the tables say, in their order."""
