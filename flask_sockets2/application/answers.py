"""Answers of the application's own functions, which authorize a request or return its user.

===============================  ===================================================================
answer                           of a yes-or-no function, as that of ``@sse.authorize``
===============================  ===================================================================
``True``                         yes
``False``, ``None``              no: a function that ends without ``return`` permits nothing
a response that refuses          no, and the client gets that response: a ``Response``, an
                                 ``HTTPException`` or a tuple as ``("forbidden", 403)``, as a view
                                 returns them, with a status from 300 to 599
anything else                    no, and :class:`WrongAnswer` is raised: nothing is judged by its
                                 truth, which a coroutine, ``"False"`` or a response has, too
===============================  ===================================================================

A function that returns the user, as that of ``@sockets.user_id``, answers with an id, or with
``None`` if there is no user; the last two rows hold for this function as well.

Flask handles what a function raises, as in a view. ``async def`` functions run by Flask's
``ensure_sync``, which needs ``flask[async]``. Under gevent one of them runs at a time: asyncio has
one running loop for each thread of the system, and a second greenlet's would be an error there.
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
"""A response that refuses; the values of a tuple are those that a view may return."""

PermitAnswer = bool | Refusal | Awaitable[bool | Refusal | None] | None
Permit = Callable[..., PermitAnswer]
"""A yes-or-no function, ``async def`` or not."""

Identify = Callable[[], UserId | Refusal | Awaitable[UserId | Refusal | None] | None]
"""A function that returns the user, ``async def`` or not."""

_TURN = 10.0  # seconds that an async function waits for another one under gevent
_RETRY_AFTER = 5  # seconds

_turns: dict[int, Any] = {}  # a lock by process: what a parent held at the fork is not the child's


class WrongAnswer(TypeError):
    """A function of the application answered with something that is no answer."""


class _AnswerResponse(HTTPException):
    """A response that a function answered with."""

    response: Response

    def __str__(self) -> str:
        return self.response.status


def permits(app: Flask, function: Permit, *args: str, by: str) -> bool:
    """Ask a yes-or-no function.

    :param args: that it is called with.
    :param by: what registered it, for the error: ``"@sse.authorize"``.
    :raises WrongAnswer: when the answer is neither of those above.
    :raises werkzeug.exceptions.HTTPException: the response that it refuses with.
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
    """Ask who the user of the current request is.

    :param by: as for :func:`permits`.
    :returns: the id as text, None for nobody.
    :raises WrongAnswer: when the answer is no id of a user.
    :raises werkzeug.exceptions.HTTPException: as :func:`permits`.
    """
    answer = _ask(app, function, (), by)
    try:
        return None if answer is None else user_text(answer)
    except (TypeError, ValueError) as exc:
        raise WrongAnswer(f"{_called(function, by)} returned {_kind(answer)}; {exc}") from exc


def call(app: Flask, function: Callable[..., Any], *args: Any, by: str) -> Any:
    """Call a function of the application, ``async def`` or not, and return what it does.

    :param by: as for :func:`permits`.
    :raises WrongAnswer: when it has not run, since nothing awaits or iterates what it returned.
    :raises RuntimeError: Flask's, when it is ``async def`` and ``flask[async]`` is not installed.
    :raises werkzeug.exceptions.ServiceUnavailable: when another ``async def`` does not end, under
        gevent.
    """
    made = app.ensure_sync(function)
    if made is function:
        answer = function(*args)
    else:
        with _turn():
            answer = made(*args)
    if iscoroutine(answer):
        answer.close()  # else Python warns of it later, and far from here
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
    """Call a function, and raise what it answers with if that is a response."""
    answer = call(app, function, *args, by=by)
    if isinstance(answer, LocalProxy):
        answer = answer._get_current_object()
    if isinstance(answer, Response | HTTPException | tuple):
        raise _refusal(app, function, answer, by)
    return answer


def _refusal(app: Flask, function: Callable[..., Any], answer: Any, by: str) -> Exception:
    """Return what to raise for a response, or for a tuple that may be one."""
    try:
        if isinstance(answer, HTTPException):
            response: Any = answer.get_response(request.environ)
        else:
            response = app.make_response(answer)
    except Exception as exc:  # of a tuple anything may be wrong
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
    # Raised as it is, an exception gets the error handlers that it would get in a view.
    return answer if isinstance(answer, HTTPException) else _AnswerResponse(response=response)


@contextmanager
def _turn() -> Iterator[None]:
    """Wait until no other async function runs, where there is one loop for all greenlets."""
    if not on_gevent():
        yield
        return
    # Made late: gevent may have patched threading after this module was imported.
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
    """Return what the application calls a function, and what it is there for."""
    while isinstance(function, partial):
        function = function.func
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"the function {name!r} of {by}"


def _kind(answer: Any) -> str:
    """Return what an answer is; never its value, which may be anybody's."""
    kind = type(answer)
    name = kind.__qualname__
    if kind.__module__ != "builtins":
        name = f"{kind.__module__}.{name}"
    return f"an {name}" if name[0] in "aeiouAEIOU" else f"a {name}"
