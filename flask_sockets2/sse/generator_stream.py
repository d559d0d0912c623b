"""Streams that an iterable brings piece by piece: admitted, counted and ended as all others are.

What an application's generator waits for, nobody else can end. So such a stream ends in place of
its next piece: who was disconnected has nothing any more, and its greenlet or thread is free as
soon as the generator goes on. When its client is seen to have left before, its place is free among
those of its address and user, who may come back; among all of the process it is not, for a greenlet
or thread is what they bound.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from typing import Any

from flask import Response, current_app, request, stream_with_context

from ..application.event_stream import expect, refusals, respond
from ..application.origins import check_stream
from ..application.state import EXTENSION, State, state_of
from ..connection.keepalive import keepalive_of
from ..servers.takeover import client_socket
from ..servers.wsgi_stream import has_ended
from ..settings import read
from ..transports.clock import Clock
from ..transports.current import current_clock
from .settings import Settings

__all__ = ["answer_with"]


class _Flow:
    """One stream, as it is counted, and as a
    :class:`~flask_sockets2.connection.keepalive.Keepalive` keeps it.

    :ivar path: of its request.
    :ivar ended: it has no further piece.
    """

    __slots__ = ("_sock", "_state", "ended", "path", "ping_interval", "ping_timeout")

    def __init__(self, state: State, environ: Mapping[str, Any], interval: float) -> None:
        self._state = state
        self._sock = client_socket(environ)
        self.path = environ.get("PATH_INFO")
        self.ended = False
        self.ping_interval: float | None = interval
        self.ping_timeout: float | None = None

    def end(self) -> None:
        self.ended = True

    def leave(self, *, works: bool = False) -> None:
        """The server is done with it; can be repeated.

        :param works: no, only its client has left.
        """
        self.ended = True
        self._sock = self.ping_interval = None  # so that it is looked at no more
        self._state.stream_ended(self, works=works)

    def keepalive_ping(self) -> None:
        """See whether its client is still there."""
        sock = self._sock
        if sock is not None and has_ended(sock):
            self.leave(works=True)

    def heard(self) -> int:
        return 0

    def keepalive_failed(self) -> None:
        """Never called: no answer is waited for."""


class _Body(Iterator[bytes]):
    """What the server takes a stream from; nothing that is counted refers to it, so that one which
    the server has forgotten is counted no longer.

    :param pieces: a generator.
    """

    __slots__ = ("_clock", "_closed", "_flow", "_pieces")

    def __init__(self, flow: _Flow, clock: Clock, pieces: Any) -> None:
        self._flow = flow
        self._pieces = pieces
        self._clock = clock
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
            self._flow.leave()

    def __del__(self) -> None:
        if not self._closed:
            # Not in here: the garbage collector may run where locks are held.
            self._clock.call_soon(self._flow.leave)


def answer_with(pieces: Generator[bytes], *, with_context: bool = False) -> Response:
    """Answer the current request with what a generator yields.

    An application without channels counts no streams, and limits none.

    :param pieces: closed in any case.
    :param with_context: whether it has the request's context.
    :raises werkzeug.exceptions.HTTPException: 403, 406, 429 and 503 as
        :func:`~flask_sockets2.application.event_stream.stream_response`.
    """
    try:
        flow = _admitted()
    except BaseException:
        pieces.close()
        raise
    if request.method == "HEAD":  # its body is never asked for
        pieces.close()
        return respond(())
    body: Iterator[bytes] = pieces
    if with_context:
        body = stream_with_context(pieces)  # it keeps the context from here on
    if flow is None:
        return respond(body)
    clock = current_clock()
    clock.call_soon(lambda: keepalive_of(clock).watch(flow))
    return respond(_Body(flow, clock, body))


def _admitted() -> _Flow | None:
    """Return the stream of the current request, which is counted; None if none is."""
    if EXTENSION not in current_app.extensions:
        check_stream(current_app)
        return None
    guest = expect(current_app)
    if request.method == "HEAD":
        return None
    state = state_of()
    flow = _Flow(state, request.environ, read(Settings, current_app.config).heartbeat)
    with refusals():
        state.admit_stream(flow, guest)
    return flow
