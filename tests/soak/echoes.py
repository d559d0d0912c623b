"""Clients of a WebSocket that sends each message back."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from tests.wire_client import BINARY, TEXT, frame, request

from .answers import Echoes
from .client import CLOSING_WAYS, Client

if TYPE_CHECKING:
    from .swarm import Swarm

__all__ = ["Echoer"]

_LONGEST_WAIT = 20.0  # seconds for an echo, longer than any network here is frozen
_LARGEST = 5000  # bytes


class Echoer(Client):
    ways = CLOSING_WAYS

    def __init__(self, swarm: Swarm, number: int) -> None:
        super().__init__(swarm, number)
        self._log = Echoes(self.name)
        self._connections = 0
        self._asked: list[float] = []  # when, by serial number

    def opening(self) -> bytes:
        self._connections += 1
        self._log = Echoes(f"{self.name}, connection {self._connections}")
        self._asked = []
        return request("/echo")

    def take(self, kind: str, value: Any) -> None:
        if kind == "status":
            if value[0] != 101:
                self.lost(f"answered {value[0]}")
                return
            self.swarm.seen.echoes.append(self._log)
            self.arrived()
            self._say()
        elif kind in ("text", "binary"):
            self.swarm.seen.counts["echoes"] += 1
            serial = _serial(value)
            right = 0 <= serial < len(self._asked) and (kind, value) == self._content(serial)
            self._log.came.append(serial if right else None)

    def _say(self) -> None:
        if self._leaving:
            return
        for _ in range(self.random.choice((1, 1, 1, 5))):
            serial = len(self._asked)
            self._asked.append(time.monotonic())
            kind, content = self._content(serial)
            self.send(frame(TEXT if kind == "text" else BINARY, content))
        self._log.sent = len(self._asked)
        self.later(self.random.uniform(0.2, 3.0), self._say)
        if (
            self._log.missing
            and time.monotonic() - self._asked[len(self._log.came)] > _LONGEST_WAIT
        ):
            self._log.overdue = True

    def _content(self, serial: int) -> tuple[str, bytes]:
        head = f"{serial} {self._log.client} ".encode()
        return "binary" if serial % 3 == 2 else "text", head + b"x" * (serial * 977 % _LARGEST)

    def ended(self, why: str) -> None:
        # Whoever closes in good order gets all that it has asked for.
        self._log.overdue = self._log.overdue or (why == "closed" and bool(self._log.missing))


def _serial(content: bytes) -> int:
    first = content.partition(b" ")[0]
    return int(first) if first.isdigit() else -1
