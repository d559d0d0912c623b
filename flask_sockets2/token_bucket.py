"""Token buckets, single or per key.

A bucket holds the tokens of one second, at least one token, and refills at the rate at which it may
be emptied. So a page may open three connections at once, and a client cannot save up for an hour.
Times are seconds of :func:`time.monotonic`. The caller gives them and guards the buckets.
"""

from __future__ import annotations

from collections import OrderedDict

__all__ = ["Buckets", "TokenBucket"]

_MOST = 10_000  # keys stored; if a flood has more keys, only the total limit stops it
_ALMOST = 1e-9  # rounding error of floating-point sums


class TokenBucket:
    """Limits an event to ``rate`` times a second.

    :param rate: tokens a second, above 0.
    :param now: the time.
    """

    __slots__ = ("_at", "_level", "rate")

    def __init__(self, rate: float, now: float) -> None:
        self.rate = rate
        self._level = max(1.0, rate)  # if below 0, tokens are owed
        self._at = now

    def _fill(self, now: float) -> None:
        self._level = min(max(1.0, self.rate), self._level + (now - self._at) * self.rate)
        self._at = now

    def take(self, now: float) -> float:
        """Take a token and return 0, or if there is none, return the seconds until the next."""
        self._fill(now)
        if self._level >= 1.0 - _ALMOST:
            self._level -= 1.0
            return 0.0
        return (1.0 - self._level) / self.rate

    def owe(self, count: int, now: float) -> float:
        """Take tokens, even if there are fewer; return the seconds until none is owed."""
        self._fill(now)
        self._level -= count
        return max(0.0, -self._level / self.rate)

    def is_full(self, now: float) -> bool:
        """Whether the bucket is full, as a new one."""
        self._fill(now)
        return self._level >= max(1.0, self.rate) - _ALMOST


class Buckets:
    """Limits an event for each key, with a bucket per key.

    Full buckets are removed. If there are too many keys, the least recently used one is removed.
    So a client with ever new addresses gains only the tokens of one second for each address.
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
        """Check the two least recently used buckets: two checks for each new bucket."""
        for _ in range(2):
            if self._buckets:
                key, bucket = next(iter(self._buckets.items()))
                if len(self._buckets) >= _MOST or bucket.is_full(now):
                    del self._buckets[key]
