"""Which pairs of a tile count in a round of RECE: those in reach that no earlier round had in reach.

Chunks of earlier rounds lie in this round's order, four 16-bit numbers a 64-bit word, words one array after another. A
pair's distance to the nearest earlier hit is the minimum over rounds of (reach + c - c') mod 2^16, at most 2 reach if
there was one: an addition and a minimum of two halves at a time, one instruction for two rounds on Hopper. Arrays are
padded and tiles start at multiples of 16, so that loads are wide and need no mask.
"""

from __future__ import annotations

import triton
import triton.language as tl

NEVER = tl.constexpr(0x8000)
"""A half that no chunk comes near to."""
MANY = tl.constexpr(-1)
"""Of 32-bit words: as many as an argument says. 0, 1, 2, 4 and 8 are unrolled, and their loads run ahead."""


@triton.jit
def _pair(chunk, place, word, number, inside):
    """Chunks of rounds 2 word and 2 word + 1 in one number; what no round before `number` fills is 0."""
    found = tl.load(chunk + place + tl.minimum(word, (number - 1) // 2), mask=inside, other=0)
    return tl.where(2 * word + 1 < number, found, tl.where(2 * word < number, found & 0xFFFF, 0))


@triton.jit(do_not_specialize=["n_rows", "n_items", "number", "columns", "n_long"])
def pack(words, order, chunk, n_rows, n_items, number, columns, n_long, BLOCK: tl.constexpr):
    """(n_long, stride) int64: the chunks of rounds before `number` in its order; items begin at a multiple of 16."""
    n_all = n_rows + n_items
    t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = t < n_all
    vector = tl.load(order + number.to(tl.int64) * n_all + t, mask=inside, other=0).to(tl.int64)
    at = tl.where(t < n_rows, t, t - n_rows + items_at(n_rows))
    place = vector * (columns // 2)
    for k in range(0, n_long):
        low = _pair(chunk, place, 2 * k, number, inside).to(tl.int64)
        high = _pair(chunk, place, 2 * k + 1, number, inside).to(tl.int64)
        tl.store(words + tl.cast(k, tl.int64) * stride(n_rows, n_items) + at, (high << 32) | low, mask=inside)


@triton.jit
def items_at(n_rows):
    """Where items begin in an array of the words of both."""
    return tl.cdiv(n_rows, 16) * 16


@triton.jit
def stride(n_rows, n_items):
    """Numbers in such an array: the last tile may begin before the last vector, and be 512 wide."""
    return (tl.cdiv(n_rows, 16) + tl.cdiv(n_items, 16) + 32) * 16


@triton.jit(do_not_specialize=["n_rows", "n_all", "number"])
def permute(sorted_numbers, numbers, order, n_rows, n_all, number, BLOCK: tl.constexpr):
    """(n_rows + 512,): a number of each position, in the order of a round."""
    t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(order + number.to(tl.int64) * n_all + t, mask=t < n_rows, other=0)
    tl.store(sorted_numbers + t, tl.load(numbers + row, mask=t < n_rows, other=0.0), mask=t < n_rows)


@triton.jit
def _away(word, k, number, reach):
    """Two halves reach - c, of the resident vectors' 32-bit word k."""
    low = tl.where(2 * k < number, (reach - (word & 0xFFFF)) & 0xFFFF, NEVER)
    high = tl.where(2 * k + 1 < number, (reach - ((word >> 16) & 0xFFFF)) & 0xFFFF, NEVER)
    return low | (high << 16)


@triton.jit
def _nearest(nearest, away, word, PACKED: tl.constexpr):
    """The minimum over two more rounds, of each pair."""
    if PACKED:
        return tl.inline_asm_elementwise(
            "{ .reg .b32 sum; add.u16x2 sum, $1, $2; min.u16x2 $0, sum, $3; }",
            "=r,r,r,r",
            [away[:, None], word[None, :], nearest],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
    low = ((away & 0xFFFF)[:, None] + (word & 0xFFFF)[None, :]) & 0xFFFF
    high = (((away >> 16) & 0xFFFF)[:, None] + ((word >> 16) & 0xFFFF)[None, :]) & 0xFFFF
    return tl.minimum(nearest, tl.minimum(low, high))


@triton.jit
def _unseen(nearest, reach, PACKED: tl.constexpr):
    """Whether no earlier round had the pair within reach."""
    if PACKED:
        # Bit 15 of a half: it is less than 2 reach + 1. A borrow can only come from a half that is.
        return ((nearest - (2 * reach + 1) * 0x10001) & ~nearest & -2147450880) == 0
    return nearest > 2 * reach


@triton.jit
def counted_pairs(
    first, end, j, resident, streamed, away, length, number, reach, n_long,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WORDS: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """Which pairs of a tile count. resident, streamed: pointers to the first words of either; length: the stride."""
    keep = (j[None, :] >= first[:, None]) & (j[None, :] < end[:, None])
    if WORDS != 0:
        nearest = tl.full((ROWS, COLUMNS), -1 if PACKED else 0xFFFF, tl.int32)
        for k in tl.static_range((WORDS + 1) // 2):
            long = tl.load(streamed + length.to(tl.int64) * k)
            nearest = _nearest(nearest, away[2 * k + 1], long.to(tl.int32), PACKED)
            if 2 * k + 1 < WORDS:
                nearest = _nearest(nearest, away[2 * k + 2], (long >> 32).to(tl.int32), PACKED)
        if WORDS < 0:
            for k in range(0, n_long):
                own = tl.load(resident + tl.cast(k, tl.int64) * length)
                long = tl.load(streamed + tl.cast(k, tl.int64) * length)
                low = _away(own.to(tl.int32), 2 * k, number, reach)
                nearest = _nearest(nearest, low, long.to(tl.int32), PACKED)
                high = _away((own >> 32).to(tl.int32), 2 * k + 1, number, reach)
                nearest = _nearest(nearest, high, (long >> 32).to(tl.int32), PACKED)
        keep = keep & _unseen(nearest, reach, PACKED)
    return keep


@triton.jit
def residents(resident, length, number, reach, WORDS: tl.constexpr):
    """The words of resident vectors that an unrolled loop keeps, behind a number that is none."""
    away = (number,)
    for k in tl.static_range((WORDS + 1) // 2):
        long = tl.load(resident + length.to(tl.int64) * k)
        low = _away(long.to(tl.int32), 2 * k, number, reach)
        high = _away((long >> 32).to(tl.int32), 2 * k + 1, number, reach)
        away = away + (low, high)  # type: ignore[assignment]  # noqa: RUF005
    return away
