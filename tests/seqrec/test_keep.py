"""When a training's state is written down: on a clock that the tests hold, with an engine that trains nothing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from seqrec import checkpoint, meters, trainer
from seqrec.config import Train
from seqrec.reports import EpochReport
from seqrec.trainer import Keep
from tests.seqrec.test_trainer import IDENTITY, Script

EPOCH_S = 10.0
"""Half of it training, half validation."""


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meters, "measure", lambda work, device: (work(), meters.Reading(EPOCH_S / 2, None, None)))
    monkeypatch.setattr(trainer._Writer, "seconds", None)


def writing_takes(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count(0, seconds)
    monkeypatch.setattr(trainer.time, "perf_counter", lambda: next(ticks))
    monkeypatch.setattr(trainer._Writer, "seconds", seconds)


def written(folder: Path) -> int:
    """Epochs in the checkpoint."""
    saved = checkpoint.load(folder / trainer.CHECKPOINT_NAME, IDENTITY)
    return len(saved.history) if saved else 0


def fit(
    folder: Path, keep: Keep, epochs: int = 9, on_epoch: Callable[[EpochReport], None] | None = None
) -> tuple[list[int], Script, trainer.Fitted]:
    """(epochs in the checkpoint when each epoch was reported, ...). Every third epoch is a new best."""
    script = Script([0.1 * (epoch // 3) for epoch in range(1, epochs + 1)])
    seen: list[int] = []

    def look(report: EpochReport) -> None:
        seen.append(written(folder))
        if on_epoch:
            on_epoch(report)

    settings = Train(epochs=epochs, patience=None)
    fitted = trainer.fit(script, script.validate, settings, on_epoch=look, workdir=folder, identity=IDENTITY, keep=keep)
    return seen, script, fitted


def test_by_the_clock(tmp_path: Path) -> None:
    seen, _, _ = fit(tmp_path, Keep(every_s=30.0))
    assert seen == [0, 0, 3, 3, 3, 6, 6, 6, 9]


@pytest.mark.parametrize("epochs", [4, 9])
def test_the_end(tmp_path: Path, epochs: int) -> None:
    """By the number of epochs, and by patience: the best is the third of four epochs at least."""
    script = Script([0.1, 0.2, 0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1])
    keep = Keep(every_s=1e9, the_end=True)
    settings = Train(epochs=epochs, patience=4)
    fitted = trainer.fit(script, script.validate, settings, workdir=tmp_path, identity=IDENTITY, keep=keep)
    assert written(tmp_path) == len(fitted.history) == (4 if epochs == 4 else 7)
    again = trainer.fit(script, script.validate, settings, workdir=tmp_path, identity=IDENTITY, keep=keep)
    assert again.history == fitted.history
    assert again.best_weights == fitted.best_weights
    assert len(script.trained) == len(fitted.history)


def test_where_a_pause_may_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writing_takes(EPOCH_S / trainer.WORTH_WRITING, monkeypatch)
    seen, _, _ = fit(tmp_path, Keep(every_s=1e9, pauses=frozenset({1, 3})), epochs=5)
    assert seen == [1, 1, 3, 3, 3]


def test_not_where_training_again_is_cheaper_than_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writing_takes(2.5 * EPOCH_S / trainer.WORTH_WRITING, monkeypatch)
    seen, _, _ = fit(tmp_path, Keep(every_s=1e9, pauses=frozenset({1, 3, 5})), epochs=6)
    assert seen == [0, 0, 3, 3, 3, 3], "one epoch and two are cheaper, three are not; then the count starts anew"


def test_the_first_is_written_to_learn_what_it_takes(tmp_path: Path) -> None:
    seen, _, _ = fit(tmp_path, Keep(every_s=1e9, pauses=frozenset({1})), epochs=2)
    assert seen == [1, 1]
    assert trainer._Writer.seconds is not None


class StoppedError(Exception):
    pass


def stop_at(epoch: int) -> Callable[[EpochReport], None]:
    def look(report: EpochReport) -> None:
        if report.epoch == epoch:
            raise StoppedError

    return look


def test_an_interruption_is_written_and_an_expected_end_is_not(tmp_path: Path) -> None:
    keep = Keep(every_s=1e9, pauses=frozenset({3}))
    with pytest.raises(StoppedError):
        fit(tmp_path / "between", keep, on_epoch=stop_at(2))
    assert written(tmp_path / "between") == 2
    trainer._Writer.seconds = 1e9
    with pytest.raises(StoppedError):
        fit(tmp_path / "rung", keep, on_epoch=stop_at(3))
    assert written(tmp_path / "rung") == 0, "who ends a training there says beforehand that it may"


def test_nothing_is_kept_of_a_training_that_diverged(tmp_path: Path) -> None:
    script = Script([0.1, math.nan])
    with pytest.raises(StoppedError):
        trainer.fit(
            script, script.validate, Train(epochs=3), on_epoch=stop_at(2), workdir=tmp_path, keep=Keep(every_s=1e9)
        )
    assert not list(tmp_path.iterdir())


def test_a_full_disk_does_not_hide_why_training_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(StoppedError):
        fit(tmp_path, Keep(every_s=1e9), on_epoch=stop_at(1))
    with pytest.raises(OSError, match="No space"):
        fit(tmp_path, Keep(), on_epoch=stop_at(1))


@pytest.mark.parametrize("end", range(1, 8))
def test_whatever_was_written_the_result_is_the_same(tmp_path: Path, end: int) -> None:
    """Also the best weights, which a checkpoint that ends with them holds only once."""
    _, _, straight = fit(tmp_path / "straight", Keep(every_s=1e9), epochs=8)
    with pytest.raises(StoppedError):
        fit(tmp_path / "cut", Keep(every_s=20.0, pauses=frozenset({4})), epochs=8, on_epoch=stop_at(end))
    kept = written(tmp_path / "cut")
    seen, script, resumed = fit(tmp_path / "cut", Keep(every_s=1e9), epochs=8)
    assert script.trained == list(range(kept + 1, 9)), "only what was not written is trained again"
    assert len(seen) == 8
    assert resumed.history == straight.history
    assert resumed.best.epoch == 6
    assert resumed.best_weights == straight.best_weights
