"""Where a sweep is, for people: a picture of the ledger's state at one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sweeps.cells import Cell
from sweeps.ledger import State
from sweeps.outcomes import Outcome


@dataclass(frozen=True)
class Snapshot:
    """Where the sweep is, for people."""

    total: int
    counts: dict[Outcome, int]
    """Cells that ended, by outcome."""
    running: tuple[tuple[str, int, int], ...]
    """(label, epochs done, epochs at most)."""
    best: tuple[str, float] | None
    """(label, selection metric)."""
    elapsed_s: float
    eta_s: float | None
    """Of what this launch may still run; None before the first cell ended."""

    @property
    def ended(self) -> int:
        return sum(self.counts.values())


def of(cells: Mapping[str, Cell], state: State, elapsed_s: float, ended: int, allowed: int) -> Snapshot:
    """cells: the planned ones by key. ended, allowed: cells of this launch. The state may grow while it is read."""
    counts: dict[Outcome, int] = {}
    running: list[tuple[str, int, int]] = []
    best: tuple[str, float] | None = None
    for key, known in list(state.cells.items()):
        cell = cells.get(key)
        if cell is None:
            continue
        if known.outcome:
            counts[known.outcome] = counts.get(known.outcome, 0) + 1
        elif known.running:
            running.append((known.label, known.epochs, cell.run.train.epochs))
        if known.best is not None and (best is None or known.best > best[1]):
            best = (known.label, known.best)
    eta_s = elapsed_s / ended * max(0, allowed - ended) if ended and allowed else None
    return Snapshot(len(cells), counts, tuple(running), best, elapsed_s, eta_s)
