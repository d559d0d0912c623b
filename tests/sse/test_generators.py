"""Streams of functions, generators and iterables."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask, request

from flask_sockets2.sse import Message, sse, stream_func, stream_generator
from tests.clients import http
from tests.event_client import EventClient
from tests.processes import Server
from tests.wire_client import TIMEOUT

StartServer = Callable[..., Server]


@pytest.fixture
def app() -> Flask:
    return Flask(__name__)


def body(app: Flask, view: Callable[[], Any]) -> str:
    app.add_url_rule("/stream", "view", view)
    with app.test_client() as client:
        response = client.get("/stream")
    assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert response.headers["X-Accel-Buffering"] == "no"
    text: str = response.text
    assert text.startswith(":\n\n")
    return text[3:]


END = "event:end\ndata:\n\n"


def test_a_function_is_called_as_often_as_is_said(app: Flask) -> None:
    numbers = iter(range(9))
    text = body(app, lambda: stream_func(lambda: next(numbers), 3))
    assert text == "data:0\n\ndata:1\n\ndata:2\n\n" + END


@pytest.mark.parametrize("make", [list, tuple, iter, lambda items: (item for item in items)])
def test_an_iterable_brings_text_json_and_messages(app: Flask, make: Callable[..., Any]) -> None:
    items = ["a\nb", {"x": 1}, Message("c", type="t", id=5), None, ""]
    text = body(app, lambda: stream_generator(make(items)))
    assert text == (
        'data:a\ndata:b\n\ndata:{"x": 1}\n\nevent:t\ndata:c\nid:5\n\n:\n\ndata:\n\n' + END
    )


def test_they_are_methods_of_the_blueprint_as_well() -> None:
    assert sse.stream_func is stream_func
    assert sse.stream_generator is stream_generator


def test_one_that_raises_in_the_middle_ends_with_an_error_event_and_is_logged_once(
    app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    def numbers() -> Iterator[int]:
        yield 1
        raise RuntimeError("the password is wrong")

    text = body(app, lambda: stream_generator(numbers()))
    assert text == "data:1\n\nevent:error\ndata:the stream has ended by an error\n\n"
    [record] = caplog.records
    assert (record.levelno, record.name) == (logging.ERROR, "flask_sockets2.sse")
    assert record.exc_info is not None
    assert "password" not in text


def test_what_can_be_no_event_ends_it_as_well(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    text = body(app, lambda: stream_generator(["a", b"bytes", "c"]))
    assert text == "data:a\n\nevent:error\ndata:the stream has ended by an error\n\n"
    assert len(caplog.records) == 1


def test_the_requests_context_is_there_where_it_is_asked_for(app: Flask) -> None:
    def paths() -> Iterator[str]:
        yield request.path

    assert body(app, lambda: stream_generator(paths(), with_context=True)).startswith(
        "data:/stream\n\n"
    )
    without = Flask(__name__)
    assert "event:error" in body(without, lambda: stream_generator(paths()))


def test_the_answer_to_head_begins_nothing(app: Flask) -> None:
    begun = []

    def numbers() -> Iterator[int]:
        begun.append(1)
        yield 1

    app.add_url_rule("/stream", "view", lambda: stream_generator(numbers()))
    assert app.test_client().head("/stream").status_code == 200
    assert begun == []


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_what_nobody_takes_anything_from_is_closed_all_the_same(app: Flask, method: str) -> None:
    class Rows:
        closed = 0

        def __iter__(self) -> Iterator[str]:
            return iter(["a", "b"])

        def close(self) -> None:
            self.closed += 1

    rows = Rows()
    app.add_url_rule("/stream", "view", lambda: stream_generator(rows))
    app.test_client().open("/stream", method=method).close()
    assert rows.closed == 1


def test_the_head_does_not_wait_for_the_first_event(app: Flask) -> None:
    app.add_url_rule("/stream", "view", lambda: stream_generator(iter(lambda: 1 / 0, 0)))
    with app.test_client() as client:
        response = client.get("/stream")
    assert next(iter(response.response)) == b":\n\n"
    response.close()


SOURCE = """
import time

from flask import Flask
from flask_sockets2.sse import stream_generator

app = Flask(__name__)
state = {"begun": 0, "over": 0}


@app.get("/state")
def show():
    return state


@app.get("/stream")
def stream():
    def ticks():
        state["begun"] += 1
        try:
            while True:
                yield state["begun"]
                time.sleep(0.05)
        finally:
            state["over"] += 1

    return stream_generator(ticks())
"""


@pytest.mark.parametrize("worker", ["flask_sockets2.worker", "gthread"])
def test_a_generator_ends_when_its_client_has_left(gunicorn: StartServer, worker: str) -> None:
    server = gunicorn(SOURCE, worker=worker, args=["--threads=8"])
    for _ in range(3):
        with EventClient(server.port, "/stream") as client:
            assert client.next().data
            assert client.next().data
    server.wait_for(
        lambda: json.loads(http(server.url("/state"))[1]) == {"begun": 3, "over": 3},
        "the generators to end",
        TIMEOUT,
    )
