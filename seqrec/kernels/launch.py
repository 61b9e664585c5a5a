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
def keep_mask(seed, offsets, p):  # type: ignore[no-untyped-def]
    """True with probability 1 - p, a function of (seed, offset) alone."""
    return tl.rand(seed, offsets) >= p


def grid_of_rows(n_rows: int, block: int) -> int:
    """Programs for rows in blocks, each taking every n-th block."""
    return max(1, min(PROGRAMS, triton.cdiv(n_rows, block)))


def row_block(width: int) -> int:
    """Rows a program holds at a time: about 4,096 numbers."""
    return max(1, min(64, 4096 // triton.next_power_of_2(width)))


def power_of_2(n: int) -> int:
    return max(16, triton.next_power_of_2(n))


def pointer(tensor: Tensor | None, other: Tensor) -> Tensor:
    """What to pass for an argument that a kernel is told not to touch."""
    return other if tensor is None else tensor


Kernel = Any
"""A function that `triton.jit` made."""

dtypes = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
