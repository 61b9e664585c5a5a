"""Softmax over the items of a bucket, the bucket in which each position's loss is largest, and the gradients of these.

    l_bi = log( exp(x_i w_y) + sum_{j in W_b, j != y_i} exp(x_i w_j) ) - x_i w_y      for i in X_b
    winner_i = the first b of the largest l_bi;  loss = mean of l_bi over the covered i, b = winner_i
    p_ij = exp(x_i w_j - lse_i) over the items of i's winner, j != y_i
    d x_i = (sum_j p_ij w_j - (sum_j p_ij) w_y) / covered
    d w_j = sum_i p_ij x_i / covered;  d w_y = -sum_i (sum_j p_ij) x_i / covered

Losses of all (bucket, slot) pairs come from one pass of gathered tiles with a running log-sum-exp; a position keeps the
maximum of (loss, first bucket), packed in 64 bits, by an atomic maximum, which needs no order. A bucket's winning
slots are then moved together: the backward pass does no more work than N rows. 1 - p_y is the sum of the other p, so
that it does not cancel.

Tiling: 64 rows by 64 items; d x loops over the items of a bucket, d w over its winners. Products accumulate in
float32. In float16 p is multiplied by 2^14 before it is rounded. Losses, winners, value and d x are deterministic; d w
adds up by float32 atomics (buckets share items), repeatable up to rounding.
"""

from __future__ import annotations

import triton
import triton.language as tl

from seqrec.kernels.top import key_of, score_of

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
MOST = tl.constexpr(2**31 - 1)
UNCOVERED = tl.constexpr(-(2**63))
"""Winner of a position that is in no bucket. Else: the loss's key in the high half, MOST - slot in the low one."""


@triton.jit
def _broken(x):
    """1 where a number is infinite or NaN."""
    x = x.to(tl.float32)
    return (x - x != 0).to(tl.int32)


@triton.jit(do_not_specialize=["n_rows", "n_items"])
def prepare(
    items, items_low, hidden, hidden_low, targets, count, winner, broken, n_rows, n_items,
    D: tl.constexpr, BLOCK: tl.constexpr, CAST: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """Low copies of both operands, no winners, and whether a number overflows or a real row's target is no item."""
    start, step = tl.program_id(0).to(tl.int64) * BLOCK, tl.num_programs(0) * BLOCK
    lane = tl.arange(0, BLOCK)
    bad = tl.zeros((BLOCK,), tl.int32)
    n_real = n_rows
    if COUNT:
        n_real = tl.minimum(tl.load(count), n_rows).to(tl.int32)
    for first in range(start, n_items.to(tl.int64) * D, step):
        at = first + lane
        mask = at < n_items.to(tl.int64) * D
        x = tl.load(items + at, mask=mask, other=0.0).to(items_low.dtype.element_ty)
        if CAST:
            tl.store(items_low + at, x, mask=mask)
        bad |= _broken(x)
    for first in range(start, n_rows.to(tl.int64) * D, step):
        at = first + lane
        mask = at < n_rows.to(tl.int64) * D
        x = tl.load(hidden + at, mask=mask, other=0.0).to(hidden_low.dtype.element_ty)
        if CAST:
            tl.store(hidden_low + at, x, mask=mask)
        bad |= _broken(x)
    for first in range(start, n_rows.to(tl.int64), step):
        n = first + lane
        y = tl.load(targets + n, mask=n < n_real, other=0).to(tl.int64)
        bad |= ((y < 0) | (y >= n_items)).to(tl.int32)
        tl.store(winner + n, tl.full((BLOCK,), UNCOVERED, tl.int64), mask=n < n_rows)
    tl.store(broken + tl.program_id(0), tl.max(bad))


@triton.jit
def _rows(table, n, real, d, D: tl.constexpr):
    """Some rows of a table, zeros where not `real`."""
    return tl.load(table + n.to(tl.int64)[:, None] * D + d[None, :], mask=real[:, None] & (d < D)[None, :], other=0.0)


@triton.jit
def _targets(targets, n, real, n_items):
    """Items of some positions; -1 where not `real`, or where it is none."""
    y = tl.load(targets + n, mask=real, other=-1).to(tl.int64)
    return tl.where((y >= 0) & (y < n_items), y, -1).to(tl.int32)


@triton.jit
def _items(items, chosen, first, size, lane, d, D: tl.constexpr):
    """Ids (-1: none) and embeddings of some of a bucket's items."""
    j = tl.load(chosen + first + lane, mask=first + lane < size, other=-1)
    return j, _rows(items, j, j >= 0, d, D)


@triton.jit
def _softplus(x):
    """log(1 + exp(x)), to the last digits of small values too."""
    e = tl.exp(-tl.abs(x))
    return tl.maximum(x, 0.0) + tl.where(e < 0.001, e * (1 - e * (0.5 - e / 3)), tl.log(1 + e))


@triton.jit(do_not_specialize=["n_items", "size_x", "size_y"])
def losses(
    hidden, items, targets, positions, chosen, lse, winner, n_items, size_x, size_y,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_Y: tl.constexpr,
):  # fmt: skip
    bucket = tl.program_id(1).to(tl.int64)
    lane = tl.program_id(0) * BLOCK_X + tl.arange(0, BLOCK_X)
    d = tl.arange(0, BLOCK_D)
    slot = bucket * size_x + lane
    n = tl.load(positions + slot, mask=lane < size_x, other=-1)
    x = _rows(hidden, n, n >= 0, d, D)
    y = _targets(targets, n, n >= 0, n_items)
    positive = tl.sum(x.to(tl.float32) * _rows(items, y, y >= 0, d, D).to(tl.float32), 1) * LOG2E
    # The positive takes part in the maximum but not in the sum: a loss near 0 keeps its digits, and its bucket's rank.
    largest = positive
    total = tl.zeros((BLOCK_X,), tl.float32)
    of_tile = tl.arange(0, BLOCK_Y)
    for first in range(0, size_y, BLOCK_Y):
        j, w = _items(items, chosen + bucket * size_y, first, size_y, of_tile, d, D)
        s = tl.dot(x, tl.trans(w), input_precision="ieee") * LOG2E
        s = tl.where((j >= 0)[None, :] & (j[None, :] != y[:, None]), s, float("-inf"))
        larger = tl.maximum(largest, tl.max(s, 1))
        total = total * tl.exp2(largest - larger) + tl.sum(tl.exp2(s - larger[:, None]), 1)
        largest = larger
    tl.store(lse + slot, largest + tl.log2(total + tl.exp2(positive - largest)), mask=n >= 0)
    loss = tl.where(total == 0, 0.0, _softplus((largest - positive + tl.log2(tl.maximum(total, 1e-37))) * LN2))
    # A NaN wins, so that it shows; so does a target that is no item.
    key = tl.where((loss == loss) & (y >= 0), key_of(loss), MOST).to(tl.int64)
    tl.atomic_max(winner + n, (key << 32) + (MOST - slot), mask=n >= 0, sem="relaxed")


@triton.jit(do_not_specialize=["size_x"])
def gather_winners(
    positions, lse, winner, won, won_lse, n_won, value, size_x, BLOCK: tl.constexpr
):  # fmt: skip
    """Of each bucket: its winning positions and their lse at the front, their number and the sum of their losses."""
    bucket = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    taken = tl.full((), 0, tl.int32)
    for first in range(0, size_x, BLOCK):
        slot = bucket * size_x + first + lane
        inside = first + lane < size_x
        n = tl.load(positions + slot, mask=inside, other=-1)
        best = tl.load(winner + n, mask=n >= 0, other=UNCOVERED)
        wins = (n >= 0) & ((best & MOST) == MOST - slot)
        total += tl.where(wins, score_of((best >> 32).to(tl.int32)), 0.0)
        to = bucket * size_x + taken + tl.cumsum(wins.to(tl.int32), 0) - 1
        tl.store(won + to, n, mask=wins)
        tl.store(won_lse + to, tl.load(lse + slot, mask=wins, other=0.0), mask=wins)
        taken += tl.sum(wins.to(tl.int32))
    tl.store(n_won + bucket, taken)
    tl.store(value + bucket, tl.sum(total))


@triton.jit(do_not_specialize=["n_buckets", "n_programs", "n_rows"])
def finish(
    n_won, values, failures, count, value, share, scale, n_buckets, n_programs, n_rows,
    BLOCK: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """The mean, the covered share, and 1 / covered."""
    lane = tl.arange(0, BLOCK)
    covered = tl.zeros((BLOCK,), tl.int32)
    total = tl.zeros((BLOCK,), tl.float32)
    bad = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, n_buckets, BLOCK):
        mask = first + lane < n_buckets
        covered += tl.load(n_won + first + lane, mask=mask, other=0)
        total += tl.load(values + first + lane, mask=mask, other=0.0)
    for first in range(0, n_programs, BLOCK):
        bad |= tl.load(failures + first + lane, mask=first + lane < n_programs, other=0)
    n_real = n_rows
    if COUNT:
        n_real = tl.minimum(tl.load(count), n_rows).to(tl.int32)
    some = tl.sum(covered).to(tl.float32)
    # No row, no loss; rows of which none is covered: the centres are NaN, and so is the mean.
    broken = (tl.max(bad) > 0) | ((n_real > 0) & (some == 0))
    tl.store(value, tl.where(broken, float("nan"), tl.sum(total) / tl.maximum(some, 1.0)))
    tl.store(share, some / tl.maximum(n_real, 1).to(tl.float32))
    tl.store(scale, 1.0 / tl.maximum(some, 1.0))


@triton.jit(do_not_specialize=["n_items", "size_x", "size_y"])
def to_states(
    hidden, items, targets, won, won_lse, n_won, chosen, scale, to_hidden, to_items, n_items, size_x, size_y, shift,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_Y: tl.constexpr,
):  # fmt: skip
    """d x of the winners, and what their targets get."""
    bucket = tl.program_id(1).to(tl.int64)
    start = tl.program_id(0) * BLOCK_X
    n_rows = tl.load(n_won + bucket)
    if start < n_rows:
        lane = start + tl.arange(0, BLOCK_X)
        real = lane < n_rows
        d = tl.arange(0, BLOCK_D)
        n = tl.load(won + bucket * size_x + lane, mask=real, other=0)
        sums = tl.load(won_lse + bucket * size_x + lane, mask=real, other=float("inf")) - shift
        x = _rows(hidden, n, real, d, D)
        y = _targets(targets, n, real, n_items)
        of_tile = tl.arange(0, BLOCK_Y)
        total = tl.zeros((BLOCK_X,), tl.float32)
        mixed = tl.zeros((BLOCK_X, BLOCK_D), tl.float32)
        for first in range(0, size_y, BLOCK_Y):
            j, w = _items(items, chosen + bucket * size_y, first, size_y, of_tile, d, D)
            s = tl.dot(x, tl.trans(w), input_precision="ieee") * LOG2E
            s = tl.where((j >= 0)[None, :] & (j[None, :] != y[:, None]), s, float("-inf"))
            p = tl.exp2(s - sums[:, None])
            total += tl.sum(p, 1)
            mixed = tl.dot(p.to(w.dtype), w, mixed, input_precision="ieee")
        factor = tl.load(scale) * tl.exp2(-shift)
        mask = real[:, None] & (d < D)[None, :]
        # Read now, not before the loop: no registers for it there.
        g = (mixed - total[:, None] * _rows(items, y, y >= 0, d, D).to(tl.float32)) * factor
        tl.store(to_hidden + n.to(tl.int64)[:, None] * D + d[None, :], g, mask=mask)
        g = _rows(hidden, n, real, d, D).to(tl.float32) * -(total * factor)[:, None]
        at = to_items + y.to(tl.int64)[:, None] * D + d[None, :]
        tl.atomic_add(at, g, mask=mask & (y >= 0)[:, None], sem="relaxed")


@triton.jit(do_not_specialize=["size_x", "size_y"])
def to_chosen(
    hidden, items, targets, won, won_lse, n_won, chosen, scale, to_items, size_x, size_y, shift,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_Y: tl.constexpr,
):  # fmt: skip
    """d w of the items of a bucket, as far as they are negatives."""
    bucket = tl.program_id(1).to(tl.int64)
    n_rows = tl.load(n_won + bucket)
    if n_rows > 0:
        d = tl.arange(0, BLOCK_D)
        of_tile = tl.arange(0, BLOCK_X)
        start = tl.program_id(0) * BLOCK_Y
        j, w = _items(items, chosen + bucket * size_y, start, size_y, tl.arange(0, BLOCK_Y), d, D)
        mixed = tl.zeros((BLOCK_Y, BLOCK_D), tl.float32)
        for first in range(0, n_rows, BLOCK_X):
            real = first + of_tile < n_rows
            at = bucket * size_x + first + of_tile
            n = tl.load(won + at, mask=real, other=0)
            sums = tl.load(won_lse + at, mask=real, other=float("inf")) - shift
            y = tl.load(targets + n, mask=real, other=-1)
            x = _rows(hidden, n, real, d, D)
            s = tl.dot(w, tl.trans(x), input_precision="ieee") * LOG2E
            s = tl.where((j >= 0)[:, None] & (j[:, None] != y[None, :]), s, float("-inf"))
            p = tl.exp2(s - sums[None, :])
            mixed = tl.dot(p.to(x.dtype), x, mixed, input_precision="ieee")
        g = mixed * (tl.load(scale) * tl.exp2(-shift))
        at = to_items + j.to(tl.int64)[:, None] * D + d[None, :]
        tl.atomic_add(at, g, mask=(j >= 0)[:, None] & (d < D)[None, :], sem="relaxed")
