"""RedisBroker: channels of many processes and hosts, with Redis Streams and pub/sub.

Needs ``pip install "flask-sockets2[redis]"``. Works with Redis 6.2 and newer, Valkey, their
promoted replicas, and their clusters (Redis 7.0 and newer, Valkey).

One script adds a message to the log and publishes it, so that history and delivery always agree.
Each process has one connection for pub/sub (on a cluster one for each node; ``listener.py``), and
several for commands (``client.py``).
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

# Limits for one run of the script, during which the server does nothing else:
_ROUND_MESSAGES = 64
_ROUND_BYTES = 2**20
_PAGE = 100  # messages of a history in one answer
_BATCH = 100  # histories asked for in one exchange
_EXCHANGE_BYTES = 4 * 2**20  # bytes of messages per exchange; a longer message comes alone


Method = TypeVar("Method", bound=Callable[..., Any])


def _understood(method: Method) -> Method:
    """Make a method raise BrokerError if an answer does not come from a Redis."""

    @wraps(method)
    def understanding(self: RedisBroker, *args: Any) -> Any:
        try:
            return method(self, *args)
        except GARBLED as exc:
            raise self._client.error(exc) from exc

    return understanding  # type: ignore[return-value]  # it has the same arguments


class RedisBroker(Broker):
    """Channels of all processes that use one server (``redis://``, ``rediss://``, ``unix://``).

    :param client_timeout: seconds for one answer of the server, if the URL sets no timeout.
    :param listener_times: timeouts of the pub/sub connection.
    :param lease_times: times of this process's lease.
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
        """Make the objects that belong to one process."""
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
        """Abandon the parent's threads, locks and connections, in the child of a fork."""
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
        """Publish in one exchange, all or none of each channel's messages.

        One call holds all messages of a channel, so that they keep their order even after an error:
        if the server has forgotten the script, has moved a slot or is out of memory.
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
        # A message to a reserved channel is always published alone.
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
        """Parse the positions of published messages from the script's reply."""
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
        """Return the newest position of each channel, and extend its lifetime on the server.

        :param channels: names, and the seconds for which this process has listened to each.
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
        """Yield the history of each channel, or the error if the history cannot be read.

        Each history is yielded before the next is read in full: all may not fit into memory.
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

        :param newest: offset of the page's first message, '' for the newest of all.
        :param together: pages in one exchange; a page alone holds one message of any length.
        """
        args = [new_epoch(), *(since or ("", "")), self.options.history_size, newest]
        args += [_PAGE, _EXCHANGE_BYTES // together, int(together == 1)]
        return Call(HISTORY, self._names.log(channel), args)

    def _read(self, channel: str, since: Position | None, reply: Any) -> History:
        """Read a history from its newest message back; the first page is given.

        The history ends at messages that were trimmed between two pages, at another program's
        entry, or if ``history_bytes`` is reached.
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
            pass  # another program's entry
        if since is not None and since != (position.epoch, offset):
            return History((), position, complete=False)
        messages.reverse()
        return History(messages, position)

    def _bodies(self, channel: str, since: Position | None, reply: Any) -> Iterator[bytes]:
        """Yield a log's messages after a position, the newest first, up to a gap."""
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

    # -- presence --------------------------------------------------------------------------

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
    """Return the messages to keep, and the milliseconds that log and meta are kept."""
    log_ttl = max(int(options.history_ttl * 1000), 1)
    return options.history_size, log_ttl, max(int(DAY * 1000), 10 * log_ttl)


def _rounds(drafts: Sequence[Draft]) -> Iterator[list[Draft]]:
    """Split drafts into rounds, each published by one run of the script."""
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
_lock = native_lock()  # guards _brokers and _registered
_registered: list[bool] = []


def _forked_with(broker: RedisBroker) -> None:
    """Register a broker for renewal in the children of this process."""
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
