"""What the trainer and the evaluation ask of a model."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class SequenceModel(nn.Module, ABC):
    """Histories in, hidden states out; an item's score is the dot product of a state with the item's embedding.

    A batch is left-padded: `valid` (B, T) is False, False, ..., True, True in every row, T <= max_length, and the last
    column is the most recent item. What `items` holds at pads is of no consequence.
    """

    @abstractmethod
    def states(self, items: Tensor, valid: Tensor, positions: Tensor) -> Tensor:
        """(N, D) hidden states at `positions` (N,), the ascending flat indices (row * T + column) of ALL valid entries.

        The training path: nothing is computed at pads, and the device is not asked how many there are.
        """

    @abstractmethod
    def encode(self, items: Tensor, valid: Tensor) -> Tensor:
        """(B, T, D) hidden states of `items` (B, T); at pads they are a constant that means nothing."""

    @abstractmethod
    def item_embeddings(self) -> Tensor:
        """(V, D), one row a catalog item: no row for pads."""
