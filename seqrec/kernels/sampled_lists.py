"""The kernels of `seqrec.kernels.sampled` that sum the items' gradient by lists. Equations and order are told there."""

from __future__ import annotations

import triton
import triton.language as tl

from seqrec.kernels.sampled_rows import LOG2_E, candidates, pull_of, rows_of


@triton.jit(do_not_specialize=["first_row", "n_candidates", "n_items"])
def fill_lists(
    targets, weights, ids, seed, alias, ends, pairs, first_row, n_candidates, n_items,
    BLOCK: tl.constexpr, SOFTMAX: tl.constexpr, SOURCE: tl.constexpr, ROUNDS: tl.constexpr, WEIGHTS: tl.constexpr,
):  # fmt: skip
    """Enters a position, as its distance from first_row, into the list of each of its candidates; a list's end moves
    to its begin."""
    place = tl.program_id(0)
    row = first_row + place.to(tl.int64)
    weight = tl.load(weights + row).to(tl.float32) if WEIGHTS else 1.0
    if weight == 0.0:
        return
    y = tl.load(targets + row).to(tl.int64)
    item, counts, _ = candidates(
        ids, tl.load(seed), alias, row, y, tl.program_id(1) * BLOCK, n_candidates, n_items,
        BLOCK, SOFTMAX, SOURCE, ROUNDS,
    )  # fmt: skip
    at = tl.atomic_add(ends + item, -1, mask=counts, sem="relaxed") - 1
    tl.store(pairs + at, (tl.zeros((BLOCK,), tl.int32) + place).to(tl.int16), mask=counts)


@triton.jit
def _sum_of_list(
    hidden, row_terms, pairs, w, item_term, begin, end, eps, d,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr, SOFTMAX: tl.constexpr, PLUS: tl.constexpr,
):  # fmt: skip
    """(BLOCK_D,): sum of pull x over a part of an item's list. hidden, row_terms: from the portion's first row on."""
    summed = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    lane = tl.arange(0, BLOCK)
    coming = tl.load(pairs + begin + lane, mask=begin + lane < end, other=0)
    for first in range(begin, end, BLOCK):
        there = first + lane < end
        # Distances up to 65,535 in 16 bits without a sign; times a width they fit into 32.
        row = coming.to(tl.int32) & 0xFFFF
        # The next entries are on their way while these rows are read.
        after = first + BLOCK + lane
        coming = tl.load(pairs + after, mask=after < end, other=0)
        x = rows_of(hidden, row, there, d, D, BLOCK_D)
        row_term = tl.load(row_terms + row, mask=there, other=float("inf") if SOFTMAX else 0.0)
        pull = pull_of(tl.sum(x * w[None, :], 1), row_term, item_term, eps, SOFTMAX, PLUS)
        summed += pull[:, None] * x
    return tl.sum(summed, 0)


@triton.jit(do_not_specialize=["first_row", "n_items", "span_bits"])
def by_item(
    hidden, items, log_q, row_terms, item_counts, begins, pairs, to_items, first_row, n_items, span_bits, eps,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr, ITEMS: tl.constexpr,
    SOFTMAX: tl.constexpr, PLUS: tl.constexpr, CORRECTION: tl.constexpr, FIRST: tl.constexpr,
):  # fmt: skip
    """A few items, one after the other: what of a list lies before the second multiple of 2^span_bits, to its row."""
    d = tl.arange(0, BLOCK_D)
    inside = d < D
    hidden += first_row.to(tl.int64) * D
    row_terms += first_row
    first_item = tl.program_id(0).to(tl.int64) * ITEMS
    begin = tl.load(begins + first_item)
    n = tl.load(item_counts + first_item)
    for number in range(tl.minimum(n_items - first_item, ITEMS).to(tl.int32)):
        item = first_item + number
        # The next list's place is on its way while this one is summed.
        following = tl.minimum(item + 1, n_items - 1)
        next_begin = tl.load(begins + following)
        next_n = tl.load(item_counts + following)
        end = tl.minimum(begin + n, ((begin >> span_bits) + 2) << span_bits)
        place = item * D + d
        w = tl.load(items + place, mask=inside, other=0.0).to(tl.float32)
        item_term = 0.0
        if CORRECTION == 2:
            # Of an item that nobody draws it may be -inf, but its list is empty.
            item_term = tl.load(log_q + item) * LOG2_E
        summed = _sum_of_list(
            hidden, row_terms, pairs, w, item_term, begin, end, eps, d, D, BLOCK_D, BLOCK, SOFTMAX, PLUS
        )
        if FIRST:
            tl.store(to_items + place, summed, mask=inside)
        elif n > 0:
            tl.store(to_items + place, tl.load(to_items + place, mask=inside, other=0.0) + summed, mask=inside)
        begin = next_begin
        n = next_n


@triton.jit(do_not_specialize=["first_row", "n_items", "span_bits", "n_steps"])
def long_lists(
    hidden, items, log_q, row_terms, item_counts, begins, pairs, to_items, first_row, n_items, span_bits, eps, n_steps,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr,
    SOFTMAX: tl.constexpr, PLUS: tl.constexpr, CORRECTION: tl.constexpr,
):  # fmt: skip
    """What `by_item` leaves: 2^span_bits pairs a program, for the row of the item whose list covers its begin."""
    at = tl.program_id(0) << span_bits
    low = at * 0
    high = low + n_items
    for _ in range(n_steps):
        # The last item whose list begins at or before `at` lies in [low, high).
        middle = (low + high) // 2
        before = tl.load(begins + middle) <= at
        low = tl.where(before, middle, low)
        high = tl.where(before, high, middle)
    begin = tl.load(begins + low)
    end = tl.minimum(begin + tl.load(item_counts + low), at + (1 << span_bits))
    if (((begin >> span_bits) + 2) << span_bits <= at) & (at < end):
        hidden += first_row.to(tl.int64) * D
        row_terms += first_row
        d = tl.arange(0, BLOCK_D)
        inside = d < D
        place = low.to(tl.int64) * D + d
        w = tl.load(items + place, mask=inside, other=0.0).to(tl.float32)
        item_term = 0.0
        if CORRECTION == 2:
            item_term = tl.load(log_q + low) * LOG2_E
        summed = _sum_of_list(hidden, row_terms, pairs, w, item_term, at, end, eps, d, D, BLOCK_D, BLOCK, SOFTMAX, PLUS)
        tl.atomic_add(to_items + place, summed, mask=inside, sem="relaxed")
