"""RECE when its rounds together reach most pairs: every pair is scored once, and a bit says whether it counts.

    near[i, j] = some round has |chunk(x_i) - chunk(w_j)| <= reach

A test of every pair in every round would cost more than all products. Instead, for a block of positions, a look-up
table holds for each (round, chunk) the bits of the positions that see that chunk; an item's bits are the disjunction of
one entry a round, 32 tests a word. The bits of a block (V / 8 bytes a position) lie in memory word by word; forward and
backward pass read them beside the products they make, and the block after takes their place.

Tiling as in exact cross-entropy: 64 positions over stretches of the catalog, 64 items over the block's positions; one
tile serves both products. Float32 accumulation; the items' gradient grows block by block through plain loads and
stores. Deterministic.
"""

from __future__ import annotations

import triton
import triton.language as tl

from seqrec.kernels.rece_kernels import LOG2E
from seqrec.kernels.rece_tables import real_rows


@triton.jit(do_not_specialize=["n_rows", "n_chunks", "reach", "columns", "first_row"])
def look_up_table(
    table, chunk, count, n_rows, n_chunks, reach, columns, first_row,
    WORDS: tl.constexpr, CHUNKS: tl.constexpr, COUNTED: tl.constexpr,
):  # fmt: skip
    """(groups, R, n_chunks, WORDS): of 32 positions a bit each, whether they see the chunk in the round."""
    number = tl.program_id(0)
    word = tl.program_id(1)
    bit = tl.arange(0, 32)
    i = first_row + word * 32 + bit
    own = tl.load(chunk + i.to(tl.int64) * columns + number, mask=i < n_rows, other=0).to(tl.int32)
    # Spare positions see nothing.
    own = tl.where(i < real_rows(count, n_rows, COUNTED), own, -0x10000)
    rounds = tl.num_programs(0)
    at = ((word // WORDS) * rounds + number).to(tl.int64) * n_chunks * WORDS + word % WORDS
    for start in range(0, n_chunks, CHUNKS):
        c = start + tl.arange(0, CHUNKS)
        sees = tl.abs(own[None, :] - c[:, None]) <= reach
        bits = tl.sum(tl.where(sees, (1 << bit)[None, :], 0), 1)
        tl.store(table + at + c * WORDS, bits, mask=c < n_chunks)


@triton.jit(do_not_specialize=["n_rows", "n_items", "n_chunks", "columns", "rounds"])
def collect(
    bits, table, chunk, n_rows, n_items, n_chunks, columns, rounds, WORDS: tl.constexpr, ITEMS: tl.constexpr
):  # fmt: skip
    """(words of the block, V): near. `chunk`: two rounds a word."""
    j = tl.program_id(0) * ITEMS + tl.arange(0, ITEMS)
    group = tl.program_id(1)
    word = tl.arange(0, WORDS)
    inside = j < n_items
    place = chunk + (n_rows + j).to(tl.int64) * (columns // 2)
    found = tl.zeros((ITEMS, WORDS), tl.int32)
    entries = table + group.to(tl.int64) * rounds * n_chunks * WORDS
    for pair in range(0, rounds // 2):
        c = tl.load(place + pair, mask=inside, other=0)
        low = (2 * pair * n_chunks + (c & 0xFFFF)) * WORDS
        high = ((2 * pair + 1) * n_chunks + (c >> 16)) * WORDS
        found = found | tl.load(entries + low[:, None] + word[None, :])
        found = found | tl.load(entries + high[:, None] + word[None, :])
    if rounds % 2 == 1:
        c = tl.load(place + rounds // 2, mask=inside, other=0) & 0xFFFF
        found = found | tl.load(entries + (((rounds - 1) * n_chunks + c) * WORDS)[:, None] + word[None, :])
    out = bits + (group * WORDS + word).to(tl.int64)[None, :] * n_items + j[:, None]
    tl.store(out, found, mask=inside[:, None])


@triton.jit(do_not_specialize=["n_rows", "n_items", "first_row", "n_block", "width"])
def forward(
    low, bits, largest, mass, mixed, more_mixed, n_rows, n_items, first_row, n_block, width,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    MIX: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """A stretch's share of the maximum (base 2), sum and mixed items of a block's positions."""
    tl.static_assert(ROWS <= 64, "two words of bits")
    stretch = tl.program_id(1)
    in_block = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = (first_row + in_block).to(tl.int64)
    inside = (in_block < n_block) & (row < n_rows)
    bit = in_block % 64
    first_word = tl.program_id(0) * ROWS // 64 * 2
    in_low = tl.where(bit < 32, 1 << (bit % 32), 0)
    in_high = tl.where(bit < 32, 0, 1 << (bit % 32))
    d = tl.arange(0, BLOCK_D)
    wide = d < D
    x = tl.load(low + row[:, None] * D + d[None, :], mask=inside[:, None] & wide[None, :], other=0.0)
    bits += first_word.to(tl.int64) * n_items
    begin = stretch * width
    m = tl.full((ROWS,), -1.0e30, tl.float32)
    l = tl.zeros((ROWS,), tl.float32)  # noqa: E741
    mix = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for start in range(begin, tl.minimum(begin + width, n_items), COLUMNS):
        j = start + tl.arange(0, COLUMNS)
        there = j < n_items
        w = tl.load(
            low + (n_rows + j).to(tl.int64)[:, None] * D + d[None, :], mask=there[:, None] & wide[None, :], other=0.0
        )
        of_low = tl.load(bits + j, mask=there, other=0)
        of_high = tl.load(bits + n_items + j, mask=there, other=0)
        s = tl.dot(x, tl.trans(w), input_precision="ieee" if EXACT else "tf32")
        keep = ((of_low[None, :] & in_low[:, None]) | (of_high[None, :] & in_high[:, None])) != 0
        s = tl.where(keep, s * LOG2E, float("-inf"))
        higher = tl.maximum(m, tl.max(s, 1))
        p = tl.exp2(s - higher[:, None])
        faded = tl.exp2(m - higher)
        l = l * faded + tl.sum(p, 1)  # noqa: E741
        if MIX:
            mix = tl.dot(p.to(w.dtype), w, mix * faded[:, None], input_precision="ieee" if EXACT else "tf32")
        m = higher
    at = stretch * n_block + in_block
    tl.store(largest + at, m, mask=inside)
    tl.store(mass + at, l, mask=inside)
    if MIX:
        out = mixed + row[:, None] * D + d[None, :]
        if stretch > 0:
            out = more_mixed + (at - n_block).to(tl.int64)[:, None] * D + d[None, :]
        tl.store(out, mix, mask=inside[:, None] & wide[None, :])


@triton.jit(do_not_specialize=["n_rows", "n_items", "first_64", "n_block"])
def backward(
    low, bits, shifted, heaviest, count, to_items, n_rows, n_items, first_64, n_block,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, LATER: tl.constexpr,
    COUNTED: tl.constexpr, WEIGHTED: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """A block's share of the items' gradient: stored by the first block, added by later ones."""
    first_row = first_64 * 64  # a multiple that the compiler sees: loads are wide
    tl.static_assert(COLUMNS <= 64, "two words of bits")
    j = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = j < n_items
    d = tl.arange(0, BLOCK_D)
    wide = d < D
    mask = inside[:, None] & wide[None, :]
    w = tl.load(low + (n_rows + j).to(tl.int64)[:, None] * D + d[None, :], mask=mask, other=0.0)
    gradient = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for start in range(0, tl.minimum(n_block, n_rows - first_row), COLUMNS):
        in_block = start + tl.arange(0, COLUMNS)
        bit = in_block % 64
        in_low = tl.where(bit < 32, 1 << (bit % 32), 0)
        in_high = tl.where(bit < 32, 0, 1 << (bit % 32))
        row = first_row + in_block
        there = row < n_rows
        lse = tl.load(shifted + row)  # padded; beyond the last position no bit is set
        x = tl.load(
            low + row.to(tl.int64)[:, None] * D + d[None, :], mask=there[:, None] & wide[None, :], other=0.0
        )  # fmt: skip
        place = bits + tl.cast(start // 64 * 2, tl.int64) * n_items + j
        of_low = tl.load(place, mask=inside, other=0)
        of_high = tl.load(place + n_items, mask=inside, other=0)
        s = tl.dot(w, tl.trans(x), input_precision="ieee" if EXACT else "tf32")
        keep = ((of_low[:, None] & in_low[None, :]) | (of_high[:, None] & in_high[None, :])) != 0
        p = tl.where(keep, tl.exp2(s * LOG2E - lse[None, :]), 0.0)
        gradient = tl.dot(p.to(x.dtype), x, gradient, input_precision="ieee" if EXACT else "tf32")
    scale = 1.0 / tl.maximum(real_rows(count, n_rows, COUNTED), 1).to(tl.float32)
    if WEIGHTED:
        scale = tl.load(heaviest).to(tl.float32)
    gradient = gradient * (scale * 0.00006103515625)  # 2^-14
    out = to_items + j.to(tl.int64)[:, None] * D + d[None, :]
    if LATER:
        gradient += tl.load(out, mask=mask, other=0.0)
    tl.store(out, gradient, mask=mask)
