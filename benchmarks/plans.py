"""What a plan takes: seconds and memory of `--plan` for 2,904 and 100,000 cells. Needs no GPU.

`python -m benchmarks plans --out benchmarks/results/plans.txt` appends a block. Each plan is a process of its own, from
its start to its end; its output goes to nowhere.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from sweeps import environment

ROOT = Path(__file__).parents[1]
LARGE = """
name: large
data: {path: amazon_beauty_5core}
loss: {name: rece}
train: {epochs: 300, patience: 12}
grid:
  train.batch_size: [8, 16, 32, 64, 96, 128, 192, 256, 384, 512]
  train.learning_rate: [1e-4, 2e-4, 5e-4, 1e-3, 2e-3]
  model.dropout: [0.1, 0.2, 0.3, 0.4, 0.5]
  loss.n_extra_chunks: [0, 1, 2, 3]
  loss.rounds: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
derived:
  loss.n_buckets: int((4 * (1 + 2 * n_extra_chunks) * min(catalog_size, batch_size * interactions_per_user)) ** 0.5)
seeds: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
"""
"""100,000 cells."""


def measure(*arguments: str) -> tuple[float, float]:
    """(seconds, most MiB resident) of `python -m sweeps.run` with these arguments."""
    since = time.perf_counter()
    with open(os.devnull, "wb") as nowhere:
        process = subprocess.Popen([sys.executable, "-m", "sweeps.run", *arguments], cwd=ROOT, stdout=nowhere)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"sweeps.run {' '.join(arguments)}: exit code {process.returncode}; expected 0.")
    return time.perf_counter() - since, usage.ru_maxrss / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="append the lines to this file too")
    arguments = parser.parse_args()
    found = environment.describe()
    lines = [
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, commit {found.get('git_commit', '?')[:12]}, {found['cpu']}, "
        f"load {os.getloadavg()[0]:.1f}, Python {found['python']}, python -m benchmarks plans"
    ]
    with tempfile.TemporaryDirectory() as folder:
        large = Path(folder) / "large.yaml"
        large.write_text(LARGE, encoding="utf-8")
        spaces = (("2,904 cells (rece.yaml)", "search_spaces/rece.yaml"), ("100,000 cells", str(large)))
        for label, space in spaces:
            for form in ((), ("--json",)):
                seconds, mib = measure(space, "--plan", *form, "--storage", folder)
                lines.append(f"  {label:<24} {' '.join(form) or 'text':<6} {seconds:6.1f} s {mib:7.0f} MiB")
    print("\n".join(lines))
    if arguments.out:
        with arguments.out.open("a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
