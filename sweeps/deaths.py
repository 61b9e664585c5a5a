"""Whether a cell whose process died, or whose node was lost, is tried again. No torch, no ray.

A cell that gets on is never given up: what counts are losses since its last new epoch. So whatever happens to a cluster
costs a cell nothing but time, a cell that kills its process at the same step each time ends soon, and nothing can go on
for ever: a cell has a last epoch.
"""

from __future__ import annotations

from collections import Counter

RETRIES = 2
"""How often a cell whose process died is tried again without a new epoch in between."""
NODE_RETRIES = 10
"""The same for a cell whose node was lost or did not answer: mostly no fault of the cell's, though it may have taken
all of the node's memory."""


class Deaths:
    """Counts what befell the processes of each cell in one launch."""

    def __init__(self) -> None:
        self._epochs: dict[str, int] = {}
        self._own: Counter[str] = Counter()
        self._nodes: Counter[str] = Counter()

    def again(self, cell_key: str, epochs: int, *, node: bool) -> bool:
        """Count one loss; whether the cell is to be tried again. epochs: those it has told so far. node: its node was
        lost or out of reach, not its process alone."""
        if epochs > self._epochs.get(cell_key, 0):
            self._own[cell_key] = self._nodes[cell_key] = 0
        self._epochs[cell_key] = epochs
        if node:
            self._nodes[cell_key] += 1
            return self._nodes[cell_key] <= NODE_RETRIES
        self._own[cell_key] += 1
        return self._own[cell_key] <= RETRIES
