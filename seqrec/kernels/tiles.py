"""Tile shapes, by width and architecture: a fixed table for each kernel, never a search at run time.

A search costs 10 to 40 s at first use and makes the order of summation, and so the last digits, depend on the day.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from seqrec.kernels.launch import power_of_2


@dataclass(frozen=True)
class Tile:
    rows: int
    columns: int
    warps: int
    stages: int
    registers: int | None = None
    """A ceiling for each thread, so that one program more fits on a multiprocessor. None: as many as it takes."""

    def options(self) -> dict[str, int]:
        """What a launch is told beside the shape."""
        ceiling = {} if self.registers is None else {"maxnreg": self.registers}
        return {"num_warps": self.warps, "num_stages": self.stages, **ceiling}


Table = Mapping[int, Mapping[int, Tile]]
"""Major compute capability -> width (a power of two) -> tile. An architecture that has no entry gets the one below it,
or the lowest; so does a width the one above it, or the widest."""


def pick(table: Table, width: int, device: torch.device, dtype: torch.dtype = torch.float16) -> Tile:
    """The tile for rows of `width` numbers of a type on a device. Of float32, slow in any tile, it is the oldest
    architecture's for twice the width: the smallest, and it fits."""
    major = 9 if device.type != "cuda" else torch.cuda.get_device_capability(device)[0]
    if dtype == torch.float32:
        major, width = min(table), 2 * width
    known = [one for one in table if one <= major] or [min(table)]
    by_width = table[max(known)]
    wide_enough = [one for one in by_width if one >= power_of_2(width)] or [max(by_width)]
    return by_width[min(wide_enough)]
