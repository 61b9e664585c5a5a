"""centre_b = D^(-1/4) sum_n omega_bn x_n over the real rows, omega_bn ~ N(0, 1): B random mixtures of N rows.

So a centre is a draw from N(0, X^T X / sqrt(D)), whatever the rank of X. Neither omega (N, B) nor the D by D factor of
X^T X is formed: omega_bn is drawn from a counter-based generator (Philox) keyed by the seed, n and b, inside the tile
that multiplies it with x_n. The values depend on seed and shapes alone, not on tiling or card.

Tiling: 64 centres by a share of the rows; four centres come of each counter; partial sums over the shares are added
up by one more reduction. Accumulation in float32 (products in tf32 on the matrix units). Deterministic.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from seqrec.kernels.launch import pointer, power_of_2

_SHARES = 64
"""Of the rows. Fixed, so that sums do not depend on the card."""
_CENTRES = 64
_ROWS = 32


@triton.jit(do_not_specialize=["n_rows", "n_padded"])
def _mix(
    hidden, count, seed, partial, n_rows, n_padded, scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    block, share = tl.program_id(0), tl.program_id(1)
    lane = tl.arange(0, 16)
    d = tl.arange(0, BLOCK_D)
    n_real = n_rows
    if COUNT:
        n_real = tl.minimum(tl.load(count), n_rows).to(tl.int32)
    key = tl.load(seed)
    # A word of the counter for the row, one for the four centres.
    word = (block * 16 + lane)[:, None] + tl.zeros((16, BLOCK_N), tl.int32)
    zero = tl.zeros((16, BLOCK_N), tl.int32)
    sum_0 = tl.zeros((16, BLOCK_D), tl.float32)
    sum_1 = tl.zeros((16, BLOCK_D), tl.float32)
    sum_2 = tl.zeros((16, BLOCK_D), tl.float32)
    sum_3 = tl.zeros((16, BLOCK_D), tl.float32)
    for first in range(share * BLOCK_N, n_real, tl.num_programs(1) * BLOCK_N):
        n = first + tl.arange(0, BLOCK_N)
        mask = (n < n_real)[:, None] & (d < D)[None, :]
        x = tl.load(hidden + n.to(tl.int64)[:, None] * D + d[None, :], mask=mask, other=0.0).to(tl.float32)
        bits_0, bits_1, bits_2, bits_3 = tl.philox(key, n[None, :] + zero, word, zero, zero)
        normal_0, normal_1 = tl.pair_uniform_to_normal(
            tl.uint_to_uniform_float(bits_0), tl.uint_to_uniform_float(bits_1)
        )
        normal_2, normal_3 = tl.pair_uniform_to_normal(
            tl.uint_to_uniform_float(bits_2), tl.uint_to_uniform_float(bits_3)
        )
        sum_0 = tl.dot(normal_0, x, sum_0)
        sum_1 = tl.dot(normal_1, x, sum_1)
        sum_2 = tl.dot(normal_2, x, sum_2)
        sum_3 = tl.dot(normal_3, x, sum_3)
    row = partial + (share.to(tl.int64) * n_padded + block * 64 + lane)[:, None] * D + d[None, :]
    inside = (d < D)[None, :] & (lane < 16)[:, None]
    tl.store(row, sum_0 * scale, mask=inside)
    tl.store(row + 16 * D, sum_1 * scale, mask=inside)
    tl.store(row + 32 * D, sum_2 * scale, mask=inside)
    tl.store(row + 48 * D, sum_3 * scale, mask=inside)


def mixed_centres(
    hidden_ND: Tensor, n_buckets: int, count: Tensor | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """(n_buckets, D) float32 centres drawn from N(0, X^T X / sqrt(D)), X being the first `count` rows of hidden_ND.

    count: () integer on the device of hidden_ND, None for all rows. generator: on that device too; one number is drawn
    from it, the seed of the mixture, so a captured step draws anew at every replay if its generator is registered with
    the graph. Raises ValueError if n_buckets < 1.
    """
    if n_buckets < 1:
        raise ValueError(f"n_buckets: got {n_buckets}; expected at least 1.")
    hidden = hidden_ND.detach().contiguous()
    N, D = hidden.shape
    seed = torch.empty(1, dtype=torch.int64, device=hidden.device).random_(generator=generator)
    if not N:
        return hidden.new_zeros((n_buckets, D), dtype=torch.float32)
    blocks = -(-n_buckets // _CENTRES)
    shares = min(_SHARES, -(-N // _ROWS))
    partial = hidden.new_empty((shares, blocks * _CENTRES, D), dtype=torch.float32)
    _mix[(blocks, shares)](
        hidden, pointer(count, seed), seed, partial, N, blocks * _CENTRES, D**-0.25,
        D=D, BLOCK_D=power_of_2(D), BLOCK_N=_ROWS, COUNT=count is not None, num_warps=4 if D <= 128 else 8,
    )  # fmt: skip
    return partial.sum(0)[:n_buckets]
