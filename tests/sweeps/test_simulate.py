"""The simulator: known cases by hand, laws of a replay, sources that cannot be read, and the published cells."""

from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from seqrec.config import Run
from sweeps import cells, replay, simulate, stopping
from sweeps.cells import Cell
from sweeps.launch import Launch
from sweeps.replay import Recorded
from sweeps.spec import SchedulerSpec

PUBLISHED = Path(__file__).parents[2] / "benchmarks" / "data" / "ce_minus_cells.csv"
HEAD = ",".join(simulate.COLUMNS)


def recorded(
    number: int,
    quality: float,
    *,
    memory: float = 1.0,
    seconds: Sequence[float] = (1.0,) * 27,
    seed: int = 1,
    loss: str = "ce",
) -> Recorded:
    tree: dict[str, Any] = {
        "data": {"path": "x"},
        "model": {"name": "sasrec", "max_length": number},
        "loss": {"name": loss},
        "train": {"epochs": 27, "seed": seed},
    }
    run = Run.model_validate(tree)
    parameters: dict[str, Any] = {"loss.name": "ce", "model.max_length": number, "train.seed": seed}
    cell = Cell(*cells.keys(run, "0" * 64), run, parameters, round(memory * 2**30))
    return Recorded(cell, quality, memory, tuple(seconds))


def run(source: list[Recorded], name: str, workers: int = 2, noise: float = 0.0, **keys: Any) -> tuple[Any, ...]:
    rule = stopping.rule(SchedulerSpec(name=name, **keys), [each.cell for each in source])
    return replay.run(source, rule, workers=workers, noise=noise, seed=0)


def test_under_fifo_everything_runs_and_the_wall_time_is_that_of_the_workers() -> None:
    source = [recorded(n, 0.1) for n in range(1, 5)]
    finished, epochs, wall_s = run(source, "fifo", workers=2)
    assert finished == {each.cell.cell_key for each in source}
    assert (epochs, wall_s) == (4 * 27, 2 * 27.0)
    uneven = [recorded(1, 0.1, seconds=(10.0,)), recorded(2, 0.1, seconds=(2.0, 3.0)), recorded(3, 0.1, seconds=(4.0,))]
    assert run(uneven, "fifo", workers=3) == ({each.cell.cell_key for each in uneven}, 4, 10.0)


def test_what_is_kept_of_each_loss() -> None:
    source = [recorded(1, 0.5), recorded(2, 0.4, memory=2.0, loss="cce"), recorded(3, 0.1, loss="cce")]
    keys = [each.cell.cell_key for each in source]
    told = [replay.judge(source, kept, 1, 1.0).losses for kept in (keys, keys[:1], [keys[0], keys[2]], keys[1:])]
    assert told == pytest.approx([1.0, 0.5, (1 + 0.25) / 2, 0.5])


def test_a_dominated_cell_is_stopped_at_the_first_rung_and_its_worker_is_free() -> None:
    source = [recorded(1, 0.5, memory=1.0), recorded(2, 0.1, memory=1.1)]
    finished, epochs, wall_s = run(source, "pareto_asha", workers=1)
    assert finished == {source[0].cell.cell_key}
    assert epochs in (28, 30), "one epoch, or three if it was the best of its half-octave when it came"
    assert wall_s == epochs


def test_in_rounds_promotion_waits_until_nothing_runs() -> None:
    """The second cell is at its rung after 1 s; in rounds it waits there for the first one's epoch of 10 s."""
    alone = [recorded(1, 0.5, seconds=(10.0, *(1.0,) * 26)), recorded(2, 0.5, seconds=(1.0, *(10.0,) * 26))]
    free, held = (
        replay.run(alone, _rule(alone), workers=2, noise=0.0, seed=0, rounds=rounds) for rounds in (False, True)
    )
    assert (free[2], held[2]) == (1 + 26 * 10.0, 10 + 26 * 10.0)


def _rule(source: list[Recorded]) -> Any:
    return stopping.rule(SchedulerSpec(name="pareto_asha", rung_factor=30.0, keep=1.0), [each.cell for each in source])


def test_the_front_and_its_area_by_hand() -> None:
    points = {"a": (1.0, 0.2), "b": (2.0, 0.1), "c": (2.0, 0.4), "d": (2.0, 0.4), "e": (4.0, 0.4), "f": (8.0, 0.5)}
    assert replay.front(points) == {"a", "c", "d", "f"}
    area = math.log(2) * 0.2 + math.log(4) * 0.4 + math.log(1.01) * 0.5
    assert replay.hypervolume(points.values(), 8.08) == pytest.approx(area)


def test_what_was_kept_is_measured_by_configurations() -> None:
    """A replicate that ran stands for its configuration, with the mean over all replicates of the source."""
    source = [recorded(1, 0.2, seed=1), recorded(1, 0.4, seed=2), recorded(2, 0.35, memory=2.0)]
    only = replay.judge(source, {source[0].cell.cell_key}, 27, 5.0)
    assert (only.epochs, only.wall_s, only.front) == (pytest.approx(1 / 3), 5.0, 0.5)
    left, whole = math.log(2.02) * 0.3, math.log(2.02) * 0.3 + math.log(1.01) * 0.05
    assert only.hypervolume == pytest.approx(left / whole)
    every = replay.judge(source, {each.cell.cell_key for each in source}, 81, 5.0)
    assert (every.epochs, every.front, every.hypervolume) == (1.0, 1.0, 1.0)


def test_rung_scores_follow_the_stated_law() -> None:
    """log(score / result) is normal with deviation noise, 2/3 and 1/3 of it at rungs 0, 1, 2, and 0 at the end."""
    one, draw = recorded(1, 0.5), random.Random(1)
    drawn: dict[int, list[float]] = {epoch: [] for epoch in (1, 3, 9, 27)}
    for _ in range(4000):
        score = replay.scores(one, 0.06, draw)
        assert score(1) == score(2)
        assert score(3) == score(8)
        assert score(9) == score(26)
        for epoch, values in drawn.items():
            value = score(epoch)
            assert value is not None
            values.append(math.log(value / 0.5))
    deviations = [statistics.pstdev(values) for values in drawn.values()]
    assert deviations == pytest.approx([0.06, 0.04, 0.02, 0.0], rel=0.05)


@pytest.mark.parametrize("name", ["fifo", "asha", "dominance", "pareto_asha"])
def test_a_replay_is_determined_by_its_seed(name: str) -> None:
    draw = random.Random(3)
    source = [recorded(n, draw.random(), memory=draw.uniform(1, 9)) for n in range(1, 20)]
    assert run(source, name, noise=0.1) == run(source, name, noise=0.1)


def test_the_published_cells_and_what_was_reached_on_them() -> None:
    sets = simulate.load(PUBLISHED)
    assert sum(map(len, sets.values())) == 997
    assert {name: len(source) for name, source in sets.items()}["gowalla"] == 198
    keep_the_front = simulate.measure(sets, SchedulerSpec(name="pareto_asha"), workers=8, noise=0.05, repeats=3)["mean"]
    assert keep_the_front.epochs <= 0.35
    assert keep_the_front.front >= 0.94
    assert keep_the_front.hypervolume >= 0.99
    cheap = simulate.stopper(simulate.STOPPERS[-1])
    spent = simulate.measure(sets, cheap, workers=8, noise=0.05, repeats=3)["mean"]
    assert spent.epochs <= 0.2
    assert spent.hypervolume >= 0.99


def test_a_sweep_that_ran_is_replayed_with_its_own_curves_and_times(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = [recorded(1, 0.5), recorded(2, 0.3, memory=1.2)]
    planned = [each.cell for each in source]
    launch = Launch(tmp_path, planned, stopping.Fifo())
    launch.open("sweep", "id", cell_keys=[])
    for each, curve in ((source[0], (0.4, 0.5, 0.45)), (source[1], (0.1, 0.1, 0.1))):
        key = each.cell.cell_key
        launch.message(key, {"kind": "start", "node": "n", "pid": 1, "from_epoch": 0, "gpu_share": 0.0})
        for number, value in enumerate(curve, start=1):
            metrics = {"valid/ndcg_at_10": value, "time/epoch_s": 2.0, "time/valid_s": 0.5, "memory/peak_gib": 3.0}
            launch.message(key, {"kind": "epoch", "epoch": number, "metrics": metrics})
        launch.message(key, {"kind": "end", "outcome": "done", "reason": "", "epochs": 3, "metrics": {}})
    launch.close()
    [(name, found)] = simulate.load(tmp_path).items()
    assert name == "x"
    assert [each.values for each in found] == [(0.4, 0.5, 0.45), (0.1, 0.1, 0.1)]
    assert (found[0].result, found[0].memory_gib, found[0].seconds) == (0.5, 3.0, (2.5, 2.5, 2.5))
    assert found[0].cell == planned[0]
    arguments = [str(tmp_path), "--stopper", "fifo", "--stopper", "dominance", "--workers", "1", "--repeats", "1"]
    assert simulate.main([*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["cells"] == {"x": 2}
    assert told["stoppers"]["fifo"]["mean"] == {
        "epochs": 1.0,
        "wall_s": 15.0,
        "front": 1.0,
        "hypervolume": 1.0,
        "losses": 1.0,
    }
    assert told["stoppers"]["dominance"]["x"]["front"] == 1.0
    assert simulate.main(arguments) == 0
    assert "100.00%" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "law"),
    [
        ("a,b\n1,2\n", "columns: got 'a, b'; expected also dataset."),
        (HEAD + "\n", "got no row; expected at least one training."),
        (HEAD + "\nx,ce,8,50,,0.1,none,1\n", "line 2: could not convert string to float: 'none'"),
        (HEAD + "\nx,ce,8,50,,0.1,0,1\n", "line 2: peak_memory_gib: got 0.0; expected > 0."),
        (HEAD + "\nx,ce,8,50,,nan,1,1\n", "line 2: ndcg_at_10: got nan; expected a finite number."),
    ],
)
def test_a_source_that_cannot_be_replayed_is_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, law: str
) -> None:
    path = tmp_path / "cells.csv"
    path.write_text(text)
    assert simulate.main([str(path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {path}")
    assert law in said


@pytest.mark.parametrize(
    ("arguments", "law"),
    [
        (["nowhere"], "SOURCE: got 'nowhere'; expected a sweep's directory or a CSV of finished trainings."),
        ([str(PUBLISHED), "--stopper", "nsga"], "--stopper.name: got 'nsga'; expected 'fifo', 'asha', 'dominance'"),
        ([str(PUBLISHED), "--stopper", "asha,3"], "--stopper: got 'asha,3'; expected NAME or NAME,KEY=VALUE"),
        ([str(PUBLISHED), "--stopper", "pareto_asha,margin=-1"], "--stopper.margin: got -1; expected a number >= 0.0."),
        ([str(PUBLISHED), "--workers", "0"], "--workers: got 0; expected >= 1."),
        ([str(PUBLISHED), "--noise", "nan"], "--noise: got nan; expected a finite number >= 0."),
    ],
)
def test_a_mistake_on_the_command_line_is_one_message(
    capsys: pytest.CaptureFixture[str], arguments: list[str], law: str
) -> None:
    assert simulate.main(arguments) == 2
    assert law in capsys.readouterr().err
