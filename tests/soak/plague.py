"""Faults at random, from a seed: each strikes a running sweep, and what has to be mended after it is mended."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import drive
import hosts
import stores
from aftermath import ClusterSweep

WEIGHTS = {
    "worker process killed": 16,
    "worker process stopped for a while": 6,
    "node killed": 4,
    "cable pulled for a moment": 5,
    "cable pulled until the node is given up": 3,
    "clock set wrong": 5,
    "driver killed with -9": 3,
    "driver interrupted": 1,
    "driver interrupted twice": 1,
    "driver terminated": 1,
    "MLflow and its database killed": 1,
    "disk full": 1,
}
"""Drivers are hit seldom: one takes as long to come back as a hundred cells."""
LEAST_ENDS = 10
"""Cells that a launch ends before its driver is hit, so that a soak gets on wherever it runs."""
EVERY_S = (2.0, 8.0)
NODE_AWAY_S = 6.0
"""How long a dead node takes to be started again, beside Ray's own start."""


class Plague:
    """Strikes a sweep. seed: of the kinds and times of faults; what they meet depends on the machine's timing.

    filler: the file that fills the disk of ledger and checkpoints.
    """

    def __init__(self, sweep: ClusterSweep, filler: Path, seed: int) -> None:
        self._sweep, self._filler = sweep, filler
        self._draw = random.Random(seed)
        self._repairs: list[tuple[float, Callable[[], None]]] = []
        self._down: dict[hosts.Host, float] = {}
        self._next = 0.0
        self.counts: Counter[str] = Counter()

    def tick(self) -> None:
        """Mend what is due, and strike if it is time. To be called twice a second while the sweep runs."""
        self.mend()
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + self._draw.uniform(*EVERY_S)
        kind = self._draw.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        if self._strike(kind):
            self.counts[kind] += 1

    def mend(self, *, all_now: bool = False) -> None:
        """Do the repairs that are due, and start nodes that have been down for a while, as a supervisor would."""
        now = time.monotonic()
        due = [repair for repair in self._repairs if all_now or repair[0] <= now]
        self._repairs = [repair for repair in self._repairs if repair not in due]
        for _, repair in due:
            repair()
        cluster = self._sweep.cluster
        for worker in cluster.workers:
            if cluster.is_up(worker):
                self._down.pop(worker, None)
            elif now - self._down.setdefault(worker, now) >= NODE_AWAY_S or all_now:
                worker.die()
                cluster.join(worker)

    def _later(self, seconds: float, repair: Callable[[], None]) -> None:
        self._repairs.append((time.monotonic() + seconds, repair))

    def _strike(self, kind: str) -> bool:
        """False: there was nothing to hit."""
        match kind:
            case "worker process killed" | "worker process stopped for a while":
                trials = [pid for worker in self._sweep.cluster.workers for pid in worker.trials()]
                if not trials:
                    return False
                pid = [self._draw.choice(trials)]
                hosts.send(pid, signal.SIGKILL if kind.endswith("killed") else signal.SIGSTOP)
                if not kind.endswith("killed"):
                    self._later(self._draw.uniform(2, 12), lambda: hosts.send(pid, signal.SIGCONT))
            case "node killed":
                self._draw.choice(self._sweep.cluster.workers).die()
            case "cable pulled for a moment" | "cable pulled until the node is given up":
                worker = self._draw.choice(self._sweep.cluster.workers)
                worker.cable(plugged=False)
                seconds = self._draw.uniform(1, 3) if kind.endswith("moment") else self._draw.uniform(12, 20)
                self._later(seconds, lambda: worker.cable(plugged=True))
            case "clock set wrong":
                clock = self._sweep.directory / drive.CLOCK
                clock.write_text(str(self._draw.choice((-30, -3, 0, 0, 2, 48))))
            case "MLflow and its database killed":
                self._sweep.store.kill()
                self._later(self._draw.uniform(5, 15), self._sweep.store.start)
            case "disk full":
                stores.fill(self._filler)
                self._later(4, lambda: self._filler.unlink(missing_ok=True))
            case _:
                return self._strike_driver(kind)
        return True

    def _strike_driver(self, kind: str) -> bool:
        process = self._sweep.process
        if process is None or process.poll() is not None or self._sweep.ended_here() < LEAST_ENDS:
            return False
        number = {"driver killed with -9": signal.SIGKILL, "driver terminated": signal.SIGTERM}.get(kind, signal.SIGINT)
        process.send_signal(number)
        if kind.endswith("twice"):
            time.sleep(0.3)
            process.send_signal(number)
        return True
