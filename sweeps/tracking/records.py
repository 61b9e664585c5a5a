"""Ledger events -> what MLflow is to be told, run by run. Plain data: everything here works without mlflow.

All times are the events' own and all values a function of the ledger, so that telling the same twice changes nothing.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from sweeps.ledger import Event
from sweeps.outcomes import Outcome
from sweeps.timing import Timings

PARENT = ""
"""Key of the parent run's batch, where a child has its cell_key."""

STATUS = {
    Outcome.DONE: "FINISHED",
    Outcome.STOPPED: "FINISHED",
    Outcome.OOM: "FAILED",
    Outcome.PREDICTED_OOM: "FAILED",
    Outcome.DIVERGED: "FAILED",
    Outcome.ERROR: "FAILED",
    Outcome.INTERRUPTED: "KILLED",
}
"""Outcome -> MLflow's status of the run."""

CLOSED = {"finished": "FINISHED", "budget": "FINISHED", "interrupted": "KILLED"}
"""Reason of a `close` -> status of the parent."""

SEED = "train.seed"
RUNNING = "RUNNING"
TEXT_LIMIT = 5000
"""Characters; MLflow takes 6000 in a parameter and 8000 in a tag."""

_OTHER_CUTOFF = re.compile(r"^(valid|best)/.+_at_(?!10$)\d+$")
"""Of validation MLflow gets what people plot; the ledger has the rest."""
_BASICS = {
    "model": None,
    "loss": None,
    "train": ("batch_size", "epochs", "patience", "learning_rate", "seed"),
    "data": ("split",),
}
"""Section of a run -> the fields that become parameters (None: all), beside what the space varies."""


class Point(NamedTuple):
    """One value of a metric."""

    key: str
    value: float
    time_ms: int
    step: int


@dataclass
class Batch:
    """Everything new about one run. Delivering it twice leaves the run as once."""

    key: str
    name: str
    start_ms: int
    identity: dict[str, str]
    """Tags that a new run is created with, all of them known from the start; adoption looks for these."""
    metrics: list[Point] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    status: str | None = None
    end_ms: int | None = None


class Records:
    """Follows a ledger from its first event and turns new ones into batches."""

    def __init__(self) -> None:
        self.header: Event = {}
        self.plan: Event = {}
        self.cells: dict[str, Event] = {}
        self.running: dict[str, int] = {}
        """Cells with a start and no end -> attempt."""
        self.outcomes: dict[str, str] = {}
        self.measured = False
        """Any cell has a measured peak of memory."""
        self.non_finite: dict[str, set[str]] = {}
        self._timings = Timings()
        self._epochs: dict[str, int] = {}
        """Of cells that have ended."""
        self._batches: dict[str, Batch] = {}

    def batches(self, events: Iterable[Event]) -> list[Batch]:
        """What these events say, one batch a run, the parent's first."""
        self._batches = {}
        for event in events:
            self._apply(event)
        return sorted(self._batches.values(), key=lambda batch: batch.key != PARENT)

    def skip(self, event: Event) -> None:
        """Follow an event that MLflow knows already."""
        self._batches = {}
        self._apply(event)

    def swept(self) -> list[str]:
        """Parameters that every cell so far has, and not all the same, but the seed: what one chart can show of all."""
        values: dict[str, list[str]] = {}
        for cell in self.cells.values():
            for name, value in cell["parameters"].items():
                if name != SEED:
                    values.setdefault(name, []).append(str(value))
        return [name for name, found in values.items() if len(found) == len(self.cells) and len(set(found)) > 1]

    def _apply(self, event: Event) -> None:
        self._timings.add(event)
        match event["type"]:
            case "sweep":
                self.header = event
            case "plan":
                self.plan = event
                self._abandon_running(event["time_ms"])
                batch = self._parent(event["time_ms"])
                batch.tags.update(plan_tags(event))
                batch.status, batch.end_ms = RUNNING, None
            case "cell":
                self.cells[event["cell_key"]] = event
            case "start":
                self._start(event)
            case "epoch":
                self._add_metrics(event, event["metrics"], event["epoch"])
            case "reuse":
                source = event["source"]
                tag = _text(f"{source['name']} {source['sweep_id']}")
                self._child(event["cell_key"], event["time_ms"]).tags["sweep.reused_from"] = tag
            case "retry":
                self.outcomes.pop(event["cell_key"], None)
            case "end":
                self._end(event)
            case "timing":
                # At the end's step and a later time, so that MLflow shows these values as the run's.
                self._add_metrics(event, event["metrics"], self._epochs.get(event["cell_key"], 0))
                self._tell_timing(event)
            case "close":
                self._abandon_running(event["time_ms"])
                self._close(event)

    def _start(self, event: Event) -> None:
        key, attempt = event["cell_key"], event["attempt"]
        batch = self._child(key, event["time_ms"])
        self.running[key] = attempt
        batch.params.update(parameters(self.cells[key]))
        batch.tags |= {"sweep.outcome": "running", "sweep.attempt": str(attempt)}
        if event.get("node"):
            batch.tags["sweep.node"] = _text(event["node"])
        batch.status, batch.end_ms = RUNNING, None

    def _end(self, event: Event) -> None:
        key = event["cell_key"]
        batch = self._child(key, event["time_ms"])
        self._epochs[key] = event["epochs"]
        self._add_metrics(event, event["metrics"], event["epochs"])
        self._tell_timing(event)
        if self.running.pop(key, None) is None:
            # Never started: a cell that was predicted not to fit.
            batch.params.update(parameters(self.cells[key]))
        batch.tags["sweep.attempt"] = str(event["attempt"])
        if event["reason"] or event["attempt"] > 1:
            batch.tags["sweep.reason"] = _text(event["reason"] or "-")  # "-" replaces an earlier attempt's
        self._finish(batch, event["outcome"], event["time_ms"])

    def _tell_timing(self, event: Event) -> None:
        """How the cell's times were taken, once there are any."""
        if kind := self._timings.of(event["cell_key"]):
            self._child(event["cell_key"], event["time_ms"]).tags["sweep.timing"] = kind

    def _finish(self, batch: Batch, outcome: str, time_ms: int) -> None:
        self.outcomes[batch.key] = outcome
        batch.tags["sweep.outcome"] = outcome
        batch.status, batch.end_ms = STATUS[Outcome(outcome)], time_ms

    def _abandon_running(self, time_ms: int) -> None:
        """Nothing ends the runs of a driver that was killed, so the next launch (or the close) does."""
        for key in list(self.running):
            del self.running[key]
            self._finish(self._child(key, time_ms), Outcome.INTERRUPTED, time_ms)

    def _close(self, event: Event) -> None:
        batch = self._parent(event["time_ms"])
        counts = Counter(self.outcomes.get(key, "waiting") for key in self.plan.get("cell_keys", ()))
        launch = self.plan.get("launch", 1)
        for name, count in sorted(counts.items()):
            batch.metrics.append(Point(f"cells/{name}", float(count), event["time_ms"], launch))
        batch.tags["sweep.closed"] = event["reason"]
        batch.status, batch.end_ms = CLOSED.get(event["reason"], "FINISHED"), event["time_ms"]

    def _add_metrics(self, event: Event, metrics: Mapping[str, float], step: int) -> None:
        key = event["cell_key"]
        batch = self._child(key, event["time_ms"])
        self.measured = self.measured or "memory/peak_gib" in metrics
        for name, value in metrics.items():
            if _OTHER_CUTOFF.match(name):
                continue
            if math.isfinite(value):
                batch.metrics.append(Point(name, rounded(name, value), event["time_ms"], step))
            else:
                self.non_finite.setdefault(key, set()).add(name)
                batch.tags["sweep.non_finite"] = _text(" ".join(sorted(self.non_finite[key])))

    def _parent(self, time_ms: int) -> Batch:
        if PARENT not in self._batches:
            name = self.header["name"]
            identity = {"sweep.sweep_id": self.header["sweep_id"], "sweep.name": name, "sweep.role": "parent"}
            start = self.header.get("time_ms", time_ms)
            self._batches[PARENT] = Batch(PARENT, name, start, identity)
        return self._batches[PARENT]

    def parent(self) -> Batch:
        """The parent's identity and plan, for a store that has lost or never seen it."""
        self._batches = {}
        batch = self._parent(self.plan.get("time_ms", 0))
        batch.tags.update(plan_tags(self.plan))
        return batch

    def _child(self, key: str, time_ms: int) -> Batch:
        if key not in self._batches:
            cell = self.cells[key]
            identity = {
                "sweep.sweep_id": self.header["sweep_id"],
                "sweep.name": self.header["name"],
                "sweep.role": "cell",
                "sweep.cell_key": key,
                "sweep.configuration_key": cell["configuration_key"],
                **provenance(self.plan),
            }
            self._batches[key] = Batch(key, cell["label"], time_ms, identity)
        return self._batches[key]


def parameters(cell: Event) -> dict[str, str]:
    """What the space varies or derives, all of model and loss, and what else decides a training, by dotted key."""
    found = {}
    for section, fields in _BASICS.items():
        for name, value in cell.get("run", {}).get(section, {}).items():
            if (fields is None or name in fields) and value is not None:
                found[f"{section}.{name}"] = _text(value)
    return found | {name: _text(value) for name, value in cell["parameters"].items()}


def provenance(plan: Event) -> dict[str, str]:
    """Tags of parent and children: which data, which code, which machine."""
    data, environment = plan.get("data", {}), plan.get("environment", {})
    tags = {"mlflow.source.name": "sweeps.run", "mlflow.source.type": "LOCAL"}
    for tag, value in (
        ("data.name", data.get("name")),
        ("data.digest", data.get("digest")),
        ("mlflow.source.git.commit", environment.get("git_commit")),
        ("hardware.host", environment.get("host")),
        ("hardware.cpu", environment.get("cpu")),
        ("hardware.gpu", environment.get("gpu")),
    ):
        if value:
            tags[tag] = _text(value)
    return tags


def plan_tags(plan: Event) -> dict[str, str]:
    """Tags of the parent: what was planned. Tags and not parameters, for the next launch may plan something else."""
    tags = provenance(plan)
    if plan:
        tags |= {
            "sweep.cells": str(len(plan["cell_keys"])),
            "sweep.launch": str(plan["launch"]),
            "sweep.scheduler": _text(plan.get("scheduler", {})),
            "sweep.objectives": _text(plan.get("objectives", {})),
        }
        if plan.get("overrides"):
            tags["sweep.overrides"] = _text(plan["overrides"])
    return tags


def rounded(name: str, value: float) -> float:
    """As many digits as mean something, so that MLflow's narrow columns show them: 5 decimals for quality and losses, 3
    for memory and time; 3 significant digits where 3 decimals would leave less."""
    if name.startswith(("memory/", "time/")) or name.endswith("_s"):
        return float(f"{value:.3g}") if abs(value) < 0.1 else round(value, 3)
    return round(value, 5)


def _text(value: object) -> str:
    """As a person would write it: true, 0.3, 583; anything longer is cut, with a mark."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= TEXT_LIMIT else text[: TEXT_LIMIT - 1] + "…"
