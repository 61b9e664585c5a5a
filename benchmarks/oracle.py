"""The memory oracle's gate: predicted against measured peaks of cells that span the published grids.

`python -m benchmarks.oracle` needs a GPU. Of each cell, in one process: the peaks of the train step, of validation, and
the state are predicted before anything is built; then as in training an epoch, a validation and another epoch are run,
each epoch cut to its first batch and its largest; what training would report is measured. A cell is a row of
`oracle.csv`, one that runs out of memory too. The last line, and the exit code, say whether the gate holds: of the
train step's peaks a median error under 2 %, and none predicted more than 5 % too low.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

from benchmarks import rows
from benchmarks.oracle_cells import Cell, cells, split
from benchmarks.part_of_epoch import run_part
from seqrec import memory, meters, models, seeding, train
from seqrec.data.batches import Plan
from seqrec.data.tables import Split
from seqrec.engine import Engine
from seqrec.memory.evaluation import evaluation_peak
from seqrec.memory.measure import OUT_OF_MEMORY

MOST_MEDIAN, MOST_UNDER = 0.02, -0.05


def predict(cell: Cell, of: Split) -> dict[str, int | str]:
    """Bytes, without a GPU."""
    run = cell.run()
    peak = memory.predict_peak(run, of.statistics)
    return {
        "predicted_bytes": peak.peak_bytes,
        "moment": peak.moment,
        "predicted_state_bytes": memory.state_bytes(run, of.statistics),
        "predicted_evaluation_bytes": evaluation_peak(run, of.statistics),
    }


def measure(cell: Cell, of: Split, device: torch.device) -> dict[str, int]:
    """Bytes; raises torch's errors."""
    run = cell.run()
    seeding.seed_weights(run.train.seed)
    model = models.build(run.model, of.n_items).to(device)
    engine = train.build_engine(run, of, model, device)
    peaks, evaluations = [], []
    for number in (1, 2):
        _, reading = meters.measure(lambda number=number: worst(engine, number), device)
        assert reading.peak_bytes is not None
        peaks.append(engine.peak_bytes(reading.peak_bytes))
        if number == 1:
            _, validation = meters.measure(lambda: train._evaluate(run, of, model, of.valid, lists=False), device)
            assert validation.peak_bytes is not None
            evaluations.append(validation.peak_bytes)
    return {
        "peak_bytes": max(peaks),
        "state_bytes": engine.state_bytes(),
        "evaluation_bytes": max(evaluations),
    }


def worst(engine: Engine, epoch: int) -> None:
    """An epoch of its first batch and the one with the most positions."""
    run_part(engine, epoch, lambda plan: cut(plan, engine.batches.batch_size))


def cut(plan: Plan, batch_size: int) -> Plan:
    """The first batch and the one with the most positions; users keep their tensor's size."""
    largest = max(range(len(plan.sizes)), key=lambda index: plan.sizes[index].positions)
    users = plan.users.clone()
    number = min(largest, 1)
    users[number * batch_size : (number + 1) * batch_size] = plan.users[
        largest * batch_size : (largest + 1) * batch_size
    ]
    return Plan(users, (*plan.sizes[:number], plan.sizes[largest]))


def row_of(cell: Cell, device: torch.device) -> dict[str, object]:
    """A cell's row without its conditions."""
    of = split(cell.catalog)
    row: dict[str, object] = {"cell": cell.name, **predict(cell, of)}
    measured: dict[str, int | str] = {"peak_bytes": "", "state_bytes": "", "evaluation_bytes": ""}
    error: float | str = ""
    outcome = "done"
    try:
        with seeding.isolated(device):
            measured |= measure(cell, of, device)
        error = round(int(row["predicted_bytes"]) / int(measured["peak_bytes"]) - 1, 5)
    except RuntimeError as problem:
        if not any(sign in str(problem) for sign in OUT_OF_MEMORY):
            raise
        outcome = "oom"
    meters.release(device)
    if device.type == "cuda":
        # What one cell made the matrix library take would be missing from the next one's peak.
        torch._C._cuda_clearCublasWorkspaces()
        meters.release(device)
    return {**row, **measured, "error": error, "outcome": outcome}


def summary(errors: list[float]) -> tuple[str, bool]:
    """The last line, and whether the gate holds."""
    if not errors:
        return "no cell was measured", False
    median, under, over = statistics.median(map(abs, errors)), min(errors), max(errors)
    holds = median < MOST_MEDIAN and under > MOST_UNDER
    text = f"{len(errors)} cells: median error {median:.2%}, lowest {under:+.2%}, highest {over:+.2%}"
    return f"{text}: the gate {'holds' if holds else 'does not hold'}", holds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=rows.RESULTS)
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="cells whose name holds one of these texts")
    parser.add_argument("--deadline", type=float, metavar="SECONDS", help="starts no cell after so many seconds")
    parser.add_argument("--predict", action="store_true", help="prints predictions; needs no GPU and writes nothing")
    options = parser.parse_args()
    chosen = [cell for cell in cells() if not options.only or any(text in cell.name for text in options.only)]
    if not chosen:
        print(f"--only: got {' '.join(options.only)}; expected a part of some cell's name.", file=sys.stderr)
        return 2
    if options.predict:
        for cell in chosen:
            print(cell.name, *predict(cell, split(cell.catalog)).values())
        return 0
    if not torch.cuda.is_available():
        print("no CUDA device: nothing to measure.", file=sys.stderr)
        return 2
    begun, errors, left = time.monotonic(), [], 0
    for cell in chosen:
        if options.deadline is not None and time.monotonic() - begun > options.deadline:
            left += 1
            continue
        row = row_of(cell, torch.device("cuda"))
        rows.append("oracle", {**row, **rows.conditions()}, options.results)
        print(" ".join(f"{value}" for value in row.values()), flush=True)
        if row["outcome"] == "done":
            errors.append(float(str(row["error"])))
    text, holds = summary(errors)
    print(f"{text}; {left} cells were left out at the deadline" if left else text)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
