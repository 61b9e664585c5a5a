"""Ledger -> table: one row per planned cell, replicates folded, one kind of memory a comparison."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seqrec.errors import UserError
from sweeps import results

Make = Callable[..., Any]


def test_every_planned_cell_has_one_row(full: Make) -> None:
    sweep = full()
    cells = results.table(sweep.directory)
    assert len(cells) == len(set(cells["cell_key"])) == 45
    assert Counter(cells["outcome"]) == {
        "done": 36,
        "stopped": 3,
        "diverged": 1,
        "oom": 1,
        "predicted_oom": 1,
        "error": 1,
        "interrupted": 1,
        "waiting": 1,
    }


def test_values_are_those_of_the_ledger(full: Make) -> None:
    sweep = full()
    row = results.table(sweep.directory).set_index("cell_key").loc["sce-2-2"]
    assert (row["label"], row["outcome"], row["epochs"], row["attempt"]) == (
        sweep.cells["sce-2-2"]["label"],
        "done",
        4,
        1,
    )
    assert row["loss.bucket_size_y"] == 1024
    assert type(row["loss.bucket_size_y"]) is int, "a parameter that other losses lack must stay an integer"
    assert row["memory/peak_gib"] == pytest.approx(1.2 * 1.02)
    assert row["memory/predicted_gib"] == pytest.approx(1.2)
    assert row["test/ndcg_at_10"] == pytest.approx(0.8 * row["best/ndcg_at_10"])
    assert row["loss.gbce_t"] is None


def test_an_older_plans_cells_are_left_out(made: Make) -> None:
    sweep = made()
    sweep.open(["a", "b"])
    for key in ("a", "b"):
        sweep.cell(key, "ce", {"train.batch_size": 64}, seed=1, gib=1.0)
        sweep.train(key, 0.05)
    sweep.open(["b", "c"], launch=2)
    assert list(results.table(sweep.directory)["cell_key"]) == ["b", "c"]
    assert list(results.table(sweep.directory)["outcome"]) == ["done", "waiting"]


def test_a_running_cell_is_interrupted_by_the_next_launch(made: Make) -> None:
    sweep = made()
    sweep.open(["a"])
    sweep.cell("a", "ce", {}, seed=1, gib=1.0)
    sweep.train("a", 0.05, epochs=2, outcome="")
    assert list(results.table(sweep.directory)["outcome"]) == ["running"]
    sweep.open(["a"], launch=2)
    assert list(results.table(sweep.directory)["outcome"]) == ["interrupted"]
    sweep.train("a", 0.05, epochs=4, first=3, attempt=2)
    row = results.table(sweep.directory).iloc[0]
    assert (row["outcome"], row["attempt"], row["epochs"], row["reason"]) == ("done", 2, 4, "")


def test_a_stopped_cell_shows_its_best_epoch(made: Make) -> None:
    sweep = made()
    sweep.open(["a"])
    sweep.cell("a", "bce", {}, seed=1, gib=1.0)
    sweep.add("start", cell_key="a", attempt=1, node="here", pid=1, from_epoch=0)
    for epoch, value in enumerate((0.01, 0.03, 0.02), start=1):
        metrics = {"valid/ndcg_at_10": value, "memory/peak_gib": 2.0 + 0.1 * epoch}
        sweep.add("epoch", cell_key="a", attempt=1, epoch=epoch, metrics=metrics)
    sweep.add("end", cell_key="a", attempt=1, outcome="stopped", reason="asha", epochs=3, metrics={})
    row = results.table(sweep.directory).iloc[0]
    assert row["best/ndcg_at_10"] == 0.03
    assert row["memory/peak_gib"] == 2.3
    assert results.configurations(results.table(sweep.directory)) == ()


def test_a_torn_last_line_is_not_there_yet(full: Make) -> None:
    sweep = full()
    before = results.table(sweep.directory)
    with sweep.ledger.open("a", encoding="utf-8") as file:
        file.write('{"type": "end", "sequence": 9')
    assert results.table(sweep.directory).equals(before)


def test_no_ledger_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no ledger\.jsonl"):
        results.table(tmp_path)


def test_a_sweep_without_a_plan_is_empty(made: Make) -> None:
    sweep = made()
    sweep.add("sweep", sweep_id="x", name="losses")
    assert len(results.table(sweep.directory)) == 0
    assert results.configurations(results.table(sweep.directory)) == ()


def test_replicates_are_folded_as_by_hand(full: Make) -> None:
    cells = results.table(full().directory)
    found = {c.configuration_key: c for c in results.configurations(cells)}
    groups: dict[str, list[dict[Any, Any]]] = {}
    for row in cells.to_dict("records"):
        if row["outcome"] == "done":
            groups.setdefault(row["configuration_key"], []).append(row)
    assert found.keys() == groups.keys()
    for key, rows in groups.items():
        one, values = found[key], [row["best/ndcg_at_10"] for row in rows]
        assert one.quality == pytest.approx(sum(values) / len(values))
        assert one.n == len(rows)
        assert one.quality_sd == (pytest.approx(statistics.stdev(values)) if len(rows) > 1 else None)
        assert one.memory_gib == max(row["memory/peak_gib"] for row in rows)
        assert one.test_quality == pytest.approx(sum(row["test/ndcg_at_10"] for row in rows) / len(rows))
        assert set(one.cell_keys) == {row["cell_key"] for row in rows}
        assert "train.seed" not in one.parameters
        assert None not in one.parameters.values()
        assert one.label == rows[0]["label"].rpartition(" s")[0]
    assert (found['conf-ce-{"train.batch_size": 128}'].n, found['conf-ce-{"train.batch_size": 128}'].planned) == (2, 3)


def test_memory_is_the_largest_of_the_replicates(made: Make) -> None:
    sweep = made()
    sweep.open(["a", "b"])
    for key, seed, peak in (("a", 1, 2.0), ("b", 2, 3.0)):
        sweep.cell(key, "ce", {}, seed=seed, gib=1.0)
        sweep.train(key, 0.05, peak_gib=peak)
    (one,) = results.configurations(results.table(sweep.directory))
    assert one.memory_gib == 3.0


@pytest.mark.parametrize(
    ("peaks", "axis", "memory"),
    [
        ((2.0, 3.0), results.MEASURED_AXIS, [2.0, 3.0]),
        ((None, None), results.PREDICTED_AXIS, [1.0, 1.0]),
        ((2.0, None), results.MIXED_AXIS, [1.0, 1.0]),
    ],
)
def test_a_front_never_mixes_measured_and_predicted(
    made: Make, peaks: tuple[float | None, ...], axis: results.Axis, memory: list[float]
) -> None:
    sweep = made()
    sweep.open(["a", "b", "c"])
    for key, peak in zip(("a", "b"), peaks, strict=True):
        sweep.cell(key, "ce", {"train.batch_size": ord(key)}, seed=1, gib=1.0)
        sweep.train(key, 0.05, peak_gib=peak)
    sweep.cell("c", "bce", {}, seed=1, gib=9.0)
    sweep.train("c", 0.05, outcome="stopped")  # not compared, so its missing peak must not matter
    cells = results.table(sweep.directory)
    assert results.memory_axis(cells) == axis
    assert [c.memory_gib for c in results.configurations(cells)] == memory


def test_done_without_a_validation_value_is_not_compared(made: Make) -> None:
    sweep = made()
    sweep.open(["a"])
    sweep.cell("a", "ce", {}, seed=1, gib=1.0)
    sweep.add("end", cell_key="a", attempt=1, outcome="done", reason="", epochs=1, metrics={})
    cells = results.table(sweep.directory)
    assert math.isnan(cells.iloc[0]["best/ndcg_at_10"])
    assert results.configurations(cells) == ()
