"""What a score costs in the binary losses, for kernels: softplus, or -log(likelihood + eps), without cancellation."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def log1p(u, one_more):
    """log(1 + u), given 1 + u, which may have lost the digits of a small u."""
    return tl.where(tl.abs(u) < 0.0009765625, u - 0.5 * u * u, tl.log2(one_more) * LN2)


@triton.jit
def sigmoids(s):
    """(exp(-|s|), sigmoid(s), sigmoid(-s))."""
    u = tl.exp2(-tl.abs(s) * LOG2E)
    large = 1.0 / (1.0 + u)
    small = u * large
    return u, tl.where(s >= 0, large, small), tl.where(s >= 0, small, large)


@triton.jit
def unlikely(s, eps, PLUS: tl.constexpr):
    """What the score s of a negative costs, and the slope: softplus(s), or with PLUS -log(sigmoid(-s) + eps)."""
    u, yes, no = sigmoids(s)
    if PLUS:
        cost = -log1p(eps - yes, no + eps)
        slope = yes * no / (no + eps)
    else:
        cost = tl.maximum(s, 0.0) + log1p(u, 1.0 + u)
        slope = yes
    return cost, slope


@triton.jit
def _merged(u, ROWS: tl.constexpr, HALF: tl.constexpr):
    """(ROWS, HALF): of columns HALF apart, v with 1 + v = (1 + u_1)(1 + u_2)."""
    a, b = tl.split(tl.permute(tl.reshape(u, (ROWS, 2, HALF)), (0, 2, 1)))
    return a + b + a * b


@triton.jit
def unlikely_sum(s, eps, ROWS: tl.constexpr, ITEMS: tl.constexpr, PLUS: tl.constexpr):
    """(sum over columns of the cost, slope) of `unlikely`; one logarithm for eight softplus."""
    if PLUS:
        cost, slope = unlikely(s, eps, PLUS)
        total = tl.sum(cost, 1)
    else:
        u, slope, _ = sigmoids(s)
        u = _merged(_merged(_merged(u, ROWS, ITEMS // 2), ROWS, ITEMS // 4), ROWS, ITEMS // 8)
        total = tl.sum(tl.maximum(s, 0.0), 1) + tl.sum(log1p(u, 1.0 + u), 1)
    return total, slope
