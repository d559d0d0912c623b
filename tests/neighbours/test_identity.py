"""Who somebody is: sessions on the server, logins, tokens, permissions."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path

import pytest

from tests.neighbours.conftest import Cell
from tests.neighbours.visitor import TIMEOUT, Visitor, rest


@pytest.fixture(params=["cachelib", "redis", "sqlalchemy"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    url = {
        "cachelib": lambda: str(tmp_path / "sessions"),
        "redis": lambda: request.getfixturevalue("redis_server").url,
        "sqlalchemy": lambda: f"sqlite:///{tmp_path / 'sessions.db'}",
    }[request.param]()
    return {"STORE": request.param, "STORE_URL": url}


def test_flask_session(cell: Cell, store: dict[str, str]) -> None:
    visitor = cell.start("flask_session_stores", **store)
    visitor.finds_all_four_working()
    assert visitor.post("/login", {"user": "ann"}).status == 200
    assert visitor.get("/me").text == "ann None"
    with visitor.websocket("/me") as ws:
        assert ws.recv(timeout=TIMEOUT) == "ann"
        ws.send("write")
    assert visitor.get("/me").text == "ann None"  # what the handler has written is not saved
    with visitor.page("/my/page") as page:
        assert "<p>ann</p>" in page.html
        visitor.post("/tell", {"user": "bob"})
        visitor.post("/tell", {"user": "ann"})
        assert ">for you<" in page.push()
    with visitor.websocket("/me") as ws:
        assert ws.recv(timeout=TIMEOUT) == "ann"
        visitor.post("/logout")
        assert visitor.get("/me").text == "None None"
    assert visitor.get("/me").text == "None None"  # the end of the socket has not undone it
    with visitor.another().websocket("/me") as ws:
        assert ws.recv(timeout=TIMEOUT) == "None"


def test_beaker(cell: Cell, tmp_path: Path) -> None:
    visitor = cell.start("beaker_sessions", FOLDER=str(tmp_path / "sessions"))
    visitor.finds_all_four_working()
    assert visitor.post("/login", {"user": "ann"}).status == 200
    with visitor.websocket("/me") as ws:
        assert ws.recv(timeout=TIMEOUT) == "ann"
        visitor.post("/logout")
    assert visitor.get("/me").text == "None"  # the end of the socket has not undone it


def test_flask_login(cell: Cell) -> None:
    visitor = cell.start("flask_login_users")
    visitor.finds_all_four_working()
    assert visitor.get("/private").status == 401
    visitor.is_refused("/private", 401)
    with visitor.events("/private/events") as events:
        assert events.status == 401

    bob = visitor.another()
    for who, name in ((visitor, "ann"), (bob, "bob")):
        assert who.post("/login", {"user": name}).status == 200
        assert who.get("/private").text == f"hello, {name}"
    with visitor.websocket("/private") as ann_ws, bob.websocket("/private") as bob_ws:
        for ws in (ann_ws, bob_ws, ann_ws):
            ws.send("hi")
        assert [ann_ws.recv(timeout=TIMEOUT) for _ in range(3)] == ["hello, ann", *["ann: hi"] * 2]
        assert [bob_ws.recv(timeout=TIMEOUT) for _ in range(2)] == ["hello, bob", "bob: hi"]
    with visitor.events("/private/events") as events:
        assert events.status == 200
        visitor.says("news")
        assert events.next(TIMEOUT).data == "news"
    with visitor.page("/private/page") as page:
        bob.post("/tell", {"user": "bob"})
        bob.post("/tell", {"user": "ann"})
        assert ">from bob<" in page.push()
    if cell.foreign:
        return  # its sockets are not ended by sockets.disconnect()
    with visitor.websocket("/private") as ws, bob.websocket("/private") as bob_ws:
        assert ws.recv(timeout=TIMEOUT) == "hello, ann"
        assert visitor.post("/logout").status == 200
        assert rest(ws) == []
        assert ws.close_code == 1008
        assert bob_ws.recv(timeout=TIMEOUT) == "hello, bob"
    visitor.is_refused("/private", 401)


def test_flask_httpauth(cell: Cell) -> None:
    visitor = cell.start("flask_httpauth_basic")
    visitor.finds_all_four_working()
    basic = "Basic " + b64encode(b"ann:right").decode()
    visitor.is_refused("/private", 401)
    visitor.is_refused("/private", 401, Authorization="Basic " + b64encode(b"ann:no").decode())
    visitor.is_refused("/token", 401, Authorization="Bearer wrong")
    if not cell.foreign:
        assert visitor.refusal("/private").headers["www-authenticate"].startswith("Basic ")
    with visitor.websocket("/private", Authorization=basic) as ws:
        assert ws.recv(timeout=TIMEOUT) == "hello, ann"
    with visitor.websocket("/token", Authorization="Bearer right") as ws:
        assert ws.recv(timeout=TIMEOUT) == "hello, ann"
    with visitor.events("/private/events") as events:
        assert events.status == 401
    with visitor.events("/private/events", Authorization=basic) as events:
        visitor.says("news")
        assert events.next(TIMEOUT).data == "news"


def test_flask_jwt_extended(cell: Cell) -> None:
    visitor = cell.start("flask_jwt_extended_tokens")
    visitor.finds_all_four_working()
    stranger = visitor.another()
    token = visitor.post("/login").json()["token"]
    stranger.is_refused("/private", 401)
    stranger.is_refused("/private?jwt=no.token.here", 422)
    ways: list[tuple[Visitor, str, dict[str, str]]] = [
        (stranger, "", {"Authorization": f"Bearer {token}"}),
        (stranger, f"?jwt={token}", {}),
        (visitor, "", {}),  # the cookie
    ]
    for who, query, headers in ways:
        with who.websocket(f"/private{query}", **headers) as ws:
            assert ws.recv(timeout=TIMEOUT) == "hello, ann"
        with who.events(f"/private/events{query}", **headers) as events:
            visitor.says("news")
            assert events.next(TIMEOUT).data == "news"
    with stranger.events("/private/events") as events:
        assert events.status == 401


def test_flask_principal(cell: Cell) -> None:
    visitor = cell.start("flask_principal_needs")
    visitor.finds_all_four_working()
    visitor.is_refused("/admin", 403)
    visitor.post("/login/bob")
    visitor.is_refused("/admin", 403)
    visitor.post("/login/ann")
    with visitor.websocket("/admin") as ws:
        assert ws.recv(timeout=TIMEOUT) == "hello, admin"


def test_flask_security(cell: Cell) -> None:
    visitor = cell.start("flask_security_users")
    visitor.finds_all_four_working()
    visitor.is_refused("/private", 302)  # to the login, as for a page
    form = {"email": "ann@example.com", "password": "right-one"}
    assert visitor.post("/login", form).status == 302
    with visitor.websocket("/private") as ws:
        assert ws.recv(timeout=TIMEOUT) == "hello, ann@example.com"
    visitor.post("/logout")
    visitor.is_refused("/private", 302)


def test_flask_wtf(cell: Cell) -> None:
    visitor = cell.start("flask_wtf_csrf")
    assert visitor.post("/say", {"text": "no token"}).status == 400
    html = visitor.get("/page").text
    before, _, after = html.partition('<meta name="csrf-token" content="')
    assert before != html
    # A page with many streams posts their names, and needs no token for that: what refuses this
    # post is that it names none.
    told = visitor.another(Accept="text/event-stream").post("/turbo-stream")
    assert (told.status, "name the streams" in told.text) == (400, True)
    visitor.headers["X-CSRF-Token"] = after.partition('"')[0]
    visitor.finds_all_four_working()
