"""Cross-entropy over the whole catalog, with all (N, V) logits at once, in the arguments' own precision."""

from __future__ import annotations

import torch
from torch import Tensor


def log_partition(hidden_ND: Tensor, items_VD: Tensor, *, dtype: torch.dtype = torch.float16) -> Tensor:
    """(N,) log sum_j exp(x_i . w_j)."""
    return (hidden_ND @ items_VD.T).logsumexp(1)


def linear_cross_entropy(
    hidden_ND: Tensor, items_VD: Tensor, targets_N: Tensor, weights_N: Tensor | None = None
) -> Tensor:
    """sum_i weight_i (lse_i - x_i . w_y), differentiable. No weights: 1 / N each. A target that is no item: NaN."""
    known = (targets_N >= 0) & (targets_N < len(items_VD))
    positive = (hidden_ND * items_VD[targets_N.where(known, 0)]).sum(1)
    loss = (log_partition(hidden_ND, items_VD) - positive).where(known, torch.nan)
    if weights_N is None:
        return loss.sum() / max(1, len(loss))
    return (loss * weights_N).sum()


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
    """(value, to_hidden, to_items); no gradients: None. `dtype` and `split` are the kernel's and change nothing."""
    if not gradients:
        with torch.no_grad():
            return linear_cross_entropy(hidden_ND, items_VD, targets_N, weights_N), None, None
    with torch.enable_grad():
        leaves = [table.detach().requires_grad_() for table in (hidden_ND, items_VD)]
        value = linear_cross_entropy(leaves[0], leaves[1], targets_N, weights_N)
        to_hidden, to_items = torch.autograd.grad(value, leaves)
    return value.detach(), to_hidden, to_items
