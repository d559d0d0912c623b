"""Reports: what each process says of itself, while somebody looks (``flask sockets top``).

Who looks publishes to one channel, once a second, and each process answers on another. Both are
transient, so nothing of it is kept anywhere, and a process that has died is one that does not
answer. While nobody looks a process is subscribed to one channel more, and that is all it costs;
however many look, it answers every half second at most.

A process takes part from its first connection on: one that only publishes, such as Celery's,
listens to nothing.
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
from ..channels.app_channels import Channels
from ..concurrency.delayed_calls import Later
from ..exceptions import BrokerError
from ..stats import Counters
from ..transports.base import Clock
from ..transports.budget import Budget

__all__ = ["LOOKS", "REPORTS", "Report", "Reporter", "look"]

logger = logging.getLogger("flask_sockets2.channels")

LOOKS = f"{RESERVED}looks"
"""The channel of those who look."""

REPORTS = f"{RESERVED}reports"
"""The channel of the answers."""

_MOST = 2**63  # what a process may count to, so that rates can be computed
_LONGEST_KEY = 32  # letters
_SELDOM = 0.5  # seconds between two answers
_RETRY = 5.0  # seconds after which the next connection has it try again to listen


@dataclass(frozen=True, slots=True)
class Report:
    """What a process says of itself.

    :ivar process: its name, which no other process ever has.
    :ivar host: where it runs.
    :ivar at: seconds of its own clock, to tell by how long ago the last one was.
    :ivar connections: WebSockets that are open.
    :ivar streams: event streams that are open.
    :ivar requests: HTTP requests under way, where our handler serves.
    :ivar channels: those with subscribers in the process.
    :ivar buffered: bytes that connections hold.
    :ivar counts: as :meth:`Counters.totals`, since the process began.
    :ivar key: differs where the ``SECRET_KEY`` does; empty without one.
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
        """Return it as the data of a message."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def parse(cls, data: bytes) -> Report | None:
        """Read the data of a message; None for what is no report, as of another version."""
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
    """:raises ValueError: when it is more than can be counted."""
    count = int(value)
    if not 0 <= count < _MOST:
        raise ValueError(f"expected a count, got {count}")
    return count


def _seconds(value: Any) -> float:
    """:raises ValueError: when it is no time: JSON of Python has NaN and Infinity."""
    seconds = float(value)
    if not isfinite(seconds):
        raise ValueError(f"expected seconds, got {seconds}")
    return seconds


class Reporter:
    """Answers who looks, for one application in this process.

    :param counters: what was counted.
    :param admission: who is here.
    :param budget: what they hold.
    :param requests: returns how many HTTP requests are under way.
    :param key: returns what differs where the ``SECRET_KEY`` does.

    :ivar begun: whether it does, or need not.
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
        self._answered = 0.0  # when; written by whom the broker delivers by, one after another
        self._not_before = 0.0  # to try again
        self._soon = Later(0.0)

    def begin(self, channels: Channels, clock: Clock) -> None:
        """Answer from now on, where others can ask; does not wait and never fails.

        :param clock: of who is here.
        """
        if monotonic() < self._not_before:
            return
        self.begun = True
        if channels.broker.shared:
            self._soon.call(partial(self._listen, channels, clock))

    def _listen(self, channels: Channels, clock: Clock) -> None:
        try:
            channels.listen(LOOKS, partial(self._asked, channels), clock, {})
        except Exception as exc:  # whatever it is: it is not needed to serve
            logger.debug("cannot take part in flask sockets top: %s", exc)
            self._not_before = monotonic() + _RETRY
            self.begun = False  # not by a timer: the next who comes has it try again

    def _asked(self, channels: Channels, message: Message) -> None:
        now = monotonic()
        if now - self._answered >= _SELDOM:
            self._answered = now
            self._soon.call(partial(self._answer, channels))

    def _answer(self, channels: Channels) -> None:
        report = self.report(len(channels.here()))
        try:
            _publish(channels.broker, REPORTS, report.serialize())
        except BrokerError as exc:
            logger.debug("could not tell who looks: %s", exc)

    def report(self, channels: int) -> Report:
        """Return what there is to say now."""
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

    :raises BrokerError: when the broker cannot be reached.
    """
    _publish(broker, LOOKS, b"{}")


def _publish(broker: Broker, channel: str, data: bytes) -> None:
    broker.publish([Draft(channel, JSON, data, transient=True)])
