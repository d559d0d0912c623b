"""Signed names: what a page carries, as a permission to have what they name.

Whoever has a name may use it until it is too old. It is readable, so no secret belongs in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from flask import Flask
from itsdangerous import BadData, URLSafeTimedSerializer

__all__ = ["MAX_AGE", "Expired", "Forged", "InvalidName", "Signer"]

MAX_AGE = 86400.0
"""Seconds that a name counts, where the application does not say."""


class InvalidName(ValueError):
    """A name, as a client gave it, is no permission."""


class Forged(InvalidName):
    """It was not signed with any of the application's keys."""


class Expired(InvalidName):
    """It was, longer ago than the setting allows."""


class Signer:
    """Signs names with ``SECRET_KEY``; old ones of ``SECRET_KEY_FALLBACKS`` count.

    :param app: the application.
    :param salt: keeps names of one kind from being taken for those of another.
    :param max_age: seconds that a name counts, None for any age.
    :param setting: where the application has set that.
    :param clock: seconds since the epoch.
    :raises RuntimeError: when it has no ``SECRET_KEY``.
    :raises ValueError: when the setting is no number of seconds.
    """

    def __init__(
        self,
        app: Flask,
        salt: str,
        max_age: Any,
        setting: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not app.secret_key:
            raise RuntimeError(
                "names of streams are signed, and the application has no SECRET_KEY; set "
                "app.config['SECRET_KEY'] to a long random text"
            )
        if isinstance(max_age, bool) or not isinstance(max_age, int | float | None):
            raise ValueError(f"{setting} must be a number of seconds, got {max_age!r}")
        keys = [*(app.config.get("SECRET_KEY_FALLBACKS") or ()), app.secret_key]
        self._serializer = URLSafeTimedSerializer(keys, salt=salt)
        self._setting = setting
        self._max_age: float | None = max_age
        self._clock = clock

    def sign(self, name: Any) -> str:
        """Return a name as a page carries it; :param name: text, or a list of such."""
        signed = self._serializer.dumps(name)
        return signed.decode() if isinstance(signed, bytes) else signed

    def unsign(self, signed: str) -> Any:
        """Return the name that came from a client.

        :raises Forged: when it was not signed here.
        :raises Expired: when it was, too long ago.
        """
        try:
            name, signed_at = self._serializer.loads(signed, return_timestamp=True)
        except (BadData, UnicodeEncodeError) as exc:
            raise Forged("not signed with this application's SECRET_KEY") from exc
        # Not by max_age=: a page of another host, whose clock is ahead, has a negative age.
        age = self._clock() - signed_at.timestamp()
        if self._max_age is not None and age > self._max_age:
            raise Expired(f"{age:.0f} seconds old, and {self._setting} is {self._max_age:g}")
        return name
