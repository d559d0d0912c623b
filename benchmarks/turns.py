"""The order of the measurements: in turns, so that noise hits all servers alike."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from . import measure
from .load import LoadError
from .measure import Cores, Sample
from .results import ECHOES, HANDSHAKES, IDLE, IDLE_MANY, Results
from .servers import OURS, Peer, Server, ServerError


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured.

    :param rounds: in each of them every server has its turn.
    :param duration: seconds of a window.
    :param idle_rounds: how often the memory is measured.
    :param idle: connections for that.
    :param idle_many: connections for the same, of flask_sockets2 only; 0: not at all.
    """

    rounds: int
    duration: float
    idle_rounds: int
    idle: int
    idle_many: int


FULL = Plan(rounds=5, duration=1.0, idle_rounds=3, idle=2000, idle_many=10_000)
QUICK = Plan(rounds=1, duration=0.25, idle_rounds=1, idle=300, idle_many=0)


class Turns:
    """One run over some servers.

    :param descriptors: how many connections a process can have open.
    :param results: where the samples go, and a note for everything that went wrong.
    """

    def __init__(
        self, peers: Sequence[Peer], cores: Cores, plan: Plan, descriptors: int, results: Results
    ) -> None:
        self.peers = list(peers)
        self.cores = cores
        self.plan = plan
        self.descriptors = descriptors
        self.results = results
        self._failed: set[tuple[str, str]] = set()  # scenario, server: not tried again

    def loads(self) -> None:
        """Measure the echoes and the handshakes; each server is started once."""
        with ExitStack() as stack:
            servers = self._start(stack)
            for number in range(self.plan.rounds):
                _progress(f"echoes and handshakes, round {number + 1} of {self.plan.rounds}")
                for echo in ECHOES:
                    for server in tuple(servers):
                        take = partial(measure.echo, server, self.cores, echo, self.plan.duration)
                        self._turn(echo.name, server, servers, take)
                for server in tuple(servers):
                    if server.peer.parsed:  # a floor knows no closing handshake
                        take = partial(measure.handshake, server, self.cores, self.plan.duration)
                        self._turn(HANDSHAKES, server, servers, take)

    def _start(self, stack: ExitStack) -> list[Server]:
        servers = []
        for peer in self.peers:
            try:
                servers.append(stack.enter_context(Server(peer, self.cores.server)))
            except ServerError as exc:
                self.results.note(f"{peer.title} is left out: {exc}")
        self.peers = [server.peer for server in servers]
        return servers

    def _turn(
        self, scenario: str, server: Server, servers: list[Server], take: Callable[[], Sample]
    ) -> None:
        """Take one sample, and let the server come to rest before another has its turn."""
        if not self._sample(scenario, server.peer, take):
            return
        try:
            server.settle()
        except ServerError as exc:
            self.results.note(f"{server.peer.title} is left out from {scenario} on: {exc}")
            server.stop()
            servers.remove(server)

    def memory(self) -> None:
        """Measure idle connections; each server is started anew for each reading."""
        for number in range(self.plan.idle_rounds):
            _progress(f"idle connections, round {number + 1} of {self.plan.idle_rounds}")
            for peer in self.peers:
                count = min(self.plan.idle, peer.max_idle or self.plan.idle)
                self._sample(IDLE, peer, partial(self._idle, peer, count))
        for peer in self.peers:
            if peer.name == OURS and self.plan.idle_many:
                _progress(f"idle connections, {self.plan.idle_many:,} of {peer.title}")
                self._sample(IDLE_MANY, peer, partial(self._idle, peer, self.plan.idle_many))

    def _idle(self, peer: Peer, count: int) -> Sample:
        if count > self.descriptors:
            self.results.note(
                f"{count:,} idle connections are more than the limit of open files allows; "
                f"{self.descriptors:,} were opened"
            )
        with Server(peer, self.cores.server) as server:
            return measure.idle(server, min(count, self.descriptors))

    def _sample(self, scenario: str, peer: Peer, take: Callable[[], Sample]) -> bool:
        """Take one sample, unless it failed before; tell whether it was tried."""
        if (scenario, peer.name) in self._failed:
            return False
        try:
            self.results.add(scenario, peer.name, take())
        except (LoadError, ServerError, OSError) as exc:
            self._failed.add((scenario, peer.name))
            self.results.note(f"{scenario}, {peer.title}: {exc}")
        return True


def _progress(line: str) -> None:
    """Say what is going on, beside the tables."""
    print(line, file=sys.stderr, flush=True)
