"""Draws of candidate items: kernel and twin bit for bit, and both by what they should look like."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from seqrec.kernels.draws import ROUNDS, alias_table, draw, drawn

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def integers(most: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(most, shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def seeded(value: int = 7) -> Tensor:
    return torch.tensor([value], device=DEVICE)


@triton.jit(do_not_specialize=["n_items", "n_candidates"])
def _draw_all(seed, out, alias, n_items, n_candidates, BLOCK: tl.constexpr, POPULAR: tl.constexpr, R: tl.constexpr):
    row = tl.program_id(0)
    for first in range(0, n_candidates, BLOCK):
        k = first + tl.arange(0, BLOCK)
        ids = draw(tl.load(seed), row, first, n_items, alias, BLOCK, POPULAR, R)
        tl.store(out + row * n_candidates + k, ids, mask=k < n_candidates)


@pytest.mark.parametrize("popular", [False, True])
@pytest.mark.parametrize("key", [0, -1, 1234567890123456789])
def test_kernel_and_twin_draw_the_same_bits(key: int, popular: bool) -> None:
    for n_items in (1, 7, 1009) if popular else (1, 7, 1_000_003, 2**31 - 1):
        alias = alias_table(integers(9, n_items) + 1).to(DEVICE) if popular else None
        out = torch.zeros((5, 37), dtype=torch.int32, device=DEVICE)
        table = out if alias is None else alias
        _draw_all[(5,)](seeded(key), out, table, n_items, 37, BLOCK=16, POPULAR=popular, R=ROUNDS)
        wanted = drawn(seeded(key), 5, 37, n_items, alias)
        assert torch.equal(out.long(), wanted)
        assert torch.equal(drawn(seeded(key), 2, 30, n_items, alias, first_row=3), wanted[3:, :30])


def test_the_words_are_philox() -> None:
    """The published answer for seven rounds, key and counter 0: its four words over 2^31 items, halved."""
    words = (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48)
    assert drawn(seeded(0), 1, 4, 2**31 - 1).tolist() == [[word * (2**31 - 1) >> 32 for word in words]]


def chi_square(ids: Tensor, share: Tensor) -> float:
    """How many standard deviations the statistic lies above its mean."""
    expected = share.double() * ids.numel()
    seen = torch.bincount(ids.flatten(), minlength=len(share)).double()
    held = expected > 0
    assert seen[~held].sum() == 0, "an item of count 0 is never drawn"
    statistic = ((seen - expected)[held].square() / expected[held]).sum()
    freedom = int(held.sum()) - 1
    return float((statistic - freedom) / (2 * freedom) ** 0.5)


@pytest.mark.parametrize("key", [0, 1, -5])
def test_draws_follow_their_distribution(key: int) -> None:
    assert abs(chi_square(drawn(seeded(key), 2000, 100, 97), torch.full((97,), 1 / 97, device=DEVICE))) < 4
    counts = integers(50, 97) * (integers(3, 97, seed=1) > 0)
    ids = drawn(seeded(key), 2000, 100, 97, alias_table(counts).to(DEVICE))
    assert abs(chi_square(ids, counts / counts.sum())) < 4


@pytest.mark.parametrize("change", ["seed", "row", "k"])
def test_neighbouring_draws_are_independent(change: str) -> None:
    """Pairs of draws that differ by one in seed, row or k fill an 11 x 11 table evenly."""
    ids = drawn(seeded(3), 600, 600, 11)
    other = drawn(seeded(4), 600, 600, 11) if change == "seed" else ids.roll(1, dims=0 if change == "row" else 1)
    pairs = ids * 11 + other
    assert abs(chi_square(pairs, torch.full((121,), 1 / 121, device=DEVICE))) < 4


@pytest.mark.parametrize("counts", [[5], [0, 3, 0], [1, 1, 1], [7, 0, 1, 2, 90], [10**12, 1, 0]])
def test_alias_table_is_exact(counts: list[int]) -> None:
    thresholds, others = (column.tolist() for column in alias_table(torch.tensor(counts)).long().unbind(1))
    share, n = [0.0] * len(counts), len(counts)
    for column, (threshold, other) in enumerate(zip(thresholds, others, strict=True)):
        own = (threshold % 2**32) / 2**32
        share[column] += own / n
        share[other] += (1 - own) / n
    assert share == pytest.approx([count / sum(counts) for count in counts], abs=2**-31)
    assert [one == 0 for one in share] == [count == 0 for count in counts]


@pytest.mark.parametrize("counts", [[0, 0], [3, -1], []])
def test_alias_table_wants_counts(counts: list[int]) -> None:
    with pytest.raises(ValueError, match="counts: got"):
        alias_table(torch.tensor(counts, dtype=torch.int64))
