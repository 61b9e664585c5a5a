"""Where a fused loss's time goes: device milliseconds by kernel of a forward and backward pass.

`python -m benchmarks kernels --only rece --shapes S1` needs a GPU. Of every case of `benchmarks losses` that is chosen
the mean of three eager calls after a warm one, by the profiler: kernels' own time, no gaps, so the sum is below what
`losses` reads. Rows go to `benchmarks/results/loss_kernels.csv`, the longest first.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import defaultdict
from pathlib import Path

import torch

from benchmarks import loss_cases, rows
from benchmarks.loss_clock import Step
from benchmarks.loss_problems import INPUTS, SHAPES, build
from benchmarks.losses import jobs

CALLS = 3
LEAST_SHARE = 0.005
"""Kernels below it are one row, `others`."""


def by_kernel(step: Step, calls: int = CALLS) -> dict[str, float]:
    """Device milliseconds a call by kernel's short name, the longest first; what has none is under its whole name."""
    step()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(calls):
            step()
        torch.cuda.synchronize()
    found: dict[str, float] = defaultdict(float)
    for event in profile.key_averages():
        found[short(event.key)] += event.device_time_total / 1e3 / calls
    return dict(sorted(found.items(), key=lambda each: -each[1]))


def short(name: str) -> str:
    """A kernel without its namespaces, templates and arguments; all passes of a radix sort are `sort`."""
    if re.search("[rR]adix|[sS]ort", name):
        return "sort"
    if name.startswith(("Memcpy", "Memset")):
        return name.split()[0]
    plain = re.sub(r"<.*", "", name.removeprefix("void ")).rpartition("::")[2]
    return plain.partition("(")[0] or name


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="LOSS", choices=list(loss_cases.MODULES))
    parser.add_argument("--shapes", nargs="+", metavar="S", choices=list(SHAPES), default=["S1"])
    parser.add_argument("--inputs", choices=INPUTS, default="random")
    parser.add_argument("--results", type=Path, default=rows.RESULTS)
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("no CUDA device: nothing to measure.", file=sys.stderr)
        return 2
    device = torch.device("cuda")
    chosen = [case for case in loss_cases.cases() if options.only is None or case.loss in options.only]
    for name in options.shapes:
        problem = build(SHAPES[name], options.inputs, device)
        for job in jobs(chosen, [SHAPES[name]], False, device):
            if not job.is_fused:
                continue
            found = by_kernel(job.make(problem))
            total = sum(found.values())
            shown = {kernel: ms for kernel, ms in found.items() if ms >= LEAST_SHARE * total}
            shown["others"] = total - sum(shown.values())
            label = job.label
            for kernel, ms in shown.items():
                row = {"loss": label.loss, "setting": label.setting, "dtype": str(label.dtype).removeprefix("torch.")}
                row |= {"inputs": options.inputs, "shape": name, "kernel": kernel, "ms": f"{ms:.4f}"}
                rows.append("loss_kernels", row | rows.conditions(), options.results)
            parts = ", ".join(f"{kernel} {ms:.3f}" for kernel, ms in shown.items())
            print(f"{label.text}: {total:.3f} ms: {parts}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
