"""RePlay's split against a table worked out by hand, and against itself written slowly in plain Python."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pytest
from hypothesis import event, given, settings, strategies as st
from numpy.typing import NDArray

from seqrec.data import splits
from seqrec.data.tables import Holdout, Interactions, Sequences, Split
from seqrec.errors import DataError

Rows = list[tuple[int, int, int]]
Who = Literal["trained", "with_history"]


def interactions(rows: Rows, *, has_timestamps: bool = True) -> Interactions:
    """(user, item, time) rows, sorted as `interactions.read` does."""
    user, item, time = (np.array(column, dtype=np.int64) for column in zip(*rows, strict=True))
    order = np.lexsort((time, user))
    return Interactions(user[order], item[order], time[order], has_timestamps, "hand", "0" * 64)


def as_lists(sequences: Sequences, split: Split) -> dict[int, list[int]]:
    """The file's user id -> the file's item ids."""
    pieces = np.split(split.item_ids[sequences.items], sequences.offsets[1:-1])
    return {int(user): piece.tolist() for user, piece in zip(sequences.users, pieces, strict=True)}


def evaluated(holdout: Holdout, split: Split) -> dict[int, tuple[list[int], int]]:
    """The file's user id -> (history, target)."""
    targets = split.item_ids[holdout.targets].tolist()
    histories = as_lists(holdout.history, split)
    return {user: (items, target) for (user, items), target in zip(histories.items(), targets, strict=True)}


# ------------------------------------------------------------------------------------------------------------- by hand

HAND = [
    # 20 rows; in order of time, places 11, 12 and 13 (the next would be 14) hold 50, which is therefore the cut
    (1, 11, 10), (1, 12, 20), (1, 13, 30),
    # trained and tested: the history spans the cut, item 99 is unknown to training
    (2, 12, 11), (2, 14, 12), (2, 99, 50), (2, 11, 55), (2, 13, 60),
    # trained, later rows of an unknown item alone: not tested, or the target would be a training row
    (3, 11, 13), (3, 12, 14), (3, 98, 70),
    # validation (drawn below): 97 is nobody else's, what lies after the cut is dropped
    (4, 11, 15), (4, 97, 16), (4, 12, 17), (4, 13, 18), (4, 11, 50),
    # new users
    (5, 11, 50), (5, 12, 80), (5, 97, 81),
    (6, 14, 90),
]  # fmt: skip


@pytest.fixture
def user_4_validates(monkeypatch: pytest.MonkeyPatch) -> None:
    """The candidates are users 1 to 4."""

    def drawn(n: int, share: float, seed: int) -> NDArray[np.int64]:
        assert (n, share, seed) == (4, 0.25, 9)
        return np.array([3])

    monkeypatch.setattr(splits, "_drawn", drawn)


@pytest.mark.usefixtures("user_4_validates")
@pytest.mark.parametrize("quantile", [0.55, 0.6, 0.69])
@pytest.mark.parametrize("who", ["trained", "with_history"])
def test_by_hand(who: Who, quantile: float) -> None:
    split = splits.replay(interactions(HAND), quantile, 0.25, 9, who)
    assert split.item_ids.tolist() == [11, 12, 13, 14], "the catalog is what training rows show"
    assert as_lists(split.train, split) == {1: [11, 12, 13], 2: [12, 14], 3: [11, 12]}
    assert evaluated(split.valid, split) == {4: ([11, 12], 13)}
    tested = {2: ([12, 14, 11], 13)} | ({5: ([11], 12)} if who == "with_history" else {})
    assert evaluated(split.test, split) == tested
    fates = {
        "train": 7,
        "history": 3,
        "valid": 1,
        "test": 1,
        splits.VALID_UNKNOWN_ITEM: 1,
        splits.VALID_AFTER_CUT: 1,
        splits.UNKNOWN_ITEM: 3,
        splits.NEW_USER: 3,
    }
    if who == "with_history":
        del fates[splits.NEW_USER]
        fates |= {"history": 4, "test": 2, splits.NO_HISTORY: 1}
    assert dict(split.statistics.rows) == fates
    assert sum(fates.values()) == len(HAND)
    assert (split.statistics.n_users, split.statistics.n_train_users, split.statistics.n_items) == (6, 3, 4)


# ------------------------------------------------------------------------------------------------------ the slow twin


@dataclass
class Slow:
    """The same split, one row at a time."""

    train: dict[int, list[int]] = field(default_factory=dict)
    valid: dict[int, tuple[list[int], int]] = field(default_factory=dict)
    test: dict[int, tuple[list[int], int]] = field(default_factory=dict)
    fates: Counter[str] = field(default_factory=Counter)


def slow_replay(table: Interactions, quantile: float, valid_users: float, seed: int, who: Who) -> Slow:
    rows = list(zip(table.user_id.tolist(), table.item_id.tolist(), table.time.tolist(), strict=True))
    cut = sorted(time for _, _, time in rows)[int(len(rows) * quantile)]
    early_users = sorted({user for user, _, time in rows if time < cut})
    words = np.random.PCG64(seed).random_raw(len(early_users)).tolist()
    by_word = [user for _, user in sorted(zip(words, early_users, strict=True))]
    validation = set(by_word[: round(valid_users * len(early_users))])
    catalog = {item for user, item, time in rows if time < cut and user not in validation}
    done = Slow()
    for user in sorted({user for user, _, _ in rows}):
        mine = [(item, time) for owner, item, time in rows if owner == user]
        early = [item for item, time in mine if time < cut]
        known_early = [item for item in early if item in catalog]
        late = [item for item, time in mine if time >= cut]
        known_late = [item for item in late if item in catalog]
        if user in validation:
            done.fates[splits.VALID_AFTER_CUT] += len(late)
            done.fates[splits.VALID_UNKNOWN_ITEM] += len(early) - len(known_early)
            if len(known_early) >= 2:
                done.valid[user] = known_early[:-1], known_early[-1]
                done.fates["valid"] += 1
                done.fates["history"] += len(known_early) - 1
            else:
                done.fates[splits.SHORT_VALID] += len(known_early)
            continue
        if early:
            done.train[user] = early
            done.fates["train"] += len(early)
        done.fates[splits.UNKNOWN_ITEM] += len(late) - len(known_late)
        if not known_late:
            continue
        if who == "trained" and user not in done.train:
            done.fates[splits.NEW_USER] += len(known_late)
        elif len(known_early + known_late) >= 2:
            done.test[user] = (known_early + known_late)[:-1], known_late[-1]
            done.fates["test"] += 1
            done.fates["history"] += len(known_late) - 1
        else:
            done.fates[splits.NO_HISTORY] += 1
    return done


@st.composite
def some_rows(draw: st.DrawFn) -> Rows:
    """Tables with ties in time, repeats and users on both sides of a cut: few are refused."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = draw(st.integers(4, 12)), draw(st.integers(1, 7)), draw(st.integers(2, 14))
    rows = rng.integers(0, shape, size=(draw(st.integers(12, 120)), 3))
    return [(int(user), int(item), int(time)) for user, item, time in rows]


@settings(max_examples=500, deadline=None)
@given(
    some_rows(),
    st.floats(0.2, 0.95),
    st.sampled_from([0.1, 0.25, 0.4]),
    st.integers(0, 5),
    st.sampled_from(["trained", "with_history"]),
)
def test_it_is_its_slow_twin(rows: Rows, quantile: float, valid_users: float, seed: int, who: Who) -> None:
    table = interactions(rows)
    slow = slow_replay(table, quantile, valid_users, seed, who)
    trainable = any(len(items) >= 2 for items in slow.train.values())
    empty = [part for part, kept in (("train", trainable), ("valid", slow.valid), ("test", slow.test)) if not kept]
    event("refused" if empty else "split")
    if empty:
        with pytest.raises(DataError, match=f"got hand, whose split leaves .*({'|'.join(empty)}).* empty; exp"):
            splits.replay(table, quantile, valid_users, seed, who)
        return
    split = splits.replay(table, quantile, valid_users, seed, who)
    assert as_lists(split.train, split) == slow.train
    assert evaluated(split.valid, split) == slow.valid
    assert evaluated(split.test, split) == slow.test
    fates = dict(split.statistics.rows)
    assert fates == {fate: n for fate, n in slow.fates.items() if n}
    assert sum(fates.values()) == len(rows), "every row has one fate"


def test_the_twin_is_not_only_refused() -> None:
    """The example that keeps the test above honest: all fates occur, under both rules."""
    rng = np.random.default_rng(3)
    rows = [(int(u), int(i), int(t)) for u, i, t in rng.integers((0, 0, 0), (60, 90, 40), size=(400, 3))]
    rows += [(100, 1, 39), (100, 2, 39), (101, 1, 39), (102, 200, 1), (103, 200, 1), (104, 3, 1), (105, 3, 1)]
    table, seen = interactions(rows), set()
    for who in ("trained", "with_history"):
        for seed in range(4):
            split = splits.replay(table, 0.8, 0.4, seed, who)
            slow = slow_replay(table, 0.8, 0.4, seed, who)
            assert evaluated(split.test, split) == slow.test
            assert evaluated(split.valid, split) == slow.valid
            seen |= {fate for fate, n in split.statistics.rows if n}
    assert seen == {
        "train", "history", "valid", "test", splits.VALID_UNKNOWN_ITEM, splits.SHORT_VALID, splits.VALID_AFTER_CUT,
        splits.UNKNOWN_ITEM, splits.NEW_USER, splits.NO_HISTORY,
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------------ laws, refusals


def test_the_seed_draws_the_validation_users_and_their_number_is_the_share() -> None:
    rows = [(user, item, item) for user in range(200) for item in range(5)] + [(user, 1, 90) for user in range(99)]
    drawn = []
    for seed in (42, 42, 43):
        split = splits.replay(interactions(rows), 0.92, 0.05, seed, "trained")
        assert len(split.valid.targets) == 10
        assert not set(split.valid.history.users.tolist()) & set(split.train.users.tolist())
        drawn.append(split.valid.history.users.tolist())
    assert drawn[0] == drawn[1] != drawn[2]
    # The stream is NumPy's promise; this is what it gives. Another draw would be another data set under the same key.
    assert drawn[0] == [27, 51, 68, 74, 84, 124, 135, 149, 163, 175]


def test_simultaneous_rows_fall_in_the_order_of_the_file() -> None:
    rows = [(1, item, time) for item, time in ((5, 1), (6, 1), (7, 9), (5, 9), (6, 9))]
    rows += [(user, item, 1) for user in (2, 3) for item in (6, 7, 5)]
    split = splits.replay(interactions(rows), 0.8, 0.4, 0, "trained")
    assert evaluated(split.test, split) == {1: ([5, 6, 7, 5], 6)}
    assert list(evaluated(split.valid, split).values()) == [([6, 7], 5)]


def test_it_needs_timestamps() -> None:
    with pytest.raises(DataError, match=r"data\.split: got replay; expected leave_one_out for hand"):
        splits.replay(interactions(HAND, has_timestamps=False), 0.6, 0.25, 9, "trained")


@pytest.mark.parametrize(
    ("rows", "share", "part"),
    [
        ([(1, 1, 5), (2, 1, 5), (2, 2, 5)], 0.5, "train"),
        ([(1, 1, 1), (2, 1, 2), (3, 1, 9)], 0.5, "train"),
        ([(1, 1, 1), (1, 2, 2), (2, 2, 2), (1, 1, 9)], 0.1, "valid"),
        ([(1, 1, 1), (1, 2, 2), (2, 1, 1), (2, 2, 2), (3, 1, 9)], 0.5, "test"),
        # seed 0 draws the second of two users
        ([(1, 1, 1), (1, 2, 2), (2, 1, 1), (3, 1, 9)], 0.5, "valid and test"),
    ],
)
def test_a_part_that_is_left_empty_is_refused(rows: Rows, share: float, part: str) -> None:
    with pytest.raises(DataError, match=f"data.path: got hand, whose split leaves {part} empty; expected "):
        splits.replay(interactions(rows), 0.9, share, 0, "trained")


def test_a_share_below_one_user_is_refused_in_its_own_words() -> None:
    law = r"leaves valid empty; expected data\.valid_users \(0\.1\) to be at least one of 4 users before the cut\."
    with pytest.raises(DataError, match=law):
        splits.replay(interactions(HAND), 0.6, 0.1, 9, "trained")
