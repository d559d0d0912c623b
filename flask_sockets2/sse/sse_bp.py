"""SSE_BluePrint and PubSub, by the names and in the ways of pyFlaskBootstrap4's ``sse_bp``.

They stay in one process, keep nothing to go on from, and each stream has a greenlet or thread of
its own. For anything new there is ``sse``, which has none of these limits.

Differences from the original, whose queue was one for all listeners of a channel:

- Every listener gets every message. Each has a queue of its own; one that is full loses its oldest
  message, and nobody who publishes waits.
- ``listen`` goes on, up to ``limit`` messages, and ``unsubscribe`` ends it. What is published while
  nobody listens waits for the next who does, as it did.
- ``subscribe`` of the blueprint and its route ``/sse/<channel>`` work, with heartbeats.
- ``withContext`` counts. ``dispatch`` does not, as in the original, nor do ``withScheduler`` and
  ``appWrap``. ``enableDebug`` leaves the configuration of logging to the application.
- Data of several lines arrives whole. A generator that raises ends its stream by an event
  ``error``.
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
    """One who listens; listens no more once it is forgotten.

    :param heartbeat: seconds after which it brings None, where nothing has come.
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
    """Put a message into a queue, if need be in place of the oldest."""
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
    """A channel of this process.

    :param channel: its name.
    :param maxsize: messages that a listener may be behind, 0 for any number.
    :param debug: log that messages come.
    :param dispatch: of no effect.

    ::

        PubSub.publish("news", "hello")
        for message in PubSub.subscribe("news", limit=1):
            print(message)
    """

    pubSubByChannel: ClassVar[dict[str, PubSub]] = {}
    _lock = threading.Lock()  # guards it; taken before the lock of one of them

    def __init__(
        self, channel: str = "sse", maxsize: int = 15, debug: bool = False, dispatch: bool = False
    ) -> None:
        self.channel = channel
        self.maxsize = maxsize
        #: What was published while nobody listened.
        self.queue: Queue[Any] = Queue(maxsize)
        self.debug = debug
        #: Messages that were published.
        self.receiveCount = 0
        self.dispatch = False
        self._kept = False  # the program has asked for it; else a page has
        self._listeners: WeakSet[_Listener] = WeakSet()
        self._own_lock = threading.Lock()  # guards listeners and count

    @staticmethod
    def reinit() -> None:
        """Forget all channels."""
        PubSub.pubSubByChannel = {}

    @staticmethod
    def forChannel(channel: str) -> PubSub:
        """Return the one of a channel, made where there is none."""
        with PubSub._lock:
            pubsub = PubSub._at(channel)
            pubsub._kept = True
        return pubsub

    @staticmethod
    def _at(channel: str) -> PubSub:
        return PubSub.pubSubByChannel.setdefault(channel, PubSub(channel))

    @staticmethod
    def publish(channel: str, message: Any, debug: bool = False) -> PubSub:
        """Publish a message to all who listen to a channel, and return that."""
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
        """End all who listen to a channel, and forget it."""
        with cls._lock:
            pubsub = cls.pubSubByChannel.pop(channel, None)
        if pubsub is not None:
            pubsub.unsubscribe()

    def send(self, message: Any) -> None:
        """Send a message to all who listen."""
        self.receive(object(), message)

    def receive(self, sender: Any, message: Any) -> None:
        """Take a message; None as the sender is nobody's."""
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
        """Listen from now on, and to what was published while nobody did.

        :param limit: messages after which it ends, -1 for any number.
        :param heartbeat: seconds after which None is brought, where nothing has come.
        """
        listener = _Listener(self.maxsize, limit, heartbeat)
        with self._own_lock:
            while not self.queue.empty():
                _put(listener.queue, self.queue.get_nowait())
            self._listeners.add(listener)
        return listener

    def _forget(self) -> None:
        """Forget a channel that pages alone have asked for: whoever can name channels would fill
        the memory with them."""
        # Without waiting: the garbage collector may end a stream where the lock is held.
        if PubSub._lock.acquire(blocking=False):
            try:
                used = self._kept or self._listeners
                if not used and PubSub.pubSubByChannel.get(self.channel) is self:
                    del PubSub.pubSubByChannel[self.channel]
            finally:
                PubSub._lock.release()

    def unsubscribe(self) -> None:
        """End all who listen, when they have had what was published before."""
        with self._own_lock:
            listeners = list(self._listeners)
            self._listeners.clear()
            for listener in listeners:
                _put(listener.queue, _END)


class SSE_BluePrint:
    """Streams from functions, generators and :class:`PubSub`.

    :param app: gets a blueprint without routes and ``/sse/<channel>``.
    :param name: of the blueprint.
    :param template_folder: of the blueprint.
    :param withContext: streams keep their request's context, and are for EventSource alone.
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
        """Answer the current request with events that are formatted already."""
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
        """Answer the current request with what a generator yields."""
        return self.streamSSE(self.generateSSE(gen))

    def streamFunc(self, func: Callable[[], Any], limit: int = -1) -> Response:
        """Answer the current request with what a function returns, called again and again.

        :param limit: how often, -1 without end.
        """
        return self.streamGen(self.generate(func, limit))

    def generate(self, func: Callable[[], Any], limit: int = -1) -> Iterator[Any]:
        """Yield what a function returns; :param limit: how often, -1 without end."""
        count = 0
        while limit == -1 or count < limit:
            count += 1
            yield func()

    def generateSSE(self, gen: Iterable[Any]) -> Iterator[str]:
        """Yield an event for each that a generator yields; None is a heartbeat."""
        for result in gen:
            yield _HEARTBEAT if result is None else event(str(result).encode()).decode()

    def enableDebug(self, debug: bool) -> None:
        """Log that messages come, at the level DEBUG."""
        self.debug = debug

    def publish(self, message: Any, channel: str = "sse", debug: bool = False) -> PubSub:
        """Publish a message to all who listen to a channel in this process."""
        return PubSub.publish(channel=channel, message=message, debug=debug or self.debug)

    def subscribe(self, channel: str, limit: int = -1, debug: bool = False) -> Response:
        """Answer the current request with what is published to a channel.

        :param limit: messages after which it ends, -1 for any number.
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
