"""Checkpoints of cells that have ended are removed, whoever left them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.sweeps.test_execute import CELLS, FakeRay, ray as ray
from tests.sweeps.test_reuse import run

assert ray  # the fixture

FIRST, SECOND, THIRD = (cell.cell_key for cell in CELLS[:3])


def make(checkpoints: Path, *keys: str) -> None:
    for key in keys:
        (checkpoints / key).mkdir(parents=True, exist_ok=True)
        (checkpoints / key / "last.pt").touch()


def test_what_a_killed_driver_left_of_an_ended_cell_goes_and_the_rest_stays(tmp_path: Path, ray: FakeRay) -> None:
    checkpoints = tmp_path / "s" / "checkpoints"
    ray.outcomes = {1: "done"}
    run(tmp_path, "s", 1)
    make(checkpoints, FIRST, SECOND, THIRD)
    run(tmp_path, "s", 1)
    assert sorted(folder.name for folder in checkpoints.iterdir()) == sorted([SECOND, THIRD]), "they may go on"


def test_what_a_process_writes_after_its_cell_has_ended_goes_too(
    tmp_path: Path, ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = tmp_path / "s" / "checkpoints"
    ray.outcomes = {1: "done"}
    fit = ray.fit

    def cut_off(*arguments: Any, **options: Any) -> None:
        fit(*arguments, **options)
        make(checkpoints, FIRST)

    monkeypatch.setattr("sweeps.tuning.fit", cut_off)
    run(tmp_path, "s", 1)
    assert list(checkpoints.iterdir()) == []


def test_checkpoints_to_be_kept_are_kept(tmp_path: Path, ray: FakeRay) -> None:
    ray.outcomes = {1: "done"}
    run(tmp_path, "s", 1, keep_checkpoints=True)
    run(tmp_path, "s", 1, keep_checkpoints=True)
    assert [folder.name for folder in (tmp_path / "s" / "checkpoints").iterdir()] == [FIRST]
