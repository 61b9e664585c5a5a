"""RECE (arXiv 2408.02354): softmax over the items that random hashing puts near a position.

    round r:  bucket(v) = argmax_b v . projection_rb, for every state and every item embedding
              sort states by bucket, sort items by bucket, cut each order by rank into n_chunks equal pieces
              C_i gains the items of the chunks q - n_extra_chunks .. q + n_extra_chunks, q = chunk of x_i
    loss_i = -s_iy + log( exp(s_iy) + sum_{j in C_i, j != y_i} exp(s_ij) ),   mean over positions

C_i is a set: an item that several rounds find counts once. The papers write this as logit - log(times found) for each
occurrence, which is the same sum; here a pair is scored in round r only if no earlier round had it within reach, which
takes two small integers a state or item and round, and no sort over all candidates. Items never found are missing from
the sum, uncorrected, as published.

Chunks. Piece q of n sorted things is ranks floor(q n / n_chunks) .. floor((q + 1) n / n_chunks) - 1, whatever n: sizes
differ by at most 1, nothing is padded. The published code pads states and item table with zero rows to a multiple of
n_buckets; zero vectors hash to bucket 0 and so shift the ranks of everything behind them, and chunk sizes must divide.
Where everything divides, the two rules agree. Chunks of states and items meet by rank, as published: chunk q of one and
chunk q of the other hold the same buckets only as far as both fill them alike, which is what n_extra_chunks is for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from seqrec.data.negatives import Negatives
from seqrec.losses.base import Loss, Pass, row_tiles
from seqrec.memory import TILE_BYTES


class Rece(Loss):
    """RECE over valid positions and the V items of the catalog.

    n_chunks = n_buckets // buckets_per_chunk. A chunk's neighbours do not wrap around the ends. Projections are
    Gaussian, new at every step. The candidates of one tile of one round are alive at a time, not (rounds, N, K).
    """

    capturable = False

    def __init__(self, n_buckets: int, n_extra_chunks: int = 1, rounds: int = 1, buckets_per_chunk: int = 1) -> None:
        super().__init__()
        self.n_buckets = n_buckets
        self.rounds = rounds
        self.n_chunks = n_buckets // buckets_per_chunk
        # Chunks are told apart by small integers, and no two are further apart than this.
        self.n_extra_chunks = min(n_extra_chunks, self.n_chunks)

    def prepare(
        self,
        hidden_ND: Tensor,
        item_embeddings_VD: Tensor,
        targets_N: Tensor,
        negatives: Negatives | None,
        generator: torch.Generator | None,
        weights_N: Tensor | None,
        *,
        projections: Tensor | None = None,
    ) -> Pass:
        """projections: (rounds, n_buckets, D) fixed ones, instead of those drawn from `generator`."""
        tables = []
        for number in range(self.rounds):
            if projections is None:
                normals = hidden_ND.new_empty(self.n_buckets, hidden_ND.shape[1]).normal_(generator=generator)
            else:
                normals = projections[number]
            of_states = _hash(hidden_ND, normals, self.n_chunks)
            tables.append((of_states, _hash(item_embeddings_VD, normals, self.n_chunks)))
        return partial(_by_chunks, targets=targets_N, tables=tables, reach=self.n_extra_chunks)


@dataclass(frozen=True, eq=False)
class _Chunks:
    """One round's order of n vectors, cut into chunks."""

    order: Tensor
    """(n,) int32: the vector at each rank."""
    chunk: Tensor
    """(n,) int16 (int32 above 32,767 chunks): the chunk of each vector."""
    starts: Tensor
    """(n_chunks + 1,) int64 on the CPU: the first rank of each chunk, and n."""


def _hash(vectors: Tensor, normals: Tensor, n_chunks: int) -> _Chunks:
    n = len(vectors)
    buckets = torch.empty(n, dtype=torch.int32, device=vectors.device)
    for tile in row_tiles(n, len(normals) * vectors.element_size(), TILE_BYTES):
        buckets[tile] = (vectors[tile] @ normals.T).argmax(1).int()
    order = buckets.argsort(stable=True)
    starts = torch.arange(n_chunks + 1) * n // n_chunks
    small = torch.int16 if n_chunks <= torch.iinfo(torch.int16).max else torch.int32
    chunk = torch.empty(n, dtype=small, device=vectors.device)
    ranks = torch.arange(n, device=vectors.device)
    chunk[order] = torch.searchsorted(starts[1:].to(vectors.device), ranks, right=True).to(small)
    return _Chunks(order.int(), chunk, starts)


Tables = Sequence[tuple[_Chunks, _Chunks]]
"""A round's (states, items)."""


@dataclass(frozen=True, eq=False)
class _Tile:
    """Chunks of states with the items in their reach; slots beyond a chunk's or window's end hold other rows,
    masked."""

    rows: Tensor
    """(G, P) states; each in one tile of a round."""
    used: Tensor
    """(G, P) False beyond the chunk."""
    items: Tensor
    """(G, W)"""
    masked: Tensor
    """(G, P, W) True: not a candidate, or found by an earlier round already."""


def _by_chunks(
    hidden: Tensor, items: Tensor, needs_gradient: bool, *, targets: Tensor, tables: Tables, reach: int
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    N = len(hidden)
    positive = torch.linalg.vecdot(hidden, items[targets])
    # The last entry takes what slots beyond a chunk's end would write.
    lse = torch.cat([positive, positive[:1]])
    for tile in _tiles(tables, targets, reach, hidden):
        logits = torch.bmm(hidden[tile.rows], items[tile.items].mT).masked_fill_(tile.masked, -torch.inf)
        rows = tile.rows.where(tile.used, N)
        lse[rows] = torch.logaddexp(lse[rows], logits.logsumexp(-1))
    lse = lse[:N]
    loss = (lse - positive).sum() / N
    if not needs_gradient:
        return loss, None, None
    at_positive = ((positive - lse).exp_() - 1).div_(N)[:, None]
    to_hidden = at_positive * items[targets]
    to_items = torch.zeros_like(items).index_add_(0, targets, at_positive * hidden)
    for tile in _tiles(tables, targets, reach, hidden):
        x_GPD, w_GWD = hidden[tile.rows], items[tile.items]
        logits = torch.bmm(x_GPD, w_GWD.mT).masked_fill_(tile.masked, -torch.inf)
        share = logits.sub_(lse[tile.rows][..., None]).exp_().div_(N)
        to_hidden.index_add_(0, tile.rows.flatten(), torch.bmm(share, w_GWD).flatten(0, 1))
        to_items.index_add_(0, tile.items.flatten(), torch.bmm(share.mT, x_GPD).flatten(0, 1))
    return loss, to_hidden, to_items


def _tiles(tables: Tables, targets: Tensor, reach: int, like: Tensor) -> Iterator[_Tile]:
    """Every (state, candidate) pair of every round, each pair unmasked once over all rounds."""
    device, size = like.device, like.element_size()
    vector_bytes = 2 * like.shape[1] * size
    for number, (of_states, of_items) in enumerate(tables):
        n_chunks = len(of_states.starts) - 1
        chunks = torch.arange(n_chunks)
        state_start, state_end = of_states.starts[:-1], of_states.starts[1:]
        item_start = of_items.starts[(chunks - reach).clamp(min=0)]
        item_end = of_items.starts[(chunks + reach + 1).clamp(max=n_chunks)]
        widest = int((item_end - item_start).max())
        # Logits, their exponentials, the difference of two chunk numbers, three masks.
        row_bytes = widest * (2 * size + 4 + 3) + vector_bytes
        tallest = min(int((state_end - state_start).max()), max(1, TILE_BYTES // row_bytes))
        for part in row_tiles(n_chunks, tallest * row_bytes + widest * vector_bytes, TILE_BYTES):
            first, last = state_start[part].to(device), state_end[part].to(device)
            window, window_end = item_start[part].to(device), item_end[part].to(device)
            rank = window[:, None] + torch.arange(widest, device=device)
            outside = rank >= window_end[:, None]
            items = of_items.order[rank.clamp_(max=len(of_items.order) - 1)].long()
            for below in range(0, int((state_end[part] - state_start[part]).max()), tallest):
                rank = first[:, None] + below + torch.arange(tallest, device=device)
                used = rank < last[:, None]
                rows = of_states.order[rank.clamp_(max=len(of_states.order) - 1)].long()
                masked = outside[:, None, :] | (items[:, None, :] == targets[rows][:, :, None])
                for states_before, items_before in tables[:number]:
                    apart = states_before.chunk[rows][:, :, None] - items_before.chunk[items][:, None, :]
                    masked |= apart.abs_() <= reach
                # A slot beyond the chunk repeats some other state, which must not be counted for it again.
                masked |= ~used[:, :, None]
                yield _Tile(rows, used, items, masked)
