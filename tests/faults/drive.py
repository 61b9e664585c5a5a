"""A small sweep with faults to order, as a command of its own: drills kill it, interrupt it and run it again.

Cells differ in their batch size only; `--fault 24=killed_once` makes the cell with batch size 24 misbehave. Everything
that training does is written to <directory>/trace, one line each: time, pid, batch size, what. While <directory>/hold
exists, no cell gets past its next epoch. `--seeds 3` plans every cell three times, with different seeds; in the trace
the further ones are `24.1236`. <directory>/clock, if it is there, holds the hours by which the driver's clock is wrong.
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from seqrec import data
from seqrec.config import Data, Run
from seqrec.errors import UserError
from seqrec.reports import EpochReport, RunReport
from sweeps import cells, execute, nodes, signals
from sweeps.budget import Budget as Wall
from sweeps.cells import Cell
from sweeps.options import Options
from sweeps.space import Plan
from sweeps.spec import Budget, Resources, SchedulerSpec, SweepSpec

SIZES = (8, 16, 24, 32, 40, 48, 56, 64)
SEED = 1235
HOLD = "hold"
CLOCK = "clock"
FAULTS = ("killed_once", "killed", "oom", "error", "nan", "full_disk")


def make_data(directory: Path) -> Path:
    """60 users with 6 to 12 events over 40 items; the same file every time."""
    path = directory / "small.parquet"
    if not path.exists():
        draw = np.random.default_rng(3)
        users = np.repeat(np.arange(60), draw.integers(6, 13, 60))
        items = draw.integers(0, 40, len(users))
        order = np.concatenate([np.arange(n) for n in np.bincount(users)])
        pd.DataFrame({"user_id": users, "item_id": items, "order": order}).to_parquet(path)
    return path


def make_run(path: Path, batch_size: int, epochs: int, learning_rate: float = 1e-3, seed: int = SEED) -> Run:
    train = {"batch_size": batch_size, "epochs": epochs, "patience": None, "learning_rate": learning_rate, "seed": seed}
    tree: dict[str, Any] = {
        "data": {"path": str(path)},
        "model": {"name": "sasrec", "max_length": 8, "hidden_size": 8, "n_blocks": 1},
        "loss": {"name": "ce"},
        "train": train,
    }
    return Run.model_validate(tree)


@dataclass(frozen=True)
class Trainer:
    """seqrec's training, with faults."""

    directory: Path
    faults: dict[int, str]
    epoch_s: float
    instant: bool

    def __call__(self, run: Run, *, on_epoch: Any, **rest: Any) -> RunReport:
        size = run.train.batch_size
        fault = self.faults.get(size, "")
        name = str(size) if run.train.seed == SEED else f"{size}.{run.train.seed}"
        self.note(name, "begin")
        past = 0 if self.instant else _kept(rest["workdir"] / "last.pt")

        def watched(report: EpochReport) -> None:
            self.note(name, f"epoch {report.epoch}" if report.epoch > past else f"again {report.epoch}")
            on_epoch(report)
            time.sleep(self.epoch_s)
            while (self.directory / HOLD).exists():
                time.sleep(0.02)
            if report.epoch == 2:
                self.strike(fault, size)

        try:
            if self.instant:
                return _pretend(run, watched)
            from seqrec.train import train

            return train(run, on_epoch=watched, **rest)
        finally:
            self.note(name, "unwound")

    def strike(self, fault: str, size: int) -> None:
        if fault == "oom":
            import torch

            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        if fault == "error":
            raise KeyError("a mistake in the training code")
        if fault == "full_disk" and self.first(fault, size):
            raise OSError(28, "No space left on device")
        if fault == "killed" or (fault == "killed_once" and self.first(fault, size)):
            os.kill(os.getpid(), signal.SIGKILL)

    def first(self, fault: str, size: int) -> bool:
        marker = self.directory / f"{fault}-{size}"
        known = marker.exists()
        marker.touch()
        return not known

    def epochs(self) -> float:
        """Begun by all trials so far and ever: a clock that no slow machine can upset."""
        trace = self.directory / "trace"
        return trace.read_text().count(" epoch ") if trace.exists() else 0

    def note(self, name: str, what: str) -> None:
        with (self.directory / "trace").open("a") as file:
            file.write(f"{time.time_ns()} {os.getpid()} {name} {what}\n")


def _kept(checkpoint: Path) -> int:
    """Epochs in a checkpoint, which training repeats without training them."""
    import torch

    if not checkpoint.exists():
        return 0
    return len(torch.load(checkpoint, map_location="cpu", weights_only=True)["history"])


def _pretend(run: Run, on_epoch: Any) -> RunReport:
    """No training: quality falls with the batch size."""
    value = 1.0 / run.train.batch_size
    for epoch in range(1, run.train.epochs + 1):
        on_epoch(EpochReport(epoch, {"valid/ndcg_at_10": value, "time/elapsed_s": float(epoch), "time/epoch_s": 1.0}))
    return RunReport(run.train.epochs, False, {"best/ndcg_at_10": value, "best/epoch": 1.0, "test/ndcg_at_10": value})


def set_clock(directory: Path) -> None:
    """Let this process's clock be as wrong as the file says, whenever it is asked."""
    seconds, nanoseconds = time.time, time.time_ns

    def wrong_by_s() -> int:
        try:
            return round(3600 * float((directory / CLOCK).read_text()))
        except (FileNotFoundError, ValueError):
            return 0

    time.time = lambda: seconds() + wrong_by_s()
    time.time_ns = lambda: nanoseconds() + wrong_by_s() * 10**9


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--cells", type=int, default=len(SIZES))
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--epoch-s", type=float, default=0.0)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--scheduler", default="fifo")
    parser.add_argument("--fault", action="append", default=[], metavar="SIZE=NAME")
    parser.add_argument("--instant", action="store_true")
    parser.add_argument("--address")
    parser.add_argument("--cpus", type=float, default=1.0)
    parser.add_argument("--num-cpus", type=int, default=2)
    parser.add_argument("--trials", type=int)
    parser.add_argument("--budget-epochs", type=int, help="wall time of the launch, on a clock that counts epochs")
    parser.add_argument("--node-patience-s", type=float, help="how long the launch waits for a node")
    parser.add_argument("--tracking-uri")
    parser.add_argument("--track", action="store_true")
    arguments = parser.parse_args()
    directory: Path = arguments.directory.absolute()
    directory.mkdir(parents=True, exist_ok=True)
    set_clock(directory)
    faults = {int(size): name for size, _, name in (text.partition("=") for text in arguments.fault)}
    assert set(faults.values()) <= set(FAULTS), faults
    path = make_data(directory)
    described = Data(path=str(path))
    statistics = data.statistics(described)
    planned = []
    seeds = range(SEED, SEED + arguments.seeds)
    for size, seed in itertools.product(SIZES[: arguments.cells], seeds):
        run = make_run(path, size, arguments.epochs, 1e30 if faults.get(size) == "nan" else 1e-3, seed)
        parameters: dict[str, Any] = {"loss.name": "ce", "train.batch_size": size, "train.seed": run.train.seed}
        planned.append(Cell(*cells.keys(run, statistics.digest), run, parameters, size * 2**20))
    spec = SweepSpec(
        source="drill.yaml",
        text="name: drill\n",
        name="drill",
        description="a drill",
        data=described,
        fixed={},
        blocks=(),
        seeds=tuple(seeds),
        aliases={},
        objectives=(("valid/ndcg_at_10", "max"), ("memory/peak_gib", "min")),
        scheduler=SchedulerSpec.model_validate({"name": arguments.scheduler}),
        resources=Resources(cpus_per_trial=arguments.cpus, gpus_per_trial=0.0),
        budget=Budget(trials=arguments.trials),
        overrides=(),
    )
    options = Options(
        storage=directory / "runs",
        address=arguments.address,
        num_cpus=None if arguments.address else arguments.num_cpus,
        tracking_uri=arguments.tracking_uri,
        no_tracking=not arguments.track and not arguments.tracking_uri,
    )
    trainer = Trainer(directory, faults, arguments.epoch_s, arguments.instant)
    plan = Plan(tuple(planned), 0, (), (), statistics, str(path))
    if arguments.budget_epochs:
        execute.remaining.budget = lambda *_: Wall(arguments.budget_epochs, clock=trainer.epochs)
    if arguments.node_patience_s:
        nodes.PATIENCE_S = arguments.node_patience_s
    try:
        return execute.run(spec, plan, options, trainer=trainer)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return signals.EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
