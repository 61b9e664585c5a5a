"""states = dropout(scale item_table[ids] + position_table[places]), and where its gradient goes.

The item table's gradient of a training step is one dense (V, D) buffer that the loss has filled already: the backward
pass adds its N rows to that buffer (atomic additions: repeatable up to rounding) instead of making a second buffer of V
rows. The position table's is a sum over histories, one program a place, deterministic.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from seqrec.kernels.launch import keep_mask, pointer, power_of_2, row_block


class Sink:
    """Where the gradient of the item table is added up: `buffer`, (V, D) float32, set before the backward pass."""

    buffer: Tensor | None = None


@triton.jit(do_not_specialize=["n_rows", "site"])
def _embedding_forward(
    item_table, position_table, ids, places, states, states_low, seed, n_rows, site, scale, p,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, DROP: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    mask = (n < n_rows)[:, None] & (d < D)[None, :]
    item = tl.load(ids + n, mask=n < n_rows, other=0).to(tl.int64)
    place = tl.load(places + n, mask=n < n_rows, other=0).to(tl.int64)
    x = tl.load(item_table + item[:, None] * D + d[None, :], mask=mask, other=0.0) * scale
    x += tl.load(position_table + place[:, None] * D + d[None, :], mask=mask, other=0.0)
    if DROP:
        x = tl.where(keep_mask(tl.load(seed) + site, n[:, None] * D + d[None, :], p), x / (1 - p), 0.0)
    at = n.to(tl.int64)[:, None] * D + d[None, :]
    tl.store(states + at, x, mask=mask)
    if LOW:
        tl.store(states_low + at, x.to(states_low.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["n_rows", "site"])
def _embedding_backward(
    g_states, g_low, ids, to_items, dropped, seed, n_rows, site, scale, p,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, DROP: tl.constexpr,
    G: tl.constexpr, G_LOW: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    mask = (n < n_rows)[:, None] & (d < D)[None, :]
    at = n.to(tl.int64)[:, None] * D + d[None, :]
    g = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    if G:
        g += tl.load(g_states + at, mask=mask, other=0.0).to(tl.float32)
    if G_LOW:
        g += tl.load(g_low + at, mask=mask, other=0.0).to(tl.float32)
    if DROP:
        g = tl.where(keep_mask(tl.load(seed) + site, n[:, None] * D + d[None, :], p), g / (1 - p), 0.0)
    tl.store(dropped + at, g, mask=mask)
    item = tl.load(ids + n, mask=n < n_rows, other=0).to(tl.int64)
    tl.atomic_add(to_items + item[:, None] * D + d[None, :], g * scale, mask=mask, sem="relaxed")


@triton.jit(do_not_specialize=["n_histories", "n_places"])
def _by_place(
    dropped, offsets, to_positions, n_histories, n_places,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0)
    d = tl.arange(0, BLOCK_D)
    total = tl.zeros((BLOCK_D,), tl.float32)
    for first in range(0, n_histories, BLOCK_R):
        r = first + tl.arange(0, BLOCK_R)
        start = tl.load(offsets + r, mask=r < n_histories, other=0)
        end = tl.load(offsets + r + 1, mask=r < n_histories, other=0)
        n = end - n_places + place
        here = (r < n_histories) & (n >= start)
        mask = here[:, None] & (d < D)[None, :]
        total += tl.sum(tl.load(dropped + n[:, None] * D + d[None, :], mask=mask, other=0.0), 0)
    tl.store(to_positions + place * D + d, total, mask=d < D)


class _Embed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        position_table: Tensor,
        item_table: Tensor,
        ids: Tensor,
        places: Tensor,
        offsets: Tensor,
        seed: Tensor,
        scale: float,
        p: float,
        site: int,
        low: torch.dtype | None,
        sink: Sink,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        N, (n_places, D) = len(ids), position_table.shape
        states = position_table.new_empty((N, D))
        states_low = None if low is None else position_table.new_empty((N, D), dtype=low)
        block = row_block(D)
        if N:
            _embedding_forward[(triton.cdiv(N, block),)](
                item_table, position_table, ids, places, states, pointer(states_low, states), seed, N, site, scale, p,
                D=D, BLOCK_D=power_of_2(D), BLOCK_N=block, DROP=p > 0, LOW=low is not None,
            )  # fmt: skip
        ctx.save_for_backward(ids, offsets, seed)
        ctx.numbers, ctx.shape, ctx.sink = (site, scale, p), (n_places, D), sink
        return states, states_low

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_states: Tensor | None, g_low: Tensor | None) -> tuple[Any, ...]:
        ids, offsets, seed = ctx.saved_tensors
        N, (n_places, D) = len(ids), ctx.shape
        buffer = ctx.sink.buffer
        assert buffer is not None, "the sink has no buffer"
        dropped = buffer.new_empty((N, D))
        to_positions = buffer.new_empty((n_places, D))
        block = row_block(D)
        if N:
            _embedding_backward[(triton.cdiv(N, block),)](
                pointer(g_states, buffer), pointer(g_low, buffer), ids, buffer, dropped, seed, N, *ctx.numbers,
                D=D, BLOCK_D=power_of_2(D), BLOCK_N=block, DROP=ctx.numbers[2] > 0,
                G=g_states is not None, G_LOW=g_low is not None,
            )  # fmt: skip
        _by_place[(n_places,)](
            dropped, offsets, to_positions, len(offsets) - 1, n_places, D=D, BLOCK_D=power_of_2(D), BLOCK_R=row_block(D)
        )
        return to_positions, *[None] * 10


def embed(
    item_table_VD: Tensor,
    position_table_LD: Tensor,
    ids_N: Tensor,
    places_N: Tensor,
    offsets: Tensor,
    *,
    scale: float,
    p: float,
    seed: Tensor,
    site: int,
    low: torch.dtype | None,
    sink: Sink,
) -> tuple[Tensor, Tensor | None]:
    """States (N, D) float32, and in `low` if given. offsets: (R + 1,) of the histories, which end at the last place.

    The gradient of the item table goes to `sink.buffer`, not to the graph; scaled by nothing, so the graph must be
    walked with the step's own gradients.
    """
    result: tuple[Tensor, Tensor | None] = _Embed.apply(
        position_table_LD, item_table_VD, ids_N, places_N, offsets, seed, scale, p, site, low, sink
    )
    return result
