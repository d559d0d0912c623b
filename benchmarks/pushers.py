"""The servers that broadcasts are compared on; :mod:`benchmarks.servers` starts them."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass

from .listeners import check_push
from .servers import CACHE, OURS, PEERS, Peer, gunicorn, script

FLOOR = "floor-python"
FLOOR_C = "floor-c"
FLOOR_C_PROGRAM = CACHE / "push_floor"
COMPILE_TIMEOUT = 60.0  # seconds
GEVENT_WEBSOCKET = "geventwebsocket.gunicorn.workers.GeventWebSocketWorker"
SOCKET_IO = "/socket.io/?EIO=4&transport=websocket"


@dataclass(frozen=True, slots=True)
class Pusher(Peer):
    """A server that broadcasts what ``/publish`` asks for to all that listen.

    :param target: what a listener asks for.
    :param greeting: its listeners introduce themselves, as Socket.IO's do.
    :param broker: it reaches other processes through Redis.
    """

    target: str = "/listen"
    greeting: bool = False
    broker: bool = False

    def missing(self) -> str | None:
        """Return why it cannot be started here, or None."""
        # Not super(): a dataclass with slots is another class than the one that is written here.
        return _missing_floor() if self.name == FLOOR_C else Peer.missing(self)

    def check(self, port: int, timeout: float) -> None:
        """See whether it serves: one listener gets one message."""
        check_push(port, timeout, target=self.target, greeting=self.greeting)


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
    ),
    Pusher(
        "turbo-flask",
        "Turbo-Flask, gevent",
        gunicorn("-k", "gevent", "benchmarks.peers.push_turbo_flask:app"),
        ("turbo_flask", "gunicorn"),
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
        target=SOCKET_IO,
        greeting=True,
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

BATCHED = {f"{OURS}-10": 10, f"{OURS}-50": 50}
"""flask_sockets2, where so many messages are published in one turn of the hub."""

TITLES = {
    OURS: "flask_sockets2",
    **{name: f"flask_sockets2, {turn} a turn" for name, turn in BATCHED.items()},
    **{pusher.name: pusher.title for pusher in PUSHERS},
}
"""What the tables say, in their order."""
