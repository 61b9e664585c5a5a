"""From the end of one cell to the first step of the next in a worker process, by part, and the cells an hour that warm
processes gain over fresh ones.

    python -m benchmarks turnover --cells 24 --fresh 8

A real sweep on Ray inside this process, one trial at a time, on a GPU where there is one: short cells that take turns
among some losses, with a seed each. Every training is a worker's own; a clock in the worker notes when it passes from
one part to the next:

driver    the end is told, Tune and the ledger take it in and hand over the next cell
settle    garbage and the allocator's cache of the cell before
told      the checkpoint is looked for, the start is told
parsed    the run and its data are at hand
released  garbage and cache once more, by the training itself
data      the training set is on the device
model     weights, in host memory, then on the device
engine    loss, sampler, batches, optimiser
step      up to the launch of the first step, its capture included

A turnover is `new` if it leads to a loss that the process has not trained before: its kernels are then loaded or
compiled. Median and 95th percentile are of the others; `--fresh` cells, the first of the same list, then run with a
process each. Cells an hour count from the first end to the last one. A row goes to `<results>/turnover.csv`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import rows
from seqrec import data
from seqrec.config import Run
from seqrec.reports import RunReport
from sweeps import cells, execute
from sweeps.cells import Cell
from sweeps.ledger import FILE_NAME, read
from sweeps.options import Options
from sweeps.space import Plan
from sweeps.spec import Budget, Resources, SchedulerSpec, SweepSpec

PARTS = ("driver", "settle", "told", "parsed", "released", "data", "model", "engine", "step")
LOSSES: dict[str, dict[str, Any]] = {
    "ce": {},
    "bce": {"n_negatives": 16},
    "gbce": {"n_negatives": 64},
    "ce_minus": {"n_negatives": 64},
    "sce": {"n_buckets": 64, "bucket_size_x": 64, "bucket_size_y": 128},
    "rece": {"n_buckets": 64},
}

_marks: dict[str, float] = {}
"""In a worker: when the cell at hand passed into each part."""
_seen: set[str] = set()
"""Losses that this process has trained."""


def _mark(name: str) -> None:
    _marks.setdefault(name, time.perf_counter())


def _after(owner: Any, name: str, part: str, when: Callable[..., bool] = lambda *_: True) -> None:
    """From now on the clock passes into `part` when the function returns."""
    original = getattr(owner, name)

    def marked(*arguments: Any, **options: Any) -> Any:
        result = original(*arguments, **options)
        if when(*arguments):
            _mark(part)
        return result

    setattr(owner, name, marked)


def _before(owner: Any, name: str, part: str) -> None:
    original = getattr(owner, name)

    def marked(*arguments: Any, **options: Any) -> Any:
        _mark(part)
        return original(*arguments, **options)

    setattr(owner, name, marked)


def _wind() -> None:
    """Put the clock into this process."""
    import torch

    from seqrec import engine, meters, train
    from sweeps import trial

    _before(trial, "_settle", "driver")
    _after(trial, "_limit", "settle")
    _after(trial, "_send", "told", lambda kind: kind == "start")
    _after(meters, "release", "released")
    _before(train.models, "build", "data")
    _before(train, "build_engine", "model")
    _after(train, "build_engine", "engine")
    _before(engine.Engine, "_step", "step")
    if torch.cuda.is_available():
        _before(torch.cuda.CUDAGraph, "replay", "step")


EVERY_S = Resources().checkpoint_every_s
"""As a sweep has it."""


@dataclass(frozen=True)
class Clocked:
    """A worker's own training, with a clock in its process."""

    log: Path

    def __call__(self, run: Run, **options: Any) -> RunReport:
        from sweeps import trial

        if not _seen:
            _wind()
        _mark("parsed")
        try:
            settings = trial.Settings(options["workdir"], 1, checkpoint_every_s=EVERY_S)
            return trial._seqrec(run, settings=settings, **options)
        finally:
            if "end" in _marks:
                line = {"pid": os.getpid(), "new": run.loss.name not in _seen, "marks": dict(_marks)}
                with self.log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
            _seen.add(run.loss.name)
            _marks.clear()
            _mark("end")


def planned(options: argparse.Namespace) -> Plan:
    """The cells, the losses taking turns."""
    losses = [{"name": name, **LOSSES[name]} for name in options.losses]
    train = {"batch_size": options.batch_size, "epochs": 1}
    return plan_of(options, [(losses[number % len(losses)], train) for number in range(options.cells)])


def plan_of(options: argparse.Namespace, wanted: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> Plan:
    """A cell for each (`loss`, `train`), with a seed of its own."""
    model = {"name": "sasrec", "max_length": options.max_length, "hidden_size": options.hidden_size}
    runs = [
        Run.model_validate(
            {"data": {"path": options.data}, "model": model, "loss": loss, "train": {**train, "seed": seed}}
        )
        for seed, (loss, train) in enumerate(wanted, 1)
    ]
    given = data.statistics(runs[0].data)
    made = [
        Cell(
            *cells.keys(run, given.digest),
            run,
            {"loss.name": run.loss.name, "train.batch_size": run.train.batch_size, "train.seed": run.train.seed},
            2**30,
        )
        for run in runs
    ]
    return Plan(tuple(made), 0, (), (), given, options.data)


def sweep(plan: Plan, resources: Resources, log: Path, limit: int | None = None, together: int = 1) -> list[float]:
    """Runs the cells (at most `limit`), so many at a time; when each of them ended, seconds."""
    spec = SweepSpec(
        source="turnover",
        text="",
        name="turnover",
        description="",
        data=plan.cells[0].run.data,
        fixed={},
        blocks=(),
        seeds=(1,),
        aliases={},
        objectives=(("valid/ndcg_at_10", "max"), ("memory/peak_gib", "min")),
        scheduler=SchedulerSpec(name="fifo"),
        resources=resources,
        budget=Budget(),
        overrides=(),
    )
    with tempfile.TemporaryDirectory() as folder:
        given = Options(
            storage=Path(folder), no_tracking=True, no_reuse=True, num_cpus=together, quiet=True, limit_trials=limit
        )
        code = execute.run(spec, plan, given, trainer=Clocked(log))
        ends = [event for event, _ in read(Path(folder) / "turnover" / FILE_NAME) if event["type"] == "end"]
    broken = [event["reason"] for event in ends if event["outcome"] != "done"]
    if code or broken:
        raise RuntimeError(f"the sweep ended with {code}: {broken[:1]}")
    return [event["time_ms"] / 1e3 for event in ends]


def fresh(work: Callable[[], list[float]]) -> list[float]:
    """Runs `work` with a new process for every trial."""
    from ray import tune

    original = tune.TuneConfig
    tune.TuneConfig = lambda **settings: original(**{**settings, "reuse_actors": False})
    try:
        return work()
    finally:
        tune.TuneConfig = original


def an_hour(ends: list[float]) -> float:
    return 3600 * (len(ends) - 1) / (ends[-1] - ends[0])


def turnovers(log: Path) -> list[dict[str, Any]]:
    """Seconds of each turnover of the log: `total`, its parts, `new`."""
    found = []
    for line in log.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        marks, since = record["marks"], record["marks"]["end"]
        seconds: dict[str, Any] = {"total": marks["step"] - since, "new": record["new"]}
        for part in PARTS:
            # A part that this training does not have takes no time.
            until = marks.get(part, since)
            seconds[part], since = until - since, until
        found.append(seconds)
    return found


def summary(found: list[dict[str, Any]]) -> dict[str, float | str]:
    """Median, percentile and the parts' medians, of turnovers to a loss that is not new."""
    known = [one for one in found if not one["new"]]
    if len(known) < 2:
        raise ValueError(f"--cells: got {len(known)} turnovers to a known loss; expected two or more.")
    totals = [one["total"] for one in known]
    new = [one["total"] for one in found if one["new"]]
    told: dict[str, float | str] = {
        "turnovers": len(known),
        "median_s": round(statistics.median(totals), 4),
        "p95_s": round(statistics.quantiles(totals, n=20, method="inclusive")[-1], 4),
    }
    told |= {f"{part}_s": round(statistics.median(one[part] for one in known), 4) for part in PARTS}
    return told | {"new_median_s": round(statistics.median(new), 4) if new else ""}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=24)
    parser.add_argument("--fresh", type=int, default=6, help="cells with a process each; 0: leave them out")
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=["bce", "gbce", "ce_minus"], metavar="LOSS")
    parser.add_argument("--data", default="amazon_beauty_5core")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--max-length", type=int, default=20)
    parser.add_argument("--hidden-size", type=int, default=32)
    parser.add_argument("--note", default="", help="kept with the row: what else the machine was doing, say")
    parser.add_argument("--results", type=Path, default=rows.RESULTS)
    options = parser.parse_args()
    import torch

    alone = Resources(gpus_per_trial=1.0 if torch.cuda.device_count() > 0 else 0.0)
    plan = planned(options)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "warm.jsonl"
        warm = an_hour(sweep(plan, alone, log))
        row: dict[str, object] = {
            "data": options.data,
            "losses": " ".join(options.losses),
            "batch_size": options.batch_size,
            "max_length": options.max_length,
            "hidden_size": options.hidden_size,
            "cells": options.cells,
            **summary(turnovers(log)),
            "warm_cells_an_hour": round(warm),
            "fresh_cells": options.fresh,
            "fresh_cells_an_hour": "",
            "gain": "",
        }
        print(*(f"{name} {value}," for name, value in row.items()), flush=True)
        if options.fresh > 1:
            cold = an_hour(fresh(lambda: sweep(plan, alone, Path(folder) / "fresh.jsonl", options.fresh)))
            row |= {"fresh_cells_an_hour": round(cold), "gain": round(warm / cold, 2)}
    row |= {"load": f"{load:.1f}", "note": options.note, **rows.conditions()}
    for name, value in row.items():
        print(f"{name:20} {value}")
    print(f"row: {rows.append('turnover', row, options.results)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
