"""The results as pictures: a panel of bars for each scenario."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .pushers import BATCHES, FLOOR, FLOOR_C, PUSHERS, TURBO
from .pushers import TITLES as PUSH_TITLES
from .results import ECHOES, FLOOD, HANDSHAKES, IDLE, LISTENERS, Results, fanout
from .servers import ALL, OURS
from .tables import format_figure

BLUE, GREY, LIGHT = "#1f5fa8", "#9aa5b1", "#d5dae0"
COLUMNS = 3


@dataclass(frozen=True, slots=True)
class Panel:
    """The bars of one figure."""

    scenario: str
    title: str
    key: str


ECHO_PANELS = (
    *(Panel(echo.name, f"Echo, {echo.title}\nCPU µs per message", "cpu_us") for echo in ECHOES),
    Panel(HANDSHAKES, "Handshakes\na second", "per_second"),
    Panel(IDLE, "Memory\nKiB per idle connection", "kib"),
)
PUSH_PANELS = (
    Panel(fanout(100), "Broadcast to 100\nCPU µs per delivery", "cpu_us"),
    Panel(fanout(1000), "Broadcast to 1,000\nCPU µs per delivery", "cpu_us"),
    Panel(fanout(5000), "Broadcast to 5,000\nCPU µs per delivery", "cpu_us"),
    Panel(fanout(5000), "Broadcast to 5,000\nms from the first delivery to the last", "p50_ms"),
    Panel(FLOOD, "Messages back to back\nCPU µs per delivery", "cpu_us"),
    Panel(LISTENERS, "Memory\nKiB per listener", "kib"),
)
ECHO_TITLES = {peer.name: peer.title for peer in ALL}
OWN = frozenset(
    name for pusher in PUSHERS if pusher.name in (OURS, TURBO) for name in pusher.rows()
)
FLOORS = frozenset({FLOOR, FLOOR_C, *(peer.name for peer in ALL if not peer.parsed)})


def draw_echoes(path: Path, results: Results) -> None:
    """Write a PNG file of echoes, handshakes and idle connections."""
    _draw(path, results, ECHO_PANELS, ECHO_TITLES)


def draw_pushes(path: Path, results: Results) -> None:
    """Write a PNG file of broadcasts."""
    _draw(path, results, PUSH_PANELS, PUSH_TITLES)


def _draw(path: Path, results: Results, panels: Sequence[Panel], titles: dict[str, str]) -> None:
    """Write a PNG file; logarithmic where the figures are far apart; none where nothing is shown.

    :raises ImportError: there is no matplotlib.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [panel for panel in panels if panel.scenario in results.samples]
    if not panels:
        return
    rows = -(-len(panels) // COLUMNS)
    figure, grid = pyplot.subplots(
        rows, COLUMNS, figsize=(16, 4.5 * rows), layout="constrained", squeeze=False
    )
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        measured = results.samples[panel.scenario]
        shown = [name for name in titles if name in measured and name not in BATCHES]
        medians = [results.median(panel.scenario, name, panel.key) or 0.0 for name in shown]
        values = [results.values(panel.scenario, name, panel.key) for name in shown]
        low = [median - min(all_) for median, all_ in zip(medians, values, strict=True)]
        high = [max(all_) - median for median, all_ in zip(medians, values, strict=True)]
        bars = axes.barh(
            [titles[name] for name in shown],
            medians,
            color=[_colour(name) for name in shown],
            xerr=[low, high],
            ecolor="#444",
        )
        axes.bar_label(bars, fmt=format_figure, padding=6, fontsize=8)
        axes.set_title(panel.title, fontsize=10)
        axes.invert_yaxis()
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        if max(medians) > 20 * max(min(medians), 1e-9) and min(medians) > 0:
            axes.set_xscale("log")
            axes.set_title(f"{panel.title}, logarithmic", fontsize=10)
        axes.margins(x=0.18)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _colour(name: str) -> str:
    if name in OWN:
        return BLUE
    return LIGHT if name in FLOORS else GREY
