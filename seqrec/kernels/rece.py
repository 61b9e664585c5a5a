"""RECE (arXiv 2408.02354): softmax over the items that random hashing puts near a position.

    round r:  chunk(v) = piece, of n_chunks equal ones, of the order by bucket(v) = argmax_b v . projection_rb
    C_i     = the items j with |chunk_r(x_i) - chunk_r(w_j)| <= reach in some round r, and y_i
    loss_i  = log sum_{j in C_i} exp(s_ij) - s_iy,    s = x . w
    d x_i   = weight_i (sum_j p_ij w_j - w_y);    d w_j = sum_i weight_i (p_ij - [j = y_i]) x_i

`rece_tables` hashes, `rece_kernels` walks over the pairs. Nothing of size (n_buckets, V) or (N, candidates) exists:
beside a 16-bit copy of both tables and the gradients there are 6 bytes a vector and round, 8 a vector, and 2 more a
vector and round from the second round on (where rounds reach most pairs: `rece_dense`, 2 bytes a vector and round, and
bits of a block of positions: 300 MB, or what 512 positions take), and what stretches of the windows leave, 51,200 rows
of 4 D bytes at most. Repeatable to the bit but for the targets' share of the items' gradient where there is one round,
N atomic additions of rows; of more rounds targets are sorted. Launches: 11 and a sort for one round, 6 and a sort for
each more, and another sort.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seqrec.kernels import rece_tables
from seqrec.kernels.rece_launch import Step, is_dense
from seqrec.kernels.rece_tables import MOST_BUCKETS, Tables


def _run(
    low: Tensor,
    tables: Tables,
    hidden: Tensor,
    items: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    reach: int,
    count: Tensor | None,
    dense: bool,
    gradients: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    weights = None if weights is None else weights.contiguous()
    reach = min(reach, tables.n_chunks)
    return Step(low, tables, hidden, items, targets.contiguous(), weights, reach, count, gradients).run(dense)


@torch.library.custom_op("seqrec::rece", mutates_args=())
def _rece(
    hidden: Tensor,
    items: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    projections: Tensor,
    n_chunks: int,
    reach: int,
    count: Tensor | None,
    dtype: torch.dtype,
    dense: bool,
    gradients: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    if not len(hidden):
        return _zeros(hidden, items, gradients)
    hidden, items = hidden.contiguous(), items.contiguous()
    low = rece_tables.lower(hidden, items, dtype)
    tables = rece_tables.make(low, projections, len(hidden), n_chunks, count, orders=not dense)
    return _run(low, tables, hidden, items, targets, weights, reach, count, dense, gradients)


@_rece.register_fake
def _(
    hidden: Tensor,
    items: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    projections: Tensor,
    n_chunks: int,
    reach: int,
    count: Tensor | None,
    dtype: torch.dtype,
    dense: bool,
    gradients: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _shapes(hidden, items, gradients)


@torch.library.custom_op("seqrec::rece_from_tables", mutates_args=())
def _rece_from_tables(
    hidden: Tensor,
    items: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    order: Tensor,
    chunk: Tensor,
    n_chunks: int,
    reach: int,
    count: Tensor | None,
    dtype: torch.dtype,
    dense: bool,
    gradients: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    if not len(hidden):
        return _zeros(hidden, items, gradients)
    hidden, items = hidden.contiguous(), items.contiguous()
    low = rece_tables.lower(hidden, items, dtype)
    tables = Tables(order, chunk, len(order), n_chunks)
    return _run(low, tables, hidden, items, targets, weights, reach, count, dense, gradients)


@_rece_from_tables.register_fake
def _(
    hidden: Tensor,
    items: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    order: Tensor,
    chunk: Tensor,
    n_chunks: int,
    reach: int,
    count: Tensor | None,
    dtype: torch.dtype,
    dense: bool,
    gradients: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _shapes(hidden, items, gradients)


def _shapes(hidden: Tensor, items: Tensor, gradients: bool) -> tuple[Tensor, Tensor, Tensor]:
    N, V, D = len(hidden), len(items), hidden.shape[1]
    new: dict[str, Any] = {"dtype": torch.float32}
    return (
        hidden.new_empty((), **new),
        hidden.new_empty((N if gradients else 0, D), **new),
        hidden.new_empty((V if gradients else 0, D), **new),
    )


def _zeros(hidden: Tensor, items: Tensor, gradients: bool) -> tuple[Tensor, Tensor, Tensor]:
    value, to_hidden, to_items = _shapes(hidden, items, gradients)
    return value.zero_(), to_hidden.zero_(), to_items.zero_()


def hash_chunks(
    hidden_ND: Tensor,
    items_VD: Tensor,
    projections: Tensor,
    n_chunks: int,
    count: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float16,
) -> Tables:
    """Each round's order and chunks. projections: (rounds, n_buckets, D), any float dtype; other arguments as `rece`'s.

    Products of operands in `dtype`: of a hundred vectors at most one has another bucket than with float32's.
    """
    _check(hidden_ND, items_VD, hidden_ND[:, 0], None, n_chunks, 0, count)
    _check_projections(projections, hidden_ND.shape[1])
    with torch.no_grad():
        low = rece_tables.lower(hidden_ND.contiguous(), items_VD.contiguous(), dtype)
        return rece_tables.make(low, projections, len(hidden_ND), n_chunks, count)


def rece_from_tables(
    hidden_ND: Tensor,
    items_VD: Tensor,
    targets_N: Tensor,
    weights_N: Tensor | None = None,
    *,
    tables: Tables,
    reach: int,
    count: Tensor | None = None,
    dtype: torch.dtype = torch.float16,
    dense: bool | None = None,
    gradients: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """As `rece`, with tables that exist already: of the same positions, items and count."""
    _check(hidden_ND, items_VD, targets_N, weights_N, tables.n_chunks, reach, count)
    if tables.order.shape[1] != len(hidden_ND) + len(items_VD):
        raise ValueError(f"tables: got orders of {tables.order.shape[1]}; expected one of N + V vectors.")
    found = _rece_from_tables(
        hidden_ND.detach(), items_VD.detach(), targets_N, weights_N, tables.order, tables.chunk, tables.n_chunks,
        reach, count, dtype, is_dense(tables.rounds, tables.n_chunks, reach) if dense is None else dense, gradients,
    )  # fmt: skip
    return found if gradients else (found[0], None, None)


def rece(
    hidden_ND: Tensor,
    items_VD: Tensor,
    targets_N: Tensor,
    weights_N: Tensor | None = None,
    *,
    projections: Tensor,
    n_chunks: int,
    reach: int,
    count: Tensor | None = None,
    dtype: torch.dtype = torch.float16,
    dense: bool | None = None,
    gradients: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(sum_i weight_i loss_i, its gradient by the states (N, D), by the items (V, D)), float32; the module's equations.

    projections: (rounds, n_buckets, D) random directions, drawn by the caller. reach: chunks to each side that a
    position sees beside its own. weights_N: >= 0; None: one over the real positions each. count: () integer on the
    device, how many positions are real; the others lie behind them, take part in nothing and get no gradient; None: all
    are. dtype: of the products' operands; float32 is slow and exact. dense: whether to score every pair once instead of
    each round's; the same values, and None: what is expected to be faster. gradients: False: value alone, None twice.
    A target that is no item makes the value NaN. Raises ValueError for arguments that do not fit.
    """
    _check(hidden_ND, items_VD, targets_N, weights_N, n_chunks, reach, count)
    _check_projections(projections, hidden_ND.shape[1])
    found = _rece(
        hidden_ND.detach(), items_VD.detach(), targets_N, weights_N, projections, n_chunks, reach, count, dtype,
        is_dense(len(projections), n_chunks, reach) if dense is None else dense, gradients,
    )  # fmt: skip
    return found if gradients else (found[0], None, None)


def _check(
    hidden: Tensor,
    items: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    n_chunks: int,
    reach: int,
    count: Tensor | None,
) -> None:
    N, D = hidden.shape
    laws = [
        ("items_VD", tuple(items.shape), f"(V, {D}), V >= 1", items.shape[1:] == (D,) and len(items) > 0),
        ("targets_N", tuple(targets.shape), f"({N},)", targets.shape == (N,)),
        ("weights_N", weights is None or tuple(weights.shape), f"({N},)", weights is None or weights.shape == (N,)),
        ("n_chunks", n_chunks, f"1 to {MOST_BUCKETS}", 1 <= n_chunks <= MOST_BUCKETS),
        ("reach", reach, ">= 0", reach >= 0),
        ("count", count is None or tuple(count.shape), "one integer, ()", count is None or count.numel() == 1),
        ("hidden_ND, items_VD", N + len(items), "less than 2^31 vectors", N + len(items) < 2**31 - 2**16),
    ]  # fmt: skip
    for name, got, law, holds in laws:
        if not holds:
            raise ValueError(f"{name}: got {got}; expected {law}.")


def _check_projections(projections: Tensor, D: int) -> None:
    law = f"(rounds, 1 to {MOST_BUCKETS} buckets, {D})"
    if projections.dim() != 3 or projections.shape[2] != D or not 1 <= projections.shape[1] <= MOST_BUCKETS:
        raise ValueError(f"projections: got {tuple(projections.shape)}; expected {law}.")
    if not len(projections):
        raise ValueError("projections: got 0 rounds; expected 1 at least.")
