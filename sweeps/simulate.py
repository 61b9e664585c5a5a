"""`python -m sweeps.simulate SOURCE`: what stopping rules would save on a sweep that is known, and lose.

SOURCE is a sweep's directory, whose ledger holds real curves, or a CSV of finished trainings without curves (columns
dataset, loss, batch_size, max_length, n_negatives, ndcg_at_10, peak_memory_gib, epoch_s), as in `benchmarks/data`.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import ValidationError

from seqrec import yamlfile
from seqrec.config import SELECTION_METRIC, Run, parse_section
from seqrec.errors import UserError, message
from sweeps import replay, stopping
from sweeps.cells import Cell
from sweeps.ledger import FILE_NAME, read
from sweeps.replay import Recorded, Spent
from sweeps.spec import SchedulerSpec

GIB = 2**30
EPOCHS = 27
"""Of a training without a curve: the rungs of the law of its scores lie at 1, 3 and 9."""
COLUMNS = ("dataset", "loss", "batch_size", "max_length", "n_negatives", "ndcg_at_10", "peak_memory_gib", "epoch_s")
STOPPERS = ("fifo", "asha", "dominance,margin=0.1", "pareto_asha", "pareto_asha,margin=0.05,last_margin=0.02,keep=0.6")
"""Replayed unless others are asked for."""


# ------------------------------------------------------------------------------------------------------------- sources


def load(source: Path) -> dict[str, list[Recorded]]:
    """Data set -> its finished cells. Raises UserError for a source that cannot be replayed."""
    if source.is_dir():
        return from_ledger(source / FILE_NAME)
    if not source.is_file():
        raise UserError(message("SOURCE", str(source), "a sweep's directory or a CSV of finished trainings"))
    return from_csv(source)


def from_csv(path: Path) -> dict[str, list[Recorded]]:
    """Trainings of which only the end is known, as cells of `EPOCHS` epochs. Each row is a cell of its own."""
    found: dict[str, list[Recorded]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise UserError(message(f"{path}: columns", ", ".join(reader.fieldnames or ()), f"also {missing[0]}"))
        for number, row in enumerate(reader, start=2):
            try:
                found.setdefault(row["dataset"], []).append(_published(row, number))
            except (ValueError, TypeError) as error:
                raise UserError(f"{path} line {number}: {str(error).splitlines()[0]}") from None
    if not found:
        raise UserError(f"{path}: got no row; expected at least one training.")
    return found


def _published(row: Mapping[str, str], number: int) -> Recorded:
    loss: dict[str, Any] = {"name": row["loss"]}
    if row["n_negatives"]:
        loss["n_negatives"] = int(row["n_negatives"])
    batch_size = int(row["batch_size"])
    tree = {
        "data": {"path": row["dataset"]},
        "model": {"name": "sasrec", "max_length": int(row["max_length"])},
        "loss": loss,
        "train": {"batch_size": batch_size, "epochs": EPOCHS},
    }
    memory, quality, seconds = (float(row[name]) for name in ("peak_memory_gib", "ndcg_at_10", "epoch_s"))
    for name, value in (("peak_memory_gib", memory), ("epoch_s", seconds)):
        if not value > 0:
            raise ValueError(f"{name}: got {value}; expected > 0.")
    if not math.isfinite(quality):
        raise ValueError(f"ndcg_at_10: got {quality}; expected a finite number.")
    parameters: dict[str, Any] = {"loss.name": row["loss"], "train.batch_size": batch_size}
    key = f"{row['dataset']}-{number}"
    cell = Cell(key, key, Run.model_validate(tree), parameters, round(memory * GIB))
    return Recorded(cell, quality, memory, (seconds,) * EPOCHS)


def from_ledger(path: Path) -> dict[str, list[Recorded]]:
    """The curves of the cells that ended as done; what was stopped or failed has no end to compare with."""
    cells: dict[str, Cell] = {}
    epochs: dict[str, dict[int, Mapping[str, float]]] = {}
    found: dict[str, list[Recorded]] = {}
    if not path.exists():
        raise UserError(message("SOURCE", str(path.parent), f"a directory that holds {FILE_NAME}"))
    for event, _ in read(path):
        key = event.get("cell_key", "")
        if event["type"] == "cell" and key not in cells:
            try:
                run = Run.model_validate(event["run"])
            except ValidationError as error:
                raise UserError(f"{path}: cell {key}: {str(error).splitlines()[0]}: of another version") from None
            parameters, predicted = event["parameters"], event["predicted_bytes"]
            cells[key] = Cell(key, event["configuration_key"], run, parameters, predicted)
        elif event["type"] == "epoch":
            epochs.setdefault(key, {}).setdefault(event["epoch"], event["metrics"])
        elif event["type"] == "end" and event["outcome"] == "done" and key in epochs:
            found.setdefault(cells[key].run.data.path, []).append(_recorded(cells[key], epochs.pop(key)))
    if not found:
        raise UserError(f"{path}: got no cell that is done; expected some. hint: record it with scheduler.name=fifo")
    return found


def _recorded(cell: Cell, epochs: Mapping[int, Mapping[str, float]]) -> Recorded:
    metrics = [epochs[epoch] for epoch in sorted(epochs)]
    values = tuple(each.get(SELECTION_METRIC) for each in metrics)
    memory = max(each.get("memory/peak_gib", 0.0) for each in metrics)
    return Recorded(
        cell,
        result=max((value for value in values if value is not None), default=0.0),
        memory_gib=memory or cell.predicted_bytes / GIB,
        seconds=tuple(each.get("time/epoch_s", 0.0) + each.get("time/valid_s", 0.0) for each in metrics),
        values=values,
    )


# ------------------------------------------------------------------------------------------------------------ replaying


def stopper(text: str) -> SchedulerSpec:
    """`NAME[,KEY=VALUE ...]`, keys as in a search space's scheduler."""
    name, *options = text.split(",")
    tree: dict[str, Any] = {"name": name}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals:
            raise UserError(message("--stopper", text, "NAME or NAME,KEY=VALUE,..."))
        tree |= yamlfile.loads(f"{key.strip()}: {value}", f"--stopper {text}")
    return parse_section(SchedulerSpec, tree, "--stopper")


def measure(
    sets: Mapping[str, Sequence[Recorded]],
    scheduler: SchedulerSpec,
    *,
    workers: int,
    noise: float,
    repeats: int,
    rounds: bool = False,
) -> dict[str, Spent]:
    """By data set, the mean over repeats (shuffles and, without curves, scores); `mean` last: of the sets' means."""
    found: dict[str, Spent] = {}
    for name, source in sets.items():
        replays = []
        for seed in range(repeats):
            rule = stopping.rule(scheduler, [each.cell for each in source])
            finished, epochs, wall_s = replay.run(source, rule, workers=workers, noise=noise, seed=seed, rounds=rounds)
            replays.append(replay.judge(source, finished, epochs, wall_s))
        found[name] = _mean(replays)
    return {**found, "mean": _mean(list(found.values()))}


def _mean(all_spent: Sequence[Spent]) -> Spent:
    rows = [asdict(spent) for spent in all_spent]
    return Spent(**{name: fmean(row[name] for row in rows) for name in rows[0]})


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m sweeps.simulate", description="Replay a known sweep through stopping rules."
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="sweep directory, or a CSV of finished trainings")
    parser.add_argument(
        "--stopper",
        action="append",
        metavar="NAME[,KEY=VALUE]",
        help=f"may be repeated; default: {'  '.join(STOPPERS)}",
    )
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--noise", type=float, default=0.05, help="of rung scores, where no curves are known")
    parser.add_argument("--repeats", type=int, default=10, help="shuffles to average over")
    parser.add_argument("--rounds", action="store_true", help="for comparison: promote only when nothing runs")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    try:
        for name, count in (("--workers", options.workers), ("--repeats", options.repeats)):
            if count < 1:
                raise UserError(message(name, count, ">= 1"))
        if not 0 <= options.noise < math.inf:
            raise UserError(message("--noise", options.noise, "a finite number >= 0"))
        schedulers = {text: stopper(text) for text in options.stopper or STOPPERS}
        sets = load(options.source)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    results = {
        text: measure(
            sets, spec, workers=options.workers, noise=options.noise, repeats=options.repeats, rounds=options.rounds
        )
        for text, spec in schedulers.items()
    }
    cells = {name: len(source) for name, source in sets.items()}
    if options.json:
        tree = {text: {name: asdict(spent) for name, spent in by_set.items()} for text, by_set in results.items()}
        conditions = {
            "workers": options.workers,
            "noise": options.noise,
            "repeats": options.repeats,
            "rounds": options.rounds,
        }
        print(json.dumps({"source": str(options.source), **conditions, "cells": cells, "stoppers": tree}, indent=2))
        return 0
    for text, by_set in results.items():
        print(f"\n{text}")
        print(f"{'':16}{'cells':>6}{'epochs':>9}{'wall h':>9}{'front':>9}{'hypervolume':>13}{'losses':>9}")
        for name, spent in by_set.items():
            print(
                f"{name:16}{cells.get(name, sum(cells.values())):6}{spent.epochs:9.1%}{spent.wall_s / 3600:9.2f}"
                f"{spent.front:9.1%}{spent.hypervolume:13.2%}{spent.losses:9.1%}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
