"""Ledger events as what a run is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sweeps import ledger
from sweeps.tracking.records import PARENT, Records, rounded

Make = Callable[..., Any]


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("valid/ndcg_at_10", 0.0712345, 0.07123),
        ("memory/peak_gib", 3.14159, 3.142),
        ("memory/predicted_gib", 0.00041234, 0.000412),
        ("time/epoch_s", 12.34567, 12.346),
        ("best/elapsed_s", 100.00004, 100.0),
        ("best/epoch", 17.0, 17.0),
    ],
)
def test_values_have_the_digits_that_mean_something(name: str, value: float, told: float) -> None:
    assert rounded(name, value) == told


def test_what_is_not_finite_becomes_a_tag(made: Make) -> None:
    sweep = made()
    sweep.open(["a"])
    sweep.cell("a", "ce", {}, seed=1, gib=1.0)
    sweep.add("start", cell_key="a", attempt=1, node="here", pid=1, from_epoch=0)
    metrics = {"train/loss": float("nan"), "valid/ndcg_at_10": 0.1, "time/epoch_s": float("inf")}
    sweep.add("epoch", cell_key="a", attempt=1, epoch=1, metrics=metrics)
    parent, child = Records().batches(event for event, _ in ledger.read(sweep.ledger))
    assert parent.key == PARENT
    assert [point.key for point in child.metrics] == ["valid/ndcg_at_10"]
    assert child.tags["sweep.non_finite"] == "time/epoch_s train/loss"


def test_long_texts_are_cut_with_a_mark(made: Make) -> None:
    sweep = made()
    sweep.open(["a"])
    sweep.cell("a", "ce", {}, seed=1, gib=1.0)
    sweep.train("a", 0.05, outcome="error", reason="x" * 9000)
    _, child = Records().batches(event for event, _ in ledger.read(sweep.ledger))
    assert len(child.tags["sweep.reason"]) == 5000
    assert child.tags["sweep.reason"].endswith("…")


def test_of_validation_only_the_usual_cutoff_is_told(made: Make) -> None:
    sweep = made()
    sweep.open(["a"])
    sweep.cell("a", "ce", {}, seed=1, gib=1.0)
    sweep.add("start", cell_key="a", attempt=1, node="here", pid=1, from_epoch=0)
    metrics = {f"{group}/ndcg_at_{k}": 0.1 for group in ("best", "valid", "test") for k in (1, 10, 100)}
    sweep.add("end", cell_key="a", attempt=1, outcome="done", reason="", epochs=1, metrics=metrics)
    _, child = Records().batches(event for event, _ in ledger.read(sweep.ledger))
    assert {point.key for point in child.metrics} == {
        "best/ndcg_at_10",
        "valid/ndcg_at_10",
        *(f"test/ndcg_at_{k}" for k in (1, 10, 100)),
    }


def test_how_times_were_taken_is_a_tag_and_a_second_timing_is_the_last_value(made: Make) -> None:
    sweep = made()
    sweep.open(["a"])
    sweep.cell("a", "ce", {}, seed=1, gib=1.0)
    sweep.train("a", 0.05, peak_gib=1.0, gpu_share=0.5)
    events = [event for event, _ in ledger.read(sweep.ledger)]
    records = Records()
    _, child = records.batches(events)
    assert child.tags["sweep.timing"] == "shared"
    metrics = {"time/epoch_s": 0.125, "time/step_ms": 2.0}
    sweep.add("timing", cell_key="a", epochs=3, metrics=metrics, node="here", gpu="some GPU")
    new = [event for event, _ in ledger.read(sweep.ledger)][len(events) :]
    [later] = records.batches(new)
    assert (later.tags, later.status, later.params) == ({"sweep.timing": "alone, again"}, None, {})
    assert [(point.key, point.value) for point in later.metrics] == list(metrics.items())
    before = [point for point in child.metrics if point.key == "time/epoch_s"]
    last = max(before, key=lambda point: (point.step, point.time_ms))
    assert (later.metrics[0].step, later.metrics[0].time_ms) > (last.step, last.time_ms)


def test_a_cell_without_an_epoch_has_no_such_tag(made: Make) -> None:
    sweep = made()
    sweep.open(["a"])
    sweep.cell("a", "ce", {}, seed=1, gib=1.0)
    sweep.train("a", 0.05, epochs=0, outcome="oom", reason="CUDA out of memory", gpu_share=0.5)
    _, child = Records().batches(event for event, _ in ledger.read(sweep.ledger))
    assert "sweep.timing" not in child.tags
