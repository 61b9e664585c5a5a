"""The memory oracle against peaks that are on record: `training.csv`, on the data that it was measured on; no GPU.

`python -m benchmarks.oracle_recorded` prints a line a row. What the rows have besides what one training holds is taken
off: an eager step had run in the process before, whose two workspaces of the matrix library (32 MiB each, on another
stream; one of them is used by a loss that works between graphs, and then counted) were still there, but for the first
row of each command. What was counted twice then, too: the parameters' gradients where a graph was made in the second
epoch; the gradient of the item table where the loss works between graphs.
"""

from __future__ import annotations

import csv
import statistics
import sys
from collections.abc import Mapping

from benchmarks import rows
from benchmarks.steps import synthetic
from seqrec import config, memory
from seqrec.memory.captured import HANDLE

FIRST = {("fused", "rece", "8"), ("eager", "rece", "8"), ("eager", "ce", "64")}
"""(kernels, loss, batch size) of rows that were the first of their process."""

TWICE = {("fused", "ce", "64")}
"""Whose second epoch made a graph."""


def run_of(row: Mapping[str, str], **training: object) -> config.Run:
    """What a row was measured of: two epochs, none of them validated before the second one's end."""
    keys: dict[str, object] = {}
    for word in row["keys"].split():
        key, _, value = word.partition("=")
        keys[key] = value == "True" if value in ("True", "False") else int(value)
    return config.parse(
        {
            "data": {"path": "synthetic"},
            "model": {"name": "sasrec"},
            "loss": {"name": row["loss"], **keys},
            "train": {
                "batch_size": int(row["batch_size"]),
                "drop_last": True,
                "epochs": 2,
                "valid_every": 2,
                **training,
            },
        }
    )


def main() -> int:
    of = synthetic().statistics
    errors: dict[str, list[float]] = {}
    with (rows.RESULTS / "training.csv").open(newline="", encoding="utf-8") as handle:
        found = list(csv.DictReader(handle))
    print(f"{'step':16} {'loss':10} {'B':>5} {'predicted':>13} {'measured':>13} {'error':>8}  keys")
    for row in found:
        place = (row["kernels"], row["loss"], row["batch_size"])
        for kind, column in (("captured", "peak_bytes"), ("eager", "eager_peak_bytes")):
            captured = kind == "captured"
            run = run_of(row, kernels=row["kernels"]) if captured else run_of(row, engine="eager")
            predicted = memory.predict_peak(run, of)
            measured = int(row[column])
            between = captured and row["kernels"] == "eager" and row["loss"] in ("rece", "sce")
            if not (captured and place in FIRST):
                measured -= HANDLE if between else 2 * HANDLE
            if between:
                measured -= 4 * of.n_items * run.model.hidden_size
            if captured and place in TWICE:
                measured -= predicted.parts["weights"]
            error = predicted.peak_bytes / measured - 1
            name = f"{kind} {row['kernels']}" if captured else kind
            errors.setdefault(name, []).append(error)
            sizes = f"{predicted.peak_bytes:13,} {measured:13,} {error:+8.2%}"
            print(f"{name:16} {row['loss']:10} {row['batch_size']:>5} {sizes}  {row['keys']}")
    for name, ones in errors.items():
        median = statistics.median(map(abs, ones))
        print(f"{name}: {len(ones)} rows, median error {median:.2%}, lowest {min(ones):+.2%}, highest {max(ones):+.2%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
