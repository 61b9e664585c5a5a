"""Training windows and evaluation histories against slow Python."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from seqrec.data.batches import Batch, CausalBatches, DeviceSequences, history_batch
from seqrec.data.tables import Sequences
from seqrec.errors import InfeasibleError


def sequences(*histories: list[int]) -> Sequences:
    return Sequences(
        np.array([item for history in histories for item in history], dtype=np.int32),
        np.cumsum([0, *map(len, histories)]).astype(np.int64),
        np.arange(100, 100 + len(histories), dtype=np.int64),
    )


HISTORIES = [[5], [1, 2], [9, 8, 7, 6, 5, 4, 3], [3, 3, 3], [], [4, 5, 6, 7], [2, 1], [0, 1, 0, 1, 0]]


def batches(**changes: object) -> CausalBatches:
    options = {
        "max_length": 4,
        "batch_size": 2,
        "drop_last": False,
        "seed": 3,
        "trim": False,
        "device": "cpu",
    } | changes
    return CausalBatches(sequences(*HISTORIES), **options)  # type: ignore[arg-type]


def check(batch: Batch, max_length: int, trim: bool) -> None:
    """The batch's windows, rebuilt one by one."""
    expected = []
    for user in batch.users.tolist():
        window = HISTORIES[user][-max_length - 1 :]
        expected.append((window[:-1], window[1:]))
    T = max(len(inputs) for inputs, _ in expected) if trim else max_length
    assert batch.items.shape == batch.valid.shape == (len(expected), T)
    flat, targets, rows = batch.items.flatten()[batch.positions], batch.targets.tolist(), batch.rows.tolist()
    for row, (inputs, outputs) in enumerate(expected):
        pads = T - len(inputs)
        assert batch.valid[row].tolist() == [False] * pads + [True] * len(inputs)
        assert batch.items[row].tolist() == [0] * pads + inputs
        mine = [i for i, owner in enumerate(rows) if owner == row]
        assert flat[mine].tolist() == inputs
        assert [targets[i] for i in mine] == outputs
    assert batch.positions.tolist() == batch.valid.flatten().nonzero().squeeze(1).tolist()
    kinds = {tensor.dtype for tensor in (batch.items, batch.positions, batch.targets, batch.users, batch.rows)}
    assert kinds == {torch.int64}


@pytest.mark.parametrize("trim", [False, True])
@pytest.mark.parametrize("max_length", [1, 2, 4, 9])
@pytest.mark.parametrize("batch_size", [1, 2, 6, 50])
def test_windows_are_the_most_recent_items_and_their_successors(max_length: int, batch_size: int, trim: bool) -> None:
    source = batches(max_length=max_length, batch_size=batch_size, trim=trim)
    epoch = list(source.epoch(0))
    assert len(epoch) == len(source)
    for batch in epoch:
        check(batch, max_length, trim)
    users = sorted(user for batch in epoch for user in batch.users.tolist())
    assert users == [1, 2, 3, 5, 6, 7], "each user with two items once an epoch"


def test_an_epoch_depends_on_seed_and_number_alone() -> None:
    def order(source: CausalBatches, number: int) -> list[int]:
        return [user for batch in source.epoch(number) for user in batch.users.tolist()]

    source = batches()
    first = [order(source, number) for number in range(4)]
    torch.manual_seed(0)
    np.random.seed(0)
    assert [order(batches(batch_size=5, trim=True), number) for number in (3, 2, 1, 0)] == first[::-1]
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
    source = CausalBatches(table, max_length=4, batch_size=2, drop_last=False, seed=0, trim=True, device="cpu")
    before = table.items.copy()
    for batch in source.epoch(0):
        batch.items.fill_(77)
        batch.targets.fill_(77)
    assert (table.items == before).all()
    for batch in source.epoch(0):
        check(batch, 4, True)


@pytest.mark.parametrize("length", [1, 3, 10])
def test_history_batch_is_the_last_items_left_padded(length: int) -> None:
    history = DeviceSequences.of(sequences(*HISTORIES), "cpu")
    rows = torch.tensor([2, 0, 7, 1])
    items, valid = history_batch(history, rows, length)
    for row, user in enumerate(rows.tolist()):
        tail = HISTORIES[user][-length:]
        assert items[row].tolist() == [0] * (length - len(tail)) + tail
        assert valid[row].tolist() == [False] * (length - len(tail)) + [True] * len(tail)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
def test_making_a_batch_never_waits_for_the_device() -> None:
    epoch = batches(device="cuda", trim=True).epoch(0)
    made = [next(epoch)]
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        made += list(epoch)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    for batch in made:
        check(batch, 4, True)
