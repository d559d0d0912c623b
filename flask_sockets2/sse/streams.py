"""Channels as streams of events: publish, respond, and where a stream goes on."""

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

# Who is too slow comes back by itself and goes on where it was. Where something may be dropped, the
# ids of a stream of several channels would name what was not sent.
_POLICY = "disconnect"

_START_OF_ADDRESS = "last_event_id"


def publish(site: Site, blueprint: str, name: str, message: Message) -> int:
    """Publish an event; see :meth:`ServerSentEventsBlueprint.publish`.

    :param blueprint: as for :func:`~flask_sockets2.sse.encoding.prefix_of`; here and below.
    """
    channel = channel_of(name, blueprint)
    # What no stream could send is refused here.
    message.fields(lambda data: json_of(data, site.dumps, f"channel {name!r:.200}"))
    publisher, interop = site.state.publisher, _interop(site, blueprint)
    if publisher.publish(channel, message.to_dict()) is NOWHERE:
        return 0  # it was not published, and that is logged
    counting = [partial(publisher.subscribers, channel)]
    if interop is not None:
        counting.append(partial(interop.publish, name, message))
    receivers = 0
    for count in counting:
        try:
            receivers += count()
        except BrokerError as exc:  # it is published, so that nobody must do it once more
            logger.error("an event was published, but not to all or not counted: %s", exc)
    return receivers


def respond(
    site: Site, blueprint: str, permission: Permission, seen: str, guest: Guest | None
) -> Response:
    """Answer the current request with what is published to some channels.

    :param permission: to have them.
    :param seen: the last event id that the client has seen; empty for what comes from now on, or
        from the earliest position that a signed address permits.
    :param guest: of :func:`~flask_sockets2.application.event_stream.expect`.
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
            # Known before anything is sent, since each event names the positions of all.
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
    """Yield what is published; see :meth:`ServerSentEventsBlueprint.messages`."""
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
    )  # without a guest: whom the messages are for, is counted where its request is answered
    rest = b""
    try:
        for data in body:
            *lines, rest = (rest + data).split(b"\n")
            for line in filter(None, lines):
                yield Message.of_payload(line)
    finally:
        body.close()


def _interop(site: Site, blueprint: str) -> Interop | None:
    """Return what speaks with Flask-SSE's programs, which know no channel but the main one's."""
    return None if blueprint else site.interop


def _want(site: Site, blueprint: str, names: Sequence[str]) -> None:
    """Have what Flask-SSE's programs publish reach a stream that begins."""
    interop = _interop(site, blueprint)
    if interop is not None:
        interop.want(names)


# -- where a stream goes on --------------------------------------------------------------------


def last_event_id() -> str:
    """Return the last event id that the client of the current request has seen.

    The header is the newest. A client that sends no header puts the id into the query, behind what
    its address has: ``lastEventId`` is the name in event-source-polyfill and
    reconnecting-eventsource, ``lastEventID`` in clients of Mercure. So each spelling counts before
    ``last_event_id``, with which an address of :meth:`ServerSentEventsBlueprint.url` begins, and of
    several values the last one.
    """
    header = request.headers.get("Last-Event-ID")
    if header:
        # A browser sends UTF-8, and WSGI has it as Latin-1 (PEP 3333).
        return header.encode("latin-1", "replace").decode("utf-8", "replace")
    begun, seen = "", ""
    for name, value in request.args.items(multi=True):
        if name == _START_OF_ADDRESS:
            begun = value or begun
        elif name.lower().replace("-", "").replace("_", "") == "lasteventid":
            seen = value or seen
    return seen or begun


def position(site: Site, blueprint: str, names: Sequence[str], last: int) -> str:
    """Return where channels are; see :meth:`ServerSentEventsBlueprint.position`."""
    channels = [channel_of(name, blueprint) for name in names]
    publisher = site.state.publisher

    def ask() -> list[Position]:
        if last:
            return [_before_last(publisher, channel, last) for channel in channels]
        return publisher.positions(channels)

    return id_of(site.state.channels.for_page(len(channels), ask))


def _before_last(publisher: Publisher, channel: str, number: int) -> Position:
    """Return the position after which there are so many messages, or as many as are kept."""
    history = publisher.broker.history(channel, None)
    newest = list(history.messages)[-number:]
    if not newest:
        return history.position
    epoch, offset = newest[0].position
    return Position(epoch, offset - 1)


def since(site: Site, blueprint: str, names: Sequence[str], seen: str) -> list[str]:
    """Return the positions of a last event id that a page begins with, for its signed address."""
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
    return str(NOWHERE)
