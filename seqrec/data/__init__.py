"""Interactions -> split: what a run trains on and is measured by. Loads no torch, so that a login node can plan."""

from __future__ import annotations

from seqrec.config import Data
from seqrec.data import interactions, splits
from seqrec.data.tables import Split, Statistics


def load(data: Data) -> Split:
    """The data set of a run, split and encoded. Raises DataError for a file that is not canonical, or too small."""
    table = interactions.read(data.path)
    if data.split == "temporal":
        return splits.temporal(table, data.quantile)
    return splits.leave_one_out(table)


def statistics(data: Data) -> Statistics:
    """What planning needs to know of the data set of a run; the same errors as `load`."""
    return load(data).statistics
