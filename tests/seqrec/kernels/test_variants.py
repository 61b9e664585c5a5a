"""A kernel is compiled once, whatever the sizes: no size is a constant of it, and addresses are multiples of 16.

Triton compiles a kernel anew for an integer that is 1 or a multiple of 16, unless told not to, and for an address that
is not one. Nothing is launched here: what the host does must not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from triton.runtime.jit import KernelInterface

from seqrec.kernels import rece_launch
from seqrec.kernels.cross_entropy import cross_entropy
from seqrec.kernels.rece import rece
from seqrec.kernels.sampled import sampled_binary, sampled_softmax
from seqrec.kernels.sce import mixed_centres, sce
from seqrec.kernels.shared import shared_binary, shared_softmax

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
D = 24


def unspecialised(kernel: Any) -> set[str]:
    """Arguments that are constants, or that the kernel is told to take as they come."""
    listed = kernel.kwargs["do_not_specialize"] if hasattr(kernel, "kwargs") else kernel.do_not_specialize
    names = list(kernel.arg_names)
    constants = {name for name, kind in kernel.fn.__annotations__.items() if "constexpr" in str(kind)}
    return constants | {names[one] if isinstance(one, int) else one for one in listed or ()}


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What every launch passes that would have its kernel compiled anew."""
    broken: list[str] = []
    # As with many positions, where rece cuts no windows.
    monkeypatch.setattr(rece_launch, "PROGRAMS", 1)

    def instead(kernel: Any, _: object) -> Callable[..., None]:
        def launch(*arguments: Any, **options: Any) -> None:
            given = dict(zip(kernel.arg_names, arguments, strict=False)) | options
            free = unspecialised(kernel)
            for name, one in given.items():
                if isinstance(one, Tensor) and one.data_ptr() % 16:
                    broken.append(f"{kernel.fn.__name__}: the address of {name}")
                if isinstance(one, int) and name in kernel.arg_names and name not in free:
                    broken.append(f"{kernel.fn.__name__}: the integer {name}")

        return launch

    monkeypatch.setattr(KernelInterface, "__getitem__", instead)
    return broken


def problem(N: int, V: int) -> tuple[Tensor, Tensor, Tensor]:
    targets = torch.zeros(N, dtype=torch.int64, device=DEVICE)
    return torch.zeros(N, D, device=DEVICE), torch.zeros(V, D, device=DEVICE), targets


def number(value: int) -> Tensor:
    return torch.tensor([value], device=DEVICE)


LOSSES: dict[str, Callable[..., Any]] = {
    "cross_entropy": cross_entropy,
    "cross_entropy in two parts": lambda *a, **o: cross_entropy(*a, dtype=torch.float32, split=True, **o),
    "drawn": lambda *a, **o: sampled_softmax(*a, seed=number(3), n_negatives=7, **o),
    "drawn, lists": lambda *a, **o: sampled_binary(*a, seed=number(3), n_negatives=7, scatter="lists", **o),
    "given": lambda h, *a, **o: sampled_binary(h, *a, ids=h.new_zeros(len(h), 5, dtype=torch.int64), **o),
    "groups": lambda h, *a, **o: shared_softmax(h, *a, ids=h.new_zeros(3, 5, dtype=torch.int64), **o),
    "users": lambda h, *a, **o: shared_binary(
        h, *a, ids=h.new_zeros(3, 5, dtype=torch.int64), offsets=h.new_zeros(4, dtype=torch.int64), **o
    ),
    "rece": lambda h, *a, **o: rece(h, *a, projections=h.new_zeros(3, 5, D), n_chunks=5, reach=1, dense=False, **o),
    "rece, dense": lambda h, *a, **o: rece(
        h, *a, projections=h.new_zeros(3, 5, D), n_chunks=5, reach=1, dense=True, count=number(9), **o
    ),
    "sce": lambda h, w, y, weights=None, **o: sce(
        h, w, y, centres=mixed_centres(h, 3), bucket_size_x=5, bucket_size_y=7, **o
    ),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("N", "V"), [(1, 23), (37, 101), (49, 50)])
def test_no_size_compiles_a_kernel_anew(name: str, N: int, V: int, launches: list[str]) -> None:
    hidden, items, targets = problem(N, V)
    for weights in (None, torch.ones(N, device=DEVICE)):
        for gradients in (True, False):
            LOSSES[name](hidden, items, targets, weights, gradients=gradients)
    assert not set(launches)
