"""Memory against NDCG@10 as plotly's traces and layout: plain data that the page hands to plotly as it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from sweeps.report.facts import Facts
from sweeps.report.style import memory_range, memory_ticks, style
from sweeps.report.words import TIMED
from sweeps.results import Configuration

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
LOG10_OF_2 = math.log10(2)


def figure(facts: Facts) -> dict[str, Any]:
    """{data, layout} of plotly."""
    memory = [c.memory_gib for c in facts.configurations] + [p.memory_gib for p in facts.stopped]
    low, high = memory_range(memory)
    traces: list[dict[str, Any]] = [_overall(facts.front, 2.0**high)] if len(facts.fronts) > 1 else []
    for loss in dict.fromkeys([*facts.fronts, *(point.loss for point in facts.stopped)]):
        front = facts.fronts.get(loss, ())
        beaten = [c for c in facts.configurations if c.loss == loss and c not in front]
        if front:
            traces.append(_steps(loss, front, 2.0**high))
        for group, faint in ((beaten, True), (front, False)):
            if group:
                traces.append(_points(loss, group, faint=faint))
        stopped = [point for point in facts.stopped if point.loss == loss]
        if stopped:
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "legendgroup": loss,
                    "name": f"{escape(loss)}, stopped early",
                    "showlegend": loss not in facts.fronts,
                    "x": [point.memory_gib for point in stopped],
                    "y": [point.quality for point in stopped],
                    "marker": {"color": style(loss).color, "symbol": f"{style(loss).symbol}-open", "size": 7},
                    "opacity": 0.5,
                    "hovertext": [
                        f"<b>{escape(point.label)}</b><br>stopped after {point.epochs} epochs<br>best validation "
                        f"NDCG@10 so far {point.quality:.4f}<br>{point.memory_gib:.4g} GiB"
                        for point in stopped
                    ],
                    "hoverinfo": "text",
                }
            )
    return {"data": traces, "layout": _layout(facts, memory, low, high)}


def _steps(loss: str, front: Sequence[Configuration], right: float) -> dict[str, Any]:
    """What the loss reaches with at most so much memory: flat until the next point, and on to the right edge."""
    return {
        "type": "scatter",
        "mode": "lines",
        "legendgroup": loss,
        "name": escape(loss),
        "showlegend": False,
        "x": [*(c.memory_gib for c in front), right],
        "y": [*(c.quality for c in front), front[-1].quality],
        "line": {"shape": "hv", "color": style(loss).color, "width": 1.5},
        "hoverinfo": "skip",
    }


def _overall(front: Sequence[Configuration], right: float) -> dict[str, Any]:
    """The front over all losses, as a pale band below the losses' own."""
    line = {"shape": "hv", "color": "#d9d9d9", "width": 8}
    return _steps(front[0].loss, front, right) | {
        "legendgroup": "front of all losses",
        "name": "front of all losses",
        "showlegend": True,
        "line": line,
    }


def _points(loss: str, group: Sequence[Configuration], *, faint: bool) -> dict[str, Any]:
    bars = [c.quality_sd or 0.0 for c in group]
    return {
        "type": "scatter",
        "mode": "markers",
        "legendgroup": loss,
        "name": escape(loss),
        "showlegend": not faint,
        "x": [c.memory_gib for c in group],
        "y": [c.quality for c in group],
        "error_y": {"type": "data", "array": bars, "visible": any(bars), "thickness": 1, "width": 3},
        "marker": {"color": style(loss).color, "symbol": style(loss).symbol, "size": 7 if faint else 11},
        "opacity": 0.3 if faint else 1.0,
        "hovertext": [_hover(c) for c in group],
        "hoverinfo": "text",
    }


def _hover(c: Configuration) -> str:
    spread = "" if c.quality_sd is None else f" ± {c.quality_sd:.4f}"
    lines = [
        f"<b>{escape(c.label)}</b>",
        f"validation NDCG@10 {c.quality:.4f}{spread} ({c.n} of {c.planned} seeds)",
        *([] if c.test_quality is None else [f"test NDCG@10 {c.test_quality:.4f}"]),
        f"{c.memory_gib:.4g} GiB",
        *([] if c.epoch_s is None else [f"{c.epoch_s:.3g} s an epoch, {TIMED[c.timing]}"]),
        *(f"{escape(str(name))}: {escape(str(value))}" for name, value in c.parameters.items()),
    ]
    return "<br>".join(lines)


def _layout(facts: Facts, memory: list[float], low: float, high: float) -> dict[str, Any]:
    ticks, texts = memory_ticks(memory)
    axis = {"gridcolor": "#e8e8e8", "zeroline": False, "linecolor": "#888", "ticks": "outside", "tickcolor": "#888"}
    title = facts.axis.label.partition(" (")[0]
    return {
        "font": {"family": FONT, "size": 13, "color": "#222"},
        "paper_bgcolor": "#fff",
        "plot_bgcolor": "#fff",
        "margin": {"l": 76, "r": 16, "t": 12, "b": 56},
        "hovermode": "closest",
        "hoverlabel": {"align": "left", "bgcolor": "#fff", "bordercolor": "#888", "font": {"color": "#222"}},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "itemsizing": "constant"},
        "xaxis": {
            **axis,
            "type": "log",
            "range": [low * LOG10_OF_2, high * LOG10_OF_2],
            "tickmode": "array",
            "tickvals": ticks,
            "ticktext": texts,
            "title": {"text": f"{title} (log2)", "standoff": 12, "font": {"size": 13}},
        },
        "yaxis": {
            **axis,
            "title": {"text": "NDCG@10 on validation", "standoff": 14, "font": {"size": 13}},
            "tickformat": ".3f",
        },
    }
