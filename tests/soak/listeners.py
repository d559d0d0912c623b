"""Listeners of channels over WebSockets, of one or of several."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.wire_client import TEXT, frame, request

from .client import CLOSING_WAYS, Client
from .following import Following
from .names import PLAIN

if TYPE_CHECKING:
    from .swarm import Swarm

__all__ = ["Listener"]


class Listener(Client):
    ways = CLOSING_WAYS

    def __init__(self, swarm: Swarm, number: int) -> None:
        super().__init__(swarm, number)
        wanted = [name for name in swarm.plan.channels if name.startswith(PLAIN)]
        some = 1 if number % 2 else self.random.randint(2, min(5, len(wanted)))
        self.following = Following(swarm.seen, self.name, self.random.sample(wanted, some))
        self._subscribed: set[str] = set()

    def opening(self) -> bytes:
        self._subscribed.clear()
        # The server reads both in one go, or not: both are to work.
        return request("/listen") + frame(TEXT, json.dumps(self.following.last).encode())

    def take(self, kind: str, value: Any) -> None:
        if kind == "status":
            if value[0] != 101:
                self.lost(f"answered {value[0]}")
        elif kind == "text":
            self._take(json.loads(value))

    def _take(self, message: dict[str, Any]) -> None:
        following = self.following
        if "subscribed" in message:
            following.subscribed(message["subscribed"], message["position"])
            self._subscribed.add(message["subscribed"])
            if len(self._subscribed) == len(following.records):
                self.arrived()
        elif message.get("event") == "gap":
            following.gap(message["channel"], message["position"])
        else:
            channel, position = message["channel"], message["position"]
            encoding = message.get("encoding")
            following.message(channel, position, message["data"], encoding, self.since)

    def is_level(self, newest: dict[str, str]) -> bool:
        return self.settled and self.following.is_level(newest)

    def note(self) -> None:
        self.following.note(self.settled)
