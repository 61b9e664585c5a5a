"""Splits against results worked out by hand, and their laws on random data."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from seqrec.data import splits
from seqrec.data.tables import Holdout, Interactions, Sequences, Split
from seqrec.errors import DataError

Rows = list[tuple[int, int, int]]


def interactions(rows: Rows, *, has_timestamps: bool = True) -> Interactions:
    """(user, item, time) rows, sorted as `interactions.read` does."""
    user, item, time = (np.array(column, dtype=np.int64) for column in zip(*rows, strict=True))
    order = np.lexsort((time, user))
    return Interactions(user[order], item[order], time[order], has_timestamps, "hand", "0" * 64)


def as_lists(sequences: Sequences, split: Split) -> dict[int, list[int]]:
    """The file's user id -> the file's item ids."""
    pieces = np.split(split.item_ids[sequences.items], sequences.offsets[1:-1])
    return {int(user): piece.tolist() for user, piece in zip(sequences.users, pieces, strict=True)}


def target_ids(holdout: Holdout, split: Split) -> list[int]:
    return split.item_ids[holdout.targets].tolist()


HAND = [
    # user 7 is long enough; item 90 is seen only when held out
    (7, 10, 1), (7, 20, 2), (7, 30, 3), (7, 40, 4), (7, 90, 5),
    # user 3: three rows, one of them for training
    (3, 20, 1), (3, 10, 2), (3, 30, 3),
    # users 4 and 5 are too short to be evaluated
    (4, 10, 1), (4, 50, 2),
    (5, 20, 9),
]  # fmt: skip


def test_leave_one_out_by_hand() -> None:
    split = splits.leave_one_out(interactions(HAND, has_timestamps=False))
    assert split.item_ids.tolist() == [10, 20, 30, 40, 50, 90]
    assert as_lists(split.train, split) == {3: [20], 4: [10, 50], 5: [20], 7: [10, 20, 30]}
    assert as_lists(split.valid.history, split) == {3: [20], 7: [10, 20, 30]}
    assert target_ids(split.valid, split) == [10, 40]
    assert as_lists(split.test.history, split) == {3: [20, 10], 7: [10, 20, 30, 40]}
    assert target_ids(split.test, split) == [30, 90]
    statistics = split.statistics
    assert dict(statistics.rows) == {"train": 4, "train: user with fewer than 3 rows": 3, "valid": 2, "test": 2}
    assert (statistics.n_users, statistics.n_items, statistics.n_interactions) == (4, 6, 11)
    assert statistics.n_train_users == 2
    assert statistics.train_lengths == ((2, 1), (3, 1))
    assert statistics.interactions_per_user == 3
    assert split.item_counts.tolist() == [2, 3, 1, 0, 1, 0]


def test_the_last_of_simultaneous_rows_is_the_test_target() -> None:
    rows = [(1, 5, 7), (1, 4, 7), (1, 6, 7), (1, 3, 7)]
    split = splits.leave_one_out(interactions(rows))
    assert as_lists(split.train, split) == {1: [5, 4]}
    assert (target_ids(split.valid, split), target_ids(split.test, split)) == ([6], [3])


TEMPORAL = [
    # cut: 20 rows, quantile 0.5 -> sorted place round(9.5) = 10 -> time 10
    (1, 11, 1), (1, 12, 2), (1, 13, 3),
    (2, 12, 4), (2, 11, 5),
    # an evaluated user: two rows before the cut are dropped, item 99 is unknown to training, the rest is evaluated
    (3, 11, 0), (3, 15, 1),
    (3, 12, 10), (3, 99, 11), (3, 13, 12), (3, 11, 13), (3, 12, 14),
    # two known rows after the cut are not enough
    (4, 13, 9), (4, 11, 20), (4, 12, 21), (4, 98, 22),
    # exactly three, the first at the cut itself
    (5, 13, 10), (5, 13, 30), (5, 11, 31),
    (6, 14, 6),
]  # fmt: skip


def test_temporal_by_hand() -> None:
    assert sorted(time for _, _, time in TEMPORAL)[10] == 10
    split = splits.temporal(interactions(TEMPORAL), 0.5)
    assert split.item_ids.tolist() == [11, 12, 13, 14], "the catalog is what training rows show"
    assert as_lists(split.train, split) == {1: [11, 12, 13], 2: [12, 11], 6: [14]}
    assert as_lists(split.valid.history, split) == {3: [12, 13], 5: [13]}
    assert target_ids(split.valid, split) == [11, 13]
    assert as_lists(split.test.history, split) == {3: [12, 13, 11], 5: [13, 13]}
    assert target_ids(split.test, split) == [12, 11]
    assert dict(split.statistics.rows) == {
        "train": 6,
        "history": 3,
        "valid": 2,
        "test": 2,
        splits.BEFORE_CUT: 3,
        splits.UNKNOWN_ITEM: 2,
        splits.SHORT_TEST: 2,
    }
    assert split.statistics.n_train_users == 2


@pytest.mark.parametrize("quantile", [0.25, 0.5, 0.77, 0.9])
@pytest.mark.parametrize("n", [41, 102])
def test_the_cut_is_the_nearest_quantile(n: int, quantile: float) -> None:
    # Exact beyond 2**53, where an interpolation in floating point is not.
    base = 2**60
    rows = [(1, 1, base), (1, 1, base)] + [(2, 1, base + i) for i in range(n - 2)]
    expected = base + int(np.quantile([time - base for _, _, time in rows], quantile, method="nearest"))
    split = splits.temporal(interactions(rows), quantile)
    late = sum(time >= expected for _, _, time in rows)
    assert sum(dict(split.statistics.rows).get(fate, 0) for fate in ("history", "valid", "test")) == late


def test_temporal_needs_timestamps() -> None:
    with pytest.raises(DataError, match=r"data\.split: got temporal; expected leave_one_out for hand"):
        splits.temporal(interactions(TEMPORAL, has_timestamps=False), 0.5)


@pytest.mark.parametrize(
    ("rows", "part"),
    [
        ([(1, 1, 1), (1, 2, 2)], "valid and test"),
        ([(1, 1, 1), (1, 2, 2), (1, 3, 3)], "train"),
    ],
)
def test_leave_one_out_refuses_an_empty_part(rows: Rows, part: str) -> None:
    with pytest.raises(DataError, match=f"leaves {part} empty"):
        splits.leave_one_out(interactions(rows))


@pytest.mark.parametrize(
    ("rows", "part"),
    [
        ([(1, 1, 1), (1, 2, 2), (1, 3, 3)], "train"),
        ([(1, 1, 1), (2, 1, 2), (2, 1, 3), (2, 1, 4)], "train"),
        ([(1, 1, 1), (1, 2, 2), (2, 1, 3), (2, 1, 4), (2, 9, 5)], "valid and test"),
    ],
)
def test_temporal_refuses_an_empty_part(rows: Rows, part: str) -> None:
    with pytest.raises(DataError, match=f"leaves {part} empty"):
        splits.temporal(interactions(rows), 0.4)


def test_distinct_users_of_an_item() -> None:
    rows = [(1, 8, 1), (1, 8, 2), (1, 9, 3), (1, 9, 4), (1, 9, 5), (2, 8, 1), (2, 8, 2)]
    split = splits.leave_one_out(interactions(rows))
    assert split.item_counts.tolist() == [4, 1]
    assert split.item_users.tolist() == [2, 1]
    assert split.statistics.longest_train_history == 3
    assert split.statistics.longest_distinct_history == 2


some_rows = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 8), st.integers(-5, 12)), min_size=1, max_size=60)


def pairs(sequences: Sequences, split: Split) -> list[tuple[int, int]]:
    return [(user, item) for user, items in as_lists(sequences, split).items() for item in items]


@given(some_rows)
def test_leave_one_out_gives_every_row_one_fate_and_leaks_none(rows: Rows) -> None:
    table = interactions(rows)
    try:
        split = splits.leave_one_out(table)
    except DataError:
        return
    train, valid, test = as_lists(split.train, split), split.valid, split.test
    held = dict(
        zip(valid.history.users, zip(target_ids(valid, split), target_ids(test, split), strict=True), strict=True)
    )
    rebuilt = {user: items + list(held.get(user, ())) for user, items in train.items()}
    original: dict[int, list[int]] = {}
    for user, item in zip(table.user_id.tolist(), table.item_id.tolist(), strict=True):
        original.setdefault(user, []).append(item)
    assert rebuilt == original, "train, valid and test, in this order, are the user's rows"
    fates = dict(split.statistics.rows)
    assert sum(fates.values()) == len(rows)
    assert sum(rows for fate, rows in fates.items() if fate.startswith("train")) == len(split.train.items)
    assert (fates["valid"], fates["test"]) == (len(valid.targets), len(test.targets))
    for user, items in as_lists(valid.history, split).items():
        assert items == train[user]
        assert as_lists(test.history, split)[user] == [*items, held[user][0]]


@given(some_rows, st.floats(0.05, 0.95))
def test_temporal_gives_every_row_one_fate_and_leaks_none(rows: Rows, quantile: float) -> None:
    table = interactions(rows)
    try:
        split = splits.temporal(table, quantile)
    except DataError:
        return
    fates = dict(split.statistics.rows)
    assert sum(fates.values()) == len(rows)
    cut = int(np.quantile(table.time, quantile, method="nearest"))
    test_users = {user for user, _, time in rows if time >= cut}
    assert not test_users & set(split.train.users.tolist()), "a test user in training"
    early = sorted((user, item) for user, item, time in rows if time < cut and user not in test_users)
    assert sorted(pairs(split.train, split)) == early, "training is the rows before the cut of all other users"
    catalog = {item for _, item in early}
    assert split.item_ids.tolist() == sorted(catalog)
    expected: dict[int, list[int]] = {}
    for user, item, time in zip(table.user_id.tolist(), table.item_id.tolist(), table.time.tolist(), strict=True):
        if time >= cut and item in catalog:
            expected.setdefault(user, []).append(item)
    expected = {user: items for user, items in expected.items() if len(items) >= 3}
    assert as_lists(split.test.history, split) == {user: items[:-1] for user, items in expected.items()}
    assert as_lists(split.valid.history, split) == {user: items[:-2] for user, items in expected.items()}
    assert target_ids(split.test, split) == [items[-1] for _, items in sorted(expected.items())]
    assert target_ids(split.valid, split) == [items[-2] for _, items in sorted(expected.items())]
    assert (fates["valid"], fates["test"]) == (len(expected), len(expected))
