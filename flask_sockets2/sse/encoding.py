"""Events on the wire, and the ids by which a stream goes on where it was.

The id of an event names the position of each channel of its stream, in the order in which they
were asked for, so that ``Last-Event-ID`` says all that there is to resume::

    event:greeting
    data:{"message": "Hello!"}
    id:9f86d081884c7d65-42,1f3870be274f6c49-7

In place of a position there may be ``start``, all that is kept, and ``-``, which is lost. A stream
begins with its id alone, and an event with an id of its publisher's is followed by one: a browser
dispatches no event without data, but remembers its id (WHATWG HTML §9.2.6). So the page sees the
publisher's id, and the browser comes back with the positions.
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
"""Of the channels: whoever may name one reaches none of Turbo's or of the application's own.

Those of a further blueprint have its name in it, see :func:`prefix_of`.
"""

_NOTHING = Fields(b"", b"", b"")


def prefix_of(blueprint: str) -> str:
    """Return the prefix of a blueprint's channels: no two blueprints share a channel.

    :param blueprint: its name where the application has several, ``""`` for the main one.
    """
    if not blueprint:
        return PREFIX
    return f"sse.{blueprint.replace('%', '%25').replace(':', '%3A')}:"


def channel_of(name: str, blueprint: str = "") -> str:
    """Return the channel of the broker.

    :param blueprint: as for :func:`prefix_of`.
    :raises TypeError: when the name is no text.
    :raises ValueError: when it is empty or too long.
    """
    if not (isinstance(name, str) and name):
        check_channel(name)  # which says so; what it reserves is none of ours, by the prefix
    return check_channel(prefix_of(blueprint) + name)


def name_of(channel: str) -> str:
    """Return the name of a channel, without the prefix of any blueprint."""
    return channel.partition(":")[2]


def id_of(positions: Sequence[object]) -> str:
    """Return the id that names positions, one for each channel of a stream."""
    return ",".join(map(str, positions))


def positions_of(id: str, number: int) -> list[str] | None:
    """Return the positions of a last event id, None where it is a publisher's own.

    :param id: as it came from a client.
    :param number: of channels; an id of another number of them is of another stream.
    """
    if id == START:
        return [START] * number
    parts = id.split(",")
    if not all(map(_is_position, parts)):
        return None
    return parts if len(parts) == number else [str(NOWHERE)] * number


def is_id(id: object, number: int) -> bool:
    """Tell whether a program's last event id is one of a stream of so many channels."""
    if id == START:
        return True
    parts = id.split(",") if isinstance(id, str) else []
    return len(parts) == number and all(map(_is_position, parts))


def _is_position(part: str) -> bool:
    return part in (START, str(NOWHERE)) or Position.parse(part) is not None


def message_of(published: Published) -> Message:
    """Return what was published to a channel; a gap is an event, too.

    :raises ValueError: when it can be no event.
    """
    if published.event == GAP:
        return Message({"channel": name_of(published.channel)}, type=GAP)
    if published.kind == JSON:
        return Message.of_payload(published.data)
    if published.kind == TEXT_KIND:
        return Message(published.data.decode())
    raise ValueError("bytes are no event; publish text or what becomes JSON")


class Bodies:
    """The lines of events, all but the id that resumes; made once for all streams.

    :param dumps: makes JSON as the application does.
    """

    def __init__(self, dumps: Dumps) -> None:
        self._dumps = dumps

    def of(self, published: Published) -> Fields:
        """Return the lines of an event; none where it is not for streams."""
        made: Fields | None = published.encoded.get(self)
        if made is None:
            made = published.encoded[self] = self._make(published)
        return made

    def _make(self, published: Published) -> Fields:
        if published.event and published.event != GAP:  # who joins and leaves
            return _NOTHING
        try:
            return message_of(published).fields(self._dumps)
        except (ValueError, RecursionError) as exc:  # another program's; the others must not suffer
            logger.error("a message of channel %.200r cannot be sent: %s", published.channel, exc)
            return _NOTHING


class One:
    """The encoding of streams of one channel: the bytes of an event are the same for all."""

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
    """The encoding of one stream of several channels, which notes what it has sent.

    :param positions: of its channels, in their order: what its client has seen.
    """

    presence = False

    def __init__(self, bodies: Bodies, channels: Sequence[str], positions: Sequence[str]) -> None:
        self._bodies = bodies
        self._places = {channel: place for place, channel in enumerate(channels)}
        self._positions = list(positions)

    def encode(self, message: Published) -> bytes:
        """Return the bytes of an event; called once for each, in the order in which they go."""
        fields = self._bodies.of(message)
        if _has_no_place(message):
            return _event(fields, None)
        self._positions[self._places[message.channel]] = str(message.position)
        return _event(fields, ",".join(self._positions))


class Lines:
    """The encoding for :meth:`ServerSentEventsBlueprint.messages`: a line of JSON for each."""

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
    """Whether it is in no history, so that there is nothing to resume at."""
    return message.transient and message.event != GAP


def _event(fields: Fields, id: str | None) -> bytes:
    body, own, retry = fields
    if not body:
        return b""
    resume = b"" if id is None else lines_of("id", id).encode()
    if own and resume:
        return b"".join((body, own, retry, b"\n", resume, b"\n"))
    return b"".join((body, own, resume, retry, b"\n"))
