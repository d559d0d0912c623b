"""Broadcasts after the database commits: no page is told of what is not so.

::

    db.session.add(todo)
    turbo.after_commit(db.session).broadcast_append_to(
        "todos", template="_todo.html", todo=todo, target="todos"
    )
    db.session.commit()  # sends it

Without it a page may ask for a row that no other connection can see yet, and shows what a rollback
has undone. ActiveRecord's callbacks ``after_commit``, on which turbo-rails broadcasts, do the same.

What happens to what was broadcast in a transaction:

==============================  ==================================================================
the transaction                 its broadcasts
==============================  ==================================================================
commits                         are sent, in their order, while ``commit()`` runs
is rolled back                  are dropped
is a savepoint and is released  are those of the transaction around it
is closed without either        are dropped, and that is logged as a warning
==============================  ==================================================================

Where no transaction has begun nothing waits for a commit, and a broadcast is sent at once; Rails'
``after_all_transactions_commit`` does the same. The session begins one by itself with the first
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
"""In ``session.info``: what is to be called, by transaction. Sessions are for one thread."""

_COMMITTED = "flask_sockets2.turbo.committed"
"""In ``session.info``: the outermost transaction, from its commit to its end."""

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

    If the broker is away then, the stream is lost; that is logged, and the commit does not fail.

    :param session: of :func:`flushed`.
    :param send: sends at once.
    :returns: positions of no channel, since none is known yet.
    """
    _when_committed(session, partial(send, publisher, channels, stream, sockets))
    return [NOWHERE] * len(channels)


def flushed(session: Any) -> Session:
    """Return a session after a flush, so that new objects have their ids.

    :param session: a session or a ``scoped_session``, as Flask-SQLAlchemy's ``db.session``. One
        whose ``autoflush`` is off is not flushed.
    :raises RuntimeError: when SQLAlchemy is not installed.
    :raises TypeError: when it is something else.
    :raises sqlalchemy.exc.SQLAlchemyError: when the flush fails, as the commit would.
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
    # While it flushes, as in an event of a mapper, there are ids already, and flush() would raise.
    if session.autoflush and not getattr(session, "_flushing", False):
        session.flush()
    return session


def _when_committed(session: Session, call: Call) -> None:
    """Call something once what a session does now is committed."""
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
    """Also called for savepoints, before they end."""
    transaction = session.get_nested_transaction() or session.get_transaction()
    around = transaction and transaction.parent  # not that of a flush: it has no savepoints
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
    """Also called for savepoints, and when a flush has failed; before the transaction ends."""
    _pop(session, session.get_nested_transaction() or session.get_transaction())


def _after_transaction_end(session: Session, transaction: SessionTransaction) -> None:
    """Drop what neither a commit nor a rollback has taken, so that no transaction is kept."""
    calls = _pop(session, transaction)
    if session.info.get(_COMMITTED) is transaction:
        del session.info[_COMMITTED]
        if calls:  # of the program's own listener for after_commit, which ran behind ours
            _call(calls)
    elif calls and transaction.parent is None:  # a rollback closes the savepoints within it, too
        logger.warning(
            "%d broadcasts were dropped, as their transaction was closed without a commit; "
            "turbo.after_commit(session) comes before session.commit()",
            len(calls),
        )


def _pop(session: Session, transaction: SessionTransaction | None) -> list[Call]:
    """Return what a transaction has; a program may have cleared ``session.info``."""
    calls: list[Call] = session.info.get(_CALLS, {}).pop(transaction, [])
    return calls


def _call(calls: list[Call]) -> None:
    """Publish; what goes wrong is logged, as ``commit()`` must not seem to have failed.

    Where the broker is away the rest is not tried: each might wait for as long. A timeout of
    gevent's that the program has set around its commit goes through, for it is the program's.
    """
    for number, call in enumerate(calls):
        error: object = "see above"  # with SOCKETS_PUBLISH_ERRORS = "log"
        try:
            if NOWHERE not in call():
                continue
        except BrokerError as exc:
            error = exc
        except Exception:  # whatever it is: this is the caller's commit
            logger.exception("a broadcast of what was committed was not sent")
            continue
        logger.error(
            "%d of %d broadcasts of what was committed were not sent: %s",
            len(calls) - number,
            len(calls),
            error,
        )
        return
