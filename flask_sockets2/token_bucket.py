"""Token buckets, single or per key.

A bucket holds the tokens of one second, at least one token, and refills at the rate at which it may
be emptied. So a page may open three connections at once, and a client cannot save up for an hour.
Times are seconds of :func:`time.monotonic`. The caller gives them and guards the buckets.
"""

from __future__ import annotations

from collections import OrderedDict

__all__ = ["Buckets", "TokenBucket"]

_MOST = 10_000  # keys that are remembered; a flood from more of them is left to the total limit
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
