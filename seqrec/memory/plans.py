"""How the fused losses cut up their work, as far as that decides what they hold. Neither torch nor numpy.

The kernels' own plans are the authority (`seqrec.kernels.{cross_entropy,rece}_launch`, `shared_plan`, `top`,
`sampled_launch`), for devices of compute capability 9 and operands of 16 bits; tests hold these against them.
"""

from __future__ import annotations

from typing import NamedTuple

Tiles = dict[int, tuple[int, int]]
"""Width, a power of two -> (rows, columns)."""

CE_FORWARD: Tiles = {32: (64, 128), 64: (64, 128), 128: (128, 64), 256: (128, 64), 512: (64, 64)}
CE_BACKWARD: Tiles = {32: (64, 64), 64: (64, 128), 128: (64, 64), 256: (64, 128), 512: (64, 32)}
CE_PROGRAMS, CE_BACKWARD_PROGRAMS, CE_ROOM, CE_MOST_STRETCHES = 4800, 1056, 2**22, 128

SHARED_FORWARD: Tiles = {32: (64, 64), 64: (64, 128), 128: (64, 64), 256: (64, 64), 512: (16, 16)}
SHARED_BACKWARD: Tiles = {32: (64, 64), 64: (64, 64), 128: (64, 64), 256: (64, 64), 512: (16, 32)}
SHARED_PROGRAMS, LEAST_STRETCH, COPY_FROM = 1056, 128, 3

LEAST_LIST_BYTES, MOST_LIST_BYTES, MOST_POSITIONS = 16 << 20, 1 << 30, 1 << 16

RECE_FORWARD: Tiles = {32: (64, 64), 64: (64, 64), 128: (64, 64), 256: (64, 64), 512: (64, 32)}
RECE_DENSE_FORWARD: Tiles = {32: (64, 128), 64: (64, 128), 128: (64, 64), 256: (64, 64), 512: (64, 32)}
RECE_DENSE_BACKWARD: Tiles = {32: (64, 64), 64: (64, 128), 128: (64, 64), 256: (64, 64), 512: (64, 32)}
RECE_PROGRAMS, RECE_MOST_STRETCHES, RECE_DENSE_PROGRAMS, RECE_MOST_DENSE_STRETCHES = 800, 16, 2112, 64
RECE_WORDS, RECE_ROOM, RECE_BEHIND = 16, 300 * 2**20, 128
RECE_SORTED_TOGETHER, RECE_SORT_BYTES = 1 << 21, 28

TOP: Tiles = {32: (64, 64), 64: (64, 64), 128: (64, 64), 256: (64, 64), 512: (32, 64)}
TOP_GROUPS_PER_K, TOP_MOST_GROUPS = 8, 2**20
TOP_WAVES = {128: 396, 256: 264, 512: 132}
SCE_PROGRAMS = 1056
MIX_SHARES, MIX_CENTRES, MIX_ROWS = 64, 64, 32


def up(n: int, block: int) -> int:
    return -(-n // block) * block


def power_of_2(n: int) -> int:
    return max(16, 1 << (n - 1).bit_length())


def row_block(width: int) -> int:
    return max(1, min(64, 4096 // power_of_2(width)))


def pick(tiles: Tiles, width: int) -> tuple[int, int]:
    """The tile of the least width that holds `width` columns."""
    needed = power_of_2(width)
    return tiles[min((one for one in tiles if one >= needed), default=max(tiles))]


class CePlan(NamedTuple):
    width: int
    n_padded: int
    v_padded: int
    stretches: int
    row_stretches: int


def cross_entropy(N: int, V: int, D: int) -> CePlan:
    (rows, columns), (back_rows, back_columns) = pick(CE_FORWARD, D), pick(CE_BACKWARD, D)
    width = up(D, 16)
    n_padded = up(N, max(rows, back_rows, row_block(D)))
    n_tiles = -(-V // columns)
    room = (V * D + CE_ROOM) // (n_padded * width)
    stretches = max(1, min(-(-CE_PROGRAMS // (n_padded // rows)), room, n_tiles, CE_MOST_STRETCHES))
    n_blocks = n_padded // back_rows
    wanted = -(-CE_BACKWARD_PROGRAMS // -(-V // back_columns))
    row_stretches = max(1, min(wanted, CE_ROOM // (V * D), n_blocks))
    return CePlan(
        width,
        n_padded,
        up(V, max(columns, back_columns, row_block(D))),
        -(-n_tiles // -(-n_tiles // stretches)),
        -(-n_blocks // -(-n_blocks // row_stretches)),
    )


class SharedPlan(NamedTuple):
    programs: int
    places: int
    """Positions, with those that fill programs up."""
    copied: bool


def shared(N: int, V: int, D: int, G: int, K: int, ragged: bool) -> SharedPlan:
    rows, columns = pick(SHARED_FORWARD, D)[0], pick(SHARED_BACKWARD, D)[1]
    most = -(-N // G)
    length = up(max(LEAST_STRETCH, rows, -(-N // -(-SHARED_PROGRAMS // -(-K // columns)))), rows)
    programs = N // rows + G if ragged else G * -(-most // rows)
    stretches = N // length + G if ragged else G * -(-most // length)
    return SharedPlan(programs, programs * rows, K * (programs + stretches) > COPY_FROM * V)


def list_bytes(V: int, D: int) -> int:
    return min(MOST_LIST_BYTES, max(LEAST_LIST_BYTES, V * D * 4 // 8))


def is_dense(rounds: int, n_chunks: int, reach: int) -> bool:
    share = min(1.0, (2 * reach + 2) / n_chunks)
    walked = rounds * share * (3.2 + 0.15 * rounds if rounds <= 17 else 4.0 + 0.37 * rounds)
    return walked > 1.27 + 0.0108 * rounds


class DensePlan(NamedTuple):
    block: int
    """Positions of one."""
    stretches: int


def rece_sorted_together(n_all: int, V: int, D: int, rounds: int, n_buckets: int) -> int:
    """Rounds that one sort takes."""
    fits = min(RECE_SORTED_TOGETHER // n_all, (1 << 15) // (2 * n_buckets + 1), 4 * V * D // (RECE_SORT_BYTES * n_all))
    return max(1, min(rounds, fits))


def rece_dense(N: int, V: int, D: int, rounds: int, n_chunks: int) -> DensePlan:
    (rows, columns), back_columns = pick(RECE_DENSE_FORWARD, D), pick(RECE_DENSE_BACKWARD, D)[1]
    group = 32 * RECE_WORDS
    unit = max(group, 64, rows, back_columns)
    most = RECE_ROOM // (4 * RECE_WORDS * (V + rounds * n_chunks)) * group // unit
    n = max(1, min(most, -(-N // unit))) * unit
    return DensePlan(n, max(1, min(RECE_DENSE_PROGRAMS // (n // rows), RECE_MOST_DENSE_STRETCHES, -(-V // columns))))


def groups_of_top(M: int, n_centres: int, k: int, D: int) -> int:
    """Groups of the M vectors, of each centre."""
    rows, columns = pick(TOP, D)
    wave = max(1, TOP_WAVES[min(width for width in TOP_WAVES if width >= D)] // -(-n_centres // rows))
    needed, tiles = -(-TOP_GROUPS_PER_K * k // columns), -(-M // columns)
    wanted = min(up(needed, wave), max(needed, -(-tiles // 16)))
    return min(wanted, TOP_MOST_GROUPS // columns, tiles) * columns
