"""Listening: one connection for pub/sub, however many channels; on a cluster one for each node.

Each connection has a thread (under a patched gevent, a greenlet) that alone reads from it, writes
to it and calls the receiver; who subscribes asks it through an inbox and waits for the answer, so
that no lock is held while anything waits. What becomes of a subscription there::

    asked       SUBSCRIBE was sent, or will be with the next connection
    confirmed   the server has said so; what it sends is held
    live        subscribe() has asked for a position; what follows that is delivered
    behind      the connection was lost: the history brings what was missed, and it is live again

Messages are told apart by their offsets, so that each is delivered once, whether the history
brought it, the connection, or both.
"""

from __future__ import annotations

import _thread
import logging
import random
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, Protocol

from redis import exceptions as errors

from ..exceptions import BrokerError
from .base import History, Message, Position, Receiver, native_lock
from .scripts import Names, parse

__all__ = ["Listener", "ListenerTimes"]

logger = logging.getLogger("flask_sockets2.brokers")

_CHUNK = 64  # messages, after which others may run
_HELD = 1000  # messages of one subscription that wait for its position; the history has the rest

_SUBSCRIBE, _UNSUBSCRIBE, _START = "subscribe", "unsubscribe", "start"

_ANSWERED = threading.Event()  # in the place of one for each subscription, which takes 1 KiB
_ANSWERED.set()


@dataclass(frozen=True, slots=True)
class ListenerTimes:
    """Seconds.

    :ivar answer: within which the server answers a SUBSCRIBE or PING.
    :ivar ping: without any message, after which it is asked whether it is still there.
    :ivar shortest_wait: before the first attempt to reconnect, doubled for each one after it.
    :ivar longest_wait: between two attempts.
    """

    answer: float = 5.0
    ping: float = 5.0
    shortest_wait: float = 0.05
    longest_wait: float = 2.0


class Servers(Protocol):
    """What the listener needs of the client; all raise BrokerError."""

    shown: str

    @property
    def clustered(self) -> bool: ...

    def node_of(self, name: bytes) -> str: ...

    def refresh(self) -> None: ...

    def connection(self, node: str) -> Any:  # of redis-py, whose classes have no common type
        ...

    def error(self, exc: Exception) -> BrokerError: ...


class Subscription:
    """A channel that is subscribed to. Its reader's thread alone writes what has no other comment.

    :ivar name: of the channel in pub/sub.
    :ivar since: what was returned to the first who subscribed; guarded by the listener's lock.
    :ivar last: the newest position that was delivered, None until it is live.
    :ivar answered: set with the server's answer, which is `error` where it refused.
    :ivar gone: unsubscribed; set by anyone.
    """

    __slots__ = (
        "answered", "behind", "channel", "confirmed", "error", "gone", "held", "last", "name",
        "reader", "since",
    )  # fmt: skip

    def __init__(self, channel: str, name: bytes) -> None:
        self.channel = channel
        self.name = name
        self.since: Position | None = None
        self.last: Position | None = None
        self.held: list[Message] = []
        self.confirmed = False
        self.behind = False
        self.gone = False
        self.error: BrokerError | None = None
        self.answered = threading.Event()
        self.reader: Reader | None = None


class Listener:
    """Delivers the channels that are subscribed to, in this process.

    :param servers: where the channels are.
    :param position: returns the newest position of a channel.
    :param histories: returns the histories of several channels.
    """

    def __init__(
        self,
        servers: Servers,
        names: Names,
        receiver: Receiver | None,
        position: Callable[[str], Position],
        histories: Callable[[Sequence[tuple[str, Position | None]]], list[History]],
        times: ListenerTimes,
    ) -> None:
        self.servers = servers
        self.receiver = receiver
        self.histories = histories
        self.times = times
        self._names = names
        self._position = position
        # Guards what is below, and with it the order of what readers are asked. Never held while
        # anything waits.
        self._lock = native_lock()
        self.subscriptions: dict[bytes, Subscription] = {}
        self._readers: dict[str, Reader] = {}
        self._closed = False

    def subscribe(self, channel: str) -> Position:
        name = self._names.pubsub(channel)
        while True:
            with self._lock:
                subscription = self.subscriptions.get(name)
                new = subscription is None
                if subscription is None:
                    subscription = self.subscriptions[name] = Subscription(channel, name)
            try:
                if new:
                    self._assign(subscription)
                self._wait(subscription)
                position = self._position(channel)
            except BaseException:  # a greenlet may be killed here
                if new:
                    self._remove(name, subscription)
                raise
            with self._lock:
                if subscription.gone:
                    continue  # another thread has unsubscribed, or its own attempt has failed
                since = subscription.since
                if since is None:
                    subscription.since = position
                    if subscription.reader is not None:
                        subscription.reader.ask(_START, subscription)
                elif since.epoch == position.epoch and since.offset > position.offset:
                    return since
                return position

    def _wait(self, subscription: Subscription) -> None:
        """Wait for the server's answer to a SUBSCRIBE."""
        if not subscription.answered.wait(self.times.answer):
            raise BrokerError(
                f"{self.servers.shown} did not confirm a subscription in {self.times.answer:g} s; "
                "see whether it is overloaded or the network is interrupted"
            )
        if subscription.error is not None:
            raise BrokerError(subscription.error.description)

    def unsubscribe(self, channel: str) -> None:
        name = self._names.pubsub(channel)
        subscription = self.subscriptions.get(name)
        if subscription is not None:
            self._remove(name, subscription)

    def _remove(self, name: bytes, subscription: Subscription) -> None:
        with self._lock:
            if self.subscriptions.get(name) is subscription:
                del self.subscriptions[name]
                if subscription.reader is not None:
                    subscription.reader.ask(_UNSUBSCRIBE, subscription)
            subscription.gone = True

    def _assign(self, subscription: Subscription, mover: Reader | None = None) -> None:
        """Have a subscription read by the reader of its node.

        :param mover: the reader that had it.
        :raises BrokerError: when that one is out of reach.
        """
        node = self.servers.node_of(subscription.name)
        with self._lock:
            reader = self._readers.get(node)
            new = reader is None
            if reader is None:
                if self._closed:
                    raise BrokerError("cannot subscribe: the broker is closed")
                reader = self._readers[node] = Reader(self, node)
            if reader.failure is not None and mover is None:
                raise BrokerError(reader.failure.description)
            subscription.reader = reader
            if not subscription.gone:
                reader.ask(_SUBSCRIBE, subscription)
        if new:
            reader.start()

    # -- for readers -----------------------------------------------------------------------

    def begin(self, reader: Reader) -> list[Subscription]:
        """Return a reader's subscriptions, all of which it is to ask for on a new connection."""
        with self._lock:
            reader.drop_questions()
            return [each for each in self.subscriptions.values() if each.reader is reader]

    def of(self, reader: Reader) -> list[Subscription]:
        """Return a reader's subscriptions."""
        with self._lock:
            return [each for each in self.subscriptions.values() if each.reader is reader]

    def move(self, reader: Reader, subscriptions: Sequence[Subscription]) -> None:
        """Give subscriptions to the readers of the nodes that have their channels now.

        :raises BrokerError: when the cluster cannot be reached; they stay with this one then.
        """
        self.servers.refresh()
        for subscription in subscriptions:
            subscription.confirmed = False
            subscription.behind = True
            subscription.held.clear()
            self._assign(subscription, reader)
        if any(subscription.reader is reader for subscription in subscriptions):
            time.sleep(self.times.shortest_wait)  # the nodes do not agree yet

    def retire(self, reader: Reader) -> bool:
        """Drop a reader that has nothing to read; false where it has."""
        with self._lock:
            if any(each.reader is reader for each in self.subscriptions.values()):
                return False
            if self._readers.get(reader.node) is reader:
                del self._readers[reader.node]
            return True

    # -- the end ---------------------------------------------------------------------------

    def close(self) -> None:
        with self._lock:
            self._closed = True
            readers = list(self._readers.values())
            subscriptions = list(self.subscriptions.values())
            self._readers.clear()
            self.subscriptions.clear()
        for subscription in subscriptions:
            subscription.gone = True
            if not subscription.answered.is_set():
                subscription.error = BrokerError("cannot subscribe: the broker is closed")
                subscription.answered.set()
        for reader in readers:
            reader.close()

    def forget(self) -> None:
        """Leave everything to the parent, in a child of a fork."""
        for reader in self._readers.values():
            reader.forget()


class Reader:
    """One connection for pub/sub, and the thread that has it to itself.

    :param node: of a cluster that it is to, else ''.
    :ivar failure: of the last attempt to connect, None where it succeeded.
    """

    def __init__(self, listener: Listener, node: str) -> None:
        self.node = node
        self.failure: BrokerError | None = None
        self._listener = listener
        self._times = listener.times
        self._receiver = listener.receiver
        self._subscriptions = listener.subscriptions
        self._inbox: deque[tuple[str, Subscription]] = deque()  # guarded by the listener's lock
        self._asked: deque[tuple[str, Subscription]] = deque()  # not answered yet, in their order
        self._behind: list[Subscription] = []  # confirmed, and to be brought what they missed
        self._returning: set[Subscription] = set()  # behind since the connection was lost
        self._recovering = False
        self._connected = self._heard = False  # at the present attempt
        self._connection: Any = None  # of redis-py, whose classes have no common type
        self._waiting_since: float | None = None  # for an answer
        self._closed = False
        self._stop = threading.Event()
        self._waker, self._woken = socket.socketpair()
        self._waker.setblocking(False)
        self._woken.setblocking(False)
        self._finished = threading.Event()
        self._thread = 0  # its identity

    def start(self) -> None:
        # Not threading.Thread, whose books are wrong in a child that gevent has forked.
        _thread.start_new_thread(self._run, ())

    # -- called by others ------------------------------------------------------------------

    def ask(self, what: str, subscription: Subscription) -> None:
        """Ask for something; never waits. Called with the listener's lock held."""
        self._inbox.append((what, subscription))
        self._wake()

    def drop_questions(self) -> None:
        """Forget what a new connection makes pointless. Called with the listener's lock held."""
        self._inbox = deque(each for each in self._inbox if each[0] == _START)

    def _wake(self) -> None:
        try:
            self._waker.send(b"!")
        except OSError:
            pass  # it is full, so that the thread wakes anyway, or closed

    def close(self) -> None:
        self._closed = True
        self._stop.set()
        self._wake()
        if self._thread != _thread.get_ident():
            self._finished.wait(self._times.answer)

    def forget(self) -> None:
        """End, in a child of a fork, without a word to the server, whose connection goes on."""
        self._closed = True
        connection = self._connection
        if connection is not None:
            connection.disconnect()

    # -- the thread ------------------------------------------------------------------------

    def _run(self) -> None:
        self._thread = _thread.get_ident()
        times = self._times
        wait = times.shortest_wait
        try:
            while not self._closed:
                self._heard = False
                try:
                    self._connect()
                    self._serve(self._connection)
                except Exception as exc:  # whatever it was, delivery must go on
                    self._lost(exc)
                finally:
                    self._disconnect()
                if self._closed or (self.failure is not None and self._moved_away()):
                    break
                wait = times.shortest_wait if self._heard else min(wait * 2, times.longest_wait)
                self._stop.wait(wait * random.uniform(0.5, 1.0))
        finally:
            self._waker.close()
            self._woken.close()
            self._finished.set()

    def _connect(self) -> None:
        self._connected = False
        self._connection = self._listener.servers.connection(self.node)
        self._connection.connect()
        self._connected = True
        self.failure = None

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()

    def _lost(self, exc: Exception) -> None:
        """Have all subscriptions wait for the next connection."""
        if self._closed:
            return
        error = exc if isinstance(exc, BrokerError) else self._listener.servers.error(exc)
        if not isinstance(exc, (errors.RedisError, OSError)):
            logger.exception("the listener failed and begins anew")
        elif self._connected:
            logger.warning("lost the connection that listens: %s; reconnecting", error)
        if self._connected:
            self._recovering = True
        else:
            self.failure = error
        self._asked.clear()
        self._behind.clear()
        for subscription in self._listener.of(self):
            subscription.confirmed = False
            subscription.behind = True
            subscription.held.clear()
            if self.failure is not None and not subscription.answered.is_set():
                subscription.error = error
                subscription.answered.set()
            elif subscription.last is not None:
                self._returning.add(subscription)

    def _moved_away(self) -> bool:
        """Give everything to other nodes of a cluster, where this one is out of reach."""
        listener = self._listener
        if not self.node:
            return False
        try:
            listener.move(self, listener.of(self))
        except BrokerError:
            return False
        return listener.retire(self)

    def _serve(self, connection: Any) -> None:
        """Read from a connection, and write what is asked for, until it is lost."""
        self._waiting_since = None
        with selectors.DefaultSelector() as selector:
            # redis-py has no other way to wait for a connection and something else.
            selector.register(connection._sock, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            subscriptions = self._listener.begin(self)
            self._returning.intersection_update(subscriptions)
            self._asked.extend((_SUBSCRIBE, each) for each in subscriptions)
            self._send(connection, self._asked)
            heard = monotonic()
            while not self._closed:
                self._answer_inbox(connection)
                count = self._read(connection)
                self._catch_up()
                if count:
                    heard = monotonic()
                    self._heard = True
                    self._waiting_since = heard if self._asked else None
                if count == _CHUNK:
                    time.sleep(0)  # a flood must not keep others from running; see later.py
                else:
                    selector.select(self._patience(connection, heard))
                    self._drain()

    def _send(self, connection: Any, questions: Iterable[tuple[str, Subscription]]) -> None:
        sharded = "S" if self.node else ""
        commands = [
            (sharded + ("SUBSCRIBE" if what == _SUBSCRIBE else "UNSUBSCRIBE"), subscription.name)
            for what, subscription in questions
        ]
        if commands:
            # One command for each, so that each has an answer of its own.
            connection.send_packed_command(connection.pack_commands(commands), check_health=False)
            if self._waiting_since is None:  # else it owes older answers already
                self._waiting_since = monotonic()

    def _answer_inbox(self, connection: Any) -> None:
        questions = []
        inbox = self._inbox
        while inbox:
            question = inbox.popleft()
            what, subscription = question
            if what == _START:
                self._go_live(subscription)
                continue
            questions.append(question)
            if what == _UNSUBSCRIBE:
                self._returning.discard(subscription)
        self._asked.extend(questions)
        self._send(connection, questions)

    def _patience(self, connection: Any, heard: float) -> float:
        """Return for how many seconds to wait for the server, and ask whether it is still there.

        A server that is stopped, and a network that swallows everything, end here.
        """
        now = monotonic()
        times = self._times
        if self._waiting_since is not None:
            left = self._waiting_since + times.answer - now
            if left < 0 and not connection.can_read(0):
                raise errors.TimeoutError("no answer from a connection that listens")
            return max(left, 0)
        left = heard + times.ping - now
        if left > 0:
            return left
        connection.send_command("PING", check_health=False)
        self._waiting_since = now
        return times.answer

    def _drain(self) -> None:
        try:
            while self._woken.recv(4096):
                pass
        except BlockingIOError:
            pass

    def _read(self, connection: Any) -> int:
        """Read what is there, but no more than others can wait for; return how many messages."""
        count = 0
        while count < _CHUNK and connection.can_read(0):
            count += 1
            try:
                reply = connection.read_response()
            except errors.ResponseError as exc:
                self._refused(exc)
                continue
            if not isinstance(reply, list):
                continue  # PONG
            what = reply[0]
            if what in (b"message", b"smessage"):
                self._message(reply[1], reply[2])
            elif what in (b"subscribe", b"ssubscribe"):
                self._confirmed()
            elif what in (b"unsubscribe", b"sunsubscribe"):
                self._ended(reply[1])
        return count

    # -- answers ---------------------------------------------------------------------------

    def _confirmed(self) -> None:
        _, subscription = self._asked.popleft()
        subscription.confirmed = True
        subscription.answered.set()
        subscription.answered = _ANSWERED
        if subscription.behind and subscription.last is not None:
            self._behind.append(subscription)

    def _ended(self, name: bytes) -> None:
        if self._asked:
            what, subscription = self._asked[0]
            if what == _UNSUBSCRIBE and subscription.name == name:
                self._asked.popleft()
                return
        # The slot has moved to another node.
        moved = self._subscriptions.get(name)
        if moved is not None and moved.reader is self:
            self._move([moved])

    def _refused(self, exc: errors.ResponseError) -> None:
        if not self._asked:
            return  # an answer to PING is as good as any other
        what, subscription = self._asked.popleft()
        if what == _UNSUBSCRIBE or subscription.gone:
            return
        if isinstance(exc, (errors.AskError, errors.TryAgainError, errors.ClusterError)):
            self._move([subscription])
        elif subscription.answered.is_set():
            raise exc
        else:
            subscription.error = self._listener.servers.error(exc)
            subscription.answered.set()

    def _move(self, subscriptions: Sequence[Subscription]) -> None:
        self._returning.difference_update(subscriptions)
        self._listener.move(self, subscriptions)

    # -- messages --------------------------------------------------------------------------

    def _message(self, name: bytes, payload: bytes) -> None:
        subscription = self._subscriptions.get(name)
        if subscription is None or not subscription.confirmed or subscription.reader is not self:
            return
        try:
            message = parse(subscription.channel, payload)
        except ValueError:
            logger.debug("ignored what another program published to a channel")
            return
        if subscription.last is None and not self._go_live(subscription):
            if len(subscription.held) <= _HELD and not subscription.behind:
                subscription.held.append(message)
            return
        self._take(subscription, message)

    def _go_live(self, subscription: Subscription) -> bool:
        """Deliver what is held, once it is known from which position on; false where it is not."""
        since = subscription.since
        if since is None:
            return False
        if subscription.last is not None:
            return True
        subscription.last = since
        held, subscription.held = subscription.held, []
        if subscription.behind:
            if subscription.confirmed:
                self._behind.append(subscription)
        elif len(held) > _HELD or any(each.position.epoch != since.epoch for each in held):
            self._fall_behind(subscription)
        else:
            for message in held:
                self._take(subscription, message)
        return True

    def _take(self, subscription: Subscription, message: Message) -> None:
        """Deliver a message, unless it was, or something is missing before it."""
        position = message.position
        last = subscription.last
        assert last is not None
        if message.transient:
            self._deliver(subscription, message)
        elif subscription.behind:
            pass  # the history brings it
        elif position.epoch != last.epoch:
            # The log was begun anew, and this connection has seen all that came since.
            if position.offset != 1:
                self._missed(subscription, Position(position.epoch, position.offset - 1))
            self._deliver(subscription, message)
        elif position.offset == last.offset + 1:
            self._deliver(subscription, message)
        elif position.offset > last.offset:
            self._fall_behind(subscription)

    def _deliver(self, subscription: Subscription, message: Message) -> None:
        if not message.transient:
            subscription.last = message.position
        if self._receiver is None or subscription.gone:
            return
        try:
            self._receiver.deliver(message)
        except Exception:
            logger.exception("a receiver raised")

    def _missed(self, subscription: Subscription, position: Position) -> None:
        subscription.last = position
        if self._receiver is None or subscription.gone:
            return
        try:
            self._receiver.missed(subscription.channel, position)
        except Exception:
            logger.exception("a receiver raised")

    # -- what was missed -------------------------------------------------------------------

    def _fall_behind(self, subscription: Subscription) -> None:
        subscription.behind = True
        self._behind.append(subscription)

    def _catch_up(self) -> None:
        """Bring confirmed subscriptions what they missed; live messages wait meanwhile."""
        if self._behind:
            waiting, self._behind = self._behind, []
            behind = [each for each in waiting if each.behind and each.reader is self]
            wanted = [(each.channel, each.last) for each in behind]
            for subscription, history in zip(behind, self._listener.histories(wanted), strict=True):
                subscription.behind = False
                for message in history.messages:
                    self._deliver(subscription, message)
                if not history.complete:
                    self._missed(subscription, history.position)
                self._returning.discard(subscription)
        if self._recovering and not self._returning and not self._asked:
            self._recovering = False
            logger.info("listening again to %s", self._listener.servers.shown)
            if self._receiver is not None:
                self._receiver.reconnected()
