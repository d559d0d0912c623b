"""The test client that users get, and the fixture."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, abort, request, session

from flask_sockets2 import ConnectionClosed, Sockets, WebSocketRejected
from flask_sockets2.testing import SocketsClient
from tests.processes import wait_until

pytest_plugins = ("pytester",)

ROOT = Path(__file__).parents[1]


@pytest.fixture
def app() -> Flask:
    app = Flask(__name__)
    app.secret_key = "for tests"
    app.testing = True
    return app


@pytest.fixture
def sockets(app: Flask) -> Sockets:
    sockets = Sockets(app)

    @sockets.route("/echo", compression=True)
    def echo(ws: Any) -> None:
        for message in ws:
            ws.send(message)

    return sockets


@pytest.fixture
def client(app: Flask, sockets: Sockets) -> SocketsClient:
    return sockets.test_client(app)


def test_a_session_sends_receives_and_closes(client: SocketsClient) -> None:
    """pain 63"""
    with client.connect("/echo") as ws:
        for message in ("grüße", b"\xff", "", "x" * 200_000):
            ws.send(message)
            assert ws.receive() == message
        assert not ws.closed
        assert ws.close_code is None
    assert ws.closed
    assert (ws.close_code, ws.close_reason) == (1000, "")


def test_iteration_ends_with_the_connection(sockets: Sockets, client: SocketsClient) -> None:
    sockets.route("/count")(lambda ws: [ws.send(str(number)) for number in range(3)])
    with client.connect("/count") as ws:
        assert list(ws) == ["0", "1", "2"]
        assert ws.receive() is None
        with pytest.raises(ConnectionClosed, match="closed with code 1000"):
            ws.send("too late")


def test_cookies_are_shared_with_flasks_client(app: Flask, sockets: Sockets) -> None:
    """pain 63: a login there counts here, and a cookie set here is kept."""

    @app.post("/login")
    def login() -> str:
        session["user"] = request.form["user"]
        return ""

    @sockets.route("/who", accept=False)
    def who(ws: Any) -> None:
        if "user" not in session:
            abort(401)
        ws.send(session["user"])

    http = app.test_client()
    client = sockets.test_client(http)
    assert client.http is http
    with pytest.raises(WebSocketRejected) as refused:
        client.connect("/who")
    assert refused.value.status == 401
    http.post("/login", data={"user": "ada"})
    with client.connect("/who") as ws:
        assert ws.receive() == "ada"


def test_cookies_of_a_refusal_are_kept(app: Flask, sockets: Sockets) -> None:
    @sockets.route("/no", accept=False)
    def no(ws: Any) -> Any:
        session["seen"] = True
        return "no", 403

    client = sockets.test_client(app)
    with pytest.raises(WebSocketRejected):
        client.connect("/no")
    assert client.http.get_cookie("session") is not None


def test_the_request_is_the_tests_to_choose(sockets: Sockets, client: SocketsClient) -> None:
    @sockets.route("/request", subprotocols=["b"], origins="*")
    def told(ws: Any) -> None:
        ws.send(f"{request.headers['X-A']} {request.args['q']} {request.remote_addr} {ws.origin}")

    for headers in ({"X-A": "1"}, [("X-A", "1")]):
        with client.connect(
            "/request?q=2",
            headers=headers,
            subprotocols=["a", "b"],
            origin="https://a.example",
            environ_base={"REMOTE_ADDR": "10.0.0.1"},
        ) as ws:
            assert ws.subprotocol == "b"
            assert ws.receive() == "1 2 10.0.0.1 https://a.example"


def test_compression_is_offered_on_demand(client: SocketsClient) -> None:
    with client.connect("/echo", compression=True) as ws:
        assert "permessage-deflate" in ws.headers["Sec-WebSocket-Extensions"]
        ws.send("hello" * 1000)
        assert ws.receive() == "hello" * 1000
    with client.connect("/echo") as ws:
        assert "Sec-WebSocket-Extensions" not in ws.headers


def test_a_ping_is_answered(client: SocketsClient) -> None:
    with client.connect("/echo") as ws:
        assert ws.ping()
        assert ws.ping(b"payload")


def test_receive_gives_up_after_its_timeout(client: SocketsClient) -> None:
    with client.connect("/echo") as ws:
        with pytest.raises(TimeoutError):
            ws.receive(timeout=0.01)
        ws.send("hello")
        assert ws.receive() == "hello"


def test_a_refusal_carries_the_response(sockets: Sockets, client: SocketsClient) -> None:
    sockets.route("/no", accept=False)(lambda ws: ({"why": "full"}, 503, {"Retry-After": "9"}))
    with pytest.raises(WebSocketRejected, match="refused with 503 SERVICE UNAVAILABLE") as refused:
        client.connect("/no")
    response = refused.value.response
    assert response.json == {"why": "full"}
    assert response.headers["Retry-After"] == "9"
    assert refused.value.status == 503


def test_close_sends_code_and_reason(sockets: Sockets, client: SocketsClient) -> None:
    told: list[Any] = []

    @sockets.route("/tell")
    def tell(ws: Any) -> None:
        assert ws.receive() is None
        told.extend((ws.close_code, ws.close_reason))

    client.connect("/tell").close(4000, "done")
    assert told == [4000, "done"]


def test_the_applications_close_code_is_seen(sockets: Sockets, client: SocketsClient) -> None:
    sockets.route("/end")(lambda ws: ws.close(4001, "log in again"))
    with client.connect("/end") as ws:
        assert ws.receive() is None
        assert (ws.close_code, ws.close_reason) == (4001, "log in again")


def test_an_exception_of_the_handler_is_raised_in_the_test(
    sockets: Sockets, client: SocketsClient
) -> None:
    @sockets.route("/fail")
    def fail(ws: Any) -> None:
        raise KeyError(ws.receive())

    with pytest.raises(KeyError, match="boom"), client.connect("/fail") as ws:  # noqa: PT012
        ws.send("boom")
        assert ws.receive() is None
        assert ws.close_code == 1011


def test_an_exception_before_accepting_is_raised_in_the_test(
    sockets: Sockets, client: SocketsClient
) -> None:
    sockets.route("/fail", accept=False)(lambda ws: {}["boom"])
    with pytest.raises(KeyError, match="boom"):
        client.connect("/fail")


def test_a_failed_assertion_of_the_test_wins(sockets: Sockets, client: SocketsClient) -> None:
    sockets.route("/fail")(lambda ws: {}[ws.receive()])
    with pytest.raises(AssertionError, match="of the test"), client.connect("/fail") as ws:  # noqa: PT012
        ws.send("boom")
        raise AssertionError("of the test")


def test_a_handler_that_never_ends_is_a_timeout(sockets: Sockets, client: SocketsClient) -> None:
    go, ended = threading.Event(), threading.Event()

    @sockets.route("/stay")
    def stay(ws: Any) -> None:
        go.wait(60)
        ended.set()

    ws = client.connect("/stay")
    with pytest.raises(TimeoutError, match="the handler did not end in time"):
        ws.close(timeout=0.05)
    go.set()
    assert ended.wait(60)
    ws.close()  # once more waits for it


def test_an_application_that_never_answers_is_a_timeout(
    sockets: Sockets, client: SocketsClient
) -> None:
    go = threading.Event()
    before = threading.active_count()
    sockets.route("/stay", accept=False)(lambda ws: go.wait(60) and None)
    with pytest.raises(TimeoutError, match="did not answer the request in time"):
        client.connect("/stay", timeout=0.05)
    go.set()
    wait_until(lambda: threading.active_count() <= before + 1, "the handler to end")


def test_many_sessions_are_open_at_once(client: SocketsClient) -> None:
    sessions = [client.connect("/echo") for _ in range(20)]
    for number, ws in enumerate(sessions):
        ws.send(str(number))
    assert [ws.receive() for ws in sessions] == [str(number) for number in range(20)]
    for ws in sessions:
        ws.close()


def test_nothing_is_left_open(client: SocketsClient) -> None:
    """pain 72"""
    import psutil

    with client.connect("/echo"):
        pass  # the selector thread has started
    before = psutil.Process().num_fds()
    for _ in range(10):
        with client.connect("/echo") as ws:
            ws.send("hello")
            assert ws.receive() == "hello"
        with pytest.raises(WebSocketRejected):
            client.connect("/nowhere")
    wait_until(lambda: psutil.Process().num_fds() <= before, "all to be closed")


def test_the_fixture_is_a_client_of_the_fixture_app(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pain 63"""
    pytester.makepyfile(
        """
        import pytest
        from flask import Flask
        from flask_sockets2 import Sockets

        @pytest.fixture
        def app():
            app = Flask(__name__)
            sockets = Sockets(app)

            @sockets.route("/echo")
            def echo(ws):
                for message in ws:
                    ws.send(message)

            return app

        def test_echo(sockets_client):
            with sockets_client.connect("/echo") as ws:
                ws.send("hello")
                assert ws.receive() == "hello"
        """
    )
    # As its entry point does where the package is installed, which it need not be here.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    result = pytester.runpytest_subprocess("-p", "flask_sockets2.pytest_plugin", "-W", "error")
    result.assert_outcomes(passed=1)


def test_the_fixture_is_registered_as_a_plugin_of_pytest() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"flask_sockets2": "flask_sockets2.pytest_plugin"}
