"""No time is shown without how it was taken: in the table of cells, on the pages, and by the commands."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sweeps import pareto, query, report, results

Make = Callable[..., Any]
SHARES = {"small": 0.25, "large": 1.0, "old": None}


@pytest.fixture
def sweep(made: Make) -> Any:
    """Three configurations, all on the front: one of a quarter of a GPU, one of a whole, one in an old ledger."""
    sweep = made()
    sweep.open(["small", "large", "old"])
    for number, (key, share) in enumerate(SHARES.items(), start=1):
        sweep.cell(key, "ce", {"train.batch_size": 64 * number}, 1, gib=float(number))
        sweep.train(key, 0.01 * number, peak_gib=float(number), gpu_share=share, epoch_s=0.5 * number)
    return sweep


def again(sweep: Any, key: str, epoch_s: float) -> None:
    metrics = {"time/epoch_s": epoch_s, "time/step_ms": 2.0}
    sweep.add("timing", cell_key=key, epochs=3, metrics=metrics, node="here", gpu="some GPU")


def test_the_table_says_it_of_every_cell(sweep: Any) -> None:
    cells = results.table(sweep.directory).set_index("cell_key")
    assert dict(cells["timing"]) == {"small": "shared", "large": "alone", "old": "unknown"}
    assert "timing" not in results.parameter_columns(cells.reset_index())


def test_a_second_timing_is_in_the_place_of_the_first(sweep: Any) -> None:
    again(sweep, "small", 0.125)
    row = results.table(sweep.directory).set_index("cell_key").loc["small"]
    assert (row["timing"], row["time/epoch_s"], row["time/step_ms"]) == ("alone, again", 0.125, 2.0)
    assert row["best/ndcg_at_10"] == pytest.approx(0.01 * (1 - 0.5**4)), "all else is the training's"
    assert row["outcome"] == "done"


def test_of_replicates_those_timed_best_count(made: Make) -> None:
    sweep = made()
    sweep.open(["a", "b", "c"])
    for seed, (key, share, epoch_s) in enumerate([("a", 0.5, 9.0), ("b", 1.0, 2.0), ("c", 1.0, 4.0)]):
        sweep.cell(key, "ce", {"train.batch_size": 64}, seed, gib=1.0)
        sweep.train(key, 0.01, peak_gib=1.0, gpu_share=share, epoch_s=epoch_s)
    [configuration] = results.configurations(results.table(sweep.directory))
    assert (configuration.epoch_s, configuration.timing) == (3.0, "alone")


def test_pages_and_files_mark_it(sweep: Any) -> None:
    again(sweep, "old", 0.75)
    written = report.write(sweep.directory)
    markdown, page = (path.read_text(encoding="utf-8") for path in (written.markdown, written.html))
    lines = [line.split(" | ") for line in markdown.partition("## The front")[2].splitlines() if "| ce" in line]
    assert [(line[1], line[4]) for line in lines] == [("1", "0.5\\*"), ("2", "1"), ("3", "0.75'")]
    line = "Times of 3 cells: 1 taken again after the sweep, alone; 1 taken alone; 1 taken while sharing a GPU"
    assert line in markdown
    assert line in page
    assert "0.5 s an epoch, taken while sharing a GPU" in page, "hover"
    cells = list(csv.DictReader(written.csv.read_text(encoding="utf-8").splitlines()))
    assert [row["timing"] for row in cells] == ["shared", "alone", "alone, again"]
    front = list(csv.DictReader(written.front_csv.read_text(encoding="utf-8").splitlines()))
    assert [(row["epoch_s"], row["timing"]) for row in front] == [
        ("0.5", "shared"),
        ("1.0", "alone"),
        ("0.75", "alone, again"),
    ]
    assert [one["timing"] for one in json.loads(written.json.read_text())["front"]] == [row["timing"] for row in front]


def test_the_commands_mark_it(sweep: Any, capsys: pytest.CaptureFixture[str]) -> None:
    directory = str(sweep.directory)
    assert pareto.main([directory]) == 0
    said = capsys.readouterr().out
    assert "0.5*" in said
    assert "* taken while the cell shared its GPU" in said
    assert "? the ledger does not say" in said
    assert query.main([directory, "--max-memory-gib", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["timing"] == "shared"
    assert query.main([directory]) == 0
    said = capsys.readouterr().out
    assert "1.5? s/epoch" in said
    assert "? the ledger does not say" in said


def test_without_times_nothing_is_said_of_them(made: Make) -> None:
    sweep = made()
    sweep.open(["a"])
    text = report.write(sweep.directory).markdown.read_text(encoding="utf-8")
    assert "Times of" not in text


def test_a_line_of_the_table_of_cells_stays_whole(sweep: Any, tmp_path: Path) -> None:
    """The name of a kind has a comma in it."""
    again(sweep, "small", 0.1)
    path = tmp_path / "cells.csv"
    results.table(sweep.directory).to_csv(path, index=False)
    with path.open(encoding="utf-8") as file:
        assert {len(row) for row in csv.reader(file)} == {len(results.table(sweep.directory).columns)}
