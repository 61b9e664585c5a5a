"""Asynchronous successive halving that keeps the front of memory and quality, as plain Python.

A cell's memory is known before its first epoch, so it competes only with cells that use no more. At rungs grace, grace
x rung_factor, grace x rung_factor^2, ... its deficit is worked out: the best value that such a rival recorded at the
same rung, over its own (1 on the current front). Above 1 + margin it is dominated and stops, unless it leads its kin
so far: is the best of its half-octave of memory, of its loss, or of its batch size. Else it pauses and leaves its
worker to another cell. When no new cell is left to start, paused cells are promoted, from their checkpoints, lowest
rung and smallest deficit first: those whose deficit, now against everybody, is within the margin and among the smallest
`keep` of their half-octave. A cell on the current front is always among them, and so is whoever leads its kin: large
batches learn slowly, and a sweep over losses is to end with a result of each. The margin shrinks from rung to rung.

Replicates are raced. A configuration starts with its first seed; each further one is for configurations that could be
on the front, or that are the best of their loss, by their mean over the seeds that they and their rival both have. At
rungs, first seeds are compared with first seeds, second with second.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from sweeps.cells import Cell
from sweeps.race import Race
from sweeps.verdicts import GO_ON, Verdict

NO_FURTHER_SEED = (
    "pareto_asha: its configuration's first seeds are neither near the front nor the best of its loss, "
    "or gave no result"
)


@dataclass(frozen=True)
class Settings:
    """See the module."""

    grace_epochs: int = 1
    rung_factor: float = 3.0
    keep: float = 0.9
    """Share of a half-octave that may pass a rung, in (0, 1]."""
    margin: float = 0.15
    """At the first rung."""
    last_margin: float = 0.03
    """At the end of training; between, the margin shrinks evenly with the rungs."""
    promote: bool = True
    """False: a cell within the margin goes on at once, nothing ever pauses, and `keep` has no effect."""
    race: bool = True
    """False: every seed of a configuration is a new cell from the start."""
    guard: bool = True
    """Whether who leads its kin passes though cells of less memory are better."""


@dataclass
class Rung:
    """What cells of one replicate recorded at one epoch."""

    memory: list[int] = field(default_factory=list)
    best: list[float] = field(default_factory=list)
    """The current front: memory and value, both strictly ascending."""
    strata: dict[int, dict[str, float]] = field(default_factory=dict)
    """Half-octave of memory -> cell_key -> value."""
    top: dict[tuple[str, int | str], float] = field(default_factory=dict)
    """The largest value of each kin."""

    def add(self, cell: Cell, value: float) -> None:
        self.strata.setdefault(stratum(cell), {})[cell.cell_key] = value
        for name in kin(cell):
            self.top[name] = max(value, self.top.get(name, -math.inf))
        memory = cell.predicted_bytes
        place = bisect.bisect_right(self.memory, memory)
        if place and self.best[place - 1] >= value:
            return
        start = end = bisect.bisect_left(self.memory, memory)
        while end < len(self.best) and self.best[end] <= value:
            end += 1
        self.memory[start:end], self.best[start:end] = [memory], [value]

    def deficit(self, cell: Cell, value: float) -> float:
        """How many times better the best rival of no more memory is; 1 if none is."""
        place = bisect.bisect_right(self.memory, cell.predicted_bytes)
        if not place or value >= self.best[place - 1]:
            return 1.0
        return self.best[place - 1] / value if value > 0 else math.inf

    def leads(self, cell: Cell, value: float) -> bool:
        """Whether nobody of one of the cell's kins has more."""
        return any(value >= self.top.get(name, -math.inf) for name in kin(cell))


def stratum(cell: Cell) -> int:
    """The cell's half-octave of memory."""
    return math.floor(2 * math.log2(max(1, cell.predicted_bytes)))


def kin(cell: Cell) -> tuple[tuple[str, int | str], ...]:
    """The groups within which a cell is also compared."""
    run = cell.run
    return ("memory", stratum(cell)), ("loss", run.loss.name), ("batch size", run.train.batch_size)


class ParetoAsha:
    """The rule over all cells of a plan, in the plan's order. Memory is `predicted_bytes`."""

    def __init__(self, settings: Settings, cells: Sequence[Cell]) -> None:
        self.settings = settings
        self.cells = {cell.cell_key: cell for cell in cells}
        self.replicates: dict[str, list[str]] = {}
        """Cells by configuration, first seed first."""
        for cell in cells:
            self.replicates.setdefault(cell.configuration_key, []).append(cell.cell_key)
        self.index = {key: i for keys in self.replicates.values() for i, key in enumerate(keys)}
        self.end = max((cell.run.train.epochs for cell in cells), default=1)
        """Longest training: the rung of results."""
        self.levels: list[int] = []
        rung, level = float(settings.grace_epochs), settings.grace_epochs
        while level < self.end:
            self.levels.append(level)
            while round(rung) <= level:
                rung *= settings.rung_factor
            level = round(rung)
        self.rungs: dict[tuple[int, int], Rung] = {}
        """By (epoch, replicate)."""
        self.values: dict[str, dict[int, float]] = {}
        """Cell -> epoch of a rung -> value."""
        self.paused: dict[str, int] = {}
        """Cell -> epoch of the rung where it waits."""
        self.seen: set[str] = set()
        """Cells that have started or ended."""
        self.over: dict[str, float | None] = {}
        """Ended cells and their results."""
        self.stale = False
        self._looked_up_to = math.inf
        """Rungs up to this epoch decide what `eligible` last said; all rungs and results, where it is infinite."""

    # ---------------------------------------------------------------------------------------------------- what happens

    def started(self, cell: Cell) -> None:
        self.seen.add(cell.cell_key)
        self.paused.pop(cell.cell_key, None)

    def record(self, cell: Cell, epoch: int, value: float | None) -> Verdict:
        key = cell.cell_key
        if value is None or key not in self.cells or key in self.over:
            return GO_ON
        self.seen.add(key)
        reached = max((level for level in self.levels if level <= epoch), default=0)
        if reached <= max(self.values.get(key, {}), default=0):
            return GO_ON
        value = -math.inf if math.isnan(value) else value
        rung = self._rung(cell, reached)
        deficit, leads = rung.deficit(cell, value), self._leads(rung, cell, value)
        self._add(cell, reached, value)
        if epoch >= cell.run.train.epochs:
            return GO_ON
        margin = self.margin(reached)
        if value == -math.inf or (deficit > 1 + margin and not leads):
            return Verdict(True, self._reason(reached, value, deficit, margin))
        if not self.settings.promote:
            return GO_ON
        self.paused[key] = reached
        return Verdict(pause=True, reason=f"pareto_asha: waits at epoch {reached}, {_short_by(deficit)} the front")

    def ended(self, cell: Cell, value: float | None) -> None:
        key = cell.cell_key
        if key not in self.cells or key in self.over:
            return
        self.seen.add(key)
        self.paused.pop(key, None)
        self.over[key] = value
        if value is None:
            return
        # A training that its patience ended is a rival at the rungs it did not reach, with its result.
        reached = max(self.values.get(key, {}), default=0)
        for level in (*(level for level in self.levels if level > reached), self.end):
            self._add(cell, level, value)

    def reopened(self, cell: Cell) -> None:
        self.over.pop(cell.cell_key, None)
        self.stale = True

    def margin(self, level: int) -> float:
        """By how much a rival may be better at a rung."""
        settings = self.settings
        done = (self.levels.index(level) if level in self.levels else len(self.levels)) / max(1, len(self.levels))
        return settings.margin + done * (settings.last_margin - settings.margin)

    def _rung(self, cell: Cell, level: int) -> Rung:
        return self.rungs.setdefault((level, self.index[cell.cell_key]), Rung())

    def _leads(self, rung: Rung, cell: Cell, value: float) -> bool:
        return self.settings.guard and rung.leads(cell, value)

    def _add(self, cell: Cell, level: int, value: float) -> None:
        self.values.setdefault(cell.cell_key, {})[level] = value
        self._rung(cell, level).add(cell, value)
        self.stale = self.stale or level <= self._looked_up_to

    def _reason(self, level: int, value: float, deficit: float, margin: float) -> str:
        return (
            f"pareto_asha: {value:.5g} at epoch {level} is {_short_by(deficit)} the front of no more memory; "
            f"margin {100 * margin:.3g} %"
        )

    # ----------------------------------------------------------------------------------------------------- what is next

    def eligible(self, waiting: Sequence[Cell]) -> list[Cell]:
        """New cells first; without any, the promoted ones of the lowest rung; without these, further replicates."""
        self.stale, self._looked_up_to = False, 0
        cut_off = [cell for cell in waiting if cell.cell_key in self.seen and cell.cell_key not in self.paused]
        new = [cell for cell in waiting if cell.cell_key not in self.seen and self._is_new(cell)]
        if cut_off or new:
            return [*cut_off, *new]
        return self._promoted(waiting) or self._raced(waiting)

    def _is_new(self, cell: Cell) -> bool:
        """Whether nothing must be known before the cell may start."""
        return self.index[cell.cell_key] == 0 or not self.settings.race

    def _promoted(self, waiting: Sequence[Cell]) -> list[Cell]:
        at: dict[int, list[tuple[int, Cell]]] = {}
        for place, cell in enumerate(waiting):
            if cell.cell_key in self.paused:
                at.setdefault(self.paused[cell.cell_key], []).append((place, cell))
        for level in self.levels:
            self._looked_up_to = level
            cuts: dict[tuple[int, int], float] = {}
            found: list[tuple[float, int, Cell]] = []
            for place, cell in at.get(level, []):
                key = cell.cell_key
                rung, value = self._rung(cell, level), self.values[key][level]
                group = (self.index[key], stratum(cell))
                if group not in cuts:
                    cuts[group] = self._cut(rung, group[1])
                deficit = rung.deficit(cell, value)
                if deficit <= min(cuts[group], 1 + self.margin(level)) or self._leads(rung, cell, value):
                    found.append((deficit, place, cell))
            if found:
                return [cell for _, _, cell in sorted(found, key=lambda each: each[:2])]
        self._looked_up_to = math.inf
        return []

    def _cut(self, rung: Rung, group: int) -> float:
        """The largest deficit among the `keep` smallest of a half-octave."""
        members = rung.strata[group]
        deficits = sorted(rung.deficit(self.cells[key], value) for key, value in members.items())
        return deficits[math.ceil(len(deficits) * self.settings.keep) - 1]

    def _raced(self, waiting: Sequence[Cell]) -> list[Cell]:
        found = []
        for cell in waiting:
            before = self.replicates[cell.configuration_key][: self.index[cell.cell_key]]
            if cell.cell_key not in self.seen and all(self.over.get(key) is not None for key in before):
                found.append(cell)
        if not found:
            return []
        results, of_loss = self._results(), {}
        race = Race(results)
        for name in {self._loss(cell.configuration_key) for cell in found}:
            of_loss[name] = Race({key: (0, had) for key, (_, had) in results.items() if self._loss(key) == name})
        return [
            cell
            for cell in found
            if race.could_be_on_the_front(cell, self.margin(self.end))
            or of_loss[self._loss(cell.configuration_key)].could_be_on_the_front(cell, 0.0)
        ]

    def _loss(self, configuration_key: str) -> str:
        return self.cells[self.replicates[configuration_key][0]].run.loss.name

    def _results(self) -> dict[str, tuple[int, dict[int, float]]]:
        """Configuration -> (memory, replicate -> result)."""
        results: dict[str, tuple[int, dict[int, float]]] = {}
        for key, value in self.over.items():
            if value is not None:
                name = self.cells[key].configuration_key
                memory = self.cells[self.replicates[name][0]].predicted_bytes
                results.setdefault(name, (memory, {}))[1][self.index[key]] = value
        return results

    def dismissed(self, waiting: Sequence[Cell], *, last: bool) -> list[tuple[Cell, str]]:
        found = []
        for cell in waiting:
            level = self.paused.get(cell.cell_key)
            if level is None:
                if last:
                    found.append((cell, NO_FURTHER_SEED))
                continue
            rung, value, margin = self._rung(cell, level), self.values[cell.cell_key][level], self.margin(level)
            deficit = rung.deficit(cell, value)
            if last or (deficit > 1 + margin and not self._leads(rung, cell, value)):
                found.append((cell, self._reason(level, value, deficit, margin)))
        return found


def _short_by(deficit: float) -> str:
    return f"{100 * (1 - 1 / deficit):.3g} % short of"
