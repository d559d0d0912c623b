"""The publisher's half of all servers in Python: what ``/publish`` is asked to do, and when."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True)
class Order:
    """One request for ``/publish``.

    :ivar count: messages.
    :ivar size: bytes of each, of everything that a frame carries.
    :ivar interval: seconds between them; 0: back to back.
    :ivar turn: messages after which others have their turn, where they go back to back.
    :ivar channels: how many channels they go to, one after another; 0: all to the one of all.
    """

    count: int = 1
    size: int = 300
    interval: float = 0.0
    turn: int = 1
    channels: int = 0

    @classmethod
    def of(cls, target: str) -> Order:
        """Read the target of a request."""
        given = {name: values[0] for name, values in parse_qs(urlsplit(target).query).items()}
        return cls(
            count=int(given.get("count", cls.count)),
            size=int(given.get("size", cls.size)),
            interval=float(given.get("interval", cls.interval)),
            turn=int(given.get("turn", cls.turn)),
            channels=int(given.get("channels", cls.channels)),
        )

    def text(self, overhead: int = 0) -> str:
        """Return what to publish.

        :param overhead: bytes that the protocol puts around it.
        """
        return "x" * (self.size - overhead)

    def waits(self) -> Iterator[float | None]:
        """Yield for each message how long to wait before it; None: not at all, not even a turn."""
        began = time.monotonic()
        for number in range(self.count):
            if self.interval:
                yield max(began + number * self.interval - time.monotonic(), 0.0)
            elif number % self.turn:
                yield None
            else:
                yield 0.0

    def run(self, publish: Callable[[int], Any], sleep: Callable[[float], Any]) -> dict[str, float]:
        """Publish, each message by its number, and return what to answer."""
        began = time.monotonic()
        for number, wait in enumerate(self.waits()):
            if wait is not None:
                sleep(wait)
            publish(number)
        return {"seconds": time.monotonic() - began}
