"""Ranks without scores, against the twin and against `Ranker`. Without a GPU in Triton's interpreter."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from seqrec import metrics
from seqrec.kernels import ranking as kernel
from seqrec.kernels.ranking import MISS, catalog_ranks
from seqrec.kernels.tiles import Tile
from seqrec.kernels.twins import ranking as twin
from seqrec.memory.evaluation import Tile as RankerTile
from seqrec.ranking import Ranker, exact_products, seen_cells
from tests.waiting import nothing_waits

pytestmark = pytest.mark.usefixtures("chain")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NOT_NUMBERS = pytest.mark.filterwarnings("ignore::RuntimeWarning")
"""The interpreter's, where a test hands in what is not finite."""


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many tiles of few numbers, wider than high; and memory that a kernel is to fill holds NaN before."""
    monkeypatch.setattr(kernel, "TILES", {8: {512: Tile(16, 32, 4, 2)}})
    plain = torch.empty

    def poisoned(*args: Any, **kwargs: Any) -> Tensor:
        made = plain(*args, **kwargs)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(torch, "empty", poisoned)


def histories(seen: list[list[int]], dtype: torch.dtype = torch.int32) -> dict[str, Any]:
    """The seen items of users as arguments: a foreign item in front, so that no history starts at 0."""
    lengths = [len(items) for items in seen]
    flat = [10**6, *(item for items in seen for item in items)]
    starts = np.cumsum([1, *lengths])[:-1]
    return {
        "seen": torch.tensor(flat, dtype=dtype, device=DEVICE),
        "starts_U": torch.tensor(starts, dtype=torch.int64, device=DEVICE),
        "lengths_U": torch.tensor(lengths, dtype=torch.int64, device=DEVICE),
        "n_seen": sum(lengths),
    }


def drawn(U: int, V: int, D: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, list[list[int]]]:
    """Small whole numbers, exact in any order: nearly every score has equals. Histories with repeats."""
    random = np.random.default_rng(seed)
    hidden, items = (torch.tensor(random.integers(-1, 2, (n, D)), dtype=torch.float32, device=DEVICE) for n in (U, V))
    targets = torch.tensor(random.integers(0, V, U), device=DEVICE)
    seen = [random.integers(0, V, random.integers(0, 9)).tolist() for _ in range(U)]
    seen = [items + items[:2] for items in seen]
    return hidden, items, targets, seen


@pytest.mark.parametrize(
    ("U", "V", "D"),
    [(1, 1, 1), (1, 33, 24), (16, 32, 64), (17, 95, 80), (40, 131, 128), (5, 67, 256), (3, 40, 300)],
)
def test_ranks_are_the_twins(U: int, V: int, D: int) -> None:
    for seed in range(3):
        hidden, items, targets, seen = drawn(U, V, D, seed)
        seen[0] = [int(targets[0]), 0, 0]
        told = histories(seen)
        expected = twin.catalog_ranks(hidden.double(), items.double(), targets, **told)
        assert expected[0] == MISS == metrics.MISS == twin.MISS
        assert catalog_ranks(hidden, items, targets, **told).tolist() == expected.tolist()
        assert catalog_ranks(hidden, items, targets.int(), **histories(seen, torch.int64)).tolist() == expected.tolist()
        plain = twin.catalog_ranks(hidden.double(), items.double(), targets)
        assert catalog_ranks(hidden, items, targets).tolist() == plain.tolist()
        assert plain[0] != MISS


def check_ties(U: int, V: int, D: int, seed: int) -> None:
    """Rounded scores of 5 kinds of items: one that differs in its last bit by its place would part equals."""
    random = np.random.default_rng(seed)
    kinds, hidden = (random.standard_normal((n, D)).astype(np.float32) for n in (5, U))
    kind_of, targets = random.integers(0, 5, V), random.integers(0, V, U)
    seen = [[item for item in random.integers(0, V, 30).tolist() if item != target] for target in targets]
    scores = hidden.astype(np.float64) @ kinds.astype(np.float64).T
    assert np.diff(np.sort(scores, 1), axis=1).min() > 1e-5, "float32 must tell the kinds apart"
    expected = []
    for row, target, mine in zip(scores, targets, seen, strict=True):
        here = row[kind_of]
        ahead = (here > here[target]) | ((here == here[target]) & (np.arange(V) < target))
        ahead[mine] = False
        expected.append(1 + int(ahead.sum()))
    items = torch.tensor(kinds[kind_of], device=DEVICE)
    found = catalog_ranks(
        torch.tensor(hidden, device=DEVICE), items, torch.tensor(targets, device=DEVICE), **histories(seen)
    )
    assert found.tolist() == expected


@pytest.mark.parametrize("D", [24, 64, 80])
def test_equal_embeddings_tie_wherever_they_lie(D: int) -> None:
    check_ties(37, 203, D, seed=D)


SPOILT = [math.nan, math.inf, -math.inf, 3e38, -0.0, 1e-45]


def by_ranker(hidden: Tensor, items: Tensor, targets: Tensor, seen: list[list[int]]) -> list[int]:
    V = len(items)
    tile = RankerTile(len(hidden), -(-V // 8) * 8, 8)
    owners = np.repeat(np.arange(len(seen)), [len(one) for one in seen])
    cells, _ = seen_cells(owners, np.array([i for one in seen for i in one], dtype=np.int64), len(seen), tile, V)
    with exact_products():
        return Ranker(items, tile, 0).rank(hidden, targets, [torch.from_numpy(cells).to(DEVICE)])[0].tolist()


@NOT_NUMBERS
@pytest.mark.parametrize("number", SPOILT)
def test_what_is_no_plain_number_is_ranked_as_by_the_ranker(number: float) -> None:
    """One column, so that a score is one product: seen NaNs are no candidates, unseen ones spoil their users."""
    for seed in range(4):
        hidden, items, targets, seen = drawn(21, 70, 1, seed)
        spoilt = [int(targets[3]), 11, 69][: 1 + seed]
        items[spoilt] = number
        hidden[7] = number if seed % 2 else 0.0
        for user in range(0, 21, 2):
            seen[user] += [*spoilt, *spoilt]
        expected = by_ranker(hidden, items, targets, seen)
        told = histories(seen)
        assert catalog_ranks(hidden, items, targets, **told).tolist() == expected
        assert twin.catalog_ranks(hidden, items, targets, **told).tolist() == expected
        if math.isnan(number):
            assert expected.count(MISS) >= 10
            assert any(rank != MISS for rank in expected)


@NOT_NUMBERS
def test_overflow_within_a_score_is_what_it_is_in_the_ranker() -> None:
    hidden, items, targets, seen = drawn(16, 40, 2)
    hidden[2], items[5] = 3e38, torch.tensor([3e38, -3e38])  # inf - inf
    items[6] = 3e38
    expected = by_ranker(hidden, items, targets, seen)
    assert catalog_ranks(hidden, items, targets, **histories(seen)).tolist() == expected
    assert expected[2] == MISS


def test_stretches_do_not_count_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, items, targets, seen = drawn(20, 300, 8)
    told = histories(seen)
    expected = catalog_ranks(hidden, items, targets, **told).tolist()
    monkeypatch.setattr(kernel, "PROGRAMS", 1)
    assert catalog_ranks(hidden, items, targets, **told).tolist() == expected
    monkeypatch.setattr(kernel, "MOST_COUNTED", 40)
    assert catalog_ranks(hidden, items, targets, **told).tolist() == expected


def test_targets_and_seen_items_outside_the_catalog_touch_nothing() -> None:
    hidden, items, targets, seen = drawn(6, 50, 8)
    expected = catalog_ranks(hidden, items, targets, **histories(seen)).tolist()
    targets[:3] = torch.tensor([50, -1, 2**40], device=DEVICE)
    told = histories([[*one, 50, 10**6, -7] for one in seen])
    assert catalog_ranks(hidden, items, targets, **told).tolist() == [MISS] * 3 + expected[3:]


def test_nobody_and_nothing_seen() -> None:
    hidden, items, targets, _ = drawn(4, 10, 8)
    nothing = histories([[], [], [], []])
    expected = catalog_ranks(hidden, items, targets).tolist()
    assert catalog_ranks(hidden, items, targets, **nothing).tolist() == expected
    assert catalog_ranks(hidden[:0], items, targets[:0]).shape == (0,)


def test_the_operator_keeps_torchs_laws() -> None:
    hidden, items, targets, seen = drawn(5, 40, 8)
    told = histories(seen)
    arguments = (hidden, items, targets, told["seen"], told["starts_U"], told["lengths_U"], told["n_seen"])
    torch.library.opcheck(torch.ops.seqrec.catalog_ranks, arguments, test_utils=("test_schema", "test_faketensor"))


def test_bad_arguments_are_named() -> None:
    hidden, items, targets, seen = drawn(5, 40, 8)
    told = histories(seen)
    wrong: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        ("items_VD: got", (hidden, items[:, :4], targets), {}),
        ("items_VD: got", (hidden, items[:0], targets), {}),
        (
            "hidden_UD: got 513 columns; expected 1 to 512",
            (hidden.new_ones(5, 513), items.new_ones(40, 513), targets),
            {},
        ),
        ("hidden_UD, items_VD: got", (hidden.half(), items, targets), {}),
        ("targets_U: got", (hidden, items, targets[:2]), {}),
        ("seen, starts_U, lengths_U: got some of them", (hidden, items, targets), {"seen": told["seen"]}),
        ("lengths_U: got", (hidden, items, targets), told | {"lengths_U": told["lengths_U"][:2]}),
        ("n_seen: got -1", (hidden, items, targets), told | {"n_seen": -1}),
    ]
    for law, arguments, options in wrong:
        with pytest.raises(ValueError, match=law):
            catalog_ranks(*arguments, **options)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
def test_at_size_the_ranker_agrees_and_nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """3,000 users by 60,416 items of 64 numbers, with the tiles that are used there. Whole numbers, most of them tied,
    so that equal scores are equal by the ranker's product too."""
    monkeypatch.undo()
    random = np.random.default_rng(0)
    U, V, D = 3000, 60_416, 64
    targets = torch.tensor(random.integers(0, V, U), device="cuda")
    seen = [random.integers(0, V, random.integers(0, 12)).tolist() for _ in range(U)]
    seen[5] += [int(targets[5])] * 2
    told = histories(seen)
    hidden, items = (torch.tensor(random.integers(-1, 2, (n, D)), dtype=torch.float32).cuda() for n in (U, V))
    hidden[7] = math.nan
    expected = by_ranker(hidden, items, targets, seen)
    catalog_ranks(hidden, items, targets, **told)
    with nothing_waits():
        found = catalog_ranks(hidden, items, targets, **told)
    assert found.tolist() == expected
    assert [expected[5], expected[7]] == [MISS, MISS]
    # More items than a tile's stretch may count, all ahead of the target.
    one = torch.ones(1, 1, device="cuda")
    many = torch.ones(100_000, 1, device="cuda")
    assert catalog_ranks(one, many, torch.tensor([99_999], device="cuda")).tolist() == [100_000]


@pytest.mark.gpu
@pytest.mark.parametrize("D", [24, 64, 80, 128, 256, 512])
def test_at_size_equal_embeddings_tie_in_the_tiles_that_are_used(monkeypatch: pytest.MonkeyPatch, D: int) -> None:
    monkeypatch.undo()
    check_ties(1000, 60_417, D, seed=D)
