"""Server-Sent Events (WHATWG HTML §9.2) over channels, as a response of any WSGI server.

A stream is the same for its channels as a WebSocket that resumes: each event is one of the JSON
envelopes of ``fanout/encoding.py``, in a ``data`` field and without a type. It is encoded once for
all clients::

    data: {"event": "streams", "channels": ["news"]}

    data: {"event": "subscribed", "channel": "news", "position": "9f86d081884c7d65-41"}

    data: {"channel": "news", "position": "9f86d081884c7d65-42", "data": "hello"}

    :

The last is a heartbeat, a comment. It keeps routers from cutting the connection, and finds peers
that have left without a word.

Under our own handler a stream costs no greenlet and ends as soon as its peer leaves. Everywhere
else the server gives it a greenlet or a thread for as long as it lasts.
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
    """Return an event that has nothing but data (WHATWG HTML §9.2.6).

    :param data: UTF-8, of any number of lines; it arrives with LF between them. That of JSON is
        one line, unless whoever published it has set it in several.
    """
    if b"\n" in data or b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\ndata: ")
    return b"data: %b\n\n" % data


class Events:
    """The encoding of envelopes as events; the one there is, is :data:`EVENTS`."""

    __slots__ = ()

    presence = False

    def encode(self, message: Message) -> bytes:
        """Return the event of a message, made once; empty where it is not for such clients."""
        made: bytes | None = message.encoded.get(self)
        if made is None:
            made = message.encoded[self] = self._make(message)
        return made

    @staticmethod
    def _make(message: Message) -> bytes:
        if message.event and message.event != GAP:  # who joins and leaves
            return b""
        try:
            return event(_ENVELOPES.text(message).encode())
        except ValueError:  # another program's: no UTF-8; the others must not suffer for it
            logger.exception("a message of channel %.200r cannot be sent", message.channel)
            return b""


EVENTS = Events()
"""The encoding that all streams share."""


class _StreamOwner:
    """Who writes to one stream: the owner of its outlet.

    :ivar path: of its request.
    """

    __slots__ = ("_state", "limits", "outlet", "path", "stream")

    def __init__(self, state: State, path: str, limits: Limits) -> None:
        self._state = state
        self.path = path
        self.limits = limits
        self.stream: Stream | None = None
        self.outlet: Outlet | None = None

    def open(self, stream: Stream, guest: Guest | None) -> Outlet:
        """Write to a stream from now on.

        :param guest: of its request, None where it is not counted.
        :raises HandshakeError: when there is no room for it.
        """
        self.outlet = self._state.channels.outlet_of(stream, self, self.limits)
        self.stream = stream  # before it is counted, for then it may be ended at any time
        if guest is not None:
            self._state.admit_stream(stream, guest)
        return self.outlet

    @property
    def subject(self) -> _StreamOwner:
        """What signals name as the connection."""
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
    """Answer the current request with a stream of what is published to some channels.

    It begins with ``streams``, then comes ``subscribed`` for each channel, in their order, then
    what each channel brings from its position on. It lasts until its client leaves or the server
    stops; the request context does not.

    :param app: the application, with :class:`~flask_sockets2.Sockets`.
    :param subscriptions: channels that the client may have, each once, and the position that it
        has seen everything of the channel up to: text of its own, whatever it is; None for what
        comes from now on.
    :param told: channels that ``streams`` names, for a client that has asked for some twice; by
        default each once.
    :param heartbeat: seconds between two heartbeats.
    :param limits: of which ``send_buffer``, ``send_timeout``, ``close_timeout``, ``slow_client``
        and ``max_connection_age`` hold; by default the application's.
    :param guest: of :func:`expect`, for a view that does more before this.
    :raises werkzeug.exceptions.Forbidden: when a page asks that may not connect.
    :raises werkzeug.exceptions.NotAcceptable: when a browser asks for something to show.
    :raises werkzeug.exceptions.ServiceUnavailable: 503 with ``Retry-After``, when the broker
        cannot be reached or there are too many connections; nothing stays subscribed.
    :raises werkzeug.exceptions.TooManyRequests: 429 with ``Retry-After``, when there are too many
        of its address or user.
    :raises ValueError: when a channel is no name of one, or comes twice.
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
    """See whether the current request may have a stream, before what it asks for costs anything.

    One by HEAD is asked the same, though it takes no place: its answer is that of a GET (RFC 9110
    §9.3.2), and to find that out may cost as much.

    :param limits: that the stream will have, by default the application's.
    :returns: for :func:`answer` and :func:`stream_response`.
    :raises werkzeug.exceptions.HTTPException: 403, 406, 429 and 503 as :func:`stream_response`.
    """
    check_stream(app)  # first: a request of a page of another site does not count
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

    :param guest: of :func:`expect`; without it that is asked here.
    :raises werkzeug.exceptions.HTTPException: 403, 406, 429 and 503 as :func:`stream_response`.
    """
    guest = guest or expect(app, limits)
    if request.method == "HEAD":  # its body is never asked for
        return respond(())
    with refusals():
        body = open_body(
            state_of(app), request.environ, fill, heartbeat=heartbeat, limits=limits, guest=guest
        )
    return respond(body)


@contextmanager
def refusals() -> Iterator[None]:
    """Answer the current request with why it has no stream, where the block says so."""
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
    """Subscribe a new stream, and let how that began come before all that it brings.

    :param environ: WSGI environ of its request.
    :param fill: subscribes it to what it is to have, and returns its first bytes.
    :param heartbeat: seconds between two heartbeats.
    :param beat: bytes of one.
    :param guest: of its request; None where it is no client's, and is not counted.
    :raises BrokerError: when the broker cannot be reached; nothing stays subscribed.
    :raises HandshakeError: when there is no room for it any more.
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
    """Return a response of ``text/event-stream`` with what keeps it from being held back."""
    # Passed through, so that our own handler is given the body itself.
    response = Response(body, content_type=_CONTENT_TYPE, direct_passthrough=True)
    # Nobody on the way may compress it, for that keeps events back.
    response.headers["Cache-Control"] = "no-cache, no-transform"
    response.headers["X-Accel-Buffering"] = "no"  # of nginx; it would keep events back
    return response
