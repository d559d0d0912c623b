"""Events as bytes on the wire, with the ids from which a stream resumes.

The id of an event names the position of each channel of its stream, in the order of the request.
``Last-Event-ID`` therefore holds everything that the server needs to resume the stream::

    event:greeting
    data:{"message": "Hello!"}
    id:9f86d081884c7d65-42,1f3870be274f6c49-7

In place of a position, ``start`` means the whole history, and ``-`` means a gap. A stream begins
with an id alone. If the publisher gave an event its own id, an id alone follows the event. A
browser dispatches no event without data, but remembers the id (WHATWG HTML §9.2.6). The page
therefore reads the publisher's id, and the browser reconnects with the positions.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence

from ..application.signing import START
from ..brokers.base import JSON, NOWHERE, Position
from ..brokers.base import TEXT as TEXT_KIND
from ..brokers.base import Message as Published
from ..channels.publisher import Dumps, check_channel
from ..fanout.encoding import GAP
from .message import Fields, Message, lines_of

__all__ = [
    "PREFIX",
    "START",
    "Bodies",
    "Lines",
    "One",
    "Several",
    "channel_of",
    "id_of",
    "message_of",
    "name_of",
    "positions_of",
    "prefix_of",
]

logger = logging.getLogger("flask_sockets2.sse")

PREFIX = "sse:"
"""Prefix of the channels, so that a client cannot name a channel of Turbo or of the application.

The channels of a further blueprint have its name in the prefix, see :func:`prefix_of`.
"""

_NOTHING = Fields(b"", b"", b"")


def prefix_of(blueprint: str) -> str:
    """Return the prefix of a blueprint's channels: no two blueprints share a channel.

    :param blueprint: name of the blueprint, ``""`` for the main one.
    """
    if not blueprint:
        return PREFIX
    return f"sse.{blueprint.replace('%', '%25').replace(':', '%3A')}:"


def channel_of(name: str, blueprint: str = "") -> str:
    """Return the broker's channel for the name that a page or a view uses.

    :param blueprint: as for :func:`prefix_of`.
    :raises TypeError: if the name is not text.
    :raises ValueError: if the name is empty or too long.
    """
    if not (isinstance(name, str) and name):
        check_channel(name)  # raises; its reserved names cannot clash, thanks to the prefix
    return check_channel(prefix_of(blueprint) + name)


def name_of(channel: str) -> str:
    """Return the name of a channel, without a blueprint's prefix."""
    return channel.partition(":")[2]


def id_of(positions: Sequence[object]) -> str:
    """Return the event id for positions, one for each channel of a stream."""
    return ",".join(map(str, positions))


def positions_of(id: str, number: int) -> list[str] | None:
    """Return the positions of a last event id, or None if the id is a publisher's own.

    :param id: id as the client sent it.
    :param number: number of channels; an id with another number belongs to another stream.
    """
    if id == START:
        return [START] * number
    parts = id.split(",")
    if not all(map(_is_position, parts)):
        return None
    return parts if len(parts) == number else [str(NOWHERE)] * number


def is_id(id: object, number: int) -> bool:
    """Return whether an id given by the program fits a stream with this number of channels."""
    if id == START:
        return True
    parts = id.split(",") if isinstance(id, str) else []
    return len(parts) == number and all(map(_is_position, parts))


def _is_position(part: str) -> bool:
    return part in (START, str(NOWHERE)) or Position.parse(part) is not None


def message_of(published: Published) -> Message:
    """Return the event for a broker's message; a gap becomes an event, too.

    :raises ValueError: if the message cannot be an event.
    """
    if published.event == GAP:
        return Message({"channel": name_of(published.channel)}, type=GAP)
    if published.kind == JSON:
        return Message.of_payload(published.data)
    if published.kind == TEXT_KIND:
        return Message(published.data.decode())
    raise ValueError("bytes are no event; publish text or what becomes JSON")


class Bodies:
    """Encodes the lines of an event once for all streams, except the id from which they resume.

    :param dumps: function that serializes JSON as the application does.
    """

    def __init__(self, dumps: Dumps) -> None:
        self._dumps = dumps

    def of(self, published: Published) -> Fields:
        """Return the lines of an event; empty if the message is not for streams."""
        made: Fields | None = published.encoded.get(self)
        if made is None:
            made = published.encoded[self] = self._make(published)
        return made

    def _make(self, published: Published) -> Fields:
        if published.event and published.event != GAP:  # a join or leave
            return _NOTHING
        try:
            return message_of(published).fields(self._dumps)
        except (ValueError, RecursionError) as exc:  # from another program; other events must go on
            logger.error("a message of channel %.200r cannot be sent: %s", published.channel, exc)
            return _NOTHING


class One:
    """The encoding for streams of one channel: all streams share the bytes of an event."""

    presence = False

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies

    def encode(self, message: Published) -> bytes:
        made: bytes | None = message.encoded.get(self)
        if made is None:
            id = None if _has_no_place(message) else str(message.position)
            made = message.encoded[self] = _event(self._bodies.of(message), id)
        return made


class Several:
    """The encoding for one stream of several channels, which tracks the positions sent so far.

    :param positions: position of each channel that the client has seen, in the channels' order.
    """

    presence = False

    def __init__(self, bodies: Bodies, channels: Sequence[str], positions: Sequence[str]) -> None:
        self._bodies = bodies
        self._places = {channel: place for place, channel in enumerate(channels)}
        self._positions = list(positions)

    def encode(self, message: Published) -> bytes:
        """Return the bytes of an event; called once for each event, in the order of sending."""
        fields = self._bodies.of(message)
        if _has_no_place(message):
            return _event(fields, None)
        self._positions[self._places[message.channel]] = str(message.position)
        return _event(fields, ",".join(self._positions))


class Lines:
    """The encoding for :meth:`ServerSentEventsBlueprint.messages`: one line of JSON each."""

    presence = False

    def __init__(self, dumps: Dumps) -> None:
        self._dumps = dumps

    def encode(self, message: Published) -> bytes:
        if message.event and message.event != GAP:
            return b""
        try:
            text = self._dumps(message_of(message).to_dict())
        except (ValueError, RecursionError) as exc:
            logger.error("a message of channel %.200r cannot be read: %s", message.channel, exc)
            return b""
        return json.dumps(json.loads(text)).encode() + b"\n"


def _has_no_place(message: Published) -> bool:
    """Whether a message is in no history, so that no stream can resume after it."""
    return message.transient and message.event != GAP


def _event(fields: Fields, id: str | None) -> bytes:
    body, own, retry = fields
    if not body:
        return b""
    resume = b"" if id is None else lines_of("id", id).encode()
    if own and resume:
        return b"".join((body, own, retry, b"\n", resume, b"\n"))
    return b"".join((body, own, resume, retry, b"\n"))
