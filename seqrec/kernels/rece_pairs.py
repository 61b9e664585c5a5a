"""Which pairs of a tile count in a round of RECE: those in reach that no earlier round had in reach.

A pair counts in the first round that has it within reach. Chunks of two earlier rounds are the halves of
one word, and a pair's distance to the nearest earlier hit is min over rounds of (reach + c - c') mod 2^16, at most
2 reach if there was one: an addition and a minimum of two halves each for two rounds, one instruction on Hopper.
The chunks of earlier rounds lie in this round's order, one word after another: loads are stretches of memory.
"""

from __future__ import annotations

import triton
import triton.language as tl

NEVER = tl.constexpr(0x8000)
"""A half that no chunk comes near to."""
MANY = tl.constexpr(-1)
"""Of words: as many as an argument says. 0, 1, 2 and 4 words are unrolled, and their loads run ahead."""


@triton.jit(do_not_specialize=["n_all", "number", "columns", "n_words"])
def pack(words, order, chunk, n_all, number, columns, n_words, BLOCK: tl.constexpr):
    """(n_words, N + V): the chunks of rounds before `number` in its order, two a word; what no round fills is 0."""
    t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    vector = tl.load(order + number.to(tl.int64) * n_all + t, mask=t < n_all, other=0).to(tl.int64)
    for k in range(0, n_words):
        word = tl.load(chunk + vector * (columns // 2) + tl.minimum(k, (number - 1) // 2), mask=t < n_all, other=0)
        word = tl.where(2 * k + 1 < number, word, tl.where(2 * k < number, word & 0xFFFF, 0))
        tl.store(words + tl.cast(k, tl.int64) * n_all + t, word, mask=t < n_all)


@triton.jit
def _away(words, n_all, t, inside, k, number, reach):
    """Two halves reach - c, of the resident vectors."""
    word = tl.load(words + tl.cast(k, tl.int64) * n_all + t, mask=inside, other=0)
    low = tl.where(2 * k < number, (reach - (word & 0xFFFF)) & 0xFFFF, NEVER)
    high = tl.where(2 * k + 1 < number, (reach - (word >> 16)) & 0xFFFF, NEVER)
    return low | (high << 16)


@triton.jit
def _nearest(nearest, away, words, n_all, t, inside, k, PACKED: tl.constexpr):
    """The minimum over the rounds of one more word, of each pair."""
    word = tl.load(words + tl.cast(k, tl.int64) * n_all + t, mask=inside, other=0)
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
    high = (((away >> 16) & 0xFFFF)[:, None] + (word >> 16)[None, :]) & 0xFFFF
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
    s, first, end, j, words, n_all, resident, streamed, inside, streams, a0, a1, a2, a3, number, reach, n_words,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WORDS: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """Which pairs of a tile count in this round."""
    keep = (j[None, :] >= first[:, None]) & (j[None, :] < end[:, None])
    if WORDS != 0:
        nearest = tl.full((ROWS, COLUMNS), -1 if PACKED else 0xFFFF, tl.int32)
        if WORDS > 0:
            nearest = _nearest(nearest, a0, words, n_all, streamed, streams, 0, PACKED)
        if WORDS > 1:
            nearest = _nearest(nearest, a1, words, n_all, streamed, streams, 1, PACKED)
        if WORDS > 2:
            nearest = _nearest(nearest, a2, words, n_all, streamed, streams, 2, PACKED)
            nearest = _nearest(nearest, a3, words, n_all, streamed, streams, 3, PACKED)
        if WORDS < 0:
            for k in range(0, n_words):
                away = _away(words, n_all, resident, inside, k, number, reach)
                nearest = _nearest(nearest, away, words, n_all, streamed, streams, k, PACKED)
        keep = keep & _unseen(nearest, reach, PACKED)
    return keep


@triton.jit
def residents(words, n_all, t, inside, number, reach, WORDS: tl.constexpr):
    """The words of resident vectors that an unrolled loop keeps."""
    a0 = t
    a1 = t
    a2 = t
    a3 = t
    if WORDS > 0:
        a0 = _away(words, n_all, t, inside, 0, number, reach)
    if WORDS > 1:
        a1 = _away(words, n_all, t, inside, 1, number, reach)
    if WORDS > 2:
        a2 = _away(words, n_all, t, inside, 2, number, reach)
        a3 = _away(words, n_all, t, inside, 3, number, reach)
    return a0, a1, a2, a3
