"""What a training run says of itself after each epoch and at the end: plain data, flat metric names, units in them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

Metrics = dict[str, float]
"""Flat names: train/loss, valid/ndcg_at_10, test/hit_rate_at_10, best/epoch, memory/peak_gib, time/epoch_s. A quantity
that was not measured is absent, never 0 and never None."""


@dataclass(frozen=True)
class EpochReport:
    """One finished epoch.

    `metrics` holds train/loss, time/epoch_s (training only), time/elapsed_s (training and validation since epoch 1,
    over all attempts), after a validation valid/* and time/valid_s, on CUDA memory/peak_gib, memory/reserved_gib
    (train step), memory/state_gib (weights, gradients, optimiser state) and memory/evaluation_gib.
    """

    epoch: int
    """1-based."""
    metrics: Metrics
    is_best: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class RunReport:
    """A finished run.

    `metrics` holds best/epoch, best/elapsed_s (time to best), best/* (the validation metrics of that epoch), test/*,
    memory/*, memory/predicted_gib, time/epoch_s (median), time/elapsed_s.
    """

    epochs: int
    """Epochs trained."""
    stopped_early: bool
    """Ended by patience."""
    metrics: Metrics
    history: tuple[EpochReport, ...] = field(default=(), repr=False)
