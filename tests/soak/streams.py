"""Event streams of ``flask_sockets2.sse``, which come back with the id that they have seen."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.event_client import Dispatcher

from .client import Client, get
from .following import Following
from .names import EVENTS
from .reader import Blocks

if TYPE_CHECKING:
    from .swarm import Swarm

__all__ = ["Stream"]


class Stream(Client):
    """A stream of one or several channels; its id names the position of each, in their order."""

    def __init__(self, swarm: Swarm, number: int) -> None:
        super().__init__(swarm, number)
        wanted = [name for name in swarm.plan.channels if name.startswith(EVENTS)]
        some = 1 if number % 2 else self.random.randint(2, 4)
        self.channels = self.random.sample(wanted, some)
        self.following = Following(swarm.seen, self.name, self.channels)
        self._dispatcher = Dispatcher()
        self._blocks = Blocks()

    def opening(self) -> bytes:
        self._blocks = Blocks()
        names = "&".join(f"channel={name.removeprefix(EVENTS)}" for name in self.channels)
        seen = self._dispatcher.last_id
        lines = [f"Last-Event-ID: {seen}"] if seen else []
        return get(f"/stream?{names}", "Accept: text/event-stream", *lines)

    def take(self, kind: str, value: Any) -> None:
        if kind == "status" and value[0] != 200:
            self.lost(f"answered {value[0]}")
        elif kind == "body":
            for block in self._blocks.feed(value):
                self._take(block)
        elif kind == "end":
            self.lost("stream ended")

    def _take(self, block: str) -> None:
        before = self._dispatcher.last_id.split(",")
        event = self._dispatcher.take(block)
        positions = self._dispatcher.last_id.split(",")
        if not self.settled:
            for channel, position in zip(self.channels, positions, strict=True):
                self.following.subscribed(channel, position)
            self.arrived()
        if event is None:
            return
        moved = [place for place, seen in enumerate(before) if seen != positions[place]]
        data = json.loads(event.data)
        name = data["channel"] if event.type == "gap" else data["c"].removeprefix(EVENTS)
        channel = self.channels[moved[0]] if moved else EVENTS + name
        position = positions[self.channels.index(channel)]
        if event.type == "gap":
            self.following.gap(channel, position)
        else:
            self.following.message(channel, position, data, None, self.since)

    def is_level(self, newest: dict[str, str]) -> bool:
        return self.settled and self.following.is_level(newest)

    def note(self) -> None:
        self.following.note(self.settled)
