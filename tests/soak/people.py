"""People: clients that say who they are, and are told who else is there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.wire_client import request

from .client import CLOSING_WAYS, Client

if TYPE_CHECKING:
    from .swarm import Swarm

__all__ = ["Person"]

_ROOMS = 3


class Person(Client):
    """Some have another tab: the same identity is connected twice.

    :ivar view: who is there, as it was told.
    """

    ways = CLOSING_WAYS

    def __init__(self, swarm: Swarm, number: int) -> None:
        super().__init__(swarm, number)
        number -= number % 4 == 3  # a tab of the one before
        self.identity = f"p{number}"
        self.room = number % _ROOMS
        self.channel = f"people:{self.room}"
        self.view: set[str] = set()

    def opening(self) -> bytes:
        self.view = set()
        return request(f"/people/{self.room}?identity={self.identity}")

    def take(self, kind: str, value: Any) -> None:
        if kind == "status" and value[0] != 101:
            self.lost(f"answered {value[0]}")
        elif kind == "text":
            message = json.loads(value)
            self.swarm.seen.deliveries["presence"] += 1
            match message["event"]:
                case "presence":
                    self.view = set(message["identities"])
                    if not self.settled:
                        self.arrived()
                case "join":
                    self.view.add(message["identity"])
                case "leave":
                    self.view.discard(message["identity"])
