"""The broker of many processes and hosts: history in Redis Streams, delivery by pub/sub.

It speaks to Redis 6.2 and newer, Valkey, their replicas that were promoted, and their clusters
(Redis 7.0 and newer, Valkey). Needs ``pip install "flask-sockets2[redis]"``.

What is published is added to the log and delivered by one script, so that history and delivery
cannot disagree. Each process has one connection for pub/sub (on a cluster one for each node;
``listener.py``), and some for commands (``client.py``).
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any, TypeVar

from ...concurrency.native_lock import native_lock
from ...exceptions import BrokerError
from ...throttled_log import ThrottledLog
from ..base import (
    DAY,
    Broker,
    BrokerOptions,
    Draft,
    History,
    Message,
    Position,
    Receiver,
    new_epoch,
    silent_ttl,
)
from .client import SOCKET_TIMEOUT, RedisClient
from .errors import GARBLED
from .leases import Leases, LeaseTimes
from .listener import Listener
from .reader import ListenerTimes
from .scripts import APPEND, HISTORY, HOLD, POSITION, Call, Names, body_of, parse

__all__ = ["RedisBroker"]

# Published by one run of the script, during which the server does nothing else:
_ROUND_MESSAGES = 64
_ROUND_BYTES = 2**20
_PAGE = 100  # messages of a history in one answer
_BATCH = 100  # histories asked for in one exchange
_EXCHANGE_BYTES = 4 * 2**20  # of messages that are read at once; a longer message comes alone


Method = TypeVar("Method", bound=Callable[..., Any])


def _understood(method: Method) -> Method:
    """Have a method raise BrokerError for an answer that no Redis would give."""

    @wraps(method)
    def understanding(self: RedisBroker, *args: Any) -> Any:
        try:
            return method(self, *args)
        except GARBLED as exc:
            raise self._client.error(exc) from exc

    return understanding  # type: ignore[return-value]  # it has the same arguments


class RedisBroker(Broker):
    """Channels of all processes that use one server (``redis://``, ``rediss://``, ``unix://``).

    :param client_timeout: seconds for one answer of the server, where the URL sets none.
    :param listener_times: of the connection that listens.
    :param lease_times: of what a process says about itself.
    """

    shared = True
    waits = True

    def __init__(
        self,
        url: str,
        options: BrokerOptions,
        receiver: Receiver | None = None,
        *,
        client_timeout: float = SOCKET_TIMEOUT,
        listener_times: ListenerTimes | None = None,
        lease_times: LeaseTimes | None = None,
    ) -> None:
        super().__init__(url, options, receiver)
        self._client = RedisClient(url, client_timeout, options.prefix)
        self._names = Names(options.prefix, self._client.db)
        self._seldom = ThrottledLog(logging.getLogger("flask_sockets2.brokers"))
        self._listener_times = listener_times or ListenerTimes()
        self._lease_times = lease_times or LeaseTimes()
        self._begin()
        _forked_with(self)

    def _begin(self) -> None:
        """Make what belongs to one process."""
        self._listener = Listener(
            self._client,
            self._names,
            self.receiver,
            self._keep,
            self._histories,
            self._listener_times,
        )
        self._leases = Leases(
            self._client, self._names, self.options.presence_grace, self._lease_times
        )

    def _after_fork(self) -> None:
        """Let go, in a child, of what is its parent's: its threads, locks and connections."""
        self._client.forget()
        self._listener.forget()
        self._leases.forget()
        self._begin()

    # -- messages --------------------------------------------------------------------------

    @_understood
    def publish(self, drafts: Sequence[Draft]) -> list[Position]:
        if len(drafts) == 1:
            return self._append(drafts)
        positions: list[Position] = []
        for together in _rounds(drafts):
            positions += self._append(together)
        return positions

    def _append(self, drafts: Sequence[Draft]) -> list[Position]:
        """Publish at once, each channel's messages together or not at all.

        A script that the server has forgotten, a slot that has moved or a memory that is full
        concerns one call then, and no channel's messages are in two: they keep their order.
        """
        if len(drafts) == 1 or not self._client.clustered:
            return self._positions(drafts, self._client.run([self._append_call(drafts)])[0])
        by_channel: dict[str, list[int]] = {}
        for i, draft in enumerate(drafts):
            by_channel.setdefault(draft.channel, []).append(i)
        parts = [[drafts[i] for i in own] for own in by_channel.values()]
        replies = self._client.run([self._append_call(part) for part in parts])
        found: dict[int, Position] = {}
        for own, part, reply in zip(by_channel.values(), parts, replies, strict=True):
            found.update(zip(own, self._positions(part, reply), strict=True))
        return [found[i] for i in range(len(drafts))]

    def _append_call(self, drafts: Sequence[Draft]) -> Call:
        keys: list[str] = []
        channels: dict[str, tuple[int, bytes]] = {}
        # What is published to a reserved channel comes alone.
        kept = _kept(self.options.of(drafts[0].channel))
        args: list[Any] = [self._client.verb, new_epoch(), *kept]
        for channel, kind, data, key, event, transient in drafts:
            if channel not in channels:
                channels[channel] = (len(channels) + 1, self._names.pubsub(channel))
                keys += self._names.log(channel)
            args += channels[channel]
            args += (int(transient), body_of(kind, data, key, event, transient))
        return Call(APPEND, keys, args)

    def _positions(self, drafts: Sequence[Draft], reply: bytes) -> list[Position]:
        """Read the positions of what was published."""
        positions, *renewed = reply.decode().split("!")
        for number in renewed:
            channel = list(dict.fromkeys(draft.channel for draft in drafts))[int(number) - 1]
            self._seldom.warning(
                "foreign_entry",
                "another program has written to the history of channel %.200r at %s; its entries "
                "were removed; have it use other keys, or set another SOCKETS_CHANNEL_PREFIX",
                channel,
                self._client.shown,
            )
        return [Position(text[:16], int(text[17:])) for text in positions.split()]

    @_understood
    def subscribe(self, channel: str) -> Position:
        return self._listener.subscribe(channel)

    def unsubscribe(self, channel: str) -> None:
        self._listener.unsubscribe(channel)

    def away(self) -> bool | None:
        return self._listener.away()

    def position(self, channel: str) -> Position:
        [position] = self.positions([channel])
        return position

    @_understood
    def positions(self, channels: Sequence[str]) -> list[Position]:
        return self._keep([(channel, 0.0) for channel in channels])

    def _keep(self, channels: Sequence[tuple[str, float]]) -> list[Position]:
        """Return the newest position of each channel, and have the server keep it.

        :param channels: names, and for how many seconds this process has listened to each.
        """
        calls = [
            Call(
                POSITION,
                self._names.log(channel),
                [new_epoch(), int(silent_ttl(channel, listened) * 1000)],
            )
            for channel, listened in channels
        ]
        replies = self._client.run(calls) if calls else ()
        return [Position(epoch.decode(), int(offset)) for epoch, offset in replies]

    @_understood
    def history(self, channel: str, since: Position | None) -> History:
        [found] = self._histories([(channel, since)])
        if isinstance(found, BrokerError):
            raise found
        return found

    def _histories(
        self, wanted: Sequence[tuple[str, Position | None]]
    ) -> Iterator[History | BrokerError]:
        """Yield the histories of several channels, an error for one that cannot be read.

        One is let go before the next but few is read: together they can be more than fits.
        """
        for start in range(0, len(wanted), _BATCH):
            batch = wanted[start : start + _BATCH]
            calls = [self._page(*each, together=len(batch)) for each in batch]
            for (channel, since), reply in zip(batch, self._client.replies(calls), strict=True):
                if isinstance(reply, BrokerError):
                    yield reply
                else:
                    yield self._read(channel, since, reply)

    def _page(
        self, channel: str, since: Position | None, *, newest: int | str = "", together: int = 1
    ) -> Call:
        """Return the call for a page of a history.

        :param newest: offset that it begins with, '' for the newest of all.
        :param together: pages in one exchange; one that is alone holds a message, however long.
        """
        args = [new_epoch(), *(since or ("", "")), self.options.history_size, newest]
        args += [_PAGE, _EXCHANGE_BYTES // together, int(together == 1)]
        return Call(HISTORY, self._names.log(channel), args)

    def _read(self, channel: str, since: Position | None, reply: Any) -> History:
        """Read a history, whose first page has come, from its newest message back.

        What is trimmed between two pages, or was written by another program, ends it; so does a
        message that is too much for ``history_bytes``.
        """
        position = Position(reply[0].decode(), int(reply[1]))
        offset = position.offset
        messages: list[Message] = []
        size, most = 0, self.options.of(channel).history_bytes
        try:
            for body in self._bodies(channel, since, reply):
                message = parse(channel, body, Position(position.epoch, offset))
                size += len(message.data)
                if messages and size > most:
                    break
                messages.append(message)
                offset -= 1
        except ValueError:
            pass  # another program's
        if since is not None and since != (position.epoch, offset):
            return History((), position, complete=False)
        messages.reverse()
        return History(messages, position)

    def _bodies(self, channel: str, since: Position | None, reply: Any) -> Iterator[bytes]:
        """Yield the messages of a log, the newest first, that follow a position without a gap."""
        epoch, newest, more, page = reply
        offset = int(newest)
        if since is None:
            since = Position(epoch.decode(), max(offset - self.options.history_size, 0))
        while True:
            yield from page
            if not more:
                return
            offset -= len(page)
            call = self._page(channel, since, newest=offset)
            _, _, more, page = self._client.run([call])[0]

    # -- who is there ----------------------------------------------------------------------

    def count(self, channel: str, subscribers: int) -> None:
        self._leases.count(channel, subscribers)

    @_understood
    def subscribers(self, channel: str) -> int:
        return self._leases.subscribers(channel)

    @_understood
    def join(self, channel: str, identity: str) -> None:
        self._leases.join(channel, identity)

    def leave(self, channel: str, identity: str) -> None:
        self._leases.leave(channel, identity)

    @_understood
    def present(self, channel: str) -> list[str]:
        return self._leases.present(channel)

    @_understood
    def hold(self, name: str, holder: str, seconds: float) -> bool:
        args = [holder, max(int(seconds * 1000), 0)]
        return bool(self._client.run([Call(HOLD, [self._names.key(name, "holder")], args)])[0])

    def close(self) -> None:
        self._leases.close()
        self._listener.close()
        self._client.close()


def _kept(options: BrokerOptions) -> tuple[int, int, int]:
    """Return how many messages of a log are kept, and how many milliseconds it and its meta."""
    log_ttl = max(int(options.history_ttl * 1000), 1)
    return options.history_size, log_ttl, max(int(DAY * 1000), 10 * log_ttl)


def _rounds(drafts: Sequence[Draft]) -> Iterator[list[Draft]]:
    """Cut drafts into what is published at once."""
    together: list[Draft] = []
    size = 0
    for draft in drafts:
        if together and (len(together) == _ROUND_MESSAGES or size > _ROUND_BYTES):
            yield together
            together, size = [], 0
        together.append(draft)
        size += len(draft.data)
    if together:
        yield together


# -- fork --------------------------------------------------------------------------------------

_brokers: weakref.WeakSet[RedisBroker] = weakref.WeakSet()
_lock = native_lock()  # guards both
_registered: list[bool] = []


def _forked_with(broker: RedisBroker) -> None:
    """Have a broker renewed in the children of this process."""
    with _lock:
        _brokers.add(broker)
        if not _registered and hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_renew)
            _registered.append(True)


def _renew() -> None:
    global _lock
    _lock = native_lock()  # another thread of the parent may have held it
    for broker in list(_brokers):
        broker._after_fork()
