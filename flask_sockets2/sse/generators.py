"""Streams from a function, a generator or any iterable, instead of a channel.

Each stream occupies a greenlet or thread for its one client; the server notices only at the next
send that the client has left. If all clients see the same events, publish them to a channel.
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
    """Return a response that streams the results of a function, called repeatedly.

    ::

        @app.get("/time")
        def clock():
            return sse.stream_func(next_second)

    :param func: function without arguments that waits until there is something to send.
    :param limit: number of calls, -1 for no limit.
    :param with_context: whether the stream keeps the request's context for the function.
    """

    def results() -> Iterator[Any]:
        count = 0
        while limit < 0 or count < limit:
            count += 1
            yield func()

    return stream_generator(results(), with_context=with_context)


def stream_generator(gen: Iterable[Any], *, with_context: bool = False) -> Response:
    """Return a response that streams the items of an iterable as events.

    The last event has the type ``end``: close the page's EventSource there, or the browser will
    reconnect. If the iterable raises, the last event has the type ``error`` instead. If the
    iterable has a method ``close``, the stream calls ``close`` in any case.

    :param gen: items that are text, JSON data or :class:`Message`; None sends a heartbeat.
    :param with_context: as in :func:`stream_func`.
    """
    app = current_app._get_current_object()  # type: ignore[attr-defined]  # a proxy, as Flask documents it
    events = _events(gen, dumps_of(app), request.path)
    next(events)  # started, so that closing it also closes gen
    return answer_with(events, with_context=with_context)


def _events(gen: Iterable[Any], dumps: Dumps, path: str) -> Generator[bytes]:
    last = Message("", type=END)
    try:
        yield b""  # taken by stream_generator
        yield _COMMENT  # servers send the head of a response with its first bytes
        for item in gen:
            yield _COMMENT if item is None else _event(item, dumps)
    except Exception:
        # The client must not see the exception's text.
        logger.exception("the stream of %.200r ends, as what makes it raised", path)
        last = Message("the stream has ended by an error", type=ERROR)
    finally:  # also if the client has left
        close = getattr(gen, "close", None)
        if close is not None:
            close()
    yield _event(last, dumps)


def _event(item: Any, dumps: Dumps) -> bytes:
    message = item if isinstance(item, Message) else Message(item)
    return b"".join((*message.fields(dumps), b"\n"))
