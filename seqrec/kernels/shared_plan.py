"""How `shared` cuts up positions and candidates: the tile shapes, and who gets which stretch. Host arithmetic alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from seqrec.kernels.tiles import Table, Tile, pick

TILES: dict[str, Table] = {
    # rows: positions; columns: candidates. `backward` takes a stretch of `forward` whole or in equal parts. The shared
    # memory of `forward`: stages - 1 tiles of the table as it is, 4 bytes a number; one, and the states, in 16 bits.
    "forward": {
        8: {64: Tile(64, 64, 4, 3), 128: Tile(64, 32, 4, 3), 256: Tile(32, 32, 4, 3), 512: Tile(16, 16, 4, 3)},
        9: {
            32: Tile(64, 64, 4, 3),
            64: Tile(64, 128, 4, 3),
            128: Tile(64, 64, 4, 3),
            256: Tile(64, 64, 8, 3),
            512: Tile(16, 16, 4, 3),
        },
    },
    "backward": {
        8: {64: Tile(64, 64, 4, 3), 128: Tile(64, 64, 4, 2), 256: Tile(32, 64, 8, 2), 512: Tile(16, 32, 8, 2)},
        9: {
            32: Tile(64, 64, 4, 3),
            64: Tile(64, 64, 4, 3),
            128: Tile(64, 64, 4, 3),
            256: Tile(64, 64, 8, 2),
            512: Tile(16, 32, 8, 2),
        },
    },
    "exact": {8: {128: Tile(32, 32, 4, 2), 512: Tile(16, 16, 4, 2)}},
}

PROGRAMS = 1056
"""Of `backward` at least, if stretches of the positions can make so many: eight for each multiprocessor."""

LEAST_STRETCH = 128
"""Positions of a program of `backward`, unless the group is smaller: a row's gradient is added to that much less
often."""

COPY_FROM = 3
"""Rows gathered for each row of the table that repay its copy in 16 bits: a row read in float32 costs 2 D bytes more,
the copy 6 D."""


@dataclass(frozen=True)
class Plan:
    """How positions are cut up. Of shapes alone: the order of summation depends on nothing else."""

    forward: Tile
    backward: Tile
    per_group: int
    """Programs of `forward` a group, if interleaved."""
    programs: int
    """Of `forward`."""
    length: int
    """Positions of a program of `backward`."""
    stretches_per_group: int
    stretches: int
    """The two above, of `backward`."""
    copied: bool
    """Whether the table is copied."""


def plan(N: int, V: int, D: int, G: int, K: int, ragged: bool, dtype: torch.dtype, device: torch.device) -> Plan:
    exact = dtype == torch.float32
    front, back = (pick(TILES["exact" if exact else kind], D, device) for kind in ("forward", "backward"))
    most = -(-N // G)
    wanted = -(-PROGRAMS // -(-K // back.columns))
    length = max(LEAST_STRETCH, front.rows, -(-N // wanted))
    length = -(-length // front.rows) * front.rows
    per_group, stretches_per_group = -(-most // front.rows), -(-most // length)
    programs = N // front.rows + G if ragged else G * per_group
    stretches = N // length + G if ragged else G * stretches_per_group
    copied = K * (programs + stretches) > COPY_FROM * V
    return Plan(front, back, per_group, programs, length, stretches_per_group, stretches, copied)
