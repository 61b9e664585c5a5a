"""What the command line says about one launch, as opposed to what the search space says about the sweep."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sweeps.outcomes import Outcome


@dataclass(frozen=True)
class Options:
    """One launch of a sweep. Nothing in here decides a cell's numbers."""

    storage: Path = Path("runs")
    """Sweeps live in `<storage>/<sweep name>/`."""
    mirror: str | None = None
    """Address of a store that holds the results; `storage` is then the driver's own copy."""
    wait_minutes: float = 0.0
    """How long to wait for a store that another driver holds."""
    address: str | None = None
    """Of a running Ray cluster; None: Ray is started inside this process."""
    tracking_uri: str | None = None
    """Of MLflow; None: SQLite in the storage folder."""
    no_tracking: bool = False
    limit_trials: int | None = None
    """Cells that this launch may run, at most; this and the next two win over the search space's budget."""
    limit_wall_hours: float | None = None
    limit_gpu_hours: float | None = None
    retry: tuple[Outcome, ...] = ()
    """Failures that are tried again."""
    reuse: tuple[Path, ...] = ()
    """Folders of sweeps, or of many, whose finished cells are taken over, beside those of the storage."""
    no_reuse: bool = False
    """Train every cell here, whatever other sweeps hold."""
    command: str = ""
    """What goes on with the sweep, for people."""
    num_cpus: int | None = None
    """Cores of the embedded Ray; None: all."""
    quiet: bool = False
    """No live view."""
    retime: bool | None = None
    """Time the front's cells again, alone, where they shared; wins over the search space's `resources.retime`."""
    keep_checkpoints: bool = False
    """Also keep the checkpoints of finished cells."""
