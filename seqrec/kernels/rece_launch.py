"""How `rece` cuts its work up, and the order of its launches."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import torch
import triton
from torch import Tensor

from seqrec.kernels import rece_dense, rece_kernels as kernels, rece_pairs
from seqrec.kernels.launch import pointer, power_of_2
from seqrec.kernels.rece_tables import Tables
from seqrec.kernels.tiles import Table, Tile, pick

TILES: dict[str, Table] = {
    # rows: of positions, columns: of items.
    "forward": {
        8: {64: Tile(64, 64, 4, 3), 128: Tile(64, 32, 4, 2), 256: Tile(32, 32, 4, 2), 512: Tile(16, 32, 4, 2)},
        9: {
            32: Tile(64, 64, 4, 3),
            64: Tile(64, 64, 4, 3, 128),
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
            64: Tile(64, 64, 4, 3, 128),
            128: Tile(64, 64, 4, 3),
            256: Tile(64, 64, 4, 2),
            512: Tile(64, 32, 8, 2),
        },
    },
    # As the first two, of pairs that are all scored: 16 to 128 positions and items.
    "dense forward": {
        8: {64: Tile(64, 64, 4, 3), 128: Tile(64, 32, 4, 2), 256: Tile(32, 32, 4, 2), 512: Tile(16, 32, 4, 2)},
        9: {
            32: Tile(64, 128, 4, 3),
            64: Tile(64, 128, 4, 2, 128),
            128: Tile(64, 64, 4, 3),
            256: Tile(64, 64, 8, 3),
            512: Tile(64, 32, 8, 2),
        },
    },
    "dense backward": {
        8: {64: Tile(64, 64, 4, 3), 128: Tile(64, 32, 4, 2), 256: Tile(32, 32, 4, 2), 512: Tile(16, 32, 4, 2)},
        9: {
            32: Tile(64, 64, 4, 3),
            64: Tile(64, 128, 4, 2, 128),
            128: Tile(64, 64, 4, 3),
            256: Tile(64, 64, 8, 2),
            512: Tile(64, 32, 8, 2),
        },
    },
}

PROGRAMS = 800
"""Of the forward pass at least, if stretches of the windows can make so many: fixed, so that sums do not depend on the
card."""

MOST_STRETCHES = 16

MOST_DENSE_STRETCHES = 64

WORDS = 16
"""Of 32 positions each, that an entry of the look-up table holds: 64 bytes, so that a round's entries of a few hundred
chunks stay in the first cache."""

COLLECTED = 256
"""Items whose bits a program collects."""

COLLECTORS = Tile(COLLECTED, 32 * WORDS, 4, 1, 64)
"""Programs that together keep the bits of 2,048 items of a multiprocessor in registers: so many items use what the
first cache brings of a round's entries."""

DENSE_PROGRAMS = 2112
"""As PROGRAMS, of pairs that are all scored: four whole turns of the largest card."""

ROOM = 300 * 2**20
"""Bytes that the bits of a block of positions may take; 512 positions are a block at least. Each block reads and
writes the items' gradient once."""

SORTED_FROM = 2
"""Rounds from which on targets are sorted, so that no item is added to by two programs: of one round a sort would be a
tenth of the time at a few hundred thousand items."""

UNROLLED = {0: 0, 1: 1, 2: 2, 3: 4, 4: 4, 5: 8, 6: 8, 7: 8, 8: 8}
"""32-bit words of earlier chunks -> the number a kernel unrolls; any other number is one kernel with a loop."""


def _packed(device: torch.device) -> bool:
    """Whether the matrix of distances may be computed two halves at a time."""
    return _compiled(device) and torch.cuda.get_device_capability(device) >= (9, 0)


def _compiled(device: torch.device) -> bool:
    """Whether kernels run as machine code, not in the interpreter."""
    return device.type == "cuda" and os.environ.get("TRITON_INTERPRET") != "1"


def is_dense(rounds: int, n_chunks: int, reach: int) -> bool:
    """Whether scoring every pair once takes less time than walking over each round's windows.

    Both in units of exact cross-entropy. A window costs its pairs, a chunk more for tiles that cross borders, and each
    earlier round a test; scoring everything costs the masks of the products and of each round.
    """
    share = min(1.0, (2 * reach + 2) / n_chunks)
    # Fitted to an H100 at a million items of 64 columns: windows of 1 to 8, 16 and 32 rounds, everything at 16 to 128.
    walked = rounds * share * (3.2 + 0.15 * rounds if rounds <= 17 else 4.0 + 0.37 * rounds)
    return walked > 1.27 + 0.0108 * rounds


@dataclass(frozen=True, eq=False)
class Step:
    """What both paths know and do."""

    low: Tensor
    tables: Tables
    hidden: Tensor
    items: Tensor
    targets: Tensor
    weights: Tensor | None
    reach: int
    count: Tensor | None
    gradients: bool

    def run(self, dense: bool) -> tuple[Tensor, Tensor, Tensor]:
        """(value, to_hidden, to_items); without gradients those are (0, D)."""
        N, D = self.hidden.shape
        losses, at_target, shifted = self.new(N), self.new(N), self.new(N + 64)
        to_hidden = self.new(N if self.gradients else 0, D)
        to_items = self.new(0, D)
        heaviest = self.low if self.weights is None else self.weights.max()
        walk = _by_blocks if dense else _by_rounds
        to_items = walk(self, to_hidden, losses, shifted, at_target, heaviest)
        if self.gradients and self.tables.rounds < SORTED_FROM:
            block = self.block()
            kernels.add_targets[(triton.cdiv(N, block),)](
                self.hidden, self.targets, at_target, to_items, N, **self.width(), ROWS=block
            )
        elif self.gradients:
            # What a target that is no item becomes in 32 bits does not matter: its share is 0.
            keys, order = self.targets.int().sort(stable=True)
            kernels.add_sorted_targets[(triton.cdiv(N, 16),)](
                self.hidden, keys, order, at_target, to_items, N, len(self.items), **self.width(), ROWS=16
            )
        return losses.sum(), to_hidden, to_items

    def new(self, *shape: int) -> Tensor:
        """An allocation of its own: for addresses that are not multiples of 16 a kernel is compiled once more."""
        made: Tensor = self.low.new_empty(shape, dtype=torch.float32)
        return made

    def width(self) -> dict[str, int]:
        D = self.hidden.shape[1]
        return {"D": D, "BLOCK_D": power_of_2(D)}

    def block(self) -> int:
        """Positions that a program finishes at once."""
        return max(1, min(32, 4096 // self.width()["BLOCK_D"]))

    def real(self) -> Tensor:
        return pointer(self.count, self.low)

    def pick(self, kind: str) -> Tile:
        return pick(TILES[kind], self.hidden.shape[1], self.low.device, self.low.dtype)

    def flags(self) -> dict[str, bool]:
        return {"COUNTED": self.count is not None, "WEIGHTED": self.weights is not None}

    def finish(
        self, state: tuple[Tensor, ...], results: tuple[Tensor, ...], first: int, n: int, heaviest: Tensor
    ) -> None:
        """state: largest, mass, to_hidden, what further stretches mixed; results: losses, shifted, at_target."""
        N, V, block = len(self.hidden), len(self.items), self.block()
        chunk = self.tables.chunk
        kernels.finish[(triton.cdiv(n, block),)](
            self.low, self.items, self.targets, pointer(self.weights, self.low), heaviest, chunk, self.real(), *state,
            *results, N, V, self.reach, self.tables.rounds, *chunk.stride(), first, n, len(state[0]),
            **self.width(), ROWS=block, **self.flags(), MIX=self.gradients,
        )  # fmt: skip


def _by_rounds(
    step: Step, to_hidden: Tensor, losses: Tensor, shifted: Tensor, at_target: Tensor, heaviest: Tensor
) -> Tensor:
    """Each round's windows, one after another."""
    low, tables, reach = step.low, step.tables, step.reach
    (N, D), V, rounds = step.hidden.shape, len(step.items), tables.rounds
    n_all = N + V
    order, chunk = tables.order, tables.chunk.view(torch.int32)
    of_rows, of_items = step.pick("forward"), step.pick("backward")
    tiles = triton.cdiv(N, of_rows.rows)
    stretches = max(1, min(triton.cdiv(PROGRAMS, tiles), MOST_STRETCHES))
    window = order.new_empty((2, n_all))
    kernels.windows[(triton.cdiv(n_all, 1024),)](
        window, step.real(), N, V, tables.n_chunks, reach, BLOCK=1024, COUNTED=step.count is not None
    )
    length = 16 * (triton.cdiv(N, 16) + triton.cdiv(V, 16) + 32)
    n_longs = max(triton.cdiv(rounds - 1, 4), 4 if rounds > 9 else 0)
    words = order.new_empty((n_longs, length), dtype=torch.int64)
    largest, mass = step.new(stretches, N), step.new(stretches, N)
    more = step.new(stretches - 1, N, D) if step.gradients and stretches > 1 else to_hidden
    options = {**step.width(), "PACKED": _packed(low.device), "EXACT": low.dtype == torch.float32}

    def pack(number: int) -> tuple[int, int]:
        """Earlier chunks in this round's order: 64-bit words of them, and the 32-bit ones a kernel unrolls."""
        unrolled = UNROLLED.get(triton.cdiv(number, 2), -1)
        n_long = triton.cdiv(number, 4) if unrolled < 0 else triton.cdiv(unrolled, 2)
        if number:
            grid = (triton.cdiv(n_all, 256),)
            rece_pairs.pack[grid](words, order, chunk, N, V, number, tables.chunk.shape[1], n_long, BLOCK=256)
        return n_long, unrolled

    for number in range(rounds):
        n_long, unrolled = pack(number)
        kernels.forward[(tiles, stretches)](
            low, order, window, words, largest, mass, to_hidden, more, N, V, reach, number, n_long, **options,
            ROWS=of_rows.rows, COLUMNS=of_rows.columns, WORDS=unrolled, MIX=step.gradients,
            **_options(of_rows, unrolled),
        )  # fmt: skip
    step.finish((largest, mass, to_hidden, more), (losses, shifted, at_target), 0, N, heaviest)
    if not step.gradients:
        return step.new(0, D)
    del more, largest, mass
    to_items, sorted_lse = step.new(V, D), step.new(N + 512)
    for number in range(rounds):
        rece_pairs.permute[(triton.cdiv(N, 256),)](sorted_lse, shifted, order, N, n_all, number, BLOCK=256)
        n_long, unrolled = pack(number)
        kernels.backward[(triton.cdiv(V, of_items.rows),)](
            low, order, window, words, sorted_lse, heaviest, step.real(), to_items, N, V, reach, number, n_long,
            **options, ROWS=of_items.rows, COLUMNS=of_items.columns, WORDS=unrolled, **step.flags(),
            **_options(of_items, unrolled),
        )  # fmt: skip
    return to_items


def _options(tile: Tile, unrolled: int) -> dict[str, int]:
    """The kernel that loops over earlier rounds needs all its registers."""
    return (tile if unrolled >= 0 else replace(tile, registers=None)).options()


def _by_blocks(
    step: Step, to_hidden: Tensor, losses: Tensor, shifted: Tensor, at_target: Tensor, heaviest: Tensor
) -> Tensor:
    """Every pair once, a block of positions after another."""
    low, tables, counted = step.low, step.tables, step.count is not None
    (N, D), V, rounds = step.hidden.shape, len(step.items), tables.rounds
    chunk = tables.chunk.t().contiguous()
    length = triton.cdiv(V, 128)
    of_rows, of_items = step.pick("dense forward"), step.pick("dense backward")
    group = 32 * WORDS
    unit = max(group, 64, of_rows.rows, of_items.columns)  # powers of two: tiles end where blocks do
    most = ROOM // (4 * WORDS * (V + rounds * tables.n_chunks)) * group // unit
    n = max(1, min(most, triton.cdiv(N, unit))) * unit
    groups = n // group
    tiles = n // of_rows.rows
    stretches = max(1, min(DENSE_PROGRAMS // tiles, MOST_DENSE_STRETCHES, triton.cdiv(V, of_rows.columns)))
    stretch = triton.cdiv(triton.cdiv(V, stretches), of_rows.columns) * of_rows.columns
    table = low.new_empty((groups, rounds, tables.n_chunks, WORDS), dtype=torch.int32)
    bits = low.new_empty((groups * WORDS, 128 * length), dtype=torch.int32)
    largest, mass = step.new(stretches, n), step.new(stretches, n)
    more = step.new(stretches - 1, n, D) if step.gradients and stretches > 1 else to_hidden
    to_items = step.new(V if step.gradients else 0, D)
    options = {**step.width(), "EXACT": low.dtype == torch.float32, "COMPILED": _compiled(low.device)}
    for first in range(0, N, n):
        rest = min(n, triton.cdiv(N - first, unit) * unit)
        rece_dense.look_up_table[(rounds, groups * WORDS)](
            table, chunk, step.real(), N, V, tables.n_chunks, step.reach, first,
            WORDS=WORDS, CHUNKS=64, COUNTED=counted,
        )  # fmt: skip
        rece_dense.collect[(triton.cdiv(128 * length, COLLECTED), rest // group)](
            bits, table, chunk, N, V, length, tables.n_chunks, rounds,
            WORDS=WORDS, ITEMS=COLLECTED, **COLLECTORS.options(),
        )  # fmt: skip
        rece_dense.forward[(rest // of_rows.rows, stretches)](
            low, bits, largest, mass, to_hidden, more, N, V, length, first, n, stretch, **options,
            ROWS=of_rows.rows, COLUMNS=of_rows.columns, MIX=step.gradients, **of_rows.options(),
        )  # fmt: skip
        step.finish((largest, mass, to_hidden, more), (losses, shifted, at_target), first, n, heaviest)
        if step.gradients:
            rece_dense.backward[(triton.cdiv(V, of_items.rows),)](
                low, bits, shifted, heaviest, step.real(), to_items, N, V, length, first // 64, n, **options,
                ROWS=of_items.rows, COLUMNS=of_items.columns, LATER=first > 0, **step.flags(), **of_items.options(),
            )  # fmt: skip
    return to_items
