"""The order of the measurements: in turns, so that noise hits all servers alike."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from . import measure
from .load import LoadError
from .measure import Cores, Sample
from .results import ECHOES, HANDSHAKES, IDLE, IDLE_MANY, Results
from .servers import OURS, Peer, Server, ServerError


class Several(dict[str, Sample]):
    """Samples that were taken in one go, by the name of what each is of."""


Taken = Sample | Several


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
    """Servers that take turns, and the samples of their measurements.

    :param peers: those that are measured; who does not start is left out.
    :param results: where the samples go, and a note for everything that went wrong.
    """

    def __init__(self, peers: Sequence[Peer], cores: Cores, results: Results) -> None:
        self.peers = list(peers)
        self.cores = cores
        self.results = results

    def start(self, stack: ExitStack) -> list[Server]:
        """Start each server, until the stack is closed."""
        servers = []
        for peer in self.peers:
            try:
                servers.append(stack.enter_context(Server(peer, self.cores.server)))
            except ServerError as exc:
                self.results.note(f"{peer.title} is left out: {exc}")
        self.peers = [server.peer for server in servers]
        return servers

    def turn(
        self, scenario: str, server: Server, servers: list[Server], take: Callable[[], Taken]
    ) -> None:
        """Take samples, and let the server come to rest before another has its turn."""
        if not self.sample(scenario, server.peer, take):
            return
        try:
            server.settle()
        except ServerError as exc:
            self.results.note(f"{server.peer.title} is left out from {scenario} on: {exc}")
            server.stop()
            servers.remove(server)

    def sample(self, scenario: str, peer: Peer, take: Callable[[], Taken]) -> bool:
        """Take a sample, or several by name, unless it failed before; tell whether it was tried."""
        if (scenario, peer.name) in self.results.failed:
            return False
        try:
            taken = take()
        except (LoadError, ServerError, OSError, subprocess.SubprocessError) as exc:
            self.results.failed[scenario, peer.name] = str(exc)
            self.results.note(f"{scenario}, {peer.title}: {exc}")
            return True
        if isinstance(taken, Several):
            for name, sample in taken.items():
                self.results.add(scenario, name, sample)
        else:
            self.results.add(scenario, peer.name, taken)
        return True


class EchoTurns(Turns):
    """The turns of echo servers: echoes, handshakes, idle connections.

    :param descriptors: how many connections a process can have open.
    """

    def __init__(
        self, peers: Sequence[Peer], cores: Cores, plan: Plan, descriptors: int, results: Results
    ) -> None:
        super().__init__(peers, cores, results)
        self.plan = plan
        self.descriptors = descriptors

    def loads(self, parts: Collection[str]) -> None:
        """Measure the echoes and the handshakes; each server is started once."""
        with ExitStack() as stack:
            servers = self.start(stack)
            for number in range(self.plan.rounds):
                progress(f"echoes and handshakes, round {number + 1} of {self.plan.rounds}")
                for echo in ECHOES if "echo" in parts else ():
                    for server in tuple(servers):
                        take = partial(measure.echo, server, self.cores, echo, self.plan.duration)
                        self.turn(echo.name, server, servers, take)
                for server in tuple(servers) if "handshakes" in parts else ():
                    if server.peer.parsed:  # a floor knows no closing handshake
                        take = partial(measure.handshake, server, self.cores, self.plan.duration)
                        self.turn(HANDSHAKES, server, servers, take)

    def memory(self) -> None:
        """Measure idle connections; each server is started anew for each reading."""
        for number in range(self.plan.idle_rounds):
            progress(f"idle connections, round {number + 1} of {self.plan.idle_rounds}")
            for peer in self.peers:
                count = min(self.plan.idle, peer.max_idle or self.plan.idle)
                self.sample(IDLE, peer, partial(self._idle, peer, count))
        for peer in self.peers:
            if peer.name == OURS and self.plan.idle_many:
                progress(f"idle connections, {self.plan.idle_many:,} of {peer.title}")
                self.sample(IDLE_MANY, peer, partial(self._idle, peer, self.plan.idle_many))

    def _idle(self, peer: Peer, count: int) -> Sample:
        if count > self.descriptors:
            self.results.note(
                f"{count:,} idle connections are more than the limit of open files allows; "
                f"{self.descriptors:,} were opened"
            )
        with Server(peer, self.cores.server) as server:
            return measure.idle(server, min(count, self.descriptors))


def progress(line: str) -> None:
    """Say what is going on, beside the tables."""
    print(line, file=sys.stderr, flush=True)
