"""The Pareto front of memory (down) and NDCG@10 (up), its hypervolume, and `python -m sweeps.pareto SWEEP_DIR`."""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import moocore
import numpy as np

from seqrec.errors import UserError, message
from sweeps import results, timing
from sweeps.results import Configuration


@dataclass(frozen=True)
class Box:
    """Where the hypervolume is measured: log2 of memory against quality, the whole box being 1.

    Fixed rather than fitted to the results, so that a number stays comparable when cells are added.
    """

    smallest_gib: float = 2.0**-10
    largest_gib: float = 2.0**8
    least_quality: float = 0.0
    most_quality: float = 1.0

    def __str__(self) -> str:
        return (
            f"memory 2^{math.log2(self.smallest_gib):.0f} to 2^{math.log2(self.largest_gib):.0f} GiB (log2) x "
            f"NDCG@10 {self.least_quality:g} to {self.most_quality:g}"
        )


BOX = Box()


def front(configurations: Sequence[Configuration]) -> tuple[Configuration, ...]:
    """Those that no other one beats (no less quality with no more memory, and better in one), least memory first.

    Equal ones are all kept: which of them came first in the plan is no merit.
    """
    if not configurations:
        return ()
    keep = moocore.is_nondominated(_points(configurations), maximise=[False, True], keep_weakly=True)
    kept = [configuration for configuration, on in zip(configurations, keep, strict=True) if on]
    return tuple(sorted(kept, key=lambda c: (c.memory_gib, c.quality, c.configuration_key)))


def by_loss(configurations: Sequence[Configuration]) -> dict[str, tuple[Configuration, ...]]:
    """Configurations of every loss, in order of appearance."""
    groups: dict[str, list[Configuration]] = {}
    for configuration in configurations:
        groups.setdefault(configuration.loss, []).append(configuration)
    return {loss: tuple(group) for loss, group in groups.items()}


def hypervolume(configurations: Sequence[Configuration], box: Box = BOX) -> float | None:
    """Share of the box that is dominated; None without configurations. Points outside are moved to the box's edge."""
    if not configurations:
        return None
    low, high = math.log2(box.smallest_gib), math.log2(box.largest_gib)
    memory, quality = _points(configurations).T
    x = (np.clip(np.log2(memory), low, high) - low) / (high - low)
    y = (np.clip(quality, box.least_quality, box.most_quality) - box.least_quality) / (
        box.most_quality - box.least_quality
    )
    return float(moocore.hypervolume(np.column_stack([x, y]), ref=[1.0, 0.0], maximise=[False, True]))


def pooled_deviation(configurations: Sequence[Configuration]) -> float | None:
    """Standard deviation of a single seed's quality, pooled over all replicated configurations; None if there are none.

    Pooled, because the deviation of two or three seeds is itself mostly noise.
    """
    replicated = [(c.n - 1, c.quality_sd) for c in configurations if c.quality_sd is not None]
    freedom = sum(n for n, _ in replicated)
    return math.sqrt(sum(n * sd * sd for n, sd in replicated) / freedom) if freedom else None


def near_front(configurations: Sequence[Configuration]) -> frozenset[str]:
    """Keys of the configurations within two standard errors of the front: on it, or not worse than the best one of no
    more memory by more than 2 standard errors of their difference. Only those on it where nothing was replicated."""
    on_front = front(configurations)
    near = {c.configuration_key for c in on_front}
    deviation = pooled_deviation(configurations)
    if deviation is None:
        return frozenset(near)
    for one in configurations:
        rivals = [c for c in on_front if c.memory_gib <= one.memory_gib]
        best = max(rivals, key=lambda c: c.quality, default=one)
        error = deviation * math.sqrt(1 / one.n + 1 / best.n)
        if best.quality - one.quality <= 2 * error:
            near.add(one.configuration_key)
    return frozenset(near)


def as_json(configuration: Configuration) -> dict[str, Any]:
    """Plain values, no NaN: for front.json and the command's output."""
    return {
        "configuration_key": configuration.configuration_key,
        "loss": configuration.loss,
        "label": configuration.label,
        "parameters": configuration.parameters,
        "memory_gib": configuration.memory_gib,
        "valid_ndcg_at_10": configuration.quality,
        "valid_ndcg_at_10_sd": configuration.quality_sd,
        "seeds": configuration.n,
        "seeds_planned": configuration.planned,
        "test": configuration.test,
        "epoch_s": configuration.epoch_s,
        "timing": configuration.timing,
        "cell_keys": list(configuration.cell_keys),
    }


def summary(sweep: results.Sweep, configurations: Sequence[Configuration]) -> dict[str, Any]:
    """The front with what it takes to read it."""
    return {
        "sweep": sweep.name,
        "sweep_id": sweep.sweep_id,
        "memory_axis": results.memory_axis(sweep.cells).label,
        "hypervolume_box": str(BOX),
        "hypervolume": hypervolume(configurations),
        "front": [as_json(c) for c in front(configurations)],
    }


def write_csv(configurations: Sequence[Configuration], out: TextIO) -> None:
    """One line a configuration; parameters and test metrics as columns."""
    parameters = list(dict.fromkeys(key for c in configurations for key in c.parameters))
    tests = list(dict.fromkeys(key for c in configurations for key in c.test))
    fixed = [
        "loss",
        "label",
        "memory_gib",
        "valid_ndcg_at_10",
        "valid_ndcg_at_10_sd",
        "seeds",
        "seeds_planned",
        "epoch_s",
        "timing",
    ]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*fixed, *parameters, *tests, "configuration_key"])
    for c in configurations:
        row = as_json(c)
        writer.writerow(
            [row[name] for name in fixed]
            + [c.parameters.get(key) for key in parameters]
            + [c.test.get(key) for key in tests]
            + [c.configuration_key]
        )


def _points(configurations: Sequence[Configuration]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(n, 2): memory in GiB, quality."""
    return np.array([[c.memory_gib, c.quality] for c in configurations], dtype=np.float64).reshape(-1, 2)


def select_losses(configurations: Sequence[Configuration], losses: str | None) -> tuple[Configuration, ...]:
    """Those of the comma-separated losses; all without. A loss that nothing complete has is a mistake worth telling."""
    if losses is None:
        return tuple(configurations)
    known = by_loss(configurations)
    wanted = [name.strip() for name in losses.split(",")]
    for name in wanted:
        if name not in known:
            raise UserError(message("--loss", name, f"a loss with a complete cell ({', '.join(known) or 'none yet'})"))
    return tuple(c for c in configurations if c.loss in wanted)


def _print_table(sweep: results.Sweep, configurations: Sequence[Configuration]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    listed = front(configurations)
    if not listed:
        console.print(f"{sweep.name}: no complete cell, no front.", markup=False)
        return
    view = Table(title=f"Pareto front of {sweep.name}", title_justify="left", caption_justify="left")
    view.add_column("loss")
    for name in ("GiB", "valid NDCG@10", "test NDCG@10", "seeds", "s/epoch"):
        view.add_column(name, justify="right", no_wrap=True)
    view.add_column("configuration")
    for c in listed:
        spread = "" if c.quality_sd is None else f" ±{c.quality_sd:.4f}"
        tested = "-" if c.test_quality is None else f"{c.test_quality:.4f}"
        seeds = f"{c.n}" if c.n == c.planned else f"{c.n} of {c.planned}"
        label = escape(c.label.removeprefix(f"{c.loss} "))
        seconds = timing.seconds(c.epoch_s, c.timing)
        view.add_row(c.loss, f"{c.memory_gib:.3g}", f"{c.quality:.4f}{spread}", tested, seeds, seconds, label)
    console.print(view)
    console.print(f"memory: {results.memory_axis(sweep.cells).label}", markup=False, highlight=False)
    if marks := timing.legend(c.timing for c in listed):
        console.print(marks, markup=False, highlight=False, soft_wrap=True)
    console.print(f"hypervolume {hypervolume(configurations):.4g} of {BOX}", markup=False, highlight=False)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m sweeps.pareto", description="Print a sweep's Pareto front.")
    parser.add_argument("sweep_dir", type=Path, help="directory that holds ledger.jsonl")
    parser.add_argument("--format", choices=("table", "csv", "json"), default="table")
    parser.add_argument("--loss", metavar="NAMES", help="front of these losses only, comma-separated")
    options = parser.parse_args(arguments)
    try:
        sweep = results.load(options.sweep_dir)
        configurations = select_losses(results.configurations(sweep.cells), options.loss)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.format == "json":
        print(json.dumps(summary(sweep, configurations), indent=2, allow_nan=False))
    elif options.format == "csv":
        write_csv(front(configurations), sys.stdout)
    else:
        _print_table(sweep, configurations)
    return 0


if __name__ == "__main__":
    sys.exit(main())
