"""Ledger -> one table with a row per cell of the latest plan, and its replicates folded into configurations.

The memory axis of a comparison is either measured for every complete cell or predicted for all of them: one front never
mixes the two.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from seqrec.config import SELECTION_METRIC
from seqrec.errors import UserError
from sweeps import ledger, timing
from sweeps.outcomes import Outcome
from sweeps.timing import Timings

QUALITY = "best/ndcg_at_10"
"""What configurations are chosen by: the validation metric of the best epoch."""

TEST_QUALITY = "test/ndcg_at_10"
MEASURED = "memory/peak_gib"
PREDICTED = "memory/predicted_gib"
SEED = "train.seed"
GIB = 2**30

WAITING, RUNNING = "waiting", "running"
"""Not outcomes: a cell that never started, and one that started and has no `end` yet."""

LEADING = ["cell_key", "configuration_key", "label", "outcome", "reason", "attempt", "epochs", "source", "timing"]


@dataclass(frozen=True)
class Axis:
    """Which column is the memory of a comparison, and what to call it."""

    column: str
    label: str
    measured: bool


MEASURED_AXIS = Axis(MEASURED, "peak memory of the train step, GiB", True)
PREDICTED_AXIS = Axis(
    PREDICTED, "predicted peak memory of the train step, GiB (closed form; nothing was measured on this CPU)", False
)
MIXED_AXIS = Axis(
    PREDICTED, "predicted peak memory of the train step, GiB (closed form; only some of the cells were measured)", False
)


@dataclass(frozen=True)
class Configuration:
    """A configuration with at least one complete cell, its replicates aggregated."""

    configuration_key: str
    loss: str
    label: str
    """The cell's label without the seed."""
    parameters: dict[str, Any] = field(repr=False)
    """Without the seed."""
    cell_keys: tuple[str, ...]
    """Complete replicates."""
    planned: int
    """Replicates of the plan, complete or not."""
    quality: float
    """Mean of best/ndcg_at_10 (validation) over the complete replicates."""
    quality_sd: float | None
    """Sample standard deviation; None with one replicate."""
    memory_gib: float
    """Largest of the replicates."""
    test: dict[str, float] = field(repr=False)
    """Means of test/*, over the replicates that have it."""
    epoch_s: float | None = None
    """Seconds that training takes for an epoch: the mean of the replicates whose times are worth most."""
    timing: str = timing.NONE
    """How those were taken, one of `sweeps.timing.BEST_FIRST`."""

    @property
    def n(self) -> int:
        return len(self.cell_keys)

    @property
    def test_quality(self) -> float | None:
        return self.test.get(TEST_QUALITY)


@dataclass(frozen=True)
class Sweep:
    """A ledger, read."""

    directory: Path
    name: str
    sweep_id: str
    plans: tuple[dict[str, Any], ...]
    """Every launch's `plan` event, oldest first."""
    closed: str | None
    """Reason of the `close` event of the latest launch; None while it runs, or if it was killed."""
    span_ms: tuple[int, int]
    """Times of the first and the last event, Unix."""
    cells: pd.DataFrame

    @property
    def plan(self) -> dict[str, Any]:
        """The latest `plan` event; empty before the first."""
        return self.plans[-1] if self.plans else {}


class _Record:
    """What the ledger says of one cell, so far."""

    def __init__(self) -> None:
        self.cell: dict[str, Any] = {}
        self.outcome = WAITING
        self.reason = ""
        self.attempt = 0
        self.epochs = 0
        self.metrics: dict[str, float] = {}
        self.ended: dict[str, float] = {}
        self.timed: dict[str, float] = {}
        """By a second timing."""
        self.source = ""

    def add(self, event: dict[str, Any]) -> None:
        kind = event["type"]
        if kind == "cell":
            self.cell = event
        elif kind == "start":
            self.outcome, self.reason, self.attempt = RUNNING, "", event["attempt"]
        elif kind == "reuse":
            self.source = f"{event['source']['name']} ({event['source']['ledger']})"
        elif kind == "retry":
            self.outcome, self.reason, self.ended = WAITING, "", {}
        elif kind == "timing":
            self.timed = event["metrics"]
        elif kind == "epoch":
            self.epochs = max(self.epochs, event["epoch"])
            self._follow(event["metrics"])
        elif kind == "end":
            self.outcome, self.reason = event["outcome"], event.get("reason", "")
            self.attempt, self.epochs = event["attempt"], max(self.epochs, event["epochs"])
            self.ended = event["metrics"]

    def abandon(self) -> None:
        """A new launch: what still ran in the last one was cut off with it."""
        if self.outcome == RUNNING:
            self.outcome, self.reason = Outcome.INTERRUPTED.value, "the driver ended without a word"

    def _follow(self, metrics: dict[str, float]) -> None:
        """Best validation, largest memory, latest time: what an unfinished or stopped cell can show of itself."""
        value = metrics.get(SELECTION_METRIC)
        if value is not None and math.isfinite(value):
            self.metrics[QUALITY] = max(value, self.metrics.get(QUALITY, -math.inf))
        for key, value in metrics.items():
            if key.startswith("memory/"):
                self.metrics[key] = max(value, self.metrics.get(key, -math.inf))
            elif key == "time/elapsed_s":
                self.metrics[key] = value

    def row(self, cell_key: str, timing: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, float]]:
        """(leading columns, parameters, metrics)."""
        head = {
            "cell_key": cell_key,
            "configuration_key": self.cell.get("configuration_key"),
            "label": self.cell.get("label"),
            "outcome": self.outcome,
            "reason": self.reason,
            "attempt": self.attempt,
            "epochs": self.epochs,
            "source": self.source,
            "timing": timing,
        }
        metrics = {**self.metrics, **self.ended, **self.timed}
        if self.cell.get("predicted_bytes"):
            metrics[PREDICTED] = self.cell["predicted_bytes"] / GIB
        return head, self.cell.get("parameters", {}), metrics


def load(sweep_dir: Path) -> Sweep:
    """Read a sweep's ledger. Raises UserError if the directory has none."""
    path = sweep_dir / ledger.FILE_NAME
    if not path.is_file():
        raise UserError(f"{sweep_dir}: has no {ledger.FILE_NAME}; expected the directory of a sweep.")
    header: dict[str, Any] = {}
    plans: list[dict[str, Any]] = []
    closed: str | None = None
    records: dict[str, _Record] = {}
    timings = Timings()
    times: list[int] = []
    for event, _ in ledger.read(path):
        kind = event["type"]
        timings.add(event)
        times = [times[0] if times else event["time_ms"], event["time_ms"]]
        if kind == "sweep":
            header = event
        elif kind == "plan":
            plans.append(event)
            closed = None
            for record in records.values():
                record.abandon()
        elif kind == "close":
            closed = event["reason"]
        elif "cell_key" in event:
            records.setdefault(event["cell_key"], _Record()).add(event)
    wanted = plans[-1]["cell_keys"] if plans else []
    cells = _frame(records.get(key, _Record()).row(key, timings.of(key)) for key in wanted)
    return Sweep(
        directory=sweep_dir,
        name=header.get("name", sweep_dir.name),
        sweep_id=header.get("sweep_id", ""),
        plans=tuple(plans),
        closed=closed,
        span_ms=(times[0], times[-1]) if times else (0, 0),
        cells=cells,
    )


def table(sweep_dir: Path) -> pd.DataFrame:
    """One row per cell of the latest plan: keys, label, outcome, attempt, epochs, parameters by dotted key, metrics.

    A cell without an `end` is `waiting` or `running`. A cell that was stopped carries the best validation value of its
    epochs. `source` names the sweep that trained a cell; empty: this one. `timing`: how its times were taken, as
    `sweeps.timing` tells; those of a second timing are in the place of the first. Parameters that a cell does not have
    are None, metrics NaN.
    """
    return load(sweep_dir).cells


def _frame(records: Iterable[tuple[dict[str, Any], dict[str, Any], dict[str, float]]]) -> pd.DataFrame:
    rows = list(records)
    columns: dict[str, pd.Series[Any]] = {
        name: pd.Series([head[name] for head, _, _ in rows], dtype="int64" if name in ("attempt", "epochs") else object)
        for name in LEADING
    }
    # As objects: a float column would turn the integers of a parameter that some losses lack into 583.0.
    for name in dict.fromkeys(key for _, parameters, _ in rows for key in parameters):
        columns[name] = pd.Series([parameters.get(name) for _, parameters, _ in rows], dtype=object)
    names = {key for _, _, metrics in rows for key in metrics} | {QUALITY, MEASURED, PREDICTED}
    for name in sorted(names, key=_metric_order):
        columns[name] = pd.Series([metrics.get(name, math.nan) for _, _, metrics in rows], dtype="float64")
    return pd.DataFrame(columns)


def _metric_order(name: str) -> tuple[int, str]:
    prefixes = ["best", "test", "memory", "time"]
    prefix = name.partition("/")[0]
    return (prefixes.index(prefix) if prefix in prefixes else len(prefixes), name)


def parameter_columns(cells: pd.DataFrame) -> list[str]:
    """The table's parameters: dotted keys."""
    return [name for name in cells.columns if "/" not in name and name not in LEADING]


def complete(cells: pd.DataFrame) -> pd.DataFrame:
    """Done cells with a finite validation value: the only ones that a front may hold."""
    return cells[(cells["outcome"] == Outcome.DONE.value) & cells[QUALITY].notna()]


def memory_axis(cells: pd.DataFrame) -> Axis:
    """Measured if every complete cell was measured, else predicted for all."""
    measured = complete(cells)[MEASURED].notna()
    if len(measured) and measured.all():
        return MEASURED_AXIS
    return MIXED_AXIS if measured.any() else PREDICTED_AXIS


def configurations(cells: pd.DataFrame) -> tuple[Configuration, ...]:
    """Complete cells, replicates aggregated: quality mean and deviation, memory largest. In the table's order.

    A cell without the axis' memory cannot be compared and is left out.
    """
    axis = memory_axis(cells)
    done = complete(cells)
    planned = cells["configuration_key"].value_counts()
    parameters = parameter_columns(cells)
    tests = [name for name in cells.columns if name.startswith("test/")]
    found = []
    for key, group in done[done[axis.column].notna()].groupby("configuration_key", sort=False):
        first = group.iloc[0]
        quality = [float(value) for value in group[QUALITY]]
        means = {name: group[name].mean() for name in tests}
        epoch_s, timed = _seconds(group)
        found.append(
            Configuration(
                configuration_key=str(key),
                loss=str(first["loss.name"]),
                label=str(first["label"]).removesuffix(f" s{first[SEED]}"),
                parameters={p: first[p] for p in parameters if p != SEED and first[p] is not None},
                cell_keys=tuple(group["cell_key"]),
                planned=int(planned[key]),
                quality=statistics.fmean(quality),
                quality_sd=statistics.stdev(quality) if len(quality) > 1 else None,
                memory_gib=float(group[axis.column].max()),
                test={name: float(mean) for name, mean in means.items() if not math.isnan(mean)},
                epoch_s=epoch_s,
                timing=timed,
            )
        )
    return tuple(found)


def _seconds(replicates: pd.DataFrame) -> tuple[float | None, str]:
    """Of an epoch, and how they were taken: the mean over the replicates that were timed best."""
    if timing.EPOCH_S not in replicates:
        return None, timing.NONE
    timed = replicates[replicates[timing.EPOCH_S].notna()]
    for kind in timing.BEST_FIRST:
        of_kind = timed[timed["timing"] == kind]
        if len(of_kind):
            return float(of_kind[timing.EPOCH_S].mean()), kind
    return None, timing.NONE
