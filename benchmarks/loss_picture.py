"""Time against memory, a picture a shape: fused losses, eager ones, others' code, published reference figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.loss_table import published

MIB = 2**20
WHO = {"fused": ("#0072b2", "o"), "eager": ("#e69f00", "s"), "others": ("#009e73", "^"), "published": ("#999999", "x")}
"""Kind -> colour (Okabe and Ito's), marker."""


def draw_shape(rows: Sequence[Mapping[str, object]], shape: str, path: Path) -> None:
    """Writes the picture of one shape's rows, all of one kind of inputs; no rows, no picture."""
    mine = [row for row in rows if row["shape"] == shape]
    if mine:
        draw(mine, [one for one in published() if one["shape"] == shape], path)


def draw(rows: Sequence[Mapping[str, object]], figures: Sequence[Mapping[str, str]], path: Path) -> None:
    """rows: measured; figures: the reference's, of the same shape."""
    points: dict[str, list[tuple[float, float, str]]] = {who: [] for who in WHO}
    for row in rows:
        ms = row["graph_ms"] or row["eager_ms"]
        if row["outcome"] == "ok" and ms and row["peak_bytes"]:
            who = str(row["who"])
            name = " ".join(filter(None, (str(row["loss"]), str(row["setting"]))))
            if who not in WHO:
                name, who = f"{who} {row['dtype']}", "others"
            points[who].append((float(str(row["peak_bytes"])) / MIB, float(str(ms)), name))
    points["published"] = [(float(one["peak_mib"]), float(one["ms"]), one["reference"]) for one in figures if one["ms"]]
    figure = Figure(figsize=(9.0, 6.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for who, (color, marker) in WHO.items():
        if not points[who]:
            continue
        axes.scatter(
            [p[0] for p in points[who]], [p[1] for p in points[who]], 24, color=color, marker=marker, label=who
        )
        for mib, ms, name in points[who]:
            axes.annotate(name, (mib, ms), (4, 2), textcoords="offset points", fontsize=6, color=color)
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
    figure.savefig(path, dpi=150, metadata={"Software": None})
