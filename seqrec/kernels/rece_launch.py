"""How `rece` cuts its work up, and the order of its launches."""

from __future__ import annotations

import os
from typing import Any

import torch
import triton
from torch import Tensor

from seqrec.kernels import rece_kernels as kernels, rece_pairs
from seqrec.kernels.launch import pointer, power_of_2
from seqrec.kernels.rece_tables import Tables
from seqrec.kernels.tiles import Table, Tile, pick

TILES: dict[str, Table] = {
    # rows: of positions, columns: of items.
    "forward": {
        8: {64: Tile(64, 64, 4, 3), 128: Tile(64, 32, 4, 2), 256: Tile(32, 32, 4, 2), 512: Tile(16, 32, 4, 2)},
        9: {
            32: Tile(64, 64, 4, 3),
            64: Tile(64, 64, 4, 3),
            128: Tile(64, 64, 4, 3),
            256: Tile(64, 64, 4, 3),
            512: Tile(64, 32, 8, 2),
        },
    },
    # rows: of items, columns: of positions.
    "backward": {
        8: {64: Tile(64, 64, 4, 3), 128: Tile(64, 32, 4, 2), 256: Tile(32, 32, 4, 2), 512: Tile(16, 32, 4, 2)},
        9: {
            32: Tile(64, 64, 4, 3),
            64: Tile(64, 64, 4, 3),
            128: Tile(64, 64, 4, 3),
            256: Tile(64, 64, 4, 3),
            512: Tile(64, 32, 8, 2),
        },
    },
}

PROGRAMS = 800
"""Of the forward pass at least, if stretches of the windows can make so many: fixed, so that sums do not depend on the
card."""

MOST_STRETCHES = 16

UNROLLED = {0: 0, 1: 1, 2: 2, 3: 4, 4: 4}
"""Words of earlier chunks -> the number a kernel unrolls; any other number is one kernel with a loop."""


def _packed(device: torch.device) -> bool:
    """Whether the matrix of distances may be computed two halves at a time."""
    on_device = device.type == "cuda" and os.environ.get("TRITON_INTERPRET") != "1"
    return on_device and torch.cuda.get_device_capability(device) >= (9, 0)


def compute(
    low: Tensor,
    tables: Tables,
    hidden: Tensor,
    items: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    reach: int,
    count: Tensor | None,
    gradients: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    (N, D), V = hidden.shape, len(items)
    targets, weights = targets.contiguous(), None if weights is None else weights.contiguous()
    rounds, n_all = tables.order.shape
    columns = tables.chunk.shape[1]
    order, chunk = tables.order, tables.chunk.view(torch.int32)
    reach = min(reach, tables.n_chunks)
    real = pointer(count, tables.order)
    heaviest = low if weights is None else weights.max()
    counted = count is not None
    of_rows, of_items = pick(TILES["forward"], D, low.device), pick(TILES["backward"], D, low.device)
    tiles = triton.cdiv(N, of_rows.rows)
    stretches = max(1, min(triton.cdiv(PROGRAMS, tiles), MOST_STRETCHES))
    new: dict[str, Any] = {"dtype": torch.float32}

    window = order.new_empty((2, n_all))
    kernels.windows[(triton.cdiv(n_all, 1024),)](
        window, real, N, V, tables.n_chunks, reach, BLOCK=1024, COUNTED=counted
    )
    most = rounds // 2
    words = order.new_empty((max(most, UNROLLED.get(most, 0)), n_all)) if rounds > 1 else order
    largest, mass = low.new_empty((2, stretches, N), **new)
    to_hidden = low.new_empty((N if gradients else 0, D), **new)
    more = low.new_empty((stretches - 1, N, D), **new) if gradients and stretches > 1 else to_hidden
    width = {"D": D, "BLOCK_D": power_of_2(D)}
    options = {**width, "PACKED": _packed(low.device), "EXACT": low.dtype == torch.float32}

    def pack(number: int) -> tuple[int, int]:
        """Words of earlier chunks in this round's order: how many, and the kernel's name for it."""
        n_words = (number + 1) // 2
        unrolled = UNROLLED.get(n_words, -1)
        n_words = max(n_words, unrolled)
        if number:
            rece_pairs.pack[(triton.cdiv(n_all, 256),)](words, order, chunk, n_all, number, columns, n_words, BLOCK=256)
        return n_words, unrolled

    for number in range(rounds):
        n_words, unrolled = pack(number)
        kernels.forward[(tiles, stretches)](
            low, order, window, words, largest, mass, to_hidden, more, N, V, reach, number, n_words,
            **options, ROWS=of_rows.rows, COLUMNS=of_rows.columns, WORDS=unrolled, MIX=gradients, **of_rows.options(),
        )  # fmt: skip
    losses, shifted, at_target = low.new_empty((3, N), **new)
    block = max(1, min(32, 4096 // power_of_2(D)))
    kernels.finish[(triton.cdiv(N, block),)](
        low, items, targets, pointer(weights, low), heaviest, tables.chunk, real, largest, mass, to_hidden, more,
        losses, shifted, at_target, N, V, reach, rounds, columns, stretches,
        **width, ROWS=block, COUNTED=counted, WEIGHTED=weights is not None, MIX=gradients,
    )  # fmt: skip
    value = losses.sum()
    if not gradients:
        return value, to_hidden, low.new_empty((0, D), **new)

    del more, largest, mass
    to_items = low.new_empty((V, D), **new)
    for number in range(rounds):
        n_words, unrolled = pack(number)
        kernels.backward[(triton.cdiv(V, of_items.rows),)](
            low, order, window, words, shifted, heaviest, real, to_items, N, V, reach, number, n_words,
            **options, ROWS=of_items.rows, COLUMNS=of_items.columns, WORDS=unrolled, COUNTED=counted,
            WEIGHTED=weights is not None, **of_items.options(),
        )  # fmt: skip
    kernels.add_targets[(triton.cdiv(N, block),)](hidden, targets, at_target, to_items, N, **width, ROWS=block)
    return value, to_hidden, to_items
