"""The ledger of a run: what was done and published, what arrived, and what is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from . import publisher
from .answers import Window, check_answers, check_echoes, check_rooms
from .checker import Fault, check
from .resources import Sample, judge, together, trend
from .swarm import Seen

if TYPE_CHECKING:
    from .run import Options

__all__ = ["Report"]

MASTER = "master"


@dataclass
class Report:
    """What came of it.

    :ivar done: to the servers, and ``windows`` in which pages may have suffered for it.
    :ivar samples: of each process of the server.
    :ivar elders: names of the workers that were there in the end.
    :ivar left: what was left behind when all had gone.
    :ivar descriptors: the most of a worker, before any client came and when all had gone.
    """

    options: Options
    seen: Seen
    published: publisher.Published
    done: Counter[str] = field(default_factory=Counter)
    windows: list[Window] = field(default_factory=list)
    recovered_in: float = 0.0
    log: str = ""
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    elders: list[str] = field(default_factory=list)
    left: list[Fault] = field(default_factory=list)
    descriptors: tuple[int, int] = (0, 0)

    def faults(self, needless_gaps: int = 0) -> list[Fault]:
        """What is wrong; see :func:`check` and ``answers.py``."""
        return [
            *check(self.published.sent, self.seen.records, needless_gaps=needless_gaps),
            *check_echoes(self.seen.echoes),
            *check_answers(self.seen.answers, self.windows),
            *check_rooms(self.seen.rooms),
            *(Fault("publish", "a worker", "", text) for text in self.published.problems),
            *self._grown(),
            *self.left,
        ]

    @property
    def tracebacks(self) -> int:
        """In the log of the server."""
        return self.log.count("Traceback (most recent call last)")

    def _grown(self) -> list[Fault]:
        clients, faults = sum(self.options.kinds.values()), []
        for name, samples, processes in self._watched():
            found = trend(samples)
            faults += judge(name, found, processes, clients) if found else []
        return faults

    def _watched(self) -> list[tuple[str, list[Sample], int]]:
        workers = [self.samples[name] for name in self.elders if name in self.samples]
        return [
            ("all workers", together(workers), len(workers)),
            ("the master", self.samples.get(MASTER, []), 1),
        ]

    def __str__(self) -> str:
        sent, counts = self.published.sent, dict(self.seen.counts)
        acknowledged = sum(message.epoch is not None for message in sent)
        epochs = len({message.epoch for message in sent})
        unexplained = len(check_answers(self.seen.answers, self.windows))
        rows: dict[str, object] = {
            "seed": self.options.seed,
            "seconds": f"{self.options.seconds:.0f}",
            "clients": _listed(self.options.kinds),
            "messages acknowledged": acknowledged,
            "messages of unknown outcome": len(sent) - acknowledged,
            "by kind of channel": _listed(_by_kind(self.published)),
            "epochs of channels": epochs,
            "deliveries": self.seen.deliveries.total(),
            "by kind": _listed(self.seen.deliveries),
            "connections": counts.pop("connections", 0),
            "connections with a replay": counts.pop("replays", 0),
            "messages replayed": counts.pop("messages replayed", 0),
            "gaps told": counts.pop("gaps told", 0),
            "echoes": counts.pop("echoes", 0),
            "pages answered": counts.pop("pages answered", 0),
            "pages not answered, explained": len(self.seen.answers) - unexplained,
            "Turbo pages loaded": counts.pop("pages loaded", 0),
            "done to the servers": _listed(self.done),
            "how connections ended": _listed(counts),
            "worst catch-up": f"{self.seen.worst_catch_up:.2f} s",
            "worst delay of a live message": f"{self.seen.worst_delay:.2f} s",
            "longest publish": f"{self.published.longest:.2f} s",
            "all level after": f"{self.recovered_in:.2f} s",
            **self._memory(),
            "descriptors before and after": f"{self.descriptors[0]}, {self.descriptors[1]}",
            "left when all had gone": ", ".join(fault.text for fault in self.left) or "nothing",
            "processes of the server": len(self.samples),
            "tracebacks in the log": self.tracebacks,
        }
        return "\n".join(f"{name:32}{value}" for name, value in rows.items())

    def _memory(self) -> dict[str, object]:
        rows: dict[str, object] = {}
        for name, samples, _ in self._watched():
            rows[f"memory of {name}"] = trend(samples) or "not watched for long enough"
        for name in self.elders:
            if found := trend(self.samples.get(name, [])):
                rows[f"  of {name}"] = found
        return rows


def _by_kind(published: publisher.Published) -> Counter[str]:
    return Counter(message.channel.partition(":")[0] for message in published.sent)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {counts[name]}" for name in sorted(counts)) or "nothing"
