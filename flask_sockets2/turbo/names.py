"""Names of streams: the channels that they are, and how a page carries them.

=========================  ======================================================================
channel                    who gets it
=========================  ======================================================================
``turbo:all``              every page; anybody may have it, so its name is never signed
``turbo:user:<id>``        the pages of one user
``turbo:stream:<name>``    the pages with ``{{ turbo.stream_from(…) }}`` of that name
=========================  ======================================================================

A signed name is a permission: whoever has it may have the stream, until ``TURBO_STREAM_MAX_AGE``
seconds (86,400; None for any age) after the page was made. Names are readable, so no secrets
belong in them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

from flask import Flask

from ..orders import user_text
from ..publisher import check_channel
from ..signing import MAX_AGE, Forged, Signer

__all__ = [
    "ALL",
    "USER",
    "Part",
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
    if isinstance(part, str):
        text = str.__str__(part)  # the value of an enum, not its name
    elif isinstance(part, int) and not isinstance(part, bool):
        text = int.__repr__(part)
    elif isinstance(part, UUID):
        text = str(part)
    else:
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


class StreamSigner(Signer):
    """Signs the names of streams; see :class:`~flask_sockets2.signing.Signer`.

    :param clock: seconds since the epoch.
    """

    def __init__(self, app: Flask, clock: Callable[[], float] = time.time) -> None:
        age = app.config.get("TURBO_STREAM_MAX_AGE", MAX_AGE)
        super().__init__(app, _SALT, age, "TURBO_STREAM_MAX_AGE", clock)

    def unsign(self, signed: str) -> str:
        """Return the channel of a name that came from a client; raises as its base does."""
        channel = super().unsign(signed)
        if not isinstance(channel, str):
            raise Forged("signed, but no name of a stream")
        return channel
