"""Training windows and evaluation histories against slow Python."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from seqrec.data.batches import Batch, Capacity, CausalBatches, DeviceSequences, history_windows
from seqrec.data.tables import Sequences
from seqrec.errors import InfeasibleError
from tests.waiting import nothing_waits


def sequences(*histories: list[int]) -> Sequences:
    return Sequences(
        np.array([item for history in histories for item in history], dtype=np.int32),
        np.cumsum([0, *map(len, histories)]).astype(np.int64),
        np.arange(100, 100 + len(histories), dtype=np.int64),
    )


HISTORIES = [[5], [1, 2], [9, 8, 7, 6, 5, 4, 3], [3, 3, 3], [], [4, 5, 6, 7], [2, 1], [0, 1, 0, 1, 0]]


def batches(**changes: object) -> CausalBatches:
    options = {"max_length": 4, "batch_size": 2, "drop_last": False, "seed": 3, "device": "cpu"} | changes
    return CausalBatches(sequences(*HISTORIES), **options)


def check(batch: Batch, max_length: int) -> None:
    """The batch's windows, rebuilt one by one."""
    expected = []
    for user in batch.users.tolist():
        window = HISTORIES[user][-max_length - 1 :]
        expected.append((window[:-1], window[1:]))
    windows, targets = batch.windows, batch.targets.tolist()
    assert windows.n_rows == len(expected)
    assert windows.longest == max(len(inputs) for inputs, _ in expected)
    for row, (inputs, outputs) in enumerate(expected):
        mine = slice(*windows.offsets[row : row + 2].tolist())
        assert windows.items[mine].tolist() == inputs
        assert targets[mine] == outputs
        assert windows.rows[mine].tolist() == batch.rows[mine].tolist() == [row] * len(inputs)
        assert windows.places[mine].tolist() == list(range(max_length))[max_length - len(inputs) :]
    assert windows.offsets[-1] == len(windows.items) == len(targets)
    kinds = {
        t.dtype for t in (windows.items, windows.rows, windows.places, windows.offsets, batch.targets, batch.users)
    }
    assert kinds == {torch.int64}
    assert batch.weights is batch.predicted is None


@pytest.mark.parametrize("max_length", [1, 2, 4, 9])
@pytest.mark.parametrize("batch_size", [1, 2, 6, 50])
def test_windows_are_the_most_recent_items_and_their_successors(max_length: int, batch_size: int) -> None:
    source = batches(max_length=max_length, batch_size=batch_size)
    epoch = list(source.epoch(0))
    assert len(epoch) == len(source)
    for batch in epoch:
        check(batch, max_length)
    users = sorted(user for batch in epoch for user in batch.users.tolist())
    assert users == [1, 2, 3, 5, 6, 7], "each user with two items once an epoch"


@pytest.mark.parametrize("room", [0, 1, 4, 5, 13])
@pytest.mark.parametrize("max_length", [1, 4, 9])
def test_a_batch_in_a_larger_shape_is_the_same_batch_with_spare_histories_behind_it(max_length: int, room: int) -> None:
    source = batches(max_length=max_length, batch_size=4)
    plan = source.plan(0)
    for index, exact in enumerate(source.epoch(0)):
        users = plan.users[4 * index : 4 * index + 4]
        n = len(exact.targets)
        rows = 4 + -(-room // max_length) + 1
        batch = source.gather(users, Capacity(n + room, n + room, rows, max_length))
        assert batch.weights is not None
        for name in ("items", "rows", "places"):
            assert torch.equal(getattr(batch.windows, name)[:n], getattr(exact.windows, name))
        assert torch.equal(batch.targets[:n], exact.targets)
        assert batch.weights[:n].tolist() == pytest.approx([1 / n] * n)
        assert not batch.weights[n:].any()
        # The spare part is made of whole histories too: nothing downstream needs to know of it.
        lengths = batch.windows.offsets.diff()
        assert batch.windows.n_rows == rows
        assert batch.windows.offsets[-1] == n + room
        assert lengths.min() >= 0
        assert lengths.max() <= max_length
        assert lengths[: len(exact.users)].tolist() == exact.windows.offsets.diff().tolist()
        assert not lengths[len(exact.users) : 4].any(), "the users that fill up the last batch have no items"
        assert torch.equal(batch.windows.rows, torch.repeat_interleave(torch.arange(rows), lengths))
        assert set(batch.windows.items.tolist()) | set(batch.targets.tolist()) <= set(range(10))


def test_an_epoch_depends_on_seed_and_number_alone() -> None:
    def order(source: CausalBatches, number: int) -> list[int]:
        return [user for batch in source.epoch(number) for user in batch.users.tolist()]

    source = batches()
    first = [order(source, number) for number in range(4)]
    torch.manual_seed(0)
    np.random.seed(0)
    assert [order(batches(batch_size=5), number) for number in (3, 2, 1, 0)] == first[::-1]
    assert len({tuple(one) for one in first}) > 1, "epochs are shuffled anew"
    assert order(batches(seed=4), 0) != first[0] or order(batches(seed=4), 1) != first[1]


def test_drop_last_leaves_out_the_short_batch() -> None:
    source = batches(batch_size=4, drop_last=True)
    assert [len(batch.users) for batch in source.epoch(0)] == [4]
    assert len(source) == 1
    assert [len(batch.users) for batch in batches(batch_size=4).epoch(0)] == [4, 2]
    assert len(batches(batch_size=3, drop_last=True)) == 2


def test_drop_last_never_leaves_an_epoch_without_a_step() -> None:
    with pytest.raises(InfeasibleError, match=r"train\.batch_size: got 7; expected <= 6, the users to train on"):
        batches(batch_size=7, drop_last=True)


def test_batches_do_not_share_memory_with_the_tables() -> None:
    table = sequences(*HISTORIES)
    source = CausalBatches(table, max_length=4, batch_size=2, drop_last=False, seed=0, device="cpu")
    before = table.items.copy()
    for batch in source.epoch(0):
        batch.windows.items.fill_(77)
        batch.targets.fill_(77)
    assert (table.items == before).all()
    for batch in source.epoch(0):
        check(batch, 4)


@pytest.mark.parametrize("length", [1, 3, 10])
def test_histories_are_their_last_items(length: int) -> None:
    history = DeviceSequences.of(sequences(*HISTORIES), "cpu")
    users = [2, 0, 7, 1]
    lengths = np.array([len(HISTORIES[user]) for user in users])
    windows = history_windows(history, torch.tensor(users), lengths, length)
    tails = [HISTORIES[user][-length:] for user in users]
    assert windows.items.tolist() == [item for tail in tails for item in tail]
    assert windows.places.tolist() == [place for tail in tails for place in range(length)[length - len(tail) :]]
    assert windows.offsets.tolist() == np.cumsum([0, *map(len, tails)]).tolist()
    assert windows.longest == max(map(len, tails))


@pytest.mark.gpu
def test_making_a_batch_never_waits_for_the_device() -> None:
    epoch = batches(device="cuda").epoch(0)
    made = [next(epoch)]
    with nothing_waits():
        made += list(epoch)
    for batch in made:
        check(batch, 4)
