"""Closed forms of the bytes that a train step holds at its peak, before anything runs. Imports neither torch nor numpy.

Counted is what the allocator of the device is asked for: tensors of this project's eager step in fp32 with fused Adam,
and the matrix library's workspace. Not counted: rounding, fragmentation, the CUDA context.

A step has four moments at which memory can peak; a prediction is the largest of them with the parts that are alive
there.

draw       negatives are drawn; no activations yet
loss       all activations saved; the loss works in tiles beside the gradients of states (N, D) and items (V, D)
attention  backward through the last block's attention: all earlier blocks still saved, and gradients of the whole grid
embedding  the end of the backward pass: no activations, but two dense gradients of the item table, one from the loss
and
           one from the input lookup, that are about to be added

Letters: B users, L grid length, N valid positions, D width, H heads, V items, K negatives, R rounds; fp32 is 4 bytes,
an id 8.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from seqrec import config

if TYPE_CHECKING:
    from seqrec.data.tables import Statistics

TILE_BYTES = 2**26
"""What losses keep in one tile of their work (`seqrec.losses`), besides gradients; one row or draw at least."""

DRAW_ELEMENTS = 2**22
"""Numbers of 8 bytes in one tile of a draw of negatives (`seqrec.data.negatives`)."""

MATRIX_WORKSPACE = 2 * 2**25
"""Bytes that cuBLAS takes through the allocator on Hopper GPUs (8 MiB a handle on older ones): a handle belongs to a
thread, and the backward pass runs in a thread of its own. Found by measurement: one handle's share was missing, to
within 1 MiB, from the prediction of ce at two batch sizes (`benchmarks/results/steps.csv`)."""

DEVIATIONS = 3.0
"""Standard deviations above the mean number of positions: about the largest batch of a few hundred."""

FLOAT, ID = 4, 8


@dataclass(frozen=True)
class Prediction:
    peak_bytes: int
    """The sum of `parts`."""
    moment: str
    """Where the step peaks: draw, loss, attention or embedding."""
    parts: dict[str, int]
    """Bytes alive at that moment by purpose: weights, optimiser, gradients, data, batch, negatives, activations, work,
    workspace."""


class Shapes(NamedTuple):
    """Sizes of one step."""

    users: int
    length: int
    """Of a row of the attention's grid."""
    longest: int
    """Positions of the longest window."""
    positions: int
    width: int
    items: int
    blocks: int
    heads: int

    @property
    def cells(self) -> int:
        return self.users * self.length

    @property
    def states(self) -> int:
        """Bytes of (N, D)."""
        return FLOAT * self.positions * self.width

    @property
    def grid(self) -> int:
        """Bytes of (B * L, D)."""
        return FLOAT * self.cells * self.width

    @property
    def table(self) -> int:
        """Bytes of (V, D)."""
        return FLOAT * self.items * self.width


def predict_peak(run: config.Run, statistics: Statistics) -> Prediction:
    """The peak of one train step of `run` on a data set: the worst batch that is likely in a few hundred."""
    moment, parts = max(moments(run, statistics).items(), key=lambda named: sum(named[1].values()))
    return Prediction(sum(parts.values()), moment, parts)


def moments(run: config.Run, statistics: Statistics) -> dict[str, dict[str, int]]:
    """What is alive at each moment at which the step can peak, by purpose."""
    shapes = step_shapes(run, statistics)
    parameters = FLOAT * n_parameters(run.model, statistics.n_items)
    saved = activations(run.model, shapes)
    ids, draw_work = _negatives(run.loss, shapes)
    always = {
        "weights": parameters,
        "optimiser": optimiser_bytes(run, statistics.n_items),
        "data": _resident_data(run.loss, statistics),
        # items and valid over the grid; positions, targets, rows, and the embedding's and the grid's indices.
        "batch": shapes.users * shapes.length * (ID + 1) + shapes.positions * 6 * ID,
        "workspace": MATRIX_WORKSPACE,
    }
    # At the last attention's backward its block's feed-forward part is freed: norm, hidden, ReLU's and masks of
    # dropout.
    freed = min(saved, 4 * shapes.states)
    return {
        "draw": always | {"negatives": ids, "work": draw_work},
        "loss": always
        | {
            "negatives": ids,
            "activations": saved,
            "gradients": shapes.states + shapes.table,
            "work": loss_work(run.loss, shapes),
        },
        "attention": always
        | {
            "negatives": ids,
            "activations": saved - freed,
            "gradients": 2 * shapes.states + shapes.table,
            # Of the attention's output, queries, keys and values.
            "work": 4 * shapes.grid,
        },
        "embedding": always
        | {
            "negatives": ids,
            "activations": shapes.states,
            "gradients": parameters + shapes.table,
            # Gradient of the looked-up rows, before and after the scaling.
            "work": 2 * shapes.states,
        },
    }


def optimiser_bytes(run: config.Run, n_items: int) -> int:
    """State of the optimiser between steps. Adam: both moments of every parameter."""
    return 2 * FLOAT * n_parameters(run.model, n_items)


def step_shapes(run: config.Run, statistics: Statistics) -> Shapes:
    """Positions: mean + DEVIATIONS standard deviations of a batch of users drawn without replacement; at most every
    cell of the batch, and every position of the data."""
    model = run.model
    users = min(run.train.batch_size, statistics.n_train_users)
    counts = [(min(length - 1, model.max_length), users_of) for length, users_of in statistics.train_lengths]
    total = sum(inputs * users_of for inputs, users_of in counts)
    mean = total / statistics.n_train_users
    variance = sum(users_of * (inputs - mean) ** 2 for inputs, users_of in counts) / statistics.n_train_users
    unlike = 1 - users / statistics.n_train_users
    likely = math.ceil(users * mean + DEVIATIONS * math.sqrt(users * variance * unlike))
    longest = min(model.max_length, statistics.longest_train_history - 1)
    return Shapes(
        users=users,
        # Batches are cut to their longest history only where pads are no attention keys.
        length=longest if model.mask_padding else model.max_length,
        longest=longest,
        positions=min(likely, users * longest, total),
        width=model.hidden_size,
        items=statistics.n_items,
        blocks=model.n_blocks,
        heads=model.n_heads,
    )


def n_parameters(model: config.Sasrec, n_items: int) -> int:
    """Item and position tables; a block: attention 4 D^2 + 4 D, feed-forward 2 D^2 + 2 D, two norms 4 D; the final
    norm."""
    D = model.hidden_size
    return (n_items + model.max_length) * D + model.n_blocks * (6 * D * D + 10 * D) + 2 * D


def activations(model: config.Sasrec, shapes: Shapes) -> int:
    """What autograd keeps of the encoder until its backward pass, hidden states included.

    A block, in (N, D): input, normalised queries, projected queries, keys and values (kept by the copy into the grid),
    attended rows, sum after attention, its norm, ReLU's result (and its dropout's, if that comes after); in (B L, D):
    queries, keys, values, attention's output, for memory-efficient attention keeps no L x L matrix; one byte a mask of
    dropout; mean and deviation of two norms; log-sum-exp of every query and head.
    """
    dropped = model.dropout > 0
    states = 9 + (1 if dropped and model.ffn_dropout == "after_relu" else 0)
    mask = shapes.positions * shapes.width if dropped else 0
    rows = FLOAT * (4 * shapes.positions + shapes.cells * shapes.heads)
    block = states * shapes.states + 4 * shapes.grid + 2 * mask + rows
    # After the blocks: input of the final norm, its statistics, and the hidden states. Before: one more mask.
    return shapes.blocks * block + 2 * shapes.states + FLOAT * 2 * shapes.positions + mask


def loss_work(loss: config.Loss, shapes: Shapes) -> int:
    """What a loss holds at its worst besides negatives' ids and the gradients of states and items."""
    N, D, V = shapes.positions, shapes.width, shapes.items
    match loss:
        case config.Ce():
            # One buffer of logits.
            return _tile(loss.chunk_bytes, N, FLOAT * V)
        case config.Cce():
            # Logits of a block and their exponentials; or, at the end, the targets' embeddings.
            return max(_tile(TILE_BYTES, N, 2 * FLOAT * min(V, loss.block_items)), 2 * shapes.states)
        case config.Bce() | config.BcePlus() | config.Gbce() | config.CceMinus():
            return _sampled(N, N, loss.n_negatives, D)
        case config.CeMinus():
            # A tile is as wide as its longest user.
            slots = shapes.users * shapes.longest if loss.negatives_scope == "user" else N
            return _sampled(_n_draws(loss, shapes), slots, loss.n_negatives, D)
        case config.Sce():
            return _sce(loss, shapes)
        case config.Rece():
            return _rece(loss, shapes)


def _tile(limit: int, rows: int, row_bytes: int) -> int:
    """Whole rows within the limit, one at least, no more than there are."""
    return row_bytes * min(rows, max(1, limit // row_bytes))


def _sampled(n_draws: int, n_positions: int, n_candidates: int, width: int) -> int:
    """Candidates' embeddings and their gradient (K, D) a draw; about four copies of K scores and of a state a
    position."""
    draw = FLOAT * 2 * n_candidates * width
    position = FLOAT * 4 * (n_candidates + width)
    return min(n_draws * draw + n_positions * position, max(TILE_BYTES, draw + position))


def _sce(loss: config.Sce, shapes: Shapes) -> int:
    """Kept: both lists of indices, the losses of (n_buckets, bucket_size_x), the covered states and their gradient. On
    top the largest of: mixing coefficients, scores of all buckets, logits of a bucket, the winners' softmax."""
    N, D, V, n_buckets = shapes.positions, shapes.width, shapes.items, loss.n_buckets
    size_x, size_y = min(loss.bucket_size_x, N), loss.bucket_size_y
    kept = n_buckets * (size_x * (ID + FLOAT) + size_y * ID + FLOAT * D) + 2 * shapes.states
    bucket = FLOAT * (3 * size_x * size_y + 2 * (size_x + size_y) * D) + size_x * size_y
    steps = [
        _tile(TILE_BYTES, n_buckets, FLOAT * max(N, V)),
        _tile(TILE_BYTES, n_buckets, bucket),
        # Four working copies of an id for every slot, while the winner of each position is found.
        4 * ID * n_buckets * size_x,
        _sampled(min(n_buckets, N), N, size_y, D),
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
        _tile(TILE_BYTES, max(N, V), FLOAT * loss.n_buckets),
        # Keys and ranks, twice each while sorting, and the ranks that are looked up.
        5 * ID * max(N, V),
        min(N * pairs + n_chunks * window * FLOAT * 2 * D, max(TILE_BYTES, pairs + window * FLOAT * 2 * D)),
    ]
    return loss.rounds * (N + V) * (4 + small) + 2 * shapes.states + max(steps)


def _n_draws(loss: config.CeMinus, shapes: Shapes) -> int:
    return {
        "position": shapes.positions,
        "user": shapes.users,
        "group": math.ceil(shapes.positions / loss.group_size),
        "batch": 1,
    }[loss.negatives_scope]


def _negatives(loss: config.Loss, shapes: Shapes) -> tuple[int, int]:
    """Bytes of the ids of a batch's negatives, with each position's group; and of the work of drawing them."""
    match loss:
        case config.Bce() | config.BcePlus() | config.Gbce() | config.CceMinus():
            draws, groups = shapes.positions, 0
        case config.CeMinus():
            draws = _n_draws(loss, shapes)
            groups = 0 if loss.negatives_scope == "position" else shapes.positions
        case _:
            return 0, 0
    ids = ID * draws * loss.n_negatives
    # Random numbers, sorted values and their indices, and the items behind them.
    return ids + ID * groups, 4 * min(ids, ID * max(DRAW_ELEMENTS, loss.n_negatives))


def _resident_data(loss: config.Loss, statistics: Statistics) -> int:
    """Training histories on the device: 4 bytes an item, two ids a user; for draws without seen items one id a pair and
    one a user; for popularity a cumulative count and a log probability an item."""
    rows = sum(length * users for length, users in statistics.train_lengths)
    users = statistics.n_train_users
    resident = 4 * rows + 2 * ID * users
    if isinstance(loss, config.Bce) or (isinstance(loss, config.CeMinus) and loss.exclude_history):
        resident += ID * (rows + users)
    if getattr(loss, "sampling", None) == "popularity":
        resident += (ID + FLOAT) * statistics.n_items
    return resident
