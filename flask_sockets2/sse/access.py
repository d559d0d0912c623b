"""Which channels a request may have.

====================================  ==============================================================
the channel ``sse``                   anybody, as all that a program has not decided upon
``?signed=…``                         who was given that URL, by ``sse.url()``
any other, by ``?channel=``           as ``@sse.authorize`` says; without it nobody, unless
                                      ``SSE_OPEN_CHANNELS`` is set
several, by ``?channel=a&channel=b``  the same; but if the blueprint has functions of
                                      ``before_request``, the setting opens one channel a stream:
                                      those written for Flask-SSE look at the first name alone
====================================  ==============================================================

``@sse.authorize`` is asked for signed ones, too. Functions of ``before_request`` may refuse, and
open nothing: they may be there for any purpose. In Flask-SSE anybody may have any channel that they
do not refuse.

A signed address is for the user of its page, if there is one, unless :func:`sign` was told
otherwise. It carries the position of each channel that its page was made at, and an earlier one
is a gap. An address that names its channels has no page: who may have a channel may have all that
is kept of it.
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
"""Of one stream, whatever is set: the id of each event names them all, and comes in a header."""

_SALT = "flask_sockets2.sse"


class Permission(NamedTuple):
    """What a stream may have.

    :ivar names: of its channels, each once.
    :ivar earliest: position of each; see
        :func:`~flask_sockets2.application.signing.not_before`. None if the channels are open.
    """

    names: list[str]
    earliest: list[str] | None = None


def asked_for(app: Flask, blueprint: str, authorizer: Permit | None) -> Permission:
    """Return the channels of the current request, or refuse it.

    :param blueprint: name of the one that is asked, in the application.
    :param authorizer: asked for each, where there is one.
    """
    signed, named = request.args.getlist("signed"), request.args.getlist("channel")
    if signed and named:
        abort(400, "name channels by channel=, or by signed=, not by both")
    earliest = {name: at for each in signed for name, at in _unsigned(app, blueprint, each).items()}
    names = list(earliest)
    if not names and named not in ([], [""]):
        # An empty one among others counts: functions of before_request may have seen it alone.
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
    """Return how many channels one stream may have."""
    return min(MOST_CHANNELS, read(AppSettings, app.config).max_channels)


def is_open(app: Flask, blueprint: str, authorizer: Permit | None, names: Sequence[str]) -> bool:
    """Whether channels may be asked for by name, unless the authorizer refuses them."""
    if authorizer is not None or list(names) == [DEFAULT]:
        return True
    return read(Settings, app.config).open_channels and (
        len(names) == 1 or not _is_guarded(app, blueprint)
    )


def _is_guarded(app: Flask, blueprint: str) -> bool:
    """Whether functions of ``before_request`` look at a blueprint's requests, or at its parents'.

    Those of the application do not count: extensions add theirs.
    """
    parts = blueprint.split(".")
    scopes = (".".join(parts[:number]) for number in range(1, len(parts) + 1))
    return any(app.before_request_funcs.get(scope) for scope in scopes)


def _cut(names: Sequence[str]) -> list[str]:
    """Return names that a stranger gave as a log may have them."""
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
    """Return a text that permits to have some channels of a blueprint, and of no other.

    :param earliest: position of each, ``START`` for all that is kept.
    :param blueprint: its name in the application.
    :param bind: as for :meth:`State.holder`; by default any client may use the text.
    :raises RuntimeError: when the application has no ``SECRET_KEY``, or there is no session to
        bind the text to.
    """
    signer = _signer(app, blueprint)  # first: a holder is hashed with the key
    holder = state_of(app).holder(bind)
    bound = [holder] if holder else []
    return signer.sign([list(names), ",".join(earliest), *bound])


def _unsigned(app: Flask, blueprint: str, signed: str) -> dict[str, str]:
    """Return the channels that a text permits, and the earliest position of each."""
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
    """Return what was signed: channels, the earliest position of each, and who may have them."""
    if isinstance(permission[0], list):
        names, earliest, *holder = permission
        return names, earliest.split(","), "".join(holder)
    # Signed before addresses had positions: the names alone.
    return permission, [str(NOWHERE)] * len(permission), ""
