"""Message: one event in Flask-SSE's format (WHATWG HTML §9.2.6).

Differences from Flask-SSE, which lost or mangled these values:

- Only CR, LF and CRLF end a line: U+2028 and similar characters stay within the line.
- Empty data makes an event with empty data, instead of no event.
- A space at the beginning of a line arrives: a second space is sent, and the browser strips one.
- 0 is a valid id and a valid ``retry``, and the id may be any text.
- Line breaks and NUL in type and id are refused: the browser would read a new field or ignore the
  id. A ``retry`` that is not a whole number is refused, because browsers ignore the field.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from uuid import UUID

from flask import json as flask_json

from ..channels.publisher import utf8

__all__ = ["Fields", "Message", "lines_of"]

_LINE_END = re.compile("\r\n|\r|\n")
_FORBIDDEN = re.compile("[\r\n\0]")
_NAMES = ("type", "id", "retry")


class Fields(NamedTuple):
    """The encoded lines of an event, each with its line end.

    :ivar body: lines of ``event`` and ``data``.
    :ivar id: line of the publisher's id, empty if there is none.
    :ivar retry: line of ``retry``, empty if there is none.
    """

    body: bytes
    id: bytes
    retry: bytes


class Message:
    """An event to publish.

    :param data: text, or an object to serialize as JSON.
    :param type: event type, for ``addEventListener``; None for ``message``.
    :param id: id that the page reads as ``event.lastEventId``.
    :param retry: milliseconds that a browser waits before a reconnect.
    :raises ValueError: if type or id hold a line break or NUL, or if retry is not a whole number.

    ::

        str(Message({"a": 1}, type="example", id=5))  # 'event:example\\ndata:{"a": 1}\\nid:5\\n\\n'
    """

    def __init__(
        self,
        data: Any,
        type: str | None = None,
        id: str | int | UUID | None = None,
        retry: int | None = None,
    ) -> None:
        for name, value in (("type", type), ("id", id)):
            if _FORBIDDEN.search(str(value)):
                raise ValueError(
                    f"the {name} of an event is one line without NUL, for it would end there; put "
                    "the rest into the data"
                )
        if _given(retry) and not re.fullmatch("[0-9]+", str(retry)):
            raise ValueError(f"retry= is a whole number of milliseconds, got {retry!r}")
        self.data = data
        self.type = type
        self.id = id
        self.retry = retry

    @classmethod
    def of_payload(cls, data: bytes) -> Message:
        """Parse a published payload: JSON of :meth:`to_dict`, or any other JSON as the data.

        :raises ValueError: if the payload is not JSON or not a valid event.
        """
        try:
            found = json.loads(data)
        except RecursionError as exc:
            raise ValueError("JSON that is nested too deeply is no event") from exc
        if not isinstance(found, Mapping) or "data" not in found:
            return cls(found)
        return cls(found["data"], *(found.get(name) for name in _NAMES))

    def to_dict(self) -> dict[str, Any]:
        """Return the payload to publish: the data, with type, id and retry if they are set."""
        return {"data": self.data, **self._others()}

    def _others(self) -> dict[str, Any]:
        values = ((name, getattr(self, name)) for name in _NAMES)
        return {name: value for name, value in values if _given(value)}

    def fields(self, dumps: Callable[[Any], str]) -> Fields:
        """Return the encoded lines of the event.

        :param dumps: function that serializes data other than text as JSON.
        :raises ValueError: if a field cannot be encoded.
        """
        data = self.data if isinstance(self.data, str) else dumps(self.data)
        others = self._others()
        body = lines_of("data", data)
        if "type" in others:
            body = lines_of("event", others["type"]) + body
        id, retry = (lines_of(name, others[name]) if name in others else "" for name in _NAMES[1:])
        return Fields(*(utf8(text, "an event") for text in (body, id, retry)))

    def __str__(self) -> str:
        return b"".join((*self.fields(flask_json.dumps), b"\n")).decode()

    def __repr__(self) -> str:
        others = "".join(f", {name}={value!r}" for name, value in self._others().items())
        return f"{type(self).__name__}({self.data!r}{others})"

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, type(self))
            and self.data == other.data
            and all(getattr(self, name) == getattr(other, name) for name in _NAMES)
        )

    __hash__ = None  # type: ignore[assignment]  # data may be unhashable


def lines_of(name: str, value: Any) -> str:
    """Return a field of an event, with one line for each line of the value."""
    return "".join(
        f"{name}:{' ' if line.startswith(' ') else ''}{line}\n"
        for line in _LINE_END.split(str(value))
    )


def _given(value: Any) -> bool:
    return value is not None and value is not False and value != ""
