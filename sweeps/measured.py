"""What an earlier sweep says of the times of the next one: its ledger's epochs. No torch, no ray."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

from seqrec import config, epoch_time
from seqrec.data.tables import Statistics
from seqrec.errors import UserError, message
from sweeps.cells import Cell
from sweeps.ledger import FILE_NAME, State, read
from sweeps.outcomes import Outcome
from sweeps.timing import SHARED, Timings


@dataclass(frozen=True)
class Measured:
    """Times of one ledger. An epoch here is training and validation together, as the ledger's elapsed time has it."""

    path: Path
    cells: int
    """Done or stopped, with times."""
    epoch_s: dict[str, float]
    """Median by configuration_key."""
    ratios: dict[str, float]
    """Measured over predicted, median by loss; of cells that can be predicted."""
    by_loss: dict[str, float]
    """Median by loss."""
    epochs_share: float
    """Epochs run, of those allowed: what stopping and patience left of them."""
    hardware: str
    shared: int = 0
    """Of the cells: trained beside others, whose times are too long for a GPU of their own."""

    def seconds(self, cell: Cell, predicted_s: float | None) -> float | None:
        """An epoch of a cell: of its configuration; else its prediction corrected by the loss's ratio; else, where
        there is no prediction, the median of its loss; None without any."""
        if cell.configuration_key in self.epoch_s:
            return self.epoch_s[cell.configuration_key]
        loss = cell.run.loss.name
        if predicted_s is not None:
            ratio = self.ratios.get(loss) or (statistics.median(self.ratios.values()) if self.ratios else None)
            return None if ratio is None else predicted_s * ratio
        return self.by_loss.get(loss)


def load(place: Path, data: Statistics) -> Measured:
    """The times in a ledger, or in a sweep's folder. Raises UserError if there are none, or of other data; LedgerError
    for a damaged file."""
    path = place / FILE_NAME if place.is_dir() else place
    if not path.is_file():
        raise UserError(message("--times", str(place), f"a sweep's folder, or its {FILE_NAME}"))
    state, runs, timings = State(), {}, Timings()
    for event, _ in read(path):
        state.apply(event)
        timings.add(event)
        if event["type"] == "cell":
            runs[event["cell_key"]] = event["run"]
    plan = state.plan or {}
    digest = plan.get("data", {}).get("digest")
    if digest != data.digest:
        raise UserError(message("--times", str(place), f"a sweep on {data.name} (digest {data.digest[:12]}...)"))
    by_key: dict[str, list[float]] = {}
    ratios: dict[str, list[float]] = {}
    by_loss: dict[str, list[float]] = {}
    run_epochs = allowed = cells = shared = 0
    for key, cell in state.cells.items():
        elapsed_s = cell.last_metrics.get("time/elapsed_s")
        if cell.outcome not in (Outcome.DONE, Outcome.STOPPED) or not cell.epochs or elapsed_s is None:
            continue
        run = config.parse(runs[key])
        seconds = elapsed_s / cell.epochs
        cells, run_epochs, allowed = cells + 1, run_epochs + cell.epochs, allowed + run.train.epochs
        shared += timings.of_training(key) == SHARED
        by_key.setdefault(cell.configuration_key, []).append(seconds)
        by_loss.setdefault(run.loss.name, []).append(seconds)
        if predicted := epoch_time.predict(run, data):
            share = 1 / run.train.valid_every
            ratios.setdefault(run.loss.name, []).append(seconds / (predicted.epoch_s + share * predicted.valid_s))
    if not cells:
        raise UserError(message("--times", str(place), "a sweep with finished cells whose epochs were timed"))
    environment = plan.get("environment", {})
    return Measured(
        path,
        cells,
        {key: statistics.median(found) for key, found in by_key.items()},
        {loss: statistics.median(found) for loss, found in ratios.items()},
        {loss: statistics.median(found) for loss, found in by_loss.items()},
        run_epochs / allowed,
        environment.get("gpu") or environment.get("cpu", "unknown hardware"),
        shared,
    )
