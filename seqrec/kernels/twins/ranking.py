"""Ranks over the whole catalog with all (U, V) scores at once, in the arguments' own precision."""

from __future__ import annotations

import torch
from torch import Tensor

MISS = 2**31 - 1


def catalog_ranks(
    hidden_UD: Tensor,
    items_VD: Tensor,
    targets_U: Tensor,
    *,
    seen: Tensor | None = None,
    starts_U: Tensor | None = None,
    lengths_U: Tensor | None = None,
    n_seen: int = 0,
) -> Tensor:
    """As `seqrec.kernels.ranking.catalog_ranks`, of any float dtype; one user at a time. `n_seen` changes nothing."""
    V = len(items_VD)
    ids = torch.arange(V, device=items_VD.device)
    ranks = []
    for u, target in enumerate(targets_U.tolist()):
        left = torch.ones(V, dtype=torch.bool, device=items_VD.device)
        if seen is not None and starts_U is not None and lengths_U is not None:
            history = seen[int(starts_U[u]) :][: int(lengths_U[u])].long()
            left[history[(history >= 0) & (history < V)]] = False
        scores = items_VD @ hidden_UD[u]
        known = 0 <= target < V and bool(left[target]) and bool(scores[target].isfinite())
        if not known or bool(scores[left].isnan().any()):
            ranks.append(MISS)
            continue
        ahead = (scores > scores[target]) | ((scores == scores[target]) & (ids < target))
        ranks.append(1 + int((ahead & left).sum()))
    return torch.tensor(ranks, dtype=torch.int64, device=hidden_UD.device)
