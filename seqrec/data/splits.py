"""Pure splits into train, valid and test: `leave_one_out` and `temporal` by the rules of the SCE and RECE papers (arXiv
2409.18721, 2408.02354), `replay` by those of the CCE- paper (arXiv 2509.09682).

Every row has exactly one fate, counted in `Statistics.rows`. The latest of a user's events is the last one in (time,
row) order, so that ties always fall the same way.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from seqrec.data.tables import Holdout, IntArray, Interactions, Sequences, Split, Statistics, distinct
from seqrec.errors import DataError

TRAIN, VALID, TEST, HISTORY = "train", "valid", "test", "history"
SHORT_TRAIN = "train: user with fewer than 3 rows"
BEFORE_CUT = "dropped: before the cut, of a user with rows after it"
UNKNOWN_ITEM = "dropped: after the cut, item not in training"
SHORT_TEST = "dropped: after the cut, user with fewer than 3 known items"
VALID_UNKNOWN_ITEM = "dropped: before the cut, of a validation user, item not in training"
SHORT_VALID = "dropped: before the cut, validation user with a single known item"
VALID_AFTER_CUT = "dropped: after the cut, of a validation user"
NEW_USER = "dropped: after the cut, of a user not in training"
NO_HISTORY = "dropped: after the cut, user with a single known item"

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
    history = train & evaluated
    return _split(interactions, catalog, item, fates, train=train, valid_history=history, test_history=history | valid)


def temporal(interactions: Interactions, quantile: float) -> Split:
    """Global cut in time; users with a row at or after it are evaluated on what they did from there on.

    cut = the nearest timestamp to the quantile of all timestamps. Training: rows before the cut, of users without any
    later row. Evaluation: rows at or after the cut whose item occurs in training; of every user with at least 3 of them
    the last is the test target, the one before the validation target, the rest is history. Rows of those users before
    the cut are dropped: the papers evaluate unknown users by their recent events. Raises DataError without timestamps,
    and if training, validation or test would be empty.
    """
    _need_timestamps(interactions, "temporal")
    user, time = interactions.user_id, interactions.time
    late = _from_place(time, round(quantile * (len(time) - 1)))
    # Rows are sorted by user, then time: a user has late rows exactly if the last row is late.
    from_end, _ = _places(user)
    last_of_user = np.arange(len(user)) + from_end
    test_user = late[last_of_user]
    train = ~test_user
    if not train.any():
        raise _empty(interactions, "train", "rows before the cut, of users without rows after it")
    catalog, item, known = _encode(interactions.item_id, train)
    kept = late & known
    from_end, left_of_user = _places_among(user, kept)
    enough = left_of_user >= 3
    history = enough & (from_end >= 2)
    valid = enough & (from_end == 1)
    fates = {
        TRAIN: train,
        HISTORY: history,
        VALID: valid,
        TEST: enough & (from_end == 0),
        BEFORE_CUT: test_user & ~late,
        UNKNOWN_ITEM: late & ~known,
        SHORT_TEST: kept & ~enough,
    }
    return _split(interactions, catalog, item, fates, train=train, valid_history=history, test_history=history | valid)


def replay(
    interactions: Interactions,
    quantile: float,
    valid_users: float,
    split_seed: int,
    test_users: Literal["trained", "with_history"],
) -> Split:
    """Global cut in time; some users are set aside for validation, and test users are those who go on after the cut.

    cut = the timestamp at place int(n * quantile) of the n rows in order of time. Of the users with rows before it,
    the share `valid_users`, drawn by `split_seed`, is for validation alone: the last of their rows before the cut whose
    item is in training is the target, those before it the history. Training: rows before the cut, of all other users.
    Test: every user with a row at or after the cut whose item is in training, less validation's; all rows with such
    items, on both sides of the cut, and the last is the target. So rows of test users before the cut are trained on and
    are history.

    test_users: `trained`, as published, leaves out users without training rows; `with_history` keeps those who have a
    history after the cut. Raises DataError without timestamps, and if training, validation or test would be empty.
    """
    _need_timestamps(interactions, "replay")
    user = interactions.user_id
    late = _from_place(interactions.time, int(len(user) * quantile))
    first: Mask = np.r_[True, user[1:] != user[:-1]]
    owner = np.cumsum(first) - 1
    # Rows are sorted by user, then time: a user has early rows exactly if the first row is early.
    early_user = ~late[first]
    valid_user = np.zeros(len(early_user), dtype=bool)
    candidates = np.flatnonzero(early_user)
    valid_user[candidates[_drawn(len(candidates), valid_users, split_seed)]] = True
    of_valid = valid_user[owner]
    train = ~late & ~of_valid
    if not train.any():
        raise _empty(interactions, "train", "rows before the cut, of users who are not validation's")
    if not valid_user.any():
        law = f"data.valid_users ({valid_users}) to be at least one of {len(candidates)} users before the cut"
        raise _empty(interactions, "valid", law)
    catalog, item, known = _encode(interactions.item_id, train)

    early_of_valid = ~late & of_valid
    from_end, left_of_user = _places_among(user, early_of_valid & known)
    valid = (from_end == 0) & (left_of_user >= 2)
    valid_history = from_end > 0

    later = late & ~of_valid & known
    goes_on = np.bincount(owner[later], minlength=len(valid_user)) > 0
    admitted = early_user if test_users == "trained" else np.ones_like(early_user)
    of_test = (goes_on & admitted)[owner] & known
    from_end, left_of_user = _places_among(user, of_test)
    test = (from_end == 0) & (left_of_user >= 2)
    test_history = from_end > 0
    fates = {
        TRAIN: train,
        HISTORY: valid_history | (test_history & late),
        VALID: valid,
        TEST: test,
        VALID_UNKNOWN_ITEM: early_of_valid & ~known,
        SHORT_VALID: early_of_valid & known & ~valid & ~valid_history,
        VALID_AFTER_CUT: late & of_valid,
        UNKNOWN_ITEM: late & ~of_valid & ~known,
        NEW_USER: later & ~admitted[owner],
        NO_HISTORY: of_test & late & ~test & ~test_history,
    }
    return _split(
        interactions, catalog, item, fates, train=train, valid_history=valid_history, test_history=test_history
    )


def _need_timestamps(interactions: Interactions, split: str) -> None:
    if not interactions.has_timestamps:
        raise DataError(
            f"data.split: got {split}; expected leave_one_out for {interactions.name}, whose rows have an order within"
            " the user but no timestamps."
        )


def _from_place(time: IntArray, place: int) -> Mask:
    """Rows at or after the time that stands at `place` of all times in ascending order."""
    place = min(place, len(time) - 1)
    late: Mask = time >= np.partition(time, place)[place]
    return late


def _encode(item_id: IntArray, train: Mask) -> tuple[IntArray, IntArray, Mask]:
    """The catalog of the training rows; of every row the item's place in it; and whether it has one (else: 0)."""
    catalog = distinct(item_id[train])
    item = np.searchsorted(catalog, item_id)
    item[item == len(catalog)] = 0
    known: Mask = catalog[item] == item_id
    item[~known] = 0
    return catalog, item, known


def _drawn(n: int, share: float, seed: int) -> IntArray:
    """round(share * n) of 0..n-1, by the raw words of PCG64: a stream that NumPy keeps from version to version."""
    words = np.random.PCG64(seed).random_raw(n)
    return np.argsort(words, kind="stable")[: round(share * n)]


def _places(user: IntArray) -> tuple[IntArray, IntArray]:
    """Of every row: rows of the same user after it, and rows of that user. Rows of a user lie together."""
    starts = np.flatnonzero(np.r_[True, user[1:] != user[:-1]]) if len(user) else np.empty(0, np.int64)
    counts = np.diff(np.r_[starts, len(user)])
    return np.repeat(starts + counts - 1, counts) - np.arange(len(user)), np.repeat(counts, counts)


def _places_among(user: IntArray, rows: Mask) -> tuple[IntArray, IntArray]:
    """`_places` as if there were no rows but these; (-1, 0) of the others."""
    from_end, rows_of_user = np.full(len(user), -1), np.zeros(len(user), dtype=np.int64)
    from_end[rows], rows_of_user[rows] = _places(user[rows])
    return from_end, rows_of_user


def _split(
    interactions: Interactions,
    catalog: IntArray,
    item: IntArray,
    fates: dict[str, Mask],
    *,
    train: Mask,
    valid_history: Mask,
    test_history: Mask,
) -> Split:
    """The tables of a split. The histories are rows that predict the target of the same user."""
    user = interactions.user_id
    training = _sequences(user, item, train)
    trained = training.lengths[training.lengths >= 2]
    if not len(trained):
        raise _empty(interactions, "train", "users with two training rows")
    empty = [part for part in (VALID, TEST) if not fates[part].any()]
    if empty:
        raise _empty(interactions, " and ".join(empty), "users with enough rows to hold out from")
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
        longest_distinct_history=int(np.diff(training.seen[1]).max()),
    )
    assert sum(rows for _, rows in statistics.rows) == len(user), "a row has no fate, or two"
    return Split(
        item_ids=catalog,
        train=training,
        valid=_holdout(user, item, valid_history, fates[VALID]),
        test=_holdout(user, item, test_history, fates[TEST]),
        statistics=statistics,
    )


def _sequences(user: IntArray, item: IntArray, rows: Mask) -> Sequences:
    users, counts = np.unique(user[rows], return_counts=True)
    return Sequences(item[rows].astype(np.int32), np.r_[0, np.cumsum(counts)], users)


def _holdout(user: IntArray, item: IntArray, history: Mask, target: Mask) -> Holdout:
    sequences = _sequences(user, item, history)
    assert np.array_equal(sequences.users, user[target]), "a target without its history"
    return Holdout(sequences, item[target].astype(np.int32))


def _empty(interactions: Interactions, part: str, law: str) -> DataError:
    return DataError(f"data.path: got {interactions.name}, whose split leaves {part} empty; expected {law}.")
