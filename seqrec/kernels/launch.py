"""What all kernels share: random masks, tile shapes, and the reduction of what programs leave behind."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 264
"""Programs of a kernel that sums over rows: two for each multiprocessor of the largest GPU it is meant for. Fixed, so
that sums do not depend on the card."""


@triton.jit
def keep_mask(seed, offsets, p):
    """True with probability 1 - p, a function of (seed, offset) alone."""
    return tl.rand(seed, offsets) >= p


@triton.jit(do_not_specialize=["n_rows"])
def _sum_rows(partial, total, n_rows, n_columns: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    found = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, n_rows, ROWS):
        row = first + tl.arange(0, ROWS)
        mask = (row < n_rows)[:, None] & (column < n_columns)[None, :]
        found += tl.load(partial + row[:, None] * n_columns + column[None, :], mask=mask, other=0.0)
    tl.store(total + column, tl.sum(found, 0), mask=column < n_columns)


def sum_rows(partial: Tensor) -> Tensor:
    """The sum over the first dimension of what programs left behind: (P, C) float32 -> (C,). Deterministic."""
    n_rows, n_columns = partial.shape
    total = partial.new_empty(n_columns)
    _sum_rows[(triton.cdiv(n_columns, 16),)](partial, total, n_rows, n_columns, ROWS=128, COLUMNS=16)
    return total


def grid_of_rows(n_rows: int, block: int) -> int:
    """Programs for rows in blocks, each taking every n-th block."""
    return max(1, min(PROGRAMS, -(-n_rows // block)))


def row_block(width: int) -> int:
    """Rows a program holds at a time: about 4,096 numbers."""
    return max(1, min(64, 4096 // power_of_2(width)))


def power_of_2(n: int) -> int:
    """The width of a block that holds n numbers; the matrix units want 16 at least."""
    return max(16, 1 << (n - 1).bit_length())


def pointer(tensor: Tensor | None, other: Tensor) -> Tensor:
    """What to pass for an argument that a kernel is told not to touch."""
    return other if tensor is None else tensor


Kernel = Any
"""A function that `triton.jit` made."""

dtypes = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
