"""An epoch of an engine, cut to some of its batches."""

from __future__ import annotations

from collections.abc import Callable

from seqrec.data.batches import Plan
from seqrec.engine import Engine


def run_part(engine: Engine, epoch: int, part: Callable[[Plan], Plan]) -> None:
    """Trains on what `part` leaves of the epoch's plan; the next epoch is whole again."""
    whole = engine.batches.plan
    engine.batches.plan = lambda number: part(whole(number))
    try:
        engine.run_epoch(epoch)
    finally:
        engine.batches.plan = whole
