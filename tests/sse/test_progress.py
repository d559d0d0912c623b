"""The progress of long jobs."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask

from flask_sockets2 import BrokerError
from flask_sockets2.application.state import state_of
from flask_sockets2.sse import Progress, sse
from tests.brokers.servers import RedisServer
from tests.processes import wait_until
from tests.sse.reader import Reader


@pytest.fixture
def app() -> Iterator[Flask]:
    app = Flask(__name__)
    app.config["SSE_OPEN_CHANNELS"] = True
    app.register_blueprint(sse, url_prefix="/stream")
    with app.app_context():
        yield app


def kept(app: Flask, channel: str = "job:7") -> list[dict[str, Any]]:
    """The states that were published."""
    history = state_of(app).channels.broker.history(f"sse:{channel}", None)
    return [json.loads(message.data)["data"] for message in history.messages]


def state(name: str, value: float, total: float | None, text: str = "") -> dict[str, Any]:
    return {"state": name, "value": value, "total": total, "text": text}


def test_a_page_sees_it_begin_go_on_and_end(app: Flask) -> None:
    with Reader(app, "/stream?channel=job:7").opened() as reader:
        with sse.progress("job:7", total=4, interval=0) as bar:
            bar.advance(text="reading")
            bar.update(3, text="writing")
        events = [reader.next() for _ in range(4)]
    assert {event.type for event in events} == {"progress"}
    assert [event.json() for event in events] == [
        state("running", 0, 4),
        state("running", 1, 4, "reading"),
        state("running", 3, 4, "writing"),
        state("done", 4, 4, "writing"),
    ]


def test_one_that_raises_has_failed_and_says_nothing_of_why(app: Flask) -> None:
    def job() -> None:
        with sse.progress("job:7", total=4) as bar:
            bar.advance(2)
            raise KeyError("password")

    with pytest.raises(KeyError):
        job()
    assert kept(app)[-1] == state("failed", 2, 4)


def test_it_may_be_ended_by_hand_once(app: Flask) -> None:
    with sse.progress("job:7") as bar:
        bar.done("nothing to do")
    assert kept(app)[1:] == [state("done", 0, None, "nothing to do")]
    with sse.progress("job:7", total=3) as bar:
        bar.fail("out of paper")
    assert kept(app)[-1] == state("failed", 0, 3, "out of paper")


def test_a_million_steps_make_few_messages(app: Flask) -> None:
    begun = time.monotonic()
    with sse.progress("job:7", total=1_000_000) as bar:
        for _ in range(1_000_000):
            bar.advance()
    took = time.monotonic() - begun
    states = kept(app)
    assert len(states) <= 2 + took / 0.2 + 1
    assert states[-1] == state("done", 1_000_000, 1_000_000)
    values = [each["value"] for each in states]
    assert values == sorted(values)


def test_what_came_too_soon_is_told_a_little_later(app: Flask) -> None:
    with sse.progress("job:7", total=9, interval=0.05) as bar:
        bar.advance()
        bar.advance()
        wait_until(lambda: kept(app)[-1]["value"] == 2, "the newest value")
        assert len(kept(app)) <= 3


def test_nothing_comes_after_the_end(app: Flask) -> None:
    with sse.progress("job:7", total=9, interval=0.05) as bar:
        bar.advance()
    before = kept(app)
    assert before[-1]["state"] == "done"
    with sse.progress("other", interval=0.05) as other:
        other.advance()
        wait_until(lambda: kept(app, "other")[-1]["value"] == 1, "a later time")
    assert kept(app) == before


def test_whoever_is_late_does_not_undo_the_end(app: Flask) -> None:
    with sse.progress("job:7", total=9, interval=0) as bar:
        bar.advance(3)
        bar.fail("out of paper")
        bar.advance()
        bar.done("all is well")
    bar.update(5, text="late")
    assert kept(app)[-1] == state("failed", 3, 9, "out of paper")
    assert len(kept(app)) == 3


def test_what_cannot_be_published_is_logged_and_does_not_disturb_the_job(
    app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    with sse.progress("job:7", total=9, interval=0) as bar:
        bar.advance(text="x" * 2**20)  # SOCKETS_MAX_MESSAGE_SIZE
        bar.advance(text="y" * 2**20)
        bar.update(float("nan"), text="")
        bar.update(4)
    assert kept(app)[0] == state("running", 0, 9)
    assert kept(app)[-1] == state("done", 9, 9)
    assert caplog.text.count("progress is not told") == 1


def test_a_broker_that_does_not_answer_takes_half_of_the_jobs_time_at_most(
    broker: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.pause()
    bar = Progress(f"{broker.url}?socket_timeout=0.3", "job:7", interval=0)
    publish, attempts = bar._publisher.publish, []

    def timed(*args: Any) -> Any:
        attempts.append(-time.monotonic())
        try:
            return publish(*args)
        finally:
            attempts[-1] += time.monotonic()

    monkeypatch.setattr(bar._publisher, "publish", timed)
    begun = time.monotonic()
    while len(attempts) < 3:
        bar.advance()
    took = time.monotonic() - begun
    assert min(attempts) >= 0.3
    assert sum(attempts[:-1]) < took / 2 + 0.1  # before the third, as long again has passed twice
    broker.resume()
    with bar:  # closes it
        bar.done()


def test_a_page_that_is_loaded_in_the_middle_begins_with_the_newest_state(app: Flask) -> None:
    with sse.progress("job:7", total=9, interval=0) as bar:
        for _ in range(5):
            bar.advance()
        with app.test_request_context():
            url = sse.url("job:7", last=1)
        with Reader(app, url) as reader:
            assert reader.next().json() == state("running", 5, 9)
            bar.advance()
            assert reader.next().json() == state("running", 6, 9)
    with app.test_request_context():
        url = sse.url("job:7", last=1)
    with Reader(app, url) as reader:
        assert reader.next().json()["state"] == "done"


def test_a_broker_that_is_away_is_logged_once_and_does_not_disturb_the_job(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Progress("redis://127.0.0.1:1", "job:7", total=3, interval=0) as bar:
        for _ in range(3):
            bar.advance()
    assert bar.state == "done"
    assert len([r for r in caplog.records if "progress is not told" in r.message]) == 1


def test_it_needs_a_broker_that_other_processes_reach() -> None:
    with pytest.raises(BrokerError, match="reaches no other process"):
        Progress("memory://", "job:7")
    unset: Any = os.environ.get("NO_SUCH_VARIABLE")
    with pytest.raises(BrokerError, match=r"got None; .* set the variable"):
        Progress(unset, "job:7")


def test_another_process_tells_through_redis(broker: RedisServer) -> None:
    far = Flask(__name__)
    far.config.update(SSE_OPEN_CHANNELS=True, SOCKETS_BROKER_URL=broker.url)
    far.register_blueprint(sse, url_prefix="/stream")
    with Reader(far, "/stream?channel=job:7").opened() as reader:
        with Progress(broker.url, "job:7", total=2) as bar:
            bar.advance(2)
        states = [reader.next().json()]
        while states[-1]["state"] == "running":
            states.append(reader.next().json())
    assert states[-1] == state("done", 2, 2)
    state_of(far).channels.close()
