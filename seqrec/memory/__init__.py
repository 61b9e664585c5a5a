"""The bytes that a train step holds at its peak, before anything runs. Imports neither torch nor numpy.

Counted is what the allocator of the device is asked for, and the matrix library's workspace. Not counted:
fragmentation, the CUDA context. Two forms, as a run says what it is trained with on a GPU:

captured   CUDA graphs (`train.engine: auto` too): the step's allocations replayed on a tape (`captured`, `encoder`,
           `lowered`, `fused`)
eager      the moments at which memory can peak, each with the parts that are alive there; the largest counts:

plan       an epoch's masks are drawn (BERT4Rec)
draw       negatives are drawn; no activations yet
loss       all activations saved; the loss works in tiles beside the gradients of states (N, D) and items (V, D)
attention  backward through the last block's attention: all earlier blocks still saved, and gradients of the whole grid
feed_forward  backward through the last block's feed-forward part, where that is wide (BERT4Rec)
embedding  the end of the backward pass: no activations, but two dense gradients of the item table, one from the loss
and
           one from the input lookup, that are about to be added

Letters: B users, L grid length, N valid positions, D width, H heads, V items, K negatives, R rounds; fp32 is 4 bytes,
an id 8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from seqrec import config
from seqrec.memory import bert4rec, captured, fused, likely
from seqrec.memory.losses import (
    DRAW_ELEMENTS as DRAW_ELEMENTS,
    FLOAT as FLOAT,
    ID as ID,
    TILE_BYTES as TILE_BYTES,
    loss_work as loss_work,
    negatives as negatives,
)
from seqrec.memory.tape import Tape

if TYPE_CHECKING:
    from seqrec.data.tables import Statistics

MATRIX_WORKSPACE = 2 * 2**25
"""Bytes that cuBLAS takes through the allocator on Hopper GPUs (8 MiB a handle on older ones): a handle belongs to a
thread, and the backward pass runs in a thread of its own. Found by measurement: one handle's share was missing, to
within 1 MiB, from the prediction of ce at two batch sizes (`benchmarks/results/steps.csv`)."""


@dataclass(frozen=True)
class Prediction:
    peak_bytes: int
    """The sum of `parts`."""
    moment: str
    """Where the step peaks. eager: plan, draw, loss, feed_forward, attention or embedding; captured: forward, draw,
    loss or backward."""
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
    """The peak of one train step of `run` on a data set and a GPU: of the largest batch that its epochs are likely to
    hold. `train.engine: auto` is captured."""
    if run.train.engine != "eager":
        return _captured(run, statistics)
    found = moments(run, statistics)
    if captured.low_bytes(run) != FLOAT:
        _lower(found, run, statistics)
    moment, parts = max(found.items(), key=lambda named: sum(named[1].values()))
    return Prediction(sum(parts.values()), moment, parts)


def _captured(run: config.Run, statistics: Statistics) -> Prediction:
    shapes, asked = step_shapes(run, statistics), loss_shapes(run, statistics)
    tape = Tape()
    captured.outside(tape, run, statistics, _resident_data(run, statistics))
    if isinstance(run.model, config.Bert4rec):
        # An epoch's masks are drawn outside, before any graph runs: what is reported is the sum of both at their worst.
        # 8 bytes an item, and ten numbers a user.
        rows = sum(length * users for length, users in statistics.train_lengths)
        tape.take(8 * rows + 10 * ID * statistics.n_train_users)
    mean = likely.positions_of(statistics.train_lengths, _last(run), run.model.max_length).mean
    captured.step(tape, run, shapes, asked, captured.capacity(run, shapes, asked, mean), _fewest(statistics))
    parts = {name: size for name, size in tape.peak_by.items() if size}
    return Prediction(tape.peak, tape.peak_moment, parts)


def _lower(found: dict[str, dict[str, int]], run: config.Run, statistics: Statistics) -> None:
    """Makes the eager step's moments those of bf16: states are kept in 2 bytes beside the residuals in 4, and the loss
    may be by kernels."""
    asked = loss_shapes(run, statistics)
    for parts in found.values():
        if "activations" in parts:
            parts["activations"] = parts["activations"] * 2 // 3
    if captured.fused_loss(run, asked.width):
        tape = Tape()
        ids = sum(one.size for one in captured.draws(tape, run.loss, asked, _fewest(statistics), True))
        tape = Tape()
        fused.walk(tape, run.loss, fused.Asked(asked.positions, asked.width, asked.items, asked.users))
        for parts in found.values():
            parts["negatives"] = ids if "negatives" in parts else 0
        found["loss"]["work"] = max(0, tape.peak - asked.states - asked.table)


def resident_bytes(run: config.Run, statistics: Statistics) -> int:
    """What is alive between the epochs of a run on a GPU, where validation finds it: weights, optimiser, data, the
    matrix library's workspaces; of an eager step its gradients too."""
    if run.train.engine == "eager":
        parts = moments(run, statistics)["loss"]
        return parts["weights"] * 2 + parts["optimiser"] + parts["data"] + parts["workspace"]
    tape = Tape()
    captured.outside(tape, run, statistics, _resident_data(run, statistics))
    return tape.alive + captured.HANDLE * 3


def _fewest(statistics: Statistics) -> int:
    """Items outside of the history that holds the most."""
    held = statistics.longest_distinct_history
    return statistics.n_items - (statistics.longest_train_history if held is None else held)


def state_bytes(run: config.Run, statistics: Statistics) -> int:
    """Weights, gradients and optimiser state, tensor by tensor: what training reports as `memory/state_gib`."""
    sizes = captured.parameter_sizes(run.model, statistics.n_items)
    return 2 * FLOAT * sum(sizes) + optimiser_bytes(run, statistics.n_items) + FLOAT * len(sizes)


def moments(run: config.Run, statistics: Statistics) -> dict[str, dict[str, int]]:
    """What is alive at each moment at which the step can peak, by purpose."""
    model, shapes, asked = run.model, step_shapes(run, statistics), loss_shapes(run, statistics)
    parameters = FLOAT * n_parameters(model, statistics.n_items)
    # Of the last states only those that predict something stay.
    saved = activations(model, shapes) + asked.states - FLOAT * shapes.positions * asked.width
    ids, draw_work = negatives(run.loss, asked)
    always = {
        "weights": parameters,
        "optimiser": optimiser_bytes(run, statistics.n_items),
        "data": _resident_data(run, statistics),
        # items and valid over the grid; positions, targets, rows, and the embedding's and the grid's indices.
        "batch": shapes.users * shapes.length * (ID + 1) + shapes.positions * 6 * ID,
        "workspace": MATRIX_WORKSPACE,
    }
    # At the last attention's backward its block's feed-forward part is freed: norm, hidden, ReLU's and masks of
    # dropout.
    freed = min(saved, 4 * shapes.states)
    found = {
        "draw": always | {"negatives": ids, "work": draw_work},
        "loss": always
        | {
            "negatives": ids,
            "activations": saved,
            "gradients": asked.states + asked.table,
            "work": loss_work(run.loss, asked),
        },
        "attention": always
        | {
            "negatives": ids,
            "activations": saved - freed,
            "gradients": 2 * shapes.states + asked.table,
            # Of the attention's output, queries, keys and values.
            "work": 4 * shapes.grid,
        },
        "embedding": always
        | {
            "negatives": ids,
            "activations": shapes.states,
            "gradients": parameters + asked.table,
            # Gradient of the looked-up rows, before and after the scaling.
            "work": 2 * shapes.states,
        },
    }
    if isinstance(model, config.Bert4rec):
        bert4rec.amend(found, model, shapes, asked.table)
        found["plan"] = always | {"work": 8 * sum(length * users for length, users in statistics.train_lengths)}
    return found


def optimiser_bytes(run: config.Run, n_items: int) -> int:
    """State of the optimiser between steps. Adam: both moments of every parameter; rowwise_adam: of the item tables a
    second moment a row."""
    whole = 2 * FLOAT * n_parameters(run.model, n_items)
    if run.train.optimizer != "rowwise_adam":
        return whole
    tables = [run.model.hidden_size]
    if isinstance(run.model, config.Bert4rec):
        scored = bert4rec.scored_width(run.model)
        tables = [scored] if run.model.head == "tied" else [run.model.hidden_size, scored]
    return whole - sum(FLOAT * n_items * (width - 1) for width in tables)


def _last(run: config.Run) -> int:
    """Items of a history that are no inputs: a masked window's last item is an input too."""
    return 1 if isinstance(run.model, config.Sasrec) else 0


def _deviations(run: config.Run, statistics: Statistics) -> float:
    """Of the largest batch above the mean one."""
    epochs = min(run.train.epochs, likely.EPOCHS)
    return likely.deviations(captured.batches(run, statistics) * epochs)


def step_shapes(run: config.Run, statistics: Statistics) -> Shapes:
    """Positions: those of the largest batch that is likely in the run's epochs (`likely`), users being drawn without
    replacement; at most every cell of the batch, and every position of the data."""
    model, last = run.model, _last(run)
    users = min(run.train.batch_size, statistics.n_train_users)
    of_window = likely.positions_of(statistics.train_lengths, last, model.max_length)
    largest = of_window.largest(users, statistics.n_train_users, _deviations(run, statistics))
    longest = min(model.max_length, statistics.longest_train_history - last)
    published = isinstance(model, config.Sasrec) and not model.mask_padding
    return Shapes(
        users=users,
        # Batches are cut to their longest history only where pads are no attention keys.
        length=model.max_length if published else longest,
        longest=longest,
        positions=min(largest, users * longest, of_window.total),
        width=model.hidden_size,
        items=statistics.n_items,
        blocks=model.n_blocks,
        heads=model.n_heads,
    )


def loss_shapes(run: config.Run, statistics: Statistics) -> Shapes:
    """Sizes of what the loss is given: its positions are the targets, its width is the scoring table's."""
    model, shapes = run.model, step_shapes(run, statistics)
    if isinstance(model, config.Sasrec):
        return shapes
    # A tile of a user's targets is as wide as a window may be: how many are masked is not asked of the device.
    return bert4rec.asked(model, shapes, statistics.train_lengths, _deviations(run, statistics))._replace(
        longest=shapes.longest
    )


def n_parameters(model: config.Model, n_items: int) -> int:
    """SASRec's: item and position tables; a block: attention 4 D^2 + 4 D, feed-forward 2 D^2 + 2 D, two norms 4 D; the
    final norm."""
    if isinstance(model, config.Bert4rec):
        return bert4rec.n_parameters(model, n_items)
    D = model.hidden_size
    return (n_items + model.max_length) * D + model.n_blocks * (6 * D * D + 10 * D) + 2 * D


def activations(model: config.Model, shapes: Shapes) -> int:
    """What autograd keeps of the encoder until its backward pass, hidden states included.

    A block of SASRec, in (N, D): input, normalised queries, projected queries, keys and values (kept by the copy
    into the grid), attended rows, sum after attention, its norm, ReLU's result (and its dropout's, if that comes
    after); in (B L, D): queries, keys, values, attention's output, for memory-efficient attention keeps no L x L
    matrix; one byte a mask of dropout; mean and deviation of two norms; log-sum-exp of every query and head.
    """
    if isinstance(model, config.Bert4rec):
        return bert4rec.activations(model, shapes)
    dropped = model.dropout > 0
    states = 9 + (1 if dropped and model.ffn_dropout == "after_relu" else 0)
    mask = shapes.positions * shapes.width if dropped else 0
    rows = FLOAT * (4 * shapes.positions + shapes.cells * shapes.heads)
    block = states * shapes.states + 4 * shapes.grid + 2 * mask + rows
    # After the blocks: input of the final norm, its statistics, and the hidden states. Before: one more mask.
    return shapes.blocks * block + 2 * shapes.states + FLOAT * 2 * shapes.positions + mask


def _resident_data(run: config.Run, statistics: Statistics) -> int:
    """Training histories on the device: 4 bytes an item, two ids a user; for masks a byte an item and an id a user; for
    draws without seen items one id a pair and one a user; for popularity a cumulative count (an alias table) and a
    log probability an item, for draws from the batch the latter."""
    rows = sum(length * users for length, users in statistics.train_lengths)
    users = statistics.n_train_users
    loss, resident = run.loss, 4 * rows + 2 * ID * users
    if isinstance(run.model, config.Bert4rec):
        resident += rows + ID * users
    if isinstance(loss, config.Bce) or (isinstance(loss, config.CeMinus) and loss.exclude_history):
        resident += ID * (rows + users)
    if getattr(loss, "sampling", None) == "popularity":
        resident += (ID + FLOAT) * statistics.n_items
    if getattr(loss, "sampling", None) == "in_batch":
        resident += FLOAT * statistics.n_items
    return resident
