"""Cross-entropy over the whole catalog, exact, without its logits: attention whose keys and values are the item table.

    s_ij = x_i . w_j,   lse_i = log sum_j exp(s_ij),   p_ij = exp(s_ij - lse_i),   value = sum_i g_i (lse_i - s_iy)

    d value / d x_i = g_i (sum_j p_ij w_j - w_y),   d value / d w_j = sum_i g_i (p_ij - [j = y_i]) x_i

The forward pass is one walk over the catalog with an online softmax that mixes the items themselves: it yields lse and,
but for the target's row, the gradient of the states. The backward pass recomputes the logits for the items' gradient
alone: 4 matrix products and 2 exponentials for a (position, item), 8 N V D operations in all.

Tiling. Forward: a block of positions stays, tiles of items pass, each tile of items loaded once for both products; the
catalog is cut into stretches so that the card is filled, and `merge` puts them together, with the target's term, in
base 2. Backward: a tile of items stays, blocks of positions pass, with what `merge` left of each: lse less the log of
its weight. A catalog too small to fill the card is cut by positions as well. The targets' term needs the targets
sorted; then each tile of items adds its own.

Operands are rounded once to `dtype`; all sums are float32. The positive's score and rows are of the same rounded
operands as lse: value and gradients are those of one problem, whose loss is not negative and whose gradients cancel
where p_iy nears 1. No atomics, no data-dependent shapes, no waiting for the device: deterministic and capturable.

Memory beside arguments and gradients: the low copies, 2 (V + N) D bytes, and what the stretches leave, which is gone
before the gradient of the items is allocated.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seqrec.kernels import WIDEST
from seqrec.kernels.cross_entropy_launch import compute

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@torch.library.custom_op("seqrec::cross_entropy", mutates_args=())
def _cross_entropy(
    hidden: Tensor,
    items: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    dtype: torch.dtype,
    split: bool,
    gradients: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    N = len(hidden)
    if N == 0:
        rows = items.shape if gradients else (0, items.shape[1])
        return (
            hidden.new_zeros((), dtype=torch.float32),
            hidden.new_zeros((0, hidden.shape[1]), dtype=torch.float32),
            items.new_zeros(rows, dtype=torch.float32),
        )
    if weights is None:
        weights = torch.full((N,), 1 / N, device=hidden.device, dtype=torch.float32)
    hidden, items, targets, weights = (one.contiguous() for one in (hidden, items, targets, weights.float()))
    value, to_hidden, to_items, _ = compute(hidden, items, targets, weights, dtype, split, gradients)
    return value, to_hidden, to_items


@_cross_entropy.register_fake
def _(
    hidden: Tensor,
    items: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    dtype: torch.dtype,
    split: bool,
    gradients: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    (N, D), V = hidden.shape, len(items)
    new: Any = {"dtype": torch.float32}
    to_hidden, to_items = (hidden.new_empty((n if gradients else 0, D), **new) for n in (N, V))
    return hidden.new_empty((), **new), to_hidden, to_items


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:])
    ctx.dtypes = inputs[0].dtype, inputs[1].dtype


def _scaled(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if upstream is None:
        return (None,) * 7
    to_hidden, to_items = (
        (gradient * upstream).to(dtype) if wanted else None
        for gradient, dtype, wanted in zip(ctx.saved_tensors, ctx.dtypes, ctx.needs_input_grad, strict=False)
    )
    return to_hidden, to_items, *[None] * 5


_cross_entropy.register_autograd(_scaled, setup_context=_keep)


@torch.library.custom_op("seqrec::log_partition", mutates_args=())
def _log_partition(hidden: Tensor, items: Tensor, dtype: torch.dtype, split: bool) -> Tensor:
    N = len(hidden)
    if N == 0:
        return hidden.new_zeros(0, dtype=torch.float32)
    # Any item serves as the target whose loss nobody asks for.
    targets = torch.zeros(N, device=hidden.device, dtype=torch.int32)
    weights = torch.zeros(N, device=hidden.device, dtype=torch.float32)
    return compute(hidden.contiguous(), items.contiguous(), targets, weights, dtype, split, False)[3][:N]


@_log_partition.register_fake
def _(hidden: Tensor, items: Tensor, dtype: torch.dtype, split: bool) -> Tensor:
    return hidden.new_empty(len(hidden), dtype=torch.float32)


def cross_entropy(
    hidden_ND: Tensor,
    items_VD: Tensor,
    targets_N: Tensor,
    weights_N: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float16,
    split: bool = False,
    gradients: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The weighted sum over positions of -log softmax_j(x_i . w_j) at the target, and both gradients.

    hidden_ND, items_VD: any float dtype, at most 512 columns. targets_N: item ids, int32 or int64. weights_N: what each
    position counts for, not negative; None: 1 / N each. Of weight 0: a spare position, which changes nothing but must
    hold numbers. dtype: of the operands, float16, bfloat16 or float32 (products in IEEE float32, slow); split with
    float32: each operand as two float16 numbers, errors of about 1e-6 in 3 times as many products.

    Returns (value (), to_hidden (N, D), to_items (V, D)), fresh float32, without a graph; gradients=False: the value
    alone, None for both, in half the products of a forward pass. N = 0: zeros. A target outside [0, V), inf or NaN in
    the tables, or a number that float16 cannot hold (65,504; split: 1,023): the value is NaN. Raises ValueError for
    shapes and dtypes that do not fit.
    """
    check(hidden_ND, items_VD, dtype, split)
    check_positions(hidden_ND, targets_N, weights_N)
    value, to_hidden, to_items = _cross_entropy(
        hidden_ND.detach(), items_VD.detach(), targets_N, weights_N, dtype, split, gradients
    )
    return value, (to_hidden if gradients else None), (to_items if gradients else None)


def linear_cross_entropy(
    hidden_ND: Tensor,
    items_VD: Tensor,
    targets_N: Tensor,
    weights_N: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float16,
    split: bool = False,
) -> Tensor:
    """The value of `cross_entropy`, (), float32, differentiable with respect to both tables.

    The gradients are computed with the value, if any is asked for, and multiplied with the upstream one later, into
    new tensors; not twice differentiable, and not with respect to the weights.
    """
    check(hidden_ND, items_VD, dtype, split)
    check_positions(hidden_ND, targets_N, weights_N)
    gradients = torch.is_grad_enabled() and (hidden_ND.requires_grad or items_VD.requires_grad)
    value: Tensor = _cross_entropy(hidden_ND, items_VD, targets_N, weights_N, dtype, split, gradients)[0]
    return value


def log_partition(
    hidden_ND: Tensor, items_VD: Tensor, *, dtype: torch.dtype = torch.float16, split: bool = False
) -> Tensor:
    """(N,) float32 log sum_j exp(x_i . w_j), without a graph. Arguments as of `cross_entropy`."""
    check(hidden_ND, items_VD, dtype, split)
    lse: Tensor = _log_partition(hidden_ND.detach(), items_VD.detach(), dtype, split)
    return lse


def check(hidden: Tensor, items: Tensor, dtype: torch.dtype, split: bool) -> None:
    if hidden.ndim != 2 or items.ndim != 2 or hidden.shape[1] != items.shape[1]:
        raise ValueError(
            f"items_VD: got {tuple(items.shape)} beside states {tuple(hidden.shape)}; expected (V, D) and (N, D)."
        )
    if not 1 <= hidden.shape[1] <= WIDEST:
        raise ValueError(f"hidden_ND: got {hidden.shape[1]} columns; expected 1 to {WIDEST}.")
    if len(items) == 0:
        raise ValueError("items_VD: got no rows; expected one item at least.")
    if dtype not in DTYPES:
        raise ValueError(f"dtype: got {dtype}; expected one of {', '.join(map(str, DTYPES))}.")
    if split and dtype != torch.float32:
        raise ValueError(f"split: got True with {dtype}; expected torch.float32 with it.")


def check_positions(hidden: Tensor, targets: Tensor, weights: Tensor | None) -> None:
    N = len(hidden)
    if targets.shape != (N,) or targets.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"targets_N: got {tuple(targets.shape)} {targets.dtype}; expected ({N},) of int32 or int64.")
    if weights is not None and weights.shape != (N,):
        raise ValueError(f"weights_N: got {tuple(weights.shape)}; expected ({N},).")
