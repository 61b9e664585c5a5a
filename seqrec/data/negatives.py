"""Negative items for the sampled losses, drawn on the device, all rows at once.

Every draw is exact: without replacement, each set of n eligible items is equally likely (up to the 2**-63 V of a
modulo, and a chance below 1e-20 a row that an item comes twice); popularity inverts the integer cumulative counts, so
an item that training never shows has probability exactly 0. Excluding a history needs no rejection: user u's k-th
eligible item is k plus the number of history items h_0 < h_1 < ... with h_j - j <= k, and one binary search in the flat
sorted keys u (V + 1) + h_j - j counts those for all rows together. Shapes never depend on values, and nothing waits for
the device: a draw can be part of a captured step.
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
from seqrec.memory.losses import spare_draws as spare_draws

Scope = Literal["position", "user", "group", "batch"]

_DENSE_SHARE = 0.25
"""Of the eligible items: where drawing without replacement turns from leaving out duplicates to sorting random keys."""


@dataclass(frozen=True)
class NegativesRequest:
    """What a loss wants to be given. Raises ConfigError for combinations without a meaning."""

    n: int
    """Items a draw."""
    scope: Scope
    """Who shares one draw: nobody, the positions of a user, a group of positions, the whole batch."""
    sampling: Literal["uniform", "popularity", "in_batch"] = "uniform"
    """in_batch: the targets of the batch's positions, each equally likely."""
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
        if self.sampling != "uniform" and (self.exclude_history or not self.with_replacement):
            law = f"with_replacement true and exclude_history false beside {self.sampling}"
            raise ConfigError(message("sampling", self.sampling, law))


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
        self._spare: int | None = None
        """Draws beyond n without replacement; None: so many of the items are wanted that all of them get a key."""
        if not request.with_replacement and request.n <= _DENSE_SHARE * fewest:
            self._spare = spare_draws(request.n, fewest)
        needed = 1 if request.with_replacement else request.n
        if fewest < needed:
            who = ", the fewest that a user's history leaves" if request.exclude_history else ""
            raise InfeasibleError(
                message(
                    "loss.n_negatives", request.n, f"at most {fewest} (items to draw from without replacement{who})"
                )
            )
        if request.sampling != "uniform":
            counts = np.asarray(item_counts, dtype=np.int64)
            if counts.shape != (n_items,) or counts.sum() == 0:
                raise ConfigError(message("item_counts", counts.shape, f"({n_items},) with a positive sum"))
            if request.sampling == "popularity":
                self._cumulative = torch.from_numpy(np.cumsum(counts)).to(self.device)
            self._total = int(counts.sum())
            # A batch's targets are, in the long run, training's items in their frequencies.
            probabilities = torch.from_numpy(counts / counts.sum())
            self._log_q = probabilities.log().to(self.device, torch.float32)

    def draw(
        self,
        targets_N: Tensor,
        rows_N: Tensor,
        users_R: Tensor,
        generator: torch.Generator | None = None,
        *,
        longest: int | None = None,
        count: Tensor | None = None,
    ) -> Negatives:
        """Negatives for the N targets of a batch, from `generator` (of the sampler's device) alone. The device is never
        waited for.

        rows_N: the history of each target; users_R: row in `train` of each history, one past the last for nobody's.
        longest: no history has more targets. count: () int64, how many of the first targets are not spare; None: all. A
        negative may equal a position's target unless histories are excluded;
        the losses deal with that.
        """
        request, n_positions = self.request, len(targets_N)
        if request.scope == "position":
            users_N = None if self._history is None else users_R.index_select(0, rows_N)
            return Negatives(self._ids(users_N, n_positions, targets_N, count, generator), None, self._log_q)
        if request.scope == "user":
            ids = self._ids(users_R, len(users_R), targets_N, count, generator)
            return Negatives(ids, rows_N, self._log_q, longest)
        n_groups = 1 if request.scope == "batch" else max(1, -(-n_positions // request.group_size))
        # Dealt in turn: neighbouring positions, mostly of one user, go to different groups. Consecutive positions in
        # one group would repeat one user's correlated states against the same items, which triples the gradient's
        # noise.
        group = torch.arange(n_positions, device=self.device) % n_groups
        return Negatives(
            self._ids(None, n_groups, targets_N, count, generator), group, self._log_q, -(-n_positions // n_groups)
        )

    def _ids(
        self,
        users_G: Tensor | None,
        n_rows: int,
        targets_N: Tensor,
        count: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        """(n_rows, n) item ids; row g never from the history of users_G[g] where histories are excluded."""
        history, n = self._history, self.request.n
        ids = torch.empty((n_rows, n), dtype=torch.int64, device=self.device)
        step = max(1, DRAW_ELEMENTS // n)
        for start in range(0, n_rows, step):
            part = slice(start, min(start + step, n_rows))
            shape = (part.stop - part.start, n)
            if self.request.sampling == "in_batch":
                wide = torch.randint(2**63 - 1, shape, generator=generator, device=self.device)
                ids[part] = targets_N[wide.remainder_(len(targets_N) if count is None else count)]
                continue
            if self._cumulative is not None:
                ids[part] = self._popular(shape, generator)
                continue
            if history is None or users_G is None:
                eligible = torch.full(shape[:1], self.n_items, device=self.device)
            else:
                eligible = history.n_eligible(users_G[part])
            if self.request.with_replacement:
                chosen = self._ranks(eligible, n, generator)
            else:
                chosen = self._distinct_ranks(eligible, generator)
            ids[part] = chosen if history is None or users_G is None else history.items(users_G[part], chosen)
        return ids

    def _popular(self, shape: tuple[int, int], generator: torch.Generator | None) -> Tensor:
        assert self._cumulative is not None
        ticket = torch.randint(self._total, shape, generator=generator, device=self.device)
        return torch.searchsorted(self._cumulative, ticket, right=True)

    def _ranks(self, eligible_G: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
        """(G, n) ranks, each uniform over 0..eligible-1 of its row."""
        wide = torch.randint(2**63 - 1, (len(eligible_G), n), generator=generator, device=self.device)
        return wide.remainder_(eligible_G[:, None])

    def _distinct_ranks(self, eligible_G: Tensor, generator: torch.Generator | None) -> Tensor:
        """(G, n) ranks, each row a uniform random subset of 0..eligible-1."""
        n = self.request.n
        if self._spare is None:
            return self._smallest_keys(eligible_G, generator)
        ranks = torch.empty((len(eligible_G), n), dtype=torch.int64, device=self.device)
        step = max(1, DRAW_ELEMENTS // (n + self._spare))
        for start in range(0, len(eligible_G), step):
            part = slice(start, start + step)
            ranks[part] = first_distinct(self._ranks(eligible_G[part], n + self._spare, generator), n)
        return ranks

    def _smallest_keys(self, eligible_G: Tensor, generator: torch.Generator | None) -> Tensor:
        """The n eligible ranks with the smallest random keys of each row; a tile of rows at a time."""
        n, n_rows = self.request.n, len(eligible_G)
        ranks = torch.empty((n_rows, n), dtype=torch.int64, device=self.device)
        column = torch.arange(self.n_items, device=self.device)
        step = max(1, DRAW_ELEMENTS // self.n_items)
        for start in range(0, n_rows, step):
            part = slice(start, start + step)
            shape = (len(eligible_G[part]), self.n_items)
            keys = torch.rand(shape, generator=generator, device=self.device, dtype=torch.float64)
            keys.masked_fill_(column >= eligible_G[part, None], 2.0)
            ranks[part] = keys.topk(n, dim=1, largest=False, sorted=False).indices
        return ranks


def first_distinct(draws_GM: Tensor, n: int) -> Tensor:
    """(G, n) the first n different numbers of each row, in the order in which they were drawn.

    Of independent uniform draws they are a uniform random subset. draws_GM: int64 below 2**43, M <= 2**20; a row with
    fewer than n different numbers gets whatever memory held.
    """
    G, M = draws_GM.shape
    bits = M.bit_length()
    column = torch.arange(M, device=draws_GM.device)
    # One sort by (number, when it was drawn): of equal numbers the first one stays.
    key = ((draws_GM << bits) | column).sort(dim=1).values
    number = key >> bits
    fresh = torch.ones_like(number, dtype=torch.bool)
    fresh[:, 1:] = number[:, 1:] != number[:, :-1]
    when = key.bitwise_and_((1 << bits) - 1)
    place = torch.zeros((G, M), dtype=torch.int32, device=draws_GM.device)
    place = place.scatter_(1, when, fresh.int()).cumsum(1, dtype=torch.int32).sub_(1)
    # Of repeated draws `place` is that of the number before them: they must not write.
    repeated = torch.empty_like(fresh).scatter_(1, when, ~fresh)
    place = place.masked_fill_(repeated | (place >= n), n)
    return draws_GM.new_empty((G, n + 1)).scatter_(1, place.long(), draws_GM)[:, :n]


class _History:
    """The distinct items of each user's training history, as one sorted array of keys."""

    def __init__(self, train: Sequences, n_items: int, device: torch.device) -> None:
        item, offsets = train.seen
        sizes = np.diff(offsets)
        owner: NDArray[np.int64] = np.repeat(np.arange(len(train), dtype=np.int64), sizes)
        # One more user behind the last: nobody, without a history.
        offsets = np.append(offsets, offsets[-1])
        gaps = item - (np.arange(len(item)) - offsets[owner])
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
