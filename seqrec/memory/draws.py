"""What drawing negatives holds, on a `Tape`: the tensors of `seqrec.data.negatives`, in their order. No torch.

Letters: G draws of K items, in tiles of rows; V items.
"""

from __future__ import annotations

from functools import lru_cache

from seqrec import config
from seqrec.memory import losses
from seqrec.memory.losses import ID
from seqrec.memory.tape import Held, Tape

DENSE_SHARE = 0.25
"""Of the eligible items: where drawing without replacement turns from leaving out duplicates to sorting random keys."""

spare = lru_cache(maxsize=1024)(losses.spare_draws)


def draw(tape: Tape, loss: config.Loss, n_draws: int, n_positions: int, V: int, fewest: int) -> list[Held]:
    """A batch's negatives, which stay, with each position's group where groups are dealt. fewest: items that a draw
    without replacement can choose from, at least."""
    K = int(getattr(loss, "n_negatives", 0))
    held: list[Held] = []
    if isinstance(loss, config.CeMinus) and loss.negatives_scope in ("group", "batch"):
        held.append(tape.take(ID * n_positions, "negatives"))
    held.append(tape.take(ID * n_draws * K, "negatives"))
    distinct = isinstance(loss, config.Bce) or (isinstance(loss, config.CeMinus) and not loss.with_replacement)
    excluded = isinstance(loss, config.Bce) or (isinstance(loss, config.CeMinus) and loss.exclude_history)
    sampling = getattr(loss, "sampling", "uniform")
    rows = min(n_draws, max(1, losses.DRAW_ELEMENTS // K))
    numbers = ID * rows * K
    several = n_draws > rows
    if sampling == "popularity":
        tape.pass_by(numbers, numbers)
        return held
    # Of the tile before, whose name is not used again yet.
    last = tape.take(numbers) if several else None
    if sampling == "in_batch":
        tape.pass_by(numbers, numbers)
    else:
        chosen = _distinct(tape, rows, K, V, fewest) if distinct else tape.take(numbers)
        if excluded:
            tape.drop(last)
            last = None
            tape.pass_by(numbers, numbers, numbers)
        tape.drop(chosen)
    tape.drop(last)
    return held


def _distinct(tape: Tape, rows: int, K: int, V: int, fewest: int) -> Held:
    """(rows, K) ranks, none twice in a row."""
    ranks = tape.take(ID * rows * K)
    if DENSE_SHARE * fewest < K:
        here = min(rows, max(1, losses.DRAW_ELEMENTS // V))
        before = [tape.take(ID * here * V)] if rows > here else []
        column, keys = tape.take(ID * V), tape.take(ID * here * V)
        tape.pass_by(here * V)
        tape.pass_by(ID * here * K, ID * here * K)
        tape.drop(column, keys, *before)
        return ranks
    M = K + spare(K, fewest)
    here = min(rows, max(1, losses.DRAW_ELEMENTS // M))
    cells = here * M
    # Draws, their sorted keys and numbers, which are fresh, places, which are repeated; the result and wide places.
    tape.pass_by(ID * cells, ID * cells, ID * cells, cells, 4 * cells, cells, ID * here * (K + 1), ID * cells)
    return ranks
