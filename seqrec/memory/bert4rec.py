"""Closed forms of BERT4Rec for `seqrec.memory`: parameters, what autograd keeps, how many positions are masked.

Imports neither torch nor numpy. Letters as there; M masked positions of N.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from seqrec.config import Bert4rec

if TYPE_CHECKING:
    from seqrec.memory import Shapes

FLOAT = 4


def scored_width(model: Bert4rec) -> int:
    """Columns of the table that scores, the bias among them."""
    return model.hidden_size + (1 if model.head_bias else 0)


def n_parameters(model: Bert4rec, n_items: int) -> int:
    """Item, head and position tables, the mask's vector; a block: attention 4 D^2 + 4 D, feed-forward 8 D^2 + 5 D, two
    norms 4 D."""
    D = model.hidden_size
    tables = n_items * (scored_width(model) + (D if model.head == "untied" else 0))
    return tables + (model.max_length + 1) * D + model.n_blocks * (12 * D * D + 13 * D)


def activations(model: Bert4rec, shapes: Shapes) -> int:
    """What autograd keeps of the encoder until its backward pass, the states of all N positions included.

    A block, in (N, D): input, its norm, projected queries, keys and values, attended rows, sum after attention, its
    norm, and twice the four of the wide layer, before and after GELU; in (B L, D): queries, keys, values, attention's
    output; one byte a mask of dropout, seven of (N, D); mean and deviation of two norms; log-sum-exp of every query and
    head; which cells are keys, as numbers.
    """
    mask = shapes.positions * shapes.width if model.dropout > 0 else 0
    rows = FLOAT * (4 * shapes.positions + shapes.cells * shapes.heads + shapes.cells)
    block = 16 * shapes.states + 4 * shapes.grid + 7 * mask + rows
    # Before the blocks: a mask of dropout, and which positions are masked.
    return shapes.blocks * block + FLOAT * shapes.positions * scored_width(model) + mask + shapes.positions


def amend(moments: dict[str, dict[str, int]], model: Bert4rec, shapes: Shapes, table: int) -> None:
    """Makes SASRec's moments those of BERT4Rec: another part of a block is freed before attention's backward pass, a
    block's widest gradients may be the peak, and an untied table has one gradient. table: bytes of the one that
    scores."""
    mask = shapes.positions * shapes.width if model.dropout > 0 else 0
    saved = moments["loss"]["activations"]
    moments["attention"]["activations"] = saved - 11 * shapes.states - 7 * mask
    moments["feed_forward"] = moments["attention"] | {
        # Freed: the input of the narrowing layer.
        "activations": saved - 4 * shapes.states - 2 * mask,
        "gradients": table,
        # The gradient that GELU is given and the one it gives, the state's and the sum's.
        "work": 10 * shapes.states,
    }
    if model.head == "untied":
        moments["embedding"]["gradients"] -= table


def asked(model: Bert4rec, shapes: Shapes, train_lengths: tuple[tuple[int, int], ...], deviations: float) -> Shapes:
    """Sizes of what the loss is given. train_lengths: as in the data's statistics."""
    targets = _masked(model, train_lengths, shapes.users, deviations)
    of_one = _masked(model, ((shapes.longest, 1),), 1, deviations)
    return shapes._replace(
        positions=min(targets, shapes.positions), longest=min(of_one, shapes.longest), width=scored_width(model)
    )


def _masked(model: Bert4rec, lengths: tuple[tuple[int, int], ...], users: int, deviations: float) -> int:
    """M of a batch of `users`, `deviations` standard deviations above the mean. lengths: (of a history, its users). A
    window's number is binomial, but for two corrections: never none, and never all of several."""
    n_users = sum(count for _, count in lengths)
    p, mean, square, within = model.mask_probability, 0.0, 0.0, 0.0
    for items, count in lengths:
        length = min(items, model.max_length)
        expected = length * p + (1 - p) ** length - (p**length if length > 1 else 0.0)
        mean += count * expected / n_users
        square += count * expected**2 / n_users
        within += count * length * p * (1 - p) / n_users
    between = max(0.0, square - mean**2) * (1 - users / n_users)
    return math.ceil(users * mean + deviations * math.sqrt(users * (between + within)))
