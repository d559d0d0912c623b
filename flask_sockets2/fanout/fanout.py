"""Fan-out: delivers a channel's messages to its subscribers in this process.

::

    broker ─ deliver() ─> channel ─> one audience for each hub or selector thread
                                        messages of one turn, joined, once for each encoding
                                           └─> one write for each client

A message is encoded once for all clients with the same encoding (``fanout/encoding.py``). Messages
published within one turn of the hub reach a client in one write. A publisher never waits for a
client. If a publisher does not yield, :meth:`Fanout.relieve` makes it write.

A subscription begins without a gap and without a duplicate. The client joins the audience at once,
but is *held*: live messages are buffered. Then the history after its position is fetched, and both
are sent in order, each message once. If this process has the history in its cache
(``fanout/replay_cache.py``), all of that is one step. A longer history is sent in pieces, as fast
as the client reads (``fanout/replay.py``).

Presence is sent again after an interruption (``fanout/roll_call.py``). Joins and leaves that arrive
while the broker is asked for the members are repeated behind the list. So a client that keeps a set
ends up with the right members, whether or not the list includes these events.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from ..brokers.base import Broker, BrokerOptions, History, Message, Position
from ..concurrency.native_lock import native_lock
from ..exceptions import BrokerError
from ..stats import Counters
from .audience import Audience, Channel, Entry
from .control_channels import ControlChannels
from .encoding import Encoding, gap_message, presence_message
from .held import Held
from .open_channels import OpenChannels, inform
from .outbox import Batch, Observer, Outlet
from .replay import Replayer
from .replay_cache import ReplayCache
from .roll_call import RollCall
from .turn_writer import TurnWriter, WriterClock

__all__ = ["ALL", "Fanout", "Subscription"]

logger = logging.getLogger("flask_sockets2.channels")

ALL = object()
"""In place of a position: replay the whole history."""

_PENDING = 65536  # pending bytes of a hub; above, a publisher in its thread writes them itself
_FLOOD = 2**20  # pending bytes of a hub; above, a publisher in another thread waits
# Seconds after an interruption when presence is sent again. By the second time, a process whose
# lease (brokers/leases.py) ended has either renewed its presence or is known to be dead.
_ROLL_CALLS = (0.5, 10.0)


_UNPATCHED = (
    "gevent has not patched the standard library, so waiting for the broker would stop all "
    "connections; begin the program with: from gevent import monkey; monkey.patch_all()"
)


class Subscription(NamedTuple):
    """How a subscription begins: the position, and whether messages before it are lost.

    :ivar channel: name of the channel.
    :ivar position: position after which the client receives every message.
    :ivar gap: whether messages after the requested position are lost.
    """

    channel: str
    position: Position
    gap: bool


class Fanout:
    """Delivers messages to one application's subscribers in this process; its broker's receiver.

    :param make_broker: function that takes the fan-out and returns its broker.
    :param options: the broker's settings.
    :param counters: the application's counters.
    """

    def __init__(
        self,
        make_broker: Callable[[Fanout], Broker],
        options: BrokerOptions,
        counters: Counters,
    ) -> None:
        self._options = options
        self._counters = counters
        # Guards channels, audiences and pending messages. Under this lock, code does not wait,
        # write to a socket or log: a log handler may switch greenlets, and the next greenlet that
        # takes the lock would stop the thread for ever. A broker may deliver under its own lock,
        # so count() is the only broker method that is called under this one.
        self._lock = native_lock()
        self._writers: dict[Any, TurnWriter] = {}
        #: Callbacks for gaps, dropped messages and slow clients; see :class:`Observer`.
        self.observer = Observer()
        self.broker = make_broker(self)
        self._recent = ReplayCache(self.broker, options, self._lock) if self.broker.waits else None
        self._replayer = Replayer(self.broker, self._recent, self._lock)
        self._channels = OpenChannels(self.broker, self._recent, counters, self._lock)
        self._own = ControlChannels(self.broker)
        self._roll_calls = [RollCall(delay, self._call_roll) for delay in _ROLL_CALLS]

    # -- the broker ------------------------------------------------------------------------

    def deliver(self, message: Message) -> None:
        """Take a message from the broker; see :class:`~flask_sockets2.brokers.base.Receiver`."""
        with self._lock:
            channel = self._channels.by_name.get(message.channel)
            if channel is not None:
                if not message.transient:
                    channel.position = message.position
                    if self._recent is not None:
                        self._recent.add(message)
                elif channel.joined is not None and message.event:
                    channel.joined.append(message)
                channel.put(message)
        if channel is None:
            self._own.deliver(message)

    def missed(self, channel: str, position: Position) -> None:
        """Send a gap to all subscribers of a channel: messages before a position were lost."""
        with self._lock:
            known = self._channels.by_name.get(channel)
            if known is not None:
                known.position = position
                if self._recent is not None:
                    self._recent.begin(channel, position)
                known.put(gap_message(channel, position))
                known.counters.gaps += known.subscribers
        if known is None:
            self._own.missed(channel, position)
            return
        logger.warning(
            "messages of channel %.200r were lost before %s",
            channel,
            position,
            extra={"event": "gap", "channel": channel, "position": str(position)},
        )
        self.observer.gap(channel)

    def resumed(self, channel: str) -> None:
        """Send presence again, since clients may have missed joins and leaves."""
        with self._lock:
            known = self._channels.by_name.get(channel)
            concerned = known is not None and known.tells_presence()
        if concerned:
            for roll_call in self._roll_calls:
                roll_call.ask(channel)

    def _call_roll(self, name: str) -> None:
        """Ask the broker for a channel's members and send the list to the subscribers.

        :raises BrokerError: if the broker cannot be reached.
        """
        with self._lock:
            channel = self._channels.by_name.get(name)
            if channel is None or not channel.tells_presence():
                return
            joined: list[Message] = []
            channel.joined = joined
        there = None
        try:
            there = self.broker.present(name)
        finally:
            with self._lock:
                if channel.joined is joined:  # if the broker was asked again, the newer list counts
                    channel.joined = None
                    if there is not None:
                        assert channel.position is not None
                        channel.put(presence_message(name, there, channel.position))
                        for message in joined:
                            channel.put(message)

    def reconnected(self) -> None:
        """Count a reconnect of the broker, and notify the observer."""
        self._counters.broker_reconnects += 1
        self.observer.reconnected()

    def relieve(self) -> None:
        """Write pending messages if there are many; a publisher calls this after each message.

        In the hub's own thread, the messages are written at once. Any other thread waits until the
        hub has written some of them, a few seconds at most.
        """
        for writer in list(self._writers.values()):
            if writer.pending > _PENDING:
                if writer.clock.inside():
                    writer.flush_all()
                elif writer.pending > _FLOOD:
                    writer.wait_for_room(_FLOOD)

    # -- subscribing -----------------------------------------------------------------------

    def subscribe(
        self,
        outlet: Outlet,
        name: str,
        encoding: Encoding,
        *,
        since: Position | object | None = None,
        identity: str | None = None,
        presence: bool = False,
    ) -> Subscription:
        """Subscribe a client to a channel.

        :param since: position of the last message that the client received; ``ALL`` for the whole
            history, None for new messages only.
        :param identity: the client's user, for :meth:`Broker.present`.
        :param presence: whether the client receives the members, joins and leaves.
        :raises BrokerError: if the broker cannot be reached; the client is not subscribed then.
        :raises ValueError: if the client is subscribed to the channel already.
        """
        if name in outlet.entries:
            raise _already(name)
        self._check_waiting(outlet.transport.clock)
        channel = self._channels.open(name)
        entry = Entry(channel, encoding)
        simple = identity is None and not presence
        with self._lock:
            assert channel.position is not None
            twice = name in outlet.entries  # another greenlet was faster
            refused = twice or outlet.closed
            if not refused:
                outlet.entries[name] = entry
                audience = self._audience(channel, outlet.transport.clock)
                audience.seal()  # pending messages are for the earlier subscribers
                at_hand = self._at_hand(channel, since) if simple else None
                if at_hand is not None and self._replayer.fits(outlet, at_hand.messages):
                    audience.admit(outlet, encoding)
                    self._count_replay(channel, at_hand)
                    if at_hand.messages:
                        audience.writer.add(Batch(channel, encoding, [outlet], at_hand.messages))
                    return Subscription(name, at_hand.position, False)
                held = audience.held[outlet] = Held(channel.position)
                if at_hand is not None:
                    held.bring_to(at_hand.position)
                    self._count_replay(channel, at_hand)
                    self._replayer.begin(audience, outlet, encoding, held, at_hand.messages)
                    return Subscription(name, at_hand.position, False)
        if refused:
            self._channels.release(channel)
            if twice:
                raise _already(name)
            return Subscription(name, channel.position, False)  # the connection has ended meanwhile
        try:
            return self._begin(entry, audience, outlet, held, since, identity, presence)
        except BaseException:
            self._leave(outlet, name, entry)
            raise

    def listen(
        self,
        name: str,
        listener: Callable[[Message], None],
        clock: WriterClock,
        *,
        missed: Callable[[], None] | None = None,
    ) -> None:
        """Call a function for each message of a control channel, which no client can subscribe to.

        :param listener: function called in the thread that delivers; must not wait.
        :param clock: the caller's hub or selector thread.
        :param missed: function called in the same way if messages were lost; None if all messages
            of the channel are transient.
        :raises BrokerError: if the broker cannot be reached; the function is not called then.
        """
        if not self._own.hears(name):
            self._check_waiting(clock)
            self._own.listen(name, listener, missed)

    def _check_waiting(self, clock: WriterClock) -> None:
        """Check that a wait for the broker stops no other connections of a thread."""
        if self.broker.waits and clock.blocks:
            raise BrokerError(_UNPATCHED)

    def _audience(self, channel: Channel, clock: Any) -> Audience:
        audience = channel.audiences.get(clock)
        if audience is None:
            writer = self._writers.get(clock)
            if writer is None:
                writer = self._writers[clock] = TurnWriter(clock, self._lock)
            audience = channel.audiences[clock] = Audience(channel, writer)
        return audience

    def _at_hand(self, channel: Channel, since: Any) -> History | None:
        """Return the history after a position if the broker need not be asked; None otherwise."""
        position = channel.position
        assert position is not None
        if since is None or since == position:
            return History((), position)
        if self._recent is None:
            return None
        return self._recent.since(channel.name, None if since is ALL else since)

    def _history(self, channel: Channel, since: Any) -> History:
        """Return the history after a position; waits for the broker if the cache lacks it."""
        with self._lock:
            at_hand = self._at_hand(channel, since)
        if at_hand is not None:
            return at_hand
        wanted = None if since is ALL else since
        if self._recent is None:
            return self.broker.history(channel.name, wanted)
        return self._recent.fetch(channel.name, wanted)

    def _begin(
        self,
        entry: Entry,
        audience: Audience,
        outlet: Outlet,
        held: Held,
        since: Any,
        identity: str | None,
        presence: bool,
    ) -> Subscription:
        """Fetch the history and the members, then release the messages held meanwhile."""
        channel, history, there = entry.channel, None, None
        if since is not None:
            history = self._history(channel, since)
        if identity is not None:
            self._join(entry, audience, outlet, held, identity)
        if presence:
            there = self.broker.present(channel.name)
        with self._lock:
            assert channel.position is not None
            position = held.begun if history is None else history.position
            gap = history is not None and not history.complete
            if audience.held.get(outlet) is not held:  # the client left meanwhile
                return Subscription(channel.name, position, gap)
            audience.seal()
            if history is not None:
                held.bring_to(position)
                self._count_replay(channel, history)
            past, live = held.release(history.messages if history is not None else ())
            if gap:
                past.append(gap_message(channel.name, position))
            if there is not None:
                past.append(presence_message(channel.name, there, position))
            messages = past + live
            if not self._replayer.fits(outlet, messages):
                if history is None:
                    held.bring_to(position)
                self._replayer.begin(audience, outlet, entry.encoding, held, messages)
            else:
                if messages:
                    audience.writer.add(Batch(channel, entry.encoding, [outlet], messages))
                if held.is_level(channel.position):
                    audience.admit(outlet, entry.encoding)
                else:
                    held.messages.clear()
        if gap:
            self.observer.gap(channel.name)
        return Subscription(channel.name, position, gap)

    def _join(
        self, entry: Entry, audience: Audience, outlet: Outlet, held: Held, identity: str
    ) -> None:
        self.broker.join(entry.channel.name, identity)
        with self._lock:
            there = audience.held.get(outlet) is held
            if there:
                entry.identity = identity  # from here on, _leave() tells the broker
        if not there:
            self.broker.leave(entry.channel.name, identity)

    @staticmethod
    def _count_replay(channel: Channel, history: History) -> None:
        if not history.complete:
            channel.counters.gaps += 1
        elif history.messages:
            channel.counters.replays += 1
            channel.counters.replayed += len(history.messages)

    def unsubscribe(self, outlet: Outlet, name: str) -> bool:
        """Unsubscribe a client from a channel; False if the client was not subscribed."""
        return self._leave(outlet, name)

    def remove(self, outlet: Outlet) -> None:
        """Unsubscribe a closing client from all its channels."""
        with self._lock:  # a concurrent subscribe() has its entry, or sees the closed outlet
            names = list(outlet.entries)
        for name in names:
            self._leave(outlet, name)

    def _leave(self, outlet: Outlet, name: str, only: Entry | None = None) -> bool:
        """Take an outlet out of a channel; :param only: do so only if this is its subscription."""
        with self._lock:
            entry: Entry | None = outlet.entries.get(name)
            if entry is None or (only is not None and entry is not only):
                return False
            del outlet.entries[name]
            channel, clock = entry.channel, outlet.transport.clock
            audience = channel.audiences[clock]
            audience.remove(outlet, entry.encoding)
            if audience.empty:
                del channel.audiences[clock]
        if entry.identity is not None:
            inform(self.broker.leave, channel.name, entry.identity)
        self._channels.release(channel)
        return True

    def go_on(self, outlet: Outlet) -> None:
        """Send more of a client's histories, since the client has room."""
        self._replayer.go_on(outlet)

    def subscribers(self, name: str) -> int:
        """Return the number of a channel's subscribers in this process."""
        channel = self._channels.by_name.get(name)
        return 0 if channel is None else channel.subscribers

    def channels(self) -> dict[str, int]:
        """Return the number of subscribers in this process of each channel that has any."""
        return self._channels.subscribers()

    def close(self) -> None:
        """Close the broker; no messages are delivered after this."""
        self._channels.close()
        for roll_call in self._roll_calls:
            roll_call.close()
        if self._recent is not None:
            self._recent.close()
        self.broker.close()


def _already(name: str) -> ValueError:
    return ValueError(f"already subscribed to {name!r}; unsubscribe() first")
