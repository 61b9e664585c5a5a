"""BERT4Rec (Sun et al. 2019, arXiv 1904.06690) with the blocks that RePlay publishes.

    x = dropout(item + position), the [MASK] vector in the place of a masked item
    block:  x = x + drop(attention(LN(x)));  x = x + drop(feed_forward(LN(x)));  x = drop(x)
    LN(x) = gain * (x - mean) / (std + 1e-6) + bias, std the unbiased deviation

No norm behind the last block, no scaling by sqrt(D). Attention sees the whole history on both sides, never another one.

The head's bias is the last column of the table that scores, and every state ends in a constant one: item embeddings are
then (V, D + 1), a parameter as it stands and no copy, and losses, ranking and negatives need not know of a bias. The
input's lookup leaves the column of a tied table out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from seqrec.config import Bert4rec
from seqrec.data.batches import Windows
from seqrec.data.cloze import asked_next
from seqrec.models import grids
from seqrec.models.base import SequenceModel
from seqrec.models.grids import Layout
from seqrec.models.transformer import SelfAttention

LAYER_NORM_EPS = 1e-6
TIED_BIAS_STD = 0.01


class Bert4recModel(SequenceModel):
    """Initial values as published: xavier_normal for every matrix (the head's without its bias); the head's bias as
    `torch.nn.Linear` draws it if untied, normal with deviation 0.01 if tied."""

    def __init__(self, config: Bert4rec, n_items: int) -> None:
        super().__init__()
        D = config.hidden_size
        self.max_length = config.max_length
        self.hidden_size = D
        self.dropout = config.dropout
        self.head_bias = config.head_bias
        tied = config.head == "tied"
        scored = D + 1 if config.head_bias else D
        self.item_table = nn.Parameter(torch.empty(n_items, scored if tied else D))
        self.head_table = None if tied else nn.Parameter(torch.empty(n_items, scored))
        self.position_table = nn.Parameter(torch.empty(config.max_length, D))
        self.mask_vector = nn.Parameter(torch.empty(1, D))
        self.blocks = nn.ModuleList(Block(D, config.n_heads, config.dropout) for _ in range(config.n_blocks))
        for parameter in self.parameters():
            if parameter.dim() >= 2:
                table = parameter is self.item_table or parameter is self.head_table
                nn.init.xavier_normal_(parameter.data[:, :D] if table else parameter)
        if config.head_bias:
            bias = self.item_embeddings().data[:, D]
            if tied:
                nn.init.normal_(bias, std=TIED_BIAS_STD)
            else:
                nn.init.uniform_(bias, -(D**-0.5), D**-0.5)

    def states(self, windows: Windows) -> Tensor:
        layout = grids.without_pads(windows, causal=False)
        hidden = self._encoded(windows, layout)
        if layout.order is not None:
            back = torch.empty_like(layout.order)
            back[layout.order] = torch.arange(len(back), device=back.device)
            hidden = hidden.index_select(0, back)
        return F.pad(hidden, (0, 1), value=1.0) if self.head_bias else hidden

    def _encoded(self, windows: Windows, layout: Layout) -> Tensor:
        """(N, hidden_size) in the layout's order."""
        ids, place, masked = windows.items, windows.places, windows.masked
        if layout.order is not None:
            ids, place = ids[layout.order], place[layout.order]
            masked = None if masked is None else masked[layout.order]
        states = F.embedding(ids, self.item_table)[:, : self.hidden_size]
        if masked is not None:
            states = torch.where(masked[:, None], self.mask_vector, states)
        states = F.dropout(states + F.embedding(place, self.position_table), self.dropout, self.training)
        for block in self.blocks:
            states = block(states, layout.grids)
        return states

    def encode(self, windows: Windows) -> Tensor:
        """As published: the state of a [MASK] that is put behind the last `max_length` - 1 items."""
        asking = asked_next(windows, self.max_length)
        return self.states(asking).index_select(0, asking.offsets[1 : windows.n_rows + 1] - 1)

    def item_embeddings(self) -> Tensor:
        return self.item_table if self.head_table is None else self.head_table


class Block(nn.Module):
    """Pre-norm attention and feed-forward of width 4 D (tanh-GELU, one dropout inside), and a dropout at the end."""

    def __init__(self, hidden_size: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.attention_norm = LayerNorm(hidden_size)
        self.attention = SelfAttention(hidden_size, n_heads, dropout)
        self.feed_forward_norm = LayerNorm(hidden_size)
        self.widen = nn.Linear(hidden_size, 4 * hidden_size)
        self.narrow = nn.Linear(4 * hidden_size, hidden_size)

    def forward(self, states_ND: Tensor, grids_of: tuple[grids.Grid, ...]) -> Tensor:
        normal = self.attention_norm(states_ND)
        states = states_ND + self._drop(self.attention(normal, normal, grids_of))
        wide = F.gelu(self.widen(self.feed_forward_norm(states)), approximate="tanh")
        states = states + self._drop(self.narrow(self._drop(wide)))
        return self._drop(states)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class LayerNorm(nn.Module):
    """gain * (x - mean) / (std + eps) + bias over the last dimension, D >= 2; std with D - 1 in its denominator.

    `torch.nn.LayerNorm` divides by sqrt(variance + eps) with D. Kept for the backward pass: the argument, and two
    numbers a row.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.bias = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = _Normalized.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return result


class _Normalized(torch.autograd.Function):
    """With y = (x - mean) / (std + eps) and g the gradient of y:

    dx = [g - mean(g) - y * sum(g y) (std + eps) / ((D - 1) std)] / (std + eps)

    0 / 0 where a row is constant is 0: y is 0 there.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        centred = x - mean
        std = torch.linalg.vector_norm(centred, dim=-1, keepdim=True).div_((x.shape[-1] - 1) ** 0.5)
        ctx.save_for_backward(x, gain, mean, std)
        return torch.addcmul(bias, centred.div_(std + LAYER_NORM_EPS), gain)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, gain, mean, std = ctx.saved_tensors
        scale = std + LAYER_NORM_EPS
        y = (x - mean).div_(scale)
        to_bias = upstream.sum(0)
        to_gain = (upstream * y).sum(0)
        g = upstream * gain
        # A constant row's std is 0; y is too, so that any other number may stand in its place.
        divisor = (x.shape[-1] - 1) * std.clamp(min=torch.finfo(std.dtype).tiny)
        pull = torch.linalg.vecdot(g, y)[:, None] * (scale / divisor)
        g.sub_(g.mean(-1, keepdim=True)).addcmul_(y, pull, value=-1).div_(scale)
        return g, to_gain, to_bias
