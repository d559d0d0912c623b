"""Leases: presence and subscriber counts of all processes, without those of dead processes.

Each process registers under a random token, with a lease that the process renews. Reports to the
server hold numbers of connections, not changes, so that a report can be repeated after an error.

If a lease has expired, the process is dead as soon as another process notices. A reader removes the
dead process from the channel being read. The next process that renews its own lease removes the
dead one from the rest. Both publish ``leave`` for identities that are nowhere else.

If the process was only paused, its lease can no longer be renewed. The process takes another token
and reports everything again, so that ``join`` is published. Reports from before the pause are
refused after their deadline, since no other process would clear them.

A restarted Redis no longer knows the lease, although presence may be recorded under it already. So
the process takes that lease once more and lets it expire.

On a cluster, channels and leases may be on servers with different clocks. The clocks may differ by
a quarter of a lease.
"""

from __future__ import annotations

import _thread
import logging
import secrets
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any, NamedTuple

from ...concurrency.delayed_calls import DelayedCalls
from ...concurrency.native_lock import native_lock
from ...exceptions import BrokerError
from ..base import TEXT, new_epoch
from .client import RedisClient
from .scripts import (
    CLAIM,
    COUNT,
    COUNTS,
    DEAD,
    END,
    REAP,
    RENEW,
    SETTLE,
    SHORTEN,
    TOUCH,
    WHO,
    Call,
    Names,
    body_of,
)

__all__ = ["LeaseTimes", "Leases"]

logger = logging.getLogger("flask_sockets2.brokers")

_BATCH = 100  # scripts in one exchange
_REFUSALS = 3  # refusals in a row until an error; a pause of this process causes fewer
_KEPT = 3600.0  # seconds that the server keeps untouched keys; all processes are gone by then
_JOIN, _LEAVE = (body_of(TEXT, b"", "", event, True) for event in ("join", "leave"))


@dataclass(frozen=True, slots=True)
class LeaseTimes:
    """Times of a lease, in seconds.

    :ivar lease: time since the last renewal after which a process counts as dead.
    :ivar renew: interval between two renewals.
    :ivar tick: delay within which changed counts are reported to other processes.
    """

    lease: float = 10.0
    renew: float = 3.0
    tick: float = 1.0


class _Lease(NamedTuple):
    """The lease of this process, as the server knows it.

    :ivar process: name of the process.
    :ivar deadline: end of the time for reports, in milliseconds of the server's clock.
    """

    process: str
    deadline: int


class _Attempt:
    """A renewal of the lease in progress; callers that need one meanwhile share its result."""

    def __init__(self) -> None:
        self.error: BrokerError | None = None
        self._ended = _event()

    def end(self) -> None:
        self._ended.set()

    def wait(self, timeout: float) -> None:
        """Wait until the renewal has ended.

        :raises BrokerError: if the renewal failed, or has not ended in time.
        """
        if not self._ended.wait(timeout):
            raise BrokerError(
                f"the broker did not answer in {timeout:g} s; see whether it is overloaded or the "
                "network is interrupted"
            )
        if self.error is not None:
            raise BrokerError(self.error.description) from self.error


class Leases:
    """Reports presence and counts of this process, and returns those of all processes.

    :param client: client that runs scripts, and raises BrokerError.
    :param grace: seconds for which an identity stays after its last connection.

    One thread, started by the first join or count, reports changes and renews the lease.
    """

    def __init__(self, client: RedisClient, names: Names, grace: float, times: LeaseTimes) -> None:
        self._client = client
        self._names = names
        self._grace = grace
        self._times = times
        self._lease_ms = int(times.lease * 1000)
        self._kept_ms = int((_KEPT + times.lease) * 1000)
        self._leaving = DelayedCalls(grace)
        self._lock = native_lock()  # guards what follows, never while anything waits
        self._counts: dict[str, int] = {}
        self._uncounted: set[str] = set()  # channels whose count is not reported yet
        self._identities: dict[str, Counter[str]] = {}
        self._unsettled: set[tuple[str, str]] = set()  # channel and identity, not reported yet
        self._begun = False
        self._closed = False
        self._attempt: _Attempt | None = None
        self._wanted: set[str] = set()  # channels to register with the next attempt
        self._channels: set[str] = set()  # channels registered on the server
        # Written only by the thread that makes the attempt; there is one attempt at a time.
        self._lease: _Lease | None = None
        self._renewed = 0.0
        self._abandoned: list[tuple[str, set[str]]] = []  # former names, with their channels
        self._reapable: list[str] = []  # dead processes, found at the last renewal
        # State of the thread:
        self._touched = monotonic()
        self._changed = threading.Event()
        self._stop = threading.Event()
        self._ended = threading.Event()

    # -- counts ----------------------------------------------------------------------------

    def count(self, channel: str, subscribers: int) -> None:
        with self._lock:
            if self._counts.get(channel, 0) == subscribers:
                return
            if subscribers:
                self._counts[channel] = subscribers
            else:
                del self._counts[channel]
            self._uncounted.add(channel)
        self._begin()

    def subscribers(self, channel: str) -> int:
        key = self._names.key(channel, "counts")
        found = self._client.run([Call(COUNTS, [key], [])])[0]
        counts = {
            process: int(count)
            for process, count in zip(found[::2], found[1::2], strict=True)
            if count.isdigit()  # else another program has written the count
        }
        for process in self._dead() if counts else ():
            counts.pop(process, None)
        lease = self._lease
        if lease is not None:
            counts.pop(lease.process.encode(), None)
        return sum(counts.values()) + self._counts.get(channel, 0)

    # -- presence --------------------------------------------------------------------------

    def join(self, channel: str, identity: str) -> None:
        with self._lock:
            self._identities.setdefault(channel, Counter())[identity] += 1
        try:
            self._settle([(channel, identity)])
        except BaseException:  # a greenlet may be killed here
            self._left(channel, identity)
            raise
        self._begin()

    def leave(self, channel: str, identity: str) -> None:
        self._leaving.call(lambda: self._left(channel, identity))

    def _left(self, channel: str, identity: str) -> None:
        with self._lock:
            present = self._identities.get(channel)
            if present is None or not present[identity]:
                return
            present[identity] -= 1
            if not present[identity]:
                del present[identity]
            if not present:
                del self._identities[channel]
            self._unsettled.add((channel, identity))
        self._begin()
        self._changed.set()

    def present(self, channel: str) -> list[str]:
        if self._lease is not None:
            self._register(())  # after a pause, this process would be among the dead itself,
            self._settle_rest()  # and has to report its own identities again
        keys = [*self._names.log(channel), self._names.key(channel, "who")]
        keys += [f"{keys[-1]}:{process.decode()}" for process in self._dead()]
        found = self._client.run([Call(WHO, keys, self._event_args(channel))])[0]
        return sorted(identity.decode() for identity in found)

    def _dead(self) -> list[bytes]:
        keys = [self._names.processes, self._names.reaping]
        dead: list[bytes] = self._client.run([Call(DEAD, keys, [self._kept_ms])])[0]
        return dead

    def _settle(self, wanted: Iterable[tuple[str, str]]) -> None:
        """Report the connections of identities, until the last report matches the present state."""
        left = list(wanted)
        while left:
            batch, left = left[:_BATCH], left[_BATCH:]
            told = [(*each, self._connections(*each)) for each in batch]
            self._say([channel for channel, _ in batch], partial(self._settling, told))
            # Concurrent reports may overtake each other; the last one is right.
            left += [
                (channel, identity)
                for channel, identity, connections in told
                if self._connections(channel, identity) != connections
            ]

    def _settling(self, told: Iterable[tuple[str, str, int]], lease: _Lease) -> list[Call]:
        return [
            Call(
                SETTLE,
                self._presence_keys(channel, lease.process),
                [
                    *self._event_args(channel),
                    identity,
                    connections,
                    self._kept_ms,
                    lease.deadline,
                ],
            )
            for channel, identity, connections in told
        ]

    def _say(self, channels: Sequence[str], calls: Callable[[_Lease], list[Call]]) -> None:
        """Report on channels, under a lease that is valid when the server runs the calls.

        :param calls: makes the calls for a lease; the calls can be repeated.
        """
        for refusals in range(_REFUSALS):
            lease = self._register(channels, renew=refusals > 0)
            if all(self._client.run(calls(lease))):
                return
        raise BrokerError(
            f"the broker took more than {self._times.lease / 2:g} s to hear who is there, or the "
            "clocks of its nodes differ by as much; see whether it is overloaded"
        )

    def _connections(self, channel: str, identity: str) -> int:
        with self._lock:
            present = self._identities.get(channel)
            return present[identity] if present is not None else 0

    def _presence_keys(self, channel: str, process: str) -> list[str]:
        who = self._names.key(channel, "who")
        return [*self._names.log(channel), who, f"{who}:{process}"]

    def _event_args(self, channel: str) -> list[Any]:
        return [self._client.verb, new_epoch(), self._names.pubsub(channel), _JOIN, _LEAVE]

    # -- the lease -------------------------------------------------------------------------

    def _register(self, channels: Iterable[str], *, renew: bool = False) -> _Lease:
        """Register this process and its channels on the server, and renew the lease if needed.

        While the server is silent, all callers wait for the same answer.
        """
        wanted = set(channels)
        renew = renew or monotonic() - self._renewed > self._times.lease / 2
        while True:
            with self._lock:
                lease = self._lease
                if lease is not None and not renew and wanted <= self._channels:
                    return lease
                self._wanted |= wanted
                attempt = self._attempt
                if attempt is None:
                    mine = self._attempt = _Attempt()
            if attempt is not None:
                attempt.wait(self._times.lease)
            else:
                with self._making(mine):
                    self._renew_wanted()
            renew = False

    @contextmanager
    def _making(self, attempt: _Attempt) -> Iterator[None]:
        """Make an attempt whose result other callers share."""
        try:
            yield
        except BrokerError as exc:
            attempt.error = exc
            raise
        finally:  # if a greenlet is killed here, waiting callers try themselves
            with self._lock:
                self._attempt = None
            attempt.end()

    def _renew_wanted(self) -> None:
        with self._lock:
            new = self._wanted - self._channels
            self._wanted = set()
        alive, dead = self._renew(new)
        if not alive:
            logger.warning(
                "the broker does not know this process any more, as after a restart of the broker "
                "or a long silence of the process; registering again"
            )
            self._begin_anew(new)
            _, dead = self._renew(new)
        self._let_end()
        self._reapable = dead
        with self._lock:
            self._channels |= new

    def _renew(self, channels: Iterable[str], *, out: bool = False) -> tuple[bool, list[str]]:
        """Renew the lease, or take one.

        :param out: whether to remove this process from the channels instead.
        :returns: False if the lease was lost, else True; and the dead processes.
        """
        known = self._lease is not None
        process = self._lease.process if self._lease is not None else secrets.token_hex(8)
        began = monotonic()
        renewal = self._renewal(process, channels, known=known, out=out)
        end, *dead = self._client.run([renewal])[0]
        if end:
            self._lease = _Lease(process, end - self._lease_ms // 4)
            self._renewed = began
        return bool(end), [each.decode() for each in dead]

    def _renewal(
        self, process: str, channels: Iterable[str], *, known: bool, out: bool = False
    ) -> Call:
        names = self._names
        keys = [names.processes, names.reaping, names.channels_of(process)]
        args = [process, self._lease_ms, self._kept_ms, int(known), int(out), *sorted(channels)]
        return Call(RENEW, keys, args)

    def _begin_anew(self, wanted: set[str]) -> None:
        """Take another name, and report everything again under that name.

        :param wanted: further channels that may hold reports under the old name.
        """
        assert self._lease is not None
        process, self._lease = self._lease.process, None
        with self._lock:
            self._abandoned.append((process, self._channels | wanted))
            self._channels.clear()
            self._uncounted.update(self._counts)
            for channel, present in self._identities.items():
                self._unsettled.update((channel, identity) for identity in present)
        self._changed.set()

    def _let_end(self) -> None:
        """Register abandoned leases once more; when they expire, all their reports are reaped."""
        while self._abandoned:
            process, channels = self._abandoned[0]
            self._client.run([self._renewal(process, channels, known=False)])
            del self._abandoned[0]

    # -- the thread ------------------------------------------------------------------------

    def _begin(self) -> None:
        """Start the thread, unless it runs; if the start fails, the next call tries again."""
        try:
            with self._lock:
                if self._begun or self._closed:
                    return
                # threading.Thread waits until the thread runs, but a hub's callback cannot wait.
                _thread.start_new_thread(self._run, ())
                self._begun = True
        except RuntimeError as exc:
            logger.error("cannot tell who is there: %s; allow the process more threads", exc)

    def _run(self) -> None:
        failing = False
        while not self._closed:
            try:
                self._round()
                failing = False
            except BrokerError as exc:
                if not failing:
                    logger.warning("cannot tell who is there: %s; trying again", exc)
                failing = True
            except Exception:
                logger.exception("telling who is there failed; trying again")
                failing = True
            (self._stop if failing else self._changed).wait(self._times.tick)
            self._changed.clear()
        self._ended.set()

    def _round(self) -> None:
        """Report changes, and run the periodic work if due."""
        due = monotonic() - self._renewed >= self._times.renew
        self._register((), renew=due)
        self._settle_rest()
        self._tell_counts()
        if due:
            self._reap()
            self._forget_idle()
        if monotonic() - self._touched > _KEPT / 4:
            self._touch()

    def _settle_rest(self) -> None:
        with self._lock:
            unsettled, self._unsettled = self._unsettled, set()
        try:
            self._settle(unsettled)
        except BaseException:
            with self._lock:
                self._unsettled |= unsettled
            raise

    def _tell_counts(self) -> None:
        with self._lock:
            uncounted, self._uncounted = self._uncounted, set()
        try:
            for batch in _batches(uncounted):
                self._say(batch, partial(self._counting, batch))
        except BaseException:
            with self._lock:
                self._uncounted |= uncounted
            raise

    def _counting(self, channels: Iterable[str], lease: _Lease) -> list[Call]:
        return [
            Call(
                COUNT,
                [self._names.key(channel, "counts")],
                [lease.process, self._counts.get(channel, 0), self._kept_ms, lease.deadline],
            )
            for channel in channels
        ]

    def _reap(self) -> None:
        """Remove dead processes from their channels."""
        names = self._names
        for process in self._reapable:
            own = names.channels_of(process)
            registry = [names.processes, names.reaping, own]
            claim = Call(CLAIM, registry, [process, self._lease_ms, self._kept_ms])
            channels = self._client.run([claim])[0]
            if channels is None:
                continue  # another process was faster
            logger.info("a process has ended; taking it out of %d channels", len(channels))
            for batch in _batches(channel.decode() for channel in channels):
                self._register(())  # keep the own lease valid while reaping
                self._client.run(
                    [
                        Call(
                            REAP,
                            [
                                *self._presence_keys(channel, process),
                                names.key(channel, "counts"),
                            ],
                            [*self._event_args(channel), process],
                        )
                        for channel in batch
                    ]
                )
            self._client.run([Call(END, [names.reaping, own], [process])])

    def _forget_idle(self) -> None:
        """Remove this process from channels if there is nothing to report on them."""
        with self._lock:
            told = {channel for channel, _ in self._unsettled}
            told.update(self._uncounted, self._counts, self._identities)
            idle = self._channels - told
            if not idle or self._lease is None or self._attempt is not None:
                return  # the next round may find some
            # If another caller needs one of these channels, the caller waits for this attempt.
            self._channels -= idle
            attempt = self._attempt = _Attempt()
        with self._making(attempt):
            self._renew(idle, out=True)

    def _touch(self) -> None:
        """Ask the server to keep keys that have not changed for long."""
        with self._lock:
            channels, lease = list(self._channels), self._lease
        process = lease.process if lease is not None else ""
        for batch in _batches(channels):
            calls = []
            for channel in batch:
                keys = [
                    *self._presence_keys(channel, process)[2:],
                    self._names.key(channel, "counts"),
                ]
                calls.append(Call(TOUCH, keys, [self._kept_ms]))
            self._client.run(calls)
        self._touched = monotonic()

    # -- the end ---------------------------------------------------------------------------

    def close(self) -> None:
        """End the thread; other processes drop this one's reports after the grace period."""
        self._leaving.close()
        with self._lock:
            self._closed = True
        self._stop.set()
        self._changed.set()
        if self._begun:
            self._ended.wait(self._times.tick)
        with self._lock:
            self._counts.clear()
            self._identities.clear()
        lease, self._lease = self._lease, None
        if lease is None or monotonic() - self._renewed > self._times.lease:
            return
        try:
            args = [lease.process, int(self._grace * 1000)]
            self._client.run([Call(SHORTEN, [self._names.processes], args)])
        except BrokerError as exc:
            logger.debug("could not give up the lease, which ends by itself: %s", exc)

    def forget(self) -> None:
        """End in the child of a fork; the parent goes on."""
        self._closed = True
        self._leaving.close()


def _batches(channels: Iterable[str]) -> Iterator[list[str]]:
    left = list(channels)
    for start in range(0, len(left), _BATCH):
        yield left[start : start + _BATCH]


def _event() -> Any:
    """Return an event for waiting until another caller in the same native thread has an answer.

    If gevent has patched ``socket``, the event must be gevent's, even if threads are unpatched.
    """
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None or not monkey.is_module_patched("socket"):
        return threading.Event()
    from gevent.event import Event

    return Event()
