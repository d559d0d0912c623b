"""Names of the streams that each page has, and the positions at which they begin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Flask, has_request_context, request

from ..application.sockets import Sockets
from ..brokers.base import NOWHERE, Position
from .page import mark_private
from .stream_names import ALL, USER, StreamSigner

__all__ = ["is_position", "positions_for_page", "streams_of_page"]

_KNOWN = "flask_sockets2.turbo.positions"  # in the environ


def streams_of_page(
    app: Flask, user: str | None, serving: Callable[[], Sockets]
) -> list[tuple[str, object]]:
    """Return the names of the streams that each page has, with their positions.

    :param user: channel of the page's user, None for no user.
    :param serving: function that returns the application's ``Sockets``.
    """
    channels = [ALL] if user is None else [ALL, user]
    positions = positions_for_page(channels, serving)
    if user is None or app.secret_key:
        if user is not None:
            mark_private()
        signed = [
            StreamSigner(app).permit(channel, position)
            for channel, position in zip(channels[1:], positions[1:], strict=True)
        ]
        return list(zip([ALL, *signed], positions, strict=True))
    # The connection reads the user id, and the user may have changed: no position, then.
    return [(ALL, positions[0]), (USER, "")]


def positions_for_page(
    channels: list[str], serving: Callable[[], Sockets], *, remember: bool = False
) -> list[Position]:
    """Return the positions of channels for a page, with one request to the broker.

    :param serving: function that returns the application's ``Sockets``.
    :param remember: whether the rest of the request uses the same positions.
    """
    known = _known()
    missing = [channel for channel in channels if channel not in known]
    positions = serving().positions(missing) if missing else []
    found = dict(zip(missing, positions, strict=True))
    if remember:
        known.update(found)
    found.update(known)
    return [found[channel] for channel in channels]


def _known() -> dict[str, Position]:
    """Return the positions that the current request remembers, by channel."""
    if not has_request_context():
        return {}
    # Not in g, which outlives the request if a test has pushed an application context.
    known: dict[str, Position] = request.environ.setdefault(_KNOWN, {})
    return known


def is_position(given: Any) -> bool:
    """Return whether a value is a position for a page: a ``Position``, its text, or ``""``."""
    if isinstance(given, Position):
        return True
    return isinstance(given, str) and (
        given in ("", str(NOWHERE)) or Position.parse(given) is not None
    )
