"""Rules that stop a cell early, as plain Python: fed epoch by epoch, the same whether the epochs come from trials or
from the ledger. Higher values are better.

`asha` is the stopping form of asynchronous successive halving (Li et al. 2020, arXiv 1810.05934): at rungs grace,
grace x eta, grace x eta^2, ... a cell goes on only if it is not below the best 1/eta of what its rivals had recorded
there. Two departures: cells that differ only in their seed are no rivals, and a configuration with several seeds counts
once, with their mean.

`pareto_asha` is in `sweeps.pareto_asha`. `dominance` is the part of it that stops cells: at the same rungs, a cell
stops when one of no more memory is better by more than the margin.
"""

from __future__ import annotations

import bisect
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from sweeps.cells import Cell
from sweeps.pareto_asha import ParetoAsha, Settings
from sweeps.spec import SchedulerSpec
from sweeps.verdicts import GO_ON, Rule, Stopping, Verdict


@dataclass
class Fifo(Stopping):
    """Every cell runs to its own end."""

    def record(self, cell: Cell, epoch: int, value: float | None) -> Verdict:
        return GO_ON


@dataclass
class Asha(Stopping):
    """See the module. A cell that validates rarely fills the highest rung it has reached and skips those below."""

    grace_epochs: int
    reduction_factor: float
    max_epochs: int
    """Longest training of any cell; no rung lies there."""
    filled: dict[str, int] = field(default_factory=dict)
    """Highest rung by cell."""
    rungs: dict[int, Rung] = field(default_factory=dict)
    """By epoch."""

    def __post_init__(self) -> None:
        rung, level = float(self.grace_epochs), self.grace_epochs
        while level < self.max_epochs:
            self.rungs.setdefault(level, Rung())
            rung *= self.reduction_factor
            level = round(rung)

    @property
    def levels(self) -> Sequence[int]:
        return list(self.rungs)

    def record(self, cell: Cell, epoch: int, value: float | None) -> Verdict:
        if value is None:
            return GO_ON
        reached = max((level for level in self.rungs if level <= epoch), default=0)
        if reached <= self.filled.get(cell.cell_key, 0):
            return GO_ON
        self.filled[cell.cell_key] = reached
        rung = self.rungs[reached]
        value = -math.inf if math.isnan(value) else value
        cut = rung.cut(cell.configuration_key, 1 - 1 / self.reduction_factor)
        rung.add(cell.configuration_key, value)
        if cut is None or value >= cut or epoch >= cell.run.train.epochs:
            return GO_ON
        return Verdict(True, f"asha: {value:.5g} at epoch {reached} is below {cut:.5g}, the cut of its rivals")


@dataclass
class Rung:
    """What configurations recorded at one epoch."""

    values: dict[str, list[float]] = field(default_factory=dict)
    """By configuration_key, one for each seed."""
    ranking: list[float] = field(default_factory=list)
    """Means of the configurations, ascending."""

    def add(self, configuration_key: str, value: float) -> None:
        values = self.values.setdefault(configuration_key, [])
        if values:
            del self.ranking[bisect.bisect_left(self.ranking, _mean(values))]
        values.append(value)
        bisect.insort(self.ranking, _mean(values))

    def cut(self, configuration_key: str, quantile: float) -> float | None:
        """The quantile (linear) of the other configurations' means; None without any."""
        rivals = self.ranking
        if configuration_key in self.values:
            own = bisect.bisect_left(rivals, _mean(self.values[configuration_key]))
            rivals = rivals[:own] + rivals[own + 1 :]
        if not rivals:
            return None
        below, share = divmod(quantile * (len(rivals) - 1), 1)
        low = rivals[int(below)]
        return low if share == 0 or low == -math.inf else low + share * (rivals[int(below) + 1] - low)


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if -math.inf not in values else -math.inf


def rule(scheduler: SchedulerSpec, cells: Sequence[Cell]) -> Rule:
    """The rule of a search space, without any epoch yet; the caller feeds it the ledger's."""
    if scheduler.name == "fifo":
        return Fifo()
    if scheduler.name == "asha":
        longest = max((cell.run.train.epochs for cell in cells), default=1)
        return Asha(scheduler.grace_epochs, scheduler.reduction_factor, longest)
    grace, factor, margin = scheduler.grace_epochs, scheduler.rung_factor, scheduler.margin
    if scheduler.name == "dominance":
        return ParetoAsha(Settings(grace, factor, 1.0, margin, margin, promote=False, guard=False), cells)
    last = min(margin, scheduler.last_margin)
    settings = Settings(grace, factor, scheduler.keep, margin, last, promote=scheduler.promote, race=scheduler.race)
    return ParetoAsha(settings, cells)


def order(scheduler: SchedulerSpec, cells: Sequence[Cell]) -> list[Cell]:
    """The order in which cells start: as declared under fifo, else a seeded shuffle: first arrivals set the cuts and
    must not come from one corner of the grid."""
    ordered = list(cells)
    if scheduler.name != "fifo" and scheduler.shuffle_seed is not None:
        random.Random(scheduler.shuffle_seed).shuffle(ordered)
    return ordered
