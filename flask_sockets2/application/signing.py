"""Signed names: what a page carries, as a permission to have what they name.

A name says from which position on its page may have messages: the position that the page was
rendered at. A client sends positions unsigned, and :func:`not_before` holds them against that one.

A name may be bound to the user or to the session of the page. Any other client that has a name may
use it until the name is too old. A name can be read, so no secret belongs in it: what it holds of
its user or session is a keyed hash.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable
from typing import Any

from flask import Flask, has_request_context, session
from itsdangerous import BadData, BadTimeSignature, URLSafeTimedSerializer
from itsdangerous.encoding import base64_encode
from itsdangerous.serializer import Serializer

from ..brokers.base import NOWHERE, Position

__all__ = [
    "MAX_AGE",
    "SESSION",
    "START",
    "UNKNOWN_USER",
    "USER",
    "Expired",
    "Forged",
    "InvalidName",
    "Plain",
    "Signer",
    "bound_to",
    "check_bind",
    "check_keys",
    "fallbacks_of",
    "is_bound_to",
    "key_mark",
    "not_before",
    "session_token",
]

MAX_AGE = 86400.0
"""Seconds that a name counts, where the application does not say."""

START = "start"
"""In place of a position: all that is kept. The text of ``NOWHERE`` is a gap."""


def not_before(position: str, earliest: str, *, one_log: bool) -> str:
    """Return a client's position if its page may ask for it, else :data:`.NOWHERE`, a gap.

    A client of ours never asks for an earlier one. One that has another page's position is told of
    the gap, and is not sent less than it believes.

    :param position: as the client sent it; empty for what comes from now on, which anybody may
        ask for. ``START`` is the earliest that is permitted.
    :param earliest: as the name carries it; ``START`` permits all.
    :param one_log: whether there is one log at a time. Then a log that the page does not know has
        begun after the page was rendered, and a position in it is in order. The log of another
        process may be older than the page.
    """
    if not position or earliest == START:
        return position
    if position == START:
        return earliest
    asked, first = Position.parse(position), Position.parse(earliest)
    if asked is None or first is None:
        return str(NOWHERE)
    if asked.epoch == first.epoch:
        return position if asked.offset >= first.offset else str(NOWHERE)
    return position if one_log else str(NOWHERE)


# -- to whom a name is bound -------------------------------------------------------------------

USER, SESSION = "user", "session"
"""What a name may be bound to; in it the first letter, and a hash."""

UNKNOWN_USER = USER[0]
"""In a name: bound to a user that could not be told, so that nobody can use the name."""

_TOKEN = "_flask_sockets2"
"""In the session: what names are bound to, a random text."""

_HOLDER_SALT = b"flask_sockets2.holder:"
_HOLDER_SIZE = 12  # bytes


def check_bind(bind: Any) -> None:
    """See that ``bind=`` is one.

    :raises ValueError: when it is none.
    """
    if bind not in (USER, SESSION, None):
        raise ValueError(f'bind= must be "user", "session" or None, got {bind!r}')


def bound_to(app: Flask, kind: str, text: str) -> str:
    """Return what a name holds of the user or session that it is bound to.

    :param kind: ``USER`` or ``SESSION``.
    :param text: the id of the user, or the token of the session.
    """
    return _hashed(app.secret_key, kind, text)


def is_bound_to(app: Flask, holder: str, kind: str, text: str) -> bool:
    """Whether a name is bound to a user or session, by any of the application's keys."""
    keys = [app.secret_key, *fallbacks_of(app)]
    return any(hmac.compare_digest(_hashed(key, kind, text), holder) for key in keys)


def _hashed(key: Any, kind: str, text: str) -> str:
    key = key.encode() if isinstance(key, str) else key
    told = f"{kind}:{text}".encode(errors="surrogatepass")  # an id may be any text
    hashed = hmac.digest(key, _HOLDER_SALT + told, hashlib.sha256)
    return kind[0] + urlsafe_b64encode(hashed[:_HOLDER_SIZE]).decode()


def session_token(*, make: bool = False) -> str | None:
    """Return the token of the current request's session, None if it has none.

    :param make: it if there is none, for a page. The response then sets the session's cookie.
    :raises RuntimeError: when there is no request whose session could have one.
    """
    if make and not has_request_context():
        raise RuntimeError(
            'bind="session" needs a request; use bind=None for what a job or a script renders'
        )
    token = session.get(_TOKEN)
    if token is None and make:
        token = session[_TOKEN] = secrets.token_urlsafe(16)
    return token if isinstance(token, str) else None


# -- keys --------------------------------------------------------------------------------------


def check_keys(app: Flask) -> None:
    """See that the keys of an application are some, if it has any.

    :raises ValueError: when ``SECRET_KEY`` or ``SECRET_KEY_FALLBACKS`` is not what is expected.
    """
    if not isinstance(app.secret_key, str | bytes | None):
        raise ValueError(
            f"SECRET_KEY must be a text or bytes, got {type(app.secret_key).__name__}; in an "
            "environment variable write it in quotes, as '\"1234\"', if it has digits alone"
        )
    fallbacks_of(app)


def fallbacks_of(app: Flask) -> list[Any]:
    """Return the old keys of an application, with which names are no longer signed but still count.

    Anybody can sign with an empty key, or with one letter of a text that was given as the list.

    :raises ValueError: when ``SECRET_KEY_FALLBACKS`` is no list of keys.
    """
    given = app.config.get("SECRET_KEY_FALLBACKS")
    if given is None or given == "":
        return []
    listed = isinstance(given, list | tuple)
    if not listed or not all(isinstance(key, str | bytes) and key for key in given):
        raise ValueError(
            "SECRET_KEY_FALLBACKS must be a list of keys, each a text that is not empty; with a "
            "text in place of the list, or an empty key, anybody could sign"
        )
    return list(given)


def key_mark(app: Flask) -> str:
    """Return a text that differs where the keys of applications do; empty without a key."""
    return _hashed(app.secret_key, "mark", "") if app.secret_key else ""


# -- names -------------------------------------------------------------------------------------


class InvalidName(ValueError):
    """A name, as a client gave it, is no permission."""


_OTHER_KEY = (
    "signed with another SECRET_KEY than this process has; if each one makes its own, as by "
    "os.urandom() at import, set one for all"
)


class Forged(InvalidName):
    """It was not signed with any of the application's keys."""


class Expired(InvalidName):
    """It was, longer ago than the setting allows."""


class Plain(URLSafeTimedSerializer):
    """Compresses nothing, so that the script of a page can read what was signed."""

    def dump_payload(self, obj: Any) -> bytes:
        return base64_encode(Serializer.dump_payload(self, obj))


class Signer:
    """Signs names with ``SECRET_KEY``; old ones of ``SECRET_KEY_FALLBACKS`` count.

    :param app: the application.
    :param salt: keeps names of one kind from being taken for those of another.
    :param max_age: seconds that a name counts, None for any age.
    :param setting: where the application has set that.
    :param clock: seconds since the epoch.
    :param kind: of the serializer.
    :raises RuntimeError: when it has no ``SECRET_KEY``.
    :raises ValueError: when a key is none.
    """

    def __init__(
        self,
        app: Flask,
        salt: str,
        max_age: float | None,
        setting: str,
        clock: Callable[[], float] = time.time,
        kind: type[URLSafeTimedSerializer] = URLSafeTimedSerializer,
    ) -> None:
        if not app.secret_key:
            raise RuntimeError(
                "names of streams are signed, and the application has no SECRET_KEY; set "
                "app.config['SECRET_KEY'] to a long random text"
            )
        check_keys(app)
        keys = [*fallbacks_of(app), app.secret_key]
        self._serializer = kind(keys, salt=salt)
        self._setting = setting
        self._max_age = max_age
        self._clock = clock

    def sign(self, name: Any) -> str:
        """Return a name as a page carries it; :param name: text, or lists of such."""
        signed = self._serializer.dumps(name)
        return signed.decode() if isinstance(signed, bytes) else signed

    def unsign(self, signed: str, *, any_age: bool = False) -> Any:
        """Return the name that came from a client.

        :param any_age: also of one that is too old.
        :raises Forged: when it was not signed here.
        :raises Expired: when it was, too long ago.
        """
        try:
            name, signed_at = self._serializer.loads(signed, return_timestamp=True)
        except (BadData, UnicodeEncodeError) as exc:
            # One that has a time, though its signature is wrong, may come from another process.
            dated = isinstance(exc, BadTimeSignature) and exc.date_signed is not None
            raise Forged(_OTHER_KEY if dated else "not signed by this application") from exc
        # Not by max_age=: a page of another host, whose clock is ahead, has a negative age.
        age = self._clock() - signed_at.timestamp()
        if self._max_age is not None and age > self._max_age and not any_age:
            raise Expired(f"{age:.0f} seconds old, and {self._setting} is {self._max_age:g}")
        return name
