"""On real Ray: cells start one at a time, by what is known at that moment."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import watch
from held import SLOW
from watch import Sweep

from seqrec.config import Run
from sweeps import replay, stopping
from sweeps.cells import Cell
from sweeps.replay import Recorded
from sweeps.spec import SchedulerSpec

pytestmark = pytest.mark.slow
EPOCHS = 9


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sweep]:
    monkeypatch.setattr(watch, "DRIVE", Path(__file__).with_name("held.py"))
    made = Sweep(tmp_path)
    yield made
    made.kill()


def test_a_paused_cell_is_promoted_while_another_is_still_in_its_first_epoch(sweep: Sweep) -> None:
    sweep.start("--instant", "--scheduler=pareto_asha", f"--epochs={EPOCHS}", "--cells=5", "--num-cpus=2")
    sweep.wait_for("start", 6)
    assert sweep.process
    assert sweep.process.poll() is None
    sizes = {event["cell_key"]: event["parameters"]["train.batch_size"] for event in sweep.events("cell")}
    assert SLOW not in {sizes[event["cell_key"]] for event in sweep.events("epoch")}
    assert any(event["from_epoch"] == 0 and event["attempt"] == 2 for event in sweep.events("start")), "no checkpoints"
    (sweep.directory / "go").touch()
    code, text = sweep.finish()
    assert code == 0, text
    assert len(sweep.ends()) == 5
    begun: dict[str, str] = {}
    for pid, size, what in sweep.trace():
        if what == "begin":
            begun[size] = pid
        elif what != "unwound":
            assert begun[size] == pid, "an epoch in a process from which another one had taken the cell over"


def test_on_one_worker_ray_runs_what_the_simulator_says(sweep: Sweep) -> None:
    (sweep.directory / "go").touch()
    code, text = sweep.run("--instant", "--scheduler=pareto_asha", f"--epochs={EPOCHS}", "--num-cpus=1")
    assert code == 0, text
    told = {event["cell_key"]: event for event in sweep.events("cell")}
    source = []
    for key in sweep.events("plan")[0]["cell_keys"]:
        event = told[key]
        run = Run.model_validate(event["run"])
        cell = Cell(key, event["configuration_key"], run, event["parameters"], event["predicted_bytes"])
        value = 1 / run.train.batch_size
        source.append(Recorded(cell, value, 1.0, (1.0,) * EPOCHS, (value,) * EPOCHS))
    spec = SchedulerSpec(name="pareto_asha")
    rule = stopping.rule(spec, [each.cell for each in source])
    starts: list[str] = []
    begin = rule.started
    rule.started = lambda cell: (starts.append(cell.cell_key), begin(cell))[1]
    finished, epochs, _ = replay.run(source, rule, workers=1, noise=0.0, seed=spec.shuffle_seed or 0)
    assert [event["cell_key"] for event in sweep.events("start")] == starts
    assert {event["cell_key"] for event in sweep.ends().values() if event["outcome"] == "done"} == finished
    assert len(sweep.events("epoch")) == epochs
