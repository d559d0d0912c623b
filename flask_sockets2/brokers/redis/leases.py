"""Leases: presence and subscriber counts of all processes, without those of dead processes.

Each process takes part under a random token and a lease that the process renews. Identities and
subscribers of a channel are told as numbers, not as changes, so that a call can be repeated after
an error.

A process whose lease is over is dead from the moment at which another process notices. A reader
takes the dead process out of the channel that is being read, the next process that renews its own
lease takes it out of the rest; both publish ``leave`` for identities that are nowhere else. If the
process was only paused, its lease cannot be renewed any more: the process takes another token and
tells everything again, so that ``join`` is published. Calls that were under way before the pause
are refused by their deadline, since nothing would clear their effect.

A restarted Redis does not know the lease either, and may have recorded presence under it already.
So the process takes that lease once more and lets it end.

On a cluster that server's clock is another than that of the leases: they may differ by a quarter of
a lease.
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
_REFUSALS = 3  # one after another, until it is not a pause that makes the server refuse
_KEPT = 3600.0  # seconds that the server keeps what nobody touches; all processes are gone then
_JOIN, _LEAVE = (body_of(TEXT, b"", "", event, True) for event in ("join", "leave"))


@dataclass(frozen=True, slots=True)
class LeaseTimes:
    """Seconds.

    :ivar lease: after its last sign of life, when a process is taken for dead.
    :ivar renew: between two signs of life.
    :ivar tick: within which changed counts are told to other processes.
    """

    lease: float = 10.0
    renew: float = 3.0
    tick: float = 1.0


class _Lease(NamedTuple):
    """What the server knows of this process.

    :ivar process: its name.
    :ivar deadline: of what is said under it, by the server's clock, in milliseconds.
    """

    process: str
    deadline: int


class _Attempt:
    """A renewal of the lease under way; all who need one meanwhile share its result."""

    def __init__(self) -> None:
        self.error: BrokerError | None = None
        self._ended = _event()

    def end(self) -> None:
        self._ended.set()

    def wait(self, timeout: float) -> None:
        """Wait until it has ended.

        :raises BrokerError: when it failed, or has not ended in time.
        """
        if not self._ended.wait(timeout):
            raise BrokerError(
                f"the broker did not answer in {timeout:g} s; see whether it is overloaded or the "
                "network is interrupted"
            )
        if self.error is not None:
            raise BrokerError(self.error.description) from self.error


class Leases:
    """Presence and counts of this process, and what others say of theirs.

    :param client: runs scripts, and raises BrokerError.
    :param grace: seconds after which an identity that left is gone.

    One thread, begun with the first join or count, tells what changed and renews the lease.
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
        self._uncounted: set[str] = set()  # channels whose count was not told yet
        self._identities: dict[str, Counter[str]] = {}
        self._unsettled: set[tuple[str, str]] = set()  # channel and identity, not told yet
        self._begun = False
        self._closed = False
        self._attempt: _Attempt | None = None
        self._wanted: set[str] = set()  # channels to be in with the next attempt
        self._channels: set[str] = set()  # that the server knows this process to be in
        # Written by who makes the attempt, of which there is one at a time.
        self._lease: _Lease | None = None
        self._renewed = 0.0
        self._abandoned: list[tuple[str, set[str]]] = []  # processes that it was, their channels
        self._reapable: list[str] = []  # processes found dead with the last renewal
        # The thread's own.
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
            if count.isdigit()  # else another program's
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
            self._register(())  # after a pause it would be among the dead itself,
            self._settle_rest()  # and has to say its own identities again
        keys = [*self._names.log(channel), self._names.key(channel, "who")]
        keys += [f"{keys[-1]}:{process.decode()}" for process in self._dead()]
        found = self._client.run([Call(WHO, keys, self._event_args(channel))])[0]
        return sorted(identity.decode() for identity in found)

    def _dead(self) -> list[bytes]:
        keys = [self._names.processes, self._names.reaping]
        dead: list[bytes] = self._client.run([Call(DEAD, keys, [self._kept_ms])])[0]
        return dead

    def _settle(self, wanted: Iterable[tuple[str, str]]) -> None:
        """Tell the connections of identities, until what was told last is what is the case."""
        left = list(wanted)
        while left:
            batch, left = left[:_BATCH], left[_BATCH:]
            told = [(*each, self._connections(*each)) for each in batch]
            self._say([channel for channel, _ in batch], partial(self._settling, told))
            # Who told it at the same time may have been overtaken; the last one is right.
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
        """Say something of channels, under a lease that holds when the server hears it.

        :param calls: makes the calls for a lease; they can be repeated.
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
        """Have the server know this process to be in channels, and to be alive.

        While the server is silent, all who call this wait for the same answer.
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
        """Make an attempt, the result of which others share."""
        try:
            yield
        except BrokerError as exc:
            attempt.error = exc
            raise
        finally:  # where a greenlet is killed here, those who wait try themselves
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

        :param out: take this process out of the channels instead.
        :returns: whether there was one, where there should be; and the processes that are dead.
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
        """Take another name, under which everything is said again.

        :param wanted: channels in which something may have been said under the old one, too.
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
        """Have what was said under abandoned leases reaped, once no more of it can be heard."""
        while self._abandoned:
            process, channels = self._abandoned[0]
            self._client.run([self._renewal(process, channels, known=False)])
            del self._abandoned[0]

    # -- the thread ------------------------------------------------------------------------

    def _begin(self) -> None:
        """Begin the thread, unless it runs; where that cannot be, the next call tries again."""
        try:
            with self._lock:
                if self._begun or self._closed:
                    return
                # threading.Thread would wait until it runs, and a hub's callback cannot wait.
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
        """Tell what changed, and see to what is due."""
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
        """Take dead processes out of the channels that they were in."""
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
                self._register(())  # reaping must not cost the own lease
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
        """Have this process taken out of channels that it has nothing to say of."""
        with self._lock:
            told = {channel for channel, _ in self._unsettled}
            told.update(self._uncounted, self._counts, self._identities)
            idle = self._channels - told
            if not idle or self._lease is None or self._attempt is not None:
                return  # the next round may find some
            # Who wants one from now on waits for this attempt, and makes another.
            self._channels -= idle
            attempt = self._attempt = _Attempt()
        with self._making(attempt):
            self._renew(idle, out=True)

    def _touch(self) -> None:
        """Have the server keep what has not changed for long."""
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
        """End; what this process said holds for as long as identities that left are kept."""
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
        """End, in a child of a fork, what goes on in the parent."""
        self._closed = True
        self._leaving.close()


def _batches(channels: Iterable[str]) -> Iterator[list[str]]:
    left = list(channels)
    for start in range(0, len(left), _BATCH):
        yield left[start : start + _BATCH]


def _event() -> Any:
    """Return an event to wait with for one who waits for the server in the same native thread.

    That is what a patched socket needs, also where gevent leaves threads alone.
    """
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None or not monkey.is_module_patched("socket"):
        return threading.Event()
    from gevent.event import Event

    return Event()
