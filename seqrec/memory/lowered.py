"""What an encoder of modules holds whose matrix products and attention are bf16 (autocast), on a `Tape`. No torch.

BERT4Rec always, and SASRec where it has no fused kernels. Letters: N positions, C = rows x length cells of the
attention's grid, D columns, V items.
"""

from __future__ import annotations

from typing import NamedTuple

from seqrec import config
from seqrec.memory.losses import FLOAT, ID
from seqrec.memory.tape import Held, Tape

LOW = 2


class Sizes(NamedTuple):
    positions: int
    rows: int
    length: int
    """Of a row of the grid."""
    items: int
    model: config.Model

    @property
    def exact(self) -> int:
        return FLOAT * self.positions * self.model.hidden_size

    @property
    def grid(self) -> int:
        """Bytes of (C, D) in bf16."""
        return LOW * self.rows * self.length * self.model.hidden_size

    @property
    def mask(self) -> int:
        return self.positions * self.model.hidden_size if self.model.dropout > 0 else 0

    @property
    def deviations(self) -> int:
        """Bytes of a norm's two numbers a row."""
        return 2 * FLOAT * self.positions


class Encoded(NamedTuple):
    hidden: Held
    """(N, scored columns) float32."""
    attention: list[list[Held]]
    """Of each block: what is kept up to attention's result."""
    feed_forward: list[list[Held]]
    """Of each block: what is kept behind it."""
    rest: list[Held]


def forward(tape: Tape, s: Sizes) -> Encoded:
    """Inside attention copies into the grid stand beside what is copied; the wide layer is in bf16."""
    kept = "activations"
    bert = isinstance(s.model, config.Bert4rec)
    cells = s.rows * s.length
    # Indices of the grid, masks of dropout and of what is asked.
    rest = [tape.take(ID * s.positions, kept), tape.take(s.mask + s.positions, kept)]
    states = tape.take(s.exact, kept)
    tape.pass_by(2 * s.exact)
    attention, feed_forward = [], []
    for _ in range(s.model.n_blocks):
        low = s.exact // 2
        of_attention = [states, tape.take(s.deviations, kept)]
        normal = tape.take(s.exact)
        # Arguments of both projections in bf16.
        of_attention += [tape.take(low, kept), tape.take(low, kept)]
        # Projected queries, keys and values, which the copy into the grid keeps.
        of_attention += [tape.take(low, kept), tape.take(2 * low, kept)]
        of_attention += [tape.take(s.grid, kept), tape.take(2 * s.grid, kept)]
        tape.pass_by(2 * s.grid)
        of_attention += [tape.take(s.grid, kept), tape.take(FLOAT * cells * s.model.n_heads, kept)]
        of_attention.append(tape.take(low, kept))
        attended = tape.take(low)
        if bert:
            of_attention.append(tape.take(s.mask, kept))
            dropped = tape.take(low)
            states = tape.take(s.exact, kept)
            tape.drop(dropped)
        else:
            states = tape.take(s.exact, kept)
        tape.drop(attended, normal)
        attention.append(of_attention)
        of_rest = [states, tape.take(s.deviations, kept)]
        out = tape.take(s.exact)
        of_rest.append(tape.take(low, kept))
        if bert:
            tape.drop(out)
            of_rest += [tape.take(4 * low, kept), tape.take(4 * s.mask, kept), tape.take(4 * low, kept)]
            wide = tape.take(4 * low)
            tape.drop(wide)
            narrowed = tape.take(low)
            of_rest.append(tape.take(s.mask, kept))
            summed = tape.take(s.exact)
            of_rest.append(tape.take(s.mask, kept))
            states = tape.take(s.exact, kept)
            tape.drop(narrowed, summed)
        else:
            # ReLU's result and dropout's; the residual is the norm's result.
            of_rest += [tape.take(low, kept), tape.take(s.mask, kept), tape.take(s.mask, kept)]
            inner = tape.take(low)
            states = tape.take(s.exact, kept)
            tape.drop(inner, out)
        feed_forward.append(of_rest)
    if isinstance(s.model, config.Bert4rec):
        columns = s.model.hidden_size + (1 if s.model.head_bias else 0)
        hidden = tape.take(FLOAT * s.positions * columns, kept) if s.model.head_bias else states
        if s.model.head_bias:
            tape.drop(states)
    else:
        rest += [states, tape.take(s.deviations, kept)]
        hidden = tape.take(s.exact, kept)
    return Encoded(hidden, attention, feed_forward, rest)


def backward(tape: Tape, s: Sizes, encoded: Encoded) -> None:
    """Frees what `forward` kept but the hidden states; leaves the parameters' gradients but the scoring table's."""
    D, low, bert = s.model.hidden_size, s.exact // 2, isinstance(s.model, config.Bert4rec)
    gradient = tape.take(s.exact)
    for number in reversed(range(s.model.n_blocks)):
        if bert:
            # Through two dropouts; then of the narrow layer's argument, of GELU's result, and of its argument.
            masked = tape.take(s.exact)
            tape.drop(gradient)
            gradient = masked
            narrow = [tape.take(low), tape.take(low)]
            wide = [tape.take(4 * low), tape.take(4 * low)]
            tape.pass_by(4 * low)
            tape.drop(*wide, *narrow)
            tape.pass_by(4 * low, low, s.exact, s.exact, s.exact, s.exact)
            tape.take(FLOAT * 8 * D * D + FLOAT * 5 * D, "gradients")
        else:
            tape.pass_by(3 * low, s.exact, s.exact)
            tape.take(FLOAT * 2 * D * D, "gradients")
        tape.drop(*encoded.feed_forward[number])
        grids = tape.take(s.grid)
        of_grids = tape.take(3 * s.grid)
        tape.pass_by(3 * low, 2 * s.grid)
        tape.drop(grids)
        tape.pass_by(3 * low, 2 * low, s.exact)
        tape.take(FLOAT * 4 * D * D, "gradients")
        tape.drop(of_grids, *encoded.attention[number])
    tied = isinstance(s.model, config.Bert4rec) and s.model.head == "tied"
    columns = D + 1 if tied and isinstance(s.model, config.Bert4rec) and s.model.head_bias else D
    looked_up = tape.take(FLOAT * s.positions * columns)
    # Indices are sorted for the dense gradient of the table that is looked up in.
    found = tape.take(FLOAT * s.items * columns, "gradients")
    tape.pass_by(5 * ID * s.positions)
    tape.take(FLOAT * s.model.max_length * D, "gradients")
    tape.drop(looked_up, gradient, *encoded.rest)
    if tied or not bert:
        # It is added to the loss's in place.
        tape.drop(found)
