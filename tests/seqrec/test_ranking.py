"""Tiles of users and items against an obvious twin: whatever the tile, the same ranks and lists."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray

from seqrec.memory.evaluation import Tile
from seqrec.metrics import MISS
from seqrec.ranking import _LAST, Ranker, _ids, _keys, exact_products, seen_cells
from tests.waiting import nothing_waits

Seen = list[set[int]]


def twin(scores_UV: NDArray[np.float64], targets: list[int], seen: Seen, k: int) -> tuple[list[int], list[list[int]]]:
    """Ranks and lists as docs/metrics.md tells them, a user at a time."""
    ranks, lists = [], []
    for scores, target, mine in zip(scores_UV, targets, seen, strict=True):
        left = [item for item in range(len(scores)) if item not in mine]
        broken = any(math.isnan(scores[item]) for item in left)
        if target in mine or broken or not math.isfinite(scores[target]):
            ranks.append(MISS)
        else:
            higher = sum(scores[item] > scores[target] for item in left)
            ranks.append(1 + higher + sum(scores[item] == scores[target] and item < target for item in left))
        nothing = [-1 for item in left if math.isnan(scores[item])]
        listed = sorted((item for item in left if scores[item] > -math.inf), key=lambda item: (-scores[item], item))
        lists.append((nothing + listed + [-1] * k)[:k])
    return ranks, lists


def ranked(
    hidden_UD: torch.Tensor, table_VD: torch.Tensor, targets: list[int], seen: Seen, tile: Tile, k: int
) -> tuple[list[int], list[list[int]]]:
    """The same by tiles, slab by slab of users."""
    owners = np.array([user for user, items in enumerate(seen) for _ in items], dtype=np.int64)
    items = np.array([item for items in seen for item in items], dtype=np.int64)
    ranker = Ranker(table_VD, tile, k)
    cells, bounds = seen_cells(owners, items, len(seen), tile, len(table_VD))
    own = torch.split(torch.from_numpy(cells), np.diff(bounds).tolist())
    ranks, lists = [], []
    for slab, first in enumerate(range(0, len(seen), tile.users)):
        part = slice(first, first + tile.users)
        of_slab = own[slab * ranker.n_tiles : (slab + 1) * ranker.n_tiles]
        found, ids = ranker.rank(hidden_UD[part], torch.tensor(targets[part]), of_slab)
        ranks += found.tolist()
        lists += ids.tolist()
    return ranks, lists


def tiles(n_users: int, n_items: int) -> Iterator[Tile]:
    """Every width of a tile, in groups of 1, 2 and 8 items."""
    for group in (1, 2, 8):
        for groups in range(1, math.ceil(n_items / group) + 1):
            yield Tile(1 + groups % n_users, groups * group, group)


NUMBERS = st.sampled_from([-2.0, -1.0, -0.0, 0.0, 0.0, 1.0, 1.0, 2.0])
SPOILT = st.one_of(NUMBERS, NUMBERS, st.sampled_from([math.nan, math.inf, -math.inf, 3e38, 1e-45, -1e-45]))


@st.composite
def cases(draw: st.DrawFn) -> tuple[NDArray[np.float64], NDArray[np.float64], list[int], Seen, int]:
    """States and embeddings of small whole numbers (many ties, exact in any order), in places not finite."""
    n_users, n_items, width = draw(st.integers(1, 5)), draw(st.integers(1, 19)), draw(st.integers(1, 2))
    numbers = draw(st.sampled_from([st.just(1.0), NUMBERS, SPOILT]))
    table = draw(st.lists(numbers, min_size=n_items * width, max_size=n_items * width))
    hidden = draw(st.lists(NUMBERS, min_size=n_users * width, max_size=n_users * width))
    ids = st.integers(0, n_items - 1)
    targets = draw(st.lists(ids, min_size=n_users, max_size=n_users))
    some = st.one_of(st.just(set()), st.sets(ids), st.just(set(range(n_items))))
    seen = draw(st.lists(some, min_size=n_users, max_size=n_users))
    k = draw(st.sampled_from([0, 1, 3, 50]))
    return np.reshape(hidden, (n_users, width)), np.reshape(table, (n_items, width)), targets, seen, k


@settings(max_examples=120, deadline=None)
@given(cases())
def test_every_tile_gives_the_twins_ranks_and_lists(
    case: tuple[NDArray[np.float64], NDArray[np.float64], list[int], Seen, int],
) -> None:
    hidden, table, targets, seen, k = case
    with np.errstate(all="ignore"):
        # In float32, where 2 * 3e38 is infinite.
        scores = (hidden.astype(np.float32)[:, None] * table.astype(np.float32)).sum(2).astype(np.float64)
    expected = twin(scores, targets, seen, k)
    states, embeddings = torch.tensor(hidden, dtype=torch.float32), torch.tensor(table, dtype=torch.float32)
    for tile in tiles(*scores.shape):
        assert ranked(states, embeddings, targets, seen, tile, k) == expected, tile


@pytest.mark.parametrize("k", [0, 50])
def test_equal_embeddings_tie_in_whatever_tile_they_stand(k: int) -> None:
    """Scores that are rounded: the target's must be the very number that its equals in other tiles have."""
    random = np.random.default_rng(0)
    kinds = torch.tensor(random.standard_normal((7, 64)), dtype=torch.bfloat16)
    kind_of = random.integers(0, 7, 999)
    hidden = torch.tensor(random.standard_normal((13, 64)), dtype=torch.float32)
    scores = (hidden.double() @ kinds.double().T).numpy()[:, kind_of]
    targets = random.integers(0, 999, 13).tolist()
    seen = [set(random.integers(0, 999, 40).tolist()) - {target} for target in targets]
    expected = twin(scores, targets, seen, k)
    for tile in (Tile(13, 1000, 8), Tile(13, 1024, 32), Tile(5, 512, 16), Tile(13, 499, 1), Tile(4, 96, 32)):
        assert ranked(hidden, kinds[kind_of].float(), targets, seen, tile, k) == expected, tile


def test_keys_are_in_the_order_of_scores_and_ids() -> None:
    ladder = [-math.inf, -3e38, -1.0, -1e-45, 0.0, 1e-45, 1.0, 3e38, math.inf, math.nan]
    pairs = [(score, item) for score in ladder for item in (_LAST, 7, 0)]
    keys = _keys(torch.tensor([score for score, _ in pairs]), torch.tensor([item for _, item in pairs])).tolist()
    assert keys == sorted(set(keys))
    assert min(keys) > torch.iinfo(torch.int64).min
    signs = _keys(torch.tensor([-0.0, math.copysign(math.nan, -1.0)]), torch.tensor([7, 7])).tolist()
    assert signs == [keys[4 * 3 + 1], keys[9 * 3 + 1]], "neither zero nor NaN has a sign"
    listed = [item if score > -math.inf else -1 for score, item in pairs]
    assert _ids(torch.tensor(keys)).tolist() == listed


def test_a_catalog_of_more_tiles_than_a_byte_counts_sorts_its_seen_items() -> None:
    random = np.random.default_rng(1)
    owners, items = np.repeat(np.arange(300), 20), random.integers(0, 3000, 6000)
    tile = Tile(7, 16, 4)
    cells, bounds = seen_cells(owners, items, 300, tile, 3000)
    found = set()
    for at, (first, last) in enumerate(pairwise(bounds.tolist())):
        slab, number = divmod(at, tile.count(3000))
        for cell in cells[first:last].tolist():
            found.add((slab * tile.users + cell // tile.items, tile.start(number, 3000) + cell % tile.items))
    assert found == set(zip(owners.tolist(), items.tolist(), strict=True))


def test_products_are_exact_whatever_training_allows_itself() -> None:
    cuda, cpu = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    before = cuda.fp32_precision, cpu.fp32_precision

    def fail_inside() -> None:
        with exact_products():
            assert (cuda.fp32_precision, cpu.fp32_precision) == ("ieee", "ieee")
            assert not torch.is_autocast_enabled("cpu")
            raise KeyError

    try:
        cuda.fp32_precision, cpu.fp32_precision = "tf32", "bf16"
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with pytest.raises(KeyError):
                fail_inside()
            assert torch.is_autocast_enabled("cpu")
        assert (cuda.fp32_precision, cpu.fp32_precision) == ("tf32", "bf16")
    finally:
        cuda.fp32_precision, cpu.fp32_precision = before


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
@pytest.mark.parametrize("k", [0, 50])
def test_a_device_ranks_as_the_twin_and_nothing_waits_for_it(k: int) -> None:
    random = np.random.default_rng(2)
    hidden, table = (torch.tensor(random.integers(-2, 3, (n, 8)), dtype=torch.float32) for n in (37, 5000))
    scores = (hidden.double() @ table.double().T).numpy()
    targets = random.integers(0, 5000, 37).tolist()
    nothing: Seen = [set() for _ in targets]
    expected = twin(scores, targets, nothing, k)
    states, embeddings, own = hidden.cuda(), table.cuda(), torch.tensor(targets, device="cuda")
    for tile in (Tile(37, 5024, 32), Tile(37, 1024, 32), Tile(37, 992, 8)):
        ranker = Ranker(embeddings, tile, k)
        ranker.rank(states, own, ())
        with nothing_waits():
            ranks, lists = ranker.rank(states, own, ())
        assert (ranks.tolist(), lists.tolist()) == expected
