"""Progress reports of a long job: a few events, each with the complete state.

::

    with Progress("redis://localhost:6379/0", "job:7", total=len(rows)) as bar:
        for row in rows:
            work(row)
            bar.advance()

An event of the type ``progress`` has JSON as data::

    {"state": "running", "value": 120, "total": 400, "text": "reading"}

``state`` is ``running``, ``done`` or ``failed``; ``total`` is null if the total is unknown. A page
receives the newest state at once if its stream begins with the last event:
``sse.url("job:7", last=1)``.
"""

from __future__ import annotations

import logging
import threading
from time import monotonic
from types import TracebackType

from ..brokers.base import NOWHERE
from ..channels.publisher import Publisher
from ..concurrency.delayed_calls import DelayedCalls
from ..exceptions import BrokerError
from .encoding import channel_of
from .message import Message

__all__ = ["INTERVAL", "Progress"]

logger = logging.getLogger("flask_sockets2.sse")

TYPE = "progress"
RUNNING, DONE, FAILED = "running", "done", "failed"

INTERVAL = 0.2
"""Default number of seconds between two events."""


class Progress:
    """Reports the progress of one job; as a context manager also whether the job succeeded.

    :param publisher: publisher, or in a process without an application the URL of the broker.
    :param channel: channel of the stream; give each job its own channel.
    :param total: value at the end of the job, None if unknown.
    :param interval: minimum of seconds between two events; the end is published at once.
    :param blueprint: name of the blueprint whose streams show the progress, ``""`` for the main
        blueprint.

    A failure to publish is logged and does not disturb the job. While the broker is unreachable,
    the job spends at most half of its time on attempts. Updates after the end are ignored. Any
    thread may call the methods.
    """

    def __init__(
        self,
        publisher: Publisher | str,
        channel: str,
        total: float | None = None,
        *,
        interval: float = INTERVAL,
        blueprint: str = "",
    ) -> None:
        self._owned = not isinstance(publisher, Publisher)
        self._publisher = publisher if isinstance(publisher, Publisher) else Publisher(publisher)
        self._channel = channel_of(channel, blueprint)
        self._interval = interval
        self._due = 0.0
        self._stale = False  # an update waits until the next event is due
        self._waiting = False  # a delayed call of _tell_rest is pending
        self._later = DelayedCalls(interval or INTERVAL)
        # Guards all that changes; held while publishing, so that the end is the last event.
        self._lock = threading.RLock()
        self._untold = False  # the newest state could not be published
        self.state = RUNNING
        self.value: float = 0
        self.total = total
        self.text = ""

    def advance(self, number: float = 1, text: str | None = None) -> None:
        """Add a number to the value, and report the change."""
        with self._lock:
            self.update(self.value + number, text)

    def update(
        self, value: float | None = None, text: str | None = None, total: float | None = None
    ) -> None:
        """Set the given fields, and publish the state now or when the next event is due.

        :param value: progress so far.
        :param text: text for the page.
        :param total: total, if known by now.
        """
        with self._lock:
            if self.state != RUNNING:
                return
            if value is not None:
                self.value = value
            if text is not None:
                self.text = text
            if total is not None:
                self.total = total
            if monotonic() >= self._due:
                self._tell()
            else:
                self._stale = True
                self._see_later()

    def _see_later(self) -> None:
        if not self._waiting:
            self._waiting = True
            self._later.call(self._tell_rest)

    def _tell_rest(self) -> None:
        """Publish an update that came before its event was due; the next update may be late."""
        with self._lock:
            self._waiting = False
            if self._stale and monotonic() >= self._due:
                self._tell()
            elif self._stale:
                self._see_later()

    def done(self, text: str | None = None) -> None:
        """Report the job as done; the end of the ``with`` block does the same."""
        with self._lock:
            if self.state == RUNNING and self.total is not None:
                self.value = self.total
            self._end(DONE, text)

    def fail(self, text: str | None = None) -> None:
        """Report the job as failed; put no internal details into the text, since pages show it."""
        self._end(FAILED, text)

    def _end(self, state: str, text: str | None) -> None:
        with self._lock:
            if self.state != RUNNING:
                return
            self.state = state
            if text is not None:
                self.text = text
            self._tell()

    def _tell(self) -> None:
        self._stale = False
        data = {
            "state": self.state,
            "value": self.value,
            "total": self.total,
            "text": self.text,
        }
        message = Message(data, type=TYPE)
        pause, begun = self._interval, monotonic()
        try:
            position = self._publisher.publish(self._channel, message.to_dict())
            self._untold = position is NOWHERE  # the publisher has logged the failure
        except (BrokerError, TypeError, ValueError) as exc:
            if not self._untold:
                logger.error("progress is not told: %s", exc)
            self._untold = True
        if self._untold:
            pause = max(pause, monotonic() - begun)
        self._due = monotonic() + pause

    def __enter__(self) -> Progress:
        self.update()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if self.state == RUNNING:
                self.done() if kind is None else self.fail()
        finally:
            self._later.close()
            if self._owned:
                self._publisher.close()
