"""Losses with shared candidates at real shapes and dtypes: errors, capture, races, sizes; on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from seqrec.kernels import shared, shared_kernels, shared_plan
from seqrec.kernels.twins import shared as twin

DEVICE = "cuda"

pytestmark = pytest.mark.gpu


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(DEVICE)


def draws(high: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def problem(N: int, V: int, D: int, G: int, K: int, scale: float = 0.3) -> dict[str, Tensor]:
    return {
        "hidden_ND": normal(N, D),
        "items_VD": normal(V, D, seed=1, scale=scale),
        "targets_N": draws(V, N),
        "ids": draws(V, G, K, seed=1),
    }


def doubled(arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        name: one.double() if isinstance(one, Tensor) and one.is_floating_point() else one
        for name, one in arguments.items()
    }


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm().clamp(min=1e-30))


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("name", ["shared_softmax", "shared_binary"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sd", [0.4, 12.0])
def test_errors_at_real_shapes(sd: float, dtype: torch.dtype, name: str, ragged: bool) -> None:
    """Against float64 of inputs that are not rounded. A score's rounding error is about sd / 4,000 (fp16), eight times
    that in bf16; the value averages those of 2,048 positions."""
    arguments: dict[str, Any] = problem(2048, 20_001, 64, 16, 511, scale=sd / 8)
    if ragged:
        lengths = torch.tensor([1, 300, 127, 128, 129, 64, 65, 0, 200, 34, 200, 200, 200, 100, 200, 100])
        arguments["offsets"] = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).to(DEVICE)
    found = getattr(shared, name)(**arguments, dtype=dtype)
    wanted = getattr(twin, name)(**doubled(arguments))
    value, gradient = (1e-6, 5e-4) if sd < 1 else (1e-5, 2e-3)
    if dtype == torch.bfloat16:
        value, gradient = 10 * value, 4e-3 if sd < 1 else 1.5e-2
    errors = [relative(one, other) for one, other in zip(found, wanted, strict=True)]
    assert errors[0] <= value
    assert max(errors[1:]) <= gradient


@pytest.mark.parametrize("D", [16, 24, 32, 64, 96, 128, 256, 512])
def test_every_width(D: int) -> None:
    """Tiles fit into shared memory, read in place and copied."""
    for copied in (0, 1e9):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(shared_plan, "COPY_FROM", copied)
            arguments = problem(700, 5_000, D, 5, 300, scale=0.1)
            wanted = twin.shared_softmax(**doubled(arguments))
            for dtype, bound in ((torch.float16, 1e-3), (torch.float32, 1e-5)):
                found = shared.shared_softmax(**arguments, dtype=dtype)
                assert max(relative(one, other) for one, other in zip(found, wanted, strict=True)) <= bound


@pytest.mark.parametrize("name", ["shared_softmax", "shared_binary"])
def test_capture(name: str) -> None:
    """A captured call follows its inputs from replay to replay."""
    kept: dict[str, Any] = problem(1000, 3_000, 64, 8, 200)
    kept |= {"weights_N": torch.full((1000,), 1e-3, device=DEVICE)}
    kept |= {"offsets": torch.arange(9, device=DEVICE) * 125}
    run = getattr(shared, name)
    run(**kept)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(**kept)
    for seed in range(3):
        kept["hidden_ND"].copy_(normal(1000, 64, seed=seed))
        kept["ids"].copy_(draws(3_000, 8, 200, seed=seed))
        kept["targets_N"].copy_(draws(3_000, 1000, seed=seed + 9))
        kept["weights_N"].copy_(draws(3, 1000, seed=seed) / 1000)
        kept["offsets"][1:-1] = draws(1000, 7, seed=seed).sort().values
        graph.replay()
        wanted = run(**kept)
        assert torch.equal(captured[0], wanted[0])
        assert torch.equal(captured[1], wanted[1])
        torch.testing.assert_close(captured[2], wanted[2])


def test_repeats_and_races() -> None:
    """Value and the states' gradient bit for bit, the items' up to the order of additions."""
    arguments = problem(25_600, 173_511, 64, 200, 511)
    first = shared.shared_softmax(**arguments)
    for _ in range(20):
        again = shared.shared_softmax(**arguments)
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])
        assert relative(again[2], first[2]) < 1e-6


def test_sizes_compile_nothing_new() -> None:
    def variants() -> int:
        kernels = (shared_kernels.forward, shared_kernels.backward)
        return sum(len(caches[0]) for kernel in kernels for caches in kernel.device_caches.values())

    def run(N: int, V: int, G: int, K: int) -> None:
        arguments = problem(N, V, 64, G, K)
        shared.shared_softmax(**arguments, correction="log_count")
        ends = (torch.arange(G + 1, device=DEVICE) * N) // G
        shared.shared_softmax(**arguments, correction="log_count", offsets=ends)

    run(777, 70_001, 5, 77)
    known = variants()
    for sizes in ((1, 70_000, 1, 1), (1600, 80_000, 16, 160), (3, 100_001, 17, 1), (640, 65_536, 1, 16)):
        run(*sizes)
    assert variants() == known


def test_table_beyond_32_bits() -> None:
    """V D > 2^31: candidates and targets in the last rows, against a small table of those rows."""
    N, V, D, used = 512, 36_000_001, 64, 5_000
    small = problem(N, used, D, 4, 300)
    items = torch.zeros(V, D, device=DEVICE)
    items[-used:] = small["items_VD"]
    large = small | {"items_VD": items, "targets_N": small["targets_N"] + V - used, "ids": small["ids"] + V - used}
    value, to_hidden, to_items = shared.shared_softmax(**large)
    wanted = shared.shared_softmax(**small)
    assert to_items is not None
    torch.testing.assert_close((value, to_hidden, to_items[-used:]), wanted)
    assert not to_items[:used].any()
