"""The plain tables that data preparation hands on: numpy arrays in frozen dataclasses; no torch, no pandas.

Ids inside a `Split` are encoded: items 0..V-1 in the catalog's order. There is no pad id and no phantom id: padding
exists only inside a batch, as positions that `Batch.positions` leaves out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
ItemArray = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Interactions:
    """A canonical file in memory, sorted by (user, time, row)."""

    user_id: IntArray
    """(n,) the file's own ids."""
    item_id: IntArray
    """(n,) the file's own ids."""
    time: IntArray
    """(n,) timestamp, or order within the user; non-decreasing within a user."""
    has_timestamps: bool
    """False: `time` only orders a user's own events, and splits that cut time are refused."""
    name: str
    """Bundled name or the file's stem."""
    digest: str
    """sha256 of the sorted content (ids, times, kind of time), 64 hex digits, independent of format and row order."""


@dataclass(frozen=True, eq=False)
class Sequences:
    """Histories of users, flat: user u owns items[offsets[u] : offsets[u + 1]], oldest first."""

    items: ItemArray
    """(n,) encoded item ids."""
    offsets: IntArray
    """(n_users + 1,)"""
    users: IntArray
    """(n_users,) the file's own user ids."""

    def __len__(self) -> int:
        return len(self.users)

    @property
    def lengths(self) -> IntArray:
        return np.diff(self.offsets)


@dataclass(frozen=True, eq=False)
class Holdout:
    """One held-out item a user, and the history that predicts it."""

    history: Sequences
    targets: ItemArray
    """(n_users,)"""


@dataclass(frozen=True)
class Statistics:
    """What expressions, feasibility and the memory prediction need to know of a prepared and split data set."""

    name: str
    digest: str
    n_users: int
    """Users of the prepared file, before the split."""
    n_interactions: int
    """Rows of the prepared file, before the split."""
    n_items: int
    """Catalog of the split; `catalog_size` in expressions. Leave-one-out: every item of the file, held-out ones too.
    Otherwise: the items of the training rows."""
    n_train_users: int
    """Users with at least one training target (two training items)."""
    train_lengths: tuple[tuple[int, int], ...]
    """Histogram of the training histories of those users: (items in history, users), ascending."""
    rows: tuple[tuple[str, int], ...] = field(default=())
    """Fate of every row of the file, each in exactly one: (train | valid | test | history | dropped: reason, rows).
    `history`: input of the evaluation only (never in leave-one-out)."""
    longest_distinct_history: int | None = None
    """Most distinct items in one training history; None: not counted."""

    @property
    def interactions_per_user(self) -> int:
        """Interactions over users of the prepared file, rounded: the constant of the papers' formulas."""
        return round(self.n_interactions / self.n_users)

    @property
    def longest_train_history(self) -> int:
        return max((length for length, _ in self.train_lengths), default=0)

    def scope(self) -> dict[str, int]:
        """Names that expressions of a search space may use."""
        return {
            "n_items": self.n_items,
            "catalog_size": self.n_items,
            "n_users": self.n_users,
            "n_train_users": self.n_train_users,
            "n_interactions": self.n_interactions,
            "interactions_per_user": self.interactions_per_user,
        }


@dataclass(frozen=True, eq=False)
class Split:
    """A data set, split and encoded."""

    item_ids: IntArray
    """(V,) the catalog: the file's own id of every encoded item."""
    train: Sequences
    """Training histories; users with a single item stay in (they give no target, but count for popularity)."""
    valid: Holdout
    test: Holdout
    statistics: Statistics

    @property
    def n_items(self) -> int:
        return len(self.item_ids)

    @cached_property
    def item_counts(self) -> IntArray:
        """(V,) how often each item occurs in training."""
        return np.bincount(self.train.items, minlength=self.n_items).astype(np.int64)

    @cached_property
    def item_users(self) -> IntArray:
        """(V,) how many users have each item in training: `item_counts` without repeats."""
        owners = np.repeat(np.arange(len(self.train)), self.train.lengths)
        pairs = np.unique(owners * self.n_items + self.train.items)
        return np.bincount(pairs % self.n_items, minlength=self.n_items).astype(np.int64)
