"""RECE with all (N, V) logits at once, in the arguments' own precision, and every pair of chunks compared."""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec.kernels.rece_tables import Tables


def hash_chunks(
    hidden_ND: Tensor,
    items_VD: Tensor,
    projections: Tensor,
    n_chunks: int,
    count: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float16,
) -> Tables:
    """One round and kind of vectors after another. `dtype` is the kernel's and changes nothing."""
    N, V = len(hidden_ND), len(items_VD)
    n = N if count is None else min(int(count), N)
    rounds = len(projections)
    order = torch.empty((rounds, N + V), dtype=torch.int32, device=hidden_ND.device)
    chunk = torch.zeros((N + V, rounds + rounds % 2), dtype=torch.int16, device=hidden_ND.device)
    for number, normals in enumerate(projections):
        for vectors, first in ((hidden_ND[:n], 0), (items_VD, N)):
            near = (vectors @ normals.to(vectors.dtype).T).argmax(1).argsort(stable=True)
            end = first + len(near)
            order[number, first:end] = near.int() + first
            starts = torch.arange(1, n_chunks + 1, device=near.device) * len(near) // n_chunks
            ranks = torch.arange(len(near), device=near.device)
            chunk[first + near, number] = torch.searchsorted(starts, ranks, right=True).short()
        order[number, n:N] = torch.arange(n, N, dtype=torch.int32, device=order.device)
    return Tables(order, chunk, rounds, n_chunks)


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
    """(value, to_hidden, to_items); no gradients: None. `dtype` and `dense` are the kernel's and change nothing."""
    N = len(hidden_ND)
    live = torch.arange(N, device=hidden_ND.device) < (N if count is None else count)
    if weights_N is None:
        weights_N = live.to(hidden_ND.dtype) / live.sum().clamp(min=1)
    known = (targets_N >= 0) & (targets_N < len(items_VD))
    y = targets_N.where(known, 0)
    with torch.enable_grad():
        hidden, items = (table.detach().requires_grad_(gradients) for table in (hidden_ND, items_VD))
        near = torch.zeros((N, len(items)), dtype=torch.bool, device=hidden.device)
        for chunks in tables.chunk.T[: tables.rounds].int():
            near |= (chunks[:N, None] - chunks[None, N:]).abs() <= reach
        near[torch.arange(N, device=y.device), y] = True
        logits = hidden @ items.T
        lse = logits.masked_fill(~near, -torch.inf).logsumexp(1)
        loss = (lse - (hidden * items[y]).sum(1)).where(known, torch.nan)
        value = (loss.where(live, 0) * weights_N.where(live, 0)).sum()
        if not gradients:
            return value.detach(), None, None
        to_hidden, to_items = torch.autograd.grad(value, (hidden, items))
    return value.detach(), to_hidden, to_items


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
    """As `rece_from_tables`, hashing first."""
    tables = hash_chunks(hidden_ND, items_VD, projections, n_chunks, count)
    return rece_from_tables(
        hidden_ND, items_VD, targets_N, weights_N, tables=tables, reach=reach, count=count, gradients=gradients
    )
