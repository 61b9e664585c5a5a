"""What SASRec's encoder by fused kernels holds, forward and backward, on a `Tape`. Neither torch nor numpy.

The order is that of `seqrec.models.fused`: every `take` is a tensor made there or in a kernel's autograd function,
every `drop` the moment at which the last name or saved tensor lets go of it. Letters: N positions, D columns, R
histories.
"""

from __future__ import annotations

from typing import NamedTuple

from seqrec import config
from seqrec.memory import plans
from seqrec.memory.losses import FLOAT
from seqrec.memory.tape import Held, Tape

PROGRAMS = 264
"""`seqrec.kernels.launch.PROGRAMS`: partial sums over rows."""


class _Block(NamedTuple):
    """What a block keeps for its backward pass."""

    base: list[Held]
    """The argument of its first norm, with the statistics."""
    low: list[Held]
    """Arguments of the projections: normalised queries, and keys and values if those are a copy."""
    attention: list[Held]
    attended: Held
    inner: list[Held]
    """The sum after attention, with its norm's statistics."""
    inner_low: Held | None
    relu: Held
    """ReLU's result."""


class Encoded(NamedTuple):
    hidden: Held
    """(N, D) float32, the result."""
    blocks: list[_Block]
    last: list[Held]
    """The sum behind the last block, with its norm's statistics."""


class Sizes(NamedTuple):
    positions: int
    rows: int
    model: config.Sasrec
    low: int
    """Bytes of a number of the low dtype; 4: there is none, and no copies are made."""

    @property
    def exact(self) -> int:
        return FLOAT * self.positions * self.model.hidden_size

    @property
    def lowered(self) -> int:
        return self.low * self.positions * self.model.hidden_size


def attention_block(head: int, low: int) -> int:
    """Queries of a block of the attention's kernels."""
    wide = head * (2 if low == FLOAT else 1)
    return 64 if wide <= 64 else 32 if wide <= 128 else 16


def forward(tape: Tape, s: Sizes) -> Encoded:
    same, kept = s.low == FLOAT, "activations"
    states = tape.take(s.exact, kept)
    states_low = None if same else tape.take(s.lowered, kept)
    base = [states, *_statistics(tape, s)]
    query = tape.take(s.exact, kept)
    query_low = query if same else tape.take(s.lowered, kept)
    blocks: list[_Block] = []
    # Of the last pass through the loop; names hold them until they are used again.
    attended_out: Held | None = None
    inner_out: Held | None = None
    for number in range(s.model.n_blocks):
        lows = [query_low, *([] if states_low is None else [states_low])]
        attention = [tape.take(s.lowered, kept), tape.take(2 * s.lowered, kept)]
        attended = tape.take(s.lowered, kept)
        attention.append(tape.take(FLOAT * s.positions * s.model.n_heads, kept))
        following = tape.take(s.lowered)
        tape.drop(attended_out)
        attended_out = following
        inner = [tape.take(s.exact, kept)]
        out = tape.take(s.exact, kept if same else "work")
        inner_low = None if same else tape.take(s.lowered, kept)
        inner += _statistics(tape, s)
        if same:
            # The product keeps the norm's result itself.
            inner_low = out
        elif inner_out is not None:
            tape.drop(inner_out)
        inner_out = out
        first = tape.take(s.lowered)
        relu = tape.take(s.lowered, kept)
        tape.drop(first)
        second = tape.take(s.lowered)
        last = number == s.model.n_blocks - 1
        total = [tape.take(s.exact, kept)]
        total_low = None if same or last else tape.take(s.lowered, kept)
        query_out = tape.take(s.exact, kept)
        out_low = None if same or last else tape.take(s.lowered, kept)
        total += _statistics(tape, s)
        if not same:
            tape.drop(query)
        blocks.append(_Block(base, lows, attention, attended, inner, inner_low, relu))
        base, query, states_low = total, query_out, total_low
        query_low = query if out_low is None else out_low
        tape.drop(second)
    tape.drop(attended_out, None if same else inner_out)
    return Encoded(query, blocks, base)


def backward(tape: Tape, s: Sizes, encoded: Encoded) -> None:
    """Frees what `forward` kept but the hidden states, which the caller holds; leaves the parameters' gradients, those
    of the item table apart, which the caller has made."""
    D, low = s.model.hidden_size, s.low
    same = low == FLOAT
    total = encoded.last
    to_branch, to_base = _norm(tape, s, branch=True)
    tape.drop(*total)
    for number in reversed(range(s.model.n_blocks)):
        block = encoded.blocks[number]
        # Through the narrowing product, ReLU, and the first product.
        gradient = tape.take(s.lowered)
        _square(tape, D)
        tape.drop(to_branch)
        to_product = tape.take(s.lowered)
        tape.pass_by(FLOAT * PROGRAMS * D)
        tape.drop(gradient, block.relu)
        gradient = tape.take(s.lowered)
        _square(tape, D)
        tape.drop(to_product, block.inner_low)
        if same:
            # The residual's and the product's gradients of one tensor are added.
            tape.drop(gradient)
        own = to_base
        to_branch, to_base = _norm(tape, s, branch=True)
        tape.drop(None if same else gradient, own, *block.inner)
        gradient = tape.take(s.lowered)
        _square(tape, D)
        tape.drop(to_branch)
        grads = [tape.take(s.lowered), tape.take(2 * s.lowered)]
        rows = s.rows * -(-s.model.max_length // attention_block(D // s.model.n_heads, low))
        tape.pass_by(FLOAT * rows * 3 * D)
        tape.drop(gradient, *block.attention, block.attended)
        projected = [tape.take(s.lowered), tape.take(s.lowered)]
        parts = [tape.take(FLOAT * D * D), tape.take(FLOAT * 2 * D * D)]
        tape.take(FLOAT * 3 * D * D, "gradients")
        tape.drop(*parts, *grads, *block.low)
        own = to_base
        to_branch, to_base = _norm(tape, s, branch=number > 0)
        tape.drop(own, *projected, *block.base)
    tape.drop(to_branch)
    # Through dropout, to the places; the table's share is added where it belongs.
    dropped = tape.take(s.exact)
    tape.take(FLOAT * s.model.max_length * D, "gradients")
    tape.drop(dropped, to_base)


def _statistics(tape: Tape, s: Sizes) -> list[Held]:
    return [tape.take(2 * FLOAT * s.positions, "activations")]


def _square(tape: Tape, D: int) -> None:
    tape.take(FLOAT * D * D, "gradients")


def _norm(tape: Tape, s: Sizes, *, branch: bool) -> tuple[Held | None, Held]:
    """(gradient of the branch, gradient of the base)."""
    D = s.model.hidden_size
    to_base = tape.take(s.exact)
    to_branch = tape.take(s.lowered) if branch else None
    programs = max(1, min(PROGRAMS, -(-s.positions // plans.row_block(D))))
    tape.pass_by(FLOAT * programs * 3 * D)
    tape.take(FLOAT * 3 * D, "gradients")
    return to_branch, to_base
