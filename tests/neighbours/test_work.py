"""Databases, jobs and APIs."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

from tests.brokers.servers import RedisServer
from tests.conftest import ROOT
from tests.neighbours.conftest import Cell
from tests.neighbours.visitor import TIMEOUT, rest
from tests.processes import Servers


def test_flask_sqlalchemy(cell: Cell, tmp_path: Path) -> None:
    visitor = cell.start("flask_sqlalchemy_models", DATABASE=f"sqlite:///{tmp_path / 'words.db'}")
    visitor.finds_all_four_working()

    def pool() -> dict[str, int]:
        return visitor.get("/pool").json()

    with visitor.websocket("/once") as ws:
        assert rest(ws) == ["flushed"]
    assert pool() == {"number": 0, "out": 1}  # rolled back; what is out is that of the view itself
    with ExitStack() as stack:
        if not cell.foreign:
            for _ in range(3):
                stack.enter_context(visitor.websocket("/listen"))
            # The handlers have returned; their sessions are gone while the sockets are open.
            assert pool() == {"number": 0, "out": 1}
        talking = [stack.enter_context(visitor.websocket("/talk")) for _ in range(3)]
        for number, ws in enumerate(talking, 1):
            ws.send("word")
            assert ws.recv(timeout=TIMEOUT) == str(number)
        removing = [stack.enter_context(visitor.websocket("/removes")) for _ in range(3)]
        for ws in removing:
            ws.send("")
            assert ws.recv(timeout=TIMEOUT) == "3"
        assert pool() == {"number": 3, "out": 1}


def test_flask_restx(cell: Cell) -> None:
    visitor = cell.start("flask_restx_api")
    visitor.finds_all_four_working()
    assert visitor.get("/api/orders/5").json() == {"number": 5}
    assert visitor.get("/nowhere").status == 404
    assert visitor.get("/echo").status == 426
    assert visitor.get("/api/swagger.json").status == 200
    visitor.is_refused("/nowhere", 404)
    visitor.is_refused("/api/orders/5", 400)
    visitor.is_refused("/broken", 500)
    cell.errors = 1


def test_flask_smorest(cell: Cell) -> None:
    visitor = cell.start("flask_smorest_api")
    visitor.finds_all_four_working()
    assert visitor.get("/api/orders/5").json() == {"number": 5}
    assert visitor.get("/api/orders/0").json()["message"] == "there is no such order"
    assert list(visitor.get("/doc/openapi.json").json()["paths"]) == ["/api/orders/{number}"]
    visitor.is_refused("/refused", 403)
    visitor.is_refused("/nowhere", 404)
    assert visitor.get("/echo").status == 426


def test_flask_apscheduler(cell: Cell) -> None:
    visitor = cell.start("flask_apscheduler_jobs")
    with visitor.events("/events?channel=ticks") as events:
        assert events.next(TIMEOUT).data == "tick"
    with visitor.page() as page:
        assert ">tick<" in page.push()
    if not cell.foreign:
        with visitor.websocket("/ticks") as ws:
            assert ws.recv(timeout=TIMEOUT) == "tick"


def test_celery(cell: Cell, redis_server: RedisServer, server_factory: Servers) -> None:
    environ = {"BROKER": f"redis+socket://{redis_server.path}", "SOCKETS_BROKER": redis_server.url}
    redis_server.client().flushall()
    visitor = cell.start("celery_tasks", **environ)
    module = "tests.neighbours.applications.celery_tasks:celery"
    program = [sys.executable, "-m", "celery", "-A", module, "worker", "-P", "solo"]
    options = ["--without-gossip", "--without-mingle", "-l", "info"]
    worker = server_factory.start([*program, *options], cwd=ROOT, environ=environ)
    visitor.finds_all_four_working()
    worker.wait_for_output("ready", TIMEOUT)
    with ExitStack() as stack:
        events = stack.enter_context(visitor.events("/events?channel=work"))
        page = stack.enter_context(visitor.page())
        if not cell.foreign:
            ws = stack.enter_context(visitor.websocket("/work"))
        visitor.post("/work/done")
        assert events.next(TIMEOUT).data == "done"
        assert ">done<" in page.push()
        if not cell.foreign:
            assert ws.recv(timeout=TIMEOUT) == "done"
    worker.terminate(timeout=TIMEOUT)
