"""How `cross_entropy` cuts its work up, and the order of its launches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seqrec.kernels import cross_entropy_kernels as kernels
from seqrec.kernels.launch import power_of_2, row_block
from seqrec.kernels.tiles import Table, Tile, pick

TILES: dict[str, Table] = {
    # rows: of states; columns: items. Hopper's matrix units take 64 rows for each 4 warps.
    "forward": {
        8: {64: Tile(64, 64, 4, 3), 128: Tile(64, 64, 4, 2), 256: Tile(64, 32, 4, 2), 512: Tile(32, 32, 8, 2)},
        9: {
            32: Tile(64, 128, 4, 3),
            64: Tile(64, 128, 4, 2, 128),
            128: Tile(128, 64, 8, 3, 128),
            256: Tile(128, 64, 8, 3),
            512: Tile(64, 64, 8, 2),
        },
    },
    # The forward pass without gradients.
    "value": {
        8: {64: Tile(64, 64, 4, 3), 128: Tile(64, 64, 4, 2), 256: Tile(64, 32, 4, 2), 512: Tile(32, 32, 8, 2)},
        9: {
            32: Tile(64, 128, 4, 3),
            64: Tile(64, 128, 4, 3),
            128: Tile(128, 128, 8, 3),
            256: Tile(128, 64, 8, 3),
            512: Tile(64, 64, 8, 2),
        },
    },
    "backward": {
        8: {64: Tile(64, 64, 4, 3), 128: Tile(64, 64, 4, 2), 256: Tile(32, 64, 4, 2), 512: Tile(32, 32, 8, 2)},
        9: {
            32: Tile(64, 64, 4, 3),
            64: Tile(64, 128, 4, 3),
            128: Tile(64, 64, 4, 3, 168),
            256: Tile(64, 128, 8, 3),
            512: Tile(64, 32, 8, 2),
        },
    },
    # Two parts of each operand take twice the shared memory.
    "split forward": {
        8: {64: Tile(32, 32, 4, 2), 256: Tile(32, 32, 8, 2), 512: Tile(16, 16, 4, 1)},
        9: {64: Tile(64, 64, 4, 3), 128: Tile(64, 64, 4, 2), 256: Tile(64, 32, 4, 2), 512: Tile(16, 32, 8, 2)},
    },
    "split backward": {
        8: {64: Tile(32, 32, 4, 2), 256: Tile(32, 32, 8, 2), 512: Tile(16, 16, 4, 1)},
        9: {64: Tile(64, 64, 4, 3), 128: Tile(64, 64, 4, 2), 256: Tile(64, 32, 8, 2), 512: Tile(32, 16, 8, 2)},
    },
    # No matrix units.
    "exact forward": {8: {128: Tile(32, 32, 8, 2), 512: Tile(16, 16, 8, 2)}},
    "exact backward": {8: {128: Tile(32, 32, 8, 2), 512: Tile(16, 16, 8, 2)}},
}

TARGETS = 32
"""Positions of one turn in which a tile of items adds what is of its targets: few registers, and enough for most."""

PROGRAMS = 4800
"""Of the forward pass at least, if stretches of the catalog can make so many: a dozen for each place on the largest
card, so that the last ones leave little of it idle."""

BACKWARD_PROGRAMS = 1056
"""Of the backward pass at least, if stretches of positions can."""

ROOM = 2**22
"""Numbers (16 MB) that partial results may always take; of the forward pass V D more, which the gradient of the items
takes after them."""

MOST_STRETCHES = 128

SPLIT_SCALE = 64
"""What split operands are multiplied with: numbers from 1e-3 to 1,000 keep about 21 bits."""


@dataclass(frozen=True)
class Plan:
    """How N positions and V items are cut up. Of shapes alone: the order of summation depends on nothing else."""

    forward: Tile
    backward: Tile
    width: int
    n_padded: int
    v_padded: int
    stretches: int
    """Of the catalog, in the forward pass."""
    tiles: int
    """Of items in a stretch."""
    row_stretches: int
    """Of the positions, in the backward pass."""
    blocks: int
    """Of positions in one."""


def plan(N: int, V: int, D: int, dtype: torch.dtype, split: bool, gradients: bool, device: torch.device) -> Plan:
    kind = "split " if split else "exact " if dtype == torch.float32 else ""
    forward = pick(TILES["value" if not kind and not gradients else f"{kind}forward"], D, device)
    backward = pick(TILES[f"{kind}backward"], D, device)
    width = -(-D // 16) * 16
    n_padded = up(N, max(forward.rows, backward.rows, row_block(D)))
    n_tiles = -(-V // forward.columns)
    room = (V * D + ROOM) // (n_padded * width) if gradients else MOST_STRETCHES
    wanted = -(-PROGRAMS // (n_padded // forward.rows))
    stretches = max(1, min(wanted, room, n_tiles, MOST_STRETCHES))
    tiles = -(-n_tiles // stretches)
    n_blocks = n_padded // backward.rows
    wanted = -(-BACKWARD_PROGRAMS // -(-V // backward.columns))
    row_stretches = max(1, min(wanted, ROOM // (V * D), n_blocks))
    blocks = -(-n_blocks // row_stretches)
    return Plan(
        forward,
        backward,
        width,
        n_padded,
        up(V, max(forward.columns, backward.columns, row_block(D))),
        -(-n_tiles // tiles),
        tiles,
        -(-n_blocks // blocks),
        blocks,
    )


def up(n: int, block: int) -> int:
    return -(-n // block) * block


def compute(
    hidden: Tensor, items: Tensor, targets: Tensor, weights: Tensor, dtype: torch.dtype, split: bool, gradients: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(value, to_hidden, to_items, lse of n_padded rows); without gradients those are (0, D)."""
    (N, D), V = hidden.shape, len(items)
    p = plan(N, V, D, dtype, split, gradients, hidden.device)
    low = torch.float16 if split else dtype
    new: Any = {"device": hidden.device, "dtype": torch.float32}
    hidden_low = torch.empty((1 + split, p.n_padded, p.width), device=hidden.device, dtype=low)
    items_low = torch.empty((1 + split, p.v_padded, p.width), device=hidden.device, dtype=low)
    keys = torch.empty(N, device=hidden.device, dtype=torch.int32)
    largest = torch.empty(1, **new)
    shape: dict[str, Any] = {"D": D, "WIDTH": p.width, "BLOCK_D": power_of_2(D), "SPLIT": split}
    shape["SCALE"] = SPLIT_SCALE if split else 1
    tables = (hidden_low[0], hidden_low[-1], items_low[0], items_low[-1])
    block = row_block(D)
    programs = (p.v_padded // block, p.n_padded // block)
    kernels.prepare[(sum(programs) + 1,)](
        hidden, items, targets, weights, *tables, keys, largest, N, V, *programs, **shape, BLOCK=block
    )

    lse_parts = torch.empty((p.stretches, p.n_padded), **new)
    mixed_parts = torch.empty((p.stretches, p.n_padded, p.width) if gradients else (1,), **new)
    options: dict[str, Any] = {"MIX": gradients, **shape}
    exact = {"EXACT": low == torch.float32}
    del options["D"]
    kernels.forward[(p.n_padded // p.forward.rows, p.stretches)](
        *tables, lse_parts, mixed_parts, p.n_padded, V, p.tiles, **options, **exact,
        ROWS=p.forward.rows, ITEMS=p.forward.columns, **p.forward.options(),
    )  # fmt: skip
    lse = torch.empty(p.n_padded, **new)
    to_hidden = torch.empty((N if gradients else 0, D), **new)
    values = torch.empty(p.n_padded // 16, **new)
    kernels.merge[(len(values),)](
        lse_parts, mixed_parts, *tables, targets, weights, largest, lse, to_hidden, values,
        N, p.n_padded, V, p.stretches, **shape, MIX=gradients, ROWS=16,
    )  # fmt: skip
    del lse_parts, mixed_parts  # the gradient of the items takes their place
    value = values.sum()
    if not gradients:
        return value, to_hidden, torch.empty((0, D), **new), lse

    keys, order = torch.sort(keys, stable=True)
    to_items = torch.empty((p.row_stretches, V, D), **new)
    kernels.backward[(-(-V // p.backward.columns), p.row_stretches)](
        *tables, lse, keys, order, weights, largest, to_items, N, p.n_padded, V, p.blocks, N.bit_length(),
        **shape, **exact, ROWS=p.backward.rows, ITEMS=p.backward.columns, TARGETS=TARGETS, **p.backward.options(),
    )  # fmt: skip
    return value, to_hidden, to_items[0] if p.row_stretches == 1 else to_items.sum(0), lse
