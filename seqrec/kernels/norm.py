"""total = base + dropout(branch + bias);  out = weight (total - mean) / sqrt(variance + eps) + shift, row by row.

One pass over the rows where PyTorch makes five, and two where it makes ten in the backward pass:

    g = sum of the gradients of out;  h = g weight;  x = (total - mean) rstd
    d total = rstd (h - mean_D(h) - x mean_D(h x)) + gradients of total
    d base = d total;  d branch = mask d total / (1 - p);  d bias = sum_N d branch;  d weight = sum_N g x;  d shift =
    sum_N g

Tiling: whole rows, a few at a time; a fixed number of programs, each with its own partial sums over rows, which one
more reduction adds up. Arithmetic in float32, statistics over the row in registers. Deterministic. Outputs that
somebody multiplies with a matrix are written a second time in 16 bits, so that no cast follows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from seqrec.kernels.launch import grid_of_rows, keep_mask, pointer, power_of_2, row_block, sum_rows


@dataclass(frozen=True)
class Outputs:
    """Which results are wanted."""

    total: bool = False
    """(N, D) float32."""
    total_low: bool = False
    """(N, D) in the low dtype."""
    out: bool = False
    """(N, D) float32."""
    out_low: bool = False
    """(N, D) in the low dtype."""


@triton.jit(do_not_specialize=["n_rows", "site"])
def _norm_forward(
    base, branch, bias, weight, shift, total, total_low, out, out_low, mean, rstd, seed,
    n_rows, site, p, eps,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    BRANCH: tl.constexpr, DROP: tl.constexpr, TOTAL_LOW: tl.constexpr, OUT: tl.constexpr, OUT_LOW: tl.constexpr,
):  # fmt: skip
    d = tl.arange(0, BLOCK_D)
    inside = d < D
    w = tl.load(weight + d, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(shift + d, mask=inside, other=0.0).to(tl.float32)
    if BRANCH:
        branch_bias = tl.load(bias + d, mask=inside, other=0.0).to(tl.float32)
    if DROP:
        key = tl.load(seed) + site
    for block in range(tl.program_id(0), tl.cdiv(n_rows, BLOCK_N), tl.num_programs(0)):
        n = block * BLOCK_N + tl.arange(0, BLOCK_N)
        mask = (n < n_rows)[:, None] & inside[None, :]
        place = n.to(tl.int64)[:, None] * D + d[None, :]
        x = tl.load(base + place, mask=mask, other=0.0).to(tl.float32)
        if BRANCH:
            y = tl.load(branch + place, mask=mask, other=0.0).to(tl.float32) + branch_bias[None, :]
            if DROP:
                y = tl.where(keep_mask(key, n[:, None] * D + d[None, :], p), y / (1 - p), 0.0)
            x += y
            tl.store(total + place, x, mask=mask)
        if TOTAL_LOW:
            tl.store(total_low + place, x.to(total_low.dtype.element_ty), mask=mask)
        centre = tl.sum(tl.where(mask, x, 0.0), 1) / D
        x = tl.where(mask, x - centre[:, None], 0.0)
        scale = 1 / tl.sqrt(tl.sum(x * x, 1) / D + eps)
        tl.store(mean + n, centre, mask=n < n_rows)
        tl.store(rstd + n, scale, mask=n < n_rows)
        y = x * scale[:, None] * w[None, :] + b[None, :]
        if OUT:
            tl.store(out + place, y, mask=mask)
        if OUT_LOW:
            tl.store(out_low + place, y.to(out_low.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["n_rows", "site"])
def _norm_backward(
    total, weight, mean, rstd, seed, g_total, g_total_low, g_out, g_out_low, to_base, to_branch, partial,
    n_rows, site, p,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    BRANCH: tl.constexpr, DROP: tl.constexpr,
    G_TOTAL: tl.constexpr, G_TOTAL_LOW: tl.constexpr, G_OUT: tl.constexpr, G_OUT_LOW: tl.constexpr,
):  # fmt: skip
    d = tl.arange(0, BLOCK_D)
    inside = d < D
    w = tl.load(weight + d, mask=inside, other=0.0).to(tl.float32)
    to_weight = tl.zeros((BLOCK_D,), tl.float32)
    to_shift = tl.zeros((BLOCK_D,), tl.float32)
    to_bias = tl.zeros((BLOCK_D,), tl.float32)
    if DROP:
        key = tl.load(seed) + site
    for block in range(tl.program_id(0), tl.cdiv(n_rows, BLOCK_N), tl.num_programs(0)):
        n = block * BLOCK_N + tl.arange(0, BLOCK_N)
        mask = (n < n_rows)[:, None] & inside[None, :]
        place = n.to(tl.int64)[:, None] * D + d[None, :]
        centre = tl.load(mean + n, mask=n < n_rows, other=0.0)
        scale = tl.load(rstd + n, mask=n < n_rows, other=0.0)
        x = tl.load(total + place, mask=mask, other=0.0).to(tl.float32)
        x = tl.where(mask, (x - centre[:, None]) * scale[:, None], 0.0)
        g = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
        if G_OUT:
            g += tl.load(g_out + place, mask=mask, other=0.0).to(tl.float32)
        if G_OUT_LOW:
            g += tl.load(g_out_low + place, mask=mask, other=0.0).to(tl.float32)
        to_weight += tl.sum(g * x, 0)
        to_shift += tl.sum(g, 0)
        h = g * w[None, :]
        h = (h - tl.sum(h, 1)[:, None] / D - x * tl.sum(h * x, 1)[:, None] / D) * scale[:, None]
        if G_TOTAL:
            h += tl.load(g_total + place, mask=mask, other=0.0).to(tl.float32)
        if G_TOTAL_LOW:
            h += tl.load(g_total_low + place, mask=mask, other=0.0).to(tl.float32)
        tl.store(to_base + place, h, mask=mask)
        if BRANCH:
            if DROP:
                h = tl.where(keep_mask(key, n[:, None] * D + d[None, :], p), h / (1 - p), 0.0)
            h = tl.where(mask, h, 0.0)
            to_bias += tl.sum(h, 0)
            tl.store(to_branch + place, h.to(to_branch.dtype.element_ty), mask=mask)
    row = partial + tl.program_id(0) * 3 * D
    tl.store(row + d, to_weight, mask=inside)
    tl.store(row + D + d, to_shift, mask=inside)
    tl.store(row + 2 * D + d, to_bias, mask=inside)


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        base: Tensor,
        branch: Tensor | None,
        bias: Tensor | None,
        weight: Tensor,
        shift: Tensor,
        seed: Tensor,
        site: int,
        p: float,
        eps: float,
        low: torch.dtype,
        wanted: Outputs,
    ) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        N, D = base.shape
        # Without a branch the total is the base itself, which the caller has.
        total = base if branch is None else torch.empty_like(base, dtype=torch.float32)
        total_low = base.new_empty((N, D), dtype=low) if wanted.total_low else None
        out = base.new_empty((N, D), dtype=torch.float32) if wanted.out else None
        out_low = base.new_empty((N, D), dtype=low) if wanted.out_low else None
        mean, rstd = base.new_empty((2, N), dtype=torch.float32)
        block = row_block(D)
        if N:
            _norm_forward[(grid_of_rows(N, block),)](
                base, pointer(branch, base), pointer(bias, weight), weight, shift, total, pointer(total_low, base),
                pointer(out, base), pointer(out_low, base), mean, rstd, seed, N, site, p, eps,
                D=D, BLOCK_D=power_of_2(D), BLOCK_N=block, BRANCH=branch is not None, DROP=p > 0 and branch is not None,
                TOTAL_LOW=wanted.total_low, OUT=wanted.out, OUT_LOW=wanted.out_low,
            )  # fmt: skip
        ctx.save_for_backward(total, weight, mean, rstd, seed)
        ctx.branch_dtype = None if branch is None else branch.dtype
        ctx.site, ctx.p = site, p
        return (total if wanted.total and branch is not None else None), total_low, out, out_low

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        total, weight, mean, rstd, seed = ctx.saved_tensors
        N, D = total.shape
        block = row_block(D)
        programs = grid_of_rows(N, block)
        to_base = torch.empty_like(total, dtype=torch.float32)
        to_branch = None if ctx.branch_dtype is None else torch.empty_like(total, dtype=ctx.branch_dtype)
        partial = total.new_empty((programs, 3, D), dtype=torch.float32)
        # The kernel reads rows end to end.
        g = [None if gradient is None else gradient.contiguous() for gradient in gradients]
        _norm_backward[(programs,)](
            total, weight, mean, rstd, seed, *(pointer(one, total) for one in g), to_base, pointer(to_branch, total),
            partial, N, ctx.site, ctx.p,
            D=D, BLOCK_D=power_of_2(D), BLOCK_N=block, BRANCH=to_branch is not None,
            DROP=ctx.p > 0 and to_branch is not None,
            G_TOTAL=g[0] is not None, G_TOTAL_LOW=g[1] is not None, G_OUT=g[2] is not None, G_OUT_LOW=g[3] is not None,
        )  # fmt: skip
        to_weight, to_shift, to_bias = sum_rows(partial.view(programs, 3 * D)).view(3, D)
        return to_base, to_branch, None if to_branch is None else to_bias, to_weight, to_shift, *[None] * 6


def add_norm(
    base_ND: Tensor,
    branch_ND: Tensor | None,
    bias_D: Tensor | None,
    weight_D: Tensor,
    shift_D: Tensor,
    *,
    seed: Tensor,
    site: int,
    p: float,
    eps: float,
    low: torch.dtype,
    wanted: Outputs,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """(total, total in `low`, out, out in `low`), those of `wanted`; the module's docstring has the equations.

    base_ND: float32, contiguous. branch_ND: any dtype, contiguous, with bias_D; both None: total is the base. p: of the
    branch's dropout, 0 for none.
    """
    result: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None] = _AddNorm.apply(
        base_ND, branch_ND, bias_D, weight_D, shift_D, seed, site, p, eps, low, wanted
    )
    return result
