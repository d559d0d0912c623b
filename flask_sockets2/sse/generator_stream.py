"""Streams from a generator: admitted, counted and ended like streams of a channel.

The server cannot interrupt a generator that waits. A disconnected stream therefore ends in place of
the next piece, and the greenlet or thread is free when the generator continues. If a keepalive
check finds that the client has left meanwhile, the client may reconnect: the limits by address and
by user no longer count the stream. The limit of the process counts the stream until the generator
ends, because that limit bounds greenlets and threads.
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
    """One stream, as admission counts the stream and as a
    :class:`~flask_sockets2.connection.keepalive.Keepalive` checks the client.

    :ivar path: path of the request.
    :ivar ended: whether the stream sends no further piece.
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
        """Free the slot of a stream that the server has finished; can be repeated.

        :param works: whether only the client has left, and the generator still runs.
        """
        self.ended = True
        self._sock = self.ping_interval = None  # no further keepalive checks
        self._state.stream_ended(self, works=works)

    def keepalive_ping(self) -> None:
        """Free the client's slot if the client has left."""
        sock = self._sock
        if sock is not None and has_ended(sock):
            self.leave(works=True)

    def heard(self) -> int:
        return 0

    def keepalive_failed(self) -> None:
        """Never called: a stream expects no answer to a ping."""


class _Body(Iterator[bytes]):
    """The response body that the server iterates. No counted object refers to the body, so that the
    slot is freed even if the server drops the body without closing.

    :param pieces: generator of the pieces.
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
            if self._flow.ended:  # possibly while the generator waited
                raise StopIteration
        except BaseException:
            self.close()
            raise
        return piece

    def close(self) -> None:
        """End the stream when the server has finished (PEP 3333); can be repeated."""
        self._closed = True
        self._flow.end()
        try:
            self._pieces.close()
        finally:
            self._flow.leave()

    def __del__(self) -> None:
        if not self._closed:
            # Later: the garbage collector may run while a lock is held.
            self._clock.call_soon(self._flow.leave)


def answer_with(pieces: Generator[bytes], *, with_context: bool = False) -> Response:
    """Return a response to the current request that streams a generator's bytes.

    An application without channels neither counts nor limits streams.

    :param pieces: generator of the body, closed in any case.
    :param with_context: whether the generator runs in the request's context.
    :raises werkzeug.exceptions.HTTPException: 403, 406, 429 and 503 as
        :func:`~flask_sockets2.application.event_stream.stream_response`.
    """
    try:
        flow = _admitted()
    except BaseException:
        pieces.close()
        raise
    if request.method == "HEAD":  # the response has no body
        pieces.close()
        return respond(())
    body: Iterator[bytes] = pieces
    if with_context:
        body = stream_with_context(pieces)  # keeps the context from here on
    if flow is None:
        return respond(body)
    clock = current_clock()
    clock.call_soon(lambda: keepalive_of(clock).watch(flow))
    return respond(_Body(flow, clock, body))


def _admitted() -> _Flow | None:
    """Return the counted stream of the current request, or None if the stream is not counted."""
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
