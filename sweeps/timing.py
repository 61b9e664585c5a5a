"""How the seconds of a cell were taken: alone, or beside others that slow it down. Follows the ledger's events. No
torch, no ray.

On a GPU an attempt that was given a part of one shares it, whether another trial came or not; one with a whole GPU (or
several) is alone. On a CPU trials of one machine share its caches, its memory's bandwidth and its clock, whatever cores
they have: an attempt is alone there if no other trial of the sweep ran on its node while it did. What else runs on a
machine no ledger knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sweeps.outcomes import Outcome

ALONE = "alone"
SHARED = "shared"
UNKNOWN = "unknown"
"""Trained on a GPU, and the ledger does not say on how much of it."""
AGAIN = "alone, again"
"""The times are those of a `timing` event: of a few epochs after the sweep."""
NONE = ""
"""No epoch, no time."""

BEST_FIRST = (AGAIN, ALONE, UNKNOWN, SHARED)
"""How much a comparison may rest on a time."""

MARKS = {
    SHARED: ("*", "taken while the cell shared its GPU, or on a CPU its machine, with others"),
    UNKNOWN: ("?", "the ledger does not say whether the cell had its GPU to itself"),
    AGAIN: ("'", "taken again after the sweep, alone"),
}
"""Beside a number of seconds, and what it means."""

EPOCH_S = "time/epoch_s"
STEP_MS = "time/step_ms"
MEASURED = "memory/peak_gib"
"""Measured on a GPU and nowhere else."""


@dataclass
class _Attempt:
    share: float | None
    """Part of a GPU; 0 on CPU; None in ledgers that did not say."""
    from_epoch: int
    beside: bool = False
    """Another trial ran on its node."""


@dataclass
class _Cell:
    attempts: dict[int, _Attempt] = field(default_factory=dict)
    chain: list[_Attempt] = field(default_factory=list)
    """Those whose epochs the last attempt goes on from, and that attempt."""
    reporting: set[int] = field(default_factory=set)
    """Attempts with an epoch on record."""
    epochs: int = 0
    done: bool = False
    measured: bool = False
    source: Mapping[str, Any] | None = None
    again: bool = False


class Timings:
    """Of every cell of a ledger, whose events are added in their order."""

    def __init__(self) -> None:
        self._cells: dict[str, _Cell] = {}
        self._running: dict[str, dict[str, _Attempt]] = {}
        """node -> cell_key -> attempt."""

    def add(self, event: Mapping[str, Any]) -> None:
        kind = event["type"]
        if kind in ("plan", "close"):
            self._running.clear()
        key = event.get("cell_key")
        if key is None:
            return
        cell = self._cells.setdefault(key, _Cell())
        match kind:
            case "start":
                self._start(cell, event)
            case "reuse":
                cell.source = event["source"]
            case "epoch":
                cell.reporting.add(event["attempt"])
                cell.epochs = max(cell.epochs, event["epoch"])
                cell.measured |= MEASURED in event["metrics"]
            case "end":
                for running in self._running.values():
                    running.pop(key, None)
                cell.done = event["outcome"] == Outcome.DONE.value
                cell.epochs = max(cell.epochs, event["epochs"])
                cell.measured |= MEASURED in event["metrics"]
            case "timing":
                cell.again = True

    def _start(self, cell: _Cell, event: Mapping[str, Any]) -> None:
        attempt = _Attempt(event.get("gpu_share"), event.get("from_epoch", 0))
        running = self._running.setdefault(event.get("node", ""), {})
        if running:
            attempt.beside = True
            for other in running.values():
                other.beside = True
        running[event["cell_key"]] = attempt
        cell.source = None
        cell.attempts[event["attempt"]] = attempt
        while cell.chain and cell.chain[-1].from_epoch >= attempt.from_epoch:
            cell.chain.pop()
        cell.chain.append(attempt)

    def of(self, cell_key: str) -> str:
        """How the times of a cell were taken; `NONE` before its first epoch."""
        cell = self._cells.get(cell_key)
        return AGAIN if cell and cell.again else self.of_training(cell_key)

    def of_training(self, cell_key: str) -> str:
        """The same of the times that its training took, which a second timing replaces only in part."""
        cell = self._cells.get(cell_key, _Cell())
        if not cell.epochs:
            return NONE
        if cell.source is not None:
            return str(cell.source.get("timing", UNKNOWN))
        # A training that came to its end sums up what its checkpoint held and what followed; of any other the ledger
        # sums up the epochs on record.
        if cell.done:
            timed = [attempt for attempt in cell.chain if attempt.from_epoch < cell.epochs] or cell.chain
        else:
            timed = [cell.attempts[number] for number in sorted(cell.reporting) if number in cell.attempts]
        found = {_kind(attempt, cell.measured) for attempt in timed} or {UNKNOWN}
        return next(kind for kind in reversed(BEST_FIRST) if kind in found)


def _kind(attempt: _Attempt, measured: bool) -> str:
    if attempt.share is None and measured:
        return UNKNOWN
    if attempt.share:
        return SHARED if attempt.share < 1 else ALONE
    return SHARED if attempt.beside else ALONE


def seconds(epoch_s: float | None, kind: str) -> str:
    """Seconds with the mark of how they were taken; `-` where nothing was timed."""
    return "-" if epoch_s is None else f"{epoch_s:.3g}{MARKS.get(kind, ('', ''))[0]}"


def legend(kinds: Iterable[str]) -> str:
    """What the marks of these kinds mean; empty if none has one."""
    found = set(kinds)
    return "; ".join(f"{mark} {meaning}" for kind, (mark, meaning) in MARKS.items() if kind in found)
