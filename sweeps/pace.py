"""How many epochs a stopping rule is expected to leave, before anything runs: plain laws, NaN where there is none."""

from __future__ import annotations

import math

from sweeps.spec import SchedulerSpec

PASSES = 0.62
"""Share of the cells that pass a rung of pareto_asha as it is by default: with it three rungs leave 32.7 % of the
epochs, as of 997 published cells (docs/results/stopping.md)."""
SET_THE_PACE = ("rung_factor", "keep", "margin", "last_margin", "promote")
"""Keys of pareto_asha that this share depends on."""


def expected_epochs(scheduler: SchedulerSpec, epochs: int) -> float:
    """Epochs of a cell that starts, in the mean, where its scheduler alone ends it: with asha 1 in `reduction_factor`
    passes each rung (its first arrivals always do, which is not counted), with pareto_asha `PASSES`. NaN where the law
    is not known."""
    if scheduler.name == "fifo":
        return epochs
    alive, spent, before = 1.0, 0.0, 0
    for level in _rungs(scheduler, epochs):
        spent += alive * (level - before)
        alive *= _passes(scheduler)
        before = level
    return spent + alive * (epochs - before)


def _rungs(scheduler: SchedulerSpec, epochs: int) -> list[int]:
    """Epochs at which cells are judged before their last one."""
    factor = scheduler.reduction_factor if scheduler.name == "asha" else scheduler.rung_factor
    levels, level, rung = [], scheduler.grace_epochs, float(scheduler.grace_epochs)
    while level < epochs:
        levels.append(level)
        rung *= factor
        level = max(level + 1, round(rung))
    return levels


def _passes(scheduler: SchedulerSpec) -> float:
    """Share of the cells at a rung that pass it; NaN if nobody knows."""
    if scheduler.name == "asha":
        return 1 / scheduler.reduction_factor
    usual = SchedulerSpec(name="pareto_asha")
    alike = all(getattr(scheduler, key) == getattr(usual, key) for key in ("name", *SET_THE_PACE))
    return PASSES if alike else math.nan


def chance(scheduler: SchedulerSpec, epochs: int) -> float:
    """That a further replicate runs: that the first one passes every rung."""
    return float(_passes(scheduler) ** len(_rungs(scheduler, epochs)))
