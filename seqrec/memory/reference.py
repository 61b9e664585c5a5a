"""Cross-entropy as the published code computes it: what the papers' savings are measured against.

The logits of all B * L cells of the batch, pads included, are one tensor; the rows of valid positions are copied out of
it; autograd keeps their log softmax. Value and gradients are those of `ce`. Only the memory command knows this loss.
Deviation: V classes, without the published pad and phantom rows.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from seqrec.data.batches import Windows
from seqrec.data.negatives import Negatives
from seqrec.losses.base import Loss, Pass


class ReferenceCe(Loss):
    """Of one batch, whose windows say where the pads are; mean over its valid positions."""

    capturable = False

    def __init__(self, windows: Windows, max_length: int) -> None:
        super().__init__()
        self.n_cells = windows.n_rows * max_length
        self.cells = windows.rows * max_length + windows.places
        """(N,) the flat cell of each position."""

    def prepare(
        self,
        hidden_ND: Tensor,
        item_embeddings_VD: Tensor,
        targets_N: Tensor,
        negatives: Negatives | None,
        generator: torch.Generator | None,
        weights_N: Tensor | None,
    ) -> Pass:
        return partial(_materialised, targets=targets_N, cells=self.cells, n_cells=self.n_cells)


def _materialised(
    hidden: Tensor, items: Tensor, needs_gradient: bool, *, targets: Tensor, cells: Tensor, n_cells: int
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    x, w = (tensor.detach().requires_grad_(needs_gradient) for tensor in (hidden, items))
    with torch.set_grad_enabled(needs_gradient):
        value = _value(x, w, targets, cells, n_cells)
    if not needs_gradient:
        return value, None, None
    to_hidden, to_items = torch.autograd.grad(value, (x, w))
    return value.detach(), to_hidden, to_items


def _value(hidden: Tensor, items: Tensor, targets: Tensor, cells: Tensor, n_cells: int) -> Tensor:
    grid = hidden.new_zeros(n_cells, hidden.shape[1]).index_copy(0, cells, hidden)
    logits = grid @ items.T
    return F.cross_entropy(logits.index_select(0, cells), targets)
