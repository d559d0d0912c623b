"""Debounce of refreshes: of many within half a second, a page gets the first and one last.

Each refresh makes every page of a stream load itself again. So the first refresh is sent at once.
All others within the pause are combined into one, which is sent after the pause. This applies per
stream, across all workers. (turbo-rails sends only the last refresh, per stream and request.)

The page whose request caused a refresh ignores the refresh, because that page shows the response
to the request. If the request of the first refresh also caused all combined ones, its page ignores
the last refresh, too. In any other case, the last refresh is for all pages.

No change is missed: the combined refresh is sent after the last refresh in it. If the process ends,
as a script does, a waiting refresh is sent at once.
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
_MARGIN = 0.05  # seconds from the end of its hold until the last refresh is sent


@dataclass(frozen=True, slots=True)
class Refresh:
    """A refresh for the pages of a stream.

    :ivar markup: markup that the page which caused the refresh ignores.
    :ivar for_all: markup for every page.
    :ivar cause: name of the request that caused the refresh, None without a request.
    """

    markup: str
    for_all: str
    cause: str | None = None


class RefreshDebounce:
    """Sends the first and the last of refreshes in quick succession; see above."""

    def __init__(self, pause: float = PAUSE) -> None:
        self._pause = pause
        self._later = DelayedCalls(pause + _MARGIN)
        atexit.register(_flush, self._later, os.getpid())

    def send(self, publisher: Publisher, channel: str, refresh: Refresh) -> Position | None:
        """Send a refresh now, or combine it with a refresh that is sent soon.

        :returns: the position of the refresh, None if it is sent later.
        :raises BrokerError: if the broker cannot be reached.
        """
        broker, name = publisher.broker, f"{channel} {refresh.for_all}"
        try:
            first = self._hold(broker, f"refresh:{name}")
            # The cause of the first refresh holds this name, and renews its hold each time.
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
    if os.getpid() == pid:  # waiting refreshes in a fork belong to the parent
        later.flush()


def _send_last(publisher: Publisher, channel: str, markup: str) -> None:
    try:
        publisher.publish(channel, markup)
    except Exception:
        logger.exception("a refresh could not be sent: pages show what was before it")
