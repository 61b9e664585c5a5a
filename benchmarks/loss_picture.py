"""Time against memory, a picture a shape: fused losses, eager ones, others' code, the papers' reference code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from benchmarks.loss_table import published

MIB = 2**20
WHO = {
    "fused": ("#0072b2", "o"),
    "eager": ("#e69f00", "s"),
    "others": ("#009e73", "^"),
    "reference code": ("#808080", "x"),
}
"""Kind -> colour (Okabe and Ito's), marker."""
FEWEST = 4
"""Points worth a picture."""


def draw_shape(rows: Sequence[Mapping[str, object]], shape: str, path: Path) -> None:
    """Writes the picture of one shape's rows, all of one kind of inputs; none of fewer points than tell anything. The
    reference's figures are of random inputs, and beside those alone."""
    mine = [row for row in rows if row["shape"] == shape]
    alike = all(row["inputs"] == "random" for row in mine)
    figures = [one for one in published() if alike and one["shape"] == shape]
    if mine and len(mine) + len(figures) >= FEWEST:
        draw(mine, figures, path)


def draw(rows: Sequence[Mapping[str, object]], figures: Sequence[Mapping[str, str]], path: Path) -> None:
    """rows: measured; figures: the reference's, of the same shape."""
    points: dict[str, list[tuple[float, float, str]]] = {who: [] for who in WHO}
    for row in rows:
        ms = row["graph_ms"] or row["eager_ms"]
        if row["outcome"] == "ok" and ms and row["peak_bytes"]:
            who = str(row["who"])
            name = " ".join(filter(None, (str(row["loss"]), str(row["setting"]))))
            if who == "fused" and row["dtype"] != "float16":
                name += f" {row['dtype']}"
            if who not in WHO:
                name, who = f"{who} {row['dtype']}", "others"
            points[who].append((float(str(row["peak_bytes"])) / MIB, float(str(ms)), name))
    points["reference code"] = [
        (float(one["peak_mib"]), float(one["ms"]), one["reference"]) for one in figures if one["ms"]
    ]
    figure = Figure(figsize=(9.0, 6.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for who, (color, marker) in WHO.items():
        if not points[who]:
            continue
        axes.scatter(
            [p[0] for p in points[who]], [p[1] for p in points[who]], 24, color=color, marker=marker, label=who
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("most bytes allocated beyond the inputs, gradients included, MiB")
    axes.set_ylabel("forward and backward, ms (fused: CUDA graph; else eager)")
    first = rows[0]
    axes.set_title(
        f"{first['shape']}: {first['n_positions']} positions, {first['n_items']} items, width {first['width']}, "
        f"{first['inputs']} inputs; {first['gpu']}",
        fontsize=9,
        loc="left",
    )
    axes.grid(color="#e8e8e8", linewidth=0.6)
    axes.set_axisbelow(True)
    if any(points.values()):
        axes.legend(frameon=False, fontsize=8)
        _name(axes, points)
    figure.savefig(path, dpi=150, metadata={"Software": None})


def _name(axes: Axes, points: Mapping[str, Sequence[tuple[float, float, str]]]) -> None:
    """Writes each point's name where it is free: beside it, or the nearest line above or below."""
    canvas = axes.figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()
    edges, legend = axes.get_window_extent(), axes.get_legend()
    taken: list[Bbox] = [] if legend is None else [legend.get_window_extent()]
    for kind in points.values():
        for mib, ms, _ in kind:
            x, y = axes.transData.transform((mib, ms))
            taken.append(Bbox.from_extents(x - 4, y - 4, x + 4, y + 4))
    places = [(dx, dy) for dy in (-2, 5, -9, 12, -16, 19, -23) for dx in (6, -6)]
    for who, kind in points.items():
        for mib, ms, name in sorted(kind, key=lambda point: point[1]):
            label = axes.annotate(name, (mib, ms), (0, 0), textcoords="offset points", fontsize=6, color=WHO[who][0])
            label.set_in_layout(False)
            best = (float("inf"), 0)
            for number, (dx, dy) in enumerate(places):
                label.set(position=(dx, dy), ha="left" if dx > 0 else "right")
                box = label.get_window_extent()
                outside = box.x0 < edges.x0 or box.x1 > edges.x1
                best = min(best, (100 * outside + sum(box.overlaps(other) for other in taken), number))
            dx, dy = places[best[1]]
            label.set(position=(dx, dy), ha="left" if dx > 0 else "right")
            taken.append(label.get_window_extent())
