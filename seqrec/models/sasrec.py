"""SASRec (Kang and McAuley 2018, arXiv 1808.09781) in the variants of the RECE, SCE and CCE- papers' experiments.

    x = dropout(sqrt(D) * item + position), 0 at pads;  x = block(x), 0 at pads, n_blocks times;  hidden = LN(x)

Scores are dot products with the input's item table (tied, no bias). Deviations from the published code: the table has
exactly V rows (none for pads or for an item that does not exist), and all parameters, biases too, follow from the seed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqrec.config import Sasrec
from seqrec.data.batches import Windows
from seqrec.models import grids
from seqrec.models.base import SequenceModel
from seqrec.models.transformer import LAYER_NORM_EPS, Block

_INITIALIZERS = {"xavier_uniform": nn.init.xavier_uniform_, "xavier_normal": nn.init.xavier_normal_}


class SasrecModel(SequenceModel):
    def __init__(self, config: Sasrec, n_items: int) -> None:
        super().__init__()
        self.max_length = config.max_length
        self.hidden_size = config.hidden_size
        self.mask_padding = config.mask_padding
        self.dropout = config.dropout
        self.item_table = nn.Parameter(torch.empty(n_items, config.hidden_size))
        self.position_table = nn.Parameter(torch.empty(config.max_length, config.hidden_size))
        self.blocks = nn.ModuleList(
            Block(config.hidden_size, config.n_heads, config.dropout, config.ffn_dropout)
            for _ in range(config.n_blocks)
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPS)
        for parameter in self.parameters():
            if parameter.dim() >= 2:
                _INITIALIZERS[config.initialization](parameter)

    def states(self, windows: Windows) -> Tensor:
        layout = grids.without_pads(windows) if self.mask_padding else grids.with_pads(windows, self.max_length)
        ids, place = windows.items, windows.places
        if layout.order is not None:
            ids, place = ids[layout.order], place[layout.order]
        states = F.embedding(ids, self.item_table) * self.hidden_size**0.5 + F.embedding(place, self.position_table)
        states = F.dropout(states, self.dropout, self.training)
        for block in self.blocks:
            states = block(states, layout.grids)
        hidden: Tensor = self.norm(states)
        return hidden if layout.order is None else torch.empty_like(hidden).index_copy(0, layout.order, hidden)

    def encode(self, windows: Windows) -> Tensor:
        return self.states(windows).index_select(0, windows.offsets[1:] - 1)

    def row_cells(self, longest: int) -> int:
        return longest if self.mask_padding else self.max_length

    def item_embeddings(self) -> Tensor:
        return self.item_table
