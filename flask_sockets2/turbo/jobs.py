"""Jobs that run again and again, in one of all workers.

::

    @turbo.every(5)
    def load():
        turbo.push(turbo.replace(render_template("_load.html"), "load"))

Each process has a thread for each job (under gevent a greenlet), begun with the first page or
connection that it serves: a shell, a command or the parent of workers runs none. Where the broker
reaches other processes, one of them does the work and the others stand by; with ``memory://`` each
does it for its own pages. One that is killed is replaced when :data:`LEASE` seconds are over.
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
"""Seconds after which the job of a silent process is another's; it is renewed well before."""

_PAUSE = 0.5  # seconds after the broker has failed; meanwhile the application may end


class Job:
    """A function that is called every so many seconds.

    :param seconds: between the beginnings of two calls; one that takes longer skips some.
    :param name: the same in all processes.
    """

    def __init__(self, seconds: float, function: Callable[[], Any], name: str) -> None:
        self.seconds = seconds
        self.function = function
        self.name = name

    def run(self, app: Flask) -> None:
        """Call it once."""
        try:
            with app.app_context():
                call(app, self.function, by="@turbo.every")
        except BaseException:  # gevent.Timeout is no Exception, and SystemExit would end the thread
            logger.exception("the job %s raised; it goes on in %s s", self.name, self.seconds)


def check_seconds(seconds: Any) -> None:
    """See that a job can run every so many seconds.

    :raises TypeError: when that is no number.
    :raises ValueError: when it is not above 0, or endless.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"every() needs a number of seconds, as @turbo.every(5), got {seconds!r}")
    if not 0 < seconds < inf:
        raise ValueError(f"every() needs a number of seconds above 0, got {seconds!r}")


class Jobs:
    """The jobs of one Turbo.

    :ivar registered: in their order.
    """

    def __init__(self) -> None:
        self.registered: list[Job] = []
        # By an application's publisher, of which a process that was forked has others.
        self._begun: WeakKeyDictionary[Publisher, dict[str, object]] = WeakKeyDictionary()

    def register(self, seconds: float, function: Any, name: str | None) -> None:
        """Add a job, in place of an earlier one of the same lines.

        :raises ValueError: when another function has a job of that name.
        :raises TypeError: when the function is none, or has no name.
        """
        if not callable(function):
            raise TypeError(f"a job is a function, got {type(function).__name__}")
        called = name or _name_of(function)
        for other in self.registered:
            if other.name == called:
                if not _are_one(other.function, function):
                    raise ValueError(f"there is a job {called!r} already; give this one a name=")
                other.seconds, other.function = seconds, function  # of a factory, called again
                return
        self.registered.append(Job(seconds, function, called))

    def start(self, app: Flask, publisher: Publisher) -> None:
        """Begin the jobs that this process has not begun for an application."""
        begun = self._begun.get(publisher)
        if begun is None:
            begun = self._begun.setdefault(publisher, {})
        for job in self.registered:
            # The thread whose mark is there begins the job. A lock could be held during a fork.
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
    """Whether two functions are from the same lines, as those of a factory are."""
    code = getattr(one, "__code__", one)
    return bool(code is getattr(other, "__code__", other))


class _JobLease:
    """A name that one process of all has, and renews while it lives, however long its job takes.

    A process that is stopped for longer than the lease may find its job begun elsewhere.

    :param publisher: whose broker says who has it; it is not kept alive.
    """

    def __init__(self, publisher: Publisher, name: str) -> None:
        self._publisher = ref(publisher)
        self._name = name
        self._holder = f"{os.getpid()}-{secrets.token_hex(8)}"
        self._later = DelayedCalls(LEASE / 3)
        self._renewed = False  # again and again
        self._ended = False
        self._pid = os.getpid()
        atexit.register(self.give_back)

    def take(self) -> bool:
        """Whether it is this process'.

        :raises BrokerError: when the broker does not say.
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
            self.give_back()  # once more: it may have ended while it was renewed
        elif self._renewed:
            self._later.call(self._renew)

    def give_back(self) -> None:
        """Let another process have it at once."""
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
    """Begin a job in this process, in a thread of its own, which ends when the application does.

    :raises RuntimeError: when no thread can be started.
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
