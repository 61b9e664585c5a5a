"""Closed forms of what the losses hold besides activations and gradients, and of the negatives they are given.

Imports neither torch nor numpy. Letters as in `seqrec.memory`; the losses and samplers take the sizes of their tiles
from here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from seqrec import config

if TYPE_CHECKING:
    from seqrec.memory import Shapes

FLOAT, ID = 4, 8

TILE_BYTES = 2**26
"""What losses keep in one tile of their work (`seqrec.losses`), besides gradients; one row or draw at least."""

DRAW_ELEMENTS = 2**20
"""Numbers of 8 bytes in one tile of a draw of negatives (`seqrec.data.negatives`)."""


def loss_work(loss: config.Loss, shapes: Shapes) -> int:
    """What a loss holds at its worst besides negatives' ids and the gradients of states and items."""
    N, D, V = shapes.positions, shapes.width, shapes.items
    match loss:
        case config.Ce():
            # One buffer of logits.
            return tile(loss.chunk_bytes, N, FLOAT * V)
        case config.Cce():
            # Logits of a block and their exponentials; or, at the end, the targets' embeddings.
            numbers = FLOAT * min(V, loss.block_items)
            rows = tile(TILE_BYTES, N, 2 * numbers) // (2 * numbers)
            # Of the next tile, beside what is left of the one before it.
            following = rows + 2 * min(rows, N - rows)
            return max(numbers * max(2 * rows, following), 2 * shapes.states)
        case config.Bce() | config.BcePlus() | config.Gbce():
            return sampled(N, N, loss.n_negatives, D)
        case config.CceMinus():
            return sampled(N, N, loss.n_negatives, D, softmax=True)
        case config.CeMinus():
            # A tile is as wide as its longest user.
            slots = shapes.users * shapes.longest if loss.negatives_scope == "user" else N
            return sampled(n_draws(loss, shapes), slots, loss.n_negatives, D, softmax=True)
        case config.Sce():
            return _sce(loss, shapes)
        case config.Rece():
            return _rece(loss, shapes)


def tile(limit: int, rows: int, row_bytes: int) -> int:
    """Whole rows within the limit, one at least, no more than there are."""
    return row_bytes * min(rows, max(1, limit // row_bytes))


SOFTMAX_COPIES = 1.4
"""Of a position's scores, beyond the four that tiles are sized by: where logsumexp is differentiated, scores, the
concatenated logits and their mask stand beside a difference, its exponential and their product."""


def sampled(n_draws: int, n_positions: int, n_candidates: int, width: int, *, softmax: bool = False) -> int:
    """Candidates' embeddings and their gradient (K, D) a draw; about four copies of K scores and of a state a position,
    of a softmax's scores more."""
    draw = FLOAT * 2 * n_candidates * width
    position = FLOAT * 4 * (n_candidates + width)
    whole = n_draws * draw + n_positions * position
    found = min(whole, max(TILE_BYTES, draw + position))
    return found + int(found / whole * n_positions * SOFTMAX_COPIES * FLOAT * n_candidates) if softmax else found


def _sce(loss: config.Sce, shapes: Shapes) -> int:
    """Kept: both lists of indices, the losses of (n_buckets, bucket_size_x), the covered states and their gradient. On
    top the largest of: mixing coefficients, scores of all buckets, logits of a bucket, the winners' softmax."""
    N, D, V, n_buckets = shapes.positions, shapes.width, shapes.items, loss.n_buckets
    size_x, size_y = min(loss.bucket_size_x, N), loss.bucket_size_y
    kept = n_buckets * (size_x * (ID + FLOAT) + size_y * ID + FLOAT * D) + 2 * shapes.states
    bucket = FLOAT * (3 * size_x * size_y + 2 * (size_x + size_y) * D) + size_x * size_y
    steps = [
        tile(TILE_BYTES, n_buckets, FLOAT * max(N, V)),
        tile(TILE_BYTES, n_buckets, bucket),
        # Four working copies of an id for every slot, while the winner of each position is found.
        4 * ID * n_buckets * size_x,
        sampled(min(n_buckets, N), N, size_y, D, softmax=True),
    ]
    if loss.mix_x:
        steps.append(FLOAT * min(N, 4096) * n_buckets)
    return kept + max(steps)


def _rece(loss: config.Rece, shapes: Shapes) -> int:
    """Kept: order (4 bytes) and chunk (2) of every state and item a round. On top the largest of: scores of a hash,
    sorting the buckets of one table, a tile of candidates."""
    N, D, V = shapes.positions, shapes.width, shapes.items
    n_chunks = loss.n_buckets // loss.buckets_per_chunk
    small = 2 if n_chunks < 2**15 else 4
    window = min(V, math.ceil(V * (1 + 2 * loss.n_extra_chunks) / n_chunks) + 1)
    pairs = FLOAT * 3 * window + 3 * window + FLOAT * 2 * D
    steps = [
        tile(TILE_BYTES, max(N, V), FLOAT * loss.n_buckets),
        # Keys and ranks, twice each while sorting, and the ranks that are looked up.
        5 * ID * max(N, V),
        min(N * pairs + n_chunks * window * FLOAT * 2 * D, max(TILE_BYTES, pairs + window * FLOAT * 2 * D)),
    ]
    return loss.rounds * (N + V) * (4 + small) + 2 * shapes.states + max(steps)


def n_draws(loss: config.CeMinus, shapes: Shapes) -> int:
    return {
        "position": shapes.positions,
        "user": shapes.users,
        "group": math.ceil(shapes.positions / loss.group_size),
        "batch": 1,
    }[loss.negatives_scope]


def negatives(loss: config.Loss, shapes: Shapes) -> tuple[int, int]:
    """Bytes of the ids of a batch's negatives, with each position's group; and of the work of drawing them."""
    match loss:
        case config.Bce() | config.BcePlus() | config.Gbce() | config.CceMinus():
            draws, groups = shapes.positions, 0
        case config.CeMinus():
            draws = n_draws(loss, shapes)
            groups = 0 if loss.negatives_scope == "position" else shapes.positions
        case _:
            return 0, 0
    ids = ID * draws * loss.n_negatives
    # Random numbers, sorted values and their indices, and the items behind them; places where none may repeat.
    distinct = isinstance(loss, config.Bce) or (isinstance(loss, config.CeMinus) and not loss.with_replacement)
    return ids + ID * groups, (7 if distinct else 4) * min(ids, ID * max(DRAW_ELEMENTS, loss.n_negatives))


def spare_draws(n: int, eligible: int) -> int:
    """How many draws beyond n make it certain, but for a chance below 1e-20, that n of them are different.

    Until n are found, a draw repeats one of them with a chance of at most (n - 1) / eligible: the chance that more than
    `spare` of the n + spare draws do is below Chernoff's bound of a binomial tail.
    """
    rate, spare = (n - 1) / eligible, 0
    while rate > 0:
        m = n + spare
        share = (spare + 1) / m
        if share > rate:
            exponent = share * math.log(share / rate)
            exponent += (1 - share) * math.log((1 - share) / (1 - rate)) if share < 1 else 0.0
            if m * exponent > 20 * math.log(10):
                break
        spare += 1 + spare // 16
    return spare
