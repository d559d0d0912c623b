"""Encodings: a channel's messages as bytes on the wire, made once for all clients that share them.

A client receives the data as published: text and JSON as a text message, bytes as a binary one.
If a client can resume, it receives envelopes instead, text messages with a JSON object::

    {"channel": "news", "position": "9f86d081884c7d65-42", "data": "hello"}
    {"channel": "news", "position": "9f86d081884c7d65-43", "data": "AAE=", "encoding": "base64"}
    {"channel": "news", "position": "9f86d081884c7d65-43", "event": "gap"}
    {"channel": "news", "event": "presence", "identities": ["ann", "bob"]}
    {"channel": "news", "event": "join", "identity": "cy"}
    {"channel": "news", "event": "leave", "identity": "bob"}

``data`` is the string or the JSON value; if ``encoding`` is there, bytes as a string of base64.
``gap``: messages before that position were lost to this client. The other events are presence.
A transient message has no position, because a client cannot resume at one.
"""

from __future__ import annotations

import json
import logging
from base64 import b64encode
from typing import Any, ClassVar, Protocol
from weakref import WeakValueDictionary

from ..brokers.base import BINARY as BINARY_KIND
from ..brokers.base import JSON, Message, Position
from ..brokers.base import TEXT as TEXT_KIND
from ..concurrency.native_lock import native_lock
from ..wire.frames import BINARY, TEXT, build, build_deflated

__all__ = ["GAP", "Encoding", "Frames", "gap_message", "presence_message"]

logger = logging.getLogger("flask_sockets2.channels")

GAP, PRESENCE, JOIN, LEAVE = "gap", "presence", "join", "leave"


class Encoding(Protocol):
    """How messages are sent to one kind of client. Equal encodings are one object."""

    #: Whether clients are told of joins and leaves.
    presence: bool

    def encode(self, message: Message) -> bytes:
        """Return the bytes to write for a message; empty if these clients do not receive it."""


class Frames:
    """Encodes messages as WebSocket frames; made by :meth:`of`.

    :ivar envelope: whether each message is sent in an envelope.
    :ivar presence: whether clients are told of joins and leaves.
    :ivar gap: kind and data of the message for a gap, in place of the envelope's event.
    :ivar window_bits: window of permessage-deflate without context takeover (RFC 7692), None if
        frames are not compressed.
    """

    __slots__ = ("__weakref__", "_shared", "envelope", "gap", "presence", "window_bits")

    _made: ClassVar[WeakValueDictionary[tuple[object, ...], Frames]] = WeakValueDictionary()
    _lock: ClassVar[Any] = native_lock()  # guards adding to _made

    def __init__(
        self,
        envelope: bool,
        presence: bool,
        gap: tuple[str, bytes] | None,
        window_bits: int | None,
    ) -> None:
        self.envelope = envelope
        self.presence = presence
        self.gap = gap
        self.window_bits = window_bits
        # Encodings that differ only in the gap share all other frames.
        self._shared = self
        if gap is not None:
            self._shared = self.of(envelope=envelope, presence=presence, window_bits=window_bits)

    @classmethod
    def of(
        cls,
        *,
        envelope: bool = False,
        presence: bool = False,
        gap: tuple[str, bytes] | None = None,
        window_bits: int | None = None,
    ) -> Frames:
        """Return the encoding of these properties, always the same object."""
        key = (envelope, presence, gap, window_bits)
        made = cls._made.get(key)
        if made is None:
            new = cls(*key)
            with cls._lock:
                made = cls._made.setdefault(key, new)
        return made

    def encode(self, message: Message) -> bytes:
        """Return the frame of a message, made once; empty if these clients do not receive it."""
        shared = self if message.event == GAP else self._shared
        frame: bytes | None = message.encoded.get(shared)
        if frame is None:
            try:
                frame = shared._make(message)
            except ValueError:  # not UTF-8, from another program; other messages must still go out
                logger.exception("a message of channel %.200r cannot be sent", message.channel)
                frame = b""
            message.encoded[shared] = frame
        return frame

    def text(self, message: Message) -> str:
        """Return an envelope as text."""
        return _envelope(message).decode()

    def _make(self, message: Message) -> bytes:
        kind, data = message.kind, message.data
        if message.event == GAP and self.gap is not None:
            kind, data = self.gap
        elif message.event in (JOIN, LEAVE, PRESENCE) and not self.presence:
            return b""
        elif self.envelope:
            kind, data = TEXT_KIND, _envelope(message)
        elif message.event:
            return b""
        opcode = BINARY if kind == BINARY_KIND else TEXT
        if self.window_bits is not None:
            return build_deflated(opcode, data, self.window_bits)
        return build(opcode, data)


def gap_message(channel: str, position: Position) -> Message:
    """Return the event for clients that messages before a position were lost."""
    return Message(channel, TEXT_KIND, b"", position, event=GAP, transient=True)


def presence_message(channel: str, identities: list[str], position: Position) -> Message:
    """Return the event with a channel's members; :param position: its newest message's."""
    data = json.dumps(identities, ensure_ascii=False).encode()
    return Message(channel, TEXT_KIND, data, position, event=PRESENCE, transient=True)


def _envelope(message: Message) -> bytes:
    fields = {"channel": message.channel}
    if message.event == GAP or not message.transient:
        fields["position"] = str(message.position)
    if message.event:
        fields["event"] = message.event
    if message.event in (JOIN, LEAVE):
        fields["identity"] = message.data.decode()
    elif message.event == PRESENCE:
        return _with_json(fields, "identities", message.data)
    elif not message.event:
        if message.kind == JSON:
            return _with_json(fields, "data", message.data)
        if message.kind == BINARY_KIND:
            fields["data"] = b64encode(message.data).decode()
            fields["encoding"] = "base64"
        else:
            fields["data"] = message.data.decode()
    return json.dumps(fields, ensure_ascii=False).encode()


def _with_json(fields: dict[str, str], name: str, data: bytes) -> bytes:
    """Return a JSON object of the fields and one more, whose value is JSON already."""
    return b'%b, "%b": %b}' % (
        json.dumps(fields, ensure_ascii=False).encode()[:-1],
        name.encode(),
        data,
    )
