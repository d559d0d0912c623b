"""Who watches an application: errors, traces, metrics, limits."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.neighbours.conftest import Cell
from tests.neighbours.visitor import TIMEOUT, Visitor, rest
from tests.processes import wait_until


def one_fails(cell: Cell, visitor: Visitor) -> None:
    """Have two sockets of one handler open at a time; one fails, the other one ends well."""
    with visitor.websocket("/fails") as one, visitor.websocket("/fails") as other:
        for ws, text in ((one, "one"), (other, "other"), (one, "fail")):
            ws.send(text)
            assert ws.recv(timeout=TIMEOUT) == text
        if not cell.foreign:  # which leaves the socket open while anybody has the traceback
            assert rest(one) == []
            assert one.close_code == 1011
        other.send("still there")
        assert other.recv(timeout=TIMEOUT) == "still there"
    cell.errors = 1


def ends_for_a_listener(cell: Cell, visitor: Visitor, found: Callable[[], object]) -> None:
    """See that what is measured of a request ends: under our servers with the handler."""
    if cell.foreign:
        return  # its sockets do not listen
    with visitor.websocket("/listens") as ws:
        visitor.publishes_until_heard(ws)
        if cell.ours:
            wait_until(found, "what was measured of a listener", TIMEOUT)
    wait_until(found, "what was measured of a listener", TIMEOUT)


def test_sentry(cell: Cell) -> None:
    visitor = cell.start("sentry")
    visitor.finds_all_four_working()
    one_fails(cell, visitor)

    def kept() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = visitor.get("/kept").json()
        return found

    def transactions(name: str) -> list[dict[str, Any]]:
        return [item for item in kept() if item.get("transaction") == name and "spans" in item]

    wait_until(lambda: len(transactions("fails")) == 2, "both transactions", TIMEOUT)
    (error,) = [item for item in kept() if "exception" in item]
    raised = error["exception"]["values"][-1]
    assert (raised["type"], raised["value"]) == ("LookupError", "on purpose")
    assert error["transaction"] == "fails"
    assert error["request"]["url"] == visitor.server.url("/fails")
    # Nothing of the other socket's.
    crumbs = [crumb["message"] for crumb in error["breadcrumbs"]["values"]]
    assert [text for text in crumbs if text in ("one", "other", "fail")] == ["one", "fail"]
    traces = {item["contexts"]["trace"]["trace_id"] for item in transactions("fails")}
    assert len(traces) == 2
    assert error["contexts"]["trace"]["trace_id"] in traces
    assert len(transactions("say")) == 2
    assert transactions("echo") == []  # the sampler leaves it out
    assert len(transactions("sse.stream")) == 2
    ends_for_a_listener(cell, visitor, lambda: transactions("listens"))


@pytest.mark.parametrize("wrap", ["flask", "wsgi"])
@pytest.mark.parametrize("first", ["", "first"])
def test_opentelemetry(cell: Cell, wrap: str, first: str) -> None:
    environ = {"OTEL_PYTHON_FLASK_EXCLUDED_URLS": "/page", "WRAP": wrap, "FIRST": first}
    visitor = cell.start("opentelemetry_spans", **environ)
    visitor.finds_all_four_working()
    one_fails(cell, visitor)

    def spans(name: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = visitor.get("/spans").json()
        return [span for span in found if span["name"] == name]

    wait_until(lambda: len(spans("GET /fails")) == 2, "both spans", TIMEOUT)
    of_one, of_other = (spans(f"note {text}")[0] for text in ("one", "other"))
    failed, ended = (
        next(span for span in spans("GET /fails") if span["id"] == noted["parent"])
        for noted in (of_one, of_other)
    )
    assert failed["trace"] != ended["trace"]
    assert spans("note fail")[0]["parent"] == failed["id"]
    assert len(spans("GET /echo")) == 2
    assert len(spans("POST /say")) == 2
    wait_until(lambda: len(spans("GET /events")) == 2, "those of streams", TIMEOUT)
    if wrap == "flask":
        assert (failed["exceptions"], ended["exceptions"]) == (["LookupError"], [])
        assert failed["attributes"]["http.route"] == "/fails"
        assert spans("GET /page") == []
    if not cell.foreign:
        assert [span["attributes"]["http.status_code"] for span in spans("GET /echo")] == [101] * 2
    ends_for_a_listener(cell, visitor, lambda: spans("GET /listens"))


def test_prometheus_flask_exporter(cell: Cell) -> None:
    visitor = cell.start("prometheus_exporter")
    visitor.finds_all_four_working()
    one_fails(cell, visitor)
    theirs = visitor.get("/metrics").text

    def number(method: str, path: str, status: int) -> float | None:
        found = re.search(
            f'^flask_http_request_duration_seconds_count{{method="{method}",path="{path}",'
            rf'status="{status}"}} (\S+)$',
            theirs,
            re.MULTILINE,
        )
        return found and float(found[1])

    assert number("GET", "/", 200) == 1
    assert number("POST", "/say", 200) == 2
    assert number("GET", "/events", 200) == 2
    assert number("GET", "/echo", 101) == 2  # at their ends, and as long as they were
    ours = visitor.get("/sockets/metrics").text
    assert "flask_http_request" not in ours
    if not cell.foreign:
        assert 'flask_sockets2_connections_opened_total{route="/echo"} 2.0' in ours


def test_flask_limiter(cell: Cell) -> None:
    visitor = cell.start("flask_limiter_limits")
    visitor.finds_all_four_working()
    statuses = [visitor.get("/limited/page").status for _ in range(3)]
    assert statuses == [200, 200, 429]
    for _ in range(2):
        with visitor.websocket("/limited/refused") as ws:
            assert rest(ws) == ["welcome"]
    visitor.is_refused("/limited/refused", 429)
    # Without accept=False the decorator comes after the accept.
    for _ in range(2):
        with visitor.websocket("/limited") as ws:
            assert rest(ws) == ["welcome"]
    with visitor.websocket("/limited") as ws:
        assert rest(ws) == []
    if not cell.foreign:
        assert (ws.close_code, ws.close_reason) == (1008, "429 Too Many Requests")
    for _ in range(2):
        with visitor.events("/limited/events") as events:
            assert events.status == 200
    with visitor.events("/limited/events") as events:
        assert events.status == 429
    page = visitor.get("/page").text
    for _ in range(4):  # which a filter exempts
        with visitor.page(page=page):
            pass
    # What counts for all routes is looked at before the accept, whatever the route says.
    for _ in range(3):
        with visitor.websocket("/default") as ws:
            assert rest(ws) == ["welcome"]
    visitor.is_refused("/default", 429)
    with visitor.websocket("/exempt") as ws:
        assert rest(ws) == ["welcome"]
