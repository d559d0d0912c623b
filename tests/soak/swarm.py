"""The process of the clients: all in one thread, which come and go and note what they see."""

from __future__ import annotations

import heapq
import selectors
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from multiprocessing.connection import Connection
from random import Random

from .answers import Answer, Echoes, Room
from .checker import Record
from .client import Client
from .echoes import Echoer
from .listeners import Listener
from .pages import Page
from .people import Person
from .streams import Stream
from .visitors import Visitor

__all__ = ["KINDS", "Plan", "Seen", "Swarm", "run"]

KINDS: Mapping[str, type[Client]] = {
    "listeners": Listener,
    "echoes": Echoer,
    "streams": Stream,
    "pages": Page,
    "people": Person,
    "visitors": Visitor,
}


@dataclass(frozen=True)
class Plan:
    """Who connects, and for how long.

    :ivar port: where most connect.
    :ivar relay: where the others do: their network is cut now and then.
    :ivar direct: of the server itself, without a proxy.
    :ivar kinds: how many clients there are of each of :data:`KINDS`.
    :ivar channels: of the broker, that listeners and streams take theirs from.
    :ivar lifetime: seconds that a connection lasts on average.
    :ivar away: seconds between two of them, at most.
    :ivar pauses: some stop reading for a while.
    """

    port: int
    relay: int
    direct: int
    kinds: Mapping[str, int]
    channels: Sequence[str]
    lifetime: float
    away: float
    seed: int
    pauses: bool = False


@dataclass
class Seen:
    """What all clients saw.

    :ivar counts: of connections, replays, ways to leave and so on.
    :ivar deliveries: messages of channels, by the kind of channel.
    :ivar answers: that were not right.
    :ivar worst_catch_up: seconds from a connection to the last message that it had missed.
    :ivar worst_delay: seconds from publishing to the arrival at a client that was connected.
    """

    records: list[Record] = field(default_factory=list)
    echoes: list[Echoes] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    rooms: list[Room] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    deliveries: Counter[str] = field(default_factory=Counter)
    worst_catch_up: float = 0.0
    worst_delay: float = 0.0


def run(plan: Plan, pipe: Connection) -> None:
    """Let clients come and go until told otherwise through the pipe.

    ``"counts"`` asks what was counted so far.
    ``"stay"``: who is connected stays, all others connect. ``"settled"`` asks how many are not yet,
    ``("level", {channel: position})`` how many have not seen that, ``"together"`` how many do not
    know who is there. ``"leave"``: all go and none comes back, ``"gone"`` asks how many are still
    there. ``"end"`` asks for :class:`Seen`, as it was before they left.
    """
    Swarm(plan, pipe).run()


class Swarm:
    def __init__(self, plan: Plan, pipe: Connection) -> None:
        self.plan = plan
        self.seen = Seen()
        self.random = Random(f"{plan.seed}-clients")
        self.selector = selectors.DefaultSelector()
        self.staying = False
        self.ending = False
        self._pipe = pipe
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._clients = [
            KINDS[kind](self, number)
            for kind, clients in plan.kinds.items()
            for number in range(clients)
        ]

    def later(self, delay: float, function: Callable[[], None]) -> None:
        entry = (time.monotonic() + delay, next(self._numbers), function)
        heapq.heappush(self._timers, entry)

    def run(self) -> None:
        self.selector.register(self._pipe, selectors.EVENT_READ)
        for client in self._clients:
            self.later(self.random.random() * len(self._clients) / 500, client.connect)
        while True:
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                heapq.heappop(self._timers)[2]()
            timeout = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else 1.0
            for key, events in self.selector.select(min(timeout, 1.0)):
                if key.fileobj is self._pipe:
                    command = self._pipe.recv()
                    self._pipe.send(self._obey(command))
                    if command == "end":
                        return
                elif key.data.connection == key.fileobj:
                    key.data.ready(events)

    def _obey(self, command: object) -> object:
        if isinstance(command, tuple):
            return sum(not client.is_level(command[1]) for client in self._clients)
        match command:
            case "stay":
                self.staying = True
            case "settled":
                return sum(not client.settled for client in self._clients)
            case "counts":
                return {**self.seen.counts, "deliveries": self.seen.deliveries.total()}
            case "together":
                return sum(not room.agrees for room in self._rooms())
            case "leave":
                self._note()
                self.ending = True
                for client in self._clients:
                    client.leave()
            case "gone":
                return sum(client.connection is not None for client in self._clients)
            case "end":
                if not self.ending:
                    self._note()
                return self.seen
        return None

    def _note(self) -> None:
        self.seen.rooms = self._rooms()
        for client in self._clients:
            client.note()

    def _rooms(self) -> list[Room]:
        """Who is there, in truth, and who they think is."""
        people = [client for client in self._clients if isinstance(client, Person)]
        rooms = {person.channel: Room(person.channel, set(), {}) for person in people}
        for person in people:
            if person.settled:
                rooms[person.channel].present.add(person.identity)
                rooms[person.channel].views[person.name] = set(person.view)
        return list(rooms.values())
