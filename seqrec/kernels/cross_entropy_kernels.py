"""The four kernels of `cross_entropy`, whose docstring has the maths: prepare, forward, merge, backward.

Operands. Both tables are copied once in 16 bits, in rows of WIDTH numbers (D raised to a multiple of 16, so that any D
loads in 16 bytes at a time), with rows of zeros up to whole tiles: no loop below needs a mask. SPLIT: the copies hold
SCALE times the numbers, in two parts of 16 bits, high + rest, and every product is three: high high + high rest + rest
high. SCALE keeps the rests of small numbers out of fp16's subnormals.

Probabilities are multiplied by 2^SHIFT before they are rounded to 16 bits: of a large catalog they are about 1e-6,
which fp16 could not tell from its neighbours. 2^14 leaves room up to a probability of 4, and they end at 1.

All sums are in float32. No atomics: deterministic.
"""

from __future__ import annotations

import triton
import triton.language as tl

SHIFT = tl.constexpr(14.0)
UNIT = tl.constexpr(16384.0)
"""2^SHIFT."""
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
NOWHERE = tl.constexpr(2147483647)
"""The key of a target that is no item: behind all of them."""


@triton.jit
def _rows(table, ROWS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """(ROWS, BLOCK_D): rows that follow one another from where `table` points to, zeros beyond WIDTH."""
    d = tl.arange(0, BLOCK_D)[None, :]
    place = tl.arange(0, ROWS)[:, None] * WIDTH + d
    if WIDTH == BLOCK_D:
        found = tl.load(table + place)
    else:
        found = tl.load(table + place, mask=d < WIDTH, other=0.0)
    return found


@triton.jit
def _scores(a, a_rest, b, b_rest, SPLIT: tl.constexpr, EXACT: tl.constexpr):
    """a b^T in float32."""
    s = tl.dot(a, tl.trans(b), input_precision="ieee" if EXACT else "tf32")
    if SPLIT:
        s = tl.dot(a, tl.trans(b_rest), s)
        s = tl.dot(a_rest, tl.trans(b), s)
    return s


@triton.jit
def _mix(p, table, rest, total, SPLIT: tl.constexpr, EXACT: tl.constexpr):
    """total + p table, p rounded as the table is."""
    high = p.to(table.dtype)
    total = tl.dot(high, table, total, input_precision="ieee" if EXACT else "tf32")
    if SPLIT:
        total = tl.dot(high, rest, total)
        total = tl.dot((p - high.to(tl.float32)).to(table.dtype), table, total)
    return total


@triton.jit
def _lower(
    table, low, rest, first, n_rows,
    D: tl.constexpr, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr,
    SCALE: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Copies rows in the low dtype, zeros behind the last, NaN where it is too narrow: a score of -inf goes unseen."""
    row = (first + tl.arange(0, BLOCK)).to(tl.int64)[:, None]
    d = tl.arange(0, BLOCK_D)[None, :]
    x = tl.load(table + row * D + d, mask=(row < n_rows) & (d < D), other=0.0).to(tl.float32) * SCALE
    high = x.to(low.dtype.element_ty).to(tl.float32)
    high = tl.where(high - high == 0, x, float("nan")).to(low.dtype.element_ty)
    place = row * WIDTH + d
    tl.store(low + place, high, mask=d < WIDTH)
    if SPLIT:
        tl.store(rest + place, (x - high.to(tl.float32)).to(low.dtype.element_ty), mask=d < WIDTH)


@triton.jit(do_not_specialize=["n_rows", "n_items", "n_item_programs", "n_row_programs"])
def prepare(
    hidden, items, targets, weights, hidden_low, hidden_rest, items_low, items_rest, keys, largest,
    n_rows, n_items, n_item_programs, n_row_programs,
    D: tl.constexpr, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr,
    SCALE: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Low copies of both tables, the targets as sort keys, and, by the last program, the largest weight."""
    program = tl.program_id(0)
    if program < n_item_programs:
        _lower(items, items_low, items_rest, program * BLOCK, n_items, D, WIDTH, BLOCK_D, BLOCK, SCALE, SPLIT)
    elif program < n_item_programs + n_row_programs:
        first = (program - n_item_programs) * BLOCK
        _lower(hidden, hidden_low, hidden_rest, first, n_rows, D, WIDTH, BLOCK_D, BLOCK, SCALE, SPLIT)
        n = first + tl.arange(0, BLOCK)
        y = tl.load(targets + n, mask=n < n_rows, other=-1).to(tl.int64)
        key = tl.where((y >= 0) & (y < n_items), y, NOWHERE)
        tl.store(keys + n, key.to(tl.int32), mask=n < n_rows)
    else:
        most = tl.zeros((1024,), tl.float32)
        for first in range(0, n_rows, 1024):
            n = first + tl.arange(0, 1024)
            most = tl.maximum(most, tl.load(weights + n, mask=n < n_rows, other=0.0))
        most = tl.max(most, 0)
        tl.store(largest, tl.where(most > 0, most, 1.0))  # weights of 0 alone: nothing to divide by


@triton.jit
def _add(total, lost, more):
    """(total + more, what rounding has lost): one probable item beside a million below the spacing at 1."""
    more -= lost
    larger = total + more
    return larger, (larger - total) - more


@triton.jit
def _absorb(
    x, x_rest, w, w_rest, n_left, top, mass, lost, mixed,
    ITEMS: tl.constexpr, FACTOR: tl.constexpr, MASK: tl.constexpr, MIX: tl.constexpr,
    SPLIT: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """One tile of items more in the online softmax (base 2): (top, mass, lost, mixed), all but top times 2^SHIFT."""
    s = _scores(x, x_rest, w, w_rest, SPLIT, EXACT)
    if MASK:
        s = tl.where(tl.arange(0, ITEMS)[None, :] < n_left, s, float("-inf"))
    higher = tl.maximum(top, tl.max(s, 1) * FACTOR)
    faded = tl.exp2(top - higher)
    p = tl.exp2(s * FACTOR - (higher - SHIFT)[:, None])
    mass, lost = _add(mass * faded, lost * faded, tl.sum(p, 1))
    if MIX:
        mixed = _mix(p, w, w_rest, mixed * faded[:, None], SPLIT, EXACT)
    return higher, mass, lost, mixed


@triton.jit(do_not_specialize=["n_padded", "n_items", "tiles_per_split"])
def forward(
    hidden, hidden_rest, items, items_rest, lse_parts, mixed_parts, n_padded, n_items, tiles_per_split,
    WIDTH: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, ITEMS: tl.constexpr,
    SCALE: tl.constexpr, MIX: tl.constexpr, SPLIT: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Of a block of rows over a stretch of the catalog: lse in base 2, (split, row), and sum_j p_j w_j, (split, row,
    WIDTH). Blocks of rows are the fast index of the grid: programs that run together walk over the same items, which
    the second-level cache then holds."""
    row = tl.program_id(0) * ROWS
    split = tl.program_id(1)
    FACTOR: tl.constexpr = LOG2E / (SCALE * SCALE)
    at = row.to(tl.int64) * WIDTH
    x = _rows(hidden + at, ROWS, WIDTH, BLOCK_D)
    x_rest = x
    if SPLIT:
        x_rest = _rows(hidden_rest + at, ROWS, WIDTH, BLOCK_D)
    first = split * tiles_per_split
    whole = tl.minimum(first + tiles_per_split, n_items // ITEMS)
    items += first.to(tl.int64) * (ITEMS * WIDTH)
    items_rest += first.to(tl.int64) * (ITEMS * WIDTH)
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    mass = tl.zeros((ROWS,), tl.float32)
    lost = tl.zeros((ROWS,), tl.float32)
    mixed = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for _ in range(first, whole):
        w = _rows(items, ITEMS, WIDTH, BLOCK_D)
        w_rest = w
        if SPLIT:
            w_rest = _rows(items_rest, ITEMS, WIDTH, BLOCK_D)
        top, mass, lost, mixed = _absorb(
            x, x_rest, w, w_rest, ITEMS, top, mass, lost, mixed, ITEMS, FACTOR, False, MIX, SPLIT, EXACT
        )
        items += ITEMS * WIDTH
        items_rest += ITEMS * WIDTH
    # The catalog's last items, fewer than a tile, are the last program's.
    n_left = n_items % ITEMS
    if (whole < first + tiles_per_split) & (n_left > 0):
        w = _rows(items, ITEMS, WIDTH, BLOCK_D)
        w_rest = w
        if SPLIT:
            w_rest = _rows(items_rest, ITEMS, WIDTH, BLOCK_D)
        top, mass, lost, mixed = _absorb(
            x, x_rest, w, w_rest, n_left, top, mass, lost, mixed, ITEMS, FACTOR, True, MIX, SPLIT, EXACT
        )
    n = split.to(tl.int64) * n_padded + row + tl.arange(0, ROWS)
    tl.store(lse_parts + n, top + tl.log2(mass / UNIT))
    if MIX:
        d = tl.arange(0, BLOCK_D)[None, :]
        tl.store(mixed_parts + n[:, None] * WIDTH + d, mixed / mass[:, None], mask=d < WIDTH)


@triton.jit(do_not_specialize=["n_rows", "n_padded", "n_items", "n_splits"])
def merge(
    lse_parts, mixed_parts, hidden, hidden_rest, items, items_rest, targets, weights, largest,
    lse, to_hidden, values, n_rows, n_padded, n_items, n_splits,
    D: tl.constexpr, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
    SCALE: tl.constexpr, MIX: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """The stretches of the catalog together, and the target: a block's share of the value, and with MIX the gradient
    of its rows. `lse`: natural; with MIX what the backward pass subtracts from logits in base 2 to have g p 2^SHIFT / g
    of the largest weight, infinite where that is 0."""
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = n < n_rows
    d = tl.arange(0, BLOCK_D)[None, :]
    columns = d < WIDTH
    place = n.to(tl.int64)[:, None] * WIDTH + d
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    part = lse_parts + n
    for _ in range(n_splits):
        top = tl.maximum(top, tl.load(part))
        part += n_padded
    mass = tl.zeros((ROWS,), tl.float32)
    lost = tl.zeros((ROWS,), tl.float32)
    mixed = tl.zeros((ROWS, BLOCK_D), tl.float32)
    part = lse_parts + n
    step = n_padded.to(tl.int64) * WIDTH
    for _ in range(n_splits):
        share = tl.exp2(tl.load(part) - top)
        mass, lost = _add(mass, lost, share)
        part += n_padded
        if MIX:
            mixed += share[:, None] * tl.load(mixed_parts + place, mask=columns, other=0.0)
            mixed_parts += step
    lse2 = top + tl.log2(mass)

    y = tl.load(targets + n, mask=inside, other=0).to(tl.int64)
    known = (y >= 0) & (y < n_items)
    target = tl.where(known, y, 0)[:, None] * WIDTH + d
    x = tl.load(hidden + place, mask=columns, other=0.0).to(tl.float32)
    w = tl.load(items + target, mask=columns, other=0.0).to(tl.float32)
    if SPLIT:
        x += tl.load(hidden_rest + place, mask=columns, other=0.0).to(tl.float32)
        w += tl.load(items_rest + target, mask=columns, other=0.0).to(tl.float32)
    # In base 2, as lse was made: rounded alike, what remains of a large logit less itself is small too.
    loss = (lse2 - tl.sum(x * w, 1) * (LOG2E / (SCALE * SCALE))) * LN2
    # Both terms are of the same rounded operands, so what is below 0 is the rounding of this difference.
    loss = tl.where(loss < 0, 0.0, loss)
    loss = tl.where(known, loss, float("nan"))
    g = tl.load(weights + n, mask=inside, other=0.0)
    tl.store(values + tl.program_id(0), tl.sum(tl.where(inside, g * loss, 0.0), 0))
    if MIX:
        mixed = g[:, None] * (mixed / mass[:, None] - w) / SCALE
        tl.store(to_hidden + n.to(tl.int64)[:, None] * D + d, mixed, mask=inside[:, None] & (d < D))
        relative = g / tl.load(largest)
        counts = relative > 0
        shifted = lse2 - tl.log2(tl.where(counts, relative, 1.0)) - SHIFT
        tl.store(lse + n, tl.where(counts, shifted, float("inf")))
    else:
        tl.store(lse + n, lse2 * LN2)


@triton.jit(do_not_specialize=["n_rows", "n_padded", "n_items", "blocks_per_split", "n_halvings"])
def backward(
    hidden, hidden_rest, items, items_rest, lse, keys, order, weights, largest, to_items,
    n_rows, n_padded, n_items, blocks_per_split, n_halvings,
    D: tl.constexpr, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, ITEMS: tl.constexpr,
    TARGETS: tl.constexpr, SCALE: tl.constexpr, SPLIT: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Of a tile of items, which stays: sum_i g_i (p_ij - [j = y_i]) x_i over a stretch of the rows, (stretch, item, D).

    Rows beyond N have an infinite lse, so probability 0. Targets: `keys` are sorted, `order` says whose they are, and a
    tile's own lie next to one another; a block of them times its hidden states is one turn more. A popular item costs
    its program one such turn for every ROWS positions, at most as many as the loop has."""
    item = tl.program_id(0) * ITEMS
    FACTOR: tl.constexpr = LOG2E / (SCALE * SCALE)
    at = item.to(tl.int64) * WIDTH
    w = _rows(items + at, ITEMS, WIDTH, BLOCK_D)
    w_rest = w
    if SPLIT:
        w_rest = _rows(items_rest + at, ITEMS, WIDTH, BLOCK_D)
    total = tl.zeros((ITEMS, BLOCK_D), tl.float32)
    first = tl.program_id(1) * blocks_per_split * ROWS
    end = tl.minimum(first + blocks_per_split * ROWS, n_padded)
    row_lse = lse + first
    row = hidden + first.to(tl.int64) * WIDTH
    row_rest = hidden_rest + first.to(tl.int64) * WIDTH
    for _ in range(first, end, ROWS):
        x = _rows(row, ROWS, WIDTH, BLOCK_D)
        x_rest = x
        if SPLIT:
            x_rest = _rows(row_rest, ROWS, WIDTH, BLOCK_D)
        shifted = tl.load(row_lse + tl.arange(0, ROWS))
        s = _scores(w, w_rest, x, x_rest, SPLIT, EXACT)
        total = _mix(tl.exp2(s * FACTOR - shifted[None, :]), x, x_rest, total, SPLIT, EXACT)
        row += ROWS * WIDTH
        row_rest += ROWS * WIDTH
        row_lse += ROWS

    # Where this tile's targets begin and where the next one's: two binary searches side by side.
    bound = item + tl.arange(0, 2) * ITEMS
    begin = tl.zeros((2,), tl.int32)
    stop = begin + n_rows
    for _ in range(n_halvings):
        middle = (begin + stop) // 2
        open_ = begin < stop
        lower = open_ & (tl.load(keys + middle, mask=open_, other=0) < bound)
        begin = tl.where(lower, middle + 1, begin)
        stop = tl.where(lower, stop, middle)
    largest_weight = tl.load(largest)
    d = tl.arange(0, BLOCK_D)[None, :]
    own = item + tl.arange(0, ITEMS)
    n_targets = tl.max(begin, 0)
    own_first = tl.min(begin, 0) + tl.program_id(1) * TARGETS
    # One block as a rule: no stages, whose buffers would have to be filled in vain.
    for block in tl.range(own_first, n_targets, TARGETS * tl.num_programs(1), num_stages=1):
        k = block + tl.arange(0, TARGETS)
        i = tl.load(order + k, mask=k < n_targets, other=0)
        y = tl.load(keys + k, mask=k < n_targets, other=-1)
        share = tl.load(weights + i) / largest_weight * UNIT
        shifted = tl.load(lse + i)
        place = i[:, None] * WIDTH + d
        x = tl.load(hidden + place, mask=d < WIDTH, other=0.0)
        x_rest = x
        if SPLIT:
            x_rest = tl.load(hidden_rest + place, mask=d < WIDTH, other=0.0)
        s = _scores(w, w_rest, x, x_rest, SPLIT, EXACT)
        p = tl.exp2(s * FACTOR - shifted[None, :])
        hit = own[:, None] == y[None, :]
        # Not 1 off what is there already: near 1, p was rounded by more than 1 - p. The loop's own p is taken back, to
        # the bit as its score comes from the same product, and p - 1 put in its place.
        total = _mix(tl.where(hit, -p, 0.0), x, x_rest, total, SPLIT, EXACT)
        total = _mix(tl.where(hit, p - share[None, :], 0.0), x, x_rest, total, SPLIT, EXACT)
    total *= largest_weight / (UNIT * SCALE)
    place = (tl.program_id(1).to(tl.int64) * n_items + own)[:, None] * D + d
    tl.store(to_items + place, total, mask=(own < n_items)[:, None] & (d < D))
