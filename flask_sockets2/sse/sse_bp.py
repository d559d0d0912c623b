"""SSE_BluePrint and PubSub: the interface of pyFlaskBootstrap4's ``sse_bp``, for migration.

Messages stay in one process, a reconnecting client cannot resume, and each stream occupies a
greenlet or thread. In new code use ``sse``, which has none of these limits.

Differences from the original, in which all listeners of a channel shared one queue:

- Every listener receives every message through a queue of its own. A full queue loses its oldest
  message, and the publisher never waits.
- ``listen`` continues for up to ``limit`` messages, and ``unsubscribe`` ends the iteration. As in
  the original, messages published without a listener wait for the next listener.
- ``subscribe`` of the blueprint and its route ``/sse/<channel>`` work, with heartbeats.
- ``withContext`` has an effect. ``dispatch`` has none, as in the original, nor have
  ``withScheduler`` and ``appWrap``. ``enableDebug`` does not configure logging.
- Data of several lines arrives complete. If a generator raises, an event ``error`` ends the stream.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from queue import Empty, Full, Queue
from typing import Any, ClassVar
from weakref import WeakSet

from flask import Blueprint, Flask, Response, abort, request

from ..application.event_stream import event
from ..settings import read
from .generator_stream import answer_with
from .settings import Settings

__all__ = ["PubSub", "SSE_BluePrint"]

logger = logging.getLogger("flask_sockets2.sse")

_END = object()
_HEARTBEAT = ":\n\n"


class _Listener(Iterator[Any]):
    """An iterator over the messages of a channel, subscribed as long as the program refers to it.

    :param heartbeat: seconds without a message until the iterator yields None.
    """

    def __init__(self, maxsize: int, limit: int, heartbeat: float | None) -> None:
        self.queue: Queue[Any] = Queue(maxsize)
        self._left = limit
        self._heartbeat = heartbeat

    def __next__(self) -> Any:
        if not self._left:
            raise StopIteration
        try:
            message = self.queue.get(timeout=self._heartbeat)
        except Empty:
            return None
        if message is _END:
            self._left = 0
            raise StopIteration
        self._left -= 1
        return message


def _put(queue: Queue[Any], message: Any) -> None:
    """Put a message into a queue; if the queue is full, drop the oldest message."""
    while True:
        try:
            queue.put_nowait(message)
            return
        except Full:
            try:
                queue.get_nowait()
            except Empty:
                pass


class PubSub:
    """A channel within this process.

    :param channel: name of the channel.
    :param maxsize: queue size of each listener in messages, 0 for no limit.
    :param debug: whether to log each message at DEBUG.
    :param dispatch: no effect.

    ::

        PubSub.publish("news", "hello")
        for message in PubSub.subscribe("news", limit=1):
            print(message)
    """

    pubSubByChannel: ClassVar[dict[str, PubSub]] = {}
    _lock = threading.Lock()  # guards pubSubByChannel; taken before any _own_lock

    def __init__(
        self, channel: str = "sse", maxsize: int = 15, debug: bool = False, dispatch: bool = False
    ) -> None:
        self.channel = channel
        self.maxsize = maxsize
        #: Messages that were published without a listener.
        self.queue: Queue[Any] = Queue(maxsize)
        self.debug = debug
        #: Number of messages that were published.
        self.receiveCount = 0
        self.dispatch = False
        self._kept = False  # requested by the program, not only by pages
        self._listeners: WeakSet[_Listener] = WeakSet()
        self._own_lock = threading.Lock()  # guards listeners and count

    @staticmethod
    def reinit() -> None:
        """Forget all channels."""
        PubSub.pubSubByChannel = {}

    @staticmethod
    def forChannel(channel: str) -> PubSub:
        """Return the channel with this name, created if necessary."""
        with PubSub._lock:
            pubsub = PubSub._at(channel)
            pubsub._kept = True
        return pubsub

    @staticmethod
    def _at(channel: str) -> PubSub:
        return PubSub.pubSubByChannel.setdefault(channel, PubSub(channel))

    @staticmethod
    def publish(channel: str, message: Any, debug: bool = False) -> PubSub:
        """Publish a message to all listeners of a channel, and return the channel."""
        pubsub = PubSub.forChannel(channel)
        pubsub.debug = debug
        pubsub.send(message)
        return pubsub

    @staticmethod
    def subscribe(channel: str, limit: int = -1, debug: bool = False) -> Iterator[Any]:
        """Listen to a channel from now on; see :meth:`listen`."""
        pubsub = PubSub.forChannel(channel)
        pubsub.debug = debug
        return pubsub.listen(limit)

    @classmethod
    def close(cls, channel: str) -> None:
        """End all listeners of a channel, and forget the channel."""
        with cls._lock:
            pubsub = cls.pubSubByChannel.pop(channel, None)
        if pubsub is not None:
            pubsub.unsubscribe()

    def send(self, message: Any) -> None:
        """Send a message to all listeners."""
        self.receive(object(), message)

    def receive(self, sender: Any, message: Any) -> None:
        """Deliver a message to all listeners, unless the sender is None."""
        if sender is None:
            return
        with self._own_lock:
            self.receiveCount += 1
            count, listeners = self.receiveCount, list(self._listeners)
            for queue in [listener.queue for listener in listeners] or [self.queue]:
                _put(queue, message)
        if self.debug:
            logger.debug("message %d of %.200r for %d", count, self.channel, len(listeners))

    def listen(self, limit: int = -1, *, heartbeat: float | None = None) -> Iterator[Any]:
        """Iterate over the messages that waited for a listener, and over all that follow.

        :param limit: number of messages, -1 for no limit.
        :param heartbeat: seconds without a message until the iterator yields None.
        """
        listener = _Listener(self.maxsize, limit, heartbeat)
        with self._own_lock:
            while not self.queue.empty():
                _put(listener.queue, self.queue.get_nowait())
            self._listeners.add(listener)
        return listener

    def _forget(self) -> None:
        """Forget a channel that only pages have requested, so that clients cannot fill the memory
        with channel names."""
        # Without waiting: the garbage collector may end a stream while the lock is held.
        if PubSub._lock.acquire(blocking=False):
            try:
                used = self._kept or self._listeners
                if not used and PubSub.pubSubByChannel.get(self.channel) is self:
                    del PubSub.pubSubByChannel[self.channel]
            finally:
                PubSub._lock.release()

    def unsubscribe(self) -> None:
        """End all listeners, after the messages in their queues."""
        with self._own_lock:
            listeners = list(self._listeners)
            self._listeners.clear()
            for listener in listeners:
                _put(listener.queue, _END)


class SSE_BluePrint:
    """Streams events from functions, generators and :class:`PubSub`.

    :param app: application, which receives a blueprint without routes and ``/sse/<channel>``.
    :param name: name of the blueprint.
    :param template_folder: template folder of the blueprint.
    :param withContext: whether streams keep the request's context; if so, they answer only requests
        of an EventSource.
    """

    def __init__(
        self,
        app: Flask,
        name: str,
        template_folder: str | None = None,
        debug: bool = False,
        withContext: bool = False,
        withScheduler: bool = False,
        appWrap: Any = None,
    ) -> None:
        self.name = name
        self.debug = debug
        self.withContext = withContext
        self.template_folder = "templates" if template_folder is None else template_folder
        self.blueprint = Blueprint(name, __name__, template_folder=self.template_folder)
        self.app = app
        app.register_blueprint(self.blueprint)
        app.add_url_rule("/sse/<channel>", "subscribe", self.subscribe)

    def streamSSE(self, ssegenerator: Iterable[str]) -> Response:
        """Return a response that streams events which are already formatted."""
        if self.withContext and request.headers.get("accept") != "text/event-stream":
            abort(404)
        return answer_with(self._encoded(ssegenerator), with_context=self.withContext)

    def _encoded(self, ssegenerator: Iterable[str]) -> Generator[bytes]:
        try:
            for text in ssegenerator:
                yield text.encode()
        except Exception:
            logger.exception("a stream of %.200r ends, as what makes it raised", self.name)
            yield b"event: error\n" + event(b"the stream has ended by an error")

    def streamGen(self, gen: Iterable[Any]) -> Response:
        """Return a response that streams the items of a generator as events."""
        return self.streamSSE(self.generateSSE(gen))

    def streamFunc(self, func: Callable[[], Any], limit: int = -1) -> Response:
        """Return a response that streams the results of a function, called repeatedly.

        :param limit: number of calls, -1 for no limit.
        """
        return self.streamGen(self.generate(func, limit))

    def generate(self, func: Callable[[], Any], limit: int = -1) -> Iterator[Any]:
        """Yield a function's results; ``limit`` is the number of calls, -1 for no limit."""
        count = 0
        while limit == -1 or count < limit:
            count += 1
            yield func()

    def generateSSE(self, gen: Iterable[Any]) -> Iterator[str]:
        """Yield an event for each item of a generator, and a heartbeat for None."""
        for result in gen:
            yield _HEARTBEAT if result is None else event(str(result).encode()).decode()

    def enableDebug(self, debug: bool) -> None:
        """Turn the logging of messages, at the level DEBUG, on or off."""
        self.debug = debug

    def publish(self, message: Any, channel: str = "sse", debug: bool = False) -> PubSub:
        """Publish a message to all listeners of a channel in this process."""
        return PubSub.publish(channel=channel, message=message, debug=debug or self.debug)

    def subscribe(self, channel: str, limit: int = -1, debug: bool = False) -> Response:
        """Return a response that streams the messages of a channel.

        :param limit: number of messages, -1 for no limit.
        """
        heartbeat = read(Settings, self.app.config).heartbeat
        return self.streamGen(self._heard(channel, limit, debug or self.debug, heartbeat))

    @staticmethod
    def _heard(channel: str, limit: int, debug: bool, heartbeat: float) -> Iterator[Any]:
        with PubSub._lock:
            pubsub = PubSub._at(channel)
            pubsub.debug = debug
            listener = pubsub.listen(limit, heartbeat=heartbeat)
        try:
            yield None  # servers send the head of a response with its first bytes
            yield from listener
        finally:
            del listener
            pubsub._forget()
