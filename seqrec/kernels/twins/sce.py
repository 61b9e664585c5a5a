"""Scalable cross-entropy with all (n_buckets, N) and (n_buckets, V) scores at once, in the arguments' own precision."""

from __future__ import annotations

import torch
from torch import Tensor


def top_items(centres_BD: Tensor, vectors_MD: Tensor, k: int, count: Tensor | None = None) -> Tensor:
    """(B, k) int32, -1 where there are fewer than k."""
    vectors = vectors_MD if count is None else vectors_MD[: int(count)]
    found = (centres_BD @ vectors.T).topk(min(k, len(vectors)), dim=1).indices
    return torch.nn.functional.pad(found, (0, k - found.shape[1]), value=-1).int()


def mixed_centres(
    hidden_ND: Tensor, n_buckets: int, count: Tensor | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """(n_buckets, D) mixtures of the real rows by Gaussian numbers, which are not those that the kernel draws."""
    real = hidden_ND if count is None else hidden_ND[: int(count)]
    omega = torch.empty(n_buckets, len(real), dtype=real.dtype, device=real.device)
    return omega.normal_(std=real.shape[1] ** -0.25, generator=generator) @ real


def scalable_cross_entropy(
    hidden_ND: Tensor, items_VD: Tensor, targets_N: Tensor, positions_BX: Tensor, chosen_BY: Tensor
) -> tuple[Tensor, Tensor]:
    """(mean of the largest losses of the covered positions, which are covered), differentiable. -1: an empty place."""
    N, V = len(hidden_ND), len(items_VD)
    known = (targets_N >= 0) & (targets_N < V)
    positive_N = (hidden_ND * items_VD[targets_N.where(known, 0)]).sum(1)
    loss_BN = hidden_ND.new_full((len(positions_BX), N), -torch.inf)
    rows = []
    for positions, chosen in zip(positions_BX.long(), chosen_BY.long(), strict=True):
        inside, ids = positions[positions >= 0], chosen[chosen >= 0]
        scores = hidden_ND[inside] @ items_VD[ids].T
        scores = scores.masked_fill(ids == targets_N[inside, None], -torch.inf)
        positive = positive_N[inside]
        losses = torch.cat([positive[:, None], scores], 1).logsumexp(1) - positive
        rows.append(loss_BN[0].index_copy(0, inside, losses))
    loss_N, _ = torch.stack(rows).max(0) if rows else (loss_BN.sum(0) - torch.inf, None)
    covered = loss_N > -torch.inf
    covered |= loss_N.isnan()
    value = loss_N.where(known, torch.nan)[covered].sum() / max(1, int(covered.sum()))
    return value.where(known.all(), torch.nan), covered


def sce(
    hidden_ND: Tensor,
    items_VD: Tensor,
    targets_N: Tensor,
    *,
    centres: Tensor,
    bucket_size_x: int,
    bucket_size_y: int,
    count: Tensor | None = None,
    dtype: torch.dtype = torch.float16,
    gradients: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
    """(value, to_hidden, to_items, covered share); no gradients: None. `dtype` is the kernel's and changes nothing."""
    with torch.no_grad():
        positions = top_items(centres, hidden_ND, bucket_size_x, count)
        chosen = top_items(centres, items_VD, bucket_size_y)
    n_real = len(hidden_ND) if count is None else int(count)
    leaves = [table.detach().requires_grad_(gradients) for table in (hidden_ND, items_VD)]
    with torch.set_grad_enabled(gradients):
        value, covered = scalable_cross_entropy(leaves[0][:n_real], leaves[1], targets_N[:n_real], positions, chosen)
    share = covered.sum().to(value.dtype) / max(1, n_real)
    if not gradients:
        return value, None, None, share
    to_hidden, to_items = torch.autograd.grad(value, leaves)
    return value.detach(), to_hidden, to_items, share
