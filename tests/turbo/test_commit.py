"""Broadcasts that wait for the database."""

from __future__ import annotations

import gc
import logging
import sys
import weakref
from collections.abc import Iterator
from typing import Any
from unittest.mock import MagicMock

import pytest
from flask import Flask
from jinja2 import DictLoader
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    scoped_session,
    sessionmaker,
)
from sqlalchemy.pool import StaticPool

from flask_sockets2 import BrokerError, Position
from flask_sockets2.turbo import Turbo
from flask_sockets2.turbo.testing import Broadcasts, capture_broadcasts
from tests.processes import unused_port

LOGGER = "flask_sockets2.turbo"


class Base(DeclarativeBase):
    pass


class Todo(Base):
    __tablename__ = "todo"

    id: Mapped[int] = mapped_column(primary_key=True)
    task: Mapped[str] = mapped_column(unique=True)


@pytest.fixture
def app() -> Flask:
    return Flask(__name__)


@pytest.fixture
def turbo(app: Flask) -> Turbo:
    turbo = Turbo(app)
    turbo.user_id(lambda: None)
    return turbo


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = create_engine("sqlite://", poolclass=StaticPool)

    # SQLite's savepoints work with transactions that the driver does not begin itself.
    @event.listens_for(engine, "connect")
    def connect(connection: Any, record: Any) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN")

    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    with Session(engine) as session:
        yield session


@pytest.fixture
def sent(turbo: Turbo) -> Iterator[Broadcasts]:
    with capture_broadcasts(turbo) as broadcasts:
        yield broadcasts


def tell(turbo: Turbo, session: Any, target: str) -> None:
    """Broadcast what happened in a session."""
    turbo.after_commit(session).broadcast_update_to("todos", content="", target=target)


def add(turbo: Turbo, session: Any, task: str) -> None:
    """Change the database, and broadcast it."""
    session.add(Todo(task=task))
    tell(turbo, session, task)


def targets(broadcasts: Broadcasts) -> list[str | None]:
    return [action.target for action in broadcasts.actions]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == LOGGER]


# -- commit and rollback -----------------------------------------------------------------------


def test_broadcasts_are_sent_at_the_commit_in_their_order(
    turbo: Turbo, session: Session, sent: Broadcasts
) -> None:
    add(turbo, session, "a")
    turbo.after_commit(session).push(turbo.update("", "b"), to=["susan", "miguel"])
    add(turbo, session, "c")
    assert not sent
    session.commit()
    assert targets(sent) == ["a", "b", "b", "c"]
    assert [broadcast.channel for broadcast in sent[:3]] == [
        "turbo:stream:todos",
        "turbo:user:susan",
        "turbo:user:miguel",
    ]


def test_each_is_sent_once(turbo: Turbo, session: Session, sent: Broadcasts) -> None:
    add(turbo, session, "a")
    session.commit()
    session.commit()
    add(turbo, session, "b")
    session.commit()
    assert targets(sent) == ["a", "b"]


def test_a_rollback_drops_them(
    turbo: Turbo, session: Session, sent: Broadcasts, caplog: pytest.LogCaptureFixture
) -> None:
    add(turbo, session, "a")
    session.rollback()
    add(turbo, session, "b")
    session.commit()
    assert targets(sent) == ["b"]
    assert warnings(caplog) == []


def test_a_commit_that_fails_drops_them(
    turbo: Turbo, session: Session, sent: Broadcasts, caplog: pytest.LogCaptureFixture
) -> None:
    add(turbo, session, "a")
    session.add(Todo(task="a"))
    with pytest.raises(IntegrityError):
        session.commit()
    session.rollback()
    session.commit()
    assert not sent
    assert warnings(caplog) == []


def test_the_markup_is_made_at_the_call_when_the_object_has_its_id(
    turbo: Turbo, session: Session, sent: Broadcasts
) -> None:
    todo = Todo(task="a")
    session.add(todo)
    turbo.after_commit(session).broadcast_append_to(
        "todos", content=todo.task, target=f"todo-{todo.id}"
    )
    todo.task = "b"
    session.commit()
    [action] = sent.actions
    assert (action.target, action.text) == ("todo-1", "a")


def test_others_are_sent_at_once(turbo: Turbo, session: Session, sent: Broadcasts) -> None:
    add(turbo, session, "a")
    turbo.broadcast_update_to("todos", content="", target="now")
    assert targets(sent) == ["now"]
    session.commit()
    assert targets(sent) == ["now", "a"]


def test_without_a_transaction_they_are_sent_at_once(
    turbo: Turbo, session: Session, sent: Broadcasts
) -> None:
    add(turbo, session, "a")
    session.commit()
    tell(turbo, session, "b")
    assert targets(sent) == ["a", "b"]


def test_what_is_closed_without_a_commit_is_dropped_and_told(
    turbo: Turbo, session: Session, sent: Broadcasts, caplog: pytest.LogCaptureFixture
) -> None:
    add(turbo, session, "a")
    session.close()
    session.commit()
    assert not sent
    [warning] = warnings(caplog)
    assert warning.startswith("1 broadcasts were dropped")


def test_sockets_of_the_program_wait_as_well(turbo: Turbo, session: Session) -> None:
    socket = MagicMock()
    turbo.clients = {"susan": [socket]}
    session.connection()
    turbo.after_commit(session).push("markup", to="susan")
    socket.send.assert_not_called()
    session.commit()
    socket.send.assert_called_once_with("markup")


def test_a_template_is_rendered_at_the_call(
    app: Flask, turbo: Turbo, session: Session, sent: Broadcasts
) -> None:
    app.jinja_loader = DictLoader({"_todo.html": "{{ todo.id }} {{ todo.task }}"})
    todo = Todo(task="a")
    with app.app_context():
        session.add(todo)
        turbo.after_commit(session).broadcast_append_to(
            "todos", template="_todo.html", todo=todo, target="todos"
        )
    todo.task = "b"
    session.commit()  # without an application context
    assert [action.text for action in sent.actions] == ["1 a"]


def test_their_positions_are_none_of_a_channel(turbo: Turbo, session: Session) -> None:
    position = turbo.after_commit(session).broadcast_update_to("a", content="", target="a")
    assert Position.parse(str(position)) is None


# -- savepoints --------------------------------------------------------------------------------


def test_a_savepoint_waits_for_the_transaction_around_it(
    turbo: Turbo, session: Session, sent: Broadcasts
) -> None:
    add(turbo, session, "a")
    with session.begin_nested():
        add(turbo, session, "b")
        with session.begin_nested():
            add(turbo, session, "c")
    add(turbo, session, "d")
    assert not sent
    session.commit()
    assert targets(sent) == ["a", "b", "c", "d"]


def test_a_savepoint_that_is_rolled_back_drops_its_own_only(
    turbo: Turbo, session: Session, sent: Broadcasts
) -> None:
    add(turbo, session, "a")
    outer = session.begin_nested()
    add(turbo, session, "b")
    with session.begin_nested():
        add(turbo, session, "c")  # released, and undone all the same
    outer.rollback()
    add(turbo, session, "d")
    session.commit()
    assert targets(sent) == ["a", "d"]


def test_a_flush_that_fails_within_a_savepoint_drops_its_own_only(
    turbo: Turbo, session: Session, sent: Broadcasts
) -> None:
    add(turbo, session, "a")

    def fail() -> None:
        with session.begin_nested():
            add(turbo, session, "b")
            session.add(Todo(task="a"))
            session.flush()

    with pytest.raises(IntegrityError):
        fail()
    session.commit()
    assert targets(sent) == ["a"]


def test_a_commit_ends_the_savepoints_that_are_open(
    turbo: Turbo, session: Session, sent: Broadcasts
) -> None:
    add(turbo, session, "a")
    session.begin_nested()
    add(turbo, session, "b")
    session.begin_nested()
    add(turbo, session, "c")
    session.commit()
    while session.in_transaction():
        session.commit()
    assert targets(sent) == ["a", "b", "c"]


def test_a_rollback_of_everything_drops_those_of_savepoints(
    turbo: Turbo, session: Session, sent: Broadcasts, caplog: pytest.LogCaptureFixture
) -> None:
    add(turbo, session, "a")
    session.begin_nested()
    add(turbo, session, "b")
    transaction = session.get_transaction()
    assert transaction is not None
    transaction.rollback()
    session.commit()
    assert not sent
    assert warnings(caplog) == []


def test_the_tests_of_an_application_may_undo_its_commits(
    turbo: Turbo, engine: Engine, sent: Broadcasts
) -> None:
    """SQLAlchemy's recipe: the session's commit is a savepoint of the test's transaction."""
    with engine.connect() as connection, connection.begin() as transaction:
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            add(turbo, session, "a")
            session.commit()
        transaction.rollback()
    assert targets(sent) == ["a"]


# -- sessions ----------------------------------------------------------------------------------


def test_a_scoped_session_stands_for_that_of_its_thread(
    turbo: Turbo, engine: Engine, sent: Broadcasts
) -> None:
    scoped = scoped_session(sessionmaker(engine))
    add(turbo, scoped, "a")
    scoped.remove()
    add(turbo, scoped, "b")
    scoped.commit()
    scoped.remove()
    assert targets(sent) == ["b"]


def test_sessions_do_not_meet(turbo: Turbo, engine: Engine, sent: Broadcasts) -> None:
    with Session(engine) as one, Session(engine) as other:
        one.connection()
        tell(turbo, one, "a")
        other.commit()
        assert not sent
        one.commit()
    assert targets(sent) == ["a"]


def test_the_event_of_a_mapper_may_broadcast(
    turbo: Turbo, session: Session, sent: Broadcasts
) -> None:
    """It runs within a flush, which is a transaction within that of the session."""

    def inserted(mapper: Any, connection: Any, todo: Todo) -> None:
        tell(turbo, session, f"todo-{todo.id}")

    event.listen(Todo, "after_insert", inserted)
    try:
        session.add(Todo(task="a"))
        with session.begin_nested():
            session.add(Todo(task="b"))
        assert not sent
        session.commit()
    finally:
        event.remove(Todo, "after_insert", inserted)
    assert targets(sent) == ["todo-1", "todo-2"]


def test_a_session_without_autoflush_is_not_flushed(turbo: Turbo, session: Session) -> None:
    with session.no_autoflush:
        todo = Todo(task="a")
        session.add(todo)
        turbo.after_commit(session)
        assert todo in session.new
    turbo.after_commit(session)
    assert todo not in session.new


def test_nothing_keeps_a_session(turbo: Turbo, engine: Engine) -> None:
    session = Session(engine)
    add(turbo, session, "a")
    session.commit()
    session.close()
    gone = weakref.ref(session)
    del session
    gc.collect()
    assert gone() is None


def test_it_is_a_session_that_commits(turbo: Turbo, engine: Engine) -> None:
    with pytest.raises(TypeError, match=r"expected a session of SQLAlchemy, .* got Engine"):
        turbo.after_commit(engine)


def test_without_sqlalchemy_the_extra_is_named(
    turbo: Turbo, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sqlalchemy.orm", None)
    with pytest.raises(RuntimeError, match=r"needs SQLAlchemy.*flask-sockets2\[sqlalchemy\]"):
        turbo.after_commit(session)


# -- errors ------------------------------------------------------------------------------------


def test_it_is_sent_to_the_application_of_the_call(engine: Engine) -> None:
    """By then there may be another one, or none."""
    turbo, apps = Turbo(), [Flask("one"), Flask("two")]
    for app in apps:
        turbo.init_app(app)
    with Session(engine) as session:
        with apps[0].app_context():
            session.execute(text("select 1"))
            turbo.after_commit(session).push("<x>")
        session.commit()
    offsets = []
    for app in apps:
        with app.app_context():
            assert turbo.sock is not None
            offsets.append(turbo.sock.position("turbo:all").offset)
    assert offsets == [1, 0]


def test_a_listener_of_the_program_may_broadcast_behind_ours(
    turbo: Turbo, session: Session, sent: Broadcasts
) -> None:
    session.execute(text("select 1"))
    turbo.after_commit(session).push("<first>")

    @event.listens_for(session, "after_commit", once=True)
    def then(session: Session) -> None:
        turbo.after_commit(session).push("<second>")

    session.commit()
    assert [each.markup for each in sent] == ["<first>", "<second>"]


def test_what_a_program_clears_breaks_no_commit(turbo: Turbo, session: Session) -> None:
    session.execute(text("select 1"))
    turbo.after_commit(session).push("<x>")
    session.info.clear()
    session.commit()


def test_a_broker_that_is_away_does_not_break_the_commit(
    app: Flask, turbo: Turbo, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    app.config["SOCKETS_BROKER_URL"] = f"redis://127.0.0.1:{unused_port()}/0"
    with Session(engine) as session:
        add(turbo, session, "a")
        add(turbo, session, "b")
        session.commit()
    with Session(engine) as session:
        assert session.query(Todo).count() == 2
    [record] = [record for record in caplog.records if record.name == LOGGER]
    assert record.levelno == logging.ERROR
    assert record.getMessage().startswith("2 of 2 broadcasts of what was committed were not sent")
    with pytest.raises(BrokerError):
        tell_now(turbo)


def tell_now(turbo: Turbo) -> None:
    turbo.broadcast_update_to("todos", content="", target="a")


def test_one_that_cannot_be_sent_does_not_stop_the_others(
    app: Flask,
    turbo: Turbo,
    session: Session,
    sent: Broadcasts,
    caplog: pytest.LogCaptureFixture,
) -> None:
    turbo.clients = {}
    add(turbo, session, "a")
    turbo.after_commit(session).broadcast_update_to("x", content="x" * 2**21, target="b")
    add(turbo, session, "c")
    session.commit()
    assert targets(sent) == ["a", "c"]
    [record] = [record for record in caplog.records if record.name == LOGGER]
    assert record.exc_info is not None
    assert record.exc_info[0] is ValueError
