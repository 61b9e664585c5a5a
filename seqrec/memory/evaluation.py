"""Closed forms of what evaluation holds beyond weights and optimiser, and the tiles that keep it there. No torch.

Batches to encode hold `evaluation.batch_size` users with the longest histories, and of shorter ones as many as fill the
same rectangle, or a larger one that takes no more memory than ranking is going to take: encoding more users at once
does not raise the peak.

Scores are computed in tiles of U users by W items. `tile_for` is what `seqrec.ranking` works by and `scoring_bytes`
what it then allocates, so that budget (`evaluation.memory_bytes`) and prediction cannot drift apart. Counted is what
the device's allocator is asked for; not counted are rounding, fragmentation, and the workspaces of libraries.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from seqrec import config
from seqrec.memory import FLOAT, ID, resident_bytes

if TYPE_CHECKING:
    from seqrec.data.tables import Statistics

MOST_ENCODED = 2**15
"""Users of a batch that is encoded at once at most, whatever its rectangle: a launch has no more than 65,535 rows."""

LEAST_GROUP = 32
"""Items of a group at least: maxima of shorter runs cost as much as whole reductions."""

LEAST_USERS = 32
"""Whole rows of scores are kept while those of so many users fit; fewer would waste the matrix product."""

COMPARED_PARTS = 8
"""A tile is compared with its targets in so many parts of its users: the results of one are still in the cache when
they are added up, and take an eighth of the tile's memory."""

STREAMED_USERS = 256
"""Users of a tile that is not as wide as the catalog: each slab of users reads the item table twice."""

LEAST_WIDTH = 2**12
"""Items of such a tile at least, unless there is one user left."""

MOST_WIDTH = 2**24
"""Items of a tile at most: counts up to this are exact in float32."""


class Tile(NamedTuple):
    """Scores that are alive at a time."""

    users: int
    items: int
    """Columns, a multiple of `group`; may exceed the catalog by less than a group, where one tile holds all of it."""
    group: int
    """Neighbouring items that are looked at as one: only their maximum, until it is among the best."""

    def count(self, n_items: int) -> int:
        """Tiles of one slab of users."""
        return math.ceil(n_items / self.items)

    def start(self, number: int, n_items: int) -> int:
        """The first item of a tile. All tiles of a slab have one shape, so that the matrix product works alike in all
        of them and equal embeddings get equal scores; the last one reaches back into the one before it for that."""
        return max(0, min(number * self.items, n_items - self.items))


def tile_for(memory_bytes: int, users: int, n_items: int, k: int) -> Tile:
    """The tile for batches of `users`, `n_items` items and lists of k (0: none) within `memory_bytes`.

    Rows of the whole catalog, if `LEAST_USERS` of them fit: one matrix product then serves the target's score, the
    count and the list. Otherwise narrower tiles for more users, and two products. At least one user and `LEAST_GROUP`
    items, whatever the budget.
    """
    whole = _tile(COMPARED_PARTS, n_items, n_items, k)
    fit = COMPARED_PARTS * memory_bytes // scoring_bytes(whole, k)
    while fit and scoring_bytes(whole._replace(users=fit), k) > memory_bytes:
        fit -= 1
    if fit >= min(users, LEAST_USERS) and whole.items <= MOST_WIDTH:
        return whole._replace(users=_balanced(users, fit))
    slab = min(users, STREAMED_USERS)
    while True:
        tile = _widest(memory_bytes, _balanced(users, slab), n_items, k)
        # A group less than the least width: whole groups are fewer items.
        wide = tile.items + tile.group > min(LEAST_WIDTH, n_items)
        if slab == 1 or (wide and scoring_bytes(tile, k) <= memory_bytes):
            return tile
        slab //= 2


def scoring_bytes(tile: Tile, k: int) -> int:
    """Bytes that ranking one slab of users holds at its worst, besides states, targets and ids of seen items.

    Always scores, and of a part of the users the comparison with the target's. Of a group, for ranks: a threshold and
    on which side of the target it lies; for lists: its maximum, that in the order of keys, and the key of 8 bytes. Of a
    candidate for lists (the members of the k best groups): its score, that in the order of keys, key and id. k keys,
    before and after.
    """
    groups = tile.items // tile.group
    candidates = min(k, groups) * tile.group
    ranks = groups * (FLOAT + 1)
    best = groups * (2 * FLOAT + ID) + 2 * k * ID
    merge = candidates * (2 * FLOAT + 2 * ID) + 4 * k * ID
    work = max(ranks, best, merge) if k else ranks
    # Target's score, its group and the count of what is ahead.
    own = 12 * ID + tile.group * (FLOAT + ID)
    return FLOAT * tile.items * (tile.users + compared_users(tile.users)) + tile.users * (work + own)


def compared_users(users: int) -> int:
    """How many of a tile's users are compared with their targets at a time."""
    return math.ceil(users / COMPARED_PARTS)


def evaluation_bytes(run: config.Run, statistics: Statistics) -> int:
    """Most bytes that one evaluation of `run` holds beyond weights and optimiser: of validation or test, an upper bound
    but for the temporal split's histories, which are taken as long as their mean."""
    users, rows, longest = _histories(run, statistics)
    batch = min(run.evaluation.batch_size, users)
    k = max(config.CUTOFFS)
    tile = tile_for(run.evaluation.memory_bytes, batch, statistics.n_items, k)
    # Items of histories, their ends and lengths; order, target and rank of every user.
    resident = FLOAT * rows + 5 * ID * users
    # Validation asks for no lists.
    room = max(scoring_bytes(tile_for(run.evaluation.memory_bytes, batch, statistics.n_items, n), n) for n in (0, k))
    width = min(run.model.max_length, longest)
    cells = encoded_cells(batch, width, run.model.hidden_size, room)
    encoded = min(users, MOST_ENCODED, max(batch, cells // 2))
    states = FLOAT * encoded * (run.model.hidden_size + isinstance(run.model, config.Bert4rec))
    seen = ID * min(rows, batch * longest) if run.evaluation.exclude_seen else 0
    length = width if _pads_hidden(run.model) else run.model.max_length
    ranking = max(seen + scoring_bytes(tile, k), counting_bytes(encoded, seen // ID))
    return resident + max(encoding_bytes(run.model, batch, length), room, states + ranking)


def encoded_cells(batch: int, width: int, hidden_size: int, room: int) -> int:
    """Cells that the rectangle of a batch to encode may have, a row being one longer than its history: those of `batch`
    histories of `width` cells, or what fits into the `room` (bytes) that ranking takes anyway."""
    return max(batch * (width + 1), room // _cell_bytes(hidden_size, _MOST_COPIES))


def counting_bytes(users: int, pairs: int) -> int:
    """Bytes that ranking by `seqrec.kernels.ranking` holds besides states and targets: an owner for each seen pair; for
    each user its ordinal, two lengths, where its history begins on the device and among the pairs and where it ends,
    the target's score and two counts, and of the result a copy."""
    return ID * pairs + users * (8 * ID + 3 * FLOAT + 4)


def evaluation_peak(run: config.Run, statistics: Statistics) -> int:
    """Most bytes that are alive while a run on a GPU is validated: what training reports as `memory/evaluation_gib`."""
    return resident_bytes(run, statistics) + evaluation_bytes(run, statistics)


def encoding_bytes(model: config.Model, users: int, length: int) -> int:
    """Bytes of encoding `users` full histories of `length` items without gradients: an upper bound on any others.

    Worst inside attention: input, normalised and projected queries, keys and values as states; the last three again in
    the grid, attention's output and a copy of it; where pads are no keys, the zeros that keys and values replace
    (BERT4Rec's wide layer, before and after its GELU, is less). Ids, places and indices beside it.
    """
    return users * length * _cell_bytes(model.hidden_size, _MOST_COPIES if _pads_hidden(model) else _MOST_COPIES - 2)


_MOST_COPIES = 5 + 5 + 2
"""Of a cell's state while it is encoded, as `encoding_bytes` counts them."""


def _cell_bytes(hidden_size: int, copies: int) -> int:
    return copies * FLOAT * hidden_size + 7 * ID


def _pads_hidden(model: config.Model) -> bool:
    """Whether pads are no keys of the attention."""
    return isinstance(model, config.Bert4rec) or model.mask_padding


def _histories(run: config.Run, statistics: Statistics) -> tuple[int, int, int]:
    """Evaluated users, the rows of their longer histories (those of the test), and the length of a long one."""
    fates = dict(statistics.rows)
    users = fates["valid"]
    if run.data.split == "leave_one_out":
        return users, fates["train"] + users, statistics.longest_train_history + 1
    rows = fates.get("history", 0) + users
    return users, rows, math.ceil(rows / users)


def _tile(users: int, width: int, n_items: int, k: int) -> Tile:
    """The tile of about `width` columns with the group for it: groups and members of the k best, together the fewest,
    are sqrt(width / k) long; the next power of two."""
    width = min(width, n_items)
    group = max(LEAST_GROUP, 2 ** round(math.log2(max(1.0, math.sqrt(width / k))))) if k else LEAST_GROUP
    return Tile(users, max(1, math.ceil(width / group) if width == n_items else width // group) * group, group)


def _balanced(users: int, most: int) -> int:
    """The size of slabs of at most `most` users that are as equal as they can be."""
    return math.ceil(users / math.ceil(users / most))


def _widest(memory_bytes: int, users: int, n_items: int, k: int) -> Tile:
    """The widest tile of `users` within the budget, or the narrowest; bytes grow with the width but for steps of
    groups."""
    width = min(n_items, MOST_WIDTH, memory_bytes // (FLOAT * (users + compared_users(users))))
    while width > LEAST_GROUP and scoring_bytes(_tile(users, width, n_items, k), k) > memory_bytes:
        width -= max(1, width // 64)
    return _tile(users, max(width, 1), n_items, k)
