"""RECE when its rounds together reach most pairs: every pair is scored once, and a bit says whether it counts.

    near[i, j] = some round has |chunk(x_i) - chunk(w_j)| <= reach

A test of every pair in every round would cost more than all products. Instead, for a block of positions, a look-up
table holds for each (round, chunk) the bits of the positions that see that chunk; an item's bits are the disjunction of
one entry a round, 32 tests a word. The bits of a block (V / 8 bytes a position) lie in memory word by word; forward and
backward pass read them beside the products they make, and the block after takes their place.

Order of bits. A thread of the matrix units holds of a product rows g and g + 8 of every 16, and of every 8 columns a
pair, the number of the pair being its own (as g is): with positions 8 k + 2 q + e of 64 (k < 8, q < 4, e < 2),

    word q / 2, bit 16 (q % 2) + 2 k + e

has for an item all positions of a thread's columns at constant bits (backward: q is the thread's, k and e its
registers'), and for 16 rows of positions all of a warp's in half a word (forward: rows g + 8 h are k = g, e = h, and
the warp has q): one select and at most one test a score, and a word is loaded once for 16 or 2 of them.

Tiling as in exact cross-entropy: 64 positions over stretches of the catalog, 64 items over the block's positions; one
tile serves both products. Loops have no masks: rows of zeros and words of no bits lie behind the last ones. Float32
accumulation; the items' gradient grows block by block through plain loads and stores. Deterministic.
"""

from __future__ import annotations

import triton
import triton.language as tl

from seqrec.kernels.rece_kernels import LOG2E
from seqrec.kernels.rece_tables import real_rows


@triton.jit(do_not_specialize=["n_rows", "n_items", "n_chunks", "reach", "first_row"])
def look_up_table(
    table, chunk, count, n_rows, n_items, n_chunks, reach, first_row,
    WORDS: tl.constexpr, CHUNKS: tl.constexpr, COUNTED: tl.constexpr,
):  # fmt: skip
    """(groups, R, n_chunks, WORDS): of 32 positions a bit each, whether they see the chunk in the round."""
    number = tl.program_id(0)
    word = tl.program_id(1)
    bit = tl.arange(0, 32)
    i = first_row + place_of_bit(word, bit)
    of_round = chunk + number.to(tl.int64) * (n_rows + n_items)
    own = tl.load(of_round + i, mask=i < n_rows, other=0).to(tl.int32)
    # Spare positions see nothing.
    own = tl.where(i < real_rows(count, n_rows, COUNTED), own, -0x10000)
    rounds = tl.num_programs(0)
    at = ((word // WORDS) * rounds + number).to(tl.int64) * n_chunks * WORDS + word % WORDS
    for start in range(0, n_chunks, CHUNKS):
        c = start + tl.arange(0, CHUNKS)
        sees = tl.abs(own[None, :] - c[:, None]) <= reach
        bits = tl.sum(tl.where(sees, (1 << bit)[None, :], 0), 1)
        tl.store(table + at + c * WORDS, bits, mask=c < n_chunks)


@triton.jit(do_not_specialize=["n_rows", "n_items", "length", "n_chunks", "rounds"])
def collect(
    bits, table, chunk, n_rows, n_items, length, n_chunks, rounds,
    WORDS: tl.constexpr, ITEMS: tl.constexpr,
):  # fmt: skip
    """(words of the block, 128 length): near, and 0 beyond the last item. `chunk`: (rounds, N + V).

    Bound by the first cache, V R N / 8 bytes: programs that run together walk over the rounds together, so that the
    entries of a round or two stay there, and serve as many items as registers hold.
    """
    j = tl.program_id(0) * ITEMS + tl.arange(0, ITEMS)
    group = tl.program_id(1)
    word = tl.arange(0, WORDS)
    inside = j < n_items
    of_round = chunk + n_rows + j
    found = tl.zeros((ITEMS, WORDS), tl.int32)
    entries = table + group.to(tl.int64) * rounds * n_chunks * WORDS
    size = n_chunks * WORDS
    for number in range(0, rounds, 2):
        # Of an odd number the last one twice: that changes nothing.
        other = tl.minimum(number + 1, rounds - 1)
        a = tl.load(of_round + tl.cast(number, tl.int64) * (n_rows + n_items), mask=inside, other=0).to(tl.int32)
        b = tl.load(of_round + tl.cast(other, tl.int64) * (n_rows + n_items), mask=inside, other=0).to(tl.int32)
        low = (number * size + a * WORDS)[:, None] + word[None, :]
        high = (other * size + b * WORDS)[:, None] + word[None, :]
        found = found | tl.load(entries + low) | tl.load(entries + high)
    out = bits + (group * WORDS + word).to(tl.int64)[None, :] * (length * 128) + j[:, None]
    tl.store(out, tl.where(inside[:, None], found, 0), mask=(j < length * 128)[:, None])


@triton.jit
def place_of_bit(word, bit):
    """The position of a block that a bit stands for; the module's order of bits."""
    return word // 2 * 64 + bit // 2 % 8 * 8 + word % 2 * 4 + bit // 16 * 2 + bit % 2


@triton.jit
def _rows(low, row, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows of the table of both kinds. No mask: bits say which count, and the table has rows of zeros behind it."""
    d = tl.arange(0, BLOCK_D)
    place = low + row[:, None] * D + d[None, :]
    if D == BLOCK_D:
        found = tl.load(place)
    else:
        found = tl.load(place, mask=(d < D)[None, :], other=0.0)
    return found


@triton.jit
def _kept(s, word, bit, COMPILED: tl.constexpr):
    """Scores, minus infinity where a bit is not set."""
    if COMPILED:
        # The compiler would pack comparisons of a tile into words and unpack them again.
        return tl.inline_asm_elementwise(
            "{ .reg .b32 t; .reg .pred near; and.b32 t, $2, $3; setp.ne.b32 near, t, 0; "
            "selp.f32 $0, $1, 0fFF800000, near; }",
            "=f,f,r,r",
            [s, word, bit],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )
    return tl.where((word & bit) != 0, s, float("-inf"))


@triton.jit(do_not_specialize=["n_rows", "n_items", "length", "first_row", "n_block", "width"])
def forward(
    low, bits, largest, mass, mixed, more_mixed, n_rows, n_items, length, first_row, n_block, width,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    MIX: tl.constexpr, EXACT: tl.constexpr, COMPILED: tl.constexpr,
):  # fmt: skip
    """A stretch's share of the maximum (base 2), sum and mixed items of a block's positions."""
    SLICES: tl.constexpr = ROWS // 16  # of 16 rows, half a word each
    stretch = tl.program_id(1)
    half = tl.program_id(0) * SLICES + tl.arange(0, ROWS) // 16
    in_block = place_of_bit(half // 2, half % 2 * 16 + tl.arange(0, ROWS) % 8 * 2 + tl.arange(0, ROWS) // 8 % 2)
    row = (first_row + in_block).to(tl.int64)
    inside = (in_block < n_block) & (row < n_rows)
    of_slice = tl.program_id(0) * SLICES + tl.arange(0, SLICES)
    away = (of_slice % 2 * 16)[:, None, None] + tl.arange(0, 2)[None, :, None] + tl.arange(0, 8)[None, None, :] * 2
    bit = (1 << away)[:, :, :, None]
    d = tl.arange(0, BLOCK_D)
    wide = d < D
    x = tl.load(low + row[:, None] * D + d[None, :], mask=inside[:, None] & wide[None, :], other=0.0)
    bits += (of_slice // 2).to(tl.int64)[:, None] * (length * 128)
    begin = stretch * width
    m = tl.full((ROWS,), -1.0e30, tl.float32)
    summed = tl.zeros((ROWS,), tl.float32)
    mix = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for start in range(begin, tl.minimum(begin + width, n_items), COLUMNS):  # width: a multiple of COLUMNS
        j = start + tl.arange(0, COLUMNS)
        w = _rows(low, (n_rows + j).to(tl.int64), D, BLOCK_D)
        word = tl.load(bits + j[None, :])
        s = tl.dot(x, tl.trans(w), input_precision="ieee" if EXACT else "tf32")
        s = _kept(tl.reshape(s, (SLICES, 2, 8, COLUMNS)), word[:, None, None, :], bit, COMPILED)
        s = tl.reshape(s, (ROWS, COLUMNS))
        higher = tl.maximum(m, tl.max(s, 1) * LOG2E)
        p = tl.exp2(tl.fma(s, LOG2E, -higher[:, None]))
        faded = tl.exp2(m - higher)
        summed = summed * faded + tl.sum(p, 1)
        if MIX:
            mix = tl.dot(p.to(w.dtype), w, mix * faded[:, None], input_precision="ieee" if EXACT else "tf32")
        m = higher
    at = stretch * n_block + in_block
    tl.store(largest + at, m, mask=inside)
    tl.store(mass + at, summed, mask=inside)
    if MIX:
        out = mixed + row[:, None] * D + d[None, :]
        if stretch > 0:
            out = more_mixed + (at - n_block).to(tl.int64)[:, None] * D + d[None, :]
        tl.store(out, mix, mask=inside[:, None] & wide[None, :])


@triton.jit(do_not_specialize=["n_rows", "n_items", "length", "first_64", "n_block"])
def backward(
    low, bits, shifted, heaviest, count, to_items, n_rows, n_items, length, first_64, n_block,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, LATER: tl.constexpr,
    COUNTED: tl.constexpr, WEIGHTED: tl.constexpr, EXACT: tl.constexpr, COMPILED: tl.constexpr,
):  # fmt: skip
    """A block's share of the items' gradient: stored by the first block, added by later ones."""
    GROUPS: tl.constexpr = (COLUMNS + 63) // 64  # of two words
    EIGHTS: tl.constexpr = COLUMNS // GROUPS // 8
    first_row = first_64 * 64  # a multiple that the compiler sees: loads are wide
    j = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = j < n_items
    d = tl.arange(0, BLOCK_D)
    wide = d < D
    mask = inside[:, None] & wide[None, :]
    w = _rows(low, (n_rows + j).to(tl.int64), D, BLOCK_D)
    quarter = tl.arange(0, 4 * GROUPS)
    plane = length.to(tl.int64) * 128
    place = bits + (quarter // 2).to(tl.int64)[None, :] * plane + j[:, None]
    bit = 1 << (tl.arange(0, EIGHTS)[:, None] * 2 + tl.arange(0, 2)[None, :])
    gradient = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for start in range(0, tl.minimum(n_block, n_rows - first_row), COLUMNS):
        row = first_row + start + tl.arange(0, COLUMNS)
        lse = tl.load(shifted + row, mask=row < n_rows, other=0.0)
        x = _rows(low, row.to(tl.int64), D, BLOCK_D)
        word = tl.load(place + tl.cast(start // 64 * 2, tl.int64) * plane)
        word = tl.reshape(word >> (quarter % 2 * 16 + start % 64 // 4)[None, :], (ROWS, GROUPS, 4))
        s = tl.dot(w, tl.trans(x), input_precision="ieee" if EXACT else "tf32")
        s = tl.reshape(s, (ROWS, GROUPS, EIGHTS, 4, 2))
        s = _kept(s, word[:, :, None, :, None], bit[None, None, :, None, :], COMPILED)
        p = tl.exp2(tl.reshape(s, (ROWS, COLUMNS)) * LOG2E - lse[None, :])
        gradient = tl.dot(p.to(x.dtype), x, gradient, input_precision="ieee" if EXACT else "tf32")
    scale = 1.0 / tl.maximum(real_rows(count, n_rows, COUNTED), 1).to(tl.float32)
    if WEIGHTED:
        scale = tl.load(heaviest).to(tl.float32)
    gradient = gradient * (scale * 0.00006103515625)  # 2^-14
    out = to_items + j.to(tl.int64)[:, None] * D + d[None, :]
    if LATER:
        gradient += tl.load(out, mask=mask, other=0.0)
    tl.store(out, gradient, mask=mask)
