"""Adam on the rows of a table, in one pass over it.

    m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2;  w -= lr / (1 - beta1^t) m / (sqrt(v / (1 - beta2^t)) +
    eps)

rowwise: v is one number a row, fed by the row's mean of g^2. lazy: a row whose gradient is all zeros is read no
further. Tiling: a few whole rows a program. Deterministic; float32 throughout.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from seqrec.kernels.launch import power_of_2, row_block


@triton.jit(do_not_specialize=["n_rows"])
def _adam(
    table, gradient, mean, square, step, n_rows, lr, beta1, beta2, eps, weight_decay,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, ROWWISE: tl.constexpr, LAZY: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    rows = n < n_rows
    mask = rows[:, None] & (d < D)[None, :]
    at = n[:, None] * D + d[None, :]
    g = tl.load(gradient + at, mask=mask, other=0.0)
    if LAZY:
        rows = rows & (tl.max(tl.abs(g), 1) != 0)
        mask = mask & rows[:, None]
    t = tl.load(step)
    w = tl.load(table + at, mask=mask, other=0.0)
    g += weight_decay * w
    m = beta1 * tl.load(mean + at, mask=mask, other=0.0) + (1 - beta1) * g
    tl.store(mean + at, m, mask=mask)
    if ROWWISE:
        v = beta2 * tl.load(square + n, mask=rows, other=0.0) + (1 - beta2) * tl.sum(tl.where(mask, g * g, 0.0), 1) / D
        tl.store(square + n, v, mask=rows)
        v = v[:, None]
    else:
        v = beta2 * tl.load(square + at, mask=mask, other=0.0) + (1 - beta2) * g * g
        tl.store(square + at, v, mask=mask)
    scale = tl.sqrt(v / (1 - tl.exp(t * tl.log(beta2)))) + eps
    w -= lr / (1 - tl.exp(t * tl.log(beta1))) * m / scale
    tl.store(table + at, w, mask=mask)


def adam_rows(
    table: Tensor,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    step: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    rowwise: bool,
    lazy: bool,
) -> None:
    """Updates table, mean (V, D) and square (V, D), or (V, 1) if rowwise, in place. gradient: (V, D). step: () float32,
    1 for the first update. All float32 and contiguous. beta1, beta2 > 0."""
    n_rows, D = table.shape
    block = row_block(D)
    _adam[(triton.cdiv(n_rows, block),)](
        table, gradient.contiguous(), mean, square, step, n_rows, lr, beta1, beta2, eps, weight_decay,
        D=D, BLOCK_D=power_of_2(D), BLOCK_N=block, ROWWISE=rowwise, LAZY=lazy,
    )  # fmt: skip
