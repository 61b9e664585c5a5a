"""Cells an hour of one GPU over small batches, by how trials share it: a fresh process a cell, warm ones in turn,
several at a time with and without NVIDIA's Multi-Process Service.

    python -m benchmarks sharing

A real sweep on Ray inside this process for every way (`fresh 1`, `warm 1`, `turns K`, `mps K`: K trials at a time),
over the first cells of one list, in which losses and batch sizes take turns. Cells an hour count from the K-th end,
when every worker has had a cell, to the last one, so the idle end of the list is in them. `gpu_busy`: the share of that
time in which a kernel ran, by `nvidia-smi` (utilization.gpu), mean of its samples. A row each goes to
`<results>/sharing.csv`; of `warm 1` also one to `sharing_turnover.csv`, with the parts of `benchmarks.turnover`.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import rows, turnover
from sweeps.space import Plan
from sweeps.spec import Resources

LOSSES: dict[str, dict[str, Any]] = {
    "rece": {"n_buckets": 128, "n_extra_chunks": 1, "rounds": 1},
    "gbce": {"n_negatives": 256},
    "ce": {},
}


class Way(NamedTuple):
    """How trials have the GPU."""

    name: str
    together: int
    cells: int

    @property
    def resources(self) -> Resources:
        return Resources(gpus_per_trial=1 / self.together, mps=self.name == "mps")


def ways(options: argparse.Namespace) -> list[Way]:
    """The most telling first. Each has whole turns of the list, and at least two cells a worker."""
    turn = len(LOSSES) * len(options.batch_sizes)

    def whole(count: int) -> int:
        return -(-count // turn) * turn

    few, many = whole(options.cells), [whole(max(options.cells, 4 * k)) for k in options.together]
    known = [Way("warm", 1, few), *(Way("mps", k, n) for k, n in zip(options.together, many, strict=True))]
    return [*known, Way("fresh", 1, whole(turn)), Way("turns", options.together[0], whole(2 * options.together[0]))]


def planned(options: argparse.Namespace, count: int) -> Plan:
    """So many cells; losses take turns, then batch sizes."""
    mix = [
        ({"name": name, **keys}, {"batch_size": batch, "epochs": options.epochs})
        for batch in options.batch_sizes
        for name, keys in LOSSES.items()
    ]
    return turnover.plan_of(options, [mix[number % len(mix)] for number in range(count)])


def rate(ends: list[float], together: int) -> float:
    """Cells an hour from the time when every worker has had a cell."""
    ends = sorted(ends)
    return 3600 * (len(ends) - together) / (ends[-1] - ends[together - 1])


@contextmanager
def watched() -> Iterator[list[tuple[float, float]]]:
    """(time, percent busy) of the first GPU, several times a second; empty without `nvidia-smi`."""
    seen: list[tuple[float, float]] = []
    if not shutil.which("nvidia-smi"):
        yield seen
        return
    command = ["nvidia-smi", "-i", "0", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:

        def read() -> None:
            for line in process.stdout or ():
                with contextlib.suppress(ValueError):
                    seen.append((time.time(), float(line)))

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            yield seen
        finally:
            process.terminate()
            reader.join()


def busy(seen: list[tuple[float, float]], since: float, until: float) -> float | str:
    """Mean of the samples of a stretch of time, 0 to 1; empty without any."""
    found = [percent for when, percent in seen if since <= when <= until]
    return round(statistics.fmean(found) / 100, 3) if found else ""


def timed(way: Way, options: argparse.Namespace, log: Path) -> dict[str, object]:
    """The row of one way, without conditions."""
    plan = planned(options, way.cells)
    with watched() as seen:
        if way.name == "fresh":
            ends = turnover.fresh(lambda: turnover.sweep(plan, way.resources, log))
        else:
            ends = turnover.sweep(plan, way.resources, log, together=way.together)
    since, until = sorted(ends)[way.together - 1], max(ends)
    return {
        "way": way.name,
        "together": way.together,
        "data": options.data,
        "losses": " ".join(LOSSES),
        "batch_sizes": " ".join(map(str, options.batch_sizes)),
        "epochs": options.epochs,
        "max_length": options.max_length,
        "hidden_size": options.hidden_size,
        "cells": way.cells,
        "seconds": round(until - since, 2),
        "cells_an_hour": round(rate(ends, way.together)),
        "gpu_busy": busy(seen, since, until),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="amazon_beauty_5core")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[8, 32])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--max-length", type=int, default=50)
    parser.add_argument("--hidden-size", type=int, default=64)
    parser.add_argument("--cells", type=int, default=12, help="at least so many cells each way, `fresh` apart")
    parser.add_argument("--together", nargs="+", type=int, default=[8, 16], help="trials at a time")
    parser.add_argument("--deadline", type=float, default=1800, help="seconds after which no other way is begun")
    parser.add_argument("--results", type=Path, default=rows.RESULTS)
    options = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print("sharing: got no GPU; expected one to share.", file=sys.stderr)
        return 2
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for way in ways(options):
            if time.monotonic() - begun > options.deadline:
                print(f"not begun: {way.name} {way.together}", flush=True)
                continue
            log = Path(folder) / f"{way.name}_{way.together}.jsonl"
            row = timed(way, options, log)
            rows.append("sharing", {**row, **rows.conditions()}, options.results)
            print(
                f"{way.name} {way.together}: {row['cells_an_hour']} cells an hour ({way.cells} cells, "
                f"{row['seconds']} s), GPU busy {row['gpu_busy']}",
                flush=True,
            )
            if way.name == "warm":
                found = turnover.summary(turnover.turnovers(log))
                rows.append("sharing_turnover", {**found, **rows.conditions()}, options.results)
                print("  turnover:", found, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
