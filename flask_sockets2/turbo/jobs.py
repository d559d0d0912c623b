"""Jobs that run at an interval, each in one of all workers.

::

    @turbo.every(5)
    def load():
        turbo.push(turbo.replace(render_template("_load.html"), "load"))

Each process starts a thread for each job (under gevent a greenlet) when the first page or
connection arrives. A shell, a command or the parent of workers therefore runs no job. If the broker
reaches other processes, one process does the work and the others stand by. With ``memory://`` each
process does the work for its own pages. A killed process is replaced after :data:`LEASE` seconds.
"""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import threading
from collections.abc import Callable
from math import inf
from time import monotonic
from typing import Any
from weakref import WeakKeyDictionary, ref

from flask import Flask

from ..application.answers import call
from ..channels.publisher import Publisher
from ..concurrency.delayed_calls import DelayedCalls
from ..exceptions import BrokerError

__all__ = ["LEASE", "Job", "Jobs", "check_seconds"]

logger = logging.getLogger("flask_sockets2.turbo")

LEASE = 15.0
"""Seconds until another process takes over the job of a silent one; a lease is renewed sooner."""

_PAUSE = 0.5  # seconds until a retry after a broker error; the application may end meanwhile


class Job:
    """A job: a function, its interval and its name.

    :param seconds: seconds between the starts of two calls; a longer call skips some.
    :param name: name of the job, equal in all processes.
    """

    def __init__(self, seconds: float, function: Callable[[], Any], name: str) -> None:
        self.seconds = seconds
        self.function = function
        self.name = name

    def run(self, app: Flask) -> None:
        """Call the function once, in an application context; errors are logged."""
        try:
            with app.app_context():
                call(app, self.function, by="@turbo.every")
        except BaseException:  # gevent.Timeout is no Exception; SystemExit would end the thread
            logger.exception("the job %s raised; it goes on in %s s", self.name, self.seconds)


def check_seconds(seconds: Any) -> None:
    """Check the interval of a job.

    :raises TypeError: if ``seconds`` is no number.
    :raises ValueError: if ``seconds`` is not above 0, or infinite.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"every() needs a number of seconds, as @turbo.every(5), got {seconds!r}")
    if not 0 < seconds < inf:
        raise ValueError(f"every() needs a number of seconds above 0, got {seconds!r}")


class Jobs:
    """The jobs of one Turbo: registers jobs, and starts them in each process.

    :ivar registered: jobs in the order of registration.
    """

    def __init__(self) -> None:
        self.registered: list[Job] = []
        # By publisher: a forked process has publishers of its own.
        self._begun: WeakKeyDictionary[Publisher, dict[str, object]] = WeakKeyDictionary()

    def register(self, seconds: float, function: Any, name: str | None) -> None:
        """Add a job, or replace an earlier job whose function has the same source lines.

        :raises ValueError: if another function has a job with that name.
        :raises TypeError: if ``function`` is not callable, or has no name.
        """
        if not callable(function):
            raise TypeError(f"a job is a function, got {type(function).__name__}")
        called = name or _name_of(function)
        for other in self.registered:
            if other.name == called:
                if not _are_one(other.function, function):
                    raise ValueError(f"there is a job {called!r} already; give this one a name=")
                other.seconds, other.function = seconds, function  # its factory ran again
                return
        self.registered.append(Job(seconds, function, called))

    def start(self, app: Flask, publisher: Publisher) -> None:
        """Start the jobs of an application that this process has not started yet."""
        begun = self._begun.get(publisher)
        if begun is None:
            begun = self._begun.setdefault(publisher, {})
        for job in self.registered:
            # The thread whose mark is stored starts the job. A lock could be held during a fork.
            mark = object()
            if begun.setdefault(job.name, mark) is not mark:
                continue
            try:
                _start(app, publisher, job)
            except RuntimeError as exc:
                del begun[job.name]
                logger.error("the job %s begins with another page: %s", job.name, exc)


def _name_of(function: Any) -> str:
    try:
        return f"{function.__module__}.{function.__qualname__}"
    except AttributeError:
        raise TypeError(
            f"a job of {type(function).__name__} has no name of its own; give it one: "
            '@turbo.every(5, name="load")'
        ) from None


def _are_one(one: Any, other: Any) -> bool:
    """Return whether two functions share their source lines, as in an application factory."""
    code = getattr(one, "__code__", one)
    return bool(code is getattr(other, "__code__", other))


class _JobLease:
    """A lease on a job's name, so that one process of all runs the job.

    The process renews its lease, however long a call takes. If it is paused for longer, another
    process may run the job meanwhile.

    :param publisher: publisher whose broker keeps the lease; held by a weak reference.
    """

    def __init__(self, publisher: Publisher, name: str) -> None:
        self._publisher = ref(publisher)
        self._name = name
        self._holder = f"{os.getpid()}-{secrets.token_hex(8)}"
        self._later = DelayedCalls(LEASE / 3)
        self._renewed = False  # whether renewals are scheduled
        self._ended = False
        self._pid = os.getpid()
        atexit.register(self.give_back)

    def take(self) -> bool:
        """Take or keep the lease; return whether this process has the lease.

        :raises BrokerError: if the broker cannot be reached.
        """
        mine = self._hold(LEASE)
        if mine and not self._renewed:
            self._renewed = True
            self._later.call(self._renew)
        return mine

    def _hold(self, seconds: float) -> bool:
        publisher = self._publisher()
        return publisher is not None and publisher.broker.hold(self._name, self._holder, seconds)

    def _renew(self) -> None:
        try:
            self._renewed = not self._ended and self._hold(LEASE)
        except BrokerError as exc:
            logger.debug("%s could not be renewed: %s", self._name, exc)
        if self._ended:
            self.give_back()  # once more: a renewal may have run beside the release
        elif self._renewed:
            self._later.call(self._renew)

    def give_back(self) -> None:
        """Release the lease, so that another process can take over at once."""
        atexit.unregister(self.give_back)
        if os.getpid() != self._pid:
            return
        self._ended = True
        self._later.close()
        try:
            self._hold(0.0)
        except BrokerError as exc:
            logger.debug("could not give back %s, which ends by itself: %s", self._name, exc)


def _start(app: Flask, publisher: Publisher, job: Job) -> None:
    """Start a thread for a job in this process; the thread ends when the application does.

    :raises RuntimeError: if no thread can be started.
    """
    lease = _JobLease(publisher, f"job:{job.name}")
    name = f"flask_sockets2 {job.name}"
    thread = threading.Thread(target=_run, args=(ref(app), job, lease), name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError:
        lease.give_back()
        raise


def _run(served: Callable[[], Flask | None], job: Job, lease: _JobLease) -> None:
    stop = threading.Event()  # never set: the thread is a daemon
    due, away = monotonic(), False
    while not stop.wait(max(0.0, due - monotonic())):
        app = served()
        if app is None:
            break
        due = max(due + job.seconds, monotonic())
        try:
            mine, away = lease.take(), False
        except BrokerError as exc:
            mine = False
            if not away:
                logger.error("the job %s waits for the broker: %s", job.name, exc)
            away = True
            due = max(due, monotonic() + _PAUSE)
        if mine:
            job.run(app)
        del app
    lease.give_back()
