"""The streams that a page carries, and the positions at which they begin."""

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
    :param serving: returns the sockets of the application.
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
    # The connection asks who it is, and that may be another one: no position, then.
    return [(ALL, positions[0]), (USER, "")]


def positions_for_page(
    channels: list[str], serving: Callable[[], Sockets], *, remember: bool = False
) -> list[Position]:
    """Return the positions for a page, all asked for at once.

    :param serving: returns the sockets of the application.
    :param remember: for the rest of the request.
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
    """Return the positions that the current request has asked for early, by channel."""
    if not has_request_context():
        return {}
    # Not in g, which outlives the request where a test has pushed an application context.
    known: dict[str, Position] = request.environ.setdefault(_KNOWN, {})
    return known


def is_position(given: Any) -> bool:
    """Return whether a value is a position for a page: one, its text, or an empty text."""
    if isinstance(given, Position):
        return True
    return isinstance(given, str) and (
        given in ("", str(NOWHERE)) or Position.parse(given) is not None
    )
