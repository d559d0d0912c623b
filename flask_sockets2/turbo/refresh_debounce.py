"""Refreshes, few of them: of many within half a second a page gets the first and one last.

A refresh says nothing but that something has changed, and each makes every page of its stream ask
for itself anew. So the first is sent at once; those that follow within the pause become one, sent
after it. That holds for each stream, over all workers. (turbo-rails sends the last one only, for
each stream and each request.)

The page whose request has caused a refresh leaves it out, for it shows the answer to that request.
So the last one is of two kinds: for the others, where all that it stands for is of the request that
caused the first one; else for all pages, the causing ones included.

Nothing is lost by it: what waits is sent after the last refresh that it stands for, and at once
when the process ends, as that of a script does.
"""

from __future__ import annotations

import atexit
import logging
import os
import secrets
from dataclasses import dataclass
from functools import partial

from ..brokers.base import Broker, Position
from ..channels.publisher import Publisher
from ..concurrency.delayed_calls import DelayedCalls
from ..exceptions import BrokerError

__all__ = ["PAUSE", "Refresh", "RefreshDebounce"]

logger = logging.getLogger("flask_sockets2.turbo")

PAUSE = 0.5  # seconds, as in turbo-rails
_MARGIN = 0.05  # seconds that the last one comes after its hold is over


@dataclass(frozen=True, slots=True)
class Refresh:
    """A refresh for the pages of a stream.

    :ivar markup: which the page that has caused it leaves out.
    :ivar for_all: the same for every page.
    :ivar cause: names the request that has caused it, None if there is none.
    """

    markup: str
    for_all: str
    cause: str | None = None


class RefreshDebounce:
    """Sends the first and the last of what comes in quick succession, see above."""

    def __init__(self, pause: float = PAUSE) -> None:
        self._pause = pause
        self._later = DelayedCalls(pause + _MARGIN)
        atexit.register(_flush, self._later, os.getpid())

    def send(self, publisher: Publisher, channel: str, refresh: Refresh) -> Position | None:
        """Send a refresh now, or leave it to another one that is sent soon.

        :returns: its position, None where it is sent later.
        :raises BrokerError: when the broker cannot be reached.
        """
        broker, name = publisher.broker, f"{channel} {refresh.for_all}"
        try:
            first = self._hold(broker, f"refresh:{name}")
            # Held by the first one's cause, again and again while there is no other.
            alone = self._hold(broker, f"cause of refresh:{name}", refresh.cause or "-")
            markup = refresh.markup if first or alone else refresh.for_all
            last = not first and self._hold(broker, f"last refresh:{channel} {markup}")
        except BrokerError as exc:
            return publisher._sender.failed(exc, [channel])[0]
        if first:
            return publisher.publish(channel, markup)
        if last:
            self._later.call(partial(_send_last, publisher, channel, markup))
        return None

    def _hold(self, broker: Broker, name: str, holder: str | None = None) -> bool:
        return broker.hold(name, holder or secrets.token_hex(8), self._pause)


def _flush(later: DelayedCalls, pid: int) -> None:
    if os.getpid() == pid:  # what a fork has copied is its parent's
        later.flush()


def _send_last(publisher: Publisher, channel: str, markup: str) -> None:
    try:
        publisher.publish(channel, markup)
    except Exception:
        logger.exception("a refresh could not be sent: pages show what was before it")
