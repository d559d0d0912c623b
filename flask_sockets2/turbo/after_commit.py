"""Broadcasts that wait for the database commit, so that no page shows uncommitted data.

::

    db.session.add(todo)
    turbo.after_commit(db.session).broadcast_append_to(
        "todos", template="_todo.html", todo=todo, target="todos"
    )
    db.session.commit()  # sends it

Before the commit, a page may request a row that no other connection can see yet. If the transaction
is rolled back, the page shows data that does not exist. turbo-rails broadcasts in ActiveRecord's
``after_commit`` callbacks for the same reason.

==============================  ==================================================================
the transaction                 its broadcasts
==============================  ==================================================================
commits                         are sent in order while ``commit()`` runs
is rolled back                  are dropped
is a savepoint and is released  pass to the enclosing transaction
is closed without either        are dropped, with a warning in the log
==============================  ==================================================================

If no transaction has begun, a broadcast is sent at once, as with Rails'
``after_all_transactions_commit``. The session begins a transaction by itself with the first
``add()``, query or change.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ..brokers.base import NOWHERE, Position
from ..channels.publisher import Publisher
from ..exceptions import BrokerError
from .broadcasts import Send
from .refresh_debounce import Refresh

if TYPE_CHECKING:
    from sqlalchemy.orm import Session, SessionTransaction

__all__ = ["flushed", "send_after_commit"]

logger = logging.getLogger("flask_sockets2.turbo")

_CALLS = "flask_sockets2.turbo.commit"
"""Key of ``session.info``: calls to make, by transaction. A session belongs to one thread."""

_COMMITTED = "flask_sockets2.turbo.committed"
"""Key of ``session.info``: the outermost transaction, from its commit to its end."""

Call = Callable[[], Sequence[Position | None]]


def send_after_commit(
    session: Session,
    send: Send,
    publisher: Publisher,
    channels: list[str],
    stream: str | Refresh,
    sockets: Sequence[Any],
) -> Sequence[Position | None]:
    """Send a stream when a session commits; the other arguments are those of :data:`Send`.

    If the broker is unreachable then, an error is logged, and only the stream is lost.

    :param session: session that :func:`flushed` returned.
    :param send: function that sends at once.
    :returns: ``NOWHERE`` for each channel, since no position is known yet.
    """
    _when_committed(session, partial(send, publisher, channels, stream, sockets))
    return [NOWHERE] * len(channels)


def flushed(session: Any) -> Session:
    """Return a session after a flush, so that new objects have their ids.

    :param session: a session, or a ``scoped_session`` such as Flask-SQLAlchemy's ``db.session``.
        If its ``autoflush`` is off, the session is not flushed.
    :raises RuntimeError: if SQLAlchemy is not installed.
    :raises TypeError: if ``session`` is something else.
    :raises sqlalchemy.exc.SQLAlchemyError: if the flush fails, as the commit would.
    """
    try:
        from sqlalchemy.orm import Session, scoped_session
    except ImportError as exc:
        raise RuntimeError(
            "turbo.after_commit() needs SQLAlchemy; install it with: "
            'pip install "flask-sockets2[sqlalchemy]"'
        ) from exc
    if isinstance(session, scoped_session):
        session = session()
    if not isinstance(session, Session):
        raise TypeError(
            f"expected a session of SQLAlchemy, as db.session, got {type(session).__name__}"
        )
    # During a flush, as in an event of a mapper, ids exist already, and flush() would raise.
    if session.autoflush and not getattr(session, "_flushing", False):
        session.flush()
    return session


def _when_committed(session: Session, call: Call) -> None:
    """Make a call when the session's current transaction commits; at once if there is none."""
    transaction = session.get_nested_transaction() or session.get_transaction()
    if transaction is None:
        _call([call])
    else:
        _calls_of(session).setdefault(transaction, []).append(call)


def _calls_of(session: Session) -> dict[SessionTransaction, list[Call]]:
    calls: dict[SessionTransaction, list[Call]] | None = session.info.get(_CALLS)
    if calls is None:
        from sqlalchemy import event

        calls = session.info[_CALLS] = {}
        event.listen(session, "after_commit", _after_commit)
        event.listen(session, "after_rollback", _after_rollback)
        event.listen(session, "after_transaction_end", _after_transaction_end)
    return calls


def _after_commit(session: Session) -> None:
    """Listen for commits; SQLAlchemy also reports a savepoint's release, before its end."""
    transaction = session.get_nested_transaction() or session.get_transaction()
    around = transaction and transaction.parent  # never a flush's, which has no savepoints
    if not around:
        session.info[_COMMITTED] = transaction
    calls = _pop(session, transaction)
    if not calls:
        return
    if around:
        _calls_of(session).setdefault(around, []).extend(calls)
    else:
        _call(calls)


def _after_rollback(session: Session) -> None:
    """Drop a transaction's calls; also for savepoints and failed flushes, before they end."""
    _pop(session, session.get_nested_transaction() or session.get_transaction())


def _after_transaction_end(session: Session, transaction: SessionTransaction) -> None:
    """Drop calls left over by commit and rollback, so that no transaction stays in memory."""
    calls = _pop(session, transaction)
    if session.info.get(_COMMITTED) is transaction:
        del session.info[_COMMITTED]
        if calls:  # added by the application's own after_commit listener, which ran after ours
            _call(calls)
    elif calls and transaction.parent is None:  # a rollback also closes inner savepoints
        logger.warning(
            "%d broadcasts were dropped, as their transaction was closed without a commit; "
            "turbo.after_commit(session) comes before session.commit()",
            len(calls),
        )


def _pop(session: Session, transaction: SessionTransaction | None) -> list[Call]:
    """Take a transaction's calls; the application may have cleared ``session.info``."""
    calls: list[Call] = session.info.get(_CALLS, {}).pop(transaction, [])
    return calls


def _call(calls: list[Call]) -> None:
    """Publish, and log errors, so that ``commit()`` does not seem to have failed.

    If the broker is unreachable, the other calls are skipped, since each might wait as long. A
    gevent timeout that the application has set around its commit is raised.
    """
    for number, call in enumerate(calls):
        error: object = "see above"  # with SOCKETS_PUBLISH_ERRORS = "log"
        try:
            if NOWHERE not in call():
                continue
        except BrokerError as exc:
            error = exc
        except Exception:  # of any class: the caller's commit must not fail
            logger.exception("a broadcast of what was committed was not sent")
            continue
        logger.error(
            "%d of %d broadcasts of what was committed were not sent: %s",
            len(calls) - number,
            len(calls),
            error,
        )
        return
