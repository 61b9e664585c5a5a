"""Exact cross-entropy over a catalog as others offer it: PyTorch, cut-cross-entropy, Liger, where they are installed.

Each is called as its documentation says, on 16-bit copies of the float32 leaves where it wants 16 bits, and
differentiated by autograd down to the leaves: the cast and a dense float32 gradient are in its time and memory, as in
the fused losses'.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.loss_clock import Result, Step
from benchmarks.loss_problems import Problem

Forward = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(hidden, items, targets) -> scalar, in the graph of the first two."""


@dataclass(frozen=True, eq=False)
class Baseline:
    who: str
    dtype: torch.dtype
    load: Callable[[], Forward | None]
    """None: not installed."""
    shapes: tuple[str, ...] = ("S0", "S1")

    def step(self, forward: Forward, problem: Problem) -> Step:
        """Value and gradients of the float32 leaves."""

        def step() -> Result:
            # Views of the problem's tensors: no memory of their own.
            hidden, items = (leaf.detach().requires_grad_() for leaf in (problem.hidden, problem.items))
            value = forward(hidden.to(self.dtype), items.to(self.dtype), problem.targets)
            to_hidden, to_items = torch.autograd.grad(value, (hidden, items))
            return value.detach(), to_hidden, to_items

        return step


def _torch() -> Forward:
    return lambda hidden, items, targets: F.cross_entropy(hidden @ items.T, targets)


def _chunked() -> Forward | None:
    function, options = getattr(F, "linear_cross_entropy", None), getattr(torch.nn, "LinearCrossEntropyOptions", None)
    if function is None or options is None:
        return None
    chosen: Any = options()
    return lambda hidden, items, targets: function(hidden, items, targets, options=chosen)


def _apple(impl: str) -> Callable[[], Forward | None]:
    def load() -> Forward | None:
        module = _installed("cut_cross_entropy")
        if module is None:
            return None
        return lambda hidden, items, targets: module.linear_cross_entropy(hidden, items, targets, impl=impl)

    return load


def _liger() -> Forward | None:
    module = _installed("liger_kernel.transformers.fused_linear_cross_entropy")
    if module is None:
        return None
    loss = module.LigerFusedLinearCrossEntropyLoss()
    return lambda hidden, items, targets: loss(items, hidden, targets)


def _installed(name: str) -> Any | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


MAIN = ("S0", "S1", "S2", "S3")

BASELINES = [
    Baseline("torch", torch.float32, _torch),
    Baseline("torch", torch.bfloat16, _torch),
    Baseline("torch chunked", torch.float32, _chunked),
    Baseline("torch chunked", torch.bfloat16, _chunked),
    Baseline("apple exact", torch.bfloat16, _apple("cce_exact"), ("S0", "S1", "S3")),
    Baseline("apple filtered", torch.bfloat16, _apple("cce"), MAIN),
    Baseline("liger", torch.bfloat16, _liger, ("S0",)),
]
