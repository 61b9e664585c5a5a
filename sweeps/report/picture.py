"""Memory against NDCG@10 as a PNG, for a README or a paper: what the page shows, by matplotlib."""

from __future__ import annotations

import math
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from sweeps.report.facts import Facts
from sweeps.report.style import memory_range, memory_ticks, style

SIZE_INCHES = (9.0, 5.2)
DPI = 160


def draw(facts: Facts, path: Path) -> None:
    """Write the picture. Without pyplot: its global state belongs to the caller's process."""
    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    memory = [c.memory_gib for c in facts.configurations] + [p.memory_gib for p in facts.stopped]
    low, high = memory_range(memory)
    if len(facts.fronts) > 1:
        x = [*(c.memory_gib for c in facts.front), 2.0**high]
        y = [*(c.quality for c in facts.front), facts.front[-1].quality]
        axes.plot(x, y, drawstyle="steps-post", color="#d9d9d9", linewidth=6, label="front of all losses")
    for loss in dict.fromkeys([*facts.fronts, *(point.loss for point in facts.stopped)]):
        _draw_loss(axes, facts, loss, right=2.0**high)
    if facts.stopped:
        axes.plot([], [], "o", markerfacecolor="none", markeredgecolor="#666666", markersize=5, label="stopped early")
    axes.set_xscale("log", base=2)
    axes.set_xlim(2.0**low, 2.0**high)
    ticks, texts = memory_ticks(memory)
    axes.set_xticks([tick for tick in ticks if low <= math.log2(tick) <= high])
    axes.set_xticklabels([text for tick, text in zip(ticks, texts, strict=True) if low <= math.log2(tick) <= high])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(f"{facts.axis.label.partition(' (')[0]} (log2)")
    axes.set_ylabel("NDCG@10 on validation")
    axes.grid(color="#e8e8e8", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        _legend(figure)
    else:
        axes.text(0.5, 0.5, "no complete cell yet", transform=axes.transAxes, ha="center", color="#666666")
    figure.savefig(path, dpi=DPI, metadata={"Software": None})


def _legend(figure: Figure) -> None:
    """In as many columns as the picture is wide for."""
    for columns in range(10, 0, -1):
        legend = figure.legend(
            loc="outside upper left",
            ncols=columns,
            frameon=False,
            handlelength=1.2,
            handletextpad=0.5,
            columnspacing=1.4,
        )
        if legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def _draw_loss(axes: Axes, facts: Facts, loss: str, right: float) -> None:
    look = style(loss)
    front = facts.fronts.get(loss, ())
    beaten = [c for c in facts.configurations if c.loss == loss and c not in front]
    if front:
        x = [*(c.memory_gib for c in front), right]
        y = [*(c.quality for c in front), front[-1].quality]
        axes.plot(x, y, drawstyle="steps-post", color=look.color, linewidth=1.2)
    for group, faint in ((beaten, True), (front, False)):
        if group:
            x, y = [c.memory_gib for c in group], [c.quality for c in group]
            shade = 0.3 if faint else 1.0
            bars = [(c.memory_gib, c.quality, c.quality_sd) for c in group if c.quality_sd is not None]
            if bars:
                at, middle, spread = zip(*bars, strict=True)
                ink = look.color
                axes.errorbar(at, middle, spread, fmt="none", ecolor=ink, elinewidth=0.8, capsize=2, alpha=shade)
            axes.plot(
                x,
                y,
                look.marker,
                color=look.color,
                markeredgecolor="none",
                markersize=4 if faint else 8,
                alpha=shade,
                label=None if faint else loss,
            )
    stopped = [point for point in facts.stopped if point.loss == loss]
    if stopped:
        axes.plot(
            [point.memory_gib for point in stopped],
            [point.quality for point in stopped],
            look.marker,
            markerfacecolor="none",
            markeredgecolor=look.color,
            markeredgewidth=0.8,
            markersize=5,
            alpha=0.5,
            linestyle="none",
        )
