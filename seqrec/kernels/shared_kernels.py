"""The two kernels of `shared`, whose docstring has the maths: `forward` over positions, `backward` over candidates.

Where a group's positions lie. Interleaved: position t of group g is g + G t. Ragged: positions offsets[g] ..
offsets[g + 1] - 1. Groups are cut into stretches of `length` positions, one program each. Interleaved, every group has
the same number of them. Ragged, stretch j of group g is number offsets[g] // length + g + j, so that numbers follow
from the offsets alone, by one binary search, without a table: no two stretches share a number, at most one number a
group is not used, and there are N // length + G of them, whatever the sizes.

What `forward` leaves for `backward` lies by number of stretch: the states in the low dtype, in rows of BLOCK_D numbers,
zeros up to a whole stretch; one number (`terms`) and the target (`keys`) of each. A group's stretches follow one
another, so `backward` reads whole tiles without a mask; where there is no position, `terms` makes e zero.

e is multiplied by 2^SHIFT before it is rounded to 16 bits: shares of 1e-6 would be fp16's subnormals. All sums are in
float32, in base 2. Rows of the items' gradient are added to by atomic additions: not bit for bit repeatable.
"""

from __future__ import annotations

import triton
import triton.language as tl

from seqrec.kernels.shared_costs import LN2, LOG2E, log1p, unlikely, unlikely_sum

NONE = tl.constexpr(0)
COUNT = tl.constexpr(1)
LOG_Q = tl.constexpr(2)

SHIFT = tl.constexpr(14.0)
UNIT = tl.constexpr(16384.0)
"""2^SHIFT."""
BELOW_ALL = tl.constexpr(-1e30)
"""A maximum before there is any: finite, so that the difference of two of them is."""
NOBODY = tl.constexpr(-1)
"""Key of a position without a target; differs from every item and from NOTHING."""
NOTHING = tl.constexpr(-2)
"""Code of a candidate that is no item, or not there: it would else be a rejected one."""


@triton.jit
def _begin(offsets, group, n_rows):
    """Where a group begins; whatever the offsets hold, within the N positions."""
    return tl.minimum(tl.maximum(tl.load(offsets + group), 0), n_rows).to(tl.int32)


@triton.jit
def _stretch(number, length, offsets, n_rows, n_groups, per_group, n_halvings, RAGGED: tl.constexpr):
    """(group, first position within it, position 0, step between positions, positions in the group); of a number that
    is not used, first >= count."""
    if RAGGED:
        low = number * 0
        high = low + n_groups
        for _ in range(n_halvings):
            middle = (low + high) // 2
            between = low < high
            begins = _begin(offsets, tl.minimum(middle, n_groups - 1), n_rows) // length + middle
            right = between & (begins <= number)
            high = tl.where(right | (low >= high), high, middle)
            low = tl.where(right, middle + 1, low)
        group = tl.maximum(low - 1, 0)
        base = _begin(offsets, group, n_rows)
        count = tl.where(low > 0, _begin(offsets, group + 1, n_rows) - base, 0)
        first = (number - base // length - group) * length
        step = low * 0 + 1
    else:
        group = number // per_group
        base = group
        count = (n_rows - group + n_groups - 1) // n_groups
        first = (number - group * per_group) * length
        step = group * 0 + n_groups
    return group, first, base, step, count


@triton.jit
def _ids(ids, first, n_candidates, ITEMS: tl.constexpr, COPIES: tl.constexpr):
    """(ITEMS, COPIES) of a group's candidates, each so many times. With COPIES as many numbers as the program has
    threads: of fewer, the compiler would load them once more, many times over, in the order of the scores' registers,
    instead of passing them through shared memory."""
    k = first + tl.arange(0, ITEMS)[:, None] + tl.zeros((1, COPIES), tl.int32)
    return tl.load(ids + k, mask=k < n_candidates, other=0)


@triton.jit
def _candidates(found, there, n_items):
    """(row of the table, always inside it; code to compare with keys; whether it is no item) of what `_ids` found."""
    item = tl.max(found, 1)
    known = (item >= 0) & (item < n_items)
    code = tl.where(there & known, item, NOTHING).to(tl.int32)
    return tl.where(known, item, 0).to(tl.int64), code, known == 0


@triton.jit
def _keys(targets, n, inside, n_items):
    """The positions' targets; NOBODY for one that is no item."""
    y = tl.load(targets + n, mask=inside, other=NOBODY)
    return tl.where((y >= 0) & (y < n_items), y, NOBODY).to(tl.int32)


@triton.jit
def _rows(table, row, d, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """(rows, BLOCK_D) of a table with D columns."""
    place = table + row[:, None] * D + d[None, :]
    if D == BLOCK_D:
        found = tl.load(place)
    else:
        found = tl.load(place, mask=(d < D)[None, :], other=0.0)
    return found


@triton.jit(do_not_specialize=["n_rows", "n_items", "n_groups", "n_candidates", "per_group", "n_halvings"])
def forward(
    hidden, items, targets, weights, largest, ids, offsets, log_q, hidden_low, terms, keys, to_hidden, to_items, values,
    n_rows, n_items, n_groups, n_candidates, per_group, n_halvings, unit, log_items, beta, scale, eps,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, ITEMS: tl.constexpr, COPIES: tl.constexpr,
    LOW: tl.constexpr, PRECISION: tl.constexpr, RAGGED: tl.constexpr, WEIGHTS: tl.constexpr, GRADIENTS: tl.constexpr,
    SOFTMAX: tl.constexpr, CORRECTION: tl.constexpr, PLUS: tl.constexpr,
):  # fmt: skip
    """Of a stretch of positions: its share of the value, the states' gradient, the targets' part of the items'
    gradient. unit: the weight of all positions without WEIGHTS. log_items: log2(V - 1)."""
    number = tl.program_id(0)
    group, first, base, step, count = _stretch(number, ROWS, offsets, n_rows, n_groups, per_group, n_halvings, RAGGED)
    if first >= count:
        tl.store(values + number, 0.0)
        return
    within = tl.arange(0, ROWS)
    inside = first + within < count
    n = base + (first + within) * step
    d = tl.arange(0, BLOCK_D)
    at = n[:, None] * D + d[None, :]
    mask = inside[:, None] & (d < D)[None, :]
    x = tl.load(hidden + at, mask=mask, other=0.0).to(LOW)
    key = _keys(targets, n, inside, n_items)
    place = number.to(tl.int64) * ROWS
    if GRADIENTS:
        tl.store(hidden_low + place * BLOCK_D + (within[:, None] * BLOCK_D + d[None, :]), x)
        tl.store(keys + place + within, key)

    ids += group.to(tl.int64) * n_candidates
    top = tl.full((ROWS,), BELOW_ALL, tl.float32)
    mass = tl.zeros((ROWS,), tl.float32)
    odd = tl.zeros((ROWS,), tl.float32)
    n_hits = tl.zeros((ROWS,), tl.float32)
    n_wrong = tl.zeros((ITEMS,), tl.int32)
    mixed = tl.zeros((ROWS, BLOCK_D), tl.float32)
    # One tile ahead: the rows' addresses are there when the loads of rows, two tiles ahead, want them.
    found = _ids(ids, 0, n_candidates, ITEMS, COPIES)
    for first_k in range(0, n_candidates, ITEMS):
        there = first_k + tl.arange(0, ITEMS) < n_candidates
        item, code, wrong = _candidates(found, there, n_items)
        found = _ids(ids, first_k + ITEMS, n_candidates, ITEMS, COPIES)
        w = _rows(items, item, d, D, BLOCK_D).to(LOW)
        n_wrong += wrong.to(tl.int32)
        s = tl.dot(x, tl.trans(w), input_precision=PRECISION)
        if not GRADIENTS:
            odd += tl.sum(s * 0.0, 1)
        if CORRECTION == LOG_Q:
            s -= tl.load(log_q + item)[None, :]
        if SOFTMAX:
            hit = code[None, :] == key[:, None]
            s = tl.where(hit, float("-inf"), s)
            if CORRECTION != NONE:  # of the scores, which lie where they are summed; `hit` would be moved
                n_hits += tl.sum(tl.where(s == float("-inf"), 1.0, 0.0), 1)
        if first_k + ITEMS > n_candidates:
            s = tl.where(there[None, :], s, float("-inf"))
        if SOFTMAX:
            higher = tl.maximum(top, tl.max(s, 1) * LOG2E)
            faded = tl.exp2(top - higher)
            e = tl.exp2(s * LOG2E - (higher - SHIFT)[:, None])
            mass = mass * faded + tl.sum(e, 1)
            top = higher
            if GRADIENTS:
                mixed = mixed * faded[:, None]
        else:
            cost, e = unlikely_sum(s, eps, ROWS, ITEMS, PLUS)
            mass += cost
            e = e * UNIT
        if GRADIENTS:
            mixed = tl.dot(e.to(LOW), w, mixed, input_precision=PRECISION)
    if PLUS:  # whose cost does not quite vanish with the likelihood, -log(1 + eps)
        mass += (tl.cdiv(n_candidates, ITEMS) * ITEMS - n_candidates) * log1p(eps, 1.0 + eps)

    # The target. Rows are read again, here and below: kept, they would take the registers of the sums.
    x = tl.load(hidden + at, mask=mask, other=0.0).to(LOW)
    key = _keys(targets, n, inside, n_items)
    known = key >= 0
    y = tl.where(known, key, 0).to(tl.int64)
    w_y = _rows(items, y, d, D, BLOCK_D).to(LOW)
    positive = tl.sum(x.to(tl.float32) * w_y.to(tl.float32), 1)
    g = tl.full((ROWS,), 1.0, tl.float32) * unit
    ratio = tl.full((ROWS,), 1.0, tl.float32)
    if WEIGHTS:
        g = tl.load(weights + n, mask=inside, other=0.0).to(tl.float32)
        # Without the condition a batch of weights 0 would divide by 0.
        ratio = tl.where(g > 0, g / tl.load(largest), 0.0)
    ratio = tl.where(inside, ratio, 0.0)
    if SOFTMAX:
        common = tl.zeros((ROWS,), tl.float32)
        if CORRECTION != NONE:
            common -= tl.log2(tl.maximum(n_candidates - n_hits, 1.0))
        if CORRECTION == COUNT:
            common += log_items
        if CORRECTION == LOG_Q:
            common += tl.log2(1.0 - tl.exp2(tl.load(log_q + y) * LOG2E))
        # How much more likely all candidates together are than the target, log2.
        ahead = top + tl.log2(mass) - SHIFT + common - positive * LOG2E
        u = tl.exp2(-tl.abs(ahead))
        loss = tl.maximum(ahead, 0.0) * LN2 + log1p(u, 1.0 + u)
        to_target = -g * tl.where(ahead >= 0, 1.0, u) / (1.0 + u)
        to_mixed = tl.where(mass == 0, 0.0, -to_target / mass)
        term = (positive + loss) * LOG2E - common - tl.log2(ratio) - SHIFT
    else:
        cost, slope = unlikely(-positive, eps, PLUS)
        loss = scale * (beta * cost + mass)
        to_target = -g * (scale * beta * slope)
        to_mixed = g * (scale / UNIT)
        term = ratio * UNIT
    if GRADIENTS:
        # 0 times infinity: an infinite candidate that has no weight for the position shows all the same.
        odd = tl.sum(mixed * 0.0, 1)
    loss += odd + (positive - positive)
    loss = tl.where(known & (tl.sum(n_wrong, 0) == 0), loss, float("nan"))
    tl.store(values + number, tl.sum(tl.where(inside & (g != 0), g * loss, 0.0), 0))
    if GRADIENTS:
        tl.store(terms + place + within, term)
        w_y = _rows(items, y, d, D, BLOCK_D).to(LOW).to(tl.float32)
        tl.store(to_hidden + at, to_mixed[:, None] * mixed + to_target[:, None] * w_y, mask=mask)
        x = tl.load(hidden + at, mask=mask, other=0.0).to(LOW).to(tl.float32)
        counted = known & (ratio > 0)
        tl.atomic_add(
            to_items + y[:, None] * D + d[None, :], to_target[:, None] * x,
            mask=counted[:, None] & (d < D)[None, :], sem="relaxed",
        )  # fmt: skip


@triton.jit(
    do_not_specialize=[
        "n_rows", "n_items", "n_groups", "n_candidates", "length", "per_group", "tiles_per_group", "n_halvings",
    ],
)  # fmt: skip
def backward(
    items, ids, offsets, log_q, hidden_low, terms, keys, largest, to_items,
    n_rows, n_items, n_groups, n_candidates, length, per_group, tiles_per_group, n_halvings, unit, eps,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, ITEMS: tl.constexpr, STRETCH: tl.constexpr,
    LOW: tl.constexpr, PRECISION: tl.constexpr, RAGGED: tl.constexpr, WEIGHTS: tl.constexpr,
    SOFTMAX: tl.constexpr, CORRECTION: tl.constexpr, PLUS: tl.constexpr,
):  # fmt: skip
    """Of a tile of a group's candidates, which stays, and `length` of its positions, which pass: sum_i e_ik x_i, added
    to the items' gradient. STRETCH: the positions of a program of `forward`. unit: what the sums are multiplied with,
    and with the largest weight if there are weights."""
    n_tiles = tl.cdiv(n_candidates, ITEMS)
    number = tl.program_id(0) // n_tiles
    group, first, base, _, count = _stretch(number, length, offsets, n_rows, n_groups, per_group, n_halvings, RAGGED)
    if first >= count:
        return
    d = tl.arange(0, BLOCK_D)
    first_k = (tl.program_id(0) - number * n_tiles) * ITEMS
    there = first_k + tl.arange(0, ITEMS) < n_candidates
    found = _ids(ids + group.to(tl.int64) * n_candidates, first_k, n_candidates, ITEMS, 1)
    item, code, _ = _candidates(found, there, n_items)
    w = _rows(items, item, d, D, BLOCK_D).to(LOW)
    more = tl.zeros((ITEMS,), tl.float32)
    if CORRECTION == LOG_Q:
        more = tl.load(log_q + item) * -LOG2E
    if RAGGED:
        start = base // STRETCH + group
    else:
        start = group * tiles_per_group
    within = tl.arange(0, ROWS)
    row = start.to(tl.int64) * STRETCH + first
    hidden_low += row * BLOCK_D
    terms += row
    keys += row
    total = tl.zeros((ITEMS, BLOCK_D), tl.float32)
    for _ in range(0, tl.minimum(count - first, length), ROWS):
        x = tl.load(hidden_low + within[:, None] * BLOCK_D + d[None, :])
        term = tl.load(terms + within)
        s = tl.dot(w, tl.trans(x), input_precision=PRECISION)
        if SOFTMAX:
            s = s * LOG2E - term[None, :]
            if CORRECTION == LOG_Q:
                s += more[:, None]
            e = tl.where(code[:, None] == tl.load(keys + within)[None, :], 0.0, tl.exp2(s))
        else:
            _, slope = unlikely(s, eps, PLUS)
            e = slope * term[None, :]
        total = tl.dot(e.to(LOW), x, total, input_precision=PRECISION)
        hidden_low += ROWS * BLOCK_D
        terms += ROWS
        keys += ROWS
    total *= unit / UNIT
    if WEIGHTS:
        total *= tl.load(largest)
    tl.atomic_add(
        to_items + item[:, None] * D + d[None, :], total, mask=(code >= 0)[:, None] & (d < D)[None, :], sem="relaxed"
    )
