"""Publisher: publish to channels from anywhere, with or without an application.

From Celery, cron or a script::

    from flask_sockets2 import Publisher

    with Publisher("redis://localhost:6379/0") as publisher:
        publisher.publish("news", {"headline": "It rains"})
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from types import TracebackType
from typing import Any

from flask import Flask
from flask.json.provider import DefaultJSONProvider

from ..admission.disconnects import DisconnectOrder, UserId
from ..brokers.base import (
    BINARY,
    JSON,
    MAX_MESSAGE_SIZE,
    RESERVED,
    TEXT,
    Broker,
    BrokerOptions,
    Draft,
    Position,
    Receiver,
)
from ..brokers.registry import open_broker
from ..exceptions import BrokerError
from .sender import Sender

__all__ = ["Publisher", "check_channel", "dumps_of", "encode", "json_of", "utf8"]

_DEFAULTS = BrokerOptions()
_MAX_CHANNEL = _MAX_KEY = 1024  # bytes of UTF-8
_CHUNK = 100  # messages in one round trip
_CHUNK_BYTES = 65536  # bytes of data, after which a round trip takes no further message

_UNSORTABLE = "keys of a dict are of several types, which app.json.sort_keys cannot sort"

Dumps = Callable[[Any], str]


def _dumps(data: Any) -> str:
    """Return JSON as Flask makes it by default: dates, decimals, UUIDs and dataclasses, too."""
    return json.dumps(
        data, default=DefaultJSONProvider.default, ensure_ascii=False, allow_nan=False
    )


def dumps_of(app: Flask) -> Dumps:
    """Return an application's JSON serializer; ``NaN`` and infinity are refused for browsers."""

    def dumps(data: Any) -> str:
        provider = app.json
        if isinstance(provider, DefaultJSONProvider):
            return provider.dumps(data, allow_nan=False)
        return provider.dumps(data)

    return dumps


class Publisher:
    """Publishes messages to channels, from any program that can reach the broker.

    :param url: URL of the broker, ``redis://…`` for example.
    :param prefix: prefix of all names on the broker, as ``SOCKETS_CHANNEL_PREFIX``.
    :param history_size: messages kept for each channel, as ``SOCKETS_HISTORY_SIZE``.
    :param history_ttl: seconds that messages are kept, as ``SOCKETS_HISTORY_TTL``.
    :param max_message_size: bytes of one message, as ``SOCKETS_MAX_MESSAGE_SIZE``.
    :param dumps: serializer to JSON for data other than text and bytes; Flask's by default.
    :param receiver: receiver of the :attr:`broker`'s messages, if the program also subscribes.
    :raises BrokerError: if there is no broker for the URL.

    Nothing is opened before the first use. Any number of threads and greenlets may share a
    publisher, and so may the children of a fork.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = _DEFAULTS.prefix,
        history_size: int = _DEFAULTS.history_size,
        history_ttl: float = _DEFAULTS.history_ttl,
        max_message_size: int = MAX_MESSAGE_SIZE,
        dumps: Dumps = _dumps,
        receiver: Receiver | None = None,
    ) -> None:
        options = BrokerOptions(history_size, history_ttl=history_ttl, prefix=prefix)
        broker = open_broker(url, options, receiver)
        if not broker.shared:
            raise BrokerError(
                f"{url.partition('://')[0]}:// reaches no other process, so nobody would hear; use "
                "a redis:// URL, the same as SOCKETS_BROKER_URL of the application"
            )
        self._sender = Sender(broker)
        self._max_message_size = max_message_size
        self._dumps = dumps

    @classmethod
    def _of(cls, sender: Sender, max_message_size: int, dumps: Dumps) -> Publisher:
        """Return a publisher that sends through a given sender, with any broker."""
        new = cls.__new__(cls)
        new._sender, new._max_message_size, new._dumps = sender, max_message_size, dumps
        return new

    def publish(
        self, channel: str, data: Any, *, key: str = "", transient: bool = False
    ) -> Position:
        """Publish a message to all subscribers of a channel, in all processes.

        :param channel: any name of at most 1,024 bytes.
        :param data: ``str``, bytes, or data for JSON.
        :param key: of two messages with the same key, a slow client gets only the newer if its
            policy is ``coalesce``.
        :param transient: whether only present subscribers get the message: no history.
        :returns: the message's position in the channel.
        :raises BrokerError: if the broker cannot be reached.
        :raises TypeError: if the data cannot become a message.
        :raises ValueError: if the channel's name is invalid, or the message is too big.
        """
        draft = self._draft(channel, data, key, transient)
        try:
            return self._sender.send([draft])[0]
        except BrokerError as exc:
            return self._sender.failed(exc, [channel])[0]

    def publish_many(self, messages: Iterable[tuple[str, Any]], *, key: str = "") -> list[Position]:
        """Publish many messages in few round trips.

        :param messages: pairs of a channel and the data, in the order to publish.
        :param key: key of every message, as for :meth:`publish`.
        :returns: the position of each message.
        :raises BrokerError: if the broker cannot be reached; the first ones may be published then.
        """
        sender = self._sender
        positions: list[Position] = []
        drafts = (self._draft(channel, data, key) for channel, data in messages)
        while chunk := list(islice(drafts, 1)):
            size = len(chunk[0].data)
            for draft in drafts:
                chunk.append(draft)
                size += len(draft.data)
                if len(chunk) >= _CHUNK or size >= _CHUNK_BYTES:
                    break
            try:
                positions += sender.send(chunk)
            except BrokerError as exc:
                positions += sender.failed(exc, [draft.channel for draft in chunk])
                # The rest is not tried: each attempt may take a full timeout.
                positions += sender.failed(exc, [draft.channel for draft in drafts])
        return positions

    def position(self, channel: str) -> Position:
        """Return the position of a channel's newest message, to put into a page.

        If a client subscribes with ``since`` set to that position, the client gets every message
        published afterwards.
        """
        return self.broker.position(check_channel(channel))

    def positions(self, channels: Sequence[str]) -> list[Position]:
        """Return the newest position of each channel, in one round trip if possible."""
        return self.broker.positions([check_channel(channel) for channel in channels])

    def subscribers(self, channel: str) -> int:
        """Return how many connections subscribe to a channel, in all processes."""
        return self.broker.subscribers(check_channel(channel))

    def present(self, channel: str) -> list[str]:
        """Return the identities present in a channel, in all processes, sorted."""
        return self.broker.present(check_channel(channel))

    def disconnect(self, *, user: UserId, code: int = 1008, reason: str = "") -> None:
        """Close the WebSockets and end the event streams of a user, in all processes.

        The call returns when the order has been sent; the connections end a moment later. Clients
        may reconnect and are authenticated again, so revoke the user's permission first.

        :param user: id as returned by ``@sockets.user_id`` or ``@turbo.user_id``, or its text.
        :param code: close code for the WebSockets: 1008, or 4000 to 4999 for codes of your own.
        :param reason: at most 123 bytes of text.
        :raises BrokerError: if the broker cannot be reached; the user may still have connections,
            so call again.
        :raises TypeError: if the id is not a ``str``, ``int`` or ``UUID``.
        :raises ValueError: if there is no user, or a close frame cannot carry code and reason.
        """
        self._sender.disconnect(DisconnectOrder.of(user, code, reason))

    def close(self) -> None:
        """Close the connections to the broker; can be repeated."""
        self._sender.close()

    def __enter__(self) -> Publisher:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def broker(self) -> Broker:
        """The broker, with its own interface."""
        return self._sender.broker

    def _draft(self, channel: str, data: Any, key: str = "", transient: bool = False) -> Draft:
        check_channel(channel)
        if key:
            _check_key(key)
        kind, payload = encode(data, self._dumps, f"channel {channel!r:.200}")
        if len(payload) > self._max_message_size:
            raise ValueError(
                f"a message of {len(payload)} bytes is over the limit of {self._max_message_size}; "
                "publish where it can be fetched, or raise SOCKETS_MAX_MESSAGE_SIZE"
            )
        return Draft(channel, kind, payload, key, transient=transient)


def check_channel(name: Any) -> str:
    """Check the name of a channel and return the name.

    :raises TypeError: if the name is not text.
    :raises ValueError: if the name is empty, too long, reserved or cannot be encoded.
    """
    if not isinstance(name, str):
        raise TypeError(f"a channel's name is a str, got {type(name).__name__}")
    size = len(utf8(name, "a channel's name"))
    if not 0 < size <= _MAX_CHANNEL:
        raise ValueError(f"a channel's name is 1 to {_MAX_CHANNEL} bytes long, got {size}")
    if name.startswith(RESERVED):
        raise ValueError(f"a channel's name cannot begin with {RESERVED!r}: such are the package's")
    return name


def _check_key(key: Any) -> None:
    if not isinstance(key, str):
        raise TypeError(f"key= is a str, got {type(key).__name__}; use str(…)")
    if len(utf8(key, "a key")) > _MAX_KEY:
        raise ValueError(f"a key is at most {_MAX_KEY} bytes long, got {len(key.encode())}")


def utf8(text: str, what: str) -> bytes:
    """Return a text as UTF-8.

    :param what: name of the text in error messages.
    :raises ValueError: if the text holds half a surrogate pair.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as exc:
        raise ValueError(f"{what} cannot hold half a surrogate pair") from exc


def encode(data: Any, dumps: Dumps, place: str) -> tuple[str, bytes]:
    """Return the kind and the bytes of a message for data, as ``str``, bytes or JSON.

    :param place: destination of the data, for error messages.
    """
    if isinstance(data, str):
        return TEXT, utf8(data, f"the text for {place}")
    if isinstance(data, bytes | bytearray | memoryview):
        return BINARY, bytes(data)
    return JSON, utf8(json_of(data, dumps, place), f"the JSON for {place}")


def json_of(data: Any, dumps: Dumps, place: str) -> str:
    """Return data as JSON.

    :param place: destination of the data, for error messages.
    :raises TypeError: if the data holds a value of a type that JSON does not have.
    :raises ValueError: if the data holds itself, too many levels, or a number that is not finite.
    """
    try:
        return dumps(data)
    except RecursionError as exc:
        error: Exception = exc
        reason = "it has too many levels"
    except (TypeError, ValueError) as exc:
        error = exc
        reason = _UNSORTABLE if str(exc).startswith("'<' not supported") else str(exc)
    kind = TypeError if isinstance(error, TypeError) else ValueError
    raise kind(
        f"the {type(data).__name__} for {place} cannot become JSON: {reason}; use a dict with keys "
        "of str, list, str, int, finite float, bool or None; Flask adds date, Decimal and UUID"
    ) from error
