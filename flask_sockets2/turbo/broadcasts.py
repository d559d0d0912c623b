"""Broadcaster: publishes streams to channels, and sends them to the application's own sockets."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from flask import has_request_context, request
from werkzeug.local import LocalProxy

from ..application.sockets import Sockets
from ..brokers.base import Position
from ..channels.publisher import Publisher
from .markup import is_shown, joined, key_of, sender_of, with_sender
from .refresh_debounce import Refresh, RefreshDebounce
from .stream_names import StreamSigner

__all__ = ["Broadcaster", "Send", "for_pages", "recipients_of", "refresh_of"]

logger = logging.getLogger("flask_sockets2.turbo")

_LONGEST_REQUEST_ID = 100  # characters; turbo.js sends a UUID

Send = Callable[[Publisher, list[str], str | Refresh, Sequence[Any]], Sequence[Position | None]]
"""Function that sends a stream, now or later, and returns a position for each channel. Arguments:
publisher, channels, the markup or one channel's refresh, sockets of ``turbo.clients``."""


class Broadcaster:
    """Sends streams at once, without waiting for a commit."""

    def __init__(self) -> None:
        # By publisher: a forked process has publishers of its own.
        self._debounces: WeakKeyDictionary[Publisher, RefreshDebounce] = WeakKeyDictionary()

    def send(
        self,
        publisher: Publisher,
        channels: list[str],
        stream: str | Refresh,
        sockets: Sequence[Any],
    ) -> Sequence[Position | None]:
        """Send a stream; see :data:`Send`.

        :raises BrokerError: if the broker cannot be reached.
        """
        if isinstance(stream, Refresh):
            [channel] = channels
            return [self._send_refresh(publisher, channel, stream)]
        positions = publisher.publish_many(
            ((channel, stream) for channel in channels), key=key_of(stream)
        )
        for socket in sockets:  # last: a retry after a broker error sends nothing twice
            _send_to(socket, stream)
        return positions

    def _send_refresh(
        self, publisher: Publisher, channel: str, refresh: Refresh
    ) -> Position | None:
        if not publisher._sender.combines:
            return publisher.publish(channel, refresh.markup)
        debounce = self._debounces.get(publisher)
        if debounce is None:
            debounce = self._debounces.setdefault(publisher, RefreshDebounce())
        return debounce.send(publisher, channel, refresh)


def for_pages(
    stream: str | Iterable[str], serving: Callable[[], Sockets], exclude_sender: bool
) -> str:
    """Return the markup to push; names of streams in it are no longer bound to the current user.

    :param serving: function that returns the application's ``Sockets``.
    :param exclude_sender: whether the page that sent the current request ignores the stream.
    """
    markup = joined(stream)
    if not is_shown(markup) and serving()._app().debug:
        logger.warning(
            "what is pushed has no <turbo-stream>, so no page shows it: %.100r; say what to "
            "do with it, as turbo.append(…, target=…) does",
            markup,
        )
    if "<turbo-stream-from" in markup and (app := serving()._app()).secret_key:
        markup = StreamSigner(app).rebind(markup)
    sender = _request_id() if exclude_sender else None
    return markup if sender is None else with_sender(markup, sender_of(sender))


def refresh_of(for_all: str, request_id: str | None, *, exclude_sender: bool) -> Refresh:
    """Return a refresh that the page which caused it ignores.

    :param for_all: markup of the refresh for every page.
    :param request_id: id of the request that caused the refresh; None for the current request if
        ``exclude_sender``.
    """
    if exclude_sender and request_id is None:
        request_id = _request_id()
    if request_id is None:
        return Refresh(for_all, for_all)
    sender = sender_of(str(request_id))
    return Refresh(with_sender(for_all, sender), for_all, sender)


def recipients_of(to: Any) -> list[Any] | None:
    """Return the user ids in ``to``, None for all users; a None within an iterable is skipped."""
    if isinstance(to, LocalProxy):  # the proxy seems iterable, its value need not be
        to = to._get_current_object()
    if to is None:
        return None
    if isinstance(to, str | bytes) or not isinstance(to, Iterable):
        return [to]
    return [each for each in to if each is not None]


def _send_to(socket: Any, markup: str) -> None:
    """Send to one of the application's own sockets; if it is dead, the others still receive."""
    try:
        socket.send(markup)
    except OSError as exc:
        logger.debug("a socket of turbo.clients has ended: %s", exc)
    except Exception:  # of any WebSocket library
        logger.exception("a socket of turbo.clients cannot be sent to")


def _request_id() -> str | None:
    """Return the id that turbo.js gave the current request, or None."""
    given = request.headers.get("X-Turbo-Request-Id", "") if has_request_context() else ""
    return given if 0 < len(given) <= _LONGEST_REQUEST_ID else None
