"""Softmax attention over ragged histories, packed end to end: no pads are computed, and none are stored.

    s_ij = scale q_i . k_j   for the keys j of i's history, j <= i if causal
    o_i  = sum_j p_ij m_ij v_j,   p_i = softmax_j s_ij,   m_ij = 0 with probability p_drop, else 1 / (1 - p_drop)

Pads as keys. In the published SASRec a history of n items stands behind L - n pads that take part in the softmax, each
with the same key and value: the projections of a zero vector, which are their biases. They are one virtual key of
multiplicity L - n, whose dropout counts how many of the L - n survive, drawn pad by pad: the published distribution.

Tiling: one program a block of queries, history and head, an online softmax over blocks of keys, the log-sum-exp kept
for the backward pass. There one program computes the gradient of a block's keys and values, walking over queries, then
that of the same block's queries, walking over keys; logits and masks are computed again. Accumulation in float32,
16-bit operands for the matrix units (float32 operands: three TF32 products, exact to about float32). No atomics:
deterministic.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from seqrec.kernels.launch import keep_mask, power_of_2, sum_rows


def blocks(head_width: int, dtype: torch.dtype) -> tuple[int, int]:
    """(rows of a block of queries or keys, warps) by width."""
    wide = head_width * (2 if dtype == torch.float32 else 1)
    if wide <= 64:
        return 64, 4
    return (32, 4) if wide <= 128 else (16, 4)


@triton.jit
def _logits(q, k, m, n, length, scale, CAUSAL: tl.constexpr, EXACT: tl.constexpr):
    """(M, N) logits in float32, -inf where there is no such key."""
    s = tl.dot(q, tl.trans(k), input_precision="tf32x3" if EXACT else "tf32") * scale
    seen = n[None, :] < length
    if CAUSAL:
        seen = seen & (n[None, :] <= m[:, None])
    return tl.where(seen, s, float("-inf"))


@triton.jit
def _draws(start, m, head, n_heads, n_places):
    """(M,) where the random numbers of a query start: one for each of the L places."""
    return ((start + m).to(tl.int32) * n_heads + head) * n_places


@triton.jit
def _pads_kept(key, draws, n_pads, p, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """(M,) how many of its pads each query keeps."""
    kept = tl.zeros((BLOCK_M,), tl.float32)
    for first in range(0, n_pads, BLOCK_N):
        place = first + tl.arange(0, BLOCK_N)
        keep = keep_mask(key, draws[:, None] + place[None, :], p) & (place < n_pads)[None, :]
        kept += tl.sum(keep.to(tl.float32), 1)
    return kept


@triton.jit(do_not_specialize=["site", "n_places", "n_heads"])
def _attention_forward(
    query, key_value, bias, out, lse, offsets, seed,
    scale, p, site, n_places, n_heads,
    D: tl.constexpr, HEAD: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr, PADS: tl.constexpr, DROP: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(2)
    start = tl.load(offsets + tl.program_id(1))
    length = (tl.load(offsets + tl.program_id(1) + 1) - start).to(tl.int32)
    first_query = tl.program_id(0) * BLOCK_M
    if first_query >= length:
        return
    m = first_query + tl.arange(0, BLOCK_M)
    h = tl.arange(0, BLOCK_H)
    wide = h < HEAD
    rows = (m < length)[:, None] & wide[None, :]
    q = tl.load(query + (start + m)[:, None] * D + head * HEAD + h[None, :], mask=rows, other=0.0)
    n_pads = n_places - length
    if DROP:
        key = tl.load(seed) + site
        draws = _draws(start, m, head, n_heads, n_places)
    largest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    mass = tl.zeros((BLOCK_M,), tl.float32)
    mixed = tl.zeros((BLOCK_M, BLOCK_H), tl.float32)
    end = tl.minimum(first_query + BLOCK_M, length) if CAUSAL else length
    for first_key in range(0, end, BLOCK_N):
        n = first_key + tl.arange(0, BLOCK_N)
        there = (n < length)[:, None] & wide[None, :]
        place = key_value + (start + n)[:, None] * (2 * D) + head * HEAD + h[None, :]
        k = tl.load(place, mask=there, other=0.0)
        v = tl.load(place + D, mask=there, other=0.0)
        s = _logits(q, k, m, n, length, scale, CAUSAL, EXACT)
        # The first block holds key 0, which every query sees: the maximum is finite from then on.
        higher = tl.maximum(largest, tl.max(s, 1))
        faded = tl.exp(largest - higher)
        w = tl.exp(s - higher[:, None])
        mass = mass * faded + tl.sum(w, 1)
        if DROP:
            w = tl.where(keep_mask(key, draws[:, None] + (n_pads + n)[None, :], p), w, 0.0)
        mixed = mixed * faded[:, None] + tl.dot(w.to(v.dtype), v, input_precision="tf32x3" if EXACT else "tf32")
        largest = higher
    if PADS:
        pad_key = tl.load(bias + D + head * HEAD + h, mask=wide, other=0.0).to(tl.float32)
        pad_value = tl.load(bias + 2 * D + head * HEAD + h, mask=wide, other=0.0).to(tl.float32)
        s_pad = tl.sum(q.to(tl.float32) * pad_key[None, :], 1) * scale
        higher = tl.where(n_pads > 0, tl.maximum(largest, s_pad), largest)
        faded = tl.exp(largest - higher)
        each = tl.exp(tl.where(n_pads > 0, s_pad - higher, float("-inf")))
        kept = tl.zeros((BLOCK_M,), tl.float32) + n_pads
        if DROP:
            kept = _pads_kept(key, draws, n_pads, p, BLOCK_M, BLOCK_N)
        mass = mass * faded + n_pads * each
        mixed = mixed * faded[:, None] + (kept * each)[:, None] * pad_value[None, :]
        largest = higher
    if DROP:
        mixed = mixed / (1 - p)
    mixed = mixed / mass[:, None]
    tl.store(out + (start + m)[:, None] * D + head * HEAD + h[None, :], mixed.to(out.dtype.element_ty), mask=rows)
    tl.store(lse + (start + m) * n_heads + head, largest + tl.log(mass), mask=m < length)


@triton.jit
def _probabilities(
    q, k, v, g, s_lse, delta, m, n, length, scale, key, draws, n_pads, p,
    CAUSAL: tl.constexpr, DROP: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """(M, N): the weights that multiplied the values, and the gradient of the logits over `scale`."""
    w = tl.exp(_logits(q, k, m, n, length, scale, CAUSAL, EXACT) - s_lse[:, None])
    to_w = tl.dot(g, tl.trans(v), input_precision="tf32x3" if EXACT else "tf32")
    dropped = w
    if DROP:
        keep = keep_mask(key, draws[:, None] + (n_pads + n)[None, :], p)
        dropped = tl.where(keep, w / (1 - p), 0.0)
        to_w = tl.where(keep, to_w / (1 - p), 0.0)
    return dropped, w * (to_w - delta[:, None])


@triton.jit
def _queries(query, out, gradient, lse, start, m, head, length, n_heads, D: tl.constexpr, HEAD: tl.constexpr, h):
    """A block of queries with what the backward pass needs of each; rows beyond the history have probability 0."""
    rows = (m < length)[:, None] & (h < HEAD)[None, :]
    place = (start + m)[:, None] * D + head * HEAD + h[None, :]
    q = tl.load(query + place, mask=rows, other=0.0)
    g = tl.load(gradient + place, mask=rows, other=0.0)
    delta = tl.sum(tl.load(out + place, mask=rows, other=0.0).to(tl.float32) * g.to(tl.float32), 1)
    s_lse = tl.load(lse + (start + m) * n_heads + head, mask=m < length, other=float("inf"))
    return q, g, delta, s_lse


@triton.jit(do_not_specialize=["site", "n_places", "n_heads"])
def _attention_backward(
    query, key_value, bias, out, gradient, lse, offsets, seed, to_query, to_key_value, to_bias,
    scale, p, site, n_places, n_heads,
    D: tl.constexpr, HEAD: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK: tl.constexpr,
    CAUSAL: tl.constexpr, PADS: tl.constexpr, DROP: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(2)
    start = tl.load(offsets + tl.program_id(1))
    length = (tl.load(offsets + tl.program_id(1) + 1) - start).to(tl.int32)
    first = tl.program_id(0) * BLOCK
    own = first + tl.arange(0, BLOCK)
    h = tl.arange(0, BLOCK_H)
    wide = h < HEAD
    partial = (
        to_bias + (tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)) * 3 * D + head * HEAD + h
    )
    if first >= length:
        nothing = tl.zeros((BLOCK_H,), tl.float32)
        tl.store(partial, nothing, mask=wide)
        tl.store(partial + D, nothing, mask=wide)
        tl.store(partial + 2 * D, nothing, mask=wide)
        return
    n_pads = n_places - length
    key = tl.load(seed) + site
    rows = (own < length)[:, None] & wide[None, :]
    place = (start + own)[:, None] * (2 * D) + head * HEAD + h[None, :]

    k = tl.load(key_value + place, mask=rows, other=0.0)
    v = tl.load(key_value + D + place, mask=rows, other=0.0)
    to_k = tl.zeros((BLOCK, BLOCK_H), tl.float32)
    to_v = tl.zeros((BLOCK, BLOCK_H), tl.float32)
    begin = first if CAUSAL else 0
    for first_query in range(begin, length, BLOCK):
        m = first_query + tl.arange(0, BLOCK)
        q, g, delta, s_lse = _queries(query, out, gradient, lse, start, m, head, length, n_heads, D, HEAD, h)
        draws = _draws(start, m, head, n_heads, n_places)
        dropped, to_s = _probabilities(
            q, k, v, g, s_lse, delta, m, own, length, scale, key, draws, n_pads, p, CAUSAL, DROP, EXACT
        )
        to_v += tl.dot(tl.trans(dropped.to(g.dtype)), g, input_precision="tf32x3" if EXACT else "tf32")
        to_k += tl.dot(tl.trans(to_s.to(q.dtype)), q, input_precision="tf32x3" if EXACT else "tf32")
    to_k *= scale
    tl.store(to_key_value + place, to_k.to(to_key_value.dtype.element_ty), mask=rows)
    tl.store(to_key_value + D + place, to_v.to(to_key_value.dtype.element_ty), mask=rows)
    # Of rows beyond the history both are zero: nothing looks at them.
    keys_bias, values_bias = tl.sum(to_k, 0), tl.sum(to_v, 0)

    q, g, delta, s_lse = _queries(query, out, gradient, lse, start, own, head, length, n_heads, D, HEAD, h)
    draws = _draws(start, own, head, n_heads, n_places)
    to_q = tl.zeros((BLOCK, BLOCK_H), tl.float32)
    end = tl.minimum(first + BLOCK, length) if CAUSAL else length
    for first_key in range(0, end, BLOCK):
        n = first_key + tl.arange(0, BLOCK)
        there = (n < length)[:, None] & wide[None, :]
        at = (start + n)[:, None] * (2 * D) + head * HEAD + h[None, :]
        k = tl.load(key_value + at, mask=there, other=0.0)
        v = tl.load(key_value + D + at, mask=there, other=0.0)
        _, to_s = _probabilities(
            q, k, v, g, s_lse, delta, own, n, length, scale, key, draws, n_pads, p, CAUSAL, DROP, EXACT
        )
        to_q += tl.dot(to_s.to(k.dtype), k, input_precision="tf32x3" if EXACT else "tf32")
    if PADS:
        pad_key = tl.load(bias + D + head * HEAD + h, mask=wide, other=0.0).to(tl.float32)
        pad_value = tl.load(bias + 2 * D + head * HEAD + h, mask=wide, other=0.0).to(tl.float32)
        q, g = q.to(tl.float32), g.to(tl.float32)
        # Queries beyond the history have an infinite lse: probability 0. A full history has no pads, and against its
        # own keys theirs might weigh more than a float holds, which times 0 is no number.
        s_pad = tl.sum(q * pad_key[None, :], 1) * scale
        each = tl.exp(tl.where(n_pads > 0, s_pad - s_lse, float("-inf")))
        kept = tl.zeros((BLOCK,), tl.float32) + n_pads
        if DROP:
            kept = _pads_kept(key, draws, n_pads, p, BLOCK, BLOCK) / (1 - p)
        to_s = each * (kept * tl.sum(g * pad_value[None, :], 1) - n_pads * delta)
        to_q += to_s[:, None] * pad_key[None, :]
        keys_bias += tl.sum(to_s[:, None] * q, 0) * scale
        values_bias += tl.sum((each * kept)[:, None] * g, 0)
    to_q *= scale
    place = (start + own)[:, None] * D + head * HEAD + h[None, :]
    tl.store(to_query + place, to_q.to(to_query.dtype.element_ty), mask=rows)
    tl.store(partial, tl.sum(tl.where(rows, to_q, 0.0), 0), mask=wide)
    tl.store(partial + D, keys_bias, mask=wide)
    tl.store(partial + 2 * D, values_bias, mask=wide)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key_value: Tensor,
        bias: Tensor,
        offsets: Tensor,
        seed: Tensor,
        n_places: int,
        n_heads: int,
        causal: bool,
        pads: bool,
        p: float,
        site: int,
    ) -> Tensor:
        N, D = query.shape
        head = D // n_heads
        block, warps = blocks(head, query.dtype)
        out = torch.empty_like(query)
        lse = query.new_empty((N, n_heads), dtype=torch.float32)
        ctx.constants = {
            "D": D, "HEAD": head, "BLOCK_H": power_of_2(head), "CAUSAL": causal, "PADS": pads, "DROP": p > 0,
            "EXACT": query.dtype == torch.float32,
        }  # fmt: skip
        ctx.numbers = (head**-0.5, p, site, n_places, n_heads)
        if N:
            _attention_forward[(triton.cdiv(n_places, block), len(offsets) - 1, n_heads)](
                query, key_value, bias, out, lse, offsets, seed, *ctx.numbers,
                **ctx.constants, BLOCK_M=block, BLOCK_N=block, num_warps=warps,
            )  # fmt: skip
        ctx.save_for_backward(query, key_value, bias, offsets, seed, out, lse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        query, key_value, bias, offsets, seed, out, lse = ctx.saved_tensors
        N, D = query.shape
        n_rows, n_heads, n_places = len(offsets) - 1, ctx.numbers[-1], ctx.numbers[-2]
        block, warps = blocks(D // n_heads, query.dtype)
        n_blocks = triton.cdiv(n_places, block)
        to_query, to_key_value = torch.empty_like(query), torch.empty_like(key_value)
        partial = query.new_zeros if N == 0 else query.new_empty
        to_bias = partial((n_rows * n_blocks, 3 * D), dtype=torch.float32)
        if N:
            _attention_backward[(n_blocks, n_rows, n_heads)](
                query, key_value, bias, out, gradient.contiguous(), lse, offsets, seed, to_query, to_key_value, to_bias,
                *ctx.numbers, **ctx.constants, BLOCK=block, num_warps=warps,
            )  # fmt: skip
        return to_query, to_key_value, sum_rows(to_bias), *[None] * 8


def ragged_attention(
    query_ND: Tensor,
    key_value_N2D: Tensor,
    bias_3D: Tensor,
    offsets: Tensor,
    *,
    n_places: int,
    n_heads: int,
    causal: bool,
    pads: bool,
    p: float,
    seed: Tensor,
    site: int,
) -> Tensor:
    """(N, D) in the queries' dtype. key_value_N2D: keys, then values, contiguous. offsets: (R + 1,) int64, history r is
    rows offsets[r] : offsets[r + 1], at most n_places of them; pads: the places in front of them are keys too.

    bias_3D: float32, the biases that queries, keys and values hold already. All of their gradient comes from here, the
    rows' share and the pads': what projects must not give them another.
    """
    result: Tensor = _Attention.apply(
        query_ND, key_value_N2D, bias_3D, offsets, seed, n_places, n_heads, causal, pads, p, site
    )
    return result
