"""PubSub and SSE_BluePrint, what they add to the original."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask

from flask_sockets2.sse import PubSub, SSE_BluePrint
from tests.processes import wait_until


@pytest.fixture(autouse=True)
def begin_anew() -> Iterator[None]:
    PubSub.reinit()
    yield
    PubSub.reinit()


def test_every_listener_gets_every_message() -> None:
    listeners = [PubSub.subscribe("news", limit=2) for _ in range(3)]
    for text in ("a", "b", "c"):
        PubSub.publish("news", text)
    assert [list(listener) for listener in listeners] == [["a", "b"]] * 3
    assert PubSub.forChannel("other") is not PubSub.forChannel("news")


def test_who_publishes_never_waits_and_a_slow_listener_loses_the_oldest() -> None:
    pubsub = PubSub("news", maxsize=3)
    slow, quick = pubsub.listen(), pubsub.listen(5)
    got = []
    for number in range(5):
        pubsub.send(number)
        got.append(next(quick))
    assert got == list(range(5))
    pubsub.unsubscribe()
    assert list(slow) == [3, 4]  # the end took the place of 2
    assert pubsub.receiveCount == 5


def test_what_is_published_before_anybody_listens_waits_for_the_first() -> None:
    for number in range(20):
        PubSub.publish("news", number)
    assert PubSub.forChannel("news").receiveCount == 20
    assert list(PubSub.subscribe("news", limit=15)) == list(range(5, 20))
    second = PubSub.forChannel("news").listen(1, heartbeat=0.01)
    assert next(second) is None


def test_who_waits_is_ended_by_unsubscribe_and_by_close() -> None:
    for end in (lambda: PubSub.forChannel("a").unsubscribe(), lambda: PubSub.close("a")):
        listener = PubSub.subscribe("a")
        done = threading.Event()

        def listen(listener: Iterator[Any] = listener, done: threading.Event = done) -> None:
            assert list(listener) == []
            done.set()

        threading.Thread(target=listen, daemon=True).start()
        end()
        assert done.wait(60)
    PubSub.close("a")
    assert PubSub.pubSubByChannel == {}


def test_a_listener_that_is_forgotten_listens_no_more() -> None:
    pubsub = PubSub.forChannel("news")
    listener = pubsub.listen()
    assert len(pubsub._listeners) == 1
    del listener
    wait_until(lambda: not pubsub._listeners, "nobody to listen")


def test_the_route_has_heartbeats_and_all_pages_get_what_is_published() -> None:
    app = Flask(__name__)
    app.config["SSE_HEARTBEAT"] = 0.02
    bluePrint = SSE_BluePrint(app, "sse")
    pages = [app.test_client().get("/sse/news") for _ in range(2)]
    bodies = [iter(page.response) for page in pages]
    assert [next(body) for body in bodies] == [b":\n\n"] * 2
    bluePrint.publish("two\nlines", channel="news")
    for body in bodies:
        assert next(each for each in body if each != b":\n\n") == b"data: two\ndata: lines\n\n"
    for page in pages:
        page.close()
    assert app.test_client().head("/sse/news").status_code == 200


def test_a_page_leaves_no_channel_behind_that_nobody_publishes_to() -> None:
    app = Flask(__name__)
    bluePrint = SSE_BluePrint(app, "sse")
    client = app.test_client()
    pages = [client.get("/sse/any"), client.get("/sse/any"), client.get("/sse/news")]
    for page in pages:
        assert next(iter(page.response)) == b":\n\n"
    bluePrint.publish("x", channel="news")
    pages[0].close()
    assert list(PubSub.pubSubByChannel) == ["any", "news"]
    for page in pages[1:]:
        page.close()
    assert list(PubSub.pubSubByChannel) == ["news"]
    assert not PubSub.forChannel("news")._listeners


def test_with_context_only_event_source_is_served() -> None:
    app = Flask(__name__)
    bluePrint = SSE_BluePrint(app, "sse", withContext=True)
    app.add_url_rule("/one", "one", lambda: bluePrint.streamGen(["a"]))
    client = app.test_client()
    assert client.get("/one").status_code == 404
    response = client.get("/one", headers={"Accept": "text/event-stream"})
    assert response.text == "data: a\n\n"


def test_a_generator_that_raises_ends_with_an_error_event(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = Flask(__name__)
    bluePrint = SSE_BluePrint(app, "sse")

    def broken() -> Iterator[int]:
        yield 1
        raise RuntimeError

    app.add_url_rule("/broken", "broken", lambda: bluePrint.streamGen(broken()))
    text = app.test_client().get("/broken").text
    assert text == "data: 1\n\nevent: error\ndata: the stream has ended by an error\n\n"
    assert len(caplog.records) == 1
