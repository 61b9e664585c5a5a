"""Data that stays on the device is the same data, one set at a time, and training cannot tell."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from seqrec import data, stopwatch, train
from seqrec.config import Run
from seqrec.data.batches import DeviceSequences
from seqrec.data.resident import Resident
from seqrec.data.tables import Split
from tests.faults.drive import make_data, make_run

CPU = torch.device("cpu")


@pytest.fixture
def given(tmp_path: Path) -> tuple[Run, Split]:
    run = make_run(make_data(tmp_path), 8, epochs=2)
    return run, data.load(run.data)


def test_the_same_object_is_kept(given: tuple[Run, Split]) -> None:
    resident, (_, split) = Resident(), given
    held = resident.of(split.train, CPU)
    assert resident.of(split.train, CPU) is held
    assert torch.equal(held.items, torch.tensor(split.train.items))


def test_other_data_takes_its_place_once_it_is_gone(given: tuple[Run, Split], monkeypatch: pytest.MonkeyPatch) -> None:
    """Both at a time could be more than the device holds."""
    resident, (run, split) = Resident(), given
    first = weakref.ref(resident.of(split.train, CPU).items)
    made = DeviceSequences.of
    alive: list[bool] = []

    def of(sequences: Any, device: Any) -> DeviceSequences:
        alive.append(first() is not None)
        return made(sequences, device)

    monkeypatch.setattr(DeviceSequences, "of", of)
    other = data.load(run.data)
    assert resident.of(other.train, CPU) is resident.of(other.train, CPU)
    assert alive == [False], "equal content in another object is other data"


def test_dropped_it_is_made_anew(given: tuple[Run, Split]) -> None:
    resident, (_, split) = Resident(), given
    held = resident.of(split.train, CPU)
    resident.drop()
    resident.drop()
    assert resident.of(split.train, CPU) is not held


@pytest.mark.parametrize("model", ["sasrec", "bert4rec"])
def test_training_uses_what_is_kept_and_does_not_notice(given: tuple[Run, Split], model: str) -> None:
    resident, (run, split) = Resident(), given
    if model == "bert4rec":
        tree = run.model_dump(mode="json") | {"model": {"name": model, "max_length": 6, "hidden_size": 8, "n_heads": 1}}
        run = Run.model_validate(tree)
    held = resident.of(split.train, CPU)
    before = held.items.clone()
    engines = []
    build = train.build_engine

    def built(*arguments: Any) -> Any:
        engines.append(build(*arguments))
        return engines[-1]

    with mock.patch.object(train, "build_engine", built):
        with_it = [train.train(run, split=split, device="cpu", resident=resident) for _ in range(2)]
    assert all(engine.batches.sequences is held for engine in engines)
    assert torch.equal(held.items, before)
    without = train.train(run, split=split, device="cpu")
    losses = [[epoch.metrics["train/loss"] for epoch in report.history] for report in (*with_it, without)]
    assert losses[0] == losses[1] == losses[2]


def test_a_process_without_memory_keeps_nothing(given: tuple[Run, Split]) -> None:
    resident, (run, split) = Resident(), given
    held = resident.of(split.train, CPU)
    with (
        mock.patch.object(train.trainer, "fit", side_effect=torch.OutOfMemoryError("CUDA out of memory")),
        pytest.raises(torch.OutOfMemoryError),
    ):
        train.train(run, split=split, device="cpu", resident=resident)
    assert resident.of(split.train, CPU) is not held


def test_a_second_timing_keeps_nothing_between_runs(given: tuple[Run, Split]) -> None:
    run, split = given
    made = DeviceSequences.of
    with mock.patch.object(DeviceSequences, "of", side_effect=made) as of:
        for _ in range(2):
            stopwatch.epochs(run, split=split, count=1, device="cpu")
    assert of.call_count == 2
