"""Full ranking of held-out items over the catalog, in batches of users and tiles of items: never users x items.

Items of the user's whole history (not only the window that the model reads) are no candidates under `exclude_seen`; a
held-out item among them is then a certain miss, as published, and `repeat_targets` says how often that happens. A score
that is not finite is a miss too. How users are ranked: `seqrec.ranking`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from seqrec.config import CUTOFFS, EVALUATION_BYTES
from seqrec.data.batches import DeviceSequences, Windows, history_windows
from seqrec.data.tables import Holdout, IntArray, Sequences
from seqrec.memory.evaluation import tile_for
from seqrec.metrics import list_metrics, ranking_metrics
from seqrec.ranking import Ranker, exact_products, seen_cells


class Encoder(Protocol):
    """What is evaluated: hidden states of histories, and one embedding an item."""

    def encode(self, windows: Windows) -> Tensor:
        """(R, D): the state of each history from which its next item is predicted."""

    def item_embeddings(self) -> Tensor:
        """(V, D)"""


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
) -> dict[str, float]:
    """Every ranking metric at every cutoff, and `repeat_targets`, the share of targets that the history holds already.

    lists: add coverage and surprisal, from `item_counts` (V,), the training users that have each item
    (`Split.item_users`), and `n_train_users` (`len(split.train)`). memory_bytes: most bytes alive at a time while users
    are ranked (of one user and a few items, if that is more); encoding a batch comes before that, and histories are on
    the device throughout. A model in training mode is switched to evaluation and back.
    """
    if lists and (item_counts is None or n_train_users is None):
        raise ValueError("item_counts, n_train_users: got None; expected both with lists.")
    device = torch.device(device)
    history = DeviceSequences.of(holdout.history, device)
    lengths = holdout.history.lengths
    n_users, k = len(lengths), max(CUTOFFS) if lists else 0
    # Users of similar length together, or one long history would make every batch's rectangles long.
    order = np.argsort(lengths, kind="stable")
    rows = _upload(order, device)
    targets = _upload(holdout.targets[order].astype(np.int64), device)
    ranks = torch.empty_like(targets)
    repeats = np.zeros(n_users, dtype=bool)
    tops = torch.empty((n_users, k), dtype=torch.int32, pin_memory=lists and device.type == "cuda")
    with _evaluation_mode(model):
        embeddings_VD = model.item_embeddings().float()
        if len(embeddings_VD) != n_items:
            raise ValueError(f"item_embeddings: got {len(embeddings_VD)} rows; expected n_items ({n_items}).")
        tile = tile_for(memory_bytes, min(batch_size, n_users), n_items, k)
        ranker = Ranker(embeddings_VD, tile, k)
        for start in range(0, n_users, batch_size):
            batch = order[start : start + batch_size]
            hidden_BD = _last_states(model, history, rows[start : start + batch_size], lengths[batch], max_length)
            owners, items = _pairs(holdout.history, batch)
            repeats[batch[owners[items == holdout.targets[batch][owners]]]] = True
            cells, bounds = seen_cells(owners, items, len(batch), tile, n_items)
            seen = torch.split(_upload(cells, device), np.diff(bounds).tolist()) if exclude_seen else ()
            for slab, first in enumerate(range(0, len(batch), tile.users)):
                part = slice(start + first, start + min(first + tile.users, len(batch)))
                hidden_UD = hidden_BD[first : first + tile.users]
                own = seen[slab * ranker.n_tiles : (slab + 1) * ranker.n_tiles]
                with exact_products():
                    ranks[part], ids = ranker.rank(hidden_UD, targets[part], own)
                tops[part].copy_(ids, non_blocking=True)
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
