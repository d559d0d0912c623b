"""What clients of channels were promised, checked against what was recorded.

A pure function over two records: what was published, and what each client saw. The promises:

- Since its first subscription to a channel a client has seen each acknowledged message of it once,
  in the order of positions, or was told of a gap where some are missing.
- Offsets are 1, 2, 3 and so on within an epoch; another epoch begins anew, and that nothing of the
  one before is missing is known only to who has seen its newest message.
- A gap is told once for each loss.
- A client that is connected at the end is level with the newest message.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["GAP", "MESSAGE", "SUBSCRIBED", "Event", "Fault", "Record", "Sent", "check"]

SUBSCRIBED, MESSAGE, GAP = "subscribed", "message", "gap"


class Sent(NamedTuple):
    """A message that was published.

    :ivar publisher: who published it, under which `serial` number.
    :ivar epoch: of its position, None where publishing raised: nobody knows what became of it.
    """

    channel: str
    publisher: int
    serial: int
    epoch: str | None
    offset: int


class Event(NamedTuple):
    """What a client saw of one channel.

    :ivar kind: ``SUBSCRIBED`` for its first subscription, ``MESSAGE`` or ``GAP``.
    :ivar channel: that the message says it was published to.
    """

    kind: str
    epoch: str
    offset: int
    channel: str = ""
    publisher: int = 0
    serial: int = 0


@dataclass
class Record:
    """One client and one channel that it wants.

    :ivar connected: it was, at the end.
    """

    client: str
    channel: str
    events: list[Event] = field(default_factory=list)
    connected: bool = True


class Fault(NamedTuple):
    """A promise that was broken.

    :ivar kind: ``lost``, ``doubled``, ``order``, ``foreign``, ``altered``, ``needless gap`` or
        ``behind``.
    """

    kind: str
    client: str
    channel: str
    text: str


def check(
    sent: Sequence[Sent], records: Iterable[Record], *, needless_gaps: int = 0
) -> list[Fault]:
    """Return what is wrong.

    :param sent: in the order in which it was acknowledged.
    :param needless_gaps: how many a client may be told for one channel.
    """
    logs = {channel: _Log() for channel in {message.channel for message in sent}}
    for message in sent:
        logs[message.channel].add(message)
    faults: list[Fault] = []
    for record in records:
        log = logs.get(record.channel) or _Log()
        for kind, text in _Reader(log, record, needless_gaps).faults():
            faults.append(Fault(kind, record.client, record.channel, text))
    return faults


class _Log:
    """What is known of one channel."""

    def __init__(self) -> None:
        self.epochs: dict[str, int] = {}  # number of each, in their order
        self.newest: dict[str, int] = {}  # acknowledged offset of each
        self.order: list[str] = []
        #: What is at a position: as acknowledged, else as the first client saw it.
        self.contents: dict[tuple[str, int], tuple[int, int]] = {}
        self.positions: dict[tuple[int, int], tuple[str, int]] = {}
        self.unknown: set[tuple[int, int]] = set()

    def add(self, message: Sent) -> None:
        name = message.publisher, message.serial
        if message.epoch is None:
            self.unknown.add(name)
            return
        if message.epoch not in self.epochs:
            self.epochs[message.epoch] = len(self.order)
            self.order.append(message.epoch)
        self.newest[message.epoch] = max(self.newest.get(message.epoch, 0), message.offset)
        self.contents[message.epoch, message.offset] = name
        self.positions[name] = message.epoch, message.offset

    def between(self, epoch: str, other: str) -> list[str]:
        """Epochs with acknowledged messages between two others."""
        if epoch not in self.epochs or other not in self.epochs:
            return []
        return self.order[self.epochs[epoch] + 1 : self.epochs[other]]

    def is_before(self, epoch: str, other: str) -> bool:
        known = epoch in self.epochs and other in self.epochs
        return known and self.epochs[epoch] < self.epochs[other]


class _Reader:
    """Reads what one client saw of one channel."""

    def __init__(self, log: _Log, record: Record, needless_gaps: int) -> None:
        self._log = log
        self._record = record
        self._needless_gaps = needless_gaps
        self._last: tuple[str, int] | None = None
        self._seen: Counter[tuple[int, int]] = Counter()
        self._needless = 0

    def faults(self) -> Iterator[tuple[str, str]]:
        for event in self._record.events:
            if event.kind == SUBSCRIBED:
                if self._last is not None:
                    yield "order", f"subscribed for the first time after {self._at()}"
            elif event.kind == GAP:
                yield from self._gap(event)
            else:
                yield from self._message(event)
            self._last = event.epoch, event.offset
        if self._needless > self._needless_gaps:
            yield "needless gap", f"told {self._needless} times, though nothing was missing"
        if self._record.connected:
            yield from self._end()

    def _at(self) -> str:
        return "the beginning" if self._last is None else f"{self._last[0]}-{self._last[1]}"

    def _gap(self, event: Event) -> Iterator[tuple[str, str]]:
        here = event.epoch, event.offset
        if self._last is None:
            yield "order", f"a gap at {here} before the first subscription"
        elif here == self._last:
            self._needless += 1
        elif event.epoch == self._last[0] and event.offset < self._last[1]:
            yield "order", f"a gap at {here} after {self._at()}"
        elif self._log.is_before(event.epoch, self._last[0]):
            yield "order", f"a gap in an older epoch, {here}, after {self._at()}"

    def _message(self, event: Event) -> Iterator[tuple[str, str]]:
        name, here, log = (event.publisher, event.serial), (event.epoch, event.offset), self._log
        if event.channel != self._record.channel:
            yield "foreign", f"{name} at {here} was published to {event.channel}"
            return
        self._seen[name] += 1
        if self._seen[name] > 1:
            yield "doubled", f"{name} came {self._seen[name]} times, at last at {here}"
        known = log.contents.setdefault(here, name)
        if known != name:
            yield "altered", f"{name} came at {here}, where {known} is"
        elif name in log.positions and log.positions[name] != here:
            yield "altered", f"{name} came at {here}, and is at {log.positions[name]}"
        elif name not in log.positions and name not in log.unknown:
            yield "altered", f"{name} at {here} was never published"
        if self._last is None:
            yield "order", f"a message at {here} before the first subscription"
            return
        yield from self._follows(here)

    def _follows(self, here: tuple[str, int]) -> Iterator[tuple[str, str]]:
        """See that a position follows the last one."""
        assert self._last is not None
        log, (epoch, offset) = self._log, self._last
        if here[0] == epoch:
            if here[1] <= offset:
                yield "order", f"{here} came after {self._at()}"
            elif here[1] != offset + 1:
                yield "lost", f"nothing told between {self._at()} and {here}"
        elif log.is_before(here[0], epoch):
            yield "order", f"{here}, of an older epoch, came after {self._at()}"
        elif log.newest.get(epoch, 0) > offset:
            yield "lost", f"the epoch of {self._at()} went on to {log.newest[epoch]}, then {here}"
        elif here[1] != 1 or log.between(epoch, here[0]):
            yield "lost", f"nothing told between {self._at()} and {here}"

    def _end(self) -> Iterator[tuple[str, str]]:
        log = self._log
        if self._last is None:
            yield "behind", "it is connected and has never been subscribed"
        elif log.order:
            newest = log.order[-1], log.newest[log.order[-1]]
            level = self._last[0] == newest[0] and self._last[1] >= newest[1]
            if not level:
                yield "behind", f"the newest message is at {newest}, and it is at {self._at()}"
