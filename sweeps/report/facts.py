"""What the report says, as data; every page only lays it out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import pandas as pd

from seqrec.config import LOSSES
from sweeps import pareto, query, results
from sweeps.outcomes import Outcome
from sweeps.report.verdict import Verdict, verdict
from sweeps.results import Axis, Configuration, Sweep


@dataclass(frozen=True)
class Point:
    """A cell that was stopped early: shown, never part of a front."""

    loss: str
    label: str
    memory_gib: float
    quality: float
    epochs: int


@dataclass(frozen=True)
class LossRow:
    """One loss in numbers."""

    loss: str
    counts: Counter[str]
    """Cells by outcome, `running` and `waiting` among them."""
    best: Configuration | None
    """By validation."""
    saving: query.Saving | None
    """Its cheapest way to the baseline's quality; None if it does not get there."""
    on_front: int
    """Configurations on the front over all losses."""
    hypervolume: float | None

    @property
    def failed(self) -> int:
        return sum(count for outcome, count in self.counts.items() if _is_failure(outcome))


@dataclass(frozen=True)
class Failures:
    """Failed cells of one loss with one outcome."""

    outcome: str
    loss: str
    cells: tuple[tuple[str, str], ...]
    """(label, reason)."""


@dataclass(frozen=True)
class Facts:
    sweep: Sweep
    axis: Axis
    verdict: Verdict
    baseline: str
    counts: Counter[str]
    configurations: tuple[Configuration, ...]
    front: tuple[Configuration, ...]
    fronts: dict[str, tuple[Configuration, ...]]
    """Of every loss by itself."""
    near: tuple[Configuration, ...]
    """Within two standard errors of the front and not on it."""
    deviation: float | None
    losses: tuple[LossRow, ...]
    stopped: tuple[Point, ...]
    failures: tuple[Failures, ...]

    @property
    def not_run(self) -> int:
        """Cells of the plan that have no end yet."""
        return sum(count for outcome, count in self.counts.items() if not _has_ended(outcome))


def gather(sweep: Sweep) -> Facts:
    cells = sweep.cells
    axis = results.memory_axis(cells)
    configurations = results.configurations(cells)
    groups = pareto.by_loss(configurations)
    front = pareto.front(configurations)
    near = pareto.near_front(configurations)
    top = query.best(configurations)
    baseline = query.BASELINE if query.BASELINE in groups or top is None else top.loss
    savings = query.savings(configurations, baseline)
    counts = Counter(str(outcome) for outcome in cells["outcome"])
    return Facts(
        sweep=sweep,
        axis=axis,
        verdict=verdict(configurations, savings, baseline, axis, counts),
        baseline=baseline,
        counts=counts,
        configurations=configurations,
        front=front,
        fronts={loss: pareto.front(groups[loss]) for loss in _in_order(groups)},
        near=tuple(c for c in configurations if c.configuration_key in near and c not in front),
        deviation=pareto.pooled_deviation(configurations),
        losses=tuple(
            LossRow(
                loss=loss,
                counts=Counter(str(outcome) for outcome in group["outcome"]),
                best=query.best(groups.get(loss, ())),
                saving=savings.get(loss),
                on_front=sum(c.loss == loss for c in front),
                hypervolume=pareto.hypervolume(groups.get(loss, ())),
            )
            for loss, group in _by_loss(cells)
        ),
        stopped=_stopped(cells, axis),
        failures=_failures(cells),
    )


def _by_loss(cells: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Cells of every loss that has started any."""
    if "loss.name" not in cells:
        return []
    groups = {str(loss): group for loss, group in cells[cells["loss.name"].notna()].groupby("loss.name")}
    return [(loss, groups[loss]) for loss in _in_order(groups)]


def _in_order(losses: Collection[str]) -> list[str]:
    """As the library lists them; what it does not know comes last."""
    return [*(loss for loss in LOSSES if loss in losses), *sorted(set(losses) - LOSSES.keys())]


def _stopped(cells: pd.DataFrame, axis: Axis) -> tuple[Point, ...]:
    rows = cells[cells["outcome"] == Outcome.STOPPED.value]
    rows = rows[rows[results.QUALITY].notna() & rows[axis.column].notna()]
    return tuple(
        Point(str(row["loss.name"]), str(row["label"]), row[axis.column], row[results.QUALITY], int(row["epochs"]))
        for row in _dicts(rows)
    )


def _failures(cells: pd.DataFrame) -> tuple[Failures, ...]:
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for row in _dicts(cells[cells["outcome"].map(_is_failure)]):
        found.setdefault((str(row["outcome"]), str(row["loss.name"])), []).append((str(row["label"]), row["reason"]))
    return tuple(Failures(outcome, loss, tuple(group)) for (outcome, loss), group in sorted(found.items()))


def _dicts(rows: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in rows.to_dict("records")]


def _has_ended(outcome: str) -> bool:
    return outcome in set(Outcome) and Outcome(outcome).is_terminal


def _is_failure(outcome: str) -> bool:
    return outcome in set(Outcome) and Outcome(outcome).is_failure
