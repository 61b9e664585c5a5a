"""Rounds of RECE that share a sort have the tables that they would have alone."""

from __future__ import annotations

import pytest
import torch

from seqrec.kernels import rece_tables
from seqrec.kernels.rece import hash_chunks
from seqrec.kernels.rece_tables import Tables

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def tables(together: int, rounds: int, spare: int, monkeypatch: pytest.MonkeyPatch) -> Tables:
    draw = torch.Generator().manual_seed(0)
    hidden, items, projections = (
        torch.randn(*shape, generator=draw).to(DEVICE) for shape in ((60, 16), (333, 16), (rounds, 7, 16))
    )
    # Many ties: the order of a bucket is that of the vectors.
    items[100:300] = items[100]
    monkeypatch.setattr(rece_tables, "sorted_together", lambda *_: together)
    count = torch.tensor(60 - spare, device=DEVICE)
    return hash_chunks(hidden, items, projections, 3, count)


@pytest.mark.parametrize("spare", [0, 13, 60])
@pytest.mark.parametrize(("rounds", "together"), [(1, 1), (5, 2), (6, 3), (5, 5)])
def test_sorted_together_or_alone(rounds: int, together: int, spare: int, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, found = (tables(n, rounds, spare, monkeypatch) for n in (1, together))
    assert torch.equal(found.order, alone.order)
    real = torch.ones(393, dtype=torch.bool, device=DEVICE)
    real[60 - spare : 60] = False
    assert torch.equal(found.chunk[real, :rounds], alone.chunk[real, :rounds])
    assert torch.equal(found.order.sort(1).values, torch.arange(393, device=DEVICE).int().expand(rounds, -1))


@pytest.mark.parametrize(
    ("n_all", "V", "D", "rounds", "n_buckets", "together"),
    [
        (200_000, 173_511, 64, 128, 350, 7),  # memory
        (200_000, 173_511, 64, 3, 350, 3),  # there are no more
        (200_000, 173_511, 512, 128, 350, 10),  # the caches
        (200_000, 173_511, 512, 128, 5_000, 3),  # 16-bit keys
        (200_000, 173_511, 512, 128, 16_383, 1),
        (1_025_600, 1_000_000, 64, 128, 500, 2),
        (5_000_000, 4_999_000, 64, 8, 500, 1),
        (60, 10, 4, 8, 5, 1),
    ],
)
def test_how_many_share_a_sort(n_all: int, V: int, D: int, rounds: int, n_buckets: int, together: int) -> None:
    assert rece_tables.sorted_together(n_all, V, D, rounds, n_buckets) == together
    assert (together * rece_tables.keys_of(n_buckets) <= 1 << 15) or together == 1
