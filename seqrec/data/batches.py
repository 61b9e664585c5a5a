"""Batches for training and histories for evaluation: gathered from flat arrays on the device, no loop over users.

Everything a batch's shape depends on (how many positions, how long) is known on the host from the histories' lengths,
so that making a batch never waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from seqrec.data.tables import IntArray, Sequences
from seqrec.errors import InfeasibleError, message


@dataclass(frozen=True, eq=False)
class Batch:
    """Left-padded windows of B users: N positions, each with the item that follows it."""

    items: Tensor
    """(B, T) int64 encoded ids; 0 at pads, where it means nothing."""
    valid: Tensor
    """(B, T) bool"""
    positions: Tensor
    """(N,) int64, ascending: where `valid` holds, in the flattened B * T."""
    targets: Tensor
    """(N,) int64"""
    users: Tensor
    """(B,) int64 rows of the training `Sequences`."""
    rows: Tensor
    """(N,) int64: the row of the batch, 0..B-1, that owns each position."""


@dataclass(frozen=True, eq=False)
class DeviceSequences:
    """`Sequences` as tensors on one device."""

    items: Tensor
    """(n,) int32"""
    ends: Tensor
    """(n_sequences,) int64: one past each sequence's last item."""
    lengths: Tensor
    """(n_sequences,) int64"""

    @classmethod
    def of(cls, sequences: Sequences, device: torch.device | str) -> DeviceSequences:
        # A copy: tensors may be written to, the tables' arrays may not.
        return cls(
            torch.tensor(sequences.items, device=device),
            torch.tensor(sequences.offsets[1:], device=device),
            torch.tensor(sequences.lengths, device=device),
        )


def ragged(lengths_B: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Rows of `lengths_B` elements laid end to end: (total,) each element's row, and (total,) its place from the row's
    end, -length, ..., -1. total: the sum of the lengths, which the host knows without asking the device.
    """
    device = lengths_B.device
    rows = torch.repeat_interleave(torch.arange(len(lengths_B), device=device), lengths_B, output_size=total)
    return rows, torch.arange(total, device=device) - lengths_B.cumsum(0)[rows]


def history_batch(history: DeviceSequences, rows: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The last `length` items of the histories `rows` (B,): items (B, length) int64, left-padded with 0, and valid."""
    return _window(history, history.ends[rows], history.lengths[rows], length)


def _window(sequences: DeviceSequences, ends_B: Tensor, lengths_B: Tensor, T: int) -> tuple[Tensor, Tensor]:
    """items (B, T) int64 that end before `ends_B`, at most `lengths_B` of them, 0 elsewhere; valid (B, T)."""
    column = torch.arange(T, device=ends_B.device)
    valid = column >= T - lengths_B[:, None]
    place = (ends_B[:, None] - T + column).clamp_(min=0)
    return sequences.items[place].long().mul_(valid), valid


class CausalBatches:
    """Epochs of next-item prediction: one window a user, the most recent `max_length` + 1 items.

    Users with fewer than two items give no target and are left out. The order of an epoch is a function of (seed,
    epoch) alone, so that an epoch can be repeated without the ones before it. trim: a batch is as long as its longest
    window, not `max_length`. drop_last: a last, smaller batch is left out; raises InfeasibleError if none would
    remain.
    """

    def __init__(
        self,
        train: Sequences,
        *,
        max_length: int,
        batch_size: int,
        drop_last: bool,
        seed: int,
        trim: bool,
        device: torch.device | str,
    ) -> None:
        lengths = train.lengths
        self._users: IntArray = np.flatnonzero(lengths >= 2)
        self._lengths: IntArray = np.minimum(lengths - 1, max_length)
        """(n_sequences,) inputs of each window."""
        if len(self._users) < (batch_size if drop_last else 1):
            users = len(self._users)
            raise InfeasibleError(
                message("train.batch_size", batch_size, f"<= {users}, the users to train on, with drop_last")
                if users
                else message("data.path", "0 users with two training items", "at least 1")
            )
        self._max_length, self._batch_size, self._drop_last = max_length, batch_size, drop_last
        self._seed, self._trim, self._device = seed, trim, torch.device(device)
        self._sequences = DeviceSequences.of(train, device)

    def __len__(self) -> int:
        """Batches of an epoch."""
        whole, rest = divmod(len(self._users), self._batch_size)
        return whole + (1 if rest and not self._drop_last else 0)

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of one epoch; number: 0 or more."""
        order = np.random.default_rng([self._seed, number]).permutation(self._users)
        users = torch.from_numpy(order).to(self._device)
        for start in range(0, len(self) * self._batch_size, self._batch_size):
            part = slice(start, start + self._batch_size)
            yield self._batch(users[part], self._lengths[order[part]])

    def _batch(self, users_B: Tensor, host_lengths_B: IntArray) -> Batch:
        N = int(host_lengths_B.sum())
        T = int(host_lengths_B.max()) if self._trim else self._max_length
        sequences = self._sequences
        lengths_B = (sequences.lengths[users_B] - 1).clamp_(max=T)
        ends_B = sequences.ends[users_B]
        items, valid = _window(sequences, ends_B - 1, lengths_B, T)
        rows, from_end = ragged(lengths_B, N)
        positions = (rows + 1) * T + from_end
        targets = sequences.items[ends_B[rows] + from_end].long()
        return Batch(items, valid, positions, targets, users_B, rows)
