from __future__ import annotations

import importlib
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.request import urlopen

import pytest
from flask import Flask
from prometheus_client import CollectorRegistry, generate_latest, multiprocess

from flask_sockets2 import Sockets, WebSocket
from flask_sockets2.application.event_stream import stream_response
from tests.processes import Server, wait_until
from tests.wire_client import TEXT, WireClient, connect, frame

APP = """
    import os
    from flask import Flask
    from flask_sockets2 import Sockets

    app = Flask(__name__)
    app.config["SOCKETS_METRICS_ROUTE"] = "/metrics"
    sockets = Sockets(app)

    @sockets.route("/echo")
    def echo(ws):
        ws.send(str(os.getpid()))
        for message in ws:
            ws.send(message)
"""


def sample(text: str, name: str, **labels: str) -> float | None:
    """The value of a metric in Prometheus' text format, None where it is missing."""
    given = ",".join(f'{label}="{value}"' for label, value in labels.items())
    match = re.search(
        rf"^{re.escape(f'{name}{{{given}}}' if given else name)} (\S+)$", text, re.MULTILINE
    )
    return float(match[1]) if match else None


def test_a_directory_that_processes_cannot_share_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    importlib.import_module("prometheus_client")  # which looks at the variable, too
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "/nowhere")
    app = Flask(__name__)
    app.config["SOCKETS_METRICS_ROUTE"] = "/metrics"
    with pytest.raises(
        RuntimeError, match="PROMETHEUS_MULTIPROC_DIR is '/nowhere', and that is no"
    ):
        Sockets(app)


def test_one_of_several_processes_that_answers_for_itself_warns_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = Flask(__name__)
    app.config["SOCKETS_METRICS_ROUTE"] = "/metrics"
    Sockets(app)
    client = app.test_client()
    assert client.get("/metrics").status_code == 200
    assert caplog.messages == []
    for _ in range(2):
        client.get("/metrics", environ_overrides={"wsgi.multiprocess": True})
    (message,) = caplog.messages
    assert "set the environment variable PROMETHEUS_MULTIPROC_DIR" in message


def test_the_metrics_of_a_child_of_a_fork_begin_anew() -> None:
    app = Flask(__name__)
    app.config["SOCKETS_METRICS_ROUTE"] = "/metrics"
    sockets = Sockets(app)
    client = app.test_client()
    for _ in range(3):
        sockets.publish("news", "parent")
    client.get("/metrics")
    child = os.fork()
    if not child:
        try:
            sockets.publish("news", "child")
            os._exit(client.get("/metrics").status_code != 200)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_metrics_of_one_process_are_its_counts() -> None:
    app = Flask(__name__)
    app.config["SOCKETS_METRICS_ROUTE"] = "/metrics"
    sockets = Sockets(app)

    @sockets.route("/news")
    def news(ws: WebSocket) -> None:
        ws.subscribe("news:sport")  # type: ignore[attr-defined]
        for message in ws:  # type: ignore[attr-defined]
            sockets.publish("news:sport", message)

    with sockets.test_client(app).connect("/news") as ws:
        ws.send("goal")
        assert ws.receive() == "goal"
        response = app.test_client().get("/metrics")
        assert response.mimetype == "text/plain"
        assert sample(response.text, "flask_sockets2_connections", route="/news") == 1
    text = app.test_client().get("/metrics").text
    for name, value in {"connections_opened_total": 1, "messages_received_total": 1}.items():
        assert sample(text, f"flask_sockets2_{name}", route="/news") == value
    for name in ("published", "delivered"):
        assert sample(text, f"flask_sockets2_channel_{name}_total", channel="news") == 1
    assert sample(text, "flask_sockets2_channel_gaps_total", channel="news") == 0
    assert sample(text, "flask_sockets2_connections", route="/news") == 0
    assert sample(text, "flask_sockets2_broker_reconnects_total") == 0


def test_the_metrics_agree_with_the_stats() -> None:
    app = Flask(__name__)
    app.config["SOCKETS_METRICS_ROUTE"] = "/metrics"
    sockets = Sockets(app)
    sockets.publish_many([("a:1", "x"), ("a:2", "y"), ("b", "z")])
    assert sockets.stats()["channels"]["a"]["published"] == 2
    for _ in range(2):  # asking does not count twice
        text = app.test_client().get("/metrics").text
        assert sample(text, "flask_sockets2_channel_published_total", channel="a") == 2
        assert sample(text, "flask_sockets2_channel_published_total", channel="b") == 1


def test_event_streams_are_measured() -> None:
    app = Flask(__name__)
    app.config["SOCKETS_METRICS_ROUTE"] = "/metrics"
    Sockets(app)
    app.add_url_rule("/events", view_func=lambda: stream_response(app, []))
    responses = [app.test_client().get("/events") for _ in range(2)]
    responses.pop().close()
    text = app.test_client().get("/metrics").text
    assert sample(text, "flask_sockets2_streams_opened_total") == 2
    assert sample(text, "flask_sockets2_streams") == 1
    responses.pop().close()


def test_there_is_no_route_by_default() -> None:
    app = Flask(__name__)
    Sockets(app)
    assert app.test_client().get("/metrics").status_code == 404


def test_without_prometheus_client_the_error_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "flask_sockets2.application.metrics", None)
    app = Flask(__name__)
    app.config["SOCKETS_METRICS_ROUTE"] = "/metrics"
    with pytest.raises(RuntimeError, match=r"flask-sockets2\[metrics\]"):
        Sockets(app)


def written(folder: Path) -> float | None:
    """How many messages the processes that write there say that they have received."""
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry, path=str(folder))  # type: ignore[no-untyped-call]
    text = generate_latest(registry).decode()
    return sample(text, "flask_sockets2_messages_received_total", route="/echo")


def test_any_of_several_workers_answers_for_all_and_forgets_a_killed_one(
    gunicorn: Callable[..., Server], tmp_path: Path
) -> None:
    folder = tmp_path / "prometheus"
    folder.mkdir()
    server = gunicorn(APP, args=["-w", "2"], environ={"PROMETHEUS_MULTIPROC_DIR": str(folder)})
    clients: list[tuple[int, WireClient]] = []

    def one_more() -> bool:
        client = connect(server.port)
        clients.append((int(client.message()), client))
        return len({pid for pid, _ in clients}) == 2 and len(clients) >= 6

    def value(name: str) -> float | None:
        text = urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=60).read().decode()
        return sample(text, f"flask_sockets2_{name}", route="/echo")

    try:
        wait_until(one_more, "clients on both workers")
        for _, client in clients:
            client.send(frame(TEXT, b"hello"))
            assert client.message() == b"hello"
        everyone = len(clients)
        wait_until(lambda: written(folder) == everyone, "what nobody has asked for yet")
        for name in ("connections", "connections_opened_total", "messages_received_total"):
            wait_until(lambda name=name: value(name) == everyone, name)
        killed = clients[0][0]
        os.kill(killed, signal.SIGKILL)
        left = sum(pid != killed for pid, _ in clients)
        wait_until(lambda: value("connections") == left, "the killed worker's to be forgotten")
        assert value("connections_opened_total") == everyone
    finally:
        for _, client in clients:
            client.close()
