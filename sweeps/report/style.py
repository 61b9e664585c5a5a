"""How a loss looks, in every picture the same."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Style:
    """Colour and marker; the marker by plotly's and by matplotlib's name."""

    color: str
    symbol: str
    marker: str


# Okabe and Ito's palette, which stays apart under the common colour blindnesses, its pale yellow left out and two of
# Tol's added; related losses differ in shape as well.
STYLES = {
    "ce": Style("#222222", "circle", "o"),
    "bce": Style("#56b4e9", "triangle-up", "^"),
    "bce_plus": Style("#999933", "triangle-down", "v"),
    "gbce": Style("#009e73", "diamond", "D"),
    "ce_minus": Style("#e69f00", "square", "s"),
    "sce": Style("#d55e00", "cross", "P"),
    "rece": Style("#0072b2", "star", "*"),
    "cce": Style("#cc79a7", "hexagon", "h"),
    "cce_minus": Style("#882255", "pentagon", "p"),
}
OTHER = Style("#666666", "x", "X")


def style(loss: str) -> Style:
    return STYLES.get(loss, OTHER)


def memory_ticks(values: Iterable[float]) -> tuple[list[float], list[str]]:
    """Where to mark GiB on a log2 axis, and how to write it: powers of two around the values, thinned to twelve or
    fewer; round decimals where the values span less than two octaves, which would show two powers at most."""
    found = [math.log2(value) for value in values if value > 0] or [0.0]
    low, high = math.floor(min(found)), math.ceil(max(found))
    if 0 < max(found) - min(found) < 2:
        ends = 2 ** memory_range(2.0**value for value in (min(found), max(found)))[0], 2.0**high
        decades = range(math.floor(math.log10(ends[0])), math.ceil(math.log10(ends[1])) + 1)
        ticks = [digits * 10.0**decade for decade in decades for digits in (1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8)]
        ticks = [tick for tick in ticks if ends[0] <= tick <= ends[1]]
    else:
        step = max(1, math.ceil((high - low + 1) / 12))
        ticks = [2.0**power for power in range(low, high + 1, step)]
    return ticks, [f"{tick:.3g}" for tick in ticks]


def memory_range(values: Iterable[float]) -> tuple[float, float]:
    """log2 limits with a margin; never empty."""
    found = [math.log2(value) for value in values if value > 0] or [0.0]
    margin = max(0.25, 0.06 * (max(found) - min(found)))
    return min(found) - margin, max(found) + margin
