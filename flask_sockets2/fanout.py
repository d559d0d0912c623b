"""Fan-out: from a channel to its subscribers in this process.

::

    broker ─ deliver() ─> channel ─> one audience for each hub or selector thread
                                        what came in one turn, joined, once for each encoding
                                           └─> one write for each client

A message is encoded once for all clients that want it alike (``encoding.py``). What is published
within one turn of the hub reaches a client in one write. A publisher never waits for a client, and
one that does not yield is made to write (:meth:`Fanout.relieve`).

How a subscription begins, without a gap and without a duplicate: the client is put into the
audience at once, but *held*, so that live messages collect. Then the history after its position is
fetched, and both are released in order, without what they share. Where the messages wanted are
still at hand in this process (``recent.py``), all of that is one step.

How the list of who is there is told anew (``presence.py``): the events that come while the broker
is asked for it are noted, and told once more behind it. So whatever the list has of them already,
who keeps a set ends up with the right one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from time import monotonic
from typing import Any, NamedTuple

from .brokers.base import Broker, BrokerOptions, History, Message, Position, native_lock
from .brokers.later import Later
from .encoding import GAP, Encoding, gap_message, presence_message
from .exceptions import BrokerError
from .outlet import Batch, Outlet, Owner
from .presence import RollCall
from .recent import Recent
from .stats import ChannelCounters, Counters
from .writer import Clock, Writer

__all__ = ["ALL", "Fanout", "Observer", "Subscription"]

logger = logging.getLogger("flask_sockets2.channels")

ALL = object()
"""In place of a position: all that the history holds."""

_PENDING = 65536  # bytes of messages of one turn; a publisher writes them itself then
_FLOOD = 2**20  # the same in all; another thread waits until the hub has written some
_OVERHEAD = 64  # bytes that a message counts beside its data: empty ones are some work, too
_OPEN_TIMEOUT = 30.0  # seconds to wait for another's subscription to the same channel
_LINGER = 10.0  # seconds that a remote channel is kept after its last subscriber: they come back
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


class _Entry:
    """One outlet's subscription to one channel; the fan-out's lock guards it.

    :ivar identity: who has joined by it, and leaves with it.
    """

    __slots__ = ("channel", "encoding", "identity")

    def __init__(self, channel: _Channel, encoding: Encoding) -> None:
        self.channel = channel
        self.encoding = encoding
        self.identity: str | None = None


class _Held:
    """Live messages for an outlet whose history is on its way.

    :ivar begun: the position that they follow.
    :ivar after: once known, the position that the history has brought it to, which may be ahead of
        what this process has seen: in the same epoch, or in one that it has not noticed yet.
    :ivar over: the epoch that this process is in, where the history has told that it is over.
    """

    __slots__ = ("after", "begun", "messages", "over")

    def __init__(self, begun: Position) -> None:
        self.begun = begun
        self.messages: list[Message] = []
        self.after: Position | None = None
        self.over: str | None = None

    def bring_to(self, after: Position) -> None:
        """The history has brought it to a position."""
        self.after = after
        if after.epoch != self.begun.epoch:
            self.over = self.begun.epoch

    def lacks(self, message: Message) -> bool:
        """Whether a message, or a gap, is news to it."""
        position, after = message.position, self.after
        if after is None or (message.transient and message.event != GAP):
            return True
        if position.epoch == after.epoch:
            return position.offset > after.offset
        return position.epoch != self.over

    def release(self, history: Sequence[Message]) -> tuple[list[Message], list[Message]]:
        """Return the history, and what came meanwhile: each message once, in its place."""
        live = [message for message in self.messages if self.lacks(message)]
        past: list[Message] = []
        for message in history:
            # A transient message is in no history, but has its place in it. Who joins and leaves
            # comes after the list of those who are there.
            early = [m for m in live if _is_before(m, message.position)]
            if early:
                past += early
                live = [m for m in live if m not in early]
            past.append(message)
        return past, live

    def is_level(self, here: Position) -> bool:
        """Whether all that is delivered from now on is, once this process is somewhere."""
        after = self.after
        if after is None or here.epoch != after.epoch:
            return here.epoch != self.over
        return here.offset >= after.offset


class _Audience:
    """The subscribers of a channel that share a hub or selector thread."""

    __slots__ = ("channel", "groups", "held", "pending", "writer")

    def __init__(self, channel: _Channel, writer: Writer) -> None:
        self.channel = channel
        self.writer = writer
        self.groups: dict[Encoding, dict[Outlet, None]] = {}
        self.held: dict[Outlet, _Held] = {}
        self.pending: list[Message] = []

    def encodings(self) -> Iterator[Encoding]:
        """Return those of its subscribers."""
        yield from self.groups
        for outlet in self.held:
            yield outlet.entries[self.channel.name].encoding


class _Channel:
    """A channel that has or had subscribers in this process."""

    __slots__ = (
        "audiences",
        "closing",
        "counters",
        "error",
        "joined",
        "name",
        "opened",
        "position",
        "subscribers",
    )

    def __init__(self, name: str, counters: ChannelCounters) -> None:
        self.name = name
        self.counters = counters
        self.subscribers = 0
        self.audiences: dict[Any, _Audience] = {}  # by clock
        #: Of the newest message that was delivered here.
        self.position: Position | None = None
        #: Who joined and left since the broker is being asked who is there; None where it is not.
        self.joined: list[Message] | None = None
        #: Set once the broker delivers, or will not; None from then on.
        self.opened: threading.Event | None = threading.Event()
        self.error: BrokerError | None = None
        self.closing = False

    def tells_presence(self) -> bool:
        """Whether a subscriber is told who joins and leaves."""
        return any(
            encoding.presence
            for audience in self.audiences.values()
            for encoding in audience.encodings()
        )


class Observer:
    """Who wants to know of what should not happen; does nothing by itself."""

    def gap(self, channel: str) -> None:
        """Clients of a channel are told that messages were lost."""

    def dropped(self, owner: Owner, channel: str) -> None:
        """A slow client was not sent a message."""

    def too_slow(self, owner: Owner) -> None:
        """A client is closed, being too slow."""

    def reconnected(self) -> None:
        """The broker was out of reach and is back."""


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
        # Guards channels, audiences and what is pending; nothing waits and no socket is written
        # while it is held. A broker may hold its own lock while it delivers, so none of a broker's
        # methods but count() is called under it.
        self._lock = native_lock()
        self._channels: dict[str, _Channel] = {}
        self._writers: dict[Any, Writer] = {}
        self._lingering = Later(_LINGER)
        # Of channels that no client has: who takes them, who is told of what was missed, and
        # those that the broker delivers; the second lock is held while it is asked to.
        self._listeners: dict[str, Callable[[Message], None]] = {}
        self._missable: dict[str, Callable[[], None]] = {}
        self._heard: set[str] = set()
        self._listening = threading.Lock()
        self._not_listening: tuple[float, BrokerError | None] = (0.0, None)  # when, why
        #: Told what happens; see :class:`Observer`.
        self.observer = Observer()
        self.broker = make_broker(self)
        self._recent = Recent(self.broker, options, self._lock) if self.broker.waits else None
        self._roll_calls = [RollCall(delay, self._call_roll) for delay in _ROLL_CALLS]

    # -- the broker ------------------------------------------------------------------------

    def deliver(self, message: Message) -> None:
        """Take a message from the broker; see :class:`~flask_sockets2.brokers.base.Receiver`."""
        with self._lock:
            channel = self._channels.get(message.channel)
            if channel is None:
                listener = self._listeners.get(message.channel)
                if listener is not None:
                    listener(message)
                return
            if not message.transient:
                channel.position = message.position
                if self._recent is not None:
                    self._recent.add(message)
            elif channel.joined is not None and message.event:
                channel.joined.append(message)
            self._put(channel, message)

    def missed(self, channel: str, position: Position) -> None:
        """Tell all subscribers of a channel that messages were lost."""
        with self._lock:
            known = self._channels.get(channel)
            if known is None:
                told = self._missable.get(channel)
                if told is not None:
                    logger.warning("what was told on %r before %s is lost", channel, position)
                    told()
                return
            known.position = position
            if self._recent is not None:
                self._recent.begin(channel, position)
            self._put(known, gap_message(channel, position))
            known.counters.gaps += known.subscribers
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
            known = self._channels.get(channel)
            concerned = known is not None and known.tells_presence()
        if concerned:
            for roll_call in self._roll_calls:
                roll_call.ask(channel)

    def _call_roll(self, name: str) -> None:
        """Tell clients who is there; asks the broker.

        :raises BrokerError: when it cannot be reached.
        """
        with self._lock:
            channel = self._channels.get(name)
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
                        self._put(channel, presence_message(name, there, channel.position))
                        for message in joined:
                            self._put(channel, message)

    def reconnected(self) -> None:
        """Count that the broker was out of reach and is back."""
        self._counters.broker_reconnects += 1
        self.observer.reconnected()

    def _put(self, channel: _Channel, message: Message) -> None:
        for audience in channel.audiences.values():
            audience.pending.append(message)
            audience.writer.note(audience, len(message.data) + _OVERHEAD)

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
        if self.broker.waits and outlet.transport.clock.blocks:
            raise BrokerError(_UNPATCHED)
        channel = self._open(name)
        entry = _Entry(channel, encoding)
        simple = identity is None and not presence
        with self._lock:
            assert channel.position is not None
            twice = name in outlet.entries  # another greenlet was faster
            refused = twice or outlet.closed
            if not refused:
                outlet.entries[name] = entry
                audience = self._audience(channel, outlet.transport.clock)
                self._seal(audience)  # what is pending is for those before
                at_hand = self._at_hand(channel, since) if simple else None
                if at_hand is not None:
                    audience.groups.setdefault(encoding, {})[outlet] = None
                    self._replay(channel, audience, encoding, outlet, at_hand.messages)
                    return Subscription(name, at_hand.position, False)
                held = audience.held[outlet] = _Held(channel.position)
        if refused:
            self._uncount(channel)
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
        clock: Clock,
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
        if name in self._heard:
            return
        if self.broker.waits and clock.blocks:
            raise BrokerError(_UNPATCHED)
        begun = monotonic()
        with self._listening:
            failed, error = self._not_listening
            if error is not None and failed >= begun:  # while we waited: it is as much ours
                raise BrokerError(error.description) from error
            if name in self._heard:
                return
            self._listeners[name] = listener
            if missed is not None:
                self._missable[name] = missed
            try:
                self.broker.subscribe(name)
            except BrokerError as exc:
                self._not_listening = (monotonic(), exc)
                raise
            self._heard.add(name)

    def _open(self, name: str) -> _Channel:
        """Return a channel that the broker delivers, and count one more subscriber."""
        deadline = monotonic() + _OPEN_TIMEOUT
        while True:
            with self._lock:
                channel = self._channels.get(name)
                if channel is None:
                    channel = _Channel(name, self._counters.of_channel(name))
                    self._channels[name] = channel
                    break
                if channel.opened is None and not channel.closing:
                    channel.subscribers += 1
                    self.broker.count(name, channel.subscribers)
                    return channel
                opened = channel.opened
            # Another one opens it, or it is being closed just now.
            if opened is not None and not opened.wait(max(0.0, deadline - monotonic())):
                raise BrokerError(f"the broker did not subscribe to a channel in {_OPEN_TIMEOUT} s")
            if channel.error is not None:
                # One for each thread: raising it writes its traceback into it.
                raise BrokerError(channel.error.description) from channel.error
        return self._open_first(channel)

    def _open_first(self, channel: _Channel) -> _Channel:
        opened = channel.opened
        assert opened is not None
        try:
            position = self.broker.subscribe(channel.name)
        except BaseException as exc:
            if isinstance(exc, BrokerError):
                channel.error = exc
            else:  # killed, or a timeout of its handler's: those who wait try themselves
                self.broker.unsubscribe(channel.name)
            with self._lock:
                del self._channels[channel.name]
                if self._recent is not None:
                    self._recent.forget(channel.name)
            opened.set()
            raise
        with self._lock:
            here = channel.position  # not None where something has been delivered already
            if here is None or (here.epoch == position.epoch and here.offset < position.offset):
                channel.position = position
                if self._recent is not None:
                    self._recent.begin(channel.name, position)
            channel.subscribers = 1
            self.broker.count(channel.name, 1)
            channel.opened = None
        opened.set()
        return channel

    def _audience(self, channel: _Channel, clock: Any) -> _Audience:
        audience = channel.audiences.get(clock)
        if audience is None:
            writer = self._writers.get(clock)
            if writer is None:
                writer = self._writers[clock] = Writer(clock, self._lock, self._seal)
            audience = channel.audiences[clock] = _Audience(channel, writer)
        return audience

    def _at_hand(self, channel: _Channel, since: Any) -> History | None:
        """Return what follows a position, where that is known without asking the broker."""
        position = channel.position
        assert position is not None
        if since is None or since == position:
            return History((), position)
        if self._recent is None or since is ALL:
            return None
        return self._recent.since(channel.name, since)

    def _history(self, channel: _Channel, since: Any) -> History:
        """Return what follows a position; waits for the broker where it is not at hand."""
        with self._lock:
            at_hand = self._at_hand(channel, since)
        if at_hand is not None:
            return at_hand
        wanted = None if since is ALL else since
        if self._recent is None:
            return self.broker.history(channel.name, wanted)
        return self._recent.fetch(channel.name, wanted)

    def _replay(
        self,
        channel: _Channel,
        audience: _Audience,
        encoding: Encoding,
        outlet: Outlet,
        messages: Iterable[Message],
    ) -> None:
        """Send one client messages before all that is published from now on."""
        batch = Batch(channel, encoding, [outlet], list(messages))
        if batch.messages:
            channel.counters.replays += 1
            channel.counters.replayed += len(batch.messages)
            audience.writer.add(batch)

    def _begin(
        self,
        entry: _Entry,
        audience: _Audience,
        outlet: Outlet,
        held: _Held,
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
            self._seal(audience)
            if history is not None:
                held.bring_to(position)
                self._count_replay(channel, history)
            past, live = held.release(history.messages if history is not None else ())
            if gap:
                past.append(gap_message(channel.name, position))
            if there is not None:
                past.append(presence_message(channel.name, there, position))
            messages = past + live
            if messages:
                audience.writer.add(Batch(channel, entry.encoding, [outlet], messages))
            if held.is_level(channel.position):
                del audience.held[outlet]
                audience.groups.setdefault(entry.encoding, {})[outlet] = None
            else:
                held.messages.clear()
        if gap:
            self.observer.gap(channel.name)
        return Subscription(channel.name, position, gap)

    def _join(
        self, entry: _Entry, audience: _Audience, outlet: Outlet, held: _Held, identity: str
    ) -> None:
        self.broker.join(entry.channel.name, identity)
        with self._lock:
            there = audience.held.get(outlet) is held
            if there:
                entry.identity = identity  # whoever takes it out has it leave
        if not there:
            self.broker.leave(entry.channel.name, identity)

    @staticmethod
    def _count_replay(channel: _Channel, history: History) -> None:
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

    def _leave(self, outlet: Outlet, name: str, only: _Entry | None = None) -> bool:
        """Take an outlet out of a channel; :param only: where that is its subscription."""
        with self._lock:
            entry: _Entry | None = outlet.entries.get(name)
            if entry is None or (only is not None and entry is not only):
                return False
            del outlet.entries[name]
            channel, clock = entry.channel, outlet.transport.clock
            audience = channel.audiences[clock]
            audience.held.pop(outlet, None)
            group = audience.groups.get(entry.encoding)
            if group is not None:
                group.pop(outlet, None)
                if not group:
                    del audience.groups[entry.encoding]
            if not audience.groups and not audience.held:
                del channel.audiences[clock]
        if entry.identity is not None:
            _tell(self.broker.leave, channel.name, entry.identity)
        self._uncount(channel)
        return True

    def _uncount(self, channel: _Channel) -> None:
        """Count one subscriber less; the last one's channel is closed."""
        with self._lock:
            channel.subscribers -= 1
            _tell(self.broker.count, channel.name, channel.subscribers)
            idle = not channel.subscribers
        if idle and self.broker.waits:
            self._lingering.call(lambda: self._close(channel))
        elif idle:
            self._close(channel)

    def _close(self, channel: _Channel) -> None:
        with self._lock:
            if channel.subscribers or channel.closing:
                return
            channel.closing = True  # who subscribes now waits until that is done
            channel.opened = closed = threading.Event()
        _tell(self.broker.unsubscribe, channel.name)
        with self._lock:
            if self._channels.get(channel.name) is channel:
                del self._channels[channel.name]
                if self._recent is not None:
                    self._recent.forget(channel.name)
        closed.set()

    def too_slow(self, outlet: Outlet) -> None:
        """A client is closed, being too slow."""
        self.observer.too_slow(outlet.owner)

    def gap(self, outlet: Outlet, channel: str) -> None:
        """A client is to be told that messages were not sent."""
        self.observer.gap(channel)

    def dropped(self, outlet: Outlet, channel: str) -> None:
        """A message was not sent to a client."""
        self.observer.dropped(outlet.owner, channel)

    def subscribers(self, name: str) -> int:
        """Return how many subscribers a channel has in this process."""
        channel = self._channels.get(name)
        return 0 if channel is None else channel.subscribers

    def channels(self) -> dict[str, int]:
        """Return the channels with subscribers in this process, and how many they have."""
        with self._lock:
            return {c.name: c.subscribers for c in self._channels.values() if c.subscribers}

    def close(self) -> None:
        """Let go of the broker; nothing is delivered any more."""
        self._lingering.close()
        for roll_call in self._roll_calls:
            roll_call.close()
        if self._recent is not None:
            self._recent.close()
        self.broker.close()

    # -- writing ---------------------------------------------------------------------------

    def _seal(self, audience: _Audience) -> None:
        """Assign what is pending to those who subscribe now; under the lock."""
        messages = audience.pending
        if not messages:
            return
        audience.pending = []
        channel, writer = audience.channel, audience.writer
        for encoding, outlets in audience.groups.items():
            writer.batches.append(Batch(channel, encoding, list(outlets), messages))
        for outlet, held in list(audience.held.items()):
            if held.after is None:
                held.messages.extend(messages)
                continue
            encoding = outlet.entries[channel.name].encoding
            newer = list(filter(held.lacks, messages))
            if newer:
                writer.batches.append(Batch(channel, encoding, [outlet], newer))
            if channel.position is not None and held.is_level(channel.position):
                del audience.held[outlet]
                audience.groups.setdefault(encoding, {})[outlet] = None


def _is_before(message: Message, position: Position) -> bool:
    """Whether a transient message was published before the message of a position."""
    if not message.transient or message.event:
        return False
    return message.position.epoch == position.epoch and message.position.offset < position.offset


def _already(name: str) -> ValueError:
    return ValueError(f"already subscribed to {name!r}; unsubscribe() first")


def _tell(method: Callable[..., None], *args: Any) -> None:
    """Tell the broker that a client is gone; no error of a broker may keep one from leaving."""
    try:
        method(*args)
    except Exception:
        logger.exception("%s() of the broker raised", getattr(method, "__name__", method))
