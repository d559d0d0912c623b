"""Roll call: sends presence again after joins and leaves may have been lost."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..concurrency.delayed_calls import DelayedCalls
from ..concurrency.native_lock import native_lock
from ..exceptions import BrokerError

__all__ = ["RollCall"]

logger = logging.getLogger("flask_sockets2.channels")

_ATTEMPTS = 5  # failures of the broker in a row before the roll calls are given up
_RETRY = 2.0  # seconds between two attempts


class RollCall:
    """Sends presence again in channels, one after another, in a thread of its own.

    :param delay: seconds before the roll call; if a channel asks again meanwhile, one is enough.
    :param call: function that sends one channel its members; raises BrokerError.

    If the broker fails, the roll call is retried and at last given up. When the broker reconnects,
    the channels ask again.
    """

    def __init__(self, delay: float, call: Callable[[str], None]) -> None:
        self._call = call
        self._lock = native_lock()  # guards the next three lines
        self._waiting: dict[str, None] = {}
        self._failures = 0  # in a row
        self._scheduled = self._closed = False
        self._later = DelayedCalls(delay)
        self._retries = DelayedCalls(_RETRY)

    def ask(self, channel: str) -> None:
        """Schedule a roll call in a channel; does not wait."""
        with self._lock:
            if self._closed:
                return
            self._waiting[channel] = None
            if self._scheduled:
                return
            self._scheduled = True
        self._later.call(self._run)

    def _run(self) -> None:
        later = self._later
        try:
            while True:
                with self._lock:
                    channel = next(iter(self._waiting), None)
                    if channel is None:
                        return
                    del self._waiting[channel]
                self._call(channel)
                self._failures = 0
        except BrokerError as exc:
            assert channel is not None
            self._failed(channel, exc)
            later = self._retries
        finally:
            with self._lock:
                self._scheduled = again = bool(self._waiting)
            if again:
                later.call(self._run)

    def _failed(self, channel: str, exc: BrokerError) -> None:
        with self._lock:
            if self._closed:
                return
            self._failures += 1
            self._waiting[channel] = None  # behind the others
            if self._failures < _ATTEMPTS:
                return
            count = len(self._waiting)
            self._waiting.clear()
            self._failures = 0
        logger.warning("could not tell %d channels anew who is there: %s", count, exc)

    def close(self) -> None:
        """Cancel the roll calls that are scheduled."""
        with self._lock:
            self._closed = True
            self._waiting.clear()
        self._later.close()
        self._retries.close()
