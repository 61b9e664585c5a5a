"""Predicted memory -> a share of a GPU, one of a few: workers can be used again only for trials of the same share. And
predicted time -> the order in which cells start that no stopping rule has an order for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from seqrec import epoch_time
from seqrec.data.tables import Statistics
from sweeps import environment
from sweeps.cells import Cell
from sweeps.spec import Resources

SHARES = (0.125, 0.1666, 0.25, 0.3333, 0.5, 1.0)
"""As Ray counts them, in ten-thousandths, so that six sixths still fit."""
MARGIN = 1.15
"""Of the prediction: what the allocator loses to fragmentation, and what validation needs beyond a training step."""
CONTEXT_BYTES = 650 * 2**20
"""What a process holds on a GPU before its first tensor."""


def on_gpus(resources: Resources, address: str | None) -> bool:
    """Whether trials use GPUs: as stated; with `auto` on this machine if it has one, and on a cluster as far
    as is known before it is asked."""
    if resources.gpus_per_trial != "auto":
        return resources.gpus_per_trial > 0
    return address is not None or bool(environment.gpus())


def share(predicted_bytes: int, gpu_bytes: int) -> float | None:
    """The smallest share whose memory holds the trial; None if a whole GPU does not."""
    bytes_ = needed(predicted_bytes)
    return next((share for share in SHARES if share * gpu_bytes >= bytes_), None)


def needed(predicted_bytes: int) -> float:
    """Bytes of a GPU that a trial is given room for."""
    return predicted_bytes * MARGIN + CONTEXT_BYTES


def reason(predicted_bytes: int, gpu_bytes: int) -> str:
    """Why a cell is not tried on GPUs of this size."""
    return (
        f"its predicted peak of {predicted_bytes:,} bytes takes {math.ceil(needed(predicted_bytes)):,} with margin and "
        f"context; the smallest GPU has {gpu_bytes:,}"
    )


def order(cells: Sequence[Cell], statistics: Statistics, shares: Mapping[str, float | None]) -> list[Cell]:
    """Longest and largest first, so that what runs last is short.

    By predicted seconds of the whole cell, halving by halving; among cells of one halving by share, so that a worker
    meets equal requests in a row, then by seconds. Cells without a prediction, all of them where none has a share of a
    GPU, come first, by predicted bytes. Equal cells stay in the order given.
    """
    keys = {cell.cell_key: _weight(cell, statistics, shares.get(cell.cell_key) or 0.0) for cell in cells}
    return sorted(cells, key=lambda cell: keys[cell.cell_key], reverse=True)


def _weight(cell: Cell, statistics: Statistics, share: float) -> tuple[float, float, float, int]:
    duration = epoch_time.predict(cell.run, statistics) if share else None
    if duration is None:
        return math.inf, share, 0.0, cell.predicted_bytes
    seconds = duration.cell_s(cell.run.train.epochs, cell.run.train.valid_every)
    return math.floor(math.log2(max(seconds, 1.0))), share, seconds, cell.predicted_bytes
