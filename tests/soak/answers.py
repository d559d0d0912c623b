"""What clients of other features were promised, checked against what they noted.

- An echo: each message comes back once and in order, as long as its connection lives; all of them
  before the end where the client closes in good order.
- A page is answered, whole and as it should be. A proxy may say 502 to 504, and a connection may
  break, only while something was done to the servers that explains it.
- Who is there, as a client knows it in the end, is who is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .checker import Fault

__all__ = [
    "Answer",
    "Echoes",
    "Room",
    "Window",
    "check_answers",
    "check_echoes",
    "check_rooms",
]

_BROKEN = frozenset({"502", "503", "504", "broken", "dropped", "refused"})
"""How a page may end while a server is ill-treated."""


@dataclass
class Echoes:
    """One connection that echoes.

    :ivar sent: how many messages, whose serial numbers begin with 0.
    :ivar came: the serial number of each that came, None for what was none of them.
    :ivar overdue: some did not come in time, or not before an end in good order.
    """

    client: str
    sent: int = 0
    came: list[int | None] = field(default_factory=list)
    overdue: bool = False

    @property
    def missing(self) -> int:
        return self.sent - len(self.came)


class Answer(NamedTuple):
    """A page that was not answered as it should be.

    :ivar outcome: a status, how its connection ended, or what is wrong with its body.
    :ivar is_relayed: it was asked for over the network that is cut now and then.
    """

    client: str
    path: str
    outcome: str
    begun: float
    ended: float
    is_relayed: bool


class Window(NamedTuple):
    """A time in which something was done that pages may suffer from.

    :ivar relayed_only: only those over the network that is cut.
    """

    begun: float
    ended: float
    relayed_only: bool = False


@dataclass
class Room:
    """A channel, who is there, and who each client thinks is."""

    channel: str
    present: set[str]
    views: dict[str, set[str]]

    @property
    def agrees(self) -> bool:
        return all(view == self.present for view in self.views.values())


def check_echoes(connections: Iterable[Echoes]) -> list[Fault]:
    return [
        Fault(kind, echoes.client, "echo", text)
        for echoes in connections
        for kind, text in _echo_faults(echoes)
    ]


def _echo_faults(echoes: Echoes) -> Iterator[tuple[str, str]]:
    due, seen = 0, set()
    for serial in echoes.came:
        if serial is None or serial >= echoes.sent:
            yield "altered", f"got what it never sent, where {due} was due"
        elif serial in seen:
            yield "doubled", f"{serial} came twice"
        elif serial < due:
            yield "order", f"{serial} came when {due} was due"
        elif serial > due:
            yield "lost", f"{serial} came when {due} was due"
        if serial is not None:
            seen.add(serial)
            due = max(due, serial + 1)
    if echoes.overdue and due < echoes.sent:
        yield "lost", f"{due} to {echoes.sent - 1} did not come"


def check_answers(answers: Iterable[Answer], windows: Sequence[Window]) -> list[Fault]:
    """Return those that nothing explains.

    :param windows: what was done, and when.
    """
    return [
        Fault("answer", answer.client, answer.path, f"{answer.outcome} at {answer.begun:.1f}")
        for answer in answers
        if not _is_explained(answer, windows)
    ]


def _is_explained(answer: Answer, windows: Sequence[Window]) -> bool:
    return answer.outcome in _BROKEN and any(
        window.begun <= answer.ended
        and answer.begun <= window.ended
        and (answer.is_relayed or not window.relayed_only)
        for window in windows
    )


def check_rooms(rooms: Iterable[Room]) -> list[Fault]:
    faults = []
    for room in rooms:
        for client, view in room.views.items():
            for name in sorted(room.present - view):
                faults.append(Fault("absent", client, room.channel, f"{name} is there, unseen"))
            for name in sorted(view - room.present):
                faults.append(
                    Fault("ghost", client, room.channel, f"{name} is seen, and not there")
                )
    return faults
