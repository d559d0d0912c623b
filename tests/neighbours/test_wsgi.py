"""What stands around or beside the application."""

from __future__ import annotations

from pathlib import Path

import pytest
import socketio

from tests.neighbours.conftest import GREEN, SERVERS, Cell
from tests.neighbours.visitor import FOREIGN, TIMEOUT


def test_whitenoise(cell: Cell, tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    (files / "app.js").write_text("app()")
    visitor = cell.start("whitenoise_files", FILES=str(files))
    visitor.finds_all_four_working()
    file = visitor.get("/static/app.js")
    assert (file.status, file.text) == (200, "app()")
    assert "max-age" in file.headers["Cache-Control"]


def test_dispatcher_middleware(cell: Cell) -> None:
    visitor = cell.start("dispatcher")
    visitor.finds_all_four_working()
    visitor.prefix = "/shop"
    visitor.finds_all_four_working()
    port = cell.server.port
    socket, stream = visitor.get("/where").text.split()
    assert socket == f"ws://127.0.0.1:{port}/shop/echo"
    assert stream.startswith("/shop/events?")
    # Each has its own channels.
    root = visitor.another()
    root.prefix = ""
    with root.events() as outer, visitor.events() as inner:
        visitor.says("inner")
        root.says("outer")
        assert (outer.next(TIMEOUT).data, inner.next(TIMEOUT).data) == ("outer", "inner")


def test_proxyfix(cell: Cell) -> None:
    visitor = cell.start("proxyfix")
    visitor.headers = {
        "X-Forwarded-For": "192.0.2.7",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "shop.example",
        "X-Forwarded-Prefix": "/shop",
    }
    socket, stream = visitor.get("/where").text.split()
    assert socket == "wss://shop.example/shop/echo"
    assert stream.startswith("/shop/events?")
    page = visitor.get("/page").text
    assert 'data-url="/shop/turbo-stream"' in page
    assert 'src="/shop/_flask_sockets2/' in page
    with visitor.websocket("/who", Origin="https://shop.example") as ws:
        assert ws.recv(timeout=TIMEOUT) == "192.0.2.7 https://shop.example/shop/who True"
    visitor.is_refused("/who", 403, Origin="http://shop.example")
    with visitor.events(Origin="https://shop.example") as events:
        assert events.status == 200
    with visitor.events(Origin="http://shop.example", Sec_Fetch_Site="cross-site") as events:
        assert events.status == 403
    visitor.finds_sockets_working()


# Which of the two is made first, and so which stands around the other, is left to the application.
# gevent-websocket's handler accepts every WebSocket itself; only the mode "gevent" knows of that.
@pytest.mark.parametrize("first", ["", "first"])
@pytest.mark.parametrize("kind", [kind for kind in SERVERS if kind != FOREIGN])
def test_flask_socketio(cell: Cell, first: str) -> None:
    has_both_working(cell, "threading", first)


# Under gunicorn's own worker theirs has a WebSocket only inside of ours, which is made second.
@pytest.mark.parametrize(
    ("kind", "first"), [*((kind, "") for kind in GREEN), *((kind, "first") for kind in GREEN[:-1])]
)
def test_flask_socketio_with_gevent(cell: Cell, first: str) -> None:
    has_both_working(cell, "gevent", first)


def has_both_working(cell: Cell, mode: str, first: str) -> None:
    """Use Socket.IO over each of its transports, and this package's four parts beside it."""
    visitor = cell.start("flask_socketio_events", MODE=mode, FIRST=first)
    visitor.finds_all_four_working()
    for transports in (["polling"], ["websocket"], ["polling", "websocket"]):
        with socketio.SimpleClient() as client:
            client.connect(cell.server.url(), transports=transports, wait_timeout=TIMEOUT)
            client.emit("shout", "hello")
            assert client.receive(timeout=TIMEOUT) == ["heard", "HELLO"]
            visitor.post("/emit")
            assert client.receive(timeout=TIMEOUT) == ["news", "to all"]
            with visitor.websocket("/relay") as ws:
                ws.send("from a socket")
                assert ws.recv(timeout=TIMEOUT) == "relayed"
            assert client.receive(timeout=TIMEOUT) == ["news", "from a socket"]
            assert client.transport == transports[-1]
