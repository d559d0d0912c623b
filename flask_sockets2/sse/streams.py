"""Channels as streams of events: publish, respond, and where a stream goes on."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from flask import Response, request

from ..brokers.base import Position
from ..event_stream import Attach, answer, open_body
from ..exceptions import BrokerError
from ..guests import Guest
from ..publisher import Publisher
from ..settings import limits_of
from .encoding import LOST, Several, channel_of, id_of, message_of, positions_of
from .message import Message
from .settings import Site, settings_of

__all__ = ["last_event_id", "messages", "position", "publish", "respond"]

logger = logging.getLogger("flask_sockets2.sse")

# Who is too slow comes back by itself and goes on where it was. Under the other policies a history
# that is longer than SOCKETS_SEND_BUFFER would be too much at once, each time.
_POLICY = "disconnect"


def publish(site: Site, name: str, message: Message) -> int:
    """Publish an event; see :meth:`ServerSentEventsBlueprint.publish`."""
    channel = channel_of(name)
    message.fields(site.dumps)  # what no stream could send is refused here
    channels, interop = site.state.channels, site.interop
    channels.publish(channel, message.to_dict())
    counting = [partial(channels.subscribers, channel)]
    if interop is not None:
        counting.append(partial(interop.publish, name, message))
    receivers = 0
    for count in counting:
        try:
            receivers += count()
        except BrokerError as exc:  # it is published, so that nobody must do it once more
            logger.error("an event was published, but not to all or not counted: %s", exc)
    return receivers


def respond(site: Site, names: Sequence[str], seen: str, guest: Guest | None) -> Response:
    """Answer the current request with what is published to some channels.

    :param seen: the last event id that the client has seen; empty for what comes from now on.
    :param guest: of :func:`~flask_sockets2.event_stream.expect`.
    :raises werkzeug.exceptions.ServiceUnavailable: as
        :func:`~flask_sockets2.event_stream.stream_response`.
    """
    channels = [channel_of(name) for name in names]
    settings = settings_of(site.app.config)

    def fill(attach: Attach) -> bytes:
        since = _since(site.state.channels, channels, seen)
        if len(channels) == 1:
            begun = attach(channels[0], site.one, since[0] if since else None)
            first = id_of(since or [begun.position])
        else:
            # Known before anything is sent, since each event names the positions of all.
            since = since or list(map(str, site.state.channels.positions(channels)))
            encoding = Several(site.bodies, channels, since)
            for channel, position in zip(channels, since, strict=True):
                attach(channel, encoding, position)
            first = id_of(since)
        _want(site, names)
        return b"%bid:%b\n\n" % (settings.jittered_retry(), first.encode())

    limits = replace(limits_of(site.app.config, {}), slow_client=_POLICY)
    return answer(site.app, fill, heartbeat=settings.heartbeat, limits=limits, guest=guest)


def messages(site: Site, name: str) -> Iterator[Message]:
    """Yield what is published; see :meth:`ServerSentEventsBlueprint.messages`."""
    channel = channel_of(name)

    def fill(attach: Attach) -> bytes:
        attach(channel, site.lines, None)
        _want(site, [name])
        return b""

    body = open_body(
        site.state,
        {"PATH_INFO": f"messages of {name}"},
        fill,
        heartbeat=settings_of(site.app.config).heartbeat,
        beat=b"\n",
    )  # without a guest: whom the messages are for, is counted where its request is answered
    rest = b""
    try:
        for data in body:
            *lines, rest = (rest + data).split(b"\n")
            for line in filter(None, lines):
                yield Message.of_payload(line)
    finally:
        body.close()


def _want(site: Site, names: Sequence[str]) -> None:
    """Have what Flask-SSE's programs publish reach a stream that begins."""
    interop = site.interop
    if interop is not None:
        interop.want(names)


# -- where a stream goes on --------------------------------------------------------------------


def last_event_id() -> str:
    """Return what the client of the current request has seen last; the header is the newer."""
    header = request.headers.get("Last-Event-ID")
    if header:
        # A browser sends UTF-8, and WSGI has it as Latin-1 (PEP 3333).
        return header.encode("latin-1", "replace").decode("utf-8", "replace")
    return request.args.get("last_event_id", "")


def position(site: Site, names: Sequence[str], last: int) -> str:
    """Return where channels are; see :meth:`ServerSentEventsBlueprint.position`."""
    channels = [channel_of(name) for name in names]
    publisher = site.state.channels
    try:
        if last:
            return id_of([_before_last(publisher, channel, last) for channel in channels])
        return id_of(publisher.positions(channels))
    except BrokerError as exc:
        logger.error("a page has no positions, and its stream begins with a gap: %s", exc)
        return id_of([LOST] * len(channels))


def _before_last(publisher: Publisher, channel: str, number: int) -> Position:
    """Return the position after which there are so many messages, or as many as are kept."""
    history = publisher.broker.history(channel, None)
    newest = list(history.messages)[-number:]
    if not newest:
        return history.position
    epoch, offset = newest[0].position
    return Position(epoch, offset - 1)


def _since(publisher: Publisher, channels: Sequence[str], seen: str) -> list[str]:
    """Return the positions of a last event id, none where there is no id.

    One that its publisher gave is looked for in what is kept; what else the stream has is lost.
    """
    if not seen:
        return []
    found = positions_of(seen, len(channels))
    if found is not None:
        return found
    return [_position_of(publisher, channel, seen) for channel in channels]


def _position_of(publisher: Publisher, channel: str, id: str) -> str:
    for published in reversed(publisher.broker.history(channel, None).messages):
        try:
            own = message_of(published).to_dict().get("id")
        except ValueError:  # another program's
            continue
        if own is not None and str(own) == id:
            return str(published.position)
    return LOST
