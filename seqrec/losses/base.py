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
    """A training loss: weighted sum over the positions of a batch, by default their mean.

    A subclass says in `prepare` what is to be computed; how it is differentiated, and by whom, is settled here.
    """

    request: NegativesRequest | None = None
    """The negatives that `forward` must be given; None: it takes none."""

    capturable = True
    """Whether its work has shapes that the arguments' shapes decide, and never waits for the device: it can then be a
    part of a captured step, and takes `weights`."""

    @abstractmethod
    def prepare(
        self,
        hidden_ND: Tensor,
        item_embeddings_VD: Tensor,
        targets_N: Tensor,
        negatives: Negatives | None,
        generator: torch.Generator | None,
        weights_N: Tensor | None,
    ) -> Pass:
        """The work on one batch. Called without a graph, both tables in float32 at least; draws what is random."""

    def forward(
        self,
        hidden_ND: Tensor,
        item_embeddings_VD: Tensor,
        targets_N: Tensor,
        negatives: Negatives | None = None,
        generator: torch.Generator | None = None,
        weights_N: Tensor | None = None,
        **fixed: Tensor,
    ) -> Tensor:
        """Scalar, float32 at least; zero with a graph (all gradients 0) when N = 0.

        generator: where a loss draws its own random projections from, on the device of the states. weights_N: what each
        position counts for; None: 1 / N each. fixed: what a loss would else draw, by the name that its class gives it.
        Raises ValueError for negatives that do not fit the request, for weights if the loss is not `capturable`, and,
        on the CPU, for targets outside [0, V).
        """
        self.check(hidden_ND, item_embeddings_VD, targets_N, negatives, weights_N)
        hidden, items = raised(hidden_ND, item_embeddings_VD)
        return differentiable(
            self._pass(hidden, items, targets_N, negatives, generator, weights_N, fixed), hidden, items
        )

    def value_and_gradients(
        self,
        hidden_ND: Tensor,
        item_embeddings_VD: Tensor,
        targets_N: Tensor,
        negatives: Negatives | None = None,
        generator: torch.Generator | None = None,
        weights_N: Tensor | None = None,
        **fixed: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The value of `forward`, its gradient with respect to the states (N, D), and to the items (V, D); all without
        a graph. What a training step calls: the seam at which a fused kernel takes a loss's place."""
        self.check(hidden_ND, item_embeddings_VD, targets_N, negatives, weights_N)
        hidden, items = raised(hidden_ND.detach(), item_embeddings_VD.detach())
        if not len(hidden):
            return hidden.sum(), torch.zeros_like(hidden), torch.zeros_like(items)
        work = self._pass(hidden, items, targets_N, negatives, generator, weights_N, fixed)
        with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
            value, to_hidden, to_items = work(hidden, items, True)
        assert to_hidden is not None
        assert to_items is not None
        return value, to_hidden, to_items

    def _pass(
        self,
        hidden: Tensor,
        items: Tensor,
        targets: Tensor,
        negatives: Negatives | None,
        generator: torch.Generator | None,
        weights: Tensor | None,
        fixed: dict[str, Tensor],
    ) -> Pass:
        if not len(hidden):
            return _nothing
        with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
            return self.prepare(hidden, items, targets, negatives, generator, weights, **fixed)

    def check(
        self,
        hidden_ND: Tensor,
        item_embeddings_VD: Tensor,
        targets_N: Tensor,
        negatives: object,
        weights_N: Tensor | None,
    ) -> None:
        """The laws that `forward` states."""
        N, V = len(hidden_ND), len(item_embeddings_VD)
        if weights_N is not None and not (self.capturable and weights_N.shape == (N,)):
            law = f"one weight a hidden state, ({N},)" if self.capturable else "None with this loss"
            raise ValueError(message("weights_N", tuple(weights_N.shape), law))
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


def differentiable(compute: Pass, hidden: Tensor, items: Tensor) -> Tensor:
    """The value of `compute`, a node of the graph of both arguments."""
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


def _nothing(hidden: Tensor, items: Tensor, needs_gradient: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    raise AssertionError("a batch without positions has no work")


def raised(hidden_ND: Tensor, item_embeddings_VD: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float32 if they are in less."""
    dtype = torch.promote_types(hidden_ND.dtype, torch.float32)
    return hidden_ND.to(dtype), item_embeddings_VD.to(dtype)


def shares_of(weights: Tensor | None, hidden: Tensor) -> Tensor:
    """(N,) what each position counts for, in the states' dtype."""
    N = len(hidden)
    return hidden.new_full((N,), 1 / N) if weights is None else weights.to(hidden.dtype)


def row_tiles(n_rows: int, bytes_per_row: int, tile_bytes: int) -> list[slice]:
    """Consecutive rows in tiles of at most `tile_bytes`, one row at least."""
    step = max(1, tile_bytes // max(1, bytes_per_row))
    return [slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step)]
