"""The order of the measurements of broadcasts."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from . import push, workers
from .listeners import Broadcast
from .measure import Cores, Sample
from .pushers import FLOOR, Pusher
from .results import (
    CHANNELS_FEW,
    CHANNELS_MANY,
    FLOOD,
    LISTENERS,
    LISTENERS_MANY,
    PUBLISH,
    REPLAY,
    WORKERS,
    WORKERS_FLOOD,
    WORKERS_FLOOD_SHARED,
    Results,
    fanout,
)
from .servers import OURS, Server
from .turns import Several, Turns, progress


@dataclass(frozen=True, slots=True)
class PushPlan:
    """How much is measured.

    :param rounds: in each of them every server has its turn.
    :param clients: that hear a message, of each scenario; and of the flood.
    :param messages: of a paced window, one each ``interval`` seconds.
    :param seconds: of a window back to back.
    :param listeners: whose memory is measured, and of flask_sockets2 once; 0: not at all.
    :param few: rounds of what is measured of few servers.
    :param channels: that have a subscriber each.
    :param published: messages that are published to them.
    :param returning: listeners that come back, ``behind`` messages late.
    :param sharing: listeners of each worker.
    """

    rounds: int = 3
    clients: Sequence[int] = (100, 1000, 5000)
    flood_clients: int = 1000
    messages: int = 30
    interval: float = 0.1
    seconds: float = 1.0
    memory_rounds: int = 2
    listeners: int = 5000
    listeners_many: int = 50_000
    few: int = 3
    channels: int = 100_000
    published: int = 20_000
    returning: int = 5000
    behind: int = 50
    sharing: int = 500


FULL = PushPlan()
QUICK = PushPlan(
    rounds=1,
    clients=(100, 1000),
    flood_clients=200,
    messages=5,
    seconds=0.2,
    memory_rounds=1,
    listeners=500,
    listeners_many=0,
    few=1,
    channels=10_000,
    published=2000,
    returning=500,
    sharing=100,
)


class PushTurns(Turns):
    """The turns of servers that broadcast.

    :param descriptors: how many connections a process can have open.
    """

    peers: list[Pusher]  # type: ignore[assignment]  # what it was given

    def __init__(
        self,
        pushers: Sequence[Pusher],
        cores: Cores,
        plan: PushPlan,
        descriptors: int,
        results: Results,
    ) -> None:
        super().__init__(pushers, cores, results)
        self.plan = plan
        self.descriptors = descriptors

    def loads(self, parts: Collection[str]) -> None:
        """Measure broadcasts, paced and back to back; each server is started once."""
        plan = self.plan
        with ExitStack() as stack:
            servers = self.start(stack)
            for number in range(plan.rounds):
                progress(f"broadcasts, round {number + 1} of {plan.rounds}")
                for clients in plan.clients if "fanout" in parts else ():
                    for server in tuple(servers):
                        take = partial(
                            push.paced, server, self.cores, clients, plan.messages, plan.interval
                        )
                        self.turn(fanout(clients), server, servers, take)
                for server in tuple(servers) if "flood" in parts else ():
                    self.turn(FLOOD, server, servers, partial(self._flood, server))

    def _flood(self, server: Server) -> Several:
        pusher = server.peer
        assert isinstance(pusher, Pusher)
        plan = self.plan
        taken = push.flood(server, self.cores, plan.flood_clients, plan.seconds, pusher.turns)
        return Several({name: taken[turn] for name, turn in pusher.rows().items()})

    def memory(self) -> None:
        """Measure listeners; each server is started anew for each reading."""
        plan = self.plan
        for number in range(plan.memory_rounds):
            progress(f"listeners, round {number + 1} of {plan.memory_rounds}")
            for pusher in self.peers:
                self.sample(LISTENERS, pusher, partial(self._memory, pusher, plan.listeners))
        for pusher in self.peers:
            if pusher.name == OURS and plan.listeners_many:
                progress(f"{plan.listeners_many:,} listeners")
                take = partial(self._memory, pusher, plan.listeners_many)
                self.sample(LISTENERS_MANY, pusher, take)

    def _memory(self, pusher: Pusher, clients: int) -> Sample:
        if clients > self.descriptors:
            self.results.note(
                f"{clients:,} listeners are more than the limit of open files allows; "
                f"{self.descriptors:,} were opened"
            )
        with Server(pusher, self.cores.server) as server:
            return push.memory(server, min(clients, self.descriptors), echoes=pusher.name == OURS)

    def channels(self) -> None:
        """Measure publishing to one of few and to one of many channels, of flask_sockets2."""
        for pusher in self.peers:
            if pusher.name != OURS:
                continue
            for number in range(self.plan.few):
                progress(f"channels, round {number + 1} of {self.plan.few}")
                for scenario, channels in (
                    (CHANNELS_FEW, push.CHANNELS_FEW),
                    (CHANNELS_MANY, self.plan.channels),
                ):
                    take = partial(self._channels, pusher, channels)
                    self.sample(scenario, pusher, take)

    def _channels(self, pusher: Pusher, channels: int) -> Sample:
        with Server(pusher, self.cores.server) as server:
            return push.channels(server, self.cores, channels, self.plan.published)

    def replay(self) -> None:
        """Measure listeners that come back, beside the floor's plain sending."""
        measures = {OURS: push.replay, FLOOR: push.floor_of_replay}
        with ExitStack() as stack:
            everyone, self.peers = self.peers, [p for p in self.peers if p.name in measures]
            servers = self.start(stack)
            self.peers = everyone
            for number in range(self.plan.few):
                progress(f"replay, round {number + 1} of {self.plan.few}")
                for server in tuple(servers):
                    take = partial(
                        measures[server.peer.name],
                        server,
                        self.cores,
                        self.plan.returning,
                        self.plan.behind,
                    )
                    self.turn(REPLAY, server, servers, take)

    def redis(self) -> None:
        """Measure two workers that share a Redis, and publishing from one process."""
        reason = workers.Valkey.missing()
        if reason:
            self.results.note(f"Redis is left out: {reason}")
            return
        shared = workers.share_cores(self.cores)
        if shared:
            self.results.note(
                "there are no cores for two workers, the load client and Redis: the second worker "
                "shares one with both, so only what the workers' CPU does is compared"
            )
        flood = WORKERS_FLOOD_SHARED if shared else WORKERS_FLOOD
        plan = self.plan
        for number in range(plan.few):
            progress(f"Redis, round {number + 1} of {plan.few}")
            for pusher in self.peers:
                if pusher.broker:
                    for scenario, what in (
                        (WORKERS, Broadcast(int(100 * plan.seconds), interval=0.01)),
                        (flood, Broadcast(int(500 * plan.seconds), turn=10)),
                    ):
                        take = partial(self._workers, pusher, what)
                        self.sample(scenario, pusher, take)
                if pusher.name == OURS:
                    self.sample(PUBLISH, pusher, self._publish)

    def _workers(self, pusher: Pusher, what: Broadcast) -> Several:
        taken = workers.together(pusher, self.cores, self.plan.sharing, what)
        return Several({f"{pusher.name}, {how}": sample for how, sample in taken.items()})

    def _publish(self) -> Several:
        return Several(
            {
                how: workers.publishing(self.cores, how, self.plan.seconds)
                for how in ("publish", "publish_many")
            }
        )
