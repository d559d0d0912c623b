"""Pages with Turbo: loaded, then connected as ``turbo-streams.js`` does it, with its positions."""

from __future__ import annotations

import json
import re
from html import unescape
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from tests.event_client import Dispatcher
from tests.wire_client import request

from .client import CLOSING_WAYS, WAYS, Client, get
from .following import Following
from .names import ROOMS, TURBO_ALL, USERS, room, user
from .reader import Blocks

if TYPE_CHECKING:
    from .swarm import Swarm

__all__ = ["Page"]

_STREAM = re.compile(
    r'<meta name="turbo-stream-from" content="([^"]*)" data-position="([^"]*)"'
    r'|<turbo-stream-from name="([^"]*)" position="([^"]*)" hidden>'
)
_UNKNOWN = "-"  # the broker was away when the page was made: a browser loads it again


class Page(Client):
    """A tab: some have their streams as Server-Sent Events, as where WebSockets are blocked."""

    def __init__(self, swarm: Swarm, number: int) -> None:
        super().__init__(swarm, number)
        self._user, self._room = number % USERS, number % ROOMS
        self._over_http = number % 4 == 1
        self.ways = WAYS if self._over_http else CLOSING_WAYS
        self.channels = [TURBO_ALL, user(self._user), room(self._room)]
        self.following = Following(swarm.seen, self.name, self.channels)
        self._names: list[str] = []  # signed; none: it is to be loaded
        self._page = b""
        self._blocks, self._dispatcher = Blocks(), Dispatcher()
        self._subscribed: set[str] = set()

    def opening(self) -> bytes:
        who = f"X-Soak-User: u{self._user}"
        if self._names and self.random.random() < 0.2:
            self.following.note(False)  # the tab goes to another page
            self.following = Following(self.swarm.seen, self.name, self.channels)
            self._names = []
        if not self._names:
            self._page = b""
            return get(f"/page/{self._room}", who)
        self._subscribed.clear()
        pairs = zip(self._names, self.channels, strict=True)
        query = [pair for name, channel in pairs for pair in self._asked(name, channel)]
        path = f"/turbo-stream?{urlencode(query)}"
        if self._over_http:
            self._blocks, self._dispatcher = Blocks(), Dispatcher()
            return get(path, who, "Accept: text/event-stream")
        return request(path, lines=[who])

    def _asked(self, name: str, channel: str) -> list[tuple[str, str | None]]:
        return [("s", name), ("at", self.following.last[channel])]

    def take(self, kind: str, value: Any) -> None:
        if kind == "status":
            expected = 200 if self._over_http or not self._names else 101
            if value[0] != expected:
                self.lost(f"answered {value[0]}")
        elif kind == "text":
            self._take(json.loads(value))
        elif not self._names:
            self._load(kind, value)
        elif kind == "body":
            for block in self._blocks.feed(value):
                event = self._dispatcher.take(block)
                if event is not None:
                    self._take(event.json())
        elif kind == "end":
            self.lost("stream ended")

    def _load(self, kind: str, value: Any) -> None:
        if kind == "body":
            self._page += value
            return
        found = _STREAM.findall(self._page.decode())
        streams = [(unescape(one or other), at or place) for one, at, other, place in found]
        positions = [position for _, position in streams]
        if len(streams) != len(self.channels) or _UNKNOWN in positions:
            self.lost("page without positions")
            return
        self._names = [name for name, _ in streams]
        for channel, position in zip(self.channels, positions, strict=True):
            self.following.subscribed(channel, position)
        self.swarm.seen.counts["pages loaded"] += 1
        self.reconnect()

    def _take(self, message: dict[str, Any]) -> None:
        following = self.following
        match message.get("event"):
            case "streams":
                if message["channels"] != self.channels:
                    raise AssertionError(f"expected {self.channels}, got {message}")
            case "subscribed":
                self._subscribed.add(message["channel"])
                if len(self._subscribed) == len(self.channels):
                    self.arrived()
            case "gap":
                following.gap(message["channel"], message["position"])
            case _:
                channel, position = message["channel"], message["position"]
                following.message(channel, position, message["data"], None, self.since)

    def is_level(self, newest: dict[str, str]) -> bool:
        return self.settled and self.following.is_level(newest)

    def note(self) -> None:
        self.following.note(self.settled)
