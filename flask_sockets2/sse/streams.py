"""Channels as event streams: publish events, answer requests, resume streams."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from flask import Response, request

from ..admission.guests import Guest
from ..application.event_stream import Attach, answer, open_body
from ..application.signing import not_before
from ..brokers.base import NOWHERE, Position
from ..channels.publisher import Publisher, json_of
from ..connection.limits import Limits
from ..exceptions import BrokerError
from ..settings import read
from .access import Permission
from .encoding import Several, channel_of, id_of, message_of, positions_of
from .message import Message
from .settings import Settings, Site

if TYPE_CHECKING:
    from .interop import Interop

__all__ = ["last_event_id", "messages", "position", "publish", "respond", "since"]

logger = logging.getLogger("flask_sockets2.sse")

# A slow client is disconnected, reconnects by itself and resumes. If messages were dropped instead,
# the ids of a stream of several channels would name messages that were never sent.
_POLICY = "disconnect"

_START_OF_ADDRESS = "last_event_id"


def publish(site: Site, blueprint: str, name: str, message: Message) -> int:
    """Publish an event; see :meth:`ServerSentEventsBlueprint.publish`.

    :param blueprint: as for :func:`~flask_sockets2.sse.encoding.prefix_of`; here and below.
    """
    channel = channel_of(name, blueprint)
    # Refuses an event that no stream could send.
    message.fields(lambda data: json_of(data, site.dumps, f"channel {name!r:.200}"))
    publisher, interop = site.state.publisher, _interop(site, blueprint)
    if publisher.publish(channel, message.to_dict()) is NOWHERE:
        return 0  # not published; the publisher has logged the failure
    counting = [partial(publisher.subscribers, channel)]
    if interop is not None:
        counting.append(partial(interop.publish, name, message))
    receivers = 0
    for count in counting:
        try:
            receivers += count()
        except BrokerError as exc:  # published: an error would invite a second publish
            logger.error("an event was published, but not to all or not counted: %s", exc)
    return receivers


def respond(
    site: Site, blueprint: str, permission: Permission, seen: str, guest: Guest | None
) -> Response:
    """Return a response that streams some channels to the current client.

    :param permission: channels that the client may stream.
    :param seen: last event id that the client has seen; if empty, the stream begins now, or at the
        earliest position of a signed URL.
    :param guest: guest from :func:`~flask_sockets2.application.event_stream.expect`.
    :raises werkzeug.exceptions.ServiceUnavailable: as
        :func:`~flask_sockets2.application.event_stream.stream_response`.
    """
    names, earliest = permission
    channels = [channel_of(name, blueprint) for name in names]
    settings = read(Settings, site.app.config)

    def fill(attach: Attach) -> bytes:
        since = _since(site.state.publisher, channels, seen)
        if earliest is not None:
            since = _not_before(site, since, earliest)
        if len(channels) == 1:
            begun = attach(channels[0], site.one, since[0] if since else None)
            first = id_of(since or [begun.position])
        else:
            # Set before the first event, since each event id names all positions.
            since = since or list(map(str, site.state.publisher.positions(channels)))
            encoding = Several(site.bodies, channels, since)
            for channel, position in zip(channels, since, strict=True):
                attach(channel, encoding, position)
            first = id_of(since)
        _want(site, blueprint, names)
        return b"%bid:%b\n\n" % (settings.jittered_retry(), first.encode())

    limits = replace(read(Limits, site.app.config), slow_client=_POLICY)
    return answer(site.app, fill, heartbeat=settings.heartbeat, limits=limits, guest=guest)


def messages(site: Site, blueprint: str, name: str) -> Iterator[Message]:
    """Yield the messages of a channel; see :meth:`ServerSentEventsBlueprint.messages`."""
    channel = channel_of(name, blueprint)

    def fill(attach: Attach) -> bytes:
        attach(channel, site.lines, None)
        _want(site, blueprint, [name])
        return b""

    body = open_body(
        site.state,
        {"PATH_INFO": f"messages of {name}"},
        fill,
        heartbeat=read(Settings, site.app.config).heartbeat,
        beat=b"\n",
    )  # no guest: the request that consumes the messages is counted by its own response
    rest = b""
    try:
        for data in body:
            *lines, rest = (rest + data).split(b"\n")
            for line in filter(None, lines):
                yield Message.of_payload(line)
    finally:
        body.close()


def _interop(site: Site, blueprint: str) -> Interop | None:
    """Return the exchange with Flask-SSE's programs, which only the main blueprint has."""
    return None if blueprint else site.interop


def _want(site: Site, blueprint: str, names: Sequence[str]) -> None:
    """Request Flask-SSE's events for a stream that begins."""
    interop = _interop(site, blueprint)
    if interop is not None:
        interop.want(names)


# -- resuming a stream -------------------------------------------------------------------------


def last_event_id() -> str:
    """Return the last event id that the client of the current request has seen.

    The header is always the newest. A client without the header appends the id to the query of its
    URL: as ``lastEventId`` in event-source-polyfill and reconnecting-eventsource, as
    ``lastEventID`` in clients of Mercure. Each of these spellings takes precedence over
    ``last_event_id`` of :meth:`ServerSentEventsBlueprint.url`. The last of several values counts.
    """
    header = request.headers.get("Last-Event-ID")
    if header:
        # A browser sends UTF-8, which WSGI decodes as Latin-1 (PEP 3333).
        return header.encode("latin-1", "replace").decode("utf-8", "replace")
    begun, seen = "", ""
    for name, value in request.args.items(multi=True):
        if name == _START_OF_ADDRESS:
            begun = value or begun
        elif name.lower().replace("-", "").replace("_", "") == "lasteventid":
            seen = value or seen
    return seen or begun


def position(site: Site, blueprint: str, names: Sequence[str], last: int) -> str:
    """Return the position of channels; see :meth:`ServerSentEventsBlueprint.position`."""
    channels = [channel_of(name, blueprint) for name in names]
    publisher = site.state.publisher

    def ask() -> list[Position]:
        if last:
            return [_before_last(publisher, channel, last) for channel in channels]
        return publisher.positions(channels)

    return id_of(site.state.channels.for_page(len(channels), ask))


def _before_last(publisher: Publisher, channel: str, number: int) -> Position:
    """Return the position before the last messages, or before all of a shorter history."""
    history = publisher.broker.history(channel, None)
    newest = list(history.messages)[-number:]
    if not newest:
        return history.position
    epoch, offset = newest[0].position
    return Position(epoch, offset - 1)


def since(site: Site, blueprint: str, names: Sequence[str], seen: str) -> list[str]:
    """Return the positions for a page's signed URL, from the event id at which the page begins."""
    channels = [channel_of(name, blueprint) for name in names]
    publisher = site.state.publisher

    def ask() -> Sequence[object]:
        return _since(publisher, channels, seen) or publisher.positions(channels)

    known = positions_of(seen, len(channels)) if seen else None
    return known or list(map(str, site.state.channels.for_page(len(channels), ask)))


def _not_before(site: Site, since: Sequence[str], earliest: Sequence[str]) -> list[str]:
    one_log = site.state.one_log
    return [
        not_before(position, first, one_log=one_log)
        for position, first in zip(since or earliest, earliest, strict=True)
    ]


def _since(publisher: Publisher, channels: Sequence[str], seen: str) -> list[str]:
    """Return the positions of a last event id, or an empty list if there is no id.

    A publisher's own id is searched in each channel's history; a channel without the id has a gap.
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
        except ValueError:  # from another program
            continue
        if own is not None and str(own) == id:
            return str(published.position)
    return str(NOWHERE)
