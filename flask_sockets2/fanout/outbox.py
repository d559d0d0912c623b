"""Outlet: the way out to one client, and what is kept back for it when it is slow.

What the kernel takes at once is written at once. What comes while something is kept back waits in
the outlet, message by message, up to ``send_buffer`` bytes. Beyond it, by policy:

``disconnect``
    The client is closed with 1013. It comes back and resumes where it was.
``drop_oldest``
    The oldest messages are dropped, and the client is told of a gap in their place. The newest
    message always stays, however long: the client ends up with what is so now.
``coalesce``
    A newer message with the same key takes the place of an older one; what has no key, or is too
    much even so, ends as under ``disconnect``.
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

CHUNK = 65536  # bytes handed to the kernel at a time, where what it does not take may be dropped
_CHUNKS = 2  # of them in a send_buffer, at least: what the transport has cannot be dropped any more


class SocketWriter(Protocol):
    """A transport, as far as an outlet needs it."""

    clock: Any
    lock: Any
    buffered: int
    #: What its client holds of the memory of all.
    share: Any

    def write(self, data: bytes) -> None:
        """Write at once what the kernel takes and keep the rest."""

    def flush(self) -> None:
        """Write of what was kept what the kernel takes now."""


class OutletOwner(Protocol):
    """Whose outlet it is: a connection."""

    @property
    def subject(self) -> Any:
        """What signals name as the connection."""

    def too_slow(self) -> None:
        """End: the client does not keep up."""


class Observer:
    """Who wants to know of what should not happen; does nothing by itself."""

    def gap(self, channel: str) -> None:
        """Clients of a channel are told that messages were lost."""

    def dropped(self, owner: OutletOwner, channel: str) -> None:
        """A slow client was not sent a message."""

    def too_slow(self, owner: OutletOwner) -> None:
        """A client is closed, being too slow."""

    def reconnected(self) -> None:
        """The broker was out of reach and is back."""


class Source(Protocol):
    """Where its messages come from: the fan-out."""

    observer: Observer

    def remove(self, outlet: Outlet) -> None:
        """Forget it."""

    def go_on(self, outlet: Outlet) -> None:
        """It has room for more of the histories that are replayed to it."""


class Batch:
    """Messages of one channel for outlets with one encoding.

    :param channel: theirs, to count in.
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
        """Return the bytes of each message; made once, as an encoding may count on their order."""
        made = self._pieces
        if made is None:
            encode = self.encoding.encode
            made = self._pieces = [encode(message) for message in self.messages]
        return made

    def join(self) -> bytes:
        """Return the bytes for one client; made once, and counted for all."""
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
    """One message that is kept back."""

    message: Message
    data: bytes
    encoding: Encoding
    counters: ChannelCounters


class Outlet:
    """The way out to one client.

    :param transport: of the client's connection; its lock guards the backlog.
    :param owner: told when the client is too slow.
    :param source: told of that and of all that was not sent.
    :param limit: bytes kept back for it.
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
        #: Bytes handed to the kernel at a time.
        self.chunk = min(CHUNK, limit // _CHUNKS)
        #: What it subscribes to; the fan-out's.
        self.entries: dict[Any, Any] = {}
        #: What is replayed to it, None where nothing is; and bytes of histories that went out
        #: at once since it was last seen to be level; both ``fanout/replay.py``'s.
        self.replays: Any = None
        self.at_once = 0
        #: Nothing goes out any more.
        self.closed = False
        self._backlog: OrderedDict[Any, _Kept] | None = None
        self._size = 0

    def put(self, data: bytes, batches: Iterable[Batch]) -> None:
        """Write the bytes of some batches, or keep them back behind what is; any thread."""
        with self.transport.lock:
            if self.closed:
                return
            pieces = _pieces(batches)
            if self._backlog is None and not self.transport.buffered:
                if len(data) <= self.chunk or self.policy == DISCONNECT:
                    self.transport.write(data)
                    return
                self._write(pieces)  # what is left over can still be dropped
                if self.closed:
                    return
            for piece in pieces:
                self._append(piece)
            if self._size + self.transport.buffered > self.limit:
                self.transport.flush()  # one who publishes without end may have kept the hub busy
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
        """Drop messages from the front, and put a gap of each channel of theirs there.

        What the transport has cannot be dropped, and is no reason to drop the newest instead: half
        of the limit is always the backlog's.
        """
        backlog = self._backlog
        if backlog is None:
            return  # all of it is the transport's by now
        room = max(self.limit - self.transport.buffered, self.limit // 2)
        if self._size <= room:
            return
        gaps: dict[str, _Kept] = {}
        told: set[str] = set()  # of an earlier gap, which the client has not seen yet
        while self._size > room // 2 and len(backlog) > 1:
            _, kept = backlog.popitem(last=False)
            self._release(kept)
            if kept.message.event == GAP:
                told.add(kept.message.channel)
            else:
                kept.counters.dropped += 1
                self.source.observer.dropped(self.owner, kept.message.channel)
            if not kept.message.transient or kept.message.event:  # of a gap, or of presence
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
        """Go on: the kernel has taken all that the transport kept; by the hub or the selector
        thread, or under the transport's lock."""
        self._write(self._taken())
        if not self._backlog:
            self._backlog = None
            if self.replays is not None and not self.transport.buffered:
                self.source.go_on(self)

    def _taken(self) -> Iterator[_Kept]:
        """Take from the backlog, from its front."""
        while self._backlog:
            _, kept = self._backlog.popitem(last=False)
            self._release(kept)
            yield kept

    def _write(self, pieces: Iterator[_Kept]) -> None:
        """Write a chunk at a time, until the kernel takes no more; what is left stays there."""
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

    # -- what is replayed ------------------------------------------------------------------

    def replay(self, channel: Any, encoding: Encoding, messages: Sequence[Message]) -> int:
        """Write messages as far as there is room, which is up to half of the limit: the other half
        is for what is published meanwhile.

        :param channel: theirs, to count in.
        :returns: how many were taken; they are encoded in this order, and the others not at all.
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
        """End the client: it is too slow for what came while a history was replayed to it."""
        with self.transport.lock:
            if not self.closed:
                counters.slow_disconnects += 1
                self._end()

    @property
    def is_behind(self) -> bool:
        """Whether something is kept back for the client."""
        return bool(self.transport.buffered or self._backlog)

    @property
    def is_full(self) -> bool:
        """Whether as much is kept back for the client as may be of histories."""
        return self._size + self.transport.buffered >= self.limit // 2

    def remove(self) -> None:
        """The client is closing: let nothing out any more, and be forgotten."""
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
