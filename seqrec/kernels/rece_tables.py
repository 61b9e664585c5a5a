"""Where random hashing puts the positions and items of RECE: bucket = argmax_b v . projection_rb, sort, cut by rank.

    order[r] = the real positions sorted by bucket, spare positions behind them; then the items sorted by bucket
    chunk of rank t among n = the largest q with floor(q n / n_chunks) <= t = floor(((t + 1) n_chunks - 1) / n)

Positions and items lie in one table of 16-bit vectors, positions first, and have one kernel, one grid and one sort for
a few rounds: their keys are told apart by an offset, and so are the rounds that a sort takes together. Hash: tiles of
(vectors, buckets) products accumulated in float32, a running maximum a lane whose lowest 8 mantissa bits hold the
number of the tile of buckets it came from (so maxima closer than 2^-15 of their size are ties; beyond 256 tiles it
takes a bit more), one reduction over lanes at the end. Nothing of size (n_buckets, V) exists. The sort is stable, ties
of the maximum go to the lowest bucket: deterministic.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from seqrec.kernels.launch import power_of_2, row_block
from seqrec.kernels.tiles import Table, Tile, pick

BEHIND = tl.constexpr(128)
"""Rows of zeros behind the tables in the low dtype."""

MOST_BUCKETS = 16_383
"""Keys of positions and items are 16-bit numbers, and so are sums of two chunks."""

SORTED_TOGETHER = 1 << 21
"""Vectors that one sort takes, of as many rounds as make so many. A sort is ten launches, whatever its size: at 170,000
items they take longer than its work. More than these would no longer lie in the caches."""

SORT_BYTES = 28
"""Memory of a sort, each vector: 16-bit keys and 64-bit numbers, twice, and the numbers as they were."""

TILES: Table = {
    8: {64: Tile(64, 64, 4, 3), 128: Tile(64, 64, 4, 2), 256: Tile(64, 32, 4, 2), 512: Tile(32, 32, 4, 2)},
    9: {
        32: Tile(128, 64, 8, 3),
        64: Tile(128, 64, 8, 3),
        128: Tile(128, 64, 8, 3),
        256: Tile(128, 64, 8, 3),
        512: Tile(64, 32, 8, 2),
    },
}
"""rows: of vectors, columns: of buckets."""


@dataclass(frozen=True, eq=False)
class Tables:
    """R rounds' orders of N positions and V items, cut into chunks."""

    order: Tensor
    """(R, N + V) int32: the vector at each rank; item j is N + j. (0, N + V) where nobody asks for it."""
    chunk: Tensor
    """(N + V, R or R + 1, the even one) int16: the chunk of each vector in each round; of spare positions anything.

    A vector's chunks lie side by side; where nobody asks for orders, (N + V, R), a round's."""
    rounds: int
    n_chunks: int


def sorted_together(n_all: int, V: int, D: int, rounds: int, n_buckets: int) -> int:
    """Rounds that one sort takes: their keys must fit into 15 bits, and its memory into the items' gradient, which
    comes later."""
    fits = min(SORTED_TOGETHER // n_all, (1 << 15) // keys_of(n_buckets), 4 * V * D // (SORT_BYTES * n_all))
    return max(1, min(rounds, fits))


def keys_of(n_buckets: int) -> int:
    """Keys of a round: a position's bucket, one for spare positions, an item's bucket."""
    return 2 * n_buckets + 1


@triton.jit
def real_rows(count, n_rows, COUNTED: tl.constexpr):
    """How many positions are real."""
    n = n_rows
    if COUNTED:
        n = tl.minimum(tl.maximum(tl.load(count), 0), n_rows).to(tl.int32)
    return n


@triton.jit
def chunk_of(rank, n, n_chunks):
    """The chunk of ranks among n, wide: products of ranks and chunks exceed 32 bits."""
    return ((rank.to(tl.int64) + 1) * n_chunks - 1) // tl.maximum(n, 1)


@triton.jit(do_not_specialize=["n_rows", "n_items"])
def _lower(hidden, items, low, n_rows, n_items, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr):
    d = tl.arange(0, BLOCK_D)[None, :]
    t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    wide = d < D
    of_row = (t < n_rows)[:, None] & wide
    of_item = ((t >= n_rows) & (t < n_rows + n_items))[:, None] & wide
    place = t.to(tl.int64)[:, None] * D + d
    item_place = (t - n_rows).to(tl.int64)[:, None] * D + d
    x = tl.load(hidden + place, mask=of_row, other=0.0).to(tl.float32)
    w = tl.load(items + item_place, mask=of_item, other=0.0).to(tl.float32)
    x = tl.where(of_row, x, w)
    # What the low dtype cannot hold is NaN: a score of -inf would not show.
    rounded = x.to(low.dtype.element_ty).to(tl.float32)
    x = tl.where(rounded - rounded == 0, x, float("nan"))
    # Behind both tables rows of zeros, for tiles that go beyond the end.
    mask = (t < n_rows + n_items + BEHIND)[:, None] & wide
    tl.store(low + place, x.to(low.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["n_rows", "n_items", "n_buckets", "rounds", "marks", "together"])
def _hash(
    low, normals, keys, count, n_rows, n_items, n_buckets, rounds, marks, together,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, BUCKETS: tl.constexpr,
    COUNTED: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    # Rounds are the fast axis: the vectors of a tile come from memory once and from the cache afterwards.
    number = tl.program_id(0) % rounds
    n_all = n_rows + n_items
    t = (tl.program_id(0) // rounds) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, BLOCK_D)
    wide = d < D
    x = tl.load(low + t.to(tl.int64)[:, None] * D + d[None, :], mask=(t < n_all)[:, None] & wide[None, :], other=0.0)
    best = tl.full((ROWS, BUCKETS), float("-inf"), tl.float32)
    column = tl.arange(0, BUCKETS)
    for tile in range(0, tl.cdiv(n_buckets, BUCKETS)):
        # Beyond the last bucket the last one again: never better than itself.
        b = tl.minimum(tile * BUCKETS + column, n_buckets - 1)
        place = (number * n_buckets + b).to(tl.int64)[:, None] * D + d[None, :]
        p = tl.load(normals + place, mask=wide[None, :], other=0.0)
        s = tl.dot(x, tl.trans(p), input_precision="ieee" if EXACT else "tf32")
        marked = (s.to(tl.int32, bitcast=True) & -marks) | (marks - 1 - tile)
        best = tl.maximum(best, marked.to(tl.float32, bitcast=True))
    largest = tl.max(best, 1)
    from_tile = marks - 1 - (best.to(tl.int32, bitcast=True) & (marks - 1))
    bucket = tl.where(best == largest[:, None], from_tile * BUCKETS + column[None, :], n_buckets)
    # A vector that is no number has no largest product; any bucket is as good.
    found = tl.minimum(tl.min(bucket, 1), n_buckets - 1)
    n = real_rows(count, n_rows, COUNTED)
    key = tl.where(t < n, found, tl.where(t < n_rows, n_buckets, n_buckets + 1 + found))
    key += (number % together) * (2 * n_buckets + 1)
    tl.store(keys + number.to(tl.int64) * n_all + t, key.to(keys.dtype.element_ty), mask=t < n_all)


@triton.jit(do_not_specialize=["n_rows", "n_items", "n_chunks", "first", "rounds", "per_vector", "per_round"])
def _place(
    index, order, chunk, count, n_rows, n_items, n_chunks, first, rounds, per_vector, per_round,
    BLOCK: tl.constexpr, COUNTED: tl.constexpr, ORDER: tl.constexpr,
):  # fmt: skip
    n_all = n_rows + n_items
    place_in_all = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place_in_all < n_all * rounds
    nth = place_in_all // n_all
    t = place_in_all - nth * n_all
    vector = tl.load(index + place_in_all, mask=inside, other=0) - nth.to(tl.int64) * n_all
    number = first + nth
    if ORDER:
        tl.store(order + number.to(tl.int64) * n_all + t, vector.to(tl.int32), mask=inside)
    is_row = t < n_rows
    n = tl.where(is_row, real_rows(count, n_rows, COUNTED), n_items)
    q = chunk_of(tl.where(is_row, t, t - n_rows), n, n_chunks)
    q = tl.minimum(q, n_chunks - 1)
    place = vector.to(tl.int64) * per_vector + number.to(tl.int64) * per_round
    tl.store(chunk + place, q.to(tl.int16), mask=inside)


def lower(hidden: Tensor, items: Tensor, dtype: torch.dtype) -> Tensor:
    """(N + V, D): both tables in `dtype`, one below the other, with zeros in memory behind them."""
    (N, D), V = hidden.shape, len(items)
    rows = N + V + BEHIND.value
    low = hidden.new_empty((rows, D), dtype=dtype)
    block = row_block(D)
    _lower[(triton.cdiv(rows, block),)](hidden, items, low, N, V, D=D, BLOCK_D=power_of_2(D), BLOCK=block)
    return low[: N + V]


def make(low: Tensor, projections: Tensor, N: int, n_chunks: int, count: Tensor | None, orders: bool = True) -> Tables:
    """The tables of N positions and the items behind them. `low`: (N + V, D); projections: (R, n_buckets, D)."""
    n_all, D = low.shape
    rounds, n_buckets, _ = projections.shape
    order = low.new_empty((rounds if orders else 0, n_all), dtype=torch.int32)
    if orders:
        chunk = low.new_empty((n_all, rounds + rounds % 2), dtype=torch.int16)
    else:
        # Written where a round's sort says: into 2 MB of a million vectors, which caches hold.
        chunk = low.new_empty((rounds, n_all), dtype=torch.int16).t()
    keys = low.new_empty((rounds, n_all), dtype=torch.int16)
    tile = pick(TILES, D, low.device, low.dtype)
    counted = count is not None
    real = order if count is None else count
    # Numbers that tell tiles of buckets apart, a power of two.
    marks = max(256, 1 << (triton.cdiv(n_buckets, tile.columns) - 1).bit_length())
    together = sorted_together(n_all, n_all - N, D, rounds, n_buckets)
    _hash[(triton.cdiv(n_all, tile.rows) * rounds,)](
        low, projections.to(low.dtype).contiguous(), keys, real, N, n_all - N, n_buckets, rounds, marks, together,
        D=D, BLOCK_D=power_of_2(D), ROWS=tile.rows, BUCKETS=tile.columns, COUNTED=counted,
        EXACT=low.dtype == torch.float32, **tile.options(),
    )  # fmt: skip
    for first in range(0, rounds, together):
        here = min(together, rounds - first)
        index = keys[first : first + here].view(-1).sort(stable=True).indices
        _place[(triton.cdiv(n_all * here, 1024),)](
            index, order, chunk, real, N, n_all - N, n_chunks, first, here, *chunk.stride(),
            BLOCK=1024, COUNTED=counted, ORDER=orders,
        )  # fmt: skip
    return Tables(order, chunk, rounds, n_chunks)
