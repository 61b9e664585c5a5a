"""The kernels of `seqrec.kernels.sampled` that take a position at a time. Equations and order are told there."""

from __future__ import annotations

import triton
import triton.language as tl

from seqrec.kernels.draws import draw

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
GIVEN, UNIFORM, POPULAR = 0, 1, 2
"""Where candidates come from."""
NONE, COUNT, LOG_Q = 0, 1, 2
"""Corrections."""


@triton.jit
def _log1p(x):
    """log(1 + x) for x in [0, 1]: x times the interpolation of log(1 + x) / x at ten Chebyshev nodes, within 1.7e-7 of
    the value however small. The hardware's logarithm has an absolute error only."""
    p = 0.019542526453733444 - x * 0.0031760570127516985
    p = 0.10543623566627502 - x * (0.056373611092567444 - x * p)
    p = 0.1966327428817749 - x * (0.1526966691017151 - x * p)
    p = 0.33329710364341736 - x * (0.24951615929603577 - x * p)
    return x * (1.0 - x * (0.49999892711639404 - x * p))


@triton.jit
def _no(s, eps, PLUS: tl.constexpr):
    """The binary loss of a score whose answer is no, and its derivative. eps at most 1e-3."""
    t = tl.exp2(-tl.abs(s) * LOG2_E)
    r = 1.0 / (1.0 + t)
    yes = tl.where(s >= 0, r, t * r)
    loss = tl.maximum(s, 0.0) + _log1p(t)
    if PLUS:
        no = tl.where(s >= 0, t * r, r)
        floored = no + eps
        share = no / floored
        # -log(no + eps): where no is small the sum has all its digits, else eps / no is small.
        z = eps / tl.maximum(no, 0.0625)
        loss = tl.where(no > 0.0625, loss - z * (1.0 - z * (0.5 - z * 0.33333334)), -tl.log2(floored) * LN_2)
        yes = yes * share
    return loss, yes


@triton.jit
def candidates(
    ids, key, alias, row, y, first, n_candidates, n_items,
    BLOCK: tl.constexpr, SOFTMAX: tl.constexpr, SOURCE: tl.constexpr, ROUNDS: tl.constexpr,
):  # fmt: skip
    """(BLOCK,) items in [0, V); which of them count; which ids lie outside."""
    k = first + tl.arange(0, BLOCK)
    counts = k < n_candidates
    wrong = k < 0
    if SOURCE == 0:
        item = tl.load(ids + row * n_candidates + k, mask=counts, other=0).to(tl.int64)
        wrong = (item < 0) | (item >= n_items)
        item = tl.where(wrong, 0, item)
        counts = counts & (wrong == 0)
    else:
        item = draw(key, row, first, n_items, alias, BLOCK, SOURCE == 2, ROUNDS).to(tl.int64)
    if SOFTMAX:
        counts = counts & (item != y)
    return item, counts, wrong


@triton.jit
def rows_of(table, row, mask, d, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """(R, BLOCK_D) float32, 0 where masked. No mask over columns where there are none to mask: loads stay wide."""
    place = table + row[:, None] * D + d[None, :]
    if BLOCK_D == D:
        rows = tl.load(place, mask=mask[:, None], other=0.0)
    else:
        rows = tl.load(place, mask=mask[:, None] & (d < D)[None, :], other=0.0)
    return rows.to(tl.float32)


@triton.jit
def pull_of(s, row_term, item_term, eps, SOFTMAX: tl.constexpr, PLUS: tl.constexpr):
    """The loss's derivative by a candidate's score."""
    if SOFTMAX:
        return tl.exp2(s * LOG2_E - item_term - row_term)
    _, slope = _no(s, eps, PLUS)
    return slope * row_term


@triton.jit(do_not_specialize=["first_row", "n_candidates", "n_items"])
def rows_forward(
    hidden, items, targets, weights, ids, seed, alias, log_q, item_counts, losses, to_hidden, row_terms, at_target,
    first_row, n_candidates, n_items, share, log_mass, beta, scale, eps,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
    SOFTMAX: tl.constexpr, PLUS: tl.constexpr, CORRECTION: tl.constexpr, SOURCE: tl.constexpr, ROUNDS: tl.constexpr,
    WEIGHTS: tl.constexpr, GRADIENTS: tl.constexpr, COUNTING: tl.constexpr,
):  # fmt: skip
    """One position: its loss, its state's gradient, and what the items' gradient needs to know of it."""
    row = first_row + tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    inside = d < D
    weight = tl.load(weights + row).to(tl.float32) if WEIGHTS else share
    if weight == 0.0:
        tl.store(losses + row, 0.0)
        if GRADIENTS:
            tl.store(to_hidden + row * D + d, tl.zeros((BLOCK_D,), tl.float32), mask=inside)
            tl.store(row_terms + row, float("inf") if SOFTMAX else 0.0)
            tl.store(at_target + row, 0.0)
        return
    y = tl.load(targets + row).to(tl.int64)
    lost = (y < 0) | (y >= n_items)
    y_safe = tl.where(lost, 0, y)
    key = tl.load(seed)
    x = tl.load(hidden + row * D + d, mask=inside, other=0.0).to(tl.float32)
    w_y = tl.load(items + y_safe * D + d, mask=inside, other=0.0).to(tl.float32)
    s_y = tl.sum(x * w_y, 0)

    # Every lane of the block has a softmax of its own: nothing is reduced across lanes inside the loop.
    highest = tl.full((BLOCK,), -1e30, tl.float32)
    mass = tl.zeros((BLOCK,), tl.float32)
    check = tl.zeros((BLOCK,), tl.float32)
    kept = tl.zeros((BLOCK,), tl.int32)
    outside = tl.zeros((BLOCK,), tl.int32)
    mixed = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    for first in tl.range(0, n_candidates, BLOCK, num_stages=STAGES):
        item, counts, wrong = candidates(
            ids, key, alias, row, y, first, n_candidates, n_items, BLOCK, SOFTMAX, SOURCE, ROUNDS
        )
        w = rows_of(items, item, counts, d, D, BLOCK_D)
        s = tl.sum(w * x[None, :], 1)
        check += s * 0.0
        outside += wrong.to(tl.int32)
        if COUNTING:
            tl.atomic_add(item_counts + item, 1, mask=counts, sem="relaxed")
        if SOFTMAX:
            s = s * LOG2_E
            if CORRECTION == 2:
                s -= tl.load(log_q + item, mask=counts, other=0.0) * LOG2_E
            s = tl.where(counts, s, float("-inf"))
            kept += counts.to(tl.int32)
            higher = tl.maximum(highest, s)
            faded = tl.exp2(highest - higher)
            p = tl.exp2(s - higher)
            highest = higher
            mass = mass * faded + p
            if GRADIENTS:
                mixed = mixed * faded[:, None] + p[:, None] * w
        else:
            loss, slope = _no(s, eps, PLUS)
            mass += tl.where(counts, loss, 0.0)
            if GRADIENTS:
                # Rows that do not count are zeros.
                mixed += slope[:, None] * w

    if SOFTMAX:
        top = tl.max(highest, 0)
        faded = tl.exp2(highest - top)
        n_kept = tl.sum(kept, 0)
        some = n_kept > 0
        total = tl.where(some, tl.sum(mass * faded, 0), 1.0)
        correction = 0.0
        if CORRECTION == 2:
            log_mass = tl.log2(1.0 - tl.exp2(tl.load(log_q + y_safe) * LOG2_E))
        if CORRECTION != 0:
            correction = log_mass - tl.log2(tl.maximum(n_kept, 1).to(tl.float32))
        negative = tl.where(some, top + tl.log2(total) + correction, float("-inf"))
        positive = s_y * LOG2_E
        gap = negative - positive
        e = tl.exp2(-tl.abs(gap))
        soft = _log1p(e)
        loss_i = tl.maximum(gap, 0.0) * LN_2 + soft
        away = tl.where(gap >= 0, 1.0, e) / (1.0 + e) * weight
        term = tl.maximum(negative, positive) + soft * LOG2_E - correction - tl.log2(weight)
        pull_y = -away
        pull_rest = away / total
    else:
        faded = tl.full((BLOCK,), 1.0, tl.float32)
        loss_y, slope_y = _no(-s_y, eps, PLUS)
        loss_i = (beta * loss_y + tl.sum(mass, 0)) * scale
        term = weight * scale
        pull_y = -beta * slope_y * term
        pull_rest = term
    # Infinite or undefined scores, a target or candidate outside the table: no number.
    loss_i += tl.sum(check, 0) + s_y * 0.0
    bad = lost | (tl.sum(outside, 0) > 0)
    tl.store(losses + row, tl.where(bad, float("nan"), loss_i * weight))
    if GRADIENTS:
        to_x = tl.sum(mixed * faded[:, None], 0) * pull_rest + pull_y * w_y
        tl.store(to_hidden + row * D + d, to_x, mask=inside)
        tl.store(row_terms + row, term)
        tl.store(at_target + row, pull_y)


@triton.jit(do_not_specialize=["first_row", "n_candidates", "n_items"])
def scatter_rows(
    hidden, items, targets, weights, ids, seed, alias, log_q, row_terms, at_target, to_items,
    first_row, n_candidates, n_items, eps,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
    SOFTMAX: tl.constexpr, PLUS: tl.constexpr, CORRECTION: tl.constexpr, SOURCE: tl.constexpr, ROUNDS: tl.constexpr,
    WEIGHTS: tl.constexpr, CANDIDATES: tl.constexpr,
):  # fmt: skip
    """Adds one position to the rows of its target and, if CANDIDATES, of its candidates: atomic additions."""
    row = first_row + tl.program_id(0).to(tl.int64)
    weight = tl.load(weights + row).to(tl.float32) if WEIGHTS else 1.0
    if weight == 0.0:
        return
    d = tl.arange(0, BLOCK_D)
    inside = d < D
    y = tl.load(targets + row).to(tl.int64)
    x = tl.load(hidden + row * D + d, mask=inside, other=0.0).to(tl.float32)
    if (y >= 0) & (y < n_items):
        tl.atomic_add(to_items + y * D + d, tl.load(at_target + row) * x, mask=inside, sem="relaxed")
    if CANDIDATES:
        key = tl.load(seed)
        row_term = tl.load(row_terms + row)
        for first in tl.range(0, n_candidates, BLOCK, num_stages=STAGES):
            item, counts, _ = candidates(
                ids, key, alias, row, y, first, n_candidates, n_items, BLOCK, SOFTMAX, SOURCE, ROUNDS
            )
            w = rows_of(items, item, counts, d, D, BLOCK_D)
            item_term = tl.zeros((BLOCK,), tl.float32)
            if CORRECTION == 2:
                item_term = tl.load(log_q + item, mask=counts, other=0.0) * LOG2_E
            pull = pull_of(tl.sum(w * x[None, :], 1), row_term, item_term, eps, SOFTMAX, PLUS)
            place = to_items + item[:, None] * D + d[None, :]
            mask = counts[:, None] if BLOCK_D == D else counts[:, None] & inside[None, :]
            tl.atomic_add(place, pull[:, None] * x[None, :], mask=mask, sem="relaxed")
