"""Interactions -> split: what a run trains on and is measured by. Loads no torch, so that a login node can plan."""

from __future__ import annotations

from collections.abc import Callable

from seqrec.config import Data
from seqrec.data import interactions, splits
from seqrec.data.tables import Split, Statistics

SPLITS: dict[str, Callable[..., Split]] = {
    "leave_one_out": splits.leave_one_out,
    "temporal": splits.temporal,
    "replay": splits.replay,
}
"""By name; each takes a table and the keys that `Data.protocol` gives it."""


def load(data: Data) -> Split:
    """The data set of a run, split and encoded. Raises DataError for a file that is not canonical, or too small."""
    return SPLITS[data.split](interactions.read(data.path), **data.protocol())


def statistics(data: Data) -> Statistics:
    """What planning needs to know of the data set of a run; the same errors as `load`."""
    return load(data).statistics
