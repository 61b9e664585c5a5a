"""What a plan costs on a cluster: which cells do not fit a card, GPU-hours, wall time, how many cells share a GPU, and
what stopping is expected to save. Says on what every figure rests. No torch, no ray.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from seqrec import epoch_time
from seqrec.epoch_time import Duration
from sweeps import pace, placement
from sweeps.cards import GIB, Card
from sweeps.cells import Cell
from sweeps.measured import Measured
from sweeps.space import Plan
from sweeps.spec import Resources, SchedulerSpec

EXAMPLES = 10
"""Cells shown of those that do not fit."""


@dataclass(frozen=True)
class Price:
    """One cell."""

    cell: Cell
    share: float | None
    """Part of a GPU; None: no GPU holds it."""
    epoch_s: float | None
    """Seconds of an epoch, its part of a validation included; None: not known."""
    whole_s: float | None
    """Seconds, with all its epochs."""
    expected_s: float | None
    """Seconds, as stopping is expected to leave it; None: not known."""


@dataclass(frozen=True)
class Costs:
    """Of the cells that a launch would run."""

    card: Card
    assumed: bool
    """The card was not named."""
    gpus: int
    too_large: tuple[Cell, ...]
    """Of the whole plan, whatever has ended."""
    prices: tuple[Price, ...]
    epochs_share: float | None
    """Epochs expected, of those allowed; None: not known."""
    share_rests_on: str
    times_rest_on: tuple[str, ...]
    """What was measured, how well it fits, and what was not measured."""

    @property
    def untimed(self) -> int:
        """Cells that fit, and whose time is not known."""
        return sum(price.share is not None and price.whole_s is None for price in self.prices)

    def seconds(self, *, expected: bool) -> list[tuple[float, float]]:
        """(GPU share, seconds alone) of every cell that fits and whose time is known."""
        known = []
        for price in self.prices:
            seconds = price.expected_s if expected else price.whole_s
            if price.share is not None and seconds is not None:
                known.append((price.share, seconds))
        return known


def estimate(
    cells: Sequence[Cell],
    plan: Plan,
    *,
    card: Card,
    assumed: bool,
    gpus: int,
    resources: Resources,
    scheduler: SchedulerSpec,
    measured: Measured | None = None,
) -> Costs:
    """Costs of `cells`, which the launch would run, on `gpus` cards. measured: times of an earlier sweep, in the place
    of the closed forms'."""
    data = plan.statistics
    too_large = tuple(cell for cell in plan.cells if _share(cell, card, resources) is None)
    predictions: dict[str, tuple[Duration | None, tuple[str, ...]]] = {}
    strange: Counter[str] = Counter()
    prices = []
    raced = _raced(plan.cells) if scheduler.name == "pareto_asha" and scheduler.race else frozenset()
    for cell in cells:
        key = cell.configuration_key
        if key not in predictions:
            predictions[key] = epoch_time.predict(cell.run, data), epoch_time.outside(cell.run, data)
        duration, unlike = predictions[key]
        strange.update(unlike if duration else ())
        prices.append(_price(cell, duration, card, resources, scheduler, measured, cell.cell_key in raced))
    share = measured.epochs_share if measured else _epochs_share(scheduler, cells, raced)
    if measured:
        rests_on = f"as in {measured.path}: stopping and patience left {measured.epochs_share:.0%} of the epochs"
    elif share is None:
        rests_on = f"not known for {scheduler.name}; --times names a sweep that tells"
    elif scheduler.name == "fifo":
        rests_on = "nobody stops a cell; what patience saves is not known"
    elif scheduler.name == "pareto_asha":
        rests_on = (
            f"{pace.PASSES:.0%} pass a rung, as of the published cells; who passes all has replicates; no patience"
        )
    else:
        rests_on = f"asha's own law, 1 in {scheduler.reduction_factor:g} passes a rung; patience not counted"
    basis = _basis(card, strange, len(cells), measured)
    return Costs(card, assumed, gpus, too_large, tuple(prices), share, rests_on, basis)


def _price(
    cell: Cell,
    duration: Duration | None,
    card: Card,
    resources: Resources,
    scheduler: SchedulerSpec,
    measured: Measured | None,
    is_raced: bool,
) -> Price:
    share, train = _share(cell, card, resources) or (1.0 if resources.try_infeasible else None), cell.run.train
    epoch_s = duration.epoch_s + duration.valid_s / train.valid_every if duration else None
    if measured:
        epoch_s = measured.seconds(cell, epoch_s)
    if epoch_s is None:
        return Price(cell, share, None, None, None)
    once_s = duration.start_s + duration.test_s if duration else 0.0
    runs = pace.chance(scheduler, train.epochs) if is_raced and not measured else 1.0
    kept = measured.epochs_share if measured else pace.expected_epochs(scheduler, train.epochs) / train.epochs
    expected_s = runs * (once_s + kept * train.epochs * epoch_s)
    return Price(cell, share, epoch_s, once_s + train.epochs * epoch_s, expected_s)


def _raced(cells: Sequence[Cell]) -> frozenset[str]:
    """Keys of the cells that are not the first of their configuration."""
    first = {cell.configuration_key: cell.cell_key for cell in reversed(cells)}
    return frozenset(cell.cell_key for cell in cells if first[cell.configuration_key] != cell.cell_key)


def _share(cell: Cell, card: Card, resources: Resources) -> float | None:
    """Part of a GPU: the one that the search space states, whose memory the process is held to; else the smallest that
    holds the cell. None: too small for it."""
    asked = resources.gpus_per_trial
    if asked in ("auto", 0.0):
        return placement.share(cell.predicted_bytes, card.memory_bytes)
    stated = float(asked)
    return stated if placement.needed(cell.predicted_bytes) <= min(1.0, stated) * card.memory_bytes else None


def _epochs_share(scheduler: SchedulerSpec, cells: Sequence[Cell], raced: Collection[str]) -> float | None:
    allowed, expected = 0, 0.0
    for cell in cells:
        epochs = cell.run.train.epochs
        allowed += epochs
        chance = pace.chance(scheduler, epochs) if cell.cell_key in raced else 1.0
        expected += chance * pace.expected_epochs(scheduler, epochs)
    return expected / allowed if allowed and not math.isnan(expected) else None


def _basis(card: Card, strange: Counter[str], cells: int, measured: Measured | None) -> tuple[str, ...]:
    known = epoch_time.coefficients()
    error = known["errors"]["epoch"]
    forms = (
        f"closed forms fitted to an {known['card']} ({error['rows']} whole epochs: median error {error['median']:.1%}, "
        f"largest {abs(error['largest']):.1%})"
    )
    notes = []
    if measured:
        what = f"{measured.cells:,} cells of {measured.path} on {measured.hardware}, as they ran there"
        if measured.shared:
            what += f", {measured.shared:,} of them sharing it with others"
        notes.append(f"{what}; configurations that it lacks by {forms}, corrected by its ratio for the loss")
    else:
        notes.append(f"{forms}, one training alone on the card")
        if not card.is_timed:
            notes.append(f"times of {card.name} are not known: these are the H100's")
    for words, count in strange.most_common():
        many = "all" if count == cells else f"{count:,}"
        notes.append(f"{words}: nothing like it was timed ({many} cells); the form alone stands for it")
    return tuple(notes)


# ------------------------------------------------------------------------------------------------------------- sums


def gpu_hours(cells: Iterable[tuple[float, float]]) -> float:
    """Of cells that have a GPU each for themselves."""
    return sum(seconds for _, seconds in cells) / 3600


def wall_hours_alone(cells: Iterable[tuple[float, float]], gpus: int) -> float:
    """One cell a GPU at a time, longest first."""
    free = [0.0] * gpus
    for seconds in sorted((seconds for _, seconds in cells), reverse=True):
        heapq.heapreplace(free, free[0] + seconds)
    return max(free) / 3600


def wall_hours_packed(cells: Sequence[tuple[float, float]], gpus: int) -> float:
    """The least that sharing could make of it: every share in use all the time, and nobody slowed by a neighbour."""
    longest = max((seconds for _, seconds in cells), default=0.0)
    return max(sum(share * seconds for share, seconds in cells) / gpus, longest) / 3600


def packing(costs: Costs) -> dict[float, int]:
    """Share of a GPU -> cells that get it, ascending."""
    return dict(sorted(Counter(price.share for price in costs.prices if price.share is not None).items()))


# ---------------------------------------------------------------------------------------------------------- for people


def text(costs: Costs) -> str:
    assumed = " (assumed; --card names another)" if costs.assumed else ""
    many = f"{costs.gpus} GPU" + ("" if costs.gpus == 1 else "s")
    lines = [f"cluster    {many}, {costs.card.name}, {costs.card.memory_bytes / GIB:.0f} GiB each{assumed}"]
    large = costs.too_large
    lines.append(
        f"too large  {len(large):,} cells fit no GPU, with {placement.MARGIN:g} x their prediction and a context"
    )
    lines += [
        f"             {cell.cell_key}  {cell.predicted_bytes / GIB:.2f} GiB  {cell.label}" for cell in large[:EXAMPLES]
    ]
    if len(large) > EXAMPLES:
        lines.append(f"             and {len(large) - EXAMPLES:,} more (--json lists all)")
    shares = ", ".join(f"{count:,} x {_fraction(share)}" for share, count in packing(costs).items())
    lines.append(f"packing    cells by share of a GPU, from predicted memory: {shares or 'none'}")
    for i, note in enumerate(costs.times_rest_on):
        lines.append(f"{'times' if i == 0 else '':<10} {note}")
    if costs.untimed:
        lines.append(f"           {costs.untimed:,} cells have no times (eager or fp32) and are in no sum below")
    for name, expected in (("all epochs", False), ("expected", True)):
        cells = costs.seconds(expected=expected)
        if expected and costs.epochs_share is None:
            lines.append(f"{name:<10} {costs.share_rests_on}")
            continue
        alone, packed = wall_hours_alone(cells, costs.gpus), wall_hours_packed(cells, costs.gpus)
        walls = f"wall {_hours(alone)} one cell a GPU, {_hours(packed)} at best if sharing slows nobody"
        lines.append(f"{name:<10} {gpu_hours(cells):,.1f} GPU-hours; {walls}")
        if expected:
            lines.append(f"           {costs.share_rests_on}")
    return "\n".join(lines)


def to_json(costs: Costs) -> dict[str, Any]:
    """The same as plain values; cells by their keys."""
    sums = {}
    for name, expected in (("all_epochs", False), ("expected", True)):
        cells = costs.seconds(expected=expected)
        sums[name] = None if expected and costs.epochs_share is None else {
            "gpu_hours": gpu_hours(cells),
            "wall_hours_alone": wall_hours_alone(cells, costs.gpus),
            "wall_hours_packed_at_best": wall_hours_packed(cells, costs.gpus),
        }  # fmt: skip
    return {
        "card": {"name": costs.card.name, "memory_bytes": costs.card.memory_bytes, "assumed": costs.assumed},
        "gpus": costs.gpus,
        "too_large": [cell.cell_key for cell in costs.too_large],
        "packing": [{"gpu_share": share, "cells": count} for share, count in packing(costs).items()],
        "untimed": costs.untimed,
        "times_rest_on": list(costs.times_rest_on),
        "epochs_share": costs.epochs_share,
        "epochs_share_rests_on": costs.share_rests_on,
        **sums,
        "cells": {
            price.cell.cell_key: {"gpu_share": price.share, "epoch_s": price.epoch_s, "whole_s": price.whole_s}
            for price in costs.prices
        },
    }


def _hours(hours: float) -> str:
    return f"{hours:,.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"


def _fraction(share: float) -> str:
    return "1" if share == 1 else f"1/{round(1 / share)}" if abs(round(1 / share) * share - 1) < 0.01 else f"{share:g}"
