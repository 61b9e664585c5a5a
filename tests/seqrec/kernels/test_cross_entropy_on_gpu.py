"""Exact cross-entropy's kernels at real shapes and in real dtypes, on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from seqrec.kernels.cross_entropy import cross_entropy
from seqrec.kernels.twins import cross_entropy as twin

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
MODES: dict[str, dict[str, Any]] = {
    "half": {"dtype": torch.float16},
    "bfloat": {"dtype": torch.bfloat16},
    "split": {"dtype": torch.float32, "split": True},
    "exact": {"dtype": torch.float32},
}


def normal(*shape: int, seed: int = 0, sd: float = 1.0) -> Tensor:
    return sd * torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def uniform(N: int, V: int, seed: int = 0) -> Tensor:
    return torch.randint(V, (N,), generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def popular(N: int, V: int, seed: int = 0) -> Tensor:
    """Some items many times, most never."""
    return (torch.rand(N, generator=torch.Generator().manual_seed(seed)) ** 3 * V).long().to(DEVICE)


def error(found: Tensor | None, wanted: Tensor | None) -> float:
    assert found is not None
    assert wanted is not None
    assert found.shape == wanted.shape
    assert torch.isfinite(found).all()
    return float((found.double() - wanted).norm() / wanted.norm())


def reference(hidden: Tensor, items: Tensor, targets: Tensor, rows: int = 512) -> tuple[Tensor, Tensor, Tensor]:
    """The twin in float64, a block of rows at a time."""
    total, to_hidden, to_items = hidden.new_zeros((), dtype=torch.float64), [], torch.zeros_like(items).double()
    for first in range(0, len(hidden), rows):
        here = slice(first, first + rows)
        weights = hidden.new_full((len(hidden[here]),), 1 / len(hidden), dtype=torch.float64)
        value, of_hidden, of_items = twin.cross_entropy(hidden[here].double(), items.double(), targets[here], weights)
        assert of_hidden is not None
        assert of_items is not None
        total += value
        to_hidden.append(of_hidden)
        to_items += of_items
    return total, torch.cat(to_hidden), to_items


REAL = {
    ("half", 0.4): 5e-4,
    ("half", 12.0): 2e-3,
    ("bfloat", 0.4): 4e-3,
    ("bfloat", 12.0): 1.5e-2,
    ("split", 0.4): 5e-6,
    ("split", 12.0): 2e-5,
}
"""Dtype, standard deviation of the logits -> error of the gradients, of the rounding of the operands too."""


@pytest.mark.parametrize(("mode", "sd"), REAL)
def test_real_shapes(mode: str, sd: float) -> None:
    """The value is held against that of the rounded operands: their own rounding moves it by 1e-6 at sd 12."""
    N, V, D = 2048, 20_001, 64
    hidden, items = normal(N, D, sd=sd**0.5 / D**0.25), normal(V, D, seed=1, sd=sd**0.5 / D**0.25)
    targets, dtype = uniform(N, V), MODES[mode]["dtype"]
    found = cross_entropy(hidden, items, targets, **MODES[mode])
    value, _, _ = reference(hidden.to(dtype), items.to(dtype), targets)
    _, to_hidden, to_items = reference(hidden, items, targets)
    assert error(found[0], value) <= 1e-6
    assert error(found[1], to_hidden) <= REAL[mode, sd]
    assert error(found[2], to_items) <= REAL[mode, sd]
    again = cross_entropy(hidden, items, targets, **MODES[mode])
    for one, two in zip(found, again, strict=True):
        assert one is not None
        assert two is not None
        assert torch.equal(one, two)


def test_a_popular_item_and_probabilities_near_1() -> None:
    N, V, D = 3000, 5001, 64
    hidden, items = normal(N, D, sd=1.5), normal(V, D, seed=1)
    low, table = hidden.half().double(), items.half().double()
    for targets in ((hidden @ items.T).argmax(1), torch.full((N,), 77, device=DEVICE)):
        found, wanted = cross_entropy(hidden, items, targets), twin.cross_entropy(low, table, targets)
        # The difference of two scores cannot be better than float32 holds the larger one.
        assert abs(found[0].double() - wanted[0]) <= 2**-23 * (low @ table.T).abs().max()
        assert error(found[1], wanted[1]) <= 1e-3
        assert error(found[2], wanted[2]) <= 1e-3


@pytest.mark.parametrize("D", [16, 24, 48, 64, 100, 128, 200, 256, 512])
@pytest.mark.parametrize("mode", MODES)
def test_every_width(D: int, mode: str) -> None:
    """Every entry of the tables compiles, fits and is right."""
    hidden, items, targets = normal(300, D), normal(1111, D, seed=1, sd=1 / D**0.5), popular(300, 1111)
    found, wanted = cross_entropy(hidden, items, targets, **MODES[mode]), reference(hidden, items, targets)
    bound = {"half": 1e-3, "bfloat": 1e-2, "split": 1e-5, "exact": 1e-5}[mode]
    for one, other in zip(found, wanted, strict=True):
        assert error(one, other) <= bound
    value, _, _ = cross_entropy(hidden, items, targets, **MODES[mode], gradients=False)
    assert error(value, wanted[0]) <= bound


def test_captured() -> None:
    """A replay with other numbers, targets and weights gives what a call gives, to the bit."""
    N, V, D = 1000, 5001, 64
    hidden, items, targets = normal(N, D), normal(V, D, seed=1, sd=0.2), popular(N, V)
    weights = torch.full((N,), 1 / N, device=DEVICE)
    cross_entropy(hidden, items, targets, weights)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = cross_entropy(hidden, items, targets, weights)
    for seed in (5, 6):
        hidden.copy_(normal(N, D, seed=seed))
        items.copy_(normal(V, D, seed=seed + 10, sd=0.2))
        targets.copy_(popular(N, V, seed=seed))
        weights[seed::2] = 0
        graph.replay()
        for one, other in zip(found, cross_entropy(hidden, items, targets, weights), strict=True):
            assert one is not None
            assert other is not None
            assert torch.equal(one, other)


def test_peak_memory() -> None:
    for N, V, D in ((25_600, 173_511, 64), (25_600, 12_101, 128)):
        hidden, items, targets = normal(N, D), normal(V, D, seed=1), popular(N, V)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        found = cross_entropy(hidden, items, targets)
        peak = torch.cuda.max_memory_allocated() - before
        assert peak <= 1.15 * (6 * V * D + 8 * N * D) + 2**25
        del found


def test_a_table_of_more_than_2_to_the_31_numbers() -> None:
    N, V, D = 128, 36_000_001, 64
    if torch.cuda.mem_get_info()[0] < 30 * 2**30:
        pytest.skip("30 GB of free memory")
    generator = torch.Generator(DEVICE).manual_seed(0)
    items = torch.randn(V, D, device=DEVICE, generator=generator) * 0.1
    hidden, targets = normal(N, D), torch.arange(V - N, V, device=DEVICE)
    targets[0] = 0
    value, to_hidden, to_items = cross_entropy(hidden, items, targets)
    assert to_hidden is not None
    assert to_items is not None
    lse, mixed = torch.full((N,), -torch.inf, device=DEVICE, dtype=torch.float64), 0.0
    for block in items.split(2**21):
        scores = hidden.double() @ block.double().T
        higher = torch.logaddexp(lse, scores.logsumexp(1))
        mixed = mixed * (lse - higher).exp()[:, None] + (scores - higher[:, None]).exp() @ block.double()
        lse = higher
    positive = (hidden.double() * items[targets].double()).sum(1)
    assert error(value, (lse - positive).mean()) <= 1e-5
    assert error(to_hidden, (mixed - items[targets].double()) / N) <= 5e-4
    for rows in (slice(0, 500), slice(V - 500, V)):
        p = (hidden.double() @ items[rows].double().T - lse[:, None]).exp() / N
        wanted = p.T @ hidden.double()
        here = (targets >= rows.start) & (targets < rows.stop)
        wanted.index_add_(0, targets[here] - rows.start, hidden[here].double() / -N)
        assert error(to_items[rows], wanted) <= 5e-4
