"""The plain tables that data preparation hands on: numpy arrays in frozen dataclasses; no torch, no pandas.

Ids inside a `Split` are encoded: items 0..V-1 in the catalog's order. There is no pad id and no phantom id: padding
exists only inside a batch, as positions that `Batch.positions` leaves out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqrec.errors import DataError, message

IntArray = NDArray[np.int64]
ItemArray = NDArray[np.int32]


def _require_integers(subject: str, values: NDArray[Any]) -> None:
    if values.dtype.kind not in "iu":
        raise DataError(message(subject, str(values.dtype), "integers"))


def _require_range(subject: str, ids: NDArray[Any], end: int | None = None) -> None:
    """0 <= ids < end."""
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or (end is not None and high >= end):
        law = ">= 0" if end is None else f"from 0 to {end - 1}, the catalog's"
        raise DataError(message(subject, low if low < 0 else high, f"ids {law}"))


def in_order(user: IntArray, time: IntArray) -> bool:
    """Whether rows are sorted by (user, time)."""
    return bool(((user[1:] > user[:-1]) | ((user[1:] == user[:-1]) & (time[1:] >= time[:-1]))).all())


def distinct(values: IntArray) -> IntArray:
    """Each value once, ascending. (np.unique would hash, which is many times slower on tens of millions of values.)"""
    ordered = np.sort(values)
    return ordered[np.r_[True, ordered[1:] != ordered[:-1]]] if len(ordered) else ordered


@dataclass(frozen=True, eq=False)
class Interactions:
    """A canonical file in memory, sorted by (user, time, row).

    Raises DataError for columns that are not integers of one length, no rows, negative ids, rows out of order, and a
    place that a user's order has twice.
    """

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

    def __post_init__(self) -> None:
        columns = {"user_id": self.user_id, "item_id": self.item_id, "time": self.time}
        for name, column in columns.items():
            _require_integers(f"{self.name}: {name}", column)
            if column.shape != (len(self.user_id),) or not len(column):
                raise DataError(message(f"{self.name}: {name}", column.shape, "one value a row, and at least one row"))
        for name in ("user_id", "item_id"):
            _require_range(f"{self.name}: {name}", columns[name])
        if not in_order(self.user_id, self.time):
            raise DataError(f"{self.name}: rows: got them out of order; expected them sorted by user, then time.")
        if not self.has_timestamps:
            twice = (self.user_id[1:] == self.user_id[:-1]) & (self.time[1:] == self.time[:-1])
            if twice.any():
                row = int(np.argmax(twice))
                law = f"a place of its own for each row of user {self.user_id[row]}"
                raise DataError(message(f"{self.name}: order", int(self.time[row]), law))


@dataclass(frozen=True, eq=False)
class Sequences:
    """Histories of users, flat: user u owns items[offsets[u] : offsets[u + 1]], oldest first.

    Raises DataError for offsets that do not cut the items into one history a user.
    """

    items: ItemArray
    """(n,) encoded item ids."""
    offsets: IntArray
    """(n_users + 1,)"""
    users: IntArray
    """(n_users,) the file's own user ids."""

    def __post_init__(self) -> None:
        _require_integers("items", self.items)
        offsets = self.offsets
        if len(offsets) != len(self.users) + 1 or offsets[0] or offsets[-1] != len(self.items) or self._runs_back():
            law = f"0 first, then the end of each of {len(self.users)} users, ascending to {len(self.items)} items"
            raise DataError(message("offsets", offsets[:9].tolist(), law))

    @cached_property
    def seen(self) -> tuple[ItemArray, IntArray]:
        """The distinct items of every history, ascending: (m,) items, and (n_users + 1,) offsets of the histories."""
        span = int(self.items.max(initial=0)) + 1
        owner = np.repeat(np.arange(len(self)), self.lengths)
        pairs = distinct(owner * span + self.items)
        counts = np.bincount(pairs // span, minlength=len(self))
        return (pairs % span).astype(np.int32), np.r_[0, np.cumsum(counts)].astype(np.int64)

    def _runs_back(self) -> bool:
        return bool((self.lengths < 0).any())

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
    """A data set, split and encoded.

    Raises DataError for a part without users, an evaluated user without history or with other than one target, and an
    item that the catalog does not have.
    """

    item_ids: IntArray
    """(V,) the catalog: the file's own id of every encoded item."""
    train: Sequences
    """Training histories; users with a single item stay in (they give no target, but count for popularity)."""
    valid: Holdout
    test: Holdout
    statistics: Statistics

    def __post_init__(self) -> None:
        name, counted = self.statistics.name, self.statistics.n_items
        if counted != self.n_items:
            raise DataError(message(f"{name}: statistics.n_items", counted, f"{self.n_items}, the length of item_ids"))
        parts = {"train": self.train, "valid": self.valid.history, "test": self.test.history}
        for part, history in parts.items():
            if not len(history.items):
                raise DataError(message(f"{name}: {part}", "no items", "at least one user with a history"))
            _require_range(f"{name}: {part} items", history.items, self.n_items)
        for part, holdout in (("valid", self.valid), ("test", self.test)):
            if len(holdout.targets) != len(holdout.history) or not holdout.history.lengths.all():
                law = f"one for each of {len(holdout.history)} histories, none of which is empty"
                raise DataError(message(f"{name}: {part} targets", len(holdout.targets), law))
            _require_integers(f"{name}: {part} targets", holdout.targets)
            _require_range(f"{name}: {part} targets", holdout.targets, self.n_items)

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
        return np.bincount(self.train.seen[0], minlength=self.n_items).astype(np.int64)
