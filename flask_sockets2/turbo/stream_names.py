"""Names of streams: the channels that they are, and how a page carries them.

=========================  ======================================================================
channel                    who gets it
=========================  ======================================================================
``turbo:all``              every page; anybody may have it, so its name is never signed
``turbo:user:<id>``        the pages of one user
``turbo:stream:<name>``    the pages with ``{{ turbo.stream_from(…) }}`` of that name
=========================  ======================================================================

A signed name is a permission, until ``TURBO_STREAM_MAX_AGE`` seconds (86,400; None for any age)
after the page was made: for the user or the session that it is bound to, else for any client. Names
are readable, so no secrets belong in them. What is signed is the channel, the earliest position
that the page may ask for and, if the name is bound to a user or a session, a hash of that::

    ["turbo:stream:room:5", "9f86d081884c7d65-42", "uXp3…"]

A page whose name is too old takes a new one from its server. The new name begins at a later
position than the page, so the page keeps the old one with it, ``<new>~<old>``: the new one permits
the stream, the old one says from where on.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple
from uuid import UUID

from flask import Flask

from ..admission.disconnects import id_text, user_text
from ..application.signing import SESSION, Forged, InvalidName, Plain, Signer
from ..brokers.base import NOWHERE, Position
from ..channels.publisher import check_channel
from ..settings import read
from .settings import TurboSettings

__all__ = [
    "ALL",
    "USER",
    "Part",
    "StreamPermission",
    "StreamSigner",
    "is_user",
    "parts_of_channel",
    "stream_channel",
    "stream_name",
    "stream_parts",
    "user_channel",
]

Part = str | int | UUID
"""What the name of a stream is made of."""

ALL = "turbo:all"
USER = "turbo:user"
"""In place of a signed name, where there is no key to sign with: the user of the connection."""

_USER = "turbo:user:"
_STREAM = "turbo:stream:"
_SALT = "flask_sockets2.turbo.stream"
_ELEMENT = '<turbo-stream-from name="'
_NAME = re.compile(f"(?<={_ELEMENT})[A-Za-z0-9_.-]+")
_AND = "~"  # between a new name and the old one that it renews; in no signed name


def stream_name(*parts: Part) -> str:
    """Return the name of a stream; different parts make different names.

    :param parts: texts, whole numbers and UUIDs; ``5`` and ``"5"`` are the same.
    :raises TypeError: when there are none, or others.

    ::

        stream_name("room", room.id)
    """
    if not parts:
        raise TypeError('a stream needs a name, as ("room", room.id)')
    return ":".join(map(_escaped, parts))


def _escaped(part: Any) -> str:
    text = id_text(part)
    if text is None:
        raise TypeError(
            f"a part of a stream's name is a str, an int or a UUID, got {type(part).__name__}; "
            "use an id of it, as in ('room', room.id)"
        )
    return text.replace("%", "%25").replace(":", "%3A")


def stream_parts(name: str) -> tuple[str, ...]:
    """Return the parts of a name, as texts."""
    return tuple(part.replace("%3A", ":").replace("%25", "%") for part in name.split(":"))


def stream_channel(*parts: Part) -> str:
    """Return the channel of a stream.

    :raises TypeError: as :func:`stream_name`.
    :raises ValueError: when the name is too long for a channel.
    """
    return check_channel(_STREAM + stream_name(*parts))


def user_channel(user_id: Any) -> str:
    """Return the channel of a user.

    :raises TypeError: when it is no ``str``, ``int`` or ``UUID``.
    :raises ValueError: when it is empty, or too long for a channel.
    """
    return check_channel(_USER + _escaped(user_text(user_id)))


def is_user(channel: str) -> bool:
    """Whether a channel is that of a user."""
    return channel.startswith(_USER)


def parts_of_channel(channel: str) -> tuple[str, ...] | None:
    """Return the parts of a named stream; None for everybody's and for a user's."""
    return stream_parts(channel.removeprefix(_STREAM)) if channel.startswith(_STREAM) else None


class StreamPermission(NamedTuple):
    """What a signed name permits.

    :ivar channel: of the stream.
    :ivar earliest: position that the page was rendered at; see
        :func:`~flask_sockets2.application.signing.not_before`.
    :ivar holder: who may use the name; see ``holder`` of
        :class:`~flask_sockets2.application.state.State`.
    :ivar old_holder: who might use the one that it renews.
    """

    channel: str
    earliest: str = str(NOWHERE)  # of names that were signed before they had one
    holder: str = ""
    old_holder: str = ""

    @classmethod
    def of(cls, name: Any) -> StreamPermission:
        """Read what was signed.

        :raises Forged: when that is no name of a stream.
        """
        fields = [name] if isinstance(name, str) else name
        if not (isinstance(fields, list) and 1 <= len(fields) <= 3):
            raise Forged("signed, but no name of a stream")
        if not all(isinstance(field, str) for field in fields):
            raise Forged("signed, but no name of a stream")
        return cls(*fields)

    def renewing(self, old: StreamPermission) -> StreamPermission:
        """Return what this one permits to a page that has an old one of the same stream."""
        if old.channel != self.channel:
            raise Forged("a name of another stream than the one that it renews")
        both = self._replace(old_holder=old.holder)
        mine, other = Position.parse(self.earliest), Position.parse(old.earliest)
        if mine is None or other is None or mine.epoch != other.epoch:
            return both
        return both._replace(earliest=str(min(mine, other)))


class StreamSigner(Signer):
    """Signs the names of streams; see :class:`~flask_sockets2.application.signing.Signer`.

    :param clock: seconds since the epoch.
    """

    def __init__(self, app: Flask, clock: Callable[[], float] = time.time) -> None:
        age = read(TurboSettings, app.config).stream_max_age
        super().__init__(app, _SALT, age, "TURBO_STREAM_MAX_AGE", clock, Plain)

    def permit(self, channel: str, earliest: object, holder: str = "") -> str:
        """Return the name by which a page may have a stream.

        :param earliest: position that the page is rendered at, or ``NOWHERE``.
        :param holder: who may use it; by default any client.
        """
        return self.sign([channel, str(earliest), *([holder] if holder else [])])

    def permitted(self, signed: str) -> StreamPermission:
        """Return what a name that came from a client permits; raises as :meth:`unsign`."""
        new, renews, old = signed.partition(_AND)
        permission = StreamPermission.of(self.unsign(new))
        if not renews:
            return permission
        return permission.renewing(StreamPermission.of(self.unsign(old, any_age=True)))

    def rebind(self, markup: str) -> str:
        """Return markup for others than the user of the page: its names are bound to nobody.

        :raises ValueError: when a name is bound to a session.
        """
        return _NAME.sub(self._rebound, markup)

    def _rebound(self, match: re.Match[str]) -> str:
        try:
            permission = StreamPermission.of(self.unsign(match[0]))
        except InvalidName:  # one that is too old does not become a new one
            return match[0]
        if permission.holder.startswith(SESSION[0]):
            raise ValueError(
                'cannot push the name of stream_from(…, bind="session"): clients of other sessions '
                "get the push; use bind=None"
            )
        return self.permit(*permission[:2]) if permission.holder else match[0]
