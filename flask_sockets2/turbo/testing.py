"""Test helpers for an application's streams: responses and broadcasts, without a browser or server.

::

    from flask_sockets2.turbo.testing import (
        STREAM_HEADERS, assert_no_broadcasts, assert_turbo_stream, capture_broadcasts
    )

    def test_a_todo_is_shown_to_all(app, client):
        with capture_broadcasts(app, "todos") as broadcasts:
            response = client.post("/todos", data={"task": "Milk"}, headers=STREAM_HEADERS)
        assert_turbo_stream(response, action="update", target="form")
        assert_turbo_stream(broadcasts, action="append", target="todos", count=1, text="Milk")

    def test_a_todo_without_text_is_not(app, client):
        with assert_no_broadcasts(app):
            client.post("/todos", data={"task": ""}, headers=STREAM_HEADERS)

The helpers need no pytest. The models are turbo-rails' ``Turbo::Broadcastable::TestHelper`` and
``Turbo::TestAssertions``. Differences: without ``count`` any number above 0 passes, and without a
name the broadcasts to all streams are captured.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from html.parser import HTMLParser
from threading import Lock
from typing import TYPE_CHECKING, Any, overload

from flask import Flask
from werkzeug.wrappers import Response

from ..admission.disconnects import DisconnectOrder
from ..application.answers import UserId
from ..application.state import state_of
from ..brokers.base import Draft, Position
from ..brokers.memory import MemoryBroker
from ..channels.sender import Sender
from ..exceptions import BrokerError
from .endpoint import EXTENSION
from .markup import MIMETYPE
from .stream_names import Part, stream_channel, user_channel

if TYPE_CHECKING:
    from .extension import Turbo

__all__ = [
    "STREAM_HEADERS",
    "Broadcast",
    "Broadcasts",
    "StreamAction",
    "assert_no_broadcasts",
    "assert_turbo_stream",
    "capture_broadcasts",
    "parse_streams",
]

STREAM_HEADERS = {"Accept": f"{MIMETYPE}, text/html, application/xhtml+xml"}
"""Headers with which turbo.js sends a form that is not ``GET``."""

_CHANNELS = "turbo:"
_SHOWN = 60  # characters of a text in an assertion's message


# -- markup ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StreamAction:
    """One ``<turbo-stream>``.

    :ivar action: action, such as ``append``; empty if the attribute is missing.
    :ivar target: id of an element, or None.
    :ivar targets: CSS selector, or None.
    :ivar content: HTML within the ``<template>``, as sent; None if there is no ``<template>``.
    :ivar text: text of that HTML without tags, with whitespace collapsed to single blanks.
    :ivar attributes: all attributes, unescaped: ``{"method": "morph"}``; an attribute without a
        value has ``""``.
    """

    action: str
    target: str | None
    targets: str | None
    content: str | None
    text: str
    attributes: dict[str, str] = field(hash=False)

    def __str__(self) -> str:
        attributes = "".join(f' {name}="{escape(v)}"' for name, v in self.attributes.items())
        text = self.text if len(self.text) <= _SHOWN else f"{self.text[:_SHOWN]}…"
        return f"<turbo-stream{attributes}>" + (f" {text!r}" if text else "")


def parse_streams(markup: str) -> list[StreamAction]:
    """Return the stream elements of markup in order, without elements nested in templates.

    :param markup: markup of a response or of a broadcast.
    :raises ValueError: if a ``<turbo-stream>`` or its ``<template>`` is not closed, because
        turbo.js would treat all following markup as its content.
    """
    parser = _StreamParser(markup)
    parser.feed(markup)
    parser.close()
    if parser.depth or parser.attributes is not None:
        raise ValueError(f"a <turbo-stream> or its <template> is not closed: {markup[-200:]!r}")
    return parser.found


class _StreamParser(HTMLParser):
    """Finds stream elements and the content of their templates."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self._markup = markup
        self._lines = [0, *(match.end() for match in re.finditer("\n", markup))]
        self.found: list[StreamAction] = []
        self.attributes: dict[str, str] | None = None  # of the element that is open
        self.depth = 0  # of templates within it
        self._start = 0
        self._content: str | None = None
        self._text: list[str] = []

    def _offset(self) -> int:
        line, column = self.getpos()
        return self._lines[line - 1] + column

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self.attributes is None:
            if tag == "turbo-stream":
                self.attributes = {}
                for name, value in attrs:
                    self.attributes.setdefault(name, value or "")  # the first, as in browsers
                self._content, self._text = None, []
        elif tag == "template":
            if not self.depth and self._content is None:
                self._start = self._offset() + len(self.get_starttag_text() or "")
            self.depth += 1
        elif self.depth:
            self._text.append(" ")

    def handle_endtag(self, tag: str) -> None:
        if self.attributes is None:
            return
        if tag == "template" and self.depth:
            self.depth -= 1
            if not self.depth and self._content is None:
                self._content = self._markup[self._start : self._offset()]
        elif tag == "turbo-stream" and not self.depth:
            attributes, self.attributes = self.attributes, None
            self.found.append(
                StreamAction(
                    attributes.get("action", ""),
                    attributes.get("target"),
                    attributes.get("targets"),
                    self._content,
                    " ".join("".join(self._text).split()),
                    attributes,
                )
            )
        elif self.depth:
            self._text.append(" ")

    def handle_data(self, data: str) -> None:
        if self.depth:
            self._text.append(data)


# -- broadcasts --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Broadcast:
    """One message to pages, sent by ``broadcast_…_to()`` or ``push()``.

    :ivar channel: ``turbo:all``, ``turbo:user:<id>`` or ``turbo:stream:<name>``.
    :ivar markup: stream elements of the message.
    :ivar key: key for ``coalesce``: slow clients skip all but the newest of a key; empty for none.
    """

    channel: str
    markup: str
    key: str = ""

    @cached_property
    def actions(self) -> tuple[StreamAction, ...]:
        """Parsed stream elements of the message.

        :raises ValueError: as :func:`parse_streams`.
        """
        return tuple(parse_streams(self.markup))

    def __str__(self) -> str:
        return f"to {self.channel}: {', '.join(map(str, self.actions)) or repr(self.markup)}"


class Broadcasts(Sequence[Broadcast]):
    """Captured broadcasts, the oldest first; threads may add more until the block ends."""

    def __init__(self, broadcasts: Iterable[Broadcast] = (), channel: str | None = None) -> None:
        self._broadcasts = list(broadcasts)  # any thread appends, none removes
        self._elsewhere: list[Broadcast] = []  # likewise
        self._channel = channel

    @overload
    def __getitem__(self, index: int) -> Broadcast: ...
    @overload
    def __getitem__(self, index: slice) -> Broadcasts: ...
    def __getitem__(self, index: int | slice) -> Broadcast | Broadcasts:
        if isinstance(index, slice):
            return Broadcasts(self._broadcasts[index], self._channel)
        return self._broadcasts[index]

    def __len__(self) -> int:
        return len(self._broadcasts)

    def __repr__(self) -> str:
        return f"<Broadcasts: {len(self)}{_listed(self)}>"

    @property
    def actions(self) -> list[StreamAction]:
        """Stream elements of all broadcasts, in order.

        :raises ValueError: as :func:`parse_streams`.
        """
        return [action for broadcast in list(self._broadcasts) for action in broadcast.actions]

    def of(self, *parts: Part, to: UserId | None = None) -> Broadcasts:
        """Return the broadcasts to one stream or to one user.

        :param parts: name of the stream, as for ``broadcast_…_to()``.
        :param to: id of the user, instead of a name.
        :raises TypeError: if the parts are not valid for a name.
        """
        channel = _channel_of(parts, to)
        return Broadcasts((b for b in list(self._broadcasts) if b.channel == channel), channel)

    def _add(self, draft: Draft) -> None:
        if not draft.channel.startswith(_CHANNELS):
            return  # the application's own channels
        broadcast = Broadcast(draft.channel, draft.data.decode(), draft.key)
        if self._channel in (None, draft.channel):
            self._broadcasts.append(broadcast)
        else:
            self._elsewhere.append(broadcast)


@contextmanager
def capture_broadcasts(
    app: Flask | Turbo, *parts: Part, to: UserId | None = None
) -> Iterator[Broadcasts]:
    """Capture broadcasts and pushes within the block, from all threads of this process.

    ::

        with capture_broadcasts(turbo, "room", room.id) as broadcasts:
            client.post("/rooms/1/messages", data={"text": "Hello"})
        assert [action.target for action in broadcasts.actions] == ["messages"]

    :param app: the application, or a ``Turbo``, which captures from all its applications.
    :param parts: name of one stream, as for ``broadcast_…_to()``; without a name all broadcasts
        are captured, and all pushes.
    :param to: id of a user, instead of a name, to capture pushes to that user.
    :returns: broadcasts captured so far, which you can also read within the block.
    :raises RuntimeError: if there is no application with Turbo.
    :raises TypeError: if the parts are not valid for a name, or ``app`` is something else.

    With ``memory://``, connected pages and test clients also receive the messages. With Redis no
    message is published, so that a test needs no Redis and does not disturb one.
    """
    channel = _channel_of(parts, to) if parts or to is not None else None
    captured = Broadcasts(channel=channel)
    apps = _apps_of(app)
    for each in apps:
        _Capture.open(each, captured)
    try:
        yield captured
    finally:
        for each in apps:
            _Capture.close_one(each, captured)


@contextmanager
def assert_no_broadcasts(
    app: Flask | Turbo, *parts: Part, to: UserId | None = None
) -> Iterator[None]:
    """Assert that the block broadcasts and pushes no message.

    :param app: as for :func:`capture_broadcasts`; likewise ``parts`` and ``to``.
    :raises AssertionError: if there were messages, which the error lists, at the end of the block.
    """
    __tracebackhide__ = True
    with capture_broadcasts(app, *parts, to=to) as broadcasts:
        yield
    if broadcasts:
        name = f" to {broadcasts._channel}" if broadcasts._channel else ""
        raise AssertionError(
            f"expected no broadcasts{name}, got {len(broadcasts)}" + _listed(broadcasts)
        )


def _channel_of(parts: tuple[Part, ...], to: UserId | None) -> str:
    if to is None:
        return stream_channel(*parts)
    if parts:
        raise TypeError("give either the name of a stream or to=")
    return user_channel(to)


def _apps_of(app: Flask | Turbo) -> list[Flask]:
    if isinstance(app, Flask):
        apps = [app] if EXTENSION in app.extensions else []
    elif hasattr(app, "sock"):
        apps = app.sock._served() if app.sock is not None else []
    else:
        raise TypeError(f"expected a Flask application or its Turbo, got {type(app).__name__}")
    if not apps:
        raise RuntimeError("there is no application with Turbo; call turbo.init_app(app) first")
    return apps


class _Capture(Sender):
    """Sends messages of an application, and records each message for all open captures.

    If other processes share the broker, a memory broker replaces it. Each refresh is sent at once,
    so that no test waits for a combined one.
    """

    combines = False
    _lock = Lock()  # guards each publisher's _sender, and the lists of captures

    def __init__(self, replaced: Sender) -> None:
        broker = replaced.broker
        super().__init__(MemoryBroker("memory://", broker.options) if broker.shared else broker)
        self._replaced = replaced
        self._sender = copy(replaced)
        self._sender.broker = self.broker
        self._captured: list[Broadcasts] = []

    @classmethod
    def open(cls, app: Flask, captured: Broadcasts) -> None:
        publisher = state_of(app).publisher
        with cls._lock:
            capture = publisher._sender
            if not isinstance(capture, _Capture):
                capture = publisher._sender = cls(capture)
            capture._captured = [*capture._captured, captured]

    @classmethod
    def close_one(cls, app: Flask, captured: Broadcasts) -> None:
        publisher = state_of(app).publisher
        with cls._lock:
            capture = publisher._sender
            assert isinstance(capture, _Capture)
            capture._captured = [each for each in capture._captured if each is not captured]
            if not capture._captured:
                publisher._sender = capture._replaced

    def send(self, drafts: Sequence[Draft]) -> list[Position]:
        positions = self._sender.send(drafts)
        for captured in self._captured:
            for draft in drafts:
                captured._add(draft)
        return positions

    def failed(self, exc: BrokerError, channels: Sequence[str]) -> list[Position]:
        return self._sender.failed(exc, channels)

    def disconnect(self, order: DisconnectOrder) -> None:
        self._sender.disconnect(order)

    def close(self) -> None:
        self._sender.close()


# -- assertions --------------------------------------------------------------------------------


def assert_turbo_stream(
    streams: Response | Broadcasts | Broadcast | str,
    *,
    action: str | None = None,
    target: str | None = None,
    targets: str | None = None,
    count: int | None = None,
    text: str | re.Pattern[str] | None = None,
) -> list[StreamAction]:
    """Assert that there is a matching stream element; the error lists the elements found.

    ::

        assert_turbo_stream(response, action="append", target="todos", text="Milk")

    :param streams: response with the MIME type of streams, or broadcasts, or markup.
    :param action: action, such as ``append``.
    :param target: id of the target.
    :param targets: CSS selector of the targets.
    :param count: exact number of matching elements, 0 for none; by default at least one.
    :param text: string or pattern to find in the text of the content, whose whitespace is
        collapsed to single blanks.
    :returns: matching elements.
    :raises AssertionError: if the number of matching elements is another.
    """
    __tracebackhide__ = True
    actions = _actions_of(streams)
    found = [
        each
        for each in actions
        if (action is None or each.action == action)
        and (target is None or each.target == target)
        and (targets is None or each.targets == targets)
        and (text is None or _has(each.text, text))
    ]
    if len(found) == count or (count is None and found):
        return found
    wanted = {"action": action, "target": target, "targets": targets}
    named = "".join(f' {name}="{value}"' for name, value in wanted.items() if value is not None)
    with_text = "" if text is None else f" with the text {getattr(text, 'pattern', text)!r}"
    raise AssertionError(
        f"expected {'at least 1' if count is None else count} <turbo-stream{named}>{with_text}, "
        f"got {len(found)}; there {_are(actions)}{_listed(actions)}"
        + (_hint(streams) if isinstance(streams, Broadcasts) else "")
    )


def _actions_of(streams: Any) -> list[StreamAction]:
    __tracebackhide__ = True
    if isinstance(streams, Broadcasts | Broadcast):
        return list(streams.actions)
    if isinstance(streams, str):
        return parse_streams(streams)
    if not isinstance(streams, Response):
        raise TypeError(f"expected an answer, broadcasts or markup, got {type(streams).__name__}")
    if streams.mimetype != MIMETYPE:
        raise AssertionError(
            f"expected an answer of type {MIMETYPE}, got {streams.mimetype or 'none'} with status "
            f"{streams.status_code}; does the view ask turbo.can_stream(), and does the request "
            "have headers=STREAM_HEADERS?"
        )
    return parse_streams(streams.get_data(as_text=True))


def _has(text: str, wanted: str | re.Pattern[str]) -> bool:
    if isinstance(wanted, str):
        return " ".join(wanted.split()) in text
    return wanted.search(text) is not None


def _are(actions: Sequence[Any]) -> str:
    return "is 1" if len(actions) == 1 else f"are {len(actions)}"


def _listed(things: Iterable[Any]) -> str:
    return "".join(f"\n  {thing}" for thing in things)


def _hint(broadcasts: Broadcasts) -> str:
    if not broadcasts._elsewhere:
        return ""
    return f"\nelsewhere than {broadcasts._channel}:{_listed(broadcasts._elsewhere)}"
