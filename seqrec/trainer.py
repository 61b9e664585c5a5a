"""fit: epochs, validation, patience, the best weights, and a checkpoint from which all of it goes on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
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

WORTH_WRITING = 2.0
"""A state that may soon be needed again is written if training it again takes this many times as long as writing."""


@dataclass(frozen=True)
class Keep:
    """When a training's state is written down. With a large catalog, item table and optimiser, that takes as long as an
    epoch, and the disk would hold a sweep back. Training is repeatable: what was not written costs time alone.
    """

    every_s: float = 0.0
    """Seconds of training and validation after which an epoch's end is written: what a crash costs. 0: every epoch."""
    pauses: frozenset[int] = frozenset()
    """Epochs whose report may end the training here, for it to go on elsewhere, or for good: written before that, where
    it is worth the time. After any other epoch a report that raises is an interruption: written then."""
    the_end: bool = False
    """Whether the end of the last epoch is written whatever the clock says, so that nobody trains it again."""


EVERY_EPOCH = Keep()


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
    keep: Keep = EVERY_EPOCH,
) -> Fitted:
    """Trains until `epochs`, or until `patience` validations in a row brought no strict improvement.

    validate: metrics of the held-out items, unprefixed. It runs every `valid_every` epochs and after the last one.
    on_epoch: called after each epoch, when its checkpoint, if `keep` asks for one, is already on disk. On resuming it
    is called again, in order, for every epoch of the history, and for those trained again behind it.
    workdir: holds the checkpoint; training goes on from the one it finds. None: nothing is written.
    Raises DivergedError; CheckpointError if the checkpoint found is unreadable or not of this `identity`.
    """
    path = workdir / CHECKPOINT_NAME if workdir else None
    saved = checkpoint.load(path, identity or {}) if path else None
    history: list[EpochReport] = []
    best: dict[str, Tensor] | None = None
    if saved:
        engine.load_state_dict(saved.engine)
        best = engine.weights() if saved.history and saved.history[-1].is_best else saved.best
    writer = _Writer(path, identity or {}, keep)
    for past in saved.history if saved else ():
        history.append(past)
        if on_epoch:
            on_epoch(past)
    while len(history) < settings.epochs and not _out_of_patience(history, settings.patience):
        report = _one_epoch(engine, validate, settings, history)
        history.append(report)
        if report.is_best:
            best = engine.weights()
        ends = len(history) == settings.epochs or _out_of_patience(history, settings.patience)
        writer.after(engine, history, best, the_end=ends)
        if on_epoch:
            try:
                on_epoch(report)
            except BaseException:
                writer.leave(engine, history, best)
                raise
    assert best is not None, "training ends with a validation, and the first one is always the best so far"
    return Fitted(tuple(history), len(history) < settings.epochs, best)


class _Writer:
    """Writes checkpoints of one training when they are due."""

    seconds: float | None = None
    """What the last one took in this process; None: not known, so that the first is written to find out."""

    def __init__(self, path: Path | None, identity: Identity, keep: Keep) -> None:
        self._path, self._identity, self._keep = path, identity, keep
        self._unsaved_s = 0.0

    def after(
        self, engine: Engine, history: Sequence[EpochReport], best: dict[str, Tensor] | None, *, the_end: bool
    ) -> None:
        """An epoch has ended. the_end: the last one."""
        last = history[-1]
        self._unsaved_s += last.metrics["time/epoch_s"] + last.metrics.get("time/valid_s", 0.0)
        is_due = self._unsaved_s >= self._keep.every_s or (the_end and self._keep.the_end)
        if is_due or (last.epoch in self._keep.pauses and self._is_worth_it()):
            self._write(engine, history, best)

    def leave(self, engine: Engine, history: Sequence[EpochReport], best: dict[str, Tensor] | None) -> None:
        """The report of the last epoch ended the training here. A disk without room does not replace its reason."""
        last = history[-1]
        is_spoilt = any(math.isnan(value) for value in last.metrics.values())
        if last.epoch not in self._keep.pauses and not is_spoilt and self._is_worth_it():
            with suppress(OSError):
                self._write(engine, history, best)

    def _is_worth_it(self) -> bool:
        return self._unsaved_s > 0 and (self.seconds is None or self._unsaved_s >= WORTH_WRITING * self.seconds)

    def _write(self, engine: Engine, history: Sequence[EpochReport], best: dict[str, Tensor] | None) -> None:
        if self._path is None:
            return
        start = time.perf_counter()
        # The best weights are in the engine's state already if they are the last.
        other = None if history[-1].is_best else best
        checkpoint.save(self._path, Checkpoint(tuple(history), engine.state_dict(), other), self._identity)
        type(self).seconds = time.perf_counter() - start
        self._unsaved_s = 0.0


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
