"""In what order, in which tiles and portions the kernels of `seqrec.kernels.sampled` run."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from seqrec.kernels.draws import ROUNDS
from seqrec.kernels.launch import pointer, power_of_2
from seqrec.kernels.sampled_lists import by_item, fill_lists, long_lists
from seqrec.kernels.sampled_rows import COUNT, GIVEN, LOG_Q, NONE, POPULAR, UNIFORM, rows_forward, scatter_rows
from seqrec.kernels.tiles import Table, Tile, pick

_ROWS = {
    32: Tile(rows=64, columns=512, warps=1, stages=1),
    64: Tile(rows=32, columns=512, warps=1, stages=1),
    128: Tile(rows=16, columns=512, warps=1, stages=1),
    256: Tile(rows=8, columns=512, warps=1, stages=1),
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

LEAST_LIST_BYTES, MOST_LIST_BYTES = 16 << 20, 1 << 30
MOST_POSITIONS = 1 << 16
SPAN_BITS = 10
"""Pairs of one item that one program adds up before others help it: 2^10."""
CORRECTIONS = {"none": NONE, "log_count": COUNT, "log_q": LOG_Q}
SCATTERS = ("auto", "lists", "atomics")


def list_bytes(n_items: int, width: int) -> int:
    """Most memory of all lists: an eighth of the items' gradient, within 16 MiB and 1 GiB. A position has its K
    candidates in one portion: 2 K bytes at least."""
    return min(MOST_LIST_BYTES, max(LEAST_LIST_BYTES, n_items * width * 4 // 8))


@dataclass(frozen=True)
class Family:
    softmax: bool
    correction: int = NONE
    plus: bool = False
    beta: float = 1.0
    scale: float = 1.0
    eps: float = 0.0


def run(
    hidden: Tensor,
    items: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    ids: Tensor | None,
    seed: Tensor | None,
    popularity: Tensor | None,
    log_q: Tensor | None,
    n_candidates: int,
    family: Family,
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
    # Three allocations: kernels are compiled once more for pointers that are not multiples of 16.
    losses, row_terms, at_target = (hidden.new_empty(N, dtype=torch.float32) for _ in range(3))
    to_hidden = hidden.new_empty((N, D) if gradients else 0, dtype=torch.float32)
    source = GIVEN if ids is not None else UNIFORM if popularity is None else POPULAR
    where = (
        targets, pointer(weights, losses), pointer(ids, targets), pointer(seed, targets), pointer(popularity, targets)
    )  # fmt: skip
    q = pointer(log_q, losses)
    drawing = {"SOFTMAX": family.softmax, "SOURCE": source, "ROUNDS": ROUNDS, "WEIGHTS": weights is not None}
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
        "D": D, "BLOCK_D": block_d, "SOFTMAX": family.softmax, "PLUS": family.plus, "CORRECTION": family.correction,
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
        # Uniform draws make no list much longer than the others.
        split = source != UNIFORM or here * n_candidates > V << (SPAN_BITS - 2)
        about = (
            hidden, items, q, row_terms, counts, ends, pairs, to_items, first, V, SPAN_BITS if split else 29, family.eps
        )  # fmt: skip
        by_item[(triton.cdiv(V, list_tile.columns),)](
            *about, BLOCK=list_tile.rows, ITEMS=list_tile.columns, FIRST=first == 0,
            num_warps=list_tile.warps, **walking,
        )  # fmt: skip
        if split:
            long_lists[(triton.cdiv(here * n_candidates, 1 << SPAN_BITS),)](
                *about, V.bit_length(), BLOCK=4 * list_tile.rows, num_warps=4 * list_tile.warps, **walking
            )
    if gradients:
        scatter_rows[(N,)](
            hidden, items, *where, q, row_terms, at_target, to_items, 0, n_candidates, V, family.eps,
            CANDIDATES=not lists, **scoring,
        )  # fmt: skip
    return losses.sum(), to_hidden, to_items


def _nothing(hidden: Tensor, items: Tensor, gradients: bool) -> tuple[Tensor, Tensor, Tensor]:
    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float32, device=hidden.device)

    return zeros(), zeros(*hidden.shape if gradients else (0,)), zeros(*items.shape if gradients else (0,))
