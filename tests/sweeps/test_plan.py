"""The printed plan says what would run, what would not, and why."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from seqrec.data.tables import Statistics
from sweeps import plan as plans, space, spec
from sweeps.outcomes import Outcome
from sweeps.plan import Standing
from sweeps.reuse import Finished
from sweeps.space import Plan
from sweeps.spec import SweepSpec

SPACE = """
name: small
description: A small one.
data: {path: tiny.parquet}
train: {epochs: 3}
seeds: [1, 2]
constraints: ["batch_size < 32"]
blocks:
  - loss: {name: ce_minus}
    grid: {train.batch_size: [8, 16, 32], loss.n_negatives: [4, 8]}
  - loss: {name: rece}
    grid: {train.batch_size: [8, 16]}
    derived: {loss.n_buckets: batch_size / 2}
  - loss: {name: rece, n_buckets: 4}
    train: {batch_size: 8}
"""


def make(path: Path, *overrides: str) -> tuple[SweepSpec, Plan]:
    path.write_text(SPACE)
    read = spec.load(path, overrides)
    statistics = Statistics(
        name="tiny",
        digest="d" * 64,
        n_users=100,
        n_interactions=1_000,
        n_items=50,
        n_train_users=80,
        train_lengths=((5, 80),),
    )
    return read, space.plan(read, statistics)


@pytest.fixture
def small(tmp_path: Path) -> tuple[SweepSpec, Plan]:
    return make(tmp_path / "small.yaml")


def test_text_shows_every_cell_and_the_totals(small: tuple[SweepSpec, Plan]) -> None:
    read, plan = small
    shown = plans.text(read, plan, Standing())
    lines = shown.splitlines()
    assert lines[0] == f"sweep      small ({read.source})"
    assert "A small one." in lines[1]
    assert "tiny, leave_one_out: 100 users, 50 items, 1,000 interactions, interactions_per_user 10" in lines[2]
    assert "d" * 64 in lines[3]
    for i, cell in enumerate(plan.cells, start=1):
        (row,) = [line.split() for line in lines if cell.cell_key in line]
        assert row[0] == str(i)
        assert str(cell.parameters["loss.name"]) in row
        assert str(cell.run.train.batch_size) in row
        assert row[-1] == f"{cell.predicted_bytes / 2**30:.2f}"
    head = next(line for line in lines if "cell_key" in line)
    assert head.split() == ["#", "cell_key", "loss", "batch_size", "n_negatives", "n_buckets*", "seed", "GiB"]
    assert "dropped by a constraint: batch_size < 32 (4)" in shown
    assert "loss.name ce_minus, train.batch_size 32, loss.n_negatives 4, train.seed 1" in shown
    assert lines[-2] == (
        "12 cells (6 configurations) of 18 points: 2 duplicates, 4 dropped by constraints, 0 cannot exist on tiny"
    )
    assert lines[-1] == "would run: 12"


def test_what_is_the_same_in_all_cells_stands_above_the_table(tmp_path: Path) -> None:
    read, plan = make(tmp_path / "s.yaml", "seeds=[7]")
    shown = plans.text(read, plan, Standing())
    assert "all cells: seed 7" in shown
    assert "overrides  seeds=[7]" in shown


def test_the_histogram_counts_every_cell_once(small: tuple[SweepSpec, Plan]) -> None:
    read, plan = small
    shown = plans.text(read, plan, Standing())
    bins = [line.split() for line in shown.splitlines() if line.startswith("  <= ")]
    assert sum(int(words[2].replace(",", "")) for words in bins) == len(plan.cells)
    for cell in plan.cells:
        gib = cell.predicted_bytes / 2**30
        assert any(0.999 * float(words[1]) / 2**0.5 < gib <= 1.001 * float(words[1]) for words in bins)


def test_a_bin_is_half_an_octave(small: tuple[SweepSpec, Plan]) -> None:
    _, plan = small
    sizes = (2**30, 2**30 + 1, int(2**30 * 2**0.5), int(2**30 * 2**0.5) + 1, 2**31)
    cells = tuple(replace(plan.cells[0], predicted_bytes=size) for size in sizes)
    bins = plans.histogram(replace(plan, cells=cells))
    assert {round(edge, 3): count for edge, count in bins.items()} == {1.0: 1, 1.414: 2, 2.0: 2}


def test_what_other_sweeps_finished_and_what_is_tried_again(small: tuple[SweepSpec, Plan]) -> None:
    read, plan = small
    there = Finished(Outcome.DONE, "", (), {}, {"name": "older", "ledger": "x"})
    first, second, third = (cell.cell_key for cell in plan.cells[:3])
    standing = Standing({first: Outcome.OOM, second: Outcome.DONE}, {third: there}, (Outcome.OOM,))
    shown = plans.text(read, plan, standing)
    said = "would run: 10, 2 have ended, 1 of them are tried again, 1 are finished in other sweeps"
    assert shown.splitlines()[-1] == said
    (row,) = [line for line in shown.splitlines() if third in line]
    assert row.endswith("  done in older")
    told = plans.to_json(read, plan, standing)
    assert told["cells"][2]["reused"] == {"outcome": "done", "name": "older", "ledger": "x"}
    assert told["would_run"] == 10


def test_ended_cells_and_a_limit_leave_the_rest(small: tuple[SweepSpec, Plan]) -> None:
    read, plan = small
    ended = {plan.cells[0].cell_key: Outcome.DONE, plan.cells[5].cell_key: Outcome.STOPPED}
    assert Standing(ended).would_run(plan) == [c for i, c in enumerate(plan.cells) if i not in (0, 5)]
    shown = plans.text(read, plan, Standing(ended, limit=4))
    assert shown.splitlines()[-1] == "would run: 4, 2 have ended, at most 4 a launch"
    (row,) = [line for line in shown.splitlines() if plan.cells[5].cell_key in line]
    assert row.endswith("  stopped")


def test_the_impossible_is_listed_with_its_law_and_the_way_out(tmp_path: Path) -> None:
    read, plan = make(tmp_path / "s.yaml", "loss.n_negatives=[4, 60, 70]", "train.batch_size=[8, 90]", "constraints=[]")
    shown = plans.text(read, plan, Standing())
    assert "cannot exist on tiny: loss.n_negatives: got 60; expected <= 45" in shown
    assert "would run: nothing, until constraints drop what cannot exist" in shown
    refusal = plans.refusal(read, plan)
    assert refusal is not None
    assert refusal.startswith(f"{read.source}: 8 points of ")
    assert refusal.endswith('hint: to run the rest, constraints: ["n_negatives <= 45"]')


def test_the_way_out_may_be_a_formula(tmp_path: Path) -> None:
    path = tmp_path / "sce.yaml"
    text = "data: {path: t.parquet}\nmodel: {max_length: 10}\nseeds: [1]\n"
    text += "loss: {name: sce, n_buckets: 4, bucket_size_y: 4}\n"
    text += "grid: {train.batch_size: [1, 2], loss.bucket_size_x: [5, 15, 25]}\n"
    path.write_text(text)
    read = spec.load(path)
    statistics = make(tmp_path / "s.yaml")[1].statistics
    refusal = plans.refusal(read, space.plan(read, statistics))
    assert refusal is not None
    constraint = "bucket_size_x <= batch_size * max_length"
    assert refusal.endswith(f'constraints: ["{constraint}"]')
    path.write_text(f"{text}constraints: [{constraint}]\n")
    whole = space.plan(spec.load(path), statistics)
    assert (len(whole.cells), len(whole.dropped), whole.infeasible) == (3, 3, ())


def test_nothing_impossible_is_no_refusal(small: tuple[SweepSpec, Plan]) -> None:
    assert plans.refusal(*small) is None


def test_json_leaves_nothing_out(small: tuple[SweepSpec, Plan]) -> None:
    read, plan = small
    told = json.loads(json.dumps(plans.to_json(read, plan, Standing({plan.cells[1].cell_key: Outcome.OOM}))))
    assert [cell["cell_key"] for cell in told["cells"]] == [cell.cell_key for cell in plan.cells]
    assert [cell["outcome"] for cell in told["cells"][:3]] == [None, "oom", None]
    assert told["cells"][0]["parameters"] == plan.cells[0].parameters
    assert told["cells"][0]["predicted_gib"] == plan.cells[0].predicted_bytes / 2**30
    assert told["duplicates"] == plan.duplicates == 2
    assert [drop["constraint"] for drop in told["dropped"]] == ["batch_size < 32"] * 4
    assert told["infeasible"] == []
    assert told["data"]["digest"] == "d" * 64
    assert told["data"]["interactions_per_user"] == 10
    assert told["would_run"] == 11
