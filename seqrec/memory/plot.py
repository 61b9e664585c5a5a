"""What is alive at the peak of each configuration's step, as stacked bars."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from seqrec.memory.components import MEANINGS
from seqrec.memory.output import GIB, PREDICTED, Row

HEIGHT_INCHES = 5.6
LEAST_WIDTH_INCHES, INCHES_A_BAR = 7.0, 1.0
DPI = 150

# Tol's muted and Okabe-Ito's colours; what stays is cool, what the loss takes is warm.
COLORS = {
    "weights": "#332288",
    "gradients": "#88ccee",
    "optimiser": "#0072b2",
    "data": "#bbbbbb",
    "workspace": "#999999",
    "batch": "#777777",
    "negatives": "#117733",
    "drawing": "#999933",
    "activations": "#44aa99",
    "loss_forward": "#e69f00",
    "loss_backward": "#d55e00",
    "loss_gradients": "#cc6677",
    "backbone_backward": "#aa4499",
    "optimiser_step": "#882255",
    "other": "#dddddd",
}
LEAST_SHARE = 0.002
"""Of the tallest bar: what is thinner has no place in the legend."""


def draw(rows: Sequence[Row], path: Path, title: str) -> None:
    """Write the picture: one bar a configuration and kind, measured beside predicted. Without pyplot: its global state
    belongs to the caller's process."""
    bars = [(row, kind, breakdown) for row in rows for kind, breakdown in row.kinds]
    stacks = [breakdown.stack() for _, _, breakdown in bars]
    width = max(LEAST_WIDTH_INCHES, 3.2 + INCHES_A_BAR * len(bars))
    figure = Figure(figsize=(width, HEIGHT_INCHES), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places = _places(rows)
    tallest = max(sum(stack.values()) for stack in stacks)
    for name in (*MEANINGS, "other"):
        _draw_component(axes, name, places, stacks, [kind for _, kind, _ in bars], tallest)
    for place, stack, (_, _, breakdown) in zip(places, stacks, bars, strict=True):
        total = sum(stack.values())
        text = f"oom in\n{breakdown.oom}" if breakdown.oom else f"{total / GIB:.3g}"
        axes.annotate(text, (place, total / GIB), (0, 3), textcoords="offset points", ha="center", fontsize=8)
    axes.set_xticks(places)
    axes.set_xticklabels([_label(row, kind) for row, kind, _ in bars], fontsize=8)
    axes.set_ylabel("alive at the step's peak, GiB")
    axes.set_ylim(0, 1.12 * tallest / GIB)
    figure.suptitle("\n".join(textwrap.wrap(title, int(13 * (width - 2)))), fontsize=9, x=0.01, ha="left")
    axes.grid(axis="y", color="#e8e8e8", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8, reverse=True)
    figure.savefig(path, dpi=DPI, metadata={"Software": None})


def _places(rows: Sequence[Row]) -> list[float]:
    """Bars of one configuration stand together."""
    places: list[float] = []
    for number, row in enumerate(rows):
        count = len(row.kinds)
        places += [number * (count + 0.4) + index for index in range(count)]
    return places


def _draw_component(
    axes: Axes, name: str, places: list[float], stacks: list[dict[str, int]], kinds: list[str], tallest: int
) -> None:
    order = [*MEANINGS, "other"]
    below = [sum(stack.get(other, 0) for other in order[: order.index(name)]) / GIB for stack in stacks]
    heights = [stack.get(name, 0) / GIB for stack in stacks]
    if not any(heights):
        return
    shown = max(heights) * GIB >= LEAST_SHARE * tallest
    drawn = axes.bar(places, heights, 0.86, below, color=COLORS[name], label=name if shown else None)
    for bar, kind in zip(drawn, kinds, strict=True):
        # Beside a measured bar, and alone, a prediction must not be taken for a measurement.
        bar.set_alpha(0.6 if kind == PREDICTED else 1.0)


def _label(row: Row, kind: str) -> str:
    items = row.case.statistics.n_items
    catalog = f"{items / 1e6:.3g}M" if items >= 10**6 else f"{items / 1e3:.4g}k" if items >= 10**4 else str(items)
    return f"{row.case.loss}\nB {row.case.run.train.batch_size}\nV {catalog}\n{kind}"
