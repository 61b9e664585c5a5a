"""Tables refuse what would otherwise fail late, on the device, or give wrong numbers in silence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from seqrec.config import parse
from seqrec.data import splits
from seqrec.data.tables import Holdout, Interactions, Sequences, Split, distinct
from seqrec.errors import DataError, InfeasibleError
from seqrec.train import train


def table(**changes: Any) -> Interactions:
    columns = {"user_id": [1, 1, 1, 4, 4, 4], "item_id": [9, 5, 9, 5, 5, 7], "time": [0, 1, 2, 0, 3, 3]}
    arrays = {name: np.array(values) for name, values in (columns | changes).items() if name in columns}
    return Interactions(**arrays, has_timestamps=changes.get("has_timestamps", True), name="hand", digest="0" * 64)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"user_id": [1, 4, 1, 4, 4, 4]},
            "hand: rows: got them out of order; expected them sorted by user",
        ),
        ({"time": [0, 2, 1, 0, 3, 3]}, "hand: rows: got them out of order"),
        ({"item_id": [9, 5, 9, 5, -2, 7]}, "hand: item_id: got -2; expected ids >= 0."),
        ({"user_id": [-1, 1, 1, 4, 4, 4]}, "hand: user_id: got -1; expected ids >= 0."),
        ({"time": [0, 1, float("nan"), 0, 3, 3]}, "hand: time: got 'float64'; expected integers."),
        ({"time": [0, 1]}, "hand: time: got (2,); expected one value a row"),
        ({"has_timestamps": False}, "hand: order: got 3; expected a place of its own for each row of user 4."),
        ({name: np.empty(0, np.int64) for name in ("user_id", "item_id", "time")}, "hand: user_id: got (0,); expected"),
    ],
)
def test_interactions_that_are_not_what_they_say(changes: dict[str, Any], told: str) -> None:
    table()
    with pytest.raises(DataError) as refusal:
        table(**changes)
    assert str(refusal.value).startswith(told)


@pytest.mark.parametrize(
    ("items", "offsets", "users"),
    [
        ([1, 2, 3], [0, 1], [1]),
        ([1, 2, 3], [1, 3], [1]),
        ([1, 2, 3], [0, 3], [1, 2]),
        ([1, 2, 3], [0, 2, 1, 3], [1, 2, 3]),
        ([1, 2, 3], [], []),
    ],
)
def test_offsets_that_do_not_cut_the_items(items: list[int], offsets: list[int], users: list[int]) -> None:
    arrays = (np.array(values, dtype=np.int64) for values in (items, offsets, users))
    with pytest.raises(DataError, match=rf"^offsets: got .*; expected 0 first, .* each of {len(users)} users"):
        Sequences(*arrays)


@pytest.fixture
def split() -> Split:
    """6 users of 4 items."""
    user, place = np.divmod(np.arange(24), 4)
    return splits.leave_one_out(Interactions(user, (user + place) % 5, place, False, "hand", "0" * 64))


def spoilt(sequences: Sequences, place: int, item: int) -> Sequences:
    items = sequences.items.copy()
    items[place] = item
    return replace(sequences, items=items)


def test_an_item_that_the_catalog_does_not_have(split: Split) -> None:
    for item in (5, -1):
        law = rf"got {item}; expected ids from 0 to 4, the catalog's\."
        with pytest.raises(DataError, match=f"hand: train items: {law}"):
            replace(split, train=spoilt(split.train, 3, item))
        for part in ("valid", "test"):
            holdout: Holdout = getattr(split, part)
            with pytest.raises(DataError, match=f"hand: {part} items: {law}"):
                replace(split, **{part: replace(holdout, history=spoilt(holdout.history, 2, item))})
            targets = np.where(holdout.targets == 1, item, holdout.targets)
            with pytest.raises(DataError, match=f"hand: {part} targets: {law}"):
                replace(split, **{part: replace(holdout, targets=targets)})


def test_a_part_without_users(split: Split) -> None:
    nobody = Sequences(np.empty(0, np.int32), np.zeros(1, np.int64), np.empty(0, np.int64))
    with pytest.raises(DataError, match=r"hand: train: got 'no items'; expected at least one user with a history\."):
        replace(split, train=nobody)
    with pytest.raises(DataError, match=r"hand: valid: got 'no items'"):
        replace(split, valid=Holdout(nobody, np.empty(0, np.int32)))


def test_a_target_for_each_history(split: Split) -> None:
    with pytest.raises(DataError, match=r"hand: test targets: got 5; expected one for each of 6 histories"):
        replace(split, test=replace(split.test, targets=split.test.targets[:5]))
    gap = replace(split.test.history, offsets=split.test.history.offsets.copy())
    gap.offsets[1] = 0
    with pytest.raises(DataError, match=r"hand: test targets: got 6; expected .* none of which is empty"):
        replace(split, test=replace(split.test, history=gap))
    with pytest.raises(DataError, match=r"hand: valid targets: got 'float64'; expected integers"):
        replace(split, valid=replace(split.valid, targets=split.valid.targets.astype(float)))


def test_statistics_of_another_split(split: Split) -> None:
    with pytest.raises(DataError, match=r"hand: statistics\.n_items: got 7; expected 5"):
        replace(split, statistics=replace(split.statistics, n_items=7))


def test_fewer_users_than_a_batch(split: Split) -> None:
    """Refused where the batch would be dropped, and a smaller batch where not."""
    tree: dict[str, Any] = {
        "data": {"path": "hand"},
        "model": {"name": "sasrec", "max_length": 3, "hidden_size": 4, "n_blocks": 1},
        "loss": {"name": "ce"},
        "train": {"batch_size": 7, "epochs": 1, "drop_last": True},
    }
    with pytest.raises(InfeasibleError, match=r"train\.batch_size: got 7; expected <= 6, the users of hand"):
        train(parse(tree), split=split, device="cpu")
    tree["train"]["drop_last"] = False
    assert train(parse(tree), split=split, device="cpu").epochs == 1


@pytest.mark.parametrize("values", [[], [3], [2, 2, 2], [5, -1, 5, 2**62, 0, -1]])
def test_distinct_is_unique(values: list[int]) -> None:
    array = np.array(values, dtype=np.int64)
    assert np.array_equal(distinct(array), np.unique(array))
