"""Message: one event, as Flask-SSE writes it (WHATWG HTML §9.2.6).

Differences from Flask-SSE, which lost or mangled the following:

- Only CR, LF and both end a line: U+2028 and its kin stay within theirs.
- Empty data is an event with empty data, and not none.
- A space at the beginning of a line arrives: one more is sent, which the browser takes away.
- 0 counts as an id and as a time, and the id may be any text.
- Line breaks and NUL in type and id are refused, since they would be fields of their own, or make
  the browser ignore the id; so is a ``retry`` that is no whole number, which browsers ignore.
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
    """The lines of an event, each with its end.

    :ivar body: ``event`` and ``data``.
    :ivar id: of the publisher's own; empty without.
    :ivar retry: empty without.
    """

    body: bytes
    id: bytes
    retry: bytes


class Message:
    """Data that is published as an event.

    :param data: text, or what becomes JSON.
    :param type: of the event, for ``addEventListener``; None for ``message``.
    :param id: what the browser has as ``event.lastEventId``.
    :param retry: milliseconds after which a browser that has lost the stream comes back.
    :raises ValueError: when type or id hold a line break or NUL, or retry is no whole number.

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
        """Return the message of what was published: JSON of :meth:`to_dict`, or any other.

        :raises ValueError: when it is neither JSON nor an event.
        """
        try:
            found = json.loads(data)
        except RecursionError as exc:
            raise ValueError("JSON that is nested too deeply is no event") from exc
        if not isinstance(found, Mapping) or "data" not in found:
            return cls(found)
        return cls(found["data"], *(found.get(name) for name in _NAMES))

    def to_dict(self) -> dict[str, Any]:
        """Return what is published: the data, and the others where they are given."""
        return {"data": self.data, **self._others()}

    def _others(self) -> dict[str, Any]:
        values = ((name, getattr(self, name)) for name in _NAMES)
        return {name: value for name, value in values if _given(value)}

    def fields(self, dumps: Callable[[Any], str]) -> Fields:
        """Return the lines of the event.

        :param dumps: makes JSON of data that is no text.
        :raises ValueError: when something of it cannot be encoded.
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

    __hash__ = None  # type: ignore[assignment]  # data may be anything


def lines_of(name: str, value: Any) -> str:
    """Return a field of an event, in as many lines as its value has."""
    return "".join(
        f"{name}:{' ' if line.startswith(' ') else ''}{line}\n"
        for line in _LINE_END.split(str(value))
    )


def _given(value: Any) -> bool:
    return value is not None and value is not False and value != ""
