"""A sweep replayed in simulated time: known curves through a stopping rule, any number of workers, asynchronously.

What a rule is worth: epochs spent, wall time, and how much of the front of memory and quality it leaves. A front cell
is a configuration that no other beats (no more memory, no less quality, better in one); it is kept if at least one of
its cells ran to its end. The hypervolume is that of quality against log memory, from the largest memory x 1.01. Both
are measured with what the whole source says of a configuration, so that no rule gains by luck of the seed. Beside them,
for who compares losses: how good the best kept configuration of each loss is.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from sweeps.cells import Cell
from sweeps.verdicts import Rule

LAST_RUNG = 3
"""Rungs of the published cells are 1/3^3, 1/3^2 and 1/3 of their epochs."""


@dataclass(frozen=True)
class Recorded:
    """A cell and what became of it when it ran to its end."""

    cell: Cell
    result: float
    memory_gib: float
    seconds: tuple[float, ...]
    """Of every epoch, validation included; as many as it trained."""
    values: tuple[float | None, ...] = ()
    """Validation by epoch; empty where only the result is known, and rung scores are drawn."""

    @property
    def epochs(self) -> int:
        return len(self.seconds)


@dataclass(frozen=True)
class Spent:
    """What one replay cost and kept; shares of the full run."""

    epochs: float
    wall_s: float
    front: float
    hypervolume: float
    losses: float
    """Mean over the losses: quality of the best configuration that was kept over that of the best there is; a loss that
    lost all of them counts 0."""


Point = tuple[float, float]
"""Memory in GiB, quality."""


def scores(recorded: Recorded, noise: float, draw: random.Random) -> Callable[[int], float | None]:
    """Epoch -> what validation says. Where no curve is known: result x exp(N(0, noise x (1 - k/3))), drawn once for
    each third of the log-epochs, k = 0, 1, 2 (before 1/9, before 1/3, before the end), and the result at the end."""
    if recorded.values:
        return lambda epoch: recorded.values[epoch - 1]
    drawn = [recorded.result * math.exp(noise * (1 - k / LAST_RUNG) * draw.gauss(0.0, 1.0)) for k in range(LAST_RUNG)]

    def score(epoch: int) -> float:
        if epoch >= recorded.epochs:
            return recorded.result
        return drawn[sum(epoch * 3**power >= recorded.epochs for power in (1, 2))]

    return score


def run(
    source: Sequence[Recorded], rule: Rule, *, workers: int, noise: float, seed: int, rounds: bool = False
) -> tuple[set[str], int, float]:
    """(cells that ran to their end, epochs trained, seconds). Cells start in a shuffle drawn from the seed. A pause and
    a promotion cost nothing, as a checkpoint is written after every epoch anyway.

    Whenever a worker is free it takes the best cell that may run, as `sweeps.feed` has it. rounds: for comparison, what
    is eligible is handed over all at once, and the next time when nothing runs."""
    draw = random.Random(seed)
    by_key = {each.cell.cell_key: each for each in source}
    waiting = [each.cell for each in source]
    draw.shuffle(waiting)
    validation = {key: scores(each, noise, draw) for key, each in by_key.items()}
    epochs = dict.fromkeys(by_key, 0)
    ready: list[Cell] = []
    running: list[tuple[float, int, Cell]] = []
    order = itertools.count()
    finished: set[str] = set()
    now = 0.0

    def train(cell: Cell) -> None:
        seconds = by_key[cell.cell_key].seconds[epochs[cell.cell_key]]
        heapq.heappush(running, (now + seconds, next(order), cell))

    while True:
        if rounds and not running and not ready:
            ready = rule.eligible(waiting)
        while len(running) < workers:
            if not rounds:
                ready = rule.eligible(waiting)
            if not ready:
                break
            cell = ready.pop(0)
            waiting.remove(cell)
            rule.started(cell)
            train(cell)
        if not running:
            return finished, sum(epochs.values()), now
        now, _, cell = heapq.heappop(running)
        key = cell.cell_key
        epochs[key] += 1
        verdict = rule.record(cell, epochs[key], validation[key](epochs[key]))
        if verdict.stop:
            rule.ended(cell, None)
        elif verdict.pause:
            waiting.append(cell)
        elif epochs[key] == by_key[key].epochs:
            finished.add(key)
            rule.ended(cell, by_key[key].result)
        else:
            train(cell)


def judge(source: Sequence[Recorded], finished: Iterable[str], epochs: int, wall_s: float) -> Spent:
    """What a replay kept of the whole source."""
    groups: dict[str, list[Recorded]] = {}
    for each in source:
        groups.setdefault(each.cell.configuration_key, []).append(each)
    points = {
        key: (max(each.memory_gib for each in group), fmean(each.result for each in group))
        for key, group in groups.items()
    }
    ended = set(finished)
    kept = {key for key, group in groups.items() if any(each.cell.cell_key in ended for each in group)}
    on_front = front(points)
    reference = 1.01 * max(memory for memory, _ in points.values())
    whole = hypervolume(points.values(), reference)
    return Spent(
        epochs=epochs / sum(each.epochs for each in source),
        wall_s=wall_s,
        front=len(on_front & kept) / len(on_front),
        hypervolume=hypervolume((points[key] for key in kept), reference) / whole if whole else 1.0,
        losses=fmean(_best(of_loss, points, kept) for of_loss in _by_loss(groups).values()),
    )


def _by_loss(groups: Mapping[str, Sequence[Recorded]]) -> dict[str, list[str]]:
    """Loss -> configurations."""
    found: dict[str, list[str]] = {}
    for key, group in groups.items():
        found.setdefault(group[0].cell.run.loss.name, []).append(key)
    return found


def _best(keys: Sequence[str], points: Mapping[str, Point], kept: Collection[str]) -> float:
    best = max(points[key][1] for key in keys)
    return max((points[key][1] for key in keys if key in kept), default=0.0) / best if best > 0 else 1.0


def front(points: dict[str, Point]) -> set[str]:
    """Keys of the points that no other beats; equal ones are all kept."""
    found: set[str] = set()
    best, level = -math.inf, -math.inf
    for key, (memory, quality) in sorted(points.items(), key=lambda item: (item[1][0], -item[1][1])):
        if quality > best or (quality == best and memory == level):
            best, level = quality, memory
            found.add(key)
    return found


def hypervolume(points: Iterable[Point], reference: float) -> float:
    """Area that is dominated: quality (from 0) x natural logarithm of memory, up to the reference memory."""
    area = best = 0.0
    for memory, quality in sorted(points):
        if quality > best:
            area += (quality - best) * math.log(reference / memory)
            best = quality
    return area
