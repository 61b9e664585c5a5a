"""Predicted epochs against measured ones, and the carried coefficients against the rows that they come from."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import epoch_times
from seqrec import config, epoch_time
from seqrec.config import Run
from seqrec.data.tables import Statistics

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
SYNTHETIC = Statistics("synthetic", "0" * 64, 27_516, 2_280_000, 173_511, 27_516, ((74, 9_242), (75, 18_274)))
"""With the users, items and positions (2,026,942) that `benchmarks.training` has."""


def run(loss: dict[str, Any], model: dict[str, Any] | None = None, **train: Any) -> Run:
    return config.parse({"data": {"path": "x"}, "model": model or {"name": "sasrec"}, "loss": loss, "train": train})


def seconds(of: Run, statistics: Statistics = SYNTHETIC) -> float:
    predicted = epoch_time.predict(of, statistics)
    assert predicted is not None
    return predicted.epoch_s


def trained() -> list[dict[str, str]]:
    with (RESULTS / "training.csv").open(encoding="utf-8") as file:
        fitted = epoch_time.coefficients()["rows"]["training.csv"]
        return [row for row in csv.DictReader(file) if row["kernels"] == "fused" and row["commit"] in fitted]


@pytest.mark.parametrize("row", trained(), ids=lambda row: f"{row['loss']} b{row['batch_size']} {row['keys']}")
def test_an_epoch_is_what_was_measured(row: dict[str, str]) -> None:
    """Within the error that the file claims for its worst row; steps and positions are worked out here."""
    keys = {name: json.loads(value.lower()) for name, value in (word.split("=") for word in row["keys"].split())}
    predicted = seconds(run({"name": row["loss"], **keys}, batch_size=int(row["batch_size"]), drop_last=True))
    worst = abs(epoch_time.coefficients()["errors"]["epoch"]["largest"])
    assert worst < 0.1
    assert predicted == pytest.approx(float(row["epoch_s"]), rel=worst + 0.005)


def test_the_carried_coefficients_are_those_of_the_rows() -> None:
    carried = dict(epoch_time.coefficients())
    made = epoch_times.made(carried["rows"])
    for part in ("encoder", "losses", "evaluation", "epoch_errors"):
        assert made[part] == pytest.approx(carried[part], rel=1e-3, abs=2e-3), part
    assert made["rows"] == carried["rows"]
    assert all(value >= 0 for part in ("encoder", "losses") for value in made[part].values())


def test_the_fit_finds_the_coefficients_of_made_up_rows() -> None:
    rows = [epoch_times.Row("", {"a": float(n), "b": n * n, "idle": 1.0}, 2.0 * n + 0.5 * n * n) for n in range(1, 9)]
    assert epoch_times.fit(rows, ["a", "b", "idle"]) == pytest.approx({"a": 2.0, "b": 0.5, "idle": 0.0}, abs=1e-6)


def test_the_fit_puts_nothing_below_zero() -> None:
    rows = [epoch_times.Row("", {"a": float(n), "b": 1.0}, 2.0 * n - 1.0) for n in range(1, 9)]
    assert epoch_times.fit(rows, ["a", "b"])["b"] == 0.0


def test_rece_takes_the_path_that_its_kernels_take() -> None:
    launch = pytest.importorskip("seqrec.kernels.rece_launch")
    cases = [(r, c, e) for r in (1, 2, 8, 16, 17, 18, 32, 128) for c in (8, 87, 350, 583, 1008) for e in (0, 1, 3, 10)]
    decided = [epoch_time.scores_every_pair(*case) for case in cases]
    assert decided == [launch.is_dense(*case) for case in cases]
    assert 0 < sum(decided) < len(cases)


def test_the_mean_step_counts_users_and_positions() -> None:
    small = Statistics("s", "0" * 64, 10, 100, 50, 10, ((3, 4), (21, 6)))
    step, steps = epoch_time.mean_step(run({"name": "ce"}, {"name": "sasrec", "max_length": 10}, batch_size=4), small)
    assert (steps, step.users) == (3, pytest.approx(10 / 3))
    assert step.positions * steps == pytest.approx(4 * 2 + 6 * 10)
    step, steps = epoch_time.mean_step(run({"name": "ce"}, batch_size=4, drop_last=True), small)
    assert (steps, step.users) == (2, 4)
    step, steps = epoch_time.mean_step(run({"name": "ce"}, batch_size=64), small)
    assert (steps, step.users) == (1, 10)


LARGER: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"name": "bce", "n_negatives": 16}, {"n_negatives": 64}),
    ({"name": "bce_plus", "n_negatives": 16}, {"n_negatives": 64}),
    ({"name": "gbce", "n_negatives": 16}, {"n_negatives": 64}),
    ({"name": "ce_minus", "n_negatives": 16}, {"n_negatives": 64}),
    ({"name": "cce_minus", "n_negatives": 16}, {"n_negatives": 64}),
    ({"name": "sce", "n_buckets": 50, "bucket_size_x": 50, "bucket_size_y": 64}, {"bucket_size_y": 256}),
    ({"name": "rece", "n_buckets": 100, "rounds": 1}, {"rounds": 4}),
]


@pytest.mark.parametrize(("loss", "more"), LARGER, ids=lambda part: part.get("name", ""))
def test_more_work_takes_longer(loss: dict[str, Any], more: dict[str, Any]) -> None:
    assert seconds(run(loss)) < seconds(run({**loss, **more}))


@pytest.mark.parametrize("loss", [{"name": "ce"}, {"name": "cce"}, *(loss for loss, _ in LARGER)])
def test_larger_catalogs_and_models_take_longer(loss: dict[str, Any]) -> None:
    small = run(loss)
    assert seconds(small) < seconds(small, replace(SYNTHETIC, n_items=1_000_000))
    assert seconds(small) < seconds(run(loss, {"name": "sasrec", "hidden_size": 256}))
    assert seconds(small) < seconds(run(loss, {"name": "sasrec", "n_blocks": 4}))


@pytest.mark.parametrize("scope", ["user", "position", "group", "batch"])
def test_every_scope_of_negatives_has_a_time(scope: str) -> None:
    history = scope in ("user", "position")
    loss = {"name": "ce_minus", "n_negatives": 64, "negatives_scope": scope, "exclude_history": history}
    assert 0 < seconds(run(loss)) < 60


def test_eager_steps_have_no_prediction() -> None:
    for key, value in (("engine", "eager"), ("precision", "fp32"), ("kernels", "eager")):
        assert epoch_time.predict(run({"name": "ce"}, **{key: value}), SYNTHETIC) is None


def test_what_was_never_timed_is_said() -> None:
    assert epoch_time.outside(run({"name": "ce"}), SYNTHETIC) == ()
    strange = run({"name": "rece", "n_buckets": 9, "rounds": 999}, {"name": "bert4rec"}, optimizer="lazy_adam")
    assert epoch_time.outside(strange, replace(SYNTHETIC, n_items=500)) == (
        "model bert4rec",
        "hidden_size 256",
        "500 items",
        "optimizer lazy_adam",
        "rounds above 128",
    )


def test_only_masked_positions_of_bert4rec_are_scored() -> None:
    few = {"name": "bert4rec", "mask_probability": 0.1}
    many = {"name": "bert4rec", "mask_probability": 0.9}
    assert seconds(run({"name": "ce"}, few)) < 0.5 * seconds(run({"name": "ce"}, many))


def test_validation_is_of_the_held_out_users() -> None:
    """As `benchmarks/results/evaluation.csv` has 5,000 users of 173,511 items: 0.098 s, with lists 0.1334 s."""
    measured = replace(SYNTHETIC, rows=(("train", 1), ("valid", 5_000)))
    predicted = epoch_time.predict(run({"name": "ce"}), measured)
    assert predicted is not None
    assert predicted.valid_s == pytest.approx(0.098, rel=0.05)
    assert predicted.test_s == pytest.approx(0.1334, rel=0.1)
    assert predicted.cell_s(10, valid_every=4) == pytest.approx(
        predicted.start_s + 10 * predicted.epoch_s + 3 * predicted.valid_s + predicted.test_s
    )
