"""Streams that an iterable brings piece by piece: admitted, counted and ended as all others are.

What an application's generator waits for, nobody else can end. So such a stream ends in place of
its next piece: who was disconnected has nothing any more, and its greenlet or thread is free as
soon as the generator goes on.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

from flask import Response, current_app, request, stream_with_context

from ..event_stream import expect, refusals, respond
from ..extension import EXTENSION, State, state_of
from ..servers.environ import waiter
from ..view import check_site

__all__ = ["answer_with"]


class _Flow:
    """One stream, as it is counted.

    :ivar path: of its request.
    :ivar ended: it has no further piece.
    """

    __slots__ = ("ended", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self.ended = False

    def end(self) -> None:
        self.ended = True


class _Body(Iterator[bytes]):
    """What the server takes a stream from; nothing that is counted refers to it, so that one which
    the server has forgotten is counted no longer.

    :param pieces: a generator.
    """

    __slots__ = ("_clock", "_closed", "_flow", "_pieces", "_state")

    def __init__(self, state: State, flow: _Flow, pieces: Any) -> None:
        self._state = state
        self._flow = flow
        self._pieces = pieces
        self._clock = waiter().clock
        self._closed = False

    def __next__(self) -> bytes:
        try:
            piece: bytes = b"" if self._flow.ended else next(self._pieces)
            if self._flow.ended:  # also meanwhile
                raise StopIteration
        except BaseException:
            self.close()
            raise
        return piece

    def close(self) -> None:
        """The server is done with it (PEP 3333); can be repeated."""
        self._closed = True
        self._flow.end()
        try:
            self._pieces.close()
        finally:
            self._state.stream_ended(self._flow)

    def __del__(self) -> None:
        if not self._closed:
            # Not in here: the garbage collector may run where locks are held.
            state, flow = self._state, self._flow
            self._clock.call_soon(lambda: state.stream_ended(flow))


def answer_with(pieces: Generator[bytes], *, with_context: bool = False) -> Response:
    """Answer the current request with what a generator yields.

    An application without channels counts no streams, and limits none.

    :param pieces: closed in any case.
    :param with_context: whether it has the request's context.
    :raises werkzeug.exceptions.HTTPException: 429 and 503 as
        :func:`~flask_sockets2.event_stream.stream_response`.
    """
    try:
        check_site()
        guest = expect(current_app) if EXTENSION in current_app.extensions else None
    except BaseException:
        pieces.close()
        raise
    if request.method == "HEAD":  # its body is never asked for
        pieces.close()
        return respond(())
    wrapped = stream_with_context if with_context else iter  # the former keeps the context at once
    if guest is None:
        return respond(wrapped(pieces))
    state, flow = state_of(), _Flow(request.path)
    try:
        with refusals():
            state.admit_stream(flow, guest)
    except BaseException:
        pieces.close()
        raise
    return respond(_Body(state, flow, wrapped(pieces)))
