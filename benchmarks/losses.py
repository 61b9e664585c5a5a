"""The losses alone, at the size of real catalogs: time and memory of forward and backward, beside what others offer.

`python -m benchmarks losses` needs a GPU. First the gate (`benchmarks.loss_gate`): every loss that is to be timed is
held against float64, and nothing is timed while one of them is wrong. Then, shape by shape, the fused losses, and after
them the project's eager ones, PyTorch's cross-entropy whole and in chunks, cut-cross-entropy and Liger where they are
installed (`benchmarks.loss_clock` says what is read). Ratios are those of the published reference figures in
reference_losses.csv to the captured step. `--inputs peaked` makes the states those of a trained model.

Rows go to `benchmarks/results/losses.csv` as they are measured, a picture a shape to `losses_<inputs>_<shape>.png`.
After `--deadline` seconds nothing is started, and what was left out is said. `--quick`: a toy shape on any device,
kernels in Triton's interpreter on a CPU, rows to stdout alone unless `--results` is given. Exit code 1: a red check, a
loss that failed, or one that is not built (unless `--allow-missing`).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks import loss_baselines, loss_cases, loss_clock, loss_gate, loss_picture, loss_table, rows
from benchmarks.loss_cases import MODULES, Case
from benchmarks.loss_clock import Step
from benchmarks.loss_gate import Finding
from benchmarks.loss_problems import INPUTS, QUICK, SHAPES, Problem, Shape, build
from benchmarks.loss_table import Label, Row

FUSED = "fused"
APART = 0.02
"""Relative difference of one loss's values, by whoever computes it at a timed shape."""


@dataclass(frozen=True, eq=False)
class Job:
    """One row to be."""

    label: Label
    make: Callable[[Problem], Step]

    @property
    def is_fused(self) -> bool:
        return self.label.who == FUSED


def jobs(chosen: list[Case], shapes: list[Shape], quick: bool, device: torch.device) -> list[Job]:
    """The fused losses at every shape, then everything else, each in the order of importance."""
    low = torch.float32 if quick and device.type == "cpu" else torch.float16
    found: list[Job] = []
    for shape in shapes:
        for case in chosen:
            dtypes = [low] if quick or shape.name in case.shapes else []
            dtypes += [torch.bfloat16] if shape.name in case.bf16_shapes else []
            for dtype in dtypes:
                label = Label(case.loss, case.setting, FUSED, dtype, shape, case.references)
                found.append(Job(label, partial(case.fused, dtype=dtype)))
    for shape in shapes:
        if "ce" in {case.loss for case in chosen}:
            for one in loss_baselines.BASELINES:
                forward = one.load()
                if forward is not None and (quick or shape.name in one.shapes):
                    label = Label("ce", "", one.who, one.dtype, shape)
                    found.append(Job(label, partial(one.step, forward)))
        for case in chosen:
            if quick or shape.name in case.eager_shapes:
                label = Label(case.loss, case.setting, "eager", torch.float32, shape, case.references)
                found.append(Job(label, case.eager))
    return found


@dataclass(frozen=True)
class Verdict:
    red: bool
    missing: bool
    unfit: frozenset[str]
    """Losses that must not be timed."""


def pass_gate(work: list[Job], options: argparse.Namespace, device: torch.device) -> Verdict:
    """Checks the losses of these jobs, and says what was found."""
    start = time.monotonic()
    pairs = [(job.label.loss, job.label.shape.width) for job in work if job.is_fused]
    findings = loss_gate.check(pairs, device, min(150.0, 0.7 * options.deadline))
    red = [finding for finding in findings if finding.red]
    for finding in red[:8]:
        print(f"red: {finding.text}")
    green = [finding for finding in findings if finding.built and not finding.red]
    missing = {finding.loss for finding in findings if not finding.built}
    worst = max(green, key=lambda finding: finding.share, default=Finding("", ""))
    told = f", the worst error {worst.share:.2f} of what is allowed ({worst.loss}, {worst.name})" if green else ""
    print(f"{len(green)} checks green{told}; {len(red)} red; {time.monotonic() - start:.0f} s")
    if missing:
        print(f"not built: {', '.join(sorted(missing))}")
    absent = [f"{one.who} {loss_table.SHORT[one.dtype]}" for one in loss_baselines.BASELINES if one.load() is None]
    if absent and not options.fused_only:
        print(f"not installed: {', '.join(absent)}", flush=True)
    # A process that gave no answer stands for its module.
    wrong = {finding.loss for finding in red}
    unfit = frozenset(loss for loss, module in MODULES.items() if loss in wrong | missing or module in wrong)
    return Verdict(bool(red), bool(missing), unfit)


def measure(job: Job, problem: Problem, options: argparse.Namespace, folder: Path | None) -> Row:
    """One row, written and printed."""
    reading = loss_clock.read(job.make, problem, capture=job.is_fused, rounded=job.label.dtype != torch.float32)
    row = loss_table.row_of(job.label, reading, options.inputs)
    if folder is not None:
        rows.append("losses", row, folder)
    print(loss_table.line_of(job.label, row, reading, options.inputs, job.is_fused), flush=True)
    return row


def apart(row: Row, table: list[Row]) -> str:
    """What an earlier row of the same loss says otherwise; draws of negatives move a mean over so many positions less
    than that. Peaked inputs have too long tails for this."""
    same = ("loss", "setting", "shape", "inputs")
    for other in table:
        values = [float(str(one["value"] or "nan")) for one in (row, other)]
        alike = all(row[key] == other[key] for key in same) and row["inputs"] == "random"
        if alike and abs(values[0] - values[1]) > APART * abs(values[1]):
            return f"{row['who']} gives {values[0]:g} where {other['who']} gives {values[1]:g}"
    return ""


def options_of(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="LOSS", choices=list(MODULES), help=", ".join(MODULES))
    parser.add_argument("--shapes", nargs="+", metavar="S", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--inputs", choices=INPUTS, default="random")
    parser.add_argument("--deadline", type=float, default=float("inf"), metavar="SECONDS", help="start nothing after")
    parser.add_argument("--results", type=Path, help="folder of rows and pictures (default: benchmarks/results)")
    parser.add_argument("--allow-missing", action="store_true", help="a loss that is not built is no failure")
    parser.add_argument("--green", action="store_true", help="time the losses that passed though others did not")
    parser.add_argument("--fused-only", action="store_true", help="no eager losses, nobody else's code")
    parser.add_argument("--quick", action="store_true", help="a toy shape, on a CPU too")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    start = time.monotonic()
    options = options_of(arguments)
    if not (torch.cuda.is_available() or options.quick):
        print("no CUDA device: nothing to measure. hint: --quick runs on a CPU.", file=sys.stderr)
        return 2
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    folder = options.results or (None if options.quick else rows.RESULTS)
    chosen = [case for case in loss_cases.cases(options.quick) if options.only is None or case.loss in options.only]
    shapes = [QUICK] if options.quick else [SHAPES[name] for name in options.shapes]
    work = [job for job in jobs(chosen, shapes, options.quick, device) if job.is_fused or not options.fused_only]
    verdict = pass_gate(work, options, device)
    if verdict.red and not options.green:
        return 1
    failed = verdict.red or (verdict.missing and not options.allow_missing)
    table: list[Row] = []
    left_out: list[Job] = []
    problem: Problem | None = None
    print(loss_table.HEAD)
    for job in work:
        if job.is_fused and job.label.loss in verdict.unfit:
            continue
        if time.monotonic() - start > options.deadline:
            left_out.append(job)
            continue
        if problem is None or problem.shape != job.label.shape:
            problem = None  # before the next one takes its memory
            problem = build(job.label.shape, options.inputs, device)
        try:
            row = measure(job, problem, options, folder)
            told = "" if options.quick else apart(row, table)
            if told:
                failed = True
                print(f"{job.label.text}: {told}")
            table.append(row)
        except Exception as error:  # one loss that fails must not cost the figures of the others
            failed = True
            print(f"{job.label.text}: {type(error).__name__}: {' '.join(str(error).split())[:120]}", flush=True)
            if device.type == "cuda" and _lost(device):
                print("the device is lost to this process; nothing more is timed.")
                break
    if left_out:
        names = ", ".join(job.label.text for job in left_out)
        print(f"{len(left_out)} left out after {options.deadline:g} s: {names[:600]}")
    if folder is not None:
        for shape in shapes:
            loss_picture.draw_shape(table, shape.name, folder / f"losses_{options.inputs}_{shape.name}.png")
    return int(failed)


def _lost(device: torch.device) -> bool:
    try:
        torch.zeros(1, device=device).item()
        torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False


if __name__ == "__main__":
    sys.exit(main())
