"""The results as one picture: a panel of bars for each scenario."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .report import format_figure
from .results import ECHOES, HANDSHAKES, IDLE, Results
from .servers import OURS, Peer

PANELS = (
    *((echo.name, f"Echo, {echo.title}\nCPU µs per message", "cpu_us") for echo in ECHOES),
    (HANDSHAKES, "Handshakes\na second", "per_second"),
    (IDLE, "Memory\nKiB per idle connection", "kib"),
)
BLUE, GREY, LIGHT = "#1f5fa8", "#9aa5b1", "#d5dae0"


def draw(path: Path, results: Results, peers: Sequence[Peer]) -> None:
    """Write a PNG file; logarithmic where the figures are far apart.

    :raises ImportError: there is no matplotlib.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(2, 3, figsize=(16, 9), layout="constrained")
    for axes, (scenario, title, key) in zip(grid.flat, PANELS, strict=True):
        shown = [peer for peer in peers if results.values(scenario, peer.name, key)]
        medians = [results.median(scenario, peer.name, key) or 0.0 for peer in shown]
        values = [results.values(scenario, peer.name, key) for peer in shown]
        low = [median - min(all_) for median, all_ in zip(medians, values, strict=True)]
        high = [max(all_) - median for median, all_ in zip(medians, values, strict=True)]
        colours = [BLUE if p.name == OURS else GREY if p.parsed else LIGHT for p in shown]
        bars = axes.barh(
            [peer.title for peer in shown], medians, color=colours, xerr=[low, high], ecolor="#444"
        )
        axes.bar_label(bars, fmt=format_figure, padding=6, fontsize=8)
        axes.set_title(title, fontsize=10)
        axes.invert_yaxis()
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        if medians and max(medians) > 20 * max(min(medians), 1e-9):
            axes.set_xscale("log")
            axes.set_title(f"{title}, logarithmic", fontsize=10)
        axes.margins(x=0.18)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
