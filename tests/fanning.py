"""A fan-out without servers: hubs that turn when they are told to, clients whose kernel takes what
the test lets it take, and a broker that is far away."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from flask_sockets2.brokers.base import (
    Broker,
    BrokerOptions,
    Draft,
    History,
    Message,
    Position,
    Receiver,
)
from flask_sockets2.brokers.memory import MemoryBroker
from flask_sockets2.brokers.message_log import MessageLog
from flask_sockets2.exceptions import BrokerError
from flask_sockets2.fanout.encoding import Encoding, Frames
from flask_sockets2.fanout.fanout import Fanout, Subscription
from flask_sockets2.fanout.outbox import Observer, Outlet
from flask_sockets2.stats import Counters
from flask_sockets2.transports.budget import Budget, Share
from tests.wire_client import BINARY, CLOSE

EPOCH = "0" * 16
ENVELOPES = Frames.of(envelope=True)
PLAIN = Frames.of()


class Hub:
    """A hub that turns when it is told to.

    :ivar here: whether the test runs in its thread.
    """

    threaded = blocks = False

    def __init__(self) -> None:
        self.here = True
        self._calls: deque[Callable[[], None]] = deque()

    def call_soon(self, function: Callable[[], None]) -> None:
        self._calls.append(function)

    def inside(self) -> bool:
        return self.here

    @property
    def idle(self) -> bool:
        return not self._calls

    def turn(self) -> None:
        """Make the calls that are due; those that they ask for are for the next turn."""
        for _ in range(len(self._calls)):
            self._calls.popleft()()

    def settle(self) -> None:
        while self._calls:
            self.turn()


class Client:
    """A transport and the owner of its outlet.

    :param room: bytes that the kernel takes, None for all there are.
    """

    def __init__(self, hub: Any, room: int | None = None) -> None:
        self.clock = hub
        self.lock = threading.RLock()
        self.room = room
        self.buffered = 0
        self.share = Share(Budget(2**40), None)
        self.writes: list[bytes] = []
        self.ended = 0
        self.outlet: Outlet | None = None
        self._kept = b""
        self._taken: list[bytes] = []

    # -- as a transport --------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        self.writes.append(data)
        self._kept += data
        if not self.buffered:
            self._take()
        self.buffered = len(self._kept)

    def flush(self) -> None:
        if self.buffered:
            self._take()
            self._tell()

    def _take(self) -> None:
        size = len(self._kept) if self.room is None else min(self.room, len(self._kept))
        if self.room is not None:
            self.room -= size
        self._taken.append(self._kept[:size])
        self._kept = self._kept[size:]
        self.buffered = len(self._kept)

    def _tell(self) -> None:
        if not self.buffered and self.outlet is not None:
            self.outlet.drained()

    def too_slow(self) -> None:
        self.ended += 1

    # -- as a peer -------------------------------------------------------------------------

    def drain(self, size: int | None = None) -> None:
        """Take so many bytes more, None for all there are and will be."""
        self.room = None if size is None else (self.room or 0) + size
        if self.buffered:
            self._take()
            self._tell()

    @property
    def data(self) -> bytes:
        """All that the kernel took."""
        return b"".join(self._taken)

    @property
    def payloads(self) -> list[bytes]:
        """Of all frames that it got whole."""
        return [payload for _, payload in frames(self.data)]

    @property
    def envelopes(self) -> list[dict[str, Any]]:
        return [json.loads(payload) for payload in self.payloads]

    @property
    def seen(self) -> list[Any]:
        """What the envelopes hold, in short: data, or event with what belongs to it."""
        return [in_short(envelope) for envelope in self.envelopes]


def in_short(envelope: dict[str, Any]) -> Any:
    event = envelope.get("event")
    if event is None:
        return envelope["data"]
    if event == "gap":
        return f"gap {envelope['position'].rpartition('-')[2]}"
    return (event, envelope.get("identity", envelope.get("identities")))


def frames(data: bytes) -> list[tuple[int, bytes]]:
    """Opcode and payload of each whole frame; a server does not mask."""
    found, start = [], 0
    while len(data) - start >= 2:
        opcode, size, head = data[start] & 0xF, data[start + 1], 2
        if size >= 126:
            head = 4 if size == 126 else 10
            size = int.from_bytes(data[start + 2 : start + head], "big")
        if len(data) - start < head + size:
            break
        found.append((opcode, data[start + head : start + head + size]))
        assert opcode in (1, BINARY, CLOSE), f"expected a frame, got {data[start : start + 20]!r}"
        start += head + size
    return found


class Calls(Observer):
    """An observer that notes its calls."""

    def __init__(self) -> None:
        self.noted: list[tuple[Any, ...]] = []

    def gap(self, channel: str) -> None:
        self.noted.append(("gap", channel))

    def dropped(self, owner: Any, channel: str) -> None:
        self.noted.append(("dropped", owner, channel))

    def too_slow(self, owner: Any) -> None:
        self.noted.append(("too slow", owner))

    def reconnected(self) -> None:
        self.noted.append(("reconnected",))


class FarBroker(Broker):
    """A broker that waits: what is published lies in ``flight`` until :meth:`arrive`.

    :ivar hook: called within each call that waits, with its name: other greenlets run then.
    :ivar fails: names of calls that raise.
    """

    shared = waits = True

    def __init__(
        self, url: str = "far://", options: Any = None, receiver: Receiver | None = None
    ) -> None:
        super().__init__(url, options or BrokerOptions(), receiver)
        self.flight: deque[Message] = deque()
        self.subscribed: set[str] = set()
        self.counts: dict[str, int] = {}
        self.joined: list[tuple[str, str]] = []
        self.calls: list[str] = []
        self.hook: Callable[[str], None] = lambda name: None
        self.fails: set[str] = set()
        self._logs: dict[str, MessageLog] = {}

    def _wait(self, name: str) -> None:
        self.calls.append(name)
        self.hook(name)
        if name in self.fails:
            raise BrokerError(f"{name} cannot reach the broker")

    def _log(self, channel: str) -> MessageLog:
        options = self.options
        new = MessageLog(Position(EPOCH, 0), options.history_size, options.history_bytes)
        return self._logs.setdefault(channel, new)

    def publish(self, drafts: Sequence[Draft]) -> list[Position]:
        return [self._publish(draft) for draft in drafts]

    def _publish(self, draft: Draft) -> Position:
        log = self._log(draft.channel)
        here = log.position
        position = here if draft.transient else Position(here.epoch, here.offset + 1)
        channel, kind, data, key, event, transient = draft
        message = Message(channel, kind, data, position, key, event, transient)
        if not transient:
            # As a server has it: nothing of what is made for the wire is shared.
            log.append(Message(channel, kind, data, position, key, event, transient))
        if channel in self.subscribed:
            self.flight.append(message)
        return position

    def arrive(self, count: int | None = None) -> None:
        """Deliver some of what is under way."""
        for _ in range(len(self.flight) if count is None else min(count, len(self.flight))):
            message = self.flight.popleft()
            assert self.receiver is not None
            if message.channel in self.subscribed:
                self.receiver.deliver(message)

    def lose(self, channel: str) -> None:
        """What is under way is lost, and the receiver is told."""
        self.flight = deque(m for m in self.flight if m.channel != channel)
        if channel in self.subscribed:
            assert self.receiver is not None
            self.receiver.missed(channel, self._log(channel).position)
            self.receiver.resumed(channel)

    def interrupt(self, channel: str) -> None:
        """What is transient under way is lost, and the receiver is told when the rest has come."""
        lost = {id(m) for m in self.flight if m.channel == channel and m.transient}
        self.flight = deque(m for m in self.flight if id(m) not in lost)
        self.arrive()
        if channel in self.subscribed:
            assert self.receiver is not None
            self.receiver.resumed(channel)

    def subscribe(self, channel: str) -> Position:
        self._wait("subscribe")
        self.subscribed.add(channel)
        position = self._log(channel).position
        self._wait("subscribed")
        return position

    def unsubscribe(self, channel: str) -> None:
        self.calls.append("unsubscribe")
        self.subscribed.discard(channel)
        self.flight = deque(m for m in self.flight if m.channel != channel)

    def position(self, channel: str) -> Position:
        return self._log(channel).position

    def history(self, channel: str, since: Position | None) -> History:
        self._wait("history")
        found = self._log(channel).since(since)
        self._wait("history found")
        return found

    def count(self, channel: str, subscribers: int) -> None:
        self.counts[channel] = subscribers

    def subscribers(self, channel: str) -> int:
        return self.counts.get(channel, 0)

    def join(self, channel: str, identity: str) -> None:
        self._wait("join")
        self.joined.append((channel, identity))
        self._publish(Draft(channel, "text", identity.encode(), event="join", transient=True))
        self._wait("joined")

    def leave(self, channel: str, identity: str) -> None:
        self.joined.remove((channel, identity))
        if (channel, identity) not in self.joined:
            self._publish(Draft(channel, "text", identity.encode(), event="leave", transient=True))

    def present(self, channel: str) -> list[str]:
        self._wait("present")
        found = sorted({who for where, who in self.joined if where == channel})
        self._wait("present found")
        return found

    def close(self) -> None:
        self.calls.append("close")


class Process:
    """The fan-out of one process, with a broker and clients.

    :param far: the broker is a :class:`FarBroker`, else the one of the process.
    """

    def __init__(self, *, far: bool = False, **options: Any) -> None:
        self.hub = Hub()
        self.counters = Counters()
        self.options = BrokerOptions(**options)
        kind: type[Broker] = FarBroker if far else MemoryBroker
        self.fanout = Fanout(
            lambda fanout: kind("test://", self.options, fanout), self.options, self.counters
        )
        self.observer = self.fanout.observer = Calls()

    @property
    def broker(self) -> Any:
        return self.fanout.broker

    def client(
        self,
        *,
        hub: Any = None,
        room: int | None = None,
        limit: int = 2**20,
        policy: str = "disconnect",
    ) -> Client:
        client = Client(hub or self.hub, room)
        client.outlet = Outlet(client, client, self.fanout, limit, policy)
        return client

    def subscribe(
        self,
        client: Client,
        channel: str = "news",
        encoding: Encoding = ENVELOPES,
        **how: Any,
    ) -> Subscription:
        assert client.outlet is not None
        return self.fanout.subscribe(client.outlet, channel, encoding, **how)

    def unsubscribe(self, client: Client, channel: str = "news") -> bool:
        assert client.outlet is not None
        return self.fanout.unsubscribe(client.outlet, channel)

    def listener(self, channel: str = "news", **how: Any) -> Client:
        """A client that subscribes."""
        names = ("hub", "room", "limit", "policy")
        client = self.client(**{name: how.pop(name) for name in names if name in how})
        self.subscribe(client, channel, **how)
        return client

    def publish(self, *texts: str, channel: str = "news", **draft: Any) -> list[Position]:
        return [
            self.broker.publish([Draft(channel, "text", text.encode(), **draft)])[0]
            for text in texts
        ]

    def settle(self) -> None:
        """Let everything arrive and be written."""
        if isinstance(self.broker, FarBroker):
            self.broker.arrive()
        self.hub.settle()
