"""Opening: the settings of the server and the route that a connection needs until its accept."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from ..stats import RouteCounters
from ..transports.base import StreamTransport
from ..transports.budget import Budget
from ..wire.handshake import end_to_end, extended
from .limits import MAX_BUFFERED, Limits

__all__ = ["Opening", "Take"]

Take = Callable[[float], tuple[StreamTransport, bytes]]
"""Takes the socket over: send_timeout -> transport, bytes received behind the request's head."""

_uncounted = RouteCounters()
_budget = Budget(MAX_BUFFERED)  # for connections without a Flask application


def _begin_anew() -> None:
    """Give a forked child a budget of its own."""
    global _budget
    _budget = Budget(MAX_BUFFERED)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


class Opening:
    """Holds the settings for the accept of one connection, which drops them afterwards.

    :param take: takes the socket over; called once.

    :ivar limits: limits that the route or the application has set.
    :ivar counters: counters of the route.
    :ivar budget: counts the bytes that the connection holds.
    :ivar announce: called with the header fields of the 101 response before sending them.
    :ivar fields: header fields of the response, middleware's included; set by the server.
    :ivar on_open: called with the connection just before the accept; may raise to refuse.
    """

    __slots__ = ("announce", "budget", "counters", "fields", "limits", "on_open", "take")

    def __init__(self, take: Take) -> None:
        self.take = take
        self.limits = Limits()
        self.counters = _uncounted
        self.budget = _budget
        self.announce: Callable[[list[tuple[str, str]]], object] | None = None
        self.fields: Iterable[tuple[str, str]] = ()
        self.on_open: Callable[[Any], None] | None = None

    def admit(self, connection: object) -> None:
        """Call :attr:`on_open` once; if the call raises, the next accept calls again."""
        on_open, self.on_open = self.on_open, None
        if on_open is not None:
            try:
                on_open(connection)
            except BaseException:
                self.on_open = on_open
                raise

    def announced(self, response: bytes) -> bytes:
        """Pass the 101 response through all middleware; return the response with their fields."""
        announce, self.announce = self.announce, None
        if announce is None and not self.fields:
            return response
        known = end_to_end(response)
        if announce is not None:
            announce(known)
        added = [field for field in self.fields if field not in known]
        self.fields = ()
        return extended(response, added)
