"""Programs that use Flask-SSE, with the same Redis: they hear us, and we hear them.

Flask-SSE publishes JSON on a Redis channel that is called as the channel itself, and keeps nothing.
So what we publish goes there, too. What others publish there comes to all workers at once, and has
to get into our log once: one of all workers listens, the one that holds :data:`_NAME`, and
publishes it again. It tells ours by a space behind the JSON, which no parser minds.

It listens to the channels that have streams in any worker: each says so when a stream begins, and
again at each turn. A worker that was killed is replaced after :data:`_HOLD` seconds; what is
published meanwhile is lost, as everything is with Flask-SSE that nobody listens to.
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
_HOLD = 6.0  # seconds that one worker listens for all, unless it says so again
_TURN = 2.0  # seconds between two times that it does
_KEPT = 300.0  # seconds that a channel is listened to after its last stream: browsers come back
_MOST = 10_000  # channels
_TIMEOUT = 5.0  # seconds for one answer, where the URL sets no other
_CONNECTIONS = 8  # at the same time; more callers wait, as long as for an answer
_OURS = " "

Heard = OrderedDict[str, float]
"""Channels that are listened to, and when they were wanted last; the oldest is the first."""


def redis_of(url: str) -> Any:
    """Return a client as Flask-SSE makes it, without a connection yet.

    :raises BrokerError: when the URL cannot be read.
    """
    RedisClient(url, _TIMEOUT)  # redis-py's own errors may show a part of the password
    return StrictRedis.from_url(url)


class Interop:
    """What connects one process with Flask-SSE's programs.

    :param url: of their Redis.
    :param channels: of the application in this process.
    :param dumps: makes JSON as the application does.
    :raises BrokerError: when the URL cannot be read.
    """

    def __init__(self, url: str, channels: AppChannels, dumps: Dumps) -> None:
        self._client = RedisClient(url, _TIMEOUT)  # for its words
        options = {
            "max_connections": _CONNECTIONS,
            "timeout": _TIMEOUT,
            "socket_timeout": _TIMEOUT,
            "socket_connect_timeout": _TIMEOUT,
            # Nothing is tried twice, since it might be published twice then.
            "retry": Retry(NoBackoff(), 0),
        }
        self._redis: Any = StrictRedis(
            connection_pool=BlockingConnectionPool.from_url(url, **options)
        )
        self._channels = channels
        self._dumps = dumps
        self._holder = f"{os.getpid()}-{secrets.token_hex(8)}"
        self._prefix = f"{channels.broker.options.prefix}:"  # of what is ours there
        self._wanted = f"{self._prefix}{PREFIX}wanted"  # pub/sub: what the others want
        self._heard = f"{self._prefix}{PREFIX}heard:"  # pub/sub: subscribed to beside each channel
        self._told: dict[str, float] = {}  # channels that this process has asked for, and when
        self._stop = threading.Event()
        self._running = False
        self._lock = threading.Lock()  # guards starting the thread

    # -- what we publish -------------------------------------------------------------------

    def publish(self, name: str, message: Message) -> int:
        """Publish to those who listen there, and return how many do, but for ourselves.

        :raises BrokerError: when their Redis cannot be reached.
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
        # One of all workers listens, at most; Valkey 9.1 may count a name wrongly for a moment.
        return max(0, int(receivers) - min(int(ourselves), 1))

    def _is_of_the_broker(self, name: str) -> bool:
        """Whether a name in pub/sub is where the broker speaks, which is no event of anybody's."""
        return name.startswith(self._prefix)

    # -- what they publish -----------------------------------------------------------------

    def want(self, names: Sequence[str]) -> None:
        """Have what is published to channels heard, by whichever worker listens."""
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
        """Let another one listen at once."""
        if os.getpid() == process:
            self.close()

    def close(self) -> None:
        """Listen no more; can be repeated."""
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
            except Exception:  # ours; what others publish must be heard all the same
                logger.exception("hearing what others publish failed")
            self._stop.wait(_TURN)

    def _hold(self) -> bool:
        return self._channels.broker.hold(_NAME, self._holder, _HOLD)

    def _here(self) -> list[str]:
        """Return the channels that have streams in this process."""
        channels = self._channels.here()
        return [name.removeprefix(PREFIX) for name in channels if name.startswith(PREFIX)][:_MOST]

    def _listen(self) -> None:
        """Listen for all workers, as long as this one is to."""
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
                    return  # another one may listen by now
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
        """Let go of what nobody has wanted for long, and of the oldest where it is too much."""
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
    """What another worker wants; anybody may publish there, so it may be anything."""
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
    """What redis-py gives: text, where an option of the URL has it decode."""
    return given if isinstance(given, str) else given.decode(errors="replace")
