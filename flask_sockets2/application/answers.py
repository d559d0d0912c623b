"""Calls the application's functions that authorize a request or return its user.

===============================  ===================================================================
answer                           of a yes-or-no function, as that of ``@sse.authorize``
===============================  ===================================================================
``True``                         yes
``False``, ``None``              no: a function that ends without ``return`` permits nothing
a response that refuses          no, and the client gets that response: a ``Response``, an
                                 ``HTTPException`` or a tuple such as ``("forbidden", 403)``, as in
                                 a view, with a status from 300 to 599
anything else                    no, and :class:`WrongAnswer` is raised; truth does not count, since
                                 a coroutine, ``"False"`` and a response are true, too
===============================  ===================================================================

A function that returns the user, as for ``@sockets.user_id``, returns an id, or ``None`` if there
is no user. The last two rows apply to this function as well.

Flask handles errors of these functions as in a view. ``async def`` functions run in Flask's
``ensure_sync``, which needs ``flask[async]``. Under gevent they run one at a time: asyncio allows
one running loop for each native thread, and the loop of a second greenlet would be an error.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from inspect import isasyncgen, iscoroutine, isgenerator
from typing import Any

from flask import Flask, request
from werkzeug.exceptions import HTTPException, ServiceUnavailable
from werkzeug.local import LocalProxy
from werkzeug.wrappers import Response

from ..admission.disconnects import UserId, user_text
from ..transports.current import on_gevent

__all__ = [
    "Identify",
    "Permit",
    "PermitAnswer",
    "UserId",
    "WrongAnswer",
    "call",
    "identity",
    "permits",
]

Refusal = Response | HTTPException | tuple[Any, int] | tuple[Any, int, Any]
"""A response that refuses; a tuple has the form of a view's return value."""

PermitAnswer = bool | Refusal | Awaitable[bool | Refusal | None] | None
Permit = Callable[..., PermitAnswer]
"""A yes-or-no function, ``async def`` or not."""

Identify = Callable[[], UserId | Refusal | Awaitable[UserId | Refusal | None] | None]
"""A function that returns the user, ``async def`` or not."""

_TURN = 10.0  # seconds that an async function waits for its turn under gevent
_RETRY_AFTER = 5  # seconds

_turns: dict[int, Any] = {}  # one lock for each process: a parent may hold its lock at the fork


class WrongAnswer(TypeError):
    """A function of the application returned a value that is no answer."""


class _AnswerResponse(HTTPException):
    """Raised to send the response that a function returned."""

    response: Response

    def __str__(self) -> str:
        return self.response.status


def permits(app: Flask, function: Permit, *args: str, by: str) -> bool:
    """Call a yes-or-no function, and return its answer.

    :param args: arguments of the function.
    :param by: name of the decorator for the error text, such as ``"@sse.authorize"``.
    :raises WrongAnswer: if the answer is not in the table above.
    :raises werkzeug.exceptions.HTTPException: if the function refuses with a response.
    """
    answer = _ask(app, function, args, by)
    if answer is True:
        return True
    if answer is False or answer is None:
        return False
    raise WrongAnswer(
        f"{_called(function, by)} returned {_kind(answer)}; it must return True, False or "
        "None, or a response that refuses: compare, or return bool(…) if the truth of the value "
        "is the answer"
    )


def identity(app: Flask, function: Identify, *, by: str) -> str | None:
    """Call a function that returns the user of the current request.

    :param by: as for :func:`permits`.
    :returns: the id as text, None if there is no user.
    :raises WrongAnswer: if the answer is no user id.
    :raises werkzeug.exceptions.HTTPException: as :func:`permits`.
    """
    answer = _ask(app, function, (), by)
    try:
        return None if answer is None else user_text(answer)
    except (TypeError, ValueError) as exc:
        raise WrongAnswer(f"{_called(function, by)} returned {_kind(answer)}; {exc}") from exc


def call(app: Flask, function: Callable[..., Any], *args: Any, by: str) -> Any:
    """Call a function of the application, ``async def`` or not, and return its result.

    :param by: as for :func:`permits`.
    :raises WrongAnswer: if the result is a coroutine or a generator, so the function did not run.
    :raises RuntimeError: Flask's, if an ``async def`` needs ``flask[async]``.
    :raises werkzeug.exceptions.ServiceUnavailable: if another ``async def`` does not end in time
        under gevent.
    """
    made = app.ensure_sync(function)
    if made is function:
        answer = function(*args)
    else:
        with _turn():
            answer = made(*args)
    if iscoroutine(answer):
        answer.close()  # else Python warns of the coroutine later, far from here
        raise WrongAnswer(
            f"{_called(function, by)} returned a coroutine, which nothing awaits; make the "
            "function async def, and await it there"
        )
    if isgenerator(answer) or isasyncgen(answer):
        raise WrongAnswer(
            f"{_called(function, by)} returned a generator, which nothing iterates; use return "
            "instead of yield"
        )
    return answer


def _ask(app: Flask, function: Callable[..., Any], args: tuple[Any, ...], by: str) -> Any:
    """Call a function and return its answer; raise the answer if it is a response."""
    answer = call(app, function, *args, by=by)
    if isinstance(answer, LocalProxy):
        answer = answer._get_current_object()
    if isinstance(answer, Response | HTTPException | tuple):
        raise _refusal(app, function, answer, by)
    return answer


def _refusal(app: Flask, function: Callable[..., Any], answer: Any, by: str) -> Exception:
    """Return the exception for a response, or for a tuple that may be a response."""
    try:
        if isinstance(answer, HTTPException):
            response: Any = answer.get_response(request.environ)
        else:
            response = app.make_response(answer)
    except Exception as exc:  # anything may be wrong with a tuple
        wrong = WrongAnswer(
            f"{_called(function, by)} returned {_kind(answer)}, which is no response; it must "
            'return a single value, or a response that refuses, as ("forbidden", 403)'
        )
        wrong.__cause__ = exc
        return wrong
    if not 300 <= response.status_code <= 599:
        response.close()
        return WrongAnswer(
            f"{_called(function, by)} returned a response of status {response.status_code}, "
            "which refuses nothing; return True to permit, or a status from 300 to 599 to refuse"
        )
    # An unchanged HTTPException reaches the same error handlers as in a view.
    return answer if isinstance(answer, HTTPException) else _AnswerResponse(response=response)


@contextmanager
def _turn() -> Iterator[None]:
    """Under gevent, wait until no other async function runs."""
    if not on_gevent():
        yield
        return
    # The lock is made late: gevent may patch threading after this module was imported.
    lock = _turns.get(os.getpid()) or _turns.setdefault(os.getpid(), threading.Lock())
    if not lock.acquire(timeout=_TURN):
        raise ServiceUnavailable(
            "other requests are still being authorized; retry later", retry_after=_RETRY_AFTER
        )
    try:
        yield
    finally:
        lock.release()


def _called(function: Any, by: str) -> str:
    """Return the function's name and its decorator, for an error text."""
    while isinstance(function, partial):
        function = function.func
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"the function {name!r} of {by}"


def _kind(answer: Any) -> str:
    """Return the type of an answer for an error text; its value may be confidential."""
    kind = type(answer)
    name = kind.__qualname__
    if kind.__module__ != "builtins":
        name = f"{kind.__module__}.{name}"
    return f"an {name}" if name[0] in "aeiouAEIOU" else f"a {name}"
