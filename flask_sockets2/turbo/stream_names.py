"""Names of streams: their channels, and the signed names that pages carry as permissions.

=========================  ======================================================================
channel                    subscribers
=========================  ======================================================================
``turbo:all``              every page; any client may subscribe, so the name is never signed
``turbo:user:<id>``        the pages of one user
``turbo:stream:<name>``    the pages with ``{{ turbo.stream_from(…) }}`` of that name
=========================  ======================================================================

A signed name permits its stream for ``TURBO_STREAM_MAX_AGE`` seconds (86,400; None for any age)
after the rendering of the page. Any client may use a name unless the name is bound to a user or
session. Names are readable, so put no secrets into them. The signed fields are the channel, the
page's earliest position and, if the name is bound, a hash of the user or session::

    ["turbo:stream:room:5", "9f86d081884c7d65-42", "uXp3…"]

If a name has expired, the page gets a new one from its server. The new name begins at a later
position than the page, so the page sends both, ``<new>~<old>``: the new name permits the stream,
and the old name permits the earlier position.
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
"""Part of a stream's name."""

ALL = "turbo:all"
USER = "turbo:user"
"""Stands for a signed name if there is no ``SECRET_KEY``: the stream of the connection's user."""

_USER = "turbo:user:"
_STREAM = "turbo:stream:"
_SALT = "flask_sockets2.turbo.stream"
_ELEMENT = '<turbo-stream-from name="'
_NAME = re.compile(f"(?<={_ELEMENT})[A-Za-z0-9_.-]+")
_AND = "~"  # between a new name and the old one; never within a signed name


def stream_name(*parts: Part) -> str:
    """Return the name of a stream; different parts make different names.

    :param parts: strings, integers and UUIDs; ``5`` and ``"5"`` are the same.
    :raises TypeError: if there is no part, or a part has another type.

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
    """Return the parts of a name, as strings."""
    return tuple(part.replace("%3A", ":").replace("%25", "%") for part in name.split(":"))


def stream_channel(*parts: Part) -> str:
    """Return the channel of a stream.

    :raises TypeError: as :func:`stream_name`.
    :raises ValueError: if the name is too long for a channel.
    """
    return check_channel(_STREAM + stream_name(*parts))


def user_channel(user_id: Any) -> str:
    """Return the channel of a user.

    :raises TypeError: if the id is no ``str``, ``int`` or ``UUID``.
    :raises ValueError: if the id is empty, or too long for a channel.
    """
    return check_channel(_USER + _escaped(user_text(user_id)))


def is_user(channel: str) -> bool:
    """Return whether a channel belongs to a user."""
    return channel.startswith(_USER)


def parts_of_channel(channel: str) -> tuple[str, ...] | None:
    """Return the parts of a named stream; None for ``turbo:all`` and for a user's channel."""
    return stream_parts(channel.removeprefix(_STREAM)) if channel.startswith(_STREAM) else None


class StreamPermission(NamedTuple):
    """Permission of a client to subscribe to a stream, as a signed name carries it.

    :ivar channel: channel of the stream.
    :ivar earliest: position at which the page was rendered; see
        :func:`~flask_sockets2.application.signing.not_before`.
    :ivar holder: hash of the user or session that may use the name; see ``holder`` of
        :class:`~flask_sockets2.application.state.State`. Empty for any client.
    :ivar old_holder: holder of the expired name, if the name renews one.
    """

    channel: str
    earliest: str = str(NOWHERE)  # in names that an old release signed
    holder: str = ""
    old_holder: str = ""

    @classmethod
    def of(cls, name: Any) -> StreamPermission:
        """Return the permission in the signed fields of a name.

        :raises Forged: if the fields are not the name of a stream.
        """
        fields = [name] if isinstance(name, str) else name
        if not (isinstance(fields, list) and 1 <= len(fields) <= 3):
            raise Forged("signed, but no name of a stream")
        if not all(isinstance(field, str) for field in fields):
            raise Forged("signed, but no name of a stream")
        return cls(*fields)

    def renewing(self, old: StreamPermission) -> StreamPermission:
        """Return this permission for a page that also has an old name of the same stream."""
        if old.channel != self.channel:
            raise Forged("a name of another stream than the one that it renews")
        both = self._replace(old_holder=old.holder)
        mine, other = Position.parse(self.earliest), Position.parse(old.earliest)
        if mine is None or other is None or mine.epoch != other.epoch:
            return both
        return both._replace(earliest=str(min(mine, other)))


class StreamSigner(Signer):
    """Signs and verifies names of streams; see :class:`~flask_sockets2.application.signing.Signer`.

    :param clock: function that returns seconds since the epoch.
    """

    def __init__(self, app: Flask, clock: Callable[[], float] = time.time) -> None:
        age = read(TurboSettings, app.config).stream_max_age
        super().__init__(app, _SALT, age, "TURBO_STREAM_MAX_AGE", clock, Plain)

    def permit(self, channel: str, earliest: object, holder: str = "") -> str:
        """Return a signed name, which permits a page to subscribe to a stream.

        :param earliest: position at which the page is rendered, or ``NOWHERE``.
        :param holder: user or session that may use the name, as a hash; by default any client.
        """
        return self.sign([channel, str(earliest), *([holder] if holder else [])])

    def permitted(self, signed: str) -> StreamPermission:
        """Return the permission in a name from a client; raises as :meth:`unsign`."""
        new, renews, old = signed.partition(_AND)
        permission = StreamPermission.of(self.unsign(new))
        if not renews:
            return permission
        return permission.renewing(StreamPermission.of(self.unsign(old, any_age=True)))

    def rebind(self, markup: str) -> str:
        """Return markup in which no name is bound to a user, so that other users can use it.

        :raises ValueError: if a name is bound to a session.
        """
        return _NAME.sub(self._rebound, markup)

    def _rebound(self, match: re.Match[str]) -> str:
        try:
            permission = StreamPermission.of(self.unsign(match[0]))
        except InvalidName:  # an expired name must not be signed anew
            return match[0]
        if permission.holder.startswith(SESSION[0]):
            raise ValueError(
                'cannot push the name of stream_from(…, bind="session"): clients of other sessions '
                "get the push; use bind=None"
            )
        return self.permit(*permission[:2]) if permission.holder else match[0]
