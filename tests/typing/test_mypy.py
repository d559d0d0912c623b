"""What users' type checkers see: mypy --strict on the examples and on programs of theirs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

import flask_sockets2

ROOT = Path(__file__).parents[2]

PROGRAM = """
    from __future__ import annotations

    from flask import Blueprint, Flask, session
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
        except WebSocketRejected as exc:
            status: int = exc.status


    limits = Limits(max_message_size=10)
    WebSocketServer(("127.0.0.1", 5000), app, handler_class=WebSocketHandler).serve_forever()
"""


def mistakes(*arguments: str | Path, cwd: Path, cache: Path) -> list[str]:
    """What mypy has to say, but for the package's own code: there its settings are our own."""
    ran = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file=", f"--cache-dir={cache}", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=cwd,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        check=False,
    )
    assert "checked" in ran.stdout or "Success" in ran.stdout, ran.stdout + ran.stderr
    lines = ran.stdout.splitlines()
    return [line for line in lines if ": error:" in line and "flask_sockets2" not in line]


def test_the_package_says_that_it_is_typed() -> None:
    """pain 65"""
    assert Path(flask_sockets2.__file__).with_name("py.typed").exists()


@pytest.mark.timeout(180)
def test_mypy_strict_understands_a_users_program(tmp_path: Path) -> None:
    """pain 65"""
    (tmp_path / "program.py").write_text(dedent(PROGRAM))
    (found,) = mistakes("--strict", "program.py", cwd=tmp_path, cache=tmp_path / "cache")
    assert 'Argument "ws" to "echo" has incompatible type "None"' in found


@pytest.mark.timeout(180)
def test_the_examples_use_the_package_as_its_types_say(tmp_path: Path) -> None:
    """They carry no annotations, as Flask's own; their bodies are checked all the same.

    ``app.wsgi_app = …`` is how Flask documents to wrap an application.
    """
    codes = ["import-untyped", "var-annotated", "method-assign"]
    disabled = [f"--disable-error-code={code}" for code in codes]
    arguments = ["--check-untyped-defs", *disabled, "examples"]
    assert mistakes(*arguments, cwd=ROOT, cache=tmp_path / "cache") == []
