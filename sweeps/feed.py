"""Which cell starts next, whenever a worker is free: plain Python, asked by Ray's side (`sweeps.scheduler`) or by hand.

A cell waits, is out (handed over, until its trial is over), or has ended. `next` asks the stopping rule for the best of
those that wait, so that a cell paused at a rung is promoted while others still train. Nothing is handed over ahead of a
free place: a cell that has been handed over is a decision, and early ones are made with less known.

What is asked of the rule is kept until the rule says that it may have changed: a sweep of thousands of cells is looked
through a few times a rung, not once a trial.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, MutableMapping
from dataclasses import dataclass
from itertools import islice

from sweeps.cells import Cell
from sweeps.errors import LedgerError
from sweeps.launch import Launch
from sweeps.outcomes import Outcome

TRIES = 3
"""How often a launch hands a cell over, at most, that is given up without a word."""
WINDOW = 16
"""How many of the best cells count as equally good when one of them suits the free worker; twice the cells that are
out, where that is more."""
STUCK_S = 30.0
"""After how long without a start a cell is taken to wait for room that smaller ones keep from it."""
ENDINGS = 20
"""Dismissed cells whose ends are written at a time: each waits for the disk, and meanwhile no trial is heard."""


@dataclass(frozen=True)
class Out:
    """A cell that was handed over."""

    share: float
    """Part of a GPU; 0 on CPU."""
    since: float


class Feed:
    """Hands the cells of one launch over. slots: how many trials of a share the whole cluster holds, as it is now.
    shares: part of a GPU by cell_key; a cell that must go on alone is given a whole one here. max_concurrent: cells
    that may be out at a time. ahead: cells handed over beyond the free places."""

    def __init__(
        self,
        launch: Launch,
        cells: Iterable[Cell],
        *,
        slots: Callable[[float], int],
        shares: MutableMapping[str, float | None],
        max_concurrent: int | None = None,
        ahead: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._launch = launch
        self._slots = slots
        self._shares = shares
        self._max_concurrent = max_concurrent
        self._ahead = ahead
        self._clock = clock
        self.waiting = {cell.cell_key: cell for cell in cells if launch.outcome(cell.cell_key) is None}
        """In the order of starting; who comes back stands at the end."""
        self.out: dict[str, Out] = {}
        self.finished = False
        """Nothing will be handed over any more."""
        self._ready: deque[Cell] = deque()
        """Eligible when the rule was last asked, best first."""
        self._asked = False
        """What the rule said last is all it has to say: nobody came back since, and what it named is not used up."""
        self._doomed: deque[tuple[Cell, str]] = deque()
        """Dismissed, their ends not yet written."""
        self._tries: Counter[str] = Counter()
        self._freed: float | None = None
        """Share of the worker that became free last."""

    def share(self, cell: Cell) -> float:
        """Part of a GPU that the cell asks for now."""
        return self._shares.get(cell.cell_key) or 0.0

    def next(self) -> Cell | None:
        """The best cell that may start now, from now on out. None: nothing may at this moment, or, once `finished`,
        ever; only while others are out can it be the former."""
        try:
            cell = None if self.finished or self._launch.stopping else self._next()
            self.finished = self.finished or bool(self._launch.stopping) or (cell is None and not self.out)
        except LedgerError as error:
            self._launch.fail(error)
            self.finished, cell = True, None
        return cell

    def _next(self) -> Cell | None:
        self._write_ends(ENDINGS)
        if self._max_concurrent is not None and len(self.out) >= self._max_concurrent:
            return None
        cell = self._pick()
        if cell is None and not self.out:
            self._asked = False  # before anybody is given up, the rule has the last word
            cell = self._pick()
        if cell:
            del self.waiting[cell.cell_key]
            self.out[cell.cell_key] = Out(self.share(cell), self._clock())
            self._freed = None
        elif not self.out:
            self._close()
        return cell

    def over(self, cell_key: str) -> None:
        """The trial of a cell that is out is over: it ended, was paused, must go on alone, or was given up."""
        launch, cell = self._launch, self._launch.cells[cell_key]
        self._freed = self.out.pop(cell_key).share
        if launch.outcome(cell_key) is not None:
            return
        if cell_key not in launch.paused:
            known = launch.ledger.state.cells.get(cell_key)
            if known and known.alone and self._freed < 1.0:
                self._shares[cell_key] = 1.0
            elif not launch.stopping:
                self._tries[cell_key] += 1
                if self._tries[cell_key] == TRIES:
                    reason = f"Ray gave the trial up {TRIES} times; see ray.log"
                    launch.lost(cell_key, reason, outcome=Outcome.ERROR)
                    return
            self._ready.clear()  # it may come before all others
        self.waiting[cell_key] = cell
        self._asked = False

    # ------------------------------------------------------------------------------------------------------ which one

    def _pick(self) -> Cell | None:
        """The first that fits, of the free worker's own share if there is one among the best: a worker serves only
        equal requests, and another share costs a new process."""
        self._ask()
        if self._is_held_back():
            return None
        place, used = None, sum(1 / max(1, self._slots(out.share)) for out in self.out.values())
        for i, cell in enumerate(islice(self._ready, max(WINDOW, 2 * len(self.out)))):
            share = self.share(cell)
            if (place is None or share == self._freed) and self._fits(share, used):
                place = i
                if self._freed is None or share == self._freed:
                    break
        if place is None:
            return None
        cell = self._ready[place]
        del self._ready[place]
        self._asked = self._asked and bool(self._ready)
        return cell

    def _ask(self) -> None:
        """Ask the rule again, if what it said last may no longer hold or is used up."""
        if not self.waiting or ((self._ready or self._asked) and not self._launch.rule.stale):
            return
        for cell, reason in self._launch.doomed(self.waiting.values()):
            del self.waiting[cell.cell_key]
            self._doomed.append((cell, reason))
        self._ready = deque(self._launch.eligible(self.waiting.values()))
        self._asked = True

    def _fits(self, share: float, used: float) -> bool:
        """Whether there is room for one more; for a first one always, so that somebody waits where all is lost."""
        slots = self._slots(share)
        if not self.out or (slots and used + 1 / slots <= 1 + 1e-9):
            return True
        return self._ahead > 0 and sum(not self._runs(key) for key in self.out) < self._ahead

    def _runs(self, cell_key: str) -> bool:
        """Whether the trial of a cell that is out has begun."""
        state = self._launch.ledger.state.cells.get(cell_key)
        return state is not None and state.running

    def _is_held_back(self) -> bool:
        """Whether nothing must start because a larger request than those that run has waited too long: room for it is
        there, but in pieces, and every small trial that takes one keeps it so."""
        if len({out.share for out in self.out.values()}) < 2:
            return False
        running = [out.share for key, out in self.out.items() if self._runs(key)]
        now = self._clock()
        return bool(running) and any(
            now - out.since > STUCK_S and out.share > min(running) and not self._runs(key)
            for key, out in self.out.items()
        )

    # ----------------------------------------------------------------------------------------------- who never will

    def _write_ends(self, most: int) -> None:
        """The ends of dismissed cells, some at a time."""
        while self._doomed and most:
            cell, reason = self._doomed.popleft()
            self._launch.end(cell.cell_key, Outcome.STOPPED, reason)
            most -= 1

    def _close(self) -> None:
        """Nothing is out and nothing may start: what waits is dismissed, unless cells that only a limit keeps out of
        this launch could still change what becomes of it."""
        self._write_ends(len(self._doomed))
        left = self._launch.remaining()
        if not self._launch.eligible(left):
            self._launch.dismiss(left, last=True)
