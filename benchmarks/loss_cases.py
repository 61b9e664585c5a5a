"""What is timed: every fused loss in its settings, and the project's eager loss of the same setting beside it.

Random draws (negatives, projections, centres) are part of a step, as they are part of training. Negatives of a position
of its own are drawn inside the kernel; those that a group or a user shares are drawn before it, as ids.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.loss_clock import Result, Step
from benchmarks.loss_problems import Problem
from seqrec.data.negatives import Negatives, NegativesRequest
from seqrec.losses.base import Loss
from seqrec.losses.bce import Gbce
from seqrec.losses.ce import Ce
from seqrec.losses.ce_minus import CceMinus, CeMinus
from seqrec.losses.rece import Rece
from seqrec.losses.sce import Sce

MODULES = {
    "ce": "cross_entropy", "cce_minus": "sampled", "ce_minus_group": "shared", "ce_minus_user": "shared",
    "bce": "sampled", "gbce": "sampled", "rece": "rece", "sce": "sce",
}  # fmt: skip
"""Loss -> the module of `seqrec.kernels` that has it."""
GROUP = 128
MAIN = ("S0", "S1", "S2", "S3")


class NotBuiltError(Exception):
    """A kernel that does not exist (yet)."""


def kernel(module: str, name: str) -> Callable[..., Any]:
    """A public function of `seqrec.kernels.<module>`. Raises NotBuiltError."""
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(f"seqrec.kernels.{module}"), name)
    except (ModuleNotFoundError, AttributeError) as error:
        raise NotBuiltError(f"seqrec.kernels.{module}.{name}: {error}") from error
    return found


@dataclass(frozen=True, eq=False)
class Case:
    loss: str
    """A key of MODULES."""
    setting: str
    fused: Callable[..., Step]
    """(problem, dtype); raises NotBuiltError."""
    eager: Callable[[Problem], Step]
    shapes: tuple[str, ...] = MAIN
    references: tuple[str, ...] = ()
    """Names in reference_losses.csv, the one that ratios are taken of first."""
    eager_shapes: tuple[str, ...] = ()
    bf16_shapes: tuple[str, ...] = ()


def cases(quick: bool = False) -> list[Case]:
    """Most important first. quick: sizes for a toy shape."""
    ce = Case(
        "ce", "", _ce, partial(_of_class, lambda p: Ce()), (*MAIN, "S4", "S5"), ("apple exact", "apple filtered"),
        ("S0", "S1"), ("S1",),
    )  # fmt: skip
    few, many = (5, 20) if quick else (511, 4095)
    groups = [
        Case(
            "ce_minus_group", f"K={K} G={GROUP}", partial(_group, K), partial(_eager_group, K), MAIN,
            (f"CCE- position K={K}",), ("S0",) if few == K else (),
        )
        for K in (few, many)
    ]  # fmt: skip
    positions = [
        Case(
            "cce_minus", f"K={K}", partial(_position, K), partial(_eager_position, K), MAIN,
            (f"CCE- position K={K}",), ("S0",),
        )
        for K in (few, many)
    ]  # fmt: skip
    popular = Case("cce_minus", f"K={few} popular", partial(_popular, few), partial(_eager_popular, few), ("S0", "S1"))
    return [ce, *groups, *_reces(quick), *_sces(quick), *positions, popular, *_of_the_smallest(quick)]


def _reces(quick: bool) -> list[Case]:
    settings: list[tuple[int, int, tuple[str, ...], tuple[str, ...]]] = [
        (1, 1, (*MAIN, "S5"), ("S0", "S1")),
        (2, 1, MAIN, ()),
        (8, 3, (*MAIN, "S5"), ("S0",)),
        (32, 1, ("S1", "S0", "S5"), ()),
        (128, 1, ("S1", "S0", "S5"), ()),
    ]
    found = []
    for rounds, extra, shapes, eager_shapes in settings[: 3 if quick else None]:
        name = f"rounds={rounds} extra={extra}"
        fused, eager = partial(_rece, rounds, extra), partial(_eager_rece, rounds, extra)
        found.append(Case("rece", name, fused, eager, shapes, (f"RECE {name}",), eager_shapes))
    return found


def _sces(quick: bool) -> list[Case]:
    return [
        Case("sce", f"b_y={size}", partial(_sce, size), partial(_eager_sce, size), MAIN, (f"SCE b_y={size}",), eager)
        for size, eager in ([(20, ())] if quick else [(256, ("S0",)), (1024, ())])
    ]


def _of_the_smallest(quick: bool) -> list[Case]:
    """Losses that are timed at one shape."""
    users = [
        Case(
            "ce_minus_user", f"K={K}", partial(_user, K), partial(_eager_user, K), ("S0",), (f"CE- user K={K}",), eager,
        )
        for K, eager in ((8 if quick else 256, ("S0",)), (40 if quick else 4096, ()))
    ]  # fmt: skip
    binaries = [
        Case(
            loss, f"K={K}", partial(_binary, loss, K), partial(_eager_binary, loss, K), ("S0",), (f"BCE K={K}",),
            () if loss == "gbce" else ("S0",),
        )
        for loss, K in (("bce", 1), ("bce", 8 if quick else 256), ("gbce", 8 if quick else 256))
    ]  # fmt: skip
    return [*users, *binaries]


# -------------------------------------------------------------------------------------------------------- fused losses


def _ce(problem: Problem, dtype: torch.dtype) -> Step:
    function = kernel("cross_entropy", "cross_entropy")
    return lambda: _three(function(*_of(problem), dtype=dtype))


def _position(K: int, problem: Problem, dtype: torch.dtype) -> Step:
    function = kernel("sampled", "sampled_softmax")
    fixed = {"seed": problem.seed, "n_negatives": K, "correction": "log_count", "dtype": dtype}
    return lambda: _three(function(*_of(problem), **fixed))


def _popular(K: int, problem: Problem, dtype: torch.dtype) -> Step:
    function = kernel("sampled", "sampled_softmax")
    table, log_q = popularity(problem)
    fixed = {"seed": problem.seed, "n_negatives": K, "popularity": table, "correction": "log_q", "log_q": log_q}
    return lambda: _three(function(*_of(problem), **fixed, dtype=dtype))


def _binary(loss: str, K: int, problem: Problem, dtype: torch.dtype) -> Step:
    function = kernel("sampled", "sampled_binary")
    fixed = {"seed": problem.seed, "n_negatives": K, "beta": beta_of(loss, K, problem.shape.n_items), "dtype": dtype}
    return lambda: _three(function(*_of(problem), **fixed))


def _group(K: int, problem: Problem, dtype: torch.dtype) -> Step:
    function = kernel("shared", "shared_softmax")
    n_groups = -(-problem.shape.n_positions // GROUP)
    fixed = {"correction": "log_count", "dtype": dtype}
    return lambda: _three(function(*_of(problem), ids=draw(problem, n_groups, K, torch.int32), **fixed))


def _user(K: int, problem: Problem, dtype: torch.dtype) -> Step:
    function = kernel("shared", "shared_softmax")
    n_users = len(problem.offsets) - 1
    fixed = {"offsets": problem.offsets, "correction": "none", "dtype": dtype}
    return lambda: _three(function(*_of(problem), ids=draw(problem, n_users, K, torch.int32), **fixed))


def _rece(rounds: int, extra: int, problem: Problem, dtype: torch.dtype) -> Step:
    function = kernel("rece", "rece")
    n_buckets, width = rece_buckets(problem, extra), problem.shape.width

    def step() -> Result:
        projections = torch.randn(rounds, n_buckets, width, device=problem.device)
        return _three(function(*_of(problem), projections=projections, n_chunks=n_buckets, reach=extra, dtype=dtype))

    return step


def _sce(size_y: int, problem: Problem, dtype: torch.dtype) -> Step:
    function = kernel("sce", "sce")
    n_buckets = sce_buckets(problem)
    sizes = {"bucket_size_x": n_buckets, "bucket_size_y": size_y}

    def step() -> Result:
        centres = torch.randn(n_buckets, problem.shape.width, device=problem.device)
        return _three(function(*_of(problem), centres=centres, **sizes, dtype=dtype))

    return step


# -------------------------------------------------------------------------------------------------------- eager losses


def _of_class(build: Callable[[Problem], Loss], problem: Problem) -> Step:
    loss = build(problem)
    return lambda: loss.value_and_gradients(*_of(problem))


def _eager_position(K: int, problem: Problem) -> Step:
    loss, N = CceMinus(K, problem.shape.n_items), problem.shape.n_positions
    return lambda: loss.value_and_gradients(*_of(problem), Negatives(draw(problem, N, K)))


def _eager_popular(K: int, problem: Problem) -> Step:
    N, V = problem.shape.n_positions, problem.shape.n_items
    loss, draws = CceMinus(K, V, "popularity", "log_q"), kernel("draws", "drawn")
    table, log_q = popularity(problem)
    return lambda: loss.value_and_gradients(*_of(problem), Negatives(draws(problem.seed, N, K, V, table), log_q=log_q))


def _eager_binary(loss: str, K: int, problem: Problem) -> Step:
    gbce, N = Gbce(problem.shape.n_items, K, 0.75 if loss == "gbce" else 0.0), problem.shape.n_positions
    return lambda: gbce.value_and_gradients(*_of(problem), Negatives(draw(problem, N, K)))


def _eager_group(K: int, problem: Problem) -> Step:
    N, V = problem.shape.n_positions, problem.shape.n_items
    loss = CeMinus(NegativesRequest(K, "group", group_size=GROUP), V, "log_count")
    n_groups = -(-N // GROUP)
    group = torch.arange(N, device=problem.device) % n_groups
    largest = -(-N // n_groups)
    return lambda: loss.value_and_gradients(
        *_of(problem), Negatives(draw(problem, n_groups, K), group, largest_group=largest)
    )


def _eager_user(K: int, problem: Problem) -> Step:
    loss = CeMinus(NegativesRequest(K, "user"), problem.shape.n_items)
    n_users = len(problem.offsets) - 1
    user = user_of_position(problem.offsets, problem.shape.n_positions)
    return lambda: loss.value_and_gradients(
        *_of(problem), Negatives(draw(problem, n_users, K), user, largest_group=problem.longest)
    )


def _eager_rece(rounds: int, extra: int, problem: Problem) -> Step:
    return _of_class(lambda p: Rece(rece_buckets(p, extra), extra, rounds), problem)


def _eager_sce(size_y: int, problem: Problem) -> Step:
    return _of_class(lambda p: Sce(p.shape.n_items, sce_buckets(p), sce_buckets(p), size_y), problem)


# ---------------------------------------------------------------------------------------------------------------- parts


def beta_of(loss: str, K: int, n_items: int) -> float:
    """The power of the positive's likelihood (Gbce)."""
    return Gbce(n_items, K, 0.75 if loss == "gbce" else 0.0).beta


def rece_buckets(problem: Problem, extra: int) -> int:
    """The published rule: sqrt(4 (1 + 2 extra) min(V, N))."""
    return int(math.sqrt(4 * (1 + 2 * extra) * min(problem.shape.n_items, problem.shape.n_positions)))


def sce_buckets(problem: Problem) -> int:
    """The published rule: 2 sqrt(N), of buckets and of positions in each."""
    return int(2 * math.sqrt(problem.shape.n_positions))


def popularity(problem: Problem) -> tuple[Tensor, Tensor]:
    """An alias table and log probabilities of items that training has met by their rank^-0.8, in no order."""
    generator = torch.Generator().manual_seed(1)
    counts = torch.arange(1, problem.shape.n_items + 1).double().pow(-0.8).mul(1e6).long()
    counts = counts[torch.randperm(len(counts), generator=generator)]
    table = kernel("draws", "alias_table")(counts)
    return table.to(problem.device), (counts / counts.sum()).log().float().to(problem.device)


def draw(problem: Problem, n_rows: int, K: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.randint(problem.shape.n_items, (n_rows, K), device=problem.device, dtype=dtype)


def user_of_position(offsets: Tensor, n_positions: int) -> Tensor:
    """(N,) int64."""
    return torch.searchsorted(offsets, torch.arange(n_positions, device=offsets.device), right=True) - 1


def _of(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    return problem.hidden, problem.items, problem.targets


def _three(result: tuple[Any, ...]) -> Result:
    value, to_hidden, to_items, *_ = result
    return value, to_hidden, to_items
