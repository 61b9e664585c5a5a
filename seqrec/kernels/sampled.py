"""Losses of a position's target and K candidate items of its own: softmax (CE-, CCE-) and binary (BCE, gBCE, BCE+).

    s_ik = x_i . w_k;   r_i of the candidates k of position i equal its target y
    softmax  loss_i = -s_iy + log( exp(s_iy) + sum_{k: not y} exp(s_ik + c_ik) );   0 if all are y
             c_ik = 0  |  log(V - 1) - log(K - r_i)  |  log(1 - q_y) - log(K - r_i) - log q_k
    binary   loss_i = scale ( beta a(s_iy) + sum_k a(-s_ik) ),   scale = 1 / (1 + K) or 1
             a(s) = -log sigmoid(s)  or, BCE+,  -log(sigmoid(s) + eps)
    value = sum_i weight_i loss_i;   d x_i = sum_j e_ij w_j;   d w_j = sum_i e_ij x_i;   e_ij = weight_i d loss_i / d s_ij

Candidates are given, or drawn where they are needed (`draws`) and drawn again where they are needed again.

Order. (1) `rows_forward`, one program a position: gathers its candidates' rows once for loss and d x, with one online
softmax a lane; the common factor of c_ik comes in at the end, when r_i is known. It leaves one number a position, from
which e_ij follows given s_ij, and counts for each item how often it is drawn. (2) The items' gradient. With few pairs
of position and candidate, one program a position adds to the rows of d w by atomic additions. Else pairs are dealt into
a list an item: running sum of the counts, `fill_lists`, and `by_item` walks over an item's list with w_j and its sum in
registers, computes s_ij again from the states, which lie in the cache, and writes the row once, where atomic additions
would read and write it for each pair. Lists hold positions in 16 bits, and positions are dealt in portions, so that all
lists take at most `list_bytes`, whatever N and K are. Programs help each other with lists longer than `SPAN`.

Operands in `dtype` (where few pairs are scored: as they are, since a copy would cost more), products and sums in
float32 on the ordinary cores: e_ij is never rounded to 16 bits. Value and d x are deterministic; d w is not bit for bit:
atomic additions, or lists whose order varies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from seqrec.kernels.draws import ROUNDS
from seqrec.kernels.launch import pointer, power_of_2
from seqrec.kernels.sampled_kernels import (
    COUNT,
    GIVEN,
    LOG_Q,
    NONE,
    POPULAR,
    SPAN,
    UNIFORM,
    by_item,
    fill_lists,
    long_lists,
    rows_forward,
    scatter_rows,
)
from seqrec.kernels.tiles import Table, Tile, pick

_ROWS = {
    32: Tile(rows=64, columns=512, warps=1, stages=1),
    64: Tile(rows=32, columns=512, warps=1, stages=1),
    128: Tile(rows=16, columns=512, warps=1, stages=1),
    256: Tile(rows=32, columns=512, warps=4, stages=1),
    512: Tile(rows=32, columns=512, warps=8, stages=1),
}
TILES: Table = {8: _ROWS, 9: _ROWS}
"""One position: rows = candidates that are scored at a time, columns = candidates entered into lists at a time."""

_LISTS = {
    32: Tile(rows=16, columns=8, warps=1, stages=1),
    64: Tile(rows=16, columns=8, warps=1, stages=1),
    128: Tile(rows=8, columns=8, warps=1, stages=1),
    256: Tile(rows=8, columns=8, warps=1, stages=1),
    512: Tile(rows=8, columns=8, warps=2, stages=1),
}
LIST_TILES: Table = {8: _LISTS, 9: _LISTS}
"""One item: rows = positions of its list taken at a time, columns = items of a program, one after the other."""

LEAST_LIST_BYTES = 16 << 20
MOST_POSITIONS = 1 << 16
CORRECTIONS = {"none": NONE, "log_count": COUNT, "log_q": LOG_Q}
SCATTERS = ("auto", "lists", "atomics")


def list_bytes(n_items: int, width: int) -> int:
    """Most memory of all lists: an eighth of the items' gradient, 16 MiB if that is less. A position has its K
    candidates in one portion: 2 K bytes at least."""
    return max(LEAST_LIST_BYTES, n_items * width * 4 // 8)


@dataclass(frozen=True)
class _Family:
    softmax: bool
    correction: int = NONE
    plus: bool = False
    beta: float = 1.0
    scale: float = 1.0
    eps: float = 0.0


def _run(
    hidden: Tensor,
    items: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    ids: Tensor | None,
    seed: Tensor | None,
    popularity: Tensor | None,
    log_q: Tensor | None,
    n_candidates: int,
    family: _Family,
    dtype: torch.dtype,
    gradients: bool,
    scatter: str,
) -> tuple[Tensor, Tensor, Tensor]:
    (N, D), V = hidden.shape, len(items)
    if N == 0:
        return _nothing(hidden, items, gradients)
    few = N * n_candidates <= 2 * V
    lists = gradients and (scatter == "lists" or (scatter == "auto" and not few))
    if not few:
        hidden, items = hidden.to(dtype), items.to(dtype)
    hidden, items, targets = hidden.contiguous(), items.contiguous(), targets.contiguous()
    weights = None if weights is None else weights.contiguous()
    ids = None if ids is None else ids.contiguous()

    tile, list_tile = pick(TILES, D, hidden.device), pick(LIST_TILES, D, hidden.device)
    block_d = power_of_2(D)
    losses, row_terms, at_target = hidden.new_empty((3, N), dtype=torch.float32)
    to_hidden = hidden.new_empty((N, D) if gradients else 0, dtype=torch.float32)
    source = GIVEN if ids is not None else UNIFORM if popularity is None else POPULAR
    where = [
        targets, pointer(weights, hidden), pointer(ids, targets), pointer(seed, targets),
        pointer(popularity, targets),
    ]  # fmt: skip
    q = pointer(log_q, losses)
    drawing = {
        "SOFTMAX": family.softmax, "SOURCE": source, "ROUNDS": ROUNDS, "WEIGHTS": weights is not None,
    }  # fmt: skip
    scoring = {
        "D": D, "BLOCK_D": block_d, "BLOCK": tile.rows, "STAGES": tile.stages, "PLUS": family.plus,
        "CORRECTION": family.correction, "num_warps": tile.warps, **drawing,
    }  # fmt: skip
    if lists:
        portion = max(1, min(N, MOST_POSITIONS, list_bytes(V, D) // (2 * n_candidates)))
        portion = -(-N // -(-N // portion))
        pairs = hidden.new_empty(portion * n_candidates, dtype=torch.int16)
        counts, ends = hidden.new_zeros(V, dtype=torch.int32), hidden.new_empty(V, dtype=torch.int32)
        to_items = hidden.new_empty((V, D), dtype=torch.float32)
    else:
        portion, pairs, counts, ends = N, targets, targets, targets
        to_items = hidden.new_zeros((V, D) if gradients else 0, dtype=torch.float32)
    walking = {
        "D": D, "BLOCK_D": block_d, "SPAN": SPAN, "SOFTMAX": family.softmax, "PLUS": family.plus,
        "CORRECTION": family.correction,
    }  # fmt: skip
    for first in range(0, N, portion):
        here = min(portion, N - first)
        if lists and first:
            counts.zero_()
        rows_forward[(here,)](
            hidden, items, *where, q, counts, losses, to_hidden, row_terms, at_target,
            first, n_candidates, V, 1 / N, math.log2(max(1, V - 1)), family.beta, family.scale, family.eps,
            GRADIENTS=gradients, COUNTING=lists, **scoring,
        )  # fmt: skip
        if not lists:
            continue
        torch.cumsum(counts, 0, dtype=torch.int32, out=ends)
        fill_lists[(here, triton.cdiv(n_candidates, tile.columns))](
            *where, ends, pairs, first, n_candidates, V, BLOCK=tile.columns, **drawing
        )
        about = (hidden, items, q, row_terms, counts, ends, pairs, to_items, first, V)
        by_item[(triton.cdiv(V, list_tile.columns),)](
            *about, family.eps, BLOCK=list_tile.rows, ITEMS=list_tile.columns, FIRST=first == 0,
            num_warps=list_tile.warps, **walking,
        )  # fmt: skip
        # Uniform draws make no list so much longer than the others.
        if source != UNIFORM or here * n_candidates > V * (SPAN // 4):
            long_lists[(triton.cdiv(here * n_candidates, SPAN),)](
                *about, V.bit_length(), family.eps, BLOCK=4 * list_tile.rows, num_warps=4 * list_tile.warps, **walking
            )
    if gradients:
        scatter_rows[(N,)](
            hidden, items, *where, q, row_terms, at_target, to_items, 0, n_candidates, V, family.eps,
            CANDIDATES=not lists, **scoring,
        )  # fmt: skip
    return losses.sum(), to_hidden, to_items


def _nothing(hidden: Tensor, items: Tensor, gradients: bool) -> tuple[Tensor, Tensor, Tensor]:
    options = {"dtype": torch.float32, "device": hidden.device}
    to_hidden, to_items = (torch.zeros(one.shape if gradients else 0, **options) for one in (hidden, items))
    return torch.zeros((), **options), to_hidden, to_items


@torch.library.custom_op("seqrec::sampled_softmax", mutates_args=())
def _softmax(
    hidden: Tensor,
    items: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    ids: Tensor | None,
    seed: Tensor | None,
    popularity: Tensor | None,
    log_q: Tensor | None,
    n_candidates: int,
    correction: str,
    dtype: torch.dtype,
    gradients: bool,
    scatter: str,
) -> tuple[Tensor, Tensor, Tensor]:
    # Without a table every item is as likely: the two corrections are then one.
    kind = CORRECTIONS[correction]
    kind = COUNT if kind == LOG_Q and log_q is None else kind
    return _run(
        hidden, items, targets, weights, ids, seed, popularity, log_q if kind == LOG_Q else None, n_candidates,
        _Family(softmax=True, correction=kind), dtype, gradients, scatter,
    )  # fmt: skip


@torch.library.custom_op("seqrec::sampled_binary", mutates_args=())
def _binary(
    hidden: Tensor,
    items: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    ids: Tensor | None,
    seed: Tensor | None,
    popularity: Tensor | None,
    n_candidates: int,
    beta: float,
    mean: bool,
    plus: bool,
    eps: float,
    dtype: torch.dtype,
    gradients: bool,
    scatter: str,
) -> tuple[Tensor, Tensor, Tensor]:
    scale = 1 / (1 + n_candidates) if mean else 1.0
    family = _Family(softmax=False, plus=plus, beta=beta, scale=scale, eps=eps)
    return _run(
        hidden, items, targets, weights, ids, seed, popularity, None, n_candidates, family, dtype, gradients, scatter
    )


def _fake(hidden: Tensor, items: Tensor, gradients: bool) -> tuple[Tensor, Tensor, Tensor]:
    to_hidden, to_items = (
        one.new_empty(one.shape if gradients else 0, dtype=torch.float32) for one in (hidden, items)
    )
    return hidden.new_empty((), dtype=torch.float32), to_hidden, to_items


@_softmax.register_fake
def _(hidden, items, targets, weights, ids, seed, popularity, log_q, n, correction, dtype, gradients, scatter):
    return _fake(hidden, items, gradients)


@_binary.register_fake
def _(hidden, items, targets, weights, ids, seed, popularity, n, beta, mean, plus, eps, dtype, gradients, scatter):
    return _fake(hidden, items, gradients)


Result = tuple[Tensor, Tensor | None, Tensor | None]


def sampled_softmax(
    hidden_ND: Tensor,
    items_VD: Tensor,
    targets_N: Tensor,
    weights_N: Tensor | None = None,
    *,
    ids: Tensor | None = None,
    seed: Tensor | None = None,
    n_negatives: int | None = None,
    popularity: Tensor | None = None,
    correction: str = "none",
    log_q: Tensor | None = None,
    dtype: torch.dtype = torch.float16,
    gradients: bool = True,
    scatter: str = "auto",
) -> Result:
    """Value (), d hidden (N, D) and d items (V, D), float32, of the softmax over target and candidates; the module's
    docstring has the equations. The gradients are None if not wanted.

    Candidates: ids, (N, K) int32 or int64; or seed, one int64 on the device, with n_negatives = K, uniform or by an
    alias table `popularity` (`draws.alias_table`). weights_N: None: 1 / N each; a position of weight 0 is skipped.
    correction: none | log_count | log_q, the last with log_q (V,), log probabilities, or None for uniform. dtype: of
    the operands, float16, bfloat16 or float32. scatter: how d items is summed, auto | lists | atomics. A target or a
    candidate outside [0, V), or an infinite or undefined score, makes the value NaN. Raises ValueError for arguments
    that break these laws.
    """
    n = _check(hidden_ND, items_VD, targets_N, weights_N, ids, seed, n_negatives, popularity, dtype, scatter)
    _law("correction", correction, correction in CORRECTIONS, " | ".join(CORRECTIONS))
    shape = None if log_q is None else tuple(log_q.shape)
    _law("log_q", shape, log_q is None or shape == (len(items_VD),), f"({len(items_VD)},) or None")
    known = correction != "log_q" or popularity is None or log_q is not None
    _law("log_q", None, known, "log probabilities beside popularity and correction log_q")
    log_q = None if log_q is None else log_q.detach().to(torch.float32).contiguous()
    value, to_hidden, to_items = _softmax(
        hidden_ND.detach(), items_VD.detach(), targets_N, weights_N, ids, seed, popularity, log_q, n, correction, dtype,
        gradients, scatter,
    )  # fmt: skip
    return (value, to_hidden, to_items) if gradients else (value, None, None)


def sampled_binary(
    hidden_ND: Tensor,
    items_VD: Tensor,
    targets_N: Tensor,
    weights_N: Tensor | None = None,
    *,
    ids: Tensor | None = None,
    seed: Tensor | None = None,
    n_negatives: int | None = None,
    popularity: Tensor | None = None,
    beta: float = 1.0,
    mean: bool = True,
    plus: bool = False,
    eps: float = 1e-6,
    dtype: torch.dtype = torch.float16,
    gradients: bool = True,
    scatter: str = "auto",
) -> Result:
    """As `sampled_softmax`, of the binary losses: BCE as it stands, gBCE with its beta, BCE+ with plus and not mean.

    Candidates that equal the target are not rejected. mean: over the 1 + K scores, else their sum. plus: eps > 0 is
    added to every likelihood.
    """
    n = _check(hidden_ND, items_VD, targets_N, weights_N, ids, seed, n_negatives, popularity, dtype, scatter)
    _law("eps", eps, not plus or eps > 0, "> 0")
    value, to_hidden, to_items = _binary(
        hidden_ND.detach(), items_VD.detach(), targets_N, weights_N, ids, seed, popularity, n, beta, mean, plus, eps,
        dtype, gradients, scatter,
    )  # fmt: skip
    return (value, to_hidden, to_items) if gradients else (value, None, None)


def _check(
    hidden: Tensor,
    items: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    ids: Tensor | None,
    seed: Tensor | None,
    n_negatives: int | None,
    popularity: Tensor | None,
    dtype: torch.dtype,
    scatter: str,
) -> int:
    """K."""
    N, V = len(hidden), len(items)
    _law("items_VD", tuple(items.shape), V > 0 and items.shape[1:] == hidden.shape[1:], "(V, D) with the states' D")
    _law("targets_N", tuple(targets.shape), targets.shape == (N,), f"({N},)")
    if weights is not None:
        _law("weights_N", tuple(weights.shape), weights.shape == (N,), f"({N},) or None")
    _law("dtype", dtype, dtype in (torch.float16, torch.bfloat16, torch.float32), "float16 | bfloat16 | float32")
    _law("scatter", scatter, scatter in SCATTERS, " | ".join(SCATTERS))
    if ids is not None:
        _law("seed, n_negatives", (seed, n_negatives), seed is None and n_negatives is None, "None beside ids")
        _law("ids", tuple(ids.shape), ids.ndim == 2 and len(ids) == N and ids.shape[1] > 0, f"({N}, K), K >= 1")
        return ids.shape[1]
    if seed is None or n_negatives is None:
        raise ValueError("ids: got None; expected ids, or a seed with n_negatives.")
    _law("seed", seed.dtype, seed.dtype == torch.int64 and seed.numel() == 1, "one int64")
    _law("n_negatives", n_negatives, n_negatives >= 1, ">= 1")
    if popularity is not None:
        fits = popularity.shape == (V, 2) and popularity.dtype == torch.int32 and popularity.is_contiguous()
        _law("popularity", tuple(popularity.shape), fits, f"({V}, 2) int32, contiguous")
    return n_negatives


def _law(name: str, got: object, holds: bool, law: str) -> None:
    if not holds:
        raise ValueError(f"{name}: got {got}; expected {law}.")
