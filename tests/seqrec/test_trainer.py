"""The trainer's rules, with an engine that follows a script: no training happens here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from seqrec import checkpoint, meters, trainer
from seqrec.config import Train
from seqrec.errors import CheckpointError
from seqrec.reports import EpochReport

IDENTITY = {"run": "this one"}


class Script:
    """Its weight is the number of epochs trained; its validation score in epoch e is scores[e - 1]."""

    device = torch.device("cpu")

    def state_bytes(self) -> int:
        return 2**28

    def peak_bytes(self, measured: int) -> int:
        return measured

    def __init__(self, scores: Sequence[float]) -> None:
        self.scores = scores
        self.trained: list[int] = []
        self.epoch = 0

    def run_epoch(self, epoch: int) -> float:
        self.trained.append(epoch)
        self.epoch += 1
        assert self.epoch == epoch
        return 10.0 / epoch

    def validate(self) -> dict[str, float]:
        return {"ndcg_at_10": self.scores[self.epoch - 1], "hit_rate_at_10": 0.5}

    def weights(self) -> dict[str, Tensor]:
        return {"epoch": torch.tensor(self.epoch)}

    def state_dict(self) -> dict[str, object]:
        return {"epoch": self.epoch}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.epoch = state["epoch"]

    def fit(self, **settings: object) -> trainer.Fitted:
        calls = {name: settings.pop(name) for name in ("on_epoch", "workdir") if name in settings}
        return trainer.fit(self, self.validate, Train(**settings), identity=IDENTITY, **calls)


@pytest.mark.parametrize(
    ("patience", "scores", "ends", "best"),
    [
        (1, [0.3, 0.4, 0.4, 0.9], 3, 2),  # equal is no improvement
        (2, [0.3, 0.2, 0.4, 0.4, 0.3, 0.9], 5, 3),  # an improvement starts the count anew
        (3, [0.3, 0.2, 0.2, 0.2, 0.9], 4, 1),
        (2, [0.0, 0.0, 0.0, 0.0], 3, 1),  # never above zero, and still there is a best
    ],
)
def test_patience_counts_validations_without_a_new_best(
    patience: int, scores: list[float], ends: int, best: int
) -> None:
    fitted = Script(scores).fit(epochs=len(scores), patience=patience)
    assert len(fitted.history) == ends
    assert fitted.stopped_early
    assert fitted.best.epoch == best
    assert int(fitted.best_weights["epoch"]) == best


def test_without_patience_all_epochs_are_trained() -> None:
    fitted = Script([0.9] + [0.1] * 19).fit(epochs=20, patience=None)
    assert len(fitted.history) == 20
    assert not fitted.stopped_early


def test_patience_that_ends_with_the_last_epoch_stopped_nothing() -> None:
    assert not Script([0.5, 0.1, 0.1]).fit(epochs=3, patience=2).stopped_early


def test_validation_every_n_epochs_and_after_the_last() -> None:
    fitted = Script([0.1, 0.2, 0.1, 0.1, 0.1, 0.1, 0.3]).fit(epochs=7, valid_every=3, patience=2)
    validated = [report.epoch for report in fitted.history if "valid/ndcg_at_10" in report.metrics]
    assert validated == [3, 6, 7]
    assert [report.epoch for report in fitted.history if report.is_best] == [3, 7]
    assert all("time/valid_s" in fitted.history[n - 1].metrics for n in validated)
    assert "time/valid_s" not in fitted.history[0].metrics


def test_a_report_holds_what_was_measured_and_nothing_else() -> None:
    report = Script([0.1]).fit(epochs=1).history[0]
    assert set(report.metrics) == {
        "train/loss", "valid/ndcg_at_10", "valid/hit_rate_at_10", "time/epoch_s", "time/valid_s", "time/elapsed_s",
    }  # fmt: skip
    metrics = report.metrics
    assert metrics["time/elapsed_s"] == pytest.approx(metrics["time/epoch_s"] + metrics["time/valid_s"])


def test_the_checkpoint_is_on_disk_before_its_epoch_is_reported(tmp_path: Path) -> None:
    seen: list[int] = []

    def look(report: EpochReport) -> None:
        saved = checkpoint.load(tmp_path / trainer.CHECKPOINT_NAME, IDENTITY)
        assert saved is not None
        assert saved.history[-1] == report
        seen.append(report.epoch)

    Script([0.1, 0.3, 0.2]).fit(epochs=3, workdir=tmp_path, on_epoch=look)
    assert seen == [1, 2, 3]


class KilledError(Exception):
    pass


def test_who_is_stopped_in_a_report_touches_the_checkpoint_no_more(tmp_path: Path) -> None:
    """A sweep may go on with the cell in another process while this one still unwinds."""

    def other_process_takes_over(report: EpochReport) -> None:
        if report.epoch == 2:
            for path in tmp_path.iterdir():
                path.write_bytes(b"its own by now")
            raise SystemExit(0)

    with pytest.raises(SystemExit):
        Script([0.1, 0.3, 0.2]).fit(epochs=3, workdir=tmp_path, on_epoch=other_process_takes_over)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"its own by now"]


def test_resuming_reports_the_past_again_and_trains_only_the_rest(tmp_path: Path) -> None:
    scores = [0.1, 0.5, 0.2, 0.3, 0.4, 0.4]
    straight = Script(scores).fit(epochs=6, patience=3)

    def die_in_epoch_3(report: EpochReport) -> None:
        if report.epoch == 3:
            raise KilledError

    first = Script(scores)
    with pytest.raises(KilledError):
        first.fit(epochs=6, patience=3, workdir=tmp_path, on_epoch=die_in_epoch_3)
    reported: list[EpochReport] = []
    second = Script(scores)
    resumed = second.fit(epochs=6, patience=3, workdir=tmp_path, on_epoch=reported.append)
    assert first.trained + second.trained == [1, 2, 3, 4, 5]
    assert tuple(reported) == resumed.history
    assert [r.is_best for r in resumed.history] == [r.is_best for r in straight.history]
    assert resumed.stopped_early
    assert int(resumed.best_weights["epoch"]) == 2, "the best weights come out of the checkpoint"
    elapsed = [report.metrics["time/elapsed_s"] for report in resumed.history]
    assert elapsed == sorted(elapsed), "time goes on over attempts"


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    done = Script([0.1, 0.2]).fit(epochs=2, workdir=tmp_path)
    again = Script([])
    reported: list[EpochReport] = []
    assert again.fit(epochs=2, workdir=tmp_path, on_epoch=reported.append).history == done.history
    assert again.trained == []
    assert tuple(reported) == done.history


def test_another_runs_checkpoint_is_not_resumed(tmp_path: Path) -> None:
    Script([0.1]).fit(epochs=1, workdir=tmp_path)
    script = Script([0.1])
    with pytest.raises(CheckpointError, match="belongs to another run"):
        trainer.fit(script, script.validate, Train(epochs=1), workdir=tmp_path, identity={"run": "other"})


def test_memory_is_told_where_it_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"memory/peak_gib", "memory/reserved_gib", "memory/state_gib", "memory/evaluation_gib"}
    assert not names & Script([0.1]).fit(epochs=1).history[0].metrics.keys(), "absent on a CPU, not 0"
    monkeypatch.setattr(meters, "measure", lambda work, device: (work(), meters.Reading(1.0, 2**30, 2**31)))
    metrics = Script([0.1]).fit(epochs=1).history[0].metrics
    assert {name: metrics[name] for name in names} == {
        "memory/peak_gib": 1.0,
        "memory/reserved_gib": 2.0,
        "memory/state_gib": 0.25,
        "memory/evaluation_gib": 1.0,
    }
