"""What the machinery itself costs: a whole search space of cells that train nothing, through planning, Ray Tune,
ledger, report and MLflow. `python benchmarks/machinery.py` prints the seconds by part.

Every cell reports a few epochs with the metrics of a real one. The parts overlap (MLflow is told while cells run), so
they need not add up to the total.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from seqrec import data
from seqrec.config import CUTOFFS, Run
from seqrec.reports import EpochReport, Metrics, RunReport
from sweeps import environment, execute, space, spec, tuning
from sweeps.launch import Launch
from sweeps.ledger import FILE_NAME, Ledger, read
from sweeps.options import Options
from sweeps.tracking import Tracker

GOAL_S = 480.0
RANKING = ("ndcg", "hit_rate", "recall", "precision", "mrr", "map", "coverage", "surprisal")


@dataclass(frozen=True)
class NoTraining:
    """As many epochs as told, at once."""

    epochs: int

    def __call__(self, run: Run, *, on_epoch: Callable[[EpochReport], None], **_: Any) -> RunReport:
        for epoch in range(1, self.epochs + 1):
            quality = (hash((run.train.batch_size, run.train.seed)) % 1000 + epoch) / 10_000
            metrics = {
                "train/loss": 9.0 / epoch,
                "time/epoch_s": 0.01,
                "time/valid_s": 0.01,
                "time/elapsed_s": 0.02 * epoch,
            }
            on_epoch(EpochReport(epoch, metrics | ranking("valid", quality), epoch == self.epochs))
        best: Metrics = {"best/epoch": float(self.epochs), "best/elapsed_s": 0.1, "time/epoch_s": 0.01}
        return RunReport(self.epochs, False, best | ranking("best", quality) | ranking("test", quality))


def ranking(prefix: str, quality: float) -> Metrics:
    return {f"{prefix}/{name}_at_{k}": quality * k**0.5 for name in RANKING for k in CUTOFFS}


@contextlib.contextmanager
def clocked(owner: type, *names: str) -> Iterator[dict[str, float]]:
    """Wall seconds spent in some methods while the block runs, by name."""
    spent = dict.fromkeys(names, 0.0)
    originals = {name: getattr(owner, name) for name in names}

    def wrap(name: str) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            since = time.perf_counter()
            try:
                return originals[name](*arguments, **options)
            finally:
                spent[name] += time.perf_counter() - since

        return timed

    for name in names:
        setattr(owner, name, wrap(name))
    try:
        yield spent
    finally:
        for name, original in originals.items():
            setattr(owner, name, original)


@dataclass
class Used:
    """CPU seconds of this process, which a busy machine does not stretch as it does a clock's."""

    total: float = 0.0
    """Of the Tune experiment."""
    starts: list[float] = field(default_factory=list)
    """At every start of a trial."""

    def tenth(self, which: slice) -> float:
        """Milliseconds a trial over a tenth of them."""
        some = self.starts[which]
        return 1000 * (some[-1] - some[0]) / (len(some) - 1)


@contextlib.contextmanager
def used_by_tune() -> Iterator[Used]:
    """What the driver uses while the block runs one sweep."""
    fit, message, used = tuning.fit, Launch.message, Used()

    def timed(*arguments: Any, **options: Any) -> None:
        since = time.process_time()
        try:
            fit(*arguments, **options)
        finally:
            used.total += time.process_time() - since

    def noted(launch: Launch, cell_key: str, said: Any) -> bool:
        if said["kind"] == "start":
            used.starts.append(time.process_time())
        return message(launch, cell_key, said)

    tuning.fit, Launch.message = timed, noted
    try:
        yield used
    finally:
        tuning.fit, Launch.message = fit, message


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", type=Path, default=Path(__file__).parents[1] / "search_spaces" / "rece.yaml")
    parser.add_argument("--epochs", type=int, default=3, help="reports a cell")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="as in sweeps.run")
    parser.add_argument("--limit-trials", type=int)
    parser.add_argument("--no-tracking", action="store_true")
    parser.add_argument("--out", type=Path, help="append the lines to this file too")
    arguments = parser.parse_args()
    execute.TRACKING_WAIT_S = 3600.0
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        since = time.perf_counter()
        sweep = spec.load(arguments.space, arguments.set)
        plan = space.plan(sweep, data.statistics(sweep.data))
        planned = time.perf_counter()
        options = Options(storage=Path(folder), no_tracking=arguments.no_tracking, limit_trials=arguments.limit_trials)
        with (
            clocked(Ledger, "append", "flush") as ledger,
            clocked(Launch, "message") as launch,
            clocked(Tracker, "close") as tracker,
            used_by_tune() as driver,
        ):
            code = execute.run(sweep, plan, options, trainer=NoTraining(arguments.epochs))
        total = time.perf_counter()
        events = [event for event, _ in read(Path(folder) / sweep.name / FILE_NAME)]
        size = (Path(folder) / sweep.name / FILE_NAME).stat().st_size
    times = {
        kind: [e["time_ms"] / 1000 for e in events if e["type"] == kind] for kind in ("plan", "start", "end", "close")
    }
    trials, ended = len(times["start"]), sum(e["type"] == "end" and e["outcome"] != "interrupted" for e in events)
    first, last = driver.tenth(slice(trials // 10)), driver.tenth(slice(-(trials // 10), None))
    running = times["end"][-1] - times["start"][0]
    lines += [
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, commit {environment.describe().get('git_commit', '?')[:12]}, "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        f"{sweep.scheduler.name}: {ended} cells, {trials} trials, {arguments.epochs} reports each at most, "
        f"{len(events)} events, ledger {size / 2**20:.1f} MiB",
        f"  plan                         {planned - since:8.1f} s",
        f"  Ray and its first worker     {times['start'][0] - times['plan'][0]:8.1f} s after the plan event",
        f"  cells, first start to last end {running:6.1f} s   {trials / running:.1f} trials/s",
        f"    the driver's CPU           {driver.total:8.1f} s   {1000 * driver.total / trials:.1f} ms a trial",
        f"      of all its threads; {first:.1f} and {last:.1f} ms in the first and last tenth of the trials",
        f"    of which ledger            {ledger['append'] + ledger['flush']:8.1f} s",
        f"    of which the launch's other bookkeeping {launch['message'] - ledger['append']:6.1f} s",
        f"  waiting for MLflow at the end {tracker['close']:7.1f} s",
        f"  total                        {total - since:8.1f} s   goal {GOAL_S:.0f} s on two quiet cores",
    ]
    print("\n".join(lines))
    if arguments.out:
        with arguments.out.open("a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
