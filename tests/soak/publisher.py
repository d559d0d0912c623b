"""The process that publishes: a constant stream, every message with a name, every outcome noted."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from random import Random
from typing import Any

from flask_sockets2 import BrokerError, Position, Publisher
from tests.wire_client import TEXT, connect, frame

from .checker import Sent

__all__ = ["Plan", "Published", "read", "run"]

_PAUSE = 0.02  # seconds after an error
_LAST_ATTEMPTS = 30.0  # seconds in which the last message of each channel must go out
_FLOOD_SIZE = 4000  # bytes that some messages are longer


@dataclass(frozen=True)
class Plan:
    """What to publish.

    :ivar url: of the broker; of a server's port, ``ws://127.0.0.1:5000``, where only it can.
    :ivar rate: messages a second, of all publishers together.
    """

    url: str
    channels: Sequence[str]
    rate: float
    publishers: int
    seed: int


@dataclass
class Published:
    """What came of it.

    :ivar sent: in the order in which it was acknowledged.
    :ivar longest: seconds that one call took, at most.
    """

    sent: list[Sent]
    errors: int
    longest: float


def read(data: Any, encoding: str | None) -> tuple[str, int, int, float]:
    """Return channel, publisher, serial number and time of a message as a client got it."""
    if encoding == "base64":
        data = base64.b64decode(data)
    if not isinstance(data, dict):
        data = json.loads(data)
    return data["c"], data["p"], data["n"], data["t"]


def run(plan: Plan, pipe: Connection) -> None:
    """Publish until told to stop; then one more message to each channel, and answer with all.

    What is sent to the pipe then: :class:`Published`.
    """
    stream = _Stream(plan)
    threads = [
        threading.Thread(target=stream.publish_all_the_time, args=(number,))
        for number in range(plan.publishers)
    ]
    for thread in threads:
        thread.start()
    pipe.recv()
    stream.stop.set()
    for thread in threads:
        thread.join()
    stream.publish_last(plan.publishers)
    pipe.send(Published(stream.sent, stream.errors, stream.longest))
    stream.close()


class _Stream:
    def __init__(self, plan: Plan) -> None:
        self.sent: list[Sent] = []
        self.errors = 0
        self.longest = 0.0
        self.stop = threading.Event()
        self._plan = plan
        self._publisher = None if plan.url.startswith("ws:") else Publisher(plan.url)

    def close(self) -> None:
        if self._publisher is not None:
            self._publisher.close()

    def _calls(self) -> Callable[[Sequence[tuple[str, Any]]], list[Position]]:
        if self._publisher is not None:
            return self._publisher.publish_many
        client = connect(int(self._plan.url.rpartition(":")[2]), "/publish")

        def publish(messages: Sequence[tuple[str, Any]]) -> list[Position]:
            found = []
            for message in messages:
                client.send(frame(TEXT, json.dumps(message).encode()))
                position = Position.parse(client.message().decode())
                assert position is not None
                found.append(position)
            return found

        return publish

    def publish_all_the_time(self, number: int) -> None:
        plan, random = self._plan, Random(f"{self._plan.seed}-{number}")
        interval = plan.publishers / plan.rate
        publish, serial, due = self._calls(), 0, time.monotonic()
        while not self.stop.is_set():
            count = random.choice((1, 1, 1, 1, 1, 1, 1, 5))
            channel = random.choice(plan.channels)  # one: a loss in the middle would be seen
            if not self._publish(publish, number, serial, [channel] * count, random):
                self.stop.wait(_PAUSE)
            serial += count
            due = max(due + interval * count, time.monotonic() - 1)
            self.stop.wait(max(0.0, due - time.monotonic()))

    def publish_last(self, number: int) -> None:
        """Publish a message to each channel, until each was acknowledged."""
        publish, serial = self._calls(), 0
        deadline = time.monotonic() + _LAST_ATTEMPTS
        for channel in self._plan.channels:
            while not self._publish(publish, number, serial, [channel], Random(0)):
                assert time.monotonic() < deadline, "the broker does not recover"
                time.sleep(_PAUSE)
                serial += 1
            serial += 1

    def _publish(
        self,
        publish: Callable[[Sequence[tuple[str, Any]]], list[Position]],
        number: int,
        serial: int,
        channels: Sequence[str],
        random: Random,
    ) -> bool:
        begun = time.monotonic()
        messages = [
            (channel, _content(channel, number, serial + i, random, self._publisher is None))
            for i, channel in enumerate(channels)
        ]
        positions: Sequence[Position | None]
        try:
            positions = publish(messages)
        except BrokerError:
            positions = [None] * len(messages)
            self.errors += 1
        self.longest = max(self.longest, time.monotonic() - begun)
        for i, ((channel, _), position) in enumerate(zip(messages, positions, strict=True)):
            epoch, offset = position or (None, 0)
            self.sent.append(Sent(channel, number, serial + i, epoch, offset))
        return positions[0] is not None


def _content(channel: str, number: int, serial: int, random: Random, text: bool) -> Any:
    """A message as JSON, text or bytes; some are long."""
    content = {"c": channel, "p": number, "n": serial, "t": time.monotonic()}
    if not random.randrange(20):
        content["long"] = "x" * random.randrange(_FLOOD_SIZE)
    kind = 0 if text else serial % 3
    if kind == 2:
        return content
    return json.dumps(content) if kind == 0 else json.dumps(content).encode()
