"""The process that publishes: a constant stream, every message with a name, every outcome noted."""

from __future__ import annotations

import base64
import http.client
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from html import escape, unescape
from multiprocessing.connection import Connection
from random import Random
from typing import Any

from flask_sockets2 import BrokerError, Position, Publisher
from tests.wire_client import TEXT, connect, frame

from .checker import Sent
from .names import EVENTS

__all__ = ["Plan", "Published", "read", "run"]

_PAUSE = 0.02  # seconds after an error
_LAST_ATTEMPTS = 30.0  # seconds in which the last message of each channel must go out
_ANSWER_TIMEOUT = 15.0  # seconds for a worker's answer
_UNAVAILABLE = (502, 503, 504)
_FLOOD_SIZE = 4000  # bytes that some messages are longer


@dataclass(frozen=True)
class Plan:
    """What to publish.

    :ivar url: of the broker; of a server's port, ``ws://127.0.0.1:5000``, where only it can.
    :ivar workers: port of a server whose workers publish for every second publisher.
    :ivar rate: messages a second, of all publishers together.
    """

    url: str
    channels: Sequence[str]
    rate: float
    publishers: int
    seed: int
    workers: int | None = None


@dataclass
class Published:
    """What came of it.

    :ivar sent: in the order in which it was acknowledged.
    :ivar longest: seconds that one call took, at most.
    :ivar problems: answers that no worker should give, whatever is done to it.
    """

    sent: list[Sent]
    errors: int
    longest: float
    problems: list[str] = field(default_factory=list)


def read(data: Any, encoding: str | None) -> tuple[str, int, int, float]:
    """Return channel, publisher, serial number and time of a message as a client got it."""
    if encoding == "base64":
        data = base64.b64decode(data)
    elif isinstance(data, str) and data.startswith("<turbo-stream"):
        data = unescape(data.partition("<template>")[2].partition("</template>")[0])
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
    pipe.send(Published(stream.sent, stream.errors, stream.longest, stream.problems))
    stream.close()


class _Stream:
    def __init__(self, plan: Plan) -> None:
        self.sent: list[Sent] = []
        self.errors = 0
        self.longest = 0.0
        self.problems: list[str] = []
        self.stop = threading.Event()
        self._plan = plan
        self._publisher = None if plan.url.startswith("ws:") else Publisher(plan.url)

    def close(self) -> None:
        if self._publisher is not None:
            self._publisher.close()

    def _calls(self, number: int = 0) -> Callable[[Sequence[tuple[str, Any]]], list[Position]]:
        if number % 2 and self._plan.workers is not None:
            return partial(_by_a_worker, self._plan.workers)
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
        publish, serial, due = self._calls(number), 0, time.monotonic()
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
        text = self._publisher is None or isinstance(publish, partial)  # both say it in JSON
        messages = [
            (channel, _content(channel, number, serial + i, random, text))
            for i, channel in enumerate(channels)
        ]
        positions: Sequence[Position | None]
        try:
            positions = publish(messages)
        except (BrokerError, _NotAnswered) as exc:
            positions = [None] * len(messages)
            self.errors += 1
            if isinstance(exc, _Wrong):
                self.problems.append(str(exc))
        self.longest = max(self.longest, time.monotonic() - begun)
        for i, ((channel, _), position) in enumerate(zip(messages, positions, strict=True)):
            epoch, offset = position or (None, 0)
            self.sent.append(Sent(channel, number, serial + i, epoch, offset))
        return positions[0] is not None


class _NotAnswered(Exception):
    """Nobody knows what became of it."""


class _Wrong(_NotAnswered):
    """Nor should that be the answer."""


def _by_a_worker(port: int, messages: Sequence[tuple[str, Any]]) -> list[Position]:
    """Have a worker publish, by ``turbo.push`` and the others."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_ANSWER_TIMEOUT)
    headers = {"Content-Type": "application/json"}
    try:
        connection.request("POST", "/publish", json.dumps(messages), headers)
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as exc:
        raise _NotAnswered from exc
    finally:
        connection.close()
    if response.status in _UNAVAILABLE:
        raise _NotAnswered
    if response.status != 200:
        raise _Wrong(f"answered with {response.status}: {body[:200]!r}")
    positions = [position for text in json.loads(body) if (position := Position.parse(text))]
    if len(positions) != len(messages):
        raise _Wrong(f"expected a position for each of {len(messages)} messages, got {body!r}")
    return positions


def _content(channel: str, number: int, serial: int, random: Random, text: bool) -> Any:
    """A message as JSON, text or bytes, as its feature wants it; some are long."""
    content = {"c": channel, "p": number, "n": serial, "t": time.monotonic()}
    if not random.randrange(20):
        content["long"] = "x" * random.randrange(_FLOOD_SIZE)
    if channel.startswith(EVENTS):
        return {"data": content, "type": "soak"}
    if channel.startswith("turbo:"):
        markup = f"<template>{escape(json.dumps(content), quote=False)}</template>"
        return f'<turbo-stream action="append" target="soak">{markup}</turbo-stream>'
    kind = 0 if text else serial % 3
    if kind == 2:
        return content
    return json.dumps(content) if kind == 0 else json.dumps(content).encode()
