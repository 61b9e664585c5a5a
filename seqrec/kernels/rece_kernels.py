"""The kernels of RECE's main pass; `rece` has the equations.

Tiling. A program of the forward pass holds 64 positions that are neighbours in a round's order, whatever chunks they
belong to, and walks over the union of their windows, tiles of items that are neighbours in the same round's order; the
backward pass has the parts exchanged. Both read vectors through the order (a row of a table is one stretch of memory),
so nothing is gathered beforehand, and one tile serves both products, as keys and values of attention do. A position
occurs in one program (or one a stretch of the windows) of a round, an item too: what rounds leave is merged by plain
loads and stores. Products accumulate in float32; deterministic but for `add_targets`, which adds N rows atomically;
`add_sorted_targets` does without.
"""

from __future__ import annotations

import triton
import triton.language as tl

from seqrec.kernels.rece_pairs import counted_pairs, items_at, residents, stride
from seqrec.kernels.rece_tables import chunk_of, real_rows

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
SHIFT = tl.constexpr(14.0)
"""The backward pass's probabilities are multiplied with 2 to this power: those near 1e-6 have few bits in float16."""


@triton.jit(do_not_specialize=["n_rows", "n_items", "n_chunks", "reach"])
def windows(
    window, count, n_rows, n_items, n_chunks, reach, BLOCK: tl.constexpr, COUNTED: tl.constexpr
):  # fmt: skip
    """(2, N + V) int32: the first rank of the other kind that a rank sees, and the one after its last; spare: none."""
    n_all = n_rows + n_items
    t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = real_rows(count, n_rows, COUNTED)
    is_row = t < n_rows
    n = tl.where(is_row, real, n_items)
    others = tl.where(is_row, n_items, real).to(tl.int64)
    q = tl.minimum(chunk_of(tl.where(is_row, t, t - n_rows), n, n_chunks), n_chunks - 1)
    first = tl.maximum(q - reach, 0) * others // n_chunks
    end = tl.minimum(q + reach + 1, n_chunks) * others // n_chunks
    spare = is_row & (t >= real)
    tl.store(window + t, tl.where(spare, 0x7FFFFFFF, first).to(tl.int32), mask=t < n_all)
    tl.store(window + n_all + t, tl.where(spare, 0, end).to(tl.int32), mask=t < n_all)


@triton.jit(do_not_specialize=["n_rows", "n_items", "reach", "number", "n_long"])
def forward(
    low, order, window, words, largest, mass, mixed, more_mixed, n_rows, n_items, reach, number, n_long,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    WORDS: tl.constexpr, PACKED: tl.constexpr, MIX: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """One round's share of every position's maximum (base 2), sum and mixed items, merged with earlier rounds'."""
    n_all = n_rows + n_items
    order += number.to(tl.int64) * n_all
    stretch = tl.program_id(1)
    rank = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rank < n_rows
    first = tl.load(window + rank, mask=inside, other=0x7FFFFFFF)
    end = tl.load(window + n_all + rank, mask=inside, other=0)
    row = tl.load(order + rank, mask=inside, other=0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    wide = d < D
    x = tl.load(low + row[:, None] * D + d[None, :], mask=inside[:, None] & wide[None, :], other=0.0)
    length = stride(n_rows, n_items)
    away = residents(words + rank, length, number, reach, WORDS)
    # Windows of spare positions start beyond everything: no sum of theirs may overflow.
    begin, stop = tl.minimum(tl.min(first, 0), n_items) // 16 * 16, tl.max(end, 0)
    width = tl.cdiv(tl.cdiv(tl.maximum(stop - begin, 0), tl.num_programs(1)), COLUMNS) * COLUMNS
    begin += stretch * width
    stop = tl.minimum(stop, begin + width)
    end = tl.minimum(end, stop)

    m = tl.full((ROWS,), -1.0e30, tl.float32)
    summed = tl.zeros((ROWS,), tl.float32)
    mix = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for start in range(begin, stop, COLUMNS):
        j = start + tl.arange(0, COLUMNS)
        streams = j < stop
        item = tl.load(order + n_rows + j, mask=streams, other=0).to(tl.int64)
        w = tl.load(low + item[:, None] * D + d[None, :], mask=wide[None, :], other=0.0)
        s = tl.dot(x, tl.trans(w), input_precision="ieee" if EXACT else "tf32")
        keep = counted_pairs(
            first, end, j, words + rank, words + (items_at(n_rows) + j), away, length, number, reach, n_long,
            ROWS, COLUMNS, WORDS, PACKED,
        )  # fmt: skip
        s = tl.where(keep, s * LOG2E, float("-inf"))
        higher = tl.maximum(m, tl.max(s, 1))
        p = tl.exp2(s - higher[:, None])
        faded = tl.exp2(m - higher)
        summed = summed * faded + tl.sum(p, 1)
        if MIX:
            mix = tl.dot(p.to(w.dtype), w, mix * faded[:, None], input_precision="ieee" if EXACT else "tf32")
        m = higher

    at = stretch.to(tl.int64) * n_rows + row
    out = mixed + row[:, None] * D + d[None, :]
    if stretch > 0:
        out = more_mixed + ((stretch - 1).to(tl.int64) * n_rows + row)[:, None] * D + d[None, :]
    if WORDS != 0:
        before = tl.load(largest + at, mask=inside, other=-1.0e30)
        higher = tl.maximum(m, before)
        old, new = tl.exp2(before - higher), tl.exp2(m - higher)
        summed = tl.load(mass + at, mask=inside, other=0.0) * old + summed * new
        if MIX:
            earlier = tl.load(out, mask=inside[:, None] & wide[None, :], other=0.0)
            mix = earlier * old[:, None] + mix * new[:, None]
        m = higher
    tl.store(largest + at, m, mask=inside)
    tl.store(mass + at, summed, mask=inside)
    if MIX:
        tl.store(out, mix, mask=inside[:, None] & wide[None, :])


@triton.jit(
    do_not_specialize=[
        "n_rows", "n_items", "reach", "rounds", "per_vector", "per_round", "first_row", "n_block", "stretches",
    ]
)  # fmt: skip
def finish(
    low, items, targets, weights, heaviest, chunk, count, largest, mass, mixed, more_mixed,
    losses, shifted, at_target, n_rows, n_items, reach, rounds, per_vector, per_round, first_row, n_block, stretches,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
    COUNTED: tl.constexpr, WEIGHTED: tl.constexpr, MIX: tl.constexpr,
):  # fmt: skip
    """What is left of a block's positions: their targets join the candidates, unless they are some; loss, gradient."""
    in_block = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    i = first_row + in_block
    d = tl.arange(0, BLOCK_D)
    inside = (in_block < n_block) & (i < n_rows)
    n = real_rows(count, n_rows, COUNTED)
    live = inside & (i < n)
    g = tl.where(live, 1.0 / tl.maximum(n, 1).to(tl.float32), 0.0)
    scaled = g * 0
    if WEIGHTED:
        g = tl.load(weights + i, mask=live, other=0.0).to(tl.float32)
        scaled = tl.log2(tl.where(g > 0, g, 1.0) / tl.maximum(tl.load(heaviest).to(tl.float32), 1.0e-37))
    y = tl.load(targets + i, mask=live, other=0)
    known = (y >= 0) & (y < n_items)
    y = tl.where(known, y, 0).to(tl.int64)
    i = i.to(tl.int64)
    mask = live[:, None] & (d < D)[None, :]
    x = tl.load(low + i[:, None] * D + d[None, :], mask=mask, other=0.0).to(tl.float32)
    w = tl.load(low + (n_rows + y)[:, None] * D + d[None, :], mask=mask, other=0.0).to(tl.float32)
    positive = tl.sum(x * w, 1) * LOG2E
    found = i < 0
    for number in range(0, rounds):
        of_round = chunk + tl.cast(number, tl.int64) * per_round
        own = tl.load(of_round + i * per_vector, mask=live, other=0).to(tl.int32)
        its = tl.load(of_round + (n_rows + y) * per_vector, mask=live, other=0).to(tl.int32)
        found = found | (tl.abs(own - its) <= reach)

    m = positive
    for stretch in range(0, stretches):
        at = tl.cast(stretch, tl.int64) * n_block + in_block
        m = tl.maximum(m, tl.load(largest + at, mask=live, other=-1.0e30))
    joined = tl.where(found, 0.0, tl.exp2(positive - m))
    summed = joined
    mix = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for stretch in range(0, stretches):
        at = tl.cast(stretch, tl.int64) * n_block + in_block
        share = tl.exp2(tl.load(largest + at, mask=live, other=-1.0e30) - m)
        summed += tl.load(mass + at, mask=live, other=0.0) * share
        if MIX:
            if stretch == 0:
                mix += tl.load(mixed + i[:, None] * D + d[None, :], mask=mask, other=0.0) * share[:, None]
            else:
                place = more_mixed + (at - n_block)[:, None] * D + d[None, :]
                mix += tl.load(place, mask=mask, other=0.0) * share[:, None]
    summed = tl.where(live, summed, 1.0)
    lse = m + tl.log2(summed)
    counts = live & (g != 0)
    loss = tl.where(counts, g * (lse - positive) * LN2, 0.0)
    tl.store(losses + i, tl.where(live & ~known, float("nan"), loss), mask=inside)
    if MIX:
        # The target's own row as it was given: it is most of the gradient, and rounding it most of the error.
        exact = tl.load(items + y[:, None] * D + d[None, :], mask=mask, other=0.0).to(tl.float32)
        share = joined / summed
        gradient = g[:, None] * (mix / summed[:, None] + share[:, None] * exact - exact)
        tl.store(mixed + i[:, None] * D + d[None, :], tl.where(counts[:, None], gradient, 0.0),
                 mask=inside[:, None] & (d < D)[None, :])  # fmt: skip
        tl.store(shifted + i, tl.where(counts, lse - scaled - SHIFT, float("inf")), mask=inside)
        tl.store(at_target + i, tl.where(counts & known, g * (share - 1), 0.0), mask=inside)


@triton.jit(do_not_specialize=["n_rows", "n_items", "reach", "number", "n_long"])
def backward(
    low, order, window, words, sorted_lse, heaviest, count, to_items, n_rows, n_items, reach, number, n_long,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WORDS: tl.constexpr,
    PACKED: tl.constexpr, COUNTED: tl.constexpr, WEIGHTED: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """One round's share of the items' gradient: stored by the first round, added by later ones."""
    n_all = n_rows + n_items
    order += number.to(tl.int64) * n_all
    rank = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rank < n_items
    first = tl.load(window + n_rows + rank, mask=inside, other=0x7FFFFFFF)
    end = tl.load(window + n_all + n_rows + rank, mask=inside, other=0)
    vector = tl.load(order + n_rows + rank, mask=inside, other=0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    wide = d < D
    w = tl.load(low + vector[:, None] * D + d[None, :], mask=inside[:, None] & wide[None, :], other=0.0)
    length = stride(n_rows, n_items)
    resident = words + (items_at(n_rows) + rank)
    away = residents(resident, length, number, reach, WORDS)
    gradient = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for start in range(tl.minimum(tl.min(first, 0), n_rows) // 16 * 16, tl.max(end, 0), COLUMNS):
        j = start + tl.arange(0, COLUMNS)
        streams = j < n_rows
        row = tl.load(order + j, mask=streams, other=0).to(tl.int64)
        lse = tl.load(sorted_lse + j)
        x = tl.load(low + row[:, None] * D + d[None, :], mask=wide[None, :], other=0.0)
        s = tl.dot(w, tl.trans(x), input_precision="ieee" if EXACT else "tf32")
        keep = counted_pairs(
            first, end, j, resident, words + j, away, length, number, reach, n_long,
            ROWS, COLUMNS, WORDS, PACKED,
        )  # fmt: skip
        p = tl.where(keep, tl.exp2(s * LOG2E - lse[None, :]), 0.0)
        gradient = tl.dot(p.to(x.dtype), x, gradient, input_precision="ieee" if EXACT else "tf32")
    scale = 1.0 / tl.maximum(real_rows(count, n_rows, COUNTED), 1).to(tl.float32)
    if WEIGHTED:
        scale = tl.load(heaviest).to(tl.float32)
    gradient = gradient * (scale * 0.00006103515625)  # 2^-14
    place = to_items + (vector - n_rows)[:, None] * D + d[None, :]
    mask = inside[:, None] & wide[None, :]
    if WORDS != 0:
        gradient += tl.load(place, mask=mask, other=0.0)
    tl.store(place, gradient, mask=mask)


@triton.jit(do_not_specialize=["n_rows"])
def add_targets(
    hidden, targets, at_target, to_items, n_rows, D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, BLOCK_D)
    share = tl.load(at_target + i, mask=i < n_rows, other=0.0)
    # Spare positions, and those whose target is no item, have nothing to add: their target is not looked up.
    mask = (share != 0)[:, None] & (d < D)[None, :]
    y = tl.load(targets + i, mask=share != 0, other=0).to(tl.int64)
    x = tl.load(hidden + i.to(tl.int64)[:, None] * D + d[None, :], mask=mask, other=0.0).to(tl.float32)
    tl.atomic_add(to_items + y[:, None] * D + d[None, :], share[:, None] * x, mask=mask, sem="relaxed")


@triton.jit
def _shares(hidden, order, at_target, k, counts, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """at_target_i x_i of some of the sorted positions, 0 of those that do not count."""
    i = tl.load(order + k, mask=counts, other=0)
    share = tl.load(at_target + i, mask=counts, other=0.0)
    d = tl.arange(0, BLOCK_D)
    mask = (share != 0)[:, None] & (d < D)[None, :]
    return share[:, None] * tl.load(hidden + i[:, None] * D + d[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["n_rows", "n_items"])
def add_sorted_targets(
    hidden, keys, order, at_target, to_items, n_rows, n_items,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """As `add_targets`, each item by one program: the one that has its first position. keys: the targets, sorted."""
    first = tl.program_id(0) * ROWS
    k = first + tl.arange(0, ROWS)
    y = tl.load(keys + k, mask=k < n_rows, other=-1)
    own = (y >= 0) & (y < n_items)
    # A row of `total`: the sum over the positions of this program that have the row's target.
    total = tl.dot(
        (y[:, None] == y[None, :]).to(tl.float32), _shares(hidden, order, at_target, k, own, D, BLOCK_D),
        input_precision="ieee",
    )  # fmt: skip
    before = tl.load(keys + k - 1, mask=(k > 0) & (k < n_rows), other=-1)
    head = own & (before != y)
    after = first + ROWS
    last = tl.load(keys + tl.minimum(after, n_rows) - 1)
    begins_here = (first == 0) | (tl.load(keys + tl.maximum(first - 1, 0)) != last)
    going = begins_here & (after < n_rows) & (tl.load(keys + tl.minimum(after, n_rows - 1)) == last)
    end = after
    while going:
        end += ROWS
        going = (end < n_rows) & (tl.load(keys + tl.minimum(end, n_rows - 1)) == last)
    more = tl.zeros((BLOCK_D,), tl.float32)
    for start in tl.range(after, end, ROWS, num_stages=1):
        k = start + tl.arange(0, ROWS)
        counts = (k < n_rows) & (tl.load(keys + k, mask=k < n_rows, other=-1) == last)
        more += tl.sum(_shares(hidden, order, at_target, k, counts, D, BLOCK_D), 0)
    total = tl.where((y == last)[:, None], total + more[None, :], total)
    d = tl.arange(0, BLOCK_D)
    place = to_items + y.to(tl.int64)[:, None] * D + d[None, :]
    mask = head[:, None] & (d < D)[None, :]
    tl.store(place, tl.load(place, mask=mask, other=0.0) + total, mask=mask)
