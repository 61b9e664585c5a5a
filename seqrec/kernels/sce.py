"""Scalable cross-entropy: softmax over the hardest items of buckets, with gradients, without any (n_buckets, V) matrix.

    X_b = the bucket_size_x real positions with the largest b . x_i,  W_b = the bucket_size_y items with the largest
    b . w_j, for each centre b
    loss_i = max over the b with i in X_b of -s_iy + log( exp(s_iy) + sum_{j in W_b, j != y_i} exp(s_ij) )
    value = mean of loss_i over the covered positions (those in some X_b)

A step is: 16-bit copies (`buckets.prepare`), the positions and the items of every bucket (`top`: exact, bounded work),
losses and winners, then gradients of the winning (position, bucket) pairs alone (`buckets`); eleven launches, nothing
on the host depends on values, so that it can be captured. Beside the operands' copies and the gradients it holds
tables of 100 to 200 bytes for each of n_buckets * max(bucket_size_x, bucket_size_y), 20 MB at least on a large
catalog, freed before the items' gradient is made.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec.kernels import WIDEST, buckets
from seqrec.kernels.launch import pointer, power_of_2
from seqrec.kernels.mixture import mixed_centres
from seqrec.kernels.tiles import Table, Tile, pick
from seqrec.kernels.top import top_of

__all__ = ["mixed_centres", "sce", "top_items"]

TILES: Table = {
    9: {
        32: Tile(64, 64, 4, 3),
        64: Tile(64, 64, 4, 3),
        128: Tile(64, 64, 4, 3),
        256: Tile(64, 64, 8, 2),
        512: Tile(64, 32, 8, 2),
    },
    8: {
        32: Tile(64, 64, 4, 3),
        64: Tile(64, 64, 4, 3),
        128: Tile(64, 32, 4, 2),
        256: Tile(32, 32, 4, 2),
        512: Tile(16, 16, 4, 2),
    },
}
"""Positions by items of a bucket's tile."""

_PROGRAMS = 1056
"""Of the pass that copies; fixed, eight for each multiprocessor of the largest GPU it is meant for."""

LARGEST_BUCKET = 1_000_000
"""Twice as many vectors, and some, have to fit into the 21 bits in which `top` counts."""

MOST_CENTRES = 65_535
"""The second dimension of a grid."""

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def top_items(centres_BD: Tensor, vectors_MD: Tensor, k: int, count: Tensor | None = None) -> Tensor:
    """(B, k) int32: the k of M vectors that score highest with each centre, in no order; -1 where there are fewer.

    Only the first `count` () int64 vectors take part, None: all. Scores are those of operands rounded to the vectors'
    dtype, accumulated in float32; of equal scores at the border any may be chosen, the same ones at every call. NaN
    scores are never chosen. Raises ValueError if k < 1, k > 1,000,000 or the widths differ.
    """
    if k < 1:
        raise ValueError(f"k: got {k}; expected at least 1.")
    if k > LARGEST_BUCKET:
        raise ValueError(f"k: got {k}; expected at most {LARGEST_BUCKET}.")
    if vectors_MD.shape[1] > WIDEST:
        raise ValueError(f"vectors_MD: got {vectors_MD.shape[1]} columns; expected at most {WIDEST}.")
    _check_width("centres_BD", centres_BD, vectors_MD)
    return top_of(centres_BD.contiguous(), vectors_MD.contiguous(), k, _int64(count))


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
    """(value (), d value / d hidden (N, D), d value / d items (V, D), covered share ()), float32. No gradients: None.

    centres: (n_buckets, D), on any scale. count: () int64 on the device, the rows that are real, which come first;
    None: all N. Spare rows are in no bucket, have no loss and a gradient of zero. Real rows weigh alike, the value is
    the mean over the covered ones, so there are no weights. With fewer than bucket_size_x real rows every bucket holds
    all of them. Operands are rounded to `dtype` (float16, bfloat16 or float32), products accumulate in float32.

    The value is NaN if a real row's target is no item, or an operand is infinite, NaN or beyond `dtype`; no memory
    outside the tensors is touched then either. Raises ValueError if bucket_size_y > V, a size is less than 1 or more
    than 1,000,000, there are more than 65,535 centres, a shape does not fit, D > 512, or `dtype` is none of the three.
    """
    V = len(items_VD)
    if not 1 <= bucket_size_y <= V:
        raise ValueError(f"bucket_size_y: got {bucket_size_y}; expected 1 to the catalog ({V} items).")
    if bucket_size_x < 1:
        raise ValueError(f"bucket_size_x: got {bucket_size_x}; expected at least 1.")
    for name, size in (("bucket_size_x", bucket_size_x), ("bucket_size_y", bucket_size_y)):
        if size > LARGEST_BUCKET:
            raise ValueError(f"{name}: got {size}; expected at most {LARGEST_BUCKET}.")
    if len(centres) > MOST_CENTRES:
        raise ValueError(f"centres: got {len(centres)} rows; expected at most {MOST_CENTRES}.")
    _check_width("hidden_ND", hidden_ND, items_VD)
    _check_width("centres", centres, items_VD)
    if targets_N.shape != hidden_ND.shape[:1]:
        raise ValueError(f"targets_N: got shape {tuple(targets_N.shape)}; expected ({len(hidden_ND)},).")
    if len(centres) * bucket_size_x >= 2**31:
        raise ValueError(f"bucket_size_x: got {bucket_size_x}; expected n_buckets * bucket_size_x < 2^31.")
    if hidden_ND.shape[1] > WIDEST:
        raise ValueError(f"hidden_ND: got {hidden_ND.shape[1]} columns; expected at most {WIDEST}.")
    if dtype not in DTYPES:
        raise ValueError(f"dtype: got {dtype}; expected one of {DTYPES}.")
    value, to_hidden, to_items, share = _sce(
        hidden_ND, items_VD, targets_N, centres, count, bucket_size_x, bucket_size_y, dtype, gradients
    )
    return (value, to_hidden, to_items, share) if gradients else (value, None, None, share)


@torch.library.custom_op("seqrec::sce", mutates_args=())
def _sce(
    hidden: Tensor,
    items: Tensor,
    targets: Tensor,
    centres: Tensor,
    count: Tensor | None,
    bucket_size_x: int,
    bucket_size_y: int,
    dtype: torch.dtype,
    gradients: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`sce`; without gradients those two have no rows."""
    (N, D), V, n_buckets = hidden.shape, len(items), len(centres)
    value, share, scale = (hidden.new_empty((), dtype=torch.float32) for _ in range(3))
    if not N or not n_buckets:
        rows = (N, V) if gradients else (0, 0)
        to_hidden, to_items = (hidden.new_zeros((one, D), dtype=torch.float32) for one in rows)
        return value.zero_(), to_hidden, to_items, share.zero_()
    hidden, items, targets, centres = (one.contiguous() for one in (hidden, items, targets, centres))
    count = _int64(count)
    given, counted = pointer(count, targets), count is not None
    cast = dtype != torch.float32 or hidden.dtype != dtype or items.dtype != dtype
    x = hidden.new_empty((N, D), dtype=dtype) if cast else hidden
    w = items.new_empty((V, D), dtype=dtype) if cast else items
    winner = hidden.new_empty(N, dtype=torch.int64)
    programs = min(_PROGRAMS, -(-max(N, V) * D // 4096))
    broken = hidden.new_empty(programs, dtype=torch.int32)
    buckets.prepare[(programs,)](
        items, w, hidden, x, targets, given, winner, broken, N, V,
        D=D, BLOCK=4096, CAST=cast, COUNT=counted, num_warps=8,
    )  # fmt: skip
    positions = top_of(centres, x, bucket_size_x, count)
    chosen = top_of(centres, w, bucket_size_y, None)
    tile = pick(TILES, D, hidden.device, dtype)
    tiles_x, tiles_y = -(-bucket_size_x // tile.rows), -(-bucket_size_y // tile.columns)
    shape = {"D": D, "BLOCK_D": power_of_2(D), "BLOCK_X": tile.rows, "BLOCK_Y": tile.columns}
    shape |= {"num_warps": tile.warps, "num_stages": tile.stages}
    # Two allocations: kernels are compiled once more for pointers that are not multiples of 16.
    lse, won_lse = (hidden.new_empty((n_buckets, bucket_size_x), dtype=torch.float32) for _ in range(2))
    buckets.losses[(tiles_x, n_buckets)](
        x, w, targets, positions, chosen, lse, winner, V, bucket_size_x, bucket_size_y, **shape
    )
    won, n_won = torch.empty_like(positions), positions.new_empty(n_buckets)
    values = hidden.new_empty(n_buckets, dtype=torch.float32)
    buckets.gather_winners[(n_buckets,)](
        positions, lse, winner, won, won_lse, n_won, values, bucket_size_x, BLOCK=512, num_warps=4
    )
    buckets.finish[(1,)](
        n_won, values, broken, given, value, share, scale, n_buckets, programs, N,
        BLOCK=1024, COUNT=counted, num_warps=4,
    )  # fmt: skip
    if not gradients:
        return value, value.new_empty((0, D)), value.new_empty((0, D)), share
    to_hidden = hidden.new_zeros((N, D), dtype=torch.float32)
    to_items = items.new_zeros((V, D), dtype=torch.float32)
    shift = 14.0 if dtype == torch.float16 else 0.0
    buckets.to_states[(tiles_x, n_buckets)](
        x, w, targets, won, won_lse, n_won, chosen, scale, to_hidden, to_items, V, bucket_size_x, bucket_size_y, shift,
        **shape,
    )  # fmt: skip
    buckets.to_chosen[(tiles_y, n_buckets)](
        x, w, targets, won, won_lse, n_won, chosen, scale, to_items, bucket_size_x, bucket_size_y, shift, **shape
    )
    return value, to_hidden, to_items, share


@_sce.register_fake
def _(
    hidden: Tensor,
    items: Tensor,
    targets: Tensor,
    centres: Tensor,
    count: Tensor | None,
    bucket_size_x: int,
    bucket_size_y: int,
    dtype: torch.dtype,
    gradients: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    D = hidden.shape[1]
    rows = (len(hidden), len(items)) if gradients else (0, 0)
    scalar = hidden.new_empty((), dtype=torch.float32)
    to_hidden, to_items = (hidden.new_empty((one, D), dtype=torch.float32) for one in rows)
    return scalar, to_hidden, to_items, torch.empty_like(scalar)


def _int64(count: Tensor | None) -> Tensor | None:
    return None if count is None else count.to(torch.int64)


def _check_width(name: str, rows: Tensor, others: Tensor) -> None:
    if rows.ndim != 2 or rows.shape[1] != others.shape[1]:
        raise ValueError(f"{name}: got shape {tuple(rows.shape)}; expected (rows, {others.shape[1]}).")
