"""What the clock's marks become. The clock itself runs in Ray's workers: `python -m benchmarks turnover`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import turnover


def log(folder: Path, *lines: dict[str, Any]) -> Path:
    path = folder / "log.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def line(total: float, *, new: bool = False, **marks: float) -> dict[str, Any]:
    return {"pid": 1, "new": new, "marks": {"end": 10.0, **marks, "step": 10.0 + total}}


def test_parts_follow_one_another_and_add_up(tmp_path: Path) -> None:
    marks = {"driver": 10.25, "settle": 10.5, "released": 11.0}
    [found] = turnover.turnovers(log(tmp_path, line(2.0, **marks)))
    assert found["total"] == 2.0
    parts = {part: found[part] for part in turnover.PARTS}
    assert parts == dict.fromkeys(turnover.PARTS, 0.0) | {"driver": 0.25, "settle": 0.25, "released": 0.5, "step": 1.0}
    assert sum(parts.values()) == found["total"]


def test_new_losses_are_told_apart(tmp_path: Path) -> None:
    lines = [line(9.0, new=True), *(line(second) for second in (1.0, 2.0, 3.0))]
    told = turnover.summary(turnover.turnovers(log(tmp_path, *lines)))
    assert (told["turnovers"], told["median_s"], told["p95_s"], told["new_median_s"]) == (3, 2.0, 2.9, 9.0)
    assert turnover.summary(turnover.turnovers(log(tmp_path, *lines[1:])))["new_median_s"] == ""


def test_too_few_turnovers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--cells: got 1 turnovers to a known loss; expected two or more"):
        turnover.summary(turnover.turnovers(log(tmp_path, line(1.0), line(1.0, new=True))))


def test_cells_an_hour_are_counted_between_ends() -> None:
    assert turnover.an_hour([100.0, 110.0, 120.0]) == 360.0


@pytest.mark.parametrize("loss", turnover.LOSSES)
def test_every_loss_can_be_planned_and_cells_take_turns(loss: str) -> None:
    options = argparse.Namespace(
        cells=4, losses=[loss, "bce"], data="amazon_beauty_5core", batch_size=8, max_length=4, hidden_size=8
    )
    plan = turnover.planned(options)
    assert [cell.run.loss.name for cell in plan.cells] == [loss, "bce"] * 2
    assert len({cell.cell_key for cell in plan.cells}) == 4
