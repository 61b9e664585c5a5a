"""Synthetic interactions of any size, with a popularity tail and with an order that a model can learn.

Every number is a hash (SplitMix64) of (seed, purpose, user, place in the user's history), so that a user's history
depends on nothing else: not on how many users are made at a time, nor on NumPy's generators. Blocks of users are
written as they are made; memory is bounded by one block and a table of the items.

    next item = one of `n_successors` successors of the last one   with probability `follow`
              = a draw with P(rank) ~ rank**-popularity            otherwise, and at first; with probability `taste` it
                                                                   is moved to the nearest rank of the user's taste

Ranks are numbered from 0 inside. Each of the `n_successors` maps is a permutation within octaves of ranks (0..15,
16..31, 32..63, ...): an octave is followed as often as it follows, so that popularity keeps its slope beyond the first.
An item's taste is its rank modulo `n_tastes`. Ids of items are a permutation of the ranks and say nothing of them.
Times are seconds: a user starts somewhere in three years, and waits up to two days each time.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from seqrec.data.tables import IntArray
from seqrec.errors import ConfigError, DataError, message

Words = NDArray[np.uint64]
Uniforms = NDArray[np.float64]

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
_PURPOSES = ("ids", "angle", "radius", "taste", "start", "wait", "follow", "successor", "rank", "move", "place", "map")

START_SECONDS = 3 * 365 * 86_400
WAIT_SECONDS = 2 * 86_400
_FIRST_OCTAVE = 16


@dataclass(frozen=True)
class Recipe:
    """What to make. The defaults are the lengths and the popularity of this project's measurements of steps.

    Raises ConfigError for a number out of range, and for more items than `every_item` has room for.
    """

    n_users: int
    n_items: int
    seed: int = 0
    length_mu: float = 4.1
    """User lengths are lognormal(length_mu, length_sigma), clipped and cut to whole numbers."""
    length_sigma: float = 0.8
    min_length: int = 20
    max_length: int = 1500
    popularity: float = 0.8
    """P(rank) ~ rank**-popularity of the draws."""
    follow: float = 0.5
    """Share of items that are successors of the one before."""
    n_successors: int = 3
    taste: float = 0.3
    """Share of the draws that are of the user's taste."""
    n_tastes: int = 8
    every_item: bool = False
    """Each item is put once into some user's history, so that the catalog is `n_items` whatever the tail."""

    def __post_init__(self) -> None:
        for key, low, high in (
            ("n_users", 1, 2**31 - 1),
            ("n_items", 2, 2**31 - 2),
            ("seed", 0, 2**32 - 1),
            ("min_length", 1, 2**20),
            ("max_length", self.min_length, 2**20),
            ("length_mu", -15.0, 15.0),
            ("length_sigma", 0.0, 5.0),
            ("popularity", 0.0, 4.0),
            ("follow", 0.0, 1.0),
            ("n_successors", 1, _FIRST_OCTAVE),
            ("taste", 0.0, 1.0),
            ("n_tastes", 1, self.n_items),
        ):
            value = getattr(self, key)
            if not low <= value <= high:
                raise ConfigError(message(key, value, f"a number from {low} to {high}"))
        most = self.n_users * self.min_length
        if self.every_item and self.n_items > most:
            law = f"<= {most} (n_users * min_length), room for every item"
            raise ConfigError(message("n_items", self.n_items, law))


def length_mu(mean: float, length_sigma: float) -> float:
    """The `length_mu` of lengths with this mean, before they are clipped. Raises ConfigError for a mean below 1."""
    if not 1 <= mean < math.inf:
        raise ConfigError(message("mean_length", mean, "a number >= 1"))
    return math.log(mean) - length_sigma**2 / 2


@dataclass(frozen=True, eq=False)
class Block:
    """Consecutive users, their rows in order."""

    user_id: IntArray
    """(n,)"""
    item_id: IntArray
    """(n,) 0..n_items - 1"""
    timestamp: IntArray
    """(n,) seconds, ascending within a user."""


@dataclass(frozen=True)
class Written:
    """What `write` wrote."""

    file: Path
    users: int
    interactions: int
    longest: int
    """Interactions of the longest history."""


def write(
    recipe: Recipe,
    out: Path,
    *,
    block_users: int = 4096,
    on_block: Callable[[int, int], None] | None = None,
) -> Written:
    """Writes a canonical file, all or nothing. on_block: told (users, interactions) written so far, after each block.

    block_users bounds memory and decides nothing else. Raises DataError if the file cannot be written.
    """
    if out.suffix != ".parquet":
        raise DataError(message("--out", str(out), "a file that ends in .parquet"))
    schema = pa.schema([("user_id", pa.int32()), ("item_id", pa.int32()), ("timestamp", pa.int64())])
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    users = rows = longest = 0
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            with pq.ParquetWriter(partial, schema, compression="zstd") as writer:
                for block in blocks(recipe, block_users):
                    columns = [block.user_id.astype(np.int32), block.item_id.astype(np.int32), block.timestamp]
                    writer.write_table(pa.table(columns, schema=schema))
                    users += block_users
                    rows += len(block.user_id)
                    longest = max(longest, int(np.bincount(block.user_id - block.user_id[0]).max()))
                    if on_block is not None:
                        on_block(min(users, recipe.n_users), rows)
            os.replace(partial, out)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror or error}).") from None
    return Written(out, recipe.n_users, rows, longest)


def blocks(recipe: Recipe, block_users: int = 4096) -> Iterator[Block]:
    """The interactions, `block_users` users at a time; put together they are the same whatever that is."""
    weights = np.arange(1, recipe.n_items + 1, dtype=np.float64) ** -recipe.popularity
    cumulative = np.cumsum(weights)
    cumulative /= cumulative[-1]
    item_of_rank = np.argsort(_words(recipe.seed, "ids", np.arange(recipe.n_items)), kind="stable")
    successors = _successors(recipe)
    for first in range(0, recipe.n_users, block_users):
        users = np.arange(first, min(first + block_users, recipe.n_users))
        yield _block(recipe, users, cumulative, successors, item_of_rank)


def _block(
    recipe: Recipe, users: IntArray, cumulative: Uniforms, successors: IntArray, item_of_rank: IntArray
) -> Block:
    lengths = _lengths(recipe, users)
    starts = np.cumsum(lengths) - lengths
    owner = np.repeat(np.arange(len(users)), lengths)
    place = np.arange(len(owner)) - starts[owner]
    user = users[owner]

    def draw(purpose: str) -> Uniforms:
        return _uniform(_words(recipe.seed, purpose, user, place))

    rank = np.minimum(np.searchsorted(cumulative, draw("rank"), side="right"), recipe.n_items - 1)
    moved = draw("move") < recipe.taste
    favourite = _below(_uniform(_words(recipe.seed, "taste", users)), recipe.n_tastes)
    rank[moved] = _nearest_of_taste(rank[moved], favourite[owner[moved]], recipe)
    follows = draw("follow") < recipe.follow
    follows[starts] = False
    if recipe.every_item:
        row, planted = _planted(recipe, users, lengths, starts)
        rank[row], follows[row] = planted, False
    which = _below(draw("successor"), recipe.n_successors)
    # A run of successors is walked from its start, all runs of the block abreast.
    row = np.flatnonzero(~follows) + 1
    while len(row := row[row < len(rank)]) and len(row := row[follows[row]]):
        rank[row] = successors[which[row], rank[row - 1]]
        row = row + 1

    waits = 1 + _below(draw("wait"), WAIT_SECONDS)
    elapsed = np.cumsum(waits)
    begin = _below(_uniform(_words(recipe.seed, "start", users)), START_SECONDS)
    return Block(user, item_of_rank[rank], elapsed - elapsed[starts][owner] + begin[owner])


def _lengths(recipe: Recipe, users: IntArray) -> IntArray:
    """(n,) lengths of histories; the normal deviate by Box and Muller."""
    radius, angle = (_uniform(_words(recipe.seed, purpose, users)) for purpose in ("radius", "angle"))
    normal = np.sqrt(-2.0 * np.log1p(-radius)) * np.cos(2.0 * np.pi * angle)
    lengths = np.exp(recipe.length_mu + recipe.length_sigma * normal)
    return np.clip(lengths, recipe.min_length, recipe.max_length).astype(np.int64)


def _successors(recipe: Recipe) -> IntArray:
    """(n_successors, n_items) ranks that follow each rank."""
    ranks = np.arange(recipe.n_items)
    edges = [0, *(_FIRST_OCTAVE << k for k in range(32) if _FIRST_OCTAVE << k < recipe.n_items), recipe.n_items]
    table = np.empty((recipe.n_successors, recipe.n_items), dtype=np.int64)
    for which, row in enumerate(table):
        words = _words(recipe.seed, "map", ranks, np.full(1, which))
        for low, high in pairwise(edges):
            row[low:high] = low + np.argsort(words[low:high], kind="stable")
    return table


def _nearest_of_taste(rank: IntArray, taste: IntArray, recipe: Recipe) -> IntArray:
    """The rank of that taste in the same run of `n_tastes` ranks; in the run before where the last is cut short."""
    moved = rank - rank % recipe.n_tastes + taste
    return np.where(moved < recipe.n_items, moved, moved - recipe.n_tastes)


def _planted(recipe: Recipe, users: IntArray, lengths: IntArray, starts: IntArray) -> tuple[IntArray, IntArray]:
    """Rows of the block, and the ranks that are put there: user u has the ranks u, u + n_users, ..., scattered."""
    count = np.maximum(0, -(-(recipe.n_items - users) // recipe.n_users))
    owner = np.repeat(np.arange(len(users)), count)
    number = np.arange(len(owner)) - (np.cumsum(count) - count)[owner]
    ranks = users[owner] + number * recipe.n_users
    # One in each of `count` equal parts of the history; a part is at least one row long.
    low = number * lengths[owner] // count[owner]
    high = (number + 1) * lengths[owner] // count[owner]
    scatter = _uniform(_words(recipe.seed, "place", users[owner], number))
    return starts[owner] + low + (scatter * (high - low)).astype(np.int64), ranks


def _words(seed: int, purpose: str, *keys: IntArray) -> Words:
    """A hash of (seed, purpose, keys), elementwise: SplitMix64's finaliser, once more for each key."""
    start = (seed * len(_PURPOSES) + _PURPOSES.index(purpose) + 1) * _GOLDEN & _MASK
    words = np.full(1, start, dtype=np.uint64)
    for key in keys:
        words = _mixed(words) + (key.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN)
    return _mixed(words)


def _mixed(words: Words) -> Words:
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _uniform(words: Words) -> Uniforms:
    """[0, 1), 53 bits."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _below(uniform: Uniforms, n: int) -> IntArray:
    """0..n - 1"""
    return (uniform * n).astype(np.int64)
