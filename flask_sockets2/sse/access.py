"""Which channels a request may have.

====================================  ==============================================================
the channel ``sse``                   anybody, as all that a program has not decided upon
``?signed=…``                         who was given that URL, by :func:`signed_url`
any other, by ``?channel=``           as ``@sse.authorize`` says; without it nobody, unless
                                      ``SSE_OPEN_CHANNELS`` is set, or functions of
                                      ``@sse.before_request`` have let it pass
several, by ``?channel=a&channel=b``  the same, but for ``before_request``: functions written for
                                      Flask-SSE look at the first alone
====================================  ==============================================================

``@sse.authorize`` is asked for signed ones, too. In Flask-SSE anybody may have any channel that
``before_request`` does not refuse.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from flask import Flask, abort, request

from ..extension import state_of
from ..signing import MAX_AGE, Expired, Forged, InvalidName, Signer
from .encoding import channel_of
from .settings import settings_of

__all__ = ["DEFAULT", "MOST_CHANNELS", "asked_for", "is_open", "sign"]

logger = logging.getLogger("flask_sockets2.sse")

DEFAULT = "sse"
MOST_CHANNELS = 100
"""Of one stream: the id of each event names them all."""

_SALT = "flask_sockets2.sse"

Authorizer = Callable[[str], Any]


def asked_for(app: Flask, authorizer: Authorizer | None, *, guarded: bool) -> list[str]:
    """Return the channels of the current request, each once, or refuse it.

    :param authorizer: asked for each, where there is one.
    :param guarded: whether functions of ``before_request`` have let it pass.
    """
    signed, named = request.args.getlist("signed"), request.args.getlist("channel")
    if signed and named:
        abort(400, "name channels by channel=, or by signed=, not by both")
    names = [name for each in signed for name in _unsigned(app, each)]
    if not names and named not in ([], [""]):
        # An empty one among others counts: functions of before_request may have seen it alone.
        names = named
    names = list(dict.fromkeys(names)) or [DEFAULT]
    if len(names) > MOST_CHANNELS:
        abort(400, f"a stream has up to {MOST_CHANNELS} channels")
    for name in names:
        _check(name)
    if not signed and not is_open(app, names, authorizer, guarded=guarded):
        state_of(app).seldom_log(logger).warning(
            "not_open",
            "refused the channels %.200r: only %r is open to all. Say who may have others by "
            "@sse.authorize, or give pages signed addresses, sse.url(…); SSE_OPEN_CHANNELS = True "
            "opens all of them, as Flask-SSE does",
            names,
            DEFAULT,
            extra={"event": "refused", "reason": "not_open", "channels": _cut(names)},
        )
        abort(403, "these channels are not open")
    if authorizer is not None:
        for name in names:
            if not authorizer(name):
                state_of(app).seldom_log(logger).warning(
                    "not_authorized",
                    "refused the channel %.200r: not authorized",
                    name,
                    extra={
                        "event": "refused",
                        "reason": "not_authorized",
                        "channels": _cut([name]),
                    },
                )
                abort(403, "this channel is not for you")
    return names


def is_open(
    app: Flask, names: Sequence[str], authorizer: Authorizer | None, *, guarded: bool
) -> bool:
    """Whether channels may be asked for by name, unless the authorizer refuses them."""
    if authorizer is not None or settings_of(app.config).open_channels:
        return True
    return list(names) == [DEFAULT] or (guarded and len(names) == 1)


def _cut(names: Sequence[str]) -> list[str]:
    """Return names that a stranger gave as a log may have them."""
    return [name[:200] for name in names[:10]]


def _check(name: str) -> None:
    try:
        channel_of(name)
    except ValueError as exc:
        abort(400, str(exc))


def _signer(app: Flask) -> Signer:
    return Signer(app, _SALT, app.config.get("SSE_MAX_AGE", MAX_AGE), "SSE_MAX_AGE")


def sign(app: Flask, names: Sequence[str]) -> str:
    """Return a text that permits to have some channels.

    :raises RuntimeError: when the application has no ``SECRET_KEY``.
    """
    return _signer(app).sign(list(names))


def _unsigned(app: Flask, signed: str) -> list[str]:
    try:
        if not app.secret_key:
            raise Forged("there is no SECRET_KEY that it could be signed with")
        names = _signer(app).unsign(signed)
    except InvalidName as exc:
        state_of(app).seldom_log(logger).warning(
            "not_valid",
            "refused a stream: %s",
            exc,
            extra={"event": "refused", "reason": "not_valid"},
        )
        if isinstance(exc, Expired):
            abort(410, "the address of the stream has expired; load the page again")
        abort(403, "the address of the stream is not valid")
    return [str(name) for name in names]
