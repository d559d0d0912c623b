"""Listening: one connection for pub/sub, however many channels; on a cluster one for each node.

Each connection has a thread (under a patched gevent, a greenlet) that alone reads from it, writes
to it and calls the receiver; who subscribes asks it through an inbox and waits for the answer, so
that no lock is held while anything waits. What becomes of a channel's feed there::

    asked       SUBSCRIBE was sent, or will be with the next connection
    confirmed   the server has said so; what it sends is held
    live        subscribe() has asked for a position; what follows that is delivered
    behind      the connection was lost: the history brings what was missed, and it is live again

A channel that cannot be read then is told of as missed, and goes on with what comes next; it must
not keep others waiting.

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
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
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
_HELD = 1000  # messages of one channel that wait for its position; the history has the rest

_SUBSCRIBE, _UNSUBSCRIBE, _START = "subscribe", "unsubscribe", "start"

_ANSWERED = threading.Event()  # in the place of one for each channel, which takes 1 KiB
_ANSWERED.set()

_BREATH = 1e-6  # seconds in which other threads or greenlets may run

_NOWHERE = Position("-", 0)  # of no log: whatever comes next has something missing before it


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


class Feed:
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
    :param histories: yields the histories of several channels, or why one cannot be read.
    """

    def __init__(
        self,
        servers: Servers,
        names: Names,
        receiver: Receiver | None,
        position: Callable[[str], Position],
        histories: Callable[
            [Sequence[tuple[str, Position | None]]], Iterator[History | BrokerError]
        ],
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
        self.feeds: dict[bytes, Feed] = {}
        self._readers: dict[str, Reader] = {}
        self._closed = False

    def subscribe(self, channel: str) -> Position:
        name = self._names.pubsub(channel)
        while True:
            with self._lock:
                feed = self.feeds.get(name)
                new = feed is None
                if feed is None:
                    feed = self.feeds[name] = Feed(channel, name)
            try:
                if new:
                    self._assign(feed)
                self._wait(feed)
                position = self._position(channel)
            except BaseException:  # a greenlet may be killed here
                if new:
                    self._remove(name, feed)
                raise
            with self._lock:
                if feed.gone:
                    continue  # another thread has unsubscribed, or its own attempt has failed
                since = feed.since
                if since is None:
                    feed.since = position
                    if feed.reader is not None:
                        feed.reader.ask(_START, feed)
                elif since.epoch == position.epoch and since.offset > position.offset:
                    return since
                return position

    def _wait(self, feed: Feed) -> None:
        """Wait for the server's answer to a SUBSCRIBE."""
        if not feed.answered.wait(self.times.answer):
            raise BrokerError(
                f"{self.servers.shown} did not confirm a subscription in {self.times.answer:g} s; "
                "see whether it is overloaded or the network is interrupted"
            )
        if feed.error is not None:
            raise BrokerError(feed.error.description)

    def unsubscribe(self, channel: str) -> None:
        name = self._names.pubsub(channel)
        feed = self.feeds.get(name)
        if feed is not None:
            self._remove(name, feed)

    def _remove(self, name: bytes, feed: Feed) -> None:
        with self._lock:
            if self.feeds.get(name) is feed:
                del self.feeds[name]
                if feed.reader is not None:
                    feed.reader.ask(_UNSUBSCRIBE, feed)
            feed.gone = True

    def _assign(self, feed: Feed, mover: Reader | None = None) -> None:
        """Have a feed read by the reader of its node.

        :param mover: the reader that had it.
        :raises BrokerError: when that one is out of reach, or cannot be started.
        """
        node = self.servers.node_of(feed.name)
        with self._lock:
            reader = self._readers.get(node) or self._start_reader(node)
            if reader.failure is not None and mover is None:
                raise BrokerError(reader.failure.description)
            feed.reader = reader
            if not feed.gone:
                reader.ask(_SUBSCRIBE, feed)

    def _start_reader(self, node: str) -> Reader:
        """Start a node's reader; others see it only once it runs. Called with the lock held."""
        if self._closed:
            raise BrokerError("cannot subscribe: the broker is closed")
        try:
            reader = Reader(self, node)
            reader.start()
        except (RuntimeError, OSError) as exc:
            raise BrokerError(
                f"cannot start to listen: {exc}; allow the process more threads and open files"
            ) from exc
        self._readers[node] = reader
        return reader

    def away(self) -> bool | None:
        """Return whether a connection that listens is lost; None where there is none to lose."""
        with self._lock:
            readers = list(self._readers.values())
        return any(reader.away for reader in readers) if readers else None

    # -- for readers -----------------------------------------------------------------------

    def begin(self, reader: Reader) -> list[Feed]:
        """Return a reader's feeds, all of which it is to ask for on a new connection."""
        with self._lock:
            reader.drop_questions()
            return [each for each in self.feeds.values() if each.reader is reader]

    def of(self, reader: Reader) -> list[Feed]:
        """Return a reader's feeds."""
        with self._lock:
            return [each for each in self.feeds.values() if each.reader is reader]

    def move(self, reader: Reader, feeds: Sequence[Feed]) -> None:
        """Give feeds to the readers of the nodes that have their channels now.

        :raises BrokerError: when the cluster cannot be reached; they stay with this one then.
        """
        self.servers.refresh()
        for feed in feeds:
            feed.confirmed = False
            feed.behind = True
            feed.held.clear()
            self._assign(feed, reader)
        if any(feed.reader is reader for feed in feeds):
            reader.pause(self.times.shortest_wait)  # the nodes do not agree yet

    def retire(self, reader: Reader) -> bool:
        """Drop a reader that has nothing to read; false where it has."""
        with self._lock:
            if any(each.reader is reader for each in self.feeds.values()):
                return False
            self._drop(reader)
            return True

    def drop(self, reader: Reader) -> None:
        """Forget a reader whose thread ends: who subscribes from now on starts another."""
        with self._lock:
            self._drop(reader)

    def _drop(self, reader: Reader) -> None:
        if self._readers.get(reader.node) is reader:
            del self._readers[reader.node]

    # -- the end ---------------------------------------------------------------------------

    def close(self) -> None:
        with self._lock:
            self._closed = True
            readers = list(self._readers.values())
            feeds = list(self.feeds.values())
            self._readers.clear()
            self.feeds.clear()
        for feed in feeds:
            feed.gone = True
            if not feed.answered.is_set():
                feed.error = BrokerError("cannot subscribe: the broker is closed")
                feed.answered.set()
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
        self._feeds = listener.feeds
        self._inbox: deque[tuple[str, Feed]] = deque()  # guarded by the listener's lock
        self._asked: deque[tuple[str, Feed]] = deque()  # not answered yet, in their order
        self._behind: list[Feed] = []  # confirmed, and to be brought what they missed
        self._returning: set[Feed] = set()  # behind since the connection was lost
        self._recovering = False
        self._connected = False  # at the present attempt
        self._well = False  # it has been heard at that, and all have caught up
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
        """Start the thread; where that cannot be, nothing is left of it.

        :raises RuntimeError: when the system allows no more threads.
        """
        # Not threading.Thread, whose books are wrong in a child that gevent has forked.
        try:
            _thread.start_new_thread(self._run, ())
        except BaseException:
            self._close_wakers()
            raise

    # -- called by others ------------------------------------------------------------------

    def ask(self, what: str, feed: Feed) -> None:
        """Ask for something; never waits. Called with the listener's lock held."""
        self._inbox.append((what, feed))
        self._wake()

    def drop_questions(self) -> None:
        """Forget what a new connection makes pointless. Called with the listener's lock held."""
        self._inbox = deque(each for each in self._inbox if each[0] == _START)

    def _wake(self) -> None:
        try:
            self._waker.send(b"!")
        except OSError:
            pass  # it is full, so that the thread wakes anyway, or closed

    def _close_wakers(self) -> None:
        self._waker.close()
        self._woken.close()

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
                self._well = False
                try:
                    self._connect()
                    self._serve(self._connection)
                except Exception as exc:  # whatever it was, delivery must go on
                    self._lost(exc)
                finally:
                    self._disconnect()
                if self._closed or (self.failure is not None and self._moved_away()):
                    break
                wait = times.shortest_wait if self._well else min(wait * 2, times.longest_wait)
                self.pause(wait * random.uniform(0.5, 1.0))
        finally:
            self._listener.drop(self)
            self._close_wakers()
            self._finished.set()

    @property
    def away(self) -> bool:
        """Whether its connection is lost, and has not come back with all that was missed."""
        return self._recovering or self.failure is not None

    def pause(self, seconds: float) -> None:
        """Wait, unless it is to end. Called in the thread."""
        # Not time.sleep, which gevent may patch where it leaves threads alone: it is no greenlet's.
        self._stop.wait(seconds)

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
        """Have all feeds wait for the next connection."""
        if self._closed:
            return
        error = exc if isinstance(exc, BrokerError) else self._listener.servers.error(exc)
        if not isinstance(exc, (errors.RedisError, OSError)):
            logger.exception("the listener failed and begins anew")
        elif self._connected:
            logger.warning(
                "lost the connection that listens: %s; reconnecting",
                error,
                extra={"event": "broker_away", "broker": self._listener.servers.shown},
            )
        if self._connected:
            self._recovering = True
        else:
            self.failure = error
        self._asked.clear()
        self._behind.clear()
        for feed in self._listener.of(self):
            feed.confirmed = False
            feed.behind = True
            feed.held.clear()
            if self.failure is not None and not feed.answered.is_set():
                feed.error = error
                feed.answered.set()
            elif feed.last is not None:
                self._returning.add(feed)

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
            feeds = self._listener.begin(self)
            self._returning.intersection_update(feeds)
            self._asked.extend((_SUBSCRIBE, each) for each in feeds)
            self._send(connection, self._asked)
            heard = monotonic()
            while not self._closed:
                self._answer_inbox(connection)
                count = self._read(connection)
                self._catch_up()
                if count:
                    heard = monotonic()
                    self._well = not self._recovering
                    self._waiting_since = heard if self._asked else None
                if count == _CHUNK:
                    self.pause(_BREATH)  # a flood must not keep others from running
                else:
                    selector.select(self._patience(connection, heard))
                    self._drain()

    def _send(self, connection: Any, questions: Iterable[tuple[str, Feed]]) -> None:
        sharded = "S" if self.node else ""
        commands = [
            (sharded + ("SUBSCRIBE" if what == _SUBSCRIBE else "UNSUBSCRIBE"), feed.name)
            for what, feed in questions
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
            what, feed = question
            if what == _START:
                self._go_live(feed)
                continue
            questions.append(question)
            if what == _UNSUBSCRIBE:
                self._returning.discard(feed)
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
        _, feed = self._asked.popleft()
        feed.confirmed = True
        feed.error = None
        feed.answered.set()
        feed.answered = _ANSWERED
        if feed.behind and feed.last is not None:
            self._behind.append(feed)

    def _ended(self, name: bytes) -> None:
        if self._asked:
            what, feed = self._asked[0]
            if what == _UNSUBSCRIBE and feed.name == name:
                self._asked.popleft()
                return
        # The slot has moved to another node.
        moved = self._feeds.get(name)
        if moved is not None and moved.reader is self:
            self._move([moved])

    def _refused(self, exc: errors.ResponseError) -> None:
        if not self._asked:
            return  # an answer to PING is as good as any other
        what, feed = self._asked.popleft()
        if what == _UNSUBSCRIBE or feed.gone:
            return
        if isinstance(exc, (errors.AskError, errors.TryAgainError, errors.ClusterError)):
            self._move([feed])
        else:
            feed.error = self._listener.servers.error(exc)
            if feed.answered.is_set():
                self._unreadable(feed, feed.error)
            feed.answered.set()

    def _move(self, feeds: Sequence[Feed]) -> None:
        self._returning.difference_update(feeds)
        self._listener.move(self, feeds)

    # -- messages --------------------------------------------------------------------------

    def _message(self, name: bytes, payload: bytes) -> None:
        feed = self._feeds.get(name)
        if feed is None or not feed.confirmed or feed.reader is not self:
            return
        try:
            message = parse(feed.channel, payload)
        except ValueError:
            logger.debug("ignored what another program published to a channel")
            return
        if feed.last is None and not self._go_live(feed):
            if len(feed.held) <= _HELD and not feed.behind:
                feed.held.append(message)
            return
        self._take(feed, message)

    def _go_live(self, feed: Feed) -> bool:
        """Deliver what is held, once it is known from which position on; false where it is not."""
        since = feed.since
        if since is None:
            return False
        if feed.last is not None:
            return True
        feed.last = since
        held, feed.held = feed.held, []
        if feed.behind:
            if feed.confirmed:
                self._behind.append(feed)
        elif len(held) > _HELD or any(each.position.epoch != since.epoch for each in held):
            self._fall_behind(feed)
        else:
            for message in held:
                self._take(feed, message)
        return True

    def _take(self, feed: Feed, message: Message) -> None:
        """Deliver a message, unless it was, or something is missing before it."""
        position = message.position
        last = feed.last
        assert last is not None
        if message.transient:
            self._deliver(feed, message)
        elif feed.behind:
            pass  # the history brings it
        elif position.epoch != last.epoch:
            # The log was begun anew, and this connection has seen all that came since.
            if position.offset != 1:
                self._missed(feed, Position(position.epoch, position.offset - 1))
            self._deliver(feed, message)
        elif position.offset == last.offset + 1:
            self._deliver(feed, message)
        elif position.offset > last.offset:
            self._fall_behind(feed)

    def _deliver(self, feed: Feed, message: Message) -> None:
        if not message.transient:
            feed.last = message.position
        if self._receiver is None or feed.gone:
            return
        try:
            self._receiver.deliver(message)
        except Exception:
            logger.exception("a receiver raised")

    def _missed(self, feed: Feed, position: Position) -> None:
        feed.last = position
        if self._receiver is None or feed.gone:
            return
        try:
            self._receiver.missed(feed.channel, position)
        except Exception:
            logger.exception("a receiver raised")
        self._resumed(feed)

    def _resumed(self, feed: Feed) -> None:
        if self._receiver is None or feed.gone:
            return
        try:
            self._receiver.resumed(feed.channel)
        except Exception:
            logger.exception("a receiver raised")

    # -- what was missed -------------------------------------------------------------------

    def _fall_behind(self, feed: Feed) -> None:
        feed.behind = True
        self._behind.append(feed)

    def _catch_up(self) -> None:
        """Bring confirmed feeds what they missed; live messages wait meanwhile."""
        if self._behind:
            waiting, self._behind = self._behind, []
            behind = [each for each in waiting if each.behind and each.reader is self]
            wanted = [(each.channel, each.last) for each in behind]
            for feed, found in zip(behind, self._listener.histories(wanted), strict=True):
                feed.behind = False
                if isinstance(found, BrokerError):
                    self._unreadable(feed, found)
                else:
                    self._bring(feed, found)
                    self._returning.discard(feed)
        if self._recovering and not self._returning and not self._asked:
            self._recovering = False
            shown = self._listener.servers.shown
            logger.info(
                "listening again to %s", shown, extra={"event": "broker_back", "broker": shown}
            )
            if self._receiver is not None:
                self._receiver.reconnected()

    def _bring(self, feed: Feed, history: History) -> None:
        """Deliver what was missed, or tell that it is lost."""
        for message in history.messages:
            self._deliver(feed, message)
        if history.complete:
            self._resumed(feed)
        else:
            self._missed(feed, history.position)

    def _unreadable(self, feed: Feed, error: BrokerError) -> None:
        """Tell that what was missed cannot be read, once until something is delivered again."""
        self._returning.discard(feed)
        last = feed.last
        if last is None or last is _NOWHERE:
            return
        logger.error("cannot read channel %.200r, so messages may be lost: %s", feed.channel, error)
        self._missed(feed, last)
        feed.last = _NOWHERE
