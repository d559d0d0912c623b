"""The interpretation of an event stream, as WHATWG HTML §9.2.6 has it, step by step."""

from __future__ import annotations

import re
from typing import NamedTuple


class Dispatched(NamedTuple):
    type: str
    data: str
    last_id: str


def dispatched(stream: bytes) -> tuple[list[Dispatched], int | None]:
    """Return the events of a whole stream and the reconnection time, None where none was set."""
    text = stream.decode("utf-8", "replace").removeprefix("\ufeff")
    lines = re.split("\r\n|\n|\r", text)
    events: list[Dispatched] = []
    retry: int | None = None
    type = data = last_id = ""
    for line in lines[:-1]:  # what follows the last line end is no line yet
        if not line:
            if data:
                events.append(Dispatched(type or "message", data.removesuffix("\n"), last_id))
            type = data = ""
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            type = value
        elif field == "data":
            data += value + "\n"
        elif field == "id" and "\0" not in value:
            last_id = value
        elif field == "retry" and re.fullmatch("[0-9]+", value):
            retry = int(value)
    return events, retry
