"""Attention, and SASRec's block, on packed states: (N, D), one row a valid position, no row for pads.

All that the block does to a pad is undone by the mask at its end, so pads matter only as attention keys: there a pad is
the zero vector and projects to the biases of the key and value projections. The grids of `seqrec.models.grids` say
where the states lie while attention works on them, and whether empty cells are such keys. The rest is done on N rows,
which are a tenth to a half of B * T on real histories.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqrec.models.grids import Grid

LAYER_NORM_EPS = 1e-8


class SelfAttention(nn.Module):
    """Multi-head attention with the parameters (names, shapes, initialisation) of `torch.nn.MultiheadAttention`."""

    def __init__(self, hidden_size: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * hidden_size, hidden_size))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * hidden_size))
        self.out_proj = nn.Linear(hidden_size, hidden_size)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, queries_ND: Tensor, keys_ND: Tensor, grids: Sequence[Grid]) -> Tensor:
        """(N, D): every query over the keys of its row that its grid lets it see."""
        D = queries_ND.shape[1]
        bias_kv = self.in_proj_bias[D:]
        query = F.linear(queries_ND, self.in_proj_weight[:D], self.in_proj_bias[:D])
        key_value = F.linear(keys_ND, self.in_proj_weight[D:], bias_kv)
        parts = [self._attend(query[grid.members], key_value[grid.members], bias_kv, grid) for grid in grids]
        attended = torch.cat(parts) if parts else query
        return F.linear(attended, self.out_proj.weight, self.out_proj.bias)

    def _attend(self, query: Tensor, key_value: Tensor, bias_kv: Tensor, grid: Grid) -> Tensor:
        """(n, D) of the n states of one grid; key_value: (n, 2 D)."""
        cells, D = grid.n_rows * grid.length, query.shape[1]
        query = query.new_zeros(cells, D).index_copy(0, grid.slots, query)
        empty = bias_kv.expand(cells, 2 * D) if grid.pads_are_keys else key_value.new_zeros(cells, 2 * D)
        key_value = empty.index_copy(0, grid.slots, key_value)

        def heads(cells_of: Tensor) -> Tensor:
            return cells_of.view(grid.n_rows, grid.length, self.n_heads, -1).transpose(1, 2)

        attended = F.scaled_dot_product_attention(
            heads(query),
            heads(key_value[:, :D]),
            heads(key_value[:, D:]),
            attn_mask=grid.keys,
            is_causal=grid.keys is None,
            dropout_p=self.dropout if self.training else 0.0,
        )
        return attended.transpose(1, 2).reshape(cells, D).index_select(0, grid.slots)


class FeedForward(nn.Module):
    """x + drop(W2 relu(W1 x)), hidden width D, with the inner dropout on either side of the ReLU.

    Both sides give the same function of the same random mask (dropout scales by 0 or a positive number): the published
    variants differ in form only.
    """

    def __init__(self, hidden_size: int, dropout: float, inner: Literal["before_relu", "after_relu"]) -> None:
        super().__init__()
        self.inner = inner
        self.first = nn.Linear(hidden_size, hidden_size)
        self.second = nn.Linear(hidden_size, hidden_size)
        self.dropout = dropout

    def forward(self, states_ND: Tensor) -> Tensor:
        hidden = F.linear(states_ND, self.first.weight, self.first.bias)
        if self.inner == "before_relu":
            hidden = F.relu(F.dropout(hidden, self.dropout, self.training))
        else:
            hidden = F.dropout(F.relu(hidden), self.dropout, self.training)
        hidden = F.linear(hidden, self.second.weight, self.second.bias)
        return states_ND + F.dropout(hidden, self.dropout, self.training)


class Block(nn.Module):
    """q = LN(x); x = q + attention(q, x, x); x = LN(x); x = feed_forward(x).

    The residual is taken from the normalised query, as both published variants do (the SASRec paper adds x itself).
    """

    def __init__(
        self, hidden_size: int, n_heads: int, dropout: float, inner: Literal["before_relu", "after_relu"]
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(hidden_size, eps=LAYER_NORM_EPS)
        self.attention = SelfAttention(hidden_size, n_heads, dropout)
        self.feed_forward_norm = nn.LayerNorm(hidden_size, eps=LAYER_NORM_EPS)
        self.feed_forward = FeedForward(hidden_size, dropout, inner)

    def forward(self, states_ND: Tensor, grids: Sequence[Grid]) -> Tensor:
        queries: Tensor = self.attention_norm(states_ND)
        states: Tensor = queries + self.attention(queries, states_ND, grids)
        states = self.feed_forward_norm(states)
        result: Tensor = self.feed_forward(states)
        return result
