"""fit: epochs, validation, patience, the best weights, and a checkpoint from which all of it goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from seqrec import checkpoint, meters
from seqrec.checkpoint import Checkpoint, Identity
from seqrec.config import SELECTION_METRIC, Train
from seqrec.engine import Engine
from seqrec.reports import EpochReport, Metrics

CHECKPOINT_NAME = "last.pt"

OnEpoch = Callable[[EpochReport], None]


@dataclass(frozen=True, eq=False)
class Fitted:
    """What training leaves behind."""

    history: tuple[EpochReport, ...]
    stopped_early: bool
    best_weights: Mapping[str, Tensor]
    """On CPU: the weights of the best validation."""

    @property
    def best(self) -> EpochReport:
        return next(report for report in reversed(self.history) if report.is_best)


def fit(
    engine: Engine,
    validate: Callable[[], Metrics],
    settings: Train,
    *,
    on_epoch: OnEpoch | None = None,
    workdir: Path | None = None,
    identity: Identity | None = None,
) -> Fitted:
    """Trains until `epochs`, or until `patience` validations in a row brought no strict improvement.

    validate: metrics of the held-out items, unprefixed. It runs every `valid_every` epochs and after the last one.
    on_epoch: called after each epoch, when its checkpoint is already on disk: nothing reported can be lost. On resuming
    it is called again, in order, for every epoch of the history.
    workdir: holds the checkpoint; training goes on from the one it finds. None: nothing is written.
    Raises DivergedError; CheckpointError if the checkpoint found is unreadable or not of this `identity`.
    """
    path = workdir / CHECKPOINT_NAME if workdir else None
    saved = checkpoint.load(path, identity or {}) if path else None
    history: list[EpochReport] = []
    best: dict[str, Tensor] | None = None
    if saved:
        engine.load_state_dict(saved.engine)
        best = saved.best
    for past in saved.history if saved else ():
        history.append(past)
        if on_epoch:
            on_epoch(past)
    while len(history) < settings.epochs and not _out_of_patience(history, settings.patience):
        report = _one_epoch(engine, validate, settings, history)
        history.append(report)
        if report.is_best:
            best = engine.weights()
        if path:
            checkpoint.save(path, Checkpoint(tuple(history), engine.state_dict(), best), identity or {})
        if on_epoch:
            on_epoch(report)
    assert best is not None, "training ends with a validation, and the first one is always the best so far"
    return Fitted(tuple(history), len(history) < settings.epochs, best)


def _one_epoch(
    engine: Engine, validate: Callable[[], Metrics], settings: Train, history: Sequence[EpochReport]
) -> EpochReport:
    epoch = len(history) + 1
    loss, training = meters.measure(lambda: engine.run_epoch(epoch), engine.device)
    metrics: Metrics = {"train/loss": loss, "time/epoch_s": training.seconds}
    if training.peak_bytes is not None and training.reserved_bytes is not None:
        metrics["memory/peak_gib"] = engine.peak_bytes(training.peak_bytes) / meters.GIB
        metrics["memory/reserved_gib"] = training.reserved_bytes / meters.GIB
        metrics["memory/state_gib"] = engine.state_bytes() / meters.GIB
    elapsed_s = (history[-1].metrics["time/elapsed_s"] if history else 0.0) + training.seconds
    is_best = False
    if epoch % settings.valid_every == 0 or epoch == settings.epochs:
        valid, validation = meters.measure(validate, engine.device)
        metrics |= {f"valid/{name}": value for name, value in valid.items()}
        metrics["time/valid_s"] = validation.seconds
        elapsed_s += validation.seconds
        earlier = [past.metrics[SELECTION_METRIC] for past in history if SELECTION_METRIC in past.metrics]
        is_best = not earlier or metrics[SELECTION_METRIC] > max(earlier)
        if validation.peak_bytes is not None:
            metrics["memory/evaluation_gib"] = validation.peak_bytes / meters.GIB
            # What validation made the allocator hold would else be read as the next epoch's reserve.
            if (validation.reserved_bytes or 0) > (training.reserved_bytes or 0):
                meters.return_cache(engine.device)
    metrics["time/elapsed_s"] = elapsed_s
    return EpochReport(epoch, metrics, is_best)


def _out_of_patience(history: Sequence[EpochReport], patience: int | None) -> bool:
    """Whether the last `patience` validations all failed to beat the best one before them."""
    since_best = 0
    for report in history:
        since_best = 0 if report.is_best else since_best + (SELECTION_METRIC in report.metrics)
    return patience is not None and since_best >= patience
