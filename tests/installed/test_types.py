"""What users' type checkers see: mypy and pyright on the examples and on programs of theirs.

Both look at the wheel in an environment of its own, as a user's do, and not at the checkout.
``typed/revealed.py`` says of each public name which type it has, ``typed/mistaken.py`` what is to
be refused, since it fails when it runs.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple

import pytest

from flask_sockets2 import Connection, Firehose, Publisher, Sockets, Turbo, testing
from flask_sockets2.sse import Progress, ServerSentEventsBlueprint
from flask_sockets2.turbo.testing import Broadcasts
from tests.builds import ROOT, run
from tests.test_docs import blocks
from tests.test_site import members

from .conftest import Environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

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

TYPED = Path(__file__).with_name("typed")

SHOWN = [
    Broadcasts,
    Connection,
    Firehose,
    Progress,
    Publisher,
    ServerSentEventsBlueprint,
    Sockets,
    Turbo,
    testing.SocketsClient,
    testing.WebSocketSession,
]
"""Classes whose methods and properties are all in ``typed/revealed.py``."""

NOT_SHOWN = {
    "redis",  # its type is that of an extra
    "register",  # Flask calls it
    *("populate", "set_header", "context_processor", "start_jobs", "user_of_connection"),
}

PAGES = {"page_readme": "README.rst", "page_websocket": "docs/websocket.rst"}
"""Pages whose programs are checked, by the names of modules."""

MYPY = """
    [mypy]
    strict = true

    [mypy-examples.*,page_readme,page_websocket]
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
    for name, page in PAGES.items():
        (folder / f"{name}.py").write_text("\n\n".join(blocks(ROOT / page, "python")))
    for path in TYPED.glob("*.py"):
        shutil.copy(path, folder)
    return folder


def strict(folder: Path) -> list[Path]:
    """The programs that are annotated; the others are as users write their first ones."""
    names = ["handlers", "pushes", *(path.stem for path in TYPED.glob("*.py"))]
    return [folder / f"{name}.py" for name in names]


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
    (programs / "mypy.ini").write_text(dedent(MYPY))
    command = [sys.executable, "-m", "mypy", "--output=json", "."]
    ran = run([*command, f"--python-executable={environment.python}"], programs, timeout=400)
    assert ran.returncode == 1, ran.stdout
    said = [json.loads(line) for line in ran.stdout.splitlines()]
    assert marked(*strict(programs)) == mistakes(
        (each["file"], each["line"], each) for each in said
    )


def test_pyright_finds_the_same(environment: Environment, programs: Path) -> None:
    """pain 65"""
    files = strict(programs)
    settings = {"typeCheckingMode": "standard", "strict": [path.name for path in files]}
    (programs / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "pyright", "--outputjson"]
    command += ["--pythonpath", str(environment.python)]
    ran = run([*command], programs, timeout=400, PYRIGHT_PYTHON_IGNORE_WARNINGS="1")
    if "npm error network" in ran.stdout:
        pytest.skip("npm does not get pyright")
    assert "{" in ran.stdout, ran.stdout
    answer = json.loads(ran.stdout[ran.stdout.index("{") :])
    assert answer["summary"]["filesAnalyzed"] >= len([*programs.rglob("*.py")])
    assert marked(*files) == mistakes(
        (each["file"], each["range"]["start"]["line"] + 1, each["message"])
        for each in answer["generalDiagnostics"]
        if each["severity"] == "error" and FLASKS_OWN not in each["message"]
    )


def test_the_programs_show_every_public_method_to_the_type_checkers() -> None:
    used = set(re.findall(r"\.(\w+)", (TYPED / "revealed.py").read_text()))
    for cls in SHOWN:
        public = members(cls) - NOT_SHOWN
        assert public, cls
        assert public - used == set(), cls


def test_the_programs_make_every_kind_of_mistake() -> None:
    assert len(marked(TYPED / "mistaken.py")) >= 50
    assert marked(TYPED / "revealed.py") == set()
