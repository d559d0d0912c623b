"""What is saved of the session of a request for a connection."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask, flash, redirect, request
from flask.testing import FlaskClient

from flask_sockets2 import Sockets, WebSocketRejected
from flask_sockets2.sse import ServerSentEventsBlueprint

EVENTS = {"Accept": "text/event-stream"}


@pytest.fixture
def app() -> Flask:
    app = Flask(__name__)
    app.secret_key = "for the tests"
    app.config["SSE_OPEN_CHANNELS"] = True
    sse = ServerSentEventsBlueprint("sse", __name__)
    sse.add_url_rule("", endpoint="stream", view_func=sse.stream)
    app.register_blueprint(sse, url_prefix="/stream")

    @app.before_request
    def tell() -> Any:
        if "say" in request.args:
            flash(request.args["say"])
        return redirect("/login") if "refuse" in request.args else None

    app.add_url_rule("/page", "page", lambda: "page")
    return app


@pytest.fixture
def sockets(app: Flask) -> Sockets:
    sockets = Sockets(app)
    sockets.add_url_rule("/socket", "socket", lambda ws: ws.send("hello"))
    return sockets


def flashes(client: FlaskClient) -> list[str] | None:
    with client.session_transaction() as session:
        found = session.get("_flashes")
    return None if found is None else [message for _, message in found]


def test_a_refused_request_for_a_connection_leaves_no_flash(app: Flask, sockets: Sockets) -> None:
    client = app.test_client()
    for method in (client.get, client.head):
        assert method("/stream?refuse&say=a", headers=EVENTS).status_code == 302
    with pytest.raises(WebSocketRejected):
        sockets.test_client(client).connect("/socket?refuse&say=b")
    assert flashes(client) is None
    assert client.get("/page?refuse&say=c").status_code == 302
    with pytest.raises(WebSocketRejected):
        sockets.test_client(client).connect("/socket?refuse&say=d")
    client.get("/stream?refuse&say=e", headers=EVENTS)
    assert flashes(client) == ["c"]


def test_a_stream_that_is_served_loses_no_flash(app: Flask) -> None:
    client = app.test_client()
    with client.get("/stream?say=a", headers=EVENTS) as response:
        assert response.status_code == 200
    assert flashes(client) == ["a"]
