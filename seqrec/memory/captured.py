"""The bytes of a captured step: what its graphs hold at their worst, and what is alive outside of them. No torch.

A step is captured in a few capacities; its graphs share one pool, so the largest of them counts: the smallest multiple
of the quantum that holds the largest likely batch. Spare histories fill it up. `seqrec.captured` reports the sum of the
pool's use and of the most that was allocated outside.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from seqrec import config
from seqrec.memory import bert4rec, encoder, fused, lowered
from seqrec.memory.draws import draw
from seqrec.memory.losses import FLOAT, ID, loss_work, n_draws
from seqrec.memory.tape import Held, Tape

if TYPE_CHECKING:
    from seqrec.data.tables import Statistics
    from seqrec.memory import Shapes

FINEST = 256
"""`seqrec.captured.FINEST`."""

WIDEST, WIDEST_HEAD = 512, 256
"""Columns that kernels hold: `seqrec.kernels.why_not`."""

LOSS_LIMITS = {
    "rece": {"n_buckets": 16_383},
    "sce": {"n_buckets": 65_535, "bucket_size_x": 1_000_000, "bucket_size_y": 1_000_000},
}
"""`seqrec.losses.fused.why_not`."""


class Capacity(NamedTuple):
    """`seqrec.data.batches.Capacity` of the largest graph."""

    positions: int
    targets: int
    rows: int
    longest: int
    quantum: int
    graphs: int
    """Capacities that the batches of a run are likely to need."""


def low_bytes(run: config.Run) -> int:
    """Of a number of the dtype that matrix products take, where training runs on a GPU."""
    precision = run.train.precision
    return 2 if precision == "bf16" or (precision == "auto" and run.train.engine != "eager") else FLOAT


def fused_loss(run: config.Run, width: int) -> bool:
    """Whether the loss is computed by kernels on a GPU that runs them. width: columns of the states it is given."""
    if run.train.kernels == "eager" or low_bytes(run) == FLOAT or width > WIDEST:
        return False
    if run.train.kernels == "auto" and run.train.engine == "eager":
        return False
    limits = LOSS_LIMITS.get(run.loss.name, {})
    return all(getattr(run.loss, key) <= most for key, most in limits.items())


def fused_encoder(model: config.Model) -> bool:
    """Whether the model's captured step has an encoder of kernels."""
    if not isinstance(model, config.Sasrec):
        return False
    return model.hidden_size <= WIDEST and model.hidden_size // model.n_heads <= WIDEST_HEAD


def capacity(run: config.Run, shapes: Shapes, asked: Shapes, mean: float) -> Capacity:
    """shapes, asked: of the largest likely batch and of its targets; mean: positions of a window."""
    batch = run.train.batch_size
    quantum = max(FINEST, round(mean * shapes.users / 12 / 64) * 64)
    positions = targets = -(-shapes.positions // quantum) * quantum
    if isinstance(run.model, config.Bert4rec):
        share = max(64, quantum // 4)
        targets = -(-asked.positions // share) * share
    spare = -(-quantum // run.model.max_length)
    # As many multiples of the quantum above the mean batch as below it.
    graphs = min(positions // quantum, 2 * math.ceil((positions - mean * shapes.users) / quantum))
    return Capacity(positions, targets, batch + spare, run.model.max_length, quantum, max(1, graphs))


HANDLE = 2**25
"""Bytes that cuBLAS takes for a thread and a stream on Hopper GPUs, as `seqrec.memory.MATRIX_WORKSPACE`."""


def workspaces(run: config.Run, between: bool) -> int:
    """Bytes of the matrix library's: of both threads on the stream of captures; of the main thread on its own stream,
    once the model is validated there or a loss works between graphs."""
    validated = run.train.epochs > run.train.valid_every
    return HANDLE * (3 if between or validated else 2)


def outside(tape: Tape, run: config.Run, statistics: Statistics, data: int) -> None:
    """What stays between steps. data: bytes of histories and of the sampler's tables."""
    sizes = parameter_sizes(run.model, statistics.n_items)
    for size in sizes:
        tape.take(FLOAT * size, "weights")
    tables = (
        [statistics.n_items * run.model.hidden_size, statistics.n_items * bert4rec.scored_width(run.model)]
        if (isinstance(run.model, config.Bert4rec))
        else [statistics.n_items * run.model.hidden_size]
    )
    for size in sizes:
        tape.take(FLOAT * size, "optimiser")
        rowwise = run.train.optimizer == "rowwise_adam" and size in tables
        tape.take(FLOAT * (statistics.n_items if rowwise else size), "optimiser")
        tape.take(FLOAT, "optimiser")
    if low_bytes(run) != FLOAT and fused_encoder(run.model):
        D = run.model.hidden_size
        for _ in range(run.model.n_blocks):
            for size in (3 * D * D, 3 * D, D * D, D, D * D, D, D * D, D):
                tape.take(2 * size, "weights")
    tape.take(data, "data")
    n_batches = batches(run, statistics)
    # The users of an epoch as they were planned, and where graphs read them.
    for _ in range(2):
        tape.take(ID * n_batches * run.train.batch_size, "data")
    tape.take(FLOAT * n_batches, "data")


def batches(run: config.Run, statistics: Statistics) -> int:
    """Steps of an epoch, one at least."""
    users, size = statistics.n_train_users, run.train.batch_size
    return max(1, users // size if run.train.drop_last else math.ceil(users / size))


def parameter_sizes(model: config.Model, V: int) -> list[int]:
    """Numbers of every parameter."""
    D = model.hidden_size
    if isinstance(model, config.Bert4rec):
        scored = bert4rec.scored_width(model)
        tables = [V * scored] if model.head == "tied" else [V * D, V * scored]
        block = [3 * D * D, 3 * D, D * D, D, D, D, D, D, 4 * D * D, 4 * D, 4 * D * D, D]
        return [*tables, model.max_length * D, D, *block * model.n_blocks]
    block = [3 * D * D, 3 * D, D * D, D, D * D, D, D * D, D, D, D, D, D]
    return [V * D, model.max_length * D, *block * model.n_blocks, D, D]


def step(tape: Tape, run: config.Run, shapes: Shapes, asked: Shapes, size: Capacity, fewest: int) -> None:
    """One captured step. fewest: items outside the history that holds the most.

    Where the loss stands between two graphs it works outside of them; the tape then holds the sum of both at their
    worst, as it is reported.
    """
    kernels = fused_loss(run, asked.width)
    between = not kernels and isinstance(run.loss, config.Rece | config.Sce)
    tape.take(workspaces(run, between), "workspace")
    given = asked._replace(positions=size.targets, users=size.rows, longest=size.longest)
    if between:
        tape.moment = "loss"
        # Each graph's batch, states and their gradient stay, for the loss to read and write.
        for number in range(size.graphs):
            here = size._replace(positions=max(size.quantum, size.positions - number * size.quantum))
            _batch(tape, here, isinstance(run.model, config.Bert4rec))
            tape.take(2 * FLOAT * min(size.targets, here.positions) * asked.width, "activations")
        tape.take(given.table, "gradients")
        tape.take(asked.states + asked.table, "gradients")
        tape.take(loss_work(run.loss, asked))
    tape.moment = "forward"
    batch = _batch(tape, size, isinstance(run.model, config.Bert4rec))
    encoded: encoder.Encoded | lowered.Encoded
    low = low_bytes(run)
    if fused_encoder(run.model):
        assert isinstance(run.model, config.Sasrec)
        sizes = encoder.Sizes(size.positions, size.rows, run.model, low)
        encoded = encoder.forward(tape, sizes)
    else:
        of_modules = lowered.Sizes(size.positions, size.rows, size.longest, shapes.items, run.model)
        encoded = lowered.forward(tape, of_modules)
    hidden = encoded.hidden
    if isinstance(run.model, config.Bert4rec):
        hidden = tape.take(given.states, "activations")
        tape.drop(encoded.hidden)
    gradients: tuple[Held, Held] | tuple[()] = ()
    if not between:
        tape.moment = "draw"
        gradients = _loss(tape, run, given, kernels, fewest)
    tape.moment = "backward"
    if isinstance(encoded, encoder.Encoded):
        encoder.backward(tape, sizes, encoded)
    else:
        lowered.backward(tape, of_modules, encoded)
    del hidden, batch, gradients


def draws(tape: Tape, loss: config.Loss, asked: Shapes, fewest: int, kernels: bool) -> list[Held]:
    """The negatives of a batch of these sizes, if its loss is given any."""
    if not hasattr(loss, "n_negatives") or (kernels and not fused.takes_negatives(loss)):
        return []
    n = n_draws(loss, asked) if isinstance(loss, config.CeMinus) else asked.positions
    return draw(tape, loss, n, asked.positions, asked.items, fewest)


def _loss(tape: Tape, run: config.Run, given: Shapes, kernels: bool, fewest: int) -> tuple[Held, Held]:
    """Negatives, and the loss's value and gradients."""
    held = draws(tape, run.loss, given, fewest, kernels)
    tape.moment = "loss"
    if kernels:
        found = fused.walk(tape, run.loss, fused.Asked(given.positions, given.width, given.items, given.users))
    else:
        found = tape.take(given.states, "gradients"), tape.take(given.table, "gradients")
        tape.pass_by(loss_work(run.loss, given))
    tape.drop(*held)
    return found


def _batch(tape: Tape, size: Capacity, masked: bool) -> list[Held]:
    """Items, rows and places of the positions, targets and weights, and what making them takes for a moment."""
    N, M, R = size.positions, size.targets, size.rows
    kept = [tape.take(ID * N, "batch") for _ in range(3)]
    kept += [tape.take(ID * M, "batch"), tape.take(FLOAT * M, "batch")]
    kept += [tape.take(ID * (R + 1), "batch"), tape.take(ID * R, "batch"), tape.take(ID * R, "batch")]
    if masked:
        kept += [tape.take(N, "batch"), tape.take(ID * M, "batch")]
    tape.pass_by(*[ID * N] * 3)
    return kept
