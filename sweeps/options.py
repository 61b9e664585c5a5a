"""What the command line says about one launch, as opposed to what the search space says about the sweep."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """One launch of a sweep. Nothing in here decides a cell's numbers."""

    storage: Path = Path("runs")
    """Sweeps live in `<storage>/<sweep name>/`."""
    address: str | None = None
    """Of a running Ray cluster; None: Ray is started inside this process."""
    tracking_uri: str | None = None
    """Of MLflow; None: SQLite in the storage folder."""
    no_tracking: bool = False
    limit_trials: int | None = None
    """Cells that this launch may run, at most; wins over the search space's budget."""
    num_cpus: int | None = None
    """Cores of the embedded Ray; None: all."""
    quiet: bool = False
    """No live view."""
    keep_checkpoints: bool = False
    """Also keep the checkpoints of finished cells."""
