"""A second timing is of training's own epochs, and of nothing else."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from seqrec import data, meters, stopwatch
from seqrec.engine import Engine
from tests.faults.drive import make_data, make_run


def test_an_epoch_is_the_median_of_those_behind_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(make_data(tmp_path), 8, epochs=9)
    split = data.load(run.data)
    epochs: list[int] = []
    train = Engine.run_epoch
    monkeypatch.setattr(Engine, "run_epoch", lambda self, epoch: (epochs.append(epoch), train(self, epoch))[1])
    seconds: list[float] = []
    measured = meters.measure

    def measure(work: Callable[[], Any], device: torch.device) -> Any:
        result, reading = measured(work, device)
        seconds.append(reading.seconds)
        return result, reading

    monkeypatch.setattr(meters, "measure", measure)
    state = torch.get_rng_state()
    times = stopwatch.epochs(run, split=split, count=3, device="cpu")
    assert epochs == [1, 2, 3, 4]
    assert len(seconds) == 3, "the first epoch is not timed"
    assert times["time/epoch_s"] == statistics.median(seconds)
    steps = -(-split.statistics.n_train_users // 8)
    assert times["time/step_ms"] == pytest.approx(1e3 * times["time/epoch_s"] / steps)
    assert torch.equal(torch.get_rng_state(), state)
