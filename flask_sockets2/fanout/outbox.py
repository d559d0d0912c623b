"""Outlet: sends a channel's messages to one client, and buffers them if the client is slow.

The outlet writes as much as the kernel takes at once. Later messages are buffered one by one, up to
``send_buffer`` bytes. Beyond that, the policy decides:

``disconnect``
    The client is closed with 1013. It can reconnect and resume at its position.
``drop_oldest``
    The oldest messages are dropped, and the client is told of a gap in their place. The newest
    message always stays, however long, so the client ends up with the current state.
``coalesce``
    A newer message with the same key replaces an older one. If the buffer is still too full, for
    example with messages without a key, the client is closed as under ``disconnect``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from typing import Any, NamedTuple, Protocol

from ..brokers.base import Message
from ..stats import ChannelCounters
from .encoding import GAP, Encoding

__all__ = ["CHUNK", "POLICIES", "Batch", "Observer", "Outlet", "OutletOwner", "SocketWriter"]

DISCONNECT, DROP_OLDEST, COALESCE = "disconnect", "drop_oldest", "coalesce"
POLICIES = (DISCONNECT, DROP_OLDEST, COALESCE)

CHUNK = 65536  # bytes of one write, so that the messages behind it can still be dropped
_CHUNKS = 2  # least chunks in a send_buffer, since bytes in the transport cannot be dropped


class SocketWriter(Protocol):
    """The part of a transport that an outlet uses."""

    clock: Any
    lock: Any
    buffered: int
    #: The client's share of the memory budget of all connections.
    share: Any

    def write(self, data: bytes) -> None:
        """Write as much as the kernel takes now and buffer the rest."""

    def flush(self) -> None:
        """Write as much of the buffer as the kernel takes now."""


class OutletOwner(Protocol):
    """The connection that an outlet belongs to."""

    @property
    def subject(self) -> Any:
        """The ``connection`` argument of signals."""

    def too_slow(self) -> None:
        """End the connection, because the client is too slow."""


class Observer:
    """Callbacks for lost messages, slow clients and broker reconnects; the defaults do nothing."""

    def gap(self, channel: str) -> None:
        """Clients of a channel are told that messages were lost."""

    def dropped(self, owner: OutletOwner, channel: str) -> None:
        """A slow client was not sent a message."""

    def too_slow(self, owner: OutletOwner) -> None:
        """A client is closed because it is too slow."""

    def reconnected(self) -> None:
        """The broker was unreachable and has reconnected."""


class Source(Protocol):
    """The fan-out, from which an outlet's messages come."""

    observer: Observer

    def remove(self, outlet: Outlet) -> None:
        """Unsubscribe an outlet from all channels."""

    def go_on(self, outlet: Outlet) -> None:
        """Send more of the histories that are replayed to an outlet, which has room now."""


class Batch:
    """Messages of one channel to write to the outlets with one encoding.

    :param channel: channel of the messages, with their counters.
    """

    __slots__ = ("_data", "_pieces", "channel", "encoding", "messages", "outlets")

    def __init__(
        self, channel: Any, encoding: Encoding, outlets: list[Outlet], messages: Sequence[Message]
    ) -> None:
        self.channel = channel
        self.encoding = encoding
        self.outlets = outlets
        self.messages = messages
        self._data: bytes | None = None
        self._pieces: list[bytes] | None = None

    def pieces(self) -> list[bytes]:
        """Return the bytes of each message; made once, since an encoding may rely on the order."""
        made = self._pieces
        if made is None:
            encode = self.encoding.encode
            made = self._pieces = [encode(message) for message in self.messages]
        return made

    def join(self) -> bytes:
        """Return the bytes for each client; made once, and counted for all clients."""
        data = self._data
        if data is None:
            data = b"".join(self.pieces())
            clients = len(self.outlets)
            if clients > 1:
                self._data = data
            if data:
                counters: ChannelCounters = self.channel.counters
                counters.delivered += clients * len(self.messages)
                counters.bytes_out += clients * len(data)
        return data


class _Kept(NamedTuple):
    """One buffered message."""

    message: Message
    data: bytes
    encoding: Encoding
    counters: ChannelCounters


class Outlet:
    """Sends messages to one client, and buffers or drops messages if the client is slow.

    :param transport: transport of the client's connection; its lock guards the backlog.
    :param owner: the connection, ended if the client is too slow.
    :param source: the fan-out; its observer is notified of slow clients and dropped messages.
    :param limit: most bytes that are buffered for the client.
    :param policy: one of :data:`POLICIES`.
    """

    __slots__ = (
        "_backlog",
        "_size",
        "at_once",
        "chunk",
        "closed",
        "entries",
        "limit",
        "owner",
        "policy",
        "replays",
        "source",
        "transport",
    )

    def __init__(
        self, transport: SocketWriter, owner: OutletOwner, source: Source, limit: int, policy: str
    ) -> None:
        self.transport = transport
        self.owner = owner
        self.source = source
        self.limit = limit
        self.policy = policy
        #: Most bytes of one write.
        self.chunk = min(CHUNK, limit // _CHUNKS)
        #: Subscriptions by channel name; the fan-out's.
        self.entries: dict[Any, Any] = {}
        #: Replays to the client, or None; and bytes of short histories that were sent at once
        #: since the client last had nothing buffered. Both are ``fanout/replay.py``'s.
        self.replays: Any = None
        self.at_once = 0
        #: Whether the outlet sends no more messages.
        self.closed = False
        self._backlog: OrderedDict[Any, _Kept] | None = None
        self._size = 0

    def put(self, data: bytes, batches: Iterable[Batch]) -> None:
        """Write the bytes of batches, or buffer their messages behind earlier ones; any thread."""
        with self.transport.lock:
            if self.closed:
                return
            pieces = _pieces(batches)
            if self._backlog is None and not self.transport.buffered:
                if len(data) <= self.chunk or self.policy == DISCONNECT:
                    self.transport.write(data)
                    return
                self._write(pieces)  # the pieces left over can still be dropped
                if self.closed:
                    return
            for piece in pieces:
                self._append(piece)
            if self._size + self.transport.buffered > self.limit:
                self.transport.flush()  # a busy publisher may have kept the hub from flushing
                if self._size + self.transport.buffered > self.limit:
                    self._make_room()
            if not self.transport.buffered:
                self.drained()

    def _append(self, kept: _Kept) -> None:
        if self._backlog is None:
            self._backlog = OrderedDict()
        key: Any = next(_numbers)
        if self.policy == COALESCE and kept.message.key:
            key = (kept.message.channel, kept.message.key)
            older = self._backlog.pop(key, None)
            if older is not None:
                self._release(older)
                kept.counters.coalesced += 1
        self._backlog[key] = kept
        self._hold(kept)

    def _hold(self, kept: _Kept) -> None:
        self._size += len(kept.data)
        self.transport.share.hold(kept.data)

    def _release(self, kept: _Kept) -> None:
        self._size -= len(kept.data)
        self.transport.share.release(kept.data)

    def _make_room(self) -> None:
        if self.policy == DROP_OLDEST:
            self._drop_oldest()
            return
        for kept in (self._backlog or {}).values():
            kept.counters.slow_disconnects += 1
            break
        self._end()

    def _end(self) -> None:
        self.remove()
        self.owner.too_slow()
        self.source.observer.too_slow(self.owner)

    def _drop_oldest(self) -> None:
        """Drop messages from the front, and put a gap for each of their channels there.

        Bytes in the transport cannot be dropped. So that the newest messages are not dropped
        instead, half of the limit always belongs to the backlog.
        """
        backlog = self._backlog
        if backlog is None:
            return  # all bytes are in the transport by now
        room = max(self.limit - self.transport.buffered, self.limit // 2)
        if self._size <= room:
            return
        gaps: dict[str, _Kept] = {}
        told: set[str] = set()  # channels with an earlier gap that the client has not seen yet
        while self._size > room // 2 and len(backlog) > 1:
            _, kept = backlog.popitem(last=False)
            self._release(kept)
            if kept.message.event == GAP:
                told.add(kept.message.channel)
            else:
                kept.counters.dropped += 1
                self.source.observer.dropped(self.owner, kept.message.channel)
            if not kept.message.transient or kept.message.event:  # events: gaps and presence
                gaps[kept.message.channel] = kept
        for channel, kept in gaps.items():
            last = kept.message
            gap = Message(channel, last.kind, b"", last.position, event=GAP, transient=True)
            data = kept.encoding.encode(gap)
            if data:
                if channel not in told:
                    kept.counters.gaps += 1
                    self.source.observer.gap(channel)
                key = next(_numbers)
                backlog[key] = _Kept(gap, data, kept.encoding, kept.counters)
                backlog.move_to_end(key, last=False)
                self._hold(backlog[key])

    def drained(self) -> None:
        """Write from the backlog, since the kernel has taken all that the transport buffered.
        Called in the hub or selector thread, or under the transport's lock."""
        self._write(self._taken())
        if not self._backlog:
            self._backlog = None
            if self.replays is not None and not self.transport.buffered:
                self.source.go_on(self)

    def _taken(self) -> Iterator[_Kept]:
        """Remove and yield the messages of the backlog, the oldest first."""
        while self._backlog:
            _, kept = self._backlog.popitem(last=False)
            self._release(kept)
            yield kept

    def _write(self, pieces: Iterator[_Kept]) -> None:
        """Write a chunk at a time until the kernel takes no more; ``pieces`` keeps the rest."""
        while not (self.transport.buffered or self.closed):
            chunk: list[bytes] = []
            size = 0
            for piece in pieces:
                chunk.append(piece.data)
                size += len(piece.data)
                if size >= self.chunk:
                    break
            if not chunk:
                return
            self.transport.write(b"".join(chunk))

    # -- replay ----------------------------------------------------------------------------

    def replay(self, channel: Any, encoding: Encoding, messages: Sequence[Message]) -> int:
        """Write or buffer messages of a history, up to half of the limit; the other half is for
        messages published meanwhile.

        :param channel: channel of the messages, with their counters.
        :returns: number of messages taken; they are encoded in this order, the others not at all.
        """
        counters: ChannelCounters = channel.counters
        taken = size = 0

        def pieces() -> Iterator[_Kept]:
            nonlocal taken, size
            for message in messages:
                data = encoding.encode(message)
                taken += 1
                size += len(data)
                if data:
                    yield _Kept(message, data, encoding, counters)

        with self.transport.lock:
            if self.closed:
                return len(messages)
            to_come = pieces()
            if self._backlog is None:
                self._write(to_come)
            while not self.closed and self.is_behind and not self.is_full:
                kept = next(to_come, None)
                if kept is None:
                    break
                self._append(kept)
        counters.delivered += taken
        counters.bytes_out += size
        return taken

    def give_up(self, counters: ChannelCounters) -> None:
        """End a client that is too slow for the messages that arrived during a replay."""
        with self.transport.lock:
            if not self.closed:
                counters.slow_disconnects += 1
                self._end()

    @property
    def is_behind(self) -> bool:
        """Whether bytes are buffered for the client."""
        return bool(self.transport.buffered or self._backlog)

    @property
    def is_full(self) -> bool:
        """Whether the half of the limit that histories may use is full."""
        return self._size + self.transport.buffered >= self.limit // 2

    def remove(self) -> None:
        """Stop sending to a closing client, and unsubscribe it from all channels."""
        if not self.closed:
            self.closed = True
            self.source.remove(self)
        backlog, self._backlog = self._backlog, None
        for kept in (backlog or {}).values():
            self._release(kept)
        self.replays = None


def _pieces(batches: Iterable[Batch]) -> Iterator[_Kept]:
    for batch in batches:
        for message, data in zip(batch.messages, batch.pieces(), strict=True):
            if data:
                yield _Kept(message, data, batch.encoding, batch.channel.counters)


_numbers = count()
