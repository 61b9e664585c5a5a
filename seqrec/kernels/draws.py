"""Candidate items drawn inside a kernel, a function of (seed, row, k) alone, and the same draws in plain PyTorch.

    words(row, c, stream) = Philox4x32 of the counter (c, row, stream, 0) under the seed's two halves: four 32-bit words
    uniform:     id of draw k  = floor(V word_{k mod 4}(row, k div 4, 0) / 2^32)
    popularity:  j as above;  id = j if word_{k mod 4}(row, k div 4, 1) < threshold_j, else other_j   (alias table)

Row and draw are two words of the counter, so no product of sizes can overflow: rows and draws up to 2^32, items below
2^31. Seven rounds: the fewest that pass every statistical battery the generator was published with (ten is the cautious
default, and costs two fifths more). Bias: an item gets floor or ceil(2^32 / V) of the words, so its probability is off
by at most a share V / 2^32 of itself (2.3e-4 at a million items); a threshold is rounded down by less than 2^-32 of a
column.

Integer arithmetic only: kernel and twin agree bit for bit, on every device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

ROUNDS = 7


@triton.jit
def _words(key, row, counter, stream: tl.constexpr, BLOCK: tl.constexpr, N_ROUNDS: tl.constexpr):
    """(BLOCK,) uint32: the four words of each of BLOCK / 4 counters, in order."""
    c0 = counter.to(tl.uint32)
    zeros = c0 * 0
    a, b, c, d = tl.philox(key, c0, zeros + row.to(tl.uint32), zeros + stream, zeros, N_ROUNDS)
    # join puts its arguments side by side in a new last dimension.
    four = tl.join(tl.join(a, c), tl.join(b, d))
    return tl.reshape(four, (BLOCK,))


@triton.jit
def draw(key, row, first, n_items, alias, BLOCK: tl.constexpr, POPULAR: tl.constexpr, N_ROUNDS: tl.constexpr):
    """(BLOCK,) int32 item ids, draws first .. first + BLOCK - 1 of a row; first and BLOCK are multiples of 4."""
    counter = first // 4 + tl.arange(0, BLOCK // 4)
    words = _words(key, row, counter, 0, BLOCK, N_ROUNDS)
    column = tl.umulhi(words, tl.zeros((BLOCK,), tl.uint32) + n_items.to(tl.uint32)).to(tl.int32)
    if POPULAR:
        place = alias + column.to(tl.int64) * 2
        threshold = tl.load(place).to(tl.uint32, bitcast=True)
        kept = _words(key, row, counter, 1, BLOCK, N_ROUNDS) < threshold
        column = tl.where(kept, column, tl.load(place + 1))
    return column


def drawn(
    seed: Tensor, n_rows: int, n_candidates: int, n_items: int, popularity: Tensor | None = None, first_row: int = 0
) -> Tensor:
    """(n_rows, n_candidates) int64: what kernels draw for rows first_row, first_row + 1, ... under a seed.

    seed: one int64; nothing waits for its device. popularity: of `alias_table`, on the seed's device; None: uniform.
    """
    device = seed.device
    rows = torch.arange(first_row, first_row + n_rows, device=device)[:, None]
    counters = torch.arange(-(-n_candidates // 4), device=device)[None, :]
    words = _philox(seed.reshape(()), counters, rows, 0)[:, :n_candidates]
    columns = words * n_items >> 32
    if popularity is None:
        return columns
    threshold, other = popularity.to(torch.int64).unbind(1)
    kept = _philox(seed.reshape(()), counters, rows, 1)[:, :n_candidates] < (threshold & 0xFFFFFFFF)[columns]
    return torch.where(kept, columns, other[columns])


def _philox(key: Tensor, counters: Tensor, rows: Tensor, stream: int) -> Tensor:
    """(R, 4 C) int64 in [0, 2^32). Products of two words wrap in int64; the bits that are read are right all the same.

    The two multipliers and the two increments of the keys are the generator's published constants.
    """
    low, high = key & 0xFFFFFFFF, (key >> 32) & 0xFFFFFFFF
    zeros = torch.zeros_like(counters + rows)
    c0, c1, c2, c3 = zeros + counters, zeros + rows, zeros + stream, zeros
    for number in range(ROUNDS):
        k0, k1 = low + number * 0x9E3779B9, high + number * 0xBB67AE85
        even, odd = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c2 = ((odd >> 32) ^ c1 ^ k0) & 0xFFFFFFFF, ((even >> 32) ^ c3 ^ k1) & 0xFFFFFFFF
        c1, c3 = odd & 0xFFFFFFFF, even & 0xFFFFFFFF
    return torch.stack((c0, c1, c2, c3), dim=-1).flatten(1)


def alias_table(counts: Tensor | Sequence[int]) -> Tensor:
    """(V, 2) int32 on the CPU: for each column of V equally likely ones a threshold, the 32 bits of an unsigned number,
    and the item that takes the rest. Items are then drawn in proportion to their counts.

    Exact integers: an item has probability 0 if and only if its count is 0. Raises ValueError for negative counts or a
    sum of 0.
    """
    mass = counts.tolist() if isinstance(counts, Tensor) else [int(count) for count in counts]
    total, n_items = sum(mass), len(mass)
    if total <= 0 or min(mass) < 0:
        raise ValueError(f"counts: got sum {total}, least {min(mass, default=0)}; expected counts >= 0, a sum > 0.")
    # In units of 1 / V of an item's count a column holds `total`.
    mass = [count * n_items for count in mass]
    thresholds, others = [0xFFFFFFFF] * n_items, list(range(n_items))
    poor = [item for item in range(n_items) if mass[item] < total]
    rich = [item for item in range(n_items) if mass[item] > total]
    while poor:
        item, giver = poor.pop(), rich[-1]
        thresholds[item], others[item] = max((mass[item] << 32) // total, min(mass[item], 1)), giver
        mass[giver] -= total - mass[item]
        if mass[giver] <= total:
            rich.pop()
            if mass[giver] < total:
                poor.append(giver)
    signed = [one - (1 << 32) if one >= 1 << 31 else one for one in thresholds]
    return torch.tensor([signed, others], dtype=torch.int32).T.contiguous()
