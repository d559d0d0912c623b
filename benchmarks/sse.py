"""The measurements of event streams: paced events, memory, and what they take of Redis."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from .listeners import Broadcast, ask
from .load import LoadError
from .measure import Cores, Meter, Sample
from .push import SETTLES, SIZE, sample_of
from .pushers import Streamer
from .results import Results, streams
from .servers import Server
from .subscribers import Subscribers
from .turns import Turns, progress
from .workers import Valkey

TIMEOUT = 60.0  # seconds, for all streams to open, and for all events of a window to arrive
WARM = 20  # streams that come and go before the memory is read
MEMORY_FROM = 1000  # streams; fewer take less than what the allocator takes at a time
EARLIER = 100  # events before the first that counts: all positions have as many digits then


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """How much is measured.

    :param rounds: in each of them every server has its turn.
    :param clients: that have a stream each, of each scenario.
    :param messages: of a window, one each ``interval`` seconds.
    """

    rounds: int = 3
    clients: Sequence[int] = (100, 1000, 5000)
    messages: int = 30
    interval: float = 0.1


FULL = StreamPlan()
QUICK = StreamPlan(rounds=1, clients=(100, 1000), messages=5)


class StreamTurns(Turns):
    """The turns of servers of event streams; each is started anew for each, with a Redis."""

    peers: list[Streamer]  # type: ignore[assignment]  # what it was given

    def __init__(
        self, streamers: Sequence[Streamer], cores: Cores, plan: StreamPlan, results: Results
    ) -> None:
        super().__init__(streamers, cores, results)
        self.plan = plan

    def loads(self) -> None:
        """Measure all of them."""
        reason = Valkey.missing()
        if reason:
            self.results.note(f"event streams are left out: {reason}")
            return
        for number in range(self.plan.rounds):
            for clients in self.plan.clients:
                progress(
                    f"event streams, round {number + 1} of {self.plan.rounds}, {clients:,} clients"
                )
                for streamer in self.peers:
                    if streamer.clients in (None, clients):
                        take = partial(paced, streamer, self.cores, clients, self.plan)
                        self.sample(streams(clients), streamer, take)


def paced(streamer: Streamer, cores: Cores, clients: int, plan: StreamPlan) -> Sample:
    """Measure events that come at intervals, each for all streams, and what those take.

    :raises LoadError: not all streams opened, or an event did not arrive everywhere.
    :raises ServerError: the server did not start, or died.
    """
    with ExitStack() as stack:
        valkey = stack.enter_context(Valkey(cores.client))
        redis = stack.enter_context(_client(valkey))
        server = stack.enter_context(
            Server(streamer, cores.server, {"BENCHMARK_BROKER": valkey.url})
        )
        with _subscribed(streamer, server, redis, min(WARM, clients)):
            pass
        # Of those that have left some servers learn when they write to them.
        ask(server.port, Broadcast(EARLIER).target(SIZE), TIMEOUT)
        server.settle()
        memory = server.memory()
        subscribers = stack.enter_context(_subscribed(streamer, server, redis, clients))
        time.sleep(SETTLES)
        memory = server.memory() - memory
        (connections,) = _told(redis, "clients", "connected_clients")
        subscribers.broadcast(server.port, Broadcast(2, plan.interval), TIMEOUT)
        meter, redis_cpu = Meter(server, cores), _cpu(redis)
        what = Broadcast(plan.messages, plan.interval)
        window = subscribers.broadcast(server.port, what, TIMEOUT)
        sample = {
            **sample_of(meter, window, clients),
            "redis_us": (_cpu(redis) - redis_cpu) / window.messages * 1e6,
            "redis_connections": connections - 1,  # the one that asks
        }
        if clients >= MEMORY_FROM:
            sample["kib"] = memory / clients / 1024
        return sample


def _subscribed(streamer: Streamer, server: Server, redis: Any, clients: int) -> Subscribers:
    """Return streams that have got one event."""
    subscribers = Subscribers(SIZE, count=partial(_subscriptions, redis) if streamer.late else None)
    try:
        subscribers.open(server.port, clients, TIMEOUT, streamer.target)
        subscribers.learn([server.port], TIMEOUT)
    except BaseException:
        subscribers.close()
        raise
    return subscribers


def _client(valkey: Valkey) -> Any:
    from redis import Redis

    return Redis.from_url(valkey.url, socket_timeout=TIMEOUT)


def _told(redis: Any, section: str, *fields: str) -> list[float]:
    """Return what ``INFO`` tells.

    :raises LoadError: it does not.
    """
    from redis import RedisError

    try:
        told = redis.info(section)
        return [told[field] for field in fields]
    except (RedisError, KeyError) as exc:
        raise LoadError(f"Redis does not tell of its {section}: {exc!r}") from exc


def _subscriptions(redis: Any) -> int:
    """Return how many connections have subscribed to something.

    Not by PUBSUB NUMSUB: Valkey 9.1 answers it with any number while it enlarges its table.
    """
    (number,) = _told(redis, "clients", "pubsub_clients")
    return int(number)


def _cpu(redis: Any) -> float:
    """Return the seconds of CPU that Redis has used so far."""
    return sum(_told(redis, "cpu", "used_cpu_user", "used_cpu_sys"))
