"""Where packed states lie while attention works on them.

States are packed, (N, D): one row a valid position, none for pads. Attention needs rectangles, (rows, length, D). How a
batch is laid out in them decides what pads are, and how much work is done for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from seqrec.data.batches import Windows

_LENGTHS = (8, 32, 128, 512)
"""On CPU, histories up to each of these share a grid: most are short, and the work grows with the length's square."""


@dataclass(frozen=True, eq=False)
class Grid:
    """A rectangle of cells. The query in cell l of a row sees the keys in cells 0..l of that row, or all of `keys`."""

    members: slice
    """The packed states that lie here."""
    slots: Tensor
    """(n members,) int64: the flat cell, row * length + l, of each."""
    n_rows: int
    length: int
    pads_are_keys: bool
    """Empty cells take part in the softmax, as projected zero vectors; else all of them lie behind the states."""
    keys: Tensor | None = None
    """(n_rows, 1, 1, length) bool: the cells that every query of a row sees, before it or behind it; None: attention is
    causal. No row is without one, so that no softmax is empty."""


@dataclass(frozen=True, eq=False)
class Layout:
    """The grids of a batch; together they hold every packed state once, in their order."""

    grids: tuple[Grid, ...]
    order: Tensor | None = None
    """(N,) the order in which the grids want the states; None: as they are."""


def with_pads(windows: Windows, max_length: int) -> Layout:
    """Pads are keys, as published: every place in front of a history is one."""
    slots = windows.rows * max_length + windows.places
    return Layout((Grid(slice(None), slots, windows.n_rows, max_length, pads_are_keys=True),))


def without_pads(windows: Windows, *, causal: bool = True) -> Layout:
    """Pads are no keys: every history starts its row, so that causal attention never reaches what lies behind it.

    No mask is built then, and no softmax is empty; attention that is not causal is told which cells are keys.
    """
    row = windows.rows
    offset = torch.arange(len(row), device=row.device) - windows.offsets.index_select(0, row)
    length = windows.offsets.diff()
    if row.device.type != "cpu":
        # One grid: how many histories are short is known on the device only, and asking would wait for it.
        width = windows.longest
        keys = None if causal else _filled_cells(length, width)
        return Layout((Grid(slice(None), row * width + offset, windows.n_rows, width, False, keys),))
    group = torch.bucketize(length, torch.tensor(_LENGTHS))
    of_state = group.index_select(0, row)
    order = torch.argsort(of_state, stable=True)
    row, offset, sizes = row[order], offset[order], torch.bincount(of_state).tolist()
    grids, start = [], 0
    for number, size in enumerate(sizes):
        if size:
            here = (group == number) & (length > 0)
            members, width = slice(start, start + size), int(length[here].max())
            slots = (here.cumsum(0) - 1).index_select(0, row[members]) * width + offset[members]
            keys = None if causal else _filled_cells(length[here], width)
            grids.append(Grid(members, slots, int(here.sum()), width, False, keys))
            start += size
    return Layout(tuple(grids), order)


def _filled_cells(lengths: Tensor, width: int) -> Tensor:
    """`Grid.keys` of rows that are filled from the left; a row without states keeps its first cell."""
    cell = torch.arange(width, device=lengths.device)
    return (cell < lengths.clamp(min=1)[:, None])[:, None, None, :]
