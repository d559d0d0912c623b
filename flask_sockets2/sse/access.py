"""Authorization: which channels a request may stream.

====================================  ==============================================================
the channel ``sse``                   open to every client that ``@sse.authorize`` does not refuse
``?signed=…``                         open to clients with that URL, made by ``sse.url()``
any other, by ``?channel=``           if ``@sse.authorize`` permits the channel; without an
                                      authorizer if ``SSE_OPEN_CHANNELS`` is set
several, by ``?channel=a&channel=b``  the same; but if the blueprint has ``before_request``
                                      functions, the setting opens one channel per stream, since
                                      functions written for Flask-SSE check only the first name
====================================  ==============================================================

``@sse.authorize`` is called for signed channels, too. ``before_request`` functions may refuse a
request, but never open a channel: they may serve any purpose. In Flask-SSE every client may stream
every channel that these functions do not refuse.

A signed URL is bound to the user of its page, if there is one, unless the call of :func:`sign` says
otherwise. The URL carries the position of each channel when the page was rendered. A request for
an earlier position receives a gap. A URL that names its channels has no page: an authorized client
may replay the whole history.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from flask import Flask, abort, request

from ..application.answers import Permit, permits
from ..application.settings import AppSettings
from ..application.signing import Expired, Forged, InvalidName, Signer
from ..application.state import state_of
from ..brokers.base import NOWHERE
from ..settings import read
from .encoding import channel_of
from .settings import MAIN, Settings

__all__ = [
    "DEFAULT",
    "MOST_CHANNELS",
    "Permission",
    "asked_for",
    "is_open",
    "most_channels",
    "sign",
]

logger = logging.getLogger("flask_sockets2.sse")

DEFAULT = "sse"
MOST_CHANNELS = 100
"""Hard limit for one stream: each event id names all channels, and clients send ids in a header."""

_SALT = "flask_sockets2.sse"


class Permission(NamedTuple):
    """The channels that a stream may subscribe to.

    :ivar names: the channels, each once.
    :ivar earliest: the earliest position of each that a client may resume from, see
        :func:`~flask_sockets2.application.signing.not_before`; None if the channels are open.
    """

    names: list[str]
    earliest: list[str] | None = None


def asked_for(app: Flask, blueprint: str, authorizer: Permit | None) -> Permission:
    """Return the channels of the current request, or abort with 400, 403 or 410.

    :param blueprint: name of the requested blueprint in the application.
    :param authorizer: called for each channel, if there is one.
    """
    signed, named = request.args.getlist("signed"), request.args.getlist("channel")
    if signed and named:
        abort(400, "name channels by channel=, or by signed=, not by both")
    earliest = {name: at for each in signed for name, at in _unsigned(app, blueprint, each).items()}
    names = list(earliest)
    if not names and named not in ([], [""]):
        # An empty name among others counts: before_request functions may have checked only that.
        names = named
    names = list(dict.fromkeys(names)) or [DEFAULT]
    most = most_channels(app)
    if len(names) > most:
        abort(400, f"a stream has up to {most} channels (SOCKETS_MAX_CHANNELS, at most 100)")
    for name in names:
        _check(name)
    if not signed and not is_open(app, blueprint, authorizer, names):
        state_of(app).seldom_log(logger).warning(
            "not_open",
            "refused the channels %.200r: only %r is open to all. Say who may have others by "
            "@sse.authorize, or give pages signed addresses, sse.url(…); SSE_OPEN_CHANNELS = True "
            "opens all of them, as Flask-SSE does, but only one a stream if there are functions of "
            "before_request",
            names,
            DEFAULT,
            extra={"event": "refused", "reason": "not_open", "channels": _cut(names)},
        )
        abort(403, "these channels are not open")
    if authorizer is not None:
        for name in names:
            if not permits(app, authorizer, name, by="@sse.authorize"):
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
    return Permission(names, list(earliest.values()) or None)


def most_channels(app: Flask) -> int:
    """Return the maximum number of channels of one stream."""
    return min(MOST_CHANNELS, read(AppSettings, app.config).max_channels)


def is_open(app: Flask, blueprint: str, authorizer: Permit | None, names: Sequence[str]) -> bool:
    """Whether a client may name these channels in the query, if the authorizer permits them."""
    if authorizer is not None or list(names) == [DEFAULT]:
        return True
    return read(Settings, app.config).open_channels and (
        len(names) == 1 or not _is_guarded(app, blueprint)
    )


def _is_guarded(app: Flask, blueprint: str) -> bool:
    """Whether a blueprint or one of its parents has ``before_request`` functions.

    The application's own functions do not count, because extensions register theirs there.
    """
    parts = blueprint.split(".")
    scopes = (".".join(parts[:number]) for number in range(1, len(parts) + 1))
    return any(app.before_request_funcs.get(scope) for scope in scopes)


def _cut(names: Sequence[str]) -> list[str]:
    """Return channel names from a request, cut to a length that suits a log."""
    return [name[:200] for name in names[:10]]


def _check(name: str) -> None:
    try:
        channel_of(name)
    except ValueError as exc:
        abort(400, str(exc))


def _signer(app: Flask, blueprint: str) -> Signer:
    salt = _SALT if blueprint == MAIN else f"{_SALT}.{blueprint}"
    return Signer(app, salt, read(Settings, app.config).max_age, "SSE_MAX_AGE")


def sign(
    app: Flask,
    names: Sequence[str],
    earliest: Sequence[str],
    blueprint: str = MAIN,
    bind: str | None = None,
) -> str:
    """Return a signed token that permits a client to stream some channels of one blueprint.

    :param earliest: earliest position of each channel, ``START`` for the whole history.
    :param blueprint: name of the blueprint in the application.
    :param bind: as for :meth:`State.holder`; by default any client may use the token.
    :raises RuntimeError: if the application has no ``SECRET_KEY``, or there is no session to bind
        the token to.
    """
    signer = _signer(app, blueprint)  # first: a holder is hashed with the key
    holder = state_of(app).holder(bind)
    bound = [holder] if holder else []
    return signer.sign([list(names), ",".join(earliest), *bound])


def _unsigned(app: Flask, blueprint: str, signed: str) -> dict[str, str]:
    """Return the channels that a signed token permits, and the earliest position of each."""
    try:
        if not app.secret_key:
            raise Forged("there is no SECRET_KEY that it could be signed with")
        names, earliest, holder = _read(_signer(app, blueprint).unsign(signed))
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
    if not state_of(app).holds(holder):
        state_of(app).seldom_log(logger).warning(
            "other_holder",
            "refused the channels %.200r: the address is bound to another user or session. Give "
            "each user an address of its own; if several users share one, use "
            "sse.url(…, bind=None)",
            names,
            extra={"event": "refused", "reason": "other_holder", "channels": _cut(names)},
        )
        abort(403, "the address is another user's or session's; load the page again")
    return dict(zip(names, earliest, strict=True))


def _read(permission: Any) -> tuple[list[str], list[str], str]:
    """Return the contents of a token: channels, the earliest position of each, the holder."""
    if isinstance(permission[0], list):
        names, earliest, *holder = permission
        return names, earliest.split(","), "".join(holder)
    # The earlier format of the token has the names alone, without positions.
    return permission, [str(NOWHERE)] * len(permission), ""
