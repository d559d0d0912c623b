"""Streams of what a function, a generator or any iterable brings, instead of a channel.

Such a stream belongs to one client, and its greenlet or thread to it as long as it lasts; that its
client has left is seen when something is sent. Where all clients see the same, publish it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

from flask import Response, current_app, request

from ..channels.publisher import Dumps, dumps_of
from .generator_stream import answer_with
from .message import Message

__all__ = ["stream_func", "stream_generator"]

logger = logging.getLogger("flask_sockets2.sse")

END, ERROR = "end", "error"

_COMMENT = b":\n\n"


def stream_func(
    func: Callable[[], Any], limit: int = -1, *, with_context: bool = False
) -> Response:
    """Answer the current request with what a function returns, called again and again.

    ::

        @app.get("/time")
        def clock():
            return sse.stream_func(next_second)

    :param func: called without arguments; it waits until there is something to send.
    :param limit: how often it is called, -1 without end.
    :param with_context: whether it has the request's context, which is kept as long then.
    """

    def results() -> Iterator[Any]:
        count = 0
        while limit < 0 or count < limit:
            count += 1
            yield func()

    return stream_generator(results(), with_context=with_context)


def stream_generator(gen: Iterable[Any], *, with_context: bool = False) -> Response:
    """Answer the current request with what an iterable brings.

    At its end comes an event of the type ``end``: a page closes its EventSource there, which would
    come back otherwise. Where it raises, comes one of the type ``error``. It is closed in any case,
    where it has a ``close``.

    :param gen: of text, of what becomes JSON, or of :class:`Message`; None is a heartbeat.
    :param with_context: as in :func:`stream_func`.
    """
    app = current_app._get_current_object()  # type: ignore[attr-defined]  # a proxy, as Flask documents it
    events = _events(gen, dumps_of(app), request.path)
    next(events)  # from now on closing it closes what it takes from
    return answer_with(events, with_context=with_context)


def _events(gen: Iterable[Any], dumps: Dumps, path: str) -> Generator[bytes]:
    last = Message("", type=END)
    try:
        yield b""  # nobody has this one
        yield _COMMENT  # servers send the head of a response with its first bytes
        for item in gen:
            yield _COMMENT if item is None else _event(item, dumps)
    except Exception:
        # Its text is not the client's business.
        logger.exception("the stream of %.200r ends, as what makes it raised", path)
        last = Message("the stream has ended by an error", type=ERROR)
    finally:  # its client has left, too
        close = getattr(gen, "close", None)
        if close is not None:
            close()
    yield _event(last, dumps)


def _event(item: Any, dumps: Dumps) -> bytes:
    message = item if isinstance(item, Message) else Message(item)
    return b"".join((*message.fields(dumps), b"\n"))
