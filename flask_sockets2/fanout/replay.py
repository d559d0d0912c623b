"""Replay: sends a client the history of a channel in pieces, as fast as the client reads.

A short history is sent at once. For a longer one, the client has a *place* in the log of its
channel, and no copy. While the client has room, the messages behind that place are read from a log
that all clients share: the broker's log, or ``fanout/replay_cache.py``. Then the place moves on. At
the newest message the client joins its audience. So a client that does not read holds few messages,
however long its history. If the log drops messages before the client reads them, a gap is sent.

Limits for one client::

    messages of all its replays    up to half of send_buffer, and they are mostly shared
    its outlet and its transport   up to the other half, and one message
    transient messages meanwhile   up to half of send_buffer; more is too slow
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

from ..brokers.base import Broker, History, Message
from .audience import Audience
from .encoding import Encoding, gap_message
from .held import OVERHEAD, Held, Replays
from .outbox import DROP_OLDEST, Batch, Outlet
from .replay_cache import ReplayCache

__all__ = ["Replayer"]

logger = logging.getLogger("flask_sockets2.channels")

_AT_ONCE = 65536  # bytes of histories that go out at once, for one client


class Replayer:
    """Sends histories to the clients of one fan-out.

    :param broker: the broker, whose log is read if ``recent`` is None; reading does not wait then.
    :param recent: cache of the newest messages; None for a broker in this process.
    :param lock: the fan-out's lock.
    """

    def __init__(self, broker: Broker, recent: ReplayCache | None, lock: Any) -> None:
        self._broker = broker
        self._recent = recent
        self._lock = lock

    def fits(self, outlet: Outlet, messages: Sequence[Message]) -> bool:
        """Whether messages are short enough to be sent at once; if so, their bytes are counted."""
        room = min(_AT_ONCE, outlet.limit // 8) - outlet.at_once
        size = 0
        for message in messages:
            size += len(message.data) + OVERHEAD
            if size > room:
                return False
        outlet.at_once += size
        return True

    def begin(
        self,
        audience: Audience,
        outlet: Outlet,
        encoding: Encoding,
        held: Held,
        messages: Sequence[Message],
    ) -> None:
        """Start a replay of messages and of all that follow them; under the lock."""
        replays = outlet.replays
        if replays is None:
            replays = outlet.replays = Replays(outlet.limit // 2)
        held.messages = []
        held.replays = replays
        replays.held.append((held, audience, encoding))
        held.add(messages)
        self.go_on(outlet)

    def go_on(self, outlet: Outlet) -> None:
        """Have a client's hub or selector thread send more of its replays; any thread."""
        replays = outlet.replays
        if replays is not None and not replays.scheduled:
            replays.scheduled = True
            outlet.transport.clock.call_soon(partial(self._serve, outlet, replays))

    def _serve(self, outlet: Outlet, replays: Replays) -> None:
        """Send a piece of each replay, as long as there is room."""
        replays.scheduled = False
        if replays.flooded and not self._drop(outlet, replays):
            return
        for _ in range(len(replays.held)):
            with self._lock:
                if not replays.held:
                    break
                held, audience, encoding = replays.held[0]
                replays.held.rotate(-1)
            try:
                self._send(outlet, held, audience, encoding)
            except Exception:  # our error: the client can reconnect, and other clients go on
                logger.exception("replaying a history of channels to a client failed")
                outlet.give_up(audience.channel.counters)
            if outlet.is_full:
                break
        with self._lock:
            if not replays.held and outlet.replays is replays:
                outlet.replays = None
        if not outlet.is_behind:  # if it is, Outlet.drained() calls go_on()
            outlet.at_once = 0
            self.go_on(outlet)

    def _drop(self, outlet: Outlet, replays: Replays) -> bool:
        """Count transient messages without room as dropped; False if the client is ended."""
        with self._lock:
            replays.flooded = False
            concerned = [(held, audience) for held, audience, _ in replays.held if held.dropped]
        if not concerned:
            return True
        if outlet.policy != DROP_OLDEST:
            outlet.give_up(concerned[0][1].channel.counters)
            return False
        for held, audience in concerned:
            with self._lock:
                count, held.dropped = held.dropped, 0
            audience.channel.counters.dropped += count
            for _ in range(count):
                outlet.source.observer.dropped(outlet.owner, audience.channel.name)
        return True

    def _send(self, outlet: Outlet, held: Held, audience: Audience, encoding: Encoding) -> None:
        if held.cut and not held.messages:
            self._look_up(outlet, held, audience)
        with self._lock:
            if held.replays is None:
                return  # the client has left
            messages = list(held.messages)
        taken = outlet.replay(audience.channel, encoding, messages)
        with self._lock:
            if held.replays is None:
                return
            held.took(taken)
            if taken == len(messages) and not held.cut:
                self._end(outlet, held, audience, encoding)

    def _look_up(self, outlet: Outlet, held: Held, audience: Audience) -> None:
        """Continue a subscription with the messages behind its place, or with a gap."""
        channel, place = audience.channel, held.after
        assert place is not None
        found: History | None = None
        if self._recent is None:
            found = self._broker.history(channel.name, place)
        with self._lock:
            if held.replays is None:
                return
            if self._recent is not None:
                found = self._recent.since(channel.name, place)
            here = channel.position
            assert here is not None
            missing: Sequence[Message] = ()
            lost = False
            if found is not None and found.complete:
                missing = found.messages
            elif place.epoch == here.epoch:
                lost = place.offset < here.offset  # if not, the broker is about to deliver
            else:
                lost = here.epoch != held.over  # if not, this process will notice, and tell all
            if lost or not held.silent:
                missing = (gap_message(channel.name, here),)
                channel.counters.gaps += 1
                held.silent = True
            held.go_on(missing)
        if missing and missing[0].event:
            outlet.source.observer.gap(channel.name)

    def _end(self, outlet: Outlet, held: Held, audience: Audience, encoding: Encoding) -> None:
        """End a replay that has reached this process's newest message; under the lock."""
        audience.seal()  # may cut again, if there is no room for the pending messages
        if held.cut:
            return
        messages, channel = held.messages, audience.channel
        held.leave()
        held.messages = []
        if messages:
            audience.writer.add(Batch(channel, encoding, [outlet], messages))
        assert channel.position is not None
        if held.is_level(channel.position):
            audience.admit(outlet, encoding)
