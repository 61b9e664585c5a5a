"""One cell on a worker, without Ray: what it tells the driver, whatever training does."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from seqrec.config import Run
from seqrec.errors import DivergedError
from seqrec.reports import EpochReport, RunReport
from seqrec.trainer import Keep
from sweeps import trial
from sweeps.trial import Settings

RUN = Run.model_validate(
    {"data": {"path": "x"}, "model": {"name": "sasrec"}, "loss": {"name": "ce"}, "train": {"epochs": 3}}
)
DATA_KEY = RUN.data.model_dump_json()
DATA = SimpleNamespace(statistics="of the data")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The messages a trial has sent."""
    messages: list[dict[str, Any]] = []
    monkeypatch.setattr(trial.tune, "report", lambda result: messages.append(json.loads(result[trial.MESSAGE])))
    return messages


def call(directory: Path, trainer: Callable[..., RunReport]) -> None:
    threads = torch.get_num_threads()
    splits: Any = {DATA_KEY: DATA}
    try:
        trial.run(
            {"cell_key": "k", "gpu_share": 0.0}, {"k": RUN.model_dump_json()}, splits, Settings(directory, 1, trainer)
        )
    finally:
        torch.set_num_threads(threads)


def test_what_a_cell_tells(tmp_path: Path, told: list[dict[str, Any]]) -> None:
    def trainer(run: Run, *, split: Any, on_epoch: Any, workdir: Path, device: str) -> RunReport:
        assert (run, split, workdir, device) == (RUN, DATA, tmp_path / "k", "cpu")
        assert torch.get_num_threads() == 1
        on_epoch(EpochReport(1, {"train/loss": 2, "valid/ndcg_at_10": 0.5}))
        return RunReport(1, False, {"best/epoch": 1, "test/ndcg_at_10": 0.25})

    call(tmp_path, trainer)
    assert [message.pop("kind") for message in told] == ["start", "epoch", "end"]
    assert told[0].pop("node")
    assert told == [
        {"pid": os.getpid(), "from_epoch": 0, "gpu_share": 0.0},
        {"epoch": 1, "metrics": {"train/loss": 2.0, "valid/ndcg_at_10": 0.5}},
        {"outcome": "done", "reason": "", "epochs": 1, "metrics": {"best/epoch": 1.0, "test/ndcg_at_10": 0.25}},
    ]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "oom"),
        (DivergedError("train/loss: got nan"), "diverged"),
        (KeyError("x"), "error"),
        (OSError(errno.ENOSPC, "No space left on device"), "interrupted"),
    ],
)
def test_an_exception_is_the_last_message(
    tmp_path: Path, told: list[dict[str, Any]], error: Exception, outcome: str
) -> None:
    def trainer(run: Run, *, on_epoch: Any, **rest: Any) -> RunReport:
        on_epoch(EpochReport(1, {}))
        on_epoch(EpochReport(2, {}))
        raise error

    call(tmp_path, trainer)
    assert (told[-1]["kind"], told[-1]["outcome"], told[-1]["epochs"]) == ("end", outcome, 2)
    assert type(error).__name__ in told[-1]["reason"]


def test_being_stopped_is_no_outcome_and_ends_the_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reports: list[Any] = []

    def stop_at_the_second(result: Any) -> None:
        reports.append(result)
        if len(reports) == 2:
            raise SystemExit(0)

    monkeypatch.setattr(trial.tune, "report", stop_at_the_second)

    def trainer(run: Run, *, on_epoch: Any, **rest: Any) -> RunReport:
        for epoch in (1, 2, 3):
            on_epoch(EpochReport(epoch, {}))
        raise AssertionError("trained on after it was stopped")

    with pytest.raises(SystemExit):
        call(tmp_path, trainer)
    assert len(reports) == 2


def test_the_start_says_how_far_the_checkpoint_is(tmp_path: Path, told: list[dict[str, Any]]) -> None:
    workdir = tmp_path / "k"
    workdir.mkdir()
    torch.save({"history": [{}, {}], "engine": {"weights": torch.zeros(3)}}, workdir / "last.pt")
    call(tmp_path, lambda run, **rest: RunReport(0, False, {}))
    assert told[0]["from_epoch"] == 2
    (workdir / "last.pt").write_bytes(b"torn")
    call(tmp_path, lambda run, **rest: RunReport(0, False, {}))
    assert told[2]["from_epoch"] == 0


def test_the_checkpoint_it_looks_at_is_the_trainer_s() -> None:
    from seqrec.trainer import CHECKPOINT_NAME

    assert trial.CHECKPOINT_NAME == CHECKPOINT_NAME


def test_out_of_memory_on_a_gpu_tells_the_peak_it_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(trial.tune, "report", lambda result: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    def trainer(run: Run, *, on_epoch: Any, **rest: Any) -> RunReport:
        on_epoch(EpochReport(1, {"memory/peak_gib": 2.0}))
        raise torch.OutOfMemoryError("CUDA out of memory")

    found = []
    for now in (3.5, 1.5):
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda now=now: int(now * 2**30))
        found.append(trial._train(RUN, {DATA_KEY: DATA}, tmp_path, "cuda", trainer))
    assert [last["metrics"] for last in found] == [{"memory/peak_gib": 3.5}, {"memory/peak_gib": 2.0}]
    assert {last["outcome"] for last in found} == {"oom"}
    assert trial._train(RUN, {DATA_KEY: DATA}, tmp_path, "cpu", trainer)["metrics"] == {}


def test_cells_of_a_process_share_one_object_of_the_data(tmp_path: Path, told: list[dict[str, Any]]) -> None:
    """What was worked out of it and is kept on the device is found by the object; Ray makes a new one for each cell."""
    seen: list[Any] = []

    def trainer(run: Run, *, split: Any, **rest: Any) -> RunReport:
        seen.append(split)
        return RunReport(0, False, {})

    for name in ("some", "some", "other", "some"):
        threads = torch.get_num_threads()
        splits: Any = {DATA_KEY: SimpleNamespace(statistics=name)}
        settings = Settings(tmp_path, 1, trainer)
        trial.run({"cell_key": "k", "gpu_share": 0.0}, {"k": RUN.model_dump_json()}, splits, settings)
        torch.set_num_threads(threads)
    assert seen[0] is seen[1]
    assert [split.statistics for split in seen] == ["some", "some", "other", "some"]
    assert seen[3] is not seen[0], "one at a time is kept"


@pytest.mark.parametrize(
    ("epochs", "every", "rungs", "found"),
    [
        (300, 1, (1, 3, 9), {1, 3, 9}),
        (300, 2, (1, 3, 9, 10), {2, 4, 10}),  # judged when it validates
        (10, 4, (1, 3, 9), {4, 10}),  # and after the last epoch
        (10, 1, (), set()),
    ],
)
def test_where_a_rule_may_end_a_trial(epochs: int, every: int, rungs: tuple[int, ...], found: set[int]) -> None:
    train = RUN.train.model_copy(update={"epochs": epochs, "valid_every": every})
    assert trial.pauses(RUN.model_copy(update={"train": train}), rungs) == found


def test_training_is_told_when_to_write_checkpoints(
    tmp_path: Path, told: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(run: Run, *, keep: Keep, **rest: Any) -> RunReport:
        assert keep == Keep(every_s=7.0, pauses=frozenset({1, 3}))
        return RunReport(0, False, {})

    monkeypatch.setattr("seqrec.train.train", train)
    threads = torch.get_num_threads()
    settings = Settings(tmp_path, threads, checkpoint_every_s=7.0, rungs=(1, 3))
    splits: Any = {DATA_KEY: DATA}
    trial.run({"cell_key": "k", "gpu_share": 0.0}, {"k": RUN.model_dump_json()}, splits, settings)
    assert told[-1]["outcome"] == "done", told[-1]
