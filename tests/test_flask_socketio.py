"""The programs of ``docs/moving-from-flask-socketio.rst``: Flask-SocketIO's do what ours do."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import pytest

from flask_sockets2 import WebSocketRejected
from flask_sockets2.testing import WebSocketSession
from tests.brokers.servers import redis_or_skip
from tests.clients import http
from tests.processes import Server
from tests.test_docs import ROOT, blocks

if TYPE_CHECKING:
    from playwright.sync_api import Page

PAGE = ROOT / "docs" / "moving-from-flask-socketio.rst"
PYTHON = blocks(PAGE, "python")
BEFORE, NOW = PYTHON[::2], PYTHON[1::2]
SIO, MODULE, SCRIPT = blocks(PAGE, "javascript")

WAIT = 30.0  # seconds, for a machine that is busy

LOGIN = """
from flask_sockets2 import Connection


@app.get("/<name>")
def index(name):
    session["user"] = name
    return '''<!doctype html><meta charset="utf-8"><title>Events</title><ol id="log"></ol>
        <script type="module" src="/static/page.js"></script>'''


@app.post("/lose")
def lose():
    for each in Connection.opened():
        each.close(1012)
    broadcast("all", "news", {"text": "while you were away"})
    broadcast("room:lobby", "told", {"text": "in the lobby, too"})
    return "", 204
"""

FOR_TESTS = """
window.socket = socket;
window.got = [];
socket.on("binary", (data) => got.push(new Uint8Array(data).join()));
socket.on("ordered", (data) => show(`ordered: ${data.ok}`));
socket.on("disconnect", (code) => show(`lost: ${code}`));
"""


def namespace(programs: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {"__name__": "page"}
    for block in programs:
        exec(compile(block, PAGE.name, "exec"), found)
    return found


@pytest.fixture(scope="module")
def old() -> dict[str, Any]:
    """The program of Flask-SocketIO."""
    return namespace(BEFORE)


@pytest.fixture
def now() -> Iterator[dict[str, Any]]:
    """Our program, each time a new one."""
    made = namespace(NOW)
    yield made
    made["app"].extensions["flask_sockets2"].channels.close()


def logged_in(program: dict[str, Any], **session: str) -> Any:
    """A client of Flask with a session."""
    client = program["app"].test_client()
    with client.session_transaction() as kept:
        kept.update({"user": "ada", **session})
    return client


def old_client(program: dict[str, Any], namespace: str | None = None, **session: str) -> Any:
    client = logged_in(program, **session)
    return program["socketio"].test_client(
        program["app"], namespace=namespace, flask_test_client=client
    )


def connect(program: dict[str, Any], path: str = "/events", **session: str) -> WebSocketSession:
    client: WebSocketSession = (
        program["sockets"].test_client(logged_in(program, **session)).connect(path, timeout=WAIT)
    )
    return client


def receive(ws: WebSocketSession) -> Any:
    message = ws.receive(timeout=WAIT)
    assert isinstance(message, str)
    return json.loads(message)


def send(ws: WebSocketSession, event: str, data: Any = None, **more: Any) -> None:
    ws.send(json.dumps({"event": event, "data": data, **more}))


def asked(ws: WebSocketSession, event: str, data: Any = None) -> Any:
    """What is answered to an event; what comes before it is thrown away."""
    send(ws, event, data, id=event)
    while (answer := receive(ws)).get("ack") != event:
        pass
    return answer["data"]


@pytest.fixture
def ws(now: dict[str, Any]) -> Iterator[WebSocketSession]:
    with connect(now) as ws:
        assert receive(ws)["event"] == "connected"
        yield ws


def test_each_program_of_flask_socketio_is_followed_by_ours() -> None:
    assert len(BEFORE) == len(NOW) >= 12
    assert all("socketio" in block for block in BEFORE)
    assert not any("socketio" in block for block in NOW)


# -- Flask-SocketIO ----------------------------------------------------------------------------


def test_flask_socketio_greets_answers_and_refuses(old: dict[str, Any]) -> None:
    client = old_client(old)
    client.emit("greet", {"name": "Ada"})
    assert client.get_received()[0]["args"] == [{"text": "Hello, Ada!"}]
    assert client.emit("add", {"a": 1, "b": 2}, callback=True) == {"sum": 3}
    stranger = old["socketio"].test_client(old["app"])
    assert not stranger.is_connected()


def test_flask_socketio_broadcasts_to_all_but_the_sender_and_to_rooms(old: dict[str, Any]) -> None:
    ada, bob = old_client(old), old_client(old)
    ada.emit("say", {"text": "hello"})
    assert ada.get_received() == []
    assert [each["name"] for each in bob.get_received()] == ["said"]
    assert "lobby" in ada.emit("join", {"room": "lobby"}, callback=True)["rooms"]
    bob.emit("tell", {"room": "lobby", "text": "psst"})
    assert [each["name"] for each in ada.get_received()] == ["told"]
    ada.emit("close", {"room": "lobby"})
    bob.emit("tell", {"room": "lobby", "text": "psst"})
    assert ada.get_received() == []


def test_flask_socketio_keeps_a_session_for_the_connection(old: dict[str, Any]) -> None:
    client = old_client(old)
    client.emit("rename", {"name": "Lady Lovelace"})
    assert client.emit("name", callback=True) == "Lady Lovelace"
    assert old_client(old).emit("name", callback=True) == "ada"


def test_flask_socketio_tells_of_errors_and_has_namespaces(old: dict[str, Any]) -> None:
    client = old_client(old)
    client.emit("fail", 0)
    assert [each["name"] for each in client.get_received()] == ["failed"]
    assert client.is_connected()
    admin = old_client(old, namespace="/admin", role="admin")
    assert admin.emit("figures", None, callback=True, namespace="/admin") == {"users": 5}
    assert not old_client(old, namespace="/admin").is_connected("/admin")


def test_the_test_of_flask_socketio_passes(old: dict[str, Any]) -> None:
    old["test_add"]()


# -- ours --------------------------------------------------------------------------------------


def test_a_client_is_greeted_and_answered(now: dict[str, Any], ws: WebSocketSession) -> None:
    send(ws, "greet", {"name": "Ada"})
    assert receive(ws) == {"event": "greeting", "data": {"text": "Hello, Ada!"}}
    now["test_add"]()


def test_who_is_not_logged_in_is_refused(now: dict[str, Any]) -> None:
    with pytest.raises(WebSocketRejected) as refusal:
        now["sockets"].test_client(now["app"]).connect("/events")
    assert refusal.value.status == 401
    with pytest.raises(WebSocketRejected) as refusal:
        connect(now, "/admin/events")
    assert refusal.value.status == 403


@pytest.mark.parametrize("message", ["", "[]", '"x"', "{", '{"event": []}', '{"event": "none"}'])
def test_what_is_no_event_ends_the_connection(message: str, ws: WebSocketSession) -> None:
    ws.send(message)
    assert ws.receive(timeout=WAIT) is None
    assert (ws.close_code, ws.close_reason) == (4000, "unknown event")


def test_the_server_asks_the_client_and_handles_others_meanwhile(ws: WebSocketSession) -> None:
    send(ws, "order", {"tea": 1})
    question = receive(ws)
    assert (question["event"], question["data"]) == ("confirm", {"tea": 1})
    assert asked(ws, "add", {"a": 1, "b": 2}) == {"sum": 3}
    ws.send(json.dumps({"ack": question["id"], "data": True}))
    assert receive(ws) == {"event": "ordered", "data": {"ok": True}}
    ws.send(json.dumps({"ack": question["id"], "data": True}))  # too late: no error
    assert asked(ws, "add", {"a": 2, "b": 2}) == {"sum": 4}


def test_a_client_that_leaves_while_it_is_asked_is_no_error(now: dict[str, Any]) -> None:
    with connect(now) as ws:
        send(ws, "order", {"tea": 1})
        while receive(ws)["event"] != "confirm":
            pass
        ws.close(timeout=WAIT)  # raises what the handler raises


def test_a_broadcast_names_who_has_sent_it(now: dict[str, Any], ws: WebSocketSession) -> None:
    with connect(now) as bob:
        own = receive(bob)["data"]["id"]
        send(bob, "say", {"text": "hello"})
        for each in (ws, bob):
            said = receive(each)
            assert (said["channel"], said["data"]["event"]) == ("all", "said")
            assert (said["data"]["by"], said["data"]["data"]) == (own, {"text": "hello"})


def test_a_view_broadcasts_where_it_may(now: dict[str, Any], ws: WebSocketSession) -> None:
    assert logged_in(now).post("/news", json={"text": "It rains."}).status_code == 403
    editor = logged_in(now, role="editor")
    assert editor.post("/news", json={"text": "It rains."}).status_code == 204
    assert receive(ws)["data"]["data"] == {"text": "It rains."}


def test_who_was_away_gets_what_was_missed(now: dict[str, Any]) -> None:
    position = now["sockets"].position("all")
    now["broadcast"]("all", "news", {"text": "It rains."})
    with connect(now, f"/events?all={position}") as ws:
        events = [receive(ws) for _ in range(2)]
    assert [each.get("channel") for each in events].count("all") == 1


def test_a_room_is_for_those_in_it(now: dict[str, Any], ws: WebSocketSession) -> None:
    assert asked(ws, "join", {"room": "secret"}) == {"error": "no such room"}
    assert asked(ws, "join", {"room": "lobby"}) == {"rooms": ["lobby"]}
    assert asked(ws, "join", {"room": "lobby"}) == {"rooms": ["lobby"]}
    with connect(now) as outside:
        assert receive(outside)["event"] == "connected"
        send(outside, "tell", {"room": "lobby", "text": "let me in"})
        send(outside, "close", {"room": "lobby"})
        assert asked(outside, "add", {"a": 0, "b": 0}) == {"sum": 0}
    send(ws, "tell", {"room": "lobby", "text": "psst"})
    assert receive(ws)["data"]["data"]["text"] == "psst"
    send(ws, "close", {"room": "lobby"})
    assert receive(ws)["data"]["event"] == "closed"
    assert asked(ws, "leave", {"room": "lobby"}) is None
    assert now["sockets"].subscribers("room:lobby") == 0


def test_a_name_belongs_to_the_connection(now: dict[str, Any], ws: WebSocketSession) -> None:
    assert asked(ws, "name") == "ada"
    asked(ws, "rename", {"name": "Lady Lovelace"})
    assert asked(ws, "name") == "Lady Lovelace"
    with connect(now) as other:
        assert asked(other, "name") == "ada"


def test_an_admin_sees_figures(now: dict[str, Any], ws: WebSocketSession) -> None:
    with connect(now, "/admin/events", role="admin") as admin:
        assert asked(admin, "figures") == {"users": 1}


def test_an_error_is_told_and_the_connection_stays(
    now: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with connect(now, "/careful/events") as ws:
        send(ws, "fail", 0)
        assert receive(ws)["event"] == "failed"
        assert asked(ws, "fail", 2) == 0.5
    assert "an event failed" in caplog.text


def test_the_thread_counts_for_all(now: dict[str, Any], ws: WebSocketSession) -> None:
    seconds = iter([None, None])
    now["sleep"] = lambda _: next(seconds)
    with pytest.raises(StopIteration):
        now["count"]()
    assert [receive(ws)["data"]["data"]["number"] for _ in range(2)] == [1, 2]
    begun = Event()
    now["count"] = begun.set
    now["start"]()
    assert begun.wait(WAIT)


def test_another_process_publishes_to_the_page(now: dict[str, Any]) -> None:
    for server in redis_or_skip():
        (program,) = [block for block in NOW if "elsewhere.py" in block]
        found: dict[str, Any] = {}
        exec(program.replace("redis://localhost:6379/0", server.url), found)
        now["app"].config["SOCKETS_BROKER_URL"] = server.url
        with connect(now) as ws:
            assert receive(ws)["event"] == "connected"
            found["rain"]()
            assert receive(ws)["data"]["data"] == {"text": "It rains."}


# -- in a browser ------------------------------------------------------------------------------


@pytest.fixture
def server(gunicorn: Callable[..., Server], tmp_path: Path) -> Server:
    (tmp_path / "static").mkdir()
    (tmp_path / "static" / "events.js").write_text(MODULE)
    (tmp_path / "static" / "page.js").write_text(SCRIPT + FOR_TESTS)
    return gunicorn("\n\n".join([*NOW, LOGIN]))


def enter(new_page: Callable[..., Page], server: Server, name: str) -> Page:
    page = new_page()
    page.set_default_timeout(WAIT * 1000)
    page.goto(server.url(f"/{name}"))
    page.wait_for_selector("li:text-is('3')")  # the answer to add, the last of what it does first
    return page


def lines(page: Page) -> list[str]:
    return page.locator("#log li").all_inner_texts()


@pytest.mark.timeout(120)
def test_two_pages_talk_as_with_socket_io(new_page: Callable[..., Page], server: Server) -> None:
    ada, bob = enter(new_page, server, "ada"), enter(new_page, server, "bob")
    assert "Hello, Ada!" in lines(ada)
    ada.evaluate("socket.emit('say', { text: 'hello, all' })")
    bob.wait_for_selector("li:text-is('hello, all')")
    bob.evaluate("socket.emit('tell', { room: 'lobby', text: 'hello, lobby' })")
    ada.wait_for_selector("li:text-is('hello, lobby')")
    assert "hello, all" not in lines(ada)  # the other came behind it
    ada.evaluate("socket.emit('order', { tea: 1 })")
    ada.wait_for_selector("li:text-is('ordered: true')")
    asked = "socket.ask('join', { room: 'secret' })"
    assert ada.evaluate(asked) == {"error": "no such room"}
    assert ada.evaluate("socket.waits()") is False
    ada.evaluate("socket.emit('close', { room: 'lobby' })")
    ada.wait_for_function(
        "socket.ask('join', { room: 'kitchen' }).then(({ rooms }) => rooms.length === 1)"
    )


@pytest.mark.timeout(120)
def test_a_page_that_lost_its_connection_gets_what_it_missed(
    new_page: Callable[..., Page], server: Server
) -> None:
    page = enter(new_page, server, "ada")
    page.evaluate("socket.emit('tell', { room: 'lobby', text: 'before' })")  # for a position
    page.evaluate("socket.emit('say', { text: 'mine' })")
    page.wait_for_selector("li:text-is('before')")
    page.wait_for_function("socket.seen('all') !== undefined")
    assert http(server.url("/lose"), data=b"", timeout=WAIT)[0] == 204
    page.wait_for_selector("li:text-is('while you were away')")
    page.wait_for_selector("li:text-is('in the lobby, too')")
    assert "lost: 1012" in lines(page)
    assert lines(page).count("while you were away") == 1


@pytest.mark.timeout(120)
def test_questions_fail_when_nobody_answers_or_the_connection_is_lost(
    new_page: Callable[..., Page], server: Server
) -> None:
    page = enter(new_page, server, "ada")
    reason = ".then(() => 'answered', (error) => error.message)"
    page.evaluate("void socket.on('confirm', () => new Promise(() => {}))")  # says nothing
    assert page.evaluate(f"socket.ask('order', {{}}, 1){reason}") == "no answer"
    assert page.evaluate(f"socket.ask('unknown', {{}}){reason}") == "the connection is lost"
    page.wait_for_selector("li:text-is('lost: 4000')")
