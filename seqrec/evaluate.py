"""Full ranking of held-out items over the catalog, in batches of users and tiles of items: never users x items.

Users are encoded in the order of their histories' lengths, as many at a time as fill the rectangle of the largest plain
batch, `batch_size` of the longest, or the memory that ranking takes anyway. Short histories, of which there are many,
take few launches, and the peak of memory is that of plain batches. On a GPU kernels count ranks
(`seqrec.kernels.ranking`) where no lists are asked for, and encode SASRec; else `seqrec.ranking` ranks a batch in slabs
of users.

Items of the user's whole history (not only the window that the model reads) are no candidates under `exclude_seen`; a
held-out item among them is then a certain miss, as published, and `repeat_targets` says how often that happens. A score
that is not finite is a miss too.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from seqrec import meters
from seqrec.config import CUTOFFS, EVALUATION_BYTES
from seqrec.data.batches import DeviceSequences, Windows, history_windows
from seqrec.data.tables import Holdout, IntArray, Sequences
from seqrec.memory.evaluation import MOST_ENCODED, encoded_cells, scoring_bytes, tile_for
from seqrec.metrics import list_metrics, ranking_metrics
from seqrec.models.base import SequenceModel
from seqrec.ranking import Ranker, exact_products, seen_cells


class Encoder(Protocol):
    """What is evaluated: hidden states of histories, and one embedding an item."""

    def encode(self, windows: Windows) -> Tensor:
        """(R, D): the state of each history from which its next item is predicted."""

    def item_embeddings(self) -> Tensor:
        """(V, D)"""

    def row_cells(self, longest: int) -> int:
        """As of `SequenceModel.row_cells`."""


@torch.no_grad()
def evaluate(
    model: Encoder,
    holdout: Holdout,
    *,
    n_items: int,
    max_length: int,
    exclude_seen: bool,
    batch_size: int,
    device: torch.device | str,
    lists: bool = False,
    item_counts: IntArray | None = None,
    n_train_users: int | None = None,
    memory_bytes: int = EVALUATION_BYTES,
    kernels: bool | None = None,
) -> dict[str, float]:
    """Every ranking metric at every cutoff, and `repeat_targets`, the share of targets that the history holds already.

    lists: add coverage and surprisal, from `item_counts` (V,), the training users that have each item
    (`Split.item_users`), and `n_train_users` (`len(split.train)`). memory_bytes: most bytes alive at a time while users
    are ranked (of one user and a few items, if that is more); encoding a batch comes before that, and histories are on
    the device throughout. kernels: encode and rank by kernels where they can; False: operation by operation, the
    reference; None: on a CUDA device. A model in training mode is switched to evaluation and back.
    """
    if lists and (item_counts is None or n_train_users is None):
        raise ValueError("item_counts, n_train_users: got None; expected both with lists.")
    device = torch.device(device)
    history = DeviceSequences.of(holdout.history, device)
    lengths = holdout.history.lengths
    n_users, k = len(lengths), max(CUTOFFS) if lists else 0
    # Users of similar length together, or one long history would make every batch's rectangles long.
    # Short integers sort in linear time.
    order = np.argsort(lengths.astype(np.min_scalar_type(lengths.max(initial=0))), kind="stable")
    rows = _upload(order, device)
    targets = _upload(holdout.targets[order].astype(np.int64), device)
    ranks = torch.empty_like(targets)
    tops = torch.empty((n_users, k), dtype=torch.int32, pin_memory=lists and device.type == "cuda")
    with _evaluation_mode(model), meters.current(device):
        embeddings_VD = model.item_embeddings().float()
        if len(embeddings_VD) != n_items:
            raise ValueError(f"item_embeddings: got {len(embeddings_VD)} rows; expected n_items ({n_items}).")
        fused = device.type == "cuda" if kernels is None else kernels
        encoder = _encoder(model) if fused else model
        tile = tile_for(memory_bytes, min(batch_size, n_users), n_items, k)
        ranker = Ranker(embeddings_VD, tile, k)
        count = _counter(embeddings_VD) if fused and not lists else None
        room = scoring_bytes(tile, k)
        for start, end in batches(lengths[order], batch_size, max_length, encoder, embeddings_VD.shape[1], room):
            batch, rows_B = order[start:end], rows[start:end]
            hidden_BD = _last_states(encoder, history, rows_B, lengths[batch], max_length)
            if count is not None:
                seen_of = (history, rows_B, int(lengths[batch].sum())) if exclude_seen else None
                ranks[start:end] = count(hidden_BD, targets[start:end], seen_of)
                continue
            owners, items = _pairs(holdout.history, batch)
            cells, bounds = seen_cells(owners, items, len(batch), tile, n_items)
            seen = torch.split(_upload(cells, device), np.diff(bounds).tolist()) if exclude_seen else ()
            for slab, first in enumerate(range(0, len(batch), tile.users)):
                part = slice(start + first, start + min(first + tile.users, len(batch)))
                hidden_UD = hidden_BD[first : first + tile.users]
                own = seen[slab * ranker.n_tiles : (slab + 1) * ranker.n_tiles]
                with exact_products():
                    ranks[part], ids = ranker.rank(hidden_UD, targets[part], own)
                tops[part].copy_(ids, non_blocking=True)
    repeats = _repeats(holdout)
    # The device is waited for here. In the file's order of users, so that sums do not depend on that of evaluation.
    in_order = torch.empty(n_users, dtype=torch.int64)
    in_order[torch.from_numpy(order)] = ranks.cpu()
    metrics = ranking_metrics(in_order, CUTOFFS)
    metrics["repeat_targets"] = float(repeats.mean())
    if item_counts is not None and n_train_users is not None and lists:
        tops = tops[torch.from_numpy(np.argsort(order, kind="stable"))]
        metrics |= list_metrics(tops, CUTOFFS, torch.tensor(np.asarray(item_counts)), n_train_users)
    return metrics


@contextmanager
def _evaluation_mode(model: Encoder) -> Iterator[None]:
    training = isinstance(model, nn.Module) and model.training
    if isinstance(model, nn.Module):
        model.eval()
    try:
        yield
    finally:
        if isinstance(model, nn.Module):
            model.train(training)


def _last_states(
    model: Encoder, history: DeviceSequences, rows_B: Tensor, lengths_B: IntArray, max_length: int
) -> Tensor:
    """(B, D) float32 states that the histories `rows_B`, of `lengths_B` items each (on the host), end in."""
    return model.encode(history_windows(history, rows_B, lengths_B, max_length)).float()


def batches(
    lengths: IntArray, batch_size: int, max_length: int, encoder: Encoder, hidden_size: int, room: int
) -> Iterator[tuple[int, int]]:
    """Where batches begin and end among users whose histories have these ascending lengths.

    Users times (cells of a row + 1) is at most `encoded_cells`, by the longest history and the `room` in bytes; the 1
    is the place behind a history at which BERT4Rec asks. At most `MOST_ENCODED` users.
    """

    def cells(end: int) -> int:
        return encoder.row_cells(min(int(lengths[end - 1]), max_length)) + 1

    start = 0
    while start < len(lengths):
        bound = encoded_cells(batch_size, cells(len(lengths)) - 1, hidden_size, room)
        ends = range(start + 1, min(start + MOST_ENCODED, len(lengths)) + 1)
        first, start = start, start + bisect_right(ends, bound, key=partial(_area, cells, start))
        yield first, start


def _area(cells: Callable[[int], int], start: int, end: int) -> int:
    return (end - start) * cells(end)


def _encoder(model: Encoder) -> Encoder:
    """The model's fused encoder, or the model itself where it has none."""
    from seqrec.models import fused  # brings triton, which a CPU does not need

    made = fused.encoder(model) if isinstance(model, SequenceModel) else None
    return model if made is None else made


Seen = tuple[DeviceSequences, Tensor, int]
"""Histories, which of them are those of a batch, and how many items these have together."""


def _counter(embeddings_VD: Tensor) -> Callable[[Tensor, Tensor, Seen | None], Tensor] | None:
    """(states, targets, seen) -> ranks, by a kernel; None where it cannot run."""
    from seqrec.kernels import why_not

    if why_not(embeddings_VD.device, embeddings_VD.shape[1], 1) is not None:
        return None
    from seqrec.kernels.ranking import catalog_ranks

    def count(hidden_BD: Tensor, targets_B: Tensor, seen: Seen | None) -> Tensor:
        if seen is None:
            return catalog_ranks(hidden_BD, embeddings_VD, targets_B)
        history, rows_B, n_seen = seen
        lengths_B = history.lengths[rows_B]
        starts_B = history.ends[rows_B] - lengths_B
        return catalog_ranks(
            hidden_BD,
            embeddings_VD,
            targets_B,
            seen=history.items,
            starts_U=starts_B,
            lengths_U=lengths_B,
            n_seen=n_seen,
        )

    return count


def _repeats(holdout: Holdout) -> NDArray[np.bool_]:
    """(n_users,) whether a user's history holds the target."""
    lengths = holdout.history.lengths
    hit = holdout.history.items == np.repeat(holdout.targets, lengths)
    found = np.zeros(len(lengths), dtype=bool)
    found[np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)[hit]] = True
    return found


def _pairs(history: Sequences, users: IntArray) -> tuple[IntArray, IntArray]:
    """The whole histories of `users` end to end: (n,) place in `users`, (n,) item; on the host."""
    lengths = history.lengths[users]
    owners = np.repeat(np.arange(len(users)), lengths)
    first = history.offsets[users] - (np.cumsum(lengths) - lengths)
    return owners, history.items[first[owners] + np.arange(len(owners))].astype(np.int64)


def _upload(array: IntArray, device: torch.device) -> Tensor:
    """A copy on the device, without waiting for what it is busy with."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.clone()
