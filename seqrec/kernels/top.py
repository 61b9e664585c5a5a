"""The k vectors that score highest with each of B centres, out of M, without the (B, M) scores. Exact.

Group g holds the vectors g, g + G, g + 2 G, ... (T of them), with G some 8 k or more.

    scan    one matrix product over the vectors; of every (centre, group) it keeps the best score, the vector that has
            it, and the second best score, lane by lane in registers: no reduction, no atomics, nothing of size M
    select  t = the k-th largest of a centre's best scores. The k groups above it (ties: the first ones) put forward
            their best vectors, so k vectors score t at least, and whatever scores more than t lies in a group whose
            best or second best does. The few groups whose second best exceeds t are scored again, vector by vector,
            and what exceeds t joins the k. Of all these the k best stay.

Fewer than k groups have a second best above t, so the work is bounded by k T vectors a centre whatever the scores are:
there is no sample to be unlucky with, no buffer that may overflow (a full one is cut to its k best, and t rises), and
nothing to fall back to. Scores that are equal cost nothing: a tie at t is never looked for.

Tiling: scan, a block of centres stays, tiles of vectors stream by, strided over the table, so that a table sorted by
popularity spreads over the groups; select, one program a centre. Scores accumulate in float32 from operands in the
vectors' dtype (a centre is scaled by a power of two before it is rounded). Deterministic. Scored twice, by the matrix
units and row by row, a vector's two scores may differ in the last bit of a float32 sum: exact up to that. A score that
is NaN is never selected.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from seqrec.kernels.launch import pointer, power_of_2
from seqrec.kernels.tiles import Table, Tile, pick

LOWEST = tl.constexpr(-(2**31))
"""Key of no score at all."""

_GROUPS_PER_K = 8
_WAVES = {128: 396, 256: 264, 512: 132}
"""Width up to which -> programs of the scan that run at a time: three, two or one for each multiprocessor of the
largest GPU it is meant for. A launch is a whole number of such waves."""
_REGISTERS = 168
"""Of a thread of the scan, up to 128 columns: what lets three programs run on a multiprocessor, without spills."""
_BLOCK = 1024
"""Keys that a selecting program reads at a time."""
_MOST_GROUPS = 2**20
"""What `_threshold` can count."""

TILES: Table = {
    9: {
        32: Tile(64, 64, 4, 4),
        64: Tile(64, 64, 4, 4),
        128: Tile(64, 64, 4, 3),
        256: Tile(64, 64, 4, 2),
        512: Tile(32, 64, 4, 2),
    },
    8: {
        32: Tile(64, 64, 4, 3),
        64: Tile(64, 64, 4, 3),
        128: Tile(64, 64, 4, 2),
        256: Tile(64, 32, 4, 2),
        512: Tile(32, 16, 4, 2),
    },
}
"""Centres by vectors of the scan. Four numbers a cell stay in registers."""


@triton.jit
def key_of(score):
    """int32 in the order of float32."""
    bits = score.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def score_of(key):
    """The inverse of `key_of`."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def scaled(centre):
    """(R, D) float32, each row times the power of two that brings its largest number into [1, 2): no 16-bit overflow,
    and the same rounding as without."""
    largest = tl.max(tl.abs(centre), 1)
    power = (largest.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
    return centre * (1.0 / tl.where(power > 0, power, 1.0))[:, None]


@triton.jit
def _better(s, tile, first, other, when):
    """The best and the second best score of each cell, and the tile of the best, with one more score."""
    better = s > first
    other = tl.maximum(other, tl.where(better, first, s))
    return tl.where(better, s, first), other, tl.where(better, tile, when)


@triton.jit(do_not_specialize=["n_centres", "n_vectors"])
def _scan(
    centres, vectors, count, best, place, second, n_centres, n_vectors,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_V: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    # Vectors are the product's first operand: the second, here the centres, stays in shared memory, not in registers.
    # Programs that share a tile of vectors follow each other, so that it is read from memory once.
    lane = tl.arange(0, BLOCK_B)
    b = tl.program_id(0) * BLOCK_B + lane
    of_tile = tl.arange(0, BLOCK_V)
    group = tl.program_id(1) * BLOCK_V + of_tile
    n_groups = tl.num_programs(1) * BLOCK_V
    d = tl.arange(0, BLOCK_D)
    n_real = n_vectors
    if COUNT:
        n_real = tl.minimum(tl.load(count), n_vectors).to(tl.int32)
    at = b.to(tl.int64)[:, None] * D + d[None, :]
    centre = tl.load(centres + at, mask=(b < n_centres)[:, None] & (d < D)[None, :], other=0.0).to(tl.float32)
    centre = scaled(centre).to(vectors.dtype.element_ty)
    first = tl.full((BLOCK_V, BLOCK_B), float("-inf"), tl.float32)
    other = tl.full((BLOCK_V, BLOCK_B), float("-inf"), tl.float32)
    when = tl.full((BLOCK_V, BLOCK_B), -1, tl.int32)
    at = vectors + group.to(tl.int64)[:, None] * D + d[None, :]
    step = n_groups.to(tl.int64) * D
    n_full = n_real // n_groups
    for tile in range(0, n_full):
        if BLOCK_D > D:
            w = tl.load(at + tile * step, mask=(d < D)[None, :], other=0.0)
        else:
            w = tl.load(at + tile * step)
        s = tl.dot(w, tl.trans(centre), input_precision="ieee")
        first, other, when = _better(s, tile, first, other, when)
    # What is left is less than a vector for each group.
    real = n_full * n_groups + group < n_real
    w = tl.load(at + n_full * step, mask=real[:, None] & (d < D)[None, :], other=0.0)
    s = tl.dot(w, tl.trans(centre), input_precision="ieee")
    s = tl.where(real[:, None], s, float("-inf"))
    first, other, when = _better(s, n_full, first, other, when)
    out = tl.program_id(0).to(tl.int64) * BLOCK_B * n_groups + tl.program_id(1) * BLOCK_V
    cell = of_tile[:, None] + lane[None, :] * n_groups
    mask = (b < n_centres)[None, :]
    tl.store(best + out + cell, tl.where(when < 0, LOWEST, key_of(first)), mask=mask)
    tl.store(place + out + cell, tl.where(when < 0, -1, when * n_groups + group[:, None]), mask=mask)
    tl.store(second + out + cell, tl.where(other > float("-inf"), key_of(other), LOWEST), mask=mask)


@triton.jit
def _threshold(keys, n, k, BLOCK: tl.constexpr):
    """The k-th largest of n keys, LOWEST where n < k: two bits of it at a time."""
    lane = tl.arange(0, BLOCK)
    t = tl.full((), LOWEST, tl.int32)
    unit = tl.full((), 1 << 30, tl.int32)
    while unit > 0:
        one = t + unit
        two = one + unit
        three = two + unit
        counts = tl.zeros((BLOCK,), tl.int64)
        for first in range(0, n, BLOCK):
            key = tl.load(keys + first + lane, mask=first + lane < n, other=LOWEST)
            counts += (
                (key >= one).to(tl.int64) + ((key >= two).to(tl.int64) << 21) + ((key >= three).to(tl.int64) << 42)
            )
        total = tl.sum(counts)
        reached = ((total & 0x1FFFFF) >= k).to(tl.int32) + (((total >> 21) & 0x1FFFFF) >= k).to(tl.int32)
        reached += ((total >> 42) >= k).to(tl.int32)
        t += unit * reached
        unit = unit >> 2
    return t


@triton.jit
def _take(keys, ids, n, t, k, keys_out, ids_out, BLOCK: tl.constexpr):
    """Writes the keys above t, and of those equal to t the first ones, k in all; returns how many. In place: no write
    reaches what a later block reads."""
    lane = tl.arange(0, BLOCK)
    above = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, n, BLOCK):
        above += (tl.load(keys + first + lane, mask=first + lane < n, other=LOWEST) > t).to(tl.int32)
    n_ties = k - tl.sum(above)
    taken = tl.full((), 0, tl.int32)
    ties = tl.full((), 0, tl.int32)
    for first in range(0, n, BLOCK):
        key = tl.load(keys + first + lane, mask=first + lane < n, other=LOWEST)
        vector = tl.load(ids + first + lane, mask=first + lane < n, other=-1)
        tie = ((key == t) & (key > LOWEST)).to(tl.int32)
        take = (key > t) | ((tie > 0) & (ties + tl.cumsum(tie, 0) <= n_ties))
        slot = taken + tl.cumsum(take.to(tl.int32), 0) - 1
        tl.debug_barrier()
        tl.store(keys_out + slot, key, mask=take)
        tl.store(ids_out + slot, vector, mask=take)
        taken += tl.sum(take.to(tl.int32))
        ties += tl.sum(tie)
    tl.debug_barrier()
    return taken


@triton.jit(do_not_specialize=["n_vectors", "n_groups", "n_tiles", "k", "capacity"])
def _select(
    centres, vectors, count, best, place, second, keys, ids, again, found,
    n_vectors, n_groups, n_tiles, k, capacity,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    best, place, second = best + b * n_groups, place + b * n_groups, second + b * n_groups
    keys, ids, again = keys + b * capacity, ids + b * capacity, again + b * k
    n_real = n_vectors
    if COUNT:
        n_real = tl.minimum(tl.load(count), n_vectors).to(tl.int32)
    lane = tl.arange(0, BLOCK)
    t = _threshold(best, n_groups, k, BLOCK)
    n = _take(best, place, n_groups, t, k, keys, ids, BLOCK)
    n_again = tl.full((), 0, tl.int32)
    for first in range(0, n_groups, BLOCK):
        group = first + lane
        more = tl.load(second + group, mask=group < n_groups, other=LOWEST) > t
        slot = n_again + tl.cumsum(more.to(tl.int32), 0) - 1
        tl.store(again + slot, group, mask=more)
        n_again += tl.sum(more.to(tl.int32))
    tl.debug_barrier()
    # Work item i is the vector in place i % T of group i // T of those to be scored again.
    one = tl.arange(0, 1)
    d = tl.arange(0, BLOCK_D)
    inside = d < D
    centre = tl.load(centres + (b + one)[:, None] * D + d[None, :], mask=inside[None, :], other=0.0).to(tl.float32)
    centre = scaled(centre).to(vectors.dtype.element_ty).to(tl.float32)
    row = tl.arange(0, ROWS)
    work = n_again * n_tiles
    for first in range(0, tl.maximum(work, 1), ROWS):
        i = first + row
        group = tl.load(again + i // n_tiles, mask=i < work, other=0)
        v = (i % n_tiles) * n_groups + group
        real = (i < work) & (v < n_real)
        known = tl.load(place + group, mask=real, other=-1)
        w = tl.load(vectors + v.to(tl.int64)[:, None] * D + d[None, :], mask=real[:, None] & inside[None, :], other=0.0)
        s = tl.sum(w.to(tl.float32) * centre, 1)
        key = key_of(s)
        take = real & (s == s) & (key > t) & (v != known)
        slot = n + tl.cumsum(take.to(tl.int32), 0) - 1
        tl.store(keys + slot, key, mask=take)
        tl.store(ids + slot, v, mask=take)
        n += tl.sum(take.to(tl.int32))
        tl.debug_barrier()
        if (n > k) & ((n > capacity - ROWS) | (first + ROWS >= work)):
            t = _threshold(keys, n, k, BLOCK)
            n = _take(keys, ids, n, t, k, keys, ids, BLOCK)
    for first in range(0, k, BLOCK):
        slot = first + lane
        tl.store(found + b * k + slot, tl.load(ids + slot, mask=slot < n, other=-1), mask=slot < k)


def top_of(centres_BD: Tensor, vectors_MD: Tensor, k: int, count: Tensor | None) -> Tensor:
    """`sce.top_items` without its checks: contiguous tensors, `count` int64 on their device."""
    (n_centres, D), M = centres_BD.shape, len(vectors_MD)
    found = centres_BD.new_empty((n_centres, k), dtype=torch.int32)
    if not n_centres or not M:
        return found.fill_(-1)
    tile, block_d = pick(TILES, D, vectors_MD.device, vectors_MD.dtype), power_of_2(D)
    blocks = -(-n_centres // tile.rows)
    wave = max(1, _WAVES[min(width for width in _WAVES if width >= D)] // blocks)
    needed, tiles = -(-_GROUPS_PER_K * k // tile.columns), -(-M // tile.columns)
    # Short loops do not pay: the groups have to be read by one program.
    wanted = min(-(-needed // wave) * wave, max(needed, -(-tiles // 16)))
    across = min(wanted, _MOST_GROUPS // tile.columns, tiles)
    n_groups = across * tile.columns
    n_tiles = -(-M // n_groups)
    best, place, second = (centres_BD.new_empty((n_centres, n_groups), dtype=torch.int32) for _ in range(3))
    given = pointer(count, found)
    _scan[(blocks, across)](
        centres_BD, vectors_MD, given, best, place, second, n_centres, M,
        D=D, BLOCK_D=block_d, BLOCK_B=tile.rows, BLOCK_V=tile.columns, COUNT=count is not None,
        num_warps=tile.warps, num_stages=tile.stages, maxnreg=_REGISTERS if D <= 128 else None,
    )  # fmt: skip
    rows = max(16, min(256, 8192 // block_d))
    capacity = 2 * k + rows
    keys, ids = (centres_BD.new_empty((n_centres, capacity), dtype=torch.int32) for _ in range(2))
    again = centres_BD.new_empty((n_centres, k), dtype=torch.int32)
    _select[(n_centres,)](
        centres_BD, vectors_MD, given, best, place, second, keys, ids, again, found,
        M, n_groups, n_tiles, k, capacity,
        D=D, BLOCK_D=block_d, BLOCK=_BLOCK, ROWS=rows, COUNT=count is not None, num_warps=8,
    )  # fmt: skip
    return found
