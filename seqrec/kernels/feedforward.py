"""hidden = dropout(relu(product + bias)): what stands between the two matrix products of a feed-forward layer.

The result itself is the mask of its backward pass: it is positive exactly where the gate was open and the number kept.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from seqrec.kernels.launch import grid_of_rows, keep_mask, power_of_2, row_block, sum_rows


@triton.jit(do_not_specialize=["n_rows", "site"])
def _relu_forward(
    product, bias, hidden, seed, n_rows, site, p,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, DROP: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    mask = (n < n_rows)[:, None] & (d < D)[None, :]
    at = n.to(tl.int64)[:, None] * D + d[None, :]
    x = tl.load(product + at, mask=mask, other=0.0).to(tl.float32)
    x = tl.maximum(x + tl.load(bias + d, mask=d < D, other=0.0)[None, :], 0.0)
    if DROP:
        x = tl.where(keep_mask(tl.load(seed) + site, n[:, None] * D + d[None, :], p), x / (1 - p), 0.0)
    tl.store(hidden + at, x.to(hidden.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["n_rows"])
def _relu_backward(
    gradient, hidden, to_product, partial, n_rows, p,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    d = tl.arange(0, BLOCK_D)
    to_bias = tl.zeros((BLOCK_D,), tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(n_rows, BLOCK_N), tl.num_programs(0)):
        n = block * BLOCK_N + tl.arange(0, BLOCK_N)
        mask = (n < n_rows)[:, None] & (d < D)[None, :]
        at = n.to(tl.int64)[:, None] * D + d[None, :]
        open_ = tl.load(hidden + at, mask=mask, other=0.0) > 0
        g = tl.load(gradient + at, mask=mask, other=0.0).to(tl.float32)
        g = tl.where(open_, g / (1 - p), 0.0)
        to_bias += tl.sum(g, 0)
        tl.store(to_product + at, g.to(to_product.dtype.element_ty), mask=mask)
    tl.store(partial + tl.program_id(0) * D + d, to_bias, mask=d < D)


class _ReluDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, product: Tensor, bias: Tensor, seed: Tensor, site: int, p: float) -> Tensor:
        N, D = product.shape
        hidden = torch.empty_like(product)
        block = row_block(D)
        if N:
            _relu_forward[(triton.cdiv(N, block),)](
                product, bias, hidden, seed, N, site, p, D=D, BLOCK_D=power_of_2(D), BLOCK_N=block, DROP=p > 0
            )
        ctx.save_for_backward(hidden)
        ctx.p = p
        return hidden

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        (hidden,) = ctx.saved_tensors
        N, D = hidden.shape
        block = row_block(D)
        programs = grid_of_rows(N, block)
        to_product = torch.empty_like(hidden)
        partial = hidden.new_empty((programs, D), dtype=torch.float32)
        _relu_backward[(programs,)](
            gradient.contiguous(), hidden, to_product, partial, N, ctx.p, D=D, BLOCK_D=power_of_2(D), BLOCK_N=block
        )
        return to_product, sum_rows(partial), None, None, None


def relu_dropout(product_ND: Tensor, bias_D: Tensor, *, p: float, seed: Tensor, site: int) -> Tensor:
    """(N, D) in the product's dtype. product_ND: contiguous; bias_D: float32."""
    result: Tensor = _ReluDropout.apply(product_ND, bias_D, seed, site, p)
    return result
