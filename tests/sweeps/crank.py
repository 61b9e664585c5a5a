"""Ray Tune in the hands of a test: it asks a feed for cells, starts them, and hears them in any order."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from sweeps.cells import Cell
from sweeps.feed import Feed
from sweeps.launch import Launch

Message = dict[str, Any]
Script = Callable[[Cell, float], Iterator[Message | None]]
"""(cell, share) -> what its trial says; None: its process is lost and Tune gives it up without a word."""

NDCG = "valid/ndcg_at_10"


def started(from_epoch: int = 0, share: float = 0.0) -> Message:
    return {"kind": "start", "node": "n", "pid": 1, "from_epoch": from_epoch, "gpu_share": share}


def epoch(number: int, value: float) -> Message:
    return {"kind": "epoch", "epoch": number, "metrics": {NDCG: value}}


def ended(outcome: str, epochs: int, reason: str = "", **metrics: float) -> Message:
    return {"kind": "end", "outcome": outcome, "reason": reason, "epochs": epochs, "metrics": metrics}


class Killed(Exception):
    """The driver is gone, as after kill -9."""


@dataclass
class Crank:
    """Asks before every event as often as it gets cells, as Tune does."""

    launch: Launch
    feed: Feed
    script: Script
    draw: random.Random
    steps: int = 10**6
    """Messages until the driver is killed."""
    running: list[tuple[Cell, Iterator[Message | None]]] = field(default_factory=list)
    order: list[Cell] = field(default_factory=list)
    """Cells as they were handed over."""

    def run(self) -> None:
        while True:
            self.ask()
            if not self.running:
                assert self.feed.finished, "a deadlock: nothing runs, and nothing is handed over"
                return
            if self.steps == 0:
                raise Killed
            self.steps -= 1
            self.hear(self.running[self.draw.randrange(len(self.running))][0])
            if self.launch.should_stop():
                return

    def ask(self) -> None:
        while cell := self.feed.next():
            assert cell.cell_key not in {one.cell_key for one, _ in self.running}, "twice at a time"
            assert self.launch.outcome(cell.cell_key) is None
            self.order.append(cell)
            self.running.append((cell, self.script(cell, self.feed.share(cell))))

    def hear(self, cell: Cell) -> None:
        """The next message of a cell's trial."""
        place = next(i for i, (one, _) in enumerate(self.running) if one is cell)
        said = next(self.running[place][1])
        if said is None or self.launch.message(cell.cell_key, said):
            self.running.pop(place)
            self.feed.over(cell.cell_key)
