"""What the trainer and the evaluation ask of a model."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from seqrec.data.batches import Windows


class SequenceModel(nn.Module, ABC):
    """Histories in, hidden states out; an item's score is the dot product of a state with the item's embedding.

    D is the width of states and embeddings as the losses see them.
    """

    @abstractmethod
    def states(self, windows: Windows) -> Tensor:
        """(N, D) hidden states at the N positions. Nothing is computed at pads, for there are none."""

    @abstractmethod
    def encode(self, windows: Windows) -> Tensor:
        """(R, D) the state of each history from which its next item is predicted. No history may be empty."""

    def row_cells(self, longest: int) -> int:
        """Cells that a history takes in the rectangles of `encode`, together with histories of `longest` items at most;
        never more than one beyond `longest` unless it is constant."""
        return longest

    @abstractmethod
    def item_embeddings(self) -> Tensor:
        """(V, D), one row a catalog item: no row for pads."""
