"""Negative items for the sampled losses, drawn on the device, all rows at once.

Every draw is exact: without replacement, each set of n eligible items is equally likely (up to the 2**-63 V of a
modulo); popularity inverts the integer cumulative counts, so an item that training never shows has probability exactly
0. Excluding a history needs no rejection: user u's k-th eligible item is k plus the number of history items h_0 < h_1 <
... with h_j - j <= k, and one binary search in the flat sorted keys u (V + 1) + h_j - j counts those for all rows
together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqrec.data.tables import IntArray, Sequences
from seqrec.errors import ConfigError, InfeasibleError, message
from seqrec.memory import DRAW_ELEMENTS

Scope = Literal["position", "user", "group", "batch"]

_DENSE_SHARE = 0.25
"""Of the eligible items: where drawing without replacement turns from redrawing duplicates to sorting random keys."""


@dataclass(frozen=True)
class NegativesRequest:
    """What a loss wants to be given. Raises ConfigError for combinations without a meaning."""

    n: int
    """Items a draw."""
    scope: Scope
    """Who shares one draw: nobody, the positions of a user, a group of positions, the whole batch."""
    sampling: Literal["uniform", "popularity"] = "uniform"
    with_replacement: bool = True
    exclude_history: bool = False
    """Never draw an item of the user's training history."""
    group_size: int = 128
    """Positions of a group; read by scope group alone."""

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ConfigError(message("n", self.n, "an integer >= 1"))
        if self.group_size < 1:
            raise ConfigError(message("group_size", self.group_size, "an integer >= 1"))
        if self.exclude_history and self.scope in ("group", "batch"):
            raise ConfigError(
                message("exclude_history", True, f"false with scope {self.scope} (rows of several users)")
            )
        if self.sampling == "popularity" and (self.exclude_history or not self.with_replacement):
            raise ConfigError(
                message("sampling", "popularity", "with_replacement true and exclude_history false beside popularity")
            )


@dataclass(frozen=True, eq=False)
class Negatives:
    """One draw for a batch of N positions."""

    ids: Tensor
    """(G, K) int64, in no meaningful order."""
    group: Tensor | None = None
    """(N,) int64: the row of `ids` that each position uses; None: position i uses row i (G = N)."""
    log_q: Tensor | None = None
    """(V,) float32: log probability of each item in a draw; None: uniform over the catalog."""
    largest_group: int | None = None
    """No group has more positions; None: not known on the host."""


class NegativeSampler:
    """Draws what a request asks for.

    train: training histories; item_counts: (V,) occurrences in training. Holds one int64 a distinct (user, item) pair
    of training if histories are excluded, one an item for popularity. Raises InfeasibleError when some user has fewer
    eligible items than a draw needs.
    """

    def __init__(
        self,
        request: NegativesRequest,
        train: Sequences,
        n_items: int,
        item_counts: IntArray,
        device: torch.device | str = "cpu",
    ) -> None:
        self.request = request
        self.n_items = n_items
        self.device = torch.device(device)
        self._cumulative: Tensor | None = None
        self._log_q: Tensor | None = None
        self._history: _History | None = None
        fewest = n_items
        if request.exclude_history:
            self._history = _History(train, n_items, self.device)
            fewest = self._history.fewest_eligible
        needed = 1 if request.with_replacement else request.n
        if fewest < needed:
            who = ", the fewest that a user's history leaves" if request.exclude_history else ""
            raise InfeasibleError(
                message(
                    "loss.n_negatives", request.n, f"at most {fewest} (items to draw from without replacement{who})"
                )
            )
        if request.sampling == "popularity":
            counts = np.asarray(item_counts, dtype=np.int64)
            if counts.shape != (n_items,) or counts.sum() == 0:
                raise ConfigError(message("item_counts", counts.shape, f"({n_items},) with a positive sum"))
            self._cumulative = torch.from_numpy(np.cumsum(counts)).to(self.device)
            self._total = int(counts.sum())
            probabilities = torch.from_numpy(counts / counts.sum())
            self._log_q = probabilities.log().to(self.device, torch.float32)

    def draw(
        self, targets_N: Tensor, rows_N: Tensor, users_B: Tensor, generator: torch.Generator | None = None
    ) -> Negatives:
        """Negatives for the N valid positions of a batch, from `generator` (of the sampler's device) alone.

        rows_N: index of each position's sequence in the batch; users_B: row in `train` of each sequence. A negative may
        equal a position's target unless histories are excluded; the losses deal with that.
        """
        request, n_positions = self.request, len(targets_N)
        if request.scope == "position":
            return Negatives(self._ids(users_B[rows_N], n_positions, generator), None, self._log_q)
        if request.scope == "user":
            return Negatives(self._ids(users_B, len(users_B), generator), rows_N.long(), self._log_q)
        n_groups = 1 if request.scope == "batch" else max(1, -(-n_positions // request.group_size))
        # Dealt in turn: neighbouring positions, mostly of one user, go to different groups. Consecutive positions in
        # one group would repeat one user's correlated states against the same items, which triples the gradient's
        # noise.
        group = torch.arange(n_positions, device=self.device) % n_groups
        return Negatives(self._ids(None, n_groups, generator), group, self._log_q)

    def _ids(self, users_G: Tensor | None, n_rows: int, generator: torch.Generator | None) -> Tensor:
        """(n_rows, n) item ids; row g never from the history of users_G[g] where histories are excluded."""
        history, n = self._history, self.request.n
        if history is None:
            eligible = torch.full((n_rows,), self.n_items, device=self.device)
        else:
            assert users_G is not None
            eligible = history.n_eligible(users_G)
        ids = torch.empty((n_rows, n), dtype=torch.int64, device=self.device)
        step = max(1, DRAW_ELEMENTS // n)
        for start in range(0, n_rows, step):
            part = slice(start, start + step)
            if self._cumulative is not None:
                ids[part] = self._popular(ids[part].shape, generator)
                continue
            if self.request.with_replacement:
                chosen = self._ranks(eligible[part], generator)
            else:
                chosen = self._distinct_ranks(eligible[part], generator)
            ids[part] = chosen if history is None or users_G is None else history.items(users_G[part], chosen)
        return ids

    def _popular(self, shape: torch.Size, generator: torch.Generator | None) -> Tensor:
        assert self._cumulative is not None
        ticket = torch.randint(self._total, shape, generator=generator, device=self.device)
        return torch.searchsorted(self._cumulative, ticket, right=True)

    def _ranks(self, eligible_G: Tensor, generator: torch.Generator | None) -> Tensor:
        """(G, n) ranks, each uniform over 0..eligible-1 of its row."""
        shape = (len(eligible_G), self.request.n)
        wide = torch.randint(2**63 - 1, shape, generator=generator, device=self.device)
        return wide.remainder_(eligible_G[:, None])

    def _distinct_ranks(self, eligible_G: Tensor, generator: torch.Generator | None) -> Tensor:
        """(G, n) ranks, each row a uniform random subset of 0..eligible-1."""
        n = self.request.n
        if n > _DENSE_SHARE * int(eligible_G.min()):
            return self._smallest_keys(eligible_G, generator)
        ranks = self._ranks(eligible_G, generator).sort(dim=1).values
        pending = torch.arange(len(ranks), device=self.device)
        while len(pending):
            rows = ranks[pending]
            repeated = torch.zeros_like(rows, dtype=torch.bool)
            repeated[:, 1:] = rows[:, 1:] == rows[:, :-1]
            touched = repeated.any(dim=1)
            pending, rows, repeated = pending[touched], rows[touched], repeated[touched]
            # Which of two equal ranks is redrawn does not matter, and no rank is favoured: relabelling the eligible
            # items maps this procedure onto itself, hence every subset is equally likely.
            fresh = self._ranks(eligible_G[pending], generator)
            ranks[pending] = torch.where(repeated, fresh, rows).sort(dim=1).values
        return ranks

    def _smallest_keys(self, eligible_G: Tensor, generator: torch.Generator | None) -> Tensor:
        """The n eligible ranks with the smallest random keys of each row; a tile of rows at a time."""
        n, n_rows, widest = self.request.n, len(eligible_G), int(eligible_G.max())
        ranks = torch.empty((n_rows, n), dtype=torch.int64, device=self.device)
        column = torch.arange(widest, device=self.device)
        step = max(1, DRAW_ELEMENTS // widest)
        for start in range(0, n_rows, step):
            part = slice(start, start + step)
            shape = (len(eligible_G[part]), widest)
            keys = torch.rand(shape, generator=generator, device=self.device, dtype=torch.float64)
            keys.masked_fill_(column >= eligible_G[part, None], 2.0)
            ranks[part] = keys.topk(n, dim=1, largest=False, sorted=False).indices
        return ranks


class _History:
    """The distinct items of each user's training history, as one sorted array of keys."""

    def __init__(self, train: Sequences, n_items: int, device: torch.device) -> None:
        users: NDArray[np.int64] = np.repeat(np.arange(len(train), dtype=np.int64), train.lengths)
        pairs = np.unique(users * n_items + train.items)
        owner, item = pairs // n_items, pairs % n_items
        sizes = np.bincount(owner, minlength=len(train)).astype(np.int64)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        gaps = item - (np.arange(len(pairs)) - offsets[owner])
        self.n_items = n_items
        self.fewest_eligible = n_items - int(sizes.max(initial=0))
        self._keys = torch.from_numpy(owner * (n_items + 1) + gaps).to(device)
        self._offsets = torch.from_numpy(offsets).to(device)

    def n_eligible(self, users_G: Tensor) -> Tensor:
        """(G,) items outside each user's history."""
        return self.n_items - (self._offsets[users_G + 1] - self._offsets[users_G])

    def items(self, users_G: Tensor, ranks_GK: Tensor) -> Tensor:
        """(G, K) the ranks_GK-th items outside the histories of users_G."""
        queries = users_G[:, None].long() * (self.n_items + 1) + ranks_GK
        before = torch.searchsorted(self._keys, queries, right=True) - self._offsets[users_G][:, None]
        return ranks_GK + before
