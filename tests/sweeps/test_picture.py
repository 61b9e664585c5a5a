"""The report's picture as a PNG: nothing of it lies outside."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from matplotlib.figure import Figure

from sweeps.report.facts import Point
from sweeps.report.picture import draw
from sweeps.report.style import STYLES
from sweeps.results import MEASURED_AXIS, Configuration


def facts(losses: list[str]) -> Any:
    """What is drawn of a sweep whose losses have one result each, and a stopped cell."""
    all_of_them = [
        Configuration(loss, loss, loss, {}, ("1",), 1, 0.05 + n / 100, None, 1.0 + n, {})
        for n, loss in enumerate(losses)
    ]
    return SimpleNamespace(
        configurations=all_of_them,
        front=all_of_them,
        fronts={one.loss: (one,) for one in all_of_them},
        stopped=[Point(losses[0], "b64", 1.5, 0.01, 3)],
        axis=MEASURED_AXIS,
    )


@pytest.mark.parametrize("count", [1, 5, len(STYLES)])
def test_the_legend_is_as_wide_as_the_picture_at_most(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    draw(facts(list(STYLES)[:count]), tmp_path / "x.png")
    (figure,) = drawn
    (legend,) = figure.legends
    assert len(legend.get_texts()) == count + 2 - (count == 1), "the front of all, the losses, what was stopped"
    figure.draw_without_rendering()
    box = legend.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width
