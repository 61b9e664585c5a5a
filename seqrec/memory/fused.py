"""What the losses by fused kernels hold, launch by launch, on a `Tape`. Neither torch nor numpy.

Each function follows the allocations of one kernel of `seqrec.kernels` from its arguments to its results, in the order
in which they are made, with operands of 16 bits and weights given. Letters: N positions, D columns, V items, K
candidates, G groups, R histories.
"""

from __future__ import annotations

from typing import NamedTuple

from seqrec import config
from seqrec.memory import plans
from seqrec.memory.losses import FLOAT, ID
from seqrec.memory.tape import Held, Tape

LOW, INT, SHORT = 2, 4, 2


class Asked(NamedTuple):
    """Sizes of what a loss is given."""

    positions: int
    width: int
    items: int
    rows: int
    """Histories, spare ones among them."""

    @property
    def states(self) -> int:
        return FLOAT * self.positions * self.width

    @property
    def table(self) -> int:
        return FLOAT * self.items * self.width


Gradients = tuple[Held, Held]
"""Of states and items."""


def takes_negatives(loss: config.Loss) -> bool:
    """Whether the loss by kernels is given negatives: cce_minus draws its own."""
    return hasattr(loss, "n_negatives") and not isinstance(loss, config.CceMinus)


def walk(tape: Tape, loss: config.Loss, a: Asked) -> Gradients:
    """Value and gradients of a loss whose negatives, if it is given some, are on the tape."""
    match loss:
        case config.Ce() | config.Cce():
            return _cross_entropy(tape, a)
        case config.Bce() | config.BcePlus() | config.Gbce() | config.CceMinus():
            return _sampled(tape, a, loss.n_negatives)
        case config.CeMinus():
            if loss.negatives_scope == "position":
                return _sampled(tape, a, loss.n_negatives)
            return _shared(tape, a, loss)
        case config.Rece():
            return _rece(tape, a, loss)
        case config.Sce():
            return _sce(tape, a, loss)


def sort(tape: Tape, n: int, key: int) -> tuple[Held, Held]:
    """(values, indices) of n numbers of `key` bytes: the device's radix sort reads indices from an array of their own,
    and works in a copy of both; up to 4,096 numbers are sorted where they are."""
    values, indices = tape.take(key * n), tape.take(ID * n)
    if n > 4096:
        tape.pass_by(ID * n, (key + ID) * n)
    return values, indices


def _cross_entropy(tape: Tape, a: Asked) -> Gradients:
    N, D, V = a.positions, a.width, a.items
    p = plans.cross_entropy(N, V, D)
    kept = [tape.take(LOW * p.n_padded * p.width), tape.take(LOW * p.v_padded * p.width)]
    keys = tape.take(INT * N)
    parts = [tape.take(FLOAT * p.stretches * p.n_padded), tape.take(FLOAT * p.stretches * p.n_padded * p.width)]
    kept.append(tape.take(FLOAT * p.n_padded))
    to_hidden = tape.take(a.states, "gradients")
    kept.append(tape.take(FLOAT * p.n_padded // 16))
    tape.drop(*parts)
    kept += sort(tape, N, INT)
    tape.drop(keys)
    if p.row_stretches == 1:
        to_items = tape.take(a.table, "gradients")
    else:
        kept.append(tape.take(a.table * p.row_stretches))
        to_items = tape.take(a.table, "gradients")
    tape.drop(*kept)
    return to_hidden, to_items


def _sampled(tape: Tape, a: Asked, K: int) -> Gradients:
    N, D, V = a.positions, a.width, a.items
    few = N * K <= 2 * V
    kept = [] if few else [tape.take(LOW * N * D), tape.take(LOW * V * D)]
    kept += [tape.take(FLOAT * N) for _ in range(3)]
    to_hidden = tape.take(a.states, "gradients")
    if not few:
        portion = max(1, min(N, plans.MOST_POSITIONS, plans.list_bytes(V, D) // (2 * K)))
        portion = -(-N // -(-N // portion))
        kept += [tape.take(SHORT * portion * K), tape.take(INT * V), tape.take(INT * V)]
    to_items = tape.take(a.table, "gradients")
    tape.drop(*kept)
    return to_hidden, to_items


def _shared(tape: Tape, a: Asked, loss: config.CeMinus) -> Gradients:
    N, D, V, K = a.positions, a.width, a.items, loss.n_negatives
    ragged = loss.negatives_scope == "user"
    G = a.rows if ragged else 1 if loss.negatives_scope == "batch" else max(1, -(-N // loss.group_size))
    kept = []
    if ragged:
        # The groups without spare positions are gone once each group's begin is known.
        group, ends = tape.take(ID * N), tape.take(ID * (G + 1))
        kept.append(tape.take(ID * (G + 1)))
        tape.drop(group, ends)
    to_items = tape.take(a.table, "gradients")
    p = plans.shared(N, V, D, G, K, ragged)
    if p.copied:
        kept.append(tape.take(LOW * V * D))
    to_hidden = tape.take(a.states, "gradients")
    kept += [tape.take(FLOAT * p.programs), tape.take(LOW * p.places * plans.power_of_2(D))]
    kept += [tape.take(FLOAT * p.places), tape.take(INT * p.places)]
    tape.drop(*kept)
    return to_hidden, to_items


def _rece(tape: Tape, a: Asked, loss: config.Rece) -> Gradients:
    N, D, V, rounds = a.positions, a.width, a.items, loss.rounds
    n_all, n_chunks = N + V, loss.n_buckets // loss.buckets_per_chunk
    dense = plans.is_dense(rounds, n_chunks, loss.n_extra_chunks)
    projections = FLOAT * rounds * loss.n_buckets * D
    kept = [tape.take(projections), tape.take(LOW * (n_all + plans.RECE_BEHIND) * D)]
    if not dense:
        kept.append(tape.take(INT * rounds * n_all))
    kept.append(tape.take(SHORT * (rounds if dense else rounds + rounds % 2) * n_all))
    keys = tape.take(SHORT * rounds * n_all)
    tape.pass_by(projections // 2)
    index: Held | None = None
    together = plans.rece_sorted_together(n_all, V, D, rounds, loss.n_buckets)
    whole, rest = divmod(rounds, together)
    for count in [together] * min(whole, 2) + [rest] * (rest > 0):
        # While some rounds are sorted the indices of those before them are still there.
        values, following = sort(tape, n_all * count, SHORT)
        tape.drop(values, index)
        index = following
    tape.drop(keys, index)
    kept += [tape.take(FLOAT * N) for _ in range(2)] + [tape.take(FLOAT * (N + 64))]
    to_hidden = tape.take(a.states, "gradients")
    to_items = _rece_blocks(tape, a, loss, n_chunks) if dense else _rece_rounds(tape, a, loss)
    if rounds > 1:
        targets = tape.take(INT * N)
        sorted_ = sort(tape, N, INT)
        tape.drop(targets, *sorted_)
    tape.drop(*kept)
    return to_hidden, to_items


def _rece_rounds(tape: Tape, a: Asked, loss: config.Rece) -> Held:
    N, D, V, rounds = a.positions, a.width, a.items, loss.rounds
    tiles = -(-N // plans.pick(plans.RECE_FORWARD, D)[0])
    stretches = max(1, min(-(-plans.RECE_PROGRAMS // tiles), plans.RECE_MOST_STRETCHES))
    length = 16 * (-(-N // 16) + -(-V // 16) + 32)
    n_longs = max(-(-(rounds - 1) // 4), 4 if rounds > 9 else 0)
    kept = [tape.take(2 * INT * (N + V)), tape.take(ID * n_longs * length)]
    parts = [tape.take(FLOAT * stretches * N) for _ in range(2)]
    if stretches > 1:
        parts.append(tape.take((stretches - 1) * a.states))
    tape.drop(*parts)
    to_items = tape.take(a.table, "gradients")
    kept.append(tape.take(FLOAT * (N + 512)))
    tape.drop(*kept)
    return to_items


def _rece_blocks(tape: Tape, a: Asked, loss: config.Rece, n_chunks: int) -> Held:
    N, D, V, rounds = a.positions, a.width, a.items, loss.rounds
    n, stretches = plans.rece_dense(N, V, D, rounds, n_chunks)
    groups = n // (32 * plans.RECE_WORDS)
    kept = [
        tape.take(INT * groups * rounds * n_chunks * plans.RECE_WORDS),
        tape.take(INT * groups * plans.RECE_WORDS * plans.up(V, 128)),
        tape.take(FLOAT * stretches * n),
        tape.take(FLOAT * stretches * n),
    ]
    if stretches > 1:
        kept.append(tape.take(FLOAT * (stretches - 1) * n * D))
    to_items = tape.take(a.table, "gradients")
    tape.drop(*kept)
    return to_items


def _sce(tape: Tape, a: Asked, loss: config.Sce) -> Gradients:
    N, D, V, B = a.positions, a.width, a.items, loss.n_buckets
    if loss.mix_x:
        padded = plans.up(B, plans.MIX_CENTRES)
        partial = tape.take(FLOAT * min(plans.MIX_SHARES, -(-N // plans.MIX_ROWS)) * padded * D)
        kept = [tape.take(FLOAT * padded * D)]
        tape.drop(partial)
    else:
        kept = [tape.take(FLOAT * B * D)]
    kept += [tape.take(LOW * N * D), tape.take(LOW * V * D), tape.take(ID * N)]
    kept.append(tape.take(INT * min(plans.SCE_PROGRAMS, -(-max(N, V) * D // 4096))))
    kept += [_top(tape, B, N, loss.bucket_size_x, D), _top(tape, B, V, loss.bucket_size_y, D)]
    # Scores, those of the winners, and who they are.
    kept += [tape.take(INT * B * loss.bucket_size_x) for _ in range(3)]
    to_hidden, to_items = tape.take(a.states, "gradients"), tape.take(a.table, "gradients")
    tape.drop(*kept)
    return to_hidden, to_items


def _top(tape: Tape, n_centres: int, M: int, k: int, D: int) -> Held:
    found = tape.take(INT * n_centres * k)
    groups = plans.groups_of_top(M, n_centres, k, D)
    capacity = 2 * k + max(16, min(256, 8192 // plans.power_of_2(D)))
    work = [tape.take(INT * n_centres * groups) for _ in range(3)]
    work += [tape.take(INT * n_centres * capacity) for _ in range(2)]
    work.append(tape.take(INT * n_centres * k))
    tape.drop(*work)
    return found
