"""Batches for training and histories for evaluation: gathered from flat arrays on the device, no loop over users.

Histories of different lengths lie end to end; there are no pads. Everything a batch's shape depends on is known on the
host from the histories' lengths before the epoch starts, so that making a batch never waits for the device. A batch may
also be made larger than it is: `Capacity` then fixes its shape for a captured step, and spare histories fill it up.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from seqrec.data.tables import IntArray, Sequences
from seqrec.errors import InfeasibleError, message


@dataclass(frozen=True, eq=False)
class Windows:
    """R histories end to end: N positions, oldest first in each history."""

    items: Tensor
    """(N,) int64 encoded ids."""
    rows: Tensor
    """(N,) int64, ascending: the history of each position, 0..R-1."""
    places: Tensor
    """(N,) int64: where a position stands among `max_length` places; a history's last item always stands at the
    last."""
    offsets: Tensor
    """(R + 1,) int64: history r is the positions offsets[r] : offsets[r + 1]."""
    longest: int
    """No history is longer; known on the host."""
    masked: Tensor | None = None
    """(N,) bool: positions whose item the model must not see; None: it sees all."""

    @property
    def n_rows(self) -> int:
        return len(self.offsets) - 1


@dataclass(frozen=True, eq=False)
class Batch:
    """Windows of B users, and what is to be predicted from them: M targets."""

    windows: Windows
    targets: Tensor
    """(M,) int64"""
    users: Tensor
    """(R,) int64: row of the training `Sequences` of each history; one past the last for nobody's, which are spare."""
    predicted: Tensor | None = None
    """(M,) int64 the positions whose states predict the targets; None: all, in their order (M = N)."""
    weights: Tensor | None = None
    """(M,) float32, of sum 1: what each target counts for. Spare targets count 0. None: 1 / M each."""
    count: Tensor | None = None
    """() int64: how many targets are not spare, which are the first ones; None: all."""

    @property
    def rows(self) -> Tensor:
        """(M,) int64: the history of each target."""
        rows = self.windows.rows
        return rows if self.predicted is None else rows.index_select(0, self.predicted)


@dataclass(frozen=True)
class Capacity:
    """The shape of a batch."""

    positions: int
    """N"""
    targets: int
    """M"""
    rows: int
    """R"""
    longest: int
    """No history of the batch has more positions."""


@dataclass(frozen=True, eq=False)
class Plan:
    """The batches of one epoch before any of them is made."""

    users: Tensor
    """(n_batches * batch_size,) int64 on the device, batch after batch. A last, smaller batch is filled up with the
    user behind the last one, who has no items."""
    sizes: tuple[Capacity, ...]
    """What each batch holds, without the filling: `rows` are its users."""


@dataclass(frozen=True, eq=False)
class DeviceSequences:
    """`Sequences` as tensors on one device, with one sequence without items behind the last."""

    items: Tensor
    """(n,) int32"""
    ends: Tensor
    """(n_sequences + 1,) int64: one past each sequence's last item."""
    lengths: Tensor
    """(n_sequences + 1,) int64"""

    @classmethod
    def of(cls, sequences: Sequences, device: torch.device | str) -> DeviceSequences:
        # Copies: tensors may be written to, the tables' arrays may not.
        ends = np.append(sequences.offsets[1:], sequences.offsets[-1])
        return cls(
            torch.tensor(sequences.items, device=device),
            torch.tensor(ends, device=device),
            torch.tensor(np.append(sequences.lengths, 0), device=device),
        )


def ragged(lengths_B: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Rows of `lengths_B` elements laid end to end: (total,) each element's row, and (total,) its place from the row's
    end, -length, ..., -1. total: the sum of the lengths, which the host knows without asking the device.
    """
    device = lengths_B.device
    rows = torch.repeat_interleave(torch.arange(len(lengths_B), device=device), lengths_B, output_size=total)
    return rows, torch.arange(total, device=device) - lengths_B.cumsum(0)[rows]


def history_windows(history: DeviceSequences, rows_B: Tensor, lengths_B: IntArray, max_length: int) -> Windows:
    """The last `max_length` items of the histories `rows_B` (B,). lengths_B: (B,) their lengths, on the host."""
    kept = np.minimum(lengths_B, max_length)
    lengths = history.lengths[rows_B].clamp(max=max_length)
    size = Capacity(int(kept.sum()), int(kept.sum()), len(rows_B), int(kept.max(initial=0)))
    windows, source = layout(history.ends[rows_B] - lengths, lengths, size, max_length)
    return with_items(windows, history.items, source)


def layout(starts_B: Tensor, lengths_B: Tensor, size: Capacity, max_length: int) -> tuple[Windows, Tensor]:
    """Windows without their items, and (N,) where in the flat array each item lies. Behind the B histories come spare
    ones of at most `max_length` until there are `size.positions`; they take items from the start of the array."""
    N, spare = size.positions, size.rows - len(starts_B)
    device = starts_B.device
    offsets = torch.nn.functional.pad(lengths_B.cumsum(0), (1, 0))
    if spare:
        ends = (offsets[-1] + torch.arange(max_length, spare * max_length + 1, max_length, device=device)).clamp_(max=N)
        offsets = torch.cat([offsets, ends])
        starts_B = torch.nn.functional.pad(starts_B, (0, spare))
    position = torch.arange(N, device=device)
    rows = torch.searchsorted(offsets[1:], position, right=True)
    from_end = position - offsets[1:].index_select(0, rows)
    source = starts_B.index_select(0, rows) + position - offsets.index_select(0, rows)
    return Windows(source, rows, from_end + max_length, offsets, size.longest), source


def with_items(windows: Windows, items: Tensor, source: Tensor) -> Windows:
    """Windows with their items, out of a flat array."""
    return replace(windows, items=items.index_select(0, source).long())


class Batches(ABC):
    """Epochs of training batches: one window a user, the most recent items, in an order that is a function of (seed,
    epoch) alone, so that an epoch can be repeated without the ones before it.

    Users with fewer than two items give no target and are left out. drop_last: a last, smaller batch is left out;
    raises InfeasibleError if none would remain. held: `train` on the device, where it is there already.
    """

    def __init__(
        self,
        train: Sequences,
        *,
        max_length: int,
        batch_size: int,
        drop_last: bool,
        seed: int,
        device: torch.device | str,
        held: DeviceSequences | None = None,
    ) -> None:
        lengths = train.lengths
        self.max_length, self.batch_size, self.drop_last, self.seed = max_length, batch_size, drop_last, seed
        self.device = torch.device(device)
        self.users: IntArray = np.flatnonzero(lengths >= 2)
        """The users that are trained on."""
        self.lengths: IntArray = np.minimum(self._inputs(lengths), max_length)
        """(n_sequences,) positions of each window."""
        if len(self.users) < (batch_size if drop_last else 1):
            users = len(self.users)
            raise InfeasibleError(
                message("train.batch_size", batch_size, f"<= {users}, the users to train on, with drop_last")
                if users
                else message("data.path", "0 users with two training items", "at least 1")
            )
        self.sequences = DeviceSequences.of(train, device) if held is None else held

    def _inputs(self, lengths: IntArray) -> IntArray:
        """(n_sequences,) how many of each history's items can be inputs."""
        return lengths

    def __len__(self) -> int:
        """Batches of an epoch."""
        whole, rest = divmod(len(self.users), self.batch_size)
        return whole + (1 if rest and not self.drop_last else 0)

    def order(self, epoch: int) -> IntArray:
        """(n,) the users of an epoch, batch after batch."""
        order = np.random.default_rng([self.seed, epoch]).permutation(self.users)
        return order[: len(self) * self.batch_size]

    def sizes(self, order: IntArray, targets: IntArray | None = None) -> tuple[Capacity, ...]:
        """Those of the batches of an order of users. targets: (n_users of the order,) of each window; None: as many as
        positions."""
        starts = np.arange(0, len(order), self.batch_size)
        lengths = self.lengths[order]
        positions = np.add.reduceat(lengths, starts)
        predicted = positions if targets is None else np.add.reduceat(targets, starts)
        rows = np.diff(np.append(starts, len(order)))
        longest = np.maximum.reduceat(lengths, starts)
        return tuple(map(Capacity, *(counts.tolist() for counts in (positions, predicted, rows, longest))))

    @abstractmethod
    def plan(self, epoch: int) -> Plan:
        """The batches of an epoch, 0 or more; draws what is random in them. One copy to the device, none a batch."""

    @abstractmethod
    def gather(self, users_B: Tensor, size: Capacity) -> Batch:
        """The batch of some users of the epoch planned last. Never waits for the device.

        size: its exact shape, or a larger one, with spare rows: one at least, and enough rows of `max_length` positions
        to fill it. `weights` are then given.
        """

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of one epoch in their exact sizes."""
        plan = self.plan(number)
        for index, size in enumerate(plan.sizes):
            start = index * self.batch_size
            yield self.gather(plan.users[start : start + size.rows], size)

    def filled(self, order: IntArray) -> Tensor:
        """`Plan.users` of an order of users."""
        missing = len(self) * self.batch_size - len(order)
        nobody = len(self.sequences.lengths) - 1
        return torch.from_numpy(np.append(order, np.full(missing, nobody))).to(self.device)


class CausalBatches(Batches):
    """Next-item prediction: a window is `max_length` + 1 items, all but the last of them inputs, all but the first
    targets."""

    def _inputs(self, lengths: IntArray) -> IntArray:
        return np.maximum(lengths - 1, 0)

    def plan(self, epoch: int) -> Plan:
        order = self.order(epoch)
        return Plan(self.filled(order), self.sizes(order))

    def gather(self, users_B: Tensor, size: Capacity) -> Batch:
        sequences = self.sequences
        lengths_B = (sequences.lengths[users_B] - 1).clamp_(0, self.max_length)
        starts_B = sequences.ends[users_B] - 1 - lengths_B
        windows, source = layout(starts_B, lengths_B, size, self.max_length)
        # Spare rows must stay inside an array that may be shorter than they are.
        source = source.remainder_(len(sequences.items) - 1) if size.rows > len(users_B) else source
        targets = sequences.items.index_select(0, source + 1).long()
        weights = count = None
        spare = size.rows - len(users_B)
        if spare:
            count = windows.offsets[len(users_B)]
            weights = (torch.arange(size.positions, device=self.device) < count) / count
            users_B = torch.nn.functional.pad(users_B, (0, spare), value=len(sequences.lengths) - 1)
        return Batch(with_items(windows, sequences.items, source), targets, users_B, None, weights, count)
