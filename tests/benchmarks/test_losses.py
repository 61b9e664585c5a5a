"""The benchmark of the losses: what it refuses to time, and what it records."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import loss_clock, losses
from benchmarks.loss_cases import MODULES
from benchmarks.loss_clock import Result

NAMES = [
    ("cross_entropy", "cross_entropy"), ("sampled", "sampled_softmax"), ("sampled", "sampled_binary"),
    ("shared", "shared_softmax"), ("rece", "rece"), ("sce", "sce"),
]  # fmt: skip


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "losses.csv").open(newline="") as handle:
        return list(csv.DictReader(handle))


def test_every_loss_has_rows_with_their_conditions(
    fakes: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert losses.main(["--quick", "--results", str(tmp_path)]) == 0
    found = table(tmp_path)
    by_whom = {(row["loss"], row["who"]) for row in found}
    assert by_whom >= {(loss, who) for loss in MODULES for who in ("fused", "eager")} | {("ce", "torch")}
    for row in found:
        assert row["outcome"] == "ok"
        assert float(row["eager_ms"]) > 0
        assert float(row["value"]) > 0
        assert all(row[key] for key in ("command", "commit", "gpu", "cpu", "python", "torch", "triton", "utc"))
        assert row["peak_bytes"] == row["graph_ms"] == "", "measured on a GPU only"
    values = {row["who"]: float(row["value"]) for row in found if row["loss"] == "ce" and row["dtype"] == "float32"}
    assert len(values) >= 3
    assert max(values.values()) - min(values.values()) < 1e-4, "one loss, whoever computes it"
    assert (tmp_path / "losses_random_quick.png").stat().st_size > 1000
    printed = capsys.readouterr().out
    assert printed.count(" fused fp32") == sum(row["who"] == "fused" for row in found)
    assert "0 red" in printed


def test_peaked_inputs_and_one_loss(fakes: object, tmp_path: Path) -> None:
    assert losses.main(["--quick", "--only", "rece", "--inputs", "peaked", "--results", str(tmp_path)]) == 0
    found = table(tmp_path)
    assert {row["loss"] for row in found} == {"rece"}
    assert {row["inputs"] for row in found} == {"peaked"}


def wrong_value(result: tuple[Any, ...]) -> tuple[Any, ...]:
    return (result[0] * 1.0002, *result[1:])


def wrong_row(result: tuple[Any, ...]) -> tuple[Any, ...]:
    to_items = result[2].clone()
    to_items[3] += 0.01
    return (*result[:2], to_items, *result[3:])


def not_a_number(result: tuple[Any, ...]) -> tuple[Any, ...]:
    to_hidden = result[1].clone()
    to_hidden[0, 0] = torch.nan
    return (result[0], to_hidden, *result[2:])


def raises(result: tuple[Any, ...]) -> tuple[Any, ...]:
    raise RuntimeError("an illegal memory access")


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name[1])
@pytest.mark.parametrize("harm", [wrong_value, wrong_row, not_a_number, raises])
def test_a_wrong_kernel_is_red_and_nothing_is_timed(
    fakes: dict[Any, Any],
    name: tuple[str, str],
    harm: Callable[[tuple[Any, ...]], tuple[Any, ...]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    right = fakes[name]
    fakes[name] = lambda *arguments, **given: harm(right(*arguments, **given))
    monkeypatch.setattr(loss_clock, "read", lambda *_, **__: pytest.fail("timed what is wrong"))
    assert losses.main(["--quick", "--results", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "red: " in printed
    assert not (tmp_path / "losses.csv").exists()


def test_green_losses_can_be_timed_beside_a_red_one(fakes: dict[Any, Any], tmp_path: Path) -> None:
    right = fakes["sce", "sce"]
    fakes["sce", "sce"] = lambda *arguments, **given: wrong_row(right(*arguments, **given))
    arguments = ["--quick", "--only", "ce", "sce", "--green", "--fused-only", "--results", str(tmp_path)]
    assert losses.main(arguments) == 1
    assert [(row["loss"], row["who"]) for row in table(tmp_path)] == [("ce", "fused")]


@pytest.mark.parametrize("allowed", [False, True])
def test_what_is_not_built_is_said(
    fakes: dict[Any, Any], allowed: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del fakes["sampled", "sampled_binary"]
    arguments = ["--quick", "--only", "bce", "cce_minus", "--results", str(tmp_path)]
    assert losses.main(arguments + ["--allow-missing"] * allowed) == (0 if allowed else 1)
    assert "not built: bce\n" in capsys.readouterr().out
    assert {(row["loss"], row["who"]) for row in table(tmp_path)} == {
        ("bce", "eager"), ("cce_minus", "fused"), ("cce_minus", "eager"),
    }  # fmt: skip


def test_a_loss_that_does_not_fit_or_fails_does_not_end_the_run(
    fakes: dict[Any, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(losses.loss_gate, "check", lambda *_: [])

    def too_large(*_: object, **__: object) -> Result:
        raise torch.OutOfMemoryError("tried to allocate 102 GB")

    fakes["cross_entropy", "cross_entropy"] = too_large
    fakes["sce", "sce"] = lambda *_, **__: raises(())
    arguments = ["--quick", "--only", "ce", "sce", "rece", "--fused-only", "--results", str(tmp_path)]
    assert losses.main(arguments) == 1
    found = table(tmp_path)
    assert [(row["loss"], row["outcome"]) for row in found] == [("ce", "oom"), *[("rece", "ok")] * 3]
    assert found[0]["eager_ms"] == found[0]["value"] == ""
    printed = capsys.readouterr().out
    assert "out of memory" in printed
    assert "RuntimeError: an illegal memory access" in printed


def test_after_the_deadline_nothing_starts(fakes: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert losses.main(["--quick", "--only", "ce", "--deadline", "0", "--results", str(tmp_path)]) == 0
    assert not (tmp_path / "losses.csv").exists()
    assert "left out after 0 s: ce fused fp32 quick" in capsys.readouterr().out


def test_without_a_gpu_only_quick_runs(fakes: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert losses.main([]) == 2
    assert "hint: --quick" in capsys.readouterr().err
