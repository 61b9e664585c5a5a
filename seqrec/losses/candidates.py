"""Losses of a position's own score and the scores of K candidate items: the tiles that all sampled losses walk over.

Candidates come as rows of K items, `Negatives.ids`; a position has a row of its own, or shares one with its group. A
tile is a handful of rows with all or some of the positions that use them, so that one batched matrix product scores it,
and another gives the gradients: no elementwise product of (positions, K, D) is ever formed, no (N, K) is ever whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from seqrec.data.negatives import Negatives
from seqrec.losses.base import Pass, shares_of
from seqrec.memory import TILE_BYTES

RowLoss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(positive (G, P), scores (G, P, K), targets (G, P), ids (G, K)) -> losses (G, P), by differentiable operations."""


def by_tiles(row_loss: RowLoss, targets_N: Tensor, negatives: Negatives, weights_N: Tensor | None = None) -> Pass:
    """Weighted sum of `row_loss` over the N positions, their mean by default; beside ids and gradients at most about
    TILE_BYTES alive (one position's K embeddings at least)."""
    return partial(_by_tiles, row_loss=row_loss, targets=targets_N, negatives=negatives, weights=weights_N)


def softmax_loss(positive_GP: Tensor, logits_GPK: Tensor, rejected_GPK: Tensor) -> Tensor:
    """-log softmax of the positive among itself and the candidates that are not rejected: 0 when all are rejected."""
    logits = logits_GPK.masked_fill(rejected_GPK, -torch.inf)
    return torch.cat([positive_GP[..., None], logits], dim=-1).logsumexp(-1) - positive_GP


def hits(targets_GP: Tensor, ids_GK: Tensor) -> Tensor:
    """(G, P, K): the candidate is the position's own target."""
    return ids_GK[:, None, :] == targets_GP[:, :, None]


def _by_tiles(
    hidden: Tensor,
    items: Tensor,
    needs_gradient: bool,
    *,
    row_loss: RowLoss,
    targets: Tensor,
    negatives: Negatives,
    weights: Tensor | None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    N = len(hidden)
    shares = shares_of(weights, hidden)
    total = hidden.new_zeros(())
    to_hidden = torch.zeros_like(hidden) if needs_gradient else None
    to_items = torch.zeros_like(items) if needs_gradient else None
    for tile in _tiles(negatives, N, hidden.shape[1] * hidden.element_size(), hidden.element_size()):
        ids_GK = negatives.ids[tile.draws]
        x_GPD, y_GP, w_GKD = hidden[tile.rows], targets[tile.rows], items[ids_GK]
        positive_GP = torch.linalg.vecdot(x_GPD, items[y_GP])
        scores_GPK = torch.bmm(x_GPD, w_GKD.mT)
        with torch.set_grad_enabled(needs_gradient):
            leaves = positive_GP.requires_grad_(needs_gradient), scores_GPK.requires_grad_(needs_gradient)
            value = (row_loss(*leaves, y_GP, ids_GK).where(tile.used, 0) * shares[tile.rows]).sum()
        total += value.detach()
        if to_hidden is None or to_items is None:
            continue
        at_positive_GP, at_scores_GPK = torch.autograd.grad(value, leaves)
        x_step_GPD = torch.bmm(at_scores_GPK, w_GKD).addcmul_(at_positive_GP[..., None], items[y_GP])
        to_hidden.index_add_(0, tile.rows.flatten(), x_step_GPD.flatten(0, 1))
        to_items.index_add_(0, ids_GK.flatten(), torch.bmm(at_scores_GPK.mT, x_GPD).flatten(0, 1))
        to_items.index_add_(0, y_GP.flatten(), (at_positive_GP[..., None] * x_GPD).flatten(0, 1))
    return total, to_hidden, to_items


@dataclass(frozen=True, eq=False)
class _Tile:
    draws: Tensor
    """(G,) rows of `Negatives.ids`."""
    rows: Tensor
    """(G, P) positions that use them."""
    used: Tensor
    """(G, P) False where a row of candidates has fewer than P positions; `rows` is then some other position."""


def _tiles(negatives: Negatives, n_positions: int, state_bytes: int, score_bytes: int) -> Iterator[_Tile]:
    """Every position exactly once."""
    n_draws, n_candidates = negatives.ids.shape
    device = negatives.ids.device
    # Candidate embeddings and their gradient; of a position its scores, about four copies in a row loss, and four
    # states.
    draw_bytes = 2 * n_candidates * state_bytes
    position_bytes = 4 * (n_candidates * score_bytes + state_bytes)
    if negatives.group is None:
        step = max(1, TILE_BYTES // (draw_bytes + position_bytes))
        for start in range(0, n_positions, step):
            rows = torch.arange(start, min(start + step, n_positions), device=device)
            yield _Tile(rows, rows[:, None], torch.ones_like(rows[:, None], dtype=torch.bool))
        return
    order = negatives.group.argsort(stable=True)
    counts = torch.zeros(n_draws, dtype=torch.int64, device=device)
    counts.index_add_(0, negatives.group, torch.ones_like(negatives.group))
    starts = counts.cumsum(0) - counts
    most_wide = max(1, TILE_BYTES // position_bytes)
    if negatives.largest_group is None:
        # Largest groups first: a tile is as wide as its first group, and little of it is wasted on narrower ones.
        by_size = counts.argsort(descending=True, stable=True)
        sizes = counts[by_size].tolist()
    else:
        by_size = torch.arange(n_draws, device=device)
        sizes = [negatives.largest_group] * n_draws
    first = 0
    while first < n_draws and sizes[first]:
        width = min(sizes[first], most_wide)
        draws = by_size[first : first + max(1, TILE_BYTES // (draw_bytes + width * position_bytes))]
        for left in range(0, sizes[first], width):
            slot = left + torch.arange(width, device=device)
            used = slot < counts[draws, None]
            yield _Tile(draws, order[(starts[draws, None] + slot).clamp(max=n_positions - 1)], used)
        first += len(draws)
