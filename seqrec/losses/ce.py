"""Cross-entropy over the whole catalog, exact, without ever holding its logits.

    loss = 1/N sum_i [ log sum_j exp(s_ij) - s_iy ],   s_ij = x_i . w_j,   j over all V items

    p_ij = softmax_j s_ij,   d loss / d x_i = 1/N (sum_j p_ij w_j - w_y),   d loss / d w_j = 1/N sum_i (p_ij - [j =
    y_i]) x_i

Two orders of the same sum. `Ce`: tiles of rows, whole catalog each; a tile's softmax is complete, so its gradients come
out of the same tile (3 matrix products). `Cce`: tiles of rows and blocks of items with an online log-sum-exp, logits
computed twice (4 products), memory independent of V.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from seqrec.data.negatives import Negatives
from seqrec.losses.base import Loss, Pass, row_tiles, shares_of
from seqrec.memory import TILE_BYTES


class Ce(Loss):
    """Full softmax cross-entropy; mean over valid positions.

    The published code materialises the logits of all B x L positions, pads included, over V + 2 rows (pad and phantom
    rows are classes there), then copies the valid ones. Here N rows, V classes, at most `chunk_bytes` of logits alive
    (one row at least).
    """

    def __init__(self, chunk_bytes: int = 2**27) -> None:
        super().__init__()
        self.chunk_bytes = chunk_bytes

    def prepare(
        self,
        hidden_ND: Tensor,
        item_embeddings_VD: Tensor,
        targets_N: Tensor,
        negatives: Negatives | None,
        generator: torch.Generator | None,
        weights_N: Tensor | None,
    ) -> Pass:
        return partial(_by_rows, targets=targets_N, weights=weights_N, chunk_bytes=self.chunk_bytes)


class Cce(Loss):
    """Cut cross-entropy (arXiv 2411.09009): the value and gradients of `Ce`, blockwise over the catalog.

    Exact: no gradient filtering. Valid positions only; the published recommender port trains every pad toward item 0
    and counts it in the mean.
    """

    def __init__(self, block_items: int = 4096) -> None:
        super().__init__()
        self.block_items = block_items

    def prepare(
        self,
        hidden_ND: Tensor,
        item_embeddings_VD: Tensor,
        targets_N: Tensor,
        negatives: Negatives | None,
        generator: torch.Generator | None,
        weights_N: Tensor | None,
    ) -> Pass:
        return partial(_by_blocks, targets=targets_N, weights=weights_N, block_items=self.block_items)


def _by_rows(
    hidden: Tensor, items: Tensor, needs_gradient: bool, *, targets: Tensor, weights: Tensor | None, chunk_bytes: int
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    N, V = len(hidden), len(items)
    tiles = row_tiles(N, V * hidden.element_size(), chunk_bytes)
    # One buffer for all tiles: logits, then exponentials, then softmax minus one-hot, each in place of the last.
    buffer = hidden.new_empty(tiles[0].stop, V)
    total = hidden.new_zeros(())
    shares = shares_of(weights, hidden)
    to_hidden = torch.empty_like(hidden) if needs_gradient else None
    to_items = torch.zeros_like(items) if needs_gradient else None
    for tile in tiles:
        x, y, share = hidden[tile], targets[tile, None], shares[tile, None]
        logits = torch.mm(x, items.T, out=buffer[: len(x)])
        largest = logits.amax(1, keepdim=True)
        logits.sub_(largest)
        positive = logits.gather(1, y)
        mass = logits.exp_().sum(1, keepdim=True)
        total += (mass.log() - positive).mul_(share).sum()
        if to_hidden is None or to_items is None:
            continue
        residual = logits.mul_(share / mass)
        residual.scatter_add_(1, y, -share)
        torch.mm(residual, items, out=to_hidden[tile])
        to_items.addmm_(residual.T, x)
    return total, to_hidden, to_items


def _by_blocks(
    hidden: Tensor, items: Tensor, needs_gradient: bool, *, targets: Tensor, weights: Tensor | None, block_items: int
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    N, V = len(hidden), len(items)
    blocks = [slice(start, start + block_items) for start in range(0, V, block_items)]
    # Logits and their exponentials are alive together.
    tiles = row_tiles(N, 2 * min(V, block_items) * hidden.element_size(), TILE_BYTES)
    shares = shares_of(weights, hidden)
    total = -torch.dot(torch.linalg.vecdot(hidden, items[targets]), shares)
    to_hidden = torch.zeros_like(hidden) if needs_gradient else None
    to_items = torch.zeros_like(items) if needs_gradient else None
    for tile in tiles:
        x, share = hidden[tile], shares[tile, None]
        lse = x.new_full((len(x),), -torch.inf)
        for block in blocks:
            lse = torch.logaddexp(lse, (x @ items[block].T).logsumexp(1))
        total += torch.dot(lse, shares[tile])
        if to_hidden is None or to_items is None:
            continue
        for block in blocks:
            residual = (x @ items[block].T).sub_(lse[:, None]).exp_().mul_(share)
            to_hidden[tile].addmm_(residual, items[block])
            to_items[block].addmm_(residual.T, x)
    if to_hidden is not None and to_items is not None:
        to_hidden.addcmul_(items[targets], shares[:, None], value=-1)
        to_items.index_add_(0, targets, hidden * -shares[:, None])
    return total, to_hidden, to_items
