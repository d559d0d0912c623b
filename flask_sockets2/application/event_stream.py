"""Server-Sent Events (WHATWG HTML §9.2) over channels, as a response of any WSGI server.

A stream carries the same messages as a WebSocket that resumes. Each event holds a JSON envelope of
``fanout/encoding.py`` in a ``data`` field, without a type. An event is encoded once for all
clients::

    data: {"event": "streams", "channels": ["news"]}

    data: {"event": "subscribed", "channel": "news", "position": "9f86d081884c7d65-41"}

    data: {"channel": "news", "position": "9f86d081884c7d65-42", "data": "hello"}

    :

The last line is a heartbeat, a comment. Heartbeats keep routers from cutting an idle connection,
and detect peers that left without closing the connection.

Under our own handler a stream costs no greenlet and ends as soon as its peer leaves. On other
servers a stream occupies a greenlet or a thread until the stream ends.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from flask import Flask, Response, request
from werkzeug.exceptions import ServiceUnavailable, TooManyRequests

from ..admission.guests import Guest
from ..brokers.base import Message
from ..connection.connection_log import STREAM_LOG
from ..connection.limits import Limits
from ..exceptions import BrokerError, HandshakeError
from ..fanout.encoding import GAP, Encoding, Frames
from ..fanout.fanout import Subscription
from ..fanout.outbox import Outlet
from ..servers.wsgi_stream import Body, Stream
from ..settings import read
from ..transports.base import StreamTransport
from .origins import check_stream
from .state import State, state_of

__all__ = [
    "EVENTS",
    "Attach",
    "Events",
    "answer",
    "event",
    "expect",
    "open_body",
    "refusals",
    "respond",
    "stream_response",
]

logger = logging.getLogger("flask_sockets2.streams")

_CONTENT_TYPE = "text/event-stream; charset=utf-8"
_HEARTBEAT = b":\n\n"
_NO_BROKER = "messages cannot be delivered just now; connect again"
_RETRY_AFTER = 5  # seconds
_WHAT = "an event stream"  # for the log
_ENVELOPES = Frames.of(envelope=True)

Attach = Callable[[str, Encoding, Any], Subscription]
"""Subscribes a stream: channel, encoding, and the position that its client has seen."""


def event(data: bytes) -> bytes:
    """Return an event that has only data (WHATWG HTML §9.2.6).

    :param data: UTF-8 of any number of lines; the client receives LF between them. JSON is one
        line, unless the publisher has spread it over several.
    """
    if b"\n" in data or b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\ndata: ")
    return b"data: %b\n\n" % data


class Events:
    """Encodes messages as events; use the only instance, :data:`EVENTS`."""

    __slots__ = ()

    presence = False

    def encode(self, message: Message) -> bytes:
        """Return the event of a message, made once; empty if streams do not get the message."""
        made: bytes | None = message.encoded.get(self)
        if made is None:
            made = message.encoded[self] = self._make(message)
        return made

    @staticmethod
    def _make(message: Message) -> bytes:
        if message.event and message.event != GAP:  # presence: joins and leaves
            return b""
        try:
            return event(_ENVELOPES.text(message).encode())
        except ValueError:  # another program published no UTF-8; other messages still pass
            logger.exception("a message of channel %.200r cannot be sent", message.channel)
            return b""


EVENTS = Events()
"""The encoding that all streams share."""


class _StreamOwner:
    """Connects a stream to its outlet and to the limits, and counts the stream.

    :ivar path: path of the request.
    """

    __slots__ = ("_state", "limits", "outlet", "path", "stream")

    def __init__(self, state: State, path: str, limits: Limits) -> None:
        self._state = state
        self.path = path
        self.limits = limits
        self.stream: Stream | None = None
        self.outlet: Outlet | None = None

    def open(self, stream: Stream, guest: Guest | None) -> Outlet:
        """Start to write to a stream, and count the stream.

        :param guest: guest of the request; None if the stream does not count.
        :raises HandshakeError: if there are too many connections.
        """
        self.outlet = self._state.channels.outlet_of(stream, self, self.limits)
        self.stream = stream  # before the count: a counted stream may be ended at any time
        if guest is not None:
            self._state.admit_stream(stream, guest)
        return self.outlet

    @property
    def subject(self) -> _StreamOwner:
        """The object that signals name as the connection."""
        return self

    def too_slow(self) -> None:
        STREAM_LOG.too_slow(self.path, self.limits.send_buffer)
        if self.stream is not None:
            self.stream.abort()

    def write_drained(self) -> None:
        if self.outlet is not None:
            self.outlet.drained()

    def moved(self, transport: StreamTransport) -> None:
        if self.outlet is not None:
            self.outlet.transport = transport

    def ended(self) -> None:
        stream, self.stream = self.stream, None
        if stream is not None:
            self._state.stream_ended(stream)
        if self.outlet is not None:
            self.outlet.remove()


def stream_response(
    app: Flask,
    subscriptions: Iterable[tuple[str, Any]],
    *,
    told: Iterable[str] | None = None,
    heartbeat: float = 15.0,
    limits: Limits | None = None,
    guest: Guest | None = None,
) -> Response:
    """Answer the current request with a stream of the messages of some channels.

    The stream begins with the event ``streams``, then ``subscribed`` for each channel in order.
    The messages of each channel follow, from its position on. The stream lasts until the client
    leaves or the server stops; the request context ends before.

    :param app: the application, with :class:`~flask_sockets2.Sockets`.
    :param subscriptions: pairs of a channel, each once, and a position. The client receives the
        messages after the position, which may be any text that the client sent; None for new
        messages only.
    :param told: channels that ``streams`` names, if the client has named some twice; by default
        each once.
    :param heartbeat: seconds between two heartbeats.
    :param limits: limits of the stream, by default the application's. Only ``send_buffer``,
        ``send_timeout``, ``close_timeout``, ``slow_client`` and ``max_connection_age`` apply.
    :param guest: result of :func:`expect`, if the view has called it before.
    :raises werkzeug.exceptions.Forbidden: if the requesting page may not connect.
    :raises werkzeug.exceptions.NotAcceptable: if a browser wants a page, image or the like.
    :raises werkzeug.exceptions.ServiceUnavailable: 503 with ``Retry-After``, if the broker cannot
        be reached or there are too many connections; nothing stays subscribed.
    :raises werkzeug.exceptions.TooManyRequests: 429 with ``Retry-After``, if a rate limit or quota
        of the address or user is reached.
    :raises ValueError: if a channel's name is invalid, or occurs twice.
    """
    wanted = list(subscriptions)
    channels = [channel for channel, _ in wanted] if told is None else list(told)

    def fill(attach: Attach) -> bytes:
        head = [_told(event="streams", channels=channels)]
        for channel, since in wanted:
            begun = attach(channel, EVENTS, since)
            head.append(_told(event="subscribed", channel=channel, position=str(begun.position)))
        return b"".join(head)

    return answer(app, fill, heartbeat=heartbeat, limits=limits, guest=guest)


def expect(app: Flask, limits: Limits | None = None) -> Guest:
    """Check early whether the current request may have a stream, before expensive work.

    A HEAD request is checked as well, although it takes no place: its response is that of a GET
    (RFC 9110 §9.3.2), and may cost as much.

    :param limits: limits of the later stream, by default the application's.
    :returns: the guest, for :func:`answer` and :func:`stream_response`.
    :raises werkzeug.exceptions.HTTPException: 403, 406, 429 and 503 as :func:`stream_response`.
    """
    check_stream(app)  # first: requests from pages of other sites do not count
    with refusals():
        return state_of(app).expect(limits or read(Limits, app.config), _WHAT)


def answer(
    app: Flask,
    fill: Callable[[Attach], bytes],
    *,
    heartbeat: float,
    limits: Limits | None = None,
    guest: Guest | None = None,
) -> Response:
    """Answer the current request with a stream; see :func:`open_body`.

    :param guest: result of :func:`expect`; if None, this function calls it.
    :raises werkzeug.exceptions.HTTPException: 403, 406, 429 and 503 as :func:`stream_response`.
    """
    guest = guest or expect(app, limits)
    if request.method == "HEAD":  # no server reads its body
        return respond(())
    with refusals():
        body = open_body(
            state_of(app), request.environ, fill, heartbeat=heartbeat, limits=limits, guest=guest
        )
    return respond(body)


@contextmanager
def refusals() -> Iterator[None]:
    """Turn errors of the block into HTTP responses that refuse the stream."""
    try:
        yield
    except HandshakeError as exc:
        kind = TooManyRequests if exc.status == 429 else ServiceUnavailable
        raise kind(exc.description, retry_after=int(dict(exc.headers)["Retry-After"])) from exc
    except BrokerError as exc:
        state_of().seldom_log(logger).failure(
            "broker",
            "broker unavailable, told an event stream of %s to connect again: %s",
            request.url_rule,
            exc,
        )
        raise ServiceUnavailable(_NO_BROKER, retry_after=_RETRY_AFTER) from exc


def open_body(
    state: State,
    environ: Mapping[str, Any],
    fill: Callable[[Attach], bytes],
    *,
    heartbeat: float,
    beat: bytes = _HEARTBEAT,
    limits: Limits | None = None,
    guest: Guest | None = None,
) -> Body:
    """Return a body for a new stream; its first bytes come before all messages.

    :param environ: WSGI environ of the request.
    :param fill: subscribes the stream to its channels, and returns its first bytes.
    :param heartbeat: seconds between two heartbeats.
    :param beat: bytes of a heartbeat.
    :param guest: guest of the request; None if the stream has no client and does not count.
    :raises BrokerError: if the broker cannot be reached; nothing stays subscribed.
    :raises HandshakeError: if there are meanwhile too many connections.
    """
    limits = limits or read(Limits, state.app.config)
    client = _StreamOwner(state, environ["PATH_INFO"], limits)
    stream = Stream(
        environ,
        client,
        beat=beat,
        interval=heartbeat,
        send_timeout=limits.send_timeout,
        close_timeout=limits.close_timeout,
        budget=state.budget,
    )
    body = Body(stream)

    def attach(channel: str, encoding: Encoding, since: Any) -> Subscription:
        return state.channels.attach(outlet, channel, encoding, since, environ)

    try:
        outlet = client.open(stream, guest)
        stream.begin(fill(attach))
    except BaseException:
        stream.close()
        raise
    return body


def _told(**fields: Any) -> bytes:
    return event(json.dumps(fields, ensure_ascii=False).encode())


def respond(body: Iterable[bytes]) -> Response:
    """Return a ``text/event-stream`` response with header fields against buffering by proxies."""
    # direct_passthrough: our own handler needs the body itself.
    response = Response(body, content_type=_CONTENT_TYPE, direct_passthrough=True)
    # no-transform: a proxy that compresses the response would delay events.
    response.headers["Cache-Control"] = "no-cache, no-transform"
    response.headers["X-Accel-Buffering"] = "no"  # nginx would delay events
    return response
