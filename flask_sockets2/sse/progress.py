"""Progress of a long job: a few events, of which the newest says all.

::

    with Progress("redis://localhost:6379/0", "job:7", total=len(rows)) as bar:
        for row in rows:
            work(row)
            bar.advance()

An event of the type ``progress`` has JSON as data::

    {"state": "running", "value": 120, "total": 400, "text": "reading"}

``state`` is ``running``, ``done`` or ``failed``, ``total`` is null where it is not known. A page
gets the newest state first where its stream begins with the last event:
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
"""Seconds between two events, by default."""


class Progress:
    """The progress of one job; a context manager that tells how it ended.

    :param publisher: what publishes, or the URL of the broker, for a process without application.
    :param channel: of the stream; a channel of its own for each job.
    :param total: what the value is at the end, None where that is not known.
    :param interval: seconds between two events, at least; the end is told at once.
    :param blueprint: whose streams it is for, by name, if the application has several blueprints
        for events and this is not the main one.

    What cannot be published is logged and does not disturb the job; while the broker is away, no
    more than half of its time is spent on that. What comes after the end is ignored. Any thread may
    use it.
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
        self._stale = False  # something is to be told when it is due
        self._waiting = False  # it is looked after later
        self._later = DelayedCalls(interval or INTERVAL)
        # Guards all that changes; held while it publishes, so that the end is what comes last.
        self._lock = threading.RLock()
        self._untold = False  # the newest could not be published
        self.state = RUNNING
        self.value: float = 0
        self.total = total
        self.text = ""

    def advance(self, number: float = 1, text: str | None = None) -> None:
        """Add to the value."""
        with self._lock:
            self.update(self.value + number, text)

    def update(
        self, value: float | None = None, text: str | None = None, total: float | None = None
    ) -> None:
        """Set what is given; it is told now, or with what follows.

        :param value: how far it is.
        :param text: words for the page.
        :param total: where it is known by now.
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
        """Tell what came too soon to be told, for the next may come late."""
        with self._lock:
            self._waiting = False
            if self._stale and monotonic() >= self._due:
                self._tell()
            elif self._stale:
                self._see_later()

    def done(self, text: str | None = None) -> None:
        """Tell that it is done, which the end of the block does, too."""
        with self._lock:
            if self.state == RUNNING and self.total is not None:
                self.value = self.total
            self._end(DONE, text)

    def fail(self, text: str | None = None) -> None:
        """Tell that it has failed; what has happened should not be told to everybody."""
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
            self._untold = position is NOWHERE  # which is logged
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
