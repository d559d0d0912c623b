"""Opening: what the server and the route of a connection set before it is accepted."""

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
"""Take the socket over: send_timeout -> transport, bytes that came behind the request's head."""

_uncounted = RouteCounters()
_budget = Budget(MAX_BUFFERED)  # of connections without an application of Flask's


def _begin_anew() -> None:
    """Count what a forked child's connections hold apart from the parent's."""
    global _budget
    _budget = Budget(MAX_BUFFERED)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


class Opening:
    """The part of a connection that nothing needs once it is accepted.

    :param take: called once, to take over the socket.

    :ivar limits: that the route or the application has set.
    :ivar counters: of the route.
    :ivar budget: counts the bytes that the connection holds.
    :ivar announce: called with the header fields of the 101 response before that is sent.
    :ivar fields: those of the response with what middleware has added; set by the server.
    :ivar on_open: called with the connection when it is about to be accepted.
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
        """Tell that the connection is about to open; again only if that was refused."""
        on_open, self.on_open = self.on_open, None
        if on_open is not None:
            try:
                on_open(connection)
            except BaseException:
                self.on_open = on_open
                raise

    def announced(self, response: bytes) -> bytes:
        """Tell the server of the response, through all middleware; return it with what they add."""
        announce, self.announce = self.announce, None
        if announce is None and not self.fields:
            return response
        known = end_to_end(response)
        if announce is not None:
            announce(known)
        added = [field for field in self.fields if field not in known]
        self.fields = ()
        return extended(response, added)
