"""Refreshes in quick succession: the first, and one after the last."""

from __future__ import annotations

import logging
import subprocess
import sys
from itertools import count
from textwrap import dedent
from typing import Any

import pytest
from flask import Flask

from flask_sockets2.brokers.base import Broker, BrokerOptions, Position
from flask_sockets2.brokers.memory import MemoryBroker
from flask_sockets2.exceptions import BrokerError
from flask_sockets2.turbo import Turbo, broadcasts
from flask_sockets2.turbo.markup import sender_of, with_sender
from flask_sockets2.turbo.refresh_debounce import Refresh, RefreshDebounce
from flask_sockets2.turbo.testing import capture_broadcasts
from tests.processes import wait_until

PAUSE = 3600.0  # seconds: however slow a test is, all that it does is in quick succession

FOR_ALL = "refresh"


def refresh(cause: str | None = None) -> Refresh:
    return Refresh(f"refresh but {cause}" if cause else FOR_ALL, FOR_ALL, cause)


class Room:
    """A publisher that notes what was sent, and how many changes there were by then."""

    def __init__(self) -> None:
        self.broker = MemoryBroker("memory://", BrokerOptions())
        self.changes = 0
        self.sent: list[str] = []
        self.seen: list[int] = []

    def publish(self, channel: str, data: str) -> Position:
        self.sent.append(data)
        self.seen.append(self.changes)
        return Position("0" * 16, len(self.seen))


def end_the_pause(*debounces: RefreshDebounce) -> None:
    """Send what waits, as at the end of the pause or of the process."""
    for each in debounces:
        each._later.flush()


@pytest.fixture
def debounces(monkeypatch: pytest.MonkeyPatch) -> list[RefreshDebounce]:
    """Those that extensions make during a test, with the long pause."""
    made: list[RefreshDebounce] = []

    def make() -> RefreshDebounce:
        made.append(RefreshDebounce(PAUSE))
        return made[-1]

    monkeypatch.setattr(broadcasts, "RefreshDebounce", make)
    return made


def broker_of(turbo: Turbo) -> Broker:
    assert turbo.sock is not None
    return turbo.sock.publisher.broker


def number_sent(turbo: Turbo) -> int:
    """To the stream of room 5."""
    return broker_of(turbo).position("turbo:stream:room:5").offset


@pytest.fixture
def room() -> Any:  # a Publisher, as far as it is used
    return Room()


def test_one_is_sent_at_once_and_returns_its_position(room: Any) -> None:
    position = RefreshDebounce(PAUSE).send(room, "room", refresh())
    assert position == ("0" * 16, 1)


def test_of_many_the_first_is_sent_and_one_after_the_last(room: Any) -> None:
    """In two processes, which share a broker."""
    processes = [RefreshDebounce(PAUSE), RefreshDebounce(PAUSE)]
    for number in range(50):
        room.changes += 1
        position = processes[number % 2].send(room, "room", refresh("1"))
        assert (position is None) is (number > 0)
    assert room.seen == [1]
    end_the_pause(*processes)
    assert room.seen == [1, 50]
    assert room.sent == ["refresh but 1", "refresh but 1"]


def test_the_last_of_several_causes_is_for_all_pages(room: Any) -> None:
    """A hundred people who write at once cause three refreshes, not a hundred."""
    debounce = RefreshDebounce(PAUSE)
    for number in [0, 0, *range(1, 100)]:
        room.changes += 1
        debounce.send(room, "room", refresh(str(number)))
    end_the_pause(debounce)
    assert room.sent == ["refresh but 0", "refresh but 0", FOR_ALL]
    assert room.seen[-1] == 101


@pytest.mark.parametrize("causes", [1, 3])
def test_whenever_something_changes_a_refresh_comes_after_it(causes: int, room: Any) -> None:
    debounce = RefreshDebounce(0.02)
    for number in count():
        room.changes += 1
        debounce.send(room, "room", refresh(str(number % causes)))
        if len(room.seen) > 30:
            break
    wait_until(lambda: room.seen[-1] == room.changes, "a refresh after the last change")
    assert len(room.seen) < room.changes


def test_other_streams_and_other_refreshes_do_not_wait(room: Any) -> None:
    debounce = RefreshDebounce(PAUSE)
    assert debounce.send(room, "room 5", refresh()) is not None
    assert debounce.send(room, "room 6", refresh()) is not None
    assert debounce.send(room, "room 5", Refresh("morph", "morph")) is not None


def test_a_last_one_that_cannot_be_sent_is_logged(
    room: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> Position:
        raise BrokerError("away")

    debounce = RefreshDebounce(0.02)
    debounce.send(room, "room", refresh())
    monkeypatch.setattr(room, "publish", fail)
    debounce.send(room, "room", refresh())
    wait_until(lambda: "pages show what was before it" in caplog.text, "the error to be logged")


def test_broadcasts_of_refreshes_are_debounced_for_each_stream(
    debounces: list[RefreshDebounce],
) -> None:
    app = Flask(__name__)
    app.secret_key = "secret"
    turbo = Turbo(app)

    @app.post("/change/<int:room>")
    def change(room: int) -> str:
        turbo.broadcast_refresh_to("room", room)
        return ""

    def sent(room: int) -> list[str]:
        with app.app_context():
            history = broker_of(turbo).history(f"turbo:stream:room:{room}", None)
        return [message.data.decode() for message in history.messages]

    client = app.test_client()
    for request_id in ("a", "a", "a", "b"):
        client.post("/change/5", headers={"X-Turbo-Request-Id": request_id})
    client.post("/change/6", headers={"X-Turbo-Request-Id": "a"})
    by_a = with_sender(turbo.refresh(), sender_of("a"))
    assert (sent(5), sent(6)) == ([by_a], [by_a])
    end_the_pause(*debounces)
    assert sent(5)[1:] == [by_a, turbo.refresh()]
    assert len(sent(6)) == 1


def test_what_waits_for_a_commit_is_debounced_when_it_is_sent(
    debounces: list[RefreshDebounce],
) -> None:
    orm = pytest.importorskip("sqlalchemy.orm")
    sqlalchemy = pytest.importorskip("sqlalchemy")
    app = Flask(__name__)
    app.secret_key = "secret"
    turbo = Turbo(app)
    engine = sqlalchemy.create_engine("sqlite://")
    with app.app_context(), orm.Session(engine) as session:
        session.execute(sqlalchemy.text("select 1"))
        for _ in range(3):
            turbo.after_commit(session).broadcast_refresh_to("room", 5)
        assert number_sent(turbo) == 0
        session.commit()
        assert number_sent(turbo) == 1
        end_the_pause(*debounces)
        assert number_sent(turbo) == 2
    engine.dispose()


def test_where_broadcasts_are_captured_each_is_sent_at_once() -> None:
    """No test waits for another one's refresh, or gets it."""
    app = Flask(__name__)
    turbo = Turbo(app)
    for _ in range(2):
        with capture_broadcasts(turbo) as captured:
            turbo.broadcast_refresh_to("room", 5)
            turbo.broadcast_refresh_to("room", 5)
        assert len(captured) == 2


def test_what_waits_is_sent_when_the_process_ends() -> None:
    """As that of a command which changes many rows."""
    source = """
        from functools import partial
        from flask import Flask
        from flask_sockets2 import Turbo
        from flask_sockets2.turbo import broadcasts

        broadcasts.RefreshDebounce = partial(broadcasts.RefreshDebounce, 3600)
        app = Flask(__name__)
        turbo = Turbo(app)
        publish = turbo.sock.publisher.publish
        turbo.sock.publisher.publish = lambda *args: (print(*args), publish(*args))[1]
        with app.app_context():
            for _ in range(5):
                turbo.broadcast_refresh_to("board")
        print("end")
    """
    ran = subprocess.run(
        [sys.executable, "-c", dedent(source)], capture_output=True, text=True, timeout=60
    )
    sent = 'turbo:stream:board <turbo-stream action="refresh"></turbo-stream>'
    assert ran.stdout.splitlines() == [sent, "end", sent], ran.stderr


def test_a_refresh_without_a_pause_between_is_no_news_for_the_log(
    room: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        debounce = RefreshDebounce(PAUSE)
        for _ in range(3):
            debounce.send(room, "room", refresh())
    assert caplog.records == []
