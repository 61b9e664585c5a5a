"""Scalable cross-entropy (SCE, arXiv 2409.18721): softmax over the hardest items of random buckets.

    centres b_1..b_n;  X_b = the positions with the bucket_size_x largest b . x_i,  W_b = the items with the
    bucket_size_y largest b . w_j
    loss_i = max over the buckets b with i in X_b of
             -s_iy + log( exp(s_iy) + sum_{j in W_b, j != y_i} exp(s_ij) )
    loss   = mean of loss_i over the positions that are in some bucket

Only the bucket that wins the maximum passes a gradient to its position. So the buckets are filled, and the winners
found, without a graph; what remains is softmax cross-entropy of each covered position with the items of its winning
bucket, a CE- with hard negatives, differentiated on N rows instead of n_buckets * bucket_size_x.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from seqrec.data.negatives import Negatives
from seqrec.errors import InfeasibleError, message
from seqrec.losses.base import Loss, Pass, row_tiles
from seqrec.losses.candidates import by_tiles, hits, softmax_loss
from seqrec.memory import TILE_BYTES

_MIXED_AT_A_TIME = 4096
"""Positions whose mixing coefficients are alive together; decides, with the seed, which numbers are drawn."""


class Sce(Loss):
    """SCE over valid positions and the V items of the catalog.

    mix_x: centres are random mixtures of the batch's states, else Gaussian. Deviations from the published code, which
    fails or errs there: a batch of N < bucket_size_x positions fills its buckets with all N; pads cannot be selected
    for there are none; a position whose loss is exactly 0 still counts as covered; of two buckets that tie at the
    maximum the first wins. Gradients reach states and items alike (one published port detaches the items). Raises
    InfeasibleError if bucket_size_y exceeds the catalog.
    """

    capturable = False

    covered_share: Tensor | None = None
    """After `forward`: share of the positions that were in some bucket, a scalar on the device. The others had no
    loss."""

    def __init__(
        self, n_items: int, n_buckets: int, bucket_size_x: int, bucket_size_y: int, mix_x: bool = False
    ) -> None:
        super().__init__()
        if bucket_size_y > n_items:
            law = f"at most the catalog ({n_items} items)"
            raise InfeasibleError(message("loss.bucket_size_y", bucket_size_y, law))
        self.n_buckets = n_buckets
        self.bucket_size_x = bucket_size_x
        self.bucket_size_y = bucket_size_y
        self.mix_x = mix_x

    def prepare(
        self,
        hidden_ND: Tensor,
        item_embeddings_VD: Tensor,
        targets_N: Tensor,
        negatives: Negatives | None,
        generator: torch.Generator | None,
        weights_N: Tensor | None,
        *,
        centres: Tensor | None = None,
    ) -> Pass:
        """centres: (n_buckets, D) fixed ones, instead of those drawn from `generator`."""
        N = len(hidden_ND)
        if centres is None:
            centres = self._centres(hidden_ND, generator)
        # A bucket's score is only ever compared with scores of the same bucket: the centres' scale is of no
        # consequence.
        positions = _top(centres, hidden_ND, min(self.bucket_size_x, N))
        items = _top(centres, item_embeddings_VD, self.bucket_size_y)
        winner = _hardest_bucket(hidden_ND, item_embeddings_VD, targets_N, positions, items)
        covered = (winner < len(centres)).nonzero().squeeze(1)
        self.covered_share = hidden_ND.new_tensor(len(covered) / N)
        work = by_tiles(_row_loss, targets_N[covered], Negatives(items, winner[covered]))
        return partial(_of_some, covered=covered, work=work)

    def _centres(self, hidden: Tensor, generator: torch.Generator | None) -> Tensor:
        D = hidden.shape[1]
        if not self.mix_x:
            centres = hidden.new_empty(self.n_buckets, D)
            return centres.normal_(std=D**-0.25, generator=generator)
        centres = hidden.new_zeros(self.n_buckets, D)
        for part in torch.split(hidden, _MIXED_AT_A_TIME):
            mixture = hidden.new_empty(len(part), self.n_buckets).normal_(std=D**-0.25, generator=generator)
            centres.addmm_(mixture.T, part)
        return centres


def _of_some(
    hidden: Tensor, items: Tensor, needs_gradient: bool, *, covered: Tensor, work: Pass
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """`work` on the covered positions; the others get no gradient."""
    value, to_covered, to_items = work(hidden[covered], items, needs_gradient)
    if to_covered is None:
        return value, None, None
    return value, torch.zeros_like(hidden).index_copy_(0, covered, to_covered), to_items


def _row_loss(positive_GP: Tensor, scores_GPK: Tensor, targets_GP: Tensor, ids_GK: Tensor) -> Tensor:
    return softmax_loss(positive_GP, scores_GPK, hits(targets_GP, ids_GK))


def _top(centres: Tensor, vectors: Tensor, k: int) -> Tensor:
    """(n_buckets, k) indices of the vectors that score highest with each centre; a tile of centres at a time."""
    found = torch.empty(len(centres), k, dtype=torch.int64, device=vectors.device)
    for tile in row_tiles(len(centres), len(vectors) * vectors.element_size(), TILE_BYTES):
        found[tile] = (centres[tile] @ vectors.T).topk(k, dim=1, sorted=False).indices
    return found


def _hardest_bucket(hidden: Tensor, items: Tensor, targets: Tensor, positions_BX: Tensor, items_BY: Tensor) -> Tensor:
    """(N,) the bucket in which each position's loss is largest; n_buckets for positions in no bucket."""
    n_buckets, size_x = positions_BX.shape
    size_y, D = items_BY.shape[1], hidden.shape[1]
    losses_BX = hidden.new_empty(n_buckets, size_x)
    # Logits, two copies and a mask of them, and the gathered states and embeddings.
    bucket_bytes = (3 * size_x * size_y + 2 * (size_x + size_y) * D) * hidden.element_size() + size_x * size_y
    for tile in row_tiles(n_buckets, bucket_bytes, TILE_BYTES):
        states, y = hidden[positions_BX[tile]], targets[positions_BX[tile]]
        positive = torch.linalg.vecdot(states, items[y])
        scores = torch.bmm(states, items[items_BY[tile]].mT)
        losses_BX[tile] = _row_loss(positive, scores, y, items_BY[tile])
    slots = positions_BX.flatten()
    largest_N = losses_BX.new_full((len(hidden),), -torch.inf).scatter_reduce(0, slots, losses_BX.flatten(), "amax")
    # Not `==`: a NaN must win, and show in the loss, rather than leave its position uncovered.
    wins = ~(losses_BX < largest_N[positions_BX])
    bucket = torch.arange(n_buckets, device=hidden.device)[:, None]
    candidate = torch.where(wins, bucket, n_buckets).flatten()
    return slots.new_full((len(hidden),), n_buckets).scatter_reduce(0, slots, candidate, "amin")
