"""As `seqrec.kernels.sampled`, in plain PyTorch: all scores at once, O(N K D) memory, any float dtype."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from seqrec.kernels.draws import drawn

Result = tuple[Tensor, Tensor | None, Tensor | None]


def sampled_softmax(
    hidden_ND: Tensor,
    items_VD: Tensor,
    targets_N: Tensor,
    weights_N: Tensor | None = None,
    *,
    ids: Tensor | None = None,
    seed: Tensor | None = None,
    n_negatives: int | None = None,
    popularity: Tensor | None = None,
    correction: str = "none",
    log_q: Tensor | None = None,
    dtype: torch.dtype | None = None,
    gradients: bool = True,
    scatter: str = "auto",
) -> Result:
    """The operands keep their own dtype: dtype and scatter are ignored. Without gradients the value has a graph."""
    V = len(items_VD)
    ids = candidates(len(hidden_ND), V, ids, seed, n_negatives, popularity)

    def value(hidden: Tensor, items: Tensor) -> Tensor:
        positive, scores = all_scores(hidden, items, targets_N, ids)
        rejected = ids == targets_N[:, None]
        kept = (~rejected).sum(1, keepdim=True).clamp(min=1).to(scores.dtype)
        if correction == "log_q" and log_q is not None:
            q = log_q.to(scores.dtype)
            scores = scores + torch.log1p(-q.exp())[targets_N][:, None] - kept.log() - q[ids]
        elif correction != "none":
            scores = scores + math.log(max(1, V - 1)) - kept.log()
        logits = torch.cat([positive[:, None], scores.masked_fill(rejected, -torch.inf)], 1)
        return weighted(logits.logsumexp(1) - positive, weights_N)

    return with_gradients(value, hidden_ND, items_VD, gradients)


def sampled_binary(
    hidden_ND: Tensor,
    items_VD: Tensor,
    targets_N: Tensor,
    weights_N: Tensor | None = None,
    *,
    ids: Tensor | None = None,
    seed: Tensor | None = None,
    n_negatives: int | None = None,
    popularity: Tensor | None = None,
    beta: float = 1.0,
    mean: bool = True,
    plus: bool = False,
    eps: float = 1e-6,
    dtype: torch.dtype | None = None,
    gradients: bool = True,
    scatter: str = "auto",
) -> Result:
    """The operands keep their own dtype: dtype and scatter are ignored. Without gradients the value has a graph."""
    ids = candidates(len(hidden_ND), len(items_VD), ids, seed, n_negatives, popularity)

    def unlikely(scores: Tensor) -> Tensor:
        if plus:
            return -torch.logaddexp(F.logsigmoid(scores), torch.full_like(scores, math.log(eps)))
        return -F.logsigmoid(scores)

    def value(hidden: Tensor, items: Tensor) -> Tensor:
        positive, scores = all_scores(hidden, items, targets_N, ids)
        losses = beta * unlikely(positive) + unlikely(-scores).sum(1)
        return weighted(losses / (1 + ids.shape[1]) if mean else losses, weights_N)

    return with_gradients(value, hidden_ND, items_VD, gradients)


def candidates(
    n_rows: int,
    n_items: int,
    ids: Tensor | None,
    seed: Tensor | None,
    n_negatives: int | None,
    popularity: Tensor | None,
) -> Tensor:
    """(N, K) int64."""
    if ids is not None:
        return ids.to(torch.int64)
    assert seed is not None
    assert n_negatives is not None
    return drawn(seed, n_rows, n_negatives, n_items, popularity)


def all_scores(hidden: Tensor, items: Tensor, targets: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) of the targets, (N, K) of the candidates."""
    return (hidden * items[targets]).sum(1), torch.einsum("nd,nkd->nk", hidden, items[ids])


def weighted(losses: Tensor, weights: Tensor | None) -> Tensor:
    """() sum of weighted losses; their mean without weights, 0 if there are none."""
    if weights is None:
        return losses.sum() / max(1, len(losses))
    # A spare position's loss may be infinite.
    return torch.where(weights == 0, 0, losses * weights).sum()


def with_gradients(value: Callable[[Tensor, Tensor], Tensor], hidden: Tensor, items: Tensor, wanted: bool) -> Result:
    """The value, and both gradients by autograd if they are wanted."""
    if not wanted:
        return value(hidden, items), None, None
    with torch.enable_grad():
        leaves = hidden.detach().requires_grad_(), items.detach().requires_grad_()
        found = value(*leaves)
        to_hidden, to_items = torch.autograd.grad(found, leaves)
    return found.detach(), to_hidden, to_items
