"""What users' type checkers see: mypy and pyright on the examples and on programs of theirs.

Both look at the wheel in an environment of its own, as a user's do, and not at the checkout.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple

import pytest

from tests.builds import ROOT, run

from .conftest import Environment

pytestmark = pytest.mark.timeout(300)

HANDLERS = """
    from __future__ import annotations

    from flask import Blueprint, Flask
    from flask_sockets2 import (
        Connection,
        ConnectionClosed,
        Limits,
        Sockets,
        WebSocketError,
        WebSocketHandler,
        WebSocketRejected,
        WebSocketServer,
    )
    from flask_sockets2.testing import SocketsClient
    from flask_sockets2.typing import WebSocket

    app = Flask(__name__)
    sockets = Sockets(app)
    blueprint = Blueprint("ws", __name__)


    @sockets.route("/echo/<int:times>", accept=False, subprotocols=["v1"], ping_interval=10)
    def echo(ws: Connection, times: int) -> None:
        ws.accept(subprotocol=ws.subprotocols[0], headers=[("X-A", "b")])
        for message in ws:
            for _ in range(times):
                ws.send(message)
        code: int | None = ws.close_code
        reason: str = ws.close_reason
        ws.close(code or 1000, reason)


    @blueprint.route("/old")  # type: ignore[type-var]  # Flask's own: it knows responses only
    def old(ws: WebSocket) -> None:
        while not ws.closed:
            try:
                ws.send(ws.receive())
            except ConnectionClosed as exc:
                print(exc.code, exc.reason)
            except WebSocketError:
                raise


    echo(ws=None, times=1)  # error: the decorator keeps the handler's type
    sockets.register_blueprint(blueprint, url_prefix="/ws")


    def test_echo() -> None:
        client: SocketsClient = sockets.test_client(app)
        try:
            with client.connect("/echo/2", subprotocols=["v1"]) as ws:
                ws.send("hello")
                assert ws.receive(timeout=1.0) == "hello"
                selected: str | None = ws.subprotocol
                print(selected)
        except WebSocketRejected as exc:
            status: int = exc.status
            print(status)


    limits = Limits(max_message_size=10)
    WebSocketServer(("127.0.0.1", 5000), app, handler_class=WebSocketHandler).serve_forever()
"""

PUSHES = """
    from __future__ import annotations

    from collections.abc import Iterator

    from flask import Flask
    from flask.typing import ResponseReturnValue
    from flask_sockets2 import Connection, Firehose, Publisher, Sockets, Turbo
    from flask_sockets2.sse import sse

    app = Flask(__name__)
    sockets = Sockets(app)
    turbo = Turbo(app)
    firehose = Firehose(app)
    app.register_blueprint(sse, url_prefix="/stream")


    @sockets.user_id
    def user() -> str | None:
        return "ada"


    @sockets.route("/headlines")
    def listen(ws: Connection) -> None:
        ws.subscribe("headlines", since="start", envelope=True, identity="ada", presence=True)


    @app.post("/headlines")
    def publish() -> ResponseReturnValue:
        sockets.publish("headlines", {"text": "It rains"})
        sse.publish({"text": "It rains"}, type="headline", channel="headlines")
        sockets.disconnect(user="ada")
        return {"here": len(sockets.present("headlines"))}


    @app.post("/votes")
    def vote() -> ResponseReturnValue:
        turbo.push([turbo.update("1", "votes"), turbo.remove("hint")], to="ada")
        if turbo.can_stream():
            return turbo.stream(turbo.append("<p>tea</p>", target="list"))
        turbo.push(1)  # error: not a stream
        return turbo.redirect("/votes")


    @app.get("/report")
    @firehose.hints("/static/app.css")
    def report() -> ResponseReturnValue:
        def rows() -> Iterator[int]:
            yield 1

        return firehose.flush("report.html", rows=rows)


    with Publisher("redis://localhost") as publisher:
        publisher.publish("headlines", {"text": "It snows"})
"""

MYPY = """
    [mypy]
    strict = true

    [mypy-examples.*]
    # They carry no annotations, as Flask's own; their bodies are checked all the same.
    disallow_untyped_defs = false
    disallow_untyped_calls = false
    # app.wsgi_app = ... is how Flask documents to wrap an application.
    disable_error_code = import-untyped, method-assign, var-annotated
"""

FLASKS_OWN = "T_route@route"
"""What pyright names where Flask's decorator is given a function that returns no response."""


class Mistake(NamedTuple):
    file: str
    line: int


@pytest.fixture(scope="module")
def programs(environment: Environment) -> Path:
    """The programs and the examples, beside the environment that they are for."""
    folder = environment.folder / "programs"
    folder.mkdir()
    without_caches = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=without_caches)
    (folder / "handlers.py").write_text(dedent(HANDLERS))
    (folder / "pushes.py").write_text(dedent(PUSHES))
    return folder


def marked(*files: Path) -> set[Mistake]:
    """The lines that say of themselves that they are wrong."""
    return {
        Mistake(path.name, number)
        for path in files
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if "  # error: " in line
    }


def mistakes(said: Iterable[tuple[str, int, object]]) -> set[Mistake]:
    """Where they are; the rest is shown where the test fails."""
    found = set()
    for file, line, what in said:
        print(what)
        found.add(Mistake(Path(file).name, line))
    return found


def test_mypy_finds_what_is_wrong_and_no_more(environment: Environment, programs: Path) -> None:
    """pain 65"""
    files = [programs / "handlers.py", programs / "pushes.py"]
    (programs / "mypy.ini").write_text(dedent(MYPY))
    command = [sys.executable, "-m", "mypy", "--output=json", "."]
    ran = run([*command, f"--python-executable={environment.python}"], programs, timeout=200)
    assert ran.returncode == 1, ran.stdout
    said = [json.loads(line) for line in ran.stdout.splitlines()]
    assert marked(*files) == mistakes((each["file"], each["line"], each) for each in said)


def test_pyright_finds_the_same_in_both(environment: Environment, programs: Path) -> None:
    """pain 65"""
    files = [programs / "handlers.py", programs / "pushes.py"]
    settings = {"typeCheckingMode": "standard", "strict": [path.name for path in files]}
    (programs / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "pyright", "--outputjson"]
    command += ["--pythonpath", str(environment.python)]
    ran = run([*command], programs, timeout=200, PYRIGHT_PYTHON_IGNORE_WARNINGS="1")
    if "npm error network" in ran.stdout:
        pytest.skip("npm does not get pyright")
    answer = json.loads(ran.stdout[ran.stdout.index("{") :])
    assert answer["summary"]["filesAnalyzed"] >= len([*programs.rglob("*.py")])
    assert marked(*files) == mistakes(
        (each["file"], each["range"]["start"]["line"] + 1, each["message"])
        for each in answer["generalDiagnostics"]
        if each["severity"] == "error" and FLASKS_OWN not in each["message"]
    )
