"""Rates: what may happen so often, for all or for each of many, and a log that no flood fills.

A token bucket holds what one second allows, at least one token, and fills as fast as it may be
emptied. So a page may open three connections at once, and nobody saves up for an hour. Times are
seconds of :func:`time.monotonic`, given by the caller, who also guards the buckets.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping
from threading import Lock
from time import monotonic
from typing import Any

__all__ = ["Buckets", "SeldomLog", "TokenBucket"]

_MOST = 10_000  # keys that are remembered; who floods from more of them is the whole's business
_ALMOST = 1e-9  # what sums of floating-point numbers may lack


class TokenBucket:
    """Tokens for what may happen ``rate`` times a second.

    :param rate: tokens a second, above 0.
    :param now: the time.
    """

    __slots__ = ("_at", "_level", "rate")

    def __init__(self, rate: float, now: float) -> None:
        self.rate = rate
        self._level = max(1.0, rate)  # below 0 it is owed
        self._at = now

    def _fill(self, now: float) -> None:
        self._level = min(max(1.0, self.rate), self._level + (now - self._at) * self.rate)
        self._at = now

    def take(self, now: float) -> float:
        """Take a token, where there is one; return the seconds until there is, 0 where it was."""
        self._fill(now)
        if self._level >= 1.0 - _ALMOST:
            self._level -= 1.0
            return 0.0
        return (1.0 - self._level) / self.rate

    def owe(self, count: int, now: float) -> float:
        """Take tokens, more than there are, too; return the seconds until none is owed."""
        self._fill(now)
        self._level -= count
        return max(0.0, -self._level / self.rate)

    def is_full(self, now: float) -> bool:
        """Whether it is as good as a new one."""
        self._fill(now)
        return self._level >= max(1.0, self.rate) - _ALMOST


class Buckets:
    """A bucket for each key.

    Those that are full again are forgotten, and of very many keys the one that was used longest
    ago: whoever comes from ever other addresses gets no more of this than a first second each.
    """

    def __init__(self) -> None:
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()  # the last used last

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: str, rate: float, now: float) -> float:
        """Take a token of a key's bucket; see :meth:`TokenBucket.take`."""
        bucket = self._buckets.get(key)
        if bucket is None:
            self._forget(now)
            bucket = self._buckets[key] = TokenBucket(rate, now)
        else:
            self._buckets.move_to_end(key)
        bucket.rate = rate  # the setting may have changed
        return bucket.take(now)

    def _forget(self, now: float) -> None:
        """Look at the two that were used longest ago: faster than others come."""
        for _ in range(2):
            if self._buckets:
                key, bucket = next(iter(self._buckets.items()))
                if len(self._buckets) >= _MOST or bucket.is_full(now):
                    del self._buckets[key]


class SeldomLog:
    """Logs each kind of line once a second at most, and how many were left out since.

    :param logger: where to.

    Any thread may log.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._kinds: dict[str, tuple[float, int]] = {}  # when logged last, and left out since
        self._lock = Lock()  # guards them

    def info(self, kind: str, message: str, *args: object) -> None:
        """Log for information, or count the line; :param kind: of few there are."""
        self._write(logging.INFO, kind, message, args)

    def failure(
        self, kind: str, message: str, *args: object, extra: Mapping[str, object] | None = None
    ) -> None:
        """Log an error without a traceback, or count it; takes what :meth:`warning` does."""
        self._write(logging.ERROR, kind, message, args, extra=extra)

    def warning(
        self, kind: str, message: str, *args: object, extra: Mapping[str, object] | None = None
    ) -> None:
        """Log a warning, or count it.

        :param kind: of few there are.
        :param extra: fields of the line.
        """
        self._write(logging.WARNING, kind, message, args, extra=extra)

    def error(self, message: str, *args: object, error: BaseException) -> None:
        """Log an error with its traceback, or count it; by message and type of exception."""
        kind = f"{type(error).__qualname__}: {message}"
        self._write(logging.ERROR, kind, message, args, exc_info=error)

    def _write(
        self, level: int, kind: str, message: str, args: tuple[object, ...], **how: Any
    ) -> None:
        with self._lock:
            now = monotonic()
            at, left_out = self._kinds.get(kind, (now - 1.0, 0))
            seldom = now - at >= 1.0
            self._kinds[kind] = (now, 0) if seldom else (at, left_out + 1)
        if not seldom:
            return
        if left_out:
            message, args = f"{message} (%s more since it was logged last)", (*args, left_out)
        self._logger.log(level, message, *args, **how)
