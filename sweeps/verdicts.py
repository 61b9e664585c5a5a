"""What a stopping rule says, and what it must be able to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from sweeps.cells import Cell


@dataclass(frozen=True)
class Verdict:
    """What a rule says after an epoch; neither: go on."""

    stop: bool = False
    reason: str = ""
    pause: bool = False
    """The cell gives its place up, keeps its checkpoint and may be promoted later."""


GO_ON = Verdict()


class Rule(Protocol):
    """A stopping rule; its state depends on what it was told and in which order, on nothing else. Whoever feeds it the
    starts, epochs and ends of a ledger in their order has the rule that lived through them."""

    @property
    def levels(self) -> Sequence[int]:
        """Rungs: a cell may be stopped or paused at its first validation from each of these epochs on, nowhere else."""
        ...

    @property
    def stale(self) -> bool:
        """Whether something happened since `eligible` was last asked that may have made more cells eligible, or others
        better, than what it said. The start of a cell is no such thing, nor is a cell that joins those that wait."""
        ...

    def started(self, cell: Cell) -> None:
        """An attempt of the cell begins."""
        ...

    def record(self, cell: Cell, epoch: int, value: float | None) -> Verdict:
        """Take one epoch of a cell and judge the cell.

        value: the selection metric; None if the epoch had no validation. An epoch seen before changes nothing, and is
        never a reason to stop.
        """
        ...

    def ended(self, cell: Cell, value: float | None) -> None:
        """The cell is over. value: its result; None if it has none (stopped, failed)."""
        ...

    def reopened(self, cell: Cell) -> None:
        """A cell that failed is not over after all: it waits again."""
        ...

    def eligible(self, waiting: Sequence[Cell]) -> list[Cell]:
        """Which of the waiting cells (neither running nor over, in the order of starting) may run now, best first."""
        ...

    def dismissed(self, waiting: Sequence[Cell], *, last: bool) -> list[tuple[Cell, str]]:
        """Waiting cells that can never run again, with the reason. last: nothing runs and nothing is eligible."""
        ...


class Stopping:
    """A rule that only stops: what waits may run."""

    @property
    def levels(self) -> Sequence[int]:
        return ()

    @property
    def stale(self) -> bool:
        return False

    def started(self, cell: Cell) -> None:
        pass

    def ended(self, cell: Cell, value: float | None) -> None:
        pass

    def reopened(self, cell: Cell) -> None:
        pass

    def eligible(self, waiting: Sequence[Cell]) -> list[Cell]:
        return list(waiting)

    def dismissed(self, waiting: Sequence[Cell], *, last: bool) -> list[tuple[Cell, str]]:
        return []
