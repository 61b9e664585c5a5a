"""Sampled losses at real sizes and dtypes, captured, and at the limits of their integers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from seqrec.kernels import sampled, sampled_lists, sampled_rows
from seqrec.kernels.draws import alias_table, drawn
from seqrec.kernels.twins import sampled as twin

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "ce-": ("sampled_softmax", {}),
    "cce-": ("sampled_softmax", {"correction": "log_count"}),
    "log_q": ("sampled_softmax", {"correction": "log_q"}),
    "bce": ("sampled_binary", {}),
    "gbce": ("sampled_binary", {"beta": 0.3}),
    "bce+": ("sampled_binary", {"mean": False, "plus": True}),
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def integers(most: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(most, shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def seeded(value: int = 7) -> Tensor:
    return torch.tensor([value], device=DEVICE)


def inputs(n: int, v: int, d: int) -> tuple[Tensor, Tensor, Tensor]:
    return normal(n, d), normal(v, d, seed=1), integers(v, n, seed=2)


def close(found: sampled.Result, wanted: sampled.Result, bound: float = 2e-6) -> None:
    """Relative to the whole tensor."""
    for one, other in zip(found, wanted, strict=True):
        assert one is not None
        assert other is not None
        assert one.dtype == torch.float32
        assert one.shape == other.shape
        assert torch.isfinite(one).all()
        error = (one.double() - other).norm()
        assert error <= bound * other.norm() + 1e-9, f"{error} of {other.norm()}"


def options_of(family: str, source: str, n: int, v: int, k: int) -> tuple[str, dict[str, Any]]:
    name, options = FAMILIES[family]
    counts = integers(20, v, seed=3) + 1
    if family == "log_q":
        options = {**options, "log_q": (counts / counts.sum()).log()}
    popularity = alias_table(counts).to(DEVICE) if source == "popular" else None
    return name, {**options, "seed": seeded(), "n_negatives": k, "popularity": popularity}


def of_chunks(name: str, given: tuple[Tensor, ...], ids: Tensor, options: dict[str, Any]) -> sampled.Result:
    """The twin in float64, a few positions at a time."""
    hidden, items, targets = given[0].double(), given[1].double(), given[2]
    value, to_hidden, to_items = torch.zeros((), device=DEVICE).double(), [], torch.zeros_like(items)
    for rows in torch.arange(len(hidden), device=DEVICE).split(128):
        weights = torch.full((len(rows),), 1 / len(hidden), device=DEVICE).double()
        one = getattr(twin, name)(hidden[rows], items, targets[rows], weights, ids=ids[rows], **options)
        value += one[0]
        to_hidden.append(one[1])
        to_items += one[2]
    return value, torch.cat(to_hidden), to_items


@pytest.mark.parametrize("scatter", ["lists", "atomics"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "sd", "bounds"), [
    (torch.float16, 0.4, (1e-6, 5e-4)),
    (torch.float16, 12.0, (1e-6, 2e-3)),
    (torch.bfloat16, 0.4, (2.5e-5, 4e-3)),
    (torch.bfloat16, 12.0, (1e-4, 1.5e-2)),
])  # fmt: skip
def test_errors_at_real_sizes(
    family: str, scatter: str, dtype: torch.dtype, sd: float, bounds: tuple[float, float]
) -> None:
    n, v, d, k = 2048, 20_001, 64, 511
    name, options = options_of(family, "uniform", n, v, k)
    scale = (sd / d**0.5) ** 0.5
    given = normal(n, d) * scale, normal(v, d, seed=1) * scale, integers(v, n, seed=2)
    found = getattr(sampled, name)(*given, **options, dtype=dtype, scatter=scatter)
    fixed = {key: one for key, one in options.items() if key not in ("seed", "n_negatives", "popularity")}
    wanted = of_chunks(name, given, drawn(seeded(), n, k, v), fixed)
    close((found[0],) * 3, (wanted[0],) * 3, bounds[0])
    close(found[1:] + found[1:2], wanted[1:] + wanted[1:2], bounds[1])


def test_a_captured_step_follows_its_inputs() -> None:
    hidden, items, targets = inputs(500, 3001, 64)
    seed = seeded()
    for k in (3, 200):

        def step(k: int = k) -> sampled.Result:
            return sampled.sampled_softmax(
                hidden, items, targets, seed=seed, n_negatives=k, correction="log_count", dtype=torch.float32
            )

        step()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = step()
        for number in range(3):
            hidden.copy_(normal(500, 64, seed=number))
            targets.copy_(integers(3001, 500, seed=number))
            seed.fill_(number)
            graph.replay()
            close(result, tuple(one.double() for one in step() if one is not None), 1e-6)


def test_one_compilation_for_all_sizes() -> None:
    kernels: list[Any] = [
        sampled_rows.rows_forward, sampled_rows.scatter_rows, sampled_lists.fill_lists, sampled_lists.by_item,
        sampled_lists.long_lists,
    ]  # fmt: skip

    def compiled() -> int:
        return sum(len(kernel.device_caches[torch.cuda.current_device()][0]) for kernel in kernels)

    seen = []
    for n, v, k in ((64, 160, 16), (64, 161, 1), (1, 16, 33), (77, 1000, 100), (33, 4096, 511)):
        for scatter in ("lists", "atomics"):
            sampled.sampled_softmax(
                *inputs(n, v, 64), seed=seeded(), n_negatives=k, dtype=torch.float32, scatter=scatter
            )
        seen.append(compiled())
    assert seen[0] == seen[-1]


@pytest.mark.parametrize("family", ["log_q", "bce"])
def test_more_positions_than_a_list_can_hold(family: str) -> None:
    n, v, d, k = 70_001, 500, 16, 3
    name, options = options_of(family, "popular", n, v, k)
    hidden, items, targets = inputs(n, v, d)
    found = getattr(sampled, name)(hidden, items, targets, **options, dtype=torch.float32, scatter="lists")
    close(found, getattr(twin, name)(hidden.double(), items.double(), targets, **options), 1e-5)


@pytest.mark.parametrize("scatter", ["lists", "atomics"])
def test_a_table_of_more_than_2_31_numbers(scatter: str) -> None:
    v, tail, d = 36_000_001, 1000, 64
    hidden, few, targets = inputs(64, tail, d)
    items = torch.zeros((v, d), device=DEVICE)
    items[-tail:] = few
    ids = integers(tail, 64, 9, seed=4)
    found = sampled.sampled_softmax(
        hidden, items, targets + v - tail, ids=ids + v - tail, dtype=torch.float32, scatter=scatter
    )
    assert found[2] is not None
    assert not found[2][:-tail].any()
    wanted = twin.sampled_softmax(hidden.double(), few.double(), targets, ids=ids)
    close((found[0], found[1], found[2][-tail:]), wanted)
