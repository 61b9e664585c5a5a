"""Ranking metrics for one held-out item a user, and metrics of recommended lists. Pure functions; docs/metrics.md.

ranks: (U,) 1-based rank of each held-out item among all candidates. With a single relevant item recall equals the
hit rate, and mean average precision the mean reciprocal rank; both names are kept because papers report both.
lists: (U, at least k) item ids, best first, -1 where a user has no further candidate.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

MISS = 2**31 - 1
"""The rank of an item that was not ranked at all: behind every cutoff, whatever the size of the catalog."""


def hit_rate(ranks: Tensor, k: int) -> float:
    """Share of users whose item is among the first k."""
    return _mean(ranks <= k)


def recall(ranks: Tensor, k: int) -> float:
    """Found relevant items over relevant items: the hit rate, as there is one."""
    return hit_rate(ranks, k)


def precision(ranks: Tensor, k: int) -> float:
    """Found relevant items over k."""
    return hit_rate(ranks, k) / k


def ndcg(ranks: Tensor, k: int) -> float:
    """Mean of 1 / log2(rank + 1), 0 beyond k; the ideal gain is 1."""
    return _mean(torch.where(ranks <= k, 1 / torch.log2(ranks.double() + 1), 0.0))


def mrr(ranks: Tensor, k: int) -> float:
    """Mean of 1 / rank, 0 beyond k."""
    return _mean(torch.where(ranks <= k, 1 / ranks.double(), 0.0))


def map(ranks: Tensor, k: int) -> float:
    """Mean average precision: 1 / rank, as there is one relevant item."""
    return mrr(ranks, k)


def coverage(lists: Tensor, k: int, n_items: int) -> float:
    """Share of the catalog that somebody is recommended: |union of the first k| / V."""
    recommended = lists[:, :k]
    return len(torch.unique(recommended[recommended >= 0])) / n_items


def surprisal(lists: Tensor, k: int, item_users: Tensor, n_users: int) -> float:
    """How unusual the recommended items are: mean over users of (sum of weights of the first k) / k, in [0, 1].

    weight = log2(n_users / item_users) / log2(n_users); 1 for an item that nobody has; 0 for one that all have.
    item_users: (V,) training users that have each item; n_users: all training users. A missing place of a list adds 0.
    (RePlay counts popularity in the test users' histories instead.) Raises ValueError if an item has more users than
    there are.
    """
    most = int(item_users.max())
    if most > n_users:
        raise ValueError(f"item_users: got {most} for an item; expected distinct users, <= n_users ({n_users}).")
    users = torch.tensor([n_users, max(n_users, 2)], dtype=torch.float64, device=item_users.device).log2()
    weight = (users[0] - item_users.double().clamp(min=1).log2()) / users[1]
    weight = torch.where(item_users > 0, weight, 1.0)
    recommended = lists[:, :k].long()
    return float(torch.where(recommended >= 0, weight[recommended.clamp(min=0)], 0.0).sum() / (k * len(lists)))


def ranking_metrics(ranks: Tensor, cutoffs: Iterable[int]) -> dict[str, float]:
    """Every metric of ranks at every cutoff: `ndcg_at_10`, `hit_rate_at_10`, ..."""
    functions = {"ndcg": ndcg, "hit_rate": hit_rate, "recall": recall, "precision": precision, "mrr": mrr, "map": map}
    return {f"{name}_at_{k}": function(ranks, k) for name, function in functions.items() for k in cutoffs}


def list_metrics(lists: Tensor, cutoffs: Iterable[int], item_users: Tensor, n_users: int) -> dict[str, float]:
    """Coverage and surprisal at every cutoff: `coverage_at_10`, `surprisal_at_10`, ..."""
    metrics: dict[str, float] = {}
    for k in cutoffs:
        metrics[f"coverage_at_{k}"] = coverage(lists, k, len(item_users))
        metrics[f"surprisal_at_{k}"] = surprisal(lists, k, item_users, n_users)
    return metrics


def _mean(values: Tensor) -> float:
    return float(values.double().mean())
