"""Masked batches against slow Python, and the masker's laws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from seqrec.data.batches import Batch, Capacity
from seqrec.data.cloze import ClozeBatches
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


def batches(histories: list[list[int]] = HISTORIES, **changes: Any) -> ClozeBatches:
    options = {
        "max_length": 4,
        "batch_size": 2,
        "drop_last": False,
        "seed": 3,
        "device": "cpu",
        "mask_probability": 0.4,
    }
    return ClozeBatches(sequences(*histories), **(options | changes))


def check(batch: Batch, max_length: int, histories: list[list[int]] = HISTORIES) -> None:
    """The batch's windows, rebuilt one by one, and the masker's laws for each."""
    windows, predicted = batch.windows, batch.predicted
    assert windows.masked is not None
    assert predicted is not None
    assert predicted.tolist() == windows.masked.nonzero().flatten().tolist()
    assert batch.targets.tolist() == windows.items[predicted].tolist()
    assert batch.rows.tolist() == windows.rows[predicted].tolist()
    assert windows.n_rows == len(batch.users)
    for row, user in enumerate(batch.users.tolist()):
        mine = slice(*windows.offsets[row : row + 2].tolist())
        window, masked = histories[user][-max_length:], windows.masked[mine]
        assert windows.items[mine].tolist() == window, "no shift: the last item too"
        assert windows.rows[mine].tolist() == [row] * len(window)
        assert windows.places[mine].tolist() == list(range(max_length))[max_length - len(window) :]
        assert masked.any(), "every window gives a target"
        assert len(window) == 1 or not masked.all(), "every window shows an item"
    kinds = {t.dtype for t in (windows.items, windows.rows, windows.places, batch.targets, predicted)}
    assert kinds == {torch.int64}
    assert batch.weights is None


@pytest.mark.parametrize("mask_probability", [0.01, 0.4, 0.99])
@pytest.mark.parametrize("max_length", [1, 2, 4, 9])
@pytest.mark.parametrize("batch_size", [1, 2, 6, 50])
def test_masked_items_are_the_targets(max_length: int, batch_size: int, mask_probability: float) -> None:
    source = batches(max_length=max_length, batch_size=batch_size, mask_probability=mask_probability)
    for number in range(5):
        plan, epoch = source.plan(number), list(source.epoch(number))
        assert len(epoch) == len(source)
        for batch, size in zip(epoch, plan.sizes, strict=True):
            check(batch, max_length)
            positions, longest = len(batch.windows.items), batch.windows.longest
            assert size == Capacity(positions, len(batch.targets), len(batch.users), longest)
        users = sorted(user for batch in epoch for user in batch.users.tolist())
        assert users == [1, 2, 3, 5, 6, 7], "each user with two items once an epoch"


def masks(source: ClozeBatches, epochs: int, length: int) -> torch.Tensor:
    """(epochs * users, length) of a set whose windows are all of one length."""
    found = []
    for number in range(epochs):
        for batch in source.epoch(number):
            assert batch.windows.masked is not None
            found.append(batch.windows.masked.view(-1, length))
    return torch.cat(found)


def test_each_place_is_masked_with_the_probability() -> None:
    masked = masks(batches([[0] * 30] * 200, max_length=20, batch_size=64, mask_probability=0.15), 20, 20)
    assert masked.shape == (4000, 20)
    # Corrections are rare at this length: 0.85**20 = 4 % of the windows, all at the last place.
    assert masked[:, :-1].double().mean(0).tolist() == pytest.approx([0.15] * 19, abs=4 * (0.15 * 0.85 / 4000) ** 0.5)
    assert float(masked[:, -1].double().mean()) == pytest.approx(0.15 + 0.85**20, abs=0.025)
    # Positions are independent: the number of masks is as spread as a binomial's.
    number = masked[:, :-1].sum(1).double()
    assert float(number.var()) == pytest.approx(19 * 0.15 * 0.85, rel=0.1)


@pytest.mark.parametrize("length", [1, 2, 3, 7])
def test_a_window_without_masks_has_its_last_item_masked(length: int) -> None:
    masked = masks(batches([[0] * 9] * 20, max_length=length, mask_probability=1e-9), 2, length)
    assert torch.equal(masked, (torch.arange(length) == length - 1).expand(40, length))


@pytest.mark.parametrize("length", [1, 2, 3, 7])
def test_a_window_of_masks_only_shows_its_last_but_one(length: int) -> None:
    masked = masks(batches([[0] * 9] * 20, max_length=length, mask_probability=1 - 1e-9), 2, length)
    assert torch.equal(masked, ((torch.arange(length) != length - 2) | (length == 1)).expand(40, length))


def test_an_epoch_depends_on_seed_and_number_alone() -> None:
    def drawn(source: ClozeBatches, number: int) -> dict[int, list[int]]:
        """The masked items of each user."""
        users: dict[int, list[int]] = {}
        for batch in source.epoch(number):
            for row, target in zip(batch.rows.tolist(), batch.targets.tolist(), strict=True):
                users.setdefault(int(batch.users[row]), []).append(target)
        return users

    source = batches()
    first = [drawn(source, number) for number in range(4)]
    torch.manual_seed(0)
    assert [drawn(batches(batch_size=5), number) for number in (3, 2, 1, 0)] == first[::-1]
    assert all(one != first[0] for one in first[1:]), "epochs are masked anew"
    assert drawn(batches(seed=4), 0) != first[0]


@pytest.mark.parametrize("room", [0, 1, 4, 5, 13])
@pytest.mark.parametrize("max_length", [1, 4, 9])
def test_a_batch_in_a_larger_shape_is_the_same_batch_with_spare_histories_behind_it(max_length: int, room: int) -> None:
    source = batches(max_length=max_length, batch_size=4)
    plan = source.plan(0)
    for index, exact in enumerate(source.epoch(0)):
        users = plan.users[4 * index : 4 * index + 4]
        n, m = len(exact.windows.items), len(exact.targets)
        rows = 4 + -(-room // max_length) + 1
        batch = source.gather(users, Capacity(n + room, m + room, rows, max_length))
        assert batch.weights is not None
        assert batch.predicted is not None
        assert exact.predicted is not None
        for name in ("items", "rows", "places", "masked"):
            assert torch.equal(getattr(batch.windows, name)[:n], getattr(exact.windows, name))
        assert torch.equal(batch.predicted[:m], exact.predicted)
        assert torch.equal(batch.targets[:m], exact.targets)
        assert batch.weights.dtype == torch.float32
        assert batch.weights[:m].tolist() == pytest.approx([1 / m] * m)
        assert not batch.weights[m:].any()
        spare = batch.predicted[m:]
        assert len(spare) == room
        assert len(set(spare.tolist())) == room, "spare targets never share a row"
        assert room == 0 or 0 <= int(spare.min()) <= int(spare.max()) < n + room
        assert torch.equal(batch.targets, batch.windows.items[batch.predicted])
        lengths = batch.windows.offsets.diff()
        assert batch.windows.n_rows == rows
        assert batch.windows.offsets[-1] == n + room
        assert 0 <= int(lengths.min()) <= int(lengths.max()) <= max_length


def test_planning_writes_into_the_tensors_that_batches_are_made_of() -> None:
    """A captured step holds their addresses."""
    source = batches()

    def addresses() -> list[int]:
        held = [source._masked, *vars(source.sequences).values()]
        return [tensor.data_ptr() for tensor in held]

    before, masked = addresses(), source._masked.clone()
    source.plan(0)
    source.plan(1)
    assert addresses() == before
    assert not torch.equal(source._masked, masked)


def test_drop_last_never_leaves_an_epoch_without_a_step() -> None:
    assert [len(batch.users) for batch in batches(batch_size=4, drop_last=True).epoch(0)] == [4]
    with pytest.raises(InfeasibleError, match=r"train\.batch_size: got 7; expected <= 6, the users to train on"):
        batches(batch_size=7, drop_last=True)


@pytest.mark.gpu
def test_making_a_batch_never_waits_for_the_device() -> None:
    source = batches(device="cuda")
    plan = source.plan(0)
    with nothing_waits():
        made = [source.gather(plan.users[2 * i : 2 * i + size.rows], size) for i, size in enumerate(plan.sizes)]
        source.gather(plan.users[:2], Capacity(20, 12, 6, 4))
    for batch in made:
        check(batch, 4)


@pytest.mark.gpu
def test_a_captured_gather_reads_the_epoch_planned_last() -> None:
    source, size = batches(device="cuda"), Capacity(20, 12, 6, 4)
    users = source.plan(0).users[:2].clone()
    source.gather(users, size)  # whatever the first call of a kernel sets up
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = source.gather(users, size)
    for number in range(1, 4):
        users.copy_(source.plan(number).users[:2])
        graph.replay()
        expected = source.gather(users, size)
        assert torch.equal(captured.targets, expected.targets)
        assert captured.predicted is not None
        assert expected.predicted is not None
        assert torch.equal(captured.predicted, expected.predicted)
