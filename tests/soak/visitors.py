"""Visitors: they ask for pages, and are to be answered whatever others do."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from .answers import Answer
from .client import Client, get

if TYPE_CHECKING:
    from .swarm import Swarm

__all__ = ["Visitor"]

_PATHS = ("plain", "report", "hints")


class Visitor(Client):
    """Some ask the server itself, as a proxy that passes Early Hints would."""

    def __init__(self, swarm: Swarm, number: int) -> None:
        super().__init__(swarm, number)
        self._kind = _PATHS[number % len(_PATHS)]
        self.is_relayed = self._kind != "hints" and number % 2 == 0
        self._serial = 0
        self._begun = 0.0
        self._status = 0
        self._hinted = False
        self._body = b""
        self.settled = True

    @property
    def port(self) -> int:
        return self.swarm.plan.direct if self._kind == "hints" else super().port

    def opening(self) -> bytes:
        self.settled = True  # it wants no connection that lasts
        self._serial += 1
        self._begun = time.monotonic()
        self._status, self._hinted, self._body = 0, False, b""
        path = "plain" if self._kind == "plain" else "report"
        lines = ["X-Early-Hints: 1", "Sec-Fetch-Mode: navigate"] if self._kind == "hints" else []
        return get(f"/{path}/{self._serial}", *lines)

    def take(self, kind: str, value: Any) -> None:
        if kind == "hint":
            self._hinted = "early.css" in value.get("link", "")
        elif kind == "status":
            self._status = value[0]
        elif kind == "body":
            self._body += value
        elif kind == "end":
            self._answered()

    def _answered(self) -> None:
        text = self._body.decode(errors="replace")
        first, last = (
            ("plain ", " end") if self._kind == "plain" else ("<!doctype html>", "</html>")
        )
        if self._status != 200:
            outcome = str(self._status)
        elif not (text.startswith(first) and text.endswith(last) and f" {self._serial} " in text):
            outcome = f"not the page that was asked for: {text[:80]!r}"
        elif self._hinted != (self._kind == "hints"):
            outcome = "with a response 103" if self._hinted else "without a response 103"
        else:
            outcome = ""
        self._note(outcome)
        self.lost("answered")

    def ended(self, why: str) -> None:
        if why not in ("answered", "left"):
            self._note("dropped" if why == "stream ended" else why)

    def _note(self, outcome: str) -> None:
        self.swarm.seen.counts["pages answered"] += not outcome
        if outcome:
            now, path = time.monotonic(), f"/{self._kind}"
            self.swarm.seen.answers.append(
                Answer(self.name, path, outcome, self._begun, now, self.is_relayed)
            )

    def lost(self, why: str) -> None:
        super().lost(why)
        self.settled = True
