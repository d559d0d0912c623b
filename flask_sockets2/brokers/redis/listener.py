"""Listener: one pub/sub connection for all channels; on a cluster, one for each node.

Each connection has a reader (``reader.py``). Each subscribed channel has a feed (``feeds.py``),
which one of the readers serves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from time import monotonic

from ...concurrency.native_lock import native_lock
from ...exceptions import BrokerError
from ..base import History, Position, Receiver
from .client import RedisClient
from .feeds import Feed
from .reader import START, SUBSCRIBE, UNSUBSCRIBE, ListenerTimes, Reader
from .scripts import Names

__all__ = ["Listener"]


class Listener:
    """Delivers the messages of subscribed channels in this process.

    :param servers: client for the servers with the channels.
    :param keep: extends the lifetime of channels on the server and returns their positions. Its
        argument is names, with the seconds for which this process has listened to each.
    :param histories: yields each channel's history, or the error if the history cannot be read.
    """

    def __init__(
        self,
        servers: RedisClient,
        names: Names,
        receiver: Receiver | None,
        keep: Callable[[Sequence[tuple[str, float]]], list[Position]],
        histories: Callable[
            [Sequence[tuple[str, Position | None]]], Iterator[History | BrokerError]
        ],
        times: ListenerTimes,
    ) -> None:
        self.servers = servers
        self.receiver = receiver
        self.keep = keep
        self.histories = histories
        self.times = times
        self._names = names
        # Guards the attributes below and the order of requests to readers. Never held while
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
                    now = monotonic()
                    keep_at = self.times.keep_at(channel, now, now)
                    feed = self.feeds[name] = Feed(channel, name, now, keep_at, self.receiver)
            try:
                if new:
                    self._assign(feed)
                self._wait(feed)
                [position] = self.keep([(channel, 0.0)])
            except BaseException:  # a greenlet may be killed here
                if new:
                    self._remove(name, feed)
                raise
            with self._lock:
                if feed.gone:
                    continue  # another thread has unsubscribed, or has failed to subscribe
                since = feed.since
                if since is None:
                    feed.since = position
                    if feed.reader is not None:
                        feed.reader.ask(START, feed)
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
                    feed.reader.ask(UNSUBSCRIBE, feed)
            feed.gone = True

    def _assign(self, feed: Feed, mover: Reader | None = None) -> None:
        """Give a feed to the reader of its node.

        :param mover: reader that had the feed before.
        :raises BrokerError: if the node cannot be reached, or its reader cannot be started.
        """
        node = self.servers.node_of(feed.name)
        with self._lock:
            reader = self._readers.get(node) or self._start_reader(node)
            if reader.failure is not None and mover is None:
                raise BrokerError(reader.failure.description)
            feed.reader = reader
            if not feed.gone:
                reader.ask(SUBSCRIBE, feed)

    def _start_reader(self, node: str) -> Reader:
        """Start a node's reader and list the reader once running. Called with the lock held."""
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
        """Return whether a pub/sub connection is lost; None if there is no connection."""
        with self._lock:
            readers = list(self._readers.values())
        return any(reader.away for reader in readers) if readers else None

    # -- for readers -----------------------------------------------------------------------

    def begin(self, reader: Reader) -> list[Feed]:
        """Return a reader's feeds; the reader subscribes to all of them on a new connection."""
        with self._lock:
            reader.drop_questions()
            return [each for each in self.feeds.values() if each.reader is reader]

    def of(self, reader: Reader) -> list[Feed]:
        """Return a reader's feeds."""
        with self._lock:
            return [each for each in self.feeds.values() if each.reader is reader]

    def move(self, reader: Reader, feeds: Sequence[Feed]) -> None:
        """Give feeds to the readers of the nodes that have their channels now.

        :raises BrokerError: if the cluster cannot be reached; the feeds stay with this reader then.
        """
        self.servers.refresh()
        for feed in feeds:
            feed.interrupt()
            self._assign(feed, reader)
        if any(feed.reader is reader for feed in feeds):
            reader.pause(self.times.shortest_wait)  # the nodes do not agree yet

    def retire(self, reader: Reader) -> bool:
        """Drop a reader without feeds; return False if the reader still has feeds."""
        with self._lock:
            if any(each.reader is reader for each in self.feeds.values()):
                return False
            self._drop(reader)
            return True

    def drop(self, reader: Reader) -> None:
        """Forget a reader whose thread ends; the next subscribe() starts another reader."""
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
        """Leave everything to the parent, in the child of a fork."""
        for reader in self._readers.values():
            reader.forget()
