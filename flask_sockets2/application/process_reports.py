"""The report of each process for ``flask sockets top``.

Once a second ``top`` publishes a request to one channel, and each process answers on another.
These messages are transient, so no broker keeps them, and a process that has died does not answer.
While ``top`` does not run, reports cost each process one subscription. A process answers twice a
second at most, even if several people run ``top``.

A process answers from its first connection on. A process that only publishes, such as a Celery
worker, does not answer.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from math import isfinite
from time import monotonic
from typing import Any

from ..admission.admission import Admission
from ..brokers.base import JSON, RESERVED, Broker, Draft, Message
from ..channels.app_channels import AppChannels
from ..concurrency.delayed_calls import DelayedCalls
from ..exceptions import BrokerError
from ..stats import Counters
from ..transports.budget import Budget
from ..transports.clock import Clock

__all__ = ["LOOKS", "REPORTS", "Report", "Reporter", "look"]

logger = logging.getLogger("flask_sockets2.channels")

LOOKS = f"{RESERVED}looks"
"""The channel of requests for reports."""

REPORTS = f"{RESERVED}reports"
"""The channel of the answers."""

_MOST = 2**63  # the largest count, so that rates can be computed
_LONGEST_KEY = 32  # letters
_SELDOM = 0.5  # seconds between two answers
_RETRY = 5.0  # seconds until a new connection makes the process try again to listen


@dataclass(frozen=True, slots=True)
class Report:
    """The state of one process.

    :ivar process: unique name of the process.
    :ivar host: name of its machine.
    :ivar at: monotonic time of the process in seconds, to compute rates between two reports.
    :ivar connections: WebSockets that are open.
    :ivar streams: event streams that are open.
    :ivar requests: HTTP requests under way, if our handler serves.
    :ivar channels: number of channels with subscribers in the process.
    :ivar buffered: bytes that connections hold.
    :ivar counts: the result of :meth:`Counters.totals`, since the process began.
    :ivar key: digest that differs if the ``SECRET_KEY`` differs; empty without a key.
    """

    process: str
    host: str
    pid: int
    at: float
    connections: int
    streams: int
    channels: int
    buffered: int
    requests: int
    counts: dict[str, int]
    key: str = ""

    def serialize(self) -> bytes:
        """Return the report as the data of a message."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def parse(cls, data: bytes) -> Report | None:
        """Read a report from the data of a message.

        :returns: None if the data is no report, for example of another version.
        """
        try:
            fields = json.loads(data)
            return cls(
                process=str(fields["process"]),
                host=str(fields["host"]),
                pid=_count(fields["pid"]),
                at=_seconds(fields["at"]),
                connections=_count(fields["connections"]),
                streams=_count(fields["streams"]),
                requests=_count(fields["requests"]),
                channels=_count(fields["channels"]),
                buffered=_count(fields["buffered"]),
                counts={str(name): _count(count) for name, count in fields["counts"].items()},
                key=str(fields.get("key", ""))[:_LONGEST_KEY],  # not of older versions
            )
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            return None


def _count(value: Any) -> int:
    """Parse a count; :raises ValueError: if it is negative or too large."""
    count = int(value)
    if not 0 <= count < _MOST:
        raise ValueError(f"expected a count, got {count}")
    return count


def _seconds(value: Any) -> float:
    """Parse seconds; :raises ValueError: if NaN or infinite, which Python's JSON allows."""
    seconds = float(value)
    if not isfinite(seconds):
        raise ValueError(f"expected seconds, got {seconds}")
    return seconds


class Reporter:
    """Answers requests for reports, for one application in this process.

    :param counters: counters of the application.
    :param admission: the open connections and streams.
    :param budget: the bytes that connections and streams hold.
    :param requests: returns the number of HTTP requests under way.
    :param key: returns a digest that differs if the ``SECRET_KEY`` differs.

    :ivar begun: the process answers, or no other process can ask, as with ``memory://``.
    """

    def __init__(
        self,
        counters: Counters,
        admission: Admission,
        budget: Budget,
        requests: Callable[[], int],
        key: Callable[[], str],
    ) -> None:
        self.begun = False
        self._counters = counters
        self._admission = admission
        self._budget = budget
        self._requests = requests
        self._key = key
        self._process = secrets.token_hex(8)
        self._answered = 0.0  # monotonic time; written by the thread that delivers messages
        self._not_before = 0.0  # monotonic time of the next attempt to listen
        self._soon = DelayedCalls(0.0)

    def begin(self, channels: AppChannels, clock: Clock) -> None:
        """Start to answer if other processes can ask. This method never waits or fails.

        :param clock: clock of the calling connection.
        """
        if monotonic() < self._not_before:
            return
        self.begun = True
        if channels.broker.shared:
            self._soon.call(partial(self._listen, channels, clock))

    def _listen(self, channels: AppChannels, clock: Clock) -> None:
        try:
            channels.listen(LOOKS, partial(self._asked, channels), clock, {})
        except Exception as exc:  # reports are not needed to serve
            logger.debug("cannot take part in flask sockets top: %s", exc)
            self._not_before = monotonic() + _RETRY
            self.begun = False  # without a timer: the next connection tries again

    def _asked(self, channels: AppChannels, message: Message) -> None:
        now = monotonic()
        if now - self._answered >= _SELDOM:
            self._answered = now
            self._soon.call(partial(self._answer, channels))

    def _answer(self, channels: AppChannels) -> None:
        report = self.report(len(channels.here()))
        try:
            _publish(channels.broker, REPORTS, report.serialize())
        except BrokerError as exc:
            logger.debug("could not tell who looks: %s", exc)

    def report(self, channels: int) -> Report:
        """Return the current report, with a given number of channels."""
        return Report(
            process=self._process,
            host=socket.gethostname(),
            pid=os.getpid(),
            at=monotonic(),
            connections=len(self._admission.connections),
            streams=len(self._admission.streams),
            channels=channels,
            buffered=self._budget.total,
            counts=self._counters.totals(),
            requests=self._requests(),
            key=self._key(),
        )


def look(broker: Broker) -> None:
    """Ask all processes for their reports.

    :raises BrokerError: if the broker cannot be reached.
    """
    _publish(broker, LOOKS, b"{}")


def _publish(broker: Broker, channel: str, data: bytes) -> None:
    broker.publish([Draft(channel, JSON, data, transient=True)])
