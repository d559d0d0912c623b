"""Reader: one pub/sub connection, and the thread that alone uses the connection.

The thread is a greenlet if gevent has patched threads. Only this thread reads from the connection,
writes to it and calls the receiver. A subscriber in another thread puts a request into the inbox
and waits for the answer. So no lock is held while anything waits.
"""

from __future__ import annotations

import _thread
import logging
import selectors
import socket
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import SystemRandom
from time import monotonic
from typing import TYPE_CHECKING, Any

from redis import exceptions as errors

from ...exceptions import BrokerError
from ..base import silent_ttl
from .errors import GARBLED
from .feeds import Feed
from .scripts import parse

if TYPE_CHECKING:
    from .listener import Listener

__all__ = ["START", "SUBSCRIBE", "UNSUBSCRIBE", "ListenerTimes", "Reader"]

logger = logging.getLogger("flask_sockets2.brokers")

_random = SystemRandom()  # not the program's generator, which may have been seeded

_CHUNK = 64  # messages, after which other threads or greenlets may run
_LOOK = 10.0  # seconds between two searches for channels whose lifetime must be extended
_KEPT_AT_ONCE = 100  # channels whose lifetime is extended between two reads of messages
_BREATH = 1e-6  # seconds in which other threads or greenlets may run

SUBSCRIBE, UNSUBSCRIBE, START = "subscribe", "unsubscribe", "start"
"""Requests to a reader; START: a position is known, deliver the messages after that position."""


@dataclass(frozen=True, slots=True)
class ListenerTimes:
    """Timeouts and intervals of a listener, in seconds.

    :ivar answer: timeout for the server's answer to a SUBSCRIBE or PING.
    :ivar ping: idle time after which the reader sends a PING.
    :ivar shortest_wait: delay before the first attempt to reconnect; doubles with each attempt.
    :ivar longest_wait: longest delay between two attempts.
    :ivar keep: longest interval between two requests to keep a silent channel's epoch. The server
        keeps an epoch for a day, or for less if this process has not listened for long.
    """

    answer: float = 5.0
    ping: float = 5.0
    shortest_wait: float = 0.05
    longest_wait: float = 2.0
    keep: float = 3600.0

    def keep_at(self, channel: str, begun: float, now: float) -> float:
        """Return when to ask the server again to keep a channel, after a request at ``now``.

        :param begun: time at which this process began to listen to the channel, by the same clock.
        """
        return now + min(silent_ttl(channel, now - begun) / 2, self.keep)


class Reader:
    """Reads one pub/sub connection in a thread of its own, and reconnects if the connection fails.

    :param node: cluster node to connect to, '' for a single server.
    :ivar failure: error of the last attempt to connect, None if the attempt succeeded.
    """

    def __init__(self, listener: Listener, node: str) -> None:
        self.node = node
        self.failure: BrokerError | None = None
        self._listener = listener
        self._times = listener.times
        self._feeds = listener.feeds
        self._inbox: deque[tuple[str, Feed]] = deque()  # guarded by the listener's lock
        self._asked: deque[tuple[str, Feed]] = deque()  # unanswered requests, in their order
        self._behind: list[Feed] = []  # confirmed feeds that still lack messages
        self._returning: set[Feed] = set()  # feeds that lack messages since the connection was lost
        self._recovering = False
        self._connected = False  # in the present attempt
        self._well = False  # the server has answered in this attempt, and all feeds have caught up
        self._connection: Any = None  # of redis-py, whose classes have no common type
        self._waiting_since: float | None = None  # for an answer of the server
        self._looked = monotonic()  # last search for channels whose lifetime must be extended
        self._to_keep: list[Feed] = []  # feeds found by that search, not handled yet
        self._closed = False
        self._stop = threading.Event()
        self._waker, self._woken = socket.socketpair()
        self._waker.setblocking(False)
        self._woken.setblocking(False)
        self._finished = threading.Event()
        self._thread = 0  # identity of the thread

    def start(self) -> None:
        """Start the thread; if that fails, all resources are freed.

        :raises RuntimeError: if the system allows no more threads.
        """
        # Not threading.Thread, whose bookkeeping is wrong in a child that gevent has forked.
        try:
            _thread.start_new_thread(self._run, ())
        except BaseException:
            self._close_wakers()
            raise

    # -- called by other threads -----------------------------------------------------------

    def ask(self, what: str, feed: Feed) -> None:
        """Put a request into the inbox; never waits. Called with the listener's lock held."""
        self._inbox.append((what, feed))
        self._wake()

    def drop_questions(self) -> None:
        """Drop requests that a new connection makes obsolete. Called with the listener's lock."""
        self._inbox = deque(each for each in self._inbox if each[0] == START)

    def _wake(self) -> None:
        try:
            self._waker.send(b"!")
        except OSError:
            pass  # the socket is full, so the thread wakes anyway, or closed

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
        """End in the child of a fork, silently: the parent still uses the connection."""
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
                except Exception as exc:  # delivery must go on after any error
                    self._lost(exc)
                finally:
                    self._disconnect()
                if self._closed or (self.failure is not None and self._moved_away()):
                    break
                wait = times.shortest_wait if self._well else min(wait * 2, times.longest_wait)
                self.pause(wait * _random.uniform(0.5, 1.0))
        finally:
            self._listener.drop(self)
            self._close_wakers()
            self._finished.set()

    @property
    def away(self) -> bool:
        """Whether the connection is lost, or feeds still lack messages after a reconnect."""
        return self._recovering or self.failure is not None

    def pause(self, seconds: float) -> None:
        """Wait, unless the reader is to end. Called in the thread."""
        # Not time.sleep: gevent may patch sleep but not threads; the reader is no greenlet then.
        self._stop.wait(seconds)

    def _connect(self) -> None:
        self._connected = False
        self._connection = self._listener.servers.connection(self.node)
        try:
            self._connection.connect()
        except GARBLED as exc:
            raise errors.InvalidResponse from exc
        self._connected = True
        self.failure = None

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()

    def _lost(self, exc: Exception) -> None:
        """Report a lost connection and let all feeds wait for the next one."""
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
            feed.interrupt()
            if self.failure is not None and not feed.answered.is_set():
                feed.error = self.failure
                feed.answered.set()
            elif feed.last is not None:
                self._returning.add(feed)

    def _moved_away(self) -> bool:
        """Move all feeds to other cluster nodes, if this node cannot be reached."""
        listener = self._listener
        if not self.node:
            return False
        try:
            listener.move(self, listener.of(self))
        except BrokerError:
            return False
        return listener.retire(self)

    def _serve(self, connection: Any) -> None:
        """Read from a connection, and send requests, until the connection is lost."""
        self._waiting_since = None
        with selectors.DefaultSelector() as selector:
            # redis-py has no public way to wait for a connection and another socket.
            selector.register(connection._sock, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            feeds = self._listener.begin(self)
            self._returning.intersection_update(feeds)
            self._asked.extend((SUBSCRIBE, each) for each in feeds)
            self._send(connection, self._asked)
            heard = monotonic()
            while not self._closed:
                self._answer_inbox(connection)
                count = self._read(connection)
                self._catch_up()
                self._keep()
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
            (sharded + ("SUBSCRIBE" if what == SUBSCRIBE else "UNSUBSCRIBE"), feed.name)
            for what, feed in questions
        ]
        if commands:
            # One command per feed, so that each feed has its own answer.
            connection.send_packed_command(connection.pack_commands(commands), check_health=False)
            if self._waiting_since is None:  # else older answers are due already
                self._waiting_since = monotonic()

    def _answer_inbox(self, connection: Any) -> None:
        questions = []
        inbox = self._inbox
        while inbox:
            question = inbox.popleft()
            what, feed = question
            if what == START:
                if feed.go_live():
                    self._behind.append(feed)
                continue
            questions.append(question)
            if what == UNSUBSCRIBE:
                self._returning.discard(feed)
        self._asked.extend(questions)
        self._send(connection, questions)

    def _patience(self, connection: Any, heard: float) -> float:
        """Return how many seconds to wait for the server; send a PING after silence.

        If a server has stopped or a network drops all packets, a timeout error ends the wait.
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
        """Read the replies that have arrived, up to a limit; return their number."""
        count = 0
        while count < _CHUNK and connection.can_read(0):
            count += 1
            try:
                reply = connection.read_response()
            except errors.ResponseError as exc:
                self._refused(exc)
                continue
            except GARBLED as exc:
                raise errors.InvalidResponse from exc
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
        if feed.confirm():
            self._behind.append(feed)

    def _ended(self, name: bytes) -> None:
        if self._asked:
            what, feed = self._asked[0]
            if what == UNSUBSCRIBE and feed.name == name:
                self._asked.popleft()
                return
        # The slot has moved to another node.
        moved = self._feeds.get(name)
        if moved is not None and moved.reader is self:
            self._move([moved])

    def _refused(self, exc: errors.ResponseError) -> None:
        if not self._asked:
            return  # an error in answer to PING also shows that the server is alive
        what, feed = self._asked.popleft()
        if what == UNSUBSCRIBE or feed.gone:
            return
        if isinstance(exc, (errors.AskError, errors.TryAgainError, errors.ClusterError)):
            self._move([feed])
        else:
            feed.error = self._listener.servers.error(exc)
            if feed.answered.is_set():
                self._returning.discard(feed)
                feed.unreadable(feed.error)
            feed.answered.set()

    def _move(self, feeds: Sequence[Feed]) -> None:
        self._returning.difference_update(feeds)
        self._listener.move(self, feeds)

    def _message(self, name: bytes, payload: bytes) -> None:
        feed = self._feeds.get(name)
        if feed is None or not feed.confirmed or feed.reader is not self:
            return
        try:
            message = parse(feed.channel, payload)
        except ValueError:
            logger.debug("ignored what another program published to a channel")
            return
        if feed.receive(message):
            self._behind.append(feed)

    def _catch_up(self) -> None:
        """Deliver missed messages to confirmed feeds; live messages wait meanwhile."""
        waiting, self._behind = self._behind, []
        behind = [each for each in waiting if each.behind and each.reader is self]
        if behind:
            wanted = [(each.channel, each.last) for each in behind]
            for feed, found in zip(behind, self._listener.histories(wanted), strict=True):
                feed.bring(found)
                self._returning.discard(feed)
        if self._recovering and not self._returning and not self._asked:
            self._recovering = False
            shown = self._listener.servers.shown
            logger.info(
                "listening again to %s", shown, extra={"event": "broker_back", "broker": shown}
            )
            if self._listener.receiver is not None:
                self._listener.receiver.reconnected()

    def _keep(self) -> None:
        """Ask the server to keep the epochs of channels without new messages."""
        now = monotonic()
        times = self._times
        if not self._to_keep and now - self._looked >= min(_LOOK, times.keep):
            self._looked = now
            self._to_keep = [each for each in self._listener.of(self) if each.keep_at <= now]
        if not self._to_keep:
            return
        feeds = [feed for feed in self._to_keep[-_KEPT_AT_ONCE:] if not feed.gone]
        del self._to_keep[-_KEPT_AT_ONCE:]
        try:
            self._listener.keep([(feed.channel, now - feed.begun) for feed in feeds])
        except BrokerError as exc:
            logger.debug("cannot have channels kept, trying again later: %s", exc)
            return
        for feed in feeds:
            feed.keep_at = times.keep_at(feed.channel, feed.begun, now)
