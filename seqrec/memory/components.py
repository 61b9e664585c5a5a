"""What each part of a train step takes, in closed form: `predict_peak`'s moments told by component. No torch, no numpy.

The step in stages, as the published memory measurement cuts it: negatives are drawn; forward through the backbone; the
loss's value; its gradients; backward through the backbone; the optimiser. A stage peaks at what is alive when it begins
plus what it takes itself. Two kinds of component follow: what stays (weights, activations) and what a stage takes at
its worst beyond what stayed before it (`loss_forward`, `backbone_backward`). Letters are those of `seqrec.memory`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from seqrec import config, memory
from seqrec.memory import losses

if TYPE_CHECKING:
    from seqrec.data.tables import Statistics

REFERENCE_CE = "reference_ce"
"""Cross-entropy as the published code computes it: a loss of the memory command alone."""

MEANINGS = {
    "weights": "parameters",
    "gradients": "of all parameters, after the backward pass",
    "optimiser": "its state between steps",
    "data": "training histories and the sampler's tables",
    "workspace": "the matrix library's",
    "batch": "ids and indices of one batch",
    "negatives": "ids of the batch's negatives",
    "drawing": "work of drawing them",
    "activations": "what the backbone keeps until its backward pass, hidden states included",
    "loss_forward": "what the loss's value alone takes",
    "loss_backward": "what value and gradients together take beyond that",
    "loss_gradients": "of it, what stays: gradients of hidden states and item embeddings",
    "backbone_backward": "beyond what is alive when it begins: activations and loss_gradients among it",
    "optimiser_step": "beyond what is alive when it begins",
}
"""Every component in the order of the step, and what it counts."""

STATE = ("weights", "gradients", "optimiser")
"""Their sum does not depend on batch or loss, and is alive whenever the optimiser works."""

RESIDENT = ("weights", "optimiser", "data", "workspace", "batch", "negatives")

STAGES: dict[str, tuple[str, ...]] = {
    "drawing": (*RESIDENT, "drawing"),
    "forward": (*RESIDENT, "activations"),
    "loss": (*RESIDENT, "activations", "loss_forward", "loss_backward"),
    "backbone_backward": (*RESIDENT, "activations", "loss_gradients", "backbone_backward"),
    "optimiser_step": (*RESIDENT, "gradients", "optimiser_step"),
}
"""Stage -> the components that are alive together where it peaks. Gradients of parameters exist from the loss on: a
step drops those of the step before it."""


@dataclass(frozen=True)
class Breakdown:
    """The bytes of one configuration's step, predicted or measured."""

    components: Mapping[str, int]
    """By the names of MEANINGS. Missing: not reached."""
    peaks: Mapping[str, int]
    """Stage -> most bytes alive in it. Missing: not reached."""
    oom: str | None = None
    """What was running when the device's memory ran out."""

    @property
    def state_bytes(self) -> int | None:
        """Weights, gradients and optimiser state; None: not reached."""
        sizes = [self.components.get(name) for name in STATE]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    @property
    def moment(self) -> str | None:
        """The stage in which the step peaks; None if it never came to its end."""
        if self.oom is not None or not self.peaks:
            return None
        return max(self.peaks, key=lambda stage: self.peaks[stage])

    @property
    def peak_bytes(self) -> int | None:
        """Of the whole step; None if it never came to its end."""
        return None if self.moment is None else self.peaks[self.moment]

    def stack(self) -> dict[str, int]:
        """What is alive at the peak, by component; the sum is `peak_bytes`. `other`: measured, and in no component.

        A step that ran out of memory: whatever it had reached, by component.
        """
        if self.moment is None:
            alive = (*RESIDENT, "gradients", "activations", "loss_forward", "loss_backward")
            return {name: self.components[name] for name in alive if name in self.components}
        parts = {name: self.components[name] for name in STAGES[self.moment]}
        rest = self.peaks[self.moment] - sum(parts.values())
        return parts | ({"other": rest} if rest > 0 else {})


def predict(run: config.Run, statistics: Statistics, *, reference_ce: bool = False) -> Breakdown:
    """The components of one step of `run`. reference_ce: with the published cross-entropy in the place of its loss."""
    asked = memory.loss_shapes(run, statistics)
    moments = memory.moments(run, statistics)
    loss = moments["loss"]
    saved, kept = loss["activations"], asked.states + asked.table
    if reference_ce:
        assert isinstance(run.model, config.Sasrec), "the published code that it measures trains SASRec"
        value, gradients = _reference(run.model, asked)
    else:
        value = value_work(run.loss, asked)
        gradients = kept + loss["work"] - value
    resident = sum(loss[name] for name in RESIDENT)
    backward = max(sum(parts.values()) for name, parts in moments.items() if name not in ("plan", "draw", "loss"))
    components = {
        **{name: loss[name] for name in RESIDENT},
        "gradients": loss["weights"],
        "drawing": moments["draw"]["work"],
        "activations": saved,
        "loss_forward": value,
        "loss_backward": gradients,
        "loss_gradients": kept,
        "backbone_backward": max(0, backward - resident - saved - kept),
        # Adam's fused kernel works in place.
        "optimiser_step": 0,
    }
    components = {name: components[name] for name in MEANINGS}
    return Breakdown(components, {stage: sum(components[name] for name in alive) for stage, alive in STAGES.items()})


def value_work(loss: config.Loss, shapes: memory.Shapes) -> int:
    """What a loss holds at its worst while it computes its value and no gradient, besides negatives' ids; at most
    `memory.loss_work`, which also has what the gradients take in each tile."""
    N, D, V = shapes.positions, shapes.width, shapes.items
    whole = losses.loss_work(loss, shapes)
    match loss:
        case config.Ce():
            # The buffer of logits, which becomes the softmax in place.
            return whole
        case config.Cce():
            # Logits of a block and their exponentials; or, at the beginning, the targets' embeddings.
            logits = losses.tile(losses.TILE_BYTES, N, 2 * memory.FLOAT * min(V, loss.block_items))
            return max(logits, shapes.states)
        case config.Bce() | config.BcePlus() | config.Gbce() | config.CceMinus():
            return min(whole, _sampled_value(N, N, loss.n_negatives, D))
        case config.CeMinus():
            slots = shapes.users * shapes.longest if loss.negatives_scope == "user" else N
            return min(whole, _sampled_value(losses.n_draws(loss, shapes), slots, loss.n_negatives, D))
        case config.Sce():
            # Buckets and winners are found for the value's sake; only the gradient of the covered states is not held.
            return whole - shapes.states
        case config.Rece():
            return min(whole, _rece_value(loss, shapes))


def _sampled_value(n_draws: int, n_positions: int, n_candidates: int, width: int) -> int:
    """Ids and embeddings of a draw's candidates, without their gradient; about four copies of K scores and two states a
    position. The tiles are those of the gradients; while one is gathered the last one's embeddings are still there."""
    K, D = n_candidates, width
    embeddings = n_draws * K * D
    value = embeddings + n_draws * K * 2 + n_positions * (4 * K + 2 * D)
    gradients = 2 * embeddings + n_positions * 4 * (K + D)
    tile = losses.sampled(n_draws, n_positions, K, D)
    following = min(memory.FLOAT * gradients - tile, tile)
    return (tile * value + following * embeddings) // gradients


def _rece_value(loss: config.Rece, shapes: memory.Shapes) -> int:
    """As `memory.loss_work`, but each tile of candidates is without its gradients, and so is the whole."""
    N, D, V = shapes.positions, shapes.width, shapes.items
    n_chunks = loss.n_buckets // loss.buckets_per_chunk
    window = min(V, math.ceil(V * (1 + 2 * loss.n_extra_chunks) / n_chunks) + 1)
    pairs, vectors = memory.FLOAT * 2 * window + 3 * window + memory.FLOAT * D, memory.FLOAT * window * D
    steps = [
        losses.tile(losses.TILE_BYTES, max(N, V), memory.FLOAT * loss.n_buckets),
        5 * memory.ID * max(N, V),
        min(N * pairs + n_chunks * vectors, max(losses.TILE_BYTES, pairs + vectors)),
    ]
    tables = loss.rounds * (N + V) * (memory.FLOAT + (2 if n_chunks < 2**15 else 4))
    return tables + shapes.states + max(steps)


def _reference(model: config.Sasrec, shapes: memory.Shapes) -> tuple[int, int]:
    """Work of the published cross-entropy's value; of its gradients beyond that.

    Logits of all B * L cells of the batch, pads included; the rows of valid positions copied out of them; their log
    softmax. The gradients: of the valid rows beside that of all logits; then of all logits beside the states' grid, its
    gradient and the item table's.
    """
    N, V = shapes.positions, shapes.items
    cells = shapes.users * model.max_length
    grid, logits, rows = (memory.FLOAT * size for size in (cells * shapes.width, cells * V, N * V))
    value = grid + logits + 2 * rows
    backward = max(grid + 3 * rows, grid + logits + rows, 2 * grid + logits + shapes.table)
    return value, max(0, backward - value)
