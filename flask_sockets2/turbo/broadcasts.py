"""Broadcaster: sends streams to the pages of channels, and to sockets of the program's own."""

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
"""Sends a stream, now or later: publisher, channels, the markup or one channel's refresh, sockets
of the program's own. Returns a position for each channel."""


class Broadcaster:
    """Sends streams at once."""

    def __init__(self) -> None:
        # By an application's publisher, of which a process that was forked has others.
        self._debounces: WeakKeyDictionary[Publisher, RefreshDebounce] = WeakKeyDictionary()

    def send(
        self,
        publisher: Publisher,
        channels: list[str],
        stream: str | Refresh,
        sockets: Sequence[Any],
    ) -> Sequence[Position | None]:
        """Send a stream; see :data:`Send`.

        :raises BrokerError: when the broker cannot be reached.
        """
        if isinstance(stream, Refresh):
            [channel] = channels
            return [self._send_refresh(publisher, channel, stream)]
        positions = publisher.publish_many(
            ((channel, stream) for channel in channels), key=key_of(stream)
        )
        for socket in sockets:  # last: what is tried again, after an error, has not been sent
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
    """Return the markup of a stream, without names that only the current user could use.

    :param serving: returns the sockets of the application.
    :param exclude_sender: not for the page that has sent the current request.
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
    """Return a refresh whose page of origin leaves it out.

    :param for_all: the same for every page.
    :param request_id: of the request that has caused it; None for the current one, if
        ``exclude_sender``.
    """
    if exclude_sender and request_id is None:
        request_id = _request_id()
    if request_id is None:
        return Refresh(for_all, for_all)
    sender = sender_of(str(request_id))
    return Refresh(with_sender(for_all, sender), for_all, sender)


def recipients_of(to: Any) -> list[Any] | None:
    """Return the ids that ``to`` means, None for all; among others None is nobody."""
    if isinstance(to, LocalProxy):  # whose value need not be iterable as it is
        to = to._get_current_object()
    if to is None:
        return None
    if isinstance(to, str | bytes) or not isinstance(to, Iterable):
        return [to]
    return [each for each in to if each is not None]


def _send_to(socket: Any, markup: str) -> None:
    """Send to a socket of the program's own; others must not miss it when one is dead."""
    try:
        socket.send(markup)
    except OSError as exc:
        logger.debug("a socket of turbo.clients has ended: %s", exc)
    except Exception:  # whatever library it is of
        logger.exception("a socket of turbo.clients cannot be sent to")


def _request_id() -> str | None:
    """Return the id that turbo.js gave the current request, None without one."""
    given = request.headers.get("X-Turbo-Request-Id", "") if has_request_context() else ""
    return given if 0 < len(given) <= _LONGEST_REQUEST_ID else None
