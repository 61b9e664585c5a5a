"""What every loss is, and the one way in which all of them are differentiated.

The losses see valid positions only: N hidden states, N targets, V item embeddings. There are no pads, no pad row and no
phantom item that could enter a partition function or a mean.

Autograd would keep every intermediate of a loss until the backward pass: several copies of (N, V) logits or (N, K, D)
gathered embeddings. Here a loss is a function that walks over tiles of bounded size and returns its value together with
both gradients; `differentiable` makes that one node of the graph, so that between forward and backward only the
gradients, (N, D) and (V, D), are alive.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from seqrec.data.negatives import Negatives, NegativesRequest
from seqrec.errors import message

Pass = Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor | None, Tensor | None]]
"""(hidden_ND, item_embeddings_VD, needs_gradient) -> (scalar, gradient (N, D), gradient (V, D)); no gradients: None."""


class Loss(nn.Module, ABC):
    """A training loss: mean over the positions of a batch."""

    request: NegativesRequest | None = None
    """The negatives that `forward` must be given; None: it takes none."""

    @abstractmethod
    def forward(
        self,
        hidden_ND: Tensor,
        item_embeddings_VD: Tensor,
        targets_N: Tensor,
        negatives: Negatives | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Scalar, float32 at least; zero with a graph (all gradients 0) when N = 0.

        generator: where a loss draws its own random projections from, on the device of the states. Raises ValueError
        for negatives that do not fit the request and, on the CPU, for targets outside [0, V).
        """

    def check(self, hidden_ND: Tensor, item_embeddings_VD: Tensor, targets_N: Tensor, negatives: object) -> None:
        """The laws that `forward` states."""
        N, V = len(hidden_ND), len(item_embeddings_VD)
        if targets_N.shape != (N,):
            raise ValueError(message("targets_N", tuple(targets_N.shape), f"one target a hidden state, ({N},)"))
        if (negatives is None) != (self.request is None):
            raise ValueError(message("negatives", negatives, "None" if self.request is None else f"{self.request}"))
        if isinstance(negatives, Negatives):
            rows = len(negatives.ids) if negatives.group is None else len(negatives.group)
            if rows != N:
                raise ValueError(message("negatives", rows, f"one draw, or one group, for each of the {N} positions"))
        # On a GPU the check would wait for the device; there the index kernels assert.
        if N and targets_N.device.type == "cpu":
            least, most = int(targets_N.min()), int(targets_N.max())
            if least < 0 or most >= V:
                raise ValueError(message("targets_N", least if least < 0 else most, f"item ids in [0, {V})"))


def differentiable(compute: Pass, hidden_ND: Tensor, item_embeddings_VD: Tensor) -> Tensor:
    """The value of `compute`, a node of the graph of both arguments."""
    hidden, items = raised(hidden_ND, item_embeddings_VD)
    if not len(hidden):
        return hidden.sum() + items[:0].sum()
    value: Tensor = _Tiled.apply(hidden, items, compute)  # type: ignore[no-untyped-call]
    return value


class _Tiled(torch.autograd.Function):
    """Gradients are computed beside the value and handed over by the first backward pass, which may scale them in
    place; another backward pass through a retained graph computes them again."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, items: Tensor, compute: Pass) -> Tensor:
        ctx.save_for_backward(hidden, items)
        ctx.compute = compute
        with torch.autocast(hidden.device.type, enabled=False):
            value, *ctx.gradients = compute(hidden, items, any(ctx.needs_input_grad))
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        if not ctx.gradients:
            with torch.autocast(upstream.device.type, enabled=False):
                _, *ctx.gradients = ctx.compute(*ctx.saved_tensors, True)
        to_hidden, to_items = ctx.gradients
        ctx.gradients = None
        return to_hidden.mul_(upstream), to_items.mul_(upstream), None


def raised(hidden_ND: Tensor, item_embeddings_VD: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float32 if they are in less."""
    dtype = torch.promote_types(hidden_ND.dtype, torch.float32)
    return hidden_ND.to(dtype), item_embeddings_VD.to(dtype)


def row_tiles(n_rows: int, bytes_per_row: int, tile_bytes: int) -> list[slice]:
    """Consecutive rows in tiles of at most `tile_bytes`, one row at least."""
    step = max(1, tile_bytes // max(1, bytes_per_row))
    return [slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step)]
