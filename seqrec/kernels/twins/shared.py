"""As `seqrec.kernels.shared`, in plain PyTorch: all scores at once, O(N K D) memory, any float dtype."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Result = tuple[Tensor, Tensor | None, Tensor | None]


def shared_softmax(
    hidden_ND: Tensor,
    items_VD: Tensor,
    targets_N: Tensor,
    weights_N: Tensor | None = None,
    *,
    ids: Tensor,
    offsets: Tensor | None = None,
    correction: str = "none",
    log_q: Tensor | None = None,
    dtype: torch.dtype | None = None,
    gradients: bool = True,
) -> Result:
    """The operands keep their own dtype: `dtype` is ignored. Without gradients the value has a graph."""
    V = len(items_VD)
    candidates, shares = _by_position(len(hidden_ND), weights_N, ids, offsets, hidden_ND.dtype)

    def losses(positive: Tensor, scores: Tensor) -> Tensor:
        rejected = candidates == targets_N[:, None]
        kept = (~rejected).sum(1, keepdim=True).clamp(min=1).to(scores.dtype)
        if correction == "log_q" and log_q is not None:
            q = log_q.to(scores.dtype)
            scores = scores + torch.log1p(-q.exp())[targets_N][:, None] - kept.log() - q[candidates]
        elif correction != "none":
            scores = scores + math.log(max(1, V - 1)) - kept.log()
        logits = torch.cat([positive[:, None], scores.masked_fill(rejected, -torch.inf)], 1)
        return logits.logsumexp(1) - positive

    return _result(losses, hidden_ND, items_VD, targets_N, candidates, shares, gradients)


def shared_binary(
    hidden_ND: Tensor,
    items_VD: Tensor,
    targets_N: Tensor,
    weights_N: Tensor | None = None,
    *,
    ids: Tensor,
    offsets: Tensor | None = None,
    beta: float = 1.0,
    mean: bool = True,
    plus: bool = False,
    eps: float = 1e-6,
    dtype: torch.dtype | None = None,
    gradients: bool = True,
) -> Result:
    """The operands keep their own dtype: `dtype` is ignored. Without gradients the value has a graph."""
    candidates, shares = _by_position(len(hidden_ND), weights_N, ids, offsets, hidden_ND.dtype)

    def unlikely(scores: Tensor) -> Tensor:
        if plus:
            return -torch.logaddexp(F.logsigmoid(scores), torch.full_like(scores, math.log(eps)))
        return -F.logsigmoid(scores)

    def losses(positive: Tensor, scores: Tensor) -> Tensor:
        found = beta * unlikely(positive) + unlikely(-scores).sum(1)
        return found / (1 + ids.shape[1]) if mean else found

    return _result(losses, hidden_ND, items_VD, targets_N, candidates, shares, gradients)


def _by_position(
    N: int, weights: Tensor | None, ids: Tensor, offsets: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(N, K) int64 candidates and (N,) what each position counts for."""
    place, G = torch.arange(N, device=ids.device), len(ids)
    shares = torch.full((N,), 1 / max(1, N), device=ids.device, dtype=dtype)
    if weights is not None:
        shares = weights.to(dtype)
    if offsets is None:
        return ids[place % G].to(torch.int64), shares
    group = torch.searchsorted(offsets.to(torch.int64), place, right=True) - 1
    in_some = (group >= 0) & (group < G)
    return ids[group.clamp(0, G - 1)].to(torch.int64), torch.where(in_some, shares, 0)


def _result(
    losses: Callable[[Tensor, Tensor], Tensor],
    hidden: Tensor,
    items: Tensor,
    targets: Tensor,
    candidates: Tensor,
    shares: Tensor,
    gradients: bool,
) -> Result:
    """The weighted value, and both gradients by autograd if they are wanted."""

    def value(hidden: Tensor, items: Tensor) -> Tensor:
        positive = (hidden * items[targets]).sum(1)
        scores = torch.einsum("nd,nkd->nk", hidden, items[candidates])
        # A position that counts for nothing may have an infinite loss.
        return torch.where(shares == 0, 0, losses(positive, scores) * shares).sum()

    if not gradients:
        return value(hidden, items), None, None
    with torch.enable_grad():
        leaves = hidden.detach().requires_grad_(), items.detach().requires_grad_()
        found = value(*leaves)
        to_hidden, to_items = torch.autograd.grad(found, leaves)
    return found.detach(), to_hidden, to_items
