"""Interop: exchanges events with programs that use Flask-SSE on the same Redis.

Flask-SSE publishes JSON on a Redis channel with the same name as the SSE channel, without history.
Our events are published there, too. Redis delivers an event to all subscribed workers, but our
history must hold the event once. Only the worker that holds :data:`_NAME` listens therefore, and
republishes other programs' events. A space behind the JSON, which parsers ignore, marks our own.

The listener subscribes to the channels that have streams in any worker. Each worker announces its
channels when a stream begins and again at each turn. If the listener is killed, another worker
takes over after :data:`_HOLD` seconds. Events of other programs in between are lost.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import secrets
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import closing
from time import monotonic
from typing import Any

from redis import BlockingConnectionPool, StrictRedis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from ..brokers.redis.client import RedisClient
from ..channels.app_channels import AppChannels
from ..channels.publisher import Dumps
from ..exceptions import BrokerError
from .encoding import PREFIX, channel_of
from .message import Message

__all__ = ["Interop", "redis_of"]

logger = logging.getLogger("flask_sockets2.sse")

_NAME = "sse:interop"
_HOLD = 6.0  # seconds that a worker holds the name without a renewal
_TURN = 2.0  # seconds between two renewals
_KEPT = 300.0  # seconds that a channel stays subscribed after its last stream: browsers reconnect
_MOST = 10_000  # channels
_TIMEOUT = 5.0  # seconds for one answer, if the URL sets no other timeout
_CONNECTIONS = 8  # in the pool; further callers wait, with the same timeout
_OURS = " "

Heard = OrderedDict[str, float]
"""Subscribed channels and the time of their last request, the oldest first."""


def redis_of(url: str) -> Any:
    """Return a client as Flask-SSE makes one, without a connection yet.

    :raises BrokerError: if the URL is invalid.
    """
    RedisClient(url, _TIMEOUT)  # redis-py's own errors may show a part of the password
    return StrictRedis.from_url(url)


class Interop:
    """Connects one process with programs that use Flask-SSE.

    :param url: URL of their Redis.
    :param channels: channels of the application in this process.
    :param dumps: function that serializes JSON as the application does.
    :raises BrokerError: if the URL is invalid.
    """

    def __init__(self, url: str, channels: AppChannels, dumps: Dumps) -> None:
        self._client = RedisClient(url, _TIMEOUT)  # for the texts of its errors
        options = {
            "max_connections": _CONNECTIONS,
            "timeout": _TIMEOUT,
            "socket_timeout": _TIMEOUT,
            "socket_connect_timeout": _TIMEOUT,
            # No retries: an event might be published twice.
            "retry": Retry(NoBackoff(), 0),
        }
        self._redis: Any = StrictRedis(
            connection_pool=BlockingConnectionPool.from_url(url, **options)
        )
        self._channels = channels
        self._dumps = dumps
        self._holder = f"{os.getpid()}-{secrets.token_hex(8)}"
        self._prefix = f"{channels.broker.options.prefix}:"  # prefix of our broker's names
        self._wanted = f"{self._prefix}{PREFIX}wanted"  # pub/sub: channels that workers request
        self._heard = f"{self._prefix}{PREFIX}heard:"  # pub/sub: subscribed to beside each channel
        self._told: dict[str, float] = {}  # requested channels, and when
        self._stop = threading.Event()
        self._running = False
        self._lock = threading.Lock()  # guards starting the thread

    # -- from us to Flask-SSE --------------------------------------------------------------

    def publish(self, name: str, message: Message) -> int:
        """Publish an event to Flask-SSE's subscribers; return their number, without our listener.

        :raises BrokerError: if their Redis cannot be reached.
        """
        if self._is_of_the_broker(name):
            return 0
        payload = self._dumps(message.to_dict()) + _OURS
        try:
            with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.publish(name, payload)
                pipeline.pubsub_numsub(self._heard + name)
                receivers, [(_, ourselves)] = pipeline.execute()
        except RedisError as exc:
            error = self._client.error(exc)
            raise BrokerError(f"cannot publish for Flask-SSE's programs: {error}") from exc
        # At most one worker listens; Valkey 9.1 may briefly report a wrong count.
        return max(0, int(receivers) - min(int(ourselves), 1))

    def _is_of_the_broker(self, name: str) -> bool:
        """Whether a pub/sub name belongs to our broker, so that its messages are not events."""
        return name.startswith(self._prefix)

    # -- from Flask-SSE to us --------------------------------------------------------------

    def want(self, names: Sequence[str]) -> None:
        """Ask the listening worker to subscribe to channels."""
        self._start()
        now = monotonic()
        new = [name for name in names if now - self._told.get(name, -_TURN) >= _TURN]
        if not new:
            return
        if len(self._told) >= _MOST:
            self._told.clear()
        self._told.update(dict.fromkeys(new, now))
        try:
            self._redis.publish(self._wanted, json.dumps(new))
        except RedisError as exc:
            logger.error("what others publish to %.200r is not heard yet: %s", new, exc)

    def _start(self) -> None:
        with self._lock:
            if self._running:
                return
            self._running = True
        atexit.register(self._leave, os.getpid())
        threading.Thread(target=self._run, name="flask_sockets2 SSE", daemon=True).start()

    def _leave(self, process: int) -> None:
        """Hand over to another worker at once when this process exits."""
        if os.getpid() == process:
            self.close()

    def close(self) -> None:
        """Stop listening, so that another worker can take over; can be repeated."""
        self._stop.set()
        try:
            self._channels.broker.hold(_NAME, self._holder, 0.0)
        except BrokerError as exc:
            logger.debug("could not let another one listen, which does so by itself: %s", exc)

    def _run(self) -> None:
        away = False
        while not self._stop.is_set():
            try:
                if self._hold():
                    self._listen()
                else:
                    self._redis.publish(self._wanted, json.dumps(self._here()))
                away = False
            except (BrokerError, RedisError, OSError) as exc:
                if not away:
                    error = exc if isinstance(exc, BrokerError) else self._client.error(exc)
                    logger.error("what others publish is not heard just now: %s", error)
                away = True
            except Exception:  # a bug of ours must not stop the thread
                logger.exception("hearing what others publish failed")
            self._stop.wait(_TURN)

    def _hold(self) -> bool:
        return self._channels.broker.hold(_NAME, self._holder, _HOLD)

    def _here(self) -> list[str]:
        """Return the channels that have streams in this process."""
        channels = self._channels.here()
        return [name.removeprefix(PREFIX) for name in channels if name.startswith(PREFIX)][:_MOST]

    def _listen(self) -> None:
        """Listen for all workers as long as this worker holds the name."""
        with closing(self._redis.pubsub(ignore_subscribe_messages=True)) as pubsub:
            pubsub.subscribe(self._wanted)
            heard: Heard = OrderedDict()
            due = 0.0
            while not self._stop.is_set():
                now = monotonic()
                if now >= due:
                    if not self._hold():
                        return
                    due = now + _TURN
                    self._hear(pubsub, heard, self._here())
                message = pubsub.get_message(timeout=max(0.01, due - now))
                if self._stop.is_set():
                    return  # another worker may have taken over
                if message is None or message["type"] != "message":
                    continue
                name, payload = _text(message["channel"]), _text(message["data"])
                if name == self._wanted:
                    self._hear(pubsub, heard, _names(payload))
                elif not payload.endswith(_OURS):
                    self._pass_on(name, payload)

    def _hear(self, pubsub: Any, heard: Heard, names: list[str]) -> None:
        now = monotonic()
        names = [name for name in dict.fromkeys(names) if not self._is_of_the_broker(name)]
        new = [name for name in names if name not in heard]
        for name in names:
            heard[name] = now
            heard.move_to_end(name)
        if new:
            pubsub.subscribe(*new, *(self._heard + name for name in new))
        self._hear_no_more(pubsub, heard)

    def _hear_no_more(self, pubsub: Any, heard: Heard) -> None:
        """Unsubscribe from channels not requested recently, and from the oldest over the limit."""
        while heard:
            name, wanted = next(iter(heard.items()))
            if len(heard) <= _MOST and wanted >= monotonic() - _KEPT:
                return
            del heard[name]
            pubsub.unsubscribe(name, self._heard + name)

    def _pass_on(self, name: str, payload: str) -> None:
        try:
            message = Message.of_payload(payload.encode())
            self._channels.publisher.publish(channel_of(name), message.to_dict())
        except (ValueError, TypeError) as exc:
            logger.warning("what another program published to %.200r is no event: %s", name, exc)
        except BrokerError as exc:
            logger.error("what another program published to %.200r is lost: %s", name, exc)


def _names(payload: str) -> list[str]:
    """Return the channels that a worker requests; any program may publish invalid data there."""
    try:
        names = json.loads(payload)
    except (ValueError, RecursionError):
        return []
    return list(filter(_is_name, names)) if isinstance(names, list) else []


def _is_name(name: Any) -> bool:
    try:
        channel_of(name)
    except (TypeError, ValueError):
        return False
    return True


def _text(given: str | bytes) -> str:
    """Return text from redis-py, which decodes only if the URL has that option."""
    return given if isinstance(given, str) else given.decode(errors="replace")
