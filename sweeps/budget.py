"""What a launch may spend, and what it has spent: wall time and GPU time. No torch, no ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

HOUR_S = 3600.0


@dataclass
class Budget:
    """The meter of one launch. Wall time runs from its making; GPU time is each trial's share of a GPU times the
    seconds from its start to its end or stop, whatever else the GPU does meanwhile."""

    wall_s: float | None = None
    gpu_s: float | None = None
    """Limits; None: none."""
    shares: Mapping[str, float | None] = field(default_factory=dict)
    """Part of a GPU by cell_key; a cell without one takes none."""
    clock: Callable[[], float] = time.monotonic
    """Seconds."""
    _running: dict[str, float] = field(default_factory=dict)
    """Start by cell_key."""
    _spent_gpu_s: float = 0.0
    """Of trials that no longer run."""

    def __post_init__(self) -> None:
        self._since = self.clock()

    def start(self, cell_key: str) -> None:
        """A trial holds its share from now on."""
        self.release(cell_key)
        self._running[cell_key] = self.clock()

    def release(self, cell_key: str) -> None:
        """The trial ended or was told to; nothing for one that does not run."""
        since = self._running.pop(cell_key, None)
        if since is not None:
            self._spent_gpu_s += self._share(cell_key) * (self.clock() - since)

    @property
    def is_idle(self) -> bool:
        """No trial runs."""
        return not self._running

    @property
    def elapsed_s(self) -> float:
        return self.clock() - self._since

    @property
    def spent_gpu_s(self) -> float:
        now = self.clock()
        running = sum(self._share(key) * (now - since) for key, since in self._running.items())
        return self._spent_gpu_s + running

    def spent(self) -> str:
        """Which limit is reached, for people; empty: none."""
        if self.wall_s is not None and self.elapsed_s >= self.wall_s:
            return f"{_hours(self.wall_s)} of wall time"
        if self.gpu_s is not None and self.spent_gpu_s >= self.gpu_s:
            return f"{_hours(self.gpu_s)} of GPU time"
        return ""

    def _share(self, cell_key: str) -> float:
        return self.shares.get(cell_key) or 0.0


def _hours(seconds: float) -> str:
    return f"{seconds / HOUR_S:.3g} h"
