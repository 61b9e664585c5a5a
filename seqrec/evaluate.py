"""Batched full ranking of held-out items over the catalog. Never users x items: a slab of scores at a time.

    rank = 1 + #(items with a higher score) + #(items with the same score and a lower id)

so that ties are decided without luck, and a constant model is no good one. Items of the user's whole history (not only
the window that the model reads) are no candidates under `exclude_seen`; a held-out item among them is then a certain
miss, as published, and `repeat_targets` says how often that happens. A score that is not finite is a miss too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from seqrec.config import CUTOFFS
from seqrec.data.batches import DeviceSequences, Windows, history_windows, ragged
from seqrec.data.tables import Holdout, IntArray
from seqrec.metrics import MISS, list_metrics, ranking_metrics

_EXACT_IN_FLOAT32 = 2**24


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
    score_bytes: int = 2**28,
) -> dict[str, float]:
    """Every ranking metric at every cutoff, and `repeat_targets`, the share of targets that the history holds already.

    lists: add coverage and surprisal, from `item_counts` (V,), the training users that have each item
    (`Split.item_users`), and `n_train_users` (`len(split.train)`). score_bytes: most bytes of scores and comparisons
    alive at a time (one user's, if that is more). A model in training mode is switched to evaluation and back.
    """
    if lists and (item_counts is None or n_train_users is None):
        raise ValueError("item_counts, n_train_users: got None; expected both with lists.")
    history = DeviceSequences.of(holdout.history, device)
    targets = torch.tensor(holdout.targets, dtype=torch.int64, device=device)
    lengths = holdout.history.lengths
    # Users of similar length together, or one long history would make every batch's rectangles long.
    order = np.argsort(lengths, kind="stable")
    # In the file's order of users, so that sums do not depend on the order of evaluation.
    ranks = torch.empty_like(targets)
    repeats = torch.empty_like(targets, dtype=torch.bool)
    tops = torch.empty((len(order) if lists else 0, max(CUTOFFS)), dtype=torch.int32)
    with _evaluation_mode(model):
        embeddings_VD = model.item_embeddings().float()
        if len(embeddings_VD) != n_items:
            raise ValueError(f"item_embeddings: got {len(embeddings_VD)} rows; expected n_items ({n_items}).")
        # Scores and the comparison with the target's: two slabs of 4 bytes a number.
        slab = max(1, score_bytes // (8 * n_items))
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            rows_B = torch.from_numpy(batch).to(device)
            hidden_BD = model.encode(history_windows(history, rows_B, lengths[batch], max_length)).float()
            for first in range(0, len(batch), slab):
                part = slice(first, first + slab)
                rows = rows_B[part]
                scores = hidden_BD[part] @ embeddings_VD.T
                target = targets[rows]
                owner, seen = _seen(history, rows, int(lengths[batch[part]].sum()))
                repeats[rows] = _owners(owner, seen == target[owner], len(rows))
                if exclude_seen:
                    scores.view(-1).index_fill_(0, owner * n_items + seen, -torch.inf)
                ranks[rows] = _ranks(scores, target)
                if lists:
                    tops[torch.from_numpy(batch[part])] = _top(scores, max(CUTOFFS)).to("cpu", torch.int32)
    metrics = ranking_metrics(ranks.cpu(), CUTOFFS)
    metrics["repeat_targets"] = float(repeats.double().mean())
    if item_counts is not None and n_train_users is not None and lists:
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


def _seen(history: DeviceSequences, rows: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """The whole histories of `rows` end to end: (total,) index into `rows`, (total,) int64 item."""
    owner, from_end = ragged(history.lengths[rows], total)
    return owner, history.items[history.ends[rows][owner] + from_end].long()


def _owners(owner: Tensor, flag: Tensor, n: int) -> Tensor:
    """(n,) bool: which owners have a flagged element."""
    return torch.zeros(n, dtype=torch.int64, device=owner.device).index_add_(0, owner, flag.long()) > 0


def _ranks(scores: Tensor, target: Tensor) -> Tensor:
    """(U,) ranks of the targets among (U, V) scores; MISS where the target's is not finite or any is NaN."""
    n_items = scores.shape[1]
    mine = scores.gather(1, target[:, None])
    # Comparing into floats and adding those up is several times faster on CPUs than counting booleans.
    counting = torch.float32 if n_items <= _EXACT_IN_FLOAT32 else torch.float64
    buffer = torch.empty_like(scores)
    above = torch.gt(scores, mine, out=buffer).sum(1, dtype=counting)
    equal = torch.eq(scores, mine, out=buffer).sum(1, dtype=counting)
    ranks = 1 + above.long()
    if bool((equal > 1).any()):
        lower = torch.arange(n_items, device=scores.device) < target[:, None]
        ranks += buffer.mul_(lower).sum(1, dtype=counting).long()
    broken = ~mine.squeeze(1).isfinite() | scores.amax(1).isnan()
    return ranks.masked_fill_(broken, MISS)


def _top(scores: Tensor, k: int) -> Tensor:
    """(U, k) ids of the best items by (score, lower id first), -1 where no candidate is left."""
    n_items = scores.shape[1]
    wanted = min(k, n_items)
    values, ids = scores.topk(min(wanted + 1, n_items), dim=1)
    if wanted < n_items:
        # topk breaks ties as it likes; a tie across the list's end is settled again, by id.
        tied = values[:, wanted - 1] == values[:, wanted]
        values, ids = values[:, :wanted], ids[:, :wanted]
        if bool(tied.any()):
            last = values[tied, -1:]
            number = torch.arange(n_items, 0, -1, device=scores.device, dtype=torch.int32)
            key = torch.where(scores[tied] == last, number, 0).masked_fill_(scores[tied] > last, n_items + 1)
            ids[tied] = key.topk(wanted, dim=1).indices
    ids = ids.sort(dim=1).values
    values, by_value = scores.gather(1, ids).sort(dim=1, descending=True, stable=True)
    ids = ids.gather(1, by_value).masked_fill_(~(values > -torch.inf), -1)
    return nn.functional.pad(ids, (0, k - wanted), value=-1)
