"""RECE's kernels at real shapes and dtypes, and in a graph, against the twin in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from seqrec.kernels.rece import hash_chunks, rece, rece_from_tables
from seqrec.kernels.twins import rece as twin

pytestmark = pytest.mark.gpu
DEVICE = "cuda"


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def close(found: Tensor | None, wanted: Tensor, bound: float) -> None:
    """Relative to the whole tensor."""
    assert found is not None
    assert torch.isfinite(found).all()
    error = (found.double() - wanted).norm()
    assert error <= bound * wanted.norm(), f"{error} of {wanted.norm()}"


def scaled(N: int, V: int, D: int, rounds: int, n_buckets: int, sd: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits of a standard deviation."""
    targets = torch.randint(0, V, (N,), generator=torch.Generator().manual_seed(4)).to(DEVICE)
    hidden, items, projections = normal(N, D), normal(V, D, seed=1), normal(rounds, n_buckets, D, seed=2)
    size = (sd / D**0.5) ** 0.5
    return hidden * size, items * size, targets, projections


HALF, BFLOAT = torch.float16, torch.bfloat16


@pytest.mark.parametrize(
    ("dtype", "sd", "bound"), [(HALF, 0.4, 5e-4), (HALF, 12.0, 2e-3), (BFLOAT, 0.4, 4e-3), (BFLOAT, 12.0, 1.5e-2)]
)
@pytest.mark.parametrize(("rounds", "dense"), [(1, False), (2, False), (8, False), (12, False), (3, True), (40, True)])
def test_real_shapes(rounds: int, dense: bool, dtype: torch.dtype, sd: float, bound: float) -> None:
    hidden, items, targets, projections = scaled(2048, 20_001, 64, rounds, 156, sd)
    tables = hash_chunks(hidden, items, projections, 156, dtype=dtype)
    found = rece_from_tables(hidden, items, targets, tables=tables, reach=2, dtype=dtype, dense=dense)
    wanted = twin.rece_from_tables(hidden.double(), items.double(), targets, tables=tables, reach=2)
    # Rounding the operands alone moves the value at sharp logits, the more the fewer candidates: what is left is held.
    low = (one.to(dtype).double() for one in (hidden, items))
    rounded, *_ = twin.rece_from_tables(*low, targets, tables=tables, reach=2)
    assert abs(float(found[0] / rounded) - 1) <= 2e-6
    close(found[1], wanted[1], bound)
    close(found[2], wanted[2], bound)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_buckets_of_real_shapes(dtype: torch.dtype) -> None:
    """A vector in another bucket shifts the ranks behind it: chunks of almost all agree, none is far off."""
    hidden, items, _, projections = scaled(2048, 100_001, 64, 2, 554, 0.4)
    found = hash_chunks(hidden, items, projections, 554, dtype=dtype).chunk
    wanted = twin.hash_chunks(hidden, items, projections, 554).chunk
    share = float(((found - wanted).abs() <= 1).double().mean())
    assert share >= (0.99 if dtype == torch.float16 else 0.95)


def test_captured_with_inputs_that_change() -> None:
    hidden, items, targets, projections = scaled(700, 5_001, 64, 3, 40, 2.0)
    count = torch.tensor(700, device=DEVICE)
    given: dict[str, Any] = {"n_chunks": 40, "reach": 1, "count": count}
    rece(hidden, items, targets, projections=projections, **given)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = rece(hidden, items, targets, projections=projections, **given)
    for seed, real in ((5, 700), (6, 1), (7, 0), (8, 333)):
        hidden.copy_(normal(700, 64, seed=seed) / 8)
        projections.copy_(normal(3, 40, 64, seed=seed + 10))
        targets.copy_(targets.roll(1))
        count.fill_(real)
        graph.replay()
        again = rece(hidden, items, targets, projections=projections, **given)
        assert all(torch.allclose(one, other, rtol=1e-5, atol=1e-7) for one, other in zip(captured, again, strict=True))
