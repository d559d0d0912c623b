"""Fan-out: from a channel to its subscribers in this process.

::

    broker ─ deliver() ─> channel ─> one audience for each hub or selector thread
                                        what came in one turn, joined, once for each encoding
                                           └─> one write for each client

A message is encoded once for all clients that want it alike (``fanout/encoding.py``). What is
published within one turn of the hub reaches a client in one write. A publisher never waits for a
client, and one that does not yield is made to write (:meth:`Fanout.relieve`).

How a subscription begins, without a gap and without a duplicate: the client is put into the
audience at once, but *held*, so that live messages collect. Then the history after its position is
fetched, and both are released in order, without what they share. Where the messages wanted are
still at hand in this process (``fanout/replay_cache.py``), all of that is one step. A history that
is more than a little goes out in pieces, as the client takes them (``fanout/replay.py``).

How the list of who is there is told anew (``fanout/roll_call.py``): the events that come while the
broker is asked for it are noted, and told once more behind it. So whatever the list has of them
already, who keeps a set ends up with the right one.
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
"""In place of a position: all that the history holds."""

_PENDING = 65536  # bytes of messages of one turn; a publisher writes them itself then
_FLOOD = 2**20  # the same in all; another thread waits until the hub has written some
# Seconds after an interruption when who is there is told anew; the second time when processes whose
# lease (brokers/leases.py) ended meanwhile have taken part again, or are known to be dead.
_ROLL_CALLS = (0.5, 10.0)


_UNPATCHED = (
    "gevent has not patched the standard library, so waiting for the broker would stop all "
    "connections; begin the program with: from gevent import monkey; monkey.patch_all()"
)


class Subscription(NamedTuple):
    """How a subscription begins.

    :ivar channel: its name.
    :ivar position: after which everything is sent.
    :ivar gap: whether messages after the position asked for are lost.
    """

    channel: str
    position: Position
    gap: bool


class Fanout:
    """The subscribers of one application in this process; the receiver of its broker.

    :param make_broker: called with the fan-out, returns its broker.
    :param options: what is set for the broker.
    :param counters: to count in.
    """

    def __init__(
        self,
        make_broker: Callable[[Fanout], Broker],
        options: BrokerOptions,
        counters: Counters,
    ) -> None:
        self._options = options
        self._counters = counters
        # Guards channels, audiences and what is pending; nothing waits, no socket is written and
        # nothing is logged while it is held: a log's handler may switch greenlets, and the next one
        # that wants the lock would stop the thread for ever. A broker may hold its own lock while
        # it delivers, so none of a broker's methods but count() is called under it.
        self._lock = native_lock()
        self._writers: dict[Any, TurnWriter] = {}
        #: Told what happens; see :class:`Observer`.
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
        """Tell all subscribers of a channel that messages were lost."""
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
        """Have clients told who is there, since they may not know who joined and left."""
        with self._lock:
            known = self._channels.by_name.get(channel)
            concerned = known is not None and known.tells_presence()
        if concerned:
            for roll_call in self._roll_calls:
                roll_call.ask(channel)

    def _call_roll(self, name: str) -> None:
        """Tell clients who is there; asks the broker.

        :raises BrokerError: when it cannot be reached.
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
                if channel.joined is joined:  # else it was asked again: the newer list counts
                    channel.joined = None
                    if there is not None:
                        assert channel.position is not None
                        channel.put(presence_message(name, there, channel.position))
                        for message in joined:
                            channel.put(message)

    def reconnected(self) -> None:
        """Count that the broker was out of reach and is back."""
        self._counters.broker_reconnects += 1
        self.observer.reconnected()

    def relieve(self) -> None:
        """Write what is pending, where it is much; a publisher calls this after each message.

        Within the hub's own thread it is written at once. Any other thread waits until the hub has
        written some of it, a few seconds at most.
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
        """Send a client what is published to a channel.

        :param since: the position that it has seen everything up to; ``ALL`` for all that the
            history holds, None for what comes from now on.
        :param identity: who it is, for :meth:`Broker.present`.
        :param presence: tell it who is there.
        :raises BrokerError: when the broker cannot be reached; the client is not subscribed then.
        :raises ValueError: when it subscribes to the channel already.
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
                audience.seal()  # what is pending is for those before
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
        """Have a function called with what is published to a channel that no client can have.

        :param listener: called by the broker wherever it delivers, and must not wait.
        :param clock: of who asks.
        :param missed: called, as the listener, where something was published that it will not be
            told; None where all is transient, so that nothing is missed.
        :raises BrokerError: when the broker cannot be reached; nobody listens then.
        """
        if not self._own.hears(name):
            self._check_waiting(clock)
            self._own.listen(name, listener, missed)

    def _check_waiting(self, clock: WriterClock) -> None:
        """See that the broker can be waited for in a thread."""
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
        """Return what follows a position, where that is known without asking the broker."""
        position = channel.position
        assert position is not None
        if since is None or since == position:
            return History((), position)
        if self._recent is None:
            return None
        return self._recent.since(channel.name, None if since is ALL else since)

    def _history(self, channel: Channel, since: Any) -> History:
        """Return what follows a position; waits for the broker where it is not at hand."""
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
        """Fetch what the client wants first and release what was held meanwhile."""
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
            if audience.held.get(outlet) is not held:  # it has left meanwhile, or ended
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
                entry.identity = identity  # whoever takes it out has it leave
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
        """Send a client nothing more of a channel; False where it does not subscribe to it."""
        return self._leave(outlet, name)

    def remove(self, outlet: Outlet) -> None:
        """Forget a client: it is closing."""
        with self._lock:  # who subscribes just now has its entry, or sees that it is closed
            names = list(outlet.entries)
        for name in names:
            self._leave(outlet, name)

    def _leave(self, outlet: Outlet, name: str, only: Entry | None = None) -> bool:
        """Take an outlet out of a channel; :param only: where that is its subscription."""
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
        """A client has room for more of the histories that are replayed to it."""
        self._replayer.go_on(outlet)

    def subscribers(self, name: str) -> int:
        """Return how many subscribers a channel has in this process."""
        channel = self._channels.by_name.get(name)
        return 0 if channel is None else channel.subscribers

    def channels(self) -> dict[str, int]:
        """Return the channels with subscribers in this process, and how many they have."""
        return self._channels.subscribers()

    def close(self) -> None:
        """Let go of the broker; nothing is delivered any more."""
        self._channels.close()
        for roll_call in self._roll_calls:
            roll_call.close()
        if self._recent is not None:
            self._recent.close()
        self.broker.close()


def _already(name: str) -> ValueError:
    return ValueError(f"already subscribed to {name!r}; unsubscribe() first")
