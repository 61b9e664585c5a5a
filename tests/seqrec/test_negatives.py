"""Negatives: the distribution is exact, histories are respected, the seed decides."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch

from seqrec.data import negatives
from seqrec.data.negatives import NegativeSampler, NegativesRequest
from seqrec.data.tables import Sequences
from seqrec.errors import ConfigError, InfeasibleError

V = 7
HISTORIES = ([0, 1, 1, 4], [6], [2, 5, 3], [0, 6, 6])
COUNTS = np.bincount(np.concatenate(HISTORIES), minlength=V)


def train() -> Sequences:
    lengths = [len(history) for history in HISTORIES]
    return Sequences(
        np.concatenate(HISTORIES).astype(np.int32), np.concatenate([[0], np.cumsum(lengths)]), np.arange(len(HISTORIES))
    )


def sampler(**keys: object) -> NegativeSampler:
    return NegativeSampler(NegativesRequest(**keys), train(), V, COUNTS)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw_for_user(user: int, times: int, seed: int = 0, **keys: object) -> torch.Tensor:
    """(times, n) draws for positions of one user."""
    rows = torch.zeros(times, dtype=torch.int64)
    return sampler(scope="position", **keys).draw(rows, rows, torch.tensor([user]), seeded(seed)).ids


def chi_square(observed: Counter, expected: dict) -> float:
    assert set(observed) <= set(expected), "an outcome of probability 0 was drawn"
    return sum((observed[key] - value) ** 2 / value for key, value in expected.items())


@pytest.mark.parametrize("dense_share", [0.0, 2.0], ids=["random keys", "redraw"])
@pytest.mark.parametrize(("user", "n"), [(0, 1), (0, 2), (0, 3), (1, 3), (2, 4)])
def test_without_replacement_every_eligible_subset_is_equally_likely(
    monkeypatch: pytest.MonkeyPatch, dense_share: float, user: int, n: int
) -> None:
    monkeypatch.setattr(negatives, "_DENSE_SHARE", dense_share)
    times = 20_000
    ids = draw_for_user(user, times, n=n, with_replacement=False, exclude_history=True)
    subsets = list(combinations(sorted(set(range(V)) - set(HISTORIES[user])), n))
    observed = Counter(tuple(sorted(row)) for row in ids.tolist())
    freedom = max(1, len(subsets) - 1)
    assert chi_square(observed, dict.fromkeys(subsets, times / len(subsets))) < freedom + 4 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("exclude_history", [False, True])
def test_with_replacement_every_eligible_item_is_equally_likely(exclude_history: bool) -> None:
    ids = draw_for_user(3, 5_000, n=4, with_replacement=True, exclude_history=exclude_history)
    items = set(range(V)) - (set(HISTORIES[3]) if exclude_history else set())
    expected = dict.fromkeys(items, ids.numel() / len(items))
    assert chi_square(Counter(ids.flatten().tolist()), expected) < len(items) - 1 + 4 * (2 * len(items)) ** 0.5


def test_popularity_follows_the_counts_and_never_draws_an_unseen_item() -> None:
    counts = np.array([0, 3, 0, 1, 6, 0, 0])
    drawn = NegativeSampler(NegativesRequest(4, "position", "popularity"), train(), V, counts).draw(
        torch.zeros(5_000), torch.zeros(5_000, dtype=torch.int64), torch.tensor([0]), seeded()
    )
    expected = {item: 20_000 * count / 10 for item, count in enumerate(counts) if count}
    assert chi_square(Counter(drawn.ids.flatten().tolist()), expected) < 2 + 4 * 2
    assert drawn.log_q is not None
    np.testing.assert_allclose(drawn.log_q.exp().numpy(), counts / 10, atol=1e-7)


@pytest.mark.parametrize("scope", ["position", "user"])
@pytest.mark.parametrize("dense_share", [0.0, 2.0], ids=["random keys", "redraw"])
def test_a_draw_is_distinct_and_avoids_its_own_users_history(
    monkeypatch: pytest.MonkeyPatch, dense_share: float, scope: str
) -> None:
    monkeypatch.setattr(negatives, "_DENSE_SHARE", dense_share)
    # Tiles of two rows, so that a draw crosses their borders.
    monkeypatch.setattr(negatives, "DRAW_ELEMENTS", 2 * V)
    users = torch.tensor([2, 0, 3])
    rows = torch.tensor([0, 0, 1, 1, 1, 2, 2])
    for seed in range(50):
        drawn = sampler(n=4, scope=scope, with_replacement=False, exclude_history=True).draw(
            rows, rows, users, seeded(seed)
        )
        owners = rows if scope == "position" else torch.arange(3)
        assert drawn.ids.shape == (len(owners), 4)
        for owner, ids in zip(owners.tolist(), drawn.ids.tolist(), strict=True):
            assert len(set(ids)) == 4
            assert set(ids) <= set(range(V)) - set(HISTORIES[int(users[owner])])
        if scope == "user":
            assert drawn.group is not None
            assert drawn.group.tolist() == rows.tolist()


def test_all_eligible_items_can_be_asked_for_and_not_one_more() -> None:
    ids = draw_for_user(0, 3, n=4, with_replacement=False, exclude_history=True)
    assert [sorted(row) for row in ids.tolist()] == [[2, 3, 5, 6]] * 3
    whole = draw_for_user(0, 3, n=V, with_replacement=False, exclude_history=False)
    assert [sorted(row) for row in whole.tolist()] == [list(range(V))] * 3
    with pytest.raises(InfeasibleError, match=r"loss\.n_negatives: got 5; expected at most 4 \("):
        sampler(n=5, scope="user", with_replacement=False, exclude_history=True)
    with pytest.raises(InfeasibleError, match=r"got 8; expected at most 7 \("):
        sampler(n=8, scope="batch", with_replacement=False, exclude_history=False)


def test_a_history_that_covers_the_catalog_is_refused_even_with_replacement() -> None:
    everything = Sequences(np.arange(3, dtype=np.int32), np.array([0, 3]), np.array([9]))
    with pytest.raises(InfeasibleError, match="at most 0"):
        NegativeSampler(NegativesRequest(1, "user", exclude_history=True), everything, 3, np.ones(3, np.int64))


def test_groups_take_positions_in_turn() -> None:
    drawn = sampler(n=2, scope="group", group_size=4).draw(
        torch.zeros(10), torch.zeros(10, dtype=torch.int64), torch.tensor([0]), seeded()
    )
    assert drawn.ids.shape == (3, 2)
    assert drawn.group is not None
    assert drawn.group.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]


def test_a_batch_shares_one_draw() -> None:
    rows = torch.tensor([0, 1, 1])
    drawn = sampler(n=3, scope="batch", with_replacement=False).draw(rows, rows, torch.tensor([1, 2]), seeded())
    assert drawn.ids.shape == (1, 3)
    assert drawn.group is not None
    assert drawn.group.tolist() == [0, 0, 0]


@pytest.mark.parametrize("scope", ["position", "user", "group", "batch"])
@pytest.mark.parametrize("sampling", ["uniform", "popularity"])
def test_the_generator_alone_decides(scope: str, sampling: str) -> None:
    rows = torch.tensor([0, 0, 1, 1, 2])
    source = sampler(n=3, scope=scope, sampling=sampling)

    def ids(seed: int) -> list:
        torch.manual_seed(int(torch.randint(1000, (1,))))
        return source.draw(rows, rows, torch.tensor([3, 1, 0]), seeded(seed)).ids.tolist()

    assert ids(5) == ids(5)
    assert any(ids(5) != ids(seed) for seed in (6, 7, 8))


@pytest.mark.parametrize("scope", ["position", "user", "group", "batch"])
def test_no_positions_give_no_draw_that_fails(scope: str) -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    drawn = sampler(n=3, scope=scope).draw(nothing, nothing, nothing, seeded())
    assert drawn.ids.shape[1] == 3


def test_a_draw_of_one_user_does_not_depend_on_where_tiles_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Excluding histories must look up each row's own user, in every tile."""
    monkeypatch.setattr(negatives, "DRAW_ELEMENTS", 1)
    rows = torch.arange(4).repeat_interleave(50)
    drawn = sampler(n=2, scope="position", exclude_history=True).draw(rows, rows, torch.arange(4), seeded())
    for user, history in enumerate(HISTORIES):
        seen = set(drawn.ids[rows == user].flatten().tolist())
        assert seen == set(range(V)) - set(history)


@pytest.mark.parametrize(
    "keys",
    [
        {"n": 0, "scope": "user"},
        {"n": 1, "scope": "group", "group_size": 0},
        {"n": 1, "scope": "batch", "exclude_history": True},
        {"n": 1, "scope": "group", "exclude_history": True},
        {"n": 1, "scope": "user", "sampling": "popularity", "exclude_history": True},
        {"n": 1, "scope": "user", "sampling": "popularity", "with_replacement": False},
    ],
)
def test_requests_without_a_meaning_are_refused(keys: dict) -> None:
    with pytest.raises(ConfigError, match=r"got .*; expected"):
        NegativesRequest(**keys)
