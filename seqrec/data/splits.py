"""Pure splits into train, valid and test, by the rules of the SCE and RECE papers (arXiv 2409.18721, 2408.02354).

Every row has exactly one fate, counted in `Statistics.rows`. The latest of a user's events is the last one in (time,
row) order, so that ties always fall the same way.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from seqrec.data.tables import Holdout, IntArray, Interactions, Sequences, Split, Statistics
from seqrec.errors import DataError

TRAIN, VALID, TEST, HISTORY = "train", "valid", "test", "history"
SHORT_TRAIN = "train: user with fewer than 3 rows"
BEFORE_CUT = "dropped: before the cut, of a user with rows after it"
UNKNOWN_ITEM = "dropped: after the cut, item not in training"
SHORT_TEST = "dropped: after the cut, user with fewer than 3 known items"

Mask = NDArray[np.bool_]


def leave_one_out(interactions: Interactions) -> Split:
    """A user's last row is the test target, the one before the validation target, the rest is training.

    The catalog is every item of the file. Users with fewer than 3 rows are trained on and not evaluated.
    Raises DataError if nobody can be evaluated or trained on.
    """
    from_end, rows_of_user = _places(interactions.user_id)
    evaluated = rows_of_user >= 3
    test = evaluated & (from_end == 0)
    valid = evaluated & (from_end == 1)
    train = ~(test | valid)
    fates = {
        TRAIN: train & evaluated,
        SHORT_TRAIN: train & ~evaluated,
        VALID: valid,
        TEST: test,
    }
    catalog, item = np.unique(interactions.item_id, return_inverse=True)
    return _split(interactions, catalog, item, fates, train=train, history=train & evaluated)


def temporal(interactions: Interactions, quantile: float) -> Split:
    """Global cut in time; users with a row at or after it are evaluated on what they did from there on.

    cut = the nearest timestamp to the quantile of all timestamps. Training: rows before the cut, of users without any
    later row. Evaluation: rows at or after the cut whose item occurs in training; of every user with at least 3 of them
    the last is the test target, the one before the validation target, the rest is history. Rows of those users before
    the cut are dropped: the papers evaluate unknown users by their recent events. Raises DataError without timestamps,
    and if training, validation or test would be empty.
    """
    if not interactions.has_timestamps:
        raise DataError(
            f"data.split: got temporal; expected leave_one_out for {interactions.name}, whose rows have an order within"
            " the user but no timestamps."
        )
    user, time = interactions.user_id, interactions.time
    place = round(quantile * (len(time) - 1))
    late: Mask = time >= np.partition(time, place)[place]
    # Rows are sorted by user, then time: a user has late rows exactly if the last row is late.
    from_end, _ = _places(user)
    last_of_user = np.arange(len(user)) + from_end
    test_user = late[last_of_user]
    train = ~test_user
    if not train.any():
        raise _empty(interactions, "train", "rows before the cut, of users without rows after it")
    catalog = np.unique(interactions.item_id[train])
    item = np.searchsorted(catalog, interactions.item_id)
    item[item == len(catalog)] = 0
    known: Mask = catalog[item] == interactions.item_id
    kept = late & known
    left = np.flatnonzero(kept)
    from_end, left_of_user = _places(user[left])
    history, valid, test, short = (np.zeros(len(user), dtype=bool) for _ in range(4))
    enough = left_of_user >= 3
    history[left[enough & (from_end >= 2)]] = True
    valid[left[enough & (from_end == 1)]] = True
    test[left[enough & (from_end == 0)]] = True
    short[left[~enough]] = True
    fates = {
        TRAIN: train,
        HISTORY: history,
        VALID: valid,
        TEST: test,
        BEFORE_CUT: test_user & ~late,
        UNKNOWN_ITEM: late & ~known,
        SHORT_TEST: short,
    }
    return _split(interactions, catalog, item, fates, train=train, history=history)


def _places(user: IntArray) -> tuple[IntArray, IntArray]:
    """Of every row: rows of the same user after it, and rows of that user. Rows of a user lie together."""
    starts = np.flatnonzero(np.r_[True, user[1:] != user[:-1]]) if len(user) else np.empty(0, np.int64)
    counts = np.diff(np.r_[starts, len(user)])
    return np.repeat(starts + counts - 1, counts) - np.arange(len(user)), np.repeat(counts, counts)


def _split(
    interactions: Interactions,
    catalog: IntArray,
    item: IntArray,
    fates: dict[str, Mask],
    *,
    train: Mask,
    history: Mask,
) -> Split:
    """The tables of a split. `history` predicts the validation target; with that target, it predicts the test's."""
    user = interactions.user_id
    training = _sequences(user, item, train)
    trained = training.lengths[training.lengths >= 2]
    if not len(trained):
        raise _empty(interactions, "train", "users with two training rows")
    if not fates[TEST].any():
        raise _empty(interactions, "valid and test", "users with three rows to hold out from")
    lengths, users = np.unique(trained, return_counts=True)
    statistics = Statistics(
        name=interactions.name,
        digest=interactions.digest,
        n_users=1 + int(np.count_nonzero(np.diff(user))),
        n_interactions=len(user),
        n_items=len(catalog),
        n_train_users=len(trained),
        train_lengths=tuple(zip(lengths.tolist(), users.tolist(), strict=True)),
        rows=tuple((fate, n) for fate, mask in fates.items() if (n := int(mask.sum())) or fate in (TRAIN, VALID, TEST)),
        longest_distinct_history=_longest_distinct(training, len(catalog)),
    )
    assert sum(rows for _, rows in statistics.rows) == len(user), "a row has no fate, or two"
    return Split(
        item_ids=catalog,
        train=training,
        valid=_holdout(user, item, history, fates[VALID]),
        test=_holdout(user, item, history | fates[VALID], fates[TEST]),
        statistics=statistics,
    )


def _sequences(user: IntArray, item: IntArray, rows: Mask) -> Sequences:
    users, counts = np.unique(user[rows], return_counts=True)
    return Sequences(item[rows].astype(np.int32), np.r_[0, np.cumsum(counts)], users)


def _holdout(user: IntArray, item: IntArray, history: Mask, target: Mask) -> Holdout:
    sequences = _sequences(user, item, history)
    assert np.array_equal(sequences.users, user[target]), "a target without its history"
    return Holdout(sequences, item[target].astype(np.int32))


def _longest_distinct(sequences: Sequences, n_items: int) -> int:
    owner = np.repeat(np.arange(len(sequences)), sequences.lengths)
    pairs = np.unique(owner * n_items + sequences.items)
    return int(np.bincount(pairs // n_items).max())


def _empty(interactions: Interactions, part: str, law: str) -> DataError:
    return DataError(f"data.path: got {interactions.name}, whose split leaves {part} empty; expected {law}.")
