"""When trials are told to write checkpoints; and those of cells that have ended are removed, whoever left them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sweeps import execute
from sweeps.spec import Resources, SchedulerSpec
from sweeps.trial import Settings
from tests.sweeps.test_execute import CELLS, PLAN, FakeRay, options, ray as ray, space
from tests.sweeps.test_reuse import run

assert ray  # the fixture

FIRST, SECOND, THIRD = (cell.cell_key for cell in CELLS[:3])


def make(checkpoints: Path, *keys: str) -> None:
    for key in keys:
        (checkpoints / key).mkdir(parents=True, exist_ok=True)
        (checkpoints / key / "last.pt").touch()


@pytest.mark.parametrize(
    ("rule", "rungs"),
    [
        (SchedulerSpec(name="fifo"), ()),
        (SchedulerSpec(name="asha", grace_epochs=2), (2,)),
        (SchedulerSpec(name="pareto_asha", rung_factor=2.0), (1, 2)),
    ],
    ids=lambda value: value.name if isinstance(value, SchedulerSpec) else "",
)
def test_trials_write_checkpoints_by_the_search_space_s_clock_and_at_the_rule_s_rungs(
    tmp_path: Path, ray: FakeRay, monkeypatch: pytest.MonkeyPatch, rule: SchedulerSpec, rungs: tuple[int, ...]
) -> None:
    fit, given = ray.fit, []

    def noted(launch: Any, feed: Any, splits: Any, settings: Settings, **options: Any) -> None:
        given.append(settings)
        fit(launch, feed, splits, settings, **options)

    monkeypatch.setattr("sweeps.tuning.fit", noted)
    resources = Resources(gpus_per_trial=0.0, checkpoint_every_s=7.0)
    execute.run(space(scheduler=rule, resources=resources), PLAN, options(tmp_path))
    [settings] = given
    assert (settings.checkpoint_every_s, settings.rungs) == (7.0, rungs)


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
