"""Ranks of one target a user over the whole catalog, exact, without the scores: docs/metrics.md has the law.

    s_uj = x_u . w_j in float32;   t_u = s_uy at the user's target y
    rank_u = 1 + #{j: s_uj > t_u} + #{j < y: s_uj = t_u}, over the items j that the user has not seen

    pairs   scores of single (user, item) pairs: first those of the targets, t
    count   a tile of users walks over a stretch of the catalog: of each user how many items are ahead of t, and how
            many scores are NaN. The scores stay in registers
    pairs   again, for the seen items: what one of them added to its user's two counts is taken back

**Why the bits agree.** t must be the very number that the target, and any item with the same embedding, has in a tile
of `count`, and a seen item must be taken back with the score it was counted with. On the ordinary cores (IEEE float32,
no TF32) every element of a tile's product is one chain of fused multiply-adds, 0 + x_0 w_0 + x_1 w_1 + ..., in the
order of the columns, whatever the element's place; padding adds 0 * 0 at its end. `pairs` computes the same product of
tiles of the same shape from gathered rows and keeps its diagonal: n pairs cost at most what n times a tile's width
scores do, and nothing rests on how a tile lies in the threads. (Triton's interpreter multiplies by the CPU's library,
whose order depends on the place: there equals may be parted in the last bit.)

A seen item that a history holds twice is taken back once: its later mentions look through the earlier ones. A target
among the user's seen items, or outside the catalog, is a miss; so is one whose t is not finite, and that of a user with
a NaN that remains. Sums are of whole numbers: deterministic. Nothing waits for the device. Memory: 8 bytes a seen item
and some 80 a user.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from seqrec.kernels import WIDEST
from seqrec.kernels.launch import power_of_2
from seqrec.kernels.tiles import Table, Tile, pick

MISS = 2**31 - 1
"""The rank of a target that is not ranked."""

TILES: Table = {
    9: {64: Tile(64, 128, 8, 3), 128: Tile(64, 128, 16, 2), 256: Tile(64, 64, 8, 2), 512: Tile(32, 32, 8, 2)},
    8: {64: Tile(64, 64, 8, 2), 128: Tile(64, 32, 8, 2), 256: Tile(32, 32, 8, 2), 512: Tile(16, 16, 8, 2)},
}
"""Users by items of `count`, and of the tiles of `pairs`."""

PROGRAMS = 4224
"""Of `count` at least, if stretches of the catalog can make so many: sixteen for each place on the largest card."""

MOST_COUNTED = 2**15 - 1
"""Items of a stretch at most: two counts share 32 bits."""


@triton.jit
def _rows(table, row, mask, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """(n, BLOCK_D) rows of a table, zeros beyond D and where `mask` is not."""
    d = tl.arange(0, BLOCK_D)[None, :]
    return tl.load(table + row.to(tl.int64)[:, None] * D + d, mask=mask[:, None] & (d < D), other=0.0)


@triton.jit
def _scores(x, w):
    """(ROWS, ITEMS) in IEEE float32: the one product of this module."""
    return tl.dot(x, tl.trans(w), input_precision="ieee")


@triton.jit(do_not_specialize=["n_users", "n_items", "tiles_per_stretch"])
def _count(
    hidden, items, targets, own, ahead, broken, n_users, n_items, tiles_per_stretch,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, ITEMS: tl.constexpr,
):  # fmt: skip
    # Blocks of users are the fast index of the grid: programs that run together walk over the same items, which the
    # second-level cache then holds.
    u = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = u < n_users
    t = tl.load(own + u, mask=real, other=0.0)[:, None]
    y = tl.load(targets + u, mask=real, other=0).to(tl.int32)[:, None]
    x = _rows(hidden, u, real, D, BLOCK_D)
    first = tl.program_id(1) * tiles_per_stretch
    last = tl.minimum(first + tiles_per_stretch, tl.cdiv(n_items, ITEMS))
    both = tl.zeros((ROWS,), tl.int32)
    for tile in range(first, last):
        v = tile * ITEMS + tl.arange(0, ITEMS)
        s = _scores(x, _rows(items, v, v < n_items, D, BLOCK_D))
        v = v[None, :]
        counted = ((s > t) | ((s == t) & (v < y))).to(tl.int32) + ((s != s).to(tl.int32) << 16)
        both += tl.sum(tl.where(v < n_items, counted, 0), 1)
    tl.atomic_add(ahead + u, both & 0xFFFF, mask=real, sem="relaxed")
    tl.atomic_add(broken + u, both >> 16, mask=real & (both >= 65536), sem="relaxed")


@triton.jit(do_not_specialize=["n_pairs", "n_items"])
def _pairs(
    hidden, items, targets, owners, seen, starts, firsts, own, ahead, broken, n_pairs, n_items,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, ITEMS: tl.constexpr, LANES: tl.constexpr,
    SEEN: tl.constexpr,
):  # fmt: skip
    """LANES pairs a program, no more than a side of the tile. SEEN: pair p is item p - firsts[u] of the history of its
    user u = owners[p], which begins at seen + starts[u], and is taken back from ahead[u] and broken[u]. Else: user p
    and the target, whose score goes to own[p]."""
    base = tl.program_id(0) * LANES
    # A row of the tile, and a column of it, for every pair; those behind them are empty.
    in_row, in_column = tl.arange(0, ROWS), tl.arange(0, ITEMS)
    row, column = base + in_row, base + in_column
    row_real = (in_row < LANES) & (row < n_pairs)
    column_real = (in_column < LANES) & (column < n_pairs)
    if SEEN:
        user = tl.load(owners + row, mask=row_real, other=0)
        of = tl.load(owners + column, mask=column_real, other=0)
        history = seen + tl.load(starts + of, mask=column_real, other=0)
        place = column - tl.load(firsts + of, mask=column_real, other=0)
        item = tl.load(history + place, mask=column_real, other=-1).to(tl.int64)
    else:
        user = row
        of = column
        item = tl.load(targets + column, mask=column_real, other=-1).to(tl.int64)
    known = column_real & (item >= 0) & (item < n_items)
    s = _scores(_rows(hidden, user, row_real, D, BLOCK_D), _rows(items, item, known, D, BLOCK_D))
    diagonal = in_row[:, None] == in_column[None, :]
    # Of one number and zeros; a NaN elsewhere in the tile is masked before.
    s = tl.sum(tl.where(diagonal, s, 0.0), 0)
    if SEEN:
        earlier = tl.full((), 0, tl.int64)
        most = tl.max(tl.where(known, place, 0), 0)
        again = tl.zeros((ITEMS,), tl.int32)
        while earlier < most:
            other = tl.load(history + earlier, mask=known & (earlier < place), other=-1).to(tl.int64)
            again |= (other == item).to(tl.int32)
            earlier += 1
        known = known & (again == 0)
        t = tl.load(own + of, mask=known, other=0.0)
        y = tl.load(targets + of, mask=known, other=0).to(tl.int64)
        was_ahead = (s > t) | ((s == t) & (item < y))
        tl.atomic_add(ahead + of, -1, mask=known & was_ahead, sem="relaxed")
        # The target itself among the seen: one that is never taken back.
        lost = known & (item == y)
        tl.atomic_add(broken + of, tl.where(lost, 1, -1), mask=lost | (known & (s != s)), sem="relaxed")
    else:
        tl.store(own + column, tl.where(known, s, float("nan")), mask=column_real)


@torch.library.custom_op("seqrec::catalog_ranks", mutates_args=())
def _catalog_ranks(
    hidden: Tensor,
    items: Tensor,
    targets: Tensor,
    seen: Tensor | None,
    starts: Tensor | None,
    lengths: Tensor | None,
    n_seen: int,
) -> Tensor:
    (U, D), V = hidden.shape, len(items)
    if U == 0:
        return targets.new_empty(0, dtype=torch.int64)
    hidden, items, targets = hidden.contiguous(), items.contiguous(), targets.contiguous()
    tile = pick(TILES, D, hidden.device)
    lanes = min(tile.rows, tile.columns)
    own = torch.empty(U, device=hidden.device, dtype=torch.float32)
    ahead, broken = torch.zeros((2, U), device=hidden.device, dtype=torch.int32)
    shape = {"D": D, "BLOCK_D": power_of_2(D), "ROWS": tile.rows, "ITEMS": tile.columns, **tile.options()}
    nothing = (targets, targets, targets, targets)
    _pairs[(triton.cdiv(U, lanes),)](
        hidden, items, targets, *nothing, own, ahead, broken, U, V, LANES=lanes, SEEN=False, **shape
    )
    blocks, n_tiles = triton.cdiv(U, tile.rows), triton.cdiv(V, tile.columns)
    stretches = max(1, min(n_tiles, triton.cdiv(PROGRAMS, blocks)))
    tiles = min(triton.cdiv(n_tiles, stretches), MOST_COUNTED // tile.columns)
    _count[(blocks, triton.cdiv(n_tiles, tiles))](hidden, items, targets, own, ahead, broken, U, V, tiles, **shape)
    if seen is not None and starts is not None and lengths is not None and n_seen:
        ends = lengths.cumsum(0)
        owners = torch.repeat_interleave(torch.arange(U, device=hidden.device), lengths, output_size=n_seen)
        _pairs[(triton.cdiv(n_seen, lanes),)](
            hidden, items, targets, owners, seen, starts.contiguous(), ends - lengths, own, ahead, broken, n_seen, V,
            LANES=lanes, SEEN=True, **shape,
        )  # fmt: skip
    ranks: Tensor = (ahead + 1).long().masked_fill_((broken != 0) | ~own.isfinite(), MISS)
    return ranks


@_catalog_ranks.register_fake
def _(
    hidden: Tensor,
    items: Tensor,
    targets: Tensor,
    seen: Tensor | None,
    starts: Tensor | None,
    lengths: Tensor | None,
    n_seen: int,
) -> Tensor:
    return targets.new_empty(len(hidden), dtype=torch.int64)


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
    """(U,) int64 ranks of the targets among all items but the seen ones, 1 the best; MISS, 2^31 - 1, for a target that
    is seen, outside the catalog or whose score is not finite, and for a user with a NaN among the scores of candidates.

    hidden_UD, items_VD: float32, at most 512 columns, V at most 2^30. targets_U: int32 or int64. seen: flat item ids,
    int32 or int64, of which user u has seen[starts_U[u]:][:lengths_U[u]], with any repeats; starts_U, lengths_U: int64.
    n_seen: the sum of the lengths, which the host must know. None, with the other two: nothing is seen. Seen ids
    outside the catalog are left out. Raises ValueError for shapes and dtypes that do not fit.
    """
    U, V = len(hidden_UD), len(items_VD)
    shapes = tuple(hidden_UD.shape), tuple(items_VD.shape)
    fits = hidden_UD.ndim == 2 and items_VD.ndim == 2 and shapes[0][1] == shapes[1][1] and 0 < V <= 2**30
    _law("items_VD", f"{shapes[1]} beside states {shapes[0]}", fits, "(V, D) and (U, D), 0 < V <= 2^30")
    _law("hidden_UD", f"{shapes[0][1]} columns", 1 <= shapes[0][1] <= WIDEST, f"1 to {WIDEST}")
    dtypes = hidden_UD.dtype, items_VD.dtype
    _law("hidden_UD, items_VD", dtypes, set(dtypes) == {torch.float32}, "float32")
    whole = (torch.int32, torch.int64)
    _law("targets_U", _told(targets_U), targets_U.shape == (U,) and targets_U.dtype in whole, f"({U},) int32 or int64")
    parts = (seen, starts_U, lengths_U)
    if seen is None or starts_U is None or lengths_U is None:
        alone = all(part is None for part in parts) and n_seen == 0
        _law("seen, starts_U, lengths_U", "some of them", alone, "all three of them, or none and n_seen = 0")
    else:
        _law("seen", _told(seen), seen.ndim == 1 and seen.dtype in whole, "one dimension, int32 or int64")
        _law("seen", "strides", seen.is_contiguous(), "contiguous")
        for name, part in (("starts_U", starts_U), ("lengths_U", lengths_U)):
            _law(name, _told(part), part.shape == (U,) and part.dtype == torch.int64, f"({U},) int64")
        _law("n_seen", n_seen, 0 <= n_seen < 2**31, "the sum of lengths_U, below 2^31")
    ranks: Tensor = _catalog_ranks(hidden_UD.detach(), items_VD.detach(), targets_U, seen, starts_U, lengths_U, n_seen)
    return ranks


def _told(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype}"


def _law(name: str, got: object, holds: bool, law: str) -> None:
    if not holds:
        raise ValueError(f"{name}: got {got}; expected {law}.")
