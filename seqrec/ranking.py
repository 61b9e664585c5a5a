"""Ranks and lists over the whole catalog in plain PyTorch, a tile of scores (users, items) at a time, by the law of
docs/metrics.md.

    rank = 1 + #(items with a higher score) + #(items with the same score and a lower id)

**One comparison a score.** With t the target's score, items of a lower id are ahead where s >= t, that is where s >
the next float below t, items of a higher id where s > t. So every group of neighbouring items has a threshold, and the
tile is compared with them once; only the target's own group is looked at item by item. t itself is read from the tile
that holds the target: a product of another shape could differ in the last bit and break ties. Where one tile does not
hold the catalog, a pass over the tiles collects t first, and a second one counts. Both call the same product on the
same shapes, and so see the same scores.

**Lists without sorting scores.** Scores become int64 keys, (score, lower id first): no two are equal, so topk decides
nothing by luck, and NaN is above all. The k best items lie in the k groups with the best maxima (an item outside them
has k maxima ahead of it), so that all scores are read once, for the maxima; topk sees a key a group, then the members
of k groups beside the k best so far.

Nothing here waits for the device. Traffic of device memory, bytes a score: 4 written by the product, 4 read to compare,
4 read to look for NaN, which for lists are the maxima; the results of comparisons, 4 written and read, are of an eighth
of the tile (at most 28 MiB of the default budget) and may stay in the cache. 12 to 20 in all, with or without lists; 4
more, and a product more, where the catalog takes several tiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from seqrec.data.tables import IntArray
from seqrec.memory.evaluation import Tile, compared_users
from seqrec.metrics import MISS

_LAST = 2**31 - 1
"""The highest id that a key can hold."""

_UNFILLED = torch.iinfo(torch.int64).min
"""A key below those of all scores."""


def _ordered(score: float) -> int:
    """The upper half of a score's key: as integers these compare as the scores do."""
    bits = int(torch.tensor(score, dtype=torch.float32).view(torch.int32))
    return bits ^ ((bits >> 31) & _LAST)


_LEAST, _MOST = _ordered(-torch.inf), _ordered(torch.inf)


class Ranker:
    """Ranks users' targets, and with k > 0 lists their best items, by scores = hidden states times item embeddings.

    embeddings_VD: (V, D) float32. tile: from `tile_for`; results do not depend on it, but for the rounding of products
    of other shapes.
    """

    def __init__(self, embeddings_VD: Tensor, tile: Tile, k: int) -> None:
        self.tile, self.k = tile, k
        self.n_items = len(embeddings_VD)
        self.n_tiles = tile.count(self.n_items)
        self._embeddings = embeddings_VD
        device = embeddings_VD.device
        self._places = torch.arange(tile.group, device=device)
        self._groups = torch.arange(tile.items // tile.group, device=device)

    def rank(self, hidden_UD: Tensor, targets_U: Tensor, seen: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """(U,) int64 ranks, MISS for a target whose score is not finite and for a user with a NaN; (U, k) int32 ids.

        hidden_UD: float32, U at most the tile's. seen: for every tile the flat cells of its (U, W) scores that are no
        candidates, as of `seen_cells`; empty: none. Ids are best first, -1 where no candidate is left, and in front of
        all for a score that is NaN.
        """
        U = len(hidden_UD)
        scores = hidden_UD.new_empty(U, self.tile.items)
        # A comparison's results as 0.0 and 1.0: booleans would be copied to wider numbers before they are added up.
        buffer = torch.empty_like(scores[: compared_users(U)])
        scores[:, self.n_items :].fill_(-torch.inf)
        own = (hidden_UD.new_full((U,), torch.nan), torch.zeros_like(targets_U))
        if self.n_tiles > 1:
            for number in range(self.n_tiles):
                self._score(scores, number, hidden_UD, seen)
                own = self._own(scores, number, targets_U, own)
        ranks, broken = torch.ones_like(targets_U), torch.zeros_like(targets_U, dtype=torch.bool)
        keys = torch.full((U, self.k), _UNFILLED, device=scores.device)
        for number in range(self.n_tiles):
            self._score(scores, number, hidden_UD, seen)
            if self.n_tiles == 1:
                own = self._own(scores, number, targets_U, own)
            ranks += self._ahead(scores, number, targets_U, own[0], buffer)
            if self.k:
                best, missing = self._best_groups(scores)
                broken |= missing
                keys = torch.cat([keys, self._members(scores, best, number)], 1).topk(self.k, dim=1).values
            else:
                broken |= scores.amax(1).isnan()
        mine, lower = own
        return (ranks + lower).masked_fill_(broken | ~mine.isfinite(), MISS), _ids(keys)

    def _score(self, scores: Tensor, number: int, hidden_UD: Tensor, seen: Sequence[Tensor]) -> None:
        """Fills a tile; what is no candidate, or stood in the tile before, is -inf."""
        start = self.tile.start(number, self.n_items)
        width = min(self.tile.items, self.n_items)
        torch.mm(hidden_UD, self._embeddings[start : start + width].T, out=scores[:, :width])
        scores[:, : number * self.tile.items - start].fill_(-torch.inf)
        if seen:
            scores.view(-1).index_fill_(0, seen[number], -torch.inf)

    def _grouped(self, scores: Tensor) -> Tensor:
        return scores.view(len(scores), -1, self.tile.group)

    def _group_of(self, number: int, targets_U: Tensor) -> tuple[Tensor, Tensor]:
        """(U,) the target's group, counted from the tile's first: negative before it, too large behind it; (U,) the
        target's place in its group."""
        column = targets_U - self.tile.start(number, self.n_items)
        group = torch.div(column, self.tile.group, rounding_mode="floor")
        return group, column - group * self.tile.group

    def _own(
        self, scores: Tensor, number: int, targets_U: Tensor, known: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """(U,) the target's score and (U,) how many of its group have the same and a lower id, for targets of this
        tile; `known` for the others."""
        group, place = self._group_of(number, targets_U)
        inside = group.clamp(0, len(self._groups) - 1)[:, None, None].expand(-1, 1, self.tile.group)
        members = self._grouped(scores).gather(1, inside).squeeze(1)
        mine = members.gather(1, place[:, None])
        lower = ((members == mine) & (self._places < place[:, None])).sum(1)
        home = targets_U // self.tile.items == number
        return torch.where(home, mine.squeeze(1), known[0]), torch.where(home, lower, known[1])

    def _ahead(self, scores: Tensor, number: int, targets_U: Tensor, mine_U: Tensor, buffer: Tensor) -> Tensor:
        """(U,) how many of the tile are ahead of the target, but for equals in the target's own group."""
        group, _ = self._group_of(number, targets_U)
        below = torch.nextafter(mine_U, torch.full_like(mine_U, -torch.inf))
        threshold = torch.where(self._groups < group[:, None], below[:, None], mine_U[:, None])
        ahead = torch.empty_like(targets_U)
        for part in (slice(first, first + len(buffer)) for first in range(0, len(scores), len(buffer))):
            here = self._grouped(scores[part])
            results = buffer[: len(here)]
            torch.gt(here, threshold[part][:, :, None], out=self._grouped(results))
            ahead[part] = results.sum(1)
        return ahead

    def _best_groups(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """(U, k) int64 the groups of a tile with the best maxima, fewer than k if there are no more; (U,) has NaN."""
        maxima = self._grouped(scores).amax(2)
        keys = _keys(maxima, self._groups).topk(min(self.k, len(self._groups)), dim=1).values
        return _LAST - (keys & _LAST), maxima.amax(1).isnan()

    def _members(self, scores: Tensor, groups: Tensor, number: int) -> Tensor:
        """(U, k * group) the keys of all members of each user's groups (U, k)."""
        members = self._grouped(scores).gather(1, groups[:, :, None].expand(-1, -1, self.tile.group))
        ids = (groups * self.tile.group + self.tile.start(number, self.n_items))[:, :, None] + self._places
        return _keys(members, ids).flatten(1)


def _keys(scores: Tensor, ids: Tensor) -> Tensor:
    """int64 in the order of (score, lower id first). Upper half: the score's bits, in an order as integers; lower half:
    `_LAST` - id. NaN, whatever its sign, is above +inf, and -0.0 is 0.0."""
    bits = (scores + 0.0).masked_fill_(scores.isnan(), torch.nan).view(torch.int32)
    bits ^= (bits >> 31).bitwise_and_(_LAST)
    return bits.long().bitwise_left_shift_(32).add_(_LAST).sub_(ids)


def _ids(keys: Tensor) -> Tensor:
    """int32 ids of keys, -1 for those of NaN, of -inf and of nothing."""
    score = keys >> 32
    listed = (score > _LEAST) & (score <= _MOST)
    return torch.where(listed, _LAST - (keys & _LAST), -1).int()


def seen_cells(owners: IntArray, items: IntArray, n_users: int, tile: Tile, n_items: int) -> tuple[IntArray, IntArray]:
    """The cells of seen items in the order in which tiles are scored: slab by slab of `tile.users`, tile by tile.

    owners: (n,) each pair's user in the batch, 0 to n_users - 1; items: (n,). Returns (n,) flat cells of a slab's
    (users, tile.items) scores, and (slabs * tiles + 1,) where those of each tile begin: known on the host, so that no
    tile asks the device how many are its own.
    """
    n_tiles = tile.count(n_items)
    n_slabs = -(-n_users // tile.users)
    number = items // tile.items
    starts = np.array([tile.start(at, n_items) for at in range(n_tiles)], dtype=np.int64)
    cells = owners % tile.users * tile.items + items - starts[number]
    key = owners // tile.users * n_tiles + number
    counts = np.bincount(key, minlength=n_slabs * n_tiles)
    # Short integers sort in linear time.
    order = np.argsort(key.astype(np.min_scalar_type(n_slabs * n_tiles)), kind="stable")
    return cells[order], np.concatenate([[0], np.cumsum(counts)])


@contextmanager
def exact_products() -> Iterator[None]:
    """Products of float32 in float32: no TF32, no bfloat16 parts, no autocast, whatever training allows itself."""
    places = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = "ieee"
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            yield
    finally:
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision
