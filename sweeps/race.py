"""Which configurations get further seeds, as plain Python: compared over the seeds that both have."""

from __future__ import annotations

import bisect
import itertools
import math

from sweeps.cells import Cell


class Race:
    """Whose further replicates are worth a training: configurations against all others, over the replicates that both
    have. results: configuration -> (memory, replicate -> result)."""

    def __init__(self, results: dict[str, tuple[int, dict[int, float]]]) -> None:
        self._results = results
        self._groups: dict[frozenset[int], list[tuple[int, dict[int, float]]]] = {}
        """By the replicates that they have, which are few sets."""
        for memory, values in results.values():
            self._groups.setdefault(frozenset(values), []).append((memory, values))
        self._fronts: dict[tuple[frozenset[int], frozenset[int]], tuple[list[int], list[float]]] = {}

    def could_be_on_the_front(self, cell: Cell, margin: float) -> bool:
        """Whether no rival of no more memory is better by more than the margin, which shrinks as both have more."""
        own = self._results[cell.configuration_key][1]
        for group in self._groups:
            shared = group.intersection(own)
            if not shared:
                continue
            memory, best = self._front(group, shared)
            place = bisect.bisect_right(memory, cell.predicted_bytes)
            allowed = (1 + margin / math.sqrt(len(shared))) * math.fsum(own[i] for i in shared)
            if place and best[place - 1] > allowed:
                return False
        return True

    def _front(self, group: frozenset[int], shared: frozenset[int]) -> tuple[list[int], list[float]]:
        """(memory, ascending; best sum of the shared results up to there) of a group."""
        if (group, shared) not in self._fronts:
            members = sorted((memory, math.fsum(values[i] for i in shared)) for memory, values in self._groups[group])
            best = list(itertools.accumulate((total for _, total in members), max))
            self._fronts[group, shared] = [memory for memory, _ in members], best
        return self._fronts[group, shared]
