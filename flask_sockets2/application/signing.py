"""Signed names: permissions in a page to subscribe to the channels that they name.

A name holds the position at which its page was rendered; the client may have messages from there
on. Clients send positions unsigned, and :func:`not_before` compares them with the signed position.

A name may be bound to the user or to the session of the page. An unbound name may be used by any
client until the name expires. Clients can read a name, so no secret belongs in a name: of the user
or session it holds a keyed hash.
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
"""Seconds until a name expires, by default."""

START = "start"
"""In place of a position: the whole history. The text of ``NOWHERE`` is a gap."""


def not_before(position: str, earliest: str, *, one_log: bool) -> str:
    """Return a client's position if its page permits the position, else :data:`.NOWHERE`, a gap.

    Our own client never sends an earlier position. A client with another page's position receives
    a gap message, so that it does not miss messages unknowingly.

    :param position: position as the client sent it. ``START`` stands for the earliest permitted
        position. Empty means new messages only, which every client may have.
    :param earliest: position in the name; ``START`` permits all.
    :param one_log: whether all processes share one log. Then a log unknown to the page has begun
        after the page was rendered, and a position in that log is permitted. Otherwise the log of
        another process may be older than the page.
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
"""Kinds of binding; a bound name holds the first letter of the kind, and a hash."""

UNKNOWN_USER = USER[0]
"""In a name if the user is unknown because of an error: no client can use the name."""

_TOKEN = "_flask_sockets2"
"""Key in the session of the random token to which names are bound."""

_HOLDER_SALT = b"flask_sockets2.holder:"
_HOLDER_SIZE = 12  # bytes


def check_bind(bind: Any) -> None:
    """Check the value of ``bind=``.

    :raises ValueError: if the value is invalid.
    """
    if bind not in (USER, SESSION, None):
        raise ValueError(f'bind= must be "user", "session" or None, got {bind!r}')


def bound_to(app: Flask, kind: str, text: str) -> str:
    """Return the keyed hash that binds a name to a user or session.

    :param kind: ``USER`` or ``SESSION``.
    :param text: the id of the user, or the token of the session.
    """
    return _hashed(app.secret_key, kind, text)


def is_bound_to(app: Flask, holder: str, kind: str, text: str) -> bool:
    """Tell whether a name is bound to a user or session, with any of the application's keys."""
    keys = [app.secret_key, *fallbacks_of(app)]
    return any(hmac.compare_digest(_hashed(key, kind, text), holder) for key in keys)


def _hashed(key: Any, kind: str, text: str) -> str:
    key = key.encode() if isinstance(key, str) else key
    told = f"{kind}:{text}".encode(errors="surrogatepass")  # an id may be any text
    hashed = hmac.digest(key, _HOLDER_SALT + told, hashlib.sha256)
    return kind[0] + urlsafe_b64encode(hashed[:_HOLDER_SIZE]).decode()


def session_token(*, make: bool = False) -> str | None:
    """Return the token of the current request's session, None if there is no token.

    :param make: make a missing token, for a page. The response then sets the session's cookie.
    :raises RuntimeError: if a token is to be made and there is no request.
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
    """Check the keys of an application, if there are any.

    :raises ValueError: if ``SECRET_KEY`` or ``SECRET_KEY_FALLBACKS`` is invalid.
    """
    if not isinstance(app.secret_key, str | bytes | None):
        raise ValueError(
            f"SECRET_KEY must be a text or bytes, got {type(app.secret_key).__name__}; in an "
            "environment variable write it in quotes, as '\"1234\"', if it has digits alone"
        )
    fallbacks_of(app)


def fallbacks_of(app: Flask) -> list[Any]:
    """Return the old keys of an application: they verify names, but do not sign new ones.

    Anybody could sign with an empty key, or with one letter of a text in place of the list.

    :raises ValueError: if ``SECRET_KEY_FALLBACKS`` is no list of keys.
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
    """Return a digest that differs if the ``SECRET_KEY`` differs; empty without a key."""
    return _hashed(app.secret_key, "mark", "") if app.secret_key else ""


# -- names -------------------------------------------------------------------------------------


class InvalidName(ValueError):
    """A name from a client is not valid."""


_OTHER_KEY = (
    "signed with another SECRET_KEY than this process has; if each one makes its own, as by "
    "os.urandom() at import, set one for all"
)


class Forged(InvalidName):
    """A name was not signed with any of the application's keys."""


class Expired(InvalidName):
    """A name was signed longer ago than the setting allows."""


class Plain(URLSafeTimedSerializer):
    """A serializer without compression, so that the script of a page can read the payload."""

    def dump_payload(self, obj: Any) -> bytes:
        return base64_encode(Serializer.dump_payload(self, obj))


class Signer:
    """Signs names with ``SECRET_KEY``, and verifies them also with ``SECRET_KEY_FALLBACKS``.

    :param app: the application.
    :param salt: text that keeps one kind of names apart from other kinds.
    :param max_age: seconds until a name expires, None for never.
    :param setting: name of the setting for ``max_age``, for error texts.
    :param clock: returns seconds since the epoch.
    :param kind: class of the serializer.
    :raises RuntimeError: if the application has no ``SECRET_KEY``.
    :raises ValueError: if a key is invalid.
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
        """Return the signed form of a name; :param name: text, or nested lists of text."""
        signed = self._serializer.dumps(name)
        return signed.decode() if isinstance(signed, bytes) else signed

    def unsign(self, signed: str, *, any_age: bool = False) -> Any:
        """Verify a signed name from a client, and return the name.

        :param any_age: accept expired names as well.
        :raises Forged: if the signature is wrong.
        :raises Expired: if the name has expired.
        """
        try:
            name, signed_at = self._serializer.loads(signed, return_timestamp=True)
        except (BadData, UnicodeEncodeError) as exc:
            # If a name has a time but a wrong signature, another process may have signed it.
            dated = isinstance(exc, BadTimeSignature) and exc.date_signed is not None
            raise Forged(_OTHER_KEY if dated else "not signed by this application") from exc
        # max_age= of loads() would refuse a negative age, as if another host's clock is ahead.
        age = self._clock() - signed_at.timestamp()
        if self._max_age is not None and age > self._max_age and not any_age:
            raise Expired(f"{age:.0f} seconds old, and {self._setting} is {self._max_age:g}")
        return name
